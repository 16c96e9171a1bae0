"""Step times of retraining: plain, masked, teacher in the loop, cached targets, tfmot's pruning.

    python benchmarks/training.py [--network mel256] [--batch-size 8] [--output FILE.json]

All variants live in one process and take turns, so that a change of the machine's speed meets them
alike; quote the ratios of medians. tfmot's `prune_low_magnitude` wraps the convolutions, at the
same sparsity in each, and has cached targets; its masks are made anew in every step, or in none of
those that are timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from l3prune.checks import check_whole
from l3prune.errors import command
from l3prune.files import write_json
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    import tf_keras as keras


def by_tfmot(network: keras.Model, frequency: int) -> Callable[..., Callable[[], object]]:
    """One training step of a network pruned by tfmot's wrappers, for windows and targets."""
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not isinstance(layer, keras.layers.Conv2D):
            return layer
        schedule = tfmot.sparsity.keras.ConstantSparsity(0.9545, 0, frequency=frequency)
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)

    pruned = keras.models.clone_model(network, clone_function=wrap)
    pruned.compile(keras.optimizers.Adam(1e-5), "mse", metrics=["mae"])
    update = tfmot.sparsity.keras.UpdatePruningStep()
    update.set_model(pruned)
    update.on_train_begin()

    def bind(windows: np.ndarray, targets: np.ndarray) -> Callable[[], object]:
        def step() -> object:
            update.on_train_batch_begin(0)
            return pruned.train_on_batch(windows, targets)

        return step

    return bind


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", default="mel256", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args(argv)
    check_whole("--rounds", args.rounds, 1)
    check_whole("--batch-size", args.batch_size, 1)

    load_tensorflow()
    import tf_keras as keras

    from l3prune import graph, plan, surgery
    from l3prune.networks import create_network, inference
    from l3prune.training import environment

    teacher = create_network(args.network)
    infer = inference(teacher)
    masks = plan.plan_global(graph.conv_weights(teacher), 0.9545)

    def student(masked: bool) -> keras.Model:
        network = surgery.apply_masks(teacher, masks)
        network = network if masked else surgery.strip_masks(network)
        network.compile(keras.optimizers.Adam(1e-5), "mse", metrics=["mae"])
        return network

    rng = np.random.default_rng(0)
    windows = rng.uniform(-0.5, 0.5, (args.batch_size, *teacher.input_shape[1:]))
    windows = windows.astype(np.float32)
    cached = infer(windows)
    plain, masked = student(False), student(True)
    every, once = by_tfmot(teacher, 1), by_tfmot(teacher, 10**9)
    variants: dict[str, Callable[[], object]] = {
        "plain Conv2D, cached targets": lambda: plain.train_on_batch(windows, cached),
        "MaskedConv2D, cached targets": lambda: masked.train_on_batch(windows, cached),
        "MaskedConv2D, teacher in the loop": lambda: masked.train_on_batch(windows, infer(windows)),
        "tfmot, new masks every step": every(windows, cached),
        "tfmot, masks kept": once(windows, cached),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(args.rounds + 1):
        for name, step in variants.items():
            start = time.perf_counter()
            step()
            if number:  # the first round compiles
                times[name].append(time.perf_counter() - start)
    base = np.median(times["MaskedConv2D, cached targets"])
    print(f"{args.network}, batch {args.batch_size}, {args.rounds} rounds, ms a step")
    print(f"{'':36}{'min':>8}{'median':>8}{'ratio':>8}")
    for name, seconds in times.items():
        ms = 1000 * np.array(seconds)
        print(f"{name:36}{ms.min():8.0f}{np.median(ms):8.0f}{np.median(ms) / base / 1000:8.3f}")
    if args.output:
        write_json(
            args.output,
            {"settings": vars(args), "environment": environment(), "seconds": times},
        )


if __name__ == "__main__":
    sys.exit(main())
