"""Recipes: a TOML file that describes which network is trained, on which data and how. Unknown keys are errors."""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from rcnet.errors import InputError, unknown
from rcnet.models.files import read_metadata
from rcnet.models.registry import import_modules
from rcnet.tasks import TASKS, task_of
from rcnet.tasks.task import number

LENGTHS = ("minutes", "epochs", "iterations")  # of a run; the first that is given counts


@dataclass(frozen=True)
class Optimizer:
    """`muon` trains the convolution kernels of cells with Muon and the rest with Adam; `adam` and `sgd` train everything."""

    name: Literal["muon", "adam", "sgd"] = "adam"
    lr: float = number(1e-3, 0)
    muon_lr: float = number(0.04, 0)  # for the kernels of cells, before `shared_lr`
    shared_lr: float = number(0.5, 0, 1)  # factor on the learning rate of shared kernels (Sec. 3.3)
    norm_lr: float = number(1.0, 0)  # factor on that of norms' scales and shifts; with Adam 64 trains much faster
    betas: tuple[float, float] = number((0.9, 0.99), 0, 1, below=True)
    momentum: float = number(0.95, 0, 1, below=True)  # of Muon and SGD
    weight_decay: float = number(0.0, 0)  # convolution and linear weights only
    clip: float = number(10.0, 0)  # largest norm of the gradient; 0 does not clip


@dataclass(frozen=True)
class Recipe:
    """One training run. It ends after `minutes` if that is above 0, else `epochs`, else `iterations`; its schedule with it.

    The section of each task is an attribute too: `recipe.denoising.sigma`.

    Example:
        >>> Recipe(model={"name": "r3"}, iterations=100).denoising.sigma
        25.0
    """

    model: Mapping[str, Any] = field(default_factory=dict)  # the network of `init` if it has no name
    init: str = ""  # weights to start from, bundled or a file; tensors that do not fit, e.g. norms of other steps, start fresh
    teacher: str = ""  # a network to learn from: weights by name or file, a folder of transformers, package.module:function
    teacher_weight: float = number(0.5, 0, 1)  # weight of the loss against the teacher's outputs; the rest is against the labels
    # Weight of the squared difference between the outputs of cells and of the teacher's blocks, relative to their variance.
    feature_weight: float = number(0.0, 0)
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch: int = number(32, 1)  # images per iteration, over all processes
    accumulate: int = number(1, 1, free=True)  # parts of a batch that each process computes one after the other: less memory
    iterations: int = number(10_000, 1)
    epochs: float = number(0.0, 0)
    minutes: float = number(0.0, 0)
    warmup: float = number(0.02, 0, 1)  # first fraction of the run, in which the learning rate rises from zero
    decay: float = number(1.0, 0, 1)  # last fraction of the run, in which the learning rate falls to zero along a half cosine
    # The trained settings, which the network then offers. unified: all cells take the same steps (Alg. 2); staircase: one cell
    # at a time takes one more step, and later cells are skipped in the cheapest settings; free: every combination (needs
    # model.unified = false); or a list of settings, each one number per cell.
    settings: Literal["unified", "staircase", "free"] | tuple[tuple[int, ...], ...] = "unified"
    # One per setting, cheapest first; default: uniform (Alg. 2). A network with one setting needs none.
    probabilities: tuple[float, ...] = ()
    # sampled: Alg. 2; aggregated: the weighted sum over all settings (Sec. 4.2); sandwich: the largest, which teaches the
    # smallest and one drawn in between (US-Nets 2019).
    objective: Literal["sampled", "aggregated", "sandwich"] = "sampled"
    # Last fraction of the run, in which batch norms use fixed running statistics (evaluation mode), as in inference. Kernels,
    # scales and shifts are trained further.
    frozen: float = number(0.0, 0, 1)
    ema: float = number(0.0, 0, 1)  # decay of the average of the weights, which is evaluated and saved; 0: the last weights
    # Measurements on images held out from training (`holdout` of the section), evenly spaced along a run that starts from
    # `init`, or that asks for `best` or `early_stop`; 0: none.
    evaluations: int = number(10, 0)
    best: bool = False  # the best weights that were measured are saved, as they always are in a run that starts from `init`
    early_stop: int = number(0, 0)  # ends the run after this many measurements in a row without a better one; 0: never
    recalibrate: int = number(0, 0)  # batches on which batch norms' statistics are measured again at the end; 0: not
    recalibrate_start: int = number(0, 0)  # the same at the start, of a network of `rcnet convert`; 0: not
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # torch.compile, one graph per setting; needs a C++ compiler on a CPU
    seed: int = number(0, 0, 2**32)
    log_every: int = number(100, 1, free=True)  # iterations
    checkpoint_minutes: float = number(2.0, 0, free=True)
    sections: Mapping[str, Any] = field(default_factory=lambda: {kind.key: kind.section() for kind in TASKS.values()})

    def __getattr__(self, name: str) -> Any:
        """The section of a task."""
        sections = self.__dict__.get("sections", {})
        if name not in sections:
            raise AttributeError(f"a recipe has no {name!r}")
        return sections[name]

    @property
    def measures(self) -> bool:
        """Whether the weights are measured along the run, and the best kept."""
        return self.evaluations > 0 and bool(self.init or self.best or self.early_stop)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        values = dataclasses.asdict(self)
        sections = values.pop("sections")
        return _plain({**values, **sections})


def fixed(recipe: Recipe, section: str) -> dict[str, Any]:
    """The keys that must not change when a run is resumed, and those of the section of its task, as JSON values."""
    return {**_fixed(recipe), section: _fixed(recipe.sections[section])}


def _fixed(section: Any) -> dict[str, Any]:
    kept = (f.name for f in dataclasses.fields(section) if not f.metadata.get("free") and f.name != "sections")
    values = {name: getattr(section, name) for name in kept}
    return {name: _fixed(value) if dataclasses.is_dataclass(value) else _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def list_recipes() -> dict[str, Path]:
    """The bundled recipes: name -> file."""
    folder = Path(str(resources.files("rcnet.training") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a bundled recipe or a path, or `InputError` with the bundled names."""
    known = list_recipes()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    raise unknown("recipe", name_or_path, known)


def read_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or file, with `key=value` overrides, e.g. `batch=8`, `optimizer.lr=1e-3`, `model.steps=[1, 2]`.

    With `init` and no key of `optimizer`, a recipe that has no key `init` itself, and so is made to start from nothing, takes the
    optimizer of the recipe that fine-tunes networks of this task.

    Raises:
        InputError: no such recipe, not TOML, an unknown key, a value of the wrong type, or two lengths.

    Example:
        >>> read_recipe("r3_fast", ["minutes=5"]).optimizer.name, read_recipe("r3_fast", ["init=r3_fast.photo"]).optimizer.name
        ('muon', 'adam')
    """
    path = find_recipe(name_or_path)
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a recipe: {error}") from error
    source = f"{name_or_path} with {' '.join(overrides)}" if overrides else str(path)
    given = read_overrides(overrides)
    if given.keys() & {*LENGTHS}:  # replaces the recipe's length
        other = LENGTHS if any(given.get(key) for key in LENGTHS) else LENGTHS[:2]
        table = {key: value for key, value in table.items() if key not in other}
    from_nothing = "init" not in table
    table = read_overrides(overrides, table)
    if "init" in given and from_nothing and "optimizer" not in given:
        table |= _for_trained_weights(table, given)
    if len(lengths := [f"{key} = {table[key]}" for key in LENGTHS if table.get(key)]) > 1:
        raise InputError(f"{source}: {' and '.join(lengths)} are two lengths of one run: give one")
    return recipe_from(table, source)


def _for_trained_weights(table: Mapping[str, Any], keep: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe that is made to start from nothing takes for trained weights, which its learning rates would undo.

    The optimizer is that of the task's recipe for trained weights. A denoiser's running statistics also stand still, unless
    `keep` has `frozen`: measured again on batches of patches, they cost quality.
    """
    model = table.get("model")
    kind = task_of(model if isinstance(model, dict) and "name" in model else read_metadata(str(table["init"]))["architecture"])
    optimizer = tomllib.loads(list_recipes()[kind.finetune].read_text())["optimizer"]
    return {"optimizer": optimizer} | ({"frozen": 1.0} if kind.gives == "image" and "frozen" not in keep else {})


def read_overrides(overrides: Sequence[str], table: dict[str, Any] | None = None) -> dict[str, Any]:
    """The table, or a new one, with the values of `key=value` texts; `section.key=value` goes into a table in it."""
    table = {} if table is None else table
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"{override!r} is not an override: give key=value, e.g. batch=8 or optimizer.lr=1e-3")
        *sections, last = key.split(".")
        target = table
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise InputError(f"{section!r} in {override!r} is not a section of a recipe")
        target[last] = _toml_value(text)
    return table


def recipe_from(table: Mapping[str, Any], source: str) -> Recipe:
    """A checked recipe of a table; `source` is named in errors."""
    import_modules()
    kinds = {kind.key: kind.section for kind in TASKS.values()}
    hints = _hints(Recipe, "sections")
    for key in table:
        if key not in hints | kinds:
            raise InputError(f"{source}: {unknown('key', key, [*hints, *kinds])}")
    sections = {key: _convert(kind, table.get(key, {}), source, key) for key, kind in kinds.items()}
    recipe: Recipe = _build(Recipe, {key: value for key, value in table.items() if key not in kinds}, source, "")
    recipe = dataclasses.replace(recipe, sections=sections)
    if {"minutes", "epochs"} & table.keys() and not (recipe.minutes or recipe.epochs or "iterations" in table):
        raise InputError(f"{source}: minutes and epochs of 0 leave the run without a length: give iterations=N, too")
    return recipe


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


def _build(kind: type[Any], table: Mapping[str, Any], source: str, prefix: str) -> Any:
    hints, declared = _hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    for key in table:
        if key not in hints:
            raise InputError(f"{source}: {unknown('key', prefix + key, [prefix + name for name in hints])}")
    values = {key: _convert(hints[key], value, source, prefix + key) for key, value in table.items()}
    for key, value in values.items():
        if limits := _outside(value, declared[key]):
            raise InputError(f"{source}: {prefix}{key} = {table[key]!r} is not valid: it takes numbers {limits}")
    return kind(**values)


def _hints(kind: type[Any], *hidden: str) -> dict[str, Any]:
    """The type of each key."""
    return {key: hint for key, hint in typing.get_type_hints(kind).items() if key not in hidden}


def _outside(value: Any, declared: dataclasses.Field[Any]) -> str:
    """The range that a field was declared with, in words, if the value lies outside of it."""
    if "range" not in declared.metadata:
        return ""
    low, high, below = declared.metadata["range"]
    numbers = value if isinstance(value, tuple) else (value,)
    if all(low <= n <= high and math.isfinite(n) and not (below and n == high) for n in numbers):
        return ""
    return f"from {low:g}" + (f" to {'below ' * below}{high:g}" if high < math.inf else "")


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """The TOML value as the type of the field, or `InputError`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _build(hint, value, source, key + ".")
    if origin is Literal:
        if value not in args:
            raise InputError(f"{source}: {unknown(key, value, args)}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _convert(option, value, source, key)
            except InputError:
                continue
    elif origin is tuple and isinstance(value, list):
        item_hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(item_hints) == len(value):
            return tuple(_convert(item, v, source, key) for item, v in zip(item_hints, value, strict=True))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) is hint or (origin is Mapping and isinstance(value, dict)):
        return value
    section = dataclasses.is_dataclass(hint) or origin is Mapping
    raise InputError(f"{source}: {key} = {value!r} is not valid: it takes {f'a section, [{key}]' if section else _words(hint)}")


def _words(hint: Any) -> str:
    """The type of a field, for people."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, args))
    if origin is tuple:
        return f"[{', '.join('...' if item is Ellipsis else _words(item) for item in args)}]"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
