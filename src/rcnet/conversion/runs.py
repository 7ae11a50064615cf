"""`find_runs`: the repeated blocks of a network."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from rcnet.conversion.record import Call, Recording, device_of_input, record
from rcnet.errors import InputError, unknown


@dataclass(frozen=True)
class Run:
    """Consecutive blocks that differ only in their weights. A block is one module, or several that are called in order.

    Attributes:
        blocks: the calls of each block.
    """

    blocks: tuple[tuple[Call, ...], ...]

    @property
    def name(self) -> str:
        first, last = self.blocks[0][0].name, self.blocks[-1][-1].name
        parent, _, number = first.rpartition(".")
        return f"{parent}.{number}-{last.rpartition('.')[2]}" if parent else f"{number}-{last}"

    @property
    def what(self) -> str:
        return "+".join(type(call.module).__name__ for call in self.blocks[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, C, H, W] of the input of the first block, for the example."""
        return self.blocks[0][0].shapes[0]

    def module(self, index: int) -> nn.Module:
        """A block as one module."""
        calls = self.blocks[index]
        if len(calls) == 1:
            return calls[0].module
        return nn.Sequential(*(call.module for call in calls))


@dataclass
class Found:
    """The runs in the order of their calls, and the parts that are kept: name, class, parameters and the reason."""

    runs: list[Run] = field(default_factory=list)
    kept: list[tuple[str, str, int, str]] = field(default_factory=list)


def count_parameters(*modules: nn.Module) -> int:
    """Parameters, each counted once."""
    return sum(p.numel() for p in {p: None for module in modules for p in module.parameters()})


def find_runs(root: nn.Module, recording: Recording, regions: Iterable[str] | None = None) -> Found:
    """The runs of a recorded network; of nested runs the outermost.

    Args:
        regions: names of modules; only blocks in them are replaced.

    Raises:
        InputError: a region is not a module of the network.
    """
    regions = None if regions is None else tuple(regions)
    calls = recording.calls
    several = Counter(call.name.rpartition(".")[0] for call in calls)
    for region in regions or ():
        if region not in dict(root.named_modules()):
            raise unknown("region", region, [name for name, count in several.items() if name and count > 1])
    times = Counter(id(call.module) for call in calls)
    for call in calls:
        if times[id(call.module)] > 1:
            call.reason = f"is already called {times[id(call.module)]} times"
    position = {node: i for i, node in enumerate(recording.graph.nodes)}
    found, inside = Found(), ()  # type: Found, tuple[str, ...]
    for chain in sorted(_chains(calls, position), key=lambda chain: chain[0].name.count(".")):
        if _within(chain[0].name, inside):
            continue
        for named, part in itertools.groupby(chain, lambda call: regions is None or _within(call.name, regions)):
            for run in _repeats(list(part)) if named else ():
                found.runs.append(run)
                inside += tuple(call.name for block in run.blocks for call in block)
    found.runs.sort(key=lambda run: run.blocks[0][0].start)
    found.kept = list(_kept(calls, inside, regions))
    return found


def _within(name: str, others: Iterable[str]) -> bool:
    return any(name == other or name.startswith(other + ".") for other in others)


def _chains(calls: Sequence[Call], position: dict[fx.Node, int]) -> Iterator[list[Call]]:
    """Chains of calls of sibling modules; the output of each call is used only by the next."""
    families: dict[str, list[Call]] = {}
    for call in calls:
        if call.name:
            families.setdefault(call.name.rpartition(".")[0], []).append(call)
    for family in families.values():
        chain: list[Call] = []
        for call in family:
            if call.reason or call.gives is None:
                if chain:
                    yield chain
                chain = []
                continue
            before = chain[-1].gives if chain else None
            alone = before is not None and all(
                call.start <= position.get(user, -1) < call.end for user in before.users if user.target is not device_of_input
            )
            if chain and not (call.takes is before and alone):
                chain[-1].shared = call.takes is before
                yield chain
                chain = []
            chain.append(call)
        if chain:
            yield chain


def _repeats(chain: Sequence[Call]) -> Iterator[Run]:
    """The runs of a chain: the one that saves most parameters, then those before and after it."""
    kinds = [signature(call) for call in chain]
    best: tuple[int, bool, int, int, int] | None = None
    for start in range(len(chain)):
        for period in range(1, (len(chain) - start) // 2 + 1):
            block = kinds[start : start + period]
            if chain[start].shapes[0] != chain[start + period - 1].shapes[1]:
                continue
            times = 1
            while kinds[start + times * period : start + (times + 1) * period] == block:
                times += 1
            saved = (times - 1) * count_parameters(*(call.module for call in chain[start : start + period]))
            heavy = any(p.ndim > 1 for p in chain[start].module.parameters())
            if times > 1 and saved and (best is None or (saved, heavy, -period, -start) > best[:4]):
                best = (saved, heavy, -period, -start, times)
    if best is None:
        return
    period, start, times = -best[2], -best[3], best[4]
    end = start + times * period
    yield from _repeats(chain[:start])
    yield Run(tuple(tuple(chain[i : i + period]) for i in range(start, end, period)))
    yield from _repeats(chain[end:])


def signature(call: Call) -> str:
    """A text that is equal for two blocks that differ only in the values of their weights."""
    module = call.module
    parts = [f"{type(module).__module__}.{type(module).__qualname__}", str(call.shapes)]
    parts += [f"{name} {tuple(value.shape)}" for name, value in module.state_dict().items()]
    if any(True for _ in module.children()):
        try:
            graph = record(module, torch.zeros(call.shapes[0])).graph
        except (InputError, RuntimeError, TypeError, ValueError):
            return f"{call.name} alone"
        parts += [f"{node.op} {node.target} {node.args} {node.kwargs}" for node in graph.nodes]
        parts += [repr(module.get_submodule(str(node.target))) for node in graph.nodes if node.op == "call_module"]
    else:
        parts.append(repr(module))
    return "\n".join(parts)


def _kept(calls: Sequence[Call], inside: Sequence[str], regions: tuple[str, ...] | None) -> Iterator[tuple[str, str, int, str]]:
    """The outermost modules with weights that contain no run and are in none."""
    done: list[str] = []
    for call in calls:
        name, size = call.name, count_parameters(call.module)
        holds_one = not name or any(other.startswith(name + ".") for other in inside)
        if not size or holds_one or _within(name, [*inside, *done]):
            continue
        done.append(name)
        if regions is not None and not _within(name, regions):
            reason = "is in none of the regions"
        elif call.reason:
            reason = call.reason
        elif call.shapes[0] != call.shapes[1]:
            reason = f"changes the shape, {list(call.shapes[0][1:])} to {list(call.shapes[1][1:])}"
        else:
            reason = "its output is used again later" if call.shared else "no equal block follows it"
        yield name, type(call.module).__name__, size, reason
