"""A trained classifier of any kind: from the frames of a clip to class probabilities; its file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classifier.inputs import STATISTICS, Preparation
from classifier.mlp import MLP, Recipe, best_row, fit_mlp
from classifier.progress import MAX_BYTES, UNREADABLE, Checkpoint, read_arrays
from classifier.shallow import SVM, Forest, ForestRecipe, SVMRecipe, fit_forest, fit_svm
from l3prune.errors import L3PruneError
from l3prune.files import atomic_write

AnyRecipe = Recipe | SVMRecipe | ForestRecipe
AnyModel = MLP | SVM | Forest

RECIPES: dict[str, type[AnyRecipe]] = {"mlp": Recipe, "svm": SVMRecipe, "rf": ForestRecipe}
MODELS: dict[str, type[AnyModel]] = {"mlp": MLP, "svm": SVM, "rf": Forest}


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows to train or validate on.

    Attributes
    ----------
    values : np.ndarray, (n, in) float32
        Standardised.
    targets, groups : np.ndarray, (n,) int64
        Class of each row, and its clip; an augmented copy has its original's number.

    Examples
    --------
    >>> len(Rows(np.zeros((2, 3), np.float32), np.array([0, 1]), np.array([0, 0])).values)
    2
    """

    values: np.ndarray
    targets: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True, eq=False)
class Trained:
    """A model and how well it does on the rows that it was made with.

    Attributes
    ----------
    model : MLP, SVM or Forest
    train_accuracy : float
        Of an MLP: while the kept epoch was running.
    valid_accuracy : float or None
        None: nothing validated.
    history : list of dict
        See `fit_mlp`; empty for other kinds.

    Examples
    --------
    >>> Trained(MLP((), ()), 0.5, None, [{"epoch": 1, "loss": 2.0}]).best["loss"]
    2.0
    """

    model: AnyModel
    train_accuracy: float
    valid_accuracy: float | None
    history: list[dict[str, float]]

    @property
    def best(self) -> dict[str, float]:
        """The history's row of the epoch that was kept; empty for other kinds than the MLP."""
        return best_row(self.history) if self.history else {}


def fit_model(
    recipe: AnyRecipe,
    train: Rows,
    valid: Rows | None,
    classes: int,
    *,
    seed: int = 0,
    title: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Train the kind of model that the recipe is of.

    Parameters
    ----------
    recipe : Recipe, SVMRecipe or ForestRecipe
    train : Rows
    valid : Rows or None
        Chooses the epoch of an MLP; the other kinds are only scored on it.
    classes : int
        Length of the output.
    seed : int
    title : str, optional
        Of a progress bar; no bar without it.
    checkpoint : Checkpoint, optional
        Where the training of an MLP is kept while it runs, and gone on from.

    Returns
    -------
    trained : Trained

    Examples
    --------
    >>> rows = Rows(np.float32([[0], [1]]), np.array([0, 1]), np.array([0, 1]))
    >>> fit_model(ForestRecipe(trees=20), rows, rows, 2).model.shape
    (1, 2)
    """
    if isinstance(recipe, Recipe):
        held_out = None if valid is None else (valid.values, valid.targets)
        mlp, history = fit_mlp(
            (train.values, train.targets),
            held_out,
            classes,
            seed=seed,
            recipe=recipe,
            title=title,
            checkpoint=checkpoint,
        )
        best = best_row(history)
        return Trained(mlp, best["accuracy"], best.get("val_accuracy"), history)
    model: AnyModel
    if isinstance(recipe, SVMRecipe):
        model = fit_svm(
            train.values, train.targets, train.groups, classes, recipe=recipe, seed=seed
        )
    else:
        model = fit_forest(train.values, train.targets, classes, recipe=recipe, seed=seed)
    scores = [None if rows is None else _accuracy(model, rows) for rows in (train, valid)]
    return Trained(model, scores[0] or 0.0, scores[1], [])


@dataclass(frozen=True, eq=False)
class Classifier:
    """What turns the frames of a clip into class probabilities.

    Attributes
    ----------
    preparation : Preparation
    model : MLP, SVM or Forest

    Examples
    --------
    >>> zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    >>> mlp = MLP((np.float32([[0, 1]]),), (np.zeros(2, np.float32),))
    >>> Classifier(Preparation(False, 1, zero, one, zero, one), mlp).predict(np.float32([[0]]))
    array([0.5, 0.5], dtype=float32)
    """

    preparation: Preparation
    model: AnyModel

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """Class probabilities of a clip: the mean over its rows.

        Parameters
        ----------
        frames : np.ndarray, (n, D) float32
            As extracted.

        Returns
        -------
        probabilities : np.ndarray, (classes,) float32

        Raises
        ------
        ParameterError
            Another D than that of the training frames.
        """
        return self.model.predict(self.preparation.rows(frames)).mean(axis=0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz without pickles, the same bytes for the same classifier.

        Raises
        ------
        L3PruneError
            The arrays take more than 4 GiB, or the file cannot be written.
        """
        (kind,) = (name for name, cls in MODELS.items() if isinstance(self.model, cls))
        prepared = {name: getattr(self.preparation, name) for name in _PREPARATION}
        arrays: dict[str, Any] = {"kind": np.array(kind)}
        arrays |= {name: np.asarray(value) for name, value in prepared.items()}
        arrays |= {f"model.{name}": value for name, value in self.model.arrays().items()}
        size = sum(array.nbytes for array in arrays.values())
        if size > MAX_BYTES:
            raise L3PruneError(
                f"the classifier takes {size / 2**30:.1f} GiB, at most {MAX_BYTES / 2**30:.0f} can "
                "be stored; train fewer trees, or on stats or non-overlapping frames"
            )
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            # A file, because np.savez appends .npz to a path without it.
            np.savez_compressed(file, **arrays)


_PREPARATION = ("stats", "step", "low", "span", "mean", "scale")


def load_classifier(path: str | os.PathLike[str]) -> Classifier:
    """Read what `Classifier.save` wrote.

    Raises
    ------
    L3PruneError
        The file is missing, damaged, or holds something else.

    Examples
    --------
    >>> load_classifier("/nowhere/classifier.npz")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /nowhere/classifier.npz is missing; train it first
    """
    path = Path(path)
    if not path.is_file():
        raise L3PruneError(f"{path} is missing; train it first")
    try:
        return _from_arrays(read_arrays(path))
    except UNREADABLE as error:
        raise L3PruneError(f"{path} is no classifier ({error}); train it again") from error


def predict_clips(classifier: Classifier, embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """Class of each clip: the largest mean probability over its rows.

    Parameters
    ----------
    classifier : Classifier
    embeddings : sequence of np.ndarray, (frames, D) float32

    Returns
    -------
    targets : np.ndarray, (clips,) int64

    Examples
    --------
    >>> zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    >>> mlp = MLP((np.float32([[0, 1]]),), (np.zeros(2, np.float32),))
    >>> classifier = Classifier(Preparation(False, 1, zero, one, zero, one), mlp)
    >>> predict_clips(classifier, [np.float32([[-1], [-1], [9]]), np.float32([[-1], [0]])])
    array([1, 0])
    """
    return np.array([classifier.predict(frames).argmax() for frames in embeddings], np.int64)


def _accuracy(model: AnyModel, rows: Rows) -> float:
    return float(np.mean(model.predict(rows.values).argmax(axis=1) == rows.targets))


def _from_arrays(arrays: dict[str, np.ndarray]) -> Classifier:
    kind = str(arrays["kind"])
    if kind not in MODELS:
        raise ValueError(f"it is of kind {kind!r}, known are {', '.join(MODELS)}")
    prefix = "model."
    model = MODELS[kind].from_arrays(
        {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    )
    vectors = {name: arrays[name] for name in ("low", "span", "mean", "scale")}
    preparation = Preparation(bool(arrays["stats"]), int(arrays["step"]), **vectors)
    dimension, size = len(preparation.low), model.shape[0]
    if size != dimension * (len(STATISTICS) if preparation.stats else 1) or preparation.step < 1:
        raise ValueError(f"its model takes rows of {size} values, its frames have {dimension}")
    lengths = {"low": dimension, "span": dimension, "mean": size, "scale": size}
    for name, length in lengths.items():
        if vectors[name].shape != (length,) or vectors[name].dtype != np.float32:
            raise ValueError(f"its {name} is not {length} float32 values")
    return Classifier(preparation, model)
