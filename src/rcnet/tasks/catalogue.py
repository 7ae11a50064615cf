"""What `rcnet models` lists: each architecture and each set of bundled weights, with cost and results per step count."""

from typing import Any

from rcnet.cost.counting import macs, parameters
from rcnet.models import load
from rcnet.models.registry import build_shapes, entry
from rcnet.models.results import result_name, rows_of
from rcnet.tasks import TASKS, usual_size


def describe_architecture(name: str) -> dict[str, Any]:
    """An architecture, with one row per step count of the paper: the fixed-step network.

    Example:
        >>> [row["parameters"] for row in describe_architecture("r2")["steps"]]
        [1258954, 1260234, 1261514, 1262794]
    """
    found, steps = entry(name), []
    size = usual_size(found.task)
    for n in found.steps:
        model = build_shapes(name, {"steps": n})
        steps.append({"steps": n, "parameters": parameters(model), "macs": macs(model, n, size)})
    whole = {"parameters": parameters(build_shapes(name, found.usual))} if found.adjustable else {}
    return {"name": name, "kind": "architecture", "task": found.task, "size": size, **whole, "steps": steps}


def describe_weights(name: str) -> dict[str, Any]:
    """Bundled weights or a file, with one row per setting: cost and recorded results.

    Example:
        >>> [row["steps"] for row in describe_weights("r2.cifar10")["steps"]]
        [2, 3, 4]
    """
    model = load(name)
    task, measured, steps = model.about.task, model.metadata["results"], []
    size, kind = usual_size(task), TASKS.get(task)
    keys = [key for key, _ in kind.columns.values()] if kind else []
    for n in model.settings:
        rows = {result_name(result): row for result in measured if (row := rows_of(model, result).get(n))}
        results = {name: row[kind.metric] for name, row in rows.items() if kind and kind.metric in row}
        others = {name: {key: row[key] for key in keys if key in row} for name, row in rows.items() if name not in results}
        steps.append({"steps": n.to_json(), "parameters": parameters(model), "macs": macs(model, n, size), "results": results})
        steps[-1] |= {"other_results": others} if others else {}
    return {
        "name": name,
        "kind": "weights",
        "task": task,
        "size": size,
        "parameters": parameters(model),
        "architecture": model.metadata["architecture"],
        "preprocessing": model.about.to_json(),
        "steps": steps,
    }
