"""What the result files of a scale say."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from paper.claims import mean
from paper.compare import Outcomes
from paper.costs import costs
from paper.measure import read_outcomes
from paper.runs import Folders, declared, kept_result
from paper.tables import CIFAR, NETWORKS, Key, metric
from rcnet.errors import InputError
from rcnet.tasks import TASKS


@dataclass(frozen=True)
class Measured:
    """The results of a scale.

    Attributes:
        seeds: what was measured of each key, by the number of the seed.
        last: of those that do not converge on the test images, the values at the end.
        own_noise: of denoisers, PSNR with a noise of its own for each image, by the number of the seed.
        results: by (network, data), the files of each seed.
        problems: what is wrong with files that are no results.
    """

    scale: str
    seeds: dict[Key, dict[int, Outcomes]] = field(default_factory=dict)
    last: dict[Key, list[float]] = field(default_factory=dict)
    own_noise: dict[Key, dict[int, float]] = field(default_factory=dict)
    results: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[dict[str, Any]]:
        return [result for results in self.results.values() for result in results]

    def values(self, key: Key) -> list[float]:
        """One a seed."""
        return [outcomes.value for outcomes in self.seeds.get(key, {}).values()]

    def mean(self, key: Key) -> float:
        """Over the seeds there are; nan if there is none or one did not converge."""
        return mean(key, self.seeds)

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
            kept = read_outcomes(run, folders) if result else {}
        except InputError as error:
            m.problems.append(str(error))
            continue
        if result is None:
            continue
        m.results.setdefault((run.network, run.data), []).append(result)
        rows = {row["steps"]: row for row in result["rows"]}
        for n in NETWORKS[run.network].taken:
            key, value = Key(run.network, run.data, n), float(rows.get(n, {}).get(metric(run.data), math.nan))
            fine = result["status"] == "done" and math.isfinite(value) and result.get("settled") is not False
            each, labels = kept.get(n, (None, b""))
            m.seeds.setdefault(key, {})[run.seed] = Outcomes(value, each, labels) if fine else Outcomes(math.nan)
            if not fine:
                m.last.setdefault(key, []).append(value)
            elif "psnr_own_noise" in rows[n]:
                m.own_noise.setdefault(key, {})[run.seed] = float(rows[n]["psnr_own_noise"])
    return m
