"""Networks of others made recurrent: what repeats, what stays, and that the function is kept."""

import copy
import json
import pickle
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rcnet
from rcnet import About, InputError, unroll, untie
from rcnet.conversion import convert
from rcnet.conversion.cells import RelaxedCell
from rcnet.conversion.fit import shared_kernel
from rcnet.conversion.record import first_tensor, record
from rcnet.cost import macs, parameters
from rcnet.deploy.export import export, load_exported, read_exported

from .conftest import IMAGES


def conv_block(channels):
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())


def dncnn(blocks=4, channels=8):
    """As KAIR has it: one chain, no block is a module."""
    body = [part for _ in range(blocks) for part in conv_block(channels)]
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), *body, nn.Conv2d(channels, 3, 3, padding=1))


class UNet(nn.Module):
    """No chain: what cells pass by is used later, and a size is asked for."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Sequential(*(conv_block(8) for _ in range(3)))
        self.pool = nn.Conv2d(8, 16, 2, 2)
        self.middle = nn.ModuleList(conv_block(16) for _ in range(4))
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Sequential(conv_block(8), conv_block(8), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x):
        height, width = x.shape[-2:]
        x = nn.functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        first = self.head(x)
        skip = self.down(first)
        y = self.pool(skip)
        for block in self.middle:
            y = block(y)
        y = self.out(self.up(y) + skip + first)
        return (x + y)[..., :height, :width]


class Scaled(nn.Module):
    """A ConvNeXt block: depthwise convolution, LayerNorm, linear layers, a scale for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(nn.functional.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class Grouped(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, groups=2), nn.GroupNorm(2, channels)

    def forward(self, x):
        x = x + torch.relu(self.norm(self.conv(x)))
        return x


def stack(block, blocks=3, channels=8):
    return nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), *(block(channels) for _ in range(blocks)), nn.Conv2d(channels, 5, 1))


def resnet(**options):
    transformers = pytest.importorskip("transformers")
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [3, 4], "layer_type": "basic", "num_labels": 5}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**{**small, **options}))


def regnet():
    transformers = pytest.importorskip("transformers")
    config = transformers.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[3, 3], groups_width=4)
    return transformers.RegNetForImageClassification(config)


def convnext():
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[2, 3], num_stages=2)
    return transformers.ConvNextForImageClassification(config)


def trained(model):
    """Norms and scales as after training, each its own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.2)
    for name, parameter in model.named_parameters():
        if "scale" in name:
            nn.init.uniform_(parameter, 0.5, 1)
    return model.eval()


NETWORKS = {
    "dncnn": dncnn,
    "unet": UNet,
    "layer norm": lambda: stack(Scaled),
    "group norm": lambda: stack(Grouped),
    "resnet": resnet,
    "bottleneck": lambda: resnet(layer_type="bottleneck", depths=[2, 3]),
    "regnet": regnet,
    "convnext": convnext,
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return trained(NETWORKS[request.param]())


@torch.no_grad()
def test_untied_at_all_steps_the_function_is_the_same(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    net = convert(network, "all", rank=10**6)
    x = torch.rand(3, 3, 41, 50)
    expected = first_tensor(network(x))
    assert net.conversion.difference < 1e-5
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-4)
    assert (net(x, net.choices[0]) - expected).abs().max() > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    standard = untie(unroll(net))
    torch.testing.assert_close(standard(x), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_what_takes_a_network_takes_a_converted_one(network):
    net, x = convert(network, (1, 3), "mean", rank=1).eval(), torch.rand(2, 3, 40, 48)
    for n in (1, 3):
        expected, fixed = net(x, n), unroll(net, n)
        for other in (fixed, untie(fixed), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            torch.testing.assert_close(other(x) if len(other.choices) == 1 else other(x, n), expected)
        torch.testing.assert_close(rcnet.optimize(net, n, precision="fp32")(x, n), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.export.export(fixed, (x,)).module()(x), expected)
    assert macs(net, 3, (32, 32)) > macs(net, 1, (32, 32))


def test_gradients_reach_every_parameter(network):
    net = convert(network, (1, 2), "low-rank", rank=1).train()
    for cell in net.recurrent_cells():
        for p in cell.differences.parameters():
            nn.init.normal_(p, std=0.1)
    for n in net.choices:
        net(torch.rand(4, 3, 64, 64), n).square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert not [name for name in missing if ".norms." not in name]
    rows = {name.partition(".norms.")[0] for name in missing}
    assert all(len(net.get_submodule(row).norms) > 1 for row in rows)


def test_each_kernel_is_there_once():
    original, net = trained(dncnn(5, 16)), None
    net = convert(original, (1, 2, 3))
    (done,) = net.conversion.replaced
    assert (done.blocks, done.what, done.before) == (5, "Conv2d+BatchNorm2d+ReLU", 5 * (16 * 16 * 9 + 16 + 32))
    assert done.after == 16 * 16 * 9 + 16 + 3 * 32
    assert parameters(net) == net.conversion.after == net.conversion.before - done.before + done.after
    assert [kept.name for kept in net.conversion.kept] == ["0", str(len(original) - 1)]
    assert "changes the shape, [3, 64, 64] to [16, 64, 64]" in str(net.conversion)
    conv = net.cell1.body.get_submodule("0")
    assert torch.equal(conv.weight, original[2].weight)
    means = [group[0].running_mean for group in net.cell1.norms[0]]
    assert [torch.equal(mean, original[i].running_mean) for mean, i in zip(means, (3, 9, 15), strict=True)] == [True] * 3


def test_parts_between_have_norms_for_each_number_of_steps():
    net = convert(trained(resnet()), (1, 2))
    assert [name for name, _ in net.named_children()] == ["stem", "cell1", "transition1", "cell2", "head"]
    assert [len(row) for row in net.transition1.norms] == [0, 1, 1]
    assert isinstance(net.cell2, RelaxedCell)
    assert [len(row) for row in net.cell2.norms] == [0, 1, 2]
    single = convert(trained(resnet()), 2)
    assert not hasattr(single.transition1, "norms")


def test_kernels_start_as_asked():
    original = trained(dncnn())
    weights = torch.stack([original[i].weight for i in (2, 5, 8, 11)])
    kernel = {init: convert(original, 4, init, rank=rank).cell1.body.get_submodule("0").weight
              for init, rank in (("first", 0), ("mean", 0), ("low-rank", 3))}  # fmt: skip
    torch.testing.assert_close(kernel["first"], weights[0])
    torch.testing.assert_close(kernel["mean"], weights.mean(0))

    def left(kernel):
        values = torch.linalg.svdvals((weights - kernel).flatten(2))[:, 3:]
        return values.square().sum()

    assert left(kernel["low-rank"]) < 0.98 * left(kernel["mean"])
    assert left(kernel["mean"]) < left(kernel["first"])
    assert torch.equal(shared_kernel(list(weights), "low-rank", 8, 1), weights.mean(0))


@torch.no_grad()
def test_more_rank_is_nearer_and_costs_more():
    original = trained(dncnn())
    nets = [convert(original, 4, "low-rank" if rank else "mean", rank=rank) for rank in (0, 1, 4, 8)]
    away = [net.conversion.difference for net in nets]
    assert away == sorted(away, reverse=True)
    assert away[0] > 0.05
    assert away[-1] < 1e-5
    sizes = [net.conversion.replaced[0].after for net in nets]
    assert [size - sizes[0] for size in sizes] == [4 * (rank * (8 * 9 + 8) + 8) if rank else 0 for rank in (0, 1, 4, 8)]
    assert macs(nets[1], 4, (32, 32)) - macs(nets[0], 4, (32, 32)) == 4 * 32 * 32 * (8 * 9 + 8)


def test_regions():
    net = convert(trained(UNet()), 2, regions=["middle"])
    assert [done.name for done in net.conversion.replaced] == ["middle.0-3"]
    assert "is in none of the regions" in {kept.reason for kept in net.conversion.kept}
    with pytest.raises(InputError, match="unknown region 'midle': did you mean 'middle'"):
        convert(UNet(), regions=["midle"])
    with pytest.raises(InputError, match="has no repeated blocks in pool"):
        convert(UNet(), regions=["pool"])


class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = conv_block(3)

    def forward(self, x):
        return self.block(self.block(x))


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(conv_block(3), conv_block(3))

    def forward(self, x):
        return self.blocks(x) if x.mean() > 0 else x


class Side(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(conv_block(3) for _ in range(2))

    def forward(self, x):
        first = self.blocks[0](x)
        return self.blocks[1](first) + first


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Looping, "block is already called 2 times"),
        (Deciding, r"depends on the values of tensors \(Tensor\.__bool__\)"),
        (Side, r"blocks\.0 its output is used again later"),
        (lambda: nn.Sequential(conv_block(3), nn.Conv2d(3, 3, 1)), "0 no equal block follows it"),
        (lambda: nn.Sequential(nn.Linear(7, 7)), r"cannot be traced on an image of \[2, 3, 64, 64\]"),
    ],
)
def test_what_cannot_be_converted_is_said(make, reason):
    with pytest.raises(InputError, match=reason):
        convert(make().eval())


def test_bad_options_are_named():
    with pytest.raises(InputError, match="unknown init 'last'"):
        convert(dncnn(), init="last")
    with pytest.raises(InputError, match="from 1 with init='low-rank'"):
        convert(dncnn(), init="low-rank")
    with pytest.raises(InputError, match="rank=-1"):
        convert(dncnn(), rank=-1)
    with pytest.raises(InputError, match="unknown norm mode 'none'"):
        convert(dncnn(), norm_mode="none")


@torch.no_grad()
def test_another_batch_than_the_example(network):
    graph = record(network, torch.rand(2, 3, 64, 64))
    x = torch.rand(1, 3, 48, 41)
    torch.testing.assert_close(torch.fx.GraphModule(network, graph.graph)(x), first_tensor(network(x)))


@torch.no_grad()
@pytest.mark.parametrize("steps", [(1, 2), "all"])
def test_saved_and_loaded(tmp_path, steps):
    net = rcnet.convert(trained(resnet()), steps, rank=2, mean=[0.5] * 3, std=[0.2] * 3, example=torch.rand(2, 3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    rcnet.save(net, tmp_path / "net.safetensors")
    again = rcnet.load(tmp_path / "net.safetensors")
    assert again.choices == net.choices
    assert again.about.task == "classify"
    assert len(again.about.classes) == 5
    for n in net.choices:
        assert torch.equal(again(x, n), net(x, n))
    if steps == "all":
        return
    path = export(again, tmp_path / "net.onnx", steps=net.choices[:1])
    np.testing.assert_allclose(load_exported(path, net.choices[0])(x.numpy()), net(x, net.choices[0]).numpy(), atol=1e-4)


def test_images_are_in_0_1():
    original = trained(dncnn())
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    net = rcnet.convert(original, "all", rank=100, mean=mean, std=std, about=About("denoise"))
    x = torch.rand(1, 3, 32, 32)
    expected = original((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="one number per channel"):
        rcnet.convert(original, mean=[0.5, 0.5], std=[1.0, 1.0])


def test_a_builder_and_a_task_of_ones_own(tmp_path):
    net = rcnet.convert("tests.test_convert:dncnn", (1, 2), options={"blocks": 3}, about=About("sharpen"))
    rcnet.save(net, tmp_path / "net.safetensors")
    again = rcnet.load(tmp_path / "net.safetensors")
    assert (again.architecture, again.about) == (net.architecture, net.about)
    from rcnet.models import registry

    del registry._ENTRIES["tests.test_convert:dncnn"]
    with pytest.raises(InputError, match=r"RCNET_MODULES=tests\.test_convert"):
        rcnet.load(tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"must return a torch\.nn.Module"):
        rcnet.convert("json:dumps", options={"obj": 1})
    with pytest.raises(InputError, match="transformers has no network 'pipeline'"):
        rcnet.convert("transformers:pipeline", options={"task": "image-classification"})
    assert json.dumps(net.architecture)


# The command, and training from a teacher


def block16():
    return conv_block(16)


def small(num_classes=10):
    """Four equal blocks."""
    blocks = (conv_block(16) for _ in range(4))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), *blocks, *head)


def knowing():
    """The same, always with the same weights."""
    torch.manual_seed(5)
    return small()


@pytest.fixture
def forgotten(monkeypatch):
    from rcnet.models import registry

    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


def test_the_command_converts_and_finetune_learns_from_the_teacher(run, cifar_folder, tmp_path, forgotten):
    torch.save(trained(small()).state_dict(), tmp_path / "old.pt")
    arguments = ("convert", "tests.test_convert:small", "--task", "classify", "--size", "32", "-o", tmp_path / "net.safetensors")
    status, out, err = run(*arguments, "--weights", tmp_path / "old.pt", "--steps", "1,2")
    assert status == 0, err
    assert "cell1  4 x Sequential    1-4       9,408  2,384" in out
    assert "changes the shape, [3, 32, 32] to [16, 16, 16]" in out
    status, out, err = run(*arguments, "num_classes=10", "--weights", tmp_path / "old.pt", "--json")
    assert json.loads(out)["rows"][0]["macs"] < json.loads(out)["original"]["macs"], err
    net = rcnet.load(tmp_path / "net.safetensors")
    assert torch.equal(net.cell1.body.get_submodule("0").weight, torch.load(tmp_path / "old.pt")["1.0.weight"])
    short = ("batch=20", "iterations=40", "epochs=0", "ema=0", "classification.flip=none", "classification.crop=0")
    quick = (*short, "optimizer.name=adam", "optimizer.lr=0.01", "precision=fp32", "teacher_weight=1", "log_every=1")
    arguments = ("train", "finetune", *quick, f"init={tmp_path / 'net.safetensors'}", "--data", cifar_folder, "--json")
    status, out, err = run(*arguments, "teacher=tests.test_convert:knowing", "--out", tmp_path / "run")
    assert status == 0, err
    assert json.loads(out)["architecture"] == net.architecture
    after = rcnet.load(tmp_path / "run" / "weights.safetensors")
    assert len(after.about.classes) == 10
    images = torch.rand(50, 3, 32, 32)
    with torch.no_grad():
        expected = knowing().eval()(images).log_softmax(1)
        away = [nn.functional.kl_div(model.eval()(images, 1).log_softmax(1), expected, log_target=True, reduction="batchmean")
                for model in (net, after)]  # fmt: skip
    assert away[1] < 0.5 * away[0]
    assert json.loads(out)["pflop"] > 0


def test_a_teacher_has_the_same_outputs(refused, run, cifar_folder, tmp_path, forgotten):
    net = rcnet.convert("tests.test_convert:small", (1, 2), about=About("classify", size=(32, 32)))
    rcnet.save(net, tmp_path / "net.safetensors")
    arguments = ("train", "finetune", f"init={tmp_path / 'net.safetensors'}", "--data", cifar_folder, "--out", "new")
    message = refused(*arguments, "teacher=tests.test_convert:dncnn")
    assert "teacher = 'tests.test_convert:dncnn' returned shape [1, 3, 32, 32]" in message
    assert "'nothing' is not a network" in refused(*arguments, "teacher=nothing")


def test_a_folder_of_transformers(run, refused, tmp_path):
    model = trained(resnet())
    model.save_pretrained(tmp_path / "old")
    about = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "old" / "preprocessor_config.json").write_text(json.dumps(about))
    status, out, err = run("convert", tmp_path / "old", "--steps", "all", "--rank", 100, "-o", tmp_path / "net.safetensors")
    assert status == 0, err
    assert "3 x ResNetBasicLayer" in out
    net, x = rcnet.load(tmp_path / "net.safetensors"), torch.rand(2, 3, 32, 32)
    assert net.about.size == (32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model((x - 0.5) / 0.25).logits, rtol=0, atol=1e-4)
    assert "contains its configuration" in refused("convert", tmp_path / "old", "a=1", "-o", "x.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "'nothing' is not a network to convert: give package.module:function"),
        (("tests.test_convert:small",), "--task classify or --task denoise"),
        (("tests.test_convert:small", "--task", "classify", "--steps", "few"), "steps few is not valid"),
        (("tests.test_convert:small", "--task", "sharpen"), "unknown task 'sharpen': valid: classify, denoise"),
        (("tests.test_convert:small", "--task", "classify", "--mean", "x"), "--mean x is not valid"),
        (("tests.test_convert:small", "classes=3", "--task", "classify"), "cannot be built"),
        (("tests.test_convert:block16", "--task", "classify"), "cannot be traced on an image"),
    ],
)
def test_the_command_says_what_is_wrong(refused, forgotten, arguments, message):
    assert message in refused("convert", *arguments, "-o", "net.safetensors")
    assert "must end in .safetensors" in refused("convert", *arguments, "-o", "net.pt")


def test_weights_that_do_not_fit(refused, forgotten, tmp_path):
    torch.save(dncnn().state_dict(), tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    for name in ("other.pt", "broken.pt"):
        call = ("convert", "tests.test_convert:small", "--task", "classify", "-o", "x.safetensors", "--weights", name)
        assert f"{name} does not contain the weights of tests.test_convert:small" in refused(*call)


def test_the_python_of_the_page_runs():
    page = (Path(__file__).parent.parent / "docs" / "convert.md").read_text()
    names = {
        "rcnet": rcnet, "torch": torch, "random": random, "F": nn.functional, "old": trained(small()),
        "images": torch.rand(2, 3, 32, 32), "loader": [(torch.rand(4, 3, 32, 32), torch.arange(4))],
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert not torch.equal(names["net"].cell1.body.get_submodule("0").weight, names["old"][1][0].weight)


def denoiser():
    torch.manual_seed(6)
    return nn.Sequential(*dncnn(), nn.Tanh())


def test_a_denoiser_from_conversion_to_pictures(run, tmp_path, forgotten):
    arguments = ("tests.test_convert:denoiser", "--task", "denoise", "--steps", "1,2", "-o", tmp_path / "net.safetensors")
    status, _, err = run("convert", *arguments)
    assert status == 0, err
    short = ("iterations=3", "batch=2", "ema=0", "denoising.patch=16", "precision=fp32", "teacher=tests.test_convert:denoiser")
    arguments = ("train", "finetune_denoiser", f"init={tmp_path / 'net.safetensors'}", *short, "--data", IMAGES / "bsd")
    status, _, err = run(*arguments, "--out", tmp_path / "run")
    assert status == 0, err
    weights = tmp_path / "run" / "weights.safetensors"
    assert rcnet.load(weights).choices == (1, 2)
    status, _, err = run("denoise", IMAGES / "cat.png", "--model", weights, "--steps", "1", "--tile", "0", "-o", "out.png")
    assert status == 0, err
    assert (tmp_path / "out.png").exists()


class Told(nn.Module):
    """A block that can be told something."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x, scale=1.0):
        return x + scale * self.norm(self.conv(x)).relu()


class Telling(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.stem, self.blocks, self.scale = nn.Conv2d(3, 8, 1), nn.ModuleList(Told() for _ in range(6)), scale

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=self.scale)
        return x


class Summing(nn.Module):
    """The code around the blocks adds what they take, tells them something, and gives them a tensor of its own."""

    def __init__(self, scale=0.1):
        super().__init__()
        self.stem, self.blocks, self.scale = nn.Conv2d(3, 8, 1), nn.ModuleList(conv_block(8) for _ in range(4)), scale
        self.told, self.head = nn.ModuleList(Told() for _ in range(3)), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        mask = (x.mean((1, 2, 3), keepdim=True) > 0) * 2.0 * self.scale
        x = self.stem(x)
        for block in self.blocks:
            x = x + self.scale * block(x)
        for block in self.told:
            x = block(x, mask) * 0.5
        return self.head(x)


@torch.no_grad()
def test_blocks_with_options_more_tensors_and_sums_outside_are_replaced():
    x = torch.rand(3, 3, 16, 16)
    for scale in (0.1, 1.0):
        original = trained(Telling(scale))
        torch.testing.assert_close(rcnet.convert(original, "all", rank=100)(x), original(x), rtol=0, atol=1e-4)
    original = trained(Summing())
    net = rcnet.convert(original, "all", rank=100)
    assert [(r.blocks, r.what) for r in net.conversion.replaced] == [(4, "Sequential"), (3, "Told")]
    torch.testing.assert_close(net(x), original(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(untie(unroll(net))(x), original(x), rtol=0, atol=1e-4)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Unusual(nn.Module):
    """A block that does what `kind` says."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.matrix = nn.ConvTranspose2d(8, 8, 3, padding=1), nn.Linear(8, 8)
        self.shift, self.mask = torch.rand(8, 1, 1), torch.rand(64, 64)  # neither parameters nor buffers
        if kind == "weight norm":
            nn.utils.parametrizations.weight_norm(self.conv)
        elif kind == "spectral norm":
            nn.utils.parametrizations.spectral_norm(self.conv)
        elif kind == "old weight norm":
            nn.utils.weight_norm(self.conv)
        elif kind == "subclass":
            self.conv = Standardized(8, 8, 3, padding=1)

    def forward(self, x):
        y, weight = x, self.conv.weight
        if self.kind == "backward":
            y = Sign.apply(x)
        elif self.kind == "straight-through":
            weight = weight + (torch.round(weight * 8) / 8 - weight).detach()
        with torch.no_grad():
            scale = x.abs().mean((2, 3), True)
        y = self.norm(nn.functional.conv2d(y, weight, padding=1) if self.kind == "straight-through" else self.conv(y))
        if self.kind == "no gradient":
            y = y * scale
        elif self.kind == "transposed":
            y = self.up(y)
        elif self.kind == "functional":
            y = nn.functional.linear(y.transpose(1, 3), self.matrix.weight, self.matrix.bias).transpose(1, 3)
        elif self.kind == "attribute":
            y = y + self.shift
        elif self.kind == "mask":
            y = y * self.mask
        elif self.kind == "training" and self.training:
            y = y + 1000
        return x + y.relu()


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / (self.weight.std() + 1e-5)
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


KINDS = ("backward", "straight-through", "no gradient", "weight norm", "old weight norm", "spectral norm", "subclass",
         "transposed", "functional", "attribute", "training")  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_unusual_blocks_keep_their_outputs_and_gradients(kind):
    torch.manual_seed(0)
    blocks, x = (Unusual(kind) for _ in range(3)), torch.rand(3, 3, 9, 8)
    original = trained(nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Conv2d(8, 3, 1)))
    original(x)
    net = rcnet.convert(original, "all", rank=10**6, init="mean", about=About(size=(8, 8))).eval()
    torch.testing.assert_close(net(x), original(x), rtol=0, atol=1e-4)
    for model in (original, net):
        model(x).square().mean().backward()
    torch.testing.assert_close(net.stem.get_parameter("0.weight").grad, original[0].weight.grad, rtol=1e-3, atol=1e-5)
    notes = " ".join(net.conversion.notes)
    assert ("is applied to the weights once" in notes) == (kind in ("weight norm", "old weight norm", "spectral norm"))
    assert ("Unusual (1 and 2 more) computes something else in training mode" in notes) == (kind == "training")
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), net(x))


def test_blocks_whose_constants_differ_are_not_a_run():
    with pytest.raises(InputError, match=r"1 the next block differs: .*"):
        rcnet.convert(nn.Sequential(nn.Conv2d(3, 8, 1), *(Unusual("mask") for _ in range(3))).eval())


class Rebound(nn.Module):
    apply_sign = staticmethod(Sign.apply)  # bound before anything is recorded

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.apply_sign(self.conv(x))


def test_a_backward_pass_that_cannot_be_followed_is_refused():
    with pytest.raises(InputError, match="SignBackward is a backward pass that cannot be followed"):
        rcnet.convert(nn.Sequential(Rebound(), Rebound(), Rebound()).eval())


def test_what_the_report_says():
    original = dncnn().eval().requires_grad_(False)
    original[2].weight.requires_grad_(True)
    net = rcnet.convert(torch.compile(original, backend="eager"), 2)
    assert f"differ by {net.conversion.difference:.2g} of their size" in str(net.conversion)
    assert net.conversion.difference > 0.05
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["cell1.body.0.weight"]
    assert "less than a tenth" not in str(net.conversion)
    few = rcnet.convert(nn.Sequential(nn.Conv2d(3, 3, 15, padding=7), nn.Conv2d(3, 64, 1), *conv_block(64), nn.Conv2d(64, 3, 1),
                                      *(nn.Conv2d(3, 3, 1) for _ in range(2))).eval(), 2)  # fmt: skip
    assert "% of the parameters, less than a tenth" in str(few.conversion)


class Rnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        return x + self.rnn(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape)


@torch.no_grad()
def test_layers_that_cannot_have_differences_are_named():
    net = rcnet.convert(nn.Sequential(nn.Conv2d(3, 8, 1), Rnn(), Rnn()).eval(), "all", rank=100, about=About(size=(8, 8)))
    assert "note: cell1 shares rnn, whatever the rank" in str(net.conversion)
    assert net.conversion.difference > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("family", ["ViT", "DeiT", "Beit", "Dinov2", "ViTMSN"])
def test_vision_transformers_of_transformers(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
    config = getattr(transformers, f"{family}Config")(**sizes, image_size=32, patch_size=8, num_labels=5)
    model = getattr(transformers, f"{family}ForImageClassification")(config).eval()
    x, about = torch.rand(3, 3, 32, 32), About("classify", size=(32, 32), classes=tuple("abcde"))
    net = rcnet.convert(model, "all", rank=99, about=about)
    assert [r.blocks for r in net.conversion.replaced] == [3]
    torch.testing.assert_close(net(x), model(x).logits, rtol=0, atol=1e-4)
    rcnet.save(net, tmp_path / "net.safetensors")
    assert torch.equal(rcnet.load(tmp_path / "net.safetensors")(x), net(x))
    if family == "ViT":
        assert "it takes only images of 32x32 pixels" in net.conversion.notes
        path = export(net, tmp_path / "net.onnx", steps=(3,))
        np.testing.assert_allclose(load_exported(path)(x.numpy()), net(x).numpy(), atol=1e-4)
        with pytest.raises(InputError, match="takes images of 32x32 pixels"):
            load_exported(path)(np.zeros((1, 3, 40, 40), np.float32))


class Padded(nn.Module):
    """A block whose shortcut takes every other pixel and more channels of zeros; sides must be multiples of 2."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, 2, 1)

    def forward(self, x):
        return self.conv(x) + nn.functional.pad(x[:, :, : x.shape[2] // 2 * 2 : 2, : x.shape[3] // 2 * 2 : 2], (0, 0, 0, 0, 0, 4))


@torch.no_grad()
def test_the_multiple_that_a_network_needs_is_found(tmp_path):
    blocks = (conv_block(8) for _ in range(2))
    original = trained(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Padded(), *blocks, nn.PixelShuffle(2), nn.Conv2d(2, 3, 1)))
    net = rcnet.convert(original, (1, 2), about=About("denoise"))
    assert net.about.multiple == 2
    path, x = export(net, tmp_path / "net.onnx", steps=(2,)), torch.rand(2, 3, 18, 26)
    np.testing.assert_allclose(load_exported(path)(x.numpy()), net(x).numpy(), atol=1e-4)
    net.about = About("denoise")  # as if nothing were known
    assert read_exported(export(net, tmp_path / "net.pt2", steps=(2,)))["multiple"] == 2
    assert read_exported(export(net, tmp_path / "one.pt2", steps=(2,), size=(18, 26)))["size"] == [18, 26]


@torch.no_grad()
def test_ranks_where_they_pay_and_first_blocks_kept_apart(tmp_path):
    original, x = trained(dncnn(6, 16)), torch.rand(4, 3, 32, 32)
    options = {"steps": 6, "init": "low-rank", "rank": 2, "about": About("denoise"), "source": "tests.test_convert:dncnn"}
    options["options"] = {"blocks": 6, "channels": 16}
    for i in (5, 8):
        original[i].weight.mul_(3)  # these differ most from the others
    even, adaptive = (rcnet.convert(original, **options, adaptive=choice) for choice in (False, True))
    assert adaptive.conversion.after <= even.conversion.after
    assert adaptive.conversion.difference < even.conversion.difference
    assert len({rank for step in adaptive.ranks[0] for rank in step}) > 1
    rcnet.save(adaptive, tmp_path / "net.safetensors")
    assert torch.equal(rcnet.load(tmp_path / "net.safetensors")(x), adaptive(x))
    apart = rcnet.convert(original, **options, apart=True)
    assert [r.blocks for r in apart.conversion.replaced] == [5]
    rcnet.save(apart, tmp_path / "net.safetensors")
    assert torch.equal(rcnet.load(tmp_path / "net.safetensors")(x), apart(x))


def test_features_of_the_teacher_are_learned(run, refused, cifar_folder, tmp_path, forgotten):
    old = knowing().eval()
    net = rcnet.convert(old, (1, 2), source="tests.test_convert:small", about=About("classify", size=(32, 32)))
    rcnet.save(net, tmp_path / "net.safetensors")
    short = ("batch=20", "iterations=30", "epochs=0", "ema=0", "precision=fp32", "optimizer.lr=0.05", "recalibrate_start=2")
    arguments = ("train", "finetune", *short, f"init={tmp_path / 'net.safetensors'}", "--data", cifar_folder)
    images, away = torch.rand(50, 3, 32, 32), []
    for weight in (0, 5):
        out = tmp_path / f"run{weight}"
        status, _, err = run(*arguments, "teacher=tests.test_convert:knowing", f"feature_weight={weight}", "--out", out)
        assert status == 0, err
        after = rcnet.load(out / "weights.safetensors").eval()
        with torch.no_grad():
            away.append(float((after[:2](images, 2) - old[:5](images)).square().mean()))
    assert away[1] < 0.8 * away[0]
    message = refused(*arguments, "teacher=tests.test_convert:knowing_more", "feature_weight=1", "--out", "new")
    assert "feature_weight needs the network that it was converted from" in message


def knowing_more():
    """A teacher with other blocks."""
    blocks = (conv_block(8) for _ in range(3))
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def test_the_command_measures_statistics_on_images(run, cifar_folder, tmp_path, forgotten):
    states = []
    for more in ((), ("--data", cifar_folder)):
        arguments = ("tests.test_convert:knowing", "--task", "classify", "--size", "32x32", "-o", tmp_path / "net.safetensors")
        status, out, err = run("convert", *arguments, "--steps", "2", *more)
        assert status == 0, err
        assert "outputs differ by" in out
        states.append(rcnet.load(tmp_path / "net.safetensors").state_dict())
    changed = {name.rpartition(".")[2] for name, x in states[0].items() if not torch.equal(x, states[1][name])}
    assert changed == {"running_mean", "running_var"}


@torch.no_grad()
def test_the_zoo_has_40_networks_and_its_page_says_what_happened():
    from benchmarks import zoo

    assert len(zoo.NETWORKS) == 40
    for original in (zoo.Edsr(8, 4), zoo.Ffdnet(8, 6)):
        x = torch.rand(1, 3, 16, 18)
        torch.testing.assert_close(rcnet.convert(zoo.as_trained(original), "all", rank=100)(x), original(x), rtol=0, atol=1e-4)
    row = {"before": 100, "after": 50, "cells": ["2 x Block"], "exact": 1e-7, "notes": ["a note"], "multiple": 2}
    rows = {"one": {**row, "onnxruntime": 1e-6}, "two": {**row, "not_exported": "no"}, "three": {"before": 9, "refused": "why"}}
    page = zoo.render({"networks": rows, "torch": "2", "libraries": ["timm 1"], "commit": "abc"})
    assert "2 of 3 converted, 2 exact at full rank (below 0.0001), 1 exported" in page
    assert "| three | 9 |  |  | not converted: why |  |  |  |" in page


class Scaling(nn.Module):
    """It changes the image that it is given."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), *(conv_block(8) for _ in range(3)), nn.Conv2d(8, 3, 1))

    def forward(self, x):
        x *= 255
        return self.body(x)


@torch.no_grad()
def test_a_network_that_changes_its_input_is_converted():
    original, x = trained(Scaling()), torch.rand(2, 3, 8, 8)
    net = rcnet.convert(original, "all", rank=100)
    torch.testing.assert_close(net(x.clone()), original(x.clone()), rtol=1e-4, atol=1e-3)


class Halving(nn.Module):
    """Groups of channels are mixed by a view that names the sides, after five halvings."""

    def __init__(self):
        super().__init__()
        self.halve = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(5)))
        self.blocks, self.head = nn.Sequential(conv_block(8), conv_block(8)), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.blocks(self.halve(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(x)


@torch.no_grad()
def test_sizes_after_halvings_are_no_constants_in_a_file(tmp_path):
    net = rcnet.convert(trained(Halving()), (1, 2), about=About(size=(64, 64)))
    path = export(net, tmp_path / "net.onnx", steps=(2,))
    for sides in ((64, 64), (32, 96), (160, 128)):
        x = torch.rand(2, 3, *sides)
        np.testing.assert_allclose(load_exported(path)(x.numpy()), net(x).numpy(), atol=1e-4)


def test_regions_that_are_no_neighbours_become_cells_of_their_own():
    original, x = trained(Telling(1.0)), torch.rand(1, 3, 16, 16)
    net = rcnet.convert(original, "all", regions=[f"blocks.{place}" for place in (0, 1, 4, 5)], rank=100)
    assert [cell.steps for cell in net.recurrent_cells()] == [(1, 2), (1, 2)]
    torch.testing.assert_close(net(x), original(x), rtol=0, atol=1e-4)


def test_how_far_a_converted_network_sees_is_saved(tmp_path):
    about = About("denoise", reach=(3, 4), sub=2)
    net = rcnet.convert("tests.test_convert:dncnn", (1, 2), options={"blocks": 3}, about=about)
    rcnet.save(net, tmp_path / "net.safetensors")
    assert rcnet.load(tmp_path / "net.safetensors").about == net.about


class Shifting(nn.Module):
    """Blocks that assign to parts of tensors and make others on the device of their input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(ShiftBlock() for _ in range(3))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = x.clone()
        x[:, 0] = x[:, 0] * 2 - 1
        y, total = self.stem(x), 0
        for i, block in enumerate(self.blocks):
            y = block(y)
            total = total + torch.ones(1, device=y.device) * i
        return self.head(total + y + torch.linspace(0, 1, y.shape[-1], device=y.device))


class ShiftBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        out = torch.zeros_like(y, device=x.device)
        out[:, :4, :, 1:] = y[:, :4, :, :-1]
        out[:, 4:] = y[:, 4:]
        return x + out


@torch.no_grad()
def test_assignments_and_devices_are_followed():
    torch.manual_seed(0)
    old, x = Shifting().eval(), torch.rand(2, 3, 16, 16)
    net = convert(old, 3, "low-rank", rank=10**6, example=x).eval()
    torch.testing.assert_close(net(x, 3), old(x), atol=1e-5, rtol=1e-5)
    assert net.to("meta")(x.to("meta")).shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_networks_of_other_precisions_become_float32(dtype):
    old, x = dncnn().to(dtype).eval(), torch.rand(1, 3, 16, 16)
    net = convert(old, 4, "low-rank", rank=10**6, example=x.to(dtype)).eval()
    torch.testing.assert_close(net(x), copy.deepcopy(old).float()(x), atol=1e-4, rtol=1e-4)


def test_threads_convert_at_the_same_time():
    call = nn.Module.__call__

    def work(_):
        old = dncnn()
        return len(convert(old, 2, example=torch.rand(1, 3, 8, 8)).recurrent_cells()), old(torch.rand(1, 3, 8, 8)).shape

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(work, range(9))) == {(1, (1, 3, 8, 8))}
    assert nn.Module.__call__ is call


def test_a_converted_network_of_ones_own_is_saved_and_loaded(tmp_path, forgotten):
    old = small(4)
    net = rcnet.convert(old, (1, 2), source="tests.test_convert:small", options={"num_classes": 4},
                        about=About("classify", size=(32, 32)))  # fmt: skip
    rcnet.save(net, tmp_path / "net.safetensors")
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(rcnet.load(tmp_path / "net.safetensors").eval()(x), net.eval()(x))
    with pytest.raises(InputError, match="has no function 'nothing'"):
        rcnet.convert(old, (1, 2), source="tests.test_convert:nothing", about=About("classify", size=(32, 32)))


def test_what_convert_refuses_says_why(refused, tmp_path):
    arguments = ("convert", "tests.test_convert:small", "--task", "classify", "-o", tmp_path / "net.safetensors")
    assert "--size -32 is not valid: give HEIGHTxWIDTH" in refused(*arguments, "--size=-32")
    assert "--size 0 is not valid" in refused(*arguments, "--size", "0")
    torch.save({f"module.{name}": x for name, x in small().state_dict().items()}, tmp_path / "old.pt")
    told = refused(*arguments, "--size", "32", "--weights", tmp_path / "old.pt")
    assert 'Missing key(s) in state_dict: "' in told
    with pytest.raises(InputError, match=r"cannot be traced on an image of .*: not 48 pixels"):
        convert(Strict(), 2, example=torch.rand(1, 3, 16, 16))


class Strict(nn.Module):
    def forward(self, x):
        torch._assert(x.shape[-1] == 48, "not 48 pixels")
        return x
