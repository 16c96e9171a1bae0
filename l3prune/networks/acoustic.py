"""What networks for acoustic scenes share: Koutini's front end, and convolutions by number.

VGG16, ResNet50, DenseNet121 and CP-ResNet take ten seconds of stereo as 256 bands of A-weighted
decibels, as Koutini's CP-ResNet does. See docs/hspg.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune.audio import LIBROSA, FrontEnd
from l3prune.checks import check_whole
from l3prune.errors import ParameterError
from l3prune.layers import FrontEndLayer
from l3prune.networks.l3 import MAX_FILTERS

#: Hz, and samples of a window.
SAMPLE_RATE, N_DFT = 22050, 2048

SECONDS, CHANNELS, BANDS, HOP = 10, 2, 256, 512
CLASSES = 10

#: Decibels below the loudest bin at which a spectrogram is cut off, and the least power.
_RANGE, _POWER_FLOOR = 80.0, 1e-10


@keras.utils.register_keras_serializable(package="l3prune")
class WeightedDecibels(FrontEndLayer):
    """Koutini's front end: power spectrum -> A-weighted decibels -> mel bands of these.

    Centred Hann windows, the ends reflected. Each channel is cut off at 80 dB below its loudest
    bin, before the weighting. Input (batch, channels, samples), output (batch, bands, frames,
    channels).

    Parameters
    ----------
    n_mels, hop_length : int
    mean, std : sequence of n_mels float, or None
        Of each band over the frames of the training clips. Both or none.

    Examples
    --------
    >>> tuple(WeightedDecibels()(tf.zeros((1, 2, 220500))).shape)
    (1, 256, 431, 2)
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, n_mels=BANDS, hop_length=HOP, mean=None, std=None, **kwargs):
        super().__init__(**kwargs)
        self.front_end = FrontEnd(SAMPLE_RATE, N_DFT, hop_length, n_mels, LIBROSA)
        self.mean, self.std = (
            None if each is None else [*map(float, each)] for each in (mean, std)
        )
        given = [each for each in (self.mean, self.std) if each is not None]
        good = len(given) in (0, 2) and all(
            len(each) == n_mels and np.isfinite(each).all() for each in given
        )
        if not good or min(self.std or [1.0]) <= 0:
            raise ParameterError(
                f"a normalisation has mean and std, {n_mels} finite numbers each, those of std "
                "positive"
            )

    def call(self, inputs):
        front_end = self.front_end
        half = N_DFT // 2
        audio = tf.pad(tf.cast(inputs, tf.float64), ((0, 0), (0, 0), (half, half)), "REFLECT")
        frames = tf.signal.frame(audio, N_DFT, front_end.hop_length)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_DFT) / N_DFT)
        power = tf.square(tf.abs(tf.signal.rfft(frames * window)))
        level = tf.math.log(tf.maximum(power, _POWER_FLOOR)) * (10 / np.log(10))
        level = tf.maximum(level, tf.reduce_max(level, axis=(2, 3), keepdims=True) - _RANGE)
        level = tf.matmul(level + a_weighting(), front_end.mel_matrix())
        if self.mean is not None:
            level = (level - np.array(self.mean)) / np.array(self.std)
        return tf.stop_gradient(tf.cast(tf.transpose(level, (0, 3, 2, 1)), tf.float32))

    def compute_output_shape(self, input_shape):
        front_end = self.front_end
        batch, channels, samples = input_shape
        return (batch, front_end.n_mels, 1 + samples // front_end.hop_length, channels)

    def unnormalised(self):
        return WeightedDecibels(self.front_end.n_mels, self.front_end.hop_length, name=self.name)

    def normalise(self, maps):
        if self.mean is None:
            return maps
        mean, std = (np.array(each)[:, np.newaxis, np.newaxis] for each in (self.mean, self.std))
        return ((maps - mean) / std).astype(np.float32)

    def get_config(self):
        return {
            **super().get_config(),
            "n_mels": self.front_end.n_mels,
            "hop_length": self.front_end.hop_length,
            "mean": self.mean,
            "std": self.std,
        }


def a_weighting() -> np.ndarray:
    """The A-weighting of each bin in decibels, not below -80; IEC 61672's poles.

    Examples
    --------
    >>> frequencies = np.arange(1025) * SAMPLE_RATE / N_DFT
    >>> weights = a_weighting()
    >>> float(weights[0]), round(float(weights[np.argmin(abs(frequencies - 1000))]), 1)
    (-80.0, 0.0)
    """
    squares = np.square(np.arange(N_DFT // 2 + 1) * SAMPLE_RATE / N_DFT)
    low, second, third, high = np.square([20.598997, 107.65265, 737.86223, 12194.217])
    with np.errstate(divide="ignore"):
        gain = 2 * np.log10(squares) + np.log10(high)
        gain -= np.log10((squares + low) * (squares + high))
        gain -= 0.5 * np.log10((squares + second) * (squares + third))
    return np.maximum(2.0 + 20 * gain, -_RANGE)


@dataclass(frozen=True)
class Clip:
    """What a network for acoustic scenes listens to.

    Attributes
    ----------
    input : {"waveform", "log_mel"}
        Clips (batch, channels, samples) in [-1, 1], the front end inside; or its normalised output
        (batch, bands, frames, channels).
    seconds, channels, bands, hop : int
        Length of a clip, 1 or 2 channels, mel bands, samples from frame to frame.
    normalisation : mapping, or None
        "mean" and "std" of each band; None leaves the decibels as they are.

    Examples
    --------
    >>> Clip(input="log_mel", seconds=5, bands=64, hop=1024).maps()[1].shape
    TensorShape([None, 64, 108, 2])
    """

    input: str = "waveform"
    seconds: int = SECONDS
    channels: int = CHANNELS
    bands: int = BANDS
    hop: int = HOP
    normalisation: Mapping[str, Sequence[float]] | None = None

    def maps(self) -> tuple[Any, Any]:
        """The input of a network, and its spectrograms."""
        check_whole("seconds", self.seconds, 1)
        check_whole("channels", self.channels, 1, 2)
        check_whole("bands", self.bands, 1, BANDS)
        check_whole("hop", self.hop, 1, N_DFT)
        given = dict(self.normalisation or {})
        if given.keys() not in (set(), {"mean", "std"}):
            raise ParameterError(
                f"normalisation has {', '.join(given)}; give mean and std, or None"
            )
        layer = WeightedDecibels(self.bands, self.hop, **given, name="log_mel")
        samples = (None, self.channels, self.seconds * SAMPLE_RATE)
        if self.input == "waveform":
            inputs = keras.Input(samples[1:], name="waveform")
            return inputs, layer(inputs)
        if self.input == "log_mel":
            inputs = keras.Input(layer.compute_output_shape(samples)[1:], name="log_mel")
            return inputs, inputs
        raise ParameterError(f"input={self.input!r}; allowed: 'waveform', 'log_mel'")


class Convolutions:
    """Makes the convolutions of a network one after another: conv_1, conv_2, …

    Parameters
    ----------
    usual : sequence of int
        Filters of each.
    filters : sequence of int, or None
        In place of the usual ones, as many.

    Raises
    ------
    ParameterError
        Another number of filters, or one out of range.

    Examples
    --------
    >>> convolutions = Convolutions([64, 128], [2, 3])
    >>> convolutions(keras.Input((8, 8, 1)), 3).shape
    TensorShape([None, 8, 8, 2])
    """

    def __init__(self, usual: Sequence[int], filters: Sequence[int] | None = None) -> None:
        self.filters = tuple(usual if filters is None else filters)
        if len(self.filters) != len(usual):
            raise ParameterError(
                f"filters={self.filters}: give {len(usual)}, one for each convolution"
            )
        for count in self.filters:
            check_whole("filters", count, 1, MAX_FILTERS)
        self.number = 0

    def __call__(self, maps, size: int, strides: int = 1, padding: str = "same"):
        self.number += 1
        return keras.layers.Conv2D(
            self.filters[self.number - 1],
            size,
            strides,
            padding,
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"conv_{self.number}",
        )(maps)

    def norm(self, maps, name: str | None = None):
        """BatchNorm, by the number of the latest convolution unless it has another name."""
        name = f"norm_{self.number}" if name is None else name
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(maps)

    def normalised(self, maps, size: int, strides: int = 1, padding: str = "same"):
        """Convolution -> BatchNorm -> ReLU."""
        return relu(self.norm(self(maps, size, strides, padding)), f"relu_{self.number}")


def relu(maps, name: str):
    """ReLU.

    Examples
    --------
    >>> relu(keras.Input((1,)), "relu").shape
    TensorShape([None, 1])
    """
    return keras.layers.ReLU(name=name)(maps)


def classified(inputs, maps, classes: int, name: str) -> keras.Model:
    """The network whose output is the mean of maps, classified by a softmax.

    Examples
    --------
    >>> inputs = keras.Input((4, 4, 2))
    >>> classified(inputs, inputs, 3, "net").output_shape
    (None, 3)
    """
    check_whole("classes", classes, 2)
    values = keras.layers.GlobalAveragePooling2D(name="mean")(maps)
    # Mixed precision computes in float16; probabilities are float32 for their readers all the same.
    output = keras.layers.Dense(classes, "softmax", dtype="float32", name="classes")
    return keras.Model(inputs, output(values), name=name)


def widths_of(built: keras.Model) -> dict[str, Any]:
    """The arguments that say how wide a network of these is, as `networks.network` takes them.

    Examples
    --------
    >>> inputs = keras.Input((4, 4, 2))
    >>> maps = Convolutions([8])(inputs, 1)
    >>> widths_of(classified(inputs, maps, 3, "net"))
    {'filters': [8]}
    """
    found = [layer for layer in built.layers if layer.name.startswith("conv_")]
    found.sort(key=lambda layer: int(layer.name.removeprefix("conv_")))
    return {"filters": [layer.filters for layer in found]}


def claims(
    usual: Sequence[int] | Callable[[dict[str, Any]], Sequence[int]],
) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """From the arguments of a network of these, the widths of all its layers, classes last.

    Examples
    --------
    >>> claims([8, 8])({"filters": [2, 3]})
    (2, 3, 10)
    """

    def claimed(arguments: dict[str, Any]) -> tuple[int, ...]:
        filters = arguments.get("filters")
        if filters is None:
            filters = usual(arguments) if callable(usual) else usual
        return (*filters, arguments.get("classes", CLASSES))

    return claimed
