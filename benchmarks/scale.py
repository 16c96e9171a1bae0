"""What large studies take, worked out from measured rates: the tables of docs/scale.md.

    python benchmarks/scale.py

Reads what training.py, pairs.py, extract.py, classifier_us8k.py and workers.py wrote into
docs/results, and prints Markdown. Nothing is measured here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import command
from l3prune.files import read_json

RESULTS = Path(__file__).parent.parent / "docs" / "results"

#: UrbanSound8K; a second every 0.1 s of four gives 31 windows.
CLIPS, WINDOWS = 8732, 31

#: EdgeL3's recipe: batches of an epoch, windows of a batch, epochs until it converged and at most.
BATCHES, BATCH, CONVERGED, MOST = 4096, 64, 50, 300

#: Clips of 10 s in AudioSet's unbalanced part, as E-PANNs' authors had them.
AUDIOSET = 1_913_637


def span(seconds: float) -> str:
    """Seconds in the unit that people would say."""
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_part(name: str, key: str) -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in read_json(RESULTS / f"{name}.json")["rows"]}


def study() -> str:
    """A study on UrbanSound8K with mel256 on the two cores that the rates are of."""
    steps = read_json(RESULTS / "training_steps.json")
    step = min(steps["seconds"]["MaskedConv2D, cached targets"])
    rate = steps["settings"]["batch_size"] / step
    hour = by_part("extract_hour", "way")["packed"]
    embedded = hour["windows"] / hour["seconds"]
    classifier = read_json(RESULTS / "classifier_us8k.json")
    epochs = classifier["settings"]["epochs"]
    epoch = BATCHES * BATCH
    frames = CLIPS * WINDOWS
    rows = [
        (
            "one epoch of distillation",
            f"{epoch:,} windows",
            f"{rate:.1f} windows/s",
            span(epoch / rate),
        ),
        (
            f"{CONVERGED} epochs, when EdgeL3 had converged",
            f"{CONVERGED * epoch:,} windows",
            f"{rate:.1f} windows/s",
            span(CONVERGED * epoch / rate),
        ),
        (
            "embeddings of US8K every 0.1 s, pruned and packed",
            f"{frames:,} windows, {frames * 512 * 4 / 1e6:.0f} MB",
            f"{embedded:.0f} windows/s",
            span(frames / embedded),
        ),
        (
            f"MLP, ten folds, {epochs} epochs",
            f"{10 * epochs * 9 * frames // 10:,} frames",
            f"peak {classifier['peak_gb']:.1f} GB",
            span(classifier["total_seconds"]),
        ),
    ]
    week = 7 * 86400
    needed = [
        f"{count * epoch / week:.0f} windows/s for {count} epochs" for count in (CONVERGED, MOST)
    ]
    efficiency = next(
        row["efficiency"]
        for row in read_json(RESULTS / "workers.json")["rows"]
        if row["network"] == "mel256" and row["way"] == "two workers, twice"
    )
    hosts = [count * epoch / week / (rate * efficiency) for count in (CONVERGED, MOST)]
    return (
        table(rows, ("part", "work", "measured", "takes"))
        + "\n\nTo be done in the seven days that EdgeL3's jobs had, retraining needs "
        f"{needed[0]},\n{needed[1]}. Of hosts such as this one, without GPUs, it would take "
        f"{np.ceil(hosts[0]):.0f} or {np.ceil(hosts[1]):.0f}, if\nefficiency stayed at the "
        f"{efficiency:.2f} of two workers, which it will not."
    )


def correspondence() -> str:
    """Training on correspondence with as many videos as AudioSet has."""
    parts = by_part("pairs", "part")
    made, read = parts["made, processes: 1"], parts["read, 2048 pairs"]
    taken = parts["taken by avc of mel256"]["pairs_per_second"]
    size = AUDIOSET * made["bytes_per_pair"]
    epoch = BATCHES * BATCH
    rows = [
        (
            "making a pair of each video",
            f"{made['pairs_per_second']:.0f} pairs/s a core",
            span(AUDIOSET / made["pairs_per_second"]) + " of one core",
        ),
        (
            "keeping them",
            f"{made['bytes_per_pair'] / 1e3:.0f} kB a pair",
            f"{size / 1e9:.0f} GB",
        ),
        (
            "reading an epoch",
            f"{read['pairs_per_second']:.0f} pairs/s a worker",
            span(epoch / read["pairs_per_second"]) + " by one worker",
        ),
        (
            "training an epoch, mel256, two cores",
            f"{taken:.1f} pairs/s",
            span(epoch / taken),
        ),
    ]
    return table(rows, ("part", "measured", f"{AUDIOSET:,} videos, epochs of {epoch:,} pairs"))


def workers() -> str:
    """What a second worker gives."""
    rows = []
    for row in read_json(RESULTS / "workers.json")["rows"]:
        rows.append(
            (
                row["network"],
                row["way"],
                str(row["batch_size"]),
                f"{min(row['seconds']):.2f}",
                f"{row['windows_per_second']:.1f}",
                f"{row['efficiency']:.2f}",
                f"{row['gradient_mb']:.1f}",
                "" if row["workers"] == 1 else f"{row['agreement_ms']:.1f}",
            )
        )
    head = (
        "network",
        "",
        "batch",
        "least s",
        "windows/s",
        "efficiency",
        "gradient, MB",
        "agreement, ms",
    )
    return table(rows, head)


@command
def main(argv: Sequence[str] | None = None) -> None:
    for part in (study, correspondence, workers):
        print(f"{part.__doc__}\n\n{part()}\n")


if __name__ == "__main__":
    sys.exit(main())
