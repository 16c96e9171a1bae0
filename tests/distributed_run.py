"""A small training run on one device or several: python -m tests.distributed_run FOLDER [options].

It goes on with what it finds in the folder. "step N" on its output says that a step has been made.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from l3prune import checkpoints, devices, graph
from l3prune.arguments import device_options
from l3prune.batches import Numbered
from l3prune.checkpoints import LATEST, Keeper
from l3prune.errors import command
from l3prune.gradual import GradualPruning, sparsity_schedule
from l3prune.networks import create_network
from l3prune.recipes import Recipe
from l3prune.rigl import RigL
from l3prune.training import fit
from tests.test_gradual_runs import student

STEPS, EPOCHS, BATCH = 6, 3, 4
PRUNERS = {
    "gradual": lambda: GradualPruning(
        sparsity_schedule("polynomial", 0.7, end_step=9, frequency=4)
    ),
    "rigl": lambda: RigL(12, frequency=4, alpha=1.0),
}


def read(numbers):
    each = [np.random.default_rng(int(number)) for number in numbers]
    x = np.float32([rng.uniform(-80, 0, (64, 50, 1)) for rng in each]).reshape(-1, 64, 50, 1)
    return x, np.float32([rng.normal(size=4) for rng in each]).reshape(-1, 4)


def numbers(first):
    while True:
        yield np.arange(first * BATCH, (first + 1) * BATCH)
        first += 1


def tell_steps():
    checkpoints._AGREE_EVERY = 0.1  # runs here take a second
    ended = Keeper.on_train_batch_end

    def told(self, batch, logs=None):
        print("step", batch, flush=True)
        time.sleep(0.05)
        ended(self, batch, logs)

    Keeper.on_train_batch_end = told


@command
def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    device_options(parser)
    parser.add_argument("--devices", type=int, default=1, help="into which the CPU is split")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-norm", default="train")
    parser.add_argument("--pruner", choices=sorted(PRUNERS))
    parser.add_argument("--other-filters", action="store_true", help="of all but the chief")
    args = parser.parse_args(argv)
    (cpu,) = tf.config.list_physical_devices("CPU")
    logical = [tf.config.LogicalDeviceConfiguration()] * args.devices
    tf.config.set_logical_device_configuration(cpu, logical)
    here = devices.begin(args.distribute, args.precision, args.xla)
    network = student()
    if args.other_filters and not here.chief:
        network = create_network("sea64", input="log_mel", filters=[4] * 7 + [3])
    elif not here.chief:  # whose weights are to count
        network.get_layer("conv_1").kernel.assign_add(
            tf.ones_like(network.get_layer("conv_1").kernel)
        )
    pruner = PRUNERS[args.pruner]() if args.pruner else None
    trained = here.copy(network)
    seen = []

    def remembered(rows):
        seen.extend(rows.tolist())
        return read(rows)

    tell_steps()
    history = fit(
        trained,
        Numbered(numbers, remembered),
        # The last of them has fewer windows than there are devices.
        Numbered(lambda first: iter([np.arange(900, 905), np.array([905])]), read),
        STEPS,
        args.folder,
        Recipe(epochs=EPOCHS, learning_rate=args.learning_rate, batch_norm=args.batch_norm),
        pruner=pruner,
        devices=here,
        resume=(args.folder / LATEST).is_file(),
        quiet=True,
    )
    name = f"worker{here.worker}"
    masks = {layer: mask.astype(np.uint8) for layer, mask in graph.masks(trained).items()}
    np.savez(args.folder / f"{name}.npz", rows=seen, **masks)
    print("epochs", len(history), flush=True)


if __name__ == "__main__":
    sys.exit(main())
