"""What a task is: what its networks are trained on, and how they are measured. A task is one file beside this one, and a line of
the table in `__init__.py`."""

import inspect
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnet.about import About
from rcnet.network import RecurrentNet
from rcnet.runtime.results import UNITS

Rows = list[dict[str, Any]]
Gives = Literal["image", "classes", ""]
Fed = np.ndarray | tuple[np.ndarray, ...]  # images, or images and the levels of their noise


def number(default: Any, low: float, high: float = math.inf, *, below: bool = False, free: bool = False) -> Any:
    """A key of a recipe that takes numbers, or tuples of them, from `low` to `high` (only `below` it, if so).

    `free`: a run that is resumed may have another.
    """
    return field(default=default, metadata={"range": (low, high, below), "free": free})


class Batch(NamedTuple):
    """What an iteration trains on.

    Attributes:
        x: the network's input, [B, C, H, W].
        target: whatever the loss takes.
        sigma: what the network is told of the noise, in levels of 255, negative where nothing: [B], or [B, 2, 1, 1] of white and
            coarse noise; None: it takes no level.
        level: the level that there is, [B].
    """

    x: Tensor
    target: Tensor
    sigma: Tensor | None = None
    level: Tensor | None = None

    def part(self, start: int, stop: int) -> "Batch":
        """These of its images."""
        return Batch(*(None if values is None else values[start:stop] for values in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Task:
    """What the loop needs to know.

    Attributes:
        batch: what an iteration trains on, from its random generator.
        loss: of the network's output and the batch: a scalar, a mean over the batch.
        teach: the target that an output is for other step counts.
        evaluate: a row of figures a step count.
        data: the training images: `folder`, `images` (how many), `crc32` of their pixels, and what more there is to say.
        preprocessing: what the weights' metadata adds about the input, e.g. its noise.
        config: what the data decides about the architecture, e.g. the number of classes.
        prepare: sets what a fresh network takes from the data.
    """

    batch: Callable[[np.random.Generator, int], Batch]
    loss: Callable[[Tensor, Batch], Tensor]
    teach: Callable[[Tensor], Tensor]
    evaluate: Callable[[RecurrentNet], Rows]
    data: dict[str, Any]
    preprocessing: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[RecurrentNet], None] = lambda model: None


class Setup(NamedTuple):
    """What a task is told of a run, beside its own section of the recipe.

    Attributes:
        data: folder of the training images.
        device: on which batches come.
        about: what the network says of itself, before the data completes it; of the weights that it starts from, theirs.
        batch: images an iteration.
    """

    data: Path
    device: torch.device
    about: About
    batch: int
    seed: int
    precision: str


class Measuring(NamedTuple):
    """Images that a network is measured on.

    Attributes:
        about: what a result says of them: `data`, their name, `images`, how many, and the protocol.
        size: height and width in pixels of the largest.
        rows: called as `rows(steps, precision=..., each=...)`: a row of figures a step count; `each` is called after each image,
            or with the number of images that are done at once.
        note: what people should know of them, a short sentence.
    """

    about: dict[str, Any]
    size: tuple[int, int]
    rows: Callable[..., Rows]
    note: str = ""


@dataclass(frozen=True)
class Kind:
    """A task, as the table lists it.

    Attributes:
        section: the dataclass of its keys in a recipe, each with a default; the section has its name in lower case.
        size: height and width in pixels of a usual image, which costs are given for.
        columns: of tables of results, those that a row has: heading -> key in a row and decimals; the first is the metric, of
            `runtime.results.UNITS`.
        begin: called with the section and a `Setup`; what the loop trains on.
        measuring: called with a network, data, and by name the options that its signature has; what it is measured on.
        calibration: called with a network and a folder: batches of what it will see, float32 [B, C, H, W], that int8 takes its
            ranges from.
        gives: what a network makes of a file, by which it is run and served: an `image` of the same size, in tiles, or a score
            for each of its `classes`. Empty: something else, which is only trained and measured.
        int8_outputs: whether it loses next to nothing where convolutions also give 8 bits.
        pipeline: the Hugging Face hub's name of the task.
        use: a call, for a card; `{steps}` stands for the argument.
        limit: what its networks are not for, a sentence for a card.
        command: what `rcnet` does with weights; `{weights}` stands for their file.
        settled: the section with what it leaves open, by what the network says of itself.
        finetune: the recipe that brings the quality of a converted network back.
    """

    section: type[Any]
    size: tuple[int, int]
    columns: Mapping[str, tuple[str, int]]
    begin: Callable[[Any, Setup], Task]
    measuring: Callable[..., Measuring]
    calibration: Callable[[RecurrentNet, str | Path], Iterator[Fed]]
    gives: Gives = ""
    int8_outputs: bool = False
    pipeline: str = ""
    use: str = "y = model(images{steps})"
    limit: str = ""
    command: str = "eval {weights} --data FOLDER"
    finetune: str = "finetune"
    settled: Callable[[Any, About], Any] = lambda section, about: section

    @property
    def key(self) -> str:
        """The name of its section in a recipe."""
        return self.section.__name__.lower()

    @property
    def metric(self) -> str:
        """The key in a row of results."""
        return next(iter(self.columns.values()))[0]

    @property
    def unit(self) -> str:
        return UNITS[self.metric]

    @property
    def options(self) -> tuple[str, ...]:
        """What `measuring` takes beside the network and the data."""
        return tuple(inspect.signature(self.measuring).parameters)[2:]


def held_out(count: int, kept: int) -> set[int]:
    """Which images, evenly spaced, are kept from training."""
    return set(np.linspace(0, count - 1, kept).round().astype(int).tolist())


def spread(there: int, count: int) -> list[int]:
    """At most `count` places, spread evenly over `there` of them."""
    return np.linspace(0, there - 1, min(count, there)).round().astype(int).tolist()


def checksum(records: Iterable[bytes]) -> str:
    """CRC-32, in hexadecimal, of the sorted CRC-32 of each record: the same for the same records in any order."""
    each = sorted(map(zlib.crc32, records))
    return f"{zlib.crc32(b''.join(value.to_bytes(4) for value in each)):08x}"
