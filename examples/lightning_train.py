"""PyTorch Lightning: a denoiser whose steps are drawn for each batch (Alg. 2 of the paper), on patches of a folder of images.

    python examples/lightning_train.py photos/ [ITERATIONS]

Prints the PSNR of the first image at each step before and after, and writes lightning.safetensors, for `rcnet denoise --model`.
Norms of steps that were not drawn have no gradient; under DDP that needs `strategy="ddp_find_unused_parameters_true"`.
"""

import itertools
import random
import sys

import lightning
import numpy as np
import torch

import rcnet
from rcnet.data.images import pixels_of, random_patches, read_folder, to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.evaluation import psnr, recalibrate

SIGMA = 25


class Training(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, number):
        noisy, clean = batch
        return (self.model(noisy, random.choice(self.model.choices)) - clean).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def batches(images):
    pixels, rng = pixels_of(images), np.random.default_rng(0)
    while True:
        clean = random_patches(pixels, 32, 8, rng)  # [8, 1, 32, 32] in [0, 1]
        yield clean + SIGMA / 255 * torch.randn_like(clean), clean


def report(model, image):
    clean, noisy = to_tensor(image), protocol_noise(image, SIGMA)
    values = (psnr(rcnet.denoise(model, noisy, steps), clean) for steps in model.choices)
    print(f"noisy {psnr(noisy, clean):.2f} dB, by steps:", *(f"{value:.2f}" for value in values))


if __name__ == "__main__":
    lightning.seed_everything(0, verbose=False)
    images, model = read_folder(sys.argv[1], 1), rcnet.create_model("r3", steps=(1, 2, 3))
    report(model, images[0])
    iterations = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    trainer = lightning.Trainer(max_steps=iterations, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Training(model), batches(images))
    recalibrate(
        model, [noisy for noisy, _ in itertools.islice(batches(images), 8)]
    )  # the norms of each step saw only the batches of that step
    report(model, images[0])
    rcnet.save(model, "lightning.safetensors", preprocessing={"noise": {"sigma": SIGMA}})
