"""Which channels of a network belong together: followed from layer to layer, filter by filter.

Every filter of a convolution or dense layer is a channel with a number of its own. Layers hand
numbers on (BatchNorm, pooling), repeat them (Flatten, depthwise convolutions) or string them
together (Concatenate); a residual sum makes the channels that it adds one. What has one number can
only be removed together. Layers that are not known refuse: they would be sliced wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune.errors import ParameterError
from l3prune.layers import ClipMean, FrontEndLayer

_LAYERS = keras.layers

#: Hand every channel on as it is.
_PASSING = (
    *(_LAYERS.ReLU, _LAYERS.LeakyReLU, _LAYERS.ELU, _LAYERS.PReLU, _LAYERS.ThresholdedReLU),
    *(_LAYERS.Dropout, _LAYERS.SpatialDropout1D, _LAYERS.SpatialDropout2D),
    *(_LAYERS.GaussianNoise, _LAYERS.GaussianDropout, _LAYERS.ActivityRegularization),
    *(_LAYERS.MaxPooling1D, _LAYERS.MaxPooling2D, _LAYERS.AveragePooling1D),
    *(_LAYERS.AveragePooling2D, _LAYERS.GlobalMaxPooling1D, _LAYERS.GlobalMaxPooling2D),
    *(_LAYERS.GlobalAveragePooling1D, _LAYERS.GlobalAveragePooling2D, _LAYERS.ZeroPadding1D),
    *(_LAYERS.ZeroPadding2D, _LAYERS.Cropping1D, _LAYERS.Cropping2D, _LAYERS.UpSampling1D),
    *(_LAYERS.UpSampling2D, _LAYERS.BatchNormalization, _LAYERS.Activation),
)

#: Combine their inputs channel by channel.
_ELEMENTWISE = (
    *(_LAYERS.Add, _LAYERS.Subtract, _LAYERS.Multiply, _LAYERS.Average),
    *(_LAYERS.Maximum, _LAYERS.Minimum),
)

#: Hand channels on, but compare them with each other, so that none can be left out.
_NEEDS_ALL = (_LAYERS.LayerNormalization, _LAYERS.UnitNormalization, _LAYERS.Softmax)

#: Read every input channel for every filter.
PRODUCERS = (
    *(_LAYERS.Conv1D, _LAYERS.Conv2D, _LAYERS.SeparableConv2D, _LAYERS.Conv2DTranspose),
    _LAYERS.Dense,
)


@dataclass
class LayerChannels:
    """The channels of a layer with weights, or of a Reshape: what goes in, and what comes out.

    Attributes
    ----------
    layer : keras.layers.Layer
    inputs, outputs : np.ndarray of int
        Channel numbers, resolved: channels that belong together have the same one.

    Examples
    --------
    >>> inputs = keras.Input((3,))
    >>> dense = keras.layers.Dense(2, name="dense")
    >>> follow(keras.Model(inputs, dense(inputs))).layers["dense"].outputs.tolist()
    [3, 4]
    """

    layer: keras.layers.Layer
    inputs: np.ndarray
    outputs: np.ndarray


@dataclass
class Channels:
    """What `follow` found out about a network.

    Attributes
    ----------
    layers : dict of str to LayerChannels
        By name; layers of nested networks as "network/layer".
    nested : dict of str to list of np.ndarray
        Networks within the network: the channels of each of their inputs.
    outputs : list of np.ndarray
        The channels of each output of the network.
    pinned : dict of int to str
        Channels that must all stay, and why.
    lively : dict of int to str
        Channels that are not zero even where their filters, biases and BatchNorms are, and why.
    count : int
        Numbers are below it.

    Examples
    --------
    >>> inputs = keras.Input((3,))
    >>> dense = keras.layers.Dense(2, "softmax", name="dense")
    >>> follow(keras.Model(inputs, dense(inputs))).pinned[4]
    'dense compares them by softmax'
    """

    layers: dict[str, LayerChannels] = field(default_factory=dict)
    nested: dict[str, list[np.ndarray]] = field(default_factory=dict)
    outputs: list[np.ndarray] = field(default_factory=list)
    pinned: dict[int, str] = field(default_factory=dict)
    lively: dict[int, str] = field(default_factory=dict)
    count: int = 0


def named_layers(
    network: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Every layer of a network with its name, those of nested networks as "network/layer".

    Examples
    --------
    >>> inner = keras.Sequential([keras.layers.Dense(2, name="dense")], name="inner")
    >>> outer = keras.Sequential([keras.Input((3,)), inner])
    >>> [name for name, _ in named_layers(outer)]
    ['inner/dense']
    """
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from named_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def follow(network: keras.Model) -> Channels:
    """Follow the channels of a functional network from its inputs to its outputs.

    Raises
    ------
    ParameterError
        The network is not functional, or has a layer of a kind whose channels cannot be followed;
        the message names it.

    Examples
    --------
    >>> inputs = keras.Input((8, 8, 3))
    >>> one = keras.layers.Conv2D(4, 3, padding="same", name="one")(inputs)
    >>> two = keras.layers.Conv2D(4, 3, padding="same", name="two")(one)
    >>> found = follow(keras.Model(inputs, keras.layers.Add()([one, two])))
    >>> found.layers["one"].outputs.tolist() == found.layers["two"].outputs.tolist()
    True
    """
    check_functional(network)
    tracer = _Tracer()
    inputs = []
    for tensor in network.inputs:
        ids = tracer.new(tensor.shape[-1] or 0)
        tracer.pin(ids, "they are the network's input")
        inputs.append(ids)
    outputs = tracer.network(network, inputs, "")
    found = Channels(count=len(tracer.parents))
    for name, (layer, ins, outs) in tracer.layers.items():
        found.layers[name] = LayerChannels(layer, tracer.resolve(ins), tracer.resolve(outs))
    found.nested = {
        name: [tracer.resolve(ids) for ids in each] for name, each in tracer.nested.items()
    }
    found.outputs = [tracer.resolve(ids) for ids in outputs]
    for target, reasons in ((found.pinned, tracer.pins), (found.lively, tracer.lively)):
        for ids, reason in reasons:
            target.update((int(number), reason) for number in tracer.resolve(ids))
    return found


def check_functional(network: keras.Model) -> None:
    """Refuse what is no functional network.

    Examples
    --------
    >>> check_functional(keras.Model(name="mine"))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: network mine is not functional: ...
    """
    if not hasattr(network, "_nodes_by_depth"):
        raise ParameterError(
            f"network {getattr(network, 'name', network)} is not functional: its layers cannot be "
            "followed; build it with keras.Input and keras.Model, or as a built Sequential"
        )


def _keeps_zero(layer: keras.layers.Layer) -> bool:
    """Whether a channel behind a layer is zero if it was before, its weights in the layer too."""
    if isinstance(layer, _LAYERS.BatchNormalization):
        return bool(layer.scale)  # else the moving mean comes through
    if isinstance(layer, _LAYERS.ReLU):
        return not (layer.threshold and layer.negative_slope)
    activation = getattr(layer, "activation", None)
    return activation is None or not np.any(activation(tf.zeros((1, 1))))


class _Tracer:
    """Channel numbers, with union-find for those that belong together."""

    def __init__(self) -> None:
        self.parents: list[int] = []
        self.layers: dict[str, tuple[keras.layers.Layer, np.ndarray, np.ndarray]] = {}
        self.nested: dict[str, list[np.ndarray]] = {}
        self.pins: list[tuple[np.ndarray, str]] = []
        self.lively: list[tuple[np.ndarray, str]] = []

    def new(self, count: int) -> np.ndarray:
        start = len(self.parents)
        self.parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def find(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def resolve(self, ids: np.ndarray) -> np.ndarray:
        numbers, places = np.unique(ids, return_inverse=True)
        return np.array([self.find(int(number)) for number in numbers], np.int64)[places]

    def unite(self, first: np.ndarray, second: np.ndarray) -> None:
        for one, other in zip(first, second, strict=True):
            roots = sorted((self.find(int(one)), self.find(int(other))))
            self.parents[roots[1]] = roots[0]

    def pin(self, ids: np.ndarray, reason: str) -> None:
        self.pins.append((ids, reason))

    def _pinned(self, ids: np.ndarray) -> bool:
        pinned = {int(number) for pinned, _ in self.pins for number in self.resolve(pinned)}
        return all(int(number) in pinned for number in self.resolve(ids))

    def network(
        self, network: keras.Model, inputs: list[np.ndarray], prefix: str
    ) -> list[np.ndarray]:
        """Channels of a network's outputs, given those of its inputs."""
        known = {id(tensor): ids for tensor, ids in zip(network.inputs, inputs, strict=True)}
        for depth in sorted(network._nodes_by_depth, reverse=True):
            for node in network._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                arguments = [known[id(tensor)] for tensor in node.keras_inputs]
                results = self.call(node, arguments, prefix)
                known.update(zip(map(id, tf.nest.flatten(node.outputs)), results, strict=True))
        return [known[id(tensor)] for tensor in network.outputs]

    def call(self, node, arguments: list[np.ndarray], prefix: str) -> list[np.ndarray]:
        """Channels of one layer's outputs, at one of the places where it is called."""
        layer, name = node.layer, f"{prefix}{node.layer.name}"
        if isinstance(layer, keras.Model):
            check_functional(layer)
            for earlier, ids in zip(self.nested.get(name, []), arguments, strict=False):
                self.unite(earlier, ids)
            self.nested[name] = arguments
            return self.network(layer, arguments, f"{name}/")
        if getattr(layer, "data_format", None) == "channels_first":
            raise ParameterError(
                f"layer {name} has its channels first; only channels last is known"
            )
        if isinstance(layer, _ELEMENTWISE):
            if len({*map(len, arguments)}) > 1 and not isinstance(layer, _LAYERS.Multiply):
                self.lively.append((max(arguments, key=len), f"{name} adds another channel to all"))
            return [self._elementwise(arguments)]
        if isinstance(layer, _LAYERS.Concatenate):
            return [self._concatenate(node, arguments)]
        if isinstance(layer, ClipMean):
            return arguments[:1]
        (ids,) = arguments
        if isinstance(layer, _LAYERS.DepthwiseConv2D):
            out = np.repeat(ids, layer.depth_multiplier)
        elif isinstance(layer, PRODUCERS):
            out = self._produce(layer, ids, name)
        elif isinstance(layer, _PASSING):
            out = self._pass(layer, ids, name)
        elif isinstance(layer, _LAYERS.Flatten | _LAYERS.Reshape):
            out = self._reshape(node, ids, name)
        elif isinstance(layer, FrontEndLayer):
            out = self.new(node.outputs.shape[-1])
            self.pin(out, f"they are the output of {name}")
        elif isinstance(layer, _NEEDS_ALL):
            self.pin(ids, f"{name} needs all of them")
            out = ids
        else:
            raise ParameterError(
                f"layer {name} is a {type(layer).__name__}, a kind whose channels cannot be "
                "followed, so nothing was removed; replace it, or prune with masks (apply_masks)"
            )
        if layer.weights or isinstance(layer, _LAYERS.Reshape):
            self._remember(name, layer, ids, out)
        if not _keeps_zero(layer):
            self.lively.append((out, f"{name} does not make zero of zeros"))
        return [out]

    def _remember(self, name: str, layer, ids: np.ndarray, out: np.ndarray) -> None:
        if name in self.layers:
            # Called at several places with the same weights: one slice has to fit them all.
            _, earlier, earlier_out = self.layers[name]
            self.unite(earlier, ids)
            self.unite(earlier_out, out)
        self.layers[name] = (layer, ids, out)

    def _produce(self, layer, ids: np.ndarray, name: str) -> np.ndarray:
        if name in self.layers:
            out = self.layers[name][2]
        else:
            filters = layer.units if isinstance(layer, _LAYERS.Dense) else layer.filters
            groups = getattr(layer, "groups", 1)
            if groups == len(ids) > 1:  # depthwise
                out = np.repeat(ids, filters // groups)
            else:
                out = self.new(filters)
                # The kernel has one place for the k-th channel of each of its groups.
                for channels in (ids, out):
                    first, *others = channels.reshape(groups, -1)
                    for other in others:
                        self.unite(first, other)
        if layer.activation is keras.activations.softmax:
            self.pin(out, f"{name} compares them by softmax")
        return out

    def _pass(self, layer, ids: np.ndarray, name: str) -> np.ndarray:
        if isinstance(layer, _LAYERS.BatchNormalization) and list(layer.axis) != [
            layer.input_spec.ndim - 1
        ]:
            raise ParameterError(f"layer {name} normalises another axis than the last")
        if getattr(layer, "activation", None) is keras.activations.softmax:
            self.pin(ids, f"{name} compares them by softmax")
        return ids

    def _elementwise(self, arguments: list[np.ndarray]) -> np.ndarray:
        width = max(map(len, arguments))
        first, *others = (ids for ids in arguments if len(ids) == width)
        for other in others:
            self.unite(first, other)
        # One channel for all others of the sum belongs to none of them.
        return first

    def _concatenate(self, node, arguments: list[np.ndarray]) -> np.ndarray:
        axis = node.layer.axis
        if axis in (-1, len(node.outputs.shape) - 1):
            return np.concatenate(arguments)
        return self._elementwise(arguments)

    def _reshape(self, node, ids: np.ndarray, name: str) -> np.ndarray:
        before, after = node.keras_inputs[0].shape[1:], node.outputs.shape[1:]
        if after[-1] == len(ids):
            return ids
        if self._pinned(ids):
            # Nothing of them can go, so it does not matter which value is whose.
            out = self.new(after[-1])
            self.pin(out, f"{name} makes them of channels that stay")
            return out
        if None in (*before, *after) or len(after) != 1:
            raise ParameterError(
                f"layer {name} reshapes {tuple(before)} to {tuple(after)}: its channels cannot be "
                "followed; keep the last axis, or flatten all of them"
            )
        return np.tile(ids, after[-1] // len(ids))
