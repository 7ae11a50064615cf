"""How each run is trained: the paper's setting, a short one whose order means something, and one for tests."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcnet.data.cifar import cifar_sets
from rcnet.errors import unknown
from rcnet.study.paper import CIFAR, CLASSES, NETWORKS
from rcnet.training.recipe import Recipe, read_recipe


@dataclass(frozen=True)
class Profile:
    """One way of running the study; results of two are never mixed.

    Attributes:
        about: a line for the report.
        seeds: of the runs of every network.
        classify: the recipe of classifiers, and what is changed in it.
        denoise: the same for denoisers.
        widths: a factor for the widths of an architecture.
        test: at most so many test images of BSD, and of those a central square of so many pixels a side; 0 takes all.
        official: CIFAR is the real one; otherwise any folder of images by class may stand for it.
    """

    about: str
    seeds: tuple[int, ...]
    classify: tuple[str, tuple[str, ...]]
    denoise: tuple[str, tuple[str, ...]]
    widths: Mapping[str, float] = field(default_factory=dict)
    test: tuple[int, int] = (0, 0)
    official: bool = True


PROFILES = {
    "full": Profile(
        "the paper's setting: three seeds; classifiers by the recipe cifar_paper, 200 epochs; denoisers as DnCNN was trained "
        "(half the summed squared error, patches of 40, batch 128, 80,000 iterations, which are its 50 epochs of 128 x 1600 "
        "patches, Adam from 1e-3), but that the rate falls along a half cosine where DnCNN's fell in a step",
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
    "lite": Profile(
        "one seed and a short schedule, for the order rather than the figures: classifiers by the recipe cifar_fast for 2 "
        "epochs, denoisers by the recipe r3 for 6,000 iterations",
        (0,),
        ("cifar_fast", ("epochs=2", "ema=0.99")),
        ("r3", ("iterations=6000", "minutes=0", "ema=0.995")),
    ),
    "smoke": Profile(
        "a few iterations of narrow networks on whatever images there are: a test of the machinery, whose figures mean nothing",
        (0,),
        (
            "cifar_paper",
            ("epochs=0", "iterations=2", "batch=8", "classification.size=8", "log_every=1", "precision=fp32"),
        ),
        ("r3", ("minutes=0", "iterations=2", "batch=2", "denoising.patch=16", "log_every=1", "precision=fp32")),
        {"r2": 0.125, "s2": 0.125, "r4": 0.125, "s4": 0.125, "s4_exits": 0.125},
        (2, 32),
        official=False,
    ),
}  # fmt: skip


def find_profile(name: str) -> Profile:
    """The profile, or `InputError` that names the valid ones."""
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]


def model_config(network: str, data: str, profile: Profile) -> dict[str, Any]:
    """The arguments of `create_model`."""
    config = dict(NETWORKS[network].model)
    if data in CIFAR and profile.official:
        config["classes"] = CLASSES[data]
    if factor := profile.widths.get(config["name"]):
        config["width"] = config.get("width", 1.0) * factor
    return config


def recipe_of(network: str, data: str, seed: int, profile: Profile, cifar: Path) -> Recipe:
    """The recipe of one run; `cifar`: the folder of the labelled images."""
    base, changes = profile.classify if data in CIFAR else profile.denoise
    if data in CIFAR:
        dataset = data if profile.official or data in cifar_sets(cifar) else "folder"
        own = (f"classification.dataset={dataset}",)
    else:
        own = (f"denoising.sigma={data.removeprefix('bsd')}",)
    recipe = read_recipe(base, [*changes, *NETWORKS[network].recipe, *own, f"seed={seed}"])
    return dataclasses.replace(recipe, model=model_config(network, data, profile))
