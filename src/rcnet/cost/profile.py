"""What each step count of a network costs."""

from collections.abc import Callable
from typing import Any

import torch

from rcnet.cell import RecurrentNet, evaluating, unroll
from rcnet.cost.budget import latencies
from rcnet.cost.macs import macs, parameters
from rcnet.cost.memory import peak_memory
from rcnet.models.files import preprocessing


def profile(
    model: RecurrentNet,
    size: tuple[int, int],
    batch: int = 1,
    precision: str = "fp32",
    each: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """A row a step count: `steps`, `macs`, `parameters` (that the call touches), `memory` (bytes, of a fp32 call's tensors),
    `ms` and `p95` (milliseconds of a warm call, median and 95th percentile; see `latencies`).
    """
    times = latencies(model, size, batch, precision, each)
    device = next(model.parameters()).device
    x = torch.rand(batch, preprocessing(model)["channels"], *size, device=device)
    rows = []
    for n in model.steps:
        net = evaluating(unroll(model, n))
        rows.append(
            {
                "steps": n,
                "macs": macs(model, n, size, batch),
                "parameters": parameters(net),
                "memory": peak_memory(lambda net=net: net(x)),  # type: ignore[misc]
                **times[n],
            }
        )
    return rows
