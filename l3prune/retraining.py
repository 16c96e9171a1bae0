"""Two ways to retrain a pruned audio network: distillation, and audio-visual correspondence.

`label_training` is the third.
"""

from __future__ import annotations

import abc
import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from l3prune import avc, graph, models, surgery
from l3prune.audio import find_audio, load_audio
from l3prune.correspondence import correspondence, train_correspondence
from l3prune.datasets.avc import open_pairs
from l3prune.descent import descent_of
from l3prune.devices import Devices
from l3prune.distillation import check_pair, distill, open_pair, unexplained_variance
from l3prune.errors import ParameterError
from l3prune.evaluation import Report, embedding_mse
from l3prune.gradual import MaskUpdate
from l3prune.networks import create_network, inference, l3
from l3prune.options import MODEL_TYPES
from l3prune.plan import PruningPlan
from l3prune.pruner import Wish
from l3prune.recipes import CORRESPONDENCE, EMBEDDING, Recipe
from l3prune.reduction import REDUCTION, Reduction
from l3prune.scan import Spread
from l3prune.windows import WindowSource, open_windows


class Retraining(abc.ABC):
    """What a run retrains, on which data, and how it is judged.

    Parameters
    ----------
    args : argparse.Namespace
        From `options.parse`.
    devices : Devices or None
        To train on; None is one device.

    Attributes
    ----------
    unpruned : keras.Model
        What is in the weight file, as it is judged.
    whole : keras.Model
        The audio network that is pruned.

    Raises
    ------
    L3PruneError
        The weight file is not what it should be.

    Examples
    --------
    >>> issubclass(Distillation, Retraining) and issubclass(FineTuning, Retraining)
    True
    """

    unpruned: keras.Model
    whole: keras.Model
    #: Further cuts, each followed by its own retraining; only of labels.
    later: Sequence[Wish] = ()

    def __init__(self, args: argparse.Namespace, devices: Devices | None = None) -> None:
        self.args = args
        self.devices = devices or Devices()

    @abc.abstractmethod
    def check(self, pruned: keras.Model) -> None:
        """Refuse an audio network that cannot be retrained so."""

    @abc.abstractmethod
    def open(self, cache_dir: Path) -> None:
        """Open the data; what is wrong with them shows here."""

    @property
    @abc.abstractmethod
    def windows(self) -> int:
        """How many there are to train on."""

    @abc.abstractmethod
    def _sound(self) -> WindowSource:
        """Training windows for the pruned network."""

    @abc.abstractmethod
    def begin(self, pruned: keras.Model, plan: PruningPlan) -> keras.Model:
        """What is trained and judged, from the pruned audio network and the plan that made it."""

    @abc.abstractmethod
    def train(
        self,
        student: keras.Model,
        run_dir: Path,
        recipe: Recipe,
        update: MaskUpdate | None,
        resumed: bool,
    ) -> tuple[dict[str, keras.Model], list[dict[str, float]]]:
        """Retrain what `begin` gave, in place; gives the networks to report on, by what they are
        called there, the last being the result, and the history."""

    @abc.abstractmethod
    def figures(self, name: str, network: keras.Model, run_dir: Path) -> dict[str, float | None]:
        """How good a network is, of those that `begin` gave or `train` trained, or `unpruned`."""

    @abc.abstractmethod
    def audio(self, network: keras.Model) -> keras.Model:
        """The audio network of one of these."""

    def write(self, report: Report, run_dir: Path) -> None:
        """Write what was found out about the networks."""
        report.to_json(run_dir / "report.json")

    def check_batch(self) -> None:
        """Refuse training batches larger than the data: they would have a window twice."""
        size = self.args.train_batch_size
        if self.args.retrain and size > self.windows:
            raise ParameterError(
                f"--train-batch-size {size} is more than the {self.windows} windows in "
                f"{self.args.train_data_dir}; give at most so many, or more audio, or a smaller "
                "--hop-size"
            )

    def scoring_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Training windows for a criterion that scores filters on data, with targets for taylor.

        The targets are the mean embedding: the loss is what the embedding tells apart, its
        variance. At a network's own embeddings, a gradient of the distance to them would be zero.
        """
        chosen = Spread(self._sound(), self.args.criterion_windows)
        size = self.args.validation_batch_size
        starts = range(0, len(chosen), size)
        batches = [np.arange(start, min(start + size, len(chosen))) for start in starts]
        infer = inference(self.whole)
        total = sum(infer(chosen.read(batch)).sum(axis=0, dtype=np.float64) for batch in batches)
        mean = np.asarray(total / len(chosen), np.float32)
        for batch in batches:
            yield chosen.read(batch), np.tile(mean, (len(batch), 1))

    def _sizes(self) -> dict[str, Any]:
        return {
            "batch_size": self.args.train_batch_size,
            "validation_batch_size": self.args.validation_batch_size,
            "train_epoch_size": self.args.train_epoch_size,
            "validation_epoch_size": self.args.validation_epoch_size,
        }


class Distillation(Retraining):
    """The student learns the embedding of the unpruned network; see `distillation`.

    Examples
    --------
    >>> from l3prune.options import parse
    >>> Distillation(parse(["/nowhere.h5", "train", "valid", "out", "--layerwise"]))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: /nowhere.h5; published weights have ...
    """

    def __init__(self, args: argparse.Namespace, devices: Devices | None = None) -> None:
        super().__init__(args, devices)
        # The data are sound, whatever the network in the file was trained on.
        model_type = MODEL_TYPES.get(args.model_type, args.model_type)
        self.unpruned = models.load_audio(args.weight_path, model_type, input="waveform")
        self.whole = self._student()

    def _student(self) -> keras.Model:
        """The network to prune: the teacher, some layers of it, or another."""
        args, teacher = self.args, self.unpruned
        student = teacher
        keras.utils.set_random_seed(args.random_state)  # for fresh weights
        if args.student in l3.SPECS:
            student = create_network(args.student, front_end=l3.front_end(teacher).form)
        elif args.student is not None:
            student = models.load_audio(args.student, input="waveform")
        if args.include_layers is not None or args.from_conv_layer is not None:
            student = l3.depth_student(student, args.include_layers, args.from_conv_layer)
        return student

    def check(self, pruned: keras.Model) -> None:
        EMBEDDING.figure(self.args.best_by)
        check_pair(pruned, self.unpruned, self.args.reduction)

    def open(self, cache_dir: Path) -> None:
        # Files are decoded into the cache, which may take long; so first comes a look at the
        # headers of both sides' files, for which nothing is written.
        args = self.args
        rates = l3.front_end(self.whole).sample_rate, l3.front_end(self.unpruned).sample_rate
        folders = (args.train_data_dir, args.validation_data_dir)
        for folder in folders:
            audio = find_audio(folder)
            if not audio or any(Path(folder).rglob("*.h5")):
                # Shards, or an error: neither writes anything.
                open_windows(
                    folder, max(rates), cache_dir, hop_size=args.hop_size, quiet=args.quiet
                )
            for path in audio:
                if not _has_audio_header(path):
                    load_audio(path)  # says what is wrong
        self._cache_dir = cache_dir
        self._train, self._validation = (
            open_pair(folder, rates, cache_dir, hop_size=args.hop_size, quiet=args.quiet)
            for folder in folders
        )

    @property
    def windows(self) -> int:
        return len(self._train[0])

    def _sound(self) -> WindowSource:
        return self._train[0]

    def begin(self, pruned: keras.Model, plan: PruningPlan) -> keras.Model:
        return surgery.remove_filters(pruned, PruningPlan({}))  # a copy

    def train(
        self,
        student: keras.Model,
        run_dir: Path,
        recipe: Recipe,
        update: MaskUpdate | None,
        resumed: bool,
    ) -> tuple[dict[str, keras.Model], list[dict[str, float]]]:
        return {"retrained": student}, distill(
            student,
            self.unpruned,
            self._train,
            self._validation,
            run_dir,
            reduction=self.args.reduction,
            recipe=recipe,
            **self._sizes(),
            cache_dir=self._cache_dir,
            pruner=update,
            devices=self.devices,
            resume=resumed,
            quiet=self.args.quiet,
        )

    def figures(self, name: str, network: keras.Model, run_dir: Path) -> dict[str, float | None]:
        # How far the embedding is from the teacher's, as far as the two compare.
        args, teacher = self.args, self.unpruned
        if args.reduction is None:
            try:
                check_pair(network, teacher, None)
            except ParameterError:
                return {"validation_mse": None}
            windows = self._validation[1]
            mse = embedding_mse(network, teacher, windows, self._cache_dir, quiet=args.quiet)
            return {"validation_mse": mse}
        # A linear map is learned along with its student, and is of no other.
        if network is teacher or (args.reduction == "linear" and name != "retrained"):
            return {"validation_unexplained": None}
        return {
            "validation_unexplained": unexplained_variance(
                network,
                teacher,
                self._validation,
                self._cache_dir,
                Reduction.load(run_dir / REDUCTION),
                batch_size=args.validation_batch_size,
                quiet=args.quiet,
            )
        }

    def audio(self, network: keras.Model) -> keras.Model:
        return network


class FineTuning(Retraining):
    """The audio-visual network learns on, its image half frozen; see `correspondence`.

    Examples
    --------
    >>> from l3prune.options import parse
    >>> words = ["/nowhere.h5", "train", "valid", "out", "--layerwise", "--retrain", "--finetune"]
    >>> FineTuning(parse(words))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: /nowhere.h5; published weights have ...
    """

    def __init__(self, args: argparse.Namespace, devices: Devices | None = None) -> None:
        super().__init__(args, devices)
        self.unpruned = models.load(args.weight_path, "avc", input="waveform")
        self.whole = avc.audio_half(self.unpruned)
        wanted = MODEL_TYPES.get(args.model_type, args.model_type)
        if wanted not in (None, self.whole.name):
            raise ParameterError(
                f"--model-type {args.model_type}: the audio half of the network in "
                f"{args.weight_path} is {self.whole.name}"
            )

    def check(self, pruned: keras.Model) -> None:
        # Whatever can be pruned has a place in the audio-visual network.
        CORRESPONDENCE.figure(self.args.best_by)

    def open(self, cache_dir: Path) -> None:
        rate = l3.front_end(self.whole).sample_rate
        self._cache_dir = cache_dir
        self._train, self._validation = (
            open_pairs(folder, rate)
            for folder in (self.args.train_data_dir, self.args.validation_data_dir)
        )

    @property
    def windows(self) -> int:
        return len(self._train)

    def _sound(self) -> WindowSource:
        rate = self._train.sample_rate
        return open_windows(self.args.train_data_dir, rate, self._cache_dir)

    def begin(self, pruned: keras.Model, plan: PruningPlan) -> keras.Model:
        if self.args.filterwise:
            return surgery.remove_filters(self.unpruned, plan)
        # Those of the pruned network, which a schedule may not have filled yet.
        return surgery.apply_masks(self.unpruned, PruningPlan(graph.masks(pruned)))

    def train(
        self,
        student: keras.Model,
        run_dir: Path,
        recipe: Recipe,
        update: MaskUpdate | None,
        resumed: bool,
    ) -> tuple[dict[str, keras.Model], list[dict[str, float]]]:
        avc.freeze_vision(student)
        return {"retrained": student}, train_correspondence(
            student,
            self._train,
            self._validation,
            run_dir,
            recipe=recipe,
            **self._sizes(),
            pruner=update,
            devices=self.devices,
            resume=resumed,
            quiet=self.args.quiet,
        )

    def figures(self, name: str, network: keras.Model, run_dir: Path) -> dict[str, float | None]:
        return dict(
            correspondence(
                network,
                self._validation,
                batch_size=self.args.validation_batch_size,
                epoch_size=self.args.validation_epoch_size,
                quiet=self.args.quiet,
            )
        )

    def audio(self, network: keras.Model) -> keras.Model:
        return avc.audio_half(network)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe in the arguments that `arguments.training_options` adds.

    Examples
    --------
    >>> from l3prune.options import parse
    >>> recipe_of(parse(["w.h5", "train", "valid", "out", "--layerwise", "--retrain"])).epochs
    300
    """
    return Recipe(
        epochs=args.num_epochs,
        learning_rate=args.learning_rate,
        descent=descent_of(args),
        best_by=args.best_by,
        best_from=args.best_from,
        early_stopping_patience=args.early_stopping_patience,
        min_delta=args.min_delta,
        schedule=args.schedule,
        final_learning_rate=args.final_learning_rate,
        cosine_interval=args.cosine_interval,
        plateau_patience=args.plateau_patience,
        plateau_factor=args.plateau_factor,
        decay_from=args.decay_from,
        decay_to=args.decay_to,
        checkpoint_interval=args.checkpoint_interval,
        checkpoint_minutes=args.checkpoint_minutes,
        batch_norm=args.batch_norm,
        seed=args.random_state,
    )


def _has_audio_header(path: Path) -> bool:
    import soundfile

    try:
        return soundfile.info(path).frames > 0
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return False
