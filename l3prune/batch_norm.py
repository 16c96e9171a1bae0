"""BatchNorm's statistics: measured on training data, and used as they are while weights train."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tf_keras as keras

from l3prune import dropout
from l3prune.batches import Batches, Inputs


def measure_batch_norm(
    network: keras.Model, batches: Iterator[tuple[Inputs, np.ndarray]], count: int
) -> None:
    """Set the BatchNorm statistics of a network to the means over some batches, in place.

    Those of layers that are not trainable stay as they are.

    Parameters
    ----------
    network : keras.Model
    batches : iterator of (inputs, targets)
        Inputs as the network takes them; targets are not looked at.
    count : int
        How many batches to take, at least 1.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", input="log_mel", filters=[1] * 8)
    >>> x = np.full((2, 64, 50, 1), -3, np.float32)
    >>> measure_batch_norm(network, iter([(x, None)]), 1)
    >>> network.get_layer("batch_normalization_1").moving_mean.numpy()
    array([-3.], dtype=float32)
    """
    layers = trained_norms(network)
    momenta = [layer.momentum for layer in layers]
    # As inference has it, nothing is dropped.
    with dropout.off(network):
        for number in range(count):
            inputs, _ = next(batches)
            for layer in layers:
                layer.momentum = number / (number + 1)  # so that every batch counts alike
            network(inputs, training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def trained_norms(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorm layers of a network that are trainable.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> len(trained_norms(create_network("sea64")))
    9
    """
    return [
        layer
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]


def measure_and_freeze(
    network: keras.Model,
    norms: list[keras.layers.BatchNormalization],
    batches: Batches,
    count: int,
    first: int,
) -> None:
    """Measure on so many batches from the `first` on, and use what was measured from then on.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", input="log_mel", filters=[1] * 8)
    >>> x = np.full((2, 64, 50, 1), -3, np.float32)
    >>> measure_and_freeze(network, trained_norms(network), lambda first: iter([(x, None)]), 1, 0)
    >>> trained_norms(network)
    []
    """
    set_trainable(norms, True)  # or the batches would not count
    measure_batch_norm(network, batches(first), count)
    set_trainable(norms, False)


def set_trainable(norms: list[keras.layers.BatchNormalization], trainable: bool) -> None:
    """Let layers be trained, or compute in training as inference does, which is the same in Keras.

    Examples
    --------
    >>> set_trainable([], False)
    """
    for layer in norms:
        layer.trainable = trainable
