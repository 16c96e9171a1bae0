"""Layerwise pruning and distillation of a published network, judged on ESC-10 (or ESC-50).

    python experiments/esc10_layerwise.py --data DIR --model FILE --work DIR --results DIR

For each test fold, the fold before it validates and the others train, for the distillation and
for the classifier alike. The network is pruned to each overall sparsity by one magnitude
threshold; once per fold and sparsity it is distilled on the audio of the training folds. Reported,
over folds and classifier seeds, is the clip accuracy of the MLP on the embeddings of the
unpruned, pruned and distilled network, and the squared error of the embedding on the test fold.

Finished parts are found again in the work folder, so the command can be repeated after a stop. The
results folder receives results.json, table.md and plot.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from study import Study, add_settings, new_parser, write_results  # beside this file

from l3prune.errors import command
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[50, 70, 80, 90, 95, 98, 99])
    add_settings(parser)
    return parser.parse_args(argv)


def summarise(rows: dict) -> list[dict]:
    """One row a state: accuracy over folds and seeds, error over folds."""
    table = []
    for name, parts in rows.items():
        accuracies = np.array([part["accuracy"] for part in parts])
        errors = np.array([part["mse"] for part in parts])
        table.append(
            {
                "state": name.split()[0],
                "sparsity": 100 * float(np.mean([part["sparsity"] for part in parts])),
                "accuracy": 100 * float(accuracies.mean()),
                "std": 100 * float(accuracies.std(ddof=1)) if accuracies.size > 1 else 0.0,
                "mse": float(errors.mean()),
            }
        )
    return table


def markdown(table: list[dict]) -> str:
    """The table of the results, with the share of the pruned error that distillation leaves."""
    unpruned = table[0]
    pruned, distilled = (
        [row for row in table if row["state"] == state] for state in ("pruned", "distilled")
    )
    lines = [
        "| overall sparsity | accuracy, pruned only | accuracy, distilled | "
        "embedding MSE, pruned only | embedding MSE, distilled | ratio |",
        "|---:|---:|---:|---:|---:|---:|",
        f"| 0 (unpruned) | {unpruned['accuracy']:.1f} ± {unpruned['std']:.1f} | – | 0 | – | – |",
    ]
    for before, after in zip(pruned, distilled, strict=True):
        lines.append(
            f"| {before['sparsity']:.2f} % | {before['accuracy']:.1f} ± {before['std']:.1f} | "
            f"{after['accuracy']:.1f} ± {after['std']:.1f} | {before['mse']:.4g} | "
            f"{after['mse']:.4g} | {after['mse'] / before['mse']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def plot(table: list[dict]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    unpruned = table[0]
    left.axhline(unpruned["accuracy"], color="black", linestyle="--", label="unpruned")
    for state, colour in (("pruned", "tab:red"), ("distilled", "tab:blue")):
        rows = [row for row in table if row["state"] == state]
        # Sparsity by the share of weights that stay, on a logarithm: 95 and 99 % are far apart.
        kept = [100 - row["sparsity"] for row in rows]
        label = "pruned only" if state == "pruned" else "pruned and distilled"
        left.errorbar(
            kept,
            [row["accuracy"] for row in rows],
            [row["std"] for row in rows],
            fmt="o-",
            capsize=3,
            color=colour,
            label=label,
        )
        right.plot(kept, [row["mse"] for row in rows], "o-", color=colour, label=label)
    left.set(ylabel="clip accuracy, %")
    figure.suptitle("mean ± std over folds and classifier seeds", fontsize=10)
    right.set(ylabel="squared error of the embedding, test fold", yscale="log")
    ticks = [100 - row["sparsity"] for row in table if row["state"] == "pruned"]
    for axes in (left, right):
        axes.set(xscale="log", xlabel="overall sparsity, %")
        axes.invert_xaxis()
        axes.set_xticks(ticks, [f"{100 - tick:.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    load_tensorflow()
    from l3prune import graph, plan, surgery

    def prune(network, percent: str):
        masks = plan.plan_global(graph.conv_weights(network), float(percent) / 100)
        return surgery.apply_masks(network, masks)

    results = Study(args, prune).run([f"{percent:g}" for percent in args.sparsities])
    results["summary"] = table = summarise(results["rows"])
    write_results(args.results, results, markdown(table), lambda: plot(table))


if __name__ == "__main__":
    sys.exit(main())
