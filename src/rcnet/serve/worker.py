"""Computing in a process of its own, so that a crash there is not one of the server.

`python -m rcnet.serve.worker FD` is such a process: it reads jobs from a socket and writes results, both pickled by this package.
It ends when the other end closes, however that came about.
"""

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rcnet.errors import InputError
from rcnet.serve.served import Served, Work
from rcnet.setting import Setting

LENGTH = struct.Struct(">Q")


class Job(NamedTuple):
    """A batch: the model by its place, the setting, the images."""

    model: int
    setting: Setting
    work: Sequence[Work]


class Plan(NamedTuple):
    """What a worker loads: names or files of weights, where, threads (0: as torch takes), whether it times calls first."""

    models: tuple[str, ...]
    device: str = "cpu"
    precision: str = "auto"
    threads: int = 0
    warm: bool = True


class WorkerDied(Exception):
    """The process ended, or gave no answer in time."""


class Worker:
    """The server's end of one worker process.

    Attributes:
        served: what the models say of themselves, once `start` is done.
        timed: for each model the calls that were timed at the start: (setting, pixels, batch, seconds).
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.served: list[Served] = []
        self.timed: list[list[tuple[Setting, int, int, float]]] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, None before it is started."""
        return self._process.pid if self._process else None

    async def start(self, warm: bool = True) -> None:
        """Starts the process and waits until its models are ready, after timed calls of each setting if `warm`.

        Raises:
            InputError: the models cannot be loaded.
            WorkerDied: the process ended before it was ready.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "rcnet.serve.worker", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 22)
        about = await self._exchange(self.plan._replace(warm=warm))
        if isinstance(about, Exception):
            await self.stop()
            raise about
        self.served, self.timed = about

    async def run(self, job: Job, patience: float) -> tuple[list[Any] | Exception, float]:
        """The results of a batch, or what it raised, and the seconds that it took.

        Raises:
            WorkerDied: the process ended, or did not answer within `patience` seconds and was ended.
        """
        try:
            async with asyncio.timeout(patience):  # without the task of its own that wait_for makes
                return await self._exchange(job)
        except TimeoutError:
            await self.stop()
            raise WorkerDied from None

    async def stop(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._writer.close()

    async def _exchange(self, message: object) -> Any:
        try:
            parts = _packed(message)
            self._writer.writelines(parts)
            await self._writer.drain()
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            return pickle.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise WorkerDied from error


def _packed(message: object) -> tuple[bytes, bytes]:
    data = pickle.dumps(message, protocol=5)
    return LENGTH.pack(len(data)), data


def _receive(connection: socket.socket) -> Any:
    return pickle.loads(_read(connection, *LENGTH.unpack(_read(connection, LENGTH.size))))


def _read(connection: socket.socket, count: int) -> bytearray:
    data, place = bytearray(count), 0
    while place < count:  # once, unless a signal comes between
        if not (got := connection.recv_into(memoryview(data)[place:], 0, socket.MSG_WAITALL)):
            raise EOFError
        place += got
    return data


def _send(connection: socket.socket, message: object) -> None:
    connection.sendall(b"".join(_packed(message)))  # one write wakes the other end once


def main() -> None:
    """Loads what the first message names, then answers each job, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this process
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        with contextlib.suppress(EOFError, OSError):
            _answer(connection)
        os._exit(0)  # without waiting for threads of the runtime


def _answer(connection: socket.socket) -> None:
    plan = _receive(connection)
    import torch

    from rcnet.serve.models import open_model, warm_up

    if plan.threads:
        torch.set_num_threads(plan.threads)
    try:
        models = [open_model(source, plan.device, plan.precision) for source in plan.models]
    except InputError as error:
        _send(connection, error)
        return
    _send(connection, ([model.about for model in models], [warm_up(model) if plan.warm else [] for model in models]))
    gc.freeze()
    while True:
        job = _receive(connection)
        started = time.perf_counter()
        result: list[Any] | Exception
        try:
            result = models[job.model].run(job.setting, job.work)
        except torch.AcceleratorError:  # no later call would work either: the process ends, and a new one starts
            raise
        except Exception as error:
            result = error if isinstance(error, InputError) else RuntimeError(f"{type(error).__name__}: {error}")
        _send(connection, (result, time.perf_counter() - started))


if __name__ == "__main__":
    main()
