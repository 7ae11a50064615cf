"""`find_runs`: the repeated blocks of a network, as slices of its graph."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from rcnet.conversion.blocks import Block, Slices, plainly
from rcnet.conversion.record import Call, Recording
from rcnet.errors import unknown


@dataclass(frozen=True)
class Run:
    """Consecutive blocks that differ only in their weights; each changes one value and takes others as they are.

    Attributes:
        calls: of each block, the modules that it is named after.
        start, end: of the run in the graph, `get_attr` nodes not counted.
        state: the index in `takes` of the value that changes.
        gives: the index in `nodes` of the changed value.
    """

    calls: tuple[tuple[Call, ...], ...]
    blocks: tuple[Block, ...]
    start: int
    end: int
    state: int
    gives: int

    @property
    def name(self) -> str:
        first, last = self.calls[0][0].name, self.calls[-1][-1].name
        parent, _, number = first.rpartition(".")
        return f"{parent}.{number}-{last.rpartition('.')[2]}" if parent else f"{number}-{last}"

    @property
    def what(self) -> str:
        return "+".join(type(call.module).__name__ for call in self.calls[0])

    @property
    def names(self) -> list[str]:
        """The names of the first block's own modules and tensors in the body of the cell."""
        calls = self.calls[0]

        def inside(name: str) -> str:
            for i, call in enumerate(calls):
                if _within(name, [call.name]):
                    rest = name[len(call.name) + 1 :]
                    return rest if rest and len(calls) == 1 else f"{i}.{rest}".rstrip(".")
            return f"outside.{name}"

        return [inside(name) for name in self.blocks[0].own]

    @property
    def entry(self) -> fx.Node:
        return self.blocks[0].takes[self.state]

    @property
    def exit(self) -> fx.Node:
        return self.blocks[-1].nodes[self.gives]

    @property
    def extras(self) -> list[fx.Node]:
        """The values that every block takes as they are."""
        return [node for i, node in enumerate(self.blocks[0].takes) if i != self.state]


@dataclass
class Found:
    """The runs in the order of their calls, and the parts that are kept: name, class, parameters and the reason."""

    runs: list[Run] = field(default_factory=list)
    kept: list[tuple[str, str, int, str]] = field(default_factory=list)


def count_parameters(*modules: nn.Module) -> int:
    """Parameters, each counted once."""
    return sum(p.numel() for p in {p: None for module in modules for p in module.parameters()})


def find_runs(root: nn.Module, recording: Recording, regions: Iterable[str] | None = None, apart: bool = False) -> Found:
    """The runs of a recorded network; of nested runs the outermost.

    Args:
        regions: names of modules; only blocks in them are replaced.
        apart: the first block of a run of three or more stays as it is.

    Raises:
        InputError: a region is not a module of the network.
    """
    regions = None if regions is None else tuple(regions)
    calls = recording.calls
    several = Counter(call.name.rpartition(".")[0] for call in calls)
    for region in regions or ():
        if region not in dict(root.named_modules()):
            raise unknown("region", region, [name for name, count in several.items() if name and count > 1])
    families: dict[str, list[Call]] = {}
    for call in calls:
        if call.name:
            families.setdefault(call.name.rpartition(".")[0], []).append(call)
    search, found = _Search(root, recording), Found()
    for family in sorted(families.values(), key=lambda family: family[0].name.count(".")):
        free = [call for call in family if not any(run.start <= call.start < run.end for run in found.runs)]
        for named, part in itertools.groupby(free, lambda call: regions is None or _within(call.name, regions)):
            found.runs += search.runs(list(part)) if named else ()
    found.runs.sort(key=lambda run: run.start)
    found.kept = list(_kept(search, families, found.runs, regions))
    if apart:
        found.runs = [search.run(run.calls[1:]) or run if len(run.calls) > 2 else run for run in found.runs]
    return found


def _within(name: str, others: Iterable[str]) -> bool:
    return any(name == other or name.startswith(other + ".") for other in others)


class _Search(Slices):
    """Runs in a recorded network."""

    def runs(self, chain: Sequence[Call]) -> Iterator[Run]:
        """The runs of sibling calls: the one that saves most parameters, then those before and after it."""
        kinds = [(type(call.module), call.shapes, *(p.shape for p in call.module.state_dict().values())) for call in chain]
        best: tuple[tuple[int, bool, int, int], Run] | None = None
        for start in range(len(chain)):
            for period in range(1, (len(chain) - start) // 2 + 1):
                times = 1
                while kinds[start + times * period : start + (times + 1) * period] == kinds[start : start + period]:
                    times += 1
                saved = (times - 1) * count_parameters(*(call.module for call in chain[start : start + period]))
                heavy = any(p.ndim > 1 for p in chain[start].module.parameters())
                if times < 2 or not saved or (best and (saved, heavy, -period, -start) <= best[0]):
                    continue
                run = self.run([chain[i : i + period] for i in range(start, start + times * period, period)])
                if run is not None:
                    rank = (saved * (len(run.calls) - 1) // (times - 1), heavy, -period, -start)
                    best = (rank, run) if best is None or rank > best[0] else best
        if best is None:
            return
        run = best[1]
        first, last = chain.index(run.calls[0][0]), chain.index(run.calls[-1][-1])
        yield from self.runs(chain[:first])
        yield run
        yield from self.runs(chain[last + 1 :])

    def run(self, calls: Sequence[Sequence[Call]]) -> Run | None:
        """The run of as many of these blocks as are equal, if there are two.

        A block is what its calls do, with what the code does between it and the next one (e.g. a sum), or without, if that does
        not depend on the blocks.
        """
        first = calls[0][0].start
        longest = max(map(self.blocks_of, (calls, calls), (calls[1][0].start - first, calls[0][-1].end - first)), key=len)
        if len(longest) < 2:
            return None
        gives, state = self.joined(longest[0], longest[1])  # type: ignore[misc]
        if longest[0].takes[state].meta.get("shape") != longest[0].nodes[gives].meta.get("shape"):
            return None
        end = self.position[longest[-1].nodes[-1]] + 1
        return Run(tuple(map(tuple, calls[: len(longest)])), tuple(longest), first, end, state, gives)

    def blocks_of(self, calls: Sequence[Sequence[Call]], length: int) -> list[Block]:
        """The equal blocks of this many nodes, each from its first call."""
        blocks: list[Block] = []
        for block in calls:
            start = block[0].start
            if start + length > len(self.nodes) or (blocks and start <= self.position[blocks[-1].nodes[-1]]):
                break
            blocks.append(self.block(start, length))
            if self.apart(blocks):
                return blocks[:-1]
        return blocks

    def apart(self, blocks: Sequence[Block]) -> str:
        """Why the last of these blocks is not one more of a run; empty if it is."""
        if len(blocks) < 2:
            return ""
        before, block = blocks[-2:]
        if block.lines != before.lines:
            there, here = next(
                pair for pair in itertools.zip_longest(before.lines, block.lines, fillvalue="nothing") if pair[0] != pair[1]
            )
            return f"the next block differs: {plainly(there)}, then {plainly(here)}"
        given = self.given(before)
        if len(given) != 1:
            return "its output is used again later" if given else "its output is not used by the next block"
        found = self.joined(before, block)
        if found is None:
            return "the next block takes other values beside its output"
        inside = range(self.position[block.nodes[0]], self.position[block.nodes[-1]] + 1)
        if any(place not in inside for place in self.users(given[0])):
            return "its output is used again later"
        if len(self.given(block)) > 1 or (len(blocks) > 2 and found != self.joined(blocks[0], blocks[1])):
            return "the next block returns more than one value"
        return ""

    def given(self, block: Block) -> list[fx.Node]:
        """The values of a block that others use."""
        last = self.position[block.nodes[-1]]
        return [node for node in block.nodes if any(place > last for place in self.users(node))]

    def joined(self, before: Block, block: Block) -> tuple[int, int] | None:
        """The indices of the value that the first block gives to the second, in its nodes and in what the second takes."""
        given = self.given(before)
        if len(given) != 1 or given[0] not in block.takes or len(before.takes) != len(block.takes):
            return None
        state = block.takes.index(given[0])
        others = [(a, b) for i, (a, b) in enumerate(zip(before.takes, block.takes, strict=True)) if i != state]
        return (list(before.nodes).index(given[0]), state) if all(a is b for a, b in others) else None


def _kept(
    search: _Search, families: dict[str, list[Call]], runs: Sequence[Run], regions: tuple[str, ...] | None
) -> Iterator[tuple[str, str, int, str]]:
    """The outermost modules with weights that contain no run and are in none."""
    done: list[str] = []
    inside = [call.name for run in runs for block in run.calls for call in block]
    order = sorted(itertools.chain(*families.values()), key=lambda call: (call.start, -call.end))

    def following(call: Call) -> Call | None:
        """The next call beside this one, if it is of the same class."""
        family = families[call.name.rpartition(".")[0]]
        other = next((other for other in family if other.start >= call.end), None)
        return other if other is not None and type(other.module) is type(call.module) else None

    def reason(call: Call) -> str:
        times, other = search.times[id(call.module)], following(call)
        if regions is not None and not _within(call.name, regions):
            return "is in none of the regions"
        if times > 1:
            return f"is already called {times} times"
        if call.shapes[0] != call.shapes[1]:
            why = f"changes the shape, {list(call.shapes[0][1:])} to {list(call.shapes[1][1:])}"
        elif other is None:
            why = "no equal block follows it"
        else:
            lengths = (call.end - call.start, other.start - call.start)
            pairs = [[search.block(one.start, length) for one in (call, other)] for length in lengths]
            return next((found for pair in pairs if (found := search.apart(pair))), "no equal block follows it")
        parts = [
            part for part in order if part.name.startswith(call.name + ".") and following(part) and count_parameters(part.module)
        ]
        return f"{why}; inside, {parts[0].name} {reason(parts[0])}" if parts else why

    for call in order:
        name, size = call.name, count_parameters(call.module)
        holds_one = any(other.startswith(name + ".") for other in inside)
        in_run = any(run.start <= call.start and call.end <= run.end for run in runs)
        if size and not holds_one and not in_run and not _within(name, [*inside, *done]):
            done.append(name)
            yield name, type(call.module).__name__, size, reason(call)
