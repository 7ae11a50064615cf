"""`convert`: turns an ordinary network with repeated blocks into one with recurrent cells."""

import copy
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from rcnet.about import About
from rcnet.cell import NORM_MODES, NormMode, Transition, supported_steps
from rcnet.conversion.cells import RelaxedCell, add_differences, own_part, take_out, tensor_of
from rcnet.conversion.fit import INITS, difference, groups_of, largest_rank, set_difference, shared_kernel
from rcnet.conversion.record import device_of_input, first_tensor, is_leaf, record
from rcnet.conversion.runs import Run, count_parameters, find_runs
from rcnet.errors import InputError, unknown
from rcnet.network import RecurrentNet

Init = Literal["first", "mean", "low-rank"]
SIDE = 64  # default side of the example in pixels: five halvings still leave 2x2


@dataclass(frozen=True)
class Replaced:
    """A run that became a cell, with its parameters before and after."""

    cell: str
    name: str
    what: str
    blocks: int
    before: int
    after: int


@dataclass(frozen=True)
class Kept:
    """A part that was not converted, and why."""

    name: str
    what: str
    parameters: int
    reason: str


@dataclass(frozen=True)
class Conversion:
    """A report of `convert`; its text is a table.

    Attributes:
        before, after: parameters of the whole network; `after` includes all norms and differences.
        difference: relative difference of the outputs for the example, between the most steps and the original network.
    """

    replaced: tuple[Replaced, ...]
    kept: tuple[Kept, ...]
    before: int
    after: int
    difference: float

    def __str__(self) -> str:
        lines = [f"{r.cell}: {r.blocks} x {r.what} at {r.name}, {r.before:,} -> {r.after:,} parameters" for r in self.replaced]
        lines += [f"kept: {k.name}, {k.what}, {k.parameters:,} parameters: {k.reason}" for k in self.kept]
        return "\n".join([*lines, f"in all {self.before:,} -> {self.after:,} parameters"])


class ConvertedNet(RecurrentNet):
    """A network that `convert` made; `conversion` says how."""

    conversion: Conversion


def convert(
    model: nn.Module,
    steps: int | Iterable[int] | Literal["all"] = (1, 2, 3),
    init: Init = "first",
    regions: Iterable[str] | None = None,
    rank: int = 0,
    *,
    norm_mode: NormMode | None = None,
    example: Tensor | None = None,
    about: About | None = None,
    fit: bool = True,
) -> ConvertedNet:
    """A network in which each run of repeated blocks is one recurrent cell. `model` is not changed.

    A run is at least two consecutive blocks of one class that differ only in their weights and whose input and output have the
    same shape. Blocks that change the shape stay, as parts of the chain between the cells. Each step stands for a block; with
    fewer steps than blocks, the blocks are chosen evenly. A step has the norms and layer scales of its block, and all steps share
    the convolutions. The result is in float32, and its `conversion` is a report that prints as a table.

    Args:
        model: called with one image tensor; returns a tensor, or several, of which `logits` or the first one is used.
        steps: the step counts of every cell; `all`: each cell takes from 1 to as many steps as it had blocks.
        init: the shared kernels: those of the `first` block; their `mean`; or `low-rank`, the kernels that minimize the squared
            error left by differences of this rank (alternating least squares).
        regions: names of modules; only blocks in them are replaced.
        rank: each step adds a difference of this rank to the kernel of each convolution and linear layer; 0: none. At full rank
            (any large number), with as many steps as blocks, the network computes the same function as `model`.
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
    if type(rank) is not int or rank < 0 or (init == "low-rank" and not rank):
        raise InputError(f"rank={rank!r} is not valid: give a whole number from 0, or from 1 with init='low-rank'")
    counts = None if isinstance(steps, str) and steps == "all" else supported_steps(steps)  # type: ignore[arg-type]
    source = copy.deepcopy(model).cpu().float().eval()
    x = torch.rand(2, about.channels, *(about.size or (SIDE, SIDE))) if example is None else example.detach().cpu().float()
    try:
        recording = record(source, x)
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, LookupError) as error:
        raise InputError(f"{type(model).__name__} cannot be traced on an image of {list(x.shape)}: {error}") from error
    found = find_runs(source, recording, regions)
    kept = tuple(Kept(*row) for row in found.kept)
    if not found.runs:
        why = "; ".join(f"{k.name} {k.reason}" for k in kept[:4])
        raise InputError(f"{type(model).__name__} has no repeated blocks{' in ' + ', '.join(regions) if regions else ''}: {why}")
    mode: NormMode = norm_mode or ("independent" if counts is not None and len(counts) == 1 else "double")
    net, replaced = _chain(source, x, found.runs, counts, init, rank, mode, fit)
    net.about = about
    if counts is None:
        most = [cell.steps[-1] for cell in net.recurrent_cells()]
        net.offer(tuple(min(level, n) for n in most) for level in range(1, max(most) + 1))
    if fit:
        _check_sizes(source, net, x)
    for p in net.parameters():
        p.requires_grad_(True)
    net.conversion = Conversion(
        replaced, kept, count_parameters(source), count_parameters(net), _distance(source, net, x) if fit else 0.0
    )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return net.train(model.training).to(device)


def _chain(
    source: nn.Module,
    x: Tensor,
    runs: Sequence[Run],
    counts: tuple[int, ...] | None,
    init: Init,
    rank: int,
    mode: NormMode,
    fit: bool,
) -> tuple[ConvertedNet, tuple[Replaced, ...]]:
    """The network of the runs' cells and the parts between them."""
    blocks = {call.name for run in runs for block in run.blocks for call in block}
    modules = {id(source.get_submodule(name)) for name in blocks}
    graph = record(source, x, lambda module: id(module) in modules or is_leaf(module)).graph
    parts: dict[str, nn.Module] = {}
    replaced: list[Replaced] = []
    before: tuple[int, ...] = ()
    for j, segment in enumerate(_segments(graph, runs)):
        name = "stem" if j == 0 else "head" if j == len(runs) else f"transition{j}"
        if segment is not None:
            parts[name] = _part(source, segment, mode, before)
        if j == len(runs):
            break
        run = runs[j]
        cell_steps = counts or tuple(range(1, len(run.blocks) + 1))
        cell = make_cell(run, cell_steps, init, rank, mode, before, unified=counts is not None, fit=fit)
        parts[f"cell{j + 1}"], before = cell, cell_steps
        old = count_parameters(*(run.module(i) for i in range(len(run.blocks))))
        replaced.append(Replaced(f"cell{j + 1}", run.name, run.what, len(run.blocks), old, count_parameters(cell)))
    return ConvertedNet(**parts), tuple(replaced)


def _segments(graph: fx.Graph, runs: Sequence[Run]) -> list[fx.Graph | None]:
    """The graph, cut at its runs: one graph before each run and one after the last; None if there is nothing in between.

    Each maps the output of the cell before to the input of the next cell. If other values are used later, both are tuples, whose
    remaining items bypass the cells.
    """
    first = {run.blocks[0][0].name: j for j, run in enumerate(runs)}
    last = {run.blocks[-1][-1].name: j for j, run in enumerate(runs)}
    inner = {call.name for run in runs for block in run.blocks for call in block}
    entries: list[fx.Node] = []
    exits: list[fx.Node] = []
    home: dict[fx.Node, int] = {}
    at = 0
    for node in graph.nodes:
        name = str(node.target) if node.op == "call_module" else ""
        if name in first:
            entries.append(node.args[0])  # type: ignore[arg-type]
        if name in last:
            exits.append(node)
            at += 1
            home[node] = at
        elif name not in inner:
            home[node] = at
    end = next(node for node in graph.nodes if node.op == "output")
    users = {node: [user for user in node.users if user.target is not device_of_input] for node in home}
    use = {node: max([home.get(user, -1) for user in users[node]] + [-1]) for node in home}
    for j, node in enumerate(entries):
        use[node] = max(use[node], j)

    def live(j: int) -> list[fx.Node]:
        """The values that bypass cell j."""
        return [n for n in home if home[n] <= j and n.op != "get_attr" and use[n] > j]

    segments: list[fx.Graph | None] = []
    for j in range(len(runs) + 1):
        takes = [next(iter(graph.nodes)) if j == 0 else exits[j - 1], *(live(j - 1) if j else [])]
        gives = [end.args[0]] if j == len(runs) else [entries[j], *live(j)]
        inside = [n for n in home if home[n] == j and n not in takes and n.op not in ("placeholder", "output", "get_attr")]
        segments.append(None if not inside and takes == gives else _cut(takes, inside, gives))
    return segments


def _cut(takes: Sequence[fx.Node], inside: Sequence[fx.Node], gives: Sequence[Any]) -> fx.Graph:
    """A graph of the nodes `inside`, from the values `takes` to the values `gives`."""
    part = fx.Graph()
    x = part.placeholder("x")
    new = {takes[0]: x}
    if len(takes) > 1:
        new = {node: part.call_function(operator.getitem, (x, i)) for i, node in enumerate(takes)}

    def found(node: fx.Node) -> fx.Node:
        if node not in new and node.op == "get_attr":
            new[node] = part.get_attr(str(node.target))
        return new[node]

    for node in inside:
        of_device = node.target is device_of_input
        new[node] = part.call_function(device_of_input, (new[takes[0]],)) if of_device else part.node_copy(node, found)
    given = tuple(found(node) for node in gives)
    part.output(given if len(given) > 1 else given[0])
    return part


def _part(source: nn.Module, graph: fx.Graph, mode: NormMode, upstream: tuple[int, ...]) -> nn.Module:
    """A part between cells. It has separate norms for each step count of the cell before, if that has several."""
    if mode != "double" or not upstream:
        return fx.GraphModule(source, graph)
    names = take_out(graph, source, vectors=False)
    if not names:
        graph.erase_node(next(node for node in graph.nodes if node.target == "norms"))
        return fx.GraphModule(source, graph)
    norm = lambda: [own_part(source, name) for name in names]  # noqa: E731
    return Transition(fx.GraphModule(source, graph), norm, norm_mode=mode, upstream=upstream)


@torch.no_grad()
def make_cell(
    run: Run, steps: tuple[int, ...], init: Init, rank: int, mode: NormMode, upstream: tuple[int, ...], unified: bool, fit: bool
) -> RelaxedCell:
    """The cell that replaces a run."""
    roots = [run.module(i) for i in range(len(run.blocks))]
    graph = record(roots[0], torch.rand(run.shape)).graph
    norms = take_out(graph, roots[0], vectors=True)
    layers = add_differences(graph, roots[0], len(norms)) if rank else []
    body = fx.GraphModule(copy.deepcopy(roots[0]), graph)
    for name, p in body.named_parameters() if fit else ():
        owner = roots[0].get_submodule(name.rpartition(".")[0])
        low = min(rank, largest_rank(owner)) if name.rpartition(".")[0] in layers else 0
        p.copy_(shared_kernel([tensor_of(root, name) for root in roots], init, low, groups_of(owner) if low else 1))
    stands_for = [block_of(t, steps[-1], len(roots)) for t in range(steps[-1])]
    differences = [[_difference(roots[i], body, name, rank, fit) for name in layers] for i in stands_for]
    cell = RelaxedCell(
        body,
        lambda: [own_part(roots[0], name) for name in norms],
        steps,
        norm_mode=mode,
        upstream=upstream,
        unified=unified,
        differences=differences,
    )
    groups: Any = cell.norms
    for row in groups:
        for t, group in enumerate(row):
            for module, name in zip(group, norms, strict=True):
                module.load_state_dict(own_part(roots[stands_for[t]], name).state_dict())
    return cell


def block_of(step: int, steps: int, blocks: int) -> int:
    """The index of the block that a step stands for, both counted from 0. The last step stands for the last block."""
    return 0 if steps == 1 else round(step * (blocks - 1) / (steps - 1))


def _difference(root: nn.Module, body: nn.Module, name: str, rank: int, fit: bool) -> nn.Sequential:
    """The difference between a block's layer and the shared one; zero without `fit`."""
    layer = root.get_submodule(name)
    made = difference(layer, rank)
    if fit:
        bias = (
            tensor_of(root, f"{name}.bias") - tensor_of(body, f"{name}.bias")
            if getattr(layer, "bias", None) is not None
            else None
        )
        set_difference(made, tensor_of(root, f"{name}.weight") - tensor_of(body, f"{name}.weight"), bias, groups_of(layer))
    return made


@torch.no_grad()
def _distance(source: nn.Module, net: RecurrentNet, x: Tensor) -> float:
    """The relative difference between the outputs at the most steps and those of the original."""
    expected, given = first_tensor(source(x)), net.eval()(x)
    return float((given - expected).norm() / expected.norm().clamp(min=1e-12))


@torch.no_grad()
def _check_sizes(source: nn.Module, net: RecurrentNet, x: Tensor) -> None:
    """Raises `InputError` if the graph only works for the batch size of the example."""
    more = torch.cat([x, x[:1]])
    given = net.eval()(more, net.settings[0]).shape
    if given != first_tensor(source(more)).shape:
        raise InputError(f"its code cannot be traced: it depends on the batch size of the example ({list(given)})")
