"""Removing filters: the smaller network is the old one with later layers ignoring what went.

The networks are built twice by `Net`: plainly, and with gates that set removed channels to zero
wherever a layer hands them on. Nothing of the code under test has a part in the gates.
"""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tf_keras import layers

from l3prune import graph, surgery
from l3prune.channels import follow
from l3prune.errors import ParameterError
from l3prune.layers import MaskedConv2D
from l3prune.networks import create_network, inference, network_config
from l3prune.plan import PruningPlan
from l3prune.weights import load_network, save_network


class Net:
    """Builds a network whose tensors carry, besides themselves, which of their channels stay."""

    def __init__(self, plan=None, seed=0):
        self.plan = plan
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def name(self, word):
        self.count += 1
        return f"{word}_{self.count}"

    def gate(self, tensor, stay):
        if self.plan is None or stay.all():
            return tensor, stay
        factors = tf.constant(stay, tf.float32)
        return layers.Lambda(lambda x: x * factors)(tensor), stay

    def input(self, *shape):
        tensor = keras.Input(shape)
        return tensor, np.ones(shape[-1], bool)

    def produce(self, layer, x, filters):
        stay = np.ones(filters, bool)
        if self.plan is not None and layer.name in self.plan:
            stay = self.plan[layer.name]
        return self.gate(layer(x[0]), stay)

    def conv(self, x, filters, size=3, prefix="conv", **kwargs):
        layer = layers.Conv2D(filters, size, padding="same", name=self.name(prefix), **kwargs)
        return self.produce(layer, x, filters)

    def depthwise(self, x, multiplier=1):
        layer = layers.DepthwiseConv2D(
            3, padding="same", depth_multiplier=multiplier, name=self.name("depthwise")
        )
        return self.gate(layer(x[0]), np.repeat(x[1], multiplier))

    def as_groups(self, x, multiplier=1):
        """A depthwise convolution, written as one of as many groups as channels."""
        channels = len(x[1])
        layer = layers.Conv2D(
            channels * multiplier, 3, padding="same", groups=channels, name=self.name("grouped")
        )
        return self.gate(layer(x[0]), np.repeat(x[1], multiplier))

    def separable(self, x, filters):
        layer = layers.SeparableConv2D(filters, 3, padding="same", name=self.name("separable"))
        return self.produce(layer, x, filters)

    def transposed(self, x, filters):
        layer = layers.Conv2DTranspose(filters, 3, padding="same", name=self.name("transposed"))
        return self.produce(layer, x, filters)

    def dense(self, x, units, **kwargs):
        return self.produce(layers.Dense(units, name=self.name("dense"), **kwargs), x, units)

    def apply(self, layer, x):
        return self.gate(layer(x[0]), x[1])

    def norm(self, x):
        return self.apply(layers.BatchNormalization(name=self.name("norm")), x)

    def join(self, layer, *xs):
        # Plans treat them alike, where the sum is part of the network.
        stay = np.logical_and.reduce([x[1] for x in xs])
        return self.gate(layer([x[0] for x in xs]), stay)

    def concat(self, *xs):
        tensor = layers.Concatenate()([x[0] for x in xs])
        return self.gate(tensor, np.concatenate([x[1] for x in xs]))

    def flatten(self, x):
        copies = int(np.prod(x[0].shape[1:-1]))
        return self.gate(layers.Flatten()(x[0]), np.tile(x[1], copies))

    def nested(self, x, filters, calls=1):
        """Convolution, BatchNorm and ReLU as a network in the network."""
        name = self.name("nested")
        gated = self.plan is not None
        inner = Net(None, 0)
        inner.plan = (
            {key.split("/")[1]: mask for key, mask in self.plan.items() if key.startswith(name)}
            if gated
            else None
        )
        inside = keras.Input(x[0].shape[1:])
        out = inner.conv((inside, x[1]), filters)
        out = inner.apply(layers.ReLU(), inner.norm(out))
        network = keras.Model(inside, out[0], name=name)
        for _ in range(calls):
            x = self.gate(network(x[0]), out[1])
        return x


def shake(network, seed=0):
    """Weights by layer name, so that two builds of one network are the same network."""
    for name, layer in graph.named_layers(network):
        rng = np.random.default_rng([seed, *name.encode()])
        for weight in layer.weights:
            if "variance" in weight.name:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            elif "mask" not in weight.name:
                scale = 1 / np.sqrt(np.prod(weight.shape[:-1])) if len(weight.shape) > 1 else 0.5
                weight.assign(rng.normal(0, scale, weight.shape) + ("gamma" in weight.name))
    return network


def random_plan(network, seed=0, ratio=0.5, outputs=True):
    """A mask for each group, the same for all that can only go together."""
    rng = np.random.default_rng(seed)
    masks = {}
    for group in graph.filter_groups(network):
        if not group.removable.all() or (group.in_output and not outputs):
            continue
        keep = rng.random(group.size) >= ratio * rng.random() * 2
        for places in group.filters.values():
            if not keep[places].any():
                keep[places[0]] = True
        masks.update({name: keep[places] for name, places in group.filters.items()})
    return PruningPlan(masks)


def check(build, seed=0, plan=None, outputs=True):
    """The contract, for a network that `build(net)` makes; gives the plan and what is left."""
    network = shake(keras.Model(*build(Net())), seed)
    plan = random_plan(network, seed, outputs=outputs) if plan is None else plan
    before = [weight.numpy() for weight in network.weights]
    smaller = surgery.remove_filters(network, plan)
    gated = shake(keras.Model(*build(Net(plan))), seed)
    x = np.random.default_rng(seed).normal(0, 1, (2, *network.input_shape[1:])).astype(np.float32)
    expected = gated(x, training=False).numpy()
    found = smaller(x, training=False).numpy()
    kept = np.isin(np.arange(expected.shape[-1]), output_channels(network, plan))
    expected = expected[..., kept]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-3)
    for weight, old in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    dropped = sum(int((~mask).sum()) for mask in plan.values())
    assert (smaller.count_params() < network.count_params()) == (dropped > 0)
    return plan, smaller


def output_channels(network, plan):
    """Places in the output that stay: where a layer's own mask reaches the end."""
    gone = set()
    channels = follow(network)
    for name, mask in plan.items():
        gone.update(channels.layers[name].outputs[~mask].tolist())
    return [place for place, number in enumerate(channels.outputs[0]) if number not in gone]


# Kinds of networks.


def chain(net):
    x = start = net.input(8, 8, 3)
    for filters in (6, 8, 5):
        x = net.apply(layers.ReLU(), net.norm(net.conv(x, filters)))
        x = net.apply(layers.MaxPooling2D(2, padding="same"), x)
    return start[0], net.dense(net.flatten(x), 4, activation="softmax")[0]


def relu_before_norm(net):
    """As behind conv 2 of the image network; a sigmoid, which is not zero at zero."""
    x = start = net.input(8, 8, 3)
    x = net.norm(net.apply(layers.ReLU(), net.conv(x, 6)))
    x = net.apply(layers.Activation("sigmoid"), net.conv(x, 6))
    return start[0], net.dense(net.apply(layers.GlobalAveragePooling2D(), x), 3)[0]


def resnet(net):
    x = start = net.input(8, 8, 3)
    x = net.apply(layers.ReLU(), net.norm(net.conv(x, 8)))
    for stride in (1, 2, 1):
        y = net.apply(layers.ReLU(), net.norm(net.conv(x, 6, strides=stride)))
        y = net.norm(net.conv(y, 8))
        shortcut = net.norm(net.conv(x, 8, 1, strides=2)) if stride == 2 else x
        x = net.apply(layers.ReLU(), net.join(layers.Add(), shortcut, y))
    return start[0], net.dense(net.apply(layers.GlobalAveragePooling2D(), x), 5)[0]


def densenet(net):
    x = start = net.input(8, 8, 3)
    x = net.conv(x, 6)
    for _ in range(3):
        y = net.apply(layers.ReLU(), net.norm(x))
        y = net.conv(net.apply(layers.ReLU(), net.norm(net.conv(y, 8, 1))), 4)
        x = net.concat(x, y)
    x = net.apply(layers.AveragePooling2D(2), net.conv(net.apply(layers.ReLU(), net.norm(x)), 7, 1))
    return start[0], net.dense(net.apply(layers.GlobalMaxPooling2D(), x), 5)[0]


def mobilenet(net):
    x = start = net.input(8, 8, 3)
    x = net.apply(layers.ReLU(6.0), net.norm(net.conv(x, 8, strides=2)))
    for filters, multiplier in ((8, 1), (6, 2), (8, 1)):
        y = net.apply(layers.ReLU(6.0), net.norm(net.conv(x, 10, 1)))
        y = net.apply(layers.ReLU(6.0), net.norm(net.depthwise(y, multiplier)))
        y = net.norm(net.conv(y, filters, 1))
        x = net.join(layers.Add(), x, y) if filters == len(x[1]) else y
    x = net.apply(layers.GlobalAveragePooling2D(), x)
    return start[0], net.dense(x, 5, activation="softmax")[0]


def squeeze_excite(net):
    x = start = net.input(8, 8, 3)
    x = net.conv(x, 8)
    s = net.apply(layers.GlobalAveragePooling2D(keepdims=True), x)
    s = net.dense(net.dense(s, 4, activation="relu"), 8, activation="sigmoid")
    x = net.join(layers.Multiply(), x, s)
    return start[0], net.conv(x, 6)[0]


def groups(net):
    x = start = net.input(8, 8, 3)
    x = net.conv(x, 8)
    x = net.norm(net.conv(x, 12, groups=4))
    x = net.as_groups(x, 2)
    x = net.separable(x, 6)
    x = net.transposed(x, 5)
    return start[0], net.conv(net.apply(layers.PReLU(shared_axes=[1, 2], name="prelu"), x), 4)[0]


def nesting(net):
    x = start = net.input(8, 8, 3)
    x = net.nested(net.conv(x, 6), 6)
    x = net.nested(x, 8)
    return start[0], net.dense(net.flatten(x), 3)[0]


def shared(net):
    """One network called three times: its output is its own input."""
    x = start = net.input(8, 8, 3)
    x = net.nested(net.conv(x, 6), 6, calls=3)
    return start[0], net.conv(x, 3)[0]


def concat_and_add(net):
    """Two convolutions side by side added to one of both widths."""
    x = start = net.input(8, 8, 3)
    x = net.join(layers.Add(), net.concat(net.conv(x, 3), net.conv(x, 5)), net.conv(x, 8))
    return start[0], net.conv(net.norm(x), 4)[0]


NETWORKS = (
    *(chain, relu_before_norm, resnet, densenet, mobilenet, squeeze_excite, groups, nesting),
    *(shared, concat_and_add),
)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("build", NETWORKS)
def test_smaller_network_ignores_what_went(build, seed):
    plan, _ = check(build, seed)
    assert plan


def random_network(program):
    """A network from numbers: each chooses what comes next and which tensors it takes."""

    def build(net):
        rng = np.random.default_rng(program)
        start = net.input(6, 6, 2)
        tensors = [net.conv(start, int(rng.integers(2, 6)))]
        kinds = ("conv", "conv", "norm", "relu", "tanh", "depthwise", "pool", "add", "concat")
        kinds += ("multiply", "grouped", "nested", "separable", "transposed", "one")
        for _ in range(int(rng.integers(3, 9))):
            kind = kinds[rng.integers(len(kinds))]
            x = tensors[rng.integers(len(tensors))]
            filters = int(rng.integers(2, 6))
            alike = [y for y in tensors if y[0].shape[1:3] == x[0].shape[1:3]]
            wide = [y for y in alike if len(y[1]) == len(x[1])]
            if kind == "conv":
                x = net.conv(x, filters, strides=int(rng.integers(1, 3)))
            elif kind == "one":
                x = net.conv(x, len(x[1]), 1)
            elif kind == "norm":
                x = net.norm(x)
            elif kind in ("relu", "tanh"):
                x = net.apply(layers.Activation(kind), x)
            elif kind == "depthwise":
                x = net.depthwise(x, int(rng.integers(1, 3)))
            elif kind == "pool":
                x = net.apply(layers.AveragePooling2D(2, 1, padding="same"), x)
            elif kind in ("add", "multiply"):
                layer = layers.Add() if kind == "add" else layers.Multiply()
                # Not itself: a sum of products of three would be an unsafe test of float32.
                x = net.join(layer, x, wide[rng.integers(len(wide))])
            elif kind == "concat":
                x = net.concat(x, alike[rng.integers(len(alike))])
            elif kind == "grouped" and len(x[1]) % 2 == 0:
                x = net.conv(x, 2 * filters, groups=2)
            elif kind == "nested":
                x = net.nested(x, filters)
            elif kind == "separable":
                x = net.separable(x, filters)
            elif kind == "transposed":
                x = net.transposed(x, filters)
            tensors.append(x)
        ends = [net.apply(layers.GlobalAveragePooling2D(), x) for x in tensors[-3:]]
        x = net.concat(*ends) if len(ends) > 1 else ends[0]
        if rng.random() < 0.5:
            x = net.flatten(tensors[-1])
        return start[0], net.dense(x, 3)[0]

    return build


@pytest.mark.slow
@settings(
    max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(st.integers(0, 2**32 - 1))
def test_random_networks(program):
    check(random_network(program), program)
    keras.backend.clear_session()


# Published shapes.


@pytest.mark.parametrize(("name", "shape"), [("mel128", (128, 199, 1)), ("vision", (224, 224, 3))])
def test_l3_networks(name, shape):
    """EdgeL3's halves at an eighth of their width: every layer loses filters, the last too."""
    filters = [8, 8, 16, 16, 32, 32, 64, 64]
    options = {} if name == "vision" else {"input": "log_mel"}
    network = shake(create_network(name, filters=filters, **options))
    plan = random_plan(network, 3)
    smaller = surgery.remove_filters(network, plan)
    # With its BatchNorm at zero, a filter is as good as ignored.
    silent = surgery.remove_filters(network, PruningPlan({}))
    norms = {f"conv_{i}": f"batch_normalization_{i + 1}" for i in range(1, 8)}
    for conv, norm in norms.items():
        layer = silent.get_layer(norm)
        if name == "vision" and conv == "conv_2":
            following = silent.get_layer("conv_3")
            following.kernel.assign(following.kernel * plan[conv][:, np.newaxis])
            continue
        layer.gamma.assign(layer.gamma * plan[conv])
        layer.beta.assign(layer.beta * plan[conv])
    last = list(plan)[-1]
    x = np.random.default_rng(0).uniform(-1, 1, (1, *shape)).astype(np.float32)
    copies = network.output_shape[1] // 64
    expected = inference(silent)(x)[:, np.tile(plan[last], copies)]
    found = inference(smaller)(x)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert network_config(smaller).arguments["filters"] == [int(m.sum()) for m in plan.values()]


def test_a_smaller_network_is_saved_and_loaded(tiny, tmp_path):
    plan = random_plan(tiny, 1)
    smaller = surgery.remove_filters(tiny, plan)
    save_network(smaller, tmp_path / "smaller.h5")
    loaded = load_network(tmp_path / "smaller.h5")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8000)).astype(np.float32)
    np.testing.assert_array_equal(inference(loaded)(x), inference(smaller)(x))
    assert (tmp_path / "smaller.h5").stat().st_size > 0


def test_a_long_embedding_gets_shorter():
    network = create_network("mel256", filters=[2] * 8, embedding_size=24)
    smaller = surgery.remove_filters(
        network, PruningPlan({"audio_embedding_layer": np.array([False, True])})
    )
    assert smaller.output_shape == (None, 12)
    assert network_config(smaller).arguments["embedding_size"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "DenseNet121"])
def test_well_known_networks_shrink(name):
    """Keras's own, as they are: each layer loses a quarter, and what is left is a network."""
    network = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=7)
    masks = {}
    for group in graph.filter_groups(network):
        keep = np.arange(group.size) % 4 != 3
        if group.removable.all():
            masks.update({layer: keep[places] for layer, places in group.filters.items()})
    smaller = surgery.remove_filters(network, PruningPlan(masks))
    assert smaller.output_shape == (None, 7)
    assert 0.5 < smaller.count_params() / network.count_params() < 0.65
    out = smaller(np.zeros((1, 32, 32, 3), np.float32), training=False).numpy()
    np.testing.assert_allclose(out.sum(), 1, rtol=1e-5)


# Masks, and what is refused.


def test_masks_shrink_with_their_filters(tiny):
    masked = surgery.apply_masks(
        tiny, PruningPlan({"conv_2": np.random.default_rng(0).random((3, 3, 4, 4)) > 0.5})
    )
    plan = PruningPlan(
        {"conv_1": np.array([1, 1, 0, 1], bool), "conv_2": np.array([1, 0, 1, 1], bool)}
    )
    smaller = surgery.remove_filters(masked, plan)
    layer = smaller.get_layer("conv_2")
    assert isinstance(layer, MaskedConv2D)
    expected = graph.masks(masked)["conv_2"][:, :, plan["conv_1"]][..., plan["conv_2"]]
    np.testing.assert_array_equal(layer.mask.numpy(), expected)
    assert (layer.kernel.numpy()[~expected] == 0).all()


def test_masks_in_nested_networks():
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv")], name="in")
    outer = keras.Sequential([keras.Input((8, 8, 3)), inner, layers.Conv2D(2, 3, name="conv")])
    assert list(graph.conv_weights(outer)) == ["in/conv", "conv"]
    plan = PruningPlan({"in/conv": np.random.default_rng(0).random((3, 3, 3, 4)) > 0.5})
    masked = surgery.apply_masks(outer, plan)
    assert graph.masks(masked) == plan
    assert not graph.masks(surgery.strip_masks(masked))


def test_scales_are_those_of_the_norm_behind():
    network = shake(keras.Model(*resnet(Net())))
    weights = graph.conv_weights(network)
    np.testing.assert_array_equal(weights["conv_1"].gamma, network.get_layer("norm_2").gamma)
    vision = shake(create_network("vision", filters=[2] * 8))
    np.testing.assert_array_equal(
        graph.conv_weights(vision)["conv_2"].gamma, vision.get_layer("batch_normalization_3").gamma
    )
    assert graph.conv_weights(vision)["vision_embedding_layer"].gamma is None


def test_groups_of_a_residual_network():
    groups = {g.name: g for g in graph.filter_groups(keras.Model(*resnet(Net())))}
    sums = [set(g.filters) for g in groups.values() if len(g.filters) > 1]
    # The stem and the first block; the shortcut and the two later blocks.
    assert [len(names) for names in sums] == [2, 3]
    assert not any(names & other for names in sums for other in sums if names is not other)
    concat = {
        g.name: {k: v.tolist() for k, v in g.filters.items()}
        for g in graph.filter_groups(keras.Model(*concat_and_add(Net())))
    }
    assert concat["conv_1"] == {
        "conv_1": [0, 1, 2],
        "conv_2": [3, 4, 5, 6, 7],
        "conv_3": [0, 1, 2, 3, 4, 5, 6, 7],
    }


def test_masks_that_disagree_name_both_layers():
    network = keras.Model(*resnet(Net()))
    keep = np.arange(8) > 1
    with pytest.raises(ParameterError, match="layers conv_1 and conv_5 can only lose filters toge"):
        surgery.remove_filters(network, PruningPlan({"conv_1": keep}))
    with pytest.raises(ParameterError, match=r"conv_1 and conv_5 .* disagree about filter 0"):
        surgery.remove_filters(network, PruningPlan({"conv_1": keep, "conv_5": keep[::-1]}))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"conv_9": np.array([True])}, "the plan names layer 'conv_9'; convolutions and dense"),
        ({"conv_1": np.array([True] * 5)}, r"conv_1: mask of shape \(5,\) given; whole filters"),
        ({"conv_1": np.ones((3, 3, 3, 6), bool)}, r"mask of shape \(3, 3, 3, 6\) given"),
        ({"dense_7": np.arange(4) > 0}, "dense_7: filter 0 cannot be removed: dense_7 compares"),
    ],
)
def test_bad_plans(plan, message):
    with pytest.raises(ParameterError, match=message):
        surgery.remove_filters(keras.Model(*chain(Net())), PruningPlan(plan))


def lstm(x):
    return layers.LSTM(3, name="odd")(layers.Reshape((-1, x.shape[-1]))(x))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lstm, "layer odd is a LSTM, a kind whose channels cannot be followed"),
        (lambda x: layers.Lambda(lambda y: y[..., ::-1], name="odd")(x), "odd is a Lambda"),
        (lambda x: x * 2, "is a TFOpLambda"),
        (lambda x: layers.Permute((3, 1, 2), name="odd")(x), "layer odd is a Permute"),
        (lambda x: layers.Reshape((12, 2), name="odd")(layers.Flatten()(x)), "odd reshapes"),
        (lambda x: layers.BatchNormalization(1, name="odd")(x), "odd normalises another axis"),
    ],
)
def test_unknown_layers_refuse_with_their_name(odd, message):
    inputs = keras.Input((2, 3, 3))
    x = odd(layers.Conv2D(4, 1, name="conv")(inputs))
    network = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ParameterError, match=message):
        surgery.remove_filters(network, PruningPlan({"conv": np.array([1, 0, 1, 1], bool)}))
    # Masks need no channels to be followed.
    surgery.apply_masks(network, PruningPlan({"conv": np.array([1, 0, 1, 1], bool)}))


def test_channels_that_a_layer_needs_stay():
    inputs = keras.Input((2, 3, 3))
    x = layers.LayerNormalization(name="all")(layers.Conv2D(4, 1, name="conv")(inputs))
    network = keras.Model(inputs, layers.Dense(2)(x))
    (group, _) = graph.filter_groups(network)
    assert not group.removable.any()
    with pytest.raises(ParameterError, match="filter 1 cannot be removed: all needs all of them"):
        surgery.remove_filters(network, PruningPlan({"conv": np.array([1, 0, 1, 1], bool)}))


def test_subclassed_networks_refuse():
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ParameterError, match="network mine is not functional"):
        surgery.remove_filters(Mine(name="mine"), PruningPlan({}))
