"""rcnet export"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rcnet.errors import InputError


def export(
    model: str,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    to: str | None = None,
    steps: str = "all",
    int8: Path | None = None,
    kernel_bits: Literal[7, 8] | None = None,
    half: Annotated[bool, Parameter(negative="")] = False,
    size: str | None = None,
) -> None:
    """Export trained weights to one file that holds every step count, each kernel once.

    The file has an output for each step count (steps1, steps2, ...), a free
    batch, height and width (where the network allows it), and the metadata of the weights. A runtime computes
    all outputs that it is left with: cut the file to one first, as
    rcnet.deploy.export.load_exported does.

    Examples::

      rcnet export r3_fast.bsd-gray-25 -o fast.onnx
      rcnet export r3_fast.bsd-gray-25 -o fast.xml --steps 1
      rcnet export r3_fast.bsd-gray-25 -o fast.xml --int8 photos/
      rcnet export runs/mine/weights.safetensors --to pt2 -o mine.pt2

    Parameters
    ----------
    model
        Bundled weights (see rcnet models) or a file of weights.
    output
        The file to write: .onnx, .xml (OpenVINO, with a .bin beside it), .pt2 (torch.export) or .pte (ExecuTorch).
    to
        onnx, openvino, pt2 or executorch; what the suffix says unless given.
    steps
        A step count of the model, or all.
    int8
        Convolutions compute in 8 bits, calibrated on the images of this folder: clean ones for denoisers; for classifiers
        CIFAR or CLASS/NAME.png, as they were trained on. Three times as fast where the processor has such instructions;
        docs/deploy.md says what it loses.
    kernel_bits
        Of int8 kernels: 7 is right on every processor, and 8 more exact, but wrong on x86 without VNNI. What suits this machine
        unless given.
    half
        Store the kernels of a .onnx file in fp16, half of its size; they compute in fp32.
    size
        HEIGHTxWIDTH in pixels, or one side of a square: the file then takes images of this size alone. Free unless given, or
        that of the weights if the network takes no other.
    """
    from rcnet.cli.text import read_size, read_steps
    from rcnet.deploy.export import export as run
    from rcnet.deploy.export import read_exported
    from rcnet.deploy.int8 import calibration_images
    from rcnet.models import load

    network = load(model)
    settings = () if steps == "all" else (read_steps(steps, network),)
    if output.is_dir():
        raise InputError(f"{output} cannot be written: it is a folder")
    images = None if int8 is None else calibration_images(network, int8)
    path = run(network, output, to, settings, images, kernel_bits, half, read_size(size))
    if int8 and kernel_bits is None and read_exported(path)["kernel_bits"] == 7:
        print("kernels of 7 bits, as this processor saturates sums of 8; --kernel-bits 8 for one that does not", file=sys.stderr)
    if network.judge is not None and "level_map" not in read_exported(path):
        print(
            f"a file like {path.name} leaves out the judge of these weights: tell the network the noise levels", file=sys.stderr
        )
    metadata = read_exported(path)
    if "size" in metadata and size is None:
        print(f"{path.name} takes images of {'x'.join(map(str, metadata['size']))} pixels, as the network does", file=sys.stderr)
    elif metadata["multiple"] != network.about.multiple:
        print(f"{path.name} takes images whose sides are multiples of {metadata['multiple']}", file=sys.stderr)
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    for file in files:
        print(f"{file} ({file.stat().st_size / 1e6:.2f} MB)")
