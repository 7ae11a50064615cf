"""Training of a network with exits on all of them, each iteration from one pass (Lee et al. 2015)."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rcnet.device import autocast
from rcnet.setting import Setting
from rcnet.tasks.task import Batch
from rcnet.training.loop import Trainer
from rcnet.training.recipe import Recipe


class ExitsTrainer(Trainer):
    """The aggregated loss, whose outputs `EarlyExitNet.exits` computes at the cost of the last."""

    def backward(self, batch: Batch, weights: dict[Setting, float]) -> float:
        model: Any = self.model
        with autocast(self.precision, self.device):
            outputs = model.exits(batch.x.contiguous(memory_format=torch.channels_last))
        losses = [weight / self.recipe.accumulate * self.loss(outputs[n.to_json()], batch, None) for n, weight in weights.items()]
        loss = torch.stack(losses).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def expected(self, cost: Sequence[float]) -> float:
        return max(cost)


def train_exits(recipe: Recipe, data: Path, out: Path, *, resume: bool, progress: bool) -> dict[str, Any]:
    """As `rcnet.training.train`."""
    return ExitsTrainer(recipe, data, out, resume).go(progress, time.perf_counter)
