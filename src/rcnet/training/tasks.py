"""What is trained: batches, the loss and the figures at the end, for each task."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcnet.cell import RecurrentNet
from rcnet.data.camera import photograph, through_jpeg
from rcnet.data.cifar import cifar_sets
from rcnet.data.drawn import draw_pictures
from rcnet.data.images import pixels_of, random_patches, read_folder, split_folder
from rcnet.data.labelled import Labelled, augment, read_labelled, to_float
from rcnet.data.noise import add_noise, check_sigma, draw_levels
from rcnet.errors import InputError
from rcnet.evaluation.classify import classification_results
from rcnet.evaluation.denoise import check_sizes, denoising_results
from rcnet.models.layers import Normalize
from rcnet.models.registry import entry
from rcnet.training.recipe import Denoising, Recipe

Rows = list[dict[str, Any]]
MEASURED_AT = (15.0, 25.0, 50.0)  # levels of 255, of those that a range holds


class Batch(NamedTuple):
    """What an iteration trains on.

    Attributes:
        x: the network's input, [B, C, H, W].
        target: whatever the loss takes.
        sigma: what the network is told of the noise, [B] in levels of 255, negative where nothing; None: it takes no level.
        level: the level that there is, [B].
    """

    x: Tensor
    target: Tensor
    sigma: Tensor | None = None
    level: Tensor | None = None

    def part(self, start: int, stop: int) -> "Batch":
        """These of its images."""
        return Batch(*(None if values is None else values[start:stop] for values in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Task:
    """What the loop needs to know.

    Attributes:
        batch: what an iteration trains on, from its random generator.
        loss: of the network's output and the batch: a scalar, a mean over the batch.
        teach: the target that an output is for other step counts.
        evaluate: a row of figures a step count.
        data: the training images: `folder`, `images` (how many) and `crc32` of their pixels.
        preprocessing: what the weights' metadata adds about the input, e.g. its noise.
        config: what the data decides about the architecture, e.g. the number of classes.
        prepare: sets what a fresh network takes from the data.
    """

    batch: Callable[[np.random.Generator, int], Batch]
    loss: Callable[[Tensor, Batch], Tensor]
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
        raise InputError("the recipe's [model] has no name, e.g. name = 'r3', and there is no init that has one")
    make = denoising_task if entry(recipe.model["name"]).task == "denoise" else classification_task
    return make(recipe, data, device)


def denoising_task(recipe: Recipe, data: str | Path, device: torch.device) -> Task:
    """Random patches of a folder of images, with noise; the loss is summed over pixels and colours.

    Validation, where `holdout` images are kept from training: PSNR and SSIM of those.
    """
    config = recipe.denoising
    sigma = check_sigma(config.sigma)
    channels = int(recipe.model.get("in_chans", recipe.model.get("channels", 1)))
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

    training += draw_pictures(round(len(training) * config.drawn / (1 - config.drawn)), channels, recipe.seed)
    pixels = pixels_of(training, device)
    told = bool(recipe.model.get("noise_level"))

    def batch(rng: np.random.Generator, iteration: int) -> Batch:
        clean = random_patches(pixels, config.patch, recipe.batch, rng)
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        noisy, target, level = noisy_patches(clean, config, rng, generator)
        if not told:
            return Batch(noisy, target, None, level)
        silent = torch.rand(len(level), generator=generator, device=device) < config.unknown
        return Batch(noisy, target, torch.where(silent, -1.0, level), level)

    def loss(output: Tensor, batch: Batch) -> Tensor:
        error = output.float() - batch.target
        if config.loss == "charbonnier":
            return 0.03 * ((error.square() + 1e-6).sqrt() - 1e-3).sum() / len(error)  # gradients as large as those of the square
        squared = error.square().sum((1, 2, 3)) / 2
        if config.loss == "weighted" and batch.level is not None:
            squared = squared * ((25**2 + 4**2) / (batch.level.square() + 4**2)).sqrt()
        return squared.mean()

    def evaluate(model: RecurrentNet) -> Rows:
        low, high = sigma if isinstance(sigma, tuple) else (sigma, sigma)
        levels = [level for level in MEASURED_AT if low <= level <= high] or [(low + high) / 2]
        levels = levels if isinstance(sigma, tuple) else [sigma]
        as_8bit = config.as_8bit > 0.5
        results = [(at, denoising_results(model, validation, at, model.choices, as_8bit=as_8bit)) for at in levels if validation]
        return [{"sigma": at, **row} for at, rows in results for row in rows]

    return Task(
        batch,
        loss,
        lambda output: output.float(),
        evaluate,
        {"folder": folder.resolve().name, "images": len(training), "crc32": checksum(image.tobytes() for image in training)},
        {"noise": {"sigma": config.sigma, "as_8bit": config.as_8bit > 0.5, "camera": config.camera}},
    )


def noisy_patches(
    clean: Tensor, config: Denoising, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy patches and their targets, [B, C, H, W], and the levels of the noise, [B] in levels of 255, as the recipe says."""
    by_camera, as_8bit, by_jpeg = (rng.random() < part for part in (config.camera, config.as_8bit, config.jpeg))
    if by_camera:
        noisy, target = (
            picture.to(clean.device)
            for picture in photograph(clean.cpu(), rng, torch.Generator().manual_seed(int(rng.integers(2**62))))
        )
        noisy = (noisy.clamp(0, 1) * 255).round() / 255
    else:
        levels = draw_levels(config.sigma, len(clean), generator)
        levels = levels[:1].expand(len(clean)) if config.one_level else levels
        if config.clean:
            levels = torch.where(torch.rand(len(clean), generator=generator, device=clean.device) < config.clean, 0.0, levels)
        noisy, target = add_noise(clean, levels, generator, as_8bit), clean
    if by_jpeg:
        noisy = through_jpeg(noisy.cpu(), rng).to(clean.device)
    elif not by_camera:
        return noisy, target, levels
    return noisy, target, 255 * (noisy - target).square().mean((1, 2, 3)).sqrt()


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

    def batch(rng: np.random.Generator, iteration: int) -> Batch:
        epoch, place = divmod(iteration, per_epoch)
        index = order(epoch)[place * recipe.batch : (place + 1) * recipe.batch]
        here = index.to(device)
        varied = augment(images[here], rng, epoch=epoch, index=index, **how)
        return Batch(to_float(varied), labels[here])

    def loss(output: Tensor, batch: Batch) -> Tensor:
        smoothing = config.label_smoothing if batch.target.ndim == 1 else 0.0
        return F.cross_entropy(output.float(), batch.target, label_smoothing=smoothing)

    def evaluate(model: RecurrentNet) -> Rows:
        if validation is None:
            return []
        rows = classification_results(model, validation.images, validation.labels, model.choices, precision=recipe.precision)
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
