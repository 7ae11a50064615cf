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
from rcnet.serve.scheduler import Batch, Dials, Refused, Request, Scheduler
from rcnet.serve.served import Served, Work, name_of
from rcnet.serve.worker import Job, Plan, Worker
from rcnet.setting import Setting

# A batch takes what was expected, give or take a tenth, and several times that while other work is put on the machine. Past
# OVERDUE a worker that has computed nothing counts as down; past half of ENDED any, and past ENDED it is ended. That is late,
# for a restart costs some seconds of processor time.
OVERDUE = 4.0, 0.5  # times the expected seconds, and seconds
ENDED = 20.0, 2.0
COLD_ENDED = 30.0  # seconds more for the first batch of a worker that timed no calls: kernels are loaded and chosen then
TRIES = 3  # of a worker to start, one after the other, before those who wait are refused
LONGEST = 30  # seconds between two tries
log = logging.getLogger(__name__)


NO_ANSWER = Refused("late", "the worker gives no answer", 1.0)


class Answer(NamedTuple):
    """A result, its setting, and the seconds in the queue and of computing (of its whole batch)."""

    result: Any
    setting: Setting
    queued: float
    computing: float
    batch: int


class Terms(NamedTuple):
    """Under which a request comes.

    Attributes:
        setting: to take this one whatever the policy says.
        window: seconds from when the client asked to the deadline; from now on unless given.
        client: who asked, for a fair share of what waits.
    """

    setting: Setting | None = None
    window: float | None = None
    client: str = ""


class Engine:
    """Serves models within an objective: `start`, then `submit` from any number of tasks, then `stop`.

    Args:
        workers: what each worker loads: the same models, one worker a device.
        policy: see `rcnet.serve.policies`.
        objective: seconds in which an answer is promised.
        least: by model, the least setting that the policy may take.
        bound: requests that may wait.
        most: requests in one batch.
        each: called after each batch, with its (model, setting, requests, seconds).
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
    ) -> None:
        self.workers = [Worker(plan) for plan in workers]
        self.policy, self.objective, self.least = policy, objective, least or {}
        self.bound, self.most, self.each = bound, most, each
        self.models: dict[str, Served] = {}
        self.restarts = 0
        self.failing = False  # no worker is up, and several tries to start one have failed
        self.stopping = False  # set it when no more requests are wanted: nobody is told that the engine is ready
        self.clock = time.perf_counter
        self._tasks: list[asyncio.Task[None]] = []
        self._open: set[Request] = set()
        self._overdue: set[Request] = set()  # whose batch is overdue
        self._work = asyncio.Event()

    async def start(self) -> None:
        """Starts the workers; returns when all models are ready.

        Raises:
            InputError: models that cannot be loaded, two of one name, or a least setting that a model does not have.
        """
        names = [name_of(source) for source in self.workers[0].plan.models]
        if len(set(names)) < len(names):
            raise InputError(f"two models have one name: {', '.join(names)}")
        try:
            await asyncio.gather(*(worker.load() for worker in self.workers))
        except ProcessDied:
            raise InputError("a worker ended while it loaded the models; its messages are above") from None
        except InputError:
            await self._end_workers()
            raise
        served = self.workers[0].served
        self.models = {about.name: about for about in served}
        dials = {about.name: self._dials(about) for about in served}
        self.scheduler = Scheduler(dials, self.policy, self.objective, self.bound, self.most, len(self.workers))
        for about, timed in zip(served, self.workers[0].timed, strict=True):
            for setting, pixels, batch, seconds in timed:
                self.scheduler.costs.observe(about.name, setting, pixels, batch, seconds)
        self._places = list(self.models)
        self._tasks = [asyncio.create_task(self._serve(place)) for place in range(len(self.workers))]

    def _dials(self, about: Served) -> Dials:
        dials = about.dials(self.least.get(about.name))
        return dials._replace(offered=dials.offered[-1:]) if self.policy is fixed else dials

    async def stop(self) -> None:
        """Ends the workers. Requests that still wait are refused."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for request in self._open:
            _refuse(request, Refused("down", "the server is stopping"))
        await self._end_workers()

    async def _end_workers(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers))

    @property
    def ready(self) -> bool:
        """Whether a worker is up, and the engine is to go on."""
        return not self.stopping and bool(self._tasks) and math.isfinite(min(self.scheduler.free))

    def check(self, model: str, size: tuple[int, int], deadline: float, terms: Terms) -> None:
        """Raises `Refused` where an image of this width and height would not be admitted now; to ask before it is decoded."""
        about = self.models[model]
        pixels = about.size**2 or size[0] * size[1]
        self.scheduler.check(
            Request(model, size, pixels, deadline, None, terms.setting, terms.window, terms.client), self.clock()
        )

    async def submit(self, model: str, work: Work, deadline: float, terms: Terms | None = None) -> Answer:
        """The result for one image. To cancel the task frees the request's place in the queue.

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
        request = Request(model, shape, pixels, deadline, work, terms.setting, terms.window, terms.client)
        request.answer = asyncio.get_running_loop().create_future()
        self.scheduler.submit(request, self.clock())
        self._work.set()
        self._open.add(request)
        try:
            await asyncio.wait({request.answer}, timeout=max(deadline - self.clock(), 0))
            if not request.answer.done() and self.scheduler.cancel(request):
                raise Refused("late", "the deadline passed while the request waited", self.scheduler.load(self.clock()))
            if request in self._overdue:
                _refuse(request, NO_ANSWER)
            return await request.answer
        finally:
            self.scheduler.cancel(request)
            self._open.discard(request)
            request.answer.cancel()

    async def _serve(self, place: int) -> None:
        """Runs one batch after the other on a worker, and starts the worker anew when it dies."""
        worker, scheduler = self.workers[place], self.scheduler
        while True:
            while (batch := self._take(place)) is None:
                self._work.clear()
                await self._work.wait()
            expected = scheduler.free[place] - batch.started
            ended = ENDED[0] * expected + ENDED[1] + COLD_ENDED * worker.cold
            job = Job(self._places.index(batch.model), batch.setting, [request.payload for request in batch.requests])
            watch, failure = Watch(self, place, batch, expected), ""
            try:
                async with asyncio.timeout(ended):  # without the task of its own that wait_for makes
                    results, seconds = await worker.run(job)
            except ProcessDied:
                failure = "died"
            except TimeoutError:
                failure = f"gave no answer for {ended:.1f} s, {expected:.3f} were expected, and was ended"
            watch.cancel()
            self._overdue.difference_update(batch.requests)
            if failure:
                await self._revive(place, batch, failure)
                continue
            now = self.clock()
            if isinstance(results, Exception):  # what it took says nothing of what others will
                scheduler.free[place] = now
            else:
                scheduler.done(batch, now - batch.started, now, place)
                self.each(batch.model, batch.setting, len(batch.requests), seconds)
            self._resolve(batch, results, seconds)

    def doubt(self, place: int, batch: Batch) -> None:
        """A batch is overdue: its worker counts as down until it answers, and what is late already is refused."""
        self.scheduler.free[place] = math.inf
        self._overdue.update(batch.requests)
        log.warning("worker %s is overdue: it gets no more requests until it answers", self.workers[place].pid)
        for request in batch.requests:
            if request.deadline < self.clock():
                _refuse(request, NO_ANSWER)

    def _take(self, place: int) -> Batch | None:
        now = self.clock()
        for request in self.scheduler.late(now):
            _refuse(request, Refused("late", "the deadline cannot be met any more", self.scheduler.load(now)))
        return self.scheduler.next(now, place)

    def _resolve(self, batch: Batch, results: list[Any] | Exception, seconds: float) -> None:
        if isinstance(results, Exception) and len(batch.requests) > 1:  # which one of them it was shows alone
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

    async def _revive(self, place: int, batch: Batch, why: str) -> None:
        """After a worker's end: its requests wait again, once and alone, and the worker is started anew."""
        worker, scheduler = self.workers[place], self.scheduler
        scheduler.free[place] = math.inf
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
                log.error("worker %s %s (%s): it is started anew", pid, why, end)
            try:
                await worker.load(warm=False)
            except ProcessDied:
                log.error("worker %s cannot be started: it ended (%s)", worker.pid, await worker.stop())
            except (InputError, OSError) as error:
                log.error("worker %s cannot be started: %s", worker.pid, error)
            else:
                scheduler.free[place], self.failing = self.clock(), False
                return
            if trial + 1 >= TRIES and math.isinf(min(scheduler.free)):
                self.failing = True
                for request in self._open:
                    _refuse(request, Refused("down", "no worker is up"))
            await asyncio.sleep(min(2**trial, LONGEST))


class Watch:
    """Over a batch: says when it is overdue."""

    def __init__(self, engine: Engine, place: int, batch: Batch, expected: float) -> None:
        self.engine, self.place, self.batch = engine, place, batch
        self.worker = engine.workers[place]
        self.latest = batch.started + (ENDED[0] * expected + ENDED[1]) / 2
        self.used = -1.0  # is read at the first look: most batches never come to that
        self._look_again(OVERDUE[0] * expected + OVERDUE[1])

    def look(self) -> None:
        """A worker that computes is slow, as others use the machine too; one that does not, or for too long, hangs."""
        used = self.worker.processor_seconds()
        if used > self.used and self.engine.clock() < self.latest:
            self.used = used
            self._look_again(OVERDUE[1])
        else:
            self.engine.doubt(self.place, self.batch)

    def _look_again(self, seconds: float) -> None:
        self.timer = asyncio.get_running_loop().call_later(seconds, self.look)

    def cancel(self) -> None:
        """The batch is done."""
        self.timer.cancel()


def _refuse(request: Request, error: Exception) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)
