"""Streams of training batches: how they are entered, shared, and given to TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune.errors import L3PruneError

#: One array, or one for each input of the network, in its order.
Inputs = np.ndarray | tuple[np.ndarray, ...]

#: first batch -> endless iterator of (inputs, targets), as `training.fit` takes it.
Batches = Callable[[int], Iterator[tuple[Inputs, np.ndarray]]]


@dataclass(frozen=True)
class Numbered:
    """A stream of batches of numbered windows, or pairs, which workers can share.

    Parameters
    ----------
    numbers : callable, first batch -> iterator of np.ndarray of int
        Which windows the batches have.
    read : callable, np.ndarray of int -> (inputs, targets)

    Examples
    --------
    >>> stream = Numbered(lambda first: iter([np.arange(4) + first]), lambda rows: (rows, -rows))
    >>> [inputs.tolist() for inputs, _ in stream()]
    [[0, 1, 2, 3]]
    """

    numbers: Callable[[int], Iterator[np.ndarray]]
    read: Callable[[np.ndarray], tuple[Inputs, np.ndarray]]

    def __call__(self, first: int = 0) -> Iterator[tuple[Inputs, np.ndarray]]:
        """The batches from the `first`-th on."""
        return map(self.read, self.numbers(first))

    def shared(self, parts: Callable[[int], list[slice]]) -> Numbered:
        """The stream of the parts that one worker takes of each batch; it reads no others."""

        def numbers(first: int) -> Iterator[np.ndarray]:
            for batch in self.numbers(first):
                for part in parts(len(batch)):
                    yield batch[part]

        return Numbered(numbers, self.read)


def one_at_a_time(batches: Batches) -> Batches:
    """A stream of batches whose readers wait for each other.

    Training reads ahead in a thread of its own while a `MaskUpdate` reads batches too, and the
    source that both read, a folder of shards say, keeps files open.

    Examples
    --------
    >>> stream = one_at_a_time(lambda first: iter([(first, 0), (first + 1, 0)]))
    >>> list(stream(5))
    [(5, 0), (6, 0)]
    """
    lock = threading.Lock()
    if isinstance(batches, Numbered):
        read = batches.read

        def read_alone(numbers: np.ndarray) -> tuple[Inputs, np.ndarray]:
            with lock:
                return read(numbers)

        return Numbered(batches.numbers, read_alone)

    def locked(first: int) -> Iterator[tuple[Inputs, np.ndarray]]:
        stream = batches(first)
        while True:
            with lock:
                batch = next(stream, None)
            if batch is None:
                return
            yield batch

    return locked


def signature(network: keras.Model) -> tuple[Any, tf.TensorSpec]:
    """What a batch of a network is to TensorFlow: inputs, one or a tuple, and targets.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> inputs, targets = signature(create_network("sea64"))
    >>> inputs.shape, targets.shape
    (TensorShape([None, 1, 8000]), TensorShape([None, 64]))
    """
    inputs, targets = (
        tuple(tf.TensorSpec((None, *tensor.shape[1:]), tf.float32) for tensor in tensors)
        for tensors in (network.inputs, network.outputs)
    )
    return inputs[0] if len(inputs) == 1 else inputs, targets[0]


@contextlib.contextmanager
def datasets(
    network: keras.Model, *streams: Callable[[], Iterator[Any]]
) -> Iterator[list[tf.data.Dataset]]:
    """Streams of batches as prefetched datasets; their own errors come out as they are.

    TensorFlow would turn a damaged file's message into a traceback of its own.

    Parameters
    ----------
    network : keras.Model
        Takes the batches.
    *streams : callable, () -> iterator of (inputs, targets)

    Yields
    ------
    datasets : list of tf.data.Dataset

    Raises
    ------
    L3PruneError
        What a stream raised; or it ended while a batch was asked of it.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", input="log_mel")
    >>> batch = np.zeros((2, 64, 50, 1), np.float32), np.zeros((2, 64), np.float32)
    >>> with datasets(network, lambda: iter([batch])) as (data,):
    ...     [targets.shape for _, targets in data]
    [TensorShape([2, 64])]
    """
    failures: list[L3PruneError] = []

    def guarded(stream: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        try:
            yield from stream()
        except L3PruneError as error:
            failures.append(error)
            raise

    try:
        yield [
            tf.data.Dataset.from_generator(
                functools.partial(guarded, stream), output_signature=signature(network)
            ).prefetch(2)
            for stream in streams
        ]
    except tf.errors.OpError as error:
        if failures:
            raise failures[0] from None
        if isinstance(error, tf.errors.OutOfRangeError):
            raise L3PruneError(
                "the training batches ended before the training did; give an endless stream"
            ) from None
        raise
