"""Does a denoiser leave alone what has no noise? Flat areas, a ramp, a page of text and clean photographs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rcnet.calling import Call, device_of, ready
from rcnet.cell import RecurrentNet
from rcnet.data.drawn import draw_page
from rcnet.data.images import to_tensor
from rcnet.evaluation.denoise import psnr, to_uint8_levels
from rcnet.models.denoise import filling
from rcnet.setting import Steps

FLAT = (0, 32, 128, 224, 255)  # levels
SIDE = 96  # pixels of a flat area and of the ramp


def cards(channels: int) -> dict[str, np.ndarray]:
    """What has to stay as it is: `flat 0` ... `flat 255`, `ramp` and `page`, uint8 [H, W, channels]."""
    flat = {f"flat {level}": np.full((SIDE, SIDE, channels), level, np.uint8) for level in FLAT}
    ramp = np.broadcast_to(np.linspace(0, 255, 2 * SIDE).round().astype(np.uint8)[None, :, None], (SIDE, 2 * SIDE, channels))
    page = draw_page(240, 360, channels, np.random.default_rng(17), on_white=True)
    return {**flat, "ramp": ramp, "page": page}


@torch.inference_mode()
def harm_results(
    model: RecurrentNet,
    images: Sequence[np.ndarray],
    steps: Sequence[Steps],
    *,
    sigma: float | None = None,
    precision: str = "fp32",
    each: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """One row a step count, of pictures without noise: `flat`, the largest mean change of a flat area or the ramp, in levels of
    255; `page`, the PSNR of a page of text, and `clean`, the mean PSNR of `images`, in dB, of which 99 stands for unchanged.

    Args:
        model: a denoiser.
        images: clean photographs, uint8 [H, W, C].
        sigma: what a network that takes the noise level is told; None: nothing.
        each: called after each photograph at each step count.
    """
    drawn, told = cards(model.about.channels), {"sigma": sigma} if model.about.takes_level else {}
    rows = []
    for n in map(model.per_cell, steps):
        call = filling(ready(model, n, precision), model.about.multiple)

        def pair(image: np.ndarray, call: Call = call) -> tuple[torch.Tensor, torch.Tensor]:
            x = to_tensor(image).to(device_of(model))
            return to_uint8_levels(call(x, **told)), x

        def kept(image: np.ndarray) -> float:
            return min(99.0, psnr(*pair(image)))

        changes = {name: (torch.sub(*pair(card)).mean(dim=(0, 2, 3)).abs().max() * 255).item() for name, card in drawn.items()}
        clean = []
        for image in images:
            clean.append(kept(image))
            each()
        rows.append(
            {
                "steps": n.to_json(),
                "flat": round(max(change for name, change in changes.items() if name != "page"), 3),
                "page": round(kept(drawn["page"]), 2),
                **({"clean": round(float(np.mean(clean)), 2), "clean_worst": round(min(clean), 2)} if clean else {}),
            }
        )
    return rows
