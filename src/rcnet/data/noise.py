"""Gaussian noise: of one sigma, of a range, and as in 8-bit files. The noise of cameras is in `camera.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rcnet.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Sigma = float | tuple[float, float]


def check_sigma(sigma: Sigma) -> Sigma:
    """Returns sigma, or raises `InputError` unless it is a number from 0 to 255 or a pair (low, high) of them."""
    values = sigma if isinstance(sigma, tuple) else (sigma,)
    if len(values) not in (1, 2) or not all(0 <= value <= 255 for value in values) or values[0] > values[-1]:
        raise InputError(f"sigma={sigma!r} is not valid: give a number from 0 to 255 (in levels of 255), or [low, high]")
    return sigma


def add_noise(
    clean: Tensor, sigma: Sigma | Tensor, generator: torch.Generator, as_8bit: bool = False, in_gray: bool = False
) -> Tensor:
    """Adds white Gaussian noise to clean images [B, C, H, W] in [0, 1].

    Args:
        generator: on the device of the images.
        sigma: standard deviation in levels of 255; a pair: drawn uniformly from that range per image; a tensor [B]: one value
            per image.
        as_8bit: clip the noisy image to [0, 1] and round it to 1/255, as in an 8-bit file.
        in_gray: all channels get the same noise, as in scans of gray pictures and from old cameras.

    Example:
        >>> import torch
        >>> noisy = add_noise(torch.full((2, 3, 64, 64), 0.5), 25, torch.Generator().manual_seed(0))
        >>> round(255 * noisy.std().item())
        25
    """
    import torch

    shape = (len(clean), 1, *clean.shape[2:]) if in_gray else clean.shape
    noise = torch.randn(shape, generator=generator, device=clean.device)
    level = draw_levels(sigma, len(clean), generator) if isinstance(sigma, tuple) else sigma
    noisy = clean + noise * (level.view(-1, 1, 1, 1) / 255 if isinstance(level, torch.Tensor) else level / 255)
    return (noisy.clamp(0, 1) * 255).round() / 255 if as_8bit else noisy


def draw_levels(sigma: Sigma, count: int, generator: torch.Generator) -> Tensor:
    """`count` standard deviations, [count] in levels of 255, on the generator's device: constant, or uniform in the range."""
    import torch

    low, high = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def estimate_sigma(image: np.ndarray) -> float:
    """Estimates the standard deviation of an image's noise, in levels of 255, assuming white Gaussian noise.

    The median of the absolute diagonal details of 2x2 pixels over 0.6745 (Donoho & Johnstone 1994), mean over channels. Fine
    texture is counted as noise, coarse noise hardly.

    Args:
        image: float [H, W, C] in [0, 1]; only the central 1024x1024 pixels are used.

    Example:
        >>> noisy = protocol_noise(np.full((256, 256, 1), 128, np.uint8), sigma=20)
        >>> round(estimate_sigma(noisy[0].permute(1, 2, 0).numpy()))
        20
    """
    top, left = (max(side - 1024, 0) // 2 for side in image.shape[:2])
    part = image[top : top + 1024, left : left + 1024]
    part = part[: part.shape[0] // 2 * 2, : part.shape[1] // 2 * 2]
    if not part.size:
        return 0.0
    detail = (part[::2, ::2] - part[1::2, ::2] - part[::2, 1::2] + part[1::2, 1::2]) / 2
    return float(255 * np.median(np.abs(detail), axis=(0, 1)).mean() / 0.6745)


def protocol_noise(image: np.ndarray, sigma: float, as_8bit: bool = False, seed: int = 0) -> Tensor:
    """As `protocol_pixels`, a tensor."""
    import torch

    return torch.from_numpy(protocol_pixels(image, sigma, as_8bit, seed))


def protocol_pixels(image: np.ndarray, sigma: float, as_8bit: bool = False, seed: int = 0) -> np.ndarray:
    """The noisy image of the BSD68 protocol: float32 [1, C, H, W] of uint8 [H, W, C].

    Noise is `np.random.RandomState(0).normal(0, sigma / 255, shape)` for every image, unless `seed` is another; neither clipped
    nor rounded unless `as_8bit`.
    """
    noisy = image / 255 + np.random.RandomState(seed).normal(0, sigma / 255, image.shape)
    if as_8bit:
        noisy = np.rint(np.clip(noisy, 0, 1) * 255) / 255
    return np.ascontiguousarray(noisy.transpose(2, 0, 1)[None], np.float32)
