"""`record`: the graph of what a module does to an example, whatever its code.

`torch.fx.symbolic_trace` runs the code on proxies and fails where the code reads a shape or a type. Here the code runs on real
tensors, and each torch function and each call of a layer is recorded. Sizes are nodes of the graph, so that other batch sizes
work; branches, and dropout that is not a layer, are those of the example and of the mode (training or evaluation).
"""

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from rcnet.conversion.fit import LAYERS
from rcnet.conversion.sizes import Size
from rcnet.errors import InputError

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity)  # which do nothing themselves
_ONE_AT_A_TIME = threading.RLock()  # as nn.Module.__call__ is replaced for the whole process
DECIDING = ("__bool__", "item", "tolist", "__int__", "__float__", "__len__", "numpy")


@dataclass
class Call:
    """One call of a module: nodes `start` to `end` of the graph, `get_attr` nodes not counted.

    Attributes:
        shapes: of the first tensor that it takes, and of the first that it returns.
    """

    name: str
    module: nn.Module
    start: int = 0
    end: int = 0
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


@dataclass
class Recording:
    """The graph of a module, with its submodules and tensors as targets by name, and all calls in order."""

    graph: fx.Graph
    calls: list[Call]


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is a single node of a graph: norms of any class, layers of torch without weights or in `LAYERS`, and what
    cannot be followed. Other layers are followed inside, so that their weights are tensors in the graph."""
    if isinstance(module, (*NORMS, nn.RNNBase, torch.jit.ScriptModule)):
        return True
    if not type(module).__module__.startswith("torch.nn") or isinstance(module, CONTAINERS) or module._forward_hooks:
        return False
    return type(module) in LAYERS or not (module._parameters or module._modules)


def first_tensor(output: Any) -> Tensor:
    """The tensor in a network's output: the output itself, `logits`, or the first of a tuple or dictionary."""
    while not isinstance(output, Tensor):
        if getattr(output, "logits", None) is not None:
            output = output.logits
        elif isinstance(output, dict) and output:
            output = next(iter(output.values()))
        elif isinstance(output, tuple | list) and output:
            output = output[0]
        else:
            raise InputError(
                f"the network returned {type(output).__name__}; it must return a tensor, or several, of which the first is used"
            )
    return output


def record(root: nn.Module, example: Tensor) -> Recording:
    """The graph of `root(example)`.

    Tensors that are neither parameters nor buffers, and functions with their own backward pass, become attributes of `root`.

    Raises:
        InputError: a branch depends on values of tensors, or the code uses a result that cannot be followed.
    """
    with _ONE_AT_A_TIME, torch.enable_grad():  # so that parts without gradients are noticed
        recorder, x = _Recorder(root, example.device), example.clone()
        recorder.value(recorder.graph.placeholder("x"), x)
        with recorder, _patched(recorder):
            output = first_tensor(recorder.called(recorder.plain, root, (x,), {}))
        recorder.graph.output(recorder.node(output))
        return Recording(recorder.graph, recorder.calls)


def device_of_input(x: Tensor) -> torch.device:
    """The device of the graph's input; which tensor it is given does not matter."""
    return x.device


class Applied(nn.Module):
    """A `torch.autograd.Function`, with its own backward pass, as a module."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function.apply(*args)  # type: ignore[no-untyped-call]


@contextmanager
def _patched(recorder: "_Recorder") -> Iterator[None]:
    """Redirects calls of modules, and of functions with their own backward pass, in this thread to the recorder."""
    plain, thread, apply = recorder.plain, threading.get_ident(), torch.autograd.Function.__dict__["apply"]

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return plain(module, *args, **kwargs)
        return recorder.called(plain, module, args, kwargs)

    def applied(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        run = apply.__get__(None, function)
        return run(*args, **kwargs) if threading.get_ident() != thread or kwargs else recorder.applied(run, function, args)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    torch.autograd.Function.apply = classmethod(applied)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = plain  # type: ignore[method-assign]
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]


class _Recorder(TorchFunctionMode):
    """Records what runs."""

    def __init__(self, root: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.root, self.plain = root, nn.Module.__call__
        self.graph = fx.Graph()
        self.calls: list[Call] = []
        self.names = {id(module): name for name, module in root.named_modules()}
        self.tensors = {id(tensor): name for name, tensor in [*root.named_parameters(), *root.named_buffers()]}
        self.nodes: dict[int, fx.Node] = {}
        self.attributes = 0  # nodes that are parameters or buffers
        self.kept: list[Any] = []  # so that no id is used again
        self.off = False

    def value(self, node: fx.Node, result: Any) -> Any:
        """The result of a node, which is known by that node from now on."""
        if isinstance(result, Tensor):
            node.meta["shape"] = self.shape(result)
            self.nodes[id(result)] = self.latest = node
            self.kept.append(result)
        elif isinstance(result, tuple | list):
            for index, part in enumerate(result):
                if next(_tensors(part), None) is not None:
                    self.value(self.graph.call_function(operator.getitem, (node, index)), part)
        return result

    def node(self, value: Any) -> Any:
        """The node of a tensor, a size or the device that the example is on; other values as they are."""
        if isinstance(value, Size):
            return value.make()
        if isinstance(value, torch.device) and value == self.device:
            return self.graph.call_function(device_of_input, (self.latest,))
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.nodes:
            if id(value) not in self.tensors:
                self.tensors[id(value)] = self.constant(value)
            self.attributes += 1
            self.value(self.graph.get_attr(self.tensors[id(value)]), value)
        node = self.nodes[id(value)]
        if value.requires_grad and node.target is torch.detach:
            raise InputError(
                f"{value.grad_fn.name() if value.grad_fn else 'a result'} is a backward pass that cannot be followed"
            )
        return node

    def constant(self, value: Tensor) -> str:
        """The name of a new buffer for a tensor that is not a parameter, a buffer or a result."""
        if value.requires_grad:
            raise InputError(f"it uses a result of code that cannot be followed ({list(value.shape)})")
        name = f"_constant{len(self.tensors)}"
        object.__setattr__(self.root, name, value)  # a buffer of graphs, and no part of the network itself
        return name

    def shape(self, values: Any) -> tuple[int, ...]:
        """The shape of the first tensor."""
        off, self.off = self.off, True  # `shape` is a torch function, too
        try:
            return next((tuple(tensor.shape) for tensor in _tensors(values)), ())
        finally:
            self.off = off

    def positions(self) -> int:
        return len(self.graph.nodes) - self.attributes

    def mapped(self, values: Any, change: Callable[[Any], Any]) -> Any:
        if isinstance(values, slice):
            return slice(*(self.mapped(part, change) for part in (values.start, values.stop, values.step)))
        if isinstance(values, tuple | list):
            parts = [self.mapped(part, change) for part in values]
            return parts if isinstance(values, list) else tuple(parts)
        if isinstance(values, dict):
            return {key: self.mapped(part, change) for key, part in values.items()}
        return change(values)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        plain_args, plain_kwargs = self.mapped((args, kwargs), lambda v: int(v) if isinstance(v, Size) else v)
        if self.off:
            return function(*plain_args, **plain_kwargs)
        if function is Tensor.__setitem__:  # gives nothing, and changes its tensor
            nodes = self.mapped(args, self.node)
            function(*plain_args)
            self.graph.call_function(operator.setitem, nodes)
            return None
        if name in DECIDING and function is getattr(Tensor, name, None):
            raise InputError(f"a branch depends on the values of tensors (Tensor.{name})")
        owner: Any = getattr(function, "__self__", None)
        is_property = name == "__get__"
        shape = (is_property and owner.__name__ == "shape") or (name == "size" and function is Tensor.size)
        result = function(*plain_args, **plain_kwargs)
        if shape:
            return self.sizes(args, kwargs, result)
        if not any(isinstance(part, Tensor) for part in (result if isinstance(result, tuple | list) else (result,))):
            return result
        nodes = self.mapped((args, kwargs), self.node)
        if is_property:
            node = self.graph.call_function(getattr, (nodes[0][0], owner.__name__))
        elif function is getattr(Tensor, name, None):
            dunder = getattr(operator, name, None) if name.startswith("__") else None
            node = self.graph.call_function(dunder, *nodes) if dunder else self.graph.call_method(name, *nodes)
        else:
            node = self.graph.call_function(function, *nodes)
        known = id(result) in self.nodes
        self.value(node, result)
        cut_off = not torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors((args, kwargs)))
        if isinstance(result, Tensor) and not known and cut_off:
            self.value(self.graph.call_function(torch.detach, (node,)), result)  # it was computed without gradients
        return result

    def sizes(self, args: Any, kwargs: Any, result: Any) -> Any:
        """The sizes of a tensor as `Size`."""
        source = self.node(args[0])

        def side(value: int, index: int) -> Size:
            return Size(value, lambda: self.graph.call_method("size", (source, index)))

        if isinstance(result, int):
            return side(result, args[1] if len(args) > 1 else kwargs["dim"])
        return torch.Size([side(value, index) for index, value in enumerate(result)])

    def applied(self, run: Any, function: type[torch.autograd.Function], args: Any) -> Any:
        """Calls a function with its own backward pass and records it as a module."""
        if self.off:
            return run(*args)
        module = Applied(function)
        name = f"_function{len(self.graph.nodes)}"
        object.__setattr__(self.root, name, module)
        return self.leaf(name, lambda *given: run(*given), args, {})

    def leaf(self, name: str, run: Any, args: Any, kwargs: Any) -> Any:
        """Calls a module that is one node."""
        nodes = self.mapped((args, kwargs), self.node)
        self.off = True
        try:
            result = run(*self.mapped(args, lambda v: int(v) if isinstance(v, Size) else v), **kwargs)
        finally:
            self.off = False
        return self.value(self.graph.call_module(name, *nodes), result)

    def called(self, plain: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Calls a module and records it: one node for a leaf, else what it does inside."""
        if self.off or id(module) not in self.names:
            return plain(module, *args, **kwargs)
        call = Call(self.names[id(module)], module, start=self.positions())
        self.calls.append(call)
        if module is not self.root and is_leaf(module):
            result = self.leaf(call.name, lambda *given, **options: plain(module, *given, **options), args, kwargs)
        else:
            result = plain(module, *args, **kwargs)
        call.end = self.positions()
        call.shapes = (self.shape((args, kwargs)), self.shape(result))
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
