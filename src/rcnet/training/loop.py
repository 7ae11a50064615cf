"""The training loop: Alg. 2, resumable at any iteration.

All random draws of an iteration depend only on (seed, iteration). A checkpoint therefore needs no generator state, and a run
with a fixed number of iterations ends with the same weights whether or not it was killed and resumed. (A run with a time limit
resumes with the time that is left; the number of iterations depends on the machine.)
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rcnet.cell import batch_norms
from rcnet.cost.counting import macs
from rcnet.device import autocast, best_device, channels_last, keep_freed_memory, resolve_precision
from rcnet.errors import InputError
from rcnet.evaluation.recalibrate import recalibrate
from rcnet.models.files import save
from rcnet.network import RecurrentNet, evaluating
from rcnet.replacing import replacing
from rcnet.setting import Setting
from rcnet.tasks import task_of
from rcnet.tasks.task import Batch, Setup, Task
from rcnet.training.checkpoint import add_line, can_resume, cut_log, locked, read_checkpoint, read_result, write_checkpoint
from rcnet.training.console import Board, clock_text, progress_bar, stopped_by_signals
from rcnet.training.optimizer import learning_rate_factor, make_optimizers, set_learning_rate
from rcnet.training.parallel import average, join, leave, share
from rcnet.training.provenance import commit, made_here
from rcnet.training.recipe import Recipe, fixed
from rcnet.training.start import about_before, check_batch, compiled, new_network, take_weights, with_init_model
from rcnet.training.steps import check_probabilities, draw_steps, expected_cost
from rcnet.training.teaching import Teacher, make_teacher


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
        OSError: a file cannot be written, e.g. because the disk is full; the last checkpoint is intact.
    """
    return Trainer(recipe, Path(data), Path(out), resume).go(progress, clock, tensorboard)


class Trainer:
    """The state of one run: the network, its average, the optimizers and the progress."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, resume: bool) -> None:
        recipe, found = with_init_model(recipe)
        self.recipe, self.out, self.resume, self.commit = recipe, out, resume, commit()
        self.checkpoint = out / "checkpoint.pt"
        self.device = best_device()
        self.world = join(self.device)
        self.writes = self.world.rank == 0
        resumes = share(self.writes and can_resume(out, resume), self.world)
        if recipe.batch % (self.world.size * recipe.accumulate):
            raise InputError(
                f"batch = {recipe.batch} cannot be divided evenly among {self.world.size} processes x {recipe.accumulate} parts "
                "(accumulate): change one of them"
            )
        self.kind = task_of(recipe.model)
        about = about_before(recipe, found)
        section = self.kind.settled(recipe.sections[self.kind.key], about)
        self.recipe = recipe = dataclasses.replace(recipe, sections={**recipe.sections, self.kind.key: section})
        torch.manual_seed(recipe.seed)
        keep_freed_memory()
        self.precision = resolve_precision(recipe.precision, self.device)
        setup = Setup(data, self.device, about, recipe.batch, recipe.seed, recipe.precision)
        self.task: Task = self.kind.begin(recipe.sections[self.kind.key], setup)
        model = new_network(recipe, self.task, found)
        x = self.task.batch(np.random.default_rng(0), 0)[0]
        check_batch(model, x[: recipe.batch // self.world.size // recipe.accumulate])
        self.size = (x.shape[-2], x.shape[-1])  # of the images, height and width in pixels
        self.model: RecurrentNet = channels_last(model.to(self.device))
        self.teacher: Teacher | None = None
        self.teacher_macs = 0
        if recipe.teacher:
            with torch.no_grad():
                given = evaluating(self.model)(x[:1])
            self.teacher, self.teacher_macs = make_teacher(recipe.teacher, x[:1], given.shape, self.model.about.classes)
        self.probabilities = check_probabilities(recipe.probabilities, self.model.settings)
        self.iterations = recipe.iterations
        if recipe.epochs > 0:
            self.iterations = max(1, round(recipe.epochs * self.task.data["images"] / recipe.batch))
        self.before: dict[str, Any] | None = None
        if share(self.task.data["crc32"], self.world) != self.task.data["crc32"]:
            raise InputError(f"process {self.world.rank} has other data than process 0: all need the same images in {data}")
        if recipe.init and not resumes:
            self.before, fresh = take_weights(recipe.init, self.model)
            if fresh and self.writes:
                print(
                    f"rcnet: init = {recipe.init!r} has no weights for {fresh}, which start from fresh weights", file=sys.stderr
                )
        if not resumes:  # else from the checkpoint
            self.model.load_state_dict(share(self.model.state_dict(), self.world))
        self.call: Callable[..., Tensor] = compiled(self.model) if recipe.compile else self.model
        self.optimizers = make_optimizers(self.model, recipe.optimizer)
        self.average: AveragedModel | None = None
        if recipe.ema:
            self.average = AveragedModel(self.model, multi_avg_fn=self.blend, use_buffers=True)  # type: ignore[no-untyped-call]
        self.iteration, self.elapsed, self.asked, self.stopped, self.frozen = 0, 0.0, False, False, False
        self.time: Callable[[], float] = lambda: self.elapsed
        self.losses: list[float] = []  # since the last line of the log
        self.logged = 0.0  # seconds, at that line

    def blend(self, averages: Any, values: Any, count: Any) -> None:
        """The exponential average of the weights. The decay rises to the recipe's, so that short runs forget their start."""
        decay = min(self.recipe.ema, (1 + self.iteration) / (10 + self.iteration))
        get_ema_multi_avg_fn(decay)(averages, values, count)  # type: ignore[no-untyped-call]

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
            self.losses, self.logged = list(state.get("losses", [])), float(state.get("logged", self.elapsed))
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(f"{self.checkpoint} is damaged: delete it to start again, or choose another folder") from error

    def keep(self) -> None:
        if not self.writes:
            return
        write_checkpoint(
            self.checkpoint,
            {
                "run": self.identity(),
                "iteration": self.iteration,
                "elapsed": self.elapsed,
                "losses": self.losses,
                "logged": self.logged,
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "before": self.before,
                "average": None if self.average is None else self.average.state_dict(),
            },
        )

    @property
    def done(self) -> float:
        """The fraction of the run that is done, in [0, 1]."""
        if self.recipe.minutes > 0:
            return min(1.0, self.elapsed / (60 * self.recipe.minutes))
        return min(1.0, self.iteration / self.iterations)

    def go(self, progress: bool, clock: Callable[[], float], tensorboard: bool = False) -> dict[str, Any]:
        """Trains to the end while the folder is locked."""
        with locked(self.out) if self.writes else nullcontext():
            if share(self.writes and can_resume(self.out, self.resume), self.world):
                self.restore(share(read_checkpoint(self.checkpoint, self.identity()) if self.writes else None, self.world))
            if self.writes:
                cut_log(self.out / "log.jsonl", self.iteration)
            return self.to_the_end(progress, clock, tensorboard)

    def to_the_end(self, progress: bool, clock: Callable[[], float], tensorboard: bool) -> dict[str, Any]:
        whole = all((self.out / name).exists() for name in ("result.json", "weights.safetensors"))
        if self.done >= 1 and share(whole, self.world):
            leave()
            return read_result(self.out / "result.json") if self.writes else {}
        board = Board(self.out, self.iteration) if tensorboard and self.writes else None
        started, elapsed_before = clock(), self.elapsed
        self.time = lambda: elapsed_before + clock() - started
        kept = self.elapsed
        bar = progress_bar(self.done, progress and self.writes)
        with bar, stopped_by_signals(self.stop):
            while self.done < 1 and not self.stopped:
                self.losses.append(self.step())
                if self.iteration % self.recipe.log_every == 0:
                    line = self.report(bar)
                    if board:
                        board.add(self.iteration, line)
                if self.elapsed - kept > 60 * self.recipe.checkpoint_minutes:
                    self.keep()
                    kept = self.elapsed
            self.keep()
            bar.n = self.done
        if self.done < 1:
            if self.writes:
                print(f"stopped at iteration {self.iteration}; continue with --resume", file=sys.stderr)
            raise KeyboardInterrupt
        leave()
        if not self.writes:
            return {}
        result = self.finish()
        if board:
            board.add_rows(self.iteration, result["validation"])
        return result

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
        if recipe.frozen and self.done >= 1 - recipe.frozen:
            self.freeze()
        total, size = 0.0, share // recipe.accumulate
        for start in range(0, share, size):
            total += self.backward(mine.part(start, start + size), weights)
        # All use the clock of rank 0, and a signal to one process stops all after the same iteration.
        clock = self.time() if self.writes else 0.0
        total, self.elapsed, stops = average(self.model, self.world, [total / self.world.size, clock, float(self.asked)])
        self.stopped = stops > 0
        if not math.isfinite(total):
            raise InputError(f"the loss is {total} at iteration {self.iteration}: lower the learning rate or the clip")
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
        total = 0.0
        for i, (setting, weight) in enumerate(weights.items()):
            try:
                with autocast(self.precision, self.device):
                    output = self.call(x, setting.to_json(), **kwargs)
            except (TorchDynamoException, InductorError) as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"compile = true failed (on a CPU it needs a C++ compiler); leave it out: {reason}") from error
            loss = weight / self.recipe.accumulate * self.loss(output, batch, taught)
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

    def report(self, bar: Any) -> dict[str, float]:
        """Shows and logs the mean loss since the last time."""
        count, seconds = len(self.losses), max(self.elapsed - self.logged, 1e-9)
        mean, rate = sum(self.losses) / count, count * self.recipe.batch / seconds
        left = self.elapsed / max(self.done, 1e-9) * (1 - self.done)
        line = {
            "iteration": self.iteration,
            "loss": round(mean, 6),
            "images_per_s": round(rate, 1),
            "elapsed": round(self.elapsed, 1),
        }
        self.losses, self.logged = [], self.elapsed
        if self.writes:
            add_line(self.out / "log.jsonl", line)
        bar.n = self.done
        bar.set_description_str(f"iteration {self.iteration}, loss {mean:.4g}, {rate:.0f} images/s, {clock_text(left)} left")
        return line

    def finish(self) -> dict[str, Any]:
        model: Any = self.model if self.average is None else self.average.module
        model.architecture = self.model.architecture
        rows, recalibrated = self.task.evaluate(model), None
        if self.recipe.recalibrate:
            recalibrate(model, self.inputs(), self.probabilities)
            recalibrated, rows = {"before": rows}, self.task.evaluate(model)
            recalibrated["after"] = rows
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

    def inputs(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        """The batches for recalibrating batch norms, with noise levels as in training."""
        for i in range(self.recipe.recalibrate):
            batch = self.task.batch(np.random.default_rng([self.recipe.seed, 2, i]), i)
            yield batch.x if batch.sigma is None else (batch.x, batch.sigma)
