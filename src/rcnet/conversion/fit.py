"""One shared kernel for several, and low-rank approximations of the differences."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.Linear)
INITS = ("first", "mean", "low-rank")
ROUNDS = 20  # of alternating least squares; each is an SVD per kernel


def groups_of(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def largest_rank(layer: nn.Module) -> int:
    """The full rank of a difference: that of the kernel of one group as a matrix, outputs x inputs."""
    weight = layer.get_parameter("weight")
    return min(len(weight) // groups_of(layer), weight[0].numel())


def difference(layer: nn.Module, rank: int) -> nn.Sequential:
    """A low-rank layer in parallel to `layer`, a convolution or linear layer: to `rank` channels per group, then to all outputs.

    It returns zero at first. Its parameters are rank x (inputs of a kernel + outputs).
    """
    rank, bias = min(rank, largest_rank(layer)), getattr(layer, "bias", None) is not None
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
    return nn.Sequential(*parts).to(layer.get_parameter("weight"))


@torch.no_grad()
def set_difference(layers: nn.Sequential, whole: Tensor, bias: Tensor | None, groups: int) -> None:
    """Sets the two layers to the best approximation of a kernel `whole` [out, in, ...] by SVD, and the bias."""
    down, up = layers[0].get_parameter("weight"), layers[1].get_parameter("weight")
    left, right = low_rank(_matrices(whole, groups), len(down) // groups)
    down.copy_(right.reshape(down.shape))
    up.copy_(left.reshape(up.shape))
    if bias is not None:
        layers[1].get_parameter("bias").copy_(bias)


def low_rank(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of this rank as a product of [N, out, rank] and [N, rank, in]."""
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    root = s[:, :rank].sqrt()
    return (u[:, :, :rank] * root[:, None]).to(matrices), (root[:, :, None] * v[:, :rank]).to(matrices)


def shared_kernel(weights: Sequence[Tensor], init: str, rank: int, groups: int) -> Tensor:
    """The shared kernel: the first; the mean; or the one that minimizes the error of differences of this rank (alternating)."""
    if init == "first" or not weights[0].is_floating_point():
        return weights[0]
    whole = torch.stack(list(weights))
    shared = whole.mean(0)
    if init == "low-rank" and rank and whole[0].ndim > 1 and rank < min(_matrices(whole[0], groups).shape[1:]):
        for _ in range(ROUNDS):
            left = torch.stack([torch.matmul(*low_rank(_matrices(w - shared, groups), rank)).reshape(w.shape) for w in whole])
            shared = (whole - left).mean(0)
    return shared


def _matrices(kernel: Tensor, groups: int) -> Tensor:
    """[out, in, ...] as one matrix per group: [groups, out, inputs]."""
    return kernel.reshape(groups, len(kernel) // groups, -1)
