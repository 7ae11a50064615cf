"""The dial: quality against cost of each setting of a network."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from rcnet.figures.plots import page, style, to_image
from rcnet.runtime.results import UNITS
from rcnet.setting import Setting


def dial(
    rows: Sequence[Mapping[str, Any]], title: str = "", others: Mapping[str, tuple[float, float]] | None = None
) -> Image.Image:
    """Plots quality against cost (milliseconds if the rows have them, else GMAC) of `rcnet.best_settings`, with the Pareto front.

    Args:
        others: label -> cost and quality of other methods to draw.

    Raises:
        InputError: matplotlib is not installed.
    """
    metric = next(metric for metric in UNITS if metric in rows[0])
    timed = "ms" in rows[0]
    points = {str(Setting.of(row["steps"])): (row["ms"] if timed else row["macs"] / 1e9, row[metric]) for row in rows}
    with page(3.8) as figure:
        figure.suptitle(title)
        panel = figure.subplots()
        panel.margins(0.09)
        front = [point for point, row in zip(points.values(), rows, strict=True) if row["front"]]
        panel.plot(*zip(*front, strict=True), **style(0), markersize=5, label="best at its cost")
        if behind := [point for point, row in zip(points.values(), rows, strict=True) if not row["front"]]:
            panel.plot(
                *zip(*behind, strict=True),
                **(style(1) | {"linestyle": ""}),
                markersize=5,
                label="another is better at no more cost",
            )
        below = metric == "error"
        for index, (text, (x, y)) in enumerate(points.items()):  # alternate sides of the curve, where there is room
            right = index % 2 == 0
            offset = (4 if right else -4, 5 if right == below else -11)
            panel.annotate(text, (x, y), xytext=offset, textcoords="offset points", fontsize=7, ha="left" if right else "right")
        for index, (label, (x, y)) in enumerate((others or {}).items(), start=2):
            panel.plot([x], [y], **(style(index) | {"linestyle": ""}), markersize=7)
            panel.annotate(label, (x, y), xytext=(-7, 0), textcoords="offset points", fontsize=8, ha="right", va="center")
        if others and max(x for x, _ in others.values()) > 10 * max(x for x, _ in points.values()):
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("milliseconds per image" if timed else "GMAC per image")
        panel.set_ylabel("PSNR in dB" if metric == "psnr" else "error in %")
        if behind:
            panel.legend(loc="upper right" if below else "lower right")
        return to_image(figure)
