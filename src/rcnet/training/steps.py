"""Which steps an iteration takes: Alg. 2 with a distribution, all of them (Sec. 4.2), or the sandwich rule."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rcnet.errors import InputError


def check_probabilities(probabilities: Sequence[float], steps: Sequence[int]) -> tuple[float, ...]:
    """One probability for each step count, summing to 1; even if none are given or there is nothing to choose."""
    if not probabilities or len(steps) == 1:
        return (1 / len(steps),) * len(steps)
    if len(probabilities) != len(steps) or min(probabilities) < 0 or not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
        raise InputError(
            f"probabilities = {list(probabilities)} is not valid: give {len(steps)} numbers that sum to 1, "
            f"one for each of the steps {', '.join(map(str, steps))}"
        )
    return tuple(p / sum(probabilities) for p in probabilities)


def draw_steps(
    steps: Sequence[int], probabilities: Sequence[float], objective: str, rng: np.random.Generator
) -> dict[int, float]:
    """Step count -> weight of its loss, in the order in which they run.

    `sampled`: one drawn, with weight 1. `aggregated`: all, with their probabilities. `sandwich`: the largest, the smallest and
    one drawn from the others, with equal weights (Yu & Huang 2019, "Universally slimmable networks"); the first teaches.
    """
    if objective == "aggregated":
        return {n: p for n, p in zip(steps, probabilities, strict=True) if p > 0}
    if objective == "sandwich":
        between = list(steps[1:-1])
        chosen = dict.fromkeys([steps[-1], steps[0], *([int(rng.choice(between))] if between else [])])
        return dict.fromkeys(chosen, 1 / len(chosen))
    return {int(rng.choice(steps, p=probabilities)): 1.0}


def expected_cost(cost: Mapping[int, float], probabilities: Sequence[float], objective: str) -> float:
    """The mean cost of an iteration, from that of each step count in ascending order."""
    values = list(cost.values())
    if objective == "aggregated":
        return sum(value for value, p in zip(values, probabilities, strict=True) if p > 0)
    if objective == "sandwich":
        between = values[1:-1]
        return sum({min(cost): values[0], max(cost): values[-1]}.values()) + (sum(between) / len(between) if between else 0)
    return sum(value * p for value, p in zip(values, probabilities, strict=True))
