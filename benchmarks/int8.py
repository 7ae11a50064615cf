"""What int8 loses at each step count, and how large the exported files are.

    python -m benchmarks.int8 --bsd BSD68/ --cifar data/ --bsd-calibration BSD/train [--only NAME ...] [--images N]

Every bundled network is exported in fp32 and in int8, for ONNX Runtime and for OpenVINO, and measured on the test images: PSNR
of denoisers (noise of sigma 25, the protocol of BSD68), error rate of classifiers. Sizes: of the one file that holds every step
count, and of one file a step count together. Results go to results/int8.json, the tables to results/int8.md; a network that is
there already is not measured again.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import rcnet
from rcnet.cell import RecurrentNet
from rcnet.data.images import read_folder
from rcnet.deploy.classify import read_matching
from rcnet.deploy.export import export, load_exported
from rcnet.deploy.int8 import calibration_images
from rcnet.evaluation import denoising_scores
from rcnet.models import bundled
from rcnet.models.denoise import Denoiser

RESULTS = Path(__file__).parent.parent / "results"
RUNTIMES = {".onnx": "ONNX Runtime", ".xml": "OpenVINO"}


def size(path: Path) -> int:
    """Bytes of an exported network: for OpenVINO of both files."""
    return sum(file.stat().st_size for file in (path, path.with_suffix(".bin")) if file.exists())


def measure(model: RecurrentNet, args: argparse.Namespace) -> dict[str, Any]:
    denoiser = isinstance(model, Denoiser)
    score: Callable[[Callable[[np.ndarray], np.ndarray]], float]
    if denoiser:
        images = read_folder(args.bsd, model.channels)
        images = [images[k] for k in np.linspace(0, len(images) - 1, min(args.images, len(images))).round().astype(int)]

        def score(session: Callable[[np.ndarray], np.ndarray]) -> float:
            def call(x: Tensor) -> Tensor:
                return torch.from_numpy(session(x.numpy()))

            return denoising_scores(call, images, 25, each=bar.update)[0]
    else:
        test = read_matching(args.cifar, "test", model)

        def score(session: Callable[[np.ndarray], np.ndarray]) -> float:
            wrong = 0
            for x, y in zip(torch.split(test.images, 250), torch.split(test.labels, 250), strict=True):
                wrong += int((session((x.float() / 255).numpy()).argmax(1) != y.numpy()).sum())
                bar.update(len(y))
            return 100 * wrong / len(test.labels)

    count = len(images) if denoiser else len(test.labels)
    rows: list[dict[str, Any]] = [{"steps": n} for n in model.steps]
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name, tqdm(total=3 * count * len(rows), disable=None) as bar:
        folder = Path(name)
        cases = {"fp32": (".onnx", False), "int8, ONNX Runtime": (".onnx", True), "int8, OpenVINO": (".xml", True)}
        for case, (suffix, int8) in cases.items():
            seen = list(calibration_images(model, args.bsd_calibration if denoiser else args.cifar)) if int8 else None
            path = export(model, folder / f"all{suffix}", calibration=seen)
            sizes[case] = size(path)
            one = [size(export(model, folder / f"one{suffix}", steps=[n], calibration=seen)) for n in model.steps]
            sizes[f"{case}, one file a step count"] = sum(one)
            for row in rows:
                row[case] = round(score(load_exported(path, row["steps"])), 4)
    return {"data": "BSD68" if denoiser else "CIFAR-10 test", "images": count, "rows": rows, "bytes": sizes}


def render(results: dict[str, Any]) -> str:
    lines = [
        "# int8: what it loses, and the sizes of exported files",
        "",
        "Rendered by `python -m benchmarks.int8`. PSNR in dB at sigma 25, error in %. Ranges are calibrated on 16 training",
        "images of BSD or 256 of CIFAR-10. In ONNX Runtime the outputs of int8 convolutions are 8-bit too; in OpenVINO they are",
        "fp32.",
        "",
        "| weights | test images | steps | fp32 | int8, OpenVINO | change | int8, ONNX Runtime | change |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for row in result["rows"]:
            cells = [f"{row[kind]:.2f} | {row[kind] - row['fp32']:+.2f}" for kind in ("int8, OpenVINO", "int8, ONNX Runtime")]
            about = f"| `{name}` | {result['images']} of {result['data']} | {row['steps']} "
            lines.append(f"{about}| {row['fp32']:.2f} | {cells[0]} | {cells[1]} |")
    lines += ["", "| weights | file | one file, MB | one file a step count, together, MB |", "|---|---|---|---|"]
    for name, result in results.items():
        for kind in ("fp32", "int8, ONNX Runtime", "int8, OpenVINO"):
            one, many = (result["bytes"][key] / 1e6 for key in (kind, f"{kind}, one file a step count"))
            lines.append(f"| `{name}` | {kind} | {one:.2f} | {many:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bsd", type=Path, required=True, help="folder of the BSD68 images")
    parser.add_argument("--bsd-calibration", type=Path, required=True, help="folder of training images")
    parser.add_argument("--cifar", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=list(bundled()), help="these weights; all unless given")
    parser.add_argument("--images", type=int, default=68, help="so many of the BSD68 images, evenly spread")
    args = parser.parse_args()
    path = RESULTS / "int8.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in args.only or bundled():
        if name not in results:
            results[name] = measure(rcnet.load(name), args)
            path.write_text(json.dumps(results, indent=1) + "\n")
            (RESULTS / "int8.md").write_text(render(results))
    print(render(results))


if __name__ == "__main__":
    main()
