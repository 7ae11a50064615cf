"""rcnet denoise"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter

from rcnet.errors import InputError

if TYPE_CHECKING:
    from rcnet.models.denoise import Denoiser

DEFAULT = "r3_fast.bsd-gray-25"


def denoise(
    inputs: Annotated[list[Path] | None, Parameter(name="IN")] = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    out_dir: Path | None = None,
    model: str = DEFAULT,
    steps: str | None = None,
    budget: str | None = None,
    tile: int | None = None,
    compare: bool = False,
    precision: str = "fp32",
    demo: bool = False,
) -> None:
    """Remove noise from images, at the cost that --steps or --budget names.

    PNG, JPEG, TIFF and WebP; 8 and 16 bit; gray and colour. The result keeps
    mode, bit depth, transparency, EXIF and colour profile. Without -o or
    --out-dir it is written beside the input, as NAME-denoised.

    Examples::

      rcnet denoise photo.png               at the most steps
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
        Bundled weights (see rcnet models) or a file of weights.
    steps
        Cost: a step count of the model, or one number a cell, e.g. 4,3,3. The largest unless given.
    budget
        Most time or MACs for an image, e.g. 200ms or 20GMAC: the most steps that fit are taken. The first image of a size is
        measured first.
    tile
        Side of a tile in pixels, which bounds memory; the result does not depend on it. 512 unless given; 0 takes the whole
        image at once.
    compare
        Also write one picture with the input and the result of every step, labelled.
    precision
        fp32, bf16 or auto (bf16 where the processor has it: faster, within about 0.01 dB).
    demo
        Noise of sigma 25 on a bundled photograph, and a table of steps, parameters, MACs, ms and PSNR; -o names the picture.
    """
    if demo:
        if inputs or out_dir or steps or budget or tile is not None or compare or model != DEFAULT:
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
    from rcnet.cli.text import check_cost, parse_steps
    from rcnet.deploy.denoise import TILE
    from rcnet.device import best_device, resolve_precision
    from rcnet.models import load
    from rcnet.models.denoise import Denoiser

    network = load(model).to(best_device())
    if not isinstance(network, Denoiser):
        raise InputError(f"{model} does not denoise: take a denoiser, e.g. {DEFAULT}")
    check_cost(steps, budget)
    own = network.per_cell(parse_steps(steps))
    precision = resolve_precision(precision, best_device())
    failed = 0
    for job in jobs:
        try:
            denoise_file(job, network, budget or own, TILE if tile is None else tile, precision)
        except InputError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            print(f"rcnet: {error}", file=sys.stderr)
    if failed:
        raise InputError(f"{failed} of {len(jobs)} images could not be denoised; the others are done")


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


def denoise_file(job: Job, network: "Denoiser", cost: str | tuple[int, ...], tile: int, precision: str) -> None:
    """One image, for a budget or at steps: read, check that the result can be written, denoise, write."""
    import torch
    from tqdm import tqdm

    from rcnet.data import imagefile
    from rcnet.deploy.denoise import count_tiles, denoise_steps_for
    from rcnet.deploy.denoise import denoise as run
    from rcnet.figures.side_by_side import save_picture, side_by_side

    image = imagefile.read(job.file)
    if job.makes_folder:
        make_folder(job.target.parent)
    imagefile.check_writable(job.target, image)
    pixels = imagefile.as_float(image)
    x = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).unsqueeze(0)
    own = (
        cost
        if isinstance(cost, tuple)
        else network.per_cell(denoise_steps_for(network, cost, tuple(x.shape), tile=tile, precision=precision))
    )
    runs = [own]
    if job.picture:
        runs += [steps for steps in map(network.per_cell, network.steps) if steps != own]
    total = len(runs) * count_tiles(network, tuple(x.shape), tile)
    results = {}
    with tqdm(total=total, desc=job.file.name, unit="tile", disable=None if total > 4 else True, leave=False) as bar:
        for steps in runs:
            y = run(network, x, steps, tile=tile, precision=precision, each=bar.update)
            results[steps] = y[0].numpy().transpose(1, 2, 0)
    imagefile.write(job.target, imagefile.from_float(image, results[own]))
    print(f"{job.target} ({steps_label(own)})" if isinstance(cost, str) else job.target)
    if job.picture:
        panels = [("input", pixels), *((steps_label(steps), results[steps]) for steps in sorted(results))]
        save_picture(job.picture, side_by_side([[(label, imagefile.upright(image, panel)) for label, panel in panels]]))
        print(job.picture)


def steps_label(steps: tuple[int, ...]) -> str:
    """1 step, 4 steps, or steps 4,3,3."""
    if len(set(steps)) > 1:
        return "steps " + ",".join(map(str, steps))
    return f"{steps[0]} step{'s' if steps[0] > 1 else ''}"


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
