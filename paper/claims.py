"""What the paper concludes from its tables and figures, and says without any, judged from measured values (see `compare`)."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from paper.compare import LEVEL, Comparison, Outcomes, Seeds, by_order, compare, gauss, welch
from paper.tables import BSD, CIFAR, DATA, Key, published

Costs = Callable[[Key], float]  # MACs
Compare = Callable[[Mapping[int, Outcomes], Mapping[int, Outcomes], Key, float], Comparison]
Points = list[tuple[float, float]]  # relative FLOPs and relative accuracy, in %
MARGIN = 0.5  # points of error: what "competitive" may mean, stated before the runs
REDRAWN = 400  # test sets drawn for the error of a curve of Figure 7


class Verdict(NamedTuple):
    """What the comparisons of a claim say.

    Attributes:
        comparisons: those that could be made.
        of: how many the claim makes.
        figures: the values that say so; empty if there is none.
    """

    comparisons: tuple[Comparison, ...]
    of: int
    figures: str

    @property
    def against(self) -> list[Comparison]:
        """Those that contradict it: as one is enough, each at a part of the level."""
        return [comparison for comparison in self.comparisons if comparison.outcome(LEVEL / self.of) is False]

    @property
    def all_for(self) -> bool:
        return all(comparison.outcome() for comparison in self.comparisons)

    @property
    def holds(self) -> bool | None:
        """False if a comparison contradicts it, True if all are made and for it, else None."""
        return False if self.against else True if self.all_for and len(self.comparisons) == self.of else None

    @property
    def text(self) -> str:
        """The verdict for people, with the p on which it hangs."""
        if not self.comparisons:
            return "not yet measured"
        of = f"{len(self.comparisons)} of {self.of} comparisons" if len(self.comparisons) < self.of else ""
        verdict = "contradicted" if self.against else "holds" if self.all_for else "not decided"
        decisive = min(self.against, key=lambda c: c.p) if self.against else max(self.comparisons, key=lambda c: c.p)
        remarks = ", ".join(filter(None, [of, shown_p(decisive)]))
        return f"{verdict}{' so far' if of else ''}{f' ({remarks})' if remarks else ''}"


class Claim(NamedTuple):
    """A conclusion of the paper.

    Attributes:
        where: its section or table.
        chains: each from the worst to the best; every network must be better than the one before it.
        slack: how much worse, in points of error or dB, it may yet be.
    """

    text: str
    where: str
    chains: list[list[Key]]
    slack: float = 0.0


def shown_p(comparison: Comparison) -> str:
    """Its p and its test for people; none of those that are no test."""
    if comparison.how in ("order", "not convergent"):
        return ""
    return f"{comparison.how}, p {'< 0.0001' if comparison.p < 1e-4 else f'= {comparison.p:.2g}'}"


def judge(claim: Claim, seeds: Seeds, by: Compare = compare) -> Verdict:
    """Compares neighbours in each chain, over those that are not measured."""
    made: list[Comparison] = []
    for chain in claim.chains:
        known = [key for key in chain if seeds.get(key)]
        made += [by(seeds[worse], seeds[better], better, claim.slack) for worse, better in pairwise(known)]
    any_known = any(seeds.get(key) for chain in claim.chains for key in chain)
    figures = "; ".join(shown(chain, seeds, claim.slack > 0) for chain in claim.chains) if any_known else ""
    return Verdict(tuple(made), sum(len(chain) - 1 for chain in claim.chains), figures)


def mean(key: Key, seeds: Seeds) -> float:
    """Over the seeds of a key; nan if there is none or one did not converge."""
    return statistics.fmean([outcomes.value for outcomes in seeds.get(key, {}).values()] or [math.nan])


def shown(chain: list[Key], seeds: Seeds, gaps: bool = False) -> str:
    """A chain for people: 14.46 → 8.53 → ?."""
    text = " → ".join(figure(key, seeds) for key in chain)
    gap = mean(chain[-1], seeds) - mean(chain[0], seeds)
    return f"{text} ({gap:+.2f})" if gaps and math.isfinite(gap) else text


def figure(key: Key, seeds: Seeds) -> str:
    """A mean for people; ? if there is none."""
    if not seeds.get(key):
        return "?"
    return "not convergent" if math.isnan(mean(key, seeds)) else f"{mean(key, seeds):.2f}"


def own_gap(chains: list[list[Key]]) -> float:
    """The largest gap that the paper's own tables have where it calls two networks competitive."""
    paper = published()
    return round(max(paper[better] - paper[worse] for worse, better in chains), 2)


def _steps(names: str, data: str, steps: Sequence[int]) -> list[Key]:
    """One key each for networks of fixed steps, e.g. of r2-{n}."""
    return [Key(names.format(n=n), data, n) for n in steps]


def _pairs(worse: Sequence[Key], better: Sequence[Key]) -> list[list[Key]]:
    return [list(pair) for pair in zip(worse, better, strict=True)]


def _competitive(text: str, where: str, chains: list[list[Key]]) -> Claim:
    gap = own_gap(chains)
    return Claim(f"{text} (at most {MARGIN:g} points worse; the paper's own largest gap is {gap:.2f})", where, chains, MARGIN)


def _of_cifar(data: str) -> list[Claim]:
    name = DATA[data]
    r2, s2 = _steps("r2-{n}", data, (1, 2, 3, 4)), _steps("s2-{n}", data, (2, 3, 4))
    none, shared, half = (Key(network, data, 4) for network in ("r2-4-none", "r2-4-shared", "s2-4-half"))
    adjustable, plain = (_steps(network, data, (2, 3, 4)) for network in ("r2-234", "r2-234-plain"))
    pairs = _pairs(r2[1:], adjustable)
    return [
        Claim(f"More steps help R2, {name}", "Sec. 5.1, Table 1", [r2]),
        Claim(f"R2^4 beats the deeper S2^2, {name}", "Sec. 5.1, Table 1", [[s2[0], r2[3]]]),
        Claim(f"R2^4 beats S2^4 x0.5, of as many parameters, {name}", "Sec. 5.1, Table 1", [[half, r2[3]]]),
        Claim(f"R2 cannot match S2 of the same graph, {name}", "Sec. 5.1, Table 1", _pairs(r2[1:], s2)),
        Claim(f"Independent norms beat none, and none beats shared, {name}", "Sec. 5.2, Table 2", [[shared, none, r2[3]]]),
        Claim(f"Shared norms make four steps worse than one, {name}", "Sec. 3.1, Tables 1 and 2", [[shared, r2[0]]]),
        _competitive(f"Cost-adjustable R2 is competitive with fixed R2, {name}", "Sec. 5.3, Table 4", pairs),
        Claim(f"At two and three steps it is even better, {name}", "Sec. 5.3, Table 4", pairs[:2]),
        Claim(f"Double norms beat the straightforward way, n groups of norms, {name}", "Sec. 4.1", _pairs(plain, adjustable)),
    ]


def _of_bsd(data: str) -> list[Claim]:
    name = DATA[data]
    r3, s3 = _steps("r3-{n}", data, (1, 2, 3, 4)), _steps("s3-{n}", data, (2, 3, 4))
    none, shared = (Key(network, data, 4) for network in ("r3-4-none", "r3-4-shared"))
    return [
        Claim(f"More steps help R3, {name}", "Sec. 5.1, Figure 5", [r3]),
        Claim(f"R3 cannot match S3 of the same graph, {name}", "Sec. 5.1, Figure 5", _pairs(r3[1:], s3)),
        Claim(f"Independent norms beat none, and none beats shared, {name}", "Sec. 5.2, Table 3", [[shared, none, r3[3]]]),
        Claim(f"Shared norms make four steps worse than one, {name}", "Sec. 3.1", [[shared, r3[0]]]),
    ]


def _of_training() -> list[Claim]:
    """What Sec. 3.3 and 4.2 found empirically; each step count by itself."""
    data = "cifar10"
    usual, even, small, summed, mixed = (
        _steps(f"r2-234{variant}", data, (2, 3, 4)) for variant in ("", "-even-equal", "-small-equal", "-all", "-mixed")
    )
    return [
        Claim(
            "Shared kernels train better at half the learning rate, CIFAR-10",
            "Sec. 3.3",
            [[Key("r2-4-full-rate", data, 4), Key("r2-4", data, 4)]],
        ),
        Claim(
            "Larger probabilities for larger steps are better at the same cost of training, CIFAR-10",
            "Sec. 4.2",
            [*_pairs(small, usual), *_pairs(even, usual)],
        ),
        Claim("The aggregated loss is slightly better, at several times the cost, CIFAR-10", "Sec. 4.2", _pairs(usual, summed)),
        Claim("Steps drawn by each cell for itself are harder to train, CIFAR-10", "Sec. 4.2", _pairs(mixed, usual)),
    ]


def _of_r4() -> list[Claim]:
    r4, s4 = _steps("r4-123", "cifar100", (1, 2, 3)), _steps("s4-{n}", "cifar100", (1, 2, 3))
    return [
        Claim("More steps help R4, CIFAR-100", "Sec. 5.3, Table 5", [r4]),
        _competitive("R4, one network, is competitive with S4, three networks, CIFAR-100", "Sec. 5.3, Table 5", _pairs(s4, r4)),
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


def _checks() -> list[Claim]:
    """What else could explain a verdict; no claims of the paper."""
    data, every = "cifar10", []
    for c in CIFAR:
        plain, unpooled, usual = (_steps(network, c, (2, 3, 4)) for network in ("r2-234-plain", "r2-234-unpooled", "r2-234"))
        every += [
            Claim(f"Double norms beat n groups where neither has rows for pooling, {DATA[c]}", "a", _pairs(plain, unpooled)),
            Claim(f"Rows for pooling help double norms, {DATA[c]}", "a", _pairs(unpooled, usual)),
        ]
    none, biased, slow, shared, norm_rate, full, one = (
        Key(network, data, int(network[3]))
        for network in ("r2-4-none", "r2-4-biased", "r2-4-biased-slow", "r2-4-shared", "r2-4-shared-slow", "r2-4", "r2-1")
    )
    once = [one, *_steps("s2-{n}", data, (2, 3, 4))]
    slower = [Key(f"{key.network}-slow", data, key.steps) for key in once]
    long, summed, fixed = (_steps(network, data, (2, 3, 4)) for network in ("r2-234-long", "r2-234-all", "r2-{n}"))
    return [
        *every,
        Claim(
            "Half the rate for shared kernels is better with SGD, too",
            "b",
            [[Key("r2-4-full-rate-sgd", data, 4), Key("r2-4-sgd", data, 4)]],
        ),
        Claim("Kernels that are used once are better at the full rate", "b", _pairs(slower, once)),
        Claim("Biases make up for a part of the norms", "c", [[none, biased]]),
        Claim("So they do at a quarter of the rates", "c", [[none, slow]]),
        Claim("Independent norms beat biases at either rate", "c", [[biased, full], [slow, full]]),
        Claim("Shared norms are better at the rate of the rest than at 16 times", "d", [[shared, norm_rate]]),
        Claim("For equal FLOP the aggregated loss is better than more draws", "e", _pairs(long, summed)),
        Claim(
            f"With as many FLOP as that takes, cost-adjustable R2 is competitive with fixed R2 (at most {MARGIN:g} points worse)",
            "e",
            _pairs(fixed, long),
            MARGIN,
        ),
    ]


CHECK_CLAIMS = _checks()


def relative(keys: list[Key], values: Sequence[float], costs: Costs) -> Points | None:
    """Cost and accuracy of each key as parts of those of the last, in % (Fig. 7); None unless all are measured."""
    if not all(map(math.isfinite, values)) or len(values) < len(keys):
        return None
    cost, accuracy = costs(keys[-1]), 100 - values[-1]
    points = zip(keys, values, strict=True)
    return [(100 * costs(key) / cost, 100 * (100 - value) / accuracy) for key, value in points] if accuracy > 0 else None


def curves(label: str, seeds: Seeds, costs: Costs) -> dict[int, Points]:
    """A curve of Figure 7 by the number of the seed, of those that have every key."""
    keys = CURVES[label]
    numbers = sorted(set.intersection(*(set(seeds.get(key, {})) for key in keys)))
    each = {n: relative(keys, [seeds[key][n].value for key in keys], costs) for n in numbers}
    return {n: points for n, points in each.items() if points is not None}


def ahead(ours: Points, theirs: Points) -> list[tuple[float, float]]:
    """At the cost of every exit but the last: the relative accuracy of R4, between its steps by straight lines, and theirs."""
    x, y = zip(*ours, strict=True)
    return [(float(np.interp(at, x, y)), value) for at, value in theirs[:-1]]


def judge_exits(label: str, seeds: Seeds, costs: Costs) -> Verdict:
    """At the cost of every exit but the last, the relative accuracy of R4 is higher. Seeds pair by number."""
    ours, theirs = (curves(name, seeds, costs) for name in ("R4, cost-adjustable", label))
    numbers, exits = sorted(ours.keys() & theirs.keys()), len(CURVES[label]) - 1
    if not numbers:
        return Verdict((), exits, "")
    pairs = [ahead(ours[n], theirs[n]) for n in numbers]
    made, figures = [], []
    for place in range(exits):
        gains = [pair[place][0] - pair[place][1] for pair in pairs]
        if len(numbers) > 1:
            made.append(welch([pair[place][1] for pair in pairs], [pair[place][0] for pair in pairs]))
        else:
            made.append(gauss(gains[0], redrawn_error(label, numbers[0], seeds, costs, place), "bootstrap"))
        mean_of = [statistics.fmean(pair[place][side] for pair in pairs) for side in (0, 1)]
        figures.append(f"at {theirs[numbers[0]][place][0]:.0f} %: {mean_of[0]:.1f} and {mean_of[1]:.1f} %")
    return Verdict(tuple(made), exits, "; ".join(figures))


def redrawn_error(label: str, seed: int, seeds: Seeds, costs: Costs, place: int) -> float:
    """The standard error of a difference of two curves, by drawing the test images again; infinite where none were kept."""
    names = [CURVES["R4, cost-adjustable"], CURVES[label]]
    found = [seeds[key][seed] for keys in names for key in keys]
    if any(outcomes.each is None or outcomes.labels != found[0].labels for outcomes in found):
        return math.inf
    wrong = [[seeds[key][seed].each for key in keys] for keys in names]
    table, rng, gains = np.array(wrong), np.random.default_rng(0), []
    count = table.shape[-1]
    for _ in range(REDRAWN):
        errors = table[:, :, rng.integers(0, count, count)].mean(-1)
        ours, theirs = (relative(keys, list(values), costs) for keys, values in zip(names, errors, strict=True))
        if ours and theirs:
            own, other = ahead(ours, theirs)[place]
            gains.append(own - other)
    return statistics.stdev(gains) if len(gains) > 1 else math.inf


def verdicts(seeds: Seeds, costs: Costs, by: Compare = compare) -> list[tuple[Claim, Verdict]]:
    """Every claim of the paper, judged."""
    by_exits = [(claim, judge_exits(label, seeds, costs)) for label, claim in EXITS_CLAIMS.items()]
    return [*((claim, judge(claim, seeds, by)) for claim in CLAIMS), *by_exits]


def of_the_paper(costs: Costs) -> list[tuple[Claim, Verdict]]:
    """Every claim, judged by the order of the paper's own figures."""
    return verdicts({key: {0: Outcomes(value)} for key, value in published().items()}, costs, by_order)
