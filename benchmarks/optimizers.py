"""Step times of sparse optimizers against plain descent: the same network, batch and process.

    python benchmarks/optimizers.py [--network resnet50] [--batch-size 4] [--output FILE.json]

All take turns, so that a change of the machine's speed meets them alike; quote the ratios of
medians. Besides a whole training step, the optimizer's part alone is timed, on fixed gradients.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from l3prune.checks import check_whole
from l3prune.configs import json_object
from l3prune.descent import Descent
from l3prune.errors import command
from l3prune.files import write_json
from l3prune.quiet import load_tensorflow

#: Name -> settings; the half-space stage begins at once, so that it is what is timed.
WAYS = {
    "sgd": Descent("sgd"),
    "adam": Descent("adam"),
    "proxsg": Descent("proxsg", 1e-3),
    "hspg": Descent("hspg", 1e-3, epsilon=0.5, prox_steps=0),
    "hspg, adam's direction": Descent("hspg", 1e-3, 0.5, "adam", prox_steps=0),
    "obproxsg": Descent("obproxsg", 1e-3, prox_steps=0),
}

PLAIN = "sgd"


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", default="resnet50", help="(%(default)s)")
    parser.add_argument(
        "--network-arguments",
        type=json_object,
        default={"input": "log_mel", "bands": 128, "seconds": 5},
        metavar="JSON",
        help="(%(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=4, help="inputs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args(argv)
    check_whole("--rounds", args.rounds, 1)
    check_whole("--batch-size", args.batch_size, 1)

    load_tensorflow()
    import tensorflow as tf

    from l3prune.networks import create_network
    from l3prune.recipes import Recipe
    from l3prune.training import environment
    from l3prune.zero_filters import make_optimizer

    network = create_network(args.network, **args.network_arguments)
    rng = np.random.default_rng(0)
    inputs = rng.normal(0, 1, (args.batch_size, *network.input_shape[1:])).astype(np.float32)
    targets = np.eye(network.output_shape[1], dtype=np.float32)[: args.batch_size]
    variables = network.trainable_variables

    @tf.function
    def gradients(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(-tf.reduce_sum(y * tf.math.log(network(x, True) + 1e-7), 1))
        return tape.gradient(loss, variables)

    # One function for all: steps differ in the optimizer alone.
    found = gradients.get_concrete_function(tf.constant(inputs), tf.constant(targets))
    fixed = found(tf.constant(inputs), tf.constant(targets))

    def steps(descent: Descent) -> tuple[Callable[[], object], Callable[[], object]]:
        """A training step, and the optimizer's part of it."""
        optimizer = make_optimizer(Recipe(descent=descent, learning_rate=1e-6), network, 1)
        optimizer.build(variables)
        apply = tf.function(
            lambda *given: optimizer.apply_gradients(zip(given, variables, strict=True))
        ).get_concrete_function(*(tf.TensorSpec(each.shape, each.dtype) for each in fixed))

        def step() -> object:
            return apply(*found(tf.constant(inputs), tf.constant(targets))).numpy()

        return step, lambda: apply(*fixed).numpy()

    made = {name: steps(descent) for name, descent in WAYS.items()}
    times: dict[str, dict[str, list[float]]] = {
        part: {name: [] for name in made} for part in ("step", "update")
    }
    for number in range(args.rounds + 1):
        for name, pair in made.items():
            for part, call in zip(times, pair, strict=True):
                start = time.perf_counter()
                call()
                if number:  # the first round compiles
                    times[part][name].append(time.perf_counter() - start)
    print(f"{args.network}, batch {args.batch_size}, {args.rounds} rounds, ms, medians")
    print(f"{'':26}{'step':>10}{'ratio':>8}{'update':>10}")
    base = np.median(times["step"][PLAIN])
    for name in made:
        step, update = (float(np.median(times[part][name])) for part in ("step", "update"))
        print(f"{name:26}{1000 * step:10.0f}{step / base:8.3f}{1000 * update:10.1f}")
    if args.output:
        settings = {"settings": vars(args), "environment": environment()}
        write_json(args.output, {**settings, "seconds": times})


if __name__ == "__main__":
    sys.exit(main())
