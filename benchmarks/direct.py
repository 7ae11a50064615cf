"""r3_fast whose output is the picture itself, not the change that is added to its input, for `benchmarks.variants photo`."""

from collections.abc import Iterable

import torch
from torch import Tensor

from rcnet.models.denoise import Denoiser, Sigma, filled, level_planes, r3_fast
from rcnet.models.registry import register
from rcnet.setting import Steps


class Direct(Denoiser):
    """A chain whose output is the denoised picture."""

    def forward(self, x: Tensor, steps: Steps = None, sigma: Sigma = None) -> Tensor:  # type: ignore[override]
        seen = filled(torch.cat([x, level_planes(x, sigma, self.about.levels)], 1), self.about.sub)
        return super(Denoiser, self).forward(seen, steps)[..., : x.shape[-2], : x.shape[-1]]


@register(task="denoise", steps=(1, 2, 3))
def r3_fast_direct(
    steps: int | Iterable[int] = (1, 2, 3),
    in_chans: int = 1,
    width: int = 48,
    convs: int = 2,
    noise_level: bool = True,
    coarse_level: bool = True,
) -> Denoiser:
    """r3_fast, without the sum of input and output."""
    net = r3_fast(steps, in_chans=in_chans, width=width, convs=convs, noise_level=noise_level, coarse_level=coarse_level)
    assert isinstance(net, Denoiser)
    net.__class__ = Direct
    return net
