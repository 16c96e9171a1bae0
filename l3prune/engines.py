"""The model of an embedding: named, loaded, and computed by TensorFlow or by the sparse engine.

TensorFlow is imported only for what needs it: a packed file is loaded and computed without.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from l3prune.audio import FrontEnd, log_spectrogram
from l3prune.errors import ParameterError
from l3prune.files import is_file
from l3prune.quiet import require_tensorflow
from l3prune.sparse import SparseModel, is_packed
from l3prune.sparse.convert import program_of
from l3prune.sparse.plan import mac_density
from l3prune.sparse.program import Program

if TYPE_CHECKING:
    import tf_keras as keras

    Model: TypeAlias = keras.Model | SparseModel

ENGINES = ("auto", "sparse", "dense")

#: Share of multiply-accumulates with weights that are not zero up to which "auto" takes the sparse
#: engine. `benchmarks/engine_choice.py` measures where both are equally fast.
AUTO_DENSITY = 0.25

#: Windows whose spectrograms are made at once for the sparse engine, which itself takes one by one.
_SPECTROGRAMS = 32

#: Bytes of a network's largest activation that are computed at once: mel256 takes ten windows, and
#: is as fast with them as with 32 in half the memory.
_MAX_ACTIVATION = 128 * 2**20


def load_model(
    model: str | os.PathLike[str] | Model, *, kind: str = "audio", **arguments: Any
) -> Model:
    """The network that a `model` argument names.

    A file is read again only when it has changed, so that calls share one network: do not train or
    change it, but one of `weights.load_network` or `models.load`.

    Parameters
    ----------
    model : str, path-like, keras.Model or SparseModel
        A weight file; a packed file (`l3prune.sparse`); a name of published weights, such as
        "edgel3:sparse-95.45-ft" or "openl3:mel256-music-6144" (`python -m l3prune.models list`);
        or a loaded network, which is given back.
    kind : {"audio", "image"}
        The half to take of our own checkpoint of an audio-visual network.
    **arguments
        For `weights.load_network`, such as `embedding_size`.

    Returns
    -------
    model : keras.Model or SparseModel
        A `SparseModel` of a packed file.

    Raises
    ------
    ParameterError
        Neither a path, nor a published name, nor a network; or arguments for a loaded network or a
        packed file.
    L3PruneError
        See `weights.load_network`, `sparse.load_program` and `models.fetch`; or the file needs
        TensorFlow, which is not installed.

    Examples
    --------
    >>> load_model("model.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: model.h5; published weights have names ...
    """
    if isinstance(model, SparseModel) or _is_network(model):
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
    path, name = Path(model), None
    if not is_file(path):
        from l3prune import models

        path, name, published = models.locate(model)
        arguments = {**published, **arguments}
    state = path.stat()
    key = (state.st_mtime_ns, state.st_size, state.st_ino)
    return _loaded(path.resolve(), key, name, kind, json.dumps(arguments, sort_keys=True))


def choose_model(model: Any, weights: dict[str, Any], kind: str = "audio") -> Model:
    """The network that is given, or else the published one that its options choose.

    `kind` is "audio" or "image": what the options are of.

    Examples
    --------
    >>> choose_model("net.h5", {"sparsity": 87})
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: a model is given, and sparsity, which choose one; give one or ...
    """
    if model is None:
        from l3prune import models

        select = models.select_image if kind == "image" else models.select
        name, arguments = select(**weights)
        return load_model(name, **arguments)
    if weights:
        raise ParameterError(
            f"a model is given, and {', '.join(weights)}, which choose one; give one or the other"
        )
    return load_model(model, kind=kind)


@dataclass(frozen=True)
class Engine:
    """What computes the embeddings of one-second windows of sound.

    Attributes
    ----------
    name : str
        "sparse" or "dense" (TensorFlow).
    reason : str
        Why it was taken, for people.
    front_end : FrontEnd
        Its sample rate is that of the windows.
    compute : callable, (n, sample_rate) float32 -> (n, size) float32
        Windows in [-1, 1] to embeddings.
    at_once : int
        Windows that it computes at once without taking much memory.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> engine = choose_engine(create_network("sea64"))
    >>> engine.name, engine.reason
    ('dense', '100.0% of the multiply-accumulates are left; the sparse engine is for 25% at most')
    >>> engine.compute(np.zeros((3, 8000), np.float32)).shape
    (3, 64)
    """

    name: str
    reason: str
    front_end: FrontEnd
    compute: Callable[[np.ndarray], np.ndarray]
    at_once: int


def choose_engine(model: Model, engine: str = "auto") -> Engine:
    """The engine for an audio network.

    Parameters
    ----------
    model : keras.Model or SparseModel
        From `load_model`.
    engine : str
        "dense" is TensorFlow, "sparse" is `l3prune.sparse`, whose embeddings are the same to 1e-5
        of their size. "auto" takes "sparse" for a packed file, and for a network that the sparse
        engine knows if at most 25 % of its multiply-accumulates have a weight that is not zero:
        up to there it is the faster one (docs/sparse.md). It is compiled once on a machine, which
        takes some seconds.

    Returns
    -------
    engine : Engine
        Of a network the sparse engine is kept, and made anew when a weight has changed.

    Raises
    ------
    ParameterError
        An unknown engine; a network that is no audio network of the L3 family; "sparse" for one
        that the sparse engine does not know; "dense" for a packed file; or a packed file without a
        front end, which takes no sound.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> choose_engine(create_network("sea64"), "sparse").name
    'sparse'
    """
    if engine not in ENGINES:
        raise ParameterError(f"engine={engine!r} is unknown; allowed: {', '.join(ENGINES)}")
    if isinstance(model, SparseModel):
        if engine == "dense":
            raise ParameterError(
                f"{model.program.name} is a packed network, which only the sparse engine computes; "
                "for engine='dense' give the weight file that it was made of"
            )
        return _sparse(model, "a packed network")
    return _choose_for_network(model, engine)


def _choose_for_network(network: keras.Model, engine: str) -> Engine:
    from l3prune.networks import inference, l3

    front_end = l3.front_end(network)  # refuses networks of images
    reason = "as asked for"
    if engine != "dense":
        try:
            program, density, kept = _converted(network)
        except ParameterError as error:
            if engine == "sparse":
                raise
            reason = str(error)
        else:
            left = f"{density:.1%} of the multiply-accumulates are left"
            if engine == "sparse" or density <= AUTO_DENSITY:
                if not kept:
                    kept.append(SparseModel(dataclasses.replace(program, front_end=front_end)))
                return _sparse(kept[0], left)
            reason = f"{left}; the sparse engine is for {AUTO_DENSITY:.0%} at most"
    infer = inference(network)

    def compute(windows: np.ndarray) -> np.ndarray:
        if len(network.input_shape) == 3:
            return infer(windows[:, np.newaxis])
        return infer(log_spectrogram(windows, front_end))

    return Engine("dense", reason, front_end, compute, at_once(network))


def _converted(network: keras.Model) -> tuple[Program, float, list[SparseModel]]:
    """A network's program, its density, and a place to keep what is built of it."""
    checksum = 0
    for weight in network.weights:
        checksum = zlib.crc32(np.ascontiguousarray(weight.numpy()).data, checksum)
    if getattr(network, "l3prune_converted", (None,))[0] != checksum:
        program = program_of(network)
        network.l3prune_converted = (checksum, program, mac_density(program), [])
    return network.l3prune_converted[1:]


def _sparse(model: SparseModel, reason: str) -> Engine:
    front_end = model.program.front_end
    if front_end is None:
        raise ParameterError(
            f"{model.program.name} is a packed network without a front end; it takes arrays of "
            f"shape (n, {', '.join(map(str, model.input_shape))}), not sound: call it as a "
            "SparseModel, or pack a network that takes waveforms"
        )
    return Engine("sparse", reason, front_end, model, at_once=_SPECTROGRAMS)


def _is_network(model: Any) -> bool:
    # Where there is a network, somebody has imported Keras.
    keras = sys.modules.get("tf_keras")
    return keras is not None and isinstance(model, keras.Model)


@functools.lru_cache(maxsize=4)
def _loaded(
    path: Path, state: tuple[int, ...], name: str | None, kind: str, arguments: str
) -> Model:
    if is_packed(path):
        if arguments != "{}":
            raise ParameterError(
                f"{path} is a packed network and is what it is; leave out {arguments}"
            )
        return SparseModel.load(path)
    require_tensorflow()
    from l3prune.networks import avc
    from l3prune.weights import load_network, stored_network

    if name is None and stored_network(path) in avc.NETWORKS:
        name = "vision" if kind == "image" else "audio"
    return load_network(path, name, **json.loads(arguments))


def at_once(network: keras.Model) -> int:
    """How many inputs a Keras network computes at once without taking much memory.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> at_once(create_network("mel256"))
    10
    """
    largest = max(int(np.prod(layer.output_shape[1:])) for layer in network.layers[1:])
    return max(_MAX_ACTIVATION // (4 * largest), 1)
