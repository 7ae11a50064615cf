"""What a denoiser is shown of the pixels of a file, and how they come back: white, curve, hidden colours, gray in colour."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import rcnet
from rcnet.deploy.denoise import denoise_pixels
from rcnet.errors import InputError
from rcnet.runtime.picture import Curve, choose_curve, fill_hidden, find_tint, is_mosaic, prepare, without

from .conftest import IMAGES

CAT = np.asarray(Image.open(IMAGES / "cat.png").convert("RGB"))
PHOTOS = [CAT, np.asarray(Image.open(IMAGES / "rocket.png").convert("RGB"))]
GRAYS = [np.asarray(Image.open(path))[:, :, None] for path in sorted((IMAGES / "bsd" / "test").glob("*.png"))]
LINEAR = (CAT / 255) ** 2.2


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape)


def denoised(pixels, alpha=None, **options):
    """The pixels of a file without their noise, as the command goes about it."""
    [picture], _ = prepare([pixels], [alpha], **options)
    name = "r3_fast.gray" if picture.pixels.shape[2] == 1 else "r3_fast.photo"
    result, level = denoise_pixels(rcnet.load(name), picture.pixels, 1, white=picture.curve, visible=picture.visible)
    return picture.restore(result), level


def gain(clean, noisy, result):
    """In dB; that of PSNR whatever the peak."""
    return 10 * np.log10(np.mean((noisy - clean) ** 2) / np.mean((result.astype(float) - clean) ** 2))


def test_it_runs_without_torch():
    code = "import sys, rcnet.runtime.picture; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# White and curve


def test_values_above_white_stay_and_the_others_remain_in_the_range():
    pixels = np.array([-0.1, 0.0, 0.5, 1.0, 1.5, 12.0], np.float32).reshape(1, -1, 1)
    for removed, wanted in ((-0.6, [-0.1, 0, 0, 0.4, 1.5, 12]), (0.6, [0.5, 0.6, 1, 1, 1.5, 12])):
        result = without(np.full(pixels.shape, removed, np.float32), pixels, 1.0, Curve(1.0))
        np.testing.assert_allclose(result.ravel(), wanted, atol=1e-6)
    assert Curve(1.0).encode(pixels).max() == 1  # the network sees no more
    counts = np.array([100, 4095, 5000], np.uint16).reshape(1, -1, 1)
    assert without(np.full(counts.shape, 0.5, np.float32), counts, 1.0, Curve(4095)).ravel().tolist() == [2148, 4095, 5000]


@pytest.mark.parametrize("curve", [Curve(4.0), Curve(4.0, 0.0), Curve(4.0, 0.3)])
def test_curves_go_to_1_and_back(curve):
    values = np.linspace(0, 4, 100, dtype=np.float32)
    seen = curve.encode(values)
    assert (seen[0], seen[-1]) == pytest.approx((0, 1), abs=1e-6)
    assert (np.diff(seen) > 0).all()
    np.testing.assert_allclose(curve.decode(seen), values, atol=1e-5)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float16, np.float32])
@pytest.mark.parametrize("offset", [np.inf, 0.1])
def test_strength_0_changes_no_bit(kind, offset):
    pixels = (LINEAR * 3 * (80 if kind == np.uint8 else 20000 if kind == np.uint16 else 1)).astype(kind)
    result = without(noise(pixels.shape).astype(np.float32), pixels, 0.0, Curve(float(pixels.max()) / 2, offset))
    assert result.dtype == kind
    np.testing.assert_array_equal(result, pixels)


def with_lamps(picture):
    """Linear light, with lamps and reflections many times as bright as the rest."""
    picture = picture.copy()
    picture[20:28, 30:38] = 12
    picture[60:62, 50:52] = 12
    return picture


def sky(side=128):
    """Stars over a sky at 1 % of the range of 16 bits."""
    rng, (y, x) = np.random.default_rng(1), np.mgrid[:side, :side]
    stars = [
        10 ** rng.uniform(3, 4.8) * np.exp(-((y - rng.uniform(0, side)) ** 2 + (x - rng.uniform(0, side)) ** 2) / 4.5)
        for _ in range(20)
    ]
    glow = 300 * np.exp(-((y - 60) ** 2 + (x - 70) ** 2) / 1500)
    return np.clip(600 + glow + sum(stars), 0, 65535)[:, :, None]


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("counts", [False, True])
def test_hdr_gains_though_lamps_are_far_above_the_rest(kind, counts):
    clean = with_lamps(LINEAR)
    noisy = np.random.default_rng(0).poisson(clean * 500) / 500 if counts else clean
    noisy = (noisy + 0.02 * noise(clean.shape)).astype(kind)
    result, _ = denoised(noisy)
    assert result.dtype == kind
    assert gain(clean, noisy.astype(float), result) > 1.5
    curve, said = choose_curve([noisy])
    assert "larger values stay as they are" in said
    assert 0.6 < curve.white < 2
    assert np.isfinite(curve.offset) or not counts
    assert choose_curve([noisy], straight=True)[0] == Curve(curve.white)
    np.testing.assert_array_equal(result[noisy > curve.white], noisy[noisy > curve.white])


@pytest.mark.parametrize("counts", [False, True])
def test_a_sky_at_1_percent_gains(counts):
    clean = sky()
    noisy = np.random.default_rng(0).poisson(clean / 25) * 25 if counts else clean + 160 * noise(clean.shape)
    noisy = np.rint(np.clip(noisy, 0, 65535)).astype(np.uint16)
    result, level = denoised(noisy)
    assert gain(clean, noisy.astype(float), result) > 4
    assert level > 8  # levels of 255: the network sees it


def test_a_bar_in_white_does_not_leave_the_picture_in_the_dark():
    clean = GRAYS[0][:128, :128] * 6.0
    clean[110:114, 60:110] = 65535
    noisy = np.rint(np.clip(clean + 60 * noise(clean.shape), 0, 65535)).astype(np.uint16)
    result, _ = denoised(noisy)
    assert gain(clean, noisy.astype(float), result) > 3


def test_a_white_that_is_given_is_believed():
    noisy = with_lamps(LINEAR).astype(np.float32)
    assert choose_curve([noisy], 3.0) == (Curve(3.0), "")
    with pytest.raises(InputError, match="--white 300 is not valid: give a value of the pixels, above 0, to 255"):
        choose_curve([CAT], 300.0)
    with pytest.raises(InputError, match="--white 0 is not valid"):
        choose_curve([noisy], 0.0)


def test_ordinary_pictures_get_a_straight_line_to_the_white_of_their_type():
    for photo in (*PHOTOS, *GRAYS):
        assert choose_curve([photo]) == (Curve(255), "")
        assert choose_curve([photo / np.float32(255)]) == (Curve(1), "")
        if photo.max() > 128:
            assert choose_curve([photo.astype(np.uint16) * 257]) == (Curve(65535), "")
    assert choose_curve([np.zeros((8, 8, 1), np.uint16)])[0] == Curve(255)


def test_the_pages_of_a_stack_have_one_curve():
    bright, dark = (GRAYS[0].astype(np.uint16) * factor for factor in (16, 2))
    pictures, said = prepare([dark, bright], [None, None])
    assert {picture.curve for picture in pictures} == {Curve(4095)}
    assert len(said) == 1
    mixed, _ = prepare([dark, GRAYS[0]], [None, None])
    assert [picture.curve for picture in mixed] == [Curve(1023), Curve(255)]


# Hidden colours


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_hidden_colours_do_not_bleed_and_come_back(kind):
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[kind]
    y, x = np.mgrid[: CAT.shape[0], : CAT.shape[1]]
    alpha = (np.clip(70 - np.hypot(y - 64, x - 64), 0, 10) * 25 * scale).astype(kind)
    noisy = np.clip(CAT + 20 * noise(CAT.shape), 0, 255)
    results = []
    for colour in ((255, 0, 255), (0, 255, 0)):
        pixels = (np.where(alpha[:, :, None] > 0, noisy, colour) * scale).astype(kind)
        results.append(denoised(pixels, alpha))
        np.testing.assert_array_equal(results[-1][0][alpha == 0], pixels[alpha == 0])
    np.testing.assert_array_equal(results[0][0][alpha > 0], results[1][0][alpha > 0])
    edge = (alpha > 0) & (alpha < alpha.max() / 2)
    assert gain(CAT[edge] * float(scale), pixels[edge].astype(float), results[1][0][edge]) > 3
    assert results[0][1] == pytest.approx(denoised((noisy * scale).astype(kind))[1], rel=0.1)  # the level of what is visible


def test_what_is_filled_lies_between_its_neighbours():
    visible = np.zeros(CAT.shape[:2], bool)
    visible[10:20, 10:21] = True
    filled = fill_hidden(CAT, visible)
    part = CAT[10:20, 10:21]
    np.testing.assert_array_equal(filled[10:20, 10:21], part)
    assert (filled >= part.min((0, 1))).all()
    assert (filled <= part.max((0, 1))).all()
    for alpha in (np.zeros(CAT.shape[:2], np.uint8), np.full(CAT.shape[:2], 9, np.uint8)):
        assert prepare([CAT], [alpha])[0][0].visible is None


# Gray in colour


def test_a_gray_picture_in_colour_is_found_despite_dust():
    gray = GRAYS[0].repeat(3, 2)
    gray[5, 6] = 1, 2, 3
    gray[50, 60] = 200, 10, 10
    result, _ = denoised(gray)
    wanted = denoised(GRAYS[0])[0]
    np.testing.assert_array_equal(result[50, 60], (200, 10, 10))
    assert (result.max(2) == result.min(2)).mean() > 0.9999
    assert np.abs(result[80:] - wanted[80:].astype(float)).max() == 0


@pytest.mark.parametrize("tint", [(1, 0.867, 0.697), (0, 1, 0), (0.5, 0.7, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tinted_gray_picture_is_denoised_as_gray_and_tinted_again(kind, tint):
    gray = np.clip(GRAYS[0] + 15 * noise(GRAYS[0].shape), 0, 255) * (1 if kind == np.uint8 else 257)
    tinted = np.rint(np.rint(gray) * tint).astype(kind)
    [picture], _ = prepare([tinted], [None])
    assert picture.pixels.shape[2] == 1
    np.testing.assert_allclose(picture.tint, tint, atol=2e-3)
    np.testing.assert_array_equal(picture.restore(picture.pixels), tinted)
    smooth = (picture.pixels // 2).astype(kind)
    np.testing.assert_allclose(picture.restore(smooth), smooth * picture.tint, atol=2)


def test_colour_pictures_are_not_gray():
    for photo in PHOTOS:
        assert find_tint(photo) is None
        assert find_tint(photo // 16) is None
    with_gray_noise = np.clip(np.rint(CAT + 15 * noise(CAT.shape[:2])[:, :, None]), 0, 255).astype(np.uint8)
    assert find_tint(with_gray_noise) is None
    one_part = GRAYS[0].repeat(3, 2)
    one_part[:20, :20] = 200, 10, 10
    assert find_tint(one_part) is None
    for kind in (np.float16, np.float32):
        lit = (CAT / 255).astype(kind)
        assert find_tint(lit) is None
        lit[50, 50] = 6e4  # a lamp in linear light
        assert find_tint(lit) is None
        assert find_tint(lit[:, :, :1].repeat(3, 2)) is not None


# Mosaics


def mosaic(photo):
    raw = photo[:, :, 1].copy()
    raw[::2, ::2], raw[1::2, 1::2] = photo[::2, ::2, 0], photo[1::2, 1::2, 2]
    return raw[:, :, None]


def test_a_mosaic_is_told_from_pictures():
    linear = (LINEAR * (0.5, 1, 0.4) * 50000 + 300 * noise(CAT.shape)).clip(0, 65535).astype(np.uint16)
    assert is_mosaic(mosaic(linear))
    assert "raw mosaic" in prepare([mosaic(linear)], [None])[1][-1]
    for gray in (*GRAYS, *(photo[:, :, 1:2] for photo in PHOTOS)):
        assert not is_mosaic(gray)
    assert not is_mosaic(np.rint(100 + 20 * noise((128, 128, 1))).astype(np.uint8))
    assert not is_mosaic(np.zeros((5, 5, 1), np.uint8))
