"""One image file to numbers and back: bit depth, alpha, EXIF, ICC profile and DPI come along."""

import dataclasses
import io
import os
import secrets
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from rcnet.errors import InputError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP"}
_VALID = "valid: one 8-bit or 16-bit gray or RGB image, with or without alpha, as PNG, JPEG, TIFF, WebP or BMP"
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I;16L")
_SIDE = {"JPEG": 65500, "WebP": 16383}  # the longest side that these can hold
_JPEG_EXIF = 65527  # bytes of EXIF in one JPEG segment
# The tags of a TIFF directory, which is also where TIFF keeps its EXIF, that say something about the picture, not the file.
_B = ExifTags.Base
_DESCRIPTIVE = {_B.ImageDescription, _B.Make, _B.Model, _B.Orientation, _B.Software, _B.DateTime, _B.Artist, _B.HostComputer}
_DESCRIPTIVE |= {_B.Copyright, _B.ExifOffset, _B.GPSInfo, _B.Rating, _B.XPTitle, _B.XPComment, _B.XPAuthor, _B.XPKeywords}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFile:
    """The pixels of a file, and what has to be written back with them.

    Attributes:
        pixels: gray or RGB, [H, W, 1 or 3] of uint8 or uint16, as stored: the EXIF orientation is not applied.
        alpha: [H, W] of the same dtype, or None.
        exif: the EXIF block, orientation included, without the leading `Exif\\0\\0`; empty if there is none.
        icc: the ICC colour profile; empty if there is none.
        dpi: dots per inch across and down, or None.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes = b""
    icc: bytes = b""
    dpi: tuple[float, float] | None = None

    @property
    def mode(self) -> str:
        """What is written back: L, LA, RGB or RGBA, at 16 bits I;16, LA;16, RGB;16 or RGBA;16."""
        mode = ("L" if self.pixels.shape[2] == 1 else "RGB") + ("" if self.alpha is None else "A")
        return mode if self.pixels.dtype == np.uint8 else "I;16" if mode == "L" else f"{mode};16"


def read(path: str | Path) -> ImageFile:
    """The image of a PNG, JPEG, TIFF, WebP or BMP file.

    A palette image becomes RGB or RGBA and a black-and-white one L, and they are written back as that; the transparent
    colour of a PNG becomes alpha. Not kept: XMP, IPTC, text comments, thumbnails of a TIFF, PNG gamma, and what a camera's
    JPEG holds behind its picture (MPO). 16-bit colour needs OpenCV.

    Raises:
        InputError: no such file, not an image, a damaged or truncated one, more pixels than twice
            `PIL.Image.MAX_IMAGE_PIXELS`, more than one frame or page, or pixels of another kind (CMYK, float, 32-bit,
            and TIFFs with premultiplied alpha, extra channels, or at 16 bits separate planes or gray with alpha).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is a folder, not an image file; {_VALID}" if path.is_dir() else f"no file at {path}; {_VALID}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; {_VALID}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG", "TIFF", "WEBP", "BMP")) as image:
                return _decode(path, image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is no image of a known kind; {_VALID}") from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read: {reason}; {_VALID}") from error


def check_writable(path: str | Path, image: ImageFile) -> None:
    """Whether `write` would accept this path for this image, to ask before long work.

    Raises:
        InputError: an unknown suffix, a format without the image's bit depth, alpha or size, or a folder that does not
            exist or cannot be written to.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path} has no suffix of an image format that can be written; valid: {', '.join(FORMATS)}")
    if reason := _why_not(FORMATS[suffix], image):
        valid = [other for other, kind in FORMATS.items() if not _why_not(kind, image)]
        raise InputError(f"{path}: {FORMATS[suffix]} holds {reason}; valid for this image: {', '.join(valid)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; valid: the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is no folder; valid: a file in a folder that exists")
    if not os.access(path.resolve().parent, os.W_OK):
        raise InputError(f"{path} cannot be written: no permission to write in {path.parent}; valid: a folder you may write to")


def write(path: str | Path, image: ImageFile) -> None:
    """Write an image in the format of the suffix: .png, .jpg, .jpeg, .tif, .tiff or .webp.

    PNG, TIFF and WebP are lossless; JPEG has quality 95 and no chroma subsampling. The file appears whole or not at all:
    until then an older one stays as it was. EXIF, ICC profile and DPI are kept, except that WebP holds no DPI and no gray
    (which becomes RGB without its gray ICC profile), JPEG whole DPI up to 65535, PNG whole dots per metre, and TIFF the
    usual EXIF tags (description, camera, orientation, date, author, GPS and the Exif directory), without a thumbnail.

    Raises:
        InputError: what `check_writable` raises, before anything is written, or the file cannot be written.
    """
    check_writable(path, image)
    target = Path(path).resolve()  # writes through a link instead of replacing it
    temporary = target.with_name(f".rcnet-{secrets.token_hex(8)}.tmp")
    try:
        data = _encode(FORMATS[target.suffix.lower() if target.suffix.lower() in FORMATS else Path(path).suffix.lower()], image)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"{path} cannot be written: {' '.join(str(error).split())}") from error


def as_float(image: ImageFile) -> np.ndarray:
    """The pixels as float32 [H, W, C] in [0, 1]."""
    return image.pixels.astype(np.float32) / np.float32(np.iinfo(image.pixels.dtype).max)


def from_float(image: ImageFile, values: np.ndarray) -> ImageFile:
    """The image with its pixels replaced by float [H, W, C] in [0, 1], clamped and rounded to its bit depth.

    Raises:
        InputError: another shape than the image's pixels, or values that are not numbers.
    """
    if values.shape != image.pixels.shape:
        raise InputError(f"values of shape {values.shape} cannot replace pixels of shape {image.pixels.shape}")
    if np.isnan(values).any():
        raise InputError("values hold NaN; valid: numbers in [0, 1]")
    values = np.clip(values.astype(np.result_type(values, np.float32)), 0, 1)  # half precision cannot count to 65535
    dtype = image.pixels.dtype
    return dataclasses.replace(image, pixels=np.rint(values * np.iinfo(dtype).max).astype(dtype))


def _decode(path: Path, image: Image.Image) -> ImageFile:
    """The opened file, fully read."""
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{path} is animated or has several pages; {_VALID}")
    if image.mode not in _MODES:
        raise InputError(f"{path} has pixels of mode {image.mode}; {_VALID} (modes {', '.join(_MODES)})")
    raw_mode = image.tile[0][3] if image.format == "PNG" else ""
    deep = isinstance(raw_mode, str) and raw_mode.endswith(";16B")
    orientation, exif = 1, b""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        deep = _is_deep_tiff(path, image.tag_v2)
        orientation = image.getexif().get(_B.Orientation, 1)
        exif = _tiff_exif(image.getexif())
    samples = _deep_colour(path, image) if deep and image.mode in ("RGB", "RGBA") else _samples(image)
    samples = _as_stored(samples, orientation)
    if image.format != "TIFF":
        exif = image.info.get("exif") or (image.getexif().tobytes() if image.getexif() else b"")
    has_alpha = samples.shape[2] in (2, 4)
    pixels, alpha = (samples[:, :, :-1], samples[:, :, -1]) if has_alpha else (samples, None)
    if raw_mode == "LA;16B":
        pixels = pixels[:, :, :1]
    key = image.info.get("transparency")
    if alpha is None and key is not None and image.mode != "P":
        unit = {"L;2": 85, "L;4": 17}.get(raw_mode, 1)  # Pillow widens these pixels to 8 bits, but not the key
        alpha = np.where((pixels == np.multiply(key, unit)).all(axis=2), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    return ImageFile(
        np.ascontiguousarray(pixels),
        None if alpha is None else np.ascontiguousarray(alpha),
        exif.removeprefix(b"Exif\0\0"),
        image.info.get("icc_profile") or b"",
        _dpi(image.info.get("dpi")),
    )


def _samples(image: Image.Image) -> np.ndarray:
    """What Pillow reads right, [H, W, 1 to 4]."""
    image.load()
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    array = np.asarray(image.convert("L") if image.mode == "1" else image)
    array = array.astype(np.uint8 if array.dtype == np.uint8 else np.uint16)
    return array[:, :, None] if array.ndim == 2 else array


def _deep_colour(path: Path, image: Image.Image) -> np.ndarray:
    """16-bit [H, W, 3 or 4], which Pillow reads as 8-bit: its reading shows that the file is whole and checks OpenCV's."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(f"{path}: 16-bit colour needs OpenCV: pip install 'rcnet[16bit]'") from error
    image.load()
    coarse = np.asarray(image)
    samples = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        raise InputError(f"{path}: OpenCV cannot read this 16-bit image; {_VALID}")
    samples = samples[:, :, [2, 1, 0, 3][: coarse.shape[2]]]
    if not np.array_equal(samples >> 8, coarse):
        raise InputError(f"{path}: OpenCV and Pillow read this 16-bit image differently; {_VALID}")
    return np.asarray(samples)


def _is_deep_tiff(path: Path, tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    """Whether a TIFF has 16 bits, or `InputError` for the kinds that Pillow or OpenCV get wrong."""
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    planes, photometric = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1), tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    if tags.get(TiffImagePlugin.EXTRASAMPLES, ()) not in ((), (2,)):
        raise InputError(f"{path} has premultiplied alpha or an extra channel of no stated kind; {_VALID}")
    if bits > 8 and (bits != 16 or planes != 1 or photometric == 0):
        raise InputError(f"{path} has {bits}-bit pixels stored inverted, in separate planes or below 16 bits; {_VALID}")
    return bool(bits == 16)


def _as_stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the EXIF orientation, which Pillow and OpenCV apply to TIFFs."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return array[::down, ::across]


def _tiff_exif(exif: Image.Exif) -> bytes:
    """The EXIF block of the descriptive tags of a TIFF directory."""
    for tag in set(exif) - _DESCRIPTIVE:
        del exif[tag]
    exif.bigtiff = False
    return exif.tobytes() if exif else b""


def _dpi(dpi: Any) -> tuple[float, float] | None:
    """A resolution that makes sense, or None."""
    across, down = (float(value) for value in dpi or (0, 0))
    return (across, down) if 0 < across < 1e8 and 0 < down < 1e8 else None


def _why_not(kind: str, image: ImageFile) -> str:
    """What a format can hold and the image is not, or the empty string."""
    deep = image.pixels.dtype != np.uint8
    if deep and kind in ("JPEG", "WebP"):
        return "8-bit pixels only"
    if image.alpha is not None and kind == "JPEG":
        return "no alpha"
    if image.mode == "LA;16" and kind == "TIFF":
        return "no 16-bit gray with alpha that could be read back"
    if max(image.pixels.shape[:2]) > _SIDE.get(kind, 1 << 31):
        return f"at most {_SIDE[kind]} pixels a side"
    return "at most 64 KB of EXIF" if kind == "JPEG" and len(image.exif) > _JPEG_EXIF else ""


def _encode(kind: str, image: ImageFile) -> bytes:
    """The whole file as bytes."""
    samples = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    if kind == "TIFF":
        return _encode_tiff(image, samples)
    if samples.dtype == np.uint16:
        return _encode_deep_png(image, samples)
    options: dict[str, Any] = {
        "PNG": {},
        "JPEG": {"quality": 95, "subsampling": "4:4:4"},
        "WebP": {"lossless": True, "exact": True},
    }[kind]
    if image.exif:
        options["exif"] = b"Exif\0\0" + image.exif
    if image.icc and not (kind == "WebP" and image.icc[16:20] == b"GRAY"):
        options["icc_profile"] = image.icc
    if image.dpi and (kind == "PNG" or max(image.dpi) <= 65535):
        options["dpi"] = image.dpi
    file = io.BytesIO()
    Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples).save(file, kind, **options)
    return file.getvalue()


def _encode_deep_png(image: ImageFile, samples: np.ndarray) -> bytes:
    """A 16-bit PNG: each row is stored as its difference to the one above (filter 2), then deflated."""
    height, width, count = samples.shape
    rows = np.ascontiguousarray(samples, ">u2").view(np.uint8).reshape(height, -1)
    rows = np.insert(np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1])), 0, 2, axis=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0))]
    if image.icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(image.icc)))
    if image.dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in image.dpi), 1)))
    if image.exif:
        chunks.append((b"eXIf", image.exif))
    chunks += [(b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _encode_tiff(image: ImageFile, samples: np.ndarray) -> bytes:
    """A TIFF of one deflated strip. An EXIF block is a TIFF directory too, so Pillow's writer of those makes the header."""
    exif = Image.Exif()
    try:
        exif.load(image.exif)
        _tiff_exif(exif)
    except Exception:  # a damaged block, which other formats take as it is
        exif = Image.Exif()
    exif.endian = "<"
    height, width, count = samples.shape
    differences = np.diff(samples, axis=1, prepend=np.zeros_like(samples[:, :1]))
    strip = zlib.compress(differences.astype(samples.dtype.newbyteorder("<")).tobytes())
    exif[TiffImagePlugin.IMAGEWIDTH], exif[TiffImagePlugin.IMAGELENGTH] = width, height
    exif[TiffImagePlugin.BITSPERSAMPLE] = (samples.dtype.itemsize * 8,) * count
    exif[TiffImagePlugin.SAMPLESPERPIXEL] = count
    exif[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if count < 3 else 2
    exif[TiffImagePlugin.COMPRESSION] = 8
    exif[TiffImagePlugin.PREDICTOR] = 2
    exif[TiffImagePlugin.PLANAR_CONFIGURATION] = 1
    exif[TiffImagePlugin.ROWSPERSTRIP] = height
    exif[TiffImagePlugin.STRIPBYTECOUNTS] = len(strip)
    exif[TiffImagePlugin.STRIPOFFSETS] = 0  # counted from the end of the directory
    if image.alpha is not None:
        exif[TiffImagePlugin.EXTRASAMPLES] = 2
    if image.icc:
        exif[TiffImagePlugin.ICCPROFILE] = image.icc
    if image.dpi:
        exif[TiffImagePlugin.X_RESOLUTION], exif[TiffImagePlugin.Y_RESOLUTION] = image.dpi
        exif[TiffImagePlugin.RESOLUTION_UNIT] = 2
    return exif.tobytes().removeprefix(b"Exif\0\0") + strip
