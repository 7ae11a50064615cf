"""What a denoiser is told of the noise: by a person, or by its judge, at each pixel."""

from collections.abc import Callable

import numpy as np

from rcnet.about import SMOOTH, About
from rcnet.errors import InputError

LOOK = 1024  # pixels a side, the most that a judge sees of a picture: its time is bounded, and levels hardly change beyond
Level = float | np.ndarray | None


def level_map(levels: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The levels at each pixel, float32 [B, 2, H, W], of a judge's [B, 2, KNOTS] for pictures [B, C, H, W] in [0, 1].

    As `models.judge.level_map`: the level at a brightness, which is the mean over channels and `SMOOTH` pixels a side.
    """
    gray = np.pad(x.clip(0, 1).mean(1), ((0, 0), *[(SMOOTH // 2,) * 2] * 2), mode="edge")
    for axis in (1, 2):
        length = gray.shape[axis] - SMOOTH + 1
        gray = np.mean([gray.take(range(k, k + length), axis) for k in range(SMOOTH)], 0)
    knots = np.linspace(0, 1, levels.shape[2])
    maps = [[np.interp(picture, knots, level) for level in given] for picture, given in zip(gray, levels, strict=True)]
    return np.array(maps, np.float32)


def look(part: Callable[[slice, slice], np.ndarray], height: int, width: int) -> np.ndarray:
    """What a judge sees of a picture, [1, C, h, w]: all of it up to a megapixel, else 16 parts, evenly spread, side by side.

    Args:
        part: those rows and columns of the picture, [1, C, h, w].
    """
    if height * width <= LOOK**2:
        return part(slice(0, height), slice(0, width))
    sides = min(LOOK, height // 8 * 8) // 4, min(LOOK, width // 8 * 8) // 4
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
