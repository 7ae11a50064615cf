"""The best setting within a budget of time or MACs; times are measured on this machine."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rcnet.calling import device_of, ready
from rcnet.cost.counting import macs
from rcnet.device import hardware, resolve_precision
from rcnet.models.judge import without_judge
from rcnet.network import RecurrentNet
from rcnet.runtime.budget import choose_setting, parse_budget
from rcnet.runtime.latency import interleaved, measured_once, summary
from rcnet.runtime.results import setting_quality
from rcnet.setting import Setting


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


def identity(model: RecurrentNet, precision: str) -> dict[str, Any]:
    """What the time of its calls depends on: the network, the hardware, torch and `fp32` or `bf16`."""
    where = {"hardware": hardware(device_of(model)), "runtime": f"torch {torch.__version__}", "precision": precision}
    return where | {"network": fingerprint(model)}


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
    what = {**identity(model, precision), "size": list(size), "batch": batch}
    alone = without_judge(model)

    def measure() -> dict[str, dict[str, float]]:
        x = torch.rand(batch, model.about.channels, *size, device=device).contiguous(memory_format=torch.channels_last)
        calls = {n: torch.inference_mode()(partial(ready(alone, n, precision), x)) for n in model.settings}
        return {str(n): summary(values) for n, values in interleaved(calls, each=each).items()}

    kept = measured_once(what, measure)
    return {n: kept[str(n)] for n in model.settings}


def steps_for(
    model: RecurrentNet, budget: str, size: tuple[int, int], *, batch: int = 1, precision: str = "fp32", **each: Any
) -> int | tuple[int, ...]:
    """The best setting of the model within a budget, as one number or one number per cell.

    Times are the 95th percentile of a call, measured on this machine. The best setting is that with the best result in the file
    of weights, or with the most steps if the file has no results. The first call for a model, size and batch measures for some
    seconds; the measurement is kept (`runtime.latency.kept_measurements`).

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
