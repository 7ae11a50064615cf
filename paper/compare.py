"""Whether one network is better than another, and how sure that is: the two-sided p of each comparison.

Several seeds of both are compared by Welch's t. Else two networks are compared on the same test images: classifiers by McNemar's
exact test, PSNR by a bootstrap over the images. Runs that kept no outcome per image can only be compared as if their test images
were different ones, which hides all but large differences. A test on the images of one seed each speaks of these two networks,
not of how they are trained.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from paper.tables import CIFAR, Key

LEVEL = 0.05  # of a comparison: it is decided where p is at most this
DRAWS = 10_000  # of a bootstrap
IMAGES = {"error": 10_000, "psnr": 68}  # test images of CIFAR and of BSD68
SPREAD = 2.3  # dB, the standard deviation of PSNR over the images of BSD68, of r3.bsd-gray-25 at one step, sigma 25


class Outcomes(NamedTuple):
    """What was measured of a network on its test images.

    Attributes:
        value: error in % or PSNR in dB; nan where a run diverged or does not converge on the test images.
        each: of each image, 100 where it is wrong and 0 elsewhere, or its PSNR in dB; None where it was not kept.
        labels: the labels of the images, by which one sees that two networks saw the same in the same order.
    """

    value: float
    each: np.ndarray | None = None
    labels: bytes = b""


Seeds = Mapping[Key, Mapping[int, Outcomes]]  # by the number of the seed


class Comparison(NamedTuple):
    """By how much the one is better, in points of error or dB, and the p of no difference."""

    gain: float
    p: float
    how: str

    def outcome(self, level: float = LEVEL) -> bool | None:
        """Whether it is better; None if that is not decided."""
        return self.gain > 0 if self.p <= level else None


def by_order(worse: Mapping[int, Outcomes], better: Mapping[int, Outcomes], key: Key, slack: float) -> Comparison:
    """Of figures that come without an error, as the paper's: their order."""
    (a,), (b,) = ([outcomes.value for outcomes in seeds.values()] for seeds in (worse, better))
    return _of_nan([a], [b]) or Comparison(_gains(key) * (b - a) + slack, 0.0, "order")


def compare(worse: Mapping[int, Outcomes], better: Mapping[int, Outcomes], key: Key, slack: float) -> Comparison:
    """Of measured seeds, one or several each; `slack`: how much worse the better one may be."""
    a, b = ([outcomes.value for outcomes in seeds.values()] for seeds in (worse, better))
    if of_nan := _of_nan(a, b):
        return of_nan
    sign = _gains(key)
    if len(a) > 1 and len(b) > 1:
        return welch([sign * value for value in a], [sign * value for value in b], slack)
    seed = min(worse.keys() & better.keys(), default=None)
    one, other = (seeds[min(seeds) if seed is None else seed] for seeds in (worse, better))
    if one.each is None or other.each is None or one.labels != other.labels or len(one.each) != len(other.each):
        return unpaired(sign * (other.value - one.value) + slack, one, other, key)
    gains = sign * (other.each.astype(float) - one.each)
    if key.data not in CIFAR:
        return bootstrap(gains + slack)
    return normal(gains + slack) if slack else mcnemar(int((gains > 0).sum()), int((gains < 0).sum()), float(gains.mean()))


def _gains(key: Key) -> int:
    """The sign by which a larger value is a better one."""
    return -1 if key.data in CIFAR else 1


def _of_nan(worse: Sequence[float], better: Sequence[float]) -> Comparison | None:
    """What does not converge is worse than anything; where only some seeds of the worse one do not, nothing is decided."""
    if any(map(math.isnan, better)):
        return Comparison(-math.inf, 0.0, "not convergent")
    if all(map(math.isnan, worse)):
        return Comparison(math.inf, 0.0, "not convergent")
    return Comparison(math.nan, 1.0, "partly not convergent") if any(map(math.isnan, worse)) else None


def welch(a: Sequence[float], b: Sequence[float], slack: float = 0.0) -> Comparison:
    """Welch's t of the means of seeds (larger is better)."""
    gain = float(np.mean(b) - np.mean(a)) + slack
    of_a, of_b = (float(np.var(values, ddof=1)) / len(values) for values in (a, b))
    if of_a + of_b == 0:
        return Comparison(gain, float(gain == 0), "Welch")
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return Comparison(gain, t_test(gain / math.sqrt(of_a + of_b), freedom), "Welch")


def t_test(t: float, freedom: float) -> float:
    """The two-sided p of Student's t: with t = sqrt(freedom) tan(x), its density is that of cos(x) ** (freedom - 1)."""
    x, width = np.linspace(0.0, math.atan(abs(t) / math.sqrt(freedom)), 2001, retstep=True)
    y = np.cos(x) ** (freedom - 1)
    inside = float(width * (y.sum() - (y[0] + y[-1]) / 2))
    log_whole = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(math.pi) / 2
    return min(1.0, max(0.0, 1 - 2 * inside * math.exp(log_whole)))


def mcnemar(gained: int, lost: int, gain: float) -> Comparison:
    """The exact test of the images that one network gets right and the other does not."""
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1))
    return Comparison(gain, min(1.0, 2 * tail / 2**count), "McNemar")


def bootstrap(gains: np.ndarray) -> Comparison:
    """Of the mean of differences per image, whose distribution is not known: p from drawing the images again."""
    drawn = np.random.default_rng(0).integers(0, len(gains), (DRAWS, len(gains)))
    means = gains[drawn].mean(1)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Comparison(float(gains.mean()), min(1.0, 2 * (tail + 1) / (DRAWS + 1)), "bootstrap")


def normal(gains: np.ndarray) -> Comparison:
    """Of the mean of many differences per image, beside a margin, which McNemar's test does not know."""
    return gauss(float(gains.mean()), float(gains.std()) / math.sqrt(len(gains)), "paired")


def unpaired(gain: float, one: Outcomes, other: Outcomes, key: Key) -> Comparison:
    """As if the test images of the two networks were drawn apart."""
    if key.data in CIFAR:
        variances = [value * (100 - value) / IMAGES["error"] for value in (one.value, other.value)]
    else:
        variances = [SPREAD**2 / IMAGES["psnr"]] * 2
    return gauss(gain, math.sqrt(sum(variances)), "unpaired")


def gauss(gain: float, error: float, how: str) -> Comparison:
    """By the standard error of a normal distribution."""
    return Comparison(gain, math.erfc(abs(gain) / error / math.sqrt(2)) if error else float(gain == 0), how)
