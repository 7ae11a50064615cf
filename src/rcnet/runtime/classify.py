"""Classifying images, over a session of whatever runtime."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rcnet.about import About
from rcnet.errors import InputError
from rcnet.runtime.denoise import check_range
from rcnet.runtime.session import Session
from rcnet.setting import Setting, Steps


def class_names(about: About) -> list[str]:
    """What the outputs stand for, or `InputError` if this is no trained classifier."""
    if not about.classes:
        raise InputError("this network does not classify, or its weights do not name their classes: take a trained classifier")
    return list(about.classes)


def image_size(about: About) -> int:
    """The side in pixels of the images that the weights were trained on, or `InputError` if they do not say."""
    if about.size is None:
        raise InputError("these weights do not say which size of image they take")
    return about.size[0]


def probabilities(session: Session, images: np.ndarray, setting: Setting) -> np.ndarray:
    """The probability of each class, float [B, classes], of images [B, C, H, W], uint8 or float in [0, 1].

    Raises:
        InputError: images of another shape or range.
    """
    if images.ndim != 4 or images.shape[1] != session.about.channels:
        raise InputError(f"images are [B, {session.about.channels}, H, W], uint8 or float in [0, 1], not {list(images.shape)}")
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    else:
        check_range(images)
    scores = session.run(images, setting, None)
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


class Adaptive(NamedTuple):
    """What an adaptive call gives.

    Attributes:
        probabilities: of each class, float [B, classes], an array or, in `rcnet.deploy.classify`, a tensor.
        steps: the setting whose answer each image has; those of the cascade before it ran, too.
    """

    probabilities: Any
    steps: list[Setting]


def adaptively(session: Session, images: np.ndarray, confidence: float, settings: Sequence[Setting]) -> Adaptive:
    """As `probabilities`, at the first setting, and on only for the images whose likeliest class is less probable."""
    found = probabilities(session, images, settings[0])
    taken = [settings[0]] * len(images)
    for n in settings[1:]:
        unsure = np.flatnonzero(found.max(1) < confidence)
        if not len(unsure):
            break
        found[unsure] = probabilities(session, images[unsure], n)
        for i in unsure.tolist():
            taken[i] = n
    return Adaptive(found, taken)


def adaptive_macs(session: Session, settings: Sequence[Setting], taken: Sequence[Setting], size: tuple[int, int]) -> float:
    """Multiply-accumulates per image, the mean: every setting that ran counts whole, as nothing before it is used again."""
    whole = np.cumsum([session.macs(n, size) for n in settings])
    return float(np.mean([whole[settings.index(n)] for n in taken]))


def cascade_of(
    session: Session, confidence: float | None = None, settings: Sequence[Steps] | None = None
) -> tuple[float, tuple[Setting, ...]]:
    """The probability at which an answer is taken and the settings that run, as asked for, else as calibrated."""
    if confidence is None:
        found = session.metadata.get("adaptive")
        if not found:
            raise InputError(
                "these weights hold no calibration: rcnet eval WEIGHTS --data DATA --risk 0.5 --record; or give a number, as 0.9"
            )
        confidence, settings = float(found["confidence"]), settings or found["steps"]
    if not 0 < confidence <= 1:
        raise InputError(f"confidence={confidence:g} is not valid: a probability above 0, at most 1, e.g. 0.9")
    return confidence, tuple(session.per_cell(n) for n in settings or session.settings)


def best_classes(probabilities: np.ndarray, names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """For each row of `probabilities` [B, classes] the `top` likeliest classes, the likeliest first."""
    places = np.argsort(-probabilities, axis=1, kind="stable")[:, : min(top, len(names))]
    return [
        [(names[k], round(float(row[k]), 4)) for k in where] for row, where in zip(probabilities, places.tolist(), strict=True)
    ]
