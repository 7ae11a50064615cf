"""PyTorch Lightning: a denoiser whose steps are drawn for each batch (Alg. 2 of the paper), on patches of a folder of images.

    python examples/lightning_train.py photos/ [ITERATIONS]

Prints the PSNR of the first image at each step before and after, and writes lightning.safetensors, which `rcnet denoise --model`
takes. The norms of steps that were not drawn have no gradient, and with `zero_grad(set_to_none=True)`, which is Lightning's way,
no optimizer touches them; under DDP that needs `strategy="ddp_find_unused_parameters_true"`.
"""

import random
import sys

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

import rcnet
from rcnet.data.images import pixels_of, random_patches, read_folder, to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.evaluation.denoise import psnr

SIGMA = 25


class Patches(IterableDataset):
    """Clean batches, [8, 1, 48, 48] in [0, 1]."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.pixels, self.rng = pixels_of(images), np.random.default_rng(0)

    def __iter__(self):
        while True:
            yield random_patches(self.pixels, 48, 8, self.rng)


class Training(lightning.LightningModule):
    def __init__(self, model: rcnet.RecurrentNet) -> None:
        super().__init__()
        self.model = model

    def training_step(self, clean, number):
        noisy = clean + SIGMA / 255 * torch.randn_like(clean)
        steps = random.choice(self.model.choices)
        loss = (self.model(noisy, steps) - clean).square().mean()
        self.log(f"loss at {steps}", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def report(model: rcnet.RecurrentNet, image: np.ndarray) -> None:
    clean, noisy = to_tensor(image), protocol_noise(image, SIGMA)
    values = (psnr(rcnet.denoise(model, noisy, steps), clean) for steps in model.choices)
    print(f"noisy {psnr(noisy, clean):.2f} dB, by steps:", *(f"{value:.2f}" for value in values))


def main(folder: str, iterations: str = "200") -> None:
    lightning.seed_everything(0, verbose=False)
    images, model = read_folder(folder, 1), rcnet.create_model("r3_fast", steps=(1, 2, 3), width=24)
    report(model, images[0])
    trainer = lightning.Trainer(max_steps=int(iterations), accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Training(model), DataLoader(Patches(images), batch_size=None))
    report(model, images[0])
    rcnet.save(model, "lightning.safetensors", preprocessing={"noise": {"sigma": SIGMA}})


if __name__ == "__main__":
    main(*sys.argv[1:])
