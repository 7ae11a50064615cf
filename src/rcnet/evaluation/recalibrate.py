"""Measuring the statistics of batch norms again, e.g. after averaging weights, for every step count that reaches them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rcnet.cell import RecurrentNet, Steps, batch_norms, unroll


@torch.no_grad()
def recalibrate(
    model: RecurrentNet,
    inputs: Iterable[Tensor],
    probabilities: Sequence[float] = (),
    steps: Sequence[Steps] = (),
) -> None:
    """Sets the running mean and variance of every batch norm that `steps` reach to those of `inputs`, in place.

    A norm that several step counts share (its input depends on where the cell pools) takes their mean, weighted by
    `probabilities`; norms that none of `steps` reaches keep their statistics.

    Args:
        inputs: batches [B, C, H, W], as training draws them.
        probabilities: of each of `steps`; even unless given.
        steps: the supported ones unless given; a network of mixed steps takes the mixtures too.

    Raises:
        InputError: steps that the model does not support.
    """
    steps = tuple(steps) or model.steps
    weights = tuple(probabilities) or (1 / len(steps),) * len(steps)
    paths = [(unroll(model, n), weight) for n, weight in zip(steps, weights, strict=True) if weight > 0]
    reached = {id(norm): norm for net, _ in paths for norm in batch_norms(net) if norm.track_running_stats}
    totals = {key: [0.0, 0.0, 0.0] for key in reached}  # sums of the weighted means, the variances and the weights
    modes = [(norm, norm.momentum, norm.training) for norm in batch_norms(model)]
    training = model.training
    model.eval()
    try:
        for norm in reached.values():
            norm.momentum, norm.training = 1.0, True  # the running statistics are then those of the last batch
        for x in inputs:
            for net, weight in paths:
                net(x)
                for norm in batch_norms(net):
                    if norm.track_running_stats:
                        terms: list[Any] = [weight * norm.running_mean, weight * norm.running_var, weight]  # type: ignore[operator]
                        totals[id(norm)] = [total + term for total, term in zip(totals[id(norm)], terms, strict=True)]
        for key, (mean, variance, weight) in totals.items():
            if weight:
                reached[key].running_mean.copy_(mean / weight)  # type: ignore[union-attr,arg-type]
                reached[key].running_var.copy_(variance / weight)  # type: ignore[union-attr,arg-type]
    finally:
        model.train(training)
        for norm, momentum, mode in modes:
            norm.momentum, norm.training = momentum, mode
