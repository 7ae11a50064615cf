"""`ready`: the one way to call a network, used by everything that measures, exports or runs it."""

import copy
import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rcnet.device import autocast, resolve_precision
from rcnet.errors import InputError
from rcnet.network import RecurrentNet, evaluating, unroll
from rcnet.setting import Steps

Call = Callable[..., Tensor]
Module = TypeVar("Module", bound=nn.Module)


def device_of(model: nn.Module) -> torch.device:
    """The device of its parameters."""
    return next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))


def ready(model: RecurrentNet, steps: Steps = None, precision: str = "fp32") -> Call:
    """A function `call(x)`, or `call(x, sigma=25)`: the network at these steps in evaluation mode. It returns float32, or float64
    for a network in float64.

    x is a float tensor [B, C, H, W] in [0, 1] of any dtype and on any device. Gradients flow to it if they are enabled.

    Args:
        steps: default: the largest.
        precision: `fp32`, `bf16` or `auto`.

    Raises:
        InputError: unsupported steps, or an unknown precision.
    """
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
    return caller(evaluating(unroll(model, steps)), device_of(model), precision, dtype)


def caller(net: nn.Module, device: torch.device, precision: str = "fp32", dtype: torch.dtype = torch.float32) -> Call:
    """As `ready`, for any module that takes images of this dtype on this device."""
    precision = resolve_precision(precision, device)

    def call(x: Tensor, **kwargs: object) -> Tensor:
        if x.ndim != 4 or not x.is_floating_point():
            raise InputError(f"images must be float [B, C, H, W] in [0, 1], not {x.dtype} {list(x.shape)}")
        x = x.to(device, dtype, memory_format=torch.channels_last)
        with autocast(precision, device):
            y = net(x, **kwargs)
        return y if y.dtype == torch.float64 else y.float()

    return call


def plain(net: Module) -> Module:
    """A copy without parametrizations and pruning: they are applied to the kernels once and removed."""
    for module in net.modules():
        for hook in module._forward_pre_hooks.values():
            name = getattr(hook, "_tensor_name", getattr(hook, "name", ""))  # of pruning; of the old weight_norm, spectral_norm
            if name and isinstance(getattr(module, name, None), Tensor):  # it has a gradient history and cannot be copied
                setattr(module, name, getattr(module, name).detach())
    net = copy.deepcopy(net)
    for module in net.modules():
        if parametrize.is_parametrized(module):  # torch's remove_parametrizations would change the class that the model shares
            values = {name: getattr(module, name) for name in module.get_submodule("parametrizations")._modules}
            del module.parametrizations
            module._load_state_dict_pre_hooks.clear()  # weight_norm's, which cannot be pickled
            module.__class__ = type(module).__bases__[0]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=value.requires_grad))
        for key, hook in list(module._forward_pre_hooks.items()):
            if hasattr(hook, "remove"):  # pruning, and the old weight_norm and spectral_norm
                hook.remove(module)
                del module._forward_pre_hooks[key]
    return net


def refused(model: RecurrentNet, size: tuple[int, ...], error: Exception) -> InputError:
    """The error for a network that fails at this height and width, although its `about` allows it."""
    about, reason = model.about, str(error).strip().splitlines()[0]
    try:
        check_images(model)
    except InputError as other:
        return other
    return InputError(
        f"this network fails at {about.channels} channels and {'x'.join(map(str, reversed(size)))} pixels, but its about allows "
        f"them (channels={about.channels}, multiple={about.multiple}); set e.g. net.about = rcnet.About("
        f"channels={about.channels}, multiple={2 * about.multiple}), or size=: {reason}"
    )


def check_images(model: nn.Module) -> None:
    """`InputError` for a network with volume layers, or whose first layer with weights is 1-D: only [B, C, H, W] is measured."""
    weighted = [module for module in model.modules() if module._parameters]
    if any(isinstance(module, nn.Conv3d) for module in weighted) or isinstance(weighted[0] if weighted else None, nn.Conv1d):
        raise InputError(
            "rcnet measures, optimizes and exports networks for images alone, [B, C, H, W], not for 1-D or 3-D signals"
        )


def check_range(x: Tensor) -> None:
    """`InputError` for images in [0, 255] instead of [0, 1]. Noise may leave [0, 1], so only values above 2 count."""
    if x.numel() and float(x.detach().amax()) > 2 and (float(x.detach().mean()) > 2 or bool((x == x.round()).all())):
        raise InputError(f"images must be in [0, 1], but the maximum is {float(x.detach().amax()):g}: divide them by 255")
