"""The model of an embedding: named, loaded, and computed by TensorFlow or by the sparse engine.

TensorFlow is imported only for what needs it: a packed file is loaded and computed without.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from l3prune.audio import FrontEnd, log_spectrogram
from l3prune.errors import ParameterError
from l3prune.files import is_file
from l3prune.quiet import require_tensorflow
from l3prune.sparse import SparseModel, best_lanes, is_packed
from l3prune.sparse.convert import program_of
from l3prune.sparse.plan import gives_vector, mac_density
from l3prune.sparse.program import Program

if TYPE_CHECKING:
    import tf_keras as keras

    Model: TypeAlias = keras.Model | SparseModel

ENGINES = ("auto", "sparse", "dense")

#: Share of multiply-accumulates with weights that are not zero up to which "auto" takes the sparse
#: engine. `benchmarks/engine_choice.py` measures where both are equally fast.
AUTO_DENSITY = 0.25

#: Weights that are looked at in every call of a network that TensorFlow computes.
_SAMPLE = 4

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
        up to there it is the faster one (docs/sparse.md, which says how they are counted). It is
        compiled once on a machine, which takes some seconds.

    Returns
    -------
    engine : Engine
        Of a network the sparse engine is kept, and made anew when a weight has changed. So is the
        choice of "dense", but it is made anew only when one of the largest weights has changed.

    Raises
    ------
    ParameterError
        An unknown engine; a network that is no audio network of the L3 family; "sparse" for one
        that the sparse engine does not know; "dense" for a packed file; or a packed file without a
        front end, which takes no sound, or whose outputs are maps.

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
        known = _known(network, engine)
        if known.refusal is not None and engine == "sparse":
            raise ParameterError(known.refusal)
        if known.refusal is None and (engine == "sparse" or known.suits):
            if known.model is None:
                program = dataclasses.replace(program_of(network), front_end=front_end)
                known.model = SparseModel(program)
            return _sparse(known.model, known.reason)
        reason = known.refusal or known.reason
    infer = inference(network)

    def compute(windows: np.ndarray) -> np.ndarray:
        if len(network.input_shape) == 3:
            return infer(windows[:, np.newaxis])
        return infer(log_spectrogram(windows, front_end))

    return Engine("dense", reason, front_end, compute, at_once(network))


@dataclass
class _Known:
    """What is known of a network while its weights are the same.

    Attributes
    ----------
    variables : list of tf.Variable
    values : list of np.ndarray
        What they were.
    sample : list of int
        Numbers of the largest ones.
    suits : bool
        "auto" takes the sparse engine.
    reason : str
        Why, or why not.
    refusal : str or None
        Why the sparse engine cannot compute it.
    model : SparseModel or None
        Made when it is asked for.
    """

    variables: list[Any]
    values: list[np.ndarray]
    sample: list[int]
    suits: bool = False
    reason: str = ""
    refusal: str | None = None
    model: SparseModel | None = None


_KNOWN: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()


def _known(network: keras.Model, engine: str) -> _Known:
    """What is known of a network, found out anew when a weight has changed.

    Where TensorFlow computes, a change is looked for in the largest weights only: another choice
    would be faster, but not more right.
    """
    known = _KNOWN.get(network)
    if known is not None:
        if engine == "auto" and not known.suits:
            numbers: Iterable[int] = known.sample
            variables = known.variables
        else:
            variables = network.weights
            numbers = range(len(variables))
        if len(variables) == len(known.values) and all(
            _same(_value(variables[number]), known.values[number]) for number in numbers
        ):
            return known
    variables = network.weights
    values = [_value(variable) for variable in variables]
    sample = sorted(range(len(values)), key=lambda number: values[number].size)[-_SAMPLE:]
    known = _Known(variables, values, sample)
    try:
        program = program_of(network)
        left, work = mac_density(program), mac_density(program, best_lanes())
        _check_vectors(program)
    except ParameterError as error:
        known.refusal = str(error)
    else:
        known.suits = work <= AUTO_DENSITY
        known.reason = f"{left:.1%} of the multiply-accumulates are left"
        if not known.suits:
            if left <= AUTO_DENSITY:
                known.reason += f", which are {work:.1%} of the sparse engine's work"
            known.reason += f"; the sparse engine is for {AUTO_DENSITY:.0%} at most"
    _KNOWN[network] = known
    return known


def _value(variable: Any) -> np.ndarray:
    """What a variable is, without a copy: what was read does not change when the variable does."""
    value = variable.value()
    try:
        return np.asarray(memoryview(value))
    except ValueError:  # types that buffers cannot have, such as bfloat16
        return value.numpy()


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two values are the same bytes, which they are in the same place."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    places = (each.__array_interface__["data"][0] for each in (one, other))
    if len(set(places)) == 1:
        return True
    return np.array_equal(np.ravel(one).view(np.uint8), np.ravel(other).view(np.uint8))


def _sparse(model: SparseModel, reason: str) -> Engine:
    front_end = model.program.front_end
    if front_end is None:
        raise ParameterError(
            f"{model.program.name} is a packed network without a front end; it takes arrays of "
            f"shape (n, {', '.join(map(str, model.input_shape))}), not sound: call it as a "
            "SparseModel, or pack a network that takes waveforms"
        )
    _check_vectors(model.program)
    return Engine("sparse", reason, front_end, model, at_once=_SPECTROGRAMS)


def _check_vectors(program: Program) -> None:
    """Refuse a network whose outputs are no embeddings."""
    if not gives_vector(program):
        last = program.steps[-1].name if program.steps else "its input"
        raise ParameterError(
            f"{program.name} ends with maps, those of {last}, and an embedding is a vector: call "
            "it as a SparseModel, or take a network with Flatten or global pooling at its end"
        )


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
