"""The openl3 package's interface: change `import openl3` to `from l3prune import openl3`.

Same functions, positions and defaults; `docs/from_openl3.md` has what differs. For new code take
`l3prune.get_embedding` and `l3prune.process_file`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l3prune import __version__, embedding, engines, images, models
from l3prune.audio import LIBROSA, frame_audio, log_spectrogram, to_mono
from l3prune.embedding import L3PruneWarning, get_output_path
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import is_file
from l3prune.networks import l3
from l3prune.sparse import SparseModel

__all__ = [
    "OpenL3Error",
    "OpenL3Warning",
    "__version__",
    "get_audio_embedding",
    "get_image_embedding",
    "get_output_path",
    "models",
    "preprocess_audio",
    "process_audio_file",
    "process_image_file",
]

OpenL3Error = L3PruneError
OpenL3Warning = L3PruneWarning

_Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def get_audio_embedding(
    audio,
    sr,
    model=None,
    input_repr=None,
    content_type="music",
    embedding_size=6144,
    center=True,
    hop_size=0.1,
    batch_size=32,
    frontend="kapre",
    verbose=True,
):
    """Embedding of each one-second window of a recording, or of several.

    Parameters
    ----------
    audio, sr, model, center, hop_size, batch_size
        See `embedding.get_embedding`.
    input_repr : {"linear", "mel128", "mel256"} or None
        None: mel256; the librosa front end asks for one.
    content_type : {"music", "env"}
    embedding_size : {6144, 512}
    frontend : {"kapre", "librosa"}
    verbose : bool

    Returns
    -------
    embedding : np.ndarray, (windows, embedding_size) float32; or list of these
    timestamps : np.ndarray, (windows,) float64, seconds; or list of these

    Raises
    ------
    ParameterError
        An argument outside its range.
    L3PruneError
        See `models.fetch` and `weights.load_network`.

    Examples
    --------
    >>> get_audio_embedding(np.ones(8000), 8000, embedding_size=1024)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: embedding_size=1024; allowed: 6144, 512
    """
    arguments = _arguments(
        model, input_repr, content_type, embedding_size, center, batch_size, frontend, verbose
    )
    return embedding.get_embedding(audio, sr, hop_size=hop_size, verbose=bool(verbose), **arguments)


def process_audio_file(
    filepath: _Paths,
    output_dir: str | os.PathLike[str] | None = None,
    suffix: str | None = None,
    model=None,
    input_repr=None,
    content_type="music",
    embedding_size=6144,
    center=True,
    hop_size=0.1,
    batch_size=32,
    overwrite=False,
    frontend="kapre",
    verbose=True,
) -> None:
    """Embed an audio file, or several; write `embedding` and `timestamps` as .npz.

    Parameters
    ----------
    filepath : str or path-like, or list of these
    output_dir, suffix, overwrite
        See `embedding.process_file`.
    model, input_repr, content_type, embedding_size, center, hop_size, batch_size, frontend, verbose
        See `get_audio_embedding`.

    Raises
    ------
    ParameterError, L3PruneError
        As `embedding.process_file`; files before the one that raises are written.

    Examples
    --------
    >>> process_audio_file(["/nowhere/a.wav"], model="/nowhere/net.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such audio file: /nowhere/a.wav
    """
    paths = _existing(filepath, "audio")
    arguments = _arguments(
        model, input_repr, content_type, embedding_size, center, batch_size, frontend, verbose
    )
    for path in paths:
        embedding.process_file(
            path,
            output_dir,
            suffix,
            hop_size=hop_size,
            overwrite=overwrite,
            verbose=bool(verbose),
            **arguments,
        )


def get_image_embedding(
    image,
    frame_rate=None,
    model=None,
    input_repr="mel256",
    content_type="music",
    embedding_size=8192,
    batch_size=32,
    verbose=True,
):
    """Embedding of each image.

    Parameters
    ----------
    image, frame_rate, model, batch_size
        See `images.get_image_embedding`.
    input_repr : {"linear", "mel128", "mel256"}
        Of the audio network that it was trained with.
    content_type : {"music", "env"}
    embedding_size : {8192, 512}
    verbose : bool

    Returns
    -------
    embedding : np.ndarray, (n, embedding_size) float32; or list of these
    timestamps : np.ndarray, (n,) float64, seconds; or list of these; None without `frame_rate`

    Raises
    ------
    ParameterError, L3PruneError
        As `images.get_image_embedding`.

    Examples
    --------
    >>> get_image_embedding(np.zeros((224, 224, 3)), content_type="speech")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: content_type='speech'; allowed: 'music', 'env'
    """
    arguments = _image_arguments(model, input_repr, content_type, embedding_size, verbose)
    return images.get_image_embedding(image, frame_rate, batch_size=batch_size, **arguments)


def process_image_file(
    filepath: _Paths,
    output_dir: str | os.PathLike[str] | None = None,
    suffix: str | None = None,
    model=None,
    input_repr="mel256",
    content_type="music",
    embedding_size=8192,
    batch_size=32,
    overwrite=False,
    verbose=True,
) -> None:
    """Embed an image file, or several; write `embedding` as .npz.

    Parameters
    ----------
    filepath : str or path-like, or list of these
    output_dir, suffix, overwrite
        See `embedding.process_file`.
    model, input_repr, content_type, embedding_size, batch_size, verbose
        See `get_image_embedding`.

    Raises
    ------
    ParameterError, L3PruneError
        As `images.process_image_file`; files before the one that raises are written.

    Examples
    --------
    >>> process_image_file("/nowhere/a.png", model="/nowhere/net.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such image file: /nowhere/a.png
    """
    paths = _existing(filepath, "image")
    arguments = _image_arguments(model, input_repr, content_type, embedding_size, verbose)
    embedding.check_batch_size(batch_size)
    for path in paths:
        images.process_image_file(path, output_dir, suffix, overwrite=overwrite, **arguments)


def preprocess_audio(
    audio, sr, hop_size=0.1, input_repr=None, center=True
) -> np.ndarray | list[np.ndarray]:
    """What an OpenL3 network takes of a recording, or of several.

    Parameters
    ----------
    audio : np.ndarray, (samples,) or (samples, channels) float; or list of these
    sr : float or list of float
        Hz.
    hop_size, center
        See `embedding.get_embedding`.
    input_repr : {"linear", "mel128", "mel256"} or None
        Spectrograms of the librosa front end; None: waveforms, for networks with their own.

    Returns
    -------
    batch : np.ndarray, (windows, 1, 48000) or (windows, bands, frames, 1) float32; or list of these

    Raises
    ------
    ParameterError
        An argument outside its range.

    Examples
    --------
    >>> preprocess_audio(np.ones(96000), 48000, input_repr="linear").shape
    (16, 257, 197, 1)
    """
    if input_repr is not None:
        models.check("input_repr", input_repr, models.INPUT_REPRS)
    models.check("center", center, (0, 1))
    recordings, rates, several = embedding.pair_up(audio, sr, "recordings", "sample rates")
    if several:
        return [
            preprocess_audio(recording, rate, hop_size, input_repr, center)  # type: ignore[misc]
            for recording, rate in zip(recordings, rates, strict=True)
        ]
    mono = to_mono(audio, sr, 48000)
    for doubt in embedding.doubts(len(mono), 48000, silent=not mono.any()):
        embedding.warn(doubt)
    windows = frame_audio(mono, 48000, hop_size=hop_size, center=bool(center))
    if input_repr is None:
        return np.ascontiguousarray(windows[:, np.newaxis])
    front_end = l3.SPECS[input_repr].front_end
    return log_spectrogram(windows, dataclasses.replace(front_end, form=LIBROSA))


def _arguments(
    model, input_repr, content_type, embedding_size, center, batch_size, frontend, verbose
) -> dict[str, Any]:
    """The options as the embedding's functions take them, after openl3's checks."""
    weights = {
        "input_repr": input_repr,
        "content_type": content_type,
        "embedding_size": embedding_size,
        "frontend": frontend,
    }
    if model is not None:
        model = engines.load_model(model)
        if not isinstance(model, SparseModel):
            l3.front_end(model)  # refuses networks of images
        # A network has its own representation, which the librosa front end asks for without one.
        weights["input_repr"] = input_repr or "mel256"
    models.select(**weights)
    if model is not None and (len(model.input_shape) == 4) != (frontend == "librosa"):
        raise ParameterError(
            f"frontend={frontend!r} and a model that takes "
            f"{'spectrograms' if len(model.input_shape) == 4 else 'waveforms'}; "
            "kapre goes with waveforms, librosa with spectrograms"
        )
    models.check("verbose", verbose, (0, 1))
    models.check("center", center, (0, 1))
    options = {"center": bool(center), "batch_size": batch_size}
    return {**options, **(weights if model is None else {"model": model})}


def _image_arguments(model, input_repr, content_type, embedding_size, verbose) -> dict[str, Any]:
    weights = {
        "input_repr": input_repr,
        "content_type": content_type,
        "embedding_size": embedding_size,
    }
    if model is not None:
        model = engines.load_model(model)
    models.select_image(**weights)
    models.check("verbose", verbose, (0, 1))
    return weights if model is None else {"model": model}


def _existing(filepath: _Paths, kind: str) -> list[Path]:
    """The files of an argument, all of them there: a missing one should not show up hours later."""
    given = [filepath] if isinstance(filepath, str | os.PathLike) else list(filepath)
    paths = [Path(path) for path in given]
    for path in paths:
        if not is_file(path):
            raise ParameterError(f"no such {kind} file: {path}")
    return paths
