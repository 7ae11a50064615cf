"""What the paper concludes from its tables and figures, and says without any, judged from measured values.

A comparison of means over seeds counts where the difference is more than twice its standard error, by the standard deviation
between seeds. With one seed there is none, and the verdict is only "indicated".
"""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from paper.results import Seeds
from paper.tables import BSD, CIFAR, DATA, Key, metric, published

Costs = Callable[[Key], float]  # MACs
Group = tuple[Key, ...]  # judged by the mean over its keys
Points = list[tuple[float, float]]  # relative FLOPs and relative accuracy, in %


class Verdict(NamedTuple):
    """What the comparisons of a claim say.

    Attributes:
        outcomes: of each that could be made: true, false, or None within twice the standard error.
        of: how many the claim makes.
        one_seed: some rest on a single seed.
        figures: the values that say so; empty if there is none.
    """

    outcomes: tuple[bool | None, ...]
    of: int
    one_seed: bool
    figures: str

    @property
    def holds(self) -> bool | None:
        """False if a comparison is, None if one is open, else True."""
        if False in self.outcomes:
            return False
        return None if None in self.outcomes or len(self.outcomes) < self.of else True

    @property
    def text(self) -> str:
        if not self.outcomes:
            return "not yet measured"
        part = f" so far ({len(self.outcomes)} of {self.of} comparisons)" if len(self.outcomes) < self.of else ""
        if False in self.outcomes:
            return ("not indicated" if self.one_seed else "does not hold") + part
        if None in self.outcomes:
            return "undecided: within the spread of the seeds" + part
        return ("indicated" if self.one_seed else "holds") + part


class Claim(NamedTuple):
    """A conclusion of the paper.

    Attributes:
        where: its section or table.
        chains: each from the worst to the best; every group must be better than the one before it.
        slack: how much worse, in points of error or dB, it may yet be.
    """

    text: str
    where: str
    chains: list[list[Group]]
    slack: float = 0.0


def judge(claim: Claim, seeds: Seeds) -> Verdict:
    """Compares neighbours in each chain, over those that are not measured."""
    made: list[tuple[bool | None, bool]] = []
    for chain in claim.chains:
        known = [group for group in chain if sample(group, seeds)]
        made += [compare(worse, better, seeds, claim.slack) for worse, better in pairwise(known)]
    any_known = any(sample(group, seeds) for chain in claim.chains for group in chain)
    figures = "; ".join(shown(chain, seeds, claim.slack > 0) for chain in claim.chains) if any_known else ""
    of = sum(len(chain) - 1 for chain in claim.chains)
    return Verdict(tuple(outcome for outcome, _ in made), of, any(one for _, one in made), figures)


def sample(group: Group, seeds: Seeds) -> list[float]:
    """The mean over a group's keys, one a seed; empty if a key is not measured."""
    return [statistics.fmean(values) for values in zip(*(seeds.get(key, ()) for key in group), strict=False)]


def compare(worse: Group, better: Group, seeds: Seeds, slack: float) -> tuple[bool | None, bool]:
    """Whether the one is better, and whether that rests on one seed of either."""
    a, b = ([quality(group[0], value) for value in sample(group, seeds)] for group in (worse, better))
    difference = statistics.fmean(b) - statistics.fmean(a) + slack
    one = len(a) < 2 or len(b) < 2
    if one or not all(map(math.isfinite, [*a, *b])):
        return difference > 0, one
    return beyond(difference, math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))), False


def beyond(difference: float, error: float) -> bool | None:
    """Its sign, or None within twice the standard error."""
    return None if abs(difference) <= 2 * error else difference > 0


def quality(key: Key, value: float) -> float:
    """Larger is better; what does not converge is worse than anything."""
    if math.isnan(value):
        return -math.inf
    return -value if metric(key.data) == "error" else value


def shown(chain: list[Group], seeds: Seeds, gaps: bool = False) -> str:
    """A chain for people: 14.46 → 8.53 → ?, each group's values by step count."""
    text = " → ".join("/".join(figure(key, seeds) for key in group) for group in chain)
    first, last = (sample(group, seeds) for group in (chain[0], chain[-1]))
    if not gaps or not first or not last:
        return text
    return f"{text} ({statistics.fmean(last) - statistics.fmean(first):+.2f})"


def figure(key: Key, seeds: Seeds) -> str:
    """A mean for people; ? if there is none."""
    if not seeds.get(key):
        return "?"
    mean = statistics.fmean(seeds[key])
    return "not convergent" if math.isnan(mean) else f"{mean:.2f}"


def own_gap(chains: list[list[Group]]) -> float:
    """The largest gap that the paper's own tables have where it calls two networks competitive."""
    paper = published()
    return round(max(paper[better] - paper[worse] for ((worse,), (better,)) in chains), 2) + 1e-6  # floats are not decimal


def _steps(names: str, data: str, steps: Sequence[int]) -> list[Group]:
    """One key each for networks of fixed steps, e.g. of r2-{n}."""
    return [(Key(names.format(n=n), data, n),) for n in steps]


def _mean(network: str, data: str) -> Group:
    return tuple(Key(network, data, n) for n in (2, 3, 4))


def _competitive(text: str, where: str, chains: list[list[Group]]) -> Claim:
    slack = own_gap(chains)
    return Claim(f"{text} (by at most {slack:.2f} points worse, the paper's own largest gap)", where, chains, slack)


def _of_cifar(data: str) -> list[Claim]:
    name = DATA[data]
    r2, s2 = _steps("r2-{n}", data, (1, 2, 3, 4)), _steps("s2-{n}", data, (2, 3, 4))
    none, shared, half = ((Key(network, data, 4),) for network in ("r2-4-none", "r2-4-shared", "s2-4-half"))
    adjustable, plain = (_steps(network, data, (2, 3, 4)) for network in ("r2-234", "r2-234-plain"))
    pairs = [list(pair) for pair in zip(r2[1:], adjustable, strict=True)]
    return [
        Claim(f"More steps help R2, {name}", "Sec. 5.1, Table 1", [r2]),
        Claim(f"R2^4 beats the deeper S2^2, {name}", "Sec. 5.1, Table 1", [[s2[0], r2[3]]]),
        Claim(f"R2^4 beats S2^4 x0.5, of as many parameters, {name}", "Sec. 5.1, Table 1", [[half, r2[3]]]),
        Claim(
            f"R2 cannot match S2 of the same graph, {name}",
            "Sec. 5.1, Table 1",
            [list(pair) for pair in zip(r2[1:], s2, strict=True)],
        ),
        Claim(f"Independent norms beat none, and none beats shared, {name}", "Sec. 5.2, Table 2", [[shared, none, r2[3]]]),
        Claim(f"Shared norms make four steps worse than one, {name}", "Sec. 3.1, Tables 1 and 2", [[shared, r2[0]]]),
        _competitive(f"Cost-adjustable R2 is competitive with fixed R2, {name}", "Sec. 5.3, Table 4", pairs),
        Claim(f"At two and three steps it is even better, {name}", "Sec. 5.3, Table 4", pairs[:2]),
        Claim(
            f"Double norms beat the straightforward way, n groups of norms, {name}",
            "Sec. 4.1",
            [list(pair) for pair in zip(plain, adjustable, strict=True)],
        ),
    ]


def _of_bsd(data: str) -> list[Claim]:
    name = DATA[data]
    r3, s3 = _steps("r3-{n}", data, (1, 2, 3, 4)), _steps("s3-{n}", data, (2, 3, 4))
    none, shared = ((Key(network, data, 4),) for network in ("r3-4-none", "r3-4-shared"))
    return [
        Claim(f"More steps help R3, {name}", "Sec. 5.1, Figure 5", [r3]),
        Claim(
            f"R3 cannot match S3 of the same graph, {name}",
            "Sec. 5.1, Figure 5",
            [list(pair) for pair in zip(r3[1:], s3, strict=True)],
        ),
        Claim(f"Independent norms beat none, and none beats shared, {name}", "Sec. 5.2, Table 3", [[shared, none, r3[3]]]),
        Claim(f"Shared norms make four steps worse than one, {name}", "Sec. 3.1", [[shared, r3[0]]]),
    ]


def _of_training() -> list[Claim]:
    """What Sec. 3.3 and 4.2 found empirically, by the mean over the steps 2, 3 and 4."""
    data = "cifar10"
    usual, even, small, summed, mixed = (_mean(f"r2-234{variant}", data) for variant in ("", "-even", "-small", "-all", "-mixed"))
    return [
        Claim(
            "Shared kernels train better at half the learning rate, CIFAR-10",
            "Sec. 3.3",
            [[(Key("r2-4-full-rate", data, 4),), (Key("r2-4", data, 4),)]],
        ),
        Claim("Larger probabilities for larger steps are better, CIFAR-10", "Sec. 4.2", [[small, usual], [even, usual]]),
        Claim("The aggregated loss is slightly better, at several times the cost, CIFAR-10", "Sec. 4.2", [[usual, summed]]),
        Claim("Steps drawn by each cell for itself are harder to train, CIFAR-10", "Sec. 4.2", [[mixed, usual]]),
    ]


def _of_r4() -> list[Claim]:
    r4, s4 = _steps("r4-123", "cifar100", (1, 2, 3)), _steps("s4-{n}", "cifar100", (1, 2, 3))
    pairs = [list(pair) for pair in zip(s4, r4, strict=True)]
    return [
        Claim("More steps help R4, CIFAR-100", "Sec. 5.3, Table 5", [r4]),
        _competitive("R4, one network, is competitive with S4, three networks, CIFAR-100", "Sec. 5.3, Table 5", pairs),
    ]


CLAIMS = [
    *(claim for data in CIFAR for claim in _of_cifar(data)),
    *_of_training(),
    *(claim for data in BSD for claim in _of_bsd(data)),
    *_of_r4(),
]
CURVES = {
    "R4, cost-adjustable": [Key("r4-123", "cifar100", n) for n in (1, 2, 3)],
    "R4^3 with early exits": [Key("r4-exits", "cifar100", n) for n in (1, 2, 3)],
    "S4^3 with early exits": [Key("s4-exits", "cifar100", n) for n in (1, 2, 3)],
    "S4, separate networks": [Key(f"s4-{n}", "cifar100", n) for n in (1, 2, 3)],
}
EXITS_CLAIMS = {
    label: Claim(
        f"R4 keeps more of its accuracy than {label} does at the same relative FLOPs, CIFAR-100", "Sec. 5.3, Figure 7", []
    )
    for label in ("R4^3 with early exits", "S4^3 with early exits")
}


def relative(keys: list[Key], values: Sequence[float], costs: Costs) -> Points | None:
    """Cost and accuracy of each key as parts of those of the last, in % (Fig. 7); None unless all are measured."""
    if not all(map(math.isfinite, values)) or len(values) < len(keys):
        return None
    cost, accuracy = costs(keys[-1]), 100 - values[-1]
    points = zip(keys, values, strict=True)
    return [(100 * costs(key) / cost, 100 * (100 - value) / accuracy) for key, value in points] if accuracy > 0 else None


def curves(label: str, seeds: Seeds, costs: Costs) -> list[Points]:
    """A curve of Figure 7, one a seed."""
    keys = CURVES[label]
    each = (relative(keys, values, costs) for values in zip(*(seeds.get(key, ()) for key in keys), strict=False))
    return [points for points in each if points is not None]


def judge_exits(label: str, seeds: Seeds, costs: Costs) -> Verdict:
    """At the cost of every exit but the last: the relative accuracy of R4, between its steps by interpolation, is higher."""
    pairs = list(zip(curves("R4, cost-adjustable", seeds, costs), curves(label, seeds, costs), strict=False))
    exits = len(CURVES[label]) - 1
    if not pairs:
        return Verdict((), exits, False, "")
    outcomes, figures = [], []
    for place in range(exits):
        at = pairs[0][1][place][0]
        ours = [float(np.interp(at, [x for x, _ in rc], [y for _, y in rc])) for rc, _ in pairs]
        theirs = [points[place][1] for _, points in pairs]
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
        outcomes.append(beyond(statistics.fmean(differences), error) if error else statistics.fmean(differences) > 0)
        figures.append(f"at {at:.0f} %: {statistics.fmean(ours):.1f} and {statistics.fmean(theirs):.1f} %")
    return Verdict(tuple(outcomes), exits, len(pairs) < 2, "; ".join(figures))


def verdicts(seeds: Seeds, costs: Costs) -> list[tuple[Claim, Verdict]]:
    """Every claim of the paper, judged."""
    by_exits = [(claim, judge_exits(label, seeds, costs)) for label, claim in EXITS_CLAIMS.items()]
    return [*((claim, judge(claim, seeds)) for claim in CLAIMS), *by_exits]
