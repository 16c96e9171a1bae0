"""LiteRT files: what they compute, what is in them, and that their zeros are the masks'."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from l3prune import litert
from l3prune.audio import FORMS, KAPRE_0_1, FrontEnd, log_spectrogram
from l3prune.errors import L3PruneError, ParameterError
from l3prune.graph import conv_weights, masks
from l3prune.layers import LogMelSpectrogram
from l3prune.networks import create_network, inference
from l3prune.plan import plan_layerwise
from l3prune.surgery import apply_masks, strip_masks
from tests.conftest import chirp, make_pruned, make_tiny

SEA = FrontEnd(8000, 1024, 160, 64)

#: Operators that a microcontroller's runtime has and these networks need, when they are int8.
MICRO = {"QUANTIZE", "MUL", "ADD", "CONV_2D", "MAX_POOL_2D", "RESHAPE", "DEQUANTIZE"}

#: The largest distance of an embedding from the network's, over the mean length of these.
ALLOWED = {"float32": 1e-5, "float16": 0.01, "dynamic": 0.15, "int8": 0.4}


def sounds(front_end, count=8):
    """Windows with quiet bands beside loud ones, (count, 1, samples) float32."""
    rate = front_end.sample_rate
    rng = np.random.default_rng(3)
    slopes = np.arange(1, rate // 2 + 2) ** -rng.uniform(0, 1.5, (count, 1))
    noise = np.fft.irfft(slopes * np.fft.rfft(rng.normal(0, 1, (count, rate))), rate)
    noise *= 10 ** rng.uniform(-2, 0, (count, 1)) / np.abs(noise).max(axis=1, keepdims=True)
    noise[0] = chirp(1, rate)
    return noise[:, np.newaxis].astype(np.float32)


def distance(made, wanted):
    lengths = np.linalg.norm(wanted, axis=1)
    return np.linalg.norm(made - wanted, axis=1).max() / lengths.mean()


@functools.cache
def pruned():
    return make_pruned()


@functools.cache
def converted(values, waveform=False):
    windows = sounds(SEA) if values == "int8" else None
    return litert.convert(pruned(), values, windows=windows, waveform=waveform)


@pytest.mark.slow
@pytest.mark.parametrize("waveform", [False, True])
@pytest.mark.parametrize("values", litert.VALUES)
def test_a_file_computes_what_the_network_does(values, waveform):
    windows = sounds(SEA)
    inputs = windows if waveform else log_spectrogram(windows[:, 0], SEA)
    made = litert.run(converted(values, waveform), inputs)
    assert distance(made, inference(pruned())(windows)) <= ALLOWED[values]


@pytest.mark.parametrize("waveform", [False, True])
@pytest.mark.parametrize("values", litert.VALUES)
def test_inputs_and_outputs_are_float32_for_one_window(values, waveform):
    engine = litert.interpreter(converted(values, waveform))
    (given,), (made,) = engine.get_input_details(), engine.get_output_details()
    assert given["dtype"] is made["dtype"] is np.float32
    assert given["shape"].tolist() == ([1, 1, 8000] if waveform else [1, 64, 50, 1])
    assert made["shape"].tolist() == [1, 16]


@pytest.mark.slow
def test_the_types_need_less_and_less_memory():
    sizes = [len(converted(values)) for values in litert.VALUES]
    assert sizes[0] > 1.7 * sizes[1] > 1.7 * 1.4 * sizes[2]
    whole = sum(weights.kernel.size for weights in conv_weights(pruned()).values())
    assert 4 * whole < sizes[0] < 4 * whole + 20_000
    assert sizes[3] < whole + 25_000


@pytest.mark.parametrize("waveform", [False, True])
@pytest.mark.parametrize("values", litert.VALUES)
def test_operators_are_builtin_ones(values, waveform):
    kinds = {kind for kind, _ in litert.operators(converted(values, waveform))}
    assert not any(kind.startswith("CUSTOM") for kind in kinds)
    assert {"CONV_2D", "MAX_POOL_2D"} <= kinds
    assert ("RFFT2D" in kinds) == waveform
    if values == "int8" and not waveform:
        assert kinds <= MICRO


@pytest.mark.parametrize("waveform", [False, True])
@pytest.mark.parametrize("values", litert.VALUES)
def test_pruned_weights_are_exactly_zero_in_the_file(values, waveform):
    plan = masks(pruned())
    found = [each for each in litert.kernels(converted(values, waveform)) if each.stored.ndim == 4]
    kernels = conv_weights(pruned())
    assert len(found) == len(kernels) == 8
    rounded = 0
    for kernel, (name, weights) in zip(found, kernels.items(), strict=True):
        stored = kernel.values().transpose(1, 2, 3, 0)
        assert stored.shape == weights.kernel.shape
        # Magnitude pruning to 0 % keeps all; every other zero is the mask's.
        removed = ~plan[name]
        assert not stored[removed].any()
        more = (stored == 0) & ~removed
        rounded += more.sum()
        if kernel.stored.dtype == np.int8:
            assert not kernel.zero_point.any()
            assert len(kernel.scale) == weights.kernel.shape[-1]
            # What rounds to zero is below half of a step, where BatchNorm's scale is in it.
            largest = np.abs(stored).max(axis=(0, 1, 2))
            np.testing.assert_allclose(largest, 127 * kernel.scale, rtol=1e-5)
        else:
            assert not more.any()
    quantised = [kernel.stored.dtype == np.int8 for kernel in found]
    # Kernels of 72, 1152 and more weights.
    assert (
        quantised
        == {
            "float32": [False] * 8,
            "float16": [False] * 8,
            "dynamic": [False, *[True] * 7],
            "int8": [True] * 8,
        }[values]
    )
    assert rounded == 0 or values in ("dynamic", "int8")


@pytest.mark.slow
@pytest.mark.parametrize("waveform", [False, True])
def test_the_same_network_gives_the_same_bytes(waveform):
    network = make_pruned()
    first = litert.convert(network, "dynamic", waveform=waveform)
    create_network("sea64", filters=[1] * 8)  # Keras counts models
    assert litert.convert(network, "dynamic", waveform=waveform) == first


def test_the_network_is_not_changed():
    before = [weight.numpy() for weight in pruned().weights]
    litert.convert(pruned(), "dynamic")
    for weight, earlier in zip(pruned().weights, before, strict=True):
        np.testing.assert_array_equal(weight, earlier)


@pytest.mark.slow
def test_masks_are_applied_whatever_is_stored_under_them(tiny):
    plan = plan_layerwise(conv_weights(tiny), 0.5)
    masked = apply_masks(tiny, plan)
    layer = masked.get_layer("conv_5")
    layer.kernel.assign_add(tf.ones_like(layer.kernel))
    windows = sounds(SEA, 2)
    made = litert.run(litert.convert(masked, waveform=True), windows)
    np.testing.assert_allclose(made, inference(strip_masks(masked))(windows), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(made, inference(masked)(windows), rtol=1e-3, atol=1e-4)


# -- The front end --------------------------------------------------------------------------------


def front_end_file(front_end):
    """The front end alone: a network that gives its spectrogram."""
    waveform = keras.Input((1, front_end.sample_rate))
    spectrogram = LogMelSpectrogram(**dataclasses.asdict(front_end))(waveform)
    network = keras.Model(waveform, keras.layers.Activation("linear")(spectrogram))
    return litert.convert(network, waveform=True)


def hard_sounds(rate):
    """Where float32 DFTs go wrong: quiet bins beside loud ones; and edges."""
    time = np.arange(rate) / rate
    rng = np.random.default_rng(0)
    return np.array(
        [
            np.sin(2 * np.pi * 440 * time),
            0.3 * np.sin(2 * np.pi * 1000.5 * time) + 1e-5 * rng.normal(size=rate),
            1e-4 * np.sin(2 * np.pi * 3000 * time),
            rng.uniform(-1, 1, rate),
            np.zeros(rate),
            np.eye(1, rate, rate // 2)[0],
            0.01 * np.eye(1, rate, 20)[0] + np.sin(2 * np.pi * 50 * time) * (time > 0.5),
        ],
        np.float32,
    )


FRONT_ENDS = {
    "sea": SEA,
    "mel256": FrontEnd(48000, 2048, 242, 256),
    "linear": FrontEnd(48000, 512, 242, None),
    **{form: FrontEnd(48000, 2048, 242, 128, form) for form in sorted({*FORMS} - {KAPRE_0_1})},
}


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_front_end_in_the_file_equals_the_one_in_float64(name):
    front_end = FRONT_ENDS[name]
    waves = hard_sounds(front_end.sample_rate)
    made = litert.run(front_end_file(front_end), waves[:, np.newaxis])
    error = np.abs(made - log_spectrogram(waves, front_end))
    assert error.max() <= 0.001  # of 80


@pytest.mark.shared
def test_the_front_end_in_the_file_equals_the_reference(reference):
    made = litert.run(front_end_file(SEA), reference["waveform"][:, np.newaxis])
    assert np.abs(made - log_spectrogram(reference["waveform"], SEA)).max() <= 1e-4
    # Further down the reference is noise; see tests/test_audio.py.
    loud = reference["log_mel"] > -55
    assert loud.mean() > 0.9
    assert np.abs(made - reference["log_mel"])[loud].max() <= 0.01


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("values", litert.VALUES)
def test_the_published_network_on_recordings(sea64, reference, values):
    windows = reference["waveform"][:, np.newaxis]
    ranges = windows[::2] if values == "int8" else None
    content = litert.convert(sea64, values, windows=ranges, waveform=True)
    made = litert.run(content, windows[1::2])
    assert distance(made, reference["embedding"][1::2]) <= ALLOWED[values]


# -- The file -------------------------------------------------------------------------------------


def test_tensors_of_a_joined_file_are_aligned():
    from tensorflow.lite.python import schema_py_generated as schema

    content = converted("int8", True)
    model = schema.Model.GetRootAs(content, 0)
    places = []
    for number in range(model.BuffersLength()):
        table = model.Buffers(number)._tab
        field = table.Offset(4)
        if field:
            places.append(table.Vector(field) % 16)
    assert len(places) > 20
    assert set(places) == {0}


@pytest.mark.slow
def test_windows_may_be_spectrograms_and_any_iterable():
    windows = sounds(SEA)
    spectrograms = log_spectrogram(windows[:, 0], SEA)
    made = litert.convert(pruned(), "int8", windows=iter(spectrograms))
    np.testing.assert_array_equal(
        litert.run(made, spectrograms), litert.run(converted("int8"), spectrograms)
    )


@pytest.mark.slow
def test_a_network_of_spectrograms_gets_the_front_end_that_it_was_built_for():
    network = create_network("sea64", filters=[2] * 8, input="log_mel", front_end="kapre-0.3")
    windows = sounds(SEA, 2)
    wanted = inference(network)(log_spectrogram(windows[:, 0], litert.front_end_of(network)))
    made = litert.run(litert.convert(network, waveform=True), windows)
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def test_several_inputs_at_once():
    content = litert.convert(make_tiny(), batch=3)
    assert litert.interpreter(content).get_input_details()[0]["shape"].tolist() == [3, 64, 50, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": "int4"}, "values='int4' is unknown; allowed: float32, float16, dynamic, int8"),
        ({"values": "int8"}, "values='int8' needs windows of real audio"),
        ({"windows": np.zeros((1, 1, 8000))}, "values='float32' takes no windows"),
        ({"values": "int8", "windows": []}, "windows is empty"),
        (
            {"values": "int8", "windows": np.zeros((2, 8000))},
            r"windows of shape \(8000,\) given; wanted are \(1, 8000\) or \(64, 50, 1\)",
        ),
        ({"batch": 0}, "batch=0 is not a whole number from 1 on"),
        ({"batch": 2, "waveform": True}, "batch=2: files with a front end take one waveform"),
    ],
)
def test_wrong_arguments(tiny, arguments, message):
    with pytest.raises(ParameterError, match=message):
        litert.convert(tiny, **arguments)


def test_a_network_without_front_end_gets_none():
    inputs = keras.Input((8, 8, 1))
    network = keras.Model(inputs, keras.layers.Flatten()(inputs))
    with pytest.raises(ParameterError, match="was not made by create_network"):
        litert.convert(network, waveform=True)
    assert litert.run(litert.convert(network), np.ones((1, 8, 8, 1))).tolist() == [[1.0] * 64]


def test_a_layer_without_builtin_operator_is_refused():
    inputs = keras.Input((4, 4, 1))
    outputs = keras.layers.Lambda(lambda maps: tf.math.igamma(tf.abs(maps) + 1.0, maps))(inputs)
    with pytest.raises(L3PruneError, match=r"no builtin operator.*Igamma.*SavedModel"):
        litert.convert(keras.Model(inputs, outputs))
