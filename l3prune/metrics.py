"""How well predicted classes agree with labels. NumPy only."""

from __future__ import annotations

import math
import statistics
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


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class: precision at each score, weighted by the recall it adds.

    Clips of one score count together; nothing is interpolated.

    Parameters
    ----------
    scores : np.ndarray, (clips, classes)
    targets : np.ndarray, (clips, classes)
        1 or 0; clips may have several classes.

    Returns
    -------
    precisions : np.ndarray, (classes,)
        NaN for classes that no clip has.

    Examples
    --------
    >>> average_precision(np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]])).round(4)
    array([0.8333])
    """
    _check(scores, targets)
    return np.array([_average_precision(*each) for each in zip(scores.T, targets.T, strict=True)])


def roc_auc(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of each class, how often a clip that has it scores above one that has not; ties count half.

    Parameters
    ----------
    scores, targets : np.ndarray, (clips, classes)
        As of `average_precision`.

    Returns
    -------
    areas : np.ndarray, (classes,)
        NaN for classes that all clips have, or none.

    Examples
    --------
    >>> roc_auc(np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]]))
    array([0.5])
    """
    _check(scores, targets)
    return np.array([_roc_auc(*each) for each in zip(scores.T, targets.T, strict=True)])


def d_prime(auc: float) -> float:
    """How far apart two normal distributions are, in their deviations, that have this ROC area.

    Examples
    --------
    >>> round(d_prime(0.973), 3), d_prime(1.0)
    (2.725, inf)
    """
    if not 0 < auc < 1:
        return math.copysign(math.inf, auc - 0.5)
    return math.sqrt(2) * statistics.NormalDist().inv_cdf(auc)


def lwlrap(scores: np.ndarray, targets: np.ndarray) -> float:
    """Label-weighted label-ranking average precision, by which FAT2019 ranks.

    A clip's classes are ranked by score. At each class that the clip has, the precision is the
    fraction of its own classes among those ranked as high or higher; the mean is over all pairs of
    a clip and a class of its. Classes of one score all have the lowest rank of them.

    Parameters
    ----------
    scores : np.ndarray, (clips, classes)
    targets : np.ndarray, (clips, classes)
        1 or 0; clips may have several classes, or none.

    Returns
    -------
    lwlrap : float
        NaN if no clip has a class.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.3, 0.2, 0.9, 0.1]])
    >>> round(lwlrap(scores, np.array([[1, 0, 0, 1], [0, 1, 0, 0]])), 4)
    0.6667
    """
    precisions = ranking_precisions(scores, targets)
    found = precisions[np.isfinite(precisions)]
    return float(found.mean()) if found.size else math.nan


def lwlrap_by_class(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`lwlrap` of each class, and the class's share of all labels, its weight in the whole.

    Returns
    -------
    precisions, weights : np.ndarray, (classes,)
        NaN and 0 for classes that no clip has. The weighted sum of the others is `lwlrap`.

    Examples
    --------
    >>> precisions, weights = lwlrap_by_class(
    ...     np.array([[0.9, 0.8], [0.2, 0.3]]), np.array([[1, 1], [1, 0]])
    ... )
    >>> precisions, weights.round(4)
    (array([0.75, 1.  ]), array([0.6667, 0.3333]))
    """
    precisions = ranking_precisions(scores, targets)
    counts = np.isfinite(precisions).sum(axis=0)
    sums = np.nansum(precisions, axis=0)
    means = np.divide(sums, counts, out=np.full(len(counts), math.nan), where=counts > 0)
    return means, counts / max(counts.sum(), 1)


def ranking_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The precision at each class that a clip has; see `lwlrap`.

    Returns
    -------
    precisions : np.ndarray, (clips, classes)
        NaN where the clip does not have the class.

    Examples
    --------
    >>> ranking_precisions(np.array([[0.9, 0.8, 0.1]]), np.array([[0, 1, 1]])).round(4)
    array([[   nan, 0.5   , 0.6667]])
    """
    _check(scores, targets)
    result = np.full(scores.shape, math.nan)
    for row, values, true in zip(result, scores, targets > 0.5, strict=True):
        own = values[true]
        among_all = len(values) - np.searchsorted(np.sort(values), own)
        among_own = len(own) - np.searchsorted(np.sort(own), own)
        row[true] = among_own / among_all
    return result


def tagging_report(
    probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str]
) -> dict[str, Any]:
    """Figures of clips that may have several classes: over all classes, and of each.

    Parameters
    ----------
    probabilities, targets : np.ndarray, (clips, classes)
    labels : sequence of str
        Of the classes.

    Returns
    -------
    report : dict
        clips; log_loss, binary; map and mauc, the means over the classes that have a figure, which
        are `classes_scored` many, without those in `classes_left_out`; d_prime, of the mean area,
        None where it is infinite; lwlrap, over all classes; by_class: name -> clips,
        average_precision, auc, lwlrap, of the classes that have the first two.

    Raises
    ------
    ParameterError
        No class has both clips with it and clips without.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.2], [0.8, 0.9], [0.1, 0.3]])
    >>> report = tagging_report(scores, np.array([[1, 0], [1, 1], [0, 0]]), ["dog", "rain"])
    >>> report["map"], report["mauc"], report["by_class"]["rain"]["clips"]
    (1.0, 1.0, 1)
    """
    precisions, areas = average_precision(probabilities, targets), roc_auc(probabilities, targets)
    scored = np.isfinite(precisions) & np.isfinite(areas)
    if not scored.any():
        raise ParameterError(
            "no class has clips with it and clips without it; average precision and ROC area need "
            "both"
        )
    area = float(areas[scored].mean())
    ranking, _ = lwlrap_by_class(probabilities, targets)
    return {
        "clips": len(targets),
        "log_loss": binary_log_loss(probabilities, targets),
        "map": float(precisions[scored].mean()),
        "mauc": area,
        "d_prime": d_prime(area) if 0 < area < 1 else None,
        "lwlrap": lwlrap(probabilities, targets),
        "classes_scored": int(scored.sum()),
        "classes_left_out": [labels[number] for number in np.flatnonzero(~scored).tolist()],
        "by_class": {
            labels[number]: {
                "clips": int((targets[:, number] > 0.5).sum()),
                "average_precision": float(precisions[number]),
                "auc": float(areas[number]),
                "lwlrap": float(ranking[number]),
            }
            for number in np.flatnonzero(scored).tolist()
        },
    }


def _average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    true = targets > 0.5
    if not true.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(true[order])
    # The last clip of each score.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision, found = hits[ends] / (ends + 1), np.diff(hits[ends], prepend=0)
    return float((precision * found).sum() / true.sum())


def _roc_auc(scores: np.ndarray, targets: np.ndarray) -> float:
    true = targets > 0.5
    if true.all() or not true.any():
        return math.nan
    values, places = np.unique(scores, return_inverse=True)
    having = np.bincount(places[true], minlength=len(values))
    lacking = np.bincount(places[~true], minlength=len(values))
    below = np.cumsum(lacking) - lacking
    return float((having * (below + lacking / 2)).sum() / (true.sum() * (~true).sum()))


def _check(scores: np.ndarray, targets: np.ndarray) -> None:
    if scores.shape != targets.shape or scores.ndim != 2 or not len(scores):
        raise ParameterError(
            f"scores of shape {scores.shape} and targets of shape {targets.shape}; both are "
            "(clips, classes), of at least one clip"
        )
    if not np.isfinite(scores).all():
        raise ParameterError("scores have NaN or infinite values; the network is not usable")
