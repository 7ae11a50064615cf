"""The console of a run: progress bar, TensorBoard, and the signals that stop it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rcnet.errors import InputError


class NoBar(nullcontext[None]):
    """Replaces tqdm's bar if tqdm is not installed."""

    n = 0.0

    def set_description_str(self, text: str) -> None:
        pass


def progress_bar(done: float, shown: bool) -> Any:
    """A progress bar on stderr for the fraction of a run that is done; a `NoBar` if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return NoBar()
    shape = "{percentage:5.1f}%|{bar:24}| {desc}"
    return tqdm(total=1.0, initial=done, disable=None if shown else True, bar_format=shape)


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
        """The figures of each step count."""
        for row in rows:
            self.add(iteration, {f"{key} at steps {row['steps']}": x for key, x in row.items() if isinstance(x, float)})


@contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `stop`, so that the run ends after a whole iteration; a second Ctrl-C ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

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
