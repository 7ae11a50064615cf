"""rcnet: compact networks with a cost dial, after Zhang & Jung, "Recurrent Convolution for Compact and Cost-Adjustable
Neural Networks"."""

from rcnet.cell import RecurrentCell, RecurrentNet, Transition, unroll, untie
from rcnet.errors import InputError
from rcnet.models import create_model, list_models, load, save

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "RecurrentCell",
    "RecurrentNet",
    "Transition",
    "create_model",
    "list_models",
    "load",
    "save",
    "unroll",
    "untie",
]
