"""rcnet profile"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rcnet.cli.text import Json
from rcnet.errors import InputError

if TYPE_CHECKING:
    from rcnet.network import RecurrentNet

Measured = tuple[dict[str, Any], list[dict[str, Any]]]


def profile(
    model: str,
    /,
    *,
    size: str | None = None,
    batch: int = 1,
    threads: int | None = None,
    precision: str = "fp32",
    runtime: Literal["auto", "onnx", "torch"] = "auto",
    json_output: Json = False,
) -> None:
    """Measure the cost of each step count on this machine.

    Prints MACs, parameters, with torch the peak memory of the activations, and the
    latency of a warm call (median and 95th percentile), measured interleaved. times/most
    is the ratio to the largest step count. Measurements are kept and reused by
    --budget; on a busy machine they are too high.

    Examples::

      rcnet profile r3_fast.bsd-gray-25
      rcnet profile r3_fast.bsd-gray-25 --size 1080x1920 --precision bf16
      rcnet profile r2.cifar10 --batch 32 --threads 1 --json

    Parameters
    ----------
    model
        Bundled weights (see rcnet models), an exported .onnx file, a file of weights, or a network, e.g. r4, or
        package.module:function that builds one.
    size
        HEIGHTxWIDTH in pixels, or one side of a square; default: 321x481 (denoise) or the size of the weights (classify).
    batch
        Images per call.
    threads
        Number of CPU threads; default: one per core.
    precision
        fp32, bf16 or auto; of torch.
    runtime
        onnx: ONNX Runtime, for bundled weights and exported .onnx files. torch: networks and weights in torch. The one that can
        unless given.
    json_output
        Print JSON.
    """
    from rcnet.cli.text import count, progress, table
    from rcnet.runtime.latency import ROUNDS, WARM_UP
    from rcnet.setting import Setting

    if batch < 1 or (threads is not None and threads < 1):
        raise InputError("--batch and --threads must be whole numbers from 1")
    with progress(ROUNDS + WARM_UP, unit="round") as step:
        measure = by_onnx if uses_onnx(model, runtime, precision) else by_torch
        about, rows = measure(model, size, batch, threads, precision, step)
    if json_output:
        print(json.dumps({**about, "rows": rows}, indent=1))
        return
    height, width = about["size"]
    where = f"{about['runtime']}, {about['hardware']}"
    print(f"{model}, {height}x{width} pixels (height x width), batch {batch}, {about['precision']}, {where}")
    peak = "memory" in rows[0]
    header = ("steps", "MACs", "parameters", *["memory MiB"] * peak, "ms", "p95 ms", "times/most", "MACs/most")
    lines = [
        (
            Setting.of(row["steps"]),
            count(row["macs"]),
            f"{row['parameters']:,}",
            *[f"{row.get('memory', 0) / 2**20:.1f}"] * peak,
            f"{row['ms']:.2f}",
            f"{row['p95']:.2f}",
            f"{row['ms'] / rows[-1]['ms']:.2f}",
            f"{row['macs'] / rows[-1]['macs']:.2f}",
        )
        for row in rows
    ]
    print(table(header, lines))
    if judge := about.get("judge_macs"):
        print(f"Once per picture that comes without a noise level, its judge of noise: {count(judge)} MACs")


def uses_onnx(model: str, runtime: str, precision: str) -> bool:
    """Whether ONNX Runtime measures: bundled weights and exported files, unless torch is asked for."""
    from rcnet.deploy.sessions import onnx_file

    return runtime == "onnx" or (runtime != "torch" and precision != "bf16" and onnx_file(model) is not None)


def by_onnx(model: str, size: str | None, batch: int, threads: int | None, _: str, each: Callable[[], object]) -> Measured:
    """What was measured of an exported file, and a row for each setting."""
    from rcnet.cli.text import read_size
    from rcnet.deploy.sessions import onnx_file
    from rcnet.runtime.budget import latencies
    from rcnet.runtime.onnx import OnnxSession

    file = onnx_file(model)
    if file is None:
        raise InputError(f"{model} is for torch: leave out --runtime onnx, or rcnet export it first")
    session = OnnxSession(file, threads)
    shape = read_size(size) or session.size
    times = latencies(session, shape, batch, each)
    rows = [
        {"steps": n.to_json(), "macs": round(batch * session.macs(n, shape)), "parameters": session.parameters, **times[n]}
        for n in session.settings
    ]
    about = {"model": model, "size": list(shape), "batch": batch, "hardware": session.identity["hardware"]}
    about |= {"runtime": session.identity["runtime"], "precision": session.precision}
    return about | ({"judge_macs": round(session.judge_macs(shape))} if session.has_judge else {}), rows


def by_torch(
    model: str, size: str | None, batch: int, threads: int | None, precision: str, each: Callable[[], object]
) -> Measured:
    """What was measured of a network of torch, and a row for each setting."""
    import torch

    from rcnet.cli.text import read_size
    from rcnet.cost.counting import judge_macs
    from rcnet.cost.profiling import profile
    from rcnet.device import best_device, hardware
    from rcnet.tasks import usual_size

    network = named_network(model).to(best_device())
    shape = read_size(size) or network.about.size or usual_size(network.about.task)
    if threads:
        torch.set_num_threads(threads)
    rows = profile(network, shape, batch, precision, each=each)
    about = {"model": model, "size": list(shape), "batch": batch, "hardware": hardware(best_device())}
    about |= {"runtime": f"torch {torch.__version__}", "precision": precision}
    judge = judge_macs(network, shape)
    return about | ({"judge_macs": judge} if judge else {}), rows


def named_network(name: str) -> "RecurrentNet":
    """Trained weights, or a fresh network of that name, as the cost does not depend on the weights."""
    from rcnet.models import bundled, create_model, list_models, load
    from rcnet.models.huggingface import PREFIX
    from rcnet.models.registry import find_builder

    if name in list_models() or (":" in name and not name.startswith(PREFIX) and not Path(name).is_file()):
        return create_model(name, **find_builder(name).usual).eval()
    try:
        return load(name)
    except InputError as error:
        raise InputError(f"{error} (networks: {', '.join(list_models())})" if name not in bundled() else str(error)) from error
