"""Network slimming's penalty: BatchNorm's scales are drawn to zero while a network trains.

Liu et al., ICCV 2017: the sum of their magnitudes, times a strength, is added to the loss. Those
that end up small mark filters that can go; see the criterion `bn_gamma`.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import tf_keras as keras

from l3prune import surgery
from l3prune.channels import follow
from l3prune.errors import ParameterError
from l3prune.graph import convolutions


def slimmed_norms(network: keras.Model) -> list[str]:
    """The BatchNorm layers, by name, that scale channels of 2-D convolutions and no others.

    Not those of spectrograms, nor those behind dense layers.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> slimmed_norms(create_network("fat2019"))[-1]
    'batch_normalization_8'
    """
    layers = follow(network).layers
    filters = {
        int(number) for name in convolutions(network) for number in layers[name].outputs.tolist()
    }
    return [
        name
        for name, each in layers.items()
        if isinstance(each.layer, keras.layers.BatchNormalization)
        and each.layer.scale
        and {*each.inputs.tolist()} <= filters
    ]


def with_penalty(
    network: keras.Model, strength: float, names: Collection[str] | None = None
) -> keras.Model:
    """A copy of a network whose loss has the magnitudes of BatchNorm's scales added.

    Parameters
    ----------
    network : keras.Model
        Functional.
    strength : float
        What the sum of the magnitudes is multiplied by; 1e-6 for fat2019, 1e-4 to 1e-5 in the
        paper.
    names : collection of str, or None
        BatchNorm layers; None takes `slimmed_norms`.

    Returns
    -------
    penalised : keras.Model
        Of the same weights, in variables of its own. What is saved of it has no penalty.

    Raises
    ------
    ParameterError
        A strength that is negative or not finite, or no such layer.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = with_penalty(create_network("sea64", weight_decay=0, filters=[2] * 8), 0.1)
    >>> round(float(sum(network.losses)), 6)
    1.6
    """
    check_strength(strength)
    chosen = check_penalised(network) if names is None else names

    def make(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if layer.name in chosen:
            config["gamma_regularizer"] = keras.regularizers.L1(strength)
        return layer.__class__.from_config(config)

    return surgery.remade(network, make)


def check_penalised(network: keras.Model) -> list[str]:
    """`slimmed_norms`, of which there must be some.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> len(check_penalised(create_network("sea64")))
    8
    """
    names = slimmed_norms(network)
    if not names:
        raise ParameterError(
            f"network {network.name} has no BatchNorm with scale behind a convolution, so nothing "
            "to penalise; leave the penalty out"
        )
    return names


def scales(network: keras.Model) -> dict[str, np.ndarray]:
    """The magnitudes of the scales of `slimmed_norms`, by layer.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> scales(create_network("sea64"))["batch_normalization_3"][:2]
    array([1., 1.], dtype=float32)
    """
    layers = follow(network).layers
    return {name: np.abs(layers[name].layer.gamma.numpy()) for name in slimmed_norms(network)}


def check_strength(strength: float) -> None:
    """Refuse what is no strength of a penalty.

    Examples
    --------
    >>> check_strength(-1)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: gamma_l1=-1 is not a number ≥ 0; 1e-6 to 1e-4 is usual
    """
    good = isinstance(strength, int | float | np.number) and not isinstance(strength, bool)
    if not good or not 0 <= strength < math.inf:
        raise ParameterError(f"gamma_l1={strength!r} is not a number ≥ 0; 1e-6 to 1e-4 is usual")
