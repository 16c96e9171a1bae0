"""Writing a network: new networks with masks or without them. The input is never changed."""

from __future__ import annotations

import numpy as np
import tf_keras as keras

from l3prune.errors import ParameterError
from l3prune.graph import convolutions
from l3prune.layers import MaskedConv2D
from l3prune.networks import attach_config, network_config
from l3prune.plan import PruningPlan


def apply_masks(network: keras.Model, plan: PruningPlan) -> keras.Model:
    """A copy of a network in which pruned weights are zero and stay so in training.

    Convolutions that the plan names become `MaskedConv2D`; masks that the network has already are
    kept and combined, so that nothing that was pruned comes back.

    Parameters
    ----------
    network : keras.Model
    plan : PruningPlan

    Returns
    -------
    masked : keras.Model

    Raises
    ------
    ParameterError
        The plan names a layer that is no convolution of the network, or a mask does not fit.

    Examples
    --------
    >>> from l3prune.graph import conv_weights, count_kernel_weights
    >>> from l3prune.networks import create_network
    >>> from l3prune.plan import plan_layerwise
    >>> network = create_network("sea64", weight_decay=0)
    >>> pruned = apply_masks(network, plan_layerwise(conv_weights(network), 0.75))
    >>> total, nonzero = count_kernel_weights(pruned)
    >>> round(nonzero / total, 3)
    0.25
    """
    known = {layer.name for layer in convolutions(network)}
    for name in plan:
        if name not in known:
            raise ParameterError(
                f"the plan names layer {name!r}; convolutions of this network: "
                f"{', '.join(sorted(known)) or 'none'}"
            )

    def masked(layer):
        if layer.name in plan and not isinstance(layer, MaskedConv2D):
            return MaskedConv2D(**_conv_config(layer))
        return layer.__class__.from_config(layer.get_config())

    copy = _copy(network, masked)
    for layer in convolutions(copy):
        if layer.name in plan:
            before = layer.mask.numpy()
            layer.set_mask(plan[layer.name])
            layer.set_mask(layer.mask.numpy() & before)
    return copy


def strip_masks(network: keras.Model) -> keras.Model:
    """A copy of a network with plain `Conv2D` layers, the pruned weights stored as zeros.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> plain = strip_masks(create_network("sea64"))
    >>> type(plain.get_layer("conv_1")).__name__
    'Conv2D'
    """

    def plain(layer):
        if isinstance(layer, MaskedConv2D):
            return keras.layers.Conv2D(**_conv_config(layer))
        return layer.__class__.from_config(layer.get_config())

    return _copy(network, plain)


def _conv_config(layer: keras.layers.Conv2D) -> dict:
    """Constructor arguments that Conv2D and MaskedConv2D share, deserialised."""
    config = layer.get_config()
    if config.pop("kernel_constraint", None) is not None:
        raise ParameterError(
            f"layer {layer.name} has a kernel constraint; MaskedConv2D's mask takes its place, "
            "so remove the constraint before pruning"
        )
    return config


def _copy(network: keras.Model, clone_layer) -> keras.Model:
    """Rebuild a network layer by layer and copy the weights by layer and weight name."""
    copy = keras.models.clone_model(network, clone_function=clone_layer)
    for source, target in zip(network.layers, copy.layers, strict=True):
        values = {short_name(weight): weight.numpy() for weight in source.weights}
        if isinstance(source, MaskedConv2D):
            values["kernel"] = np.where(values["mask"], values["kernel"], 0)
        for weight in target.weights:
            if short_name(weight) in values:
                weight.assign(values[short_name(weight)])
    return attach_config(copy, network_config(network))


def short_name(weight) -> str:
    """A weight's name without its layer: kernel, bias, gamma, mask …

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> [short_name(weight) for weight in create_network("sea64").get_layer("conv_1").weights]
    ['kernel', 'bias']
    """
    return weight.name.split("/")[-1].split(":")[0]
