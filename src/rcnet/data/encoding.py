"""Encoding of image files, for `rcnet.data.imagefile`: metadata that Pillow does not write are inserted here."""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from rcnet.data.formats import ImageFile

XMP_OF_PNG = b"XML:com.adobe.xmp\0"
_PER_METRE = {"inch": 1 / 0.0254, "cm": 100.0, "": 1.0}
# TIFF stores EXIF among its own tags: these describe the picture, the others the file.
_TAGS = ExifTags.Base
DESCRIPTIVE = {_TAGS.ImageDescription, _TAGS.Make, _TAGS.Model, _TAGS.Orientation, _TAGS.Software, _TAGS.DateTime, _TAGS.Artist}
DESCRIPTIVE |= {_TAGS.HostComputer, _TAGS.Copyright, _TAGS.ExifOffset, _TAGS.GPSInfo, _TAGS.Rating}


def encode(kind: str, plugin: str, options: dict[str, Any], image: ImageFile, samples: np.ndarray) -> bytes:
    """The file for samples [H, W, 1 to 4], with all metadata of the image; `options` are for Pillow."""
    if kind == "TIFF":
        return _tiff(image, samples)
    if kind == "PNM":
        height, width, count = samples.shape
        head = f"P{5 if count == 1 else 6}\n{width} {height}\n{np.iinfo(samples.dtype).max}\n".encode()
        return head + samples.astype(samples.dtype.newbyteorder(">")).tobytes()
    if kind == "PNG":
        return _png(image, _deep_png(samples) if samples.dtype == np.uint16 else _by_pillow(samples, "PNG", {}))
    if kind == "JPEG":
        options["extra"] = b"".join(_segments(image))
        if image.density:
            options["dpi"] = image.density
    else:
        if image.xmp:
            options["xmp"] = image.xmp
        if image.density:
            options["dpi"] = tuple(dots * _PER_METRE[image.unit] * 0.0254 for dots in image.density)
    if image.exif:
        options["exif"] = b"Exif\0\0" + image.exif
    if image.icc:
        options["icc_profile"] = image.icc
    if kind == "AVIF" and samples.shape[2] == 1:
        del options["subsampling"]
    data = _by_pillow(samples, plugin, options)
    if kind == "JPEG" and image.density and image.unit != "inch":  # Pillow writes inches, in the JFIF header
        data = data[:13] + bytes([2 if image.unit == "cm" else 0]) + data[14:]
    return data


def density_fits(kind: str, image: ImageFile) -> bool:
    """Whether the image's resolution fits whole numbers of 16 bits (JPEG) or 31 bits (PNG, BMP)."""
    density = image.density or (0, 0)
    if not image.unit and (kind == "BMP" or any(dots != round(dots) for dots in density)):
        return False
    scale = 1.0 if kind == "JPEG" else _PER_METRE[image.unit]
    return all(0.5 < dots * scale < (65535.5 if kind == "JPEG" else 1 << 31) for dots in density)


def png_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The name and the content of each chunk of a PNG."""
    at = 8
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        yield name.decode("latin-1"), data[at + 8 : at + 8 + size]
        at += 12 + size


def describing(exif: Image.Exif) -> bytes:
    """The EXIF block with the descriptive tags of a TIFF directory; the other tags are deleted."""
    for tag in set(exif) - DESCRIPTIVE:
        del exif[tag]
    if str(exif.get(_TAGS.ImageDescription, "")).startswith('{"shape":'):  # tifffile's, of the file
        del exif[_TAGS.ImageDescription]
    exif.bigtiff = False
    return exif.tobytes().removeprefix(b"Exif\0\0") if exif else b""


def _by_pillow(samples: np.ndarray, plugin: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples).save(file, plugin, **options)
    return file.getvalue()


def _segments(image: ImageFile) -> Iterable[bytes]:
    """The XMP and the original other segments of a JPEG."""
    parts = [("APP1", b"http://ns.adobe.com/xap/1.0/\0" + image.xmp)] if image.xmp else []
    for key, value in parts + list(image.own):  # type: ignore[operator]
        marker = 0xFE if key == "COM" else 0xE0 + int(str(key).removeprefix("APP"))
        yield struct.pack(">BBH", 0xFF, marker, len(value) + 2) + value


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(image: ImageFile, data: bytes) -> bytes:
    """A PNG with the metadata after its header."""
    chunks = [(str(key).encode(), value) for key, value in image.own]
    if image.icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(image.icc)))
    if image.density:
        scale = _PER_METRE[image.unit]
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(dots * scale) for dots in image.density), bool(image.unit))))
    if image.exif:
        chunks.append((b"eXIf", image.exif))
    if image.xmp:
        chunks.append((b"iTXt", XMP_OF_PNG + bytes(4) + image.xmp))
    return data[:33] + b"".join(_chunk(*chunk) for chunk in chunks) + data[33:]


def without_directories(exif: bytes) -> bytes:
    """An EXIF block without its Exif and GPS directories, whose offsets `join_tiffs` does not update."""
    block = Image.Exif()
    try:
        block.load(exif)
    except Exception:  # a damaged block is left out, as in a TIFF of one page
        return b""
    for tag in (_TAGS.ExifOffset, _TAGS.GPSInfo):
        if tag in block:
            del block[tag]
    return block.tobytes().removeprefix(b"Exif\0\0") if block else b""


def join_tiffs(files: Iterable[bytes]) -> bytes:
    """Joins the pages of several TIFFs into one."""
    joined = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(joined, new=True) as writer:
        for file in files:
            writer.write(file)
            writer.newFrame()
    return joined.getvalue()


def _deep_png(samples: np.ndarray) -> bytes:
    """A 16-bit PNG, which Pillow writes only for gray: each row minus the one above it (filter 2), deflated."""
    height, width, count = samples.shape
    rows = np.ascontiguousarray(samples, ">u2").view(np.uint8).reshape(height, -1)
    rows = np.insert(np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1])), 0, 2, axis=1)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(rows.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + body + _chunk(b"IEND", b"")


def _tiff(image: ImageFile, samples: np.ndarray) -> bytes:
    """A TIFF with one deflated strip. As EXIF is a TIFF directory, Pillow's EXIF writer writes it, with the TIFF tags added."""
    exif = Image.Exif()
    exif.endian = "<"
    try:
        exif.load(image.exif)
        describing(exif)
    except Exception:  # a damaged block: other formats can store it unchanged, a TIFF cannot
        exif = Image.Exif()
        exif.endian = "<"
    height, width, count = samples.shape
    floats = samples.dtype.kind == "f"
    if not floats:
        samples = np.diff(samples, axis=1, prepend=np.zeros_like(samples[:, :1]))
    strip = zlib.compress(samples.astype(samples.dtype.newbyteorder(exif.endian)).tobytes())  # type: ignore[arg-type]
    exif[TiffImagePlugin.IMAGEWIDTH], exif[TiffImagePlugin.IMAGELENGTH] = width, height
    exif[TiffImagePlugin.SAMPLESPERPIXEL], exif[TiffImagePlugin.BITSPERSAMPLE] = count, (samples.dtype.itemsize * 8,) * count
    exif[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if count < 3 else 2  # gray with 0 for black, or RGB
    exif[TiffImagePlugin.COMPRESSION], exif[TiffImagePlugin.PREDICTOR] = 8, 1 if floats else 2  # deflate, difference to the left
    exif[TiffImagePlugin.ROWSPERSTRIP], exif[TiffImagePlugin.STRIPBYTECOUNTS] = height, len(strip)
    exif[TiffImagePlugin.STRIPOFFSETS] = 0  # from the end of the directory
    if floats:
        exif[TiffImagePlugin.SAMPLEFORMAT] = (3,) * count
    if image.alpha is not None:
        exif[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha, not premultiplied
    if image.icc:
        exif[TiffImagePlugin.ICCPROFILE] = image.icc
    if image.xmp:
        exif[TiffImagePlugin.XMP] = image.xmp
    if image.density:
        exif[TiffImagePlugin.X_RESOLUTION], exif[TiffImagePlugin.Y_RESOLUTION] = image.density
        exif[TiffImagePlugin.RESOLUTION_UNIT] = {"": 1, "inch": 2, "cm": 3}[image.unit]
    for tag, value in image.own:
        exif[int(tag)] = value
    return exif.tobytes().removeprefix(b"Exif\0\0") + strip
