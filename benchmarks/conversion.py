"""A ResNet trained here, converted, and its accuracy brought back: parameters, MACs and error at each step count.

    python -m benchmarks.conversion data/ [--dataset cifar10] [--epochs 30] [--only PART ...]
    python -m benchmarks.conversion          # only the table, from what was measured

The original is the ResNet-38 of He et al. (2015) for CIFAR (three stages of six blocks, 16, 32 and 64 channels), trained by plain
PyTorch: SGD, for so many epochs, on a GPU if there is one. It is converted at 1, 3 and 5 steps, with differences of rank 0 and 8,
and fine-tuned by the recipe `finetune` for half as many, the original as its teacher; also with ranks where they pay, with the
teacher's features in the loss, and with the first block of each stage kept apart, each with norms measured again. Beside it,
networks of the same shape from fresh weights: for the epochs of the fine-tuning, and for those of original and fine-tuning
together. A part that is measured is not run again. Results go to results/conversion.json, the table to results/conversion.md.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange

import rcnet
from benchmarks.page import RESULTS, kept, options, record, table
from rcnet.cost import macs
from rcnet.cost.counting import counted
from rcnet.data.cifar import CIFAR
from rcnet.data.labelled import Labelled, read_labelled
from rcnet.device import autocast, best_device, channels_last, hardware, keep_freed_memory, resolve_precision
from rcnet.evaluation.classify import classification_results
from rcnet.models.converted import build_source
from rcnet.replacing import replacing
from rcnet.tasks.classify import Classification, begin, statistics
from rcnet.tasks.task import Setup
from rcnet.training import read_recipe, train
from rcnet.training.provenance import commit

BUILDER, TRAINED, WEIGHTS = "benchmarks.conversion:resnet38", "benchmarks.conversion:trained", "RCNET_BENCHMARK_ORIGINAL"
STEPS, RANKS, BATCH, SAVED_EVERY = (1, 3, 5), (0, 8), 128, 200
ORIGINAL = "ResNet-38"
# name -> the rank, how it is converted, and what the recipe of the fine-tuning adds. Each starts with norms measured again.
VARIANTS: dict[str, tuple[int, dict[str, Any], list[str]]] = {
    "ranks where they pay": (8, {"adaptive": True}, []),
    "ranks where they pay, features": (8, {"adaptive": True}, ["feature_weight=0.5"]),
    "features": (8, {}, ["feature_weight=0.5"]),
    "a third, features": (2, {"adaptive": True}, ["feature_weight=0.5"]),
    "first blocks apart, features": (4, {"adaptive": True, "apart": True}, ["feature_weight=0.5"]),
}
PARTS = (
    ORIGINAL,
    *(f"{what}, rank {rank}" for rank in RANKS for what in ("converted", "fine-tuned")),
    *(f"{what}, {name}" for name in VARIANTS for what in ("converted", "fine-tuned")),
    "from scratch",
    "from scratch, as long as both",
)
FRESH = ["optimizer.name=muon", "optimizer.lr=1e-3", "optimizer.weight_decay=0", "classification.label_smoothing=0.05"]
DEVICE = best_device()


class Block(nn.Module):
    """Two convolutions beside the identity, which takes every other pixel and more channels of zeros where the shape changes."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        stride = channels // before
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.more, self.stride = channels - before, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        if self.more:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return (x + y).relu()


def resnet38(num_classes: int = 10, blocks: int = 6) -> nn.Module:
    """For images whose channels have mean 0 and deviation 1, [B, 3, 32, 32]."""
    stages, before = [], 16
    for channels in (16, 32, 64):
        stages += [Block(before if place == 0 else channels, channels) for place in range(blocks)]
        before = channels
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))


def trained() -> nn.Module:
    """The original with its weights, as the fine-tuning's teacher: for images in [0, 1]."""
    state = torch.load(os.environ[WEIGHTS], weights_only=True)
    net = resnet38(len(state["state"]["23.weight"]))
    net.load_state_dict(state["state"])
    return nn.Sequential(Standardize(state["mean"], state["std"]), net).eval()


class Standardize(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def train_original(data: Path, dataset: str, epochs: float, path: Path) -> dict[str, Any]:
    """Trains the ResNet as its paper does, but for the length; weights go to `path`. Returns how long that was.

    Goes on from the file beside `path` that an interrupted run of the same length left.
    """
    torch.manual_seed(0)
    images = read_labelled(data, "train", dataset)
    mean, std = statistics(images.images)
    net = nn.Sequential(Standardize(mean, std), channels_last(resnet38(len(images.classes)))).to(DEVICE)
    config = Classification(dataset=dataset, flip="alternating", label_smoothing=0.05)  # type: ignore[arg-type]
    task = begin(config, Setup(data, DEVICE, rcnet.About(), BATCH, 0, "auto"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    iterations, first = round(epochs * len(images.labels) / BATCH), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"original-of-{iterations}.part.pt")
    if unfinished.is_file():
        found = torch.load(unfinished, weights_only=True, map_location=DEVICE)
        net.load_state_dict(found["net"])
        optimizer.load_state_dict(found["optimizer"])
        first = found["iteration"]
    for iteration in trange(first, iterations, initial=first, total=iterations, desc=ORIGINAL, unit="batch", disable=None):
        if iteration % SAVED_EVERY == 0:
            with replacing(unfinished) as temporary:
                torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}, temporary)
        gone = iteration / iterations
        batch = task.batch(np.random.default_rng([0, iteration]), iteration)
        optimizer.param_groups[0]["lr"] = 0.1 * min(gone / 0.05, 0.5 + 0.5 * math.cos(math.pi * gone))
        with autocast("auto", DEVICE):
            output = net(batch.x.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad()
        task.loss(output, batch).backward()
        optimizer.step()
    with replacing(path) as temporary:
        torch.save({"state": net[1].cpu().state_dict(), "mean": mean, "std": std}, temporary)
    unfinished.unlink()
    return {"epochs": epochs, "iterations": iterations}


def error_of(call: Callable[[Tensor], Tensor], test: Labelled) -> float:
    """In %."""
    parts = zip(test.images.split(250), test.labels.split(250), strict=True)
    with torch.inference_mode():
        wrong = sum(int((call(pixels.to(DEVICE).float() / 255).argmax(1).cpu() != labels).sum()) for pixels, labels in parts)
    return round(100 * wrong / len(test.labels), 3)


def rows_of(net: rcnet.RecurrentNet, test: Labelled) -> list[dict[str, Any]]:
    """Error, MACs of an image and parameters that count, by steps."""
    rows = classification_results(net, test.images, test.labels, net.choices)
    used = {n: sum(p.numel() for p in rcnet.unroll(net, n).parameters()) for n in net.choices}
    return [row | {"macs": macs(net, row["steps"], (32, 32)), "parameters": used[row["steps"]]} for row in rows]


def converted(dataset: str, rank: int, original: Path | None, **how: Any) -> rcnet.RecurrentNet:
    """The original converted, or the same shape with the weights of a fresh one."""
    classes = {"cifar10": 10, "cifar100": 100}[dataset]
    torch.manual_seed(1)
    source = build_source(BUILDER, {"num_classes": classes})
    mean, std = (0.5,) * 3, (0.25,) * 3
    if original:
        state = torch.load(original, weights_only=True)
        source.load_state_dict(state["state"])
        mean, std = tuple(state["mean"].tolist()), tuple(state["std"].tolist())
    init = "first" if not original else "low-rank" if rank else "mean"
    about = rcnet.About("classify", size=(32, 32), classes=tuple(map(str, range(classes))))
    named = {"source": BUILDER, "options": {"num_classes": classes}, "mean": mean, "std": std}
    return rcnet.convert(source, STEPS, init, rank=rank, about=about, **named, **how)  # type: ignore[arg-type]


class Parts:
    """The results so far; a part that is there is not made again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all = kept(path)

    def make(self, dataset: str, name: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in self.all.get(dataset, {}):
            print(f"{dataset}: {name}", flush=True)
            about = {"hardware": hardware(DEVICE), "precision": resolve_precision("auto", DEVICE), "torch": torch.__version__}
            made = {**part(), **about, "commit": commit()}
            self.all = kept(self.path)  # which may hold the parts of runs beside this one by now
            self.all.setdefault(dataset, {})[name] = made
            record(self.path, self.all, render)
        return self.all[dataset][name]


def measure(data: Path, dataset: str, epochs: float, runs: Path, parts: Parts, only: list[str]) -> None:
    """The parts for one set of images, in the order in which they need each other; of those in `only` unless it is empty."""
    test, original = read_labelled(data, "test", dataset), runs / dataset / "original.pt"
    os.environ[WEIGHTS] = str(original)

    def first() -> dict[str, Any]:
        found = train_original(data, dataset, epochs, original)
        net = trained().to(DEVICE)
        with torch.device("meta"):
            cost = counted(lambda: resnet38()(torch.empty(1, 3, 32, 32)))
        size = sum(p.numel() for p in net.parameters())
        return {**found, "rows": [{"error": error_of(net, test), "macs": cost, "parameters": size}]}

    def start(rank: int, source: Path | None, **options: Any) -> tuple[rcnet.RecurrentNet, Path]:
        kind = "-".join(["converted" if source else "fresh", *options])
        path = runs / dataset / f"rank-{rank}-{kind}.safetensors"
        net = converted(dataset, rank, source, **options)
        rcnet.save(net, path)
        return net, path

    def after_conversion(rank: int, images: int = 0, **options: Any) -> dict[str, Any]:
        net = start(rank, original, **options)[0].to(DEVICE).eval()
        pixels = read_labelled(data, "train", dataset).images[:images]
        if images:
            rcnet.recalibrate(net, [part.to(DEVICE).float() / 255 for part in pixels.split(BATCH)])
        return {"rows": rows_of(net, test)}

    def after_training(
        rank: int, source: Path | None, name: str, how: list[str], length: float, **options: Any
    ) -> dict[str, Any]:
        path, out = start(rank, source, **options)[1], runs / dataset / name
        about = [f"init={path}", f"epochs={length}", f"classification.dataset={dataset}", f"batch={BATCH}"]
        recipe = read_recipe("finetune", [*about, *how])
        result = train(recipe, data, out, resume=True)
        net = rcnet.load(out / "weights.safetensors").to(DEVICE).eval()
        return {"epochs": length, "iterations": result["iterations"], "rows": rows_of(net, test)}

    taught = [f"teacher={TRAINED}", "optimizer.lr=0.04"]
    made: dict[str, Callable[[], dict[str, Any]]] = {
        ORIGINAL: first,
        **{f"converted, rank {rank}": partial(after_conversion, rank) for rank in RANKS},
        **{
            f"fine-tuned, rank {rank}": partial(after_training, rank, original, f"rank-{rank}", taught, epochs / 2)
            for rank in RANKS
        },
        **{f"converted, {name}": partial(after_conversion, rank, 2048, **how) for name, (rank, how, _) in VARIANTS.items()},
        **{
            f"fine-tuned, {name}": partial(after_training, rank, original, name, [*taught, *more], epochs / 2, **how)
            for name, (rank, how, more) in VARIANTS.items()
        },
        "from scratch": partial(after_training, 0, None, "scratch", FRESH, epochs / 2),
        "from scratch, as long as both": partial(after_training, 0, None, "scratch-long", FRESH, 1.5 * epochs),
    }
    for name in only or made:
        if name != ORIGINAL and "scratch" not in name and not original.is_file():
            raise SystemExit(f"{original} is not there, which {name} needs: remove {dataset} from {parts.path} to begin again")
        parts.make(dataset, name, made[name])


def render(found: dict[str, dict[str, Any]]) -> str:
    """The page."""
    lines = [
        "# A ResNet converted",
        "",
        "Rendered by `python -m benchmarks.conversion`. ResNet-38 (He et al. 2015; 16, 32 and 64 channels), trained here by",
        "plain PyTorch, becomes a stem, three cells, and the two blocks that change the shape, at 1, 3 or 5 steps. Fine-tuned:",
        "the recipe `finetune` with the original as its teacher. Ranks where they pay, features, and first blocks apart:",
        "`--adaptive`, `feature_weight=0.5` and `--apart` of docs/convert.md, all with norms measured again on 2,048 images.",
        "From scratch: the same shape with fresh weights, by that recipe with Muon and without a teacher; for the epochs of",
        "the fine-tuning, or as long as original and fine-tuning together. One seed; error in % on the 10,000 test images.",
    ]
    for dataset, parts in found.items():
        if ORIGINAL not in parts:
            continue
        first = parts[ORIGINAL]["rows"][0]
        lines += [
            "",
            f"## {dataset}",
            "",
        ]
        rows, missing = [], [name for name in PARTS if name not in parts]
        for name in (name for name in PARTS if name in parts):
            part = parts[name]
            run = [f"{part['epochs']:g}", part["iterations"]] if "epochs" in part else ["", ""]
            for row in part["rows"]:
                size = [f"{row['parameters']:,}", f"{row['parameters'] / first['parameters']:.2f}", f"{row['macs'] / 1e6:.1f}"]
                rows.append([name, *run, row.get("steps", ""), *size, f"{row['error']:.2f}"])
        heads = ["network", "epochs", "iterations", "steps", "parameters", "of the original's", "MMAC", "error %"]
        lines += table(heads, rows)
        lines += ["", f"Not yet measured: {'; '.join(missing)}."] if missing else []
    about = {f"{part['hardware']}, {part['precision']}, torch {part['torch']}" for of in found.values() for part in of.values()}
    commits = dict.fromkeys(part["commit"] for of in found.values() for part in of.values())
    return "\n".join([*lines, "", f"{'; '.join(sorted(about))}; commit {', '.join(commits)}.", ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="folder of CIFAR; without it, what was measured is rendered again")
    parser.add_argument("--dataset", choices=CIFAR, default="cifar10")
    parser.add_argument("--epochs", type=float, default=30, help="of the original")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", choices=PARTS, help="these parts")
    parser.add_argument("--runs", type=Path, default=Path("runs/conversion"), help="folder of the runs themselves")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    parts = Parts(args.out / "conversion.json")
    if args.data:
        measure(args.data, args.dataset, args.epochs, args.runs, parts, args.only)
    print(record(parts.path, parts.all, render))


if __name__ == "__main__":
    main()
