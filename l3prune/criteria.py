"""Pruning criteria: from a convolution's weights to scores, higher = keep. NumPy only."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from l3prune.errors import ParameterError


@dataclass(frozen=True)
class ConvWeights:
    """All that a criterion may see of a convolution.

    Attributes
    ----------
    kernel : np.ndarray, (kh, kw, in_channels, filters) float32
    bias : np.ndarray, (filters,) float32, or None

    Examples
    --------
    >>> ConvWeights(np.zeros((3, 3, 1, 8), np.float32)).bias is None
    True
    """

    kernel: np.ndarray
    bias: np.ndarray | None = None


Criterion = Callable[[ConvWeights], np.ndarray]

CRITERIA: dict[str, Criterion] = {}


def criterion(function: Criterion) -> Criterion:
    """Register `function` under its name (a decorator).

    Examples
    --------
    >>> criterion(magnitude) is get_criterion("magnitude")
    True
    """
    CRITERIA[function.__name__] = function
    return function


def get_criterion(name: str) -> Criterion:
    """A registered criterion by name.

    Raises
    ------
    ParameterError
        Unknown name.

    Examples
    --------
    >>> get_criterion("l3")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: criterion 'l3' is unknown; known: l1, l2, magnitude, random
    """
    if name not in CRITERIA:
        raise ParameterError(f"criterion {name!r} is unknown; known: {', '.join(sorted(CRITERIA))}")
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
def random(weights: ConvWeights) -> np.ndarray:
    """Uniform random score of each weight: the baseline that every criterion should beat.

    The seed is a checksum of the weights, so that the same network is always pruned alike and
    layers of one shape differ.

    Returns
    -------
    scores : np.ndarray, the kernel's shape, in [0, 1)

    Examples
    --------
    >>> random(ConvWeights(np.ones((3, 3, 1, 2)))).shape
    (3, 3, 1, 2)
    """
    seed = zlib.crc32(np.ascontiguousarray(weights.kernel).tobytes())
    return np.random.default_rng(seed).random(weights.kernel.shape)
