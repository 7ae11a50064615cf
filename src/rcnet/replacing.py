"""Atomic writing: nobody ever sees a half-written file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds `path` to an OSError that names no file, as one from writing to an open file on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not str(error.filename).endswith(".tmp"):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def replacing(path: Path, writer: str = "") -> Iterator[Path]:
    """A temporary path beside `path` to write to. At the end it replaces `path`; after an error it is deleted.

    If a process is killed, its temporary file stays until the next one overwrites it. `writer` distinguishes processes that may
    write at the same time.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full. The error names `path`, which is unchanged.
    """
    temporary = path.with_name(f"{path.name}{writer}.tmp")
    with naming(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
