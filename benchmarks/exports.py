"""Files for the engines of the comparison that l3prune itself does not export to."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from l3prune.errors import ParameterError
from l3prune.files import atomic_write
from l3prune.onnx_file import walk
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
    for step, size, pads in walk(program):
        name = step.name.replace(" ", "_")
        if isinstance(step, Convolution):
            height, width, _, filters = step.kernel.shape
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
            if len(size) == 3 and size[0] * size[1] > 1:
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


def macs(program: Program) -> tuple[int, int]:
    """Multiply-accumulates for one input: of all weights, and of those that are not zero."""
    operations = plan(program, 4)  # the same in any layout
    return (
        sum(operation.dense_macs for operation in operations),
        sum(operation.macs for operation in operations),
    )
