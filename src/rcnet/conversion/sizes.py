"""Sizes of tensors as numbers that know their node in a graph."""

import operator
from collections.abc import Callable
from typing import Any

from torch import fx


class Size(int):
    """A size of a tensor: a number that knows its node."""

    make: Callable[[], fx.Node]

    def __new__(cls, value: int, make: Callable[[], fx.Node]) -> "Size":
        size = super().__new__(cls, value)
        size.make = make
        return size


def _arithmetic(name: str) -> Callable[[Any, Any], Any]:
    plain, function, flipped = getattr(int, f"__{name}__"), getattr(operator, f"__{name.removeprefix('r')}__"), name[0] == "r"

    def compute(self: Size, other: Any) -> Any:
        value = plain(self, other)
        if value is NotImplemented or not isinstance(value, int):
            return value

        def make() -> fx.Node:
            node, with_it = self.make(), other.make() if isinstance(other, Size) else other
            return node.graph.call_function(function, (with_it, node) if flipped else (node, with_it))

        return Size(value, make)

    return compute


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod"):
    setattr(Size, f"__{_name}__", _arithmetic(_name))
