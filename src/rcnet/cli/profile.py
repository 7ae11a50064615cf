"""rcnet profile"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rcnet.cli.text import Json
from rcnet.errors import InputError

if TYPE_CHECKING:
    from rcnet.network import RecurrentNet


def profile(
    model: str,
    /,
    *,
    size: str | None = None,
    batch: int = 1,
    threads: int | None = None,
    precision: str = "fp32",
    json_output: Json = False,
) -> None:
    """Measure the cost of each step count on this machine.

    Prints MACs, parameters, peak memory of the activations, and the latency of
    a warm call (median and 95th percentile), measured interleaved. times/most
    is the ratio to the largest step count. Measurements are kept and reused by
    --budget; on a busy machine they are too high.

    Examples::

      rcnet profile r3_fast.bsd-gray-25
      rcnet profile r3_fast.bsd-gray-25 --size 1080x1920 --precision bf16
      rcnet profile r2.cifar10 --batch 32 --threads 1 --json

    Parameters
    ----------
    model
        Bundled weights (see rcnet models), a file of weights, or a network, e.g. r4, or package.module:function that builds one.
    size
        HEIGHTxWIDTH in pixels; default: 321x481 (denoise) or the size of the weights (classify).
    batch
        Images per call.
    threads
        Number of CPU threads; default: that of torch.
    precision
        fp32, bf16 or auto.
    json_output
        Print JSON.
    """
    import torch
    from tqdm import tqdm

    from rcnet.cli.text import count, table
    from rcnet.cost.counting import judge_macs
    from rcnet.cost.latency import ROUNDS, WARM_UP
    from rcnet.cost.profiling import profile as measure
    from rcnet.device import best_device, hardware
    from rcnet.setting import Setting

    network = named_network(model)
    height, width = parse_size(size, network)
    if batch < 1 or (threads is not None and threads < 1):
        raise InputError("--batch and --threads must be whole numbers from 1")
    if threads:
        torch.set_num_threads(threads)
    network.to(best_device())
    with tqdm(total=ROUNDS + WARM_UP, unit="round", disable=None, leave=False) as bar:
        rows = measure(network, (height, width), batch, precision, each=bar.update)
    about = {"model": model, "size": [height, width], "batch": batch, "hardware": hardware(best_device()), "precision": precision}
    judge = judge_macs(network, (height, width))
    about |= {"judge_macs": judge} if judge else {}
    if json_output:
        print(json.dumps({**about, "rows": rows}, indent=1))
        return
    print(f"{model}, {height}x{width} pixels (height x width), batch {batch}, {precision}, {about['hardware']}")
    header = ("steps", "MACs", "parameters", "memory MiB", "ms", "p95 ms", "times/most", "MACs/most")
    lines = [
        (
            Setting.of(row["steps"]),
            count(row["macs"]),
            f"{row['parameters']:,}",
            f"{row['memory'] / 2**20:.1f}",
            f"{row['ms']:.2f}",
            f"{row['p95']:.2f}",
            f"{row['ms'] / rows[-1]['ms']:.2f}",
            f"{row['macs'] / rows[-1]['macs']:.2f}",
        )
        for row in rows
    ]
    print(table(header, lines))
    if judge:
        print(f"Once per picture that comes without a noise level, its judge of noise: {count(judge)} MACs")


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


def parse_size(text: str | None, network: "RecurrentNet") -> tuple[int, int]:
    """Height and width from `321x481`; for None the size of the weights, or the usual size of the task."""
    from rcnet.tasks import usual_size

    if text is None:
        return network.about.size or usual_size(network.about.task)
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise InputError(f"--size {text} is not valid: give HEIGHTxWIDTH in pixels, e.g. 321x481")
    return int(sides[0]), int(sides[1])
