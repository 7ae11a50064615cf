"""Which image files go in and which come out of a batch: checked before any work, nothing overwritten by mistake."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rcnet.data import imagefile
from rcnet.data.formats import NAMES, SUFFIXES, ImageFile
from rcnet.errors import InputError

PIPE = Path("-")  # standard input or output
COMPARE = "-compare"  # how the names of pictures of every step end
NAMED = 5  # of the files that are skipped


class Job(NamedTuple):
    """One image: the file, its result, the picture of every step if there is to be one; is the result's folder made?"""

    file: Path
    target: Path
    picture: Path | None
    makes_folder: bool


class Plan(NamedTuple):
    """The jobs of a batch, and a sentence for each folder that holds files which are not among them."""

    jobs: list[Job]
    skipped: list[str]


def plan(paths: Sequence[Path], output: Path | None, out_dir: Path | None, compare: bool, ending: str) -> Plan:
    """What is to be done with files and folders of images; `-` is the pipe. The names of results end with `ending`.

    Raises:
        InputError: a folder without images, one result for several images, a result that would overwrite an input or another
            result, a pipe where a name is needed.
    """
    jobs, skipped = [], []
    for path in paths:
        files = [path]
        if path.is_dir():
            files, left_out = _images(path, out_dir, ending)
            skipped += [left_out] if left_out else []
        jobs += [_job(file, path, output, out_dir, compare, ending) for file in files]
    if output and len(jobs) > 1:
        raise InputError(f"-o takes one result and there are {len(jobs)} images: give --out-dir")
    _check_targets(jobs)
    return Plan(jobs, skipped)


def _images(folder: Path, out_dir: Path | None, ending: str) -> tuple[list[Path], str]:
    """The images of a folder but for our own results, and what else is there, in a sentence."""
    there = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in there if path.suffix.lower() in SUFFIXES]
    inner = out_dir.resolve() if out_dir else folder.resolve()
    inside = inner != folder.resolve() and inner.is_relative_to(folder.resolve())  # earlier results lie there
    files = [
        path
        for path in images
        if not path.stem.endswith((ending, COMPARE)) and not (inside and path.resolve().is_relative_to(inner))
    ]
    others = [str(path.relative_to(folder)) for path in there if path.suffix.lower() not in SUFFIXES]
    if not files:
        raise InputError(f"{folder} holds no images: only earlier results, or other formats than {NAMES}")
    results = len(images) - len(files)
    parts = [f"{results} earlier result{'s' * (results > 1)}"] if results else []
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        parts.append(f"{', '.join(others[:NAMED])}{more} (not {NAMES})")
    return files, f"{folder}: skipped {'; '.join(parts)}" if parts else ""


def _job(file: Path, path: Path, output: Path | None, out_dir: Path | None, compare: bool, ending: str) -> Job:
    if file == PIPE and out_dir:
        raise InputError("an image from a pipe has no name in --out-dir: give -o FILE, or -o - for a pipe")
    if out_dir:
        target = out_dir / (file.relative_to(path) if path.is_dir() else file.name)
    else:
        target = output or (PIPE if file == PIPE else file.with_name(f"{file.stem}{ending}{file.suffix}"))
    if compare and target == PIPE:
        raise InputError("--compare writes a second file beside the result: give -o FILE")
    picture = target.with_name(f"{target.stem.removesuffix(ending)}{COMPARE}.png")
    return Job(file, target, picture if compare else None, out_dir is not None)


def _check_targets(jobs: Iterable[Job]) -> None:
    """`InputError` if a result would overwrite an input or another result."""
    inputs = {job.file.resolve() for job in jobs if job.file != PIPE}
    writers: dict[Path, Path] = {}
    for job in jobs:
        for target in (path for path in (job.target, job.picture) if path and path != PIPE):
            place = target.resolve()
            if place in inputs:
                raise InputError(f"{target} would overwrite an input: name another file or folder for the result")
            if place in writers:
                raise InputError(f"{writers[place]} and {job.file} would both be written to {target}: rename one of them")
            if place.is_dir():
                raise InputError(f"{target} cannot be written: it is a folder")
            writers[place] = job.file


def not_done(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without those whose results are all newer than their images. A result that is there is whole."""

    def done(job: Job) -> bool:
        results = [path for path in (job.target, job.picture) if path]
        if PIPE in (job.file, job.target) or not all(path.is_file() for path in results):
            return False
        return all(path.stat().st_mtime_ns >= job.file.stat().st_mtime_ns for path in results)

    return [job for job in jobs if not done(job)]


def read(job: Job, every_page: bool = False) -> list[ImageFile]:
    """The job's image, of its file or of the pipe; or every page of a TIFF."""
    source = sys.stdin.buffer if job.file == PIPE else job.file
    return imagefile.read_pages(source) if every_page else [imagefile.read(source)]


def read_map(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The noise level at each pixel, float32 [H, W] in levels of 255, of a gray image of that shape as it is stored: of 16
    bits, 257 are a level.

    Raises:
        InputError: an image that cannot be read, in colour, or of another size.
    """
    pixels = imagefile.read(file).pixels
    if pixels.shape[2] != 1:
        raise InputError(f"{file} is no map of the noise: it has {pixels.shape[2]} colours; save it as gray, one level per pixel")
    if pixels.shape[:2] != shape:
        sizes = [f"{width}x{height}" for height, width in (pixels.shape[:2], shape)]
        raise InputError(f"{file} is no map of this image: it has to be of {sizes[1]} pixels, not {sizes[0]}")
    return pixels[:, :, 0] / np.float32(257 if pixels.dtype == np.uint16 else 1)


def prepare(job: Job, images: Sequence[ImageFile]) -> tuple[str, ...]:
    """What the result will not keep of the image or its pages, each a short sentence; its folder is made if it has to be.

    Raises:
        InputError: the result cannot be written.
    """
    if job.picture and len(images) > 1:
        raise InputError(f"{job.file} has {len(images)} pages and --compare shows one: leave out --compare")
    if job.target == PIPE:
        if sys.stdout.isatty():
            raise InputError("the result is an image, and this is a terminal: give -o FILE, or a pipe")
        return imagefile.check_kind(images[0].kind, *images)
    if job.makes_folder:
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{job.target.parent} cannot be a folder for results: {error.strerror}") from error
    return imagefile.check_writable(job.target, *images)


def write(job: Job, images: Sequence[ImageFile]) -> None:
    """The job's result, one image or all pages, to its file, or to the pipe in the format of the input."""
    if job.target == PIPE:
        sys.stdout.buffer.write(imagefile.encode(images[0], images[0].kind, *images[1:]))
        sys.stdout.buffer.flush()
    else:
        imagefile.write(job.target, *images)
