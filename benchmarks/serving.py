"""Serving under a peak: the dial against one setting for all, and against the endpoint that people write.

    pip install 'rcnet[serve,plots]'
    python -m benchmarks.serving BSD68/gray [--seconds N] [--objective MS]

Real servers, one thread for the network each, on loopback; noisy crops of the pictures as PNG, sent by an open-loop generator in
a process of its own (benchmarks/generator.py). The first trace has a valley, a peak at three times the capacity of the largest
setting, and a valley; the capacity is measured first. It is sent to `rcnet serve` with the default policy, with the largest
setting fixed and with the least fixed, and to a plain FastAPI endpoint of the largest (benchmarks/plain.py). The second trace is
of two models on one server: a peak of the one, then of both. A second of each peak goes first and does not count. Then four and
sixteen clients that ask again at once, and an open loop at 2, 5 and 10 times what four get, press each of the first servers, and
LitServe where it is installed (benchmarks/lit.py). Times count from the moment at which a request was due until its last byte.
The objective has to leave the largest setting room to be served at all: about four times what it takes alone. Results go to
results/serving.json, tables to results/serving.md, the picture to results/serving.png.
"""

import asyncio
import base64
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.generator import Call, Outcome, closed, generate
from benchmarks.page import RESULTS, asked_table, kept, options, record, table

DENOISER, CLASSIFIER = "r3_fast.bsd-gray-25", "r2.cifar10"
SIDE, SIGMA, PICTURES = 256, 25, 16  # of the crops; how many of them
POLICIES = {"adaptive": "slack", "fixed largest": "fixed", "fixed least": "least"}
PLAIN, LIT = "plain FastAPI", "LitServe"
TRACE = ((0.3, {DENOISER: 1 / 3}), (0.4, {DENOISER: 3}), (0.3, {DENOISER: 1 / 3}))  # part of the time, rate in capacities
TRACE_OF_TWO = (
    (0.25, {DENOISER: 0.2, CLASSIFIER: 0.2}),
    (0.25, {DENOISER: 2, CLASSIFIER: 0.2}),
    (0.25, {DENOISER: 2, CLASSIFIER: 0.7}),
    (0.25, {DENOISER: 0.2, CLASSIFIER: 0.2}),
)
PATHS = {DENOISER: "/v1/denoise", CLASSIFIER: "/v1/classify"}
CLIENTS, TIMES = (4, 16), (2, 5, 10)  # that retry at once; times what four get, in an open loop
BIN, TICKS = 0.5, (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # seconds and milliseconds, of the picture


def crops(folder: Path) -> tuple[list[np.ndarray], list[bytes]]:
    """Clean crops of the pictures' middles, uint8, and the PNGs of them with noise."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg"))[:PICTURES]
    clean, noisy = [], []
    for seed, file in enumerate(files):
        image = Image.open(file).convert("L")
        left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
        clean.append(np.asarray(image.crop((left, top, left + SIDE, top + SIDE))))
        noise = np.random.RandomState(seed).normal(0, SIGMA, clean[-1].shape)
        stream = io.BytesIO()
        Image.fromarray(np.clip(np.rint(clean[-1] + noise), 0, 255).astype(np.uint8)).save(stream, "PNG")
        noisy.append(stream.getvalue())
    return clean, noisy


def calls_of(trace: Sequence[tuple[float, dict[str, float]]], capacity: dict[str, float], seconds: float) -> list[Call]:
    """Requests at random moments, at the rates of the trace."""
    rng, start, calls = random.Random(0), 0.0, []
    for part, rates in trace:
        end = start + part * seconds
        for model, rate in rates.items():
            due = start + rng.expovariate(rate * capacity[model])
            while due < end:
                calls.append(Call(due, PATHS[model], rng.randrange(PICTURES)))
                due += rng.expovariate(rate * capacity[model])
        start = end
    return sorted(calls)


@contextlib.contextmanager
def running(*command: str, core: int | None = None) -> Iterator[str]:
    """The address of a server that is ready, on one core if that is named, until it is ended."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", *command], env=environment, preexec_fn=lambda: stay_on(core))
    url = f"http://127.0.0.1:{command[-1]}"
    try:
        while not answers(url):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended before it was ready")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(40)


def stay_on(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/openapi.json", timeout=5).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    import socket

    with socket.socket() as any_:
        any_.bind(("127.0.0.1", 0))
        return int(any_.getsockname()[1])


def capacity_of(url: str, path: str, bodies: Sequence[bytes], seconds: float = 3.0) -> float:
    """Requests a second that four clients get, each of which sends the next when it has its answer."""
    end = time.perf_counter() + seconds

    def client(place: int) -> int:
        count = 0
        while time.perf_counter() < end:
            request = urllib.request.Request(f"{url}{path}?deadline_ms=20000", bodies[(place + count) % len(bodies)])
            urllib.request.urlopen(request, timeout=30).read()
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(client, range(4))) / seconds


def psnr(data: bytes, clean: np.ndarray) -> float:
    error = np.mean((np.asarray(Image.open(io.BytesIO(data)), np.float64) - clean) ** 2)
    return float(10 * np.log10(255**2 / error))


def summary(
    pairs: Sequence[tuple[Call, Outcome]], clean: Sequence[np.ndarray], about: dict[str, Any], objective: float
) -> dict[str, Any]:
    """What became of the requests for one model; `about`: as in GET /v1/models, without which all are of the largest setting."""
    cost = {s["setting"]: s["macs_per_pixel"] for s in about["settings"]}
    largest = [s["setting"] for s in about["settings"] if s["offered"]][-1]
    given = [(call, o, o.headers.get("rcnet-setting", largest)) for call, o in pairs if o.status == 200]
    refused = sum(o.status in (413, 429) for _, o in pairs)
    in_time = sum(o.seconds <= objective for _, o, _ in given)
    found = {
        "requests": len(pairs),
        "refused": refused,
        "answered": len(given),
        "in_time": in_time,
        "share": in_time / max(len(pairs) - refused, 1),
        "median_ms": 1000 * statistics.median([o.seconds for _, o, _ in given] or [0]),
        "p95_ms": 1000 * float(np.percentile([o.seconds for _, o, _ in given] or [0], 95)),
        "cost": statistics.mean([cost[label] / cost[largest] for *_, label in given] or [0]),
        "settings": dict(Counter(label for *_, label in given)),
        "statuses": dict(Counter(str(o.status) for _, o in pairs)),
    }
    if about["task"] == "denoise":
        found["quality"] = statistics.mean([psnr(o.body, clean[call.body]) for call, o, _ in given] or [0])
    else:
        error = {s["setting"]: s["error"] for s in about["settings"]}
        found["quality"] = statistics.mean([error[label] for *_, label in given] or [0])
    return found | {"bins": bins(pairs, cost, largest, objective)}


def bins(
    pairs: Sequence[tuple[Call, Outcome]], cost: dict[str, float], largest: str, objective: float
) -> dict[str, list[float | None]]:
    """By time: requests a second, those answered within the objective, mean cost, the 95th percentile of the answers' ms."""
    found: dict[str, list[float | None]] = {"offered": [], "in_time": [], "cost": [], "p95_ms": []}
    for place in range(1 + int(max(call.due for call, _ in pairs) / BIN)):
        here = [o for call, o in pairs if int(call.due / BIN) == place]
        given = [o for o in here if o.status == 200]
        found["offered"].append(len(here) / BIN)
        found["in_time"].append(sum(o.seconds <= objective for o in given) / BIN)
        costs = [cost[o.headers.get("rcnet-setting", largest)] / cost[largest] for o in given]
        found["cost"].append(statistics.mean(costs) if costs else None)
        found["p95_ms"].append(1000 * float(np.percentile([o.seconds for o in given], 95)) if given else None)
    return found


def overhead(core: int | None) -> dict[str, float]:
    """Milliseconds that the engine adds to computing, on one core if that is named."""
    stay_on(core)
    return asyncio.run(_overhead())


async def _overhead(count: int = 150) -> dict[str, float]:
    """One request at a time: queue, policy, the way to the worker and back."""
    from rcnet.serve.engine import Engine
    from rcnet.serve.policies import slack
    from rcnet.serve.served import Work
    from rcnet.serve.worker import Plan

    engine = Engine([Plan((DENOISER,), threads=1)], slack, 5.0)
    await engine.start()
    added = []
    work = Work(np.random.RandomState(0).randint(0, 256, (SIDE, SIDE, 1)).astype(np.uint8))
    for _ in range(count):
        started = engine.clock()
        answer = await engine.submit(DENOISER, work, started + 5)
        added.append(1000 * (engine.clock() - started - answer.computing))
    await engine.stop()
    return {"median_ms": statistics.median(added), "p95_ms": float(np.percentile(added, 95)), "requests": count}


def measure(folder: Path, seconds: float, cores: Sequence[int | None], objective: float) -> dict[str, Any]:
    """All runs, one after the other; the servers that have no turn are idle."""
    import torch

    from rcnet.device import hardware
    from rcnet.training.provenance import commit

    clean, noisy = crops(folder)
    serve = ("--slo", f"{1000 * objective:.0f}ms", "--threads", "1")
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> str:
            return stack.enter_context(running(*command, "--port", str(free_port()), core=cores[0]))

        one = {name: start("rcnet", "serve", DENOISER, *serve, "--policy", of) for name, of in POLICIES.items()}
        two = {name: start("rcnet", "serve", DENOISER, CLASSIFIER, *serve, "--policy", of) for name, of in POLICIES.items()}
        about = {model["name"]: model for model in json.load(urllib.request.urlopen(f"{two['adaptive']}/v1/models"))}
        largest = [s["setting"] for s in about[DENOISER]["settings"] if s["offered"]][-1]
        one[PLAIN] = start("benchmarks.plain", DENOISER, "--steps", largest)
        pool = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), stay_on, (cores[1],)))
        aside = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        pool.submit(generate, one["adaptive"], [], []).result()
        print("measuring", flush=True)

        capacity = {model: capacity_of(two["fixed largest"], PATHS[model], noisy) for model in PATHS}
        result = {
            "hardware": hardware(torch.device("cpu")),
            "cores": os.cpu_count() if cores[0] is None else 1,
            "torch": torch.__version__,
            "commit": commit(),
            "seconds": seconds,
            "objective_ms": 1000 * objective,
            "capacity": capacity,
            "largest": largest,
            "overhead": aside.submit(overhead, cores[0]).result(),
        }
        # The plain endpoint, the last of `one`, goes on with what its clients gave up, and would slow the next server.
        for key, trace, servers in (("two", TRACE_OF_TWO, two), ("one", TRACE, one)):
            calls = calls_of(trace, capacity, seconds)
            result[key] = {}
            peak = 0.4 * seconds
            first = [call._replace(due=call.due - peak) for call in calls if peak < call.due < peak + 1]  # does not count
            for name, url in servers.items():
                print(f"{key}: {name}", flush=True)
                pool.submit(generate, url, first, noisy).result()
                outcomes = pool.submit(generate, url, calls, noisy).result()
                pairs = list(zip(calls, outcomes, strict=True))
                lag = max(o.lag for o in outcomes)
                result[key][name] = {"lag_ms": 1000 * lag} | {
                    model: summary([pair for pair in pairs if pair[0].path == PATHS[model]], clean, about[model], objective)
                    for model in (PATHS if key == "two" else [DENOISER])
                }
        result["retries"] = {}
        for name in POLICIES:
            print(f"retries: {name}", flush=True)
            result["retries"][name] = retries(lambda url=one[name]: contextlib.nullcontext(url), noisy, pool, seconds / 4)
        for name, module, bodies in ((PLAIN, "plain", noisy), (LIT, "lit", as_json(noisy))):
            if name == PLAIN or importlib.util.find_spec("litserve"):
                print(f"retries: {name}", flush=True)
                command = f"benchmarks.{module}", DENOISER, "--steps", largest, "--port"
                result["retries"][name] = retries(
                    lambda command=command: running(*command, str(free_port()), core=cores[0]), bodies, pool, seconds / 4
                )
        print("measured", flush=True)
    return result


def goodput(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Answers a second, their times, and what the others were told."""
    times = [o.seconds for o in outcomes if o.status == 200]
    return {
        "requests": len(outcomes),
        "per_second": len(times) / seconds,
        "p95_ms": 1000 * float(np.percentile(times or [0], 95)),
        "statuses": dict(Counter(str(o.status) for o in outcomes)),
    }


def as_json(pictures: Sequence[bytes]) -> list[bytes]:
    """Bodies that benchmarks/lit.py reads."""
    return [b'{"image": "' + base64.b64encode(picture) + b'"}' for picture in pictures]


def retries(
    serving: Callable[[], contextlib.AbstractContextManager[str]],
    bodies: Sequence[bytes],
    pool: ProcessPoolExecutor,
    seconds: float,
) -> dict[str, Any]:
    """Goodput of one server as clients press it harder: more of them that retry at once, and more than it can take.

    A server that goes on with what its clients gave up is started anew for each.
    """
    path, found = PATHS[DENOISER], {}

    def press(name: str, generator: Callable[..., list[Outcome]], *options: Any) -> None:
        with serving() as url:
            pool.submit(closed, url, path, bodies, CLIENTS[0], 1.0).result()  # does not count
            outcomes = pool.submit(generator, url, *options).result()
        found[name] = goodput(outcomes, seconds)

    for clients in CLIENTS:
        press(f"{clients} clients that ask again at once", closed, path, bodies, clients, seconds)
    capacity = next(iter(found.values()))["per_second"]
    for times in TIMES:
        calls = calls_of(((1.0, {DENOISER: times}),), {DENOISER: capacity}, seconds)
        press(f"open loop at {times} times that", generate, calls, bodies)
    return found


def asked(result: dict[str, Any]) -> list[tuple[str, str, float, bool]]:
    """What was asked of the server: what, the bound, what was measured, whether it is met."""
    one = {name: run[DENOISER] for name, run in result["one"].items()}
    adaptive = one["adaptive"]
    times = adaptive["in_time"] / max(one["fixed largest"]["in_time"], 1)
    more = adaptive["quality"] - one["fixed least"]["quality"]
    overhead_ms = result["overhead"]["median_ms"]
    pressed = list(result.get("retries", {}).get("adaptive", {}).values())
    least = min((run["per_second"] / pressed[0]["per_second"] for run in pressed), default=0.0)
    slowest = max((run["p95_ms"] for run in pressed), default=0.0)
    broken = sum(count for run in pressed for status, count in run["statuses"].items() if status not in ("200", "429"))
    more_clients = [
        ("retries: answers a second of the worst, % of what four clients get", ">= 90", 100 * least, least >= 0.9),
        ("retries: 95 % of the answers, ms, at most", "objective", slowest, slowest <= result["objective_ms"]),
        ("retries: requests that were neither answered nor refused with 429", "0", broken, broken == 0),
    ]
    return [
        *(more_clients if pressed else []),
        (
            "adaptive: admitted requests answered within the objective, %",
            ">= 95",
            100 * adaptive["share"],
            adaptive["share"] >= 0.95,
        ),
        ("adaptive: as many within the objective as fixed largest, times", ">= 2", times, times >= 2),
        ("adaptive: mean PSNR above fixed least, dB", "> 0", more, more > 0),
        ("the engine's time a request beyond computing, batch 1, ms", "< 1", overhead_ms, overhead_ms < 1),
    ]


def servers(runs: dict[str, Any], model: str, unit: str) -> list[str]:
    heads = [
        "server",
        "requests",
        "refused at once",
        "answered",
        "in time",
        "of the admitted",
        "median ms",
        "95 % ms",
        "mean cost",
    ]
    rows = []
    for name, run in runs.items():
        r = run[model]
        cells = [r["requests"], r["refused"], r["answered"], r["in_time"], f"{100 * r['share']:.1f} %", f"{r['median_ms']:.0f}"]
        cells += [f"{r['p95_ms']:.0f}", f"{100 * r['cost']:.0f} %", f"{r['quality']:.2f}"]
        rows.append([name, *cells])
    return table([*heads, unit], rows)


def retries_table(result: dict[str, Any]) -> list[str]:
    """Of each server under pressure."""
    lines = [
        "## Clients that retry at once, and more than the server can take",
        "",
        f"Answers a second, within {result['seconds'] / 4:g} s each; the share is of what {CLIENTS[0]} clients get.",
        "",
        "| server | clients | answers/s | share | 95 % ms | answers by status |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in result["retries"].items():
        base = next(iter(runs.values()))["per_second"]
        for clients, run in runs.items():
            share = f"{100 * run['per_second'] / max(base, 1e-9):.0f} %"
            statuses = ", ".join(f"{count} of {status}" for status, count in sorted(run["statuses"].items()))
            lines.append(f"| {name} | {clients} | {run['per_second']:.1f} | {share} | {run['p95_ms']:.0f} | {statuses} |")
    return [*lines, ""]


def machine(result: dict[str, Any]) -> str:
    together = f"{result['cores']} cores for server, network and generator together"
    return "one core for server and network, another for the generator" if result["cores"] == 1 else together


def render(result: dict[str, Any]) -> str:
    capacity = result["capacity"]
    over = result["overhead"]
    return "\n".join(
        [
            "# Serving under a peak",
            "",
            f"Rendered by `python -m benchmarks.serving`: {result['hardware']}, {machine(result)},",
            f"torch {result['torch']}, commit {result['commit']}. Traces of {result['seconds']:g} s; crops of {SIDE}x{SIDE},",
            f"noise of sigma {SIGMA}, PNG in and out. In time: within {result['objective_ms']:.0f} ms from when a request was",
            f"due to its last byte. Cost: MACs, mean of the answers, of those of the largest setting, ({result['largest']}).",
            "",
            "![Requests, cost and time over time](serving.png)",
            "",
            f"## A peak at three times the capacity of the largest setting ({capacity[DENOISER]:.1f} requests/s), `{DENOISER}`",
            "",
            *servers(result["one"], DENOISER, "PSNR dB, mean of the answers"),
            "",
            f"The engine: {over['requests']} requests alone, one after the other, took {over['median_ms']:.2f} ms (median; 95 %:",
            f"{over['p95_ms']:.2f} ms) beyond computing in the engine.",
            "",
            f"## Two models: first a peak of `{DENOISER}`, then of both (`{CLASSIFIER}`: {capacity[CLASSIFIER]:.1f} requests/s)",
            "",
            f"`{DENOISER}`:",
            "",
            *servers(result["two"], DENOISER, "PSNR dB, mean of the answers"),
            "",
            f"`{CLASSIFIER}`:",
            "",
            *servers(result["two"], CLASSIFIER, "error % of the settings, as recorded, mean of the answers"),
            "",
            *(retries_table(result) if "retries" in result else []),
            "## What was asked",
            "",
            *asked_table(asked(result)),
            "",
        ]
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Over time, a column a trace: requests and answers a second, cost, the 95th percentile of the time."""
    from rcnet.figures.plots import page, style, to_image

    columns = [(result["one"], DENOISER, "one model"), *((result["two"], name, f"two models: {name}") for name in PATHS)]
    with page(6.0) as figure:
        axes = figure.subplots(3, len(columns), sharex="col")
        for column, (runs, model, title) in zip(axes.T, columns, strict=True):
            offered = runs["adaptive"][model]["bins"]["offered"]
            times = [BIN * (place + 0.5) for place in range(len(offered))]
            column[0].step(times, offered, where="mid", color="0.6", linewidth=1, label="requests")
            for place, (name, run) in enumerate(runs.items()):
                look = style(place) | {"marker": "", "linewidth": 1.3, "label": name}
                for row, key, factor in ((0, "in_time", 1), (1, "cost", 100), (2, "p95_ms", 1)):
                    values = [np.nan if value is None else factor * value for value in run[model]["bins"][key]]
                    column[row].plot(times[: len(values)], values, **look)
            column[2].axhline(result["objective_ms"], color="0.4", linewidth=0.8)
            column[2].set(yscale="log", xlabel="seconds")
            limits = column[2].get_ylim()
            column[2].set_yticks(TICKS, map(str, TICKS))
            column[2].minorticks_off()
            column[2].set_ylim(limits)
            column[0].set_title(title, fontsize=8)
        for row, label in zip(axes[:, 0], ("within the objective, 1/s", "mean cost, %", "95th percentile, ms"), strict=True):
            row.set_ylabel(label)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
        to_image(figure).save(path)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "images", type=Path, nargs="?", help="folder of pictures; without it, what was measured is rendered again"
    )
    parser.add_argument("--seconds", type=float, default=22, help="of a trace")
    parser.add_argument("--objective", type=float, default=150, help="of the servers, in milliseconds")
    parser.add_argument("--cores", type=int, nargs=2, default=(None, None), help="of the server and of the generator, to stay on")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    path = args.out / "serving.json"
    result = measure(args.images, args.seconds, args.cores, args.objective / 1000) if args.images else kept(path)
    page = record(path, result, render)
    draw(result, args.out / "serving.png")
    print(page)


if __name__ == "__main__":
    main()
