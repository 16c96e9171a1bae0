"""ONNX files of a program of the sparse engine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from l3prune.audio import AMPLITUDE_FLOOR, DYNAMIC_RANGE_DB, FrontEnd
from l3prune.errors import L3PruneError
from l3prune.files import atomic_write
from l3prune.sparse.plan import output_shape
from l3prune.sparse.program import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    GlobalPooling,
    Pooling,
    Program,
    Step,
)
from l3prune.sparse.shapes import padded

#: Of ONNX: old enough for every engine that is in use, and the first that has DFT.
_OPSET, _IR_VERSION = 17, 9

#: Name of the ONNX input's first size, which an engine sets to the number of inputs at once.
BATCH = "n"

INSTALL = "install it: pip install 'l3prune[export]'"


def write_onnx(program: Program, path: str | os.PathLike[str]) -> None:
    """Write an ONNX model of operators that every engine has, atomically.

    It has one input, "input", and one output, "output", of any number of windows: log-mels
    (n, rows, columns, channels), channels last; or with the program's front end waveforms
    (n, 1, samples) in [-1, 1], whose DFT is computed in float64. Inside, channels come first.

    Parameters
    ----------
    program : Program
    path : str or path-like

    Raises
    ------
    L3PruneError
        The package onnx is not installed, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from l3prune.networks import create_network
    >>> from l3prune.sparse import program_of
    >>> path = os.path.join(tempfile.mkdtemp(), "net.onnx")
    >>> write_onnx(program_of(create_network("sea64")), path)
    >>> run_onnx(path, np.zeros((2, 1, 8000))).shape
    (2, 64)
    """
    try:
        import onnx
    except ImportError:
        raise L3PruneError(f"onnx is not installed, which writes ONNX files; {INSTALL}") from None
    graph = _Graph()
    if program.front_end is None:
        shape: tuple[int, ...] = program.shape
        graph.add("Transpose", "first", perm=[0, 3, 1, 2])
    else:
        shape = (1, program.front_end.sample_rate)
        _add_front_end(graph, program.front_end)
    maps = True  # whether the tensor has rows and columns
    for step, given, pads in walk(program):
        maps = _add_step(graph, step, given, pads, maps)
    if maps:
        graph.add("Transpose", "last", perm=[0, 2, 3, 1])
    graph.nodes[-1].output[0] = "output"
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    last = [BATCH, *("rows", "columns", "channels")] if maps else [BATCH, "values"]
    made = helper.make_graph(
        graph.nodes,
        program.name,
        [helper.make_tensor_value_info("input", float32, [BATCH, *shape])],
        [helper.make_tensor_value_info("output", float32, last)],
        graph.arrays,
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as temporary:
        onnx.save(model, temporary)


def run_onnx(path: str | os.PathLike[str], inputs: np.ndarray) -> np.ndarray:
    """The outputs of an ONNX file for inputs, computed by ONNX Runtime on one thread.

    Raises
    ------
    L3PruneError
        onnxruntime is not installed.

    Examples
    --------
    See `write_onnx`.

    >>> run_onnx.__module__
    'l3prune.onnx_file'
    """
    try:
        import onnxruntime
    except ImportError:
        raise L3PruneError(
            f"onnxruntime is not installed, which runs ONNX files; {INSTALL}"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # A few at once: the maps of many windows take much memory.
    parts = np.array_split(inputs.astype(np.float32), -(-len(inputs) // 8))
    return np.concatenate([session.run(None, {"input": part})[0] for part in parts])


def walk(program: Program) -> Iterator[tuple[Step, tuple[int, ...], list[int]]]:
    """The steps, each with the shape that it takes and the zeros that are put around that.

    The zeros are [rows above, columns before, rows below, columns behind], as TensorFlow pads.

    Examples
    --------
    >>> program = Program("small", (5, 4, 1), (Pooling("pool", "max", (2, 2), (2, 2), "same"),))
    >>> [(shape, pads) for _, shape, pads in walk(program)]
    [((5, 4, 1), [0, 0, 1, 0])]
    """
    shape: tuple[int, ...] = program.shape
    for step in program.steps:
        pads = [0, 0, 0, 0]
        if isinstance(step, Convolution | Pooling):
            window = step.kernel.shape[:2] if isinstance(step, Convolution) else step.size
            for axis in (0, 1):
                stride = step.strides[axis]
                outputs, before = padded(shape[axis], window[axis], stride, step.padding)
                total = max((outputs - 1) * stride + window[axis] - shape[axis], 0)
                pads[axis], pads[axis + 2] = before, total - before
        yield step, shape, pads
        shape = output_shape(step, shape)


class _Graph:
    """Nodes, each of which takes what the one before it gives, and their constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []
        self.tensor = "input"

    def add(
        self,
        kind: str,
        name: str,
        *inputs: np.ndarray | np.floating,
        of: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Add a node. It takes the last tensor, or those that `of` names, and constants."""
        from onnx import helper, numpy_helper

        output = f"{name}_{kind}"
        names = []
        for number, array in enumerate(inputs):
            names.append(f"{output}_{number}")
            self.arrays.append(numpy_helper.from_array(np.ascontiguousarray(array), names[-1]))
        before = list(of) or [self.tensor]
        self.nodes.append(helper.make_node(kind, [*before, *names], [output], **attributes))
        self.tensor = output
        return output


def _add_step(
    graph: _Graph, step: Step, shape: Sequence[int], pads: Sequence[int], maps: bool
) -> bool:
    """Add a step's nodes; gives whether maps follow."""
    name = step.name
    if isinstance(step, Convolution):
        kernel = step.kernel.transpose(3, 2, 0, 1)
        window = step.kernel.shape[:2]
        options = {"kernel_shape": window, "strides": step.strides, "pads": pads}
        graph.add("Conv", name, kernel, step.bias, **options)
    elif isinstance(step, Affine):
        sizes = (-1, 1, 1) if maps else (-1,)
        graph.add("Mul", name, step.scale.reshape(sizes))
        graph.add("Add", name, step.offset.reshape(sizes))
    elif isinstance(step, Pooling):
        kind = "MaxPool" if step.kind == "max" else "AveragePool"
        graph.add(kind, name, kernel_shape=step.size, strides=step.strides, pads=pads)
    elif isinstance(step, GlobalPooling):
        graph.add("GlobalMaxPool" if step.kind == "max" else "GlobalAveragePool", name)
        graph.add("Flatten", name)
    elif isinstance(step, Flatten):
        if len(shape) == 3 and shape[0] * shape[1] > 1:
            graph.add("Transpose", name, perm=[0, 2, 3, 1])
        graph.add("Flatten", name)
    else:
        if maps:
            # A dense layer on the single place of a map.
            graph.add("Flatten", f"{name}_place")
        graph.add("Gemm", name, step.kernel, step.bias)
    maps = maps and not isinstance(step, GlobalPooling | Flatten | Dense)
    if isinstance(step, Convolution | Affine | Dense) and step.relu:
        graph.add("Relu", name)
    return maps


def _add_front_end(graph: _Graph, front_end: FrontEnd) -> None:
    """Add `LogMelSpectrogram`: from (n, 1, samples) to (n, 1, bands, frames)."""
    from onnx import TensorProto

    def whole(*numbers: int) -> np.ndarray:
        return np.array(numbers, np.int64)

    add = graph.add
    _, frames = front_end.shape
    hop, before = front_end.hop_length, front_end.edge_padding[0]
    # Frames as slices of whole hops, side by side.
    slices = -(-front_end.n_dft // hop)
    hops = frames - 1 + slices
    after = max(hops * hop - before - front_end.sample_rate, 0)
    add("Squeeze", "waveform", whole(1))
    add("Pad", "waveform", whole(0, before, 0, after))
    add("Slice", "waveform", whole(0), whole(hops * hop), whole(1))
    # float32 FFTs are wrong by up to 0.2 in the quietest bands of loud windows.
    add("Cast", "waveform", to=TensorProto.DOUBLE)
    source = add("Reshape", "waveform", whole(0, hops, hop))
    parts = [
        add("Slice", f"hop_{start}", whole(start), whole(start + frames), whole(1), of=[source])
        for start in range(slices)
    ]
    add("Concat", "frames", of=parts, axis=2)
    add("Slice", "frames", whole(0), whole(front_end.n_dft), whole(2))
    add("Mul", "frames", front_end.analysis_window())
    add("Unsqueeze", "frames", whole(3))
    add("DFT", "frames", axis=2, onesided=1)
    add("ReduceSumSquare", "power", axes=[3], keepdims=0)
    add("Cast", "power", to=TensorProto.FLOAT)
    if front_end.n_mels is None:
        add("Sqrt", "amplitude")
    elif front_end.mel_of_power:
        add("MatMul", "mel", front_end.mel_matrix().astype(np.float32))
        add("Sqrt", "amplitude")
    else:
        add("Sqrt", "amplitude")
        add("MatMul", "mel", front_end.mel_matrix().astype(np.float32))
    add("Max", "amplitude", np.float32(AMPLITUDE_FLOOR))
    add("Log", "level")
    level = add("Mul", "level", np.float32(10 / np.log(10)))
    loudest = add("ReduceMax", "level", axes=[1, 2], keepdims=1)
    add("Sub", "level", of=[level, loudest])
    add("Max", "level", np.float32(-DYNAMIC_RANGE_DB))
    add("Transpose", "log_mel", perm=[0, 2, 1])
    add("Unsqueeze", "log_mel", whole(1))
