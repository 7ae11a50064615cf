"""Which steps an iteration takes: Alg. 2 with a distribution, or all of them (Sec. 4.2)."""

import math
from collections.abc import Sequence

import numpy as np

from rcnet.errors import InputError


def check_probabilities(probabilities: Sequence[float], steps: Sequence[int]) -> tuple[float, ...]:
    """One probability for each step count, summing to 1; even if none are given."""
    if not probabilities:
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
    """Step count -> weight of its loss: one drawn with weight 1 (`sampled`), or all with their probabilities (`aggregated`)."""
    if objective == "aggregated":
        return {n: p for n, p in zip(steps, probabilities, strict=True) if p > 0}
    return {int(rng.choice(steps, p=probabilities)): 1.0}
