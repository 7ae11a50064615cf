"""rcnet eval"""

import json
import sys
from pathlib import Path

from rcnet.cli.text import Json
from rcnet.errors import InputError


def evaluate(
    model: str,
    /,
    *,
    data: Path,
    sigma: float = 25.0,
    steps: str = "all",
    as_8bit: bool = False,
    precision: str = "fp32",
    json_output: Json = False,
    record: bool = False,
) -> None:
    """Measure a denoiser: PSNR and SSIM of a folder of clean images, with noise added by the protocol of BSD68.

    The protocol is that of BSD68. The noise of every image is that of
    np.random.RandomState(0).normal(0, sigma/255), neither clipped nor rounded;
    the output is clamped and rounded to 8 bits; PSNR is that of the whole
    image, and the mean over images is printed.

    Examples::

      rcnet eval r3_fast.bsd-gray-25 --data BSD68/ --sigma 25
      rcnet eval runs/mine/weights.safetensors --data photos/ --steps 2

    Parameters
    ----------
    model
        Bundled weights (see rcnet models) or a file of weights.
    data
        Folder of clean images (or one with a folder named test in it).
    sigma
        Standard deviation of the noise, in levels of 255.
    steps
        A step count of the model, or all.
    as_8bit
        Clip and round the noisy images first, as 8-bit files hold them.
    precision
        fp32, bf16 or auto.
    json_output
        Print JSON.
    record
        Also write the figures into the metadata of the file of weights.
    """
    from tqdm import tqdm

    from rcnet.cli.text import parse_steps, table
    from rcnet.data.images import read_folder, split_folder
    from rcnet.data.noise import check_sigma
    from rcnet.device import best_device, resolve_precision
    from rcnet.evaluation import denoising_results
    from rcnet.models import load
    from rcnet.models.denoise import Denoiser
    from rcnet.models.files import find, save

    network = load(model)
    if not isinstance(network, Denoiser):
        raise InputError(f"{model} does not denoise")
    check_sigma(sigma)
    asked = parse_steps(steps) if steps != "all" else None
    counts = network.steps if asked is None else (asked,)
    for n in counts:
        network.per_cell(n)
    device = best_device()
    precision = resolve_precision(precision, device)
    folder = split_folder(data, "test")
    images = read_folder(folder, network.channels)
    network.to(device)
    with tqdm(total=len(counts) * len(images), unit="image", disable=None, leave=False) as bar:
        rows = denoising_results(network, images, sigma, counts, as_8bit=as_8bit, precision=precision, each=bar.update)
    name = folder.name or folder.resolve().name
    about = {"data": name, "images": len(images), "sigma": sigma, "as_8bit": as_8bit, "precision": precision}
    result = {**about, "rows": rows}
    if json_output:
        print(json.dumps({"model": model, **result}, indent=1))
    else:
        print(f"{model} on {len(images)} images of {folder}, sigma {sigma:g}")
        print(table(("steps", "PSNR dB", "SSIM"), [(r["steps"], f"{r['psnr']:.3f}", f"{r['ssim']:.4f}") for r in rows]))
    if record:
        same = [r for r in network.metadata["results"] if all(r.get(key) == value for key, value in about.items())]
        kept = [r for r in network.metadata["results"] if r not in same]
        measured = {str(row["steps"]): row for r in [*same, result] for row in r["rows"]}
        result["rows"] = sorted(measured.values(), key=lambda row: str(row["steps"]))
        metadata = {key: value for key, value in network.metadata.items() if key not in ("format", "architecture")}
        save(network, find(model), **{**metadata, "results": [*kept, result]})
        print(f"recorded in {find(model)}", file=sys.stderr)
