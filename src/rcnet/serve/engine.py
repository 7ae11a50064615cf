"""The engine: requests in, results out, over the scheduler and its workers. asyncio, and no transport."""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rcnet.errors import InputError
from rcnet.serve.policies import Policy, fixed
from rcnet.serve.process import ProcessDied
from rcnet.serve.requests import Batch, Refused, Request
from rcnet.serve.scheduler import Scheduler
from rcnet.serve.served import Served, Work, name_of
from rcnet.serve.worker import Job, Plan, Worker
from rcnet.setting import Setting

# A batch takes what was expected, give or take a tenth, or several times that if other work starts on the machine. After OVERDUE
# a worker that has used no processor time counts as down; after half of ENDED any worker does; after ENDED it is killed. That is
# late, as a restart takes some seconds of processor time.
OVERDUE = 4.0, 0.5  # times the expected seconds, plus seconds
ENDED = 20.0, 2.0
COLD_ENDED = 30.0  # additional seconds for the first batch of a worker that timed no calls: it loads and chooses kernels then
TRIES = 3  # failed starts of a worker before waiting requests are refused: one may fail for a passing reason, e.g. memory
LONGEST = 30  # seconds between two starts: soon enough after a repair, and a worker that dies at once costs little
NO_ANSWER = Refused("late", "the worker does not answer", 1.0)
log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """A result, its setting, the seconds in the queue, and the seconds of computing the whole batch."""

    result: Any
    setting: Setting
    queued: float
    computing: float
    batch: int


class Terms(NamedTuple):
    """The conditions of a request.

    Attributes:
        setting: the setting to use instead of the policy's.
        window: seconds from the client's request to the deadline; None: from now.
        client: who asked; clients share the queue fairly.
    """

    setting: Setting | None = None
    window: float | None = None
    client: str = ""


class Engine:
    """Serves models within an objective: `start`, then `submit` from any number of tasks, then `stop`.

    Args:
        workers: what each worker loads: the same models, one worker per device.
        policy: see `rcnet.serve.policies`.
        objective: seconds in which an answer is promised.
        least: the least setting that the policy may choose, by model.
        bound: the largest number of waiting requests.
        most: the largest batch.
        each: called after each batch with (model, setting, number of requests, seconds).
        make: a worker for a plan, not started; a process of this machine unless given.

    Attributes:
        busy: seconds of all batches together.
    """

    def __init__(
        self,
        workers: Sequence[Plan],
        policy: Policy,
        objective: float,
        *,
        least: dict[str, str] | None = None,
        bound: int = 256,
        most: int = 8,
        each: Callable[[str, Setting, int, float], object] = lambda *_: None,
        make: Callable[[Plan], Worker] = Worker,
    ) -> None:
        self.make, self.workers = make, [make(plan) for plan in workers]
        self.policy, self.objective, self.least = policy, objective, least or {}
        self.bound, self.most, self.each = bound, most, each
        self.models: dict[str, Served] = {}
        self.restarts, self.busy = 0, 0.0
        self.failing = False  # no worker is up, and several starts have failed
        self.stopping = False  # set from outside; the engine is then no longer `ready`
        self.clock = time.perf_counter
        self._tasks: list[asyncio.Task[None]] = []
        self._open: set[Request] = set()
        self._overdue: set[Request] = set()  # whose batch is overdue
        self._work = asyncio.Event()

    async def start(self) -> None:
        """Starts the workers; returns when all models are ready.

        Raises:
            InputError: models that cannot be loaded, two models with the same name, or a least setting that a model lacks.
        """
        names = [name_of(source) for source in self.workers[0].plan.models]
        if len(set(names)) < len(names):
            raise InputError(f"two models have the same name: {', '.join(names)}")
        try:
            await asyncio.gather(*(worker.load() for worker in self.workers))
        except ProcessDied:
            raise InputError("a worker ended while it loaded the models; its messages are above") from None
        except InputError:
            await self._end_workers()
            raise
        served = self.workers[0].served
        self.models = {about.name: about for about in served}
        dials = {about.name: about.dials(self.least.get(about.name)) for about in served}
        if self.policy is fixed:
            dials = {name: dial._replace(offered=dial.offered[-1:]) for name, dial in dials.items()}
        self.scheduler = Scheduler(dials, self.policy, self.objective, self.bound, self.most, len(self.workers))
        for about, timed in zip(served, self.workers[0].timed, strict=True):
            for setting, pixels, batch, seconds in timed:
                self.scheduler.costs.observe(about.name, setting, pixels, batch, seconds)
        self._tasks = [asyncio.create_task(self._serve(index)) for index in range(len(self.workers))]

    async def stop(self) -> None:
        """Stops the workers and refuses the requests that still wait."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for request in self._open:
            _refuse(request, Refused("down", "the server is stopping"))
        await self._end_workers()

    async def _end_workers(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers))

    async def grow(self) -> None:
        """Adds a worker.

        Raises:
            ProcessDied: it ended before it was ready.
        """
        worker = self.make(self.workers[0].plan)
        try:
            await worker.load(warm=False)
        except BaseException:
            await worker.stop()
            raise
        self.workers.append(worker)
        self.scheduler.free.append(self.clock())
        self._tasks.append(asyncio.create_task(self._serve(len(self._tasks))))

    async def shrink(self) -> None:
        """Removes the last worker unless it computes."""
        if not self.workers[-1].running:
            self.scheduler.free.pop()
            self._tasks.pop().cancel()
            await self.workers.pop().stop()

    @property
    def ready(self) -> bool:
        """Whether a worker is up and the engine is not stopping."""
        return not self.stopping and bool(self._tasks) and math.isfinite(min(self.scheduler.free))

    def check(self, model: str, size: tuple[int, int], deadline: float, terms: Terms) -> None:
        """Raises `Refused` if an image of this width and height would not be admitted now. Call it before decoding."""
        about = self.models[model]
        pixels = about.size**2 or size[0] * size[1]
        self.scheduler.check(Request(model, size, pixels, deadline, None, *terms), self.clock())

    async def submit(self, model: str, work: Work, deadline: float, terms: Terms | None = None) -> Answer:
        """The result for one image. A cancelled call leaves the queue.

        Args:
            deadline: when the answer is due, by `clock`.

        Raises:
            Refused: it was not admitted, or could not be computed in time.
            InputError: the model refuses the image or its options.
        """
        about, terms = self.models[model], terms or Terms()
        size = about.size
        pixels = size * size if size else work.pixels.shape[0] * work.pixels.shape[1] * about.planes(work)
        shape = (size,) if size else (*work.pixels.shape, work.pixels.itemsize)
        request = Request(model, shape, pixels, deadline, work, *terms)
        request.answer = asyncio.get_running_loop().create_future()
        self.scheduler.submit(request, self.clock())
        self._work.set()
        self._open.add(request)
        try:
            await asyncio.wait({request.answer}, timeout=max(deadline - self.clock(), 0))
            if not request.answer.done() and self.scheduler.cancel(request):
                raise Refused("late", "the deadline passed while the request waited", self.scheduler.backlog(self.clock()))
            if request in self._overdue:
                _refuse(request, NO_ANSWER)
            return await request.answer
        finally:
            self.scheduler.cancel(request)
            self._open.discard(request)
            request.answer.cancel()

    async def _serve(self, index: int) -> None:
        """Runs one batch after another on a worker and restarts the worker if it dies."""
        worker, scheduler = self.workers[index], self.scheduler
        while True:
            while (batch := self._take(index)) is None:
                self._work.clear()
                await self._work.wait()
            expected = scheduler.free[index] - batch.started
            ended = ENDED[0] * expected + ENDED[1] + COLD_ENDED * worker.cold
            job = Job(batch.model, batch.setting, [request.payload for request in batch.requests])
            timer, failure = OverdueTimer(self, index, batch, expected), ""
            try:
                async with asyncio.timeout(ended):  # wait_for would create another task
                    results, seconds = await worker.run(job)
            except ProcessDied:
                failure = "died"
            except TimeoutError:
                failure = f"did not answer for {ended:.1f} s ({expected:.3f} were expected) and was killed"
            timer.cancel()
            self.busy += self.clock() - batch.started
            self._overdue.difference_update(batch.requests)
            if failure:
                await self._restart(index, batch, failure)
                continue
            now = self.clock()
            if isinstance(results, Exception):  # its time says nothing about other batches
                scheduler.free[index] = now
            else:
                scheduler.done(batch, now - batch.started, now, index)
                self.each(batch.model, batch.setting, len(batch.requests), seconds)
            self._resolve(batch, results, seconds)

    def mark_overdue(self, index: int, batch: Batch) -> None:
        """A batch is overdue: its worker counts as down until it answers, and requests past their deadline are refused."""
        self.scheduler.free[index] = math.inf
        self._overdue.update(batch.requests)
        log.warning("worker %s is overdue: it gets no more requests until it answers", self.workers[index].pid)
        for request in batch.requests:
            if request.deadline < self.clock():
                _refuse(request, NO_ANSWER)

    def _take(self, index: int) -> Batch | None:
        now = self.clock()
        for request in self.scheduler.late(now):
            _refuse(request, Refused("late", "the deadline can no longer be met", self.scheduler.backlog(now)))
        return self.scheduler.next(now, index)

    def _resolve(self, batch: Batch, results: list[Any] | Exception, seconds: float) -> None:
        if isinstance(results, Exception) and len(batch.requests) > 1:  # each runs alone to find out which one failed
            self.scheduler.put_back(batch)
            self._work.set()
            return
        for i, request in enumerate(batch.requests):
            if isinstance(results, InputError):
                _refuse(request, results)
            elif isinstance(results, Exception):
                log.error("%s failed: %s", batch.model, results)
                _refuse(request, Refused("failed", "the image could not be computed"))
            elif not request.answer.done():
                queued = batch.started - request.arrived
                request.answer.set_result(Answer(results[i], batch.setting, queued, seconds, len(batch.requests)))

    async def _restart(self, index: int, batch: Batch, why: str) -> None:
        """Restarts a worker after its end. Its requests are queued once more, each to run alone."""
        worker, scheduler = self.workers[index], self.scheduler
        scheduler.free[index] = math.inf
        for request in batch.requests:
            if request.alone:
                _refuse(request, Refused("failed", "the worker died twice over this request"))
            elif request.deadline < self.clock() and not request.probe:
                _refuse(request, Refused("late", "the worker died over this request", 1.0))
        batch.requests = [request for request in batch.requests if not request.answer.done()]
        scheduler.put_back(batch)
        self._work.set()  # another worker may be free
        for trial in itertools.count():
            self.restarts += 1
            pid, end = worker.pid, await worker.stop()
            if not trial:
                log.error("worker %s %s (%s): restarting it", pid, why, end)
            try:
                await worker.load(warm=False)
            except ProcessDied:
                log.error("worker %s cannot be started: it ended (%s)", worker.pid, await worker.stop())
            except (InputError, OSError) as error:
                log.error("worker %s cannot be started: %s", worker.pid, error)
            else:
                scheduler.free[index], self.failing = self.clock(), False
                return
            if trial + 1 >= TRIES and math.isinf(min(scheduler.free)):
                self.failing = True
                for request in self._open:
                    _refuse(request, Refused("down", "no worker is up"))
            await asyncio.sleep(min(2**trial, LONGEST))


class OverdueTimer:
    """Reports a batch as overdue unless it is cancelled before."""

    def __init__(self, engine: Engine, index: int, batch: Batch, expected: float) -> None:
        self.engine, self.index, self.batch = engine, index, batch
        self.worker = engine.workers[index]
        self.latest = batch.started + (ENDED[0] * expected + ENDED[1]) / 2
        self.used = -1.0  # read at the first check, which most batches never reach
        self._schedule(OVERDUE[0] * expected + OVERDUE[1])

    def check(self) -> None:
        """A worker that uses the processor is slow, as other work uses it too; one that does not, or for too long, hangs."""
        used = self.worker.processor_seconds()
        if used > self.used and self.engine.clock() < self.latest:
            self.used = used
            self._schedule(OVERDUE[1])
        else:
            self.engine.mark_overdue(self.index, self.batch)

    def _schedule(self, seconds: float) -> None:
        self.timer = asyncio.get_running_loop().call_later(seconds, self.check)

    def cancel(self) -> None:
        self.timer.cancel()


def _refuse(request: Request, error: Exception) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)
