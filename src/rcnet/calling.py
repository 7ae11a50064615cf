"""`ready`: the one way to call a network, for all that measures, exports or uses it."""

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from rcnet.cell import Net, RecurrentNet, evaluating, unroll
from rcnet.device import autocast, resolve_precision
from rcnet.errors import InputError
from rcnet.setting import Steps

Call = Callable[..., Tensor]


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are."""
    return next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))


def ready(model: RecurrentNet, steps: Steps = None, precision: str = "fp32") -> Call:
    """`call(x)`, or `call(x, sigma=25)`: what the network gives at these steps in evaluation mode, in float32
    (a network in float64: in float64).

    x is a float tensor [B, C, H, W] of any type, on any device, in [0, 1]. Gradients pass to it where they are on.

    Args:
        steps: the largest unless given.
        precision: `fp32`, `bf16` or `auto`.

    Raises:
        InputError: unsupported steps, or an unknown precision.
    """
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
    return caller(evaluating(unroll(model, steps)), device_of(model), precision, dtype)


def caller(net: nn.Module, device: torch.device, precision: str = "fp32", dtype: torch.dtype = torch.float32) -> Call:
    """As `ready`, of any module that is called with an image of that type on that device."""
    precision = resolve_precision(precision, device)

    def call(x: Tensor, **told: object) -> Tensor:
        if x.ndim != 4 or not x.is_floating_point():
            raise InputError(f"images are float [B, C, H, W] in [0, 1], not {x.dtype} {list(x.shape)}")
        x = x.to(device, dtype, memory_format=torch.channels_last)
        with autocast(precision, device):
            y = net(x, **told)
        return y if y.dtype == torch.float64 else y.float()

    return call


def plain(net: Net) -> Net:
    """A copy without parametrizations and pruning: the kernels are what these made of them."""
    for module in net.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):  # what it masked has a history, which cannot be copied
                setattr(module, hook._tensor_name, getattr(module, hook._tensor_name).detach())
    net = copy.deepcopy(net)
    for module in net.modules():
        if parametrize.is_parametrized(module):  # torch's own removal would change the class, which the model shares
            values = {name: getattr(module, name).detach() for name in module.get_submodule("parametrizations")._modules}
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        for key, hook in list(module._forward_pre_hooks.items()):
            if hasattr(hook, "remove"):  # pruning, and weight and spectral norms of old
                hook.remove(module)
                del module._forward_pre_hooks[key]
    return net


def refused(model: RecurrentNet, size: tuple[int, int], error: RuntimeError) -> InputError:
    """The error of a network that does not take images of that height and width, although it says so."""
    about, reason = model.about, str(error).strip().splitlines()[0]
    return InputError(
        f"this network fails at {about.channels} channels and {size[1]}x{size[0]} pixels, but says that it takes them (channels="
        f"{about.channels}, multiple={about.multiple}; net.about = rcnet.About(channels=1, multiple=4) says other): {reason}"
    )


def check_range(x: Tensor) -> None:
    """`InputError` for images of levels from 0 to 255 where [0, 1] is asked for; noise may leave that range."""
    if x.numel() and float(x.detach().amax()) > 2 and (float(x.detach().mean()) > 2 or bool((x == x.round()).all())):
        raise InputError(f"images are in [0, 1] and these go to {float(x.detach().amax()):g}: divide them by 255")
