"""rcnet: compact networks with a cost dial, after Zhang & Jung, "Recurrent Convolution for Compact and Cost-Adjustable
Neural Networks"."""

import importlib
from typing import TYPE_CHECKING, Any

from rcnet.errors import InputError, needs_torch
from rcnet.version import __version__ as __version__

if TYPE_CHECKING:
    from rcnet.about import About
    from rcnet.cell import Cell, RecurrentCell, Transition
    from rcnet.cost.budget import steps_for
    from rcnet.deploy.classify import classify
    from rcnet.deploy.denoise import denoise
    from rcnet.deploy.export import export, load_exported
    from rcnet.deploy.optimize import optimize
    from rcnet.evaluation.recalibrate import recalibrate
    from rcnet.hub import from_pretrained, push_to_hub, save_pretrained
    from rcnet.models import create_model, list_models, load, register, save
    from rcnet.models.converted import convert
    from rcnet.network import RecurrentNet, unroll, untie
    from rcnet.tasks.dial import best_settings

__all__ = [
    "About",
    "Cell",
    "InputError",
    "RecurrentCell",
    "RecurrentNet",
    "Transition",
    "best_settings",
    "classify",
    "convert",
    "create_model",
    "denoise",
    "export",
    "from_pretrained",
    "list_models",
    "load",
    "load_exported",
    "optimize",
    "push_to_hub",
    "recalibrate",
    "register",
    "save",
    "save_pretrained",
    "steps_for",
    "unroll",
    "untie",
]

_HOME = {
    **dict.fromkeys(("Cell", "RecurrentCell", "Transition"), "rcnet.cell"),
    **dict.fromkeys(("RecurrentNet", "unroll", "untie"), "rcnet.network"),
    **dict.fromkeys(("create_model", "list_models", "load", "register", "save"), "rcnet.models"),
    **dict.fromkeys(("from_pretrained", "push_to_hub", "save_pretrained"), "rcnet.hub"),
    "About": "rcnet.about",
    "classify": "rcnet.deploy.classify",
    "convert": "rcnet.models.converted",
    "denoise": "rcnet.deploy.denoise",
    "export": "rcnet.deploy.export",
    "load_exported": "rcnet.deploy.export",
    "optimize": "rcnet.deploy.optimize",
    "steps_for": "rcnet.cost.budget",
    "recalibrate": "rcnet.evaluation.recalibrate",
    "best_settings": "rcnet.tasks.dial",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used: denoising needs no torch, and `rcnet --help` does not wait for anything."""
    if name not in _HOME:
        raise AttributeError(f"module 'rcnet' has no attribute {name!r}")
    with needs_torch():
        value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
