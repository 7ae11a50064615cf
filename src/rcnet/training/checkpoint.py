"""The folder of a run: its checkpoint, which survives a kill at any time, its log, and a lock that admits one process."""

import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rcnet.errors import InputError
from rcnet.replacing import naming, replacing

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder would disturb each other
    fcntl = None  # type: ignore[assignment]

KEPT = ("checkpoint.pt", "weights.safetensors", "result.json")  # what a run must not overwrite


@contextmanager
def locked(folder: Path, name: str = "training.lock", tries: int = 10) -> Iterator[None]:
    """Locks a folder for this process; `InputError` after `tries` tries. The lock ends with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a")
    except OSError as error:
        raise InputError(f"cannot use {folder} as the folder of a run: {error.strerror}") from error
    with file:
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                tries -= 1
                if tries < 1:
                    raise InputError(f"another process is using {folder}: wait for it or stop it") from error
                time.sleep(0.1)  # the other process may hold the lock only briefly, to read the state
            except OSError:  # a file system without locks
                break
        yield


def can_resume(out: Path, resume: bool) -> bool:
    """Whether the folder holds a checkpoint to resume from. `InputError` if the run would overwrite a finished one."""
    there = [name for name in KEPT if (out / name).exists()]
    if there and not resume:
        raise InputError(f"{out} already contains a run: add --resume to continue it, or choose another folder with --out")
    if there and KEPT[0] not in there:
        raise InputError(f"{out} contains {there[0]} but no {KEPT[0]} to resume from: choose another folder with --out")
    return bool(there)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically."""
    content = io.BytesIO()
    torch.save(state, content)  # in memory first: on a full disk, torch.save would abort the process
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path, run: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The state. `InputError` if the file is not a checkpoint or belongs to another run than `run` describes.

    usual: the defaults of keys, for those that did not exist when the checkpoint was written.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = {**usual, **_flat(state["run"])}
    except Exception as error:  # torch.load raises almost anything on a broken file
        raise InputError(f"{path} is not a checkpoint of rcnet: delete it to start again, or choose another folder") from error
    run = _flat(run)
    keys = sorted(run.keys() | {key for key in theirs if key.startswith("model.")})
    if differing := [
        f"{key} was {theirs.get(key)!r} and is now {run.get(key)!r}" for key in keys if theirs.get(key) != run.get(key)
    ]:
        more = f" ({len(differing) - 1} more keys differ)" if len(differing) > 1 else ""
        raise InputError(
            f"{path} belongs to another run: {differing[0]}{more}; "
            "resume with the same recipe and data, or start in another folder with --out"
        )
    return state


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    parts = [_flat(x, f"{prefix}{key}.") if isinstance(x, dict) else {prefix + key: x} for key, x in values.items()]
    return {key: x for part in parts for key, x in part.items()}


def read_result(path: Path) -> dict[str, Any]:
    """The result that a finished run wrote."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged: delete it and add --resume to write it again") from error


def add_line(path: Path, values: dict[str, Any]) -> None:
    """Appends to a JSONL log."""
    with naming(path), path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def cut_log(path: Path, iteration: int) -> None:
    """Drops damaged lines of a JSONL log and those that a run resumed at `iteration` will write again."""
    if not path.exists():
        return
    text = path.read_text(errors="replace")
    lines = []
    for line in text.splitlines():
        try:
            if json.loads(line)["iteration"] <= iteration:
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    kept = "".join(line + "\n" for line in lines)
    if kept != text:
        with replacing(path) as temporary:
            temporary.write_text(kept)
