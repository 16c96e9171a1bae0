"""How many bytes a network takes as which kind of file."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import tf_keras as keras

from l3prune import litert
from l3prune.errors import ParameterError
from l3prune.sparse.convert import program_of
from l3prune.sparse.packed import save_program
from l3prune.weights import save_network


def checkpoint_bytes(network: keras.Model) -> int | None:
    """Bytes of the checkpoint that `save_network` writes, which is gzipped inside.

    None for a network that l3prune did not make, and so cannot save.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> checkpoint_bytes(create_network("sea64", filters=[1] * 8)) < 100_000
    True
    """
    if not hasattr(network, "l3prune_config"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.h5"
        save_network(network, path)
        return path.stat().st_size


def packed_bytes(network: keras.Model, values: str = "float32") -> int | None:
    """Bytes of the packed file with weights of this type, see `sparse.save_program`.

    None for a network that the sparse engine does not know or the file cannot hold, such as one
    with NaN among its weights.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64")
    >>> packed_bytes(network) > 3 * packed_bytes(network, "int8")
    True
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.l3p"
        try:
            save_program(program_of(network), path, values)
        except ParameterError:
            return None
        return path.stat().st_size


def litert_bytes(network: keras.Model) -> tuple[int, int]:
    """Bytes of the float32 LiteRT file for one input, and of this file gzipped.

    Without masks and without a waveform front end, which most LiteRT runtimes cannot compute.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> whole, gzipped = litert_bytes(create_network("sea64", filters=[8] * 8))
    >>> whole > gzipped
    True
    """
    content = litert.convert(network)
    return len(content), len(gzip.compress(content, mtime=0))
