"""One image file to pixels and back: bit depth, alpha and metadata come along, or a note says what does not."""

import dataclasses
import functools
import io
import math
import os
import re
import secrets
import struct
import warnings
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError, features

from rcnet.data import encoding
from rcnet.errors import InputError, unknown


class Format(NamedTuple):
    """One kind of image file.

    Attributes:
        suffixes: of its names.
        modes: the values of `ImageFile.mode` that it holds.
        keeps: the attributes of `ImageFile` that it keeps; `own` only of a file of its kind.
        plugin: what Pillow calls it.
        side: the most pixels a side.
        options: for Pillow's writer.
    """

    suffixes: tuple[str, ...]
    modes: str
    keeps: tuple[str, ...] = ()
    plugin: str = ""
    side: int = 1 << 31
    options: dict[str, Any] = {}  # noqa: RUF012


_8BIT, _16BIT = "L LA RGB RGBA", "I;16 LA;16 RGB;16 RGBA;16"
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
    "TIFF": Format((".tif", ".tiff"), f"{_8BIT} {_16BIT} F LA;F RGB;F RGBA;F", (*_COMMON, "density", "own")),
    "WebP": Format((".webp",), _8BIT, _COMMON, side=16383, options={"lossless": True, "exact": True}),
    "BMP": Format((".bmp",), "L RGB", ("density",)),
    "PNM": Format((".ppm", ".pgm", ".pnm"), "L RGB I;16 RGB;16", plugin="PPM"),
    "JPEG 2000": Format((".jp2",), f"{_8BIT} I;16", plugin="JPEG2000"),
    "AVIF": Format((".avif",), _8BIT, _COMMON, side=65536, options={"quality": 95, "subsampling": "4:4:4"}),
    "HEIC": Format((".heic", ".heif"), _8BIT, _COMMON, "HEIF", 16384, {"quality": 95, "subsampling": "4:4:4"}),
}
SUFFIXES = {suffix: kind for kind, form in FORMATS.items() for suffix in form.suffixes}
_KINDS = {form.plugin or kind.upper(): kind for kind, form in FORMATS.items()} | {"MPO": "JPEG"}
NAMES = f"{', '.join([*FORMATS][:-1])} and {[*FORMATS][-1]}"
_VALID = f"valid: one gray or RGB image, with or without alpha, as {NAMES}"
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "CMYK")
_LABELS = {"exif": "EXIF", "icc": "the ICC profile", "xmp": "XMP", "density": "the resolution"}
# What only files of the same kind keep, as it stands: chunks of a PNG, segments of a JPEG, tags of a TIFF.
_CHUNKS = {"tEXt": "text", "zTXt": "text", "iTXt": "text", "gAMA": "gamma", "cHRM": "the primaries", "sRGB": ""}
_CHUNKS |= {"cICP": "the colour space (cICP)", "mDCV": "HDR levels", "cLLI": "HDR levels"}
_SEGMENTS = {"COM": "comments", "APP13": "IPTC"}
_OTHER_SEGMENTS = (b"JFIF", b"JFXX", b"Exif\0", b"http://ns.adobe.com/xap/1.0/", b"ICC_PROFILE", b"Adobe", b"MPF\0")
_TAGS = ExifTags.Base
_OWN_TAGS = {269: "the document's name", 285: "the page's name", 33723: "IPTC", 34377: "Photoshop's resources"}
_OWN_TAGS |= dict.fromkeys((50838, 50839), "ImageJ's metadata")
_OWN_TAGS |= dict.fromkeys((33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113), "the place on a map (GeoTIFF)")
_UNITS = {1: "", 2: "inch", 3: "cm"}  # of TIFF


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFile:
    """The pixels of a file, and what has to be written back with them.

    Attributes:
        pixels: gray or RGB, [H, W, 1 or 3] of uint8, uint16 or float32, as stored: the EXIF orientation is not applied.
        alpha: [H, W] of the same dtype, or None.
        exif: the EXIF block, orientation included, without the prefix that JPEG gives it; empty if there is none.
        icc: the ICC colour profile; empty if there is none.
        density: pixels per `unit` across and down, or None.
        unit: inch, cm, or empty: only the ratio counts, or a description says what the unit is.
        xmp: the XMP packet; empty if there is none.
        kind: the format it was read from, a key of `FORMATS`; empty if it was not read.
        own: what only that format keeps: (name of the chunk or segment, or number of the tag; value).
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
    notes: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        """What is written back: L, LA, RGB or RGBA; of 16 bits I;16, LA;16, RGB;16 or RGBA;16; of floats F, LA;F, RGB;F, RGBA;F."""
        mode = ("L" if self.pixels.shape[2] == 1 else "RGB") + ("" if self.alpha is None else "A")
        deep = {1: "", 2: ";16", 4: ";F"}[self.pixels.dtype.itemsize]
        return {"L;16": "I;16", "L;F": "F"}.get(mode + deep, mode + deep)


def read(source: str | Path | bytes | IO[bytes]) -> ImageFile:
    """The image of a file of one of the `FORMATS`: of its path, its bytes, or a file object at its start.

    `ImageFile.notes` says what is not as it was: a palette becomes RGB or RGBA and black-and-white L; CMYK becomes RGB, by
    its ICC profile if it has one; a TIFF's reduced copies and the other pictures of a JPEG (MPO) or a HEIC are left out. The
    transparent colour of a PNG becomes alpha. Not kept, and not noted: the EXIF thumbnail of a TIFF. 16-bit PNG of colour or
    with alpha, and 16-bit or float TIFF other than plain 16-bit gray, need tifffile and imagecodecs; HEIC needs pillow-heif.

    Raises:
        InputError: no such file, not an image, a damaged or truncated one, more than twice `PIL.Image.MAX_IMAGE_PIXELS`,
            several frames or pages, or pixels that cannot be kept: 32-bit integers, CIELAB, premultiplied alpha, extra channels,
            floats that are not numbers or not brightness.
    """
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "the image"))
    try:
        data = _bytes(name, source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(name, data)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise _refused(name, "is not such an image") from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise _refused(name, f"cannot be read: {error or type(error).__name__}") from error


def check_writable(path: str | Path, image: ImageFile) -> tuple[str, ...]:
    """What `write` would not keep of this image at this path, each a short sentence; to ask before long work.

    Raises:
        InputError: an unknown suffix, a format without the image's bit depth, alpha or size, or whose writer is not installed,
            a folder in the file's place, or a parent folder that does not exist or cannot be written to.
    """
    path = Path(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path} cannot be written: unknown suffix {path.suffix!r}; valid: {', '.join(SUFFIXES)}")
    losses = check_kind(kind, image, str(path))
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        problem = "it is a folder" if os.path.isdir(path) else f"{folder} is no folder that exists and can be written to"
        raise InputError(f"{path} cannot be written: {problem}; valid: a file in an existing folder")
    return losses


def check_kind(kind: str, image: ImageFile, name: str = "the image") -> tuple[str, ...]:
    """As `check_writable`, for a format and no path."""
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if lack := _lack(kind, image):
        valid = ", ".join(suffix for suffix, other in SUFFIXES.items() if not _lack(other, image))
        raise InputError(f"{name} cannot be written: {kind} {lack}; valid for this image: {valid}")
    lost = [label for field, label in _LABELS.items() if getattr(image, field) and not _keeps(kind, field, image)]
    if image.kind != kind:
        labels: dict[Any, str] = {**_CHUNKS, **_SEGMENTS, **_OWN_TAGS}
        lost += [labels.get(key, f"the segment {key}") for key, _ in image.own]
    lost = [label for label in dict.fromkeys(lost) if label]
    gray = ("WebP has no gray: it becomes RGB",) if kind == "WebP" and image.pixels.shape[2] == 1 else ()
    return (*gray, f"{kind} does not keep {', '.join(lost)}") if lost else gray


def write(path: str | Path, image: ImageFile) -> None:
    """Write an image in the format of the suffix, one of `SUFFIXES`.

    The file appears whole or not at all: until then an older one stays as it was.

    Raises:
        InputError: what `check_writable` raises, before anything is written; or the file cannot be written.
    """
    check_writable(path, image)
    target = Path(os.path.realpath(path))  # a link is written through, not replaced
    temporary = target.with_name(f".rcnet-{secrets.token_hex(8)}.tmp")
    try:
        data = _encode(SUFFIXES[Path(path).suffix.lower()], image)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def encode(image: ImageFile, kind: str) -> bytes:
    """The bytes of a file of one of the `FORMATS`.

    PNG, TIFF, WebP, BMP, PNM and JPEG 2000 are lossless; JPEG, AVIF and HEIC have quality 95 and full colour resolution. JPEG
    has whole dots per inch or cm up to 65535, PNG and BMP whole dots per metre; TIFF gets the common EXIF tags (description,
    camera, orientation, date, author, GPS and all of the Exif directory), no thumbnail. `check_kind` says what is not kept.

    Raises:
        InputError: what `check_kind` raises; or the encoder fails.
    """
    check_kind(kind, image)
    try:
        return _encode(kind, image)
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"the image cannot be written as {kind}: {error}") from error


def white_level(image: ImageFile) -> int:
    """The value of white: 255 of 8 bits, of 16 bits the least 2**k - 1, k = 8, 10, 12, 14, 16, that no pixel exceeds.

    A camera of 12 bits fills a part of a 16-bit file. Of floats 1 if no pixel exceeds 2, else the largest, rounded up.
    """
    if image.pixels.dtype == np.uint8:
        return 255
    top = float(image.pixels.max())
    if image.pixels.dtype == np.uint16:
        return next(2**k - 1 for k in (8, 10, 12, 14, 16) if top < 2**k)
    return 1 if top <= 2 else math.ceil(top)


def as_float(image: ImageFile, white: float | None = None) -> np.ndarray:
    """The pixels as float32 [H, W, C]: 0 is black and 1 is white, the value `white`, `white_level(image)` unless given."""
    return image.pixels.astype(np.float32) / np.float32(white or white_level(image))


def from_float(image: ImageFile, values: np.ndarray, white: float | None = None) -> ImageFile:
    """The image with other pixels, float [H, W, C], 1 for the value `white`, as `as_float` gives them.

    Integer pixels are rounded, and clamped from 0 to white or the largest pixel of the image, whichever is more.

    Raises:
        InputError: another shape than the image's pixels, or values that are not numbers.
    """
    dtype, white = image.pixels.dtype, white or white_level(image)
    if values.shape != image.pixels.shape or np.isnan(values).any():
        raise InputError(f"values of shape {values.shape} cannot be pixels; valid: {image.pixels.shape}, none of them NaN")
    values = values.astype(np.result_type(values, np.float32)) * white  # half precision cannot count to 65535
    if dtype.kind == "u":
        values = np.rint(np.clip(values, 0, max(white, image.pixels.max())))
    return dataclasses.replace(image, pixels=values.astype(dtype))


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


def _refused(name: str, problem: str) -> InputError:
    return InputError(f"{name} {' '.join(problem.split())}; {_VALID}")


def _bytes(name: str, source: str | Path | bytes | IO[bytes]) -> bytes:
    """The whole file; `InputError` if there is none, or nothing in it."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise _refused(name, "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist")
        source = path.read_bytes()
    data = source if isinstance(source, bytes) else source.read()
    if not data:
        raise _refused(name, "is empty")
    return data


def _decode(name: str, data: bytes) -> ImageFile:
    """All of a file."""
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _decode_tiff(name, data)
    if deep := re.match(rb"P([2356])#\s(\d+)#\s(\d+)#\s(\d+)\s".replace(rb"#\s", rb"(?:\s|#[^\n]*\n)+"), data):
        gray, plain, width, height, top = deep[1] in b"25", deep[1] in b"23", *map(int, deep.groups()[1:])
        if top > 255:
            shape, rest = (height, width, 1 if gray else 3), data[deep.end() :]
            values = np.array(rest.split(), ">u2") if plain else np.frombuffer(rest[: 2 * math.prod(shape)], ">u2")
            return ImageFile(np.rint(values.reshape(shape) * (65535 / top)).astype(np.uint16), kind="PNM")
    with Image.open(io.BytesIO(data), formats=_plugins(name, data)) as image:
        kind, notes = _KINDS[str(image.format)], []
        frames = getattr(image, "n_frames", 1)
        if image.format == "MPO":
            notes.append(f"only the first of its {frames} pictures is kept")
        elif kind == "HEIC":
            if frames > 1 or image.info.get("aux") or image.info.get("depth_images"):
                notes.append("only its main picture is kept")
        elif frames > 1:
            raise _refused(name, f"is animated or has several pages: take one of its {frames} frames")
        if (bits := _bits(kind, data, image)) > 8 and image.mode != "I;16":
            notes.append(f"its {bits} bits become 8")
        image.load()
        exif = image.info.get("exif") or (image.getexif().tobytes() if image.getexif() else b"")
        chunks = list(encoding.png_chunks(data)) if kind == "PNG" else []
        raw_mode = str(dict(chunks)["IHDR"][8:10].hex()) if chunks else ""  # bits and colour type
        icc = image.info.get("icc_profile") or b""
        if raw_mode in ("1002", "1004", "1006"):
            samples = _deep_png(name, data, image)
        else:
            samples, icc = _samples(image, icc, notes)
        pixels, alpha = (samples[:, :, :-1], samples[:, :, -1]) if samples.shape[2] in (2, 4) else (samples, None)
        key = image.info.get("transparency")
        if key is not None and alpha is None:  # Pillow widens gray of 1, 2 and 4 bits to 8, but not the key
            key = 255 * bool(key) if raw_mode == "0100" else np.multiply(key, {"0200": 85, "0400": 17}.get(raw_mode, 1))
            alpha = np.where((pixels == key).all(axis=2), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
        own = [(key, value) for key, value in chunks if key in _CHUNKS and not value.startswith(encoding.XMP_OF_PNG)]
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            own = [(key, value) for key, value in image.applist if not value.startswith(_OTHER_SEGMENTS)]
        density, unit = image.info.get("dpi"), "inch"
        if "jfif_unit" in image.info:
            density, unit = image.info["jfif_density"], ("", "inch", "cm")[image.info["jfif_unit"] % 3]
        elif "aspect" in image.info:
            density, unit = image.info["aspect"], ""
        xmp = image.info.get("xmp") or b""
        return ImageFile(
            np.ascontiguousarray(pixels),
            None if alpha is None else np.ascontiguousarray(alpha),
            exif.removeprefix(b"Exif\0\0"),
            icc,
            *_density(density, unit),
            xmp.encode() if isinstance(xmp, str) else xmp,
            kind,
            tuple(own),
            tuple(notes),
        )


def _plugins(name: str, data: bytes) -> list[str]:
    """Pillow's names of the formats that can be read; `InputError` if the one of this file needs something else."""
    _heif()
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc") and (missing := _missing("HEIC")):
        raise InputError(f"{name} cannot be read: {missing}")
    if brand in (b"avif", b"avis") and (missing := _missing("AVIF")):
        raise InputError(f"{name} cannot be read: {missing}")
    return [form.plugin or kind for kind, form in FORMATS.items() if (form.plugin or kind.upper()) in Image.OPEN]


@functools.cache
def _heif() -> None:
    """Makes all of Pillow's formats known to it, HEIC among them if it is installed."""
    Image.init()
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener(thumbnails=False)


def _missing(kind: str) -> str:
    """What to install for a format, or the empty string."""
    _heif()
    if kind == "HEIC" and "HEIF" not in Image.SAVE:
        return "HEIC needs pillow-heif: pip install 'rcnet[heic]'"
    if kind == "AVIF" and "AVIF" not in Image.SAVE:
        return "AVIF needs Pillow 11.3 or newer, as its wheels are: pip install --upgrade pillow"
    if kind == "JPEG 2000" and not features.check("jpg_2000"):
        return "JPEG 2000 needs a Pillow with OpenJPEG, as its wheels are: pip install --upgrade pillow"
    return ""


def _bits(kind: str, data: bytes, image: Image.Image) -> int:
    """Of a channel of a file that Pillow may read as 8 bits."""
    if kind == "HEIC":
        return int(image.info.get("bit_depth", 8))
    if kind == "AVIF" and (at := data.find(b"av1C")) > 0:
        return {0: 8, 2: 10, 3: 12}.get(data[at + 6] >> 5 & 3, 8)
    if kind == "JPEG 2000" and (at := data.find(b"\xff\x4f\xff\x51")) >= 0:
        return (data[at + 42] & 127) + 1
    return 8


def _samples(image: Image.Image, icc: bytes, notes: list[str]) -> tuple[np.ndarray, bytes]:
    """Pixels and alpha, [H, W, 1 to 4] of uint8 or uint16, and the ICC profile that goes with them."""
    if image.mode == "CMYK":
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            image, icc = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB") or image, srgb.tobytes()
            notes.append("CMYK became sRGB by its ICC profile")
        except (OSError, ImageCms.PyCMSError):
            image, icc = image.convert("RGB"), b""
            notes.append("CMYK became RGB without an ICC profile: the colours may differ")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        notes.append(f"its palette became {image.mode}")
    elif image.mode == "1":
        image = image.convert("L")
        notes.append("black and white became gray")
    array = np.asarray(image)
    return np.atleast_3d(array.astype(np.uint16 if array.dtype.itemsize > 1 else np.uint8)), icc


def _deep_png(name: str, data: bytes, image: Image.Image) -> np.ndarray:
    """Pillow reads it as 8-bit: that still shows that the file is whole, and checks the other reader."""
    try:
        import imagecodecs
    except ImportError as error:
        raise InputError(f"{name}: 16-bit colour needs imagecodecs: pip install 'rcnet[16bit]'") from error
    samples: np.ndarray = imagecodecs.png_decode(data)
    seen = np.asarray(image)[:, :, [0, 3] if samples.shape[2] == 2 else slice(samples.shape[2])]
    if samples.dtype != np.uint16 or not np.array_equal(samples[:, :, : seen.shape[2]] >> 8, seen):
        raise _refused(name, "is a 16-bit image that imagecodecs and Pillow read differently")
    return samples[:, :, : seen.shape[2]]


def _density(density: Any, unit: str) -> tuple[tuple[float, float] | None, str]:
    across, down = map(float, density or (0, 0))
    said = 0 < across < 1e8 and 0 < down < 1e8 and (across, down, unit) != (1, 1, "")
    return ((across, down), unit) if said else (None, "inch")


def _decode_tiff(name: str, data: bytes) -> ImageFile:
    """All of a TIFF: its directories by Pillow, its pixels by Pillow or tifffile."""
    file, pages, at = io.BytesIO(data), [], 0
    first = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:4] in (b"+\0", b"\0+") else data[:8])
    offsets = [first.next]
    while offsets[-1] and offsets[-1] not in offsets[:-1]:
        pages.append(TiffImagePlugin.ImageFileDirectory_v2(data[:16] if first._bigtiff else data[:8]))
        file.seek(offsets[-1])
        pages[-1].load(file)
        offsets.append(pages[-1].next)
    index, notes = _page(name, pages)
    tags = pages[index]
    if tags.get(TiffImagePlugin.EXTRASAMPLES, ()) not in ((), (2,)):
        raise _refused(name, "has premultiplied alpha or an extra channel that is not alpha")
    exif = Image.Exif()
    exif.endian, exif.bigtiff = tags._endian, tags._bigtiff
    exif.load_from_fp(file, offsets[index])
    bits, inverted = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))), tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    icc = tags.get(TiffImagePlugin.ICCPROFILE) or b""
    if bits <= 8 or (
        bits == 16 and tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) == 1 and not inverted and tags.get(339, (1,)) == (1,)
    ):
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
            image.seek(index)
            if image.mode not in _MODES:
                raise _refused(name, f"has pixels of mode {image.mode}, not {', '.join(_MODES)}")
            image.load()
            samples, icc = _samples(image, icc, notes)
        samples = _as_stored(samples, exif.get(_TAGS.Orientation, 1))
    else:
        samples = _deep_tiff(name, data, index, notes)
    pixels, alpha = (samples[:, :, :-1], samples[:, :, -1]) if samples.shape[2] in (2, 4) else (samples, None)
    density = [tags.get(tag) for tag in (TiffImagePlugin.X_RESOLUTION, TiffImagePlugin.Y_RESOLUTION)]
    return ImageFile(
        np.ascontiguousarray(pixels),
        None if alpha is None else np.ascontiguousarray(alpha),
        encoding.describing(exif),
        icc,
        *_density(density if all(density) else None, _UNITS.get(tags.get(TiffImagePlugin.RESOLUTION_UNIT, 2), "inch")),
        tags.get(TiffImagePlugin.XMP) or b"",
        "TIFF",
        tuple((tag, tags[tag]) for tag in _OWN_TAGS if tag in tags),
        tuple(notes),
    )


def _page(name: str, pages: list[TiffImagePlugin.ImageFileDirectory_v2]) -> tuple[int, list[str]]:
    """Which page of a TIFF is the picture, the others being reduced copies of it, and a note of these."""
    sizes = [(page[_TAGS.ImageWidth], page[_TAGS.ImageLength]) for page in pages]
    width, height = max(sizes, default=(1, 1))
    small = [
        bool(page.get(_TAGS.NewSubfileType, 0) & 1 and len(pages) > 1)
        or (2 * w <= width and abs(w * height - h * width) < width + height)
        for page, (w, h) in zip(pages, sizes, strict=True)
    ]
    if small.count(False) != 1:
        raise _refused(name, f"has {small.count(False)} pages: split it, e.g. magick {name} page-%d.tif")
    return small.index(False), ["its reduced copy is not kept"] if any(small) else []


def _deep_tiff(name: str, data: bytes, index: int, notes: list[str]) -> np.ndarray:
    """Pixels and alpha, [H, W, 1 to 4] of uint16 or float32, of a TIFF that Pillow cannot read, or not exactly."""
    try:
        import tifffile
    except ImportError as error:
        raise InputError(f"{name}: such a 16-bit or float TIFF needs tifffile: pip install 'rcnet[16bit]'") from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[index]
        Image._decompression_bomb_check((page.imagewidth, page.imagelength))
        inverted, kind, bits = page.photometric == 0, page.dtype.kind, page.bitspersample
        if page.photometric > 2 or kind not in "uf" or (kind == "u" and bits != 16) or (kind == "f" and inverted):
            raise _refused(
                name, f"has {bits}-bit pixels of the kind {page.photometric.name} {page.dtype}: convert it to 8 or 16 bits"
            )
        if any(at + size > len(data) for at, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise _refused(name, "is truncated")
        samples: np.ndarray = page.asarray()
        if page.planarconfig == 2 and samples.ndim == 3:
            samples = np.moveaxis(samples, 0, -1)
    samples = np.atleast_3d(samples)
    if kind == "u":
        return 65535 - samples if inverted else samples.astype(np.uint16)
    if bits == 64:
        notes.append("its 64-bit floats become 32-bit")
    low, high = float(samples.min()), float(samples.max())
    if not (np.isfinite([low, high]).all() and -low <= high / 2):
        raise _refused(name, f"has values from {low:g} to {high:g}, and not numbers from about 0, black, up: add what is missing")
    if high > 2:
        notes.append(f"its floats go up to {high:g}: {math.ceil(high)} is taken as white")
    return samples.astype(np.float32)


def _as_stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the EXIF orientation, which Pillow applies to TIFFs."""
    array = array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array
    return array[:: -1 if orientation in (3, 4, 6, 7) else 1, :: -1 if orientation in (2, 3, 7, 8) else 1]


def _lack(kind: str, image: ImageFile) -> str:
    """What keeps the image out of a format, or the empty string."""
    if missing := _missing(kind):
        return f"cannot be made here ({missing})"
    form = FORMATS[kind]
    if image.mode not in form.modes.split():
        return f"holds only the modes {', '.join(form.modes.split())}, not {image.mode}"
    if max(image.pixels.shape) > form.side:
        return f"holds at most {form.side} pixels a side"
    return "holds at most 65527 bytes of EXIF" if kind == "JPEG" and len(image.exif) > 65527 else ""


def _keeps(kind: str, field: str, image: ImageFile) -> bool:
    """Whether a format keeps the image's EXIF, ICC profile, XMP or resolution."""
    if field not in FORMATS[kind].keeps:
        return False
    if field == "density":
        return kind == "TIFF" or encoding.density_fits(kind, image)
    if field == "icc":
        return not (kind == "WebP" and image.icc[16:20] == b"GRAY")
    return not (field == "xmp" and kind == "JPEG" and len(image.xmp) > 65502)


def _encode(kind: str, image: ImageFile) -> bytes:
    """The whole file."""
    kept = {field: getattr(image, field) if _keeps(kind, field, image) else None for field in _LABELS}
    image = dataclasses.replace(image, **{k: v or (None if k == "density" else b"") for k, v in kept.items()})
    if image.kind != kind:
        image = dataclasses.replace(image, own=())
    samples = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        form = FORMATS[kind]
        return encoding.encode(kind, form.plugin or kind, dict(form.options), image, samples)
