"""Networks of recurrent cells: `RecurrentNet` chains them (Alg. 1), `unroll` and `untie` give ordinary networks."""

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self, TypeVar

from torch import Tensor, fx, nn

from rcnet.about import About
from rcnet.cell import Cell, shallow_copy
from rcnet.errors import InputError
from rcnet.setting import Setting, listed
from rcnet.setting import Steps as Steps

Net = TypeVar("Net", bound="RecurrentNet")


class RecurrentNet(nn.Sequential):
    """Alg. 1: a chain of modules in which each cell is unrolled for the requested number of steps.

    `model(x)` takes the largest supported steps, `model(x, steps=n)` n steps in every cell, `model(x, steps=(n1, n2, ...))` one
    number per recurrent cell. Only the `settings` that the network was trained at are valid: the table also holds batch norms
    for other mixtures, but these were never trained and would destroy the output. A cell that preserves the shape may take 0
    steps: it is skipped, and the next cell uses the norms for the last cell that ran.

    Attributes:
        steps: the step counts that all cells can take at once, ascending.
        settings: the valid settings of a call, cheapest first; the unified ones unless `offer` sets others.
        about: the input and output of the network.
        architecture: {"name", "config"} for `create_model`, or None if it did not create the network.
        metadata: the metadata of the file that the weights were loaded from: `preprocessing`, `results`, `training`.
        judge: of a denoiser: `judge(x)` estimates the noise levels when a call does not give them; see `models.judge`.

    Raises:
        InputError: no cell, a cell inside another module, or a cell whose `upstream` does not match the cell before it.

    Example:
        >>> import rcnet, torch
        >>> net = rcnet.create_model("r3", steps=(1, 2, 3)).eval()
        >>> net.settings
        ((1, 1, 1), (2, 2, 2), (3, 3, 3))
        >>> net(torch.rand(1, 1, 16, 16), steps=2).shape
        torch.Size([1, 1, 16, 16])
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
            raise InputError(f"{nested[0]} is a cell inside another module; cells must be direct children of the RecurrentNet")
        if not cells:
            raise InputError("a RecurrentNet needs at least one RecurrentCell; use nn.Sequential for a chain without cells")
        self.steps = tuple(sorted(set.intersection(*(set(cell.steps) for cell in cells))))
        most = Setting(cell.steps[-1] for cell in cells)
        self.settings = tuple(Setting.of(n, len(cells)) for n in self.steps) or (most,)
        for setting in self.settings:
            if missing := self._missing_norms(setting):
                name, n, upstream, steps = missing
                fix = f"upstream={steps}, the steps of the cell before" if steps else "no upstream, as no cell runs before it"
                raise InputError(f"{name} has no norms for {n} steps after {upstream}: give it {fix}")

    def _missing_norms(self, setting: Setting) -> tuple[str, int, int, tuple[int, ...]] | None:
        """The first cell without norms for its steps: its name, its steps, the steps taken and the steps supported upstream."""
        before: tuple[int, ...] = ()
        for name, (module, n, upstream) in zip(self._modules, self.walk(setting), strict=True):
            if isinstance(module, Cell) and not module.holds(n, upstream):
                return name, n, upstream, before
            before = module.steps if isinstance(module, Cell) and module.recurrent else before
        return None

    def holds(self, steps: int | Sequence[int]) -> bool:
        """Whether every cell has norms for its steps."""
        cells = len(self.recurrent_cells())
        setting = Setting.of(steps, cells)
        return len(setting) == cells and self._missing_norms(setting) is None

    def offer(self, settings: Iterable[int | Sequence[int]]) -> None:
        """Sets the settings that calls may use, e.g. those that a training drew.

        Raises:
            InputError: no settings, or settings without batch norms.

        Example:
            >>> import rcnet
            >>> net = rcnet.create_model("r3", steps=(1, 2), unified=False)
            >>> net.offer([1, (2, 1, 1), 2])
            >>> net.choices
            (1, (2, 1, 1), 2)
        """
        cells = len(self.recurrent_cells())
        wanted = sorted((Setting.of(setting, cells) for setting in settings), key=lambda setting: setting.order)
        missing = [setting for setting in wanted if not self.holds(setting)]
        if missing or not wanted:
            raise InputError(f"settings {missing} have no batch norms in this network; valid: {listed(self.possible_settings())}")
        self.settings = tuple(wanted)
        self.steps = tuple(sorted({setting[0] for setting in wanted if setting.uniform}))

    @property
    def choices(self) -> tuple[int | tuple[int, ...], ...]:
        """`settings` as in JSON: a number if all cells take it, else a tuple of one number per cell.

        Example:
            >>> import rcnet
            >>> rcnet.create_model("r3", steps=(1, 2)).choices
            (1, 2)
        """
        return tuple(setting.to_json() for setting in self.settings)

    def recurrent_cells(self) -> list[Cell]:
        """The recurrent cells in the order in which they run.

        Example:
            >>> import rcnet
            >>> len(rcnet.create_model("r3").recurrent_cells())
            3
        """
        return [m for m in self if isinstance(m, Cell) and m.recurrent]

    def per_cell(self, steps: Steps = None) -> Setting:
        """The setting for `steps`, the largest if None. Raises `InputError` with the valid ones for any other.

        Example:
            >>> import rcnet
            >>> rcnet.create_model("r3", steps=(1, 2)).per_cell(2)
            (2, 2, 2)
        """
        if isinstance(steps, fx.Proxy):
            if len(self.settings) > 1:
                raise InputError("a trace holds one setting: trace unroll(model, steps)")
            steps = None
        if steps is None:
            return self.settings[-1]
        setting = Setting.of(steps, len(self.recurrent_cells()))
        if setting not in self.settings:
            given = steps if isinstance(steps, Setting) else repr(steps)
            kept = "; the network was not trained at it, so the output would be destroyed" if self.holds(setting) else ""
            raise InputError(f"steps={given} is not supported: valid: {listed(self.settings)}{kept}")
        return setting

    def walk(self, setting: Setting) -> list[tuple[nn.Module, int, int]]:
        """Each module in order, its steps (0 for a plain module), and those of the last recurrent cell before it that ran."""
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
        """Every setting for which there are batch norms, trained or not; 0 skips a cell."""
        every = map(Setting, itertools.product(*((0, *cell.steps) for cell in self.recurrent_cells())))
        return (setting for setting in every if any(setting) and self.holds(setting))

    def forward(self, x: Tensor, steps: Steps = None) -> Tensor:  # type: ignore[override]
        """x: [B, C, H, W]. Raises `InputError` with the valid steps for any others.

        Example:
            >>> import rcnet, torch
            >>> rcnet.create_model("r2", steps=(1, 2)).eval()(torch.rand(4, 3, 32, 32), steps=1).shape
            torch.Size([4, 10])
        """
        for module, n, upstream in self.walk(self.per_cell(steps)):
            x = module(x, n, upstream) if isinstance(module, Cell) else module(x)
        return x

    def replace(self, change: Callable[[Cell, int, int], Cell], setting: Setting) -> Self:
        """A shallow copy with each cell replaced by `change(cell, steps, upstream)`; nothing else is copied."""
        net = shallow_copy(self)
        for name, (module, n, upstream) in zip(self._modules, self.walk(setting), strict=True):
            if isinstance(module, Cell):
                net._modules[name] = change(module, n, upstream)
        net.find_steps()
        return net

    def over(self, chain: nn.Module) -> Self:
        """A shallow copy that runs `chain` instead of its modules, inside the `forward` of its class."""
        net = shallow_copy(self)
        net._modules = {"chain": chain}
        return net

    def __getitem__(self, index: Any) -> Any:
        """A module by its index; a slice is a network of these modules, or `nn.Sequential` if none is a cell."""
        if not isinstance(index, slice):
            return super().__getitem__(index)
        part = OrderedDict(list(self._modules.items())[index])
        return (RecurrentNet if any(isinstance(module, Cell) for module in part.values()) else nn.Sequential)(part)


def unroll(model: Net, steps: Steps = None) -> Net:
    """The ordinary network for one setting: `net(x)` equals `model(x, steps=steps)`.

    It holds only the norms on that path. Kernels and norms are shared with `model`, not copied: training or moving one also
    changes the other; `copy.deepcopy` separates them.

    Raises:
        InputError: the model does not support these steps.

    Example:
        >>> import rcnet, torch
        >>> net, x = rcnet.create_model("r3", steps=(1, 2)).eval(), torch.rand(1, 1, 16, 16)
        >>> torch.equal(rcnet.unroll(net, 2)(x), net(x, steps=2))
        True
    """
    return model.replace(lambda cell, n, upstream: cell.fixed(n, upstream), model.per_cell(steps))


def untie(model: Net) -> Net:
    """The standard network S of an unrolled one: the same function and graph, with a copy of the kernels for every step.

    Raises:
        InputError: the model supports more than one step count; `unroll` it first.

    Example:
        >>> import rcnet
        >>> one = rcnet.create_model("r3", steps=3)
        >>> [sum(p.numel() for p in net.parameters()) for net in (one, rcnet.untie(one))]
        [112961, 334145]
    """
    if any(len(cell.steps) > 1 for cell in model.recurrent_cells()):
        raise InputError("untie needs a network with one step count: untie(unroll(model, steps))")
    return copy.deepcopy(model.replace(lambda cell, n, upstream: cell.fixed(n, upstream).untied(), model.per_cell()))


def evaluating(model: Net) -> Net:
    """The model in evaluation mode: itself, or a copy if it is training, whose mode stays as it is."""
    return copy.deepcopy(model).eval() if model.training else model
