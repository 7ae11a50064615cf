"""What the result files of a scale say."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paper.costs import costs
from paper.runs import Folders, declared, kept_result
from paper.tables import CIFAR, NETWORKS, Key, metric
from rcnet.errors import InputError
from rcnet.tasks import TASKS

Seeds = Mapping[Key, Sequence[float]]  # a value a seed; nan where a run diverged or does not converge on the test images


@dataclass(frozen=True)
class Measured:
    """The results of a scale.

    Attributes:
        seeds: the values of each key, one a seed.
        last: of those that do not converge on the test images, the values at the end.
        results: by (network, data), the files of each seed.
        problems: what is wrong with files that are no results.
    """

    scale: str
    seeds: dict[Key, list[float]] = field(default_factory=dict)
    last: dict[Key, list[float]] = field(default_factory=dict)
    results: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[dict[str, Any]]:
        return [result for results in self.results.values() for result in results]

    def mean(self, key: Key) -> float:
        """Over the seeds there are; nan if there is none or one did not converge."""
        return statistics.fmean(self.seeds.get(key) or [math.nan])

    def cost(self, key: Key) -> float:
        """MACs of a key, for an image of its data set."""
        return costs(key.network, key.data, self.scale, TASKS["classify" if key.data in CIFAR else "denoise"].size)[key.steps]

    def pflop(self, network: str, data: str) -> float | None:
        """Of training, the mean over seeds."""
        known = [result["pflop"] for result in self.results.get((network, data), []) if result["pflop"]]
        return statistics.fmean(known) if known else None


def results_of(scale: str, folders: Folders) -> Measured:
    """What the result files of a scale hold; those that are no results are named in `problems`."""
    m = Measured(scale)
    for run in declared(scale):
        try:
            result = kept_result(run, folders)
        except InputError as error:
            m.problems.append(str(error))
            continue
        if result is None:
            continue
        m.results.setdefault((run.network, run.data), []).append(result)
        rows = {row["steps"]: float(row[metric(run.data)]) for row in result["rows"]}
        for n in NETWORKS[run.network].taken:
            key, value = Key(run.network, run.data, n), rows.get(n, math.nan)
            fine = result["status"] == "done" and math.isfinite(value) and result.get("settled") is not False
            m.seeds.setdefault(key, []).append(value if fine else math.nan)
            if not fine:
                m.last.setdefault(key, []).append(value)
    return m
