"""Figure 5: PSNR against steps, a panel a noise level."""

from collections.abc import Mapping

from PIL import Image

from rcnet.figures.plots import page, style, to_image

Series = Mapping[str, Mapping[int, float]]  # label -> steps -> dB


def psnr_steps(levels: Mapping[str, Series], title: str = "") -> Image.Image:
    """`levels`: the name of each panel and its series. A series of one point is drawn as a marker.

    Raises:
        InputError: matplotlib is not installed.
    """
    with page(2.9) as figure:
        figure.suptitle(title)
        panels = figure.subplots(1, len(levels), squeeze=False)[0]
        for panel, (level, series) in zip(panels, levels.items(), strict=True):
            for place, (label, points) in enumerate(series.items()):
                look = style(place) | ({"linestyle": ""} if len(points) == 1 else {})
                panel.plot(list(points), list(points.values()), **look, markersize=5, label=label)
            panel.set_title(level, fontsize=9)
            panel.set_xlabel("steps")
            panel.set_xticks(sorted({n for points in series.values() for n in points}))
        panels[0].set_ylabel("PSNR in dB")
        handles = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
        return to_image(figure)
