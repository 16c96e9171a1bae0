"""A program of the sparse engine, or a Keras network, as the files that other engines read.

Each takes and gives what the network does: (n, rows, columns, channels) float32, channels last.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import ParameterError
from l3prune.files import atomic_write
from l3prune.sparse.plan import plan
from l3prune.sparse.program import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    GlobalPooling,
    Pooling,
    Program,
)

#: Of ONNX: old enough for every engine that is in use.
_OPSET, _IR_VERSION = 17, 9

#: Name of the ONNX input's first size, which an engine sets to the number of inputs at once.
BATCH = "n"


def write_onnx(program: Program, path: Path) -> None:
    """Write an ONNX model: one transposition at the input, channels first behind it."""
    import onnx
    from onnx import helper, numpy_helper

    nodes, arrays = [], []
    maps = True  # whether the tensor has rows and columns
    tensor = "input"

    def add(kind: str, name: str, inputs: Sequence[str] = (), **attributes: Any) -> None:
        nonlocal tensor
        output = f"{name}_{kind}"
        nodes.append(helper.make_node(kind, [tensor, *inputs], [output], **attributes))
        tensor = output

    def constant(name: str, array: np.ndarray) -> str:
        arrays.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    add("Transpose", "first", perm=[0, 3, 1, 2])
    for step, size in zip(program.steps, sizes(program), strict=True):
        name = step.name
        if isinstance(step, Convolution):
            kernel = constant(f"{name}_kernel", step.kernel.transpose(3, 2, 0, 1))
            window = step.kernel.shape[:2]
            add(
                "Conv",
                name,
                [kernel, constant(f"{name}_bias", step.bias)],
                kernel_shape=window,
                strides=step.strides,
                pads=_pads(size, window, step.strides, step.padding),
            )
        elif isinstance(step, Affine):
            shape = (-1, 1, 1) if maps else (-1,)
            add("Mul", name, [constant(f"{name}_scale", step.scale.reshape(shape))])
            add("Add", name, [constant(f"{name}_offset", step.offset.reshape(shape))])
        elif isinstance(step, Pooling):
            add(
                "MaxPool" if step.kind == "max" else "AveragePool",
                name,
                kernel_shape=step.size,
                strides=step.strides,
                pads=_pads(size, step.size, step.strides, step.padding),
            )
        elif isinstance(step, GlobalPooling):
            add("GlobalMaxPool" if step.kind == "max" else "GlobalAveragePool", name)
            add("Flatten", name)
        elif isinstance(step, Flatten):
            if size[0] * size[1] > 1:
                add("Transpose", name, perm=[0, 2, 3, 1])
            add("Flatten", name)
        else:
            matrix = constant(f"{name}_kernel", step.kernel)
            add("Gemm", name, [matrix, constant(f"{name}_bias", step.bias)])
        maps = maps and not isinstance(step, GlobalPooling | Flatten | Dense)
        if isinstance(step, Convolution | Affine | Dense) and step.relu:
            add("Relu", name)
    if maps:
        add("Transpose", "last", perm=[0, 2, 3, 1])
    nodes[-1].output[0] = "output"
    float32 = onnx.TensorProto.FLOAT
    last = [BATCH, *("rows", "columns", "channels")] if maps else [BATCH, "values"]
    graph = helper.make_graph(
        nodes,
        program.name,
        [helper.make_tensor_value_info("input", float32, [BATCH, *program.shape])],
        [helper.make_tensor_value_info("output", float32, last)],
        arrays,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as temporary:
        onnx.save(model, temporary)


def quantise_onnx(path: Path, windows: np.ndarray, output: Path) -> None:
    """Quantise an ONNX model to int8, with ranges of activations as `windows` gives them.

    Activations are uint8 with one scale a tensor, kernels int8 with one a filter, written as pairs
    of QuantizeLinear and DequantizeLinear.
    """
    import onnxruntime.quantization as quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.each = iter(windows)

        def get_next(self) -> dict[str, np.ndarray] | None:
            window = next(self.each, None)
            return None if window is None else {"input": window[None]}

    # It advises a step that removes nothing from these graphs.
    logging.getLogger().setLevel(logging.ERROR)
    with atomic_write(output) as temporary:
        quantization.quantize_static(
            path,
            temporary,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def write_ncnn(program: Program, path: Path) -> None:
    """Write an ncnn model: `path`, which ends in .param, and the .bin beside it.

    It takes one input, as (channels, rows, columns), in blob "input" and gives blob "output".
    ParameterError if ncnn has no such layer.
    """
    lines: list[str] = []
    data: list[bytes] = []
    blob = "input"
    rows, columns, channels = program.shape
    lines.append(f"Input input 0 1 input 0={columns} 1={rows} 2={channels}")

    def add(kind: str, name: str, options: dict[int, int], *arrays: np.ndarray) -> None:
        nonlocal blob
        output = f"{name}_{kind}"
        words = " ".join(f"{key}={value}" for key, value in options.items())
        lines.append(f"{kind} {output} 1 1 {blob} {output} {words}".rstrip())
        data.extend(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)
        blob = output

    # Kernels have a word before them that tells their type: 0 is float32.
    plain = np.zeros(1, np.float32)
    maps = True
    for step, size in zip(program.steps, sizes(program), strict=True):
        name = step.name.replace(" ", "_")
        if isinstance(step, Convolution):
            height, width, _, filters = step.kernel.shape
            pads = _pads(size, (height, width), step.strides, step.padding)
            options: dict[int, int] = {0: filters, 1: width, 11: height, 6: step.kernel.size}
            options |= {3: step.strides[1], 13: step.strides[0], 5: 1, 9: int(step.relu)}
            options |= dict(zip((14, 4, 16, 15), pads, strict=True))
            add("Convolution", name, options, plain, step.kernel.transpose(3, 2, 0, 1), step.bias)
        elif isinstance(step, Affine):
            add("Scale", name, {0: len(step.scale), 1: 1}, step.scale, step.offset)
            if step.relu:
                add("ReLU", name, {})
        elif isinstance(step, Pooling):
            kind = int(step.kind == "average")
            if kind and step.padding == "same":
                raise ParameterError(f"layer {name}: ncnn counts padding in its averages")
            options = {0: kind, 1: step.size[1], 11: step.size[0]}
            options |= {2: step.strides[1], 12: step.strides[0]}
            options[5] = 1 if step.padding == "valid" else 2  # 2 is TensorFlow's "same"
            add("Pooling", name, options)
        elif isinstance(step, GlobalPooling):
            add("Pooling", name, {0: int(step.kind == "average"), 4: 1})
        elif isinstance(step, Flatten):
            if size[0] * size[1] > 1:
                add("Permute", name, {0: 3})  # channels last
            add("Flatten", name, {})
        else:
            options = {0: len(step.bias), 1: 1, 2: step.kernel.size, 9: int(step.relu)}
            add("InnerProduct", name, options, plain, step.kernel.T, step.bias)
        maps = maps and not isinstance(step, GlobalPooling | Flatten | Dense)
    if maps:
        add("Permute", "last", {0: 3})
    words = lines[-1].split(" ")
    words[5] = "output"
    lines[-1] = " ".join(words)
    text = "\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""])
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_write(path.with_suffix(".bin")) as temporary:
        temporary.write_bytes(b"".join(data))


def write_litert(network: Any, path: Path, batch: int, windows: np.ndarray | None = None) -> None:
    """Write a LiteRT model for so many inputs at once.

    With `windows` it is quantised to int8 after training, activations and weights, with ranges as
    these give them; its input and output remain float32.
    """
    import tensorflow as tf

    shape = (batch, *network.input_shape[1:])
    function = tf.function(
        lambda inputs: network(inputs, training=False),
        input_signature=[tf.TensorSpec(shape, tf.float32)],
    ).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network)
    if windows is not None:
        groups = windows[: len(windows) // batch * batch].reshape(-1, *shape)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([group] for group in groups)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with atomic_write(path) as temporary:
        temporary.write_bytes(converter.convert())


def macs(program: Program) -> tuple[int, int]:
    """Multiply-accumulates for one input: of all weights, and of those that are not zero."""
    operations = plan(program, 4)  # the same in any layout
    return (
        sum(operation.dense_macs for operation in operations),
        sum(operation.macs for operation in operations),
    )


def sizes(program: Program) -> list[tuple[int, int]]:
    """Rows and columns that each step takes; (1, 1) of vectors."""
    rows, columns = program.shape[:2]
    result = []
    for step in program.steps:
        result.append((rows, columns))
        if isinstance(step, Convolution | Pooling):
            window = step.kernel.shape[:2] if isinstance(step, Convolution) else step.size
            pads = _pads((rows, columns), window, step.strides, step.padding)
            rows = (rows + pads[0] + pads[2] - window[0]) // step.strides[0] + 1
            columns = (columns + pads[1] + pads[3] - window[1]) // step.strides[1] + 1
        elif isinstance(step, GlobalPooling | Flatten | Dense):
            rows = columns = 1
    return result


def _pads(
    size: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: str
) -> list[int]:
    """Rows above, columns before, rows below, columns behind, as TensorFlow pads."""
    if padding == "valid":
        return [0, 0, 0, 0]
    total = [
        max((-(-length // stride) - 1) * stride + extent - length, 0)
        for length, extent, stride in zip(size, window, strides, strict=True)
    ]
    before = [each // 2 for each in total]
    return before + [each - half for each, half in zip(total, before, strict=True)]
