"""Files of pictures through networks that give images: what `rcnet denoise` and `rcnet run` share."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rcnet.cli.text import progress
from rcnet.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from rcnet.deploy.files import Job
    from rcnet.deploy.sessions import Runtime
    from rcnet.runtime.picture import Picture
    from rcnet.runtime.session import Session
    from rcnet.setting import Setting

LARGE = 3 << 22  # numbers in a picture from which the memory of sessions, some 300 MB, is given back before it is written
JUDGED = 1024  # side, in pixels, of the middle whose noise is judged before weights for one level see an image


class Batch(NamedTuple):
    """What is read and written: see `deploy.files.plan`; with `resume` without results that are newer than their images."""

    inputs: Sequence[Path]
    output: Path | None
    out_dir: Path | None
    ending: str
    compare: bool
    resume: bool


class Options(NamedTuple):
    """What holds for every image."""

    model: str | None
    steps: str | None
    budget: str | None
    white: float | None
    pages: str | None
    tile: int
    precision: str
    threads: int | None
    runtime: "Runtime"
    device: str | None
    sigma: float | None = None
    sigma_map: Path | None = None
    strength: float = 1.0


class Done(NamedTuple):
    """What became of one picture.

    Attributes:
        results: the pixels of the file at each setting that is shown.
        setting: that of the result.
        removed: root mean square of what was removed, in levels of 255, before the strength below.
        strength: what multiplied it: --strength, or 1 of a network that is told two levels (which are multiplied instead).
        levels: what the judge found of white and of coarse noise, mean over the brightnesses; None: nobody judged.
    """

    results: "dict[Setting, np.ndarray]"
    setting: "Setting"
    removed: float
    strength: float
    levels: list[float] | None


Report = Callable[[list[Done]], str]  # a sentence about what became of the pages of a file


def run_files(batch: Batch, options: Options, report: Report) -> None:
    """Every image of a batch through the network; where one of several fails, the others go on."""
    inputs, output, out_dir, ending, compare, resume = batch
    if output and out_dir:
        raise InputError("give either -o for one result or --out-dir for a folder of them")
    from rcnet.deploy.files import not_done, plan

    jobs, skipped = plan(inputs, output, out_dir, compare, ending)
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads {options.threads} is not valid: give a whole number from 1")
    from rcnet.cli.text import check_cost, collect_errors
    from rcnet.deploy.sessions import bf16_may_be_faster
    from rcnet.runtime.denoise import check_strength
    from rcnet.runtime.tiles import check_tile

    check_cost(options.steps, options.budget)
    check_tile(options.tile)
    check_strength(options.strength)
    sessions = Sessions(options, megapixels(jobs) if options.precision == "auto" and bf16_may_be_faster() else 0.0)
    if options.model is not None:
        sessions[options.model]
    for line in skipped:
        print(line, file=sys.stderr)
    if resume and (todo := not_done(jobs)) != jobs:
        done = len(jobs) - len(todo)
        print(f"skipped {done} of {len(jobs)} images: their results are newer, with whatever options made", file=sys.stderr)
        jobs = todo
    failed: list[InputError] = []
    for job in jobs:
        with collect_errors(len(jobs), failed):
            run_file(job, options, sessions, report)
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} images failed; the others are done")


class Sessions(dict[str, "Session"]):
    """The sessions by the names of their weights, each opened when it is first asked for."""

    def __init__(self, options: Options, megapixels: float) -> None:
        self.options, self.megapixels = options, megapixels

    def __missing__(self, name: str) -> "Session":
        from rcnet.cli.text import read_steps
        from rcnet.deploy.sessions import COLOUR, open_session
        from rcnet.runtime.denoise import check_gives_images

        options = self.options
        session = open_session(
            name,
            runtime=options.runtime,
            precision=options.precision,
            threads=options.threads,
            device=options.device,
            megapixels=self.megapixels,
        )
        check_gives_images(session)
        read_steps(options.steps, session)
        if (options.sigma is not None or options.sigma_map) and not session.about.takes_level:
            raise InputError(
                f"{name} takes no noise level: leave out --sigma and --sigma-map, or take weights that do, e.g. {COLOUR}"
            )
        self[name] = session
        return session


def megapixels(jobs: "Sequence[Job]") -> float:
    """Of all the images, by their headers; what cannot be read now counts nothing."""
    from PIL import Image

    pixels = 0
    for job in jobs:
        with contextlib.suppress(Exception), Image.open(job.file) as image:  # decoders raise nearly anything
            pixels += image.width * image.height
    return pixels / 1e6


def run_file(job: "Job", options: Options, sessions: Sessions, report: Report) -> None:
    """One file, for a budget or at steps: read, check that the result can be written, run on each page, write."""
    import dataclasses

    from rcnet.data.imagefile import upright
    from rcnet.deploy.files import PIPE, prepare, read, write
    from rcnet.runtime import picture

    images = read(job, options.pages == "all")
    lost = prepare(job, images)
    told = options.sigma is not None or options.sigma_map is not None
    pages, alphas = [image.pixels for image in images], [image.alpha for image in images]
    pictures, said = picture.prepare(pages, alphas, options.white, gray=options.model is None, straight=told)
    for note in dict.fromkeys((*(note for image in images for note in image.notes), *lost, *said)):
        print(f"{job.file}: {note}", file=sys.stderr)
    done = []
    for page, (image, seen) in enumerate(zip(images, pictures, strict=True)):
        done.append(run_picture(job, seen, options, sessions))
        images[page] = dataclasses.replace(image, pixels=done[-1].results[done[-1].setting])
    if images[0].pixels.size > LARGE:
        for session in sessions.values():
            session.release()
    write(job, images)
    if job.target != PIPE:
        print(f"{job.target} (steps {done[-1].setting})" if options.budget else job.target)
    print(f"{job.file}: {report(done)}", file=sys.stderr)
    if job.picture:
        from rcnet.figures.side_by_side import in_rows, save_picture, side_by_side

        panels = [("input", seen.original), *((f"steps {n}", result) for n, result in done[-1].results.items())]
        shown = [(label, upright(image, seen.curve.encode(panel))) for label, panel in panels]
        save_picture(job.picture, side_by_side(in_rows(shown)))
        print(job.picture)


def run_picture(job: "Job", picture: "Picture", options: Options, sessions: Sessions) -> Done:
    """One picture at the setting that is asked for, or at every setting."""
    from rcnet.cli.text import read_steps
    from rcnet.deploy.files import read_map
    from rcnet.deploy.sessions import COLOUR, GRAY
    from rcnet.runtime.denoise import Work, denoise_pixels, judge_picture
    from rcnet.runtime.tiles import count_tiles

    pixels = picture.pixels
    session = sessions[options.model or (GRAY if pixels.shape[2] == 1 else COLOUR)]
    setting = read_steps(options.steps, session)
    if options.budget:
        from rcnet.runtime.budget import denoise_setting_for

        setting = denoise_setting_for(session, options.budget, (1, pixels.shape[2], *pixels.shape[:2]), options.tile)
    warn_of_level(job.file, session, picture)
    runs = list(session.settings) if job.picture else [setting]
    tiles = count_tiles(session.about, (1, 1, *pixels.shape[:2]), options.tile)
    sigma = options.sigma if options.sigma_map is None else read_map(options.sigma_map, pixels.shape[:2])
    judged = judge_picture(session, pixels, picture.curve, picture.visible)
    work = Work(pixels, sigma, options.strength, picture.curve, picture.visible, judged)
    results, total = {}, len(runs) * tiles
    with progress(total, job.file.name, unit="tile", hidden=total <= 4) as step:
        for n in runs:
            denoised, level = denoise_pixels(session, work, n, tile=options.tile, each=step)
            results[n] = picture.restore(denoised)
            if n == setting:
                removed = level
    strength = options.strength if session.about.levels < 2 else 1.0
    return Done(results, setting, removed, strength, None if judged is None else judged.mean((0, 2)).tolist())


def warn_of_level(file: Path, session: "Session", picture: "Picture") -> None:
    """Says on stderr that weights made for one noise level are far from that of this picture."""
    trained = session.about.noise.sigma if session.about.noise else None
    if not isinstance(trained, float):
        return
    from rcnet.data.noise import estimate_sigma
    from rcnet.deploy.sessions import COLOUR, GRAY

    top, left = (max(side - JUDGED, 0) // 2 for side in picture.pixels.shape[:2])
    level = estimate_sigma(picture.curve.encode(picture.pixels[top : top + JUDGED, left : left + JUDGED]))
    if abs(level - trained) > max(4, 0.35 * trained):
        print(
            f"{file}: these weights know noise of sigma {trained:g} alone and this picture seems to have {level:.0f}: "
            f"they will harm it; take {COLOUR} or {GRAY}",
            file=sys.stderr,
        )
