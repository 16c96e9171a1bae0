"""The baseline network of DCASE 2021 task 1A, low-complexity acoustic scene classification.

Three 7x7 convolutions and two dense layers on log-mel spectrograms of ten seconds; what Singh's
entry to that task prunes. See docs/dcase2021.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune.audio import LIBROSA, FrontEnd
from l3prune.checks import check_whole
from l3prune.errors import ParameterError
from l3prune.layers import FrontEndLayer
from l3prune.networks import network
from l3prune.networks.l3 import MAX_FILTERS

SECONDS = 10
BANDS, FRAMES = 40, 500

#: Hz; DFT, window (40 ms) and hop (20 ms) in samples.
SAMPLE_RATE, N_DFT, WINDOW, HOP = 44100, 2048, 1764, 882

FILTERS = (16, 16, 32)
DENSE_UNITS = 100
CLASSES = 10

#: How the ends of a clip are continued; librosa did the first before 0.10, and the second since.
PADDINGS = ("reflect", "zeros")

#: Added to samples and to mel bands.
_EPS = float(np.finfo(np.float64).eps)

_DROPOUT = 0.3


@keras.utils.register_keras_serializable(package="l3prune")
class SceneLogMel(FrontEndLayer):
    """The log-mel spectrogram of DCASE 2021's baseline, normalised by band if statistics are given.

    Magnitudes of the short-time Fourier transform, with a periodic Hamming window, in Slaney's mel
    bands, natural logarithm. The transform and what follows compute in float64. Of the 501 centred
    frames the last is dropped.

    Parameters
    ----------
    padding : {"reflect", "zeros"}
        How the ends of a clip are continued.
    mean, std : sequence of 40 float, or None
        Of each band over the frames of the training clips. Both or none.

    Examples
    --------
    >>> tuple(SceneLogMel()(tf.zeros((1, 1, 441000))).shape)
    (1, 40, 500, 1)
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, padding="reflect", mean=None, std=None, **kwargs):
        super().__init__(**kwargs)
        if padding not in PADDINGS:
            raise ParameterError(f"padding={padding!r}; allowed: {', '.join(PADDINGS)}")
        self.padding = padding
        self.mean, self.std = (
            None if each is None else [*map(float, each)] for each in (mean, std)
        )
        check_normalisation(self.mean, self.std)

    def call(self, inputs):
        audio = tf.cast(inputs[:, 0, :], tf.float64) + _EPS
        mode = "REFLECT" if self.padding == "reflect" else "CONSTANT"
        audio = tf.pad(audio, ((0, 0), (N_DFT // 2, N_DFT // 2)), mode)
        window = np.zeros(N_DFT)
        before = (N_DFT - WINDOW) // 2
        window[before : before + WINDOW] = 0.54 - 0.46 * np.cos(
            2 * np.pi * np.arange(WINDOW) / WINDOW
        )
        frames = tf.signal.frame(audio, N_DFT, HOP)[:, :FRAMES]
        magnitude = tf.abs(tf.signal.rfft(frames * window))
        bands = FrontEnd(SAMPLE_RATE, N_DFT, HOP, BANDS, LIBROSA).mel_matrix()
        level = tf.math.log(tf.matmul(magnitude, bands) + _EPS)
        if self.mean is not None:
            level = (level - np.array(self.mean)) / np.array(self.std)
        level = tf.cast(tf.transpose(level, (0, 2, 1)), tf.float32)
        return tf.stop_gradient(level[..., tf.newaxis])

    def compute_output_shape(self, input_shape):
        return (input_shape[0], BANDS, FRAMES, 1)

    def unnormalised(self):
        return SceneLogMel(self.padding, name=self.name)

    def normalise(self, maps):
        if self.mean is None:
            return maps
        mean, std = (np.array(each)[:, np.newaxis, np.newaxis] for each in (self.mean, self.std))
        return ((maps - mean) / std).astype(np.float32)

    def get_config(self):
        config = {"padding": self.padding, "mean": self.mean, "std": self.std}
        return {**super().get_config(), **config}


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Refuse what are not a mean and a standard deviation for each band.

    Examples
    --------
    >>> check_normalisation([0.0] * 40, None)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: a normalisation has mean and std, 40 finite numbers each, ...
    """
    if mean is None and std is None:
        return
    given = [np.array([] if each is None else each, float) for each in (mean, std)]
    good = all(each.shape == (BANDS,) and np.isfinite(each).all() for each in given)
    if not good or given[1].min() <= 0:
        raise ParameterError(
            f"a normalisation has mean and std, {BANDS} finite numbers each, those of std positive"
        )


def _widths(built: keras.Model) -> dict[str, Any]:
    convolutions = [each for each in built.layers if isinstance(each, keras.layers.Conv2D)]
    return {
        "filters": [each.filters for each in convolutions],
        "dense_units": built.get_layer("dense_1").units,
        "classes": built.get_layer("dense_2").units,
    }


def _claimed(arguments: dict[str, Any]) -> tuple[int, ...]:
    """Filters and units of all layers, in order, of what `build` makes of these arguments."""
    widths = {"dense_units": DENSE_UNITS, "classes": CLASSES, **arguments}
    return (*(arguments.get("filters") or FILTERS), widths["dense_units"], widths["classes"])


@network("dcase2021", widths=_widths, claimed=_claimed)
def build(
    *,
    input: str = "waveform",
    padding: str = "reflect",
    normalisation: Mapping[str, Sequence[float]] | None = None,
    filters: Sequence[int] | None = None,
    dense_units: int = DENSE_UNITS,
    classes: int = CLASSES,
) -> keras.Model:
    """Build the baseline network of DCASE 2021 task 1A.

    Parameters
    ----------
    input : {"waveform", "log_mel"}
        Ten seconds (batch, 1, 441000) in [-1, 1], the front end inside; or its normalised output
        (batch, 40, 500, 1).
    padding : {"reflect", "zeros"}
        See `SceneLogMel`.
    normalisation : mapping, or None
        "mean" and "std" of each of the 40 bands; None leaves the logarithms as they are.
    filters : sequence of 3 int, or None
        Of the convolutions; None is (16, 16, 32).
    dense_units : int
        Of the first dense layer.
    classes : int

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
    >>> build().count_params()
    46246
    """
    filters = FILTERS if filters is None else tuple(filters)
    if len(filters) != len(FILTERS):
        raise ParameterError(f"filters={filters}: give {len(FILTERS)}, one for each convolution")
    for count in filters:
        check_whole("filters", count, 1, MAX_FILTERS)
    check_whole("dense_units", dense_units, 1, MAX_FILTERS)
    check_whole("classes", classes, 2)
    given = dict(normalisation or {})
    if given.keys() not in (set(), {"mean", "std"}):
        raise ParameterError(f"normalisation has {', '.join(given)}; give mean and std, or None")
    front_end = SceneLogMel(padding, **given, name="log_mel")
    if input == "waveform":
        inputs = keras.Input((1, SECONDS * SAMPLE_RATE), name="waveform")
        maps = front_end(inputs)
    elif input == "log_mel":
        maps = inputs = keras.Input((BANDS, FRAMES, 1), name="log_mel")
    else:
        raise ParameterError(f"input={input!r}; allowed: 'waveform', 'log_mel'")
    for number, (count, pool) in enumerate(zip(filters, (None, (5, 5), (4, 100)), strict=True), 1):
        maps = keras.layers.Conv2D(count, 7, padding="same", name=f"conv_{number}")(maps)
        maps = keras.layers.BatchNormalization(name=f"batch_normalization_{number}")(maps)
        maps = keras.layers.ReLU(name=f"relu_{number}")(maps)
        if pool is not None:
            maps = keras.layers.MaxPooling2D(pool, name=f"max_pooling_{number - 1}")(maps)
            maps = keras.layers.Dropout(_DROPOUT, name=f"dropout_{number - 1}")(maps)
    values = keras.layers.Flatten(name="flatten")(maps)
    values = keras.layers.Dense(
        dense_units, "relu", kernel_initializer="random_uniform", name="dense_1"
    )(values)
    values = keras.layers.Dropout(_DROPOUT, name="dropout_3")(values)
    # Mixed precision computes in float16; probabilities are float32 for their readers all the same.
    output = keras.layers.Dense(
        classes, "softmax", kernel_initializer="random_uniform", dtype="float32", name="dense_2"
    )
    return keras.Model(inputs, output(values), name="dcase2021")
