"""The edgel3 package's interface: change `import edgel3` to `from l3prune import edgel3`.

Same functions, positions, defaults and checks in the same order; `docs/from_edgel3.md` has what
differs. For new code take `l3prune.get_embedding` and `l3prune.process_file`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from l3prune import __version__, embedding, engines, models
from l3prune.audio import as_array
from l3prune.embedding import L3PruneWarning, get_output_path
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import is_file

__all__ = [
    "EdgeL3Error",
    "EdgeL3Warning",
    "__version__",
    "get_embedding",
    "get_output_path",
    "models",
    "process_file",
]

EdgeL3Error = L3PruneError
EdgeL3Warning = L3PruneWarning


def get_embedding(
    audio,
    sr,
    model=None,
    model_type="sparse",
    emb_dim=128,
    retrain_type="ft",
    sparsity=95.45,
    center=True,
    hop_size=0.1,
    verbose=1,
    *,
    batch_size=32,
):
    """Embedding of each one-second window of a recording, or of several.

    Parameters
    ----------
    audio, sr, model, center, hop_size, batch_size
        See `embedding.get_embedding`.
    model_type : {"sparse", "sea"}
    emb_dim : {512, 256, 128, 64}
        Of model_type "sea".
    retrain_type : {"ft", "kd"}
        Of model_type "sparse": fine-tuned, or distilled.
    sparsity : float
        Of model_type "sparse", percent: 53.5, 63.5, 72.3, 73.5, 81.0, 87.0, 90.5 or 95.45.
    verbose : {0, 1}

    Returns
    -------
    embedding : np.ndarray, (windows, size) float32; or list of these
    timestamps : np.ndarray, (windows,) float64, seconds; or list of these

    Raises
    ------
    ParameterError
        The first of these that is wrong: audio is empty, model, model_type, emb_dim, retrain_type,
        sparsity, hop_size, verbose, center, the audio's shape.
    L3PruneError
        See `models.fetch` and `weights.load_network`.

    Examples
    --------
    >>> get_embedding(np.ones(8000), 8000, model_type="dense")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: model_type='dense'; allowed: 'sea', 'sparse'
    """
    for recording in embedding.pair_up(audio, sr, "recordings", "sample rates")[0]:
        if not as_array(recording).size:
            raise ParameterError("audio is empty; give at least one sample")
    arguments = _arguments(
        model, model_type, emb_dim, retrain_type, sparsity, hop_size, verbose, center
    )
    return embedding.get_embedding(
        audio,
        sr,
        center=center,
        hop_size=hop_size,
        batch_size=batch_size,
        verbose=bool(verbose),
        **arguments,
    )


def process_file(
    filepath: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    suffix: str | None = None,
    model=None,
    model_type="sparse",
    emb_dim=128,
    sparsity=95.45,
    center=True,
    hop_size=0.1,
    verbose=True,
    *,
    retrain_type="ft",
    batch_size=32,
) -> Path:
    """Embed an audio file; write `embedding` and `timestamps` as .npz.

    Parameters
    ----------
    filepath, output_dir, suffix
        See `embedding.process_file`.
    model, model_type, emb_dim, sparsity, center, hop_size, verbose, retrain_type, batch_size
        See `get_embedding`.

    Returns
    -------
    output : pathlib.Path

    Raises
    ------
    ParameterError, L3PruneError
        As `embedding.process_file`.

    Examples
    --------
    >>> process_file("/nowhere/a.wav")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such audio file: /nowhere/a.wav
    """
    if not is_file(filepath):
        raise ParameterError(f"no such audio file: {filepath}")
    arguments = _arguments(
        model, model_type, emb_dim, retrain_type, sparsity, hop_size, verbose, center
    )
    return embedding.process_file(
        filepath,
        output_dir,
        suffix,
        center=center,
        hop_size=hop_size,
        batch_size=batch_size,
        verbose=bool(verbose),
        **arguments,
    )


def _arguments(
    model, model_type, emb_dim, retrain_type, sparsity, hop_size, verbose, center
) -> dict[str, Any]:
    """The model as the embedding's functions take it, after edgel3's checks in its order."""
    if model is not None:
        model = engines.load_model(model)
    weights = {
        "model_type": model_type,
        "emb_dim": emb_dim,
        "retrain_type": retrain_type,
        "sparsity": sparsity,
    }
    models.select(**weights)
    if not embedding.is_positive(hop_size):
        raise ParameterError(f"hop_size={hop_size!r} is not a positive number of seconds")
    models.check("verbose", verbose, (0, 1))
    if not isinstance(center, bool | np.bool_):
        raise ParameterError(f"center={center!r} is neither True nor False")
    return weights if model is None else {"model": model}
