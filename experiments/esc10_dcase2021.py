"""The DCASE 2021 network on ESC-10, pruned as in Singh's table and in 16 bits.

    python experiments/esc10_dcase2021.py --data ESC-10 --work DIR --results DIR

For each test fold the network is trained on two folds, the fold before the test fold choosing the
epoch, with clips repeated to ten seconds; then pruned in five ways, each from that network, and
retrained: the four entries of configs/dcase2021, and the first of them in one go, its weights kept.
All is done by `python -m l3prune.train` and `python -m l3prune.pruning` with these configs, but
for the corpus and the number of epochs.

Finished parts are found again in the work folder, and others go on where they were stopped, so the
command can be repeated after a stop. The results folder receives results.json, table.md, plot.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from study import write_results  # beside this file

from l3prune.datasets import load_dataset
from l3prune.datasets.splits import split_folds
from l3prune.errors import L3PruneError, command
from l3prune.files import make_folder, read_json, write_json
from l3prune.quiet import load_tensorflow
from l3prune.runs import subset_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIGS = Path(__file__).parent.parent / "configs" / "dcase2021"

#: Way -> its config.
WAYS = {
    "entry 1: conv_2 50 %, conv_3 50 %, dense_1 68 %, layer by layer, l1": "entry1",
    "the same in one go": "entry1-once",
    "entry 2: conv_2 50 %, geometric median": "entry2",
    "entry 3: conv_3 25 %, geometric median": "entry3",
    "entry 4: conv_2 25 %, geometric median": "entry4",
}

UNPRUNED = "unpruned"

#: The network of a run.
BEST = "model_best_valid_loss.h5"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="ESC-10, in the layout of ESC-50")
    add("--work", required=True, help="what is made on the way; may be kept for later")
    add("--results", required=True, help="receives results.json, table.md, plot.png")
    add("--folds", nargs="+", type=int, help="test folds (all)")
    add("--seeds", nargs="+", type=int, default=[0], help="of training (%(default)s)")
    add("--epochs", type=int, default=25, help="of the unpruned network (%(default)s)")
    add("--retrain-epochs", type=int, default=8, help="after each cut (%(default)s)")
    add("--batch-size", type=int, default=16, help="of both (%(default)s)")
    add("--rounds", type=int, default=30, help="of the timing (%(default)s)")
    return parser.parse_args(argv)


def run(main, line: Sequence[object], parent: Path, name: str) -> Path:
    """The folder of a run that is finished: it has been, or is carried out or continued now."""
    folder = parent / name
    if not (folder / "report.json").is_file():
        begun = (folder / "config.json").is_file()
        more = ["--continue-model-dir", folder] if begun else ["--run-name", name]
        code = main([str(word) for word in (*line, *more, "--quiet")])
        if code:
            raise L3PruneError(f"the run in {folder} ended with exit code {code}; see above")
    return folder


def trained(args: argparse.Namespace, fold: int, seed: int) -> Path:
    from l3prune.train import main

    # What was made with other settings is not found again.
    name = f"fold{fold}-seed{seed}-epochs{args.epochs}-batch{args.batch_size}"
    line = [
        *("--config", CONFIGS / "baseline.json", "dcase2021", "esc50", args.data, args.work),
        *("--test-fold", fold, "--seed", seed, "--num-epochs", args.epochs, "--best-from", 0),
        *("--train-batch-size", args.batch_size),
    ]
    return run(main, line, Path(args.work) / "labels/esc50/dcase2021", name)


def pruned(args: argparse.Namespace, fold: int, seed: int, weights: Path, config: str) -> Path:
    from l3prune.pruning import main

    kind = Path(args.work) / "embedding/pruning_labels" / subset_name(args.data)
    name = f"{weights.name}-{config}-epochs{args.retrain_epochs}"
    line: list[object] = ["--config", CONFIGS / f"{config.removesuffix('-once')}.json"]
    if config.endswith("-once"):
        # No flag takes back what a config says.
        once = make_folder(Path(args.work) / "configs") / f"{config}.json"
        write_once(CONFIGS / "entry1.json", once)
        line = ["--config", once]
    line += [
        *(weights / BEST, args.data, args.work, "--labels", "esc50"),
        *("--test-fold", fold, "--seed", seed, "--num-epochs", args.retrain_epochs),
        *("--train-batch-size", args.batch_size),
    ]
    return run(main, line, kind / "dcase2021", name)


def write_once(source: Path, target: Path) -> None:
    """The first entry's config without its order of layers, and without fresh weights."""
    config = read_json(source)
    write_json(target, {k: v for k, v in config.items() if k not in ("iterative", "fresh")})


def figures(folder: Path, rows: dict[str, str]) -> dict[str, dict[str, float]]:
    """What a run's report says of some states, under other names."""
    report = read_json(folder / "report.json")
    return {name: report[row] for name, row in rows.items()}


def halved(args: argparse.Namespace, fold: int, network) -> dict[str, float]:
    """The figures of an unpruned network in 16 bits, as the pruning command has them of others."""
    from l3prune.corpus import Corpus
    from l3prune.quantization import to_float16

    corpus = Corpus("esc50", args.data, fold)
    corpus.open(network, Path(args.work) / "cache", quiet=True)
    found, _ = corpus.figures(to_float16(network), quiet=True)
    return found


def carry_out(args: argparse.Namespace) -> dict:
    """Every part's figures: way -> one for each fold and seed."""
    from l3prune.models import load
    from l3prune.timing import latency

    folds = args.folds or load_dataset("esc50", args.data).folds
    for fold in folds:
        split_folds(load_dataset("esc50", args.data).folds, fold)  # raises if it is not there
    rows: dict[str, list[dict]] = {name: [] for name in (UNPRUNED, *WAYS)}
    networks: dict = {}
    for fold in folds:
        for seed in args.seeds:
            where = {"fold": fold, "seed": seed}
            base = trained(args, fold, seed)
            network = load(base / BEST)
            part = figures(base, {"retrained": "trained"})
            rows[UNPRUNED].append({**where, **part, "float16": halved(args, fold, network)})
            networks.setdefault(UNPRUNED, network)
            for way, config in WAYS.items():
                folder = pruned(args, fold, seed, base, config)
                states = {name: name for name in ("pruned", "retrained", "float16")}
                sizes = read_json(folder / "sizes.json")["networks"]
                rows[way].append({**where, **figures(folder, states), "sizes": sizes})
                networks.setdefault(way, load(folder / BEST))
    times = latency(networks, rounds=args.rounds)
    costs = {name: cost(network, times[name]) for name, network in networks.items()}
    return {"settings": vars(args), "rows": rows, "costs": costs}


def cost(network, milliseconds: np.ndarray) -> dict[str, float | str]:
    from l3prune.graph import count_macs
    from l3prune.sizes import float16_sizes

    sizes = float16_sizes(network)
    return {
        "parameters": sizes["all"].parameters,
        "folded": sizes["folded"].parameters,
        "kb": sizes["folded"].kb,
        "macs": count_macs(network)[0],
        "ms": float(np.median(milliseconds)),
    }


def summarise(results: dict) -> list[dict]:
    """One row a way: accuracies and log-loss over folds and seeds, and costs."""
    table = []
    for name, parts in results["rows"].items():
        row: dict = {"name": name, **results["costs"][name]}
        for state in ("pruned", "retrained", "float16"):
            found = [part[state] for part in parts if state in part]
            if found:
                accuracy = 100 * np.array([each["test_accuracy"] for each in found])
                row[state] = float(accuracy.mean())
                row[f"{state}_std"] = float(accuracy.std(ddof=1)) if len(found) > 1 else 0.0
                row[f"{state}_loss"] = float(np.mean([each["test_log_loss"] for each in found]))
        table.append(row)
    return table


def markdown(table: list[dict]) -> str:
    def shown(row: dict, state: str) -> str:
        return f"{row[state]:.1f} ± {row[f'{state}_std']:.1f}" if state in row else "–"

    lines = [
        "| | accuracy, pruned only | accuracy, retrained | log-loss | accuracy, 16 bits | "
        "parameters | without BatchNorm | KB, 16 bits | MACs | ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        lines.append(
            f"| {row['name']} | {shown(row, 'pruned')} | {shown(row, 'retrained')} | "
            f"{row['retrained_loss']:.3f} | {shown(row, 'float16')} | {row['parameters']} | "
            f"{row['folded']} | {row['kb']} | {row['macs'] / 1e6:.1f} M | {row['ms']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(table: list[dict]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in table:
        axes.errorbar(
            [float(row["kb"])],
            [row["retrained"]],
            [row["retrained_std"]],
            fmt="o",
            capsize=3,
            label=row["name"],
        )
    axes.set(xlabel="KB in 16 bits, without BatchNorm", ylabel="clip accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.suptitle("ESC-10, mean ± std over folds and seeds", fontsize=10)
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
