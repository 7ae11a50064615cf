"""int8: static quantization of an exported graph, calibrated on real images.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference". Only
convolutions compute in int8. What they read has one scale a tensor, 8 bits without a sign; kernels have one a channel of the
output, 8 bits with a sign, so that folding a batch norm into a kernel changes its scales alone, and one int8 kernel still
serves every step (a norm that turns a channel's sign makes its scale negative). Biases take back what the rounding of kernels
changes on average, which is most of the loss. Sums, norms and activations stay fp32. ONNX Runtime needs the outputs of its int8
convolutions in 8 bits too, which costs denoisers accuracy and classifiers next to none; OpenVINO leaves those of denoisers in
fp32.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcnet.cell import RecurrentNet
from rcnet.deploy.packages import needed, quiet
from rcnet.tasks import find_task
from rcnet.tasks.task import Fed

LARGEST = {7: 64, 8: 127}  # of a kernel: sums of two products of 64 and 255 stay within 16 bits


def quantized(graph: Any, calibration: Iterable[Fed], *, outputs: bool, means: bool, kernel_bits: int) -> Any:
    """An ONNX model whose convolutions compute in int8.

    Args:
        graph: the model in fp32, batch norms folded.
        calibration: images, float32 [B, C, H, W], or pairs of images and `sigma` where the model takes both; the range of each
            activation is what they usually reach.
        outputs: also the convolutions' outputs, as ONNX Runtime needs; else fp32.
        means: biases take back what the rounding of kernels changes on average.
        kernel_bits: 8, or 7, which no processor's sums saturate at.
    """
    onnx, tool = needed("onnx"), needed("onnxruntime.quantization", "onnxruntime")

    names = [value.name for value in graph.graph.input]
    calibration = list(calibration)
    read = _mean_inputs(graph, names, calibration) if means else {}
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    exact = {  # before the tool empties them
        node.name: [onnx.numpy_helper.to_array(tensors[name]).astype(np.float64) for name in node.input[1:]]
        for node in graph.graph.node
        if node.op_type == "Conv"
    }

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.inputs = (_named(names, x) for x in calibration)

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
    _set_kernels(model.graph, exact, read, LARGEST[kernel_bits])
    return model


def _named(names: Sequence[str], fed: Fed) -> dict[str, np.ndarray]:
    return dict(zip(names, fed if isinstance(fed, tuple) else (fed,), strict=True))


def _mean_inputs(graph: Any, names: Sequence[str], calibration: Sequence[Fed]) -> dict[str, np.ndarray]:
    """What each convolution of the model in fp32 reads on average: its name -> a number a channel, [in]."""
    onnx, runtime = needed("onnx"), needed("onnxruntime")
    seen = {node.name: node.input[0] for node in graph.graph.node if node.op_type == "Conv"}
    wanted = [name for name in dict.fromkeys(seen.values()) if name not in names]
    told = onnx.ModelProto.FromString(graph.SerializeToString())
    told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = runtime.InferenceSession(told.SerializeToString(), providers=["CPUExecutionProvider"])
    sums: dict[str, Any] = {}
    for fed in calibration:
        inputs = _named(names, fed)
        for name, x in [*zip(wanted, session.run(wanted, inputs), strict=True), *inputs.items()]:
            sums[name] = sums.get(name, 0) + x.mean((0, 2, 3), dtype=np.float64) / len(calibration)
    return {node: sums[name] for node, name in seen.items()}


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


def _set_kernels(graph: Any, exact: Mapping[str, Sequence[np.ndarray]], means: Mapping[str, np.ndarray], most: int) -> None:
    """Gives each int8 convolution its kernel: one for all convolutions whose kernels differ by the scales of channels alone.

    Signs of channels go to the scales. What rounding a kernel changes on average, biases take back (Nagel et al. 2019, Sec. 4.2).

    Args:
        exact: of each convolution the kernel, [out, in, kh, kw], and the bias if it has one.
        means: what each convolution reads on average, [in].
        most: the largest number in a kernel.
    """
    arrays = needed("onnx").numpy_helper
    known = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    made: dict[tuple[int, ...], list[tuple[str, np.ndarray, np.ndarray]]] = {}  # by shape: names, kernels and what they stand for

    def put(dequantize: Any, place: int, values: np.ndarray, name: str) -> None:
        graph.initializer.append(arrays.from_array(values, name))
        dequantize.input[place] = name

    for node in (node for node in graph.node if node.op_type == "Conv"):
        images, kernel, *bias = (producer[name] for name in node.input)  # each is dequantized: values, scales, zero points
        values, *shift = exact[node.name]
        largest = np.maximum(np.abs(values).max((1, 2, 3), keepdims=True), 1e-30)
        unit = values / largest
        same = made.setdefault(values.shape, [])
        turns = ((name, whole, _turn(unit, first)) for name, whole, first in same)
        name, whole, turn = next((one for one in turns if one[2] is not None), ("", np.rint(most * unit).astype(np.int8), None))
        if turn is None:
            name, turn = f"{node.name}_kernel", np.ones(len(unit))
            same.append((name, whole, unit))
            graph.initializer.append(arrays.from_array(whole, name))
        kernel.input[0] = name
        read_scale = arrays.to_array(known[images.input[1]])
        least = np.abs(shift[0]) / (read_scale * 2.0**30) if shift else 0.0  # of a dead channel: its bias has to fit 32 bits
        scale = (turn * np.maximum(largest[:, 0, 0, 0] / most, least)).astype(np.float32)
        put(kernel, 1, scale, f"{node.name}_kernel_scale")
        for dequantize, exactly in zip(bias, shift, strict=True):
            step = read_scale * scale
            error = np.zeros(len(values))
            if node.name in means:
                read = means[node.name].reshape(-1, values.shape[1])  # [groups, in of each]
                wrong = (whole * scale[:, None, None, None] - values).sum((2, 3))
                error = (wrong * read.repeat(len(values) // len(read), 0)).sum(1)
            put(dequantize, 0, np.rint((exactly - error) / step).astype(np.int32), f"{node.name}_bias")
            put(dequantize, 1, step, f"{node.name}_bias_scale")
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _turn(kernel: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """The sign of each channel, [out], by which one kernel, [out, in, kh, kw], is the other; None where it is not."""
    turn = np.where((kernel * other).sum((1, 2, 3)) < 0, -1, 1)
    return turn if np.allclose(kernel, other * turn[:, None, None, None], atol=1e-4) else None


def calibration_images(model: RecurrentNet, folder: str | Path) -> Iterator[Fed]:
    """What `model` will see, from a folder of clean images: batches float32 [B, C, H, W], for `export`.

    Raises:
        InputError: no such folder, no images in it, or none that these weights can take.
    """
    return find_task(model.about.task).calibration(model, folder)
