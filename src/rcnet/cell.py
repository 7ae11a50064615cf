"""Recurrent convolution: one cell's kernels applied for several steps, with batch norms of their own for every step.

Zhang & Jung, "Recurrent Convolution for Compact and Cost-Adjustable Neural Networks". A body holds the shared kernels and
is called as `body(x, norms)`: its batch norms are arguments, never hidden state, so one model can be called by many threads
at different step counts. `RecurrentCell` keeps the table of those norms, `RecurrentNet` chains cells (Alg. 1), `unroll`
gives the ordinary network of one step count and `untie` its standard network, whose kernels are not shared.
"""

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Self, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from rcnet.about import About
from rcnet.errors import InputError, unknown
from rcnet.setting import Setting, listed, whole_numbers
from rcnet.setting import Steps as Steps

NormMode = Literal["none", "shared", "independent", "double"]
NORM_MODES: tuple[NormMode, ...] = ("none", "shared", "independent", "double")
Body = Callable[[Tensor, Any], Tensor]
Net = TypeVar("Net", bound="RecurrentNet")


class Cell(nn.Module):
    """What a `RecurrentNet` unrolls: called as `cell(x, steps, upstream)`, `upstream` being the steps of the cell before.

    Attributes:
        steps: the numbers of steps that it supports, ascending.
        recurrent: whether it takes steps of its own; otherwise it is applied once (T in Eq. 10).
    """

    recurrent = True
    steps: tuple[int, ...]

    def holds(self, steps: int, upstream: int) -> bool:
        """Whether it has every norm that `steps` steps after `upstream` steps of the cell before need."""
        return steps in self.steps

    def fixed(self, steps: int, upstream: int) -> "Cell":
        """A cell for this one call only: the same kernels, not copied, and the norms of that path alone."""
        return self

    def untied(self) -> "Cell":
        """A fixed cell with kernels of its own for every step."""
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

    The table is `norms[row][step][i]`: row = steps taken by the recurrent cell upstream (0 where there is none or the mode
    does not look upstream), step = own step from 0, i = which norm of the body. Rows that no supported step count reaches are
    empty, and row t holds only the columns that can be reached: the lower triangle of Eq. 6 when all cells take the same
    number of steps. With `pooled_rows` a row is for one number of own steps, too: row 34 is that of 4 own steps after 3.

    Args:
        body: a module called as `body(x, norms)`; input and output have the same shape.
        norm: returns the norms of one step, newly made, e.g. `lambda: [nn.BatchNorm2d(64)]`.
        steps: the supported numbers of steps.
        norm_mode: `none`; `shared`, one group of norms for all steps; `independent`, a group a step (Sec. 3.1); `double`,
            a group a step and a step count of the cell upstream (Sec. 4.1).
        upstream: the numbers of steps that the recurrent cell upstream can take; empty if there is none.
        unified: all cells take the same number of steps in a call (Sec. 4.2); otherwise each row holds every column.
        pool: applied once, after step ceil(n/2) of n (Sec. 5).
        pooled_rows: norms of their own for each own step count, which decides where the pooling is: no norm sees two sizes of
            image. Of mode double, with a pool and several step counts; otherwise it changes nothing.

    Raises:
        InputError: an unknown norm mode, no or non-positive steps, or a `norm` that gives no list of new modules; when called,
            a body that changes the shape or asks for more norms than there are.
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
        self.by_own = self.by_upstream and pooled_rows and pool is not None and len(self.steps) > 1
        before = sorted(set(upstream)) if self.by_upstream else []

        def columns(row: int) -> int:
            return min(row, self.steps[-1]) if unified and row else self.steps[-1]

        if self.by_own:
            sizes = {self._row(n, t): n for t in before or [0] for n in self.steps if not (unified and t) or n == t}
        else:
            sizes = {row: columns(row) if self.by_step else 1 for row in before or [0]}
        self.norms = nn.ModuleList(
            nn.ModuleList(_group(norm, norm_mode) for _ in range(sizes.get(row, 0))) for row in range(max(sizes) + 1)
        )
        made = [id(module) for group in itertools.chain(*self.norms) for module in group]
        if len(set(made)) < len(made):
            raise InputError("norm gives the same module again: each step has norms of its own, made when norm is called")

    def _row(self, steps: int, upstream: int) -> int:
        """The row of the table for that many steps after that many."""
        row = upstream if self.by_upstream else 0
        return row * 10 ** len(str(self.steps[-1])) + steps if self.by_own else row

    def upstream_of(self, row: int) -> int:
        """The steps of the cell upstream that a row of the table is for."""
        return row // 10 ** len(str(self.steps[-1])) if self.by_own else row

    def _groups(self, steps: int, upstream: int) -> nn.ModuleList:
        return cast(nn.ModuleList, self.norms[self._row(steps, upstream)])

    def holds(self, steps: int, upstream: int) -> bool:
        if steps == 0:  # the identity, where nothing is pooled
            return self.pool is None
        if steps not in self.steps or self._row(steps, upstream) >= len(self.norms):
            return False
        return len(self._groups(steps, upstream)) >= (steps if self.by_step else 1)

    def forward(self, x: Tensor, steps: int, upstream: int = 0) -> Tensor:
        """x: [B, C, H, W]; the same shape but for the pooling."""
        row = self._groups(steps, upstream)
        norms = [row[t if self.by_step else 0] for t in range(steps)]
        if isinstance(x, fx.Proxy) or torch.compiler.is_compiling():
            return _unrolled(x, [self.body] * steps, norms, self.pool)
        return _unrolled(x, [self._checked] * steps, norms, self.pool)

    def _checked(self, x: Tensor, norms: nn.ModuleList) -> Tensor:
        """The body, or `InputError` if it does not fit."""
        try:
            y = self.body(x, norms)
        except IndexError as error:
            if "is out of range" not in str(error):
                raise
            raise InputError(f"{type(self.body).__name__} asks for more norms than the {len(norms)} that norm gives") from error
        if self.recurrent and y.shape != x.shape:
            raise InputError(
                f"{type(self.body).__name__} makes {list(y.shape)} of {list(x.shape)}: the body of a cell keeps the shape; "
                "a Transition may change it"
            )
        return y

    def fixed(self, steps: int, upstream: int) -> Cell:
        cell = _shallow_copy(self)
        cell.steps, cell.by_upstream, cell.by_own = (steps,), False, False
        cell.norms = nn.ModuleList([nn.ModuleList(list(self._groups(steps, upstream))[: steps if self.by_step else 1])])
        return cell

    def untied(self) -> Cell:
        return StandardCell((copy.deepcopy(self.body) for _ in range(self.steps[0])), self._groups(self.steps[0], 0), self.pool)


def _group(norm: Callable[[], Iterable[nn.Module]], norm_mode: NormMode) -> nn.ModuleList:
    """The norms of one step, or `InputError` if `norm` does not give a list of modules."""
    given: Any = norm()
    made: list[Any] = list(given) if isinstance(given, Iterable) else [None]
    if isinstance(given, nn.Sequential) or not all(isinstance(module, nn.Module) for module in made):
        raise InputError(
            f"norm gives {type(given).__name__}: it gives a list of the norms of one step, e.g. [nn.BatchNorm2d(64)]"
        )
    return nn.ModuleList(nn.Identity() if norm_mode == "none" else module for module in made)


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

    def untied(self) -> Cell:
        return self


class StandardCell(Cell):
    """The graph of an unrolled cell with kernels of its own for every step: a part of the standard network S."""

    def __init__(self, bodies: Iterable[nn.Module], norms: Iterable[nn.Module], pool: nn.Module | None = None) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.norms = nn.ModuleList(norms)
        self.pool = pool
        self.steps = (len(self.bodies),)

    def forward(self, x: Tensor, steps: int, upstream: int = 0) -> Tensor:
        """As `RecurrentCell.forward`; there is one step count, and nothing depends on the cell upstream."""
        norms = itertools.islice(itertools.cycle(self.norms), len(self.bodies))
        return _unrolled(x, list(self.bodies), list(norms), self.pool)


class RecurrentNet(nn.Sequential):
    """Alg. 1: a chain of modules, each cell unrolled for the number of steps asked for.

    `model(x)` takes the largest supported steps, `model(x, steps=n)` a supported n, `model(x, steps=(n1, n2, ...))` one
    number a recurrent cell. It takes only its `settings`, those that it was trained at: a mixture whose batch norms no training
    drew destroys the output, although the table holds them. A cell that keeps the shape may take 0 steps: it is left out, and the
    norms of the next are those for the last cell that ran.

    Attributes:
        steps: the step counts that all cells can take at once, ascending.
        settings: what a call may ask for, the cheapest first; the unified ones unless `offer` names others.
        about: what it takes and gives.
        architecture: {"name", "config"} for `create_model`, of a network that it made, else None.
        metadata: what the file says of weights that were loaded: `preprocessing`, `results`, `training`.
        judge: of a denoiser, called as `judge(x)`, tells the noise levels where a call does not; see `models.judge`.

    Raises:
        InputError: no cell, a cell inside another module, or one whose `upstream` is not the cell that runs before it.
    """

    about = About()
    architecture: Any = None
    metadata: Mapping[str, Any] = MappingProxyType({})
    judge: Any = None
    steps: tuple[int, ...]
    settings: tuple[Setting, ...]

    def __init__(self, *modules: Any, **named: nn.Module) -> None:
        super().__init__(*modules)
        for name, module in named.items():
            self.add_module(name, module)
        self.find_steps()

    def find_steps(self) -> None:
        """Sets `steps` and `settings` from the cells."""
        cells = self.recurrent_cells()
        if nested := [name for name, module in self.named_modules() if "." in name and isinstance(module, Cell)]:
            raise InputError(f"{nested[0]} is a cell inside another module: the cells of a RecurrentNet are its own children")
        if not cells:
            raise InputError("a RecurrentNet has one RecurrentCell or more; for a chain without, take nn.Sequential")
        self.steps = tuple(sorted(set.intersection(*(set(cell.steps) for cell in cells))))
        most = Setting(cell.steps[-1] for cell in cells)
        self.settings = tuple(Setting.of(n, len(cells)) for n in self.steps) or (most,)
        for setting in self.settings:
            if lacking := self._lacking(setting):
                name, n, upstream, steps = lacking
                has = f"upstream={steps}, the steps of the cell before" if steps else "no upstream, as no cell runs before it"
                raise InputError(f"{name} has no norms for {n} steps after {upstream}: it takes {has}")

    def _lacking(self, setting: Setting) -> tuple[str, int, int, tuple[int, ...]] | None:
        """The first cell without norms for its steps: its name, its steps, and those taken and supported upstream."""
        before: tuple[int, ...] = ()
        for name, (module, n, upstream) in zip(self._modules, self.walk(setting), strict=True):
            if isinstance(module, Cell) and not module.holds(n, upstream):
                return name, n, upstream, before
            before = module.steps if isinstance(module, Cell) and module.recurrent else before
        return None

    def holds(self, steps: int | Sequence[int]) -> bool:
        """Whether every cell has the norms for its number of these steps."""
        cells = len(self.recurrent_cells())
        setting = Setting.of(steps, cells)
        return len(setting) == cells and self._lacking(setting) is None

    def offer(self, settings: Iterable[int | Sequence[int]]) -> None:
        """Makes these the settings that a call may ask for, e.g. after a training that drew them.

        Raises:
            InputError: there is none, or one that the BN tables do not hold.
        """
        cells = len(self.recurrent_cells())
        wanted = sorted((Setting.of(setting, cells) for setting in settings), key=lambda setting: setting.order)
        missing = [setting for setting in wanted if not self.holds(setting)]
        if missing or not wanted:
            raise InputError(
                f"settings {missing} cannot be offered: the batch norms for them do not exist; valid: "
                f"{listed(self.possible_settings())}"
            )
        self.settings = tuple(wanted)
        self.steps = tuple(sorted({setting[0] for setting in wanted if setting.uniform}))

    @property
    def choices(self) -> tuple[int | tuple[int, ...], ...]:
        """`settings` as numbers that all cells take, or tuples of one number per cell: as in JSON."""
        return tuple(setting.to_json() for setting in self.settings)

    def recurrent_cells(self) -> list[Cell]:
        """The recurrent cells in the order in which they run."""
        return [m for m in self if isinstance(m, Cell) and m.recurrent]

    def per_cell(self, steps: Steps = None) -> Setting:
        """The setting that is asked for, the largest by None, or `InputError` that names the supported ones."""
        if isinstance(steps, fx.Proxy):
            if len(self.settings) > 1:
                raise InputError("a trace follows one step count: trace unroll(model, steps)")
            steps = None
        if steps is None:
            return self.settings[-1]
        setting = Setting.of(steps, len(self.recurrent_cells()))
        if setting not in self.settings:
            given = steps if isinstance(steps, Setting) else repr(steps)
            kept = (
                "; the network was not trained at it, and its batch norms would destroy the output" if self.holds(setting) else ""
            )
            raise InputError(f"steps={given} is not supported: valid: {listed(self.settings)}{kept}")
        return setting

    def walk(self, setting: Setting) -> list[tuple[nn.Module, int, int]]:
        """Each module in order, with its steps (0 for a plain one) and those of the recurrent cell upstream that takes any."""
        walk: list[tuple[nn.Module, int, int]] = []
        upstream, cell = 0, 0
        for module in self:
            recurrent = isinstance(module, Cell) and module.recurrent
            takes = setting[cell] if recurrent else int(isinstance(module, Cell))
            walk.append((module, takes, upstream))
            if recurrent:
                upstream, cell = takes or upstream, cell + 1
        return walk

    def possible_settings(self) -> Iterator[Setting]:
        """Every setting for which there are batch norms, trained or not; 0 leaves a cell out."""
        every = map(Setting, itertools.product(*((0, *cell.steps) for cell in self.recurrent_cells())))
        return (setting for setting in every if any(setting) and self.holds(setting))

    def forward(self, x: Tensor, steps: Steps = None) -> Tensor:  # type: ignore[override]
        """x: [B, C, H, W]. Raises `InputError`, which names the supported steps, for any others."""
        for module, n, upstream in self.walk(self.per_cell(steps)):
            x = module(x, n, upstream) if isinstance(module, Cell) else module(x)
        return x

    def replace(self, change: Callable[[Cell, int, int], Cell], setting: Setting) -> Self:
        """A shallow copy with each cell replaced by `change(cell, steps, upstream)`; nothing else is copied."""
        net = _shallow_copy(self)
        for name, (module, n, upstream) in zip(self._modules, self.walk(setting), strict=True):
            if isinstance(module, Cell):
                net._modules[name] = change(module, n, upstream)
        net.find_steps()
        return net

    def over(self, chain: nn.Module) -> Self:
        """A shallow copy that runs `chain` in the place of its own modules, with whatever its class does around them."""
        net = _shallow_copy(self)
        net._modules = {"chain": chain}
        return net

    def __getitem__(self, place: Any) -> Any:
        """A module by its number; a slice is a network of these modules, or `nn.Sequential` where none is a cell."""
        if not isinstance(place, slice):
            return super().__getitem__(place)
        part = OrderedDict(list(self._modules.items())[place])
        return (RecurrentNet if any(isinstance(module, Cell) for module in part.values()) else nn.Sequential)(part)


M = TypeVar("M", bound=nn.Module)


def _shallow_copy(module: M) -> M:
    """The same children, parameters and buffers, in dictionaries of its own: hooks on one do not run on the other."""
    other = copy.copy(module)
    other.__dict__.update({key: value.copy() for key, value in vars(module).items() if isinstance(value, dict)})
    return other


def supported_steps(steps: int | Iterable[int]) -> tuple[int, ...]:
    """The step counts, ascending, or `InputError`: at least one, each a positive whole number."""
    values = tuple(sorted(set(whole_numbers(steps))))
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
    return model.replace(lambda cell, n, upstream: cell.fixed(n, upstream), model.per_cell(steps))


def untie(model: Net) -> Net:
    """The standard network S of an unrolled one: the same function and graph, a copy of the kernels for every step.

    Raises:
        InputError: the model supports more than one step count; `unroll` it first.
    """
    if any(len(cell.steps) > 1 for cell in model.recurrent_cells()):
        raise InputError("untie takes a network of one step count: untie(unroll(model, steps))")
    return copy.deepcopy(model.replace(lambda cell, n, upstream: cell.fixed(n, upstream).untied(), model.per_cell()))


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


def norms_of(model: nn.Module) -> list[nn.Module]:
    """Every norm of the model, of any class, by its place: in the tables of cells; and batch norms anywhere."""
    tables = [cell.norms for cell in model.modules() if isinstance(cell, RecurrentCell | StandardCell)]
    held = [m for table in tables for m in table.modules() if not isinstance(m, nn.ModuleList | nn.Identity)]
    return list(dict.fromkeys([*held, *batch_norms(model)]))
