"""The training loop: Alg. 2, resumable at any iteration.

Every random draw of an iteration comes from (seed, iteration) alone, so that a checkpoint needs no generator's state and a
run of so many iterations that was killed and resumed ends with the weights of one left alone. (A run of so many minutes goes
on with the time that it has left: how many iterations that makes depends on the machine.)
"""

import copy
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rcnet.cell import Choice, RecurrentNet, batch_norms, evaluating
from rcnet.cost.counting import macs
from rcnet.device import autocast, best_device, channels_last, hardware, keep_freed_memory, resolve_precision
from rcnet.errors import InputError
from rcnet.evaluation.recalibrate import recalibrate
from rcnet.models.early_exit import EarlyExitNet
from rcnet.models.files import load, read_metadata, save
from rcnet.models.registry import create_model
from rcnet.replacing import replacing
from rcnet.training.checkpoint import cut_log, read_checkpoint, write_checkpoint
from rcnet.training.optimizer import make_optimizers, set_learning_rate
from rcnet.training.parallel import average, join, leave, share
from rcnet.training.recipe import Recipe
from rcnet.training.steps import check_probabilities, draw_steps, expected_cost, offer
from rcnet.training.tasks import Batch, Task, make_task
from rcnet.training.teaching import Teacher, make_teacher

FILES = ("checkpoint.pt", "log.jsonl", "weights.safetensors", "result.json")


def learning_rate_factor(progress: float, warmup: float, decay: float) -> float:
    """The schedule at `progress` in [0, 1] of the run: linear warm-up, constant, then a half cosine to zero."""
    rise = min(1.0, progress / warmup) if warmup > 0 else 1.0
    fall = (progress - (1 - decay)) / decay if decay > 0 else 0.0
    return rise * 0.5 * (1 + math.cos(math.pi * min(max(fall, 0.0), 1.0)))


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

    `out` then holds `weights.safetensors` (the average of the weights if the recipe keeps one), `result.json`, `log.jsonl` and
    `checkpoint.pt`. Ctrl-C writes a checkpoint first, then raises KeyboardInterrupt. Under `torchrun` each process takes its
    share of every batch; only the first writes, and the others return {}.

    Args:
        resume: go on from `out/checkpoint.pt`; a folder without one starts anew, and a finished run returns its result.
        progress: show a progress bar on stderr.
        tensorboard: also log to TensorBoard, in `out`.
        clock: the seconds that the recipe's `minutes` are counted in; `time.process_time` counts those of the processor, so that
            runs on a busy machine compare.

    Raises:
        InputError: the recipe or the data does not fit, `out` holds another run, or another process of this one has gone.
    """
    return Run(recipe, Path(data), Path(out), resume).go(progress, clock, tensorboard)


class Run:
    """One run's state: the network, its average, the optimizers and how far they are."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, resume: bool) -> None:
        recipe, found = of_init(recipe)
        self.recipe, self.out, self.commit = recipe, out, commit()
        self.checkpoint = out / "checkpoint.pt"
        self.device = best_device()
        self.world = join(self.device)
        self.writes = self.world.rank == 0
        if self.writes and not resume and any((out / name).exists() for name in FILES):
            raise InputError(f"{out} already holds a run: add --resume to go on with it, or choose another folder with --out")
        if recipe.batch % (self.world.size * recipe.accumulate):
            raise InputError(
                f"batch = {recipe.batch} does not divide into {self.world.size} processes x {recipe.accumulate} parts "
                "(accumulate): change one of them"
            )
        torch.manual_seed(recipe.seed)
        keep_freed_memory()
        self.precision = resolve_precision(recipe.precision, self.device)
        self.task: Task = make_task(recipe, data, self.device)
        model = create_model(**(recipe.model if found else {**self.task.config, **recipe.model}))
        offer(model, recipe.settings if recipe.settings != "unified" else found.get("settings", "unified"))
        self.task.prepare(model)
        x = self.task.batch(np.random.default_rng(0), 0)[0]
        check_batch(model, x[: recipe.batch // self.world.size // recipe.accumulate])
        self.size = (x.shape[-2], x.shape[-1])  # of the images, height and width in pixels
        self.model: RecurrentNet = channels_last(model.to(self.device))
        self.teacher: Teacher | None = None
        self.teacher_macs = 0
        if recipe.teacher:
            with torch.no_grad():
                given = evaluating(self.model)(x[:1])
            self.teacher, self.teacher_macs = make_teacher(recipe.teacher, x[:1], given.shape)
        self.probabilities = check_probabilities(recipe.probabilities, self.model.choices)
        self.iterations = recipe.iterations
        if recipe.epochs > 0:
            self.iterations = max(1, round(recipe.epochs * self.task.data["images"] / recipe.batch))
        self.before: dict[str, Any] | None = None
        if share(self.task.data["crc32"], self.world) != self.task.data["crc32"]:
            raise InputError(
                f"the data of process {self.world.rank} is not that of the first: all need the same images in {data}"
            )
        going_on = share(resume and self.checkpoint.exists(), self.world)
        if recipe.init and not going_on:
            source = start_from(recipe.init, self.model)
            self.model.load_state_dict(source.state_dict())
            self.before = source.metadata.get("training")
        if not going_on:  # else the checkpoint's
            self.model.load_state_dict(share(self.model.state_dict(), self.world))
        self.call: Callable[..., Tensor] = compiled(self.model) if recipe.compile else self.model
        self.optimizers = make_optimizers(self.model, recipe.optimizer)
        self.average: AveragedModel | None = None
        if recipe.ema:
            self.average = AveragedModel(self.model, multi_avg_fn=self.blend, use_buffers=True)  # type: ignore[no-untyped-call]
        self.iteration, self.elapsed, self.asked, self.stopped, self.frozen = 0, 0.0, False, False, False
        self.time: Callable[[], float] = lambda: self.elapsed
        if going_on:
            self.restore(share(read_checkpoint(self.checkpoint, self.identity()) if self.writes else None, self.world))
        if self.writes:
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{out} cannot be a folder of a run: {error.strerror}") from error
            cut_log(out / "log.jsonl", self.iteration)

    def blend(self, averages: Any, values: Any, count: Any) -> None:
        """The exponential average of the weights, with a decay that rises to the recipe's: a short run forgets its start, too."""
        decay = min(self.recipe.ema, (1 + self.iteration) / (10 + self.iteration))
        get_ema_multi_avg_fn(decay)(averages, values, count)  # type: ignore[no-untyped-call]

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed: all that its weights depend on."""
        recipe = self.recipe.to_dict()
        free = ("accumulate", "log_every", "checkpoint_minutes")
        return {key: value for key, value in recipe.items() if key not in free} | {
            "data": self.task.data["crc32"],
            "precision": self.precision,
        }

    def restore(self, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.iteration, self.elapsed, self.before = int(state["iteration"]), float(state["elapsed"]), state["before"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(f"{self.checkpoint} is damaged: delete it to start anew, or choose another folder") from error

    def keep(self) -> None:
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
            },
        )

    @property
    def done(self) -> float:
        """The part of the run that is behind, in [0, 1]."""
        if self.recipe.minutes > 0:
            return min(1.0, self.elapsed / (60 * self.recipe.minutes))
        return min(1.0, self.iteration / self.iterations)

    def go(self, progress: bool, clock: Callable[[], float], tensorboard: bool = False) -> dict[str, Any]:
        if self.done >= 1 and share((self.out / "result.json").exists(), self.world):
            leave()
            return read_result(self.out / "result.json") if self.writes else {}
        board = Board(self.out, self.iteration) if tensorboard and self.writes else None
        started, elapsed_before = clock(), self.elapsed
        self.time = lambda: elapsed_before + clock() - started
        kept = logged = self.elapsed
        losses: list[float] = []
        shape = "{percentage:5.1f}%|{bar:24}| {desc}"
        bar = progress_bar(total=1.0, initial=self.done, disable=None if progress and self.writes else True, bar_format=shape)
        log_file = self.out / "log.jsonl" if self.writes else Path(os.devnull)
        with bar, stopped_by_signals(self), log_file.open("a") as log:
            while self.done < 1 and not self.stopped:
                losses.append(self.step())
                if self.iteration % self.recipe.log_every == 0:
                    line = self.report(log, bar, losses, (self.elapsed - logged) / len(losses))
                    losses, logged = [], self.elapsed
                    if board:
                        board.add(self.iteration, line)
                if self.elapsed - kept > 60 * self.recipe.checkpoint_minutes:
                    self.keep()
                    kept = self.elapsed
            self.keep()
            bar.n = self.done
        if self.done < 1:
            if self.writes:
                print(f"stopped at iteration {self.iteration}; go on with --resume", file=sys.stderr)
            raise KeyboardInterrupt
        leave()
        if not self.writes:
            return {}
        result = self.finish()
        if board:
            for row in result["validation"]:
                figures = {f"{key} at steps {row['steps']}": value for key, value in row.items() if isinstance(value, float)}
                board.add(self.iteration, figures)
        return result

    def step(self) -> float:
        """One iteration of Alg. 2, the aggregated loss or the sandwich rule; returns the loss."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, self.iteration])
        weights = draw_steps(self.model.choices, self.probabilities, recipe.objective, rng)
        whole = self.task.batch(rng, self.iteration)
        share = len(whole.x) // self.world.size
        own = whole.part(self.world.rank * share, (self.world.rank + 1) * share)
        set_learning_rate(self.optimizers, learning_rate_factor(self.done, recipe.warmup, recipe.decay))
        self.model.train()
        if recipe.frozen and self.done >= 1 - recipe.frozen:
            self.freeze()
        total, size = 0.0, share // recipe.accumulate
        for start in range(0, share, size):
            total += self.backward(own.part(start, start + size), weights)
        # The clock is rank 0's, and a signal to one process stops all after the same iteration.
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
        """Batch norms in evaluation mode, with the running statistics of the average, which are those of more batches."""
        for norm in batch_norms(self.model):
            norm.eval()
        if self.average is not None and not self.frozen:
            for own, kept in zip(batch_norms(self.model), batch_norms(self.average.module), strict=True):
                own.load_state_dict({**own.state_dict(), "running_mean": kept.running_mean, "running_var": kept.running_var})
        self.frozen = True

    def backward(self, batch: Batch, weights: dict[Choice, float]) -> float:
        """Adds the gradients of one part of a batch; returns its share of the loss."""
        x, told = batch.x.contiguous(memory_format=torch.channels_last), {} if batch.sigma is None else {"sigma": batch.sigma}
        taught = None if self.teacher is None else batch._replace(target=self.task.teach(self.teacher(x, **told)))
        if self.together:
            return self.backward_together(x, batch, taught, weights)
        total = 0.0
        for place, (steps, weight) in enumerate(weights.items()):
            try:
                with autocast(self.precision, self.device):
                    output = self.call(x, steps, **told)
            except (TorchDynamoException, InductorError) as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"compile = true failed (on a CPU it needs a C++ compiler); leave it out: {reason}") from error
            loss = weight / self.recipe.accumulate * self.loss(output, batch, taught)
            if self.recipe.objective == "sandwich" and place == 0:
                batch = batch._replace(target=self.task.teach(output.detach()))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def loss(self, output: Tensor, batch: Batch, taught: Batch | None) -> Tensor:
        """Against the targets, and in part against those of the teacher."""
        if taught is None:
            return self.task.loss(output, batch)
        part = self.recipe.teacher_weight
        return (1 - part) * self.task.loss(output, batch) + part * self.task.loss(output, taught)

    @property
    def together(self) -> bool:
        """Whether one pass gives the outputs of all choices, and all are trained on."""
        return self.recipe.objective == "aggregated" and isinstance(self.model, EarlyExitNet)

    def backward_together(self, x: Tensor, batch: Batch, taught: Batch | None, weights: dict[Choice, float]) -> float:
        """As `backward`, of exits that are computed once."""
        model: Any = self.model
        with autocast(self.precision, self.device):
            outputs = model.exits(x)
        losses = [weight / self.recipe.accumulate * self.loss(outputs[n], batch, taught) for n, weight in weights.items()]
        loss = torch.stack(losses).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def report(self, log: Any, bar: Any, losses: list[float], seconds: float) -> dict[str, float]:
        mean, rate = sum(losses) / len(losses), self.recipe.batch / seconds
        left = self.elapsed / max(self.done, 1e-9) * (1 - self.done)
        line = {
            "iteration": self.iteration,
            "loss": round(mean, 6),
            "images_per_s": round(rate, 1),
            "elapsed": round(self.elapsed, 1),
        }
        log.write(json.dumps(line) + "\n")
        log.flush()
        bar.n = self.done
        clock = f"{int(left) // 3600}:{int(left) % 3600 // 60:02d}:{int(left) % 60:02d}"
        bar.set_description_str(f"iteration {self.iteration}, loss {mean:.4g}, {rate:.0f} images/s, {clock} left")
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
            "hardware": hardware(self.device),
            "processes": self.world.size,
            "precision": self.precision,
            "torch": torch.__version__,
            "minutes": round(self.elapsed / 60, 2),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
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
        """Floating-point operations of the convolutions so far: three times those of the forward, as steps are drawn, and the
        teacher's forward."""
        cost = [6 * macs(self.model, n, self.size) for n in self.model.choices]
        own = max(cost) if self.together else expected_cost(cost, self.probabilities, self.recipe.objective)
        return self.iteration * self.recipe.batch * (own + 2 * self.teacher_macs)

    def inputs(self) -> Iterator[Tensor]:
        """The batches that batch norms are recalibrated on."""
        for i in range(self.recipe.recalibrate):
            yield self.task.batch(np.random.default_rng([self.recipe.seed, 2, i]), i)[0]


def check_batch(model: RecurrentNet, x: Tensor) -> None:
    """`InputError` if the network cannot train on batches of this shape."""
    net = copy.deepcopy(model).to("meta").train()
    for n in net.choices:
        try:
            net(torch.empty_like(x, device="meta"), n)
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, x.shape))
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{model.architecture['name']} cannot train on batches of {shape} at {n} steps: {reason}") from error


def compiled(model: RecurrentNet) -> Callable[..., Tensor]:
    """The model with one compiled graph a step count."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(model.choices))
    return torch.compile(model, fullgraph=True, dynamic=False)


class NoBar(nullcontext[None]):
    """Stands for tqdm's bar where tqdm is not installed."""

    n = 0.0

    def set_description_str(self, text: str) -> None:
        pass


def progress_bar(**options: Any) -> Any:
    """tqdm's bar, or none where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return NoBar()
    return tqdm(**options)


class Board:
    """TensorBoard's log of a run."""

    def __init__(self, folder: Path, iteration: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("TensorBoard is not installed: pip install 'rcnet[tensorboard]'") from error
        self.writer: Any = SummaryWriter(str(folder), purge_step=iteration + 1)  # type: ignore[no-untyped-call]

    def add(self, iteration: int, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            if name != "iteration":
                self.writer.add_scalar(name, value, iteration)
        self.writer.flush()


def of_init(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the network of the weights that it starts from, and their metadata, where it names no network itself."""
    if "name" in recipe.model or not recipe.init:
        return recipe, {}
    found = read_metadata(recipe.init)
    architecture = found["architecture"]
    return dataclasses.replace(recipe, model={"name": architecture["name"], **architecture["config"], **recipe.model}), found


def start_from(name_or_path: str, model: RecurrentNet) -> RecurrentNet:
    """The weights that training starts from, or `InputError` if they are of another architecture."""
    source = load(name_or_path)
    if source.architecture != model.architecture:
        raise InputError(f"init = {name_or_path!r} holds {source.architecture}, and the recipe is for {model.architecture}")
    return source


@contextmanager
def stopped_by_signals(run: Run) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run between two iterations, where a checkpoint is exact; a second Ctrl-C ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: object) -> None:
        run.asked = True
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_result(path: Path) -> dict[str, Any]:
    """What a finished run wrote."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged: delete it, and --resume writes it again") from error


def commit() -> str | None:
    """The commit of the source tree that runs, with -dirty if it was changed, or None where this file is in no repository."""
    folder = str(Path(__file__).parent)
    try:
        subprocess.run(["git", "-C", folder, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        command = ["git", "-C", folder, "describe", "--always", "--dirty", "--exclude", "*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
