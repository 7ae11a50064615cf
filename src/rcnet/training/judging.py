"""Training the judge of a denoiser: through the frozen denoiser, on its output."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rcnet.calling import device_of
from rcnet.device import autocast, best_device, channels_last, resolve_precision
from rcnet.errors import Diverged, InputError
from rcnet.models.files import trainings
from rcnet.models.judge import Judge, attach_judge, level_map, levels_of
from rcnet.network import RecurrentNet
from rcnet.tasks import find_task
from rcnet.tasks.task import Batch, Setup
from rcnet.training.console import Progress, clock_text
from rcnet.training.provenance import commit, made_here

RATE = 2e-3  # of AdamW
START = 1000  # iterations with the loss of the levels alone, until the judge is near enough to learn from the denoiser's output
LEVELS = 0.02  # weight of that loss afterwards: where the judge estimates 0, the other loss has no gradient
TOO_LITTLE = (
    0.1  # weight of log(level) estimated too low: noise that is left shows more than detail that is lost (CBDNet, Guo 2019)
)
FLOOR = 0.4 / 255  # error that counts as none: half a level of 8 bits


def train_judge(
    model: RecurrentNet,
    data: str | Path,
    *,
    minutes: float = 12.0,
    batch: int = 4,
    width: int = 24,
    overrides: dict[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Trains a judge for a denoiser that takes two noise levels and attaches it; returns a record of the training.

    It sees the kinds of noise that the denoiser was trained on, which its metadata record.

    Args:
        data: a folder of clean images (or `train` in it).
        minutes: length of the training by `clock`.
        batch: pictures per iteration.
        width: channels of the judge's features.
        overrides: keys of the recipe's section that differ from the denoiser's training.

    Raises:
        InputError: a network that does not take both levels, or data that does not fit.
        Diverged: the loss is no longer finite.
    """
    about = model.about
    if about.levels != 2:
        raise InputError("a judge estimates white and coarse noise, and this network does not take both levels (coarse_level)")
    kind, device = find_task(about.task), best_device()
    recipes = [run["recipe"] for run in trainings(model.metadata) if "recipe" in run]
    recorded = recipes[0].get(kind.key, {}) if recipes else {}
    known = {f.name for f in dataclasses.fields(kind.section)}
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in recorded.items() if key in known}
    # The judge has to recognise clean pictures, flat areas and text, so it sees more of them.
    changed = {"patch": 96, "unknown": 0.0, "overstated": 0.0, "clean": 0.15, "drawn": 0.12, "holdout": 0, **(overrides or {})}
    if plain.get("pairs") and not (Path(data) / "pairs").is_dir():
        plain["pairs"] = 0.0  # what the denoiser saw and its user may not have
    section = kind.section(**{**plain, **changed})
    task = kind.begin(section, Setup(Path(data), device, about, batch, seed, "auto"))
    torch.manual_seed(seed)
    judge = Judge(about.channels, width).to(device)
    denoiser = channels_last(copy.deepcopy(model).to(device)).eval().requires_grad_(False)
    precision = resolve_precision("auto", device)
    optimizer = torch.optim.AdamW(judge.parameters(), RATE)
    started, iteration, done, losses = clock(), 0, 0.0, []
    show = Progress(progress)
    while (done := min(1.0, (clock() - started) / (60 * minutes))) < 1:
        rng = np.random.default_rng([seed, 7, iteration])
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (iteration + 1) / 100) * (1 + math.cos(math.pi * done)) / 2
        batched = task.batch(rng, iteration)
        steps = model.settings[rng.choice(len(model.settings))] if iteration % 4 == 0 else model.settings[0]
        estimates = judge.logarithms(batched.x)  # in fp32: oneDNN's bf16 gradients of 24 channels are NaN
        loss = _loss(estimates, batched, denoiser, steps, precision, device, iteration < START)
        if not torch.isfinite(loss):
            raise Diverged(f"the training of the judge diverged at iteration {iteration}: the loss is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        iteration += 1
        losses.append(loss.item())
        if iteration % 100 == 0:
            left = (clock() - started) / done * (1 - done)
            show(done, f"iteration {iteration}, loss {np.mean(losses[-100:]):.4g}, {clock_text(left)} left")
    show.end()
    attach_judge(model, judge.to(device_of(model)).eval())
    return {
        "minutes": round((clock() - started) / 60, 2),
        "iterations": iteration,
        "batch": batch,
        "data": task.data,
        "section": changed,
        "seed": seed,
        "commit": commit(),
        **made_here(device),
    }


def _loss(
    logarithms: Tensor, batch: Batch, denoiser: RecurrentNet, steps: Any, precision: str, device: torch.device, start: bool
) -> Tensor:
    """Mean logarithm of the squared error of the denoiser's output for these estimates, and the terms above.

    logarithms: log(level + 1), [B, 2, KNOTS].
    """
    assert batch.sigma is not None
    truth = (batch.sigma[:, :, 0] + 1).log()  # [B, 2, 1]
    levels = (logarithms - truth).abs().mean()
    if start:
        return levels
    sigma = level_map(levels_of(logarithms), batch.x)
    with autocast(precision, device):
        output = denoiser(batch.x.contiguous(memory_format=torch.channels_last), steps, sigma=sigma)
    error = (output.float() - batch.target).square().mean((1, 2, 3))
    missing = (truth.amax(1) - logarithms.amax(1)).clamp(min=0).mean()
    return (error + FLOOR**2).log().mean() + LEVELS * levels + TOO_LITTLE * missing
