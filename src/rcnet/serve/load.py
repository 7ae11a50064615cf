"""Load for a demonstration: for some seconds, more requests than this machine can compute at the best setting."""

import asyncio
import contextlib
import random
from importlib import resources

import numpy as np
from PIL import Image

from rcnet.serve.engine import Engine
from rcnet.serve.requests import Refused
from rcnet.serve.served import Work

SECONDS, MOST, SIDE = 12.0, 3000, 96  # duration, maximum number of requests, side of the pictures in pixels


def noisy_picture(channels: int) -> np.ndarray:
    """The middle of the bundled photograph with Gaussian noise, uint8 [SIDE, SIDE, channels]."""
    with (resources.files("rcnet") / "assets" / "cameraman.png").open("rb") as file:
        image = np.asarray(Image.open(file).convert("L"), np.float64)
    top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
    clean = image[top : top + SIDE, left : left + SIDE, None].repeat(channels, axis=2)
    return np.clip(np.rint(clean + np.random.RandomState(0).normal(0, 25, clean.shape)), 0, 255).astype(np.uint8)


async def make_load(engine: Engine, model: str) -> None:
    """Requests at three times the capacity of the model's largest setting, at random moments, for `SECONDS`."""
    about = engine.models[model]
    work = Work(noisy_picture(about.channels))
    pixels = about.size**2 or SIDE**2
    rate = min(3 / engine.scheduler.costs.seconds(model, about.settings[-1], pixels), MOST / SECONDS)
    rng, tasks, end = random.Random(0), set(), engine.clock() + SECONDS

    async def ask() -> None:
        with contextlib.suppress(Refused):
            await engine.submit(model, work, engine.clock() + engine.objective)

    while engine.clock() < end:
        task = asyncio.create_task(ask())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(rng.expovariate(rate))
    await asyncio.gather(*tasks)
