"""What a network costs, layer by layer: parameters, multiply-accumulates, activations.

Counts of multiply-accumulates differ by what is counted. `CONVENTIONS` has three, each a rule per
kind of layer; a published figure can only be compared under its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras as keras

from l3prune.allocation import LayerCost
from l3prune.channels import PRODUCERS, LayerChannels, check_functional, follow
from l3prune.errors import ParameterError
from l3prune.graph import convolutions
from l3prune.layers import FunctionalMean

_LAYERS = keras.layers
_AVERAGE = (_LAYERS.AveragePooling1D, _LAYERS.AveragePooling2D)
_MAX = (_LAYERS.MaxPooling1D, _LAYERS.MaxPooling2D)


@dataclass(frozen=True)
class LayerComplexity:
    """What one layer costs, at one of the places where it is called.

    Attributes
    ----------
    name : str
        Layers of nested networks as "network/layer".
    kind : str
        Its class.
    output_shape : tuple of int
        Without the batch.
    parameters : int
        All weights, moving statistics included and masks not; 0 where a shared layer is called
        again.
    trainable : int
        Those that are trained.
    macs, thop_2019, thop : int
        Of one input, under each of `CONVENTIONS`.
    activation_bytes : int
        Its output as float32.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> layers = layer_complexities(create_network("sea64"))
    >>> [(layer.name, layer.macs) for layer in layers if layer.name == "conv_1"]
    [('conv_1', 921600)]
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    trainable: int
    macs: int
    thop_2019: int
    thop: int
    activation_bytes: int


def layer_complexities(network: keras.Model) -> list[LayerComplexity]:
    """Every layer of a functional network, in the order of computation.

    Raises
    ------
    ParameterError
        The network is not functional.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> sum(layer.macs for layer in layer_complexities(create_network("mel256")))
    10202628096
    """
    rows = []
    seen = set()
    for name, node in _calls(network, ""):
        layer = node.layer
        shape = tuple(int(size) for size in _one(node.outputs).shape[1:])
        weights = [] if name in seen else [w for w in layer.weights if w.dtype != tf.bool]
        seen.add(name)
        rows.append(
            LayerComplexity(
                name=name,
                kind=type(layer).__name__,
                output_shape=shape,
                parameters=_count(weights),
                trainable=_count([w for w in weights if w.trainable and layer.trainable]),
                activation_bytes=4 * int(np.prod(shape)),
                **{key: rule(layer, node) for key, rule in CONVENTIONS.items()},
            )
        )
    return rows


def complexity_table(network: keras.Model) -> pd.DataFrame:
    """`layer_complexities` as a table with a row of totals, for CSV, markdown or print.

    The total of the activations is their peak, see `peak_activation_bytes`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> int(complexity_table(create_network("sea64")).loc["total", "parameters"])
    399460
    """
    rows = layer_complexities(network)
    frame = pd.DataFrame([vars(row) for row in rows]).set_index("name")
    numbers = ["parameters", "trainable", *CONVENTIONS]
    total = {name: frame[name].sum() for name in numbers}
    total |= {
        "kind": "",
        "output_shape": "",
        "activation_bytes": peak_activation_bytes(network),
    }
    return pd.concat([frame, pd.DataFrame([total], index=["total"])])[list(frame)]


def peak_activation_bytes(network: keras.Model) -> int:
    """Most bytes of float32 activations alive at once, for one input, layer after layer.

    An activation is alive from the layer that makes it to the last that reads it; a layer's inputs
    and output are alive together. Layers that only rename (Flatten, Dropout, Reshape) take no
    memory; those that act on each value (ReLU, BatchNorm) work in place if nothing reads their
    input later. What a convolution needs besides is not counted.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> peak_activation_bytes(create_network("mel256")) / 2**20
    24.875
    """
    calls = list(_calls(network, ""))
    # A tensor that was only renamed has the same values as the one before.
    values: dict[int, int] = {}
    read: dict[int, int] = {}
    for step, (_, node) in enumerate(calls):
        inputs = [values.get(id(tensor), id(tensor)) for tensor in _flat(node.keras_inputs)]
        if isinstance(node.layer, _RENAMING):
            values[id(_one(node.outputs))] = inputs[0]
        else:
            read |= dict.fromkeys(inputs, step)
    for tensor in network.outputs:
        read[values.get(id(tensor), id(tensor))] = len(calls)
    # One that is worked on in place is in the same memory as the one before.
    home: dict[int, int] = {}
    sizes: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, (_, node) in enumerate(calls):
        first, output = _flat(node.keras_inputs)[0], _one(node.outputs)
        inputs = [home.get(id(tensor), id(tensor)) for tensor in _flat(node.keras_inputs)]
        in_place = isinstance(node.layer, _RENAMING) or (
            isinstance(node.layer, _BY_VALUE) and read[values.get(id(first), id(first))] == step
        )
        home[id(output)] = inputs[0] if in_place else id(output)
        for key, tensor in [
            *zip(inputs, _flat(node.keras_inputs), strict=True),
            (home[id(output)], output),
        ]:
            sizes.setdefault(key, 4 * int(np.prod([int(n) for n in tensor.shape[1:]])))
            last[key] = step
    for tensor in network.outputs:
        last[home.get(id(tensor), id(tensor))] = len(calls)
    alive: set[int] = set()
    peak = 0
    for step, (_, node) in enumerate(calls):
        alive |= {home.get(id(t), id(t)) for t in [*_flat(node.keras_inputs), _one(node.outputs)]}
        peak = max(peak, sum(sizes[key] for key in alive))
        alive = {key for key in alive if last[key] > step}
    return peak


_RENAMING = (_LAYERS.Flatten, _LAYERS.Reshape, _LAYERS.Dropout)

_BY_VALUE = (
    *(_LAYERS.BatchNormalization, _LAYERS.Activation),
    *(_LAYERS.ReLU, _LAYERS.LeakyReLU, _LAYERS.PReLU, _LAYERS.ELU),
)


def layer_costs(network: keras.Model) -> list[LayerCost]:
    """The layers of a network as budgets take them: its convolutions, then all others that compute.

    MACs are those of `CONVENTIONS["macs"]`. Of a separable convolution both halves have costs.

    Raises
    ------
    ParameterError
        As `channels.follow`; or a layer with weights is called at several places.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> cost = layer_costs(create_network("mel256"))[1]
    >>> cost.previous, cost.macs
    (('conv_1',), 1877999616)
    """
    channels = follow(network).layers
    found = convolutions(network)
    positions: dict[str, int] = {}
    for name, node in _calls(network, ""):
        if not isinstance(node.layer, (*PRODUCERS, _LAYERS.DepthwiseConv2D)):
            continue
        if name in positions:
            raise ParameterError(
                f"layer {name} is called at several places, which budgets do not know"
            )
        transposed = isinstance(node.layer, _LAYERS.Conv2DTranspose)
        places = node.keras_inputs[0] if transposed else _one(node.outputs)
        positions[name] = int(np.prod(places.shape[1:-1]))
    # Of layers that are added, the first stands for all: they lose filters together.
    owners: dict[int, str] = {}
    for name in found:
        for number in channels[name].outputs.tolist():
            owners.setdefault(number, name)
    names = dict.fromkeys([*found, *positions])
    return [
        cost
        for name in names
        for cost in _costs(name, channels[name], positions[name], owners, name in found)
    ]


def _costs(
    name: str, each: LayerChannels, positions: int, owners: Mapping[int, str], pruned: bool
) -> Iterator[LayerCost]:
    layer, groups = each.layer, getattr(each.layer, "groups", 1)
    read = Counter(owners[number] for number in each.inputs.tolist() if number in owners)

    def cost(name: str, kernel, role: str, read: Mapping[str, int], bias: bool) -> LayerCost:
        *sides, in_channels, filters = (int(size) for size in kernel.shape)
        if isinstance(layer, _LAYERS.Conv2DTranspose):
            in_channels, filters = filters, in_channels
        if role == "follower" and not isinstance(layer, _LAYERS.Conv1D):
            in_channels, filters = 1, in_channels * filters
        kh, kw = (*sides, 1, 1)[:2]
        alike = np.unique(each.outputs, return_counts=True)[1]
        return LayerCost(
            name=name,
            weights=int(np.prod(kernel.shape)),
            filters=filters,
            positions=positions,
            in_channels=in_channels,
            kernel_size=(kh, kw),
            previous=tuple(read),
            channels=tuple(read.values()),
            role=role,
            together=int(alike[0]) if pruned and (alike == alike[0]).all() else 1,
            nonzero=int(np.count_nonzero(kernel.numpy())),
            bias=bias,
        )

    def times(factor: int) -> dict[str, int]:
        return {name: factor * count for name, count in read.items()}

    if isinstance(layer, _LAYERS.SeparableConv2D | _LAYERS.DepthwiseConv2D):
        repeated = times(layer.depth_multiplier)
        halves = isinstance(layer, _LAYERS.SeparableConv2D)
        depthwise = f"{name}/depthwise" if halves else name
        bias = layer.use_bias and not halves
        yield cost(depthwise, layer.depthwise_kernel, "follower", repeated, bias)
        if halves:
            pointwise = layer.pointwise_kernel
            yield cost(f"{name}/pointwise", pointwise, "reader", repeated, layer.use_bias)
    elif groups == len(each.inputs) > 1:
        # Each filter reads one channel. As a convolution it is pruned together with what it reads.
        repeated = times(layer.filters // groups)
        role = "convolution" if pruned else "follower"
        yield cost(name, layer.kernel, role, {} if pruned else repeated, layer.use_bias)
    else:
        part = {name: count // groups for name, count in read.items()}
        role = "convolution" if pruned else "reader"
        yield cost(name, layer.kernel, role, part, layer.use_bias)


def _macs(layer, node) -> int:
    """Convolutions and dense layers: one for each weight and place where it is used.

    Places in the zero padding count; biases, BatchNorm, activations, pooling and front ends do not.
    """
    outputs = int(np.prod([int(n) for n in _one(node.outputs).shape[1:]]))
    inputs = int(np.prod([int(n) for n in node.keras_inputs[0].shape[1:]]))
    if isinstance(layer, _LAYERS.Dense):
        return outputs * layer.kernel.shape[0]
    if isinstance(layer, _LAYERS.Conv2DTranspose):
        return inputs * int(np.prod(layer.kernel.shape[:3]))
    if isinstance(layer, _LAYERS.SeparableConv2D):
        places = outputs // layer.filters
        return places * sum(int(np.prod(w.shape)) for w in layer.weights if "kernel" in w.name)
    if isinstance(layer, _LAYERS.DepthwiseConv2D):
        return outputs * int(np.prod(layer.kernel_size))
    if isinstance(layer, PRODUCERS):
        return outputs * int(np.prod(layer.kernel.shape[:-1]))
    return 0


def _thop(layer, node) -> int:
    """THOP as it is today: convolutions and dense layers as above, 4 for each value of a BatchNorm,
    1 for each output of an average pooling."""
    outputs = int(np.prod([int(n) for n in _one(node.outputs).shape[1:]]))
    if isinstance(layer, _LAYERS.BatchNormalization):
        return 4 * outputs if layer.scale or layer.center else 2 * outputs
    if isinstance(layer, FunctionalMean):
        return 0
    return outputs if isinstance(layer, _AVERAGE) else _macs(layer, node)


def _thop_2019(layer, node) -> int:
    """THOP in the first half of July 2019: with biases (the input channels for each output), ReLU
    (1), pooling (the pool's size as it is written, a square one as one number, and 1 for the
    average), and 2 n - 1 for each output of a dense layer."""
    outputs = int(np.prod([int(n) for n in _one(node.outputs).shape[1:]]))
    if isinstance(layer, _LAYERS.Dense):
        return outputs * (2 * layer.kernel.shape[0] - 1)
    if isinstance(layer, _LAYERS.BatchNormalization):
        return 4 * outputs
    if isinstance(layer, _LAYERS.ReLU) or (
        isinstance(layer, _LAYERS.Activation) and layer.activation is keras.activations.relu
    ):
        return outputs
    if isinstance(layer, (*_AVERAGE, *_MAX)) and not isinstance(layer, FunctionalMean):
        sides = set(tf.nest.flatten(layer.pool_size))
        written = sides.pop() if len(sides) == 1 else int(np.prod(layer.pool_size))
        return outputs * (written + isinstance(layer, _AVERAGE))
    biases = 0
    if isinstance(layer, _LAYERS.DepthwiseConv2D) and layer.use_bias:
        biases = outputs  # one input channel for each
    elif isinstance(layer, PRODUCERS) and layer.use_bias:
        # The bias of a separable convolution is of its second half, the pointwise one.
        kernel = getattr(layer, "pointwise_kernel", None)
        biases = outputs * (layer.kernel if kernel is None else kernel).shape[-2]
    return _macs(layer, node) + biases


#: Ways to count multiply-accumulates: ours, and those of the THOP package in 2019 and today. Kinds
#: of layers that a rule does not name count nothing.
CONVENTIONS: dict[str, Callable[..., int]] = {
    "macs": _macs,
    "thop_2019": _thop_2019,
    "thop": _thop,
}


def _calls(network: keras.Model, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every call of a layer, in the order of computation, nested networks in their place."""
    check_functional(network)
    for depth in sorted(network._nodes_by_depth, reverse=True):
        for node in network._nodes_by_depth[depth]:
            if node.is_input:
                continue
            if isinstance(node.layer, keras.Model):
                yield from _calls(node.layer, f"{prefix}{node.layer.name}/")
            else:
                yield f"{prefix}{node.layer.name}", node


def _flat(tensors) -> list:
    return tf.nest.flatten(tensors)


def _one(tensors):
    return tf.nest.flatten(tensors)[0]


def _count(weights) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)
