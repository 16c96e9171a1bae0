"""How well predicted classes agree with labels. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from l3prune.errors import ParameterError

#: The least probability before a logarithm, as Keras has it.
_LEAST = 1e-7


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Fraction of clips whose highest score is that of their class.

    Parameters
    ----------
    scores : np.ndarray, (clips, classes)
    targets : np.ndarray, (clips, classes)
        One-hot.

    Examples
    --------
    >>> accuracy(np.array([[0.9, 0.1], [0.6, 0.4]]), np.eye(2))
    0.5
    """
    _check(scores, targets)
    return float((scores.argmax(axis=1) == targets.argmax(axis=1)).mean())


def log_loss(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean over clips of -log of the probability of their class.

    Examples
    --------
    >>> round(log_loss(np.array([[0.5, 0.5], [0.25, 0.75]]), np.eye(2)), 4)
    0.4904
    """
    _check(probabilities, targets)
    of_class = (probabilities.astype(np.float64) * targets).sum(axis=1)
    return float(-np.log(np.clip(of_class, _LEAST, 1)).mean())


def binary_log_loss(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean over clips and classes of the cross-entropy of each class by itself.

    Examples
    --------
    >>> round(binary_log_loss(np.array([[0.5, 0.5]]), np.array([[1, 0]])), 4)
    0.6931
    """
    _check(probabilities, targets)
    given = np.clip(probabilities.astype(np.float64), _LEAST, 1 - _LEAST)
    return float(-np.where(targets > 0.5, np.log(given), np.log(1 - given)).mean())


def class_report(
    probabilities: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Accuracy and log-loss over all clips, by class, and by other groups of clips.

    Parameters
    ----------
    probabilities : np.ndarray, (clips, classes)
    targets : np.ndarray, (clips, classes)
        One-hot.
    labels : sequence of str
        Of the classes.
    groups : mapping of str to sequence of str, or None
        Kind of group, such as "device" -> the group of each clip.

    Returns
    -------
    report : dict
        clips, accuracy, log_loss; macro_accuracy, the mean over the classes that have clips (what
        DCASE ranks by); by_class, and by_<kind>: name -> clips, accuracy, log_loss.

    Examples
    --------
    >>> report = class_report(np.array([[0.9, 0.1], [0.6, 0.4]]), np.eye(2), ["dog", "rain"])
    >>> report["by_class"]["rain"]["accuracy"], report["macro_accuracy"]
    (0.0, 0.5)
    """
    _check(probabilities, targets)

    def figures(chosen: np.ndarray) -> dict[str, Any]:
        return {
            "clips": int(chosen.sum()),
            "accuracy": accuracy(probabilities[chosen], targets[chosen]),
            "log_loss": log_loss(probabilities[chosen], targets[chosen]),
        }

    true = targets.argmax(axis=1)
    by_class = {
        label: figures(true == number)
        for number, label in enumerate(labels)
        if (true == number).any()
    }
    report = figures(np.ones(len(true), bool))
    report["macro_accuracy"] = float(np.mean([each["accuracy"] for each in by_class.values()]))
    report["by_class"] = by_class
    for kind, names in (groups or {}).items():
        of_clip = np.array(names)
        report[f"by_{kind}"] = {
            str(name): figures(of_clip == name) for name in sorted(set(of_clip.tolist()))
        }
    return report


def _check(scores: np.ndarray, targets: np.ndarray) -> None:
    if scores.shape != targets.shape or scores.ndim != 2 or not len(scores):
        raise ParameterError(
            f"scores of shape {scores.shape} and targets of shape {targets.shape}; both are "
            "(clips, classes), of at least one clip"
        )
    if not np.isfinite(scores).all():
        raise ParameterError("scores have NaN or infinite values; the network is not usable")
