"""The training loop: Alg. 2, resumable at any iteration.

All random draws of an iteration depend only on (seed, iteration). A checkpoint therefore needs no generator state, and a run
with a fixed number of iterations ends with the same weights whether or not it was killed and resumed. (A run with a time limit
resumes with the time that is left; the number of iterations depends on the machine.)
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError

from rcnet.cell import batch_norms
from rcnet.cost.counting import macs
from rcnet.device import autocast
from rcnet.errors import InputError
from rcnet.evaluation.recalibrate import recalibrate
from rcnet.models.files import save
from rcnet.replacing import replacing
from rcnet.setting import Setting
from rcnet.tasks.task import Batch
from rcnet.training.checkpoint import can_resume, cut_log, locked, read_checkpoint, read_result
from rcnet.training.console import Board, Progress, stopped_by_signals
from rcnet.training.optimizer import learning_rate_factor, set_learning_rate
from rcnet.training.parallel import average, leave, share
from rcnet.training.provenance import made_here
from rcnet.training.recipe import Recipe, fixed
from rcnet.training.state import Run
from rcnet.training.steps import draw_steps, expected_cost
from rcnet.training.teaching import cell_outputs, feature_loss


def train(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Trains the recipe's network on `data` and writes to the folder `out`; returns what `result.json` holds.

    `out` then contains `weights.safetensors` (the averaged weights if the recipe asks for them), `result.json`, `log.jsonl` and
    `checkpoint.pt`. Ctrl-C writes a checkpoint first, then raises KeyboardInterrupt. Under `torchrun` each process takes its
    share of every batch; only the first writes, and the others return {}.

    Args:
        resume: resume from `out/checkpoint.pt`. A folder without one starts a new run; a finished run returns its result.
        progress: show a progress bar on stderr.
        tensorboard: also log to TensorBoard, in `out`.
        clock: returns the seconds against which the recipe's `minutes` are counted. `time.process_time` counts processor time,
            so that runs on a busy machine are comparable.

    Raises:
        InputError: the recipe or the data does not fit, `out` contains another run or is in use by another process, or another
            process of this run has exited.
        Diverged: an `InputError`; the loss or the weights grow without bound.
        OSError: a file cannot be written, e.g. because the disk is full; the last checkpoint is intact.
    """
    return Trainer(recipe, Path(data), Path(out), resume).go(progress, clock, tensorboard)


class Trainer(Run):
    """A run and its loop."""

    def go(self, progress: bool, clock: Callable[[], float], tensorboard: bool = False) -> dict[str, Any]:
        """Trains to the end while the folder is locked."""
        with locked(self.out) if self.writes else nullcontext():
            if share(self.writes and can_resume(self.out, self.resume), self.world):
                usual = fixed(Recipe(), self.kind.key)
                state = read_checkpoint(self.checkpoint, self.identity(), usual) if self.writes else None
                self.restore(share(state, self.world))
            if self.writes:
                cut_log(self.out / "log.jsonl", self.iteration or -1)
            return self.to_the_end(Progress(progress and self.writes), clock, tensorboard)

    def to_the_end(self, progress: Progress, clock: Callable[[], float], tensorboard: bool) -> dict[str, Any]:
        whole = all((self.out / name).exists() for name in ("result.json", "weights.safetensors"))
        if self.done >= 1 and share(whole, self.world):
            leave()
            return read_result(self.out / "result.json") if self.writes else {}
        self.tracker.show(progress, Board(self.out, self.iteration) if tensorboard and self.writes else None)
        if self.recipe.init and self.iteration == 0:
            self.measure()
        started, elapsed_before = clock(), self.elapsed
        self.time = lambda: elapsed_before + clock() - started
        kept = self.elapsed
        with stopped_by_signals(self.stop):
            while self.done < 1 and not self.stopped:
                self.step()
                self.tracker.log(self.iteration, self.elapsed, self.done)
                if self.tracker.is_due(self.done):
                    before = clock()
                    self.measure()
                    started += clock() - before  # is not part of the training
                if self.elapsed - kept > 60 * self.recipe.checkpoint_minutes:
                    self.keep()
                    kept = self.elapsed
            self.keep()
        progress.end()
        if self.done < 1:
            self.tracker.say(f"stopped at iteration {self.iteration}; continue with --resume")
            raise KeyboardInterrupt
        leave()
        return self.finish() if self.writes else {}

    def measure(self) -> None:
        """Measures the averaged weights, in the first process."""
        rows = share(self.task.evaluate(self.averaged) if self.writes else [], self.world)
        self.tracker.measured(self.iteration, rows, self.averaged)

    def stop(self) -> None:
        """Requests that all processes stop after this iteration."""
        self.asked = True

    def step(self) -> float:
        """One iteration of Alg. 2, the aggregated loss or the sandwich rule; returns the loss."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, self.iteration])
        # The draws of layers (dropout) depend on the iteration and the process, so that a resumed run repeats them.
        torch.manual_seed(int(np.random.default_rng([recipe.seed, 4, self.iteration, self.world.rank]).integers(2**62)))
        weights = draw_steps(self.model.settings, self.probabilities, recipe.objective, rng)
        whole = self.task.batch(rng, self.iteration)
        share = len(whole.x) // self.world.size
        mine = whole.part(self.world.rank * share, (self.world.rank + 1) * share)
        set_learning_rate(self.optimizers, learning_rate_factor(self.done, recipe.warmup, recipe.decay))
        self.model.train()
        frozen = self.tracker.state["frozen"]
        if frozen and self.done >= 1 - frozen:
            self.freeze()
        total, size = 0.0, share // recipe.accumulate
        for start in range(0, share, size):
            total += self.backward(mine.part(start, start + size), weights)
        # All use the clock of rank 0, and a signal to one process stops all after the same iteration.
        clock = self.time() if self.writes else 0.0
        total, self.elapsed, stops = average(self.model, self.world, [total / self.world.size, clock, float(self.asked)])
        self.stopped = stops > 0
        if problem := self.tracker.problem(self.iteration, total, self.model):
            raise self.diverged(problem)
        if recipe.optimizer.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.iteration += 1
        if self.average is not None:
            self.average.update_parameters(self.model)
        return total

    def freeze(self) -> None:
        """Puts batch norms in evaluation mode, with the running statistics of the averaged model, which cover more batches."""
        for norm in batch_norms(self.model):
            norm.eval()
        if self.average is not None and not self.frozen:
            for norm, source in zip(batch_norms(self.model), batch_norms(self.average.module), strict=True):
                statistics = {"running_mean": source.running_mean, "running_var": source.running_var}
                norm.load_state_dict({**norm.state_dict(), **statistics})
        self.frozen = True

    def backward(self, batch: Batch, weights: dict[Setting, float]) -> float:
        """Adds the gradients of one part of a batch; returns its share of the loss."""
        x, kwargs = batch.x.contiguous(memory_format=torch.channels_last), {} if batch.sigma is None else {"sigma": batch.sigma}
        taught = None if self.teacher is None else batch._replace(target=self.task.teach(self.teacher(x, **kwargs)))
        features = None if self.features is None else self.features(x)
        total = 0.0
        for i, (setting, weight) in enumerate(weights.items()):
            try:
                with autocast(self.precision, self.device), cell_outputs(self.model if features else None) as own:
                    output = self.call(x, setting.to_json(), **kwargs)
            except (TorchDynamoException, InductorError) as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"compile = true failed (on a CPU it needs a C++ compiler); leave it out: {reason}") from error
            loss = self.loss(output, batch, taught)
            if features is not None:
                loss = loss + self.recipe.feature_weight * feature_loss(own, features)
            loss = weight / self.recipe.accumulate * loss
            if self.recipe.objective == "sandwich" and i == 0:
                batch = batch._replace(target=self.task.teach(output.detach()))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def loss(self, output: Tensor, batch: Batch, taught: Batch | None) -> Tensor:
        """The loss against the targets, or a weighted sum of it and the loss against the teacher."""
        if taught is None:
            return self.task.loss(output, batch)
        part = self.recipe.teacher_weight
        return (1 - part) * self.task.loss(output, batch) + part * self.task.loss(output, taught)

    def finish(self) -> dict[str, Any]:
        model = self.averaged
        model.architecture = self.model.architecture
        if self.tracker.state["weights"]:
            model.load_state_dict(self.tracker.state["weights"])
        rows, recalibrated = self.task.evaluate(model), None
        if self.recipe.recalibrate:
            recalibrate(model, self.inputs(), self.probabilities)
            recalibrated, rows = {"before": rows}, self.task.evaluate(model)
            recalibrated["after"] = rows
        if self.tracker.board and not self.tracker.state["figures"]:
            self.tracker.board.add_rows(self.iteration, rows)
        result = {
            "architecture": self.model.architecture,
            "recipe": self.recipe.to_dict(),
            "data": self.task.data,
            "seed": self.recipe.seed,
            "iterations": self.iteration,
            "epochs": round(self.iteration * self.recipe.batch / self.task.data["images"], 2),
            "images_per_s": round(self.iteration * self.recipe.batch / max(self.elapsed, 1e-9), 1),
            "pflop": float(f"{self.flop() / 1e15:.4g}"),
            **made_here(self.device),
            "processes": self.world.size,
            "precision": self.precision,
            "minutes": round(self.elapsed / 60, 2),
            "commit": self.commit,
            "validation": rows,
            "measured": self.tracker.summary(rows),
            "recalibrated": recalibrated,
            "before": self.before,  # the training of the weights that this one started from
        }
        save(model, self.out / "weights.safetensors", preprocessing=self.task.preprocessing, training=result)
        with replacing(self.out / "result.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
        return result

    def flop(self) -> float:
        """Floating-point operations of the convolutions so far: three times the expected forward pass (one for the forward, two
        for the backward pass), and the teacher's forward pass."""
        cost = [6 * macs(self.model, n, self.size) for n in self.model.settings]
        return self.iteration * self.recipe.batch * (self.expected(cost) + 2 * self.teacher_macs)

    def expected(self, cost: Sequence[float]) -> float:
        """The mean cost of an iteration, from the cost of each of the network's settings."""
        return expected_cost(cost, self.probabilities, self.recipe.objective)
