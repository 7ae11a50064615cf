"""Classifying images of any size."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rcnet.calling import check_range, device_of, ready
from rcnet.cell import RecurrentNet, Steps
from rcnet.data.images import read_image
from rcnet.data.labelled import fit
from rcnet.errors import InputError
from rcnet.tasks.classify import image_size


def read_fitting(path: str | Path, model: RecurrentNet) -> Tensor:
    """The image of a file as the weights expect it: uint8 [3, H, W], upright, resized and cut as their preprocessing says.

    Raises:
        InputError: the file is not an image that rcnet reads, or the weights do not say their size.
    """
    return torch.from_numpy(fit(read_image(path, 3), image_size(model)).transpose(2, 0, 1).copy())


@torch.inference_mode()
def classify(model: RecurrentNet, images: Tensor, steps: Steps = None, *, precision: str = "fp32") -> Tensor:
    """The probability of each class, float [B, classes].

    Args:
        images: [B, C, H, W], uint8 or float of any type in [0, 1].
        steps: the cost: any step count that the model supports; the largest unless given.
        precision: `fp32`, `bf16` or `auto`.

    Raises:
        InputError: unsupported steps, an unknown precision, or images of another shape.
    """
    if images.ndim != 4 or images.shape[1] != model.about.channels:
        raise InputError(f"images are [B, {model.about.channels}, H, W], uint8 or float in [0, 1], not {list(images.shape)}")
    if images.dtype == torch.uint8:
        images = images.to(device_of(model), memory_format=torch.channels_last).float() / 255
    else:
        check_range(images)
    return ready(model, steps, precision)(images).softmax(1).cpu()


def best_classes(probabilities: Tensor, names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """For each row of `probabilities` [B, classes] the `top` likeliest classes, the likeliest first."""
    values, places = probabilities.topk(min(top, len(names)))
    return [
        [(names[place], round(value, 4)) for value, place in zip(row, where, strict=True)]
        for row, where in zip(values.tolist(), places.tolist(), strict=True)
    ]
