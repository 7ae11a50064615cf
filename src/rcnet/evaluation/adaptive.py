"""Adaptive cost per image: the cheapest setting runs first, and a larger one only if the network is unsure.

The threshold is calibrated as in "Fast yet Safe" (Jazbec et al. 2024, arXiv 2405.20915): on held-out images, for a given risk
relative to the full setting, with binomial tests from the safest threshold downward.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnet.calling import device_of, ready
from rcnet.cost.counting import macs
from rcnet.errors import InputError
from rcnet.network import RecurrentNet
from rcnet.setting import Setting

# The thresholds that are tested, safest first, as 1 - the probability of the likeliest class from which an answer is accepted.
# Spaced evenly in the logarithm, as the confidences of a trained classifier crowd near 1.
DOUBTS = tuple(np.geomspace(1e-5, 0.8, 80))
MANY = 5  # with more settings, cascades have two and not three: all share `chance`, so more cascades mean stricter tests
CHANCE = 0.1  # the probability that the risk is exceeded, as the help of rcnet eval --risk says


class Cascade(NamedTuple):
    """Settings, cheapest first. The first whose likeliest class has at least probability `confidence` answers, else the last."""

    steps: tuple[Setting, ...]
    confidence: float


class Answers(NamedTuple):
    """The predicted class and its probability for each setting and image, [settings, images]."""

    steps: tuple[Setting, ...]
    best: np.ndarray
    sure: np.ndarray


@torch.inference_mode()
def answers(
    model: RecurrentNet,
    images: Tensor,
    *,
    precision: str = "fp32",
    batch: int = 250,
    each: Callable[[int], object] = lambda images: None,
) -> Answers:
    """The predictions of every setting of a classifier.

    Args:
        images: uint8 [N, C, H, W].
        each: called with the number of images after each batch, for a progress bar.
    """
    device, best, sure = device_of(model), [], []
    for n in model.settings:
        call, parts = ready(model, n, precision), []
        for pixels in torch.split(images, batch):
            parts.append(call(pixels.to(device).float() / 255).softmax(1).max(1))
            each(len(pixels))
        sure.append(torch.cat([part.values for part in parts]).cpu().numpy())
        best.append(torch.cat([part.indices for part in parts]).cpu().numpy())
    return Answers(model.settings, np.stack(best), np.stack(sure))


def choose(given: Answers, cascade: Cascade) -> tuple[np.ndarray, np.ndarray]:
    """The prediction for each image, and how many settings of the cascade ran for it."""
    rows = [given.steps.index(n) for n in cascade.steps]
    enough = given.sure[rows] >= cascade.confidence
    enough[-1] = True
    first = enough.argmax(0)
    return np.take_along_axis(given.best[rows], first[None], 0)[0], first + 1


def mean_macs(ran: np.ndarray, cascade: Cascade, cost: dict[Setting, int]) -> float:
    """Mean multiply-accumulates per image. Every setting that ran counts in full, as nothing of the one before is reused."""
    sums = np.cumsum([cost[n] for n in cascade.steps])
    return float(sums[ran - 1].mean())


def chance_of(bad: int, count: int, rate: float) -> float:
    """The binomial probability of at most `bad` failures among `count`, for a failure rate in (0, 1).

    Example:
        >>> round(chance_of(1, 2, 0.5), 6)
        0.75
    """
    total = 0.0
    for k in range(bad + 1):
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        total += math.exp(ways + k * math.log(rate) + (count - k) * math.log1p(-rate))
    return total


def calibrate(given: Answers, labels: np.ndarray, cost: dict[Setting, int], risk: float, chance: float = CHANCE) -> Cascade:
    """The cheapest cascade whose error is at most `risk` (a fraction, e.g. 0.005) above that of the full setting. The
    probability that this fails is at most `chance`.

    The bound is on the rate of images that the full setting gets right and the cascade gets wrong, which is at least the
    difference of the errors. All cascades share `chance`. If none is safe and cheaper, the result is the full setting alone.

    Args:
        given: predictions for images held out from training.
        labels: their classes, [images].
        cost: MACs of each setting.

    Raises:
        InputError: `risk` or `chance` is not between 0 and 1, or there are no images.
    """
    for name, value in (("risk", risk), ("chance", chance)):
        if not 0 < value < 1:
            raise InputError(f"{name}={value:g} is not valid: give a fraction between 0 and 1, e.g. 0.005")
    if not len(labels):
        raise InputError("there are no images to calibrate on")
    full = max(given.steps, key=lambda n: cost[n])
    right = given.best[given.steps.index(full)] == labels
    fewer = [n for n in given.steps if cost[n] < cost[full]]
    lengths = (1, 2) if len(given.steps) <= MANY else (1,)
    chains = [(*chain, full) for length in lengths for chain in itertools.combinations(fewer, length)]
    best, least = Cascade((full,), 1.0), float(cost[full])
    for steps in chains:
        for doubt in DOUBTS:
            cascade = Cascade(steps, 1 - float(doubt))
            answer, ran = choose(given, cascade)
            harmed = int((right & (answer != labels)).sum())
            if chance_of(harmed, len(labels), risk) > chance / len(chains):
                break
            if (work := mean_macs(ran, cascade, cost)) < least:
                best, least = cascade, work
    return best


def adaptive_results(
    model: RecurrentNet,
    images: Tensor,
    labels: Tensor,
    risk: float,
    *,
    precision: str = "fp32",
    each: Callable[[int], object] = lambda images: None,
) -> dict[str, Any]:
    """A cascade calibrated on every other image and measured on the rest, and the fixed settings for comparison.

    The result has `steps` and `confidence` of the cascade; `risk` and `chance`; `rows` of the fixed settings and the cascade with
    `steps`, `macs` (for the cascade the mean), `error` in %, and for the cascade `ends`, the fraction of images that each setting
    answers; `curve`, the same for all thresholds; `fixed`, the error of fixed settings at the cascade's cost (between two
    settings, of choosing one at random per image); `pays`, whether the error of the cascade is lower.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].

    Raises:
        InputError: the network has only one setting; what `calibrate` raises.

    Example:
        >>> import rcnet, torch
        >>> net = rcnet.create_model("r2", steps=(1, 2), width=0.125).eval()
        >>> images, labels = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8), torch.arange(20) % 10
        >>> [row["steps"] for row in adaptive_results(net, images, labels, risk=0.1)["rows"]]  # random weights: no cascade
        [1, 2, (2,)]
    """
    if len(model.settings) < 2:
        raise InputError("this network has only one setting, so no cheaper one can run first")
    size = (images.shape[-2], images.shape[-1])
    cost, target = {n: macs(model, n, size) for n in model.settings}, labels.numpy()
    given = answers(model, images, precision=precision, each=each)
    halves = [Answers(given.steps, given.best[:, k::2], given.sure[:, k::2]) for k in (0, 1)]
    cascade = calibrate(halves[0], target[0::2], cost, risk)
    rest, truth = halves[1], target[1::2]
    fixed = [
        {"steps": n.to_json(), "macs": cost[n], "error": _error(row, truth)} for n, row in zip(rest.steps, rest.best, strict=True)
    ]

    def measured(at: Cascade) -> dict[str, Any]:
        answer, ran = choose(rest, at)
        shares = [round(float((ran == k + 1).mean()), 4) for k in range(len(at.steps))]
        return {
            "confidence": at.confidence,
            "macs": round(mean_macs(ran, at, cost)),
            "error": _error(answer, truth),
            "ends": shares,
        }

    reached, steps = measured(cascade), tuple(n.to_json() for n in cascade.steps)
    expected = _between(fixed, reached["macs"])
    return {
        "steps": steps,
        "confidence": cascade.confidence,
        "risk": risk,
        "chance": CHANCE,
        "calibrated_on": len(target[0::2]),
        "images": len(truth),
        "rows": [*fixed, {"steps": steps, **reached}],
        "curve": [measured(Cascade(cascade.steps, 1 - float(doubt))) for doubt in DOUBTS],
        "fixed": expected,
        "pays": reached["error"] < expected,
    }


def _error(answer: np.ndarray, truth: np.ndarray) -> float:
    return round(100 * float((answer != truth).mean()), 3)


def _between(fixed: Sequence[dict[str, Any]], work: float) -> float:
    """The error of fixed settings at this many MACs, linearly interpolated."""
    ordered = sorted(fixed, key=lambda row: row["macs"])
    return round(float(np.interp(work, [row["macs"] for row in ordered], [row["error"] for row in ordered])), 3)
