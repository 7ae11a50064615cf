"""Noise against statistics worked out by hand."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rcnet.data.camera import (
    Camera,
    coarsen,
    demosaic,
    develop,
    draw_camera,
    expose,
    mosaic,
    photograph,
    sensor_noise,
    through_jpeg,
)
from rcnet.data.drawn import draw_page, draw_pictures
from rcnet.data.images import read_image, to_tensor
from rcnet.data.noise import add_noise, draw_levels, estimate_sigma
from rcnet.errors import InputError
from rcnet.tasks.denoise import Denoising, noisy_patches, real_noise
from rcnet.training import read_recipe, train

from .conftest import IMAGES

PLAIN = Camera(1.0, torch.ones(3), torch.eye(3), 1.0, shot=0.001, read=0.0001, phase=(0, 0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photo(count=4, side=64):
    x = to_tensor(read_image(IMAGES / "bsd" / "train" / "108073.png", 3))
    return torch.cat([x[..., k : k + side, k : k + side] for k in range(0, 16 * count, 16)])


def test_gaussian_noise_has_its_level_and_clipping_moves_the_mean_of_black():
    black = torch.zeros(2, 1, 400, 400)
    noisy = add_noise(black, torch.tensor([10.0, 40.0]), generator())
    assert (noisy.std((1, 2, 3)) * 255).tolist() == pytest.approx([10, 40], rel=0.01)
    clipped = add_noise(black, 25.0, generator(), as_8bit=True) * 255
    assert torch.equal(clipped, clipped.round())
    # the mean of max(0, N(0, s)) is s / sqrt(2 pi)
    assert clipped.mean().item() == pytest.approx(25 / math.sqrt(2 * math.pi), rel=0.02)
    levels = draw_levels((20.0, 60.0), 4000, generator())
    assert (levels.min() >= 20, levels.max() <= 60, levels.mean().item()) == (True, True, pytest.approx(40, abs=1))


def test_a_sensor_s_variance_grows_with_its_signal():
    for signal in (0.1, 0.5, 0.8):
        noisy = sensor_noise(torch.full((1, 500, 500), signal), PLAIN, generator())
        assert noisy.var().item() == pytest.approx(0.001 * signal + 0.0001, rel=0.02)
        assert noisy.mean().item() == pytest.approx(signal, abs=2e-4)


@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_bayer_mosaic_has_two_greens(phase):
    masks = mosaic(8, 8, phase)
    assert masks.sum((1, 2)).tolist() == [16, 32, 16]
    assert torch.equal(masks.sum(0), torch.ones(8, 8))
    assert masks[0, -phase[0] % 2, -phase[1] % 2] == 1


@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_demosaicing_is_exact_on_gray_ramps(phase):
    ramp = torch.linspace(0, 1, 32)[None, :] * 0.6 + torch.linspace(0, 1, 24)[:, None] * 0.3
    rgb = demosaic(ramp[None], phase)
    torch.testing.assert_close(rgb[0, :, 4:-4, 4:-4], ramp.expand(3, -1, -1)[:, 4:-4, 4:-4], atol=1e-5, rtol=0)


def test_demosaicing_averages_noise_as_its_filters_say():
    developed = develop(sensor_noise(torch.full((1, 600, 600), 0.5), PLAIN, generator()), PLAIN)
    variance = 0.001 * 0.5 + 0.0001
    green = mosaic(600, 600, (0, 0))[1].bool()
    assert developed[0, 1][green].var().item() == pytest.approx(variance, rel=0.02)
    # elsewhere green is (4 raw - 4 others + 2 * 4 greens) / 8: (16 + 4 + 16) / 64 of the variance
    assert developed[0, 1][~green].var().item() == pytest.approx(variance * 36 / 64, rel=0.02)


def test_a_camera_gives_flat_colours_back():
    colours = torch.rand(5, 3, 1, 1, generator=generator()) * 0.8 + 0.1
    for seed in range(10):
        camera = draw_camera(np.random.default_rng(seed))
        flat = colours.expand(-1, -1, 12, 12)
        torch.testing.assert_close(develop(expose(flat, camera), camera), flat, atol=2e-3, rtol=0)


def test_coarse_noise_is_as_strong_and_like_its_neighbours():
    noise = torch.randn(2, 3, 200, 200, generator=generator()) * 0.05
    alike = []
    for seed in range(12):
        coarse = coarsen(noise, np.random.default_rng(seed))
        assert coarse.square().mean((1, 2, 3)).tolist() == pytest.approx(noise.square().mean((1, 2, 3)).tolist(), rel=1e-3)
        alike.append((coarse[..., 1:] * coarse[..., :-1]).mean().item() / coarse.square().mean().item())
    assert min(alike) > 0.02
    assert np.median(alike) > 0.25
    assert abs((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean()) < 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_a_photograph_has_noise_of_a_camera_s_strength_and_a_target_of_its_own(channels):
    clean = photo() if channels == 3 else photo().mean(1, keepdim=True)
    for seed in range(6):
        noisy, target = photograph(clean, np.random.default_rng(seed), generator(seed), coarse=1.0)
        assert noisy.shape == target.shape == clean.shape
        level = 255 * (noisy - target).square().mean((1, 2, 3)).sqrt()
        assert ((level > 0.5) & (level <= 14.01)).all()
        # through lens and mosaic, the same picture, but for its finest detail
        assert (F.avg_pool2d(target, 8) - F.avg_pool2d(clean, 8)).abs().mean() < 0.03


def test_jpeg_of_any_quality():
    clean = photo()
    errors = []
    for quality in (30, 60, 90, 100):
        result = through_jpeg(clean, np.random.default_rng(1), (quality, quality))
        assert result.shape == clean.shape
        assert torch.equal((result * 255).round() / 255, result)
        errors.append((result - clean).abs().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert through_jpeg(clean[:, :1], np.random.default_rng(1)).shape == (4, 1, 64, 64)


def test_patches_are_as_the_recipe_says():
    clean = photo(count=4)

    def patches(**config):
        rng = np.random.default_rng(3)
        return [noisy_patches(clean, Denoising(**config), rng, generator(k)) for k in range(60)]

    plain = patches(sigma=(10.0, 50.0))
    assert all(torch.equal(target, clean) for _, target, *_ in plain)
    measured = torch.stack([255 * (noisy - target).square().mean((1, 2, 3)).sqrt() for noisy, target, *_ in plain])
    torch.testing.assert_close(measured, torch.stack([level for _, _, level, _ in plain]), rtol=0.06, atol=0)
    shares = {
        "camera": sum(bool(coarse.all()) for *_, coarse in patches(camera=0.3, sigma=20.0)) / 60,
        "as_8bit": sum(torch.equal((noisy * 255).round() / 255, noisy) for noisy, *_ in patches(as_8bit=0.3, sigma=20.0)) / 60,
    }
    assert all(0.15 < share < 0.5 for share in shares.values()), shares
    levels = torch.stack([level for _, _, level, _ in patches(clean=0.25, sigma=(5.0, 60.0))])
    assert 0.15 < (levels == 0).float().mean() < 0.35
    together = torch.stack([level for _, _, level, _ in patches(one_level=True, sigma=(5.0, 60.0))])
    assert (together == together[:, :1]).all()
    assert together[:, 0].std() > 5
    through = [noisy for noisy, *_ in patches(jpeg=1.0, sigma=20.0)]
    assert all(torch.equal((noisy * 255).round() / 255, noisy) for noisy in through)


@pytest.mark.parametrize("channels", [1, 3])
def test_drawn_pictures_are_flat_and_pages_are_dark_on_white(channels):
    pictures = draw_pictures(9, channels, seed=5)
    assert all(picture.shape == (320, 320, channels) and picture.dtype == np.uint8 for picture in pictures)
    assert all(np.array_equal(a, b) for a, b in zip(pictures, draw_pictures(9, channels, seed=5), strict=True))
    even = [float((picture[1:, 1:] == picture[:-1, :-1]).mean()) for picture in pictures]
    assert np.mean(even) > 0.5
    page = draw_page(200, 300, channels, np.random.default_rng(0), on_white=True)
    assert np.median(page) > 220
    assert page.min() <= 60
    assert 0.03 < (page < 128).mean() < 0.4


def test_the_noise_of_a_picture_is_estimated():
    cat = read_image(IMAGES / "cat.png", 3) / 255
    rng = np.random.default_rng(0)
    for sigma in (15, 25, 50):
        assert estimate_sigma(cat + rng.normal(0, sigma / 255, cat.shape)) == pytest.approx(sigma, rel=0.12)
    assert estimate_sigma(np.full((40, 40, 1), 0.5)) == 0
    assert estimate_sigma(np.zeros((1, 5, 3))) == 0


def test_noise_of_real_pairs():
    rng, pixels = np.random.default_rng(0), generator(0)
    photograph, clean = torch.rand((4, 3, 16, 16), generator=pixels), torch.rand((4, 3, 16, 16), generator=pixels)
    noise = 0.05 * torch.randn((4, 3, 16, 16), generator=pixels)
    pairs = torch.cat([photograph + noise + 0.1, photograph], 1)  # another exposure
    seen = {"themselves": 0, "on others": 0}
    for _ in range(40):
        noisy, target = real_noise(pairs, clean, rng)
        if torch.equal(target, clean):
            seen["on others"] += 1
            assert torch.equal(noisy, (noisy * 255).round() / 255)
            ratio = (noisy - clean).square().mean((1, 2, 3)).sqrt() / 0.05
            assert (ratio > 0.4).all()
            assert (ratio < 2.2).all()
        else:
            seen["themselves"] += 1
            torch.testing.assert_close((noisy - target).mean((2, 3)), torch.zeros(4, 3), atol=1e-6, rtol=0)
            assert sorted(noisy.sum((0, 2, 3)).tolist()) == pytest.approx(sorted(pairs[:, :3].sum((0, 2, 3)).tolist()), rel=1e-5)
    assert min(seen.values()) > 10


def test_training_on_pairs(tmp_path):
    recipe = read_recipe(
        "r3_fast_photo", ["model.width=8", "iterations=2", "minutes=0", "batch=2", "denoising.patch=32", "denoising.pairs=1"]
    )
    shutil.copytree(IMAGES / "bsd" / "train", tmp_path / "train")
    with pytest.raises(InputError, match=r"pairs/noisy and .*pairs/clean beside"):
        train(recipe, tmp_path, tmp_path / "run", progress=False)
    for part, added in (("noisy", 5), ("clean", 0)):
        (tmp_path / "pairs" / part).mkdir(parents=True)
        Image.fromarray(np.full((40, 48, 3), 100 + added, np.uint8)).save(tmp_path / "pairs" / part / "a.png")
    assert train(recipe, tmp_path, tmp_path / "run", progress=False)["data"]["pairs"] == 1
    (tmp_path / "pairs" / "clean" / "a.png").rename(tmp_path / "pairs" / "clean" / "b.png")
    with pytest.raises(InputError, match="one name in both"):
        train(recipe, tmp_path, tmp_path / "again", progress=False)
