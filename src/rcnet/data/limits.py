"""Limits on what a small image file can demand of a decoder: its size by the header, and its structure. No pixels are read."""

import re
import struct
from typing import NamedTuple

from rcnet.data.formats import kind_of, unreadable

MAX_SCANS = 100  # of a JPEG: encoders write about 10, mozjpeg up to 20; each makes libjpeg pass over the whole picture once more
MAX_SEGMENTS = (
    10_000  # of a JPEG before and between its scans: photographs have some 30, large ICC profiles and XMP some 300 more
)
MAX_JUNK = 1 << 16  # bytes of a JPEG outside of its segments before its size: ordinary files have none, decoders skip them
MAX_CHUNKS = 1000  # of a PNG beside its pixels: photographs have some 10
MIN_IDAT = 512  # bytes of a PNG for each chunk of pixels, beyond MAX_CHUNKS of them: libpng writes 8192
MAX_ENTRIES = 10_000  # of all directories of a TIFF: a picture has some 20, its reduced copies as many each
TAG_BYTES = 4.0  # bytes that the tags of a TIFF may name for each byte of it: more means that they name the same bytes again

_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # after pixels of a JPEG: neither an escaped byte nor a restart
_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF markers
_TIFF_SIZES = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)  # bytes of a value by its type


class Jpeg(NamedTuple):
    """Counts from the markers of a JPEG: width and height (0 before a frame), scans, and other segments."""

    width: int = 0
    height: int = 0
    scans: int = 0
    segments: int = 0


def check(name: str, data: bytes) -> None:
    """Rejects a file whose structure (scans, chunks, entries) would keep its decoder busy without need.

    A damaged file passes, as its decoder reports the damage.

    Raises:
        InputError: the structure exceeds the limits above.
    """
    kind = kind_of(data)
    if kind == "JPEG":
        found = read_jpeg(data)
        if found.scans > MAX_SCANS:
            raise unreadable(name, f"has more than {MAX_SCANS} scans: save it as an ordinary JPEG")
        if found.segments > MAX_SEGMENTS:
            raise unreadable(name, f"has more than {MAX_SEGMENTS} segments: save it without its metadata")
    elif kind == "PNG":
        _check_png(name, data)
    elif kind == "TIFF":
        _check_tiff(name, data)


def read_jpeg(data: bytes, scans: bool = True) -> Jpeg:
    """Reads the markers of a JPEG up to its end or the limits; only up to its size, in little time, if `scans` is False."""
    found, at, junk = Jpeg(), 2, len(data) if scans else MAX_JUNK
    while (mark := _NEXT_MARKER.search(data, at, at + junk)) and found.scans <= MAX_SCANS and found.segments <= MAX_SEGMENTS:
        junk -= mark.end() - at
        kind, at = data[mark.end() - 1], mark.end()
        if kind == 0xD9:
            break
        if kind == 0xDA:
            found = found._replace(scans=found.scans + 1)
        elif kind in _FRAME and not found.width and len(data) >= at + 7:
            height, width = struct.unpack_from(">HH", data, at + 3)
            found = found._replace(width=width, height=height)
        if not scans and (found.width or found.scans):
            break
        if kind not in (0x01, 0xD8):  # these two have no content
            found = found._replace(segments=found.segments + 1)
            at += int.from_bytes(data[at : at + 2])
    return found


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header of a PNG, JPEG or WebP; None for other files or if the header has none."""
    kind, chunk = kind_of(data), data[12:16]
    if kind == "PNG" and chunk == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    if kind == "JPEG":
        found = read_jpeg(data, scans=False)
        return (found.width, found.height) if found.width else None
    if kind != "WebP" or len(data) < 30:
        return None
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_png(name: str, data: bytes) -> None:
    at, pixels, others = 8, 0, 0
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IEND":
        pixels, others = (pixels + 1, others) if data[at + 4 : at + 8] == b"IDAT" else (pixels, others + 1)
        if others > MAX_CHUNKS or pixels > MAX_CHUNKS + len(data) // MIN_IDAT:
            raise unreadable(name, f"has more than {others + pixels - 1} chunks: save it as an ordinary PNG")
        at += 12 + int.from_bytes(data[at : at + 4])


def _check_tiff(name: str, data: bytes) -> None:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count, word, entry = (8, "Q", 20) if big else (2, "I", 12)
    at, entries, asked, seen = 8 if big else 4, 0, 0, set[int]()
    try:
        (at,) = struct.unpack_from(order + word, data, at)
        while at and at not in seen:
            seen.add(at)
            (number,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
            entries += number
            if entries > MAX_ENTRIES:
                raise unreadable(name, f"has more than {MAX_ENTRIES} entries in its directories: save it as one picture")
            for index in range(number):
                kind, values = struct.unpack_from(f"{order}H{word}", data, at + count + entry * index + 2)
                asked += values * (_TIFF_SIZES[kind] if kind < len(_TIFF_SIZES) else 1)
            if asked > TAG_BYTES * len(data):
                raise unreadable(name, "has tags that refer to more bytes than the file has: save it again")
            (at,) = struct.unpack_from(order + word, data, at + count + entry * number)
    except (struct.error, OverflowError):  # truncated: its decoder says so
        return
