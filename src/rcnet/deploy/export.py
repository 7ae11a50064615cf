"""One file for every step count: ONNX, OpenVINO or a torch.export archive, each kernel stored once.

The exported graph has an output for each step count; a loader cuts it to one. Uncut, a runtime would compute them all.
"""

import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError

from rcnet.cell import RecurrentNet, Steps, evaluating, unroll
from rcnet.deploy.int8 import quantized
from rcnet.deploy.optimize import optimize
from rcnet.deploy.packages import needed, quiet
from rcnet.errors import InputError, unknown
from rcnet.models.files import preprocessing
from rcnet.models.registry import architecture_of, task_of

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
OPSET = 20
KEY = "rcnet"  # the metadata property, holding JSON
Calibration = Iterable[np.ndarray] | None


class _EveryStep(nn.Module):
    """The networks of several step counts over one set of kernels, each an output."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(net(x) for net in self.nets)


def output_name(steps: Steps) -> str:
    """`steps2`, or `steps4_3_3` of one number a cell."""
    numbers = (steps,) if isinstance(steps, int) else tuple(steps or ())
    return "steps" + "_".join(map(str, numbers))


def export(
    model: RecurrentNet,
    path: str | Path,
    to: str | None = None,
    steps: Sequence[Steps] = (),
    calibration: Calibration = None,
) -> Path:
    """Writes one file (two for OpenVINO: .xml and .bin) that holds every step count asked for; returns its path.

    Input `image`: float [batch, C, height, width] in [0, 1], all but C dynamic. Outputs `steps1`, `steps2`, ...: what
    `model(image, steps=n)` gives. The metadata of the weights is in the property `rcnet`, as JSON; `multiple` there is what the
    sides have to be multiples of, if not 1.

    Args:
        to: `onnx`, `openvino` or `pt2`; what the suffix of the path says unless given.
        steps: the step counts; all supported ones unless given.
        calibration: inputs, float32 [B, C, H, W], such as `int8.calibration_images` gives: convolutions then compute in int8.

    Raises:
        InputError: an unknown format, int8 for a format that has none, unsupported steps, a folder that does not exist, or a
            missing package.
    """
    path = Path(path)
    kinds = {suffix: name for name, suffix in FORMATS.items()}
    to = to or kinds.get(path.suffix.lower())
    if to not in FORMATS:
        raise unknown("format", to or path.name, FORMATS)
    if path.suffix.lower() != FORMATS[to]:
        raise InputError(f"{path} does not end in {FORMATS[to]}, as a file of the format {to} does")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}")
    if calibration is not None and to == "pt2":
        raise InputError("int8 is for onnx and openvino files, not for pt2")
    counts = tuple(steps) or model.steps
    metadata = {**getattr(model, "metadata", {}), "architecture": architecture_of(model), "task": task_of(model)}
    metadata |= {"preprocessing": getattr(model, "metadata", {}).get("preprocessing") or preprocessing(model)}
    metadata["outputs"] = {output_name(n): n for n in counts}
    metadata["precision"] = "fp32" if calibration is None else "int8"
    nets: list[nn.Module]
    if calibration is None:
        nets = [evaluating(unroll(model, n)) for n in counts]
    else:  # folded, so that each int8 convolution is followed by nothing that changes the scale of a channel
        sessions = optimize(model, counts, precision="fp32").sessions.values()
        nets = [session.to(memory_format=torch.contiguous_format) for session in sessions]  # type: ignore[call-overload]
    net = _EveryStep(nets).eval()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = _WRITERS[to](net, Path(folder) / path.name, preprocessing(model)["channels"], metadata, calibration)
        for file in reversed(written):  # the file that names the others last
            file.replace(path.parent / file.name)
    return path


def _program(net: nn.Module, channels: int) -> tuple[Any, int]:
    """The traced network with dynamic batch, height and width, and of what its sides have to be multiples."""
    for multiple in (1, 2, 4, 8):
        height, width = (multiple * torch.export.Dim(f"_{side}", min=3, max=1 << 15) for side in ("height", "width"))
        dims = {0: torch.export.Dim("batch", min=1, max=1 << 15), 2: height, 3: width}
        try:
            return torch.export.export(net, (torch.rand(2, channels, 32, 48),), dynamic_shapes={"x": dims}), multiple
        except (UserError, ValueError, RuntimeError):
            if multiple == 8:
                raise
    raise AssertionError


def _to_onnx(
    net: nn.Module, path: Path, channels: int, metadata: dict[str, Any], calibration: Calibration, outputs: bool = True
) -> list[Path]:
    onnx = needed("onnx", "onnxscript")
    traced, multiple = _program(net, channels)
    with quiet():
        program = torch.onnx.export(
            traced,
            (),
            input_names=["image"],
            output_names=list(metadata["outputs"]),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    if multiple > 1 and metadata["task"] == "denoise":
        _any_size(proto, multiple)
        multiple = 1
    if calibration is not None:
        proto = quantized(proto, calibration, outputs=outputs)
    _once(proto)
    metadata = {**metadata, "multiple": multiple}
    onnx.helper.set_model_props(proto, {KEY: json.dumps(metadata)})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return [path]


def _any_size(proto: Any, multiple: int) -> None:
    """Pads the image by reflection at the right and the bottom to sides that are multiples, and cuts the outputs again."""
    onnx = needed("onnx")
    graph, make = proto.graph, onnx.helper.make_node
    image = graph.input[0]
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "image":
                node.input[i] = "image_padded"
    constants = {"four_zeros": [0] * 4, "two_zeros": [0, 0], "sides": [2, 3], "multiple": [multiple]}
    for name, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), f"any_size_{name}"))

    def named(*names: str) -> list[str]:
        return [f"any_size_{name}" for name in names]

    before = [
        make("Shape", ["image"], named("shape")),
        make("Gather", named("shape", "sides"), named("size")),
        make("Neg", named("size"), named("negative")),
        make("Mod", named("negative", "multiple"), named("missing")),
        make("Concat", named("four_zeros", "two_zeros", "missing"), named("pads"), axis=0),
        make("Pad", ["image", *named("pads")], ["image_padded"], mode="reflect"),
    ]
    after = []
    for output in graph.output:
        for node in graph.node:
            for i, name in enumerate(node.output):
                if name == output.name:
                    node.output[i] = f"{name}_padded"
        after.append(make("Slice", [f"{output.name}_padded", *named("two_zeros", "size", "sides")], [output.name]))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (image, *graph.output):  # a name of its own for each free side
        for i, name in ((0, "batch"), (2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[i].dim_param = name


def _once(proto: Any) -> None:
    """Makes equal initializers one."""
    names: dict[bytes, str] = {}
    other: dict[str, str] = {}
    for tensor in list(proto.graph.initializer):
        key = tensor.raw_data + str((tensor.dims, tensor.data_type)).encode()
        if tensor.raw_data and key in names:
            other[tensor.name] = names[key]
            proto.graph.initializer.remove(tensor)
        else:
            names[key] = tensor.name
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = other.get(name, name)


def _to_openvino(net: nn.Module, path: Path, channels: int, metadata: dict[str, Any], calibration: Calibration) -> list[Path]:
    openvino = needed("openvino")
    # OpenVINO 2026.4 computes int8 convolutions of pre-activation networks wrongly where their outputs stay fp32.
    outputs = metadata["task"] == "classify"
    onnx_file = _to_onnx(net, path.with_suffix(".onnx"), channels, metadata, calibration, outputs)[0]
    model = openvino.Core().read_model(onnx_file)  # convert_model would fold batch norms, and so multiply the kernels
    model.set_rt_info(text_of(onnx_file), [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)
    onnx_file.unlink()
    return [path, path.with_suffix(".bin")]


def _to_pt2(net: nn.Module, path: Path, channels: int, metadata: dict[str, Any], _: Calibration) -> list[Path]:
    program, multiple = _program(net, channels)
    torch.export.save(program, path, extra_files={KEY: json.dumps({**metadata, "multiple": multiple})})
    return [path]


_WRITERS: dict[str, Callable[[nn.Module, Path, int, dict[str, Any], Calibration], list[Path]]] = {
    "onnx": _to_onnx,
    "openvino": _to_openvino,
    "pt2": _to_pt2,
}


def text_of(path: Path) -> str:
    """The metadata property of an ONNX file."""
    return {p.key: p.value for p in needed("onnx").load(path).metadata_props}[KEY]


def read_exported(path: str | Path) -> dict[str, Any]:
    """The metadata of an exported file: that of the weights, and `outputs`, name -> steps.

    Raises:
        InputError: no such file, or not one that `export` wrote.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no exported network at {path}")
    try:
        if path.suffix == ".onnx":
            text = text_of(path)
        elif path.suffix == ".xml":
            text = needed("openvino").Core().read_model(path).get_rt_info([KEY]).astype(str)
        else:
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith(f"extra/{KEY}") or name.endswith(f"/{KEY}"))
                text = archive.read(name).decode()
        return json.loads(text)
    except InputError:
        raise
    except Exception as error:  # each runtime has exceptions of its own for broken files
        raise InputError(f"{path} is not a network that rcnet exported") from error


def load_exported(
    path: str | Path, steps: Steps = None, *, threads: int | None = None, precision: str = "fp32"
) -> Callable[[np.ndarray], np.ndarray]:
    """A function of one step count: float32 [batch, C, height, width] to what the network gives, by ONNX Runtime or OpenVINO.

    Args:
        path: a .onnx or .xml file that `export` wrote.
        steps: one of its step counts; the largest unless given.
        threads: of the processor; what the runtime takes unless given.
        precision: `fp32`, or in OpenVINO `bf16`, of what is not int8 in the file.

    Raises:
        InputError: not such a file, other steps than it holds, a precision that the runtime does not have, or a missing package.
    """
    path = Path(path)
    outputs = read_exported(path)["outputs"]
    held = {tuple(value) if isinstance(value, list) else value: name for name, value in outputs.items()}
    key = next(reversed(held)) if steps is None else steps if isinstance(steps, int) else tuple(steps)
    if key not in held:
        raise InputError(f"steps={steps!r} is not in {path}: valid: {', '.join(map(str, held))}")
    valid = {".xml": {"fp32": "f32", "bf16": "bf16"}, ".onnx": {"fp32": "f32"}}.get(path.suffix, {})
    if valid and precision not in valid:
        raise unknown("precision", precision, valid)
    if path.suffix == ".xml":
        return _openvino_session(path, held[key], threads, valid[precision])
    if path.suffix == ".onnx":
        return _onnx_session(cut(path, held[key]), threads)
    raise InputError(f"{path} is not a .onnx or .xml file; torch.export.load reads a .pt2 file")


def cut(path: Path, output: str) -> bytes:
    """The bytes of an ONNX file with that output only, and what it needs."""
    onnx = needed("onnx")
    model = onnx.load(path)
    part = onnx.utils.Extractor(model).extract_model(["image"], [output])
    return part.SerializeToString()


def _onnx_session(content: bytes, threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"image": np.ascontiguousarray(x, np.float32)})[0]


def _openvino_session(path: Path, output: str, threads: int | None, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    openvino = needed("openvino")
    core = openvino.Core()
    model = core.read_model(path)
    part = openvino.Model([model.output(output)], model.get_parameters())
    config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    request = core.compile_model(part, "CPU", config).create_infer_request()
    return lambda x: next(iter(request.infer([np.ascontiguousarray(x, np.float32)]).values())).copy()
