"""Image files to pixels and back. Bit depth, alpha and metadata are kept, or a note says what is not."""

import dataclasses
import math
import os
import secrets
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from rcnet.data import encoding, formats
from rcnet.data.decoding import decode, decode_tiff
from rcnet.data.formats import FORMATS, SUFFIXES, ImageFile, kind_of, missing_package, unreadable
from rcnet.errors import InputError, unknown
from rcnet.replacing import replacing

Source = str | Path | bytes | IO[bytes]


def read(source: Source) -> ImageFile:
    """Reads an image of one of the `FORMATS` from a path, bytes, or a file object at its start.

    `ImageFile.notes` lists what has changed: a palette becomes RGB or RGBA, black-and-white becomes L, CMYK becomes RGB (by its
    ICC profile if it has one); reduced copies in a TIFF and further pictures in a JPEG (MPO) or HEIC are left out. The
    transparent colour of a PNG becomes alpha. The EXIF thumbnail of a TIFF is dropped without a note. 16-bit PNG with colour or
    alpha, and 16-bit or float TIFF other than plain 16-bit gray, need tifffile and imagecodecs; HEIC needs pillow-heif.

    Raises:
        InputError: no such file, not an image, a damaged or truncated one, more than twice `PIL.Image.MAX_IMAGE_PIXELS`,
            several frames or pages, or pixels that cannot be kept: 32-bit integers, CIELAB, premultiplied alpha, extra channels,
            floats that are not numbers or not brightness.

    Example:
        >>> data = encode(ImageFile(np.zeros((2, 3, 1), np.uint16)), "PNG")
        >>> read(data).pixels.shape, read(data).mode
        ((2, 3, 1), 'I;16')
    """
    return _read(source, lambda name, data: [decode(name, data)])[0]


def read_pages(source: Source) -> list[ImageFile]:
    """As `read`, for all pages of a TIFF except reduced copies; other files have one image."""

    def pages(name: str, data: bytes) -> list[ImageFile]:
        return decode_tiff(name, data, every=True) if kind_of(data) == "TIFF" else [decode(name, data)]

    return _read(source, pages)


def _read(source: Source, decoded: Callable[[str, bytes], list[ImageFile]]) -> list[ImageFile]:
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "the image"))
    try:
        data = _bytes(name, source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decoded(name, data)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise unreadable(name, "is not a readable image") from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise unreadable(name, f"cannot be read: {error or type(error).__name__}") from error


def check_writable(path: str | Path, image: ImageFile, *more: ImageFile) -> tuple[str, ...]:
    """What `write` would lose of this image at this path, each a short sentence. Call it before long work.

    Raises:
        InputError: an unknown suffix, a format without the image's bit depth, alpha, size or pages, or whose writer is not
            installed, a path that is a folder, or a parent folder that does not exist or is not writable.
    """
    path = Path(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path} cannot be written: unknown suffix {path.suffix!r}; valid: {', '.join(SUFFIXES)}")
    losses = check_kind(kind, image, *more, name=str(path))
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        problem = "it is a folder" if os.path.isdir(path) else f"{folder} is not an existing, writable folder"
        raise InputError(f"{path} cannot be written: {problem}; valid: a file in an existing folder")
    return losses


def check_kind(kind: str, image: ImageFile, *more: ImageFile, name: str = "the image") -> tuple[str, ...]:
    """As `check_writable`, for a format without a path."""
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if more and kind != "TIFF":
        raise InputError(f"{name} cannot be written: {kind} stores one page and there are {1 + len(more)}; valid: .tif, .tiff")
    if problem := _unsupported(kind, image):
        valid = ", ".join(suffix for suffix, other in SUFFIXES.items() if not _unsupported(other, image))
        raise InputError(f"{name} cannot be written: {kind} {problem}; valid for this image: {valid}")
    lost = [label for field, label in formats.LABELS.items() if getattr(image, field) and not _keeps(kind, field, image)]
    if image.kind != kind:
        labels: dict[Any, str] = {**formats.CHUNKS, **formats.SEGMENTS, **formats.OWN_TAGS}
        lost += [labels.get(key, f"the segment {key}") for key, _ in image.own]
    lost = [label for label in dict.fromkeys(lost) if label]
    turned = {"WebP": ("L", "LA"), "AVIF": ("LA",), "HEIC": ("LA",)}.get(kind, ())
    gray = (f"{kind} has no such gray mode: it becomes RGB",) if image.mode in turned else ()
    return (*gray, f"{kind} does not keep {', '.join(lost)}") if lost else gray


def write(path: str | Path, image: ImageFile, *more: ImageFile) -> None:
    """Writes an image in the format of the suffix, one of `SUFFIXES`; `more` are further pages of a TIFF.

    The file is written atomically.

    Raises:
        InputError: what `check_writable` raises, before anything is written; or the file cannot be written.
    """
    check_writable(path, image, *more)
    target = Path(os.path.realpath(path))  # a link is written through, not replaced
    try:
        data = _encode(SUFFIXES[Path(path).suffix.lower()], image, *more)
        with replacing(target, f".{secrets.token_hex(8)}") as temporary:
            temporary.write_bytes(data)
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def encode(image: ImageFile, kind: str, *more: ImageFile) -> bytes:
    """The bytes of a file of one of the `FORMATS`; `more` images are further pages of a TIFF.

    PNG, TIFF, WebP, BMP, PNM and JPEG 2000 are lossless; JPEG, AVIF and HEIC have quality 95 and full colour resolution. An
    image from a JPEG is written with the quality of its source (at least 90) and its chroma subsampling, one from a lossy WebP
    with quality 95. JPEG stores whole dots per inch or cm up to 65535, PNG and BMP whole dots per metre. TIFF gets the common
    EXIF tags (description, camera, orientation, date, author, GPS and the Exif directory) without the thumbnail. `check_kind`
    says what is lost.

    Raises:
        InputError: what `check_kind` raises; or the encoder fails.
    """
    check_kind(kind, image, *more)
    try:
        return _encode(kind, image, *more)
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"the image cannot be written as {kind}: {error}") from error


def white_level(image: ImageFile) -> int:
    """The value of white: 255 for 8 bits; for 16 bits the smallest 2**k - 1, k = 8, 10, 12, 14, 16, that no pixel exceeds, as a
    12-bit camera uses only a part of a 16-bit file; for floats 1 if no pixel exceeds 2, else the maximum, rounded up.
    """
    if image.pixels.dtype == np.uint8:
        return 255
    top = float(image.pixels.max())
    if image.pixels.dtype == np.uint16:
        return next(2**k - 1 for k in (8, 10, 12, 14, 16) if top < 2**k)
    return 1 if top <= 2 else math.ceil(top)


def upright(image: ImageFile, values: np.ndarray) -> np.ndarray:
    """Values [H, W, C] at the image's pixels, rotated and mirrored by its EXIF orientation for display."""
    exif = Image.Exif()
    try:
        exif.load(image.exif)
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged block is ignored
        orientation = 1
    if orientation in (2, 3, 7, 8):
        values = values[:, ::-1]
    if orientation in (3, 4, 6, 7):
        values = values[::-1]
    return values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values


def _bytes(name: str, source: str | Path | bytes | IO[bytes]) -> bytes:
    """The bytes of the file; `InputError` if it does not exist or is empty."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise unreadable(name, "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist")
        source = path.read_bytes()
    data = source if isinstance(source, bytes) else source.read()
    if not data:
        raise unreadable(name, "is empty")
    return data


def _unsupported(kind: str, image: ImageFile) -> str:
    """Why a format cannot store the image, or the empty string."""
    if needed := missing_package(kind):
        return f"is not available ({needed})"
    form = FORMATS[kind]
    if image.mode not in form.modes.split():
        return f"stores only the modes {', '.join(form.modes.split())}, not {image.mode}"
    if max(image.pixels.shape) > form.side:
        return f"stores at most {form.side} pixels per side"
    return "stores at most 65527 bytes of EXIF" if kind == "JPEG" and len(image.exif) > 65527 else ""


def _keeps(kind: str, field: str, image: ImageFile) -> bool:
    """Whether a format keeps this field of the image: EXIF, ICC profile, XMP or resolution."""
    if field not in FORMATS[kind].keeps:
        return False
    if field == "density":
        return kind == "TIFF" or encoding.density_fits(kind, image)
    if field == "icc":
        return not (kind == "WebP" and image.icc[16:20] == b"GRAY")
    return not (field == "xmp" and kind == "JPEG" and len(image.xmp) > 65502)


def _encode(kind: str, image: ImageFile, *more: ImageFile) -> bytes:
    if more:
        later = (dataclasses.replace(page, exif=encoding.without_directories(page.exif)) for page in more)
        return encoding.join_tiffs(_encode(kind, page) for page in (image, *later))
    left: dict[str, Any] = {key: None if key == "density" else b"" for key in formats.LABELS if not _keeps(kind, key, image)}
    if image.kind != kind:
        left |= {"own": (), "coding": ()}
    image = dataclasses.replace(image, **left)
    samples = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        form = FORMATS[kind]
        return encoding.encode(kind, form.plugin or kind, form.options | dict(image.coding), image, samples)
