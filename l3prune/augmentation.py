"""How PANNs draws and changes training batches: balanced classes, SpecAugment, mixup. NumPy only.

All of it is a function of a generator that it is given, so a run that is continued sees what it
would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from l3prune.errors import ParameterError
from l3prune.labelled import LabelledSource

#: What `BatchChange` can do, and how training clips are drawn.
CHANGES = ("spec_augment", "mixup")
SAMPLERS = ("uniform", "balanced")

#: PANNs' stripes: so many of each axis, each narrower than this many frames or bands.
_STRIPES, _FRAMES, _BANDS = 2, 64, 8


def spec_augment(
    maps: np.ndarray, generator: np.random.Generator, *, time_axis: int = 1
) -> np.ndarray:
    """Log-mel maps with two stripes of time and two of bands blanked in each, as PANNs has it.

    A stripe is 0 to 63 frames wide, or 0 to 7 bands. It is filled with the band's mean over the
    batch, which is what the BatchNorm that comes next makes zero but for its shift: PANNs fills
    with zeros behind it.

    Parameters
    ----------
    maps : np.ndarray, (n, rows, columns, 1)
    generator : np.random.Generator
    time_axis : {1, 2}
        Rows or columns are frames.

    Returns
    -------
    changed : np.ndarray
        A copy.

    Raises
    ------
    ParameterError
        Inputs that are no maps.

    Examples
    --------
    >>> maps = np.random.default_rng(0).normal(size=(1, 101, 64, 1))
    >>> changed = spec_augment(maps, np.random.default_rng(1))
    >>> changed.shape == maps.shape, bool((changed == maps).all())
    (True, False)
    """
    if maps.ndim != 4:
        raise ParameterError(
            f"inputs of shape {maps.shape}; stripes are of spectrograms, (n, rows, columns, 1): of "
            "waveforms see packed_clips.computed_maps"
        )
    changed = maps.copy()
    means = maps.mean(axis=(0, time_axis), keepdims=True)[0]
    filled = np.broadcast_to(means, maps.shape[1:])
    for clip in changed:
        for axis, width in ((time_axis - 1, _FRAMES), (2 - time_axis, _BANDS)):
            length = clip.shape[axis]
            for _ in range(_STRIPES):
                wide = int(generator.integers(min(width, length)))
                start = int(generator.integers(length - wide))
                stripe = [slice(None)] * 3
                stripe[axis] = slice(start, start + wide)
                clip[tuple(stripe)] = filled[tuple(stripe)]
    return changed


def mixup(
    inputs: np.ndarray, targets: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each two inputs as one, in a random proportion, their targets too: half as many.

    The proportion is uniform in [0, 1]. The last of an odd number stays as it is.

    Examples
    --------
    >>> inputs, targets = mixup(np.array([[0.0], [1.0]]), np.eye(2), np.random.default_rng(0))
    >>> inputs.round(2), targets.round(2)
    (array([[0.3]]), array([[0.7, 0.3]]))
    """
    share = generator.beta(1, 1, size=(len(inputs) + 1) // 2).astype(inputs.dtype)
    if len(inputs) % 2:
        share[-1] = 1

    def mixed(values: np.ndarray) -> np.ndarray:
        first, second = values[::2], values[1::2]
        if len(second) < len(first):
            second = np.concatenate([second, first[-1:]])
        part = share.reshape(-1, *[1] * (values.ndim - 1))
        return (part * first + (1 - part) * second).astype(values.dtype)

    return mixed(inputs), mixed(targets)


@dataclass(frozen=True)
class BatchChange:
    """What is done to a training batch, as `classification.train_on_labels` takes it.

    Attributes
    ----------
    changes : tuple of str
        Of `CHANGES`; stripes come before mixing.
    time_axis : {1, 2}
        See `spec_augment`.

    Raises
    ------
    ParameterError
        An unknown change.

    Examples
    --------
    >>> change = BatchChange(("mixup",))
    >>> change(np.zeros((4, 2)), np.eye(4), np.random.default_rng(0))[1].shape
    (2, 4)
    """

    changes: tuple[str, ...] = CHANGES
    time_axis: int = 1

    def __post_init__(self) -> None:
        for name in self.changes:
            if name not in CHANGES:
                raise ParameterError(f"augmentation {name!r} is unknown; {', '.join(CHANGES)}")

    def __call__(
        self, inputs: np.ndarray, targets: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        if "spec_augment" in self.changes:
            inputs = spec_augment(inputs, generator, time_axis=self.time_axis)
        if "mixup" in self.changes:
            inputs, targets = mixup(inputs, targets, generator)
        return inputs, targets


def balanced_order(targets: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers of clips to train on: class after class, each class's clips in turn, as PANNs draws.

    The classes come in a random order, once each before any comes again. Each has its clips in a
    random order of its own, and begins a new one behind the last; a clip of several classes is in
    the list of each. Classes without clips are left out.

    Parameters
    ----------
    targets : np.ndarray, (clips, classes)
    count : int
    generator : np.random.Generator

    Returns
    -------
    order : np.ndarray, (count,) int64

    Examples
    --------
    >>> rare = np.array([[1, 0], [1, 0], [1, 0], [0, 1]])
    >>> balanced_order(rare, 100, np.random.default_rng(0)).tolist().count(3)
    50
    """
    lists = [np.flatnonzero(column > 0.5) for column in targets.T]
    lists = [generator.permutation(clips) for clips in lists if len(clips)]
    if not lists:
        raise ParameterError("no clip has a class, so there is nothing to draw from")
    places = [0] * len(lists)
    order = np.empty(count, np.int64)
    for start in range(0, count, len(lists)):
        for offset, number in enumerate(generator.permutation(len(lists))[: count - start]):
            if places[number] == len(lists[number]):
                places[number] = 0
                lists[number] = generator.permutation(lists[number])
            order[start + offset] = lists[number][places[number]]
            places[number] += 1
    return order


class Balanced:
    """A labelled source that is trained on in `balanced_order`.

    A pass has as many draws as there are clips, and begins with new lists.

    Parameters
    ----------
    source : LabelledSource
    targets : np.ndarray, (len(source), classes)

    Examples
    --------
    >>> from l3prune.labelled import LabelledMaps
    >>> targets = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    >>> maps = LabelledMaps(np.zeros((4, 1, 1, 1), np.float32), targets, ("a", "b"), "x")
    >>> Balanced(maps, targets).order(np.random.default_rng(0)).tolist().count(3)
    2
    """

    def __init__(self, source: LabelledSource, targets: np.ndarray) -> None:
        self._source = source
        self._targets = targets
        self.labels = source.labels
        self.multi_label = source.multi_label
        self.fingerprint = f"{source.fingerprint}-balanced"

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the source."""
        return self._source.read(indices)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """One pass."""
        return balanced_order(self._targets, len(self), generator)
