"""The queue: which requests are admitted, what runs next and at which setting. Without a clock, input or output of its own."""

import bisect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rcnet.errors import InputError
from rcnet.serve.costs import Costs
from rcnet.serve.demand import Demand
from rcnet.serve.policies import Ask, Dial, Policy, State, ends
from rcnet.serve.requests import Batch, Dials, Refused, Request
from rcnet.setting import Setting, listed

BLOCK = 0.25  # of the objective: the longest batch of several requests, as what arrives meanwhile must wait for its end
UNUSED = 0.005  # of the machine: with less demand a model reserves no room; demand only fades, it never reaches 0
# Only a measurement corrects an estimate that is too high, but its requests are refused. So an idle engine computes one of them
# if nothing was measured for PROBE seconds: often enough to notice within a second, seldom enough to cost little. It computes
# none that is expected to take BOLD times the time left, as that would block the worker for the next ones.
PROBE, BOLD = 0.5, 4.0
HOPELESS = 0.8  # of the expected time: a request is late only if a call a fifth faster than expected would be
GAIN = 0.97  # of the time per image: a larger batch must save at least 3 %, more than the noise of measurements
TRUST = 0.3  # of a wrong estimate, the part blamed on the machine's speed: one outlier moves it little, three calls show a change
UNTRIED = 0.9  # of the time per image, assumed for a batch size that was never measured: so each size is tried once
log = logging.getLogger(__name__)


@dataclass
class Scheduler:
    """Admits requests that can meet their deadlines at the least settings, and batches them, earliest deadline first.

    Attributes:
        objective: seconds in which an answer is promised.
        bound: the largest number of waiting requests.
        most: the largest batch.
        free: when each worker is free; infinity while it is down.
    """

    models: Mapping[str, Dials]
    policy: Policy
    objective: float
    bound: int = 256
    most: int = 8
    workers: int = 1
    costs: Costs = field(default_factory=Costs)
    waiting: list[Request] = field(default_factory=list)
    free: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, model in self.models.items():
            self.costs.add(name, model.macs)
        self.free = self.free or [0.0] * self.workers
        self._dials = {name: (model.offered[-1], -math.inf) for name, model in self.models.items()}
        self.demand = Demand(self.models, self.objective, len(self.free))
        self._measured = dict.fromkeys(self.models, -math.inf)

    def submit(self, request: Request, now: float) -> None:
        """Puts a request into the queue, or raises `Refused`."""
        request.arrived = now
        self.check(request, now)
        self.demand.add(request.model, self._seconds(request), now)
        self.demand.arrive(request.model, request.pixels, now)
        bisect.insort(self.waiting, request, key=lambda r: r.deadline)

    def check(self, request: Request, now: float) -> None:
        """Raises `Refused` if the request would not be admitted now.

        A request that even an idle server would finish late does not count as demand. One that is refused as busy counts toward
        its model's share of the machine, but not as an arrival, as policies see the full queue already.
        """
        if math.isinf(min(self.free)):
            raise Refused("down", "no worker is up at the moment", 1.0)
        idle, left = self._idle(now), request.deadline - now
        window = left if request.window is None else request.window
        alone = self._mean(request) if idle else self._seconds(request)  # if idle, an attempt delays nobody
        if alone > left and idle and now - self._measured[request.model] > PROBE and alone < BOLD * left:
            request.probe = True
            return
        if alone > window:
            raise Refused(
                "large",
                f"{request.model} needs about {1000 * alone:.0f} ms for this image here, and its deadline allows "
                f"{1000 * max(window, 0):.0f}: give a later deadline or a smaller image",
            )
        try:
            if len(self.waiting) >= self.bound:
                raise Refused("busy", "too many requests are waiting", self._drain(now))
            if alone > left:
                raise Refused("busy", "the time left is too short for this image", self._drain(now))
            if self._beyond_share(request, now):
                raise Refused("busy", "you have more requests waiting than your share: others wait too", self._drain(now))
            if not self._fits(request, self._ask(request), now):
                raise Refused("busy", "the answer would be too late even at the least setting", self._drain(now))
        except Refused:
            self.demand.add(request.model, alone, now)
            raise

    def cancel(self, request: Request) -> bool:
        """Removes a request from the queue; False if it does not wait."""
        if request not in self.waiting:
            return False
        self.waiting.remove(request)
        self.demand.withdraw(request.model, request.pixels, request.arrived)
        return True

    def put_back(self, batch: Batch) -> None:
        """Queues the requests of a failed batch again; each will run alone."""
        for request in batch.requests:
            request.alone = True
            bisect.insort(self.waiting, request, key=lambda r: r.deadline)

    def late(self, now: float) -> list[Request]:
        """Removes and returns the requests that can no longer be in time, as computing them would delay others."""
        hopeless = [r for r in self.waiting if not r.probe and now + HOPELESS * self._mean(r) > r.deadline]
        for request in hopeless:
            self.waiting.remove(request)
        return hopeless

    def next(self, now: float, worker: int = 0) -> Batch | None:
        """The next batch for this worker, or None if nothing waits."""
        if not self.waiting:
            return None
        head = self.waiting[0]
        chosen = self._choose(now)
        setting = self._setting(head, chosen)
        if head.pinned is None and chosen[head.model] != self._dials[head.model][0]:
            self._dials[head.model] = chosen[head.model], now
        mates = [
            other
            for other in self.waiting
            if other is not head
            and (other.model, other.shape) == (head.model, head.shape)
            and not (head.alone or other.alone)
            and self._setting(other, chosen) == setting
        ]
        batch = Batch(head.model, setting, [head, *mates][: self._size(head, setting, 1 + len(mates), now)], now)
        for request in batch.requests:
            self.waiting.remove(request)
        self.free[worker] = now + self.costs.seconds(batch.model, setting, head.pixels, len(batch.requests))
        return batch

    def done(self, batch: Batch, seconds: float, now: float, worker: int = 0) -> None:
        """Records that a batch took so many seconds."""
        probe = any(request.probe for request in batch.requests)  # a probe corrects a wrong estimate at once
        call = batch.model, batch.setting, batch.requests[0].pixels, len(batch.requests)
        self.costs.observe(*call, seconds, trust=1.0 if probe else TRUST)
        self._measured[batch.model] = now
        self.free[worker] = now

    def backlog(self, now: float) -> float:
        """Seconds until everything that waits or runs would be done at the least settings."""
        free = max(min(self.free) - now, 0.0)
        return (free if math.isfinite(free) else 0.0) + sum(self._mean(r) for r in self.waiting) / len(self.free)

    def settings(self) -> dict[str, Setting]:
        """The last setting of each model."""
        return {name: setting for name, (setting, _) in self._dials.items()}

    def state(self, now: float, *more: Ask, cautious: float | None = None) -> State:
        """What a policy sees; mean costs are multiplied by `cautious`, by default the usual error of estimates."""
        factor = cautious or self._cautious
        dials = {
            name: Dial({n: model.quality[n] for n in model.offered}, *self._dials[name]) for name, model in self.models.items()
        }
        asks = sorted([*map(self._ask, self.waiting), *more], key=lambda ask: ask.deadline)
        known: dict[tuple[str, Setting, int], float] = {}
        count = {name: sum(ask.model == name for ask in asks) for name in self.models}

        def cost(name: str, setting: Setting, pixels: int) -> float:
            key = name, setting, pixels
            if key not in known:
                known[key] = factor * self._share(name, setting, pixels, count[name])
            return known[key]

        return State(now, self.objective, dials, asks, tuple(self.free), cost, self.demand.streams(now))

    @property
    def _cautious(self) -> float:
        return 1 + self.costs.spread

    def _ask(self, request: Request) -> Ask:
        pinned = request.pinned
        seconds = None if pinned is None else self._cautious * self.costs.seconds(request.model, pinned, request.pixels)
        return Ask(request.model, request.pixels, request.deadline, seconds)

    def _mean(self, request: Request) -> float:
        """The mean seconds of a request at its least setting."""
        setting = self.models[request.model].offered[0] if request.pinned is None else request.pinned
        return self.costs.seconds(request.model, setting, request.pixels)

    def _seconds(self, request: Request) -> float:
        """A cautious estimate of the seconds of a request at its least setting."""
        return self._cautious * self._mean(request)

    def _share(self, name: str, setting: Setting, pixels: int, waiting: int) -> float:
        """The seconds of one request as its share of the best batch, if so many wait."""
        best = self.costs.seconds(name, setting, pixels)
        size, most, short = 2, min(waiting, self.most), BLOCK * self.objective / self._cautious
        while size <= most and (together := self.costs.seconds(name, setting, pixels, size)) <= short:
            best = min(best, together / size)
            size *= 2
        return best

    def _size(self, head: Request, setting: Setting, count: int, now: float) -> int:
        """The size of a batch: larger only if that saves time per image, or was never measured, and the first stays in time."""
        best, share = 1, self.costs.seconds(head.model, setting, head.pixels)
        for size in (1 << k for k in range(min(count, self.most).bit_length())):
            seconds = self.costs.seconds(head.model, setting, head.pixels, size)
            if size > 1 and self._cautious * seconds > min(head.deadline - now, BLOCK * self.objective):
                break
            hope = 1.0 if self.costs.measured(head.model, setting, head.pixels, size) else UNTRIED
            if hope * seconds / size < GAIN * share:
                best, share = size, seconds / size
        return best

    def _setting(self, request: Request, chosen: Mapping[str, Setting]) -> Setting:
        return chosen[request.model] if request.pinned is None else request.pinned

    def _least(self) -> dict[str, Setting]:
        return {name: model.offered[0] for name, model in self.models.items()}

    def _choose(self, now: float) -> dict[str, Setting]:
        """The policy's settings, the least for models it leaves out; the least for all models if the policy fails."""
        try:
            said = self.policy(self.state(now))
            chosen = {n: Setting.of(said.get(n, m.offered[0]), len(m.offered[0])) for n, m in self.models.items()}
            if wrong := [n for n, setting in chosen.items() if setting not in self.models[n].offered]:
                raise InputError(f"{wrong[0]} does not offer {chosen[wrong[0]]}: valid: {listed(self.models[wrong[0]].offered)}")
        except Exception:
            log.exception("the policy failed: the least settings are taken")
            return self._least()
        return chosen

    def _fits(self, request: Request, ask: Ask, now: float) -> bool:
        """Whether the request and all behind it can be in time at the least settings, with room for other models' claims.

        Inside its own model's claim it is judged by mean costs, as the other models have left room for it.
        """
        window, kept, within = request.deadline - now, 0.0, False
        claims = self.demand.claims(now) if len(self.models) > 1 else {}
        for name, claim in claims.items():
            queued = sum(self._seconds(r) for r in self.waiting if r.model == name)
            room = self.demand.room(name, claim, window) - queued / len(self.free)
            if name == request.model:
                within = self._seconds(request) / len(self.free) <= room
            elif claim > UNUSED:
                kept += max(room, 0.0)
        plan = ends(self.state(now, ask, cautious=1.0 if within or self._idle(now) else self._cautious), self._least())
        i = next(i for i, (other, _) in enumerate(plan) if other is ask)
        return plan[i][1] + kept <= request.deadline and all(end <= other.deadline for other, end in plan[i:])

    def _idle(self, now: float) -> bool:
        return not self.waiting and min(self.free) <= now

    def _drain(self, now: float) -> float:
        """Seconds until there is likely to be room again."""
        done = [end for _, end in ends(self.state(now), self._least())]
        return max([now, *done, min(self.free)]) - now

    def _beyond_share(self, request: Request, now: float) -> bool:
        """Whether a client with waiting requests would take more of the time until the deadline than its even share.

        The share is among the clients that asked lately; a client alone may fill the queue.
        """
        clients = self.demand.clients(request.client, now)
        taken = sum(self._mean(other) for other in self.waiting if other.client == request.client)
        share = (request.deadline - now) * len(self.free) / clients
        return clients > 1 and taken > 0 and taken + self._mean(request) > share
