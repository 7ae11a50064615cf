"""Processes beside the server, workers and decoders of images, which can be killed if they crash or hang.

Such a process is `python -m MODULE FD`: it reads pickled messages from a socket and answers each. It ends when the other end
closes for whatever reason. `multiprocessing.connection` only blocks and would need a thread per process: the round trip of a
picture of 256x256 takes 0.13 ms with it and 0.06 ms with this framing.
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
        """None before it is started."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts the process without waiting until it is ready."""
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
        """Processor seconds used so far; 0 where the system does not tell (other than Linux)."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                user, system = file.read().rpartition(b")")[2].split()[11:13]
        except OSError:
            return 0.0
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    async def stop(self) -> str:
        """Kills the process; returns how it ended, its signal or exit code."""
        if not self._process:
            return "it was not started"
        with contextlib.suppress(subprocess.TimeoutExpired):  # after its socket has closed it is about to end by itself
            self._process.wait(0)
        self._process.kill()
        code = await asyncio.to_thread(self._process.wait)
        self._writer.close()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def answer_messages(answering: Callable[["Channel"], None]) -> None:
    """The `main` of such a process: calls `answering` with the channel to the server until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C and ends this process
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        with contextlib.suppress(EOFError, OSError):
            answering(Channel(connection))
        os._exit(0)  # without waiting for threads of the runtime


class Channel:
    """The process's end of the socket, blocking."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self) -> Any:
        """The next message; `EOFError` if the server closed."""
        return pickle.loads(self._read(*LENGTH.unpack(self._read(LENGTH.size))))

    def send(self, message: object) -> None:
        """Sends an answer, in one write, which wakes the other end once."""
        self._connection.sendall(b"".join(_packed(message)))

    def _read(self, count: int) -> bytearray:
        data, done = bytearray(count), 0
        while done < count:  # usually one pass; a signal may interrupt it
            if not (got := self._connection.recv_into(memoryview(data)[done:], 0, socket.MSG_WAITALL)):
                raise EOFError
            done += got
        return data


def _packed(message: object) -> tuple[bytes, bytes]:
    data = pickle.dumps(message, protocol=5)
    return LENGTH.pack(len(data)), data
