"""Embeddings of audio: arrays, files, folders; by OpenL3's rules for framing."""

from __future__ import annotations

import functools
import operator
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from l3prune import models
from l3prune.audio import (
    BLOCK_SECONDS,
    count_windows,
    log_spectrogram,
    mono_blocks,
    open_audio,
    read_blocks,
    window_blocks,
)
from l3prune.errors import ParameterError
from l3prune.files import atomic_write, new_folder
from l3prune.networks import inference, l3
from l3prune.weights import load_network

#: Bytes of a network's largest activation that are computed at once: mel256 takes ten windows, and
#: is as fast with them as with 32 in half the memory.
_MAX_ACTIVATION = 128 * 2**20


class L3PruneWarning(UserWarning):
    """Audio that has an embedding, but perhaps not a meaningful one.

    Examples
    --------
    >>> warnings.simplefilter("ignore", L3PruneWarning)  # for a corpus that is known to have some
    """


def load_model(model: str | os.PathLike[str] | keras.Model, **arguments: Any) -> keras.Model:
    """The network that a `model` argument names.

    A file is read again only when it has changed.

    Parameters
    ----------
    model : str, path-like or keras.Model
        A weight file; a name of published weights, such as "edgel3:sparse-95.45-ft" or
        "openl3:mel256-music-6144" (`python -m l3prune.models list`); or a loaded network, which is
        given back.
    **arguments
        For `weights.load_network`, such as `embedding_size`.

    Raises
    ------
    ParameterError
        Neither a path, nor a published name, nor a network; or arguments for a loaded network.
    L3PruneError
        See `weights.load_network` and `models.fetch`.

    Examples
    --------
    >>> load_model("model.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: model.h5; published weights have names ...
    """
    if isinstance(model, keras.Model):
        if arguments:
            raise ParameterError(
                f"a loaded network is what it is; leave out {', '.join(arguments)}, or give a path"
            )
        return model
    if not isinstance(model, str | os.PathLike):
        raise ParameterError(
            f"model={model!r} is neither a weight file's path, nor the name of published weights, "
            "nor a loaded network"
        )
    path, name, published = models.locate(model)
    arguments = {**published, **arguments}
    state = path.stat()
    key = (state.st_mtime_ns, state.st_size, state.st_ino)
    return _loaded(path.resolve(), key, name, tuple(sorted(arguments.items())))


@functools.lru_cache(maxsize=4)
def _loaded(
    path: Path, state: tuple[int, ...], name: str | None, arguments: tuple[tuple[str, Any], ...]
) -> keras.Model:
    return load_network(path, name, **dict(arguments))


def get_embedding(
    audio,
    sr,
    model=None,
    *,
    center=True,
    hop_size=0.1,
    batch_size=32,
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
    model : str, path-like, keras.Model or None
        See `load_model`. None takes the published weights that `weights` describe.
    center : bool
        Half a second of zeros in front: the first window is centred on the first sample.
    hop_size : float
        Seconds between windows.
    batch_size : int
        Windows computed at once, at most: fewer where they would take much memory, as fast.
    verbose : bool
        Show a progress bar when it takes longer than some seconds.
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
        An argument outside its range, or audio that is empty or not finite.
    L3PruneError
        See `weights.load_network` and `models.fetch`.

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
    several = isinstance(audio, list | tuple) and any(isinstance(x, np.ndarray) for x in audio)
    recordings = audio if several else [audio]
    rates = sr if several and isinstance(sr, list | tuple) else [sr] * len(recordings)
    if len(rates) != len(recordings):
        raise ParameterError(
            f"{len(recordings)} recordings and {len(rates)} sample rates; give one rate for all, "
            "or one for each"
        )
    network = _network(model, weights, center, batch_size)
    results = []
    for recording, rate in zip(recordings, rates, strict=True):
        samples = np.asarray(recording)
        seconds = len(samples) / rate if samples.ndim and is_positive(rate) else 0
        heard = _Heard()
        parts = _embed(
            heard.listen(_array_blocks(samples, rate)),
            rate,
            network,
            hop_size=hop_size,
            center=bool(center),
            batch_size=batch_size,
            seconds=seconds,
            verbose=verbose,
        )
        embedding = np.concatenate(list(parts))
        for doubt in heard.doubts(rate):
            warnings.warn(doubt, L3PruneWarning, stacklevel=2)
        results.append((embedding, np.arange(len(embedding)) * float(hop_size)))
    if several:
        return tuple(map(list, zip(*results, strict=True)))
    return results[0]


def process_file(
    path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    suffix: str | None = None,
    model: str | os.PathLike[str] | keras.Model | None = None,
    *,
    center: bool = True,
    hop_size: float = 0.1,
    batch_size: int = 32,
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
        Put behind the file's stem, after an underscore.
    model, center, hop_size, batch_size, verbose, **weights
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
        network = _network(model, weights, center, batch_size)
        parts = _embed(
            heard.listen(read_blocks(file)),
            file.samplerate,
            network,
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
    for doubt in heard.doubts(file.samplerate):
        warnings.warn(f"{path}: {doubt}", L3PruneWarning, stacklevel=2)
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
    path = Path(path)
    if suffix and (os.sep in suffix or "/" in suffix):
        raise ParameterError(f"suffix={suffix!r} has a {os.sep!r}; name folders with output_dir")
    folder = path.parent if output_dir is None else Path(output_dir)
    return folder / f"{path.stem}{f'_{suffix}' if suffix else ''}.npz"


def _network(model: Any, weights: dict[str, Any], center: Any, batch_size: Any) -> keras.Model:
    """The audio network for a call, and a check of the options that are the same for all of it."""
    if not isinstance(center, bool | np.bool_):
        raise ParameterError(f"center={center!r} is neither True nor False")
    check_batch_size(batch_size)
    if model is None:
        model, arguments = models.select(**weights)
        network = load_model(model, **arguments)
    elif weights:
        raise ParameterError(
            f"a model is given, and {', '.join(weights)}, which choose one; give one or the other"
        )
    else:
        network = load_model(model)
    l3.front_end(network)  # refuses networks of images
    return network


def check_batch_size(batch_size: int) -> int:
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
    return size


def is_positive(value: Any) -> bool:
    """Whether it is a number above zero.

    Examples
    --------
    >>> is_positive(0.1), is_positive("0.1"), is_positive(-1)
    (True, False, False)
    """
    return isinstance(value, int | float | np.number) and bool(value > 0)


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
    network: keras.Model,
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

    front_end = l3.front_end(network)
    rate = front_end.sample_rate
    infer = inference(network)
    takes_waveform = len(network.input_shape) == 3
    largest = max(int(np.prod(layer.output_shape[1:])) for layer in network.layers[1:])
    size = max(min(batch_size, _MAX_ACTIVATION // (4 * largest)), 1)
    windows = window_blocks(mono_blocks(blocks, sr, rate), rate, hop_size=hop_size, center=center)
    samples = int(min(max(seconds * rate, 1), 1e15))
    bar = tqdm(
        total=count_windows(samples, rate, hop_size=hop_size, center=center),
        unit="window",
        delay=3,  # for long recordings only
        leave=False,
        disable=None if verbose else True,  # None: not where standard error is a file
    )
    with bar:
        for batch in _batches(windows, size):
            yield infer(
                batch[:, np.newaxis] if takes_waveform else log_spectrogram(batch, front_end)
            )
            bar.update(len(batch))


def _write_npz(path: Path, parts: Iterable[np.ndarray], hop_size: float) -> None:
    """What `np.savez(path, embedding=…, timestamps=…)` writes, without all parts in memory."""
    with tempfile.TemporaryFile(dir=path.parent) as values:
        count = size = 0
        for part in parts:
            values.write(np.ascontiguousarray(part, "<f4").data)
            count, size = count + len(part), part.shape[1]
        values.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
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

    def doubts(self, rate: float) -> Iterator[str]:
        """What to warn of."""
        if self.silent:
            yield "all samples are zero"
        if self.samples < rate:
            yield f"the audio is {self.samples / rate:.3g} s long; it was zero-padded to one second"


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
