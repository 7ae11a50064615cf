"""R2 without norms but with biases: whether a network without norms lacks them, or only the shift that a norm also gives."""

from collections.abc import Iterable

import torch
from torch import nn

from rcnet.cell import RecurrentCell
from rcnet.models.classify import r2
from rcnet.models.registry import register
from rcnet.network import RecurrentNet


@register(task="classify", steps=(1, 2, 3, 4))
def r2_biased(steps: int | Iterable[int] = 4, num_classes: int = 10, width: float = 1.0) -> RecurrentNet:
    """R2 of norm mode none, whose cells' convolutions have biases, which start at zero; its arguments are those of `r2`."""
    net = r2(steps, "none", num_classes, width)
    for cell in net.recurrent_cells():
        assert isinstance(cell, RecurrentCell)
        for layer in cell.body.modules():
            if isinstance(layer, nn.Conv2d):
                layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return net
