"""Test cards that a denoiser should leave unchanged or restore, uint8 [H, W, channels]: flat areas, screens, textures, a night.

All are deterministic. A gray card is the gray version of the coloured one, or its gray counterpart.
"""

import colorsys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rcnet.data.drawn import draw_page
from rcnet.data.images import in_channels

GRAYS = (0, 32, 128, 224, 255)  # levels
HUES = range(0, 360, 30)  # degrees
# Saturation and value of HSV; only pure colours reach 0 and 255.
TONES = {"pale": (1 / 3, 0.9), "dull": (2 / 3, 0.6), "pure": (1.0, 1.0)}
# Noise of SIGMA is clipped at black and white, so that the mean of the noisy area is up to 0.4 SIGMA off.
NOISY, SIGMA = (0, 4, 12, 128, 243, 251, 255), 10
SIDE, SMALL = 96, 64  # pixels of a gray and of a coloured flat area
# FreeType's default filter over subpixels, which keeps the coloured fringes of text faint.
SUBPIXELS = np.array([0x08, 0x4D, 0x56, 0x4D, 0x08]) / 0x100
CODE = (
    "File  Edit  View  Help",
    "def area(r): return 3.14 * r ** 2",
    'name = "Illi" + str(10) # note',
    "for i in range(8): print(i, end=',')",
    "while x < 0.5: x += 1 / 16",
)
INKS = ((255, 60, 60), (40, 90, 255), (0, 150, 60), (230, 0, 200), (240, 190, 0))
DARK_INKS = ((200, 30, 30), (20, 60, 200), (0, 110, 40), (150, 0, 140), (20, 20, 20))


class NoisyFlat(NamedTuple):
    """A flat area with noise as in an 8-bit file, and its level without the noise."""

    image: np.ndarray
    level: int


def flat_cards(channels: int) -> dict[str, list[np.ndarray]]:
    """Flat grays, a ramp, and in colour 12 hues for each tone, by name: `flat 0`, `ramp`, `pure` and so on."""
    cards = {f"flat {level}": [np.full((SIDE, SIDE, channels), level, np.uint8)] for level in GRAYS}
    ramp = np.linspace(0, 255, 2 * SIDE).round().astype(np.uint8)
    cards["ramp"] = [np.broadcast_to(ramp[:, None], (SIDE, 2 * SIDE, channels))]
    if channels == 3:
        for tone, (saturation, value) in TONES.items():
            colours = [_levels(colorsys.hsv_to_rgb(hue / 360, saturation, value)) for hue in HUES]
            cards[tone] = [np.broadcast_to(colour, (SMALL, SMALL, 3)) for colour in colours]
    return cards


def noisy_cards(channels: int) -> dict[str, NoisyFlat]:
    """Black, white and flat grays with noise of sigma 10, clipped and rounded to 8 bits."""
    rng = np.random.default_rng(5)
    return {
        f"noisy {level}": NoisyFlat(_levels((level + SIGMA * rng.standard_normal((SIDE, SIDE, channels))) / 255), level)
        for level in NOISY
    }


def picture_cards(channels: int) -> dict[str, dict[str, np.ndarray]]:
    """Pictures without noise in the groups `page`, `screen`, `texture` and `night`, in each by name."""
    page = draw_page(240, 360, channels, np.random.default_rng(17), on_white=True)
    drawn = {
        "screen": {"coloured text": coloured_text(), "subpixel text": subpixel_text()},
        "texture": {"halftone": halftone(), "checkerboard": checkerboard(), "grass": grass()},
        "night": {"night": night()},
    }
    others = {kind: {name: in_channels(image, channels) for name, image in cards.items()} for kind, cards in drawn.items()}
    return {"page": {"page": page}, **others}


def coloured_text() -> np.ndarray:
    """Antialiased lines in strong colours, on white, on black and on colours."""
    card = Image.new("RGB", (240, 160), "white")
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 54, 240, 108), fill=(24, 26, 32))
    draw.rectangle((0, 108, 120, 160), fill=(30, 60, 160))
    draw.rectangle((120, 108, 240, 160), fill=(250, 220, 80))
    for k in range(9):
        inks = DARK_INKS if k < 3 else INKS
        draw.text((6, 3 + 18 * k), CODE[k % len(CODE)], fill=inks[k % len(inks)], font=ImageFont.load_default(size=12 + k % 3))
    return np.asarray(card)


def subpixel_text() -> np.ndarray:
    """Text with subpixel rendering (ClearType): drawn at three times the width, each third of a pixel is one colour channel."""
    height, width = 160, 240
    cover = Image.new("L", (3 * width, 3 * height), 0)
    draw = ImageDraw.Draw(cover)
    for k in range(10):
        draw.text((18, 9 + 48 * k), CODE[k % len(CODE)], fill=255, font=ImageFont.load_default(size=36 + 3 * (k % 3)))
    fine = np.asarray(cover).reshape(height, 3, 3 * width).mean(1) / 255
    fine = sum(weight * np.roll(fine, k - 2, axis=1) for k, weight in enumerate(SUBPIXELS)).reshape(height, width, 3)
    paper, ink = np.full((height, 1, 3), 250.0), np.array([(20, 20, 20), (10, 80, 160), (140, 20, 30)])
    paper[:16], inks = (36, 56, 110), ink[np.arange(height) // 16 % 3][:, None]
    inks[:16] = 235
    return _levels((paper + (inks - paper) * fine) / 255)


def halftone() -> np.ndarray:
    """A smooth picture as printed dots: a screen of 5 pixels per ink, rotated by 15, 75 and 0 degrees."""
    y, x = np.mgrid[:160, :160] + 0.5
    disc = np.hypot(y - 80, x - 80) < 50
    amounts = [x / 160, np.where(disc, 0.7, y / 200), np.where(disc, 0.2, 0.8 - x / 250)]
    channels = []
    for amount, angle in zip(amounts, np.radians((15, 75, 0)), strict=True):
        across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        dots = (2 + np.cos(2 * np.pi * across / 5) + np.cos(2 * np.pi * along / 5)) / 4
        channels.append(1 - ((amount + dots - 1) * 6 + 0.5).clip(0, 1))  # edges one pixel wide, as in scans
    return _levels(0.1 + 0.85 * np.stack(channels, 2))


def checkerboard() -> np.ndarray:
    """Fields of 1, 2 and 4 pixels in black and white, in two similar grays, and in two colours."""
    y, x = np.mgrid[:48, :48]
    pairs = [((0, 0, 0), (255, 255, 255)), ((100, 100, 100), (140, 140, 140)), ((220, 40, 40), (40, 80, 220))]
    fields = [(y // size + x // size) % 2 for size in (1, 2, 4)]
    return np.vstack([np.hstack([np.array(pair, np.uint8)[field] for field in fields]) for pair in pairs])


def grass() -> np.ndarray:
    """Thousands of overlapping blades, about one pixel wide."""
    rng, side, scale = np.random.default_rng(3), 160, 2
    card = Image.new("RGB", (scale * side, scale * side), (40, 60, 25))
    draw = ImageDraw.Draw(card)
    for _ in range(6000):
        x, y = rng.uniform(-10, scale * side + 10, 2)
        length, lean, light = rng.uniform(8, 24), rng.normal(0, 0.35), rng.uniform(0.35, 1.0)
        green = (np.array([130, 190, 70]) * light + rng.normal(0, 10, 3)).clip(0, 255)
        draw.line((x, y, x + length * lean, y - length), fill=tuple(int(level) for level in green), width=int(rng.integers(1, 3)))
    return np.asarray(card.resize((side, side), Image.Resampling.BOX))


def night() -> np.ndarray:
    """A dark sky with stars, houses darker than it, lit windows and lamps with a glow."""
    rng, (height, width) = np.random.default_rng(4), (160, 240)
    y, x = np.mgrid[:height, :width].astype(float)
    card = np.stack([3 + 6 * y / height, 4 + 7 * y / height, 9 + 12 * y / height], 2)
    for left in range(0, width, 30):
        top, tone = int(rng.integers(60, 120)), rng.uniform(1, 5)
        card[top:, left : left + 26] = (tone, tone, 1.2 * tone)
        for row in range(top + 5, height - 8, 10):
            for column in range(left + 4, left + 22, 7):
                if rng.random() < 0.3:
                    card[row : row + 4, column : column + 3] = rng.uniform(0.3, 1) * np.array([160, 120, 60])
    for _ in range(60):
        card[rng.integers(0, 60), rng.integers(0, width)] += rng.uniform(20, 160)
    for _ in range(8):
        squared = (y - rng.uniform(20, height)) ** 2 + (x - rng.uniform(0, width)) ** 2
        glow = 400 * np.exp(-squared / 3) + 25 * np.exp(-np.sqrt(squared) / 8)
        card += glow[:, :, None] * rng.uniform((0.8, 0.6, 0.2), (1.0, 0.9, 0.8))
    return _levels(card / 255)


def _levels(values: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """Values in [0, 1], clipped, as uint8."""
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
