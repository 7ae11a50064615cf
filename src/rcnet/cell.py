"""Recurrent convolution: one cell's kernels applied for several steps, with batch norms of their own for every step.

Zhang & Jung, "Recurrent Convolution for Compact and Cost-Adjustable Neural Networks". A body holds the shared kernels and
is called as `body(x, norms)`: its batch norms are arguments, never hidden state, so one model can be called by many threads
at different step counts. `RecurrentCell` keeps the table of those norms, `RecurrentNet` chains cells (Alg. 1), `unroll`
gives the ordinary network of one step count and `untie` its standard network, whose kernels are not shared.
"""

import copy
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Self, TypeVar, cast

from torch import Tensor, nn

from rcnet.errors import InputError, unknown

NormMode = Literal["none", "shared", "independent", "double"]
NORM_MODES: tuple[NormMode, ...] = ("none", "shared", "independent", "double")
Steps = int | Sequence[int] | None
Net = TypeVar("Net", bound="RecurrentNet")


class RecurrentCell(nn.Module):
    """A body applied `steps` times with the same kernels and a table of batch norms (Fig. 1, Eq. 6).

    The table is `norms[row][step][i]`: row = steps taken by the recurrent cell upstream (0 where there is none or the mode
    does not look upstream), step = own step from 0, i = which norm of the body. Rows that no supported step count reaches are
    empty, and row t holds only the columns that can be reached: the lower triangle of Eq. 6 when all cells take the same
    number of steps.

    Args:
        body: a module called as `body(x, norms)`; input and output have the same shape.
        norm: returns the norms of one step, newly made, e.g. `lambda: [nn.BatchNorm2d(64)]`.
        steps: the supported numbers of steps.
        norm_mode: `none`; `shared`, one group of norms for all steps; `independent`, a group a step (Sec. 3.1); `double`,
            a group a step and a step count of the cell upstream (Sec. 4.1).
        upstream: the numbers of steps that the recurrent cell upstream can take; empty if there is none.
        unified: all cells take the same number of steps in a call (Sec. 4.2); otherwise each row holds every column.
        pool: applied once, after step ceil(n/2) of n (Sec. 5).

    Raises:
        InputError: an unknown norm mode, or no or non-positive steps.
    """

    recurrent = True

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
    ) -> None:
        super().__init__()
        if norm_mode not in NORM_MODES:
            raise unknown("norm mode", norm_mode, NORM_MODES)
        self.steps = supported_steps(steps)
        self.body = body
        self.pool = pool
        self.by_step = norm_mode in ("independent", "double")
        rows = sorted(set(upstream)) if norm_mode == "double" else []
        self.by_upstream = bool(rows)

        def columns(row: int) -> int:
            return min(row, self.steps[-1]) if unified and row else self.steps[-1]

        def group() -> nn.ModuleList:
            return nn.ModuleList(nn.Identity() if norm_mode == "none" else module for module in norm())

        sizes = {row: columns(row) if self.by_step else 1 for row in rows or [0]}
        self.norms = nn.ModuleList(nn.ModuleList(group() for _ in range(sizes.get(row, 0))) for row in range(max(sizes) + 1))

    def holds(self, steps: int, upstream: int) -> bool:
        """Whether the table has every norm that `steps` steps after `upstream` steps of the cell before need."""
        row = upstream if self.by_upstream else 0
        return steps in self.steps and row < len(self.norms) and len(self._row(upstream)) >= (steps if self.by_step else 1)

    def _row(self, upstream: int) -> nn.ModuleList:
        return cast(nn.ModuleList, self.norms[upstream if self.by_upstream else 0])

    def forward(self, x: Tensor, steps: int, upstream: int = 0) -> Tensor:
        """Eq. 4: h_{t+1} = f(h_t, b_{t+1}), `steps` times. x: [B, C, H, W]; the same shape but for the pooling."""
        row = self._row(upstream)
        for t in range(steps):
            x = self.body(x, row[t if self.by_step else 0])
            if self.pool is not None and t + 1 == (steps + 1) // 2:
                x = self.pool(x)
        return x

    def fixed(self, steps: int, upstream: int) -> "RecurrentCell":
        """A cell for this one call only: the same body, not copied, and the norms of that path alone."""
        cell = _shallow_copy(self)
        cell.steps, cell.by_upstream = (steps,), False
        cell.norms = nn.ModuleList([nn.ModuleList(list(self._row(upstream))[: steps if self.by_step else 1])])
        return cell


class Transition(RecurrentCell):
    """A non-recurrent block (T in Eq. 10): applied once, with a row of norms for each step count of the cell upstream."""

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


class StandardCell(nn.Module):
    """The graph of an unrolled cell with kernels of its own for every step: a part of the standard network S."""

    recurrent = True

    def __init__(self, bodies: Iterable[nn.Module], norms: Iterable[nn.Module], pool: nn.Module | None = None) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.norms = nn.ModuleList(norms)
        self.pool = pool
        self.steps = (len(self.bodies),)

    def holds(self, steps: int, upstream: int) -> bool:
        """Whether this is its one step count."""
        return steps in self.steps

    def forward(self, x: Tensor, steps: int, upstream: int = 0) -> Tensor:
        """As `RecurrentCell.forward`; there is one step count, and nothing depends on the cell upstream."""
        for t, body in enumerate(self.bodies):
            x = body(x, self.norms[t if len(self.norms) > 1 else 0])
            if self.pool is not None and t + 1 == (len(self.bodies) + 1) // 2:
                x = self.pool(x)
        return x


class RecurrentNet(nn.Sequential):
    """Alg. 1: a chain of modules, each recurrent one unrolled for the number of steps asked for.

    `model(x)` takes the largest supported steps, `model(x, steps=n)` a supported n, `model(x, steps=(n1, n2, ...))` one
    number a recurrent cell. It takes only its `settings`, those that it was trained at: a mixture whose batch norms no training
    drew destroys the output, although the table holds them.

    Attributes:
        steps: the step counts that every cell supports, ascending.
        settings: what a call may ask for, the steps of each cell; the unified ones unless `offer` names others.
        architecture: {"name", "config"} for `create_model`, of a network that it made.
        metadata: what the file says of weights that were loaded: `preprocessing`, `results`, `training`.
        channels: of the images that it takes.
        noise_level: whether a call takes `sigma`, the noise level.
    """

    channels = 3
    noise_level = False

    steps: tuple[int, ...]
    settings: tuple[tuple[int, ...], ...]
    architecture: dict[str, Any]
    metadata: dict[str, Any]

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._find_steps()

    def _find_steps(self) -> None:
        cells = self.recurrent_cells()
        if not cells:
            raise InputError("a RecurrentNet has one RecurrentCell or more; for a chain without, take nn.Sequential")
        common = set.intersection(*(set(cell.steps) for cell in cells))
        self.steps = tuple(sorted(common))
        self.settings = tuple((n,) * len(cells) for n in self.steps) or (tuple(cell.steps[-1] for cell in cells),)

    def offer(self, settings: Iterable[Sequence[int]]) -> None:
        """Makes these the settings that a call may ask for, e.g. after a training that drew them.

        Raises:
            InputError: there is none, or one that the BN tables do not hold.
        """
        wanted = tuple(_whole(setting) for setting in settings)
        missing = [setting for setting in wanted if not self._holds(setting)]
        if missing or not wanted:
            raise InputError(
                f"settings {missing} cannot be offered: the batch norms for them do not exist; valid: "
                f"{', '.join(map(str, self.possible_settings()))}"
            )
        self.settings = wanted

    def recurrent_cells(self) -> list[RecurrentCell | StandardCell]:
        """The recurrent cells in the order in which they run."""
        return [m for m in self if isinstance(m, RecurrentCell | StandardCell) and m.recurrent]

    def per_cell(self, steps: Steps = None) -> tuple[int, ...]:
        """One number of steps a recurrent cell, or `InputError` that names the supported ones."""
        cells = self.recurrent_cells()
        if steps is None:
            return (self.steps[-1],) * len(cells) if self.steps else tuple(cell.steps[-1] for cell in cells)
        own = _whole(steps) if isinstance(steps, Iterable) else _whole(steps) * len(cells)
        if own not in self.settings:
            kept = "; the network was not trained at it, and its batch norms would destroy the output" if self._holds(own) else ""
            raise InputError(f"steps={steps!r} is not supported: valid: {self._describe_steps()}{kept}")
        return own

    def _walk(self, own: tuple[int, ...]) -> list[tuple[nn.Module, int, int]]:
        """Each module in order, with its steps (0 for a plain one) and the steps of the recurrent cell upstream."""
        walk: list[tuple[nn.Module, int, int]] = []
        upstream, place = 0, 0
        for module in self:
            if not isinstance(module, RecurrentCell | StandardCell):
                walk.append((module, 0, upstream))
            elif not module.recurrent:
                walk.append((module, 1, upstream))
            else:
                walk.append((module, own[place], upstream))
                upstream, place = own[place], place + 1
        return walk

    def _holds(self, own: tuple[int, ...]) -> bool:
        if len(own) != len(self.recurrent_cells()):
            return False
        cells = [(cell, n, upstream) for cell, n, upstream in self._walk(own) if isinstance(cell, RecurrentCell | StandardCell)]
        return all(cell.holds(n, upstream) for cell, n, upstream in cells)

    def possible_settings(self) -> Iterator[tuple[int, ...]]:
        """Every choice of one number a cell for which there are batch norms, trained or not."""
        return filter(self._holds, itertools.product(*(cell.steps for cell in self.recurrent_cells())))

    def _describe_steps(self) -> str:
        mixed = [setting for setting in self.settings if len(set(setting)) > 1]
        unified = ", ".join(str(setting[0]) for setting in self.settings if setting not in mixed)
        some = ", ".join(map(str, mixed[:8])) + (", ..." if len(mixed) > 8 else "")
        return " or per cell ".join(part for part in (unified, some) if part)

    def forward(self, x: Tensor, steps: Steps = None) -> Tensor:  # type: ignore[override]
        """x: [B, C, H, W]. Raises `InputError`, which names the supported steps, for any others."""
        for module, n, upstream in self._walk(self.per_cell(steps)):
            x = module(x, n, upstream) if n else module(x)
        return x

    def _replace(self, change: Callable[[nn.Module, int, int], nn.Module], own: tuple[int, ...]) -> Self:
        """A shallow copy with each cell replaced by `change(cell, steps, upstream)`; nothing else is copied."""
        net = _shallow_copy(self)
        for name, (module, n, upstream) in zip(self._modules, self._walk(own), strict=True):
            if n:
                net._modules[name] = change(module, n, upstream)
        net._find_steps()
        return net


M = TypeVar("M", bound=nn.Module)


def _shallow_copy(module: M) -> M:
    """The same children, parameters and buffers, in dictionaries of its own: hooks on one do not run on the other."""
    other = copy.copy(module)
    other.__dict__.update({key: value.copy() for key, value in vars(module).items() if isinstance(value, dict)})
    return other


def _whole(steps: Any) -> tuple[int, ...]:
    """Whole numbers of any integer type, numpy's too; () if there is anything else."""
    try:
        numbers = tuple(steps) if isinstance(steps, Iterable) else (steps,)
        return () if any(isinstance(n, bool) for n in numbers) else tuple(operator.index(n) for n in numbers)
    except TypeError:
        return ()


def supported_steps(steps: Iterable[int] | int) -> tuple[int, ...]:
    """The step counts, ascending, or `InputError`: at least one, each a positive whole number."""
    values = tuple(sorted(set(_whole(steps))))
    if not values or values[0] < 1:
        raise InputError(f"steps={steps!r} is not valid: give one or more whole numbers from 1, e.g. 4 or (2, 3, 4)")
    return values


def unroll(model: Net, steps: Steps = None) -> Net:
    """The ordinary network for one step count: `net(x)` equals `model(x, steps=steps)`.

    It holds only the norms on that path. Kernels and norms are those of `model`, not copies: train or move one and the other
    follows; `copy.deepcopy` separates them.

    Raises:
        InputError: the model does not support these steps.
    """
    return model._replace(
        lambda cell, n, upstream: cell.fixed(n, upstream) if isinstance(cell, RecurrentCell) else cell,
        model.per_cell(steps),
    )


def untie(model: Net) -> Net:
    """The standard network S of an unrolled one: the same function and graph, a copy of the kernels for every step.

    Raises:
        InputError: the model supports more than one step count; `unroll` it first.
    """
    if any(len(cell.steps) > 1 for cell in model.recurrent_cells()):
        raise InputError("untie takes a network of one step count: untie(unroll(model, steps))")

    def separate(cell: nn.Module, steps: int, upstream: int) -> nn.Module:
        if not isinstance(cell, RecurrentCell) or not cell.recurrent:
            return cell
        groups = list(cast(nn.ModuleList, cell.fixed(steps, upstream).norms[0]))
        return StandardCell((copy.deepcopy(cell.body) for _ in range(steps)), groups, cell.pool)

    return copy.deepcopy(model._replace(separate, model.per_cell()))


def evaluating(model: Net) -> Net:
    """The model in evaluation mode: itself, or a copy if it is training, whose mode stays as it is."""
    return copy.deepcopy(model).eval() if model.training else model


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
