"""What `rcnet models` lists: each architecture and each set of bundled weights, with its cost and results a step."""

from typing import Any

from rcnet.cost.macs import macs, parameters
from rcnet.models import create_model, load
from rcnet.models.registry import entry, task_of

SIZES = {"denoise": (321, 481), "classify": (32, 32)}  # pixels: an image of BSD, of CIFAR
METRICS = {"denoise": ("psnr", "dB"), "classify": ("error", "% error")}  # the key in a row of results, and its unit


def measured(result: dict[str, Any]) -> str:
    """The name of a recorded result: its data, its noise, and what differs from the protocols."""
    noise = f" sigma {result['sigma']:g}" + ", 8-bit noise" * result["as_8bit"] if "sigma" in result else ""
    noise += ", blind" * result.get("blind", False)
    return result["data"] + noise + f", {result['precision']}" * (result["precision"] != "fp32")


def describe_architecture(name: str) -> dict[str, Any]:
    """A row for each step count of the paper: the fixed-step network."""
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
    model = load(name)
    task, steps = task_of(model), []
    for n in model.steps:
        metric = METRICS[task][0]
        results = {
            measured(result): row[metric] for result in model.metadata["results"] for row in result["rows"] if row["steps"] == n
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
