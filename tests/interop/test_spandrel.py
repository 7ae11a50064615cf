"""spandrel's loader reads rcnet's files, by the architecture that examples/spandrel_rcnet.py registers."""

import pytest
import torch

import rcnet
from rcnet.models import bundled

spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed: make interop")
DENOISERS = [name for name in bundled() if name.startswith("r3")]


@pytest.fixture
def names(example, monkeypatch):
    monkeypatch.setattr(spandrel, "MAIN_REGISTRY", spandrel.MAIN_REGISTRY.copy())
    lines, names = example("spandrel_rcnet")
    assert lines[0].startswith("rcnet ['r3_fast', 'steps (1, 2, 3)'] 3 torch.Size([1, 3, 65, 64])")
    return names


@pytest.mark.parametrize("weights", DENOISERS)
def test_all_denoisers_load(names, weights):
    model = rcnet.load(weights)
    registry = spandrel.ArchRegistry()
    registry.add(spandrel.ArchSupport.from_architecture(names["Rcnet"](steps=1)))
    loaded = spandrel.ModelLoader(registry=registry).load_from_file(bundled()[weights])
    assert isinstance(loaded, spandrel.ImageModelDescriptor)
    assert loaded.purpose == "Restoration"
    x = torch.rand(1, model.about.channels, 33, 40)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), model(x, 1).clamp(0, 1))


def test_others_are_left_alone(names):
    registry = spandrel.ArchRegistry()
    registry.add(spandrel.ArchSupport.from_architecture(names["Rcnet"]()))
    with pytest.raises(spandrel.UnsupportedModelError):
        spandrel.ModelLoader(registry=registry).load_from_file(bundled()["r2.cifar10"])
