"""Keras layers: the masked convolution and its mask as a constraint, BatchNorm over several
devices, the log-mel front end."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune.audio import AMPLITUDE_FLOOR, DYNAMIC_RANGE_DB, KAPRE_0_1, FrontEnd
from l3prune.errors import ParameterError
from l3prune.log_mel import POWER_FLOOR, LogMel


@keras.utils.register_keras_serializable(package="l3prune")
class MaskedConv2D(keras.layers.Conv2D):
    """A Conv2D whose pruned weights are exactly zero, and stay so.

    The mask is a saved, non-trainable boolean weight with the kernel's shape, True = keep. It acts
    twice: the forward pass convolves with the masked kernel, so that no gradient and no reader of
    the output ever sees a pruned weight; and it is the kernel's constraint, which Keras optimizers
    apply after each update, so that the stored kernel is zero under the mask whatever momentum or
    weight decay wrote there. (An optimizer with `use_ema` replaces the kernel by its average when
    `fit` ends, after the constraint: set the mask before the training, or once more after it.)
    EdgeL3 recomputed the mask from a threshold in every
    step; here it is fixed until `set_mask` changes it.

    Parameters
    ----------
    *args, **kwargs
        As `keras.layers.Conv2D`, without `kernel_constraint`.

    Attributes
    ----------
    mask : tf.Variable, (kh, kw, in_channels // groups, filters) bool

    Examples
    --------
    >>> layer = MaskedConv2D(2, 1)
    >>> layer.build((None, 4, 4, 1))
    >>> layer.set_mask(np.array([True, False]))
    >>> layer.kernel.numpy()[0, 0, 0, 1]
    np.float32(0.0)
    """

    def __init__(self, *args, **kwargs):
        if kwargs.pop("kernel_constraint", None) is not None:
            raise ParameterError(
                "MaskedConv2D takes no kernel_constraint: its mask is the constraint"
            )
        super().__init__(*args, **kwargs)

    def build(self, input_shape):
        # Conv2D hands the constraint to the kernel here; it must not stay, to be serialised.
        self.kernel_constraint: Callable | None = self._masked
        super().build(input_shape)
        self.kernel_constraint = None
        self.mask = self.add_weight(
            name="mask",
            shape=self.kernel.shape,
            dtype=tf.bool,
            initializer=keras.initializers.Ones(),
            trainable=False,
        )

    def _masked(self, kernel):
        # Not kernel * mask: 0 * inf is NaN, and -1 * 0 is -0.0, whose bits are not zero.
        return tf.where(self.mask, kernel, tf.zeros_like(kernel))

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, self._masked(kernel))

    def set_mask(self, mask: np.ndarray) -> None:
        """Set the mask and zero the kernel under it.

        Parameters
        ----------
        mask : np.ndarray of bool, (filters,) or the kernel's shape
            True = keep.

        Raises
        ------
        ParameterError
            Not boolean, or of a shape that does not broadcast to the kernel's.
        """
        mask = np.asarray(mask)
        shape = tuple(self.kernel.shape)
        if mask.dtype != bool or mask.shape not in ((shape[-1],), shape):
            raise ParameterError(
                f"layer {self.name}: mask of shape {mask.shape} and type {mask.dtype}; "
                f"allowed are boolean masks of shape {shape} or {(shape[-1],)}"
            )
        self.mask.assign(np.broadcast_to(mask, shape))
        self.kernel.assign(self._masked(tf.convert_to_tensor(self.kernel)))


class SharedBatchNormalization(keras.layers.BatchNormalization):
    """BatchNorm with the statistics of all devices that a batch is shared by.

    As one device computes it with the whole batch: the moving variance has Bessel's correction, as
    that of the kernel that Keras uses for images on one device, which Keras's own synchronized
    layer does not have; and one sum over the devices does in place of three. Computes in float32
    under any precision.

    Parameters
    ----------
    *args, **kwargs
        As `keras.layers.BatchNormalization`, over the last axis.

    Examples
    --------
    >>> layer = SharedBatchNormalization(momentum=0)
    >>> _ = layer(tf.constant([[1.0], [5.0]]), training=True)
    >>> layer.moving_mean.numpy(), layer.moving_variance.numpy()
    (array([3.], dtype=float32), array([8.], dtype=float32))
    """

    def __init__(self, *args, **kwargs):
        # The fused kernel refuses an empty part of a batch.
        super().__init__(*args, **{**kwargs, "fused": False})

    def call(self, inputs, training=None):
        if not training or not self.trainable:
            return super().call(inputs, training=False)
        x = tf.cast(inputs, tf.float32)
        axes = list(range(x.shape.rank - 1))
        # Squares of what is near zero lose the fewest digits.
        shift = tf.stop_gradient(tf.convert_to_tensor(self.moving_mean))
        centred = x - shift
        count = tf.cast(tf.size(x), tf.float32) / x.shape[-1]
        sums = tf.stack(
            [
                tf.reduce_sum(centred, axes),
                tf.reduce_sum(tf.square(centred), axes),
                tf.fill([x.shape[-1]], count),
            ]
        )
        context = tf.distribute.get_replica_context()
        if context is not None:  # None: a batch that is on one device as a whole
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        first, second, count = tf.unstack(sums)
        first /= count
        variance = tf.maximum(second / count - tf.square(first), 0)
        mean = first + shift
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance * count / tf.maximum(count - 1, 1)),
        ):
            moving.assign_sub((moving - value) * (1 - self.momentum))
        outputs = tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, self.epsilon)
        return tf.cast(outputs, self.compute_dtype)


@keras.utils.register_keras_serializable(package="l3prune")
class KeepZeros(keras.constraints.Constraint):
    """A kernel's mask as its constraint, for layers that are built again from their config.

    Parameters
    ----------
    mask : np.ndarray of bool
        The kernel's shape, True = keep.

    Examples
    --------
    >>> keep = KeepZeros(np.array([True, False]))
    >>> KeepZeros.from_config(keep.get_config())(tf.constant([2.0, 3.0])).numpy()
    array([2., 0.], dtype=float32)
    """

    def __init__(self, mask: np.ndarray):
        self.mask = np.array(mask, bool)

    def __call__(self, w):
        return tf.where(self.mask, w, tf.zeros_like(w))

    def get_config(self):
        bits = base64.b64encode(np.packbits(self.mask).tobytes()).decode()
        return {"shape": list(self.mask.shape), "bits": bits}

    @classmethod
    def from_config(cls, config):
        bits = np.unpackbits(np.frombuffer(base64.b64decode(config["bits"]), np.uint8))
        count = int(np.prod(config["shape"]))
        return cls(bits[:count].astype(bool).reshape(config["shape"]))


class FrontEndLayer(keras.layers.Layer):
    """What turns waveforms into maps within a network: fixed, of float32 under any precision.

    What is behind it can be trained on maps that are computed once; see `surgery.behind_front_end`.
    Input (batch, 1, samples) float in [-1, 1], output (batch, rows, columns, 1) float32; of stereo
    both have a channel more. It has no weights and passes no gradient to the waveform. Derived
    layers have `sample_rate`, in Hz.

    Examples
    --------
    >>> issubclass(LogMelSpectrogram, FrontEndLayer)
    True
    """

    sample_rate: int

    #: Of the maps: 1 where rows are frames, 2 where columns are.
    time_axis = 2

    #: Networks that hear clips in segments: frames of each, and samples that a clip is filled up
    #: to. See `segments`.
    segment_frames: int | None = None
    least_samples = 0

    def unnormalised(self) -> FrontEndLayer:
        """The layer without what it has from training data; itself if that is nothing."""
        return self

    def normalise(self, maps: np.ndarray) -> np.ndarray:
        """Maps of the `unnormalised` layer as this one gives them."""
        return maps

    def __init__(self, **kwargs):
        # Half precision would round the waveform to 11 bits before the transform.
        super().__init__(**{**kwargs, "dtype": "float32"}, trainable=False)

    def get_config(self):
        config = super().get_config()
        del config["trainable"]
        return config


@keras.utils.register_keras_serializable(package="l3prune")
class LogMelSpectrogram(FrontEndLayer):
    """The log-spectrogram front end as a layer without weights; see `audio.log_spectrogram`.

    Input (batch, 1, samples) float in [-1, 1], output (batch, bands, frames, 1) float32 in
    [-80, 0]. It passes no gradient to the waveform (the square root's is infinite at silence).

    Parameters
    ----------
    sample_rate, n_dft, hop_length, n_mels, form
        See `audio.FrontEnd`.

    Examples
    --------
    >>> layer = LogMelSpectrogram(8000, 1024, 160, 64)
    >>> tuple(layer(tf.zeros((2, 1, 8000))).shape)
    (2, 64, 50, 1)
    """

    def __init__(self, sample_rate, n_dft, hop_length, n_mels, form=KAPRE_0_1, **kwargs):
        super().__init__(**kwargs)
        self.sample_rate = sample_rate
        self.front_end = FrontEnd(sample_rate, n_dft, hop_length, n_mels, form)

    def call(self, inputs):
        front_end = self.front_end
        before, after = front_end.edge_padding
        audio = tf.pad(inputs[:, 0, :], ((0, 0), (before, after)))
        # float32 FFTs are wrong by up to 0.2 in the quietest bands of loud windows.
        frames = tf.cast(tf.signal.frame(audio, front_end.n_dft, front_end.hop_length), tf.float64)
        bins = tf.signal.rfft(frames * front_end.analysis_window())
        power = tf.cast(tf.math.real(bins) ** 2 + tf.math.imag(bins) ** 2, tf.float32)
        if front_end.n_mels is None:
            amplitude = tf.sqrt(power)
        elif front_end.mel_of_power:
            amplitude = tf.sqrt(tf.matmul(power, front_end.mel_matrix().astype(np.float32)))
        else:
            amplitude = tf.matmul(tf.sqrt(power), front_end.mel_matrix().astype(np.float32))
        amplitude = tf.maximum(amplitude, AMPLITUDE_FLOOR)
        level = tf.math.log(amplitude) * np.float32(10 / np.log(10))
        level -= tf.reduce_max(level, axis=(1, 2), keepdims=True)
        level = tf.maximum(level, -DYNAMIC_RANGE_DB)
        return tf.stop_gradient(tf.transpose(level, (0, 2, 1))[..., tf.newaxis])

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.front_end.shape, 1)

    def get_config(self):
        front_end = self.front_end
        return {
            **super().get_config(),
            "sample_rate": front_end.sample_rate,
            "n_dft": front_end.n_dft,
            "hop_length": front_end.hop_length,
            "n_mels": front_end.n_mels,
            "form": front_end.form,
        }


@keras.utils.register_keras_serializable(package="l3prune")
class ClipLogMel(FrontEndLayer):
    """PANNs' front end as a layer without weights; see `log_mel.log_mel`.

    Input (batch, 1, samples) float in [-1, 1], of any length above half a window; output (batch,
    frames, bands, 1) float32 in dB. It passes no gradient to the waveform.

    Parameters
    ----------
    sample_rate, n_dft, hop_length, n_mels, low, high
        See `log_mel.LogMel`.

    Examples
    --------
    >>> tuple(ClipLogMel()(tf.zeros((2, 1, 32000))).shape)
    (2, 101, 64, 1)
    """

    time_axis = 1

    def __init__(
        self,
        sample_rate=32000,
        n_dft=1024,
        hop_length=320,
        n_mels=64,
        low=50.0,
        high=14000.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.sample_rate = sample_rate
        self.front_end = LogMel(sample_rate, n_dft, hop_length, n_mels, low, high)

    def call(self, inputs):
        front_end = self.front_end
        ends = (front_end.padding, front_end.padding)
        audio = tf.pad(inputs[:, 0, :], ((0, 0), ends), mode="REFLECT")
        # float32 FFTs leak more than 100 dB below a loud peak, where this front end still listens.
        frames = tf.cast(tf.signal.frame(audio, front_end.n_dft, front_end.hop_length), tf.float64)
        bins = tf.signal.rfft(frames * front_end.analysis_window())
        power = tf.math.real(bins) ** 2 + tf.math.imag(bins) ** 2
        bands = tf.cast(tf.matmul(power, front_end.mel_matrix()), tf.float32)
        level = tf.math.log(tf.maximum(bands, POWER_FLOOR)) * np.float32(10 / np.log(10))
        return tf.stop_gradient(level[..., tf.newaxis])

    def compute_output_shape(self, input_shape):
        samples = input_shape[2]
        frames = None if samples is None else self.front_end.frames(samples)
        return (input_shape[0], frames, self.front_end.n_mels, 1)

    def get_config(self):
        return {**super().get_config(), **vars(self.front_end)}


@keras.utils.register_keras_serializable(package="l3prune")
class FunctionalMean(keras.layers.AveragePooling2D):
    """An average pooling that is a plain mean in its authors' code, which THOP does not count.

    Examples
    --------
    >>> tuple(FunctionalMean((1, 8))(tf.zeros((1, 4, 8, 3))).shape)
    (1, 4, 1, 3)
    """


@keras.utils.register_keras_serializable(package="l3prune")
class ClipMean(keras.layers.Layer):
    """The mean of each clip's segments.

    Inputs are what was said of the segments, (segments, values), and the place of each one's clip,
    (segments,) rising from 0; the output is (clips, values) float32.

    Examples
    --------
    >>> ClipMean()([tf.constant([[1.0], [3.0], [5.0]]), tf.constant([0.0, 0.0, 1.0])]).numpy()
    array([[2.],
           [5.]], dtype=float32)
    """

    def call(self, inputs):
        values, places = inputs
        return tf.math.segment_mean(tf.cast(values, tf.float32), tf.cast(places, tf.int32))

    def compute_output_shape(self, input_shape):
        return input_shape[0]
