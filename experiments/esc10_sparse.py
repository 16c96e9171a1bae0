"""A pruned and distilled network in TensorFlow and in the sparse engine, judged on ESC-10.

    python experiments/esc10_sparse.py --data DIR --model FILE --work DIR --results DIR

For each test fold the network is pruned to --sparsity by one magnitude threshold and distilled on
the training folds, as in esc10_layerwise.py, whose work folder may be given too. The same distilled
network is then computed by TensorFlow, by the sparse engine, and from packed files of float16 and
int8 weights. Reported are the clip accuracy of the MLP that was trained on TensorFlow's embeddings,
given each one's, and how many clips it then tells otherwise; the accuracy of an MLP trained on each
one's own; the largest difference of an embedding from TensorFlow's over the largest value;
milliseconds for one window (the network behind its front end, in turns, all cores) and bytes.

Finished parts are found again in the work folder. The results folder receives results.json,
table.md and plot.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from study import Study, add_settings, new_parser, write_results  # beside this file

from l3prune.errors import command
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Ways to compute the distilled network, and the weights' type in their packed files.
WAYS = {
    "TensorFlow": None,
    "sparse": "float32",
    "sparse, float16": "float16",
    "sparse, int8": "int8",
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--sparsity", type=float, default=95, help="percent (%(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="of the timing (%(default)s)")
    add_settings(parser)
    return parser.parse_args(argv)


def compare(study: Study, network: Any, fold: int) -> dict[str, dict]:
    """Accuracies, differences, times and bytes of one distilled network, by way."""
    from classifier.features import extract_features, read_features
    from classifier.model import load_classifier, predict_clips
    from classifier.train import CLASSIFIER, train_fold
    from l3prune.sizes import checkpoint_bytes
    from l3prune.sparse import SparseModel
    from l3prune.timing import latency

    rows: dict[str, dict] = {}
    models: dict[str, Any] = {}
    reference: Sequence[np.ndarray] = ()
    told: dict[int, np.ndarray] = {}
    for way, values in WAYS.items():
        slug = way.replace(", ", "-")
        if values is None:
            models[way], size = network, checkpoint_bytes(network)
        else:
            path = study.work / "packed" / f"fold{fold}-{values}.l3p"
            path.parent.mkdir(exist_ok=True)
            SparseModel.from_network(network).save(path, values)
            models[way], size = SparseModel.load(path), path.stat().st_size
        folder = study.work / "features" / f"{slug}-fold{fold}"
        extract_features(
            study.dataset, models[way], folder, hop_size=study.args.hop_size, quiet=True
        )
        features = read_features(folder)
        embeddings = features.embeddings
        reference = reference or embeddings
        largest = max(np.abs(each).max() for each in reference)
        apart = max(
            np.abs(each - wanted).max() for each, wanted in zip(embeddings, reference, strict=True)
        )
        results = [
            train_fold(features, fold, study.work / "mlp" / slug, seed=seed, quiet=True)
            for seed in study.args.seeds
        ]
        test = np.flatnonzero(features.folds == fold)
        same: list[float] = []
        otherwise = 0
        for seed in study.args.seeds:
            place = study.work / "mlp" / "TensorFlow" / f"fold{fold}" / f"seed{seed}"
            classifier = load_classifier(place / CLASSIFIER)
            found = predict_clips(classifier, [embeddings[clip] for clip in test])
            otherwise += int((found != told.setdefault(seed, found)).sum())
            same.append(float((found == features.targets[test]).mean()))
        rows[way] = {
            "fold": fold,
            "accuracy": same,
            "told_otherwise": otherwise,
            "own_accuracy": [result.accuracy for result in results],
            "difference": float(apart),
            "relative_difference": float(apart / largest),
            "bytes": size,
        }
    for way, milliseconds in latency(models, rounds=study.args.rounds).items():
        rows[way]["ms"] = milliseconds.tolist()
    return rows


def summarise(rows: dict[str, list[dict]]) -> list[dict]:
    """One row a way, over folds and seeds."""
    table = []
    for way, parts in rows.items():
        ms = np.concatenate([part["ms"] for part in parts])
        table.append(
            {
                "way": way,
                "accuracy": 100 * float(np.mean([part["accuracy"] for part in parts])),
                "told_otherwise": sum(part["told_otherwise"] for part in parts),
                "own_accuracy": 100 * float(np.mean([part["own_accuracy"] for part in parts])),
                "relative_difference": max(part["relative_difference"] for part in parts),
                "ms_min": float(ms.min()),
                "ms_median": float(np.median(ms)),
                "bytes": float(np.mean([part["bytes"] for part in parts])),
            }
        )
    return table


def markdown(table: list[dict]) -> str:
    lines = [
        "| computed by | accuracy, one classifier | clips told otherwise | accuracy, own "
        "classifier | largest relative difference | ms, least | ms, median | kB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        lines.append(
            f"| {row['way']} | {row['accuracy']:.2f} % | {row['told_otherwise']} | "
            f"{row['own_accuracy']:.2f} % | {row['relative_difference']:.1e} | "
            f"{row['ms_min']:.2f} | {row['ms_median']:.2f} | {row['bytes'] / 1000:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(table: list[dict]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    ways = [row["way"] for row in table]
    for axes, name, what in zip(
        figure.subplots(1, 3),
        ("accuracy", "ms_median", "bytes"),
        ("clip accuracy, %", "ms a window, median", "kB"),
        strict=True,
    ):
        values = [row[name] / (1000 if name == "bytes" else 1) for row in table]
        axes.bar_label(axes.barh(ways, values), fmt="%.3g", padding=2)
        axes.set(xlabel=what, xlim=(0, 1.2 * max(values)))
        axes.invert_yaxis()
        if name != "accuracy":
            axes.set_yticklabels([])
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    load_tensorflow()
    from l3prune import graph, plan, surgery
    from l3prune.training import environment

    def prune(network, percent: str):
        masks = plan.plan_global(graph.conv_weights(network), float(percent) / 100)
        return surgery.apply_masks(network, masks)

    study = Study(args, prune)
    rows: dict[str, list[dict]] = {way: [] for way in WAYS}
    for fold in study.folds:
        network, _ = study.distilled(f"{args.sparsity:g}", fold)
        for way, row in compare(study, network, fold).items():
            rows[way].append(row)
            print(f"fold {fold} {way}: accuracy {np.mean(row['accuracy']):.4f}", flush=True)
    table = summarise(rows)
    results = {
        "settings": {**vars(args), "folds": study.folds},
        "environment": environment(),
        "rows": rows,
        "summary": table,
    }
    write_results(args.results, results, markdown(table), lambda: plot(table))


if __name__ == "__main__":
    sys.exit(main())
