"""Makes bundled weights again: all parts of their training, in order, each from the weights of the one before it.

python tools/weights.py r3.bsd-gray-25 --data data/bsd [--out runs/weights] [key=value ...]

A file of weights holds the recipe of each of its parts, with the iterations that were run of it and the commit that ran it; this
trains them by the code at hand. Part N is in OUT/NAME/partN; the weights.safetensors of the last is the network. What has been
done is not repeated. The draws are those of the file only by the commit and on the hardware that are named.
"""

import argparse
import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rcnet.errors import InputError
from rcnet.models.files import read_metadata, trainings
from rcnet.training import train
from rcnet.training.recipe import Recipe, read_overrides, recipe_from

RENAMED = {"channels": "in_chans"}  # options of networks as older files have them


def parts_of(name_or_path: str) -> list[Mapping[str, Any]]:
    """The trainings of a file of weights, the first of them first, or `InputError` if it does not hold them."""
    parts = trainings(read_metadata(name_or_path))
    if not parts:
        raise InputError(f"{name_or_path} does not say how it was trained")
    return parts[::-1]


def recipe_of(part: Mapping[str, Any], init: Path | None, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a part, of as many iterations as were run of it, whatever time they took.

    Raises:
        InputError: a key that today's recipes do not have; the message names the commit whose recipes have it.
    """
    model = {RENAMED.get(key, key): value for key, value in part["recipe"]["model"].items()}
    told = {
        **copy.deepcopy(part["recipe"]),
        "minutes": 0.0,
        "epochs": 0.0,
        "iterations": part["iterations"],
        "init": str(init or ""),
        "model": model,
    }
    source = f"recipe of commit {part['commit']}"
    return recipe_from(read_overrides(list(overrides), told), source)


def make(name: str, data: Path, out: Path, overrides: Sequence[str] = (), progress: bool = True) -> Path:
    """Trains all parts; returns the file of weights of the last."""
    parts, init = parts_of(name), None
    for number, part in enumerate(parts, start=1):
        folder = out / Path(name).name / f"part{number}"
        about = f"{part['iterations']:,} iterations, made by commit {part['commit']} on {part['hardware']}"
        print(f"part {number} of {len(parts)} in {folder}: {about}", file=sys.stderr)
        train(recipe_of(part, init, overrides), data, folder, resume=True, progress=progress)
        init = folder / "weights.safetensors"
    assert init is not None
    return init


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="bundled weights, or a file of them")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe of every part")
    parser.add_argument("--data", type=Path, required=True, help="the folder that rcnet data bsds500 or cifar10 makes")
    parser.add_argument("--out", type=Path, default=Path("runs/weights"))
    args = parser.parse_args()
    try:
        print(make(args.name, args.data, args.out, args.overrides))
    except InputError as error:
        sys.exit(f"weights: {error}")


if __name__ == "__main__":
    main()
