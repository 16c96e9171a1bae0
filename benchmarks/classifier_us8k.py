"""Memory and time of cross-validating the perceptron on features of US8K's size.

    python benchmarks/classifier_us8k.py [--folds 1 2] [--epochs 10] [--output FILE.json]

The features are made up: 8,732 clips in 10 folds with US8K's class sizes, 31 frames of 512 values
each (4 s, 0.1 s apart), normal noise around a centre per class and an offset per clip. They are
written as files first and read as real ones are, so that reading counts too. The default takes
about half an hour on two cores, and 0.6 GB in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from classifier.features import read_features, versions
from classifier.inputs import Inputs
from classifier.mlp import Recipe
from classifier.results import CrossValidation
from classifier.train import train_fold
from l3prune.errors import command
from l3prune.files import make_folder, write_json
from l3prune.quiet import load_tensorflow

#: Clips of each class in US8K.
CLASS_SIZES = {
    "air_conditioner": 1000,
    "car_horn": 429,
    "children_playing": 1000,
    "dog_bark": 1000,
    "drilling": 1000,
    "engine_idling": 1000,
    "gun_shot": 374,
    "jackhammer": 1000,
    "siren": 929,
    "street_music": 1000,
}
FOLDS, FRAMES, DIMENSION = 10, 31, 512


def write_features(folder: Path, seed: int) -> None:
    """The files that `python -m classifier features` would have written."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 0.15, (len(CLASS_SIZES), DIMENSION))
    clips: dict[str, list[str]] = {str(fold): [] for fold in range(1, FOLDS + 1)}
    number = 0
    for target, size in enumerate(CLASS_SIZES.values()):
        for _ in range(size):
            fold, name = number % FOLDS + 1, f"{number}-{target}-0-0"
            offset = centres[target] + rng.normal(0, 1, DIMENSION)
            frames = rng.standard_normal((FRAMES, DIMENSION), np.float32) + offset
            clips[str(fold)].append(name)
            path = make_folder(folder / f"fold{fold}") / f"{name}.npz"
            np.savez(path, X=frames.astype(np.float32), y=np.int64(target))
            number += 1
    description = {
        "dataset": "us8k",
        "labels": list(CLASS_SIZES),
        "model": "none",
        "model_sha256": "",
        "hop_size": 0.1,
        "versions": versions(),
        "clips": clips,
    }
    write_json(folder / "features.json", description)


def peak_gb() -> float:
    """Largest resident set of this process so far, in GB (10^9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(1, FOLDS + 1)))
    parser.add_argument("--epochs", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="frames (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args(argv)

    load_tensorflow()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_features(folder / "features", args.seed)
        written = time.monotonic()
        features = read_features(folder / "features")
        read = time.monotonic()
        print(f"features: written in {written - start:.0f} s, read in {read - written:.0f} s")
        print(f"peak so far {peak_gb():.2f} GB", flush=True)
        # Patience as long as the run: every fold does the same work.
        recipe = Recipe(epochs=args.epochs, batch_size=args.batch_size, patience=args.epochs)
        rows, results = [], []
        print(f"{'fold':>4}{'seconds':>9}{'peak GB':>9}{'accuracy':>10}")
        for fold in args.folds:
            begin = time.monotonic()
            result = train_fold(
                features, fold, folder / "results", recipe=recipe, inputs=Inputs(), quiet=True
            )
            results.append(result)
            rows.append(
                {
                    "fold": fold,
                    "seconds": time.monotonic() - begin,
                    "peak_gb": peak_gb(),
                    "accuracy": result.accuracy,
                }
            )
            print("{fold:>4}{seconds:9.0f}{peak_gb:9.2f}{accuracy:10.3f}".format(**rows[-1]))
            sys.stdout.flush()
        summary = CrossValidation(tuple(results))
        total = time.monotonic() - read
    print(f"all {total:.0f} s, peak {peak_gb():.2f} GB, accuracy {summary.accuracy:.3f}")
    if args.output:
        write_json(
            args.output,
            {
                "settings": {key: value for key, value in vars(args).items() if key != "output"},
                "clips": len(features.names),
                "frames_per_clip": FRAMES,
                "dimension": DIMENSION,
                "cores": os.cpu_count(),
                "versions": versions(),
                "read_seconds": read - written,
                "folds": rows,
                "total_seconds": total,
                "peak_gb": peak_gb(),
            },
        )


if __name__ == "__main__":
    sys.exit(main())
