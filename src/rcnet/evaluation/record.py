"""Writing what was measured into the file of weights, so that figures travel with them."""

from pathlib import Path
from typing import Any

from rcnet.cell import RecurrentNet
from rcnet.models.files import find, save


def record_result(model: RecurrentNet, name_or_path: str | Path, result: dict[str, Any]) -> Path:
    """Adds a result to the metadata of the weights that `model` was loaded from; returns their file.

    Rows of the same measurement (all of the result but its rows is equal) are joined by step count, the new ones first.
    """
    about = {key: value for key, value in result.items() if key != "rows"}
    same = [r for r in model.metadata["results"] if {key: value for key, value in r.items() if key != "rows"} == about]
    kept = [r for r in model.metadata["results"] if r not in same]
    measured = {str(row["steps"]): row for r in [*same, result] for row in r["rows"]}
    joined = {**about, "rows": sorted(measured.values(), key=lambda row: (isinstance(row["steps"], list | tuple), row["steps"]))}
    metadata = {key: value for key, value in model.metadata.items() if key not in ("format", "architecture")}
    path = find(name_or_path)
    save(model, path, **{**metadata, "results": [*kept, joined]})
    return path
