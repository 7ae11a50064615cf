"""`create_model` and `list_models`: every architecture by name."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rcnet.cell import RecurrentNet, supported_steps
from rcnet.errors import InputError, unknown


@dataclass(frozen=True)
class Entry:
    """A registered architecture: its task, the step counts that the paper runs it at, and the function that builds it."""

    name: str
    task: str
    steps: tuple[int, ...]
    build: Callable[..., RecurrentNet]


_ENTRIES: dict[str, Entry] = {}


def register(task: str, steps: tuple[int, ...]) -> Callable[[Callable[..., RecurrentNet]], Callable[..., RecurrentNet]]:
    """Adds the decorated function to the registry under its own name."""

    def add(build: Callable[..., RecurrentNet]) -> Callable[..., RecurrentNet]:
        _ENTRIES[build.__name__] = Entry(build.__name__, task, steps, build)
        return build

    return add


def list_models(task: str | None = None) -> list[str]:
    """The names that `create_model` takes, sorted; those of one task (`classify`, `denoise`) if given."""
    return sorted(name for name, entry in _ENTRIES.items() if task in (None, entry.task))


def entry(name: str) -> Entry:
    """The registry's entry, or `InputError` that names the valid ones."""
    if not isinstance(name, str) or name not in _ENTRIES:
        raise unknown("model", name, list_models())
    return _ENTRIES[name]


def create_model(name: str, **config: Any) -> RecurrentNet:
    """A network with fresh weights, e.g. `create_model("r2", steps=(2, 3, 4))`; `config` goes to the function of that name.

    Raises:
        InputError: an unknown name or key of `config`, or a value that the architecture refuses.
    """
    build = entry(name).build
    valid = inspect.signature(build).parameters
    for key, value in config.items():
        if key not in valid:
            raise unknown(f"option of {name}", key, valid)
        _check_option(f"{key} of {name}", value, valid[key].annotation)
    if "steps" in config:
        steps = supported_steps(config["steps"])
        config["steps"] = steps if len(steps) > 1 else steps[0]
    try:
        net = build(**config)
    except (TypeError, ValueError, RuntimeError) as error:  # InputError is a ValueError
        raise InputError(f"{name} cannot be built with {config}: {error}") from error
    whole = {key: option.default for key, option in valid.items()} | config  # a default may change: files name every option
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in whole.items()}  # as JSON has it
    net.architecture = {"name": name, "config": plain}
    return net


def _check_option(what: str, value: object, kind: object) -> None:
    """`InputError` unless a yes-or-no is a bool, a count a whole number from 1 and a factor a positive number."""
    if kind is bool and not isinstance(value, bool):
        raise InputError(f"{what} is true or false, not {value!r}")
    if kind is int and what.partition(" ")[0] != "steps" and (type(value) is not int or value < 1):
        raise InputError(f"{what} is a whole number from 1, not {value!r}")
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf):
        raise InputError(f"{what} is a positive number, not {value!r}")


def task_of(model: RecurrentNet) -> str:
    """`classify` or `denoise`."""
    return entry(architecture_of(model)["name"]).task


def architecture_of(model: RecurrentNet) -> dict[str, Any]:
    """{"name": ..., "config": ...} of a model made by `create_model`, or `InputError`."""
    architecture = getattr(model, "architecture", None)
    if architecture is None:
        raise InputError("this network was not made by create_model or load, so that its architecture has no name")
    return architecture
