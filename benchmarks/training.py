"""The trainer's speed against a bare hand-written loop of the same network, and the share of the machine's measured peak; and
what four minutes of training do to trained weights.

    python -m benchmarks.training --bsd BSD/train --cifar data/ [--threads N] [--rounds N]
    python -m benchmarks.training --continue BSD/train

Both run in one process, taking turns of a few iterations; the ratio is that of the medians. The bare loop repeats one batch
that lies in memory: forward, loss, backward, the same optimizers; no data, no drawn steps, no clip, no average of the
weights. The peak is the fastest of a few bf16 (or fp32) matrix products. The loader's share is that of drawing a batch in an
iteration. Results go to results/training.json, and the table to results/training.md. The second command trains r3_fast.photo for
four minutes of processor time by the recipe r3_fast_photo.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.page import RESULTS, kept, options, record, table
from rcnet.cost import macs
from rcnet.device import autocast, best_device, hardware
from rcnet.training import read_recipe, train
from rcnet.training.loop import Trainer

CASES = {
    "R2^1, batch 64": ("cifar", "cifar_fast", ["model.steps=1"]),
    "R2^4, batch 64": ("cifar", "cifar_fast", ["model.steps=4"]),
    "R3^4, batch 4": ("bsd", "r3", ["model.steps=4"]),
    "r3_fast^3, batch 6": ("bsd", "r3_fast", ["model.steps=3"]),
}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Any, times: int) -> float:
    """Mean seconds of a call."""
    synchronize()
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronize()
    return (time.perf_counter() - started) / times


def peak(precision: str) -> float:
    """FLOP/s of the fastest of a few square matrix products."""
    kind, device = (torch.bfloat16 if precision == "bf16" else torch.float32), best_device()
    best = 0.0
    for size in (1024, 2048, 4096):
        a = torch.randn(size, size, dtype=kind, device=device)
        best = max(best, *(2 * size**3 / seconds(lambda a=a: a @ a, 2) for _ in range(4)))
    return best


def measure(data: Path, recipe: str, overrides: list[str], rounds: int, top: float) -> dict[str, Any]:
    """One network: the trainer and the bare loop, interleaved."""
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(read_recipe(recipe, overrides), data, Path(folder), False)
        bare = Trainer(read_recipe(recipe, overrides), data, Path(folder), False)
        x, target = bare.task.batch(np.random.default_rng(0), 0)
        x = x.contiguous(memory_format=torch.channels_last)
        steps = bare.model.steps[-1]

        def iteration() -> None:
            with autocast(bare.precision, bare.device):
                output = bare.model(x, steps)
            bare.task.loss(output, target).backward()
            for optimizer in bare.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        bare.model.train()
        once = max(seconds(iteration, 2), 1e-4)
        times = max(1, round(1.0 / once))
        run.step()
        pairs = []
        for k in range(rounds):
            calls = [iteration, run.step] if k % 2 else [run.step, iteration]
            timed = {call: seconds(call, times) for call in calls}
            pairs.append((timed[iteration], timed[run.step]))
        plain, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        loader = statistics.median(seconds(lambda: run.task.batch(np.random.default_rng(0), 0), 1) for _ in range(20))
        flop = 6 * macs(run.model, steps, tuple(x.shape[-2:])) * len(x)
    return {
        "batch": len(x),
        "images_per_s": round(len(x) / ours, 1),
        "bare_images_per_s": round(len(x) / plain, 1),
        "ratio": round(plain / ours, 3),
        "loader_share": round(loader / ours, 4),
        "peak_share": round(flop / ours / top, 3),
        "precision": run.precision,
    }


def continued(data: Path, out: Path) -> dict[str, Any]:
    """Four minutes from r3_fast.photo: its PSNR on images held out before, along and after."""
    recipe = read_recipe("r3_fast_photo", ["init=r3_fast.photo", "minutes=4"])
    result = train(recipe, data, out, resume=True, clock=time.process_time)
    return {key: result[key] for key in ("iterations", "minutes", "hardware", "commit", "data", "measured")}


def render(result: dict[str, Any]) -> str:
    lines = [
        "# Speed of training",
        "",
        f"Rendered by `python -m benchmarks.training`: {result['hardware']}; torch {result['torch']}. Images of 32x32 (R2),",
        "patches of 48x48 (R3) and 80x80 (r3_fast); peak: the fastest of a few matrix products in the same precision,",
        f"{result['peak_gflop_per_s']:,} GFLOP/s.",
        "",
        *table(
            ["network", "precision", "trainer, images/s", "bare loop", "ratio", "drawing a batch", "share of peak"],
            [
                [
                    name, row["precision"], f"{row['images_per_s']:g}", f"{row['bare_images_per_s']:g}", f"{row['ratio']:.3f}",
                    f"{row['loader_share']:.2%}", f"{row['peak_share']:.0%}",
                ]
                for name, row in result["rows"].items()
            ],
        ),
    ]  # fmt: skip
    if more := result.get("continued"):
        found = more["measured"]
        lines += [
            "",
            "## From trained weights",
            "",
            "r3_fast.photo, trained by `rcnet train r3_fast_photo init=r3_fast.photo minutes=4` on the training images of BSD:",
            f"{found['before']:.2f} dB before, {found['after']:.2f} dB after (the best of {len(found['along'])} measurements).",
            "Mean PSNR of steps 1, 2 and 3 and of noise of sigma 15, 25 and 50 in 8 bits, on the middles of 16 images held out,",
            f"which the bundled weights were trained on. {more['minutes']:g} minutes of processor time,",
            f"{more['iterations']:,} iterations; {more['hardware']}.",
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--bsd", type=Path)
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--continue", dest="photos", type=Path, help="folder of clean images to train r3_fast.photo on")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-continued"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = kept(RESULTS / "training.json")
    if args.photos:
        print(record(RESULTS / "training.json", {**before, "continued": continued(args.photos, args.out)}, render))
        return
    if not (args.bsd and args.cifar):
        parser.error("give --bsd and --cifar, or --continue")
    folders, rows = {"bsd": args.bsd, "cifar": args.cifar}, {}
    precision = Trainer(read_recipe("r3_fast"), args.bsd, Path(tempfile.mkdtemp()), False).precision
    top = peak(precision)
    for name, (kind, recipe, overrides) in CASES.items():
        extra = ["classification.dataset=cifar10"] if kind == "cifar" else []
        rows[name] = measure(folders[kind], recipe, [*overrides, *extra], args.rounds, top)
        print(name, rows[name], flush=True)
    result = {
        **before,
        "hardware": hardware(best_device()),
        "torch": torch.__version__,
        "peak_gflop_per_s": round(top / 1e9),
        "rows": rows,
    }
    print(record(RESULTS / "training.json", result, render))


if __name__ == "__main__":
    main()
