"""Text output (tables, counts), and the options --steps and --budget."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rcnet.errors import InputError
from rcnet.setting import Setting

if TYPE_CHECKING:
    from rcnet.network import RecurrentNet
    from rcnet.runtime.session import Session

Budget = Annotated[str | None, Parameter(allow_leading_hyphen=True)]  # -5ms is a bad budget, not an option
Json = Annotated[bool, Parameter(name="--json")]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns: text to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [bool(cells) and all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        pairs = zip(row, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if r else cell.ljust(width) for cell, width, r in pairs).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in cells)])


def count(number: float) -> str:
    """A large number with its unit: 111k, 1.26M, 17.4G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def check_cost(steps: str | None, budget: str | None) -> None:
    """Raises `InputError` if both are given, or one is invalid for every network."""
    if steps is not None and budget is not None:
        raise InputError("give either --steps or --budget")
    if budget is not None:
        from rcnet.runtime.budget import parse_budget

        parse_budget(budget)
    if steps is not None:
        Setting.parse(steps)


def read_steps(steps: str | None, network: "RecurrentNet | Session") -> Setting:
    """The setting of the network for a text, the largest for None. Raises `InputError` for an invalid one."""
    return network.per_cell(None if steps is None else Setting.parse(steps, len(network.settings[0])))


@contextmanager
def progress(total: int, about: str = "", unit: str = "it", hidden: bool = False) -> Iterator[Callable[..., Any]]:
    """A progress bar where stderr is a terminal; gives what moves it on."""
    if hidden or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=about or None, unit=unit, leave=False) as bar:
        yield bar.update


def read_size(text: str | None) -> tuple[int, int] | None:
    """Height and width from `321x481`, or from the side of a square; None for None. Raises `InputError` for an invalid one."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise InputError(f"--size {text} is not valid: give HEIGHTxWIDTH in pixels, e.g. 321x481, or one side of a square")
    return int(sides[0]), int(sides[-1])


@contextmanager
def collect_errors(count: int, failed: list[InputError]) -> Iterator[None]:
    """Prints an `InputError` and appends it to `failed`, so that other images are still processed; of one image it is raised."""
    try:
        yield
    except InputError as error:
        if count == 1:
            raise
        failed.append(error)
        print(f"rcnet: {' '.join(str(error).split())}", file=sys.stderr)
