"""What `rcnet models` lists: each architecture and each set of bundled weights, with cost and results per step count."""

from collections.abc import Sequence
from typing import Any

from rcnet.cost.counting import judge_macs, macs, parameters
from rcnet.errors import InputError
from rcnet.models import load
from rcnet.models.registry import build_shapes, entry
from rcnet.network import RecurrentNet
from rcnet.runtime.results import result_name, row_of_weights, rows_of
from rcnet.setting import Setting
from rcnet.tasks import TASKS, gives, usual_size


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
    about = {"task": model.about.task, "preprocessing": model.about.to_json()}
    return row_of_weights(name, {**model.metadata, **about, "catalogue": summary(model, model.settings)})


def summary(model: RecurrentNet, settings: Sequence[Setting]) -> dict[str, Any]:
    """What an exported file says of its cost and results: `gives` (see `tasks.task.Kind`), `size` (height and width that MACs are
    counted for), `parameters`, `unit`, `columns` (label -> key of what was measured), `judge_macs`, and `steps`, a row for each
    setting; MACs are None where they cannot be counted.

    Example:
        >>> import rcnet
        >>> net = rcnet.load("r2.cifar10")
        >>> [row["steps"] for row in summary(net, net.settings)["steps"]]
        [2, 3, 4]
    """
    task, measured, steps = model.about.task, model.metadata.get("results", []), []
    size, kind = model.about.size or usual_size(task), TASKS.get(task)
    columns = {label: key for label, (key, _) in kind.columns.items()} if kind else {}
    for n in settings:
        rows = {result_name(result): row for result in measured if (row := rows_of(model, result).get(n))}
        results = {name: row[kind.metric] for name, row in rows.items() if kind and kind.metric in row}
        others = {name: {k: row[k] for k in columns.values() if k in row} for name, row in rows.items() if name not in results}
        steps.append({"steps": n.to_json(), "parameters": parameters(model), "macs": _macs(model, n, size), "results": results})
        steps[-1] |= {"other_results": others} if others else {}
    whole = {"gives": gives(task), "size": size, "parameters": parameters(model), "unit": kind.unit if kind else ""}
    return {**whole, "columns": columns, "judge_macs": judge_macs(model, size), "steps": steps}


def _macs(model: RecurrentNet, setting: Setting, size: tuple[int, int]) -> int | None:
    try:
        return macs(model, setting, size)
    except InputError:  # a network may compute what has no meaning on the meta device
        return None
