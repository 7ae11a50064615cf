"""The recorded results of each setting in a file of weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from rcnet.network import RecurrentNet
from rcnet.setting import Setting

UNITS = {"psnr": "dB", "error": "% error"}  # of the metrics of tasks
HIGHER = {"psnr"}  # metrics for which higher is better


def setting_quality(model: RecurrentNet) -> tuple[str, dict[Setting, float]]:
    """The metric, `psnr` in dB or `error` in %, and its value for each of `model.settings`, from the first complete result.

    ("", {}) if no result has all settings.
    """
    metric, result = complete_result(model)
    rows = rows_of(model, result)
    return metric, {n: rows[n][metric] for n in model.settings if metric}


def complete_result(model: RecurrentNet) -> tuple[str, Mapping[str, Any]]:
    """The metric and the first recorded result that has the quality of every setting; ("", {}) if there is none."""
    for result in model.metadata.get("results", []):
        rows = rows_of(model, result)
        for metric in UNITS:
            if all(metric in rows.get(n, {}) for n in model.settings):
                return metric, result
    return "", {}


def rows_of(model: RecurrentNet, result: Mapping[str, Any]) -> dict[Setting, Mapping[str, Any]]:
    """The rows of a recorded result by setting."""
    cells = len(model.recurrent_cells())
    return {Setting.of(row["steps"], cells): row for row in result.get("rows", [])}


def result_name(result: Mapping[str, Any]) -> str:
    """The name of a recorded result: its data, its noise, and deviations from the protocol."""
    noise = f" sigma {result['sigma']:g}" + ", 8-bit noise" * result["as_8bit"] if "sigma" in result else ""
    noise += f", told {result['told']:g}" if "told" in result else ", blind" * result.get("blind", False)
    return str(result["data"]) + noise + f", {result['precision']}" * (result["precision"] != "fp32")


def best_of(settings: Sequence[Setting], metric: str, quality: Mapping[Setting, float]) -> Setting:
    """The best of these settings by quality, the first of equals; the last if the quality is unknown."""
    if not metric:
        return settings[-1]
    return (max if metric in HIGHER else min)(settings, key=lambda n: quality[n])
