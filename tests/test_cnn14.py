"""Cnn14 and DecisionLevelMax: what the papers count, what PyTorch's networks compute."""

import numpy as np
import pytest
import tf_keras as keras

from l3prune import graph, surgery
from l3prune.complexity import layer_complexities
from l3prune.errors import L3PruneError, ParameterError
from l3prune.filterwise import plan_distinct
from l3prune.networks import cnn14, create_network, inference, network_config
from l3prune.plan import PruningPlan, score
from l3prune.pruner import Wish, prune
from l3prune.weights import load_network, save_network
from tests.cnn14_networks import PLANS, shaken, small, weightless


@pytest.mark.parametrize(
    ("plan", "trainable", "parameters"),
    [
        ("0 %", 80_753_615, 80_769_871),
        ("25 %", 47_408_591, 47_421_263),
        ("50 %", 23_205_839, 23_214_927),
        ("75 %", 8_145_359, 8_150_863),
        ("75 % mixed", 17_453_519, 17_461_071),
    ],
)
def test_published_parameter_counts(plan, trainable, parameters):
    with weightless():
        rows = layer_complexities(create_network("cnn14", filters=PLANS[plan]))
    assert sum(row.trainable for row in rows) == trainable
    assert sum(row.parameters for row in rows) == parameters


#: C1 … C12: output grid of 10 s, weights and millions of MACs at 0, 25, 50 and 75 %.
TABLE = [
    ((1001, 64), [576] * 4, [36.9] * 4),
    ((1001, 64), [36_864] * 4, [2361.7] * 4),
    ((500, 32), [73_728] * 4, [1179.6] * 4),
    ((500, 32), [147_456] * 4, [2359.3] * 4),
    ((250, 16), [294_912] * 4, [1179.6] * 4),
    ((250, 16), [589_824] * 4, [2359.3] * 4),
    ((125, 8), [1_179_648, 884_736, 589_824, 294_912], [1179.6, 884.7, 589.8, 294.9]),
    ((125, 8), [2_359_296, 1_327_104, 589_824, 147_456], [2359.3, 1327.1, 589.8, 147.5]),
    ((62, 4), [4_718_592, 2_654_208, 1_179_648, 294_912], [1170.2, 658.2, 292.6, 73.1]),
    ((62, 4), [9_437_184, 5_308_416, 2_359_296, 589_824], [2340.4, 1316.5, 585.1, 146.3]),
    ((31, 2), [18_874_368, 10_616_832, 4_718_592, 1_179_648], [1170.2, 658.2, 292.6, 73.1]),
    ((31, 2), [37_748_736, 21_233_664, 9_437_184, 2_359_296], [2340.4, 1316.5, 585.1, 146.3]),
]


@pytest.mark.parametrize(("place", "plan"), list(enumerate(["0 %", "25 %", "50 %", "75 %"])))
def test_published_layers(place, plan):
    with weightless():
        network = create_network("cnn14", filters=PLANS[plan])
        rows = {row.name: row for row in layer_complexities(network)}
    for name, (grid, weights, macs) in zip(cnn14.CONV_NAMES, TABLE, strict=True):
        assert rows[name].output_shape[:2] == grid
        assert rows[name].parameters == weights[place]
        assert round(rows[name].macs / 1e6, 1) == macs[place]
    assert rows["fc1"].parameters == [4_196_352, 3_147_776, 2_099_200, 1_050_624][place]
    assert rows["fc_audioset"].parameters == 1_079_823
    assert rows["bn0"].trainable == 128
    norms = [row.trainable for row in rows.values() if row.kind == "BatchNormalization"]
    assert norms == [128, *(2 * count for count in PLANS[plan])]


def test_trained_as_the_original_is_initialised():
    network = small(filters=[8] * 12)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)
    # Xavier's bound counts the 3 x 3 places.
    kernel = network.get_layer("conv_block2_conv2").kernel.numpy()
    assert 0.9 * (6 / (9 * 16)) ** 0.5 < np.abs(kernel).max() <= (6 / (9 * 16)) ** 0.5
    rates = [layer.rate for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.2] * 6 + [0.5]


def test_bands_are_normalised_as_pytorch_does():
    """Each band by itself, and the running variance with n / (n - 1)."""
    network = small(input="log_mel", samples=9920)
    maps = np.random.default_rng(0).normal(-30, 5, (3, 32, 64, 1)).astype(np.float32)
    maps *= np.linspace(0.5, 2, 64, dtype=np.float32)[:, None]
    norm = keras.Model(network.input, network.get_layer("bands_as_columns").output)
    found = norm(maps, training=True).numpy()
    flat = maps[..., 0].astype(np.float64).reshape(-1, 64)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(found.reshape(-1, 64), expected, atol=2e-4)
    moving = network.get_layer("bn0").moving_variance.numpy()
    np.testing.assert_allclose(moving, 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("samples", [9920, 20_480, 32_000])
def test_any_length(samples):
    """A network for any length, and those built for one, give the same."""
    network = shaken(small(samples=None))
    assert network.input_shape == (None, 1, None)
    fixed = small(samples=samples)
    fixed.set_weights(network.get_weights())
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 1, samples)).astype(np.float32)
    found = inference(network)(clips)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, inference(fixed)(clips), rtol=1e-5)
    maps = create_network(
        "cnn14", **{**network_config(network).arguments, "input": "log_mel", "samples": samples}
    )
    assert maps.input_shape == (None, 1 + samples // 320, 64, 1)


@pytest.mark.parametrize(("samples", "left"), [(9920, 1), (20_159, 1), (20_160, 2), (320_000, 31)])
def test_time_that_is_left(samples, left):
    network = small(samples=samples)
    assert network.get_layer("mean_of_bands").output_shape == (None, left, 1, 4)


def test_clipwise_by_hand():
    """Max and mean of time, the embedding, the sigmoid."""
    network = shaken(small())
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 1, 32_000)).astype(np.float32)
    maps = inference(keras.Model(network.input, network.get_layer("conv_block6_relu2").output))(
        clips
    )
    assert maps.shape == (2, 3, 2, 4)
    pooled = maps.mean(axis=2)
    pooled = pooled.max(axis=1) + pooled.mean(axis=1)
    fc1, last = (network.get_layer(name).get_weights() for name in ("fc1", "fc_audioset"))
    embedding = np.maximum(pooled @ fc1[0] + fc1[1], 0)
    assert (embedding > 0).any()
    clipwise = 1 / (1 + np.exp(-(embedding @ last[0] + last[1])))
    np.testing.assert_allclose(inference(network)(clips), clipwise, rtol=1e-4)
    both = cnn14.with_embedding(network)(clips, training=False)
    np.testing.assert_allclose(both[0], clipwise, rtol=1e-4)
    np.testing.assert_allclose(both[1], embedding, rtol=1e-4, atol=1e-6)
    # In training, what the classifier reads is the embedding without its dropout.
    assert network.get_layer("fc_audioset").input is network.get_layer("embedding").output


def test_embedding_as_the_output():
    network = shaken(small())
    embedding = small(output="embedding")
    for layer in embedding.layers:
        layer.set_weights(network.get_layer(layer.name).get_weights())
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 1, 32_000)).astype(np.float32)
    both = cnn14.with_embedding(network)(clips, training=False)
    np.testing.assert_allclose(inference(embedding)(clips), both[1], rtol=1e-4, atol=1e-6)
    with pytest.raises(ParameterError, match="output 'embedding' has no clipwise output"):
        cnn14.with_embedding(embedding)


def test_decision_level_max_by_hand():
    network = shaken(small("cnn14_decision_level_max"))
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 1, 48_000)).astype(np.float32)
    maps = inference(keras.Model(network.input, network.get_layer("mean_of_bands").output))(clips)
    maps = maps[:, :, 0]
    assert maps.shape == (2, 4, 4)
    around = np.pad(maps, ((0, 0), (1, 1), (0, 0)))
    three = np.stack([around[:, :-2], around[:, 1:-1], around[:, 2:]])
    pooled = three.max(axis=0) + three.sum(axis=0) / 3  # maps are not negative
    fc1, last = (network.get_layer(name).get_weights() for name in ("fc1", "fc_audioset"))
    embedding = np.maximum(pooled @ fc1[0] + fc1[1], 0)
    segments = 1 / (1 + np.exp(-(embedding @ last[0] + last[1])))
    np.testing.assert_allclose(inference(network)(clips), segments.max(axis=1), rtol=1e-4)
    segmentwise = keras.Model(network.input, network.get_layer("segmentwise").output)
    np.testing.assert_allclose(inference(segmentwise)(clips)[:, :, 0], segments, rtol=1e-4)
    # Here half of the embedding is dropped in training.
    dropout = network.get_layer("embedding_dropout")
    assert network.get_layer("fc_audioset").input is dropout.output
    assert dropout.rate == 0.5
    frames = cnn14.framewise(segments[:, :, None], 151)
    assert frames.shape == (2, 151, 5)
    np.testing.assert_array_equal(frames[:, 40], segments[:, 1])
    np.testing.assert_array_equal(frames[:, 150], segments[:, 3])


def test_half_of_the_filters_removed_is_a_network_that_ignores_them():
    """Zero scale and shift of a filter is what surgery leaves out, to the last layer."""
    network = shaken(small(filters=[4, 4, 4, 4, 6, 6, 8, 8, 8, 8, 8, 8]))
    rng = np.random.default_rng(3)
    counts = dict(zip(cnn14.CONV_NAMES[6:], [4, 2, 6, 3, 5, 4], strict=True))
    plan = PruningPlan({name: rng.permutation(8) < count for name, count in counts.items()})
    smaller = surgery.remove_filters(network, plan)
    for name, keep in plan.items():
        norm = network.get_layer(name.replace("conv1", "bn1").replace("conv2", "bn2"))
        for weight in (norm.gamma, norm.beta):
            weight.assign(np.where(keep, weight, 0))
    clips = rng.uniform(-1, 1, (2, 1, 32_000)).astype(np.float32)
    np.testing.assert_allclose(
        inference(smaller)(clips), inference(network)(clips), rtol=1e-5, atol=1e-7
    )
    kept = np.flatnonzero(plan["conv_block6_conv2"])
    np.testing.assert_array_equal(
        smaller.get_layer("fc1").get_weights()[0], network.get_layer("fc1").get_weights()[0][kept]
    )
    assert network_config(smaller).arguments["filters"] == [4, 4, 4, 4, 6, 6, 4, 2, 6, 3, 5, 4]


def test_saved_pruned_and_loaded_for_another_length(tmp_path):
    network = shaken(small())
    half = np.arange(4) < 2
    smaller = surgery.remove_filters(network, PruningPlan({"conv_block6_conv1": half}))
    masked = surgery.apply_masks(smaller, PruningPlan({"conv_block5_conv1": half}))
    save_network(masked, tmp_path / "net.h5")
    loaded = load_network(tmp_path / "net.h5", samples=None)
    assert list(graph.masks(loaded)) == ["conv_block5_conv1"]
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 1, 32_000)).astype(np.float32)
    np.testing.assert_allclose(inference(loaded)(clips), inference(masked)(clips), rtol=1e-5)


def test_a_checkpoint_that_claims_more_than_it_holds(tmp_path):
    import h5py

    path = tmp_path / "net.h5"
    save_network(small(), path)
    with h5py.File(path, "r+") as file:
        file.attrs["l3prune"] = '{"network": "cnn14", "arguments": {}}'
    with pytest.raises(L3PruneError, match=r"claims layers of \(64, .* and holds \(4, 4, .*, 5\)"):
        load_network(path)
    with pytest.raises(L3PruneError, match="holds the network cnn14, not sea64"):
        load_network(path, "sea64")


def test_what_cannot_be_removed():
    network = small(activation="softmax")
    with pytest.raises(ParameterError, match=r"fc_audioset: filter 4 .*compares them by softmax"):
        surgery.remove_filters(network, PruningPlan({"fc_audioset": np.arange(5) < 4}))


def test_training_moves_every_weight():
    network = small(input="log_mel", samples=9920)
    x = np.random.default_rng(0).normal(-30, 10, (8, 32, 64, 1)).astype(np.float32)
    y = np.eye(5, dtype=np.float32)[np.arange(8) % 5]
    before = [weight.numpy() for weight in network.weights]
    network.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy")
    network.fit(x, y, batch_size=4, epochs=4, verbose=0)
    for weight, old in zip(network.weights, before, strict=True):
        assert (weight.numpy() != old).any(), weight.name
        assert np.isfinite(weight.numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 9919}, "samples=9919: cnn14 takes whole numbers from 9920 on .*0.31 s"),
        ({"samples": 1e6}, "samples=1000000.0: cnn14 takes whole numbers"),
        ({"output": "segmentwise"}, "output='segmentwise'; cnn14 has clipwise, embedding"),
        ({"activation": "relu"}, "activation='relu'; cnn14 has sigmoid, softmax, linear"),
        ({"filters": [4] * 8}, "filters=.*: give 12 whole numbers in 1 … 4096"),
        ({"classes": 0}, "classes=0 is not a whole number from 1 on"),
        ({"units": 2.5}, "units=2.5 is not a whole number from 1 on"),
        ({"input": "mp3"}, "input='mp3'; allowed: 'waveform', 'log_mel'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ParameterError, match=message):
        small(**arguments)


def test_narrow():
    assert tuple(cnn14.narrow(1)) == cnn14.FILTERS
    assert cnn14.narrow(64) == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    with pytest.raises(ParameterError, match="divisor=65 is not a whole number in 1 … 64"):
        cnn14.narrow(65)


@pytest.mark.parametrize("criterion", ["operator_norm", "operator_norm_energy", "l1", "random"])
@pytest.mark.parametrize("percent", [25, 50, 75])
def test_pruned_as_e_panns(criterion, percent):
    """C7 … C12 by one ratio, from scores to a network; fc1 keeps its outputs."""
    filters = [2, 2, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    network = shaken(small(filters=filters, units=32))
    amount = [0.0] * 6 + [percent / 100] * 6
    smaller, plan = prune(network, Wish(filterwise=True, amount=amount, criterion=criterion))
    kept = [int(count * (1 - percent / 100)) for count in filters[6:]]
    arguments = network_config(smaller).arguments
    assert arguments["filters"] == [*filters[:6], *kept]
    assert arguments["units"] == 32
    weights = graph.conv_weights(network)
    for name, count in zip(cnn14.CONV_NAMES[6:], kept, strict=True):
        scores = score({name: weights[name]}, criterion, filters=True)[name]
        best = np.sort(np.argsort(-scores, kind="stable")[:count])
        np.testing.assert_array_equal(np.flatnonzero(plan[name]), best)
    first = np.ix_(range(3), range(3), range(4), np.flatnonzero(plan["conv_block4_conv1"]))
    np.testing.assert_array_equal(
        smaller.get_layer("conv_block4_conv1").kernel,
        weights["conv_block4_conv1"].kernel[first],
    )


@pytest.mark.slow
def test_the_whole_network_pruned_by_the_mixed_plan():
    network = create_network("cnn14", input="log_mel")
    amount = [0] * 6 + [0.75] * 4 + [0.5] * 2
    smaller, _ = prune(network, Wish(filterwise=True, amount=amount, criterion="operator_norm"))
    assert sum(int(np.prod(weight.shape)) for weight in smaller.trainable_weights) == 17_453_519
    assert list(network_config(smaller).arguments["filters"]) == PLANS["75 % mixed"]


def test_a_ratio_that_would_empty_a_layer_leaves_one_filter_and_one_of_all_is_refused():
    network = shaken(small())
    smaller, _ = prune(network, Wish(filterwise=True, amount=0.99, criterion="operator_norm"))
    assert network_config(smaller).arguments["filters"] == [1] * 12
    with pytest.raises(ParameterError, match=r"ratio=1.* is not in \[0, 1\)"):
        prune(network, Wish(filterwise=True, amount=1.0))
    with pytest.raises(ParameterError, match="12"):
        prune(network, Wish(filterwise=True, amount=[0.5] * 6))


def test_distinct_filters_of_every_layer():
    network = shaken(small(filters=[4] * 6 + [8] * 6))
    plan = plan_distinct(
        {name: each for name, each in graph.conv_weights(network).items() if name[10] in "456"}
    )
    smaller = surgery.remove_filters(network, plan)
    filters = network_config(smaller).arguments["filters"]
    assert filters == [4] * 6 + [int(mask.sum()) for mask in plan.values()]
    assert all(4 <= count < 8 for count in filters[6:])
