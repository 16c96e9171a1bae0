"""Audio-visual correspondence on made-up scenes: train, prune, fine-tune, distil, classify.

    python experiments/avc_scenes.py --work DIR --results DIR

Scenes of three seeds train, validate and test. A small L3 network with both halves is trained from
scratch; its audio half is pruned by one magnitude threshold, and retrained in both of EdgeL3's
ways: on correspondence with the image half frozen, and by distillation of the embedding. Reported
are the accuracy of the correspondence on unseen scenes (of the distilled network, with the image
half and the fusion of the unpruned one), and of a classifier on each embedding of made-up sound
events of another seed.

It prints and runs l3prune's own commands. Repeated with the same folder, it goes on where it
stopped. The results folder receives results.json, table.md and plot.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo import call  # beside this file
from study import write_results  # beside this file

import classifier.__main__
import l3prune.avc_data
import l3prune.datasets.scenes
import l3prune.datasets.synthetic
import l3prune.pruning
import l3prune.train_avc
from l3prune.errors import command
from l3prune.files import make_folder, read_json
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Part -> scenes, pairs, seed.
PARTS = {"train": (1500, 16384, 1), "valid": (80, 1024, 2), "test": (120, 2048, 3)}

#: A quarter of the published widths in the audio half, an eighth in the image half.
AUDIO_FILTERS = (16, 16, 32, 32, 64, 64, 128, 128)
VISION_FILTERS = (8, 8, 16, 16, 32, 32, 64, 64)
RATE = 8000

#: States of the network, as they are called in the results.
STATES = ("unpruned", "pruned", "fine-tuned", "distilled")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--work", required=True, help="what is made on the way; may be kept for later")
    add("--results", required=True, help="receives results.json, table.md, plot.png")
    add("--sparsity", default="95.45", help="overall, percent (%(default)s)")
    add("--epochs", type=int, default=6, help="of the training (%(default)s)")
    add("--retrain-epochs", type=int, default=5, help="of both ways to retrain (%(default)s)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the classifier")
    add("--scale", type=float, default=1, help="of the data's size, for trials (%(default)s)")
    return parser.parse_args(argv)


def make_data(work: Path, scale: float) -> None:
    for part, (videos, pairs, seed) in PARTS.items():
        scenes, shards = work / f"scenes_{part}", work / f"avc_{part}"
        call(
            l3prune.datasets.scenes.main,
            "l3prune.datasets.scenes",
            scenes,
            *("--videos", max(4, round(scale * videos))),
            *("--seed", seed),
            *("--workers", 2),
        )
        call(
            l3prune.avc_data.main,
            "l3prune.avc_data",
            *("shards", scenes, shards),
            *("--samples", max(64, round(scale * pairs))),
            *("--sample-rate", RATE),
            *(("--augment",) if part == "train" else ()),
        )
    call(
        l3prune.datasets.synthetic.main,
        "l3prune.datasets.synthetic",
        work / "corpus",
        *("--folds", 5),
        *("--clips", max(1, round(8 * scale))),
        *("--seed", 4),
        "--quiet",
    )


def run(main: Any, name: str, run_dir: Path, *words: object) -> Path:
    """One run of a training command, begun, continued, or found finished; gives its folder."""
    if not (run_dir / "report.json").is_file():
        begun = (run_dir / "config.json").is_file()
        more = ("--continue-model-dir", run_dir) if begun else ("--run-name", run_dir.name)
        call(main, name, *words, *more)
    return run_dir


def train(work: Path, args: argparse.Namespace) -> dict[str, Path]:
    """The networks of all states, as weight files."""
    data = (work / "avc_train", work / "avc_valid", work)
    common = (
        *("--learning-rate", 1e-3),
        *("--train-batch-size", 32),
        *("--schedule", "cosine"),
        *("--checkpoint-interval", 0),
    )
    place = work / "embedding"
    whole = run(
        l3prune.train_avc.main,
        "l3prune.train_avc",
        place / "avc" / "sea64" / "scenes",
        *data,
        *("--model-type", "sea64"),
        *("--audio-filters", *AUDIO_FILTERS),
        *("--vision-filters", *VISION_FILTERS),
        *("--num-epochs", args.epochs),
        *common,
    )
    best = "model_best_valid_loss.h5"
    pruning = (
        *(whole / best, *data),
        *("--global-sparsity", args.sparsity),
        "--retrain",
        *("--num-epochs", args.retrain_epochs),
        *common,
    )
    tuned, distilled = (
        run(
            l3prune.pruning.main,
            "l3prune.pruning",
            place / kind / "avc" / "sea64" / "scenes",
            *pruning,
            *more,
        )
        for kind, more in (
            ("pruning_finetune_layerwise", ("--finetune",)),
            ("pruning_kd", ("--batch-norm", "freeze")),
        )
    )
    files = (whole / best, tuned / "model_pruned.h5", tuned / best, distilled / best)
    return dict(zip(STATES, files, strict=True))


def judge(work: Path, files: dict[str, Path], seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Figures of each state on unseen scenes and unseen sound events."""
    load_tensorflow()
    from l3prune import avc, graph
    from l3prune.correspondence import correspondence
    from l3prune.datasets.avc import open_pairs
    from l3prune.sizes import packed_bytes
    from l3prune.weights import load_network

    pairs = open_pairs(work / "avc_test", RATE)
    whole = load_network(files["unpruned"])
    rows: dict[str, dict[str, Any]] = {}
    for state, path in files.items():
        network = load_network(path)
        if state == "distilled":
            network = avc.join(network, avc.vision_half(whole), whole)
        audio = avc.audio_half(network)
        total, nonzero = graph.count_kernel_weights(audio)
        rows[state] = {
            **correspondence(network, pairs),
            "sparsity": 1 - nonzero / total,
            "packed_bytes": packed_bytes(audio),
        }
        features, results = work / "features" / state, work / "classifier" / state
        call(
            classifier.__main__.main,
            "classifier",
            *("features", "us8k", work / "corpus", features),
            *("--model", path),
            *("--hop-size", 0.5),
        )
        call(
            classifier.__main__.main,
            "classifier",
            *("cv", features, results, "--quiet"),
            *("--seeds", *seeds),
        )
        summary = read_json(results / "cv.json")["summary"]
        accuracy = next(row for row in summary if row["metric"] == "clip accuracy")
        rows[state] |= {"accuracy": accuracy["mean"], "accuracy_std": accuracy["std"]}
    return rows


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| audio half | sparsity | correspondence, unseen scenes | loss | classifier on the "
        "embedding | packed kB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for state, row in rows.items():
        lines.append(
            f"| {state} | {100 * row['sparsity']:.2f} % | {100 * row['avc_accuracy']:.2f} % | "
            f"{row['avc_loss']:.3f} | {100 * row['accuracy']:.1f} ± "
            f"{100 * row['accuracy_std']:.1f} % | {row['packed_bytes'] / 1000:.0f} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, dict[str, Any]], histories: dict[str, list[dict[str, float]]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for name, history in histories.items():
        epochs = [row["epoch"] for row in history]
        for key, style in (("accuracy", "--"), ("val_accuracy", "-")):
            label = f"{name}, {'validation' if key.startswith('val') else 'training'}"
            axes[0].plot(epochs, [100 * row[key] for row in history], style, label=label)
    axes[0].set(xlabel="epoch", ylabel="correspondence, %")
    axes[0].legend(fontsize=8)
    for panel, column, title in (
        (axes[1], "avc_accuracy", "correspondence, unseen scenes, %"),
        (axes[2], "accuracy", "classifier on the embedding, %"),
    ):
        values = [100 * row[column] for row in rows.values()]
        panel.bar_label(panel.bar(list(rows), values), fmt="%.1f")
        panel.set_title(title, fontsize=10)
        panel.margins(y=0.15)
        panel.tick_params(axis="x", labelrotation=20)
    for panel in axes:
        panel.grid(alpha=0.3)
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    work = make_folder(args.work)
    make_data(work, args.scale)
    files = train(work, args)
    rows = judge(work, files, args.seeds)
    import pandas as pd

    from l3prune.training import environment

    histories = {
        name: pd.read_csv(files[state].parent / "history.csv").to_dict("records")
        for name, state in (("from scratch", "unpruned"), ("fine-tuning", "fine-tuned"))
    }
    results = {
        "settings": vars(args),
        "environment": environment(),
        "rows": rows,
        "histories": histories,
    }
    write_results(args.results, results, markdown(rows), lambda: plot(rows, histories))


if __name__ == "__main__":
    sys.exit(main())
