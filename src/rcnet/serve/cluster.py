"""The workers of a server as replicas on a Ray cluster: actors, one for each device, on any of its machines.

Nothing waits inside Ray: the server has the queue, and gives a replica the next batch when it has done the one before. So it
keeps its promise as with workers of its own: requests count from their heads, and batches with their way to another machine.
"""

import asyncio
import dataclasses
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from rcnet.errors import InputError
from rcnet.serve import run
from rcnet.serve.engine import Engine
from rcnet.serve.process import ProcessDied
from rcnet.serve.settings import Settings
from rcnet.serve.worker import Plan, Worker, answer

LOOK, CALM = 10.0, 30  # seconds between two looks at the load, and how many of these must be calm before a replica goes
GROW, SHRINK = 0.8, 0.5  # of their time that replicas, or one fewer, compute, above and below which one is added or goes
PATIENCE = 600.0  # seconds in which the cluster finds a place for a replica that is added
# Of a cluster of this machine alone: it listens on loopback (on Linux too, whatever the name), sends no usage statistics, its
# processes are not the last to get the processor, and a busy machine has time to start it.
ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "120000",
}
log = logging.getLogger(__name__)


class Replica:
    """The other end, in a process of the cluster: what `worker.answer` does, each message brought by a call."""

    def __init__(self) -> None:
        self.inbox, self.outbox = SimpleQueue[Any](), SimpleQueue[Any]()
        self.receive, self.send = self.inbox.get, self.outbox.put
        threading.Thread(target=self._work, daemon=True).start()

    def exchange(self, message: object) -> Any:
        """The answer to a message."""
        self.inbox.put(message)
        return self.outbox.get()

    def pid(self) -> int:
        """Of the process."""
        return os.getpid()

    def _work(self) -> None:
        try:
            answer(self)  # type: ignore[arg-type]  # a channel has these two functions
        except BaseException:
            logging.exception("the worker ends")
            os._exit(1)


class RemoteWorker(Worker):
    """The server's end of a replica.

    Args:
        needs: what it takes of the cluster: options of `ray.remote`.
    """

    def __init__(self, plan: Plan, needs: dict[str, Any]) -> None:
        super().__init__(plan)
        self.needs = needs
        self._actor: Any = None
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, on its machine."""
        return self._pid

    async def start(self) -> None:
        """Asks the cluster for a replica, and waits until it has a place."""
        import ray

        self._actor = ray.remote(**self.needs)(Replica).remote()
        self._pid = await self._said(self._actor.pid.remote())

    async def exchange(self, message: object) -> Any:
        """The answer to a message, or `ProcessDied`."""
        return await self._said(self._actor.exchange.remote(message))

    def processor_seconds(self) -> float:
        """Not known here: one that is late hangs."""
        return 0.0

    async def stop(self) -> str:
        """Ends it; Ray kills a process that hangs, after five seconds."""
        if self._actor:
            import ray

            ray.kill(self._actor)
        return "on the cluster"

    @staticmethod
    async def _said(reference: Any) -> Any:
        from ray.exceptions import RayError

        try:
            return await reference
        except RayError as error:
            raise ProcessDied from error


async def scale(engine: Engine, low: int, high: int, look: float = LOOK, calm: int = CALM) -> None:
    """Adds a replica where those that there are compute nearly all the time; takes one away where fewer have done for long."""
    quiet = 0
    while True:
        before, count = engine.busy, len(engine.workers)
        await asyncio.sleep(look)
        busy = (engine.busy - before) / look
        quiet = quiet + 1 if busy < SHRINK * (count - 1) else 0
        if busy > GROW * count and count < high:
            try:
                async with asyncio.timeout(PATIENCE):
                    await engine.grow()
            except (ProcessDied, TimeoutError):
                log.warning("the cluster has no place for another replica")
        elif quiet >= calm and count > low:
            await engine.shrink()


async def serve(settings: Settings, low: int, high: int) -> None:
    """As `run.serve`, on the cluster that RAY_ADDRESS names, or on one of this machine alone, with so many replicas.

    Raises:
        InputError: also where this machine alone cannot hold the replicas.
    """
    gpu = settings.devices[0].startswith("cuda")
    threads = max(settings.threads, 1)
    needs = {"num_cpus": threads, "num_gpus": int(gpu)}
    devices = ["cuda:0" if gpu else settings.devices[0]] * low  # of those that Ray lends
    settings = dataclasses.replace(settings, devices=devices, threads=threads)
    engine = run.engine_of(settings, partial(RemoteWorker, needs=needs))
    end = connect({"CPU": low * threads, "GPU": low * gpu})
    scaling = asyncio.create_task(scale(engine, low, high))
    try:
        await run.serve(settings, engine)
    finally:
        scaling.cancel()
        end()


def connect(needed: dict[str, int]) -> Callable[[], None]:
    """Joins the cluster, or starts Ray on this machine if it has what is needed; gives what ends that."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if alone := not os.environ.get("RAY_ADDRESS"):
        os.environ.update({name: os.environ.get(name, value) for name, value in ALONE.items()})
        options["include_dashboard"] = False
    try:
        import ray  # it reads these variables when it is imported

        ray.init(**options)
    except ImportError as error:
        raise InputError(f"serving on Ray needs {error.name}: pip install 'rcnet[ray]'") from error
    except Exception as error:  # Ray raises this where it takes too long
        raise InputError(f"Ray cannot be {'started' if alone else 'joined'}: {' '.join(str(error).split())}") from error
    has = ray.cluster_resources() if alone else needed
    for kind, count in needed.items():
        if count > has.get(kind, 0):
            there = f"{has.get(kind, 0):g}"
            raise InputError(f"the replicas need {count} {kind}s and this machine has {there}: lower --replicas or --threads")
    return ray.shutdown
