"""A setting: the steps of each cell in one call, as a value that is read, printed, ordered and stored in one way everywhere."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Self

from rcnet.errors import InputError

Steps = int | str | Sequence[int] | None  # what a call takes: for all cells, as text, per cell; None: the largest


class Setting(tuple[int, ...]):
    """The steps of each cell, e.g. (3, 2, 2), in the order in which the cells run; it equals the tuple.

    As text it is what people type: `3,2,2`, or `2` where all cells take two.
    """

    __slots__ = ()

    @classmethod
    def of(cls, steps: int | str | Iterable[int], cells: int = 1) -> Self:
        """From a number for all cells, one number per cell, or the text or the JSON of either.

        Args:
            cells: how many cells the network has; it does not matter to `str`, `name` and `to_json`.

        Raises:
            InputError: not whole numbers.
        """
        numbers = whole_numbers(steps)
        if not numbers:
            raise InputError(f"steps={steps!r} is not valid: give a number, e.g. 2, or one per cell, e.g. 3,2,2")
        for_all = not isinstance(steps, Iterable) or (isinstance(steps, str) and len(numbers) == 1)
        return cls(numbers * cells if for_all else numbers)

    @property
    def uniform(self) -> bool:
        """Whether all cells take the same number."""
        return len(set(self)) == 1

    @property
    def order(self) -> tuple[int, tuple[int, ...]]:
        """The key that sorts settings from the cheapest: by the sum of the steps."""
        return sum(self), tuple(self)

    @property
    def name(self) -> str:
        """In files and as the output of an exported network: `steps2`, `steps3_2_2`."""
        return "steps" + str(self).replace(",", "_")

    def __str__(self) -> str:
        return str(self[0]) if self.uniform else ",".join(map(str, self))

    def to_json(self) -> int | tuple[int, ...]:
        """The number that all cells take, or one per cell: what results and files hold, and what users pass."""
        return self[0] if self.uniform else tuple(self)


def whole_numbers(given: Any) -> tuple[int, ...]:
    """Those of a number of any integer type, of several, or of a text, `2` or `3,2,2`; () if there is anything else."""
    try:
        if isinstance(given, str):
            return tuple(int(part) for part in given.split(","))
        numbers = tuple(given) if isinstance(given, Iterable) else (given,)
        return () if any(isinstance(n, bool) for n in numbers) else tuple(operator.index(n) for n in numbers)
    except (TypeError, ValueError):
        return ()


def listed(settings: Iterable[Setting]) -> str:
    """Settings for an error message, the middle of many left out: `1, 2, 3`, or `1; 2,1,1; 2`."""
    texts = [str(setting) for setting in settings]
    return (", " if not any("," in text for text in texts) else "; ").join(
        [*texts[:8], "...", *texts[-2:]] if len(texts) > 12 else texts
    )
