"""Variants of a recipe at equal processor time: which settings deserve the long run.

    python -m benchmarks.variants denoiser BSD/train [--only NAME ...]
    python -m benchmarks.variants photo IMAGES --pairs DIR [--only NAME ...]
    python -m benchmarks.variants classifier data/ [--only NAME ...]
    python -m benchmarks.variants dial BSD/train [--only NAME ...]

Each variant trains on one thread for the same minutes of processor time (`--minutes`: other than the comparison's own, on a
slower machine) and is measured on images held out of the training set. A variant whose result file exists is not run again. The
results are in results/KIND_variants/NAME.json, and the table, rendered from them, in results/KIND_variants/README.md (`photo`:
results/denoiser_variants/photo).

For `photo` IMAGES has the folders `train` and `pairs` as its recipe says, `val`, the pictures to measure on, and `bsd`, with a
`train` of BSD alone and the same `pairs`; DIR holds pairs NAME_real.JPG and NAME_mean.JPG.
"""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.colourings import colourings
from benchmarks.page import RESULTS, options, table
from rcnet import denoise, load, optimize
from rcnet.data.images import read_folder, read_pair, to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.setting import Setting
from rcnet.training import read_recipe, train


@dataclass(frozen=True)
class Comparison:
    """What is varied: name -> overrides of `recipe`, after those of `common`; `minutes` of processor time each."""

    recipe: str
    common: list[str]
    minutes: float
    metric: str
    measured: str
    variants: dict[str, list[str]]


# What r3_fast was before its batch norms had a rate of their own; batches of 4, which the first variants showed to be better.
ONE_CONVOLUTION = ["model.width=64", "model.convs=1", "model.steps=[1,2,3,4]", "denoising.patch=64", "optimizer.norm_lr=1.0"]
FAST_NORMS = ["batch=4", "optimizer.norm_lr=64.0"]
KEPT_OUT = ("circuit", "desk", "fruit")  # scenes of the development pairs that nothing is fitted to
CELLS = 3  # of the networks, where one number stands for all
COLUMNS = 9  # a network that offers more settings is compared at those of the others
COST_ADJUSTABLE = ["model.steps=[2,3,4]", "minutes=6"]
COMPARISONS = {
    "denoiser": Comparison(
        "r3_fast",
        ["batch=8", "probabilities=[]", "warmup=0.05", "ema=0.995", "denoising.holdout=16", *ONE_CONVOLUTION],
        3,
        "psnr",
        "PSNR in dB at sigma 25 on 16 images held out of the 232 training images of BSD",
        {
            "base": [],
            "larger steps drawn more often (0.1, 0.2, 0.3, 0.4)": ["probabilities=[0.1,0.2,0.3,0.4]"],
            "aggregated loss over all steps": ["objective=aggregated"],
            "no average of the weights": ["ema=0.0"],
            "96 channels": ["model.width=96"],
            "two convolutions a cell, steps 1 to 3": ["model.convs=2", "model.steps=[1,2,3]"],
            "cells not residual": ["model.residual=false"],
            "batch 4": ["batch=4"],
            "batch 16": ["batch=16"],
            "Muon at twice the learning rate": ["optimizer.muon_lr=0.08"],
            "Adam (2e-3) for all": ["optimizer.name=adam", "optimizer.lr=2e-3"],
            "batch 4, norms at 16 times the learning rate": ["batch=4", "optimizer.norm_lr=16.0"],
            "batch 4, norms at 64 times": FAST_NORMS,
            "batch 4, norms at 256 times": ["batch=4", "optimizer.norm_lr=256.0"],
            "batch 4, norms at 64 times, two convolutions of 48 channels a cell": [
                *FAST_NORMS, "model.convs=2", "model.width=48",
            ],
            "batch 4, norms at 64 times, two convolutions of 64 channels a cell, steps 1 to 3": [
                *FAST_NORMS, "model.convs=2", "model.steps=[1,2,3]",
            ],
        },
    ),
    "photo": Comparison(
        "r3_fast_photo",
        ["denoising.pairs=0.15"],
        20,
        "psnr",
        "On 20 images kept out of training, in colour, and on the development pairs of a camera",
        {
            "base": [],
            "told exactly": ["denoising.overstated=0.0"],
            "half of the patches told too much": ["denoising.overstated=0.5"],
            "squared error": ["denoising.loss=squared"],
            "direct output": ["model.name=benchmarks.direct:r3_fast_direct"],
            "no frozen part": ["frozen=0.0"],
            "no batch norm": ["frozen=0.0", "model.norm_mode=none"],
            "96 channels": ["model.width=96"],
            "BSD alone": ["data=bsd", "denoising.drawn=0.0"],
            "no real pairs": ["denoising.pairs=0.0"],
            "white noise alone": ["denoising.pairs=0.0", "denoising.camera=0.0", "denoising.jpeg=0.0"],
        },
    ),
    "classifier": Comparison(
        "cifar_fast",
        ["classification.dataset=cifar10", "classification.holdout=5000", "model.steps=2", "ema=0.98", "batch=128",
         "classification.whitening=false"],
        3,
        "error",
        "Error in % on 5,000 images held out of the 50,000 training images of CIFAR-10",
        {
            "base": [],
            "Muon at half the learning rate": ["optimizer.muon_lr=0.02"],
            "Muon at twice the learning rate": ["optimizer.muon_lr=0.08"],
            "SGD with Nesterov momentum (0.1, decay 5e-4)": [
                "optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9", "optimizer.weight_decay=5e-4",
            ],
            "Adam (2e-3) for all": ["optimizer.name=adam", "optimizer.lr=2e-3"],
            "batch 64": ["batch=64"],
            "batch 256": ["batch=256"],
            "the others at five times the learning rate": ["optimizer.lr=5e-3"],
            "whitening stem": ["classification.whitening=true"],
            "no label smoothing": ["classification.label_smoothing=0.0"],
            "shared kernels at the full learning rate": ["optimizer.shared_lr=1.0"],
            "norms at 4 times the learning rate": ["optimizer.norm_lr=4"],
            "norms at 16 times": ["optimizer.norm_lr=16"],
            "norms at 64 times": ["optimizer.norm_lr=64"],
            "norms at 16 times, frozen for 0.15 of the run": ["optimizer.norm_lr=16", "frozen=0.15"],
            "norms at 16 times, frozen for 0.5 of the run": ["optimizer.norm_lr=16", "frozen=0.5"],
            "norms at 16 times, Muon at half the learning rate": ["optimizer.norm_lr=16", "optimizer.muon_lr=0.02"],
            "norms at 16 times, batch 64": ["optimizer.norm_lr=16", "batch=64"],
            "steps 2, 3, 4: Alg. 2": [*COST_ADJUSTABLE, "model.pooled_rows=false"],
            "steps 2, 3, 4: sandwich rule": [*COST_ADJUSTABLE, "model.pooled_rows=false", "objective=sandwich"],
            "steps 2, 3, 4: aggregated loss": [*COST_ADJUSTABLE, "objective=aggregated"],
            "steps 2, 3, 4, norms at 16 times": [*COST_ADJUSTABLE, "optimizer.norm_lr=16"],
            "steps 2, 3, 4, norms at 16 times, norms of a step in common where the pooling differs": [
                *COST_ADJUSTABLE, "optimizer.norm_lr=16", "model.pooled_rows=false",
            ],
        },
    ),
    "dial": Comparison(
        "r3_fast_dial",
        ["denoising.holdout=16", "probabilities=[]"],
        6,
        "psnr",
        "PSNR in dB at sigma 25 on 16 images held out of the 232 training images of BSD; from fresh weights",
        {
            "unified": ["settings=unified"],
            "staircase": [],
            "staircase, the most steps drawn more often": [
                "probabilities=[0.1,0.14,0.12,0.08,0.08,0.12,0.08,0.08,0.2]",
            ],
            "free": ["settings=free", "model.unified=false"],
        },
    ),
}  # fmt: skip


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def folder_of(kind: str) -> Path:
    return RESULTS / ("denoiser_variants/photo" if kind == "photo" else f"{kind}_variants")


def photo_figures(weights: Path, data: Path, pairs: Path) -> dict[str, float]:
    """PSNR in dB at the most steps, of white noise told rightly and wrongly, and of what people have."""
    model, images = load(weights), read_folder(data / "val", 3)
    setting = model.settings[-1]
    session = optimize(model, setting)

    def told(x: Tensor, white: float, coarse: float = 0) -> Tensor:
        return denoise(session, x, setting, sigma=torch.tensor([white, coarse]).view(1, 2, 1, 1)).clamp(0, 1)

    def white_noise(clean: np.ndarray, sigma: float, level: float) -> float:
        return psnr(told(protocol_noise(clean, sigma), level), to_tensor(clean))

    def mean(values: Iterable[float]) -> float:
        return round(float(np.mean(list(values))), 3)

    figures = {f"white {s}": mean(white_noise(x, s, s) for x in images) for s in (5, 15, 25, 50)}
    figures |= {f"15 told {level}": mean(white_noise(x, 15, level) for x in images) for level in (7.5, 22.5, 37.5)}
    coloured = [picture for image in images[::3] for picture in colourings(image).values()]
    figures["colours 25"] = mean(white_noise(x, 25, 25) for x in coloured)
    figures["clean told 10"] = mean(psnr(told(to_tensor(x), 10), to_tensor(x)) for x in images)
    taken: dict[str, list[dict[str, float]]] = {"camera": [], "kept out": []}
    for file in sorted(pairs.glob("*_real.*")):
        noisy, clean = (
            to_tensor(a[128:384, 128:384]) for a in read_pair(file, file.with_name(file.name.replace("_real.", "_mean.")), 3)
        )
        results = {"noisy": psnr(noisy, clean), "coarse 6": psnr(told(noisy, 0, 6), clean)}
        results |= {"coarse 10": psnr(told(noisy, 0, 10), clean), "white 10": psnr(told(noisy, 10), clean)}
        taken["kept out" if any(scene in file.name for scene in KEPT_OUT) else "camera"].append(results)
    for part, rows in taken.items():
        figures |= {f"{part}, {key}": mean(row[key] for row in rows) for key in (rows[0] if rows else ())}
    return figures


def psnr(image: Tensor, clean: Tensor) -> float:
    return float(-10 * (image - clean).square().mean().clamp(min=1e-10).log10())


def render_photo() -> str:
    """The tables of the variants that take the noise level: of white noise, and of what people have."""
    comparison, folder = COMPARISONS["photo"], folder_of("photo")
    paths = {name: folder / f"{slug(name)}.json" for name in comparison.variants}
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    keys = list(dict.fromkeys(key for result in results.values() for key in result["figures"]))
    white, people = [k for k in keys if k.startswith(("white", "15"))], [k for k in keys if not k.startswith(("white", "15"))]

    def rows(columns: list[str]) -> list[list[str]]:
        return [[name, *(f"{result['figures'].get(key, math.nan):.2f}" for key in columns)] for name, result in results.items()]

    lines = [
        "# Variants of the r3_fast_photo recipe at equal processor time",
        "",
        "Rendered by `python -m benchmarks.variants photo` from the result files beside this page.",
        f"{comparison.measured}; one seed.",
        "From fresh weights. PSNR in dB at three steps, fp32, noise neither clipped nor rounded. The base is the bundled recipe",
        f"with `{' '.join(comparison.common)}`; each variant changes what its name says.",
        "",
        *table(
            ["variant", "minutes", "iterations", "commit"],
            [[*run_of(name, result), result["commit"]] for name, result in results.items()],
        ),
        "",
        "White noise, told its level; and noise of sigma 15, told half of it, 1.5 times and 2.5 times as much:",
        "",
        *table(["variant", *white], rows(white)),
        "",
        "Saturated and permuted colours at sigma 25; pictures without noise, told 10; a camera's pairs, told a constant level of",
        "coarse or of white noise: of the scenes that the recipe trains on, and of those kept out (circuit, desk, fruit).",
        "",
        *table(["variant", *people], rows(people)),
        "",
        hardware_of(results),
        "",
    ]
    return "\n".join(lines)


def run_of(name: str, result: dict[str, Any]) -> list[str]:
    return [name, f"{result['minutes']:g}", str(result["iterations"])]


def hardware_of(results: dict[str, dict[str, Any]]) -> str:
    return f"Hardware: {'; '.join(sorted({result['hardware'] for result in results.values()}))}."


def render(kind: str) -> str:
    """The table of what is measured so far."""
    if kind == "photo":
        return render_photo()
    comparison = COMPARISONS[kind]
    paths = {name: folder_of(kind) / f"{slug(name)}.json" for name in comparison.variants}
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    measured = [[Setting.of(row["steps"], CELLS) for row in result["validation"]] for result in results.values()]
    shown = {n for settings in measured for n in settings if n.uniform or len(settings) <= COLUMNS}
    steps = sorted(shown, key=lambda n: n.order)
    lines = [
        f"# Variants of the {comparison.recipe} recipe at equal processor time",
        "",
        f"Rendered by `python -m benchmarks.variants {kind}` from the result files beside this page. {comparison.measured},",
        "by step count; one seed. The base is the bundled recipe with",
        f"`{' '.join(comparison.common)}`; each variant changes what its name says. The code may differ between the commits.",
        "",
    ]
    rows = []
    for name, result in results.items():
        figures = {Setting.of(row["steps"], CELLS): f"{row[comparison.metric]:.2f}" for row in result["validation"]}
        rows.append([*run_of(name, result), *(figures.get(n, "") for n in steps), result["commit"]])
    lines += table(["variant", "minutes", "iterations", *(f"steps {n}" for n in steps), "commit"], rows)
    return "\n".join([*lines, "", hardware_of(results), ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("kind", choices=COMPARISONS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=Path, default=Path("pairs"), help="photo: pairs of noisy and clean photographs")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these variants; all unless given")
    parser.add_argument("--minutes", type=float, help="of processor time for each; the comparison's own unless given")
    parser.add_argument("--runs", type=Path, default=Path("runs/variants"), help="folder of the runs themselves")
    args = parser.parse_args()
    comparison = COMPARISONS[args.kind]
    if unknown := set(args.only or ()) - comparison.variants.keys():
        parser.error(f"unknown variants {sorted(unknown)}; valid: {', '.join(comparison.variants)}")
    torch.set_num_threads(1)
    folder = folder_of(args.kind)
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.only or comparison.variants:
        path = folder / f"{slug(name)}.json"
        if not path.exists():
            varied = [value for value in comparison.variants[name] if not value.startswith("data=")]
            part = "".join(value.removeprefix("data=") for value in comparison.variants[name] if value.startswith("data="))
            overrides = [f"minutes={args.minutes or comparison.minutes}", *comparison.common, *varied]
            runs = args.runs / args.kind / slug(name)
            result = train(
                read_recipe(comparison.recipe, overrides), args.data / part, runs, resume=True, clock=time.process_time
            )
            if args.kind == "photo":
                result["figures"] = photo_figures(runs / "weights.safetensors", args.data, args.pairs)
            path.write_text(json.dumps({"variant": name, **result}, indent=1) + "\n")
        (folder / "README.md").write_text(render(args.kind))
    print(render(args.kind))


if __name__ == "__main__":
    main()
