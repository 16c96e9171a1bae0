"""Labelled clips in one HDF5 file, decoded once: 16-bit waveforms of one length, as PANNs'."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import filelock
import h5py
import numpy as np
from tqdm import tqdm

from l3prune.datasets import Clip, Dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, fingerprint, is_file, make_folder
from l3prune.labelled import ClipAudio, LabelledMaps, groups_of, multi_hot
from l3prune.layers import FrontEndLayer
from l3prune.layouts import open_file, read_array

#: What 1.0 becomes.
_FULL = 32767

_BLOCK = 64

#: What a file tells of each clip beside its sound, as texts; empty ones are None.
_TEXTS = ("original", "group", "device")

_PARTS = ("waveform", "packed", "target", "label", "fold", "clip", "mark", *_TEXTS)


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

    An interrupted run goes on where it stopped; clips may be mended or removed meanwhile. A file
    that exists stays as it is. Each sample takes two bytes.

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
    ParameterError
        The name does not end in .h5, or as `labelled.ClipAudio`.
    L3PruneError
        Clips cannot be decoded, which is told when all others are packed; or the file cannot be
        written.

    Examples
    --------
    >>> import tempfile
    >>> import soundfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> soundfile.write(folder / "a.wav", np.ones(4) / 2, 8000)
    >>> dataset = Dataset("toy", (Clip(folder / "a.wav", 1, 0),), ("dog",))
    >>> pack_clips(dataset, folder / "a.h5", sample_rate=8000, samples=6, quiet=True)
    >>> PackedClips(folder / "a.h5").read(np.array([0]))[0].round(3)
    array([[[0.5, 0.5, 0.5, 0.5, 0. , 0. ]]], dtype=float32)
    """
    path = Path(path)
    if path.suffix != ".h5":
        raise ParameterError(f"{path}: the name of a file of packed clips ends in .h5")
    audio = ClipAudio([clip.path for clip in dataset.clips], sample_rate, samples, fill)
    settings = {
        "dataset": dataset.name,
        "multi_label": dataset.multi_label,
        "sample_rate": sample_rate,
        "fill": fill,
    }
    marks = [_mark(clip.path) for clip in dataset.clips]
    make_folder(path.parent)
    part = path.with_suffix(".h5.part")
    try:
        with filelock.FileLock(f"{path}.lock"):
            if path.exists():
                return
            rows = _rows_in(part, dataset, marks, samples, settings)
            if rows is None:
                _begin(part, dataset, marks, samples, settings)
                rows = np.arange(len(audio))
            failures = _fill(part, audio, rows, marks, quiet)
            if failures:
                raise L3PruneError(
                    f"{len(failures)} of {len(audio)} clips cannot be decoded, the first: "
                    f"{failures[0]}; mend or remove them and pack again: what is packed stays in "
                    f"{part}"
                )
            os.replace(part, path)
    except OSError as error:
        raise L3PruneError(f"cannot write {part}: {error.strerror or error}") from error


def _mark(path: Path) -> bytes:
    """Tells a file by its first half, and a change of it by its second."""
    name = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{name}{fingerprint([path])}".encode()


def _begin(
    part: Path, dataset: Dataset, marks: list[bytes], samples: int, settings: dict[str, Any]
) -> None:
    """Write a file with all but the sound."""
    clips = dataset.clips
    targets = multi_hot(dataset).astype(bool)
    with atomic_write(part) as temporary, h5py.File(temporary, "w") as file:
        waveforms = file.create_dataset("waveform", (len(clips), samples), np.int16)
        # It has its place in the file from now on. What is written later changes values only, so
        # that a run that is killed leaves a file that can be read.
        waveforms[-1] = 0
        file["packed"] = np.zeros(len(clips), bool)
        file["target"] = targets
        file["label"] = [label.encode() for label in dataset.labels]
        file["fold"] = np.array([clip.fold for clip in clips])
        file["clip"] = [clip.path.name.encode() for clip in clips]
        file["mark"] = np.array(marks)
        for name in _TEXTS:
            file[name] = [(getattr(clip, name) or "").encode() for clip in clips]
        file.attrs.update(settings)


def _rows_in(
    part: Path, dataset: Dataset, marks: list[bytes], samples: int, settings: dict[str, Any]
) -> np.ndarray | None:
    """Where an unfinished file has these clips; None if it is of others."""
    if not part.is_file():
        return None
    try:
        with open_file(part) as file:
            if dict(file.attrs) != settings or file["waveform"].shape[1] != samples:
                return None
            if [bytes(label).decode() for label in file["label"][()]] != list(dataset.labels):
                return None
            places = {mark[:16]: row for row, mark in enumerate(file["mark"][()].tolist())}
            targets, folds = file["target"][()], file["fold"][()]
    except L3PruneError:  # damaged
        return None
    rows = np.array([places.get(mark[:16], -1) for mark in marks])
    if rows[0] < 0 or (np.diff(rows) <= 0).any():
        return None
    for row, clip in zip(rows, dataset.clips, strict=True):
        classes = sorted({clip.target, *clip.further})
        if folds[row] != clip.fold or np.flatnonzero(targets[row]).tolist() != classes:
            return None
    return rows


def _fill(
    part: Path, audio: ClipAudio, rows: np.ndarray, marks: list[bytes], quiet: bool
) -> list[str]:
    """Write the sound that is missing; gives what is wrong with clips that cannot be decoded."""
    with h5py.File(part, "r+") as file:
        done, before = file["packed"][()], file["mark"][()]
        others = np.ones(len(done), bool)
        others[rows] = False
        done[rows] &= before[rows] == np.array(marks)  # files that were changed are read again
        before[rows] = marks
        # Clips that were removed from the corpus are not in the file any longer.
        file["packed"][...] = done & ~others
        file.flush()
        file["mark"][...] = before
    missing = np.flatnonzero(~done[rows])
    failures = []
    with tqdm(
        total=len(rows),
        initial=len(rows) - len(missing),
        desc="packing",
        unit="clip",
        disable=quiet or None,
    ) as progress:
        for start in range(0, len(missing), _BLOCK):
            clips = {}
            for number in missing[start : start + _BLOCK]:
                try:
                    clip = np.clip(audio.read(np.array([number]))[0, 0], -1, 1)
                    clips[int(rows[number])] = (clip * _FULL).astype(np.int16)
                except L3PruneError as error:
                    failures.append(str(error))
                progress.update()
            with h5py.File(part, "r+") as file:
                for row, clip in clips.items():
                    file["waveform"][row] = clip
                file.flush()  # the sound before the word that it is there
                for row in clips:
                    file["packed"][row] = True
    return failures


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
    dataset : Dataset
        The corpus; paths of its clips are their names.
    sample_rate, samples : int
        Hz, and samples of a clip.
    fill : {"repeat", "zeros"}
        How short clips were filled.
    targets : np.ndarray, (clips, classes) bool

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
            missing = [name for name in _PARTS if name not in file]
            if missing:
                raise L3PruneError(f"{path} has no {missing[0]}; give a file of packed clips")
            waveforms = file["waveform"]
            if not isinstance(waveforms, h5py.Dataset) or waveforms.dtype != np.int16:
                raise L3PruneError(f"{path} has no waveforms of 16 bits; pack its clips again")
            shape = waveforms.shape
            targets = read_array(file, "target", path) != 0
            folds = read_array(file, "fold", path)
            packed = read_array(file, "packed", path) != 0
            texts = {
                name: [bytes(text).decode() for text in file[name][()]]
                for name in ("label", "clip", "mark", *_TEXTS)
            }
            name = str(file.attrs["dataset"])
            self.fill = str(file.attrs["fill"])
            self.sample_rate = int(file.attrs["sample_rate"])
            self.multi_label = bool(file.attrs["multi_label"])
        self.labels = tuple(texts.pop("label"))
        columns = [folds.shape, packed.shape, *((len(text),) for text in texts.values())]
        if (
            len(shape) != 2
            or targets.shape != (shape[0], len(self.labels))
            or any(each != shape[:1] for each in columns)
        ):
            raise L3PruneError(
                f"{path} has waveforms of shape {shape}, targets of shape {targets.shape} and "
                f"folds of shape {folds.shape} for {len(self.labels)} classes; they do not belong "
                "together"
            )
        self.samples = shape[1]
        self._rows = np.flatnonzero(packed & (folds == fold) if fold is not None else packed)
        if not len(self._rows):
            known = ", ".join(map(str, sorted({*folds[packed].tolist()})))
            raise L3PruneError(f"{path} has no clip of fold {fold}; folds: {known}")
        self.targets = targets[self._rows]
        facts = [name, self.fill, self.sample_rate, shape[1], self.labels, self.targets.tobytes()]
        marks = [texts["mark"][row] for row in self._rows]
        self.fingerprint = hashlib.sha256(repr([facts, marks]).encode()).hexdigest()[:16]
        clips = []
        for row, target in zip(self._rows.tolist(), self.targets, strict=True):
            classes = np.flatnonzero(target).tolist()
            if not classes:
                raise L3PruneError(f"{path}: clip {texts['clip'][row]} has no class")
            further = {text: texts[text][row] or None for text in _TEXTS}
            clips.append(
                Clip(
                    Path(texts["clip"][row]),
                    int(folds[row]),
                    classes[0],
                    further=tuple(classes[1:]),
                    **further,
                )
            )
        self.dataset = Dataset(name, tuple(clips), self.labels, self.multi_label)

    def __len__(self) -> int:
        return len(self._rows)

    def check(self, sample_rate: int, samples: int, fill: str) -> None:
        """Refuse clips that were packed otherwise than a network takes them."""
        for what, ours, wanted in (
            ("Hz", self.sample_rate, sample_rate),
            ("samples", self.samples, samples),
            ("fill", self.fill, fill),
        ):
            if ours != wanted:
                raise ParameterError(
                    f"the clips of {self.path} were packed with {what} {ours}, and this run takes "
                    f"{what} {wanted}; give the name of a new file to pack them into"
                )

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Waveforms (n, 1, samples) float32 in [-1, 1], and targets."""
        rows = self._rows[indices]
        # HDF5 reads rising rows, each once.
        wanted, places = np.unique(rows, return_inverse=True)
        with open_file(self.path) as file:
            clips = file["waveform"][wanted]
        waveforms = (clips[places] / np.float32(_FULL))[:, np.newaxis]
        return waveforms, self.targets[indices].astype(np.float32)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A uniform permutation."""
        return generator.permutation(len(self))


class _ComputedMaps:
    """The maps of packed clips like an array of them, computed whenever rows are taken."""

    def __init__(self, source: PackedClips, front_end: FrontEndLayer) -> None:
        self._source = source
        self._front_end = front_end
        self.shape = (len(source), *front_end(np.zeros((1, 1, source.samples))).shape[1:])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.asarray(self._front_end(self._source.read(rows)[0]))


def computed_maps(source: PackedClips, front_end: FrontEndLayer) -> LabelledMaps:
    """Packed clips as a network's front end gives them, computed whenever they are read.

    For corpora that are too large for `labelled.label_maps`. A network trains on waveforms
    themselves too, but what changes spectrograms, as `augmentation.spec_augment`, needs these.

    Parameters
    ----------
    source : PackedClips
    front_end : FrontEndLayer
        See `classification.front_end_layer`.

    Raises
    ------
    ParameterError
        The clips are of another sample rate.

    Examples
    --------
    >>> import tempfile
    >>> import soundfile
    >>> from l3prune.layers import ClipLogMel
    >>> folder = Path(tempfile.mkdtemp())
    >>> soundfile.write(folder / "a.wav", np.zeros(32000), 32000)
    >>> dataset = Dataset("toy", (Clip(folder / "a.wav", 1, 0),), ("dog",))
    >>> pack_clips(dataset, folder / "a.h5", samples=32000, quiet=True)
    >>> computed_maps(PackedClips(folder / "a.h5"), ClipLogMel()).read(np.array([0]))[0].shape
    (1, 101, 64, 1)
    """
    if source.sample_rate != front_end.sample_rate:
        raise ParameterError(
            f"the clips are of {source.sample_rate} Hz, the front end takes "
            f"{front_end.sample_rate}; pack them for this network"
        )
    return LabelledMaps(
        _ComputedMaps(source, front_end.unnormalised()),
        source.targets,
        source.labels,
        f"{source.fingerprint}-maps",
        groups=groups_of(source.dataset),
        multi_label=source.multi_label,
        normalise=front_end.normalise,
    )
