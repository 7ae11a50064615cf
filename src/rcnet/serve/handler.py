"""The path of a request from its body to its answer: limits, decoding, the engine, encoding."""

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from starlette.requests import ClientDisconnect, Request

from rcnet.data.formats import ImageFile
from rcnet.errors import unknown
from rcnet.serve import codec
from rcnet.serve.costs import Costs
from rcnet.serve.decoder import Decoders
from rcnet.serve.engine import Answer, Engine, Terms
from rcnet.serve.metrics import Metrics
from rcnet.serve.requests import Refused
from rcnet.serve.schemas import Load
from rcnet.serve.served import Served, Work
from rcnet.serve.settings import Limits
from rcnet.setting import Setting

T = TypeVar("T")
STATUS = {"busy": 429, "large": 413, "late": 503, "down": 503, "failed": 503}
# Of other exceptions: status and reason; any other is 422, a bad request.
OTHERS: dict[type[Exception], tuple[int, str]] = {
    codec.TooLarge: (413, "large"),
    codec.NotAcceptable: (406, "invalid"),
    codec.UnknownFormat: (415, "invalid"),
    ClientDisconnect: (400, "gone"),
}
ENCODERS = 2  # threads; images that are encoded were computed here, so none takes long
RETRY = 1.0  # the least number of seconds that a refused client is asked to wait
# The answer to a client that retries too early is delayed by DELAY seconds, so that each of its connections asks at most four
# times per second; at most DELAYED answers at once, as each keeps a connection open.
DELAY, DELAYED = 0.25, 256
LINGER = 1.0  # seconds to read the rest of an unwanted body: most bodies arrive with their header
STALLED = 1.0  # seconds after which an unfinished body may be evicted for a request of the same client


class Failure(Exception):
    """An answer without a result: status, sentence, seconds to wait, and the reason that is counted in the metrics."""

    def __init__(self, status: int, detail: str, retry: float | None = None, reason: str = "invalid") -> None:
        super().__init__(detail)
        self.status, self.retry, self.reason = status, retry, reason

    @property
    def headers(self) -> dict[str, str]:
        retry = {} if self.retry is None else {"retry-after": str(max(1, math.ceil(self.retry)))}
        return retry | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def failure_of(error: Exception) -> Failure:
    """The answer to an exception of a request."""
    detail = " ".join(str(error).split())
    if isinstance(error, Failure):
        return error
    if isinstance(error, Refused):
        return Failure(STATUS[error.reason], detail, None if error.reason == "large" else error.retry, error.reason)
    status, reason = next((found for kind, found in OTHERS.items() if isinstance(error, kind)), (422, "invalid"))
    return Failure(status, detail or "the client disconnected", reason=reason)


@dataclass(eq=False)
class RequestInfo:
    """The state of a request while it is answered.

    Attributes:
        arrived: when its header arrived.
        client: its address.
        window: seconds that it may take.
        model: its name.
        setting: if the client named one.
        kind: the format of the response.
        pixels: of the image.
        computed: when the result was ready.
        body: the timeout of the body while it arrives.
        evicted: the body was stopped in favour of another request.
    """

    arrived: float
    client: str = ""
    window: float | None = None
    model: str = ""
    setting: Setting | None = None
    kind: str = ""
    pixels: int = 0
    computed: float = 0.0
    body: asyncio.Timeout | None = None
    evicted: bool = False

    @property
    def terms(self) -> Terms:
        return Terms(self.setting, self.window, self.client)


class RequestHandler:
    """Answers the requests of one server, and holds what they share."""

    def __init__(self, engine: Engine, decoders: Decoders, limits: Limits) -> None:
        self.engine, self.limits, self.metrics = engine, limits, Metrics(engine)
        self.decoders = decoders
        self._active: set[RequestInfo] = set()
        self._refused: dict[str, float] = {}  # when a client was last refused as busy
        self._delayed = 0
        self._encoders = ThreadPoolExecutor(ENCODERS, "images")
        self._writing = Costs()  # seconds from a result to the last byte of its response
        for kind in codec.ANSWERS.values():
            self._writing.add(kind, {None: 1.0})

    def model(self, task: str, name: str | None) -> Served:
        """The model of this name, or the first of this task."""
        fitting = {about.name: about for about in self.engine.models.values() if about.task == task}
        if name is None and fitting:
            return next(iter(fitting.values()))
        if name not in fitting:
            raise Failure(404, str(unknown(f"model to {task}", name or "", fitting)))
        return fitting[name]

    def admit(self, request: Request, task: str, name: str | None, steps: str | None, deadline_ms: float | None) -> Served:
        """The model of a request; called before its body is read.

        Raises:
            Failure: no such model, a deadline later than the limit, or too many requests at once.
            InputError: the model has no such setting.
        """
        about, info = self.model(task, name), request.scope["rcnet"]
        info.model = about.name
        info.window = self.engine.objective if deadline_ms is None else deadline_ms / 1000
        if info.window > max(self.limits.deadline, self.engine.objective):
            raise Failure(422, f"deadline_ms: give at most {1000 * self.limits.deadline:.0f}")
        info.setting = None if steps is None else about.setting(steps)
        if len(self._active) >= self.limits.requests and not self._make_room(info):
            raise Failure(429, "too many requests at once", self.engine.scheduler.backlog(self.engine.clock()), "busy")
        self._active.add(info)
        return about

    def _make_room(self, newcomer: RequestInfo) -> bool:
        """Evicts an unfinished body for a new request, the oldest of the client with the most requests; False if there is none.

        The newcomer's client must have at least two requests fewer, or the body must have been arriving for long.
        """
        counts = Counter(info.client for info in self._active)
        arriving = [info for info in self._active if info.body]
        if not arriving:
            return False
        oldest = min(arriving, key=lambda info: (-counts[info.client], info.arrived))
        if counts[oldest.client] < counts[newcomer.client] + 2 and newcomer.arrived - oldest.arrived < STALLED:
            return False
        oldest.evicted = True
        oldest.body.reschedule(0.0)  # type: ignore[union-attr]  # it is arriving
        oldest.body = None
        self._active.discard(oldest)
        return True

    async def delay_refusal(self, info: RequestInfo) -> None:
        """Delays a refusal as busy if the client was refused within the last second. The request no longer counts as active.

        A refusal takes about a millisecond of the processor, which the workers need: clients that retry at once would use it up.
        """
        now = self.engine.clock()
        again = now - self._refused.get(info.client, -math.inf) < RETRY
        self._refused = {client: time for client, time in self._refused.items() if now - time < RETRY} | {info.client: now}
        self._active.discard(info)
        if again and self._delayed < DELAYED:
            self._delayed += 1
            try:
                await asyncio.sleep(DELAY)
            finally:
                self._delayed -= 1

    async def picture(self, request: Request, about: Served) -> ImageFile:
        """The image in the request's body, which is decoded only if it can be computed in time."""
        info = request.scope["rcnet"]
        body = await read_body(request, self.limits, info)
        data = codec.file_of(body, request.headers.get("content-type", ""))
        _, width, height = codec.header(data, self.limits.pixels)
        deadline = info.arrived + info.window
        self.engine.check(about.name, (width, height), deadline, info.terms)
        return await self.decoders.decode(data, width * height, info.client, deadline)

    async def compute(self, request: Request, about: Served, work: Work, kind: str) -> Answer:
        """The engine's answer, early enough to be sent before the deadline; cancelled if the client disconnects."""
        info = request.scope["rcnet"]
        info.kind, info.pixels = kind, work.pixels.shape[0] * work.pixels.shape[1]
        writing = (1 + 2 * self._writing.spread) * self._writing.seconds(kind, None, info.pixels)
        deadline = info.arrived + info.window - min(writing, info.window / 2)
        answer = await or_disconnect(request, self.engine.submit(about.name, work, deadline, info.terms))
        info.computed = self.engine.clock()
        return answer

    async def encode(self, picture: ImageFile, answer: Answer, kind: str) -> bytes:
        """The denoised image as PNG, JPEG or npy, encoded in a thread, so that others are answered meanwhile."""
        loop, pixels = asyncio.get_running_loop(), answer.result.pixels
        return await loop.run_in_executor(self._encoders, codec.encode, picture, pixels, kind)

    def leave(self, info: RequestInfo) -> None:
        """Ends a request, and learns the time that encoding and sending its response took."""
        self._active.discard(info)
        if info.computed:
            self._writing.observe(info.kind, None, info.pixels, 1, self.engine.clock() - info.computed)

    def load(self, demonstration: Literal["off", "idle", "running"]) -> Load:
        """The answer to `GET /v1/load`."""
        engine, scheduler, served = self.engine, self.engine.scheduler, self.metrics.served
        return Load(
            objective_ms=1000 * engine.objective,
            waiting=len(scheduler.waiting),
            load_ms=round(1000 * scheduler.backlog(engine.clock()), 1),
            slowness=round(scheduler.costs.slow, 3),
            restarts=engine.restarts,
            settings={name: str(setting) for name, setting in scheduler.settings().items()},
            served={about.name: {str(n): served[about.name, n] for n in about.settings} for about in engine.models.values()},
            refused=self.metrics.refused,
            demonstration=demonstration,
        )


async def read_body(request: Request, limits: Limits, info: RequestInfo) -> bytes:
    """The body of a request; meanwhile `info.body` is the timeout by which it can be stopped.

    Raises:
        TooLarge: more bytes than the limit, declared or sent.
        Failure: it did not arrive in time or was evicted.
    """
    most = limits.body
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise codec.TooLarge(f"the body has {declared} bytes and this server takes at most {most}")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.patience) as limit:
            info.body = limit
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise codec.TooLarge(f"the body has more than the {most} bytes that this server takes")
                parts.append(part)
    except TimeoutError:
        if info.evicted:
            raise Failure(429, "your body arrived slowly, and others wait", 1.0, "busy") from None
        raise Failure(408, f"the body did not arrive within {limits.patience:g} s", reason="slow") from None
    finally:
        info.body = None
    return b"".join(parts)


async def drop_body(request: Request) -> None:
    """Reads the rest of an unwanted body, for at most `LINGER` seconds.

    The connection closes after the answer. With unread bytes the system would reset it, and the client would see the reset
    instead of the answer.
    """
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: it was read already
        async with asyncio.timeout(LINGER):
            async for _ in request.stream():
                pass


async def or_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects; the body must have been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


def facts(about: Served, answer: Answer, pixels: int) -> dict[str, Any]:
    """The fields of `schemas.Facts`."""
    return {
        "model": about.name,
        "setting": str(answer.setting),
        "macs": about.macs[answer.setting] * pixels,
        "queue_ms": round(1000 * answer.queued, 3),
        "compute_ms": round(1000 * answer.computing, 3),
        "batch": answer.batch,
    }


def as_headers(fields: dict[str, Any]) -> dict[str, str]:
    """Facts as response headers."""
    texts = {name: f"{value:.12g}" if isinstance(value, float) else str(value) for name, value in fields.items()}
    return {f"rcnet-{name.replace('_', '-')}": text for name, text in texts.items()}
