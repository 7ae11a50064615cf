"""Optimizers, their schedule and their parameter groups: half the learning rate for shared kernels (Sec. 3.3), no weight
decay for norms."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rcnet.cell import RecurrentCell, StandardCell, norms_of, shared_kernels
from rcnet.training.recipe import Optimizer


class Muon(torch.optim.Optimizer):
    """Momentum with an orthogonalized update (Jordan et al. 2024). Kernels [out, in, kh, kw] are matrices of out x (in kh kw).

    The spectral norm of an update is about sqrt(max(1, rows / columns)) times the learning rate.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                nesterov = p.grad.lerp(buffer, group["momentum"])
                updates.setdefault(p.shape, []).append((p, nesterov.flatten(1)))
            for shape, same in updates.items():
                directions = orthogonalize(torch.stack([update for _, update in same]))
                rows, columns = directions.shape[-2:]
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (p, _), direction in zip(same, directions, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction.view(shape), alpha=scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values between 0.7 and 1.2. [N, rows, columns].

    Five rounds of the Newton-Schulz iteration with the quintic coefficients of Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024, https://kellerjordan.github.io/posts/muon
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.transpose(-2, -1) if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-2, -1) if tall else x


def make_optimizers(model: nn.Module, config: Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers of a recipe. Each group has a `base_lr`, which the schedule multiplies."""
    shared = {id(p) for p in shared_kernels(model)}
    in_cells = {
        id(p) for cell in model.modules() if isinstance(cell, RecurrentCell | StandardCell)
        for p in cell.parameters() if p.ndim == 4
    }  # fmt: skip
    of_norms = [p for norm in norms_of(model) for p in norm.parameters()]
    in_cells -= {id(p) for p in of_norms}
    in_norms = {id(p) for p in of_norms if p.ndim not in (2, 4)}  # scales and shifts, not the kernels of what makes them
    muon_lr = config.muon_lr if config.name == "muon" else 0.0
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for p in model.parameters():
        by_muon = config.name == "muon" and id(p) in in_cells
        lr = muon_lr if by_muon else config.lr
        lr *= (config.shared_lr if id(p) in shared else 1.0) * (config.norm_lr if id(p) in in_norms else 1.0)
        decay = config.weight_decay if p.ndim > 1 else 0.0
        groups.setdefault((by_muon, lr, decay), []).append(p)

    def listed(muon: bool) -> list[dict[str, Any]]:
        return [
            {"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay}
            for (by_muon, lr, decay), params in groups.items()
            if by_muon == muon
        ]

    optimizers: list[torch.optim.Optimizer] = []
    if listed(True):
        optimizers.append(Muon(listed(True), lr=0.0, momentum=config.momentum))
    if config.name == "sgd":
        optimizers.append(torch.optim.SGD(listed(False), momentum=config.momentum, nesterov=config.momentum > 0))
    else:
        optimizers.append(torch.optim.AdamW(listed(False), betas=config.betas))
    return optimizers


def learning_rate_factor(progress: float, warmup: float, decay: float) -> float:
    """The schedule at `progress` in [0, 1] of the run: linear warm-up, constant, then a half cosine to zero."""
    rise = min(1.0, progress / warmup) if warmup > 0 else 1.0
    fall = (progress - (1 - decay)) / decay if decay > 0 else 0.0
    return rise * 0.5 * (1 + math.cos(math.pi * min(max(fall, 0.0), 1.0)))


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
