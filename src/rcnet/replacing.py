"""Writing files so that nobody ever sees half of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever the system refuses inside, e.g. on a full disk, names `path`: writing to an open file names none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not str(error.filename).endswith(".tmp"):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def replacing(path: Path, writer: str = "") -> Iterator[Path]:
    """A temporary path beside `path` to write to. It takes the place of `path` at the end; after an error it is gone.

    What a killed process leaves, the next one overwrites. `writer` tells apart those that may write at the same time.

    Raises:
        OSError: it cannot be written, e.g. as the disk is full; it names `path`, which is as it was.
    """
    temporary = path.with_name(f"{path.name}{writer}.tmp")
    with naming(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
