"""Doing what is missing: one run after the other, or several side by side, each in a process of its own."""

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from paper.measure import measure, read_along, settled, watched
from paper.runs import Folders, Run, kept_result, result_text
from paper.scales import find_scale
from paper.states import LOCK, State, is_taken
from paper.training import train_exits
from paper.ways import SHARED, measure_ways
from rcnet.device import best_device, hardware
from rcnet.errors import InputError
from rcnet.replacing import replacing
from rcnet.training.checkpoint import locked
from rcnet.training.loop import train
from rcnet.training.provenance import commit

Say = Callable[[str], object]
FIRST = ("cifar10", {"Table 1", "Table 2", "Table 4"})  # the paper's three contributions, on the data that takes least


def perform(run: Run, folders: Folders, progress: bool = True) -> dict[str, Any]:
    """Trains and measures one run, going on where it stood, and writes its result file; returns what that holds.

    A run whose loss or whose weights stop being finite is recorded as "diverged", without rows.

    Raises:
        InputError: the data is not there or does not fit, another process is at the run, or the sources have changes that no
            commit holds.
        KeyboardInterrupt: it was stopped; its checkpoint is kept.
    """
    work = run.work(folders)
    with locked(work, LOCK):
        if finished := kept_result(run, folders):
            return finished
        recipe, commits = run.recipe(folders), sign(run, work)
        training: dict[str, Any] = {}
        try:
            go = train_exits if run.network.endswith("-exits") else train
            with watched(run, folders):
                training = go(recipe, run.source(folders), work, resume=True, progress=progress)
            rows, status = measure(run, folders), "done"
        except InputError as error:
            if not (str(error).startswith("the loss is ") or "diverged" in str(error)):
                raise
            rows, status = [], "diverged"
        along, raw = (read_along(work / "along.jsonl", weights) for weights in ("psnr", "raw"))
        result = {
            "network": run.network,
            "data": run.data,
            "seed": run.seed,
            "scale": run.scale,
            "status": status,
            "rows": rows,
            "evaluated_in": "fp32",
            **({} if run.classifies else {"along": along, "along_raw": raw, "settled": settled(raw)}),
            **({"ways": measure_ways(run, recipe, folders)} if status == "done" and run.network in SHARED else {}),
            "recipe": recipe.to_dict(),
            "training_data": training.get("data"),
            **{key: training.get(key) for key in ("iterations", "epochs", "pflop", "minutes", "precision", "torch", "finished")},
            "hardware": training.get("hardware", hardware(best_device())),
            "commit": commits,
        }
        write_json(run.result(folders), result)
    return result


def sign(run: Run, work: Path) -> str | None:
    """Notes the commit that goes on with the run; returns all that were at it.

    Raises:
        InputError: the sources have changes that no commit holds, at a scale whose results are kept.
    """
    now = commit()
    if find_scale(run.scale).official and now and now.endswith("-dirty"):
        raise InputError(f"the sources have changes that no commit holds ({now}): commit them, so that a result names its code")
    path = work / "commits"
    before = path.read_text().split() if path.exists() else []
    if now and now not in before:
        before.append(now)
        path.write_text("\n".join(before) + "\n")
    return ", ".join(before) or None


def write_json(path: Path, value: object) -> None:
    """Writes to a temporary file, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def in_order(states: Sequence[State]) -> list[State]:
    """What is missing, in the order of running: first seeds first, `FIRST` of those, then the least work for a place served."""
    missing = [state for state in states if state.result is None]

    def later(s: State) -> bool:
        return s.run.data != FIRST[0] or not FIRST[1] & set(s.places)

    return sorted(missing, key=lambda s: (s.run.seed, later(s), s.pflop * (1 - s.done) / len(s.places)))


def execute(states: Sequence[State], folders: Folders, *, jobs: int = 1, minutes: float | None = None, say: Say = print) -> bool:
    """Runs what is missing; returns whether all is done, False where `minutes` had passed before.

    Ctrl-C, and SIGTERM with more than one job, stop every run at a checkpoint; so does the end of `minutes`.

    Args:
        jobs: so many runs side by side, in processes of their own; on a CPU they divide the threads.
        say: is told what begins and ends.

    Raises:
        InputError: jobs below 1, or what a run raises; with more than one job, and where a result file
            is none, after the others have been done.
    """
    if jobs < 1 or (minutes is not None and minutes <= 0):
        raise InputError(f"jobs = {jobs}, max minutes = {minutes} are not valid: jobs from 1, minutes above 0")
    deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    queue = in_order(states)
    for state in [state for state in queue if state.problem]:
        say(f"{state.run.name}: {state.problem}")
        queue.remove(state)
    done = (one_by_one if jobs == 1 else run_at_once)(queue, folders, jobs, deadline, say)
    if problem := next((state.problem for state in states if state.problem), ""):
        raise InputError(problem)
    return done


def taken(state: State, folders: Folders, say: Say) -> bool:
    """Whether another process is at the run or has done it since; says so."""
    if is_taken(state.run.work(folders)):
        say(f"{state.run.name}: left to the process that is at it")
        return True
    if kept_result(state.run, folders):
        say(f"{state.run.name}: done by another process")
        return True
    return False


def one_by_one(queue: Sequence[State], folders: Folders, jobs: int, deadline: float, say: Say) -> bool:
    """Runs in this process."""
    with interrupted_at(deadline) as passed:
        try:
            for place, state in enumerate(queue, start=1):
                if passed():
                    return False
                if taken(state, folders, say):
                    continue
                say(f"[{place}/{len(queue)}] {state.run.label} ({state.run.name})")
                say(f"    {result_text(perform(state.run, folders))}")
        except KeyboardInterrupt:
            if not passed():
                raise
            return False
    return True


@contextmanager
def interrupted_at(deadline: float) -> Iterator[Callable[[], bool]]:
    """Raises KeyboardInterrupt in the main thread, as Ctrl-C does, once the deadline has passed; gives whether it has."""

    def passed() -> bool:
        return time.monotonic() >= deadline

    if deadline == float("inf"):
        yield passed
        return
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _thread.interrupt_main)
    timer.daemon = True
    with as_interrupt(signal.SIGINT):  # which scripts have what they start in the background ignore
        timer.start()
        try:
            yield passed
        finally:
            timer.cancel()


def run_at_once(queue: Sequence[State], folders: Folders, jobs: int, deadline: float, say: Say) -> bool:
    """Runs in `jobs` processes; what each prints is in output.txt in the folder of the run."""
    waiting, running, failed, count = list(queue), dict[int, tuple[State, "subprocess.Popen[bytes]"]](), [], 0
    with as_interrupt(signal.SIGTERM):
        try:
            while (waiting or running) and time.monotonic() < deadline:
                for slot in range(jobs):
                    if waiting and slot not in running:
                        count, state = count + 1, waiting.pop(0)
                        if taken(state, folders, say):
                            continue
                        say(f"[{count}/{len(queue)}] {state.run.label} ({state.run.name})")
                        running[slot] = (state, start(state.run, folders, slot, jobs))
                time.sleep(0.1)
                for slot, (state, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        result = kept_result(state.run, folders)
                        if result is None:
                            failed.append(state.run.name)
                        say(f"    {state.run.name}: {result_text(result) or last_line(state.run.work(folders) / 'output.txt')}")
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
    if failed:
        raise InputError(f"{len(failed)} runs failed, e.g. {failed[0]}: see output.txt in their folders below {folders.runs}")
    return not waiting and not running


def start(run: Run, folders: Folders, slot: int, jobs: int) -> "subprocess.Popen[bytes]":
    """One run in a process of its own, with its share of the threads and, where there are several GPUs, one of them."""
    work = run.work(folders)
    work.mkdir(parents=True, exist_ok=True)
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs)),
        "PYTHONPATH": os.pathsep.join(paths),  # no package that is installed
    }
    if torch.cuda.device_count() > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    what = json.dumps({"run": asdict(run), "folders": {key: str(folder) for key, folder in asdict(folders).items()}})
    command = [sys.executable, "-c", "import sys; from paper.runner import job; job(sys.argv[1])", what]
    with (work / "output.txt").open("ab") as output:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def job(what: str) -> None:
    """One run, in the process that `start` made for it."""
    told = json.loads(what)
    try:
        perform(Run(**told["run"]), Folders(**{key: Path(folder) for key, folder in told["folders"].items()}))
    except InputError as error:
        sys.exit(f"paper: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def as_interrupt(number: signal.Signals) -> Iterator[None]:
    """A signal raises KeyboardInterrupt in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "failed without a word")
