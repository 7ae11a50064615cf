"""A judge in front of a denoiser: a small network that estimates the white and the coarse noise of a picture at each brightness.

A denoiser that takes the noise level needs one; if the user gives none, the judge estimates it. It sees the whole picture and
returns a noise level function (Liu et al. 2006, "Noise estimation from a single image"): the level as a function of brightness,
on which sensors and tone curves make noise depend. It is trained through the frozen denoiser, on the denoised output
(`rcnet.training.judging`).
"""

import copy
import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcnet.about import SMOOTH
from rcnet.errors import InputError

KNOTS = 4  # brightnesses at which a level is estimated, evenly spaced from black to white
SLOPE = 0.1  # of its units below 0, so that none dies: with plain ReLUs all did in two of three trainings
GAIN = 64.0  # of detail before asinh: noise of sigma 1 (of 255) is where that turns from linear to logarithmic
SHARE = 0.05  # the least weight of a pixel at each knot, so that a picture without dark areas still gets a level for them
MULTIPLE = 8  # side in pixels of a position for which a level is estimated


M = TypeVar("M", bound=nn.Module)


class Judge(nn.Module):
    """Noise levels [B, 2, KNOTS], in levels of 255, of pictures [B, C, H, W] in [0, 1]: of white noise, and of coarse noise.

    It reads the details of 2x2 pixels and those around, on a nearly logarithmic scale, and the brightness. Features at a half, a
    quarter and an eighth of the resolution; at each position of the last, a level of both kinds and its weight. The result is the
    weighted mean over the picture.

    Args:
        in_chans: channels of the pictures, 1 or 3.
        width: channels of the features.
    """

    def __init__(self, in_chans: int = 3, width: int = 24) -> None:
        super().__init__()
        self.config = {"in_chans": in_chans, "width": width}

        def convs(channels: int, *dilations: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for dilation in dilations:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation, padding_mode="replicate"),
                    nn.LeakyReLU(SLOPE),
                ]
                channels = width
            return nn.Sequential(*layers)

        self.fine = convs(6 * in_chans, 1, 1)
        self.middle = convs(width, 1, 2)
        self.broad = convs(width, 1, 2)
        self.head = nn.Sequential(nn.Conv2d(3 * width, 48, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(48, 4, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] in [0, 1], of any size."""
        return self.levels(self.logarithms(x))

    def levels(self, logarithms: Tensor) -> Tensor:
        """The levels, [B, 2, KNOTS], of the output of `logarithms`."""
        return levels_of(logarithms).clamp(max=255.0)

    def logarithms(self, x: Tensor) -> Tensor:
        """log(level + 1), [B, 2, KNOTS]; values below 0 mean no noise."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, max(MULTIPLE - width, 0), 0, max(MULTIPLE - height, 0)), mode="replicate")
        height, width = (side // MULTIPLE * MULTIPLE for side in x.shape[-2:])
        return self.of_multiples(x[..., :height, :width])

    def of_multiples(self, x: Tensor) -> Tensor:
        """As `logarithms`, for pictures whose sides are multiples of `MULTIPLE`."""
        x = x.clamp(0, 1)
        low = F.avg_pool2d(x, 2)
        around = F.avg_pool2d(F.pad(low, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        details = [F.pixel_unshuffle(x, 2) - low.repeat_interleave(4, 1), low - around]
        fine = self.fine(torch.cat([*(torch.asinh(GAIN * detail) for detail in details), low], 1))
        middle = self.middle(F.avg_pool2d(fine, 2))
        broad = self.broad(F.avg_pool2d(middle, 2))
        levels, weights = self.head(torch.cat([F.avg_pool2d(fine, 4), F.avg_pool2d(middle, 2), broad], 1)).flatten(2).chunk(2, 1)
        weights = weights.softmax(2)[:, :, None]  # [B, 2, 1, places]
        near = hats(F.avg_pool2d(x.mean(1, keepdim=True), MULTIPLE).flatten(2))[:, None]  # [B, 1, KNOTS, places]
        counts = weights * (near[:, :, :, 0] + SHARE)
        return (counts * levels[:, :, None]).sum(3) / counts.sum(3)


def levels_of(logarithms: Tensor) -> Tensor:
    """Levels in [0, 255] from log(level + 1), of any shape."""
    return logarithms.clamp(0.0, 8 * math.log(2)).exp() - 1


def hats(brightness: Tensor) -> Tensor:
    """Weights [B, KNOTS, 1, ...] of the knots for brightness [B, 1, ...] in [0, 1]: linear interpolation, the sum is 1."""
    knots = torch.linspace(0, 1, KNOTS, device=brightness.device, dtype=brightness.dtype)
    shape = (1, KNOTS, *(1,) * (brightness.ndim - 1))
    return (1 - (KNOTS - 1) * (brightness[:, None] - knots.view(shape)).abs()).clamp(min=0)


def level_map(levels: Tensor, x: Tensor) -> Tensor:
    """The levels at each pixel, [B, 2, H, W], from a judge's levels [B, 2, KNOTS] for pictures [B, C, H, W] in [0, 1]."""
    gray = x.clamp(0, 1).mean(1, keepdim=True)
    gray = F.avg_pool2d(F.pad(gray, (SMOOTH // 2,) * 4, mode="replicate"), SMOOTH, stride=1)
    return torch.einsum("bkj,bjhw->bkhw", levels, hats(gray)[:, :, 0])


def attach_judge(model: nn.Module, judge: Judge | None) -> None:
    """Makes it the judge of a network that takes both levels, so that `model(x)` needs no sigma.

    It is not a submodule of the network: it is not trained with it, and its tensors are separate in the file.
    """
    model.__dict__["judge"] = judge


def without_judge(model: M) -> M:
    """A shallow copy without the judge."""
    other = copy.copy(model)
    other.__dict__["judge"] = None
    return other


def needs_level(model: Any) -> bool:
    """Whether every call needs a noise level: the network takes both levels and has no judge."""
    return bool(model.about.levels == 2 and model.judge is None)


def check_level(model: Any, sigma: object) -> None:
    """`InputError` if there is no `sigma` for a network that needs one."""
    if sigma is None and needs_level(model):
        raise InputError("this network has no judge of noise: give the noise level, sigma=..., or train a judge: rcnet judge")
