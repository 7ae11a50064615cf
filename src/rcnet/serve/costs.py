"""The time of a call, learned from the calls themselves while the server runs."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

COLD = 1e-11  # seconds per MAC before anything was measured: 100 GMAC/s, as a few cores reach
ERROR = 1.0  # the largest error of a prediction that counts, in nats: one stalled call must not look like a slow machine
# The weight of a new measurement: half of what is known is replaced within 7 calls of the pace and 14 of the spread.
PACE, SPREAD = 0.1, 0.05


class Costs:
    """Seconds of a call by model, setting, batch and size.

    Each model has a pace, seconds per MAC, for every measured (setting, batch, quarter octave of pixels); other calls take the
    pace of the measured call nearest in work. One factor multiplies all paces and follows the speed of the machine within a few
    calls, as other work slows all calls alike.
    """

    def __init__(self) -> None:
        self.slow = 1.0
        self.spread = 0.1  # the usual error of a prediction, in nats
        self._macs: dict[str, Mapping[Hashable, float]] = {}
        self._pace: dict[str, dict[tuple[Hashable, int, int], tuple[float, float]]] = {}

    def add(self, model: str, macs: Mapping[Any, float]) -> None:
        """`macs`: per pixel, at each setting."""
        self._macs[model] = macs
        self._pace.setdefault(model, {})

    def seconds(self, model: str, setting: Hashable, pixels: int, batch: int = 1) -> float:
        """The expected seconds of a batch of images with so many pixels each."""
        work = self._macs[model][setting] * pixels * batch
        known = self._pace[model]
        found = known.get(_key(setting, pixels, batch))
        if found is None and known:
            found = min(known.values(), key=lambda other: abs(math.log(other[1] / work)))
        return self.slow * work * (found[0] if found else COLD)

    def measured(self, model: str, setting: Hashable, pixels: int, batch: int = 1) -> bool:
        """Whether such a call was ever measured."""
        return _key(setting, pixels, batch) in self._pace[model]

    def observe(self, model: str, setting: Hashable, pixels: int, batch: int, seconds: float, trust: float = 0.3) -> None:
        """Records the seconds of a call; `trust` is the part of the prediction's error that is blamed on the machine's speed."""
        known, key = self._pace[model], _key(setting, pixels, batch)
        work = self._macs[model][setting] * pixels * batch
        if key in known:
            error = math.log(seconds / self.seconds(model, setting, pixels, batch))
            self.slow *= math.exp(trust * max(-ERROR, min(error, ERROR)))
            self.spread += SPREAD * (min(abs(error), ERROR) - self.spread)
        pace = seconds / self.slow / work
        before = known.get(key, (pace, work))[0]
        known[key] = (before + PACE * (pace - before), work)


def _key(setting: Hashable, pixels: int, batch: int) -> tuple[Hashable, int, int]:
    return setting, batch, round(4 * math.log2(pixels))
