import importlib
import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import rcnet
from benchmarks.readme import PICTURES, ROOT, TABLES, insert, picture, version
from rcnet.models import registry

from .conftest import two_levels

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCKS = [
    pytest.param(page, code, id=f"{page}-{place}")
    for page in PAGES
    if page != "docs/convert.md"  # runs in test_convert.py, as one
    for place, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
]


@pytest.mark.parametrize(("file", "name"), TABLES)
def test_tables_of_results_are_rendered_from_the_weights(file, name):
    text = (ROOT / file).read_text()
    assert insert(text, name, TABLES[file, name]()) == text


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_the_bundled_weights(name):
    with Image.open(picture(name)) as image:
        assert image.text["weights"] == version(PICTURES[name])  # else: python -m benchmarks.readme --pictures


RENDERED = ("adaptive", "conversion", "cost_dial", "denoise", "int8", "photos", "runtime", "training")


@pytest.mark.parametrize("name", [*(f"benchmarks.{name}" for name in RENDERED), "tools.mutants"])
def test_pages_of_results_are_rendered_from_the_measurements(name):
    benchmark = importlib.import_module(name)
    path = benchmark.RESULTS / f"{name.rpartition('.')[2]}.json"
    assert benchmark.render(json.loads(path.read_text())) == path.with_suffix(".md").read_text()


def test_a_page_is_written_beside_its_results(tmp_path, monkeypatch, capsys):
    kept = (ROOT / "results" / "conversion.json").read_text()
    (tmp_path / "conversion.json").write_text(kept)
    monkeypatch.setattr(sys, "argv", ["conversion", "--out", str(tmp_path)])
    importlib.import_module("benchmarks.conversion").main()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "conversion.json": kept,
        "conversion.md": (ROOT / "results" / "conversion.md").read_text(),
    }
    assert capsys.readouterr().out.startswith("# A ResNet converted")


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_jobs_are_as_many_as_are_named(page):
    jobs = re.search(r"^## (\w+) jobs\n(.*?)^(?:## |To understand)", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    listed = re.findall(r"^(?:\*\*|\| \[)[A-Z]", jobs[2], re.MULTILINE)
    assert len(listed) == ("None", "One", "Two", "Three", "Four", "Five", "Six", "Seven").index(jobs[1])


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_the_python_of_the_pages_runs(page, code, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.chdir(tmp_path)
    if "fast.onnx" in code:  # the command above it on the page, for fewer steps
        rcnet.export(rcnet.load("r3_fast.bsd-gray-25"), "fast.onnx", steps=[1, 2])
    if "photo.onnx" in code:
        rcnet.export(two_levels(), "photo.onnx")
    part = np.random.default_rng(0).random((1, 3, 40, 50), np.float32)
    names = {
        "picture": part,
        "tile": part[..., 8:24],
        "noisy": torch.rand(1, 1, 20, 20),
        "photo": torch.rand(1, 3, 40, 50),
        "x": torch.rand(2, 3, 16, 16),
    }
    names = {} if page == "README.md" else names  # that runs as it stands
    exec(code, names)
    assert all(torch.isfinite(value).all() for value in names.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
