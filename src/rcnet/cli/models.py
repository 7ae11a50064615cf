"""rcnet models"""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from rcnet.cli.text import Json


def models(name: str | None = None, /, *, json_output: Json = False) -> None:
    """List networks and bundled weights: cost and first measured result per step count.

    MACs are those of one image: 321x481 pixels (denoise) or 32x32 (classify).

    Examples::

      rcnet models
      rcnet models r3_fast.color
      rcnet models --json | jq '.[] | select(.task == "denoise") | .name'

    Parameters
    ----------
    name
        Bundled weights, an exported .onnx file or a file of weights, of which all results are shown; or an architecture.
    json_output
        Print JSON.
    """
    from rcnet.cli.text import count, table
    from rcnet.setting import Setting

    rows = known() if name is None else [described(name)]
    if json_output:
        print(json.dumps(rows if name is None else rows[0], indent=1))
        return
    lines = []
    for row in rows:
        for i, step in enumerate(row["steps"]):
            first = (row["name"], row["task"]) if i == 0 else ("", "")
            results = [f"{value:.2f} {row['unit']}, {data}" for data, value in step.get("results", {}).items()]
            lines.append(
                (*first, Setting.of(step["steps"]), f"{step['parameters']:,}", count(step["macs"] or 0), "".join(results[:1]))
            )
    print(table(("name", "task", "steps", "parameters", "MACs", "result"), lines))
    if name is None:
        print("\nNames with a dot are trained weights: rcnet denoise (or classify) IN --model NAME --steps N")
        print("For all results of one: rcnet models NAME")
    elif measured := dict.fromkeys(data for step in rows[0]["steps"] for data in step.get("results", {})):
        counts = [f"steps {Setting.of(step['steps'])}" for step in rows[0]["steps"]]
        values = [[step.get("results", {}).get(data) for step in rows[0]["steps"]] for data in measured]
        shown = [["" if value is None else f"{value:.2f}" for value in line] for line in values]
        print(f"\n{rows[0]['unit']}:")
        print(table(("measured on", *counts), [(data, *line) for data, line in zip(measured, shown, strict=True)]))
    if name is None:
        return
    labels = {key: label for label, key in rows[0].get("columns", {}).items()}
    for data in dict.fromkeys(data for step in rows[0]["steps"] for data in step.get("other_results", {})):
        found = [(step["steps"], step["other_results"][data]) for step in rows[0]["steps"] if data in step["other_results"]]
        lines = [(n, *(f"{value:.2f}" for value in values.values())) for n, values in found]
        print(f"\n{data}:")
        print(table(("steps", *(labels[key] for key in found[0][1])), lines))


def known() -> list[dict[str, Any]]:
    """A row for each architecture and each set of bundled weights."""
    from rcnet.runtime.onnx import bundled_files

    return [*architectures().values(), *(exported(name, path) for name, path in bundled_files().items())]


def described(name: str) -> dict[str, Any]:
    """The row of an architecture or of weights."""
    from rcnet.deploy.sessions import onnx_file

    if name in (rows := architectures()):
        return rows[name]
    if path := onnx_file(name):
        return exported(name, path)
    from rcnet.tasks.catalogue import describe_weights

    return describe_weights(name)


def exported(name: str, path: Path) -> dict[str, Any]:
    from rcnet.runtime.onnx import OnnxSession
    from rcnet.runtime.results import row_of_weights

    return row_of_weights(name, OnnxSession(path).metadata)


def architectures() -> dict[str, dict[str, Any]]:
    """The rows of the architectures by name: as `tools/onnx_files.py` wrote them, and those of modules that users name."""
    rows = json.loads((resources.files("rcnet") / "weights" / "networks.json").read_text())
    found = {row["name"]: row for row in rows}
    if os.environ.get("RCNET_MODULES"):
        from rcnet.models import list_models
        from rcnet.tasks.catalogue import describe_architecture

        found |= {name: describe_architecture(name) for name in list_models() if name not in found}
    return dict(sorted(found.items()))
