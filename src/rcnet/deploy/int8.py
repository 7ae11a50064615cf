"""int8: static quantization of an exported graph, calibrated on real images.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference". Only
convolutions compute in int8. What they read has one scale a tensor, 8 bits without a sign; kernels have one a channel of the
output, 8 bits with a sign, so that folding a batch norm into a kernel changes its scales alone, and one int8 kernel still
serves every step (a norm that turns a channel's sign makes its scale negative). Sums, norms and activations stay fp32. ONNX
Runtime needs the outputs of its int8 convolutions in 8 bits too, which costs denoisers accuracy and classifiers next to none;
OpenVINO leaves those of denoisers in fp32.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rcnet.cell import RecurrentNet
from rcnet.deploy.packages import needed, quiet
from rcnet.tasks import find_task
from rcnet.tasks.task import Fed

HALFWAY = 0.02  # the part of a kernel's values, at most, that lies halfway between two of int8: of kernels in bf16 about 0.003


def quantized(graph: Any, calibration: Iterable[Fed], *, outputs: bool, kernel_bits: int) -> Any:
    """An ONNX model whose convolutions compute in int8.

    Args:
        graph: the model in fp32, batch norms folded.
        calibration: images, float32 [B, C, H, W], or pairs of images and `sigma` where the model takes both; the range of each
            activation is what they usually reach.
        outputs: also the convolutions' outputs, as ONNX Runtime needs; else fp32.
        kernel_bits: 8, or 7, which no processor's sums saturate at.
    """
    onnx, tool = needed("onnx"), needed("onnxruntime.quantization", "onnxruntime")

    names = [value.name for value in graph.graph.input]

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.inputs = (dict(zip(names, x if isinstance(x, tuple) else (x,), strict=True)) for x in calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        target = Path(folder) / "int8.onnx"
        tool.quantize_static(
            graph,
            target,
            Reader(),
            quant_format=tool.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
            reduce_range=kernel_bits == 7,
            extra_options={"CalibMovingAverage": True},  # the usual range of a batch, not the widest: 0.1 to 0.9 dB more
        )
        model = onnx.load(target)
    _let_others_read_fp32(model.graph, outputs)
    _share_kernels(model.graph)
    return model


def _let_others_read_fp32(graph: Any, outputs: bool) -> None:
    """Leaves the 8 bits to convolutions: whatever else reads a quantized value now reads what it was made of."""
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "QuantizeLinear", "DequantizeLinear"):
            continue
        for i, name in enumerate(node.input):
            back = producer.get(name)
            there = producer.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
            if there is None:
                continue
            source = producer.get(there.input[0])
            if not (outputs and source is not None and source.op_type == "Conv"):
                node.input[i] = there.input[0]
    while True:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        dead = [node for node in graph.node if not used.intersection(node.output)]
        if not dead:
            return
        for node in dead:
            graph.node.remove(node)


def _share_kernels(graph: Any) -> None:
    """Kernels that differ in the signs of whole channels become one; the signs go to their scales and biases.

    So do those that differ by one here and there: values halfway between two, which each norm rounded its own way.
    """
    arrays = needed("onnx").numpy_helper
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    seen: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}  # by shape: names and values
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        kernel, *bias = (producer[name] for name in node.input[1:])  # each is dequantized: values, scales, zero points
        values = arrays.to_array(tensors[kernel.input[0]]).astype(np.int32)
        alike = seen.setdefault(values.shape, [])
        found = next(((name, turn) for name, first in alike if (turn := _turn(values, first)) is not None), None)
        if found is None:
            alike.append((kernel.input[0], values))
            continue
        kernel.input[0], turn = found
        if (turn > 0).all():
            continue
        for dequantize, i in ((kernel, 1), *((b, i) for b in bias for i in (0, 1))):
            turned = arrays.to_array(tensors[dequantize.input[i]])
            dequantize.input[i] += f"_of_{node.name}"
            graph.initializer.append(arrays.from_array(turned * turn.astype(turned.dtype), dequantize.input[i]))
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _turn(kernel: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """The sign of each channel, [out], by which one kernel, [out, in, kh, kw], is the other; None where it is not."""
    turn = np.where((kernel * other).sum((1, 2, 3)) < 0, -1, 1)
    apart = np.abs(kernel - other * turn[:, None, None, None])
    return turn if apart.max() <= 1 and apart.mean() < HALFWAY else None


def calibration_images(model: RecurrentNet, folder: str | Path) -> Iterator[Fed]:
    """What `model` will see, from a folder of clean images: batches float32 [B, C, H, W], for `export`.

    Raises:
        InputError: no such folder, no images in it, or none that these weights can take.
    """
    return find_task(model.about.task).calibration(model, folder)
