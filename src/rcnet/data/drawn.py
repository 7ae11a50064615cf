"""Drawn pictures: flat areas, ramps and pages of text, which are rare in photographs and common in scans and screenshots."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 320  # pixels, the largest patch that a recipe can draw from them
_LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:-()%")


def draw_pictures(count: int, channels: int, seed: int) -> list[np.ndarray]:
    """`count` pictures, uint8 [320, 320, channels]; the same for the same seed.

    One in three is a page of text, the others are cards of four fields, each flat, a ramp or text.
    """
    rng = np.random.default_rng([seed, 3])
    return [draw_page(SIDE, SIDE, channels, rng) if k % 3 == 0 else _card(channels, rng) for k in range(count)]


def _card(channels: int, rng: np.random.Generator) -> np.ndarray:
    picture = np.zeros((SIDE, SIDE, channels), np.uint8)
    y, x = (int(rng.integers(100, SIDE - 100)) for _ in range(2))
    for rows in (slice(0, y), slice(y, SIDE)):
        for columns in (slice(0, x), slice(x, SIDE)):
            draw = (_flat, _flat, _ramp, draw_page)[rng.integers(4)]
            picture[rows, columns] = draw(rows.stop - rows.start, columns.stop - columns.start, channels, rng)
    return picture


def _colour(channels: int, rng: np.random.Generator) -> np.ndarray:
    """Black, white, a gray, a random colour, or a pure one with channels at 0 or 255, which no photograph has; [channels]."""
    kind = rng.integers(6)
    if kind < 2:
        return np.full(channels, 255.0 * kind)
    if kind == 2:
        return np.full(channels, rng.uniform(0, 255))
    colour = rng.uniform(0, 255, channels)
    return colour if kind == 3 else np.where(rng.random(channels) < 0.6, 255.0 * rng.integers(2, size=channels), colour)


def _flat(height: int, width: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(np.rint(_colour(channels, rng)), (height, width, channels)).astype(np.uint8)


def _ramp(height: int, width: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """From one colour to another, in any direction."""
    down, right = rng.uniform(-1, 1, 2)
    along = down * np.linspace(0, 1, height)[:, None] + right * np.linspace(0, 1, width)
    along = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    start, end = _colour(channels, rng), _colour(channels, rng)
    return np.rint(start + (end - start) * along[:, :, None]).astype(np.uint8)


def draw_page(height: int, width: int, channels: int, rng: np.random.Generator, on_white: bool = False) -> np.ndarray:
    """Lines of letters, uint8 [height, width, channels]: mostly dark on white, some coloured; sharp, or blurred as in scans."""
    if on_white or rng.random() < 0.7:
        paper, ink = np.full(channels, rng.choice([255.0, 255.0, 245.0, 230.0])), np.full(channels, rng.choice([0.0, 30.0, 60.0]))
    else:
        paper, ink = _colour(channels, rng), _colour(channels, rng)
    page = Image.new("L", (width, height), 0)
    draw, y = ImageDraw.Draw(page), int(rng.integers(-10, 10))
    while y < height:
        size = int(rng.integers(9, 32))
        line = "".join(rng.choice(_LETTERS, 90))
        spaces = sorted(int(k) for k in rng.integers(1, 90, 16))
        line = " ".join(line[a:b] for a, b in zip([0, *spaces], [*spaces, 90], strict=True))
        draw.text((int(rng.integers(-10, 20)), y), line, fill=255, font=ImageFont.load_default(size=size))
        y += round(size * rng.uniform(1.1, 1.8))
    if rng.random() < 0.5:
        page = page.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    part = np.asarray(page)[:, :, None] / 255
    return np.rint(paper + (ink - paper) * part).astype(np.uint8)
