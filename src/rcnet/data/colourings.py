"""The same picture in other colours: what a network knows of colours from photographs in place of what it knows of pictures."""

import numpy as np

from rcnet.data.images import GRAY_WEIGHTS


def colourings(image: np.ndarray) -> dict[str, np.ndarray]:
    """Four versions of RGB uint8 [H, W, 3], by name; the same at every call.

    `permuted`: red, green and blue become green, blue and red. `saturated`: three times as far from gray. `gains`: red times 1.4,
    green times 0.7, blue times 0.4, as under a coloured lamp. `all`: permuted, 2.5 times as far from gray, the gains turned round.
    """
    permuted = image[:, :, [2, 0, 1]].astype(float)
    gains = np.array([1.4, 0.7, 0.4])
    versions = {
        "permuted": permuted,
        "saturated": _saturated(image, 3),
        "gains": image * gains,
        "all": _saturated(permuted, 2.5) * gains[::-1],
    }
    return {name: np.rint(version.clip(0, 255)).astype(np.uint8) for name, version in versions.items()}


def _saturated(image: np.ndarray, factor: float) -> np.ndarray:
    gray = (image @ GRAY_WEIGHTS)[:, :, None]
    return gray + factor * (image - gray)
