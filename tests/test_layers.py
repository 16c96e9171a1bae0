import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from l3prune.audio import FrontEnd, log_spectrogram
from l3prune.errors import ParameterError
from l3prune.layers import LogMelSpectrogram, MaskedConv2D
from tests.conftest import chirp

FRONT_ENDS = {
    "sea": FrontEnd(8000, 1024, 160, 64),
    "mel256": FrontEnd(48000, 2048, 242, 256),
    "linear": FrontEnd(48000, 512, 242, None),
    "mel128, kapre-0.3": FrontEnd(48000, 2048, 242, 128, "kapre-0.3"),
    "mel256, librosa": FrontEnd(48000, 2048, 242, 256, "librosa"),
}


def layer_of(front_end, **kwargs):
    return LogMelSpectrogram(
        front_end.sample_rate,
        front_end.n_dft,
        front_end.hop_length,
        front_end.n_mels,
        front_end.form,
        **kwargs,
    )


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
def test_layer_equals_numpy(name, compiled):
    front_end = FRONT_ENDS[name]
    rate = front_end.sample_rate
    rng = np.random.default_rng(3)
    windows = np.stack(
        [
            chirp(1, rate),  # a large range of levels: float32 alone is wrong by 0.1 here
            rng.normal(0, 0.1, rate),
            np.zeros(rate),
            1e-6 * rng.normal(0, 0.1, rate),
            rng.normal(0, 0.1, rate) * (np.arange(rate) < rate // 3),
        ]
    ).astype(np.float32)
    layer = tf.function(layer_of(front_end), jit_compile=compiled)
    result = layer(windows[:, np.newaxis]).numpy()
    assert result.shape == (5, *front_end.shape, 1)
    np.testing.assert_allclose(result, log_spectrogram(windows, front_end), atol=1e-4)


@pytest.mark.shared
def test_layer_equals_numpy_on_real_sound(reference):
    result = layer_of(FRONT_ENDS["sea"])(reference["waveform"][:, np.newaxis]).numpy()
    expected = log_spectrogram(reference["waveform"], FRONT_ENDS["sea"])
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_front_end_keeps_float32_under_mixed_precision():
    layer = layer_of(FRONT_ENDS["sea"], dtype=keras.mixed_precision.Policy("mixed_float16"))
    window = chirp(1, 8000)[np.newaxis]
    result = layer(window[:, np.newaxis])
    assert result.dtype == tf.float32
    np.testing.assert_allclose(
        result.numpy(), log_spectrogram(window, FRONT_ENDS["sea"]), atol=1e-4
    )


def test_front_end_round_trips_and_passes_no_gradient():
    layer = layer_of(FRONT_ENDS["sea"])
    copy = LogMelSpectrogram.from_config(layer.get_config())
    assert copy.front_end == layer.front_end
    window = tf.Variable(np.zeros((1, 1, 8000), np.float32))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(window))
    assert tape.gradient(total, window) is None
    assert not layer.weights


def masked_net(mask, **conv):
    inputs = keras.Input((6, 6, 2))
    layer = MaskedConv2D(4, 3, name="conv", **conv)
    outputs = keras.layers.Flatten(dtype="float32")(layer(inputs))
    network = keras.Model(inputs, outputs)
    layer.set_mask(mask)
    return network, layer


@pytest.fixture
def mask():
    return np.random.default_rng(0).random((3, 3, 2, 4)) < 0.4


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.1, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "averaging": lambda: keras.optimizers.SGD(
        0.1, use_ema=True, ema_overwrite_frequency=3, weight_decay=0.1
    ),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.1, momentum=0.9, centered=True),
    "legacy": lambda: keras.optimizers.legacy.Adam(0.1),
}


@pytest.mark.parametrize("xla", [False, True], ids=["plain", "xla"])
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_stay_zero_after_every_step(optimizer, precision, xla, mask):
    policy = keras.mixed_precision.Policy(precision)
    network, layer = masked_net(mask, kernel_regularizer=keras.regularizers.l2(0.1), dtype=policy)
    opt = OPTIMIZERS[optimizer]()
    if precision == "mixed_float16":
        opt = keras.mixed_precision.LossScaleOptimizer(opt)
    network.compile(opt, "mse", jit_compile=xla)
    rng = np.random.default_rng(1)
    before = layer.kernel.numpy()
    for _ in range(4):
        network.train_on_batch(rng.normal(size=(8, 6, 6, 2)), rng.normal(size=(8, 64)))
        assert not bits(layer.kernel.numpy())[~mask].any()
    assert (layer.kernel.numpy() != before)[mask].all()


def test_zeros_survive_momentum_from_before_the_pruning(mask):
    """Momentum that built up before the mask would move the weights afterwards; the constraint
    takes it back in the same step."""
    network, layer = masked_net(np.ones(4, bool))
    network.compile(keras.optimizers.SGD(0.1, momentum=0.99), "mse")
    rng = np.random.default_rng(1)
    data = rng.normal(size=(8, 6, 6, 2)), rng.normal(size=(8, 64))
    network.train_on_batch(*data)
    layer.set_mask(mask)
    network.train_on_batch(*data)
    velocity = next(v for v in network.optimizer.variables if v.shape == layer.kernel.shape)
    assert velocity.numpy()[~mask].all()
    assert not bits(layer.kernel.numpy())[~mask].any()


def test_no_gradient_reaches_pruned_weights(mask):
    network, layer = masked_net(mask)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(np.ones((1, 6, 6, 2))) ** 2)
    gradient = tape.gradient(loss, layer.kernel).numpy()
    assert not gradient[~mask].any()
    assert gradient[mask].all()


def test_forward_pass_masks_whatever_the_kernel_holds(mask):
    network, layer = masked_net(mask)
    x = np.random.default_rng(2).normal(size=(2, 6, 6, 2))
    expected = network(x).numpy()
    layer.kernel.assign(np.where(mask, layer.kernel.numpy(), np.inf))
    np.testing.assert_array_equal(network(x).numpy(), expected)


def test_mask_of_whole_filters_and_bias():
    network, layer = masked_net(np.array([True, False, True, False]))
    layer.bias.assign([1.0, 2.0, 3.0, 4.0])
    output = network(np.ones((1, 6, 6, 2))).numpy().reshape(4, 4, 4)
    assert (output[..., 1] == 2).all()
    assert (output[..., 3] == 4).all()


def test_keras_saves_and_loads_the_mask(mask, tmp_path):
    network, layer = masked_net(mask)
    network.save(tmp_path / "net.h5")
    loaded = keras.models.load_model(tmp_path / "net.h5")
    np.testing.assert_array_equal(loaded.get_layer("conv").mask.numpy(), mask)
    assert bits(loaded.get_layer("conv").kernel.numpy()).tolist() == (
        bits(layer.kernel.numpy()).tolist()
    )


@pytest.mark.parametrize(
    "bad",
    [np.ones((3, 3, 2, 4)), np.ones((3, 3, 2, 5), bool), np.ones(3, bool), np.ones((2, 4), bool)],
    ids=["float", "shape", "filters", "partial"],
)
def test_bad_masks_are_refused_by_layer(bad):
    _, layer = masked_net(np.ones(4, bool))
    with pytest.raises(ParameterError, match=r"layer conv: mask of shape .* allowed are boolean"):
        layer.set_mask(bad)


def test_a_kernel_constraint_is_refused():
    with pytest.raises(ParameterError, match="its mask is the constraint"):
        MaskedConv2D(2, 3, kernel_constraint="non_neg")
