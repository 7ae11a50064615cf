"""What a denoiser is told of the noise: by a person, or by its judge, at each pixel."""

from collections.abc import Callable

import numpy as np

from rcnet.about import SMOOTH, About
from rcnet.errors import InputError

LEVELS = "levels"  # the output of an exported judge
LOOK = 1024  # pixels a side, the most that a judge sees of a picture: its time is bounded, and levels hardly change beyond
Level = float | np.ndarray | None


def level_map(levels: np.ndarray, images: np.ndarray, smoothing: int = SMOOTH) -> np.ndarray:
    """The noise levels at each pixel, float32 [B, 2, H, W], that a judge's levels amount to, as `models.judge.level_map`.

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


def look(part: Callable[[slice, slice], np.ndarray], height: int, width: int) -> np.ndarray:
    """What a judge sees of a picture, [1, C, h, w]: all of it up to a megapixel, else 16 parts, evenly spread, side by side.

    Args:
        part: those rows and columns of the picture, [1, C, h, w].
    """
    if height * width <= LOOK**2:
        return part(slice(0, height), slice(0, width))
    sides = [max(min(LOOK, side // 8 * 8) // 4, 1) for side in (height, width)]
    down, across = (
        [slice(round(k * (whole - side) / 3), round(k * (whole - side) / 3) + side) for k in range(4)]
        for whole, side in zip((height, width), sides, strict=True)
    )
    return np.concatenate([np.concatenate([part(rows, columns) for columns in across], 3) for rows in down], 2)


def given_levels(sigma: Level, about: About, count: int, size: tuple[int, int]) -> np.ndarray | None:
    """The noise levels that a person gave, float32 [count, 1 or 2, 1 or H, 1 or W], or None.

    Args:
        sigma: one number, one value per image [count], or a map [H, W], [count, 1, H, W] or, of two levels, [count, 2, H, W].
        size: H and W.

    Raises:
        InputError: a sigma for a network that takes none, or of another shape.
    """
    if sigma is None:
        return None
    if not about.takes_level:
        raise InputError("these weights take no noise level: leave sigma out, or take weights that do, e.g. r3_fast.photo")
    given = np.asarray(sigma, np.float32)
    kinds = about.levels if given.ndim == 4 and given.shape[1] == about.levels else 1
    levels = given.reshape(-1, 1, 1, 1) if given.ndim < 2 else given.reshape(-1, kinds, *given.shape[-2:])
    if len(levels) not in (1, count) or levels.shape[2:] not in ((1, 1), size) or np.isnan(levels).any():
        raise InputError(
            f"sigma of shape {list(given.shape)} does not fit {count} images of {size[1]}x{size[0]} pixels: "
            "give one number, one value per image, or a map of their size"
        )
    return np.broadcast_to(levels, (count, *levels.shape[1:]))


def tell(judged: np.ndarray | None, given: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """What a network of two levels is told of a part of a picture: float32 [1, 2, H, W] or [1, 2, 1, 1].

    Args:
        judged: what the judge said of the whole picture, [1, 2, KNOTS]; None: nobody did, and noise is taken for white.
        given: what a person said of it, [1, 1 or 2, 1 or H, 1 or W]; one level is of the kind that the judge found more of.
        x: the part, [1, C, H, W].

    Raises:
        InputError: neither.
    """
    if given is None:
        if judged is None:
            raise InputError("this network has no judge of noise: say how much there is, sigma=..., or train one, rcnet judge")
        return level_map(judged, x)
    if given.shape[1] == 2:
        return given
    white, coarse = (1.0, 0.0) if judged is None else judged.mean((0, 2))
    none = np.zeros_like(given)
    return np.concatenate([none, given] if coarse > white else [given, none], 1)


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
