"""Networks in the files of other engines. Each is run by its engine before it gets its name."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.metadata
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune import c_header, litert, onnx_file, surgery
from l3prune.audio import FrontEnd, log_spectrogram
from l3prune.download import git_blob_sha1
from l3prune.errors import L3PruneError, ParameterError
from l3prune.export_formats import FORMATS, LOG_MEL, WAVEFORM, Format
from l3prune.files import make_folder, read_json, write_json
from l3prune.graph import conv_weights, count_kernel_weights
from l3prune.models import locate
from l3prune.networks import inference, network_config
from l3prune.networks.l3 import embedding_point
from l3prune.published import list_weights
from l3prune.quantization import Quantized, to_litert
from l3prune.quiet import hushed
from l3prune.sparse import SparseModel, program_of
from l3prune.sparse.packed import save_program
from l3prune.sparse.program import Program
from l3prune.training import environment
from l3prune.weights import fingerprint

#: What `error` in a record is, for people.
ERROR = (
    "the largest distance of a window's embedding from the source network's, over the mean length "
    "of these"
)


@dataclass(frozen=True)
class Source:
    """A network and the sounds that its exports are made and judged with.

    Attributes
    ----------
    network : keras.Model
        An L3 audio network that takes waveforms.
    name : str
        What names of files begin with.
    windows : np.ndarray, (n, 1, sample_rate) float32
        That exports are compared on.
    windows_from : str
        Where they are from, for people.
    calibration : np.ndarray or None, (n, 1, sample_rate) float32
        Other windows, that ranges of int8 activations come from.
    ranges : np.ndarray or None
        These ranges, of a network that was quantised; see `quantization.Quantized`.
    facts : mapping
        JSON values about where the network is from: file, sha256, licence.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> source = Source(create_network("sea64"), "net", np.zeros((1, 1, 8000)), "silence")
    >>> source.front_end.sample_rate
    8000
    """

    network: keras.Model
    name: str
    windows: np.ndarray
    windows_from: str
    calibration: np.ndarray | None = None
    ranges: np.ndarray | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def front_end(self) -> FrontEnd:
        """Of the network."""
        return litert.front_end_of(self.network)

    def inputs(self, given: str) -> np.ndarray:
        """The windows as an export with this input takes them."""
        if given == WAVEFORM:
            return self.windows
        return log_spectrogram(self.windows[:, 0], self.front_end)

    def plain(self, given: str) -> keras.Model:
        """The network with this input and without masks."""
        network = self.network
        if given == LOG_MEL:
            network = surgery.behind_front_end(network)
        return surgery.strip_masks(network)


def export(
    source: Source,
    form: Format,
    given: str,
    folder: str | os.PathLike[str],
    *,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a network in one format, run it, compare it with the network; then give it its name.

    It is made in a temporary folder beside its place, and is moved to its name with its record, a
    .json file, when its engine has computed the source's windows within the tolerance.

    Parameters
    ----------
    source : Source
    form : Format
    given : {"waveform", "log_mel"}
        What the file takes.
    folder : str or path-like
    tolerance : float or None
        Largest error, see `ERROR`; None takes the format's.
    overwrite : bool
        Replace a file that exists.

    Returns
    -------
    record : dict
        What the .json file holds.

    Raises
    ------
    ParameterError
        The format does not take this input or this network, or needs sounds that are not there; or
        the file exists.
    L3PruneError
        The export misses its tolerance, or a weight that was pruned is not zero in it; an engine is
        not installed; the folder cannot be written to.

    Examples
    --------
    >>> from l3prune.export_formats import FORMATS
    >>> from l3prune.networks import create_network
    >>> noise = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8000)).astype(np.float32)
    >>> source = Source(create_network("sea64"), "net", noise, "noise")
    >>> record = export(source, FORMATS["sparse-float32"], "waveform", tempfile.mkdtemp())
    >>> record["file"], record["error"] <= record["tolerance"]
    ('net-waveform.float32.l3p', True)
    """
    form.check_input(given)
    folder = make_folder(folder)
    path = folder / form.file(source.name, given)
    form.check_place(path, overwrite=overwrite)
    allowed = form.tolerance if tolerance is None else tolerance
    with _temporary_folder(folder) as temporary:
        made = temporary / path.name
        facts = _WRITERS[form.kind](source, form, given, made)
        outputs = _RUNNERS[form.kind](made, source.inputs(given))
        error = embedding_error(outputs, _wanted(source))
        if not error <= allowed:
            raise L3PruneError(
                f"{path.name} is not published: its error is {error:.3g}, {error / allowed:.3g} "
                f"times the tolerance of {allowed:g}; give another format, or a larger --tolerance"
            )
        record = {
            "format": form.name,
            "values": form.values,
            "file": path.name,
            "batch": 1 if form.kind in ("litert", "c-header") else "any",
            **_description(source, given),
            "engine": form.engine,
            "error": error,
            "tolerance": allowed,
            "error_is": ERROR,
            "windows": len(source.windows),
            "windows_from": source.windows_from,
            **facts,
            "source": dict(source.facts),
            "versions": _versions(form.packages),
            **_sizes(made),
        }
        written = temporary / f"{path.name}.json"
        write_json(written, record)
        _move(made, written, path)
    return record


def describe_source(network: keras.Model, weights: str | os.PathLike[str]) -> dict[str, Any]:
    """What is known of where a network is from: `Source.facts`.

    Origin and licence are the checkpoint's own, from the .json beside it, or those of published
    weights, which are known by their content.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> from l3prune.weights import save_network
    >>> path = os.path.join(tempfile.mkdtemp(), "net.h5")
    >>> network = create_network("sea64")
    >>> save_network(network, path, origin={"licence": "MIT"})
    >>> describe_source(network, path)["licence"]
    'MIT'
    """
    path, _, _ = locate(weights)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    total, nonzero = count_kernel_weights(network)
    facts = {
        "file": path.name,
        "sha256": digest,
        "fingerprint": fingerprint(network),
        "kernel_weights": total,
        "nonzero_kernel_weights": nonzero,
    }
    beside = path.with_suffix(".json")
    said = read_json(beside) if beside.is_file() else None
    if isinstance(said, dict) and said.get("sha256") == digest:
        facts |= {name: said[name] for name in ("origin", "licence") if name in said}
    else:
        sha1 = git_blob_sha1(path)
        for known in list_weights():
            if known.git_blob_sha1 == sha1:
                facts |= {"origin": f"{known.name}, {known.url}", "licence": known.licence}
    return facts


def embedding_error(made: np.ndarray, wanted: np.ndarray) -> float:
    """The largest distance between rows, over the mean length of the wanted ones; see `ERROR`.

    It is infinite if the shapes differ or a value is not finite.

    Examples
    --------
    >>> embedding_error(np.array([[3.0, 4.0], [3.0, 6.0]]), np.array([[3.0, 4.0], [3.0, 4.0]]))
    0.4
    """
    if made.shape != wanted.shape or not np.isfinite(made).all():
        return float("inf")
    lengths = np.linalg.norm(wanted.astype(np.float64), axis=1)
    distances = np.linalg.norm(made.astype(np.float64) - wanted, axis=1)
    return float(distances.max() / lengths.mean()) if lengths.any() else float(distances.max())


def _wanted(source: Source) -> np.ndarray:
    forward = inference(source.network)
    # A few at once: the maps of many windows take much memory.
    parts = np.array_split(source.windows, -(-len(source.windows) // 8))
    return np.concatenate([forward(part) for part in parts])


def _description(source: Source, given: str) -> dict[str, Any]:
    """What users of a file must know about its inputs and outputs."""
    network, front_end = source.network, source.front_end
    waveform = given == WAVEFORM
    shape = [1, front_end.sample_rate] if waveform else [*front_end.shape, 1]
    config = network_config(network)
    return {
        "network": config.name,
        "arguments": config.arguments,
        "input": {
            "kind": given,
            "shape": [*shape],
            "dtype": "float32",
            "range": [-1, 1] if waveform else [-80, 0],
            "is": "one second of mono sound"
            if waveform
            else "its spectrogram in dB below its maximum: bands, frames",
        },
        "output": {"shape": [int(network.output_shape[-1])], "dtype": "float32"},
        "sample_rate": front_end.sample_rate,
        "front_end": dataclasses.asdict(front_end),
        "embedding_point": embedding_point(network),
    }


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {**environment(), **{name: importlib.metadata.version(name) for name in packages}}


def _sizes(path: Path) -> dict[str, Any]:
    """Of a file, or of all files of a folder, in their order."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    contents = {str(file.relative_to(path)): file.read_bytes() for file in files}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return {
        "sha256": next(iter(digests.values())) if path.is_file() else digests,
        "bytes": sum(map(len, contents.values())),
        "gzip_bytes": sum(len(gzip.compress(each, mtime=0)) for each in contents.values()),
    }


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Any:
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".export-"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(made: Path, written: Path, path: Path) -> None:
    """Give a finished file or folder and its record their names."""
    record = path.with_name(written.name)
    # A record of the old file would be wrong beside the new one, should it end between.
    record.unlink(missing_ok=True)
    if path.is_dir():
        # A folder cannot be replaced in one step: the old one goes aside.
        os.replace(path, made.with_name("old"))
    os.replace(made, path)
    os.replace(written, record)


# -- Writers: each gives further facts for the record ---------------------------------------------


def _write_litert(source: Source, form: Format, given: str, path: Path) -> dict[str, Any]:
    content, facts = _litert(source, form.values, given)
    path.write_bytes(content)
    return facts


def _litert(source: Source, values: str, given: str) -> tuple[bytes, dict[str, Any]]:
    windows = None
    if values == "int8" and source.ranges is None:
        if source.calibration is None:
            raise ParameterError(
                "int8 needs ranges of activations from real audio: give a folder of recordings by "
                "--calibration"
            )
        windows = source.calibration
    waveform = given == WAVEFORM
    if values == "int8" and source.ranges is not None:
        content = to_litert(Quantized(source.network, source.ranges), waveform=waveform)
    else:
        content = litert.convert(source.network, values, windows=windows, waveform=waveform)
    kinds = sorted({kind for kind, _ in litert.operators(content)})
    facts: dict[str, Any] = {"operators": kinds, "zeros": check_zeros(source.network, content)}
    if windows is not None:
        facts["calibration_windows"] = len(windows)
    elif values == "int8":
        facts["ranges"] = "of the quantised network"
    return content, facts


def check_zeros(network: keras.Model, content: bytes) -> dict[str, int]:
    """Compare the zeros of a LiteRT file with those of the network's convolutions.

    Returns
    -------
    counts : dict of str to int
        `weights`; `zero_in_network`, all of which are zero in the file; `rounded_to_zero` besides.

    Raises
    ------
    L3PruneError
        A weight that is zero in the network is not in the file.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[1] * 8)
    >>> check_zeros(network, litert.convert(network))["rounded_to_zero"]
    0
    """
    given = {name: weights.kernel for name, weights in conv_weights(network).items()}
    made = [kernel for kernel in litert.kernels(content) if kernel.stored.ndim == 4]
    counts = {"weights": 0, "zero_in_network": 0, "rounded_to_zero": 0}
    for (name, kernel), stored in zip(given.items(), made, strict=True):
        zero, becomes = kernel == 0, stored.values().transpose(1, 2, 3, 0) == 0
        if not becomes[zero].all():
            raise L3PruneError(
                f"layer {name}: {(zero & ~becomes).sum()} pruned weights are not zero in the file"
            )
        counts["weights"] += kernel.size
        counts["zero_in_network"] += int(zero.sum())
        counts["rounded_to_zero"] += int((becomes & ~zero).sum())
    return counts


def _write_saved_model(source: Source, form: Format, given: str, path: Path) -> dict[str, Any]:
    network = source.plain(given)
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint(
        "serve",
        lambda inputs: network(inputs, training=False),
        input_signature=[tf.TensorSpec(network.input_shape, tf.float32, name="input")],
    )
    with hushed(), contextlib.redirect_stdout(io.StringIO()):
        archive.write_out(str(path))
    return {}


def _program(source: Source, form: Format, given: str) -> Program:
    try:
        return program_of(source.plain(given))
    except ParameterError as error:
        others = [each.name for each in FORMATS.values() if each.kind in ("saved-model", "litert")]
        raise ParameterError(
            f"{form.name} is made from a program of the sparse engine: {error}; formats that take "
            f"more: {', '.join(others)}"
        ) from error


def _write_onnx(source: Source, form: Format, given: str, path: Path) -> dict[str, Any]:
    onnx_file.write_onnx(_program(source, form, given), path)
    return {}


def _write_sparse(source: Source, form: Format, given: str, path: Path) -> dict[str, Any]:
    losses = save_program(_program(source, form, given), path, form.values)
    return {"rounded_to_zero": sum(loss.zeroed for loss in losses.values())}


def _write_header(source: Source, form: Format, given: str, path: Path) -> dict[str, Any]:
    content, facts = _litert(source, "int8", given)
    operators = litert.operators(content)
    c_header.check_operators(operators)
    bands, frames = source.front_end.shape
    constants = {
        "INPUT_BANDS": bands,
        "INPUT_FRAMES": frames,
        "OUTPUT_VALUES": int(source.network.output_shape[-1]),
        "SAMPLE_RATE": source.front_end.sample_rate,
    }
    name = _array_name(path.name.removesuffix(form.ending))
    c_header.write_header(content, path, name, constants, [kind for kind, _ in operators])
    compiled = c_header.compiled_bytes(path, name)
    if compiled not in (None, content) or c_header.read_header(path) != content:
        raise L3PruneError(f"{path.name}: the header does not hold the network's bytes")
    return {**facts, "array": name, "compiled": compiled is not None}


def _array_name(name: str) -> str:
    """A name that C allows, of the file's."""
    return "l3prune_" + re.sub(r"\W", "_", name, flags=re.ASCII)


# -- Engines --------------------------------------------------------------------------------------


def _run_litert(path: Path, inputs: np.ndarray) -> np.ndarray:
    return litert.run(path.read_bytes(), inputs)


def _run_saved_model(path: Path, inputs: np.ndarray) -> np.ndarray:
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    parts = np.array_split(inputs.astype(np.float32), -(-len(inputs) // 8))
    return np.concatenate(
        [next(iter(served(tf.constant(part)).values())).numpy() for part in parts]
    )


def _run_sparse(path: Path, inputs: np.ndarray) -> np.ndarray:
    return SparseModel.load(path, threads=1)(inputs)


def _run_header(path: Path, inputs: np.ndarray) -> np.ndarray:
    return litert.run(c_header.read_header(path), inputs)


_WRITERS: dict[str, Callable[[Source, Format, str, Path], dict[str, Any]]] = {
    "litert": _write_litert,
    "saved-model": _write_saved_model,
    "onnx": _write_onnx,
    "sparse": _write_sparse,
    "c-header": _write_header,
}

_RUNNERS: dict[str, Callable[[Path, np.ndarray], np.ndarray]] = {
    "litert": _run_litert,
    "saved-model": _run_saved_model,
    "onnx": onnx_file.run_onnx,
    "sparse": _run_sparse,
    "c-header": _run_header,
}
