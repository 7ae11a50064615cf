"""rcnet train"""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rcnet.cli.text import Json


def train(
    recipe: str,
    /,
    *overrides: Annotated[str, Parameter(name="KEY=VALUE")],
    data: Path = Path("data"),
    out: Path | None = None,
    resume: bool = False,
    json_output: Json = False,
) -> None:
    """Train a network by a recipe.

    OUT then holds weights.safetensors, result.json, log.jsonl and
    checkpoint.pt. Ctrl-C saves a checkpoint first; --resume goes on where the
    run stood, killed or not.

    Examples::

      rcnet train r3_fast --data BSD/train --out runs/mine
      rcnet train r3_fast --data photos/ denoising.sigma=[5,50] minutes=60
      rcnet train r3_fast --data BSD/train --out runs/mine --resume

    Parameters
    ----------
    recipe
        A bundled recipe (r3, r3_fast) or a TOML file.
    overrides
        Values that replace the recipe's, e.g. batch=8 optimizer.lr=1e-3.
    data
        Folder of training images (or one with a folder named train in it).
    out
        Folder of the run; runs/RECIPE unless given.
    resume
        Go on with the run in OUT.
    json_output
        Print the result as JSON, and no progress bar.
    """
    from rcnet.cli.text import table
    from rcnet.training import read_recipe
    from rcnet.training import train as run

    checked = read_recipe(recipe, overrides)
    folder = out or Path("runs") / Path(recipe).stem
    result = run(checked, data, folder, resume=resume, progress=not json_output)
    if json_output:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['iterations']} iterations ({result['epochs']} epochs) in {result['minutes']} minutes")
    print(folder / "weights.safetensors")
    rows = result["validation"]
    if rows:
        print(table(list(rows[0]), [list(row.values()) for row in rows]))
