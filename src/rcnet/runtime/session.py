"""What runs a network at its settings, whatever the runtime."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from rcnet.about import About
from rcnet.setting import Setting, Steps


class Session(Protocol):
    """A network ready to run.

    Attributes:
        about: what it takes and gives.
        gives: `image`, `classes` or nothing known; see `tasks.task.Kind`.
        settings: what it can be called with, the cheapest first.
        identity: JSON values; calls of sessions of the same identity take the same time.
        precision: `fp32`, `bf16` or `int8`.
        parameters: trainable ones.
    """

    @property
    def about(self) -> About: ...

    @property
    def gives(self) -> str: ...

    @property
    def settings(self) -> tuple[Setting, ...]: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def precision(self) -> str: ...

    @property
    def parameters(self) -> int: ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """That of the weights."""
        ...

    def per_cell(self, steps: Steps = None) -> Setting:
        """The setting for `steps`, the largest if None. Raises `InputError` with the valid ones for any other."""
        ...

    def run(self, x: np.ndarray, setting: Setting, sigma: np.ndarray | None = None) -> np.ndarray:
        """What the network gives for float [B, C, H, W] in [0, 1]; sides are multiples of `about.multiple`.

        sigma: levels of 255, float32 [B, levels, 1 or H, 1 or W]; None: unknown, or a network that takes none.
        """
        ...

    def judge(self, x: np.ndarray) -> np.ndarray | None:
        """The noise levels of pictures [B, C, H, W], float32 [B, 2, KNOTS]; None of a network without a judge."""
        ...

    def release(self) -> None:
        """Gives back the memory that calls took; the next call takes longer."""
        ...

    def macs(self, setting: Setting, size: tuple[int, int]) -> float:
        """Multiply-accumulates of a call on one image of that height and width, without the judge."""
        ...

    def quality(self) -> tuple[str, Mapping[Setting, float]]:
        """The metric and the value of each setting, as `results.setting_quality`; ("", {}) if it was not measured."""
        ...
