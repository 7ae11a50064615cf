"""Malformed requests against the real server: damaged images, wrong parameters, broken HTTP, slow clients and ones that leave.

    pip install 'rcnet[serve]'
    python -m benchmarks.fuzz [--requests 10000] [--seed 0]

Starts `rcnet serve` on loopback and sends it requests of a seeded generator, eight at a time, and honest ones beside them. It
fails if any answer is a 5xx, if a request that was sent whole gets no answer or one later than the objective and a second, if an
honest request is not answered within the objective, if the memory of the server and its processes (Linux: proportional set size)
grows by more than a twentieth after the first thousand, or if the server does not denoise an image at the end.
"""

import asyncio
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import hostile
from benchmarks.page import options

SERVER = ("r3_fast.photo", "r2.cifar10", "--max-pixels", "40000", "--max-mb", "1", "--patience", "2")
OBJECTIVE, MORE = 3.0, 1.0  # seconds of the server, and more after which an answer is late
AT_ONCE, PATIENCE = 8, 60.0  # clients; seconds after which an answer is given up
HONEST = 0.5  # seconds between two honest requests
WARM, GROWTH = 1000, 1.05  # requests before memory is compared; times more that it may be at the end
SIDES = (1, 2, 7, 33, 48, 1000, 4096)  # few: the runtime keeps what it prepared for each size of an image
MOST = 2 << 20  # bytes of a body: twice what the server takes; it reads a second long, and closes then
FORMATS = ("PNG", "JPEG", "WebP", "npy")
WORDS = (
    "",
    "0",
    "-1",
    "1",
    "2",
    "1,1,1",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "9" * 300,
    "null",
    "../etc/passwd",
    "%00",
    "%F0%9F%99%82",
)
NAMES = ("model", "steps", "sigma", "strength", "deadline_ms", "top", "nothing", "")


@dataclass(frozen=True)
class Shot:
    """One request: bytes in parts with pauses of so many seconds between, and whether the client waits for the answer."""

    kind: str
    parts: tuple[bytes, ...]
    pause: float = 0.0
    waits: bool = True
    valid: bool = True  # HTTP that has to be answered


@dataclass
class Report:
    """What was seen: statuses by kind of request, what was wrong, bytes of the server's processes by number of requests, seconds
    of the honest requests."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: dict[int, list[int]] = field(default_factory=dict)
    honest: list[float] = field(default_factory=list)


def picture(rng: random.Random, kind: str) -> bytes:
    """A small image of noise in this format, or a large one that is black."""
    shape = (rng.choice(SIDES), rng.choice(SIDES), *rng.choice(((), (1,), (3,), (3,))))
    few = shape[0] * shape[1] <= 40_000
    array = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256 if few else 1, shape, np.uint8)
    stream = io.BytesIO()
    if kind == "npy":
        np.save(stream, array)
    else:
        Image.fromarray(array.squeeze(-1) if shape[2:] == (1,) else array).save(stream, kind)
    return stream.getvalue()[:MOST]


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes that were changed, cut, doubled or mixed."""
    kept = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30))):
        place = rng.randrange(max(min(len(kept), rng.choice((40, 1 << 20))), 1))
        way = rng.randrange(5)
        if way == 0 and kept:
            kept[place] = rng.randrange(256)
        elif way == 1:
            kept[place:] = b""
        elif way == 2:
            kept[place:place] = rng.randbytes(rng.randrange(20))
        elif way == 3:
            kept[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        else:
            kept[place:place] = kept[rng.randrange(len(kept) + 1) :][:100]
    return bytes(kept)


def repaired(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold, so that a decoder looks at that; other bytes as they are."""
    kept, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(kept):
        end = at + 8 + int.from_bytes(kept[at : at + 4])
        if end + 4 > len(kept):
            break
        kept[end : end + 4] = zlib.crc32(kept[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(kept)


def query(rng: random.Random) -> str:
    pairs = (f"{rng.choice(NAMES)}={rng.choice(WORDS)}" for _ in range(rng.randrange(4)))
    return "?" + rng.choice(("&", "&", ";")).join(pairs)


def post(path: str, body: bytes, headers: str = "", length: int | None = None) -> bytes:
    declared = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {declared}\r\n\r\n".encode()
        + body
    )


def path_of(rng: random.Random) -> str:
    return rng.choice(("/v1/denoise", "/v1/denoise", "/v1/classify"))


def image_shot(rng: random.Random) -> Shot:
    data = damaged(rng, picture(rng, rng.choice(FORMATS)))
    return Shot("damaged image", (post(path_of(rng), repaired(data) if rng.random() < 0.5 else data),))


def slow_file_shot(rng: random.Random) -> Shot:
    data = rng.choice(
        (
            lambda: hostile.jpeg_of_scans(8, 8, rng.choice((99, 101, 40_000))),
            lambda: hostile.jpeg_of_scans(200, 200, 99, refining=True)[: rng.choice((-2, None))],
            lambda: hostile.png_of_texts(rng.choice((900, 40_000))),
            lambda: hostile.png_of_bombs(rng.choice((60, 900))),
            lambda: hostile.png(4096, rng.choice((8, 4096)), pieces=rng.choice((1, 1000))),
        )
    )()
    return Shot("slow file", (post(path_of(rng), data),))


def noise_shot(rng: random.Random) -> Shot:
    start = rng.choice((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8X", b"\x93NUMPY\x01\0"))
    return Shot("random bytes", (post(path_of(rng), start + rng.randbytes(rng.randrange(400))),))


def query_shot(rng: random.Random) -> Shot:
    accept = rng.choice(("", "", *(f"Accept: {kind}\r\n" for kind in ("image/jpeg", "application/json", ";;,", "text/html"))))
    return Shot("parameters", (post(path_of(rng) + query(rng), picture(rng, rng.choice(FORMATS)), accept),))


def valid_shot(rng: random.Random) -> Shot:
    return Shot("valid", (post(path_of(rng), picture(rng, rng.choice(FORMATS))),))


def http_shot(rng: random.Random) -> Shot:
    body = picture(rng, "PNG")
    chunked = b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw = rng.choice(
        (
            rng.randbytes(rng.randrange(1, 200)) + b"\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            post("/v1/denoise", b"").replace(b"POST", rng.choice((b"PUT", b"DELETE", b"PATCH", b"BREW"))),
            post("/v1/denoise", body, f"X: {'y' * rng.choice((10, 100_000))}\r\n"),
            post("/v1/denoise", body, length=rng.choice((-1, 10**30, 5))),
            chunked + b"zz\r\n" + body,
            chunked + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n",
            post("/" + "a" * rng.choice((10, 5000)) + query(rng), body),
        )
    )
    return Shot("broken HTTP", (raw,), valid=False)


def slow_shot(rng: random.Random) -> Shot:
    data = post(path_of(rng), picture(rng, "PNG"))
    cut = rng.randrange(1, len(data))
    return Shot("slow client", (data[:cut], data[cut:]), rng.choice((0.05, 3.0)), valid=False)


def leaving_shot(rng: random.Random) -> Shot:
    data = post(path_of(rng), picture(rng, "PNG"))
    return Shot("client that leaves", (data[: rng.choice((rng.randrange(1, len(data)), len(data)))],), waits=False, valid=False)


SHOTS: tuple[tuple[Callable[[random.Random], Shot], float], ...] = (
    (image_shot, 0.4),
    (slow_file_shot, 0.05),
    (noise_shot, 0.1),
    (query_shot, 0.2),
    (valid_shot, 0.05),
    (http_shot, 0.1),
    (slow_shot, 0.02),
    (leaving_shot, 0.08),
)


async def send(host: str, port: int, shot: Shot) -> int:
    """The status of the answer; 0 if there was none."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for place, part in enumerate(shot.parts):
            await asyncio.sleep(shot.pause if place else 0)
            writer.write(part)
            await writer.drain()
        if not shot.waits:
            writer.transport.abort() if len(shot.parts[0]) % 2 else writer.close()
            return 0
        if not shot.valid:
            with contextlib.suppress(OSError, NotImplementedError):
                writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0
    finally:
        writer.close()


async def fuzz(url: str, pid: int, requests: int, seed: int = 0, objective: float = OBJECTIVE) -> Report:
    """Sends so many requests to the server at a URL, whose process is `pid`, and honest ones beside them."""
    report = Report()
    host, port = url.removeprefix("http://").split(":")
    makers, weights = zip(*SHOTS, strict=True)
    left = iter(range(requests))

    async def client() -> None:
        for place in left:
            rng = random.Random(f"{seed} {place}")
            shot = await asyncio.to_thread(rng.choices(makers, weights)[0], rng)  # a large picture takes seconds to encode
            started = time.perf_counter()
            try:
                status = await send(host, int(port), shot)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                status = 0
                if shot.valid:
                    report.wrong.append(f"request {place}, {shot.kind}: {type(error).__name__} {error}")
            report.statuses[shot.kind, status] += 1
            seconds = time.perf_counter() - started
            if shot.valid and seconds > objective + MORE:
                report.wrong.append(f"request {place}, {shot.kind}: answered {status} after {seconds:.1f} s")
            if status >= 500 or (status == 0 and shot.valid and shot.waits):
                report.wrong.append(f"request {place}, {shot.kind}: answered {status}: {shot.parts[0][:300]!r}")
            if place % 250 == 249:
                report.memory[place + 1] = memory(pid)

    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)).save(stream, "PNG")
    small = post("/v1/denoise", stream.getvalue())

    async def honest() -> None:
        while True:
            started = time.perf_counter()
            status = await send(host, int(port), Shot("honest", (small,)))
            report.honest.append(time.perf_counter() - started)
            if status != 200 or report.honest[-1] > objective:
                report.wrong.append(f"an honest request: answered {status} after {report.honest[-1]:.2f} s")
            await asyncio.sleep(HONEST)

    beside = asyncio.create_task(honest())
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    beside.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await beside
    last = Shot("at the end", (small,))
    status = await send(host, int(port), last)
    for _ in range(5):  # what was sent last may still be under way, and a client that never waited is asked to
        if status != 429:
            break
        await asyncio.sleep(1)
        status = await send(host, int(port), last)
    if status != 200:
        report.wrong.append(f"the server does not denoise an image at the end: {status}")
    warm = [sum(sizes) for count, sizes in sorted(report.memory.items()) if count >= WARM]
    if len(warm) > 1 and warm[-1] > GROWTH * warm[0]:
        report.wrong.append(f"memory grew from {warm[0] >> 20} to {warm[-1] >> 20} MiB after the first {WARM} requests")
    return report


def memory(pid: int) -> list[int]:
    """Bytes of a process and of its children; none where there is no /proc."""
    found = []
    with contextlib.suppress(OSError):
        for one in (pid, *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            with contextlib.suppress(OSError, StopIteration):  # a decoder may have been ended meanwhile
                lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
                found.append(1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1]))
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command = [sys.executable, "-m", "rcnet", "serve", *SERVER, "--slo", f"{OBJECTIVE:g}s", "--threads", "1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        try:
            report = asyncio.run(fuzz(url, process.pid, args.requests, args.seed))
        finally:
            process.terminate()
            status = process.wait(60)
    if status:
        report.wrong.append(f"the server ended with status {status}")
    for kind in sorted({kind for kind, _ in report.statuses}):
        found = {status or "none": count for (of, status), count in sorted(report.statuses.items()) if of == kind}
        print(f"{kind}: {json.dumps(found)}")
    times = sorted(report.honest)
    print(f"honest: {len(times)} requests, median {times[len(times) // 2]:.3f} s, longest {times[-1]:.3f} s")
    print(
        "MiB of server, worker and decoders:", {n: [size >> 20 for size in sizes] for n, sizes in sorted(report.memory.items())}
    )
    print("\n".join(report.wrong[:20]) or "nothing was wrong")
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
