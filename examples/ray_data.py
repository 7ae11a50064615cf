"""Ray Data: a folder or a bucket of pictures without their noise, by workers on this machine or on a cluster.

    pip install rcnet 'ray[data]'
    python examples/ray_data.py photos/ clean/ --workers 2
    RAY_ADDRESS=auto python examples/ray_data.py s3://bucket/photos s3://bucket/clean --workers 64
    python examples/ray_data.py photos/ clean/ --measure

Each worker is an actor that holds the networks, with one core and thread (or a part of a GPU: --gpus 0.5). A result has the
name of its picture and appears when it is whole. Start the same command again after an end of any kind: what is done is not
done again. If a worker dies, Ray starts another, which does what the first had not done. Pictures that fail are listed in
TARGET/failed.txt, and the exit status is 1. --measure does the first pictures (64, or --measure N) in one process and then with
the workers, and prints pictures per second; it needs an empty target.
"""

import argparse
import dataclasses
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
from pyarrow import fs
from ray.data import ActorPoolStrategy, DataContext
from tqdm import tqdm

from rcnet.data import imagefile
from rcnet.deploy.sessions import COLOUR, GRAY, open_session
from rcnet.runtime.denoise import Work, denoise_pixels
from rcnet.runtime.picture import prepare
from rcnet.runtime.session import Session

BLOCK = 64  # pictures that a worker gets at once, at most
RETRIES = 3  # of a block whose workers die
FAILED = "failed.txt"


class Place:
    """A folder or a bucket: a path, or a URI as `s3://bucket/folder`."""

    def __init__(self, uri: str) -> None:
        self.system, self.root = fs.FileSystem.from_uri(os.path.abspath(uri) if "://" not in uri else uri)
        self.atomic = not isinstance(self.system, fs.LocalFileSystem)  # in a bucket nobody sees half an object

    def names(self) -> list[str]:
        """Of all files, relative, without those that begin with a dot."""
        files = self.system.get_file_info(fs.FileSelector(self.root, recursive=True, allow_not_found=True))
        names = (file.path.removeprefix(self.root).lstrip("/") for file in files if file.is_file)
        return [name for name in names if not Path(name).name.startswith(".")]

    def has(self, name: str) -> bool:
        return self.system.get_file_info(f"{self.root}/{name}").is_file

    def read(self, name: str) -> bytes:
        with self.system.open_input_stream(f"{self.root}/{name}") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        path = Path(self.root, name)
        written = path if self.atomic else path.with_name(f".{path.name}.tmp")
        self.system.create_dir(str(path.parent), recursive=True)
        with self.system.open_output_stream(str(written)) as file:
            file.write(data)
        if written != path:
            self.system.move(str(written), str(path))


class Denoiser:
    """A worker: denoises pictures of one place into another."""

    def __init__(self, source: str, target: str, model: str | None, steps: int | None) -> None:
        self.source, self.target, self.model, self.steps = Place(source), Place(target), model, steps
        self.sessions: dict[str, Session] = {}
        self.session(model or COLOUR)

    def session(self, model: str) -> Session:
        if model not in self.sessions:
            self.sessions[model] = open_session(model, threads=1)
        return self.sessions[model]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """What became of each picture, an empty error if nothing is wrong; by which process, and from when to when."""
        rows = []
        for name in batch["name"]:
            started, error = time.time(), ""
            try:
                if not self.target.has(name):  # a worker that died may have done it
                    self.denoise(str(name))
            except Exception as problem:  # one picture does not end the others
                error = " ".join(f"{type(problem).__name__}: {problem}".split())
            rows.append({"name": str(name), "error": error, "pid": os.getpid(), "start": started, "end": time.time()})
        return {key: [row[key] for row in rows] for key in rows[0]}

    def denoise(self, name: str) -> None:
        image = imagefile.read(self.source.read(name))
        (seen,), _ = prepare([image.pixels], [image.alpha], None, gray=self.model is None, straight=False)
        session = self.session(self.model or (GRAY if seen.pixels.shape[2] == 1 else COLOUR))
        work = Work(seen.pixels, curve=seen.curve, visible=seen.visible)
        done = denoise_pixels(session, work, session.per_cell(self.steps))
        result = dataclasses.replace(image, pixels=seen.restore(done.pixels))
        self.target.write(name, imagefile.encode(result, imagefile.SUFFIXES[Path(name).suffix.lower()]))


def outcomes(names: list[str], what: tuple[Any, ...], workers: int, gpus: float) -> Iterator[dict[str, Any]]:
    """A row of `Denoiser` for each picture, as they are done."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a picture that ends each worker which takes it does not end all
    blocks = max(-(-len(names) // BLOCK), min(len(names), 8 * workers))
    data = ray.data.from_items([{"name": name} for name in names], override_num_blocks=blocks)
    actors = ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2)
    yield from data.map_batches(
        Denoiser,
        fn_constructor_args=what,
        batch_size=None,
        compute=actors,
        num_cpus=1,
        num_gpus=gpus,
        ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
    ).iter_rows()


def per_second(rows: Iterable[dict[str, Any]]) -> float:
    """Pictures per second while all workers were at work."""
    by_worker: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_worker.setdefault(row["pid"], []).append(row)
    begin = max(min(row["start"] for row in mine) for mine in by_worker.values())
    end = min(max(row["end"] for row in mine) for mine in by_worker.values())
    shares = ((min(r["end"], end) - max(r["start"], begin)) / (r["end"] - r["start"]) for m in by_worker.values() for r in m)
    return sum(share for share in shares if share > 0) / (end - begin)


def measure(names: list[str], what: tuple[Any, ...], workers: int, gpus: float) -> None:
    """Prints what one process and the workers do per second; each picture is done in a folder of its own."""
    source, target, *how = what
    alone = Denoiser(source, f"{target}/one", *how)
    alone({"name": np.array(names[:2])})  # which does not count
    rows = alone({"name": np.array(names[2:])})
    one = (len(names) - 2) / (rows["end"][-1] - rows["start"][0])
    many = per_second(outcomes(names, (source, f"{target}/{workers}", *how), workers, gpus))
    print(f"{one:.2f} pictures/s in one process, {many:.2f} with {workers} workers: {many / one:.2f} times as many")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--model", help=f"{COLOUR} unless given, and {GRAY} for gray pictures")
    parser.add_argument("--steps", type=int, help="the most unless given")
    parser.add_argument("--measure", type=int, nargs="?", const=64, metavar="N")
    args = parser.parse_args()
    ray.init(log_to_driver=False)
    source, target = Place(args.source), Place(args.target)
    names = [name for name in source.names() if Path(name).suffix.lower() in imagefile.SUFFIXES]
    done = set(target.names())
    left = [name for name in names if name not in done]
    random.shuffle(left)  # large ones spread over the workers
    what = args.source, args.target, args.model, args.steps
    if args.measure:
        measure(left[: args.measure], what, args.workers, args.gpus)
        return 0
    print(f"{len(names)} pictures, {len(names) - len(left)} of them done", flush=True)
    failed = dict.fromkeys(left, "its worker ended, over this picture or another")
    for row in tqdm(outcomes(left, what, args.workers, args.gpus) if left else [], total=len(left), disable=None):
        del failed[row["name"]]
        if row["error"]:
            failed[row["name"]] = row["error"]
    if failed or target.has(FAILED):
        target.write(FAILED, "".join(f"{name}\t{error}\n" for name, error in sorted(failed.items())).encode())
    print(f"{len(left) - len(failed)} done, {len(failed)} failed{f': see {FAILED}' if failed else ''}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
