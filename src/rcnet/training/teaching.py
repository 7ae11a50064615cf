"""The teacher of a recipe: a network whose outputs are targets in addition to the labels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rcnet.calling import ready
from rcnet.conversion import block_outputs, first_tensor
from rcnet.cost.counting import counted
from rcnet.errors import InputError
from rcnet.models.converted import about_of, read_original
from rcnet.models.files import bundled, load
from rcnet.network import RecurrentNet
from rcnet.training.recipe import Recipe

Teacher = Callable[..., Tensor]
Features = list[Tensor]


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


@contextmanager
def cell_outputs(net: RecurrentNet | None) -> Iterator[Features]:
    """The outputs of the recurrent cells of a network in the next call; of None, nothing."""
    found: Features = []
    cells = net.recurrent_cells() if net is not None else []
    handles = [cell.register_forward_hook(lambda _, __, output: found.append(first_tensor(output))) for cell in cells]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def make_features(recipe: Recipe, model: RecurrentNet, x: Tensor) -> Callable[[Tensor], Features]:
    """What the teacher's blocks return where the network has cells: a function of images in [0, 1], [B, C, H, W].

    Raises:
        InputError: no teacher, or one whose runs of blocks are not those that the cells replace.
    """
    if not recipe.teacher or recipe.compile:
        raise InputError("feature_weight needs a teacher, and compile = false")
    config = (model.architecture or {}).get("config", {})
    with torch.no_grad(), cell_outputs(model) as own:
        model(x)
    if recipe.teacher in bundled() or Path(recipe.teacher).is_file():
        teacher = load(recipe.teacher).to(x.device).eval()

        def outputs(x: Tensor) -> Features:
            with torch.no_grad(), cell_outputs(teacher) as found:
                teacher(x)
            return found
    else:
        blocks = block_outputs(read_original(recipe.teacher).normalized(), x.cpu(), bool(config.get("apart"))).to(x.device)

        def outputs(x: Tensor) -> Features:
            with torch.no_grad():
                return list(blocks(x))

    theirs = outputs(x)
    shapes = [[list(tensor.shape[1:]) for tensor in of] for of in (own, theirs)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"teacher = {recipe.teacher!r} has blocks that return {shapes[1]}, but the cells of the network return {shapes[0]}: "
            "feature_weight needs the network that it was converted from"
        )
    return outputs


def feature_loss(own: Features, theirs: Features) -> Tensor:
    """The mean squared difference relative to the variance of the teacher's values, a mean over cells."""
    return torch.stack(
        [(a.float() - b).square().mean() / b.var().clamp(min=1e-6) for a, b in zip(own, theirs, strict=True)]
    ).mean()
