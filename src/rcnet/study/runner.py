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
from pathlib import Path
from typing import Any

import torch

from rcnet.data.images import read_folder
from rcnet.device import best_device, hardware
from rcnet.errors import InputError
from rcnet.evaluation.denoise import denoising_results
from rcnet.models.files import load
from rcnet.replacing import replacing
from rcnet.study.paper import CIFAR
from rcnet.study.plan import Folders, Run, State, held, kept_result, label, result_text
from rcnet.study.profiles import find_profile
from rcnet.training.loop import commit, train

Say = Callable[[str], object]


def perform(run: Run, folders: Folders, progress: bool = True) -> dict[str, Any]:
    """Trains and measures one run, going on where it stood, and writes its result file; returns what that holds.

    A run whose loss or whose weights stop being finite is recorded as "diverged", without rows.

    Raises:
        InputError: the data is not there or does not fit, or another process is at the run.
        KeyboardInterrupt: it was stopped; its checkpoint is kept.
    """
    path, work = run.result(folders), run.work(folders)
    with held(work):
        if finished := kept_result(path):
            return finished
        recipe = run.recipe(folders)
        training: dict[str, Any] = {}
        try:
            training = train(recipe, run.source(folders), work, resume=True, progress=progress)
            rows = training["validation"] if run.data in CIFAR else denoising_rows(run, folders)
            status = "done"
        except InputError as error:
            if not (str(error).startswith("the loss is ") or "diverged" in str(error)):
                raise
            rows, status = [], "diverged"
        result = {
            "network": run.network,
            "data": run.data,
            "seed": run.seed,
            "profile": run.profile,
            "status": status,
            "rows": rows,
            "recipe": recipe.to_dict(),
            "training_data": training.get("data"),
            **{key: training.get(key) for key in ("iterations", "epochs", "pflop", "minutes", "precision", "torch", "finished")},
            "hardware": training.get("hardware", hardware(best_device())),
            "commit": training.get("commit", commit()),
        }
        write_json(path, result)
    return result


def denoising_rows(run: Run, folders: Folders) -> list[dict[str, Any]]:
    """PSNR and SSIM of a trained denoiser on the test images in gray, by the protocol of BSD68."""
    model = load(run.work(folders) / "weights.safetensors").to(best_device())
    images = read_folder(folders.bsd / "test", 1)
    count, side = find_profile(run.profile).test
    if count:
        images = [image[:side, :side] for image in images[:count]]
    sigma = float(run.data.removeprefix("bsd"))
    return [{"sigma": sigma, **row} for row in denoising_results(model, images, sigma, model.steps)]


def write_json(path: Path, value: object) -> None:
    """Writes to a temporary file, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def cheapest_first(states: Sequence[State]) -> list[State]:
    """What is missing, in the order of running: first seeds first, then the least work left for a table or figure served."""
    missing = [state for state in states if state.result is None]
    return sorted(missing, key=lambda s: (s.run.seed, s.pflop * (1 - s.done) / len(s.places)))


def execute(states: Sequence[State], folders: Folders, *, jobs: int = 1, minutes: float | None = None, say: Say = print) -> bool:
    """Runs what is missing; returns whether all is done, False where `minutes` had passed before.

    Ctrl-C, and SIGTERM with more than one job, stop every run at a checkpoint; so does the end of `minutes`.

    Args:
        jobs: so many runs side by side, in processes of their own; on a CPU they divide the threads.
        say: is told what begins and ends.

    Raises:
        InputError: jobs below 1, or what a run raises; with more than one job, after the others have been done.
    """
    if jobs < 1 or (minutes is not None and minutes <= 0):
        raise InputError(f"jobs = {jobs}, max minutes = {minutes} are not valid: jobs from 1, minutes above 0")
    deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    queue = cheapest_first(states)
    for state in [state for state in queue if state.busy]:
        say(f"{state.run.name}: left to the process that is at it")
        queue.remove(state)
    do = one_by_one if jobs == 1 else run_at_once
    return do(queue, folders, jobs, deadline, say)


def one_by_one(queue: Sequence[State], folders: Folders, jobs: int, deadline: float, say: Say) -> bool:
    """Runs in this process."""
    with interrupted_at(deadline) as passed:
        try:
            for place, state in enumerate(queue, start=1):
                if passed():
                    return False
                say(f"[{place}/{len(queue)}] {label(state.run)} ({state.run.name})")
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
    timer.start()
    try:
        yield passed
    finally:
        timer.cancel()


def run_at_once(queue: Sequence[State], folders: Folders, jobs: int, deadline: float, say: Say) -> bool:
    """Runs in `jobs` processes; what each prints is in output.txt in the folder of the run."""
    waiting, running, failed, count = list(queue), dict[int, tuple[State, "subprocess.Popen[bytes]"]](), [], 0
    with sigterm_as_interrupt():
        try:
            while (waiting or running) and time.monotonic() < deadline:
                for slot in range(jobs):
                    if waiting and slot not in running:
                        count, state = count + 1, waiting.pop(0)
                        say(f"[{count}/{len(queue)}] {label(state.run)} ({state.run.name})")
                        running[slot] = (state, start(state.run, folders, slot, jobs))
                time.sleep(0.1)
                for slot, (state, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        result = kept_result(state.run.result(folders))
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
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}
    if torch.cuda.device_count() > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    command = [sys.executable, "-m", "rcnet.study", "run", "--profile", run.profile, "--only", run.name]
    for name in ("cifar", "bsd", "results", "runs"):
        command += [f"--{name}", str(getattr(folders, name))]
    with (work / "output.txt").open("ab") as output:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "failed without a word")
