"""Parameters and multiply-accumulates (MACs) of a network at a setting."""

import copy
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from rcnet.calling import plain, ready, refused
from rcnet.models.judge import without_judge
from rcnet.network import RecurrentNet, unroll
from rcnet.setting import Steps


def parameters(model: torch.nn.Module) -> int:
    """The number of trainable parameters.

    Example:
        >>> import rcnet
        >>> parameters(rcnet.create_model("r3", steps=3))
        112961
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def macs(model: RecurrentNet, steps: Steps, size: tuple[int, int], batch: int = 1) -> int:
    """MACs of convolutions and linear layers in one call, as `torch.utils.flop_counter` counts them (a MAC is two FLOPs); those
    of a denoiser's judge are not among them.

    Args:
        steps: a supported step count, or one number per cell.
        size: height and width of the input in pixels.

    Raises:
        InputError: unsupported steps, or an image size at which the network fails.

    Example:
        >>> import rcnet
        >>> macs(rcnet.create_model("r3", steps=(1, 2)), 1, (32, 32))
        114425856
    """
    size = model.about.called_with(size)
    net = plain(without_judge(unroll(model, steps))).to("meta")
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # no MACs, but most of the time of a call on the meta device
            module.forward = lambda x: x  # type: ignore[method-assign, assignment]
    call = ready(net)
    try:
        return counted(lambda: call(torch.empty(batch, model.about.channels, *size, device="meta")))
    except (RuntimeError, ValueError) as error:
        raise refused(model, size, error) from error


def judge_macs(model: RecurrentNet, size: tuple[int, int]) -> int:
    """MACs of a denoiser's judge for one picture of that height and width in pixels; 0 of a network without one."""
    if model.judge is None:
        return 0
    judge = copy.deepcopy(model.judge).to("meta")
    return counted(lambda: judge(torch.empty(1, model.about.channels, *size, device="meta")))


def counted(call: Callable[[], object]) -> int:
    """MACs of everything that `call()` runs, counted as in `macs`."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops()) // 2
