"""What waits in the queue and runs on a worker, and what a client is told that gets no result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rcnet.setting import Setting


class Dials(NamedTuple):
    """What the scheduler knows of a model: MACs per pixel and quality of each setting, and the settings a policy may choose."""

    macs: Mapping[Setting, float]
    quality: Mapping[Setting, float]
    offered: tuple[Setting, ...]


@dataclass(eq=False)
class Request:
    """One image to be computed.

    Attributes:
        shape: requests of one model and shape can run in one batch.
        pixels: of the image.
        deadline: when the answer is due.
        pinned: the setting, if the client named one.
        window: seconds from the client's request to the deadline; None: from the submission.
        client: who asked.
        alone: not batched with others, since its last batch killed the worker or failed.
        probe: admitted only to measure; it is never dropped as late.
        answer: where the engine puts the result.
    """

    model: str
    shape: tuple[int, ...]
    pixels: int
    deadline: float
    payload: Any = None
    pinned: Setting | None = None
    window: float | None = None
    client: str = ""
    alone: bool = False
    probe: bool = False
    arrived: float = 0.0
    answer: Any = None


@dataclass(eq=False)
class Batch:
    """Requests of one model and shape that run together at one setting."""

    model: str
    setting: Setting
    requests: list[Request]
    started: float


class Refused(Exception):
    """A request gets no result. `reason` is `busy`, `large`, `late`, `down` or `failed`; `retry` the seconds to wait first."""

    def __init__(self, reason: str, message: str, retry: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.retry = reason, retry
