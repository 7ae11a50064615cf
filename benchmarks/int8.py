"""What int8 loses at each step count, and how large the exported files are.

    python -m benchmarks.int8 --bsd BSD68/gray --colour BSD68/colour --cifar data/ --calibration BSD/train [--only NAME ...]

Every bundled network is exported in int8, for ONNX Runtime and for OpenVINO, and measured on the test images: PSNR of denoisers
(noise of sigma 25, the protocol of BSD68; told the level if they take it), error rate of classifiers, beside what `rcnet eval
--record` recorded in fp32. Sizes: of the one file that holds every step count, and of the files that it is cut to for one each.
Results go to results/int8.json, the tables to results/int8.md; a network whose weights are those of its result is not measured
again.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import rcnet
from benchmarks.page import RESULTS, kept, options, record, table
from rcnet.data.images import read_folder
from rcnet.data.labelled import Labelled
from rcnet.deploy.export import Exported, export, load_exported, read_exported
from rcnet.deploy.graphs import cut
from rcnet.deploy.int8 import calibration_images
from rcnet.evaluation import denoising_scores
from rcnet.models import bundled, read_metadata
from rcnet.network import RecurrentNet
from rcnet.setting import Setting
from rcnet.tasks.classify import read_matching
from rcnet.training.provenance import commit, made_here

SIGMA = 25
CASES = ("OpenVINO", "ONNX Runtime")


def size(path: Path) -> int:
    """Bytes of an exported network: for OpenVINO of both files."""
    return sum(file.stat().st_size for file in (path, path.with_suffix(".bin")) if file.exists())


def measure(model: RecurrentNet, args: argparse.Namespace) -> dict[str, Any]:
    """A row a step count, fp32 as it was recorded in the weights; and the sizes of files in bytes."""
    denoiser, channels = model.about.task == "denoise", model.about.channels
    recorded = next(r for r in model.metadata["results"] if r["precision"] == "fp32" and as_here(r))
    rows = [{"steps": row["steps"], "fp32": row["psnr" if denoiser else "error"]} for row in recorded["rows"]]
    if denoiser:
        images = read_folder(args.bsd if channels == 1 else args.colour, channels)
        score = partial(psnr_of, images, (SIGMA,) if model.about.takes_level else ())
    else:
        score = partial(error_of, read_matching(args.cifar, "test", model))
    seen = list(calibration_images(model, args.calibration if denoiser else args.cifar))
    sizes: dict[str, list[int]] = {}
    bits = 8
    with tempfile.TemporaryDirectory() as folder:
        for case, suffix, calibration in (("fp32", ".onnx", None), ("ONNX Runtime", ".onnx", seen), ("OpenVINO", ".xml", seen)):
            path = export(model, Path(folder) / f"{case}{suffix}", calibration=calibration)
            cuts = [len(cut(path, n.name)) for n in model.settings] if suffix == ".onnx" else []
            sizes[case] = [size(path), sum(cuts)]
            if calibration is not None:
                bits = read_exported(path)["kernel_bits"]
                for row in tqdm(rows, desc=case, disable=None):
                    row[case] = round(score(load_exported(path, row["steps"])), 4)
    about = {"data": recorded["data"], "images": recorded["images"], "kernel_bits": bits, "rows": rows, "bytes": sizes}
    return {**about, **made_here(torch.device("cpu")), "commit": commit()}


def as_here(result: dict[str, Any]) -> bool:
    """Whether a recorded result is of the images and the noise that are measured here."""
    plain = not (result.get("blind") or result.get("as_8bit"))
    return plain and result.get("sigma", SIGMA) == SIGMA and bool({"psnr", "error"} & result["rows"][0].keys())


def digest(name: str) -> str:
    """Of the tensors of bundled weights; their metadata may change."""
    return str(read_metadata(name)["weights"])


def psnr_of(images: list[np.ndarray], told: tuple[float, ...], session: Exported) -> float:
    return denoising_scores(lambda x: torch.from_numpy(session(x.numpy(), *told)), images, SIGMA)[0]


def error_of(test: Labelled, session: Exported) -> float:
    wrong = 0
    for x, y in zip(torch.split(test.images, 250), torch.split(test.labels, 250), strict=True):
        wrong += int((session((x.float() / 255).numpy()).argmax(1) != y.numpy()).sum())
    return 100 * wrong / len(test.labels)


def render(results: dict[str, Any]) -> str:
    lines = [
        "# int8: what it loses, and the sizes of exported files",
        "",
        "Rendered by `python -m benchmarks.int8`. PSNR in dB at sigma 25, error in %. Ranges are calibrated on 16 training",
        "images of BSD or 256 of CIFAR-10. The outputs of int8 convolutions are 8-bit too, but for denoisers in OpenVINO.",
        "*bits*: of kernels, 7 where the processor saturates sums of 8-bit products.",
        "",
    ]
    rows, sizes = [], []
    for name, result in results.items():
        for row in result["rows"]:
            cells = [text for case in CASES for text in (f"{row[case]:.2f}", f"{row[case] - row['fp32']:+.2f}")]
            about = [f"`{name}`", f"{result['images']} of {result['data']}", result["kernel_bits"]]
            rows.append([*about, Setting.of(row["steps"]), f"{row['fp32']:.2f}", *cells, result["commit"]])
    heads = [text for case in CASES for text in (f"int8, {case}", "change")]
    lines += table(["weights", "test images", "bits", "steps", "fp32", *heads, "commit"], rows)
    kinds = {"fp32": "fp32, .onnx", "ONNX Runtime": "int8, .onnx", "OpenVINO": "int8, .xml and .bin"}
    for name, result in results.items():
        for case, kind in kinds.items():
            one, many = (f"{count / 1e6:.2f}" if count else "" for count in result["bytes"][case])
            sizes.append([f"`{name}`", kind, one, many])
    heads = ["weights", "file", "one file, MB", "cut to one file a step count, together, MB"]
    return "\n".join([*lines, "", *table(heads, sizes), ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--bsd", type=Path, required=True, help="folder of the BSD68 images")
    parser.add_argument("--colour", type=Path, required=True, help="folder of the same images in colour")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of training images")
    parser.add_argument("--cifar", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=list(bundled()), help="these weights; all unless given")
    args = parser.parse_args()
    path = RESULTS / "int8.json"
    before = kept(path)
    results = {name: before[name] for name in bundled() if before.get(name, {}).get("weights") == digest(name)}
    for name in args.only or bundled():
        if name not in results:
            results[name] = {"weights": digest(name), **measure(rcnet.load(name), args)}
            record(path, results, render)
    print(render(results))


if __name__ == "__main__":
    main()
