"""What a network is retrained and judged on: the embedding of the unpruned one, or labels."""

from __future__ import annotations

import abc
import argparse
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tf_keras as keras
from tqdm import tqdm

from l3prune import models
from l3prune.activations import DATA_CRITERIA, Batches
from l3prune.audio import frame_audio, load_audio, to_mono
from l3prune.batches import Numbered
from l3prune.checkpoints import LATEST, take_weights
from l3prune.classification import (
    front_end_layer,
    network_for,
    objective_of,
    train_on_labels,
    trained_part,
)
from l3prune.corpus import Corpus
from l3prune.datasets import Dataset, load_dataset
from l3prune.datasets.splits import split_folds
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, fingerprint, make_folder
from l3prune.labelled import LabelledMaps
from l3prune.methods.probe import clip_features, probe
from l3prune.networks import inference, list_networks, network_config, takes
from l3prune.recipes import EMBEDDING, Recipe
from l3prune.retraining import recipe_of
from l3prune.slimming import with_penalty
from l3prune.training import fit
from l3prune.weights import fingerprint as network_fingerprint
from l3prune.weights import load_network, save_network
from l3prune.windows import batch_indices, cached_targets, evenly


class Task(abc.ABC):
    """A network, the data of some test folds, and how networks are retrained and judged on them.

    The front end is computed once; all networks are what is behind it.

    Parameters
    ----------
    args : argparse.Namespace
        From `settings.parse`.
    folds : tuple of int
        To test on.
    work : pathlib.Path
        Keeps what is computed once.

    Attributes
    ----------
    teacher : keras.Model
        The unpruned network.
    train_data, validation_data : LabelledMaps
        What networks are retrained on. No clip of a test fold is among them.

    Examples
    --------
    >>> issubclass(EmbeddingTask, Task) and issubclass(LabelTask, Task)
    True
    """

    teacher: keras.Model
    train_data: LabelledMaps
    validation_data: LabelledMaps

    #: Whether the unpruned network learns something in retraining too.
    control: bool

    def __init__(self, args: argparse.Namespace, folds: tuple[int, ...], work: Path) -> None:
        self.args = args
        self.folds = folds
        self.work = work

    @classmethod
    @abc.abstractmethod
    def check(cls, args: argparse.Namespace, network: keras.Model, dataset: Dataset) -> None:
        """Refuse what cannot be compared, before anything is computed or written."""

    @abc.abstractmethod
    def figures(self, network: keras.Model, keep: bool = False) -> dict[str, dict[str, float]]:
        """How good a network is on each test fold: fold -> its figures, accuracy among them.

        With `keep`, what it says of the clips is kept, for others like it.
        """

    @abc.abstractmethod
    def _targets(self, targets: np.ndarray) -> np.ndarray:
        """What a criterion's loss compares outputs with."""

    @abc.abstractmethod
    def _fit(self, network: keras.Model, folder: Path, recipe: Recipe, gamma_l1: float) -> None:
        """Train a network in place; go on where it was stopped."""

    def train(
        self,
        network: keras.Model,
        folder: Path,
        epochs: int,
        seed: int,
        *,
        gamma_l1: float = 0.0,
        **changed: Any,
    ) -> None:
        """Retrain a network in place for a part of the budget; goes on where it was stopped.

        Parameters
        ----------
        network : keras.Model
        folder : pathlib.Path
        epochs, seed : int
        gamma_l1 : float
            See `slimming.with_penalty`.
        **changed
            Of the recipe, where a method's own training differs.
        """
        recipe = recipe_of(self.args)
        changed = {"epochs": epochs, "seed": seed, "checkpoint_interval": 0, **changed}
        self._fit(network, folder, replace(recipe, **changed), gamma_l1)

    def scoring_batches(self) -> Batches:
        """Training inputs, evenly spread, for criteria that score filters on data."""
        count = min(self.args.criterion_inputs, len(self.train_data))
        size = self.args.validation_batch_size
        chosen = (2 * np.arange(count) + 1) * len(self.train_data) // (2 * count)
        inputs, targets = self.train_data.read(chosen)
        wanted = self._targets(targets)
        for start in range(0, count, size):
            yield inputs[start : start + size], wanted[start : start + size]


class EmbeddingTask(Task):
    """Networks learn the unpruned one's embedding; a linear classifier judges theirs.

    Where several folds are tested on at once, the fold before them validates the distillation and
    all others train; the classifier always has its own three parts, see `splits.split_folds`.

    Examples
    --------
    >>> EmbeddingTask.control  # its embedding is what there is to learn
    False
    """

    control = False

    def __init__(self, args: argparse.Namespace, folds: tuple[int, ...], work: Path) -> None:
        super().__init__(args, folds, work)
        whole = models.load_audio(args.network, input="waveform")
        self.teacher = trained_part(whole)
        self.dataset = load_dataset(args.dataset, args.data_dir)
        self._split = _distillation_folds(self.dataset.folds, folds)
        maps, self._clips, mark = _window_maps(whole, self.dataset, args, work)
        self._targets_of = np.array([clip.target for clip in self.dataset.clips])
        self._fold_of = np.array([clip.fold for clip in self.dataset.clips])
        source = LabelledMaps(maps, np.empty((len(maps), 0), np.float32), (), mark)
        embeddings = self._embeddings(self.teacher, source, keep=True)
        self._data = replace(source, targets=embeddings)
        self.validation_data, self.train_data = (
            self._data.subset(self._windows(folds)) for folds in self._split
        )

    @classmethod
    def check(cls, args: argparse.Namespace, network: keras.Model, dataset: Dataset) -> None:
        EMBEDDING.figure(args.best_by)
        name = network_config(network).name
        if takes(name, "classes"):
            raise ParameterError(
                f"network {name} in {args.network} scores classes, and may have been trained on "
                f"clips to test on: give --network {name}, which is trained anew for each fold"
            )
        rate = front_end_layer(network).sample_rate
        if network.input_shape[1:] != (1, rate) or len(network.output_shape) != 2:
            raise ParameterError(
                f"network {network.name} makes {network.output_shape[1:]} values of inputs of "
                f"shape {network.input_shape[1:]}; embeddings are compared of windows of one "
                f"second, (1, {rate})"
            )
        _check_classes(dataset)
        for start in range(0, len(dataset.folds), args.held_out):
            group = dataset.folds[start : start + args.held_out]
            _distillation_folds(dataset.folds, group)

    def _windows(self, folds: Sequence[int]) -> Any:
        return np.flatnonzero(np.isin(self._fold_of[self._clips], folds))

    def _embeddings(self, network: keras.Model, source: LabelledMaps, keep: bool) -> np.ndarray:
        inputs, infer = _Inputs(source), inference(network)
        if not keep:
            batches = evenly(len(inputs), self.args.validation_batch_size, None)
            return np.concatenate([infer(inputs.read(batch)) for batch in batches])
        return cached_targets(
            inputs,
            infer,
            network_fingerprint(network),
            network.output_shape[-1],
            self.work / "cache",
            batch_size=self.args.validation_batch_size,
            quiet=True,
        )

    def figures(self, network: keras.Model, keep: bool = False) -> dict[str, dict[str, float]]:
        embeddings = self._embeddings(network, self._data, keep)
        features = clip_features(embeddings, self._clips)
        found = {}
        for fold in self.folds:
            valid_fold, train_folds = split_folds(self.dataset.folds, fold)
            parts = (train_folds, (valid_fold,), (fold,))
            clips = (np.flatnonzero(np.isin(self._fold_of, each)).tolist() for each in parts)
            validation, test = probe(features, self._targets_of, *clips)
            here = self._windows((fold,))
            distances = np.square(embeddings[here] - self._data.targets[here].astype(np.float64))
            found[str(fold)] = {
                "accuracy": test,
                "validation_accuracy": validation,
                "mse": float(distances.mean()),
            }
        return found

    def _targets(self, targets: np.ndarray) -> np.ndarray:
        # At the network's own embeddings the gradient would be zero.
        return np.tile(
            self.train_data.targets[self.train_data.rows].mean(axis=0), (len(targets), 1)
        )

    def _fit(self, network: keras.Model, folder: Path, recipe: Recipe, gamma_l1: float) -> None:
        size = self.args.train_batch_size
        batches = functools.partial(batch_indices, self.train_data, size, recipe.seed)
        chosen = evenly(
            len(self.validation_data),
            self.args.validation_batch_size,
            self.args.validation_epoch_size,
        )
        trained = with_penalty(network, gamma_l1) if gamma_l1 else network
        fit(
            trained,
            Numbered(batches, self.train_data.read),
            Numbered(lambda first: iter(chosen[first:]), self.validation_data.read),
            self.args.train_epoch_size or -(-len(self.train_data) // size),
            folder,
            recipe,
            objective=EMBEDDING,
            data={"batch_size": size, "training_data": self.train_data.fingerprint},
            resume=(folder / LATEST).is_file(),
            quiet=True,
        )
        if trained is not network:
            take_weights(network, trained)


class LabelTask(Task):
    """Networks learn labels, the unpruned one first; their own accuracy judges them.

    Examples
    --------
    >>> LabelTask.control
    True
    """

    control = True

    def __init__(self, args: argparse.Namespace, folds: tuple[int, ...], work: Path) -> None:
        super().__init__(args, folds, work)
        self.corpus = Corpus(args.dataset, args.data_dir, folds[0])
        network = self._fresh(None)
        cache = make_folder(work / "cache")
        self.corpus.open(network, cache, quiet=args.quiet)
        network = self._fresh(self.corpus.train)
        self.corpus.normalise_for(network)
        self.train_data, self.validation_data = self.corpus.train, self.corpus.validation
        path = work / "teachers" / f"fold{folds[0]}.h5"
        with _alone(path):
            if not path.is_file():
                self.train(network, path.with_suffix(""), args.teacher_epochs, 0)
                save_network(network, path)
        self.teacher = trained_part(load_network(path))

    @classmethod
    def check(cls, args: argparse.Namespace, network: keras.Model, dataset: Dataset) -> None:
        if args.held_out > 1:
            raise ParameterError("--held-out is for embeddings: labels of one fold are held out")
        _check_classes(dataset)
        Corpus(args.dataset, args.data_dir).check(network)
        scored = [name for name in args.filterwise if name in DATA_CRITERIA]
        if scored and front_end_layer(network).segment_frames is not None:
            raise ParameterError(
                f"--filterwise {scored[0]} scores whole clips, and network {network.name} hears "
                "them in segments; leave it out"
            )
        objective_of(network, False).figure(args.best_by)

    def _fresh(self, train: LabelledMaps | None) -> keras.Model:
        keras.utils.set_random_seed(0)
        given = self.args.network_arguments or {}
        return network_for(self.args.network, self.corpus.dataset.labels, train, **given)

    def figures(self, network: keras.Model, keep: bool = False) -> dict[str, dict[str, float]]:
        figures, _ = self.corpus.figures(network, quiet=True)
        return {
            str(self.folds[0]): {
                "accuracy": figures["test_accuracy"],
                "validation_accuracy": figures["validation_accuracy"],
                "log_loss": figures["test_log_loss"],
            }
        }

    def _targets(self, targets: np.ndarray) -> np.ndarray:
        return targets

    def _fit(self, network: keras.Model, folder: Path, recipe: Recipe, gamma_l1: float) -> None:
        train_on_labels(
            network,
            self.train_data,
            self.validation_data,
            folder,
            recipe=recipe,
            batch_size=self.args.train_batch_size,
            validation_batch_size=self.args.validation_batch_size,
            train_epoch_size=self.args.train_epoch_size,
            validation_epoch_size=self.args.validation_epoch_size,
            gamma_l1=gamma_l1,
            resume=(folder / LATEST).is_file(),
            quiet=True,
        )


def task_of(args: argparse.Namespace) -> type[Task]:
    """Which task a network has: labels if it is one to be built, embeddings if it is a file.

    Examples
    --------
    >>> task_of(argparse.Namespace(network="dcase2021")).__name__
    'LabelTask'
    """
    return LabelTask if args.network in list_networks() else EmbeddingTask


def network_of(args: argparse.Namespace, dataset: Dataset) -> keras.Model:
    """The network to compare, before it is trained if it is one to be built.

    Examples
    --------
    >>> args = argparse.Namespace(network="/nowhere.h5", network_arguments=None)
    >>> network_of(args, Dataset("toy", (), ("dog",)))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: /nowhere.h5; published weights have ...
    """
    if task_of(args) is LabelTask:
        return network_for(args.network, dataset.labels, **(args.network_arguments or {}))
    if args.network_arguments is not None:
        raise ParameterError(
            f"--network-arguments is for names of create_network ({', '.join(list_networks())}), "
            f"and --network {args.network} is none"
        )
    return models.load_audio(args.network, input="waveform")


def _check_classes(dataset: Dataset) -> None:
    if dataset.multi_label:
        raise ParameterError(
            f"{dataset.name} has several classes a clip; this table has accuracies, of one class a "
            "clip: take a corpus of such"
        )


class _Inputs:
    """The inputs alone, as what computes a network's outputs reads them."""

    def __init__(self, source: LabelledMaps) -> None:
        self._source = source
        self.fingerprint = source.fingerprint
        self.sample_rate = 0

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._source.read(indices)[0]

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return self._source.order(generator)


def _distillation_folds(
    folds: Sequence[int], tested: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which folds validate and train a distillation that leaves some out."""
    split_folds(folds, tested[0])  # refuses those that are not there
    rest = [fold for fold in folds if fold not in tested]
    if len(rest) < 2:
        raise ParameterError(
            f"--held-out {len(tested)} of {len(folds)} folds leaves no two to distil and to "
            "validate on; give less"
        )
    before = max((fold for fold in rest if fold < tested[0]), default=rest[-1])
    return (before,), tuple(fold for fold in rest if fold != before)


def _window_maps(
    network: keras.Model, dataset: Dataset, args: argparse.Namespace, work: Path
) -> tuple[np.ndarray, np.ndarray, str]:
    """The front end's maps of all windows, which clip each is of, and what tells them apart."""
    layer = front_end_layer(network)
    rate = layer.sample_rate
    paths = [clip.path for clip in dataset.clips]
    front_end = inference(keras.Model(network.input, layer.output))
    settings = {"sample_rate": rate, "hop_size": args.hop_size}
    told = json.dumps([type(layer).__name__, layer.get_config()], sort_keys=True)
    mark = f"{fingerprint(paths, **settings)}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    files = [work / "cache" / f"{name}-{mark}.npy" for name in ("maps", "clips")]
    make_folder(work / "cache")
    with _alone(files[0]):
        if not all(file.is_file() for file in files):
            maps, clips = [], []
            disable = args.quiet or None
            for number, path in enumerate(tqdm(paths, "decoding", unit="clip", disable=disable)):
                audio, given = load_audio(path)
                try:
                    mono = to_mono(audio, given, rate)
                    windows = frame_audio(mono, rate, hop_size=args.hop_size, center=False)
                except ParameterError as error:
                    raise L3PruneError(f"{path}: {error}") from error
                maps.append(front_end(np.ascontiguousarray(windows)[:, np.newaxis]))
                clips.append(np.full(len(windows), number))
            for file, parts in zip(files, (maps, clips), strict=True):
                with atomic_write(file) as temporary, temporary.open("wb") as stream:
                    np.save(stream, np.concatenate(parts))
    maps_of, clip_of = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
    return maps_of, np.asarray(clip_of), mark


def _alone(path: Path) -> filelock.BaseFileLock:
    """Tasks that share a work folder wait for the first that makes a file."""
    make_folder(path.parent)
    return filelock.FileLock(path.with_suffix(".lock"))
