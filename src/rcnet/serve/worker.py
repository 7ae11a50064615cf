"""Workers: processes that compute, so that a crash there does not crash the server."""

import gc
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rcnet.errors import InputError
from rcnet.serve.process import Channel, Process, answer_messages
from rcnet.serve.served import Served, Work
from rcnet.setting import Setting


class Job(NamedTuple):
    """A batch for one model at one setting."""

    model: str
    setting: Setting
    work: Sequence[Work]


class Plan(NamedTuple):
    """What a worker loads: weights (names or files), device, threads (0: one per core), and whether to time calls first."""

    models: tuple[str, ...]
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 0
    warm: bool = True


class Worker(Process):
    """The server's end of one worker process.

    Attributes:
        served: the descriptions of the models, once they are loaded.
        timed: for each model, the calls that were timed at the start: (setting, pixels, batch, seconds).
        cold: nothing was computed yet, so the first batch takes longer than expected.
        running: it has a batch.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__("rcnet.serve.worker")
        self.plan = plan
        self.served: list[Served] = []
        self.timed: list[list[tuple[Setting, int, int, float]]] = []
        self.cold, self.running = True, False

    async def load(self, warm: bool = True) -> None:
        """Starts the process and waits until its models are loaded, and with `warm` until each setting was timed.

        Raises:
            InputError: the models cannot be loaded.
            ProcessDied: the process ended before it was ready.
        """
        self.cold = not warm
        await self.start()
        about = await self.exchange(self.plan._replace(warm=warm))
        if isinstance(about, Exception):
            await self.stop()
            raise about
        self.served, self.timed = about

    async def run(self, job: Job) -> tuple[list[Any] | Exception, float]:
        """The results of a batch or the exception that it raised, and its seconds.

        Raises:
            ProcessDied: the process ended.
        """
        self.running = True
        try:
            results: tuple[list[Any] | Exception, float] = await self.exchange(job)
        finally:
            self.running = False
        self.cold = False
        return results


def answer(channel: Channel) -> None:
    """Loads the plan in the first message, then answers each job."""
    plan = channel.receive()
    from rcnet.serve.models import open_model, warm_up

    try:
        opened = [open_model(source, plan.device, plan.precision, plan.threads) for source in plan.models]
    except InputError as error:
        channel.send(error)
        return
    channel.send(([model.about for model in opened], [warm_up(model) if plan.warm else [] for model in opened]))
    models = {model.about.name: model for model in opened}
    gc.freeze()  # no collection walks through torch's objects again
    while True:
        job = channel.receive()
        started = time.perf_counter()
        result: list[Any] | Exception
        try:
            result = models[job.model].run(job.setting, job.work)
        except Exception as error:
            if type(error).__name__ == "AcceleratorError":  # of torch, after which no call works: the process ends
                raise
            result = error if isinstance(error, InputError) else RuntimeError(f"{type(error).__name__}: {error}")
        channel.send((result, time.perf_counter() - started))


if __name__ == "__main__":
    answer_messages(answer)
