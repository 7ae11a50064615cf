"""Small files that would keep a decoder busy are refused by their structure, before anything is decoded."""

import io
import struct
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import hostile
from rcnet.data.imagefile import read
from rcnet.data.limits import MAX_CHUNKS, MAX_JUNK, MAX_SCANS, check, read_jpeg, size_of
from rcnet.errors import InputError

IMAGES = Path(__file__).parent / "images"


def encoded(kind, **options):
    stream = io.BytesIO()
    Image.open(IMAGES / "rocket.png").convert("RGB").save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (hostile.jpeg_of_scans(8, 8, MAX_SCANS), "more than 100 scans"),
        (hostile.jpeg_of_scans(8, 8, 1).replace(b"\xff\xda", b"\xff\xfe\0\2" * 10_001 + b"\xff\xda", 1), "10000 segments"),
        (hostile.png_of_texts(MAX_CHUNKS), "more than 1000 chunks"),
        (hostile.png(3000, 3000, pieces=2500), "chunks: save it as an ordinary PNG"),
        (hostile.tiff_of_entries(10_000), "more than 10000 entries"),
        (hostile.tiff_of_entries(100), "refer to more bytes than the file has"),
    ],
)
def test_a_file_of_excess_is_refused(data, says):
    with pytest.raises(InputError, match=says):
        read(data)


@pytest.mark.parametrize(
    "data",
    [
        hostile.jpeg_of_scans(8, 8, MAX_SCANS - 1),
        hostile.png_of_texts(MAX_CHUNKS - 2),
        hostile.png(3000, 3000, pieces=20),
        hostile.tiff_of_entries(2),
        encoded("JPEG", progressive=True, quality=95),
        encoded("JPEG", restart_marker_rows=1),
        encoded("TIFF"),
    ],
)
def test_a_file_within_the_limits_is_read(data):
    assert read(data).pixels.size


def test_the_scans_of_a_progressive_jpeg_are_counted_with_restarts_and_junk_behind():
    plain, progressive = encoded("JPEG", restart_marker_rows=1), encoded("JPEG", progressive=True)
    assert read_jpeg(plain).scans == 1
    assert read_jpeg(progressive).scans == 10  # libjpeg's
    assert read_jpeg(progressive + b"\xff\xda\0\2" * 500).scans == 10  # a film behind the picture, as telephones write it


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WebP", {}),
        ("WebP", {"lossless": True}),
        ("WebP", {"exif": b"Exif\0\0MM"}),
    ],
)
def test_the_size_stands_in_the_header(kind, options):
    data = encoded(kind, **options)
    assert size_of(data) == Image.open(io.BytesIO(data)).size
    assert size_of(data[:20]) is None


@pytest.mark.parametrize("place", [2**63 + 1, 2**64 - 1, 100])
def test_a_directory_beyond_the_end_is_left_to_the_decoder(place):
    assert check("a.tif", b"II+\0" + struct.pack("<HHQ", 8, 0, place)) is None


def test_the_size_of_a_jpeg_is_not_sought_far_behind_its_segments():
    head, rest = encoded("JPEG")[:20], encoded("JPEG")[20:]  # behind the segment of JFIF
    assert size_of(head + b"\0" * 1000 + rest) == size_of(head + rest)
    assert size_of(head + b"\xff\0" * MAX_JUNK + rest) is None  # 32 MB of that would keep the server for half a second
