"""Scores of filters from data: what a network's filters do on batches of its input.

Where the criteria of `criteria` see weights, these run the network. Each gives scores as
`plan_filterwise` takes them: convolution -> (filters,), higher = keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune.channels import check_functional
from l3prune.errors import ParameterError
from l3prune.graph import convolutions

_LAYERS = keras.layers

#: Batches of (inputs, targets); what looks at no targets takes None for them.
Batches = Iterator[tuple[Any, Any]]

#: (targets, outputs) -> one value an example, or a mean over the batch.
Loss = Callable[[Any, Any], Any]

DataCriterion = Callable[[keras.Model, Batches], dict[str, np.ndarray]]

DATA_CRITERIA: dict[str, DataCriterion] = {}

_NONLINEARITIES = (
    *(_LAYERS.ReLU, _LAYERS.LeakyReLU, _LAYERS.ELU, _LAYERS.PReLU, _LAYERS.ThresholdedReLU),
    _LAYERS.Softmax,
)

#: May stand between a convolution and its non-linearity, and leave the channels what they are.
_BETWEEN = (
    *(_LAYERS.BatchNormalization, _LAYERS.LayerNormalization, _LAYERS.ActivityRegularization),
    *(_LAYERS.Dropout, _LAYERS.SpatialDropout2D, _LAYERS.GaussianNoise, _LAYERS.GaussianDropout),
    *(_LAYERS.MaxPooling2D, _LAYERS.AveragePooling2D, _LAYERS.GlobalMaxPooling2D),
    *(_LAYERS.GlobalAveragePooling2D, _LAYERS.ZeroPadding2D, _LAYERS.Cropping2D),
    *(_LAYERS.UpSampling2D, _LAYERS.Activation),
)

_ELEMENTWISE = (
    *(_LAYERS.Add, _LAYERS.Subtract, _LAYERS.Multiply, _LAYERS.Average),
    *(_LAYERS.Maximum, _LAYERS.Minimum),
)


def data_criterion(function: DataCriterion) -> DataCriterion:
    """Register `function` under its name (a decorator).

    Examples
    --------
    >>> data_criterion(apoz) is DATA_CRITERIA["apoz"]
    True
    """
    DATA_CRITERIA[function.__name__] = function
    return function


@data_criterion
def mean_activation(network: keras.Model, batches: Batches) -> dict[str, np.ndarray]:
    """Mean magnitude of each filter's activation over all examples and positions.

    The activation is what comes out of the first non-linearity behind the convolution, its
    channel that the filter is in; behind a residual sum that is the sum's. It is the convolution's
    own output where no non-linearity comes before the next layer that mixes channels.

    Parameters
    ----------
    network : keras.Model
        Functional, channels last. It runs in inference mode and is not changed.
    batches : iterator of (inputs, targets)
        Of any sizes; read one at a time. Targets are not looked at.

    Returns
    -------
    scores : dict of str to np.ndarray, (filters,) float64
        Convolution -> scores, in the network's order; `graph.convolutions` names them.

    Raises
    ------
    ParameterError
        The network is not functional, has no convolutions, or a batch does not fit it; or there
        are no batches.

    Examples
    --------
    >>> inputs = keras.Input((1, 2, 1))
    >>> conv = keras.layers.Conv2D(2, 1, activation="relu", name="conv")
    >>> network = keras.Model(inputs, conv(inputs))
    >>> network.set_weights([np.array([[[[1.0, -2.0]]]]), np.zeros(2)])
    >>> mean_activation(network, iter([(np.array([[[[3.0], [-1.0]]]]), None)]))["conv"].tolist()
    [1.5, 1.0]
    """
    return _mean_of(network, batches, tf.abs)


@data_criterion
def apoz(network: keras.Model, batches: Batches) -> dict[str, np.ndarray]:
    """One less the average percentage of zeros of each filter's activation (Hu et al., 2016).

    Activations are `mean_activation`'s. A zero is what a ReLU would make zero, so that filters
    with another non-linearity, or none, can be ranked as well.

    Parameters
    ----------
    network : keras.Model
    batches : iterator of (inputs, targets)
        As `mean_activation`.

    Returns
    -------
    scores : dict of str to np.ndarray, (filters,) float64 in [0, 1]

    Raises
    ------
    ParameterError
        As `mean_activation`.

    Examples
    --------
    >>> inputs = keras.Input((1, 4, 1))
    >>> conv = keras.layers.Conv2D(1, 1, activation="relu", kernel_initializer="ones", name="conv")
    >>> batch = np.array([[[[3.0], [-1.0], [2.0], [4.0]]]]), None
    >>> apoz(keras.Model(inputs, conv(inputs)), iter([batch]))["conv"].tolist()
    [0.75]
    """
    return _mean_of(network, batches, lambda activation: tf.cast(activation > 0, tf.float32))


@data_criterion
def taylor(
    network: keras.Model, batches: Batches, loss: Loss | None = None
) -> dict[str, np.ndarray]:
    """By how much a loss would change without a filter, to first order (Molchanov et al., 2017).

    |mean over positions of activation * gradient of the loss|, for each example by itself, then the
    mean over all examples. Activations are `mean_activation`'s.

    Parameters
    ----------
    network : keras.Model
    batches : iterator of (inputs, targets)
        As `mean_activation`; targets as the loss takes them.
    loss : callable, (targets, outputs) -> tensor, or None
        Of TensorFlow operations: one value an example, or their mean over the batch. None is the
        mean squared distance of the embedding from the targets, such as a teacher's embedding. At
        the targets themselves its gradient is zero, and with it all scores.

    Returns
    -------
    scores : dict of str to np.ndarray, (filters,) float64

    Raises
    ------
    ParameterError
        As `mean_activation`.

    Examples
    --------
    >>> inputs = keras.Input((1, 2, 1))
    >>> conv = keras.layers.Conv2D(2, 1, activation="relu", name="conv")
    >>> network = keras.Model(inputs, conv(inputs))
    >>> network.set_weights([np.array([[[[1.0, 2.0]]]]), np.zeros(2)])
    >>> batch = np.array([[[[3.0], [1.0]]]]), np.zeros((1, 1, 2, 2))
    >>> taylor(network, iter([batch]))["conv"].tolist()
    [2.5, 10.0]
    """
    loss = _squared_distance if loss is None else loss

    def sums(inputs, targets):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            run = _Run(network, tape.watch)
            outputs = run(inputs)
            examples = tf.cast(tf.shape(inputs[0])[0], tf.float32)
            # The sum over examples, whose gradients do not depend on who else is in the batch.
            total = examples * tf.reduce_mean(
                tf.cast(loss(targets, outputs[0] if len(outputs) == 1 else outputs), tf.float32)
            )
        sites = run.sites()
        gradients = tape.gradient(
            total,
            [site.tensor for site in sites],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return _by_layer(
            (
                site.name,
                tf.abs(_positions_mean(site.of(_float(site.tensor) * _float(gradient)))),
            )
            for site, gradient in zip(sites, gradients, strict=True)
        )

    return _stream(network, batches, sums, with_targets=True)


def _squared_distance(targets, outputs):
    difference = tf.cast(outputs, tf.float32) - targets
    return tf.reduce_mean(tf.reshape(difference**2, (tf.shape(difference)[0], -1)), axis=1)


def _mean_of(network: keras.Model, batches: Batches, function) -> dict[str, np.ndarray]:
    def sums(inputs, targets):
        run = _Run(network)
        run(inputs)
        return _by_layer(
            (site.name, _positions_mean(site.of(function(_float(site.tensor)))))
            for site in run.sites()
        )

    return _stream(network, batches, sums, with_targets=False)


def _float(tensor):
    # Half precision cannot sum what it can hold.
    return tf.cast(tensor, tf.float32)


def _positions_mean(tensor):
    """(examples, filters): the mean over all axes between the first and the last."""
    return tf.reduce_mean(tensor, axis=list(range(1, len(tensor.shape) - 1)))


def _by_layer(rows) -> dict[str, Any]:
    """Sums over the examples, (filters,) float64, and over the places where a layer is called."""
    found: dict[str, list[Any]] = {}
    for name, each in rows:
        found.setdefault(name, []).append(tf.reduce_sum(tf.cast(each, tf.float64), axis=0))
    return {name: tf.add_n(each) / len(each) for name, each in found.items()}


def _stream(network: keras.Model, batches: Batches, sums, with_targets: bool):
    """Means over all examples of what `sums` gives for a batch."""
    check_functional(network)
    names = list(convolutions(network))
    if not names:
        raise ParameterError(f"network {network.name} has no convolutions to score")
    # A graph: activations are let go as soon as nobody needs them. And one for all batch sizes.
    compute = tf.function(sums, reduce_retracing=True)
    total = {name: np.zeros(0) for name in names}
    examples = 0
    for number, (inputs, targets) in enumerate(batches, start=1):
        arrays = _check_inputs(network, inputs, number)
        if with_targets:
            targets = tf.nest.map_structure(
                lambda each: tf.convert_to_tensor(_single(each)), targets
            )
        batch = compute(arrays, targets if with_targets else None)
        for name in names:
            value = batch[name].numpy()
            total[name] = total[name] + value if total[name].size else value
        examples += len(arrays[0])
    if not examples:
        raise ParameterError("there are no batches to score filters on; give at least one example")
    return {name: value / examples for name, value in total.items()}


def _single(array) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _check_inputs(network: keras.Model, inputs, number: int) -> list[Any]:
    arrays = [np.asarray(each, np.float32) for each in tf.nest.flatten(inputs)]
    wanted = [tuple(tensor.shape) for tensor in network.inputs]
    if len(arrays) != len(wanted) or any(
        len(array.shape) != len(shape)
        or any(known not in (None, size) for size, known in zip(array.shape, shape, strict=True))
        for array, shape in zip(arrays, wanted, strict=True)
    ):
        raise ParameterError(
            f"batch {number} has inputs of shapes {[array.shape for array in arrays]}; network "
            f"{network.name} takes {wanted}"
        )
    return [tf.constant(array) for array in arrays]


@dataclass
class _Site:
    """A tensor that has a convolution's channels, from `start` on: its output, until better."""

    name: str
    filters: int
    tensor: Any
    start: int = 0
    done: bool = False

    def of(self, tensor):
        return tensor[..., self.start : self.start + self.filters]


class _Run:
    """Runs a network layer by layer in inference mode, and finds its convolutions' activations."""

    def __init__(self, network: keras.Model, watch: Callable[[Any], None] | None = None):
        self.network = network
        self.watch = watch
        self.names = {id(layer): name for name, layer in convolutions(network).items()}
        self.found: list[_Site] = []

    def __call__(self, inputs: list[Any]) -> list[Any]:
        self.found = []
        return [
            tensor for tensor, _ in self._network(self.network, [(each, []) for each in inputs])
        ]

    def sites(self) -> list[_Site]:
        """One for each place where a convolution is called."""
        return self.found

    def _network(self, network: keras.Model, inputs: list[Any]) -> list[Any]:
        """Tensors with the (site, first channel) pairs that they carry, of a network's outputs."""
        known = dict(zip(map(id, network.inputs), inputs, strict=True))
        for depth in sorted(network._nodes_by_depth, reverse=True):
            for node in network._nodes_by_depth[depth]:
                if not node.is_input:
                    arguments = [known[id(tensor)] for tensor in node.keras_inputs]
                    results = self._call(node, arguments)
                    known.update(zip(map(id, tf.nest.flatten(node.outputs)), results, strict=True))
        return [known[id(tensor)] for tensor in network.outputs]

    def _call(self, node, arguments: list[Any]) -> list[Any]:
        layer = node.layer
        if isinstance(layer, keras.Model):
            check_functional(layer)
            return self._network(layer, arguments)
        # Keras pops one for each use.
        values = {
            str(id(tensor)): [value] * len(arguments)
            for tensor, (value, _) in zip(node.keras_inputs, arguments, strict=True)
        }
        args, kwargs = node.map_arguments(values)
        if layer._expects_training_arg:
            kwargs["training"] = False
        outputs = tf.nest.flatten(layer(*args, **kwargs))
        if len(outputs) != 1:
            return [(each, []) for each in outputs]
        return [(outputs[0], self._carried(layer, outputs[0], arguments))]

    def _carried(self, layer, output, arguments: list[Any]) -> list[tuple[_Site, int]]:
        activation = getattr(layer, "activation", None)
        linear = activation in (None, keras.activations.linear)
        if id(layer) in self.names:
            site = _Site(self.names[id(layer)], layer.filters, output, done=not linear)
            self.found.append(site)
            self._watch(output)
            return [] if site.done else [(site, 0)]
        carried = [pair for _, pairs in arguments for pair in pairs]
        if isinstance(layer, _NONLINEARITIES) or (
            isinstance(layer, _LAYERS.Activation) and not linear
        ):
            for site, start in carried:
                if not site.done:
                    site.tensor, site.start, site.done = output, start, True
                    self._watch(output)
            return []
        if isinstance(layer, _LAYERS.Concatenate):
            if layer.axis not in (-1, len(output.shape) - 1):
                return carried
            starts = np.cumsum([0, *(tensor.shape[-1] for tensor, _ in arguments)])
            return [
                (site, int(first) + start)
                for first, (_, pairs) in zip(starts[:-1], arguments, strict=True)
                for site, start in pairs
            ]
        if isinstance(layer, _ELEMENTWISE):
            # One channel that all others are multiplied by has none of them.
            width = output.shape[-1]
            return [
                each for tensor, pairs in arguments if tensor.shape[-1] == width for each in pairs
            ]
        return carried if isinstance(layer, _BETWEEN) else []

    def _watch(self, tensor) -> None:
        if self.watch is not None:
            self.watch(tensor)
