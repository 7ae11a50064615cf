"""The start of a run: a network that fits its batches, weights to start from, and one compiled graph per setting."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rcnet.about import About
from rcnet.cell import Cell, norms_of
from rcnet.errors import InputError
from rcnet.models.files import load, read_metadata
from rcnet.models.registry import build_shapes, create_model, entry
from rcnet.network import RecurrentNet
from rcnet.tasks import task_of
from rcnet.tasks.task import Kind, Setup, Task
from rcnet.training.recipe import Recipe
from rcnet.training.steps import offer


def set_up(recipe: Recipe, data: Path, device: torch.device, processes: int) -> tuple[Recipe, Kind, Task, RecurrentNet]:
    """The recipe completed by its `init` weights and its data, its task, and a fresh network."""
    if recipe.batch % (processes * recipe.accumulate):
        raise InputError(
            f"batch = {recipe.batch} cannot be divided evenly among {processes} processes x {recipe.accumulate} parts "
            "(accumulate): change one of them"
        )
    found: Mapping[str, Any] = {}
    if recipe.init and "name" not in recipe.model:  # the network is that of the weights
        found = read_metadata(recipe.init)
        name, config = found["architecture"]["name"], found["architecture"]["config"]
        recipe = dataclasses.replace(recipe, model={"name": name, **config, **recipe.model})
    kind = task_of(recipe.model)
    try:
        about = build_shapes(recipe.model["name"], {key: value for key, value in recipe.model.items() if key != "name"}).about
    except InputError:  # the network depends on the data
        about = About()
    about = about.completed(found.get("preprocessing", {}))
    section = kind.settled(recipe.sections[kind.key], about)
    recipe = dataclasses.replace(recipe, sections={**recipe.sections, kind.key: section})
    torch.manual_seed(recipe.seed)
    task = kind.begin(section, Setup(data, device, about, recipe.batch, recipe.seed, recipe.precision, recipe.measures))
    if (recipe.best or recipe.early_stop) and not task.held:
        raise InputError(f"best and early_stop need images held out from training: {kind.key}.holdout=N")
    return recipe, kind, task, new_network(recipe, task, found)


def new_network(recipe: Recipe, task: Task, found: Mapping[str, Any]) -> RecurrentNet:
    """A fresh network of the recipe, completed by the task, that offers the settings it will be trained at.

    `found`: the metadata of the `init` weights if they define the network; empty if the recipe names it.
    """
    known = inspect.signature(entry(recipe.model["name"]).build).parameters
    config, usual = dict(recipe.model), found.get("architecture", {}).get("config", {})
    for key, value in task.config.items():  # a file of weights names every option; replace those that the user did not set
        if key in known and (key not in config or (key in usual and config[key] == usual[key])):
            config[key] = value
    model = create_model(**config)
    model.about = model.about.completed(task.preprocessing)
    offer(model, recipe.settings if recipe.settings != "unified" else found.get("settings", "unified"))
    task.prepare(model)
    return model


def check_batch(model: RecurrentNet, x: Tensor) -> None:
    """Raises `InputError` if the network cannot train on batches of this shape."""
    net = copy.deepcopy(model).to("meta").train()
    for n in net.settings:
        try:
            net(torch.empty_like(x, device="meta"), n.to_json())
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, x.shape))
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{model.architecture['name']} cannot train on batches of {shape} at {n} steps: {reason}") from error


def take_weights(name_or_path: str, model: RecurrentNet) -> tuple[dict[str, Any] | None, str]:
    """Copies all tensors of the same name and shape from other weights. The kernels of all cells must fit.

    Returns:
        the `training` metadata of the weights, and the layers whose tensors were not copied, as text; "" if there are none.

    Raises:
        InputError: no such weights, or kernels of cells that do not fit.
    """
    source, state = load(name_or_path), model.state_dict()
    fits = {name: x for name, x in source.state_dict().items() if name in state}
    if source.about.channels == model.about.channels and source.about.levels < model.about.levels:
        fits = {name: _with_inputs(x, state[name]) for name, x in fits.items()}
    fits = {name: x for name, x in fits.items() if state[name].shape == x.shape}
    norms = {id(p) for norm in norms_of(model) for p in norm.parameters()}
    in_cells = {id(p) for cell in model.modules() if isinstance(cell, Cell) for p in cell.parameters()} - norms
    if missing := [name for name, p in model.named_parameters() if id(p) in in_cells and name not in fits]:
        raise InputError(
            f"init = {name_or_path!r} contains {source.architecture}, but the recipe is for {model.architecture}: "
            f"{missing[0]} does not fit; the kernels of all cells must fit"
        )
    model.load_state_dict(state | fits)
    return source.metadata.get("training"), _layers(state.keys() - fits.keys())


def _with_inputs(kernel: Tensor, target: Tensor) -> Tensor:
    """A convolution's kernel [out, in, h, w] with as many inputs as `target`. Those of more noise levels come last and are zero,
    so that the network computes the same at the start."""
    more = target.shape[1] - kernel.shape[1] if kernel.ndim == target.ndim == 4 else 0
    return kernel if more <= 0 else F.pad(kernel, (0, 0, 0, 0, 0, more))


def _layers(names: Iterable[str]) -> str:
    """The layers or tables of norms that the tensors belong to, as text: `cell1.norms, head`."""
    return ", ".join(sorted({".".join(name.split(".")[:-1][:2]) for name in names}))


def compiled(model: RecurrentNet) -> Callable[..., Tensor]:
    """The model with one compiled graph per setting."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(model.settings))
    return torch.compile(model, fullgraph=True, dynamic=False)
