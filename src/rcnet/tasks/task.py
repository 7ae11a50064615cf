"""What a task is: what its networks are trained on, and how they are measured. A task is one file in this folder and one line of
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
from rcnet.errors import InputError
from rcnet.network import RecurrentNet
from rcnet.runtime.results import UNITS

Rows = list[dict[str, Any]]
Gives = Literal["image", "classes", ""]
CalibrationBatch = np.ndarray | tuple[np.ndarray, ...]  # images, or images and their noise levels


def number(default: Any, low: float, high: float = math.inf, *, below: bool = False, free: bool = False) -> Any:
    """A key of a recipe that takes numbers, or tuples of them, from `low` to `high` (with `below`: to below `high`).

    `free`: a resumed run may have another value.

    Example:
        >>> @dataclass
        ... class Section:
        ...     patch: int = number(64, 1)
        >>> Section().patch
        64
    """
    return field(default=default, metadata={"range": (low, high, below), "free": free})


class Batch(NamedTuple):
    """The data of one iteration.

    Attributes:
        x: the network's input, [B, C, H, W].
        target: whatever the loss takes.
        sigma: the noise level that the network is given, in levels of 255, negative for unknown: [B], or [B, 2, 1, 1] for white
            and coarse noise; None for a network that takes no level.
        level: the true level, [B].
    """

    x: Tensor
    target: Tensor
    sigma: Tensor | None = None
    level: Tensor | None = None

    def part(self, start: int, stop: int) -> "Batch":
        """Its images from `start` to `stop`."""
        return Batch(*(None if values is None else values[start:stop] for values in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Task:
    """What the training loop needs.

    Attributes:
        batch: the data of an iteration, from its random generator and number.
        loss: takes the network's output and the batch; a scalar, the mean over the batch.
        teach: makes the target for another step count, or for the student, of an output.
        evaluate: one row of figures per step count, on images held out or test images; empty if there are none.
        data: the training images: `folder`, `images` (how many), `crc32` of their pixels, and anything else to record.
        preprocessing: what the weights' metadata adds about the input, e.g. its noise.
        config: options of the architecture that the data determine, e.g. the number of classes.
        prepare: sets what a fresh network takes from the data.
        held: how many images are held out from training; `evaluate` then measures on these.
    """

    batch: Callable[[np.random.Generator, int], Batch]
    loss: Callable[[Tensor, Batch], Tensor]
    teach: Callable[[Tensor], Tensor]
    evaluate: Callable[[RecurrentNet], Rows]
    data: dict[str, Any]
    preprocessing: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[RecurrentNet], None] = lambda model: None
    held: int = 0


class Setup(NamedTuple):
    """What a task needs to know of a run beside its own section of the recipe.

    Attributes:
        data: folder of the training images.
        device: where batches are made.
        about: the network's `about` before the data complete it, or that of the weights that it starts from.
        batch: images per iteration.
        measures: whether the run measures its weights along the way, for which images are held out.
    """

    data: Path
    device: torch.device
    about: About
    batch: int
    seed: int
    precision: str
    measures: bool = False


class Measuring(NamedTuple):
    """Images that a network is measured on.

    Attributes:
        about: what a result records of them: `data` (their name), `images` (how many), and the protocol.
        size: height and width in pixels of the largest.
        rows: called as `rows(steps, precision=..., each=...)`; one row of figures per step count. `each` is called after each
            image, or with the number of images of a batch.
        note: a short sentence that people should know.
    """

    about: dict[str, Any]
    size: tuple[int, int]
    rows: Callable[..., Rows]
    note: str = ""


@dataclass(frozen=True)
class Kind:
    """A task, as the table lists it.

    Attributes:
        section: the dataclass of its keys in a recipe, each with a default; its name in lower case is that of the section.
        size: height and width in pixels of a usual image, for which costs are given.
        columns: the columns of a table of results: heading -> key in a row and decimals. The first is the metric, one of
            `runtime.results.UNITS`.
        begin: takes the section and a `Setup`; returns the `Task`.
        measuring: takes a network, data, and by keyword the options in its signature; returns the `Measuring`.
        calibration: takes a network and a folder; yields batches of typical inputs, float32 [B, C, H, W], for the ranges of int8.
        gives: what a network returns for a file, which decides how it is run and served: an `image` of the same size, in tiles,
            or a score for each of its `classes`. Empty: anything else, which is only trained and measured.
        int8_outputs: whether the outputs of convolutions can have 8 bits at almost no loss.
        pipeline: the name of the task on the Hugging Face hub.
        use: a call, for a card; `{steps}` stands for the argument.
        limit: a sentence for a card: what its networks are not for.
        command: the `rcnet` command that uses weights; `{weights}` stands for their file.
        settled: completes the section from the network's `about`.
        finetune: the recipe for trained weights, converted ones too.
    """

    section: type[Any]
    size: tuple[int, int]
    columns: Mapping[str, tuple[str, int]]
    begin: Callable[[Any, Setup], Task]
    measuring: Callable[..., Measuring]
    calibration: Callable[[RecurrentNet, str | Path], Iterator[CalibrationBatch]]
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
        """The key of the first column in a row of results."""
        return next(iter(self.columns.values()))[0]

    @property
    def unit(self) -> str:
        return UNITS[self.metric]

    @property
    def options(self) -> tuple[str, ...]:
        """The options of `measuring`."""
        return tuple(inspect.signature(self.measuring).parameters)[2:]


def held_out(total: int, holdout: int, measures: bool = False, most: int = 16) -> set[int]:
    """The indices, evenly spaced, of the images that are held out from training.

    Args:
        total: how many images there are.
        holdout: how many are held out; -1: a tenth, at most `most`, in a run that measures its weights along the way, else none.

    Raises:
        InputError: none is left to train on.

    Example:
        >>> sorted(held_out(9, 3)), sorted(held_out(40, -1, measures=True)), held_out(40, -1)
        ([0, 4, 8], [0, 13, 26, 39], set())
    """
    usual = min(most, max(1, total // 10)) if measures and total > 1 else 0
    count = usual if holdout < 0 else holdout
    if count >= total:
        raise InputError(f"holdout = {count} leaves none of the {total} images to train on")
    return set(spread(total, count))


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices, spread evenly over `total`.

    Example:
        >>> spread(9, 3), spread(2, 3)
        ([0, 4, 8], [0, 1])
    """
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def checksum(records: Iterable[bytes]) -> str:
    """CRC-32, in hexadecimal, of the sorted CRC-32 of each record: the same for the same records in any order.

    Example:
        >>> checksum([b"a", b"b"]) == checksum([b"b", b"a"])
        True
    """
    each = sorted(map(zlib.crc32, records))
    return f"{zlib.crc32(b''.join(value.to_bytes(4) for value in each)):08x}"
