"""Checkpoints, written to a temporary file and renamed, so that a killed run leaves the last whole one."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from rcnet.errors import InputError


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_checkpoint(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The state, or `InputError` if the file is not a checkpoint, or one of a run with another recipe."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = state["recipe"]
    except Exception as error:  # torch.load raises almost anything on a broken file
        raise InputError(f"{path} is not a checkpoint that this version can read: {error}") from error
    differing = sorted(key for key in theirs.keys() | recipe.keys() if theirs.get(key) != recipe.get(key))
    if differing:
        key = differing[0]
        raise InputError(
            f"{path} is of a run with another recipe: {key} was {theirs.get(key)!r} and is now {recipe.get(key)!r}; "
            "resume with the same recipe, or start in another folder with --out"
        )
    return state


def cut_log(path: Path, iteration: int) -> None:
    """Drops the lines of a JSONL log that a run resumed at `iteration` will write again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["iteration"] <= iteration:
                lines.append(line)
        except (ValueError, KeyError):
            continue
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(line + "\n" for line in lines))
    temporary.replace(path)
