"""PSNR and SSIM by the BSD68 protocol: per image against the uint8 original, then the mean over images."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rcnet.calling import device_of, ready
from rcnet.cell import RecurrentNet
from rcnet.data.images import to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.errors import InputError
from rcnet.models.denoise import filling
from rcnet.models.judge import check_told
from rcnet.setting import Setting, Steps


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1] of the same shape; infinite if they are equal.

    Example:
        >>> import torch
        >>> round(psnr(torch.full((1, 1, 8, 8), 0.6), torch.full((1, 1, 8, 8), 0.5)), 3)
        20.0
    """
    error = torch.mean((image.double() - reference.double()) ** 2).item()
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(image: Tensor, reference: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of images [B, C, H, W] in [0, 1]: 11x11 Gaussian window of sigma 1.5.

    The mean over channels and over all positions at which the whole window fits.

    Example:
        >>> import torch
        >>> image = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
        >>> ssim(image, image)
        1.0
    """
    x, y = image.double(), reference.double()
    channels = x.shape[1]
    axis = torch.arange(11, dtype=torch.float64, device=x.device) - 5
    window = torch.exp(-(axis**2) / (2 * 1.5**2))
    rows = (window / window.sum()).view(1, 1, 11, 1).expand(channels, 1, 11, 1)

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, rows, groups=channels), rows.transpose(2, 3), groups=channels)

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return value.mean().item()


def check_sizes(images: Sequence[np.ndarray]) -> None:
    """Raises `InputError` if one of the images [H, W, C] is smaller than SSIM's window."""
    for image in images:
        if min(image.shape[:2]) < 11:
            height, width = image.shape[:2]
            raise InputError(f"an image of {width}x{height} pixels is too small to measure: SSIM needs at least 11x11")


def to_uint8_levels(x: Tensor) -> Tensor:
    """Clamped to [0, 1] and rounded to multiples of 1/255, as in an 8-bit file."""
    return (x.float().clamp(0, 1) * 255).round() / 255


@torch.inference_mode()
def denoising_scores(
    network: Callable[[Tensor], Tensor],
    images: Sequence[np.ndarray],
    sigma: float,
    *,
    as_8bit: bool = False,
    device: torch.device | str = "cpu",
    each: Callable[[], object] = lambda: None,
    own_noise: bool = False,
    keep: Callable[[list[float]], object] = lambda psnrs: None,
) -> tuple[float, float]:
    """Mean PSNR in dB and mean SSIM over images (uint8 [H, W, C]) of a function that denoises float [1, C, H, W].

    Args:
        as_8bit: clip and round the noisy images first, as in 8-bit files.
        each: called after each image, for a progress bar.
        own_noise: the noise of each image is drawn from a seed of its own, its number; the protocol draws all from seed 0.
        keep: is given the PSNR of each image.
    """
    seeds = range(len(images)) if own_noise else [0] * len(images)
    noisy = (protocol_noise(image, sigma, as_8bit, seed) for image, seed in zip(images, seeds, strict=True))
    return pair_scores(network, zip(noisy, map(to_tensor, images), strict=True), device, each, keep)


@torch.inference_mode()
def pair_scores(
    network: Callable[[Tensor], Tensor],
    pairs: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    each: Callable[[], object] = lambda: None,
    keep: Callable[[list[float]], object] = lambda psnrs: None,
) -> tuple[float, float]:
    """Mean PSNR in dB and mean SSIM over pairs of noisy and clean images, float [1, C, H, W], of a denoising function.

    `each` is called after each pair, `keep` with the PSNR of all.
    """
    scores = []
    for noisy, clean in pairs:
        reference = clean.to(device)
        denoised = to_uint8_levels(network(noisy.to(device, memory_format=torch.channels_last)))
        scores.append((psnr(denoised, reference), ssim(denoised, reference)))
        each()
    keep([db for db, _ in scores])
    mean = np.mean(scores, axis=0)
    return float(mean[0]), float(mean[1])


@torch.inference_mode()
def denoising_results(
    model: RecurrentNet,
    images: Sequence[np.ndarray],
    sigma: float,
    steps: Sequence[Steps],
    *,
    as_8bit: bool = False,
    blind: bool = False,
    precision: str = "fp32",
    each: Callable[[], object] = lambda: None,
    own_noise: bool = False,
    keep: Callable[[Any, list[float]], object] = lambda steps, psnrs: None,
) -> list[dict[str, Any]]:
    """One row per setting: `steps`, `psnr` in dB and `ssim`, as `denoising_scores` measures them.

    A network that takes the noise level is given it as the level of white noise, unless `blind`: then its judge estimates it, if
    it has one. `each` is called after each image at each setting, `keep` with the steps of each row and the PSNR of each image.

    Raises:
        InputError: steps that the model does not support, an image smaller than 11x11 pixels, or `blind` for a network that
            takes both levels and has no judge.
    """
    check_sizes(images)
    level = sigma if model.about.takes_level and not blind else None
    device = device_of(model)
    return _rows(
        model,
        steps,
        level,
        precision,
        lambda n, call: denoising_scores(
            call, images, sigma, as_8bit=as_8bit, device=device, each=each, own_noise=own_noise, keep=partial(keep, n.to_json())
        ),
    )


@torch.inference_mode()
def pair_results(
    model: RecurrentNet,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    steps: Sequence[Steps],
    *,
    sigma: float | None = None,
    precision: str = "fp32",
    each: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """As `denoising_results`, for pairs of a noisy and a clean image, uint8 [H, W, C]. The first row, 0 steps, is the noisy one.

    Args:
        sigma: the level of white noise for a network that takes one; None: unknown, or the estimate of its judge.

    Raises:
        InputError: unsupported steps, or a pair of different sizes or smaller than 11x11 pixels.
    """
    check_sizes([clean for _, clean in pairs])
    for noisy, clean in pairs:
        if noisy.shape != clean.shape:
            sizes = f"{noisy.shape[1]}x{noisy.shape[0]} and {clean.shape[1]}x{clean.shape[0]} pixels"
            raise InputError(f"the images of a pair differ in size: {sizes}")
    device = device_of(model)

    def scores(call: Callable[[Tensor], Tensor], each: Callable[[], object] = each) -> tuple[float, float]:
        return pair_scores(call, ((to_tensor(noisy), to_tensor(clean)) for noisy, clean in pairs), device, each)

    db, similarity = scores(lambda x: x, lambda: None)
    before = {"steps": 0, "psnr": round(db, 4), "ssim": round(similarity, 5)}
    return [before, *_rows(model, steps, sigma, precision, lambda n, call: scores(call))]


def _rows(
    model: RecurrentNet,
    steps: Sequence[Steps],
    sigma: float | None,
    precision: str,
    scores: Callable[[Setting, Callable[[Tensor], Tensor]], tuple[float, float]],
) -> list[dict[str, Any]]:
    """One row per setting with the `scores` of the network."""
    check_told(model, sigma)
    kwargs = {} if sigma is None else {"sigma": sigma}
    rows = []
    for n in map(model.per_cell, steps):
        db, similarity = scores(n, partial(filling(ready(model, n, precision), model.about.multiple), **kwargs))
        rows.append({"steps": n.to_json(), "psnr": round(db, 4), "ssim": round(similarity, 5)})
    return rows
