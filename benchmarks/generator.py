"""An open-loop generator of HTTP load: each request goes out when it is due, whatever became of those before it.

It imports little and is meant to run in a process of its own (`multiprocessing`, start method spawn). Every request has a
connection of its own. At most so many are in flight: one that is due beyond that is not sent, and counts as without an answer.
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit


class Call(NamedTuple):
    """A request: seconds after the start at which it is due, path, body by its place."""

    due: float
    path: str
    body: int


class Outcome(NamedTuple):
    """The answer to a call: status (0: none), seconds from when it was due, when it was sent, headers in small letters, body."""

    status: int
    seconds: float
    lag: float
    headers: dict[str, str]
    body: bytes


def generate(url: str, calls: Sequence[Call], bodies: Sequence[bytes], most: int = 256, patience: float = 3.0) -> list[Outcome]:
    """The outcomes of the calls, each given up after `patience` seconds; they are in order of time."""
    gc.disable()  # its pauses would be read as the server's
    try:
        return asyncio.run(_generate(url, calls, bodies, most, patience))
    finally:
        gc.enable()


async def _generate(url: str, calls: Sequence[Call], bodies: Sequence[bytes], most: int, patience: float) -> list[Outcome]:
    address = urlsplit(url)
    start, flying, tasks = time.perf_counter() + 0.1, set[int](), []

    async def one(place: int, call: Call) -> Outcome:
        due = start + call.due
        lag = time.perf_counter() - due
        status, headers, body = 0, {}, b""
        try:
            async with asyncio.timeout(patience):
                status, headers, body = await _ask(str(address.hostname), int(address.port or 80), call.path, bodies[call.body])
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            flying.discard(place)
        return Outcome(status, time.perf_counter() - due, lag, headers, body)

    async def none(call: Call) -> Outcome:
        return Outcome(0, patience, time.perf_counter() - start - call.due, {}, b"")

    for place, call in enumerate(calls):
        await asyncio.sleep(max(start + call.due - time.perf_counter(), 0))
        if len(flying) < most:
            flying.add(place)
            tasks.append(asyncio.create_task(one(place, call)))
        else:
            tasks.append(asyncio.create_task(none(call)))
    return await asyncio.gather(*tasks)


def closed(url: str, path: str, bodies: Sequence[bytes], clients: int, seconds: float, patience: float = 30.0) -> list[Outcome]:
    """The outcomes of so many clients, each of which asks again as soon as it has its answer, whatever that is; for so long."""
    return asyncio.run(_closed(url, path, bodies, clients, seconds, patience))


async def _closed(url: str, path: str, bodies: Sequence[bytes], clients: int, seconds: float, patience: float) -> list[Outcome]:
    address, found = urlsplit(url), []
    end = time.perf_counter() + seconds

    async def client(place: int) -> None:
        while (sent := time.perf_counter()) < end:
            place += 1
            status, headers = 0, {}
            with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
                async with asyncio.timeout(patience):
                    body = bodies[place % len(bodies)]
                    status, headers, _ = await _ask(str(address.hostname), int(address.port or 80), path, body)
            found.append(Outcome(status, time.perf_counter() - sent, 0.0, headers, b""))

    await asyncio.gather(*(client(place) for place in range(clients)))
    return found


async def _ask(host: str, port: int, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        kind = "application/json" if body.startswith(b"{") else "image/png"
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: {kind}\r\n\r\n".encode() + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers, await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
