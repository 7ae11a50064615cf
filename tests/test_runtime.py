"""Sessions of other runtimes than torch, and files that are cut without the onnx package."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

import rcnet
from rcnet.about import About
from rcnet.deploy.denoise import TorchSession
from rcnet.errors import InputError
from rcnet.runtime import graph
from rcnet.runtime.denoise import Work, denoise_many, denoise_pixels
from rcnet.runtime.onnx import OnnxSession
from tests.test_judge import photograph


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small denoiser that is told one level, and its file."""
    torch.manual_seed(0)
    model = rcnet.create_model("r3_fast", steps=(1, 2), in_chans=3, width=16, noise_level=True).eval()
    with torch.no_grad():
        model.get_parameter("head.weight").normal_(0, 0.05)
    return model, rcnet.export(model, tmp_path_factory.mktemp("onnx") / "small.onnx")


def test_a_file_denoises_as_the_network(exported):
    model, path = exported
    session, pixels = OnnxSession(path, threads=1), photograph()[:90, :110]
    assert session.settings == model.settings
    assert session.about == model.about
    for setting in model.settings:
        for work in (Work(pixels, 20.0), Work(pixels, strength=0.5), Work(pixels.astype(np.float32) / 255, 20.0)):
            here, there = (denoise_pixels(s, work, setting, tile=48) for s in (session, TorchSession(model)))
            assert here.pixels.dtype == work.pixels.dtype
            assert here.removed == pytest.approx(there.removed, abs=1e-2)
            off = np.abs(here.pixels.astype(float) - there.pixels)
            assert off.max() <= (1e-4 if work.pixels.dtype.kind == "f" else 1)
    with pytest.raises(InputError, match="valid: 1, 2"):
        session.run(np.zeros((1, 3, 8, 8), np.float32), (5, 5, 5), None)
    with pytest.raises(InputError, match=r"not a \.onnx file"):
        OnnxSession(__file__)


def test_several_at_once_are_as_one_by_one(exported):
    session = TorchSession(exported[0])
    works = [Work(photograph()[k : k + 40, :56], sigma, strength) for k, sigma, strength in ((0, 10.0, 1.0), (9, None, 0.7))]
    for work, several in zip(works, denoise_many(session, works, session.settings[-1]), strict=True):
        alone = denoise_pixels(session, work, session.settings[-1])
        np.testing.assert_array_equal(several.pixels, alone.pixels)
        assert several.removed == pytest.approx(alone.removed, rel=1e-5)


def test_a_cut_computes_only_what_its_output_needs(exported):
    model = exported[1].read_bytes()
    parts = [onnx.load_from_string(graph.cut(model, name)) for name in graph.outputs(model)]
    for part in parts:
        onnx.checker.check_model(part)
    convolutions = [sum(node.op_type == "Conv" for node in part.graph.node) for part in parts]
    assert convolutions == [2 + 6, 2 + 12]  # the stem and the head, and two convolutions per cell and step
    assert graph.metadata(model).keys() == {"rcnet"}


def test_a_file_says_what_it_takes():
    about = About("denoise", 3, ("image", "sigma", "coarse"), sub=2, reach=(8, 4)).completed({"noise": {"sigma": [0, 60]}})
    assert About.from_json(about.to_json()) == about


def test_the_runtime_needs_no_torch(exported):
    code = (
        "import sys, numpy as np; from rcnet.runtime.onnx import OnnxSession; from rcnet.runtime.denoise import *;"
        f"s = OnnxSession({str(exported[1])!r}); denoise_pixels(s, Work(np.zeros((20, 20, 3), np.uint8), 5.0), s.settings[0]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
