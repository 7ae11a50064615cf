"""The benchmark of photographs and pages: what it measures, and what it says of it."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import photos
from benchmarks.colourings import COLOURINGS, colourings
from benchmarks.photos import CAMERA, CLEAN, Case, Method, Noise, measure_case, pairs_in, plan, render, spoiled, summary
from rcnet.errors import InputError

from .conftest import IMAGES

FLAT = np.full((24, 32, 3), 100, np.uint8)
METHODS = [
    Method("rcnet, 1 step", lambda x, _: x),
    Method("NLM, OpenCV", lambda x, h: np.full_like(x, (90 if h is None else h) / 255), (100, 101), "h"),
    Method("CBM3D", lambda x, sigma: np.full_like(x, (100 + (sigma or 0)) / 255), (1, 2), "RMS x", relative=True),
]


def test_noise_is_as_files_hold_it():
    noisy = spoiled(FLAT, Noise("sigma 10", 10))
    assert noisy.dtype == np.uint8
    assert (noisy - 100.0).std() == pytest.approx(10, rel=0.1)
    assert (spoiled(FLAT, CLEAN) == FLAT).all()
    assert not (spoiled(FLAT, Noise("", 10, 85)) == noisy).all()


def test_kinds_of_noise():
    flat = np.full((128, 128, 3), 128, np.uint8)

    def noise(kind, image=flat):
        return spoiled(image, Noise("", 10, kind=kind)) - image.astype(float)

    def alike(noise):
        return (noise[:, 1:] * noise[:, :-1]).mean() / (noise * noise).mean()

    white, gray, coarse, grain = (noise(kind) for kind in ("white", "gray", "coarse", "grain"))
    assert np.corrcoef(white.reshape(-1, 3).T)[0, 1] == pytest.approx(0, abs=0.05)
    assert (gray == gray[:, :, :1]).all()
    assert abs(alike(gray)) < 0.05
    assert alike(coarse) == pytest.approx(0.84, abs=0.05)
    assert alike(grain) == pytest.approx(0.6, abs=0.05)
    assert np.corrcoef(grain.reshape(-1, 3).T)[0, 1] > 0.9
    for one in (white, gray, coarse, grain):
        assert one.std() == pytest.approx(10, rel=0.05)
    assert noise("grain", np.full_like(flat, 250)).std() < 4  # a film's shadows and lights have less
    dark = photos.exposed(flat)
    assert 30 < dark.mean() < 45
    assert 3 < noise("night", dark).std() < 10


def test_colourings_are_far_from_gray_and_always_the_same():
    image = np.asarray(Image.open(IMAGES / "cat.png").convert("RGB"))
    versions = colourings(image)
    assert versions.keys() == COLOURINGS.keys()
    assert (versions["permuted"] == image[:, :, [2, 0, 1]]).all()
    spread = {name: np.ptp(version.astype(float), axis=2).mean() for name, version in versions.items()}
    assert min(spread["saturated"], spread["gains"], spread["all"]) > 1.5 * np.ptp(image.astype(float), axis=2).mean()
    assert all((version == versions[name]).all() for name, version in colourings(image).items())
    assert all(version.dtype == np.uint8 and version.shape == image.shape for version in versions.values())


def test_the_automatic_and_the_best_strength_of_a_row_count():
    first, second = Case(FLAT, FLAT + np.uint8(1)), Case(FLAT + np.uint8(2), FLAT)
    cases = [
        {
            "key": ["pairs", name, CAMERA],
            "before": photos.finite(photos.quality(case.noisy, case.clean)),
            "measured": {method.name: {"found": measure_case(case, method)} for method in METHODS},
        }
        for name, case in (("a", first), ("b", second))
    ]
    found = summary(cases)
    one, two, ten, twelve = (20 * np.log10(255 / error) for error in (1, 2, 10, 12))
    ours, nlm, cbm3d = found["methods"].values()
    assert found["pictures"] == ["a", "b"]
    assert found["input"] == pytest.approx((one + two) / 2, abs=1e-3)
    assert ours["automatic"]["psnr"] == ours["best"]["psnr"] == pytest.approx(found["input"], abs=1e-3)
    assert nlm["automatic"]["psnr"] == pytest.approx((ten + twelve) / 2, abs=1e-3)
    assert (nlm["best"]["strength"], nlm["best"]["psnr"]) == (100, None)  # exact for the first
    assert (cbm3d["best"]["strength"], cbm3d["best"]["psnr"]) == (None, None)
    at_once = [case["measured"]["CBM3D"]["found"][1] for case in cases]  # told an RMS of 1, then of 2
    assert [score for _, score, _ in at_once] == [pytest.approx(one, abs=1e-3), None]
    del cases[1]["measured"]["CBM3D"]
    assert summary(cases)["methods"].keys() == {"rcnet, 1 step", "NLM, OpenCV"}


def test_results_are_written_picture_by_picture_and_go_on_when_stopped(tmp_path, monkeypatch):
    def stopped():
        raise KeyboardInterrupt

    keys = [("pages", f"page {k}", "sigma 10") for k in (1, 2)]
    args = photos.parser().parse_args(["--out", str(tmp_path)])

    def run(second, weights, methods=METHODS):
        monkeypatch.setattr(photos, "plan", lambda *_: dict(zip(keys, (lambda: Case(FLAT, FLAT), second), strict=True)))
        about = {"hardware": "one", "torch": "", "packages": {}, "commit": weights, "precision": "fp32"}
        return photos.measure(methods, args, about | {"weights": {"name": "some", "crc32": weights}})

    result = run(stopped, "a")
    assert not result["complete"]
    page = (tmp_path / "photos.md").read_text()
    assert page == render(result)
    assert "| drawn pages, 1 of 4 | sigma 10 | ∞ | ∞ | 28.13 | ∞ |" in page
    assert "| drawn pages, 1 of 4 | sigma 10 | ∞ | ∞ (automatic) | ∞ (h 100) | ∞ (automatic) |" in page
    assert "rcnet, 1 step: above NLM, OpenCV in 1 of 1, CBM3D in 0 of 1." in page
    assert "Stopped" in page
    # Other weights, and without CBM3D: what it made of the first picture is kept, and of the network nothing.
    run(lambda: Case(FLAT, FLAT), "b", METHODS[:2])
    first, second = (case["measured"] for case in json.loads((tmp_path / "photos.json").read_text())["cases"])
    assert [first[name]["commit"] for name in ("rcnet, 1 step", "NLM, OpenCV", "CBM3D")] == ["b", "a", "a"]
    assert second.keys() == {"rcnet, 1 step", "NLM, OpenCV"}


def test_a_quick_plan_has_a_small_picture_of_each_group():
    cat = IMAGES / "cat.png"
    quick, whole = plan([cat, cat], [(cat, cat)] * 3, 128, 1), plan([cat], [(cat, cat)], 0)
    groups = {group: {picture for name, picture, _ in quick if name == group} for group, _, _ in quick}
    assert groups.keys() == {group for group, _, _ in whole} == {"scikit-image", "BSD", "colourings", "night", "pages", "pairs"}
    assert all(len(pictures) == 1 for pictures in groups.values())
    assert {noise for _, _, noise in quick} == {noise for _, _, noise in whole}
    assert quick["pages", "page 1", "sigma 10"]().noisy.shape == (128, 128, 3)
    assert whole["pages", "page 1", "sigma 10"]().noisy.shape == (480, 640, 3)
    assert photos.SHOWN.keys() <= whole.keys()


def test_strengths_that_classical_denoisers_find_themselves():
    image = np.asarray(Image.open(IMAGES / "cat.png").convert("RGB"))
    for sigma, h, weight in ((5, (3, 6), (0.005, 0.03)), (25, (16, 22), (0.05, 0.1))):
        x = np.float32(spoiled(image, Noise("", sigma))) / 255
        assert h[0] < photos.classical.automatic_h(x) < h[1]
        assert weight[0] <= photos.classical.automatic_weight(x) <= weight[1]


def test_pairs_are_found_and_checked(tmp_path):
    for name in ("a_real.JPG", "a_mean.JPG", "b_real.JPG"):
        Image.fromarray(FLAT).save(tmp_path / name)
    with pytest.raises(InputError, match="pairs"):
        pairs_in(tmp_path)
    (tmp_path / "b_real.JPG").unlink()
    assert pairs_in(tmp_path) == [(tmp_path / "a_real.JPG", tmp_path / "a_mean.JPG")]
