"""The sparse engine against TensorFlow, and against values computed by hand."""

import os
import platform
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune.audio import FrontEnd, log_spectrogram
from l3prune.errors import ParameterError
from l3prune.filterwise import plan_filterwise
from l3prune.graph import conv_weights
from l3prune.networks import create_network, inference
from l3prune.networks.l3 import depth_student
from l3prune.plan import plan_layerwise
from l3prune.sparse import SparseModel, best_lanes, program_of
from l3prune.sparse import model as running
from l3prune.sparse import plan as planning
from l3prune.sparse.program import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    GlobalPooling,
    Pooling,
    Program,
)
from l3prune.surgery import apply_masks, remove_filters

layers = keras.layers

#: Percent of each layer of EdgeL3 that is zero.
EDGEL3 = (0, 85, 85, 85, 75, 95, 98, 98)


def randomize(network, seed=0, sparsities=()):
    """Weights and statistics that are not trivial; convolutions lose their smallest weights."""
    rng = np.random.default_rng(seed)
    amounts = iter(sparsities)
    for layer in network.layers:
        new = []
        for weight in layer.weights:
            short = weight.name.split("/")[-1]
            if "mask" in short:
                new.append(weight.numpy())
            elif "kernel" in short:
                kernel = rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape)
                amount = next(amounts, 0) / 100
                if amount:
                    least = np.quantile(np.abs(kernel), amount)
                    kernel[np.abs(kernel) <= least] = 0
                    kernel /= np.sqrt(max(1 - amount, 0.01))
                new.append(kernel)
            elif "variance" in short or "gamma" in short:
                new.append(rng.uniform(0.5, 1.5, weight.shape))
            else:
                new.append(rng.normal(0, 0.2, weight.shape))
        layer.set_weights(new)
    return network


def noise(network, count=2, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (count, *network.input_shape[1:])).astype(np.float32)


def relative_error(given, wanted):
    assert given.shape == wanted.shape
    return np.abs(given - wanted).max() / max(np.abs(wanted).max(), 1e-30)


def check_equal(network, tolerance=1e-5, count=2, **options):
    batch = noise(network, count)
    given = SparseModel.from_network(network, **options)(batch)
    assert given.dtype == np.float32
    assert relative_error(given, network(batch, training=False).numpy()) <= tolerance


def convolution(name="conv", shape=(3, 3, 1, 1), weights=0.0, bias=0.0, **options):
    kernel = np.zeros(shape, np.float32)
    kernel[...] = weights
    return Convolution(name, kernel, np.full(shape[3], bias, np.float32), **options)


LANES = pytest.mark.parametrize("lanes", [16, 8, 4])


# By hand


@LANES
def test_convolution_by_hand(lanes):
    # One tap, up and left of the middle: the map moves down and right, the bias comes to all.
    kernel = np.zeros((3, 3, 1, 1))
    kernel[0, 0] = 2
    program = Program("one", (2, 3, 1), (convolution(weights=kernel, bias=-3),))
    given = SparseModel(program, lanes=lanes)(np.arange(1, 7).reshape(1, 2, 3, 1))
    np.testing.assert_array_equal(given[0, :, :, 0], [[-3, -3, -3], [-3, -1, 1]])


def test_stride_and_padding_by_hand():
    # "same" with stride 2 on 4 columns: the one zero is at the end. 1+2+3, 3+4+0.
    step = convolution(shape=(1, 3, 1, 1), weights=1, strides=(1, 2))
    given = SparseModel(Program("one", (1, 4, 1), (step,)))(np.array([[[[1], [2], [3], [4]]]]))
    np.testing.assert_array_equal(given.ravel(), [6, 7])


def test_average_pooling_counts_only_what_is_inside():
    step = Pooling("pool", "average", (2, 2), (2, 2), "same")
    given = SparseModel(Program("one", (1, 3, 1), (step,)))(np.array([[[[1], [3], [8]]]]))
    np.testing.assert_array_equal(given.ravel(), [2, 8])


def test_flatten_and_dense_by_hand():
    steps = (
        Flatten("flatten"),
        Dense("dense", np.array([[1], [10], [100], [1000]], np.float32), np.ones(1, np.float32)),
    )
    # Channels last: row 0 has the channels 1 and 2.
    given = SparseModel(Program("one", (2, 1, 2), steps))(np.array([[[[1, 2]], [[3, 4]]]]))
    np.testing.assert_array_equal(given, [[4322]])


@LANES
def test_dense_layers_of_a_single_place(lanes):
    """In front of convolutions and behind them, where maps are in lanes."""
    rng = np.random.default_rng(0)

    def arrays(*shape):
        return rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[-1:])

    kernels = [arrays(4, 6), arrays(3, 3, 6, 5), arrays(5, 3), arrays(3, 7), arrays(1, 1, 7, 2)]
    steps, batch = [], rng.normal(size=(3, 1, 1, 4))
    wanted = batch
    for number, (kernel, bias) in enumerate(kernels):
        kind = Dense if kernel.ndim == 2 else Convolution
        steps.append(kind(f"step_{number}", kernel, bias.astype(np.float32)))
        # Of a single place only the middle of a kernel is used.
        middle = kernel if kernel.ndim == 2 else kernel[kernel.shape[0] // 2, kernel.shape[1] // 2]
        wanted = wanted @ middle + bias
    given = SparseModel(Program("one", (1, 1, 4), tuple(steps)), lanes=lanes)(batch)
    assert relative_error(given, wanted) <= 1e-5


@LANES
def test_all_nine_taps_reach_over_the_lanes_edges(lanes):
    """Rows beside each other in different lanes, and the rims, are where a layout goes wrong."""
    rows = 2 * lanes + 3
    values = np.arange(rows * 5, dtype=np.float64).reshape(rows, 5) ** 2 % 97
    for tap in range(9):
        kernel = np.zeros((3, 3, 1, 1))
        kernel[tap // 3, tap % 3] = 1
        program = Program("one", (rows, 5, 1), (convolution(weights=kernel),))
        given = SparseModel(program, lanes=lanes)(values.reshape(1, rows, 5, 1))
        around = np.pad(values, 1)
        wanted = around[tap // 3 :, tap % 3 :][:rows, :5]
        np.testing.assert_array_equal(given[0, :, :, 0], wanted)


# Whole networks


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sea64", {"input": "log_mel"}),
        ("sea64", {"input": "log_mel", "include_layers": [1, 3, 4, 5, 6, 7]}),
        ("sea64", {"input": "log_mel", "from_convlayer": 5}),
        ("mel128", {"input": "log_mel", "input_batch_norm": False, "filters": [4] * 8}),
        ("mel256", {"input": "log_mel", "embedding_size": 96, "filters": [3, 5] * 3 + [7, 8]}),
        ("linear", {"input": "log_mel", "embedding_point": "activated", "filters": [3] * 8}),
        ("vision", {"filters": [4] * 8}),
    ],
)
@LANES
def test_networks(name, arguments, lanes):
    network = randomize(create_network(name, **arguments), 3, (50, 80, 90, 90, 95, 95, 95, 90))
    check_equal(network, lanes=lanes)


def test_edgel3():
    """The whole mel256 network with EdgeL3's list."""
    network = randomize(create_network("mel256", input="log_mel"), 0, EDGEL3)
    batch = noise(network, 1)
    wanted = inference(network)(batch)
    for threads in (1, 2):
        given = SparseModel.from_network(network, threads=threads)(batch)
        assert relative_error(given, wanted) <= 1e-5


def test_masked_network():
    network = create_network("sea64", input="log_mel")
    masked = apply_masks(network, plan_layerwise(conv_weights(network), 0.9))
    # What a mask hides is no weight, whatever is stored there.
    layer = masked.get_layer("conv_3")
    kernel, bias, mask = layer.get_weights()
    layer.set_weights([np.where(mask, kernel, 5), bias, mask])
    check_equal(masked)
    step = next(each for each in program_of(masked).steps if each.name == "conv_3")
    assert np.count_nonzero(step.kernel) == mask.sum()


def test_filterwise_network():
    network = randomize(create_network("sea64", input="log_mel"))
    scores = {
        name: np.abs(weights.kernel).sum(axis=(0, 1, 2))
        for name, weights in conv_weights(network).items()
    }
    check_equal(remove_filters(network, plan_filterwise(scores, ratio=0.6)))


def test_depth_student():
    network = randomize(create_network("sea64", input="log_mel"))
    check_equal(depth_student(network, from_convlayer=6))


def test_waveforms(tiny):
    windows = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 1, 8000)).astype(np.float32)
    model = SparseModel.from_network(tiny)
    assert (model.input_shape, model.output_shape) == ((8000,), (4,))
    wanted = tiny(windows, training=False).numpy()
    assert relative_error(model(windows), wanted) <= 1e-4
    # The front end is the very one of `audio`.
    behind = SparseModel(
        Program("behind", model.program.shape, model.program.steps, None), threads=1
    )
    spectrogram = log_spectrogram(windows[:, 0], model.program.front_end)
    np.testing.assert_array_equal(model(windows[:, 0]), behind(spectrogram))


@pytest.mark.parametrize(
    ("values", "tolerance"), [("float32", 0), ("float16", 2e-3), ("int8", 3e-2)]
)
def test_saved_and_loaded(tiny, tmp_path, values, tolerance):
    model = SparseModel.from_network(tiny)
    losses = model.save(tmp_path / "tiny.l3s", values)
    assert losses.keys() == {step.name for step in model.program.steps if hasattr(step, "kernel")}
    loaded = SparseModel.load(tmp_path / "tiny.l3s", threads=1)
    assert loaded.threads == 1
    x = noise(tiny)
    assert relative_error(loaded(x), model(x)) <= tolerance
    assert loaded.input_shape == model.input_shape


@pytest.mark.shared
def test_published_network(sea64, reference):
    model = SparseModel.from_network(sea64)
    assert relative_error(model(reference["waveform"]), reference["embedding"]) <= 1e-4
    behind = Program("behind", model.program.shape, model.program.steps)
    wanted = inference(sea64)(reference["waveform"][:, np.newaxis])
    assert relative_error(model(reference["waveform"]), wanted) <= 1e-4
    assert relative_error(SparseModel(behind)(reference["log_mel"]), reference["embedding"]) <= 1e-5


# Any network


@st.composite
def networks(draw):
    """A random sequential network with random weights, some of them zero."""
    sizes = st.integers(1, 5)
    # Keras draws random weights by Python's generator, which belongs to hypothesis here.
    zeros = {"kernel_initializer": "zeros"}
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 30))
    inputs = maps = keras.Input((rows, columns, draw(st.integers(1, 5))))
    kinds = st.sampled_from(["3x3", "3x3", "3x3", "conv", "norm", "relu", "pool", "half", "dense"])
    for kind in draw(st.lists(kinds, min_size=1, max_size=7)):
        size = [draw(sizes), draw(sizes)]
        padding = draw(st.sampled_from(["same", "valid"]))
        if any(each > known for each, known in zip(size, maps.shape[1:3], strict=True)):
            padding = "same"
        strides = draw(st.sampled_from([1, 2, (1, 2), (2, 1)]))
        filters = draw(st.integers(1, 9))
        if kind == "3x3":
            maps = layers.Conv2D(
                filters, draw(st.sampled_from([3, 3, (3, 1), 1])), padding="same", **zeros
            )(maps)
        elif kind == "conv":
            activation = draw(st.sampled_from(["relu", "linear"]))
            maps = layers.Conv2D(
                filters,
                size,
                strides,
                padding,
                activation=activation,
                use_bias=draw(st.booleans()),
                **zeros,
            )(maps)
        elif kind == "norm":
            scale, center = draw(st.booleans()), draw(st.booleans())
            maps = layers.BatchNormalization(scale=scale, center=center)(maps)
        elif kind == "relu":
            maps = layers.ReLU()(maps)
        elif kind == "pool":
            pooling = draw(st.sampled_from([layers.MaxPooling2D, layers.AveragePooling2D]))
            maps = pooling(size, draw(st.sampled_from([None, 1, 2])), padding)(maps)
        elif kind == "dense":  # of a single place, without Flatten
            if max(maps.shape[1:3]) > 1:
                maps = layers.AveragePooling2D(maps.shape[1:3])(maps)
            maps = layers.Dense(filters, draw(st.sampled_from(["relu", None])), **zeros)(maps)
        elif min(maps.shape[1:3]) > 1:
            maps = layers.MaxPooling2D(2)(maps)
    end = draw(st.sampled_from(["maps", "flatten", "average", "maximum", "dense"]))
    if end in ("flatten", "dense"):
        maps = layers.Flatten()(maps)
    if end == "average":
        maps = layers.GlobalAveragePooling2D()(maps)
    if end == "maximum":
        maps = layers.GlobalMaxPooling2D()(maps)
    if end == "dense":
        maps = layers.BatchNormalization()(layers.Dense(3, activation="relu", **zeros)(maps))
    amounts = draw(st.lists(st.sampled_from([0, 30, 60, 85, 95, 99, 100]), max_size=8))
    return randomize(keras.Model(inputs, maps), draw(st.integers(0, 99)), amounts)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks(), st.integers(1, 5), st.sampled_from([16, 8, 4]), st.integers(1, 3))
def test_any_network(network, count, lanes, threads):
    check_equal(network, tolerance=1e-4, count=count, lanes=lanes, threads=threads)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 70)),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
    st.sampled_from([16, 8, 4]),
    st.booleans(),
)
def test_fast_kernel_against_the_simple_one(shape, filters, sparsity, lanes, pooled):
    rng = np.random.default_rng(filters)

    def step(name, channels):
        kernel = rng.normal(0, 1, (3, 3, channels, filters))
        kernel[rng.random(kernel.shape) < sparsity] = 0
        bias = rng.normal(0, 1, filters)
        return Convolution(name, *(each.astype(np.float32) for each in (kernel, bias)), relu=True)

    scale = rng.normal(0, 1, (2, filters)).astype(np.float32)
    steps = [step("a", shape[2]), step("b", filters), Affine("affine", *scale)]
    if pooled and min(shape[:2]) > 1:
        steps.append(Pooling("pool", "max", (2, 2), (2, 2)))
    program = Program("two", shape, (*steps, step("c", filters)))
    batch = rng.normal(0, 1, (1, *shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "FAST_KERNELS", ())
        simple = SparseModel(program, lanes=lanes)
    assert not any(each.tiled for each in simple._schedule.operations)
    fast = SparseModel(program, lanes=lanes)
    assert sum(each.tiled for each in fast._schedule.operations) == 3
    assert relative_error(fast(batch), simple(batch)) <= 1e-5


# Empty layers, NaN, infinity


@pytest.mark.parametrize("rows", [16, 5])
def test_empty_filters_give_their_bias(rows):
    kernel = np.zeros((3, 3, 2, 3), np.float32)
    kernel[1, 1, 0, 1] = 1
    steps = (
        Convolution("conv", kernel, np.array([0.5, 0, -1], np.float32), relu=True),
        convolution("empty", (3, 3, 3, 2), 0, 7),
    )
    batch = np.ones((1, rows, 4, 2))
    first = SparseModel(Program("one", (rows, 4, 2), steps[:1]))(batch)
    np.testing.assert_array_equal(first[0], np.broadcast_to([0.5, 1, 0], (rows, 4, 3)))
    both = SparseModel(Program("two", (rows, 4, 2), steps))(batch)
    np.testing.assert_array_equal(both, np.full((1, rows, 4, 2), 7))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("strides", [1, 2])
def test_not_finite_values_go_where_they_go_in_tensorflow(value, strides):
    """Zero times infinity is NaN, for pruned weights as well."""
    inputs = keras.Input((20, 14, 2))
    maps = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    if not np.isnan(value):  # pooling passes over NaN
        maps = layers.MaxPooling2D(2)(maps)
    maps = layers.Conv2D(3, 3, strides, padding="same")(maps)
    network = randomize(keras.Model(inputs, maps), 0, (80, 80))
    batch = noise(network, 3)
    batch[1, 9, 6, 1] = value
    wanted = network(batch, training=False).numpy()
    assert 0 < np.isnan(wanted).mean() < 0.5
    model = SparseModel.from_network(network)
    np.testing.assert_allclose(model(batch), wanted, rtol=1e-4, atol=1e-5)
    # And nothing stays behind.
    batch[1] = 0
    assert np.isfinite(model(batch)).all()


def test_overflow_inside_is_as_in_tensorflow():
    inputs = keras.Input((18, 6, 1))
    maps = layers.Conv2D(2, 3, padding="same")(layers.Conv2D(2, 1)(inputs))
    network = keras.Model(inputs, layers.GlobalMaxPooling2D()(maps))
    first, second = (np.zeros(shape, np.float32) for shape in ((1, 1, 1, 2), (3, 3, 2, 2)))
    first[...] = 1e30
    second[1, 1] = [[1, 0], [0, 1]]
    network.layers[1].set_weights([first, np.zeros(2)])
    network.layers[2].set_weights([second, np.zeros(2)])
    batch = np.full((1, 18, 6, 1), 1e20, np.float32)
    wanted = network(batch).numpy()
    assert np.isnan(wanted).all()
    np.testing.assert_array_equal(SparseModel.from_network(network)(batch), wanted)


def test_pooling_of_nan_is_as_in_tensorflow():
    values = np.array([np.nan, 1, np.nan, np.nan, 3, 4], np.float32).reshape(1, 1, 6, 1)
    for layer in (
        layers.MaxPooling2D((1, 2)),
        layers.AveragePooling2D((1, 2)),
        layers.GlobalMaxPooling2D(),
        layers.GlobalAveragePooling2D(),
    ):
        inputs = keras.Input((1, 6, 1))
        network = keras.Model(inputs, layer(inputs))
        given = SparseModel.from_network(network)(values)
        np.testing.assert_array_equal(given, network(values).numpy())


# Batches and threads


def test_batches(tiny):
    model = SparseModel(program_of(tiny), threads=2)
    rng = np.random.default_rng(0)
    windows = rng.uniform(-1, 1, (5, 8000)).astype(np.float32)
    singly = np.concatenate([model(window[np.newaxis]) for window in windows])
    np.testing.assert_array_equal(model(windows), singly)
    np.testing.assert_array_equal(model.predict(windows), singly)
    np.testing.assert_array_equal(model.predict([windows[:2], windows[2:]]), singly)
    assert model(windows[:0]).shape == model.predict([]).shape == (0, 4)


def test_threads_give_the_same_bits():
    network = randomize(create_network("sea64", input="log_mel"), 0, EDGEL3)
    model = SparseModel.from_network(network, threads=1)
    batch = noise(network, 3)
    alone = model(batch)
    for threads in (2, 5):
        model.threads = threads
        np.testing.assert_array_equal(model(batch), alone)


def test_calls_at_once():
    """Threads of the caller's share a model and no memory."""
    network = randomize(create_network("sea64", input="log_mel"), 0, EDGEL3)
    model = SparseModel.from_network(network, threads=2)
    batches = [noise(network, 1 + number % 3, number) for number in range(6)]
    wanted = [model(batch) for batch in batches]
    wrong = []

    def work(number):
        for _ in range(10):
            if not np.array_equal(model(batches[number]), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_after_fork():
    code = """
import os, numpy as np
from l3prune.sparse import SparseModel
from l3prune.sparse.model import _helpers
from l3prune.sparse.program import Program, GlobalPooling
model = SparseModel(Program("one", (4, 4, 2), (GlobalPooling("pool", "max"),)), threads=3)
model(np.ones((1, 4, 4, 2)))
assert _helpers.cache_info().currsize == 1
child = os.fork()
if not child:
    # The parent's threads are not here; new ones are made.
    fresh = _helpers.cache_info().currsize == 0
    os._exit(0 if fresh and model(np.ones((1, 4, 4, 2))).tolist() == [[1, 1]] else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_profile():
    network = randomize(create_network("sea64", input="log_mel"), 0, EDGEL3)
    rows = SparseModel.from_network(network).profile(rounds=2)
    assert [row.name for row in rows][:2] == ["batch_normalization_1", "conv_1"]
    assert sum(row.share for row in rows) == pytest.approx(1)
    # 9 weights of 1 channel, 32 filters, 64 x 50 places, none pruned.
    assert rows[1].macs == 9 * 32 * 64 * 50
    assert all(row.milliseconds > 0 for row in rows)
    assert rows[1].gflops == pytest.approx(2e-6 * rows[1].macs / rows[1].milliseconds)
    with pytest.raises(ParameterError, match="rounds=0"):
        SparseModel.from_network(network).profile(rounds=0)


def test_no_tensorflow():
    code = """
import sys, numpy as np
from l3prune.sparse import SparseModel
from l3prune.sparse.program import Program, GlobalPooling
SparseModel(Program("one", (4, 4, 2), (GlobalPooling("pool", "max"),)))(np.ones((1, 4, 4, 2)))
assert not {"tensorflow", "tf_keras", "keras"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def cpu_flags():
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


@pytest.mark.skipif(not cpu_flags(), reason="the system does not tell the CPU's flags")
@pytest.mark.skipif("NUMBA_CPU_NAME" in os.environ, reason="numba is told another CPU")
def test_lanes_of_this_cpu():
    flags = cpu_flags()
    wanted = 16 if "avx512f" in flags else 8 if {"avx2", "fma"} <= flags else 4
    assert best_lanes() == wanted
    assert SparseModel(Program("none", (1, 1, 1), ())).lanes == wanted


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the CPUs' names are x86's")
@pytest.mark.parametrize(
    ("name", "features", "lanes"),
    [("haswell", "+avx2,+fma", 8), ("nehalem", "", 4), ("skylake-avx512", "+avx512f", 16)],
)
def test_lanes_of_other_cpus(name, features, lanes):
    code = "from l3prune.sparse import best_lanes; print(best_lanes())"
    variables = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=120,
        stdout=subprocess.PIPE,
        env=os.environ | variables,
    )
    assert int(ended.stdout) == lanes


@pytest.fixture
def large():
    """A model of one thread that computes for some milliseconds."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 16, 32)).astype(np.float32)
    step = Convolution("conv", kernel, np.zeros(32, np.float32))
    return SparseModel(Program("large", (128, 128, 16), (step,)), threads=1, lanes=4)


def test_other_threads_run_while_the_kernels_do(large):
    """Python switches threads by itself only after an hour here: the kernel must let go."""
    large(np.zeros((1, 128, 128, 16)))
    count, done = [0], threading.Event()

    def work():
        while not done.is_set():
            count[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    try:
        sys.setswitchinterval(3600)
        thread.start()
        with large._memory() as memory:
            for _ in range(500):
                before = count[0]
                running._run(large._schedule, memory, 1)
                moved = count[0] > before
                if moved:
                    break
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()
    assert moved


def test_kernels_are_found_on_disk(large):
    large(np.zeros((1, 128, 128, 16)))  # compiled, and kept, by now
    code = """
import numpy as np
from l3prune.sparse import SparseModel, kernels
from l3prune.sparse.program import Program
SparseModel(Program("none", (2, 2, 1), ()), threads=1, lanes=4)(np.ones((1, 2, 2, 1)))
stats = kernels.run.stats
assert sum(stats.cache_hits.values()) == 1 and not stats.cache_misses, stats
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Refusals


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layers.LeakyReLU(name="mine"), "layer mine .* is of kind LeakyReLU"),
        (layers.ReLU(max_value=6, name="mine"), "layer mine: max_value=6"),
        (layers.Conv2D(2, 3, dilation_rate=2, name="mine"), "layer mine: dilation_rate"),
        (layers.Conv2D(2, 3, groups=2, name="mine"), "layer mine: groups=2"),
        (layers.Conv2D(2, 3, activation="tanh", name="mine"), "layer mine: activation 'tanh'"),
        (layers.Dense(2, name="mine"), "layer mine: it takes a vector"),
        (layers.BatchNormalization(axis=1, name="mine"), "layer mine: axis=1"),
        (layers.GlobalMaxPooling2D(keepdims=True, name="mine"), "layer mine: keepdims"),
    ],
)
def test_unknown_layers(layer, message):
    inputs = keras.Input((8, 8, 2))
    with pytest.raises(ParameterError, match=message):
        SparseModel.from_network(keras.Model(inputs, layer(inputs)))


def test_networks_that_are_not_sequential():
    inputs = keras.Input((8, 8, 2))
    sides = [layers.ReLU(name=name)(inputs) for name in ("left", "right")]
    with pytest.raises(ParameterError, match="several inputs"):
        program_of(keras.Model(inputs, layers.Add(name="sum")(sides)))
    with pytest.raises(ParameterError, match="is not sequential"):
        program_of(keras.Model(inputs, sides))
    twice = layers.ReLU(name="twice")
    with pytest.raises(ParameterError, match=r"layer twice .* called several times"):
        program_of(keras.Model(inputs, twice(twice(inputs))))
    anysize = keras.Input((None, 8, 2))
    with pytest.raises(ParameterError, match="of known sizes"):
        program_of(keras.Model(anysize, layers.ReLU()(anysize)))
    with pytest.raises(ParameterError, match="no Keras network"):
        program_of("conv.h5")


def test_sequential_class():
    network = keras.Sequential(
        [keras.Input((9, 7, 2)), layers.Conv2D(3, 3), layers.Dropout(0.5), layers.ReLU()]
    )
    check_equal(randomize(network))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([convolution(shape=(3, 3, 4, 2))], r"layer conv: kernel is float32 \(3, 3, 4, 2\), not"),
        ([convolution(shape=(9, 9, 2, 1), padding="valid")], "do not fit into maps"),
        ([convolution(shape=(3, 3, 2, 1), padding="full")], "padding 'full'"),
        ([convolution(shape=(3, 3, 2, 1), strides=(0, 1))], r"layer conv: .* is \(0, 1\); allowed"),
        ([convolution(shape=(3, 3, 2, 1), strides=(1.5, 1))], r"layer conv: .* is \(1\.5, 1\)"),
        ([Pooling("pool", "max", ("2", 2), (2, 2))], "layer pool: .* whole numbers 1 to 32768"),
        ([Pooling("pool", "max", (2, 2), None)], "layer pool: .* whole numbers 1 to 32768"),
        ([convolution(shape=(3, 3, 2, 0))], "layer conv: .* without any weight"),
        (
            [GlobalPooling("all", "max"), Dense("dense", *np.ones((2, 2, 0), np.float32))],
            "layer dense: .* without any weight",
        ),
        ([Pooling("pool", "median", (2, 2), (2, 2))], "pooling 'median'"),
        (
            [GlobalPooling("all", "max"), GlobalPooling("again", "max")],
            "layer again: it takes rows",
        ),
        ([Affine("norm", np.ones(3, np.float32), np.ones(3, np.float32))], "layer norm: scale"),
        ([Affine("norm", np.ones(2), np.ones(2))], "float64"),
        ([Flatten("flat"), Dense("dense", *np.ones((2, 1, 1), np.float32))], "layer dense"),
        (["nonsense"], "no step"),
    ],
)
def test_programs_that_do_not_fit(steps, message):
    with pytest.raises(ParameterError, match=message):
        SparseModel(Program("bad", (6, 6, 2), tuple(steps)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2**15, 2**15, 2), r"network bad: the input has \d+ values; allowed are 134217728"),
        ((2**16 + 1, 4, 1), "has 65537 rows and 4 columns; allowed are 65536 each"),
        ((4, 2**17, 1), "has 4 rows and 131072 columns; allowed are 65536 each"),
        ((None, 4, 2), r"shape is \(None, 4, 2\); allowed are 3 whole numbers"),
        ((4.5, 4, 2), "shape is"),
        ((4, 4), "shape is"),
        (None, r"shape is \(None,\)"),
    ],
)
def test_shapes_that_cannot_be(shape, message):
    with pytest.raises(ParameterError, match=message):
        SparseModel(Program("bad", shape, ()))


@pytest.mark.parametrize(
    ("front_end", "message"),
    [
        (
            FrontEnd(8000, 2**24, 1, 8),
            "DFT takes 16777216 samples; allowed are 64000",
        ),
        (FrontEnd(48000, 2**16, 1, 8), r"all frames together, has \d+ values"),
        (FrontEnd(8000, 1024, 200, 64), "the network takes"),
    ],
)
def test_front_ends_that_would_take_gigabytes(front_end, message):
    steps = (GlobalPooling("pool", "max"),)
    with pytest.raises(ParameterError, match=message):
        SparseModel(Program("bad", (64, 50, 1), steps, front_end))


def test_a_schedule_takes_no_memory_for_rows():
    """Hundreds of steps, each with another number of rows, of many."""
    steps = []
    for number in range(300):
        steps.append(convolution(f"conv_{number}", (1, 1, 1, 1), 1.0))
        steps.append(Pooling(f"pool_{number}", "max", (2, 1), (1, 1)))
    program = Program("long", (2**16, 1, 1), tuple(steps))
    tracemalloc.start()
    try:
        model = SparseModel(program)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(model._schedule.steps) > 500
    assert peak < 5e6


def test_bad_arguments():
    model = SparseModel(Program("none", (2, 3, 1), ()))
    for batch, message in (
        (np.zeros((1, 3, 2, 1)), r"takes numbers of shape \(n, 2, 3, 1\)"),
        (np.zeros((2, 3, 1)), "takes numbers"),
        (np.zeros((1, 2, 3, 1), complex), "complex128"),
        (np.zeros((1, 2, 3, 1), str), "takes numbers"),
        ([[1], [2, 3]], "no array"),
    ):
        with pytest.raises(ParameterError, match=message):
            model(batch)
    with pytest.raises(ParameterError, match="threads=0"):
        model.threads = 0
    with pytest.raises(ParameterError, match="threads='2'"):
        SparseModel(model.program, threads="2")
    with pytest.raises(ParameterError, match="lanes=5"):
        SparseModel(model.program, lanes=5)
