"""Reading a network: its convolutions, its masks, what it costs."""

from __future__ import annotations

import numpy as np
import tf_keras as keras

from l3prune.criteria import ConvWeights
from l3prune.layers import MaskedConv2D
from l3prune.plan import PruningPlan


def convolutions(network: keras.Model) -> list[keras.layers.Conv2D]:
    """The 2-D convolutions of a network, in its order.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> [layer.name for layer in convolutions(create_network("sea64"))][-2:]
    ['conv_7', 'audio_embedding_layer']
    """
    return [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]


def conv_weights(network: keras.Model) -> dict[str, ConvWeights]:
    """Layer name -> weights as a criterion sees them, in the network's order.

    Pruned weights are zeros here.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> conv_weights(create_network("sea64"))["conv_1"].kernel.shape
    (3, 3, 1, 32)
    """
    return {
        layer.name: ConvWeights(
            layer.kernel.numpy(), None if layer.bias is None else layer.bias.numpy()
        )
        for layer in convolutions(network)
    }


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
            layer.name: layer.mask.numpy()
            for layer in convolutions(network)
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
    for layer in convolutions(network):
        _, rows, columns, _ = layer.output_shape
        kernel = layer.kernel.numpy()
        dense += rows * columns * kernel.size
        nonzero += rows * columns * int(np.count_nonzero(kernel))
    return dense, nonzero
