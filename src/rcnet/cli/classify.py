"""rcnet classify"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from rcnet.cli.text import Budget, Json
from rcnet.errors import InputError

if TYPE_CHECKING:
    from rcnet.setting import Setting

DEFAULT = "r2.cifar10"
BATCH = 64  # images at a time


def classify(
    inputs: Annotated[list[Path] | None, Parameter(name="IN")] = None,
    /,
    *,
    model: str = DEFAULT,
    steps: str | None = None,
    budget: Budget = None,
    confidence: str | None = None,
    top: int = 1,
    precision: str = "fp32",
    runtime: Literal["auto", "onnx", "torch"] = "auto",
    device: str | None = None,
    json_output: Json = False,
) -> None:
    """Classify images; --steps or --budget sets the cost.

    PNG, JPEG, TIFF, WebP, BMP, PNM, JPEG 2000, AVIF and HEIC of any size,
    gray and colour. Each is turned upright, resized and center-cropped to the
    size of the weights.

    Examples::

      rcnet classify cat.png
      rcnet classify photos/ --steps 2 --top 3
      rcnet classify photos/ --budget 5ms
      rcnet classify photos/ --confidence 0.9
      rcnet classify photos/ --model runs/mine/weights.safetensors --json

    Parameters
    ----------
    inputs
        Images, or folders of images.
    model
        Bundled weights (see rcnet models), an exported .onnx file or a file of weights.
    steps
        Cost: a step count of the model, or one number per cell, e.g. 4,3. Default: the largest.
    budget
        Maximum time or MACs per image, e.g. 5ms or 300MMAC: uses the best setting that fits, one image at a time.
    confidence
        Adaptive cost per image: the cheapest setting runs first, and a larger one only if the likeliest class is less probable
        than this, e.g. 0.9. Prints the setting of each image and the mean cost of everything computed. calibrated: the value
        that rcnet eval --risk --record found, at which the error is hardly above that of the largest setting.
    top
        How many of the likeliest classes to print.
    precision
        fp32, bf16, which needs torch, or auto.
    runtime
        onnx: ONNX Runtime, for bundled weights and exported .onnx files. torch: bundled weights and files of weights. The one
        that can unless given.
    device
        cpu, or what else the installed ONNX Runtime or torch offers, e.g. cuda; rcnet doctor lists it. The processor, or NVIDIA's
        GPU where torch is installed, unless given.
    json_output
        Print JSON.
    """
    if not inputs:
        raise InputError("no image given: rcnet classify IN..., e.g. rcnet classify cat.png")
    if top < 1:
        raise InputError(f"--top {top} is not valid: give a whole number from 1")
    import numpy as np

    from rcnet.cli.text import check_cost, collect_errors, count, progress, read_steps, table
    from rcnet.data.images import fit, list_images, read_image
    from rcnet.deploy.sessions import open_session
    from rcnet.runtime.budget import setting_for
    from rcnet.runtime.classify import (
        adaptive_macs,
        adaptively,
        best_classes,
        cascade_of,
        class_names,
        image_size,
        probabilities,
    )

    check_cost(steps, budget)
    files = [file for path in inputs for file in (list_images(path) if path.is_dir() else [path])]
    session = open_session(model, runtime=runtime, precision=precision, device=device)
    names, side, setting = class_names(session.about), image_size(session.about), read_steps(steps, session)
    size = (side, side)
    if confidence is not None and (steps is not None or budget is not None):
        raise InputError("give one of --confidence, --steps and --budget")
    sure = None if confidence is None else cascade_of(session, read_confidence(confidence))
    if budget is not None:
        setting = setting_for(session, budget, size)
    at_a_time = BATCH if budget is None else 1
    rows: list[tuple[Path, list[tuple[str, float]]]] = []
    taken: list[Setting] = []
    failed: list[InputError] = []
    with progress(len(files), unit="image", hidden=len(files) <= BATCH) as step:
        for first in range(0, len(files), at_a_time):
            part, read = files[first : first + at_a_time], []
            for file in part:
                with collect_errors(len(files), failed):
                    read.append((file, fit(read_image(file, session.about.channels), side)))
            if read:
                images = np.stack([image for _, image in read]).transpose(0, 3, 1, 2)
                if sure is None:
                    found = probabilities(session, images, setting)
                else:
                    found, settings = adaptively(session, images, *sure)
                    taken += settings
                rows += zip([file for file, _ in read], best_classes(found, names, top), strict=True)
            step(len(part))
    if json_output:
        told = [{"file": str(f), "classes": [{"class": c, "probability": p} for c, p in best]} for f, best in rows]
        print(json.dumps([{**row, "steps": n.to_json()} for row, n in zip(told, taken, strict=True)] if taken else told))
    else:
        lines = [
            (file if i == 0 else "", name, f"{100 * p:.1f}%", *([taken[k] if i == 0 else ""] if taken else []))
            for k, (file, best) in enumerate(rows)
            for i, (name, p) in enumerate(best)
        ]
        print(table(("file", "class", "probability", *(["steps"] if taken else [])), lines))
    if sure is not None and taken:
        work, whole = adaptive_macs(session, sure[1], taken, size), session.macs(session.settings[-1], size)
        print(f"{count(work)} MACs per image; {count(whole)} at the largest setting", file=sys.stderr)
    if failed:
        raise InputError(f"{len(failed)} of {len(files)} images could not be read; the others are above")


def read_confidence(text: str) -> float | None:
    """A probability, or None for `calibrated`."""
    if text == "calibrated":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--confidence {text} is not valid: give a probability, e.g. 0.9, or calibrated") from None
