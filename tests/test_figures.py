"""Every figure, drawn from real weights, and what is said where there is nothing to draw."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rcnet.cell import batch_norms
from rcnet.cli.figures import figures
from rcnet.data.images import read_image
from rcnet.data.labelled import read_labelled
from rcnet.data.noise import protocol_noise
from rcnet.errors import InputError
from rcnet.figures import norms, plots
from rcnet.figures.bn_steps import bn_steps
from rcnet.figures.bn_upstream import bn_upstream
from rcnet.figures.denoised import denoised, denoised_by_steps
from rcnet.figures.features import cell_names, evolution, features, most_active
from rcnet.models import create_model, load, save
from rcnet.models.judge import attach_judge
from rcnet.network import unroll
from rcnet.training import read_recipe, train

from .conftest import IMAGES, two_levels

GRAY, FAST = "r3.bsd-gray-25", "r3_fast.bsd-gray-25"
PHOTO = IMAGES / "bsd" / "test" / "106024.png"


@pytest.fixture(scope="module")
def classifier(cifar_folder, tmp_path_factory):
    """A narrow R2 that has seen a few real batches."""
    out = tmp_path_factory.mktemp("run") / "run"
    overrides = ["model.width=0.125", "batch=20", "precision=fp32", "epochs=0", "iterations=20", "ema=0.5"]
    train(read_recipe("cifar_fast", overrides), cifar_folder, out, progress=False)
    return out / "weights.safetensors"


@pytest.fixture
def drawn(monkeypatch):
    """The batch norms that a figure shows, by their labels."""
    seen = {}
    real = norms.values_of
    monkeypatch.setattr(norms, "values_of", lambda norm, name: seen.setdefault(name, []).append(norm) or real(norm, name))
    return seen


def check(picture, width=plots.WIDTH * plots.DPI):
    """A page's width, and something on it in several colours."""
    assert picture.width == width
    colours = {pixel for _, pixel in picture.convert("RGB").quantize(64).convert("RGB").getcolors()}
    assert len(colours) > 8
    assert 0.01 < np.mean(np.asarray(picture.convert("L")) < 250) < 0.9


def test_bn_steps_shows_the_first_norm_of_each_step(drawn, classifier):
    model = load(GRAY)
    check(bn_steps(model))
    cell = model.get_submodule("cell1")
    assert drawn["weight"] == [cell.norms[0][t][0] for t in range(4)]
    check(bn_steps(load(classifier)))


def test_bn_upstream_shows_a_norm_for_each_row(drawn, classifier):
    model = load(GRAY)
    check(bn_upstream(model))
    cell = model.get_submodule("cell2")
    assert drawn["running_var"] == [cell.norms[t][0][0] for t in (1, 2, 3, 4)]
    drawn.clear()
    r2 = load(classifier)
    check(bn_upstream(r2))
    assert drawn["bias"] == [r2.get_submodule("cell2").norms[row][0][0] for row in (22, 33, 44)]


def test_bn_upstream_of_r4_shows_t2(drawn):
    model = create_model("r4")
    bn_upstream(model)
    assert drawn["weight"] == [model.get_submodule("transition2").norms[t][0][0] for t in (1, 2, 3)]


@pytest.mark.parametrize(
    ("config", "draw", "message"),
    [
        ({"steps": 4, "norm_mode": "none"}, bn_steps, "no cell of this network has batch norms per step"),
        ({"steps": 4, "norm_mode": "shared"}, bn_steps, "no cell of this network has batch norms per step"),
        ({"steps": 1}, bn_steps, "at least 2 steps"),
        ({"steps": 4}, bn_upstream, "use a cost-adjustable network with norm mode double"),
        ({"steps": (1, 2), "norm_mode": "independent"}, bn_upstream, "per step count of the cell upstream"),
    ],
)
def test_a_network_without_such_norms_is_refused(config, draw, message):
    with pytest.raises(InputError, match=message):
        draw(create_model("r2", width=0.125, **config))


def test_denoised_shows_every_step_and_its_psnr(monkeypatch):
    labels = []
    monkeypatch.setattr(
        "rcnet.figures.denoised._panel", lambda label, image: labels.append(label) or (label, np.zeros((8, 8, 1)))
    )
    denoised_by_steps(load(FAST), [read_image(PHOTO, 1)], 25.0)
    settings = ["1,0,0", "1,1,0", "1", "2,1,1", "2,2,1", "2", "3,2,2", "3,3,2", "3"]
    assert [label.split(":")[0] for label in labels] == ["noisy", *(f"steps {setting}" for setting in settings), "clean"]
    psnr = [float(label.split()[-2]) for label in labels[:-1]]
    assert psnr[0] < 21
    assert min(psnr[1:]) > 28.3
    assert min(psnr[3:]) > 29


def test_denoised_is_for_denoisers():
    picture = denoised_by_steps(load(FAST), [read_image(PHOTO, 1)], 25.0)
    assert picture.width > 900
    with pytest.raises(InputError, match="gives no images"):
        denoised({"R2": (create_model("r2", width=0.125), 4)}, [read_image(PHOTO, 1)], 25.0)


def test_features_are_those_of_the_cells(classifier, cifar_folder):
    model = load(classifier)
    images = [image.transpose(1, 2, 0) for image in read_labelled(cifar_folder, "test").images[:3].numpy()]
    check(features(model, images, title="R2"))
    x = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2)).float() / 255
    held = evolution(model, x, ["cell1", "cell2"])
    assert [len(steps) for steps in held.values()] == [4, 4]
    with torch.no_grad():
        pooled = held["cell2"][-1].mean((2, 3))
        torch.testing.assert_close(model.get_submodule("classifier")(pooled), model(x))
    shown = most_active(held["cell1"])
    assert shown.shape == (3, 4, 16, 16)  # pooled after its second step
    channel = held["cell1"][-1][0].mean((1, 2)).argmax()
    torch.testing.assert_close(torch.from_numpy(shown[0, -1]), held["cell1"][-1][0, channel])
    assert not any(module._forward_hooks for module in model.modules())


def test_features_of_other_networks():
    for model in (load(GRAY), unroll(load(GRAY), 2), create_model("s3", steps=2)):
        assert cell_names(model) == ["cell1", "cell2", "cell3"]
        check(features(model, [read_image(PHOTO, 1)]))
    with pytest.raises(InputError, match="no cell 'cell4': it has cell1, cell2, cell3"):
        features(load(GRAY), [read_image(PHOTO, 1)], ["cell4"])
    with pytest.raises(InputError, match="one size"):
        features(load(GRAY), [read_image(PHOTO, 1), read_image(PHOTO, 1)[:50]])


# The command


@pytest.mark.parametrize(
    ("name", "model", "more"),
    [
        ("bn-steps", GRAY, {}),
        ("bn-upstream", FAST, {}),
        ("denoised", FAST, {"image": [PHOTO], "sigma": 15.0}),
        ("features", GRAY, {"image": [PHOTO]}),
    ],
)
def test_rcnet_figures_writes_a_png(name, model, more, tmp_path, capsys):
    path = tmp_path / "figure.png"
    figures(name, model, output=path, **more)
    assert capsys.readouterr().out == f"{path}\n"
    assert Image.open(path).format == "PNG"
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_rcnet_figures_fits_images_to_a_classifier(classifier, tmp_path):
    figures("features", str(classifier), output=tmp_path / "f.png", image=[IMAGES / "cat.png", IMAGES / "rocket.png"])
    check(Image.open(tmp_path / "f.png"))


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (("bn-step", GRAY), {}, "unknown figure 'bn-step': did you mean 'bn-steps'"),
        (("bn-steps", "r3.bsd"), {}, "unknown weights 'r3.bsd'"),
        (("bn-steps", GRAY), {"output": "figure.pdf"}, "does not end in .png"),
        (("bn-steps", GRAY), {"output": "nowhere/figure.png"}, "its folder does not exist"),
        (("bn-steps", GRAY), {"image": [PHOTO]}, "shows no images"),
        (("features", GRAY), {"sigma": 25.0}, "--sigma is only for denoised"),
        (("denoised", FAST), {"sigma": -1.0}, "sigma"),
        (("denoised", "r2.safetensors"), {}, "gives no images"),
        (("bn-upstream", "r2.safetensors"), {}, "norm mode double"),
    ],
)
def test_rcnet_figures_says_what_is_wrong(arguments, more, message, tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    save(create_model("r2", width=0.125), "r2.safetensors")
    more = {key: Path(value) if key == "output" else value for key, value in more.items()}
    with pytest.raises(InputError, match=message):
        figures(*arguments, **more)
    assert [file.name for file in tmp_path.iterdir()] == ["r2.safetensors"]


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'rcnet\[plots\]'"):
        bn_steps(load(GRAY))
    denoised_by_steps(load(FAST), [read_image(PHOTO, 1)[:40, :40]], 25.0)


def test_drawing_leaves_no_style_behind():
    import matplotlib

    before = dict(matplotlib.rcParams)
    bn_steps(load(GRAY))
    assert dict(matplotlib.rcParams) == before


def test_figures_change_no_statistics(classifier, cifar_folder):
    model = load(classifier)
    before = [norm.running_mean.clone() for norm in batch_norms(model)]
    features(model.train(), [read_labelled(cifar_folder, "test").images[0].numpy().transpose(1, 2, 0)])
    assert all(map(torch.equal, before, [norm.running_mean for norm in batch_norms(model)]))
    assert model.training


@torch.inference_mode()
def test_pictures_of_networks_of_two_levels(monkeypatch):
    shown = []
    monkeypatch.setattr("rcnet.figures.denoised._panel", lambda label, image: shown.append(image) or (label, np.zeros((8, 8, 1))))
    model, image = two_levels(1), read_image(PHOTO, 1)[:40, :40]
    noisy = protocol_noise(image, 25.0)
    features(model, [image])
    denoised({"": (model, 1)}, [image], 25.0)
    np.testing.assert_allclose(shown[1], model(noisy, 1)[0].permute(1, 2, 0), atol=1e-5)
    attach_judge(model, None)
    denoised({"": (model, 1)}, [image], 25.0)
    white = torch.tensor([25.0, 0.0]).view(1, 2, 1, 1)
    np.testing.assert_allclose(shown[4], model(noisy, 1, sigma=white)[0].permute(1, 2, 0), atol=1e-5)
    with pytest.raises(InputError, match="no judge of noise"):
        features(model, [image])
