"""What is measured, kept and said of a run along its way: log, figures on images held out, the best weights, divergence."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rcnet.runtime.results import HIGHER
from rcnet.tasks.task import Kind, Rows, Task
from rcnet.training.checkpoint import add_line
from rcnet.training.console import Board, Progress, clock_text
from rcnet.training.recipe import Recipe

GROWTH = 1000.0  # factor on the lowest loss, and on the first norm of the weights, above which a run has diverged
SMOOTH = 0.02  # weight of one iteration in the loss that is compared: a single odd batch is no divergence


class Tracker:
    """`state` is part of the checkpoint. A figure is the mean of the task's metric over all settings and noise levels.

    Args:
        model: the network at the start.
        out: the folder of the run, for its log; None in a process that does not write.
    """

    def __init__(self, recipe: Recipe, kind: Kind, task: Task, model: nn.Module, out: Path | None) -> None:
        self.recipe, self.kind, self.task, self.out = recipe, kind, task, out
        self.times = recipe.evaluations if recipe.measures and task.held else 0
        self.progress = Progress(False)
        self.board: Board | None = None
        self.state: dict[str, Any] = {
            "losses": [],  # since the last line of the log
            "logged": 0.0,  # seconds, at that line
            "loss": None,  # smoothed
            "lowest": math.inf,  # smoothed loss
            "limit": GROWTH * max(1.0, norm_of(model)),  # of the norm of the weights
            "before": None,  # the figure of the weights that the run started from
            "figures": [],  # iteration and figure of each measurement along the run
            "best": None,  # iteration and figure of the best
            "weights": None,  # its weights
            "frozen": recipe.frozen,  # last fraction of the run in which statistics stand still
        }

    def show(self, progress: Progress, board: Board | None) -> None:
        """From now on progress is shown here, and figures on TensorBoard."""
        self.progress, self.board = progress, board

    def say(self, line: str) -> None:
        """Prints a line on stderr, once for all processes."""
        if self.out:
            print(f"rcnet: {line}", file=sys.stderr)

    def problem(self, iteration: int, loss: float, model: nn.Module) -> str:
        """How the run has diverged, in words; "" if it has not."""
        state = self.state
        state["losses"].append(loss)
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        state["loss"] = loss if state["loss"] is None else (1 - SMOOTH) * state["loss"] + SMOOTH * loss
        state["lowest"] = min(state["lowest"], state["loss"])
        if state["loss"] > GROWTH * state["lowest"] > 0:
            return f"the loss is {state['loss']:.3g}, after {state['lowest']:.3g}"
        return "" if iteration % 16 else self.growth(model)  # not each time: on a GPU it waits

    def growth(self, model: nn.Module) -> str:
        """How the weights have diverged, in words; "" if they have not."""
        norm = norm_of(model)
        return "" if norm <= self.state["limit"] else f"the norm of the weights is {norm:.3g}"

    def log(self, iteration: int, elapsed: float, done: float) -> None:
        """Shows the progress and, every `log_every` iterations and at the end, logs the mean loss since the last line."""
        state, text = self.state, f"iteration {iteration}, loss {self.state['loss']:.4g}"
        if state["figures"]:
            text += f", {self.words(state['figures'][-1][1])} held out"
        self.progress(done, f"{text}, {clock_text(elapsed / max(done, 1e-9) * (1 - done))} left")
        if iteration % self.recipe.log_every and done < 1:
            return
        count, seconds = len(state["losses"]), max(elapsed - state["logged"], 1e-9)
        line = {
            "iteration": iteration,
            "loss": round(sum(state["losses"]) / count, 6),
            "images_per_s": round(count * self.recipe.batch / seconds, 1),
            "elapsed": round(elapsed, 1),
        }
        state |= {"losses": [], "logged": elapsed}
        if self.out:
            add_line(self.out / "log.jsonl", line)
        if self.board:
            self.board.add(iteration, line)

    def is_due(self, done: float) -> bool:
        """Whether a measurement is due when this fraction of the run is done."""
        return int(done * self.times + 1e-9) > len(self.state["figures"])

    def measured(self, iteration: int, rows: Rows, model: nn.Module) -> None:
        """Records a measurement: of the weights that the run starts from, or along the run; keeps the weights of the best."""
        state, figure = self.state, self.figure(rows)
        if figure is None:
            return
        if iteration == 0:
            state["before"] = figure
            held = self.task.held
            images = f"{held} image{'s' * (held > 1)} held out" if held else "the test images"
            optimizer = self.recipe.optimizer
            self.say(f"{self.recipe.init}: {self.words(figure)} on {images}; trained by {optimizer.name}, lr {optimizer.lr:g}")
        else:
            state["figures"].append([iteration, figure])
            if not state["best"] or self.is_better(figure, state["best"][1]):
                state["best"] = [iteration, figure]
                state["weights"] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if self.out:
            add_line(self.out / "log.jsonl", {"iteration": iteration, self.kind.metric: round(figure, 4)})
        if self.board:
            self.board.add_rows(iteration, rows)

    def figure(self, rows: Rows) -> float | None:
        return float(np.mean([row[self.kind.metric] for row in rows])) if rows else None

    def words(self, figure: float) -> str:
        return f"{self.kind.metric} {figure:.3f} {self.kind.unit.split()[0]}"

    def is_better(self, figure: float, other: float) -> bool:
        return figure > other if self.kind.metric in HIGHER else figure < other

    @property
    def stops(self) -> bool:
        """Whether the last `early_stop` measurements were no better than one before."""
        figures, patience = self.state["figures"], self.recipe.early_stop
        return bool(patience and figures) and all(i > self.state["best"][0] for i, _ in figures[-patience:])

    def summary(self, rows: Rows) -> dict[str, Any] | None:
        """The measurements, for `result.json`; None without any. `rows`: of the weights that are saved."""
        state = self.state
        if state["before"] is None and not state["figures"]:
            return None
        return {
            "metric": self.kind.metric,
            "before": state["before"],
            "after": self.figure(rows),
            "best": state["best"],
            "along": state["figures"],
        }


def norm_of(model: nn.Module) -> float:
    """The Euclidean norm of all parameters."""
    return float(torch.nn.utils.get_total_norm(list(model.parameters())))
