"""PANNs' networks: from their PyTorch checkpoints, and what they cost as the papers count.

Published figures of Cnn14 and E-PANNs come from different tools. Those of PyTorch count the short-
time Fourier transform, which is two frozen convolutions there, as parameters and as operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tf_keras as keras

from l3prune.complexity import LayerComplexity, layer_complexities
from l3prune.errors import L3PruneError, ParameterError
from l3prune.labels import read_labels
from l3prune.networks import cnn14, create_network, network_config, set_labels

#: Constants in checkpoints, which the front end computes here.
_KERNELS = tuple(f"spectrogram_extractor.stft.conv_{part}.weight" for part in ("real", "imag"))
_MEL = "logmel_extractor.melW"

#: PyTorch's names of what Keras calls gamma, beta, moving_mean and moving_variance, in its order.
_NORM = ("weight", "bias", "running_mean", "running_var")

#: float32 rounds the constants; other front ends differ by 1000 times as much.
_SAME = 1e-5


def network_of(
    state: Mapping[str, np.ndarray], name: str = cnn14.CNN14, *, samples: int | None = cnn14.SAMPLES
) -> keras.Model:
    """The network whose weights a PyTorch state dictionary of PANNs or E-PANNs holds.

    Its widths are those of the tensors, so that pruned networks are read like whole ones. The
    tensors do not tell whether they are of `cnn14` or of `cnn14_decision_level_max`.

    Parameters
    ----------
    state : mapping of str to np.ndarray
        As `torch_files.read_state` gives it. Constants of the front end and counts of batches may
        be absent; the constants must be those of PANNs at 32 kHz.
    name : str
        One of `cnn14.NETWORKS`.
    samples : int or None
        See `cnn14.build`.

    Returns
    -------
    network : keras.Model
        With AudioSet's labels, if it has 527 classes.

    Raises
    ------
    ParameterError
        Unknown name.
    L3PruneError
        A tensor is missing, is of another network, or has another shape than those beside it ask
        for; the message names it.

    Examples
    --------
    >>> network_of({})
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: tensor conv_block1.conv1.weight is missing, and 67 more; ...
    """
    if name not in cnn14.NETWORKS:
        raise ParameterError(f"network {name!r} is none of PANNs' ({', '.join(cnn14.NETWORKS)})")
    layers = _layers()
    _check_names(state, [tensor for tensors in layers.values() for tensor in tensors])
    widths = _checked_widths(state)
    _check_front_end(state)
    network = create_network(
        name,
        filters=widths[:-2],
        units=widths[-2],
        classes=widths[-1],
        samples=samples,
    )
    for layer, tensors in layers.items():
        arrays = [np.asarray(state[tensor], np.float32) for tensor in tensors]
        # Keras has kernels as (height, width, in, out), PyTorch as (out, in, height, width).
        network.get_layer(layer).set_weights(
            [each.transpose(2, 3, 1, 0) if each.ndim == 4 else each.T for each in arrays]
        )
    if widths[-1] == cnn14.CLASSES:
        set_labels(network, read_labels().names)
    return network


def _layers() -> dict[str, list[str]]:
    """Layer -> its tensors in the order of its weights."""
    layers = {}
    for name in cnn14.CONV_NAMES:
        block, _, conv = name.rpartition("_")
        layers[name] = [f"{block}.{conv}.weight"]
        norm = conv.replace("conv", "bn")
        layers[f"{block}_{norm}"] = [f"{block}.{norm}.{each}" for each in _NORM]
    layers["bn0"] = [f"bn0.{each}" for each in _NORM]
    for name in ("fc1", "fc_audioset"):
        layers[name] = [f"{name}.weight", f"{name}.bias"]
    return layers


def _check_names(state: Mapping[str, np.ndarray], names: list[str]) -> None:
    missing = [each for each in names if each not in state]
    if missing:
        more = f", and {len(missing) - 1} more" if missing[1:] else ""
        raise L3PruneError(
            f"tensor {missing[0]} is missing{more}; a Cnn14 has {len(names)} besides its front end"
        )
    counters = {each.replace("running_var", "num_batches_tracked") for each in names}
    extra = [each for each in state if each not in {*names, *counters, *_KERNELS, _MEL}]
    if extra:
        more = f", and {len(extra) - 1} more" if extra[1:] else ""
        raise L3PruneError(f"tensor {extra[0]}{more} is of no Cnn14: this is another network")


def _checked_widths(state: Mapping[str, np.ndarray]) -> list[int]:
    """Filters, units and classes, of tensors that fit each other."""

    def check(name: str, *wanted: int | None) -> tuple[int, ...]:
        shape = np.shape(state[name])
        if len(shape) != len(wanted) or any(
            size == 0 or each not in (None, size) for each, size in zip(wanted, shape, strict=True)
        ):
            asked = " x ".join("any" if each is None else str(each) for each in wanted)
            raise L3PruneError(
                f"tensor {name} has shape {shape}; the others ask for {asked}: the checkpoint is "
                "of another network, or its parts do not belong together"
            )
        return shape

    for each in _NORM:
        check(f"bn0.{each}", cnn14.FRONT_END.n_mels)
    widths, width = [], 1
    for name in cnn14.CONV_NAMES:
        block, _, conv = name.rpartition("_")
        width, *_ = check(f"{block}.{conv}.weight", None, width, 3, 3)
        for each in _NORM:
            check(f"{block}.{conv.replace('conv', 'bn')}.{each}", width)
        widths.append(width)
    for name in ("fc1", "fc_audioset"):
        width, _ = check(f"{name}.weight", None, width)
        check(f"{name}.bias", width)
        widths.append(width)
    return widths


def _check_front_end(state: Mapping[str, np.ndarray]) -> None:
    """Refuse weights that were trained behind another front end than ours."""
    end = cnn14.FRONT_END
    window = end.analysis_window()
    angles = 2 * np.pi / end.n_dft * np.outer(np.arange(end.n_dft // 2 + 1), np.arange(end.n_dft))
    ours = {
        _KERNELS[0]: lambda: (np.cos(angles) * window)[:, np.newaxis],
        _KERNELS[1]: lambda: (-np.sin(angles) * window)[:, np.newaxis],
        _MEL: end.mel_matrix,
    }
    for name, compute in ours.items():
        if name in state:
            expected = compute()
            if np.shape(state[name]) != expected.shape or (
                np.abs(state[name] - expected).max() > _SAME * np.abs(expected).max()
            ):
                raise L3PruneError(
                    f"tensor {name} is not that of PANNs' front end at {end.sample_rate} Hz, so "
                    "the network was trained on other spectrograms; l3prune has the front end of "
                    "Cnn14 only"
                )


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
