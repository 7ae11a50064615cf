"""Slices of a network's graph, and texts that are equal for slices that differ only in the values of their weights."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from rcnet.conversion.record import Recording, device_of_input


@dataclass(frozen=True)
class Block:
    """A slice of the graph.

    Attributes:
        nodes: without `get_attr` nodes.
        takes: the values that it takes from outside.
        own: names of the modules and tensors that only it uses, in the order of their first use.
        lines: what it does; equal for blocks that differ only in the values of their weights.
    """

    nodes: Sequence[fx.Node]
    takes: tuple[fx.Node, ...]
    own: tuple[str, ...]
    lines: tuple[str, ...]


class Slices:
    """Blocks in a recorded network."""

    def __init__(self, root: nn.Module, recording: Recording) -> None:
        self.root = root
        self.nodes = [node for node in recording.graph.nodes if node.op != "get_attr"]
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.uses: dict[str | int, list[int]] = {}  # of modules by name, and of tensors by identity
        for node in recording.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                for key in self.keys(node):
                    self.uses.setdefault(key, []).extend(self.users(node) if node.op == "get_attr" else [self.position[node]])
        self.times = Counter(id(call.module) for call in recording.calls)
        self.blocks: dict[tuple[int, int], Block] = {}

    def keys(self, node: fx.Node) -> list[str | int]:
        """What a node uses: a module, and its tensors; or a tensor."""
        name = str(node.target)
        if node.op == "get_attr":
            return [id(tensor_of(self.root, name))]
        return [name, *map(id, self.root.get_submodule(name).parameters())]

    def users(self, node: fx.Node) -> list[int]:
        """The positions of the nodes that use a value."""
        return [self.position[user] for user in node.users if user.target is not device_of_input]

    def block(self, start: int, length: int) -> Block:
        """A slice as a block."""
        if (start, length) in self.blocks:
            return self.blocks[start, length]
        nodes = self.nodes[start : start + length]
        inner = {node: i for i, node in enumerate(nodes)}
        takes: list[fx.Node] = []
        own: list[str] = []

        def is_own(node: fx.Node) -> bool:
            return all(start <= place < start + length for key in self.keys(node) for place in self.uses[key])

        def index(names: list[Any], name: Any) -> int:
            if name not in names:
                names.append(name)
            return names.index(name)

        def value(node: fx.Node) -> str:
            if node in inner:
                return f"%{inner[node]}"
            if node.op == "get_attr" and is_own(node):
                return f"own {index(own, str(node.target))} {self.tensor(str(node.target))}"
            return f"given {index(takes, node)}"

        lines = []
        for node in nodes:
            target = str(node.target)
            if node.target is device_of_input:
                lines.append("the device")
                continue
            if node.op == "call_module":
                module = self.root.get_submodule(target)
                state = [tuple(tensor.shape) for tensor in module.state_dict().values()]
                if is_own(node) or not state:
                    target = f"{index(own, target)} {module!r} {state}"
                else:
                    target += f", which is also called elsewhere than in nodes {start} to {start + length}"
            arguments = _texts((node.args, node.kwargs), value)
            lines.append(f"{node.op} {target} {arguments} {node.meta.get('shape')}")
        self.blocks[start, length] = Block(nodes, tuple(takes), tuple(own), tuple(lines))
        return self.blocks[start, length]

    def tensor(self, name: str) -> str:
        """A text for a parameter or buffer. Buffers that are not one value per channel are equal in all blocks of a run."""
        value = tensor_of(self.root, name)
        values = "" if isinstance(value, nn.Parameter) or is_vector(value) else _digest(value)
        return f"{tuple(value.shape)} {value.dtype} {values}"


def tensor_of(root: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by name."""
    parent, _, last = name.rpartition(".")
    return getattr(root.get_submodule(parent), last)


def is_vector(value: Tensor) -> bool:
    """Whether only one side of a tensor is longer than 1."""
    return value.numel() == max((1, *value.shape))


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _texts(values: Any, of_node: Any) -> str:
    if isinstance(values, fx.Node):
        return of_node(values)
    if isinstance(values, slice):
        return f"slice{_texts((values.start, values.stop, values.step), of_node)}"
    if isinstance(values, dict):
        return f"{{{', '.join(f'{key}: {_texts(value, of_node)}' for key, value in values.items())}}}"
    if isinstance(values, tuple | list):
        return f"({', '.join(_texts(value, of_node) for value in values)})"
    return repr(values)


def plainly(line: str) -> str:
    """A line of a block for people."""
    return " ".join(line.split())[:90]
