"""L3-Net's image network (Arandjelović and Zisserman, ICCV 2017), as OpenL3 publishes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tf_keras as keras

from l3prune.errors import ParameterError
from l3prune.networks import network
from l3prune.networks.l3 import check_arguments, convolution, pooled_embedding

#: Images are IMAGE_SIZE pixels high and wide.
IMAGE_SIZE = 224

FILTERS = (64, 64, 128, 128, 256, 256, 512, 512)

#: Layer names of conv 1 … conv 8, as in the published networks.
CONV_NAMES = (*(f"conv_{number}" for number in range(1, 8)), "vision_embedding_layer")


@network("vision")
def build(
    *,
    input_batch_norm: bool = True,
    embedding_size: int | None = None,
    embedding_point: str | None = None,
    filters: Sequence[int] | None = None,
    weight_decay: float = 1e-5,
) -> keras.Model:
    """Build the L3 image network.

    Parameters
    ----------
    input_batch_norm : bool
        BatchNorm of the image. L3-Net's networks beside its mel128 audio network have none.
    embedding_size : int or None
        Values of the max-pooled embedding: 16 for each map (8192, the default), or one (512).
    embedding_point : {"raw", "activated"} or None
        conv 8's output itself (None means this), or after its BatchNorm and ReLU: the image half
        of the L3 network as it is trained.
    filters : sequence of 8 int, or None
        Filters of conv 1 … conv 8.
    weight_decay : float
        L2 factor on convolution kernels, not negative.

    Returns
    -------
    network : keras.Model, (batch, 224, 224, 3) -> (batch, embedding_size) float32
        Input in [-1, 1].

    Raises
    ------
    ParameterError
        A value outside its range; the message tells the range.

    Examples
    --------
    >>> build().output_shape
    (None, 8192)
    """
    filters = FILTERS if filters is None else tuple(filters)
    point = "raw" if embedding_point is None else embedding_point
    check_arguments(filters, weight_decay, point)
    pools = {16 * filters[-1]: (7, 7), filters[-1]: (28, 28)}
    size = 16 * filters[-1] if embedding_size is None else embedding_size
    if size not in pools:
        raise ParameterError(
            f"embedding_size={size}; vision gives {' or '.join(map(str, sorted(pools)))}"
        )

    inputs = image_input()
    maps = image_layers(
        inputs,
        filters,
        activated=point == "activated",
        input_batch_norm=input_batch_norm,
        weight_decay=weight_decay,
    )
    return keras.Model(inputs, pooled_embedding(maps, pools[size]), name="vision")


def image_input():
    """The input of an image network.

    Examples
    --------
    >>> image_input().shape
    TensorShape([None, 224, 224, 3])
    """
    return keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), name="image")


def image_layers(
    maps,
    filters: Sequence[int],
    *,
    activated: bool,
    input_batch_norm: bool,
    weight_decay: float,
    rename: Callable[[str], str] = str,
):
    """The layers of an image network, as far as the last maps.

    Parameters
    ----------
    maps : tensor, (batch, 224, 224, 3)
    filters : sequence of 8 int
    activated : bool
        Behind conv 8 are its BatchNorm and ReLU.
    input_batch_norm, weight_decay
        See `build`.
    rename : callable, str -> str
        Gives the layers other names.

    Returns
    -------
    maps : tensor, (batch, 28, 28, filters)

    Examples
    --------
    >>> image_layers(
    ...     image_input(), [2] * 8, activated=True, input_batch_norm=True, weight_decay=0.0
    ... ).shape
    TensorShape([None, 28, 28, 2])
    """
    if input_batch_norm:
        maps = keras.layers.BatchNormalization(name=rename("batch_normalization_1"))(maps)
    for number, count in enumerate(filters, start=1):
        maps = convolution(count, weight_decay, rename(CONV_NAMES[number - 1]))(maps)
        if number == 8 and not activated:
            break
        after = [
            keras.layers.BatchNormalization(name=rename(f"batch_normalization_{number + 1}")),
            keras.layers.ReLU(name=rename(f"relu_{number}")),
        ]
        # The published weights were trained with these two in the other order behind conv 2.
        for layer in reversed(after) if number == 2 else after:
            maps = layer(maps)
        if number in (2, 4, 6):
            pooling = keras.layers.MaxPooling2D(
                2, padding="same", name=rename(f"max_pooling_{number // 2}")
            )
            maps = pooling(maps)
    return maps
