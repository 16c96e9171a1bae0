"""What a classifier sees: embeddings in memory, and the rows that are made of them."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from l3prune.errors import ParameterError

#: Statistics of a clip, in the order of its row; D values each.
STATISTICS = ("min", "max", "median", "mean", "var", "skew", "kurtosis")

MODES = ("framewise", "stats")

#: Rows that are converted at once; what bounds the memory for copies.
CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of the clips of a corpus, ready to train on.

    Attributes
    ----------
    dataset : str
        Name of the corpus.
    labels : tuple of str
        Class names; `targets` indexes them.
    names : tuple of str, (clips,)
        Stem of each audio file.
    folds : np.ndarray, (clips,) int64
        Official fold of each clip, from 1.
    targets : np.ndarray, (clips,) int64
        Class of each clip.
    embeddings : tuple of np.ndarray, (clips,) of (frames, D) float32
        Frames of each clip; D is the same for all.
    extraction : mapping
        How they were made, as `features.json` has it: model, hop size, versions. Empty if unknown.
    originals : mapping of str to str
        Name of an augmented copy -> name of the official clip that it was made from.

    Raises
    ------
    ParameterError
        There are no clips, the lengths or the shapes disagree, a value is not finite, a target
        has no label, a label is given twice, or a copy's original is not in its fold and class.

    Examples
    --------
    >>> frames = (np.zeros((3, 2), np.float32), np.ones((1, 2), np.float32))
    >>> features = Features("toy", ("dog", "rain"), ("a", "b"), [1, 2], [0, 1], frames)
    >>> features.dimension, features.fold_numbers
    (2, (1, 2))
    """

    dataset: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    folds: np.ndarray
    targets: np.ndarray
    embeddings: tuple[np.ndarray, ...]
    extraction: Mapping[str, Any] = field(default_factory=dict)
    originals: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Frozen, so that a cached fingerprint stays true.
        for name in ("folds", "targets"):
            values = np.array(getattr(self, name), np.int64)
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if not self.names:
            raise ParameterError("there are no clips; extract features first")
        if len(set(self.labels)) < len(self.labels):
            raise ParameterError(f"labels {self.labels} repeat one; give each class its own")
        lengths = [len(self.folds), len(self.targets), len(self.embeddings)]
        if lengths != [len(self.names)] * 3:
            raise ParameterError(
                f"{len(self.names)} names, but {lengths[0]} folds, {lengths[1]} targets and "
                f"{lengths[2]} embeddings; give one of each for every clip"
            )
        if len(self.embeddings[0].shape) != 2:
            raise ParameterError(
                f"{self.names[0]} has embeddings of shape {self.embeddings[0].shape}; "
                "give (frames, D)"
            )
        for name, target, frames in zip(self.names, self.targets, self.embeddings, strict=True):
            problem = frames_problem(frames, self.dimension)
            if not 0 <= target < len(self.labels):
                problem = f"has target {target}, but labels are 0 … {len(self.labels) - 1}"
            if problem:
                raise ParameterError(f"{name} {problem}; extract its features again")
        official = {
            (name, int(fold), int(target))
            for name, fold, target in zip(self.names, self.folds, self.targets, strict=True)
            if name not in self.originals
        }
        for clip in np.flatnonzero(self.augmented):
            name, original = self.names[clip], self.originals[self.names[clip]]
            if (original, int(self.folds[clip]), int(self.targets[clip])) not in official:
                raise ParameterError(
                    f"{name} is a copy of {original}, which is no official clip of the same fold "
                    "and class; extract the features again"
                )

    @property
    def dimension(self) -> int:
        """D, the length of one embedding."""
        return self.embeddings[0].shape[1]

    @property
    def fold_numbers(self) -> tuple[int, ...]:
        """The folds that have clips, ascending."""
        return tuple(int(fold) for fold in np.unique(self.folds))

    @functools.cached_property
    def augmented(self) -> np.ndarray:
        """Which clips are augmented copies, (clips,) bool."""
        return np.array([name in self.originals for name in self.names])

    def group(self, clip: int | np.integer) -> tuple[int, str]:
        """Fold and name of a clip's original: the same for clips that must not part."""
        name = self.names[clip]
        return int(self.folds[clip]), self.originals.get(name, name)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that training and testing see, as a hexadecimal string."""
        originals = [self.originals.get(name) for name in self.names]
        known = (self.labels, self.names, self.dimension, originals)
        digest = hashlib.sha256(repr(known).encode())
        for values in (self.folds, self.targets, *self.embeddings):
            digest.update(repr(values.shape).encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def frames_problem(frames: np.ndarray, dimension: int | None) -> str | None:
    """What is wrong with the frames of a clip, as the rest of a sentence; None if nothing is.

    Examples
    --------
    >>> frames_problem(np.zeros((2, 3), np.float32), 4)
    'has 3-d embeddings, other clips have 4-d ones'
    """
    if frames.ndim != 2 or 0 in frames.shape or frames.dtype != np.float32:
        return (
            f"has embeddings of shape {frames.shape}, {frames.dtype}; expected (frames, D), float32"
        )
    if dimension is not None and frames.shape[1] != dimension:
        return f"has {frames.shape[1]}-d embeddings, other clips have {dimension}-d ones"
    if not np.isfinite(frames).all():
        return "has embeddings that are not finite"
    return None


@dataclass(frozen=True)
class Inputs:
    """Which rows a classifier is trained on.

    Attributes
    ----------
    mode : {"framewise", "stats"}
        One row per frame, or one row of statistics per clip.
    non_overlap : bool
        Keep only frames of a clip that do not overlap.
    min_max : bool
        Map each dimension of the training frames to 0 … 1 before anything else. The standardiser
        that follows undoes it but for rounding; it is here because the original has it.

    Raises
    ------
    ParameterError
        Another mode.

    Examples
    --------
    >>> Inputs("stats").mode
    'stats'
    """

    mode: str = "framewise"
    non_overlap: bool = False
    min_max: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ParameterError(f"mode={self.mode!r} is unknown; known: {', '.join(MODES)}")

    def step(self, features: Features) -> int:
        """Every how many frames of a clip one is kept: 1 unless `non_overlap`.

        Raises
        ------
        ParameterError
            It is not known how the features were extracted.
        """
        if not self.non_overlap:
            return 1
        hop_size = features.extraction.get("hop_size")
        if not isinstance(hop_size, (int, float)) or not hop_size > 0:
            raise ParameterError(
                "the features do not say their hop size, so non-overlapping frames cannot be "
                "chosen; extract them with `python -m classifier features`"
            )
        # Up, where the hop does not divide a second; 1e-9 for hops that floats cannot express.
        return max(1, math.ceil(1 / hop_size - 1e-9))


def clip_statistics(frames: np.ndarray) -> np.ndarray:
    """Minimum, maximum, median, mean, variance, skewness and kurtosis of each dimension.

    Moments are those of the population (divided by n, not n - 1), kurtosis is that of Fisher, 0
    for a normal distribution. A dimension with one value, as every dimension of a clip with one
    frame, has skewness and kurtosis 0, where their definition divides by 0.

    Parameters
    ----------
    frames : np.ndarray, (n, D) float

    Returns
    -------
    statistics : np.ndarray, (7 D,) float32
        D minima, then D maxima, and so on in the order of `STATISTICS`.

    Examples
    --------
    >>> [round(float(x), 4) for x in clip_statistics(np.float32([[0], [0], [3]]))]
    [0.0, 3.0, 0.0, 1.0, 2.0, 0.7071, -1.5]
    """
    values = np.asarray(frames, np.float64)
    low, high, mean = values.min(axis=0), values.max(axis=0), values.mean(axis=0)
    deviations = values - mean
    variance = np.mean(deviations**2, axis=0)
    # The mean of equal values may be off by a rounding, so the variance does not tell.
    constant = low == high
    variance[constant] = 0
    divisor = np.where(constant, 1, variance)
    skew = np.where(constant, 0, np.mean(deviations**3, axis=0) / divisor**1.5)
    kurtosis = np.where(constant, 0, np.mean(deviations**4, axis=0) / divisor**2 - 3)
    rows = (low, high, np.median(values, axis=0), mean, variance, skew, kurtosis)
    return np.concatenate(rows).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Preparation:
    """From the frames of a clip to the rows of a classifier; fitted on training clips alone.

    Attributes
    ----------
    stats : bool
        One row of `clip_statistics` instead of one per frame.
    step : int
        Every how many frames one is kept, from the first.
    low, span : np.ndarray, (D,) float32
        Subtracted from a frame, then divided by; zeros and ones without min-max scaling.
    mean, scale : np.ndarray, (D,) or, with `stats`, (7 D,) float32
        Subtracted from a row, then divided by.

    Examples
    --------
    >>> zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    >>> Preparation(False, 2, zero, one, one, 2 * one).rows(np.float32([[3], [4], [5]])).tolist()
    [[1.0], [2.0]]
    """

    stats: bool
    step: int
    low: np.ndarray
    span: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def rows(self, frames: np.ndarray) -> np.ndarray:
        """The rows of one clip.

        Parameters
        ----------
        frames : np.ndarray, (n, D) float32

        Returns
        -------
        rows : np.ndarray, (1 or ceil(n / step), D or 7 D) float32

        Raises
        ------
        ParameterError
            Another D than that of the training frames.
        """
        if frames.ndim != 2 or frames.shape[1] != len(self.low):
            raise ParameterError(
                f"frames of shape {frames.shape} given; this classifier takes (n, {len(self.low)})"
            )
        return (self._unscaled(frames) - self.mean) / self.scale

    def matrix(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """The rows of some clips, one clip after the other, (rows, D or 7 D) float32.

        The only copy of the frames that is made.
        """
        counts = self.counts(clips)
        matrix = np.empty((sum(counts), len(self.mean)), np.float32)
        start = 0
        for frames, count in zip(clips, counts, strict=True):
            matrix[start : start + count] = self.rows(frames)
            start += count
        return matrix

    def counts(self, clips: Sequence[np.ndarray]) -> list[int]:
        """How many rows each clip has."""
        return [1 if self.stats else -(-len(frames) // self.step) for frames in clips]

    def _unscaled(self, frames: np.ndarray) -> np.ndarray:
        kept = (frames[:: self.step] - self.low) / self.span
        return clip_statistics(kept)[np.newaxis] if self.stats else kept


def fit_preparation(inputs: Inputs, step: int, clips: Sequence[np.ndarray]) -> Preparation:
    """Fit the scalers on training clips.

    Parameters
    ----------
    inputs : Inputs
    step : int
        See `Inputs.step`.
    clips : sequence of np.ndarray, (frames, D) float32

    Returns
    -------
    preparation : Preparation
        A dimension with one value is only shifted, not scaled.

    Examples
    --------
    >>> preparation = fit_preparation(Inputs(), 1, [np.float32([[1], [3]])])
    >>> preparation.mean.tolist(), preparation.scale.tolist()
    ([2.0], [1.0])
    """
    # Here, because it takes a second.
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    dimension = clips[0].shape[1]
    low, span = np.zeros(dimension, np.float32), np.ones(dimension, np.float32)
    if inputs.min_max:
        min_max = MinMaxScaler()
        for chunk in _chunks(frames[::step] for frames in clips):
            min_max.partial_fit(chunk)
        low, span = (x.astype(np.float32) for x in (min_max.data_min_, min_max.data_range_))
        span[span == 0] = 1
    stats = inputs.mode == "stats"
    size = dimension * (len(STATISTICS) if stats else 1)
    none = Preparation(stats, step, low, span, np.zeros(size, np.float32), np.ones(size))
    standardiser = StandardScaler()
    # In parts: `fit` would make copies of everything in float64.
    for chunk in _chunks(none._unscaled(frames) for frames in clips):
        standardiser.partial_fit(chunk)
    mean, scale = (x.astype(np.float32) for x in (standardiser.mean_, standardiser.scale_))
    return Preparation(stats, step, low, span, mean, scale)


def _chunks(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The parts' rows joined to arrays of about `CHUNK` rows."""
    waiting: list[np.ndarray] = []
    rows = 0
    for part in parts:
        waiting.append(part)
        rows += len(part)
        if rows >= CHUNK:
            yield np.concatenate(waiting)
            waiting, rows = [], 0
    if waiting:
        yield np.concatenate(waiting)
