"""Memory and speed of embeddings: many calls, an hour of sound, OpenL3's largest network.

    python benchmarks/embedding.py MODEL [--output FILE.json]

Each part runs in a process of its own, so that its peak memory is its own. The hour is noise in
stereo at 44.1 kHz, 635 MB on disk, embedded every 0.1 s; MODEL is best a small network, such as
edgel3:sea-64, which takes some minutes for it.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from children import run_part

from l3prune.checks import check_whole
from l3prune.errors import command
from l3prune.files import write_json
from l3prune.quiet import load_tensorflow

MB = 2**20


def calls(model: str, count: int) -> dict[str, Any]:
    """Resident memory after the first, second, … tenth of so many calls on clips of all lengths."""
    from l3prune.embedding import L3PruneWarning, get_embedding, load_model

    warnings.simplefilter("ignore", L3PruneWarning)
    rng = np.random.default_rng(0)
    clip = rng.uniform(-0.5, 0.5, 5 * 44100).astype(np.float32)
    load_model(model)
    resident = []
    start = time.perf_counter()
    for number in range(count):
        length = int(rng.integers(1000, len(clip)))
        get_embedding(clip[:length], (8000, 44100, 48000)[number % 3], model=model, hop_size=0.5)
        if (number + 1) % (count // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * resource.getpagesize() / MB)
    return {"calls": count, "resident_mb": resident, "seconds": time.perf_counter() - start}


def hour(model: str, seconds: int) -> dict[str, Any]:
    """A recording from disk to disk, and one in memory."""
    import soundfile

    from l3prune.embedding import load_model, process_file

    network = load_model(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        rng = np.random.default_rng(0)
        with soundfile.SoundFile(path, "w", 44100, 2, "PCM_16") as file:
            for _ in range(seconds):
                file.write(rng.uniform(-0.5, 0.5, (44100, 2)))
        before = peak()
        start = time.perf_counter()
        output = process_file(path, model=network, hop_size=0.1)
        elapsed = time.perf_counter() - start
        with np.load(output) as arrays:
            shape = arrays["embedding"].shape
    return {
        "seconds_of_sound": seconds,
        "windows": shape[0],
        "size": shape[1],
        "peak_mb_before": before,
        "peak_mb": peak(),
        "seconds": elapsed,
    }


def largest(limited: bool) -> dict[str, Any]:
    """mel256 with 6144 values and random weights, 20 s in batches of 32, with and without limit."""
    from l3prune import embedding, engines
    from l3prune.networks import create_network

    if not limited:
        engines._MAX_ACTIVATION = 2**40
    network = create_network("mel256", embedding_size=6144)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * 48000).astype(np.float32)
    start = time.perf_counter()
    vectors, _ = embedding.get_embedding(audio, 48000, network, batch_size=32)
    return {
        "limited": limited,
        "windows": len(vectors),
        "peak_mb": peak(),
        "seconds": time.perf_counter() - start,
    }


def peak() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"calls": calls, "hour": hour, "largest": largest}


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="weight file or name of published weights")
    parser.add_argument("--calls", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--seconds", type=int, default=3600, help="length (%(default)s)")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    if args.part:
        load_tensorflow()
        name, *words = args.part
        print(json.dumps(PARTS[name](*(json.loads(word) for word in words))))
        return
    check_whole("--calls", args.calls, 10)
    check_whole("--seconds", args.seconds, 1)
    figures = {}
    for title, name, *words in (
        ("calls", "calls", args.model, args.calls),
        ("hour", "hour", args.model, args.seconds),
        ("mel256, 32 windows at once", "largest", False),
        ("mel256, as many as 128 MB take", "largest", True),
    ):
        part = [name, *(json.dumps(word) for word in words)]
        figures[title] = run_part(__file__, [args.model, "--part", *part])
        print(title, json.dumps(figures[title]))
    if args.output:
        load_tensorflow()
        from l3prune.training import environment

        write_json(
            args.output,
            {
                "settings": {"calls": args.calls, "seconds": args.seconds},
                "environment": environment(),
                **figures,
            },
        )


if __name__ == "__main__":
    sys.exit(main())
