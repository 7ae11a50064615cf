"""R4 and S4 with early exits: the deeply-supervised networks (Lee et al. 2015) that the paper's Fig. 7 compares R4 with."""

from collections.abc import Callable, Iterable, Sequence
from typing import Self

from torch import Tensor, nn

from rcnet.about import About
from rcnet.cell import Cell, supported_steps
from rcnet.errors import InputError
from rcnet.models.classify import r4, s4
from rcnet.models.layers import init_weights
from rcnet.models.registry import register
from rcnet.network import RecurrentNet
from rcnet.setting import Setting, Steps

CELLS = ("cell2", "cell3", "cell4")  # where the exits are


class Exit(nn.Module):
    """Global average pooling and a linear classifier, [B, C, H, W] to [B, num_classes]; `number`: which exit it is, from 1."""

    def __init__(self, channels: int, num_classes: int, number: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)
        self.number = number

    @property
    def out_features(self) -> int:
        return self.linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


class EarlyExitNet(RecurrentNet):
    """A chain of cells with exits between them: `steps` is the exit at which a call stops, and nothing after it runs.

    Every cell that runs takes its most steps.
    """

    def find_steps(self) -> None:
        self.steps = tuple(module.number for module in self if isinstance(module, Exit))
        self.settings = tuple(Setting.of(n, len(self.recurrent_cells())) for n in self.steps)

    def holds(self, steps: int | Sequence[int]) -> bool:
        return Setting.of(steps, len(self.recurrent_cells())) in self.settings

    def walk(self, setting: Setting) -> list[tuple[nn.Module, int, int]]:
        """As of any network; what is asked for is an exit, and no cell's steps."""
        return super().walk(Setting(cell.steps[-1] for cell in self.recurrent_cells()))

    def exits(self, x: Tensor) -> dict[int, Tensor]:
        """What each exit gives, from one pass: number -> [B, num_classes]. x: [B, 3, H, W]."""
        outputs = {}
        for module, n, upstream in self.walk(Setting()):
            if isinstance(module, Exit):
                outputs[module.number] = module(x)
            else:
                x = module(x, n, upstream) if isinstance(module, Cell) else module(x)
        return outputs

    def forward(self, x: Tensor, steps: Steps = None) -> Tensor:  # type: ignore[override]
        """x: [B, 3, H, W] to [B, num_classes]. Raises `InputError`, which names the exits, for any other."""
        own = self.per_cell(steps)
        for module, n, upstream in self.walk(own):
            if not isinstance(module, Exit):
                x = module(x, n, upstream) if isinstance(module, Cell) else module(x)
            elif module.number == own[0]:
                x = module(x)
                break
        return x

    def replace(self, change: Callable[[Cell, int, int], Cell], setting: Setting) -> Self:
        """As of any network, and without what the exit asked for does not use."""
        net = super().replace(change, setting)
        passed = False
        for name, module in self._modules.items():
            stops = isinstance(module, Exit) and module.number == setting[0]
            if passed or (isinstance(module, Exit) and not stops):
                del net._modules[name]
            passed = passed or stops
        net.find_steps()
        return net


def _with_exits(chain: RecurrentNet, steps: int | Iterable[int], num_classes: int, width: float) -> EarlyExitNet:
    """The chain of four stages, cut after its last exit."""
    exits = supported_steps(steps)
    if exits[-1] > len(CELLS):
        raise InputError(f"steps={steps!r} is not valid: the exits are 1, 2 and 3, after the cells C2, C3 and C4")
    modules: dict[str, nn.Module] = {}
    for name, module in chain.named_children():
        modules[name] = module
        number = CELLS.index(name) + 1 if name in CELLS else 0
        if number in exits:
            last = number == exits[-1]
            modules["classifier" if last else f"exit{number}"] = Exit(round(64 * 2**number * width), num_classes, number)
            if last:
                break
    net = EarlyExitNet(**modules)
    net.about = About("classify")
    init_weights(net)
    return net


@register(task="classify", steps=(1, 2, 3))
def s4_exits(steps: int | Iterable[int] = (1, 2, 3), num_classes: int = 100, width: float = 1.0) -> EarlyExitNet:
    """S4^3 with exits after its cells C2, C3 and C4 (Sec. 5.3); train it on all of them, with objective = "aggregated".

    Args:
        steps: the exits that there are, of 1, 2 and 3; the chain ends with the last.
        num_classes: the outputs, [B, num_classes].
        width: multiplies the channels.
    """
    return _with_exits(s4(3, width=width), steps, num_classes, width)


@register(task="classify", steps=(1, 2, 3))
def r4_exits(steps: int | Iterable[int] = (1, 2, 3), num_classes: int = 100, width: float = 1.0) -> EarlyExitNet:
    """R4^3, of fixed steps, with exits after its cells C2, C3 and C4; its arguments are those of `s4_exits`."""
    return _with_exits(r4(3, width=width), steps, num_classes, width)
