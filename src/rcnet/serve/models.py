"""The served networks: their descriptions and how a batch is computed. Runs inside a worker."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rcnet.data.images import fit, in_channels
from rcnet.deploy.sessions import open_session
from rcnet.errors import InputError
from rcnet.runtime.classify import best_classes, class_names, image_size, probabilities
from rcnet.runtime.denoise import Work as Picture
from rcnet.runtime.denoise import denoise_many, judge_picture
from rcnet.runtime.picture import Curve
from rcnet.runtime.session import Session
from rcnet.serve.served import Classification, Denoised, Served, Work, name_of
from rcnet.setting import Setting

ASSUMED = 0.05  # of the error, removed by each further setting if no results are known; bundled weights gain 0.01 to 0.2
WARM_UP = ((1, 64), (1, 64), (4, 64), (1, 160), (1, 160))  # batch and side of timed calls: small, batched, larger


class Model(NamedTuple):
    """A loaded network: its description, and `run(setting, work)`, which returns a result per piece of work."""

    about: Served
    run: Callable[[Setting, Sequence[Work]], list[Any]]
    sides: tuple[tuple[int, int], ...]


def open_model(source: str, device: str, precision: str, threads: int = 0) -> Model:
    """Opens bundled weights, an exported .onnx file or a file of weights on a device; see `deploy.sessions.open_session`.

    Raises:
        InputError: what `open_session` raises; weights of a task that is not served.
    """
    megapixels = math.inf if precision == "auto" else 0.0
    session = open_session(source, precision=precision, threads=threads or None, device=device, megapixels=megapixels)
    run: Callable[[Setting, Sequence[Work]], list[Any]]
    sides: tuple[tuple[int, int], ...]
    if session.gives == "image":
        side, size, names, run, sides = 64, 0, [], partial(denoise, session), WARM_UP
    elif session.gives == "classes":
        side = size = image_size(session.about)
        names, sides = class_names(session.about), ((1, side), (1, side), (4, side))
        run = partial(classify, session, names, side)
    else:
        raise InputError(f"{source} is not served: a server takes networks that give images or classes")
    cost = {setting: session.macs(setting, (side, side)) / side**2 for setting in session.settings}
    cost = dict(sorted(cost.items(), key=lambda item: item[1]))
    metric, results = session.quality()
    about = Served(
        name=name_of(source),
        task=session.about.task,
        gives=session.gives,
        macs=cost,
        metric=metric,
        results=results,
        quality=quality(metric, results, cost),
        parameters=session.parameters,
        channels=session.about.channels,
        noise_level=session.about.takes_level,
        size=size,
        classes=tuple(names),
        precision=session.precision,
    )
    return Model(about, run, sides)


def quality(metric: str, results: Mapping[Setting, float], settings: Iterable[Setting]) -> dict[Setting, float]:
    """The `quality` of `policies.Dial`: minus the logarithm of the error at each setting, up to a constant."""
    if metric == "psnr":
        return {n: results[n] * math.log(10) / 10 for n in settings}
    if metric == "error":
        return {n: -math.log(max(results[n], 1e-3)) for n in settings}
    return {n: ASSUMED * i for i, n in enumerate(settings)}


def denoise(session: Session, setting: Setting, work: Sequence[Work]) -> list[Denoised]:
    """Denoises pictures; several of one small shape go through the network at once."""
    pictures = []
    for item in work:
        given = None if item.levels is None else np.array(item.levels, np.float32).reshape(1, 2, -1)
        judged = judge_picture(session, item.pixels, Curve(item.white)) if given is None else given
        pictures.append(Picture(item.pixels, item.sigma, item.strength, Curve(item.white), judged=judged))
    levels = [() if picture.judged is None else tuple(picture.judged.ravel().tolist()) for picture in pictures]
    done = denoise_many(session, pictures, setting)
    return [Denoised(*result, found) for result, found in zip(done, levels, strict=True)]


def classify(session: Session, names: Sequence[str], side: int, setting: Setting, work: Sequence[Work]) -> list[Classification]:
    """The likeliest classes of pictures, uint8 [H, W, 1 or 3] of any size."""
    images = np.stack([fit(in_channels(item.pixels, session.about.channels), side) for item in work])
    found = probabilities(session, images.transpose(0, 3, 1, 2), setting)
    return [Classification(tuple(best_classes(row[None], names, item.top)[0])) for row, item in zip(found, work, strict=True)]


def warm_up(model: Model) -> list[tuple[Setting, int, int, float]]:
    """Times calls of every setting: (setting, pixels, batch, seconds). The first single call of each shape is not timed."""
    rng, timed, seen = np.random.default_rng(0), [], set()
    for batch, side in model.sides:
        for setting in model.about.settings:
            work = [Work(rng.integers(0, 256, (side, side, model.about.channels), np.uint8)) for _ in range(batch)]
            started = time.perf_counter()
            model.run(setting, work)
            if (batch, side, setting) in seen or batch > 1:
                timed.append((setting, side * side, batch, time.perf_counter() - started))
            seen.add((batch, side, setting))
    return timed
