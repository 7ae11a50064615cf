"""r3_fast whose norms are scaled and shifted by the noise level (FiLM, Perez et al. 2018), for `benchmarks.variants photo`."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcnet.about import INPUTS, About
from rcnet.cell import RecurrentCell, supported_steps
from rcnet.models.denoise import Denoiser
from rcnet.models.layers import conv3x3, init_weights
from rcnet.models.registry import register

SUB = 2


class LevelNorm(nn.Module):
    """Batch norm, then a scale and a shift of each channel from the level. x: [B, C + 1, H, W], the level last."""

    def __init__(self, channels: int, hidden: int = 16) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.of_level = nn.Sequential(nn.Conv2d(1, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 2 * channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.of_level(x[:, -1:]).chunk(2, 1)
        return self.norm(x[:, :-1]) * (1 + scale) + shift


class LevelBody(nn.Module):
    """The residual body of r3_fast, the level carried along as a last channel."""

    def __init__(self, channels: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(channels, channels) for _ in range(convs))

    def forward(self, x: Tensor, norms: Sequence[nn.Module]) -> Tensor:
        features, level = x[:, :-1], x[:, -1:]
        y = features
        for i, conv in enumerate(self.convs):
            y = norms[i](torch.cat([conv(y if i == 0 else F.relu(y)), level], 1))
        return torch.cat([F.relu(features + y), level], 1)


class LevelStem(nn.Module):
    """Convolution and ReLU of sub-images, [B, 4 (C + 1), H, W] with the level last; the level goes on, too."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels * SUB**2, width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(self.conv(x)), x[:, -(SUB**2) :].mean(1, keepdim=True)], 1)


class LevelHead(nn.Module):
    """The convolution to the sub-images, which does not see the level."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(width, channels * SUB**2, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, :-1])


@register(task="denoise", steps=(1, 2, 3))
def r3_fast_level_norms(
    steps: int | Iterable[int] = (1, 2, 3), in_chans: int = 1, width: int = 48, convs: int = 2, noise_level: bool = True
) -> Denoiser:
    """r3_fast, whose level also makes scales and shifts for the norms of every step."""
    steps = supported_steps(steps)

    def cell(upstream: tuple[int, ...]) -> RecurrentCell:
        norms = lambda: [LevelNorm(width) for _ in range(convs)]  # noqa: E731
        return RecurrentCell(LevelBody(width, convs), norms, steps, norm_mode="double", upstream=upstream)

    about = About("denoise", in_chans, INPUTS[:2], sub=SUB, reach=(3 * SUB, SUB * convs))
    net = Denoiser(
        about,
        unshuffle=nn.PixelUnshuffle(SUB),
        stem=LevelStem(in_chans + 1, width),
        cell1=cell(()),
        cell2=cell(steps),
        cell3=cell(steps),
        head=LevelHead(width, in_chans),
        shuffle=nn.PixelShuffle(SUB),
    )
    init_weights(net)
    for module in net.modules():
        if isinstance(module, LevelNorm):
            nn.init.zeros_(module.of_level[-1].weight)  # starts as plain batch norm
    nn.init.zeros_(net.get_parameter("head.conv.weight"))
    return net
