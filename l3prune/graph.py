"""Reading a network: its convolutions, its masks, which filters belong together, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tf_keras as keras

from l3prune.channels import PRODUCERS, follow, named_layers
from l3prune.criteria import ConvWeights
from l3prune.errors import ParameterError
from l3prune.layers import MaskedConv2D
from l3prune.plan import PruningPlan


@dataclass(frozen=True, eq=False)
class FilterGroup:
    """Filters of one or several layers that can only be removed together.

    A residual sum makes one group of the convolutions that it adds. A concatenation does not.

    Attributes
    ----------
    name : str
        The first layer's.
    size : int
        How many places the group has.
    filters : mapping of str to np.ndarray of int
        Convolution or dense layer -> the place of each of its filters. All at one place stay or go
        together.
    followers : mapping of str to np.ndarray of int
        The same for layers that have weights for each channel: BatchNorm, depthwise convolutions.
        -1 is a channel of another group, behind a concatenation.
    removable : np.ndarray of bool, (size,)
        False where the network needs the channel: it is compared with others by a softmax, say.
    lively : np.ndarray of bool, (size,)
        True where the channel is not zero even if its filters, biases and BatchNorms are.
    in_output : bool
        The network's output has the channels, and gets smaller without them.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> group = filter_groups(create_network("sea64"))[1]
    >>> group.name, group.size, list(group.followers)
    ('conv_2', 32, ['batch_normalization_3'])
    """

    name: str
    size: int
    filters: Mapping[str, np.ndarray]
    followers: Mapping[str, np.ndarray]
    removable: np.ndarray
    lively: np.ndarray
    in_output: bool


def filter_groups(network: keras.Model) -> list[FilterGroup]:
    """The groups of all convolutions and dense layers of a functional network, in its order.

    Raises
    ------
    ParameterError
        As `channels.follow`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> groups = filter_groups(create_network("sea64"))
    >>> [group.name for group in groups if group.in_output]
    ['audio_embedding_layer']
    """
    channels = follow(network)
    producers = {
        name: each.outputs
        for name, each in channels.layers.items()
        if isinstance(each.layer, PRODUCERS)
    }
    # Layers that share a channel are of one group, and so are those that share one with these.
    members: list[tuple[list[str], set[int]]] = []
    for name, numbers in producers.items():
        names, together = [name], set(numbers.tolist())
        for other in [m for m in members if m[1] & together]:
            members.remove(other)
            names, together = other[0] + names, other[1] | together
        members.append((names, together))
    output = {int(number) for numbers in channels.outputs for number in numbers}
    order = {name: index for index, name in enumerate(named for named, _ in named_layers(network))}
    # Of each channel: which group has it, and at which place.
    group, place = np.full((2, channels.count), -1)
    numbered = []
    for index, (names, _) in enumerate(members):
        names.sort(key=order.__getitem__)
        # Places in the order of the first layer that has them.
        numbers = np.array([*dict.fromkeys(int(n) for name in names for n in producers[name])])
        group[numbers], place[numbers] = index, np.arange(len(numbers))
        numbered.append(numbers)
    followers: list[dict[str, np.ndarray]] = [{} for _ in members]
    for name, each in channels.layers.items():
        if name not in producers and each.layer.weights:
            for index in np.unique(group[each.outputs]):
                if index >= 0:
                    own = group[each.outputs] == index
                    followers[index][name] = np.where(own, place[each.outputs], -1)
    groups = [
        FilterGroup(
            name=names[0],
            size=len(numbers),
            filters={name: place[producers[name]] for name in names},
            followers=followers[index],
            removable=np.array([int(number) not in channels.pinned for number in numbers]),
            lively=np.array([int(number) in channels.lively for number in numbers]),
            in_output=not output.isdisjoint(together),
        )
        for index, ((names, together), numbers) in enumerate(zip(members, numbered, strict=True))
    ]
    return sorted(groups, key=lambda group: order[group.name])


def convolutions(network: keras.Model) -> dict[str, keras.layers.Conv2D]:
    """The 2-D convolutions of a network by name, in its order; nested ones as "network/layer".

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> list(convolutions(create_network("sea64")))[-2:]
    ['conv_7', 'audio_embedding_layer']
    """
    # Keras derives layers from Conv2D whose kernels have other axes.
    others = keras.layers.DepthwiseConv2D | keras.layers.Conv2DTranspose
    return {
        name: layer
        for name, layer in named_layers(network)
        if isinstance(layer, keras.layers.Conv2D) and not isinstance(layer, others)
    }


def conv_weights(network: keras.Model) -> dict[str, ConvWeights]:
    """Layer name -> weights as a criterion sees them, in the network's order.

    Pruned weights are zeros here. The scale of the BatchNorm behind a convolution is there where
    that normalises its filters and no others.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> weights = conv_weights(create_network("sea64"))["conv_1"]
    >>> weights.kernel.shape, weights.gamma.shape
    ((3, 3, 1, 32), (32,))
    """
    scales = _scales(network)
    return {
        name: ConvWeights(
            layer.kernel.numpy(),
            None if layer.bias is None else layer.bias.numpy(),
            scales.get(name),
        )
        for name, layer in convolutions(network).items()
    }


def filter_weights(network: keras.Model) -> dict[str, ConvWeights]:
    """As `conv_weights`, and dense layers as convolutions of 1 x 1, whose filters are their units.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> weights = filter_weights(create_network("dcase2021"))
    >>> list(weights)[2:], weights["dense_1"].kernel.shape
    (['conv_3', 'dense_1', 'dense_2'], (1, 1, 64, 100))
    """
    found = conv_weights(network)
    scales = _scales(network)
    weights = {}
    for name, layer in named_layers(network):
        if name in found:
            weights[name] = found[name]
        elif isinstance(layer, keras.layers.Dense):
            bias = None if layer.bias is None else layer.bias.numpy()
            kernel = layer.kernel.numpy()[np.newaxis, np.newaxis]
            weights[name] = ConvWeights(kernel, bias, scales.get(name))
    return weights


def _scales(network: keras.Model) -> dict[str, np.ndarray]:
    try:
        layers = follow(network).layers
    except ParameterError:
        # Masks need no channels to be followed.
        return {}
    scales = {}
    norms = [
        each
        for each in layers.values()
        if isinstance(each.layer, keras.layers.BatchNormalization) and each.layer.scale
    ]
    for name, each in layers.items():
        behind = [norm for norm in norms if np.array_equal(norm.inputs, each.outputs)]
        if isinstance(each.layer, PRODUCERS) and behind:
            scales[name] = behind[0].layer.gamma.numpy()
    return scales


def masks(network: keras.Model) -> PruningPlan:
    """The masks that a network's `MaskedConv2D` layers hold, as a plan (empty if there are none).

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> len(masks(create_network("sea64")))
    0
    """
    return PruningPlan(
        {
            name: layer.mask.numpy()
            for name, layer in convolutions(network).items()
            if isinstance(layer, MaskedConv2D)
        }
    )


def count_kernel_weights(network: keras.Model) -> tuple[int, int]:
    """Convolution kernel weights, and how many of them are not zero.

    Returns
    -------
    total, nonzero : int

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> count_kernel_weights(create_network("mel256"))[0]
    4682304
    """
    kernels = [weights.kernel for weights in conv_weights(network).values()]
    return (
        sum(kernel.size for kernel in kernels),
        sum(int(np.count_nonzero(kernel)) for kernel in kernels),
    )


def count_macs(network: keras.Model) -> tuple[int, int]:
    """Multiply-accumulates of the convolutions for one input, dense and without the zero weights.

    One a kernel weight and output position, positions in the zero padding counted; biases,
    BatchNorm, pooling and the front end are not counted.

    Returns
    -------
    dense, nonzero : int

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> count_macs(create_network("mel256"))[0]
    10202628096
    """
    dense = nonzero = 0
    for layer in convolutions(network).values():
        _, rows, columns, _ = layer.output_shape
        kernel = layer.kernel.numpy()
        dense += rows * columns * kernel.size
        nonzero += rows * columns * int(np.count_nonzero(kernel))
    return dense, nonzero
