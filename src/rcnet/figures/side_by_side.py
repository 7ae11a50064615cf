"""Labelled images side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rcnet.errors import InputError
from rcnet.replacing import replacing

GAP = 8  # pixels between images
LARGEST = 1024  # side in pixels; of a larger image the centre is shown, unscaled
Panel = tuple[str, np.ndarray]


def centre(image: np.ndarray, largest: int = LARGEST) -> np.ndarray:
    """The image, or its centre if a side is longer than `largest`. [H, W, C]."""
    height, width = image.shape[:2]
    top, left = max(height - largest, 0) // 2, max(width - largest, 0) // 2
    return image[top : top + largest, left : left + largest]


def side_by_side(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """One picture of rows of (label, image); images are float [H, W, 1 or 3] in [0, 1], of one size."""
    panels = [[(label, _to_rgb(centre(image))) for label, image in row] for row in rows]
    height, width = panels[0][0][1].shape[:2]
    font = ImageFont.load_default(size=max(12, min(28, width // 14)))
    bar = round(font.size * 1.6)  # type: ignore[union-attr]
    columns = max(len(row) for row in panels)
    picture = Image.new("RGB", (GAP + columns * (width + GAP), GAP + len(panels) * (height + bar + GAP)), "white")
    draw = ImageDraw.Draw(picture)
    for j, row in enumerate(panels):
        for i, (label, pixels) in enumerate(row):
            x, y = GAP + i * (width + GAP), GAP + j * (height + bar + GAP)
            draw.text((x + width / 2, y + bar / 2), label, fill="black", font=font, anchor="mm")
            picture.paste(Image.fromarray(pixels), (x, y + bar))
    return picture


def in_rows(panels: Sequence[Panel], most: int = 6) -> list[list[Panel]]:
    """The panels in as few rows of equal length as possible, with at most `most` per row.

    Example:
        >>> [len(row) for row in in_rows([("", np.zeros((1, 1, 1)))] * 8, most=6)]
        [4, 4]
    """
    count = -(-len(panels) // most)
    length = -(-len(panels) // count)
    return [list(panels[i : i + length]) for i in range(0, len(panels), length)]


def save_picture(path: str | Path, picture: Image.Image) -> None:
    """Writes a PNG to a temporary file, then renames it."""
    path = Path(path)
    try:
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _to_rgb(image: np.ndarray) -> np.ndarray:
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
