"""Does a denoiser leave images without noise unchanged? Flat areas, text, screens, fine textures, a night, clean photographs.

And does it restore the level of dark and bright areas, whose noise was clipped?
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rcnet.calling import device_of, ready
from rcnet.data.images import to_tensor
from rcnet.evaluation.cards import SIGMA, flat_cards, noisy_cards, picture_cards
from rcnet.evaluation.denoise import psnr, to_uint8_levels
from rcnet.models.denoise import filling
from rcnet.models.judge import check_level
from rcnet.network import RecurrentNet
from rcnet.setting import Steps

UNCHANGED = 99.0  # dB, instead of infinity, so that means and JSON stay finite; one level in one pixel of 1e5 is 98 dB


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
    """One row per step count.

    For pictures without noise, the PSNR in dB against the input, 99 if unchanged:

    - `page`, black text on white;
    - `screen`, the lower of coloured and subpixel (ClearType) text;
    - `texture`, the lowest of a halftone, a checkerboard and grass;
    - `night`, a dark scene with lights;
    - `clean` and `clean_worst`, mean and lowest of `images`.

    In levels of 255:

    - `flat`, the largest mean change of a flat area without noise: grays, 12 hues at three tones, and a ramp;
    - `flat_noisy`, the largest error of the mean of black, white and gray areas with clipped noise of sigma 10.

    `cards` has one value per card, for the hues the largest change per tone.

    Args:
        model: a denoiser.
        images: clean photographs, uint8 [H, W, C].
        sigma: the noise level for a network that takes one (the noisy areas use their own); None: unknown.
        each: called after each photograph at each setting.
    """
    check_level(model, sigma)
    channels, rows = model.about.channels, []
    flat_areas, noisy_areas, pictures = flat_cards(channels), noisy_cards(channels), picture_cards(channels)
    for n in map(model.per_cell, steps):
        call = filling(ready(model, n, precision), model.about.multiple)

        def denoised(image: np.ndarray, level: float | None, call: Callable[..., torch.Tensor] = call) -> torch.Tensor:
            x = to_tensor(image).to(device_of(model))
            return to_uint8_levels(call(x, **({"sigma": level} if model.about.takes_level else {}))).cpu()

        def kept(image: np.ndarray, denoised: Callable[..., torch.Tensor] = denoised) -> float:
            return min(UNCHANGED, psnr(denoised(image, sigma), to_tensor(image)))

        flat = {name: max(_shift(denoised(card, sigma), to_tensor(card)) for card in cards) for name, cards in flat_areas.items()}
        level = None if sigma is None else float(SIGMA)
        noisy = {name: _shift(denoised(card.image, level), torch.tensor(card.level / 255)) for name, card in noisy_areas.items()}
        drawn = {kind: {name: kept(card) for name, card in cards.items()} for kind, cards in pictures.items()}
        clean = []
        for image in images:
            clean.append(kept(image))
            each()
        figures = [*flat.items(), *noisy.items(), *(item for found in drawn.values() for item in found.items())]
        rows.append(
            {
                "steps": n.to_json(),
                "flat": round(max(flat.values()), 3),
                "flat_noisy": round(max(noisy.values()), 3),
                **{kind: round(min(found.values()), 2) for kind, found in drawn.items()},
                **({"clean": round(float(np.mean(clean)), 2), "clean_worst": round(min(clean), 2)} if clean else {}),
                "cards": {name: round(value, 2) for name, value in figures},
            }
        )
    return rows


def _shift(image: torch.Tensor, level: torch.Tensor) -> float:
    """The largest deviation of the mean of a channel [1, C, H, W] from the level, in levels of 255."""
    return (image - level).mean(dim=(0, 2, 3)).abs().max().item() * 255
