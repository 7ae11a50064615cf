"""Variants of a recipe at equal processor time: which settings deserve the long run.

    python -m benchmarks.variants denoiser BSD/train [--only NAME ...]
    python -m benchmarks.variants photo BSD/train [--only NAME ...]
    python -m benchmarks.variants classifier data/ [--only NAME ...]
    python -m benchmarks.variants dial BSD/train [--only NAME ...]

Each variant trains on one thread for the same minutes of processor time (`--minutes`: other than the comparison's own, on a
slower machine) and is measured on images held out of the training set; those of `photo`, which take the noise level, also away
from their training. A variant whose result file exists is not run again. The results are in results/KIND_variants/NAME.json, and
the table, rendered from them, in results/KIND_variants/README.md (`photo`: results/denoiser_variants/photo).
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.page import RESULTS, options, table
from rcnet.data.images import read_folder
from rcnet.evaluation import denoising_results
from rcnet.evaluation.harmless import harm_results
from rcnet.models import load
from rcnet.setting import Setting
from rcnet.tasks.task import held_out
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
HELD_OUT = 16
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
        [f"denoising.holdout={HELD_OUT}", "frozen=0.15"],
        4,
        "psnr",
        "On 16 images held out of the 232 training images of BSD, in colour",
        {
            "base": [],
            "base, the simulated cameras' pictures softer": [],
            "no frozen part": ["frozen=0.0"],
            "frozen for half of the run": ["frozen=0.5"],
            "squared error": ["denoising.loss=squared"],
            "Charbonnier": ["denoising.loss=charbonnier"],
            "one level a batch": ["denoising.one_level=true"],
            "Gaussian noise alone": ["denoising.camera=0.0", "denoising.jpeg=0.0"],
            "cameras in 0.6 of the batches": ["denoising.camera=0.6"],
            "norms at the others' learning rate": ["optimizer.norm_lr=1.0"],
            "norms at 8 times": ["optimizer.norm_lr=8.0"],
            "level told to all": ["denoising.unknown=0.0"],
            "no level plane": ["model.noise_level=false"],
            "scale and shift of the norms from the level": ["model.name=benchmarks.level_norms:r3_fast_level_norms"],
            "nothing drawn": ["denoising.drawn=0.0"],
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


def away_from_training(weights: Path, data: Path) -> list[dict[str, Any]]:
    """At one step and at the most: PSNR at levels 5 to 50, told, and at 25 blind, and what becomes of pictures without noise."""
    model, images = load(weights), read_folder(data, 3)
    images = [images[i] for i in sorted(held_out(len(images), HELD_OUT))]
    steps = (model.steps[0], model.steps[-1])
    rows = harm_results(model, images, steps)
    for key, sigma in {"psnr_5": 5, "psnr_15": 15, "psnr_25": 25, "psnr_50": 50, "blind_25": 25}.items():
        measured = denoising_results(model, images, sigma, steps, blind=key.startswith("blind"))
        for row, values in zip(rows, measured, strict=True):
            row[key] = values["psnr"]
    return rows


def render_photo() -> str:
    """The table of the variants that take the noise level: two rows each, of one step and of the most."""
    comparison, folder = COMPARISONS["photo"], folder_of("photo")
    paths = {name: folder / f"{slug(name)}.json" for name in comparison.variants}
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    columns = {f"sigma {n}": f"psnr_{n}" for n in (5, 15, 25, 50)} | {"blind 25": "blind_25"}
    columns |= {"clean": "clean", "page": "page", "flat, levels": "flat"}
    lines = [
        "# Variants of the r3_fast_photo recipe at equal processor time",
        "",
        "Rendered by `python -m benchmarks.variants photo` from the result files beside this page.",
        f"{comparison.measured}; one seed. PSNR in dB, fp32, noise neither clipped nor",
        "rounded; told the level, or blind. Clean photographs, a page of text (PSNR, blind) and flat areas (largest mean change,",
        "blind) have no noise. The base is the bundled recipe with",
        f"`{' '.join(comparison.common)}`; each variant changes what its name says.",
        "The code may differ between the commits, and the processor between runs of other minutes: compare those of one commit.",
        "",
        *table(
            ["variant", "minutes", "iterations", "steps", *columns, "commit"],
            [
                [*run_of(name, result), row["steps"], *(f"{row[key]:.2f}" for key in columns.values()), result["commit"]]
                for name, result in results.items()
                for row in result["away"]
            ],
        ),
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
            overrides = [f"minutes={args.minutes or comparison.minutes}", *comparison.common, *comparison.variants[name]]
            runs = args.runs / args.kind / slug(name)
            result = train(read_recipe(comparison.recipe, overrides), args.data, runs, resume=True, clock=time.process_time)
            if args.kind == "photo":
                result["away"] = away_from_training(runs / "weights.safetensors", args.data)
            path.write_text(json.dumps({"variant": name, **result}, indent=1) + "\n")
        (folder / "README.md").write_text(render(args.kind))
    print(render(args.kind))


if __name__ == "__main__":
    main()
