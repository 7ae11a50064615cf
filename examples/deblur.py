"""Deblurring with a denoiser that has never seen blur: plug-and-play half quadratic splitting, after Zhang et al. 2021 (DPIR).

A photograph is blurred by a motion or by a Gaussian, noise of sigma 2 is added, and the picture is restored by turns: one step
solves for the data, in the Fourier domain, the other calls r3_fast.photo with a noise level that falls from call to call.
`Plugged` follows deepinv's convention, `denoiser(x, sigma)` with sigma in [0, 1], and goes into its algorithms as it is:
`deepinv.optim.DPIR(sigma=2 / 255, denoiser=Plugged(model))(y, physics)`.

    python examples/deblur.py                  # scikit-image's astronaut: PSNR before and after, for each kernel and step count
    python examples/deblur.py photo.jpg
    python examples/deblur.py photo.jpg deblurred.png        # also the middle of it: blurred, restored at one step, clean
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

import rcnet
from rcnet.data.images import read_image, to_tensor
from rcnet.evaluation.denoise import psnr
from rcnet.figures.side_by_side import save_picture, side_by_side

NOISE = 2 / 255


class Plugged(nn.Module):
    """`denoiser(x, sigma)`: x float [B, 3, H, W] in [0, 1]; sigma, of white noise, in [0, 1], one number or one per image [B]."""

    def __init__(self, model: rcnet.RecurrentNet, steps: int | None = None) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self.model(x, self.steps, sigma=255 * sigma)


def gaussian(sigma: float = 1.6, side: int = 25) -> Tensor:
    """A kernel [side, side] whose sum is 1."""
    axis = torch.exp(-((torch.arange(side) - side // 2) ** 2) / (2 * sigma**2))
    return torch.outer(axis, axis) / axis.sum() ** 2


def motion(length: int = 17, slope: float = 0.5) -> Tensor:
    """Motion along a straight line, [length, length]."""
    kernel, along = torch.zeros(length, length), torch.arange(length)
    kernel[(length // 2 + slope * (along - length // 2)).round().long(), along] = 1 / length
    return kernel


def spectrum(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """The kernel's Fourier transform for images of that size, which repeat at their borders."""
    padded = torch.zeros(size)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    return torch.fft.rfft2(padded.roll([-(side // 2) for side in kernel.shape], (0, 1)))


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * spectrum(kernel, x.shape[-2:]), s=x.shape[-2:])


@torch.inference_mode()
def deblur(y: Tensor, kernel: Tensor, denoiser: nn.Module, noise: float = NOISE, calls: int = 8, weight: float = 1.0) -> Tensor:
    """Half quadratic splitting: min over x of |k*x - y|^2 / (2 noise^2) + weight * prior(x), the prior being the denoiser's."""
    k, data, z = spectrum(kernel, y.shape[-2:]), torch.fft.rfft2(y), y
    for sigma in np.geomspace(49 / 255, noise, calls):
        alpha = weight * noise**2 / sigma**2
        x = torch.fft.irfft2((k.conj() * data + alpha * torch.fft.rfft2(z)) / (k.abs() ** 2 + alpha), s=y.shape[-2:])
        z = denoiser(x, float(sigma))
    return z.clamp(0, 1)


def photograph(arguments: list[str]) -> Tensor:
    """[1, 3, H, W] of a file, or of scikit-image's astronaut: the middle 256x256 pixels."""
    if arguments:
        x = to_tensor(read_image(arguments[0], 3))
    else:
        from skimage import data

        x = to_tensor(data.astronaut())
    top, left = ((side - 256) // 2 if side > 256 else 0 for side in x.shape[-2:])
    return x[..., top : top + 256, left : left + 256]


def main() -> None:
    clean, model, rows = photograph(sys.argv[1:2]), rcnet.load("r3_fast.photo"), []
    for name, kernel in {"gaussian": gaussian(), "motion": motion()}.items():
        y = blur(clean, kernel) + NOISE * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        restored = {steps: deblur(y, kernel, Plugged(model, steps)) for steps in model.choices}
        figures = ", ".join(f"steps {steps} {psnr(x, clean):.2f}" for steps, x in restored.items())
        print(f"{name}: blurred {psnr(y, clean):.2f} dB, {figures}")
        row = [
            (f"blurred: {psnr(y, clean):.2f} dB", y),
            (f"restored: {psnr(restored[1], clean):.2f} dB", restored[1]),
            ("clean", clean),
        ]
        rows.append([(label, x[0].clamp(0, 1).permute(1, 2, 0).numpy()) for label, x in row])
    if sys.argv[2:]:
        save_picture(sys.argv[2], side_by_side(rows))


if __name__ == "__main__":
    main()
