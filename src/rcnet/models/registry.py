"""`register`, `create_model` and `list_models`: architectures by name."""

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rcnet.cell import supported_steps
from rcnet.errors import InputError, unknown
from rcnet.modules import import_named
from rcnet.network import RecurrentNet

Build = Callable[..., RecurrentNet]


@dataclass(frozen=True)
class Entry:
    """A registered architecture: its task, its usual step counts, and the function that builds it.

    `adjustable`: one network can support all of these step counts.
    """

    name: str
    task: str
    steps: tuple[int, ...]
    build: Build
    adjustable: bool = True

    @property
    def usual(self) -> dict[str, Any]:
        """The configuration with all step counts, or with the largest if a network can have only one."""
        return {"steps": self.steps if self.adjustable else self.steps[-1]} if self.steps else {}


_ENTRIES: dict[str, Entry] = {}


def register(
    task: str, steps: tuple[int, ...] = (), *, adjustable: bool = True, replace: bool = False
) -> Callable[[Build], Build]:
    """Registers the decorated function under its name for `create_model`, `save`, `load` and the command line.

    The function returns a `RecurrentNet`, whose `about` describes its input. A process must import the function before it loads
    its weights; the command line imports the modules in the environment variable `RCNET_MODULES`, e.g.
    `RCNET_MODULES=my.networks`.

    Args:
        task: its task, a name of `tasks.TASKS` or one of your own.
        steps: the usual step counts of the network, its option `steps`.
        adjustable: one network can support all of them.
        replace: replace a function of the same name, e.g. in a notebook.

    Raises:
        InputError: when decorating, if the name is taken.

    Example:
        >>> import rcnet
        >>> @rcnet.register(task="denoise", steps=(1, 2), replace=True)
        ... def narrow(steps=(1, 2)):
        ...     return rcnet.create_model("r3_fast", steps=steps, width=16)
        >>> rcnet.create_model("narrow").architecture["name"]
        'narrow'
    """

    def add(build: Build) -> Build:
        known = _ENTRIES.get(build.__name__)
        if known and not replace and not _same_code(known.build, build):
            raise InputError(
                f"a network named {build.__name__!r} already exists: use another name, or register(..., replace=True)"
            )
        _ENTRIES[build.__name__] = Entry(build.__name__, task, steps, build, adjustable)
        return build

    return add


def _same_code(known: Build, build: Build) -> bool:
    """Whether both are the same function of one file that was read twice: run as a script, and imported by name."""
    codes: list[Any] = [getattr(inspect.unwrap(function), "__code__", None) for function in (known, build)]
    if None in codes or any(code.co_freevars or code.co_filename.startswith("<") for code in codes):
        return False
    return len({(code.co_filename, code.co_qualname, code.co_firstlineno) for code in codes}) == 1


def register_as(name: str, build: Build) -> None:
    """As `register`, under a name with a colon, which `list_models` leaves out; the network that is built has the task."""
    _ENTRIES[name] = Entry(name, "", (), build)


def trusted(name: str) -> bool:
    """Whether a file of weights may name it: a person named it before, in this process or in `RCNET_MODULES`."""
    return name in _ENTRIES or name.partition(":")[0] in os.environ.get("RCNET_MODULES", "").split(",")


def import_modules() -> None:
    """Imports the modules in `RCNET_MODULES`, which define networks and tasks of users."""
    for module in filter(None, os.environ.get("RCNET_MODULES", "").split(",")):
        import_named(module)


def _known() -> dict[str, Entry]:
    import_modules()
    return _ENTRIES


def list_models(task: str | None = None) -> list[str]:
    """The names that `create_model` takes, sorted; with `task`, only those of this task, e.g. `denoise`.

    Example:
        >>> import rcnet
        >>> "r3" in rcnet.list_models("denoise"), "r3" in rcnet.list_models("classify")
        (True, False)
    """
    return sorted(name for name, entry in _known().items() if task in (None, entry.task) and ":" not in name)


def entry(name: str) -> Entry:
    """The entry of this name, or `InputError` with the valid names."""
    if not isinstance(name, str) or name not in _known():
        module, colon, _ = str(name).partition(":")
        if colon:
            raise InputError(f"the module of {name} is not imported; if you trust it, set RCNET_MODULES={module}")
        raise unknown("model", name, list_models())
    return _known()[name]


def find_builder(name: str) -> Entry:
    """As `entry`, and also imports `package.module:function`. Not for names from files of weights: an import runs code."""
    module, colon, function = name.partition(":") if isinstance(name, str) else ("", "", "")
    if colon and name not in _ENTRIES:
        build = getattr(import_named(module), function, None)
        if not callable(build):
            raise InputError(f"the module {module!r} has no function {function!r}")
        known = next((entry for entry in _ENTRIES.values() if entry.build is build), Entry(name, "", (), build))
        _ENTRIES[name] = dataclasses.replace(known, name=name)
    return entry(name)


def create_model(name: str, **config: Any) -> RecurrentNet:
    """A network with fresh weights, e.g. `create_model("r2", steps=(2, 3, 4))`.

    Args:
        name: one of `list_models()`, or `package.module:function`, which is imported.
        config: passed to the function of that name.

    Raises:
        InputError: an unknown name or key of `config`, or a value that the architecture rejects.

    Example:
        >>> import rcnet
        >>> net = rcnet.create_model("r2", steps=(2, 3, 4), num_classes=100)
        >>> net.steps, net.about.task
        ((2, 3, 4), 'classify')
    """
    return build_model(find_builder(name), config)


def build_shapes(name: str, config: Mapping[str, Any]) -> RecurrentNet:
    """As `create_model`, on the meta device, which is much faster; on the CPU if the function computes with the weights."""
    found = entry(name)
    try:
        with torch.device("meta"):
            return build_model(found, config)
    except InputError:
        with torch.random.fork_rng(devices=()):
            return build_model(found, config)


def build_model(found: Entry, config: Mapping[str, Any]) -> RecurrentNet:
    """The network of an entry, with its name and configuration in `architecture`."""
    name, build, config = found.name, found.build, dict(config)
    valid = inspect.signature(build).parameters
    for key, value in config.items():
        if key not in valid:
            raise unknown(f"option of {name}", key, valid)
        _check_option(f"{key} of {name}", value, valid[key].annotation)
    if config.get("steps") is not None:
        config["steps"] = plain_steps(config["steps"])
    try:
        net = build(**config)
    except (TypeError, ValueError, RuntimeError) as error:  # InputError is a ValueError
        raise InputError(f"{name} cannot be built with {config}: {error}") from error
    whole = {key: option.default for key, option in valid.items()} | config  # all options: a default may change later
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in whole.items()}  # as JSON has it
    if not isinstance(net, RecurrentNet):
        raise InputError(f"{name} returned {type(net).__name__}; it must return a RecurrentNet")
    net.architecture = {"name": name, "config": plain}
    net.about = dataclasses.replace(net.about, task=net.about.task or found.task)
    return net


def plain_steps(steps: Any) -> int | tuple[int, ...]:
    """Step counts as a configuration has them: one number, or several in ascending order."""
    counts = supported_steps(steps)
    return counts if len(counts) > 1 else counts[0]


def _check_option(what: str, value: object, kind: object) -> None:
    """`InputError` unless a bool option is a bool, an int a whole number from 1 and a float a positive number."""
    if kind is bool and not isinstance(value, bool):
        raise InputError(f"{what} must be true or false, not {value!r}")
    if kind is int and what.partition(" ")[0] != "steps" and (type(value) is not int or value < 1):
        raise InputError(f"{what} must be a whole number from 1, not {value!r}")
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf):
        raise InputError(f"{what} must be a positive number, not {value!r}")


def architecture_of(model: RecurrentNet) -> dict[str, Any]:
    """{"name": ..., "config": ...} of a model from `create_model`, or `InputError`."""
    if model.architecture is None:
        raise InputError(
            "this network was not made by create_model or load, so it has no name to be saved under: decorate the function that "
            "builds it with @rcnet.register(task), and create it with rcnet.create_model(NAME)"
        )
    return model.architecture
