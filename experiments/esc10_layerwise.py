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
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from classifier.features import extract_features, read_features
from classifier.train import split_folds, train_fold
from l3prune import graph, plan, surgery
from l3prune.datasets import Dataset, load_dataset
from l3prune.distillation import distill
from l3prune.errors import command
from l3prune.evaluation import embedding_mse
from l3prune.files import atomic_write, make_folder, read_json, write_json
from l3prune.networks import l3
from l3prune.training import LATEST, Recipe, environment
from l3prune.weights import load_network, save_network
from l3prune.windows import AudioFiles


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="ESC-50 or ESC-10, in its own layout")
    add("--model", required=True, help="weight file of the network")
    add("--work", required=True, help="networks, features, classifiers; may be kept for later")
    add("--results", required=True, help="receives results.json, table.md, plot.png")
    add("--sparsities", nargs="+", type=float, default=[50, 70, 80, 90, 95, 98, 99])
    add("--folds", nargs="+", type=int, help="test folds (all)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the classifier")
    add("--epochs", type=int, default=8, help="of the distillation (%(default)s)")
    add("--batch-size", type=int, default=16, help="of the distillation (%(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="of the distillation (%(default)s)")
    add("--hop-size", type=float, default=0.5, help="between windows, seconds (%(default)s)")
    return parser.parse_args(argv)


class Study:
    """One network, one corpus; every part of the result is kept as a file."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.work = make_folder(args.work)
        self.dataset: Dataset = load_dataset("esc50", args.data)
        self.folds = tuple(args.folds or self.dataset.folds)
        self.teacher = load_network(args.model)
        self.cache = self.work / "cache"
        self.recipe = Recipe(
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            schedule="cosine",
            batch_norm="freeze",
            checkpoint_interval=0,
        )

    def windows(self, folds: Sequence[int]) -> AudioFiles:
        paths = [clip.path for clip in self.dataset.clips if clip.fold in folds]
        rate = l3.front_end(self.teacher).sample_rate
        return AudioFiles(paths, rate, self.cache, hop_size=self.args.hop_size, quiet=True)

    def pruned(self, percent: float):
        weights = graph.conv_weights(self.teacher)
        return surgery.apply_masks(self.teacher, plan.plan_global(weights, percent / 100))

    def judge(self, name: str, network, fold: int) -> dict:
        """Accuracy by classifier seed, and the error of the embedding, on one test fold."""
        features_dir = self.work / "features" / name
        extract_features(
            self.dataset, network, features_dir, hop_size=self.args.hop_size, quiet=True
        )
        features = read_features(features_dir)
        results = [
            train_fold(features, fold, self.work / "mlp" / name, seed=seed, quiet=True)
            for seed in self.args.seeds
        ]
        total, nonzero = graph.count_kernel_weights(network)
        return {
            "fold": fold,
            "accuracy": [result.accuracy for result in results],
            "mse": embedding_mse(
                network, self.teacher, self.windows([fold]), self.cache, quiet=True
            ),
            "sparsity": 1 - nonzero / total,
        }

    def distilled(self, percent: float, fold: int):
        """The distilled network and the seconds that it took; trained only once."""
        folder = self.work / "distilled" / f"{percent:g}" / f"fold{fold}"
        path = folder / "distilled.h5"
        if not path.is_file():
            start = time.monotonic()
            valid_fold, train_folds = split_folds(self.dataset.folds, fold)
            student = self.pruned(percent)
            masks = graph.masks(student)
            distill(
                student,
                self.teacher,
                self.windows(train_folds),
                self.windows([valid_fold]),
                folder,
                recipe=self.recipe,
                batch_size=self.args.batch_size,
                cache_dir=self.cache,
                resume=(folder / LATEST).is_file(),
                quiet=True,
            )
            for name, weights in graph.conv_weights(student).items():
                if np.any(weights.kernel[~masks[name]]):
                    raise AssertionError(f"{name}: a pruned weight is not zero")
            save_network(student, path, origin={"seconds": time.monotonic() - start})
        return load_network(path), read_json(path.with_suffix(".json"))["seconds"]

    def run(self) -> dict:
        rows = {"unpruned": [self.judge("unpruned", self.teacher, fold) for fold in self.folds]}
        seconds = []
        for percent in self.args.sparsities:
            pruned = self.pruned(percent)
            rows[f"pruned {percent:g}"] = [
                self.judge(f"pruned-{percent:g}", pruned, fold) for fold in self.folds
            ]
            rows[f"distilled {percent:g}"] = []
            for fold in self.folds:
                network, took = self.distilled(percent, fold)
                seconds.append(took)
                row = self.judge(f"distilled-{percent:g}-fold{fold}", network, fold)
                rows[f"distilled {percent:g}"].append(row)
                print(
                    f"{percent:g} % fold {fold}: accuracy {np.mean(row['accuracy']):.3f}, "
                    f"mse {row['mse']:.4f}, {took:.0f} s",
                    flush=True,
                )
        return {
            "settings": {**vars(self.args), "folds": self.folds},
            "environment": environment(),
            "distillation_seconds": seconds,
            "rows": rows,
        }


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
                "std": 100 * float(accuracies.std(ddof=1)),
                "mse": float(errors.mean()),
            }
        )
    return table


def markdown(table: list[dict]) -> str:
    """The table of the results, with the share of the pruned error that distillation leaves."""
    pruned = {round(row["sparsity"]): row for row in table if row["state"] == "pruned"}
    distilled = {round(row["sparsity"]): row for row in table if row["state"] == "distilled"}
    unpruned = table[0]
    lines = [
        "| overall sparsity | accuracy, pruned only | accuracy, distilled | "
        "embedding MSE, pruned only | embedding MSE, distilled | ratio |",
        "|---:|---:|---:|---:|---:|---:|",
        f"| 0 (unpruned) | {unpruned['accuracy']:.1f} ± {unpruned['std']:.1f} | – | 0 | – | – |",
    ]
    for percent, before in pruned.items():
        after = distilled[percent]
        lines.append(
            f"| {before['sparsity']:.2f} % | {before['accuracy']:.1f} ± {before['std']:.1f} | "
            f"{after['accuracy']:.1f} ± {after['std']:.1f} | {before['mse']:.4g} | "
            f"{after['mse']:.4g} | {after['mse'] / before['mse']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def plot(table: list[dict], path: Path) -> None:
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
    left.set(ylabel="clip accuracy, % (mean ± std over folds and seeds)")
    right.set(ylabel="squared error of the embedding, test fold", yscale="log")
    ticks = [100 - row["sparsity"] for row in table if row["state"] == "pruned"]
    for axes in (left, right):
        axes.set(xscale="log", xlabel="overall sparsity, %")
        axes.invert_xaxis()
        axes.set_xticks(ticks, [f"{100 - tick:.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    results = Study(args).run()
    # Where the files lie on this machine is nobody's business.
    for name in ("data", "model", "work", "results"):
        results["settings"][name] = Path(results["settings"][name]).name
    table = summarise(results["rows"])
    folder = make_folder(args.results)
    write_json(folder / "results.json", {**results, "summary": table})
    with atomic_write(folder / "table.md") as temporary:
        temporary.write_text(markdown(table), encoding="utf-8")
    plot(table, folder / "plot.png")
    print(markdown(table))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
