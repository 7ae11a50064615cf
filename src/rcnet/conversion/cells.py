"""The cells of converted networks: a block becomes a body that takes its norms, and steps may also have low-rank differences."""

import copy
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from rcnet.cell import Cell, RecurrentCell, StandardCell
from rcnet.conversion.blocks import is_vector, tensor_of
from rcnet.conversion.fit import LAYERS
from rcnet.conversion.record import NORMS


class Value(nn.Module):
    """A parameter or buffer as a module, which each step has its own copy of, like its norms."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        copied = value.detach().clone()
        if isinstance(value, nn.Parameter):
            self.value = nn.Parameter(copied, requires_grad=value.requires_grad)
        else:
            self.register_buffer("value", copied)

    def forward(self) -> Tensor:
        return self.value


class RelaxedCell(RecurrentCell):
    """A recurrent cell whose steps may add layers of low rank to the shared ones (Bae et al. 2024, arXiv 2410.20672).

    The body is called as `body(x, [*norms, *differences], *extras)` with those of the step. If the input is a tuple, the cell
    changes only its first tensor, [B, C, H, W]; the others bypass the cell, for layers further down the chain.

    Args:
        differences: the modules of each step; default: none.
        extras: the indices of the values in the input that every step takes as they are.
        others: as for `RecurrentCell`.
    """

    def __init__(
        self, *others: Any, differences: Sequence[Iterable[nn.Module]] = (), extras: Sequence[int] = (), **options: Any
    ) -> None:
        super().__init__(*others, **options)
        self.extras = tuple(extras)
        self.differences = nn.ModuleList(nn.ModuleList(step) for step in differences or [()] * self.steps[-1])

    def _parts(self, steps: int, upstream: int) -> list[list[nn.Module]]:
        """Norms and differences of each step."""
        row = self._groups(steps, upstream)
        groups: list[Any] = [row[t if self.by_step else 0] for t in range(steps)]
        more: Any = self.differences
        return [[*group, *more[t]] for t, group in enumerate(groups)]

    def forward(self, x: Any, steps: int, upstream: int = 0) -> Any:
        """x: [B, C, H, W], or a tuple that begins with it. The output has the same shape."""
        return _passing([self.body] * steps, self._parts(steps, upstream), x, self.extras)

    def fixed(self, steps: int, upstream: int) -> Cell:
        cell: Any = super().fixed(steps, upstream)
        cell.differences = nn.ModuleList(list(self.differences)[:steps])
        return cell

    def untied(self) -> Cell:
        parts = [nn.ModuleList(step) for step in self._parts(self.steps[0], 0)]
        cell = UntiedCell((copy.deepcopy(self.body) for _ in parts), parts)
        cell.extras = self.extras
        return cell


class UntiedCell(StandardCell):
    """As `StandardCell`; of a tuple, only the first tensor changes."""

    extras: tuple[int, ...] = ()

    def forward(self, x: Any, steps: int, upstream: int = 0) -> Any:
        return _passing(list(self.bodies), list(self.norms), x, self.extras)


def _passing(bodies: Sequence[nn.Module], parts: Sequence[Any], x: Any, extras: Sequence[int]) -> Any:
    y, *rest = x if isinstance(x, tuple) else (x,)
    more = [x[i] for i in extras]
    for body, norms in zip(bodies, parts, strict=True):
        y = body(y, norms, *more)
    return (y, *rest) if rest else y


def take_out(graph: fx.Graph, root: nn.Module, vectors: bool) -> list[str]:
    """Replaces the norms of a graph by an argument `norms`; returns the names of the replaced modules, in the order of `norms`.

    Args:
        vectors: also replace one-dimensional parameters and buffers that are used outside layers (e.g. layer scale).
    """
    first = next(iter(graph.nodes))
    with graph.inserting_after(first):
        given = graph.placeholder("norms")
    names: dict[str, fx.Node] = {}

    def part(name: str) -> fx.Node:
        if name not in names:
            with graph.inserting_after(list(names.values())[-1] if names else given):
                names[name] = graph.call_function(operator.getitem, (given, len(names)))
        return names[name]

    for node in list(graph.nodes):
        if node.op == "call_module":
            module, args = root.get_submodule(str(node.target)), node.args
            if not isinstance(module, NORMS):
                continue
        elif node.op == "get_attr" and vectors and is_vector(tensor_of(root, str(node.target))):
            args = ()
        else:
            continue
        norm = part(str(node.target))
        with graph.inserting_before(node):
            called = graph.call_method("__call__", (norm, *args), dict(node.kwargs))
        node.replace_all_uses_with(called)
        graph.erase_node(node)
    return list(names)


def part_of(root: nn.Module, name: str) -> Any:
    """A module, parameter or buffer by name."""
    found: Any = root
    for part in name.split("."):
        found = getattr(found, part)
    return found


def own_part(root: nn.Module, name: str) -> nn.Module:
    """A copy of a module or tensor that `take_out` replaced, by name."""
    found = part_of(root, name)
    return copy.deepcopy(found) if isinstance(found, nn.Module) else Value(found)


def add_differences(graph: fx.Graph, root: nn.Module, before: int) -> list[str]:
    """Adds the output of a module in `norms`, from index `before`, to each layer of `LAYERS` and to each other weight.

    Returns:
        the names of these layers and weights.
    """
    given = next(node for node in graph.nodes if node.op == "placeholder" and node.target == "norms")
    names: list[str] = []
    for node in list(graph.nodes):
        is_layer = node.op == "call_module" and type(part_of(root, str(node.target))) in LAYERS
        if not is_layer and not (node.op == "get_attr" and isinstance(part_of(root, str(node.target)), nn.Parameter)):
            continue
        if node.target not in names:
            names.append(str(node.target))
        with graph.inserting_after(node):
            extra = graph.call_function(operator.getitem, (given, before + names.index(str(node.target))))
        with graph.inserting_after(extra):
            more = graph.call_method("__call__", (extra, *node.args), dict(node.kwargs))
        with graph.inserting_after(more):
            total = graph.call_function(torch.add, (node, more))
        node.replace_all_uses_with(total, delete_user_cb=lambda user, total=total: user is not total)
    return names
