"""Training on one's own: from trained weights without losing them; runs that diverge, are stopped, or do not fit their data."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image

import rcnet
import rcnet.data.images
import rcnet.data.labelled
from rcnet.errors import Diverged, InputError
from rcnet.models import load
from rcnet.tasks.task import held_out
from rcnet.training import console, read_recipe, train
from rcnet.training.loop import Trainer

from .conftest import IMAGES
from .test_training import DATA, TINY, stopped, tensors, tiny

ROOT = IMAGES.parent.parent


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Weights of 60 iterations."""
    out = tmp_path_factory.mktemp("first") / "run"
    train(tiny("iterations=60", "optimizer.lr=2e-3", "denoising.patch=48"), DATA, out, progress=False)
    return out / "weights.safetensors"


def continued(first, *overrides):
    return tiny(f"init='{first}'", *overrides)


def test_rates_of_trained_weights_are_those_of_finetuning():
    photo = read_recipe("r3_fast_photo", ["init=r3_fast.photo"])
    assert (photo.optimizer, photo.frozen) == (read_recipe("finetune_denoiser").optimizer, 1)
    assert read_recipe("r3_fast_photo", ["init=r3_fast.photo", "frozen=0.2"]).frozen == 0.2
    assert read_recipe("cifar_fast", ["init=r2.cifar10"]).optimizer == read_recipe("finetune").optimizer
    for name in ("r3_fast_dial", "r3_more", "finetune_denoiser"):  # made for trained weights
        assert replace(read_recipe(name, ["init=r3_fast.bsd-gray-25"]), init="") == replace(read_recipe(name), init="")
    own = read_recipe("r3_fast_photo", ["init=r3_fast.photo", "optimizer.lr=1e-5"]).optimizer
    assert own == replace(read_recipe("r3_fast_photo").optimizer, lr=1e-5)


def test_which_images_are_held_out():
    assert [len(held_out(n, -1, measures=True)) for n in (1, 2, 9, 50, 1000)] == [0, 1, 1, 5, 16]
    assert held_out(1000, -1) == set()
    with pytest.raises(InputError, match="leaves none of the 3"):
        held_out(3, 3)


def test_trained_weights_are_measured_first_and_the_best_are_kept(first, tmp_path, capsys):
    result = train(continued(first, "iterations=20", "evaluations=4"), DATA, tmp_path / "run", progress=False)
    measured = result["measured"]
    held = Trainer(continued(first), DATA, tmp_path / "other", False).task
    assert held.held == 1
    assert result["data"]["images"] == 5
    rows = held.evaluate(load(first))
    assert measured["before"] == pytest.approx(np.mean([row["psnr"] for row in rows]))
    assert f"{first}: psnr {measured['before']:.3f} dB on 1 image held out" in capsys.readouterr().err
    assert [iteration for iteration, _ in measured["along"]] == [5, 10, 15, 20]
    best = max(measured["along"], key=lambda pair: pair[1])
    assert measured["best"] == best
    saved = held.evaluate(load(tmp_path / "run" / "weights.safetensors"))
    assert (
        np.mean([row["psnr"] for row in saved]) == pytest.approx(best[1], abs=1e-3) == pytest.approx(measured["after"], abs=1e-3)
    )


def test_a_run_that_ends_worse_says_so_and_how_to_keep_the_old(run):
    small = ("batch=2", "denoising.patch=24", "precision=fp32", "iterations=4", "evaluations=1")
    arguments = ("train", "r3_fast", "init=r3_fast.bsd-gray-25", *small, "--data", DATA)
    status, out, _ = run(*arguments, "optimizer.lr=0.02", "optimizer.name=adam", "ema=0", "--out", "worse")
    assert status == 0
    last = out.splitlines()[-1]
    assert last.startswith("worse than what it started from (psnr ")
    assert last.endswith("to keep using that: rcnet denoise IN --model r3_fast.bsd-gray-25")
    status, out, _ = run(*arguments, "optimizer.lr=0", "frozen=1", "--out", "same")
    assert status == 0
    assert out.splitlines()[-1].startswith("next: rcnet denoise IN --model ")


def test_a_run_that_is_measured_resumes_exactly(first, tmp_path):
    recipe = continued(first, "iterations=8", "evaluations=4", "optimizer.name=adam", "optimizer.lr=0.02", "ema=0")
    whole = train(recipe, DATA, tmp_path / "whole", progress=False)
    stopped(recipe, tmp_path / "stopped")
    resumed = train(recipe, DATA, tmp_path / "stopped", resume=True, progress=False)
    assert resumed["measured"] == whole["measured"]
    ours, theirs = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_early_stop_ends_a_run_that_gets_no_better(tmp_path):
    still = ["optimizer.name=adam", "optimizer.lr=0", "frozen=1", "ema=0"]
    recipe = tiny("iterations=40", "early_stop=2", "evaluations=20", "denoising.holdout=1", *still)
    result = train(recipe, DATA, tmp_path / "run", progress=False)
    assert [iteration for iteration, _ in result["measured"]["along"]] == [2, 4, 6]
    assert result["iterations"] == 6
    assert train(recipe, DATA, tmp_path / "run", resume=True, progress=False)["iterations"] == 6
    with pytest.raises(InputError, match=r"need images held out from training: denoising\.holdout"):
        train(tiny("best=true", "denoising.holdout=0"), DATA, tmp_path / "none", progress=False)


def test_validation_is_on_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tiny("iterations=4", "best=true", "evaluations=2", "denoising.holdout=1")
    train(recipe, DATA, tmp_path / "run", progress=False, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [point.step for point in events.Scalars("validation/psnr, steps 3, sigma 25.0")] == [2, 4]


def test_a_run_that_diverges_fails_and_names_its_last_checkpoint(run):
    arguments = ("train", "r3_fast", *TINY, "optimizer.name=sgd", "optimizer.clip=0", "warmup=0", "iterations=50", "--data", DATA)
    for lr in ("1e4", "1e9", "1e30"):  # the loss grows, or is inf or nan
        status, out, err = run(*arguments, f"optimizer.lr={lr}", "--out", lr)
        assert (status, out) == (1, "")
        assert err.startswith("rcnet: the run diverged at iteration ")
        assert "lower optimizer.lr, or clip more" in err
        assert not os.path.exists(f"{lr}/weights.safetensors")


def test_loss_and_weights_that_grow_without_bound_are_divergence(tmp_path):
    trainer = Trainer(tiny("ema=0"), DATA, tmp_path / "run", False)
    trainer.step()
    trainer.keep()
    loss = trainer.tracker.state["loss"]
    assert trainer.tracker.problem(1, 100 * loss, trainer.model) == ""  # one odd batch
    for _ in range(3):
        problem = trainer.tracker.problem(1, 1e5 * loss, trainer.model)
    assert problem.startswith("the loss is ")
    assert trainer.tracker.problem(1, float("nan"), trainer.model) == "the loss is nan"
    for value in (1e6, float("nan")):
        with torch.no_grad():
            trainer.model.get_parameter("head.weight").fill_(value)
        with pytest.raises(
            Diverged, match=r"norm of the weights is .*; the last good checkpoint is .*checkpoint\.pt, of iteration 1"
        ):
            trainer.keep()
    assert all(torch.isfinite(x).all() for x in torch.load(tmp_path / "run" / "checkpoint.pt")["model"].values())


def test_a_closed_terminal_saves(tmp_path):
    trainer = Trainer(tiny("iterations=8"), DATA, tmp_path / "run", False)
    loss = trainer.task.loss

    def hang_up(output, batch):
        if trainer.iteration == 3 and not trainer.asked:
            signal.raise_signal(signal.SIGHUP)
        return loss(output, batch)

    trainer.task = replace(trainer.task, loss=hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may run the tests
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.go(False, time.perf_counter)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["iteration"] == 4


def test_nohup_keeps_a_run(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with console.stopped_by_signals(lambda: pytest.fail("stopped")):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_progress_in_a_pipe_is_a_line_a_minute(monkeypatch, capsys):
    seconds = count(0, 20)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(seconds))
    progress = console.Progress(True)
    for i in range(9):
        progress(i / 9, f"iteration {i}")
    progress.end()
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"{int(line.split()[-1]) / 9:6.1%} iteration ") for line in lines)
    assert 2 <= len(lines) <= 3


def test_a_short_run_has_its_log(tmp_path):
    train(tiny("log_every=100"), DATA, tmp_path / "run", progress=False)
    (line,) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["iteration"] == 6


def test_hidden_folders_are_no_data(tmp_path):
    for name in ("a/x.png", "b/y.png", "a/.ipynb_checkpoints/x-checkpoint.png", ".thumbs/t.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(IMAGES / "cat.png", tmp_path / name)
    assert [path.name for path in rcnet.data.images.list_images(tmp_path)] == ["x.png", "y.png"]
    found = rcnet.data.labelled.read_labelled(tmp_path, "train", size=8)
    assert (found.classes, found.labels.tolist()) == (("a", "b"), [0, 1])


def test_all_images_that_cannot_be_read_are_named_at_once(tmp_path, refused):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(IMAGES / "cat.png", tmp_path / folder / "good.png")
        (tmp_path / folder / "bad.png").write_bytes(b"\x89PNG no")
    for recipe in ("r3_fast", "cifar_fast"):
        message = refused("train", recipe, "--data", tmp_path)
        assert "2 images cannot be used: " in message
        assert all(str(tmp_path / folder / "bad.png") in message for folder in ("a", "b"))


def test_a_recipe_of_cifar_says_how_to_take_a_folder_of_classes(tmp_path, run, refused):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / folder / "1.png")
        Image.fromarray(np.full((32, 32, 3), 120, np.uint8)).save(tmp_path / folder / "2.png")
    assert f"rcnet train ... --data {tmp_path} classification.dataset=folder" in refused("train", "r2", "--data", tmp_path)
    small = ("model.width=0.125", "batch=2", "iterations=1", "classification.dataset=folder")
    assert run("train", "r2", "--data", tmp_path, "--out", "mine", *small)[0] == 0


def test_a_run_resumed_with_another_recipe_names_the_key(tmp_path):
    train(tiny(), DATA, tmp_path / "run", progress=False)
    for override, message in {
        "denoising.patch=32": r"denoising\.patch was 24 and is now 32;",
        "optimizer.lr=1": r"optimizer\.lr was 0\.0005 and is now 1\.0;",
        "model.width=4": r"model\.width was 8 and is now 4;",
    }.items():
        with pytest.raises(InputError, match=message):
            train(tiny(override), DATA, tmp_path / "run", resume=True, progress=False)
    with pytest.raises(InputError, match=r"denoising\.patch was 24 and is now 32 \(1 more keys differ\);"):
        train(tiny("seed=3", "denoising.patch=32"), DATA, tmp_path / "run", resume=True, progress=False)
