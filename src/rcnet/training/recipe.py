"""Recipes: a TOML file that says which network is trained, on what and how. Unknown keys are errors."""

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


@dataclass(frozen=True)
class Denoising:
    """Patches and noise."""

    patch: int = 64  # pixels, a side
    sigma: float | tuple[float, float] = 25.0  # in levels of 255; [low, high] draws one for each patch
    as_8bit: bool | float = False  # noisy patches are clipped and rounded, as files are; a number: this part of the batches
    jpeg: float = 0.0  # this part of the batches goes through JPEG with its noise
    clean: float = 0.0  # this part of the patches has no noise
    camera: float = 0.0  # this part of the batches has the noise of a simulated camera (data/camera.py) instead of Gaussian noise
    drawn: float = 0.0  # this part of the images is drawn: flat areas, ramps and text
    unknown: float = 0.5  # this part of the patches does not tell its level to a network that takes one (model.noise_level)
    one_level: bool = False  # all patches of a batch have one level
    # Half the squared error; the same, each patch's divided by the square root of its noise's variance (and of 4 levels, at
    # sigma 25 by 1), so that weak noise counts too; or Charbonnier's, sqrt(error^2 + 0.001^2).
    loss: Literal["squared", "weighted", "charbonnier"] = "squared"
    holdout: int = 0  # this many of the training images, evenly spaced, are kept for validation


@dataclass(frozen=True)
class Classification:
    """Labelled images and how they are varied."""

    dataset: Literal["auto", "cifar10", "cifar100", "folder"] = "auto"  # auto takes the one that is there
    size: int = 32  # pixels, a side, that image folders are resized to
    crop: int = 4  # pixels that a random crop may be off, with reflection; 0 does not crop
    flip: Literal["random", "alternating", "none"] = "random"  # alternating: each image in one epoch and not in the next
    cutout: int = 0  # pixels, a side, of a square that is blanked
    label_smoothing: float = 0.0
    whitening: bool = False  # the stem starts as filters that whiten the patches of the training images
    holdout: int = 0  # this many of the training images are kept for validation; the test images are then not looked at


@dataclass(frozen=True)
class Optimizer:
    """Muon takes the convolution kernels of cells, and Adam the rest; `adam` and `sgd` take all."""

    name: Literal["muon", "adam", "sgd"] = "adam"
    lr: float = 1e-3
    muon_lr: float = 0.04  # of the kernels of cells, before `shared_lr`
    shared_lr: float = 0.5  # the learning rate of shared kernels, as a part of the others' (Sec. 3.3)
    norm_lr: float = 1.0  # that of batch norms' scales and shifts, as a multiple of the others'; with Adam 64 trains much faster
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = 0.95  # of Muon and SGD
    weight_decay: float = 0.0  # convolution and linear weights only
    clip: float = 10.0  # largest norm of the gradient; 0 does not clip


@dataclass(frozen=True)
class Recipe:
    """One training run. It ends after `minutes` if that is above 0, else `epochs`, else `iterations`; its schedule with it."""

    model: Mapping[str, Any] = field(default_factory=dict)  # that of `init` where it has no name
    init: str = ""  # weights to start from, bundled ones by name or a file; fresh ones unless given
    teacher: str = ""  # a network to learn from: weights by name or file, a folder of transformers, package.module:function
    teacher_weight: float = 0.5  # the part of the loss that is against the teacher's outputs; the rest is against the labels
    denoising: Denoising = field(default_factory=Denoising)
    classification: Classification = field(default_factory=Classification)
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch: int = 32  # images an iteration, of all processes together
    accumulate: int = 1  # parts that a process takes its share of a batch in, one after the other: less memory
    iterations: int = 10_000
    epochs: float = 0.0
    minutes: float = 0.0
    warmup: float = 0.02  # part of the run in which the learning rate rises from zero
    decay: float = 1.0  # part of the run, its last, in which the learning rate falls to zero along a half cosine
    # What is trained, and then offered: all cells take the same steps (Alg. 2); one cell at a time takes one step more, and those
    # after it are left out at the cheap end; every number of every cell (model.unified = false); or a list of steps a cell.
    settings: Literal["unified", "staircase", "free"] | tuple[tuple[int, ...], ...] = "unified"
    # Of each setting, cheapest first; evenly unless given (Alg. 2). A network of one step count needs none.
    probabilities: tuple[float, ...] = ()
    # Alg. 2; the weighted sum over all steps (Sec. 4.2); or the largest, which teaches the smallest and a third (US-Nets 2019).
    objective: Literal["sampled", "aggregated", "sandwich"] = "sampled"
    # Part of the run, its last, in which the running statistics of batch norms are used and stand still (evaluation mode):
    # what is trained is then what will run. Kernels, scales and shifts go on.
    frozen: float = 0.0
    ema: float = 0.0  # decay of the average of the weights that is evaluated and saved; 0 takes the last weights
    recalibrate: int = 0  # batches over which every batch norm's statistics are measured again at the end; 0 keeps them
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # torch.compile, one graph a step count; needs a C++ compiler on a CPU
    seed: int = 0
    log_every: int = 100  # iterations
    checkpoint_minutes: float = 2.0

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the package: name -> file."""
    folder = Path(str(resources.files("rcnet.training") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a bundled recipe or of a path, or `InputError` that names the bundled ones."""
    known = list_recipes()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    raise unknown("recipe", name_or_path, known)


def read_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or file, with `key=value` overrides, e.g. `batch=8`, `optimizer.lr=1e-3`, `model.steps=[1, 2]`.

    Raises:
        InputError: no such recipe, not TOML, an unknown key or a value of the wrong kind.
    """
    path = find_recipe(name_or_path)
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a recipe: {error}") from error
    lengths = {override.partition("=")[0] for override in overrides} & {"minutes", "epochs", "iterations"}
    if lengths:  # the recipe's own length no longer counts
        table = {key: value for key, value in table.items() if key not in ("minutes", "epochs")}
    read_overrides(overrides, table)
    return recipe_from(table, f"{path} with {' '.join(overrides)}" if overrides else str(path))


def read_overrides(overrides: Sequence[str], table: dict[str, Any] | None = None) -> dict[str, Any]:
    """The table, or a new one, with the values of `key=value` texts; `section.key=value` goes into a table in it."""
    table = {} if table is None else table
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"{override!r} is not an override: give key=value, e.g. batch=8 or optimizer.lr=1e-3")
        *sections, last = key.split(".")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"{section!r} in {override!r} is not a section of a recipe")
        place[last] = _toml_value(text)
    return table


def recipe_from(table: Mapping[str, Any], source: str) -> Recipe:
    """A checked recipe of a table; `source` is named in errors."""
    return _build(Recipe, table, source, "")


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


# Smallest and largest value of each number, or of each number of a pair.
_RANGES: dict[str, tuple[float, float]] = {
    "batch": (1, math.inf),
    "accumulate": (1, math.inf),
    "epochs": (0, math.inf),
    "recalibrate": (0, math.inf),
    "iterations": (1, math.inf),
    "minutes": (0, math.inf),
    "teacher_weight": (0, 1),
    "warmup": (0, 1),
    "decay": (0, 1),
    "frozen": (0, 1),
    "ema": (0, 1),
    "seed": (0, 2**32),
    "log_every": (1, math.inf),
    "checkpoint_minutes": (0, math.inf),
    "denoising.patch": (1, math.inf),
    "denoising.sigma": (0, 255),
    "denoising.holdout": (0, math.inf),
    "denoising.as_8bit": (0, 1),
    "denoising.jpeg": (0, 1),
    "denoising.clean": (0, 1),
    "denoising.camera": (0, 1),
    "denoising.drawn": (0, 0.9),
    "denoising.unknown": (0, 1),
    "classification.size": (8, math.inf),
    "classification.crop": (0, math.inf),
    "classification.cutout": (0, math.inf),
    "classification.label_smoothing": (0, 1),
    "classification.holdout": (0, math.inf),
    "optimizer.lr": (0, math.inf),
    "optimizer.muon_lr": (0, math.inf),
    "optimizer.shared_lr": (0, 1),
    "optimizer.norm_lr": (0, math.inf),
    "optimizer.betas": (0, 1),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip": (0, math.inf),
}


def _build(kind: type[Any], table: Mapping[str, Any], source: str, prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise InputError(f"{source}: {unknown('key', prefix + key, [prefix + name for name in hints])}")
    values = {key: _convert(hints[key], value, source, prefix + key) for key, value in table.items()}
    for key, value in values.items():
        low, high = _RANGES.get(prefix + key, (-math.inf, math.inf))
        numbers = value if isinstance(value, tuple) else (value,)
        if prefix + key in _RANGES and not all(low <= number <= high and math.isfinite(number) for number in numbers):
            limits = f"from {low:g}" + (f" to {high:g}" if high < math.inf else "")
            raise InputError(f"{source}: {prefix}{key} = {table[key]!r} is not valid: it takes numbers {limits}")
    missing = [f.name for f in dataclasses.fields(kind) if f.name not in values and _required(f)]
    if missing:
        raise InputError(f"{source}: the key {missing[0]!r} is missing")
    return kind(**values)


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


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
    if dataclasses.is_dataclass(hint) or origin is Mapping:
        name = f"a section, [{key}]"
    else:
        name = hint.__name__ if origin is None else str(hint)
    raise InputError(f"{source}: {key} = {value!r} is not valid: it takes {name}")
