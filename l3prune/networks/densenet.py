"""DenseNet121 (Huang et al., CVPR 2017) for acoustic scenes."""

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

#: Layers of each dense block.
BLOCKS = (6, 12, 24, 16)

#: Maps that each layer adds; its first convolution has four times as many filters.
GROWTH = 32


def usual_filters() -> list[int]:
    """Filters of all convolutions, transitions included, which halve the maps.

    Examples
    --------
    >>> len(usual_filters()), sum(usual_filters())
    (120, 10240)
    """
    filters, maps = [2 * GROWTH], 2 * GROWTH
    for number, layers in enumerate(BLOCKS):
        filters += [4 * GROWTH, GROWTH] * layers
        maps += GROWTH * layers
        if number < len(BLOCKS) - 1:
            maps //= 2
            filters.append(maps)
    return filters


@network("densenet121", widths=widths_of, claimed=claims(usual_filters()))
def build(
    *, filters: Sequence[int] | None = None, classes: int = CLASSES, **clip: Any
) -> keras.Model:
    """Build DenseNet121: each layer of a block reads the maps of all before it.

    Parameters
    ----------
    filters : sequence of 120 int, or None
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
    >>> build(filters=[1] * 120, classes=3).output_shape
    (None, 3)
    """
    inputs, maps = Clip(**clip).maps()
    convolutions = Convolutions(usual_filters(), filters)

    def activated(maps, name: str):
        return relu(convolutions.norm(maps, f"norm_{name}"), f"relu_{name}")

    maps = convolutions.normalised(maps, 7, 2)
    maps = keras.layers.MaxPooling2D(3, 2, padding="same", name="max_pooling")(maps)
    for block, layers in enumerate(BLOCKS, start=1):
        for layer in range(1, layers + 1):
            added = convolutions.normalised(activated(maps, f"{block}_{layer}"), 1)
            added = convolutions(added, 3)
            maps = keras.layers.Concatenate(name=f"maps_{block}_{layer}")([maps, added])
        if block < len(BLOCKS):
            maps = convolutions(activated(maps, f"transition_{block}"), 1)
            maps = keras.layers.AveragePooling2D(2, name=f"average_pooling_{block}")(maps)
    return classified(inputs, activated(maps, "last"), classes, "densenet121")
