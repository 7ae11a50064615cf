"""The state of a run: its network, their average, the optimizers, the teacher and the progress; how it is saved and restored."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rcnet.device import best_device, channels_last, keep_freed_memory, resolve_precision
from rcnet.errors import Diverged, InputError
from rcnet.evaluation.recalibrate import recalibrate
from rcnet.network import evaluating
from rcnet.training.checkpoint import can_resume, write_checkpoint
from rcnet.training.optimizer import make_optimizers
from rcnet.training.parallel import join, share
from rcnet.training.provenance import commit
from rcnet.training.recipe import Recipe, fixed
from rcnet.training.start import check_batch, compiled, set_up, take_weights
from rcnet.training.steps import check_probabilities
from rcnet.training.teaching import Teacher, make_features, make_teacher
from rcnet.training.tracking import Tracker


class Run:
    """A run at some iteration. A new one starts from fresh weights, or those of `init`; `restore` continues one."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, resume: bool) -> None:
        self.out, self.resume, self.commit, self.checkpoint = out, resume, commit(), out / "checkpoint.pt"
        self.device = best_device()
        self.world = join(self.device)
        self.writes = self.world.rank == 0
        resumes = share(self.writes and can_resume(out, resume), self.world)
        keep_freed_memory()
        recipe, self.kind, self.task, model = set_up(recipe, data, self.device, self.world.size)
        self.recipe, self.precision = recipe, resolve_precision(recipe.precision, self.device)
        x = self.task.batch(np.random.default_rng(0), 0)[0]
        check_batch(model, x[: recipe.batch // self.world.size // recipe.accumulate])
        self.size = (x.shape[-2], x.shape[-1])  # of the images, height and width in pixels
        self.model = channels_last(model.to(self.device))
        self.teacher: Teacher | None = None
        self.teacher_macs = 0
        if recipe.teacher:
            with torch.no_grad():
                output = evaluating(self.model)(x[:1])
            self.teacher, self.teacher_macs = make_teacher(recipe.teacher, x[:1], output.shape, self.model.about.classes)
        self.features = make_features(recipe, self.model, x[:2]) if recipe.feature_weight else None
        self.probabilities = check_probabilities(recipe.probabilities, self.model.settings)
        self.iterations = recipe.iterations
        if recipe.epochs > 0:
            self.iterations = max(1, round(recipe.epochs * self.task.data["images"] / recipe.batch))
        self.before: dict[str, Any] | None = None
        if share(self.task.data["crc32"], self.world) != self.task.data["crc32"]:
            raise InputError(f"process {self.world.rank} has other data than process 0: all need the same images in {data}")
        fresh = ""
        if recipe.init and not resumes:
            self.before, fresh = take_weights(recipe.init, self.model)
            if recipe.recalibrate_start and self.before is None:  # made by `rcnet convert`, and not trained since
                recalibrate(self.model, self.inputs(recipe.recalibrate_start))
        self.tracker = Tracker(recipe, self.kind, self.task, self.model, out if self.writes else None)
        if fresh:
            self.tracker.state["frozen"] = min(recipe.frozen, 0.5)  # fresh norms measure first
            self.tracker.say(f"init = {recipe.init!r} has no weights for {fresh}, which start from fresh weights")
        if not resumes:  # else from the checkpoint
            self.model.load_state_dict(share(self.model.state_dict(), self.world))
        self.call: Callable[..., Tensor] = compiled(self.model) if recipe.compile else self.model
        self.optimizers = make_optimizers(self.model, recipe.optimizer)
        self.average: AveragedModel | None = None
        if recipe.ema:
            self.average = AveragedModel(self.model, multi_avg_fn=self.blend, use_buffers=True)  # type: ignore[no-untyped-call]
        self.iteration, self.elapsed, self.asked, self.stopped, self.frozen = 0, 0.0, False, False, False
        self.time: Callable[[], float] = lambda: self.elapsed
        self.saved: int | None = None  # iteration of the last checkpoint

    def blend(self, averages: Any, values: Any, count: Any) -> None:
        """The exponential average of the weights. The decay rises to the recipe's, so that short runs forget their start."""
        decay = min(self.recipe.ema, (1 + self.iteration) / (10 + self.iteration))
        get_ema_multi_avg_fn(decay)(averages, values, count)  # type: ignore[no-untyped-call]

    def inputs(self, count: int = 0) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        """So many batches for recalibrating batch norms, else those of the recipe, with noise levels as in training."""
        for i in range(count or self.recipe.recalibrate):
            batch = self.task.batch(np.random.default_rng([self.recipe.seed, 2, i]), i)
            yield batch.x if batch.sigma is None else (batch.x, batch.sigma)

    def identity(self) -> dict[str, Any]:
        """Everything that the weights depend on; it must be the same when a run is resumed."""
        return fixed(self.recipe, self.kind.key) | {"data": self.task.data["crc32"], "precision": self.precision}

    def restore(self, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.iteration, self.elapsed, self.before = int(state["iteration"]), float(state["elapsed"]), state["before"]
            self.tracker.state |= state.get("tracker", {})
            self.saved = self.iteration
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(f"{self.checkpoint} is damaged: delete it to start again, or choose another folder") from error

    def keep(self) -> None:
        """Writes the checkpoint, or raises `Diverged`."""
        if problem := self.tracker.growth(self.model):
            raise self.diverged(problem)
        self.saved = self.iteration
        if not self.writes:
            return
        write_checkpoint(
            self.checkpoint,
            {
                "run": self.identity(),
                "iteration": self.iteration,
                "elapsed": self.elapsed,
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "before": self.before,
                "average": None if self.average is None else self.average.state_dict(),
                "tracker": self.tracker.state,
            },
        )

    def diverged(self, problem: str) -> Diverged:
        last = "" if self.saved is None else f"; the last good checkpoint is {self.checkpoint}, of iteration {self.saved}"
        muon = " and optimizer.muon_lr" * (self.recipe.optimizer.name == "muon")
        return Diverged(
            f"the run diverged at iteration {self.iteration}: {problem}{last}; lower optimizer.lr{muon}, or clip more"
        )

    @property
    def averaged(self) -> Any:
        """The network that is measured and saved."""
        return self.model if self.average is None else self.average.module

    @property
    def done(self) -> float:
        """The fraction of the run that is done, in [0, 1]."""
        if self.tracker.stops:
            return 1.0
        done = self.elapsed / (60 * self.recipe.minutes) if self.recipe.minutes > 0 else self.iteration / self.iterations
        return min(1.0, done)
