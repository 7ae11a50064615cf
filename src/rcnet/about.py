"""What a network says of itself: the family that built it sets this record, the task completes it, its file keeps it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rcnet.errors import InputError, unknown
from rcnet.setting import Setting

INPUTS = ("image", "sigma", "coarse")  # what a call can take: noise levels, of white noise and of coarse noise
SMOOTH = 5  # pixels a side, over which brightness is averaged before a judge's level is read off: noise itself must not choose


class Noise(NamedTuple):
    """The noise that a denoiser was made for.

    Attributes:
        sigma: its level or the least and the greatest, in levels of 255.
        as_8bit: clipped and rounded, as files are.
        camera: the part of it that is a camera's.
    """

    sigma: float | tuple[float, float] = 25.0
    as_8bit: bool = False
    camera: float = 0.0

    @property
    def level(self) -> float:
        """The one level, or the middle of the range."""
        return sum(self.sigma) / 2 if isinstance(self.sigma, tuple) else self.sigma


@dataclass(frozen=True)
class About:
    """What a network takes and gives. Images are float [B, channels, H, W] in [0, 1].

    Attributes:
        task: what it is made for, a name of `tasks.TASKS`, or one of your own.
        channels: of the images: 1 gray, 3 RGB.
        inputs: `image`; `sigma` where a call takes the noise level; `coarse` where sigma may also hold that of a camera's coarse
            noise, in a second channel.
        multiple: what the sides of images have to be multiples of; other images are filled up.
        sub: what the network fills sides up to multiples of by itself; a tile begins at one.
        reach: how far, in pixels, an output pixel sees: reach[0] + reach[1] for each step of each cell; None: everywhere.
        size: height and width of the images that it was trained on, where it was trained on one.
        classes: the names of the outputs of a classifier.
        noise: what a denoiser was made for.

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
        """How many noise levels a call takes for each pixel: of white noise, and of coarse noise."""
        return len(self.inputs) - 1

    def called_with(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels, filled up to multiples, as the network is called with them."""
        if len(size) != 2:
            raise InputError(
                f"size={tuple(size)} is not valid: give height and width; rcnet measures networks for images, [B, C, H, W]"
            )
        height, width = (-(-side // self.multiple) * self.multiple for side in size)
        return height, width

    def radius(self, setting: Setting) -> int:
        """How many pixels away, at most, a pixel of the input can change the output at these steps: the halo of a tile."""
        if self.reach is None:
            raise InputError("this network does not say how far it sees (About.reach): it takes the whole image, tile=0")
        return self.reach[0] + self.reach[1] * sum(setting)

    def completed(self, known: Mapping[str, Any]) -> "About":
        """With the size, the classes and the noise that a task or a file knows; what the family set stays.

        Raises:
            InputError: one of them is none.
        """
        try:
            told = {key: known[key] for key in ("size", "classes", "noise") if known.get(key)}
            if "size" in told:
                told["size"] = (_side(told["size"][0]), _side(told["size"][1]))
            if "classes" in told:
                told["classes"] = tuple(str(name) for name in told["classes"])
            if "noise" in told:
                noise = told["noise"]._asdict() if isinstance(told["noise"], Noise) else {**told["noise"]}
                sigma = noise.get("sigma", 25.0)
                noise["sigma"] = tuple(map(float, sigma)) if isinstance(sigma, list | tuple) else float(sigma)
                told["noise"] = Noise(**noise)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InputError(f"a description of images is damaged: {error}") from error
        return dataclasses.replace(self, **told)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "About":
        """From what `to_json` gives; the rest of a file's `preprocessing` does not matter."""
        kept = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        plain: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items() if key != "noise"}
        return cls(**plain).completed(values)

    def to_json(self) -> dict[str, Any]:
        """What the metadata of files holds as `preprocessing`: the record without what is as usual."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        values |= {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
        values |= {"noise": self.noise._asdict()} if self.noise else {}
        return {"range": [0.0, 1.0], "layout": "RGB" if self.channels == 3 else "gray", **values, "channels": self.channels}


def _side(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no side of an image")
    return value
