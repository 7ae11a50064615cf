"""Figure 6: the features of a cell over its steps."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rcnet.cell import RecurrentCell, StandardCell
from rcnet.errors import InputError
from rcnet.figures.plots import page, to_image
from rcnet.models.judge import check_level
from rcnet.network import RecurrentNet, evaluating, unroll


@torch.inference_mode()
def evolution(model: RecurrentNet, x: Tensor, names: Sequence[str]) -> dict[str, list[Tensor]]:
    """The output of the named cells after each step, [B, C, H, W], at the most steps of the model.

    Raises:
        InputError: a name that is not a recurrent cell's, a cell whose output is not [B, C, H, W], or a denoiser of two noise
            levels that has no judge.
    """
    check_level(model, None)
    net = evaluating(unroll(model))
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = []
    for name in names:
        cell = dict(net.named_children()).get(name)
        if not isinstance(cell, RecurrentCell | StandardCell):
            raise InputError(f"this network has no cell {name!r}: it has {', '.join(cell_names(model))}")
        bodies: list[nn.Module] = [cell.body] if isinstance(cell, RecurrentCell) else list(cell.bodies)
        hooks += [
            body.register_forward_hook(lambda module, inputs, output, name=name: outputs[name].append(output.float()))  # type: ignore[misc]
            for body in bodies
        ]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    for name, steps in outputs.items():
        if any(step.ndim != 4 for step in steps):
            raise InputError(f"feature maps need cells whose output is [B, C, H, W]; that of {name} is not")
    return outputs


def cell_names(model: RecurrentNet) -> list[str]:
    """The names of the recurrent cells, in order."""
    cells = model.recurrent_cells()
    return [name for name, module in model.named_children() if any(module is cell for cell in cells)]


def features(model: RecurrentNet, images: Sequence[np.ndarray], names: Sequence[str] = (), title: str = "") -> Image.Image:
    """One row per image: for each cell, the channel that is most active after the last step, at each step.

    Args:
        images: uint8 [H, W, C], of one size.
        names: of cells; default: the second and the third, as far as they exist.

    Raises:
        InputError: a name that is not a recurrent cell's, images of several sizes, or matplotlib is not installed.
    """
    if len({image.shape for image in images}) != 1:
        raise InputError("feature maps need images of one size: crop or resize them")
    cells = names or cell_names(model)[1:3] or cell_names(model)
    shown = {name: most_active(steps) for name, steps in evolution(model, as_batch(images, model), cells).items()}
    return draw(images, shown, title)


def as_batch(images: Sequence[np.ndarray], model: RecurrentNet) -> Tensor:
    """uint8 images [H, W, C] of one size as the network takes them, [B, C, H, W]."""
    device = next(model.parameters()).device
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2)).float().to(device) / 255


def most_active(steps: Sequence[Tensor]) -> np.ndarray:
    """The channel with the largest mean after the last step, at each step: [B, steps, H, W]. If the cell pools, the maps are
    resized to the size of the last."""
    channel = steps[-1].mean((2, 3)).argmax(1)
    maps = [step[torch.arange(len(channel)), channel] for step in steps]
    size = (steps[-1].shape[2], steps[-1].shape[3])
    return torch.stack([nn.functional.adaptive_avg_pool2d(m, size) if m.shape[-2:] != size else m for m in maps], 1).cpu().numpy()


def draw(images: Sequence[np.ndarray], shown: Mapping[str, np.ndarray], title: str) -> Image.Image:
    """The grid of `features`; the maps of an image and a cell share one scale, from dark (least) to bright."""
    counts = [maps.shape[1] for maps in shown.values()]
    columns = 1 + sum(counts)
    side = 6.8 / columns
    with page(0.75 + 0.3 * bool(title) + side * len(images)) as figure:
        figure.suptitle(title)
        figure.supxlabel("one scale for all steps of a cell, from dark (least active) to bright (most active)", fontsize=8)
        grid = figure.subplots(len(images), columns, squeeze=False)
        for panel in grid.flat:
            panel.set_axis_off()
        for i, image in enumerate(images):
            grid[i][0].imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray", vmin=0, vmax=255)
            column = 1
            for maps in shown.values():
                low, high = maps[i].min(), maps[i].max()
                for step in maps[i]:
                    grid[i][column].imshow(step, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
                    column += 1
        grid[0][0].set_title("image", fontsize=8)
        headings = [f"{name}\nstep {t}" for name, count in zip(shown, counts, strict=True) for t in range(1, count + 1)]
        for panel, heading in zip(grid[0][1:], headings, strict=True):
            panel.set_title(heading, fontsize=8)
        return to_image(figure)
