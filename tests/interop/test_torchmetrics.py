"""torchmetrics agrees with rcnet's own figures."""

import re

import pytest

import rcnet
from rcnet.data.images import read_folder
from rcnet.evaluation import denoising_results

from ..conftest import IMAGES, two_levels

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: make interop")


@pytest.mark.parametrize("name", ["r3_fast.gray", "two levels"])
def test_psnr_and_ssim(example, tmp_path, name):
    if name == "two levels":
        name = tmp_path / "w.safetensors"
        rcnet.save(two_levels(1), name)
    folder, model = IMAGES / "bsd" / "test", rcnet.load(name)
    lines, _ = example("metrics", folder, name)
    ours = denoising_results(model, read_folder(folder, 1), 25, model.choices)
    assert lines[0].startswith("noisy: 20.")
    for line, row in zip(lines[1:], ours, strict=True):
        found, similarity = re.match(r"\d: ([\d.]+) dB, SSIM ([\d.]+)", line).groups()
        assert float(found) == pytest.approx(row["psnr"], abs=0.006)
        assert float(similarity) == pytest.approx(row["ssim"], abs=0.01)
