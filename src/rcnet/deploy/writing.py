"""What `export` writes: the traced network of several step counts, and a writer for each format."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as tracing

from rcnet.deploy.graphs import halve, name_sides, once, text_of
from rcnet.deploy.int8 import quantized
from rcnet.deploy.packages import needed, quiet
from rcnet.errors import InputError
from rcnet.models.judge import MULTIPLE, Judge
from rcnet.runtime.levels import LEVELS
from rcnet.runtime.onnx import KEY
from rcnet.tasks import TASKS
from rcnet.tasks.task import CalibrationBatch

OPSET = 20
SIDE, ANY = 1024, 1 << 15  # the longest sides of images, in pixels: in ExecuTorch, which plans memory for them, and elsewhere
LARGEST = 64  # multiple of sides that is tried
SHAPE = ((96, 3), (160, 5))  # the least sides of the example, in pixels and in multiples: five halvings leave more than 1 pixel
Calibration = Iterable[CalibrationBatch] | None


class EveryStep(nn.Module):
    """The networks of several step counts over one set of kernels, each an output, and what a judge says, for images of any size.

    Sides are filled up to multiples of `sub` by gathering rows and columns, which traces for every size, unlike padding.
    """

    def __init__(self, nets: Sequence[nn.Module], sub: int, judge: Judge | None = None) -> None:
        super().__init__()
        self.nets, self.sub, self.judge = nn.ModuleList(nets), sub, judge

    def forward(self, image: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.sub == 1 and sigma is None:
            return tuple(net(image) for net in self.nets)
        sides = image.shape[-2:]
        places = _filled(sides, self.sub)
        told = {}
        if sigma is not None:
            broadcast = [torch.minimum(i, _last(side)) for i, side in zip(places, sigma.shape[-2:], strict=True)]
            told["sigma"] = _gather(sigma, broadcast)
        filled, own = _gather(image, places), [torch.arange(side) for side in sides]
        outputs = tuple(_gather(net(filled, **told), own) for net in self.nets)
        return outputs if self.judge is None else (*outputs, _judged(self.judge, image))


def _judged(judge: Judge, image: Tensor) -> Tensor:
    """`judge(image)`, whose sides become multiples by gathering rows and columns."""
    sides = image.shape[-2:]
    whole = [torch.sym_max(side, MULTIPLE) // MULTIPLE * MULTIPLE for side in sides]  # type: ignore[no-untyped-call]
    places = [torch.minimum(torch.arange(count), _last(side)) for count, side in zip(whole, sides, strict=True)]
    return judge.levels(judge.of_multiples(_gather(image, places)))


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


@torch.no_grad()
def _program(net: nn.Module, channels: int, metadata: dict[str, Any], batches: int = ANY, side: int = ANY) -> Any:
    """The traced network with free batch and sides up to these, without the paths and source lines of this machine.

    The smallest sides that tracing allows; a graph in ONNX or OpenVINO then runs for smaller ones, too. Sides are multiples of
    `metadata["multiple"]`, or of twice as much, and so on, which is then put there. Where none can be traced, and where
    `metadata["size"]` is set, images have that size, or that of the network.

    Raises:
        InputError: it cannot be traced.
    """
    batch = torch.export.Dim("batch", min=1, max=batches) if batches > 1 else None

    def sides(prefix: str, multiple: int, least: int) -> dict[int, Any]:
        dims = [multiple * torch.export.Dim(f"_{prefix}{name}", min=least, max=side // multiple) for name in ("height", "width")]
        return {0: batch, 2: dims[0], 3: dims[1]}

    about, usual, reason = metadata["preprocessing"], metadata["multiple"], ""
    tries = [(usual, 1), (usual, 3), (usual, 9), *((usual * 2**i, 1) for i in (1, 3, 5) if usual * 2**i <= LARGEST)]
    size = metadata.get("size") or about.get("size")
    for multiple, least in ([] if "size" in metadata else tries) + ([(0, 0)] if size else []):
        free = {"image": sides("", multiple, least) if multiple else {0: batch}, "sigma": sides("sigma_", 1, 1)}
        height, width = [multiple * max(least, -(-part // multiple)) for part, least in SHAPE] if multiple else size
        example = _example(min(batches, 2), channels, metadata["levels"], height, width)
        try:
            # A judge may see one place alone: a size of 1 is no exception to it.
            with tracing.patch(backed_size_oblivious="level_map" in metadata):  # type: ignore[attr-defined]
                program = torch.export.export(net, example, dynamic_shapes={name: free[name] for name in metadata["inputs"]})
            if multiple:  # a size that tracing took for a constant shows at another size of images
                more = _example(min(batches, 2), channels, metadata["levels"], height - multiple, width + 2 * multiple)
                torch.testing.assert_close(program.module()(*more), net(*more), rtol=1e-3, atol=1e-3)
        except Exception as error:  # torch.export raises whatever the network's code or its own analysis does
            reason = reason or str(error).strip().splitlines()[0]
            continue
        if multiple:
            metadata["multiple"] = about["multiple"] = multiple
        else:
            metadata["size"] = about["size"] = list(size)
        break
    else:
        raise InputError(
            f"this network cannot be exported ({reason}){'' if size else '; try one size of images (--size, size=)'}"
        )
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program


def _example(batch: int, channels: int, levels: int, height: int, width: int) -> tuple[Tensor, ...]:
    """Inputs of that size."""
    image = torch.rand(batch, channels, height, width)
    return (image, torch.rand(batch, levels, height + 1, width + 1)) if levels else (image,)


def to_onnx(
    net: nn.Module, path: Path, channels: int, metadata: dict[str, Any], calibration: Calibration, outputs: bool = True
) -> list[Path]:
    """`half` in the metadata: kernels are stored in fp16."""
    onnx = needed("onnx", "onnxscript")
    traced = _program(net, channels, metadata)
    with quiet():
        program = torch.onnx.export(
            traced,
            (),
            input_names=list(metadata["inputs"]),
            output_names=[*metadata["outputs"], *([LEVELS] if "level_map" in metadata else [])],
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    if calibration is not None:
        proto = quantized(proto, calibration, outputs=outputs, kernel_bits=metadata["kernel_bits"])
    once(proto)
    if metadata.get("half"):
        halve(proto)
    name_sides(proto.graph)
    onnx.helper.set_model_props(proto, {KEY: json.dumps(metadata)})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return [path]


def to_openvino(net: nn.Module, path: Path, channels: int, metadata: dict[str, Any], calibration: Calibration) -> list[Path]:
    openvino = needed("openvino")
    # OpenVINO 2026.4 computes int8 convolutions of pre-activation networks wrongly where their outputs stay fp32.
    outputs = metadata["task"] in TASKS and TASKS[metadata["task"]].int8_outputs
    onnx_file = to_onnx(net, path.with_suffix(".onnx"), channels, metadata, calibration, outputs)[0]
    model = openvino.Core().read_model(onnx_file)  # convert_model would fold batch norms, and so multiply the kernels
    model.set_rt_info(text_of(onnx_file), [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)
    onnx_file.unlink()
    return [path, path.with_suffix(".bin")]


def to_pt2(net: nn.Module, path: Path, channels: int, metadata: dict[str, Any], _: Calibration) -> list[Path]:
    content = io.BytesIO()  # of a full disk, torch.export.save says nothing that tells
    torch.export.save(_program(net, channels, metadata), content, extra_files={KEY: json.dumps(metadata)})
    path.write_bytes(content.getbuffer())
    return [path]


def to_executorch(net: nn.Module, path: Path, channels: int, metadata: dict[str, Any], _: Calibration) -> list[Path]:
    needed("executorch")
    assert isinstance(net, EveryStep)
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        programs = {
            name: _program(EveryStep([one], net.sub).eval(), channels, metadata, 1, SIDE)
            for name, one in zip(metadata["outputs"], net.nets, strict=True)
        }
        lowered = to_edge_transform_and_lower(
            programs, partitioner=[XnnpackPartitioner()], constant_methods={KEY: json.dumps(metadata)}
        )
        path.write_bytes(lowered.to_executorch().buffer)
    return [path]
