import numpy as np
import pytest
import tf_keras as keras

from l3prune import graph, surgery
from l3prune.criteria import ConvWeights
from l3prune.errors import ParameterError
from l3prune.networks import create_network, inference, list_networks, network_config
from l3prune.networks.l3 import SPECS, front_end
from l3prune.plan import PruningPlan, plan_layerwise

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


@pytest.mark.parametrize("name", list_networks())
def test_every_network_builds_saves_and_reloads(name, tmp_path):
    from l3prune.weights import load_network, save_network

    network = create_network(name, filters=[2] * 8)
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


# Pruning a network.


@pytest.fixture(scope="module")
def distinct():
    """mel256's kernels with magnitudes that all differ, so that no two weights tie."""
    rng = np.random.default_rng(0)
    return {
        name: ConvWeights(rng.permutation(np.prod(shape)).reshape(shape).astype(np.float32) + 1)
        for name, shape in KERNELS.items()
    }


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
