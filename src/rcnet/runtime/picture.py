"""A picture as a denoiser is to see it, and the way back: hidden colours, gray in colour, white and curve. NumPy alone."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rcnet.data.formats import ImageFile
from rcnet.data.imagefile import white_level
from rcnet.errors import InputError

BULK = 95  # percent of the values: white of a picture with a long tail is twice the value that so many do not exceed
TAIL = 2.0  # a tail is long if the largest value is so many times that white
SAMPLE = 1 << 20  # pixels that are looked at to choose a curve or a tint
BINS = 8  # of brightness, in which noise is compared
DUST = 1e-3  # the part of the pixels of a gray picture that may have another colour
ROWS = 256  # that are looked at together, so that no large copy is made
BLOCK = 16  # side, in pairs of pixels, of the blocks in which a mosaic is looked for


class Curve(NamedTuple):
    """The values of a file as the network sees them: 0 is 0, white is 1, and so is what is above white.

    Attributes:
        white: the value that becomes 1.
        offset: infinite for a straight line; else `sqrt(value + offset)`, under which noise whose variance is
            proportional to `value + offset`, as that of photon counts, is the same everywhere (Anscombe 1948).
    """

    white: float
    offset: float = math.inf

    def encode(self, values: np.ndarray) -> np.ndarray:
        """float32 of at most 1, of values of any type and shape."""
        x = np.minimum(values.astype(np.float32), np.float32(self.white))
        if math.isinf(self.offset):
            return x / np.float32(self.white)
        low, high = math.sqrt(self.offset), math.sqrt(self.white + self.offset)
        return ((np.sqrt(np.maximum(x + np.float32(self.offset), 0)) - low) / (high - low)).astype(np.float32)

    def decode(self, seen: np.ndarray) -> np.ndarray:
        """The values of what `encode` gives."""
        if math.isinf(self.offset):
            return seen * np.float32(self.white)
        low, high = math.sqrt(self.offset), math.sqrt(self.white + self.offset)
        return np.square(np.maximum(seen * (high - low) + low, 0)) - np.float32(self.offset)


def without(removed: np.ndarray, pixels: np.ndarray, strength: float, curve: Curve) -> np.ndarray:
    """Pixels, [H, W, C] of their type, of which so much goes away. Values above white stay as they are; others remain in
    [0, white], or between that and the value that they had.

    Args:
        removed: what the network adds at strength 1 to what it sees, float [H, W, C].
    """
    values, seen = pixels.astype(np.float32), curve.encode(pixels)
    changed = values + (curve.decode(seen + strength * removed) - curve.decode(seen))
    changed = np.where(values > curve.white, values, np.clip(changed, np.minimum(values, 0), curve.white))
    return (changed if pixels.dtype.kind == "f" else np.rint(changed)).astype(pixels.dtype)


class Picture(NamedTuple):
    """What `prepare` makes of the pixels of a file.

    Attributes:
        pixels: what is to be denoised, [H, W, 1 or 3] of the file's type.
        curve: how the network is to see it.
        visible: [H, W], false where alpha hides the pixel; or None if it hides none.
        original: the pixels of the file, [H, W, 1 or 3].
        tint: of a gray picture in colour, each channel over the one in `pixels`, [3]; or None.
    """

    pixels: np.ndarray
    curve: Curve
    visible: np.ndarray | None
    original: np.ndarray
    tint: np.ndarray | None

    def restore(self, denoised: np.ndarray) -> np.ndarray:
        """The pixels of the file, of denoised `pixels`: with the tint, specks of another colour, and what alpha hides."""
        result = denoised
        if self.tint is not None:
            result, level = np.empty_like(self.original), _level(self.original)
            for rows in _chunks(self.original):
                before, after = (_tinted(part[rows], self.tint) for part in (self.pixels, denoised))
                values = self.original[rows].astype(after.dtype)
                changed = np.clip(values + (after - before), np.minimum(values, 0), _top(self.original))
                dust = (np.abs(values - before) > level).any(2, keepdims=True)
                result[rows] = np.where(dust, values, changed).astype(result.dtype)
        return result if self.visible is None else np.where(self.visible[:, :, None], result, self.original)


def prepare(
    pages: Sequence[np.ndarray],
    alphas: Sequence[np.ndarray | None],
    white: float | None = None,
    gray: bool = True,
    straight: bool = False,
) -> tuple[list[Picture], list[str]]:
    """The pictures of a file's pages, under one curve if they are of one type, and what is to be said, in short sentences.

    Args:
        pages: gray or RGB pixels, [H, W, 1 or 3] of uint8, uint16, float16 or float32.
        alphas: [H, W] of each page, or None. Colours under alpha 0 are not seen: visible neighbours stand in for them.
        white: the value that stands for white; found unless given (`choose_curve`).
        gray: whether a gray picture in three channels, tinted or not, is to be seen in one.
        straight: whether the curve is to be a straight line, as where the level of the noise is told.

    Raises:
        InputError: a white that is no value of these pixels.
    """
    pictures = []
    for pixels, alpha in zip(pages, alphas, strict=True):
        visible = None if alpha is None or alpha.all() or not alpha.any() else alpha > 0
        seen = pixels if visible is None else fill_hidden(pixels, visible)
        tint = find_tint(seen) if gray and pixels.shape[2] == 3 else None
        plane = seen if tint is None else seen[:, :, [int(tint.argmax())]]
        pictures.append(Picture(plane, Curve(1.0), visible, pixels, tint))
    stacks = [[picture.pixels for picture in pictures]]
    if len({pixels.dtype for pixels in stacks[0]}) > 1:
        stacks = [[pixels] for pixels in stacks[0]]
    chosen = [choose_curve(stack, white, straight) for stack in stacks]
    notes = [note for _, note in chosen if note]
    if any(pixels.shape[2] == 1 and is_mosaic(picture.pixels) for pixels, picture in zip(pages, pictures, strict=True)):
        notes.append("its pixels differ in a pattern of 2x2, as a raw mosaic (Bayer) does: develop it before it is denoised")
    curves = [curve for curve, _ in chosen] * (len(pictures) // len(chosen))
    return [picture._replace(curve=curve) for picture, curve in zip(pictures, curves, strict=True)], notes


def choose_curve(pages: Sequence[np.ndarray], white: float | None = None, straight: bool = False) -> tuple[Curve, str]:
    """The curve for pixels [H, W, C] of one type, and a sentence about it or the empty string.

    A straight line to `white`, or to `white_level`. If the values have a long tail (lights in linear HDR, stars, a bar drawn in
    white) white is twice the value that 95 % of them do not exceed, so that the picture is not left in the dark. Of linear data,
    which have such a tail or are floats beyond 2, the curve is a square root where noise grows with brightness,
    unless it is to be `straight`.

    Raises:
        InputError: a white that is no value of these pixels.
    """
    whole = pages[0].dtype.kind == "u"
    most = _top(pages[0])
    if white is not None:
        if not 0 < white <= most:
            raise InputError(f"--white {white:g} is not valid: give a value of the pixels, above 0{f', to {most:g}' * whole}")
        return Curve(white), ""
    top = max(float(pixels.max()) for pixels in pages)
    found: float = max(white_level(ImageFile(pixels)) for pixels in pages)
    if pages[0].dtype == np.uint8 or top <= 0:
        return Curve(found), ""
    bulk = float(np.percentile(np.concatenate([_sample(pixels).ravel() for pixels in pages]).astype(np.float32), BULK))
    limit = math.ceil(2 * bulk) if whole else float(f"{2 * bulk:.3g}")
    if tail := 0 < limit * TAIL < top:
        found = limit
    root = ", by a square root, as its noise grows with brightness"
    linear = tail or (found > 2 and not whole)
    offset = noise_offset(pages[0], found) if linear and not straight else math.inf
    kind = f"{8 * pages[0].itemsize}-bit pixels" if whole else "floats"
    said = f"{kind} that go to {top:g}{f', {BULK} % of them to {bulk:g}' * tail}: {found:g} is taken for white (--white sets it)"
    said += root * math.isfinite(offset) + "; larger values stay as they are" * tail
    return Curve(found, offset), said if tail or found not in (1, most) else ""


def noise_offset(pixels: np.ndarray, white: float) -> float:
    """The variance of the noise at 0 over its growth with brightness, of pixels [H, W, C]; infinite if it hardly grows.

    From the diagonal details of 2x2 pixels, in bins of brightness. Where a pixel is 0 or above white noise may be cut off.
    """
    height, width = (min(side, 2048) // 2 * 2 for side in pixels.shape[:2])
    x = pixels[:height, :width].astype(np.float32)
    parts = np.stack([x[::2, ::2], x[::2, 1::2], x[1::2, ::2], x[1::2, 1::2]])
    parts = parts[:, (parts.min(0) > 0) & (parts.max(0) < white)]
    if parts.shape[1] < 100 * BINS:
        return math.inf
    mean, detail = parts.mean(0), np.abs(parts[0] - parts[1] - parts[2] + parts[3]) / 2
    bins = np.array_split(np.argsort(mean), BINS)
    brightness = np.array([mean[part].mean() for part in bins])
    # A quarter of Gaussian noise is below 0.3186 of its deviation; the smallest details hold the least texture.
    variance = np.array([np.percentile(detail[part], 25) / 0.3186 for part in bins]) ** 2
    if not variance.min() > 0:
        return math.inf
    growth, start = np.polyfit(brightness, variance, 1, w=1 / variance)
    offset = max(start, 0) / growth if growth > 0 else math.inf
    return float(offset) if offset < white else math.inf  # the noise at white is not twice that at 0


def find_tint(pixels: np.ndarray) -> np.ndarray | None:
    """Of a gray picture in RGB, tinted or not, each channel over the largest: [3] of at most 1; of a colour picture None.

    Each pixel is the tint times one gray to within a level of its type; one in a thousand may have another colour.

    Args:
        pixels: [H, W, 3].
    """
    sample = _sample(pixels).reshape(-1, 3).astype(np.float64)
    largest = int(sample.sum(0).argmax())
    used = np.ones(len(sample), bool)
    tint, level = np.ones(3), _level(pixels)
    for _ in range(2):  # the second time without what the first finds to be of another colour
        gray = sample[used, largest]
        tint = sample[used].T @ gray / max(float(gray @ gray), 1e-12)
        used = (np.abs(sample - _tinted(sample[:, [largest]], tint)) <= level).all(1)
        if used.mean() < 1 - 10 * DUST:
            return None
    if tint[largest] < tint.max():
        return None
    left = DUST * pixels.shape[0] * pixels.shape[1]
    for rows in _chunks(pixels):
        values = pixels[rows].astype(np.float32)
        left -= np.count_nonzero((np.abs(values - _tinted(values[:, :, [largest]], tint)) > level).any(2))
        if left < 0:
            return None
    return tint


def fill_hidden(pixels: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The pixels [H, W, C], those that are not visible ([H, W]) filled with colours of visible ones around them."""
    filled = _filled(pixels.astype(np.float32), visible)
    filled = filled if pixels.dtype.kind == "f" else np.rint(filled)
    return np.where(visible[:, :, None], pixels, filled.astype(pixels.dtype))


def is_mosaic(pixels: np.ndarray) -> bool:
    """Whether the four pixels of each 2x2 of a gray picture, [H, W, 1], differ in brightness everywhere in the same way."""
    side = 2 * BLOCK
    height, width = (min(length, 2048) // side * side for length in pixels.shape[:2])
    if not height or not width:
        return False
    x = pixels[:height, :width, 0].astype(np.float32)
    blocks = x.reshape(height // side, BLOCK, 2, width // side, BLOCK, 2).transpose(2, 5, 0, 3, 1, 4)
    contrast = (blocks[0, 0] - blocks[0, 1] - blocks[1, 0] + blocks[1, 1]).reshape(-1, BLOCK**2) / 2
    mean, error = contrast.mean(1), contrast.std(1) / BLOCK
    # Of other pictures the mean over a block is its error, and of any sign.
    return bool(np.median(np.abs(mean)) > max(6 * float(np.median(error)), 0.02 * float(x.mean())))


def _filled(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values [H, W, C] where they are known, elsewhere means of ever larger areas, blurred."""
    height, width = known.shape
    if known.all() or max(height, width) == 1:
        return values
    sides = ((0, height % 2), (0, width % 2))
    weight = np.pad(known.astype(np.float32), sides)[:, :, None]
    total = np.pad(values, (*sides, (0, 0))) * weight
    total, weight = (x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).sum((1, 3)) for x in (total, weight))
    coarse = _filled(total / np.maximum(weight, 1), weight[:, :, 0] > 0)
    around = np.pad(coarse.repeat(2, 0).repeat(2, 1)[:height, :width], ((1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = sum(around[i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    return np.where(known[:, :, None], values, blurred)


def _sample(pixels: np.ndarray) -> np.ndarray:
    """About `SAMPLE` of the pixels [H, W, C], in the same form."""
    step = math.ceil(math.sqrt(pixels.shape[0] * pixels.shape[1] / SAMPLE))
    return pixels[::step, ::step]


def _chunks(pixels: np.ndarray) -> Iterator[slice]:
    for start in range(0, len(pixels), ROWS):
        yield slice(start, start + ROWS)


def _tinted(gray: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Gray [..., 1] in three channels, [..., 3]."""
    values = gray.astype(np.promote_types(gray.dtype, np.float32)) * tint.astype(np.float32)
    return values if gray.dtype.kind == "f" else np.rint(values)


def _top(pixels: np.ndarray) -> float:
    """The largest value of the type."""
    return float("inf") if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)


def _level(pixels: np.ndarray) -> float:
    """What values differ by that are as good as equal; of floats by most of them, not by a light that is far above the rest."""
    return 1e-4 * max(float(np.percentile(_sample(pixels).astype(np.float32), BULK)), 0) if pixels.dtype.kind == "f" else 1.0
