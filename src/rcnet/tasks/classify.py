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
from rcnet.tasks.task import Batch, CalibrationBatch, Kind, Measuring, Rows, Setup, Task, checksum, held_out, number, spread


@dataclass(frozen=True)
class Classification:
    """Labelled images and their augmentation."""

    dataset: Literal["auto", "cifar10", "cifar100", "folder"] = "auto"  # auto: what the folder contains
    size: int = number(0, 0)  # side in pixels that images are resized to; 0: the size of the init weights, or 32
    crop: int = number(4, 0)  # largest shift of a random crop in pixels, padded by reflection; 0 does not crop
    flip: Literal["random", "alternating", "none"] = "random"  # alternating: each image in every other epoch
    cutout: int = number(0, 0)  # side in pixels of a square that is painted gray
    label_smoothing: float = number(0.0, 0, 1)
    whitening: bool = False  # the stem starts as filters that whiten the patches of the training images
    # Training images, evenly spaced, that are held out to measure on instead of the test images; -1: where there are no test
    # images, a tenth, at most 1000, in a run that measures along its way; else none.
    holdout: int = number(-1, -1)


def settled(config: Classification, about: About) -> Classification:
    """The section with the size of its images.

    Raises:
        InputError: a size below 8.

    Example:
        >>> settled(Classification(), About(size=(64, 64))).size
        64
    """
    size = config.size or (about.size[0] if about.size else 32)
    if size < 8:
        raise InputError(f"classification.size = {size} is not valid: at least 8, or 0 (the size of the init weights, or 32)")
    return dataclasses.replace(config, size=size)


def begin(config: Classification, setup: Setup) -> Task:
    """CIFAR or a folder of images by class, in memory as uint8, augmented in batches on the device; cross-entropy.

    Each epoch has its own order of the images and leaves out those that do not fill a batch. Validation: the images held out,
    else the test images if there are any.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (Path(folder) / name).mkdir()
        ...         Image.new("RGB", (40, 40)).save(f"{folder}/{name}/1.png")
        ...     setup = Setup(Path(folder), torch.device("cpu"), About(channels=3), batch=2, seed=0, precision="fp32")
        ...     task = begin(settled(Classification(), setup.about), setup)
        >>> task.batch(np.random.default_rng(0), 0).x.shape, task.config
        (torch.Size([2, 3, 32, 32]), {'num_classes': 2})
    """
    data, device = setup.data, setup.device
    about, size = setup.about, settled(config, setup.about).size

    def read(split: str) -> Labelled:
        return in_order(read_labelled(data, split, config.dataset, size, about.channels), about.classes)

    everything = read("train")
    count = len(everything.labels)
    tested = bool(config.dataset != "folder" and cifar_sets(data)) or (data / "test").is_dir()
    held = sorted(held_out(count, config.holdout, setup.measures and not tested, most=1000))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[held] = True
    images, labels = everything.images[~kept].to(device), everything.labels[~kept].to(device)
    per_epoch = len(labels) // setup.batch
    if not per_epoch:
        raise InputError(f"batch = {setup.batch} is more than the {len(labels)} training images in {data}")
    validation: Labelled | None = None
    if held:
        validation = Labelled(everything.images[kept], everything.labels[kept], everything.classes, f"{everything.name} held out")
    elif tested:
        validation = read("test")
    mean, std = statistics(images)
    names = [everything.classes[label].encode() for label in labels.tolist()]
    crc32 = checksum(image.tobytes() + name for image, name in zip(images.cpu().numpy(), names, strict=True))

    @lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([setup.seed, 1, epoch]).permutation(len(labels)))

    options: dict[str, Any] = {"crop": config.crop, "flip": config.flip, "cutout": config.cutout, "seed": setup.seed}

    def batch(rng: np.random.Generator, iteration: int) -> Batch:
        epoch, number = divmod(iteration, per_epoch)
        index = order(epoch)[number * setup.batch : (number + 1) * setup.batch]
        chosen = index.to(device)
        return Batch(to_float(augment(images[chosen], rng, epoch=epoch, index=index, **options)), labels[chosen])

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
                raise InputError("whitening needs a network with a convolution named stem: classification.whitening=false")
            few = to_float(images[:: -(-len(images) // 5000)].cpu())
            whiten(stem, (few - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))

    return Task(
        batch,
        loss,
        lambda output: output.float().softmax(1),
        evaluate,
        {"folder": everything.name, "images": len(labels), "crc32": crc32},
        {"size": list(images.shape[-2:]), "classes": list(everything.classes)},
        {"num_classes": len(everything.classes)},
        prepare,
        len(held),
    )


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images [N, C, H, W], in [0, 1].

    Example:
        >>> mean, std = statistics(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
        >>> mean.item(), std.item()
        (0.5, 0.5)
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.transpose(0, 1)]).cpu()
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ levels
    return mean.float(), (share @ levels**2 - mean**2).clamp(min=1e-6).sqrt().float()


@torch.no_grad()
def whiten(stem: nn.Module, images: Tensor) -> None:
    """Sets the first filters of a convolution to those that whiten the patches of `images` [N, C, H, W], and their negatives.

    Each output has unit variance along one principal direction of the patches (Jordan, arXiv 2404.00498, with 2x2 patches).

    Example:
        >>> stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        >>> before = stem.weight.clone()
        >>> whiten(stem, torch.rand(8, 3, 32, 32))
        >>> changed = (stem.weight != before).flatten(1).any(1)
        >>> changed.sum().item()
        54
    """
    weight = stem.get_parameter("weight")
    patches = F.unfold(images, weight.shape[-1]).transpose(1, 2).reshape(-1, weight[0].numel())[::7].double()
    values, vectors = torch.linalg.eigh(patches.T.cov())
    filters = (vectors / (values + 1e-2).sqrt()).T.flip(0).reshape(-1, *weight.shape[1:])
    both = torch.cat([filters, -filters]).to(weight)[: len(weight)]
    weight[: len(both)] = both


def read_matching(folder: str | Path, split: str, model: RecurrentNet) -> Labelled:
    """The labelled images at a path (see `read_labelled`), with the classes and the size of the weights.

    Raises:
        InputError: what `read_labelled` raises, or other classes than those of the weights.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from rcnet import load
        >>> model = load("r2.cifar10")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in class_names(model.about):
        ...         (Path(folder) / name).mkdir()
        ...         Image.new("RGB", (40, 40)).save(f"{folder}/{name}/1.png")
        ...     read_matching(folder, "test", model).images.shape
        torch.Size([10, 3, 32, 32])
    """
    names, size = class_names(model.about), image_size(model.about)
    other: Sequence[str] = ()
    for dataset in cifar_sets(folder) or ["auto"]:
        found = in_order(read_labelled(folder, split, dataset, size, model.about.channels), names)
        if list(found.classes) == names:
            return found
        other = other or [name for name in found.classes if name not in names] or found.classes
    raise InputError(f"{folder} contains other classes ({_some(other)}) than these weights know: {_some(names)}")


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


def calibration(model: RecurrentNet, folder: str | Path) -> Iterator[CalibrationBatch]:
    """256 training images of CIFAR or of a folder by class, in batches of 32."""
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
