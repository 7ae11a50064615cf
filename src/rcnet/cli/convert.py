"""rcnet convert"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from rcnet.cli.text import Json
from rcnet.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from rcnet.about import About


def convert(
    network: str,
    /,
    *options: Annotated[str, Parameter(name="KEY=VALUE")],
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    weights: Path | None = None,
    steps: str = "1,2,3",
    init: Literal["first", "mean", "low-rank"] = "first",
    rank: int = 0,
    adaptive: bool = False,
    apart: bool = False,
    regions: str | None = None,
    task: str | None = None,
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    data: Path | None = None,
    json_output: Json = False,
) -> None:
    """Make a network with repeated blocks recurrent: consecutive blocks that differ only in their weights become one cell, whose
    number of steps is chosen at each call.

    Prints what was replaced, what was kept and why, and the cost of each step
    count. Each step has separate norms, copied from the block it stands for.
    Train the network to restore its accuracy:
    rcnet train finetune init=converted.safetensors teacher=resnet-50/

    Examples::

      rcnet convert resnet-50/ -o converted.safetensors
      rcnet convert my.networks:build num_classes=10 --weights old.pt --task classify --size 32 -o converted.safetensors
      rcnet convert my.networks:denoiser --steps all --rank 4 --init low-rank --task denoise -o converted.safetensors

    Parameters
    ----------
    network
        A folder written by transformers' save_pretrained; package.module:function, which returns a torch.nn.Module; or
        torchvision:NAME, timm:NAME or transformers:CLASS.
    options
        Arguments of the function, e.g. num_classes=10.
    output
        The file to write, .safetensors.
    weights
        The network's weights (a state dict): .safetensors, or a file of torch.save.
    steps
        The step counts of every cell, e.g. 1,2,3; or all: each cell takes from 1 to as many steps as it had blocks.
    init
        The shared kernels: those of the first block, their mean, or those that fit best with differences of --rank.
    rank
        Rank of the difference that each step adds to the kernels; 0: none.
    adaptive
        Give the parameters of this rank to the kernels that differ most, instead of the same rank to all.
    apart
        Keep the first block of each run of three or more as it is.
    regions
        Convert only blocks in these modules, e.g. layer3,layer4.
    task
        classify or denoise; known for an image classifier of transformers.
    size
        HEIGHTxWIDTH of the images in pixels, or one side of a square; for a folder, from its configuration.
    mean, std
        Normalization that the network expects, one number per channel, e.g. 0.485,0.456,0.406; for a folder, from its
        configuration. The converted network takes images in [0, 1].
    data
        A folder of images, as for training: the statistics of batch norms are measured on them for each step count, which
        brings back a part of the accuracy without training.
    json_output
        Print JSON.
    """
    import dataclasses

    import torch

    from rcnet.about import About
    from rcnet.cli.text import count, read_size, table
    from rcnet.conversion.convert import SIDE
    from rcnet.cost import macs, parameters
    from rcnet.cost.counting import counted
    from rcnet.evaluation.recalibrate import recalibrate
    from rcnet.models import save
    from rcnet.models.converted import LIBRARIES, about_of, read_original
    from rcnet.models.converted import convert as run
    from rcnet.network import unroll
    from rcnet.setting import parse_numbers
    from rcnet.tasks import TASKS, find_task
    from rcnet.training.recipe import read_overrides

    if output.suffix != ".safetensors":
        raise InputError(f"--output {output} is not valid: the name must end in .safetensors")
    original = read_original(network, read_overrides(options), weights)
    about: About = about_of(original.model)
    sides = read_size(size) or original.size or about.size
    about = dataclasses.replace(about, task=task or about.task, size=sides)
    if not about.task:
        raise InputError(f"the task of the network is not known: give --task {' or --task '.join(TASKS)}")
    find_task(about.task)
    net = run(
        original.model,
        "all" if steps == "all" else parse_numbers(steps),
        init,
        None if regions is None else regions.split(","),
        rank,
        adaptive=adaptive,
        apart=apart,
        about=about,
        mean=read_numbers("--mean", mean) or original.mean,
        std=read_numbers("--std", std) or original.std,
        source=original.source,
        options=original.options,
    )
    if data is not None:
        recalibrate(net, training_images(net.about, data))
    height, width = sides or (SIDE, SIDE)
    whole = original.normalized().eval()
    before = counted(lambda: whole(torch.zeros(1, about.channels, height, width)))
    cost = {n: (parameters(unroll(net, n)), macs(net, n, (height, width))) for n in net.settings}
    save(net, output)
    done = net.conversion
    if json_output:
        size_before = {"parameters": done.before, "macs": before}
        rows = [{"steps": n.to_json(), "parameters": size, "macs": work} for n, (size, work) in cost.items()]
        print(json.dumps({"output": str(output), **dataclasses.asdict(done), "original": size_before, "rows": rows}, indent=1))
        return
    lines = [(r.cell, f"{r.blocks} x {r.what}", r.name, f"{r.before:,}", f"{r.after:,}") for r in done.replaced]
    print(table(("cell", "blocks", "where", "parameters", "now"), lines))
    if done.kept:
        print()
        print(table(("kept", "what", "parameters", "why"), [(k.name, k.what, f"{k.parameters:,}", k.reason) for k in done.kept]))
    print()
    print("\n".join(done.remarks()))
    print()
    costs = [("before", (done.before, before)), *((str(n), figures) for n, figures in cost.items())]
    print(table(("steps", "parameters", f"MACs, {height}x{width}"), [(n, f"{size:,}", count(work)) for n, (size, work) in costs]))
    print(f"\n{output}: {done.before:,} parameters became {done.after:,}")
    teacher = "" if ":" in network else f" teacher={network}"
    module = (original.source or "").partition(":")[0]
    trust = f"RCNET_MODULES={module} " if ":" in network and module not in LIBRARIES else ""
    print(f"next: {trust}rcnet train {find_task(about.task).finetune} init={output}{teacher} --data FOLDER")


def training_images(about: "About", data: Path, batches: int = 16, batch: int = 64) -> "list[Tensor]":
    """Batches [B, C, H, W] of images as training sees them."""
    import numpy as np
    import torch

    from rcnet.tasks import find_task
    from rcnet.tasks.task import Setup

    kind = find_task(about.task)
    task = kind.begin(kind.settled(kind.section(), about), Setup(data, torch.device("cpu"), about, batch, 0, "fp32"))
    return [task.batch(np.random.default_rng([0, i]), i).x for i in range(batches)]


def read_numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{option} {text} is not valid: give one number per channel, e.g. 0.5,0.5,0.5") from None
