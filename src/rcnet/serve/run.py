"""Running the server: workers, engine, uvicorn."""

import asyncio
import gc
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from rcnet.errors import InputError
from rcnet.serve import logs
from rcnet.serve.app import create_app
from rcnet.serve.decoder import Decoders
from rcnet.serve.engine import Engine
from rcnet.serve.middleware import address_of
from rcnet.serve.policies import policy
from rcnet.serve.settings import Settings
from rcnet.serve.worker import Plan, Worker

CONNECTIONS = 1000  # idle ones, besides those of requests
DRAIN = 30  # seconds for requests in progress at SIGTERM; Kubernetes waits as long by default
LOOK_AGAIN = 0.1  # seconds for the event loop to read what has already arrived
GRACE = 0.5  # seconds for requests that clients have sent or the system has accepted already


def engine_of(settings: Settings, make: Callable[[Plan], Worker] = Worker) -> Engine:
    """The engine, before it is started."""
    plans = [Plan(tuple(settings.models), device, settings.precision, settings.threads) for device in settings.devices]
    chosen, least = policy(settings.policy), settings.least
    return Engine(plans, chosen, settings.objective, least=least, bound=settings.queue, most=settings.batch, make=make)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at this address.

    Example:
        >>> is_loopback("127.0.0.2"), is_loopback("0.0.0.0")
        (True, False)
    """
    address = address_of(host)
    return host == "localhost" if address is None else address.is_loopback


def bind(host: str, port: int, token: str) -> socket.socket:
    """A socket at this address, which accepts no connections yet.

    Raises:
        InputError: the address cannot be used, or other machines can reach it and there is no token.
    """
    if not 0 <= port < 65536:  # getaddrinfo may take it modulo 65536
        raise InputError(f"port {port} is not valid: give 1 to 65535, or 0 for any free port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error
    if not token and not is_loopback(bound.getsockname()[0]):
        bound.close()
        raise InputError(f"--host {host} is open to other machines: give a token with --token-file FILE or RCNET_TOKEN")
    return bound


def shown(bound: socket.socket) -> str:
    """HOST:PORT of a socket."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A client's connection; it is closed after `patience` seconds without a complete request."""

    def __init__(self, *arguments: Any, patience: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.patience = patience
        self.waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.waiting and not self.idle:  # a complete request has arrived
            self.waiting.cancel()
            self.waiting = None
        self.wait()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self.waiting:
            self.waiting.cancel()

    def wait(self) -> None:
        """Starts the timer, unless a request is being answered or it runs already."""
        if self.waiting is None and self.idle:
            self.waiting = self.loop.call_later(self.patience, self.give_up)

    def give_up(self) -> None:
        """Closes unless a request arrives; a process that had no processor for long first reads what has come."""
        self.waiting = self.loop.call_later(LOOK_AGAIN, self.close)

    def close(self) -> None:
        self.waiting = None
        if self.idle and not self.transport.is_closing():
            self.transport.close()

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


class _Server(uvicorn.Server):
    """A server that loses no request when it stops, not even one whose connection is not accepted yet."""

    def __init__(self, config: uvicorn.Config, engine: Engine, address: str) -> None:
        super().__init__(config)
        self.engine, self.address = engine, address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where it listens, once it does."""
        await super().startup(sockets)
        print(f"rcnet serves {', '.join(self.engine.models)} at http://{self.address}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Reports that it is stopping, then accepts no connections, then no requests."""
        self.engine.stopping = True
        await asyncio.sleep(GRACE)
        for server in self.servers:
            server.close()
        await asyncio.sleep(GRACE)
        await super().shutdown(sockets)


async def serve(settings: Settings, engine: Engine) -> None:
    """Serves until SIGTERM or SIGINT, then finishes requests in progress.

    Raises:
        InputError: an invalid model, setting or address.
    """
    decoders = Decoders(settings.limits.pixels)
    logs.configure(settings.log)
    listening = bind(settings.host, settings.port, settings.token)
    try:
        await asyncio.gather(engine.start(), decoders.start())
        app = create_app(engine, decoders, settings, demonstration=is_loopback(settings.host))
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
        gc.freeze()  # a full garbage collection would stop everything for a tenth of a second
        server = _Server(config, engine, shown(listening))
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again after draining
        await server.serve([listening])
    finally:
        await asyncio.gather(engine.stop(), decoders.stop())
