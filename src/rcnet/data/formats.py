"""The formats of image files and what each can store, and an image in memory. One table for all messages and help."""

import dataclasses
import functools
import importlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features

from rcnet.errors import InputError


class Format(NamedTuple):
    """A format of image files.

    Attributes:
        suffixes: its file name suffixes.
        modes: the values of `ImageFile.mode` that it can store.
        keeps: the attributes of `ImageFile` that it can store; `own` only from a file of the same format.
        plugin: its name in Pillow.
        side: the maximum width and height in pixels.
        options: for Pillow's writer.
    """

    suffixes: tuple[str, ...]
    modes: str
    keeps: tuple[str, ...] = ()
    plugin: str = ""
    side: int = 1 << 31
    options: dict[str, Any] = {}  # noqa: RUF012


_8BIT, _16BIT = "L LA RGB RGBA", "I;16 LA;16 RGB;16 RGBA;16"
_FLOAT = "F LA;F RGB;F RGBA;F F16 LA;F16 RGB;F16 RGBA;F16"
_COMMON = ("exif", "icc", "xmp")
FORMATS = {
    "PNG": Format((".png",), f"{_8BIT} {_16BIT}", (*_COMMON, "density", "own")),
    "JPEG": Format(
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        "L RGB",
        (*_COMMON, "density", "own"),
        side=65500,
        options={"quality": 95, "subsampling": "4:4:4"},
    ),
    "TIFF": Format((".tif", ".tiff"), f"{_8BIT} {_16BIT} {_FLOAT}", (*_COMMON, "density", "own")),
    "WebP": Format((".webp",), _8BIT, _COMMON, side=16383, options={"lossless": True, "exact": True}),
    "BMP": Format((".bmp",), "L RGB", ("density",)),
    "PNM": Format((".ppm", ".pgm", ".pnm"), "L RGB I;16 RGB;16", plugin="PPM"),
    "JPEG 2000": Format((".jp2",), f"{_8BIT} I;16", plugin="JPEG2000"),
    "AVIF": Format((".avif",), _8BIT, _COMMON, side=65536, options={"quality": 95, "subsampling": "4:4:4"}),
    "HEIC": Format((".heic", ".heif"), _8BIT, _COMMON, "HEIF", 16384, {"quality": 95, "subsampling": "4:4:4"}),
}
# What a file starts with; TIFF: of either byte order, BigTIFF too.
SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "npy": (b"\x93NUMPY",),
}
SUFFIXES = {suffix: kind for kind, form in FORMATS.items() for suffix in form.suffixes}
KINDS = {form.plugin or kind.upper(): kind for kind, form in FORMATS.items()} | {"MPO": "JPEG"}
NAMES = f"{', '.join([*FORMATS][:-1])} and {[*FORMATS][-1]}"
_VALID = f"valid: one gray or RGB image, with or without alpha, as {NAMES}"
LABELS = {"exif": "EXIF", "icc": "the ICC profile", "xmp": "XMP", "density": "the resolution"}
# Copied unchanged between files of the same format only: chunks of a PNG, segments of a JPEG, tags of a TIFF.
CHUNKS = {"tEXt": "text", "zTXt": "text", "iTXt": "text", "gAMA": "gamma", "cHRM": "the primaries", "sRGB": ""}
CHUNKS |= {"cICP": "the colour space (cICP)", "mDCV": "HDR levels", "cLLI": "HDR levels"}
SEGMENTS = {"COM": "comments", "APP13": "IPTC"}
OWN_TAGS = {269: "the document's name", 285: "the page's name", 33723: "IPTC", 34377: "Photoshop's resources"}
OWN_TAGS |= dict.fromkeys((50838, 50839), "ImageJ's metadata")
OWN_TAGS |= dict.fromkeys((33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113), "the place on a map (GeoTIFF)")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFile:
    """The pixels of a file and the metadata to write back with them.

    Attributes:
        pixels: gray or RGB, [H, W, 1 or 3] of uint8, uint16, float16 or float32, as stored: the EXIF orientation is not applied.
        alpha: [H, W] of the same dtype, or None.
        exif: the EXIF block, including the orientation, without the prefix of JPEG; empty if there is none.
        icc: the ICC colour profile; empty if there is none.
        density: pixels per `unit` across and down, or None.
        unit: inch, cm, or empty if only the ratio is known.
        xmp: the XMP packet; empty if there is none.
        kind: the format of the file that was read, a key of `FORMATS`; else empty.
        own: metadata specific to that format: (name of the chunk or segment, or number of the tag; value).
        coding: the encoder settings of a lossy file, as options of Pillow's writer.
        notes: what reading changed or left out, each a short sentence.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes = b""
    icc: bytes = b""
    density: tuple[float, float] | None = None
    unit: str = "inch"
    xmp: bytes = b""
    kind: str = ""
    own: tuple[tuple[str | int, Any], ...] = ()
    coding: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        """The mode to write: L, LA, RGB or RGBA; 16-bit I;16, LA;16, RGB;16 or RGBA;16; float F, LA;F, RGB;F or RGBA;F; 16-bit
        float F16, LA;F16, RGB;F16 or RGBA;F16.
        """
        mode = ("L" if self.pixels.shape[2] == 1 else "RGB") + ("" if self.alpha is None else "A")
        deep = {"u1": "", "u2": ";16", "f2": ";F16", "f4": ";F"}[self.pixels.dtype.str[1:]]
        return {"L;16": "I;16", "L;F": "F", "L;F16": "F16"}.get(mode + deep, mode + deep)


def kind_of(data: bytes) -> str:
    """PNG, JPEG, WebP, TIFF or npy by the first bytes of a file; empty for all others.

    Example:
        >>> kind_of(b"RIFF....WEBP"), kind_of(b"GIF89a")
        ('WebP', '')
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for kind, starts in SIGNATURES.items() if data.startswith(starts)), "")


def unreadable(name: str, problem: str) -> InputError:
    """The error for a file that cannot be read."""
    return InputError(f"{name} {' '.join(problem.split())}; {_VALID}")


@functools.cache
def load_heif() -> None:
    """Registers these formats in Pillow, including HEIC if pillow-heif is installed; its `init` imports fifty plugins more."""
    for plugin in ("Avif", "Bmp", "Jpeg", "Jpeg2K", "Png", "Ppm", "Tiff", "WebP"):
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener(thumbnails=False)


def missing_package(kind: str) -> str:
    """How to install a missing package for a format, or the empty string."""
    load_heif()
    if kind == "HEIC" and "HEIF" not in Image.SAVE:
        return "HEIC needs pillow-heif: pip install 'rcnet[heic]'"
    if kind == "AVIF" and "AVIF" not in Image.SAVE:
        return "AVIF needs Pillow 11.3 or newer, as its wheels are: pip install --upgrade pillow"
    if kind == "JPEG 2000" and not features.check("jpg_2000"):
        return "JPEG 2000 needs a Pillow with OpenJPEG, as its wheels are: pip install --upgrade pillow"
    return ""
