"""benchmarks.told on two small pictures."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import rcnet
from benchmarks import told
from tests.conftest import IMAGES
from tests.test_judge import told_denoiser


def test_curves_of_what_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(told, "SIDE", 48)
    monkeypatch.setattr(told, "TOLD", (0, 10))
    monkeypatch.setattr(told, "STRENGTHS", (0.0, 1.0))
    rcnet.save(told_denoiser(), tmp_path / "small.safetensors")
    for folder in ("clean", "pairs"):
        (tmp_path / folder).mkdir()
    shutil.copy(IMAGES / "bsd" / "train" / "286092.png", tmp_path / "clean")
    clean = Image.open(IMAGES / "cat.png").convert("RGB").crop((0, 0, 64, 64))
    noisy = told.with_noise(np.asarray(clean), 8, gray=False)
    clean.save(tmp_path / "pairs" / "a_mean.png")
    Image.fromarray(noisy).save(tmp_path / "pairs" / "a_real.png")
    given = {"bsd": "clean", "pairs": "pairs", "model": "small.safetensors", "out": "out"}
    monkeypatch.setattr(sys, "argv", ["told", *(f"--{key}={tmp_path / value}" for key, value in given.items())])
    told.main()
    result = json.loads((tmp_path / "out" / "told.json").read_text())
    assert list(result["curves"]) == [*(f"{kind} {s}" for kind in ("white", "gray") for s in (5, 15, 50)), "a camera's"]
    for curve in result["curves"].values():
        assert curve["told"][0] == curve["strength"][0] == curve["noisy"]  # told nothing, nothing is removed
        assert curve["told"][1] != curve["noisy"]
    assert result["curves"]["a camera's"]["noisy"] == pytest.approx(20 * np.log10(255 / 8), abs=1)
    assert "| 10 |" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "told.png").width > 1000
