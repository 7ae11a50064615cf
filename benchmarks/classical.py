"""Denoisers that need no training, and what the benchmarks of denoisers share.

Denoisers take float [H, W] or RGB [H, W, 3] in [0, 1] and give the same. Noise levels are in levels of 255, as is OpenCV's `h`.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

SHORT = 0.25  # seconds: a shorter call is made twice and timed then, for threads of the runtime before it may still spin
# From weakest to strongest, for each at its best: NLM's h in levels of 255, total variation's weight, and the sigma that wavelets
# and BM3D are told, as a multiple of the root mean square of the noise. Noise that is not white wants more than there is of it.
NLM_STRENGTHS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 35, 50)
TV_WEIGHTS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
WAVELET_MULTIPLES = (0.5, 0.75, 1, 1.25, 1.5, 2, 3)
BM3D_MULTIPLES = (1, 1.5, 2.5)  # it takes seconds to a minute per picture

Array = np.ndarray
Item = TypeVar("Item")
Output = TypeVar("Output")


def bm3d(x: Array, sigma: float) -> Array:
    """BM3D; CBM3D for colour, but for gray that is stored as colour, of which the package makes NaN."""
    import bm3d as package

    if x.ndim == 3 and (x == x[:, :, :1]).all():
        return np.repeat(package.bm3d(x[:, :, 0], sigma / 255)[:, :, None], 3, 2)
    return (package.bm3d if x.ndim == 2 else package.bm3d_rgb)(x, sigma / 255)


def opencv_nlm(x: Array, h: float) -> Array:
    """OpenCV's fast non-local means, 8-bit, with its usual windows of 7 and 21; `h` for lightness and colour alike."""
    import cv2

    pixels = np.rint(x.clip(0, 1) * 255).astype(np.uint8)
    if x.ndim == 2:
        return cv2.fastNlMeansDenoising(pixels, None, h) / 255
    return cv2.fastNlMeansDenoisingColored(pixels[:, :, ::-1], None, h, h)[:, :, ::-1] / 255  # it takes BGR


def skimage_nlm(x: Array, sigma: float) -> Array:
    """scikit-image's non-local means, with the strength that its documents give for a known sigma."""
    from skimage.restoration import denoise_nl_means

    s = sigma / 255
    return denoise_nl_means(x, patch_size=5, patch_distance=6, h=0.8 * s, sigma=s, channel_axis=_channels(x))


def total_variation(x: Array, weight: float) -> Array:
    """Chambolle's, by scikit-image."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(x, weight=weight, channel_axis=_channels(x))


def wavelet(x: Array, sigma: float) -> Array:
    """BayesShrink, by scikit-image; colour as lightness and colour differences."""
    from skimage.restoration import denoise_wavelet

    axis, s = _channels(x), sigma / 255
    return denoise_wavelet(
        x, sigma=s, method="BayesShrink", mode="soft", rescale_sigma=True, channel_axis=axis, convert2ycbcr=axis is not None
    )


def estimated_sigma(x: Array) -> float:
    """The noise level as scikit-image estimates it, mean over channels."""
    from skimage.restoration import estimate_sigma

    return 255 * float(estimate_sigma(x, channel_axis=_channels(x), average_sigmas=True))


def automatic_h(x: Array) -> float:
    """NLM's h as scikit-image's documents give it, for the noise that is estimated; OpenCV estimates none."""
    return 0.8 * estimated_sigma(x)


def automatic_weight(x: Array) -> float:
    """Total variation's weight of the least self-supervised loss, by scikit-image (Batson & Royer 2019, "Noise2Self")."""
    from skimage.restoration import calibrate_denoiser, denoise_tv_chambolle

    parameters = {"weight": TV_WEIGHTS, "channel_axis": [_channels(x)]}
    return calibrate_denoiser(x, denoise_tv_chambolle, parameters, approximate_loss=True).keywords["denoiser_kwargs"]["weight"]


def _channels(x: Array) -> int | None:
    return None if x.ndim == 2 else -1


def on_tensors(call: Callable[[Array], Array]) -> Callable[[Tensor], Tensor]:
    """A denoiser of arrays for float [1, C, H, W], C 1 or 3."""

    def of_tensor(x: Tensor) -> Tensor:
        y = np.asarray(call(x[0].permute(1, 2, 0).squeeze(2).numpy()), np.float32)
        return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(y).transpose(2, 0, 1)))[None]

    return of_tensor


def timed(call: Callable[[], Output], twice: bool) -> tuple[Output, float]:
    """What the call gives and its seconds; made twice, those of the second."""
    if twice:
        call()
    started = time.perf_counter()
    output = call()
    return output, time.perf_counter() - started


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, or all if there are fewer, evenly spread."""
    return [items[k] for k in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]
