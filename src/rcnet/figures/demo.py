"""The demonstration: a bundled photograph with noise, denoised at each setting of two bundled networks."""

import statistics
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rcnet.data.images import read_image
from rcnet.data.noise import protocol_pixels
from rcnet.deploy.sessions import open_session
from rcnet.device import processor
from rcnet.figures.side_by_side import Panel, in_rows, side_by_side
from rcnet.runtime.denoise import denoise_images
from rcnet.runtime.results import psnr
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
    clean, noisy = image[:, :, 0], protocol_pixels(image, SIGMA)
    models = {name: open_session(name) for name in WEIGHTS}
    calls = [(name, n) for name, model in models.items() for n in model.settings]
    each()
    outputs = {(name, n): denoise_images(models[name], noisy, n) for name, n in calls}  # also the warm-up
    times: dict[tuple[str, Setting], list[float]] = {call: [] for call in calls}
    for _ in range(ROUNDS):
        each()
        for name, n in calls:
            start = time.perf_counter()
            denoise_images(models[name], noisy, n)
            times[name, n].append(time.perf_counter() - start)
    rows: list[dict[str, Any]] = [
        {
            "model": name,
            "steps": n,
            "parameters": models[name].parameters,
            "macs": models[name].macs(n, image.shape[:2]),
            "ms": 1000 * statistics.median(times[name, n]),
            "psnr": psnr(outputs[name, n], clean),
        }
        for name, n in calls
    ]

    def panel(label: str, x: np.ndarray) -> Panel:
        crop = x[0, 0, CROP[0], CROP[1]]
        return label, crop.repeat(2, axis=0).repeat(2, axis=1)[:, :, None]

    before = psnr(noisy, clean)
    panels = []
    for name in models:
        family = name.partition(".")[0]
        results = [
            panel(f"{family}, steps {row['steps']}: {row['psnr']:.2f} dB", outputs[name, row["steps"]])
            for row in rows
            if row["model"] == name
        ]
        panels += in_rows([panel(f"noisy: {before:.2f} dB", noisy), *results, panel("clean", clean[None, None] / 255)])
    height, width = image.shape[:2]
    about = f"{path.name}, {width}x{height} gray, noise of sigma {SIGMA} ({before:.2f} dB); {processor()}, fp32"
    return rows, side_by_side(panels), about
