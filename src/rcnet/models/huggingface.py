"""The Hugging Face hub: weights by name, downloaded once and kept in its cache."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rcnet.errors import InputError

PREFIX = "hf-hub:"
WEIGHTS = "model.safetensors"  # the file of weights in a repository


@contextmanager
def hub(name: str) -> Iterator[Any]:
    """The package huggingface_hub. Its exceptions become an `InputError` of one line that names the repository."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line of error is enough; its retries need no log
    try:
        api: Any = importlib.import_module("huggingface_hub")
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise InputError(
            "the Hugging Face hub needs huggingface_hub, which is not installed: pip install 'rcnet[hub]'"
        ) from error
    try:
        yield api
    except (OSError, ValueError, errors.HTTPError) as error:
        raise InputError(f"{name} on the Hugging Face hub: {' '.join(str(error).split()) or type(error).__name__}") from error


def fetch(name: str) -> Path:
    """The file of weights of `user/name`, or `user/name@revision`: downloaded, or from the cache if that is up to date or the hub
    cannot be reached.

    Raises:
        InputError: huggingface_hub is not installed, the repository does not exist or has no file of weights, or the hub cannot
            be reached.
    """
    repository, _, revision = name.partition("@")
    with hub(name) as api:
        return Path(api.hf_hub_download(repository, WEIGHTS, revision=revision or None, library_name="rcnet"))
