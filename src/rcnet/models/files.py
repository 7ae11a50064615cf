"""`save` and `load`: a network in one safetensors file whose metadata says what it is, how to feed it and what it reached."""

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

from rcnet.cell import RecurrentNet
from rcnet.errors import InputError, unknown
from rcnet.models.huggingface import PREFIX, fetch
from rcnet.models.judge import Judge, attach_judge
from rcnet.models.registry import architecture_of, build_model, build_shapes, entry
from rcnet.replacing import replacing

KEY = "rcnet"  # the one metadata key, holding JSON
JUDGE = "judge."  # begins the names of the tensors of a denoiser's judge


def bundled() -> dict[str, Path]:
    """The weights that come with the package: name -> file."""
    folder = Path(str(resources.files("rcnet") / "weights"))
    return {path.name.removesuffix(".safetensors"): path for path in sorted(folder.glob("*.safetensors"))}


def find(name_or_path: str | Path) -> Path:
    """The file of bundled weights, of a path or of `hf-hub:user/name`, or `InputError` that names the bundled ones."""
    if str(name_or_path).startswith(PREFIX):
        return fetch(str(name_or_path).removeprefix(PREFIX))
    known = bundled()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if (inside := path / "weights.safetensors").is_file():
        raise InputError(f"{path} is a folder; the weights of this run: {inside}")
    if path.suffix == ".safetensors" or path.parent != Path():
        raise InputError(f"no file of weights at {path}; bundled weights: {', '.join(known) or 'none'}")
    raise unknown("weights", name_or_path, known)


def read_metadata(name_or_path: str | Path) -> dict[str, Any]:
    """Metadata of a file of weights: `architecture`, `preprocessing`, `results`, `training`, without reading the tensors."""
    path = find(name_or_path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata is None:
        raise InputError(f"{path} was not written by rcnet.save: it does not say which architecture it holds")
    try:
        read = json.loads(metadata)
        if not isinstance(read["architecture"]["config"], dict) or not isinstance(read.setdefault("results", []), list):
            raise TypeError
        read["architecture"]["name"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: its metadata names no architecture, or its results are no list") from error
    return read


def save(model: RecurrentNet, path: str | Path, *, half: bool = False, **metadata: Any) -> None:
    """Writes the model's weights and `metadata` (JSON values, e.g. `results`, `training`) to one safetensors file, atomically.

    Each kernel is stored once. What `load` read of the model's file is kept; of weights that have changed since, `results` are
    not, and `training` becomes its `before`. `preprocessing` is what the model says of itself, completed by what is given.

    Args:
        half: kernels are rounded to bf16 in the file, which is then half as large; measure its results again. Kernels that bf16
            holds exactly are always stored as such.

    Raises:
        InputError: the model was not made by `create_model` or `load`, or was changed so that `load` could not read it.
    """
    model = getattr(model, "_orig_mod", model)
    architecture = architecture_of(model)
    state = _state(model)
    fresh = build_shapes(architecture["name"], architecture["config"]).state_dict()
    judge = {name: state.pop(name) for name in [*state] if name.startswith(JUDGE)}
    if different := _difference(fresh, state):
        raise InputError(
            f"this network is not as create_model({architecture['name']!r}) makes it: {different} (unrolled, pruned, a new head?)"
            "; save the network that it was made from, or create it with the options that it has now, e.g. num_classes"
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
    """The tensors of a network and of its judge, which is kept under `judge.`."""
    judge = getattr(model, "judge", None)
    beside = {} if judge is None else {JUDGE + name: tensor for name, tensor in judge.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in {**model.state_dict(), **beside}.items()}


def _is_kernel(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.is_floating_point()


def _fits_bf16(tensor: Tensor) -> bool:
    """Whether it is a kernel that bf16 holds without a loss."""
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
    return f"{len(wrong)} tensors differ, the first is {wrong[0]}: {shapes[0]} there, {shapes[1]} here"


def load(name_or_path: str | Path) -> RecurrentNet:
    """A network with its trained weights, in evaluation mode: bundled weights by name, or a file written by `save`.

    `hf-hub:user/name`, or `hf-hub:user/name@revision`, is downloaded from the Hugging Face hub (`pip install 'rcnet[hub]'`). The
    file's metadata is on the model as `metadata`; what it says of images is also in `about`.

    Raises:
        InputError: no such weights, not a file of weights, weights of another architecture than the file claims, or of one
            that is not registered.
    """
    path = find(name_or_path)
    metadata = read_metadata(path)
    architecture = metadata["architecture"]
    model = build_model(entry(architecture["name"]), architecture["config"])
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    state = {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in held.items()}
    if "judge" in metadata:
        attach_judge(model, Judge(**metadata["judge"]["config"]).eval())
    if different := _difference(_state(model), state):
        raise InputError(f"{path} does not hold weights of this {architecture['name']}: {different}")
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise InputError(f"{path} holds numbers that are not finite: the training that wrote it diverged")
    for module, prefix in ((model, ""), (getattr(model, "judge", None), JUDGE)):
        if module is not None:
            module.load_state_dict({name: state[prefix + name] for name in module.state_dict()})
    model.about = model.about.completed(metadata.get("preprocessing", {}))
    if "settings" in metadata:
        model.offer(metadata["settings"])
    model.metadata = {"weights": _checksum(state), **metadata}
    return model.eval()
