"""Perceptron, support vector machine and random forest on ESC-10, on frames and on statistics.

    python experiments/esc10_classifiers.py --data DIR --model FILE --work DIR --results DIR

One network embeds the corpus; each kind of classifier is cross-validated on single frames and on
seven statistics per clip. For each test fold, the fold before it validates and the others train.
Reported is the clip accuracy over folds and seeds. The seeds of a support vector machine only deal
the clips that its probabilities are fitted on, so it gets the first one alone.

Finished parts are found again in the work folder, so the command can be repeated after a stop. The
results folder receives results.json, table.md and plot.png.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from study import new_parser, write_results  # beside this file

from classifier.features import extract_features, read_features, versions
from classifier.inputs import MODES, Inputs
from classifier.model import RECIPES
from classifier.results import CrossValidation, FoldResult
from classifier.train import cross_validate
from l3prune.datasets import load_dataset
from l3prune.errors import command
from l3prune.files import make_folder, read_json, write_json
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"mlp": "MLP", "svm": "SVM", "rf": "random forest"}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of MLP and random forest")
    add("--hop-size", type=float, default=0.1, help="between windows, seconds (%(default)s)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> list[dict]:
    """One row a kind of classifier and a kind of input."""
    work = make_folder(args.work)
    dataset = load_dataset("esc50", args.data)
    extract_features(dataset, args.model, work / "features", hop_size=args.hop_size)
    features = read_features(work / "features")
    rows = []
    for kind, recipe in RECIPES.items():
        for mode in MODES:
            seeds = args.seeds[:1] if kind == "svm" else args.seeds
            folder = work / "results" / f"{kind}-{mode}"
            parts: list[FoldResult] = []
            seconds = 0.0
            for seed in seeds:
                start = time.monotonic()
                parts += cross_validate(
                    features,
                    folder,
                    seeds=[seed],
                    recipe=recipe(),
                    inputs=Inputs(mode),
                    quiet=True,
                ).results
                # Of the run that trained it, also when the command is repeated.
                clock = folder / f"seconds{seed}.json"
                if not clock.is_file():
                    write_json(clock, time.monotonic() - start)
                seconds += read_json(clock)
            results = CrossValidation(tuple(parts))
            results.save(folder)
            summary = {row["metric"]: row for row in results.summary()}
            row = {"model": kind, "mode": mode, "seeds": seeds, "seconds": seconds}
            for metric in ("clip accuracy", "validation accuracy", "training accuracy"):
                row[metric] = 100 * summary[metric]["mean"]
            row["std"] = 100 * summary["clip accuracy"]["std"]
            row["folds"] = results.folds()
            rows.append(row)
            print(f"{kind} {mode}: {row['clip accuracy']:.1f} ± {row['std']:.1f}", flush=True)
    return rows


def markdown(rows: list[dict]) -> str:
    """The table of the results."""
    lines = [
        "| classifier | input | clip accuracy, % | validation accuracy, rows, % | "
        "training accuracy, rows, % | seconds a fold and seed |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {NAMES[row['model']]} | {row['mode']} | "
            f"{row['clip accuracy']:.1f} ± {row['std']:.1f} | {row['validation accuracy']:.1f} | "
            f"{row['training accuracy']:.1f} | {row['seconds'] / len(row['folds']):.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for shift, mode in zip((-0.2, 0.2), MODES, strict=True):
        of_mode = [row for row in rows if row["mode"] == mode]
        places = [list(NAMES).index(row["model"]) + shift for row in of_mode]
        axes.bar(
            places,
            [row["clip accuracy"] for row in of_mode],
            0.38,
            yerr=[row["std"] for row in of_mode],
            capsize=4,
            label=mode,
        )
        for place, row in zip(places, of_mode, strict=True):
            for fold in row["folds"]:
                axes.plot(place, 100 * fold["accuracy"], "k.", alpha=0.35, markersize=4)
            axes.text(place, 2, f"{row['clip accuracy']:.1f}", ha="center", color="white")
    axes.set_xticks(range(len(NAMES)), list(NAMES.values()))
    axes.set(ylabel="clip accuracy, %", ylim=(0, 100))
    axes.set_title("mean ± std over folds and seeds; dots: each of them", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper right", ncols=2)
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    load_tensorflow()
    rows = run(args)
    results = {"settings": vars(args), "versions": versions(), "rows": rows}
    write_results(args.results, results, markdown(rows), lambda: plot(rows))


if __name__ == "__main__":
    sys.exit(main())
