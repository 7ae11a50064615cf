"""Running the server: workers, engine, uvicorn."""

import asyncio
import ipaddress
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvicorn

from rcnet.serve.app import create_app
from rcnet.serve.desk import Limits
from rcnet.serve.engine import Engine
from rcnet.serve.policies import policy
from rcnet.serve.worker import Plan

DRAIN = 30  # seconds for the requests that are in progress at SIGTERM


@dataclass(frozen=True)
class Settings:
    """Of a server: see `rcnet serve --help`."""

    models: Sequence[str]
    objective: float
    policy: str = "slack"
    least: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    devices: Sequence[str] = ("cpu",)
    threads: int = 0
    precision: str = "auto"
    queue: int = 256
    batch: int = 8
    limits: Limits = field(default_factory=Limits)
    token: str = ""


def engine_of(settings: Settings) -> Engine:
    """The engine, not started."""
    plans = [Plan(tuple(settings.models), device, settings.precision, settings.threads) for device in settings.devices]
    return Engine(
        plans,
        policy(settings.policy),
        settings.objective,
        least=settings.least,
        bound=settings.queue,
        most=settings.batch,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in progress.

    Raises:
        InputError: models, settings or a policy that are not valid.
        OSError: the address cannot be listened on.
    """
    engine = engine_of(settings)
    try:
        await engine.start()
        app = create_app(engine, limits=settings.limits, token=settings.token, demonstration=is_loopback(settings.host))
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN,
            limit_concurrency=4 * settings.limits.requests,
        )
        listening = config.bind_socket()
        address = listening.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        print(f"rcnet serves {', '.join(engine.models)} at http://{shown}:{address[1]}", flush=True)
        server = uvicorn.Server(config)
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn drains at one, and raises it again when it is done
        await server.serve([listening])
    finally:
        await engine.stop()


def run(settings: Settings) -> None:
    """As `serve`, from code that is not asynchronous."""
    asyncio.run(serve(settings))
