"""`save` and `load`: a network in one safetensors file whose metadata says what it is, how to feed it and what it reached."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rcnet.cell import RecurrentNet
from rcnet.errors import InputError, unknown
from rcnet.models.registry import architecture_of, create_model
from rcnet.replacing import replacing

KEY = "rcnet"  # the one metadata key, holding JSON


def bundled() -> dict[str, Path]:
    """The weights that come with the package: name -> file."""
    folder = Path(str(resources.files("rcnet") / "weights"))
    return {path.name.removesuffix(".safetensors"): path for path in sorted(folder.glob("*.safetensors"))}


def find(name_or_path: str | Path) -> Path:
    """The file of bundled weights or of a path, or `InputError` that names the bundled ones."""
    known = bundled()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return path
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


def save(model: RecurrentNet, path: str | Path, **metadata: Any) -> None:
    """Writes the model's weights and `metadata` (JSON values, e.g. `results`, `training`) to one safetensors file, atomically.

    Each kernel is stored once. `preprocessing` is filled in from the architecture unless given.

    Raises:
        InputError: the model was not made by `create_model` or `load`.
    """
    model = getattr(model, "_orig_mod", model)
    architecture = architecture_of(model)
    with torch.device("meta"):
        fresh = create_model(architecture["name"], **architecture["config"])
    if fresh.state_dict().keys() != model.state_dict().keys():
        raise InputError("this network is not as create_model made it (unrolled?): save the network that it was made from")
    path = Path(path)
    metadata = {"format": 1, "architecture": architecture_of(model), "preprocessing": preprocessing(model), **metadata}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={KEY: json.dumps(metadata)})


def preprocessing(model: RecurrentNet) -> dict[str, Any]:
    """What the network expects: RGB or gray in [0, 1]; mean and standard deviation are applied inside."""
    about = {"range": [0.0, 1.0], "channels": model.channels, "layout": "RGB" if model.channels == 3 else "gray"}
    return about | ({"inputs": ["image", "sigma"]} if model.noise_level else {})


def load(name_or_path: str | Path) -> RecurrentNet:
    """A network with its trained weights, in evaluation mode: bundled weights by name, or a file written by `save`.

    The file's metadata is on the model as `metadata`.

    Raises:
        InputError: no such weights, not a file of weights, or weights of another architecture than the file claims.
    """
    path = find(name_or_path)
    metadata = read_metadata(path)
    architecture = metadata["architecture"]
    model = create_model(architecture["name"], **architecture["config"])
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    load_state(model, state, path)
    model.metadata = metadata
    return model.eval()


def load_state(model: RecurrentNet, state: dict[str, torch.Tensor], source: object) -> None:
    """Copies tensors into the model, or `InputError` that says which names or shapes do not fit."""
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        name = architecture_of(model)["name"]
        raise InputError(f"{source} does not hold weights of this {name}: {len(wrong)} tensors differ, the first is {wrong[0]}")
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise InputError(f"{source} holds numbers that are not finite: the training that wrote it diverged")
    model.load_state_dict(state)
