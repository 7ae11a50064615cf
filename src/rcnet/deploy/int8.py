"""int8: static quantization of an exported graph, calibrated on real images.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference". Only
convolutions compute in int8. What they read has one scale a tensor, 8 bits without a sign; kernels have one a channel of the
output, 8 bits with a sign, so that folding a batch norm into a kernel changes its scales alone, and one int8 kernel still
serves every step (a norm that turns a channel's sign makes its scale negative). Kernels are rounded one number after another,
each taking back what the ones before changed, by what the convolutions read at all their steps (Frantar et al. 2023, "GPTQ:
Accurate Post-Training Quantization for Generative Pre-trained Transformers"); biases take back what is left on average (Nagel et
al. 2019, Sec. 4.2). Sums, norms and activations stay fp32. ONNX Runtime needs the outputs of its int8 convolutions in 8 bits too,
which costs denoisers accuracy and classifiers next to none; OpenVINO leaves those of denoisers in fp32.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcnet.deploy.graphs import reached
from rcnet.deploy.packages import needed, quiet
from rcnet.network import RecurrentNet
from rcnet.runtime.levels import LEVELS
from rcnet.tasks import find_task
from rcnet.tasks.task import CalibrationBatch

LARGEST = {7: 64, 8: 127}  # of a kernel: sums of two products of 64 and 255 stay within 16 bits
PLACES = 2048  # of each batch at which what a kernel reads is sampled
DAMPING = 0.01  # of the mean second moment, as in the code of GPTQ
CLIPS = (1.0, 0.9, 0.8, 0.7)  # of a channel's largest number: the largest that its scale holds


@dataclass
class Convolution:
    """One of a graph, which is to compute in int8: kernel [out, in of a group, kh, kw], bias [out] unless it has none."""

    name: str
    reads: str
    kernel: np.ndarray
    bias: np.ndarray | None
    groups: int
    pads: Sequence[int]  # top, left, bottom, right
    strides: Sequence[int]
    dilations: Sequence[int]

    @property
    def largest(self) -> np.ndarray:
        """The largest number of each channel, [out]."""
        return np.maximum(np.abs(self.kernel).max((1, 2, 3)), 1e-30)


@dataclass
class Kernel:
    """One for all convolutions whose kernels differ by the scales of channels alone."""

    unit: np.ndarray  # divided by the largest number of each channel
    users: list[tuple[Convolution, np.ndarray]]  # and the signs of their channels, [out]


def quantized(graph: Any, calibration: Iterable[CalibrationBatch], *, outputs: bool, kernel_bits: int) -> Any:
    """An ONNX model whose convolutions compute in int8, but for those that read the images themselves, which have no bounds, and
    those of a judge.

    Args:
        graph: the model in fp32, batch norms folded.
        calibration: images, float32 [B, C, H, W], or pairs of images and `sigma` where the model takes both; the range of each
            activation is what they usually reach.
        outputs: also the convolutions' outputs, as ONNX Runtime needs; else fp32.
        kernel_bits: 8, or 7, which no processor's sums saturate at.
    """
    onnx, tool = needed("onnx"), needed("onnxruntime.quantization", "onnxruntime")

    names = [value.name for value in graph.graph.input]
    fed = [dict(zip(names, x if isinstance(x, tuple) else (x,), strict=True)) for x in calibration]
    convolutions = _convolutions(graph.graph)
    kernels = _shared_kernels(convolutions)
    moments, means = _moments(graph, fed, kernels)

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.inputs = iter(fed)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        target = Path(folder) / "int8.onnx"
        tool.quantize_static(  # which empties the graph
            graph,
            target,
            Reader(),
            quant_format=tool.QuantFormat.QDQ,
            nodes_to_quantize=[one.name for one in convolutions],
            per_channel=True,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
            reduce_range=kernel_bits == 7,
            extra_options={"CalibMovingAverage": True},  # the usual range of a batch, not the widest: 0.1 to 0.9 dB more
        )
        model = onnx.load(target)
    _let_others_read_fp32(model.graph, outputs)
    _set_kernels(model.graph, kernels, moments, means, LARGEST[kernel_bits])
    return model


def _convolutions(graph: Any) -> list[Convolution]:
    """Those of the network that read what other convolutions gave; a judge's stay as they are."""
    onnx = needed("onnx")
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    asked = reached(graph, (value.name for value in graph.output if value.name != LEVELS))
    deep: set[str] = set()  # tensors with a convolution before them
    found = []
    for node in graph.node:
        if node.op_type == "Conv" and node.input[0] in deep and node.output[0] in asked:
            kernel, *bias = (onnx.numpy_helper.to_array(tensors[name]).astype(np.float64) for name in node.input[1:])
            has = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            found.append(
                Convolution(
                    name=node.name,
                    reads=node.input[0],
                    kernel=kernel,
                    bias=bias[0] if bias else None,
                    groups=has.get("group", 1),
                    pads=has.get("pads", (0, 0, 0, 0)),
                    strides=has.get("strides", (1, 1)),
                    dilations=has.get("dilations", (1, 1)),
                )
            )
        if node.op_type == "Conv" or deep.intersection(node.input):
            deep.update(node.output)
    return found


def _shared_kernels(convolutions: Iterable[Convolution]) -> list[Kernel]:
    kernels: list[Kernel] = []
    for one in convolutions:
        unit = one.kernel / one.largest[:, None, None, None]
        for kernel in kernels:
            turn = _turn(unit, kernel.unit) if kernel.users[0][0].groups == one.groups else None
            if turn is not None:
                kernel.users.append((one, turn))
                break
        else:
            kernels.append(Kernel(unit, [(one, np.ones(len(unit)))]))
    return kernels


def _turn(kernel: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """The sign of each channel, [out], by which one kernel, [out, in, kh, kw], is the other; None where it is not."""
    if kernel.shape != other.shape:
        return None
    turn = np.where((kernel * other).sum((1, 2, 3)) < 0, -1, 1)
    return turn if np.allclose(kernel, other * turn[:, None, None, None], atol=1e-4) else None


def _moments(
    graph: Any, fed: Sequence[Mapping[str, np.ndarray]], kernels: Sequence[Kernel]
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Of what the numbers of each kernel are multiplied with, about the mean where a bias takes that, [groups, n, n]; the means.

    As the model in fp32 has it, at places drawn at random. Means are by the name of the convolution, [groups, n]. In the moments
    convolutions count by the size of their kernels.
    """
    onnx, runtime = needed("onnx"), needed("onnxruntime")
    reads = list(dict.fromkeys(one.reads for kernel in kernels for one, _ in kernel.users))
    told = onnx.ModelProto.FromString(graph.SerializeToString())
    told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in reads)
    session = runtime.InferenceSession(told.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    moments: list[Any] = [0.0] * len(kernels)
    means: dict[str, Any] = {}
    for batch in fed:
        read = dict(zip(reads, session.run(reads, batch), strict=True))
        for i, kernel in enumerate(kernels):
            for one, _ in kernel.users:
                x = windows_read(read[one.reads], one, -(-PLACES // len(kernel.users)), rng).astype(np.float64)
                moments[i] = moments[i] + (one.largest**2).mean() / len(fed) * (x @ x.transpose(0, 2, 1)) / x.shape[2]
                means[one.name] = means.get(one.name, 0.0) + x.mean(2) / len(fed)
    for moment, kernel in zip(moments, kernels, strict=True):
        moment += 1e-10 * np.trace(moment, axis1=1, axis2=2).mean() * np.eye(moment.shape[1])  # more than subtraction loses below
        for one in (one for one, _ in kernel.users if one.bias is not None):
            moment -= (one.largest**2).mean() * means[one.name][:, :, None] * means[one.name][:, None, :]
    return moments, means


def windows_read(x: np.ndarray, one: Convolution, places: int, rng: np.random.Generator) -> np.ndarray:
    """What the kernel is multiplied with, at some places: [groups, in of a group x kh x kw, places]."""
    (top, left, bottom, right), sides = one.pads, one.kernel.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    image = rng.integers(len(x), size=places)
    corner = []
    for n, k, stride, dilation in zip(padded.shape[2:], sides, one.strides, one.dilations, strict=True):
        corner.append(stride * rng.integers((n - dilation * (k - 1) - 1) // stride + 1, size=places))
    offsets = [(i * one.dilations[0], j * one.dilations[1]) for i, j in np.ndindex(*sides)]
    windows = np.stack([padded[image, :, corner[0] + i, corner[1] + j] for i, j in offsets], -1)  # [places, in, kh x kw]
    return windows.reshape(places, one.groups, -1).transpose(1, 2, 0)


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


def _set_kernels(
    graph: Any, kernels: Iterable[Kernel], moments: Iterable[np.ndarray], means: Mapping[str, np.ndarray], most: int
) -> None:
    """Gives the int8 convolutions their kernels, signs of channels to the scales, what rounding changes on average to the biases.

    Args:
        most: the largest number in a kernel.
    """
    arrays = needed("onnx").numpy_helper
    known = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    nodes = {node.name: node for node in graph.node}

    def put(dequantize: Any, place: int, values: np.ndarray, name: str) -> None:
        graph.initializer.append(arrays.from_array(values, name))
        dequantize.input[place] = name

    for kernel, moment in zip(kernels, moments, strict=True):
        whole, scales = _rounded(kernel.unit, moment, most)
        name = f"{kernel.users[0][0].name}_kernel"
        graph.initializer.append(arrays.from_array(whole, name))
        for one, turn in kernel.users:
            images, weight, *bias = (producer[name] for name in nodes[one.name].input)  # dequantized: values, scales, zero points
            largest = one.largest * scales
            read_scale = arrays.to_array(known[images.input[1]])
            if read_scale == 1 and one.bias is not None:  # all that it read was 0: the scale is free, and the bias has to show
                read_scale = np.full_like(read_scale, np.abs(one.bias).max() / (largest.max() * 2.0**15) or 1.0)
                known[images.input[1]].CopyFrom(arrays.from_array(read_scale, images.input[1]))
            least = 0.0 if one.bias is None else np.abs(one.bias) / (read_scale * 2.0**30)  # a dead channel's has to fit 32 bits
            scale = (turn * np.maximum(largest, least)).astype(np.float32)
            weight.input[0] = name
            put(weight, 1, scale, f"{one.name}_kernel_scale")
            if one.bias is not None:
                change = whole * scale[:, None, None, None] - one.kernel
                mean = np.einsum("goi,gi->go", change.reshape(one.groups, -1, means[one.name].shape[1]), means[one.name]).ravel()
                step = read_scale * scale
                put(bias[0], 0, np.rint((one.bias - mean) / step).astype(np.int32), f"{one.name}_bias")
                put(bias[0], 1, step, f"{one.name}_bias_scale")
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _rounded(unit: np.ndarray, moments: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """A kernel, [out, in, kh, kw] up to 1, in whole numbers up to `most`, and the scale of each channel, [out].

    One number after another is rounded, and those not rounded yet take back what they can of the change (GPTQ, Eqs. 2 and 3), in
    the order of the moments. Of several scales a channel has that by which the output changes least.

    Args:
        moments: of what the numbers are multiplied with, [groups, n, n].
    """
    rounded, scales = [], []
    for rows, moment in zip(unit.reshape(len(moments), -1, moments.shape[1]), moments, strict=True):
        order = np.argsort(-np.diag(moment))
        back = np.argsort(order)
        damped = moment[np.ix_(order, order)] + (DAMPING * np.diag(moment).mean() + 1e-30) * np.eye(len(moment))
        upper = np.linalg.cholesky(np.linalg.inv(damped)).T
        tries, errors = [], []
        for clip in CLIPS:
            rest, whole = rows[:, order].copy(), np.zeros_like(rows)
            for i in range(rows.shape[1]):
                whole[:, i] = np.rint(rest[:, i] * (most / clip)).clip(-most, most)
                rest[:, i:] -= np.outer((rest[:, i] - whole[:, i] * (clip / most)) / upper[i, i], upper[i, i:])
            change = whole * (clip / most) - rows[:, order]
            tries.append(whole[:, back])
            errors.append(np.einsum("oi,ij,oj->o", change, damped, change))
        best = np.argmin(errors, 0)
        rounded.append(np.stack(tries)[best, np.arange(len(rows))])
        scales.append(np.array(CLIPS)[best] / most)
    return np.concatenate(rounded).reshape(unit.shape).astype(np.int8), np.concatenate(scales)


def calibration_images(model: RecurrentNet, folder: str | Path) -> Iterator[CalibrationBatch]:
    """What `model` will see, from a folder of clean images: batches float32 [B, C, H, W], for `export`.

    Raises:
        InputError: no such folder, no images in it, or none that these weights can take.
    """
    return find_task(model.about.task).calibration(model, folder)
