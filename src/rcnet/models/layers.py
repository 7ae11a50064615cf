"""The parts that the families share: input normalization, cell bodies and initialization."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std for images in [0, 1]. x: [B, C, H, W]; mean and std: one number per channel, stored as buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def conv3x3(channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=bias)


class PreActBody(nn.Module):
    """Pre-activation residual block (He et al. 2016, "Identity mappings"): two 3x3 convolutions, two norms.

    With a change of width or a stride, the shortcut is a 1x1 convolution of the first activation.
    """

    def __init__(self, channels: int, out_channels: int | None = None, stride: int = 1) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.conv1 = conv3x3(channels, out_channels, stride)
        self.conv2 = conv3x3(out_channels, out_channels)
        changes = stride != 1 or out_channels != channels
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor, norms: Sequence[nn.Module]) -> Tensor:
        y = F.relu(norms[0](x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        return x + self.conv2(F.relu(norms[1](self.conv1(y))))


class ConvBody(nn.Module):
    """Convolution, norm and ReLU, `convs` times; with `residual`, x = relu(x + f(x)) around all of them."""

    def __init__(self, channels: int, convs: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(channels, channels) for _ in range(convs))
        self.residual = residual

    def forward(self, x: Tensor, norms: Sequence[nn.Module]) -> Tensor:
        y = x
        for i, conv in enumerate(self.convs):
            y = norms[i](conv(y if i == 0 else F.relu(y)))
        return F.relu(x + y if self.residual else y)


def init_weights(model: nn.Module) -> None:
    """Kaiming normal (fan-in) for every convolution and linear layer, zero for every bias and residual branch.

    A residual block then starts as the identity; otherwise, without final norms, activations would triple with every step.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, PreActBody):
            nn.init.zeros_(module.conv2.weight)
