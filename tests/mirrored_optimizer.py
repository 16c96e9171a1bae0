"""HSPG on two devices and on one: python -m tests.mirrored_optimizer {sgd,adam} prints JSON."""

import json
import sys

import numpy as np
import tensorflow as tf

from l3prune.optimizers import HSPG


def main(direction):
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    rng = np.random.default_rng(9)
    start = rng.normal(0, 0.3, (6, 4)).astype("f")
    gradients = rng.normal(0, 1, (5, 2, 6, 4)).astype("f")

    def make():
        groups = [np.arange(6)[:, np.newaxis], np.arange(6)]
        optimizer = HSPG(0.1, groups, 0.8, direction, epsilon=0.85, prox_epochs=2)
        variables = [tf.Variable(start), tf.Variable(start[:, 0])]
        optimizer.build(variables)
        return optimizer, variables

    one, alone = make()
    with strategy.scope():
        both, shared = make()

    @tf.function
    def run(each):
        strategy.run(
            lambda g: both.apply_gradients([(g, shared[0]), (g[:, 0], shared[1])]), args=(each,)
        )

    for pair in gradients:
        whole = tf.constant(pair.sum(0))
        one.apply_gradients([(whole, alone[0]), (whole[:, 0], alone[1])])
        run(
            strategy.experimental_distribute_values_from_function(
                lambda context, pair=pair: tf.constant(pair[context.replica_id_in_sync_group])
            )
        )
    devices = [each.numpy() for each in shared[0].values]
    found = {
        "alone": alone[0].numpy().tolist(),
        "devices": [each.tolist() for each in devices],
        "zero": (devices[0] == 0).all(1).tolist(),
        "zero_alone": (alone[0].numpy() == 0).all(1).tolist(),
        "iterations": int(both.iterations.numpy()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
