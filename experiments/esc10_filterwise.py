"""Filterwise pruning and distillation of a network, judged on ESC-10 (or ESC-50).

    python experiments/esc10_filterwise.py --data DIR --model FILE --work DIR --results DIR

All convolutions but the last lose a quarter, half and three quarters of their filters. Compared are
criteria, and two ways with BatchNorm: sliced with its filters, or fresh, as it is before training,
which is what EdgeL3's code left behind. Folds, distillation and classifier are those of
esc10_layerwise.py. Every criterion is judged before retraining at every ratio; distilled are l1 at
every ratio, with both ways of BatchNorm, and the other criteria at one half.

Beside accuracy and embedding error stand MACs, bytes of the checkpoint, and milliseconds of the
log-mel network for one window on this machine (medians of rounds in which all networks take turns).

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

CRITERIA = ("l1", "l2", "geometric_median", "geometric_median_sum", "bn_gamma", "random")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--ratios", nargs="+", type=float, default=[25, 50, 75], help="filters that go, percent")
    add_settings(parser)
    add("--rounds", type=int, default=30, help="of the timing (%(default)s)")
    return parser.parse_args(argv)


def prune(network, state: str):
    """The network in a state, "criterion ratio sliced" or "criterion ratio fresh"."""
    import tf_keras as keras

    from l3prune.pruner import Wish
    from l3prune.pruner import prune as carry_out

    criterion, ratio, batch_norm = state.split()
    wish = Wish(filterwise=True, amount=float(ratio) / 100, criterion=criterion)
    pruned, _ = carry_out(network, wish)
    if batch_norm == "fresh":
        for layer, before in zip(pruned.layers, network.layers, strict=True):
            # The input's BatchNorm has no filters.
            if isinstance(layer, keras.layers.BatchNormalization) and (
                layer.gamma.shape != before.gamma.shape
            ):
                ones, zeros = np.ones(layer.gamma.shape), np.zeros(layer.gamma.shape)
                layer.set_weights([ones, zeros, zeros, ones])
    return pruned


def costs(networks: dict, rounds: int) -> dict[str, dict[str, float]]:
    """MACs, bytes and milliseconds of each network."""
    from l3prune.evaluation import measure
    from l3prune.timing import latency

    times = latency(networks, rounds=rounds)
    return {
        name: {
            **{key: measure(network)[key] for key in ("macs", "bytes")},
            "ms": float(np.median(times[name])),
        }
        for name, network in networks.items()
    }


def summarise(results: dict) -> list[dict]:
    """One row a state: accuracy over folds and seeds, error over folds, costs."""
    table = []
    for name, parts in results["rows"].items():
        stage, _, state = name.partition(" ")
        criterion, ratio, batch_norm = state.split() if state else ("", "0", "")
        accuracies = np.array([part["accuracy"] for part in parts])
        table.append(
            {
                "stage": stage,
                "criterion": criterion,
                "ratio": float(ratio),
                "batch_norm": batch_norm,
                "accuracy": 100 * float(accuracies.mean()),
                "std": 100 * float(accuracies.std(ddof=1)) if accuracies.size > 1 else 0.0,
                "mse": float(np.mean([part["mse"] for part in parts])),
                **results["costs"][ratio if state else "unpruned"],
            }
        )
    return table


def markdown(table: list[dict]) -> str:
    after = {
        (row["criterion"], row["ratio"], row["batch_norm"]): row
        for row in table
        if row["stage"] == "distilled"
    }
    unpruned = table[0]
    lines = [
        "| filters removed | criterion | BatchNorm | accuracy, pruned only | accuracy, distilled | "
        "embedding MSE, pruned only | embedding MSE, distilled | MACs | bytes | ms |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|",
        f"| 0 | – | – | {unpruned['accuracy']:.1f} ± {unpruned['std']:.1f} | – | 0 | – | "
        + _costs(unpruned),
    ]
    for row in table:
        if row["stage"] != "pruned":
            continue
        best = after.get((row["criterion"], row["ratio"], row["batch_norm"]))
        accuracy = f"{best['accuracy']:.1f} ± {best['std']:.1f}" if best else "–"
        mse = f"{best['mse']:.4g}" if best else "–"
        lines.append(
            f"| {row['ratio']:g} % | {row['criterion']} | {row['batch_norm']} | "
            f"{row['accuracy']:.1f} ± {row['std']:.1f} | {accuracy} | {row['mse']:.4g} | {mse} | "
            + _costs(row)
        )
    return "\n".join(lines) + "\n"


def _costs(row: dict) -> str:
    return f"{row['macs'] / 1e6:.1f} M | {row['bytes'] / 1000:.0f} k | {row['ms']:.2f} |"


def plot(table: list[dict]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes in (left, right):
        axes.axhline(table[0]["accuracy"], color="black", linestyle="--", label="unpruned")
        axes.set(xlabel="filters removed, %")
        axes.grid(alpha=0.3)
    styles = {
        ("pruned", "sliced"): ("tab:red", "-", "pruned only, BatchNorm sliced"),
        ("pruned", "fresh"): ("tab:red", ":", "pruned only, BatchNorm fresh"),
        ("distilled", "sliced"): ("tab:blue", "-", "distilled, BatchNorm sliced"),
        ("distilled", "fresh"): ("tab:blue", ":", "distilled, BatchNorm fresh"),
    }
    for (stage, batch_norm), (colour, line, label) in styles.items():
        rows = [
            row
            for row in table
            if (row["stage"], row["batch_norm"], row["criterion"]) == (stage, batch_norm, "l1")
        ]
        left.errorbar(
            [row["ratio"] for row in rows],
            [row["accuracy"] for row in rows],
            [row["std"] for row in rows],
            fmt="o" + line,
            capsize=3,
            color=colour,
            label=label,
        )
    for criterion in dict.fromkeys(row["criterion"] for row in table[1:]):
        rows = [
            row
            for row in table
            if (row["stage"], row["batch_norm"], row["criterion"])
            == ("pruned", "sliced", criterion)
        ]
        right.plot(
            [row["ratio"] for row in rows],
            [row["accuracy"] for row in rows],
            "o-",
            label=f"{criterion}, pruned only",
        )
    left.set(ylabel="clip accuracy, %")
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.suptitle("mean over folds and classifier seeds (left: ± std)", fontsize=10)
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    load_tensorflow()
    ratios = [f"{ratio:g}" for ratio in args.ratios]
    states = [f"{criterion} {ratio} sliced" for ratio in ratios for criterion in CRITERIA]
    states += [f"l1 {ratio} fresh" for ratio in ratios]
    distilled = [state for state in states if state.startswith("l1 ") or " 50 " in state]
    study = Study(args, prune)
    results = study.run(states, distilled)
    networks = {"unpruned": study.teacher}
    networks |= {ratio: prune(study.teacher, f"l1 {ratio} sliced") for ratio in ratios}
    results["costs"] = costs(networks, args.rounds)
    results["summary"] = table = summarise(results)
    write_results(args.results, results, markdown(table), lambda: plot(table))


if __name__ == "__main__":
    sys.exit(main())
