"""Pruning criteria: from a convolution's weights to scores, higher = keep. NumPy only."""

from __future__ import annotations

import contextlib
import contextvars
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from l3prune import extensions
from l3prune.errors import ParameterError
from l3prune.medians import distances_to, geometric_median_of


@dataclass(frozen=True)
class ConvWeights:
    """All that a criterion may see of a convolution.

    Attributes
    ----------
    kernel : np.ndarray, (kh, kw, in_channels, filters) float32
    bias : np.ndarray, (filters,) float32, or None
    gamma : np.ndarray, (filters,) float32, or None
        Scale of the BatchNorm that normalises the filters' outputs.

    Examples
    --------
    >>> weights = ConvWeights(np.zeros((3, 3, 1, 8), np.float32))
    >>> weights.bias is None, weights.gamma is None
    (True, True)
    """

    kernel: np.ndarray
    bias: np.ndarray | None = None
    gamma: np.ndarray | None = None


Criterion = Callable[[ConvWeights], np.ndarray]

#: As it is decorated: some take options too.
_Function = TypeVar("_Function", bound=Criterion)

CRITERIA: dict[str, Criterion] = {}

#: Of `random`; see `drawn`.
_DRAW: contextvars.ContextVar[int] = contextvars.ContextVar("draw", default=0)

#: Criteria whose scores mean the same in every layer, so that one threshold goes for all.
COMPARABLE = ("bn_gamma",)

#: Input channels whose slices are decomposed at once.
_CHANNELS_AT_ONCE = 64

#: Above every cosine distance: what lifts filters that stay above those that another resembles.
_LIFT = 3.0

#: Filters nearer to their mean than this, in units of their size, are alike.
_COINCIDENT = 1e-13


def criterion(function: _Function) -> _Function:
    """Register `function` under its name (a decorator).

    Raises
    ------
    ParameterError
        Another module has a criterion of this name.

    Examples
    --------
    >>> criterion(magnitude) is get_criterion("magnitude")
    True
    """
    name = function.__name__
    if name in CRITERIA and CRITERIA[name].__module__ != function.__module__:
        raise ParameterError(
            f"criterion {name!r} of {function.__module__} is there already, in "
            f"{CRITERIA[name].__module__}; give it another name"
        )
    CRITERIA[name] = function
    return function


def list_criteria() -> list[str]:
    """Names that `get_criterion` knows, those that other packages add among them.

    Examples
    --------
    >>> "l1" in list_criteria()
    True
    """
    return sorted({*CRITERIA, *extensions.names(extensions.CRITERIA)})


def get_criterion(name: str) -> Criterion:
    """A registered criterion by name.

    Raises
    ------
    ParameterError
        Unknown name.
    L3PruneError
        The package that adds it cannot be loaded.

    Examples
    --------
    >>> get_criterion("l3")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: criterion 'l3' is unknown; known: bn_gamma, ...
    """
    if name not in CRITERIA:
        if extensions.load(extensions.CRITERIA, name) and name not in CRITERIA:
            raise ParameterError(
                f"criterion {extensions.told(extensions.CRITERIA, name)} registers nothing of this "
                "name; decorate a function of this name with @criterion"
            )
        if name not in CRITERIA:
            known = ", ".join(list_criteria())
            raise ParameterError(f"criterion {name!r} is unknown; known: {known}")
    return CRITERIA[name]


@criterion
def magnitude(weights: ConvWeights) -> np.ndarray:
    """Magnitude of each weight (EdgeL3's criterion).

    Returns
    -------
    scores : np.ndarray, the kernel's shape, ≥ 0

    Examples
    --------
    >>> magnitude(ConvWeights(np.array([[[[-2.0, 1.0]]]]))).tolist()
    [[[[2.0, 1.0]]]]
    """
    return np.abs(weights.kernel)


@criterion
def l1(weights: ConvWeights) -> np.ndarray:
    """Sum of the magnitudes of each filter (Li et al., ICLR 2017).

    Returns
    -------
    scores : np.ndarray, (filters,), ≥ 0

    Examples
    --------
    >>> l1(ConvWeights(np.array([[[[-2.0, 1.0], [3.0, 0.5]]]]))).tolist()
    [5.0, 1.5]
    """
    return np.abs(weights.kernel).sum(axis=(0, 1, 2))


@criterion
def l2(weights: ConvWeights) -> np.ndarray:
    """Euclidean norm of each filter.

    Returns
    -------
    scores : np.ndarray, (filters,), ≥ 0

    Examples
    --------
    >>> l2(ConvWeights(np.array([[[[-4.0, 1.0], [3.0, 0.0]]]]))).tolist()
    [5.0, 1.0]
    """
    return np.sqrt(np.square(weights.kernel).sum(axis=(0, 1, 2)))


@criterion
def geometric_median(weights: ConvWeights) -> np.ndarray:
    """Distance of each filter to the geometric median of the layer's filters.

    The median is the point with the least sum of distances to all filters; a filter near it can
    be replaced by the others (the idea of He et al., CVPR 2019, with their median computed exactly;
    `geometric_median_sum` is what they computed).

    Returns
    -------
    scores : np.ndarray, (filters,) float64, ≥ 0

    Examples
    --------
    >>> corners_and_centre = np.array([[0.0, 2.0, 0.0, 2.0, 1.0], [0.0, 0.0, 2.0, 2.0, 1.0]])
    >>> geometric_median(ConvWeights(corners_and_centre[None, None])).round(4).tolist()
    [1.4142, 1.4142, 1.4142, 1.4142, 0.0]
    """
    points = _points(weights)
    return distances_to(points, geometric_median_of(points))


@criterion
def geometric_median_sum(weights: ConvWeights) -> np.ndarray:
    """Sum of the distances of each filter to all others (FPGM of He et al., CVPR 2019).

    Returns
    -------
    scores : np.ndarray, (filters,) float64, ≥ 0

    Examples
    --------
    >>> corners_and_centre = np.array([[0.0, 2.0, 0.0, 2.0, 1.0], [0.0, 0.0, 2.0, 2.0, 1.0]])
    >>> geometric_median_sum(ConvWeights(corners_and_centre[None, None])).round(4).tolist()
    [8.2426, 8.2426, 8.2426, 8.2426, 5.6569]
    """
    points = _points(weights)
    sums = np.zeros(len(points))
    # Differences, not |a|² + |b|² - 2ab, in which filters that are alike cancel to noise.
    for index, point in enumerate(points[:-1]):
        distances = distances_to(points[index + 1 :], point)
        sums[index] += distances.sum()
        sums[index + 1 :] += distances
    return sums


@criterion
def geometric_mean(weights: ConvWeights) -> np.ndarray:
    """How far the geometric mean of each filter's magnitudes is from that of the layer's, squared.

    What Singh's script for DCASE 2021 computes where his report tells of geometric medians. A
    filter with a zero weight has the mean 0, and so has then the layer.

    Returns
    -------
    scores : np.ndarray, (filters,) float64, ≥ 0

    Examples
    --------
    >>> geometric_mean(ConvWeights(np.tile([1.0, -2.0, 4.0], (1, 1, 2, 1)))).round(9).tolist()
    [1.0, 0.0, 4.0]
    """
    with np.errstate(divide="ignore"):
        of_filters = np.log(np.abs(_points(weights))).mean(axis=1)
    return np.square(np.exp(of_filters.mean()) - np.exp(of_filters))


@criterion
def bn_gamma(weights: ConvWeights) -> np.ndarray:
    """Magnitude of the BatchNorm's scale of each filter (Liu et al., ICCV 2017).

    Network slimming: tells filters apart only in a network trained with a penalty on these scales,
    see `l3prune.slimming`.

    Returns
    -------
    scores : np.ndarray, (filters,), ≥ 0

    Raises
    ------
    ParameterError
        No scale is known.

    Examples
    --------
    >>> bn_gamma(ConvWeights(np.ones((1, 1, 1, 2)), gamma=np.array([-2.0, 1.0]))).tolist()
    [2.0, 1.0]
    """
    if weights.gamma is None:
        raise ParameterError(
            "criterion bn_gamma needs a BatchNorm with scale behind the convolution and there is "
            "none; take a criterion of the kernel, such as l1"
        )
    return np.abs(weights.gamma)


@criterion
def random(weights: ConvWeights) -> np.ndarray:
    """Uniform random score of each weight: the baseline that every criterion should beat.

    The seed is a checksum of the weights, so that the same network is always pruned alike and
    layers of one shape differ; for other draws see `drawn`.

    Returns
    -------
    scores : np.ndarray, the kernel's shape, in [0, 1)

    Examples
    --------
    >>> random(ConvWeights(np.ones((3, 3, 1, 2)))).shape
    (3, 3, 1, 2)
    """
    seed = zlib.crc32(np.ascontiguousarray(weights.kernel).tobytes(), _DRAW.get())
    return np.random.default_rng(seed).random(weights.kernel.shape)


@contextlib.contextmanager
def drawn(number: int) -> Iterator[None]:
    """Have `random` make another draw within the block; the 0th is the usual one.

    Examples
    --------
    >>> weights = ConvWeights(np.ones((1, 1, 1, 2)))
    >>> with drawn(1):
    ...     bool((random(weights) == random(weights)).all())
    True
    >>> with drawn(1):
    ...     other = random(weights)
    >>> bool((random(weights) == other).any())
    False
    """
    token = _DRAW.set(number)
    try:
        yield
    finally:
        _DRAW.reset(token)


@criterion
def operator_norm(
    weights: ConvWeights, *, anchor: str = "first", centre: bool = True
) -> np.ndarray:
    """Passive filter importance by operator norms, as E-PANNs' authors compute it.

    The filters' kernel slices at one input channel are points; the direction in which they differ
    most, that of the operator norm, is the first right singular vector of their matrix. A filter's
    score is the square of its projections on these directions, summed over the input channels,
    divided by the largest score (Singh and Plumbley, arXiv 2304.02319).

    Singular vectors have no sign of their own. The authors' code turns each direction so that the
    first filter's projection is positive: that filter almost always scores 1, all others score by
    their agreement with it, and the scores do not follow a reordering of filters. With
    `anchor="energy"` each projection is squared before the sum, which needs no sign.

    Parameters
    ----------
    weights : ConvWeights
    anchor : {"first", "energy"}
    centre : bool
        Subtract the filters' mean first, as the authors' code does; the paper's Algorithm 1 does
        not.

    Returns
    -------
    scores : np.ndarray, (filters,) float64, in [0, 1]

    Raises
    ------
    ParameterError
        Unknown anchor.

    Examples
    --------
    >>> at_one_channel = np.array([[3.0, -3.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    >>> operator_norm(ConvWeights(at_one_channel[:, None, None])).round(4).tolist()
    [1.0, 1.0, 0.1111, 0.1111]
    """
    if anchor not in ("first", "energy"):
        raise ParameterError(f"anchor={anchor!r}; allowed: 'first', 'energy'")
    kernel = weights.kernel
    filters = kernel.shape[-1]
    slices = kernel.reshape(-1, *kernel.shape[2:]).transpose(1, 0, 2)
    sums = np.zeros(filters)
    for start in range(0, len(slices), _CHANNELS_AT_ONCE):
        points = slices[start : start + _CHANNELS_AT_ONCE].astype(np.float64)
        scale = np.abs(points).max(initial=0)
        if centre:
            points = points - points.mean(axis=-1, keepdims=True)
        if np.abs(points).max(initial=0) <= _COINCIDENT * scale:
            continue  # alike but for rounding
        directions = _first_vectors(points)
        projections = (directions[:, np.newaxis] @ points)[:, 0]
        if anchor == "energy":
            sums += np.square(projections).sum(axis=0)
        else:
            sums += (np.sign(projections[:, :1]) * projections).sum(axis=0)
    scores = sums if anchor == "energy" else np.square(sums)
    highest = scores.max()
    return scores / highest if highest > 0 else np.zeros(filters)


@criterion
def operator_norm_uncentred(weights: ConvWeights) -> np.ndarray:
    """`operator_norm` without centring: Algorithm 1 of the paper.

    Returns
    -------
    scores : np.ndarray, (filters,) float64, in [0, 1]

    Examples
    --------
    >>> at_one_channel = np.array([[3.0, -3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    >>> operator_norm_uncentred(ConvWeights(at_one_channel[:, None, None])).round(4).tolist()
    [1.0, 1.0, 0.1111, 0.4444]
    """
    return operator_norm(weights, centre=False)


@criterion
def operator_norm_energy(weights: ConvWeights) -> np.ndarray:
    """`operator_norm` with the anchor "energy": no filter is the measure of the others.

    Returns
    -------
    scores : np.ndarray, (filters,) float64, in [0, 1]

    Examples
    --------
    >>> at_one_channel = np.array([[3.0, -3.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    >>> operator_norm_energy(ConvWeights(at_one_channel[:, None, None])).round(4).tolist()
    [1.0, 1.0, 0.1111, 0.1111]
    """
    return operator_norm(weights, anchor="energy")


@criterion
def cosine_similarity(weights: ConvWeights) -> np.ndarray:
    """How far each filter is from the one most like it; `distinct_filters` are above all others.

    A ratio of `distinct_filters`'s own size removes exactly the filters that it does not keep.

    Returns
    -------
    scores : np.ndarray, (filters,) float64
        Cosine distances of prototypes; 3 more for filters that stay.

    Examples
    --------
    >>> alike = np.array([[1.0, 1.1, 0.0], [0.0, 0.0, 2.0]])
    >>> cosine_similarity(ConvWeights(alike[:, None, None])).tolist()
    [3.0, 0.0, 4.0]
    """
    nearest, distances = _nearest_prototypes(weights)
    return distances + _LIFT * _distinct(nearest, distances)


def distinct_filters(weights: ConvWeights) -> np.ndarray:
    """Filters that stay when of each pair that is most alike the second goes; their number follows.

    Singh and Plumbley (Interspeech 2022): a filter's prototype is the first left singular vector of
    its (places, input channels) matrix. The filters are visited from that nearest to another
    filter's prototype to that farthest, ties in their order; each stays, and marks its nearest,
    which then goes unless it was visited before.

    Returns
    -------
    mask : np.ndarray of bool, (filters,)
        True = keep.

    Examples
    --------
    >>> alike = np.array([[1.0, 1.1, 0.0], [0.0, 0.0, 2.0]])
    >>> distinct_filters(ConvWeights(alike[:, None, None])).tolist()
    [True, False, True]
    """
    return _distinct(*_nearest_prototypes(weights))


def _first_vectors(points: np.ndarray) -> np.ndarray:
    """The first left singular vector of each of some wide matrices: (n, rows, columns), (n, rows).

    Of the rows' Gram matrix it is the last eigenvector, which takes far less than the columns.
    """
    return np.linalg.eigh(points @ points.transpose(0, 2, 1))[1][..., -1]


def _nearest_prototypes(weights: ConvWeights) -> tuple[np.ndarray, np.ndarray]:
    """Of each filter, the other one of the nearest prototype, and the cosine distance to it."""
    kernel = weights.kernel
    filters = kernel.shape[-1]
    if filters == 1:
        return np.zeros(1, int), np.zeros(1)
    prototypes = []
    for start in range(0, filters, _CHANNELS_AT_ONCE):
        part = kernel[..., start : start + _CHANNELS_AT_ONCE]
        matrices = part.reshape(-1, *part.shape[2:]).transpose(2, 0, 1).astype(np.float64)
        vectors = _first_vectors(matrices)
        # As the product of both singular vectors has it at the first input channel.
        sign = np.sign(np.einsum("np,np->n", matrices[..., 0], vectors))
        prototypes.append(sign[:, np.newaxis] * vectors)
    stacked = np.concatenate(prototypes)
    # To five digits, as the authors: pairs have one distance, whatever side it is computed from.
    distances = np.round(1 - stacked @ stacked.T, 5)
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(axis=1), np.abs(distances.min(axis=1))


def _distinct(nearest: np.ndarray, distances: np.ndarray) -> np.ndarray:
    keep = np.zeros(len(nearest), bool)
    redundant = np.zeros(len(nearest), bool)
    for number in np.argsort(distances, kind="stable"):
        if not redundant[number]:
            keep[number] = True
            if len(nearest) > 1:
                redundant[nearest[number]] = True
    return keep


def _points(weights: ConvWeights) -> np.ndarray:
    """The filters as rows, in float64: (filters, kh * kw * in_channels)."""
    return weights.kernel.reshape(-1, weights.kernel.shape[-1]).T.astype(np.float64, order="C")
