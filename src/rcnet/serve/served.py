"""What goes between the server and its workers. Imports no torch: a server that only passes images on starts at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rcnet.errors import InputError
from rcnet.serve.scheduler import Dials, pareto


class Served(NamedTuple):
    """What a model says of itself.

    Attributes:
        settings: steps of each cell, the cheapest first; `labels` name them.
        macs: of a pixel of the input, at each setting.
        metric: `psnr` in dB or `error` in percent of `results`, by setting; empty if the weights name none.
        quality: see `policies.Dial`.
        size: side of the images that a classifier takes; others are resized to it.
    """

    name: str
    task: str
    settings: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    macs: tuple[float, ...]
    metric: str
    results: tuple[float, ...]
    quality: tuple[float, ...]
    parameters: int
    channels: int
    noise_level: bool
    size: int
    classes: tuple[str, ...]
    precision: str

    def planes(self, work: "Work") -> int:
        """How many images of the network one image is: a gray denoiser takes the channels of a picture one by one."""
        return work.pixels.shape[2] if self.task == "denoise" and self.channels == 1 else 1

    def dials(self, least: str | None = None) -> Dials:
        """For the scheduler: the settings from `least` on of which each is better than every lesser one.

        Raises:
            InputError: the model has no such setting.
        """
        first = 0 if least is None else self.place(least)
        offered = tuple(first + place for place in pareto(self.quality[first:]))
        return Dials(self.macs, self.quality, offered)

    def place(self, setting: str) -> int:
        """Where the setting of this label stands, or `InputError` that names the valid ones."""
        if setting not in self.labels:
            raise InputError(f"{self.name} has no setting {setting}: valid: {'; '.join(self.labels)}")
        return self.labels.index(setting)


class Work(NamedTuple):
    """One image: uint8, uint16 or float32 [H, W, C], and what is to be done with it."""

    pixels: np.ndarray
    sigma: float | None = None
    strength: float = 1.0
    white: float = 255.0
    top: int = 1


class Denoised(NamedTuple):
    """The pixels, as they came in, and the noise level that was found, in levels of 255."""

    pixels: np.ndarray
    level: float


class Classification(NamedTuple):
    """(class, probability), the likeliest first."""

    classes: tuple[tuple[str, float], ...]


def name_of(source: str) -> str:
    """The name under which bundled weights or a file of weights are served."""
    return Path(source).name.removesuffix(".safetensors")


def label(setting: Sequence[int]) -> str:
    """`2` for unified steps, `1,1,0` for steps of each cell."""
    return str(setting[0]) if len(set(setting)) == 1 else ",".join(map(str, setting))
