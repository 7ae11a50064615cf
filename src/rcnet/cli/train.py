"""rcnet train"""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rcnet.cli.text import Json
from rcnet.errors import InputError


def train(
    recipe: str,
    /,
    *overrides: Annotated[str, Parameter(name="KEY=VALUE")],
    data: Path = Path("data"),
    out: Path | None = None,
    resume: bool = False,
    max_minutes: float | None = None,
    tensorboard: bool = False,
    json_output: Json = False,
) -> None:
    """Train a network by a recipe.

    Writes weights.safetensors, result.json, log.jsonl and checkpoint.pt to
    OUT. Ctrl-C saves a checkpoint first; --resume continues a run that was
    stopped or killed. Under torchrun, processes share each batch. A run
    that diverges ends with status 1.

    Examples::

      rcnet train r3_fast --data BSD/train --out runs/mine
      rcnet train r3_fast --data photos/ denoising.sigma=[5,50] minutes=60
      rcnet train r3_fast --data BSD/train --out runs/mine --resume
      rcnet train r3_fast_photo init=r3_fast.photo minutes=30 --data photos/
      rcnet train cifar_fast --data data/ model.name=s2 model.steps=4
      rcnet train finetune init=converted.safetensors teacher=old.safetensors --data data/
      torchrun --nproc-per-node 8 -m rcnet train cifar_paper --data data/

    Parameters
    ----------
    recipe
        A bundled recipe (cifar_fast, cifar_paper, finetune, finetune_denoiser, r2, r3, r3_more, r3_fast, r3_fast_color,
        r3_fast_dial, r3_fast_gray, r3_fast_photo) or a TOML file.
    overrides
        Values that override the recipe, e.g. batch=8 optimizer.lr=1e-3. One of minutes, epochs and iterations replaces the
        length in the recipe. init=WEIGHTS starts from trained weights: they are measured first on images held out, and the
        best weights of the run are kept; the optimizer is that of the recipe finetune or finetune_denoiser unless
        optimizer.* is given.
    data
        Folder of training images, or one that contains a folder named train: any images for a denoiser;
        CIFAR-10, CIFAR-100 (see rcnet data) or CLASS/NAME.png for a classifier.
    out
        Folder of the run; default: runs/RECIPE.
    resume
        Continue the run in OUT.
    max_minutes
        Train for this many minutes, in which the whole schedule runs. Reading the data and measuring are not included.
    tensorboard
        Also log to TensorBoard, in OUT (pip install 'rcnet[tensorboard]').
    json_output
        Print the result as JSON, and no progress bar.
    """
    from rcnet.cli.text import table
    from rcnet.models import load
    from rcnet.runtime.results import HIGHER, UNITS
    from rcnet.tasks import TASKS, find_task
    from rcnet.training import read_recipe
    from rcnet.training import train as run

    if max_minutes is not None:
        if not max_minutes > 0:
            raise InputError(f"--max-minutes {max_minutes:g} is not valid: give a number above 0")
        overrides = (*overrides, f"minutes={max_minutes}")
    checked = read_recipe(recipe, overrides)
    folder = out or Path("runs") / Path(recipe).stem
    result = run(checked, data, folder, resume=resume, progress=not json_output, tensorboard=tensorboard)
    if not result:  # not the first of several processes, which reports
        return
    if json_output:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{result['iterations']} iterations ({result['epochs']} epochs) in {result['minutes']} minutes, "
        f"{result['images_per_s']:g} images/s, {result['pflop']:.3g} PFLOP"
    )
    weights = folder / "weights.safetensors"
    print(weights)
    rows = result["validation"]
    if rows:
        names = {key: title for kind in TASKS.values() for title, (key, _) in kind.columns.items()}
        print(table([names.get(key, key) for key in rows[0]], [list(row.values()) for row in rows]))
    model, measured = load(weights), result["measured"]
    task = find_task(model.about.task)
    if measured and measured["before"] is not None:
        before, after = round(measured["before"], 2), round(measured["after"], 2)
        unit = UNITS[measured["metric"]].split()[0]
        found = f"{measured['metric']} {before:.2f} {unit} before, {after:.2f} {unit} after"
        if before != after and (before > after) == (measured["metric"] in HIGHER):
            old = task.command.format(weights=result["recipe"]["init"])
            print(f"worse than what it started from ({found}); to keep using that: rcnet {old}")
            return
        print(found)
    command = task.command.format(weights=weights)
    if model.about.levels == 2:  # it still has no judge
        command = f"judge {weights} --data {data} -o {folder / 'judged.safetensors'}"
    print(f"next: rcnet {command}")
