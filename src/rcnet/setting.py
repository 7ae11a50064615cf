"""A setting: the steps of each cell in one call, as a value that is read, printed, ordered and stored in one way everywhere."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Self

from rcnet.errors import InputError

Steps = int | Sequence[int] | None  # what a call takes: a number for all cells, one per cell, or the largest


class Setting(tuple[int, ...]):
    """The steps of each cell, e.g. (3, 2, 2), in the order in which the cells run; it equals the tuple.

    As text it is what people type: `3,2,2`, or `2` where all cells take two.

    Example:
        >>> from rcnet.setting import Setting
        >>> Setting.parse("3,2,2") == (3, 2, 2), str(Setting.of(2, cells=3)), Setting.of([3, 2, 2]).name
        (True, '2', 'steps3_2_2')
    """

    __slots__ = ()

    @classmethod
    def of(cls, steps: Any, cells: int = 1) -> Self:
        """From a number for all cells or one number per cell, of any integer type: what users pass and JSON holds.

        Other values give the empty setting, which no network has.

        Args:
            cells: the number of cells of the network; `str`, `name` and `to_json` do not depend on it.
        """
        numbers = whole_numbers(steps)
        return cls(numbers if isinstance(steps, Iterable) else numbers * cells)

    @classmethod
    def parse(cls, text: str, cells: int = 1) -> Self:
        """From what `str` gives. Raises `InputError` for any other text."""
        numbers = parse_numbers(text)
        return cls(numbers * cells if len(numbers) == 1 else numbers)

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
        """The name in files and of the output of an exported network: `steps2`, `steps3_2_2`."""
        return "steps" + str(self).replace(",", "_")

    def __str__(self) -> str:
        return str(self[0]) if self.uniform else ",".join(map(str, self))

    def to_json(self) -> int | tuple[int, ...]:
        """The number that all cells take, or one per cell: what results and files hold, and what users pass."""
        return self[0] if self.uniform else tuple(self)


def whole_numbers(given: Any) -> tuple[int, ...]:
    """A number of any integer type, numpy's too, or several; () if there is anything else."""
    try:
        numbers = tuple(given) if isinstance(given, Iterable) else (given,)
        return () if any(isinstance(n, bool) for n in numbers) else tuple(operator.index(n) for n in numbers)
    except TypeError:
        return ()


def parse_numbers(text: str) -> tuple[int, ...]:
    """`2`, or `3,2,2`. Raises `InputError` for any other text."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"steps {text} is not valid: give a number, e.g. 2, or several, e.g. 3,2,2") from None


def listed(settings: Iterable[Setting]) -> str:
    """Settings for an error message, the middle of many left out: `1, 2, 3`, or `1; 2,1,1; 2`."""
    texts = [str(setting) for setting in settings]
    return (", " if not any("," in text for text in texts) else "; ").join(
        [*texts[:8], "...", *texts[-2:]] if len(texts) > 12 else texts
    )
