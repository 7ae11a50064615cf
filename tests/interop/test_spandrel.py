"""spandrel's loader reads rcnet's files, by the architecture that examples/spandrel_rcnet.py registers."""

import pytest
import torch

import rcnet
from rcnet.models import bundled
from rcnet.models.judge import attach_judge

from ..conftest import names_of, two_levels

spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed: make interop")
DENOISERS = [name for name in bundled() if name.startswith("r3")]


def test_the_main_registry(example):
    lines, _ = example("spandrel_rcnet")
    assert lines == ["rcnet ['r3_fast', 'steps (1, 2, 3)'] torch.Size([1, 3, 65, 64])"]
    assert "rcnet" in spandrel.MAIN_REGISTRY


@pytest.fixture(scope="module")
def loader():
    """A loader that knows nothing but rcnet's denoisers, at one step."""
    registry = spandrel.ArchRegistry()
    registry.add(spandrel.ArchSupport.from_architecture(names_of("spandrel_rcnet")["Rcnet"](steps=1)))
    return spandrel.ModelLoader(registry=registry)


@pytest.mark.parametrize("weights", DENOISERS)
def test_all_denoisers_load(loader, weights):
    model, loaded = rcnet.load(weights), loader.load_from_file(bundled()[weights])
    assert isinstance(loaded, spandrel.ImageModelDescriptor)
    assert loaded.purpose == "Restoration"
    x = torch.rand(1, model.about.channels, 33, 40)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), model(x, 1).clamp(0, 1))


@torch.inference_mode()
def test_a_denoiser_of_two_levels_loads_with_its_judge(loader, tmp_path):
    model, x = two_levels(), torch.rand(1, 3, 33, 40)
    rcnet.save(model, tmp_path / "w.safetensors")
    torch.testing.assert_close(loader.load_from_file(tmp_path / "w.safetensors")(x), model(x, 1).clamp(0, 1))
    attach_judge(model, None)
    rcnet.save(model, tmp_path / "untold.safetensors")
    assert loader.load_from_file(tmp_path / "untold.safetensors").model.judge is None


def test_others_are_left_alone(loader):
    with pytest.raises(spandrel.UnsupportedModelError):
        loader.load_from_file(bundled()["r2.cifar10"])
