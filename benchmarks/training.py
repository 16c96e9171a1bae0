"""Step times of retraining: plain, masked, with the teacher in the loop, with cached targets.

    python benchmarks/training.py [--network mel256] [--batch-size 8] [--output FILE.json]

All variants live in one process and take turns, so that a change of the machine's speed meets them
alike; quote the ratios of medians.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from l3prune.errors import command
from l3prune.files import write_json
from l3prune.quiet import load_tensorflow


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", default="mel256", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args(argv)

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
    variants: dict[str, Callable[[], object]] = {
        "plain Conv2D, cached targets": lambda: plain.train_on_batch(windows, cached),
        "MaskedConv2D, cached targets": lambda: masked.train_on_batch(windows, cached),
        "MaskedConv2D, teacher in the loop": lambda: masked.train_on_batch(windows, infer(windows)),
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
