"""The same picture in other colours, to test whether a network works only for the colours of photographs."""

from collections.abc import Callable

import numpy as np

from rcnet.data.images import GRAY_WEIGHTS

GAINS = np.array([1.4, 0.7, 0.4])  # of red, green and blue, as under a coloured lamp


def colourings(image: np.ndarray) -> dict[str, np.ndarray]:
    """The four `COLOURINGS` of RGB uint8 [H, W, 3], by name, uint8; the same at every call."""
    return {name: recoloured(image, name) for name in COLOURINGS}


def recoloured(image: np.ndarray, name: str) -> np.ndarray:
    """One of the `COLOURINGS` of RGB uint8 [H, W, 3], uint8."""
    return np.rint(COLOURINGS[name](image.astype(float)).clip(0, 255)).astype(np.uint8)


def _permuted(image: np.ndarray) -> np.ndarray:
    """Red becomes green, green blue, blue red."""
    return image[:, :, [2, 0, 1]]


def _saturated(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies the distance from gray by `factor`."""
    gray = (image @ GRAY_WEIGHTS)[:, :, None]
    return gray + factor * (image - gray)


COLOURINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "permuted": _permuted,
    "saturated": lambda image: _saturated(image, 3),
    "gains": lambda image: image * GAINS,
    "all": lambda image: _saturated(_permuted(image), 2.5) * GAINS[::-1],
}
