"""The way of a request from its body to its answer: limits, decoding, the engine, encoding."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine
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
from rcnet.serve.scheduler import Refused
from rcnet.serve.schemas import Load
from rcnet.serve.served import Served, Work

T = TypeVar("T")
STATUS = {"busy": 429, "large": 413, "late": 503, "down": 503, "failed": 503}
ENCODERS = 2  # threads: what is encoded was computed here, so that none takes long
RETRY = 1.0  # seconds that a client that is refused is told to wait, at least
HOLD, HELD = 0.25, 256  # seconds for which a refusal is held back of a client that did not wait, and how many at once
LINGER = 1.0  # seconds: most bodies are here with their head
STALLED = 1.0  # seconds after which a body that still arrives gives its place to a new request of the same client


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body: bytes.
        pixels: of an image; a request waits for the one that is computed before it, so that this bounds the wait too.
        requests: that are read, computed or written at once.
        patience: seconds in which a body has to arrive.
        deadline: the latest one, in seconds.
    """

    body: int = 32 << 20
    pixels: int = 4_000_000
    requests: int = 64
    patience: float = 10.0
    deadline: float = 60.0


class Failure(Exception):
    """An answer without a result: status, sentence, seconds until another try, and why, for the count of rejections."""

    def __init__(self, status: int, detail: str, retry: float | None = None, reason: str = "invalid") -> None:
        super().__init__(detail)
        self.status, self.retry, self.reason = status, retry, reason

    @property
    def headers(self) -> dict[str, str]:
        """Those that go with it."""
        retry = {} if self.retry is None else {"retry-after": str(max(1, math.ceil(self.retry)))}
        return retry | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def failure_of(error: Exception) -> Failure:
    """The answer to what a request raised."""
    detail = " ".join(str(error).split())
    if isinstance(error, Failure):
        return error
    if isinstance(error, Refused):
        return Failure(STATUS[error.reason], detail, None if error.reason == "large" else error.retry, error.reason)
    if isinstance(error, codec.TooLarge):
        return Failure(413, detail, reason="large")
    if isinstance(error, codec.NotAcceptable):
        return Failure(406, detail)
    if isinstance(error, codec.UnknownFormat):
        return Failure(415, detail)
    if isinstance(error, ClientDisconnect):
        return Failure(400, "the client went away", reason="gone")
    return Failure(422, detail)


@dataclass(eq=False)
class RequestInfo:
    """What is kept of a request while it is answered.

    Attributes:
        arrived: when its head came.
        client: the address that it came from.
        window: seconds that it may take.
        model, kind, pixels: the model, the format of the response, the pixels of the image.
        computed: when the result was there.
        body: the time limit of the body while that arrives.
        evicted: the body gave its place to another request.
    """

    arrived: float
    client: str = ""
    window: float | None = None
    model: str = ""
    kind: str = ""
    pixels: int = 0
    computed: float = 0.0
    body: asyncio.Timeout | None = None
    evicted: bool = False


class RequestHandler:
    """What the requests of one server share."""

    def __init__(self, engine: Engine, decoders: Decoders, limits: Limits) -> None:
        self.engine, self.limits, self.metrics = engine, limits, Metrics(engine)
        self.decoders = decoders
        self._active: set[RequestInfo] = set()
        self._refused: dict[str, float] = {}  # when a client was last refused as too much
        self._held = 0
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
        """The model of a request, before anything of its body is read.

        Raises:
            Failure: no such model, a deadline later than the limit, or too many requests at once.
            InputError: the model has no such setting.
        """
        about, info = self.model(task, name), request.scope["rcnet"]
        info.model = about.name
        info.window = self.engine.objective if deadline_ms is None else deadline_ms / 1000
        if info.window > max(self.limits.deadline, self.engine.objective):
            raise Failure(422, f"deadline_ms: give at most {1000 * self.limits.deadline:.0f}")
        if steps is not None:
            about.setting(steps)
        if len(self._active) >= self.limits.requests and not self._make_room(info):
            raise Failure(429, "too many requests at once", self.engine.scheduler.load(self.engine.clock()), "busy")
        self._active.add(info)
        return about

    def _make_room(self, newcomer: RequestInfo) -> bool:
        """Whether a body that still arrives gives its place: the oldest of the client that has the most requests here.

        That is where the newcomer's client has two less or more, or the body has been arriving for long.
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

    async def hold_back(self, info: RequestInfo) -> None:
        """Before a refusal of what is too much: waits where the client was told the same within the last second.

        To refuse costs the server about a millisecond of the processor that workers need: clients that ask again at once would
        take as much of it as they can get. It holds no place meanwhile.
        """
        now = self.engine.clock()
        again = now - self._refused.get(info.client, -math.inf) < RETRY
        self._refused = {client: time for client, time in self._refused.items() if now - time < RETRY} | {info.client: now}
        self._active.discard(info)
        if again and self._held < HELD:
            self._held += 1
            try:
                await asyncio.sleep(HOLD)
            finally:
                self._held -= 1

    async def picture(self, request: Request, about: Served, steps: str | None) -> ImageFile:
        """The image that the request brings, which is decoded only if it can be computed in time."""
        info = request.scope["rcnet"]
        body = await self._body(request, info)
        data = codec.file_of(body, request.headers.get("content-type", ""))
        _, width, height = codec.header(data, self.limits.pixels)
        deadline = info.arrived + info.window
        self.engine.check(about.name, (width, height), deadline, self._terms(about, info, steps))
        return await self.decoders.decode(data, width * height, info.client, deadline)

    async def _body(self, request: Request, info: RequestInfo) -> bytes:
        try:
            return await read_body(request, self.limits, info)
        except Failure as failure:
            if info.evicted:
                raise Failure(429, "your body arrived slowly, and others wait", 1.0, "busy") from failure
            raise

    async def compute(self, request: Request, about: Served, work: Work, steps: str | None, kind: str) -> Answer:
        """The engine's answer, in time to be sent before the deadline; the place is freed if the client goes away."""
        info = request.scope["rcnet"]
        info.kind, info.pixels = kind, work.pixels.shape[0] * work.pixels.shape[1]
        writing = (1 + 2 * self._writing.spread) * self._writing.seconds(kind, None, info.pixels)
        deadline = info.arrived + info.window - min(writing, info.window / 2)
        answer = await unless_gone(request, self.engine.submit(about.name, work, deadline, self._terms(about, info, steps)))
        info.computed = self.engine.clock()
        return answer

    @staticmethod
    def _terms(about: Served, info: RequestInfo, steps: str | None) -> Terms:
        return Terms(None if steps is None else about.setting(steps), info.window, info.client)

    async def encode(self, picture: ImageFile, answer: Answer, kind: str) -> bytes:
        """The denoised image as PNG, JPEG or npy."""
        return await self._aside(codec.encode, picture, answer.result.pixels, kind)

    def leave(self, info: RequestInfo) -> None:
        """A request has ended: its place is free, and what it took to encode and send its response is learned."""
        self._active.discard(info)
        if info.computed:
            self._writing.observe(info.kind, None, info.pixels, 1, self.engine.clock() - info.computed)

    def load(self, demonstration: Literal["off", "idle", "running"]) -> Load:
        """What `GET /v1/load` says."""
        engine, scheduler, served = self.engine, self.engine.scheduler, self.metrics.served
        return Load(
            objective_ms=1000 * engine.objective,
            waiting=len(scheduler.waiting),
            load_ms=round(1000 * scheduler.load(engine.clock()), 1),
            slowness=round(scheduler.costs.slow, 3),
            restarts=engine.restarts,
            settings={name: str(setting) for name, setting in scheduler.settings().items()},
            served={about.name: {str(n): served[about.name, n] for n in about.settings} for about in engine.models.values()},
            refused=self.metrics.refused,
            demonstration=demonstration,
        )

    async def _aside(self, call: Callable[..., T], *arguments: Any) -> T:
        """A call in a thread, so that others are answered meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._encoders, call, *arguments)


async def read_body(request: Request, limits: Limits, info: RequestInfo | None = None) -> bytes:
    """The body of a request, whose `info` says meanwhile how to stop that.

    Raises:
        TooLarge: more bytes than the limit, declared or sent.
        Failure: it did not arrive in time.
    """
    most = limits.body
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise codec.TooLarge(f"the body has {declared} bytes and this server takes at most {most}")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.patience) as limit:
            if info:
                info.body = limit
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise codec.TooLarge(f"the body has more than the {most} bytes that this server takes")
                parts.append(part)
    except TimeoutError:
        raise Failure(408, f"the body did not arrive within {limits.patience:g} s", reason="slow") from None
    finally:
        if info:
            info.body = None
    return b"".join(parts)


async def drop_body(request: Request) -> None:
    """Reads what is left of a body that nobody needs, for `LINGER` at most.

    The connection closes after the answer, and the system would reset it over bytes that were not read: the client would be told
    of the reset, and not of the answer.
    """
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last: it was read
        async with asyncio.timeout(LINGER):
            async for _ in request.stream():
                pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled if the client goes away; the body has been read."""
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
