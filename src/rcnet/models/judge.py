"""A judge in front of a denoiser: a small network that estimates the white and the coarse noise of a picture at each brightness.

A denoiser that takes the noise level needs to be told it; the judge does so if the user does not. It sees the whole picture and
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
SLOPE = 0.1  # of its units below 0, so that none dies: of plain ReLUs all did in two trainings of three
GAIN = 64.0  # of detail before asinh: noise of sigma 1 (of 255) is where that turns from linear to logarithmic
SHARE = 0.05  # weight of pixels of any brightness at each knot: a picture without dark areas still has a level for them
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
        lean: multiplies the levels of coarse noise. Simulated cameras teach too little of it, and too much costs less than too
            little: of r3_fast.photo's judge, twice as much gains 0.15 dB on the development pairs.
    """

    lean: Tensor

    def __init__(self, in_chans: int = 3, width: int = 24, lean: float = 1.0) -> None:
        super().__init__()
        self.config = {"in_chans": in_chans, "width": width, "lean": lean}
        self.register_buffer("lean", torch.tensor([[1.0], [lean]]), persistent=False)

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
        """The levels that it says, of what `logarithms` gives."""
        return (levels_of(logarithms) * self.lean).clamp(max=255.0)

    def logarithms(self, x: Tensor) -> Tensor:
        """log(level + 1), [B, 2, KNOTS]; below 0 where there is less than none."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, max(MULTIPLE - width, 0), 0, max(MULTIPLE - height, 0)), mode="replicate")
        height, width = (side // MULTIPLE * MULTIPLE for side in x.shape[-2:])
        return self.of_multiples(x[..., :height, :width])

    def of_multiples(self, x: Tensor) -> Tensor:
        """As `logarithms`, of pictures whose sides are multiples of `MULTIPLE`."""
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
    """Levels in [0, 255] of log(level + 1) of any size."""
    return logarithms.clamp(0.0, 8 * math.log(2)).exp() - 1


def hats(brightness: Tensor) -> Tensor:
    """How near values [B, 1, ...] in [0, 1] are to each knot, [B, KNOTS, 1, ...], summing to 1: linear interpolation."""
    knots = torch.linspace(0, 1, KNOTS, device=brightness.device, dtype=brightness.dtype)
    shape = (1, KNOTS, *(1,) * (brightness.ndim - 1))
    return (1 - (KNOTS - 1) * (brightness[:, None] - knots.view(shape)).abs()).clamp(min=0)


def level_map(levels: Tensor, x: Tensor) -> Tensor:
    """The levels at each pixel, [B, 2, H, W], of a judge's [B, 2, KNOTS] for pictures [B, C, H, W] in [0, 1]."""
    gray = x.clamp(0, 1).mean(1, keepdim=True)
    gray = F.avg_pool2d(F.pad(gray, (SMOOTH // 2,) * 4, mode="replicate"), SMOOTH, stride=1)
    return torch.einsum("bkj,bjhw->bkhw", levels, hats(gray)[:, :, 0])


def attach_judge(model: nn.Module, judge: Judge | None) -> None:
    """Makes it the judge of a network that takes both levels, which then needs not be told: `model(x)`.

    It is no module of the network: it is not trained with it, and kept apart in its file.
    """
    model.__dict__["judge"] = judge


def without_judge(model: M) -> M:
    """A shallow copy that has no judge: a call of it is of the network alone."""
    other = copy.copy(model)
    other.__dict__["judge"] = None
    return other


def is_untold(model: Any) -> bool:
    """Whether a network takes both levels and has no judge that says them: each call then has to."""
    return bool(model.about.levels == 2 and model.judge is None)


def check_told(model: Any, sigma: object) -> None:
    """`InputError` where nobody says how much noise there is to a network that takes both levels."""
    if sigma is None and is_untold(model):
        raise InputError("this network has no judge of noise: say how much there is, sigma=..., or train one, rcnet judge")
