"""From which density on the sparse engine is slower than the dense one, from sound to embeddings.

    python benchmarks/engine_choice.py [--output FILE.json]

Networks pruned by magnitude to one sparsity in all layers embed the same sound by
`get_embedding` with engine "sparse", "dense" and "auto" in turns, in one process;
`engines.AUTO_DENSITY` is chosen from the ratios of medians. At 100 % nothing is pruned, and what
"auto" takes longer than "dense" is the price of the choice. Weights are random.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np

from l3prune.checks import check_whole
from l3prune.errors import ParameterError, command
from l3prune.files import write_json
from l3prune.quiet import load_tensorflow


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--networks", nargs="+", default=["mel256", "mel128", "sea512", "sea64"])
    add(
        "--densities",
        nargs="+",
        type=float,
        default=[5, 10, 20, 25, 30, 40, 60, 100],
        help="percent",
    )
    add("--seconds", nargs="+", type=float, default=[1, 4], help="of sound a call (%(default)s)")
    add("--rounds", type=int, default=7, help="(%(default)s)")
    add("--output", help="JSON file for the figures")
    args = parser.parse_args(argv)
    check_whole("--rounds", args.rounds, 1)
    if not all(0 < each <= 100 for each in args.densities):
        raise ParameterError("--densities are percents above 0 and up to 100")
    if not all(0 < each <= 3600 for each in args.seconds):
        raise ParameterError("--seconds are numbers above 0 and up to 3600")

    load_tensorflow()
    from l3prune import get_embedding, graph, plan, surgery
    from l3prune.engines import choose_engine
    from l3prune.networks import create_network
    from l3prune.training import environment

    rows = []
    rng = np.random.default_rng(0)
    print(
        f"{'network':10}{'left':>6}{'sound':>7}{'dense':>10}{'sparse':>10}{'ratio':>8}"
        f"{'auto':>10}{'ratio':>8}",
        flush=True,
    )
    for name in args.networks:
        whole = create_network(name)
        for percent in args.densities:
            masks = plan.plan_layerwise(graph.conv_weights(whole), 1 - percent / 100)
            network = surgery.strip_masks(surgery.apply_masks(whole, masks))
            rate = choose_engine(network).front_end.sample_rate
            for seconds in args.seconds:
                sound = rng.uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)
                times: dict[str, list[float]] = {"dense": [], "sparse": [], "auto": []}
                for number in range(args.rounds + 1):
                    # To and fro, so that none is always behind the same other.
                    for engine, each in list(times.items())[:: -1 if number % 2 else 1]:
                        start = time.perf_counter()
                        get_embedding(sound, rate, network, engine=engine)
                        if number:  # the first round compiles
                            each.append(1000 * (time.perf_counter() - start))
                dense, sparse, auto = (float(np.median(each)) for each in times.values())
                rows.append(
                    {
                        "network": name,
                        "density": percent / 100,
                        "seconds": seconds,
                        "dense_ms": times["dense"],
                        "sparse_ms": times["sparse"],
                        "auto_ms": times["auto"],
                        "ratio": sparse / dense,
                        "auto_ratio": auto / dense,
                    }
                )
                print(
                    f"{name:10}{percent:5.0f}%{seconds:6.0f}s{dense:10.1f}{sparse:10.1f}"
                    f"{sparse / dense:8.2f}{auto:10.1f}{auto / dense:8.2f}",
                    flush=True,
                )
    if args.output:
        write_json(
            args.output, {"settings": vars(args), "environment": environment(), "rows": rows}
        )


if __name__ == "__main__":
    sys.exit(main())
