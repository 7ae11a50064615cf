"""What is trained: batches, the loss and the figures at the end, for each task."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcnet.cell import RecurrentNet
from rcnet.data.cifar import cifar_sets
from rcnet.data.images import pixels_of, random_patches, read_folder, split_folder
from rcnet.data.labelled import Labelled, augment, read_labelled, to_float
from rcnet.data.noise import add_noise, check_sigma
from rcnet.errors import InputError
from rcnet.evaluation.classify import classification_results
from rcnet.evaluation.denoise import check_sizes, denoising_results
from rcnet.models.layers import Normalize
from rcnet.models.registry import entry
from rcnet.training.recipe import Recipe

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What the loop needs to know.

    Attributes:
        batch: the input and the target of an iteration, [B, C, H, W] and whatever `loss` takes, from its random generator.
        loss: of the network's output and the target: a scalar, a mean over the batch.
        teach: the target that an output is for other step counts.
        evaluate: a row of figures a step count.
        data: the training images: `folder`, `images` (how many) and `crc32` of their pixels.
        preprocessing: what the weights' metadata adds about the input, e.g. its noise.
        config: what the data decides about the architecture, e.g. the number of classes.
        prepare: sets what a fresh network takes from the data.
    """

    batch: Callable[[np.random.Generator, int], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    teach: Callable[[Tensor], Tensor]
    evaluate: Callable[[RecurrentNet], Rows]
    data: dict[str, Any]
    preprocessing: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[RecurrentNet], None] = lambda model: None


def make_task(recipe: Recipe, data: str | Path, device: torch.device) -> Task:
    """The task of the recipe's network, on the images below `data`; batches come on `device`.

    Raises:
        InputError: the recipe names no network, or the data does not fit it.
    """
    if "name" not in recipe.model:
        raise InputError("the recipe's [model] has no name, e.g. name = 'r3'")
    make = denoising_task if entry(recipe.model["name"]).task == "denoise" else classification_task
    return make(recipe, data, device)


def denoising_task(recipe: Recipe, data: str | Path, device: torch.device) -> Task:
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
    kept = held_out(len(images), config.holdout)
    training = [image for i, image in enumerate(images) if i not in kept]
    validation = [image for i, image in enumerate(images) if i in kept]
    check_sizes(validation)
    smallest = min(min(image.shape[:2]) for image in training)
    if smallest < config.patch:
        raise InputError(f"{folder} holds an image smaller than the training patch: denoising.patch is at most {smallest} for it")

    pixels = pixels_of(training, device)

    def batch(rng: np.random.Generator, iteration: int) -> tuple[Tensor, Tensor]:
        clean = random_patches(pixels, config.patch, recipe.batch, rng)
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        return add_noise(clean, sigma, generator, config.as_8bit), clean

    def loss(output: Tensor, clean: Tensor) -> Tensor:
        return (output.float() - clean).square().sum() / (2 * len(clean))

    def evaluate(model: RecurrentNet) -> Rows:
        level = sum(sigma) / 2 if isinstance(sigma, tuple) else sigma
        rows = denoising_results(model, validation, level, model.steps, as_8bit=config.as_8bit) if validation else []
        return [{"sigma": level, **row} for row in rows]

    return Task(
        batch,
        loss,
        lambda output: output.float(),
        evaluate,
        {"folder": folder.resolve().name, "images": len(training), "crc32": checksum(image.tobytes() for image in training)},
        {"noise": {"sigma": config.sigma, "as_8bit": config.as_8bit}},
    )


def classification_task(recipe: Recipe, data: str | Path, device: torch.device) -> Task:
    """CIFAR or a folder of images by class, in memory as uint8, varied in batches on the device; cross-entropy.

    Every epoch goes through the images in an order of its own, but for those that no longer fill a batch. Validation: the images
    of `holdout`, else those of the test set if there is one.
    """
    config = recipe.classification
    everything = read_labelled(data, "train", config.dataset, config.size)
    count = len(everything.labels)
    if config.holdout >= count:
        raise InputError(f"holdout = {config.holdout} leaves none of the {count} images in {data} to train on")
    kept = torch.zeros(count, dtype=torch.bool)
    kept[sorted(held_out(count, config.holdout))] = True
    images, labels = everything.images[~kept].to(device), everything.labels[~kept].to(device)
    per_epoch = len(labels) // recipe.batch
    if not per_epoch:
        raise InputError(f"batch = {recipe.batch} is more than the {len(labels)} training images in {data}")
    validation: Labelled | None = None
    if config.holdout:
        validation = Labelled(everything.images[kept], everything.labels[kept], everything.classes, f"{everything.name} held out")
    elif (config.dataset != "folder" and cifar_sets(data)) or (Path(data) / "test").is_dir():
        validation = read_labelled(data, "test", config.dataset, config.size)
    mean, std = statistics(images)
    crc32 = checksum([images.cpu().numpy().tobytes(), labels.cpu().numpy().tobytes(), "\n".join(everything.classes).encode()])

    @lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([recipe.seed, 1, epoch]).permutation(len(labels)))

    how: dict[str, Any] = {"crop": config.crop, "flip": config.flip, "cutout": config.cutout, "seed": recipe.seed}

    def batch(rng: np.random.Generator, iteration: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(iteration, per_epoch)
        index = order(epoch)[place * recipe.batch : (place + 1) * recipe.batch]
        here = index.to(device)
        varied = augment(images[here], rng, epoch=epoch, index=index, **how)
        return to_float(varied), labels[here]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        smoothing = config.label_smoothing if target.ndim == 1 else 0.0
        return F.cross_entropy(output.float(), target, label_smoothing=smoothing)

    def evaluate(model: RecurrentNet) -> Rows:
        if validation is None:
            return []
        rows = classification_results(model, validation.images, validation.labels, model.steps, precision=recipe.precision)
        return [{"data": validation.name, **row} for row in rows]

    def prepare(model: RecurrentNet) -> None:
        for module in model.modules():
            if isinstance(module, Normalize):
                module.mean.copy_(mean.view_as(module.mean))
                module.std.copy_(std.view_as(module.std))
        if config.whitening:
            whiten(
                model.get_submodule("stem"),
                (to_float(images[:: -(-len(images) // 5000)].cpu()) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1),
            )

    return Task(
        batch,
        loss,
        lambda output: output.float().softmax(1),
        evaluate,
        {"folder": everything.name, "images": len(labels), "crc32": crc32},
        {"size": list(images.shape[-2:]), "classes": list(everything.classes)},
        {"classes": len(everything.classes)},
        prepare,
    )


def held_out(count: int, kept: int) -> set[int]:
    """Which images, evenly spaced, are kept from training."""
    return set(np.linspace(0, count - 1, kept).round().astype(int).tolist())


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images [N, C, H, W], in [0, 1]."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.transpose(0, 1)]).cpu()
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ levels
    return mean.float(), (share @ levels**2 - mean**2).clamp(min=1e-6).sqrt().float()


@torch.no_grad()
def whiten(stem: nn.Module, images: Tensor) -> None:
    """Makes the first filters of a convolution those that whiten the patches of `images` [N, C, H, W], and their negatives.

    Each answers with unit variance to a direction in which patches vary (Jordan, arXiv 2404.00498, there with 2x2 patches).
    """
    weight = stem.get_parameter("weight")
    patches = F.unfold(images, weight.shape[-1]).transpose(1, 2).reshape(-1, weight[0].numel())[::7].double()
    values, vectors = torch.linalg.eigh(patches.T.cov())
    filters = (vectors / (values + 1e-2).sqrt()).T.flip(0).reshape(-1, *weight.shape[1:])
    both = torch.cat([filters, -filters]).to(weight)[: len(weight)]
    weight[: len(both)] = both


def checksum(parts: Iterable[bytes]) -> str:
    """CRC-32 of the bytes, in hexadecimal."""
    crc32 = 0
    for part in parts:
        crc32 = zlib.crc32(part, crc32)
    return f"{crc32:08x}"
