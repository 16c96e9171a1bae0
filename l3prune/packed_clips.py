"""Labelled clips in one HDF5 file, decoded once: 16-bit waveforms of one length, as PANNs'."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from l3prune.datasets import Dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, is_file
from l3prune.labelled import ClipAudio, LabelledSource, multi_hot
from l3prune.layers import FrontEndLayer
from l3prune.layouts import open_file, read_array

#: What 1.0 becomes.
_FULL = 32767

_BLOCK = 64


def pack_clips(
    dataset: Dataset,
    path: str | os.PathLike[str],
    *,
    sample_rate: int = 32000,
    samples: int = 320_000,
    fill: str = "zeros",
    quiet: bool = False,
) -> None:
    """Write the clips of a corpus into one file; the file appears when it is complete.

    Parameters
    ----------
    dataset : Dataset
    path : str or path-like
        Ends in .h5.
    sample_rate : int
        Hz; recordings are made mono and resampled.
    samples : int
        Of each clip; longer ones lose their end.
    fill : {"repeat", "zeros"}
        See `labelled.fitted`; PANNs has zeros.
    quiet : bool
        No progress bar.

    Raises
    ------
    L3PruneError
        A clip cannot be decoded, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import soundfile
    >>> from l3prune.datasets import Clip
    >>> folder = Path(tempfile.mkdtemp())
    >>> soundfile.write(folder / "a.wav", np.ones(4) / 2, 8000)
    >>> dataset = Dataset("toy", (Clip(folder / "a.wav", 1, 0),), ("dog",))
    >>> pack_clips(dataset, folder / "a.h5", sample_rate=8000, samples=6, quiet=True)
    >>> PackedClips(folder / "a.h5").read(np.array([0]))[0].round(3)
    array([[[0.5, 0.5, 0.5, 0.5, 0. , 0. ]]], dtype=float32)
    """
    audio = ClipAudio([clip.path for clip in dataset.clips], sample_rate, samples, fill)
    targets = multi_hot(dataset).astype(bool)
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        waveforms = file.create_dataset(
            "waveform", (len(audio), samples), np.int16, chunks=(1, samples), compression="lzf"
        )
        for start in tqdm(range(0, len(audio), _BLOCK), "packing", disable=quiet or None):
            numbers = np.arange(start, min(start + _BLOCK, len(audio)))
            clips = np.clip(audio.read(numbers)[:, 0], -1, 1)
            waveforms[start : start + len(numbers)] = (clips * _FULL).astype(np.int16)
        file["target"] = targets
        file["label"] = [label.encode() for label in dataset.labels]
        file["clip"] = [clip.path.name.encode() for clip in dataset.clips]
        file["fold"] = np.array([clip.fold for clip in dataset.clips])
        file.attrs.update(
            sample_rate=sample_rate, multi_label=dataset.multi_label, fingerprint=audio.fingerprint
        )


class PackedClips:
    """The clips of a packed file: a `labelled.LabelledSource` of waveforms.

    Parameters
    ----------
    path : str or path-like
        As `pack_clips` wrote it.
    fold : int or None
        None takes the clips of all folds.

    Attributes
    ----------
    sample_rate : int
        Hz.
    targets : np.ndarray, (clips, classes) float32

    Raises
    ------
    L3PruneError
        The file is missing, damaged or no such file, or has no clip of this fold.

    Examples
    --------
    >>> PackedClips("/nowhere/a.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such file of packed clips: /nowhere/a.h5
    """

    def __init__(self, path: str | os.PathLike[str], fold: int | None = None) -> None:
        self.path = Path(path)
        if not is_file(self.path):
            raise L3PruneError(f"no such file of packed clips: {path}")
        with open_file(self.path) as file:
            missing = [name for name in ("waveform", "target", "label", "fold") if name not in file]
            if missing:
                raise L3PruneError(f"{path} has no {missing[0]}; give a file of packed clips")
            waveforms = file["waveform"]
            if not isinstance(waveforms, h5py.Dataset) or waveforms.dtype != np.int16:
                raise L3PruneError(f"{path} has no waveforms of 16 bits; pack its clips again")
            shape = waveforms.shape
            targets = read_array(file, "target", path)
            folds = read_array(file, "fold", path)
            self.labels = tuple(bytes(label).decode() for label in file["label"][()])
            self.sample_rate = int(file.attrs["sample_rate"])
            self.multi_label = bool(file.attrs["multi_label"])
            self.fingerprint = f"{file.attrs['fingerprint']}-{fold}"
        if (
            len(shape) != 2
            or targets.shape != (shape[0], len(self.labels))
            or folds.shape != shape[:1]
        ):
            raise L3PruneError(
                f"{path} has waveforms of shape {shape}, targets of shape {targets.shape} and "
                f"folds of shape {folds.shape} for {len(self.labels)} classes; they do not belong "
                "together"
            )
        self.samples = shape[1]
        self._rows = np.flatnonzero(folds == fold) if fold is not None else np.arange(shape[0])
        if not len(self._rows):
            known = ", ".join(map(str, sorted({*folds.tolist()})))
            raise L3PruneError(f"{path} has no clip of fold {fold}; folds: {known}")
        self.targets = targets[self._rows].astype(np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Waveforms (n, 1, samples) float32 in [-1, 1], and targets."""
        rows = self._rows[indices]
        # HDF5 reads rising rows, each once.
        wanted, places = np.unique(rows, return_inverse=True)
        with open_file(self.path) as file:
            clips = file["waveform"][wanted]
        return (clips[places] / np.float32(_FULL))[:, np.newaxis], self.targets[indices]

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A uniform permutation."""
        return generator.permutation(len(self))


class ComputedMaps:
    """Clips of a source as a network's front end gives them, computed whenever they are read.

    For corpora that are too large for `labelled.label_maps`. A network trains on waveforms
    themselves too, but what changes spectrograms, as `augmentation.spec_augment`, needs these.

    Parameters
    ----------
    source : LabelledSource
        Of waveforms, such as `PackedClips`.
    front_end : FrontEndLayer
        See `classification.front_end_layer`.

    Raises
    ------
    ParameterError
        The source is of another sample rate.

    Examples
    --------
    >>> from l3prune.labelled import LabelledMaps
    >>> from l3prune.layers import ClipLogMel
    >>> clip = np.zeros((1, 1, 32000), np.float32)
    >>> source = LabelledMaps(clip, np.ones((1, 1), np.float32), ("dog",), "one")
    >>> ComputedMaps(source, ClipLogMel()).read(np.array([0]))[0].shape
    (1, 101, 64, 1)
    """

    def __init__(self, source: LabelledSource, front_end: FrontEndLayer) -> None:
        rate = getattr(source, "sample_rate", front_end.sample_rate)
        if rate != front_end.sample_rate:
            raise ParameterError(
                f"the clips are of {rate} Hz, the front end takes {front_end.sample_rate}; pack "
                "them for this network"
            )
        self._source = source
        self._front_end = front_end
        self.labels = source.labels
        self.multi_label = source.multi_label
        self.fingerprint = f"{source.fingerprint}-maps"

    def __len__(self) -> int:
        return len(self._source)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """As the source."""
        return self._source.order(generator)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps and targets."""
        waveforms, targets = self._source.read(indices)
        return np.asarray(self._front_end(waveforms)), targets
