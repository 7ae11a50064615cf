"""The console of a run: its progress, TensorBoard, and the signals that stop it."""

import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rcnet.errors import InputError


class Progress:
    """A line on stderr about a run: rewritten in place in a terminal, printed once a minute elsewhere."""

    def __init__(self, shown: bool) -> None:
        self.shown, self.terminal = shown, sys.stderr.isatty()
        self.every = 0.2 if self.terminal else 60.0  # seconds
        self.last, self.line = time.monotonic(), ""

    def __call__(self, done: float, text: str) -> None:
        """Shows the fraction of the run that is done, and a text."""
        self.line = f"{done:6.1%} {text}"
        if self.shown and time.monotonic() - self.last >= self.every:
            self.write("" if self.terminal else "\n")
            self.last = time.monotonic()

    def end(self) -> None:
        """Leaves the last line in a terminal."""
        if self.shown and self.terminal and self.line:
            self.write("\n")

    def write(self, end: str) -> None:
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be rewritten
        print(f"\r\x1b[K{self.line[:width]}" if self.terminal else self.line, end=end, file=sys.stderr, flush=True)


def clock_text(seconds: float) -> str:
    """1:02:03 for hours, minutes and seconds."""
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"


class Board:
    """TensorBoard's log of a run."""

    def __init__(self, folder: Path, iteration: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("TensorBoard is not installed: pip install 'rcnet[tensorboard]'") from error
        self.writer: Any = SummaryWriter(str(folder), purge_step=iteration + 1)  # type: ignore[no-untyped-call]

    def add(self, iteration: int, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            if name != "iteration":
                self.writer.add_scalar(name, value, iteration)
        self.writer.flush()

    def add_rows(self, iteration: int, rows: list[dict[str, Any]]) -> None:
        """The figures of each setting, and noise level if there are several, as `validation/psnr, steps 1, sigma 25`."""
        for row in rows:
            where = "".join(f", {key} {row[key]}" for key in ("steps", "sigma") if key in row)
            figures = {f"validation/{key}{where}": x for key, x in row.items() if isinstance(x, float) and key != "sigma"}
            self.add(iteration, figures)


@contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP (the terminal has closed) call `stop`, so that the run ends after a whole iteration.

    A second one ends it at once. A signal that is ignored, as `nohup` ignores SIGHUP, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
    ]  # Windows has no SIGHUP
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN}

    def on_signal(number: int, frame: object) -> None:
        stop()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
