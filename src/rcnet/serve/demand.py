"""What clients asked for lately: the demand for each model, the rate of arrivals, and the clients."""

import math
from collections.abc import Iterable

from rcnet.serve.policies import Stream

# The rate of arrivals is averaged over RECENT objectives: a few deadlines' worth, so that one burst does not move it much. With a
# long objective no more than LONGEST seconds, or the dial would follow a change of load too late.
RECENT, LONGEST = 4.0, 1.0
GAPS = 3.0  # mean gaps between two arrivals: of random arrivals, 1 in 20 gaps is longer, so a longer silence means a lower rate
MEMORY = 2.0  # seconds over which the demand for a model is averaged, and for which a client counts as active


class Demand:
    """Averages that fade with time, per model.

    Args:
        models: their names.
        objective: seconds in which an answer is promised.
        workers: the number of workers that share the work.
    """

    def __init__(self, models: Iterable[str], objective: float, workers: int) -> None:
        self._models, self._workers = list(models), workers
        self._recent = min(RECENT * objective, LONGEST)
        self._share = dict.fromkeys(self._models, (0.0, 0.0))  # of the machine that was asked for, and when
        self._usual = dict.fromkeys(self._models, 0.0)  # seconds of the last request
        self._arrived = dict.fromkeys(self._models, (0.0, 0.0, 0.0))  # arrivals and pixels per second, and when
        self._clients: dict[str, float] = {}

    def add(self, model: str, seconds: float, now: float) -> None:
        """A request for so many seconds of a worker, admitted or refused as busy."""
        self._usual[model] = seconds
        self._share[model] = (self._asked(model, now) + seconds / MEMORY / self._workers, now)

    def claims(self, now: float) -> dict[str, float]:
        """The share of the machine that each model may count on: what it was asked for lately, or its fair share if that is less.

        Max-min fair: what a model leaves of its even share goes to those with more demand.
        """
        wanted = sorted((self._asked(model, now), model) for model in self._models)
        left, claim = 1.0, {}
        for i, (demand, model) in enumerate(wanted):
            claim[model] = min(demand, left / (len(wanted) - i))
            left -= claim[model]
        return claim

    def room(self, model: str, claim: float, window: float) -> float:
        """The seconds of a window that a claim reserves: at least one request, at most two standard deviations above the mean of
        random arrivals or an even share, whichever is less."""
        mean, usual = claim * window, self._usual[model]
        return max(usual, mean, min(mean + 2 * math.sqrt(mean * usual), window / len(self._models)))

    def clients(self, client: str, now: float) -> int:
        """The number of clients that asked lately, this one included."""
        self._clients[client] = now
        self._clients = {name: seen for name, seen in self._clients.items() if now - seen < MEMORY}
        return len(self._clients)

    def arrive(self, model: str, pixels: int, now: float) -> None:
        """An image was admitted."""
        left, more = self._remaining(model, now), 1 / self._recent
        rate, rate_of_pixels, _ = self._arrived[model]
        self._arrived[model] = left * rate + more, left * rate_of_pixels + more * pixels, now

    def withdraw(self, model: str, pixels: int, arrived: float) -> None:
        """An image that was admitted then was cancelled before it ran."""
        rate, rate_of_pixels, since = self._arrived[model]
        part = min(math.exp((arrived - since) / self._recent) / self._recent, rate)
        self._arrived[model] = rate - part, max(rate_of_pixels - part * pixels, 0.0), since

    def streams(self, now: float) -> dict[str, Stream]:
        """The recent arrivals of each model that had any."""
        return {
            model: Stream(rate * self._remaining(model, now), round(pixels / rate))
            for model, (rate, pixels, _) in self._arrived.items()
            if rate
        }

    def _asked(self, model: str, now: float) -> float:
        share, since = self._share[model]
        return share * math.exp((since - now) / MEMORY)

    def _remaining(self, model: str, now: float) -> float:
        """The fraction of the rate of arrivals that still holds: it fades, and after a silence `GAPS` limits it."""
        rate, _, since = self._arrived[model]
        silence = max(now - since, 1e-9)
        return min(math.exp(-silence / self._recent), GAPS / silence / max(rate, 1e-9))
