"""Which setting each model takes: pure functions of the observed state.

A policy is any function of a `State` that returns a setting for each model, one of its `Dial.quality`. The slack-based one is
after SuperServe's SlackFit (Khare et al., arXiv 2312.16733), here with several models on one machine: time that is left over goes
where it buys the most measured quality.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rcnet.errors import InputError, unknown
from rcnet.models.registry import import_named
from rcnet.setting import Setting

FULL, DRAIN = 0.85, 1.5  # the part of the workers' time that what arrives may take; objectives until the queue is empty
HIGH, LOW, HOLD = 0.6, 0.25, 5.0  # of the hysteresis: shares of the objective; objectives between two steps up


class Ask(NamedTuple):
    """One request, as a policy sees it: the model, the pixels of the image, when the answer is due.

    `seconds` is what it takes if the client named the setting, which no policy can change then.
    """

    model: str
    pixels: int
    deadline: float
    seconds: float | None = None


class Dial(NamedTuple):
    """One model.

    Attributes:
        quality: of each setting that the policy may choose, the least first, rising: minus the logarithm of the measured error
            (mean square for images, share of wrong answers for classes), so that models of different tasks compare.
        setting: of the batch before.
        since: when it was taken.
    """

    quality: Mapping[Setting, float]
    setting: Setting
    since: float

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Those that the policy may choose, the least first."""
        return tuple(self.quality)

    def lower(self, setting: Setting) -> Setting:
        """The next one down, or the least."""
        return self.settings[max(self.settings.index(setting) - 1, 0)]

    def higher(self, setting: Setting) -> Setting:
        """The next one up, or the best."""
        return self.settings[min(self.settings.index(setting) + 1, len(self.settings) - 1)]


class Stream(NamedTuple):
    """What arrived for one model lately: requests a second, and the mean of their pixels."""

    rate: float
    pixels: int


class State(NamedTuple):
    """What is known when a batch is about to be made.

    Attributes:
        now: seconds of the clock that all times here are of.
        objective: seconds in which an answer is promised.
        models: by name.
        waiting: the requests, the earliest deadline first.
        free: when each worker is free.
        cost: (model, setting, pixels) -> seconds that one request takes of a worker, cautiously.
        streams: of the models for which anything arrived.
    """

    now: float
    objective: float
    models: Mapping[str, Dial]
    waiting: Sequence[Ask]
    free: Sequence[float]
    cost: Callable[[str, Setting, int], float]
    streams: Mapping[str, Stream]


Chosen = Mapping[str, Setting]
Policy = Callable[[State], Chosen]


def fixed(state: State) -> Chosen:
    """The best setting, always."""
    return {name: dial.settings[-1] for name, dial in state.models.items()}


def least(state: State) -> Chosen:
    """The least setting, always."""
    return {name: dial.settings[0] for name, dial in state.models.items()}


def hysteresis(state: State) -> Chosen:
    """One setting down where what waits takes more than `HIGH` of the objective, one up where it would take less than `LOW`."""
    chosen = {name: dial.setting for name, dial in state.models.items()}
    load = (finish(state, chosen) - state.now) / state.objective
    if load > HIGH:
        return {name: dial.lower(dial.setting) for name, dial in state.models.items()}
    ripe = {name: dial for name, dial in state.models.items() if state.now - dial.since > HOLD * state.objective}
    up = chosen | {name: dial.higher(dial.setting) for name, dial in ripe.items()}
    return up if (finish(state, up) - state.now) / state.objective < LOW else chosen


def slack(state: State) -> Chosen:
    """The best settings with which every waiting request is in time and the queue drains.

    From the least, the model whose next setting gains most quality for a second is raised, as long as both hold.
    """
    chosen = least(state)
    typical = {name: stream.pixels for name, stream in state.streams.items()} | {ask.model: ask.pixels for ask in state.waiting}
    open_ = {name for name in typical if len(state.models[name].quality) > 1}
    while open_:
        name = max(open_, key=lambda name: _gain(state, name, chosen[name], typical[name]))
        higher = {**chosen, name: state.models[name].higher(chosen[name])}
        if drains(state, higher) and in_time(state, higher):
            chosen = higher
        if chosen != higher or chosen[name] == state.models[name].settings[-1]:
            open_.remove(name)
    return chosen


def _gain(state: State, name: str, setting: Setting, pixels: int) -> float:
    """Quality that the next setting gains, a second."""
    dial = state.models[name]
    higher = dial.higher(setting)
    extra = state.cost(name, higher, pixels) - state.cost(name, setting, pixels)
    return (dial.quality[higher] - dial.quality[setting]) / max(extra, 1e-9)


def drains(state: State, chosen: Chosen) -> bool:
    """Whether the queue is empty within `DRAIN`, or by the last deadline, if requests go on arriving as they did lately."""
    up = [free for free in state.free if math.isfinite(free)]
    time = max([DRAIN * state.objective, *(ask.deadline - state.now for ask in state.waiting)])
    waiting = sum(max(free - state.now, 0.0) for free in up)
    for model, pixels, _, seconds in state.waiting:
        waiting += state.cost(model, chosen[model], pixels) if seconds is None else seconds
    arriving = sum(stream.rate * state.cost(name, chosen[name], stream.pixels) for name, stream in state.streams.items())
    return waiting + arriving / FULL * time <= time * len(up)


def in_time(state: State, chosen: Chosen) -> bool:
    """Whether each waiting request meets its deadline if all take these settings, the earliest deadline first."""
    return all(end <= ask.deadline for ask, end in ends(state, chosen))


def finish(state: State, chosen: Chosen) -> float:
    """When the last waiting request would be done."""
    return max([state.now, *(end for _, end in ends(state, chosen))])


def ends(state: State, chosen: Chosen) -> list[tuple[Ask, float]]:
    """When each waiting request would be done."""
    free, done, cost = [max(time, state.now) for time in state.free], [], state.cost
    heapq.heapify(free)
    for ask in state.waiting:
        end = free[0] + (cost(ask.model, chosen[ask.model], ask.pixels) if ask.seconds is None else ask.seconds)
        heapq.heapreplace(free, end)
        done.append((ask, end))
    return done


POLICIES: dict[str, Policy] = {"slack": slack, "hysteresis": hysteresis, "fixed": fixed, "least": least}


def policy(name: str) -> Policy:
    """A policy by its name, or a user's as `package.module:function`.

    Raises:
        InputError: no such policy, or nothing there that can be called.
    """
    if ":" not in name:
        if name not in POLICIES:
            raise unknown("policy", name, [*POLICIES, "package.module:function"])
        return POLICIES[name]
    module, _, function = name.partition(":")
    try:
        found = getattr(import_named(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"policy {name} cannot be loaded: {error}; give package.module:function") from error
    if not callable(found):
        raise InputError(f"policy {name} is not a function of a State")
    return found
