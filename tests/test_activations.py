import gc
import itertools
import weakref

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from l3prune import graph, surgery
from l3prune.activations import DATA_CRITERIA, apoz, mean_activation, taylor
from l3prune.errors import ParameterError
from l3prune.filterwise import plan_filterwise
from l3prune.networks import create_network
from l3prune.plan import PruningPlan

RNG = np.random.default_rng(3)


def toy(after=()):
    """Two filters of 1 x 1: x - 1 and -2 x + 2; behind them the layers `after`."""
    inputs = keras.Input((2, 2, 1))
    maps = layers.Conv2D(2, 1, name="conv")(inputs)
    for layer in after:
        maps = layer(maps)
    network = keras.Model(inputs, maps)
    network.get_layer("conv").set_weights([np.array([[[[1.0, -2.0]]]]), np.array([-1.0, 2.0])])
    return network


#: Two examples of 2 x 2. Filter 0 has 2, 0, -1, 3 and -3, 1, 0, 0; filter 1 has -2 times that.
X = np.array([[[3.0, 1.0], [0.0, 4.0]], [[-2.0, 2.0], [1.0, 1.0]]])[..., np.newaxis]


def test_behind_a_relu_by_hand():
    network = toy([layers.ReLU()])
    # Kept by ReLU: 2, 3, 1 of filter 0; 2, 6 of filter 1.
    assert mean_activation(network, iter([(X, None)]))["conv"].tolist() == [6 / 8, 8 / 8]
    assert apoz(network, iter([(X, None)]))["conv"].tolist() == [3 / 8, 2 / 8]


def test_without_a_non_linearity_by_hand():
    network = toy()
    assert mean_activation(network, iter([(X, None)]))["conv"].tolist() == [10 / 8, 20 / 8]
    # What a ReLU would leave.
    assert apoz(network, iter([(X, None)]))["conv"].tolist() == [3 / 8, 2 / 8]


def test_taylor_by_hand():
    # Output: ReLU, then the mean over positions: 5/4, 2/4 and 1/4, 6/4.
    network = toy([layers.ReLU(), layers.GlobalAveragePooling2D()])
    targets = np.array([[0.25, 0.5], [0.25, -0.5]])
    # Loss of an example: ((o0 - t0)^2 + (o1 - t1)^2) / 2; its gradient by an activation is
    # (o - t) / 4. Differences 1, 0 and 0, 2; activation * gradient, mean over 4 positions:
    first = [np.mean([2 * 0.25, 0, 0, 3 * 0.25]), 0.0]
    second = [0.0, np.mean([6 * 0.5, 0, 0, 0])]
    wanted = [(first[0] + second[0]) / 2, (first[1] + second[1]) / 2]
    assert taylor(network, iter([(X, targets)]))["conv"].tolist() == wanted


def test_taylor_adds_up_examples_that_pull_in_opposite_directions():
    network = toy([layers.GlobalAveragePooling2D()])
    outputs = network(X).numpy()
    x = np.stack([X[0], X[0]])
    targets = np.stack([outputs[0] - 1, outputs[0] + 1])  # gradients of opposite signs
    scores = taylor(network, iter([(x, targets)]))["conv"]
    assert scores == pytest.approx(np.abs(outputs[0]) / 4)
    assert scores.all()


def random_network(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 5, 2))
    maps = layers.Conv2D(4, 3, padding="same", name="one")(inputs)
    maps = layers.BatchNormalization(name="norm")(maps)
    maps = layers.ReLU(name="relu")(maps)
    maps = layers.Conv2D(3, 3, name="two")(maps)
    maps = layers.Activation("tanh", name="tanh")(maps)
    outputs = layers.Dense(2)(layers.Flatten()(maps))
    network = keras.Model(inputs, outputs)
    network.get_layer("norm").set_weights(RNG.uniform(0.5, 1.5, (4, 4)))
    return network


@pytest.mark.parametrize(("conv", "activation"), [("one", "relu"), ("two", "tanh")])
def test_taylor_is_the_slope_of_the_loss_by_a_factor_on_the_channel(conv, activation):
    network = random_network()
    x = RNG.normal(size=(5, 6, 5, 2)).astype(np.float32)
    targets = RNG.normal(size=(5, 2)).astype(np.float32)
    scores = taylor(network, iter([(x, targets)]))[conv]
    tensor = network.get_layer(activation).output
    front, rest = keras.Model(network.input, tensor), keras.Model(tensor, network.output)
    maps = front(x).numpy()

    def losses(channel, factor):
        changed = maps.copy()
        changed[..., channel] *= factor
        return np.square(rest(changed).numpy().astype(np.float64) - targets).mean(axis=1)

    step = 1e-2
    positions = maps.shape[1] * maps.shape[2]
    for channel, score in enumerate(scores):
        slope = (losses(channel, 1 + step) - losses(channel, 1 - step)) / (2 * step)
        assert score == pytest.approx(np.abs(slope / positions).mean(), rel=2e-3)


@pytest.mark.parametrize("name", sorted(DATA_CRITERIA))
def test_batches_of_any_sizes_give_the_same(name):
    network = random_network()
    x = RNG.normal(size=(11, 6, 5, 2)).astype(np.float32)
    targets = RNG.normal(size=(11, 2)).astype(np.float32)
    before = [weight.numpy().tobytes() for weight in network.weights]
    whole = DATA_CRITERIA[name](network, iter([(x, targets)]))
    cuts = [0, 4, 5, 9, 11]
    parts = DATA_CRITERIA[name](
        network,
        ((x[a:b], targets[a:b]) for a, b in itertools.pairwise(cuts)),
    )
    assert list(whole) == ["one", "two"]
    for conv, filters in (("one", 4), ("two", 3)):
        assert whole[conv].shape == (filters,)
        assert whole[conv].dtype == np.float64
        np.testing.assert_allclose(parts[conv], whole[conv], rtol=1e-5)
    again = DATA_CRITERIA[name](network, iter([(x, targets)]))
    assert all(again[conv].tobytes() == whole[conv].tobytes() for conv in whole)
    assert [weight.numpy().tobytes() for weight in network.weights] == before
    plan = plan_filterwise(whole, ratio=0.5)
    assert plan["one"].sum() == 2


@pytest.mark.slow
def test_batches_are_let_go():
    network = toy([layers.ReLU()])
    given = []

    def batches():
        for number in range(5):
            gc.collect()
            # The last one is the reader's until it has the next.
            assert not any(earlier() is not None for earlier in given[:-1])
            batch = np.full((2, 2, 2, 1), number, np.float32)
            given.append(weakref.ref(batch))
            yield batch, None
            del batch

    assert mean_activation(network, batches())["conv"].tolist() == [(0 + 0 + 1 + 2 + 3) / 5, 2 / 5]


def test_taylor_takes_any_loss():
    network = random_network()
    x = RNG.normal(size=(4, 6, 5, 2)).astype(np.float32)
    targets = RNG.normal(size=(4, 2)).astype(np.float32)
    default = taylor(network, iter([(x, targets)]))
    for loss in (
        keras.losses.mean_squared_error,  # one value an example
        keras.losses.MeanSquaredError(),  # their mean
    ):
        scores = taylor(network, iter([(x[:1], targets[:1]), (x[1:], targets[1:])]), loss)
        for conv, values in default.items():
            np.testing.assert_allclose(scores[conv], values, rtol=1e-5)
    doubled = taylor(network, iter([(x, targets)]), lambda t, o: 2 * tf.reduce_mean((o - t) ** 2))
    np.testing.assert_allclose(doubled["one"], 2 * default["one"], rtol=1e-5)


# Which tensor has a convolution's channels.


def conv(name, filters=2, **kwargs):
    return layers.Conv2D(filters, 1, name=name, **kwargs)


def plain(x):
    return conv("a")(x), {}


def own_activation(x):
    maps = conv("a", activation="tanh")(x)
    return layers.ReLU()(maps), {"a": (maps, 0)}


def norm_and_pool(x):
    maps = layers.BatchNormalization()(layers.MaxPooling2D()(conv("a")(x)))
    maps = layers.LeakyReLU()(layers.Dropout(0.5)(layers.Activation("linear")(maps)))
    return maps, {"a": (maps, 0)}


def first_of_two(x):
    maps = layers.ReLU()(conv("a")(x))
    return layers.Activation("sigmoid")(maps), {"a": (maps, 0)}


def two_readers(x):
    maps = conv("a")(x)
    one, two = layers.ReLU()(maps), layers.Activation("sigmoid")(maps)
    return layers.Add()([layers.BatchNormalization()(one), two]), {"a": (one, 0)}


def residual(x):
    one = layers.BatchNormalization()(conv("a")(x))
    maps = layers.ReLU()(layers.Add()([one, conv("b")(x)]))
    return maps, {"a": (maps, 0), "b": (maps, 0)}


def dense_net(x):
    one, two = conv("a", 3)(x), conv("b")(x)
    maps = layers.ReLU()(layers.BatchNormalization()(layers.Concatenate()([one, two])))
    return maps, {"a": (maps, 0), "b": (maps, 3)}


def on_another_axis(x):
    maps = layers.ReLU()(layers.Concatenate(axis=1)([conv("a")(x), conv("b")(x)]))
    return maps, {"a": (maps, 0), "b": (maps, 0)}


def excitation(x):
    maps = conv("a", 3)(x)
    gate = layers.Activation("sigmoid")(
        conv("b", 3)(layers.GlobalAveragePooling2D(keepdims=True)(maps))
    )
    out = layers.ReLU()(layers.Multiply()([maps, gate]))
    return out, {"a": (out, 0), "b": (gate, 0)}


def one_for_all(x):
    wide, narrow = conv("a", 3)(x), conv("b", 1)(x)
    maps = layers.ReLU()(layers.Multiply()([wide, narrow]))
    return maps, {"a": (maps, 0), "b": (narrow, 0)}


def mixed_before(x):
    maps = conv("a")(x)
    return layers.Dense(3, activation="relu")(layers.Flatten()(maps)), {"a": (maps, 0)}


def depthwise_before(x):
    maps = conv("a")(x)
    return layers.ReLU()(layers.DepthwiseConv2D(2)(maps)), {"a": (maps, 0)}


@pytest.mark.parametrize(
    "make",
    [
        *(plain, own_activation, norm_and_pool, first_of_two, residual, dense_net),
        *(two_readers, on_another_axis, excitation, one_for_all, mixed_before, depthwise_before),
    ],
)
def test_the_activation_that_is_measured(make):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4, 4, 2))
    outputs, where = make(inputs)
    network = keras.Model(inputs, outputs)
    x = RNG.normal(size=(3, 4, 4, 2)).astype(np.float32)
    scores = mean_activation(network, iter([(x, None)]))
    assert list(scores) == list(graph.convolutions(network))
    for name, layer in graph.convolutions(network).items():
        tensor, start = where.get(name, (layer.output, 0))
        maps = np.abs(keras.Model(inputs, tensor)(x).numpy())[..., start : start + layer.filters]
        np.testing.assert_allclose(scores[name], maps.mean(axis=(0, 1, 2)), rtol=1e-5, err_msg=name)
    # Gradients reach all of them.
    taylor_scores = taylor(network, iter([(x, np.ones((3, *network.output_shape[1:])))]))
    assert all(values.any() for values in taylor_scores.values())


def test_nested_networks_and_layers_that_are_called_twice():
    keras.utils.set_random_seed(1)
    inner_inputs = keras.Input((4, 4, 2))
    inner = keras.Model(inner_inputs, conv("a")(inner_inputs), name="inner")
    inputs = keras.Input((4, 4, 2))
    once = layers.ReLU()(inner(inputs))  # the non-linearity is outside
    twice = layers.ReLU()(inner(once))
    network = keras.Model(inputs, twice)
    x = RNG.normal(size=(3, 4, 4, 2)).astype(np.float32)
    scores = mean_activation(network, iter([(x, None)]))
    means = [keras.Model(inputs, each)(x).numpy().mean(axis=(0, 1, 2)) for each in (once, twice)]
    assert list(scores) == ["inner/a"]
    np.testing.assert_allclose(scores["inner/a"], np.mean(means, axis=0), rtol=1e-5)


def test_several_inputs():
    one, two = keras.Input((2, 2, 1)), keras.Input((2, 2, 1))
    network = keras.Model([one, two], layers.ReLU()(conv("a", 1)(layers.Add()([one, two]))))
    network.set_weights([np.ones((1, 1, 1, 1)), np.zeros(1)])
    assert mean_activation(network, iter([([X, X], None)]))["a"].tolist() == [24 / 8]


def test_l3_audio_and_vision(tiny):
    x = RNG.uniform(-1, 1, (2, 1, 8000)).astype(np.float32)
    scores = mean_activation(tiny, iter([(x, None)]))
    for number, name in enumerate(scores, start=1):
        maps = keras.Model(tiny.input, tiny.get_layer(f"relu_{number}").output)(x).numpy()
        np.testing.assert_allclose(scores[name], maps.mean(axis=(0, 1, 2)), rtol=1e-4)
    # Behind conv 2 the ReLU is before the BatchNorm; behind conv 8 there is none.
    vision = create_network("vision", filters=[2] * 8)
    image = RNG.uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    scores = mean_activation(vision, iter([(image, None)]))
    for name, layer in (("conv_2", "relu_2"), ("vision_embedding_layer",) * 2):
        maps = np.abs(keras.Model(vision.input, vision.get_layer(layer).output)(image).numpy())
        np.testing.assert_allclose(scores[name], maps.mean(axis=(0, 1, 2)), rtol=1e-4)


def test_masked_weights_count_as_zeros():
    network = toy([layers.ReLU()])
    network.get_layer("conv").bias.assign([0.0, 0.0])
    masked = surgery.apply_masks(network, PruningPlan({"conv": np.array([True, False])}))
    # A kernel that was written to behind the mask's back.
    masked.get_layer("conv").kernel.assign(np.ones((1, 1, 1, 2)))
    assert mean_activation(masked, iter([(X, None)]))["conv"].tolist() == [12 / 8, 0.0]


# Errors.


def test_wrong_input():
    with pytest.raises(ParameterError, match="no batches to score filters on"):
        mean_activation(toy(), iter([]))
    with pytest.raises(ParameterError, match=r"batch 2 has inputs of shapes \[\(2, 2, 2\)\]"):
        apoz(toy(), iter([(X, None), (X[..., 0], None)]))
    with pytest.raises(ParameterError, match=r"takes \[\(None, 2, 2, 1\)\]"):
        apoz(toy(), iter([(np.zeros((1, 2, 2, 3)), None)]))
    inputs = keras.Input((3,))
    dense = keras.Model(inputs, layers.Dense(2)(inputs), name="mlp")
    with pytest.raises(ParameterError, match="network mlp has no convolutions to score"):
        taylor(dense, iter([]))
    with pytest.raises(ParameterError, match="is not functional"):
        taylor(keras.Model(), iter([]))
