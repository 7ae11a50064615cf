"""Fast sessions and exported files answer as the network does."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import rcnet
from rcnet.deploy.export import cut, export, load_exported, read_exported
from rcnet.deploy.optimize import optimize
from rcnet.errors import InputError

from .conftest import IMAGES, random_model

CLASSIFIERS = [("r2", (2, 3)), ("r4", (1, 2)), ("s2", 2), ("s4_exits", (1, 3))]
SIZES = {name: {"width": 0.125} for name, _ in CLASSIFIERS}


def trained(name, **config):
    """A network whose batch norms have something to say."""
    model = random_model(name, **config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def denoiser():
    return rcnet.load("r3_fast.bsd-gray-25")


@torch.inference_mode()
@pytest.mark.parametrize("name", ["r3.bsd-gray-25", "r3_fast.bsd-gray-25"])
def test_sessions_of_denoisers_answer_as_the_network(name):
    model, x = rcnet.load(name), torch.rand(2, 1, 33, 46)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exact, fast = optimize(model, precision="fp32"), optimize(model, precision="bf16")
    for n in model.steps:
        torch.testing.assert_close(exact(x, n), model(x, n), atol=1e-4, rtol=0)
        assert fast(x, n).dtype == torch.float32
        assert (fast(x, n) - model(x, n)).abs().max() < 0.03
    torch.testing.assert_close(exact(x), model(x), atol=1e-4, rtol=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    mixed = optimize(model, [(4, 3, 3)], precision="fp32")
    torch.testing.assert_close(mixed(x, (4, 3, 3)), model(x, (4, 3, 3)), atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "steps"), CLASSIFIERS)
def test_sessions_of_classifiers_answer_as_the_network(name, steps):
    model, x = trained(name, steps=steps, **SIZES.get(name, {})), torch.rand(2, 3, 32, 32)
    exact, fast = optimize(model, precision="fp32"), optimize(model, precision="bf16")
    for n in model.steps:
        expected = model(x, n)
        torch.testing.assert_close(exact(x, n), expected, atol=1e-4, rtol=1e-4)
        assert (fast(x, n) - expected).abs().max() < 0.1 * expected.abs().max()


def test_batch_norms_behind_convolutions_are_folded(denoiser):
    for n in denoiser.steps:
        assert not any(isinstance(module, nn.BatchNorm2d) for module in optimize(denoiser, n).sessions[n].modules())


def test_sessions_refuse_what_they_do_not_hold(denoiser):
    session = optimize(denoiser, [1, 3])
    with pytest.raises(InputError, match="steps=2 is not optimized: valid: 1, 3"):
        session(torch.rand(1, 1, 16, 16), 2)
    with pytest.raises(InputError, match="valid: 1, 2, 3, 4"):
        optimize(denoiser, 7)
    with pytest.raises(InputError, match="precision"):
        optimize(denoiser, precision="int3")


@pytest.fixture(scope="module")
def exported(denoiser, tmp_path_factory):
    """The denoiser with two step counts in every format."""
    folder = tmp_path_factory.mktemp("exported")
    return {to: export(denoiser, folder / f"x{suffix}", steps=[1, 4]) for to, suffix in (("onnx", ".onnx"), ("openvino", ".xml"))}


@torch.inference_mode()
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_exported_files_answer_as_the_network_at_any_size_and_batch(exported, denoiser, to):
    for steps in (1, 4):
        session = load_exported(exported[to], steps, threads=1)
        for shape in ((1, 1, 33, 47), (3, 1, 64, 48), (1, 1, 16, 129)):
            x = torch.rand(*shape)
            np.testing.assert_allclose(session(x.numpy()), denoiser(x, steps).numpy(), atol=1e-5)
    assert read_exported(exported[to])["results"] == denoiser.metadata["results"]
    with pytest.raises(InputError, match=r"steps=2 is not in .*: valid: 1, 4"):
        load_exported(exported[to], 2)


def test_each_kernel_is_stored_once(exported, denoiser):
    weights = 4 * sum(p.numel() for p in denoiser.parameters())
    assert exported["openvino"].with_suffix(".bin").stat().st_size < 1.1 * weights
    stored = sum(onnx.numpy_helper.to_array(t).nbytes for t in onnx.load(exported["onnx"]).graph.initializer)
    assert stored < 1.1 * weights
    part = onnx.load_from_string(cut(exported["onnx"], "steps1"))
    assert [output.name for output in part.graph.output] == ["steps1"]
    assert sum(node.op_type == "Conv" for node in part.graph.node) == 5  # the stem, three cells once, the head


@torch.inference_mode()
def test_a_classifier_and_a_plain_denoiser_are_exported(tmp_path):
    for name, config, shape in (("r2", {"steps": (2, 3), "width": 0.125}, (3, 3, 32, 32)), ("r3", {"steps": 2}, (2, 1, 21, 34))):
        model, x = trained(name, **config), torch.rand(*shape)
        session = load_exported(export(model, tmp_path / f"{name}.onnx"), 2, threads=1)
        np.testing.assert_allclose(session(x.numpy()), model(x, 2).numpy(), atol=1e-4)
    assert read_exported(tmp_path / "r2.onnx")["task"] == "classify"


@torch.inference_mode()
def test_pt2(denoiser, tmp_path):
    path = export(denoiser, tmp_path / "x.pt2", steps=[1])
    x = torch.rand(3, 1, 32, 50)
    (answer,) = torch.export.load(path).module()(x)
    torch.testing.assert_close(answer, denoiser(x, 1), atol=1e-5, rtol=0)
    assert read_exported(path)["outputs"] == {"steps1": 1}


def test_export_on_the_command_line(run, refused, tmp_path):
    status, out, err = run("export", "r3_fast.bsd-gray-25", "-o", "fast.onnx", "--steps", "1")
    assert status == 0, err
    assert out.startswith("fast.onnx (0.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast.onnx"]
    assert "onnx, openvino, pt2" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.tflite")
    assert "does not end in .onnx" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.pt2", "--to", "onnx")
    assert "there is no folder" in refused("export", "r3_fast.bsd-gray-25", "-o", "nowhere/x.onnx")
    assert "valid: 1, 2, 3, 4" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.onnx", "--steps", "9")
    (tmp_path / "broken.onnx").write_bytes((tmp_path / "fast.onnx").read_bytes()[:1000])
    for path in (tmp_path / "broken.onnx", tmp_path / "nowhere.onnx", IMAGES / "cat.png"):
        with pytest.raises(InputError):
            load_exported(path)
