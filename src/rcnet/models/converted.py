"""Converted networks of other libraries, which are saved, loaded and trained as the family `converted`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rcnet import conversion
from rcnet.about import About
from rcnet.calling import device_of
from rcnet.cell import NormMode
from rcnet.conversion import ConvertedNet, Init
from rcnet.errors import InputError
from rcnet.models.layers import Normalize
from rcnet.models.registry import entry, find_builder, plain_steps, register_as, trusted
from rcnet.network import RecurrentNet

NAME = "converted:"  # in the registry; the configuration tells the task
LIBRARIES = ("transformers", "torchvision", "timm")  # whose networks a file of weights may name


def convert(
    model: nn.Module | str,
    steps: int | Iterable[int] | Literal["all"] = (1, 2, 3),
    init: Init = "first",
    regions: Iterable[str] | None = None,
    rank: int = 0,
    *,
    adaptive: bool = False,
    apart: bool = False,
    norm_mode: NormMode | None = None,
    example: Tensor | None = None,
    about: About | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    source: str = "",
    options: Mapping[str, Any] | None = None,
) -> ConvertedNet:
    """Converts a network: each run of repeated blocks becomes one recurrent cell. `print(net.conversion)` reports which.

    `rcnet.save` and `rcnet.load` work if `source` is known; for networks of transformers it is found automatically.

    Args:
        model: a network with its weights, or the name of its builder, as in `source`.
        steps, init, regions, rank, adaptive, apart, norm_mode, example: as in `rcnet.conversion.convert`.
        about: the input and output of the network; default: for an image classifier of transformers, from its configuration.
        mean, std: one value per channel, by which `model` expects its images normalized. The converted network takes images in
            [0, 1].
        source: the builder of the network: `transformers:CLASS`, `torchvision:NAME`, `timm:NAME` or `package.module:function`.
        options: the keyword arguments of the builder as JSON values (for transformers: the configuration).

    Raises:
        InputError: an unknown builder; no repeated blocks; code that cannot be traced.

    Example:
        >>> import rcnet, torch
        >>> blocks = [torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU()) for _ in range(4)]
        >>> net = rcnet.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), *blocks), steps=(1, 2, 4))
        >>> print(net.conversion)  # doctest: +ELLIPSIS
        cell1: 4 x Sequential at 1-4, 2,336 -> 584 parameters
        kept: 0, Conv2d, 32 parameters: changes the shape, [3, 64, 64] to [8, 64, 64]
        at the most steps, outputs differ by ... of their size before training
        in all 2,368 -> 616 parameters
    """
    if isinstance(model, str):
        source = model
        model = build_source(source, options or {})
    elif not source and hasattr(model, "config") and type(model).__module__.startswith("transformers."):
        source, options = f"transformers:{type(model).__name__}", json.loads(model.config.to_json_string())  # type: ignore[union-attr,operator]
    elif source and source.partition(":")[0] not in LIBRARIES:
        find_builder(source)  # a person named it: from now on a file may
    about = about or about_of(model)
    net = conversion.convert(
        model, steps, init, regions, rank, adaptive=adaptive, apart=apart, norm_mode=norm_mode, example=example, about=about
    )
    about, ranks = net.about, net.ranks
    net = _normalized(net, mean, std)
    if source:
        size = about.size or (None if example is None else example.shape[-2:])
        config = {
            "source": source, "options": dict(options or {}), "steps": None if steps == "all" else plain_steps(steps),
            "regions": None if regions is None else list(regions), "rank": ranks if adaptive else rank or None,
            "apart": apart or None, "norm_mode": norm_mode,
            "mean": mean, "std": std, "in_chans": about.channels, "multiple": about.multiple, "side": size,
            "task": about.task, "sub": about.sub, "reach": about.reach,
        }  # fmt: skip
        net.architecture = {"name": NAME, "config": json.loads(json.dumps(config))}
    return net


def about_of(model: nn.Module) -> About:
    """The `About` of a network of transformers, from its configuration."""
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
        raise InputError(
            f"mean={list(mean)} and std={list(std)} are not valid: give one number per channel ({net.about.channels})"
        )
    whole = ConvertedNet(normalize=Normalize(mean, std).to(device_of(net)), **dict(net.named_children()))
    whole.offer(net.settings)
    whole.about, whole.conversion, whole.ranks = net.about, net.conversion, net.ranks
    return whole.train(net.training)


def build_source(name: str, options: Mapping[str, Any], named: bool = True) -> nn.Module:
    """The network that a builder returns.

    Args:
        named: the name comes from a person and not from a file, so that `package.module:function` may be imported.

    Raises:
        InputError: no such builder, or it rejects the options.
    """
    library, _, what = name.partition(":")
    try:
        if library in LIBRARIES and what:
            return _from_library(library, what, options)
        model: Any = (find_builder if named or trusted(name) else entry)(name).build(**options)
    except ImportError as error:
        raise InputError(f"{name} needs {library}: pip install {library} ({error})") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _from_library(library: str, what: str, options: Mapping[str, Any]) -> nn.Module:
    """A network of a library with fresh weights, without a download."""
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


class Original(NamedTuple):
    """A network to convert, with its weights and its preprocessing."""

    model: nn.Module
    source: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None

    def normalized(self) -> nn.Module:
        """The network for images in [0, 1]; it returns one tensor."""
        return _OneTensor(self.model, Normalize(self.mean, self.std) if self.mean else nn.Identity())


class _OneTensor(nn.Module):
    def __init__(self, model: nn.Module, normalize: nn.Module) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize

    def forward(self, x: Tensor) -> Tensor:
        return conversion.first_tensor(self.model(self.normalize(x)))


def read_original(name: str, options: Mapping[str, Any] | None = None, weights: str | Path | None = None) -> Original:
    """A network to convert: from a folder that transformers saved, with its weights, or from a builder.

    Args:
        name: a folder, or a builder as in `convert`.
        options: the keyword arguments of the builder.
        weights: a state dict to load, as safetensors or from torch.save.

    Raises:
        InputError: no such network, options or weights for a folder, or weights that do not fit.
    """
    folder = Path(name)
    if (folder / "config.json").is_file():
        if options or weights:
            raise InputError(f"{folder} contains its configuration and weights: options and weights cannot be given")
        return _of_transformers(folder)
    if ":" not in name:
        raise InputError(
            f"{name!r} is not a network to convert: give package.module:function, torchvision:NAME, timm:NAME, "
            "transformers:CLASS, or a folder that transformers saved (with config.json)"
        )
    model = build_source(name, options or {})
    if weights is not None:
        try:
            path = Path(weights)
            plain = path.suffix == ".safetensors"
            state: Any = load_file(path) if plain else torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict(state.get("state_dict", state))
        except OSError as error:
            raise InputError(f"{weights} cannot be read: {error.strerror or error}") from error
        except Exception as error:  # torch.load raises almost anything on a broken file
            raise InputError(f"{weights} does not contain the weights of {name}: {' '.join(str(error).split())[:300]}") from error
    return Original(model, name, dict(options or {}))


def _of_transformers(folder: Path) -> Original:
    """A network, and how its images are prepared, of a folder that `save_pretrained` wrote; nothing is downloaded."""
    try:
        import transformers

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        if kind is None:
            raise InputError(f"{folder}/config.json names no network of transformers: architectures = {config.architectures}")
        model = kind.from_pretrained(folder, local_files_only=True).float()
    except ImportError as error:
        raise InputError("this folder needs transformers: pip install 'rcnet[transformers]'") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{folder} is no network that transformers loads: {str(error).strip().splitlines()[0]}") from error
    prepared: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        prepared = json.loads((folder / "preprocessor_config.json").read_text())
    size = prepared.get("crop_size") or prepared.get("size") or {}
    size = {"height": size, "width": size} if isinstance(size, int) else size
    sides = (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2 if size else None
    normalized = prepared.get("do_normalize", False)
    mean, std = (tuple(prepared.get(key, ())) if normalized else () for key in ("image_mean", "image_std"))
    return Original(model, f"transformers:{kind.__name__}", json.loads(config.to_json_string()), mean, std, sides)


def rebuilt(
    source: str,
    options: Mapping[str, Any] | None = None,
    steps: Iterable[int] | int | None = (1, 2, 3),
    regions: Iterable[str] | None = None,
    rank: Any = None,
    norm_mode: NormMode | None = None,
    apart: bool | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    in_chans: int = 3,
    multiple: int = 1,
    side: Sequence[int] | None = None,
    task: str = "",
    sub: int = 1,
    reach: Sequence[int] | None = None,
) -> RecurrentNet:
    """A converted network with fresh weights, from the configuration in a file of weights.

    Args:
        source, options: the builder and its keyword arguments.
        steps: the step counts of every cell; None: each cell takes from 1 to as many steps as it had blocks.
        side: height and width in pixels of the example on which the network is traced.
        in_chans, multiple, task, sub, reach: as in `About`.
        rank: of all differences, or of each cell, step and weight.
        regions, norm_mode, apart, mean, std: as in `convert`.
    """
    with torch.device("cpu"):
        model = build_source(source, options or {}, named=False)
        about = About(task, in_chans, multiple=multiple, sub=sub, reach=(reach[0], reach[1]) if reach else None)
        example = None if side is None else torch.rand(2, in_chans, *side)
        net = conversion.convert(
            model, "all" if steps is None else steps, regions=regions, rank=rank or 0, apart=bool(apart), norm_mode=norm_mode,
            example=example, about=about, fit=False,
        )  # fmt: skip
        return _normalized(net, mean, std)


register_as(NAME, rebuilt)
