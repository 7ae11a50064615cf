"""Folders of images as uint8 arrays in memory, and random patches of them. torch is imported when a function needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from rcnet.data import imagefile
from rcnet.data.formats import NAMES, SUFFIXES, ImageFile
from rcnet.errors import InputError

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")
# The gray version of BSD (BSD68) is this sum of the colour images, rounded; PIL's "L" differs by a level in a few pixels.
GRAY_WEIGHTS = np.array([0.298936, 0.587043, 0.114021])


def to_gray(image: np.ndarray) -> np.ndarray:
    """Gray uint8 [H, W] of uint8 [H, W] or RGB [H, W, 3]."""
    return image if image.ndim == 2 else np.rint(image @ GRAY_WEIGHTS).astype(np.uint8)


def list_images(folder: str | Path) -> list[Path]:
    """The image files in a folder and its subfolders, sorted by path, or `InputError` if there are none.

    Names that start with a dot are left out, of folders too: thumbnails, checkpoints of notebooks, macOS's ._NAME.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder of images at {folder}; to get some: rcnet data bsds500")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(x.startswith(".") for x in path.relative_to(folder).parts)
    )
    if not files:
        raise InputError(f"{folder} contains no images: looked for {NAMES}, also in subfolders")
    return files


def read_image(path: str | Path, channels: int) -> np.ndarray:
    """8-bit pixels [H, W, channels] of one file, gray (1) or RGB (3), upright, without its alpha.

    Deeper pixels are divided by white (`imagefile.white_level`) and rounded.

    Raises:
        InputError: what `imagefile.read` raises.
    """
    image = imagefile.read(path)
    return in_channels(in_8_bits(image, imagefile.white_level(image)), channels)


def read_pair(first: str | Path, second: str | Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures of one scene, as in `read_image`, with the same white if both have the same type."""
    a, b = imagefile.read(first), imagefile.read(second)
    whites = imagefile.white_level(a), imagefile.white_level(b)
    if a.pixels.dtype == b.pixels.dtype:
        whites = (max(whites),) * 2
    a_pixels, b_pixels = (in_channels(in_8_bits(*pair), channels) for pair in zip((a, b), whites, strict=True))
    return a_pixels, b_pixels


def in_8_bits(image: ImageFile, white: int) -> np.ndarray:
    """The pixels upright and as uint8 [H, W, C]; `white` becomes 255."""
    pixels = np.ascontiguousarray(imagefile.upright(image, image.pixels))
    if pixels.dtype != np.uint8:
        pixels = np.rint(255 * (pixels / white).clip(0, 1)).astype(np.uint8)
    return pixels


def in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Converts uint8 [H, W, 1 or 3] to gray (1) or RGB (3), [H, W, channels]."""
    if pixels.shape[2] == channels:
        return pixels
    return to_gray(pixels)[:, :, None] if channels == 1 else np.repeat(pixels, 3, axis=2)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of an image, uint8 [size, size, C], from uint8 [H, W, C], gray or RGB.

    The shorter side is resized to `size` (bicubic with antialiasing), the longer one is cut, as torchvision's `Resize` and
    `CenterCrop` do it.

    Raises:
        InputError: a size below 1.

    Example:
        >>> fit(np.zeros((480, 640, 3), np.uint8), 32).shape
        (32, 32, 3)
    """
    check_size(size)
    height, width = image.shape[:2]
    short = min(height, width)
    wide, high = size * width // short, size * height // short
    if (wide, high) != (width, height):
        whole = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        image = np.atleast_3d(np.array(whole.resize((wide, high), Image.Resampling.BICUBIC)))
    top, left = round((high - size) / 2), round((wide - size) / 2)
    return image[top : top + size, left : left + size]


def check_size(size: int) -> None:
    if size < 1:
        raise InputError(f"size = {size} is not valid: images are at least 1 pixel wide")


def read_folder(folder: str | Path, channels: int) -> list[np.ndarray]:
    """Every image in a folder and its subfolders, uint8 [H, W, channels]."""
    return list(read_images(list_images(folder), channels))


def read_images(paths: Sequence[Path], channels: int) -> Iterator[np.ndarray]:
    """As `read_image`, one after the other; at the end one `InputError` names all files that could not be read."""
    problems = []
    for path in paths:
        try:
            yield read_image(path, channels)
        except InputError as error:
            problems.append(str(error))
    if len(problems) > 1:
        raise InputError(f"{len(problems)} images cannot be used: {'; '.join(problems)}")
    if problems:
        raise InputError(problems[0])


def split_folder(folder: str | Path, split: str) -> Path:
    """`folder/split` if it exists (`train`, `test`), else the folder itself.

    Raises:
        InputError: the folder, or a subfolder, contains other splits, so that test images would be mixed with the rest.
    """
    folder = Path(folder)
    if (folder / split).is_dir():
        return folder / split
    if parts := _parts(folder):
        raise InputError(f"{folder} contains a folder named {parts[0]} but none named {split}")
    for inner in sorted(path for path in folder.glob("*") if path.is_dir()):
        if len(parts := _parts(inner)) > 1:
            raise InputError(f"{inner} is divided into {' and '.join(parts)}: give {inner}, or one of these folders")
    return folder


def _parts(folder: Path) -> list[str]:
    return [name for name in SPLITS if (folder / name).is_dir()]


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Float [1, C, H, W] in [0, 1] of uint8 [H, W, C]."""
    import torch

    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)).unsqueeze(0) / 255


class Pixels(NamedTuple):
    """Images of any size as one tensor: uint8 [all pixels, C], and the start, height and width of each, int64 [N]."""

    values: torch.Tensor
    start: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor


def pixels_of(images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Pixels:
    """The images, uint8 [H, W, C], on a device, for `random_patches`."""
    import torch

    height, width = (torch.tensor([image.shape[i] for image in images]) for i in (0, 1))
    start = torch.cumsum(height * width, 0) - height * width
    values = torch.cat([torch.from_numpy(image).reshape(-1, image.shape[2]) for image in images])
    return Pixels(*(tensor.to(device) for tensor in (values, start, height, width)))


def random_patches(pixels: Pixels, patch: int, count: int, rng: np.random.Generator) -> torch.Tensor:
    """Float [count, C, patch, patch] in [0, 1]: uniform images and positions, each in one of the eight flips and rotations.

    All images must be at least as large as the patch. `rng` makes all draws; pixels are gathered on their device.
    """
    import torch

    device = pixels.values.device
    k = torch.from_numpy(rng.integers(len(pixels.start), size=count)).to(device)
    down, right = (torch.from_numpy(rng.random(count)).to(device) for _ in range(2))
    turned, mirrored, flipped = (torch.from_numpy(rng.integers(2, size=count).astype(bool)).to(device) for _ in range(3))
    along = torch.arange(patch, device=device)
    rows, columns = along[:, None].expand(patch, patch), along.expand(patch, patch)
    y = torch.where(turned[:, None, None], columns, rows)
    x = torch.where(turned[:, None, None], rows, columns)
    y = torch.where(flipped[:, None, None], patch - 1 - y, y)
    x = torch.where(mirrored[:, None, None], patch - 1 - x, x)
    y = y + (down * (pixels.height[k] - patch + 1)).long()[:, None, None]
    x = x + (right * (pixels.width[k] - patch + 1)).long()[:, None, None]
    places = pixels.start[k][:, None, None] + y * pixels.width[k][:, None, None] + x
    return pixels.values[places].permute(0, 3, 1, 2).float() / 255
