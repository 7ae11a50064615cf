"""Recurrent convolution: the kernels of one cell are applied for several steps, and each step has its own batch norms.

Zhang & Jung, "Recurrent Convolution for Compact and Cost-Adjustable Neural Networks". A body holds the shared kernels and
is called as `body(x, norms)`: its batch norms are arguments, never hidden state, so one model can be called by many threads
at different step counts. `RecurrentCell` keeps the table of those norms; `rcnet.network` chains cells.
"""

import copy
import importlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from rcnet.errors import InputError, unknown
from rcnet.setting import whole_numbers

NormMode = Literal["none", "shared", "independent", "double"]
NORM_MODES: tuple[NormMode, ...] = ("none", "shared", "independent", "double")
Body = Callable[[Tensor, Any], Tensor]
MOVED = ("RecurrentNet", "Steps", "unroll", "untie")  # to rcnet.network in 0.2
M = TypeVar("M", bound=nn.Module)


class Cell(nn.Module):
    """The base of the cells that a `RecurrentNet` unrolls, called as `cell(x, steps, upstream)`; `upstream`: the steps before it.

    Attributes:
        steps: the supported numbers of steps, ascending.
        recurrent: whether it takes a number of steps; otherwise it is applied once (T in Eq. 10).

    Example:
        >>> import rcnet, torch
        >>> class Double(rcnet.Cell):
        ...     steps = (1, 2)
        ...     def forward(self, x, steps, upstream=0):
        ...         return x * 2**steps
        >>> net = rcnet.RecurrentNet(Double())
        >>> net(torch.ones(1, 1, 1, 1), steps=2).item()
        4.0
    """

    recurrent = True
    steps: tuple[int, ...]

    def holds(self, steps: int, upstream: int) -> bool:
        """Whether it has all norms for `steps` steps when the cell before took `upstream` steps."""
        return steps in self.steps

    def fixed(self, steps: int, upstream: int) -> "Cell":
        """A cell for this path only: it shares the kernels, without a copy, and has only the norms of the path."""
        return self

    def untied(self) -> "Cell":
        """A fixed cell with separate kernels for every step."""
        return self


def _unrolled(x: Tensor, bodies: Sequence[Body], norms: Sequence[nn.Module], pool: nn.Module | None) -> Tensor:
    """Eq. 4: h_{t+1} = f(h_t, b_{t+1}); pooled once, after step ceil(n/2) of n (Sec. 5)."""
    for t, (body, group) in enumerate(zip(bodies, norms, strict=True), start=1):
        x = body(x, group)
        if pool is not None and t == (len(norms) + 1) // 2:
            x = pool(x)
    return x


class RecurrentCell(Cell):
    """A body applied `steps` times with the same kernels and a table of batch norms (Fig. 1, Eq. 6).

    The table is `norms[row][step][i]`: `row` is the number of steps taken by the recurrent cell upstream (0 if there is none or
    the mode ignores it), `step` counts this cell's steps from 0, `i` is the index of the norm in the body. Rows that no
    supported step count reaches are empty, and row t holds only the columns that can be reached: the lower triangle of Eq. 6
    when all cells take the same number of steps. With `pooled_rows` a row also belongs to one step count of this cell: row 34
    is for 4 steps after 3 upstream.

    Args:
        body: a module called as `body(x, norms)`; input and output have the same shape.
        norm: returns a new list of the norms of one step, e.g. `lambda: [nn.BatchNorm2d(64)]`.
        steps: the supported numbers of steps.
        norm_mode: `none`; `shared`, one group of norms for all steps; `independent`, one group per step (Sec. 3.1);
            `double`, one group per step and per step count of the cell upstream (Sec. 4.1).
        upstream: the numbers of steps that the recurrent cell upstream can take; empty if there is none.
        unified: all cells take the same number of steps in a call (Sec. 4.2); otherwise each row holds every column.
        pool: applied once, after step ceil(n/2) of n (Sec. 5).
        pooled_rows: separate norms for each step count of this cell, which decides where the pooling is: no norm sees two
            image sizes. Only used in mode double, with a pool and several step counts.

    Raises:
        InputError: an unknown norm mode, no or non-positive steps, or a `norm` that does not return a list of new modules; when
            called, a body that changes the shape or uses more norms than there are.

    Example:
        >>> import rcnet, torch
        >>> class Body(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)
        ...     def forward(self, x, norms):
        ...         return x + norms[0](self.conv(x).relu())
        >>> cell = rcnet.RecurrentCell(Body(), lambda: [torch.nn.BatchNorm2d(8)], steps=(1, 2, 3))
        >>> cell(torch.rand(1, 8, 16, 16), steps=3).shape
        torch.Size([1, 8, 16, 16])
    """

    def __init__(
        self,
        body: nn.Module,
        norm: Callable[[], Iterable[nn.Module]],
        steps: Iterable[int] | int,
        *,
        norm_mode: NormMode = "independent",
        upstream: Iterable[int] = (),
        unified: bool = True,
        pool: nn.Module | None = None,
        pooled_rows: bool = True,
    ) -> None:
        super().__init__()
        if norm_mode not in NORM_MODES:
            raise unknown("norm mode", norm_mode, NORM_MODES)
        self.steps = supported_steps(steps)
        self.body = body
        self.pool = pool
        self.by_step = norm_mode in ("independent", "double")
        self.by_upstream = norm_mode == "double"
        self.by_steps = self.by_upstream and pooled_rows and pool is not None and len(self.steps) > 1
        before = sorted(set(upstream)) if self.by_upstream else []

        def columns(row: int) -> int:
            return min(row, self.steps[-1]) if unified and row else self.steps[-1]

        if self.by_steps:
            sizes = {self._row(n, t): n for t in before or [0] for n in self.steps if not (unified and t) or n == t}
        else:
            sizes = {row: columns(row) if self.by_step else 1 for row in before or [0]}
        self.norms = nn.ModuleList(
            nn.ModuleList(_group(norm, norm_mode) for _ in range(sizes.get(row, 0))) for row in range(max(sizes) + 1)
        )
        made = [id(module) for group in itertools.chain(*self.norms) for module in group]
        if len(set(made)) < len(made):
            raise InputError("norm returned the same module twice; it must create new norms at each call")

    def _row(self, steps: int, upstream: int) -> int:
        """The row of the table for `steps` steps after `upstream` steps of the cell before."""
        row = upstream if self.by_upstream else 0
        return row * 10 ** len(str(self.steps[-1])) + steps if self.by_steps else row

    def upstream_of(self, row: int) -> int:
        """The number of upstream steps to which a row of the table belongs."""
        return row // 10 ** len(str(self.steps[-1])) if self.by_steps else row

    def _groups(self, steps: int, upstream: int) -> nn.ModuleList:
        return cast(nn.ModuleList, self.norms[self._row(steps, upstream)])

    def holds(self, steps: int, upstream: int) -> bool:
        if steps == 0:  # the identity, unless the cell pools
            return self.pool is None
        if steps not in self.steps or self._row(steps, upstream) >= len(self.norms):
            return False
        return len(self._groups(steps, upstream)) >= (steps if self.by_step else 1)

    def forward(self, x: Tensor, steps: int, upstream: int = 0) -> Tensor:
        """x: [B, C, H, W]. The output has the same shape, unless the cell pools."""
        row = self._groups(steps, upstream)
        norms = [row[t if self.by_step else 0] for t in range(steps)]
        if isinstance(x, fx.Proxy) or torch.compiler.is_compiling():
            return _unrolled(x, [self.body] * steps, norms, self.pool)
        return _unrolled(x, [self._checked] * steps, norms, self.pool)

    def _checked(self, x: Tensor, norms: nn.ModuleList) -> Tensor:
        """Calls the body; `InputError` if its output or its number of norms does not fit."""
        try:
            y = self.body(x, norms)
        except IndexError as error:
            if "is out of range" not in str(error):
                raise
            raise InputError(f"{type(self.body).__name__} uses more norms than the {len(norms)} that norm returns") from error
        if self.recurrent and y.shape != x.shape:
            raise InputError(
                f"{type(self.body).__name__} returned shape {list(y.shape)} for input {list(x.shape)}; the body of a cell must "
                "preserve the shape (use a Transition to change it)"
            )
        return y

    def fixed(self, steps: int, upstream: int) -> Cell:
        cell = shallow_copy(self)
        cell.steps, cell.by_upstream, cell.by_steps = (steps,), False, False
        cell.norms = nn.ModuleList([nn.ModuleList(list(self._groups(steps, upstream))[: steps if self.by_step else 1])])
        return cell

    def untied(self) -> Cell:
        return StandardCell((copy.deepcopy(self.body) for _ in range(self.steps[0])), self._groups(self.steps[0], 0), self.pool)


def _group(norm: Callable[[], Iterable[nn.Module]], norm_mode: NormMode) -> nn.ModuleList:
    """The norms of one step, or `InputError` if `norm` does not return a list of modules."""
    given: Any = norm()
    made: list[Any] = list(given) if isinstance(given, Iterable) else [None]
    if isinstance(given, nn.Sequential) or not all(isinstance(module, nn.Module) for module in made):
        raise InputError(
            f"norm returned {type(given).__name__}; it must return the list of norms for one step, e.g. [nn.BatchNorm2d(64)]"
        )
    return nn.ModuleList(nn.Identity() if norm_mode == "none" else module for module in made)


class Transition(RecurrentCell):
    """A non-recurrent block (T in Eq. 10): applied once, with one row of norms per step count of the cell upstream.

    Its body may change the shape. The arguments are those of `RecurrentCell`.

    Example:
        >>> import rcnet, torch
        >>> class Down(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1)
        ...     def forward(self, x, norms):
        ...         return norms[0](self.conv(x))
        >>> block = rcnet.Transition(Down(), lambda: [torch.nn.BatchNorm2d(16)])
        >>> block(torch.rand(1, 8, 16, 16), steps=1).shape
        torch.Size([1, 16, 8, 8])
    """

    recurrent = False

    def __init__(
        self,
        body: nn.Module,
        norm: Callable[[], Iterable[nn.Module]],
        *,
        norm_mode: NormMode = "independent",
        upstream: Iterable[int] = (),
    ) -> None:
        super().__init__(body, norm, 1, norm_mode=norm_mode, upstream=upstream)

    def untied(self) -> Cell:
        return self


class StandardCell(Cell):
    """The graph of an unrolled cell with separate kernels for every step: a part of the standard network S."""

    def __init__(self, bodies: Iterable[nn.Module], norms: Iterable[nn.Module], pool: nn.Module | None = None) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.norms = nn.ModuleList(norms)
        self.pool = pool
        self.steps = (len(self.bodies),)

    def forward(self, x: Tensor, steps: int, upstream: int = 0) -> Tensor:
        """As `RecurrentCell.forward`, with one step count and independent of the cell upstream."""
        norms = itertools.islice(itertools.cycle(self.norms), len(self.bodies))
        return _unrolled(x, list(self.bodies), list(norms), self.pool)


def shallow_copy(module: M) -> M:
    """The same children, parameters and buffers in new dictionaries: hooks on one do not run on the other."""
    other = copy.copy(module)
    other.__dict__.update({key: value.copy() for key, value in vars(module).items() if isinstance(value, dict)})
    return other


def supported_steps(steps: int | Iterable[int]) -> tuple[int, ...]:
    """The step counts, ascending, or `InputError`: at least one, each a positive whole number."""
    values = tuple(sorted(set(whole_numbers(steps))))
    if not values or values[0] < 1:
        raise InputError(f"steps={steps!r} is not valid: give one or more whole numbers from 1, e.g. 4 or (2, 3, 4)")
    return values


def shared_kernels(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a call uses more than once: those of the bodies of recurrent cells with more than one step."""
    return [
        parameter
        for cell in model.modules()
        if isinstance(cell, RecurrentCell) and cell.steps[-1] > 1
        for parameter in cell.body.parameters()
    ]


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Every batch norm of the model, in the order of its names."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def norms_of(model: nn.Module) -> list[nn.Module]:
    """Every norm in the tables of cells, of any class, and every batch norm elsewhere."""
    tables = [cell.norms for cell in model.modules() if isinstance(cell, RecurrentCell | StandardCell)]
    in_tables = [m for table in tables for m in table.modules() if not isinstance(m, nn.ModuleList | nn.Identity)]
    return list(dict.fromkeys([*in_tables, *batch_norms(model)]))


def __getattr__(name: str) -> Any:
    """A name that was here before 0.2."""
    if name in MOVED:
        return getattr(importlib.import_module("rcnet.network"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
