"""The settings of a network side by side: cost and quality of each, and the Pareto front."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcnet.cost.budget import latencies
from rcnet.cost.counting import macs
from rcnet.errors import InputError
from rcnet.network import RecurrentNet
from rcnet.runtime.budget import choose_setting, parse_budget
from rcnet.runtime.results import HIGHER, best_of, setting_quality
from rcnet.setting import Setting
from rcnet.tasks import find_task, usual_size


def best_settings(
    model: RecurrentNet,
    data: str | Path | Sequence[np.ndarray] | None = None,
    *,
    budget: str | None = None,
    size: tuple[int, int] | None = None,
    sigma: float = 25.0,
    blind: bool = False,
    timed: bool = False,
    precision: str = "fp32",
    each: Callable[..., object] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Cost and quality of each setting of a network, cheapest first (by `ms` if timed).

    A row has `steps`, `macs`, `ms` and `p95` (if `timed`, or if the budget is a time), `psnr` in dB or `error` in %, `front`: no
    setting that costs no more is better (the Pareto front), and `best`: the best quality within the budget, or of all settings
    without a budget.

    Args:
        data: images to measure quality on: a folder of images, for a denoiser also uint8 arrays [H, W, C]; CIFAR or a folder of
            images by class for a classifier. None: the results in the file of weights, without measuring.
        budget: e.g. `"50ms"` or `"2GMAC"`, for a call on one image.
        size: height and width in pixels of that image; 321x481 for a denoiser and 32x32 for a classifier unless given.
        sigma: noise level in levels of 255. `blind`: the network is not given it.
        precision: `fp32`, `bf16` or `auto`, of quality and time.
        each: called after each image that is measured, for a progress bar.

    Raises:
        InputError: no data and no results in the file; data that does not fit; a budget that no setting fits.

    Example:
        >>> from rcnet import load
        >>> rows = best_settings(load("r2.cifar10"))
        >>> [row["steps"] for row in rows], sum(row["best"] for row in rows)
        ([2, 3, 4], 1)
    """
    size = size or usual_size(model.about.task)
    asked = None if budget is None else parse_budget(budget)
    if data is not None:
        kind = find_task(model.about.task)
        options = {key: value for key, value in {"sigma": sigma, "blind": blind}.items() if key in kind.options}
        measured = kind.measuring(model, data, **options).rows(model.settings, precision=precision, each=each)
        metric, quality = kind.metric, {n: row[kind.metric] for n, row in zip(model.settings, measured, strict=True)}
    else:
        metric, quality = setting_quality(model)
    if not metric:
        raise InputError("the file of these weights does not have results for every setting: give data to measure on")
    cost: dict[Setting, Mapping[str, float]] = {n: {"macs": macs(model, n, size)} for n in model.settings}
    if timed or (asked and asked.timed):
        cost = {n: {**cost[n], **times} for n, times in latencies(model, size, precision=precision).items()}
    by = "ms" if "ms" in cost[model.settings[0]] else "macs"
    ordered = sorted(model.settings, key=lambda n: (cost[n][by], n.order))
    where = f"at {size[1]}x{size[0]} pixels"
    if asked is None:
        best = best_of(ordered, metric, quality)
    else:
        counted = "p95" if asked.timed else "macs"
        best = choose_setting(asked, {n: cost[n][counted] for n in ordered}, where, metric, quality)
    rows, sign = [], 1 if metric in HIGHER else -1
    reached = -np.inf
    for n in ordered:
        better = sign * quality[n] > reached
        reached = max(reached, sign * quality[n])
        rows.append({"steps": n.to_json(), **cost[n], metric: round(quality[n], 4), "front": bool(better), "best": n == best})
    return rows
