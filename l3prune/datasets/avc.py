"""Pairs to learn audio-visual correspondence (AVC) from, read out of shards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from l3prune.datasets.shards import ShardRows, find_shards, pair_fields
from l3prune.errors import L3PruneError


class PairShards:
    """Numbered pairs of a picture and a second of sound, out of shards.

    Parameters
    ----------
    paths : list of pathlib.Path
        The shards.
    sample_rate : int
        Hz; also a second's length in samples.

    Raises
    ------
    L3PruneError
        A file is no shard, or of another sample rate.

    Attributes
    ----------
    fingerprint : str
        Changes when the pairs change.

    Examples
    --------
    >>> import tempfile
    >>> from l3prune.datasets.shards import new_shard
    >>> path = Path(tempfile.mkdtemp()) / "1_0_0.h5"
    >>> with new_shard(path, 2, 8000, {}) as file:
    ...     file["label"][:] = [0, 1]
    >>> images, audio, labels = PairShards([path], 8000).read(np.array([1]))
    >>> images.shape, images.min(), audio.shape, labels
    ((1, 224, 224, 3), np.float32(-1.0), (1, 1, 8000), array([[0., 1.]], dtype=float32))
    """

    def __init__(self, paths: list[Path], sample_rate: int):
        self._rows = ShardRows(paths, pair_fields(sample_rate))
        self.sample_rate = sample_rate
        self.fingerprint = self._rows.fingerprint(sample_rate=sample_rate)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs by number.

        Returns
        -------
        images : np.ndarray, (n, 224, 224, 3) float32
            In [-1, 1].
        audio : np.ndarray, (n, 1, sample_rate) float32
            In [-1, 1].
        labels : np.ndarray, (n, 2) float32
            [mismatch, match], one of them 1.
        """
        rows = self._rows.read(indices)
        images = rows["video"].astype(np.float32)
        images /= 127.5
        images -= 1
        audio = rows["audio"].astype(np.float32)
        audio /= 32768
        return images, audio, rows["label"].astype(np.float32)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A permutation of the pairs, fast to read in that order; see `ShardRows.order`."""
        return self._rows.order(generator)


def open_pairs(folder: str | os.PathLike[str], sample_rate: int) -> PairShards:
    """The pairs of all shards below a folder.

    Parameters
    ----------
    folder : str or path-like
    sample_rate : int
        Hz, that of the shards.

    Returns
    -------
    source : PairShards

    Raises
    ------
    L3PruneError
        There is no such folder, it has no shards, or one is damaged or of another sample rate.

    Examples
    --------
    >>> open_pairs("/nowhere", 48000)
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere
    """
    paths = find_shards(folder)
    if not paths:
        raise L3PruneError(
            f"{folder} holds no .h5 shards; make some of videos: python -m l3prune.avc_data shards"
        )
    return PairShards(paths, sample_rate)
