"""The examples that need rcnet and scikit-image alone; those of other libraries are run in tests/interop."""

import re

import pytest
import torch

import rcnet
from rcnet.errors import InputError

from .conftest import IMAGES, names_of, two_levels


def numbers(line):
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


def test_deblur(example):
    lines, names = example("deblur")
    before, *after = numbers(lines[0])
    assert lines[0].startswith("gaussian: blurred ")
    assert min(after) > before + 3
    assert len(after) == 3
    before, *after = numbers(lines[1])
    assert min(after) > before + 8
    kernel, x = names["motion"](), names["photograph"]([IMAGES / "cat.png"])
    assert kernel.sum() == pytest.approx(1)
    side, rows = kernel.shape[0] // 2, torch.nonzero(kernel)
    moved = sum(kernel[i, j] * x.roll((int(i) - side, int(j) - side), (-2, -1)) for i, j in rows)
    torch.testing.assert_close(names["blur"](x, kernel), moved, atol=1e-5, rtol=0)


def test_plugged_takes_levels_of_one():
    model = rcnet.load("r3_fast.color")
    plugged = names_of("deblur")["Plugged"](model, 1)
    x = torch.rand(2, 3, 20, 24)
    torch.testing.assert_close(plugged(x, torch.tensor([0.1, 0.2])), model(x, 1, sigma=torch.tensor([25.5, 51.0])))


@torch.inference_mode()
def test_plugged_tells_white_noise():
    model, x = two_levels(), torch.rand(2, 3, 20, 24)
    plugged = names_of("deblur")["Plugged"](model, 1)
    expected = model(x, 1, sigma=torch.tensor([[25.5, 0.0], [51.0, 0.0]]).view(2, 2, 1, 1))
    for sigma in (torch.tensor([0.1, 0.2]), torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)):
        torch.testing.assert_close(plugged(x, sigma), expected)


def test_own_network(example, tmp_path):
    lines, _ = example("own_network", IMAGES / "bsd" / "train", "run", 300)
    (noisy,) = numbers(lines[0])
    found = [numbers(line) for line in lines[1:]]
    assert [line.split(":")[0] for line in lines[1:]] == ["steps 1", "steps 2", "steps 3"]
    assert all(quality > noisy + 3 for quality, *_ in found)
    net = rcnet.load(tmp_path / "run" / "weights.safetensors")
    assert net.architecture["name"] == "depthwise"
    assert sum(isinstance(module, torch.nn.GroupNorm) for module in net.modules()) == 3
    with pytest.raises(InputError, match="tile=0"):
        rcnet.denoise(net, torch.rand(1, 1, 40, 40), tile=16)


def test_budget(example):
    lines, _ = example("budget", IMAGES / "bsd" / "test", "1.5GMAC")
    marked = [line for line in lines if "the best within" in line]
    assert len(marked) == 1
    assert len(lines) == 10
    within = [line for line in lines[:-1] if float(re.search(r"([\d.]+) GMAC", line)[1]) <= 1.5]
    assert numbers(marked[0])[0] == max(numbers(line)[0] for line in within)
    assert len(within) < 9
