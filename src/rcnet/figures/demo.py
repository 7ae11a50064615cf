"""The demonstration: a bundled photograph with noise, denoised at each setting of two bundled networks."""

import statistics
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rcnet.cost import macs, parameters
from rcnet.data.images import read_image, to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.deploy.denoise import denoise
from rcnet.device import best_device, hardware
from rcnet.evaluation.denoise import psnr, to_uint8_levels
from rcnet.figures.side_by_side import Panel, in_rows, side_by_side
from rcnet.models import load
from rcnet.setting import Setting

WEIGHTS = ("r3.bsd-gray-25", "r3_fast.bsd-gray-25")
SIGMA = 25
ROUNDS = 3  # of timing: the median is steady enough for a table, and the demo stays short
CROP = (slice(20, 240), slice(40, 300))  # rows and columns that the picture shows, enlarged


def demo(each: Callable[[], Any] = lambda: None) -> tuple[list[dict[str, Any]], Image.Image, str]:
    """Rows of model, steps, parameters, MACs, ms (median of interleaved calls) and PSNR; the picture; a line about the image.

    `each` is called before each round, for a progress bar.
    """
    path = Path(str(resources.files("rcnet") / "assets" / "cameraman.png"))
    image = read_image(path, 1)
    clean, noisy = to_tensor(image), protocol_noise(image, SIGMA)
    device = best_device()
    models = {name: load(name).to(device) for name in WEIGHTS}
    calls = [(name, n) for name, model in models.items() for n in model.settings]
    each()
    outputs = {(name, n): denoise(models[name], noisy, n) for name, n in calls}  # also the warm-up
    times: dict[tuple[str, Setting], list[float]] = {call: [] for call in calls}
    for _ in range(ROUNDS):
        each()
        for name, n in calls:
            start = time.perf_counter()
            denoise(models[name], noisy, n)
            times[name, n].append(time.perf_counter() - start)
    rows: list[dict[str, Any]] = [
        {
            "model": name,
            "steps": n,
            "parameters": parameters(models[name]),
            "macs": macs(models[name], n, image.shape[:2]),
            "ms": 1000 * statistics.median(times[name, n]),
            "psnr": psnr(to_uint8_levels(outputs[name, n]), clean),
        }
        for name, n in calls
    ]

    def panel(label: str, x: torch.Tensor) -> Panel:
        crop = x[0, 0, CROP[0], CROP[1]].numpy()
        return label, crop.repeat(2, axis=0).repeat(2, axis=1)[:, :, None]

    before = psnr(to_uint8_levels(noisy), clean)
    panels = []
    for name in models:
        family = name.partition(".")[0]
        results = [
            panel(f"{family}, steps {row['steps']}: {row['psnr']:.2f} dB", outputs[name, row["steps"]])
            for row in rows
            if row["model"] == name
        ]
        panels += in_rows([panel(f"noisy: {before:.2f} dB", noisy), *results, panel("clean", clean)])
    height, width = image.shape[:2]
    about = f"{path.name}, {width}x{height} gray, noise of sigma {SIGMA} ({before:.2f} dB); {hardware(device)}, fp32"
    return rows, side_by_side(panels), about
