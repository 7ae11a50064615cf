"""What every registered model must do, the paper's parameter counts, and files of weights."""

import json
import resource
import signal
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import paper  # noqa: F401 (registers the networks with exits)
import rcnet
from rcnet import InputError, create_model, list_models, load, save, unroll
from rcnet.about import About
from rcnet.models import files, read_metadata, registry
from rcnet.models.denoise import Denoiser
from rcnet.models.layers import ConvBody, conv3x3
from rcnet.models.registry import entry

from .conftest import random_model

SMALL = {name: {"width": 0.125} for name in ("r2", "s2", "r2_biased", "r4", "s4", "s4_exits", "r4_exits")} | {
    "r3_fast": {"width": 8}
}
SIDES = {name: [(16, 24)] for name in ("r2", "s2", "r2_biased")}  # two poolings and InvPool
DEFAULT_SIDES = {"classify": [(9, 15)], "denoise": [(33, 47), (1, 8), (9, 1), (1, 1)]}
ALL = [(name, steps) for name in list_models() for steps in entry(name).steps]
DENOISERS = [(name, steps) for name, steps in ALL if entry(name).task == "denoise"]


def config(name, steps):
    """All step counts for an adjustable family, this one for a standard one."""
    return {"steps": entry(name).steps if entry(name).adjustable else steps, **SMALL.get(name, {})}


@cache
def cached(name, steps):
    model = random_model(name, **config(name, steps))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    for parameter in model.parameters():
        if parameter.ndim == 4 and not parameter.any():  # the last layer of a denoiser
            nn.init.normal_(parameter)
    return model


def built(name, steps):
    model = cached(name, config(name, steps)["steps"]).eval()
    model.zero_grad(set_to_none=True)
    return model


def sides(name):
    return SIDES.get(name) or DEFAULT_SIDES[entry(name).task]


def image(name, size=None, batch=1):
    channels = 3 if entry(name).task == "classify" else 1
    return torch.rand(batch, channels, *(size or sides(name)[0]))


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# Every registered model


@pytest.mark.parametrize(("name", "steps"), ALL)
def test_forward(name, steps):
    model = built(name, steps)
    for size in sides(name):
        x = image(name, size, batch=2)
        with torch.no_grad():
            y = model(x, steps=steps)
        shape = x.shape if model.about.task == "denoise" else (2, model.classifier.out_features)
        assert y.shape == shape, f"{name} must return the shape {list(shape)} for {list(x.shape)}, and returned {list(y.shape)}"
        assert y.isfinite().all(), f"{name} returns numbers that are not finite"


@pytest.mark.parametrize(("name", "steps"), ALL)
def test_backward_reaches_every_used_parameter(name, steps):
    model = built(name, steps).train()
    model(image(name, batch=4), steps=steps).square().mean().backward()
    used = {id(parameter) for parameter in unroll(model, steps).parameters()}
    for parameter_name, parameter in model.named_parameters():
        says = f"{parameter_name} must have a gradient if unroll({name}, {steps}) has it, and otherwise none"
        assert (parameter.grad is not None) == (id(parameter) in used), says
        assert parameter.grad is None or parameter.grad.abs().max() > 0, f"nothing trains {parameter_name}: its gradient is 0"


@pytest.mark.parametrize("name", list_models())
def test_save_and_load(name, tmp_path):
    steps = entry(name).steps[0]
    model, path = built(name, steps), tmp_path / "new folder" / "weights.safetensors"
    save(model, path, results=[{"error": 7.65}], training={"epochs": 3})
    again = load(path)
    assert not again.training
    assert type(again) is type(model)
    assert (again.steps, again.architecture["name"]) == (model.steps, name)
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    x = image(name)
    assert torch.equal(again(x, steps=steps), model(x, steps=steps))
    assert again.metadata == read_metadata(path)
    assert (again.metadata["results"], again.metadata["training"]) == ([{"error": 7.65}], {"epochs": 3})
    assert again.metadata["preprocessing"]["channels"] == x.shape[1]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", list_models())
def test_export(name):
    steps = entry(name).steps[-1]
    model, x = built(name, steps), image(name)
    with torch.no_grad():
        exported = torch.export.export(unroll(model, steps), (x,)).module()
        torch.testing.assert_close(exported(x), model(x, steps=steps))


@pytest.mark.parametrize("name", list_models())
def test_compile_in_one_graph(name):
    steps = entry(name).steps[0]
    model, x = built(name, steps), image(name)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: model(x, steps=steps), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x, steps=steps), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list_models())
def test_optimized_and_in_tiles_it_answers_the_same(name):
    steps = entry(name).steps[0]
    model = built(name, steps)
    session = rcnet.optimize(model, steps, precision="fp32")
    with torch.no_grad():
        for size in sides(name):
            x = image(name, size)
            expected = model(x, steps=steps)
            says = f"{name} answers otherwise in a fast session"
            torch.testing.assert_close(session(x, steps), expected, atol=1e-3, rtol=1e-3, msg=says)
            if model.about.task == "denoise":
                says = f"{name} answers otherwise in tiles: it sees farther than it says, About.reach={model.about.reach}"
                torch.testing.assert_close(rcnet.denoise(model, x, steps, tile=16), expected, atol=1e-3, rtol=1e-3, msg=says)


def test_what_a_network_owes_is_said_in_a_sentence(monkeypatch):
    def far(steps=(1,), reach=(0, 0)):
        cell = rcnet.RecurrentCell(ConvBody(8), lambda: [nn.BatchNorm2d(8)], steps)
        return Denoiser(About("denoise", 1, reach=reach), stem=conv3x3(1, 8), cell=cell, head=conv3x3(8, 1))

    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    rcnet.register("denoise", steps=(1,))(far)
    with pytest.raises(AssertionError, match="sees farther than it says"):
        test_optimized_and_in_tiles_it_answers_the_same("far")
    with pytest.raises(AssertionError, match="must return its input"):
        test_a_new_denoiser_returns_its_input("far", 1)


# The paper's numbers


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [
        ("r2", {"steps": 1}, 1_258_954),
        ("r2", {"steps": 2}, 1_260_234),
        ("r2", {"steps": 3}, 1_261_514),
        ("r2", {"steps": 4}, 1_262_794),
        ("s2", {"steps": 2}, 2_513_610),
        ("s2", {"steps": 3}, 3_768_266),
        ("s2", {"steps": 4}, 5_022_922),
        ("s2", {"steps": 4, "width": 0.5}, 1_258_090),
        ("r4", {"steps": (1, 2, 3)}, 11_241_124),
        ("s4", {"steps": 1}, 11_217_316),
        ("s4", {"steps": 2}, 17_488_036),
        ("s4", {"steps": 3}, 23_758_756),
    ],
)
def test_parameter_counts(name, config, parameters):
    with torch.device("meta"):
        assert trainable(create_model(name, **config)) == parameters


def norm(state, name, x):
    return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))


def preactivation(state, cell, row, step, x, stride=1):
    kernel, norms = f"{cell}.body", f"{cell}.norms.{row}.{step}"
    y = F.relu(norm(state, f"{norms}.0", x))
    if f"{kernel}.shortcut.weight" in state:
        x = F.conv2d(y, state[f"{kernel}.shortcut.weight"], stride=stride)
    y = F.conv2d(y, state[f"{kernel}.conv1.weight"], stride=stride, padding=1)
    return x + F.conv2d(F.relu(norm(state, f"{norms}.1", y)), state[f"{kernel}.conv2.weight"], padding=1)


def stem(state, x):
    mean, std = torch.tensor([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]]).view(2, 3, 1, 1)
    return F.conv2d((x - mean) / std, state["stem.weight"], padding=1)


def classifier(state, x):
    return F.linear(x.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])


def r2_by_hand(state, x, steps):
    """Eq. 8."""
    x = stem(state, x)
    for cell, row in (("cell1", steps), ("cell2", 11 * steps)):  # row 34 of cell2: three steps upstream, four of its own
        if cell == "cell2":
            x = F.pixel_unshuffle(x, 2)
        for t in range(steps):
            x = preactivation(state, cell, row, t, x)
            if t == (steps - 1) // 2:
                x = F.avg_pool2d(x, 2)
    return classifier(state, x)


def r4_by_hand(state, x, steps):
    """Eq. 10."""
    x = stem(state, x)
    for stage, row in ((1, 0), (2, steps), (3, steps), (4, steps)):
        x = preactivation(state, f"transition{stage}", row, 0, x, stride=1 if stage == 1 else 2)
        for t in range(steps):
            x = preactivation(state, f"cell{stage}", row, t, x)
    return classifier(state, x)


def r3_by_hand(state, x, steps, convs=1, residual=False):
    """Eq. 7 and 9."""
    y = F.relu(F.conv2d(x, state["stem.weight"], state["stem.bias"], padding=1))
    for cell, row in (("cell1", 0), ("cell2", steps), ("cell3", steps)):
        for t in range(steps):
            z = y
            for i in range(convs):
                z = F.conv2d(F.relu(z), state[f"{cell}.body.convs.{i}.weight"], padding=1)
                z = norm(state, f"{cell}.norms.{row}.{t}.{i}", z)
            y = F.relu(y + z if residual else z)
    return x + F.conv2d(y, state["head.weight"], state["head.bias"], padding=1)


def r3_fast_by_hand(state, x, steps):
    height, width = x.shape[-2:]
    x = F.pad(x, (0, width % 2, 0, height % 2), mode="reflect")
    return F.pixel_shuffle(r3_by_hand(state, F.pixel_unshuffle(x, 2), steps, convs=2, residual=True), 2)[..., :height, :width]


BY_HAND = {"r2": r2_by_hand, "r3": r3_by_hand, "r3_fast": r3_fast_by_hand, "r4": r4_by_hand}


@pytest.mark.parametrize(("name", "steps"), [(name, steps) for name, steps in ALL if name in BY_HAND])
def test_forward_is_the_papers_formula(name, steps):
    model, x = built(name, steps), image(name, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(model(x, steps=steps), BY_HAND[name](model.state_dict(), x, steps), rtol=1e-4, atol=1e-5)


def test_list_models():
    assert list_models() == sorted({*list_models("classify"), *list_models("denoise")})
    assert {"r2", "s2", "r4", "s4"} <= set(list_models("classify"))
    assert {"r3", "s3", "r3_fast"} <= set(list_models("denoise"))


# create_model's errors


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("r3_fats", {}, r"unknown model 'r3_fats': did you mean 'r3_fast'\? valid: .*r2.*s4"),
        ("resnet", {}, r"unknown model 'resnet': valid: .*r2"),
        (
            "r2",
            {"step": 4},
            r"option of r2 'step': did you mean 'steps'\? valid: steps, norm_mode, num_classes, width, unified",
        ),
        ("r2", {"steps": 0}, "steps=0 is not valid: .*from 1"),
        ("r2", {"steps": ()}, r"steps=\(\) is not valid"),
        ("r2", {"steps": "4"}, "steps='4' is not valid"),
        ("r2", {"steps": 2.5}, r"2\.5"),
        ("r2", {"steps": None}, "None"),
        ("r2", {"norm_mode": "indep"}, "unknown norm mode 'indep': .*none, shared, independent, double"),
        ("r2", {"num_classes": "ten"}, "num_classes of r2 must be a whole number from 1, not 'ten'"),
        ("r2", {"num_classes": -1}, "-1"),
        ("r2", {"width": -1}, "-1"),
        ("r2", {"width": float("nan")}, "nan"),
        ("r3_fast", {"width": 1.5}, r"1\.5"),
        ("s2", {"steps": (2, 3)}, r"\(2, 3\)"),
    ],
)
def test_create_model_says_what_is_wrong(name, config, message):
    with pytest.raises(InputError, match=message):
        create_model(name, **config)


# Files of weights


def small(name="r3_fast", **config):
    return random_model(name, **{"steps": (1, 2), "width": 4} | config)


def write_nothing(path):
    pass


def write_text(path):
    path.write_text("weights, I promise")


def write_empty(path):
    path.write_bytes(b"")


def write_truncated(path):
    save(small(), path)
    path.write_bytes(path.read_bytes()[:-100])


def write_without_metadata(path):
    save_file({"weight": torch.zeros(1)}, path)


def write_metadata(text):
    return lambda path: save_file({"weight": torch.zeros(1)}, path, metadata={"rcnet": text})


def write_other_tensors(change):
    def write(path):
        save(small(), path)
        metadata, state = read_metadata(path), load_file(path)
        change(state)
        save_file(state, path, metadata={"rcnet": json.dumps(metadata)})

    return write


BAD_FILES = {
    "missing": (write_nothing, "no file of weights at"),
    "text": (write_text, "not a readable safetensors file"),
    "empty": (write_empty, "not a readable safetensors file"),
    "truncated": (write_truncated, "not a readable safetensors file"),
    "foreign": (write_without_metadata, r"was not written by rcnet\.save"),
    "broken metadata": (write_metadata("{"), r"bad\.safetensors"),
    "metadata without architecture": (write_metadata("{}"), r"bad\.safetensors"),
    "unknown model": (write_metadata('{"architecture": {"name": "r9", "config": {}}}'), "unknown model 'r9'"),
    "unknown option": (
        write_metadata('{"architecture": {"name": "r2", "config": {"depth": 2}}}'),
        "unknown option of r2 'depth'",
    ),
    "tensor missing": (
        write_other_tensors(lambda state: state.pop("head.bias")),
        r"does not contain weights of this r3_fast: 1 tensors differ, first head\.bias",
    ),
    "tensor too many": (
        write_other_tensors(lambda state: state.update(extra=torch.zeros(1))),
        "does not contain weights of this r3_fast: 1 tensors differ, first extra",
    ),
    "another shape": (
        write_other_tensors(lambda state: state.update({"head.bias": torch.zeros(7)})),
        r"does not contain weights of this r3_fast: 1 tensors differ, first head\.bias",
    ),
}


@pytest.mark.parametrize(("write", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_load_says_what_is_wrong(write, message, tmp_path):
    path = tmp_path / "bad.safetensors"
    write(path)
    with pytest.raises(InputError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_load_of_an_unknown_name():
    with pytest.raises(InputError, match="unknown weights 'no_such_weights'"):
        load("no_such_weights")


@pytest.mark.parametrize("name", files.bundled())
def test_bundled_weights_load(name):
    model = load(name)
    x = image(model.architecture["name"])
    x = x[:, : model.about.channels].expand(-1, model.about.channels, -1, -1)
    for steps in model.steps:
        assert model(x, steps=steps).isfinite().all()
    with pytest.raises(InputError, match=f"did you mean {name!r}"):
        load(name[:-1])


def test_a_failing_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save(small(), path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as on a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            save(small(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_save_replaces_the_old_file(tmp_path):
    save(small(), tmp_path / "weights.safetensors")
    model = small()
    save(model, tmp_path / "weights.safetensors")
    assert torch.equal(load(tmp_path / "weights.safetensors").stem.weight, model.stem.weight)


def test_save_refuses_a_network_without_a_name(tmp_path):
    model = small()
    del model.architecture
    with pytest.raises(InputError, match="not made by create_model or load"):
        save(model, tmp_path / "weights.safetensors")


@pytest.mark.parametrize("steps", [range(1, 3), {1, 2}, [1, 2], np.array([1, 2])], ids=repr)
def test_any_iterable_of_steps_can_be_saved(steps, tmp_path):
    save(small(steps=steps), tmp_path / "weights.safetensors")
    assert load(tmp_path / "weights.safetensors").steps == (1, 2)


@pytest.mark.parametrize("change", [lambda net: unroll(net, 2), torch.compile], ids=["unroll", "compile"])
def test_save_writes_what_load_can_read_or_refuses(change, tmp_path):
    changed, path, x = change(small().eval()), tmp_path / "weights.safetensors", torch.rand(1, 1, 8, 8)
    try:
        save(changed, path)
    except InputError:
        assert not path.exists()
    else:
        assert torch.equal(load(path)(x, steps=2), getattr(changed, "_orig_mod", changed)(x, steps=2))


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("r3", {}, {"channels": 1, "layout": "gray", "task": "denoise", "reach": [2, 1]}),
        ("r3_fast", {"in_chans": 3}, {"channels": 3, "layout": "RGB", "task": "denoise", "reach": [6, 4], "sub": 2}),
        ("r2", {"width": 0.125}, {"channels": 3, "layout": "RGB", "task": "classify", "multiple": 4}),
    ],
)
def test_networks_describe_themselves(name, config, expected):
    assert create_model(name, **config).about.to_json() == {"range": [0.0, 1.0], **expected}


# Denoisers


@pytest.mark.parametrize(("name", "steps"), DENOISERS)
def test_a_new_denoiser_returns_its_input(name, steps):
    x, model = image(name), create_model(name, **config(name, steps)).eval()
    says = f"a new {name} must return its input: training starts there, so its last layer starts at zero"
    assert torch.equal(model(x, steps=steps), x), says


def random_denoiser(name, **config):
    model = create_model(name, **config).double().eval()
    nn.init.normal_(model.get_parameter("head.weight"))
    return model


def changed_pixels(model, steps, side, place):
    """The pixels of the output, [N, 2], that a change of one pixel of the input changes."""
    x = torch.rand(1, 1, side, side, dtype=torch.float64)
    other = x.clone()
    other[(0, 0, *place)] += 0.5
    with torch.no_grad():
        return (model(x, steps=steps) != model(other, steps=steps))[0, 0].nonzero()


def reach(model, steps, side, place):
    return (changed_pixels(model, steps, side, place) - torch.tensor(place)).abs().max().item()


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [*(("r3", {}, steps) for steps in (1, 2, 3, 4)), ("s3", {"steps": 2}, 2)],
)
def test_radius_of_r3_is_exact(name, config, steps):
    model = random_denoiser(name, **config)
    radius = model.radius(steps)
    assert radius == 2 + 3 * steps
    assert reach(model, steps, 2 * radius + 5, (radius + 2, radius + 2)) == radius


FAST = pytest.mark.parametrize(("steps", "convs"), [(1, 1), (2, 1), (3, 1), (4, 1), (2, 2)])


@FAST
def test_radius_of_r3_fast_is_a_bound(steps, convs):
    model = random_denoiser("r3_fast", steps=(1, 2, 3, 4), width=8, convs=convs)
    radius = model.radius(steps)
    places = [(radius + 2 + y, radius + 2 + x) for y in (0, 1) for x in (0, 1)]
    assert radius - 2 <= max(reach(model, steps, 2 * radius + 6, place) for place in places) <= radius


@FAST
def test_radius_of_r3_fast_is_the_halo_of_an_aligned_tile(steps, convs):
    """The tile begins at an even pixel, and so must its halo."""
    model = random_denoiser("r3_fast", steps=(1, 2, 3, 4), width=8, convs=convs)
    radius = model.radius(steps)
    assert radius % 2 == 0
    start, end = radius + 4, radius + 8
    for outside in (start - radius - 1, end + radius):
        changed = changed_pixels(model, steps, end + radius + 4, (outside, outside))
        assert not ((start <= changed) & (changed < end)).all(dim=1).any()


class Indexed(nn.Module):
    """With numbers that bf16 does not hold, and that are no kernel."""

    def __init__(self):
        super().__init__()
        self.register_buffer("index", torch.arange(600).reshape(20, 30))
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, norms):
        return x + norms[0](self.conv(x))


def shared_body(steps: int = 2):
    """Two cells of one body, and a function that computes with numbers."""
    body, slopes = Indexed(), [rate.item() for rate in torch.linspace(0, 0.1, 2)]
    cells = (rcnet.RecurrentCell(body, lambda: [nn.BatchNorm2d(3)], steps) for _ in slopes)
    net = rcnet.RecurrentNet(*cells)
    net.about = rcnet.About("denoise")
    return net


def test_networks_of_any_making_are_saved(tmp_path):
    net, x = create_model("tests.test_models:shared_body").eval(), torch.rand(1, 3, 8, 8)
    for half in (False, True):
        save(net, tmp_path / "net.safetensors", half=half)
        again = load(tmp_path / "net.safetensors").eval()
        assert all(torch.equal(again.state_dict()[name], y) for name, y in net.state_dict().items() if not y.is_floating_point())
        torch.testing.assert_close(again(x), net(x), atol=1e-2 if half else 1e-6, rtol=0)


def test_half_of_a_file(tmp_path):
    model = create_model("r3_fast", width=32)
    save(model, tmp_path / "whole.safetensors")
    save(model, tmp_path / "half.safetensors", half=True, results=[{"data": "x", "rows": []}])
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.65 * sizes[0]
    half = load(tmp_path / "half.safetensors")
    x = torch.rand(1, 1, 16, 16)
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())
    torch.testing.assert_close(half(x), model.eval()(x), atol=0.01, rtol=0)
    save(half, tmp_path / "again.safetensors")  # exactly what was loaded: as small, and its results are kept
    assert (tmp_path / "again.safetensors").stat().st_size == sizes[1]
    again = load(tmp_path / "again.safetensors")
    assert torch.equal(again(x), half(x))
    assert again.metadata["results"] == [{"data": "x", "rows": []}]
