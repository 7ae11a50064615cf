"""Denoising pictures of any size and number of channels, over a session of whatever runtime."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rcnet.about import About
from rcnet.errors import InputError
from rcnet.runtime.levels import Level, given_levels, look, tell
from rcnet.runtime.picture import Curve, without
from rcnet.runtime.session import Session
from rcnet.runtime.tiles import TILE, Place, check_tile, tiles
from rcnet.setting import Setting

BLOCK = 32  # pixels a side, of the visible parts that a judge sees: it looks at places of 8


class Work(NamedTuple):
    """The pixels of a file and how they are to be denoised.

    Attributes:
        pixels: uint8, uint16, float16 or float32, [H, W, C].
        sigma: a number, or a map [H, W], in levels of 255; None: what the judge says, or unknown.
        strength: from 0 to 2: multiplies what a network of two levels is told, and of others what is removed.
        curve: how the network sees the pixels; as their type says unless given.
        visible: [H, W], which pixels count for the noise that is found; all unless given.
        judged: what `judge_picture` said of these pixels, so that it is not asked again.
    """

    pixels: np.ndarray
    sigma: Level = None
    strength: float = 1.0
    curve: Curve | None = None
    visible: np.ndarray | None = None
    judged: np.ndarray | None = None


class Denoised(NamedTuple):
    """Pixels as those of the work, and the root of the mean square of what was removed, in levels of 255 (of a network that is
    told two levels; of others what would be at strength 1)."""

    pixels: np.ndarray
    removed: float


def check_strength(strength: float) -> None:
    """`InputError` for a strength that is none."""
    if not 0 <= strength <= 2:
        raise InputError(f"strength={strength} is not valid: give a number from 0, nothing is removed, to 2; 1 is as trained")


def check_gives_images(session: Session) -> None:
    """`InputError` for a network that gives no images."""
    if session.gives != "image":
        raise InputError(
            "this network gives no images: take one that does, e.g. r3_fast.photo, or say what yours is made for: "
            "net.about = rcnet.About(TASK), TASK one that gives images, e.g. denoise"
        )


def check_range(x: np.ndarray) -> None:
    """`InputError` for floats in [0, 255] instead of [0, 1]. Noise may leave [0, 1], so only values above 2 count."""
    if x.size and float(x.max()) > 2 and (float(x.mean()) > 2 or bool((x == x.round()).all())):
        raise InputError(f"images must be in [0, 1], but the maximum is {float(x.max()):g}: divide them by 255")


def check_channels(about: About, channels: int) -> None:
    """`InputError` for images of so many channels that a network cannot take: a gray one takes any, others gray and their own."""
    if about.channels != 1 and channels not in (1, about.channels):
        raise InputError(f"these weights take images of {about.channels} channels, and this one has {channels}")


def usual_curve(pixels: np.ndarray) -> Curve:
    """A straight line to the largest value of the type, or to 1.0 of floats."""
    return Curve(1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max))


def part_of(pixels: np.ndarray, place: Place, curve: Curve) -> np.ndarray:
    """A part of the pixels [H, W, C] as the network sees it, float32 [1, C, H, W]."""
    return np.ascontiguousarray(curve.encode(pixels[place]).transpose(2, 0, 1))[None]


def judge_picture(
    session: Session, pixels: np.ndarray, curve: Curve | None = None, visible: np.ndarray | None = None
) -> np.ndarray | None:
    """What the network's judge says of a picture [H, W, C], noise levels [1, 2, KNOTS] in levels of 255; None without a judge.

    visible: [H, W], where it may look; everywhere unless given. Colours that stand in for hidden ones have no noise.
    """
    if session.about.levels < 2:
        return None
    curve = curve or usual_curve(pixels)
    if visible is not None:
        pixels = visible_blocks(pixels, visible)
    seen = look(lambda rows, columns: part_of(pixels, (rows, columns), curve), *pixels.shape[:2])
    return _judged(session, seen)


def visible_blocks(pixels: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The blocks of a picture [H, W, C] in which every pixel is visible, one above the other; all of it if there is none."""
    height, width = (side // BLOCK * BLOCK for side in visible.shape)
    blocks = visible[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).all((1, 3))
    if not blocks.any():
        return pixels
    parts = pixels[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, -1).transpose(0, 2, 1, 3, 4)
    return parts[blocks].reshape(-1, BLOCK, pixels.shape[2])


def judge_image(session: Session, image: np.ndarray) -> np.ndarray | None:
    """As `judge_picture`, of a float image [1, C, H, W] in [0, 1]."""
    return _judged(session, look(lambda rows, columns: image[..., rows, columns], *image.shape[2:]))


def denoise_pixels(
    session: Session, work: Work, setting: Setting, *, tile: int = TILE, each: Callable[[], Any] = lambda: None
) -> Denoised:
    """The pixels of a file denoised, in tiles, so that no float copy of the whole is made.

    Args:
        tile: side of a tile in pixels, without its overlap; 0 takes the whole picture at once.
        each: called after each tile, for a progress bar; see `tiles.count_tiles`.

    Raises:
        InputError: a tile, strength or sigma that is not valid, or another number of channels than the network takes.
    """
    about, pixels = session.about, work.pixels
    height, width = pixels.shape[:2]
    check_tile(tile)
    check_strength(work.strength)
    curve = work.curve or usual_curve(pixels)
    given = given_levels(work.sigma, about, 1, (height, width))
    judged = judge_picture(session, pixels, curve, work.visible) if work.judged is None else work.judged
    after = work.strength if about.levels < 2 else 1.0
    out, squares = np.empty_like(pixels), 0.0
    for rows, columns, seen, inner in tiles(about, setting, tile, height, width):
        x = part_of(pixels, seen, curve)
        y = call(session, x, setting, told(about, judged, given, x, seen, work.strength))
        removed = (y - x)[0][:, *inner].transpose(1, 2, 0)
        counted = np.square(removed, dtype=np.float64)
        squares += float((counted if work.visible is None else counted[work.visible[rows, columns]]).sum())
        out[rows, columns] = without(removed, pixels[rows, columns], after, curve)
        each()
    count = pixels.size if work.visible is None else np.count_nonzero(work.visible) * pixels.shape[2]
    return Denoised(out, 255 * float(np.sqrt(squares / max(count, 1))))


def denoise_many(session: Session, works: Sequence[Work], setting: Setting, *, tile: int = TILE) -> list[Denoised]:
    """As `denoise_pixels`; pictures of one small shape and the network's channels go through it at once."""
    about, shape = session.about, works[0].pixels.shape
    small = max(shape[:2]) <= TILE and shape[2] == about.channels
    if len(works) == 1 or not small or any(work.pixels.shape != shape for work in works):
        return [denoise_pixels(session, work, setting, tile=tile if about.reach else 0) for work in works]
    curves = [work.curve or usual_curve(work.pixels) for work in works]
    whole = (slice(0, shape[0]), slice(0, shape[1]))
    x = np.concatenate([part_of(work.pixels, whole, curve) for work, curve in zip(works, curves, strict=True)])
    levels = []
    for i, work in enumerate(works):
        judged = judge_picture(session, work.pixels, curves[i], work.visible) if work.judged is None else work.judged
        given = given_levels(work.sigma, about, 1, shape[:2])
        level = told(about, judged, given, x[i : i + 1], whole, work.strength)
        unknown = np.full((1, max(about.levels, 1), 1, 1), -1, np.float32)
        levels.append(np.broadcast_to(unknown if level is None else level, (1, max(about.levels, 1), *shape[:2])))
    y = call(session, x, setting, np.concatenate(levels) if about.takes_level else None)
    done = []
    for work, curve, removed in zip(works, curves, (y - x).transpose(0, 2, 3, 1), strict=True):
        after = work.strength if about.levels < 2 else 1.0
        root = float(np.sqrt(np.square(removed, dtype=np.float64).mean()))
        done.append(Denoised(without(removed, work.pixels, after, curve), 255 * root))
    return done


def denoise_images(
    session: Session,
    images: np.ndarray,
    setting: Setting,
    *,
    sigma: Level = None,
    strength: float = 1.0,
    tile: int = TILE,
    each: Callable[[], Any] = lambda: None,
) -> np.ndarray:
    """Float images [B, C, H, W] in [0, 1], denoised one after the other in tiles; see `rcnet.denoise`."""
    about, (batch, _, height, width) = session.about, images.shape
    check_tile(tile)
    check_strength(strength)
    given, out = given_levels(sigma, about, batch, (height, width)), np.empty_like(images)
    after = strength if about.levels < 2 else 1.0
    for i in range(batch):
        image = images[i : i + 1]
        level = None if given is None else given[i : i + 1]
        judged = judge_image(session, image)
        for rows, columns, seen, inner in tiles(about, setting, tile, height, width):
            x = image[..., seen[0], seen[1]]
            y = call(session, x, setting, told(about, judged, level, x, seen, strength))
            out[i, :, rows, columns] = (x + after * (y - x) if after != 1 else y)[0][:, *inner]
            each()
    return out


def told(
    about: About, judged: np.ndarray | None, given: np.ndarray | None, x: np.ndarray, place: Place, strength: float
) -> np.ndarray | None:
    """What the network is told of the part `x` [1, C, H, W] of a picture, at that place in it."""
    level = given if given is None or given.shape[2:] == (1, 1) else given[..., place[0], place[1]]
    return level if about.levels < 2 else tell(judged, level, x) * np.float32(strength)


def call(session: Session, x: np.ndarray, setting: Setting, sigma: np.ndarray | None) -> np.ndarray:
    """What the network makes of images [B, C, H, W] of any size and of 1 or 3 channels.

    A gray network takes the channels of a colour image one by one; a colour network takes a gray image three times, and the mean
    of what it gives. Sides are filled up to multiples, by reflection, and cut again.

    Raises:
        InputError: another number of channels.
    """
    batch, channels, height, width = x.shape
    taken, multiple = session.about.channels, session.about.multiple
    check_channels(session.about, channels)
    if taken == 1:
        seen = x.reshape(batch * channels, 1, height, width)
        sigma = None if sigma is None else np.repeat(np.broadcast_to(sigma, (batch, *sigma.shape[1:])), channels, 0)
    else:
        seen = np.broadcast_to(x, (batch, taken, height, width))
    if multiple > 1:
        seen = filled(seen, multiple)
        sigma = sigma if sigma is None or sigma.shape[2:] == (1, 1) else filled(sigma, multiple)
    y = session.run(seen, setting, sigma)[..., :height, :width]
    return y.reshape(x.shape) if taken == 1 else y.mean(1, keepdims=True) if channels < taken else y


def filled(x: np.ndarray, multiple: int) -> np.ndarray:
    """x [B, C, H, W] with sides filled up to multiples, by reflection at the right and the bottom."""
    height, width = x.shape[-2:]
    # A side of one pixel has nothing to reflect, and a short one too little: it repeats.
    mode = "reflect" if min(height, width) >= multiple else "edge"
    return np.pad(x, ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)), mode=mode)  # type: ignore[call-overload]


def _judged(session: Session, seen: np.ndarray) -> np.ndarray | None:
    """Of a gray network's channels of a colour picture, the mean."""
    channels = session.about.channels
    if session.about.levels < 2:
        return None
    check_channels(session.about, seen.shape[1])
    seen = seen.reshape(-1, 1, *seen.shape[-2:]) if channels == 1 else np.broadcast_to(seen, (1, channels, *seen.shape[-2:]))
    levels = session.judge(seen)
    return None if levels is None else levels.mean(0, keepdims=True)
