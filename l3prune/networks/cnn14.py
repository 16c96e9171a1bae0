"""Cnn14 of PANNs (Kong et al., TASLP 2020), which tags a clip with AudioSet's 527 classes, and its
form for sound event detection, DecisionLevelMax.

Twelve 3x3 convolutions in six blocks, each Conv -> BatchNorm -> ReLU, average-pooled by 2 after the
first five blocks. Maps are (frames, bands): the first axis is time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from l3prune.checks import check_whole, is_integer
from l3prune.errors import ParameterError
from l3prune.layers import ClipLogMel
from l3prune.log_mel import LogMel
from l3prune.networks import network, network_config
from l3prune.networks.l3 import check_arguments

#: The networks of this module.
CNN14, DECISION_LEVEL_MAX = NETWORKS = ("cnn14", "cnn14_decision_level_max")

FRONT_END = LogMel()

FILTERS = (64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024, 2048, 2048)

#: Layer names of C1 … C12.
CONV_NAMES = tuple(f"conv_block{block}_conv{place}" for block in range(1, 7) for place in (1, 2))

#: AudioSet's.
CLASSES = 527

#: Outputs of fc1: values of the embedding.
UNITS = 2048

#: Ten seconds, of which AudioSet's clips are.
SAMPLES = 320_000

#: Five times half of the frames must leave one: 32 frames, 0.31 s.
MIN_FRAMES = 32
MIN_SAMPLES = (MIN_FRAMES - 1) * FRONT_END.hop_length

#: What a network may give.
CLIPWISE, EMBEDDING, SEGMENTWISE = "clipwise", "embedding", "segmentwise"
_OUTPUTS = {CNN14: (CLIPWISE, EMBEDDING), DECISION_LEVEL_MAX: (CLIPWISE, SEGMENTWISE)}

_ACTIVATIONS = ("sigmoid", "softmax", "linear")


def _widths(built: keras.Model) -> dict[str, Any]:
    """The arguments that say how wide a network is."""
    filters = [built.get_layer(name).filters for name in CONV_NAMES]
    return {"filters": filters, "units": built.get_layer("fc1").units}


def _claimed(arguments: dict[str, Any]) -> tuple[int, ...]:
    """Filters and units of all layers, in order, of what `build` makes of these arguments."""
    widths = (*(arguments.get("filters") or FILTERS), arguments.get("units", UNITS))
    if arguments.get("output") == EMBEDDING:
        return widths
    return (*widths, arguments.get("classes", CLASSES))


def build(
    name: str,
    *,
    input: str = "waveform",
    samples: int | None = SAMPLES,
    output: str = CLIPWISE,
    activation: str = "sigmoid",
    classes: int = CLASSES,
    filters: Sequence[int] | None = None,
    units: int = UNITS,
) -> keras.Model:
    """Build Cnn14 or its form for sound event detection.

    Weights do not depend on `samples`: a network is loaded for other lengths by
    `load_network(path, samples=None)`.

    Parameters
    ----------
    name : str
        One of `NETWORKS`.
    input : {"waveform", "log_mel"}
        Waveform (batch, 1, samples) in [-1, 1] at 32 kHz, the front end inside; or the front end's
        output (batch, frames, 64, 1) in dB.
    samples : int or None
        Of each clip, from `MIN_SAMPLES` on. None takes clips of any such length, alike in a batch;
        most exports, and counts of multiply-accumulates, need a number.
    output : str
        "clipwise" gives (batch, classes). Cnn14 also has "embedding", (batch, units), which is what
        the classifier reads; its form for detection has "segmentwise", (batch, segments, 1,
        classes), a segment being 32 frames, see `framewise`.
    activation : {"sigmoid", "softmax", "linear"}
        Of the classes; PANNs' is the sigmoid, the live demonstration of E-PANNs has the softmax.
    classes : int
    filters : sequence of 12 int, or None
        Of C1 … C12; None takes `FILTERS`. See `narrow`.
    units : int
        Of fc1.

    Returns
    -------
    network : keras.Model
        Float32 outputs.

    Raises
    ------
    ParameterError
        A value outside its range; the message tells the range.

    Examples
    --------
    >>> build("cnn14", filters=narrow(16), units=128, samples=32000).output_shape
    (None, 527)
    """
    filters = FILTERS if filters is None else tuple(filters)
    check_arguments(filters, 0.0, layers=len(FILTERS))
    check_whole("classes", classes, 1)
    check_whole("units", units, 1)
    if samples is not None and (not is_integer(samples) or samples < MIN_SAMPLES):
        raise ParameterError(
            f"samples={samples!r}: {name} takes whole numbers from {MIN_SAMPLES} on "
            f"({MIN_SAMPLES / FRONT_END.sample_rate} s at {FRONT_END.sample_rate} Hz); pad "
            "shorter audio with zeros"
        )
    for given, value, allowed in (
        ("output", output, _OUTPUTS[name]),
        ("activation", activation, _ACTIVATIONS),
    ):
        if value not in allowed:
            raise ParameterError(f"{given}={value!r}; {name} has {', '.join(allowed)}")

    inputs, maps = _input(input, samples)
    maps = _band_norm(maps)
    for number, count in enumerate(filters):
        maps = _convolution(maps, CONV_NAMES[number], count)
        if number % 2:
            block = number // 2 + 1
            if block < 6:
                maps = keras.layers.AveragePooling2D(2, name=f"pooling{block}")(maps)
            maps = keras.layers.Dropout(0.2, name=f"dropout{block}")(maps)
    # Two cells are left of 64 bands.
    maps = keras.layers.AveragePooling2D((1, 2), name="mean_of_bands")(maps)
    head = functools.partial(_classified, classes=classes, activation=activation)
    if name == CNN14:
        pooled = keras.layers.Add(name="max_and_mean")(
            [
                keras.layers.GlobalMaxPooling2D(name="max_of_time")(maps),
                keras.layers.GlobalAveragePooling2D(name="mean_of_time")(maps),
            ]
        )
        # PANNs also drops half of the embedding, of which its classifier takes no notice.
        outputs = _embedded(pooled, units)
        if output == CLIPWISE:
            outputs = head(outputs, name=CLIPWISE)
    else:
        # As PyTorch pools, the zeros at both ends count in the mean.
        padded = keras.layers.ZeroPadding2D(((1, 1), (0, 0)), name="ends")(maps)
        maps = keras.layers.Add(name="max_and_mean")(
            [
                keras.layers.MaxPooling2D((3, 1), 1, padding="same", name="max_of_time")(maps),
                keras.layers.AveragePooling2D((3, 1), 1, name="mean_of_time")(padded),
            ]
        )
        maps = keras.layers.Dropout(0.5, name="embedding_dropout")(_embedded(maps, units))
        outputs = head(maps, name=SEGMENTWISE)
        if output == CLIPWISE:
            outputs = keras.layers.GlobalMaxPooling2D(name=CLIPWISE, dtype="float32")(outputs)
    return keras.Model(inputs, outputs, name=name)


for _name in NETWORKS:
    network(_name, widths=_widths, claimed=_claimed)(functools.partial(build, _name))


def narrow(divisor: int) -> list[int]:
    """Filters of C1 … C12 in a network so many times narrower.

    Examples
    --------
    >>> narrow(16)
    [4, 4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128]
    """
    check_whole("divisor", divisor, 1, FILTERS[0])
    return [count // divisor for count in FILTERS]


def with_embedding(network: keras.Model) -> keras.Model:
    """The same Cnn14, the same weights, with two outputs: clipwise and embedding.

    Parameters
    ----------
    network : keras.Model
        A `cnn14` of output "clipwise".

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> both = with_embedding(create_network("cnn14", filters=narrow(32), units=64))
    >>> both.output_shape
    [(None, 527), (None, 64)]
    """
    config = network_config(network)
    if config.name != CNN14 or config.arguments.get("output", CLIPWISE) != CLIPWISE:
        raise ParameterError(
            f"network {config.name} with output {config.arguments.get('output', CLIPWISE)!r} has "
            f"no clipwise output behind an embedding; give a {CNN14} of output {CLIPWISE!r}"
        )
    return keras.Model(network.inputs, [network.output, network.get_layer(EMBEDDING).output])


def framewise(segmentwise: np.ndarray, frames: int) -> np.ndarray:
    """Each segment's classes as often as it has frames; the last ones up to the end of the clip.

    Parameters
    ----------
    segmentwise : np.ndarray, (n, segments, 1, classes)
        As a `cnn14_decision_level_max` gives it.
    frames : int
        Of the clip: `FRONT_END.frames(samples)`.

    Returns
    -------
    framewise : np.ndarray, (n, frames, classes)

    Examples
    --------
    >>> framewise(np.array([[[[0.25]], [[0.5]]]]), 100)[0, [0, 31, 32, 63, 99], 0].tolist()
    [0.25, 0.25, 0.5, 0.5, 0.5]
    """
    segment = np.minimum(np.arange(frames) // MIN_FRAMES, segmentwise.shape[1] - 1)
    return segmentwise[:, segment, 0]


def _input(input: str, samples: int | None):
    """The input of a network, and its spectrograms."""
    if input == "waveform":
        inputs = keras.Input((1, samples), name="waveform")
        return inputs, ClipLogMel(**dataclasses.asdict(FRONT_END), name="log_mel")(inputs)
    if input == "log_mel":
        frames = None if samples is None else FRONT_END.frames(samples)
        inputs = keras.Input((frames, FRONT_END.n_mels, 1), name="log_mel")
        return inputs, inputs
    raise ParameterError(f"input={input!r}; allowed: 'waveform', 'log_mel'")


def _band_norm(maps):
    """BatchNorm of each band.

    With the bands as channels Keras takes its fused kernel, which corrects the moving variance by
    n / (n - 1) as PyTorch does; over another axis it does not.
    """
    frames, bands, _ = maps.shape[1:]
    frames = -1 if frames is None else frames
    maps = keras.layers.Reshape((frames, 1, bands), name="bands_as_channels")(maps)
    maps = _norm("bn0")(maps)
    return keras.layers.Reshape((frames, bands, 1), name="bands_as_columns")(maps)


def _norm(name: str) -> keras.layers.BatchNormalization:
    """BatchNorm with PyTorch's constants."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def _convolution(maps, name: str, filters: int):
    convolution = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)
    norm = _norm(name.replace("conv1", "bn1").replace("conv2", "bn2"))
    relu = keras.layers.ReLU(name=name.replace("conv1", "relu1").replace("conv2", "relu2"))
    return relu(norm(convolution(maps)))


def _embedded(maps, units: int):
    maps = keras.layers.Dropout(0.5, name="pooled_dropout")(maps)
    maps = keras.layers.Dense(units, name="fc1")(maps)
    # Mixed precision computes in float16; an embedding is float32 for its readers all the same.
    return keras.layers.ReLU(name=EMBEDDING, dtype="float32")(maps)


def _classified(maps, *, name: str, classes: int, activation: str):
    maps = keras.layers.Dense(classes, name="fc_audioset")(maps)
    return keras.layers.Activation(activation, name=name, dtype="float32")(maps)
