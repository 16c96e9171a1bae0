"""Which clips train, validate and test; a clip and its augmented copies never part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classifier.inputs import Features
from l3prune.datasets.splits import check_fold, split_folds
from l3prune.errors import ParameterError

#: Share of the clips that validates where no fold does.
VALID_RATIO = 0.15


@dataclass(frozen=True, eq=False)
class Split:
    """Clips of one test fold's training, validation and test.

    Attributes
    ----------
    train : np.ndarray, (n,) int64
        Positions in the features, ascending; with augmented copies.
    valid, test : np.ndarray, (n,) int64
        The same, without augmented copies.
    valid_fold : int or None
        None: a part of the training folds validates.
    train_folds : tuple of int

    Examples
    --------
    >>> Split(np.array([0, 1]), np.array([2]), np.array([3]), 2, (1,)).refit.tolist()
    [0, 1, 2]
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    valid_fold: int | None
    train_folds: tuple[int, ...]

    @property
    def refit(self) -> np.ndarray:
        """Training and validation clips together, ascending; a held-out clip's copies stay out."""
        return np.sort(np.concatenate([self.train, self.valid]))


def split_clips(
    features: Features, test_fold: int, *, valid_ratio: float | None = None, seed: int = 0
) -> Split:
    """Which clips train, validate and test when one fold is tested.

    Parameters
    ----------
    features : Features
    test_fold : int
    valid_ratio : float, optional
        None: the fold before the test fold validates; with two folds, 15 % of the other one.
        A share between 0 and 1: so many of the clips of all other folds validate, drawn within
        each class. Of a class of two clips or more at least one is drawn and at least one is not;
        a single one trains. All frames of a clip go with it, and the copies of a clip that
        validates are left out.
    seed : int
        Of the draw.

    Returns
    -------
    split : Split

    Raises
    ------
    ParameterError
        No such fold, one fold only, no clip left to train, validate or test on, or a ratio
        outside its range.

    Examples
    --------
    >>> names = ("a", "b", "c", "d", "e")
    >>> frames = (np.zeros((1, 2), np.float32),) * 5
    >>> features = Features("toy", ("dog",), names, [1, 1, 1, 2, 2], [0] * 5, frames)
    >>> split = split_clips(features, 2)
    >>> len(split.train), len(split.valid), split.test.tolist()
    (2, 1, [3, 4])
    """
    folds = features.fold_numbers
    check_fold(folds, test_fold)
    if len(folds) < 2:
        raise ParameterError(
            f"only fold {folds[0]} has features; training and testing need 2 folds"
        )
    if valid_ratio is not None and not 0 < valid_ratio < 1:
        raise ParameterError(f"valid_ratio={valid_ratio} is not between 0 and 1; 0.15 is usual")
    if valid_ratio is None and len(folds) == 2:
        valid_ratio = VALID_RATIO
    official = ~features.augmented
    test = np.flatnonzero((features.folds == test_fold) & official)
    if valid_ratio is None:
        valid_fold, train_folds = split_folds(folds, test_fold)
        train = np.flatnonzero(np.isin(features.folds, train_folds))
        valid = np.flatnonzero((features.folds == valid_fold) & official)
        return _filled(Split(train, valid, test, valid_fold, train_folds))
    train_folds = tuple(fold for fold in folds if fold != test_fold)
    candidates = np.flatnonzero((features.folds != test_fold) & official)
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    for target in range(len(features.labels)):
        clips = rng.permutation(candidates[features.targets[candidates] == target])
        if len(clips) > 1:
            # Half up: Python's own rounding takes halves to the even number.
            count = int(valid_ratio * len(clips) + 0.5)
            drawn += clips[: min(max(count, 1), len(clips) - 1)].tolist()
    valid = np.array(sorted(drawn), np.int64)
    held_out = {features.group(clip) for clip in valid}
    rest = [
        clip
        for clip in np.flatnonzero(features.folds != test_fold)
        if features.group(clip) not in held_out
    ]
    return _filled(Split(np.array(rest, np.int64), valid, test, None, train_folds))


def _filled(split: Split) -> Split:
    for name in ("train", "valid", "test"):
        if not len(getattr(split, name)):
            raise ParameterError(
                f"no clip is left to {name}; every part needs official clips, and a class needs "
                "two of them to be validated on"
            )
    return split
