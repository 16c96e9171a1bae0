"""Parameter search: train every candidate, keep the one with the best validation accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from classifier.inputs import Preparation
from classifier.mlp import Recipe
from classifier.model import (
    RECIPES,
    AnyRecipe,
    Classifier,
    Rows,
    Trained,
    fit_model,
    load_classifier,
)
from classifier.progress import Checkpoint, check_config
from classifier.splits import VALID_RATIO
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import read_json, write_json, write_table

#: Values tried, by kind of model: those of the original.
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "mlp": {"learning_rate": (1e-5, 1e-4, 1e-3), "weight_decay": (1e-5, 1e-4, 1e-3)},
    "svm": {"C": (0.1, 1, 10, 100, 1000)},
    "rf": {"trees": (100, 500, 1000)},
}


@dataclass(frozen=True)
class Search:
    """How to search, and what to do with what was found.

    Attributes
    ----------
    valid_fold : bool
        The fold before the test fold validates. False: a part of all other folds' clips does.
    valid_ratio : float
        How large a part, between 0 and 1.
    train_with_valid : bool
        Train the chosen candidate again, on training and validation clips. False: keep it as it
        is.

    Raises
    ------
    ParameterError
        A ratio outside its range.

    Examples
    --------
    >>> Search(valid_fold=False)
    Search(valid_fold=False, valid_ratio=0.15, train_with_valid=True)
    """

    valid_fold: bool = True
    valid_ratio: float = VALID_RATIO
    train_with_valid: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.valid_ratio < 1:
            raise ParameterError(
                f"valid_ratio={self.valid_ratio} is not between 0 and 1; 0.15 is usual"
            )


@dataclass(frozen=True)
class Candidate:
    """A recipe that was tried, and what came of it.

    Attributes
    ----------
    recipe : Recipe, SVMRecipe or ForestRecipe
    valid_accuracy, train_accuracy : float
        On rows.
    valid_loss : float or None
        In the best epoch; None if it is no MLP, as the next.
    best_epoch : int or None

    Examples
    --------
    >>> from classifier.shallow import SVMRecipe
    >>> Candidate(SVMRecipe(C=10), 0.5, 0.9).recipe.C
    10
    """

    recipe: AnyRecipe
    valid_accuracy: float
    train_accuracy: float
    valid_loss: float | None = None
    best_epoch: int | None = None


def kind_of(recipe: AnyRecipe) -> str:
    """The kind of model that a recipe is of.

    Examples
    --------
    >>> from classifier.shallow import SVMRecipe
    >>> kind_of(SVMRecipe())
    'svm'
    """
    return next(kind for kind, cls in RECIPES.items() if isinstance(recipe, cls))


def candidates(recipe: AnyRecipe) -> Iterator[AnyRecipe]:
    """The recipes that a search tries: the grid's values, the rest as given.

    Examples
    --------
    >>> from classifier.shallow import SVMRecipe
    >>> [each.C for each in candidates(SVMRecipe(kernel="linear"))]
    [0.1, 1, 10, 100, 1000]
    """
    grid = GRIDS[kind_of(recipe)]
    for values in itertools.product(*grid.values()):
        yield replace(recipe, **dict(zip(grid, values, strict=True)))  # type: ignore[arg-type]


def search(
    recipe: AnyRecipe,
    train: Rows,
    valid: Rows,
    classes: int,
    folder: Path,
    config: dict[str, Any],
    *,
    preparation: Preparation | None = None,
    seed: int = 0,
    title: str | None = None,
) -> tuple[Candidate, Classifier | None]:
    """Train every candidate and choose the one with the highest validation accuracy on rows.

    Of equals, the first of the grid wins. Candidates that are in the folder are not trained again,
    and an interrupted training goes on.

    Parameters
    ----------
    recipe : Recipe, SVMRecipe or ForestRecipe
        Gives the values that are not searched for.
    train, valid : Rows
    classes : int
        Length of the output.
    folder : pathlib.Path
        Receives `<number>.json` per candidate, and `search.csv`.
    config : dict
        All that the candidates depend on besides their own recipe, as JSON has it.
    preparation : Preparation, optional
        Keep the best candidate's model too, as `<number>.npz` with this preparation.
    seed : int
    title : str, optional
        Of progress bars; no bars without it.

    Returns
    -------
    best : Candidate
    classifier : Classifier or None
        The best candidate's; None without `preparation`.

    Raises
    ------
    L3PruneError
        The folder has candidates of another configuration.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from classifier.shallow import ForestRecipe
    >>> rows = Rows(np.float32([[0], [1]]), np.array([0, 1]), np.array([0, 1]))
    >>> best, _ = search(ForestRecipe(), rows, rows, 2, Path(tempfile.mkdtemp()), {})
    >>> best.recipe
    ForestRecipe(trees=100)
    """
    from tqdm import tqdm

    found: list[Candidate] = []
    best = 0
    bar = tqdm(
        list(candidates(recipe)),
        title and f"{title} search",
        unit="candidate",
        disable=True if title is None else None,
    )
    for number, each in enumerate(bar):
        path = folder / f"{number}.json"
        known = {**config, "candidate": asdict(each)}
        record = read_record(path, known)
        if record is None:
            label = title and f"{title} candidate {number + 1}"
            checkpoint = Checkpoint(folder / f"{number}.training.npz", known)
            trained = fit_model(
                each, train, valid, classes, seed=seed, title=label, checkpoint=checkpoint
            )
            candidate = _candidate(each, trained)
            if preparation and (not found or candidate.valid_accuracy > found[best].valid_accuracy):
                Classifier(preparation, trained.model).save(folder / f"{number}.npz")
            # Last: it says that the candidate is finished.
            write_json(path, {"config": known, "result": _values(candidate)})
            checkpoint.remove()
        else:
            try:
                candidate = Candidate(each, **record["result"])
            except (KeyError, TypeError) as error:
                raise L3PruneError(
                    f"{path} is no candidate ({error!r}); delete it to train it again"
                ) from error
        found.append(candidate)
        if candidate.valid_accuracy > found[best].valid_accuracy:
            (folder / f"{best}.npz").unlink(missing_ok=True)
            best = number
    write_table(
        folder / "search.csv",
        [
            {**asdict(each.recipe), **_values(each), "chosen": number == best}
            for number, each in enumerate(found)
        ],
    )
    return found[best], load_classifier(folder / f"{best}.npz") if preparation else None


def read_record(path: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The record in a file; None if there is none, an error if it is of another configuration.

    Examples
    --------
    >>> read_record(Path("/nowhere/result.json"), {}) is None
    True
    """
    if not path.is_file():
        return None
    record = read_json(path)
    try:
        found = dict(record["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise L3PruneError(f"{path} is no result ({error!r}); delete it to train again") from error
    check_config(found, config, path)
    return record


def _candidate(recipe: AnyRecipe, trained: Trained) -> Candidate:
    epoch = trained.best.get("epoch")
    return Candidate(
        recipe,
        valid_accuracy=float(trained.valid_accuracy or 0),
        train_accuracy=trained.train_accuracy,
        valid_loss=trained.best.get("val_loss"),
        best_epoch=None if epoch is None else int(epoch),
    )


def _values(candidate: Candidate) -> dict[str, Any]:
    values = asdict(candidate)
    del values["recipe"]
    return values


def refit_recipe(candidate: Candidate) -> AnyRecipe:
    """The recipe to train a chosen candidate again without validation clips.

    An MLP trains for as many epochs as were best in the search, because nothing is left that
    could choose.

    Examples
    --------
    >>> refit_recipe(Candidate(Recipe(), 0.5, 0.9, best_epoch=7)).epochs
    7
    """
    if isinstance(candidate.recipe, Recipe) and candidate.best_epoch:
        return replace(candidate.recipe, epochs=candidate.best_epoch)
    return candidate.recipe
