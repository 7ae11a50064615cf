"""One file for every step count: ONNX, OpenVINO or a torch.export archive, each kernel stored once; or ExecuTorch's for phones.

The exported graph has an output for each step count; a loader cuts it to one. Uncut, a runtime would compute them all. A file for
ExecuTorch has a method for each instead, whose kernels have their batch norms folded in.
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError

from rcnet.calling import plain, ready, refused
from rcnet.cell import Choice, RecurrentNet, Steps, choice, evaluating, unroll
from rcnet.cost.budget import steps_text
from rcnet.deploy.int8 import quantized
from rcnet.deploy.optimize import chosen, optimize
from rcnet.deploy.packages import needed, quiet
from rcnet.errors import InputError, unknown
from rcnet.replacing import naming
from rcnet.tasks.task import Fed

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "executorch": ".pte"}
OPSET = 20
KEY = "rcnet"  # the metadata property, holding JSON
SIDE, ANY = 1024, 1 << 15  # the longest sides of images, in pixels: in ExecuTorch, which plans memory for them, and elsewhere
Calibration = Iterable[Fed] | None
Level = float | np.ndarray | None
Runner = Callable[[dict[str, np.ndarray]], np.ndarray]


class Exported(Protocol):
    """What `load_exported` gives."""

    def __call__(self, image: np.ndarray, sigma: Level = None) -> np.ndarray: ...


class _EveryStep(nn.Module):
    """The networks of several step counts over one set of kernels, each an output, for images of any size.

    Sides are filled up to multiples of `sub` by gathering rows and columns, which traces for every size, unlike padding.
    """

    def __init__(self, nets: Sequence[nn.Module], sub: int) -> None:
        super().__init__()
        self.nets, self.sub = nn.ModuleList(nets), sub

    def forward(self, image: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.sub == 1 and sigma is None:
            return tuple(net(image) for net in self.nets)
        sides = image.shape[-2:]
        places = _filled(sides, self.sub)
        told = {}
        if sigma is not None:
            broadcast = [torch.minimum(i, _last(side)) for i, side in zip(places, sigma.shape[-2:], strict=True)]
            told["sigma"] = _gather(sigma, broadcast)
        image, own = _gather(image, places), [torch.arange(side) for side in sides]
        return tuple(_gather(net(image, **told), own) for net in self.nets)


def _last(side: int) -> Tensor:
    """The place of a side's last pixel."""
    return torch.full((), side, dtype=torch.int64) - 1


def _filled(sides: Sequence[int], sub: int) -> list[Tensor]:
    """The rows and the columns of an image whose sides become multiples, as `filled` pads it, at most one pixel a side."""
    ends = [_last(side) for side in sides]
    step = torch.minimum(*ends).clamp(max=1)  # back from the edge; an image of one row or column has nothing to reflect
    places = []
    for side, end in zip(sides, ends, strict=True):
        i = torch.arange((side + sub - 1) // sub * sub)
        places.append(torch.minimum(i, end) - (i - end).clamp(min=0) * step)
    return places


def _gather(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Those rows and columns of [B, C, H, W]."""
    rows, columns = places
    return x.index_select(2, rows).index_select(3, columns)


def output_name(steps: Steps) -> str:
    """`steps2`, or `steps4_3_3` of one number a cell."""
    return "steps" + steps_text(choice(steps)).replace(",", "_")


def export(
    model: RecurrentNet,
    path: str | Path,
    to: str | None = None,
    steps: Sequence[Steps] = (),
    calibration: Calibration = None,
) -> Path:
    """Writes one file (two for OpenVINO: .xml and .bin) that holds every step count asked for; returns its path.

    Input `image`: float32 [batch, C, height, width] in [0, 1], all but C dynamic. Networks that take the noise level have a
    second one, `sigma`: float32 [batch, 1, sigma_height, sigma_width] in levels of 255, negative where it is not known; its sides
    are 1 and 1, for one level an image, or the image's. Outputs `steps1`, `steps2`, ...: what `model(image, steps, sigma)` gives.

    The metadata of the weights is in the property `rcnet`, as JSON. There `inputs` and `outputs` name these, and `multiple` is
    what the sides of images have to be multiples of.

    Args:
        to: `onnx`, `openvino`, `pt2` or `executorch`; what the suffix of the path says unless given. A file for ExecuTorch takes
            one image of sides up to `SIDE` a call, and has a method `steps1`, ... for each step count.
        steps: the step counts; all supported ones unless given.
        calibration: what `int8.calibration_images` gives: images, float32 [B, C, H, W], or pairs of images and `sigma` for
            networks that take both. Convolutions then compute in int8.

    Raises:
        InputError: an unknown format, int8 for a format that has none, unsupported steps, a folder that does not exist, or a
            missing package.
        OSError: the file cannot be written, e.g. as the disk is full; what was there is as it was.
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
    if calibration is not None and to in ("pt2", "executorch"):
        raise InputError(f"int8 is for onnx and openvino files, not for {to}")
    counts, about = chosen(model, tuple(steps) or None), model.about
    check_sides(model, counts)
    metadata = {**model.metadata, "architecture": model.architecture, "task": about.task, "preprocessing": about.to_json()}
    metadata |= {"inputs": about.inputs, "outputs": {output_name(n): n for n in counts}, "multiple": about.multiple}
    metadata["precision"] = "fp32" if calibration is None else "int8"
    nets: list[nn.Module]
    if calibration is None and to != "executorch":
        still = plain(evaluating(model))
        nets = [unroll(still, n) for n in counts]
    else:  # folded: nothing may change the scale of a channel after an int8 convolution; ExecuTorch folds shared kernels wrongly
        sessions = optimize(model, counts, precision="fp32").sessions.values()
        nets = [session.to(memory_format=torch.contiguous_format) for session in sessions]  # type: ignore[call-overload]
    net = _EveryStep(nets, about.sub).eval()
    with naming(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = _WRITERS[to](net, Path(folder) / path.name, about.channels, metadata, calibration)
        for file in reversed(written):  # the file that names the others last
            file.replace(path.parent / file.name)
    return path


def _program(net: nn.Module, channels: int, metadata: dict[str, Any], batches: int = ANY, side: int = ANY) -> Any:
    """The traced network with free batch and sides up to these, without the paths and source lines of this machine.

    The smallest sides that tracing allows; a graph in ONNX or OpenVINO then runs for smaller ones, too.
    """
    multiple, batch = metadata["multiple"], torch.export.Dim("batch", min=1, max=batches) if batches > 1 else None

    def sides(prefix: str, multiple: int, least: int) -> dict[int, Any]:
        dims = [multiple * torch.export.Dim(f"_{prefix}{name}", min=least, max=side // multiple) for name in ("height", "width")]
        return {0: batch, 2: dims[0], 3: dims[1]}

    for least in (1, 3, 9):
        free = {"image": sides("", multiple, least), "sigma": sides("sigma_", 1, 1)}
        example = _example(min(batches, 2), channels, len(metadata["inputs"]), 16 * multiple, 24 * multiple)
        try:
            program = torch.export.export(net, example, dynamic_shapes={name: free[name] for name in metadata["inputs"]})
        except (UserError, ValueError, RuntimeError):
            if least == 9:
                raise
        else:
            break
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program


def _example(batch: int, channels: int, inputs: int, height: int, width: int) -> tuple[Tensor, ...]:
    """Inputs of that size."""
    return (torch.rand(batch, channels, height, width), torch.rand(batch, 1, height + 1, width + 1))[:inputs]


@torch.no_grad()
def check_sides(model: RecurrentNet, counts: Iterable[Choice]) -> None:
    """`InputError` if the network does not take the images that it says it takes."""
    size = (3 * model.about.multiple, 5 * model.about.multiple)
    for n in counts:
        try:
            ready(model, n)(torch.rand(2, model.about.channels, *size))
        except RuntimeError as error:
            raise refused(model, size, error) from error


def _to_onnx(
    net: nn.Module, path: Path, channels: int, metadata: dict[str, Any], calibration: Calibration, outputs: bool = True
) -> list[Path]:
    onnx = needed("onnx", "onnxscript")
    traced = _program(net, channels, metadata)
    with quiet():
        program = torch.onnx.export(
            traced,
            (),
            input_names=list(metadata["inputs"]),
            output_names=list(metadata["outputs"]),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    if calibration is not None:
        proto = quantized(proto, calibration, outputs=outputs)
    _once(proto)
    _name_sides(proto.graph)
    onnx.helper.set_model_props(proto, {KEY: json.dumps(metadata)})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return [path]


def _name_sides(graph: Any) -> None:
    """Names the free sides of inputs and outputs, and leaves out what the exporter noted on the way."""
    names: dict[str, str] = {}
    for value in (*graph.input, *graph.output):
        own = "" if value.name == "image" else f"{value.name}_"
        sides = ("batch", f"{own}height", f"{own}width")
        for place, dim in zip(
            (0, 2, 3), value.type.tensor_type.shape.dim[:1] + value.type.tensor_type.shape.dim[2:], strict=False
        ):
            if dim.dim_param:
                dim.dim_param = names.setdefault(dim.dim_param, sides[max(place - 1, 0)])
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]


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
    content = io.BytesIO()  # of a full disk, torch.export.save says nothing that tells
    torch.export.save(_program(net, channels, metadata), content, extra_files={KEY: json.dumps(metadata)})
    path.write_bytes(content.getbuffer())
    return [path]


def _to_executorch(net: nn.Module, path: Path, channels: int, metadata: dict[str, Any], _: Calibration) -> list[Path]:
    needed("executorch")
    assert isinstance(net, _EveryStep)
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        programs = {
            name: _program(_EveryStep([one], net.sub).eval(), channels, metadata, 1, SIDE)
            for name, one in zip(metadata["outputs"], net.nets, strict=True)
        }
        lowered = to_edge_transform_and_lower(
            programs, partitioner=[XnnpackPartitioner()], constant_methods={KEY: json.dumps(metadata)}
        )
        path.write_bytes(lowered.to_executorch().buffer)
    return [path]


_WRITERS: dict[str, Callable[[nn.Module, Path, int, dict[str, Any], Calibration], list[Path]]] = {
    "onnx": _to_onnx,
    "openvino": _to_openvino,
    "pt2": _to_pt2,
    "executorch": _to_executorch,
}


def text_of(path: Path) -> str:
    """The metadata property of an ONNX file."""
    return {p.key: p.value for p in needed("onnx").load(path).metadata_props}[KEY]


def read_exported(path: str | Path) -> dict[str, Any]:
    """The metadata of an exported file: that of the weights, `inputs`, and `outputs`, name -> steps.

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
        elif path.suffix == ".pte":
            text = _executorch_method(path, KEY)[1].execute([])[0]
        else:
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith(f"extra/{KEY}") or name.endswith(f"/{KEY}"))
                text = archive.read(name).decode()
        return json.loads(text)
    except InputError:
        raise
    except Exception as error:  # each runtime has exceptions of its own for broken files
        raise InputError(f"{path} is not a network that rcnet exported") from error


def load_exported(path: str | Path, steps: Steps = None, *, threads: int | None = None, precision: str = "fp32") -> Exported:
    """A function of one step count, `f(image)` or `f(image, sigma)`, by the file's runtime: what the network gives.

    It takes images, float32 [batch, C, height, width] in [0, 1], and, of networks that take the noise level, `sigma` in levels of
    255: a number, one an image [batch], or a map [height, width] or [batch, 1, height, width]; None or negative: unknown.

    Args:
        path: a .onnx, .xml or .pte file that `export` wrote; the last takes one image a call.
        steps: one of its step counts; the largest unless given.
        threads: of the processor, not for ExecuTorch; what the runtime takes unless given.
        precision: `fp32`, or in OpenVINO `bf16`, of what is not int8 in the file.

    Raises:
        InputError: not such a file, other steps than it holds, a precision that the runtime does not have, or a missing package;
            when called, a sigma for a network that takes none, or one of another shape.
    """
    path = Path(path)
    metadata = read_exported(path)
    held = {choice(value): name for name, value in metadata["outputs"].items()}
    key = next(reversed(held)) if steps is None else choice(steps)
    if key not in held:
        raise InputError(f"steps={steps!r} is not in {path}: valid: {', '.join(map(str, held))}")
    valid = {".xml": {"fp32": "f32", "bf16": "bf16"}, ".onnx": {"fp32": "f32"}, ".pte": {"fp32": "f32"}}.get(path.suffix, {})
    if valid and precision not in valid:
        raise unknown("precision", precision, valid)
    if path.suffix == ".xml":
        run = _openvino_session(path, held[key], threads, valid[precision])
    elif path.suffix == ".onnx":
        run = _onnx_session(cut(path, held[key]), threads)
    elif path.suffix == ".pte":
        run = _executorch_session(path, held[key])
    else:
        raise InputError(f"{path} is not a .onnx, .xml or .pte file; torch.export.load reads a .pt2 file")
    takes_level = "sigma" in metadata.get("inputs", ())

    def call(image: np.ndarray, sigma: Level = None) -> np.ndarray:
        fed = {"image": np.ascontiguousarray(image, np.float32)}
        if takes_level:
            fed["sigma"] = sigma_input(image.shape, sigma)
        elif sigma is not None:
            raise InputError(f"the network in {path} takes no noise level: leave sigma out")
        return run(fed)

    return call


def sigma_input(shape: tuple[int, ...], sigma: Level) -> np.ndarray:
    """The input `sigma`, float32 [batch, 1, 1, 1] or [batch, 1, height, width], of images of that shape; -1 for None.

    Raises:
        InputError: a sigma that is no number, [batch], [height, width] or [batch, 1, height, width].
    """
    level = np.asarray(-1 if sigma is None else sigma, np.float32)
    level = level.reshape(-1, 1, 1, 1) if level.ndim == 1 else level.reshape((1,) * (4 - level.ndim) + level.shape)
    batch, _, *sides = shape
    if (
        level.ndim != 4
        or level.shape[0] not in (1, batch)
        or level.shape[1] != 1
        or level.shape[2:] not in ((1, 1), tuple(sides))
    ):
        raise InputError(
            f"sigma of shape {list(np.shape(sigma))} does not fit images {list(shape)}: give one number, "  # type: ignore[arg-type]
            "one an image [B], or a map [H, W] or [B, 1, H, W]"
        )
    return np.repeat(level, batch // len(level), 0)


def cut(path: Path, output: str) -> bytes:
    """The bytes of an ONNX file with that output only, and what it needs."""
    onnx = needed("onnx")
    model = onnx.load(path, load_external_data=False)
    part = onnx.utils.Extractor(model).extract_model([value.name for value in model.graph.input], [output])
    return part.SerializeToString()


def _onnx_session(content: bytes, threads: int | None) -> Runner:
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda fed: session.run(None, fed)[0]


def _openvino_session(path: Path, output: str, threads: int | None, precision: str) -> Runner:
    openvino = needed("openvino")
    core = openvino.Core()
    model = core.read_model(path)
    part = openvino.Model([model.output(output)], model.get_parameters())
    config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    request = core.compile_model(part, "CPU", config).create_infer_request()
    return lambda fed: next(iter(request.infer(fed).values())).copy()


def _executorch_method(path: Path, name: str) -> tuple[Any, Any]:
    """The program, which has to live as long, and a method of it."""
    needed("executorch")
    with quiet():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        return program, program.load_method(name)


def _executorch_session(path: Path, name: str) -> Runner:
    program, method = _executorch_method(path, name)

    def run(fed: dict[str, np.ndarray], program: Any = program) -> np.ndarray:
        batch, _, *sides = fed["image"].shape
        if batch > 1 or max(sides) > SIDE:
            raise InputError(
                f"a file for ExecuTorch takes one image a call, of sides up to {SIDE} pixels, not {batch} of {sides}"
            )
        return method.execute([torch.from_numpy(value) for value in fed.values()])[0].numpy().copy()

    return run
