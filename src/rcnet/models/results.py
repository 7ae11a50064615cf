"""What a file of weights says that each setting reached."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rcnet.cell import Choice, RecurrentNet, choice

Step = TypeVar("Step", bound=Choice)
UNITS = {"psnr": "dB", "error": "% error"}  # of the metrics of tasks
HIGHER = {"psnr"}  # those whose larger values are the better ones


def setting_quality(model: RecurrentNet) -> tuple[str, dict[Choice, float]]:
    """`psnr` in dB or `error` in %, and that of each of `model.choices`: the mean of those of its results that have all of them.

    Nothing, ("", {}), if it has none.
    """
    found: dict[str, list[list[float]]] = {}
    for result in model.metadata.get("results", []):
        rows: dict[Choice, Mapping[str, Any]] = {choice(row["steps"]): row for row in result.get("rows", [])}
        for metric in UNITS:
            if all(metric in rows.get(n, {}) for n in model.choices):
                found.setdefault(metric, []).append([rows[n][metric] for n in model.choices])
    for metric, lists in found.items():
        means = (sum(values) / len(lists) for values in zip(*lists, strict=True))
        return metric, dict(zip(model.choices, means, strict=True))
    return "", {}


def best_of(choices: Sequence[Step], metric: str, quality: Mapping[Step, float]) -> Step:
    """The best of these by quality, of equals the first; the last where nothing is known."""
    if not metric:
        return choices[-1]
    return (max if metric in HIGHER else min)(choices, key=lambda n: quality[n])
