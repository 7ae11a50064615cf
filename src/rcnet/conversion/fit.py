"""One shared kernel for several, and low-rank approximations of the differences."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.Linear)
INITS = ("first", "mean", "low-rank")
ROUNDS = 20  # of alternating least squares; each is an SVD per kernel


class Product(nn.Module):
    """A tensor as the product of two matrices; zero at first."""

    def __init__(self, shape: torch.Size, rank: int) -> None:
        super().__init__()
        rows, columns = _sides(shape)
        self.shape = tuple(shape)
        self.up, self.down = nn.Parameter(torch.zeros(rows, rank)), nn.Parameter(torch.empty(rank, columns))
        nn.init.kaiming_uniform_(self.down, 5**0.5)  # as linear layers

    def forward(self) -> Tensor:
        return (self.up @ self.down).reshape(self.shape)


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    """The matrix as which a weight is approximated: its first side that is longer than 1, by all others."""
    rows = next((side for side in shape if side > 1), 1)
    return rows, math.prod(shape) // rows


def groups_of(layer: nn.Module | Tensor) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def weight_of(layer: nn.Module | Tensor) -> Tensor:
    """A layer's kernel; a weight itself."""
    return layer if isinstance(layer, Tensor) else layer.get_parameter("weight")


def largest_rank(layer: nn.Module | Tensor) -> int:
    """The full rank of a difference: that of the kernel of one group as a matrix, outputs x inputs."""
    if isinstance(layer, Tensor):
        return min(_sides(layer.shape))
    weight = weight_of(layer)
    return min(len(weight) // groups_of(layer), weight[0].numel())


def difference(layer: nn.Module | Tensor, rank: int) -> nn.Module:
    """A low-rank layer in parallel to `layer`, a convolution or linear layer: to `rank` channels per group, then to all outputs.
    For another weight, a tensor of low rank to add to it.

    It returns zero at first. Its parameters are rank x (inputs of a kernel + outputs).
    """
    rank = min(rank, largest_rank(layer))
    if isinstance(layer, Tensor):
        return Product(layer.shape, rank).requires_grad_(layer.requires_grad)
    bias = getattr(layer, "bias", None) is not None
    if isinstance(layer, nn.Linear):
        parts: list[nn.Module] = [nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias)]
    elif isinstance(layer, nn.Conv2d):
        kernel, stride, dilation = ((values[0], values[1]) for values in (layer.kernel_size, layer.stride, layer.dilation))
        padding = layer.padding if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1])
        wide = rank * layer.groups
        down = nn.Conv2d(
            layer.in_channels, wide, kernel, stride, padding, dilation, layer.groups, False, layer.padding_mode
        )  # fmt: skip
        parts = [down, nn.Conv2d(wide, layer.out_channels, 1, groups=layer.groups, bias=bias)]
    else:
        raise TypeError(type(layer).__name__)
    for parameter in parts[1].parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*parts).to(weight_of(layer)).requires_grad_(weight_of(layer).requires_grad)


@torch.no_grad()
def set_difference(made: nn.Module, layer: nn.Module | Tensor, shared: nn.Module | Tensor) -> None:
    """Sets what `difference` made to the best approximation, by SVD, of the difference of a layer and the shared one."""
    is_product, groups = isinstance(made, Product), groups_of(layer)
    up, down = (made.get_parameter(name) for name in (("up", "down") if is_product else ("1.weight", "0.weight")))
    whole = weight_of(layer) - weight_of(shared)
    left, right = low_rank(_matrices(whole, groups, is_product), len(down) // groups)
    down.copy_(right.reshape(down.shape))
    up.copy_(left.reshape(up.shape))
    if not is_product and getattr(layer, "bias", None) is not None:
        made.get_parameter("1.bias").copy_(layer.get_parameter("bias") - shared.get_parameter("bias"))  # type: ignore[union-attr]


@torch.no_grad()
def allocated(layers: Sequence[Any], shared: Sequence[Any], ranks: Sequence[int]) -> list[int]:
    """Ranks of at most as many parameters as these, but distributed: each next one where it takes away most of the squared
    difference between a layer and the shared one, relative to the layer's own size and per parameter. At least 1 each."""
    costs, candidates = [], []
    for i, (layer, other) in enumerate(zip(layers, shared, strict=True)):
        whole, groups = not isinstance(layer, nn.Module), groups_of(layer)
        left = _matrices(weight_of(layer) - weight_of(other), groups, whole)
        costs.append(groups * sum(left.shape[1:]))
        gains = torch.linalg.svdvals(left.double()).square().sum(0) / weight_of(layer).double().square().sum().clamp(min=1e-12)
        candidates += [(gain / costs[i], i) for gain in gains[1:].tolist()]
    chosen, budget = [1] * len(costs), sum((rank - 1) * cost for rank, cost in zip(ranks, costs, strict=True))
    for _, i in sorted(candidates, reverse=True):
        if costs[i] <= budget:
            chosen[i] += 1
            budget -= costs[i]
    return chosen


def low_rank(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of this rank as a product of [N, out, rank] and [N, rank, in]."""
    rows, columns = matrices.shape[1:]
    if rank >= min(rows, columns):  # exactly
        one = torch.eye(min(rows, columns)).expand(len(matrices), -1, -1)
        return (one, matrices) if rows <= columns else (matrices, one)
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    root = s[:, :rank].sqrt()
    return (u[:, :, :rank] * root[:, None]).to(matrices), (root[:, :, None] * v[:, :rank]).to(matrices)


@torch.no_grad()
def shared_kernel(weights: Sequence[Tensor], init: str, rank: int, groups: int, whole: bool = False) -> Tensor:
    """The shared kernel: the first; the mean; or the one that minimizes the error of differences of this rank (alternating).

    Args:
        whole: the weights are not kernels of layers; their differences are `Product`s.
    """
    if init == "first" or not weights[0].is_floating_point():
        return weights[0]
    every = torch.stack(list(weights))
    shared = every.mean(0)
    if init == "low-rank" and rank and every[0].ndim > 1 and rank < min(_matrices(every[0], groups, whole).shape[1:]):
        for _ in range(ROUNDS):
            left = torch.stack(
                [torch.matmul(*low_rank(_matrices(w - shared, groups, whole), rank)).reshape(w.shape) for w in every]
            )
            shared = (every - left).mean(0)
    return shared


def _matrices(kernel: Tensor, groups: int, whole: bool = False) -> Tensor:
    """[out, in, ...] as one matrix per group: [groups, out, inputs]."""
    return kernel.reshape(1, *_sides(kernel.shape)) if whole else kernel.reshape(groups, len(kernel) // groups, -1)
