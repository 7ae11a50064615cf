"""A discrete-event simulator of the serving engine: the real scheduler and policies, a clock that jumps, calls that take what
a function says."""

import heapq
import random
from itertools import pairwise
from typing import NamedTuple

from rcnet.serve.requests import Batch, Refused, Request
from rcnet.setting import Setting


class Outcome(NamedTuple):
    """What became of one request: `done`, or why it was refused; when it arrived and ended; at which setting."""

    model: str
    fate: str
    arrived: float
    ended: float
    setting: Setting | None = None

    @property
    def seconds(self):
        return self.ended - self.arrived


def poisson(phases, seed=0):
    """Arrival times of phases (seconds, requests a second)."""
    rng, start, times = random.Random(seed), 0.0, []
    for seconds, rate in phases:
        time = start + rng.expovariate(rate)
        while time < start + seconds:
            times.append(time)
            time += rng.expovariate(rate)
        start += seconds
    return times


def simulate(scheduler, arrivals, takes):
    """The outcomes of arrivals (time, model, pixels); a batch takes `takes(time, model, setting, pixels, batch)` seconds."""
    outcomes, events, serial = [], [], 0
    running = {}
    for time, model, pixels in arrivals:
        heapq.heappush(events, (time, serial := serial + 1, (model, pixels)))

    def end(request, fate, now, setting=None):
        outcomes.append(Outcome(request.model, fate, request.arrived, now, setting))

    while events:
        now, _, what = heapq.heappop(events)
        if isinstance(what, Batch):
            worker = running.pop(what)
            scheduler.done(what, now - what.started, now, worker)
            for request in what.requests:
                end(request, "done", now, what.setting)
        else:
            model, pixels = what
            request = Request(model, (pixels,), pixels, now + scheduler.objective)
            try:
                scheduler.submit(request, now)
            except Refused as refusal:
                end(request, refusal.reason, now)
        for worker in set(range(len(scheduler.free))) - set(running.values()):
            for request in scheduler.late(now):
                end(request, "late", now)
            batch = scheduler.next(now, worker)
            if batch:
                running[batch] = worker
                seconds = takes(now, batch.model, batch.setting, batch.requests[0].pixels, len(batch.requests))
                heapq.heappush(events, (now + seconds, serial := serial + 1, batch))
    assert not scheduler.waiting
    assert len(outcomes) == len(arrivals)
    return outcomes


def switches(outcomes, model):
    """How often the setting changed from one answer to the next."""
    settings = [o.setting for o in sorted(outcomes, key=lambda o: o.ended) if o.model == model and o.fate == "done"]
    return sum(a != b for a, b in pairwise(settings))
