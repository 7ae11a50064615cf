"""rcnet denoise"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from cyclopts import Parameter

from rcnet.cli.text import Budget
from rcnet.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from rcnet.deploy.files import Job
    from rcnet.deploy.optimize import Optimized
    from rcnet.runtime.picture import Picture
    from rcnet.setting import Setting

COLOUR, GRAY = "r3_fast.photo", "r3_fast.gray"  # what pictures are denoised with unless --model says
JUDGED = 1024  # side, in pixels, of the middle whose noise is judged before weights for one level see an image
JUST = 0.5  # levels of 255: a judge that finds less than that finds only the rounding to 8 bits (0.29) and its own error
NOTHING = 1.0  # levels of 255: less than that removed is nearly nothing


def denoise(
    inputs: Annotated[list[Path] | None, Parameter(name="IN")] = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    out_dir: Path | None = None,
    model: str | None = None,
    steps: str | None = None,
    budget: Budget = None,
    sigma: float | None = None,
    sigma_map: Path | None = None,
    strength: float = 1.0,
    white: float | None = None,
    pages: Literal["all"] | None = None,
    resume: bool = False,
    tile: int | None = None,
    compare: bool = False,
    precision: str = "auto",
    threads: int | None = None,
    demo: bool = False,
) -> None:
    """Remove noise from images, at the cost that --steps or --budget names.

    PNG, JPEG, TIFF, WebP, BMP, PNM, JPEG 2000, AVIF and HEIC; gray and
    colour, 8 and 16 bit and floats. The result keeps bit depth, transparency
    and metadata, or one line says what it does not. Without -o or --out-dir
    it is written beside the input, as NAME-denoised.

    Examples::

      rcnet denoise photo.png               any noise, at the most steps
      rcnet denoise photo.png --strength 0.7
      rcnet denoise photo.png --sigma 15    noise of a level that you know
      rcnet denoise photo.jpg -o clean.png --steps 1
      rcnet denoise photo.png --budget 200ms
      rcnet denoise scans/ --out-dir clean/  every image in a folder
      rcnet denoise stack.tif --pages all   every page of a TIFF
      scan | rcnet denoise - > clean.png    from a pipe to a pipe
      rcnet denoise photo.png --compare     a picture of every step, too
      rcnet denoise --demo                  what each step costs and gains

    Parameters
    ----------
    inputs
        Images, or folders of images; - reads one from a pipe.
    output
        File of the result; its suffix names the format. For one input. - writes to a pipe, in the format of the input.
    out_dir
        Folder for the results, under the names of the inputs; made if there is none.
    model
        Bundled weights (see rcnet models) or a file of weights. r3_fast.photo unless given, and r3_fast.gray for gray images.
    steps
        Cost: a step count of the model. The largest unless given.
    budget
        Most time or MACs for an image, e.g. 200ms or 20GMAC: the best setting that fits is taken. The first image of a size is
        measured first.
    sigma
        Noise level, in levels of 255, where you know it. Unless given the network judges it, at each place.
    sigma_map
        Gray image of the size of the input whose values are the noise level at each pixel, in levels of 255.
    strength
        How much of the noise that was found goes away: from 0, none, over 1, to 2.
    white
        The value of the file that stands for white, e.g. 4095 for 12 bits of data in 16. Found from the largest values
        unless given. Larger values stay as they are.
    pages
        all: denoise every page of a TIFF, as microscopes write them. Files of several pages are refused unless given.
    resume
        Skip images whose results are newer than they are, with whatever options they were made.
    tile
        Side of a tile in pixels, which bounds memory; the result does not depend on it. 512 unless given; 0 takes the whole
        image at once.
    compare
        Also write one picture with the input and the result of every step, labelled.
    precision
        auto, the fastest of this machine within about 0.01 dB: bf16 where the processor has it; or fp32 or bf16.
    threads
        Threads of the processor; what torch takes unless given.
    demo
        Noise of sigma 25 on a bundled photograph, and a table of steps, parameters, MACs, ms and PSNR; -o names the picture.
    """
    if demo:
        changed = (sigma, sigma_map, white, pages, tile, threads, strength, precision) != (*[None] * 6, 1.0, "auto") or resume
        if inputs or out_dir or steps or budget or compare or model or changed:
            raise InputError("--demo brings its own photograph and shows every step: it takes only -o")
        run_demo(output or Path("rcnet-demo.png"))
        return
    if not inputs:
        raise InputError("no image given: rcnet denoise IN..., e.g. rcnet denoise photo.png (or rcnet denoise --demo)")
    if output and out_dir:
        raise InputError("give either -o for one result or --out-dir for a folder of them")
    from rcnet.deploy.files import not_done, plan

    jobs, skipped = plan(inputs, output, out_dir, compare)
    if sigma is not None and sigma_map is not None:
        raise InputError("give either --sigma or --sigma-map")
    if sigma is not None and not 0 <= sigma <= 255:
        raise InputError(f"--sigma {sigma:g} is not valid: give the noise level in levels of 255, from 0 to 255")
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads} is not valid: give a whole number from 1")
    import torch

    from rcnet.cli.text import check_cost, collect_errors
    from rcnet.runtime.denoise import check_strength
    from rcnet.runtime.tiles import TILE, check_tile

    if threads:
        torch.set_num_threads(threads)
    tile = TILE if tile is None else tile
    check_cost(steps, budget)
    how = How(model, steps, budget, sigma, sigma_map, strength, white, pages, tile, precision)
    check_tile(tile)
    check_strength(strength)
    sessions: dict[str, Optimized] = {}
    if model is not None:
        weights(model, how, sessions)
    for line in skipped:
        print(line, file=sys.stderr)
    if resume and (todo := not_done(jobs)) != jobs:
        done = len(jobs) - len(todo)
        print(f"skipped {done} of {len(jobs)} images: their results are newer, with whatever options made", file=sys.stderr)
        jobs = todo
    failed: list[InputError] = []
    for job in jobs:
        with collect_errors(len(jobs), failed):
            denoise_file(job, how, sessions)
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} images could not be denoised; the others are done")


class How(NamedTuple):
    """What the options say, the same for every image."""

    model: str | None
    steps: str | None
    budget: str | None
    sigma: float | None
    sigma_map: Path | None
    strength: float
    white: float | None
    pages: str | None
    tile: int
    precision: str


def weights(name: str, how: How, sessions: "dict[str, Optimized]") -> "Optimized":
    """The sessions of these weights, made when they are first asked for."""
    from rcnet.cli.text import read_steps
    from rcnet.deploy.denoise import network_of
    from rcnet.deploy.optimize import optimize
    from rcnet.device import best_device
    from rcnet.models import load

    if name not in sessions:
        network = load(name).to(best_device())
        network_of(network)
        read_steps(how.steps, network)
        if (how.sigma is not None or how.sigma_map) and not network.about.takes_level:
            raise InputError(
                f"{name} takes no noise level: leave out --sigma and --sigma-map, or take weights that do, e.g. {COLOUR}"
            )
        sessions[name] = optimize(network, precision=how.precision)
    return sessions[name]


def denoise_file(job: "Job", how: How, sessions: "dict[str, Optimized]") -> None:
    """One file, for a budget or at steps: read, check that the result can be written, denoise each page, write."""
    import dataclasses

    from rcnet.data.imagefile import upright
    from rcnet.deploy.files import PIPE, prepare, read, write
    from rcnet.figures.side_by_side import in_rows, save_picture, side_by_side
    from rcnet.runtime import picture

    images = read(job, how.pages == "all")
    lost = prepare(job, images)
    told = how.sigma is not None or how.sigma_map is not None
    pages, alphas = [image.pixels for image in images], [image.alpha for image in images]
    pictures, said = picture.prepare(pages, alphas, how.white, gray=how.model is None, straight=told)
    for note in dict.fromkeys((*(note for image in images for note in image.notes), *lost, *said)):
        print(f"{job.file}: {note}", file=sys.stderr)
    done = []
    for page, (image, seen) in enumerate(zip(images, pictures, strict=True)):
        done.append(denoise_picture(job, seen, how, sessions))
        images[page] = dataclasses.replace(image, pixels=done[-1].results[done[-1].setting])
    write(job, images)
    if job.target != PIPE:
        print(f"{job.target} (steps {done[-1].setting})" if how.budget else job.target)
    print(f"{job.file}: {found(done, how.strength)}", file=sys.stderr)
    if job.picture:
        panels = [("input", seen.original), *((f"steps {n}", result) for n, result in done[-1].results.items())]
        shown = [(label, upright(image, seen.curve.encode(panel))) for label, panel in panels]
        save_picture(job.picture, side_by_side(in_rows(shown)))
        print(job.picture)


class Denoised(NamedTuple):
    """What became of one picture.

    Attributes:
        results: the pixels of the file at each setting that is shown.
        setting: that of the result.
        removed: root mean square of what was removed, in levels of 255; at strength 1, of networks that judge nothing.
        levels: what the judge found of white and of coarse noise, mean over the brightnesses; None: nobody judged.
    """

    results: "dict[Setting, np.ndarray]"
    setting: "Setting"
    removed: float
    levels: list[float] | None


def denoise_picture(job: "Job", picture: "Picture", how: How, sessions: "dict[str, Optimized]") -> Denoised:
    """One picture at the setting that is asked for, or at every setting."""
    from tqdm import tqdm

    from rcnet.cli.text import read_steps
    from rcnet.deploy.denoise import TorchSession, denoise_setting_for
    from rcnet.deploy.files import read_map
    from rcnet.runtime.denoise import Work, denoise_pixels, judge_picture
    from rcnet.runtime.tiles import count_tiles

    pixels = picture.pixels
    model = weights(how.model or (GRAY if pixels.shape[2] == 1 else COLOUR), how, sessions)
    shape = (1, pixels.shape[2], *pixels.shape[:2])
    network = model.network
    setting = read_steps(how.steps, network)
    if how.budget:
        setting = denoise_setting_for(model, how.budget, shape, tile=how.tile)
    warn_of_level(job.file, model, picture)
    runs = list(network.settings) if job.picture else [setting]
    tiles = count_tiles(network.about, (1, 1, *shape[2:]), how.tile)
    sigma = how.sigma if how.sigma_map is None else read_map(how.sigma_map, pixels.shape[:2])
    session = TorchSession(model)
    judged = judge_picture(session, pixels, picture.curve)
    work = Work(pixels, sigma, how.strength, picture.curve, picture.visible, judged)
    results, total = {}, len(runs) * tiles
    with tqdm(total=total, desc=job.file.name, unit="tile", disable=None if total > 4 else True, leave=False) as bar:
        for n in runs:
            denoised, level = denoise_pixels(session, work, n, tile=how.tile, each=bar.update)
            results[n] = picture.restore(denoised)
            if n == setting:
                removed = level
    return Denoised(results, setting, removed, None if judged is None else judged.mean((0, 2)).tolist())


def found(done: list[Denoised], strength: float) -> str:
    """What was found in the pages of a file and what was removed, in words."""
    removed = math.sqrt(sum(page.removed**2 for page in done) / len(done))
    judged = [page.levels for page in done if page.levels is not None]
    if judged:
        white, coarse = (sum(levels[kind] for levels in judged) / len(judged) for kind in (0, 1))
        if max(white, coarse) < JUST:
            said = "found no noise (a drawing, a screenshot or a clean picture)"
        elif coarse > white:
            said = f"found coarse noise of sigma {coarse:.1f} (of 255), as cameras and JPEG leave it"
        else:
            said = f"found white noise of sigma {white:.1f} (of 255)"
        return f"{said}; removed {removed:.1f}"
    almost = "nearly no noise found: " if removed < NOTHING else ""
    if strength == 1:
        return f"{almost}removed what amounts to sigma {removed:.1f} (of 255)"
    part = f"{strength:g} of it removed" if strength else "none of it removed"
    return f"{almost}found what amounts to sigma {removed:.1f} (of 255), {part}"


def warn_of_level(file: Path, model: "Optimized", picture: "Picture") -> None:
    """Says on stderr that weights made for one noise level are far from that of this picture."""
    from rcnet.data.noise import estimate_sigma

    trained = model.network.about.noise.sigma if model.network.about.noise else None
    if not isinstance(trained, float):
        return
    top, left = (max(side - JUDGED, 0) // 2 for side in picture.pixels.shape[:2])
    level = estimate_sigma(picture.curve.encode(picture.pixels[top : top + JUDGED, left : left + JUDGED]))
    if abs(level - trained) > max(4, 0.35 * trained):
        print(
            f"{file}: these weights know noise of sigma {trained:g} alone and this picture seems to have {level:.0f}: "
            f"they will harm it; take {COLOUR} or {GRAY}",
            file=sys.stderr,
        )


def run_demo(picture: Path) -> None:
    """The table and the picture of `rcnet denoise --demo`."""
    from tqdm import tqdm

    from rcnet.cli.text import count, table
    from rcnet.figures.demo import ROUNDS, demo
    from rcnet.figures.side_by_side import save_picture

    if picture.suffix.lower() != ".png":
        raise InputError(f"the picture of the demo is a PNG: {picture} does not end in .png")
    if not picture.parent.is_dir() or picture.is_dir():
        raise InputError(f"{picture} cannot be written: its folder does not exist, or it is a folder")
    with tqdm(total=1 + ROUNDS, desc="denoising at every step", disable=None, leave=False) as bar:
        rows, image, about = demo(bar.update)
    lines = [
        (r["model"], r["steps"], f"{r['parameters']:,}", count(r["macs"]), f"{r['ms']:.0f}", f"{r['psnr']:.2f}") for r in rows
    ]
    print(about)
    print(table(("model", "steps", "parameters", "MACs", "ms", "PSNR dB"), lines))
    save_picture(picture, image)
    print(f"the picture: {picture}")
