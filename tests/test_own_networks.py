"""What takes a bundled network takes a user's own: other cells, norms, kernels and shapes of chains; or it says why not."""

import copy
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrizations, prune

import rcnet
from rcnet import About, Cell, InputError, RecurrentCell, RecurrentNet, Transition, unroll
from rcnet.calling import ready
from rcnet.cell import norms_of
from rcnet.cost import latencies, macs, profile, steps_for
from rcnet.cost.budget import fingerprint
from rcnet.deploy.export import export, load_exported, read_exported
from rcnet.deploy.torch_session import TorchSession
from rcnet.evaluation import denoising_results
from rcnet.evaluation.record import record_result
from rcnet.figures.features import features
from rcnet.models import bundled, read_metadata, registry
from rcnet.models.judge import attach_judge
from rcnet.runtime.budget import denoise_setting_for
from rcnet.serve.models import open_model
from rcnet.serve.served import Work
from rcnet.tasks.catalogue import describe_architecture
from rcnet.training import read_recipe, train

from .conftest import IMAGES, random_model, two_levels


class Depthwise(nn.Module):
    """Depthwise 5x5, group norm, two pointwise convolutions: of a user's own."""

    def __init__(self, channels):
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.up, self.down = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x, norms):
        return x + self.down(F.gelu(self.up(norms[0](self.spatial(x)))))


def dwnet(steps: tuple[int, ...] = (1, 2, 3), width: int = 8):
    """A gray denoiser of one cell."""
    cell = RecurrentCell(Depthwise(width), lambda: [nn.GroupNorm(2, width)], steps)
    net = RecurrentNet(nn.Conv2d(1, width, 3, padding=1), cell, nn.Conv2d(width, 1, 3, padding=1))
    net.about = About("denoise", channels=1, noise=rcnet.about.Noise(15.0))
    return net


@pytest.fixture
def registered():
    known = dict(registry._ENTRIES)
    yield rcnet.register("denoise", steps=(1, 2, 3))
    registry._ENTRIES.clear()
    registry._ENTRIES.update(known)


@torch.inference_mode()
def test_a_network_of_ones_own_goes_everywhere(registered, tmp_path, run):
    registered(dwnet)
    model, x = rcnet.create_model("dwnet").eval(), torch.rand(2, 1, 21, 34)
    assert [row["macs"] for row in profile(model, (24, 32))] == [24 * 32 * 8 * (18 + n * (25 + 32)) for n in (1, 2, 3)]
    assert steps_for(model, f"{macs(model, 2, (24, 32))}MAC", (24, 32)) == 2
    assert steps_for(model, f"{latencies(model, (24, 32))[model.per_cell(3)]['p95'] + 0.01}ms", (24, 32)) == 3
    rcnet.save(model, tmp_path / "dw.safetensors", results=[])
    again = rcnet.load(tmp_path / "dw.safetensors")
    assert again.about == model.about
    for n in (1, 2, 3):
        assert torch.equal(again(x, n), model(x, n))
        torch.testing.assert_close(rcnet.optimize(model, n, precision="fp32")(x, n), model(x, n), rtol=1e-4, atol=1e-5)
        assert (rcnet.optimize(model, precision="bf16")(x, n) - model(x, n)).abs().max() < 0.03
    path = export(model, tmp_path / "dw.onnx")
    for shape in ((1, 1, 9, 7), (1, 1, 1, 1)):
        x = torch.rand(shape)
        np.testing.assert_allclose(load_exported(path, np.int64(2))(x.numpy()), model(x, 2).numpy(), atol=1e-5)
    assert read_exported(path)["preprocessing"]["noise"] == {"sigma": 15.0, "as_8bit": False, "camera": 0.0}
    torch.testing.assert_close(rcnet.denoise(model, x, 2, tile=0), model(x, 2))
    with pytest.raises(InputError, match=r"has no About.reach .*tile=0"):
        rcnet.denoise(model, torch.rand(1, 1, 64, 64), tile=16)
    images = [np.full((16, 16, 1), 90, np.uint8)]
    assert [row["steps"] for row in denoising_results(model, images, 15, model.steps)] == [1, 2, 3]
    assert len(norms_of(model)) == 3
    status, out, err = run("eval", tmp_path / "dw.safetensors", "--data", IMAGES / "bsd", "--steps", "2", "--json")
    assert status == 0, err
    assert json.loads(out)["rows"][0]["steps"] == 2


def test_a_module_in_the_current_folder_is_found(run, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    (tmp_path / "here_mine.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)])\n"
    )
    status, out, err = run("convert", "here_mine:build", "--task", "denoise", "--size", "8", "-o", "mine.safetensors")
    assert status == 0, err
    assert out.endswith("next: RCNET_MODULES=here_mine rcnet train finetune_denoiser init=mine.safetensors --data FOLDER\n")
    assert "" in sys.path[-1:]  # no file there stands for an installed package
    registry._ENTRIES.pop("here_mine:build", None)
    assert "RCNET_MODULES=here_mine" in refused("profile", "mine.safetensors")


def test_the_command_line_finds_a_network_of_ones_own(run, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import rcnet, tests.test_own_networks as t\nrcnet.register('denoise', (1, 2, 3))(t.dwnet)\n"
    )
    folders = ":".join([str(tmp_path), *filter(None, sys.path), str(IMAGES.parent.parent)])
    environment = {**os.environ, "PYTHONPATH": folders, "RCNET_MODULES": "mine"}
    command = [sys.executable, "-m", "rcnet", "profile", "dwnet", "--size", "8x8", "--json"]
    by_name = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert by_name.returncode == 0, by_name.stderr
    by_function = run("profile", "tests.test_own_networks:dwnet", "--size", "8x8", "--json")[1]
    for out in (by_name.stdout, by_function):
        assert [row["steps"] for row in json.loads(out)["rows"]] == [1, 2, 3]
    del registry._ENTRIES["tests.test_own_networks:dwnet"]


def test_names_are_taken_once(registered):
    registered(dwnet)
    registered(dwnet)  # read twice, as a script that RCNET_MODULES names, too

    def other():
        return dwnet()

    other.__name__ = "dwnet"
    with pytest.raises(InputError, match="network named 'dwnet' already"):
        registered(other)

    def r2():
        return dwnet()

    with pytest.raises(InputError, match="network named 'r2' already"):
        registered(r2)
    assert rcnet.register("denoise", replace=True)(dwnet) is dwnet
    with pytest.raises(InputError, match="has no function 'nothing'"):
        rcnet.create_model("rcnet.cell:nothing")
    with pytest.raises(InputError, match="cannot be imported"):
        rcnet.create_model("no_such_module:build")


def test_a_file_of_weights_imports_nothing(tmp_path):
    model = rcnet.create_model("tests.test_own_networks:dwnet")
    rcnet.save(model, tmp_path / "dw.safetensors")
    del registry._ENTRIES["tests.test_own_networks:dwnet"]
    with pytest.raises(InputError, match=r"RCNET_MODULES=tests\.test_own_networks"):
        rcnet.load(tmp_path / "dw.safetensors")
    model.architecture = None
    with pytest.raises(InputError, match=r"@rcnet\.register\(task\)"):
        rcnet.save(model, tmp_path / "other.safetensors")


def test_a_network_that_takes_other_images_than_it_says_is_told_so(tmp_path):
    model = dwnet()
    model.about = About()
    for use in (
        lambda: profile(model, (8, 8)),
        lambda: steps_for(model, "1GMAC", (8, 8)),
        lambda: export(model, tmp_path / "x.onnx"),
    ):
        with pytest.raises(InputError, match=r"channels=3.*rcnet\.About"):
            use()


# Networks that were loaded, changed and saved


def test_loaded_weights_keep_their_description(tmp_path, run, cifar_folder):
    model = rcnet.load("r2.cifar10")
    rcnet.save(model, tmp_path / "same.safetensors")
    same, first = read_metadata(tmp_path / "same.safetensors"), read_metadata("r2.cifar10")
    assert (same["results"], same["training"]) == (first["results"], first["training"])
    assert rcnet.load(tmp_path / "same.safetensors").about == model.about
    image = next((cifar_folder / "test").glob("*/*.png"))
    by_name, by_file = run("classify", image), run("classify", image, "--model", tmp_path / "same.safetensors")
    assert by_name[0] == 0
    assert by_name == by_file
    with torch.no_grad():
        model.classifier.bias += 0.1
    rcnet.save(model, tmp_path / "tuned.safetensors")
    tuned = rcnet.load(tmp_path / "tuned.safetensors")
    assert tuned.about == model.about
    assert tuned.metadata["results"] == []
    assert tuned.metadata["training"] == {"before": first["training"]}


def test_a_changed_head_is_saved_only_if_it_will_load(tmp_path):
    model = rcnet.load("r2.cifar10")
    model.classifier = nn.Linear(256, 5)
    with pytest.raises(InputError, match=r"classifier\.\w+: expected \[10.*\], found \[5.*\]"):
        rcnet.save(model, tmp_path / "head.safetensors")
    assert not (tmp_path / "head.safetensors").exists()


def test_offered_settings_are_saved(tmp_path):
    model = rcnet.create_model("r2", steps=(2, 3), width=0.125, unified=False)
    model.offer([(2, 2), (3, 2)])
    rcnet.save(model, tmp_path / "w.safetensors")
    again = rcnet.load(tmp_path / "w.safetensors")
    assert again.settings == ((2, 2), (3, 2))
    assert again.choices == (2, (3, 2))
    rows = profile(again, (16, 16))
    assert [row["steps"] for row in rows] == [2, (3, 2)]
    assert steps_for(again, f"{rows[1]['macs']}MAC", (16, 16)) == (3, 2)


def test_results_of_bundled_weights_go_to_a_copy(run, refused, tmp_path):
    installed = {path: path.stat().st_mtime_ns for path in bundled().values()}
    arguments = ("eval", "r3_fast.bsd-gray-25", "--data", IMAGES / "bsd", "--steps", "1", "--record")
    status, _, err = run(*arguments, "--sigma", "15")
    assert status == 0, err
    assert run(*arguments, "--sigma", "50")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in bundled().values()} == installed
    results = read_metadata(tmp_path / "r3_fast.bsd-gray-25.safetensors")["results"]
    known = read_metadata("r3_fast.bsd-gray-25")["results"]
    assert [result["sigma"] for result in results] == [*(result["sigma"] for result in known), 15.0, 50.0]
    shutil.copy(bundled()["r3_fast.gray"], tmp_path / "r3_fast.bsd-gray-25.safetensors")
    assert "contains other weights" in run(*arguments)[2]
    named, other = tmp_path / "named.safetensors", tmp_path / "other.safetensors"
    shutil.copy(bundled()["r3.bsd-gray-25"], other)
    shutil.copy(bundled()["r3_fast.bsd-gray-25"], named)
    model = rcnet.load(named)
    shutil.copy(other, named)  # a training writes there while this one is measured
    with pytest.raises(InputError, match="has changed since it was loaded"):
        record_result(model, named, {"rows": []})
    assert named.read_bytes() == other.read_bytes()


# Cells that do not fit


def conv_cell(steps=(1, 2), norms=lambda: [nn.BatchNorm2d(4)], channels=4, **options):
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, channels, 3, padding=1)

        def forward(self, x, norms):
            return norms[1](self.conv(x)) if options.get("two") else norms[0](self.conv(x))

    body = Body()
    return RecurrentCell(body, norms, steps, **{key: value for key, value in options.items() if key != "two"})


@pytest.mark.parametrize(
    "norms",
    [lambda: nn.BatchNorm2d(4), lambda: None, lambda: [4], lambda: nn.Sequential(nn.BatchNorm2d(4)), lambda: nn.BatchNorm2d],
)
def test_norm_gives_a_list_of_modules(norms):
    with pytest.raises(InputError, match=r"it must return the list of norms for one step, e\.g\. \[nn\.BatchNorm2d\(64\)\]"):
        conv_cell(norms=norms)


def test_norm_makes_new_ones():
    one = nn.BatchNorm2d(4)
    with pytest.raises(InputError, match="norm returned the same module twice"):
        conv_cell(norms=lambda: [one])


def test_a_body_that_does_not_fit_is_named():
    x = torch.rand(1, 4, 8, 8)
    with pytest.raises(InputError, match="Body uses more norms than the 1 that norm returns"):
        RecurrentNet(conv_cell(two=True))(x)
    with pytest.raises(InputError, match=r"Body returned shape \[1, 6, 8, 8\] for input \[1, 4, 8, 8\]"):
        RecurrentNet(conv_cell(1, lambda: [nn.BatchNorm2d(6)], channels=6))(x)
    wider = Transition(conv_cell(channels=6).body, lambda: [nn.BatchNorm2d(6)])
    assert RecurrentNet(conv_cell(), wider)(x).shape == (1, 6, 8, 8)


def test_cells_are_children_of_the_network():
    for inside in (nn.Sequential(conv_cell()), RecurrentNet(conv_cell())):
        with pytest.raises(InputError, match=r"\d\.0 is a cell inside another module"):
            RecurrentNet(conv_cell(), inside)


@pytest.mark.parametrize(
    ("upstream", "message"),
    [((), "upstream=(1, 2), the steps of the cell before"), ((1,), "upstream=(1, 2)"), ((2,), "upstream=(1, 2)")],
)
def test_the_cell_upstream_is_the_one_that_runs(upstream, message):
    cells = conv_cell(norm_mode="double"), conv_cell(norm_mode="double", upstream=upstream)
    with pytest.raises(InputError) as error:
        RecurrentNet(first=cells[0], second=cells[1])
    assert message in str(error.value)
    assert str(error.value).startswith("second has no norms for")
    if upstream:
        with pytest.raises(InputError, match="no upstream, as no cell runs before it"):
            RecurrentNet(first=cells[1])


def test_a_cell_of_another_kind():
    class Doubling(Cell):
        steps = (1, 2)

        def forward(self, x, steps, upstream=0):
            return x * 2**steps

    net = RecurrentNet(nn.Conv2d(3, 4, 1), Doubling(), conv_cell(norm_mode="double", upstream=(1, 2))).eval()
    x = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(net[1:2](net[0](x), 2), 4 * net[0](x))
    assert torch.equal(unroll(net, 2)(x), net(x, 2))


# A RecurrentNet is an nn.Sequential


def test_slices():
    net = rcnet.create_model("r2", steps=(2, 3), width=0.125).eval()
    x = torch.rand(2, 3, 16, 16)
    stem, cells, rest = net[:2], net[:6], net[5:]
    assert (type(stem), type(cells), type(rest)) == (nn.Sequential, RecurrentNet, nn.Sequential)
    assert list(dict(cells.named_children())) == ["normalize", "stem", "cell1", "invpool", "cell2", "pool"]
    with torch.no_grad():
        for n in (2, 3):
            assert torch.equal(net[6:](cells(x, n)), net(x, n))
        fixed = unroll(net, 3)
        assert torch.equal(fixed[4:](fixed[:4](x)), net(x, 3))
    assert net[1] is net.stem
    with pytest.raises(InputError, match="no cell runs before it"):
        net[4:]


@pytest.mark.parametrize("name", ["r2.cifar10", "r3.bsd-gray-25", "r3_fast.photo", "two levels"])
def test_features_by_tracing(name):
    """What torchvision's create_feature_extractor does: it traces the network, and takes the values of some nodes."""
    model = two_levels() if name == "two levels" else rcnet.load(name)
    attach_judge(model, None)  # a trace asks no judge
    net, x = unroll(model, 2), torch.rand(1, model.about.channels, 13, 18) if "r2" not in name else torch.rand(1, 3, 32, 32)
    graph = fx.symbolic_trace(net)
    torch.testing.assert_close(graph(x), net(x))
    if model.about.takes_level:
        torch.testing.assert_close(graph(x, sigma=25), net(x, sigma=25))
    held = []
    body = net.cell2.body
    body.register_forward_hook(lambda module, inputs, output: held.append(output))
    net(x)
    last = [node for node in graph.graph.nodes if str(node.target).startswith("cell2.body")][-1]
    after = next(iter(last.users))
    while "relu" not in str(after.target) and "add" not in str(after.target):
        after = next(iter(after.users))
    assert len(held) == 2
    with pytest.raises(InputError, match=r"trace unroll\(model, steps\)"):
        fx.symbolic_trace(model)


# Calls


@pytest.fixture(scope="module")
def denoiser():
    return rcnet.load("r3_fast.gray")


def test_steps_are_one_key_everywhere(denoiser):
    x = torch.rand(1, 1, 16, 16)
    session = rcnet.optimize(denoiser, np.array([1, 3]), precision="fp32")
    for steps in (3, np.int64(3), (3, 3, 3), np.array([3, 3, 3])):
        assert torch.equal(session(x, steps), session(x, 3))
    assert rcnet.optimize(denoiser, np.int64(2)).steps == (2,)
    assert torch.equal(rcnet.denoise(denoiser, x, np.int64(2)), rcnet.denoise(denoiser, x, 2))


def test_an_unknown_precision_is_an_error_everywhere(denoiser, tmp_path):
    classifier, x = rcnet.load("r2.cifar10"), torch.rand(1, 1, 16, 16)
    for call in (
        lambda: ready(denoiser, 1, "fp8"),
        lambda: rcnet.optimize(denoiser, precision="fp8"),
        lambda: rcnet.denoise(denoiser, x, precision="fp8"),
        lambda: rcnet.denoise(rcnet.optimize(denoiser, 1), x, precision="fp8"),
        lambda: rcnet.classify(classifier, torch.rand(1, 3, 32, 32), precision="fp8"),
        lambda: denoising_results(denoiser, [np.zeros((16, 16, 1), np.uint8)], 25, [1], precision="fp8"),
        lambda: latencies(denoiser, (16, 16), precision="fp8"),
        lambda: steps_for(denoiser, "1s", (16, 16), precision="fp8"),
    ):
        with pytest.raises(InputError, match="unknown precision 'fp8'"):
            call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_any_float_type_are_right(denoiser, dtype):
    x = torch.rand(1, 1, 20, 30).to(dtype)
    expected = rcnet.denoise(denoiser, x.float(), 2)
    assert rcnet.denoise(denoiser, x, 2).dtype == dtype
    assert torch.equal(rcnet.denoise(denoiser, x, 2), expected.to(dtype))
    session = rcnet.optimize(denoiser, 2, precision="fp32")
    assert torch.equal(session(x, 2), session(x.float(), 2))
    classifier = rcnet.load("r2.cifar10")
    colour = torch.rand(1, 3, 32, 32).to(dtype)
    assert torch.equal(rcnet.classify(classifier, colour), rcnet.classify(classifier, colour.float()))


def test_networks_in_double_answer_too(denoiser):
    x, model = torch.rand(1, 1, 20, 30), copy.deepcopy(denoiser).double()
    torch.testing.assert_close(rcnet.denoise(model, x, 2), rcnet.denoise(denoiser, x, 2), atol=1e-4, rtol=0)


def test_levels_up_to_255_are_refused(denoiser):
    levels = (torch.rand(1, 1, 16, 16) * 255).round()
    dark = torch.zeros(1, 1, 16, 16)
    dark[..., :3] = 7.0
    session, classifier = rcnet.optimize(denoiser, 1), rcnet.load("r2.cifar10")
    for x in (levels, levels + 0.5, dark):
        for call in (session, lambda x: rcnet.denoise(denoiser, x), lambda x: rcnet.classify(classifier, x.expand(1, 3, -1, -1))):
            with pytest.raises(InputError, match="divide them by 255"):
                call(x)
    noisy = torch.rand(1, 1, 16, 16) + torch.randn(1, 1, 16, 16) * 0.5
    assert rcnet.denoise(denoiser, noisy).isfinite().all()


def test_denoise_takes_arrays(denoiser):
    x = torch.rand(2, 1, 20, 30)
    expected = rcnet.denoise(denoiser, x, 2, sigma=20).numpy()
    for dtype in (np.float32, np.float64, ">f4"):
        answer = rcnet.denoise(denoiser, x.numpy().astype(dtype), 2, sigma=20)
        assert isinstance(answer, np.ndarray)
        np.testing.assert_array_equal(answer, expected)
    flipped = rcnet.denoise(denoiser, x.numpy()[..., ::-1], 2)
    np.testing.assert_array_equal(flipped, rcnet.denoise(denoiser, x.flip(-1), 2).numpy())
    with pytest.raises(InputError, match="float"):
        rcnet.denoise(denoiser, (x.numpy() * 255).astype(np.uint8))


def test_gradients_pass_if_asked_for(denoiser):
    """As plug-and-play restoration needs them."""
    model = copy.deepcopy(denoiser).double()
    x = torch.rand(1, 1, 24, 40, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(rcnet.denoise(model, x, 2, tile=16).square().sum(), x)
    (expected,) = torch.autograd.grad(model(x, 2).square().sum(), x)
    torch.testing.assert_close(gradient, expected)
    plain = rcnet.denoise(model, x.detach(), 2)
    assert not plain.requires_grad
    (plain * x).sum().backward()  # and what is no gradient's may be used where there are some


# Sessions of cells of other kinds


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.mix = nn.Linear(channels, channels)

    def forward(self, x, norms):
        tokens = norms[0](x.flatten(2).transpose(1, 2))
        tokens = self.mix(self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[-2:])


class Branching(nn.Module):
    """What torch.fx cannot trace."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, norms):
        return norms[0](self.conv(x)) if x.mean() > -100 else x


@torch.inference_mode()
@pytest.mark.parametrize(
    ("body", "norm"), [(Attention, nn.LayerNorm), (Branching, nn.BatchNorm2d)], ids=["attention and layer norm", "branches"]
)
@pytest.mark.filterwarnings("ignore:batch norms are not folded")
def test_sessions_of_other_cells(body, norm):
    net = RecurrentNet(nn.Conv2d(3, 8, 3, padding=1), RecurrentCell(body(8), lambda: [norm(8)], (1, 2)), nn.Conv2d(8, 3, 1))
    net, x = net.eval(), torch.rand(1, 3, 12, 10)
    for n in (1, 2):
        expected = net(x, n)
        torch.testing.assert_close(rcnet.optimize(net, precision="fp32")(x, n), expected, rtol=1e-4, atol=1e-5)
        fast = rcnet.optimize(net, precision="bf16")(x, n)
        assert fast.dtype == torch.float32
        assert 0 < (fast - expected).abs().max() < 0.03


def test_what_cannot_be_traced_is_said():
    net = RecurrentNet(RecurrentCell(Branching(3), lambda: [nn.BatchNorm2d(3)], 2)).eval()
    with pytest.warns(UserWarning, match=r"not folded, as torch\.fx cannot trace"):
        rcnet.optimize(net)


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
        lambda conv: parametrizations.weight_norm(conv),
        lambda conv: parametrizations.spectral_norm(conv),
    ],
    ids=["pruned", "weight norm", "spectral norm"],
)
def test_parametrized_and_pruned_kernels_are_folded(change, tmp_path):
    model, x = rcnet.create_model("r3_fast", width=8, steps=(1, 2)), torch.rand(1, 1, 17, 20)
    nn.init.normal_(model.head.weight, std=0.1)
    for conv in model.cell2.body.convs:
        change(conv)
    model.eval()
    with torch.no_grad():
        expected = model(x, 2)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        torch.testing.assert_close(rcnet.optimize(model, 2, precision="fp32")(x, 2), expected, rtol=0, atol=1e-4)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in rcnet.optimize(model, 2).sessions[model.per_cell(2)].modules())
        assert torch.equal(model(x, 2), expected)
    assert macs(model, 2, (8, 8)) == macs(rcnet.create_model("r3_fast", width=8), 2, (8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="differs from create_model"):
        rcnet.save(model, tmp_path / "x.safetensors")


def test_pruned_kernels_are_exported(tmp_path):
    model, x = RecurrentNet(conv_cell(1)).eval(), torch.rand(1, 4, 7, 8)
    prune.l1_unstructured(model[0].body.conv, "weight", 0.5)
    model.about = About(channels=4)
    path = export(model, tmp_path / "x.onnx")
    np.testing.assert_allclose(load_exported(path)(x.numpy()), model(x).detach().numpy(), atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_any_number_of_pairs_of_steps_and_size_compiles():
    torch._dynamo.reset()
    net = RecurrentNet(RecurrentCell(Branchless(3), lambda: [nn.BatchNorm2d(3)], (1, 2))).eval()
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():  # 8 of torch's own, which take long
        session = rcnet.optimize(net, precision="fp32", compile=True)
        for n, side in ((1, 4), (2, 5)):
            x = torch.rand(1, 3, side, side)
            torch.testing.assert_close(session(x, n), net(x, n), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


class Branchless(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x, norms):
        return norms[0](self.conv(x)).relu()


def test_sessions_of_the_setting_of_a_budget():
    model, x = rcnet.load("r3_fast.bsd-gray-25"), torch.rand(1, 1, 16, 16)
    for budget, setting in (("2GMAC", (1, 0, 0)), ("7GMAC", (2, 1, 1))):
        assert rcnet.steps_for(model, budget, (321, 481)) == setting
        session = rcnet.optimize(model, setting, precision="fp32")
        assert session.steps == (setting,)
        torch.testing.assert_close(session(x), model(x, setting), atol=1e-4, rtol=0)
    assert rcnet.optimize(model, (3, 1)).steps == (1, 3)  # two, in order of cost
    with pytest.raises(rcnet.InputError, match="steps=9 is not optimized: valid: 1, 3"):
        rcnet.denoise(rcnet.optimize(model, [1, 3]), x, steps=9)


def test_networks_whose_functions_compute_with_numbers_are_listed(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @rcnet.register("denoise", steps=(1, 2))
    def numbers(steps=(1, 2), in_chans=1):
        assert torch.ones(3).sum().item() == 3
        return rcnet.create_model("r3_fast", steps=steps, in_chans=in_chans, width=8)

    found = describe_architecture("numbers")
    assert [row["macs"] for row in found["steps"]] == [macs(rcnet.create_model("numbers"), n, (321, 481)) for n in (1, 2)]


class Quarters(nn.Module):
    """A convolution on 4x4 sub-images: sides have to be multiples of 4."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(48, 48, 3, padding=1)

    def forward(self, x):
        return F.pixel_shuffle(self.inner(F.pixel_unshuffle(x, 4)), 4)


def quarters(steps: int = 1):
    """A colour denoiser with no options but the steps."""
    net = RecurrentNet(Quarters(), RecurrentCell(Depthwise(3), lambda: [nn.BatchNorm2d(3)], steps))
    net.about = About("denoise", channels=3, multiple=4, reach=(11, 2))
    return net


def fixed_head(steps: int = 1):
    cell = RecurrentCell(Depthwise(3), lambda: [nn.GroupNorm(3, 3)], steps)
    net = RecurrentNet(cell, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    net.about = About("classify", channels=3)
    return net


@torch.inference_mode()
def test_sides_that_a_network_does_not_take_are_filled(registered):
    registered(quarters)
    model = random_model("quarters").eval()
    x = torch.rand(1, 3, 37, 50)
    whole = rcnet.denoise(model, x, tile=0)
    torch.testing.assert_close(whole, model(F.pad(x, (0, 2, 0, 3), mode="reflect"))[..., :37, :50])
    for tile in (16, 17):
        torch.testing.assert_close(rcnet.denoise(model, x, tile=tile), whole, atol=1e-5, rtol=0)
    assert rcnet.denoise(model, x[..., :2, :3]).shape == (1, 3, 2, 3)
    pixels = np.rint(x[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    assert np.isfinite(denoising_results(model, [pixels], 25, [1])[0]["psnr"])
    assert denoise_setting_for(TorchSession(model), "1GMAC", (1, 3, 37, 50)).to_json() == 1
    assert macs(model, 1, (37, 50)) == macs(model, 1, (40, 52))
    assert profile(model, (37, 50))[0]["macs"] == macs(model, 1, (40, 52))
    assert steps_for(model, "1s", (37, 50)) == 1


@pytest.mark.parametrize(("build", "data"), [(quarters, IMAGES / "bsd"), (fixed_head, None)])
def test_a_network_is_trained_by_what_it_says_of_itself(registered, tmp_path, cifar_folder, build, data):
    build = rcnet.register("denoise" if data else "classify")(build) if data is None else registered(build)
    short = [
        "iterations=2",
        "epochs=0",
        "batch=4",
        "denoising.patch=32",
        "precision=fp32",
        "optimizer.name=adam",
        "classification.whitening=false",
    ]
    train(read_recipe("r3_fast_gray" if data else "cifar_fast", ["minutes=0", "probabilities=[]", "settings=unified",
        f"model={{name='{build.__name__}'}}", *short]), data or cifar_folder, tmp_path / "run", progress=False)  # fmt: skip
    assert rcnet.load(tmp_path / "run" / "weights.safetensors").about.channels == 3


def gray_classifier(steps: int = 1, num_classes: int = 10):
    cell = RecurrentCell(Depthwise(4), lambda: [nn.GroupNorm(2, 4)], steps)
    stem = nn.Conv2d(1, 4, 3, padding=1)
    net = RecurrentNet(stem, cell, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    net.about = About("classify", channels=1)
    return net


def test_a_gray_classifier_goes_everywhere(registered, run, tmp_path, cifar_folder):
    rcnet.register("classify")(gray_classifier)
    quick = ["probabilities=[]", "iterations=2", "epochs=0", "batch=4", "precision=fp32", "optimizer.name=adam"]
    recipe = read_recipe(
        "cifar_fast",
        ["model={name='gray_classifier'}", *quick, "classification.whitening=false", "classification.cutout=8"],
    )
    train(recipe, cifar_folder, tmp_path / "run", progress=False)
    file = tmp_path / "run" / "weights.safetensors"
    for arguments in (("eval", file, "--data", cifar_folder), ("classify", IMAGES / "cat.png", "--model", file)):
        status, _, err = run(*arguments)
        assert status == 0, err
    served = open_model(str(file), "cpu", "fp32")
    for shape in ((40, 50, 1), (40, 50, 3)):
        assert len(served.run((1,), [Work(np.zeros(shape, np.uint8), top=10)])[0].classes) == 10


class Repeating(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times, self.conv = times, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, norms):
        for _ in range(self.times):
            x = self.conv(x)
        return norms[0](x)


def test_what_a_number_changes_is_measured_again():
    nets = [RecurrentNet(RecurrentCell(Repeating(times), lambda: [nn.BatchNorm2d(3)], 1)) for times in (1, 8, 1)]
    prints = [fingerprint(net) for net in nets]
    assert prints[0] == prints[2] != prints[1]


def test_features_are_drawn_of_images(tmp_path):
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)

    cell = RecurrentCell(nn.Identity(), lambda: [nn.LayerNorm(3)], 1)
    cell.body.forward = lambda x, norms: norms[0](x)
    net = RecurrentNet(Tokens(), cell)
    with pytest.raises(InputError, match="cells whose output is"):
        features(net, [np.zeros((8, 8, 3), np.uint8)])


class Signal(nn.Module):
    """A body for signals of any number of dimensions."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv(4, 4, 3, padding=1, bias=False)

    def forward(self, x, norms):
        return x + norms[0](self.conv(x)).relu()


@pytest.mark.parametrize(("conv", "norm", "size"), [(nn.Conv1d, nn.BatchNorm1d, (64,)), (nn.Conv3d, nn.BatchNorm3d, (4, 8, 8))])
def test_cells_for_signals_train_and_everything_for_images_says_so(conv, norm, size, tmp_path):
    parts = conv(1, 4, 3, padding=1), rcnet.RecurrentCell(Signal(conv), lambda: [norm(4)], (1, 2)), conv(4, 1, 3, padding=1)
    net, x = rcnet.RecurrentNet(*parts), torch.rand(2, 1, *size)
    net.about = rcnet.About("signal", channels=1)
    net(x, 2).square().mean().backward()
    assert net.eval()(x, 1).shape == x.shape
    calls = (
        lambda: rcnet.cost.macs(net, 1, size),
        lambda: rcnet.cost.macs(net, 1, (32, 32)),
        lambda: rcnet.cost.profile(net, size),
        lambda: rcnet.steps_for(net, "1GMAC", size),
        lambda: rcnet.optimize(net, precision="fp32"),
        lambda: rcnet.export(net, tmp_path / "net.onnx"),
        lambda: rcnet.export(net, tmp_path / "net.pt2"),
    )
    for call in calls:
        with pytest.raises(rcnet.InputError, match=r"\[B, C, H, W\]"):
            call()
