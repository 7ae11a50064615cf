"""Denoising images of any size and number of channels: tiles of bounded memory, colour through gray weights."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rcnet.about import About
from rcnet.calling import Call, check_range, device_of, ready
from rcnet.cost.budget import choose_setting, fingerprint, parse_budget, refuse_at_once
from rcnet.cost.counting import macs
from rcnet.cost.latency import interleaved, measured_once, summary
from rcnet.deploy.optimize import Optimized
from rcnet.device import resolve_precision
from rcnet.errors import InputError
from rcnet.models.denoise import Sigma, filling
from rcnet.models.judge import needs_level
from rcnet.models.results import setting_quality
from rcnet.network import RecurrentNet
from rcnet.runtime.denoise import Denoised, Work, check_channels, check_strength, denoise_images, judge_image, told
from rcnet.runtime.denoise import denoise_pixels as on_pixels
from rcnet.runtime.levels import given_levels
from rcnet.runtime.picture import Curve
from rcnet.runtime.tiles import TILE, size_of, tiles
from rcnet.setting import Setting, Steps
from rcnet.tasks import TASKS, gives

Images = TypeVar("Images", Tensor, np.ndarray)


def denoise(
    model: RecurrentNet | Optimized,
    images: Images,
    steps: Steps = None,
    *,
    sigma: Sigma = None,
    strength: float = 1.0,
    tile: int = TILE,
    precision: str = "fp32",
    each: Callable[[], Any] = lambda: None,
) -> Images:
    """The denoised images, in the type of the images: a tensor on the CPU, or an array for an array.

    Tiles overlap by the network's receptive field, so that the result equals the untiled one (to 1e-5 in fp32) and memory
    does not grow with the image.

    Args:
        model: a denoiser, e.g. `rcnet.load("r3_fast.photo")`, or another network that gives images, or fast sessions of one
            (`rcnet.optimize`).
        images: a tensor or numpy array, float of any type [B, C, H, W] in [0, 1]. A gray network takes the channels of a
            colour image one by one; a colour network takes a gray image three times, and the mean of what it gives. Gradients
            pass to images that require them (not through sessions).
        steps: the cost: any step count that the model supports; the largest unless given.
        sigma: the noise level, in levels of 255, for networks that take one: a number, one value per image [B] or a map [H, W] or
            [B, 1, H, W]; None: what the network's judge says of each image, or unknown. With a judge, a level is of the kind
            of noise that it finds, white or coarse; [B, 2, H, W] gives both.
        strength: multiplies the level that the network is told, from 0, nothing is removed, to 2. For networks without a level
            for coarse noise it multiplies what is removed.
        tile: side of a tile in pixels, without its overlap; 0 takes the whole image at once.
        precision: `fp32`, `bf16` or `auto`; sessions have their own.
        each: called after each tile, for a progress bar; see `count_tiles`.

    Raises:
        InputError: a network that gives no images, unsupported steps, a tile too small, an unknown precision, images of another
            type, shape, range or number of channels, or a sigma for weights that take none.
    """
    if images.ndim != 4 or not (images.is_floating_point() if isinstance(images, Tensor) else images.dtype.kind == "f"):
        raise InputError(f"images are float [B, C, H, W] in [0, 1], not {images.dtype} {list(images.shape)}")
    session = TorchSession(model, precision)
    setting = model.per_cell(steps)
    if isinstance(images, Tensor):
        check_range(images)
        if images.requires_grad and torch.is_grad_enabled():
            return _with_gradients(session, images, setting, sigma, strength)
    pixels = _array(images) if isinstance(images, Tensor) else images
    if pixels.dtype.itemsize > 8:
        raise InputError(f"images are float [B, C, H, W] in [0, 1], not {pixels.dtype} {list(pixels.shape)}")
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    check_range(torch.from_numpy(pixels))
    level = _array(sigma) if isinstance(sigma, Tensor) else sigma
    done = denoise_images(session, pixels, setting, sigma=level, strength=strength, tile=tile, each=each)
    return torch.from_numpy(done).to(images.dtype) if isinstance(images, Tensor) else done


class TorchSession:
    """A network that gives images, or fast sessions of one, as `runtime.denoise` calls it.

    Raises:
        InputError: a network that gives no images, or an unknown precision; sessions have their own.
    """

    def __init__(self, model: RecurrentNet | Optimized, precision: str = "fp32") -> None:
        self.model, self.network, self.precision = model, network_of(model), precision
        resolve_precision(precision, device_of(self.network))
        self._calls: dict[Setting, Call] = {}

    @property
    def about(self) -> About:
        return self.network.about

    @property
    def settings(self) -> tuple[Setting, ...]:
        return tuple(self.model.sessions) if isinstance(self.model, Optimized) else self.network.settings

    def at(self, setting: Setting) -> Call:
        """What is called as `call(x, sigma=...)`, of tensors, at this setting."""
        if setting not in self._calls:
            ready_made = self.model.at(setting) if isinstance(self.model, Optimized) else None
            self._calls[setting] = ready_made or ready(self.network, setting, self.precision)
        return self._calls[setting]

    @torch.inference_mode()
    def run(self, x: np.ndarray, setting: Setting, sigma: np.ndarray | None) -> np.ndarray:
        told = {} if sigma is None else {"sigma": _tensor(sigma).to(device_of(self.network))}
        return self.at(setting)(_tensor(x), **told).cpu().numpy()

    @torch.inference_mode()
    def judge(self, x: np.ndarray) -> np.ndarray | None:
        if self.network.judge is None:
            return None
        kernel = next(self.network.judge.parameters())
        return self.network.judge(_tensor(x).to(kernel.device, kernel.dtype)).float().cpu().numpy()


def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(x, requirements=("C", "W")))


def _array(x: Tensor) -> np.ndarray:
    """numpy has no bfloat16: it becomes float32."""
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()


def _with_gradients(session: TorchSession, images: Tensor, setting: Setting, sigma: Sigma, strength: float) -> Tensor:
    """As `denoise`, each image whole, so that gradients pass."""
    check_strength(strength)
    net, (batch, channels, height, width) = session.network, images.shape
    taken = net.about.channels
    check_channels(net.about, channels)
    x = images.flatten(0, 1).unsqueeze(1) if taken == 1 else images.expand(-1, taken, -1, -1)
    given = given_levels(_array(sigma) if isinstance(sigma, Tensor) else sigma, net.about, batch, (height, width))
    pixels, whole, levels = _array(images), (slice(0, height), slice(0, width)), []
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


def denoise_pixels(
    model: RecurrentNet | Optimized,
    pixels: np.ndarray,
    steps: Steps = None,
    *,
    white: float | Curve | None = None,
    tile: int = TILE,
    precision: str = "fp32",
    each: Callable[[], Any] = lambda: None,
    **work: Any,
) -> Denoised:
    """As `runtime.denoise.denoise_pixels`, of a network at these steps.

    Args:
        white: the value of the pixels that stands for 1, or the curve to it.
        work: the other fields of `runtime.denoise.Work`.
    """
    session = TorchSession(model, precision)
    curve = white if white is None or isinstance(white, Curve) else Curve(white)
    return on_pixels(session, Work(pixels, curve=curve, **work), model.per_cell(steps), tile=tile, each=each)


def network_of(model: RecurrentNet | Optimized) -> RecurrentNet:
    """The network itself, or the one that the sessions are of, or `InputError` if it gives no images."""
    net = model.network if isinstance(model, Optimized) else model
    if gives(net.about.task) != "image":
        valid = ", ".join(task for task in TASKS if gives(task) == "image")
        raise InputError(
            "this network gives no images: take one that does, e.g. r3_fast.photo, or say what yours is made for: "
            f"net.about = rcnet.About(TASK), TASK one of: {valid}"
        )
    return net


def denoise_setting_for(
    model: RecurrentNet | Optimized, budget: str, shape: tuple[int, ...], *, tile: int = TILE, precision: str = "fp32"
) -> Setting:
    """The best setting with which `denoise` stays within the budget for images of this shape [B, C, H, W], e.g. `"50ms"`.

    As `rcnet.steps_for`, but for the whole image: its channels and its tiles, of which the largest is measured.

    Raises:
        InputError: a network that gives no images, not a budget, or one that no step count fits.
    """
    asked = parse_budget(budget)
    net = network_of(model)
    height, width = shape[-2:]
    channels = net.about.channels
    planes = shape[0] * (shape[1] if channels == 1 else 1)
    taken = net.about.called_with
    seen = {
        n: Counter(taken(size_of(place)) for _, _, place, _ in tiles(net.about, n, tile, height, width)) for n in net.settings
    }
    where = f"for {width}x{height} pixels, {shape[1]} channel{'s' * (shape[1] > 1)}"
    if not asked.timed:
        by_macs = {
            n: float(planes * sum(count * macs(net, n, size) for size, count in sizes.items())) for n, sizes in seen.items()
        }
        return choose_setting(asked, by_macs, where, *setting_quality(net))
    largest = {n: max(sizes, key=lambda size: size[0] * size[1]) for n, sizes in seen.items()}
    times = {  # how many of the largest tile the image amounts to
        n: planes * sum(count * h * w for (h, w), count in sizes.items()) / (largest[n][0] * largest[n][1])
        for n, sizes in seen.items()
    }
    how = model.precision if isinstance(model, Optimized) else resolve_precision(precision, device_of(net))
    session, first = isinstance(model, Optimized), net.settings[0]
    what = {"network": fingerprint(net), "tiles": list(largest.values()), "session": session, "precision": how}
    what |= {"judge": True} if net.judge is not None else {}
    sigma = 25.0 if needs_level(net) else None  # any level takes the same time

    def measure() -> dict[str, float]:
        calls = {
            n: partial(denoise, model, torch.rand(1, channels, *largest[n]), n, sigma=sigma, tile=0, precision=how)
            for n in net.settings
        }
        refuse_at_once(asked, calls[first], times[first], first, where)
        return {str(n): summary(values)["p95"] for n, values in interleaved(calls).items()}

    measured = measured_once(what, device_of(net), measure)
    cost = {n: measured[str(n)] * times[n] for n in net.settings}
    return choose_setting(asked, cost, where, *setting_quality(net))
