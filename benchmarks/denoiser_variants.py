"""Variants of the r3_fast recipe at equal processor time: which settings deserve the long run.

    python -m benchmarks.denoiser_variants BSD/train [--minutes 3] [--only NAME ...]

Each variant trains on one thread for the same minutes of processor time, on the images of BSD/train but for 16 that are held
out evenly and on which PSNR is measured. A variant whose result file exists is not run again. The results are in
results/denoiser_variants/NAME.json, and the table, rendered from them, in results/denoiser_variants/README.md.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from rcnet.training import read_recipe, train

RESULTS = Path(__file__).parent.parent / "results" / "denoiser_variants"
COMMON = ["batch=8", "probabilities=[]", "warmup=0.05", "ema=0.995", "denoising.holdout=16"]
VARIANTS = {
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
}


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def render() -> str:
    """The table of what is measured so far."""
    lines = [
        "# Variants of the r3_fast recipe at equal processor time",
        "",
        "Rendered by `python -m benchmarks.denoiser_variants` from the result files beside this page. PSNR in dB at sigma 25 on",
        "16 images held out of the 232 training images of BSD, by step count; one seed. The base is the bundled recipe with",
        f"`{' '.join(COMMON)}` (batch 8, all steps drawn evenly); each variant changes what its name says.",
        "",
        "| variant | minutes | iterations | 1 step | 2 | 3 | 4 |",
        "|---|---|---|---|---|---|---|",
    ]
    hardware = set()
    for name in VARIANTS:
        path = RESULTS / f"{slug(name)}.json"
        if path.exists():
            result = json.loads(path.read_text())
            figures = {row["steps"]: f"{row['psnr']:.2f}" for row in result["validation"]}
            cells = [figures.get(n, "") for n in (1, 2, 3, 4)]
            lines.append(f"| {name} | {result['minutes']:g} | {result['iterations']} | {' | '.join(cells)} |")
            hardware.add(result["hardware"])
    return "\n".join([*lines, "", f"Hardware: {'; '.join(sorted(hardware))}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/variants"), help="folder of the runs themselves")
    args = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        path = RESULTS / f"{slug(name)}.json"
        if not path.exists():
            recipe = read_recipe("r3_fast", [f"minutes={args.minutes}", *COMMON, *VARIANTS[name]])
            result = train(recipe, args.data, args.runs / slug(name), resume=True, clock=time.process_time)
            path.write_text(json.dumps({"variant": name, **result}, indent=1) + "\n")
        (RESULTS / "README.md").write_text(render())
    print(render())


if __name__ == "__main__":
    main()
