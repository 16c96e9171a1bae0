"""LiteRT files of networks: the one place where the converter is set up, and what is in a file.

The network and its front end are converted apart and joined in the file. Whatever type the
network's weights are stored in, the front end stays float32.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune import surgery
from l3prune.audio import AMPLITUDE_FLOOR, DYNAMIC_RANGE_DB, FrontEnd, log_spectrogram
from l3prune.channels import named_layers
from l3prune.checks import check_whole
from l3prune.errors import L3PruneError, ParameterError
from l3prune.layers import LogMelSpectrogram, MaskedConv2D
from l3prune.networks import l3
from l3prune.quiet import hushed

#: What a file's weights may be.
VALUES = ("float32", "float16", "dynamic", "int8")

#: Of a tensor in the file. Vector instructions of some processors need it.
_ALIGNMENT = 16


def convert(
    network: keras.Model,
    values: str = "float32",
    *,
    windows: Iterable[np.ndarray] | None = None,
    waveform: bool = False,
    batch: int = 1,
) -> bytes:
    """The LiteRT file of a network: builtin operators only, input and output always float32.

    Masks are applied and gone. Weights that they pruned are exactly zero in files of all types:
    kernels are quantised symmetrically, each filter with a scale of its own.

    Parameters
    ----------
    network : keras.Model
        With one input. It is not changed.
    values : {"float32", "float16", "dynamic", "int8"}
        How weights are stored. "float16": computed in float32. "dynamic": int8, with ranges of
        activations taken when it runs; kernels below 1024 weights stay float32. "int8": weights
        and activations, the ranges as `windows` give them; the file quantises its float32 input
        itself and gives float32.
    windows : iterable of np.ndarray, or None
        For "int8": inputs from real audio, a hundred or so. Each is an input of the network
        without its batch axis; or, of a network with a front end, a spectrogram.
    waveform : bool
        The file takes (batch, 1, samples) in [-1, 1], and the front end is in it, as float32
        whatever `values` are. Otherwise it takes what is behind the front end,
        (batch, bands, frames, 1) in dB, or what a network without front end takes.
    batch : int
        Inputs at once, fixed in the file; 1 with `waveform`.

    Returns
    -------
    content : bytes

    Raises
    ------
    ParameterError
        Unknown values; no windows for int8, or windows that the network does not take; a waveform
        for a network that has no front end and is none of the L3 family.
    L3PruneError
        LiteRT has no builtin operator for one of the layers.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64")
    >>> len(convert(network, "dynamic")) < 0.3 * len(convert(network))
    True
    """
    if values not in VALUES:
        raise ParameterError(f"values={values!r} is unknown; allowed: {', '.join(VALUES)}")
    check_whole("batch", batch, 1)
    if waveform and batch > 1:
        raise ParameterError(f"batch={batch}: files with a front end take one waveform at once")
    if (windows is None) == (values == "int8"):
        raise ParameterError(
            "values='int8' needs windows of real audio, for the ranges of activations"
            if windows is None
            else f"values={values!r} takes no windows; leave them out"
        )
    front_end = front_end_of(network) if waveform else None
    plain = surgery.behind_front_end(network)
    if any(isinstance(layer, MaskedConv2D) for _, layer in named_layers(plain)):
        plain = surgery.strip_masks(plain)
    if len(plain.inputs) != 1:
        raise ParameterError(f"network {plain.name} has {len(plain.inputs)} inputs, not one")
    shape = (batch, *plain.input_shape[1:])
    if None in shape:
        raise ParameterError(
            f"network {plain.name} takes inputs of shape {shape[1:]}; sizes must be known"
        )
    groups = None
    if windows is not None:
        groups = _grouped(_as_inputs(network, plain, windows), batch)
    content = convert_function(
        lambda inputs: plain(inputs, training=False), shape, values, groups=groups, owner=plain
    )
    return content if front_end is None else behind_waveform(content, front_end)


def convert_function(
    function: Callable[[Any], Any],
    shape: Sequence[int],
    values: str = "float32",
    *,
    groups: Iterable[np.ndarray] | None = None,
    owner: Any = None,
) -> bytes:
    """The LiteRT file of a TensorFlow function of one input.

    Parameters
    ----------
    function : callable, tf.Tensor -> tf.Tensor
    shape : sequence of int
        Of its input, which is float32.
    values : {"float32", "float16", "dynamic", "int8"}
        See `convert`. What the function rounds itself (`tf.quantization`) is int8 with "dynamic".
    groups : iterable of np.ndarray, or None
        For "int8": inputs.
    owner : object or None
        What has the function's variables.

    Raises
    ------
    L3PruneError
        LiteRT has no builtin operator for what it computes.

    Examples
    --------
    >>> run(convert_function(lambda x: 2 * x, (1, 3)), np.float32([[1, 2, 3]]))
    array([[2., 4., 6.]], dtype=float32)
    """
    signature = [tf.TensorSpec(tuple(shape), tf.float32, name="input")]
    concrete = tf.function(function, input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], owner or tf.Module())
    if values != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if values == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif groups is not None:
        converter.representative_dataset = lambda: ([group] for group in groups)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with hushed(), warnings.catch_warnings():  # it tells what it ignores
            warnings.simplefilter("ignore", UserWarning)
            return converter.convert()
    except Exception as error:  # of several kinds, all about the graph
        lines = [line for line in str(error).splitlines() if "error:" in line.lower()]
        reason = " ".join((lines or [str(error)])[0].split())[:300]
        raise L3PruneError(
            f"LiteRT has no builtin operator for this network: {reason}; export it as a SavedModel"
        ) from error


def behind_waveform(content: bytes, front_end: FrontEnd) -> bytes:
    """A file that takes log-mels, with its front end in front: it takes (1, 1, samples).

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[1] * 8)
    >>> content = behind_waveform(convert(network), front_end_of(network))
    >>> run(content, np.zeros((1, 1, 8000), np.float32)).shape
    (1, 1)
    """
    first = convert_function(
        lambda waveform: _spectrogram(waveform, front_end), (1, 1, front_end.sample_rate)
    )
    return _joined(first, content)


def front_end_of(network: keras.Model) -> FrontEnd:
    """The front end in a network, or that an L3 network without it was built for.

    Raises
    ------
    ParameterError
        There is none, as of networks of images.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> front_end_of(create_network("sea64", input="log_mel")).sample_rate
    8000
    """
    for layer in network.layers:
        if isinstance(layer, LogMelSpectrogram):
            return layer.front_end
    return l3.front_end(network)


def operators(content: bytes) -> list[tuple[str, str]]:
    """The operators of a file in their order: each its name, and the name of what it computes.

    Custom operators have the name "CUSTOM:" and their own; Flex operators are among these.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> content = convert(create_network("sea64", filters=[1] * 8))
    >>> [kind for kind, _ in operators(content)][-2:]
    ['MAX_POOL_2D', 'RESHAPE']
    """
    schema = _schema()
    names = {
        code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
    }
    model = _parsed(content)
    result = []
    for graph in model.subgraphs:
        for each in graph.operators:
            code = model.operatorCodes[each.opcodeIndex]
            # Files from before there were more than 127 have the number in the older field.
            kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            if kind == "CUSTOM":
                kind = f"CUSTOM:{_text(code.customCode)}"
            output = graph.tensors[each.outputs[0]]
            result.append((kind, _text(output.name)))
    return result


def float16_values(content: bytes) -> tuple[int, int]:
    """How many tensors of a file hold float16 values, and how many values these are in all.

    That is how DCASE 2021 counted the weights of a file. A bias of zeros alone is not in it: the
    converter drops it.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> float16_values(convert(create_network("sea64", filters=[1] * 8)))
    (0, 0)
    """
    schema = _schema()
    model = _parsed(content)
    sizes = [
        int(np.prod(tensor.shape))
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.type == schema.TensorType.FLOAT16
        and model.buffers[tensor.buffer].data is not None
    ]
    return len(sizes), sum(sizes)


@dataclasses.dataclass(frozen=True)
class StoredKernel:
    """The kernel of a convolution, depthwise convolution or dense layer as a file has it.

    Attributes
    ----------
    name : str
        Of the tensor.
    stored : np.ndarray
        As the file has it: (filters, rows, columns, channels), of a dense layer (units, inputs).
    scale, zero_point : np.ndarray
        One for each filter, or one in all; empty unless it is quantised.

    Examples
    --------
    >>> kernel = StoredKernel("k", np.array([[2, 0]], np.int8), np.array([0.5]), np.array([0]))
    >>> kernel.values()
    array([[1., 0.]])
    """

    name: str
    stored: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray

    def values(self) -> np.ndarray:
        """Weights as they are computed with."""
        if not self.scale.size:
            return self.stored
        shape = (-1,) + (1,) * (self.stored.ndim - 1)
        return (self.stored - self.zero_point.reshape(shape)) * self.scale.reshape(shape)


def kernels(content: bytes) -> list[StoredKernel]:
    """The kernels of a file's convolutions and dense layers, in the order of computation.

    Raises
    ------
    L3PruneError
        Not a LiteRT file.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> [kernel.stored.shape for kernel in kernels(convert(create_network("sea64")))][:2]
    [(32, 3, 3, 1), (32, 3, 3, 32)]
    """
    schema = _schema()
    codes = schema.BuiltinOperator
    with_kernel = (codes.CONV_2D, codes.FULLY_CONNECTED, codes.DEPTHWISE_CONV_2D)
    dtypes = {
        getattr(schema.TensorType, name): dtype
        for name, dtype in (("FLOAT32", "<f4"), ("FLOAT16", "<f2"), ("INT8", "i1"))
    }
    model = _parsed(content)
    graph = model.subgraphs[0]

    def code(operator: Any) -> int:
        kind = model.operatorCodes[operator.opcodeIndex]
        return max(kind.builtinCode, kind.deprecatedBuiltinCode)

    # Kernels of float16 are made float32 first.
    sources = {
        each.outputs[0]: each.inputs[0]
        for each in graph.operators
        if code(each) == codes.DEQUANTIZE
    }
    result = []
    for each in graph.operators:
        if code(each) not in with_kernel:
            continue
        tensor = graph.tensors[sources.get(each.inputs[1], each.inputs[1])]
        data = model.buffers[tensor.buffer].data
        if data is None:
            continue
        if tensor.type not in dtypes:
            raise L3PruneError(f"kernel {_text(tensor.name)} is of a type that is not known here")
        numbers = tensor.quantization
        scale, zero = (
            np.asarray([] if numbers is None or value is None else value)
            for value in (getattr(numbers, "scale", None), getattr(numbers, "zeroPoint", None))
        )
        stored = np.asarray(data, np.uint8).view(dtypes[tensor.type]).reshape(tensor.shape)
        result.append(StoredKernel(_text(tensor.name), stored, scale, zero))
    return result


def interpreter(content: bytes, threads: int = 1) -> Any:
    """A LiteRT interpreter of a file, ready to take inputs.

    Raises
    ------
    L3PruneError
        ai-edge-litert is not installed; the message says how to install it.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> engine = interpreter(convert(create_network("sea64", filters=[1] * 8)))
    >>> engine.get_input_details()[0]["shape"].tolist()
    [1, 64, 50, 1]
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise L3PruneError(
            "ai-edge-litert is not installed, which runs LiteRT files; install it: "
            "pip install 'l3prune[export]'"
        ) from None
    with hushed():  # it tells which delegate it takes
        engine = Interpreter(model_content=content, num_threads=threads)
        engine.allocate_tensors()
    return engine


def run(content: bytes, inputs: np.ndarray) -> np.ndarray:
    """The outputs of a file for inputs, computed by LiteRT one after the other.

    Raises
    ------
    L3PruneError
        See `interpreter`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> content = convert(create_network("sea64", filters=[1] * 8), waveform=True)
    >>> run(content, np.zeros((3, 1, 8000))).shape
    (3, 1)
    """
    engine = interpreter(content)
    (given,), (made,) = engine.get_input_details(), engine.get_output_details()
    outputs = []
    for each in inputs:
        engine.set_tensor(given["index"], each[np.newaxis].astype(given["dtype"]))
        engine.invoke()
        outputs.append(engine.get_tensor(made["index"])[0])
    return np.stack(outputs)


def _as_inputs(
    network: keras.Model, plain: keras.Model, windows: Iterable[np.ndarray]
) -> np.ndarray:
    """Windows as the part behind the front end takes them."""
    given = np.asarray(list(windows), np.float32)
    wanted, whole = plain.input_shape[1:], network.input_shape[1:]
    if not len(given):
        raise ParameterError("windows is empty; give windows of real audio")
    if given.shape[1:] == wanted:
        return given
    if given.shape[1:] != whole:
        shapes = " or ".join(str(shape) for shape in dict.fromkeys((whole, wanted)))
        raise ParameterError(f"windows of shape {given.shape[1:]} given; wanted are {shapes}")
    return log_spectrogram(given[:, 0], front_end_of(network))


def _grouped(inputs: np.ndarray, batch: int) -> np.ndarray:
    if len(inputs) < batch:
        raise ParameterError(f"{len(inputs)} windows for batches of {batch}; give more")
    return inputs[: len(inputs) // batch * batch].reshape(-1, batch, *inputs.shape[1:])


def _spectrogram(waveform: Any, front_end: FrontEnd) -> Any:
    """`LogMelSpectrogram` of one waveform, in operators that LiteRT has.

    LiteRT has no float64, but its FFT computes in float64 from and to float32. What it would lose
    is the rounding of the frames, which it would spread over all bins: so the frames are given as
    the sum of two float32 numbers, and their spectra are added.
    """
    hann = front_end.analysis_window()
    high = _halves(hann.astype(np.float32))[0]
    rest = (hann - high).astype(np.float32)
    bands, frames = front_end.shape
    hop, before = front_end.hop_length, front_end.edge_padding[0]
    # Frames as slices of whole hops, side by side: the same samples as by an index, without it.
    slices = -(-front_end.n_dft // hop)
    length = (frames - 1 + slices) * hop
    after = max(length - before - front_end.sample_rate, 0)
    padded = tf.pad(waveform[:, 0, :], ((0, 0), (before, after)))[:, :length]
    hops = tf.reshape(padded, (frames - 1 + slices, hop))
    parts = [hops[start : start + frames] for start in range(slices)]
    upper, lower = _halves(tf.concat(parts, 1)[:, : front_end.n_dft])
    # The first product is exact, and the second small.
    bins = [
        tf.signal.rfft(part)
        for part in (upper * high, upper * rest + lower * hann.astype(np.float32))
    ]
    real = tf.math.real(bins[0]) + tf.math.real(bins[1])
    imaginary = tf.math.imag(bins[0]) + tf.math.imag(bins[1])
    amplitude = real * real + imaginary * imaginary
    if front_end.n_mels is None:
        amplitude = tf.sqrt(amplitude)
    elif front_end.mel_of_power:
        amplitude = tf.sqrt(tf.matmul(amplitude, front_end.mel_matrix().astype(np.float32)))
    else:
        amplitude = tf.matmul(tf.sqrt(amplitude), front_end.mel_matrix().astype(np.float32))
    level = tf.math.log(tf.maximum(amplitude, AMPLITUDE_FLOOR)) * np.float32(10 / np.log(10))
    level = tf.maximum(level - tf.reduce_max(level), -DYNAMIC_RANGE_DB)
    return tf.reshape(tf.transpose(level), (1, bands, frames, 1))


def _halves(values: Any) -> tuple[Any, Any]:
    """float32 numbers as sums of two with 12 bits each, whose products are exact (Dekker 1971)."""
    scaled = values * np.float32(2**12 + 1)
    upper = scaled - (scaled - values)
    return upper, values - upper


def _schema() -> Any:
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


def _parsed(content: bytes) -> Any:
    if content[4:8] != b"TFL3":
        raise L3PruneError("the content is no LiteRT file")
    return _schema().ModelT.InitFromPackedBuf(content, 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _joined(first: bytes, second: bytes) -> bytes:
    """One file that gives the output of the first to the second."""
    import flatbuffers

    whole, behind = _parsed(first), _parsed(second)
    front, back = whole.subgraphs[0], behind.subgraphs[0]
    (given,) = back.inputs
    (made,) = front.outputs
    shift = len(front.tensors)

    def moved(tensors: Iterable[int] | None) -> Iterator[int]:
        for tensor in () if tensors is None else tensors:
            yield made if tensor == given else tensor + shift if tensor >= 0 else tensor

    for each in back.tensors:
        # Buffer 0 is what tensors have that are computed.
        each.buffer += len(whole.buffers) - 1 if each.buffer else 0
    for each in back.operators:
        each.opcodeIndex += len(whole.operatorCodes)
        each.inputs, each.outputs = list(moved(each.inputs)), list(moved(each.outputs))
        each.intermediates = list(moved(each.intermediates))
    whole.buffers += behind.buffers[1:]
    whole.operatorCodes += behind.operatorCodes
    front.tensors += back.tensors
    front.operators += back.operators
    front.outputs = list(moved(back.outputs))
    # Names of inputs and outputs; the converter gives none to functions.
    whole.signatureDefs = None
    # What else the converter noted is of one part alone.
    whole.metadata = None
    for number, buffer in enumerate(whole.buffers):
        aligned = _aligned_buffer()
        aligned.data = buffer.data
        whole.buffers[number] = aligned
    builder = flatbuffers.Builder(len(first) + len(second))
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _aligned_buffer() -> Any:
    """A buffer that is written as the format wants it; TensorFlow's own is not aligned."""
    schema = _schema()
    buffer = schema.BufferT()

    def pack(builder: Any) -> int:
        vector = None
        if buffer.data is not None:
            data = np.asarray(buffer.data, np.uint8)
            builder.StartVector(1, len(data), _ALIGNMENT)
            builder.head -= len(data)
            builder.Bytes[builder.head : builder.head + len(data)] = data.tobytes()
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)

    buffer.Pack = pack
    return buffer
