"""Figure 7: relative accuracy against relative FLOPs of networks that can stop early."""

from collections.abc import Mapping, Sequence

from PIL import Image

from rcnet.figures.plots import page, style, to_image


def relative_accuracy(curves: Mapping[str, Sequence[tuple[float, float]]], title: str = "") -> Image.Image:
    """`curves`: label -> points of relative FLOPs and relative accuracy, both in % of the largest network's.

    Raises:
        InputError: matplotlib is not installed.
    """
    with page(3.6) as figure:
        figure.suptitle(title)
        panel = figure.subplots()
        for place, (label, points) in enumerate(curves.items()):
            panel.plot(*zip(*points, strict=True), **style(place), markersize=6, label=label)
        panel.set_xlabel("relative FLOPs in % (largest = 100)")
        panel.set_ylabel("relative accuracy in % (largest = 100)")
        panel.legend(loc="lower right")
        return to_image(figure)
