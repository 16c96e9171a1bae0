"""Two workers against one: step times, what sharing a batch costs, and what an agreement does.

    python benchmarks/workers.py [--networks mel256 sea64] [--batch-size 8] [--output FILE.json]

Each worker is a process with one thread, as is the one that it is compared with; on two cores they
take one each, and talk by way of the local network. "half" has the batch of one worker, so that
each takes half of it; "twice" has the same number of windows for each worker. An efficiency of 1
would be twice the windows a second. All take turns, in rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from l3prune.checks import check_whole
from l3prune.errors import L3PruneError, command
from l3prune.files import write_json
from l3prune.quiet import load_tensorflow


def measure(name: str, batch_size: int, steps: int) -> dict[str, Any]:
    """Seconds of this worker's steps, the first of which compile."""
    load_tensorflow()
    import tensorflow as tf
    import tf_keras as keras

    from l3prune import devices
    from l3prune.networks import create_network

    here = devices.begin("multiworker" if "TF_CONFIG" in os.environ else "none")
    network = here.copy(create_network(name))
    (part,) = here.parts(batch_size)
    rows = part.stop - part.start
    rng = np.random.default_rng(here.worker)
    windows = rng.uniform(-1, 1, (rows, *network.input_shape[1:])).astype(np.float32)
    targets = rng.normal(size=(rows, *network.output_shape[1:])).astype(np.float32)
    data = here.take(tf.data.Dataset.from_tensors((windows, targets)).repeat())
    times, agreements = [], []
    with here.scope():
        network.compile(keras.optimizers.Adam(1e-5), "mse", ["mae"])
        step, iterator = network.make_train_function(), iter(data)
        for _ in range(steps + 2):
            start = time.perf_counter()
            float(step(iterator)["loss"])
            times.append(time.perf_counter() - start)
    for _ in range(20):
        start = time.perf_counter()
        here.total(np.zeros(4))
        agreements.append(time.perf_counter() - start)
    values = sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
    return {"seconds": times[2:], "agreement": agreements, "gradient_mb": values * 4 / 1e6}


def run(words: Sequence[str], workers: int) -> dict[str, Any]:
    """What the first of so many processes measured."""
    servers = [socket.create_server(("localhost", 0)) for _ in range(workers)]
    hosts = [f"localhost:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    alone = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    started = []
    for worker in range(workers):
        variables = {**os.environ, **alone, "TF_CPP_MIN_LOG_LEVEL": "2"}
        if workers > 1:
            task = {"type": "worker", "index": worker}
            variables["TF_CONFIG"] = json.dumps({"cluster": {"worker": hosts}, "task": task})
        line = [sys.executable, __file__, "--part", *words]
        kept = subprocess.PIPE if worker == 0 else subprocess.DEVNULL
        started.append(
            subprocess.Popen(line, stdout=kept, stderr=subprocess.DEVNULL, env=variables)
        )
    shown, _ = started[0].communicate()
    if any(process.wait() for process in started):
        raise L3PruneError(f"a worker of {' '.join(words)} failed")
    return json.loads(shown.decode().splitlines()[-1])


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--networks", nargs="+", default=["mel256", "sea64"], help="(%(default)s)")
    add("--batch-size", type=int, default=8, help="of one worker (%(default)s)")
    add("--steps", type=int, default=4, help="timed in each turn (%(default)s)")
    add("--rounds", type=int, default=2, help="(%(default)s)")
    add("--output", help="JSON file for the figures")
    add("--part", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        name, *sizes = args.part
        print(json.dumps(measure(name, *map(int, sizes))))
        return
    check_whole("--batch-size", args.batch_size, 2)
    check_whole("--steps", args.steps, 1)
    check_whole("--rounds", args.rounds, 1)
    ways = {
        "one worker": (1, args.batch_size),
        "two workers, half": (2, args.batch_size),
        "two workers, twice": (2, 2 * args.batch_size),
    }
    rows = []
    print(f"{'':28}{'batch':>6}{'least s':>10}{'windows/s':>11}{'efficiency':>12}", flush=True)
    for name in args.networks:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, (workers, batch) in ways.items():
                found[way].append(run([name, str(batch), str(args.steps)], workers))
        base = 0.0
        for way, (workers, batch) in ways.items():
            seconds = [each for turn in found[way] for each in turn["seconds"]]
            # Other work on the machine only ever adds.
            rate = batch / min(seconds)
            base = base or rate
            agreements = [each for turn in found[way] for each in turn["agreement"]]
            rows.append(
                {
                    "network": name,
                    "way": way,
                    "workers": workers,
                    "batch_size": batch,
                    "seconds": seconds,
                    "windows_per_second": rate,
                    "efficiency": rate / (workers * base),
                    "agreement_ms": 1e3 * float(np.median(agreements)),
                    "gradient_mb": found[way][0]["gradient_mb"],
                }
            )
            print(
                f"{name + ', ' + way:28}{batch:6}{min(seconds):10.3f}{rate:11.2f}"
                f"{rows[-1]['efficiency']:12.2f}",
                flush=True,
            )
    if args.output:
        from l3prune.training import environment

        settings = {key: value for key, value in vars(args).items() if key != "part"}
        write_json(args.output, {"settings": settings, "environment": environment(), "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
