"""What a file of weights says that each setting reached."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rcnet.cell import Choice, RecurrentNet, choice

Step = TypeVar("Step", bound=Choice)
UNITS = {"psnr": "dB", "error": "% error"}  # of the metrics of tasks
HIGHER = {"psnr"}  # those whose larger values are the better ones


def setting_quality(model: RecurrentNet) -> tuple[str, dict[Choice, float]]:
    """`psnr` in dB or `error` in %, and that of each of `model.choices`, by the first of its results that has all of them.

    Nothing, ("", {}), if it has none.
    """
    metric, result = complete_result(model)
    return metric, {choice(row["steps"]): row[metric] for row in result.get("rows", []) if choice(row["steps"]) in model.choices}


def complete_result(model: RecurrentNet) -> tuple[str, Mapping[str, Any]]:
    """The first of the recorded results that tells the quality of every setting, and by which metric; ("", {}) if none does."""
    for result in model.metadata.get("results", []):
        rows: dict[Choice, Mapping[str, Any]] = {choice(row["steps"]): row for row in result.get("rows", [])}
        for metric in UNITS:
            if all(metric in rows.get(n, {}) for n in model.choices):
                return metric, result
    return "", {}


def result_name(result: Mapping[str, Any]) -> str:
    """The name of a recorded result: its data, its noise, and what differs from the protocols."""
    noise = f" sigma {result['sigma']:g}" + ", 8-bit noise" * result["as_8bit"] if "sigma" in result else ""
    noise += f", told {result['told']:g}" if "told" in result else ", blind" * result.get("blind", False)
    return str(result["data"]) + noise + f", {result['precision']}" * (result["precision"] != "fp32")


def best_of(choices: Sequence[Step], metric: str, quality: Mapping[Step, float]) -> Step:
    """The best of these by quality, of equals the first; the last where nothing is known."""
    if not metric:
        return choices[-1]
    return (max if metric in HIGHER else min)(choices, key=lambda n: quality[n])
