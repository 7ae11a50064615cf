"""What a call takes, learned from the calls themselves while they run."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

COLD = 1e-11  # seconds a MAC before anything was measured
ERROR = 1.0  # of a prediction, in nats: a larger one counts as this


class Costs:
    """Seconds of a call by model, setting, batch and size.

    Each model has a pace, seconds a MAC, for every (setting, batch, quarter octave of pixels) that was measured; what was not
    takes the pace of the measured call nearest in work. All paces are multiplied by one factor that follows within a few calls
    how much slower the machine is than it was: other work on it slows all calls alike.
    """

    def __init__(self) -> None:
        self.slow = 1.0
        self.spread = 0.1  # the usual error of a prediction, in nats
        self._macs: dict[str, Mapping[Hashable, float]] = {}
        self._pace: dict[str, dict[tuple[Hashable, int, int], tuple[float, float]]] = {}

    def add(self, model: str, macs: Mapping[Any, float]) -> None:
        """`macs`: of one pixel at each setting."""
        self._macs[model] = macs
        self._pace.setdefault(model, {})

    def seconds(self, model: str, setting: Hashable, pixels: int, batch: int = 1) -> float:
        """The time of a call that gives every image of a batch, each of so many pixels."""
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
        """A call took this long; `trust`: the part of an error of the prediction that is laid to the machine's speed."""
        known, key = self._pace[model], _key(setting, pixels, batch)
        work = self._macs[model][setting] * pixels * batch
        if key in known:
            error = math.log(seconds / self.seconds(model, setting, pixels, batch))
            self.slow *= math.exp(trust * max(-ERROR, min(error, ERROR)))
            self.spread += 0.05 * (min(abs(error), ERROR) - self.spread)
        pace = seconds / self.slow / work
        before = known.get(key, (pace, work))[0]
        known[key] = (before + 0.1 * (pace - before), work)


def _key(setting: Hashable, pixels: int, batch: int) -> tuple[Hashable, int, int]:
    return setting, batch, round(4 * math.log2(pixels))
