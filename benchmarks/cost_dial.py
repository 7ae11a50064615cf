"""The cost dial: latency against steps, the price of turning it between calls, R against S, and budgets kept.

    python -m benchmarks.cost_dial BSD68/ [--threads N] [--rounds N]

Latency: each step count in turns; ms to MACs at each, relative to that at the largest (1: latency grows as MACs do). Turning:
calls in random order, those whose predecessor took other steps against those whose predecessor took the same. R against S: the
cost-adjustable network and the standard one of the same graph, in turns. Budgets: real images denoised under budgets that lie
between the step counts' latencies; how many of 200 calls were in time. Results go to results/cost_dial.json and .md.
"""

import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import rcnet
from benchmarks.page import RESULTS, options, record, table
from rcnet.cost.counting import macs
from rcnet.data.images import list_images, read_image
from rcnet.data.noise import protocol_noise
from rcnet.device import autocast, hardware
from rcnet.models import create_model
from rcnet.network import RecurrentNet, unroll
from rcnet.runtime.latency import interleaved
from rcnet.training.provenance import commit

R3, R3_FAST, R2 = "r3.bsd-gray-25", "r3_fast.bsd-gray-25", "r2.cifar10"
LATENCY = [(R3_FAST, (321, 481), 1), (R3, (321, 481), 1), (R2, (32, 32), 1), (R2, (32, 32), 32)]  # size and batch
CALLS, IMAGE = 200, (160, 240)  # of the budgets: calls, and the pixels cut of each image


def inputs(model: RecurrentNet, size: tuple[int, int], batch: int) -> Tensor:
    x = torch.rand(batch, model.about.channels, *size)
    return x.contiguous(memory_format=torch.channels_last)


def plain_call(net: nn.Module, x: Tensor, *steps: int, precision: str = "fp32") -> None:
    with torch.inference_mode(), autocast(precision, x.device):
        net(x, *steps)


def median(calls: dict[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    return {key: statistics.median(times) for key, times in interleaved(calls, rounds, seconds=120).items()}


def latency(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name, size, batch in LATENCY:
        model = rcnet.load(name)
        x = inputs(model, size, batch)
        for precision in ("fp32", "bf16"):
            ms = median({n: partial(plain_call, model, x, n, precision=precision) for n in model.steps}, rounds)
            work = {n: macs(model, n, size, batch) for n in model.steps}
            last = model.steps[-1]
            for n in model.steps:
                relative = ms[n] / work[n] / (ms[last] / work[last])
                about = {"model": name, "size": size, "batch": batch, "precision": precision}
                rows.append({**about, "steps": n, "macs": work[n], "ms": ms[n], "relative": relative})
    return rows


def turning(rounds: int) -> list[dict[str, Any]]:
    """The mean over step counts of (after other steps) / (after the same steps) - 1."""
    rows = []
    for name, size in ((R3_FAST, (321, 481)), (R2, (32, 32))):
        model = rcnet.load(name)
        x = inputs(model, size, 1)
        order = [n for n in model.steps for _ in range(8 * rounds)]
        random.Random(0).shuffle(order)
        times: dict[tuple[int, bool], list[float]] = {}
        for before, n in zip([order[-1], *order[:-1]], order, strict=True):
            started = time.perf_counter()
            plain_call(model, x, n)
            times.setdefault((n, before == n), []).append(time.perf_counter() - started)
        costs = [statistics.median(times[n, False]) / statistics.median(times[n, True]) - 1 for n in model.steps]
        rows.append({"model": name, "size": size, "calls": len(order), "cost": statistics.mean(costs), "largest": max(costs)})
    return rows


def pairs(rounds: int) -> list[dict[str, Any]]:
    """R2^4 and S2^4, R3^4 and S3^4: R with all its steps, R unrolled for four, S."""
    rows = []
    for r, s, size in (("r2", "s2", (32, 32)), ("r3", "s3", (64, 64))):
        recurrent, standard = create_model(r).eval(), create_model(s, steps=4).eval()
        for batch in (1, 32):
            x = inputs(recurrent, size, batch)
            nets = {"unrolled": unroll(recurrent, 4), "S": standard}
            calls = {name: partial(plain_call, net, x) for name, net in nets.items()}
            ms = median({"R": partial(plain_call, recurrent, x, 4), **calls}, rounds)
            rows.append({"recurrent": r, "standard": s, "size": size, "batch": batch, **ms, "ratio": ms["R"] / ms["S"]})
    return rows


def budgets(folder: Path) -> list[dict[str, Any]]:
    """200 calls a budget, on pieces of real images."""
    model = rcnet.load(R3_FAST)
    pieces = [protocol_noise(read_image(file, 1)[: IMAGE[0], : IMAGE[1]], 25) for file in list_images(folder)]
    known = rcnet.cost.latencies(model, IMAGE)
    p95 = [known[n]["p95"] for n in model.settings if n.uniform]
    rows = []
    for low, high in zip(p95, [*p95[1:], 1.5 * p95[-1]], strict=True):
        budget = f"{(low + high) / 2:.3g}ms"
        steps = rcnet.steps_for(model, budget, IMAGE)
        amount = float(budget.removesuffix("ms"))
        taken = []
        for k in range(CALLS):
            x = pieces[k % len(pieces)]
            started = time.perf_counter()
            plain_call(model, x, steps)
            taken.append(1000 * (time.perf_counter() - started))
        kept = sum(ms <= amount for ms in taken) / CALLS
        rows.append({"budget": budget, "steps": steps, "ms": statistics.median(taken), "kept": kept})
    return rows


def render(result: dict[str, Any]) -> str:
    def sides(row: dict[str, Any]) -> str:
        return "x".join(map(str, row["size"]))

    far = [
        f"{row['model']} {row['precision']} at steps {row['steps']} ({row['relative'] - 1:+.0%})"
        for row in result["latency"]
        if abs(row["relative"] - 1) > 0.15
    ]
    lines = [
        "# The cost dial",
        "",
        f"Rendered by `python -m benchmarks.cost_dial`: {result['hardware']}, torch {result['torch']}, plain eager calls,",
        f"networks and weights of commit {result['commit']}. {result.get('note', '')}".strip(),
        "",
        "## Latency against steps",
        "",
        "*relative*: ms to MACs, to that at the largest step count. Asked: within 15%; "
        + (f"farther: {', '.join(far)}." if far else "met by all."),
        "",
        *table(
            ["weights", "input", "batch", "precision", "steps", "GMAC", "ms", "relative"],
            [
                [
                    f"`{row['model']}`", sides(row), row["batch"], row["precision"], row["steps"], f"{row['macs'] / 1e9:.3f}",
                    f"{row['ms']:.2f}", f"{row['relative']:.2f}",
                ]
                for row in result["latency"]
            ],
        ),
        "",
        "## Turning the dial between calls",
        "",
        "Asked: less than 2% of a call.",
        "",
        *table(
            ["weights", "input", "calls", "cost, mean of the step counts", "the largest"],
            [
                [f"`{row['model']}`", sides(row), row["calls"], f"{row['cost']:+.2%}", f"{row['largest']:+.2%}"]
                for row in result["turning"]
            ],
        ),
        "",
        "## R against S at four steps, the same graph",
        "",
        *table(
            ["networks", "input", "batch", "R, ms", "R unrolled, ms", "S, ms", "R to S"],
            [
                [
                    f"{row['recurrent']}, {row['standard']}", sides(row), row["batch"], f"{row['R']:.2f}",
                    f"{row['unrolled']:.2f}", f"{row['S']:.2f}", f"{row['ratio']:.3f}",
                ]
                for row in result["pairs"]
            ],
        ),
        "",
        "## Budgets",
        "",
        f"r3_fast, {CALLS} calls a budget on BSD68 images cut to {IMAGE[0]}x{IMAGE[1]}; asked: 95% in time.",
        "",
        *table(
            ["budget", "steps chosen", "median ms", "calls in time"],
            [[row["budget"], row["steps"], f"{row['ms']:.1f}", f"{row['kept']:.1%}"] for row in result["budgets"]],
        ),
    ]  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", type=Path, help="folder of the BSD68 images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = {"latency": latency, "turning": turning, "pairs": pairs, "budgets": lambda _: budgets(args.data)}
    result: dict[str, Any] = {
        "hardware": hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "commit": commit(),
    }
    for name, part in tqdm(parts.items(), disable=None):
        result[name] = part(args.rounds)
    print(record(RESULTS / "cost_dial.json", result, render))


if __name__ == "__main__":
    main()
