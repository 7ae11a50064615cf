"""What a run starts from: a network that takes its batches, the weights of another, a compiled graph a step count."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rcnet.about import About
from rcnet.cell import Cell, RecurrentNet, norms_of
from rcnet.errors import InputError
from rcnet.models.files import load, read_metadata
from rcnet.models.registry import build_shapes, create_model, entry
from rcnet.tasks.task import Task
from rcnet.training.recipe import Recipe
from rcnet.training.steps import offer


def with_init_model(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the network of the weights that it starts from, and their metadata, where it names no network itself."""
    if "name" in recipe.model or not recipe.init:
        return recipe, {}
    found = read_metadata(recipe.init)
    architecture = found["architecture"]
    return dataclasses.replace(recipe, model={"name": architecture["name"], **architecture["config"], **recipe.model}), found


def about_before(recipe: Recipe, found: Mapping[str, Any]) -> About:
    """What the recipe's network says of itself before the data completes it; nothing where the data decides how it is built.

    `found`: as `new_network` takes it; sizes and classes of these weights hold.
    """
    try:
        about = build_shapes(recipe.model["name"], {key: value for key, value in recipe.model.items() if key != "name"}).about
    except InputError:
        about = About()
    return about.completed(found.get("preprocessing", {}))


def new_network(recipe: Recipe, task: Task, found: Mapping[str, Any]) -> RecurrentNet:
    """A fresh network of the recipe, with what the task knows of it, offering what it will be trained at.

    `found`: the metadata of the weights whose network it is; empty where the recipe names one.
    """
    known = inspect.signature(entry(recipe.model["name"]).build).parameters
    config, usual = dict(recipe.model), found.get("architecture", {}).get("config", {})
    for key, value in task.config.items():  # a file names every option: of these, what the user did not name
        if key in known and (key not in config or (key in usual and config[key] == usual[key])):
            config[key] = value
    model = create_model(**config)
    model.about = model.about.completed(task.preprocessing)
    offer(model, recipe.settings if recipe.settings != "unified" else found.get("settings", "unified"))
    task.prepare(model)
    return model


def check_batch(model: RecurrentNet, x: Tensor) -> None:
    """`InputError` if the network cannot train on batches of this shape."""
    net = copy.deepcopy(model).to("meta").train()
    for n in net.settings:
        try:
            net(torch.empty_like(x, device="meta"), n.to_json())
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, x.shape))
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{model.architecture['name']} cannot train on batches of {shape} at {n} steps: {reason}") from error


def take_weights(name_or_path: str, model: RecurrentNet) -> tuple[dict[str, Any] | None, str]:
    """Copies all tensors of other weights that fit, of the same name and shape; the kernels of all cells must.

    Returns:
        what the weights say of their training, and where the model has tensors that stay as they were, in words: nowhere is "".

    Raises:
        InputError: no such weights, or kernels that do not fit.
    """
    source, own = load(name_or_path), model.state_dict()
    fits = {name: _with_inputs(x, own[name]) for name, x in source.state_dict().items() if name in own}
    fits = {name: x for name, x in fits.items() if own[name].shape == x.shape}
    norms = {id(p) for norm in norms_of(model) for p in norm.parameters()}
    in_cells = {id(p) for cell in model.modules() if isinstance(cell, Cell) for p in cell.parameters()} - norms
    if missing := [name for name, p in model.named_parameters() if id(p) in in_cells and name not in fits]:
        raise InputError(
            f"init = {name_or_path!r} holds {source.architecture}, and the recipe is for {model.architecture}: "
            f"{missing[0]} does not fit, as the kernels of all cells must"
        )
    model.load_state_dict(own | fits)
    return source.metadata.get("training"), _layers(own.keys() - fits.keys())


def _with_inputs(kernel: Tensor, own: Tensor) -> Tensor:
    """A convolution's kernel [out, in, h, w] that also reads the planes that `own` reads after its own: with zeros, so that the
    network starts as it was."""
    more = own.shape[1] - kernel.shape[1] if kernel.ndim == own.ndim == 4 else 0
    return kernel if more <= 0 else F.pad(kernel, (0, 0, 0, 0, 0, more))


def _layers(names: Iterable[str]) -> str:
    """The layers or tables of norms that tensors belong to, in words: `cell1.norms, head`."""
    return ", ".join(sorted({".".join(name.split(".")[:-1][:2]) for name in names}))


def compiled(model: RecurrentNet) -> Callable[..., Tensor]:
    """The model with one compiled graph a step count."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(model.settings))
    return torch.compile(model, fullgraph=True, dynamic=False)
