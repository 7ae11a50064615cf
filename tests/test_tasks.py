"""A third task is a file and a line in the table: then it has a recipe's section, eval, a command, tiles, a path and export."""

import ast
import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rcnet
import rcnet.cost
from rcnet.deploy.export import load_exported
from rcnet.models import registry
from rcnet.tasks import TASKS

from .conftest import IMAGES
from .test_serve import Server

RECIPE = """
batch = 8
iterations = 150
precision = "fp32"
model = {name = "deblocker"}
deblocking = {patch = 32}
optimizer = {name = "muon", lr = 3e-3}
"""
ROOT = IMAGES.parent.parent
QUALITY = 5  # of JPEG, as the task has it


@pytest.fixture
def deblocking(monkeypatch):
    tasks, entries = dict(TASKS), dict(registry._ENTRIES)
    monkeypatch.setenv("RCNET_MODULES", "tests.deblocking")
    yield
    for table, before in ((TASKS, tasks), (registry._ENTRIES, entries)):
        table.clear()
        table.update(before)
    sys.modules.pop("tests.deblocking", None)


def part(file):
    """128x128 pixels in RGB."""
    return Image.open(file).convert("RGB").crop((60, 60, 188, 188))


def compress(file, path):
    part(file).save(path, "JPEG", quality=QUALITY)
    return path


def test_a_third_task_goes_everywhere(deblocking, run, tmp_path):
    def done(*arguments):
        status, out, err = run(*arguments)
        assert status == 0, err
        return out, err

    (tmp_path / "deblock.toml").write_text(RECIPE)
    weights = tmp_path / "run" / "weights.safetensors"
    out, _ = done("train", tmp_path / "deblock.toml", "--data", IMAGES / "bsd", "--out", tmp_path / "run")
    assert out.endswith(f"next: rcnet run IN --model {weights}\n")

    before, _, after = json.loads(done("eval", weights, "--data", IMAGES / "bsd", "--json")[0])["rows"]
    assert after["psnr"] > before["psnr"] + 0.2
    assert json.loads(done("profile", weights, "--size", "64x64", "--json")[0])["size"] == [64, 64]

    photo = compress(IMAGES / "rocket.png", tmp_path / "photo.jpg")
    _, err = done("run", photo, "--model", weights, "--tile", "0", "--precision", "fp32", "-o", tmp_path / "whole.png")
    assert "changed by" in err
    done("run", photo, "--model", weights, "--tile", "64", "--precision", "fp32", "-o", tmp_path / "tiles.png")
    results = [np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("whole.png", "tiles.png")]
    assert np.abs(results[0] - results[1]).max() <= 1
    clean, blocked = (np.asarray(image).astype(int) for image in (part(IMAGES / "rocket.png"), Image.open(photo)))
    assert np.square(results[0] - clean).mean() < np.square(blocked - clean).mean()
    assert done("run", photo, "--model", weights)[0] == f"{photo.with_name('photo-out.jpg')}\n"

    done("export", weights, "-o", tmp_path / "deblock.onnx")
    x = np.random.default_rng(0).random((1, 1, 32, 48), np.float32)
    with torch.inference_mode():
        wanted = rcnet.load(weights).eval()(torch.from_numpy(x), 2).numpy()
    np.testing.assert_allclose(load_exported(tmp_path / "deblock.onnx", 2)(x), wanted, atol=1e-4)
    done("export", weights, "-o", tmp_path / "int8.onnx", "--int8", IMAGES / "bsd")

    server = Server(str(weights), "--precision", "fp32", PYTHONPATH=f"{ROOT / 'src'}:{ROOT}")
    try:
        assert [(m["task"], m["gives"]) for m in server.client.get("/v1/models").json()] == [("deblock", "image")]
        data = io.BytesIO()
        Image.fromarray(blocked.astype(np.uint8)).save(data, "PNG")
        answer = server.post("/v1/deblock?steps=2&deadline_ms=30000", data.getvalue())
        assert answer.status_code == 200, answer.text
        assert np.abs(np.asarray(Image.open(io.BytesIO(answer.content))).astype(int) - results[0]).max() <= 1
        height, width = blocked.shape[:2]
        work = rcnet.cost.macs(rcnet.load(weights), 2, (64, 64)) / 64**2
        assert float(answer.headers["rcnet-macs"]) == pytest.approx(3 * work * height * width)  # a colour after the other
        paths = server.client.get("/openapi.json").json()["paths"]
        assert [path for path in paths if path.startswith("/v1/") and path not in ("/v1/models", "/v1/load")] == ["/v1/deblock"]
        assert server.post("/v1/denoise", data.getvalue()).status_code == 404
    finally:
        server.end()


def test_run_takes_networks_that_give_images(refused, deblocking, tmp_path):
    photo = compress(IMAGES / "cat.png", tmp_path / "photo.jpg")
    message = refused("run", str(photo), "--model", "r2.cifar10")
    assert "gives no images" in message
    assert "TASK one that gives images, e.g. denoise" in message


def named(path):
    """The strings of a file that are the name of a task, but for what a network or a command says of itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare | ast.Match | ast.Subscript | ast.If):
            for part in ast.walk(node.test if isinstance(node, ast.If) else node):
                if isinstance(part, ast.Constant) and part.value in TASKS:
                    yield f"{path.name}:{part.lineno}"


def test_nothing_is_decided_by_the_name_of_a_task():
    files = [file for file in Path(rcnet.__file__).parent.rglob("*.py") if file.parent.name != "tasks"]
    assert len(files) > 100
    assert [line for file in files for line in named(file)] == []
    assert importlib.import_module("rcnet.tasks").gives("") == ""
