"""Decoding of image files to pixels and metadata, for `rcnet.data.imagefile`."""

import functools
import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin, TiffImagePlugin

from rcnet.data import encoding, limits
from rcnet.data.formats import CHUNKS, FORMATS, KINDS, OWN_TAGS, ImageFile, kind_of, load_heif, missing_package, unreadable
from rcnet.errors import InputError

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr", "I;16", "I;16B", "CMYK")
_OTHER_SEGMENTS = (b"JFIF", b"JFXX", b"Exif\0", b"http://ns.adobe.com/xap/1.0/", b"ICC_PROFILE", b"Adobe", b"MPF\0")
_TAGS = ExifTags.Base
_STRUCTURE = 532  # TIFF tags up to this number describe the layout of the file
_HANDLED = ("iCCP", "pHYs", "eXIf", "tRNS", "bKGD", "tIME", "sBIT", "hIST")  # or they do not apply to the new picture
_SRGB_PRIMARIES, _SRGB_TRANSFER = (1, 2), (1, 2, 6, 13, 14, 15)  # of ISO 23091-2, 2: unspecified
_TABLE_SUMS = dict(enumerate((736, 667, 592, 518, 441, 369, 292, 221, 151, 86, 64), 90))  # libjpeg's, by quality from 90 to 100
_UNITS = {1: "", 2: "inch", 3: "cm"}  # of TIFF


def decode(name: str, data: bytes) -> ImageFile:
    """Decodes a file with one picture."""
    limits.check(name, data)
    if kind_of(data) == "TIFF":
        return decode_tiff(name, data)[0]
    if deep := _deep_pnm(data):
        return deep
    with Image.open(io.BytesIO(data), formats=plugins(name, data)) as image:
        return _by_pillow(name, data, image)


def _deep_pnm(data: bytes) -> ImageFile | None:
    """A PNM of more than 8 bits, which Pillow reduces to 8; None for other files."""
    deep = re.match(rb"P([2356])#\s(\d+)#\s(\d+)#\s(\d+)\s".replace(rb"#\s", rb"(?:\s|#[^\n]*\n)+"), data)
    if not deep or int(deep[4]) <= 255:
        return None
    gray, plain, width, height, top = deep[1] in b"25", deep[1] in b"23", *map(int, deep.groups()[1:])
    shape, rest = (height, width, 1 if gray else 3), data[deep.end() :]
    values = np.array(rest.split(), ">u2") if plain else np.frombuffer(rest[: 2 * math.prod(shape)], ">u2")
    return ImageFile(np.rint(values.reshape(shape) * (65535 / top)).astype(np.uint16), kind="PNM")


def _by_pillow(name: str, data: bytes, image: Image.Image) -> ImageFile:
    """The picture in a file that Pillow has opened."""
    kind, notes = KINDS[str(image.format)], []
    frames = getattr(image, "n_frames", 1)
    if image.format == "MPO":
        notes.append(f"only the first of its {frames} pictures is kept")
    elif kind == "HEIC":
        if frames > 1 or image.info.get("aux") or image.info.get("depth_images"):
            notes.append("only its main picture is kept")
    elif frames > 1:
        raise unreadable(name, f"is animated or has several pages: take one of its {frames} frames")
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
        samples, icc = _samples(name, image, icc, notes)
    pixels, alpha = (samples[:, :, :-1], samples[:, :, -1]) if samples.shape[2] in (2, 4) else (samples, None)
    key = image.info.get("transparency")
    if key is not None and alpha is None:  # Pillow widens gray of 1, 2 and 4 bits to 8, but not the key
        key = 255 * bool(key) if raw_mode == "0100" else np.multiply(key, {"0200": 85, "0400": 17}.get(raw_mode, 1))
        alpha = np.where((pixels == key).all(axis=2), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    own = [(key, value) for key, value in chunks if key in CHUNKS and not value.startswith(encoding.XMP_OF_PNG)]
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        own = [(key, value) for key, value in image.applist if not value.startswith(_OTHER_SEGMENTS)]
    density, unit = image.info.get("dpi"), "inch"
    if "jfif_unit" in image.info:
        density, unit = image.info["jfif_density"], ("", "inch", "cm")[image.info["jfif_unit"] % 3]
    elif "aspect" in image.info:
        density, unit = image.info["aspect"], ""
    xmp = image.info.get("xmp") or b""
    if kind in ("AVIF", "HEIC", "JPEG 2000"):
        icc = icc or _colours(data, notes)
    if lost := sorted({key for key, _ in chunks if key[0].islower() and key not in CHUNKS and key not in _HANDLED}):
        notes.append(f"its chunks {', '.join(lost)} are not kept")
    return ImageFile(
        np.ascontiguousarray(pixels),
        None if alpha is None else np.ascontiguousarray(alpha),
        exif.removeprefix(b"Exif\0\0"),
        icc,
        *_density(density, unit),
        xmp.encode() if isinstance(xmp, str) else xmp,
        kind,
        tuple(own),
        _coding(image, data),
        tuple(notes),
    )


def plugins(name: str, data: bytes) -> list[str]:
    """Pillow's names of the readable formats; `InputError` if that of this file needs another package."""
    load_heif()
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    kind = "HEIC" if brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc") else "AVIF" if brand in (b"avif", b"avis") else ""
    if needed := missing_package(kind):
        raise InputError(f"{name} cannot be read: {needed}")
    return [form.plugin or kind for kind, form in FORMATS.items() if (form.plugin or kind.upper()) in Image.OPEN]


def _coding(image: Image.Image, data: bytes) -> tuple[tuple[str, Any], ...]:
    """The encoder settings of a JPEG or lossy WebP. The quality of a JPEG, at least 90, is estimated from its first table."""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        total = sum(image.quantization[min(image.quantization)])
        quality = min(_TABLE_SUMS, key=lambda quality: abs(_TABLE_SUMS[quality] - total))
        sampling = {1: "4:2:2", 2: "4:2:0"}.get(JpegImagePlugin.get_sampling(image), "4:4:4")
        return ("quality", quality), ("subsampling", sampling)
    at, lossy = 12, False
    while data[8:12] == b"WEBP" and at + 8 <= len(data):
        lossy |= data[at : at + 4] == b"VP8 "
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return (("lossless", False), ("quality", 95)) if lossy else ()


def _bits(kind: str, data: bytes, image: Image.Image) -> int:
    """Bits per channel of a file that Pillow may reduce to 8 bits."""
    if kind == "HEIC":
        return int(image.info.get("bit_depth", 8))
    if kind == "AVIF" and (at := data.find(b"av1C")) > 0:
        return {0: 8, 2: 10, 3: 12}.get(data[at + 6] >> 5 & 3, 8)
    if kind == "JPEG 2000" and (at := data.find(b"\xff\x4f\xff\x51")) >= 0:
        return (data[at + 42] & 127) + 1
    return 8


def _colours(data: bytes, notes: list[str]) -> bytes:
    """The ICC profile of a box `colr` that Pillow does not read. Adds a note for numbered colour spaces other than sRGB."""
    at = data.find(b"colr")
    size = int.from_bytes(data[max(at - 4, 0) : max(at, 0)])
    if at < 4 or not 8 <= size <= len(data) - at + 4:
        return b""
    if data[at + 4 : at + 8] == b"nclx":
        primaries, transfer = int.from_bytes(data[at + 8 : at + 10]), int.from_bytes(data[at + 10 : at + 12])
        if primaries not in _SRGB_PRIMARIES or transfer not in _SRGB_TRANSFER:
            notes.append(f"its colours (primaries {primaries}, transfer {transfer}) are treated as sRGB")
    elif data[at + 4] == 2:  # JPEG 2000, "restricted ICC"
        return data[at + 7 : at - 4 + size]
    return b""


def _samples(name: str, image: Image.Image, icc: bytes, notes: list[str]) -> tuple[np.ndarray, bytes]:
    """Pixels and alpha, [H, W, 1 to 4] of uint8 or uint16, and their ICC profile."""
    if image.mode not in _MODES:
        raise unreadable(name, f"has pixels of mode {image.mode}, not {', '.join(_MODES)}")
    if image.mode == "CMYK":
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            image, icc = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB") or image, srgb.tobytes()
            notes.append("CMYK became sRGB by its ICC profile")
        except (OSError, ImageCms.PyCMSError):
            image, icc = image.convert("RGB"), b""
            notes.append("CMYK became RGB without an ICC profile: the colours may differ")
    elif image.mode == "YCbCr":
        image = image.convert("RGB")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        notes.append(f"its palette became {image.mode}")
    elif image.mode == "1":
        image = image.convert("L")
        notes.append("black and white became gray")
    array = np.asarray(image)
    return np.atleast_3d(array.astype(np.uint16 if array.dtype.itemsize > 1 else np.uint8)), icc


def _deep_png(name: str, data: bytes, image: Image.Image) -> np.ndarray:
    """A 16-bit PNG by imagecodecs. Pillow reads it as 8-bit, which verifies the file and the other reader."""
    try:
        import imagecodecs
    except ImportError as error:
        raise InputError(f"{name}: 16-bit colour needs imagecodecs: pip install 'rcnet[16bit]'") from error
    samples: np.ndarray = imagecodecs.png_decode(data)
    seen = np.asarray(image)[:, :, [0, 3] if samples.shape[2] == 2 else slice(samples.shape[2])]
    if samples.dtype != np.uint16 or not np.array_equal(samples[:, :, : seen.shape[2]] >> 8, seen):
        raise unreadable(name, "is a 16-bit image that imagecodecs and Pillow read differently")
    return samples[:, :, : seen.shape[2]]


def _density(density: Any, unit: str) -> tuple[tuple[float, float] | None, str]:
    across, down = map(float, density or (0, 0))
    said = 0 < across < 1e8 and 0 < down < 1e8 and (across, down, unit) != (1, 1, "")
    return ((across, down), unit) if said else (None, "inch")


def decode_tiff(name: str, data: bytes, every: bool = False) -> list[ImageFile]:
    """Decodes a TIFF: directories by Pillow, pixels by Pillow or tifffile. One picture, or with `every` all pages of a stack."""
    file, pages = io.BytesIO(data), []
    first = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:4] in (b"+\0", b"\0+") else data[:8])
    offsets = [first.next]
    while offsets[-1] and offsets[-1] not in offsets[:-1]:
        pages.append(TiffImagePlugin.ImageFileDirectory_v2(data[:16] if first._bigtiff else data[:8]))
        file.seek(offsets[-1])
        pages[-1].load(file)
        offsets.append(pages[-1].next)
    indices, notes = _pages(name, pages, every)
    opened = functools.cache(lambda: Image.open(io.BytesIO(data), formats=("TIFF",)))
    return [_tiff_page(name, data, index, pages[index], offsets[index], opened, list(notes)) for index in indices]


def _tiff_page(
    name: str, data: bytes, index: int, tags: Any, offset: int, opened: Callable[[], Image.Image], notes: list[str]
) -> ImageFile:
    """One page, with its directory at this offset; `opened` returns the file opened by Pillow."""
    if tags.get(TiffImagePlugin.EXTRASAMPLES, ()) not in ((), (2,)):
        raise unreadable(name, "has premultiplied alpha or an extra channel that is not alpha")
    exif = Image.Exif()
    exif.endian, exif.bigtiff = tags._endian, tags._bigtiff
    exif.load_from_fp(io.BytesIO(data), offset)
    bits, inverted = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))), tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    icc = tags.get(TiffImagePlugin.ICCPROFILE) or b""
    if bits <= 8 or (
        bits == 16 and tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) == 1 and not inverted and tags.get(339, (1,)) == (1,)
    ):
        image = opened()
        image.seek(index)
        image.load()
        samples, icc = _samples(name, image, icc, notes)
        orientation = exif.get(_TAGS.Orientation, 1)  # Pillow applies it to TIFFs: this undoes it
        samples = samples.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else samples
        samples = samples[:: -1 if orientation in (3, 4, 6, 7) else 1, :: -1 if orientation in (2, 3, 7, 8) else 1]
    else:
        samples = _deep_tiff(name, data, index, notes)
    pixels, alpha = (samples[:, :, :-1], samples[:, :, -1]) if samples.shape[2] in (2, 4) else (samples, None)
    kept = encoding.DESCRIPTIVE | OWN_TAGS.keys() | {TiffImagePlugin.XMP, TiffImagePlugin.ICCPROFILE}
    if lost := sorted(tag for tag in tags if tag > _STRUCTURE and tag not in kept):
        notes.append(f"its tags {', '.join(map(str, lost))} are not kept")
    density = [tags.get(tag) for tag in (TiffImagePlugin.X_RESOLUTION, TiffImagePlugin.Y_RESOLUTION)]
    return ImageFile(
        np.ascontiguousarray(pixels),
        None if alpha is None else np.ascontiguousarray(alpha),
        encoding.describing(exif),
        icc,
        *_density(density if all(density) else None, _UNITS.get(tags.get(TiffImagePlugin.RESOLUTION_UNIT, 2), "inch")),
        tags.get(TiffImagePlugin.XMP) or b"",
        "TIFF",
        tuple((tag, tags[tag]) for tag in OWN_TAGS if tag in tags),
        notes=tuple(notes),
    )


def _pages(name: str, pages: list[TiffImagePlugin.ImageFileDirectory_v2], every: bool) -> tuple[list[int], list[str]]:
    """The indices of the pages that are not reduced copies, and a note on the copies. One page, unless `every` is set."""
    sizes = [(page[_TAGS.ImageWidth], page[_TAGS.ImageLength]) for page in pages]
    width, height = max(sizes, default=(1, 1))
    small = [
        bool(page.get(_TAGS.NewSubfileType, 0) & 1 and len(pages) > 1)
        or (2 * w <= width and abs(w * height - h * width) < width + height)
        for page, (w, h) in zip(pages, sizes, strict=True)
    ]
    count = small.count(False)
    if count != 1 and not (every and count):
        raise unreadable(name, f"has {count} pages: split it, e.g. magick {name} page-%d.tif, or rcnet denoise --pages all")
    return [index for index, copy in enumerate(small) if not copy], ["its reduced copy is not kept"] if any(small) else []


def _deep_tiff(name: str, data: bytes, index: int, notes: list[str]) -> np.ndarray:
    """Pixels and alpha, [H, W, 1 to 4] of uint16, float16 or float32, of a TIFF that Pillow cannot read exactly."""
    try:
        import tifffile
    except ImportError as error:
        raise InputError(f"{name}: such a 16-bit or float TIFF needs tifffile: pip install 'rcnet[16bit]'") from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[index]
        Image._decompression_bomb_check((page.imagewidth, page.imagelength))
        inverted, kind, bits = page.photometric == 0, page.dtype.kind, page.bitspersample
        if page.photometric > 2 or kind not in "uf" or (kind == "u" and bits != 16) or (kind == "f" and inverted):
            raise unreadable(
                name, f"has {bits}-bit pixels of type {page.photometric.name} {page.dtype}: convert it to 8 or 16 bits"
            )
        if any(at + size > len(data) for at, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise unreadable(name, "is truncated")
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
        raise unreadable(name, f"has values from {low:g} to {high:g}; black must be at about 0: add an offset")
    return samples.astype(np.float16 if bits == 16 else np.float32)
