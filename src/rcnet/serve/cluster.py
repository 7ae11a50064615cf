"""The same engine on a Ray cluster: each replica adapts its settings at once, the cluster adds replicas slowly.

A front accepts connections and forwards each request to a replica; if the replica dies, it asks another one.
"""

import asyncio
import dataclasses
import logging
import os
import signal
import threading
import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from rcnet.deploy.sessions import check_source
from rcnet.errors import InputError
from rcnet.serve.app import check_token, create_app
from rcnet.serve.decoder import Decoders
from rcnet.serve.handler import Failure, failure_of, read_body
from rcnet.serve.policies import policy
from rcnet.serve.requests import Refused
from rcnet.serve.run import bind, engine_of, shown
from rcnet.serve.settings import Settings

NAME, ENGINE = "rcnet", "Engine"
TRIES = 3  # replicas that are tried for one request: one that kills three kills the others too
log = logging.getLogger(__name__)
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class Replica:
    """One engine and its application, in a process of the cluster."""

    def __init__(self, settings: Settings) -> None:
        device = "cuda:0" if settings.devices[0].startswith("cuda") else settings.devices[0]  # Ray assigns one GPU, as the first
        self.settings = dataclasses.replace(settings, devices=(device,))
        self.engine = engine_of(self.settings)
        self._starting = asyncio.Lock()
        self._app: Any = None

    async def answer(self, scope: dict[str, Any], body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, headers and body of the answer to one HTTP request."""
        await self._start()
        sent: list[Message] = []
        unread = [body]

        async def receive() -> Message:
            if not unread:
                await asyncio.Event().wait()  # a client that disconnects cancels this call
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(scope | {"type": "http", "asgi": {"version": "3.0"}}, receive, send)
        return sent[0]["status"], list(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])

    async def check_health(self) -> None:
        """Called by Ray periodically."""
        await self._start()
        if self.engine.failing:
            raise RuntimeError("no worker is up")

    async def _start(self) -> None:
        async with self._starting:
            if self._app is None:
                decoders = Decoders(self.settings.limits.pixels)
                await asyncio.gather(self.engine.start(), decoders.start())
                self._app = create_app(self.engine, decoders, self.settings)


def front(settings: Settings, most: int) -> Starlette:
    """The application that accepts connections, in one process of the cluster; it keeps the bodies of at most `most` requests."""
    engines = serve.get_deployment_handle(ENGINE, app_name=NAME)
    active = 0

    async def forward(request: Request) -> Response:
        nonlocal active
        counted = False
        try:
            if request.method != "GET":  # before its body is read
                check_token(request.headers.get("authorization", "").partition(" ")[2], settings.token)
                if active >= most:
                    raise Failure(429, "too many requests at once", 1.0, "busy")
                active, counted = active + 1, True
            body = b"" if request.method == "GET" else await read_body(request, settings.limits)
            keys = ("method", "path", "raw_path", "query_string", "headers", "http_version", "scheme", "client")
            asked = {"root_path": "", "rcnet.asked": time.time()}  # the objective includes the wait in Ray's queue
            scope = {key: request.scope[key] for key in keys if key in request.scope} | asked
            status, headers, data = await ask(scope, body)
        except Exception as error:
            known = isinstance(error, Failure | Refused | InputError | ClientDisconnect)
            failure = failure_of(error) if known else Failure(503, "a replica failed", 1.0, "failed")
            if not known:
                log.exception("a replica failed")
            return JSONResponse({"detail": str(failure)}, failure.status, failure.headers)
        finally:
            active -= counted
        response = Response(data, status)
        response.raw_headers = headers
        return response

    async def ask(scope: dict[str, Any], body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        for _ in range(TRIES):
            try:
                return await engines.answer.remote(scope, body)
            except (RayActorError, DeploymentUnavailableError):
                continue
        raise Failure(503, "no replica is up at the moment", 1.0, "down")

    return Starlette(routes=[Route("/{path:path}", forward, methods=METHODS)])


def application(settings: Settings, replicas: tuple[int, int]) -> serve.Application:
    """The application for `ray.serve.run`: from the least to the most replicas, each on the first device of the settings."""
    low, high = replicas
    scale: dict[str, Any] = {"num_replicas": low}
    if high > low:
        many = {"min_replicas": low, "max_replicas": high, "target_ongoing_requests": max(settings.limits.requests // 4, 1)}
        scale = {"autoscaling_config": many}
    needs = {"num_gpus": int(settings.devices[0].startswith("cuda")), "num_cpus": max(settings.threads, 1)}
    engine = serve.deployment(
        name=ENGINE, max_ongoing_requests=2 * settings.limits.requests, ray_actor_options=needs, health_check_period_s=5, **scale
    )(Replica)
    ingress = serve.ingress(lambda: front(settings, high * 2 * settings.limits.requests))()
    gate = serve.deployment(name="Front", num_replicas=1, max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0})
    return gate(ingress).bind(engine.bind(settings))


def run(settings: Settings, replicas: tuple[int, int]) -> None:
    """Serves on the cluster at RAY_ADDRESS, or on a new one of this machine alone, until SIGTERM or SIGINT."""
    policy(settings.policy)  # bad settings fail here and not in every replica
    for source in settings.models:
        check_source(source)
    with bind(settings.host, settings.port, settings.token) as free:
        port, address = free.getsockname()[1], shown(free)
    if not os.environ.get("RAY_ADDRESS"):
        ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": settings.host, "port": port})
    try:
        serve.run(application(settings, replicas), name=NAME, route_prefix="/")
    except RuntimeError as error:
        serve.delete(NAME)
        raise InputError(f"the replicas cannot be started: {' '.join(str(error).split())}") from error
    print(f"rcnet serves {', '.join(settings.models)} at http://{address}", flush=True)
    ended = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: ended.set())
    ended.wait()
    serve.delete(NAME)
