"""A network of your own, from a cell to a budget: depthwise kernels with GroupNorm, trained on a folder of images.

    python examples/own_network.py photos/ runs/own [ITERATIONS]

Trains gray images with noise of sigma 25 at 1, 2 and 3 steps, loads what was written, and prints the PSNR of the first image and
the cost of each step. 300 iterations take some seconds and show that it works; good results take hours.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

import rcnet
from rcnet.cost import profile
from rcnet.data.images import read_folder, to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.evaluation.denoise import psnr
from rcnet.tasks.denoise import Denoising
from rcnet.training import Recipe, train
from rcnet.training.recipe import Optimizer


class Depthwise(nn.Module):
    """x + mix(relu(norm(spatial(x)))), [B, C, H, W] to the same: the shared kernels of a cell, and the norms of the step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, norms: Sequence[nn.Module]) -> Tensor:
        return x + self.mix(norms[0](self.spatial(x)).relu())


class Residual(rcnet.RecurrentNet):
    """A chain that estimates the noise."""

    def forward(self, x: Tensor, steps: rcnet.setting.Steps = None) -> Tensor:
        return x - super().forward(x, steps)


@rcnet.register("denoise", steps=(1, 2, 3))
def depthwise(steps: tuple[int, ...] = (1, 2, 3), width: int = 32) -> rcnet.RecurrentNet:
    """From here on create_model, train, save, load and export know it; the command line does with RCNET_MODULES=own_network."""
    net = Residual(
        stem=nn.Conv2d(1, width, 3, padding=1),
        cell=rcnet.RecurrentCell(Depthwise(width), lambda: [nn.GroupNorm(4, width)], steps),
        head=nn.Conv2d(width, 1, 3, padding=1),
    )
    net.about = rcnet.About(channels=1)  # no reach: GroupNorm sees the whole image, so tiles would give another result
    return net


def main(photos: str, out: str, iterations: str = "300") -> None:
    recipe = Recipe(
        model={"name": "depthwise"},
        sections={"denoising": Denoising(patch=48, sigma=25.0)},
        optimizer=Optimizer("muon", lr=5e-3),
        batch=4,
        iterations=int(iterations),
    )
    train(recipe, photos, out, progress=False)
    net = rcnet.load(Path(out) / "weights.safetensors")
    image = read_folder(photos, 1)[0]
    clean, noisy = to_tensor(image), protocol_noise(image, 25)
    print(f"noisy: {psnr(noisy, clean):.2f} dB")
    for row in profile(net, image.shape[:2]):
        quality = psnr(rcnet.denoise(net, noisy, row["steps"], tile=0), clean)
        cost = f"{row['macs'] / 1e6:.0f} MMAC, {row['ms']:.1f} ms, {row['parameters']:,} parameters"
        print(f"steps {row['steps']}: {quality:.2f} dB, {cost}")


if __name__ == "__main__":
    main(*sys.argv[1:])
