"""Network slimming on ESC-10 and on mixtures of its clips, several classes each.

    python experiments/esc10_slimming.py --data DIR --work DIR --results DIR

To each fold's clips come as many mixtures, each of two of the fold's clips of different classes.
A narrow network of FAT2019 hears them in segments of two seconds and is trained with the penalty on
the scales of its BatchNorm; one threshold takes a part of all its filters; what is left is judged
as it is, after fine-tuning, and trained from scratch, both with the same recipe as the training but
for the lower learning rate and without the penalty. Each fold is tested on in turn, the one before
it validates, the others train; nothing is chosen on a test fold.

Multiply-accumulates and milliseconds are of one segment, behind the front end; all networks of a
fold take turns in rounds, and milliseconds are of the round in which the machine had least else to
do.

Finished parts are found again in the work folder, so the command can be repeated after a stop. The
results folder receives results.json, table.md and plot.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from study import once, write_results  # beside this file

from l3prune.datasets import Clip, Dataset, load_dataset
from l3prune.errors import command
from l3prune.files import atomic_write, make_folder
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    import tf_keras as keras
    from matplotlib.figure import Figure

    from l3prune.labelled import LabelledMaps

RATE = 44100

#: Root mean square that both clips of a mixture get, and the largest sample of the mixture.
LEVEL, PEAK = 0.1, 0.9

STATES = ("pruned", "tuned", "scratch")
NAMES = {
    "whole": "unpruned",
    "pruned": "pruned only",
    "tuned": "fine-tuned",
    "scratch": "from scratch",
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="ESC-50 or ESC-10, in its own layout")
    add("--work", required=True, help="what is made on the way; may be kept for later")
    add("--results", required=True, help="receives results.json, table.md, plot.png")
    add("--ratios", nargs="+", type=float, default=[50], help="filters that go, percent")
    add("--folds", nargs="+", type=int, help="test folds (all)")
    add("--pooling", default="basic", help="of the network (%(default)s)")
    add("--divisor", type=int, default=8, help="how many times narrower (%(default)s)")
    add("--epochs", type=int, default=15, help="of each training (%(default)s)")
    add("--batch-size", type=int, default=8, help="clips (%(default)s)")
    add("--learning-rate", type=float, default=3e-3, help="of the training (%(default)s)")
    add("--retraining-rate", type=float, default=5e-4, help="behind the cut (%(default)s)")
    add("--gamma-l1", type=float, default=1e-4, help="strength of the penalty (%(default)s)")
    add("--seed", type=int, default=0, help="of mixtures and training (%(default)s)")
    add("--rounds", type=int, default=20, help="of the timing (%(default)s)")
    return parser.parse_args(argv)


def with_mixtures(dataset: Dataset, folder: Path, seed: int) -> Dataset:
    """The clips of a corpus, and as many mixtures of two of one fold and different classes."""
    import soundfile

    from l3prune.audio import load_audio, to_mono

    mixtures = []
    for fold in dataset.folds:
        generator = np.random.default_rng([seed, fold])
        clips = [clip for clip in dataset.clips if clip.fold == fold]
        for number in range(len(clips)):
            first = clips[number]
            others = [clip for clip in clips if clip.target != first.target]
            second = others[int(generator.integers(len(others)))]
            path = folder / f"{fold}-{number}.wav"
            if not path.is_file():
                parts = [to_mono(*load_audio(clip.path), RATE) for clip in (first, second)]
                samples = min(map(len, parts))
                mixed = np.zeros(samples)
                for part in parts:
                    strength = float(np.sqrt(np.square(part, dtype=np.float64).mean()))
                    mixed += part[:samples] * (LEVEL / max(strength, 1e-9))
                mixed *= min(1, PEAK / np.abs(mixed).max())
                with atomic_write(path) as temporary:
                    soundfile.write(temporary, mixed, RATE, format="WAV")
            mixtures.append(Clip(path, fold, first.target, further=(second.target,)))
    return replace(dataset, clips=(*dataset.clips, *mixtures), multi_label=True)


def judge(
    args: argparse.Namespace, dataset: Dataset, fold: int, work: Path, cache: Path
) -> dict[str, Any]:
    """The figures on one test fold of a network, and of all that it is pruned to."""
    import tf_keras as keras

    from l3prune.channels import named_layers
    from l3prune.checkpoints import BEST, LATEST
    from l3prune.classification import evaluate, network_for, open_maps, train_on_labels
    from l3prune.datasets.splits import split_dataset
    from l3prune.networks.fat2019 import UNITS, narrow
    from l3prune.plan import PruningPlan
    from l3prune.pruner import Wish, prune
    from l3prune.recipes import Recipe
    from l3prune.slimming import scales
    from l3prune.surgery import remove_filters, renewed
    from l3prune.timing import latency
    from l3prune.weights import load_network

    folder = make_folder(work / f"fold{fold}")

    def fresh() -> keras.Model:
        keras.utils.set_random_seed(args.seed)
        return network_for(
            "fat2019",
            dataset.labels,
            pooling=args.pooling,
            filters=narrow(args.divisor),
            units=UNITS // args.divisor,
        )

    network = fresh()
    maps = open_maps(network, dataset, cache, quiet=True)
    split = split_dataset(dataset, fold)
    train, validation, test = map(maps.subset, (split.train, split.validation, split.test))

    def trained(network: keras.Model, name: str, rate: float, gamma_l1: float) -> keras.Model:
        """The network trained to its best epoch; goes on where it was stopped."""
        path = folder / name
        if not (path / "done").is_file():
            train_on_labels(
                network,
                train,
                validation,
                path,
                recipe=Recipe(
                    epochs=args.epochs,
                    learning_rate=rate,
                    schedule="cosine",
                    final_learning_rate=rate / 1000,
                    best_by="lwlrap",
                    early_stopping_patience=args.epochs,
                    checkpoint_interval=0,
                    seed=args.seed,
                ),
                batch_size=args.batch_size,
                gamma_l1=gamma_l1,
                resume=(path / LATEST).is_file(),
                quiet=True,
            )
            (path / "done").touch()
        return load_network(path / BEST)

    def figures(network: keras.Model) -> dict[str, Any]:
        found = evaluate(network, test, quiet=True)
        alone = _of_kind(test, 1)
        return {
            "lwlrap": found["lwlrap"],
            "map": found["map"],
            "lwlrap_single": evaluate(network, alone, quiet=True)["lwlrap"],
            "lwlrap_mixed": evaluate(network, _of_kind(test, 2), quiet=True)["lwlrap"],
            "by_class": {name: each["lwlrap"] for name, each in found["by_class"].items()},
            **_costs(network),
        }

    network = trained(network, "whole", args.learning_rate, args.gamma_l1)
    result: dict[str, Any] = {"whole": once(folder / "whole.json", lambda: figures(network))}
    result["scales"] = {name: sorted(map(float, each)) for name, each in scales(network).items()}
    timed = {"whole": network}
    for ratio in args.ratios:
        wish = Wish(filterwise=True, overall=ratio / 100, criterion="bn_gamma")
        smaller, _ = prune(network, wish)
        keras.utils.set_random_seed(args.seed)
        weighted = [name for name, layer in named_layers(smaller) if layer.weights]
        begun = {"pruned": smaller, "tuned": smaller, "scratch": renewed(smaller, weighted)}
        timed[f"{ratio:g}"] = smaller
        for state in STATES:
            name = f"{state} {ratio:g}"

            def made(state: str = state, begun: dict[str, keras.Model] = begun) -> dict[str, Any]:
                if state == "pruned":
                    return figures(begun[state])
                again = remove_filters(begun[state], PruningPlan({}))  # a copy
                label = f"{state}_{ratio:g}"  # noqa: B023  # called before the next ratio
                return figures(trained(again, label, args.retraining_rate, 0.0))

            result[name] = once(folder / f"{name.replace(' ', '_')}.json", made)
            print(f"fold {fold}, {name}: done", file=sys.stderr)

    def times() -> dict[str, float]:
        found = latency(timed, rounds=args.rounds)
        return {name: float(np.min(each)) for name, each in found.items()}

    ratios = "_".join(f"{ratio:g}" for ratio in args.ratios)
    result["ms"] = once(folder / f"least_ms_{args.rounds}_{ratios}.json", times)
    return result


def _of_kind(maps: LabelledMaps, classes: int) -> LabelledMaps:
    """The clips of so many classes."""
    return maps.subset([row for row in maps.rows if maps.targets[row].sum() == classes])


def _costs(network: keras.Model) -> dict[str, Any]:
    from l3prune.complexity import layer_complexities
    from l3prune.networks import network_config

    rows = layer_complexities(network)
    return {
        "parameters": sum(row.trainable for row in rows),
        "macs": sum(row.macs for row in rows),
        "thop_2019": sum(row.thop_2019 for row in rows),
        "filters": network_config(network).arguments["filters"],
    }


def summarise(results: dict[str, Any], ratios: Sequence[float]) -> list[dict[str, Any]]:
    """Mean and deviation over the folds, a row for each state of the network."""
    folds = list(results["folds"].values())

    def spread(values: Sequence[float]) -> dict[str, float]:
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return {"mean": float(np.mean(values)), "std": std}

    states = [("whole", 0.0), *((state, ratio) for ratio in ratios for state in STATES)]
    rows = []
    for state, ratio in states:
        name = state if state == "whole" else f"{state} {ratio:g}"
        row: dict[str, Any] = {"state": state, "ratio": ratio}
        for figure in ("lwlrap", "lwlrap_single", "lwlrap_mixed"):
            row[figure] = spread([100 * each[name][figure] for each in folds])
        for figure in ("parameters", "macs", "thop_2019"):
            row[figure] = spread([each[name][figure] for each in folds])
        timed = "whole" if state == "whole" else f"{ratio:g}"
        row["ms"] = spread([each["ms"][timed] for each in folds])
        row["difference"] = spread(
            [100 * (each[name]["lwlrap"] - each["whole"]["lwlrap"]) for each in folds]
        )
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    def told(row: dict[str, Any], figure: str) -> str:
        return f"{row[figure]['mean']:.1f} ± {row[figure]['std']:.1f}"

    lines = [
        "| filters removed | | lwlrap, % | of single clips | of mixtures | against unpruned | "
        "parameters | MACs | ms |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        difference = "–" if row["state"] == "whole" else told(row, "difference")
        lines.append(
            f"| {row['ratio']:g} % | {NAMES[row['state']]} | {told(row, 'lwlrap')} | "
            f"{told(row, 'lwlrap_single')} | {told(row, 'lwlrap_mixed')} | {difference} | "
            f"{row['parameters']['mean'] / 1e3:.1f} k | {row['macs']['mean'] / 1e6:.1f} M | "
            f"{row['ms']['mean']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, state in enumerate(("whole", *STATES)):
        chosen = [row for row in rows if row["state"] == state]
        left.errorbar(
            [row["macs"]["mean"] / 1e6 for row in chosen],
            [row["lwlrap"]["mean"] for row in chosen],
            [row["lwlrap"]["std"] for row in chosen],
            fmt="o",
            capsize=3,
            color=f"C{number}",
            label=NAMES[state],
        )
    left.set(xlabel="million multiply-accumulates for a segment", ylabel="test lwlrap, %")
    left.legend(fontsize=8)
    for fold, each in results["folds"].items():
        every = sorted(value for layer in each["scales"].values() for value in layer)
        right.plot(np.linspace(0, 100, len(every)), every, label=f"fold {fold}")
    for ratio in results["settings"]["ratios"]:
        right.axvline(ratio, color="black", linestyle=":")
    right.set(xlabel="filters, %", ylabel="magnitude of their scales, sorted")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    load_tensorflow()
    dataset = load_dataset("esc50", args.data)
    folds = args.folds or dataset.folds
    names = (
        *("pooling", "divisor", "epochs", "batch_size", "learning_rate", "retraining_rate"),
        *("gamma_l1", "seed"),
    )
    # What was made with other settings is not found again.
    values = [getattr(args, name) for name in names]
    key = "_".join(value if isinstance(value, str) else f"{value:g}" for value in values)
    work = make_folder(Path(args.work) / key)
    mixed = with_mixtures(dataset, make_folder(Path(args.work) / f"mixtures{args.seed}"), args.seed)
    cache = make_folder(Path(args.work) / "cache")
    results: dict[str, Any] = {"settings": vars(args)}
    results["folds"] = {str(fold): judge(args, mixed, fold, work, cache) for fold in folds}
    results["summary"] = rows = summarise(results, args.ratios)
    write_results(args.results, results, markdown(rows), lambda: plot(results, rows))


if __name__ == "__main__":
    sys.exit(main())
