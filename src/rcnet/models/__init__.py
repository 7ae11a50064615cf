"""The registry of networks, and one file per family."""

from rcnet.models import classify, converted, denoise  # noqa: F401 (registers the families)
from rcnet.models.files import bundled, load, read_metadata, save
from rcnet.models.registry import create_model, list_models, register

__all__ = ["bundled", "create_model", "list_models", "load", "read_metadata", "register", "save"]
