"""How far each run is, and whether a process is at it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paper.costs import planned_iterations, training_flop
from paper.runs import Folders, Run, Runs, kept_result
from rcnet.errors import InputError
from rcnet.training.checkpoint import locked
from rcnet.training.recipe import Recipe

LOCK = "lock"  # of a process that trains a run and measures it


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        places: the tables, figures and sections that need it.
        done: the part that its checkpoint holds, in [0, 1]; 1 also where only the measurement is missing.
        busy: a process is at it.
        result: what its result file holds.
        pflop: of the whole run, convolutions and linear layers, forward and backward.
        problem: what is wrong with its result file.
    """

    run: Run
    places: tuple[str, ...]
    done: float
    busy: bool
    result: dict[str, Any] | None
    pflop: float
    problem: str = ""

    @property
    def text(self) -> str:
        if self.problem:
            return "invalid result"
        if self.result is not None:
            return "done" if self.result["status"] == "done" else self.result["status"]
        begun = f"at {100 * self.done:.0f}%" if self.done else "not started"
        return f"running, {begun}" if self.busy else begun


def survey(runs: Runs, folders: Folders) -> list[State]:
    """The state of each run."""
    return [state_of(run, places, folders) for run, places in runs.items()]


def state_of(run: Run, places: tuple[str, ...], folders: Folders) -> State:
    recipe = run.recipe(folders)
    result, problem = None, ""
    try:
        result = kept_result(run, folders)
    except InputError as error:
        problem = str(error)
    done = 1.0 if result else progress_of(run, recipe, folders)
    busy = not result and is_taken(run.work(folders))
    return State(run, places, done, busy, result, training_flop(run, recipe) / 1e15, problem)


def progress_of(run: Run, recipe: Recipe, folders: Folders) -> float:
    """The part of a run that its checkpoint holds; 0 without a readable one."""
    try:
        state = torch.load(run.work(folders) / "checkpoint.pt", map_location="cpu", weights_only=True, mmap=True)
        return min(1.0, int(state["iteration"]) / planned_iterations(recipe))
    except Exception:  # torch.load raises almost anything on a broken file; the run itself will say what is wrong
        return 0.0


def is_taken(work: Path) -> bool:
    """Whether a process holds the run."""
    if not (work / LOCK).exists():
        return False
    try:
        with locked(work, LOCK, tries=1):
            return False
    except InputError:
        return True
