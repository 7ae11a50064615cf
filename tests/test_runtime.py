"""Sessions of other runtimes than torch, and files that are cut without the onnx package."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import rcnet
from rcnet.about import About
from rcnet.deploy import sessions
from rcnet.deploy.torch_session import TorchSession
from rcnet.errors import InputError
from rcnet.models import bundled, read_metadata
from rcnet.runtime import graph
from rcnet.runtime.classify import probabilities
from rcnet.runtime.denoise import Work, denoise_images, denoise_many, denoise_pixels
from rcnet.runtime.onnx import OnnxSession, bundled_files
from rcnet.tasks.catalogue import describe_architecture
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


@pytest.mark.parametrize("name", bundled())
def test_bundled_files_are_of_the_bundled_weights(name):
    again = f"make the files again: python tools/onnx_files.py {name}"
    file, weights = OnnxSession(bundled_files()[name]), read_metadata(name)
    for part in ("weights", "results", "adaptive"):
        assert file.metadata.get(part) == weights.get(part), again
    assert About.from_json(weights["preprocessing"]).noise == file.about.noise, again


def test_the_list_of_architectures_is_that_of_the_registry():
    for row in json.loads((bundled_files()["r3_fast.photo"].with_name("networks.json")).read_text()):
        found = json.loads(json.dumps(describe_architecture(row["name"])))
        assert row == found, "make it again: python tools/onnx_files.py"


@pytest.mark.parametrize("name", bundled())
def test_bundled_files_equal_the_networks_of_torch(name):
    here, there = OnnxSession(bundled_files()[name], threads=1), TorchSession(rcnet.load(name))
    assert (here.about, here.settings, here.quality()) == (there.about, there.settings, there.quality())
    assert here.parameters == there.parameters
    image = photograph()[:75, :94, : here.about.channels].transpose(2, 0, 1)[None].astype(np.float32) / 255
    if here.gives == "classes":
        image = image[..., :32, :32]
    first = here.run(image, here.settings[-1])
    for n in here.settings:
        assert here.macs(n, image.shape[2:]) == there.macs(n, image.shape[2:])
        answers = [
            denoise_images(s, image, n, tile=48) if here.gives == "image" else probabilities(s, image, n) for s in (here, there)
        ]
        np.testing.assert_allclose(*answers, atol=1e-4)
    here.release()
    np.testing.assert_array_equal(here.run(image, n), first)
    if here.has_judge:
        np.testing.assert_allclose(here.judge(image), there.judge(image), rtol=1e-3, atol=1e-2)


def without_torch(code, *arguments):
    """What a process gives in which torch cannot be imported."""
    block = "import sys; sys.modules.update(torch=None, safetensors=None)\n"
    return subprocess.run([sys.executable, "-c", block + code, *map(str, arguments)], capture_output=True, text=True)


def test_commands_need_no_torch(tmp_path):
    code = """
import os, sys
from pathlib import Path
from rcnet.cli import main
photo, home = sys.argv[1:]
os.chdir(home)
for line in ("models", "models r2.cifar10", "classify PHOTO --budget 1s", "profile r3.bsd-gray-25 --size 16x24", "doctor",
             "denoise PHOTO -o a.png --steps 1", "denoise PHOTO -o b.png --budget 20GMAC --model r3_fast.color --sigma 9",
             "denoise PHOTO -o c.png --budget 10min --compare"):
    print(line, flush=True)
    main([photo if word == "PHOTO" else word for word in line.split()])
"""
    Image.fromarray(photograph()[:60, :70]).save(tmp_path / "in.png")
    done = without_torch(code, tmp_path / "in.png", tmp_path)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    assert "r2.cifar10" in done.stdout
    assert "torch" in done.stdout  # doctor says that it is missing
    assert {path.name for path in tmp_path.iterdir()} == {"in.png", "a.png", "b.png", "c.png", "c-compare.png"}
    for command in (
        "train r3 --data .",
        "export r3.bsd-gray-25 -o x.onnx",
        "denoise in.png --runtime torch",
        "run in.png --model x.safetensors",
    ):
        (tmp_path / "x.safetensors").touch()
        done = without_torch(
            "import os, sys; from rcnet.cli import main; os.chdir(sys.argv.pop()); main(sys.argv[1:])", *command.split(), tmp_path
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "pip install 'rcnet[torch]'" in done.stderr


def test_arrays_need_no_torch():
    code = """
import numpy as np, rcnet
assert rcnet.denoise(np.zeros((40, 50, 3), np.uint8), steps=1, sigma=5).shape == (40, 50, 3)
assert rcnet.classify("r2.cifar10", np.zeros((2, 3, 32, 32), np.uint8)).shape == (2, 10)
for call in (lambda: rcnet.load("r3_fast.photo"), lambda: rcnet.denoise(np.zeros((9, 9), np.uint8), model="mine.safetensors")):
    try:
        call()
    except rcnet.InputError as error:
        print(error)
"""
    done = without_torch(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "this needs torch: pip install 'rcnet[torch]'\n" * 2


def test_pictures_as_arrays():
    pixels = photograph()[:60, :70]
    clean = rcnet.denoise(pixels, model="r3_fast.photo", steps=2, sigma=15)
    assert (clean.dtype, clean.shape) == (np.uint8, pixels.shape)
    session = OnnxSession(bundled_files()["r3_fast.photo"])
    np.testing.assert_array_equal(clean, denoise_pixels(session, Work(pixels, 15.0), session.per_cell(2)).pixels)
    np.testing.assert_array_equal(clean, rcnet.denoise("r3_fast.photo", pixels, 2, sigma=15))
    np.testing.assert_array_equal(clean, rcnet.denoise(session, pixels, 2, sigma=15))
    floats = rcnet.denoise(pixels / 255, steps=2, sigma=15)
    assert floats.dtype == np.float64
    assert np.abs(255 * floats - clean).max() < 0.6
    planes = pixels.transpose(2, 0, 1)[None] / np.float32(255)
    by_torch = rcnet.denoise(rcnet.load("r3_fast.photo"), torch.from_numpy(planes), 2, sigma=15)
    np.testing.assert_allclose(rcnet.denoise(planes, steps=2, sigma=15), by_torch.numpy(), atol=1e-4)
    np.testing.assert_allclose(rcnet.denoise(torch.from_numpy(planes), steps=2, sigma=15), by_torch, atol=1e-4)
    gray = rcnet.denoise(pixels[..., 1].astype(np.uint16) * 257, steps=1)
    assert (gray.dtype, gray.shape) == (np.uint16, (60, 70))
    for wrong in (pixels.astype(np.int64), pixels[0, 0], planes * 255, "photo.png", pixels[..., :2]):
        with pytest.raises(InputError, match=r"images|channels"):
            rcnet.denoise(wrong)
    for call in (lambda: rcnet.denoise(pixels, pixels), lambda: rcnet.denoise(pixels, model=7)):
        with pytest.raises(InputError, match="model"):
            call()
    with pytest.raises(InputError, match="gradients"):
        rcnet.denoise(torch.from_numpy(planes).requires_grad_(), steps=1)


def test_a_file_goes_where_a_name_goes(run, refused, tmp_path):
    Image.fromarray(photograph()[:60, :70]).save(tmp_path / "in.png")
    shutil.copy(bundled_files()["r3_fast.photo"], tmp_path / "mine.onnx")
    for name, options in {
        "name": [],
        "file": ["--model", "mine.onnx"],
        "torch": ["--runtime", "torch", "--precision", "fp32"],
    }.items():
        status, _, err = run("denoise", "in.png", "-o", f"{name}.png", *options)
        assert status == 0, err
    pictures = [np.array(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("name", "file", "torch")]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert np.abs(pictures[0] - pictures[2]).max() <= 1
    assert json.loads(run("models", "mine.onnx", "--json")[1])["name"] == "mine.onnx"
    assert len(json.loads(run("profile", "mine.onnx", "--size", "16x16", "--json")[1])["rows"]) == 3
    assert "leave out torch" in refused("denoise", "in.png", "--model", "mine.onnx", "--precision", "bf16")
    assert "no exported network" in refused("denoise", "in.png", "--model", "other.onnx")
    rcnet.save(rcnet.load("r3_fast.gray"), tmp_path / "mine.safetensors")
    assert "rcnet export" in refused("denoise", "in.png", "--model", "mine.safetensors", "--runtime", "onnx")
    assert "gives no images" in refused("denoise", "in.png", "--model", "r2.cifar10")
    for model in ("mine.onnx", "mine.safetensors"):
        assert "did you mean 'cpu'? valid: cpu" in refused("denoise", "in.png", "--model", model, "--device", "tpu")
    assert run("denoise", "in.png", "-o", "cpu.png", "--device", "cpu")[0] == 0
    assert (tmp_path / "cpu.png").read_bytes() == (tmp_path / "name.png").read_bytes()
    for source, says in (("mine.onnx", ""), ("mine.safetensors", ""), ("in.png", "not a readable"), ("no.onnx", "no exported")):
        with pytest.raises(InputError, match=says) if says else contextlib.nullcontext():
            sessions.check_source(tmp_path / source)


def test_a_file_that_changes_is_read_again(tmp_path):
    pixels, file = photograph()[:40, :50], tmp_path / "mine.onnx"
    pictures = []
    for age, name in ((10, "r3_fast.photo"), (0, "r3_fast.color")):
        shutil.copy(bundled_files()[name], file)
        os.utime(file, (time.time() - age,) * 2)
        pictures.append(rcnet.denoise(pixels, model=file, steps=1, sigma=20))
    np.testing.assert_array_equal(pictures[1], rcnet.denoise(pixels, model="r3_fast.color", steps=1, sigma=20))
    assert not np.array_equal(*pictures)


def test_much_work_is_done_by_torch_where_that_was_measured_to_be_faster(monkeypatch):
    monkeypatch.setattr(sessions, "bf16_by_processor", lambda: True)
    for faster, megapixels, precision, runtime in (
        (True, 1e6, "auto", TorchSession),
        (False, 1e6, "auto", OnnxSession),
        (True, 1.0, "auto", OnnxSession),
        (True, 1e6, "fp32", OnnxSession),
    ):
        monkeypatch.setattr(sessions, "torch_is_faster", lambda *_, faster=faster: faster)
        assert isinstance(sessions.open_session("r3_fast.gray", precision=precision, megapixels=megapixels), runtime)


def test_the_faster_runtime_is_measured_once(monkeypatch):
    session = OnnxSession(bundled_files()["r2.cifar10"], threads=1)
    found = sessions.torch_is_faster(session, "r2.cifar10", 1)
    monkeypatch.setattr(sessions, "torch_session", None)  # torch is not imported for what is known
    assert sessions.torch_is_faster(session, "r2.cifar10", 1) == found


def test_kernels_in_half(exported, tmp_path):
    model, path = exported
    half = rcnet.export(model, tmp_path / "half.onnx", half=True)
    assert half.stat().st_size < path.stat().st_size - 10_000
    x = photograph()[:40, :48].transpose(2, 0, 1)[None].astype(np.float32) / 255
    for n in model.settings:
        np.testing.assert_allclose(*(OnnxSession(file).run(x, n) for file in (half, path)), atol=0.02)
    with pytest.raises(InputError, match="half is for onnx"):
        rcnet.export(model, tmp_path / "half.pt2", half=True)
