"""The one exception for bad input, whose message is the line that the command line prints."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

TORCH = ("torch", "safetensors")  # what the extra of that name installs
LISTED_BY = {"weights": "rcnet models", "model": "rcnet models"}


class InputError(ValueError):
    """What the caller gave is wrong; the message is one line that says what was wrong and what is valid.

    Example:
        >>> import rcnet
        >>> try:
        ...     rcnet.create_model("r33")
        ... except rcnet.InputError as error:
        ...     print(str(error).partition("?")[0])
        unknown model 'r33': did you mean 'r3'
    """


class Diverged(InputError):
    """A training whose loss or weights grow without bound."""


def unknown(what: str, given: object, valid: Iterable[object]) -> InputError:
    """An `InputError` for a name that does not exist, with the nearest valid one first and the command that lists them."""
    names = [str(name) for name in valid]
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = f" ({LISTED_BY[what]} lists them)" if what in LISTED_BY else ""
    return InputError(f"unknown {what} {str(given)!r}: {hint}valid: {', '.join(names) or 'none'}{listed}")


@contextmanager
def needs_torch() -> Iterator[None]:
    """Around imports: `InputError` that names the extra where torch, or what comes with it, is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in TORCH:
            raise
        raise InputError(f"this needs {error.name}: pip install 'rcnet[torch]'") from error
