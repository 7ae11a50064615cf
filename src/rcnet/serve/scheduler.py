"""The queue: who is admitted, what runs next and at which setting. No clock and no input or output of its own."""

import bisect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rcnet.errors import InputError
from rcnet.serve.costs import Costs
from rcnet.serve.policies import Ask, Dial, Policy, State, Stream, ends
from rcnet.setting import Setting, listed

RECENT, LONGEST = 4.0, 1.0  # objectives over which the rate of arrivals is averaged, and seconds at most
GAPS = 3.0  # mean gaps between two arrivals: a longer silence says that their rate fell
BLOCK = 0.25  # of the objective: no longer is a batch of several, so that those who come meanwhile are in time
MEMORY = 2.0  # seconds over which the demand for a model is averaged
UNUSED = 0.005  # of the machine: a model of which less was asked lately has no claim
PROBE = 0.5  # seconds without a measurement, after which an idle engine takes a request that it would refuse
BOLD = 4.0  # but not one that takes more than this many times what it may
log = logging.getLogger(__name__)


class Dials(NamedTuple):
    """What the scheduler knows of a model: MACs a pixel and quality by setting, and those that a policy may choose."""

    macs: Mapping[Setting, float]
    quality: Mapping[Setting, float]
    offered: tuple[Setting, ...]


@dataclass(eq=False)
class Request:
    """One image to be computed.

    Attributes:
        shape: requests of one model and shape can run in one batch.
        pixels: of the image.
        deadline: when the answer is due.
        pinned: the setting, if the client named one.
        window: seconds from when the client asked to the deadline; from when it is submitted unless given.
        client: who asked.
        alone: not in a batch with others, which died of something that may have been this one.
        probe: admitted to measure again, and never dropped as late.
        answer: where the engine puts the result.
    """

    model: str
    shape: tuple[int, ...]
    pixels: int
    deadline: float
    payload: Any = None
    pinned: Setting | None = None
    window: float | None = None
    client: str = ""
    alone: bool = False
    probe: bool = False
    arrived: float = 0.0
    answer: Any = None


@dataclass(eq=False)
class Batch:
    """Requests of one model and shape that run together at one setting."""

    model: str
    setting: Setting
    requests: list[Request]
    started: float


class Refused(Exception):
    """A request that gets no result: why (`busy`, `large`, `late`, `down`, `failed`), a sentence, seconds until another try."""

    def __init__(self, reason: str, message: str, retry: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.retry = reason, retry


@dataclass
class Scheduler:
    """Admits requests that can be in time at the least settings, and makes batches of them, the earliest deadline first.

    Attributes:
        objective: seconds in which an answer is promised.
        bound: requests that may wait.
        most: requests in one batch.
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
        self._recent = min(RECENT * self.objective, LONGEST)
        self._arrived = {name: (0.0, 0.0, 0.0) for name in self.models}
        self._demand = {name: (0.0, 0.0) for name in self.models}
        self._usual = dict.fromkeys(self.models, 0.0)
        self._clients: dict[str, float] = {}
        self._measured = dict.fromkeys(self.models, -math.inf)

    def submit(self, request: Request, now: float) -> None:
        """Puts a request into the queue, or raises `Refused`."""
        request.arrived = now
        self.check(request, now)
        self._note_demand(request.model, self._seconds(request), now)
        self._note_arrival(request, now)
        bisect.insort(self.waiting, request, key=lambda r: r.deadline)

    def check(self, request: Request, now: float) -> None:
        """Raises `Refused` where the request would not be admitted now.

        What an idle server could not do in time either is no demand. What is refused as busy is demand for a share of the
        machine among several models, and moves no dial: the queue that it met says that already.
        """
        if math.isinf(min(self.free)):
            raise Refused("down", "no worker is up at the moment", 1.0)
        idle, left = self._idle(now), request.deadline - now
        window = left if request.window is None else request.window
        alone = self._mean(request) if idle else self._seconds(request)  # an idle worker has nothing better to do than to try
        if alone > left and idle and now - self._measured[request.model] > PROBE and alone < BOLD * left:
            request.probe = True
            return
        if alone > window:
            raise Refused(
                "large",
                f"this image takes about {1000 * alone:.0f} ms of {request.model} here and has "
                f"{1000 * max(window, 0):.0f} in all: give a later deadline or a smaller image",
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
            self._note_demand(request.model, alone, now)
            raise

    def cancel(self, request: Request) -> bool:
        """Takes a request out of the queue; False if it is not there (any more)."""
        if request not in self.waiting:
            return False
        self.waiting.remove(request)
        self._forget_arrival(request)
        return True

    def put_back(self, batch: Batch) -> None:
        """The requests of a batch whose worker died wait again, and each will run alone."""
        for request in batch.requests:
            request.alone = True
            bisect.insort(self.waiting, request, key=lambda r: r.deadline)

    def late(self, now: float) -> list[Request]:
        """Takes out, and returns, the requests that can no longer be in time: to compute them would make others late."""
        hopeless = [r for r in self.waiting if not r.probe and now + 0.8 * self._mean(r) > r.deadline]
        for request in hopeless:
            self.waiting.remove(request)
        return hopeless

    def next(self, now: float, worker: int = 0) -> Batch | None:
        """The batch that this worker takes now, or None if nothing waits."""
        if not self.waiting:
            return None
        head = self.waiting[0]
        chosen = self._choose(now)
        setting = self._setting(head, chosen)
        if head.pinned is None and chosen[head.model] != self._dials[head.model][0]:
            self._dials[head.model] = chosen[head.model], now
        mates = [r for r in self.waiting if r is not head and self._together(head, r, chosen)] if self.most > 1 else []
        batch = Batch(head.model, setting, [head, *mates][: self._size(head, setting, 1 + len(mates), now)], now)
        for request in batch.requests:
            self.waiting.remove(request)
        self.free[worker] = now + self.costs.seconds(batch.model, setting, head.pixels, len(batch.requests))
        return batch

    def done(self, batch: Batch, seconds: float, now: float, worker: int = 0) -> None:
        """A batch took so many seconds of computing."""
        trust = 1.0 if any(request.probe for request in batch.requests) else 0.3
        self.costs.observe(batch.model, batch.setting, batch.requests[0].pixels, len(batch.requests), seconds, trust)
        self._measured[batch.model] = now
        self.free[worker] = now

    def load(self, now: float) -> float:
        """Seconds until all that waits and runs would be done at the least settings."""
        free = max(min(self.free) - now, 0.0)
        return (free if math.isfinite(free) else 0.0) + sum(self._mean(r) for r in self.waiting) / len(self.free)

    def settings(self) -> dict[str, Setting]:
        """The setting that each model took last."""
        return {name: setting for name, (setting, _) in self._dials.items()}

    def claims(self, now: float) -> dict[str, float]:
        """The part of the machine that each model may count on: what was asked of it lately, or its fair share if that is less.

        Max-min fair: what a model leaves of its even share goes to those that ask for more.
        """
        wanted = sorted((self._decayed(name, now), name) for name in self.models)
        left, claim = 1.0, {}
        for i, (demand, name) in enumerate(wanted):
            claim[name] = min(demand, left / (len(wanted) - i))
            left -= claim[name]
        return claim

    def state(self, now: float, *more: Ask, cautious: float | None = None) -> State:
        """What a policy sees; `cautious` multiplies the mean cost."""
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

        return State(now, self.objective, dials, asks, tuple(self.free), cost, self._streams(now))

    @property
    def _cautious(self) -> float:
        return 1 + self.costs.spread

    def _ask(self, request: Request) -> Ask:
        pinned = request.pinned
        seconds = None if pinned is None else self._cautious * self.costs.seconds(request.model, pinned, request.pixels)
        return Ask(request.model, request.pixels, request.deadline, seconds)

    def _mean(self, request: Request) -> float:
        """What a request takes at the least, on average."""
        setting = self.models[request.model].offered[0] if request.pinned is None else request.pinned
        return self.costs.seconds(request.model, setting, request.pixels)

    def _seconds(self, request: Request) -> float:
        """What a request takes at the least, cautiously."""
        return self._cautious * self._mean(request)

    def _share(self, name: str, setting: Setting, pixels: int, waiting: int) -> float:
        """What one request takes where so many wait: its share of the best batch."""
        best = self.costs.seconds(name, setting, pixels)
        size, most, short = 2, min(waiting, self.most), BLOCK * self.objective / self._cautious
        while size <= most and (together := self.costs.seconds(name, setting, pixels, size)) <= short:
            best = min(best, together / size)
            size *= 2
        return best

    def _size(self, head: Request, setting: Setting, count: int, now: float) -> int:
        """How many to take: more only where that takes less time for each, or was never measured, and the first stays in time."""
        best, share = 1, self.costs.seconds(head.model, setting, head.pixels)
        for size in (1 << k for k in range(min(count, self.most).bit_length())):
            seconds = self.costs.seconds(head.model, setting, head.pixels, size)
            if size > 1 and self._cautious * seconds > min(head.deadline - now, BLOCK * self.objective):
                break
            hope = 1.0 if self.costs.measured(head.model, setting, head.pixels, size) else 0.9
            if hope * seconds / size < 0.97 * share:
                best, share = size, seconds / size
        return best

    def _together(self, head: Request, other: Request, chosen: Mapping[str, Setting]) -> bool:
        same = (head.model, head.shape) == (other.model, other.shape) and not head.alone and not other.alone
        return same and self._setting(head, chosen) == self._setting(other, chosen)

    def _setting(self, request: Request, chosen: Mapping[str, Setting]) -> Setting:
        return chosen[request.model] if request.pinned is None else request.pinned

    def _least(self) -> dict[str, Setting]:
        return {name: model.offered[0] for name, model in self.models.items()}

    def _choose(self, now: float) -> dict[str, Setting]:
        """What the policy says, the least where it says nothing; the least of all where it fails."""
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
        """Whether it, and what waits behind it, can be in time at the least settings, with room kept for other models' claims.

        What is within its own model's claim is judged less cautiously, for the others have kept room for it.
        """
        window, kept, within = request.deadline - now, 0.0, False
        claims = self.claims(now) if len(self.models) > 1 else {}
        for name, claim in claims.items():
            room = self._room(name, claim, window) - sum(map(self._seconds, self._of(name))) / len(self.free)
            if name == request.model:
                within = self._seconds(request) / len(self.free) <= room
            elif claim > UNUSED:
                kept += max(room, 0.0)
        plan = ends(self.state(now, ask, cautious=1.0 if within or self._idle(now) else self._cautious), self._least())
        i = next(i for i, (other, _) in enumerate(plan) if other is ask)
        return plan[i][1] + kept <= request.deadline and all(end <= other.deadline for other, end in plan[i:])

    def _idle(self, now: float) -> bool:
        return not self.waiting and min(self.free) <= now

    def _room(self, name: str, claim: float, window: float) -> float:
        """Seconds that a model's claim comes to: one request at least, and up to an even share two deviations of their number."""
        mean, usual = claim * window, self._usual[name]
        return max(usual, mean, min(mean + 2 * math.sqrt(mean * usual), window / len(self.models)))

    def _of(self, name: str) -> list[Request]:
        return [request for request in self.waiting if request.model == name]

    def _drain(self, now: float) -> float:
        """Seconds until there is likely to be room again."""
        done = [end for _, end in ends(self.state(now), self._least())]
        return max([now, *done, min(self.free)]) - now

    def _decayed(self, name: str, now: float) -> float:
        demand, since = self._demand[name]
        return demand * math.exp((since - now) / MEMORY)

    def _note_demand(self, name: str, seconds: float, now: float) -> None:
        self._usual[name] = seconds
        self._demand[name] = (self._decayed(name, now) + seconds / MEMORY / len(self.free), now)

    def _note_arrival(self, request: Request, now: float) -> None:
        left, more = self._left(request.model, now), 1 / self._recent
        rate, pixels, _ = self._arrived[request.model]
        self._arrived[request.model] = left * rate + more, left * pixels + more * request.pixels, now

    def _forget_arrival(self, request: Request) -> None:
        """One that was never computed is no demand."""
        rate, pixels, since = self._arrived[request.model]
        part = min(math.exp((request.arrived - since) / self._recent) / self._recent, rate)
        self._arrived[request.model] = rate - part, max(pixels - part * request.pixels, 0.0), since

    def _beyond_share(self, request: Request, now: float) -> bool:
        """Whether a client that has requests waiting would hold more of the time until the deadline than all others could.

        Others are those that asked within `MEMORY`; a client alone may fill the queue.
        """
        self._clients[request.client] = now
        self._clients = {client: seen for client, seen in self._clients.items() if now - seen < MEMORY}
        held = sum(self._mean(other) for other in self.waiting if other.client == request.client)
        share = (request.deadline - now) * len(self.free) / len(self._clients)
        return len(self._clients) > 1 and held > 0 and held + self._mean(request) > share

    def _left(self, name: str, now: float) -> float:
        """The part of the rate of arrivals that still holds: it fades, and after a silence it is no more than `GAPS` allows."""
        rate, _, since = self._arrived[name]
        silence = max(now - since, 1e-9)
        return min(math.exp(-silence / self._recent), GAPS / silence / max(rate, 1e-9))

    def _streams(self, now: float) -> dict[str, Stream]:
        """What was admitted lately."""
        return {
            name: Stream(rate * self._left(name, now), round(pixels / rate))
            for name, (rate, pixels, _) in self._arrived.items()
            if rate
        }


def pareto(quality: Mapping[Setting, float]) -> tuple[Setting, ...]:
    """Of settings, the least first, those that are better than every lesser one."""
    kept: list[Setting] = []
    for setting, value in quality.items():
        if not kept or value > quality[kept[-1]]:
            kept.append(setting)
    return tuple(kept)
