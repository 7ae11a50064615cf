"""Classifying images, of arrays or tensors, by a network or the name of one."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rcnet.deploy.sessions import session_of
from rcnet.runtime.classify import Adaptive, adaptively, cascade_of, probabilities
from rcnet.setting import Steps

if TYPE_CHECKING:
    from torch import Tensor

    from rcnet.deploy.sessions import Model

Images = TypeVar("Images", "Tensor", np.ndarray)


def classify(model: "Model", images: Images, steps: Steps = None, *, precision: str = "fp32") -> Images:
    """The probability of each class, float [B, classes].

    Args:
        model: a classifier, e.g. `rcnet.load("r2.cifar10")`; or the name of bundled weights, a .onnx file that `rcnet export`
            wrote or a file of weights.
        images: [B, C, H, W], uint8 or float of any type in [0, 1].
        steps: the cost: any step count that the model supports; the largest unless given.
        precision: `fp32`, or of torch `bf16` or `auto`.

    Raises:
        InputError: unsupported steps, an unknown precision, images of another shape, or weights that need torch without it.
    """
    session = session_of(model, precision)
    return _like(images, probabilities(session, _array(images), session.per_cell(steps)))


def classify_adaptively(
    model: "Model",
    images: Images,
    confidence: float | None = None,
    settings: Sequence[Steps] | None = None,
    *,
    precision: str = "fp32",
) -> Adaptive:
    """As `classify`, at the least setting first, and on only for the images whose likeliest class is less probable.

    Args:
        confidence: the probability at which an answer is taken, in (0, 1]; None: what was calibrated, of weights that hold it
            (`rcnet eval --risk --record`).
        settings: those that run, one after the other; all of the model, or those calibrated, unless given.

    Raises:
        InputError: what `classify` raises; a confidence that is none; weights that hold no calibration.
    """
    session = session_of(model, precision)
    found = adaptively(session, _array(images), *cascade_of(session, confidence, settings))
    return Adaptive(_like(images, found.probabilities), found.steps)


def _array(images: Any) -> np.ndarray:
    if isinstance(images, np.ndarray):
        return images
    from rcnet.deploy.torch_session import as_array

    return as_array(images)


def _like(images: Any, found: np.ndarray) -> Any:
    return found if isinstance(images, np.ndarray) else sys.modules["torch"].from_numpy(found)
