"""The teacher of a recipe: a network whose outputs are targets in addition to the labels."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rcnet.calling import ready
from rcnet.cost.counting import counted
from rcnet.errors import InputError
from rcnet.models.converted import about_of, read_original
from rcnet.models.files import bundled, load

Teacher = Callable[..., Tensor]


def make_teacher(name: str, x: Tensor, expected: torch.Size, classes: Sequence[str] = ()) -> tuple[Teacher, int]:
    """`teacher(x)`, or `teacher(x, sigma=...)`, for images in [0, 1] on the device of `x`, and its MACs per image.

    Args:
        name: rcnet weights by name or file, used at their most steps; a folder that transformers saved; or the name of a builder,
            as in `convert`, that returns a network with trained weights for images in [0, 1].
        x: images, [B, C, H, W].
        expected: the shape of the student's output for them.
        classes: the classes of the student's outputs; a teacher with the same classes in another order is reordered.

    Raises:
        InputError: no such network, or one with other outputs.
    """
    if name in bundled() or Path(name).is_file():
        model = load(name).to(x.device)
        call, takes_level, known = ready(model), model.about.takes_level, model.about.classes
    else:
        original = read_original(name)
        call, takes_level, known = original.normalized().eval().to(x.device), False, about_of(original.model).classes
    order = [known.index(kind) for kind in classes] if classes != known and sorted(classes) == sorted(known) else None

    def teach(x: Tensor, **kwargs: object) -> Tensor:
        with torch.no_grad():
            output = call(x, **kwargs if takes_level else {})
        return output if order is None else output[:, order]

    try:
        shape = teach(x).shape
    except RuntimeError as error:
        raise InputError(f"teacher = {name!r} fails on these images: {str(error).strip().splitlines()[0]}") from error
    if shape != expected:
        raise InputError(f"teacher = {name!r} returned shape {list(shape)}, the network {list(expected)}: the outputs must match")
    return teach, counted(lambda: teach(x[:1]))
