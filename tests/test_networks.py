import json

import numpy as np
import pytest
import tf_keras as keras

from l3prune import graph, surgery
from l3prune.allocation import EDGEL3_LISTS
from l3prune.criteria import ConvWeights
from l3prune.errors import L3PruneError, ParameterError
from l3prune.networks import avc, cnn14, create_network, inference, list_networks, network_config
from l3prune.networks.l3 import (
    CONV_NAMES,
    SPECS,
    depth_student,
    embedding_point,
    front_end,
    layer_numbers,
    take_weights,
)
from l3prune.plan import PruningPlan, plan_layerwise
from l3prune.weights import fingerprint, load_network, save_network

#: Per-layer sparsity in percent, the paper's reduction in percent, and the weights that stay by
#: hand: n - 1 - round(s (n - 1)) of each kernel, all n where s = 0.
TABLE_II = [
    ([0, 30, 40, 50, 30, 50, 50, 60], 53.49, 2179233),
    ([0, 40, 50, 60, 40, 60, 60, 70], 63.48, 1711063),
    ([0, 40, 50, 60, 40, 70, 70, 80], 72.29, 1298186),
    ([0, 60, 60, 70, 50, 70, 70, 80], 73.55, 1239204),
    ([0, 70, 70, 75, 60, 80, 80, 85], 80.87, 896369),
    ([0, 80, 80, 85, 40, 85, 85, 95], 87.08, 605144),
    ([30, 85, 85, 90, 60, 90, 90, 95], 90.51, 444612),
    ([0, 85, 85, 85, 75, 95, 98, 98], 95.45, 213280),
    ([0, 93, 94, 96, 97, 95.97, 98, 97], 97.00, 140467),
    ([0, 95, 96, 97, 97, 98, 98.65, 98], 98.00, 93546),
    ([0, 94, 96, 99, 99, 99, 99, 99.2], 99.00, 46729),
]

#: Arguments of small networks, other than those with two filters in each of eight convolutions.
_SMALL_CNN14 = {"filters": [2] * 12, "units": 3, "classes": 4, "samples": 9920}
_CLIP = {"seconds": 1, "bands": 64, "channels": 1, "classes": 3}
SMALL = {
    **dict.fromkeys(cnn14.NETWORKS, _SMALL_CNN14),
    "vgg16": {**_CLIP, "filters": [2] * 13},
    "resnet50": {**_CLIP, "filters": [2] * 53},
    "densenet121": {**_CLIP, "filters": [1] * 120},
    "cp_resnet": {**_CLIP, "width": 2},
    "dcase2021": {"filters": [2, 2, 3], "dense_units": 4, "classes": 3},
    "fat2019": {"filters": [2] * 8, "units": 3, "classes": 4},
}

KERNELS = {
    "conv_1": (3, 3, 1, 64),
    "conv_2": (3, 3, 64, 64),
    "conv_3": (3, 3, 64, 128),
    "conv_4": (3, 3, 128, 128),
    "conv_5": (3, 3, 128, 256),
    "conv_6": (3, 3, 256, 256),
    "conv_7": (3, 3, 256, 512),
    "audio_embedding_layer": (3, 3, 512, 512),
}


@pytest.mark.parametrize(
    ("name", "trainable"),
    [
        ("mel256", 4_688_066),
        ("mel128", 4_688_066),
        ("linear", 4_688_066),
        ("sea512", 4_688_066),
        ("sea256", 1_173_602),
        ("sea128", 583_010),
        ("sea64", 398_306),
    ],
)
def test_published_parameter_counts(name, trainable):
    network = create_network(name, embedding_point="activated")
    counted = sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
    assert counted == trainable
    filters = SPECS[name].filters
    # One input map and every filter have a moving mean and variance.
    assert network.count_params() == trainable + 2 * (1 + sum(filters))
    if name == "sea64":
        assert network.count_params() == 399_460
    if name == "mel256":
        assert network.count_params() == 4_691_908


def test_kernels_and_biases_of_the_paper():
    network = create_network("mel256")
    assert graph.count_kernel_weights(network)[0] == 4_682_304
    weights = graph.conv_weights(network).values()
    assert sum(w.kernel.size + w.bias.size for w in weights) == 4_684_224
    assert list(graph.conv_weights(network)) == [
        *(f"conv_{i}" for i in range(1, 8)),
        "audio_embedding_layer",
    ]


def test_macs_of_the_paper():
    by_hand = 9 * (
        256 * 199 * (64 + 64 * 64)
        + 128 * 99 * (64 * 128 + 128 * 128)
        + 64 * 49 * (128 * 256 + 256 * 256)
        + 32 * 24 * (256 * 512 + 512 * 512)
    )
    assert graph.count_macs(create_network("mel256"))[0] == by_hand


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=[pytest.mark.slow] * (each == "densenet121"))
        for each in list_networks()
        if each not in avc.NETWORKS
    ],
)
def test_every_network_builds_saves_and_reloads(name, tmp_path):
    network = create_network(name, **SMALL.get(name, {"filters": [2] * 8}))
    path = tmp_path / "net.h5"
    save_network(network, path)
    loaded = load_network(path)
    assert network_config(loaded) == network_config(network)
    x = np.random.default_rng(0).uniform(-1, 1, (2, *network.input_shape[1:])).astype(np.float32)
    np.testing.assert_array_equal(inference(loaded)(x), inference(network)(x))


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("mel256", (256, 199, 1)),
        ("mel128", (128, 199, 1)),
        ("linear", (257, 197, 1)),
        ("sea64", (64, 50, 1)),
    ],
)
def test_input_shapes(name, maps):
    assert create_network(name, input="log_mel", filters=[1] * 8).input_shape == (None, *maps)
    rate = front_end(create_network(name, filters=[1] * 8)).sample_rate
    assert create_network(name, filters=[1] * 8).input_shape == (None, 1, rate)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mel256", [512, 6144]),
        ("mel128", [512, 6144]),
        ("linear", [512, 6144]),
        ("sea512", [512]),
        ("sea256", [256]),
        ("sea128", [128]),
        ("sea64", [64]),
    ],
)
def test_embedding_sizes(name, sizes):
    for size in sizes:
        assert create_network(name, embedding_size=size).output_shape == (None, size)
    assert create_network(name).output_shape == (None, sizes[0])
    with pytest.raises(ParameterError, match=f"embedding_size=100; {name} gives {sizes[0]}"):
        create_network(name, embedding_size=100)


def test_embedding_is_the_raw_convolution_max_pooled(tiny):
    raw = create_network("mel256", filters=[2] * 8)
    inputs = np.random.default_rng(0).uniform(-1, 1, (1, 1, 48000)).astype(np.float32)
    conv8 = keras.Model(raw.input, raw.get_layer("audio_embedding_layer").output)
    maps = inference(conv8)(inputs)
    assert maps.shape == (1, 32, 24, 2)
    np.testing.assert_array_equal(inference(raw)(inputs), maps.max(axis=(1, 2)))
    assert maps.min() < 0
    # SEA: after BatchNorm and ReLU.
    window = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8000)).astype(np.float32)
    relu = keras.Model(tiny.input, tiny.get_layer("relu_8").output)
    maps = inference(relu)(window)
    assert maps.shape == (2, 8, 6, 4)
    np.testing.assert_array_equal(inference(tiny)(window), maps.max(axis=(1, 2)))


def test_long_embedding_pools_eight_by_eight_in_keras_order():
    network = create_network("mel256", filters=[2] * 8, embedding_size=24)
    conv8 = keras.Model(network.input, network.get_layer("audio_embedding_layer").output)
    inputs = np.random.default_rng(0).uniform(-1, 1, (1, 1, 48000)).astype(np.float32)
    blocks = inference(conv8)(inputs).reshape(1, 4, 8, 3, 8, 2).max(axis=(2, 4))
    np.testing.assert_array_equal(inference(network)(inputs), blocks.reshape(1, 24))


@pytest.mark.shared
def test_published_network_reproduces_its_reference(sea64, reference):
    embedding = inference(sea64)(reference["waveform"][:, np.newaxis])
    np.testing.assert_allclose(embedding, reference["embedding"], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": "mp3"}, "input='mp3'; allowed: 'waveform', 'log_mel'"),
        ({"embedding_point": "end"}, "embedding_point='end'; allowed"),
        ({"filters": [1, 2]}, "give 8 whole numbers in 1 … 4096"),
        ({"filters": ["a"] * 8}, "give 8 whole numbers"),
        ({"filters": [60000] * 8}, "give 8 whole numbers"),
        ({"weight_decay": float("nan")}, "weight_decay=nan is not a number"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
        ({"include_layers": [0] * 8}, r"include_layers=\[0, 0, .*: give 8 zeros and ones, not all"),
        ({"include_layers": []}, "give 8 zeros and ones, not all"),
        ({"include_layers": [1, 0, 1]}, "or rising layer numbers of 1 … 8"),
        ({"include_layers": [2, 1]}, "or rising layer numbers"),
        ({"include_layers": [1, 9]}, "or rising layer numbers"),
        ({"include_layers": [1, True]}, "or rising layer numbers"),
        ({"include_layers": [1, 1, 2]}, "or rising layer numbers"),
        ({"from_convlayer": 4}, r"from_convlayer=4; allowed: .* included \(5, 6, 7, 8\)"),
        ({"from_convlayer": True}, "from_convlayer=True; allowed"),
        ({"from_convlayer": 6, "include_layers": [1, 5, 7]}, r"included \(5, 7\)"),
        ({"from_convlayer": 5, "include_layers": [1, 2]}, r"included \(none\)"),
        ({"from_convlayer": 7, "embedding_point": "activated"}, "takes the layer's raw output"),
        ({"include_layers": [1, 2], "filters": [4] * 8}, "give 2 whole numbers .* for each layer"),
        ({"from_convlayer": 7, "embedding_size": 100}, "embedding_size=100; sea64 gives 64"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ParameterError, match=message):
        create_network("sea64", **arguments)


def test_unknown_network():
    with pytest.raises(ParameterError, match="network 'l4' is unknown; known: mel256, mel128"):
        create_network("l4")
    with pytest.raises(ParameterError, match="was not made by create_network"):
        network_config(keras.Sequential([keras.layers.Dense(1)]))


# Students of less depth and width.


def conv_parameters(network):
    """Kernels and biases of the convolutions, as EdgeL3's tables count."""
    weights = graph.conv_weights(network).values()
    return sum(each.kernel.size + each.bias.size for each in weights)


@pytest.mark.parametrize(
    ("layer", "parameters", "reduction", "size"),
    [
        (8, 4_684_224, 0.0, 512),
        (7, 2_324_416, 50.4, 512),
        (6, 1_144_256, 75.6, 1536),
        (5, 554_176, 88.2, 1536),
    ],
)
def test_edgel3_table_iii(layer, parameters, reduction, size):
    network = create_network("mel256", from_convlayer=layer)
    assert conv_parameters(network) == parameters
    assert 100 * (1 - parameters / 4_684_224) == pytest.approx(reduction, abs=0.05)
    assert network.output_shape == (None, size)
    assert embedding_point(network) == "raw"
    # The same depth as a student to train: one value a filter.
    student = create_network("mel256", include_layers=[1] * layer + [0] * (8 - layer))
    assert conv_parameters(student) == parameters
    assert student.output_shape == (None, {5: 256, 6: 256}.get(layer, 512))


@pytest.mark.parametrize(
    ("filters", "parameters"),
    [
        ([64, 48, 64, 64, 128, 128, 256, 256], 1_199_664),
        ([64, 48, 64, 64, 128, 128, 128, 128], 609_584),
        ([64, 48, 64, 64, 64, 64, 128, 128], 388_272),
    ],
)
def test_edgel3_table_iv(filters, parameters):
    network = create_network("mel256", filters=filters)
    assert conv_parameters(network) == parameters
    assert network.output_shape == (None, filters[-1])


def pooled_maps(network, layer, windows):
    maps = inference(keras.Model(network.input, network.get_layer(CONV_NAMES[layer - 1]).output))
    return maps(windows)


@pytest.mark.parametrize("layer", [5, 6, 7, 8])
def test_truncated_networks_give_the_intermediate_outputs(tiny, layer):
    windows = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8000)).astype(np.float32)
    student = depth_student(tiny, from_convlayer=layer)
    assert list(graph.convolutions(student)) == list(CONV_NAMES[:layer])
    maps = pooled_maps(tiny, layer, windows)
    if layer > 6:
        assert maps.shape[1:3] == (8, 6)
        expected = maps.max(axis=(1, 2))
    else:  # 16 x 12 maps in fields of 8 x 6
        assert maps.shape[1:3] == (16, 12)
        expected = maps.reshape(2, 2, 8, 2, 6, 4).max(axis=(2, 4)).reshape(2, 16)
    np.testing.assert_array_equal(inference(student)(windows), expected)


def test_pooling_at_edges_is_same_padding():
    """49 frames in fields of 24: two whole ones and one of a single frame."""
    network = create_network("mel256", filters=[1] * 5, from_convlayer=5)
    windows = np.random.default_rng(0).uniform(-1, 1, (1, 1, 48000)).astype(np.float32)
    maps = pooled_maps(network, 5, windows)
    assert maps.shape == (1, 64, 49, 1)
    # Keras pads 11 frames in front of 49 and 12 behind, to 72.
    parts = [
        maps[0, row : row + 32, slice(*columns)].max()
        for row in (0, 32)
        for columns in ((0, 13), (13, 37), (37, 49))
    ]
    np.testing.assert_array_equal(inference(network)(windows)[0], parts)


@pytest.mark.parametrize(
    ("layers", "shapes"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], {3: (32, 25), 5: (16, 12), 7: (8, 6), 8: (8, 6)}),
        ([1, 3, 4, 5, 6, 7, 8], {3: (64, 50), 5: (32, 25), 8: (16, 12)}),
        ([1, 2, 3, 5, 6, 8], {3: (32, 25), 5: (32, 25), 8: (16, 12)}),
        ([1, 3, 5, 7], {3: (64, 50), 5: (64, 50), 7: (32, 25)}),
        ([2, 4, 7, 8], {4: (32, 25), 7: (8, 6)}),  # block 3 is pooled without its layers
        ([1, 2, 3, 4], {4: (32, 25)}),
    ],
)
@pytest.mark.parametrize("point", ["raw", "activated"])
def test_depth_students_pool_as_edgel3_does(layers, shapes, point):
    filters = [number + 1 for number in layers]
    network = create_network("sea64", include_layers=layers, filters=filters, embedding_point=point)
    names = [CONV_NAMES[number - 1] for number in layers]
    assert list(graph.convolutions(network)) == names
    for number, shape in shapes.items():
        assert network.get_layer(CONV_NAMES[number - 1]).output_shape[1:3] == shape
    assert network.output_shape == (None, filters[-1])
    pools = [layer.name for layer in network.layers if layer.name.startswith("max_pooling")]
    expected = [f"max_pooling_{n // 2}" for n in (2, 4, 6) if n == 6 or n in layers]
    assert pools == expected
    norms = [layer for layer in network.layers if layer.name.startswith("batch_normalization")]
    assert len(norms) == 1 + len(layers) - (point == "raw")


def test_two_ways_to_say_which_layers():
    assert layer_numbers() == (1, 2, 3, 4, 5, 6, 7, 8)
    assert layer_numbers([1, 2, 3, 4, 5, 6, 7, 8]) == layer_numbers([True] * 8) == layer_numbers()
    assert layer_numbers(np.array([0, 1, 0, 0, 0, 0, 0, 1])) == layer_numbers([2, 8]) == (2, 8)


DEPTHS = [
    {"include_layers": [1, 1, 0, 1, 0, 1, 1, 0]},
    {"include_layers": [1, 2, 4, 7], "filters": [3, 3, 5, 2]},
    {"from_convlayer": 6},
    {"from_convlayer": 7, "include_layers": [1, 2, 4, 7, 8], "filters": [4, 3, 3, 2]},
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", DEPTHS)
def test_students_save_reload_and_lose_filters(arguments, tmp_path):
    network = create_network("sea64", **arguments)
    windows = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8000)).astype(np.float32)
    masks = plan_layerwise(graph.conv_weights(network), 0.5)
    widths = {name: layer.filters for name, layer in graph.convolutions(network).items()}
    fewer = PruningPlan({name: np.arange(width) % 2 == 0 for name, width in widths.items()})
    smaller = surgery.remove_filters(network, fewer)
    halves = [-(-width // 2) for width in widths.values()]
    assert network_config(smaller).arguments["filters"] == halves
    for number, each in enumerate([network, surgery.apply_masks(network, masks), smaller]):
        path = tmp_path / f"{number}.h5"
        save_network(each, path)
        loaded = load_network(path)
        assert network_config(loaded) == network_config(each)
        assert fingerprint(loaded) == fingerprint(each)
        assert graph.masks(loaded) == graph.masks(each)
        np.testing.assert_array_equal(inference(loaded)(windows), inference(each)(windows))


@pytest.mark.parametrize(
    ("layers", "filters", "claim", "message"),
    [
        ([1, 2, 4], None, {"include_layers": [1, 2, 5]}, "has shape .*another network"),
        ([1, 2, 4], None, {}, "has 7 weighted layers, the network sea64 17"),
        ([1, 2], [3, 3], {"include_layers": [1, 2]}, r"claims \(32, 32, .* and holds \(3, 3\)"),
        ([1, 2], [3, 3], {"include_layers": [1, 2], "filters": [4, 4]}, r"claims \[4, 4\] filters"),
        ([1], [4096], {"filters": [4096] * 8}, r"claims \[4096, .* and holds \(4096,\)"),
    ],
)
def test_a_file_that_claims_other_layers_than_it_holds(tmp_path, layers, filters, claim, message):
    import h5py

    path = tmp_path / "net.h5"
    save_network(create_network("sea64", include_layers=layers, filters=filters), path)
    with h5py.File(path, "a") as file:
        file.attrs["l3prune"] = json.dumps({"network": "sea64", "arguments": claim})
    with pytest.raises(L3PruneError, match=message):
        load_network(path)


def test_a_depth_student_takes_what_fits(tiny):
    wide = create_network("sea64", filters=[4, 4, 6, 6, 6, 5, 4, 3])
    student = depth_student(wide, [1, 2, 4, 5, 7, 8])
    assert network_config(student).arguments == {
        "filters": [4, 4, 6, 6, 4, 3],
        "include_layers": [1, 2, 4, 5, 7, 8],
    }
    agree = {"conv_1": True, "conv_2": True, "conv_4": False, "conv_5": True, "conv_7": False}
    for name, same in {**agree, "audio_embedding_layer": True}.items():
        one, two = (net.get_layer(name).kernel.numpy() for net in (student, wide))
        assert (one.shape == two.shape and (one == two).all()) == same, name
    assert take_weights(student, wide) == ["conv_4", "conv_7"]
    # BatchNorm goes by the number of its convolution, with its statistics.
    for number, source in ((5, tiny), (8, tiny)):
        name = f"batch_normalization_{number}"
        short = depth_student(source, [1, 2, 3, 4, 7])
        found = short.get_layer(name).get_weights()
        np.testing.assert_array_equal(found, source.get_layer(name).get_weights())
    # A student of a student, and of a masked network.
    again = depth_student(student, from_convlayer=5)
    assert network_config(again).arguments["include_layers"] == [1, 2, 4, 5]
    assert embedding_point(again) == "raw"
    assert embedding_point(depth_student(again, [1, 2, 4])) == "raw"
    masked = surgery.apply_masks(tiny, plan_layerwise(graph.conv_weights(tiny), 0.6))
    short = depth_student(masked, from_convlayer=7)
    assert take_weights(short, masked) == []
    assert graph.count_kernel_weights(short)[1] < 0.5 * graph.count_kernel_weights(short)[0]
    with pytest.raises(ParameterError, match="the network has no layer 3; it has 1, 2, 4, 5, 7"):
        depth_student(student, [1, 2, 3])
    with pytest.raises(ParameterError, match="'vision' is no audio network"):
        depth_student(create_network("vision", filters=[1] * 8), [1, 2, 3])


# Pruning a network.


@pytest.fixture(scope="module")
def distinct():
    """mel256's kernels with magnitudes that all differ, so that no two weights tie."""
    rng = np.random.default_rng(0)
    return {
        name: ConvWeights(rng.permutation(np.prod(shape)).reshape(shape).astype(np.float32) + 1)
        for name, shape in KERNELS.items()
    }


def test_edgel3_lists_are_table_ii():
    assert {p: list(each) for p, each in EDGEL3_LISTS.items()} == {p: e for e, p, _ in TABLE_II}


@pytest.mark.parametrize(("percents", "published", "left"), TABLE_II)
def test_edgel3_table_ii(distinct, percents, published, left):
    plan = plan_layerwise(distinct, [percent / 100 for percent in percents])
    assert sum(int(mask.sum()) for mask in plan.values()) == left
    # The paper's own figure is within 0.04 of what its list gives.
    assert 100 * (1 - left / 4_682_304) == pytest.approx(published, abs=0.04)


def test_edgel3_on_the_network_itself():
    network = create_network("mel256")
    assert {k: w.kernel.shape for k, w in graph.conv_weights(network).items()} == KERNELS
    percents, _, left = TABLE_II[7]
    plan = plan_layerwise(graph.conv_weights(network), [p / 100 for p in percents])
    pruned = surgery.apply_masks(network, plan)
    # Random float32 weights tie at a threshold now and then, and fall together.
    assert left - 10 <= graph.count_kernel_weights(pruned)[1] <= left


def test_masks_zero_the_kernels_and_leave_the_source_alone(tiny):
    before = [weight.numpy() for weight in tiny.weights]
    plan = plan_layerwise(graph.conv_weights(tiny), 0.6)
    pruned = surgery.apply_masks(tiny, plan)
    for name, weights in graph.conv_weights(pruned).items():
        np.testing.assert_array_equal(weights.kernel != 0, plan[name])
    for weight, old in zip(tiny.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    assert graph.masks(pruned) == plan
    assert network_config(pruned) == network_config(tiny)


def test_masks_only_ever_add_up(tiny):
    first = surgery.apply_masks(tiny, plan_layerwise(graph.conv_weights(tiny), 0.5))
    more = PruningPlan({"conv_2": np.array([True, False, True, True])})
    second = surgery.apply_masks(first, more)
    expected = graph.masks(first)["conv_2"] & more["conv_2"]
    np.testing.assert_array_equal(graph.masks(second)["conv_2"], expected)
    np.testing.assert_array_equal(graph.masks(second)["conv_3"], graph.masks(first)["conv_3"])


def test_plain_and_masked_networks_compute_the_same(tiny):
    window = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8000)).astype(np.float32)
    pruned = surgery.apply_masks(tiny, plan_layerwise(graph.conv_weights(tiny), 0.6))
    plain = surgery.strip_masks(pruned)
    assert {type(layer) for layer in graph.convolutions(plain).values()} == {keras.layers.Conv2D}
    np.testing.assert_array_equal(inference(plain)(window), inference(pruned)(window))
    assert graph.count_kernel_weights(plain) == graph.count_kernel_weights(pruned)
    everything = surgery.apply_masks(tiny, plan_layerwise(graph.conv_weights(tiny), 0.0))
    np.testing.assert_array_equal(inference(everything)(window), inference(tiny)(window))


def test_counts_of_zeros(tiny):
    plan = PruningPlan({"conv_1": np.array([True, False, False, False])})
    pruned = surgery.apply_masks(tiny, plan)
    total, nonzero = graph.count_kernel_weights(pruned)
    assert total - nonzero == 27  # 3 filters of 3x3x1
    dense, left = graph.count_macs(pruned)
    assert dense - left == 27 * 64 * 50


def test_plan_for_another_network(tiny):
    with pytest.raises(ParameterError, match="the plan names layer 'conv_9'"):
        surgery.apply_masks(tiny, PruningPlan({"conv_9": np.array([True])}))
    with pytest.raises(ParameterError, match="layer conv_1: mask of shape"):
        surgery.apply_masks(tiny, PruningPlan({"conv_1": np.array([True] * 5)}))
