"""The network of network slimming on FAT2019, a VGG on segments of two seconds.

Eight 3x3 convolutions in four blocks, each Conv -> BatchNorm -> ReLU, pooled by 2 after each block.
Maps are (frames, bands): the first axis is time. A clip's logits are the mean of its segments'; see
`l3prune.segments` and docs/fat2019.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from l3prune.checks import check_whole
from l3prune.errors import ParameterError
from l3prune.layers import ClipLogMel, FunctionalMean
from l3prune.log_mel import LogMel
from l3prune.networks import network
from l3prune.networks.l3 import check_arguments

FRONT_END = LogMel(
    sample_rate=44100, n_dft=2560, hop_length=694, n_mels=128, low=20.0, high=22050.0
)

#: Frames of a segment, and the shortest audio that has as many: two seconds.
FRAMES, SAMPLES = 128, 88_200

FILTERS = (64, 64, 128, 128, 256, 256, 512, 512)
UNITS = 128
CLASSES = 80

POOLINGS = ("basic", "poolrevised")

#: dB below a clip's loudest place; deviations and ranges below `_EPS` count as none.
_RANGE, _EPS = 80.0, 1e-6


@keras.utils.register_keras_serializable(package="l3prune")
class ByteLogMel(ClipLogMel):
    """The log-mel spectrogram of a whole clip as a picture: whole numbers from 0 to 255.

    Power in Slaney's mel bands in dB, at most 80 below the loudest; its mean over the clip is
    subtracted and it is divided by its deviation; stretched to 0 … 255 and truncated. A clip that
    is the same everywhere gives zeros. Segments are cut out of the picture of the whole clip; see
    `l3prune.segments`.

    Examples
    --------
    >>> maps = ByteLogMel()(tf.random.stateless_normal((1, 1, 88200), seed=(1, 2)))
    >>> tuple(maps.shape), float(tf.reduce_max(maps))
    ((1, 128, 128, 1), 255.0)
    """

    segment_frames = FRAMES
    least_samples = SAMPLES

    def __init__(self, **kwargs):
        super().__init__(**{**dataclasses.asdict(FRONT_END), **kwargs})

    def call(self, inputs):
        level = super().call(inputs)

        def of_clip(function, values):
            return function(values, axis=(1, 2, 3), keepdims=True)

        level = tf.maximum(level, of_clip(tf.reduce_max, level) - _RANGE)
        level -= of_clip(tf.reduce_mean, level)
        level /= of_clip(tf.math.reduce_std, level) + _EPS
        lowest, highest = of_clip(tf.reduce_min, level), of_clip(tf.reduce_max, level)
        span = highest - lowest
        bytes_ = tf.floor(255 * (level - lowest) / tf.where(span > _EPS, span, 1))
        return tf.stop_gradient(tf.where(span > _EPS, bytes_, tf.zeros_like(bytes_)))


def _widths(built: keras.Model) -> dict[str, Any]:
    """The arguments that say how wide a network is."""
    filters = [built.get_layer(f"conv_{number}").filters for number in range(1, 9)]
    return {"filters": filters, "units": built.get_layer("fc_1").units}


def _claimed(arguments: dict[str, Any]) -> tuple[int, ...]:
    """Filters and units of all layers, in order, of what `build` makes of these arguments."""
    widths = {"units": UNITS, "classes": CLASSES, **arguments}
    return (*(arguments.get("filters") or FILTERS), widths["units"], widths["classes"])


@network("fat2019", widths=_widths, claimed=_claimed)
def build(
    *,
    input: str = "waveform",
    pooling: str = "basic",
    filters: Sequence[int] | None = None,
    units: int = UNITS,
    classes: int = CLASSES,
) -> keras.Model:
    """Build the network.

    Parameters
    ----------
    input : {"waveform", "log_mel"}
        Two seconds (batch, 1, 88200) in [-1, 1] at 44.1 kHz, the front end inside; or its output
        (batch, 128, 128, 1), frames by bands, in 0 … 255.
    pooling : {"basic", "poolrevised"}
        The average of two frames by two bands; or of two frames, and then the larger of two bands.
    filters : sequence of 8 int, or None
        Of the convolutions; None takes `FILTERS`.
    units : int
        Of the first dense layer.
    classes : int

    Returns
    -------
    network : keras.Model, output (batch, classes) float32
        Logits.

    Raises
    ------
    ParameterError
        A value outside its range; the message tells the range.

    Examples
    --------
    >>> build().count_params()
    4767633
    """
    filters = FILTERS if filters is None else tuple(filters)
    check_arguments(filters, 0.0, layers=len(FILTERS))
    check_whole("units", units, 1)
    check_whole("classes", classes, 1)
    if pooling not in POOLINGS:
        raise ParameterError(f"pooling={pooling!r}; allowed: {', '.join(map(repr, POOLINGS))}")
    if input == "waveform":
        inputs = keras.Input((1, SAMPLES), name="waveform")
        maps = ByteLogMel(name="log_mel")(inputs)
    elif input == "log_mel":
        maps = inputs = keras.Input((FRAMES, FRONT_END.n_mels, 1), name="log_mel")
    else:
        raise ParameterError(f"input={input!r}; allowed: 'waveform', 'log_mel'")
    maps = keras.layers.Concatenate(name="as_rgb")([maps] * 3)
    for number, count in enumerate(filters, start=1):
        # PyTorch's Kaiming normal, which is not truncated.
        kaiming = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")
        maps = keras.layers.Conv2D(
            *(count, 3),
            padding="same",
            use_bias=False,
            kernel_initializer=kaiming,
            name=f"conv_{number}",
        )(maps)
        maps = _norm(f"batch_normalization_{number}")(maps)
        maps = keras.layers.ReLU(name=f"relu_{number}")(maps)
        if number % 2 == 0:
            maps = _pooled(maps, pooling, number // 2)
    maps = FunctionalMean((1, maps.shape[2]), name="mean_of_bands")(maps)
    values = keras.layers.GlobalMaxPooling2D(name="max_of_time")(maps)
    values = _dense(units, "fc_1")(values)
    # One slope for all units.
    values = keras.layers.PReLU(
        alpha_initializer=keras.initializers.Constant(0.25), shared_axes=[1], name="prelu"
    )(values)
    values = _norm("batch_normalization_fc")(values)
    return keras.Model(inputs, _dense(classes, "logits", dtype="float32")(values), name="fat2019")


def narrow(divisor: int) -> list[int]:
    """Filters of the convolutions in a network so many times narrower.

    Examples
    --------
    >>> narrow(8)
    [8, 8, 16, 16, 32, 32, 64, 64]
    """
    check_whole("divisor", divisor, 1, FILTERS[0])
    return [count // divisor for count in FILTERS]


def _norm(name: str) -> keras.layers.BatchNormalization:
    """BatchNorm with PyTorch's constants."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def _dense(units: int, name: str, **arguments: Any) -> keras.layers.Dense:
    """A dense layer whose kernel begins as PyTorch's."""
    uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    return keras.layers.Dense(units, kernel_initializer=uniform, name=name, **arguments)


def _pooled(maps, pooling: str, block: int):
    average = keras.layers.AveragePooling2D
    if pooling == "basic":
        return average(2, name=f"pooling_{block}")(maps)
    maps = average((2, 1), name=f"mean_pooling_{block}")(maps)
    return keras.layers.MaxPooling2D((1, 2), name=f"max_pooling_{block}")(maps)
