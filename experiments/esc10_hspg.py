"""HSPG against ProxSG and plain descent on ESC-10: accuracy, groups that are zero, what stays.

    python experiments/esc10_hspg.py --data ESC-10 --work DIR --results DIR

A narrow VGG16 is trained for each test fold on two folds, five seconds of a clip in mono, 64 bands;
the epochs are a fixed number, and the last one counts, so that nothing is chosen. All ways begin
with the same weights and see the same batches with the same learning rates: plain descent, and
ProxSG and HSPG with several lambdas. Then the filters that are zero are removed from the networks,
whose outputs are checked to stay the same. All is done by `python -m l3prune.train` and
`python -m l3prune.pruning --zero-filters`.

Finished parts are found again in the work folder, and others go on where they were stopped, so the
command can be repeated after a stop. The results folder receives results.json, table.md, plot.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from esc10_dcase2021 import BEST, run  # beside this file
from study import write_results  # beside this file

from l3prune.datasets import load_dataset
from l3prune.datasets.splits import split_folds
from l3prune.errors import command
from l3prune.files import read_json
from l3prune.quiet import load_tensorflow
from l3prune.runs import subset_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: VGG16 with an eighth of the filters; maps of 64 bands and 108 frames.
NETWORK = {
    "filters": [8, 8, 16, 16, 32, 32, 32, 64, 64, 64, 64, 64, 64],
    "seconds": 5,
    "bands": 64,
    "hop": 1024,
    "channels": 1,
}

PLAIN = "plain"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="ESC-10, in the layout of ESC-50")
    add("--work", required=True, help="what is made on the way; may be kept for later")
    add("--results", required=True, help="receives results.json, table.md, plot.png")
    add("--folds", nargs="+", type=int, help="test folds (all)")
    add("--seeds", nargs="+", type=int, default=[0], help="(%(default)s)")
    add("--lambdas", nargs="+", type=float, default=[0.005, 0.01], help="(%(default)s)")
    add("--epsilon", type=float, default=0.95, help="of HSPG (%(default)s)")
    add("--epochs", type=int, default=40, help="(%(default)s)")
    add("--prox-epochs", type=int, default=15, help="of HSPG, of these (%(default)s)")
    add("--learning-rate", type=float, default=0.3, help="linear to a twentieth (%(default)s)")
    add("--batch-size", type=int, default=8, help="(%(default)s)")
    return parser.parse_args(argv)


def ways(args: argparse.Namespace) -> dict[str, list[object]]:
    """Way -> its options of the training command."""
    found: dict[str, list[object]] = {PLAIN: ["--optimizer", "sgd"]}
    hspg = ["--epsilon", args.epsilon, "--prox-epochs", args.prox_epochs]
    for value in args.lambdas:
        for name, more in (("proxsg", []), ("hspg", hspg)):
            found[f"{name} {value:g}"] = ["--optimizer", name, "--lambda", value, *more]
    return found


def trained(args: argparse.Namespace, fold: int, seed: int, options: list[object]) -> Path:
    from l3prune.train import main

    # What was made with other settings is not found again.
    told = [*options, *("fold", fold, "seed", seed, "epochs", args.epochs)]
    told += ["rate", args.learning_rate, "batch", args.batch_size]
    name = "-".join(str(word).lstrip("-") for word in told)
    line = [
        *("vgg16", "esc50", args.data, args.work, "--network-arguments", json.dumps(NETWORK)),
        *("--test-fold", fold, "--seed", seed, "--num-epochs", args.epochs),
        *("--best-from", args.epochs - 1, "--train-batch-size", args.batch_size),
        *("--learning-rate", args.learning_rate, "--schedule", "linear"),
        *("--decay-from", args.epochs // 2, "--final-learning-rate", args.learning_rate / 20),
        *("--checkpoint-interval", 0, *options),
    ]
    return run(main, line, Path(args.work) / "labels/esc50/vgg16", name)


def removed(args: argparse.Namespace, fold: int, weights: Path) -> Path:
    from l3prune.pruning import main

    kind = Path(args.work) / "embedding/reduced" / subset_name(args.data) / "vgg16"
    line = [
        *(weights / BEST, args.data, args.work, "--labels", "esc50", "--test-fold", fold),
        "--zero-filters",
    ]
    return run(main, line, kind, weights.name)


def carry_out(args: argparse.Namespace) -> dict[str, Any]:
    """Every part's figures: way -> one for each fold and seed."""
    from l3prune.models import load
    from l3prune.pruning import PRUNED
    from l3prune.zero_filters import check_same_output, group_sparsity

    folds = args.folds or load_dataset("esc50", args.data).folds
    for fold in folds:
        split_folds(load_dataset("esc50", args.data).folds, fold)  # raises if it is not there
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ways(args)}
    for fold in folds:
        for seed in args.seeds:
            for name, options in ways(args).items():
                folder = trained(args, fold, seed, options)
                network = load(folder / BEST)
                row = {"fold": fold, "seed": seed, "group_sparsity": group_sparsity(network)}
                row["trained"] = read_json(folder / "report.json")["trained"]
                if row["group_sparsity"]:
                    small = removed(args, fold, folder)
                    row["removed"] = read_json(small / "report.json")["pruned"]
                    row["difference"] = check_same_output(network, load(small / PRUNED))
                rows[name].append(row)
    return {"settings": vars(args), "network": NETWORK, "rows": rows}


def summarise(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a way: means and deviations over folds and seeds."""
    table = []
    for name, parts in results["rows"].items():
        smaller = [part.get("removed", part["trained"]) for part in parts]
        row: dict[str, Any] = {"name": name}
        for key, values in (
            ("accuracy", [100 * part["trained"]["test_accuracy"] for part in parts]),
            ("sparsity", [100 * part["group_sparsity"] for part in parts]),
            ("after", [100 * part["test_accuracy"] for part in smaller]),
            ("weights", [part["nonzero"] for part in smaller]),
            ("macs", [part["macs"] for part in smaller]),
            ("bytes", [part["bytes"] for part in smaller]),
        ):
            row[key] = float(np.mean(values))
            row[f"{key}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        row["difference"] = max(part.get("difference", 0.0) for part in parts)
        table.append(row)
    return table


def markdown(table: list[dict[str, Any]]) -> str:
    lines = [
        "| | accuracy | group sparsity | accuracy without the zero filters | largest difference of "
        "a probability | kernel weights | MACs | file |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        lines.append(
            f"| {row['name']} | {row['accuracy']:.1f} ± {row['accuracy_std']:.1f} % | "
            f"{row['sparsity']:.1f} ± {row['sparsity_std']:.1f} % | {row['after']:.1f} ± "
            f"{row['after_std']:.1f} % | {row['difference']:.1g} | {row['weights'] / 1e3:.1f} k | "
            f"{row['macs'] / 1e6:.1f} M | {row['bytes'] / 1e3:.0f} kB |"
        )
    return "\n".join(lines) + "\n"


def plot(table: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in table:
        axes.errorbar(
            [row["sparsity"]],
            [row["accuracy"]],
            [row["accuracy_std"]],
            [row["sparsity_std"]],
            fmt="o",
            capsize=3,
            label=row["name"],
        )
    axes.set(xlabel="groups that are zero, %", ylabel="clip accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.suptitle("ESC-10, narrow VGG16, mean ± std over folds and seeds", fontsize=10)
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    load_tensorflow()
    results = carry_out(args)
    results["summary"] = table = summarise(results)
    write_results(args.results, results, markdown(table), lambda: plot(table))


if __name__ == "__main__":
    sys.exit(main())
