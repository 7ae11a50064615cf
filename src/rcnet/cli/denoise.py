"""rcnet denoise"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter

from rcnet.cli.text import Budget
from rcnet.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from rcnet.data.imagefile import ImageFile
    from rcnet.deploy.files import Job
    from rcnet.deploy.optimize import Optimized

COLOUR, GRAY = "r3_fast.photo", "r3_fast.gray"  # what pictures are denoised with unless --model says
JUDGED = 1024  # side, in pixels, of the middle whose noise is judged before weights for one level see an image
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
        The value of the file that stands for white, e.g. 4095 for 12 bits of data in 16. Found from the largest unless given.
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
        changed = (sigma, sigma_map, white, tile, threads, strength, precision) != (None, None, None, None, None, 1.0, "auto")
        if inputs or out_dir or steps or budget or compare or model or changed:
            raise InputError("--demo brings its own photograph and shows every step: it takes only -o")
        run_demo(output or Path("rcnet-demo.png"))
        return
    if not inputs:
        raise InputError("no image given: rcnet denoise IN..., e.g. rcnet denoise photo.png (or rcnet denoise --demo)")
    if output and out_dir:
        raise InputError("give either -o for one result or --out-dir for a folder of them")
    from rcnet.deploy.files import plan

    jobs, skipped = plan(inputs, output, out_dir, compare)
    if sigma is not None and sigma_map is not None:
        raise InputError("give either --sigma or --sigma-map")
    if sigma is not None and not 0 <= sigma <= 255:
        raise InputError(f"--sigma {sigma:g} is not valid: give the noise level in levels of 255, from 0 to 255")
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads} is not valid: give a whole number from 1")
    import torch

    from rcnet.cli.text import check_cost, others_go_on
    from rcnet.deploy.denoise import TILE, check_options

    if threads:
        torch.set_num_threads(threads)
    tile = TILE if tile is None else tile
    check_cost(steps, budget)
    how = How(model, steps, budget, sigma, sigma_map, strength, white, tile, precision)
    check_options(tile, strength)
    sessions: dict[str, Optimized] = {}
    if model is not None:
        weights(model, how, sessions)
    for line in skipped:
        print(line, file=sys.stderr)
    failed: list[InputError] = []
    for job in jobs:
        with others_go_on(len(jobs), failed):
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
    """One image, for a budget or at steps: read, check that the result can be written, denoise, write."""
    import dataclasses

    from tqdm import tqdm

    from rcnet.cli.text import read_steps
    from rcnet.data.imagefile import upright
    from rcnet.deploy.denoise import count_tiles, denoise_pixels, denoise_setting_for
    from rcnet.deploy.files import PIPE, prepare, read, write
    from rcnet.figures.side_by_side import in_rows, save_picture, side_by_side

    image = read(job)
    for note in (*image.notes, *prepare(job, image)):
        print(f"{job.file}: {note}", file=sys.stderr)
    pixels, channels = image.pixels, image.pixels.shape[2]
    if channels == 3 and how.model is None and is_gray(pixels):
        pixels = pixels[:, :, :1]
    model = weights(how.model or (GRAY if pixels.shape[2] == 1 else COLOUR), how, sessions)
    white = white_of(job.file, image, how.white)
    shape = (1, pixels.shape[2], *pixels.shape[:2])
    network = model.network
    setting = read_steps(how.steps, network)
    if how.budget:
        setting = denoise_setting_for(model, how.budget, shape, tile=how.tile)
    warn_of_level(job.file, model, pixels, white)
    runs = [setting, *(n for n in network.settings if job.picture and n != setting)]
    tiles = count_tiles(model, (1, 1, *shape[2:]), how.tile)
    sigma = how.sigma if how.sigma_map is None else read_map(how.sigma_map, pixels.shape[:2])
    results = {}
    total = len(runs) * tiles
    with tqdm(total=total, desc=job.file.name, unit="tile", disable=None if total > 4 else True, leave=False) as bar:
        for n in runs:
            results[n], found = denoise_pixels(
                model, pixels, n, sigma=sigma, strength=how.strength, white=white, tile=how.tile, each=bar.update
            )
            if n == setting:
                level = found
    result = results[setting] if pixels.shape[2] == channels else results[setting].repeat(channels, axis=2)
    image = dataclasses.replace(image, pixels=result)
    write(job, image)
    if job.target != PIPE:
        print(f"{job.target} (steps {setting})" if how.budget else job.target)
    almost = "nearly no noise found: " if level < NOTHING else ""
    print(f"{job.file}: {almost}removed what amounts to sigma {level:.1f} (of 255)", file=sys.stderr)
    if job.picture:
        panels = [("input", pixels), *((f"steps {n}", results[n]) for n in network.settings)]
        shown = [(label, upright(image, panel / white)) for label, panel in panels]
        save_picture(job.picture, side_by_side(in_rows(shown)))
        print(job.picture)


def is_gray(pixels: "np.ndarray") -> bool:
    """Whether all three colours of every pixel are equal, as in a gray scan that was saved in colour."""
    return all((row[:, :1] == row[:, 1:]).all() for row in pixels)


def white_of(file: Path, image: "ImageFile", given: float | None) -> float:
    """The value that stands for white: given, or found, which is said where it is not the largest of the type."""
    import numpy as np

    from rcnet.data.imagefile import white_level

    most = float("inf") if image.pixels.dtype.kind == "f" else np.iinfo(image.pixels.dtype).max
    if given is not None:
        if not 0 < given <= most:
            raise InputError(f"--white {given:g} is not valid for {file}: give a value of its pixels, above 0")
        return given
    found = white_level(image)
    if image.pixels.dtype.kind == "u" and found < most:
        print(
            f"{file}: 16-bit pixels that go to {int(image.pixels.max())}: {found} is taken for white (--white sets it)",
            file=sys.stderr,
        )
    return found


def read_map(file: Path, shape: tuple[int, ...]) -> "Tensor":
    """The noise level at each pixel, [H, W] in levels of 255, of a gray image as it is stored: of 16 bits, 257 are a level."""
    import numpy as np
    import torch

    from rcnet.data import imagefile

    image = imagefile.read(file)
    if image.pixels.shape[2] != 1 or image.pixels.shape[:2] != shape:
        height, width = image.pixels.shape[:2]
        raise InputError(
            f"{file} is no map of this image: it has to be gray, of {shape[1]}x{shape[0]} pixels, not {width}x{height}"
        )
    return torch.from_numpy(image.pixels[:, :, 0] / np.float32(257 if image.pixels.dtype == np.uint16 else 1))


def warn_of_level(file: Path, model: "Optimized", pixels: "np.ndarray", white: float) -> None:
    """Says on stderr that weights made for one noise level are far from that of this picture."""
    from rcnet.data.noise import estimate_sigma

    trained = model.network.about.noise.sigma if model.network.about.noise else None
    if not isinstance(trained, float):
        return
    top, left = (max(side - JUDGED, 0) // 2 for side in pixels.shape[:2])
    found = estimate_sigma(pixels[top : top + JUDGED, left : left + JUDGED] / white)
    if abs(found - trained) > max(4, 0.35 * trained):
        print(
            f"{file}: these weights know noise of sigma {trained:g} alone and this picture seems to have {found:.0f}: "
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
