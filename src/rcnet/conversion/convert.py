"""`convert`: turns an ordinary network with repeated blocks into one with recurrent cells."""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch._dynamo import OptimizedModule

from rcnet.about import About
from rcnet.calling import device_of, plain
from rcnet.cell import NORM_MODES, NormMode, supported_steps
from rcnet.conversion.chain import How, Ranks, chain
from rcnet.conversion.faithful import check, differ, multiple_of, reparametrized
from rcnet.conversion.fit import INITS
from rcnet.conversion.record import first_tensor, record
from rcnet.conversion.report import Conversion, ConvertedNet, Kept
from rcnet.conversion.runs import count_parameters, find_runs
from rcnet.errors import InputError, unknown

Init = Literal["first", "mean", "low-rank"]
SIDE = 64  # default side of the example in pixels: five halvings still leave 2x2
WRAPPERS = (OptimizedModule, nn.DataParallel, nn.parallel.DistributedDataParallel)


def convert(
    model: nn.Module,
    steps: int | Iterable[int] | Literal["all"] = (1, 2, 3),
    init: Init = "first",
    regions: Iterable[str] | None = None,
    rank: int | Ranks = 0,
    *,
    adaptive: bool = False,
    apart: bool = False,
    norm_mode: NormMode | None = None,
    example: Tensor | None = None,
    about: About | None = None,
    fit: bool = True,
) -> ConvertedNet:
    """A network in which each run of repeated blocks is one recurrent cell. `model` is not changed.

    A run is at least two consecutive blocks of one class that differ only in their weights and whose input and output have the
    same shape. Blocks that change the shape stay, as parts of the chain between the cells. Each step stands for a block; with
    fewer steps than blocks, the blocks are chosen evenly. A step has the norms and layer scales of its block, and all steps share
    the other weights. The result is in float32, and its `conversion` is a report that prints as a table. Weights that computed
    from others (weight norm, pruning) are computed once, and compiled networks are taken as they were before.

    Args:
        model: called with one image tensor; returns a tensor, or several, of which `logits` or the first one is used.
        steps: the step counts of every cell; `all`: each cell takes from 1 to as many steps as it had blocks.
        init: the shared kernels: those of the `first` block; their `mean`; or `low-rank`, the kernels that minimize the squared
            error left by differences of this rank (alternating least squares).
        regions: names of modules; only blocks in them are replaced.
        rank: each step adds a difference of this rank to each weight that is shared; 0: none. At full rank (any large number),
            with as many steps as blocks, the network computes the same function as `model`. Or, as in `ConvertedNet.ranks`, one
            rank for each cell, step and weight.
        adaptive: distribute as many parameters as differences of this rank have by the singular values that the shared weights
            leave, instead of giving all the same rank.
        apart: the first block of each run of three or more stays as it is.
        norm_mode: shared, independent or double; default: independent for one step count, double for several.
        example: the images [B, C, H, W] on which the network is traced; default: random images of the size in `about`, or of
            64x64 pixels.
        about: the input and output of the network: its task, channels and size.
        fit: set the weights; False: only names and shapes matter, e.g. because a file of weights is loaded next.

    Raises:
        InputError: no block repeats (the error says why), or the network's code cannot be traced.
    """
    about = about or About()
    if init not in INITS:
        raise unknown("init", init, INITS)
    if norm_mode is not None and norm_mode not in NORM_MODES[1:]:
        raise unknown("norm mode", norm_mode, NORM_MODES[1:])
    if (isinstance(rank, bool | float | str) or (isinstance(rank, int) and rank < 0)) or (init == "low-rank" and not rank):
        raise InputError(f"rank={rank!r} is not valid: give a whole number from 0, or from 1 with init='low-rank'")
    if adaptive and not (isinstance(rank, int) and rank):
        raise InputError("adaptive=True distributes the parameters of a rank: give a rank from 1")
    counts = None if isinstance(steps, str) and steps == "all" else supported_steps(steps)  # type: ignore[arg-type]
    name, notes = type(model).__name__, reparametrized(model)
    source = _plain(model)
    x = torch.rand(2, about.channels, *(about.size or (SIDE, SIDE))) if example is None else example.detach().cpu().float()
    try:
        recording = record(source, x)
        if fit:
            notes += check(source, recording, x)
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, LookupError, NotImplementedError) as error:
        raise InputError(f"{name} cannot be traced on an image of {list(x.shape)}: {error}") from error
    found = find_runs(source, recording, regions, apart)
    kept = tuple(Kept(*row) for row in found.kept)
    if not found.runs:
        why = "; ".join(f"{k.name} {k.reason}" for k in kept[:4])
        raise InputError(f"{name} has no repeated blocks{' in ' + ', '.join(regions) if regions else ''}: {why}")
    mode: NormMode = norm_mode or ("independent" if counts is not None and len(counts) == 1 else "double")
    net, replaced = chain(source, recording.graph, found.runs, How(counts, init, rank, adaptive, mode, fit))
    if counts is None:
        most = [cell.steps[-1] for cell in net.recurrent_cells()]
        net.offer(tuple(min(level, n) for n in most) for level in range(1, max(most) + 1))
    away = 0.0
    if fit:
        multiple = multiple_of(source, recording.graph, about.channels, about.multiple)
        if not multiple:
            about = dataclasses.replace(about, size=(x.shape[-2], x.shape[-1]))
            notes.append(f"it takes only images of {x.shape[-2]}x{x.shape[-1]} pixels")
        about = dataclasses.replace(about, multiple=multiple or about.multiple)
        with torch.no_grad():
            away = differ(first_tensor(source(x.clone())), net.eval()(x.clone()))
    net.about = about
    net.conversion = Conversion(replaced, kept, count_parameters(source), count_parameters(net), away, tuple(notes))
    return net.train(model.training).to(device_of(model))


def _plain(model: nn.Module) -> nn.Module:
    """A copy on the processor in float32 and evaluation mode, without wrappers, compilation and weights computed from others."""
    while isinstance(model, WRAPPERS):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
    source = plain(model).cpu().float().eval()
    for module in source.modules():
        module._compiled_call_impl = None
    return source


def block_outputs(model: nn.Module, example: Tensor, apart: bool = False) -> nn.Module:
    """A network that returns what the runs of blocks that `convert` would replace return, a tuple of tensors.

    Raises:
        InputError: as `convert`.
    """
    source = _plain(model)
    recording = record(source, example)
    exits = [run.exit for run in find_runs(source, recording, apart=apart).runs]
    if not exits:
        raise InputError(f"{type(model).__name__} has no repeated blocks")
    graph = recording.graph
    end = next(iter(reversed(graph.nodes)))
    graph.erase_node(end)
    graph.output(tuple(exits))
    return fx.GraphModule(source, graph)
