"""Recording results in the metadata of a file of weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rcnet.errors import InputError
from rcnet.models.files import bundled, read_metadata, save
from rcnet.models.huggingface import PREFIX
from rcnet.network import RecurrentNet


def record_result(model: RecurrentNet, name_or_path: str | Path, result: dict[str, Any]) -> Path:
    """Adds a result to the metadata of the weights that `model` was loaded from; returns the file that was written.

    Weights given by file are written to that file. Bundled weights, which belong to the installed package, and weights from the
    hub are copied to the current folder. Rows of the same measurement (everything except the rows is equal) are merged by
    setting; a new row replaces an old one.

    Raises:
        InputError: the file contains other weights: another process wrote it meanwhile, or another file has the name of the copy.
    """
    path, there = _file_to_write(model, name_or_path)
    known = list(there["results"])
    about = {key: value for key, value in result.items() if key != "rows"}
    same = [r for r in known if {key: value for key, value in r.items() if key != "rows"} == about]
    measured = {json.dumps(row["steps"]): row for r in [*same, result] for row in r["rows"]}
    joined = {**about, "rows": sorted(measured.values(), key=lambda row: np.mean(row["steps"]))}
    adaptive = {key: there[key] for key in ("adaptive",) if key in there}
    save(model, path, **adaptive, results=[*(r for r in known if r not in same), joined])
    return path


def record_cascade(model: RecurrentNet, name_or_path: str | Path, result: Mapping[str, Any]) -> Path:
    """Writes a calibrated cascade (`adaptive_results`) into the metadata, where `record_result` writes, as `adaptive`."""
    path, there = _file_to_write(model, name_or_path)
    kept = {key: result[key] for key in ("steps", "confidence", "risk", "chance", "data", "calibrated_on", "images", "rows")}
    save(model, path, results=there["results"], adaptive=kept)
    return path


def _file_to_write(model: RecurrentNet, name_or_path: str | Path) -> tuple[Path, Mapping[str, Any]]:
    """The file to write, and its present metadata, to which another process may have added since loading."""
    name = str(name_or_path)
    copied = name in bundled() or name.startswith(PREFIX)
    path = Path(name.removeprefix(PREFIX).partition("@")[0].replace("/", ".") + ".safetensors") if copied else Path(name)
    if not path.exists():
        return path, model.metadata
    there = read_metadata(path)
    if there.get("weights") == model.metadata["weights"]:
        return path, there
    if copied:
        raise InputError(f"{path} contains other weights than {name}: move it away, as the result is written to that name")
    if "weights" in there:
        raise InputError(f"{path} has changed since it was loaded: measure it again")
    return path, model.metadata
