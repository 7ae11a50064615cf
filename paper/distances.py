"""How far the steps of a cell are from each other: the numbers beside Figures 2, 3 and 6."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from torch import nn

from rcnet.figures.features import as_batch, evolution, most_active
from rcnet.figures.norms import VARIABLES, check_norms, values_of
from rcnet.network import RecurrentNet


def norm_distances(norms: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
    """How far each norm is from the one before it: "step 1 to step 2" -> variable -> relative distance over channels.

    Raises:
        InputError: one of them is not a batch norm.
    """
    check_norms(norms)
    return {
        f"{a} to {b}": {
            name: relative_distance(values_of(norms[a], variable), values_of(norms[b], variable))
            for variable, name in VARIABLES.items()
        }
        for a, b in pairwise(norms)
    }


def relative_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| as a part of sqrt((|a|² + |b|²) / 2): 0 where they are equal, 1.41 where they have nothing in common."""
    size = np.sqrt((np.square(a).sum() + np.square(b).sum()) / 2)
    return float(np.linalg.norm(a - b) / size) if size > 0 else 0.0


def feature_distances(model: RecurrentNet, images: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """How far the features of each named cell move by a step, relative to their size, the mean over images: "cell2, step 1 to 2"
    -> of all channels, and of the channel that `features` shows. A cell that pools on its way is compared at its last size."""
    distances = {}
    for name, steps in evolution(model, as_batch(images, model), names).items():
        size = (steps[-1].shape[2], steps[-1].shape[3])
        every = [nn.functional.adaptive_avg_pool2d(step, size).cpu().numpy() for step in steps]
        shown = most_active(steps)
        for t in range(1, len(steps)):
            distances[f"{name}, step {t} to {t + 1}"] = {
                "all channels": _mean_distance(every[t - 1], every[t]),
                "the channel shown": _mean_distance(shown[:, t - 1], shown[:, t]),
            }
    return distances


def _mean_distance(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.mean([relative_distance(a, b) for a, b in zip(before, after, strict=True)]))
