"""A linear classifier on embeddings of clips: ridge regression, in closed form. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Penalties to choose from on validation clips, for values of unit variance, per training clip.
PENALTIES = tuple(10.0**power for power in range(-5, 3))


def clip_features(embeddings: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over the windows of each clip.

    Parameters
    ----------
    embeddings : np.ndarray, (windows, values)
    clips : np.ndarray of int, (windows,)
        Which clip each window is of, from 0 on, ascending, none left out.

    Returns
    -------
    features : np.ndarray, (clips, 2 * values) float64

    Examples
    --------
    >>> clip_features(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 1])).tolist()
    [[2.0, 1.0], [5.0, 0.0]]
    """
    values = np.asarray(embeddings, np.float64)
    starts = np.searchsorted(clips, np.arange(clips[-1] + 1))
    counts = np.bincount(clips)[:, np.newaxis]
    means = np.add.reduceat(values, starts) / counts
    # Of differences: of squares, values that are alike would cancel to noise.
    squares = np.add.reduceat(np.square(values - means[clips]), starts)
    return np.hstack([means, np.sqrt(squares / counts)])


def probe(
    features: np.ndarray,
    targets: np.ndarray,
    train: Sequence[int],
    validation: Sequence[int],
    test: Sequence[int],
) -> tuple[float, float]:
    """Accuracies on validation and on test clips of the penalty that validates best.

    The features are brought to zero mean and unit variance over the training clips, the targets are
    one-hot, and the class of the highest value is chosen. Of penalties that validate alike the
    highest is taken. Test clips are looked at once.

    Parameters
    ----------
    features : np.ndarray, (clips, values)
    targets : np.ndarray of int, (clips,)
    train, validation, test : sequence of int
        Numbers of clips.

    Returns
    -------
    validation_accuracy, test_accuracy : float

    Examples
    --------
    >>> features = np.array([[0.0], [1.0], [0.1], [0.9], [0.2], [0.8]])
    >>> probe(features, np.array([0, 1] * 3), [0, 1], [2, 3], [4, 5])
    (1.0, 1.0)
    """
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    # A value that is the same everywhere tells nothing; it stays zero.
    scaled = (features - mean) / np.where(std > 1e-12, std, np.inf)
    wanted = np.eye(int(targets.max()) + 1)[targets[train]]
    offset = wanted.mean(axis=0)
    # In the space of clips, of which there are fewer than values or not many more.
    vectors, singular, directions = np.linalg.svd(scaled[train], full_matrices=False)
    projected = vectors.T @ (wanted - offset)
    best: tuple[float, np.ndarray] | None = None
    for penalty in sorted(PENALTIES, reverse=True):
        shrunk = singular / (np.square(singular) + penalty * len(train))
        weights = directions.T @ (shrunk[:, np.newaxis] * projected)
        accuracy = _accuracy(scaled, weights, offset, targets, validation)
        if best is None or accuracy > best[0]:
            best = accuracy, weights
    assert best is not None
    return best[0], _accuracy(scaled, best[1], offset, targets, test)


def _accuracy(
    scaled: np.ndarray,
    weights: np.ndarray,
    offset: np.ndarray,
    targets: np.ndarray,
    clips: Sequence[int],
) -> float:
    found = (scaled[clips] @ weights + offset).argmax(axis=1)
    return float((found == targets[clips]).mean())
