"""The benchmark of photographs and pages: what it measures, and what it says of it."""

import argparse

import numpy as np
import pytest
from PIL import Image

from benchmarks import photos
from benchmarks.photos import CLEAN, Case, Method, Noise, Row, measure_case, pairs_in, render, spoiled, summary
from rcnet.errors import InputError

FLAT = np.full((24, 32, 3), 100, np.uint8)
METHODS = [
    Method("rcnet, 1 step", lambda x, _, __: x),
    Method("NLM, OpenCV", lambda x, h, _: np.full_like(x, h / 255), (90, 100, 101), "h"),
]


def test_noise_is_as_files_hold_it():
    noisy = spoiled(FLAT, Noise("sigma 10", 10))
    assert noisy.dtype == np.uint8
    assert (noisy - 100.0).std() == pytest.approx(10, rel=0.1)
    assert (spoiled(FLAT, CLEAN) == FLAT).all()
    assert not (spoiled(FLAT, Noise("", 10, 85)) == noisy).all()


def test_the_best_strength_of_a_row_counts():
    row = Row([], [], photos.defaultdict(list))
    measure_case(Case("pairs", "a camera's", "a", FLAT, FLAT + np.uint8(1), 5.0), METHODS, row)
    measure_case(Case("pairs", "a camera's", "b", FLAT + np.uint8(2), FLAT, 5.0), METHODS, row)
    found = summary(("pairs", "a camera's"), row, METHODS)
    one, two = 20 * np.log10(255), 20 * np.log10(255 / 2)
    assert found["pictures"] == ["a", "b"]
    assert found["input"] == pytest.approx((one + two) / 2, abs=1e-3)
    assert found["methods"]["rcnet, 1 step"]["psnr"] == found["input"]
    assert found["methods"]["NLM, OpenCV"]["setting"] == 100  # exact for the first
    assert found["methods"]["NLM, OpenCV"]["psnr"] is None
    assert found["methods"]["NLM, OpenCV"]["each"] == [None, pytest.approx(two, abs=1e-3)]


def test_results_are_written_picture_by_picture_and_kept_when_stopped(tmp_path, monkeypatch):
    def stopped(bsd, pairs):
        yield Case("pages", "sigma 10", "page 1", FLAT, FLAT, 10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(photos, "cases", stopped)
    args = argparse.Namespace(bsd=None, pairs=None, images=8, pair_images=8, pairs_name="pairs", out=tmp_path)
    about = {"hardware": "", "torch": "", "packages": {}, "commit": "", "precision": "fp32"}
    about |= {"weights": {"name": "some", "crc32": "", "minutes": None}}
    result = photos.measure(METHODS, args, about)
    assert not result["complete"]
    page = (tmp_path / "photos.md").read_text()
    assert page == render(result)
    assert "| drawn pages, 1 of 4 | sigma 10 | ∞ | ∞ | ∞ (h 100) |" in page
    assert "Stopped" in page


def test_pairs_are_found_and_checked(tmp_path):
    for name in ("a_real.JPG", "a_mean.JPG", "b_real.JPG"):
        Image.fromarray(FLAT).save(tmp_path / name)
    with pytest.raises(InputError, match="pairs"):
        pairs_in(tmp_path)
    (tmp_path / "b_real.JPG").unlink()
    assert pairs_in(tmp_path) == [(tmp_path / "a_real.JPG", tmp_path / "a_mean.JPG")]
