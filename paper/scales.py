"""How much each run is trained: long, a short schedule whose order means something, and next to nothing, for tests."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paper.tables import CHECKS, CIFAR, CLASSES, NETWORKS
from rcnet.data.cifar import cifar_sets
from rcnet.errors import unknown
from rcnet.training.recipe import Recipe, read_recipe


@dataclass(frozen=True)
class Scale:
    """One way of running the study; results of two are never mixed.

    Attributes:
        about: a line for the report.
        seeds: of the runs of every network.
        classify: the recipe of classifiers, and what is changed in it.
        denoise: the same for denoisers.
        widths: a factor for the widths of an architecture.
        test: at most so many test images of BSD, and of those a central square of so many pixels a side; 0 takes all.
        checks: the runs that try other explanations of a verdict belong to it.
        places: the tables, figures and checks that it is for; empty: all.
        official: CIFAR is the real one, and so is the code, of a commit; otherwise any folder of images by class may stand for
            CIFAR, and sources that were changed will do.
    """

    about: str
    seeds: tuple[int, ...]
    classify: tuple[str, tuple[str, ...]]
    denoise: tuple[str, tuple[str, ...]]
    widths: Mapping[str, float] = field(default_factory=dict)
    test: tuple[int, int] = (0, 0)
    checks: bool = False
    places: tuple[str, ...] = ()
    official: bool = True


CLASSIFIERS = ("r2", "r2_biased", "s2", "r4", "s4", "r4_exits", "s4_exits")
SCALES = {
    "long": Scale(
        "three seeds, with what is customary where the paper says nothing: classifiers by the recipe cifar_paper, 200 epochs; "
        "denoisers as DnCNN was trained (half the summed squared error, patches of 40, batch 128, 80,000 iterations, which are "
        "its 50 epochs of 128 x 1600 patches, Adam from 1e-3), but that the rate falls along a half cosine where DnCNN's fell in "
        "a step",
        (0, 1, 2),
        ("cifar_paper", ()),
        (
            "r3",
            (
                "batch=128", "iterations=80000", "minutes=0", "ema=0.0", "denoising.patch=40",
                "optimizer.name=adam", "optimizer.lr=1e-3", "optimizer.betas=[0.9,0.999]",
            ),
        ),
    ),
    "lite": Scale(
        "one seed and a short schedule, for the order rather than the figures: classifiers by the recipe cifar_fast for 5 "
        "epochs, batch norms at 16 times the learning rate, denoisers by the recipe r3 for 6,000 iterations",
        (0,),
        ("cifar_fast", ("epochs=5", "ema=0.995", "optimizer.norm_lr=16")),
        ("r3", ("iterations=6000", "minutes=0", "ema=0.995", "checkpoint_minutes=0.05")),  # to be measured along the run
        checks=True,
    ),
    "half": Scale(
        "as lite, with half the width of classifiers, a quarter of the cost: for Table 5 and the figures of R4, and for what "
        "else could explain a verdict",
        (0,),
        ("cifar_fast", ("epochs=5", "ema=0.995", "optimizer.norm_lr=16")),
        ("r3", ("iterations=6000", "minutes=0", "ema=0.995", "checkpoint_minutes=0.05")),
        dict.fromkeys(CLASSIFIERS, 0.5),
        checks=True,
        places=("Table 5", "Figure 3", "Figure 6", "Figure 7", *CHECKS),
    ),
    "smoke": Scale(
        "a few iterations of narrow networks on whatever images there are: a test of the machinery, whose figures mean nothing",
        (0,),
        (
            "cifar_paper",
            ("epochs=0", "iterations=2", "batch=8", "classification.size=8", "log_every=1", "precision=fp32"),
        ),
        (
            "r3",
            (
                "minutes=0", "iterations=2", "batch=2", "denoising.patch=16", "log_every=1", "precision=fp32",
                "checkpoint_minutes=0",
            ),
        ),
        dict.fromkeys(CLASSIFIERS, 0.125),
        (2, 32),
        checks=True,
        official=False,
    ),
}  # fmt: skip


def find_scale(name: str) -> Scale:
    """The scale, or `InputError` that names the valid ones."""
    if name not in SCALES:
        raise unknown("scale", name, SCALES)
    return SCALES[name]


def model_config(network: str, data: str, scale: Scale) -> dict[str, Any]:
    """The arguments of `create_model`."""
    config = dict(NETWORKS[network].model)
    if data in CIFAR and scale.official:
        config["num_classes"] = CLASSES[data]
    if factor := scale.widths.get(config["name"]):
        config["width"] = config.get("width", 1.0) * factor
    return config


def recipe_of(network: str, data: str, seed: int, scale: Scale, cifar: Path) -> Recipe:
    """The recipe of one run; `cifar`: the folder of the labelled images."""
    base, changes = scale.classify if data in CIFAR else scale.denoise
    if data in CIFAR:
        dataset = data if scale.official or data in cifar_sets(cifar) else "folder"
        own = (f"classification.dataset={dataset}",)
    else:
        own = (f"denoising.sigma={data.removeprefix('bsd')}",)
    recipe = read_recipe(base, [*changes, *NETWORKS[network].recipe, *own, f"seed={seed}"])
    length = NETWORKS[network].length
    epochs, iterations = round(recipe.epochs * length, 3), round(recipe.iterations * length)
    return dataclasses.replace(recipe, model=model_config(network, data, scale), epochs=epochs, iterations=iterations)
