"""Classifying images of any size."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rcnet.cell import RecurrentNet, Steps, evaluating, unroll
from rcnet.data.cifar import cifar_sets
from rcnet.data.images import read_image
from rcnet.data.labelled import Labelled, fit, read_labelled
from rcnet.device import autocast, resolve_precision
from rcnet.errors import InputError
from rcnet.models.registry import task_of


def class_names(model: RecurrentNet) -> list[str]:
    """What the outputs stand for, from the metadata of loaded weights, or `InputError` if this is no trained classifier."""
    names = getattr(model, "metadata", {}).get("preprocessing", {}).get("classes")
    if task_of(model) != "classify" or not isinstance(names, list):
        raise InputError("this network does not classify, or its weights do not name their classes: take a trained classifier")
    return [str(name) for name in names]


def image_size(model: RecurrentNet) -> int:
    """The side in pixels of the images that the weights were trained on, or `InputError` if they do not say."""
    size = getattr(model, "metadata", {}).get("preprocessing", {}).get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError("these weights do not say which size of image they take")
    return int(size[0])


def read_fitting(path: str | Path, model: RecurrentNet) -> Tensor:
    """The image of a file as the weights expect it: uint8 [3, H, W], upright, resized and cut as their preprocessing says.

    Raises:
        InputError: the file is not an image that rcnet reads, or the weights do not say their size.
    """
    return torch.from_numpy(fit(read_image(path, 3), image_size(model)).transpose(2, 0, 1).copy())


def read_matching(folder: str | Path, split: str, model: RecurrentNet) -> Labelled:
    """The labelled images at a path (see `read_labelled`) that have the classes of the weights, at the size that they take.

    Raises:
        InputError: what `read_labelled` raises, or other classes than the weights know.
    """
    names, size = class_names(model), image_size(model)
    other: Sequence[str] = ()
    for dataset in cifar_sets(folder) or ["auto"]:
        found = read_labelled(folder, split, dataset, size)
        if list(found.classes) == names:
            return found
        other = other or [name for name in found.classes if name not in names] or found.classes
    raise InputError(f"{folder} holds other classes ({_some(other)}) than these weights know: {_some(names)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


@torch.inference_mode()
def classify(model: RecurrentNet, images: Tensor, steps: Steps = None, *, precision: str = "fp32") -> Tensor:
    """The probability of each class, float [B, classes].

    Args:
        images: [B, 3, H, W], uint8 or float in [0, 1].
        steps: the cost: any step count that the model supports; the largest unless given.
        precision: `fp32`, `bf16` or `auto`.

    Raises:
        InputError: unsupported steps, an unknown precision, or images of another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images are [B, 3, H, W], uint8 or float in [0, 1], not {list(images.shape)}")
    device = next(model.parameters()).device
    net = evaluating(unroll(model, steps))
    x = images.to(device, memory_format=torch.channels_last)
    with autocast(resolve_precision(precision, device), device):
        logits = net(x.float() / 255 if x.dtype == torch.uint8 else x)
    return logits.float().softmax(1).cpu()


def best_classes(probabilities: Tensor, names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """For each row of `probabilities` [B, classes] the `top` likeliest classes, the likeliest first."""
    values, places = probabilities.topk(min(top, len(names)))
    return [
        [(names[place], round(value, 4)) for value, place in zip(row, where, strict=True)]
        for row, where in zip(values.tolist(), places.tolist(), strict=True)
    ]
