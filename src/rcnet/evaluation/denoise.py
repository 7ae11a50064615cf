"""PSNR and SSIM by the BSD68 protocol: per image against the uint8 original, then the mean over images."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rcnet.calling import device_of, ready
from rcnet.data.images import to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.errors import InputError
from rcnet.models.denoise import filling
from rcnet.models.judge import check_level
from rcnet.network import RecurrentNet
from rcnet.setting import Steps


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


Pairs = Iterable[tuple[Tensor, Tensor]]  # noisy and clean, float [1, C, H, W] in [0, 1]


def protocol_pairs(images: Sequence[np.ndarray], sigma: float, as_8bit: bool = False, own_noise: bool = False) -> Pairs:
    """Noisy and clean images, float [1, C, H, W] in [0, 1], of images uint8 [H, W, C].

    Args:
        as_8bit: clip and round the noisy images, as in 8-bit files.
        own_noise: the seed of an image's noise is its index; the protocol draws all noise from seed 0.
    """
    for seed, image in enumerate(images):
        yield protocol_noise(image, sigma, as_8bit, seed * own_noise), to_tensor(image)


def denoising_scores(
    network: Callable[[Tensor], Tensor],
    images: Sequence[np.ndarray],
    sigma: float,
    *,
    as_8bit: bool = False,
    device: torch.device | str = "cpu",
    each: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Mean PSNR in dB and mean SSIM over images (uint8 [H, W, C]) of a function that denoises float [1, C, H, W].

    Args:
        as_8bit: clip and round the noisy images first, as in 8-bit files.
        each: called after each image, for a progress bar.

    Example:
        >>> import numpy as np
        >>> image = np.full((16, 16, 1), 128, np.uint8)
        >>> psnr_in_db, _ = denoising_scores(lambda noisy: noisy, [image], sigma=25)
        >>> round(psnr_in_db)
        20
    """
    return pair_scores(network, protocol_pairs(images, sigma, as_8bit), device, each)


@torch.inference_mode()
def pair_scores(
    network: Callable[[Tensor], Tensor],
    pairs: Pairs,
    device: torch.device | str = "cpu",
    each: Callable[[], object] = lambda: None,
    keep: Callable[[list[float]], object] = lambda psnrs: None,
) -> tuple[float, float]:
    """As `denoising_scores`, for pairs of noisy and clean images. `each` is called after each pair, `keep` with all PSNRs."""
    scores = []
    for noisy, clean in pairs:
        reference = clean.to(device)
        denoised = to_uint8_levels(network(noisy.to(device, memory_format=torch.channels_last)))
        scores.append((psnr(denoised, reference), ssim(denoised, reference)))
        each()
    keep([db for db, _ in scores])
    mean = np.mean(scores, axis=0)
    return float(mean[0]), float(mean[1])


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
    """One row per setting: `steps`, `psnr` in dB and `ssim`, means over images uint8 [H, W, C].

    A network that takes the noise level is given it as the level of white noise, unless `blind`: then its judge estimates it, if
    it has one.

    Args:
        as_8bit, own_noise: see `protocol_pairs`.
        each: called after each image at each setting, for a progress bar.
        keep: called with the steps of each row and the PSNR of each image.

    Raises:
        InputError: steps that the model does not support, an image smaller than 11x11 pixels, or `blind` for a network that
            takes both levels and has no judge.

    Example:
        >>> import numpy as np, rcnet
        >>> image = np.full((16, 16, 1), 128, np.uint8)
        >>> rows = denoising_results(rcnet.load("r3_fast.bsd-gray-25"), [image], 25, steps=[1, 3])
        >>> [row["steps"] for row in rows]
        [1, 3]
    """
    check_sizes(images)
    level = sigma if model.about.takes_level and not blind else None
    return _rows(model, steps, level, precision, lambda: protocol_pairs(images, sigma, as_8bit, own_noise), each, keep)


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

    Example:
        >>> import numpy as np, rcnet
        >>> clean, noisy = np.full((16, 16, 1), 128, np.uint8), np.full((16, 16, 1), 153, np.uint8)
        >>> pair_results(rcnet.load("r3_fast.bsd-gray-25"), [(noisy, clean)], steps=[2])[0]["psnr"]
        20.172
    """
    check_sizes([clean for _, clean in pairs])
    for noisy, clean in pairs:
        if noisy.shape != clean.shape:
            sizes = f"{noisy.shape[1]}x{noisy.shape[0]} and {clean.shape[1]}x{clean.shape[0]} pixels"
            raise InputError(f"the images of a pair differ in size: {sizes}")

    def tensors() -> Pairs:
        return ((to_tensor(noisy), to_tensor(clean)) for noisy, clean in pairs)

    before = _row(0, pair_scores(lambda x: x, tensors()))
    return [before, *_rows(model, steps, sigma, precision, tensors, each)]


def _rows(
    model: RecurrentNet,
    steps: Sequence[Steps],
    sigma: float | None,
    precision: str,
    pairs: Callable[[], Pairs],
    each: Callable[[], object],
    keep: Callable[[Any, list[float]], object] = lambda steps, psnrs: None,
) -> list[dict[str, Any]]:
    """One row per setting with the scores of the network on `pairs()`."""
    check_level(model, sigma)
    kwargs = {} if sigma is None else {"sigma": sigma}
    rows = []
    for n in map(model.per_cell, steps):
        call = partial(filling(ready(model, n, precision), model.about.multiple), **kwargs)
        rows.append(_row(n.to_json(), pair_scores(call, pairs(), device_of(model), each, partial(keep, n.to_json()))))
    return rows


def _row(steps: Any, scores: tuple[float, float]) -> dict[str, Any]:
    return {"steps": steps, "psnr": round(scores[0], 4), "ssim": round(scores[1], 5)}
