"""The best setting of a session within a budget of time or MACs; times are measured on this machine."""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from rcnet.errors import InputError
from rcnet.runtime.denoise import denoise_images
from rcnet.runtime.latency import interleaved, measured_once, summary
from rcnet.runtime.results import best_of
from rcnet.runtime.session import Session
from rcnet.runtime.tiles import TILE, size_of, tiles
from rcnet.setting import Setting

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "MAC": 1.0, "kMAC": 1e3, "MMAC": 1e6, "GMAC": 1e9, "TMAC": 1e12}


class Budget(NamedTuple):
    """`amount` in milliseconds (`timed`) or MACs, and the text it was parsed from."""

    amount: float
    timed: bool
    text: str


def parse_budget(text: str) -> Budget:
    """Parses `50ms`, `0.2s`, `1min`, `2GMAC`, `300 MMACs` or `1e3MMAC`.

    Raises:
        InputError: not a positive number with one of the units.

    Example:
        >>> parse_budget("300MMAC")
        Budget(amount=300000000.0, timed=False, text='300MMAC')
    """
    match = re.fullmatch(r"((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?) *([a-zµμ]+)", text.strip(), re.IGNORECASE)
    named = re.sub("macs?$", "mac", match[2].lower()).translate({0xB5: "u", 0x3BC: "u"}) if match else ""
    unit = next((unit for unit in UNITS if unit.lower() == named), None)
    if unit is None or match is None or not 0 < float(match[1]) < float("inf"):
        raise InputError(
            f"budget {text!r} is not valid: give a time or a number of MACs above 0, e.g. 50ms, 0.2s, 1min, 300MMAC, 2GMAC "
            f"(units: {', '.join(UNITS)})"
        )
    return Budget(float(match[1]) * UNITS[unit], not unit.endswith("MAC"), text.strip())


def time_text(ms: float) -> str:
    """A time to print.

    Example:
        >>> time_text(250), time_text(1400)
        ('250 ms', '1.4 s')
    """
    return f"{ms / 1000:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"


def refuse_at_once(budget: Budget, call: Callable[[], object], times: float, setting: Setting, what: str) -> None:
    """Raises `InputError` before a long measurement if even the cheapest setting is far above the budget.

    Args:
        call: runs the cheapest setting on a part, e.g. one tile; the whole takes `times` as long.
    """
    call()
    best = float("inf")
    for _ in range(2):
        before = time.perf_counter()
        call()
        best = min(best, 1000 * times * (time.perf_counter() - before))
    if best > 1.3 * budget.amount:  # two calls are noisy: only clear cases are refused here
        raise InputError(f"no step count fits {budget.text} {what}: the cheapest, {setting}, takes {time_text(best)}")


def choose_setting(
    budget: Budget,
    cost: Mapping[Setting, float],
    what: str,
    metric: str = "",
    quality: Mapping[Setting, float] = MappingProxyType({}),
) -> Setting:
    """The best of the settings whose cost (milliseconds or MACs, as in the budget) fits, by the highest `psnr` or lowest `error`.
    If the quality is unknown, the last one in `cost`.

    Raises:
        InputError: none fits; the error names the cheapest.
    """
    fitting = [n for n, value in cost.items() if value <= budget.amount]
    if fitting:
        return best_of(fitting, metric, quality)
    cheapest = min(cost, key=lambda n: cost[n])
    amount = time_text(cost[cheapest]) if budget.timed else f"{cost[cheapest] / 1e9:.3g} GMAC"
    raise InputError(f"no step count fits {budget.text} {what}: the cheapest, {cheapest}, takes {amount}")


def latencies(
    session: Session, size: tuple[int, int], batch: int = 1, each: Callable[[], object] = lambda: None
) -> dict[Setting, dict[str, float]]:
    """`ms` (median) and `p95` of a warm call at each setting, measured interleaved; later calls reuse the measurement. Without
    the judge of a denoiser.

    Args:
        size: height and width of the input in pixels.
        each: called after each round of a new measurement, for a progress bar.
    """
    size = session.about.called_with(size)

    def measure() -> dict[str, dict[str, float]]:
        x = np.random.default_rng(0).random((batch, session.about.channels, *size), np.float32)
        level = np.full((batch, session.about.levels, 1, 1), 25, np.float32) if session.about.takes_level else None
        calls = {n: partial(session.run, x, n, level) for n in session.settings}
        return {str(n): summary(values) for n, values in interleaved(calls, each=each).items()}

    kept = measured_once({**session.identity, "size": list(size), "batch": batch}, measure)
    return {n: kept[str(n)] for n in session.settings}


def setting_for(session: Session, budget: str, size: tuple[int, int]) -> Setting:
    """The best setting whose call on one image of this height and width fits the budget.

    Raises:
        InputError: not a budget, or one that no setting fits.
    """
    asked = parse_budget(budget)
    if asked.timed:
        cost = {n: value["p95"] for n, value in latencies(session, size).items()}
    else:
        cost = {n: session.macs(n, size) for n in session.settings}
    return choose_setting(asked, cost, f"at {size[1]}x{size[0]} pixels", *session.quality())


def denoise_setting_for(session: Session, budget: str, shape: tuple[int, ...], tile: int = TILE) -> Setting:
    """The best setting with which `denoise` stays within the budget for images of this shape [B, C, H, W], e.g. `"50ms"`.

    As `setting_for`, but for the whole image: its channels and its tiles, of which the largest is measured.

    Raises:
        InputError: not a budget, or one that no setting fits.
    """
    asked, about, settings = parse_budget(budget), session.about, session.settings
    height, width = shape[-2:]
    planes = shape[0] * (shape[1] if about.channels == 1 else 1)
    seen = {
        n: Counter(about.called_with(size_of(place)) for _, _, place, _ in tiles(about, n, tile, height, width)) for n in settings
    }
    where = f"for {width}x{height} pixels, {shape[1]} channel{'s' * (shape[1] > 1)}"
    if not asked.timed:
        by_macs = {n: planes * sum(count * session.macs(n, size) for size, count in sizes.items()) for n, sizes in seen.items()}
        return choose_setting(asked, by_macs, where, *session.quality())
    largest = {n: max(sizes, key=lambda size: size[0] * size[1]) for n, sizes in seen.items()}
    times = {  # how many of the largest tile the image amounts to
        n: planes * sum(count * h * w for (h, w), count in sizes.items()) / (largest[n][0] * largest[n][1])
        for n, sizes in seen.items()
    }

    def measure() -> dict[str, float]:
        rng = np.random.default_rng(0)
        level = 25.0 if about.levels == 2 and session.judge(np.zeros((1, about.channels, 8, 8), np.float32)) is None else None
        calls = {
            n: partial(
                denoise_images, session, rng.random((1, about.channels, *largest[n]), np.float32), n, sigma=level, tile=0
            )  # any level takes the same time
            for n in settings
        }
        refuse_at_once(asked, calls[settings[0]], times[settings[0]], settings[0], where)
        return {str(n): summary(values)["p95"] for n, values in interleaved(calls).items()}

    measured = measured_once({**session.identity, "tiles": [list(size) for size in largest.values()]}, measure)
    return choose_setting(asked, {n: measured[str(n)] * times[n] for n in settings}, where, *session.quality())
