"""The code and the hardware that produced a result."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from rcnet.device import hardware


def commit() -> str | None:
    """The commit of the running source tree, or None if this file is not in a repository.

    It ends with -dirty if a file outside `results/` has changed, or `src/` or `paper/` has a file that is not committed.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)results")
        new = git("status", "--porcelain", "--untracked-files=all", "--", ":/src", ":/paper")
        return git("describe", "--always", "--exclude", "*") + "-dirty" * bool(changed or new)
    except (OSError, subprocess.CalledProcessError):
        return None


def made_here(device: torch.device) -> dict[str, Any]:
    """Where and when a result was produced."""
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
