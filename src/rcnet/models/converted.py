"""Networks of others, converted: they are saved, loaded and trained as the family `converted`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rcnet import conversion
from rcnet.about import About
from rcnet.cell import NormMode, RecurrentNet
from rcnet.conversion import ConvertedNet, Init
from rcnet.errors import InputError
from rcnet.models.layers import Normalize
from rcnet.models.registry import entry, find_builder, register_as

LIBRARIES = ("transformers", "torchvision", "timm")  # whose networks a file of weights may name


def convert(
    model: nn.Module | str,
    steps: int | Iterable[int] | Literal["all"] = (1, 2, 3),
    init: Init = "first",
    regions: Iterable[str] | None = None,
    rank: int = 0,
    *,
    norm_mode: NormMode | None = None,
    example: Tensor | None = None,
    about: About | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    source: str = "",
    options: Mapping[str, Any] | None = None,
) -> ConvertedNet:
    """As `rcnet.conversion.convert`: each run of repeated blocks becomes one recurrent cell; `print(net.conversion)` says which.

    A network that says where it is from is saved by `rcnet.save` and loaded by `rcnet.load`: those of transformers do.

    Args:
        model: a network with its weights, or the name of its builder, as `source`.
        steps, init, regions, rank, norm_mode, example: as `rcnet.conversion.convert` has them.
        about: what the network takes and gives; of an image classifier of transformers its configuration unless given.
        mean, std: of each channel of the images that `model` takes; the converted network takes images in [0, 1].
        source: the builder of the network: `transformers:CLASS`, `torchvision:NAME`, `timm:NAME` or `package.module:function`.
        options: what the builder is called with, as JSON has it (of transformers: the configuration).

    Raises:
        InputError: an unknown builder; nothing repeats; code that cannot be followed.
    """
    if isinstance(model, str):
        source = model
        model = build_source(source, options or {})
    elif not source and hasattr(model, "config") and type(model).__module__.startswith("transformers."):
        source, options = f"transformers:{type(model).__name__}", json.loads(model.config.to_json_string())  # type: ignore[union-attr,operator]
    about = about or _about(model)
    net = conversion.convert(model, steps, init, regions, rank, norm_mode=norm_mode, example=example, about=about)
    net = _normalized(net, mean, std)
    if source:
        size = list(about.size) if about.size else None if example is None else list(example.shape[-2:])
        config = {
            "source": source, "options": dict(options or {}), "steps": None if steps == "all" else list(_listed(steps)),
            "regions": None if regions is None else list(regions), "rank": rank or None, "norm_mode": norm_mode,
            "mean": list(mean), "std": list(std), "in_chans": about.channels, "multiple": about.multiple, "side": size,
        }  # fmt: skip
        net.architecture = {"name": f"converted:{about.task}", "config": json.loads(json.dumps(config))}
    return net


def _listed(steps: Any) -> Iterable[int]:
    return steps if isinstance(steps, Iterable) else (steps,)


def _about(model: nn.Module) -> About:
    """What a network of transformers says of itself."""
    config: Any = getattr(model, "config", None)
    channels = getattr(config, "num_channels", 3)
    if type(model).__module__.startswith("transformers.") and "ImageClassification" in type(model).__name__:
        return About("classify", channels=channels, classes=tuple(map(str, config.id2label.values())))
    return About(channels=channels)


def _normalized(net: ConvertedNet, mean: Sequence[float], std: Sequence[float]) -> ConvertedNet:
    """The network with (x - mean) / std before it."""
    if not mean and not std:
        return net
    if len(mean) != len(std) or len(mean) not in (1, net.about.channels):
        raise InputError(f"mean={list(mean)} and std={list(std)} are not valid: one number a channel, {net.about.channels}")
    whole = ConvertedNet(normalize=Normalize(mean, std), **dict(net.named_children()))
    whole.offer(net.settings)
    whole.about, whole.conversion = net.about, net.conversion
    return whole.train(net.training)


def build_source(name: str, options: Mapping[str, Any], named: bool = True) -> nn.Module:
    """The network that a builder makes.

    Args:
        named: a person named it, and no file: what is no library's is imported, `package.module:function`.

    Raises:
        InputError: no such builder, or it refuses the options.
    """
    library, _, what = name.partition(":")
    try:
        if library in LIBRARIES and what:
            return _from_library(library, what, options)
        model: Any = (find_builder if named else entry)(name).build(**options)
    except ImportError as error:
        raise InputError(f"{name} needs {library}: pip install {library} ({error})") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} builds {type(model).__name__}: it has to return a torch.nn.Module")
    return model


def _from_library(library: str, what: str, options: Mapping[str, Any]) -> nn.Module:
    """A network of a library with fresh weights; nothing is downloaded."""
    if library == "timm":
        import timm

        return timm.create_model(what, pretrained=False, **options)
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(what, weights=None, **options)
    import transformers

    kind = getattr(transformers, what, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) and kind.config_class):
        raise InputError(f"transformers has no network {what!r}")
    return kind(kind.config_class.from_dict(dict(options)))


def rebuilt(
    source: str,
    options: Mapping[str, Any] | None = None,
    steps: Iterable[int] | int | None = (1, 2, 3),
    regions: Iterable[str] | None = None,
    rank: int | None = None,
    norm_mode: NormMode | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    in_chans: int = 3,
    multiple: int = 1,
    side: Sequence[int] | None = None,
) -> RecurrentNet:
    """A converted network with fresh weights, as a file of weights describes it.

    Args:
        source, options: the builder and what it is called with.
        steps: the step counts of every cell; None: each cell takes as many as it had blocks.
        side: height and width in pixels of the image that the network is followed with.
        in_chans, multiple: what `About` says of its images.
        regions, rank, norm_mode, mean, std: as `convert` has them.
    """
    with torch.device("cpu"):
        model = build_source(source, options or {}, named=False)
        about = About(channels=in_chans, multiple=multiple)
        example = None if side is None else torch.rand(2, in_chans, *side)
        net = conversion.convert(
            model, "all" if steps is None else steps, regions=regions, rank=rank or 0, norm_mode=norm_mode, example=example,
            about=about, fit=False,
        )  # fmt: skip
        return _normalized(net, mean, std)


for _task in ("classify", "denoise", ""):
    register_as(f"converted:{_task}", _task, rebuilt)
