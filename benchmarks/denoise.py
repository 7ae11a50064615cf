"""Denoisers people use today beside r3 and r3_fast: PSNR against seconds an image, in one interleaved run.

    pip install 'rcnet[bench]'
    python -m benchmarks.denoise BSD68/gray --colour BSD68/colour --calibration BSD/train [--images N] [--threads N]

Gray and colour are measured one after the other; where a folder is not given, what results/denoise.json holds of it stays. Every
method denoises the same images (noise of sigma 25, the protocol of BSD68), one image after the other, each method in turns, all
with the same number of threads (a short call is made twice and the second timed: the threads of the runtime that had the turn
before may still spin). Weights of DnCNN and FFDNet are not at hand: their graphs are timed with random weights, in which a batch
norm stands behind every inner convolution as in the originals (and is folded where ours are), and their PSNR is the published one
on all 68 images. S3 is timed likewise. bf16 is measured where the processor has it. Results go to results/denoise.json, the
tables to results/denoise.md, the pictures to results/denoise.png and, of the settings of r3_fast, results/dial.png; Ctrl-C keeps
the images that were measured.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import rcnet
from benchmarks import classical
from benchmarks.classical import SHORT, evenly, on_tensors, timed
from benchmarks.page import RESULTS, asked_table, kept, options, record, table
from rcnet.about import About
from rcnet.cell import StandardCell
from rcnet.cost import macs
from rcnet.cost.counting import parameters
from rcnet.data.images import list_images, read_image, to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.deploy.export import export, load_exported
from rcnet.deploy.int8 import calibration_images
from rcnet.deploy.optimize import optimize
from rcnet.device import autocast, gains_by_bf16, hardware
from rcnet.evaluation.denoise import psnr, to_uint8_levels
from rcnet.models import create_model, read_metadata
from rcnet.models.denoise import Denoiser
from rcnet.models.layers import ConvBody, conv3x3
from rcnet.setting import Setting
from rcnet.training.provenance import commit

SIGMA, SIZE = 25, (321, 481)
# PSNR on all 68 images of BSD68 at sigma 25 as published: Zhang et al. 2017 (DnCNN-S, CDnCNN-B, BM3D), 2018 (FFDNet).
PUBLISHED = {"BM3D": 28.57, "DnCNN": 29.23, "FFDNet": 29.19}
COLOUR_PUBLISHED = {"CBM3D": 30.71, "CDnCNN-B": 31.23, "FFDNet": 31.21}
OURS = {"r3_fast": "r3_fast.bsd-gray-25", "r3": "r3.bsd-gray-25"}


class Method(NamedTuple):
    """One way to denoise float [1, C, H, W]; `path`: what runs it."""

    name: str
    steps: int | tuple[int, ...] | None
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


def plain(convs: int, sub: int, channels: int = 1, width: int = 64) -> Denoiser:
    """The graph of `convs` convolutions of `width` channels with batch norms between: DnCNN, and with sub=2 FFDNet."""
    inner, planes = convs - 2, channels * sub**2
    before = {"unshuffle": nn.PixelUnshuffle(sub), "map": NoiseMap()} if sub > 1 else {}
    norms = [nn.ModuleList([nn.BatchNorm2d(width)]) for _ in range(inner)]
    net = Denoiser(
        About("denoise", channels, sub=sub, reach=(sub * (2 + (sub > 1)), sub)),
        **before,
        stem=conv3x3(planes + (sub > 1), width, bias=True),
        relu=nn.ReLU(),
        cell=StandardCell([ConvBody(width) for _ in range(inner)], norms),
        head=conv3x3(width, planes, bias=True),
        **({"shuffle": nn.PixelShuffle(sub)} if sub > 1 else {}),
    )
    net.architecture = create_model("s3", in_chans=channels).architecture  # export asks for one
    return net.eval()


# What needs no training. Strengths are those that the libraries' own documents give for noise of a known sigma.
CLASSICAL = (
    ("BM3D", "bm3d", lambda x: classical.bm3d(x, SIGMA)),
    ("non-local means", "scikit-image", lambda x: classical.skimage_nlm(x, SIGMA)),
    ("wavelet, BayesShrink", "scikit-image", lambda x: classical.wavelet(x, SIGMA)),
    ("total variation", "scikit-image", lambda x: classical.total_variation(x, 0.1)),
    ("fast non-local means, 8-bit", "OpenCV", lambda x: classical.opencv_nlm(x, SIGMA)),
)
COLOUR_CLASSICAL = (("CBM3D", "bm3d", lambda x: classical.bm3d(x, SIGMA)),)


def networks(name: str, model: Denoiser, calibration: Path, folder: Path, threads: int, trained: bool) -> Iterator[Method]:
    """Every precision and path of one network, at each of its settings; told sigma if it takes the noise level."""
    told = (SIGMA,) if model.about.takes_level else ()
    counts = {n: (parameters(rcnet.unroll(model, n)), macs(model, n, SIZE)) for n in model.settings}
    shown = {n: n.to_json() if len(model.settings) > 1 else None for n in model.settings}
    kinds = (("fp32", ".xml"), ("int8", ".xml"), ("int8", ".onnx"))
    files = {(kind, suffix): folder / f"{name}-{kind}{suffix}" for kind, suffix in kinds}
    for (kind, _), path in files.items():
        images = calibration_images(model, calibration) if kind == "int8" else None
        export(model, path, calibration=images)
    precisions = ("fp32", "bf16", "int8") if gains_by_bf16(torch.device("cpu")) else ("fp32", "int8")
    sessions = {precision: optimize(model, precision=precision) for precision in precisions if precision != "int8"}

    def eager(n: Setting, precision: str) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            with autocast(precision, x.device):
                return model(x.contiguous(memory_format=torch.channels_last), n, *told).float()

        return call

    def optimized(n: Setting, precision: str) -> Callable[[Tensor], Tensor]:
        return lambda x: sessions[precision](x, n, *told)

    def exported(n: Setting, kind: str, suffix: str, precision: str = "fp32") -> Callable[[Tensor], Tensor]:
        session = load_exported(files[kind, suffix], n, threads=threads, precision=precision)
        return lambda x: torch.from_numpy(session(x.numpy(), *told))

    for n in model.settings:
        for precision in precisions:
            if precision == "int8":
                paths = {"OpenVINO": exported(n, "int8", ".xml"), "ONNX Runtime": exported(n, "int8", ".onnx")}
            else:
                paths = {"eager": eager(n, precision), "optimize": optimized(n, precision)}
                paths["OpenVINO"] = exported(n, "fp32", ".xml", precision)
            for path, call in paths.items():
                yield Method(name, shown[n], precision, path, call, *counts[n], trained)


@torch.inference_mode()
def measure(
    methods: list[Method], paths: list[Path], channels: int, published: dict[str, float]
) -> tuple[int, list[dict[str, Any]]]:
    """How many images, all unless stopped; and a row a method: the median seconds and the mean PSNR over them."""
    first = protocol_noise(read_image(paths[0], channels), SIGMA)
    for method in methods:
        method.call(first)
    found: list[list[tuple[float, float]]] = []  # by image and method, seconds and PSNR
    try:
        for path in tqdm(paths, unit="image", disable=None):
            image = read_image(path, channels)
            clean, noisy = to_tensor(image), protocol_noise(image, SIGMA)
            row = []
            for k, method in enumerate(methods):
                short = bool(method.macs) and statistics.median([of[k][0] for of in found] or [0]) < SHORT
                output, seconds = timed(partial(method.call, noisy), short)
                row.append((seconds, psnr(to_uint8_levels(output), clean)))
            found.append(row)
    except KeyboardInterrupt:
        if not found:
            raise
    rows = []
    for method, results in zip(methods, zip(*found, strict=True), strict=True):
        seconds, scores = zip(*results, strict=True)
        row = {key: value for key, value in method._asdict().items() if key not in ("call", "trained")}
        measured = round(float(np.mean(scores)), 3) if method.trained else None
        rows.append({**row, "seconds": statistics.median(seconds), "psnr": measured, "published": published.get(method.name)})
    return len(found), rows


def best(rows: list[dict[str, Any]], name: str, steps: object, precision: str) -> dict[str, Any]:
    """The fastest path of a network in one precision; `steps`: as in a row, or as text."""
    of = [row for row in rows if (row["name"], steps_of(row), row["precision"]) == (name, str(steps or ""), precision)]
    return min(of, key=lambda row: row["seconds"])


def steps_of(row: dict[str, Any]) -> str:
    """The setting of a row, which may come from a file; empty for a network with one."""
    return "" if row["steps"] is None else str(Setting.of(row["steps"]))


def precisions_of(rows: list[dict[str, Any]]) -> list[str]:
    """Those that were measured: a processor without bf16 has none."""
    found = {row["precision"] for row in rows}
    return [precision for precision in ("fp32", "bf16", "int8") if precision in found]


Asked = tuple[str, str, float, bool]  # what, at least or at most how much, what was measured, whether it is met


def asked(what: str, sign: str, bound: float, value: float) -> Asked:
    return what, f"{sign} {bound:g}", value, value >= bound if sign == ">=" else value <= bound


def colour_ratios(rows: list[dict[str, Any]]) -> list[Asked]:
    """What was asked of colour."""
    measured = precisions_of(rows)
    quickest = min((best(rows, "r3_fast", 1, precision) for precision in measured), key=lambda row: row["seconds"])
    what = f"r3_fast in colour, steps 1, {quickest['precision']}: CBM3D's time to its"
    found = [asked(what, ">=", 150, rows[0]["seconds"] / quickest["seconds"])]
    for precision in measured:
        ours, ffdnet = (best(rows, name, n, precision)["seconds"] for name, n in (("r3_fast", 3), ("FFDNet", None)))
        found.append(asked(f"r3_fast in colour, steps 3, {precision}: time to FFDNet's", "<=", 1, ours / ffdnet))
    return found


def ratios(rows: list[dict[str, Any]]) -> list[Asked]:
    """What was asked of the gray networks."""
    bm3d = next(row for row in rows if row["name"] == "BM3D")
    found = []

    def add(what: str, sign: str, bound: float, value: float) -> None:
        found.append(asked(what, sign, bound, value))

    measured = precisions_of(rows)
    for name, most in (("r3", 4), ("r3_fast", 3)):
        for n in (1, most):
            eager = next(
                r for r in rows if (r["name"], steps_of(r), r["precision"], r["path"]) == (name, str(n), "fp32", "eager")
            )
            for precision, bound in (("fp32", 1.2), ("bf16", 1.7), ("int8", 3)):
                if precision in measured:
                    value = eager["seconds"] / best(rows, name, n, precision)["seconds"]
                    add(f"{name}, steps {n}: best {precision} against eager fp32", ">=", bound, value)
    for n, precision, bound in (("1,1,0", "bf16", 220), ("1", "bf16", 200), ("1", "int8", 500)):
        if precision in measured and any((row["name"], steps_of(row)) == ("r3_fast", n) for row in rows):
            fast, what = best(rows, "r3_fast", n, precision), f"r3_fast, steps {n}, {precision}"
            add(f"{what}: PSNR above BM3D's, dB", ">=", 0, fast["psnr"] - bm3d["psnr"])
            add(f"{what}: BM3D's time to its", ">=", bound, bm3d["seconds"] / fast["seconds"])
    for precision in measured:
        ours, ffdnet, dncnn = (
            best(rows, name, n, precision)["seconds"] for name, n in (("r3_fast", 3), ("FFDNet", None), ("DnCNN", None))
        )
        add(f"r3_fast, steps 3, {precision}: time to FFDNet's", "<=", 1, ours / ffdnet)
        for n in (1, 2, 3, 4):
            add(f"r3, steps {n}, {precision}: time to DnCNN's", "<=", 1, best(rows, "r3", n, precision)["seconds"] / dncnn)
    quickest = min((best(rows, "r3", 1, precision) for precision in measured), key=lambda row: row["seconds"])
    add(f"r3, steps 1, {quickest['precision']}: BM3D's time to its", ">=", 30, bm3d["seconds"] / quickest["seconds"])
    return found


def recorded() -> dict[str, dict[str, float]]:
    """PSNR of the bundled weights by step count on all 68 images, as `rcnet eval --record` recorded it."""
    return {name: {str(row["steps"]): row["psnr"] for row in read_metadata(name)["results"][0]["rows"]} for name in OURS.values()}


def methods(part: dict[str, Any]) -> list[str]:
    """The table of gray or colour. The first row is BM3D's."""
    first, *_ = rows = part["rows"]
    name, count = first["name"], part["images"]
    ours = f"PSNR dB, {'all' if count == part['of'] else f'{count} of'} {part['of']} images"
    heads = ["method", "steps", "precision", "runs in", "parameters", "GMAC, 321x481", "ms", f"{name}'s time to it", ours]
    lines = []
    for row in rows:
        measured, over = (f"{row['psnr']:.2f}", f"{row['psnr'] - first['psnr']:+.2f}") if row["psnr"] is not None else ("", "")
        size = [f"{row['parameters']:,}", f"{row['macs'] / 1e9:.2f}"] if row["macs"] else ["", ""]
        time = [f"{1000 * row['seconds']:.1f}", f"{first['seconds'] / row['seconds']:.0f}"]
        published = f"{row['published']:.2f}" if row["published"] else ""
        lines.append([row["name"], steps_of(row), row["precision"], row["path"], *size, *time, measured, over, published])
    return table([*heads, f"above {name}", "PSNR dB as published, all 68 images"], lines)


def render(result: dict[str, Any]) -> str:
    above = [
        f"`{name}` is above {other}'s published {value} at steps {', '.join(found) or 'none'}"
        for name, steps in result["recorded"].items()
        for other, value in PUBLISHED.items()
        if other != "DnCNN"
        for found in [[n for n, psnr in steps.items() if psnr > value]]
    ]
    lines = [
        "# Denoisers: PSNR against seconds an image",
        "",
        f"Rendered by `python -m benchmarks.denoise`: {result['images']} of the {result['of']} images of BSD68, evenly spread,",
        f"noise of sigma 25; {result['hardware']}, torch {result['torch']}; methods in turns, image by image; medians. Graphs",
        "without a PSNR of their own are timed with random weights, as trained ones are not at hand. int8 in OpenVINO keeps",
        "sums in fp32; in ONNX Runtime the outputs of convolutions are 8-bit too.",
        "",
        "![PSNR against seconds](denoise.png)",
        "",
        *methods(result),
        "",
        *(["![The settings of r3_fast](dial.png)", ""] if any("," in steps_of(row) for row in result["rows"]) else []),
        f"On all 68 images in fp32, {'; '.join(above)}.",
    ]
    if colour := result.get("colour"):
        published = ", ".join(f"{name} {value:.2f}" for name, value in COLOUR_PUBLISHED.items())
        lines += [
            "",
            "## Colour",
            "",
            f"{colour['images']} of the {colour['of']} images in colour, likewise: weights `{colour['weights']}`, told sigma",
            f"if they take it; {colour['hardware']}, torch {colour['torch']}, commit {colour['commit']}. FFDNet: 12",
            "convolutions of 96 channels, timed with random weights. int8 is as of that commit: [what it loses now](int8.md).",
            "",
            *methods(colour),
            "",
            f"Published on all 68 images: {published}.",
        ]
    asked = ratios(result["rows"]) + (colour_ratios(colour["rows"]) if colour else [])
    return "\n".join([*lines, "", "## What was asked", "", *asked_table(asked), ""])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The frontier: the fastest path of each network, step count and precision."""
    from rcnet.figures.plots import page, style, to_image

    with page(4.2) as figure:
        axes = figure.add_subplot()
        place = 0
        for name, label, most in (("r3_fast", "r3_fast", 3), ("r3", "R3", 4)):
            for precision in precisions_of(rows):
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


def draw_dial(rows: list[dict[str, Any]], path: Path) -> None:
    """The settings of r3_fast, in the fastest path of fp32 or, where it is there, bf16; BM3D beside."""
    from rcnet.figures.dial import dial

    bm3d, precision = rows[0], "bf16" if "bf16" in precisions_of(rows) else "fp32"
    settings = dict.fromkeys(steps_of(row) for row in rows if row["name"] == "r3_fast")
    fastest = sorted((best(rows, "r3_fast", n, precision) for n in settings), key=lambda row: row["seconds"])
    highest, points = -np.inf, []
    for row in fastest:
        points.append({"steps": row["steps"], "ms": 1000 * row["seconds"], "psnr": row["psnr"], "front": row["psnr"] > highest})
        highest = max(highest, row["psnr"])
    others = {"BM3D": (1000 * bm3d["seconds"], bm3d["psnr"])}
    dial(points, f"r3_fast, {precision}: PSNR against time, sigma {SIGMA}, 321x481", others).save(path)


def compare(
    data: Path,
    channels: int,
    nets: Sequence[tuple[str, Denoiser, bool]],
    others: Sequence[tuple[str, str, Callable[[np.ndarray], np.ndarray]]],
    published: dict[str, float],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What was measured of the images of a folder; `nets`: name, network, and whether it is trained."""
    files = list_images(data)
    with tempfile.TemporaryDirectory() as folder:
        methods = [Method(name, None, "", path, on_tensors(call)) for name, path, call in others]
        for name, model, trained in nets:
            print(f"exporting {name}", flush=True)
            methods += networks(name, model, args.calibration, Path(folder), args.threads, trained)
        count, rows = measure(methods, evenly(files, args.images), channels, published)
    about = {"hardware": hardware(torch.device("cpu")), "torch": torch.__version__, "commit": commit()}
    return {**about, "images": count, "of": len(files), "sigma": SIGMA, "rows": rows}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="folder of the BSD68 images")
    parser.add_argument("--colour", type=Path, help="folder of the same images in colour")
    parser.add_argument("--colour-model", default="r3_fast.photo", help="bundled weights or a file of weights")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of training images, for int8")
    parser.add_argument("--images", type=int, default=68, help="so many of them, evenly spread")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    import cv2

    cv2.setNumThreads(args.threads)
    path = args.out / "denoise.json"
    result = kept(path)
    if not args.data and "rows" not in result:
        parser.error(f"{path} holds nothing of the gray images yet: give their folder")
    if args.data:
        nets = [
            *((name, rcnet.load(weights), True) for name, weights in OURS.items()),
            ("S3^4", create_model("s3").eval(), False),
            ("FFDNet", plain(15, 2), False),
            ("DnCNN", plain(17, 1), False),
        ]
        result |= {"recorded": recorded(), **compare(args.data, 1, nets, CLASSICAL, PUBLISHED, args)}
    if args.colour:
        nets = [("r3_fast", rcnet.load(args.colour_model), True), ("FFDNet", plain(12, 2, 3, 96), False)]
        colour = compare(args.colour, 3, nets, COLOUR_CLASSICAL, COLOUR_PUBLISHED, args)
        result["colour"] = {"weights": Path(args.colour_model).name.removesuffix(".safetensors"), **colour}
    page = record(path, result, render)
    draw(result["rows"], args.out / "denoise.png")
    draw_dial(result["rows"], args.out / "dial.png")
    print(page)


if __name__ == "__main__":
    main()
