"""VGG16 (Simonyan and Zisserman, ICLR 2015) with BatchNorm, for acoustic scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from l3prune.networks import network
from l3prune.networks.acoustic import CLASSES, Clip, Convolutions, claims, classified, widths_of

#: Of the convolutions, block by block; a block ends in 2 x 2 max-pooling.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

FILTERS = tuple(count for block in BLOCKS for count in block)


@network("vgg16", widths=widths_of, claimed=claims(FILTERS))
def build(
    *, filters: Sequence[int] | None = None, classes: int = CLASSES, **clip: Any
) -> keras.Model:
    """Build VGG16 with BatchNorm behind each convolution, and one dense layer behind their mean.

    Parameters
    ----------
    filters : sequence of 13 int, or None
        Of the convolutions; None takes `FILTERS`.
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
    >>> build(filters=[2] * 13, classes=3).output_shape
    (None, 3)
    """
    inputs, maps = Clip(**clip).maps()
    convolutions = Convolutions(FILTERS, filters)
    for number, block in enumerate(BLOCKS, start=1):
        for _ in block:
            maps = convolutions.normalised(maps, 3)
        maps = keras.layers.MaxPooling2D(2, name=f"max_pooling_{number}")(maps)
    return classified(inputs, maps, classes, "vgg16")
