"""How many bytes a network takes as which kind of file."""

from __future__ import annotations

import gzip
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune import litert
from l3prune.channels import named_layers
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


#: Bytes that DCASE 2021's task 1A allowed for the weights that are not zero, 1000 to the kB.
SCENES_LIMIT = 128_000


@dataclass(frozen=True)
class WeightSize:
    """How large the weights of a network are by one way of counting.

    Attributes
    ----------
    parameters, nonzero : int
        Of them, those that are not zero.
    bytes, nonzero_bytes : int

    Examples
    --------
    >>> WeightSize(45990, 45990, 91980, 91980).kb
    '89.82'
    """

    parameters: int
    nonzero: int
    bytes: int
    nonzero_bytes: int

    @property
    def kb(self) -> str:
        """Of 1024 bytes, as DCASE 2021's own script prints it."""
        return f"{self.bytes / 1024:.4g}"

    def within(self, limit: int = SCENES_LIMIT) -> bool:
        """Whether the weights that are not zero keep a limit of bytes; zeros are free."""
        return self.nonzero_bytes <= limit


#: How a BatchNorm's four vectors count in float16: as the rest, with their own four bytes as Keras
#: keeps them, or not at all: as in DCASE 2020's script, and in LiteRT files, where they are folded.
SIZE_RULES = {"all": 2, "keras": 4, "folded": 0}


def float16_sizes(network: keras.Model) -> dict[str, WeightSize]:
    """How large a network is with weights of 16 bits, by each of `SIZE_RULES`.

    Masks do not count; what they hold at zero is zero.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> sizes = float16_sizes(create_network("dcase2021"))
    >>> [(name, size.parameters, size.kb) for name, size in sizes.items()]
    [('all', 46246, '90.32'), ('keras', 46246, '90.82'), ('folded', 45990, '89.82')]
    """
    counts = {False: np.zeros(2, int), True: np.zeros(2, int)}
    for _, layer in named_layers(network):
        norm = isinstance(layer, keras.layers.BatchNormalization)
        for weight in layer.weights:
            if weight.dtype != tf.bool:
                values = weight.numpy()
                counts[norm] += [values.size, np.count_nonzero(values)]
    sizes = {}
    for name, width in SIZE_RULES.items():
        parameters = counts[False] + (counts[True] if width else 0)
        size = 2 * counts[False] + width * counts[True]
        sizes[name] = WeightSize(*(int(each) for each in (*parameters, *size)))
    return sizes


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
