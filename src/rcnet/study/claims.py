"""What the paper concludes from its tables and figures, as functions of measured values: true, false, or not yet known."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rcnet.study.paper import BSD, CIFAR, DATA, Key, metric

Values = Mapping[Key, float]  # the mean over seeds; nan where a run diverged
Costs = Callable[[Key], float]  # MACs
Points = list[tuple[float, float]]  # relative FLOPs and relative accuracy, in %
# "Matches" needs a limit: in Table 4 the paper calls gaps of up to 0.12 points competitive, with other seeds they double.
SLACK = 0.5


class Verdict(NamedTuple):
    """Whether a claim holds (None: not yet measured) and the figures that say so."""

    holds: bool | None
    figures: str

    @property
    def text(self) -> str:
        return {True: "holds", False: "does not hold", None: "not yet measured"}[self.holds]


class Claim(NamedTuple):
    """A conclusion of the paper.

    Attributes:
        where: its section or table.
        chains: each from the worst to the best; every key must be better than the one before it.
        slack: how much worse, in points of error or dB, it may yet be.
    """

    text: str
    where: str
    chains: list[list[Key]]
    slack: float = 0.0


def quality(key: Key, value: float) -> float:
    """Larger is better; what diverged is worse than anything."""
    if math.isnan(value):
        return -math.inf
    return -value if metric(key.data) == "error" else value


def judge(claim: Claim, values: Values) -> Verdict:
    """A claim that one comparison refutes does not hold, whatever is missing."""
    outcomes = [
        quality(better, values[better]) > quality(worse, values[worse]) - claim.slack
        if worse in values and better in values
        else None
        for chain in claim.chains
        for worse, better in pairwise(chain)
    ]
    figures = "; ".join(" → ".join(figure(key, values) for key in chain) for chain in claim.chains)
    return Verdict(combined(outcomes), figures)


def combined(outcomes: list[bool | None]) -> bool | None:
    """False if one is, else None if one is, else True."""
    return False if False in outcomes else None if None in outcomes or not outcomes else True


def figure(key: Key, values: Values) -> str:
    """A value for people; ? if there is none."""
    if key not in values:
        return "?"
    return "diverged" if math.isnan(values[key]) else f"{values[key]:.2f}"


def _claims() -> list[Claim]:
    claims = []
    for data in CIFAR:
        r2 = {n: Key(f"r2-{n}", data, n) for n in (1, 2, 3, 4)}
        s2 = {n: Key(f"s2-{n}", data, n) for n in (2, 3, 4)}
        none, shared = Key("r2-4-none", data, 4), Key("r2-4-shared", data, 4)
        adjustable = {n: Key("r2-234", data, n) for n in (2, 3, 4)}
        name = DATA[data]
        claims += [
            Claim(f"More steps help R2, {name}", "Sec. 5.1, Table 1", [[r2[1], r2[2], r2[3], r2[4]]]),
            Claim(f"R2^4 beats the deeper S2^2, {name}", "Sec. 5.1, Table 1", [[s2[2], r2[4]]]),
            Claim(
                f"R2^4 beats S2^4 x0.5, of as many parameters, {name}", "Sec. 5.1, Table 1", [[Key("s2-4-half", data, 4), r2[4]]]
            ),
            Claim(f"R2 cannot match S2 of the same graph, {name}", "Sec. 5.1, Table 1", [[r2[n], s2[n]] for n in (2, 3, 4)]),
            Claim(f"Independent norms beat none, and none beats shared, {name}", "Sec. 5.2, Table 2", [[shared, none, r2[4]]]),
            Claim(
                f"Cost-adjustable R2 matches fixed R2, within {SLACK} points, {name}",
                "Sec. 5.3, Table 4",
                [[r2[n], adjustable[n]] for n in (2, 3, 4)],
                SLACK,
            ),
        ]
    for data in BSD:
        r3 = {n: Key(f"r3-{n}", data, n) for n in (1, 2, 3, 4)}
        none, shared = Key("r3-4-none", data, 4), Key("r3-4-shared", data, 4)
        name = DATA[data]
        claims += [
            Claim(f"More steps help R3, {name}", "Sec. 5.1, Figure 5", [[r3[1], r3[2], r3[3], r3[4]]]),
            Claim(f"Independent norms beat none, and none beats shared, {name}", "Sec. 5.2, Table 3", [[shared, none, r3[4]]]),
        ]
    r4 = {n: Key("r4-123", "cifar100", n) for n in (1, 2, 3)}
    s4 = {n: Key(f"s4-{n}", "cifar100", n) for n in (1, 2, 3)}
    claims += [
        Claim("More steps help R4, CIFAR-100", "Sec. 5.3, Table 5", [[r4[1], r4[2], r4[3]]]),
        Claim(
            f"R4, one network, matches S4, three networks, within {SLACK} points, CIFAR-100",
            "Sec. 5.3, Table 5",
            [[s4[n], r4[n]] for n in (1, 2, 3)],
            SLACK,
        ),
    ]
    return claims


CLAIMS = _claims()
EXITS_CLAIM = Claim(
    "R4 keeps more of its accuracy than early exits do at the same relative FLOPs, CIFAR-100", "Sec. 5.3, Figure 7", []
)
CURVES = {
    "R4, cost-adjustable": [Key("r4-123", "cifar100", n) for n in (1, 2, 3)],
    "S4^3 with early exits": [Key("s4-exits", "cifar100", n) for n in (1, 2, 3)],
    "S4, separate networks": [Key(f"s4-{n}", "cifar100", n) for n in (1, 2, 3)],
}


def relative(keys: list[Key], values: Values, costs: Costs) -> Points | None:
    """Cost and accuracy of each key as parts of those of the last, in % (Fig. 7); None unless all are measured."""
    if not all(key in values and not math.isnan(values[key]) for key in keys):
        return None
    cost, accuracy = costs(keys[-1]), 100 - values[keys[-1]]
    return [(100 * costs(key) / cost, 100 * (100 - values[key]) / accuracy) for key in keys] if accuracy > 0 else None


def judge_exits(values: Values, costs: Costs) -> Verdict:
    """At the cost of every exit but the last: the relative accuracy of R4, between its steps by interpolation, is higher."""
    rc, exits = (relative(CURVES[name], values, costs) for name in ("R4, cost-adjustable", "S4^3 with early exits"))
    if rc is None or exits is None:
        return Verdict(None, "?")
    places, heights = zip(*rc, strict=True)
    at = [(x, float(np.interp(x, places, heights)), y) for x, y in exits[:-1]]
    return Verdict(
        all(ours > theirs for _, ours, theirs in at), "; ".join(f"at {x:.0f} %: {a:.1f} and {b:.1f} %" for x, a, b in at)
    )


def verdicts(values: Values, costs: Costs) -> list[tuple[Claim, Verdict]]:
    """Every claim of the paper, judged."""
    return [*((claim, judge(claim, values)) for claim in CLAIMS), (EXITS_CLAIM, judge_exits(values, costs))]
