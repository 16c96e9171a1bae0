"""Clips as networks hear them that take segments of a fixed length: cut up, their logits averaged.

A clip's spectrogram is computed as a whole, filled with zeros on the right and cut into segments
without overlap. What a network says of the clip is the mean of what it says of the segments, in
training too; so a batch of clips is a batch of more segments, and of each its clip's place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np
from tqdm import tqdm

from l3prune.audio import load_audio, to_mono
from l3prune.datasets import Dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, fingerprint, new_folder
from l3prune.labelled import LabelledMaps, groups_of, multi_hot

#: What is quieter than the loudest place by so many dB is silence at the ends of a clip.
TRIM_DB = 60


class FrontEnd(Protocol):
    """What a network's front end takes; `layers.FrontEndLayer` is one.

    Attributes
    ----------
    sample_rate : int
        Hz.
    least_samples : int
        What a shorter clip is filled up to.
    segment_frames : int or None
        Of a segment.
    """

    sample_rate: int
    least_samples: int
    segment_frames: int | None


def segment(maps: np.ndarray, frames: int) -> np.ndarray:
    """The segments of a clip: cut one behind the other, the last filled with zeros.

    Parameters
    ----------
    maps : np.ndarray, (all frames, bands)
    frames : int
        Of a segment.

    Returns
    -------
    segments : np.ndarray, (n, frames, bands, 1) float32

    Examples
    --------
    >>> segment(np.array([[1], [2], [3]]), 2)[..., 0].tolist()
    [[[1.0], [2.0]], [[3.0], [0.0]]]
    """
    count = -(-len(maps) // frames)
    filled = np.zeros((count * frames, maps.shape[1], 1), np.float32)
    filled[: len(maps), :, 0] = maps
    return filled.reshape(count, frames, maps.shape[1], 1)


def trimmed(audio: np.ndarray, samples: int) -> np.ndarray:
    """A recording without silence at its ends, a short one in the middle of zeros.

    Parameters
    ----------
    audio : np.ndarray, (n,) float
    samples : int
        What a shorter one is filled up to; a longer one is kept whole.

    Examples
    --------
    >>> trimmed(np.ones(3), 6).tolist()
    [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    import librosa

    audio, _ = librosa.effects.trim(audio, top_db=TRIM_DB)
    missing = max(samples - len(audio), 0)
    return np.pad(audio, (missing // 2, missing - missing // 2))


@dataclass(frozen=True, eq=False)
class SegmentedMaps(LabelledMaps):
    """The maps of labelled clips of any length, read in segments.

    Attributes
    ----------
    maps : np.ndarray, (frames of all clips, bands) uint8
        One behind the other.
    starts : np.ndarray of int, (clips + 1,)
        Where each clip begins in them, and where the last ends.
    frames : int
        Of a segment.
    **others
        As of `LabelledMaps`.

    Examples
    --------
    >>> maps = np.array([[7], [8], [9]], np.uint8)
    >>> clips = SegmentedMaps(
    ...     maps, np.eye(2), ("a", "b"), "x", starts=np.array([0, 1, 3]), frames=1
    ... )
    >>> (segments, places), targets = clips.read(np.array([1, 0]))
    >>> segments[:, 0, 0, 0], places, targets
    (array([8., 9., 7.], dtype=float32), array([0., 0., 1.], dtype=float32), array([[0., 1.],
           [1., 0.]]))
    """

    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    frames: int = 1

    def __post_init__(self) -> None:
        if not len(self.rows):
            object.__setattr__(self, "rows", np.arange(len(self.starts) - 1))

    def read(self, indices: np.ndarray) -> tuple[Any, np.ndarray]:
        """(Segments, the place of the clip of each), and the clips' targets."""
        rows = self.rows[indices]
        clips = [
            segment(np.asarray(self.maps[self.starts[row] : self.starts[row + 1]]), self.frames)
            for row in rows
        ]
        places = np.repeat(np.arange(len(clips)), [len(each) for each in clips])
        # A device's part of a batch may have no clip.
        none = np.zeros((0, self.frames, self.maps.shape[1], 1), np.float32)
        return (np.concatenate([none, *clips]), places.astype(np.float32)), self.targets[rows]

    def statistics(self) -> dict[str, list[float]]:
        raise ParameterError("a network that hears clips in segments is not normalised by bands")


def segmented_maps(
    dataset: Dataset,
    compute: Callable[[np.ndarray], np.ndarray],
    front_end: FrontEnd,
    key: str,
    cache_dir: str | os.PathLike[str],
    *,
    quiet: bool = False,
) -> SegmentedMaps:
    """The maps of all clips of a corpus, each as a whole, computed once and kept on disk.

    Of a corpus that has maps of its own these are taken.

    Parameters
    ----------
    dataset : Dataset
    compute : callable, (1, 1, n) float32 -> (1, frames, bands, 1)
        The front end; its values are whole numbers from 0 to 255.
    front_end : FrontEnd
        What it takes: recordings are made mono and resampled.
    key : str
        Identifies `compute`.
    cache_dir : str or path-like
    quiet : bool
        No progress bar.

    Raises
    ------
    L3PruneError
        A clip cannot be decoded, or the corpus's own maps are not what they should be.

    Examples
    --------
    >>> import tempfile
    >>> import soundfile
    >>> from l3prune.datasets import Clip
    >>> folder = Path(tempfile.mkdtemp())
    >>> soundfile.write(folder / "a.wav", np.ones(9) / 2, 8000)
    >>> dataset = Dataset("toy", (Clip(folder / "a.wav", 1, 0),), ("dog",))
    >>> compute = lambda waveform: waveform.reshape(1, -1, 1, 1)
    >>> class Layer:
    ...     sample_rate, least_samples, segment_frames = 8000, 4, 2
    >>> segmented_maps(dataset, compute, Layer(), "k", folder, quiet=True).starts
    array([0, 9])
    """
    if dataset.maps is not None:
        clips = dataset.maps()
        sizes = [len(clip) for clip in clips]
        maps = np.concatenate(clips)
        mark = hashlib.sha256(maps.tobytes()).hexdigest()[:12]
    else:
        mark = fingerprint([clip.path for clip in dataset.clips], trim=TRIM_DB)
        folder = Path(cache_dir) / f"segments-{mark}-{key}"
        lock = folder / "lock"
        with new_folder(folder):
            try:
                with filelock.FileLock(lock):
                    if not (folder / "frames.npy").is_file():
                        _compute(dataset, compute, front_end, folder, quiet)
            except BaseException:
                # So that a bad recording leaves nothing behind.
                lock.unlink(missing_ok=True)
                raise
        sizes = np.load(folder / "frames.npy", allow_pickle=False).tolist()
        flat = np.memmap(folder / "maps.u8", np.uint8, "r")
        maps = flat.reshape(sum(sizes), -1)
    targets = multi_hot(dataset)
    return SegmentedMaps(
        maps,
        targets,
        dataset.labels,
        f"{mark}-{key}-{hashlib.sha256(targets.tobytes()).hexdigest()[:8]}",
        groups=groups_of(dataset),
        multi_label=dataset.multi_label,
        starts=np.concatenate([[0], np.cumsum(sizes)]),
        frames=front_end.segment_frames or 1,
    )


def _compute(
    dataset: Dataset,
    compute: Callable[[np.ndarray], np.ndarray],
    front_end: FrontEnd,
    folder: Path,
    quiet: bool,
) -> None:
    """Write maps.u8 and then frames.npy, whose presence says that both are whole."""
    sizes = []
    with atomic_write(folder / "maps.u8") as temporary, temporary.open("wb") as file:
        for clip in tqdm(dataset.clips, "spectrograms", unit="clip", disable=quiet or None):
            audio, rate = load_audio(clip.path)
            try:
                mono = to_mono(audio, rate, front_end.sample_rate)
            except ParameterError as error:
                raise L3PruneError(f"{clip.path}: {error}") from error
            mono = trimmed(mono, front_end.least_samples)
            maps = compute(mono[np.newaxis, np.newaxis].astype(np.float32))[0, :, :, 0]
            file.write(np.ascontiguousarray(maps.astype(np.uint8)).data)
            sizes.append(len(maps))
    with atomic_write(folder / "frames.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.array(sizes, np.int64))
