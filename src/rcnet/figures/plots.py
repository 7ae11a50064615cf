"""Shared by the plots: matplotlib if installed, the page width, and colours that everyone can tell apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rcnet.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches, the text width of a page
DPI = 200
# The palette of Okabe and Ito, safe for colour blindness, without black and yellow; each colour has a marker and a line style.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", "-", "--")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.handlelength": 3.5,
}


@contextmanager
def page(height: float) -> Iterator["Figure"]:
    """An empty figure of page width and `height` inches; the style is active inside the context.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("figures need matplotlib, which is not installed: pip install 'rcnet[plots]'") from error
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def to_image(figure: "Figure") -> Image.Image:
    """The figure's pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def style(index: int) -> dict[str, Any]:
    """Colour, marker and line style of the series at an index."""
    turn = index % len(COLOURS)
    return {"color": COLOURS[turn], "marker": MARKERS[turn], "linestyle": LINES[turn]}
