"""An hour of sound to embeddings every 0.1 s: real-time factor and peak memory, by engine.

    python benchmarks/extract.py [--network mel256] [--seconds 3600] [--output FILE.json]

The network has random weights, pruned to EdgeL3's 95.45 % (by its list for mel256, else in all
layers). Each way has a process of its own, one after the other, from a WAV file to a .npz file:
"packed" a packed file and no TensorFlow, "sparse" and "dense" a weight file with that engine, and
"plain Keras" what OpenL3 does: the whole recording is decoded, framed into one array, and given to
`Model.predict` in batches of 32. Its hour takes many gigabytes: it is measured on
--plain-seconds of sound, and both its figures are of that length.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from children import peak, run_part

from l3prune.allocation import EDGEL3_LISTS
from l3prune.checks import check_whole
from l3prune.errors import command
from l3prune.files import write_json
from l3prune.quiet import load_tensorflow

WAYS = ("packed", "sparse", "dense", "plain Keras")


def prepare(network_name: str, folder: Path) -> None:
    """The pruned network as a weight file and as a packed file."""
    load_tensorflow()
    from l3prune import graph, plan, surgery
    from l3prune.networks import create_network, l3
    from l3prune.sparse import SparseModel
    from l3prune.weights import save_network

    network = create_network(network_name)
    l3.front_end(network)  # refuses networks of images
    weights = graph.conv_weights(network)
    fractions: Any = 0.9545
    if network_name == "mel256":
        fractions = [percent / 100 for percent in EDGEL3_LISTS[95.45]]
    pruned = surgery.apply_masks(network, plan.plan_layerwise(weights, fractions))
    save_network(pruned, folder / "net.h5")
    SparseModel.from_network(pruned).save(folder / "net.l3p")


def run(way: str, folder: Path, sound: Path) -> dict[str, Any]:
    """One way, in this process."""
    if way != "packed":
        load_tensorflow()
    import soundfile

    seconds = soundfile.info(sound).duration
    output = folder / "out.npz"
    if way == "plain Keras":
        from l3prune.audio import frame_audio, load_audio, to_mono
        from l3prune.networks import l3
        from l3prune.weights import load_network

        network = load_network(folder / "net.h5")
        before = peak()
        start = time.perf_counter()
        audio, rate = load_audio(sound)
        wanted = l3.front_end(network).sample_rate
        mono = to_mono(audio, rate, wanted)
        frames = frame_audio(mono, wanted, hop_size=0.1, center=True)
        embedding = network.predict(frames[:, np.newaxis], batch_size=32, verbose=0)
        np.savez(output, embedding=embedding, timestamps=np.arange(len(embedding)) * 0.1)
    else:
        from l3prune.embedding import get_embedding, load_model, process_file

        model = load_model(folder / ("net.l3p" if way == "packed" else "net.h5"))
        engine = "dense" if way == "dense" else "sparse"
        get_embedding(np.ones(8000, np.float32), 8000, model, engine=engine)  # compiles
        before = peak()
        start = time.perf_counter()
        output = process_file(sound, folder, "made", model, hop_size=0.1, engine=engine)
    elapsed = time.perf_counter() - start
    with np.load(output) as arrays:
        windows = len(arrays["embedding"])
    return {
        "way": way,
        "seconds_of_sound": seconds,
        "windows": windows,
        "seconds": elapsed,
        "real_time_factor": elapsed / seconds,
        "peak_mb_before": before,
        "peak_mb": peak(),
        "tensorflow": "tensorflow" in sys.modules,
    }


def write_noise(path: Path, seconds: int, rate: int) -> None:
    import soundfile

    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 2, "PCM_16") as file:
        for _ in range(seconds):
            file.write(rng.uniform(-0.5, 0.5, (rate, 2)))


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--network", default="mel256", help="(%(default)s)")
    add("--seconds", type=int, default=3600, help="of 44.1 kHz stereo sound (%(default)s)")
    add("--plain-seconds", type=int, default=120, help="for plain Keras (%(default)s)")
    add("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY", help="(all)")
    add("--output", help="JSON file for the figures")
    add("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.run:
        way, folder, sound = args.run
        print(json.dumps(run(way, Path(folder), Path(sound))))
        return
    check_whole("--seconds", args.seconds, 1)
    check_whole("--plain-seconds", args.plain_seconds, 1)
    rows = []
    print(f"{'':14}{'sound s':>9}{'took s':>9}{'RTF':>8}{'peak MB':>9}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(args.network, folder)
        from l3prune.training import environment

        lengths = dict.fromkeys(WAYS, args.seconds) | {"plain Keras": args.plain_seconds}
        for length in {lengths[way] for way in args.ways}:
            write_noise(folder / f"{length}.wav", length, 44100)
        for way in args.ways:
            line = [way, str(folder), str(folder / f"{lengths[way]}.wav")]
            row = run_part(__file__, ["--run", *line])
            rows.append(row)
            print(
                f"{way:14}{row['seconds_of_sound']:9.0f}{row['seconds']:9.1f}"
                f"{row['real_time_factor']:8.3f}{row['peak_mb']:9.0f}",
                flush=True,
            )
    if args.output:
        settings = {"network": args.network, "seconds": args.seconds}
        record = {"settings": settings, "environment": environment(), "rows": rows}
        write_json(args.output, record)


if __name__ == "__main__":
    sys.exit(main())
