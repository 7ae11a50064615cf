"""The paper's figures from the results and weights of a scale: each a picture and, for some, the distances that it shows.

What was drawn where the weights were is kept: the pictures as PNG, the distances beside them as JSON.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import nn

from paper.claims import CURVES, curves
from paper.distances import feature_distances, norm_distances
from paper.psnr_steps import psnr_steps
from paper.relative import relative_accuracy
from paper.results import Measured
from paper.runner import write_json
from paper.runs import Folders, Run
from paper.scales import SCALES
from paper.tables import BSD, DATA, FIGURES, NETWORKS, R3, S3, Key, published
from rcnet.data.images import read_folder
from rcnet.data.labelled import read_labelled
from rcnet.errors import InputError
from rcnet.figures.bn_steps import norms_by_step
from rcnet.figures.bn_upstream import norms_by_upstream
from rcnet.figures.denoised import denoised
from rcnet.figures.features import features
from rcnet.figures.norms import draw_norms
from rcnet.figures.side_by_side import save_picture
from rcnet.models.files import load
from rcnet.network import RecurrentNet

MISSING = "not yet measured"
Distances = Mapping[str, Mapping[str, float]]  # from where to where -> of what -> relative distance


class Drawn(NamedTuple):
    """A picture, and the distances between the steps that it shows."""

    picture: Image.Image
    distances: Distances = MappingProxyType({})


def picture_file(number: int, scale: str, folders: Folders) -> Path:
    return folders.results / "study" / "figures" / f"figure{number}-{scale}.png"


def draw_all(m: Measured, folders: Folders) -> tuple[list[Path], dict[int, str]]:
    """Draws what can be drawn; returns the files, and for the figures that there are not, why."""
    written, notes = [], {}
    for number in FIGURES:
        path = picture_file(number, m.scale, folders)
        drawn = DRAW[number](m, folders)
        if isinstance(drawn, Drawn):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_picture(path, drawn.picture)
            written.append(path)
            if drawn.distances:
                write_json(path.with_suffix(".json"), drawn.distances)
                written.append(path.with_suffix(".json"))
        elif not path.exists():
            notes[number] = drawn
    return written, notes


def read_distances(number: int, scale: str, folders: Folders) -> Distances:
    """Those beside a picture; none where none were written."""
    try:
        return json.loads(picture_file(number, scale, folders).with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}


def weights(m: Measured, folders: Folders, network: str, data: str) -> RecurrentNet | None:
    """The trained network of the first seed whose weights are here, None if there are none."""
    for seed in SCALES[m.scale].seeds:
        path = Run(network, data, seed, m.scale).weights(folders)
        if (network, data) in m.results and path.exists():
            return load(path)
    return None


def of_norms(
    network: str,
    data: str,
    norms_of: Callable[[RecurrentNet], tuple[str, dict[str, nn.Module]]],
    title: str,
    m: Measured,
    folders: Folders,
) -> Drawn | str:
    """Figures 2 and 3."""
    model = weights(m, folders, network, data)
    if model is None:
        return MISSING
    _, norms = norms_of(model)
    return Drawn(draw_norms(norms, f"{title} (scale {m.scale})"), norm_distances(norms))


def figure4(m: Measured, folders: Folders) -> Drawn | str:
    models = {network: weights(m, folders, network, "bsd25") for network in R3}
    networks = {NETWORKS[name].label: (model, NETWORKS[name].last) for name, model in models.items() if model is not None}
    if len(networks) < len(models):
        return MISSING
    if not (folders.bsd / "test").is_dir():
        return f"not drawn: no test images in {folders.bsd}"
    return Drawn(denoised(networks, read_folder(folders.bsd / "test", 1)[:2], 25.0))


def figure5(m: Measured, folders: Folders) -> Drawn | str:
    paper, levels = published(), {}
    for data in BSD:
        series = {}
        for label, networks in (("R3 here", R3), ("S3 here", S3)):
            points = {n: m.mean(Key(name, data, NETWORKS[name].last)) for n, name in enumerate(networks, start=1)}
            if sum(map(math.isfinite, points.values())) > 1:
                series[label] = points
        if series:
            levels[DATA[data]] = {**series, "R3^4, the paper": {4: paper[Key("r3-4", data, 4)]}}
    return Drawn(psnr_steps(levels, f"R3 and S3 over steps (scale {m.scale})")) if levels else MISSING


def figure6(m: Measured, folders: Folders) -> Drawn | str:
    model = weights(m, folders, "r4-123", "cifar100")
    if model is None:
        return MISSING
    recipe = Run("r4-123", "cifar100", SCALES[m.scale].seeds[0], m.scale).recipe(folders).classification
    try:
        test = read_labelled(folders.cifar, "test", recipe.dataset, recipe.size or None)
    except InputError as error:
        return f"not drawn: {error}"
    images = [np.ascontiguousarray(image) for image in test.images.numpy().transpose(0, 2, 3, 1)]
    few, many = (np.linspace(0, len(images) - 1, count).astype(int) for count in (4, min(len(images), 256)))
    cells = ("cell2", "cell3")
    picture = features(model, [images[i] for i in few], cells, f"Features of R4 over steps (scale {m.scale})")
    return Drawn(picture, feature_distances(model, [images[i] for i in many], cells))


def figure7(m: Measured, folders: Folders) -> Drawn | str:
    drawn = {}
    for label in CURVES:
        if each := list(curves(label, m.seeds, m.cost).values()):
            drawn[label] = [(x, float(np.mean([points[i][1] for points in each]))) for i, (x, _) in enumerate(each[0])]
    first = next(iter(CURVES))
    return Drawn(relative_accuracy(drawn, f"CIFAR-100 (scale {m.scale})")) if first in drawn and len(drawn) > 1 else MISSING


DRAW: dict[int, Callable[[Measured, Folders], Drawn | str]] = {
    2: partial(of_norms, "r2-4", "cifar10", norms_by_step, "First batch norm of C1 of R2^4 at each step, CIFAR-10"),
    3: partial(of_norms, "r4-123", "cifar100", norms_by_upstream, "First batch norm of T2 of R4 by the steps of C1, CIFAR-100"),
    4: figure4,
    5: figure5,
    6: figure6,
    7: figure7,
}
