"""One image file to pixels and back: bit depth, alpha, EXIF, ICC profile and DPI come along."""

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
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from rcnet.errors import InputError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP"}
_VALID = "valid: one 8-bit or 16-bit gray or RGB image, with or without alpha, as PNG, JPEG, TIFF, WebP or BMP"
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B")
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WebP": {"lossless": True, "exact": True},
}
# TIFF keeps EXIF among its own tags: these say something about the picture, the others about the file.
_TAGS = ExifTags.Base
_DESCRIPTIVE = {_TAGS.ImageDescription, _TAGS.Make, _TAGS.Model, _TAGS.Orientation, _TAGS.Software, _TAGS.DateTime, _TAGS.Artist}
_DESCRIPTIVE |= {_TAGS.HostComputer, _TAGS.Copyright, _TAGS.ExifOffset, _TAGS.GPSInfo, _TAGS.Rating}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFile:
    """The pixels of a file, and what has to be written back with them.

    Attributes:
        pixels: gray or RGB, [H, W, 1 or 3] of uint8 or uint16, as stored: the EXIF orientation is not applied.
        alpha: [H, W] of the same dtype, or None.
        exif: the EXIF block, orientation included, without the prefix that JPEG gives it; empty if there is none.
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

    A palette image becomes RGB or RGBA, a black-and-white one L, and each is written back as that; the transparent colour
    of a PNG becomes alpha. Not kept: XMP, IPTC, comments, PNG gamma, the EXIF thumbnail of a TIFF, and the images that
    cameras append to a JPEG (MPO). 16-bit colour, and 16-bit gray with alpha, need OpenCV.

    Raises:
        InputError: no such file, not an image, a damaged or truncated one, more than twice `PIL.Image.MAX_IMAGE_PIXELS`,
            several frames or pages, or pixels that cannot be kept: CMYK, float, 32-bit; in a TIFF also premultiplied
            alpha, extra channels, and 16 bits as separate planes, as inverted gray or as gray with alpha.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise _refused(path, "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist")
        if path.stat().st_size == 0:
            raise _refused(path, "is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # not by name: Pillow 13 maps some named TIFFs into memory, and garbles those that their orientation turns
            with path.open("rb") as file, Image.open(file, formats=("PNG", "JPEG", "TIFF", "WEBP", "BMP")) as image:
                return _decode(path, image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise _refused(path, "is not such an image") from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise _refused(path, f"cannot be read: {error or type(error).__name__}") from error


def check_writable(path: str | Path, image: ImageFile) -> None:
    """Nothing if `write` accepts this path for this image; to ask before long work.

    Raises:
        InputError: an unknown suffix, a format without the image's bit depth, alpha or size, a folder in the file's place,
            or a parent folder that does not exist or cannot be written to.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path} cannot be written: unknown suffix {path.suffix!r}; valid: {', '.join(FORMATS)}")
    if lack := _lack(kind, image):
        valid = ", ".join(suffix for suffix, other in FORMATS.items() if not _lack(other, image))
        raise InputError(f"{path} cannot be written: {kind} holds {lack}; valid for this image: {valid}")
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        problem = "it is a folder" if os.path.isdir(path) else f"{folder} is no folder that exists and can be written to"
        raise InputError(f"{path} cannot be written: {problem}; valid: a file in an existing folder")


def write(path: str | Path, image: ImageFile) -> None:
    """Write an image in the format of the suffix: .png, .jpg, .jpeg, .tif, .tiff or .webp.

    PNG, TIFF and WebP are lossless; JPEG has quality 95 and full colour resolution. The file appears whole or not at all:
    until then an older one stays as it was. EXIF, ICC profile and DPI are kept, but WebP has no DPI, and no gray (which
    becomes RGB, without a gray ICC profile); JPEG has whole DPI up to 65535 and PNG whole dots per metre; TIFF gets the
    common EXIF tags (description, camera, orientation, date, author, GPS and all of the Exif directory), no thumbnail.

    Raises:
        InputError: what `check_writable` raises, before anything is written; or the file cannot be written.
    """
    check_writable(path, image)
    target = Path(os.path.realpath(path))  # a link is written through, not replaced
    temporary = target.with_name(f".rcnet-{secrets.token_hex(8)}.tmp")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = _encode(FORMATS[Path(path).suffix.lower()], image)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def white_level(image: ImageFile) -> int:
    """The value of white: 255 of 8 bits, of 16 bits the least 2**k - 1, k = 8, 10, 12, 14, 16, that no pixel exceeds.

    A camera of 12 bits fills a part of a 16-bit file.
    """
    if image.pixels.dtype == np.uint8:
        return 255
    return next(2**k - 1 for k in (8, 10, 12, 14, 16) if int(image.pixels.max()) < 2**k)


def as_float(image: ImageFile) -> np.ndarray:
    """The pixels as float32 [H, W, C] in [0, 1]."""
    return image.pixels.astype(np.float32) / np.float32(np.iinfo(image.pixels.dtype).max)


def from_float(image: ImageFile, values: np.ndarray) -> ImageFile:
    """The image with other pixels, float [H, W, C] in [0, 1], clamped and rounded to its bit depth.

    Raises:
        InputError: another shape than the image's pixels, or values that are not numbers.
    """
    dtype = image.pixels.dtype
    if values.shape != image.pixels.shape or np.isnan(values).any():
        raise InputError(f"values of shape {values.shape} cannot be pixels; valid: {image.pixels.shape}, none of them NaN")
    values = np.clip(values.astype(np.result_type(values, np.float32)), 0, 1)  # half precision cannot count to 65535
    return dataclasses.replace(image, pixels=np.rint(values * np.iinfo(dtype).max).astype(dtype))


def upright(image: ImageFile, values: np.ndarray) -> np.ndarray:
    """Values [H, W, C] at the image's pixels as they are to be seen: turned and mirrored as its EXIF orientation says."""
    exif = Image.Exif()
    try:
        exif.load(image.exif)
        orientation = exif.get(_TAGS.Orientation, 1)
    except Exception:  # a damaged block says nothing
        orientation = 1
    if orientation in (2, 3, 7, 8):
        values = values[:, ::-1]
    if orientation in (3, 4, 6, 7):
        values = values[::-1]
    return values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values


def _refused(path: Path, problem: str) -> InputError:
    return InputError(f"{path} {' '.join(problem.split())}; {_VALID}")


def _decode(path: Path, image: Image.Image) -> ImageFile:
    """All of an opened file."""
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise _refused(path, "is animated or has several pages")
    if image.mode not in _MODES:
        raise _refused(path, f"has pixels of mode {image.mode}, not {', '.join(_MODES)}")
    raw_mode = str(image.tile[0][3]) if isinstance(image, PngImagePlugin.PngImageFile) else ""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        deep, orientation = _is_deep_tiff(path, image), image.getexif().get(_TAGS.Orientation, 1)
        exif = _describing(image.getexif())
        samples = _as_stored(_samples(path, image, deep), orientation)
    else:
        samples = _samples(path, image, deep=raw_mode.endswith(";16B"))
        exif = image.info.get("exif") or (image.getexif().tobytes() if image.getexif() else b"")
    pixels, alpha = (samples[:, :, :-1], samples[:, :, -1]) if samples.shape[2] in (2, 4) else (samples, None)
    if raw_mode == "LA;16B":  # read as RGBA
        pixels = pixels[:, :, :1]
    key = image.info.get("transparency")
    if key is not None and alpha is None:  # Pillow widens gray of 1, 2 and 4 bits to 8, but not the key
        key = 255 * bool(key) if raw_mode == "1" else np.multiply(key, {"L;2": 85, "L;4": 17}.get(raw_mode, 1))
        alpha = np.where((pixels == key).all(axis=2), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    across, down = (float(dots) for dots in image.info.get("dpi") or (0, 0))
    return ImageFile(
        np.ascontiguousarray(pixels),
        None if alpha is None else np.ascontiguousarray(alpha),
        exif.removeprefix(b"Exif\0\0"),
        image.info.get("icc_profile") or b"",
        (across, down) if 1 < across < 1e8 and 1 < down < 1e8 else None,  # Pillow says 1 where a TIFF says nothing
    )


def _samples(path: Path, image: Image.Image, deep: bool) -> np.ndarray:
    """Pixels and alpha, [H, W, 1 to 4] of uint8 or uint16.

    Pillow reads 16-bit colour as 8-bit; that reading still shows that the file is whole, and checks the one by OpenCV.
    """
    deep_colour = deep and image.mode in ("RGB", "RGBA")
    if deep_colour:
        try:
            import cv2
        except ImportError as error:
            raise InputError(f"{path}: 16-bit colour needs OpenCV: pip install 'rcnet[16bit]'") from error
    image.load()
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    array = np.asarray(image.convert("L") if image.mode == "1" else image)
    if not deep_colour:
        return np.atleast_3d(array.astype(np.uint16 if deep else np.uint8))
    decoded: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    samples: np.ndarray = decoded[:, :, [2, 1, 0, 3][: array.shape[2]]]
    if samples.dtype != np.uint16 or not np.array_equal(samples >> 8, array):
        raise _refused(path, "is a 16-bit image that OpenCV and Pillow read differently")
    return samples


def _is_deep_tiff(path: Path, image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether a TIFF has 16 bits; `InputError` for the kinds that Pillow or OpenCV would change or get wrong."""
    tags = image.tag_v2
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if tags.get(TiffImagePlugin.EXTRASAMPLES, ()) not in ((), (2,)):
        raise _refused(path, "has premultiplied alpha or an extra channel that is not alpha")
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if bits > 8 and (bits != 16 or inverted or tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) != 1):
        raise _refused(path, f"has {bits}-bit pixels, and not 16-bit ones in one plane with 0 for black")
    return bool(bits == 16)


def _as_stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the EXIF orientation, which both Pillow and OpenCV apply to TIFFs."""
    array = array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array
    return array[:: -1 if orientation in (3, 4, 6, 7) else 1, :: -1 if orientation in (2, 3, 7, 8) else 1]


def _describing(exif: Image.Exif) -> bytes:
    """The EXIF block of what a TIFF directory says about the picture; the other tags are deleted."""
    for tag in set(exif) - _DESCRIPTIVE:
        del exif[tag]
    exif.bigtiff = False
    return exif.tobytes() if exif else b""


def _lack(kind: str, image: ImageFile) -> str:
    """What a format is limited to that keeps the image out, or the empty string."""
    if image.pixels.dtype != np.uint8 and kind in ("JPEG", "WebP"):
        return "only 8-bit pixels"
    if image.alpha is not None and kind == "JPEG":
        return "no alpha"
    if image.mode == "LA;16" and kind == "TIFF":
        return "no 16-bit gray with alpha that could be read back"
    side = {"JPEG": 65500, "WebP": 16383}.get(kind, 1 << 31)
    if max(image.pixels.shape) > side:
        return f"at most {side} pixels a side"
    return "at most 65527 bytes of EXIF" if kind == "JPEG" and len(image.exif) > 65527 else ""


def _encode(kind: str, image: ImageFile) -> bytes:
    """The whole file."""
    samples = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    if kind == "TIFF":
        return _encode_tiff(image, samples)
    if samples.dtype == np.uint16:
        return _encode_deep_png(image, samples)
    options = dict(_OPTIONS[kind])
    if image.exif:
        options["exif"] = b"Exif\0\0" + image.exif
    if image.icc and not (kind == "WebP" and image.icc[16:20] == b"GRAY"):
        options["icc_profile"] = image.icc
    if image.dpi and (kind != "JPEG" or max(image.dpi) <= 65535):
        options["dpi"] = image.dpi
    file = io.BytesIO()
    Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples).save(file, kind, **options)
    return file.getvalue()


def _encode_deep_png(image: ImageFile, samples: np.ndarray) -> bytes:
    """A 16-bit PNG, by hand to keep the metadata: each row minus the one above it (filter 2), deflated."""
    height, width, count = samples.shape
    rows = np.ascontiguousarray(samples, ">u2").view(np.uint8).reshape(height, -1)
    rows = np.insert(np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1])), 0, 2, axis=1)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)}
    if image.icc:
        chunks[b"iCCP"] = b"ICC Profile\0\0" + zlib.compress(image.icc)
    if image.dpi:
        chunks[b"pHYs"] = struct.pack(">IIB", *(round(dots / 0.0254) for dots in image.dpi), 1)
    if image.exif:
        chunks[b"eXIf"] = image.exif
    chunks |= {b"IDAT": zlib.compress(rows.tobytes()), b"IEND": b""}
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _encode_tiff(image: ImageFile, samples: np.ndarray) -> bytes:
    """A TIFF of one deflated strip. EXIF is a TIFF directory, so Pillow's writer of EXIF writes it, with the TIFF's own tags."""
    exif = Image.Exif()
    try:
        exif.load(image.exif)
        _describing(exif)
    except Exception:  # a damaged block: other formats take it as it is, a TIFF cannot
        exif = Image.Exif()
    exif.endian = "<"
    height, width, count = samples.shape
    little = np.diff(samples, axis=1, prepend=np.zeros_like(samples[:, :1])).astype(samples.dtype.newbyteorder("<"))
    strip = zlib.compress(little.tobytes())
    exif[TiffImagePlugin.IMAGEWIDTH], exif[TiffImagePlugin.IMAGELENGTH] = width, height
    exif[TiffImagePlugin.SAMPLESPERPIXEL], exif[TiffImagePlugin.BITSPERSAMPLE] = count, (samples.dtype.itemsize * 8,) * count
    exif[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if count < 3 else 2  # gray with 0 for black, or RGB
    exif[TiffImagePlugin.COMPRESSION], exif[TiffImagePlugin.PREDICTOR] = 8, 2  # deflate, difference to the left
    exif[TiffImagePlugin.ROWSPERSTRIP], exif[TiffImagePlugin.STRIPBYTECOUNTS] = height, len(strip)
    exif[TiffImagePlugin.STRIPOFFSETS] = 0  # from the end of the directory
    if image.alpha is not None:
        exif[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha, not premultiplied
    if image.icc:
        exif[TiffImagePlugin.ICCPROFILE] = image.icc
    if image.dpi:
        exif[TiffImagePlugin.X_RESOLUTION], exif[TiffImagePlugin.Y_RESOLUTION] = image.dpi
        exif[TiffImagePlugin.RESOLUTION_UNIT] = 2
    return exif.tobytes().removeprefix(b"Exif\0\0") + strip
