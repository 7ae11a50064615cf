"""Bundled weights can be made again: every part of their training runs, each from the weights of the one before it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rcnet.errors import InputError
from rcnet.models import create_model, save
from rcnet.models.files import bundled, read_metadata
from rcnet.tasks.task import checksum
from rcnet.training.provenance import commit
from rcnet.training.recipe import list_recipes, read_recipe

from .conftest import IMAGES

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
from tools.weights import make, parts_of, recipe_of  # noqa: E402 (not in the wheel)

SHORT = ["iterations=2", "batch=2", "log_every=1", "precision=fp32"]


@pytest.mark.parametrize("name", bundled())
def test_every_part_of_bundled_weights_is_trained(name, tmp_path, cifar_folder):
    metadata, parts = read_metadata(name), parts_of(name)
    if metadata["architecture"]["name"] == "r2":
        data, more = cifar_folder, ["classification.dataset=folder", "classification.size=8"]
    else:
        data, more = IMAGES / "bsd", ["denoising.patch=16", "denoising.pairs=0"]
    made = read_metadata(make(name, data, tmp_path, [*SHORT, *more], progress=False))
    assert made["architecture"]["name"] == metadata["architecture"]["name"]
    again = parts_of(str(tmp_path / name / f"part{len(parts)}" / "weights.safetensors"))
    assert len(again) == len(parts)
    for number, (old, new) in enumerate(zip(parts, again, strict=True), start=1):
        init = tmp_path / name / f"part{number - 1}" / "weights.safetensors"
        assert new["recipe"]["init"] == (str(init) if number > 1 else "")
        assert new["recipe"]["optimizer"]["muon_lr"] == old["recipe"]["optimizer"]["muon_lr"]
        assert recipe_of(old, None).iterations == old["iterations"]


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_names_the_options_of_its_network(name):
    if config := read_recipe(name).model:
        with torch.device("meta"):
            create_model(**config)


def test_weights_that_do_not_say_how_they_were_trained_are_refused(tmp_path):
    save(create_model("r3", steps=2), tmp_path / "new.safetensors")
    with pytest.raises(InputError, match="does not say how it was trained"):
        make(str(tmp_path / "new.safetensors"), IMAGES / "bsd", tmp_path)


@pytest.mark.parametrize("name", list_recipes())
def test_no_recipe_starts_from_the_weights_that_it_makes(name):
    text = list_recipes()[name].read_text()
    starts = [read_recipe(name).init, *re.findall(r"init=(\S+)", text)]
    assert not [start for start in starts if start in bundled()]


def test_a_new_source_file_makes_a_commit_dirty(tmp_path):
    def run(*command):
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    source = tmp_path / "src" / "rcnet" / "training" / "provenance.py"
    source.parent.mkdir(parents=True)
    source.write_text((ROOT / "src/rcnet/training/provenance.py").read_text())
    run("git", "init", "-q")
    run("git", "add", ".")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    code = "import sys, runpy; print(runpy.run_path(sys.argv[1])['commit']())"

    def now():
        return run(sys.executable, "-c", code, str(source))

    assert re.fullmatch(r"[0-9a-f]+", clean := now())
    (tmp_path / "notes.txt").write_text("no source")
    assert now() == clean
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "new.py").write_text("")
    assert now() == f"{clean}-dirty"
    assert commit() is not None


def test_a_checksum_of_data_does_not_depend_on_the_order_of_records():
    records = [bytes([i]) * 5 for i in range(20)]
    assert checksum(records) == checksum(records[::-1]) != checksum([*records[1:], b"other"])
    assert checksum([b"ab", b"c"]) != checksum([b"a", b"bc"])
