"""What is measured of a run, always in fp32: its test images at the end, and a denoiser's along the way.

Table 3 marks with '-' what is "not convergent on test set", which a finite loss does not exclude: only the record along the run
tells.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paper.costs import planned_iterations
from paper.runs import Folders, Run
from paper.scales import find_scale
from rcnet.cell import RecurrentNet
from rcnet.data.images import read_folder
from rcnet.data.labelled import read_labelled
from rcnet.device import best_device
from rcnet.evaluation.classify import classification_results
from rcnet.evaluation.denoise import denoising_results
from rcnet.figures.side_by_side import centre
from rcnet.models.files import load
from rcnet.models.registry import create_model
from rcnet.training.checkpoint import cut_log

MARKS = 12  # measurements along a run, at least this part of it apart
SIDE = 128  # pixels a side of the centre of each test image that is measured along the run
SETTLED = 1.0  # dB that PSNR may move by in the last third of a run that converges
Rows = list[dict[str, Any]]


@contextmanager
def exact() -> Iterator[None]:
    """Without the TF32 that convolutions of float32 take on a GPU unless told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def measure(run: Run, folders: Folders) -> Rows:
    """A row a step count: the error on the test images of CIFAR, or PSNR and SSIM by the protocol of BSD68, in fp32."""
    model = load(run.weights(folders)).to(best_device())
    with exact():
        if not run.classifies:
            return psnr_rows(model, run, bsd_test(run, folders))
        config = run.recipe(folders).classification
        test = read_labelled(folders.cifar, "test", config.dataset, config.size or None)
        rows = classification_results(model, test.images, test.labels, model.steps)
    return [{"data": test.name, **row} for row in rows]


def psnr_rows(model: RecurrentNet, run: Run, images: list[np.ndarray]) -> Rows:
    sigma = float(run.data.removeprefix("bsd"))
    return [{"sigma": sigma, **row} for row in denoising_results(model, images, sigma, model.steps)]


def bsd_test(run: Run, folders: Folders) -> list[np.ndarray]:
    """The test images in gray, or those of them that the scale takes."""
    images = read_folder(folders.bsd / "test", 1)
    count, side = find_scale(run.scale).test
    return [image[:side, :side] for image in images[:count]] if count else images


class Watch:
    """Measures the checkpoints of a denoiser's run as they are written, into `along.jsonl` in its folder."""

    def __init__(self, run: Run, folders: Folders) -> None:
        self.run, self.folders, self.recipe = run, folders, run.recipe(folders)
        self.checkpoint = run.work(folders) / "checkpoint.pt"
        self.record = run.work(folders) / "along.jsonl"
        self.seen = 0

    @cached_property
    def images(self) -> list[np.ndarray]:
        return [centre(image, SIDE) for image in bsd_test(self.run, self.folders)]

    def look(self) -> None:
        """Measures the checkpoint if it is new and a mark further than the last one measured."""
        try:
            written = self.checkpoint.stat().st_mtime_ns
            if written == self.seen:
                return
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.seen, iteration = written, int(state["iteration"])
        except Exception:  # torch.load raises almost anything on a broken file; the run itself will say what is wrong
            return
        cut_log(self.record, iteration)
        whole, before = planned_iterations(self.recipe), read_along(self.record)
        last = before[-1][0] if before else 0
        if iteration > last and (iteration - last >= whole / MARKS or iteration >= whole):
            with exact():
                (row,) = psnr_rows(network_at(state, self.recipe.model), self.run, self.images)
            with self.record.open("a") as file:
                file.write(json.dumps({"iteration": iteration, "psnr": row["psnr"]}) + "\n")

    def follow(self, over: threading.Event) -> None:
        """Looks until it is over, and once more."""
        while not over.wait(0.5):
            self.look()
        self.look()


@contextmanager
def watched(run: Run, folders: Folders) -> Iterator[None]:
    """A denoiser's checkpoints are measured beside its training."""
    if run.classifies:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=Watch(run, folders).follow, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def network_at(state: dict[str, Any], config: Any) -> RecurrentNet:
    """The network that a checkpoint would be saved as: the average of the weights where there is one."""
    model = create_model(**config)
    average = state.get("average")
    kept = {name.removeprefix("module."): value for name, value in average.items()} if average else dict(state["model"])
    kept.pop("n_averaged", None)
    model.load_state_dict(kept)
    return model.to(best_device()).eval()


def read_along(path: Path) -> list[tuple[int, float]]:
    """(iteration, PSNR in dB) along a run, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(entry["iteration"], entry["psnr"]) for entry in map(json.loads, lines)]


def settled(along: list[tuple[int, float]]) -> bool | None:
    """Whether the test PSNR of the last third of a run stays within `SETTLED`; None where fewer than two records say so."""
    late = [psnr for iteration, psnr in along if iteration >= along[-1][0] * 2 / 3]
    if len(late) < 2:
        return None
    return bool(np.isfinite(late).all()) and max(late) - min(late) <= SETTLED
