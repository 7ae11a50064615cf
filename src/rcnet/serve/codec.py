"""Images in requests and responses: PNG, JPEG, WebP and npy. Images that are too large are refused before they are decoded."""

import dataclasses
import io
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from rcnet.data import imagefile, limits
from rcnet.data.formats import ImageFile, kind_of
from rcnet.data.images import in_8_bits
from rcnet.errors import InputError
from rcnet.serve.served import Work

TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp", "npy": "application/x-npy"}
ANSWERS = {TYPES["PNG"]: "PNG", TYPES["JPEG"]: "JPEG", TYPES["npy"]: "npy", "application/json": "JSON"}  # for an image


class TooLarge(InputError):
    """An image with more pixels, or a body with more bytes, than the server takes."""


class UnknownFormat(InputError):
    """A body in none of the formats that the server takes."""


class NotAcceptable(InputError):
    """The Accept header names no format that the server offers."""


def header(data: bytes, most: int) -> tuple[str, int, int]:
    """The format of a body, a key of `TYPES`, and its image's width and height from the header, without decoding.

    Raises:
        UnknownFormat: not PNG, JPEG, WebP or npy.
        TooLarge: more pixels than `most`.
        InputError: a damaged header.
    """
    kind = kind_of(data)
    if kind not in TYPES:
        raise UnknownFormat(f"the body is {'not an image of a known format' if data else 'empty'}; valid: {', '.join(TYPES)}")
    if kind == "npy":
        shape = _read_npy_header(io.BytesIO(data))[0]
        size: tuple[int, int] | None = (shape[1], shape[0])
    else:
        size = limits.size_of(data)
    if size is None:
        raise InputError(f"the body is a damaged {kind}")
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"the image has {width}x{height} pixels: at least 1x1 is needed")
    if width * height > most:
        raise TooLarge(f"the image has {width}x{height} pixels and this server takes at most {most}: send a smaller one")
    return kind, width, height


def file_of(data: bytes, content_type: str) -> bytes:
    """The image file in a body: the only file of a form (`curl -F file=@photo.png`), or the whole body.

    Raises:
        InputError: a form that does not consist of exactly one file.

    Example:
        >>> from rcnet.serve.codec import file_of
        >>> file_of(b"the file", "image/png")
        b'the file'
    """
    kind, _, rest = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        return data
    boundary = re.search(r"boundary=(?:\"([^\"]{1,70})\"|([^\s;]{1,70}))", rest)
    # Three splits are enough to see more than one part; a hostile body may contain the boundary millions of times.
    parts = data.split(b"--" + (boundary[1] or boundary[2]).encode("latin-1"), 3)[1:-1] if boundary else []
    if len(parts) != 1 or b"\r\n\r\n" not in parts[0] or b"filename=" not in parts[0].partition(b"\r\n\r\n")[0]:
        raise InputError("the form must contain only one file, as curl -F file=@photo.png sends it; parameters belong in the URL")
    return parts[0].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")


def decode(data: bytes, most: int) -> ImageFile:
    """Decodes an image of at most `most` pixels; its `kind` is a key of `TYPES`.

    npy: uint8, uint16, or float32 and float64 in [0, 1]; [H, W], [H, W, 1] or [H, W, 3].

    Raises:
        UnknownFormat, TooLarge: as `header`, before decoding.
        InputError: a damaged image, or one of a kind that rcnet does not read.
    """
    kind, width, height = header(data, most)
    if kind == "npy":
        return ImageFile(_read_npy(data), kind=kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as opened:
                if opened.size != (width, height):
                    raise InputError(f"the body is a {kind} with two different sizes: save it again")
        return imagefile.read(data)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"the body is a damaged {kind}") from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise InputError(f"the image cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _read_npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream, max_header_size=1000)
    except Exception as error:  # numpy raises nearly anything on a damaged header
        raise InputError("the npy array has a damaged header, or one of another version") from error
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)) or dtype.str[1:] not in ("u1", "u2", "f4", "f8"):
        raise InputError(
            f"the npy array is {dtype} of shape {list(shape)}: give uint8, uint16 or float in [0, 1], [H, W] or [H, W, 1 or 3]"
        )
    return shape, fortran, dtype


def _read_npy(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    shape, fortran, dtype = _read_npy_header(stream)
    values = data[stream.tell() :]
    if len(values) != math.prod(shape) * dtype.itemsize:
        raise InputError(f"the npy array has {len(values)} bytes of values and {math.prod(shape) * dtype.itemsize} announced")
    array = np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")
    array = np.ascontiguousarray(array, np.float32 if dtype.kind == "f" else dtype.newbyteorder("="))
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise InputError("the npy array has values that are not in [0, 1]: floats are brightness, 0 black and 1 white")
    return np.atleast_3d(array)


def work_of(image: ImageFile, **options: Any) -> Work:
    """The image as it is, with the options of `Work`."""
    return Work(image.pixels, white=float(imagefile.white_level(image)), **options)


def work_to_classify(image: ImageFile, top: int) -> Work:
    """The image upright, with 8 bits."""
    return Work(in_8_bits(image, imagefile.white_level(image)), top=top)


def answer_kind(accept: str, kind: str, offered: Mapping[str, str]) -> str:
    """The format among `offered` (by media type) that the Accept header prefers; by default `kind`, or the first.

    Raises:
        NotAcceptable: the header names only other formats.
    """
    same = kind if kind in offered.values() else next(iter(offered.values()))
    for name in _preferred(accept):
        matching = [other for media, other in offered.items() if name in (media, "*/*", f"{media.partition('/')[0]}/*")]
        if matching:
            return same if same in matching else matching[0]
    raise NotAcceptable(f"none of {accept[:100]} can be sent; valid: {', '.join(offered)}")


def _preferred(accept: str) -> list[str]:
    """The media types of an Accept header by descending quality, without those of quality 0."""
    ranked = []
    for part in accept.lower().split(",") if accept.strip() else ["*/*"]:
        name, *options = (text.strip() for text in part.split(";"))
        try:
            quality = float(next((text[2:] for text in options if text.startswith("q=")), "1"))
        except ValueError:
            quality = 0.0
        if quality > 0:
            ranked.append((quality, name))
    return [name for _, name in sorted(ranked, key=lambda pair: -pair[0])]


def encode(image: ImageFile, pixels: np.ndarray, kind: str) -> bytes:
    """The image with other pixels, as PNG, JPEG or npy.

    Raises:
        InputError: JPEG of more than 8 bits or with alpha.
    """
    if kind == "npy":
        stream = io.BytesIO()
        np.lib.format.write_array(stream, pixels, allow_pickle=False)
        return stream.getvalue()
    if pixels.dtype.kind == "f":
        pixels = np.rint(pixels * 255).astype(np.uint8)
    image = dataclasses.replace(image, pixels=pixels)
    if kind == "JPEG" and (image.alpha is not None or image.pixels.dtype != np.uint8):
        raise InputError("JPEG stores neither 16 bits nor alpha: ask for image/png")
    return imagefile.encode(image, kind)
