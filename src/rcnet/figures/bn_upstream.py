"""Figure 3: the variables of one batch norm for each step count of the cell upstream (double-independent BN)."""

from typing import Any

from PIL import Image
from torch import nn

from rcnet.cell import RecurrentCell
from rcnet.errors import InputError
from rcnet.figures.norms import draw_norms
from rcnet.network import RecurrentNet


def bn_upstream(model: RecurrentNet) -> Image.Image:
    """The first norm per step count of the cell upstream, for the first block that has several.

    Raises:
        InputError: no block has several, or matplotlib is not installed.
    """
    name, norms = norms_by_upstream(model)
    return draw_norms(norms, f"First batch norm of {name} for each step count of the cell upstream")


def norms_by_upstream(model: RecurrentNet) -> tuple[str, dict[str, nn.Module]]:
    """The block's name and the norm of each step count upstream; `InputError` if no block has several."""
    for name, cell in model.named_children():
        if isinstance(cell, RecurrentCell) and cell.by_upstream:
            rows: Any = cell.norms
            taken = {t: row[0][0] for t, row in ((cell.upstream_of(index), row) for index, row in enumerate(rows)) if len(row)}
            norms = {f"{t} step{'s' * (t > 1)} upstream": norm for t, norm in taken.items() if t}
            if len(norms) > 1:
                return name, norms
    raise InputError(
        "no block of this network has batch norms per step count of the cell upstream: use a cost-adjustable network with norm "
        "mode double"
    )
