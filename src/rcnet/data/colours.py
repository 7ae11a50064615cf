"""Colour augmentation: photographs of one camera in daylight contain few colours."""

import math

import numpy as np
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def gray_of(pictures: Tensor) -> Tensor:
    """The luma [B, 1, H, W] of RGB pictures [B, 3, H, W]."""
    return (pictures * torch.tensor(LUMA, device=pictures.device).view(3, 1, 1)).sum(1, keepdim=True)


def saturate(pictures: Tensor, factor: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] whose distance to their own gray is multiplied by `factor`, [B, 1, 1, 1] or a number."""
    gray = gray_of(pictures)
    return (gray + (pictures - gray) * factor).clamp(0, 1)


def vary_colours(clean: Tensor, rng: np.random.Generator, part: float = 1.0, night: float = 0.1) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1], a fraction `part` of them with changed colours.

    Channels are permuted; saturation is multiplied by 0 to 3; each channel gets a gain of 0.6 to 1.3 and all a gamma of 0.6 to
    1.8; `night` of those is exposed 2 to 20 times less. Gray pictures [B, 1, H, W] take the gamma and the exposure.
    """
    count, channels = clean.shape[:2]

    def drawn(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape, 1, 1))).to(clean)

    varied = clean
    if channels == 3:
        order = torch.from_numpy(np.stack([rng.permutation(3) for _ in range(count)])).to(clean.device)
        varied = torch.gather(varied, 1, order[:, :, None, None].expand_as(varied))
        varied = saturate(varied, drawn(0, 3, 1))
        varied = (varied * drawn(0.6, 1.3, 3)).clamp(0, 1)
    gamma = torch.exp(drawn(math.log(0.6), math.log(1.8), 1))
    dark = torch.where(drawn(0, 1, 1) < night, torch.exp(drawn(math.log(0.05), math.log(0.5), 1)), 1.0)
    varied = varied.clamp(min=1e-4) ** gamma * dark
    return torch.where(drawn(0, 1, 1) < part, varied, clean)
