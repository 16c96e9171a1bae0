"""Which clips of a corpus train, validate and test. Test clips never do anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from l3prune.datasets import Clip, Dataset
from l3prune.errors import ParameterError

#: In a run's folder: what each clip was for.
SPLIT = "split.csv"

#: Share of the clips that validates where no fold does.
VALIDATION_RATIO = 0.3


@dataclass(frozen=True)
class ClipSplit:
    """Positions of clips in `Dataset.clips`, ascending.

    Examples
    --------
    >>> ClipSplit((0, 1), (2,), (3,)).test
    (3,)
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


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
    if len(folds) < 3:
        raise ParameterError(
            f"only fold {', '.join(map(str, folds))} has features; testing, validation and "
            "training need 3 folds"
        )
    check_fold(folds, test_fold)
    valid_fold = folds[folds.index(test_fold) - 1]
    return valid_fold, tuple(fold for fold in folds if fold not in (test_fold, valid_fold))


def check_fold(folds: Sequence[int], fold: int) -> None:
    """Refuse a fold that does not exist.

    Examples
    --------
    >>> check_fold((1, 2), 3)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: fold 3 does not exist; folds: 1, 2
    """
    if fold not in folds:
        raise ParameterError(f"fold {fold} does not exist; folds: {', '.join(map(str, folds))}")


def split_dataset(
    dataset: Dataset,
    test_fold: int | None = None,
    *,
    ratio: float = VALIDATION_RATIO,
    seed: int = 0,
) -> ClipSplit:
    """Which clips train, validate and test when one fold is tested.

    Where clips have groups, whole groups of the other folds validate: in each class so many, drawn
    by the seed, that they come near `ratio` of its clips. Else the fold before the test fold
    validates; or of two folds `ratio` of each class's clips in the other one.

    Parameters
    ----------
    dataset : Dataset
    test_fold : int or None
        None is the last one.
    ratio : float
        In (0, 0.5].
    seed : int

    Raises
    ------
    ParameterError
        No such fold, one fold only, a ratio outside its range, or no clip left to train or
        validate on.

    Examples
    --------
    >>> from pathlib import Path
    >>> clips = [Clip(Path(f"{n}.wav"), 1, 0, group=f"place {n // 2}") for n in range(6)]
    >>> split = split_dataset(Dataset("toy", (*clips, Clip(Path("t.wav"), 2, 0)), ("dog",)))
    >>> len(split.train), len(split.validation), split.test
    (4, 2, (6,))
    """
    folds = dataset.folds
    test_fold = folds[-1] if test_fold is None else test_fold
    check_fold(folds, test_fold)
    if len(folds) < 2:
        raise ParameterError(
            f"{dataset.name} has fold {folds[0]} only; training and testing need 2 folds"
        )
    if not 0 < ratio <= 0.5:
        raise ParameterError(f"ratio={ratio} is not above 0 and at most 0.5; 0.3 is usual")
    clips = dataset.clips
    test = [n for n, clip in enumerate(clips) if clip.fold == test_fold and not clip.original]
    rest = [n for n, clip in enumerate(clips) if clip.fold != test_fold]
    official = [n for n in rest if not clips[n].original]
    if all(clips[n].group is not None for n in official):
        validation = _by_groups(
            clips, official, [str(clips[n].group) for n in official], ratio, seed
        )
    elif len(folds) == 2:
        alone = [clips[n].path.stem for n in official]
        validation = _by_groups(clips, official, alone, ratio, seed)
    else:
        valid_fold, _ = split_folds(folds, test_fold)
        validation = [n for n in official if clips[n].fold == valid_fold]
    held = set(validation)
    stems = {clips[n].path.stem for n in (*validation, *test)}
    train = [n for n in rest if n not in held and clips[n].original not in stems]
    for name, found in (("train", train), ("validate", validation), ("test", test)):
        if not found:
            raise ParameterError(
                f"no clip of {dataset.name} is left to {name} on when fold {test_fold} is tested; "
                "give more clips, or another test fold"
            )
    return ClipSplit(tuple(train), tuple(validation), tuple(test))


def _by_groups(
    clips: Sequence[Clip],
    numbers: Sequence[int],
    groups: Sequence[str],
    ratio: float,
    seed: int,
) -> list[int]:
    """Those of some clips whose groups are drawn, near `ratio` of each class."""
    generator = np.random.default_rng(seed)
    group_of = dict(zip(numbers, groups, strict=True))
    drawn: dict[str, bool] = {}
    for target in sorted({clips[n].target for n in numbers}):
        of_class = [n for n in numbers if clips[n].target == target]
        sizes: dict[str, int] = {}
        for n in of_class:
            sizes[group_of[n]] = sizes.get(group_of[n], 0) + 1
        # A place can be in several classes.
        total = sum(size for group, size in sizes.items() if drawn.get(group))
        wanted = ratio * len(of_class)
        names = sorted(group for group in sizes if group not in drawn)
        for name in generator.permutation(names).tolist():
            drawn[name] = abs(total + sizes[name] - wanted) < abs(total - wanted)
            total += sizes[name] if drawn[name] else 0
    return [n for n in numbers if drawn[group_of[n]]]
