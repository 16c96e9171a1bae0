"""A small network with masks, trained step by step, for tests."""

import numpy as np
import tf_keras as keras
from tf_keras import layers

from l3prune import graph
from l3prune.gradual import prunable


def small(filters=6):
    """Two masked convolutions, BatchNorm between them; weights that do not differ by run."""
    inputs = keras.Input((6, 6, 2))
    maps = layers.Conv2D(filters, 3, name="one", kernel_regularizer=keras.regularizers.l2(1e-2))(
        inputs
    )
    maps = layers.ReLU()(layers.BatchNormalization(name="norm")(maps))
    maps = layers.Conv2D(filters, 3, name="two")(maps)
    network = keras.Model(inputs, layers.GlobalAveragePooling2D()(maps))
    rng = np.random.default_rng(1)
    for layer in ("one", "two"):
        kernel = network.get_layer(layer).kernel
        kernel.assign(rng.normal(0, 0.3, kernel.shape))
    return prunable(network)


def stream(first=0, size=4, filters=6):
    """Endless batches; the n-th is always the same."""
    while True:
        rng = np.random.default_rng(first)
        yield (
            rng.normal(size=(size, 6, 6, 2)).astype(np.float32),
            rng.normal(size=(size, filters)).astype(np.float32),
        )
        first += 1


class Record(keras.callbacks.Callback):
    """Kernels and masks before every step, and at the end."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def look(self):
        convs = graph.convolutions(self.model)
        self.rows.append({name: (c.kernel.numpy(), c.mask.numpy()) for name, c in convs.items()})

    def on_train_batch_begin(self, batch, logs=None):
        self.look()

    def on_train_end(self, logs=None):
        self.look()


def train(network, pruner, steps, batches=stream):
    """Train step by step; what was there before and after the pruner's work at each step."""
    before, after = Record(), Record()
    network.compile(keras.optimizers.Adam(0.02), loss="mse")
    network.fit(batches(), steps_per_epoch=steps, callbacks=[before, pruner, after], verbose=0)
    return before.rows, after.rows


def assert_exact(rows):
    """Kernels are zero, to the bit, wherever the mask is False."""
    for row in rows:
        for kernel, mask in row.values():
            assert not kernel[~mask].view(np.uint32).any()


def sparse_mask(shape, keep=0.3, seed=0):
    return np.random.default_rng(seed).random(shape) < keep
