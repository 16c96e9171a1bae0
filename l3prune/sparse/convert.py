"""From a Keras network to a program. TensorFlow is not imported: the network brings it along.

Layers are known by the name of their class and read by `get_config` and `get_weights`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from l3prune.audio import FrontEnd
from l3prune.errors import ParameterError
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

#: What a layer makes of the steps before it: the steps with its own.
_Reader = Callable[[Any, list[Step]], list[Step]]

#: Layers that do nothing when a network is used.
_NOTHING = ("InputLayer", "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout")


def program_of(network: Any) -> Program:
    """What a sequential Keras network computes when it is used.

    Masks are applied, BatchNorm is folded into the convolution or dense layer in front of it (in
    float64), and a waveform front end becomes the program's.

    Parameters
    ----------
    network : tf_keras.Model
        One input, one output, each layer called once, on the output of the one before it.

    Returns
    -------
    program : Program

    Raises
    ------
    ParameterError
        A layer of another kind, or with options that the sparse engine does not know; the message
        names it. Or the network is not sequential, or has an input of unknown size.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> program = program_of(create_network("sea64"))
    >>> program.shape, len(program.steps), program.front_end.sample_rate
    ((64, 50, 1), 14, 8000)
    """
    front_end = None
    shape = _input_shape(network)
    steps: list[Step] = []
    for number, layer in enumerate(_chain(network)):
        kind = type(layer).__name__
        if kind == "LogMelSpectrogram":
            if steps or front_end is not None:
                raise ParameterError(f"layer {layer.name} is a front end and is not the first")
            config = layer.get_config()
            names = [each.name for each in dataclasses.fields(FrontEnd)]
            front_end = FrontEnd(**{name: config[name] for name in names})
            shape = (*front_end.shape, 1)
        elif kind in _READERS:
            steps = _READERS[kind](layer, steps)
        elif kind not in _NOTHING:
            raise ParameterError(
                f"layer {layer.name} (number {number + 1}) is of kind {kind}, which the sparse "
                f"engine does not know; it knows {', '.join(sorted([*_READERS, *_NOTHING]))}"
            )
    if len(shape) != 3 or None in shape:
        raise ParameterError(
            f"network {network.name} takes inputs of shape {shape}; the sparse engine takes (rows, "
            "columns, channels) of known sizes, or waveforms with a LogMelSpectrogram layer"
        )
    rows, columns, channels = (int(size) for size in shape if size is not None)
    return Program(network.name, (rows, columns, channels), tuple(steps), front_end)


def _input_shape(network: Any) -> tuple[int | None, ...]:
    shape = getattr(network, "input_shape", None)
    if not isinstance(shape, tuple):
        raise ParameterError(
            f"network {getattr(network, 'name', network)!r} is no Keras network with one input"
        )
    return shape[1:]


def _chain(network: Any) -> Iterator[Any]:
    """The layers in the order of computation."""
    config = network.get_config()
    if "layers" not in config:
        raise ParameterError(f"network {network.name} is not functional; its layers are not known")
    if "output_layers" not in config:  # keras.Sequential
        yield from network.layers
        return
    calls: dict[str, list[str]] = {}
    for each in config["layers"]:
        calls[each["name"]] = [name for node in each["inbound_nodes"] for name in _inputs(node)]
    (output, *more) = [each[0] for each in config["output_layers"]]
    chain = [output]
    while sources := calls[chain[-1]]:
        if len(sources) > 1:
            raise ParameterError(
                f"layer {chain[-1]} takes several inputs or is called several times; the sparse "
                "engine runs sequential networks"
            )
        chain.append(sources[0])
    if more or set(chain) != set(calls):
        left = sorted(set(calls) - set(chain))
        raise ParameterError(
            f"network {network.name} is not sequential: it has several inputs or outputs, or layer "
            f"{left[0] if left else output} is beside the others"
        )
    for name in reversed(chain):
        yield network.get_layer(name)


def _inputs(node: Any) -> Iterator[str]:
    """Names of the layers that a call takes its inputs from, as tf_keras writes calls."""
    for each in node:
        if isinstance(each, str):
            yield node[0]
            return
        yield from _inputs(each)


def _only(layer: Any, config: Mapping[str, Any], **allowed: Any) -> None:
    """Refuse options with other values than the allowed one."""
    for name, value in allowed.items():
        given = config.get(name, value)
        given = given.tolist() if isinstance(given, np.ndarray | np.generic) else given
        given = tuple(given) if isinstance(given, list) else given
        if given != value:
            raise ParameterError(
                f"layer {layer.name}: {name}={given!r} is not known to the sparse engine; it "
                f"knows {value!r}"
            )


def _activation(layer: Any) -> bool:
    """Whether ReLU follows."""
    name = layer.get_config().get("activation", "linear")
    if name not in ("relu", "linear"):
        raise ParameterError(
            f"layer {layer.name}: activation {name!r} is not known to the sparse engine; it knows "
            "relu and linear"
        )
    return name == "relu"


def _weights(layer: Any) -> list[np.ndarray]:
    return [np.asarray(array) for array in layer.get_weights()]


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, list | tuple) else (value, value)
    return int(first), int(second)


def _convolution(layer: Any, steps: list[Step]) -> list[Step]:
    config = layer.get_config()
    _only(layer, config, data_format="channels_last", dilation_rate=(1, 1), groups=1)
    kernel, *rest = _weights(layer)
    if type(layer).__name__ == "MaskedConv2D":
        kernel = np.where(rest.pop(), kernel, 0)
    bias = rest[0] if config["use_bias"] else np.zeros(kernel.shape[-1])
    step = Convolution(
        layer.name,
        kernel.astype(np.float32),
        bias.astype(np.float32),
        _pair(config["strides"]),
        config["padding"],
        _activation(layer),
    )
    return [*steps, step]


def _dense(layer: Any, steps: list[Step]) -> list[Step]:
    kernel, *rest = _weights(layer)
    bias = rest[0] if rest else np.zeros(kernel.shape[-1])
    arrays = kernel.astype(np.float32), bias.astype(np.float32)
    return [*steps, Dense(layer.name, *arrays, _activation(layer))]


def _batch_norm(layer: Any, steps: list[Step]) -> list[Step]:
    config = layer.get_config()
    axis = config["axis"]
    axis = axis[0] if isinstance(axis, list | tuple) else axis
    if axis not in (-1, len(layer.input_shape) - 1):
        raise ParameterError(
            f"layer {layer.name}: axis={axis} is not known to the sparse engine; it knows the last"
        )
    arrays = [array.astype(np.float64) for array in _weights(layer)]
    variance, mean = arrays.pop(), arrays.pop()
    scale = 1 / np.sqrt(variance + config["epsilon"])
    if config["scale"]:
        scale = arrays.pop(0) * scale
    offset = -mean * scale
    if config["center"]:
        offset = offset + arrays.pop(0)
    before = steps[-1] if steps else None
    if isinstance(before, Convolution | Dense) and not before.relu:
        # A pruned weight stays zero, and is no -0.
        kernel = np.where(before.kernel != 0, before.kernel * scale, 0)
        folded = dataclasses.replace(
            before,
            kernel=kernel.astype(np.float32),
            bias=(before.bias * scale + offset).astype(np.float32),
        )
        return [*steps[:-1], folded]
    return [*steps, Affine(layer.name, scale.astype(np.float32), offset.astype(np.float32))]


def _relu(layer: Any, steps: list[Step]) -> list[Step]:
    config = layer.get_config()
    if type(layer).__name__ == "Activation" and not _activation(layer):
        return steps
    if type(layer).__name__ == "ReLU":
        _only(layer, config, max_value=None, negative_slope=0, threshold=0)
    before = steps[-1] if steps else None
    if isinstance(before, Convolution | Dense | Affine):
        return [*steps[:-1], dataclasses.replace(before, relu=True)]
    channels = int(layer.input_shape[-1])
    ones = np.ones(channels, np.float32)
    return [*steps, Affine(layer.name, ones, np.zeros_like(ones), relu=True)]


def _pooling(layer: Any, steps: list[Step]) -> list[Step]:
    config = layer.get_config()
    _only(layer, config, data_format="channels_last")
    kind = "max" if type(layer).__name__.startswith("Max") else "average"
    size = _pair(config["pool_size"])
    strides = size if config["strides"] is None else _pair(config["strides"])
    return [*steps, Pooling(layer.name, kind, size, strides, config["padding"])]


def _global_pooling(layer: Any, steps: list[Step]) -> list[Step]:
    _only(layer, layer.get_config(), data_format="channels_last", keepdims=False)
    kind = "max" if "Max" in type(layer).__name__ else "average"
    return [*steps, GlobalPooling(layer.name, kind)]


def _flatten(layer: Any, steps: list[Step]) -> list[Step]:
    _only(layer, layer.get_config(), data_format="channels_last")
    return [*steps, Flatten(layer.name)]


_READERS: dict[str, _Reader] = {
    "Conv2D": _convolution,
    "MaskedConv2D": _convolution,
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "ReLU": _relu,
    "Activation": _relu,
    "MaxPooling2D": _pooling,
    "AveragePooling2D": _pooling,
    "GlobalMaxPooling2D": _global_pooling,
    "GlobalAveragePooling2D": _global_pooling,
    "Flatten": _flatten,
}
