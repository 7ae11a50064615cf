"""One file for every step count: ONNX, OpenVINO or a torch.export archive, each kernel stored once; or ExecuTorch's for phones.

The exported graph has an output for each step count; a loader cuts it to one. Uncut, a runtime would compute them all. A file for
ExecuTorch has a method for each instead, whose kernels have their batch norms folded in. `FORMATS` has a record a format.
"""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from rcnet.about import SMOOTH
from rcnet.calling import plain, ready, refused
from rcnet.deploy import running, writing
from rcnet.deploy.graphs import text_of
from rcnet.deploy.optimize import chosen, optimize
from rcnet.deploy.packages import quiet
from rcnet.deploy.running import Runner
from rcnet.deploy.writing import LARGEST, Calibration, EveryStep
from rcnet.device import sums_8_bits
from rcnet.errors import InputError, unknown
from rcnet.models.judge import KNOTS
from rcnet.network import RecurrentNet, evaluating, unroll
from rcnet.replacing import naming
from rcnet.runtime.levels import LEVELS, Level, level_map, sigma_input
from rcnet.setting import Setting, Steps, listed
from rcnet.tasks.catalogue import summary


class Format(NamedTuple):
    """What a format is.

    Attributes:
        suffix: of its files.
        write: the files that it wrote of a network, the one that names the others first.
        text: the metadata in a file, JSON.
        session: a step count of a file as a function: of its path, the output's name, threads and a precision of these.
        precisions: name -> the runtime's name; empty where rcnet runs no such file.
        int8: whether it holds int8 convolutions.
        judge: whether it holds a denoiser's judge, as an output that can be computed alone.
        folded: whether batch norms have to be folded before.
    """

    suffix: str
    write: Callable[..., list[Path]]
    text: Callable[[Path], str]
    session: Callable[[Path, str, int | None, str], Runner] | None = None
    precisions: Mapping[str, str] = {}
    int8: bool = False
    judge: bool = False
    folded: bool = False


FORMATS = {
    "onnx": Format(".onnx", writing.to_onnx, text_of, running.onnx_session, {"fp32": "f32"}, int8=True, judge=True),
    "openvino": Format(
        ".xml",
        writing.to_openvino,
        running.openvino_text,
        running.openvino_session,
        {"fp32": "f32", "bf16": "bf16"},
        int8=True,
        judge=True,
    ),
    "pt2": Format(".pt2", writing.to_pt2, running.pt2_text),
    "executorch": Format(
        ".pte", writing.to_executorch, running.executorch_text, running.executorch_session, {"fp32": "f32"}, folded=True
    ),
}


class Exported(Protocol):
    """What `load_exported` gives."""

    def __call__(self, image: np.ndarray, sigma: Level = None) -> np.ndarray: ...


def export(
    model: RecurrentNet,
    path: str | Path,
    to: str | None = None,
    steps: Sequence[Steps] = (),
    calibration: Calibration = None,
    kernel_bits: int | None = None,
    half: bool = False,
    size: tuple[int, int] | None = None,
) -> Path:
    """Writes one file (two for OpenVINO: .xml and .bin) that holds every step count asked for; returns its path.

    Input `image`: float32 [batch, C, height, width] in [0, 1], all but C dynamic. Networks that take the noise level have a
    second one, `sigma`: float32 [batch, levels, sigma_height, sigma_width] in levels of 255, negative where it is not known; its
    sides are 1 and 1, for one level per image, or the image's. Networks with two levels, of white and of coarse noise, take both.
    Outputs `steps1`, `steps2`, ...: what `model(image, steps, sigma)` gives.

    A denoiser's judge is the output `levels` of ONNX and OpenVINO files, [batch, 2, knots], and needs `image` alone; the other
    formats leave it out. `load_judge` and `rcnet.runtime.levels.level_map` make the input `sigma` of it.

    The metadata of the weights is in the property `rcnet`, as JSON, and so are the cost and the results of each step count.
    There `inputs` and `outputs` name these, `levels` is the number of channels of `sigma`, and `multiple` is what the sides of
    images have to be multiples of: what the network says, or the smallest of its doubles at which it works. A network that works
    at one size alone, `About.size`, is exported for that size, which `size` then holds. With a judge, `level_map`
    holds the name of its `output`, `knots`, the number of brightnesses from 0 to 1 at which it gives levels, and `smoothing`, the
    pixels a side of the square over which the brightness is averaged before a level is read off.

    Args:
        to: `onnx`, `openvino`, `pt2` or `executorch`; what the suffix of the path says unless given. A file for ExecuTorch takes
            one image of sides up to `SIDE` a call, and has a method `steps1`, ... for each step count.
        steps: the step counts; all supported ones unless given.
        calibration: what `int8.calibration_images` gives: images, float32 [B, C, H, W], or pairs of images and `sigma` for
            networks that take both. Convolutions then compute in int8.
        kernel_bits: of int8 kernels: 8, or 7, which loses a little more and is right on every processor: x86 without VNNI
            saturates sums of 8 bits, which loses far more. What suits this machine unless given.
        half: store the kernels of a .onnx file in fp16, half of the size; they compute in fp32. Weights that `save(half=True)`
            wrote lose nothing by it.
        size: height and width of all images; free unless given.

    Raises:
        InputError: an unknown format, other bits or bits without int8, int8 or half for a format that has none, unsupported
            steps, a folder that does not exist, or a missing package.
        OSError: the file cannot be written, e.g. as the disk is full; what was there is as it was.
    """
    path = Path(path)
    to = to or next((name for name, kind in FORMATS.items() if kind.suffix == path.suffix.lower()), None)
    if to not in FORMATS:
        raise unknown("format", to or path.name, FORMATS)
    kind = FORMATS[to]
    if path.suffix.lower() != kind.suffix:
        raise InputError(f"{path} does not end in {kind.suffix}, as a file of the format {to} does")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}")
    if calibration is not None and not kind.int8:
        raise InputError(f"int8 is for onnx and openvino files, not for {to}")
    if kernel_bits not in (None, 7, 8):
        raise InputError(f"kernel_bits={kernel_bits!r} is not valid: 7 or 8")
    if kernel_bits and calibration is None:
        raise InputError(f"kernel_bits={kernel_bits} is for int8, which takes images to calibrate on: name some, or leave it out")
    if half and (to != "onnx" or calibration is not None):
        raise InputError("half is for onnx files without int8: leave it out")
    settings, about = chosen(model, steps or None), model.about
    multiple, size = _sides(model, settings, size)
    metadata = {**model.metadata, "architecture": model.architecture, "task": about.task, "preprocessing": about.to_json()}
    judge = model.judge if kind.judge else None
    metadata.pop("judge", None)
    if judge is not None:
        metadata["judge"] = model.metadata.get("judge", {})
        metadata["level_map"] = {"output": LEVELS, "knots": KNOTS, "smoothing": SMOOTH}
    metadata |= {"inputs": about.inputs[:2], "levels": about.levels, "cells": len(model.recurrent_cells())}
    metadata |= {"outputs": {n.name: n.to_json() for n in settings}, "multiple": multiple}
    metadata |= {"size": list(size)} if size else {}
    metadata |= {"half": True} if half else {}
    metadata |= {"catalogue": summary(model, settings)}
    metadata["precision"] = "fp32" if calibration is None else "int8"
    if calibration is not None:
        metadata["kernel_bits"] = kernel_bits or (8 if sums_8_bits() else 7)
    nets: list[nn.Module]
    if calibration is None and not kind.folded:
        still = plain(evaluating(model))
        nets = [unroll(still, n) for n in settings]
    else:  # folded: nothing may change the scale of a channel after an int8 convolution; ExecuTorch folds shared kernels wrongly
        sessions = optimize(model, settings, precision="fp32").sessions.values()
        nets = [session.to(memory_format=torch.contiguous_format) for session in sessions]  # type: ignore[call-overload]
    net = EveryStep(nets, about.sub, judge).eval()
    with naming(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = kind.write(net, Path(folder) / path.name, about.channels, metadata, calibration)
        for file in reversed(written):  # the file that names the others last
            file.replace(path.parent / file.name)
    return path


@torch.no_grad()
def _sides(model: RecurrentNet, settings: Iterable[Setting], size: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
    """What the sides of images have to be multiples of, and their size if it is not free.

    Raises:
        InputError: the network takes no images like those that it says it takes.
    """
    about, failed = model.about, None
    free = (
        [about.multiple * 2**i for i in range(7) if about.multiple * 2**i <= max(LARGEST, about.multiple)] if size is None else []
    )
    sizes = [(m, (3 * m, 5 * m)) for m in free] + [(0, fixed) for fixed in (size or about.size,) if fixed]
    for multiple, (height, width) in sizes:
        try:
            with quiet():  # graphs print their code where they fail
                for n in settings:
                    ready(model, n)(torch.rand(2, about.channels, height, width))
        except (RuntimeError, ValueError, AssertionError, LookupError) as error:
            failed = failed or refused(model, (height, width), error)
        else:
            return (multiple, None) if multiple else (about.multiple, (height, width))
    raise failed or InputError("this network takes no images")


def read_exported(path: str | Path) -> dict[str, Any]:
    """The metadata of an exported file: that of the weights, `inputs`, and `outputs`, name -> steps.

    Raises:
        InputError: no such file, or not one that `export` wrote.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no exported network at {path}")
    try:
        kind = next((kind for kind in FORMATS.values() if kind.suffix == path.suffix), FORMATS["pt2"])
        return json.loads(kind.text(path))
    except InputError:
        raise
    except Exception as error:  # each runtime has exceptions of its own for broken files
        raise InputError(f"{path} is not a network that rcnet exported") from error


def load_exported(path: str | Path, steps: Steps = None, *, threads: int | None = None, precision: str = "fp32") -> Exported:
    """A function of one step count, `f(image)` or `f(image, sigma)`, by the file's runtime: what the network gives.

    It takes images, float32 [batch, C, height, width] in [0, 1], and, of networks that take the noise level, `sigma` in levels of
    255: a number, one value per image [batch], or a map [height, width] or [batch, 1, height, width]; None or negative: unknown.
    Of networks with two levels that is white noise, and a map [batch, 2, height, width] is both; None: what the judge in the file
    says of each image.

    Args:
        path: a .onnx, .xml or .pte file that `export` wrote; the last takes one image a call.
        steps: one of its step counts; the largest unless given.
        threads: of the processor, not for ExecuTorch; what the runtime takes unless given.
        precision: `fp32`, or in OpenVINO `bf16`, of what is not int8 in the file.

    Raises:
        InputError: not such a file, other steps than it holds, a precision that the runtime does not have, or a missing package;
            when called, a sigma for a network that takes none, one of another shape, or none for a network with two levels
            without a judge in the file.
    """
    path = Path(path)
    metadata = read_exported(path)
    outputs = metadata["outputs"]
    name = next(reversed(outputs)) if steps is None else Setting.of(steps).name
    if name not in outputs:
        raise InputError(f"steps={steps!r} is not in {path}: valid: {listed(map(Setting.of, outputs.values()))}")
    kind = next(kind for kind in FORMATS.values() if kind.suffix == path.suffix)
    if kind.session is None:
        raise InputError(f"{path} is not a .onnx, .xml or .pte file; torch.export.load reads a .pt2 file")
    if precision not in kind.precisions:
        raise unknown("precision", precision, kind.precisions)
    if metadata.get("precision") == "int8" and metadata.get("kernel_bits", 8) == 8 and not sums_8_bits():
        warnings.warn(f"{path}: this processor saturates sums of 8-bit kernels; export with kernel_bits=7 for it", stacklevel=2)
    run = kind.session(path, name, threads, kind.precisions[precision])
    planes = metadata.get("levels", int("sigma" in metadata.get("inputs", ())))  # older files do not say
    judge = load_judge(path, threads=threads) if "level_map" in metadata else None

    def call(image: np.ndarray, sigma: Level = None) -> np.ndarray:
        if "size" in metadata and list(image.shape[-2:]) != metadata["size"]:
            raise InputError(
                f"{path} takes images of {'x'.join(map(str, metadata['size']))} pixels, not {list(image.shape[-2:])}"
            )
        fed = {"image": np.ascontiguousarray(image, np.float32)}
        if planes == 2 and sigma is None:
            if judge is None:
                raise InputError(f"{path} has no judge of noise: say how much there is, sigma=...")
            sigma = level_map(judge(image), image, metadata["level_map"]["smoothing"])
        if planes:
            fed["sigma"] = sigma_input(image.shape, sigma, planes)
        elif sigma is not None:
            raise InputError(f"the network in {path} takes no noise level: leave sigma out")
        return run(fed)

    return call


def load_judge(path: str | Path, *, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """The judge in an exported file: images, float32 [B, C, H, W] in [0, 1], to noise levels [B, 2, knots] in levels of 255.

    For pictures that are denoised in parts: it should see all of a picture, and each part is then told what `level_map` makes of
    that. `load_exported` asks it by itself.

    Args:
        path: a .onnx or .xml file that `export` wrote.

    Raises:
        InputError: not such a file, or one without a judge.
    """
    path = Path(path)
    metadata = read_exported(path)
    kind = next(kind for kind in FORMATS.values() if kind.suffix == path.suffix)
    if "level_map" not in metadata or kind.session is None:
        raise InputError(f"{path} has no judge of noise")
    run = kind.session(path, metadata["level_map"]["output"], threads, kind.precisions["fp32"])
    return lambda image: run({"image": np.ascontiguousarray(image, np.float32)})
