"""Which code made a result, and on what."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from rcnet.device import hardware


def commit() -> str | None:
    """The commit of the source tree that runs, with -dirty if it was changed, or None where this file is in no repository."""
    folder = str(Path(__file__).parent)
    try:
        subprocess.run(["git", "-C", folder, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        command = ["git", "-C", folder, "describe", "--always", "--dirty", "--exclude", "*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def made_here(device: torch.device) -> dict[str, Any]:
    """What a result says of where and when it was made."""
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
