"""The cost of each setting of a network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rcnet.calling import device_of, ready
from rcnet.cost.budget import latencies
from rcnet.cost.counting import macs, parameters
from rcnet.cost.memory import peak_memory
from rcnet.models.judge import without_judge
from rcnet.network import RecurrentNet, unroll


def profile(
    model: RecurrentNet,
    size: tuple[int, int],
    batch: int = 1,
    precision: str = "fp32",
    each: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """One row per setting: `steps`, `macs`, `parameters` (those that the call uses), `memory` (bytes of tensors in an fp32 call),
    `ms` and `p95` (median and 95th percentile of a warm call in milliseconds; see `latencies`). Without the judge of a denoiser,
    which runs once per picture (`judge_macs`).

    Example:
        >>> import rcnet
        >>> [row["macs"] for row in profile(rcnet.create_model("r3", steps=(1, 2)), (8, 8))]
        [7151616, 14229504]
    """
    counted = {n: macs(model, n, size, batch) for n in model.settings}
    times = latencies(model, size, batch, precision, each)
    x = torch.rand(batch, model.about.channels, *model.about.called_with(size), device=device_of(model))
    return [
        {
            "steps": n.to_json(),
            "macs": counted[n],
            "parameters": parameters(unroll(model, n)),
            "memory": peak_memory(partial(ready(without_judge(model), n), x)),
            **times[n],
        }
        for n in model.settings
    ]
