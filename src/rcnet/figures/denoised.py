"""Figure 4: a noisy image denoised at each step count."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from rcnet.data.images import to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.deploy.denoise import denoise
from rcnet.evaluation.denoise import psnr, to_uint8_levels
from rcnet.figures.side_by_side import Panel, centre, in_rows, side_by_side
from rcnet.models.judge import needs_level
from rcnet.network import RecurrentNet
from rcnet.setting import Steps

SHOWN = 160  # side in pixels of the part that is shown, enlarged
COLUMNS = 3


def denoised(networks: Mapping[str, tuple[RecurrentNet, Steps]], images: Sequence[np.ndarray], sigma: float) -> Image.Image:
    """For each image: noisy, denoised by each of `networks` (label -> network and steps), clean; with the PSNR in dB.

    The PSNR is that of the whole image; its centre is shown, enlarged.

    Args:
        images: uint8 [H, W, C].
        sigma: level of the noise, in levels of 255; the noise follows the BSD68 protocol.

    Raises:
        InputError: one of the networks is not a denoiser.
    """
    rows = []
    for image in images:
        clean, noisy = to_tensor(image), protocol_noise(image, sigma)
        row = [_panel(f"noisy: {psnr(to_uint8_levels(noisy), clean):.2f} dB", noisy[0].permute(1, 2, 0).numpy())]
        for label, (network, steps) in networks.items():
            output = denoise(network, noisy, steps, sigma=sigma if needs_level(network) else None)
            row.append(_panel(f"{label}: {psnr(to_uint8_levels(output), clean):.2f} dB", output[0].permute(1, 2, 0).numpy()))
        row.append(_panel("clean", image / 255))
        rows += in_rows(row, COLUMNS)
    return side_by_side(rows)


def denoised_by_steps(model: RecurrentNet, images: Sequence[np.ndarray], sigma: float) -> Image.Image:
    """As `denoised`, by one network at each of its step counts."""
    return denoised({f"steps {n}": (model, n) for n in model.settings}, images, sigma)


def _panel(label: str, image: np.ndarray) -> Panel:
    part = centre(image, SHOWN)
    return label, part.repeat(2, axis=0).repeat(2, axis=1)
