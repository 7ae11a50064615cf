"""The variables of several batch norms side by side, for Figures 2 and 3."""

from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor, nn

from rcnet.errors import InputError
from rcnet.figures.plots import page, style, to_image

VARIABLES = {
    "weight": "scale γ",  # noqa: RUF001 (its name in Eq. 3)
    "bias": "shift β",
    "running_mean": "mean μ",
    "running_var": "variance σ²",
}


def draw_norms(norms: Mapping[str, nn.Module], title: str) -> Image.Image:
    """One panel each for scale, shift, mean and variance, with one point per channel and norm. The first norm sorts them.

    Raises:
        InputError: one of them is not a batch norm, or matplotlib is not installed.
    """
    check_norms(norms)
    with page(5.0) as figure:
        figure.suptitle(title)
        panels = figure.subplots(2, 2)
        for panel, (variable, name) in zip(panels.flat, VARIABLES.items(), strict=True):
            values = {label: values_of(norm, variable) for label, norm in norms.items()}
            order = np.argsort(next(iter(values.values())), kind="stable")
            for index, (label, value) in enumerate(values.items()):
                panel.plot(
                    np.arange(1, len(order) + 1), value[order], **style(index) | {"linestyle": ""}, markersize=3.5, label=label
                )
            positive = all((value > 0).all() for value in values.values())
            if variable == "running_var" and positive:
                panel.set_yscale("log")
            panel.set_ylabel(name)
            panel.set_xlabel(f"channel, by {name.split()[1]} of {next(iter(values))}")
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=1, columnspacing=1.5)
        return to_image(figure)


def check_norms(norms: Mapping[str, nn.Module]) -> None:
    """`InputError` unless all are batch norms."""
    if not all(isinstance(norm, nn.BatchNorm2d) for norm in norms.values()):
        raise InputError("these cells have no batch norms (norm mode none): there is nothing to draw")


def values_of(norm: nn.Module, variable: str) -> np.ndarray:
    """A variable of a batch norm, one value per channel."""
    value = getattr(norm, variable)
    assert isinstance(value, Tensor)
    return value.detach().float().cpu().numpy()
