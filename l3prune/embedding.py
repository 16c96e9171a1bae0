"""Embeddings of audio: arrays, files, folders; by OpenL3's rules for framing."""

from __future__ import annotations

import functools
import operator
import os
import warnings
from pathlib import Path

import numpy as np
import tf_keras as keras

from l3prune.audio import frame_audio, load_audio, log_spectrogram, to_mono
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write
from l3prune.networks import inference, l3
from l3prune.weights import load_network


class L3PruneWarning(UserWarning):
    """Audio that has an embedding, but perhaps not a meaningful one.

    Examples
    --------
    >>> warnings.simplefilter("ignore", L3PruneWarning)  # for a corpus that is known to have some
    """


def load_model(model: str | os.PathLike[str] | keras.Model) -> keras.Model:
    """The network that a `model` argument names: a loaded one, or a weight file's.

    A file is read again only when it has changed.

    Raises
    ------
    L3PruneError
        See `weights.load_network`.
    ParameterError
        Neither a path nor a network.

    Examples
    --------
    >>> load_model(3)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: model=3 is neither a weight file's path nor a loaded network
    """
    if isinstance(model, keras.Model):
        return model
    if not isinstance(model, str | os.PathLike):
        raise ParameterError(
            f"model={model!r} is neither a weight file's path nor a loaded network"
        )
    path = Path(model)
    if not path.is_file():
        raise L3PruneError(f"no such weight file: {path}")
    state = path.stat()
    return _loaded(path.resolve(), (state.st_mtime_ns, state.st_size, state.st_ino))


@functools.lru_cache(maxsize=4)
def _loaded(path: Path, state: tuple[int, ...]) -> keras.Model:
    return load_network(path)


def get_embedding(
    audio: np.ndarray,
    sr: float,
    *,
    model: str | os.PathLike[str] | keras.Model,
    hop_size: float = 0.1,
    center: bool = True,
    batch_size: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Embedding of each one-second window of a recording.

    Parameters
    ----------
    audio : np.ndarray, (samples,) or (samples, channels) float
        In [-1, 1]. Channels are averaged, and resampled to the network's rate.
    sr : float
        Sample rate in Hz.
    model : str, path-like or keras.Model
        A weight file, or a loaded network.
    hop_size : float
        Seconds between windows.
    center : bool
        Half a second of zeros in front: the first window is centred on the first sample.
    batch_size : int
        Windows computed at once.

    Returns
    -------
    embedding : np.ndarray, (windows, embedding_size) float32
    timestamps : np.ndarray, (windows,) float64
        Seconds: the window's centre with `center`, its start without.

    Raises
    ------
    ParameterError
        An argument outside its range, or audio that is empty or not finite.
    L3PruneError
        See `weights.load_network`.

    Warns
    -----
    L3PruneWarning
        All samples are zero, or there is less than a second of them (it is zero-padded).

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    >>> network = create_network("sea64")
    >>> embedding, timestamps = get_embedding(noise, 8000, model=network, hop_size=0.5)
    >>> embedding.shape, timestamps.tolist()
    ((4, 64), [0.0, 0.5, 1.0, 1.5])
    """
    if not isinstance(center, bool | np.bool_):
        raise ParameterError(f"center={center!r} is neither True nor False")
    try:
        size = 0 if isinstance(batch_size, bool) else operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1:
        raise ParameterError(f"batch_size={batch_size!r} is not a positive whole number")
    network = load_model(model)
    front_end = l3.front_end(network)
    rate = front_end.sample_rate
    mono = to_mono(audio, sr, rate)
    if not mono.any():
        warnings.warn("all samples are zero", L3PruneWarning, stacklevel=2)
    if len(mono) < rate:
        warnings.warn(
            f"the audio is {len(mono) / rate:.3g} s long; it was zero-padded to one second",
            L3PruneWarning,
            stacklevel=2,
        )
    windows = frame_audio(mono, rate, hop_size=hop_size, center=bool(center))
    infer = inference(network)
    takes_waveform = len(network.input_shape) == 3
    embedding = np.empty((len(windows), network.output_shape[1]), np.float32)
    for start in range(0, len(windows), size):
        batch = windows[start : start + size]
        batch = batch[:, np.newaxis] if takes_waveform else log_spectrogram(batch, front_end)
        embedding[start : start + size] = infer(batch)
    return embedding, np.arange(len(windows)) * float(hop_size)


def process_file(
    path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    suffix: str | None = None,
    *,
    model: str | os.PathLike[str] | keras.Model,
    hop_size: float = 0.1,
    center: bool = True,
    batch_size: int = 32,
) -> Path:
    """Embed an audio file; write `embedding` and `timestamps` as .npz, atomically.

    Parameters
    ----------
    path : str or path-like
    output_dir : str or path-like, or None
        None: beside the audio file.
    suffix : str or None
        Put behind the file's stem, after an underscore.
    model, hop_size, center, batch_size
        See `get_embedding`.

    Returns
    -------
    output : pathlib.Path

    Raises
    ------
    L3PruneError
        The file cannot be read or the output cannot be written; see `get_embedding` too.

    Examples
    --------
    >>> process_file("/nowhere/a.wav", model="/nowhere/net.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such audio file: /nowhere/a.wav
    """
    audio, sample_rate = load_audio(path)
    try:
        embedding, timestamps = get_embedding(
            audio,
            sample_rate,
            model=model,
            hop_size=hop_size,
            center=center,
            batch_size=batch_size,
        )
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from error
    output = output_path(path, output_dir, suffix)
    with atomic_write(output) as temporary, temporary.open("wb") as file:
        np.savez(file, embedding=embedding, timestamps=timestamps)
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
