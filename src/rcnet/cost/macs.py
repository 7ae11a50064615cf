"""Parameters and multiply-accumulates (MACs) of a network at a step count."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from rcnet.cell import RecurrentNet, Steps, unroll
from rcnet.models.files import preprocessing


def parameters(model: torch.nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def macs(model: RecurrentNet, steps: Steps, size: tuple[int, int], batch: int = 1) -> int:
    """MACs of convolutions and linear layers in one call, as `torch.utils.flop_counter` counts them (a MAC is two FLOPs).

    Args:
        steps: a supported step count, or one number a cell.
        size: height and width of the input in pixels.
    """
    net = copy.deepcopy(unroll(model, steps)).to("meta").eval()
    channels = preprocessing(model)["channels"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(batch, channels, *size, device="meta"))
    return int(counter.get_total_flops()) // 2
