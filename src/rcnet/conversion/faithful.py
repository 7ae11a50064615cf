"""What a recorded network does not do as the original does."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from rcnet.conversion.record import Recording, first_tensor, record
from rcnet.errors import InputError

EXACT = 1e-3  # relative difference of outputs, and of gradients, above which it is not rounding
LARGEST = 64  # multiples of sides that are tried


@torch.no_grad()
def differ(one: Tensor, other: Tensor) -> float:
    """The difference relative to the first."""
    return float((one - other).norm() / one.norm().clamp(min=1e-12))


def check(source: nn.Module, recording: Recording, x: Tensor) -> list[str]:
    """Notes on gradients and on training mode. `x` is the example.

    Raises:
        InputError: the graph computes something else for other images than the example, or another number of them.
    """
    net, more = fx.GraphModule(source, recording.graph), torch.cat([x, x[:1]]).flip(-1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = first_tensor(source(more.clone()))  # code may change its input
        torch.manual_seed(0)
        try:
            given = net.forward(more.clone())  # which prints nothing where it fails
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"its code cannot be traced: it depends on the batch size of the example ({reason})") from error
    if given.shape != expected.shape:
        raise InputError(f"its code cannot be traced: it depends on the batch size of the example ({list(given.shape)})")
    away = differ(expected, given)
    if not away < EXACT:
        raise InputError(f"its code cannot be traced: for other images the graph is {away:.2g} off (values are used as numbers)")
    return [*_gradients(source, expected, given), *_training(source, recording, x)]


def _gradients(source: nn.Module, expected: Tensor, given: Tensor) -> Iterator[str]:
    """Where the graph's gradients are not those of the code."""
    named = {name: p for name, p in source.named_parameters() if p.requires_grad}
    if not named or not expected.requires_grad or not given.requires_grad:
        return
    try:
        pairs = [torch.autograd.grad(y.square().mean(), list(named.values()), allow_unused=True) for y in (expected, given)]
    except RuntimeError as error:
        yield f"gradients cannot be computed: {str(error).strip().splitlines()[0][:100]}"
        return
    sizes = [[0.0 if g is None else float(g.norm()) for g in of] for of in pairs]
    for name, a, b, size, other in zip(named, *pairs, *sizes, strict=True):
        away = max(size, other) if a is None or b is None else float((a - b).norm())
        if away > EXACT * max(size, EXACT * max(sizes[0])):
            yield f"gradients of {name} are not those of the original: {size:.3g} became {other:.3g}"
            return


def _training(source: nn.Module, recording: Recording, x: Tensor) -> Iterator[str]:
    """Code outside of layers that only runs in training: the graph is that of evaluation."""
    try:
        other = record(copy.deepcopy(source).train(), x)
    except Exception as error:  # whatever code does in training
        yield f"its code fails in training mode ({' '.join(str(error).split())[:100]}): what it would do there is left out"
        return
    before, after = _by_module(recording), _by_module(other)
    kinds: dict[str, list[str]] = {}
    for name in before:
        if before[name][1] != after.get(name, ("", []))[1]:
            kinds.setdefault(before[name][0], []).append(name or "the network")
    for kind, names in kinds.items():
        yield f"{kind} ({_first(names)}) computes something else in training mode, outside of layers: that is left out"


def _by_module(recording: Recording) -> dict[str, tuple[str, list[str]]]:
    """What each module does itself, without its submodules, by name: its class, and its nodes."""
    nodes = [node for node in recording.graph.nodes if node.op != "get_attr"]
    owner = [""] * len(nodes)
    found: dict[str, tuple[str, list[str]]] = {}
    for call in recording.calls:  # those inside come later
        owner[call.start : call.end] = [call.name] * (call.end - call.start)
        found.setdefault(call.name, (type(call.module).__name__, []))
    for name, node in zip(owner, nodes, strict=True):
        function = getattr(node.target, "__name__", str(node.target))
        options = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, bool | int | float)]
        off = function.endswith("dropout") and not any(type(value) is float and value for value in options)
        if name in found and not off and node.op != "output":
            found[name][1].append(f"{function} {options}")
    return found


def reparametrized(model: nn.Module) -> list[str]:
    """Notes on weights that are computed from others."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        kinds = [type(hook).__name__ for hook in module._forward_pre_hooks.values() if hasattr(hook, "remove")]
        if parametrize.is_parametrized(module):
            kinds += [type(one).__name__.lstrip("_") for each in module.parametrizations.values() for one in each]  # type: ignore[union-attr]
        for kind in kinds:
            found.setdefault(kind, []).append(name)
    return [f"{kind} of {_first(names)} is applied to the weights once and removed" for kind, names in found.items()]


def _first(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


@torch.no_grad()
def multiple_of(source: nn.Module, graph: fx.Graph, channels: int, least: int) -> int:
    """What the sides of images have to be multiples of for the graph to compute what the code does; 0: no other size works."""
    net, multiple = fx.GraphModule(source, graph), least
    while multiple <= LARGEST:
        side = LARGEST // multiple // 2 * 2 * multiple
        x = torch.rand(1, channels, side + multiple, side + 3 * multiple)
        try:
            expected, given = first_tensor(source(x.clone())), net.forward(x.clone())
            if given.shape == expected.shape and differ(expected, given) < EXACT:
                return multiple
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, InputError):
            pass
        multiple *= 2
    return 0
