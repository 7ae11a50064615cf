"""Measuring the statistics of batch norms again, e.g. after averaging weights, for every setting that reaches them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rcnet.cell import RecurrentNet, batch_norms, unroll


@torch.no_grad()
def recalibrate(
    model: RecurrentNet, inputs: Iterable[Tensor | tuple[Tensor, Tensor]], probabilities: Sequence[float] = ()
) -> None:
    """Sets the running mean and variance of every batch norm that a call can reach to those of `inputs`, in place.

    A norm that several settings share takes their mean, weighted by `probabilities` (and keeps its statistics if those are 0).

    Args:
        inputs: batches [B, C, H, W], as training draws them; or pairs of such and what `sigma` tells of their noise.
        probabilities: of each of `model.settings`; even unless given.
    """
    weights = tuple(probabilities) or (1 / len(model.settings),) * len(model.settings)
    paths = [(unroll(model, n), weight) for n, weight in zip(model.settings, weights, strict=True)]
    reached = {id(norm): norm for net, _ in paths for norm in batch_norms(net) if norm.track_running_stats}
    totals = {key: [0.0, 0.0, 0.0] for key in reached}  # sums of the weighted means, the variances and the weights
    modes = [(norm, norm.momentum, norm.training) for norm in batch_norms(model)]
    counts = [(tensor, tensor.clone()) for norm in reached.values() if (tensor := norm.num_batches_tracked) is not None]
    statistics: dict[int, list[Any]] = {key: [norm.running_mean, norm.running_var] for key, norm in reached.items()}
    measured = {key: [old.clone() for old in both] for key, both in statistics.items()}
    training = model.training
    model.eval()
    try:
        for norm in reached.values():
            norm.momentum, norm.training = None, True  # the running statistics are then the mean since they were reset
        for batch in inputs:
            x, told = (batch, {}) if isinstance(batch, Tensor) else (batch[0], {"sigma": batch[1]})
            for net, weight in paths:
                for norm in batch_norms(net):
                    norm.reset_running_stats()
                net(x, **told)
                for key in {id(norm) for norm in batch_norms(net)} & reached.keys():
                    terms = [*(weight * statistic for statistic in statistics[key]), weight]
                    totals[key] = [total + term for total, term in zip(totals[key], terms, strict=True)]
        measured |= {key: [mean / weight, variance / weight] for key, (mean, variance, weight) in totals.items() if weight}
    finally:
        for key, both in measured.items():
            for statistic, value in zip(statistics[key], both, strict=True):
                statistic.copy_(value)
        for tensor, count in counts:
            tensor.copy_(count)
        model.train(training)
        for norm, momentum, mode in modes:
            norm.momentum, norm.training = momentum, mode
