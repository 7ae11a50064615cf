"""The description of a network: its family sets this record, the task completes it, the file of weights keeps it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rcnet.errors import InputError, unknown
from rcnet.setting import Setting

INPUTS = ("image", "sigma", "coarse")  # of a call: the image, the levels of white and of coarse noise
# Side in pixels of the square over which brightness is averaged before the judge's level for it is looked up, so that a pixel's
# noise does not choose its own level.
SMOOTH = 5


class Noise(NamedTuple):
    """The noise that a denoiser was trained on.

    Attributes:
        sigma: its level, or the lowest and the highest, in levels of 255.
        as_8bit: clipped and rounded, as in 8-bit files.
        camera: the fraction of training batches with the noise of a camera.
    """

    sigma: float | tuple[float, float] = 25.0
    as_8bit: bool = False
    camera: float = 0.0

    @property
    def level(self) -> float:
        """The level, or the middle of the range."""
        return sum(self.sigma) / 2 if isinstance(self.sigma, tuple) else self.sigma


@dataclass(frozen=True)
class About:
    """The input and output of a network. Images are float [B, channels, H, W] in [0, 1].

    Attributes:
        task: a name in `tasks.TASKS`, or one of your own.
        channels: of the images: 1 gray, 3 RGB.
        inputs: `image`; `sigma` if a call takes the noise level; `coarse` if sigma may have a second channel, the level of a
            camera's coarse noise.
        multiple: the sides of images must be multiples of it; others are padded before the call.
        sub: the network itself pads sides to multiples of it; tiles start at multiples.
        reach: the distance in pixels that an output pixel sees: reach[0] + reach[1] per step of each cell; None: the whole image.
        size: height and width of the training images, if they had one size.
        classes: the names of the outputs of a classifier.
        noise: of a denoiser.

    Example:
        >>> import rcnet
        >>> about = rcnet.About("denoise", channels=1, inputs=("image", "sigma"), multiple=4)
        >>> about.takes_level, about.called_with((321, 481))
        (True, (324, 484))
    """

    task: str = ""
    channels: int = 3
    inputs: tuple[str, ...] = INPUTS[:1]
    multiple: int = 1
    sub: int = 1
    reach: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    classes: tuple[str, ...] = ()
    noise: Noise | None = None

    def __post_init__(self) -> None:
        for name in self.inputs:
            if name not in INPUTS:
                raise unknown("input of a network", name, INPUTS)

    @property
    def takes_level(self) -> bool:
        """Whether a call takes `sigma`."""
        return "sigma" in self.inputs

    @property
    def levels(self) -> int:
        """The number of noise levels that a call takes per pixel: 0, 1 (white noise), or 2 (and coarse noise)."""
        return len(self.inputs) - 1

    def called_with(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels, padded to multiples: the size with which the network is called."""
        if len(size) != 2:
            raise InputError(
                f"size={tuple(size)} is not valid: give height and width; rcnet measures networks for images, [B, C, H, W]"
            )
        height, width = (-(-side // self.multiple) * self.multiple for side in size)
        return height, width

    def radius(self, setting: Setting) -> int:
        """The largest distance in pixels at which an input pixel can change the output at these steps: the halo of a tile."""
        if self.reach is None:
            raise InputError("this network has no About.reach and may see the whole image: use tile=0")
        return self.reach[0] + self.reach[1] * sum(setting)

    def completed(self, known: Mapping[str, Any]) -> "About":
        """With the size, classes and noise from a task or a file, if they are in `known`.

        Raises:
            InputError: one of them is damaged.
        """
        try:
            new = {key: known[key] for key in ("size", "classes", "noise") if known.get(key)}
            if "size" in new:
                new["size"] = (_side(new["size"][0]), _side(new["size"][1]))
            if "classes" in new:
                new["classes"] = tuple(str(name) for name in new["classes"])
            if "noise" in new:
                noise = new["noise"]._asdict() if isinstance(new["noise"], Noise) else {**new["noise"]}
                sigma = noise.get("sigma", 25.0)
                noise["sigma"] = tuple(map(float, sigma)) if isinstance(sigma, list | tuple) else float(sigma)
                new["noise"] = Noise(**noise)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InputError(f"a description of images is damaged: {error}") from error
        return dataclasses.replace(self, **new)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "About":
        """The record from the output of `to_json`; other keys are ignored."""
        kept = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        plain: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items() if key != "noise"}
        return cls(**plain).completed(values)

    def to_json(self) -> dict[str, Any]:
        """The record without default values: `preprocessing` in the metadata of files."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        values |= {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
        values |= {"noise": self.noise._asdict()} if self.noise else {}
        return {"range": [0.0, 1.0], "layout": "RGB" if self.channels == 3 else "gray", **values, "channels": self.channels}


def _side(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is not a side in pixels")
    return value
