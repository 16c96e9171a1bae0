"""Train and test on official folds: one fold, or cross-validation over folds and seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from classifier.checks import check_seed
from classifier.features import versions
from classifier.inputs import Features, Inputs, Preparation, fit_preparation
from classifier.mlp import Recipe
from classifier.model import AnyRecipe, Classifier, Rows, fit_model, predict_clips
from classifier.progress import Checkpoint
from classifier.results import CrossValidation, FoldResult, save_confusion
from classifier.search import Search, kind_of, read_record, refit_recipe, search
from classifier.splits import Split, split_clips
from l3prune.datasets.splits import split_folds
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import make_folder, write_json, write_table

__all__ = ["CrossValidation", "FoldResult", "cross_validate", "split_folds", "train_fold"]

#: Files of a finished fold, and of one whose perceptron is being trained.
CLASSIFIER, RESULT = "classifier.npz", "result.json"
TRAINING = "training.npz"


def train_fold(
    features: Features,
    fold: int,
    output_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    recipe: AnyRecipe | None = None,
    inputs: Inputs | None = None,
    parameter_search: Search | None = None,
    quiet: bool = False,
) -> FoldResult:
    """Train on all folds but two, choose on one of these, test on the other.

    Whatever is chosen (epoch, parameters) is chosen by validation clips; see `split_clips` for
    which these are. The test fold is looked at once, when the model is finished.

    Parameters
    ----------
    features : Features
        Of at least two folds. They may have been made for this test fold alone.
    fold : int
        The test fold.
    output_dir : str or path-like
        `fold{k}/seed{s}` in it receives `classifier.npz`, `result.json`, `confusion.csv`,
        `confusion.png`, `classes.csv`, for an MLP `history.csv`, and for a search the folder
        `search`. A result that is there, of the same features and settings, is returned as it is.
        An MLP in training is kept in `training.npz`, every two minutes and when SIGTERM or SIGUSR1
        comes; a training that was interrupted goes on from it, to the same bits on one CPU.
    seed : int
        0 or more.
    recipe : Recipe, SVMRecipe or ForestRecipe, optional
        Its type says which kind of model. An MLP by default.
    inputs : Inputs, optional
        Frames by default.
    parameter_search : Search, optional
        Search for the recipe's main parameters first.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    result : FoldResult

    Raises
    ------
    ParameterError
        No such fold, fewer than two folds, or a bad seed; nothing is written.
    L3PruneError
        The folder has a result of other features or settings, which is kept; or the loss is not
        finite, and no result is written.
    Interrupted
        A signal came while an MLP was trained.

    Examples
    --------
    >>> frames = (np.zeros((1, 2), np.float32),) * 2
    >>> features = Features("toy", ("dog",), ("a", "b"), [1, 1], [0, 0], frames)
    >>> train_fold(features, 1, "results")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: only fold 1 has features; ...
    """
    recipe, inputs = recipe or Recipe(), inputs or Inputs()
    config = _config(features, fold, seed, recipe, inputs, parameter_search)
    split = _split(features, fold, seed, parameter_search)
    folder = _folder(output_dir, fold, seed)
    finished = _finished(folder, config)
    if finished:
        return finished
    # Before the training, which may take an hour.
    make_folder(folder.parent)
    title = None if quiet else f"fold {fold} seed {seed}"
    classes = len(features.labels)
    step = inputs.step(features)

    def prepared(clips: np.ndarray) -> Preparation:
        return fit_preparation(inputs, step, [features.embeddings[clip] for clip in clips])

    preparation = prepared(split.train)
    train, valid = (_rows(features, preparation, clips) for clips in (split.train, split.valid))
    parameters: AnyRecipe = recipe
    checkpoint = Checkpoint(folder / TRAINING, config)
    if parameter_search is None:
        trained = fit_model(
            recipe, train, valid, classes, seed=seed, title=title, checkpoint=checkpoint
        )
        classifier = Classifier(preparation, trained.model)
        history, best = trained.history, trained.best
        scores: dict[str, Any] = {
            "train_accuracy": trained.train_accuracy,
            "valid_accuracy": trained.valid_accuracy,
            "train_loss": best.get("loss"),
            "valid_loss": best.get("val_loss"),
        }
    else:
        keep = not parameter_search.train_with_valid
        chosen, found = search(
            recipe,
            train,
            valid,
            classes,
            folder / "search",
            config,
            preparation=preparation if keep else None,
            seed=seed,
            title=title,
        )
        parameters = chosen.recipe
        history, best = [], {}
        scores = {
            "train_accuracy": chosen.train_accuracy,
            "valid_accuracy": chosen.valid_accuracy,
            "valid_loss": chosen.valid_loss,
            "best_epoch": chosen.best_epoch,
        }
        if found is None:
            # Not both at once: each holds all frames.
            del train, valid
            preparation = prepared(split.refit)
            trained = fit_model(
                refit_recipe(chosen),
                _rows(features, preparation, split.refit),
                None,
                classes,
                seed=seed,
                title=title,
                checkpoint=checkpoint,
            )
            found = Classifier(preparation, trained.model)
            history, best = trained.history, trained.best
            scores |= {"train_accuracy": trained.train_accuracy, "train_loss": best.get("loss")}
        classifier = found
    if best:
        scores |= {"best_epoch": int(best["epoch"]), "epochs": len(history)}
    predicted = predict_clips(classifier, [features.embeddings[clip] for clip in split.test])
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (features.targets[split.test], predicted), 1)
    result = FoldResult(
        test_fold=int(fold),
        valid_fold=split.valid_fold,
        train_folds=split.train_folds,
        seed=int(seed),
        labels=features.labels,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        parameters={"model": kind_of(recipe), **asdict(parameters)},
        **scores,
    )
    classifier.save(folder / CLASSIFIER)
    if history:
        write_table(folder / "history.csv", history)
    save_confusion(folder, features.labels, confusion)
    # Last: it says that the fold is finished.
    write_json(
        folder / RESULT,
        {
            "config": config,
            "result": result.to_json(),
            "dataset": features.dataset,
            "extraction": dict(features.extraction),
            "versions": versions(),
        },
    )
    checkpoint.remove()
    for path in (folder / "search").glob("*.npz"):
        path.unlink()
    return result


def cross_validate(
    features: Features,
    output_dir: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    folds: Sequence[int] | None = None,
    recipe: AnyRecipe | None = None,
    inputs: Inputs | None = None,
    parameter_search: Search | None = None,
    quiet: bool = False,
) -> CrossValidation:
    """Train and test every fold with every seed. Finished folds are not trained again.

    Parameters
    ----------
    features : Features
        Of at least two folds.
    output_dir : str or path-like
        Receives what `train_fold` and `CrossValidation.save` write.
    seeds : sequence of int
        0 or more, each once.
    folds : sequence of int, optional
        Test folds; default all.
    recipe, inputs, parameter_search
        See `train_fold`.
    quiet : bool
        Show no progress bars.

    Returns
    -------
    results : CrossValidation

    Raises
    ------
    ParameterError
        No such fold, fewer than two folds, a bad or repeated seed; nothing is written.
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
    recipe, inputs = recipe or Recipe(), inputs or Inputs()
    chosen = features.fold_numbers if folds is None else tuple(folds)
    for name, values in (("seeds", tuple(seeds)), ("folds", chosen)):
        if not values or len(set(values)) < len(values):
            raise ParameterError(f"{name}={values} is empty or repeats one; give each once")
    # All first: a fold that was trained otherwise should not show up hours later.
    for fold in chosen:
        for seed in seeds:
            config = _config(features, fold, seed, recipe, inputs, parameter_search)
            _finished(_folder(output_dir, fold, seed), config)
    from tqdm import tqdm

    pairs = tqdm(
        [(fold, seed) for fold in chosen for seed in seeds],
        "cross-validation",
        unit="classifier",
        disable=quiet or None,
    )
    results = CrossValidation(
        tuple(
            train_fold(
                features,
                fold,
                output_dir,
                seed=seed,
                recipe=recipe,
                inputs=inputs,
                parameter_search=parameter_search,
                quiet=quiet,
            )
            for fold, seed in pairs
        )
    )
    results.save(output_dir)
    return results


def _folder(output_dir: str | os.PathLike[str], fold: int, seed: int) -> Path:
    return Path(output_dir) / f"fold{fold}" / f"seed{seed}"


def _rows(features: Features, preparation: Preparation, clips: np.ndarray) -> Rows:
    """The rows of some clips, with their classes and clips."""
    frames = [features.embeddings[clip] for clip in clips]
    counts = preparation.counts(frames)
    numbers: dict[tuple[int, str], int] = {}
    groups = [numbers.setdefault(features.group(clip), len(numbers)) for clip in clips]
    return Rows(
        preparation.matrix(frames),
        np.repeat(features.targets[clips], counts),
        np.repeat(groups, counts),
    )


def _split(features: Features, fold: int, seed: int, parameter_search: Search | None) -> Split:
    ratio = None
    if parameter_search is not None and not parameter_search.valid_fold:
        ratio = parameter_search.valid_ratio
    return split_clips(features, fold, valid_ratio=ratio, seed=seed)


def _config(
    features: Features,
    fold: int,
    seed: int,
    recipe: AnyRecipe,
    inputs: Inputs,
    parameter_search: Search | None,
) -> dict[str, Any]:
    """All that a result depends on, as JSON has it."""
    check_seed(seed)
    split = _split(features, fold, seed, parameter_search)
    inputs.step(features)
    return {
        "features_sha256": features.fingerprint,
        "test_fold": int(fold),
        "valid_fold": split.valid_fold,
        "train_folds": list(split.train_folds),
        "seed": int(seed),
        "model": kind_of(recipe),
        **asdict(recipe),
        **asdict(inputs),
        "search": None if parameter_search is None else asdict(parameter_search),
    }


def _finished(folder: Path, config: dict[str, Any]) -> FoldResult | None:
    """The result in `folder`; None if there is none, an error if it is of another configuration."""
    path = folder / RESULT
    if not (folder / CLASSIFIER).is_file():
        return None
    record = read_record(path, config)
    if record is None:
        return None
    try:
        return FoldResult.from_json(record["result"])
    except (KeyError, TypeError, ValueError) as error:
        raise L3PruneError(f"{path} is no result ({error!r}); delete it to train again") from error
