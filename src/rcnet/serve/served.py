"""What the server and its workers exchange. Imports no torch, so that a server that only forwards images starts at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rcnet.errors import InputError
from rcnet.serve.requests import Dials
from rcnet.setting import Setting, listed


class Served(NamedTuple):
    """The description of a served model.

    Attributes:
        gives: `image` or `classes`; see `tasks.task.Kind`.
        macs: per pixel of the input, by setting, the cheapest first.
        metric: of `results`, `psnr` in dB or `error` in percent; empty if the weights have no results.
        quality: by setting; see `policies.Dial`.
        size: side in pixels to which a classifier's images are resized; 0 for images of any size.
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
        """The number of network calls per image: a gray network that returns images takes the channels one by one."""
        return work.pixels.shape[2] if self.gives == "image" and self.channels == 1 else 1

    def dials(self, least: str | None = None) -> Dials:
        """For the scheduler: of the settings from `least` on, those that are better than every cheaper one.

        Raises:
            InputError: the model has no such setting.
        """
        first = 0 if least is None else self.settings.index(self.setting(least))
        offered: list[Setting] = []
        for setting in self.settings[first:]:
            if not offered or self.quality[setting] > self.quality[offered[-1]]:
                offered.append(setting)
        return Dials(self.macs, self.quality, tuple(offered))

    def setting(self, steps: str) -> Setting:
        """The setting of this text, or `InputError` with the valid ones."""
        setting = Setting.parse(steps, len(self.settings[0]))
        if setting not in self.macs:
            raise InputError(f"{self.name} has no setting {steps}: valid: {listed(self.settings)}")
        return setting


class Work(NamedTuple):
    """One image, uint8, uint16 or float32 [H, W, C], and the options of its request."""

    pixels: np.ndarray
    sigma: float | None = None
    strength: float = 1.0
    white: float = 255.0
    top: int = 1
    levels: tuple[float, ...] | None = None  # what the judge returned for another part of the same picture


class Denoised(NamedTuple):
    """The pixels, of the input's type; the noise level in levels of 255; the judge's levels of white and of coarse noise at each
    brightness, empty without a judge."""

    pixels: np.ndarray
    level: float
    levels: tuple[float, ...] = ()


class Classification(NamedTuple):
    """(class, probability), the likeliest first."""

    classes: tuple[tuple[str, float], ...]


def name_of(source: str) -> str:
    """The name under which bundled weights or a file of weights are served."""
    return Path(source).name.removesuffix(".safetensors").removesuffix(".onnx")
