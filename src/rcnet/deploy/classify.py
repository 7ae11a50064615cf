"""Classifying images of any size."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnet.calling import check_range, device_of, ready
from rcnet.cost.counting import macs
from rcnet.data.images import read_image
from rcnet.data.labelled import fit
from rcnet.errors import InputError
from rcnet.evaluation.adaptive import Cascade, mean_macs
from rcnet.network import RecurrentNet
from rcnet.setting import Setting, Steps
from rcnet.tasks.classify import image_size


def read_fitting(path: str | Path, model: RecurrentNet) -> Tensor:
    """The image of a file as the weights expect it: uint8 [C, H, W], upright, resized and cut as their preprocessing says.

    Raises:
        InputError: the file is not an image that rcnet reads, or the weights do not say their size.
    """
    return torch.from_numpy(fit(read_image(path, model.about.channels), image_size(model)).transpose(2, 0, 1).copy())


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


class Adaptive(NamedTuple):
    """What an adaptive call gives.

    Attributes:
        probabilities: of each class, float [B, classes].
        steps: the setting whose answer each image has; those of the cascade before it ran, too.
    """

    probabilities: Tensor
    steps: list[Setting]


def classify_adaptively(
    model: RecurrentNet,
    images: Tensor,
    confidence: float | None = None,
    settings: Sequence[Steps] | None = None,
    *,
    precision: str = "fp32",
) -> Adaptive:
    """As `classify`, at the least setting first, and on only for the images whose likeliest class is less probable.

    Args:
        images: [B, C, H, W], uint8 or float of any type in [0, 1].
        confidence: the probability at which an answer is taken, in (0, 1]; None: what was calibrated, of weights that hold it
            (`rcnet eval --risk --record`).
        settings: those that run, one after the other; all of the model, or those calibrated, unless given.
        precision: `fp32`, `bf16` or `auto`.

    Raises:
        InputError: what `classify` raises; a confidence that is none; weights that hold no calibration.
    """
    confidence, chosen = cascade_of(model, confidence, settings)
    probabilities = classify(model, images, chosen[0], precision=precision).clone()
    taken = [chosen[0]] * len(images)
    for n in chosen[1:]:
        unsure = (probabilities.amax(1) < confidence).nonzero().flatten()
        if not len(unsure):
            break
        probabilities[unsure] = classify(model, images[unsure], n, precision=precision)
        for i in unsure.tolist():
            taken[i] = n
    return Adaptive(probabilities, taken)


def adaptive_macs(model: RecurrentNet, settings: Sequence[Setting], taken: Sequence[Setting], size: tuple[int, int]) -> float:
    """Multiply-accumulates an image, the mean: every setting that ran counts whole, as nothing before it is used again."""
    ran, cost = np.array([settings.index(n) + 1 for n in taken]), {n: macs(model, n, size) for n in settings}
    return mean_macs(ran, Cascade(tuple(settings), 1.0), cost)


def cascade_of(
    model: RecurrentNet, confidence: float | None = None, settings: Sequence[Steps] | None = None
) -> tuple[float, tuple[Setting, ...]]:
    """The probability at which an answer is taken and the settings that run, as asked for, else as calibrated."""
    if confidence is None:
        found = model.metadata.get("adaptive")
        if not found:
            raise InputError(
                "these weights hold no calibration: rcnet eval WEIGHTS --data DATA --risk 0.5 --record; or give a number, as 0.9"
            )
        confidence, settings = float(found["confidence"]), settings or found["steps"]
    if not 0 < confidence <= 1:
        raise InputError(f"confidence={confidence:g} is not valid: a probability above 0, at most 1, e.g. 0.9")
    return confidence, tuple(model.per_cell(n) for n in settings or model.settings)


def best_classes(probabilities: Tensor, names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """For each row of `probabilities` [B, classes] the `top` likeliest classes, the likeliest first."""
    values, places = probabilities.topk(min(top, len(names)))
    return [
        [(names[place], round(value, 4)) for value, place in zip(row, where, strict=True)]
        for row, where in zip(values.tolist(), places.tolist(), strict=True)
    ]
