"""torchmetrics: PSNR and SSIM of a folder of images, with noise of sigma 25 and at each setting of a denoiser.

    python examples/metrics.py photos/ [r3_fast.color]

The metrics are means over images, as published figures are, so images may differ in size. As in `rcnet eval`, the result is
rounded to 8 bits and the noise is not clipped. SSIM treats borders differently there, so its third digit differs.
"""

import sys

import torch
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

import rcnet
from rcnet.data.images import read_folder, to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.evaluation.denoise import to_uint8_levels

SIGMA = 25


def metrics() -> MetricCollection:
    """`dim`: the PSNR of each image, then their mean, rather than the PSNR of all pixels together."""
    return MetricCollection(
        {
            "psnr": PeakSignalNoiseRatio(1.0, dim=(1, 2, 3), reduction="elementwise_mean"),
            "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
        }
    )


def main(folder: str, weights: str = "r3_fast.color") -> None:
    model = rcnet.load(weights)
    told = {"sigma": SIGMA} if model.about.takes_level else {}
    if model.about.levels == 2:
        told["sigma"] = torch.tensor([SIGMA, 0.0]).view(1, 2, 1, 1)  # white noise and no coarse noise
    images = read_folder(folder, model.about.channels)
    for steps in ("noisy", *model.choices):
        measured = metrics()
        for image in images:
            clean, noisy = to_tensor(image), protocol_noise(image, SIGMA)
            output = noisy if steps == "noisy" else rcnet.denoise(model, noisy, steps, **told)
            measured.update(to_uint8_levels(output), clean)
        values = measured.compute()
        print(f"{steps}: {values['psnr']:.2f} dB, SSIM {values['ssim']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
