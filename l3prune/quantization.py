"""Networks in float16 and int8: rounded weights, ranges of activations, LiteRT files, kept zeros.

An int8 weight is a whole number in -127 … 127 times its filter's step, which is the filter's
largest magnitude / 127, before and after BatchNorm is folded into the filter: the LiteRT file, the
packed file and the Keras network hold the same whole numbers. Zero is one of them, so a pruned
weight stays exactly zero. A weight that is kept and is below half a step becomes zero too: the
zeros of a mask are a subset of a file's zeros, and `count_zeros` lists the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune import graph, litert, surgery
from l3prune.errors import L3PruneError, ParameterError
from l3prune.sparse.convert import program_of
from l3prune.sparse.program import Affine, Convolution, Flatten, GlobalPooling, Pooling, Program
from l3prune.weights import load_network, read_attachment, save_network

#: Whole numbers of int8 weights; -128 is not used, so that zero is in the middle.
LEVELS = 127


@dataclass(frozen=True, eq=False)
class Quantized:
    """An int8 network: what a LiteRT or packed file of it holds, as a network that runs anywhere.

    Attributes
    ----------
    network : keras.Model
        Kernels are whole multiples of their filters' steps; masks are kept. It computes with float
        activations.
    ranges : np.ndarray, (convolutions + 1, 2) float32
        Least and largest value of what the first convolution takes, and of what each convolution
        gives once it is normalised and activated. Zero lies within.

    Raises
    ------
    ParameterError
        Ranges that are not those of the network's convolutions.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[2] * 8)
    >>> Quantized(network, np.float32([[-1, 1]] * 9)).ranges.shape
    (9, 2)
    """

    network: keras.Model
    ranges: np.ndarray

    def __post_init__(self):
        ranges = np.array(self.ranges, np.float32)
        wanted = (len(graph.convolutions(self.network)) + 1, 2)
        if ranges.shape != wanted or not np.isfinite(ranges).all():
            raise ParameterError(
                f"ranges of shape {ranges.shape} given; allowed are finite ones of shape {wanted}"
            )
        if (ranges[:, 0] > 0).any() or (ranges[:, 1] < 0).any():
            raise ParameterError("a range without zero is given; widen it to zero")
        ranges.setflags(write=False)
        object.__setattr__(self, "ranges", ranges)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint as `weights.save_network` does, with the ranges in it."""
        save_network(self.network, path, attachment={"ranges": self.ranges})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Quantized:
        """Read what `save` wrote; an `L3PruneError` if the file is missing or has no ranges."""
        network = load_network(path)
        attached = read_attachment(path)
        if "ranges" not in attached:
            raise L3PruneError(f"{path} holds a network without ranges; quantize it first")
        return cls(network, attached["ranges"])


@dataclass(frozen=True, eq=False)
class Zeros:
    """The zeros of a kernel.

    Attributes
    ----------
    pruned : int
        By the layer's mask.
    rounded : np.ndarray, (n, 4) int64
        Places of the other zeros: weights that were kept and are now below half a step.

    Examples
    --------
    >>> Zeros(3, np.empty((0, 4), np.int64)).total
    3
    """

    pruned: int
    rounded: np.ndarray

    @property
    def total(self) -> int:
        """All zeros of the kernel."""
        return self.pruned + len(self.rounded)


def count_zeros(
    network: keras.Model, kernels: Mapping[str, np.ndarray] | None = None
) -> dict[str, Zeros]:
    """The zeros of kernels against a network's masks.

    Parameters
    ----------
    network : keras.Model
        Its masks count; a layer without one has no pruned weights.
    kernels : mapping of str to np.ndarray, or None
        By layer, of another form of the network, such as a file's. None takes its own.

    Raises
    ------
    L3PruneError
        A weight under a mask is not zero.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> zeros = count_zeros(create_network("sea64"))
    >>> zeros["conv_1"].total
    0
    """
    masks = graph.masks(network)
    own = {name: weights.kernel for name, weights in graph.conv_weights(network).items()}
    found = {}
    for name in own:
        kernel = own[name] if kernels is None else kernels[name]
        mask = masks[name] if name in masks else np.ones(kernel.shape, bool)
        mask = np.broadcast_to(mask, kernel.shape)
        wrong = int(np.count_nonzero(kernel[~mask]))
        if wrong:
            raise L3PruneError(
                f"layer {name}: {wrong} pruned weights are not zero; the file or network is not "
                "of these masks"
            )
        found[name] = Zeros(int((~mask).sum()), np.argwhere(mask & (kernel == 0)))
    return found


def to_float16(network: keras.Model) -> keras.Model:
    """A copy of a network with its weights rounded to float16.

    BatchNorm's four vectors stay float32, as Keras itself has them in a float16 network. Variables
    are float32 all the same: the copy runs wherever the network does. Zeros stay zero; a weight
    below 3e-8 becomes zero.

    Raises
    ------
    ParameterError
        A weight is beyond float16's 65504.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[2] * 8)
    >>> network.get_layer("conv_1").bias.assign([1 + 2**-12, 0.5]) is None
    False
    >>> to_float16(network).get_layer("conv_1").bias.numpy()
    array([1. , 0.5], dtype=float32)
    """
    copy = _copy(network)
    for layer in copy.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            continue
        for weight in layer.weights:
            if weight.dtype != tf.float32:
                continue
            exact = weight.numpy()
            with np.errstate(over="ignore"):
                rounded = exact.astype(np.float16).astype(np.float32)
            if not np.isfinite(rounded).all():
                raise ParameterError(
                    f"layer {layer.name} has a weight of {np.abs(exact).max():g}, beyond "
                    "float16's 65504; keep the network in float32"
                )
            weight.assign(rounded + 0.0)  # no negative zeros
    return copy


def quantize(network: keras.Model, batches: Iterable[np.ndarray]) -> Quantized:
    """An int8 network without training: kernels rounded, ranges measured.

    Parameters
    ----------
    network : keras.Model
        Of the L3 family: layers in a row, each convolution followed by at most its BatchNorm and
        ReLU before the next.
    batches : iterable of np.ndarray
        Inputs as the network takes them, of training sound. A few hundred windows are enough.

    Raises
    ------
    ParameterError
        The network is not of this form, or there are no batches.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[2] * 8)
    >>> noise = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8000))
    >>> kernel = quantize(network, [noise]).network.get_layer("conv_1").kernel.numpy()
    >>> steps = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    >>> bool(np.abs(kernel / steps - np.round(kernel / steps)).max() < 1e-4)
    True
    """
    return on_grid(network, measure_ranges(network, batches))


def on_grid(network: keras.Model, ranges: np.ndarray) -> Quantized:
    """A copy of a network with its kernels rounded to int8, with ranges.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[2] * 8)
    >>> network.get_layer("conv_1").kernel.assign(np.full((3, 3, 1, 2), 0.5)) is None
    False
    >>> float(on_grid(network, np.zeros((9, 2))).network.get_layer("conv_1").kernel[0, 0, 0, 0])
    0.5
    """
    copy = _copy(network)
    for layer in graph.convolutions(copy).values():
        whole, steps = integers(layer.kernel.numpy())
        layer.kernel.assign((whole * steps.astype(np.float64)).astype(np.float32))
    return Quantized(copy, ranges)


def integers(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kernel as whole numbers in -127 … 127 and the step of each filter (1 of an empty one).

    Parameters
    ----------
    kernel : np.ndarray, (…, filters) float32

    Returns
    -------
    whole : np.ndarray of int8, the kernel's shape
    steps : np.ndarray, (filters,) float32

    Examples
    --------
    >>> whole, steps = integers(np.float32([[254, 0], [-3, 0], [0.9, 0]]))
    >>> whole[:, 0], steps
    (array([127,  -2,   0], dtype=int8), array([2., 1.], dtype=float32))
    """
    peaks = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0)
    steps = np.where(peaks > 0, peaks.astype(np.float64) / LEVELS, 1)
    return np.rint(kernel / steps).astype(np.int8), steps.astype(np.float32)


def measure_ranges(network: keras.Model, batches: Iterable[np.ndarray]) -> np.ndarray:
    """The least and largest activations over batches; see `Quantized`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[2] * 8)
    >>> ranges = measure_ranges(network, [np.zeros((1, 1, 8000))])
    >>> ranges.shape, bool((ranges[1:, 0] == 0).all())  # behind ReLU
    ((9, 2), True)
    """
    head, tail = split(network)
    points = [head[-1].output]
    for layer in tail:
        if isinstance(layer, keras.layers.Conv2D):
            points.append(layer.output)
        elif isinstance(layer, keras.layers.BatchNormalization | keras.layers.ReLU):
            points[-1] = layer.output
    observed = keras.Model(network.inputs, points)
    compute = tf.function(
        lambda batch: [
            (tf.reduce_min(each), tf.reduce_max(each)) for each in observed(batch, training=False)
        ],
        input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), tf.float32)],
    )
    ranges = np.zeros((len(points), 2), np.float32)
    count = 0
    for count, batch in enumerate(batches, 1):  # noqa: B007  # looked at behind the loop
        found = np.array(compute(tf.convert_to_tensor(batch, tf.float32)), np.float32)
        ranges[:, 0] = np.minimum(ranges[:, 0], found[:, 0])
        ranges[:, 1] = np.maximum(ranges[:, 1], found[:, 1])
    if not count:
        raise ParameterError("no batches given to measure ranges; give some of training sound")
    return ranges


def split(
    network: keras.Model,
) -> tuple[list[keras.layers.Layer], list[keras.layers.Layer]]:
    """The layers before the first convolution, which stay float, and those from there on.

    Raises
    ------
    ParameterError
        The layers are not in a row, or of other kinds than L3 networks have behind their first
        convolution.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> head, tail = split(create_network("sea64"))
    >>> head[-1].name, tail[0].name
    ('batch_normalization_1', 'conv_1')
    """
    program_of(network)  # refuses what is not sequential
    kinds = [isinstance(layer, keras.layers.Conv2D) for layer in network.layers]
    if True not in kinds:
        raise ParameterError(f"network {network.name} has no convolution to quantise")
    first = kinds.index(True)
    head, tail = network.layers[:first], network.layers[first:]
    allowed = (
        keras.layers.Conv2D,
        keras.layers.BatchNormalization,
        keras.layers.ReLU,
        keras.layers.MaxPooling2D,
        keras.layers.Flatten,
    )
    for before, layer in zip([head[-1], *tail], tail, strict=False):
        lone = isinstance(layer, keras.layers.BatchNormalization) and not isinstance(
            before, keras.layers.Conv2D
        )
        if not isinstance(layer, allowed) or lone:
            raise ParameterError(
                f"layer {layer.name} behind {before.name} cannot be quantised; allowed are "
                "convolutions, each with its BatchNorm and ReLU, max-pooling and flattening"
            )
    return head, tail


def to_litert(quantized: Quantized, *, waveform: bool = False) -> bytes:
    """An int8 network as a LiteRT file, from float32 log-mels or waveforms to float32.

    Weights and activations between are int8, biases int32, all as the network's own steps and
    ranges say; a BatchNorm before the first convolution stays float32. The file is read back: its
    whole numbers are those of `integers`, or it is not given.

    Parameters
    ----------
    quantized : Quantized
    waveform : bool
        The front end is in the file, as float32; see `litert.convert`.

    Returns
    -------
    content : bytes

    Raises
    ------
    L3PruneError
        The file's weights are not the network's.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[2] * 8)
    >>> noise = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8000))
    >>> to_litert(quantize(network, [noise]))[4:8]
    b'TFL3'
    """
    program = program_of(quantized.network)
    content = litert.convert_function(
        lambda maps: _compute(program, quantized.ranges, maps), (1, *program.shape), "dynamic"
    )
    steps = [step for step in program.steps if isinstance(step, Convolution)]
    for step, kernel in zip(steps, litert.kernels(content), strict=True):
        if not np.array_equal(np.moveaxis(kernel.stored, 0, -1), integers(step.kernel)[0]):
            raise L3PruneError(
                f"layer {step.name}: the LiteRT file has other int8 weights than the network"
            )
    if waveform:
        content = litert.behind_waveform(content, litert.front_end_of(quantized.network))
    return content


def _compute(program: Program, ranges: np.ndarray, maps: tf.Tensor) -> tf.Tensor:
    """What a program computes, rounded where int8 arithmetic rounds."""
    bounds = iter(ranges.astype(np.float64).tolist())

    def rounded(values: tf.Tensor) -> tf.Tensor:
        least, largest = next(bounds)
        if least == largest:  # of zeros alone
            largest = 1.0
        return tf.quantization.fake_quant_with_min_max_args(values, least, largest)

    started = False
    for step in program.steps:
        if isinstance(step, Convolution):
            if not started:
                maps = rounded(maps)
                started = True
            peaks = (integers(step.kernel)[1] * np.float64(LEVELS)).astype(np.float32)
            kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
                tf.constant(step.kernel), -peaks, peaks, narrow_range=True
            )
            maps = tf.nn.conv2d(maps, kernel, step.strides, step.padding.upper()) + step.bias
            maps = rounded(tf.nn.relu(maps) if step.relu else maps)
        elif isinstance(step, Affine):
            maps = maps * step.scale + step.offset
            maps = tf.nn.relu(maps) if step.relu else maps
        elif isinstance(step, Pooling) and step.kind == "max":
            maps = tf.nn.max_pool2d(maps, step.size, step.strides, step.padding.upper())
        elif isinstance(step, GlobalPooling) and step.kind == "max":
            maps = tf.reduce_max(maps, axis=(1, 2))
        elif isinstance(step, Flatten):
            maps = tf.reshape(maps, (1, -1))
        else:
            raise ParameterError(f"step {step.name} cannot be quantised")
    return maps


def _copy(network: keras.Model) -> keras.Model:
    return surgery.apply_masks(network, graph.masks(network))
