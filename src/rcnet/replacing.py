"""Writing files so that nobody ever sees half of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, writer: str = "") -> Iterator[Path]:
    """A temporary path beside `path` to write to. It takes the place of `path` at the end; after an error it is gone.

    What a killed process leaves, the next one overwrites. `writer` tells apart those that may write at the same time.
    """
    temporary = path.with_name(f"{path.name}{writer}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
