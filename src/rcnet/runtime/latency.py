"""Measured latency of every setting: interleaved, kept per machine and reused."""

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rcnet.replacing import replacing
from rcnet.version import __version__

ROUNDS, WARM_UP = (
    30,
    3,
)  # timed and untimed calls per setting; p95 of 30 is the second largest: one outlier does not decide
KEPT, KEPT_IF_BUSY = 30 * 24 * 3600, 600  # lifetime of a measurement in seconds, and of one on a busy machine
SECONDS = 20.0  # a measurement ends after so long, as nobody waits longer for an answer, but not before FEWEST rounds
FEWEST = 5

Key = TypeVar("Key", bound=Hashable)


def interleaved(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    each: Callable[[], object] = lambda: None,
) -> dict[Key, list[float]]:
    """Milliseconds of each call, in rounds that run each call once, so that slow moments of the machine affect all alike.

    Args:
        rounds: timed rounds, after `WARM_UP` untimed ones.
        seconds: no new round starts after so long, except for the first `FEWEST`.
        each: called after each round, including untimed ones, for a progress bar.
    """
    times: dict[Key, list[float]] = {key: [] for key in calls}
    torch = sys.modules.get("torch")
    synchronize = torch.cuda.synchronize if torch and torch.cuda.is_available() else lambda: None
    started = time.perf_counter()
    for k in range(-WARM_UP, rounds):
        if k >= FEWEST and time.perf_counter() - started > seconds:
            break
        for key, call in calls.items():
            synchronize()
            before = time.perf_counter()
            call()
            synchronize()
            if k >= 0:
                times[key].append(1000 * (time.perf_counter() - before))
        each()
    return times


def summary(milliseconds: list[float]) -> dict[str, float]:
    """`ms`, the median, and `p95`, in milliseconds.

    Example:
        >>> summary([1.0, 9.0, 2.0])
        {'ms': 2.0, 'p95': 9.0}
    """
    ordered = sorted(milliseconds)
    return {"ms": statistics.median(ordered), "p95": ordered[-(-95 * len(ordered) // 100) - 1]}


def kept_measurements() -> Path:
    """The file of this user's measurements: in the folder `RCNET_CACHE`, else in the default cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcnet"
    return Path(os.environ.get("RCNET_CACHE") or usual) / "latency.json"


def measured_once(what: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """The result of `measure()` (JSON values) for `what`, which names hardware and runtime, too, measured now or earlier.

    A measurement expires after a month, or after ten minutes if the machine was busy. A file of measurements that cannot be read
    or written is ignored.
    """
    whole = {"rcnet": __version__, **what}
    key = hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:24]
    path = kept_measurements()
    kept = _read(path)
    if key not in kept:
        busy = is_busy()
        value = measure()
        kept = {**_read(path), key: {"about": whole, "value": value, "until": time.time() + (KEPT_IF_BUSY if busy else KEPT)}}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, f".{os.getpid()}") as temporary:
                temporary.write_text(json.dumps(kept, indent=1, default=str) + "\n")
        except OSError:
            return value
    return kept[key]["value"]


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text())
        return {key: entry for key, entry in kept.items() if "value" in entry and entry["until"] > time.time()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def is_busy() -> bool:
    """Whether other work used more than half of the processors in the last minute; False if the system has no load average."""
    try:
        return os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    except (OSError, AttributeError):
        return False
