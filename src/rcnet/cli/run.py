"""rcnet run"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rcnet.cli.pictures import Batch, Done, Options, run_files
from rcnet.cli.text import Budget
from rcnet.errors import InputError


def run(
    inputs: Annotated[list[Path] | None, Parameter(name="IN")] = None,
    /,
    *,
    model: str,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    out_dir: Path | None = None,
    steps: str | None = None,
    budget: Budget = None,
    white: float | None = None,
    pages: Literal["all"] | None = None,
    resume: bool = False,
    tile: int | None = None,
    compare: bool = False,
    precision: str = "auto",
    threads: int | None = None,
    runtime: Literal["auto", "onnx", "torch"] = "auto",
    device: str | None = None,
) -> None:
    """Run trained weights on images, whatever task that gives an image for an image they were made for.

    As rcnet denoise, whose weights it takes too, for tasks of your own: the
    same files, the same tiles, the same pipes.

    Examples::

      rcnet run photo.jpg --model runs/mine/weights.safetensors
      rcnet run scans/ --model mine.safetensors --out-dir better/ --steps 1
      rcnet run photo.jpg --model mine.safetensors --budget 200ms -o better.png

    Parameters
    ----------
    inputs
        Images, or folders of images; - reads one from a pipe.
    model
        A file of weights, an exported .onnx file, or bundled weights (see rcnet models).
    output
        File of the result; its suffix names the format. For one input. - writes to a pipe, in the format of the input.
        Beside the input, as NAME-out, unless this or --out-dir is given.
    out_dir
        Folder for the results, under the names of the inputs; made if there is none.
    steps
        Cost: a step count of the model. The largest unless given.
    budget
        Most time or MACs for an image, e.g. 200ms or 20GMAC: the best setting that fits is taken.
    white
        The value of the file that stands for white. Found from the largest values unless given.
    pages
        all: every page of a TIFF. Files of several pages are refused unless given.
    resume
        Skip images whose results are newer than they are, with whatever options they were made.
    tile
        Side of a tile in pixels, which bounds memory. 512 unless given; 0 takes the whole image at once, as networks have
        to that do not say how far they see.
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
    """
    if not inputs:
        raise InputError("no image given: rcnet run IN... --model WEIGHTS")
    from rcnet.runtime.tiles import TILE

    tile = TILE if tile is None else tile
    batch = Batch(inputs, output, out_dir, "-out", compare, resume)
    run_files(batch, Options(model, steps, budget, white, pages, tile, precision, threads, runtime, device), changed)


def changed(done: list[Done]) -> str:
    """How much the pages of a file were changed, in words."""
    mean = sum(page.removed**2 for page in done) / len(done)
    return f"changed by {mean**0.5:.1f} (of 255), root mean square"
