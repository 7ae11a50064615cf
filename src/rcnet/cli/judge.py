"""rcnet judge"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rcnet.errors import InputError


def judge(
    weights: Annotated[str, Parameter(name="WEIGHTS")],
    /,
    *,
    data: Path,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    minutes: float = 12.0,
    seed: int = 0,
) -> None:
    """Train the judge of a denoiser: a small network that estimates the noise of a picture.

    For denoisers that take the levels of white and of coarse noise. The judge
    is trained through the denoiser, which does not change, on the kinds of
    noise that the denoiser was trained on. OUTPUT holds both.

    Examples::

      rcnet judge runs/photo/weights.safetensors --data BSDS -o photo.safetensors
      rcnet judge mine.safetensors --data photos/ -o judged.safetensors --minutes 5
      rcnet judge mine.safetensors --data photos/ -o judged.safetensors --seed 1

    Parameters
    ----------
    weights
        Bundled weights or a file of weights.
    data
        Folder of clean images, or one with a folder named train.
    output
        File of the weights with their judge.
    minutes
        Length of the training.
    seed
        Seed of all random draws.
    """
    if not minutes > 0:
        raise InputError(f"--minutes {minutes:g} is not valid: give a number above 0")
    if not output.parent.is_dir() or output.is_dir():
        raise InputError(f"{output} cannot be written: its folder does not exist, or it is a folder")
    from rcnet.models import load, save
    from rcnet.training.judging import train_judge

    model = load(weights)
    about = train_judge(model, data, minutes=minutes, seed=seed)
    save(model, output, judge=about)
    print(f"{about['iterations']} iterations in {about['minutes']} minutes")
    print(output)
    print(f"next: rcnet denoise IN --model {output}")
