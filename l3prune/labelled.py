"""Labelled clips as networks take them: decoded, fitted to one length, their maps kept on disk."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from l3prune.audio import load_audio, to_mono
from l3prune.checks import check_whole
from l3prune.datasets import Dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import fingerprint
from l3prune.windows import cached_targets

#: How clips that are too short are filled.
FILLS = ("repeat", "zeros")

#: Clips whose maps are summed at once, for statistics.
_BLOCK = 64


class LabelledSource(Protocol):
    """Numbered inputs of a network, with their targets.

    Attributes
    ----------
    labels : tuple of str
        Of the classes.
    multi_label : bool
        An input can be of several classes, or of none.
    fingerprint : str
        Changes when inputs or targets change.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def multi_label(self) -> bool: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Numbers to train on in one pass, in that order, as many as there are inputs."""
        ...

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (n, …) and targets (n, classes), both float32."""
        ...


class MapArray(Protocol):
    """What is taken from an array of maps."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


def fitted(audio: np.ndarray, samples: int, fill: str = "repeat") -> np.ndarray:
    """The beginning of a recording; a shorter one is repeated, or followed by silence.

    Parameters
    ----------
    audio : np.ndarray, (n,), n > 0
    samples : int
    fill : {"repeat", "zeros"}

    Examples
    --------
    >>> fitted(np.array([1, 2, 3]), 5), fitted(np.array([1, 2, 3]), 5, "zeros")
    (array([1, 2, 3, 1, 2]), array([1, 2, 3, 0, 0]))
    """
    if fill not in FILLS:
        raise ParameterError(f"fill={fill!r}; allowed: {', '.join(FILLS)}")
    if fill == "repeat":
        return np.resize(audio, samples)
    return np.pad(audio[:samples], (0, max(samples - len(audio), 0)))


class ClipAudio:
    """Whole clips of one length as waveforms, decoded whenever they are read.

    Parameters
    ----------
    paths : sequence of pathlib.Path
    sample_rate : int
        Hz; recordings are made mono, unless `channels` is 2, and resampled.
    samples : int
        Of each clip.
    fill : {"repeat", "zeros"}
        See `fitted`.
    channels : {1, 2}
        2 keeps those of a stereo recording, and gives both that of any other.

    Examples
    --------
    >>> import tempfile
    >>> import soundfile
    >>> path = Path(tempfile.mkdtemp()) / "a.wav"
    >>> soundfile.write(path, np.ones(4) / 2, 8000)
    >>> ClipAudio([path], 8000, 6).read(np.array([0]))
    array([[[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]]], dtype=float32)
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sample_rate: int,
        samples: int,
        fill: str = "repeat",
        channels: int = 1,
    ) -> None:
        fitted(np.zeros(1), 1, fill)  # checks fill
        check_whole("samples", samples, 1)
        check_whole("channels", channels, 1, 2)
        self.paths = tuple(paths)
        self.sample_rate = sample_rate
        self.samples = samples
        self.fill = fill
        self.channels = channels
        settings = {"sample_rate": sample_rate, "samples": samples, "fill": FILLS.index(fill)}
        settings |= {"channels": channels} if channels > 1 else {}
        self.fingerprint = fingerprint(self.paths, **settings)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Waveforms (n, channels, samples) float32 in [-1, 1]."""
        clips = np.empty((len(indices), self.channels, self.samples), np.float32)
        for clip, number in zip(clips, indices, strict=True):
            path = self.paths[int(number)]
            audio, rate = load_audio(path)
            parts = [audio]
            if self.channels == audio.shape[1] == 2:
                parts = [audio[:, 0], audio[:, 1]]
            try:
                heard = [to_mono(part, rate, self.sample_rate) for part in parts]
            except ParameterError as error:
                raise L3PruneError(f"{path}: {error}") from error
            clip[:] = np.stack([fitted(each, self.samples, self.fill) for each in heard])
        return clips

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A uniform permutation."""
        return generator.permutation(len(self))


def _unchanged(maps: np.ndarray) -> np.ndarray:
    return maps


@dataclass(frozen=True, eq=False)
class LabelledMaps:
    """The maps of labelled clips, in one array.

    Attributes
    ----------
    maps : np.ndarray or MapArray, (all clips, rows, columns, channels) float32
        As the front end gives them before it normalises; on disk, if they are many.
    targets : np.ndarray, (all clips, classes)
        1 or 0; of many clips bool, which takes less memory.
    labels : tuple of str
    fingerprint : str
        Of maps and targets.
    rows : np.ndarray of int
        Which of all clips these are.
    groups : mapping of str to tuple of str
        Kind of group, such as "device" -> the group of each of all clips.
    multi_label : bool
    normalise : callable, maps -> maps
        What the front end of the network makes of these maps.

    Examples
    --------
    >>> maps = LabelledMaps(np.zeros((3, 2, 2, 1), np.float32), np.eye(3), ("a", "b", "c"), "x")
    >>> inputs, targets = maps.subset([2, 0]).read(np.array([0]))
    >>> inputs.shape, targets
    ((1, 2, 2, 1), array([[0., 0., 1.]], dtype=float32))
    """

    maps: MapArray
    targets: np.ndarray
    labels: tuple[str, ...]
    fingerprint: str
    rows: np.ndarray = field(default_factory=lambda: np.arange(0))
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    multi_label: bool = False
    normalise: Callable[[np.ndarray], np.ndarray] = _unchanged

    def __post_init__(self) -> None:
        if not len(self.rows):
            object.__setattr__(self, "rows", np.arange(len(self.maps)))

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, rows: Sequence[int]) -> LabelledMaps:
        """Some of all clips, by their numbers among all."""
        chosen = np.array(rows, np.int64)
        if not len(chosen):
            raise ParameterError("a subset of no clips; give at least one")
        mark = f"{self.fingerprint}-{zlib.crc32(chosen.tobytes()):08x}"
        return replace(self, rows=chosen, fingerprint=mark)

    def normalised(self, normalise: Callable[[np.ndarray], np.ndarray]) -> LabelledMaps:
        """The same clips for a front end with another normalisation."""
        return replace(self, normalise=normalise)

    def group(self, kind: str) -> list[str]:
        """The group of each of these clips."""
        return [self.groups[kind][row] for row in self.rows]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised maps and targets."""
        rows = self.rows[indices]
        return self.normalise(np.asarray(self.maps[rows])), self.targets[rows].astype(np.float32)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A uniform permutation."""
        return generator.permutation(len(self))

    def statistics(self) -> dict[str, list[float]]:
        """Mean and sample standard deviation of each band, over clips, frames, channels."""
        count = len(self) * self.maps.shape[2] * self.maps.shape[3]
        blocks = [self.rows[n : n + _BLOCK] for n in range(0, len(self), _BLOCK)]

        def total(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            sums = [
                function(self.maps[rows].astype(np.float64)).sum(axis=(0, 2, 3)) for rows in blocks
            ]
            return np.sum(sums, axis=0)

        mean = total(lambda maps: maps) / count
        squares = total(lambda maps: np.square(maps - mean[:, np.newaxis, np.newaxis]))
        std = np.sqrt(squares / (count - 1))
        if not std.all():
            raise L3PruneError(
                f"band {int(np.argmin(std))} of the training clips is the same everywhere, so it "
                "cannot be normalised; are the recordings silent?"
            )
        return {"mean": mean.tolist(), "std": std.tolist()}


def multi_hot(dataset: Dataset) -> np.ndarray:
    """The classes of each clip of a corpus, (clips, classes) float32.

    Examples
    --------
    >>> from l3prune.datasets import Clip
    >>> clip = Clip(Path("a.wav"), 1, 0, further=(2,))
    >>> multi_hot(Dataset("toy", (clip,), ("dog", "rain", "wind")))
    array([[1., 0., 1.]], dtype=float32)
    """
    targets = np.zeros((len(dataset.clips), len(dataset.labels)), np.float32)
    for row, clip in zip(targets, dataset.clips, strict=True):
        row[[clip.target, *clip.further]] = 1
    return targets


def groups_of(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """What clips of a corpus are told apart by, besides their classes; see `LabelledMaps.groups`.

    Examples
    --------
    >>> from l3prune.datasets import Clip
    >>> groups_of(Dataset("toy", (Clip(Path("a.wav"), 1, 0, device="s1"),), ("dog",)))
    {'device': ('s1',)}
    """
    if all(clip.device is not None for clip in dataset.clips):
        return {"device": tuple(str(clip.device) for clip in dataset.clips)}
    return {}


def label_maps(
    dataset: Dataset,
    audio: ClipAudio,
    compute: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    key: str,
    cache_dir: str | os.PathLike[str],
    *,
    quiet: bool = False,
) -> LabelledMaps:
    """The maps of all clips of a corpus, computed once and kept on disk.

    An interrupted run goes on where it stopped.

    Parameters
    ----------
    dataset : Dataset
    audio : ClipAudio
        Of its clips, in their order.
    compute : callable, (n, channels, samples) -> (n, *shape) float32
    shape : tuple of int
        Of the maps of one clip.
    key : str
        Identifies `compute`.
    cache_dir : str or path-like
    quiet : bool
        No progress bar.

    Examples
    --------
    >>> import tempfile
    >>> import soundfile
    >>> from l3prune.datasets import Clip
    >>> path = Path(tempfile.mkdtemp()) / "a.wav"
    >>> soundfile.write(path, np.ones(4) / 2, 8000)
    >>> dataset = Dataset("toy", (Clip(path, 1, 0),), ("dog",))
    >>> audio = ClipAudio([path], 8000, 6)
    >>> compute = lambda waveforms: waveforms.reshape(-1, 2, 3, 1)
    >>> label_maps(dataset, audio, compute, (2, 3, 1), "k", path.parent, quiet=True).maps.shape
    (1, 2, 3, 1)
    """
    size = int(np.prod(shape))

    def rows(waveforms: np.ndarray) -> np.ndarray:
        return compute(waveforms).reshape(len(waveforms), size)

    maps = cached_targets(
        audio, rows, key, size, cache_dir, batch_size=4, quiet=quiet, what="spectrograms"
    )
    targets = multi_hot(dataset)
    return LabelledMaps(
        maps.reshape(len(audio), *shape),
        targets,
        dataset.labels,
        f"{audio.fingerprint}-{key}-{zlib.crc32(targets.tobytes()):08x}",
        groups=groups_of(dataset),
        multi_label=dataset.multi_label,
    )
