"""One kernel for many, and what is left of each as a product of low rank."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.Linear)
INITS = ("first", "mean", "low-rank")
ROUNDS = 20


def groups_of(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def largest_rank(layer: nn.Module) -> int:
    """The rank at which a difference can be any: that of the kernel as a matrix, outputs x inputs, of one group."""
    weight = layer.get_parameter("weight")
    return min(len(weight) // groups_of(layer), weight[0].numel())


def difference(layer: nn.Module, rank: int) -> nn.Sequential:
    """A layer beside `layer`, a convolution or a linear one: to `rank` channels (of each group), then to all; it gives zero.

    Its parameters and its cost are rank x (inputs of a kernel + outputs).
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
    """Makes the two layers the best fit of a kernel `whole` [out, in, ...], by its singular values, and a bias."""
    down, up = layers[0].get_parameter("weight"), layers[1].get_parameter("weight")
    left, right = low_rank(_matrices(whole, groups), len(down) // groups)
    down.copy_(right.reshape(down.shape))
    up.copy_(left.reshape(up.shape))
    if bias is not None:
        layers[1].get_parameter("bias").copy_(bias)


def low_rank(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest product of that rank: [N, out, rank] and [N, rank, in]."""
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    root = s[:, :rank].sqrt()
    return (u[:, :, :rank] * root[:, None]).to(matrices), (root[:, :, None] * v[:, :rank]).to(matrices)


def shared_kernel(weights: Sequence[Tensor], init: str, rank: int, groups: int) -> Tensor:
    """One for all: the first; the mean; or that beside which the best differences of this rank leave the least, by turns."""
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
    """[out, in, ...] as a matrix a group: [groups, out, inputs]."""
    return kernel.reshape(groups, len(kernel) // groups, -1)
