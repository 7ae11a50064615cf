"""Processes beside the server, so that what crashes or hangs there can be ended: the workers, and the decoders of images.

Such a process is `python -m MODULE FD`: it reads messages from a socket and writes an answer to each, both pickled by this
package. It ends when the other end closes, however that came about. The framing is our own because `multiprocessing.connection`
only blocks and so needs a thread for each process: a picture of 256x256 takes 0.13 ms there and back with it, and 0.06 ms so.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

LENGTH = struct.Struct(">Q")


class ProcessDied(Exception):
    """The process ended before it answered."""


class Process:
    """The server's end of one process, which runs the `main` of a module."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, None before it is started."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts the process, which may not be ready yet."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", self.module, str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 22)

    async def exchange(self, message: object) -> Any:
        """The answer to a message.

        Raises:
            ProcessDied: the process ended.
        """
        try:
            self._writer.writelines(_packed(message))
            await self._writer.drain()
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            return pickle.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ProcessDied from error

    def processor_seconds(self) -> float:
        """Seconds of the processor that it used so far, where the system tells (Linux); else 0."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                user, system = file.read().rpartition(b")")[2].split()[11:13]
        except OSError:
            return 0.0
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    async def stop(self) -> str:
        """Ends the process, and says how it ended: by which signal, or with which exit code."""
        if not self._process:
            return "it was not started"
        with contextlib.suppress(subprocess.TimeoutExpired):  # one whose socket has closed is about to end by itself
            self._process.wait(0)
        self._process.kill()
        code = await asyncio.to_thread(self._process.wait)
        self._writer.close()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def answer_messages(answering: Callable[["Channel"], None]) -> None:
    """The `main` of such a process: calls `answering` with the channel to the server, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this process
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        with contextlib.suppress(EOFError, OSError):
            answering(Channel(connection))
        os._exit(0)  # without waiting for threads of the runtime


class Channel:
    """The process's end: blocking."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self) -> Any:
        """The next message; `EOFError` if the server closed."""
        return pickle.loads(self._read(*LENGTH.unpack(self._read(LENGTH.size))))

    def send(self, message: object) -> None:
        """An answer; one write wakes the other end once."""
        self._connection.sendall(b"".join(_packed(message)))

    def _read(self, count: int) -> bytearray:
        data, done = bytearray(count), 0
        while done < count:  # once, unless a signal comes between
            if not (got := self._connection.recv_into(memoryview(data)[done:], 0, socket.MSG_WAITALL)):
                raise EOFError
            done += got
        return data


def _packed(message: object) -> tuple[bytes, bytes]:
    data = pickle.dumps(message, protocol=5)
    return LENGTH.pack(len(data)), data
