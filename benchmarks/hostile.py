"""Small image files meant to keep a decoder busy, for benchmarks/fuzz.py and the tests. Each is valid but for its excess."""

import struct
import zlib


def jpeg_of_scans(width: int, height: int, scans: int, refining: bool = False) -> bytes:
    """A gray progressive JPEG, black, with so many scans beside the first, each of which says nothing of any block.

    Scans that refine the ones before make libjpeg look at every coefficient again.
    """

    def segment(marker: int, data: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data

    blocks = -(-width // 8) * -(-height // 8)
    head = (
        b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    )
    tables = segment(0xC4, b"\0\1" + bytes(16)) + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    first = segment(0xDA, b"\1\1\0" + bytes(3)) + bytes(-(-blocks // 8))
    empty = segment(0xDA, b"\1\1\0\1\x3f" + (b"\x10" if refining else b"\0")) + bytes(-(-15 * -(-blocks // 16384) // 8))
    return head + tables + first + empty * scans + b"\xff\xd9"


def chunk(name: bytes, data: bytes) -> bytes:
    """One of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *before: bytes, pieces: int = 1) -> bytes:
    """A gray PNG, black, with these chunks before its pixels, which stand in so many pieces."""
    pixels = zlib.compress(bytes((width + 1) * height), 9)
    size = -(-len(pixels) // pieces)
    parts = [chunk(b"IDAT", pixels[at : at + size]) for at in range(0, len(pixels), size)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join([*before, *parts]) + chunk(b"IEND", b"")


def png_of_texts(count: int) -> bytes:
    """A PNG of 8x8 pixels with so many chunks of text."""
    return png(8, 8, *[chunk(b"tEXt", b"k\0v")] * count)


def png_of_bombs(count: int) -> bytes:
    """A PNG of 8x8 pixels with so many compressed texts of a megabyte each."""
    return png(8, 8, *[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20), 9))] * count)


def tiff_of_entries(count: int) -> bytes:
    """A TIFF of one gray pixel whose directory names one kilobyte so many times."""
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (279, 4, 1, 1)]
    entries += [(40000 + place, 1, 1024, 8) for place in range(count)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 1032) + bytes(1024) + struct.pack("<H", len(entries)) + directory + bytes(4)
