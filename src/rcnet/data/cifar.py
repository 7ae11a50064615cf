"""CIFAR-10 and CIFAR-100 in their official forms: binary or python version, extracted or as .tar.gz."""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcnet.errors import InputError, unknown

CIFAR = {"cifar10": 10, "cifar100": 100}  # the number of classes
RECORDS = {"train": 50_000, "test": 10_000}
_PIXELS = 3 * 32 * 32
# The files of each split; those of the binary version end in .bin.
_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10": {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
    "cifar100": {"train": ("train",), "test": ("test",)},
}


@dataclass(frozen=True)
class _Distribution:
    """One of the four official archives: its folder and the file with the class names."""

    dataset: str
    archive: str
    folder: str
    meta: str

    @property
    def binary(self) -> bool:
        return self.archive.endswith("-binary.tar.gz")

    def files(self, split: str) -> tuple[str, ...]:
        return tuple(name + ".bin" * self.binary for name in _FILES[self.dataset][split])


_DISTRIBUTIONS = (
    _Distribution("cifar10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin", "batches.meta.txt"),
    _Distribution("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta"),
    _Distribution("cifar100", "cifar-100-binary.tar.gz", "cifar-100-binary", "fine_label_names.txt"),
    _Distribution("cifar100", "cifar-100-python.tar.gz", "cifar-100-python", "meta"),
)


@dataclass(frozen=True)
class _Source:
    """A distribution that was found, as its extracted folder or its archive."""

    distribution: _Distribution
    path: Path

    def refuse(self, problem: str, file: str = "") -> InputError:
        """An error with the problem of the source, or of one of its files, and how to download it again."""
        name = self.path / file if self.path.is_dir() else f"{self.path}: {file}" if file else self.path
        remedy = f"delete {self.path} and run: rcnet data {self.distribution.dataset} --out {self.path.parent}"
        return InputError(f"{name} {' '.join(problem.split())}; {remedy}")


def cifar_sets(folder: str | Path) -> list[str]:
    """Which of "cifar10" and "cifar100" are at a path that `read_cifar` takes, complete or not."""
    return sorted({source.distribution.dataset for source in _sources(Path(folder))})


def read_cifar(folder: str | Path, dataset: str, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """One split of CIFAR-10 or CIFAR-100: uint8 images [N, 3, 32, 32], int64 labels [N] (the fine ones), class names.

    Pickles are read without executing code, archives without extracting them. If several versions exist, an extracted one is
    preferred to an archive, and the binary to the python version.

    Args:
        folder: the extracted folder, the .tar.gz, or the folder that contains one of them under its official name.
        dataset: "cifar10" or "cifar100".
        split: "train" (50,000 images) or "test" (10,000).

    Raises:
        InputError: an unknown dataset or split, no such data set in the folder, or a file that is missing, damaged or of the
            wrong size.
    """
    if dataset not in CIFAR:
        raise unknown("CIFAR data set", dataset, CIFAR)
    if split not in RECORDS:
        raise unknown("split", split, RECORDS)
    sources = [source for source in _sources(Path(folder)) if source.distribution.dataset == dataset]
    if not sources:
        valid = ", ".join(name for d in _DISTRIBUTIONS if d.dataset == dataset for name in (d.folder, d.archive))
        out = Path(folder).parent if Path(folder).is_file() else folder
        raise InputError(f"no {dataset} in {folder}: looked for {valid}; to get it: rcnet data {dataset} --out {out}")
    source = sources[0]
    distribution, names = source.distribution, source.distribution.files(split)
    count = RECORDS[split] // len(names)
    limits = {distribution.meta: 1 << 20} | dict.fromkeys(names, 3 * count * _PIXELS)
    parse = _parse_binary if distribution.binary else _parse_pickle
    classes: tuple[str, ...] = ()
    parts = {}
    for name, content in _contents(source, limits):
        try:
            if name == distribution.meta:
                classes = _parse_classes(content, CIFAR[dataset], distribution.binary)
            else:
                parts[name] = parse(content, count, CIFAR[dataset])
        except _Damaged as error:
            raise source.refuse(str(error), name) from error
    images = np.concatenate([parts[name][0] for name in names]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([parts[name][1] for name in names]).astype(np.int64), classes


def _sources(folder: Path) -> list[_Source]:
    """The data sets in the folder, preferred ones first."""
    if folder.is_file():
        return [_Source(d, folder) for d in _DISTRIBUTIONS if folder.name == d.archive]
    itself = [
        _Source(d, folder)
        for d in _DISTRIBUTIONS
        if folder.name == d.folder or any((folder / name).is_file() for split in RECORDS for name in d.files(split))
    ]
    extracted = [_Source(d, folder / d.folder) for d in _DISTRIBUTIONS]
    archives = [_Source(d, folder / d.archive) for d in _DISTRIBUTIONS]
    found = [s for s in extracted if s.path.is_dir()] + [s for s in archives if s.path.is_file()]
    return [s for s in itself if s.path.is_dir()] + found


def _contents(source: _Source, limits: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """The files named in `limits`, in any order, each with at most the given number of bytes."""
    if source.path.is_dir():
        for name, limit in limits.items():
            path = source.path / name
            try:
                if path.stat().st_size > limit:
                    raise source.refuse(f"is too large: {path.stat().st_size:,} bytes", name)
                content = path.read_bytes()
            except FileNotFoundError as error:
                raise source.refuse("is missing", name) from error
            except OSError as error:
                raise source.refuse(f"cannot be read: {error.strerror}", name) from error
            yield name, content
        return
    wanted = {f"{source.distribution.folder}/{name}": name for name in limits}
    for member, content in _members(source, {member: limits[name] for member, name in wanted.items()}):
        yield wanted.pop(member), content
    if wanted:
        raise source.refuse("is missing", next(iter(wanted.values())))


def _members(source: _Source, limits: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Regular files of an archive, by exact name."""
    try:
        with gzip.open(source.path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if member.name in limits and member.isreg():
                    if member.size > limits.pop(member.name):
                        raise source.refuse(f"is too large: {member.size:,} bytes", Path(member.name).name)
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
            while stream.read(1 << 20):  # to the checksum at the end
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise source.refuse(f"cannot be read: {error}") from error


class _Damaged(ValueError):
    """The problem of a file."""


def _parse_binary(content: bytes, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [count, 3072] and labels [count]; a record is the label (CIFAR-100: coarse and fine) and the pixels."""
    width = _PIXELS + (1 if classes == 10 else 2)
    if len(content) != count * width:
        raise _Damaged(f"has {len(content):,} bytes, not {count * width:,} ({count:,} images)")
    records = np.frombuffer(content, np.uint8).reshape(count, width)
    return records[:, -_PIXELS:], _checked(records[:, -_PIXELS - 1], classes)


def _parse_pickle(content: bytes, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [count, 3072] and labels [count] of a pickled dictionary."""
    batch = _unpickle(content)
    pixels, labels = batch.get(b"data"), batch.get(b"labels" if classes == 10 else b"fine_labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise _Damaged("contains no CIFAR images")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise _Damaged("contains no CIFAR labels")
    if len(pixels) != count or len(labels) != count:
        raise _Damaged(f"has {len(pixels):,} images and {len(labels):,} labels, not {count:,}")
    return pixels, _checked(np.array(labels), classes)


def _parse_classes(content: bytes, count: int, binary: bool) -> tuple[str, ...]:
    """The class names: lines of text, or in a pickled dictionary."""
    names: Any = content.split() if binary else _unpickle(content).get(b"label_names" if count == 10 else b"fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) and name.isascii() for name in names):
        raise _Damaged("does not contain class names")
    if not len(names) == len(set(names)) == count:
        raise _Damaged(f"does not contain the {count} class names")
    return tuple(name.decode() for name in names)


def _checked(labels: np.ndarray, classes: int) -> np.ndarray:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise _Damaged(f"has the label {wrong[0]}, not one from 0 to {classes - 1}")
    return labels


def _latin1(text: str, encoding: str) -> bytes:
    """Replaces `_codecs.encode` in pickles: Python 3 writes bytes for Python 2 as Latin-1 text."""
    if encoding != "latin1":
        raise _Damaged(f"is a pickle with text in {encoding!r}")
    return text.encode("latin1")


def _empty_array(*_: object) -> np.ndarray:
    """Replaces `_reconstruct`; the array is filled by the state that follows in the pickle."""
    return np.empty(0, np.uint8)


def _byte(code: object, *_: object) -> np.dtype:
    """The dtype of the pixels. With another dtype, a pickle could read memory outside the array."""
    if code not in ("u1", b"u1"):
        raise _Damaged(f"is a pickle of an array of {code!r}")
    return np.dtype(np.uint8)


# Replacements for the names in a pickled array, none of which can do more than building the array.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _byte,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Builds lists, dictionaries, numbers, strings and arrays of bytes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Damaged(f"is a pickle that asks for {module}.{name}, which no CIFAR file needs; it was not executed") from None


def _unpickle(content: bytes) -> dict[Any, Any]:
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _Damaged:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        raise _Damaged(f"is not a complete pickle: {str(error) or type(error).__name__}") from error
    if not isinstance(value, dict):
        raise _Damaged("is a pickle, but not of a dictionary")
    return value
