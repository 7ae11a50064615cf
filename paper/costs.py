"""What runs cost before they are done, and the parameters and the depth of their networks."""

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from paper.runs import Folders, Run
from paper.scales import find_scale, model_config
from rcnet.calling import ready
from rcnet.cost.counting import macs, parameters
from rcnet.data.cifar import RECORDS
from rcnet.device import autocast, best_device, channels_last, hardware, resolve_precision
from rcnet.models.registry import create_model
from rcnet.network import RecurrentNet
from rcnet.training.recipe import Recipe
from rcnet.training.steps import check_probabilities, expected_cost, offer


def training_flop(run: Run, recipe: Recipe) -> float:
    """Floating-point operations of a run as `training.loop` counts them: six a MAC, steps as they are drawn."""
    side = (recipe.classification.size or 32) if run.classifies else recipe.denoising.patch
    cost = list(costs(run.network, run.data, run.scale, (side, side), recipe.settings).values())
    probabilities = check_probabilities(recipe.probabilities, cost)  # type: ignore[arg-type]
    together = run.network.endswith("-exits")  # one pass gives all exits
    each = max(cost) if together else expected_cost(cost, probabilities, recipe.objective)
    return 6.0 * planned_iterations(recipe) * recipe.batch * each


def planned_iterations(recipe: Recipe) -> int:
    """The iterations of a recipe of the study: those that it names, or epochs of CIFAR."""
    return max(1, round(recipe.epochs * RECORDS["train"] / recipe.batch)) if recipe.epochs else recipe.iterations


@cache
def costs(
    network: str, data: str, scale: str, size: tuple[int, int], settings: str | tuple[tuple[int, ...], ...] = "unified"
) -> Mapping[int | tuple[int, ...], int]:
    """MACs of a network, as a scale builds it, at each of its settings, for an input of `size` pixels."""
    model = copy.copy(_built(network, data, scale))
    offer(model, settings)
    return {n: macs(model, n, size) for n in model.choices}


def parameters_of(network: str, data: str) -> int:
    """Trainable parameters of a network of the paper: kernels, the classifier, and every batch norm's scale and shift."""
    return parameters(_built(network, data, "long"))


@cache
def depth_of(network: str, data: str, steps: int) -> int:
    """The unrolled depth: 3x3 convolutions and linear layers that a call runs one after the other."""
    model = _built(network, data, "long")
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda layer, *_: ran.append(layer))
        for module in model.modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1))
    ]
    try:
        ready(model, steps)(torch.empty(1, model.about.channels, 32, 32, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return len(ran)


@cache
def _built(network: str, data: str, scale: str) -> RecurrentNet:
    with torch.device("meta"):
        return create_model(**model_config(network, data, find_scale(scale))).eval()


def seconds_here(runs: Sequence[tuple[Run, float, Mapping[str, Any] | None]], folders: Folders) -> list[float]:
    """The time of each whole run on this machine, by the speed of those finished on it, else by one measured for a second.

    Args:
        runs: each with its PFLOP and its result.
    """
    here = hardware(best_device()).partition(",")[0]
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for run, _, result in runs:
        if result and result["minutes"] and result["hardware"].partition(",")[0] == here:
            speeds[run.classifies].append(1e15 * result["pflop"] / (60 * result["minutes"]))

    @cache
    def speed(classifies: bool, precision: str) -> float:
        known = speeds[classifies]
        return statistics.median(known) if known else measured_speed(classifies, precision)

    return [1e15 * pflop / speed(run.classifies, run.recipe(folders).precision) for run, pflop, _ in runs]


def measured_speed(classifies: bool, precision: str) -> float:
    """FLOP/s of training here, from about a second of forward and backward of a small network of the kind."""
    device = best_device()
    name, shape = ("r2", (32, 3, 32, 32)) if classifies else ("r3", (4, 1, 48, 48))
    model = channels_last(create_model(name, steps=2).to(device))
    x = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with autocast(resolve_precision(precision, device), device):
            loss = model(x).float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()
        times.append(time.perf_counter() - start)
    return 6 * shape[0] * macs(model, 2, (shape[2], shape[3])) / min(times)
