"""The recorded results of each setting in a file of weights."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rcnet.setting import Setting

if TYPE_CHECKING:
    from rcnet.network import RecurrentNet

UNITS = {"psnr": "dB", "error": "% error"}  # of the metrics of tasks
HIGHER = {"psnr"}  # metrics for which higher is better


def setting_quality(model: "RecurrentNet") -> tuple[str, dict[Setting, float]]:
    """The metric, `psnr` in dB or `error` in %, and its value for each of `model.settings`, from the first complete result.

    ("", {}) if no result has all settings.
    """
    metric, result = complete_result(model)
    rows = rows_of(model, result)
    return metric, {n: rows[n][metric] for n in model.settings if metric}


def complete_result(model: "RecurrentNet") -> tuple[str, Mapping[str, Any]]:
    """The metric and the first recorded result that has the quality of every setting; ("", {}) if there is none."""
    for result in model.metadata.get("results", []):
        rows = rows_of(model, result)
        for metric in UNITS:
            if all(metric in rows.get(n, {}) for n in model.settings):
                return metric, result
    return "", {}


def rows_of(model: "RecurrentNet", result: Mapping[str, Any]) -> dict[Setting, Mapping[str, Any]]:
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


def row_of_weights(name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What `rcnet models` says of weights, from the metadata of their exported file; see `tasks.catalogue.summary`."""
    known = {"name": name, "kind": "weights", "task": metadata["task"]}
    return known | {key: metadata[key] for key in ("architecture", "preprocessing")} | metadata["catalogue"]


def exported_quality(metadata: Mapping[str, Any]) -> tuple[str, dict[Setting, float]]:
    """As `setting_quality`, from the metadata of an exported file."""
    steps = metadata["catalogue"]["steps"]
    metric = next((metric for metric, unit in UNITS.items() if unit == metadata["catalogue"]["unit"]), "")
    for data in steps[0]["results"] if metric else ():
        if all(data in step["results"] for step in steps):
            return metric, {Setting.of(step["steps"], metadata["cells"]): step["results"][data] for step in steps}
    return "", {}


def psnr(image: np.ndarray, clean: np.ndarray) -> float:
    """In dB, of a float image [1, 1, H, W] in [0, 1], rounded as in an 8-bit file, against uint8 [H, W]."""
    levels = np.rint(255 * image[0, 0].clip(0, 1).astype(np.float64))
    return -10 * float(np.log10(np.mean(((levels - clean) / 255) ** 2)))
