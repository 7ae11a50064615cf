"""Noise levels as an exported network is told them. NumPy alone, for who deploys a file without PyTorch."""

import numpy as np

from rcnet.errors import InputError

LEVELS = "levels"  # the output of an exported judge
Level = float | np.ndarray | None


def sigma_input(shape: tuple[int, ...], sigma: Level, planes: int = 1) -> np.ndarray:
    """The input `sigma`, float32 [batch, planes, 1, 1] or [batch, planes, height, width], of images of that shape; -1 for None.

    Of two planes the first is the level of white noise and the second that of coarse noise, 0 unless given.

    Raises:
        InputError: a sigma that is no number, [batch], [height, width], or [batch, 1 or planes, height, width].
    """
    batch, _, *sides = shape
    if sigma is None:
        return np.full((batch, planes, 1, 1), -1, np.float32)
    level = np.asarray(sigma, np.float32)
    level = level.reshape(-1, 1, 1, 1) if level.ndim == 1 else level.reshape((1,) * (4 - level.ndim) + level.shape)
    if (
        level.ndim != 4
        or level.shape[0] not in (1, batch)
        or level.shape[1] not in (1, planes)
        or level.shape[2:] not in ((1, 1), tuple(sides))
    ):
        raise InputError(
            f"sigma of shape {list(np.shape(sigma))} does not fit images {list(shape)}: give one number, "
            f"one value per image [B], or a map [H, W] or [B, {planes}, H, W]"
        )
    level = np.pad(level, ((0, 0), (0, planes - level.shape[1]), (0, 0), (0, 0)))
    return np.repeat(level, batch // len(level), 0)


def level_map(levels: np.ndarray, images: np.ndarray, smoothing: int) -> np.ndarray:
    """The noise levels at each pixel, float32 [B, 2, H, W], that a judge's levels amount to: `rcnet.models.judge.level_map`.

    The brightness of a pixel is the mean of its channels, averaged over a square around it (edges repeat), and a level is
    interpolated between the brightnesses that it is given for.

    Args:
        levels: [B, 2, knots], at brightnesses from 0 to 1, evenly spaced.
        images: [B, C, H, W] in [0, 1].
        smoothing: pixels a side of the square, odd.
    """
    height, width = images.shape[-2:]
    around = smoothing // 2
    gray = np.pad(images.clip(0, 1).mean(1, dtype=np.float32), ((0, 0), (around, around), (around, around)), mode="edge")
    rows = np.add.reduce([gray[:, i : i + height] for i in range(smoothing)])
    place = np.add.reduce([rows[:, :, i : i + width] for i in range(smoothing)]) * ((levels.shape[2] - 1) / smoothing**2)
    near = [np.maximum(1 - np.abs(place - knot), 0)[:, None] for knot in range(levels.shape[2])]
    found = np.add.reduce([levels[:, :, knot, None, None] * part for knot, part in enumerate(near)])
    return np.asarray(found, np.float32)
