"""The chain of parts and cells that replaces a recorded network."""

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from rcnet.cell import NormMode, Transition
from rcnet.conversion.cells import RelaxedCell, add_differences, own_part, part_of, take_out
from rcnet.conversion.fit import allocated, difference, groups_of, largest_rank, set_difference, shared_kernel
from rcnet.conversion.record import device_of_input
from rcnet.conversion.report import ConvertedNet, Replaced
from rcnet.conversion.runs import Run

Ranks = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class How:
    """How cells are made.

    Attributes:
        steps: of every cell; None: each cell takes from 1 to as many steps as it had blocks.
        init, mode: as in `convert`.
        rank: of all differences, or of each cell, step and layer.
        adaptive: distribute the parameters of this rank by the singular values left.
        fit: set the weights.
    """

    steps: tuple[int, ...] | None
    init: str
    rank: int | Ranks
    adaptive: bool
    mode: NormMode
    fit: bool


@dataclass
class Draft:
    """A cell without its differences.

    Attributes:
        norms, layers: names in the body of what each step has separately, and of what a difference is added to.
        stands_for: the block of each step.
        names: name in the body -> the names in the original, of each block.
    """

    run: Run
    steps: tuple[int, ...]
    body: fx.GraphModule
    norms: list[str]
    layers: list[str]
    stands_for: list[int]
    names: dict[str, tuple[str, ...]]


def chain(source: nn.Module, graph: fx.Graph, runs: Sequence[Run], how: How) -> tuple[ConvertedNet, tuple[Replaced, ...]]:
    """The network of the runs' cells and the parts between them."""
    drafts = [_draft(source, run, how) for run in runs]
    ranks = _ranks(source, drafts, how)
    parts: dict[str, nn.Module] = {}
    replaced: list[Replaced] = []
    before: tuple[int, ...] = ()
    segments, bypass = _segments(graph, runs)
    for j, segment in enumerate(segments):
        if segment is not None:
            parts["stem" if j == 0 else "head" if j == len(runs) else f"transition{j}"] = _part(source, segment, how.mode, before)
        if j == len(runs):
            break
        run, draft = runs[j], drafts[j]
        extras = [1 + bypass[j].index(node) for node in run.extras]
        cell = _cell(source, draft, ranks[j], extras, before, how)
        parts[f"cell{j + 1}"], before = cell, draft.steps
        own = {id(p): p.numel() for block in run.blocks for name in block.own for p in _parameters(part_of(source, name))}
        after = sum(p.numel() for p in cell.parameters())
        shared = tuple(sorted(_shared(draft))) if how.rank else ()
        replaced.append(Replaced(f"cell{j + 1}", run.name, run.what, len(run.blocks), sum(own.values()), after, shared))
    net = ConvertedNet(**parts)
    net.ranks = tuple(tuple(map(tuple, cell)) for cell in ranks)
    return net, tuple(replaced)


def _parameters(part: Any) -> list[nn.Parameter]:
    return list(part.parameters()) if isinstance(part, nn.Module) else [part] if isinstance(part, nn.Parameter) else []


def _shared(draft: Draft) -> set[str]:
    """Layers of a body with weights that no difference is added to."""
    modules = {str(node.target) for node in draft.body.graph.nodes if node.op == "call_module"} - set(draft.layers)
    return {name for name in modules if _parameters(part_of(draft.body, name))}


def _segments(graph: fx.Graph, runs: Sequence[Run]) -> tuple[list[fx.Graph | None], list[list[fx.Node]]]:
    """The graph, cut at its runs: one graph before each run and one after the last; None if there is nothing in between.

    Each maps the output of the cell before to the input of the next cell. If other values are used later, or in the cell, both
    are tuples; also returns these values for each cell.
    """
    nodes = [node for node in graph.nodes if node.op != "get_attr"]
    position = {node: i for i, node in enumerate(nodes)}
    inner = {node for run in runs for block in run.blocks for node in block.nodes}
    home = {n: sum(run.end <= position[n] for run in runs) for n in nodes if n not in inner}
    home |= {run.exit: j + 1 for j, run in enumerate(runs)}
    last = {node: max([position[u] for u in node.users if u.target is not device_of_input] + [-1]) for node in home}
    bypass = []
    for j, run in enumerate(runs):
        passing = [n for n in home if home[n] <= j and last[n] >= run.end]
        bypass.append(passing + [n for n in run.extras if n not in passing])
    segments: list[fx.Graph | None] = []
    for j in range(len(runs) + 1):
        takes = [nodes[0]] if j == 0 else [runs[j - 1].exit, *bypass[j - 1]]
        gives = [nodes[-1].args[0]] if j == len(runs) else [runs[j].entry, *bypass[j]]
        inside = [n for n in nodes if n not in inner and home[n] == j and n.op not in ("placeholder", "output")]
        segments.append(None if not inside and takes == gives else _cut(takes, inside, gives))
    return segments, bypass


def _cut(takes: Sequence[fx.Node], inside: Sequence[fx.Node], gives: Sequence[Any]) -> fx.Graph:
    """A graph of the nodes `inside`, from the values `takes` to the values `gives`."""
    part = fx.Graph()
    x = part.placeholder("x")
    new = {takes[0]: x}
    if len(takes) > 1:
        new = {node: part.call_function(operator.getitem, (x, i)) for i, node in enumerate(takes)}
    return _filled(part, new, takes[0], inside, gives, {})


def _filled(
    part: fx.Graph,
    new: dict[fx.Node, fx.Node],
    x: fx.Node,
    inside: Sequence[fx.Node],
    gives: Sequence[Any],
    names: dict[str, str],
) -> fx.Graph:
    """The graph with copies of the nodes `inside`, under other `names`, and the output `gives`."""

    def found(node: fx.Node) -> fx.Node:
        if node not in new and node.op == "get_attr":
            new[node] = part.get_attr(names.get(str(node.target), str(node.target)))
        return new[node]

    for node in inside:
        if node.target is device_of_input:
            new[node] = part.call_function(device_of_input, (new[x],))
            continue
        new[node] = part.node_copy(node, found)
        if node.op == "call_module":
            new[node].target = names.get(str(node.target), node.target)
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
def _draft(source: nn.Module, run: Run, how: How) -> Draft:
    """The body of the cell that replaces a run, with its shared kernels."""
    block, graph = run.blocks[0], fx.Graph()
    names = dict(zip(block.own, run.names, strict=True))
    every = {name: tuple(b.own[i] for b in run.blocks) for i, name in enumerate(run.names)}
    new = {run.entry: graph.placeholder("x")}
    new |= {node: graph.placeholder(f"extra{i}") for i, node in enumerate(run.extras)}
    _filled(graph, new, run.entry, block.nodes, [block.nodes[run.gives]], names)
    stateless = {str(n.target) for n in graph.nodes if n.op == "call_module"} - every.keys()
    root = copy.deepcopy({name: part_of(source, old) for old, name in names.items()} | {n: part_of(source, n) for n in stateless})
    whole = fx.GraphModule(root, graph)  # type: ignore[arg-type]
    norms = take_out(whole.graph, whole, vectors=True)
    layers = add_differences(whole.graph, whole, len(norms)) if how.rank else []
    body = fx.GraphModule(whole, whole.graph)
    steps = how.steps or tuple(range(1, len(run.blocks) + 1))
    most = steps[-1]
    stands_for = [block_of(t, most, len(run.blocks)) for t in range(most)]
    rank = how.rank if isinstance(how.rank, int) else 0
    for name in every:
        layer, others = None if name in norms else part_of(body, name), [part_of(source, n) for n in every[name]]
        for i, p in enumerate(_parameters(layer)):
            assert layer is not None
            of_all = [_parameters(other)[i] for other in others]
            p.requires_grad_(any(other.requires_grad for other in of_all))
            low = min(rank, largest_rank(layer)) if name in layers and p.ndim > 1 else 0
            if how.fit:
                p.copy_(shared_kernel(of_all, how.init, low, groups_of(layer), not isinstance(layer, nn.Module)))
    return Draft(run, steps, body, norms, layers, stands_for, every)


def block_of(step: int, steps: int, blocks: int) -> int:
    """The index of the block that a step stands for, both counted from 0. The last step stands for the last block."""
    return 0 if steps == 1 else round(step * (blocks - 1) / (steps - 1))


def _ranks(source: nn.Module, drafts: Sequence[Draft], how: How) -> Ranks:
    """The ranks of the differences, of each cell: for each step, of each layer."""
    if not isinstance(how.rank, int):
        return how.rank
    layers = [(j, t, name) for j, draft in enumerate(drafts) for t in range(draft.steps[-1]) for name in draft.layers]
    shared = [part_of(drafts[j].body, name) for j, _, name in layers]
    chosen = [min(how.rank, largest_rank(layer)) for layer in shared]
    if how.adaptive and how.fit:
        own = [part_of(source, drafts[j].names[name][drafts[j].stands_for[t]]) for j, t, name in layers]
        chosen = allocated(own, shared, chosen)
    given = iter(chosen)
    return [[[next(given) for _ in draft.layers] for _ in range(draft.steps[-1])] for draft in drafts]


@torch.no_grad()
def _cell(
    source: nn.Module, draft: Draft, ranks: Sequence[Sequence[int]], extras: Sequence[int], upstream: tuple[int, ...], how: How
) -> RelaxedCell:
    """The cell of a draft."""

    def part(name: str, step: int) -> Any:
        return part_of(source, draft.names[name][draft.stands_for[step]])

    differences = []
    for t, row in enumerate(ranks):
        made = [difference(part_of(draft.body, name), rank) for name, rank in zip(draft.layers, row, strict=True)]
        for module, name in zip(made, draft.layers, strict=True) if how.fit else ():
            set_difference(module, part(name, t), part_of(draft.body, name))
        differences.append(made)
    cell = RelaxedCell(
        draft.body,
        lambda: [own_part(source, draft.names[name][0]) for name in draft.norms],
        draft.steps,
        norm_mode=how.mode,
        upstream=upstream,
        unified=how.steps is not None,
        differences=differences,
        extras=extras,
    )
    groups: Any = cell.norms
    for row in groups:
        for t, group in enumerate(row):
            for module, name in zip(group, draft.norms, strict=True):
                module.load_state_dict(own_part(source, draft.names[name][draft.stands_for[t]]).state_dict())
    return cell
