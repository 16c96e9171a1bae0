"""A study of one network on one corpus: prune, distil, embed, classify; every part kept on disk.

Importing this loads no TensorFlow, so that commands can read their arguments first.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l3prune.datasets import Dataset, load_dataset
from l3prune.files import atomic_write, make_folder, read_json, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from l3prune.windows import AudioFiles


def new_parser(doc: str) -> argparse.ArgumentParser:
    """A parser of the folders; an experiment's own arguments follow."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="ESC-50 or ESC-10, in its own layout")
    add("--model", required=True, help="weight file of the network")
    add("--work", required=True, help="what is made on the way; may be kept for later")
    add("--results", required=True, help="receives results.json, table.md, plot.png")
    return parser


def add_settings(parser: argparse.ArgumentParser, epochs: int = 8) -> None:
    """Arguments of folds, distillation and classifier."""
    add = parser.add_argument
    add("--folds", nargs="+", type=int, help="test folds (all)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the classifier")
    add("--epochs", type=int, default=epochs, help="of the distillation (%(default)s)")
    add("--batch-size", type=int, default=16, help="of the distillation (%(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="of the distillation (%(default)s)")
    add("--batch-norm", default="freeze", help="of the distillation: freeze, train (%(default)s)")
    add("--hop-size", type=float, default=0.5, help="between windows, seconds (%(default)s)")


def write_results(folder: str, results: dict, table: str, plot: Callable[[], Figure]) -> None:
    """Write results.json, table.md and plot.png; print the table."""
    # Where the files lie on this machine is nobody's business.
    folders = ("data", "model", "work", "results")
    names = {
        name: Path(value).name for name, value in results["settings"].items() if name in folders
    }
    path = make_folder(folder)
    write_json(path / "results.json", {**results, "settings": {**results["settings"], **names}})
    with atomic_write(path / "table.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    with atomic_write(path / "plot.png") as temporary:
        plot().savefig(temporary, dpi=120)
    print(table)


def once(path: Path, make: Callable[[], Any]) -> Any:
    """A part of the result, made only once."""
    if not path.is_file():
        write_json(path, make())
    return read_json(path)


class Study:
    """One network, one corpus; every part of the result is kept as a file."""

    def __init__(
        self,
        args: argparse.Namespace,
        prune: Callable,
        by_fold: Collection[str] = (),
        pruned_with: Sequence[Any] = (),
    ):
        """`prune` makes of the network and a state's name the network in this state; of states in
        `by_fold`, of the network, the state's name and the test fold. `pruned_with` are settings of
        its own that are not in a state's name."""
        from l3prune.datasets.splits import split_folds
        from l3prune.recipes import Recipe
        from l3prune.weights import fingerprint, load_network

        self.args = args
        self.prune = prune
        self.by_fold = by_fold
        self.dataset: Dataset = load_dataset("esc50", args.data)
        self.folds = tuple(args.folds or self.dataset.folds)
        for fold in self.folds:
            split_folds(self.dataset.folds, fold)  # raises for a fold that is not there
        self.teacher = load_network(args.model)
        self.recipe = Recipe(
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            schedule="cosine",
            batch_norm=args.batch_norm,
            checkpoint_interval=0,
        )
        # What was made with other settings is not found again.
        settings = [
            fingerprint(self.teacher),
            self.recipe,
            args.batch_size,
            args.hop_size,
            [clip.path.name for clip in self.dataset.clips],
            *pruned_with,
        ]
        key = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
        self.work = make_folder(Path(args.work) / key)
        self.cache = make_folder(args.work) / "cache"

    def windows(self, folds: Sequence[int]) -> AudioFiles:
        """Windows of the clips of these folds."""
        from l3prune.networks import l3
        from l3prune.windows import AudioFiles

        paths = [clip.path for clip in self.dataset.clips if clip.fold in folds]
        rate = l3.front_end(self.teacher).sample_rate
        return AudioFiles(paths, rate, self.cache, hop_size=self.args.hop_size, quiet=True)

    def judge(self, name: str, network, fold: int) -> dict:
        """Accuracy by classifier seed, and the error of the embedding, on one test fold."""
        from classifier.features import extract_features, read_features
        from classifier.train import train_fold
        from l3prune import graph
        from l3prune.evaluation import embedding_mse

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

    def distilled(self, state: str, fold: int):
        """The distilled network and the seconds that it took (the last part of a resumed run);
        trained only once."""
        from l3prune import graph
        from l3prune.checkpoints import LATEST
        from l3prune.datasets.splits import split_folds
        from l3prune.distillation import distill
        from l3prune.weights import load_network, save_network

        folder = self.work / "distilled" / state / f"fold{fold}"
        path = folder / "distilled.h5"
        record = folder / "finished.json"
        if not record.is_file():
            start = time.monotonic()
            valid_fold, train_folds = split_folds(self.dataset.folds, fold)
            student = self._pruned(state, fold)
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
            weights = graph.conv_weights(student)
            for name, mask in masks.items():
                if np.any(weights[name].kernel[~mask]):
                    raise AssertionError(f"{name}: a pruned weight is not zero")
            save_network(student, path)
            write_json(record, {"seconds": time.monotonic() - start})
        return load_network(path), read_json(record)["seconds"]

    def _pruned(self, state: str, fold: int):
        if state in self.by_fold:
            return self.prune(self.teacher, state, fold)
        return self.prune(self.teacher, state)

    def _judge_pruned(self, state: str) -> list[dict]:
        if state in self.by_fold:
            return [
                self.judge(f"pruned-{state}-fold{fold}", self._pruned(state, fold), fold)
                for fold in self.folds
            ]
        pruned = self.prune(self.teacher, state)
        return [self.judge(f"pruned-{state}", pruned, fold) for fold in self.folds]

    def run(self, states: Sequence[str], distilled: Sequence[str] | None = None) -> dict:
        """Judge the unpruned network and every state of it, and those to distil after that, too."""
        from l3prune.training import environment

        rows = {"unpruned": [self.judge("unpruned", self.teacher, fold) for fold in self.folds]}
        seconds = []
        for state in states:
            rows[f"pruned {state}"] = self._judge_pruned(state)
            if distilled is not None and state not in distilled:
                continue
            rows[f"distilled {state}"] = []
            for fold in self.folds:
                network, took = self.distilled(state, fold)
                seconds.append(took)
                row = self.judge(f"distilled-{state}-fold{fold}", network, fold)
                rows[f"distilled {state}"].append(row)
                print(
                    f"{state} fold {fold}: accuracy {np.mean(row['accuracy']):.3f}, "
                    f"mse {row['mse']:.4f}, {took:.0f} s",
                    flush=True,
                )
        return {
            "settings": {**vars(self.args), "folds": self.folds},
            "environment": environment(),
            "distillation_seconds": seconds,
            "rows": rows,
        }
