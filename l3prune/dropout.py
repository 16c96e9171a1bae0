"""Dropout that a resumed run repeats: what is dropped is a function of the seed and the step."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from l3prune.channels import named_layers

#: (inputs, rate, noise shape) -> inputs with some values dropped, as Keras's own generators do it.
_Drop = Callable[..., Any]


class _Generator:
    """In the place of a layer's own random numbers, whose state no checkpoint could hold."""

    def __init__(self, drop: _Drop) -> None:
        self.dropout = drop


@contextlib.contextmanager
def by_step(network: keras.Model, seed: int, step: tf.Variable) -> Iterator[None]:
    """Within, a network's dropout layers draw by a seed, their names and a count of steps.

    Several devices, which have parts of one batch, drop different values of them.

    Parameters
    ----------
    network : keras.Model
        Compiled anew within, or not traced before.
    seed : int
    step : tf.Variable
        The optimizer's `iterations`.

    Examples
    --------
    >>> inputs = keras.Input((8,))
    >>> network = keras.Model(inputs, keras.layers.Dropout(0.5, name="drop")(inputs))
    >>> step = tf.Variable(3, dtype=tf.int64)
    >>> with by_step(network, 0, step):
    ...     first, again = (network(tf.ones((1, 8)), training=True) for _ in range(2))
    >>> bool((first.numpy() == again.numpy()).all())
    True
    """

    def drawn_for(name: str) -> _Drop:
        own = tf.constant(zlib.crc32(f"{seed} {name}".encode()), tf.int64)

        def drop(inputs, rate, noise_shape=None):
            context = tf.distribute.get_replica_context()
            replica = 0 if context is None else context.replica_id_in_sync_group
            count = tf.cast(step, tf.int64) * 1024 + tf.cast(replica, tf.int64)
            return tf.nn.experimental.stateless_dropout(
                inputs, rate, tf.stack([own, count]), noise_shape=noise_shape
            )

        return drop

    with _drawing(network, drawn_for):
        yield


@contextlib.contextmanager
def off(network: keras.Model) -> Iterator[None]:
    """Within, a network's dropout layers drop nothing, in training mode too.

    Examples
    --------
    >>> inputs = keras.Input((8,))
    >>> network = keras.Model(inputs, keras.layers.Dropout(0.5)(inputs))
    >>> with off(network):
    ...     network(tf.ones((1, 8)), training=True).numpy().sum()
    np.float32(8.0)
    """
    with _drawing(network, lambda name: lambda inputs, rate, noise_shape=None: inputs):
        yield


@contextlib.contextmanager
def _drawing(network: keras.Model, drop_for: Callable[[str], _Drop]) -> Iterator[None]:
    found = {
        name: layer
        for name, layer in named_layers(network)
        if isinstance(layer, keras.layers.Dropout)
    }
    own = {name: layer._random_generator for name, layer in found.items()}
    try:
        for name, layer in found.items():
            layer._random_generator = _Generator(drop_for(name))
        yield
    finally:
        for name, layer in found.items():
            layer._random_generator = own[name]
