"""Running the server: workers, engine, uvicorn."""

import asyncio
import gc
import ipaddress
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from rcnet.errors import InputError
from rcnet.serve import logs
from rcnet.serve.app import create_app
from rcnet.serve.decoder import Decoders
from rcnet.serve.engine import Engine
from rcnet.serve.handler import Limits
from rcnet.serve.policies import policy
from rcnet.serve.worker import Plan

CONNECTIONS = 1000  # that may stand idle, beside those of requests
DRAIN = 30  # seconds for the requests that are in progress at SIGTERM
LOOK_AGAIN = 0.1  # seconds in which the loop reads what has arrived
GRACE = 0.5  # seconds before, in which what clients have sent, or the system has accepted, still comes in


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
    hosts: Sequence[str] = ()
    root_path: str = ""
    log: logs.Format = "none"


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


def bind(host: str, port: int, token: str) -> socket.socket:
    """A socket of that address, which takes no connections yet.

    Raises:
        InputError: the address cannot be listened on, or other machines reach it and there is no token.
    """
    if not 0 <= port < 65536:  # getaddrinfo may take it modulo 65536
        raise InputError(f"port {port} is not valid: from 0, a free one, to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise InputError(f"{host} port {port} cannot be listened on: {getattr(error, 'strerror', None) or error}") from error
    if not token and not is_loopback(bound.getsockname()[0]):
        bound.close()
        raise InputError(f"--host {host} lets other machines in: give a token with --token-file FILE or RCNET_TOKEN")
    return bound


def shown(bound: socket.socket) -> str:
    """Host and port."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Of a client, which is closed where it brings no whole request for `patience` seconds."""

    def __init__(self, *arguments: Any, patience: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.patience = patience
        self.waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.waiting and not self.idle:  # a whole request has come
            self.waiting.cancel()
            self.waiting = None
        self.wait()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self.waiting:
            self.waiting.cancel()

    def wait(self) -> None:
        """From now on, where no request is being answered, and it does not wait already."""
        if self.waiting is None and self.idle:
            self.waiting = self.loop.call_later(self.patience, self.give_up)

    def give_up(self) -> None:
        """Closes, unless a request has come meanwhile: a process that had no processor for long reads that first."""
        self.waiting = self.loop.call_later(LOOK_AGAIN, self.close)

    def close(self) -> None:
        self.waiting = None
        if self.idle and not self.transport.is_closing():
            self.transport.close()

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


class _Server(uvicorn.Server):
    """Loses no request when it stops: a connection may wait to be accepted, and a request may follow its connection."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Says that it stops to whoever asks or is answered, then takes no connection, then no request."""
        self.engine.stopping = True
        await asyncio.sleep(GRACE)
        for server in self.servers:
            server.close()
        await asyncio.sleep(GRACE)
        await super().shutdown(sockets)


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in progress.

    Raises:
        InputError: models, settings, a policy or an address that are not valid.
    """
    engine, decoders = engine_of(settings), Decoders(settings.limits.pixels)
    logs.configure(settings.log)
    listening = bind(settings.host, settings.port, settings.token)
    try:
        await asyncio.gather(engine.start(), decoders.start())
        app = create_app(
            engine,
            decoders,
            limits=settings.limits,
            token=settings.token,
            hosts={settings.host, *settings.hosts},
            root_path=settings.root_path,
            demonstration=is_loopback(settings.host),
        )
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN,
            http=partial(Connection, patience=settings.limits.patience),  # type: ignore[arg-type]
            limit_concurrency=CONNECTIONS + 4 * settings.limits.requests,
        )
        gc.freeze()  # a full collection of what the imports made would stop all for a tenth of a second
        print(f"rcnet serves {', '.join(engine.models)} at http://{shown(listening)}", flush=True)
        server = _Server(config, engine)
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn drains at one, and raises it again when it is done
        await server.serve([listening])
    finally:
        await asyncio.gather(engine.stop(), decoders.stop())


def run(settings: Settings) -> None:
    """As `serve`, from code that is not asynchronous."""
    asyncio.run(serve(settings))
