"""rcnet denoise"""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rcnet.errors import InputError

DEFAULT = "r3_fast.bsd-gray-25"


def denoise(
    inputs: Annotated[list[Path] | None, Parameter(name="IN")] = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    out_dir: Path | None = None,
    model: str = DEFAULT,
    steps: str | None = None,
    tile: int | None = None,
    compare: bool = False,
    precision: str = "fp32",
    demo: bool = False,
) -> None:
    """Remove noise from images, at the cost that --steps names.

    PNG, JPEG, TIFF and WebP; 8 and 16 bit; gray and colour. The result keeps
    mode, bit depth, transparency, EXIF and colour profile. Without -o or
    --out-dir it is written beside the input, as NAME-denoised.

    Examples::

      rcnet denoise photo.png               at the most steps
      rcnet denoise photo.jpg -o clean.png --steps 1
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
        if inputs:
            raise InputError("--demo brings its own photograph: leave the images out")
        run_demo(output or Path("rcnet-demo.png"))
        return
    if not inputs:
        raise InputError("no image given: rcnet denoise IN..., e.g. rcnet denoise photo.png (or rcnet denoise --demo)")
    if output and out_dir:
        raise InputError("give either -o for one result or --out-dir for a folder of them")
    files = expand(inputs)
    if output and len(files) > 1:
        raise InputError(f"-o takes one result and there are {len(files)} images: give --out-dir")
    from rcnet.cli.text import parse_steps
    from rcnet.deploy.denoise import TILE
    from rcnet.models import load

    targets = [target_of(file, output, out_dir) for file in files]
    check_targets(files, targets)
    network = load(model)
    own = network.per_cell(parse_steps(steps))
    if out_dir:
        out_dir.mkdir(parents=True, exist_ok=True)
    failed = 0
    for file, target in zip(files, targets, strict=True):
        try:
            denoise_file(file, target, network, own, TILE if tile is None else tile, precision, compare)
        except InputError as error:
            if len(files) == 1:
                raise
            failed += 1
            print(f"rcnet: {error}", file=sys.stderr)
    if failed:
        raise InputError(f"{failed} of {len(files)} images could not be denoised; the others are done")


def expand(inputs: list[Path]) -> list[Path]:
    """The files named, and the images of the folders named."""
    from rcnet.data.images import list_images

    return [file for path in inputs for file in (list_images(path) if path.is_dir() else [path])]


def target_of(file: Path, output: Path | None, out_dir: Path | None) -> Path:
    if output:
        return output
    return out_dir / file.name if out_dir else file.with_name(f"{file.stem}-denoised{file.suffix}")


def check_targets(files: list[Path], targets: list[Path]) -> None:
    sources = {file.resolve() for file in files}
    seen: dict[Path, Path] = {}
    for file, target in zip(files, targets, strict=True):
        place = target.resolve()
        if place in sources:
            raise InputError(f"{target} would overwrite an input: name another file or folder for the result")
        if place in seen:
            raise InputError(f"{seen[place]} and {file} would both be written to {target}")
        seen[place] = file


def denoise_file(file: Path, target: Path, network, own, tile: int, precision: str, compare: bool) -> None:  # type: ignore[no-untyped-def]
    """One image: read, check that the result can be written, denoise, write."""
    import torch
    from tqdm import tqdm

    from rcnet.data import imagefile
    from rcnet.deploy.denoise import count_tiles
    from rcnet.deploy.denoise import denoise as run
    from rcnet.device import best_device, resolve_precision
    from rcnet.figures.side_by_side import save_picture, side_by_side

    image = imagefile.read(file)
    imagefile.check_writable(target, image)
    device = best_device()
    network.to(device)
    precision = resolve_precision(precision, device)
    pixels = imagefile.as_float(image)
    x = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).unsqueeze(0)
    runs = [own] + [network.per_cell(n) for n in network.steps if compare and network.per_cell(n) != own]
    total = len(runs) * count_tiles(network, tuple(x.shape), tile)
    results = {}
    with tqdm(total=total, desc=file.name, unit="tile", disable=None if total > 4 else True, leave=False) as bar:
        for choice in runs:
            y = run(network, x, choice, tile=tile, precision=precision, each=bar.update)
            results[choice] = y[0].numpy().transpose(1, 2, 0)
    imagefile.write(target, imagefile.from_float(image, results[own]))
    print(target)
    if compare:
        picture = target.with_name(f"{target.stem.removesuffix('-denoised')}-compare.png")
        unified = [(f"{n} step{'s' if n > 1 else ''}", results[network.per_cell(n)]) for n in network.steps]
        save_picture(picture, side_by_side([[("input", pixels), *unified]]))
        print(picture)


def run_demo(picture: Path) -> None:
    """The table and the picture of `rcnet denoise --demo`."""
    from rcnet.cli.text import count, table
    from rcnet.figures.demo import demo
    from rcnet.figures.side_by_side import save_picture

    if picture.suffix.lower() != ".png":
        raise InputError(f"the picture of the demo is a PNG: {picture} does not end in .png")
    rows, image, about = demo()
    lines = [
        (r["model"], r["steps"], f"{r['parameters']:,}", count(r["macs"]), f"{r['ms']:.0f}", f"{r['psnr']:.2f}") for r in rows
    ]
    print(about)
    print(table(("model", "steps", "parameters", "MACs", "ms", "PSNR dB"), lines))
    save_picture(picture, image)
    print(f"the picture: {picture}")
