"""Recalibration: the statistics of batch norms are measured again for every setting, e.g. after averaging weights."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rcnet.cell import batch_norms
from rcnet.network import RecurrentNet, unroll


@torch.no_grad()
def recalibrate(
    model: RecurrentNet, inputs: Iterable[Tensor | tuple[Tensor, Tensor]], probabilities: Sequence[float] = ()
) -> None:
    """Sets the running mean and variance of every batch norm that some setting uses to those of `inputs`, in place.

    A norm shared by several settings gets their mean, weighted by `probabilities`; if these are 0, it is unchanged.

    Args:
        inputs: batches [B, C, H, W] as in training, or pairs of a batch and its noise level `sigma`.
        probabilities: one per setting in `model.settings`; default: uniform.

    Example:
        >>> import rcnet, torch
        >>> net = rcnet.create_model("r3", steps=(1, 2))
        >>> rcnet.recalibrate(net, [torch.rand(8, 1, 16, 16) for _ in range(2)])
        >>> bool((net.cell1.norms[0][0][0].running_mean != 0).any())
        True
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
            x, kwargs = (batch, {}) if isinstance(batch, Tensor) else (batch[0], {"sigma": batch[1]})
            for net, weight in paths:
                for norm in batch_norms(net):
                    norm.reset_running_stats()
                net(x, **kwargs)
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
