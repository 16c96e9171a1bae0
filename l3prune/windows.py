"""One-second windows of unlabelled audio to train on: from a folder, or from AVC shards.

A source numbers its windows 0 … n-1, reads any of them, and gives training orders. What was
decoded, and what a teacher says of each window, is kept in a cache folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import filelock
import numpy as np
from tqdm import tqdm

from l3prune.audio import count_windows, find_audio, frame_audio, load_audio, to_mono
from l3prune.datasets.shards import ShardRows, audio_field, find_shards
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, fingerprint, make_folder, new_folder


class Ordered(Protocol):
    """Numbered windows, or pairs, that are read in some order."""

    def __len__(self) -> int: ...

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A permutation of the numbers, fast to read in that order."""
        ...


class WindowSource(Ordered, Protocol):
    """Numbered windows of one second.

    Attributes
    ----------
    sample_rate : int
        Hz; also a window's length in samples.
    fingerprint : str
        Changes when the windows change.
    """

    sample_rate: int
    fingerprint: str

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Windows (len(indices), 1, sample_rate) float32 in [-1, 1]."""
        ...


def open_windows(
    data_dir: str | os.PathLike[str],
    sample_rate: int,
    cache_dir: str | os.PathLike[str],
    *,
    hop_size: float = 0.5,
    paired: bool = False,
    quiet: bool = False,
) -> WindowSource:
    """Windows of the audio files, or of the AVC HDF5 shards, below a folder.

    Parameters
    ----------
    data_dir : str or path-like
        Holds audio files at any depth, or .h5 shards with `audio` (n, 1, sample_rate) int16.
    sample_rate : int
        Hz. Audio files are resampled to it; shards must have it.
    cache_dir : str or path-like
        Decoded audio is kept here and found again by the files' names, sizes and times.
    hop_size : float
        Seconds between the windows of an audio file. Shards hold windows already.
    paired : bool
        Cut audio files at the same seconds whatever the sample rate; see `AudioFiles`.
    quiet : bool
        No progress bar.

    Returns
    -------
    source : WindowSource

    Raises
    ------
    L3PruneError
        The folder is missing or has neither kind of file, or a file is not what it should be.

    Examples
    --------
    >>> open_windows("/nowhere", 8000, "/tmp")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere
    """
    audio = find_audio(data_dir)
    shards = find_shards(data_dir)
    if audio and shards:
        raise L3PruneError(
            f"{data_dir} holds both audio files ({audio[0].name}, …) and HDF5 shards "
            f"({shards[0].name}, …); give a folder with one kind"
        )
    if shards:
        return Shards(shards, sample_rate)
    if not audio:
        raise L3PruneError(
            f"{data_dir} holds no audio files (wav, flac, ogg, mp3) and no .h5 shards"
        )
    return AudioFiles(audio, sample_rate, cache_dir, hop_size=hop_size, paired=paired, quiet=quiet)


class AudioFiles:
    """Windows of audio files, decoded once into one memory-mapped array.

    Parameters
    ----------
    paths : list of pathlib.Path
    sample_rate, cache_dir, hop_size, quiet
        See `open_windows`.
    paired : bool
        Count and place a file's windows in its own samples, before it is resampled: window n is
        then the same second at every sample rate, which rounding could prevent.

    Examples
    --------
    >>> import tempfile
    >>> import soundfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> soundfile.write(folder / "a.wav", np.zeros(16000), 8000)
    >>> source = AudioFiles([folder / "a.wav"], 8000, folder / "cache", quiet=True)
    >>> source.read(np.array([2, 0])).shape
    (2, 1, 8000)
    """

    def __init__(
        self,
        paths: list[Path],
        sample_rate: int,
        cache_dir: str | os.PathLike[str],
        *,
        hop_size: float = 0.5,
        paired: bool = False,
        quiet: bool = False,
    ):
        frame_audio(np.zeros(1), sample_rate, hop_size=hop_size)  # checks hop_size
        self.sample_rate = sample_rate
        settings = {"sample_rate": sample_rate, "hop_size": hop_size}
        self.fingerprint = fingerprint(paths, **settings, **({"paired": 1} if paired else {}))
        folder = Path(cache_dir) / f"audio-{self.fingerprint}"
        lock = folder / "lock"
        with new_folder(folder):
            try:
                with _lock(lock):
                    if not all((folder / name).is_file() for name in ("audio.f32", "windows.npy")):
                        _decode(paths, sample_rate, hop_size, paired, folder, quiet)
            except BaseException:
                # So that a bad recording leaves nothing behind. Whoever waits for the lock
                # decodes too, which costs time only.
                lock.unlink(missing_ok=True)
                raise
        self._audio = np.memmap(folder / "audio.f32", np.float32, "r")
        self._starts = np.load(folder / "windows.npy", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Windows (len(indices), 1, sample_rate) float32 in [-1, 1]."""
        starts = self._starts[indices]
        return np.stack([self._audio[start : start + self.sample_rate] for start in starts])[
            :, np.newaxis
        ]

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A uniform permutation."""
        return generator.permutation(len(self))


def _decode(
    paths: list[Path], sample_rate: int, hop_size: float, paired: bool, folder: Path, quiet: bool
) -> None:
    """Write audio.f32, all files end to end, and windows.npy, where the windows start in it.

    windows.npy comes last: its presence says that the cache is whole.
    """
    starts = []
    length = 0
    with atomic_write(folder / "audio.f32") as temporary, temporary.open("wb") as file:
        # None: no bar where standard error is a file, as in a batch job.
        for path in tqdm(paths, "decoding", unit="file", disable=quiet or None):
            audio, rate = load_audio(path)
            try:
                mono = to_mono(audio, rate, sample_rate)
                samples, per_second = (len(audio), rate) if paired else (len(mono), sample_rate)
                count = count_windows(samples, per_second, hop_size=hop_size, center=False)
            except ParameterError as error:
                raise L3PruneError(f"{path}: {error}") from error
            hops = np.arange(count, dtype=np.int64) * int(hop_size * per_second)
            # To the nearest sample.
            first = (2 * hops * sample_rate + per_second) // (2 * per_second)
            padded = np.zeros(max(sample_rate + int(first[-1]), len(mono)), np.float32)
            padded[: len(mono)] = mono
            file.write(padded.data)
            starts.append(length + first)
            length += len(padded)
    with atomic_write(folder / "windows.npy") as temporary:
        np.save(temporary, np.concatenate(starts))


def _lock(path: Path) -> filelock.BaseFileLock:
    """Jobs of an array share a cache: the first makes an entry, the others wait for it."""
    return filelock.FileLock(path)


class Shards:
    """Windows of HDF5 files in the layout of L3-Net's AVC batches.

    Parameters
    ----------
    paths : list of pathlib.Path
        Each holds `audio` (n, 1, sample_rate) int16; other datasets are not read.
    sample_rate : int
        Hz.

    Raises
    ------
    L3PruneError
        A file is no HDF5 file, is damaged, or has no such `audio`.

    Examples
    --------
    >>> import tempfile
    >>> from l3prune.datasets.shards import new_shard
    >>> path = Path(tempfile.mkdtemp()) / "1_0_0.h5"
    >>> with new_shard(path, 3, 8000, {}) as file:
    ...     file["audio"][:] = 16384
    >>> Shards([path], 8000).read(np.array([2])).max()
    np.float32(0.5)
    """

    def __init__(self, paths: list[Path], sample_rate: int):
        self.sample_rate = sample_rate
        self._rows = ShardRows(paths, [audio_field(sample_rate)])
        self.fingerprint = self._rows.fingerprint(sample_rate=sample_rate)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Windows (len(indices), 1, sample_rate) float32 in [-1, 1]."""
        return self._rows.read(indices)["audio"] / np.float32(32768)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A permutation of the windows, fast to read in that order; see `ShardRows.order`."""
        return self._rows.order(generator)


class Resampled:
    """The windows of another source at another sample rate, each resampled by itself.

    Outside a window it hears silence: `AudioFiles` at both rates are better, if there are files.

    Parameters
    ----------
    source : WindowSource
    sample_rate : int
        Hz, below the source's.

    Raises
    ------
    ParameterError
        The source's sample rate is not above `sample_rate`: it has no such frequencies.

    Examples
    --------
    >>> class Ones:
    ...     sample_rate, fingerprint = 48000, "ones"
    ...     def __len__(self): return 1
    ...     def read(self, indices): return np.ones((len(indices), 1, 48000), np.float32)
    >>> Resampled(Ones(), 8000).read(np.array([0])).shape
    (1, 1, 8000)
    """

    def __init__(self, source: WindowSource, sample_rate: int):
        if source.sample_rate <= sample_rate:
            raise ParameterError(
                f"windows at {source.sample_rate} Hz given where {sample_rate} Hz are wanted; give "
                "windows at the higher of both networks' sample rates"
            )
        self.source = source
        self.sample_rate = sample_rate
        self.fingerprint = f"{source.fingerprint}-{sample_rate}"

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Windows (len(indices), 1, sample_rate) float32, about in [-1, 1]."""
        windows = self.source.read(indices)[:, 0]
        result = np.zeros((len(windows), 1, self.sample_rate), np.float32)
        for window, row in zip(windows, result, strict=True):
            mono = to_mono(window, self.source.sample_rate, self.sample_rate)[: self.sample_rate]
            row[0, : len(mono)] = mono
        return result

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """The source's."""
        return self.source.order(generator)


def cached_targets(
    source: WindowSource,
    predict: Callable[[np.ndarray], np.ndarray],
    key: str,
    size: int,
    cache_dir: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    quiet: bool = False,
    what: str = "teacher",
) -> np.ndarray:
    """What a teacher says of every window, computed once and kept on disk.

    An interrupted run goes on where it stopped.

    Parameters
    ----------
    source : WindowSource
    predict : callable, (n, 1, sample_rate) float32 -> (n, size) float32
    key : str
        Identifies the teacher, such as a checksum of its weights.
    size : int
        Values of one target.
    cache_dir : str or path-like
    batch_size : int
        Windows per call of `predict`.
    quiet : bool
        No progress bar.
    what : str
        Names the progress bar: what computes.

    Returns
    -------
    targets : np.memmap, (len(source), size) float32, read-only
        In the windows' order.

    Raises
    ------
    L3PruneError
        The cache folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> class Noise:
    ...     sample_rate, fingerprint = 4, "noise"
    ...     def __len__(self): return 3
    ...     def read(self, indices): return np.ones((len(indices), 1, 4), np.float32)
    >>> mean = lambda windows: windows.mean(axis=2)
    >>> cached_targets(Noise(), mean, "mean", 1, tempfile.mkdtemp(), quiet=True).shape
    (3, 1)
    """
    path = make_folder(cache_dir) / f"targets-{source.fingerprint}-{key}.f32"
    row = size * 4
    with _lock(path.with_suffix(".lock")):
        # A file of another length was cut, or is of a run that was.
        if not path.is_file() or path.stat().st_size != len(source) * row:
            partial = path.with_suffix(".part")
            try:
                _append_targets(source, predict, size, partial, batch_size, quiet, what)
                os.replace(partial, path)
            except OSError as error:
                raise L3PruneError(f"cannot write {path}: {error.strerror}") from error
    return np.memmap(path, np.float32, "r", shape=(len(source), size))


def _append_targets(
    source: WindowSource,
    predict: Callable[[np.ndarray], np.ndarray],
    size: int,
    partial: Path,
    batch_size: int,
    quiet: bool,
    what: str,
) -> None:
    """Complete a file of target rows from where it ends."""
    done = partial.stat().st_size // (size * 4) if partial.is_file() else 0
    done = min(done, len(source))
    with (
        partial.open("ab") as file,
        tqdm(
            total=len(source),
            initial=done,
            desc=what,
            unit="window",
            disable=quiet or None,
        ) as progress,
    ):
        file.truncate(done * size * 4)  # a kill may have left part of a row
        for start in range(done, len(source), batch_size):
            indices = np.arange(start, min(start + batch_size, len(source)))
            targets = np.ascontiguousarray(predict(source.read(indices)), np.float32)
            if targets.shape != (len(indices), size):
                raise ParameterError(
                    f"the teacher gave {targets.shape}, not {(len(indices), size)}"
                )
            file.write(targets.data)
            file.flush()
            progress.update(len(indices))
        os.fsync(file.fileno())


def batch_indices(
    source: Ordered, batch_size: int, seed: int, first_batch: int = 0
) -> Iterator[np.ndarray]:
    """Endless batches of window numbers; each pass over the windows in a new order.

    The stream is a function of the seed alone, and `first_batch` enters it anywhere: a resumed
    run sees what the uninterrupted one would have seen.

    Parameters
    ----------
    source : Ordered
    batch_size : int
    seed : int
    first_batch : int

    Yields
    ------
    indices : np.ndarray, (batch_size,) int64

    Examples
    --------
    >>> class Three:
    ...     def __len__(self): return 3
    ...     def order(self, generator): return generator.permutation(3)
    >>> whole = batch_indices(Three(), 2, seed=0)
    >>> _ = next(whole), next(whole)
    >>> bool((next(whole) == next(batch_indices(Three(), 2, seed=0, first_batch=2))).all())
    True
    """
    number, offset = divmod(first_batch * batch_size, len(source))
    rest = source.order(np.random.default_rng([seed, number]))[offset:]
    while True:
        while len(rest) < batch_size:
            number += 1
            rest = np.concatenate([rest, source.order(np.random.default_rng([seed, number]))])
        yield rest[:batch_size]
        rest = rest[batch_size:]


def evenly(count: int, batch_size: int, batches: int | None) -> list[np.ndarray]:
    """Batches of numbers below `count`, spread over all of them when these are too many.

    Examples
    --------
    >>> [batch.tolist() for batch in evenly(9, 2, 2)]
    [[0, 2], [4, 6]]
    """
    taken = count if batches is None else min(batches * batch_size, count)
    chosen = np.linspace(0, count, taken, endpoint=False).astype(np.int64)
    return [chosen[start : start + batch_size] for start in range(0, taken, batch_size)]
