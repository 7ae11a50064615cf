"""Checkpoints, written to a temporary file and renamed, so that a killed run leaves the last whole one."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from rcnet.errors import InputError
from rcnet.replacing import replacing


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The state, or `InputError` if the file is not a checkpoint, or one of another run than `run` describes."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = dict(state["run"])
    except Exception as error:  # torch.load raises almost anything on a broken file
        raise InputError(f"{path} is not a checkpoint of rcnet: delete it to start anew, or choose another folder") from error
    differing = sorted(key for key in theirs.keys() | run.keys() if theirs.get(key) != run.get(key))
    if differing:
        key = differing[0]
        raise InputError(
            f"{path} is of another run: {key} was {theirs.get(key)!r} and is now {run.get(key)!r}; "
            "resume with the same recipe and data, or start in another folder with --out"
        )
    return state


def cut_log(path: Path, iteration: int) -> None:
    """Drops the lines of a JSONL log that a run resumed at `iteration` will write again, and those that are damaged."""
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
