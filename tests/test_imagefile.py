"""Image files: every format, depth and channel comes back as it was, with its metadata, or is refused in one line."""

import os
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, JpegImagePlugin

from rcnet.data.imagefile import ImageFile, as_float, check_writable, from_float, read, write
from rcnet.errors import InputError

IMAGES = Path(__file__).parent / "images"
CAT, ROCKET = IMAGES / "cat.png", IMAGES / "rocket.png"
GRAY = sorted((IMAGES / "bsd" / "test").glob("*.png"))[0]
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HOLDS = {".png": {"L", "LA", "RGB", "RGBA", "I;16", "LA;16", "RGB;16", "RGBA;16"}, ".jpg": {"L", "RGB"}}
HOLDS |= {".tif": HOLDS[".png"] - {"LA;16"}, ".webp": {"L", "LA", "RGB", "RGBA"}}
ALL = sorted(HOLDS[".png"])
HELD = [(suffix, mode) for suffix, modes in HOLDS.items() for mode in sorted(modes)]


def make(mode: str, **metadata) -> ImageFile:
    """A real photograph in a mode; at 16 bits with low bytes unlike the high ones, so that swapped bytes show."""
    pixels = np.asarray(Image.open(GRAY if mode[0] in "LI" else ROCKET))
    pixels = np.atleast_3d(pixels)[:90, :120].copy()
    alpha = np.add.outer(np.arange(90), np.arange(120)).astype(np.uint8) if "A" in mode else None
    if "16" in mode:
        pixels = pixels.astype(np.uint16) * 251 + np.arange(120, dtype=np.uint16)[None, :, None]
        alpha = None if alpha is None else alpha.astype(np.uint16) * 253 + 5
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
            with pytest.raises(InputError, match=r"valid for this image: .*\.png") as caught:
                function(path, image)
            assert "\n" not in str(caught.value)
            listed = str(caught.value).rpartition(": ")[2].split(", ")
            assert {other for other in HOLDS if mode in HOLDS[other]} == set(listed) - {".tiff", ".jpeg"}
        assert not list(tmp_path.iterdir())
        return
    check_writable(path, image)
    assert not list(tmp_path.iterdir())
    write(path, image)
    back = read(path)
    if suffix == ".jpg":
        assert back.mode == mode
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
    image = make(mode, exif=make_exif(), icc=ICC, dpi=(300.0, 150.0))
    write(tmp_path / f"out{suffix}", image)
    back = read(tmp_path / f"out{suffix}")
    assert back.pixels.shape[:2] == image.pixels.shape[:2]  # not turned, though the orientation says so
    assert exif_of(back.exif) == exif_of(image.exif)
    assert back.icc == ICC
    assert back.dpi == (None if suffix == ".webp" else pytest.approx((300, 150), abs=0.02))  # PNG counts whole dots per metre
    with Image.open(tmp_path / f"out{suffix}") as other:
        assert other.getexif()[0x0112] == 6
        assert other.info["icc_profile"] == ICC
    write(tmp_path / f"again{suffix}", back)
    again = read(tmp_path / f"again{suffix}")
    assert (exif_of(again.exif), again.icc, again.dpi) == (exif_of(back.exif), back.icc, back.dpi)


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
        assert (back.exif, back.icc, back.dpi) == (b"", b"", None)


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
    assert read(path).dpi == (120, 120)


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


def test_16_bit_colour_without_opencv_says_what_to_install(tmp_path, monkeypatch):
    for mode in ALL:
        write(tmp_path / f"{mode}.png", make(mode))
    monkeypatch.setitem(sys.modules, "cv2", None)
    for mode in ALL:
        if mode in ("RGB;16", "RGBA;16", "LA;16"):
            refused(tmp_path / f"{mode}.png", "16-bit colour needs OpenCV: pip install 'rcnet[16bit]'")
        else:
            assert read(tmp_path / f"{mode}.png").mode == mode
    write(tmp_path / "out.tif", make("RGB;16"))


def test_a_16_bit_image_that_opencv_misreads_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "in.png", make("RGB;16"))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((90, 120, 3), np.uint16))
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
        ("out.gif", ["'.gif'", ".png, .jpg, .jpeg, .tif, .tiff, .webp"]),
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
    with pytest.raises(InputError, match="can be written to"):
        check_writable(tmp_path / "locked" / "out.png", make("L"))


def test_sizes_beyond_a_format_are_refused():
    wide = ImageFile(np.zeros((1, 16384, 1), np.uint8))
    with pytest.raises(InputError, match=r"WebP holds at most 16383 pixels a side; valid for this image: \.png, \.jpg"):
        check_writable("out.webp", wide)
    check_writable("out.jpg", wide)
    with pytest.raises(InputError, match=r"JPEG holds at most 65500 pixels a side; .*: \.png, \.tif, \.tiff$"):
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
    refused(tmp_path / "text.png", "is not such an image", "PNG, JPEG, TIFF, WebP or BMP")
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
    colour, gray = Image.open(ROCKET), Image.open(GRAY)
    lab = ImageCms.profileToProfile(colour, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    cmyk = colour.convert("CMYK")
    cmyk.save(tmp_path / "in.jpg")
    refused(tmp_path / "in.jpg", "mode CMYK", "RGB", "I;16")
    for image in (cmyk, lab, gray.convert("F"), gray.convert("I")):
        image.save(tmp_path / "in.tif")
        refused(tmp_path / "in.tif", f"mode {image.mode}", "RGB", "I;16")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((8, 8, 3), np.float32), photometric="rgb")
    refused(tmp_path / "float.tif", "valid")


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb", "planarconfig": "separate"},
        {"photometric": "rgb", "extrasamples": ["assocalpha"]},
        {"photometric": "rgb", "extrasamples": ["unspecified"]},
        {"photometric": "miniswhite"},
        {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
    ],
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiffs_that_the_libraries_get_wrong_are_refused(tmp_path, options, compression):
    samples = samples_of(make("LA;16" if options["photometric"] == "minisblack" else "RGBA;16"))
    count = {"miniswhite": 1, "minisblack": 2}.get(options["photometric"], 4 if "extrasamples" in options else 3)
    samples = samples[:, :, :count].squeeze()
    samples = samples.transpose(2, 0, 1) if "planarconfig" in options else samples
    tifffile.imwrite(tmp_path / "in.tif", np.ascontiguousarray(samples), metadata=None, compression=compression, **options)
    refused(tmp_path / "in.tif", "valid")


def test_several_frames_are_refused(tmp_path):
    frames = [Image.open(ROCKET).rotate(angle) for angle in (0, 90)]
    for name in ("in.png", "in.webp", "in.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        refused(tmp_path / name, "animated or has several pages")


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
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    refused(path, "10800 pixels", "valid")
    assert not [warning for warning in recwarn if issubclass(warning.category, Image.DecompressionBombWarning)]
    assert capfd.readouterr() == ("", "")


# Floats


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_level_survives_as_a_float(dtype, kind):
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, -1, 1)
    image = ImageFile(levels, levels[:, :, 0], b"exif", b"icc", (72.0, 72.0))
    values = as_float(image)
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == (0, 1)
    back = from_float(ImageFile(np.zeros_like(levels), *(image.alpha, image.exif, image.icc, image.dpi)), values.astype(kind))
    assert_same(back, image)
    assert (back.exif, back.icc, back.dpi) == (b"exif", b"icc", (72.0, 72.0))


def test_floats_are_clamped_and_rounded():
    values = np.array([-3, -0.1, 0.499 / 255, 0.501 / 255, 0.999, 1.7, np.inf]).reshape(1, -1, 1)
    image = ImageFile(np.zeros((1, 7, 1), np.uint8))
    assert from_float(image, values).pixels.ravel().tolist() == [0, 0, 0, 1, 255, 255, 255]
    deep = ImageFile(np.zeros((1, 2, 1), np.uint16))
    assert from_float(deep, np.array([[[0.5], [1.0]]], np.float16)).pixels.ravel().tolist() == [32768, 65535]


def test_values_that_are_no_pixels_are_refused():
    image = make("RGB")
    for values in (np.zeros((3, 3, 3)), np.zeros(image.pixels.shape[:2]), np.full(image.pixels.shape, np.nan)):
        with pytest.raises(InputError, match=r"valid: \(90, 120, 3\)"):
            from_float(image, values)
