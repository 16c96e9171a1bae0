"""Cnn14 pruned as E-PANNs prunes it: the accuracy of a narrow one, the costs of the whole.

    python experiments/esc10_cnn14.py --data DIR --work DIR --results DIR

A narrow Cnn14 is trained on ESC-10; C7 … C12 lose a quarter, half and three quarters of their
filters, chosen by operator norm as its authors compute it, by l1 and by chance; each is judged as
it is and after fine-tuning with the training's own recipe and fewer epochs. Each fold is tested on
in turn, the one before it validates, the others train; nothing is chosen on a test fold.

The whole Cnn14 has random weights here: its parameters, multiply-accumulates and milliseconds for a
clip of ten seconds do not depend on them. Milliseconds are of the network behind its front end,
medians of rounds in which all networks take turns.

Finished parts are found again in the work folder, so the command can be repeated after a stop. The
results folder receives results.json, table.md and plot.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from study import once, write_results  # beside this file

from l3prune.datasets import load_dataset
from l3prune.errors import command
from l3prune.files import make_folder
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    import tf_keras as keras
    from matplotlib.figure import Figure

    from l3prune.corpus import Corpus
    from l3prune.recipes import Recipe

CRITERIA = ("operator_norm", "l1", "random")

#: Of ESC-50's clips.
SECONDS = 5


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="ESC-50 or ESC-10, in its own layout")
    add("--work", required=True, help="what is made on the way; may be kept for later")
    add("--results", required=True, help="receives results.json, table.md, plot.png")
    add("--ratios", nargs="+", type=float, default=[25, 50, 75], help="filters that go, percent")
    add("--criteria", nargs="+", default=CRITERIA, help="(%(default)s)")
    add("--folds", nargs="+", type=int, help="test folds (all)")
    add("--divisor", type=int, default=8, help="how many times narrower (%(default)s)")
    add("--epochs", type=int, default=40, help="of the training (%(default)s)")
    add("--fine-tuning-epochs", type=int, default=10, help="(%(default)s)")
    add("--batch-size", type=int, default=16, help="(%(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="(%(default)s)")
    add("--seed", type=int, default=0, help="of the training (%(default)s)")
    add("--rounds", type=int, default=3, help="of the timing (%(default)s)")
    add("--whole-divisor", type=int, default=1, help="1 is the whole Cnn14 (%(default)s)")
    return parser.parse_args(argv)


def cut(network: keras.Model, criterion: str, ratio: float) -> keras.Model:
    """The network without a part of the filters of C7 … C12."""
    from l3prune.networks.cnn14 import CONV_NAMES
    from l3prune.pruner import Wish, prune

    layers = dict.fromkeys(CONV_NAMES[6:], ratio / 100)
    return prune(network, Wish(filterwise=True, layers=layers, criterion=criterion))[0]


def trained(
    network: keras.Model, corpus: Corpus, folder: Path, recipe: Recipe, batch_size: int
) -> keras.Model:
    """The network trained to its best epoch; goes on where it was stopped."""
    from l3prune.checkpoints import BEST, LATEST
    from l3prune.classification import train_on_labels
    from l3prune.weights import load_network

    if not (folder / "done").is_file():
        train_on_labels(
            network,
            corpus.train,
            corpus.validation,
            folder,
            recipe=recipe,
            batch_size=batch_size,
            resume=(folder / LATEST).is_file(),
            quiet=True,
        )
        (folder / "done").touch()
    return load_network(folder / BEST)


def judge(args: argparse.Namespace, fold: int, work: Path) -> dict[str, Any]:
    """Accuracies on one test fold of a network, and of all that it is pruned to."""
    import tf_keras as keras

    from l3prune.classification import network_for
    from l3prune.corpus import Corpus
    from l3prune.networks.cnn14 import FRONT_END, UNITS, narrow
    from l3prune.recipes import Recipe

    corpus = Corpus("esc50", args.data, fold)

    def recipe(epochs: int) -> Recipe:
        return Recipe(
            epochs=epochs,
            learning_rate=args.learning_rate,
            schedule="cosine",
            best_by="loss",
            early_stopping_patience=epochs,
            checkpoint_interval=0,
            seed=args.seed,
        )

    def figures(network: keras.Model) -> dict[str, float]:
        return corpus.figures(network, quiet=True)[0]

    keras.utils.set_random_seed(args.seed)
    network = network_for(
        "cnn14",
        corpus.dataset.labels,
        filters=narrow(args.divisor),
        units=UNITS // args.divisor,
        samples=SECONDS * FRONT_END.sample_rate,
        activation="softmax",
    )
    corpus.open(network, make_folder(Path(args.work) / "cache"), quiet=True)
    folder = make_folder(work / f"fold{fold}")
    network = trained(network, corpus, folder / "whole", recipe(args.epochs), args.batch_size)
    found = {"whole": once(folder / "whole.json", lambda: figures(network))}
    for criterion in args.criteria:
        for ratio in args.ratios:
            name = f"{criterion} {ratio:g}"
            smaller = cut(network, criterion, ratio)
            path = folder / name.replace(" ", "_")
            before = once(folder / f"{path.name}.pruned.json", partial(figures, smaller))

            def after(smaller: keras.Model, path: Path) -> dict[str, float]:
                tuning = recipe(args.fine_tuning_epochs)
                return figures(trained(smaller, corpus, path, tuning, args.batch_size))

            tuned = once(folder / f"{path.name}.tuned.json", partial(after, smaller, path))
            found[name] = {"pruned": before, "tuned": tuned}
            print(f"fold {fold}, {name}: done", file=sys.stderr)
    return found


def costs(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What the whole network costs at each ratio; its weights are random."""
    from l3prune.networks import create_network
    from l3prune.networks.cnn14 import UNITS, narrow
    from l3prune.panns import counts
    from l3prune.timing import latency

    networks = {
        "0": create_network(
            "cnn14", filters=narrow(args.whole_divisor), units=UNITS // args.whole_divisor
        )
    }
    networks |= {f"{ratio:g}": cut(networks["0"], "l1", ratio) for ratio in args.ratios}
    times = latency(networks, rounds=args.rounds)
    return {
        name: {**vars(counts(network)), "ms": float(np.median(times[name]))}
        for name, network in networks.items()
    }


def summarise(results: dict[str, Any], ratios: Sequence[float]) -> list[dict[str, Any]]:
    """Mean and deviation over the folds of the test accuracies, in percent."""

    def over_folds(name: str, stage: str = "") -> dict[str, float]:
        found = [each[name] for each in results["folds"].values()]
        values = [100 * (each[stage] if stage else each)["test_accuracy"] for each in found]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return {"accuracy": float(np.mean(values)), "std": std}

    rows: list[dict[str, Any]] = [
        {"criterion": "", "ratio": 0.0, "stage": "whole", **over_folds("whole")}
    ]
    for criterion in results["settings"]["criteria"]:
        for ratio in ratios:
            for stage in ("pruned", "tuned"):
                figures = over_folds(f"{criterion} {ratio:g}", stage)
                rows.append({"criterion": criterion, "ratio": ratio, "stage": stage, **figures})
    return rows


def markdown(rows: Sequence[dict[str, Any]], whole: dict[str, dict[str, float]]) -> str:
    def accuracy(row: dict[str, Any]) -> str:
        return f"{row['accuracy']:.1f} ± {row['std']:.1f}"

    lines = [
        "Test accuracy of the narrow network, percent, mean ± std over folds:",
        "",
        "| filters removed from C7 … C12 | criterion | pruned only | fine-tuned |",
        "|---:|---|---:|---:|",
        f"| 0 | – | {accuracy(rows[0])} | – |",
    ]
    pairs = sorted(zip(rows[1::2], rows[2::2], strict=True), key=lambda pair: pair[0]["ratio"])
    lines += [
        f"| {before['ratio']:g} % | {before['criterion']} | "
        f"{accuracy(before)} | {accuracy(after)} |"
        for before, after in pairs
    ]
    lines += [
        "",
        "The whole network, random weights, ten seconds:",
        "",
        "| filters removed | trainable | with Fourier kernels | MACs | THOP's, with the Fourier "
        "transform | ms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {ratio} % | {row['trainable'] / 1e6:.2f} M | {row['torchsummary'] / 1e6:.2f} M | "
        f"{row['macs'] / 1e9:.2f} G | {row['thop'] / 1e9:.2f} G | {row['ms']:.0f} |"
        for ratio, row in whole.items()
    ]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], whole: dict[str, dict[str, float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(rows[0]["accuracy"], color="black", linestyle="--", label="whole")
    for number, criterion in enumerate(dict.fromkeys(row["criterion"] for row in rows[1:])):
        for stage, line in (("pruned", ":"), ("tuned", "-")):
            chosen = [row for row in rows if (row["criterion"], row["stage"]) == (criterion, stage)]
            left.errorbar(
                [row["ratio"] for row in chosen],
                [row["accuracy"] for row in chosen],
                [row["std"] for row in chosen],
                fmt="o" + line,
                capsize=3,
                color=f"C{number}",
                label=f"{criterion}, {'pruned only' if stage == 'pruned' else 'fine-tuned'}",
            )
    left.set(xlabel="filters removed from C7 … C12, %", ylabel="test accuracy, %")
    left.legend(fontsize=7)
    for name, label in (("trainable", "parameters"), ("macs", "MACs"), ("ms", "milliseconds")):
        values = [100 * row[name] / whole["0"][name] for row in whole.values()]
        right.plot([float(ratio) for ratio in whole], values, "o-", label=label)
    right.set(xlabel="filters removed from C7 … C12, %", ylabel="of the whole network, %", ylim=0)
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    load_tensorflow()
    names = ("divisor", "epochs", "fine_tuning_epochs", "batch_size", "learning_rate", "seed")
    # What was made with other settings is not found again.
    key = "_".join(f"{getattr(args, name):g}" for name in names)
    work = make_folder(Path(args.work) / key)
    results: dict[str, Any] = {"settings": vars(args)}
    folds = args.folds or load_dataset("esc50", args.data).folds
    results["folds"] = {str(fold): judge(args, fold, work) for fold in folds}
    ratios = "_".join(f"{ratio:g}" for ratio in args.ratios)
    timed = Path(args.work) / f"costs_{args.whole_divisor}_{args.rounds}_{ratios}.json"
    results["whole"] = once(timed, lambda: costs(args))
    results["summary"] = rows = summarise(results, args.ratios)
    write_results(
        args.results,
        results,
        markdown(rows, results["whole"]),
        lambda: plot(rows, results["whole"]),
    )


if __name__ == "__main__":
    sys.exit(main())
