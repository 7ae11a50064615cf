import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rcnet
from rcnet.about import About, Noise
from rcnet.cell import batch_norms, shared_kernels
from rcnet.data.images import pixels_of, random_patches, read_folder
from rcnet.errors import InputError
from rcnet.evaluation import denoising_results, recalibrate
from rcnet.models import create_model, load
from rcnet.training import list_recipes, read_recipe, train
from rcnet.training.loop import Trainer
from rcnet.training.optimizer import Muon, learning_rate_factor, make_optimizers, orthogonalize
from rcnet.training.recipe import Optimizer, recipe_from
from rcnet.training.start import take_weights
from rcnet.training.steps import check_probabilities, draw_steps, expected_cost, offer

from .conftest import IMAGES, that_wait

DATA = IMAGES / "bsd"
TINY = [
    "model.width=8", "batch=2", "denoising.patch=24", "precision=fp32", "minutes=0", "ema=0.9", "log_every=1",
]  # fmt: skip


def tiny(*overrides):
    return read_recipe("r3_fast", [*TINY, "iterations=6", *overrides])


def command(out, *extra, iterations=40):
    return [
        sys.executable, "-m", "rcnet", "train", "r3_fast", *TINY, f"iterations={iterations}", "checkpoint_minutes=0",
        "--data", str(DATA), "--out", str(out), *extra,
    ]  # fmt: skip


def wait_for_iteration(out, iteration, process):
    log, deadline = out / "log.jsonl", time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= iteration:
            return
        time.sleep(0.01)
    raise AssertionError(f"never reached iteration {iteration}: {process.communicate()}")


def tensors(out):
    return load(out / "weights.safetensors").state_dict()


def test_a_killed_run_resumed_ends_with_the_weights_of_one_left_alone(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, capture_output=True)
    waits = environment | that_wait(tmp_path, 35)
    process = subprocess.Popen(command(tmp_path / "killed"), env=waits, stderr=subprocess.PIPE)
    wait_for_iteration(tmp_path / "killed", random.randint(3, 30), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "weights.safetensors").exists()
    subprocess.run(command(tmp_path / "killed", "--resume"), check=True, env=environment, capture_output=True)
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    iterations = [json.loads(line)["iteration"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert iterations == list(range(1, 41))


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(command(tmp_path / "run", iterations=100_000), stderr=subprocess.PIPE, text=True)
    wait_for_iteration(tmp_path / "run", 3, process)
    with pytest.raises(InputError, match="another process is using"):
        train(tiny("iterations=100_000"), DATA, tmp_path / "run", resume=True, progress=False)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["iteration"] >= 3


def stopped(recipe, out):
    """A run that Ctrl-C stopped after four iterations."""
    run = Trainer(recipe, DATA, out, False)
    loss, run.task = run.task.loss, replace(run.task, loss=lambda x, y: interrupt(run) or loss(x, y))
    with pytest.raises(KeyboardInterrupt):
        run.go(False, time.perf_counter)
    assert run.iteration == 4


def logged(out):
    return [(line["iteration"], line["loss"]) for line in map(json.loads, (out / "log.jsonl").read_text().splitlines())]


def test_a_run_stopped_by_ctrl_c_and_resumed_is_exact(tmp_path):
    recipe = tiny("iterations=8", "log_every=3")
    train(recipe, DATA, tmp_path / "whole", progress=False)
    stopped(recipe, tmp_path / "stopped")
    train(recipe, DATA, tmp_path / "stopped", resume=True, progress=False)
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")
    assert [iteration for iteration, _ in logged(tmp_path / "whole")] == [3, 6, 8]  # the last line is that of the end


@contextmanager
def full_disk(size):
    """No file grows beyond so many bytes: the system then refuses to write as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_the_last_checkpoint_stays_and_training_goes_on_later(tmp_path):
    recipe = tiny("iterations=8", "checkpoint_minutes=0")
    train(recipe, DATA, tmp_path / "whole", progress=False)
    stopped(recipe, tmp_path / "stopped")
    with full_disk(1000), pytest.raises(OSError, match=r"stopped/checkpoint\.pt"):
        train(recipe, DATA, tmp_path / "stopped", resume=True, progress=False)
    assert torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)["iteration"] == 4
    train(recipe, DATA, tmp_path / "stopped", resume=True, progress=False)
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(("size", "name"), [(10, "log.jsonl"), (1000, "checkpoint.pt")])
def test_on_a_full_disk_training_names_the_file_and_may_be_tried_again(run, size, name):
    command = ("train", "r3_fast", *TINY, "iterations=2", "--data", DATA, "--out", "mine")
    with full_disk(size):
        status, _, err = run(*command)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"rcnet: mine/{name}: ")
    assert run(*command)[0] == 0


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_on_a_full_disk_an_export_names_the_file_and_leaves_the_old_one(run, suffix):
    Path(f"mine.{suffix}").write_text("old")
    with full_disk(1000):
        status, _, err = run("export", "r3_fast.bsd-gray-25", "--steps", "1", "-o", f"mine.{suffix}")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"rcnet: mine.{suffix}: ")
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [(f"mine.{suffix}", "old")]


def test_what_training_writes_may_be_read_as_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        train(tiny(), DATA, tmp_path / "run", progress=False)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()}
    assert set(modes) >= {"checkpoint.pt", "weights.safetensors", "result.json", "log.jsonl"}
    assert set(modes.values()) == {0o640}


def test_finished_weights_are_not_overwritten_where_the_checkpoint_is_gone(tmp_path):
    train(tiny(), DATA, tmp_path / "run", progress=False)
    (tmp_path / "run" / "checkpoint.pt").unlink()
    weights = (tmp_path / "run" / "weights.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"no checkpoint\.pt to resume from"):
        train(tiny("iterations=2"), DATA, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == weights


def test_weights_that_are_gone_come_back_from_the_checkpoint(tmp_path):
    train(tiny(), DATA, tmp_path / "run", progress=False)
    before = tensors(tmp_path / "run")
    (tmp_path / "run" / "weights.safetensors").unlink()
    train(tiny(), DATA, tmp_path / "run", resume=True, progress=False)
    after = tensors(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("moment", ["loss", "average"])
def test_a_signal_at_any_moment_ends_the_run_after_a_whole_iteration(tmp_path, monkeypatch, moment):
    run = Trainer(tiny("iterations=8"), DATA, tmp_path / "run", False)
    if moment == "loss":
        loss, run.task = run.task.loss, replace(run.task, loss=lambda x, y: interrupt(run) or loss(x, y))
    else:  # after all processes have told each other that none is to stop
        update = run.average.update_parameters
        monkeypatch.setattr(
            run.average, "update_parameters", lambda model: update(model) or (run.iteration == 3 and interrupt(run))
        )
    with pytest.raises(KeyboardInterrupt):
        run.go(False, time.perf_counter)
    assert run.iteration == 4
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["iteration"] == 4


def interrupt(run):
    if run.iteration == 3 and not run.asked:
        signal.raise_signal(signal.SIGINT)  # to this thread, whatever threads a library has started


def test_a_run_is_resumed_with_the_same_data_only(tmp_path):
    train(tiny(), DATA, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="another run: data"):
        train(tiny(), DATA / "test", tmp_path / "run", resume=True, progress=False)
    other = tiny("log_every=5", "classification.crop=0")  # neither is of what the weights depend on
    assert train(other, DATA, tmp_path / "run", resume=True, progress=False)["iterations"] == 6


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"iteration": 1}\n{"iteration": 2}\n{"iter')
    train(tiny(), DATA, tmp_path / "run", resume=resume, progress=False)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_training_removes_noise_and_records_itself(tmp_path):
    recipe = read_recipe(
        "r3_fast",
        [*TINY, "iterations=300", "optimizer.lr=2e-3", "optimizer.norm_lr=8", "denoising.patch=48", "denoising.holdout=2"],
    )
    result = train(recipe, DATA, tmp_path / "run", progress=False)
    images = read_folder(DATA / "test", 1)
    untrained = denoising_results(create_model("r3_fast"), images, 25, (1, 3))
    trained = denoising_results(load(tmp_path / "run" / "weights.safetensors"), images, 25, (1, 3))
    assert all(after["psnr"] > before["psnr"] + 1 for before, after in zip(untrained, trained, strict=True))
    assert [row["steps"] for row in result["validation"]] == [1, 2, 3]
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"recipe", "seed", "epochs", "hardware", "minutes", "torch", "data"} <= result.keys()
    assert load(tmp_path / "run" / "weights.safetensors").metadata["training"] == result


def test_blind_8_bit_and_colour_training(tmp_path):
    noise = ("denoising.sigma=[5,50]", "denoising.as_8bit=1.0", "denoising.camera=0.5", "denoising.loss=weighted")
    recipe = tiny("model.in_chans=3", "model.noise_level=true", *noise)
    task = Trainer(recipe, DATA, tmp_path / "run", False).task
    batches = [task.batch(np.random.default_rng(k), k) for k in range(12)]
    assert all(torch.equal((batch.x * 255).round() / 255, batch.x) for batch in batches)
    told = torch.cat([batch.sigma for batch in batches])
    assert 0 < (told < 0).sum() < len(told)
    assert torch.equal(told[told >= 0], torch.cat([batch.level for batch in batches])[told >= 0])
    train(recipe, DATA, tmp_path / "run", progress=False)
    model = load(tmp_path / "run" / "weights.safetensors")
    assert model.about == replace(create_model(**recipe.model).about, noise=Noise((5.0, 50.0), True, 0.5))
    x = torch.rand(1, 3, 16, 16)
    assert not torch.equal(model(x, 1, sigma=50), model(x, 1))


def test_a_run_ends_with_its_minutes_and_its_schedule_with_it(tmp_path):
    seconds = itertools.count()  # each look at the clock takes one
    recipe = replace(tiny(), minutes=0.1)
    result = train(recipe, DATA, tmp_path / "run", progress=False, clock=lambda: float(next(seconds)))
    assert 1 < result["iterations"] <= 6
    assert result["minutes"] == 0.1
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["iteration"] == result["iterations"]


def test_frozen_statistics_stand_still_while_all_else_trains(tmp_path, monkeypatch):
    seen = []

    def step(run, *arguments):
        loss = before(run, *arguments)
        state = run.model.state_dict()
        seen.append((state["cell1.norms.0.0.0.running_mean"].clone(), state["cell1.norms.0.0.0.weight"].clone()))
        return loss

    before = Trainer.step
    monkeypatch.setattr(Trainer, "step", step)
    overrides = ("model.steps=1", "probabilities=[]", "iterations=8", "frozen=0.5", "ema=0.0")
    train(tiny(*overrides), DATA, tmp_path / "run", progress=False)
    moved = [[not torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(seen)]
    assert [statistics for statistics, _ in moved] == [True] * 3 + [False] * 4
    assert all(scale for _, scale in moved[3:])


def test_statistics_are_frozen_at_those_of_the_average(tmp_path):
    run = Trainer(tiny("frozen=0.5", "ema=0.9"), DATA, tmp_path / "run", False)
    own, kept = batch_norms(run.model)[0], batch_norms(run.average.module)[0]
    kept.running_mean.fill_(0.25)
    kept.running_var.fill_(4.0)
    weight = own.weight.clone()
    run.freeze()
    assert (own.training, own.running_mean.unique().tolist(), own.running_var.unique().tolist()) == (False, [0.25], [4.0])
    assert torch.equal(own.weight, weight)
    kept.running_mean.fill_(9.0)  # what the average reads later is frozen, too
    run.freeze()
    assert own.running_mean.unique().tolist() == [0.25]


@pytest.mark.parametrize(
    ("progress", "warmup", "decay", "factor"),
    [(0, 0.1, 1, 0), (0.05, 0.1, 0, 0.5), (0.5, 0, 1, 0.5), (0.5, 0, 0.5, 1), (0.75, 0, 0.5, 0.5), (1, 0.1, 1, 0)],
)
def test_schedule(progress, warmup, decay, factor):
    assert learning_rate_factor(progress, warmup, decay) == pytest.approx(factor)


def rates_of(model, config):
    """The learning rate of each parameter, by its id."""
    groups = [group for optimizer in make_optimizers(model, config) for group in optimizer.param_groups]
    return {id(p): group["base_lr"] for group in groups for p in group["params"]}


def test_batch_norms_learn_at_a_rate_of_their_own():
    model = create_model("r3", steps=(1, 2))
    norms = {id(p) for norm in batch_norms(model) for p in norm.parameters()}
    rates = rates_of(model, Optimizer(name="muon", lr=1e-3, muon_lr=0.04, norm_lr=64))
    assert len(norms) == 2 * len(batch_norms(model)) > 0
    for parameter in model.parameters():
        others = 0.02 if id(parameter) in {id(p) for p in shared_kernels(model)} else 1e-3
        assert rates[id(parameter)] == pytest.approx(0.064 if id(parameter) in norms else others)


class FromLevel(nn.Module):
    """A norm whose scale another layer makes."""

    def __init__(self):
        super().__init__()
        self.norm, self.scale = nn.BatchNorm2d(8), nn.Conv2d(1, 8, 1)


def test_layers_that_make_scales_and_shifts_are_no_kernels_of_cells():
    net = rcnet.RecurrentNet(cell=rcnet.RecurrentCell(nn.Conv2d(8, 8, 3), lambda: [FromLevel()], (1, 2)))
    norm = net.cell.norms[0][0][0]
    rates = rates_of(net, Optimizer(name="muon", lr=1e-3, muon_lr=0.04, norm_lr=64))
    assert rates[id(net.cell.body.weight)] == pytest.approx(0.02)
    assert rates[id(norm.norm.weight)] == rates[id(norm.scale.bias)] == pytest.approx(0.064)
    assert rates[id(norm.scale.weight)] == 1e-3


def test_shared_kernels_learn_at_half_the_rate():
    model = create_model("r3", steps=(1, 2))
    rates = rates_of(model, Optimizer(name="sgd", lr=0.1))
    shared = {id(p) for p in shared_kernels(model)}
    assert len(rates) == len(list(model.parameters()))
    assert len(shared) == 3
    assert all(rate == pytest.approx(0.05 if key in shared else 0.1) for key, rate in rates.items())
    fixed = create_model("r3", steps=1)
    assert not shared_kernels(fixed)  # one step shares nothing


def test_weight_decay_spares_norms_and_biases():
    model = create_model("r3")
    for optimizer in make_optimizers(model, Optimizer(name="muon", weight_decay=0.1)):
        for group in optimizer.param_groups:
            assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_muon_takes_the_kernels_of_cells_and_its_update_is_orthogonal():
    model = create_model("r3")
    muon = make_optimizers(model, Optimizer(name="muon", muon_lr=0.04))[0]
    assert isinstance(muon, Muon)
    kernels = muon.param_groups[0]["params"]
    assert {id(p) for p in kernels} == {id(p) for p in shared_kernels(model)}
    muon.param_groups[0]["lr"] = 0.02
    before = [p.detach().clone() for p in kernels]
    for p in kernels:
        p.grad = torch.randn_like(p)
    muon.step()
    for p, old in zip(kernels, before, strict=True):
        singular = torch.linalg.svdvals((p.detach() - old).flatten(1) / 0.02)
        assert 0.6 < singular.min() <= singular.max() < 1.3


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_orthogonalize_keeps_the_singular_vectors(shape):
    matrices = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    core = u.transpose(-2, -1) @ orthogonalize(matrices) @ v.transpose(-2, -1)
    assert core.diagonal(dim1=-2, dim2=-1).min() > 0.6
    assert (core - torch.diag_embed(core.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-3


def test_steps_are_drawn_with_their_probabilities():
    counts = dict.fromkeys((2, 3, 4), 0)
    for iteration in range(2000):
        (n,) = draw_steps((2, 3, 4), (0.2, 0.3, 0.5), "sampled", np.random.default_rng([0, iteration]))
        counts[n] += 1
    for n, expected in zip(counts, (0.2, 0.3, 0.5), strict=True):
        assert counts[n] / 2000 == pytest.approx(expected, abs=0.04)
    assert draw_steps((2, 3), (0.4, 0.6), "aggregated", np.random.default_rng(0)) == {2: 0.4, 3: 0.6}
    assert draw_steps((2, 4), (0.4, 0.6), "sandwich", np.random.default_rng(0)) == {4: 0.5, 2: 0.5}
    drawn = [draw_steps((1, 2, 3, 4), (0.25,) * 4, "sandwich", np.random.default_rng(seed)) for seed in range(20)]
    assert {tuple(weights) for weights in drawn} == {(4, 1, 2), (4, 1, 3)}
    assert expected_cost((10, 20, 40), (0.5, 0.25, 0.25), "sampled") == 20
    assert expected_cost((10, 20, 40), (0.5, 0.5, 0), "aggregated") == 30
    assert expected_cost((10, 20, 40), (0.5, 0.25, 0.25), "sandwich") == 70
    assert expected_cost((10, 20, 30, 60), (0.25,) * 4, "sandwich") == 95
    assert expected_cost((40,), (1.0,), "sandwich") == 40
    with pytest.raises(InputError, match="3 numbers that sum to 1"):
        check_probabilities((0.5, 0.5), (2, 3, 4))
    with pytest.raises(InputError, match="sum to 1"):
        check_probabilities((0.5, 0.6), (2, 3))


def test_the_aggregated_loss_is_the_weighted_sum_over_all_steps(tmp_path):
    run = Trainer(
        tiny("objective='aggregated'", "probabilities=[0.2, 0.3, 0.5]", "optimizer.clip=0.0"), DATA, tmp_path / "run", False
    )
    model = create_model("r3_fast", width=8)
    model.load_state_dict(run.model.state_dict())
    rng = np.random.default_rng([0, 0])
    draw_steps(model.settings, run.probabilities, "aggregated", rng)
    batch = run.task.batch(rng, 0)
    parts = zip(model.settings, run.probabilities, strict=True)
    expected = sum(p * run.task.loss(model(batch.x, n), batch).item() for n, p in parts)
    assert run.step() == pytest.approx(expected, rel=1e-4)


def test_the_average_of_the_weights_is_what_is_saved(tmp_path):
    run = Trainer(tiny("warmup=0.0"), DATA, tmp_path / "run", False)
    start = run.model.get_parameter("head.weight").detach().clone()
    run.step()
    first = run.model.get_parameter("head.weight").detach().clone()
    run.step()
    second = run.model.get_parameter("head.weight").detach()
    run.finish()
    saved = tensors(tmp_path / "run")["head.weight"]
    assert not torch.equal(start, first)
    decay = 3 / 12  # at iteration 2: it rises to the recipe's 0.9
    torch.testing.assert_close(saved, decay * first + (1 - decay) * second)


def test_training_starts_from_weights(tmp_path):
    train(tiny(), DATA, tmp_path / "first", progress=False)
    first = tmp_path / "first" / "weights.safetensors"
    second = Trainer(tiny(f"init='{first}'"), DATA, tmp_path / "second", False)
    assert all(torch.equal(tensor, second.model.state_dict()[name]) for name, tensor in load(first).state_dict().items())
    assert second.finish()["before"] == load(first).metadata["training"]
    with pytest.raises(InputError, match="'width': 8"):
        Trainer(tiny(f"init='{first}'", "model.width=16"), DATA, tmp_path / "third", False)
    with pytest.raises(InputError, match="no file of weights"):
        Trainer(tiny("init='nowhere.safetensors'"), DATA, tmp_path / "third", False)


def test_training_takes_what_fits_of_weights_of_other_steps_and_heads(tmp_path, capsys):
    train(tiny("model.steps=[1,2]", "probabilities=[]"), DATA, tmp_path / "first", progress=False)
    first = tmp_path / "first" / "weights.safetensors"
    capsys.readouterr()
    run = Trainer(tiny(f"init='{first}'"), DATA, tmp_path / "more", False)
    taken, own = load(first).state_dict(), run.model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in taken.items())
    told = f"rcnet: init = '{first}' has no weights for "
    assert capsys.readouterr().err == f"{told}cell1.norms, cell2.norms, cell3.norms, which start from fresh weights\n"
    Trainer(tiny(f"init='{first}'", "model.in_chans=3"), DATA, tmp_path / "colour", False)
    assert capsys.readouterr().err == f"{told}cell1.norms, cell2.norms, cell3.norms, head, stem, which start from fresh weights\n"
    run.step()


def test_a_network_that_takes_a_level_more_starts_as_it_was(tmp_path):
    model = rcnet.create_model("r3_fast", steps=(1, 2), width=8, noise_level=True).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    rcnet.save(model, tmp_path / "one.safetensors")
    more = rcnet.create_model("r3_fast", steps=(1, 2), width=8, noise_level=True, coarse_level=True).eval()
    assert take_weights(str(tmp_path / "one.safetensors"), more)[1] == ""
    x, coarse = torch.rand(1, 1, 12, 12), torch.tensor([15.0, 9.0]).view(1, 2, 1, 1)
    with torch.inference_mode():
        for told in (15.0, coarse):
            torch.testing.assert_close(more(x, 2, sigma=told), model(x, 2, sigma=15.0))


def test_a_run_goes_on_without_the_weights_that_it_started_from(tmp_path):
    train(tiny(), DATA, tmp_path / "first", progress=False)
    first = tmp_path / "first" / "weights.safetensors"
    recipe = tiny(f"init='{first}'")
    started = Trainer(recipe, DATA, tmp_path / "second", False)
    started.step()
    started.keep()
    first.unlink()
    assert train(recipe, DATA, tmp_path / "second", resume=True, progress=False)["before"]["iterations"] == 6


def test_a_compiled_run_is_one_graph_a_step_count_and_equal(tmp_path):
    torch._dynamo.reset()
    overrides = ["model.steps=[1,2]", "probabilities=[]", "optimizer.name=sgd", "optimizer.lr=1e-3"]
    eager = Trainer(tiny(*overrides), DATA, tmp_path / "eager", False)
    fast = Trainer(tiny(*overrides, "compile=true"), DATA, tmp_path / "fast", False)
    torch._dynamo.utils.counters.clear()
    for _ in range(6):
        assert eager.step() == pytest.approx(fast.step(), rel=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_length_on_the_command_line_replaces_the_recipes():
    assert read_recipe("r3", ["epochs=5"]).minutes == 0
    assert read_recipe("cifar_fast", ["iterations=7"]).epochs == 0
    with pytest.raises(InputError, match=r"minutes = 7 and epochs = 3 are two lengths of one run"):
        read_recipe("cifar_fast", ["minutes=7", "epochs=3"])
    assert read_recipe("cifar_fast", ["batch=7"]).epochs > 0


@pytest.mark.parametrize("override", ["minutes=0", "epochs=0"])
def test_a_run_without_a_length_is_refused(override):
    with pytest.raises(InputError, match="give iterations=N"):
        read_recipe("r3_fast", [override])
    assert read_recipe("r3_fast", [override, "iterations=7"]).iterations == 7


def test_epochs(tmp_path):
    run = Trainer(replace(tiny("batch=4"), epochs=5.0), DATA, tmp_path / "run", False)
    assert run.iterations == round(5 * run.task.data["images"] / 4)


def test_an_existing_run_is_not_touched_without_resume(tmp_path):
    train(tiny(), DATA, tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match="already contains a run"):
        train(tiny(), DATA, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="another run: seed was 0 and is now 1"):
        train(replace(tiny(), seed=1), DATA, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    (tmp_path / "run" / "checkpoint.pt").write_bytes(before[: len(before) // 2])
    with pytest.raises(InputError, match="not a checkpoint"):
        train(tiny(), DATA, tmp_path / "run", resume=True, progress=False)


def test_the_eight_flips_and_rotations_of_a_patch_all_come():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    patches = random_patches(pixels_of([image]), 8, 200, np.random.default_rng(0))
    assert len({tuple((patch * 255).round().int().flatten().tolist()) for patch in patches}) == 8


def test_every_patch_is_a_part_of_an_image_and_every_place_comes():
    images = [np.arange(1, 31, dtype=np.uint8).reshape(5, 6, 1), np.arange(101, 122, dtype=np.uint8).reshape(7, 3, 1)]
    parts = {}
    for number, image in enumerate(images):
        for y in range(image.shape[0] - 2):
            for x in range(image.shape[1] - 2):
                window = image[y : y + 3, x : x + 3, 0]
                for turned in (np.rot90(part, k) for part in (window, window[:, ::-1]) for k in range(4)):
                    parts[turned.tobytes()] = (number, y, x)
    patches = (random_patches(pixels_of(images), 3, 2000, np.random.default_rng(0)) * 255).round().to(torch.uint8)
    places = [parts[patch.numpy().tobytes()] for patch in patches]
    assert set(places) == set(parts.values())
    assert 900 < sum(number == 0 for number, _, _ in places) < 1100


STAIRS = ((1, 0, 0), (1, 1, 0), 1, (2, 1, 1), (2, 2, 1), 2, (3, 2, 2), (3, 3, 2), 3)


@pytest.mark.parametrize(
    ("name", "options", "settings", "expected"),
    [
        ("r3_fast", {}, "unified", (1, 2, 3)),
        ("r3_fast", {}, "staircase", STAIRS),
        (
            "r2",
            {"steps": (2, 3, 4), "unified": False},
            "staircase",
            (2, (3, 2), 3, (4, 3), 4),
        ),  # pooling cells stay
        ("r2", {"steps": (1, 2), "unified": False}, "free", (1, (1, 2), (2, 1), 2)),
        ("r3_fast", {}, [(1, 1, 0), (3, 3, 3)], ((1, 1, 0), 3)),
    ],
)
def test_settings_to_train(name, options, settings, expected):
    model = create_model(name, **options)
    offer(model, settings)
    assert model.choices == expected


def test_a_staircase_of_cells_of_different_steps():
    body = nn.Conv2d(4, 4, 3, padding=1)
    one, three = (rcnet.RecurrentCell(body, list, steps, norm_mode="none") for steps in ((1,), (1, 2, 3)))
    model = rcnet.RecurrentNet(one=one, three=three)
    offer(model, "staircase")
    assert model.settings == ((1, 0), (1, 1), (1, 2), (1, 3))


def test_probabilities_may_be_zero_and_not_less():
    assert check_probabilities((0.0, 1.0), (1, 2)) == (0, 1)
    assert check_probabilities((), (1, 2, 3, 4)) == (0.25,) * 4
    assert check_probabilities((0.3,), (2,)) == (1,)
    assert check_probabilities((0.25, 0.75 + 5e-7), (1, 2)) == pytest.approx((0.25, 0.75))
    assert sum(check_probabilities((0.25, 0.75 + 5e-7), (1, 2))) == pytest.approx(1, abs=1e-12)
    for wrong in ((-0.1, 1.1), (0.5, 0.5 + 1.5e-6)):
        with pytest.raises(InputError, match="sum to 1"):
            check_probabilities(wrong, (1, 2))
    assert draw_steps((1, 2, 3), (0.0, 0.4, 0.6), "aggregated", np.random.default_rng(0)) == {2: 0.4, 3: 0.6}
    assert expected_cost((10, 20, 40), (0, 0.5, 0.5), "aggregated") == 60
    drawn = [draw_steps((1, 2), (0.0, 1.0), "sampled", np.random.default_rng(seed)) for seed in range(9)]
    assert drawn == [{2: 1.0}] * 9
    assert draw_steps((3,), (1.0,), "sandwich", np.random.default_rng(0)) == {3: 1.0}


def test_free_settings_need_norms_for_all():
    with pytest.raises(InputError, match="have no batch norms in this network"):
        offer(create_model("r3_fast"), "free")


def test_a_staircase_is_trained_saved_and_offered(tmp_path):
    recipe = tiny("settings='staircase'", "probabilities=[]", "iterations=30", "denoising.holdout=1")
    result = train(recipe, DATA, tmp_path / "run", progress=False)
    assert [row["steps"] for row in result["validation"]] == list(STAIRS)
    model = load(tmp_path / "run" / "weights.safetensors")
    assert model.choices == STAIRS
    fresh, tables = create_model(**recipe.model), model.state_dict()
    moved = {k for k, v in fresh.state_dict().items() if "running_mean" in k and not torch.equal(v, tables[k])}
    assert any(k.startswith("cell3.norms.3.1") for k in moved)  # the second step of the third cell after three of the second
    with pytest.raises(InputError, match="valid: 1,0,0; 1,1,0; 1; 2,1,1"):
        model(torch.rand(1, 1, 8, 8), (1, 2, 0))


def test_patches_larger_than_an_image_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"denoising\.patch is at most 128"):
        train(tiny("denoising.patch=200"), DATA, tmp_path / "run", progress=False)


@pytest.mark.parametrize("name", list_recipes())
def test_bundled_recipes_are_whole(name):
    recipe = read_recipe(name)
    assert bool(recipe.model) != name.startswith("finetune")  # which train the network of init
    model = create_model(**(recipe.model or {"name": "r2"}))
    offer(model, recipe.settings)
    check_probabilities(recipe.probabilities, model.settings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1", "did you mean 'optimizer'"),
        ("optimizer.lrr=1", "did you mean 'optimizer.lr'"),
        ("batch=many", "it takes a whole number"),
        ("settings=most", r"it takes unified, staircase, free or \[\[a whole number, \.\.\.\], \.\.\.\]"),
        ("batch=0", "batch = 0 is not valid: it takes numbers from 1"),
        ("ema=1.5", "from 0 to 1"),
        ("optimizer.betas=[1,1]", "from 0 to below 1"),
        ("optimizer.momentum=1", "from 0 to below 1"),
        ("denoising.patch=-3", "from 1"),
        ("denoising.sigma=[5, 300]", "from 0 to 255"),
        ("optimizer=3", "it takes a section"),
        ("optimizer.name=lion", "muon, adam, sgd"),
        ("batch", "key=value"),
        ("denoising.sigma=[1, 2, 3]", "sigma"),
        ("batch.size=3", "not a section"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(InputError, match=message):
        read_recipe("r3", [override])


def segmenter():
    net = create_model("r3")
    net.about = About("segment")
    return net


def test_bad_recipes(tmp_path):
    with pytest.raises(InputError, match="r3, r3_fast"):
        read_recipe("r5")
    (tmp_path / "broken.toml").write_text("batch = ")
    with pytest.raises(InputError, match="not a recipe"):
        read_recipe(tmp_path / "broken.toml")
    with pytest.raises(InputError, match="in_chans of r3_fast must be a whole number"):
        train(tiny("model.in_chans=x"), DATA, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="unknown task 'segment': valid: classify, denoise"):
        train(tiny(f"model={{name = '{__name__}:segmenter'}}"), DATA, tmp_path / "run", progress=False)
    for table in ({}, {"model": {}}):
        with pytest.raises(InputError, match="has no name"):
            train(recipe_from(table, "mine.toml"), DATA, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="is outside the class folders"):
        train(recipe_from({"model": {"name": "r2"}}, "mine.toml"), DATA, tmp_path / "run", progress=False)


def test_patches_larger_than_a_drawn_picture_are_refused(tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(np.full((400, 420, 3), 40 * k, np.uint8)).save(folder / f"{k}.png")
    recipe = read_recipe("r3_fast_photo", ["model.width=8", "iterations=1", "minutes=0", "denoising.patch=384"])
    with pytest.raises(InputError, match=r"drawn pictures have 320 pixels a side: denoising\.patch is at most 320"):
        train(recipe, folder, tmp_path / "run", progress=False)


def test_drawn_pictures_are_none_of_the_folder(tmp_path):
    recipe = read_recipe(
        "r3_fast_photo", ["model.width=8", "iterations=1", "minutes=0", "denoising.patch=32", "denoising.drawn=0.4"]
    )
    result = train(recipe, DATA, tmp_path / "run", progress=False)
    images = len(list((DATA / "train").iterdir()))
    assert (result["data"]["images"], result["data"]["drawn"]) == (images, round(images * 2 / 3))


def test_recalibration_is_told_what_training_is(tmp_path):
    recipe = read_recipe(
        "r3_fast_photo",
        ["model.width=8", "batch=2", "iterations=1", "minutes=0", "recalibrate=3", "denoising.patch=32", "denoising.unknown=0.0"],
    )
    run = Trainer(recipe, DATA, tmp_path / "run", False)
    told = [sigma for _, sigma in run.inputs()]
    assert len(told) == 3
    assert all((sigma >= 0).all() for sigma in told)
    recalibrate(run.model, run.inputs())
    known = [norm.running_mean.clone() for norm in batch_norms(run.model)]
    recalibrate(run.model, [x for x, _ in run.inputs()])
    assert any(not torch.equal(mean, norm.running_mean) for mean, norm in zip(known, batch_norms(run.model), strict=True))


def test_a_resumed_run_draws_what_layers_draw_again(tmp_path):
    recipe = tiny("model={name='tests.test_training:dropping'}", "probabilities=[]", "iterations=8")
    train(recipe, DATA, tmp_path / "whole", progress=False)
    stopped(recipe, tmp_path / "stopped")
    train(recipe, DATA, tmp_path / "stopped", resume=True, progress=False)
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def dropping(steps=(1, 2), in_chans=1):
    """A denoiser with dropout."""
    net = create_model("r3_fast", steps=steps, in_chans=in_chans, width=8)
    net.head = nn.Sequential(nn.Dropout(0.5), net.head)
    return net
