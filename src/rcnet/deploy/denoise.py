"""Denoising images of any size and number of channels: tiles of bounded memory, colour through gray weights."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rcnet.calling import Call, check_range, device_of, ready
from rcnet.cell import RecurrentNet
from rcnet.cost.budget import choose_setting, fingerprint, parse_budget, refuse_at_once
from rcnet.cost.counting import macs
from rcnet.cost.latency import interleaved, measured_once, summary
from rcnet.deploy.optimize import Optimized
from rcnet.deploy.picture import Curve, without
from rcnet.device import resolve_precision
from rcnet.errors import InputError
from rcnet.models.denoise import Sigma, filling
from rcnet.models.judge import check_told, level_map
from rcnet.models.results import setting_quality
from rcnet.setting import Setting, Steps

TILE, SMALLEST_TILE = 512, 16  # pixels a side
LOOK = 1024  # pixels a side, the most that a judge sees of a picture: its time is bounded, and levels no longer change
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
        model: a denoiser, e.g. `rcnet.load("r3_fast.photo")`, or fast sessions of one (`rcnet.optimize`).
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
        InputError: not a denoiser, unsupported steps, a tile too small, an unknown precision, images of another type, shape,
            range or number of channels, or a sigma for weights that take none.
    """
    if isinstance(images, np.ndarray):
        if images.dtype.kind != "f" or images.dtype.itemsize > 8:
            raise InputError(f"images are float [B, C, H, W] in [0, 1], not {images.dtype} {list(images.shape)}")
        x = torch.from_numpy(np.ascontiguousarray(images, images.dtype.newbyteorder("=")))
        told = {"sigma": sigma, "strength": strength, "tile": tile, "precision": precision, "each": each}
        return denoise(model, x, steps, **told).numpy()  # type: ignore[arg-type]
    net = network_of(model)
    check_options(tile, strength)
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"images are float [B, C, H, W] in [0, 1], not {images.dtype} {list(images.shape)}")
    check_range(images)
    with torch.set_grad_enabled(images.requires_grad and torch.is_grad_enabled()):
        return _denoised(model, net, images, steps, sigma, strength, tile, precision, each)


def _denoised(
    model: RecurrentNet | Optimized,
    net: RecurrentNet,
    images: Tensor,
    steps: Steps,
    sigma: Sigma,
    strength: float,
    tile: int,
    precision: str,
    each: Callable[[], Any],
) -> Tensor:
    """As `denoise`, of a checked tensor."""
    call, kind = call_of(model, steps, precision), images.dtype
    batch, channels, height, width = images.shape
    taken = net.about.channels
    if taken == 1:
        images = images.reshape(batch * channels, 1, height, width)
    elif channels not in (1, taken):
        raise InputError(f"these weights take images of {taken} channels, and this one has {channels}")
    told = telling(net, sigma, images, len(images) // batch, strength)
    strength = 1.0 if net.about.levels == 2 else strength
    out = torch.empty(images.shape, dtype=kind)
    for rows, columns, seen, inner in tiles(net, steps, tile, height, width):
        for i, image in enumerate(images[..., seen[0], seen[1]]):
            x = image.unsqueeze(0)
            y = call(x.expand(-1, taken, -1, -1), **told(i, x, seen)).cpu()
            y = y.mean(1, keepdim=True) if images.shape[1] < taken else y
            out[i, :, rows, columns] = torch.lerp(x.cpu().to(y.dtype), y, strength)[0][:, *inner].to(kind)
            each()
    return out.reshape(batch, channels, height, width)


@torch.inference_mode()
def denoise_pixels(
    model: RecurrentNet | Optimized,
    pixels: np.ndarray,
    steps: Steps = None,
    *,
    sigma: Sigma = None,
    strength: float = 1.0,
    white: float | Curve | None = None,
    visible: np.ndarray | None = None,
    levels: Tensor | None = None,
    tile: int = TILE,
    precision: str = "fp32",
    each: Callable[[], Any] = lambda: None,
) -> tuple[np.ndarray, float]:
    """As `denoise`, of the pixels of a file, uint8, uint16 or float [H, W, C], to the same; no float copy of the whole is made.

    Returns the pixels and the noise that the network found: the root of the mean square of what it took away at strength 1, in
    levels of 255.

    Args:
        white: the value that stands for 1, or the curve to it; the largest of the type, or 1.0, unless given. The network sees
            larger ones as 1, and they are kept as they are.
        visible: [H, W], which pixels count for the noise that is found; all unless given.
        levels: what `judged` said of these pixels, so that it is not asked again.
    """
    net = network_of(model)
    white = white or (1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max))
    curve = white if isinstance(white, Curve) else Curve(white)
    height, width = pixels.shape[:2]
    out, squares = np.empty_like(pixels), 0.0
    after = strength
    if net.about.levels == 2:
        levels, after = judged(net, pixels, curve) if levels is None else levels, 1.0
    for rows, columns, seen, inner in tiles(net, steps, tile, height, width):
        x = part_of(pixels, seen, curve)
        level = sigma[..., *seen] if isinstance(sigma, Tensor) and sigma.ndim > 1 else sigma
        if net.about.levels == 2:
            level = tell(net, levels, level, x) * strength
        y = _denoised(model, net, x, steps, level, 1.0, 0, precision, lambda: None)
        removed = ((y - x)[0][:, *inner]).permute(1, 2, 0).numpy()
        counted = np.square(removed, dtype=np.float64)
        squares += float((counted if visible is None else counted[visible[rows, columns]]).sum())
        out[rows, columns] = without(removed, pixels[rows, columns], after, curve)
        each()
    count = pixels.size if visible is None else np.count_nonzero(visible) * pixels.shape[2]
    return out, 255 * float(np.sqrt(squares / count))


def part_of(pixels: np.ndarray, place: "Place", curve: Curve) -> Tensor:
    """A part of the pixels [H, W, C] as the network sees it, [1, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(curve.encode(pixels[place]).transpose(2, 0, 1))).unsqueeze(0)


@torch.inference_mode()
def judged(net: RecurrentNet, pixels: np.ndarray | Tensor, curve: Curve | None = None) -> Tensor | None:
    """What a network's judge says of a picture, noise levels [1, 2, KNOTS] in levels of 255; None of a network without a judge.

    It sees all of a picture up to a megapixel, and of a larger one 16 parts, evenly spread.

    Args:
        pixels: [H, W, C], seen by the curve, or a tensor [C, H, W] in [0, 1].
    """
    if net.judge is None:
        return None

    def part(rows: slice, columns: slice) -> Tensor:
        return (
            pixels[None, :, rows, columns]
            if isinstance(pixels, Tensor)
            else part_of(pixels, (rows, columns), curve or Curve(1.0))
        )

    height, width = pixels.shape[-2:] if isinstance(pixels, Tensor) else pixels.shape[:2]
    if height * width <= LOOK**2:
        seen = part(slice(None), slice(None))
    else:
        sides = min(LOOK, height // 8 * 8) // 4, min(LOOK, width // 8 * 8) // 4
        starts = ([round(k * (whole - side) / 3) for k in range(4)] for whole, side in zip((height, width), sides, strict=True))
        down, across = starts
        rows = [torch.cat([part(slice(y, y + sides[0]), slice(x, x + sides[1])) for x in across], 3) for y in down]
        seen = torch.cat(rows, 2)
    channels = net.about.channels
    seen = seen.reshape(-1, 1, *seen.shape[-2:]) if channels == 1 else seen.expand(-1, channels, -1, -1)
    return net.judge(seen.to(device_of(net), torch.float32)).mean(0, keepdim=True).cpu()


def tell(net: RecurrentNet, levels: Tensor | None, sigma: Sigma, x: Tensor) -> Tensor:
    """What a network of two levels is told of a part of a picture: a map [B, 2, H, W], or [B, 2, 1, 1].

    Args:
        levels: what the judge said of the whole picture; None: nobody did, and all noise is taken for white.
        sigma: the level that a person gave: a number, one value per image, a map [H, W] or [B, 1, H, W], of the kind of noise
            that the judge found most of; or [B, 2, H, W], both kinds.
        x: the part, [B, C, H, W].

    Raises:
        InputError: neither a judge nor a level.
    """
    if sigma is None:
        check_told(net, levels)
        assert levels is not None
        return level_map(levels, x.float())
    given = torch.as_tensor(sigma, dtype=torch.float32)
    given = (
        given.reshape(-1, 1, 1, 1)
        if given.ndim < 2
        else given.reshape(-1, *(given.shape[-3:] if given.ndim > 2 else (1, *given.shape)))
    )
    if given.shape[1] == 2:
        return given
    white, coarse = (1.0, 0.0) if levels is None else levels.mean((0, 2))
    none = torch.zeros_like(given)
    return torch.cat([none, given] if coarse > white else [given, none], 1)


def telling(
    net: RecurrentNet, sigma: Sigma, images: Tensor, times: int, strength: float
) -> Callable[[int, Tensor, "Place"], dict[str, Tensor]]:
    """`told(i, x, place)`: what a call is told of the part `x` of image i, [1, C, H, W], at that place; {} for nothing.

    `times`: as `levels_of` takes it.
    """
    given = levels_of(sigma, net, images, times)
    if net.about.levels < 2 and given is None:
        return lambda i, x, place: {}
    found = [judged(net, image) for image in images] if net.about.levels == 2 else []

    def told(i: int, x: Tensor, place: "Place") -> dict[str, Tensor]:
        level = None if given is None else given[i : i + 1, :, *(place if given.shape[-1] > 1 else ())]
        if net.about.levels == 2:
            level = tell(net, found[i], level, x) * strength
        assert level is not None
        return {"sigma": level}

    return told


def call_of(model: RecurrentNet | Optimized, steps: Steps, precision: str) -> Call:
    """What is called as `call(x, sigma=...)` at these steps."""
    if isinstance(model, Optimized):
        resolve_precision(precision, device_of(model.network))
        return filling(model.at(steps), model.network.about.multiple)
    return filling(ready(model, steps, precision), model.about.multiple)


def network_of(model: RecurrentNet | Optimized) -> RecurrentNet:
    """The denoiser itself, or the one that the sessions are of, or `InputError` if it is none."""
    net = model.network if isinstance(model, Optimized) else model
    if net.about.task != "denoise":
        raise InputError(
            "this network does not denoise: take a denoiser, e.g. r3_fast.photo, or say that it is one: "
            'net.about = rcnet.About("denoise")'
        )
    return net


def check_options(tile: int, strength: float) -> None:
    """`InputError` for a tile or a strength that is none."""
    if tile < 0 or 0 < tile < SMALLEST_TILE:
        raise InputError(f"tile={tile} is not valid: give its side in pixels, {SMALLEST_TILE} or more, or 0 for no tiles")
    if not 0 <= strength <= 2:
        raise InputError(f"strength={strength} is not valid: give a number from 0, nothing is removed, to 2; 1 is as trained")


def levels_of(sigma: Sigma, net: RecurrentNet, images: Tensor, times: int) -> Tensor | None:
    """The noise levels, [images, 1 or 2, 1 or H, 1 or W], each of the caller's images `times` over, or None if there are none."""
    if sigma is None:
        return None
    if not net.about.takes_level:
        raise InputError("these weights take no noise level: leave sigma out, or take weights that do, e.g. r3_fast.photo")
    given = torch.as_tensor(sigma, dtype=torch.float32)
    kinds = net.about.levels if given.ndim == 4 and given.shape[1] == net.about.levels else 1
    levels = given.reshape(-1, 1, 1, 1) if given.ndim < 2 else given.reshape(-1, kinds, *given.shape[-2:])
    count, sides = len(images) // times, tuple(levels.shape[-2:])
    if len(levels) not in (1, count) or sides not in ((1, 1), tuple(images.shape[-2:])) or torch.isnan(levels).any():
        raise InputError(
            f"sigma of shape {list(given.shape)} does not fit {count} images of {images.shape[-1]}x{images.shape[-2]} pixels: "
            "give one number, one an image, or a map of their size"
        )
    return levels.expand(count, -1, -1, -1).repeat_interleave(times, 0)


Place = tuple[slice, slice]


def tiles(net: RecurrentNet, steps: Steps, tile: int, height: int, width: int) -> Iterator[tuple[slice, slice, Place, Place]]:
    """Rows and columns of each tile; those of the image that its call sees; and where in these the tile lies."""
    side = tile_side(net, tile, height, width)
    halo = -(-net.about.radius(net.per_cell(steps)) // grid(net)) * grid(net) if side < max(height, width) else 0
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = slice(top, min(top + side, height)), slice(left, min(left + side, width))
            seen = tuple(
                slice(max(part.start - halo, 0), min(part.stop + halo, whole))
                for part, whole in ((rows, height), (columns, width))
            )
            inner = tuple(
                slice(part.start - around.start, part.stop - around.start)
                for part, around in zip((rows, columns), seen, strict=True)
            )
            yield rows, columns, (seen[0], seen[1]), (inner[0], inner[1])


def denoise_setting_for(
    model: RecurrentNet | Optimized, budget: str, shape: tuple[int, ...], *, tile: int = TILE, precision: str = "fp32"
) -> Setting:
    """The best setting with which `denoise` stays within the budget for images of this shape [B, C, H, W], e.g. `"50ms"`.

    As `rcnet.steps_for`, but for the whole image: its channels and its tiles, of which the largest is measured.

    Raises:
        InputError: not a denoiser, not a budget, or one that no step count fits.
    """
    asked = parse_budget(budget)
    net = network_of(model)
    height, width = shape[-2:]
    channels = net.about.channels
    planes = shape[0] * (shape[1] if channels == 1 else 1)
    taken = net.about.called_with
    seen = {n: Counter(taken(size_of(place)) for _, _, place, _ in tiles(net, n, tile, height, width)) for n in net.settings}
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

    def measure() -> dict[str, float]:
        calls = {n: partial(denoise, model, torch.rand(1, channels, *largest[n]), n, tile=0, precision=how) for n in net.settings}
        refuse_at_once(asked, calls[first], times[first], first, where)
        return {str(n): summary(values)["p95"] for n, values in interleaved(calls).items()}

    measured = measured_once(what, device_of(net), measure)
    cost = {n: measured[str(n)] * times[n] for n in net.settings}
    return choose_setting(asked, cost, where, *setting_quality(net))


def size_of(place: Place) -> tuple[int, int]:
    """Height and width in pixels."""
    return place[0].stop - place[0].start, place[1].stop - place[1].start


def tile_side(net: RecurrentNet, tile: int, height: int, width: int) -> int:
    """The side of a tile in pixels: `tile` rounded up to whole multiples, or the whole image for 0."""
    return -(-tile // grid(net)) * grid(net) or max(height, width)


def grid(net: RecurrentNet) -> int:
    """What the sides of tiles are multiples of."""
    return math.lcm(net.about.sub, net.about.multiple)


def count_tiles(model: RecurrentNet | Optimized, shape: tuple[int, ...], tile: int) -> int:
    """How many times `denoise` calls `each` for images of this shape [B, C, H, W]."""
    net = network_of(model)
    batch, channels, height, width = shape
    planes = batch * (channels if net.about.channels == 1 else 1)
    side = tile_side(net, tile, height, width)
    return planes * -(-height // side) * -(-width // side)
