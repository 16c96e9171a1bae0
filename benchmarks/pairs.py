"""Audio-visual pairs a second: made of videos, read out of shards, taken by a training step.

    python benchmarks/pairs.py [--videos DIR] [--output FILE.json]

Without --videos, made-up scenes of 10 s, 480 x 480 pixels at 25 a second, 48 kHz. Each part has a
process of its own. "made" decodes videos and writes shards, "read" is one epoch of shuffled batches
out of shards as training takes them, of a quarter of the pairs and of all: its memory must not grow
with the data. "taken" is a training step of a whole audio-visual network.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from children import peak, run_part

from l3prune.checks import check_whole
from l3prune.errors import command
from l3prune.files import make_folder, write_json
from l3prune.quiet import load_tensorflow

RATE, BATCH = 48000, 64

#: Of a training step: 64 pairs of the published network take more than 24 GB.
TAKEN = 16

#: The published network, and that of experiments/avc_scenes.py.
NETWORKS: dict[str, dict[str, Any]] = {
    "avc of mel256": {"audio": "mel256"},
    "avc of sea64, a quarter and an eighth of the filters": {
        "audio": "sea64",
        "audio_filters": [16, 16, 32, 32, 64, 64, 128, 128],
        "vision_filters": [8, 8, 16, 16, 32, 32, 64, 64],
    },
}


def make(videos: str, folder: str, pairs: str, workers: str) -> dict[str, Any]:
    from l3prune.datasets.making import Settings, make_shards

    settings = Settings(samples=int(pairs), batch_size=256, sample_rate=RATE)
    start = time.perf_counter()
    make_shards(videos, folder, settings, workers=int(workers), quiet=True)
    elapsed = time.perf_counter() - start
    size = sum(path.stat().st_size for path in Path(folder).rglob("*.h5"))
    return {"pairs_per_second": int(pairs) / elapsed, "bytes_per_pair": size / int(pairs)}


def read(folder: str, part: str) -> dict[str, Any]:
    from l3prune.datasets.avc import PairShards
    from l3prune.datasets.shards import find_shards
    from l3prune.windows import batch_indices

    paths = find_shards(folder)
    source = PairShards(paths[: round(float(part) * len(paths))], RATE)
    stream = batch_indices(source, BATCH, seed=0, first_batch=0)
    steps = len(source) // BATCH
    before, start = peak(), time.perf_counter()
    for _ in range(steps):
        source.read(next(stream))
    elapsed = time.perf_counter() - start
    return {
        "pairs": len(source),
        "pairs_per_second": steps * BATCH / elapsed,
        "peak_mb_before": before,
        "peak_mb": peak(),
    }


def take(network_name: str, steps: str) -> dict[str, Any]:
    load_tensorflow()
    import tf_keras as keras

    from l3prune.networks import create_network

    network = create_network("avc", **NETWORKS[network_name])
    network.compile(keras.optimizers.Adam(1e-5), "categorical_crossentropy", ["accuracy"])
    rng = np.random.default_rng(0)
    shapes = [tuple(tensor.shape[1:]) for tensor in network.inputs]
    inputs = [rng.uniform(-1, 1, (TAKEN, *shape)).astype(np.float32) for shape in shapes]
    labels = np.eye(2, dtype=np.float32)[rng.integers(0, 2, TAKEN)]
    times = []
    for _ in range(int(steps) + 1):
        start = time.perf_counter()
        network.train_on_batch(inputs, labels)
        times.append(time.perf_counter() - start)
    # The first step compiles.
    return {
        "seconds": times[1:],
        "pairs_per_second": TAKEN / float(np.median(times[1:])),
        "peak_mb": peak(),
    }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "read": read, "take": take}


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--videos", help="folder of videos (made-up scenes)")
    add("--pairs", type=int, default=2048, help="(%(default)s)")
    add("--steps", type=int, default=5, help="of training (%(default)s)")
    add("--output", help="JSON file for the figures")
    add("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        print(json.dumps(PARTS[args.part[0]](*args.part[1:])))
        return
    check_whole("--pairs", args.pairs, 1024)
    check_whole("--steps", args.steps, 1)
    rows: list[dict[str, Any]] = []

    def row(name: str, *words: object) -> None:
        rows.append({"part": name, **run_part(__file__, ["--part", *map(str, words)])})
        memory = f"{rows[-1]['peak_mb']:10.0f}" if "peak_mb" in rows[-1] else ""
        print(f"{name:64}{rows[-1]['pairs_per_second']:10.1f}{memory}", flush=True)

    print(f"{'':64}{'pairs / s':>10}{'peak MB':>10}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = args.videos
        if videos is None:
            from l3prune.datasets.scenes import make_scenes

            videos = make_scenes(
                folder / "videos",
                videos=40,
                seconds=10.0,
                sample_rate=RATE,
                frame_rate=25,
                size=480,
            )
        for workers in (1, 2):
            shards = make_folder(folder / f"shards{workers}")
            row(f"made, processes: {workers}", "make", videos, shards, args.pairs, workers)
        for part in (0.25, 1):
            row(f"read, {part * args.pairs:.0f} pairs", "read", shards, part)
        for network in NETWORKS:
            row(f"taken by {network}", "take", network, args.steps)
    if args.output:
        from l3prune.training import environment

        settings = {key: value for key, value in vars(args).items() if key != "part"}
        write_json(args.output, {"settings": settings, "environment": environment(), "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
