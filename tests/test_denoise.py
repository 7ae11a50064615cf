import dataclasses

import numpy as np
import pytest
import torch

from rcnet.deploy.denoise import denoise
from rcnet.errors import InputError
from rcnet.figures.side_by_side import LARGEST, centre, side_by_side
from rcnet.models import create_model
from rcnet.runtime.tiles import count_tiles


def trained_like(name, **config):
    """A denoiser whose last convolution is not zero and whose norms have statistics of their own."""
    model = create_model(name, **config)
    torch.nn.init.normal_(model.get_parameter("head.weight"), std=0.002)
    model.train()
    with torch.no_grad():
        for steps in model.steps:
            for _ in range(3):
                model(torch.rand(2, model.about.channels, 32, 32), steps)
    model.offer([*model.settings, (4, 2, 1)] if 4 in model.steps else model.settings)
    return model.eval()


@pytest.mark.parametrize("name", ["r3", "r3_fast"])
@pytest.mark.parametrize("steps", [1, 4, (4, 2, 1)])
@pytest.mark.parametrize(("size", "tile"), [((97, 131), 32), ((64, 64), 16), ((33, 200), 48), ((1, 70), 20), ((50, 50), 17)])
def test_tiles_equal_the_whole(name, steps, size, tile):
    model, x = trained_like(name, steps=(1, 2, 3, 4)), torch.rand(1, 1, *size)
    with torch.no_grad():
        whole = model(x, steps)
    calls = []
    tiled = denoise(model, x, steps, tile=tile, each=lambda: calls.append(1))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    assert len(calls) == count_tiles(model.about, tuple(x.shape), tile) > 1
    torch.testing.assert_close(denoise(model, x, steps, tile=0), whole, atol=1e-5, rtol=0)


def test_a_smaller_halo_would_show():
    model, x = trained_like("r3"), torch.rand(1, 1, 64, 64)
    model.about = dataclasses.replace(model.about, reach=(3, 0))
    assert (denoise(model, x, 4, tile=16) - denoise(model, x, 4, tile=0)).abs().max() > 3e-5


def test_memory_does_not_grow_with_the_image():
    model = trained_like("r3_fast")
    sizes: list[int] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    denoise(model, torch.rand(1, 1, 128, 128), 1, tile=128)
    small = max(sizes)
    denoise(model, torch.rand(1, 1, 1024, 128), 1, tile=128)
    assert max(sizes) < 1.5 * small


def test_colour_through_gray_weights_is_channel_by_channel():
    model, x = trained_like("r3_fast"), torch.rand(2, 3, 20, 24)
    together = denoise(model, x, 2)
    for c in range(3):
        torch.testing.assert_close(together[:, c : c + 1], denoise(model, x[:, c : c + 1], 2))
    colour = trained_like("r3_fast", in_chans=3)
    assert denoise(colour, x, 2).shape == x.shape
    gray = x[:, :1]
    torch.testing.assert_close(denoise(colour, gray, 2), denoise(colour, gray.expand(-1, 3, -1, -1), 2).mean(1, keepdim=True))
    with pytest.raises(InputError, match="3 channels, and this one has 2"):
        denoise(colour, x[:, :2], 2)


def test_a_training_model_stays_in_training():
    model, x = trained_like("r3_fast"), torch.rand(1, 1, 16, 16)
    expected = denoise(model, x, 2)
    model.train()
    assert torch.equal(denoise(model, x, 2), expected)
    assert all(module.training for module in model.modules())


def test_bad_arguments():
    model, x = trained_like("r3_fast"), torch.rand(1, 1, 16, 16)
    with pytest.raises(InputError, match=r"valid: 1, 2, 3$"):
        denoise(model, x, 5)
    for tile in (-1, 3):
        with pytest.raises(InputError, match="16 or more, or 0"):
            denoise(model, x, tile=tile)
    with pytest.raises(InputError, match="auto, fp32, bf16"):
        denoise(model, x, precision="fp8")
    for wrong in (x[0], (x * 255).to(torch.uint8)):
        with pytest.raises(InputError, match="float"):
            denoise(model, wrong)
    with pytest.raises(InputError, match="gives no images"):
        denoise(create_model("r2"), x)


def test_panels_show_what_they_are_given():
    image = np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(40, 60, 1)
    picture = side_by_side([[("a", image), ("b", 1 - image)]])
    pixels = np.asarray(picture)
    expected = np.rint(image[..., 0] * 255).astype(np.uint8)
    for panel in (expected, 255 - expected):
        found = [
            (y, x)
            for y in range(pixels.shape[0] - 39)
            for x in range(pixels.shape[1] - 59)
            if pixels[y, x, 0] == panel[0, 0] and np.abs(pixels[y : y + 40, x : x + 60, 0].astype(int) - panel).max() <= 1
        ]
        assert len(found) == 1
    assert centre(np.zeros((3000, 2000, 1))).shape == (LARGEST, LARGEST, 1)
