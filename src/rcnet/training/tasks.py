"""What is trained: batches, the loss and the figures at the end, for each task."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcnet.cell import RecurrentNet
from rcnet.data.images import random_patches, read_folder, split_folder
from rcnet.data.noise import add_noise, check_sigma
from rcnet.errors import InputError
from rcnet.evaluation.denoise import check_sizes, denoising_results
from rcnet.models.registry import task_of
from rcnet.training.recipe import Recipe

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What the loop needs to know.

    Attributes:
        batch: draws an input and its target, [B, C, H, W] and whatever `loss` takes.
        loss: of the network's output and the target, a scalar.
        evaluate: a row of figures a step count.
        data: the training images: `folder`, `images` (how many) and `crc32` of their pixels.
        preprocessing: what the weights' metadata adds about the input, e.g. its noise.
    """

    batch: Callable[[np.random.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    evaluate: Callable[[RecurrentNet], Rows]
    data: dict[str, Any]
    preprocessing: dict[str, Any]


def make_task(recipe: Recipe, model: RecurrentNet, data: str | Path) -> Task:
    """The task of the model, on the images below `data` (or `data/train`)."""
    if task_of(model) == "denoise":
        return denoising_task(recipe, data)
    raise InputError("training classifiers is not there yet: rcnet train takes denoisers")


def denoising_task(recipe: Recipe, data: str | Path) -> Task:
    """Random patches of a folder of images with Gaussian noise; half the squared error, summed over pixels and colours.

    Validation, where `holdout` images are kept from training: PSNR and SSIM of those.
    """
    config = recipe.denoising
    sigma = check_sigma(config.sigma)
    channels = int(recipe.model.get("channels", 1))
    if channels not in (1, 3):
        raise InputError(f"model.channels = {channels} is not valid: images are gray (1) or colour (3)")
    folder = split_folder(data, "train")
    images = read_folder(folder, channels)
    if config.holdout >= len(images):
        raise InputError(f"holdout = {config.holdout} leaves none of the {len(images)} images in {data} to train on")
    kept = set(np.linspace(0, len(images) - 1, config.holdout).round().astype(int).tolist())
    training = [image for i, image in enumerate(images) if i not in kept]
    validation = [image for i, image in enumerate(images) if i in kept]
    check_sizes(validation)
    smallest = min(min(image.shape[:2]) for image in training)
    if smallest < config.patch:
        raise InputError(f"{folder} holds an image smaller than the training patch: denoising.patch is at most {smallest} for it")

    def batch(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        clean = random_patches(training, config.patch, recipe.batch, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return add_noise(clean, sigma, generator, config.as_8bit), clean

    def loss(output: Tensor, clean: Tensor) -> Tensor:
        return (output.float() - clean).square().sum() / (2 * len(clean))

    def evaluate(model: RecurrentNet) -> Rows:
        level = sum(sigma) / 2 if isinstance(sigma, tuple) else sigma
        rows = denoising_results(model, validation, level, model.steps, as_8bit=config.as_8bit) if validation else []
        return [{"sigma": level, **row} for row in rows]

    crc32 = 0
    for image in training:
        crc32 = zlib.crc32(image.tobytes(), crc32)
    about = {"folder": folder.resolve().name, "images": len(training), "crc32": f"{crc32:08x}"}
    return Task(batch, loss, evaluate, about, {"noise": {"sigma": config.sigma, "as_8bit": config.as_8bit}})
