"""A picture as a denoiser is to see it, and the way back: white, curve, hidden colours, gray in colour. NumPy alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rcnet.data.imagefile import white_level
from rcnet.errors import InputError

BULK, TAIL = 95, 2.0  # percent of the values: white of a picture with a long tail is twice that value, if the top is twice white
BINS = 8  # of brightness, in which noise is compared
DUST = 1e-3  # the part of the pixels of a gray picture that may have another colour
SAMPLE = 1 << 22  # values that are looked at to choose a curve
BLOCK = 32  # side of the blocks, in pixels, in which a mosaic is looked for


class Curve(NamedTuple):
    """The values of a file to what the network sees: 0 to 0, white to 1, and what is above white to 1.

    Attributes:
        white: the value that becomes 1.
        offset: infinite for a straight line; else `sqrt(value + offset)`, which makes the noise of photon counts even
            (Anscombe 1948).
    """

    white: float
    offset: float = math.inf

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The values, of any type and shape, as float32 of at most 1."""
        x = np.minimum(values.astype(np.float32), np.float32(self.white))
        if math.isinf(self.offset):
            return x / np.float32(self.white)
        low, high = math.sqrt(self.offset), math.sqrt(self.white + self.offset)
        return ((np.sqrt(np.maximum(x + np.float32(self.offset), 0)) - low) / (high - low)).astype(np.float32)

    def decode(self, seen: np.ndarray) -> np.ndarray:
        """The values of what `encode` gave."""
        if math.isinf(self.offset):
            return seen * np.float32(self.white)
        low, high = math.sqrt(self.offset), math.sqrt(self.white + self.offset)
        return np.square(np.maximum(seen * (high - low) + low, 0)) - np.float32(self.offset)


def choose_curve(pixels: np.ndarray) -> Curve:
    """The curve for the pixels of a file, uint8, uint16 or float [..., C].

    8 bits, and values without a long tail, get a straight line to `white_level`. With a long tail (lights in linear HDR,
    stars, a scale bar) white is twice the value that 95 % do not exceed: the few above it are left alone. There, if noise
    grows with brightness as that of photon counts, the curve is a square root.
    """
    white = white_level(pixels)
    values = pixels[:: max(1, pixels.size // SAMPLE)] if pixels.dtype != np.uint8 else pixels[:0]
    bulk = 2 * float(np.percentile(values.astype(np.float32), BULK)) if values.size else 0.0
    top = float(pixels.max(initial=0))
    if not 0 < bulk * TAIL < top:
        return Curve(white)
    return Curve(bulk, _offset(pixels, bulk))


def _offset(pixels: np.ndarray, white: float) -> float:
    """Variance of the noise at 0 over its growth with brightness, from the details of 2x2 pixels; infinite if it does not grow."""
    height, width = (min(side // 2 * 2, 2048) for side in pixels.shape[-3:-1])
    x = pixels[..., :height, :width, :].astype(np.float32)
    a, b, c, d = x[..., ::2, ::2, :], x[..., ::2, 1::2, :], x[..., 1::2, ::2, :], x[..., 1::2, 1::2, :]
    mean, detail = (a + b + c + d).ravel() / 4, np.abs(a - b - c + d).ravel() / 2
    used = np.maximum(np.maximum(a, b), np.maximum(c, d)).ravel() < white
    mean, detail = mean[used], detail[used]
    if mean.size < 100 * BINS:
        return math.inf
    order = np.argsort(mean)
    levels = np.array([part.mean() for part in np.array_split(mean[order], BINS)])
    # The lowest quarter of the details is below 0.319 of the deviation of Gaussian noise, and holds the least texture.
    variances = np.array([np.percentile(part, 25) / 0.3186 for part in np.array_split(detail[order], BINS)]) ** 2
    if not variances.min() > 0:
        return math.inf
    weight = 1 / variances
    growth, start = np.polyfit(levels, variances, 1, w=weight)
    return float(max(start, 0) / growth) if growth > 0 else math.inf
