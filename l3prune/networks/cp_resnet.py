"""CP-ResNet (Koutini et al., 2019): a ResNet for acoustic scenes with a chosen receptive field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from l3prune.checks import check_whole
from l3prune.errors import ParameterError
from l3prune.networks import network
from l3prune.networks.acoustic import (
    CLASSES,
    Clip,
    Convolutions,
    claims,
    relu,
    widths_of,
)

#: Filters of the first stage, blocks of each.
WIDTH, BLOCKS = 128, (4, 4, 4)

#: Those of Koutini's table; convolutions above have 1 x 1 kernels.
RHO = 5


def kernel_sizes(rho: int, convolutions: int = 24) -> list[int]:
    """Kernel sizes of the convolutions of all blocks: 3, 1, then `rho` of 3, then 1.

    Examples
    --------
    >>> kernel_sizes(5, 12)
    [3, 1, 3, 3, 3, 3, 3, 1, 1, 1, 1, 1]
    """
    check_whole("rho", rho, 0, convolutions - 2)
    return [3, 1, *[3] * rho, *[1] * (convolutions - 2 - rho)]


def usual_filters(width: int = WIDTH, blocks: Sequence[int] = BLOCKS) -> list[int]:
    """Filters of all convolutions but the last; of a stage's first block the last is its shortcut.

    Examples
    --------
    >>> usual_filters(48, (2, 1, 1))
    [48, 48, 48, 48, 48, 96, 96, 96, 192, 192, 192]
    """
    filters = [width]
    for stage, count in enumerate(blocks):
        for block in range(count):
            filters += [width * 2**stage] * (3 if stage and not block else 2)
    return filters


def receptive_field(rho: int = RHO, blocks: Sequence[int] = BLOCKS) -> int:
    """Frames and bands that a value of the last maps sees, at most.

    Examples
    --------
    >>> [receptive_field(rho) for rho in range(9)]
    [23, 31, 39, 55, 71, 87, 103, 135, 167]
    """
    sizes = iter(kernel_sizes(rho, 2 * sum(blocks)))
    field, step = 5, 2
    for number in range(sum(blocks)):
        for _ in range(2):
            field += (next(sizes) - 1) * step
        if _pools(number):
            field, step = field + step, 2 * step
    return field


def _pools(block: int) -> bool:
    """Whether 2 x 2 max-pooling is behind a block, by its number in the network."""
    return block in (0, 1, 3)


def _claimed(arguments: dict[str, Any]) -> list[int]:
    return usual_filters(arguments.get("width", WIDTH), arguments.get("blocks", BLOCKS))


@network("cp_resnet", widths=widths_of, claimed=claims(_claimed))
def build(
    *,
    rho: int = RHO,
    width: int = WIDTH,
    blocks: Sequence[int] = BLOCKS,
    filters: Sequence[int] | None = None,
    classes: int = CLASSES,
    **clip: Any,
) -> keras.Model:
    """Build CP-ResNet.

    Parameters
    ----------
    rho : int
        Sets the receptive field; see `kernel_sizes` and `receptive_field`.
    width : int
        Filters of the first stage; the second has twice, the third four times as many.
    blocks : sequence of 3 int
        Of each stage; the first has all poolings and so at least 4.
    filters : sequence of int, or None
        Of all convolutions but the last, in the network's order; None takes `usual_filters`.
    classes : int
    **clip
        See `acoustic.Clip`.

    Returns
    -------
    network : keras.Model, output (batch, classes) float32
        Probabilities.

    Raises
    ------
    ParameterError
        A value outside its range; the message tells the range.

    Examples
    --------
    >>> build(width=2, classes=3).output_shape
    (None, 3)
    """
    check_whole("width", width, 1)
    check_whole("classes", classes, 2)
    blocks = tuple(blocks)
    if len(blocks) != 3:
        raise ParameterError(f"blocks={blocks}: give three, one for each stage")
    for count, least in zip(blocks, (4, 1, 1), strict=True):
        check_whole("blocks", count, least)
    inputs, maps = Clip(**clip).maps()
    convolutions = Convolutions(usual_filters(width, blocks), filters)
    sizes = iter(kernel_sizes(rho, 2 * sum(blocks)))

    maps = keras.layers.ZeroPadding2D(1, name="padding")(maps)
    maps = convolutions.normalised(maps, 5, 2, "valid")
    number = 0
    for stage, count in enumerate(blocks):
        for block in range(count):
            shortcut = maps
            maps = convolutions.normalised(maps, next(sizes))
            maps = convolutions.norm(convolutions(maps, next(sizes)))
            if stage and not block:
                shortcut = convolutions.norm(convolutions(shortcut, 1))
            maps = keras.layers.Add(name=f"sum_{number + 1}")([maps, shortcut])
            maps = relu(maps, f"relu_sum_{number + 1}")
            if _pools(number):
                maps = keras.layers.MaxPooling2D(2, name=f"max_pooling_{number + 1}")(maps)
            number += 1
    maps = keras.layers.Conv2D(
        classes, 1, use_bias=False, kernel_initializer="he_normal", name="classes"
    )(maps)
    maps = convolutions.norm(maps, "norm_classes")
    values = keras.layers.GlobalAveragePooling2D(name="mean")(maps)
    output = keras.layers.Softmax(dtype="float32", name="probabilities")(values)
    return keras.Model(inputs, output, name="cp_resnet")
