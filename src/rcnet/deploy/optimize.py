"""Fast sessions for inference: one a step count, batch norms folded, over one set of weights."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rcnet.calling import Call, caller, check_images, check_range, device_of, plain
from rcnet.device import channels_last, resolve_precision
from rcnet.errors import InputError
from rcnet.models.denoise import Sigma
from rcnet.network import RecurrentNet, evaluating, unroll
from rcnet.setting import Setting, Steps, listed

LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)  # what a session in bf16 casts by itself


class Optimized:
    """Ready sessions, called as the network that they were made from: `session(x)`, `session(x, steps=n, sigma=25)`.

    Attributes:
        sessions: by setting, the cheapest first.
        steps: the settings that there are sessions for, as in `RecurrentNet.choices`.
        network: the one that they were made from.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, sessions: dict[Setting, nn.Module], network: RecurrentNet, precision: str) -> None:
        self.sessions, self.network, self.precision = sessions, network, precision
        self.steps = tuple(setting.to_json() for setting in sessions)

    @torch.inference_mode()
    def __call__(self, x: Tensor, steps: Steps = None, sigma: Sigma = None) -> Tensor:
        """float [B, C, H, W] in [0, 1] to what the network gives, in float32.

        Raises:
            InputError: other steps than there are sessions for, or a sigma for a network that takes no noise level.
        """
        call = self.at(steps)
        check_range(x)
        return call(x, **({} if sigma is None else {"sigma": sigma}))

    def per_cell(self, steps: Steps = None) -> Setting:
        """The setting of these steps, the largest for None, or `InputError` if there is no session for it."""
        setting = next(reversed(self.sessions)) if steps is None else Setting.of(steps, len(self.network.recurrent_cells()))
        if setting not in self.sessions:
            raise InputError(f"steps={steps!r} is not optimized: valid: {listed(self.sessions)}")
        return setting

    def at(self, steps: Steps = None) -> Call:
        """As `rcnet.calling.ready`: what one session is called by."""
        return caller(self.sessions[self.per_cell(steps)], device_of(self.network))


def optimize(
    model: RecurrentNet, steps: Steps | Iterable[Steps] = None, *, precision: str = "auto", compile: bool = False
) -> Optimized:
    """Sessions whose answers are those of the model (to 1e-4 in fp32), faster than its plain call.

    Each batch norm that follows a convolution is folded into kernels of that step's own; norms that stand before an activation
    stay; the layout is channels_last. Parametrized and pruned kernels become plain ones. The model is not changed and later
    changes of it do not reach the sessions. Networks that `torch.fx` cannot trace run as they are, with a warning.

    Args:
        steps: the step counts to make ready, one (a number, or a tuple with one a cell) or several; all supported ones unless
            given.
        precision: `fp32`, `bf16`, or `auto`, which takes bf16 where the processor has it. Input, output and the sum with the
            input image stay fp32.
        compile: also `torch.compile` each session, one graph an input shape; needs a C++ compiler on a CPU.

    Raises:
        InputError: unsupported steps, an unknown precision, or a network that does not take images.
    """
    precision = resolve_precision(precision, device_of(model))
    check_images(model)
    sessions: dict[Setting, nn.Module] = {}
    for setting in chosen(model, steps):
        net = plain(evaluating(unroll(model, setting)))
        session = net.over(traced(net, precision)).eval().requires_grad_(False)
        channels_last(session)
        if compile:  # sessions share the code of their classes, and so its limit of graphs
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1 << 16
            sessions[setting] = torch.compile(session, fullgraph=True, dynamic=False)  # type: ignore[assignment]
        else:
            sessions[setting] = session
    return Optimized(sessions, model, precision)


def chosen(model: RecurrentNet, steps: Steps | Iterable[Steps] = None) -> list[Setting]:
    """The settings that are asked for, one or several, the cheapest first; all of the model for None. A tuple that is one of its
    settings is that one. `InputError` for others."""
    if steps is None:
        return list(model.settings)
    one = not isinstance(steps, Iterable) or (isinstance(steps, tuple) and steps in model.settings)
    asked = {model.per_cell(n) for n in ([steps] if one else steps)}  # type: ignore[union-attr, list-item, arg-type]
    return [setting for setting in model.settings if setting in asked]


def traced(net: RecurrentNet, precision: str) -> nn.Module:
    """The chain of an unrolled network, without what its class does around it: folded, and in this precision."""
    chain = net[:]
    try:
        graph = folded(_OneInput(chain))
    except Exception as error:  # tracing runs the user's code on stand-ins, which may raise anything
        warnings.warn(f"batch norms are not folded, as torch.fx cannot trace this network: {error}", stacklevel=3)
        return _Autocast(_OneInput(chain)) if precision == "bf16" else _OneInput(chain)
    if precision == "fp32":
        return graph
    return in_bf16(graph) if all(map(_casts, _nodes(graph))) else _Autocast(graph)


class _OneInput(nn.Module):
    """A network with a forward of one argument, for torch.fx."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Autocast(nn.Module):
    """A chain in bf16 by autocast, which knows attention and norms of every kind; its result in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x).float()


def _nodes(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, Any]]:
    """Each node, with the module or tensor that it stands for."""
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            yield node, getattr(modules[owner], name)
        else:
            yield node, modules.get(str(node.target)) if node.op == "call_module" else None


def _casts(found: tuple[fx.Node, Any]) -> bool:
    """Whether `in_bf16` knows how: of modules with weights, the layers that it casts; no parameter outside modules."""
    held = found[1]
    if isinstance(held, nn.Module):
        return type(held) in LAYERS or not any(True for _ in held.parameters())
    return not isinstance(held, nn.Parameter)


def folded(net: nn.Module) -> fx.GraphModule:
    """The graph of a module in evaluation mode, each convolution with the batch norm that alone reads it made one."""
    graph = fx.symbolic_trace(net.eval())
    modules = dict(graph.named_modules())
    for k, node in enumerate(list(graph.graph.nodes)):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or not isinstance(modules[before.target], nn.Conv2d) or len(before.users) > 1:
            continue
        name = f"folded{k}"
        graph.add_submodule(name, fuse_conv_bn_eval(modules[before.target], modules[node.target]))
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_module(name, before.args))
        graph.graph.erase_node(node)
        graph.graph.erase_node(before)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def in_bf16(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with bf16 convolutions, norms and linear layers. What reads the input before the first one stays fp32."""
    modules = dict(graph.named_modules())
    for module in modules.values():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.bfloat16()
    low: set[fx.Node] = set()  # what is in bf16 already
    for node in list(graph.graph.nodes):
        inputs = node.all_input_nodes
        if node.op == "call_module" and isinstance(modules[node.target], LAYERS):
            source = node.args[0]
            if source not in low and not isinstance(modules[node.target], nn.BatchNorm2d):
                with graph.graph.inserting_before(node):
                    cast = graph.graph.call_method("to", (source, torch.bfloat16))
                node.update_arg(0, cast)
            low.add(node)
        elif inputs and all(value in low for value in inputs):
            low.add(node)
    graph.recompile()
    return graph
