"""Load for a demonstration: for some seconds, more requests than this machine can compute at the best setting."""

import asyncio
import contextlib
import random
from importlib import resources

import numpy as np

from rcnet.data.images import read_image
from rcnet.data.noise import protocol_pixels
from rcnet.serve.engine import Engine
from rcnet.serve.requests import Refused
from rcnet.serve.served import Work

SECONDS, MOST, SIDE = 12.0, 3000, 96  # duration, maximum number of requests, side of the pictures in pixels


def noisy_picture(channels: int) -> np.ndarray:
    """The middle of the bundled photograph with Gaussian noise, uint8 [SIDE, SIDE, channels]."""
    image = read_image(str(resources.files("rcnet") / "assets" / "cameraman.png"), channels)
    top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
    noisy = protocol_pixels(image[top : top + SIDE, left : left + SIDE], 25, as_8bit=True)
    return np.rint(255 * noisy[0].transpose(1, 2, 0)).astype(np.uint8)


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
