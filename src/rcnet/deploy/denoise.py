"""Denoising images of any size and number of channels: tiles of bounded memory, colour through gray weights."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rcnet.cell import RecurrentNet, Steps, evaluating, unroll
from rcnet.cost.budget import choose_steps, parse_budget
from rcnet.cost.latency import interleaved, measured_once, summary
from rcnet.cost.macs import macs
from rcnet.device import autocast, resolve_precision
from rcnet.errors import InputError
from rcnet.models.denoise import Denoiser

TILE, SMALLEST_TILE = 512, 16  # pixels a side


@torch.inference_mode()
def denoise(
    model: RecurrentNet,
    images: Tensor,
    steps: Steps = None,
    *,
    tile: int = TILE,
    precision: str = "fp32",
    each: Callable[[], Any] = lambda: None,
) -> Tensor:
    """The denoised images, in float32.

    Tiles overlap by the network's receptive field, so that the result equals the untiled one (to 1e-5 in fp32) and memory
    does not grow with the image.

    Args:
        model: a denoiser, e.g. `rcnet.load("r3_fast.bsd-gray-25")`.
        images: float [B, C, H, W] in [0, 1]. A gray network takes the channels of a colour image one by one.
        steps: the cost: any step count that the model supports; the largest unless given.
        tile: side of a tile in pixels, without its overlap; 0 takes the whole image at once.
        precision: `fp32`, `bf16` or `auto`.
        each: called after each tile, for a progress bar; see `count_tiles`.

    Raises:
        InputError: not a denoiser, unsupported steps, a tile too small, an unknown precision, or images of another type, shape or
            number of channels.
    """
    model = as_denoiser(model)
    if tile < 0 or 0 < tile < SMALLEST_TILE:
        raise InputError(f"tile={tile} is not valid: give its side in pixels, {SMALLEST_TILE} or more, or 0 for no tiles")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"images are float [B, C, H, W] in [0, 1], not {images.dtype} {list(images.shape)}")
    batch, channels, height, width = images.shape
    if model.channels == 1:
        images = images.reshape(batch * channels, 1, height, width)
    elif channels != model.channels:
        raise InputError(f"these weights take images of {model.channels} channels, and this one has {channels}")
    device = next(model.parameters()).device
    precision = resolve_precision(precision, device)
    net = evaluating(unroll(model, steps))
    halo, side = model.radius(steps), tile_side(model, tile, height, width)
    out = torch.empty(images.shape, dtype=torch.float32)
    for top, left, rows, columns in tiles(height, width, side, halo):
        inner = (slice(top - rows.start, top - rows.start + side), slice(left - columns.start, left - columns.start + side))
        for i, image in enumerate(images[..., rows, columns]):
            with autocast(precision, device):
                result = net(image.unsqueeze(0).to(device, memory_format=torch.channels_last))
            out[i, :, top : top + side, left : left + side] = result[0][:, *inner].float().cpu()
            each()
    return out.reshape(batch, channels, height, width)


def as_denoiser(model: RecurrentNet) -> Denoiser:
    """The model itself, or `InputError` if it is no denoiser."""
    if not isinstance(model, Denoiser):
        raise InputError("this network does not denoise: take a denoiser, e.g. r3_fast.bsd-gray-25")
    return model


def tiles(height: int, width: int, side: int, halo: int) -> Iterator[tuple[int, int, slice, slice]]:
    """Top and left of each tile, and the rows and columns of the image that its network call sees."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows = slice(max(top - halo, 0), min(top + side + halo, height))
            yield top, left, rows, slice(max(left - halo, 0), min(left + side + halo, width))


def denoise_steps_for(
    model: RecurrentNet, budget: str, shape: tuple[int, ...], *, tile: int = TILE, precision: str = "fp32"
) -> int:
    """The most steps with which `denoise` stays within the budget for images of this shape [B, C, H, W], e.g. `"50ms"`.

    As `rcnet.steps_for`, but for the whole image: its channels and its tiles.

    Raises:
        InputError: not a denoiser, not a budget, or one that no step count fits.
    """
    asked = parse_budget(budget)
    model = as_denoiser(model)
    height, width = shape[-2:]
    if asked.timed:
        precision = resolve_precision(precision, next(model.parameters()).device)
        what = {"architecture": model.architecture, "denoise": list(shape), "tile": tile, "precision": precision}

        def measure() -> dict[str, float]:
            x = torch.rand(*shape)
            calls = {str(n): partial(denoise, model, x, n, tile=tile, precision=precision) for n in model.steps}
            return {n: summary(times)["p95"] for n, times in interleaved(calls).items()}

        cost = {int(n): value for n, value in measured_once(what, measure).items()}
    else:
        planes, side = shape[0] * (shape[1] if model.channels == 1 else 1), tile_side(model, tile, height, width)
        cost = {}
        for n in model.steps:
            parts = Counter(
                (rows.stop - rows.start, columns.stop - columns.start)
                for _, _, rows, columns in tiles(height, width, side, model.radius(n))
            )
            cost[n] = float(planes * sum(count * macs(model, n, size) for size, count in parts.items()))
    return choose_steps(asked, cost, f"for {width}x{height} pixels, {shape[1]} channel{'s' * (shape[1] > 1)}")


def tile_side(model: Denoiser, tile: int, height: int, width: int) -> int:
    """The side of a tile in pixels: `tile` rounded up to whole sub-images, or the whole image for 0."""
    return -(-tile // model.sub) * model.sub or max(height, width)


def count_tiles(model: Denoiser, shape: tuple[int, ...], tile: int) -> int:
    """How many times `denoise` calls `each` for images of this shape [B, C, H, W]."""
    batch, channels, height, width = shape
    planes = batch * (channels if model.channels == 1 else 1)
    side = tile_side(model, tile, height, width)
    return planes * -(-height // side) * -(-width // side)
