"""What goes between the server and its workers. Imports no torch: a server that only passes images on starts at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rcnet.errors import InputError
from rcnet.serve.scheduler import Dials, pareto
from rcnet.setting import Setting, listed


class Served(NamedTuple):
    """What a model says of itself.

    Attributes:
        gives: `image` or `classes`; see `tasks.task.Kind`.
        macs: of a pixel of the input, by setting, the cheapest first.
        metric: `psnr` in dB or `error` in percent of `results`, by setting; empty if the weights name none.
        quality: by setting; see `policies.Dial`.
        size: side of the images that a classifier takes; others are resized to it.
    """

    name: str
    task: str
    gives: str
    macs: Mapping[Setting, float]
    metric: str
    results: Mapping[Setting, float]
    quality: Mapping[Setting, float]
    parameters: int
    channels: int
    noise_level: bool
    size: int
    classes: tuple[str, ...]
    precision: str

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The cheapest first."""
        return tuple(self.macs)

    def planes(self, work: "Work") -> int:
        """How many images of the network one image is: a gray one that gives images takes channels one by one."""
        return work.pixels.shape[2] if self.gives == "image" and self.channels == 1 else 1

    def dials(self, least: str | None = None) -> Dials:
        """For the scheduler: the settings from `least` on of which each is better than every lesser one.

        Raises:
            InputError: the model has no such setting.
        """
        first = 0 if least is None else self.settings.index(self.setting(least))
        return Dials(self.macs, self.quality, pareto({n: self.quality[n] for n in self.settings[first:]}))

    def setting(self, steps: str) -> Setting:
        """The setting of this text, or `InputError` that names the valid ones."""
        setting = Setting.parse(steps, len(self.settings[0]))
        if setting not in self.macs:
            raise InputError(f"{self.name} has no setting {steps}: valid: {listed(self.settings)}")
        return setting


class Work(NamedTuple):
    """One image: uint8, uint16 or float32 [H, W, C], and what is to be done with it."""

    pixels: np.ndarray
    sigma: float | None = None
    strength: float = 1.0
    white: float = 255.0
    top: int = 1
    levels: tuple[float, ...] | None = None  # what a judge found before, of the picture that this is a part of


class Denoised(NamedTuple):
    """The pixels, as they came in; the noise level that was found, in levels of 255; and what the judge found of white and of
    coarse noise at each brightness, empty without a judge."""

    pixels: np.ndarray
    level: float
    levels: tuple[float, ...] = ()


class Classification(NamedTuple):
    """(class, probability), the likeliest first."""

    classes: tuple[tuple[str, float], ...]


def name_of(source: str) -> str:
    """The name under which bundled weights or a file of weights are served."""
    return Path(source).name.removesuffix(".safetensors")
