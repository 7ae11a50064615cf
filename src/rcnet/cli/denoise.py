"""rcnet denoise"""

import math
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rcnet.cli.pictures import Batch, Done, Options, run_files
from rcnet.cli.text import Budget
from rcnet.errors import InputError

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
    runtime: Literal["auto", "onnx", "torch"] = "auto",
    device: str | None = None,
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
        Bundled weights (see rcnet models), an exported .onnx file or a file of weights. r3_fast.photo unless given,
        and r3_fast.gray for gray images.
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
        fp32; bf16, which needs torch and a processor that has it; or auto: fp32, or bf16 for much work where that was measured
        to be faster. They differ by about 0.01 dB.
    threads
        Threads of the processor; one per core unless given.
    runtime
        onnx: ONNX Runtime, for bundled weights and exported .onnx files. torch: bundled weights and files of weights. The one
        that can, or that is faster, unless given.
    device
        cpu, or what else the installed ONNX Runtime or torch offers, e.g. cuda; rcnet doctor lists it. The processor, or NVIDIA's
        GPU where torch is installed, unless given.
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
    if sigma is not None and sigma_map is not None:
        raise InputError("give either --sigma or --sigma-map")
    if sigma is not None and not 0 <= sigma <= 255:
        raise InputError(f"--sigma {sigma:g} is not valid: give the noise level in levels of 255, from 0 to 255")
    from rcnet.runtime.tiles import TILE

    tile = TILE if tile is None else tile
    batch = Batch(inputs, output, out_dir, "-denoised", compare, resume)
    told = (sigma, sigma_map, strength)
    run_files(batch, Options(model, steps, budget, white, pages, tile, precision, threads, runtime, device, *told), found)


def found(done: list[Done]) -> str:
    """What was found in the pages of a file and what was removed, in words."""
    removed, strength = math.sqrt(sum(page.removed**2 for page in done) / len(done)), done[0].strength
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


def run_demo(picture: Path) -> None:
    """The table and the picture of `rcnet denoise --demo`."""
    from rcnet.cli.text import count, progress, table
    from rcnet.figures.demo import ROUNDS, demo
    from rcnet.figures.side_by_side import save_picture

    if picture.suffix.lower() != ".png":
        raise InputError(f"the picture of the demo is a PNG: {picture} does not end in .png")
    if not picture.parent.is_dir() or picture.is_dir():
        raise InputError(f"{picture} cannot be written: its folder does not exist, or it is a folder")
    with progress(1 + ROUNDS, "denoising at every step") as step:
        rows, image, about = demo(step)
    lines = [
        (r["model"], r["steps"], f"{r['parameters']:,}", count(r["macs"]), f"{r['ms']:.0f}", f"{r['psnr']:.2f}") for r in rows
    ]
    print(about)
    print(table(("model", "steps", "parameters", "MACs", "ms", "PSNR dB"), lines))
    save_picture(picture, image)
    print(f"the picture: {picture}")
