"""Labelled images in memory (CIFAR-10, CIFAR-100 or a folder of class folders) and their augmentation."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcnet.data.cifar import CIFAR, RECORDS, cifar_sets, read_cifar
from rcnet.data.formats import SUFFIXES
from rcnet.data.images import check_size, fit, in_channels, list_images, read_images
from rcnet.errors import InputError, unknown

DATASETS = ("auto", *CIFAR, "folder")
FLIPS = ("random", "alternating", "none")
GRAY = (125, 123, 114)  # the mean colour of the CIFAR-10 training images; CIFAR-100's is (129, 124, 112)


@dataclass(frozen=True, eq=False)
class Labelled:
    """One split of a data set.

    Attributes:
        images: uint8 [N, 3 or 1, H, W].
        labels: int64 [N], indices into `classes`.
        classes: the class names.
        name: "cifar10", "cifar100" or the name of the folder.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str


def read_labelled(folder: str | Path, split: str, dataset: str = "auto", size: int | None = None, channels: int = 3) -> Labelled:
    """One split of the labelled images at a path.

    An image folder has files `folder/split/class/name.png`, or `folder/class/name.png` for both splits if there is no folder
    named train or test. The classes are the sorted names of the class folders; names that start with a dot are ignored.

    Args:
        folder: what `read_cifar` takes, or an image folder.
        split: "train" or "test".
        dataset: "cifar10", "cifar100", "folder", or "auto": CIFAR if found, else an image folder.
        size: side of the images in pixels; default: 32. Images of another size are resized by `fit`.
        channels: 3, or 1 for gray.

    Raises:
        InputError: an unknown split or dataset, two data sets to choose from, none, images that cannot be read, a class
            folder without images, images outside class folders, fewer than two classes, or other classes in the test split
            than in the training split.
    """
    if split not in RECORDS:
        raise unknown("split", split, RECORDS)
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS)
    if size is not None:
        check_size(size)
    if dataset == "auto":
        found = cifar_sets(folder)
        if len(found) > 1:
            raise InputError(f"{folder} contains {' and '.join(found)}: choose one, e.g. classification.dataset={found[0]}")
        dataset = found[0] if found else "folder"
    if dataset == "folder":
        return _read_folders(Path(folder), split, 32 if size is None else size, channels)
    if dataset not in cifar_sets(folder) and _may_be_classes(Path(folder), split):
        raise InputError(
            f"no {dataset} in {folder} (to get it: rcnet data {dataset} --out {folder}); for its class folders, "
            f"rcnet train ... --data {folder} classification.dataset=folder"
        )
    images, labels, classes = read_cifar(folder, dataset, split)
    if size not in (None, 32) or channels != 3:
        resized = (in_channels(fit(image, size or 32), channels) for image in images.transpose(0, 2, 3, 1))
        images = np.stack([image.transpose(2, 0, 1) for image in resized])
    return Labelled(torch.from_numpy(images), torch.from_numpy(labels), classes, dataset)


def in_order(found: Labelled, classes: Sequence[str]) -> Labelled:
    """The data with classes in the order of `classes` if both have the same classes; else unchanged."""
    if found.classes == tuple(classes) or sorted(found.classes) != sorted(classes):
        return found
    index = torch.tensor([list(classes).index(name) for name in found.classes])
    return dataclasses.replace(found, labels=index[found.labels], classes=tuple(classes))


def augment(
    images: Tensor,
    rng: np.random.Generator,
    *,
    crop: int = 4,
    flip: str = "random",
    epoch: int = 0,
    index: Tensor | None = None,
    seed: int = 0,
    cutout: int = 0,
) -> Tensor:
    """Shifted, mirrored and partly hidden copies of a batch: uint8 [B, 3 or 1, H, W] of the same, on the same device.

    All draws are made by `rng` on the CPU, so that they do not depend on the device.

    Args:
        crop: the image is padded by this many pixels by reflection, and a window of the original size is cropped at random.
        flip: "random" mirrors each image with probability 1/2; "alternating" mirrors it in every other epoch, beginning in a
            random one of the first two (Jordan, arXiv 2404.00498); "none" never does.
        epoch: for the alternating flip.
        index: for the alternating flip, the position of each image in its data set, int64 [B].
        seed: for the alternating flip, decides with the index which epochs an image is flipped in.
        cutout: side of a square at a random position in the image that is painted gray (`GRAY`).

    Raises:
        InputError: a crop or cutout that does not fit into the image, an unknown flip, or an alternating flip without `index`.
    """
    batch, _, height, width = images.shape
    side = min(height, width)
    if not 0 <= crop < side or not 0 <= cutout <= side:
        valid = f"for images of {side} pixels crop < {side}, cutout <= {side}"
        raise InputError(f"crop = {crop}, cutout = {cutout} are not valid: {valid}")
    rows = _window(rng, batch, height, crop)
    columns = _window(rng, batch, width, crop)
    if flip == "random":
        mirrored = torch.from_numpy(rng.integers(2, size=batch).astype(bool))
    elif flip == "alternating":
        if index is None:
            raise InputError("the alternating flip needs the index of each image")
        mirrored = (_hash(index.cpu(), seed) + epoch) % 2 == 1
    elif flip == "none":
        mirrored = torch.zeros(batch, dtype=torch.bool)
    else:
        raise unknown("flip", flip, FLIPS)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1).to(images.device)
    out = images.flatten(2).gather(2, pixels[:, None].expand(-1, images.shape[1], -1)).view_as(images)
    if cutout:
        top, left = (torch.from_numpy(rng.integers(n - cutout + 1, size=(batch, 1))) for n in (height, width))
        hidden = _between(top, height, cutout)[:, None, :, None] & _between(left, width, cutout)[:, None, None, :]
        hidden = hidden.to(images.device, torch.uint8)
        gray = torch.tensor(GRAY if images.shape[1] == 3 else GRAY[1:2], dtype=torch.uint8, device=images.device)
        out = out * (1 - hidden) + gray[:, None, None] * hidden
    return out


def to_float(images: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1], of the same shape."""
    return images.float().div_(255)


def _window(rng: np.random.Generator, batch: int, side: int, crop: int) -> Tensor:
    """The image row (or column) for each row of a random window of the padded image: int64 [batch, side]."""
    rows = np.arange(side) + rng.integers(-crop, crop + 1, size=(batch, 1))
    return torch.from_numpy(side - 1 - np.abs(side - 1 - np.abs(rows)))


def _between(start: Tensor, side: int, length: int) -> Tensor:
    rows = torch.arange(side)
    return (rows >= start) & (rows < start + length)


def _hash(index: Tensor, seed: int) -> Tensor:
    """A 32-bit hash of each index and the seed."""
    value = index.long() + (seed * 0x9E3779B1 & 0xFFFFFFFF)
    for _ in range(3):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return value ^ (value >> 16)


def _may_be_classes(folder: Path, split: str) -> bool:
    root = folder / split if (folder / split).is_dir() else folder
    return root.is_dir() and sum(path.is_dir() and not path.name.startswith(".") for path in root.iterdir()) > 1


def _read_folders(folder: Path, split: str, size: int, channels: int) -> Labelled:
    if not folder.is_dir():
        out = folder.parent if folder.is_file() else folder
        raise InputError(f"no folder of labelled images at {folder}; to get CIFAR: rcnet data cifar10 --out {out}")
    splits = [name for name in RECORDS if (folder / name).is_dir()]
    if splits and split not in splits:
        raise InputError(f"{folder} contains a folder named {splits[0]} but none named {split}")
    root = folder / split if splits else folder
    classes = _classes(root)
    if len(splits) == 2:
        train, test = (set(_classes(folder / name)) for name in ("train", "test"))
        differing = (("train", train - test), ("test", test - train))
        only = [f"{', '.join(sorted(names))} only in {name}" for name, names in differing if names]
        if only:
            raise InputError(f"{folder} has different classes in train and test: {'; '.join(only)}")
    files = [(path, label) for label, name in enumerate(classes) for path in list_images(root / name)]
    images = np.empty((len(files), channels, size, size), np.uint8)
    for i, image in enumerate(read_images([path for path, _ in files], channels)):
        images[i] = fit(image, size).transpose(2, 0, 1)
    labels = torch.tensor([label for _, label in files])
    return Labelled(torch.from_numpy(images), labels, classes, folder.resolve().name)


def _classes(root: Path) -> tuple[str, ...]:
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    stray = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    valid = f"valid: {root}/CLASS/NAME.png, or CIFAR (rcnet data cifar10 --out {root})"
    if stray:
        raise InputError(f"{stray[0]} is outside the class folders ({len(stray)} such images); {valid}")
    classes = tuple(path.name for path in entries if path.is_dir())
    if len(classes) < 2:
        raise InputError(f"{root} contains {len(classes)} class folders; at least 2 are needed; {valid}")
    return classes
