"""ResNet50 (He et al., CVPR 2016) for acoustic scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from l3prune.networks import network
from l3prune.networks.acoustic import (
    CLASSES,
    Clip,
    Convolutions,
    claims,
    classified,
    relu,
    widths_of,
)

#: Blocks and filters of each stage; a block's last convolution has four times as many.
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))


def usual_filters() -> list[int]:
    """Filters of all convolutions: of a stage's first block the last one is its shortcut's.

    Examples
    --------
    >>> len(usual_filters()), sum(usual_filters())
    (53, 26560)
    """
    filters = [64]
    for blocks, count in STAGES:
        for block in range(blocks):
            filters += [count, count, 4 * count, *([] if block else [4 * count])]
    return filters


@network("resnet50", widths=widths_of, claimed=claims(usual_filters()))
def build(
    *, filters: Sequence[int] | None = None, classes: int = CLASSES, **clip: Any
) -> keras.Model:
    """Build ResNet50; within a stage, each block's last convolution has as many filters.

    Strides are those of the first convolution of a block, as in the paper and in Keras.

    Parameters
    ----------
    filters : sequence of 53 int, or None
        Of the convolutions, in the network's order; None takes `usual_filters()`.
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
    >>> build(filters=[2] * 53, classes=3).output_shape
    (None, 3)
    """
    inputs, maps = Clip(**clip).maps()
    convolutions = Convolutions(usual_filters(), filters)
    maps = convolutions.normalised(maps, 7, 2)
    maps = keras.layers.MaxPooling2D(3, 2, padding="same", name="max_pooling")(maps)
    for stage, (blocks, _) in enumerate(STAGES):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            shortcut = maps
            maps = convolutions.normalised(maps, 1, strides)
            maps = convolutions.normalised(maps, 3)
            maps = convolutions.norm(convolutions(maps, 1))
            number = convolutions.number
            if not block:
                shortcut = convolutions.norm(convolutions(shortcut, 1, strides))
            maps = keras.layers.Add(name=f"sum_{number}")([maps, shortcut])
            maps = relu(maps, f"relu_{number}")
    return classified(inputs, maps, classes, "resnet50")
