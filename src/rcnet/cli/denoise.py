"""rcnet denoise"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter

from rcnet.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from rcnet.cell import Steps
    from rcnet.data.imagefile import ImageFile
    from rcnet.deploy.optimize import Optimized

COLOUR, GRAY = "r3_fast.photo", "r3_fast.gray"  # what pictures are denoised with unless --model says
NOTHING = 0.7  # levels of 255: less than that removed is nearly nothing


def denoise(
    inputs: Annotated[list[Path] | None, Parameter(name="IN")] = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    out_dir: Path | None = None,
    model: str | None = None,
    steps: str | None = None,
    budget: str | None = None,
    sigma: float | None = None,
    sigma_map: Path | None = None,
    strength: float = 1.0,
    white: int | None = None,
    tile: int | None = None,
    compare: bool = False,
    precision: str = "auto",
    threads: int | None = None,
    demo: bool = False,
) -> None:
    """Remove noise from images, at the cost that --steps or --budget names.

    PNG, JPEG, TIFF and WebP; 8 and 16 bit; gray and colour. The result keeps
    mode, bit depth, transparency, EXIF and colour profile. Without -o or
    --out-dir it is written beside the input, as NAME-denoised.

    Examples::

      rcnet denoise photo.png               any noise, at the most steps
      rcnet denoise photo.png --strength 0.7
      rcnet denoise photo.png --sigma 15    noise of a level that you know
      rcnet denoise photo.jpg -o clean.png --steps 1
      rcnet denoise photo.png --budget 200ms
      rcnet denoise scans/ --out-dir clean/ every image in a folder
      rcnet denoise photo.png --compare     a picture of every step, too
      rcnet denoise --demo                  what each step costs and gains

    Parameters
    ----------
    inputs
        Images, or folders of images.
    output
        File of the result; its suffix names the format. For one input.
    out_dir
        Folder for the results, under the names of the inputs; made if there is none.
    model
        Bundled weights (see rcnet models) or a file of weights. r3_fast.photo unless given, and r3_fast.gray for gray images.
    steps
        Cost: a step count of the model. The largest unless given.
    budget
        Most time or MACs for an image, e.g. 200ms or 20GMAC: the most steps that fit are taken. The first image of a size is
        measured first.
    sigma
        Noise level, in levels of 255, where you know it. Unless given the network judges it, at each place.
    sigma_map
        Gray image of the size of the input whose values are the noise level at each pixel, in levels of 255.
    strength
        How much of the noise that was found goes away: from 0, none, over 1, to 2.
    white
        The value of a 16-bit file that stands for white, e.g. 4095 for 12 bits of data. Found from the largest unless given.
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
        if inputs or out_dir or steps or budget or tile is not None or compare or model:
            raise InputError("--demo brings its own photograph and shows every step: it takes only -o")
        run_demo(output or Path("rcnet-demo.png"))
        return
    if not inputs:
        raise InputError("no image given: rcnet denoise IN..., e.g. rcnet denoise photo.png (or rcnet denoise --demo)")
    if output and out_dir:
        raise InputError("give either -o for one result or --out-dir for a folder of them")
    jobs = [job for path in inputs for job in plan(path, output, out_dir, compare)]
    if output and len(jobs) > 1:
        raise InputError(f"-o takes one result and there are {len(jobs)} images: give --out-dir")
    check_targets(jobs)
    if sigma is not None and sigma_map is not None:
        raise InputError("give either --sigma or --sigma-map")
    if sigma is not None and not 0 <= sigma <= 255:
        raise InputError(f"--sigma {sigma:g} is not valid: give the noise level in levels of 255, from 0 to 255")
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads} is not valid: give a whole number from 1")
    import torch

    from rcnet.cli.text import check_cost, parse_steps
    from rcnet.deploy.denoise import TILE, check_options

    if threads:
        torch.set_num_threads(threads)
    check_cost(steps, budget)
    how = How(model, parse_steps(steps), budget, sigma, sigma_map, strength, white, TILE if tile is None else tile, precision)
    check_options(how.tile, strength)
    sessions: dict[str, Optimized] = {}
    if model is not None:
        weights(model, how, sessions)
    failed = 0
    for job in jobs:
        try:
            denoise_file(job, how, sessions)
        except InputError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            print(f"rcnet: {error}", file=sys.stderr)
    if failed:
        raise InputError(f"{failed} of {len(jobs)} images could not be denoised; the others are done")


class How(NamedTuple):
    """What the options say, the same for every image."""

    model: str | None
    steps: "Steps"
    budget: str | None
    sigma: float | None
    sigma_map: Path | None
    strength: float
    white: int | None
    tile: int
    precision: str


class Job(NamedTuple):
    """One image: the file, its result, the picture of every step if there is to be one; is the result's folder made?"""

    file: Path
    target: Path
    picture: Path | None
    makes_folder: bool


def plan(path: Path, output: Path | None, out_dir: Path | None, compare: bool) -> list[Job]:
    """The jobs of a file, or of every image of a folder but for our own results."""
    from rcnet.data.imagefile import FORMATS
    from rcnet.data.images import list_images

    files = [path]
    if path.is_dir():
        ours = ("-denoised", "-compare")
        files = [f for f in list_images(path) if f.suffix.lower() in FORMATS and not f.stem.endswith(ours)]
        if not files:
            raise InputError(
                f"{path} holds no images to denoise: only earlier results, or other formats than {', '.join(FORMATS)}"
            )
    jobs = []
    for file in files:
        if out_dir:
            target = out_dir / (file.relative_to(path) if path.is_dir() else file.name)
        else:
            target = output or file.with_name(f"{file.stem}-denoised{file.suffix}")
        picture = target.with_name(f"{target.stem.removesuffix('-denoised')}-compare.png")
        jobs.append(Job(file, target, picture if compare else None, out_dir is not None))
    return jobs


def check_targets(jobs: list[Job]) -> None:
    """`InputError` if a result would overwrite an input or another result."""
    inputs = {job.file.resolve() for job in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs:
        for target in filter(None, (job.target, job.picture)):
            place = target.resolve()
            if place in inputs:
                raise InputError(f"{target} would overwrite an input: name another file or folder for the result")
            if place in writers:
                raise InputError(f"{writers[place]} and {job.file} would both be written to {target}: rename one of them")
            if place.is_dir():
                raise InputError(f"{target} cannot be written: it is a folder")
            writers[place] = job.file


def weights(name: str, how: How, sessions: "dict[str, Optimized]") -> "Optimized":
    """The sessions of these weights, made when they are first asked for."""
    from rcnet.deploy.denoise import network_of
    from rcnet.deploy.optimize import optimize
    from rcnet.device import best_device
    from rcnet.models import load

    if name not in sessions:
        network = load(name).to(best_device())
        network_of(network)
        network.per_cell(how.steps)
        if (how.sigma is not None or how.sigma_map) and not network.noise_level:
            raise InputError(
                f"{name} takes no noise level: leave out --sigma and --sigma-map, or take weights that do, e.g. {COLOUR}"
            )
        sessions[name] = optimize(network, precision=how.precision)
    return sessions[name]


def denoise_file(job: Job, how: How, sessions: "dict[str, Optimized]") -> None:
    """One image, for a budget or at steps: read, check that the result can be written, denoise, write."""
    import dataclasses

    from tqdm import tqdm

    from rcnet.data import imagefile
    from rcnet.deploy.denoise import count_tiles, denoise_pixels, denoise_steps_for
    from rcnet.figures.side_by_side import save_picture, side_by_side

    image = imagefile.read(job.file)
    if job.makes_folder:
        make_folder(job.target.parent)
    imagefile.check_writable(job.target, image)
    pixels, channels = image.pixels, image.pixels.shape[2]
    if channels == 3 and how.model is None and is_gray(pixels):
        pixels = pixels[:, :, :1]
    model = weights(how.model or (GRAY if pixels.shape[2] == 1 else COLOUR), how, sessions)
    white = white_of(job.file, image, how.white)
    shape = (1, pixels.shape[2], *pixels.shape[:2])
    steps = how.steps
    if how.budget:
        steps = denoise_steps_for(model, how.budget, shape, tile=how.tile)
    steps = model.network.per_cell(steps)[0]
    warn_of_level(job.file, model, pixels, white)
    runs = [steps, *(n for n in model.steps if job.picture and n != steps)]
    tiles = count_tiles(model, (1, 3, *shape[2:]), how.tile) // (3 if model.network.channels == 1 else 1)
    sigma = how.sigma if how.sigma_map is None else read_map(how.sigma_map, pixels.shape[:2])
    results = {}
    total = len(runs) * tiles
    with tqdm(total=total, desc=job.file.name, unit="tile", disable=None if total > 4 else True, leave=False) as bar:
        for n in runs:
            results[n], found = denoise_pixels(
                model, pixels, n, sigma=sigma, strength=how.strength, white=white, tile=how.tile, each=bar.update
            )
            if n == steps:
                level = found
    imagefile.write(job.target, dataclasses.replace(image, pixels=results[steps].repeat(channels // pixels.shape[2], axis=2)))
    print(f"{job.target} ({steps_label(steps)})" if how.budget else job.target)
    almost = "nearly no noise found: " if level < NOTHING else ""
    print(f"{job.file}: {almost}removed what amounts to sigma {level:.1f} (of 255)", file=sys.stderr)
    if job.picture:
        panels = [("input", pixels), *((steps_label(n), results[n]) for n in sorted(results))]
        shown = [(label, imagefile.upright(image, panel / white)) for label, panel in panels]
        save_picture(job.picture, side_by_side([shown]))
        print(job.picture)


def is_gray(pixels: "np.ndarray") -> bool:
    """Whether all three colours of every pixel are equal, as in a gray scan that was saved in colour."""
    return bool((pixels[:, :, :1] == pixels[:, :, 1:]).all())


def white_of(file: Path, image: "ImageFile", given: int | None) -> int:
    """The value that stands for white: given, or found, which is said where it is not the largest of the type."""
    from rcnet.data.imagefile import white_level

    if given is not None:
        if not 0 < given <= (1 << 8 * image.pixels.itemsize) - 1:
            raise InputError(f"--white {given} is not valid for {file}: give a value of its pixels, from 1")
        return given
    found = white_level(image)
    if found < (1 << 8 * image.pixels.itemsize) - 1:
        print(
            f"{file}: 16-bit pixels that go to {int(image.pixels.max())}: {found} is taken for white (--white sets it)",
            file=sys.stderr,
        )
    return found


def read_map(file: Path, shape: tuple[int, ...]) -> "Tensor":
    """The noise level at each pixel, [H, W] in levels of 255, of a gray image as it is stored."""
    import torch

    from rcnet.data import imagefile

    image = imagefile.read(file)
    if image.pixels.shape[2] != 1 or image.pixels.shape[:2] != shape:
        height, width = image.pixels.shape[:2]
        raise InputError(
            f"{file} is no map of this image: it has to be gray, of {shape[1]}x{shape[0]} pixels, not {width}x{height}"
        )
    return torch.from_numpy(imagefile.as_float(image)[:, :, 0] * 255)


def warn_of_level(file: Path, model: "Optimized", pixels: "np.ndarray", white: int) -> None:
    """Says on stderr that weights made for one noise level are far from that of this picture."""
    from rcnet.data.noise import estimate_sigma

    noise = getattr(model.network, "metadata", {}).get("preprocessing", {}).get("noise", {})
    trained, found = noise.get("sigma"), estimate_sigma(pixels / white)
    if isinstance(trained, int | float) and abs(found - trained) > max(4, 0.35 * trained):
        print(
            f"{file}: these weights know noise of sigma {trained:g} alone and this picture seems to have {found:.0f}: "
            f"they will harm it; take {COLOUR} or {GRAY}",
            file=sys.stderr,
        )


def steps_label(steps: int) -> str:
    """1 step, 4 steps."""
    return f"{steps} step{'s' if steps > 1 else ''}"


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder for results: {error.strerror}") from error


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
