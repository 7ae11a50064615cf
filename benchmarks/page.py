"""What the benchmarks share: where results are, the options of a command, a table, and a file of results with its page."""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rcnet.replacing import replacing

RESULTS = Path(__file__).parent.parent / "results"


def options(doc: str | None) -> argparse.ArgumentParser:
    """An empty parser; `doc`, of the benchmark's file, is its help as it stands."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def kept(path: Path) -> dict[str, Any]:
    """What was measured before; nothing without a file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, *rows)]
    return [lines[0], f"{'|---' * len(header)}|", *lines[1:]]


def asked_table(asked: Iterable[tuple[str, str, float, bool]]) -> list[str]:
    """What was asked of the figures: of what, the bound, the value measured, and whether it is met."""
    rows = [[what, bound, f"{value:.2f}", "met" if met else "missed"] for what, bound, value, met in asked]
    return table(["what", "asked", "measured", ""], rows)


def record(path: Path, result: dict[str, Any], render: Callable[[dict[str, Any]], str]) -> str:
    """Writes a result, and beside it as .md the page that `render` makes of it, which is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(result)
    for file, text in ((path, json.dumps(result, indent=1) + "\n"), (path.with_suffix(".md"), page)):
        with replacing(file) as temporary:
            temporary.write_text(text)
    return page
