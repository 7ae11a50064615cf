"""What is measured of a run, always in fp32: its test images at the end, and a denoiser's along the way.

What a network gives for each test image is kept beside the result, in a .npz: `labels` of CIFAR and, for each step count, the
class that it gives (a byte per image), or its PSNR in dB (a float32 per image). Two networks are compared by these.

Table 3 marks with '-' what is "not convergent on test set", which a finite loss does not exclude: only the record along the run
tells.
"""

import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paper.costs import planned_iterations
from paper.runs import Folders, Run
from paper.scales import find_scale
from rcnet.data.images import read_folder
from rcnet.data.labelled import Labelled, read_labelled
from rcnet.device import best_device
from rcnet.errors import InputError
from rcnet.evaluation.classify import classification_results
from rcnet.evaluation.denoise import denoising_results
from rcnet.figures.side_by_side import centre
from rcnet.models.files import load
from rcnet.models.registry import create_model
from rcnet.network import RecurrentNet
from rcnet.replacing import replacing
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
    """A row a step count: the error on the test images of CIFAR, or PSNR and SSIM by the protocol of BSD68, in fp32.

    Writes what the network gives for each image.
    """
    model = load(run.weights(folders)).to(best_device())
    each: dict[str, np.ndarray] = {}
    with exact():
        if run.classifies:
            test = test_of(run, folders)
            each["labels"] = test.labels.numpy().astype(np.uint8)

            def keep(steps: Any, given: Any) -> None:
                each[f"{steps}"] = given.numpy().astype(np.uint8)

            rows = classification_results(model, test.images, test.labels, model.steps, keep=keep)
            rows = [{"data": test.name, **row} for row in rows]
        else:
            images = bsd_test(run, folders)
            rows = psnr_rows(model, run, images, lambda steps, psnrs: each.update({f"{steps}": np.array(psnrs, np.float32)}))
            own = psnr_rows(model, run, images, own_noise=True)
            rows = [{**row, "psnr_own_noise": other["psnr"]} for row, other in zip(rows, own, strict=True)]
    path = run.outcomes(folders)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **each)  # type: ignore[arg-type]
    return rows


def read_outcomes(run: Run, folders: Folders) -> dict[int, tuple[np.ndarray, bytes]]:
    """Steps -> of each test image, 100 where it is wrong and else 0, or PSNR in dB, and the labels; {} where none were kept.

    Raises:
        InputError: the file is not one of a run.
    """
    path = run.outcomes(folders)
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            each = {name: file[name] for name in file.files}
        labels = each.pop("labels", None)
        if labels is None:
            return {int(name): (psnrs, b"") for name, psnrs in each.items()}
        return {int(name): (100.0 * (given != labels), labels.tobytes()) for name, given in each.items()}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not what a run gives for each test image: delete it") from error


def test_of(run: Run, folders: Folders) -> Labelled:
    """The test images of a classifier."""
    config = run.recipe(folders).classification
    return read_labelled(folders.cifar, "test", config.dataset, config.size or None)


def psnr_rows(
    model: RecurrentNet,
    run: Run,
    images: list[np.ndarray],
    keep: Callable[[Any, list[float]], object] = lambda steps, psnrs: None,
    own_noise: bool = False,
) -> Rows:
    sigma = float(run.data.removeprefix("bsd"))
    rows = denoising_results(model, images, sigma, model.steps, keep=keep, own_noise=own_noise)
    return [{"sigma": sigma, **row} for row in rows]


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
                kept, raw = (
                    psnr_rows(network_at(state, self.recipe.model, averaged), self.run, self.images)[0]["psnr"]
                    for averaged in (True, False)
                )
            with self.record.open("a") as file:
                file.write(json.dumps({"iteration": iteration, "psnr": kept, "raw": raw}) + "\n")

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


def network_at(state: dict[str, Any], config: Any, averaged: bool = True) -> RecurrentNet:
    """The network that a checkpoint would be saved as, the average of the weights where there is one; or its last weights."""
    model = create_model(**config)
    average = state.get("average") if averaged else None
    kept = {name.removeprefix("module."): value for name, value in average.items()} if average else dict(state["model"])
    kept.pop("n_averaged", None)
    model.load_state_dict(kept)
    return model.to(best_device()).eval()


def read_along(path: Path, weights: str = "psnr") -> list[tuple[int, float]]:
    """(iteration, PSNR in dB) along a run, in order, of the averaged weights (`psnr`) or of the last ones (`raw`)."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(entry["iteration"], entry[weights]) for entry in map(json.loads, lines) if weights in entry]


def settled(along: list[tuple[int, float]]) -> bool | None:
    """Whether the test PSNR of the last third of a run stays within `SETTLED`; None where fewer than two records say so."""
    late = [psnr for iteration, psnr in along if iteration >= along[-1][0] * 2 / 3]
    if len(late) < 2:
        return None
    return bool(np.isfinite(late).all()) and max(late) - min(late) <= SETTLED
