"""Image files: every format, depth and channel comes back as it was, with its metadata, or is refused in one line."""

import dataclasses
import os
import struct
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin

from rcnet.data.imagefile import (
    FORMATS,
    SUFFIXES,
    ImageFile,
    check_writable,
    encode,
    read,
    read_pages,
    upright,
    white_level,
    write,
)
from rcnet.errors import InputError

IMAGES = Path(__file__).parent / "images"
CAT, ROCKET = IMAGES / "cat.png", IMAGES / "rocket.png"
GRAY = sorted((IMAGES / "bsd" / "test").glob("*.png"))[0]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>1</a></x:xmpmeta>'
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HOLDS = {form.suffixes[0]: set(form.modes.split()) for form in FORMATS.values()}
LOSSY = {".jpg", ".avif", ".heic"}
ALL = sorted(HOLDS[".tif"])
HELD = [(suffix, mode) for suffix, modes in HOLDS.items() for mode in sorted(modes)]


def make(mode: str, **metadata) -> ImageFile:
    """A real photograph in a mode; at 16 bits with low bytes unlike the high ones, so that swapped bytes show."""
    pixels = np.asarray(Image.open(GRAY if mode[0] in "LIF" else ROCKET))
    pixels = np.atleast_3d(pixels)[:90, :120].copy()
    alpha = np.add.outer(np.arange(90), np.arange(120)).astype(np.uint8) if "A" in mode else None
    if ";16" in mode:
        pixels = pixels.astype(np.uint16) * 251 + np.arange(120, dtype=np.uint16)[None, :, None]
        alpha = None if alpha is None else alpha.astype(np.uint16) * 253 + 5
    if "F" in mode:
        kind = np.float16 if "16" in mode else np.float32
        pixels = (pixels.astype(np.float32) / 255 + np.arange(120, dtype=np.float32)[None, :, None] / 1e4).astype(kind)
        alpha = None if alpha is None else (alpha.astype(np.float32) / 300).astype(kind)
    image = ImageFile(pixels, alpha, **metadata)
    assert image.mode == mode
    return image


def make_exif(orientation: int = 6, endian: str = ">") -> bytes:
    exif = Image.Exif()
    exif.endian = endian
    exif[0x0112], exif[0x010F], exif[0x0110] = orientation, "Maker", "Model X"
    exif[0x8769] = {0x829A: 0.004, 0x8827: 6400, 0x9003: "2024:05:06 07:08:09", 0x927C: b"maker's own"}
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.5)}
    return exif.tobytes().removeprefix(b"Exif\0\0")


def exif_of(data: bytes) -> dict:
    exif = Image.Exif()
    exif.load(data)
    return {
        "main": {tag: exif[tag] for tag in (0x0112, 0x010F, 0x0110)},
        "exif": exif.get_ifd(0x8769),
        "gps": exif.get_ifd(0x8825),
    }


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def make_png(rows: bytes, size: tuple[int, int], bits: int, colour: int, *extra: bytes) -> bytes:
    """A PNG by hand of unfiltered rows, each already with its leading filter byte 0."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_deep_png(samples: np.ndarray, *extra: bytes) -> bytes:
    height, width, count = samples.shape
    rows = b"".join(b"\0" + struct.pack(f">{width * count}H", *row.ravel().tolist()) for row in samples)
    return make_png(rows, (width, height), 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], *extra)


def samples_of(image: ImageFile) -> np.ndarray:
    return image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])


def assert_same(image: ImageFile, other: ImageFile) -> None:
    assert image.mode == other.mode
    np.testing.assert_array_equal(samples_of(image), samples_of(other))


def refused(path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    for word in words:
        assert word in message


# Round trips


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("suffix", HOLDS)
def test_a_round_trip_keeps_every_pixel_or_is_refused_before_anything_is_written(tmp_path, suffix, mode):
    image, path = make(mode), tmp_path / f"out{suffix}"
    if mode not in HOLDS[suffix]:
        for function in (check_writable, write):
            with pytest.raises(InputError, match=r"valid for this image: .*\.tif") as caught:
                function(path, image)
            assert "\n" not in str(caught.value)
            listed = str(caught.value).rpartition(": ")[2].split(", ")
            assert {suffix for suffix, kind in SUFFIXES.items() if mode in FORMATS[kind].modes.split()} == set(listed)
        assert not list(tmp_path.iterdir())
        return
    check_writable(path, image)
    assert not list(tmp_path.iterdir())
    write(path, image)
    back = read(path)
    if suffix in LOSSY:
        assert back.mode == ("RGBA" if mode == "LA" else mode)
        assert np.abs(back.pixels.astype(int) - image.pixels).mean() < 2
    elif suffix == ".webp" and mode[0] == "L":
        assert_same(back, ImageFile(np.repeat(image.pixels, 3, axis=2), image.alpha))
    else:
        assert_same(back, image)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("source", [CAT, ROCKET, GRAY])
@pytest.mark.parametrize("suffix", [".png", ".TIFF", ".webp", ".JPEG"])
def test_real_files_survive(tmp_path, source, suffix):
    image = read(source)
    np.testing.assert_array_equal(image.pixels.squeeze(), np.asarray(Image.open(source)))
    write(tmp_path / f"out{suffix}", image)
    back = read(tmp_path / f"out{suffix}")
    tolerance = 3 if suffix == ".JPEG" else 0
    assert np.abs(back.pixels.astype(int) - image.pixels).mean() <= tolerance
    again = read(tmp_path / f"out{suffix}")
    assert_same(again, back)


@pytest.mark.parametrize(("suffix", "mode"), HELD)
def test_metadata_is_kept(tmp_path, suffix, mode):
    image, keeps = (
        make(mode, exif=make_exif(1 if suffix == ".heic" else 6), icc=ICC, density=(300.0, 150.0), xmp=XMP),
        FORMATS[SUFFIXES[suffix]].keeps,
    )
    said = " ".join(check_writable(tmp_path / f"out{suffix}", image))
    for field, words in (("exif", "EXIF"), ("icc", "ICC"), ("density", "resolution"), ("xmp", "XMP")):
        assert (words in said) == (field not in keeps), said
    write(tmp_path / f"out{suffix}", image)
    back = read(tmp_path / f"out{suffix}")
    assert back.pixels.shape[:2] == image.pixels.shape[:2]  # not turned, though the orientation says so
    density = pytest.approx((300, 150), abs=0.02)  # PNG counts whole dots per metre
    assert back.density == (density if "density" in keeps else None)
    assert back.xmp == (XMP if "xmp" in keeps else b"")
    assert back.icc == (ICC if "icc" in keeps else b"")
    if "exif" in keeps and mode != "LA;16" and (mode == "F" or "F" not in mode):  # other TIFFs Pillow cannot read
        assert exif_of(back.exif) == exif_of(image.exif)
        with Image.open(tmp_path / f"out{suffix}") as other:
            # Some readers turn the picture and say that it stands upright: either way it is seen upright.
            assert ImageOps.exif_transpose(other).size == upright(image, image.pixels).shape[1::-1]
            assert other.info["icc_profile"] == ICC
    write(tmp_path / f"again{suffix}", back)
    again = read(tmp_path / f"again{suffix}")
    assert (again.exif, again.icc, again.density, again.xmp) == (back.exif, back.icc, back.density, back.xmp)


@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize("route", [(".jpg", ".tif", ".png"), (".tif", ".jpg", ".webp"), (".png", ".webp", ".tif")])
def test_metadata_survives_from_format_to_format(tmp_path, route, endian):
    image = make("RGB", exif=make_exif(8, endian), icc=ICC)
    wanted = exif_of(image.exif)
    for suffix in route:
        write(tmp_path / f"out{suffix}", image)
        image = read(tmp_path / f"out{suffix}")
        assert exif_of(image.exif) == wanted
        assert image.icc == ICC


def test_files_without_metadata_get_none(tmp_path):
    for suffix, mode in HELD:
        write(tmp_path / f"out{suffix}", make(mode))
        back = read(tmp_path / f"out{suffix}")
        density = None if suffix != ".bmp" else pytest.approx((96, 96), abs=0.1)  # what Pillow writes then
        assert (back.exif, back.icc, back.density, back.xmp, back.own) == (b"", b"", density, b"", ())


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "RGB;16", "RGBA;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_not_turned_by_its_orientation(tmp_path, orientation, mode):
    image, path = make(mode), tmp_path / "in.tif"
    extra = {"extrasamples": ["unassalpha"]} if image.alpha is not None else {}
    photometric = "minisblack" if image.pixels.shape[2] == 1 else "rgb"
    tags = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(path, samples_of(image).squeeze(), photometric=photometric, metadata=None, extratags=tags, **extra)
    back = read(path)
    assert_same(back, image)
    write(tmp_path / "out.tif", back)
    assert_same(read(tmp_path / "out.tif"), image)
    with Image.open(tmp_path / "out.tif") as other:
        assert other.getexif()[274] == orientation


def test_a_damaged_exif_block_does_not_stop_a_write(tmp_path, recwarn):
    image = make("RGB", exif=b"II*\0\xff\xff\xff\xffnonsense")
    for suffix in HOLDS:
        write(tmp_path / f"out{suffix}", image)
        assert read(tmp_path / f"out{suffix}").mode == "RGB"
    assert not recwarn.list


def test_a_gray_profile_is_left_out_of_webp_which_has_no_gray(tmp_path):
    profile = ICC[:16] + b"GRAY" + ICC[20:]
    for suffix in (".png", ".webp"):
        write(tmp_path / f"out{suffix}", make("L", icc=profile))
    assert read(tmp_path / "out.png").icc == profile
    assert read(tmp_path / "out.webp").icc == b""


# 16 bits against other readers and writers


@pytest.mark.parametrize("mode", ["I;16", "LA;16", "RGB;16", "RGBA;16"])
def test_a_16_bit_png_made_by_hand_is_read_exactly(tmp_path, mode):
    image, path = make(mode), tmp_path / "hand.png"
    exif = make_exif()
    path.write_bytes(make_deep_png(samples_of(image), chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"eXIf", exif)))
    assert_same(read(path), image)
    assert read(path).exif == exif


@pytest.mark.parametrize("mode", ["I;16", "LA;16", "RGB;16", "RGBA;16"])
def test_a_written_16_bit_png_holds_the_numbers_where_they_belong(tmp_path, mode):
    image, path = make(mode), tmp_path / "out.png"
    write(path, image)
    data, parts, at = path.read_bytes(), {}, 8
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        parts[name] = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (zlib.crc32(name + parts[name]),)
        at += 12 + size
    samples = samples_of(image)
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(samples.shape[0], -1)
    assert (rows[:, 0] == 2).all()  # the filter "up"
    rows = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    np.testing.assert_array_equal(rows.view(">u2").reshape(samples.shape), samples)
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize("mode", ["I;16", "RGB;16", "RGBA;16"])
@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_16_bit_tiff_of_another_writer_is_read_exactly(tmp_path, mode, byteorder, compression):
    image, path = make(mode), tmp_path / "in.tif"
    extra = {"extrasamples": ["unassalpha"]} if image.alpha is not None else {}
    photometric = "minisblack" if mode == "I;16" else "rgb"
    options = {"byteorder": byteorder, "compression": compression, "photometric": photometric, "rowsperstrip": 16}
    tifffile.imwrite(path, samples_of(image).squeeze(), metadata=None, resolution=(120, 120), **options, **extra)
    assert_same(read(path), image)
    assert read(path).density == (120, 120)


@pytest.mark.parametrize("mode", sorted(HOLDS[".tif"]))
def test_another_reader_reads_a_written_tiff_exactly(tmp_path, mode):
    image, path = make(mode, exif=make_exif(1), icc=ICC), tmp_path / "out.tif"
    write(path, image)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        np.testing.assert_array_equal(page.asarray().reshape(samples_of(image).shape), samples_of(image))
        assert page.compression.name == "ADOBE_DEFLATE"
        assert page.photometric.name == ("RGB" if "RGB" in mode else "MINISBLACK")
        assert tuple(page.extrasamples) == ((2,) if "A" in mode else ())
        assert page.tags["InterColorProfile"].value == ICC


def test_deep_colour_without_its_readers_says_what_to_install(tmp_path, monkeypatch):
    for suffix in (".png", ".tif"):
        for mode in HOLDS[suffix]:
            write(tmp_path / f"{mode}{suffix}", make(mode))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for suffix in (".png", ".tif"):
        for mode in HOLDS[suffix]:
            if mode in ("L", "LA", "RGB", "RGBA", "I;16"):
                assert read(tmp_path / f"{mode}{suffix}").mode == mode
            else:
                refused(tmp_path / f"{mode}{suffix}", "pip install 'rcnet[16bit]'")
    write(tmp_path / "out.tif", make("RGB;16"))


def test_a_16_bit_image_that_is_misread_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "in.png", make("RGB;16"))
    monkeypatch.setattr(imagecodecs, "png_decode", lambda *_: np.zeros((90, 120, 3), np.uint16))
    refused(tmp_path / "in.png", "differently")


# Palettes and transparent colours


def test_palette_and_black_and_white_images_become_plain_ones(tmp_path):
    colour = Image.open(ROCKET)
    palette = colour.quantize(64)
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "palette.bmp")
    for name in ("palette.png", "palette.bmp"):
        assert_same(read(tmp_path / name), ImageFile(np.asarray(palette.convert("RGB"))))
    palette.save(tmp_path / "clear.png", transparency=bytes(range(64)))
    back = read(tmp_path / "clear.png")
    np.testing.assert_array_equal(back.alpha, np.asarray(palette))  # colour k has the alpha k
    np.testing.assert_array_equal(back.pixels, np.asarray(palette.convert("RGB")))
    black = colour.convert("1")
    for name in ("black.png", "black.tif"):
        black.save(tmp_path / name)
        assert_same(read(tmp_path / name), ImageFile(np.asarray(black).astype(np.uint8)[:, :, None] * 255))


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "RGB;16"])
def test_the_transparent_colour_of_a_png_becomes_alpha(tmp_path, mode):
    image, path = make(mode), tmp_path / "in.png"
    key = image.pixels[40, 50]
    rows = b"".join(b"\0" + row.astype(f">u{row.dtype.itemsize}").tobytes() for row in image.pixels)
    head = (120, 90), image.pixels.dtype.itemsize * 8, 0 if len(key) == 1 else 2
    path.write_bytes(make_png(rows, *head, chunk(b"tRNS", struct.pack(f">{len(key)}H", *key.tolist()))))
    back = read(path)
    np.testing.assert_array_equal(back.pixels, image.pixels)
    opaque = np.iinfo(image.pixels.dtype).max
    np.testing.assert_array_equal(back.alpha, np.where((image.pixels == key).all(axis=2), 0, opaque))
    assert back.alpha.dtype == image.pixels.dtype
    write(tmp_path / "out.png", back)
    assert_same(read(tmp_path / "out.png"), back)


@pytest.mark.parametrize(("bits", "key"), [(1, 1), (2, 2), (4, 9)])
def test_the_transparent_gray_of_few_bits_is_found(tmp_path, bits, key):
    values = np.arange(1 << bits).repeat(8)
    packed = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(len(values) * bits // 8, "big")
    path = tmp_path / "in.png"
    path.write_bytes(make_png(b"\0" + packed, (len(values), 1), bits, 0, chunk(b"tRNS", struct.pack(">H", key))))
    back = read(path)
    np.testing.assert_array_equal(back.pixels[0, :, 0], values * (255 // ((1 << bits) - 1)))
    np.testing.assert_array_equal(back.alpha[0], np.where(values == key, 0, 255))


# What is written


def test_jpeg_keeps_full_colour_resolution(tmp_path):
    write(tmp_path / "out.jpg", make("RGB"))
    with Image.open(tmp_path / "out.jpg") as image:
        assert JpegImagePlugin.get_sampling(image) == 0


@pytest.mark.parametrize(("quality", "kept"), [(50, 90), (92, 92), (100, 100)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_comes_back_at_its_quality_and_subsampling(tmp_path, quality, kept, subsampling):
    Image.open(ROCKET).save(tmp_path / "in.jpg", quality=quality, subsampling=subsampling)
    Image.open(ROCKET).save(tmp_path / "wanted.jpg", quality=kept, subsampling=subsampling)
    write(tmp_path / "out.jpg", read(tmp_path / "in.jpg"))
    with Image.open(tmp_path / "out.jpg") as image, Image.open(tmp_path / "wanted.jpg") as wanted:
        assert image.quantization == wanted.quantization
        assert JpegImagePlugin.get_sampling(image) == subsampling
    write(tmp_path / "out.webp", read(tmp_path / "in.jpg"))  # another format's coding says nothing of this one
    assert_same(read(tmp_path / "out.webp"), read(tmp_path / "in.jpg"))


@pytest.mark.parametrize("exif", [b"", make_exif()])
def test_a_lossy_webp_stays_lossy_and_a_lossless_one_lossless(tmp_path, exif):
    for lossless in (False, True):
        Image.open(ROCKET).save(tmp_path / "in.webp", lossless=lossless, quality=80, exif=exif)
        image = read(tmp_path / "in.webp")
        write(tmp_path / "out.webp", image)
        back = read(tmp_path / "out.webp")
        assert back.coding == image.coding
        assert np.array_equal(back.pixels, image.pixels) == lossless
        assert np.abs(back.pixels.astype(int) - image.pixels).mean() < 2


def test_the_pages_of_a_stack(tmp_path):
    stack = np.stack([make("F16").pixels[:, :, 0] / k for k in (1, 2, 3)])
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack", description="a stack")
    pages = read_pages(tmp_path / "in.tif")
    pages = [dataclasses.replace(page, exif=make_exif()) for page in pages]
    write(tmp_path / "out.tif", *pages)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), stack)
    back = read_pages(tmp_path / "out.tif")
    assert exif_of(back[0].exif) == exif_of(make_exif())
    assert len(back) == 3
    assert encode(pages[0], "TIFF", *pages[1:]) == (tmp_path / "out.tif").read_bytes()
    with pytest.raises(InputError, match=r"PNG stores one page and there are 3; valid: \.tif"):
        check_writable(tmp_path / "out.png", *pages)
    refused(tmp_path / "in.tif", "has 3 pages", "--pages all")
    assert len(read_pages(ROCKET)) == 1


def test_imagej_stacks_keep_their_words(tmp_path):
    stack = np.stack([make("I;16").pixels[:, :, 0], make("I;16").pixels[::-1, :, 0]])
    tifffile.imwrite(tmp_path / "in.tif", stack, imagej=True, metadata={"unit": "um", "axes": "ZYX"})
    write(tmp_path / "out.tif", *read_pages(tmp_path / "in.tif"))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.imagej_metadata["slices"] == 2
        np.testing.assert_array_equal(file.asarray(), stack)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_tiffs_in_ycbcr_become_rgb(tmp_path, compression):
    colour = Image.open(ROCKET)
    colour.convert("YCbCr").save(tmp_path / "in.tif", compression=compression)
    assert np.abs(read(tmp_path / "in.tif").pixels.astype(int) - np.asarray(colour)).max() <= 3


def test_the_first_image_of_a_camera_jpeg_with_several_is_read(tmp_path):
    first, second = Image.open(ROCKET), Image.open(ROCKET).resize((32, 32))
    first.save(tmp_path / "in.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(tmp_path / "in.jpg") as image:
        assert image.n_frames == 2
        np.testing.assert_array_equal(read(tmp_path / "in.jpg").pixels, np.asarray(image))


def test_a_link_is_written_through_and_the_file_is_readable_by_others(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "folder" / "real.png")
    write(tmp_path / "link.png", make("L"))
    assert (tmp_path / "link.png").is_symlink()
    assert_same(read(tmp_path / "folder" / "real.png"), make("L"))
    (tmp_path / "plain").touch()
    assert (tmp_path / "folder" / "real.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def half_a_file(*_args, **_kwargs):
    _args[1].write(b"half a file")
    raise OSError("encoder error -2")


def half_a_disk(path, data):
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    raise OSError(28, "No space left on device")


def no_replacing(*_):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("owner", "name", "failure"),
    [(Image.Image, "save", half_a_file), (Path, "write_bytes", half_a_disk), (os, "replace", no_replacing)],
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch, owner, name, failure, exists):
    path = tmp_path / "out.png"
    if exists:
        write(path, make("L"))
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    monkeypatch.setattr(owner, name, failure)
    with pytest.raises(InputError, match="cannot be written"):
        write(path, make("RGB"))
    monkeypatch.undo()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(path, data):
        path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out.png", make("L"))
    assert not list(tmp_path.iterdir())


def test_a_file_can_replace_itself(tmp_path):
    path = tmp_path / "same.tif"
    write(path, make("RGB;16", exif=make_exif()))
    write(path, read(path))
    assert_same(read(path), make("RGB;16"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.gif", ["'.gif'", ".png, .jpg, .jpeg,"]),
        ("out", ["''", ".png"]),
        ("none/out.png", ["none", "existing folder"]),
        ("file/out.png", ["existing folder"]),
        ("folder.png", ["it is a folder"]),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path, name, words):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for function in (check_writable, write):
        with pytest.raises(InputError) as caught:
            function(tmp_path / name, make("L"))
        assert all(word in str(caught.value) for word in [str(tmp_path / name), *words])
        assert "\n" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file", "folder.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="is not an existing, writable folder"):
        check_writable(tmp_path / "locked" / "out.png", make("L"))


def test_sizes_beyond_a_format_are_refused():
    wide = ImageFile(np.zeros((1, 16384, 1), np.uint8))
    with pytest.raises(InputError, match=r"WebP stores at most 16383 pixels per side; valid for this image: \.png, \.jpg"):
        check_writable("out.webp", wide)
    check_writable("out.jpg", wide)
    with pytest.raises(InputError, match=r"JPEG stores at most 65500 pixels per side; .*: \.png, \.tif, \.tiff, \.bmp"):
        check_writable("out.jpg", ImageFile(np.zeros((65501, 1, 3), np.uint8)))
    with pytest.raises(InputError, match="bytes of EXIF"):
        check_writable("out.jpg", make("L", exif=bytes(70000)))


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 65500), (".webp", 16383)])
def test_the_largest_sizes_can_be_written(tmp_path, suffix, side):
    write(tmp_path / f"out{suffix}", ImageFile(np.zeros((1, side, 1), np.uint8)))
    assert read(tmp_path / f"out{suffix}").pixels.shape[1] == side


# What is refused


def test_paths_that_are_no_image_files_are_refused(tmp_path):
    refused(tmp_path / "none.png", "does not exist", "valid")
    refused(tmp_path, "is a folder", "valid")
    refused(tmp_path / f"{'long' * 100}.png", "cannot be read", "valid")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty", "valid")
    (tmp_path / "text.png").write_text("this is not a picture\n")
    refused(tmp_path / "text.png", "is not a readable image", "PNG, JPEG, TIFF, WebP, BMP")
    (tmp_path / "zero.png").write_bytes(make_png(b"", (0, 0), 8, 0))
    refused(tmp_path / "zero.png")
    (tmp_path / "zero.tif").write_bytes(b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    refused(tmp_path / "zero.tif")


@pytest.mark.parametrize(("suffix", "mode"), HELD)
def test_truncated_files_are_refused(tmp_path, suffix, mode):
    write(tmp_path / f"whole{suffix}", make(mode))
    data = (tmp_path / f"whole{suffix}").read_bytes()
    for size in (1, 12, 40, len(data) // 10, len(data) // 2, len(data) * 9 // 10, len(data) - 30):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(data[:size])
        refused(path, "valid")


def test_pixels_of_other_kinds_are_refused(tmp_path):
    colour = Image.open(ROCKET)
    lab = ImageCms.profileToProfile(colour, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    for image in (lab, Image.open(GRAY).convert("I")):
        image.save(tmp_path / "in.tif")
        refused(tmp_path / "in.tif", "valid")
    for values in ([np.nan, 1, 2, 3], [-2, 0, 1, 2], [np.inf, 1, 2, 3]):  # not brightness from 0 up
        tifffile.imwrite(tmp_path / "float.tif", np.array(values, np.float32).reshape(2, 2))
        refused(tmp_path / "float.tif", "values from")


@pytest.mark.parametrize("extra", ["assocalpha", "unspecified"])
def test_extra_channels_that_are_no_plain_alpha_are_refused(tmp_path, extra):
    tifffile.imwrite(tmp_path / "in.tif", samples_of(make("RGBA;16")), metadata=None, photometric="rgb", extrasamples=[extra])
    refused(tmp_path / "in.tif", "premultiplied alpha or an extra channel")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("mode", ["RGB;16", "I;16", "LA;16", "RGB;F", "F", "RGB;F16", "F16"])
def test_tiffs_of_scientists_are_read_exactly(tmp_path, mode, compression):
    image, path = make(mode), tmp_path / "in.tif"
    samples, options = samples_of(image).squeeze(), {}
    if mode[:3] == "RGB":
        samples, options = samples.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}
    elif mode == "LA;16":
        options = {"photometric": "minisblack", "extrasamples": ["unassalpha"]}
    elif mode == "I;16":
        samples, options = 65535 - samples, {"photometric": "miniswhite"}
    tifffile.imwrite(path, np.ascontiguousarray(samples), metadata=None, compression=compression, **options)
    assert_same(read(path), image)


def test_imagej_keeps_its_words(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", make("I;16").pixels[:, :, 0], imagej=True, metadata={"unit": "um", "Info": "cells"})
    write(tmp_path / "out.tif", read(tmp_path / "in.tif"))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.imagej_metadata["unit"] == "um"
        assert file.imagej_metadata["Info"] == "cells"


# What other programs write beside the pixels


def test_what_only_a_png_keeps_comes_back_or_is_named(tmp_path):
    own = {b"gAMA": struct.pack(">I", 100000), b"cHRM": bytes(range(32)), b"cICP": bytes((9, 16, 0, 1)), b"tEXt": b"Title\0A cat"}
    (tmp_path / "in.png").write_bytes(make_png(b"\0\x10\x20", (2, 1), 8, 0, *(chunk(*pair) for pair in own.items())))
    image = read(tmp_path / "in.png")
    write(tmp_path / "out.png", image)
    data = (tmp_path / "out.png").read_bytes()
    for name, value in own.items():
        assert chunk(name, value) in data
    said = " ".join(check_writable(tmp_path / "out.jpg", image))
    assert all(word in said for word in ("gamma", "primaries", "cICP", "text"))


def test_what_only_a_jpeg_keeps_comes_back_or_is_named(tmp_path):
    iptc = b"Photoshop 3.0\x008BIM\x04\x04" + bytes(6)
    extra = struct.pack(">BBH", 0xFF, 0xED, len(iptc) + 2) + iptc
    Image.open(ROCKET).save(tmp_path / "in.jpg", comment=b"shot by hand", extra=extra, quality=95)
    image = read(tmp_path / "in.jpg")
    write(tmp_path / "out.jpg", image)
    back = read(tmp_path / "out.jpg")
    assert sorted(back.own) == sorted(image.own) == [("APP13", iptc), ("COM", b"shot by hand")]
    said = " ".join(check_writable(tmp_path / "out.png", image))
    assert "comments" in said
    assert "IPTC" in said


@pytest.mark.parametrize("unit", ["inch", "cm", ""])
@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".png"])
def test_the_unit_of_the_resolution_comes_back(tmp_path, suffix, unit):
    image = make("RGB", density=(200.0, 100.0), unit=unit)
    write(tmp_path / f"out{suffix}", image)
    back = read(tmp_path / f"out{suffix}")
    per_inch = {"inch": 1, "cm": 2.54, "": 1}
    across = tuple(dots * per_inch[back.unit] for dots in back.density)
    assert across == pytest.approx(tuple(dots * per_inch[unit] for dots in image.density), rel=1e-3)
    assert bool(back.unit) == bool(unit)


def test_cmyk_becomes_rgb_and_says_so(tmp_path):
    colour = Image.open(ROCKET)
    for name in ("in.jpg", "in.tif"):
        colour.convert("CMYK").save(tmp_path / name)
        image = read(tmp_path / name)
        assert image.mode == "RGB"
        assert any("CMYK became RGB" in note for note in image.notes)
        assert np.abs(image.pixels.astype(int) - np.asarray(colour)).mean() < 3


def test_a_page_and_its_thumbnail(tmp_path):
    page = Image.open(ROCKET)
    page.save(tmp_path / "in.tif", save_all=True, append_images=[page.resize((page.width // 4, page.height // 4))])
    image = read(tmp_path / "in.tif")
    np.testing.assert_array_equal(image.pixels, np.asarray(page))
    assert "reduced copy" in " ".join(image.notes)


def test_bytes_and_file_objects(tmp_path):
    image = make("RGB", exif=make_exif())
    data = encode(image, "PNG")
    write(tmp_path / "out.png", image)
    assert (tmp_path / "out.png").read_bytes() == data
    assert_same(read(data), image)
    with (tmp_path / "out.png").open("rb") as file:
        assert_same(read(file), image)
    with pytest.raises(InputError, match="unknown format"):
        encode(image, "GIF")


def test_the_value_of_white():
    for top, white in ((200, 255), (900, 1023), (2536, 4095), (16000, 16383), (60000, 65535)):
        assert white_level(ImageFile(np.array([[[0], [top]]], np.uint16))) == white
    assert white_level(make("L")) == 255
    assert white_level(make("F")) == 1
    assert white_level(ImageFile(np.array([[[0.0], [99.5]]], np.float32))) == 100


def test_several_frames_are_refused(tmp_path):
    frames = [Image.open(ROCKET).rotate(angle) for angle in (0, 90)]
    for name in ("in.png", "in.webp", "in.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        refused(tmp_path / name, "has 2 pages: split it" if name == "in.tif" else "animated or has several pages")


@pytest.mark.parametrize("mode", ["RGB", "RGB;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_decompression_bomb_is_refused_and_a_large_image_is_read_in_silence(
    tmp_path, monkeypatch, recwarn, capfd, mode, suffix
):
    image, path = make(mode), tmp_path / f"in{suffix}"
    write(path, image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 120 - 1)
    assert_same(read(path), image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 120 // 2 - 1)
    monkeypatch.setattr(imagecodecs, "png_decode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_: pytest.fail("decoded"))
    refused(path, "10800 pixels", "valid")
    assert not [warning for warning in recwarn if issubclass(warning.category, Image.DecompressionBombWarning)]
    assert capfd.readouterr() == ("", "")


def test_floats_of_a_portable_map_are_refused(tmp_path):
    (tmp_path / "x.pfm").write_bytes(b"Pf\n8 8\n-1.0\n" + np.linspace(0, 1, 64, dtype="<f4").tobytes())
    with pytest.raises(InputError, match="mode F"):
        read(tmp_path / "x.pfm")


def test_colours_that_are_not_srgb_are_kept_or_said(tmp_path):
    image = Image.open(CAT).convert("RGB").resize((60, 40))
    image.save(tmp_path / "a.jp2")
    data = (tmp_path / "a.jp2").read_bytes()
    at, head = data.find(b"colr") - 4, data.find(b"jp2h") - 4
    old = int.from_bytes(data[at : at + 4])
    box = struct.pack(">I4sBBB", 11 + len(ICC), b"colr", 2, 0, 0) + ICC
    grown = int.from_bytes(data[head : head + 4]) + len(box) - old
    (tmp_path / "b.jp2").write_bytes(data[:head] + struct.pack(">I", grown) + data[head + 4 : at] + box + data[at + old :])
    wide = read(tmp_path / "b.jp2")
    assert (read(tmp_path / "a.jp2").icc, wide.icc) == (b"", ICC)
    write(tmp_path / "b.png", wide)
    assert read(tmp_path / "b.png").icc == ICC
    assert "the ICC profile" in " ".join(check_writable(tmp_path / "c.jp2", wide))
    image.save(tmp_path / "a.avif")
    data = bytearray((tmp_path / "a.avif").read_bytes())
    assert read(tmp_path / "a.avif").notes == ()
    data[data.find(b"colrnclx") + 9] = 12  # the primaries of Display P3
    (tmp_path / "b.avif").write_bytes(data)
    assert "primaries 12" in " ".join(read(tmp_path / "b.avif").notes)


def test_tags_and_chunks_that_are_not_kept_are_said(tmp_path):
    Image.open(CAT).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    chunk = struct.pack(">I", 4) + b"oFFs" + bytes(4) + struct.pack(">I", zlib.crc32(b"oFFs" + bytes(4)))
    (tmp_path / "b.png").write_bytes(data[:33] + chunk + data[33:])
    assert (read(tmp_path / "a.png").notes, read(tmp_path / "b.png").notes) == ((), ("its chunks oFFs are not kept",))
    Image.open(CAT).save(tmp_path / "b.tif", tiffinfo={34118: b"scale", 315: "somebody"})
    assert read(tmp_path / "b.tif").notes == ("its tags 34118 are not kept",)
