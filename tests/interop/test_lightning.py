"""Lightning trains a network whose steps are drawn."""

import re

import pytest

import rcnet

from ..conftest import IMAGES

pytest.importorskip("lightning", reason="lightning is not installed: make interop")


@pytest.mark.filterwarnings("ignore")
def test_training(example, tmp_path):
    lines, _ = example("lightning_train", IMAGES / "bsd" / "train", 60)
    before, after = ([float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines if line.startswith("noisy"))
    assert before[0] == after[0]
    assert before[1:] == [before[0]] * 3
    assert min(after[1:]) > after[0] + 3
    model = rcnet.load(tmp_path / "lightning.safetensors")
    assert model.choices == (1, 2, 3)
    assert model.about.noise.sigma == 25
