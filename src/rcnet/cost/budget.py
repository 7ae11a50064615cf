"""The most steps that fit a budget of time or of MACs, by what this machine was measured to take."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from rcnet.cell import RecurrentNet, evaluating, unroll
from rcnet.cost.latency import interleaved, measured_once, summary
from rcnet.cost.macs import macs
from rcnet.device import autocast, resolve_precision
from rcnet.errors import InputError
from rcnet.models.files import preprocessing
from rcnet.models.registry import architecture_of

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "MAC": 1.0, "kMAC": 1e3, "MMAC": 1e6, "GMAC": 1e9, "TMAC": 1e12}


class Budget(NamedTuple):
    """`amount` of milliseconds (`timed`) or of MACs, and the text that named it."""

    amount: float
    timed: bool
    text: str


def parse_budget(text: str) -> Budget:
    """`50ms`, `0.2s`, `2GMAC`, `300 MMACs`.

    Raises:
        InputError: no positive number with one of the units.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) *([a-zA-Z]+)", text.strip())
    named = re.sub("macs?$", "mac", match[2].lower()) if match else ""
    unit = next((unit for unit in UNITS if unit.lower() == named), None)
    if unit is None or match is None or float(match[1]) <= 0:
        raise InputError(f"budget {text!r} is not valid: give a time or a number of MACs, e.g. 50ms, 0.2s, 300MMAC, 2GMAC")
    return Budget(float(match[1]) * UNITS[unit], not unit.endswith("MAC"), text.strip())


def latencies(
    model: RecurrentNet,
    size: tuple[int, int],
    batch: int = 1,
    precision: str = "fp32",
    each: Callable[[], object] = lambda: None,
) -> dict[int, dict[str, float]]:
    """`ms` (median) and `p95` of a call at each step count, warm, measured interleaved once and then remembered.

    Args:
        size: height and width of the input in pixels.
        precision: `fp32`, `bf16` or `auto`.
        each: called after each round of a new measurement, for a progress bar.
    """
    device = next(model.parameters()).device
    precision = resolve_precision(precision, device)
    what = {"architecture": architecture_of(model), "size": list(size), "batch": batch, "precision": precision}

    def measure() -> dict[str, dict[str, float]]:
        x = torch.rand(batch, preprocessing(model)["channels"], *size, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        nets = {n: evaluating(unroll(model, n)) for n in model.steps}

        def call(n: int) -> Callable[[], object]:
            def run() -> object:
                with torch.inference_mode(), autocast(precision, device):
                    return nets[n](x)

            return run

        times = interleaved({n: call(n) for n in model.steps}, each=each)
        return {str(n): summary(values) for n, values in times.items()}

    kept = measured_once(what, measure)
    return {int(n): value for n, value in kept.items()}


def refuse_at_once(budget: Budget, call: Callable[[], object], times: float, steps: int, what: str) -> None:
    """`InputError` if even the cheapest call, of which the whole takes `times`, is far from fitting: no long measurement then."""
    call()
    best = float("inf")
    for _ in range(2):
        before = time.perf_counter()
        call()
        best = min(best, 1000 * times * (time.perf_counter() - before))
    if best > 1.3 * budget.amount:
        raise InputError(f"no step count fits {budget.text} {what}: the cheapest, {steps}, takes {best:.3g} ms")


def choose_steps(budget: Budget, cost: Mapping[int, float], what: str) -> int:
    """The most steps whose cost (milliseconds or MACs, as the budget counts) fits.

    Raises:
        InputError: none fits; the error names the cheapest.
    """
    fitting = [n for n, value in cost.items() if value <= budget.amount]
    if fitting:
        return max(fitting)
    cheapest = min(cost, key=lambda n: cost[n])
    amount = f"{cost[cheapest]:.3g} ms" if budget.timed else f"{cost[cheapest] / 1e9:.3g} GMAC"
    raise InputError(f"no step count fits {budget.text} {what}: the cheapest, {cheapest}, takes {amount}")


def steps_for(
    model: RecurrentNet, budget: str, size: tuple[int, int], *, batch: int = 1, precision: str = "fp32", **each: Any
) -> int:
    """The most steps of the model whose call fits the budget, by this machine's measurements (95th percentile of a call).

    The first question about a model, size and batch measures for some seconds; the answer is kept (`latency.kept_measurements`).

    Args:
        budget: e.g. `"50ms"` or `"2GMAC"`, for the whole call.
        size: height and width of the input in pixels.

    Raises:
        InputError: not a budget, or one that no step count fits.
    """
    asked = parse_budget(budget)
    if asked.timed:
        cost = {n: value["p95"] for n, value in latencies(model, size, batch, precision, **each).items()}
    else:
        cost = {n: float(macs(model, n, size, batch)) for n in model.steps}
    return choose_steps(asked, cost, f"at {size[1]}x{size[0]} pixels" + f", batch {batch}" * (batch > 1))
