"""Train and test on official folds: one fold, or cross-validation over folds and seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classifier.features import Features, versions
from classifier.mlp import MLP, Recipe, best_row, check_seed, fit
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import make_folder, read_json, write_json, write_table


@dataclass(frozen=True)
class FoldResult:
    """What one classifier reached: on clips of its test fold, and on frames while it trained.

    Attributes
    ----------
    test_fold, valid_fold : int
    train_folds : tuple of int
    seed : int
    labels : tuple of str
    confusion : tuple of tuple of int, (classes, classes)
        Test clips: row = true class, column = predicted class.
    best_epoch, epochs : int
        The epoch whose weights were kept, from 1, and how many were run.
    train_loss, train_accuracy, valid_loss, valid_accuracy : float
        On frames, in the best epoch. Losses include the weight decay.

    Examples
    --------
    >>> result = FoldResult(1, 3, (2,), 0, ("a", "b"), ((3, 1), (0, 2)), 5, 9, 0.1, 1, 0.2, 0.9)
    >>> round(result.accuracy, 4), result.class_accuracy, result.average_class_accuracy
    (0.8333, (0.75, 1.0), 0.875)
    """

    test_fold: int
    valid_fold: int
    train_folds: tuple[int, ...]
    seed: int
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    best_epoch: int
    epochs: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float

    @property
    def accuracy(self) -> float:
        """Fraction of test clips whose class was predicted."""
        counts = np.array(self.confusion)
        return float(np.trace(counts) / counts.sum())

    @property
    def class_accuracy(self) -> tuple[float | None, ...]:
        """The same for the clips of each class; None for a class without test clips."""
        return tuple(
            row[i] / sum(row) if sum(row) else None for i, row in enumerate(self.confusion)
        )

    @property
    def average_class_accuracy(self) -> float:
        """Mean over the classes with test clips."""
        return float(np.mean([value for value in self.class_accuracy if value is not None]))

    def to_json(self) -> dict[str, Any]:
        """Every attribute and metric, as JSON has them."""
        return {
            "accuracy": self.accuracy,
            "average_class_accuracy": self.average_class_accuracy,
            "class_accuracy": dict(zip(self.labels, self.class_accuracy, strict=True)),
            **asdict(self),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FoldResult:
        """The result that `to_json` wrote."""
        values = {name: value[name] for name in cls.__dataclass_fields__}
        for name in ("train_folds", "labels"):
            values[name] = tuple(values[name])
        values["confusion"] = tuple(tuple(row) for row in values["confusion"])
        return cls(**values)


@dataclass(frozen=True)
class CrossValidation:
    """Results over folds and seeds, summed up.

    Attributes
    ----------
    results : tuple of FoldResult
        All with the same labels. They may come from features that differ by fold.

    Raises
    ------
    ParameterError
        There are no results, or their labels differ.

    Examples
    --------
    >>> one = FoldResult(1, 3, (2,), 0, ("a", "b"), ((3, 1), (0, 2)), 5, 9, 0.1, 1, 0.2, 0.9)
    >>> two = FoldResult(2, 1, (3,), 0, ("a", "b"), ((4, 0), (2, 0)), 5, 9, 0.1, 1, 0.2, 0.9)
    >>> print(CrossValidation((one, two)).table())
    2 folds x 1 seeds, percent       mean    std
    clip accuracy                    75.0   11.8
    average class accuracy           68.8   26.5
    frame accuracy, valid fold       90.0    0.0
    frame accuracy, train folds     100.0    0.0
    class a                          87.5   17.7
    class b                          50.0   70.7
    """

    results: tuple[FoldResult, ...]

    def __post_init__(self) -> None:
        if not self.results:
            raise ParameterError("no results to sum up; train at least one fold")
        if len({result.labels for result in self.results}) > 1:
            raise ParameterError("the results have different labels; sum up each corpus apart")

    @property
    def metrics(self) -> dict[str, list[float]]:
        """Metric -> its values, one per result; a class that a test fold lacks has fewer."""
        values = {
            "clip accuracy": [result.accuracy for result in self.results],
            "average class accuracy": [result.average_class_accuracy for result in self.results],
            "frame accuracy, valid fold": [result.valid_accuracy for result in self.results],
            "frame accuracy, train folds": [result.train_accuracy for result in self.results],
        }
        for i, label in enumerate(self.results[0].labels):
            accuracies = [result.class_accuracy[i] for result in self.results]
            values[f"class {label}"] = [value for value in accuracies if value is not None]
        return values

    @property
    def accuracy(self) -> float:
        """Mean clip accuracy over folds and seeds."""
        return float(np.mean([result.accuracy for result in self.results]))

    def summary(self) -> list[dict[str, Any]]:
        """metric, mean, std and n (values) of each metric.

        The standard deviation is the sample's (n - 1), over folds and seeds alike; 0 for one value.
        A class without any test clip has no row.
        """
        return [
            {
                "metric": metric,
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                "n": len(values),
            }
            for metric, values in self.metrics.items()
            if values
        ]

    def table(self) -> str:
        """The summary in percent, as text."""
        rows = self.summary()
        folds = len({result.test_fold for result in self.results})
        seeds = len({result.seed for result in self.results})
        title = f"{folds} folds x {seeds} seeds, percent"
        width = max(len(title), *(len(row["metric"]) for row in rows)) + 1
        lines = [f"{title:<{width}} {'mean':>6} {'std':>6}"]
        for row in rows:
            mean, std = 100 * row["mean"], 100 * row["std"]
            lines.append(f"{row['metric']:<{width}} {mean:6.1f} {std:6.1f}")
        return "\n".join(lines)

    def save(self, output_dir: str | os.PathLike[str]) -> None:
        """Write `cv.json` (summary, summed confusion, every result) and `cv.csv` (summary)."""
        confusion = np.sum([result.confusion for result in self.results], axis=0)
        summary = self.summary()
        write_json(
            Path(output_dir) / "cv.json",
            {
                "labels": self.results[0].labels,
                "summary": summary,
                "confusion": confusion,
                "results": [result.to_json() for result in self.results],
            },
        )
        write_table(Path(output_dir) / "cv.csv", summary)


def split_folds(folds: Sequence[int], test_fold: int) -> tuple[int, tuple[int, ...]]:
    """Which fold validates and which folds train when one is tested.

    Parameters
    ----------
    folds : sequence of int
        The folds that exist, ascending.
    test_fold : int
        One of them.

    Returns
    -------
    valid_fold : int
        The fold before the test fold; before the first comes the last.
    train_folds : tuple of int
        All others.

    Raises
    ------
    ParameterError
        Fewer than three folds, or no such fold.

    Examples
    --------
    >>> split_folds((1, 2, 4, 5), 4), split_folds((1, 2, 4, 5), 1)
    ((2, (1, 5)), (5, (2, 4)))
    """
    folds = tuple(folds)
    known = ", ".join(map(str, folds))
    if len(folds) < 3:
        raise ParameterError(
            f"only fold {known} has features; testing, validation and training need 3 folds"
        )
    if test_fold not in folds:
        raise ParameterError(f"fold {test_fold} does not exist; folds: {known}")
    valid_fold = folds[folds.index(test_fold) - 1]
    return valid_fold, tuple(fold for fold in folds if fold not in (test_fold, valid_fold))


def predict_clips(mlp: MLP, embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """Class of each clip: the largest mean probability over its frames.

    Parameters
    ----------
    mlp : MLP
    embeddings : sequence of np.ndarray, (frames, D) float32

    Returns
    -------
    targets : np.ndarray, (clips,) int64

    Examples
    --------
    >>> one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    >>> mlp = MLP(none, one, (np.float32([[0, 1]]),), (np.zeros(2, np.float32),))
    >>> predict_clips(mlp, [np.float32([[-1], [-1], [9]]), np.float32([[-1], [0]])])
    array([1, 0])
    """
    return np.array([mlp.predict(frames).mean(axis=0).argmax() for frames in embeddings], np.int64)


def train_fold(
    features: Features,
    fold: int,
    output_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    quiet: bool = False,
) -> FoldResult:
    """Train on all folds but two, choose the epoch on one of these, test on the other.

    Parameters
    ----------
    features : Features
        Of at least three folds. They may have been made for this test fold alone.
    fold : int
        The test fold. The fold before it validates, see `split_folds`.
    output_dir : str or path-like
        `fold{k}/seed{s}` in it receives `mlp.npz` (scaler and weights), `history.csv` and
        `result.json`. A result that is there, of the same features and recipe, is returned as it
        is.
    seed : int
        0 or more.
    recipe : Recipe, optional
    quiet : bool
        Show no progress bar.

    Returns
    -------
    result : FoldResult

    Raises
    ------
    ParameterError
        No such fold, fewer than three folds, or a bad seed; nothing is written.
    L3PruneError
        The folder has a result of other features or another recipe, which is kept; or the loss is
        not finite, and no result is written.

    Examples
    --------
    >>> frames = (np.zeros((1, 2), np.float32),) * 2
    >>> features = Features("toy", ("dog",), ("a", "b"), [1, 2], [0, 0], frames)
    >>> train_fold(features, 1, "results")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: only fold 1, 2 has features; ...
    """
    recipe = recipe or Recipe()
    check_seed(seed)
    config = _config(features, fold, seed, recipe)
    valid_fold, train_folds = config["valid_fold"], tuple(config["train_folds"])
    folder = _folder(output_dir, fold, seed)
    finished = _finished(folder, config)
    if finished:
        return finished
    # Before the training, which may take an hour.
    make_folder(folder.parent)
    mlp, history = fit(
        features.frames_in(train_folds),
        features.frames_in([valid_fold]),
        len(features.labels),
        seed=seed,
        recipe=recipe,
        title=None if quiet else f"fold {fold} seed {seed}",
    )
    best = best_row(history)
    clips = features.clips_in([fold])
    predicted = predict_clips(mlp, [features.embeddings[clip] for clip in clips])
    confusion = np.zeros((len(features.labels),) * 2, int)
    np.add.at(confusion, (features.targets[clips], predicted), 1)
    result = FoldResult(
        test_fold=int(fold),
        valid_fold=valid_fold,
        train_folds=train_folds,
        seed=int(seed),
        labels=features.labels,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        best_epoch=int(best["epoch"]),
        epochs=len(history),
        train_loss=best["loss"],
        train_accuracy=best["accuracy"],
        valid_loss=best["val_loss"],
        valid_accuracy=best["val_accuracy"],
    )
    mlp.save(folder / "mlp.npz")
    write_table(folder / "history.csv", history)
    # Last: it says that the fold is finished.
    write_json(
        folder / "result.json",
        {
            "config": config,
            "result": result.to_json(),
            "dataset": features.dataset,
            "extraction": dict(features.extraction),
            "versions": versions(),
        },
    )
    return result


def cross_validate(
    features: Features,
    output_dir: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    folds: Sequence[int] | None = None,
    recipe: Recipe | None = None,
    quiet: bool = False,
) -> CrossValidation:
    """Train and test every fold with every seed. Finished folds are not trained again.

    Parameters
    ----------
    features : Features
        Of at least three folds.
    output_dir : str or path-like
        Receives what `train_fold` writes, and `cv.json` and `cv.csv`.
    seeds : sequence of int
        0 or more, each once.
    folds : sequence of int, optional
        Test folds; default all.
    recipe : Recipe, optional
    quiet : bool
        Show no progress bars.

    Returns
    -------
    results : CrossValidation

    Raises
    ------
    ParameterError
        No such fold, fewer than three folds, a bad or repeated seed; nothing is written.
    L3PruneError
        As `train_fold`.

    Examples
    --------
    >>> frames = (np.zeros((1, 2), np.float32),) * 3
    >>> features = Features("toy", ("dog",), ("a", "b", "c"), [1, 2, 3], [0] * 3, frames)
    >>> cross_validate(features, "results", folds=[4])
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: fold 4 does not exist; folds: 1, 2, 3
    """
    chosen = features.fold_numbers if folds is None else tuple(folds)
    for name, values in (("seeds", tuple(seeds)), ("folds", chosen)):
        if not values or len(set(values)) < len(values):
            raise ParameterError(f"{name}={values} is empty or repeats one; give each once")
    for seed in seeds:
        check_seed(seed)
    # All first: a fold that was trained otherwise should not show up hours later.
    for fold in chosen:
        for seed in seeds:
            config = _config(features, fold, seed, recipe or Recipe())
            _finished(_folder(output_dir, fold, seed), config)
    results = CrossValidation(
        tuple(
            train_fold(features, fold, output_dir, seed=seed, recipe=recipe, quiet=quiet)
            for fold in chosen
            for seed in seeds
        )
    )
    results.save(output_dir)
    return results


def _folder(output_dir: str | os.PathLike[str], fold: int, seed: int) -> Path:
    return Path(output_dir) / f"fold{fold}" / f"seed{seed}"


def _config(features: Features, fold: int, seed: int, recipe: Recipe) -> dict[str, Any]:
    """All that a result depends on, as JSON has it."""
    valid_fold, train_folds = split_folds(features.fold_numbers, fold)
    return {
        "features_sha256": features.fingerprint,
        "test_fold": int(fold),
        "valid_fold": valid_fold,
        "train_folds": list(train_folds),
        "seed": int(seed),
        **asdict(recipe),
    }


def _finished(folder: Path, config: dict[str, Any]) -> FoldResult | None:
    """The result in `folder`; None if there is none, an error if it is of another configuration."""
    path = folder / "result.json"
    if not path.is_file() or not (folder / "mlp.npz").is_file():
        return None
    record = read_json(path)
    try:
        found, result = dict(record["config"]), FoldResult.from_json(record["result"])
    except (KeyError, TypeError, ValueError) as error:
        raise L3PruneError(f"{path} is no result ({error!r}); delete it to train again") from error
    changed = [key for key, value in config.items() if found.get(key) != value]
    if changed:
        was, now = ({key: source.get(key) for key in changed} for source in (found, config))
        raise L3PruneError(
            f"{folder} has a result with {was}, this run has {now}; choose another output folder"
        )
    return result
