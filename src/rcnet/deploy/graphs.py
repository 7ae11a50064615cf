"""ONNX graphs after the exporter and before a runtime: names of free sides, equal kernels once, one output of several."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rcnet.runtime import graph as parts
from rcnet.runtime.onnx import KEY


def text_of(path: Path) -> str:
    """The metadata property of an ONNX file."""
    return parts.metadata(path.read_bytes())[KEY]


def name_sides(graph: Any) -> None:
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


def once(proto: Any) -> None:
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


def halve(proto: Any) -> None:
    """Stores kernels in fp16. They compute in fp32: runtimes undo the cast once, when they load the file."""
    import onnx

    for tensor in list(proto.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        kernel = onnx.numpy_helper.to_array(tensor)
        if np.abs(kernel).max(initial=0) < np.finfo(np.float16).max:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(kernel.astype(np.float16), f"{name}.half"))
            proto.graph.node.insert(0, onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))


def reached(graph: Any, outputs: Iterable[str]) -> set[str]:
    """The names of all values that these outputs are computed of, and their own."""
    found = set(outputs)
    for node in reversed(graph.node):  # they are in the order in which they run
        if found.intersection(node.output):
            found.update(node.input)
    return found


def cut(path: Path, output: str) -> bytes:
    """The bytes of an ONNX file with that output only, and what it needs."""
    return parts.cut(path.read_bytes(), output)
