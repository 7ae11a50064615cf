"""A network of torch as `runtime.session.Session` has it."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcnet.about import About
from rcnet.calling import Call, check_range, device_of, ready
from rcnet.cost.budget import identity
from rcnet.cost.counting import macs, parameters
from rcnet.deploy.optimize import Optimized
from rcnet.device import resolve_precision
from rcnet.errors import InputError
from rcnet.models.denoise import Sigma, filling
from rcnet.network import RecurrentNet
from rcnet.runtime.denoise import check_channels, check_strength, denoise_images, judge_image, told
from rcnet.runtime.levels import given_levels
from rcnet.runtime.results import setting_quality
from rcnet.runtime.session import Session
from rcnet.setting import Setting, Steps
from rcnet.tasks import gives

Network = RecurrentNet | Optimized  # what a session can be made of


class TorchSession:
    """A network, or fast sessions of one, as `runtime` calls it.

    Raises:
        InputError: an unknown precision; sessions have their own.
    """

    def __init__(self, model: Network, precision: str = "fp32") -> None:
        self.model = model
        self.network = model.network if isinstance(model, Optimized) else model
        resolved = resolve_precision(precision, device_of(self.network))
        self.precision = model.precision if isinstance(model, Optimized) else resolved
        self._calls: dict[Setting, Call] = {}

    @property
    def about(self) -> About:
        return self.network.about

    @property
    def settings(self) -> tuple[Setting, ...]:
        return tuple(self.model.sessions) if isinstance(self.model, Optimized) else self.network.settings

    @property
    def gives(self) -> str:
        return gives(self.about.task)

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.network.metadata

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        kind = {"session": isinstance(self.model, Optimized), "judge": self.network.judge is not None}
        return identity(self.network, self.precision) | kind

    @property
    def parameters(self) -> int:
        return parameters(self.network)

    def per_cell(self, steps: Steps = None) -> Setting:
        return self.model.per_cell(steps)

    def release(self) -> None:
        """Nothing: torch keeps none."""

    def macs(self, setting: Setting, size: tuple[int, int]) -> float:
        return macs(self.network, setting, size)

    def quality(self) -> tuple[str, Mapping[Setting, float]]:
        return setting_quality(self.network)

    def at(self, setting: Setting) -> Call:
        """What is called as `call(x, sigma=...)`, of tensors, at this setting."""
        if setting not in self._calls:
            ready_made = self.model.at(setting) if isinstance(self.model, Optimized) else None
            self._calls[setting] = ready_made or ready(self.network, setting, self.precision)
        return self._calls[setting]

    @torch.inference_mode()
    def run(self, x: np.ndarray, setting: Setting, sigma: np.ndarray | None = None) -> np.ndarray:
        told = {} if sigma is None else {"sigma": _tensor(sigma).to(device_of(self.network))}
        return self.at(setting)(_tensor(x), **told).cpu().numpy()

    @torch.inference_mode()
    def judge(self, x: np.ndarray) -> np.ndarray | None:
        if self.network.judge is None:
            return None
        kernel = next(self.network.judge.parameters())
        return self.network.judge(_tensor(x).to(kernel.device, kernel.dtype)).float().cpu().numpy()


def denoise_tensor(session: Session, images: Tensor, setting: Setting, sigma: Sigma, **options: Any) -> Tensor:
    """As `rcnet.denoise`, of a tensor: on the CPU, in its type."""
    check_range(images)
    if images.requires_grad and torch.is_grad_enabled():
        if not isinstance(session, TorchSession):
            raise InputError("gradients pass through networks of torch alone: give rcnet.load(NAME) as the model")
        return _with_gradients(session, images, setting, sigma, options["strength"])
    level = as_array(sigma) if isinstance(sigma, Tensor) else sigma
    return torch.from_numpy(denoise_images(session, as_array(images), setting, sigma=level, **options)).to(images.dtype)


def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(x, requirements=("C", "W")))


def as_array(x: Tensor) -> np.ndarray:
    """A tensor as an array. numpy has no bfloat16: it becomes float32."""
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()


def _with_gradients(session: TorchSession, images: Tensor, setting: Setting, sigma: Sigma, strength: float) -> Tensor:
    """As `denoise`, each image whole, so that gradients pass."""
    check_strength(strength)
    net, (batch, channels, height, width) = session.network, images.shape
    taken = net.about.channels
    check_channels(net.about, channels)
    x = images.flatten(0, 1).unsqueeze(1) if taken == 1 else images.expand(-1, taken, -1, -1)
    given = given_levels(as_array(sigma) if isinstance(sigma, Tensor) else sigma, net.about, batch, (height, width))
    pixels, whole, levels = as_array(images), (slice(0, height), slice(0, width)), []
    for i in range(batch):
        image = pixels[i : i + 1]
        own = None if given is None else given[i : i + 1]
        levels.append(told(net.about, judge_image(session, image), own, image, whole, strength))
    known = [level for level in levels if level is not None]
    level = torch.from_numpy(np.concatenate(known).repeat(channels if taken == 1 else 1, 0)) if known else None
    after = strength if net.about.levels < 2 else 1.0
    y = filling(session.at(setting), net.about.multiple)(
        x, **({} if level is None else {"sigma": level.to(device_of(net))})
    ).cpu()
    y = y.view_as(images) if taken == 1 else y.mean(1, keepdim=True) if channels < taken else y
    return torch.lerp(images.cpu().to(y.dtype), y, after).to(images.dtype)
