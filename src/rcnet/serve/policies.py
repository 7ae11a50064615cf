"""Policies choose the setting of each model: pure functions of the observed state.

A policy is any function of a `State` that returns one of the settings in `Dial.quality` for each model. `slack` is modelled on
SuperServe's SlackFit (Khare et al., arXiv 2312.16733), for several models on one machine: spare time goes where it buys the most
measured quality.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rcnet.errors import InputError, unknown
from rcnet.modules import import_named
from rcnet.setting import Setting

FULL = 0.85  # of the workers' time may go to arrivals: random ones would queue without end at 1
DRAIN = 1.5  # objectives until the queue is empty: longer than any admitted request waits
# Of the hysteresis: a step down above HIGH of the objective, while there is still time to react; a step up if the load would then
# be below LOW, far enough from HIGH not to step down again; and HOLD objectives between two steps up.
HIGH, LOW, HOLD = 0.6, 0.25, 5.0


class Ask(NamedTuple):
    """One request as a policy sees it.

    `seconds` is its cost if the client named the setting, which a policy cannot change then.
    """

    model: str
    pixels: int
    deadline: float
    seconds: float | None = None


class Dial(NamedTuple):
    """One model.

    Attributes:
        quality: of each setting that the policy may choose, ascending: minus the logarithm of the measured error (mean square
            for images, fraction of wrong answers for classes), so that models of different tasks are comparable.
        setting: the one of the last batch.
        since: when the policy changed to it.
    """

    quality: Mapping[Setting, float]
    setting: Setting
    since: float

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings that the policy may choose, the least first."""
        return tuple(self.quality)

    def lower(self, setting: Setting) -> Setting:
        """The next lower setting, or the least."""
        return self.settings[max(self.settings.index(setting) - 1, 0)]

    def higher(self, setting: Setting) -> Setting:
        """The next higher setting, or the best."""
        return self.settings[min(self.settings.index(setting) + 1, len(self.settings) - 1)]


class Stream(NamedTuple):
    """Recent arrivals for one model: requests per second and their mean pixels."""

    rate: float
    pixels: int


class State(NamedTuple):
    """What is known before the next batch.

    Attributes:
        now: the time, in seconds, as are all others here.
        objective: seconds in which an answer is promised.
        models: by name.
        waiting: the requests, earliest deadline first.
        free: when each worker is free.
        cost: (model, setting, pixels) -> a cautious estimate of a worker's seconds for one request.
        streams: recent arrivals of the models that had any.
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
    """One setting down if the queue takes more than `HIGH` of the objective, one up if it would take less than `LOW`."""
    chosen = {name: dial.setting for name, dial in state.models.items()}
    load = (finish(state, chosen) - state.now) / state.objective
    if load > HIGH:
        return {name: dial.lower(dial.setting) for name, dial in state.models.items()}
    ripe = {name: dial for name, dial in state.models.items() if state.now - dial.since > HOLD * state.objective}
    up = chosen | {name: dial.higher(dial.setting) for name, dial in ripe.items()}
    return up if (finish(state, up) - state.now) / state.objective < LOW else chosen


def slack(state: State) -> Chosen:
    """The best settings at which every waiting request is in time and the queue drains.

    Starting from the least, it raises the model whose next setting gains the most quality per second, while both hold.
    """
    chosen = least(state)
    typical = {name: stream.pixels for name, stream in state.streams.items()} | {ask.model: ask.pixels for ask in state.waiting}
    models = set(typical)  # whose settings may still be raised
    while models:
        name = max(models, key=lambda name: _gain(state, name, chosen[name], typical[name]))
        higher = {**chosen, name: state.models[name].higher(chosen[name])}
        if drains(state, higher) and in_time(state, higher):
            chosen = higher
        if chosen != higher or chosen[name] == state.models[name].settings[-1]:
            models.remove(name)
    return chosen


def _gain(state: State, name: str, setting: Setting, pixels: int) -> float:
    """The quality that the next setting gains per second."""
    dial = state.models[name]
    higher = dial.higher(setting)
    extra = state.cost(name, higher, pixels) - state.cost(name, setting, pixels)
    return (dial.quality[higher] - dial.quality[setting]) / max(extra, 1e-9)


def drains(state: State, chosen: Chosen) -> bool:
    """Whether the queue empties within `DRAIN` or by the last deadline if requests keep arriving at the recent rate."""
    up = [free for free in state.free if math.isfinite(free)]
    time = max([DRAIN * state.objective, *(ask.deadline - state.now for ask in state.waiting)])
    waiting = sum(max(free - state.now, 0.0) for free in up)
    for model, pixels, _, seconds in state.waiting:
        waiting += state.cost(model, chosen[model], pixels) if seconds is None else seconds
    arriving = sum(stream.rate * state.cost(name, chosen[name], stream.pixels) for name, stream in state.streams.items())
    return waiting + arriving / FULL * time <= time * len(up)


def in_time(state: State, chosen: Chosen) -> bool:
    """Whether every waiting request meets its deadline at these settings, computed earliest deadline first."""
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
        InputError: no such policy, or not a function.

    Example:
        >>> from rcnet.serve.policies import policy
        >>> policy("least").__doc__
        'The least setting, always.'
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
