"""Why norms that all steps share are bad: which of Sec. 3.2's reasons it is, from one training.

The same kernels, scales and shifts are measured in four ways: the last weights; their average, as every run of the study is; the
average with statistics measured again, of all steps together; and with statistics of each step for itself. If the last is as good
as independent norms, the statistics were at fault; if it is not, the scales and shifts were.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paper.measure import exact, network_at, test_of
from paper.runs import Folders, Run
from rcnet.data.labelled import read_labelled
from rcnet.device import best_device
from rcnet.evaluation.classify import classification_results
from rcnet.evaluation.recalibrate import recalibrate
from rcnet.models.registry import create_model
from rcnet.network import RecurrentNet
from rcnet.training.recipe import Recipe

SHARED = ("r2-4-shared", "r2-4-shared-slow")
WAYS_OF = ("raw", "averaged", "recalibrated", "by step")
BATCHES = 20  # of 256 training images, without crops and flips, on which statistics are measured


def measure_ways(run: Run, recipe: Recipe, folders: Folders) -> dict[str, float]:
    """Error in % on the test images: way -> of a network with shared norms."""
    state = torch.load(run.work(folders) / "checkpoint.pt", map_location="cpu", weights_only=True)
    averaged = network_at(state, recipe.model)
    config = recipe.classification
    images = read_labelled(folders.cifar, "train", config.dataset, config.size or None).images
    chosen = images[np.random.default_rng(0).permutation(len(images))[: 256 * BATCHES]]

    def batches() -> Iterator[Tensor]:
        return (part.to(best_device()).float() / 255 for part in torch.split(chosen, 256))

    again, by_step = copy.deepcopy(averaged), with_own_statistics(averaged, recipe.model)
    for model in (again, by_step):
        recalibrate(model, batches())
    test = test_of(run, folders)
    networks = dict(zip(WAYS_OF, (network_at(state, recipe.model, False), averaged, again, by_step), strict=True))
    with exact():
        return {
            way: classification_results(model, test.images, test.labels, model.steps)[0]["error"]
            for way, model in networks.items()
        }


def with_own_statistics(shared: RecurrentNet, config: Any) -> RecurrentNet:
    """A network with a norm for each step, whose scales and shifts are those that all steps shared."""
    net = create_model(**{**config, "norm_mode": "independent"})
    net.load_state_dict({k: v for k, v in shared.state_dict().items() if ".norms." not in k}, strict=False)
    for own, other in zip(net.recurrent_cells(), shared.recurrent_cells(), strict=True):
        for step in range(own.steps[-1]):
            own.get_submodule(f"norms.0.{step}").load_state_dict(other.get_submodule("norms.0.0").state_dict())
    return net.to(best_device()).eval()
