"""The settings that a network is trained at, and those of one iteration: Alg. 2, all (Sec. 4.2), or the sandwich rule."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from rcnet.errors import InputError
from rcnet.network import RecurrentNet
from rcnet.setting import Setting, listed

Settings = str | Sequence[Sequence[int]]


def offer(model: RecurrentNet, settings: Settings) -> None:
    """Sets the settings of a network to those that it will be trained at.

    Args:
        settings: `unified`, all cells take the same number of steps; `staircase`, one cell at a time takes one more step, from
            the first cell alone to all cells at their maximum; `free`, every combination; or a list of settings.

    Raises:
        InputError: settings for which the network has no batch norms.
    """
    cells = model.recurrent_cells()
    if settings == "staircase":
        taken, stairs = [0] * len(cells), []
        for level in range(max(len(cell.steps) for cell in cells)):
            for i, cell in enumerate(cells):
                taken[i] = cell.steps[min(level, len(cell.steps) - 1)]
                stairs.append(tuple(taken))
        settings = [setting for setting in dict.fromkeys(stairs) if model.holds(setting)]
    elif settings == "free":
        settings = list(itertools.product(*(cell.steps for cell in cells)))
    if not isinstance(settings, str):
        model.offer(settings)


def check_probabilities(probabilities: Sequence[float], steps: Sequence[Setting]) -> tuple[float, ...]:
    """One probability per setting, summing to 1; uniform if none are given or there is one setting."""
    if not probabilities or len(steps) == 1:
        return (1 / len(steps),) * len(steps)
    if len(probabilities) != len(steps) or min(probabilities) < 0 or not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
        raise InputError(
            f"probabilities = {list(probabilities)} is not valid: give {len(steps)} numbers that sum to 1, "
            f"one for each of the steps {listed(steps)}"
        )
    return tuple(p / sum(probabilities) for p in probabilities)


def draw_steps(
    steps: Sequence[Setting], probabilities: Sequence[float], objective: str, rng: np.random.Generator
) -> dict[Setting, float]:
    """Setting -> weight of its loss, in the order in which they run; `steps` are sorted by cost, cheapest first.

    `sampled`: one drawn setting with weight 1. `aggregated`: all, weighted by their probabilities. `sandwich`: the largest, the
    smallest and one drawn from the others, with equal weights (Yu & Huang 2019, "Universally slimmable networks"); the largest
    teaches the others.
    """
    if objective == "aggregated":
        return {n: p for n, p in zip(steps, probabilities, strict=True) if p > 0}
    if objective == "sandwich":
        between = list(steps[1:-1])
        chosen = dict.fromkeys([steps[-1], steps[0], *([between[rng.choice(len(between))]] if between else [])])
        return dict.fromkeys(chosen, 1 / len(chosen))
    return {steps[rng.choice(len(steps), p=probabilities)]: 1.0}


def expected_cost(values: Sequence[float], probabilities: Sequence[float], objective: str) -> float:
    """The mean cost of an iteration, from the costs of the settings in ascending order."""
    if objective == "aggregated":
        return sum(value for value, p in zip(values, probabilities, strict=True) if p > 0)
    if objective == "sandwich":
        between = values[1:-1]
        return sum({0: values[0], len(values) - 1: values[-1]}.values()) + (sum(between) / len(between) if between else 0)
    return sum(value * p for value, p in zip(values, probabilities, strict=True))
