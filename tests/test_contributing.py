"""What is written for contributors works: the examples, and the rule of imports."""

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rcnet

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
USES_THEM = """
import torch, rcnet
from PIL import Image
from rcnet.cli.figures import figures
from rcnet.models.rms import RMSNorm2d
from rcnet.training.recipe import read_recipe

assert rcnet.__file__.startswith({folder!r}), rcnet.__file__
net = rcnet.create_model("dw", width=16)
net(torch.rand(2, 3, 32, 32), steps=2).sum().backward()
rcnet.save(net, "dw.safetensors")
assert torch.equal(rcnet.load("dw.safetensors")(torch.ones(1, 3, 8, 8)), net.eval()(torch.ones(1, 3, 8, 8)))
figures("bn-scale", "dw.safetensors")
assert Image.open("bn-scale.png").size[0] > 500
chosen = read_recipe("cifar_fast", ["model.name=dw", "model.norm=rms", "model.width=8"]).model
cell = rcnet.create_model(**chosen).cell
assert len([m for m in cell.modules() if isinstance(m, RMSNorm2d)]) == sum(map(len, cell.norms)) > 1
torch.testing.assert_close(RMSNorm2d(8)(torch.full((1, 8, 2, 2), 5.0)), torch.ones(1, 8, 2, 2))
assert read_recipe("r3_quick").denoising.sigma == (5, 50)
"""
TURNS = """
from rcnet import register
from rcnet.models.classify import r2


@register("rotate", steps=(1, 2))
def turns(steps=(1, 2), num_classes=4):
    net = r2(steps, num_classes=num_classes, width=0.125)
    net.about = type(net.about)(multiple=4)
    return net
"""
RECIPE = """
batch = 16
iterations = 60
log_every = 30
precision = "fp32"
model = {name = "turns"}
rotation = {size = 16}
optimizer = {lr = 3e-3}
"""
TURNED = """
import contextlib, io, json, sys

from rcnet.cli import main
from rcnet.deploy.int8 import calibration_images
from rcnet.models import load


def rcnet(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main([*arguments, "--json"])
    return json.loads(out.getvalue())


data, weights = sys.argv[1], "run/weights.safetensors"
result = rcnet("train", "turns.toml", "--data", data, "--out", "run")
assert result["recipe"]["rotation"] == {"size": 16}
rows = rcnet("eval", weights, "--data", data)["rows"]
assert rows == result["validation"]
assert all(row["error"] < 70 for row in rows), rows  # 75 untrained
assert rcnet("models", "turns")["size"] == [32, 32]
assert rcnet("models", weights)["size"] == rcnet("profile", weights)["size"] == [16, 16]
seen = list(calibration_images(load(weights), data))
assert seen[0].shape == (32, 3, 16, 16)
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the source to which all examples were applied."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copytree(ROOT / "paper", folder / "paper", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_readme.py", folder / "tests")
    (folder / "results").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    for example in EXAMPLES:
        subprocess.run(["git", "apply", "-"], cwd=folder, input=example, text=True, check=True)
    return folder


def lint_imports(folder):
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(folder / "src")}, capture_output=True, text=True
    )


def test_the_examples_work(changed):
    assert len(EXAMPLES) == 6
    for tool in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *tool, "src", "benchmarks", "tests"], cwd=changed, check=True)
    code = USES_THEM.format(folder=str(changed))
    paths = {"PYTHONPATH": str(changed / "src")}
    subprocess.run([sys.executable, "-c", code], cwd=changed, env=paths, check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.norm_sizes"], cwd=changed, env=paths, check=True)
    assert "| R2^2 | 1,260,234 |" in (changed / "results" / "norm_sizes.md").read_text()


def test_a_task_of_a_file_and_a_line_is_trained_measured_and_calibrated(changed, cifar_folder, tmp_path):
    (tmp_path / "turning.py").write_text(TURNS)
    (tmp_path / "turns.toml").write_text(RECIPE)
    paths = {"PYTHONPATH": f"{changed / 'src'}:{tmp_path}", "RCNET_MODULES": "turning", "RCNET_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", TURNED, str(cifar_folder)]
    subprocess.run(command, cwd=tmp_path, env=os.environ | paths, check=True)


def test_imports_run_one_way():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_an_import_the_other_way_is_found(changed):
    path = changed / "src" / "rcnet" / "models" / "rms.py"
    path.write_text(path.read_text() + "\n\ndef upwards() -> None:\n    from rcnet.training import train\n\n    train\n")
    done = lint_imports(changed)
    assert done.returncode == 1
    assert "rcnet.models is not allowed to import rcnet.training" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("models/rms.py", "import rcnet", "rcnet.models is not allowed to import rcnet.hub"),
        (
            "models/rms.py",
            "if TYPE_CHECKING:\n    from rcnet.training.loop import Trainer",
            "rcnet.models is not allowed to import",
        ),
        ("data/formats.py", "if TYPE_CHECKING:\n    from rcnet.data.decoding import decode", "cycle"),
        ("cli/models.py", "import paper.tables", "rcnet is not allowed to import paper"),
    ],
)
def test_imports_of_the_top_of_types_and_of_the_study_are_found(changed, file, line, message):
    path = changed / "src" / "rcnet" / file
    before = path.read_text()
    path.write_text(f"{before}\nfrom typing import TYPE_CHECKING\n{line}\n")
    done = lint_imports(changed)
    path.write_text(before)
    assert done.returncode == 1
    assert message in done.stdout


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floor = (ROOT / ".github" / "floor.txt").read_text().strip()
    assert floor.replace("==", ">=") in project["optional-dependencies"]["torch"]
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    pythons = {line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line}
    assert pythons == set(re.findall(r"\b3\.\d+\b", workflow))
    assert f"version: {rcnet.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{rcnet.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


PACKAGES = ["rcnet", *(f"rcnet.{info.name}" for info in pkgutil.iter_modules(rcnet.__path__) if info.ispkg)]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package):
    module = importlib.import_module(package)
    assert [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)] == []
