"""Images of requests and responses: PNG, JPEG, WebP and npy, as bytes. What is too large is refused before it is decoded."""

import dataclasses
import io
import math
import struct
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from rcnet.data import imagefile
from rcnet.data.imagefile import ImageFile
from rcnet.errors import InputError
from rcnet.serve.served import Work

TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp", "npy": "application/x-npy"}
ANSWERS = ("PNG", "JPEG", "npy", "JSON")  # what a denoised image can be sent back as
NPY = b"\x93NUMPY"


class TooLarge(InputError):
    """An image of more pixels, or a body of more bytes, than the server takes."""


class UnknownFormat(InputError):
    """Bytes that are none of the formats that the server takes, or a format that it does not make."""


def kind_of(data: bytes) -> str:
    """The format by the first bytes, a key of `TYPES`.

    Raises:
        UnknownFormat: none of them.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith(NPY):
        return "npy"
    raise UnknownFormat(f"the body is {'empty' if not data else 'no image that is known here'}; valid: {', '.join(TYPES)}")


def decode(data: bytes, most: int) -> ImageFile:
    """The image of a body, of at most so many pixels; its `kind` is a key of `TYPES`.

    npy: uint8, uint16, or float32 and float64 in [0, 1]; [H, W], [H, W, 1] or [H, W, 3].

    Raises:
        UnknownFormat: not PNG, JPEG, WebP or npy.
        TooLarge: more pixels; nothing was decoded then.
        InputError: a damaged image, or one of a kind that rcnet does not read.
    """
    kind = kind_of(data)
    if kind == "npy":
        return ImageFile(_read_npy(data, most), kind=kind)
    try:
        if kind == "WebP":
            _check_size(*_webp_size(data), most)  # Pillow would make a canvas of that size at once
        if kind == "PNG" and len(data) >= 24:
            width, height = struct.unpack(">II", data[16:24])
            _check_size(width, height, most)  # Pillow refuses more than MAX_IMAGE_PIXELS in its own words
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as opened:
                _check_size(*opened.size, most)
        return imagefile.read(data)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the image has more pixels than the {most} that this server takes: send a smaller one") from error
    except UnidentifiedImageError as error:
        raise InputError(f"the body is a damaged {kind}") from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise InputError(f"the image cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _check_size(width: int, height: int, most: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"the image has {width}x{height} pixels: give one or more")
    if width * height > most:
        raise TooLarge(f"the image has {width}x{height} pixels and this server takes at most {most}: send a smaller one")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the header."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _read_npy(data: bytes, most: int) -> np.ndarray:
    stream = io.BytesIO(data)
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
    _check_size(shape[1], shape[0], most)
    values = data[stream.tell() :]
    if len(values) != math.prod(shape) * dtype.itemsize:
        raise InputError(f"the npy array has {len(values)} bytes of values and {math.prod(shape) * dtype.itemsize} announced")
    array = np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")
    array = np.ascontiguousarray(array, np.float32 if dtype.kind == "f" else dtype.newbyteorder("="))
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise InputError("the npy array has values that are not in [0, 1]: floats are brightness, 0 black and 1 white")
    return np.atleast_3d(array)


def work_of(image: ImageFile, sigma: float | None = None, strength: float = 1.0) -> Work:
    """The image to be denoised."""
    return Work(image.pixels, sigma=sigma, strength=strength, white=_white(image))


def _white(image: ImageFile) -> float:
    """Its value: floats are in [0, 1], as `_read_npy` checks."""
    return 1.0 if image.pixels.dtype.kind == "f" else float(imagefile.white_level(image))


def work_to_classify(image: ImageFile, top: int) -> Work:
    """The image to be classified: upright, 8 bits."""
    pixels = imagefile.upright(image, image.pixels)
    if pixels.dtype != np.uint8:
        pixels = np.rint(255 * (pixels / _white(image)).clip(0, 1)).astype(np.uint8)
    return Work(np.ascontiguousarray(pixels), top=top)


def answer_kind(accept: str, kind: str) -> str:
    """One of `ANSWERS`: what the Accept header names first, or the format that came in, PNG for WebP.

    Raises:
        UnknownFormat: the header names only other formats.
    """
    offered = {TYPES["PNG"]: "PNG", TYPES["JPEG"]: "JPEG", TYPES["npy"]: "npy", "application/json": "JSON"}
    same = kind if kind in ANSWERS else "PNG"
    for part in accept.lower().split(",") if accept.strip() else ["*/*"]:
        name = part.split(";")[0].strip()
        if name in offered:
            return offered[name]
        if name in ("*/*", "application/*") or (name == "image/*" and same != "npy"):
            return same
        if name == "image/*":
            return "PNG"
    raise UnknownFormat(f"none of {accept[:100]} can be sent; valid: {', '.join(offered)}")


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
        raise InputError("JPEG holds neither 16 bits nor alpha: ask for image/png")
    return imagefile.encode(image, kind)
