"""Fast sessions for inference: one a step count, batch norms folded, over one set of weights."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rcnet.cell import RecurrentNet, Steps, evaluating, unroll
from rcnet.device import channels_last, resolve_precision
from rcnet.errors import InputError
from rcnet.models.denoise import Denoiser, Sigma, add_to_input, plane_of


class Optimized:
    """Ready sessions, called as the network that they were made from: `session(x)`, `session(x, steps=n, sigma=25)`.

    Attributes:
        steps: the step counts that there are sessions for.
        network: the one that they were made from.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, sessions: dict[Any, nn.Module], network: RecurrentNet, precision: str) -> None:
        self.sessions, self.network, self.precision = sessions, network, precision
        self.steps = tuple(sessions)

    @torch.inference_mode()
    def __call__(self, x: Tensor, steps: Steps = None, sigma: Sigma = None) -> Tensor:
        """float [B, C, H, W] in [0, 1] to what the network gives, in float32.

        Raises:
            InputError: other steps than there are sessions for, or a sigma for a network that takes no noise level.
        """
        key = self.steps[-1] if steps is None else steps if isinstance(steps, int) else tuple(steps)
        if key not in self.sessions and isinstance(key, tuple) and len(set(key)) == 1:
            key = key[0]
        if key not in self.sessions:
            raise InputError(f"steps={steps!r} is not optimized: valid: {', '.join(map(str, self.steps))}")
        session, x = self.sessions[key], x.contiguous(memory_format=torch.channels_last)
        return (session(x) if sigma is None else session(x, sigma)).float()


def optimize(
    model: RecurrentNet, steps: Steps | Iterable[Steps] = None, *, precision: str = "auto", compile: bool = False
) -> Optimized:
    """Sessions whose answers are those of the model (to 1e-4 in fp32), faster than its plain call.

    Each batch norm that follows a convolution is folded into kernels of that step's own; norms that stand before an activation
    stay; the layout is channels_last. The model is not changed and later changes of it do not reach the sessions.

    Args:
        steps: the step counts to make ready, one or several; all supported ones unless given.
        precision: `fp32`, `bf16`, or `auto`, which takes bf16 where the processor has it. Input, output and the sum with the
            input image stay fp32.
        compile: also `torch.compile` each session, one graph an input shape; needs a C++ compiler on a CPU.

    Raises:
        InputError: unsupported steps, or an unknown precision.
    """
    wanted = list(model.steps) if steps is None else [steps] if isinstance(steps, int) else list(steps)
    precision = resolve_precision(precision, next(model.parameters()).device)
    sessions: dict[Any, nn.Module] = {}
    for n in wanted:
        key = n if isinstance(n, int) else model.per_cell(n)
        net = evaluating(unroll(model, n))
        learned = folded(net)
        if precision == "bf16":
            learned = in_bf16(learned)
        session = Session(learned, net).eval().requires_grad_(False)
        channels_last(session)
        sessions[key] = torch.compile(session, fullgraph=True, dynamic=False) if compile else session  # type: ignore[assignment]
    return Optimized(sessions, model, precision)


class Session(nn.Module):
    """A fast chain in the place of a network's own: a denoiser adds what it gives to the input image."""

    def __init__(self, learned: nn.Module, net: RecurrentNet) -> None:
        super().__init__()
        self.learned = learned
        self.sub = net.sub if isinstance(net, Denoiser) else 0
        self.noise_level = net.noise_level

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        if not self.sub:
            return self.learned(x)
        return add_to_input(x, self.sub, self.learned, plane_of(self.noise_level, x, sigma))


class _Chain(nn.Module):
    """The chain of an unrolled network, without what its class does around it: a forward of one argument, for torch.fx."""

    def __init__(self, net: RecurrentNet) -> None:
        super().__init__()
        self.net = RecurrentNet(**dict(net.named_children()))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def folded(net: RecurrentNet) -> fx.GraphModule:
    """The graph of an unrolled network in evaluation mode, each convolution with the batch norm that alone reads it made one."""
    graph = fx.symbolic_trace(copy.deepcopy(_Chain(net)).eval())
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
    layers = nn.Conv2d | nn.Linear | nn.BatchNorm2d
    for module in modules.values():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.bfloat16()
    low: set[fx.Node] = set()  # what is in bf16 already
    for node in list(graph.graph.nodes):
        inputs = node.all_input_nodes
        if node.op == "call_module" and isinstance(modules[node.target], layers):
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
