"""The queue, its policies and costs, alone and in a simulation: no worker computes."""

import contextlib
import math
import random
import sys

import pytest

from rcnet.errors import InputError
from rcnet.serve.costs import Costs
from rcnet.serve.policies import Ask, Dial, State, Stream, drains, fixed, hysteresis, in_time, least, policy, slack
from rcnet.serve.requests import Dials, Refused, Request
from rcnet.serve.scheduler import Scheduler
from rcnet.setting import Setting

from .simulator import poisson, simulate, switches

PIXELS = 128 * 128
ONE, TWO, THREE = SETTINGS = tuple(Setting.of(n, 3) for n in (1, 2, 3))


def by_setting(*values):
    return dict(zip(SETTINGS, values, strict=False))


DENOISER = Dials(by_setting(59e3, 115e3, 170e3), by_setting(6.60, 6.63, 6.65), SETTINGS)  # r3_fast: MACs a pixel, PSNR in nats
CLASSIFIER = Dials(by_setting(186e3, 333e3, 370e3), by_setting(-2.52, -2.34, -2.33), SETTINGS)  # r2.cifar10


def of(chosen_policy, models=None, **options):
    return Scheduler(models or {"a": DENOISER}, chosen_policy, **{"objective": 0.15, "bound": 512, **options})


def machine(models, pace, seed=0, noise=0.1):
    """Calls that take their MACs at so many seconds each, with noise."""
    rng = random.Random(seed)
    return lambda now, model, setting, pixels, batch: (
        pace * models[model].macs[setting] * pixels * batch * rng.lognormvariate(0, noise)
    )


def served(outcomes, objective=0.15):
    return [o for o in outcomes if o.fate == "done" and o.seconds <= objective]


def admitted(outcomes):
    return [o for o in outcomes if o.fate in ("done", "late")]


def quality(outcomes, model):
    done = [o for o in outcomes if o.fate == "done"]
    return sum(model.quality[o.setting] for o in done) / len(done)


def valley_peak_valley(pace=1e-11, seconds=6.0):
    """A third of the capacity of the largest setting, three times that capacity, a third of it."""
    capacity = 1 / (pace * DENOISER.macs[THREE] * PIXELS)
    times = poisson([(seconds, capacity / 3), (seconds, 3 * capacity), (seconds, capacity / 3)])
    return [(time, "a", PIXELS) for time in times]


@pytest.mark.parametrize("chosen", [slack, hysteresis])
def test_an_adaptive_policy_keeps_its_promise_through_a_peak_of_three_times_the_capacity(chosen):
    arrivals = valley_peak_valley()
    takes = machine({"a": DENOISER}, 1e-11)
    adaptive, best = simulate(of(chosen), arrivals, takes), simulate(of(fixed, {"a": fixed_at(THREE)}), arrivals, takes)
    lowest = simulate(of(least), arrivals, takes)
    assert len(served(adaptive)) > 0.95 * len(admitted(adaptive))
    assert len(served(adaptive)) > 1.7 * len(served(best))
    assert len(served(adaptive)) > 0.9 * len(served(lowest))
    assert quality(adaptive, DENOISER) > quality(lowest, DENOISER) + 0.005
    valleys = [o for o in adaptive if o.arrived < 6 or o.arrived > 13]
    assert len(served(valleys)) > 0.99 * len(valleys)
    assert quality(valleys, DENOISER) > 0.9 * 6.65 + 0.1 * 6.63


def fixed_at(setting):
    return DENOISER._replace(offered=(setting,))


def test_more_than_twice_as_many_are_in_time_as_with_the_largest_setting_during_the_peak():
    arrivals = [a for a in valley_peak_valley() if 6 < a[0] < 12]
    takes = machine({"a": DENOISER}, 1e-11)
    adaptive, best = simulate(of(slack), arrivals, takes), simulate(of(fixed, {"a": fixed_at(THREE)}), arrivals, takes)
    assert len(served(adaptive)) > 2 * len(served(best))


def test_rates_far_past_this_machine():
    pace = 2e-15  # 180,000 images a second at the largest setting
    capacity = 1 / (pace * DENOISER.macs[THREE] * PIXELS)
    arrivals = [(time, "a", PIXELS) for time in poisson([(0.01, capacity / 3), (0.02, 3 * capacity)])]
    assert len(arrivals) > 9000
    scheduler = of(slack, objective=0.0001)
    scheduler.costs.observe("a", ONE, PIXELS, 1, pace * DENOISER.macs[ONE] * PIXELS)
    outcomes = simulate(scheduler, arrivals, machine({"a": DENOISER}, pace))
    assert len(served(outcomes, 0.0001)) > 0.95 * len(admitted(outcomes))
    assert len(served(outcomes, 0.0001)) > 0.8 * len(outcomes)


def test_several_workers_serve_as_many_times_more():
    arrivals = [(t, "a", PIXELS) for t in poisson([(3.0, 300)])]
    takes = machine({"a": DENOISER}, 1e-11)
    one, four = simulate(of(slack), arrivals, takes), simulate(of(slack, workers=4), arrivals, takes)
    assert len(served(four)) > 2.5 * len(served(one))
    assert len(served(four)) > 0.95 * len(admitted(four))


def test_a_machine_that_becomes_three_times_slower_is_noticed():
    arrivals = [(t, "a", PIXELS) for t in poisson([(12.0, 25)])]
    quick = machine({"a": DENOISER}, 1e-11)
    outcomes = simulate(of(slack), arrivals, lambda now, *call: quick(now, *call) * (3 if 4 < now < 8 else 1))
    before, during = ([o for o in outcomes if a < o.arrived < a + 3.5] for a in (0.5, 4.5))
    assert len(served(during)) > 0.9 * len(admitted(during))
    assert quality(during, DENOISER) < quality(before, DENOISER)
    after = [o for o in outcomes if o.arrived > 9]
    assert quality(after, DENOISER) == pytest.approx(quality(before, DENOISER), abs=0.01)


@pytest.mark.parametrize("chosen", [slack, hysteresis])
def test_a_policy_does_not_flutter(chosen):
    arrivals = [(t, "a", PIXELS) for t in poisson([(10.0, 55)])]
    takes = machine({"a": DENOISER}, 1e-11)
    assert switches(simulate(of(chosen), arrivals, takes), "a") < 0.1 * len(arrivals)


def test_a_flood_for_one_model_starves_no_other():
    models = {"a": DENOISER, "b": CLASSIFIER}
    flood = [(t, "a", PIXELS) for t in poisson([(8.0, 400)])]
    trickle = [(t, "b", 32 * 32) for t in poisson([(8.0, 20)], seed=1)]
    scheduler = of(slack, models)
    outcomes = simulate(scheduler, sorted(flood + trickle), machine(models, 1e-11))
    light = [o for o in outcomes if o.model == "b" and o.arrived > 1]
    assert len(served(light)) > 0.8 * len(light)
    assert len(served(outcomes)) > 0.95 * len(admitted(outcomes))


def test_two_floods_share_the_machine():
    models = {"a": DENOISER, "b": CLASSIFIER}
    arrivals = sorted(
        [(t, "a", PIXELS) for t in poisson([(6.0, 500)])] + [(t, "b", 72 * 72) for t in poisson([(6.0, 500)], seed=1)]
    )
    outcomes = served(simulate(of(slack, models), arrivals, machine(models, 1e-11)))
    time = {
        name: sum(models[name].macs[o.setting] * p for o in outcomes if o.model == name)
        for name, p in (("a", 128**2), ("b", 72**2))
    }
    assert 0.5 < time["a"] / time["b"] < 2


def state(waiting, models, cost, free=0.0, streams=None):
    return State(0.0, 0.1, models, waiting, (free,), cost, streams or {})


def test_time_goes_where_it_buys_the_most_quality():
    models = {"a": Dial(by_setting(0.0, 0.02, 0.03), ONE, 0), "b": Dial(by_setting(0.0, 0.2), ONE, 0)}
    waiting = [Ask("a", 1, 0.1), Ask("b", 1, 0.1)]
    chosen = slack(state(waiting, models, lambda name, setting, pixels: 0.03 * setting[0]))
    assert chosen == {"a": ONE, "b": TWO}
    assert slack(state(waiting, models, lambda name, setting, pixels: 0.01 * setting[0])) == {"a": THREE, "b": TWO}
    assert slack(state(waiting, models, lambda name, setting, pixels: 0.06 * setting[0])) == {"a": ONE, "b": ONE}


def test_quality_counts_by_the_time_that_it_takes():
    models = {"a": Dial(by_setting(0.0, 0.05), ONE, 0), "b": Dial(by_setting(9.0, 9.2), ONE, 0)}
    seconds = {("a", ONE): 0.02, ("a", TWO): 0.03, ("b", ONE): 0.02, ("b", TWO): 0.075}  # there is time for one of the two
    waiting = [Ask("a", 1, 0.1), Ask("b", 1, 0.1)]
    assert slack(state(waiting, models, lambda name, setting, pixels: seconds[name, setting])) == {"a": TWO, "b": ONE}


def test_slack_counts_what_the_worker_still_does_and_named_settings():
    models = {"a": Dial(by_setting(0.0, 0.1, 0.2), ONE, 0)}
    cost = lambda name, setting, pixels: 0.02 * setting[0]  # noqa: E731
    assert slack(state([Ask("a", 1, 0.1)], models, cost)) == {"a": THREE}
    assert slack(state([Ask("a", 1, 0.1)], models, cost, free=0.055)) == {"a": TWO}
    assert slack(state([Ask("a", 1, 0.1, seconds=0.055), Ask("a", 1, 0.1)], models, cost)) == {"a": TWO}


def test_slack_leaves_time_for_what_arrives():
    models = {"a": Dial(by_setting(0.0, 0.1, 0.2), ONE, 0), "b": Dial(by_setting(0.0, 0.1), ONE, 0)}
    cost = lambda name, setting, pixels: 0.01 * setting[0]  # noqa: E731
    assert slack(state([Ask("a", 1, 0.1)], models, cost, streams={"a": Stream(15, 1)})) == {"a": THREE, "b": ONE}
    assert slack(state([Ask("a", 1, 0.1)], models, cost, streams={"a": Stream(35, 1)})) == {"a": TWO, "b": ONE}
    assert slack(state([Ask("a", 1, 0.1)], models, cost, streams={"a": Stream(20, 1), "b": Stream(60, 1)})) == {
        "a": ONE,
        "b": ONE,
    }


def test_fixed_takes_the_best_setting_and_least_the_least():
    models = {"a": Dial(by_setting(0.0, 0.1, 0.2), TWO, 0)}
    assert (fixed(state([], models, None)), least(state([], models, None))) == ({"a": THREE}, {"a": ONE})


def test_the_queue_has_to_drain_within_one_and_a_half_objectives():
    models = {"a": Dial(by_setting(0.0), ONE, 0)}
    for seconds, enough in ((0.074, True), (0.076, False)):  # of 0.15 s, half go to arrivals: 0.425 of a worker of 0.85
        waiting = [Ask("a", 1, 0.1, seconds)]
        assert drains(state(waiting, models, lambda *_: 0.1, streams={"a": Stream(4.25, 1)}), {"a": ONE}) is enough
    assert drains(state([Ask("a", 1, 0.1, 1.5 * 0.1)], models, lambda *_: 0.1), {"a": ONE})  # all of the time
    late = [Ask("a", 1, 0.3, 0.14)]  # a later deadline allows more
    assert drains(state(late, models, lambda *_: 0.1, streams={"a": Stream(4.25, 1)}), {"a": ONE})


@pytest.mark.parametrize(
    ("setting", "seconds", "since", "then"),
    [
        (TWO, 0.061, 0.0, ONE),
        (TWO, 0.06, -9.0, TWO),
        (TWO, 0.025, -9.0, TWO),
        (TWO, 0.024, -9.0, THREE),
        (TWO, 0.024, -0.5, TWO),
        (TWO, 0.024, -0.51, THREE),
        (TWO, 0.024, -0.49, TWO),  # too soon after the last step
        (THREE, 0.061, 0.0, TWO),
        (ONE, 0.2, 0.0, ONE),
        (THREE, 0.0, -9.0, THREE),
    ],
)
def test_hysteresis_steps_down_above_and_up_below_its_thresholds(setting, seconds, since, then):
    models = {"a": Dial(by_setting(0.0, 0.1, 0.2), setting, since)}
    assert hysteresis(state([Ask("a", 1, 0.1, seconds)], models, lambda *_: 0.0)) == {"a": then}


@pytest.mark.parametrize(("seconds", "then"), [(0.07, ONE), (0.05, TWO), (0.02, THREE)])
def test_the_time_of_day_is_no_load(seconds, then):
    models = {"a": Dial(by_setting(0.0, 0.1, 0.2), TWO, 90.0)}
    later = state([Ask("a", 1, 100.1, seconds)], models, lambda *_: 0.0)._replace(now=100.0, free=(99.0,))
    assert hysteresis(later) == {"a": then}
    assert drains(later, {"a": TWO})
    assert not drains(later._replace(waiting=[Ask("a", 1, 100.1, 0.16)]), {"a": TWO})


def test_policies_count_every_worker_that_is_up():
    models = {"a": Dial(by_setting(0.0), ONE, 0)}
    second = state([Ask("a", 1, 0.1, 0.1)], models, None)._replace(free=(0.05, 0.0))
    assert in_time(second, {"a": ONE})  # on the one that is free now, at the very deadline
    two = state([Ask("a", 1, 0.1, 0.29)], models, None)._replace(free=(0.0, 0.0))
    assert drains(two, {"a": ONE})
    assert not drains(two._replace(free=(0.0, math.inf)), {"a": ONE})


def fill(scheduler, *requests):
    for request in requests:
        scheduler.submit(request, 0.0)


def test_batches_hold_one_model_shape_and_setting_and_the_earliest_deadline_goes_first():
    scheduler = of(fixed, {"a": fixed_at(TWO)}, objective=10)
    late, early = Request("a", (64, 64), 4096, 9.0), Request("a", (32, 32), 1024, 5.0)
    same, pinned = Request("a", (32, 32), 1024, 8.0), Request("a", (32, 32), 1024, 7.0, pinned=THREE)
    fill(scheduler, late, early, same, pinned)
    first = scheduler.next(0.0)
    assert (first.requests, first.setting) == ([early, same], TWO)
    second = scheduler.next(0.0)
    assert (second.requests, second.setting) == ([pinned], THREE)
    assert scheduler.next(0.0).requests == [late]
    assert scheduler.next(0.0) is None


def test_batches_grow_only_where_that_is_quicker():
    scheduler = of(least, objective=10)
    for size, seconds in ((1, 0.01), (2, 0.019), (4, 0.02), (8, 0.09)):
        scheduler.costs.observe("a", ONE, 1024, size, seconds)
    fill(scheduler, *(Request("a", (32, 32), 1024, 5.0) for _ in range(9)))
    assert [len(scheduler.next(0.0).requests) for _ in range(3)] == [4, 4, 1]


def test_what_is_refused_and_why():
    scheduler = of(slack, bound=3)
    scheduler.costs.observe("a", ONE, PIXELS, 1, 0.03)
    scheduler._measured["a"] = 0.0
    fill(scheduler, *(Request("a", (1,), PIXELS, 0.15) for _ in range(3)))
    with pytest.raises(Refused, match="too many") as full:
        fill(scheduler, Request("a", (1,), PIXELS, 0.15))
    assert full.value.reason == "busy"
    assert 0.05 < full.value.retry < 0.2
    scheduler.bound = 10
    with pytest.raises(Refused, match="too late even at the least") as busy:
        fill(scheduler, *(Request("a", (1,), PIXELS, 0.15) for _ in range(3)))
    assert busy.value.reason == "busy"
    with pytest.raises(Refused, match=r"a needs about 1[0-9]{3} ms for this image here, and its deadline allows 150:") as large:
        fill(scheduler, Request("a", (1,), 40 * PIXELS, 0.15))
    assert large.value.reason == "large"
    scheduler.free = [math.inf]
    with pytest.raises(Refused) as down:
        fill(scheduler, Request("a", (1,), PIXELS, 0.15))
    assert (down.value.reason, down.value.retry) == ("down", 1.0)


def test_a_cancelled_request_frees_its_place():
    scheduler = of(slack, bound=1)
    request = Request("a", (1,), 100, 0.15)
    fill(scheduler, request)
    assert scheduler.cancel(request)
    assert not scheduler.cancel(request)
    fill(scheduler, Request("a", (1,), 100, 0.15))


def test_an_idle_engine_measures_again_what_it_thinks_too_slow():
    scheduler = of(slack)
    scheduler.costs.observe("a", ONE, PIXELS, 1, 0.3)
    scheduler._measured["a"] = 0.0
    with pytest.raises(Refused):
        scheduler.submit(Request("a", (1,), PIXELS, 0.55), 0.4)
    request = Request("a", (1,), PIXELS, 5.15)
    scheduler.submit(request, 5.0)
    assert scheduler.late(5.1) == []
    batch = scheduler.next(5.1)
    for _ in range(20):
        scheduler.done(batch, 0.02, 5.2)
    scheduler.submit(Request("a", (1,), PIXELS, 5.4), 5.25)


@pytest.mark.parametrize(("has", "probe"), [(0.3, True), (0.1, False)])
def test_what_would_take_far_too_long_is_not_tried(has, probe):
    """Thought to take 0.825 s, a bit less than three times, or more than eight times, what the request has."""
    scheduler = of(slack)
    scheduler.costs.observe("a", ONE, PIXELS, 1, 0.75)
    request = Request("a", (1,), PIXELS, 5 + has)
    if probe:
        scheduler.submit(request, 5.0)
    else:
        with pytest.raises(Refused, match="give a later deadline"):
            scheduler.submit(request, 5.0)
    assert request.probe is probe


def test_one_call_that_hung_counts_as_a_slow_one():
    costs = Costs()
    costs.add("a", by_setting(100.0))
    costs.observe("a", ONE, 1000, 1, 0.01)
    costs.observe("a", ONE, 1000, 1, 10.0)  # a thousand times as long: the prediction is off by e, as far as the factor goes
    assert costs.slow == pytest.approx(math.exp(0.3))
    assert costs.spread == pytest.approx(0.1 + 0.05 * (1 - 0.1))
    costs.slow, costs.spread = 1.0, 0.1
    costs.observe("a", ONE, 1000, 1, 1e-6)
    assert costs.slow == pytest.approx(math.exp(-0.3))
    assert costs.spread == pytest.approx(0.1 + 0.05 * (1 - 0.1))


def test_costs_take_the_pace_of_the_measured_call_nearest_in_work():
    costs = Costs()
    costs.add("a", by_setting(100.0))
    costs.observe("a", ONE, 1000, 1, 0.01)  # 1e5 MACs at 1e-7 s
    costs.observe("a", ONE, 100_000, 2, 0.4)  # 2e7 at 2e-8
    assert costs.seconds("a", ONE, 3000) == pytest.approx(0.03)
    assert costs.seconds("a", ONE, 100_000) == pytest.approx(0.2)
    assert costs.seconds("a", ONE, 1000, 64) == pytest.approx(0.128)
    assert costs.measured("a", ONE, 1000)
    assert costs.measured("a", ONE, 940)  # as many, to a quarter octave
    assert costs.measured("a", ONE, 1110)
    assert costs.measured("a", ONE, 100_000, 2)
    assert not costs.measured("a", ONE, 1000, 2)
    assert not costs.measured("a", ONE, 1500)


def test_costs_learn_sizes_batches_and_a_busy_machine():
    costs = Costs()
    costs.add("a", by_setting(100.0, 300.0))
    assert costs.seconds("a", ONE, 1000) == pytest.approx(1e5 * 1e-11)
    costs.observe("a", ONE, 1000, 1, 0.01)
    assert costs.seconds("a", ONE, 1000) == pytest.approx(0.01)
    assert costs.seconds("a", TWO, 4000, 2) == pytest.approx(0.24)  # by MACs, as long as it was never measured
    costs.observe("a", TWO, 1000, 1, 0.02)
    assert costs.seconds("a", TWO, 1000) == pytest.approx(0.02)
    for _ in range(10):
        costs.observe("a", ONE, 1000, 1, 0.03)
    assert costs.seconds("a", ONE, 1000) == pytest.approx(0.03, rel=0.1)
    assert costs.seconds("a", TWO, 1000) == pytest.approx(0.06, rel=0.25)  # never measured since: the machine is slower
    assert len(costs._pace["a"]) == 2


def test_policies_by_name(tmp_path, monkeypatch):
    assert policy("slack") is slack
    (tmp_path / "mine.py").write_text("def half(state):\n    return {name: 2 for name in state.models}\nnumber = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    scheduler = of(policy("mine:half"))
    fill(scheduler, Request("a", (1,), 100, 0.15))
    assert scheduler.next(0.0).setting == TWO
    with pytest.raises(InputError, match="did you mean 'slack'"):
        policy("slak")
    for wrong in ("mine:none", "nowhere:x", "mine:number", ":x"):
        with pytest.raises(InputError, match=wrong):
            policy(wrong)


@pytest.mark.parametrize("broken", [lambda state: 1 / 0, lambda state: None, lambda state: {"a": "x"}, lambda state: {"a": 4}])
def test_a_policy_that_fails_costs_quality_and_nothing_else(broken):
    scheduler = of(broken)
    fill(scheduler, Request("a", (1,), 100, 0.15))
    assert scheduler.next(0.0).setting == ONE


def test_a_decision_takes_no_more_than_in_proportion_to_what_waits():
    def calls(waiting):
        """Of Python functions and of built-in ones, for one request more."""
        scheduler, seen = of(slack, {"a": DENOISER, "b": CLASSIFIER}, objective=10), []
        fill(scheduler, *(Request("ab"[k % 2], (k,), 1000 + k, 10.0) for k in range(waiting)))
        sys.setprofile(lambda _, event, __: seen.append(event))
        try:
            scheduler.submit(Request("a", (0,), 1000, 10.0), 0.0)
            slack(scheduler.state(0.0))
        finally:
            sys.setprofile(None)
        return sum(event in ("call", "c_call") for event in seen)

    assert calls(128) < 1.1 * 8 * calls(16)


def test_time_that_was_spent_before_the_queue_is_overload_and_not_size():
    scheduler = of(slack)
    scheduler.costs.observe("a", ONE, PIXELS, 1, 0.1)
    scheduler._measured["a"] = 0.0
    with pytest.raises(Refused) as late:
        scheduler.check(Request("a", (1,), PIXELS, 0.02, window=0.15), 0.0)
    assert late.value.reason == "busy"
    with pytest.raises(Refused) as large:
        scheduler.check(Request("a", (1,), PIXELS, 0.02, window=0.05), 0.0)
    assert large.value.reason == "large"


def test_what_is_refused_or_leaves_moves_no_dial():
    def streams(*requests):
        scheduler = of(slack)
        scheduler.costs.observe("a", ONE, PIXELS, 1, 0.1)
        scheduler._measured["a"] = 0.0
        for request in requests:
            with contextlib.suppress(Refused):
                scheduler.submit(request, 0.0)
                scheduler.cancel(request)
        return scheduler.state(0.0).streams

    huge, hopeless = Request("a", (1,), 100 * PIXELS, 0.15), Request("a", (1,), PIXELS, 1e-6)
    assert streams(huge, hopeless) == {}
    assert all(stream.rate == pytest.approx(0, abs=1e-9) for stream in streams(*(Request("a", (1,), PIXELS, 9.0),) * 3).values())


def test_a_client_may_not_fill_the_queue_while_another_asks():
    scheduler = of(slack, objective=1.0)
    scheduler.costs.observe("a", ONE, PIXELS, 1, 0.1)
    scheduler._measured["a"] = scheduler.free[0] = 0.5  # a batch is computed

    def fitting(client):
        count = 0
        with contextlib.suppress(Refused):
            while True:
                scheduler.submit(Request("a", (1,), PIXELS, 1.5, client=client), 0.0)
                count += 1
        return count

    alone = fitting("a")
    for request in scheduler.waiting[:]:
        scheduler.cancel(request)
    scheduler.submit(Request("a", (1,), PIXELS, 1.5, client="b"), 0.0)
    assert 2 <= fitting("a") < alone
    with pytest.raises(Refused, match="more requests waiting than your share"):
        scheduler.submit(Request("a", (1,), PIXELS, 1.5, client="a"), 0.0)
