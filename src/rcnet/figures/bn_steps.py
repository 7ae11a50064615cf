"""Figure 2: the variables of a cell's first independent batch norm over its steps."""

from typing import Any

from PIL import Image
from torch import nn

from rcnet.cell import RecurrentCell
from rcnet.errors import InputError
from rcnet.figures.norms import draw_norms
from rcnet.network import RecurrentNet


def bn_steps(model: RecurrentNet) -> Image.Image:
    """The first norm of each step, for the first cell with one group of norms per step.

    Raises:
        InputError: no cell has norms for several steps, or matplotlib is not installed.
    """
    name, norms = norms_by_step(model)
    return draw_norms(norms, f"First batch norm of {name} at each of its steps")


def norms_by_step(model: RecurrentNet) -> tuple[str, dict[str, nn.Module]]:
    """The cell's name and the norm of each step; `InputError` if no cell has norms for several steps."""
    for name, cell in model.named_children():
        if isinstance(cell, RecurrentCell) and cell.recurrent and cell.by_step:
            rows: Any = cell.norms
            row = max(rows, key=len)
            if len(row) > 1:
                return name, {f"step {t}": group[0] for t, group in enumerate(row, start=1)}
    raise InputError("no cell of this network has batch norms per step: use norm mode independent or double and at least 2 steps")
