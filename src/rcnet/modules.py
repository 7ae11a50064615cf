"""Modules that users name, for functions of their own."""

import importlib
import sys
from typing import Any

from rcnet.errors import InputError


def import_named(module: str) -> Any:
    """A module that a user named: an installed one, or a file in the current folder."""
    if "" not in sys.path:  # as under python -m; last, so that no file here hides an installed package
        sys.path.append("")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"the module {module!r} cannot be imported: {error}") from error
