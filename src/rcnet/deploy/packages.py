"""The optional packages that export and quantize."""

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator
from typing import Any

from rcnet.errors import InputError


def needed(*packages: str) -> Any:
    """The first of the packages, or `InputError` that says how to install them."""
    try:
        modules = [importlib.import_module(package) for package in packages]
    except ImportError as error:
        extra = packages[0] if packages[0] in ("openvino", "executorch") else "onnx"
        raise InputError(f"this needs {' and '.join(packages)}: pip install 'rcnet[{extra}]'") from error
    return modules[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter and the quantizer print and log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
