"""`rcnet denoise` on what people have: any noise, none at all, and the options that say what is known of it."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data

from rcnet.cli.denoise import found
from rcnet.cli.pictures import Done
from rcnet.data.formats import NAMES
from rcnet.data.imagefile import read
from rcnet.setting import Setting

from .conftest import IMAGES

CLEAN = data.astronaut()[60:220, 160:360]


def save_noisy(path, sigma, clean=CLEAN, seed=0):
    noisy = clean / 255 + np.random.default_rng(seed).normal(0, 1, clean.shape) * np.asarray(sigma) / 255
    Image.fromarray(np.rint(noisy.clip(0, 1) * 255).astype(np.uint8)).save(path)


def pixels(path):
    return np.asarray(Image.open(path)).astype(float)


def psnr(path, clean=CLEAN):
    return -10 * np.log10(np.mean((pixels(path) - clean) ** 2) / 255**2)


def removed(err):
    return float(re.findall(r"removed (?:what amounts to sigma )?([\d.]+)", err)[-1])


@pytest.mark.parametrize("steps", ["1", "2", "3"])
def test_clean_pictures_stay(run, tmp_path, steps):
    Image.fromarray(CLEAN).save("clean.png")
    Image.fromarray(CLEAN[..., 1]).save("gray.png")
    for level in (0, 128, 255):
        Image.fromarray(np.full((64, 64, 3), level, np.uint8)).save(f"flat{level}.png")
    status, _, err = run("denoise", ".", "--out-dir", "out", "--steps", steps)
    assert status == 0, err
    assert psnr("out/clean.png") > 38
    assert psnr("out/gray.png", CLEAN[..., 1]) > 38
    for level in (0, 128, 255):
        assert np.abs(pixels(f"out/flat{level}.png") - level).mean() <= 1
    assert "flat128.png: nearly no noise found" in err


def test_results_in_a_folder_of_the_images_are_no_images_the_next_time(run, tmp_path):
    save_noisy("a.png", 10)
    for name in ("b.png", "c.png"):
        status, _, err = run("denoise", ".", "--out-dir", "clean", "--steps", "1")
        assert status == 0, err
        save_noisy(name, 10)
    assert sorted(path.name for path in (tmp_path / "clean").rglob("*.png")) == ["a.png", "b.png"]
    assert "skipped 1 earlier result" in err
    (tmp_path / "some").mkdir()
    save_noisy("some/d.png", 10)
    assert run("denoise", "some", "--out-dir", ".", "--steps", "1")[0] == 0  # the folder above is no folder of results
    assert (tmp_path / "d.png").is_file()


@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_any_noise_is_found_and_removed(run, tmp_path, sigma):
    save_noisy("a.png", sigma)
    status, _, err = run("denoise", "a.png")
    assert status == 0, err
    assert psnr("a-denoised.png") > psnr("a.png") + {10: 3, 25: 7, 50: 10}[sigma]
    assert 0.7 * sigma < removed(err) < 1.1 * sigma


def test_a_known_level_is_told(run, tmp_path):
    Image.fromarray(CLEAN).save("clean.png")
    save_noisy("a.png", 25)
    assert run("denoise", "clean.png", "--sigma", "0", "--model", "r3_fast.color")[0] == 0
    assert psnr("clean-denoised.png") > 45
    for sigma in ("5", "25"):
        assert run("denoise", "a.png", "--sigma", sigma, "-o", f"{sigma}.png")[0] == 0
    assert run("denoise", "a.png")[0] == 0
    assert psnr("25.png") > psnr("5.png") + 0.5
    assert abs(psnr("25.png") - psnr("a-denoised.png")) < 0.3  # the judge finds it


def test_a_map_tells_the_level_of_each_pixel(run, tmp_path):
    level = np.zeros(CLEAN.shape[:2], np.uint8)
    level[:, 100:] = 30
    Image.fromarray(level).save("map.png")
    save_noisy("a.png", level[..., None])
    assert run("denoise", "a.png", "--sigma-map", "map.png", "--model", "r3_fast.color")[0] == 0
    error = np.square(pixels("a-denoised.png") - CLEAN).mean((0, 2))
    assert error[:90].max() == 0
    assert 15 < error[110:].mean() < 0.2 * 30**2


def test_strength_multiplies_what_is_told(run, tmp_path):
    save_noisy("a.png", 25)
    before = pixels("a.png").astype(float)
    for strength in ("0", "0.25", "0.5", "1", "2"):
        assert run("denoise", "a.png", "--strength", strength, "-o", f"{strength}.png")[0] == 0
    changes = [np.square(pixels(f"{strength}.png") - before).mean() for strength in ("0", "0.25", "0.5", "1", "2")]
    assert changes[0] == 0
    assert changes == sorted(changes)
    assert run("denoise", "a.png", "--sigma", "20", "--strength", "0.5", "-o", "half.png")[0] == 0
    assert run("denoise", "a.png", "--sigma", "10", "-o", "ten.png")[0] == 0
    assert np.array_equal(pixels("half.png"), pixels("ten.png"))


def test_strength_scales_what_is_removed_where_no_coarse_level_is_told(run, tmp_path):
    save_noisy("a.png", 25)
    for strength in ("0", "0.5", "1"):
        assert run("denoise", "a.png", "--strength", strength, "-o", f"{strength}.png", "--model", "r3_fast.color")[0] == 0
    before, half, after = (pixels(f"{name}.png") for name in ("0", "0.5", "1"))
    assert np.array_equal(before, pixels("a.png"))
    inside = (after > 0) & (after < 255)
    assert np.abs(half - (before + after) / 2)[inside].max() <= 1


def test_what_is_found_is_not_said_to_be_removed(run, tmp_path):
    save_noisy("a.png", 25, CLEAN[..., 1])
    _, _, err = run("denoise", "a.png", "--strength", "0", "--steps", "1")
    assert re.search(r"a.png: found what amounts to sigma 2\d\.\d \(of 255\), none of it removed", err), err
    _, _, err = run("denoise", "a.png", "--strength", "0.5", "--steps", "1")
    assert re.search(r"found what amounts to sigma 2\d\.\d \(of 255\), 0.5 of it removed", err), err


def test_what_was_removed_is_said_of_networks_that_are_told_it():
    done = Done({}, Setting((1, 1, 1)), 4.0, 1.0, None)  # of two levels, without a judge, at any strength
    assert found([done]) == "removed what amounts to sigma 4.0 (of 255)"
    assert "found what amounts to sigma 4.0 (of 255), 0.5 of it" in found([done._replace(strength=0.5)])


def test_half_floats_in_linear_light_gain_and_stay_half(run, tmp_path):
    clean = (CLEAN / 255.0) ** 2.2
    clean[:5, :9] = 12
    noisy = (clean + np.random.default_rng(0).normal(0, 0.02, clean.shape)).astype(np.float16)
    tifffile.imwrite("a.tif", noisy, photometric="rgb")
    status, _, err = run("denoise", "a.tif")
    assert status == 0, err
    assert err.count("is taken for white") == 1
    result = tifffile.imread("a-denoised.tif")
    assert result.dtype == np.float16
    assert np.square(result.astype(float) - clean).mean() < 0.7 * np.square(noisy.astype(float) - clean).mean()


def test_a_mosaic_is_warned_of(run, tmp_path):
    raw = CLEAN[:, :, 1].astype(np.uint16) * 100
    raw[::2, ::2], raw[1::2, 1::2] = CLEAN[::2, ::2, 0] * 50, CLEAN[1::2, 1::2, 2] * 40
    tifffile.imwrite("a.tif", raw)
    assert "a.tif: its pixels differ in a pattern of 2x2" in run("denoise", "a.tif", "--steps", "1")[2]


def test_all_pages_of_a_stack(run, refused, tmp_path):
    clean = np.stack([CLEAN[..., 1], CLEAN[::-1, :, 1]]) * 16.0
    noisy = np.rint(np.clip(clean + np.random.default_rng(0).normal(0, 300, clean.shape), 0, 4095)).astype(np.uint16)
    tifffile.imwrite("a.tif", noisy, imagej=True, metadata={"axes": "ZYX", "unit": "um"})
    assert "has 2 pages: split it" in refused("denoise", "a.tif")
    assert "leave out --compare" in refused("denoise", "a.tif", "--pages", "all", "--compare")
    assert "one page" in refused("denoise", "a.tif", "--pages", "all", "-o", "a.png")
    status, _, err = run("denoise", "a.tif", "--pages", "all", "--steps", "1")
    assert status == 0, err
    assert err.count("4095 is taken for white") == 1
    with tifffile.TiffFile("a-denoised.tif") as file:
        assert file.imagej_metadata["slices"] == 2
        result = file.asarray()
    for page in range(2):
        assert np.square(result[page] - clean[page]).mean() < 0.4 * np.square(noisy[page] - clean[page]).mean()


def test_resume_skips_what_is_done(run, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        save_noisy(f"in/{name}.png", 25)
    command = ("denoise", "in", "--out-dir", "out", "--steps", "1", "--resume")
    assert run(*command)[1].split() == ["out/a.png", "out/b.png"]
    os.utime("in/b.png", ns=(0, os.stat("out/b.png").st_mtime_ns + 1))
    status, out, err = run(*command)
    assert (status, out.split()) == (0, ["out/b.png"])
    assert "skipped 1 of 2 images: their results are newer" in err
    assert run(*command[:-1])[1].split() == ["out/a.png", "out/b.png"]


def test_a_lossy_file_comes_back_as_lossy_as_it_was(run, tmp_path):
    Image.fromarray(CLEAN).save("a.jpg", quality=93, subsampling="4:2:0")
    Image.fromarray(CLEAN).save("a.webp", quality=80)
    status, _, err = run("denoise", "a.jpg", "a.webp", "--out-dir", "out", "--steps", "1")
    assert status == 0, err
    for name in ("a.jpg", "a.webp"):
        assert read(f"out/{name}").coding == read(name).coding != ()


def test_a_tinted_gray_picture_keeps_its_tint(run, tmp_path):
    noisy = np.clip(CLEAN[..., 1] + np.random.default_rng(0).normal(0, 15, CLEAN.shape[:2]), 0, 255)
    Image.fromarray(np.rint(noisy[..., None] * (1, 0.867, 0.697)).astype(np.uint8)).save("a.png")
    assert run("denoise", "a.png")[0] == 0
    result = pixels("a-denoised.png")
    assert np.abs(result - result[..., :1] * (1, 0.867, 0.697)).max() < 2.5
    assert np.square(result[..., 0] - CLEAN[..., 1]).mean() < 0.4 * 15**2


def test_gray_files_in_colour_come_back_gray(run, tmp_path):
    save_noisy("gray.png", 25, CLEAN[..., 1])
    Image.open("gray.png").convert("RGB").save("rgb.png")
    status, _, err = run("denoise", "gray.png", "rgb.png", "--out-dir", "out")
    assert status == 0, err
    assert Image.open("out/rgb.png").mode == "RGB"
    assert np.array_equal(pixels("out/rgb.png"), pixels("out/gray.png")[..., None].repeat(3, 2))


def test_sixteen_bits_that_use_a_part_of_their_range(run, tmp_path):
    save_noisy("a.png", 20, CLEAN[..., 1])
    deep = np.asarray(Image.open("a.png")).astype(np.uint16)
    Image.fromarray(deep * 257).save("16.png")
    Image.fromarray(np.rint(deep * (4095 / 255)).astype(np.uint16)).save("12.png")
    status, _, err = run("denoise", "12.png", "16.png", "--precision", "fp32")
    assert status == 0
    assert "12.png: 16-bit pixels that go to 4095: 4095 is taken for white" in err
    assert "16.png: 16-bit" not in err
    assert np.abs(pixels("12-denoised.png") / 4095 - pixels("16-denoised.png") / 65535).max() < 2e-3
    assert run("denoise", "12.png", "--white", "65535", "-o", "dark.png")[0] == 0
    assert pixels("dark.png").max() < 4500


def test_weights_of_one_level_warn_of_another(run, tmp_path):
    Image.fromarray(CLEAN[..., 1]).save("clean.png")
    save_noisy("right.png", 25, CLEAN[..., 1])
    status, _, err = run("denoise", "clean.png", "right.png", "--model", "r3_fast.bsd-gray-25", "--out-dir", "out")
    assert status == 0
    assert "clean.png: these weights know noise of sigma 25 alone" in err
    assert "right.png: these weights" not in err


def test_wrong_words_about_the_noise(refused, tmp_path):
    save_noisy("a.png", 25)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save("small.png")
    assert "from 0 to 255" in refused("denoise", "a.png", "--sigma", "-3")
    assert "either" in refused("denoise", "a.png", "--sigma", "3", "--sigma-map", "small.png")
    assert "not 4x3" in refused("denoise", "a.png", "--sigma-map", "small.png")
    assert "3 colours; save it as gray" in refused("denoise", "a.png", "--sigma-map", "a.png")
    assert "takes no noise level" in refused("denoise", "a.png", "--sigma", "25", "--model", "r3_fast.bsd-gray-25")
    assert "from 0" in refused("denoise", "a.png", "--strength", "2.5")
    assert "from 1" in refused("denoise", "a.png", "--threads", "0")
    assert "--white" in refused("denoise", "a.png", "--white", "256")
    assert "the cheapest, 1, takes" in refused("denoise", "a.png", "--budget", "1us")


# Files and pipes


def rcnet(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "rcnet", *arguments], capture_output=True, check=False, **options)


def test_a_folder_says_what_it_skips_and_passes_over_hidden_files(run, tmp_path):
    (tmp_path / "in").mkdir()
    save_noisy("in/a.png", 25)
    (tmp_path / "in" / "._a.png").write_bytes(b"Mac OS X resource fork")
    for name in ("notes.txt", "raw.nef"):
        (tmp_path / "in" / name).touch()
    status, out, err = run("denoise", "in", "--steps", "1")
    assert status == 0, err
    assert out.split() == ["in/a-denoised.png"]
    assert f"in: skipped notes.txt, raw.nef (not {NAMES})" in err


def test_names_that_cannot_be_printed(tmp_path):
    for name in (b"\xff\xfe.png", "\u732b.png".encode()):
        save_noisy(os.path.join(os.fsencode(tmp_path), name), 25)
    done = rcnet(
        "denoise", ".", "--out-dir", "out", "--steps", "1", cwd=tmp_path, env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert len(os.listdir(tmp_path / "out")) == 2


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("ppm", "PPM")])
def test_from_a_pipe_to_a_pipe(tmp_path, suffix, kind):
    save_noisy(tmp_path / f"a.{suffix}", 25)
    done = rcnet("denoise", "-", "--steps", "1", input=(tmp_path / f"a.{suffix}").read_bytes())
    assert done.returncode == 0, done.stderr
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.format == kind
        assert np.square(np.asarray(image) - CLEAN.astype(float)).mean() < 0.3 * 25**2
    to_pipe = rcnet("denoise", tmp_path / f"a.{suffix}", "-o", "-", "--steps", "1")
    assert to_pipe.stdout == done.stdout


def test_pipes_that_cannot_be(tmp_path):
    for words, arguments in (
        (b"no name", ("-", "--out-dir", "out")),
        (b"--compare", ("-", "--compare")),
        (b"<stdin> is empty", ("-",)),
    ):
        done = rcnet("denoise", *arguments, input=b"", cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert not done.stdout


def test_control_c_says_interrupted_and_leaves_no_half_file(tmp_path):
    Image.fromarray(CLEAN).save(tmp_path / "a.png")
    Image.fromarray(np.tile(CLEAN, (10, 10, 1))).save(tmp_path / "b.png")
    command = [sys.executable, "-m", "rcnet", "denoise", "a.png", "b.png", "--threads", "1"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a script starts in the background would not hear it
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=heard) as process:
        while process.poll() is None and not (tmp_path / "a-denoised.png").exists():  # then it is at the large one
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err
    assert err.endswith(b"rcnet: interrupted\n")
    assert sorted(os.listdir(tmp_path)) == ["a-denoised.png", "a.png", "b.png"]


def test_what_a_format_does_not_keep_is_said(run, tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.fromarray(CLEAN).save("a.png", exif=exif, dpi=(300, 300))
    Image.fromarray(CLEAN).convert("CMYK").save("cmyk.jpg")
    status, _, err = run("denoise", "a.png", "-o", "b.ppm", "--steps", "1")
    assert status == 0, err
    assert "a.png: PNM does not keep EXIF, the resolution" in err
    status, _, err = run("denoise", "cmyk.jpg", "--steps", "1")
    assert status == 0, err
    assert "cmyk.jpg: CMYK became RGB" in err


def test_help_and_readme_name_the_formats(run):
    for command in ("denoise", "classify"):
        assert NAMES in " ".join(run(command, "--help")[1].split())
    assert NAMES in " ".join((IMAGES.parent.parent / "docs" / "use.md").read_text().split())
