"""Embeddings of audio: arrays, files, folders; by OpenL3's rules for framing."""

from __future__ import annotations

import numbers
import operator
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l3prune.audio import (
    BLOCK_SECONDS,
    as_array,
    count_windows,
    mono_blocks,
    open_audio,
    read_blocks,
    window_blocks,
)
from l3prune.engines import Engine, choose_engine, choose_model, load_model
from l3prune.errors import ParameterError
from l3prune.files import atomic_write, new_folder

if TYPE_CHECKING:
    from l3prune.engines import Model

__all__ = [
    "L3PruneWarning",
    "check_batch_size",
    "doubts",
    "get_embedding",
    "get_output_path",
    "is_positive",
    "load_model",
    "output_path",
    "pair_up",
    "process_file",
    "warn",
]


class L3PruneWarning(UserWarning):
    """Audio that has an embedding, but perhaps not a meaningful one.

    Examples
    --------
    >>> warnings.simplefilter("ignore", L3PruneWarning)  # for a corpus that is known to have some
    """


def get_embedding(
    audio,
    sr,
    model=None,
    *,
    center=True,
    hop_size=0.1,
    batch_size=32,
    engine="auto",
    verbose=False,
    **weights,
):
    """Embedding of each one-second window of a recording, or of several.

    A recording is computed ten seconds at a time, so that memory holds little more than the audio
    that was given and the embedding.

    Parameters
    ----------
    audio : np.ndarray, (samples,) or (samples, channels) float; or list of these
        In [-1, 1]. Channels are averaged, and resampled to the network's rate.
    sr : float or list of float
        Sample rate in Hz; one for all recordings, or one each.
    model : str, path-like, keras.Model, SparseModel or None
        See `engines.load_model`. None takes the published weights that `weights` describe.
    center : bool
        Half a second of zeros in front: the first window is centred on the first sample.
    hop_size : float
        Seconds between windows.
    batch_size : int
        Windows computed at once, at most: fewer where they would take much memory, as fast.
    engine : str
        "auto", "sparse" or "dense"; see `engines.choose_engine`, which tells what "auto" takes.
    verbose : bool
        Show a progress bar with the engine's name when it takes longer than some seconds.
    **weights
        Which published weights, when there is no `model`: EdgeL3's `model_type`, `emb_dim`,
        `retrain_type` and `sparsity`, or OpenL3's `input_repr`, `content_type`, `embedding_size`
        and `frontend`; see `models.select`. Without any, EdgeL3 at 95.45 %.

    Returns
    -------
    embedding : np.ndarray, (windows, embedding_size) float32; or list of these
    timestamps : np.ndarray, (windows,) float64; or list of these
        Seconds: the window's centre with `center`, its start without.

    Raises
    ------
    ParameterError
        An argument outside its range, or audio that is empty or not finite; see `choose_engine`
        too.
    L3PruneError
        See `engines.load_model`.

    Warns
    -----
    L3PruneWarning
        All samples are zero, or there is less than a second of them (it is zero-padded).

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    >>> network = create_network("sea64")
    >>> embedding, timestamps = get_embedding(noise, 8000, network, hop_size=0.5)
    >>> embedding.shape, timestamps.tolist()
    ((4, 64), [0.0, 0.5, 1.0, 1.5])
    """
    recordings, rates, several = pair_up(audio, sr, "recordings", "sample rates")
    chosen = _engine(model, weights, center, batch_size, engine)
    results = []
    for recording, rate in zip(recordings, rates, strict=True):
        samples = as_array(recording)
        seconds = len(samples) / rate if samples.ndim and is_positive(rate) else 0
        heard = _Heard()
        parts = _embed(
            heard.listen(_array_blocks(samples, rate)),
            rate,
            chosen,
            hop_size=hop_size,
            center=bool(center),
            batch_size=batch_size,
            seconds=seconds,
            verbose=verbose,
        )
        embedding = np.concatenate(list(parts))
        for doubt in doubts(heard.samples, rate, silent=heard.silent):
            warn(doubt)
        results.append((embedding, np.arange(len(embedding)) * float(hop_size)))
    if several:
        return tuple(map(list, zip(*results, strict=True)))
    return results[0]


def process_file(
    path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    suffix: str | None = None,
    model: str | os.PathLike[str] | Model | None = None,
    *,
    center: bool = True,
    hop_size: float = 0.1,
    batch_size: int = 32,
    engine: str = "auto",
    overwrite: bool = True,
    verbose: bool = False,
    **weights: Any,
) -> Path:
    """Embed an audio file; write `embedding` and `timestamps` as .npz, atomically.

    The file is decoded ten seconds at a time, however long it is.

    Parameters
    ----------
    path : str or path-like
    output_dir : str or path-like, or None
        None: beside the audio file.
    suffix : str or None
        Put behind the file's stem, after an underscore unless it starts with a dot.
    model, center, hop_size, batch_size, engine, verbose, **weights
        See `get_embedding`.
    overwrite : bool
        Make an output that exists already anew; otherwise keep it.

    Returns
    -------
    output : pathlib.Path

    Raises
    ------
    ParameterError
        The file cannot be read; see `get_embedding` too.
    L3PruneError
        The output cannot be written.

    Examples
    --------
    >>> process_file("/nowhere/a.wav", model="/nowhere/net.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such audio file: /nowhere/a.wav
    """
    output = output_path(path, output_dir, suffix)
    if output.exists() and not overwrite:
        return output
    heard = _Heard()
    with open_audio(path) as file:
        chosen = _engine(model, weights, center, batch_size, engine)
        parts = _embed(
            heard.listen(read_blocks(file)),
            file.samplerate,
            chosen,
            hop_size=hop_size,
            center=bool(center),
            batch_size=batch_size,
            seconds=file.frames / file.samplerate,
            verbose=verbose,
        )
        with new_folder(output.parent), atomic_write(output) as temporary:
            try:
                _write_npz(temporary, parts, float(hop_size))
            except ParameterError as error:
                raise ParameterError(f"{path}: {error}") from error
    for doubt in doubts(heard.samples, file.samplerate, silent=heard.silent):
        warn(f"{path}: {doubt}")
    return output


def output_path(
    path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    suffix: str | None = None,
) -> Path:
    """Where `process_file` puts the embedding of an audio file.

    Raises
    ------
    ParameterError
        The suffix would name another folder.

    Examples
    --------
    >>> output_path("/a/b/audio.wav", "/out", "embedding").as_posix()
    '/out/audio_embedding.npz'
    """
    if suffix and (os.sep in suffix or "/" in suffix):
        raise ParameterError(f"suffix={suffix!r} has a {os.sep!r}; name folders with output_dir")
    return Path(get_output_path(path, f"{suffix or ''}.npz", output_dir))


def get_output_path(
    filepath: str | os.PathLike[str],
    suffix: str,
    output_dir: str | os.PathLike[str] | None = None,
) -> str:
    """Path beside a file, or in another folder, with another ending.

    Parameters
    ----------
    filepath : str or path-like
    suffix : str
        Put behind the file's stem: as it is if it starts with a dot, else after an underscore.
    output_dir : str or path-like, or None
        None: the file's folder.

    Examples
    --------
    >>> get_output_path("/a/b/audio.wav", "embedding.npz", "/out/dir")
    '/out/dir/audio_embedding.npz'
    >>> get_output_path("/a/b/audio.wav", ".npz")
    '/a/b/audio.npz'
    """
    folder = Path(output_dir) if output_dir else Path(filepath).parent
    separator = "" if suffix.startswith(".") else "_"
    return str(folder / f"{Path(filepath).stem}{separator}{suffix}")


def pair_up(values: Any, rates: Any, things: str, kind: str) -> tuple[list[Any], list[Any], bool]:
    """One array or several, with one rate for all or one each: as two lists of one length.

    Returns
    -------
    values, rates : list
    several : bool
        `values` was a list of arrays.

    Examples
    --------
    >>> pair_up([np.zeros(2), np.zeros(3)], 8000, "recordings", "sample rates")[1:]
    ([8000, 8000], True)
    """
    several = isinstance(values, list | tuple) and any(isinstance(x, np.ndarray) for x in values)
    each = list(values) if several else [values]
    paired = list(rates) if several and isinstance(rates, list | tuple) else [rates] * len(each)
    if len(paired) != len(each):
        raise ParameterError(
            f"{len(each)} {things} and {len(paired)} {kind}; give one rate for all, or one for each"
        )
    return each, paired, several


def doubts(samples: int, rate: float, *, silent: bool) -> Iterator[str]:
    """What to warn of in a recording of so many samples, silent or not.

    Examples
    --------
    >>> list(doubts(4000, 8000, silent=False))
    ['the audio is 0.5 s long; it was zero-padded to one second']
    """
    if silent:
        yield "all samples are zero"
    if samples < rate:
        yield f"the audio is {samples / rate:.3g} s long; it was zero-padded to one second"


def warn(message: str) -> None:
    """An `L3PruneWarning` at the line outside of l3prune that the call came from.

    Examples
    --------
    >>> warn("all samples are zero")
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("l3prune."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, L3PruneWarning, stacklevel=level)


def _engine(
    model: Any, weights: dict[str, Any], center: Any, batch_size: Any, engine: str
) -> Engine:
    """The engine for a call, and a check of the options that are the same for all of it."""
    if not isinstance(center, bool | np.bool_):
        raise ParameterError(f"center={center!r} is neither True nor False")
    check_batch_size(batch_size)
    return choose_engine(choose_model(model, weights), engine)


def check_batch_size(batch_size: Any) -> None:
    """Refuse what is no positive whole number.

    Examples
    --------
    >>> check_batch_size(0)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: batch_size=0 is not a positive whole number
    """
    try:
        size = 0 if isinstance(batch_size, bool) else operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1:
        raise ParameterError(f"batch_size={batch_size!r} is not a positive whole number")


def is_positive(value: Any) -> bool:
    """Whether it is a number above zero.

    Examples
    --------
    >>> is_positive(0.1), is_positive("0.1"), is_positive(-1)
    (True, False, False)
    """
    return isinstance(value, numbers.Real) and float(value) > 0


def _array_blocks(audio: np.ndarray, rate: float) -> Iterator[np.ndarray]:
    if audio.ndim == 0 or not len(audio):
        yield audio  # to be refused
        return
    step = int(BLOCK_SECONDS * rate)
    for start in range(0, len(audio), step):
        yield audio[start : start + step]


def _embed(
    blocks: Iterable[np.ndarray],
    sr: float,
    engine: Engine,
    *,
    hop_size: float,
    center: bool,
    batch_size: int,
    seconds: float,
    verbose: bool,
) -> Iterator[np.ndarray]:
    """Embeddings of the windows of a recording that comes in blocks, (n, size) float32 at a time.

    `seconds`, the length, is for the progress bar only.
    """
    from tqdm import tqdm

    rate = engine.front_end.sample_rate
    windows = window_blocks(mono_blocks(blocks, sr, rate), rate, hop_size=hop_size, center=center)
    samples = int(min(max(seconds * rate, 1), 1e15))
    bar = tqdm(
        total=count_windows(samples, rate, hop_size=hop_size, center=center),
        desc=f"{engine.name} engine",
        unit="window",
        delay=3,  # for long recordings only
        leave=False,
        disable=None if verbose else True,  # None: not where standard error is a file
    )
    with bar:
        for batch in _batches(windows, min(batch_size, engine.at_once)):
            yield engine.compute(batch)
            bar.update(len(batch))


def _write_npz(path: Path, parts: Iterable[np.ndarray], hop_size: float) -> None:
    """What `np.savez(path, embedding=…, timestamps=…)` writes, without all parts in memory."""
    with tempfile.TemporaryFile(dir=path.parent) as values:
        count = 0
        shape: tuple[int, ...] = (0,)
        for part in parts:
            values.write(np.ascontiguousarray(part, "<f4").data)
            count, shape = count + len(part), part.shape[1:]
        values.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("embedding.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(values, member)
            with archive.open("timestamps.npy", "w") as member:
                np.lib.format.write_array(member, np.arange(count) * hop_size)


class _Heard:
    """Counts the samples that pass, and notices whether any is not zero."""

    def __init__(self) -> None:
        self.samples = 0
        self.silent = True

    def listen(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            yield block
            self.samples += len(block)
            self.silent = self.silent and not block.any()


def _batches(windows: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same windows, `size` at a time; the last are fewer."""
    batch: list[np.ndarray] = []
    count = 0
    for some in windows:
        start = 0
        while start < len(some):
            part = some[start : start + size - count]
            batch.append(part)
            count += len(part)
            start += len(part)
            if count == size:
                yield np.concatenate(batch)
                batch, count = [], 0
    if batch:
        yield np.concatenate(batch)
