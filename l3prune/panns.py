"""What PANNs' networks cost, in the conventions of the papers on them.

Published figures of Cnn14 and E-PANNs come from different tools. Those of PyTorch count the short-
time Fourier transform, which is two frozen convolutions there, as parameters and as operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import tf_keras as keras

from l3prune.complexity import LayerComplexity, layer_complexities
from l3prune.errors import ParameterError
from l3prune.networks import cnn14, network_config


@dataclass(frozen=True)
class Counts:
    """Parameters and operations of one clip.

    Attributes
    ----------
    trainable : int
        Parameters that are trained.
    parameters : int
        With the moving statistics of BatchNorm, as Keras counts.
    torchsummary : int
        `trainable` with the two Fourier kernels, as torchsummary counts; the figure of E-PANNs.
    state_dict : int
        All numbers in PyTorch's checkpoint: also the moving statistics and the mel filterbank.
    conv_macs : int
        Multiply-accumulates of the convolutions.
    macs : int
        Those of the convolutions and dense layers: as everywhere in l3prune.
    thop : int
        `macs`, those of the Fourier transform, and 4 for each value that BatchNorm gives: as THOP
        counts today, where activations and pooling are functions; the figure of E-PANNs.
    thop_plain : int
        `thop` without the Fourier transform.
    thop_2_norm : int
        `thop` with 2 for each value of BatchNorm, as older releases.
    panns : int
        As PANNs' own script: both operations of each multiply-accumulate, the biases, and 2 for
        each value of BatchNorm.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> counts(create_network("cnn14", filters=cnn14.narrow(32), units=64)).trainable
    112757
    """

    trainable: int
    parameters: int
    torchsummary: int
    state_dict: int
    conv_macs: int
    macs: int
    thop: int
    thop_plain: int
    thop_2_norm: int
    panns: int

    @property
    def torchsummary_megabytes(self) -> float:
        """`torchsummary` in units of 2^20 bytes, four bytes each."""
        return self.torchsummary * 4 / 2**20


def counts(network: keras.Model) -> Counts:
    """What a network of PANNs costs, for a clip of the length that it was built for.

    Raises
    ------
    ParameterError
        It is another network, or was built for clips of any length.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> found = counts(create_network("cnn14", filters=cnn14.narrow(32), units=64))
    >>> found.thop - found.thop_plain
    1051674624
    """
    config = network_config(network)
    if config.name not in cnn14.NETWORKS:
        raise ParameterError(
            f"network {config.name!r} is none of PANNs' ({', '.join(cnn14.NETWORKS)}); see "
            "complexity.complexity_table for the counts of others"
        )
    samples = config.arguments.get("samples", cnn14.SAMPLES)
    if samples is None:
        raise ParameterError(
            "a network for clips of any length has no number of multiply-accumulates; load it with "
            f"samples={cnn14.SAMPLES}, say"
        )
    rows = layer_complexities(network)

    def total(of: str, *kinds: str) -> int:
        return sum(getattr(row, of) for row in rows if row.kind in kinds)

    end = cnn14.FRONT_END
    bins = end.n_dft // 2 + 1
    kernels = 2 * bins * end.n_dft
    transform = kernels * end.frames(samples)
    conv = total("macs", "Conv2D", "MaskedConv2D")
    dense = total("macs", "Dense")
    norms = sum(_values(row) for row in rows if row.kind == "BatchNormalization")
    biases = sum(row.output_shape[-1] for row in rows if row.kind == "Dense")
    trainable = sum(row.trainable for row in rows)
    parameters = sum(row.parameters for row in rows)
    return Counts(
        trainable=trainable,
        parameters=parameters,
        torchsummary=trainable + kernels,
        state_dict=parameters + kernels + bins * end.n_mels,
        conv_macs=conv,
        macs=conv + dense,
        thop=conv + dense + transform + 4 * norms,
        thop_plain=conv + dense + 4 * norms,
        thop_2_norm=conv + dense + transform + 2 * norms,
        panns=2 * (conv + transform + dense + norms) + biases,
    )


def reductions(before: Counts, after: Counts) -> pd.DataFrame:
    """How much of each count a smaller network saves, as a table.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> one, other = (
    ...     counts(create_network("cnn14", filters=cnn14.narrow(size), units=64))
    ...     for size in (32, 64)
    ... )
    >>> float(reductions(one, other).loc["torchsummary", "saved_percent"].round(2))
    4.95
    """
    rows = {
        name: {
            "before": getattr(before, name),
            "after": getattr(after, name),
            "saved_percent": 100 * (1 - getattr(after, name) / getattr(before, name)),
        }
        for name in vars(before)
    }
    return pd.DataFrame(rows).T.astype({"before": int, "after": int})


def _values(row: LayerComplexity) -> int:
    return row.activation_bytes // 4
