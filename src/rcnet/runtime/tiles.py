"""Tiles of bounded memory that overlap by what the network sees."""

import math
from collections.abc import Iterator

from rcnet.about import About
from rcnet.errors import InputError
from rcnet.setting import Setting

TILE, SMALLEST_TILE = 512, 16  # pixels a side
Place = tuple[slice, slice]


def tiles(about: About, setting: Setting, tile: int, height: int, width: int) -> Iterator[tuple[slice, slice, Place, Place]]:
    """Rows and columns of each tile; those of the image that its call sees; and where in these the tile lies."""
    side = tile_side(about, tile, height, width)
    halo = -(-about.radius(setting) // grid(about)) * grid(about) if side < max(height, width) else 0
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = slice(top, min(top + side, height)), slice(left, min(left + side, width))
            seen = tuple(
                slice(max(part.start - halo, 0), min(part.stop + halo, whole))
                for part, whole in ((rows, height), (columns, width))
            )
            inner = tuple(
                slice(part.start - around.start, part.stop - around.start)
                for part, around in zip((rows, columns), seen, strict=True)
            )
            yield rows, columns, (seen[0], seen[1]), (inner[0], inner[1])


def check_tile(tile: int) -> None:
    """`InputError` for a tile that is none."""
    if tile < 0 or 0 < tile < SMALLEST_TILE:
        raise InputError(f"tile={tile} is not valid: give its side in pixels, {SMALLEST_TILE} or more, or 0 for no tiles")


def count_tiles(about: About, shape: tuple[int, ...], tile: int) -> int:
    """How many calls images of this shape [B, C, H, W] take; a gray network takes their channels one by one."""
    batch, channels, height, width = shape
    side = tile_side(about, tile, height, width)
    return batch * (channels if about.channels == 1 else 1) * -(-height // side) * -(-width // side)


def size_of(place: Place) -> tuple[int, int]:
    """Height and width in pixels."""
    return place[0].stop - place[0].start, place[1].stop - place[1].start


def tile_side(about: About, tile: int, height: int, width: int) -> int:
    """The side of a tile in pixels: `tile` rounded up to whole multiples, or the whole image for 0."""
    return -(-tile // grid(about)) * grid(about) or max(height, width)


def grid(about: About) -> int:
    """What the sides of tiles are multiples of."""
    return math.lcm(about.sub, about.multiple)
