"""ONNX Runtime and torch side by side: the time of a call, the start of a command, a large picture, sizes.

    python -m benchmarks.runtime [--rounds 20] [--starts 7] [--only NAME ...]

Calls: each bundled network at its least and most setting, one core, in turns: the exported file by ONNX Runtime, torch's fast
sessions in fp32, and in bf16 where the processor has it; a denoiser on 512x512 pixels, a classifier on one image of its size.
Ratios are of medians. Starts: commands from start to end, in turns, the median. Large: a picture of 24 megapixels at one step,
seconds and peak memory of the process. Sizes: of the exported files, and of what `pip install rcnet` installs. Results go to
results/runtime.json, the tables to results/runtime.md. Run it on quiet cores: starts and seconds are not ratios.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import rcnet
from benchmarks.page import RESULTS, asked_table, options, record, table
from rcnet.deploy.torch_session import TorchSession
from rcnet.device import gains_by_bf16
from rcnet.runtime.latency import interleaved
from rcnet.runtime.onnx import OnnxSession, bundled_files
from rcnet.runtime.session import Session
from rcnet.training.provenance import commit, made_here

SIDE = 512  # pixels, of the picture that denoisers are timed on: a tile
LARGE = (6000, 4000)  # width and height: 24 megapixels, as cameras have
STARTS = {
    "rcnet --help": ["--help"],
    "rcnet models": ["models"],
    "rcnet denoise small.png": ["denoise", "small.png", "-o", "out.png"],
    "rcnet denoise small.png --runtime torch": ["denoise", "small.png", "-o", "out.png", "--runtime", "torch"],
}


def calls(name: str, rounds: int) -> list[dict[str, Any]]:
    """A row for the least and the most setting: the median milliseconds of each session."""
    network = rcnet.load(name)
    sessions: dict[str, Session] = {"onnx": OnnxSession(bundled_files()[name], threads=1)}
    precisions = ("fp32", "bf16") if gains_by_bf16(torch.device("cpu")) else ("fp32",)
    sessions |= {precision: TorchSession(rcnet.optimize(network, precision=precision)) for precision in precisions}
    size, about = network.about.size or (SIDE, SIDE), network.about
    x = np.random.default_rng(0).random((1, about.channels, *size), np.float32)
    level = np.full((1, about.levels, 1, 1), 15, np.float32) if about.takes_level else None
    rows = []
    for n in dict.fromkeys((network.settings[0], network.settings[-1])):
        times = interleaved({key: partial(s.run, x, n, level) for key, s in sessions.items()}, rounds, seconds=120)
        rows.append({"name": name, "steps": n.to_json(), "ms": {key: statistics.median(t) for key, t in times.items()}})
    return rows


def timed(command: list[str], folder: Path) -> float:
    """Seconds of a command, from start to end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "rcnet", *command], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def starts(times: int, folder: Path) -> dict[str, float]:
    """The median seconds of each command, in turns; the first round reads the files from the disk and does not count."""
    photo = Image.open(str(files("rcnet") / "assets" / "cameraman.png")).convert("RGB")
    photo.crop((80, 60, 240, 180)).save(folder / "small.png")
    rounds = [{name: timed(command, folder) for name, command in STARTS.items()} for _ in range(times + 1)][1:]
    return {name: statistics.median(row[name] for row in rounds) for name in STARTS}


def large(folder: Path) -> list[dict[str, Any]]:
    """Seconds and peak memory in MB of 24 megapixels at one step, by each runtime."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 216, (40, 60, 3), np.uint8)).resize(LARGE, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-20, 21, (LARGE[1], LARGE[0], 3), np.int16)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "large.bmp")
    rows = []
    for name, more in {"onnx": ["--runtime", "onnx"], "torch": ["--runtime", "torch"], "auto": []}.items():
        command = ["denoise", "large.bmp", "-o", "out.bmp", "--steps", "1", "--threads", "1", *more]
        # The process's own peak (Linux): ru_maxrss of a child is at least what its parent holds.
        code = "import re, sys; from rcnet.cli import main; main(sys.argv[1:]); "
        code += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)"
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *command], cwd=folder, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        rows.append({"runtime": name, "seconds": seconds, "megabytes": 1024 * int(done.stderr.split()[-1]) / 1e6})
    return rows


def installed() -> dict[str, float]:
    """Megabytes of each package that `pip install rcnet` installs, from what is installed here."""
    todo, found = ["rcnet"], {}
    while todo:
        name = todo.pop()
        if name in found:
            continue
        package = metadata.distribution(name)
        paths = [Path(str(path.locate())) for path in package.files or ()]
        found[name] = sum(path.stat().st_size for path in paths if path.is_file()) / 1e6
        for requirement in package.requires or ():
            if not re.search("extra ==|python_version|sys_platform|platform_system", requirement):
                todo.append(re.match(r"[\w.-]+", requirement)[0])  # type: ignore[index]
    root = Path(str(files("rcnet")))
    found["rcnet"] = (
        sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts) / 1e6
    )
    return found


def measure(rounds: int, times: int, names: list[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "files": {name: path.stat().st_size / 1e6 for name, path in bundled_files().items()},
            "installed": installed(),
            "starts": starts(times, Path(folder)),
            "large": large(Path(folder)),
            "calls": [row for name in names for row in calls(name, rounds)],
        }
    return {**result, **made_here(torch.device("cpu")), "commit": commit()}


def render(result: dict[str, Any]) -> str:
    rows = []
    for row in result["calls"]:
        ms = row["ms"]
        ratios = [f"{ms[key] / ms['onnx']:.2f}" if key in ms else "" for key in ("fp32", "bf16")]
        times = [f"{ms[key]:.1f}" if key in ms else "" for key in ("onnx", "fp32", "bf16")]
        steps = row["steps"] if isinstance(row["steps"], int) else ",".join(map(str, row["steps"]))
        rows.append([f"`{row['name']}`", steps, *times, *ratios])
    denoisers = [row["ms"]["fp32"] / row["ms"]["onnx"] for row in result["calls"] if row["name"].startswith("r3")]
    by = {row["runtime"]: row for row in result["large"]}
    asked = [
        ("installed, MB", sum(result["installed"].values()), 200),
        ("`rcnet --help`, s", result["starts"]["rcnet --help"], 0.15),
        ("`rcnet denoise small.png`, s", result["starts"]["rcnet denoise small.png"], 0.5),
        ("24 megapixels at one step, MB", by["auto"]["megabytes"], 550),
    ]
    checks = [(what, f"at most {most}", value, value <= most) for what, value, most in asked]
    if denoisers:
        least = min(denoisers)
        checks.append(("the least ratio of a denoiser, fp32", "at least 1.25", least, least >= 1.25))
    return "\n".join(
        [
            "# ONNX Runtime and torch, side by side",
            "",
            f"Rendered by `python -m benchmarks.runtime`, commit {result['commit']}, {result['hardware']}. One core, calls in",
            f"turns, denoisers on {SIDE}x{SIDE} pixels. Ratios: the time of torch's fast sessions over that of ONNX Runtime.",
            "",
            *asked_table(checks),
            "",
            *table(["weights", "steps", "ONNX Runtime, ms", "torch fp32", "torch bf16", "ratio, fp32", "ratio, bf16"], rows),
            "",
            *table(["command", "seconds"], [[f"`{name}`", f"{seconds:.2f}"] for name, seconds in result["starts"].items()]),
            "",
            "24 megapixels in colour at one step, read and written as BMP:",
            "",
            *table(
                ["`--runtime`", "seconds", "peak memory, MB"],
                [[row["runtime"], f"{row['seconds']:.1f}", f"{row['megabytes']:.0f}"] for row in result["large"]],
            ),
            "",
            *table(["exported file", "MB"], [[f"`{name}.onnx`", f"{size:.2f}"] for name, size in result["files"].items()]),
            "",
            *table(
                ["installed by `pip install rcnet`", "MB"],
                [[name, f"{size:.1f}"] for name, size in sorted(result["installed"].items(), key=lambda item: -item[1])],
            ),
            "",
        ]
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="of the calls")
    parser.add_argument("--starts", type=int, default=7, help="of each command")
    parser.add_argument(
        "--only", nargs="*", metavar="NAME", choices=list(bundled_files()), help="these weights; all unless given"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    print(record(args.out / "runtime.json", measure(args.rounds, args.starts, args.only or list(bundled_files())), render))


if __name__ == "__main__":
    main()
