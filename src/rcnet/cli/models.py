"""rcnet models"""

import json
from typing import Any

from rcnet.cli.text import Json

SIZES = {"denoise": (321, 481), "classify": (32, 32)}  # pixels: an image of BSD, of CIFAR


def models(*, json_output: Json = False) -> None:
    """List the networks and the bundled weights: cost and measured results a step.

    MACs are those of one image: 321x481 pixels (denoise) or 32x32 (classify).

    Parameters
    ----------
    json_output
        Print JSON.
    """
    from rcnet.cli.text import count, table
    from rcnet.models import bundled, list_models

    rows = [describe_architecture(name) for name in list_models()] + [describe_weights(name) for name in bundled()]
    if json_output:
        print(json.dumps(rows, indent=1))
        return
    lines = []
    for row in rows:
        for i, step in enumerate(row["steps"]):
            first = (row["name"], row["task"]) if i == 0 else ("", "")
            result = ", ".join(f"{value:.2f} dB {data}" for data, value in step.get("results", {}).items())
            lines.append((*first, step["steps"], f"{step['parameters']:,}", count(step["macs"]), result))
    print(table(("name", "task", "steps", "parameters", "MACs", "result"), lines))
    print("\nA name with a dot is a set of trained weights: rcnet denoise IN --model NAME --steps N")


def describe_architecture(name: str) -> dict[str, Any]:
    """A row for each step count of the paper: the fixed-step network."""
    from rcnet.cost import macs, parameters
    from rcnet.models import create_model
    from rcnet.models.registry import entry

    task, steps = entry(name).task, []
    for n in entry(name).steps:
        model = create_model(name, steps=n)
        steps.append({"steps": n, "parameters": parameters(model), "macs": macs(model, n, SIZES[task])})
    row: dict[str, Any] = {"name": name, "kind": "architecture", "task": task, "size": SIZES[task]}
    if not name.startswith("s"):
        row["parameters"] = parameters(create_model(name, steps=entry(name).steps))
    return {**row, "steps": steps}


def describe_weights(name: str) -> dict[str, Any]:
    """A row for each supported step count, with what was measured."""
    from rcnet.cost import macs, parameters
    from rcnet.models import load
    from rcnet.models.registry import task_of

    model = load(name)
    task, steps = task_of(model), []
    for n in model.steps:
        results = {
            f"{result['data']} sigma {result['sigma']:g}": row["psnr"]
            for result in model.metadata.get("results", [])
            for row in result["rows"]
            if row["steps"] == n
        }
        steps.append({"steps": n, "parameters": parameters(model), "macs": macs(model, n, SIZES[task]), "results": results})
    return {
        "name": name,
        "kind": "weights",
        "task": task,
        "size": SIZES[task],
        "parameters": parameters(model),
        "architecture": model.metadata["architecture"],
        "preprocessing": model.metadata["preprocessing"],
        "steps": steps,
    }
