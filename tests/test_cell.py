"""The cell's invariants, on a small network and on the paper's."""

import copy
import io
import itertools
import pickle
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import rcnet
from rcnet import InputError, RecurrentCell, RecurrentNet, Transition, create_model, save, unroll, untie
from rcnet.cell import batch_norms, shared_kernels, supported_steps

from .conftest import random_model

MODES = ("none", "shared", "independent", "double")
SUPPORTED = (2, 3, 4, (3, 2), (4, 2), (4, 3))
LOWER_234 = {(2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)}
LOWER_123 = {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}
KERNELS = {"stem.weight", "cell1.body.conv.weight", "transition.body.conv.weight", "cell2.body.conv.weight"}


class Body(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x, norms):
        return F.relu(norms[0](self.conv(x)))


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.sides = []

    def forward(self, x, norms):
        self.sides.append(x.shape[-1])
        return x


def norms():
    return [nn.BatchNorm2d(4)]


def tiny(steps=(2, 3, 4), norm_mode="double", unified=True):
    """Stem, cell with pooling, transition, cell; every norm has numbers of its own."""
    upstream = {"norm_mode": norm_mode, "upstream": supported_steps(steps)}
    net = RecurrentNet(
        stem=nn.Conv2d(3, 4, 3, padding=1),
        cell1=RecurrentCell(Body(), norms, steps, norm_mode=norm_mode, unified=unified, pool=nn.AvgPool2d(2)),
        transition=Transition(Body(), norms, **upstream),
        cell2=RecurrentCell(Body(), norms, steps, unified=unified, **upstream),
    )
    randomize_norms(net)
    net.offer(own for own in net.possible_settings() if all(own))
    return net


def randomize_norms(net):
    for norm in batch_norms(net):
        for scale in (norm.weight, norm.running_var):
            nn.init.uniform_(scale, 0.5, 1.5)
        for shift in (norm.bias, norm.running_mean):
            nn.init.normal_(shift, std=0.2)


def clone(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def kernels(state):
    return {name for name, tensor in state.items() if tensor.dim() == 4}


def storages(module):
    return {tensor.data_ptr() for tensor in module.state_dict().values()}


@pytest.fixture
def x():
    return torch.rand(2, 3, 8, 8)


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# The forward: Alg. 1, Eq. 4 and 6


def by_hand(state, x, norm_mode, steps):
    def body(x, part, upstream, step):
        y = F.conv2d(x, state[f"{part}.body.conv.weight"], padding=1)
        if norm_mode == "none":
            return F.relu(y)
        row = upstream if norm_mode == "double" else 0
        column = 0 if norm_mode == "shared" else step
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (state[f"{part}.norms.{row}.{column}.0.{name}"].view(-1, 1, 1) for name in names)
        return F.relu((y - mean) / (var + 1e-5).sqrt() * weight + bias)

    first, second = (steps, steps) if isinstance(steps, int) else steps
    x = F.conv2d(x, state["stem.weight"], state["stem.bias"], padding=1)
    for t in range(first):
        x = body(x, "cell1", first, t)  # it pools: a row for each number of its own steps
        if t == (first - 1) // 2:
            x = F.avg_pool2d(x, 2)
    x = body(x, "transition", first, 0)
    for t in range(second):
        x = body(x, "cell2", first, t)
    return x


@pytest.mark.parametrize("norm_mode", MODES)
@pytest.mark.parametrize("unified", [True, False])
def test_forward_is_the_explicit_loop(x, norm_mode, unified):
    net = tiny(norm_mode=norm_mode, unified=unified).eval()
    full_table = not unified or norm_mode != "double"
    outputs = []
    for steps in (*SUPPORTED, *([(2, 3), (2, 4), (3, 4)] if full_table else [])):
        outputs.append(net(x, steps=steps))
        torch.testing.assert_close(outputs[-1], by_hand(net.state_dict(), x, norm_mode, steps))
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(outputs, 2))
    assert torch.equal(net(x), net(x, steps=4))
    assert torch.equal(net(x, steps=[3, 2]), net(x, steps=(3, 2)))


@pytest.mark.parametrize(("steps", "sides"), [(1, [8]), (2, [8, 4]), (3, [8, 8, 4]), (4, [8, 8, 4, 4]), (5, [8, 8, 8, 4, 4])])
def test_pooling_follows_step_half_of_n_rounded_up(steps, sides):
    body = Recorder()
    net = RecurrentNet(cell=RecurrentCell(body, list, (1, 2, 3, 4, 5), pool=nn.AvgPool2d(2)))
    for network in (net, unroll(net, steps)):
        body.sides.clear()
        assert network(torch.rand(1, 1, 8, 8), steps=steps).shape[-1] == 4
        assert body.sides == sides
    standard = untie(unroll(net, steps))
    for body in standard.cell.bodies:
        body.sides.clear()
    standard(torch.rand(1, 1, 8, 8))
    assert [side for body in standard.cell.bodies for side in body.sides] == sides


def test_threads_may_use_different_steps_at_once(x):
    net = tiny().eval()
    for cell in net.recurrent_cells():
        cell.body.register_forward_pre_hook(lambda *_: time.sleep(0.001))
    jobs = SUPPORTED * 4
    alone = [net(x, steps=steps) for steps in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(lambda steps: net(x, steps=steps), jobs))
    assert all(map(torch.equal, together, alone))


@pytest.mark.parametrize("steps", [0, 1, 5, -1, (), (2,), (2, 3), (2, 2, 2), "2", "22", True, 2.0, 2.5, (2.0, 2.0), (2, None)])
def test_unsupported_steps_are_named_with_the_supported_ones(x, steps):
    with pytest.raises(InputError, match=r"valid: 2; 3,2; 3; 4,2; 4,3; 4$"):
        tiny()(x, steps=steps)
    with pytest.raises(InputError, match=r"valid: 2[,;] .*3[,;] .*4$"):
        unroll(tiny(), steps)


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("norm_mode", MODES)
def test_steps_are_checked_in_every_norm_mode(x, norm_mode, steps):
    with pytest.raises(InputError, match=f"steps={steps} is not supported: valid: 2[,;] .*3[,;] .*4$"):
        tiny(norm_mode=norm_mode)(x, steps=steps)


def test_mixtures_that_no_training_drew_are_refused(x):
    net = create_model("r2", steps=(2, 3, 4), width=0.125, pooled_rows=False).eval()
    for call in (lambda: net(x, steps=(3, 2)), lambda: unroll(net, (4, 3))):
        with pytest.raises(InputError, match=r"valid: 2, 3, 4; the network was not trained at it"):
            call()
    net.offer([(2, 2), (3, 2)])
    assert net(x, steps=(3, 2)).shape == net(x, steps=2).shape
    with pytest.raises(InputError, match="valid: 2; 3,2;"):
        net(x, steps=3)
    with pytest.raises(InputError, match=r"\(2, 3\).* have no batch norms"):
        net.offer([(2, 3)])


def test_numpy_integers_are_steps(x):
    net = tiny().eval()
    assert torch.equal(net(x, steps=np.int64(3)), net(x, steps=3))
    assert torch.equal(net(x, steps=np.array([4, 2])), net(x, steps=(4, 2)))


@pytest.mark.parametrize("steps", [0, -1, (), (2, 0), 2.5, (2, 2.5), "3", (2, "a"), None])
def test_invalid_steps_of_a_cell(steps):
    with pytest.raises(InputError, match="whole numbers from 1"):
        RecurrentCell(Body(), norms, steps)


def test_unknown_norm_mode():
    with pytest.raises(ValueError, match=r"did you mean 'independent'.*none, shared, independent, double"):
        RecurrentCell(Body(), norms, 2, norm_mode="independant")


# The table of norms and the state dict


def table(state):
    """{cell: [(row, column), ...]}, an entry a batch norm, from the names alone."""
    found = defaultdict(list)
    for name in state:
        if name.endswith(".running_mean"):
            cell, norms, row, column, _ = name.removesuffix(".running_mean").split(".")
            assert norms == "norms"
            found[cell].append((int(row), int(column)))
    return {cell: sorted(entries) for cell, entries in found.items()}


def columns(n, row=0):
    return {(row, column) for column in range(n)}


def own_rows(*rows):
    """Of a cell that pools: row 34 has the four columns of four own steps after three."""
    return set().union(*(columns(row % 10, row) for row in rows))


FULL_234 = columns(4, 2) | columns(4, 3) | columns(4, 4)
OLD = {"steps": (2, 3, 4), "width": 0.125, "pooled_rows": False}
TABLES = {
    "r2 double": ("r2", {"steps": (2, 3, 4), "width": 0.125}, {"cell1": own_rows(2, 3, 4), "cell2": own_rows(22, 33, 44)}),
    "r2 per cell": (
        "r2",
        {"steps": (2, 3, 4), "width": 0.125, "unified": False},
        {"cell1": own_rows(2, 3, 4), "cell2": own_rows(22, 23, 24, 32, 33, 34, 42, 43, 44)},
    ),
    "r2 sparse": ("r2", {"steps": (1, 3), "width": 0.125}, {"cell1": own_rows(1, 3), "cell2": own_rows(11, 33)}),
    "r2 of old": ("r2", OLD, {"cell1": columns(4), "cell2": LOWER_234}),
    "r2 of old, per cell": ("r2", {**OLD, "unified": False}, {"cell1": columns(4), "cell2": FULL_234}),
    "r2 independent": (
        "r2",
        {"steps": (2, 3, 4), "width": 0.125, "norm_mode": "independent"},
        {"cell1": columns(4), "cell2": columns(4)},
    ),
    "r2 shared": (
        "r2",
        {"steps": (2, 3, 4), "width": 0.125, "norm_mode": "shared"},
        {"cell1": columns(1), "cell2": columns(1)},
    ),
    "r2 none": ("r2", {"steps": (2, 3, 4), "width": 0.125, "norm_mode": "none"}, {}),
    "r2 fixed": ("r2", {"steps": 3, "width": 0.125}, {"cell1": columns(3), "cell2": columns(3)}),
    "r4": (
        "r4",
        {},
        {"transition1": columns(1), "cell1": columns(3)}
        | {f"transition{stage}": {(1, 0), (2, 0), (3, 0)} for stage in (2, 3, 4)}
        | {f"cell{stage}": LOWER_123 for stage in (2, 3, 4)},
    ),
}


@pytest.mark.parametrize(("model", "config", "expected"), TABLES.values(), ids=TABLES)
def test_table_holds_the_reachable_rows_and_columns_only(model, config, expected):
    assert table(create_model(model, **config).state_dict()) == {
        cell: sorted([*entries, *entries]) for cell, entries in expected.items()
    }


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("norm_mode", MODES)
def test_some_supported_steps_use_every_norm(x, norm_mode, unified):
    net = tiny(norm_mode=norm_mode, unified=unified).eval()
    used = set()
    for norm in batch_norms(net):
        norm.register_forward_hook(lambda module, *_: used.add(module))
    for steps in (2, 3, 4) if unified else itertools.product((2, 3, 4), repeat=2):
        net(x, steps=steps)
    assert used == set(batch_norms(net))


@pytest.mark.parametrize("change", [lambda net: net, lambda net: unroll(net, (4, 3, 2))], ids=["call", "unroll"])
def test_a_cell_looks_at_the_cell_before_it(change):
    net, used = create_model("r3_fast", steps=(2, 3, 4), width=4, convs=1).eval(), set()
    for name, norm in net.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_hook(lambda *_, name=name: used.add(name))
    net.offer([(4, 3, 2)])
    change(net)(torch.rand(1, 1, 4, 4), steps=(4, 3, 2))
    rows = {"cell1.norms.0": 4, "cell2.norms.4": 3, "cell3.norms.3": 2}
    assert used == {f"{row}.{t}.0" for row, steps in rows.items() for t in range(steps)}


@pytest.mark.parametrize("norm_mode", MODES)
def test_state_dict_holds_each_kernel_once(norm_mode):
    state = tiny(norm_mode=norm_mode).state_dict()
    assert kernels(state) == KERNELS
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_file_holds_each_kernel_once(tmp_path):
    model = random_model("r2", steps=(2, 3, 4), width=0.125)
    save(model, tmp_path / "r2.safetensors")
    with safe_open(tmp_path / "r2.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        stored = {name for name in file.keys() if len(file.get_slice(name).get_shape()) == 4}  # noqa: SIM118
    bodies = {f"cell{cell}.body.conv{conv}.weight" for cell in (1, 2) for conv in (1, 2)}
    assert stored - {"normalize.mean", "normalize.std"} == bodies | {"stem.weight"}
    content = (tmp_path / "r2.safetensors").read_bytes()
    tensors = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + tensors


# Training


@pytest.mark.parametrize(
    ("norm_mode", "used"),
    [
        ("independent", ("cell1.norms.0.0", "cell1.norms.0.1", "transition.norms.0.0", "cell2.norms.0.0", "cell2.norms.0.1")),
        ("double", ("cell1.norms.2.0", "cell1.norms.2.1", "transition.norms.2.0", "cell2.norms.2.0", "cell2.norms.2.1")),
    ],
)
def test_norms_of_other_steps_rest(x, norm_mode, used):
    net = tiny(norm_mode=norm_mode)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def iteration(steps):
        optimizer.zero_grad(set_to_none=True)
        net(x, steps=steps).square().mean().backward()
        optimizer.step()

    def momenta():
        return clone({name: optimizer.state[parameter]["momentum_buffer"] for name, parameter in net.named_parameters()})

    for steps in (4, 3, 2):
        iteration(steps)
    state, momentum = clone(net.state_dict()), momenta()
    iteration(2)
    moving = {name for name in state if ".norms." not in name or name.startswith(tuple(f"{place}." for place in used))}
    assert changed(state, net.state_dict()) == moving
    assert changed(momentum, momenta()) == moving & momentum.keys()
    assert {name for name, parameter in net.named_parameters() if parameter.grad is not None} == moving & momentum.keys()


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_gradient_of_a_kernel_is_the_sum_over_its_steps(x, steps):
    """Eq. 5."""
    net = tiny()
    standard = untie(unroll(net, steps))
    for network in (net, standard):
        network(x, steps=steps).square().mean().backward()
    for cell in ("cell1", "cell2"):
        of_steps = [body.conv.weight.grad for body in standard.get_submodule(cell).bodies]
        assert len(of_steps) == steps
        assert all(gradient.abs().max() > 0 for gradient in of_steps)
        torch.testing.assert_close(net.get_parameter(f"{cell}.body.conv.weight").grad, sum(of_steps))


def test_shared_kernels_are_those_of_the_recurrent_bodies():
    net = tiny()
    assert [id(p) for p in shared_kernels(net)] == [id(net.cell1.body.conv.weight), id(net.cell2.body.conv.weight)]
    assert shared_kernels(tiny(steps=1)) == []
    assert shared_kernels(untie(unroll(net, 4))) == []


# unroll and untie


@pytest.mark.parametrize("norm_mode", MODES)
@pytest.mark.parametrize("steps", SUPPORTED)
def test_unroll_is_the_call_with_these_steps(x, norm_mode, steps):
    net = tiny(norm_mode=norm_mode).eval()
    fixed = unroll(net, steps)
    assert torch.equal(fixed(x), net(x, steps=steps))
    assert torch.equal(fixed(x, steps=steps), fixed(x))
    assert torch.equal(unroll(fixed)(x), fixed(x))


def test_unroll_shares_its_parameters_and_holds_the_needed_norms_only():
    net = tiny()
    fixed = unroll(net, (4, 2))
    path = {"cell1": [net.cell1.norms[4][t] for t in range(4)], "cell2": [net.cell2.norms[4][t] for t in range(2)]}
    path["transition"] = [net.transition.norms[4][0]]
    assert {cell: len(entries) for cell, entries in table(fixed.state_dict()).items()} == {k: len(v) for k, v in path.items()}
    for cell, groups in path.items():
        assert fixed.get_submodule(cell).body is net.get_submodule(cell).body
        assert all(a[0] is b[0] for a, b in zip(fixed.get_submodule(cell).norms[0], groups, strict=True))
    assert kernels(fixed.state_dict()) == KERNELS
    assert {id(p) for p in fixed.parameters()} < {id(p) for p in net.parameters()}
    assert len(batch_norms(net)) == len(batch_norms(tiny()))


def test_hooks_on_an_unrolled_network_are_its_own(x):
    net = tiny().eval()
    fixed, calls = unroll(net, 2), []
    for module in (fixed, fixed.cell1):
        module.register_forward_hook(lambda *_: calls.append(1))
    net(x, steps=2)
    assert not calls
    fixed(x)
    assert len(calls) == 2


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_standard_network_is_the_same_function(steps, training):
    net = random_model("r2", steps=(1, 2, 3, 4), width=0.125)
    randomize_norms(net)
    fixed = unroll(net.train(training), steps)
    standard = untie(fixed)
    assert standard.training == training
    x = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(standard(x), fixed(x), rtol=0, atol=1e-5)
    for a, b in zip(batch_norms(standard), batch_norms(fixed), strict=True):
        torch.testing.assert_close((a.running_mean, a.running_var), (b.running_mean, b.running_var), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm_mode", MODES)
@pytest.mark.parametrize("steps", SUPPORTED)
def test_standard_network_has_independent_kernels(x, norm_mode, steps):
    net = tiny(norm_mode=norm_mode).eval()
    standard = untie(unroll(net, steps))
    expected = net(x, steps=steps)
    torch.testing.assert_close(standard(x), expected, rtol=0, atol=1e-5)
    assert storages(standard).isdisjoint(storages(net))
    for cell in standard.recurrent_cells():
        assert len({body.conv.weight.data_ptr() for body in cell.bodies}) == len(cell.bodies)
        for body in cell.bodies:
            before = standard(x)
            with torch.no_grad():
                body.conv.weight.mul_(1.5)
            assert not torch.allclose(standard(x), before)
    assert torch.equal(net(x, steps=steps), expected)


@pytest.mark.parametrize("norm_mode", MODES)
def test_untie_takes_any_network_of_one_step_count(x, norm_mode):
    net = tiny(steps=3, norm_mode=norm_mode).eval()
    torch.testing.assert_close(untie(net)(x), net(x), rtol=0, atol=1e-5)


def test_untie_refuses_an_adjustable_network():
    with pytest.raises(InputError, match=r"untie\(unroll\(model, steps\)\)"):
        untie(tiny())


# What PyTorch does with modules


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile_makes_one_graph_a_step_count(x, training):
    net = tiny().train(training)
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    some = (2, 4, (3, 2))
    for graphs, steps in enumerate(some, start=1):
        assert torch.equal(compiled(x, steps=steps), net(x, steps=steps))
        assert counter.frame_count == graphs
    for steps in (*reversed(some), *some):
        compiled(torch.rand_like(x), steps=steps)
    assert counter.frame_count == len(some)


@pytest.mark.parametrize("steps", [2, 3, 4, (4, 2)])
def test_export(x, steps):
    net = tiny().eval()
    exported = torch.export.export(unroll(net, steps), (x,))
    torch.testing.assert_close(exported.module()(x), net(x, steps=steps))
    assert kernels(exported.state_dict) == KERNELS


def test_deepcopy_is_independent(x):
    net = tiny().eval()
    expected = [net(x, steps=steps) for steps in SUPPORTED]
    other = copy.deepcopy(net)
    assert all(map(torch.equal, expected, (other(x, steps=steps) for steps in SUPPORTED)))
    assert storages(other).isdisjoint(storages(net))
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    assert all(map(torch.equal, expected, (net(x, steps=steps) for steps in SUPPORTED)))


def through_torch_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_pickle(net):
    return pickle.loads(pickle.dumps(net))


@pytest.mark.parametrize("round_trip", [through_pickle, through_torch_save])
@pytest.mark.parametrize(
    "change", [lambda net: net, lambda net: unroll(net, 3), lambda net: untie(unroll(net, 3))], ids=["itself", "unroll", "untie"]
)
def test_pickle(x, round_trip, change):
    net = change(tiny()).eval()
    other = round_trip(net)
    assert other.steps == net.steps
    assert not changed(net.state_dict(), other.state_dict())
    assert torch.equal(other(x, steps=3), net(x, steps=3))


def test_to_another_dtype(x):
    net = tiny().eval()
    expected = [net(x, steps=steps) for steps in SUPPORTED]
    net.to(torch.float64)
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float64, torch.int64}
    for steps, output in zip(SUPPORTED, expected, strict=True):
        torch.testing.assert_close(net(x.double(), steps=steps), output.double(), rtol=1e-4, atol=1e-5)


def test_sync_batch_norm_replaces_every_norm(x):
    net = tiny()
    names, entries, used = list(net.state_dict()), (2 + 3 + 4) + 3 + len(LOWER_234), set()
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net).eval()
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in net.modules()) == entries
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert list(net.state_dict()) == names
    for norm in batch_norms(net):
        norm.register_forward_hook(lambda module, *_: used.add(module))
    for steps in (2, 3, 4):
        net(x, steps=steps)
    assert len(used) == entries


def test_moving_average_moves_what_changed(x):
    net = tiny()
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    ema.update_parameters(net)
    start = clone(ema.module.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x, steps=2).square().mean().backward()
    optimizer.step()
    ema.update_parameters(net)
    moved = {name for name in changed(start, net.state_dict()) if start[name].is_floating_point()}
    assert "cell2.norms.2.1.0.running_var" in moved
    assert not any(name.startswith(("cell2.norms.3.", "cell2.norms.4.")) for name in moved)
    averaged = ema.module.state_dict()
    assert {name for name in changed(start, averaged) if start[name].is_floating_point()} == moved
    for name in moved:
        torch.testing.assert_close(averaged[name], (start[name] + net.state_dict()[name]) / 2)
    assert ema(x, steps=3).shape == net(x, steps=3).shape


def _random_r3():
    model = create_model("r3", steps=(1, 2, 3))
    for norm in batch_norms(model):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(model.get_parameter("head.weight"), std=0.1)
    return model.eval()


def test_a_cell_that_takes_no_step_is_left_out():
    model = _random_r3()
    model.offer(model.possible_settings())
    x = torch.rand(1, 1, 12, 14)
    alone = copy.copy(model)
    alone._modules = {name: module for name, module in model._modules.items() if name != "cell2"}
    alone.find_steps()
    torch.testing.assert_close(model(x, (2, 0, 1)), alone(x, alone.offer([(2, 1)]) or (2, 1)))
    for own in ((1, 0, 0), (2, 0, 1), (3, 2, 0)):
        plain = unroll(model, own)
        torch.testing.assert_close(plain(x), model(x, own))
        torch.testing.assert_close(untie(plain)(x), model(x, own))
    assert (0, 1, 1) not in model.possible_settings()  # the second cell has no norms for nothing upstream
    assert not create_model("r2", steps=(2, 3)).holds((2, 0))  # a cell that pools


def test_names_that_moved_to_the_module_of_networks_are_still_found_in_that_of_cells():
    assert (rcnet.cell.RecurrentNet, rcnet.cell.unroll, rcnet.cell.untie) == (RecurrentNet, unroll, untie)
    with pytest.raises(AttributeError, match=r"'rcnet.cell' has no attribute 'replace'"):
        rcnet.cell.replace  # noqa: B018
