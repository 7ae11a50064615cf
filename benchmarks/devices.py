"""Runtimes of browsers and phones beside those of servers: processor time of each setting, parity and size.

    pip install 'rcnet[executorch,bench]' playwright; python examples/web/build.py
    python -m benchmarks.devices [--model r3_fast.photo] [--rounds N]

One picture of 321x481 pixels, all in one thread: PyTorch (a fast session), ONNX Runtime, ONNX Runtime Web (WebAssembly, in
Chromium) and ExecuTorch (XNNPACK, left out where it is not installed), in turns. The time is that of the processor, as the system
counts it for the process, so that other work on the machine matters less; on an idle core the clock shows the same. Results go to
results/devices.json, the table to results/devices.md.
"""

import base64
import importlib.util
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import data

import rcnet
from benchmarks.page import RESULTS, options, record, table
from rcnet.cost.counting import macs
from rcnet.deploy.export import export, load_exported
from rcnet.device import hardware
from rcnet.network import RecurrentNet
from rcnet.setting import Setting
from rcnet.training.provenance import commit

ROOT = Path(__file__).parent.parent
SIZE = (321, 481)
RUN = """async ([planes, height, width, place, times]) => {
  const { denoise } = await import("./denoise.js");
  const image = new Float32Array(Uint8Array.from(atob(planes), (c) => c.charCodeAt(0)).buffer);
  let out;
  for (let i = 0; i < times; i++) await denoise(image, width, height, place, -1, (tile) => { out = tile.data; });
  return times > 1 ? null : Array.from(out);
}"""
Call = Callable[[np.ndarray], np.ndarray | None]


def processor_ms(pids: list[int]) -> float:
    """Processor time that these processes have taken, in milliseconds."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return 1000 * sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def descendants() -> list[int]:
    """The processes that this one started, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return sorted(found - {os.getpid()})


def renderers() -> list[int]:
    """Chromium's processes that compute for pages."""
    return [pid for pid in descendants() if "--type=renderer" in Path(f"/proc/{pid}/cmdline").read_text()]


@contextmanager
def browser(site: Path) -> Iterator[tuple[Any, str]]:
    """A page of that folder, served without the headers that would give it threads; and Chromium's version."""
    from playwright.sync_api import sync_playwright

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as serving, sync_playwright() as play:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{serving.server_port}/model.json")  # nothing else runs in it
        yield page, chromium.version
        chromium.close()
        serving.shutdown()


def builder() -> Any:
    """The module that builds the page of examples/web."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "examples" / "web" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_page(page: Any, place: int, x: np.ndarray, times: int = 1) -> np.ndarray | None:
    planes = base64.b64encode(x.tobytes()).decode()
    out = page.evaluate(RUN, [planes, *x.shape[2:], place, times])
    return None if out is None else np.array(out, np.float32).reshape(x.shape)


def timed(call: Callable[[], object], pids: list[int], times: int = 1) -> float:
    """Processor time of one of `times` calls, of this process unless others are named, in milliseconds."""
    clock = partial(processor_ms, pids) if pids else lambda: 1000 * time.process_time()
    before = clock()
    call()
    return (clock() - before) / times


def measure(model: RecurrentNet, name: str, rounds: int) -> dict[str, Any]:
    x = data.astronaut()[: SIZE[0], : SIZE[1]].transpose(2, 0, 1)[None].astype(np.float32) / 255
    torch.set_num_threads(1)
    image = torch.from_numpy(x)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        exact = {n: model(image, n).numpy() for n in model.settings}
        session = rcnet.optimize(model, precision="fp32")
        files = {"ONNX Runtime": export(model, Path(folder) / "x.onnx")}
        if importlib.util.find_spec("executorch"):
            files["ExecuTorch"] = export(model, Path(folder) / "x.pte")
        page_of, site = builder(), Path(folder) / "site"
        page_of.build(name, site)
        sizes = {runtime: file.stat().st_size for runtime, file in files.items()}
        sizes["ONNX Runtime Web"] = sum(file.stat().st_size for file in (*site.glob("steps*.onnx"), site / "kernels.bin"))
        rows = []
        with browser(site) as (page, chromium):
            for place, n in enumerate(model.settings):
                calls: dict[str, Call] = {"PyTorch": lambda x, n=n: session(torch.from_numpy(x), n).numpy()}
                calls |= {runtime: load_exported(file, n, threads=1) for runtime, file in files.items()}
                calls["ONNX Runtime Web"] = partial(in_page, page, place)
                rows += measure_setting(calls, x, exact[n], n, macs(model, n, SIZE), rounds)
                print(json.dumps(rows[-len(calls) :]), flush=True)
    versions = {"torch": torch.__version__, "onnxruntime": version("onnxruntime")}
    versions |= {"onnxruntime-web": page_of.VERSION, "Chromium": chromium}
    versions |= {"executorch": version("executorch")} if "ExecuTorch" in files else {}
    about = {"model": name, "hardware": hardware(torch.device("cpu")), "versions": versions, "commit": commit()}
    return {**about, "size": SIZE, "rounds": rounds, "bytes": sizes, "rows": rows}


def measure_setting(
    calls: dict[str, Call], x: np.ndarray, exact: np.ndarray, n: Setting, cost: int, rounds: int
) -> list[dict[str, Any]]:
    """A row a runtime: the least time of the rounds, and the greatest difference from the network."""
    off = {runtime: float(np.abs(call(x) - exact).max()) for runtime, call in calls.items()}  # warms up, too
    pids, taken = renderers(), {runtime: [] for runtime in calls}
    for _ in range(rounds):
        for runtime, call in calls.items():
            web = runtime == "ONNX Runtime Web"
            taken[runtime].append(timed(partial(call, x, 2) if web else partial(call, x), pids if web else [], 2 if web else 1))
    return [
        {"setting": str(n), "macs": cost, "runtime": runtime, "ms": round(min(ms), 1), "off": off[runtime]}
        for runtime, ms in taken.items()
    ]


def render(result: dict[str, Any]) -> str:
    runtimes = list(dict.fromkeys(row["runtime"] for row in result["rows"]))
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    size = "x".join(map(str, result["size"]))
    worst = max(row["off"] for row in result["rows"])
    lines = [
        "# Runtimes of browsers and phones",
        "",
        f"Rendered by `python -m benchmarks.devices`: `{result['model']}`, one picture of {size} pixels, fp32, one thread;",
        f"{result['hardware']}; {versions}; commit {result['commit']}.",
        f"Milliseconds of processor time, the least of {result['rounds']} rounds, on this processor: no phone was at hand.",
        f"What they give differs from the network's by {worst:.1e} at most, in [0, 1].",
        "",
    ]
    rows = []
    for setting in dict.fromkeys(row["setting"] for row in result["rows"]):
        own = {row["runtime"]: row for row in result["rows"] if row["setting"] == setting}
        times = [f"{own[runtime]['ms']:.0f}" for runtime in runtimes]
        rows.append([setting, f"{own[runtimes[0]]['macs'] / 1e9:.2f}", *times])
    held = {
        "ONNX Runtime": "one .onnx file",
        "ONNX Runtime Web": "a graph a setting, one file of kernels",
        "ExecuTorch": "one .pte file",
    }
    sizes = [[runtime, held[runtime], f"{count / 1e6:.2f}"] for runtime, count in result["bytes"].items()]
    lines += [*table(["steps", "GMAC", *runtimes], rows), "", *table(["runtime", "all settings", "MB"], sizes), ""]
    return "\n".join(lines)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="r3_fast.photo", help="weights of a denoiser of colour")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    result = measure(rcnet.load(args.model), args.model, args.rounds)
    print(record(RESULTS / "devices.json", result, render))


if __name__ == "__main__":
    main()
