"""Classification: CIFAR or a folder of images by class; the error rate."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcnet.about import About
from rcnet.data.cifar import cifar_sets
from rcnet.data.labelled import Labelled, augment, in_order, read_labelled, to_float
from rcnet.errors import InputError
from rcnet.evaluation.classify import classification_results
from rcnet.models.layers import Normalize
from rcnet.network import RecurrentNet
from rcnet.runtime.classify import class_names, image_size
from rcnet.setting import Steps
from rcnet.tasks.task import Batch, Fed, Kind, Measuring, Rows, Setup, Task, checksum, held_out, number, spread


@dataclass(frozen=True)
class Classification:
    """Labelled images and how they are varied."""

    dataset: Literal["auto", "cifar10", "cifar100", "folder"] = "auto"  # auto takes the one that is there
    size: int = number(0, 0)  # pixels, a side, that images are resized to; 0: as init had them, where the network is its, else 32
    crop: int = number(4, 0)  # pixels that a random crop may be off, with reflection; 0 does not crop
    flip: Literal["random", "alternating", "none"] = "random"  # alternating: each image in one epoch and not in the next
    cutout: int = number(0, 0)  # pixels, a side, of a square that is blanked
    label_smoothing: float = number(0.0, 0, 1)
    whitening: bool = False  # the stem starts as filters that whiten the patches of the training images
    holdout: int = number(0, 0)  # this many of the training images are kept for validation, and the test images left alone


def settled(config: Classification, about: About) -> Classification:
    """With the size that its images will have.

    Raises:
        InputError: a size that is none.
    """
    size = config.size or (about.size[0] if about.size else 32)
    if size < 8:
        raise InputError(f"classification.size = {size} is not valid: 8 or more, or 0 for that of init, else 32")
    return dataclasses.replace(config, size=size)


def begin(config: Classification, setup: Setup) -> Task:
    """CIFAR or a folder of images by class, in memory as uint8, varied in batches on the device; cross-entropy.

    Every epoch goes through the images in an order of its own, but for those that no longer fill a batch. Validation: the images
    of `holdout`, else those of the test set if there is one.
    """
    data, device = setup.data, setup.device
    about, size = setup.about, settled(config, setup.about).size

    def read(split: str) -> Labelled:
        return in_order(read_labelled(data, split, config.dataset, size, about.channels), about.classes)

    everything = read("train")
    count = len(everything.labels)
    if config.holdout >= count:
        raise InputError(f"holdout = {config.holdout} leaves none of the {count} images in {data} to train on")
    kept = torch.zeros(count, dtype=torch.bool)
    kept[sorted(held_out(count, config.holdout))] = True
    images, labels = everything.images[~kept].to(device), everything.labels[~kept].to(device)
    per_epoch = len(labels) // setup.batch
    if not per_epoch:
        raise InputError(f"batch = {setup.batch} is more than the {len(labels)} training images in {data}")
    validation: Labelled | None = None
    if config.holdout:
        validation = Labelled(everything.images[kept], everything.labels[kept], everything.classes, f"{everything.name} held out")
    elif (config.dataset != "folder" and cifar_sets(data)) or (data / "test").is_dir():
        validation = read("test")
    mean, std = statistics(images)
    names = [everything.classes[label].encode() for label in labels.tolist()]
    crc32 = checksum(image.tobytes() + name for image, name in zip(images.cpu().numpy(), names, strict=True))

    @lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([setup.seed, 1, epoch]).permutation(len(labels)))

    how: dict[str, Any] = {"crop": config.crop, "flip": config.flip, "cutout": config.cutout, "seed": setup.seed}

    def batch(rng: np.random.Generator, iteration: int) -> Batch:
        epoch, place = divmod(iteration, per_epoch)
        index = order(epoch)[place * setup.batch : (place + 1) * setup.batch]
        here = index.to(device)
        varied = augment(images[here], rng, epoch=epoch, index=index, **how)
        return Batch(to_float(varied), labels[here])

    def loss(output: Tensor, batch: Batch) -> Tensor:
        if output.shape[1] != len(everything.classes):
            raise InputError(f"the network has {output.shape[1]} outputs and {everything.name} {len(everything.classes)} classes")
        smoothing = config.label_smoothing if batch.target.ndim == 1 else 0.0
        return F.cross_entropy(output.float(), batch.target, label_smoothing=smoothing)

    def evaluate(model: RecurrentNet) -> Rows:
        if validation is None:
            return []
        rows = classification_results(model, validation.images, validation.labels, model.settings, precision=setup.precision)
        return [{"data": validation.name, **row} for row in rows]

    def prepare(model: RecurrentNet) -> None:
        for module in model.modules():
            if isinstance(module, Normalize):
                module.mean.copy_(mean.view_as(module.mean))
                module.std.copy_(std.view_as(module.std))
        if config.whitening:
            stem = dict(model.named_children()).get("stem")
            if not isinstance(stem, nn.Conv2d):
                raise InputError("whitening is for a network with a convolution named stem: classification.whitening=false")
            whiten(
                stem,
                (to_float(images[:: -(-len(images) // 5000)].cpu()) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1),
            )

    return Task(
        batch,
        loss,
        lambda output: output.float().softmax(1),
        evaluate,
        {"folder": everything.name, "images": len(labels), "crc32": crc32},
        {"size": list(images.shape[-2:]), "classes": list(everything.classes)},
        {"num_classes": len(everything.classes)},
        prepare,
    )


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


def read_matching(folder: str | Path, split: str, model: RecurrentNet) -> Labelled:
    """The labelled images at a path (see `read_labelled`) that have the classes of the weights, at the size that they take.

    Raises:
        InputError: what `read_labelled` raises, or other classes than the weights know.
    """
    names, size = class_names(model.about), image_size(model.about)
    other: Sequence[str] = ()
    for dataset in cifar_sets(folder) or ["auto"]:
        found = in_order(read_labelled(folder, split, dataset, size, model.about.channels), names)
        if list(found.classes) == names:
            return found
        other = other or [name for name in found.classes if name not in names] or found.classes
    raise InputError(f"{folder} holds other classes ({_some(other)}) than these weights know: {_some(names)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def measuring(model: RecurrentNet, data: str | Path) -> Measuring:
    """The test images of the classes of the weights: CIFAR, or a folder by class."""
    if not isinstance(data, str | Path):
        raise InputError("a classifier is measured on a folder of labelled images: CIFAR, or CLASS/NAME.png")
    found = read_matching(data, "test", model)

    def rows(steps: Sequence[Steps], *, precision: str = "fp32", each: Callable[..., object] = lambda *_: None) -> Rows:
        return classification_results(model, found.images, found.labels, steps, precision=precision, each=each)

    height, width = found.images.shape[-2:]
    whole = not cifar_sets(data) and not (Path(data) / "test").is_dir()
    note = f"{data} has no folder named test: the network may have been trained on these images" if whole else ""
    return Measuring({"data": found.name, "images": len(found.labels)}, (height, width), rows, note)


def calibration(model: RecurrentNet, folder: str | Path) -> Iterator[Fed]:
    """256 training images of CIFAR or of a folder by class."""
    images = read_matching(folder, "train", model).images
    chosen = images[spread(len(images), 256)]
    return ((batch.float() / 255).numpy() for batch in torch.split(chosen, 32))


CLASSIFY = Kind(
    Classification,
    (32, 32),
    {"error %": ("error", 2), "top-5 error %": ("top5_error", 2), "loss": ("loss", 4)},
    begin,
    measuring,
    calibration,
    gives="classes",
    int8_outputs=True,
    pipeline="image-classification",
    use="scores = rcnet.classify(model, images{steps})",
    command="classify IN --model {weights}",
    settled=settled,
)
