"""Denoisers people use today beside r3 and r3_fast: PSNR against seconds an image, in one interleaved run.

    pip install 'rcnet[bench]'
    python -m benchmarks.denoise BSD68/ --calibration BSD/train [--images N] [--threads N]

Every method denoises the same images (noise of sigma 25, the protocol of BSD68), one image after the other, each method in
turns, all with the same number of threads (a short call is made twice and the second timed: the threads of the runtime that had
the turn before may still spin). Weights of DnCNN and FFDNet are not at hand: their graphs are timed with random weights, in
which a batch norm stands behind every inner convolution as in the originals (and is folded where ours are), and their PSNR is
the published one on all 68 images. S3 is timed likewise. Results go to results/denoise.json, the table to results/denoise.md,
the picture to results/denoise.png.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import rcnet
from rcnet.cell import StandardCell
from rcnet.cost import macs
from rcnet.cost.macs import parameters
from rcnet.data.images import list_images, read_image, to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.deploy.export import export, load_exported
from rcnet.deploy.int8 import calibration_images
from rcnet.deploy.optimize import optimize
from rcnet.device import autocast, hardware
from rcnet.evaluation.denoise import psnr, to_uint8_levels
from rcnet.models import create_model, read_metadata
from rcnet.models.denoise import Denoiser
from rcnet.models.layers import ConvBody, conv3x3

RESULTS = Path(__file__).parent.parent / "results"
SIGMA, SIZE = 25, (321, 481)
SHORT = 0.25  # seconds: a shorter call is made twice and timed then, for threads of the runtime before it may still spin
# PSNR on BSD68 at sigma 25 as published: Zhang et al. 2017 (DnCNN-S, BM3D), 2018 (FFDNet).
PUBLISHED = {"BM3D": 28.57, "DnCNN": 29.23, "FFDNet": 29.19}
OURS = {"r3_fast": "r3_fast.bsd-gray-25", "r3": "r3.bsd-gray-25"}


class Method(NamedTuple):
    """One way to denoise float [1, 1, H, W]; `path`: what runs it."""

    name: str
    steps: int | None
    precision: str
    path: str
    call: Callable[[Tensor], Tensor]
    parameters: int | None = None
    macs: int | None = None
    trained: bool = True


class NoiseMap(nn.Module):
    """Adds FFDNet's channel with the noise level."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x[:, :1], SIGMA / 255)], 1)


def plain(convs: int, sub: int) -> Denoiser:
    """The graph of `convs` convolutions of 64 channels with batch norms between: DnCNN, and with sub=2 FFDNet."""
    inner, channels = convs - 2, sub**2
    before = {"unshuffle": nn.PixelUnshuffle(sub), "map": NoiseMap()} if sub > 1 else {}
    norms = [nn.ModuleList([nn.BatchNorm2d(64)]) for _ in range(inner)]
    net = Denoiser(
        1,
        sub,
        1,
        **before,
        stem=conv3x3(channels + (sub > 1), 64, bias=True),
        relu=nn.ReLU(),
        cell=StandardCell([ConvBody(64) for _ in range(inner)], norms),
        head=conv3x3(64, channels, bias=True),
        **({"shuffle": nn.PixelShuffle(sub)} if sub > 1 else {}),
    )
    net.architecture = create_model("s3").architecture  # export asks for one
    return net.eval()


def classical(threads: int) -> Iterator[Method]:
    """What needs no training. Strengths are those that the libraries' own documents give for noise of a known sigma."""
    import bm3d
    import cv2
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

    cv2.setNumThreads(threads)
    s = SIGMA / 255

    def of_arrays(call: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.from_numpy(np.ascontiguousarray(call(x[0, 0].numpy()), np.float32))[None, None]

    def opencv(x: np.ndarray) -> np.ndarray:
        return cv2.fastNlMeansDenoising(np.rint(x.clip(0, 1) * 255).astype(np.uint8), None, h=SIGMA) / 255

    def nlm(x: np.ndarray) -> np.ndarray:
        return denoise_nl_means(x, patch_size=5, patch_distance=6, h=0.8 * s, sigma=s, fast_mode=True)

    def wavelet(x: np.ndarray) -> np.ndarray:
        return denoise_wavelet(x, sigma=s, method="BayesShrink", mode="soft", rescale_sigma=True)

    for name, path, call in (
        ("BM3D", "bm3d", lambda x: bm3d.bm3d(x, s)),
        ("non-local means", "scikit-image", nlm),
        ("wavelet, BayesShrink", "scikit-image", wavelet),
        ("total variation", "scikit-image", lambda x: denoise_tv_chambolle(x, weight=0.1)),
        ("fast non-local means, 8-bit", "OpenCV", opencv),
    ):
        yield Method(name, None, "", path, of_arrays(call))


def networks(name: str, model: Denoiser, calibration: Path, folder: Path, threads: int, trained: bool) -> Iterator[Method]:
    """Every precision and path of one network, at each of its step counts."""
    counts = {n: (parameters(rcnet.unroll(model, n)), macs(model, n, SIZE)) for n in model.steps}
    shown = {n: n if len(model.steps) > 1 else None for n in model.steps}
    kinds = (("fp32", ".xml"), ("int8", ".xml"), ("int8", ".onnx"))
    files = {(kind, suffix): folder / f"{name}-{kind}{suffix}" for kind, suffix in kinds}
    for (kind, _), path in files.items():
        images = calibration_images(model, calibration) if kind == "int8" else None
        export(model, path, calibration=images)
    sessions = {precision: optimize(model, precision=precision) for precision in ("fp32", "bf16")}

    def eager(n: int, precision: str) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            with autocast(precision, x.device):
                return model(x.contiguous(memory_format=torch.channels_last), n).float()

        return call

    def optimized(n: int, precision: str) -> Callable[[Tensor], Tensor]:
        return lambda x: sessions[precision](x, n)

    def exported(n: int, kind: str, suffix: str, precision: str = "fp32") -> Callable[[Tensor], Tensor]:
        session = load_exported(files[kind, suffix], n, threads=threads, precision=precision)
        return lambda x: torch.from_numpy(session(x.numpy()))

    for n in model.steps:
        for precision, path, call in (
            ("fp32", "eager", eager(n, "fp32")),
            ("fp32", "optimize", optimized(n, "fp32")),
            ("fp32", "OpenVINO", exported(n, "fp32", ".xml")),
            ("bf16", "eager", eager(n, "bf16")),
            ("bf16", "optimize", optimized(n, "bf16")),
            ("bf16", "OpenVINO", exported(n, "fp32", ".xml", "bf16")),
            ("int8", "OpenVINO", exported(n, "int8", ".xml")),
            ("int8", "ONNX Runtime", exported(n, "int8", ".onnx")),
        ):
            yield Method(name, shown[n], precision, path, call, *counts[n], trained)


@torch.inference_mode()
def measure(methods: list[Method], paths: list[Path]) -> list[dict[str, Any]]:
    """A row a method: the median seconds and the mean PSNR over the images."""
    first = protocol_noise(read_image(paths[0], 1), SIGMA)
    for method in methods:
        method.call(first)
    seconds: list[list[float]] = [[] for _ in methods]
    scores: list[list[float]] = [[] for _ in methods]
    for path in tqdm(paths, unit="image", disable=None):
        image = read_image(path, 1)
        clean, noisy = to_tensor(image), protocol_noise(image, SIGMA)
        for k, method in enumerate(methods):
            if method.macs and statistics.median(seconds[k] or [0]) < SHORT:
                method.call(noisy)
            started = time.perf_counter()
            output = method.call(noisy)
            seconds[k].append(time.perf_counter() - started)
            scores[k].append(psnr(to_uint8_levels(output), clean))
    rows = []
    for method, taken, score in zip(methods, seconds, scores, strict=True):
        row = {key: value for key, value in method._asdict().items() if key not in ("call", "trained")}
        measured = round(float(np.mean(score)), 3) if method.trained else None
        published = None if method.trained else PUBLISHED.get(method.name)
        rows.append({**row, "seconds": statistics.median(taken), "psnr": measured, "published": published})
    return rows


def best(rows: list[dict[str, Any]], name: str, steps: int | None, precision: str) -> dict[str, Any]:
    """The fastest path of a network in one precision."""
    of = [row for row in rows if (row["name"], row["steps"], row["precision"]) == (name, steps, precision)]
    return min(of, key=lambda row: row["seconds"])


def ratios(rows: list[dict[str, Any]]) -> list[tuple[str, str, float, bool]]:
    """What was asked of the networks: what, at least or at most how much, what was measured, and whether it is met."""
    bm3d = next(row for row in rows if row["name"] == "BM3D")
    found = []

    def add(what: str, sign: str, bound: float, value: float) -> None:
        found.append((what, f"{sign} {bound:g}", value, value >= bound if sign == ">=" else value <= bound))

    for name, most in (("r3", 4), ("r3_fast", 3)):
        for n in (1, most):
            eager = next(r for r in rows if (r["name"], r["steps"], r["precision"], r["path"]) == (name, n, "fp32", "eager"))
            for precision, bound in (("fp32", 1.2), ("bf16", 1.7), ("int8", 3)):
                value = eager["seconds"] / best(rows, name, n, precision)["seconds"]
                add(f"{name}, steps {n}: best {precision} against eager fp32", ">=", bound, value)
    fast = {precision: best(rows, "r3_fast", 1, precision) for precision in ("bf16", "int8")}
    add("r3_fast, steps 1, bf16: PSNR above BM3D's, dB", ">=", 0, fast["bf16"]["psnr"] - bm3d["psnr"])
    add("r3_fast, steps 1, bf16: BM3D's time to its", ">=", 200, bm3d["seconds"] / fast["bf16"]["seconds"])
    add("r3_fast, steps 1, int8: PSNR above BM3D's, dB", ">=", 0, fast["int8"]["psnr"] - bm3d["psnr"])
    add("r3_fast, steps 1, int8: BM3D's time to its", ">=", 500, bm3d["seconds"] / fast["int8"]["seconds"])
    for precision in ("fp32", "bf16", "int8"):
        ours, ffdnet, dncnn = (
            best(rows, name, n, precision)["seconds"] for name, n in (("r3_fast", 3), ("FFDNet", None), ("DnCNN", None))
        )
        add(f"r3_fast, steps 3, {precision}: time to FFDNet's", "<=", 1, ours / ffdnet)
        for n in (1, 2, 3, 4):
            add(f"r3, steps {n}, {precision}: time to DnCNN's", "<=", 1, best(rows, "r3", n, precision)["seconds"] / dncnn)
    quickest = min((best(rows, "r3", 1, precision) for precision in ("fp32", "bf16", "int8")), key=lambda row: row["seconds"])
    add(f"r3, steps 1, {quickest['precision']}: BM3D's time to its", ">=", 30, bm3d["seconds"] / quickest["seconds"])
    return found


def recorded() -> dict[str, dict[str, float]]:
    """PSNR of the bundled weights by step count on all 68 images, as `rcnet eval --record` recorded it."""
    return {name: {str(row["steps"]): row["psnr"] for row in read_metadata(name)["results"][0]["rows"]} for name in OURS.values()}


def render(result: dict[str, Any]) -> str:
    rows = result["rows"]
    above = [
        f"`{name}` is above {other}'s published {value} at steps {', '.join(found) or 'none'}"
        for name, steps in result["recorded"].items()
        for other, value in PUBLISHED.items()
        if other != "DnCNN"
        for found in [[n for n, psnr in steps.items() if psnr > value]]
    ]
    bm3d = next(row for row in rows if row["name"] == "BM3D")
    lines = [
        "# Denoisers: PSNR against seconds an image",
        "",
        f"Rendered by `python -m benchmarks.denoise`: {result['images']} of the BSD68 images, evenly spread, noise of sigma 25;",
        f"{result['hardware']}, torch {result['torch']}; methods in turns, image by image; medians. *published*: on all 68",
        "images, of weights that are not at hand here; those graphs and S3 are timed with random weights. int8 in OpenVINO keeps",
        "sums in fp32; in ONNX Runtime the outputs of convolutions are 8-bit too.",
        "",
        "![PSNR against seconds](denoise.png)",
        "",
        "| method | steps | precision | runs in | parameters | GMAC, 321x481 | ms | BM3D's time to it | PSNR dB | above BM3D |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        published = f"{row['published']} *published*" if row["published"] else ""
        measured = f"{row['psnr']:.2f}" if row["psnr"] is not None else published
        over = f"{row['psnr'] - bm3d['psnr']:+.2f}" if row["psnr"] is not None else ""
        size = [f"{row['parameters']:,}", f"{row['macs'] / 1e9:.2f}"] if row["macs"] else ["", ""]
        cells = [row["name"], row["steps"] or "", row["precision"], row["path"], *size, f"{1000 * row['seconds']:.1f}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {bm3d['seconds'] / row['seconds']:.0f} | {measured} | {over} |")
    lines += ["", f"On all 68 images in fp32, {'; '.join(above)}."]
    lines += ["", "## What was asked", "", "| what | asked | measured | |", "|---|---|---|---|"]
    lines += [f"| {what} | {asked} | {value:.2f} | {'met' if met else 'missed'} |" for what, asked, value, met in ratios(rows)]
    return "\n".join([*lines, ""])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The frontier: the fastest path of each network, step count and precision."""
    from rcnet.figures.plots import page, style, to_image

    with page(4.2) as figure:
        axes = figure.add_subplot()
        place = 0
        for name, label, most in (("r3_fast", "r3_fast", 3), ("r3", "R3", 4)):
            for precision in ("fp32", "bf16", "int8"):
                points = [best(rows, name, n, precision) for n in range(1, most + 1)]
                x, y = [1000 * p["seconds"] for p in points], [p["psnr"] for p in points]
                axes.plot(x, y, label=f"{label}, {precision}, steps 1 to {most}", markersize=4, **style(place))
                place += 1
        for row in rows:
            if row["macs"] is None:
                axes.plot(1000 * row["seconds"], row["psnr"], "k*", markersize=7)
                side = "right" if row["seconds"] > 1 else "left"
                offset = (-6, 3) if side == "right" else (6, 3)
                where = (1000 * row["seconds"], row["psnr"])
                axes.annotate(row["name"], where, xytext=offset, textcoords="offset points", fontsize=8, ha=side)
        axes.set(xscale="log", xlabel="ms an image, 321x481, gray", ylabel="PSNR, dB, sigma 25")
        axes.legend(fontsize=8, loc=(0.02, 0.5))
        to_image(figure).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the BSD68 images")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of training images, for int8")
    parser.add_argument("--images", type=int, default=68, help="so many of them, evenly spread")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    files = list_images(args.data)
    files = [files[k] for k in np.linspace(0, len(files) - 1, min(args.images, len(files))).round().astype(int)]
    with tempfile.TemporaryDirectory() as folder:
        methods = list(classical(args.threads))
        for name, model, trained in (
            *((name, rcnet.load(weights), True) for name, weights in OURS.items()),
            ("S3^4", create_model("s3").eval(), False),
            ("FFDNet", plain(15, 2), False),
            ("DnCNN", plain(17, 1), False),
        ):
            print(f"exporting {name}", flush=True)
            methods += networks(name, model, args.calibration, Path(folder), args.threads, trained)
        rows = measure(methods, files)
    result = {
        "hardware": hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "images": len(files),
        "sigma": SIGMA,
        "recorded": recorded(),
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "denoise.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "denoise.md").write_text(render(result))
    draw(rows, args.out / "denoise.png")
    print(render(result))


if __name__ == "__main__":
    main()
