"""R2 and R4, the paper's classifiers (Eq. 8 and 10), and their standard networks S2 and S4."""

from collections.abc import Iterable

from torch import nn

from rcnet.about import About
from rcnet.cell import NormMode, RecurrentCell, Transition, supported_steps
from rcnet.models.layers import Normalize, PreActBody, conv3x3, init_weights
from rcnet.models.registry import register
from rcnet.network import RecurrentNet, untie

# Mean and standard deviation of the CIFAR-10 training pixels in [0, 1]; weights carry their own as buffers.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def _batch_norms(*channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(c) for c in channels]


@register(task="classify", steps=(1, 2, 3, 4))
def r2(
    steps: int | Iterable[int] = 4,
    norm_mode: NormMode | None = None,
    num_classes: int = 10,
    width: float = 1.0,
    unified: bool = True,
    pooled_rows: bool = True,
) -> RecurrentNet:
    """R2 (Eq. 8): stem 3x3 to 64, cell 64, InvPool, cell 256, global average pooling, linear.

    Each cell is a pre-activation residual block; 2x2 average pooling follows its step ceil(n/2).

    Args:
        steps: the supported steps: one number, or several for a cost-adjustable network.
        norm_mode: none, shared, independent or double; default: independent for one step count, double for several.
        num_classes: the outputs, [B, num_classes].
        width: multiplies the channels 64 and 256.
        unified: all cells take the same number of steps; otherwise the BN tables hold every combination.
        pooled_rows: in mode double, each step count has separate batch norms, as it decides where the pooling is.
    """
    steps = supported_steps(steps)
    mode = norm_mode or ("double" if len(steps) > 1 else "independent")
    channels = round(64 * width)

    def cell(channels: int, upstream: tuple[int, ...] = ()) -> RecurrentCell:
        return RecurrentCell(
            PreActBody(channels),
            lambda: _batch_norms(channels, channels),
            steps,
            norm_mode=mode,
            upstream=upstream,
            unified=unified,
            pool=nn.AvgPool2d(2),
            pooled_rows=pooled_rows,
        )

    net = RecurrentNet(
        normalize=Normalize(MEAN, STD),
        stem=conv3x3(3, channels),
        cell1=cell(channels),
        invpool=nn.PixelUnshuffle(2),
        cell2=cell(4 * channels, upstream=steps),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(4 * channels, num_classes),
    )
    net.about = About("classify", multiple=4)
    init_weights(net)
    return net


@register(task="classify", steps=(1, 2, 3, 4), adjustable=False)
def s2(steps: int = 4, norm_mode: NormMode = "independent", num_classes: int = 10, width: float = 1.0) -> RecurrentNet:
    """S2: the graph of R2 unrolled for `steps`, kernels not shared; `width` multiplies the channels 64 and 256."""
    net = untie(r2(steps, norm_mode, num_classes, width))
    init_weights(net)
    return net


@register(task="classify", steps=(1, 2, 3))
def r4(
    steps: int | Iterable[int] = (1, 2, 3),
    norm_mode: NormMode | None = None,
    num_classes: int = 100,
    width: float = 1.0,
    unified: bool = True,
) -> RecurrentNet:
    """R4 (Eq. 10): a pre-activation ResNet of four stages (64, 128, 256, 512), each a transition and a recurrent cell.

    Args: as for `r2`; the defaults are those of the paper for CIFAR-100.
    """
    steps = supported_steps(steps)
    mode = norm_mode or ("double" if len(steps) > 1 else "independent")
    widths = [round(channels * width) for channels in (64, 128, 256, 512)]
    modules: dict[str, nn.Module] = {"normalize": Normalize(MEAN, STD), "stem": conv3x3(3, widths[0])}
    before, upstream = widths[0], ()  # type: int, tuple[int, ...]
    for stage, channels in enumerate(widths, start=1):
        modules[f"transition{stage}"] = Transition(
            PreActBody(before, channels, stride=1 if stage == 1 else 2),
            lambda before=before, channels=channels: _batch_norms(before, channels),  # type: ignore[misc]
            norm_mode=mode,
            upstream=upstream,
        )
        modules[f"cell{stage}"] = RecurrentCell(
            PreActBody(channels),
            lambda channels=channels: _batch_norms(channels, channels),  # type: ignore[misc]
            steps,
            norm_mode=mode,
            upstream=upstream,
            unified=unified,
        )
        before, upstream = channels, steps
    net = RecurrentNet(**modules, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=nn.Linear(before, num_classes))
    net.about = About("classify")
    init_weights(net)
    return net


@register(task="classify", steps=(1, 2, 3), adjustable=False)
def s4(steps: int = 3, norm_mode: NormMode = "independent", num_classes: int = 100, width: float = 1.0) -> RecurrentNet:
    """S4: pre-activation ResNet-18, -26 and -34 for 1, 2 and 3 steps: the graph of R4, kernels not shared."""
    net = untie(r4(steps, norm_mode, num_classes, width))
    init_weights(net)
    return net
