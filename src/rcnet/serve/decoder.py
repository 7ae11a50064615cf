"""Decoding of images in separate processes, which are killed if a file keeps them busy for too long.

Free decoders take files from the clients in turn, smaller files first. A decoder is killed at its file's deadline, or if it works
on a file for much longer than its size explains while another file waits; beyond its processor time it kills itself.
"""

import asyncio
import itertools
import logging
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rcnet.data.formats import ImageFile
from rcnet.errors import InputError
from rcnet.serve import codec
from rcnet.serve.process import Channel, Process, ProcessDied, answer_messages
from rcnet.serve.requests import Refused

AT_ONCE, SPARE = 2, 1  # files that are decoded at once; decoders that are ready to replace a killed one
# A PNG of 16 bits, the slowest honest file, takes 0.06 s of the processor per megapixel on a fast core; others take 0.02 or less.
BUDGET, BUDGET_PER_MEGAPIXEL = 0.5, 0.5  # processor seconds per file, and in addition per megapixel, before it is given up
# Processor seconds after which a file gives way to one that waits; starting another decoder takes as long.
PREEMPT, PREEMPT_PER_MEGAPIXEL = 0.25, 0.1
LOOK = 0.02  # seconds between two checks of that; the system counts processor time in hundredths
AGAIN = 1.0  # seconds between two attempts to start a decoder
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Task:
    """A file that waits or is being decoded, and its result."""

    data: bytes
    pixels: int
    client: str
    until: float
    serial: int
    image: asyncio.Future[ImageFile] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    used: float = 0.0


class Decoders:
    """The server's end of the decoders; `most` is the largest number of pixels of an image."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.ended = 0  # decoders that were killed
        self._ready: list[Process] = []
        self._waiting: list[Task] = []
        self._running: dict[Task, Process] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._serial = itertools.count()
        self._clock = time.perf_counter

    async def start(self) -> None:
        """Starts the processes and waits until they are ready, or `InputError`."""
        try:
            await asyncio.gather(*(self._add() for _ in range(AT_ONCE + SPARE)))
        except ProcessDied:
            raise InputError("a decoder of images ended while it started; its messages are above") from None

    async def stop(self) -> None:
        """Kills the processes."""
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)  # each kills the process that it was starting
        await asyncio.gather(*(process.stop() for process in [*self._ready, *self._running.values()]))

    async def decode(self, data: bytes, pixels: int, client: str, until: float) -> ImageFile:
        """The image in a body with so many pixels, before `time.perf_counter` reaches `until`.

        Raises:
            InputError: what `codec.decode` raises, or more processor time than any honest image of its size takes.
            Refused: no decoder was free in time, the file kept one busy while others waited, or its decoder died.
        """
        task = Task(data, pixels, client, until, next(self._serial))
        self._waiting.append(task)
        self._next()
        try:
            async with asyncio.timeout(max(until - self._clock(), 0)):
                return await task.image
        except TimeoutError:
            if task in self._running:
                raise Refused("late", "the image was not decoded in time", 1.0) from None
            raise Refused("busy", "too many images wait to be decoded", 1.0) from None
        finally:
            with suppress(ValueError):
                self._waiting.remove(task)
            if task in self._running:  # its client disconnected, or it is late
                self._end(task)

    def _next(self) -> None:
        """Gives files to free decoders: of the client with the fewest at work, then the smallest by bytes and pixels."""
        while self._waiting and self._ready and len(self._running) < AT_ONCE:
            work = Counter(task.client for task in self._running)
            task = min(self._waiting, key=lambda task: (work[task.client], len(task.data) + task.pixels, task.serial))
            self._waiting.remove(task)
            process = self._running[task] = self._ready.pop(0)
            task.used = process.processor_seconds()
            self._keep(self._run(task))
        if self._waiting and not self._timer:
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._preempt)

    async def _run(self, task: Task) -> None:
        process = self._running[task]
        try:
            answer = await process.exchange((task.data, self.most, BUDGET + BUDGET_PER_MEGAPIXEL * task.pixels / 1e6))
        except ProcessDied:
            if self._running.pop(task, None):
                end = await process.stop()
                log.warning("a decoder died over an image (%s): starting another", end)
                if signal.SIGPROF.name in end:  # of the limit on processor time
                    self._give(task, InputError("the image takes too long to decode: save it as an ordinary PNG or JPEG"))
                else:
                    self._give(task, Refused("failed", "the decoder died over this image", 1.0))
                self._keep(self._replace(process))
        else:
            if self._running.pop(task, None):
                self._give(task, answer)
                self._ready.append(process)
        self._next()

    def _preempt(self) -> None:
        """Kills decoders that are busy for too long while files wait."""
        self._timer = None
        for task, process in list(self._running.items()):
            allowed = PREEMPT + PREEMPT_PER_MEGAPIXEL * task.pixels / 1e6
            if not self._waiting or process.processor_seconds() - task.used < allowed:
                continue
            self._give(task, Refused("busy", "this image takes long to decode, and others wait", 1.0))
            self._end(task)
        self._next()

    def _end(self, task: Task) -> None:
        process = self._running.pop(task)
        self.ended += 1
        self._keep(self._replace(process))
        self._next()

    async def _replace(self, process: Process) -> None:
        await process.stop()
        while True:
            try:
                return await self._add()
            except (ProcessDied, OSError) as error:
                log.error("a decoder cannot be started: %s", error or "it ended")
                await asyncio.sleep(AGAIN)

    async def _add(self) -> None:
        process = Process("rcnet.serve.decoder")
        try:
            await process.start()
            await process.exchange(None)  # the answer says that it is ready
        except BaseException:
            await process.stop()
            raise
        self._ready.append(process)
        self._next()

    def _give(self, task: Task, answer: ImageFile | Exception) -> None:
        if task.image.done():
            return
        if isinstance(answer, Exception):
            task.image.set_exception(answer)
        else:
            task.image.set_result(answer)

    def _keep(self, job: Coroutine[Any, Any, None]) -> None:
        kept = asyncio.ensure_future(job)
        self._jobs.add(kept)
        kept.add_done_callback(self._jobs.discard)


def answer(channel: Channel) -> None:
    """Decodes each received file, within a number of pixels and processor seconds that come with it."""
    from PIL import Image

    Image.preinit()
    channel.receive()
    channel.send(None)
    while True:
        data, most, seconds = channel.receive()
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal kills the process even inside libjpeg
        result: ImageFile | Exception
        try:
            result = codec.decode(data, most)
        except InputError as error:
            result = error
        signal.setitimer(signal.ITIMER_PROF, 0)
        channel.send(result)


if __name__ == "__main__":
    answer_messages(answer)
