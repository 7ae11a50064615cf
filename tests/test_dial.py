"""Quality and cost of every setting, and the budgets that go by them."""

import numpy as np
import pytest

import rcnet
from rcnet.errors import InputError
from rcnet.evaluation import classification_results, denoising_results
from rcnet.models import create_model, load, save
from rcnet.runtime.results import setting_quality
from rcnet.tasks.classify import read_matching

from .conftest import IMAGES

FAST = "r3_fast.bsd-gray-25"


@pytest.fixture
def known(tmp_path):
    """A file of weights whose results make fewer steps better than more."""
    model = create_model("r3_fast", steps=(1, 2, 3), width=8)
    rows = [{"steps": n, "psnr": db} for n, db in ((1, 27.0), (2, 29.0), (3, 28.0))]
    other = [{"steps": n, "psnr": db} for n, db in ((0, 20.0), (1, 30.0), (2, 32.0), (3, 31.0))]
    partial = [{"steps": 3, "psnr": 90.0}]
    results = [{"data": name, "precision": "fp32", "rows": r} for name, r in (("a", rows), ("b", other), ("c", partial))]
    save(model, tmp_path / "known.safetensors", results=results)
    return load(tmp_path / "known.safetensors")


def test_quality_is_that_of_the_first_result_that_has_every_setting(known):
    assert setting_quality(known) == ("psnr", {(1, 1, 1): 27.0, (2, 2, 2): 29.0, (3, 3, 3): 28.0})
    assert setting_quality(create_model("r2", width=0.125)) == ("", {})


def test_the_front_and_the_best(known):
    rows = rcnet.best_settings(known, size=(32, 48))
    assert [(row["steps"], row["psnr"], row["front"], row["best"]) for row in rows] == [
        (1, 27.0, True, False),
        (2, 29.0, True, True),
        (3, 28.0, False, False),
    ]
    assert rows[0]["macs"] < rows[1]["macs"] < rows[2]["macs"]
    assert "ms" not in rows[0]


def test_a_budget_buys_quality_not_cost(known):
    macs = [row["macs"] for row in rcnet.best_settings(known, size=(32, 48))]
    assert rcnet.steps_for(known, f"{macs[2]}MAC", (32, 48)) == 2
    assert rcnet.steps_for(known, f"{macs[1] - 1}MAC", (32, 48)) == 1
    chosen = [row["steps"] for row in rcnet.best_settings(known, budget=f"{macs[0]}MAC", size=(32, 48)) if row["best"]]
    assert chosen == [1]
    timed = rcnet.best_settings(known, budget="10s", size=(16, 16))
    assert [row["ms"] for row in timed] == sorted(row["ms"] for row in timed)
    assert [row["steps"] for row in timed if row["best"]] == [2]
    with pytest.raises(InputError, match="no step count fits 1MAC at 48x32 pixels"):
        rcnet.best_settings(known, budget="1MAC", size=(32, 48))


def test_quality_is_measured_on_pictures():
    model = load(FAST)
    image = np.asarray(rcnet.data.images.read_image(IMAGES / "cat.png", 1))[:64, :64]
    rows = rcnet.best_settings(model, [image])
    measured = {row["steps"]: row["psnr"] for row in denoising_results(model, [image], 25.0, model.choices)}
    assert {row["steps"]: row["psnr"] for row in rows} == measured
    assert len(rows) == len(model.settings) == 9
    assert rows[0]["steps"] == (1, 0, 0)


def test_quality_of_a_classifier_is_its_error(cifar_folder):
    model = load("r2.cifar10")
    rows = rcnet.best_settings(model, cifar_folder)
    test = read_matching(cifar_folder, "test", model)
    measured = classification_results(model, test.images, test.labels, model.choices)
    assert [(row["steps"], row["error"]) for row in rows] == [(row["steps"], row["error"]) for row in measured]
    best = min(row["error"] for row in rows)
    assert [row["error"] for row in rows if row["best"]] == [best]


def test_what_cannot_be_measured():
    with pytest.raises(InputError, match="does not have results for every setting: give data"):
        rcnet.best_settings(create_model("r3_fast", width=8))
    with pytest.raises(InputError, match="on a folder of labelled images"):
        rcnet.best_settings(create_model("r2", width=0.125), [np.zeros((32, 32, 3), np.uint8)])


@pytest.mark.parametrize("name", ["r3.bsd-gray-25", FAST, "r3_fast.gray", "r3_fast.color", "r3_fast.photo", "r2.cifar10"])
def test_every_setting_is_worth_its_cost(name):
    """Each is within 0.3 dB, or 0.5 points, of the unified one that costs about as much."""
    model = load(name)
    rows = rcnet.best_settings(model)
    metric, allowed = ("psnr", 0.3) if "psnr" in rows[0] else ("error", 0.5)
    unified = [row for row in rows if isinstance(row["steps"], int)]
    for row in rows:
        like = [u for u in unified if u["macs"] <= row["macs"]]
        if like:  # of what costs no more
            worse = like[-1][metric] - row[metric] if metric == "psnr" else row[metric] - like[-1][metric]
            assert worse < allowed, row


def test_the_figure(run, tmp_path):
    run("figures", "dial", FAST, "-o", str(tmp_path / "dial.png"))
    run("figures", "dial", FAST, "-o", str(tmp_path / "again.png"))
    assert (tmp_path / "dial.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    run("figures", "dial", "r2.cifar10", "-o", str(tmp_path / "error.png"))
    assert (tmp_path / "error.png").read_bytes() != (tmp_path / "dial.png").read_bytes()
