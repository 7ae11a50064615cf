"""The best setting within a budget of time or MACs; times are measured on this machine."""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from rcnet.calling import device_of, ready
from rcnet.cost.counting import macs
from rcnet.cost.latency import interleaved, measured_once, summary
from rcnet.device import resolve_precision
from rcnet.errors import InputError
from rcnet.models.judge import without_judge
from rcnet.models.results import best_of, setting_quality
from rcnet.network import RecurrentNet
from rcnet.setting import Setting

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "MAC": 1.0, "kMAC": 1e3, "MMAC": 1e6, "GMAC": 1e9, "TMAC": 1e12}


class Budget(NamedTuple):
    """`amount` in milliseconds (`timed`) or MACs, and the text it was parsed from."""

    amount: float
    timed: bool
    text: str


def parse_budget(text: str) -> Budget:
    """Parses `50ms`, `0.2s`, `1min`, `2GMAC`, `300 MMACs` or `1e3MMAC`.

    Raises:
        InputError: not a positive number with one of the units.

    Example:
        >>> parse_budget("300MMAC")
        Budget(amount=300000000.0, timed=False, text='300MMAC')
    """
    match = re.fullmatch(r"((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?) *([a-zµμ]+)", text.strip(), re.IGNORECASE)
    named = re.sub("macs?$", "mac", match[2].lower()).translate({0xB5: "u", 0x3BC: "u"}) if match else ""
    unit = next((unit for unit in UNITS if unit.lower() == named), None)
    if unit is None or match is None or not 0 < float(match[1]) < float("inf"):
        raise InputError(
            f"budget {text!r} is not valid: give a time or a number of MACs above 0, e.g. 50ms, 0.2s, 1min, 300MMAC, 2GMAC "
            f"(units: {', '.join(UNITS)})"
        )
    return Budget(float(match[1]) * UNITS[unit], not unit.endswith("MAC"), text.strip())


def fingerprint(model: RecurrentNet) -> str:
    """A hash of everything that a network's cost depends on: modules, their options and code, shapes of tensors, settings."""
    parts: list[object] = [sorted(model.settings), [(k, list(v.shape), str(v.dtype)) for k, v in model.state_dict().items()]]
    for name, module in model.named_modules():
        code = getattr(type(module).forward, "__code__", None)
        known = sorted((key, value) for key, value in vars(module).items() if key != "training" and _is_plain(value))
        kind = (type(module).__module__, type(module).__qualname__, module.extra_repr())
        parts.append((name, *kind, known, code and (code.co_code.hex(), list(filter(_is_plain, code.co_consts)))))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _is_plain(value: object) -> bool:
    """A number, a text, or a tuple of them, whose repr is the same in every process."""
    return isinstance(value, int | float | str | None) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def latencies(
    model: RecurrentNet,
    size: tuple[int, int],
    batch: int = 1,
    precision: str = "fp32",
    each: Callable[[], object] = lambda: None,
) -> dict[Setting, dict[str, float]]:
    """`ms` (median) and `p95` of a warm call at each setting, measured interleaved; later calls reuse the measurement. Without
    the judge of a denoiser.

    Args:
        size: height and width of the input in pixels.
        precision: `fp32`, `bf16` or `auto`.
        each: called after each round of a new measurement, for a progress bar.

    Example:
        >>> import rcnet
        >>> [*latencies(rcnet.create_model("r3", steps=(1, 2)), (8, 8))]
        [(1, 1, 1), (2, 2, 2)]
    """
    device, size = device_of(model), model.about.called_with(size)
    precision = resolve_precision(precision, device)
    what = {"network": fingerprint(model), "size": list(size), "batch": batch, "precision": precision}
    alone = without_judge(model)

    def measure() -> dict[str, dict[str, float]]:
        x = torch.rand(batch, model.about.channels, *size, device=device).contiguous(memory_format=torch.channels_last)
        calls = {n: torch.inference_mode()(partial(ready(alone, n, precision), x)) for n in model.settings}
        return {str(n): summary(values) for n, values in interleaved(calls, each=each).items()}

    kept = measured_once(what, device, measure)
    return {n: kept[str(n)] for n in model.settings}


def time_text(ms: float) -> str:
    """A time to print.

    Example:
        >>> time_text(250), time_text(1400)
        ('250 ms', '1.4 s')
    """
    return f"{ms / 1000:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"


def refuse_at_once(budget: Budget, call: Callable[[], object], times: float, setting: Setting, what: str) -> None:
    """Raises `InputError` before a long measurement if even the cheapest setting is far above the budget.

    Args:
        call: runs the cheapest setting on a part, e.g. one tile; the whole takes `times` as long.
    """
    call()
    best = float("inf")
    for _ in range(2):
        before = time.perf_counter()
        call()
        best = min(best, 1000 * times * (time.perf_counter() - before))
    if best > 1.3 * budget.amount:  # two calls are noisy: only clear cases are refused here
        raise InputError(f"no step count fits {budget.text} {what}: the cheapest, {setting}, takes {time_text(best)}")


def choose_setting(
    budget: Budget,
    cost: Mapping[Setting, float],
    what: str,
    metric: str = "",
    quality: Mapping[Setting, float] = MappingProxyType({}),
) -> Setting:
    """The best of the settings whose cost (milliseconds or MACs, as in the budget) fits, by the highest `psnr` or lowest `error`.
    If the quality is unknown, the last one in `cost`.

    Raises:
        InputError: none fits; the error names the cheapest.
    """
    fitting = [n for n, value in cost.items() if value <= budget.amount]
    if fitting:
        return best_of(fitting, metric, quality)
    cheapest = min(cost, key=lambda n: cost[n])
    amount = time_text(cost[cheapest]) if budget.timed else f"{cost[cheapest] / 1e9:.3g} GMAC"
    raise InputError(f"no step count fits {budget.text} {what}: the cheapest, {cheapest}, takes {amount}")


def steps_for(
    model: RecurrentNet, budget: str, size: tuple[int, int], *, batch: int = 1, precision: str = "fp32", **each: Any
) -> int | tuple[int, ...]:
    """The best setting of the model within a budget, as one number or one number per cell.

    Times are the 95th percentile of a call, measured on this machine. The best setting is that with the best result in the file
    of weights, or with the most steps if the file has no results. The first call for a model, size and batch measures for some
    seconds; the measurement is kept (`latency.kept_measurements`).

    Args:
        budget: e.g. `"50ms"` or `"2GMAC"`, for the whole call.
        size: height and width of the input in pixels.

    Raises:
        InputError: not a valid budget, or no setting fits it.

    Example:
        >>> import rcnet
        >>> rcnet.steps_for(rcnet.load("r3_fast.bsd-gray-25"), "10GMAC", size=(321, 481))
        2
    """
    return setting_for(model, budget, size, batch=batch, precision=precision, **each).to_json()


def setting_for(
    model: RecurrentNet, budget: str, size: tuple[int, int], *, batch: int = 1, precision: str = "fp32", **each: Any
) -> Setting:
    """As `steps_for`, but returns a `Setting`; `each` is that of `latencies`."""
    asked = parse_budget(budget)
    if asked.timed:
        cost = {n: value["p95"] for n, value in latencies(model, size, batch, precision, **each).items()}
    else:
        cost = {n: float(macs(model, n, size, batch)) for n in model.settings}
    return choose_setting(
        asked, cost, f"at {size[1]}x{size[0]} pixels" + f", batch {batch}" * (batch > 1), *setting_quality(model)
    )
