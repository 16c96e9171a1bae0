"""A study of one network on one corpus: prune, distil, embed, classify; every part kept on disk."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from classifier.features import extract_features, read_features
from classifier.train import split_folds, train_fold
from l3prune import graph
from l3prune.datasets import Dataset, load_dataset
from l3prune.distillation import distill
from l3prune.evaluation import embedding_mse
from l3prune.files import make_folder, read_json, write_json
from l3prune.networks import l3
from l3prune.training import LATEST, Recipe, environment
from l3prune.weights import fingerprint, load_network, save_network
from l3prune.windows import AudioFiles


class Study:
    """One network, one corpus; every part of the result is kept as a file."""

    def __init__(self, args: argparse.Namespace, prune: Callable):
        """`prune` makes of the network and a state's name the network in this state."""
        self.args = args
        self.prune = prune
        self.dataset: Dataset = load_dataset("esc50", args.data)
        self.folds = tuple(args.folds or self.dataset.folds)
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
        ]
        key = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
        self.work = make_folder(Path(args.work) / key)
        self.cache = make_folder(args.work) / "cache"

    def windows(self, folds: Sequence[int]) -> AudioFiles:
        paths = [clip.path for clip in self.dataset.clips if clip.fold in folds]
        rate = l3.front_end(self.teacher).sample_rate
        return AudioFiles(paths, rate, self.cache, hop_size=self.args.hop_size, quiet=True)

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

    def distilled(self, state: str, fold: int):
        """The distilled network and the seconds that it took (the last part of a resumed run);
        trained only once."""
        folder = self.work / "distilled" / state / f"fold{fold}"
        path = folder / "distilled.h5"
        record = folder / "finished.json"
        if not record.is_file():
            start = time.monotonic()
            valid_fold, train_folds = split_folds(self.dataset.folds, fold)
            student = self.prune(self.teacher, state)
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

    def run(self, states: Sequence[str], distilled: Sequence[str] | None = None) -> dict:
        """Judge the unpruned network and every state of it, and those to distil after that, too."""
        rows = {"unpruned": [self.judge("unpruned", self.teacher, fold) for fold in self.folds]}
        seconds = []
        for state in states:
            pruned = self.prune(self.teacher, state)
            rows[f"pruned {state}"] = [
                self.judge(f"pruned-{state}", pruned, fold) for fold in self.folds
            ]
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
