"""`save` and `load`: a network in one safetensors file; the metadata hold architecture, preprocessing and results."""

import copy
import json
import zlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from rcnet.errors import InputError, unknown
from rcnet.models.huggingface import PREFIX, fetch
from rcnet.models.judge import Judge, attach_judge
from rcnet.models.registry import architecture_of, build_model, build_shapes, entry
from rcnet.network import RecurrentNet
from rcnet.replacing import replacing

KEY = "rcnet"  # the one metadata key, holding JSON
JUDGE = "judge."  # prefix of the tensors of a denoiser's judge


def bundled() -> dict[str, Path]:
    """The weights that come with the package: name -> file.

    Example:
        >>> bundled()["r2.cifar10"].name
        'r2.cifar10.safetensors'
    """
    folder = Path(str(resources.files("rcnet") / "weights"))
    return {path.name.removesuffix(".safetensors"): path for path in sorted(folder.glob("*.safetensors"))}


def find(name_or_path: str | Path) -> Path:
    """The file for the name of bundled weights, a path or `hf-hub:user/name`, or `InputError` with the bundled names."""
    if str(name_or_path).startswith(PREFIX):
        return fetch(str(name_or_path).removeprefix(PREFIX))
    known = bundled()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if (inside := path / "weights.safetensors").is_file():
        raise InputError(f"{path} is a folder; the weights of this run are {inside}")
    if path.suffix == ".safetensors" or path.parent != Path():
        raise InputError(f"no file of weights at {path}; bundled weights: {', '.join(known) or 'none'}")
    raise unknown("weights", name_or_path, known)


def read_metadata(name_or_path: str | Path) -> dict[str, Any]:
    """The metadata of a file of weights (`architecture`, `preprocessing`, `results`, `training`), without reading the tensors.

    Example:
        >>> read_metadata("r2.cifar10")["architecture"]["name"]
        'r2'
    """
    path = find(name_or_path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata is None:
        raise InputError(f"{path} was not written by rcnet.save: its metadata name no architecture")
    try:
        read = json.loads(metadata)
        if not isinstance(read["architecture"]["config"], dict) or not isinstance(read.setdefault("results", []), list):
            raise TypeError
        read["architecture"]["name"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: its metadata name no architecture, or its results are not a list") from error
    return read


def trainings(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs that made weights, the last first, from their metadata; not the changes since, e.g. a judge, for which `save`
    holds `before` alone."""
    part, runs = metadata.get("training"), []
    while part:
        runs += [part] if part.keys() - {"before"} else []
        part = part.get("before")
    return runs


def save(model: RecurrentNet, path: str | Path, *, half: bool = False, **metadata: Any) -> None:
    """Writes the model's weights and `metadata` (JSON values, e.g. `results`, `training`) to one safetensors file, atomically.

    Each kernel is stored once. Metadata that `load` read are kept; if the weights have changed since, `results` are dropped and
    the old `training` becomes `before` in the new one. `preprocessing` is the model's `about`, completed by the given values.

    Args:
        half: round the kernels to bf16, which halves the file; measure its results again. Kernels that bf16 represents exactly
            are always stored in bf16.

    Raises:
        InputError: the model was not made by `create_model` or `load`, or was changed so that `load` could not read it.

    Example:
        >>> import rcnet, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rcnet.save(rcnet.create_model("r3", steps=(1, 2)), f"{folder}/r3.safetensors")
        ...     rcnet.load(f"{folder}/r3.safetensors").steps
        (1, 2)
    """
    model = getattr(model, "_orig_mod", model)
    architecture = architecture_of(model)
    state = _state(model)
    fresh = build_shapes(architecture["name"], architecture["config"]).state_dict()
    judge = {name: state.pop(name) for name in [*state] if name.startswith(JUDGE)}
    if different := _difference(fresh, state):
        raise InputError(
            f"this network differs from create_model({architecture['name']!r}): {different} (unrolled, pruned, a new head?); "
            "save the network that it was made from, or create it with its present options, e.g. num_classes"
        )
    state |= judge
    if half:
        state = {name: tensor.bfloat16().to(tensor.dtype) if _is_kernel(tensor) else tensor for name, tensor in state.items()}
    known = dict(model.metadata)
    checksum = _checksum(state)
    if known.get("weights", checksum) != checksum:
        known |= {"results": [], "training": {"before": known.get("training")}}
        known.pop("adaptive", None)
    about = model.about.completed(metadata.get("preprocessing", {})).to_json()
    metadata = {**known, **metadata, "preprocessing": {**metadata.get("preprocessing", {}), **about}}
    if judge:
        metadata["judge"] = {**metadata.get("judge", {}), "config": model.judge.config}
    metadata |= {"format": 1, "architecture": architecture, "weights": checksum}
    usual = copy.copy(model)
    usual.find_steps()
    if sorted(model.settings) != sorted(usual.settings):
        metadata["settings"] = model.settings
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        stored = {name: tensor.bfloat16() if _fits_bf16(tensor) else tensor.clone() for name, tensor in state.items()}
        temporary.write_bytes(to_bytes(stored, {KEY: json.dumps(metadata)}))


def _state(model: RecurrentNet) -> dict[str, Tensor]:
    """The tensors of a network, and those of its judge with the prefix `judge.`."""
    judge = getattr(model, "judge", None)
    beside = {} if judge is None else {JUDGE + name: tensor for name, tensor in judge.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in {**model.state_dict(), **beside}.items()}


def _is_kernel(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.is_floating_point()


def _fits_bf16(tensor: Tensor) -> bool:
    return _is_kernel(tensor) and tensor.dtype == torch.float32 and torch.equal(tensor.bfloat16().float(), tensor)


def _checksum(state: Mapping[str, Tensor]) -> str:
    """CRC-32 of the tensors, in the order of their names."""
    crc32 = 0
    for name in sorted(state):
        crc32 = zlib.crc32(state[name].reshape(-1).view(torch.uint8).numpy().tobytes(), crc32)
    return f"{crc32:08x}"


def _difference(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """How many tensors differ in name or shape, and the first; empty if none does."""
    wrong = sorted(expected.keys() ^ state.keys()) or [name for name in expected if expected[name].shape != state[name].shape]
    if not wrong:
        return ""
    shapes = [str(list(part[wrong[0]].shape)) if wrong[0] in part else "missing" for part in (expected, state)]
    return f"{len(wrong)} tensors differ, first {wrong[0]}: expected {shapes[0]}, found {shapes[1]}"


def load(name_or_path: str | Path) -> RecurrentNet:
    """A network with trained weights, in evaluation mode.

    Args:
        name_or_path: the name of bundled weights; a file written by `save`; or `hf-hub:user/name` or `hf-hub:user/name@revision`,
            which is downloaded from the Hugging Face hub (`pip install 'rcnet[hub]'`).

    Returns:
        the network. Its `metadata` are those of the file; what they say about images is also in `about`.

    Raises:
        InputError: no such weights, not a file of weights, tensors that do not fit the architecture named in the file, or an
            architecture that is not registered.

    Example:
        >>> import rcnet, torch
        >>> net = rcnet.load("r2.cifar10")
        >>> net.about.classes[:3], net(torch.rand(1, 3, 32, 32)).shape
        (('airplane', 'automobile', 'bird'), torch.Size([1, 10]))
    """
    path = find(name_or_path)
    metadata = read_metadata(path)
    architecture = metadata["architecture"]
    model = build_model(entry(architecture["name"]), architecture["config"])
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    state = {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in stored.items()}
    if "judge" in metadata:
        attach_judge(model, Judge(**metadata["judge"]["config"]).eval())
    if different := _difference(_state(model), state):
        raise InputError(f"{path} does not contain weights of this {architecture['name']}: {different}")
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise InputError(f"{path} contains non-finite numbers: the training that wrote it diverged")
    for module, prefix in ((model, ""), (getattr(model, "judge", None), JUDGE)):
        if module is not None:
            module.load_state_dict({name: state[prefix + name] for name in module.state_dict()})
    model.about = model.about.completed(metadata.get("preprocessing", {}))
    if "settings" in metadata:
        model.offer(metadata["settings"])
    model.metadata = {"weights": _checksum(state), **metadata}
    return model.eval()
