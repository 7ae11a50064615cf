"""The judge of a denoiser: what it tells, how it is attached, kept and trained."""

import copy

import numpy as np
import pytest
import torch

from rcnet.data.images import read_image
from rcnet.deploy.denoise import denoise, denoise_pixels
from rcnet.deploy.torch_session import TorchSession
from rcnet.errors import InputError
from rcnet.models import create_model, load, save
from rcnet.models.files import trainings
from rcnet.models.judge import KNOTS, Judge, attach_judge, hats, level_map
from rcnet.runtime.budget import denoise_setting_for
from rcnet.runtime.denoise import judge_picture
from rcnet.runtime.levels import LOOK, look
from rcnet.runtime.levels import level_map as numpy_level_map
from rcnet.runtime.picture import Curve
from rcnet.training.judging import train_judge
from tests.conftest import IMAGES

BSD = IMAGES / "bsd"


def told_denoiser(channels=3):
    """A small denoiser of two levels that changes something, with a judge."""
    model = create_model("r3_fast", steps=(1, 2), in_chans=channels, width=16, noise_level=True, coarse_level=True)
    with torch.no_grad():
        model.get_parameter("head.weight").normal_(0, 0.05)
    attach_judge(model, Judge(channels).eval())
    return model.eval()


def photograph(channels=3):
    return read_image(IMAGES / "cat.png", channels)


def test_levels_are_read_off_the_brightness():
    levels = torch.tensor([[[0.0, 3.0, 6.0, 9.0], [9.0, 9.0, 9.0, 9.0]]])
    for brightness, level in ((0, 0), (1 / 6, 1.5), (1 / 3, 3), (0.5, 4.5), (1, 9)):
        seen = level_map(levels, torch.full((1, 3, 16, 16), float(brightness)))
        torch.testing.assert_close(seen[0, :, 5, 5], torch.tensor([float(level), 9.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(hats(torch.rand(2, 1, 50)).sum(1), torch.ones(2, 1, 50))


def test_levels_are_read_off_in_numpy_as_in_torch():
    levels, x = 20 * torch.rand(2, 2, KNOTS), torch.rand(2, 3, 21, 34)
    expected = level_map(levels, x).numpy()
    np.testing.assert_allclose(numpy_level_map(levels.numpy(), x.numpy()), expected, atol=1e-4)


def test_any_size_is_judged():
    judge = Judge(3).eval()
    for size in ((3, 5), (8, 8), (33, 70)):
        levels = judge(torch.rand(2, 3, *size))
        assert levels.shape == (2, 2, KNOTS)
        assert ((levels >= 0) & (levels <= 255)).all()


@torch.inference_mode()
def test_untold_is_told_by_the_judge():
    model, x = told_denoiser(), torch.rand(2, 3, 40, 48)
    told = level_map(model.judge(x), x)
    torch.testing.assert_close(model(x, 2), model(x, 2, sigma=told))
    attach_judge(model, None)
    with pytest.raises(InputError, match="no judge of noise"):
        denoise(model, x)


@torch.inference_mode()
def test_told_nothing_nothing_changes_and_strength_multiplies_what_is_told():
    model, x = told_denoiser(), torch.rand(1, 3, 40, 48)
    assert torch.equal(denoise(model, x, strength=0.0), x)
    both = torch.tensor([20.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 40, 48)
    torch.testing.assert_close(denoise(model, x, sigma=both, strength=0.5), denoise(model, x, sigma=both / 2))
    assert not torch.equal(denoise(model, x, sigma=both), denoise(model, x, sigma=both.flip(1)))


@torch.inference_mode()
def test_a_level_is_of_the_kind_that_the_judge_finds():
    model, x = told_denoiser(), torch.rand(1, 3, 40, 48)
    for white, coarse in ((5.0, 1.0), (1.0, 5.0)):
        model.judge.forward = lambda x, found=(white, coarse): torch.tensor(found).view(1, 2, 1).expand(len(x), 2, KNOTS)
        expected = torch.tensor([10.0, 0.0] if white > coarse else [0.0, 10.0]).view(1, 2, 1, 1).expand(1, 2, 40, 48)
        torch.testing.assert_close(denoise(model, x, sigma=10.0), denoise(model, x, sigma=expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_pass_through_what_is_denoised_without_them(channels):
    model, x = told_denoiser(channels), torch.rand(2, 3, 18, 22)
    model.judge.forward = lambda x: torch.stack([0 * x.mean((1, 2, 3)), 20 * x.mean((1, 2, 3))], 1)[:, :, None].expand(
        -1, 2, KNOTS
    )
    for told in ({}, {"sigma": 10.0}, {"sigma": torch.tensor([3.0, 9.0]), "strength": 0.5}):
        with_gradients = denoise(model, x.clone().requires_grad_(), **told)
        assert with_gradients.requires_grad
        torch.testing.assert_close(with_gradients.detach(), denoise(model, x, **told))
    with pytest.raises(InputError, match="strength=5"):
        denoise(model, x.requires_grad_(), strength=5)
    attach_judge(model, None)
    with pytest.raises(InputError, match="no judge of noise"):
        denoise(model, x)


@torch.inference_mode()
def test_a_level_below_0_is_unknown():
    model, x = told_denoiser(), torch.rand(1, 3, 16, 16)
    assert (model(x, 2, sigma=-1) - x).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_and_networks_of_any_float(dtype):
    model, x = told_denoiser(), torch.rand(1, 3, 24, 24).to(dtype)
    expected = denoise(model, x.float())
    for net in (model, copy.deepcopy(model).double()):
        y = denoise(net, x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, atol=1e-2, rtol=0)


def test_narrow_pictures_are_judged():
    for size in ((7, LOOK**2), (LOOK**2 + 1, 1)):
        x = np.random.default_rng(0).random((1, 1, *size), np.float32)
        assert 0 not in look(lambda rows, columns, x=x: x[..., rows, columns], *size).shape


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_in_tiles_are_told_as_the_whole(channels):
    model, pixels = told_denoiser(channels), photograph(3)[:100, :140]
    whole, _ = denoise_pixels(model, pixels, 2, tile=0)
    tiled, _ = denoise_pixels(model, pixels, 2, tile=48)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert judge_picture(TorchSession(model), pixels, Curve(255.0)).shape == (1, 2, KNOTS)


def test_large_pictures_are_judged_by_parts(monkeypatch):
    model = told_denoiser()
    sizes = []
    judge = model.judge.forward
    monkeypatch.setattr(model.judge, "forward", lambda x: sizes.append(tuple(x.shape)) or judge(x))
    judge_picture(TorchSession(model), np.zeros((1500, 900, 3), np.uint8), Curve(255.0))
    assert sizes == [(1, 3, 1024, 896)]


def test_the_judge_travels_in_the_file_and_to_other_types(tmp_path):
    model = told_denoiser()
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(again.judge(x), model.judge(x))
    assert copy.deepcopy(model).judge is not model.judge
    assert next(model.double().judge.parameters()).dtype == torch.float64
    assert not any("judge" in name for name, _ in model.named_parameters())


def test_a_file_with_a_judge_says_how_the_network_was_trained(tmp_path):
    model, runs = told_denoiser(), [{"recipe": {"denoising": {"camera": 0.7}}}]
    judge = model.judge
    attach_judge(model, None)
    save(model, tmp_path / "m.safetensors", training=runs[0])
    model = load(tmp_path / "m.safetensors")
    assert trainings(model.metadata) == runs
    attach_judge(model, judge)
    save(model, tmp_path / "judged.safetensors")
    assert trainings(load(tmp_path / "judged.safetensors").metadata) == runs
    assert trainings({"training": {"before": None}}) == []


def test_a_judge_learns_how_much_noise_there_is():
    model = told_denoiser()
    attach_judge(model, None)
    ticks = iter(range(10**6))
    about = train_judge(
        model,
        BSD,
        minutes=2.5,
        batch=2,
        overrides={"sigma": (0.0, 50.0), "patch": 64, "drawn": 0.0},
        progress=False,
        clock=lambda: next(ticks) / 2,  # a second for two looks at the clock: as many iterations on any processor
    )
    assert about["iterations"] > 100
    image = photograph()
    x = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        levels = [float(model.judge((x + sigma / 255 * noise).clamp(0, 1))[0, 0].mean()) for sigma in (2, 12, 40)]
    assert levels[0] < 6 < levels[1] < 25 < levels[2], levels
    with pytest.raises(InputError, match="coarse_level"):
        train_judge(create_model("r3_fast", noise_level=True), BSD)


def test_budgets_of_denoisers_that_are_told_and_of_those_that_ask_a_judge():
    model = told_denoiser()
    for judge in (model.judge, None):
        attach_judge(model, judge)
        assert denoise_setting_for(TorchSession(model), "20s", (1, 3, 40, 48)) == model.settings[-1]
