"""Counts against published figures, PyTorch-style conventions, and by hand."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

from l3prune import graph
from l3prune.complexity import (
    complexity_table,
    layer_complexities,
    layer_costs,
    peak_activation_bytes,
)
from l3prune.errors import ParameterError
from l3prune.networks import create_network


def fat2019(cfg=(64, 64, 128, 128, 256, 256, 512, 512), revised=False):
    """The network that was slimmed on FAT2019, as its authors' table counts it."""
    inputs = x = keras.Input((128, 128, 3))
    for number, filters in enumerate(cfg):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        if number % 2 and revised:
            x = layers.MaxPooling2D((1, 2))(layers.AveragePooling2D((2, 1))(x))
        elif number % 2:
            x = layers.AveragePooling2D(2)(x)
    x = layers.GlobalMaxPooling2D()(x)
    x = layers.PReLU(shared_axes=[1])(layers.Dense(128)(x))
    return keras.Model(inputs, layers.Dense(80)(layers.BatchNormalization()(x)))


def totals(network):
    table = complexity_table(network).loc["total"]
    return {
        name: int(table[name]) for name in ("trainable", "parameters", "macs", "thop_2019", "thop")
    }


def test_fat2019_table():
    # The authors' average of maxima has no layer in THOP's count, nor has our global pooling.
    assert totals(fat2019()) == {
        "trainable": 4_763_537,
        "parameters": 4_767_633,
        "macs": 3_350_276_096,
        "thop_2019": 3_371_487_536,
        "thop": 3_366_496_768,
    }
    assert totals(fat2019(revised=True))["thop_2019"] == 3_373_945_136
    half = totals(fat2019((32, 32, 64, 64, 128, 128, 256, 256)))
    assert half["trainable"] == 1_216_689
    assert half["macs"] == 844_670_976
    assert half["thop_2019"] == 855_281_968
    pruned = totals(fat2019((44, 29, 44, 47, 162, 96, 231, 306)))
    assert pruned["trainable"] == 1_138_811
    assert pruned["thop_2019"] == 768_927_664


def test_the_l3_network():
    network = create_network("mel256", embedding_point="activated")
    rows = {row.name: row for row in layer_complexities(network)}
    assert rows["conv_2"].macs == 256 * 199 * 9 * 64 * 64
    assert rows["conv_2"].parameters == 36_928
    assert rows["conv_1"].activation_bytes == 256 * 199 * 64 * 4  # 12.44 MiB, the paper's 12 MB
    assert rows["log_mel"].macs == 0
    assert sum(row.macs for row in rows.values()) == graph.count_macs(network)[0]
    assert totals(network)["trainable"] == 4_688_066
    assert totals(network)["parameters"] == 4_691_908


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # macs, thop 2019, thop
        (
            layers.Conv2D(6, 3, padding="same"),
            (4, 5, 2),
            (20 * 6 * 18, 20 * 6 * (18 + 2), 20 * 6 * 18),
        ),
        (layers.Conv2D(6, 3, groups=2, use_bias=False), (5, 5, 4), (9 * 6 * 18,) * 3),
        (layers.Conv2D(6, 3, strides=2, use_bias=False), (5, 5, 1), (4 * 6 * 9,) * 3),
        (layers.Conv1D(3, 4, use_bias=False), (9, 2), (6 * 3 * 8,) * 3),
        (
            layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
            (5, 5, 2),
            (9 * 4 * 9,) * 3,
        ),
        (layers.SeparableConv2D(5, 3, use_bias=False), (5, 5, 2), (9 * (18 + 10),) * 3),
        # The old rule's biases: the input channels for each output.
        (layers.SeparableConv2D(5, 3), (5, 5, 2), (252, 252 + 45 * 2, 252)),
        (layers.DepthwiseConv2D(3), (5, 5, 2), (162, 162 + 18, 162)),
        (layers.Conv2DTranspose(3, 2, strides=2, use_bias=False), (4, 4, 5), (16 * 5 * 4 * 3,) * 3),
        (layers.Dense(7), (4,), (28, 7 * 7, 28)),
        (layers.BatchNormalization(), (4, 4, 2), (0, 128, 128)),
        (layers.ReLU(), (4, 4, 2), (0, 32, 0)),
        (layers.AveragePooling2D(2), (4, 4, 2), (0, 8 * 3, 8)),
        (layers.AveragePooling2D((2, 1)), (4, 4, 2), (0, 16 * 3, 16)),
        (layers.MaxPooling2D(2), (4, 4, 2), (0, 8 * 2, 0)),
        (layers.GlobalAveragePooling2D(), (4, 4, 2), (0, 0, 0)),
    ],
)
def test_rules_by_hand(layer, shape, expected):
    inputs = keras.Input(shape)
    (row,) = layer_complexities(keras.Model(inputs, layer(inputs)))
    assert (row.macs, row.thop_2019, row.thop) == expected


def test_masks_are_no_parameters():
    from l3prune import surgery
    from l3prune.plan import plan_global

    network = create_network("sea64")
    masked = surgery.apply_masks(network, plan_global(graph.conv_weights(network), 0.9))
    assert totals(masked) == totals(network)


def test_shared_and_nested_layers():
    """A layer that is called twice computes twice and weighs once."""
    inputs = keras.Input((4, 4, 2))
    inner_in = keras.Input((4, 4, 2))
    conv = layers.Conv2D(2, 3, padding="same", name="conv")
    inner = keras.Model(inner_in, conv(inner_in), name="inner")
    rows = layer_complexities(keras.Model(inputs, inner(inner(inputs))))
    assert [row.name for row in rows] == ["inner/conv"] * 2
    assert [row.macs for row in rows] == [16 * 2 * 18] * 2
    assert [row.parameters for row in rows] == [38, 0]


def test_peak_memory_by_hand():
    """A residual block: the skipped tensor stays alive beside the two of the longest step."""
    inputs = keras.Input((4, 4, 2))
    a = layers.Conv2D(8, 1)(inputs)  # 128 values, worked on in place
    b = layers.ReLU()(a)
    c = layers.Conv2D(16, 1)(b)  # 256, while a's 128 are alive
    d = layers.Conv2D(8, 1)(c)  # 128 + 256 + 128
    out = layers.Add()([b, d])
    assert peak_activation_bytes(keras.Model(inputs, out)) == 4 * 512
    assert peak_activation_bytes(keras.Model(inputs, d)) == 4 * (256 + 128)


def test_pruning_makes_every_figure_smaller():
    from l3prune import surgery
    from l3prune.plan import PruningPlan

    network = create_network("sea64")
    plan = PruningPlan(
        {
            name: np.arange(layer.filters) % 2 == 0
            for name, layer in graph.convolutions(network).items()
        }
    )
    smaller = surgery.remove_filters(network, plan)
    before, after = totals(network), totals(smaller)
    assert all(after[name] < before[name] for name in before)
    assert peak_activation_bytes(smaller) == peak_activation_bytes(network) / 2


def test_costs_of_convolutions():
    costs = layer_costs(create_network("mel256"))
    assert sum(cost.macs for cost in costs) == 10_202_628_096
    assert [cost.previous for cost in costs[:3]] == [(), ("conv_1",), ("conv_2",)]
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    b = layers.Conv2D(4, 3, padding="same", name="b")(inputs)
    added = layers.Add()([a, b])
    c = layers.Conv2D(2, 3, name="c")(layers.Concatenate()([added, a]))
    d = layers.Conv2D(2, 3, name="d")(layers.Concatenate()([c, c]))
    found = {cost.name: cost.previous for cost in layer_costs(keras.Model(inputs, d))}
    assert found == {"a": (), "b": (), "c": ("a",), "d": ("c",)}
    reads = {cost.name: cost.channels for cost in layer_costs(keras.Model(inputs, d))}
    assert reads == {"a": (), "b": (), "c": (8,), "d": (4,)}
    shared = layers.Conv2D(4, 1, name="shared")
    with pytest.raises(ParameterError, match="layer shared is called at several places"):
        layer_costs(keras.Model(inputs, layers.Add()([shared(inputs), shared(inputs)])))


def test_costs_of_other_layers():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="first")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = layers.Conv2D(12, 3, groups=4, padding="same", name="grouped")(x)
    x = layers.SeparableConv2D(10, 3, depth_multiplier=2, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(6, 2, strides=2, use_bias=False, name="transposed")(x)
    x = layers.Conv2D(4, 1, name="last")(x)
    network = keras.Model(inputs, layers.Dense(5, name="dense")(layers.Flatten()(x)))
    costs = {cost.name: cost for cost in layer_costs(network)}
    found = {
        name: (cost.role, cost.previous, cost.channels, cost.together)
        for name, cost in costs.items()
    }
    assert found == {
        # A channel of each of the four groups can only go with those of the others.
        "first": ("convolution", (), (), 4),
        "grouped": ("convolution", ("first",), (4,), 4),
        "last": ("convolution", (), (), 1),
        "depthwise": ("follower", ("first",), (16,), 1),
        "separable/depthwise": ("follower", ("grouped",), (24,), 1),
        "separable/pointwise": ("reader", ("grouped",), (24,), 1),
        "transposed": ("reader", (), (), 1),
        "dense": ("reader", ("last",), (4 * 16 * 16,), 1),
    }
    rows = layer_complexities(network)
    assert sum(cost.macs for cost in costs.values()) == sum(row.macs for row in rows)
    biases = sum(cost.filters for cost in costs.values() if cost.bias)
    assert sum(cost.weights for cost in costs.values()) + biases == network.count_params()
    dense = layers.Dense(3, name="twice")
    again = keras.Model(inputs, dense(dense(layers.Conv2D(3, 8, name="conv")(inputs))))
    with pytest.raises(ParameterError, match="layer twice is called at several places"):
        layer_costs(again)


def test_costs_tell_weights_that_are_zero():
    network = create_network("sea64", filters=[4] * 8)
    kernel = network.get_layer("conv_2").kernel
    kernel.assign(np.where(np.arange(4) < 1, kernel.numpy(), 0))
    cost = layer_costs(network)[1]
    assert (cost.present, cost.nonzero, cost.weights) == (36, 36, 144)


def test_subclassed_networks_refuse():
    with pytest.raises(ParameterError, match="network mine is not functional"):
        layer_complexities(keras.Model(name="mine"))


def same(filters):
    return layers.Conv2D(filters, 1)


def test_what_is_read_later_is_not_worked_on_in_place():
    """BatchNorm and ReLU take memory of their own while their input is still needed."""
    inputs = keras.Input((8, 8, 1))
    y = same(16)(inputs)  # 1024 values
    activated = layers.ReLU()(layers.BatchNormalization()(y))  # 1024 more, one for both layers
    joined = layers.Concatenate()([y, activated])  # 2048 more
    assert peak_activation_bytes(keras.Model(inputs, joined)) == 16_384
    # A network's output stays too; without it, all is done in y's place.
    assert peak_activation_bytes(keras.Model(inputs, [y, activated])) == 4 * 2048
    assert peak_activation_bytes(keras.Model(inputs, activated)) == 4 * (64 + 1024)


def test_a_tensor_by_another_name_is_read_later():
    inputs = keras.Input((4, 4, 1))
    y = same(8)(inputs)  # 128 values
    renamed = layers.Dropout(0.5)(y)
    both = layers.Concatenate()([y, layers.ReLU()(renamed)])
    assert peak_activation_bytes(keras.Model(inputs, both)) == 4 * (128 + 128 + 256)
    # Renamed twice and read once: nothing but y and what is made of it.
    both = same(8)(layers.ReLU()(layers.Reshape((4, 4, 8))(renamed)))
    assert peak_activation_bytes(keras.Model(inputs, both)) == 4 * (128 + 128)


def test_peak_memory_of_a_dense_layer():
    """A layer of DenseNet-121's first block: 64 channels come in, 32 more go out."""
    inputs = keras.Input((10, 10, 3))
    x = same(64)(inputs)
    y = layers.ReLU()(layers.BatchNormalization()(x))  # 64, beside x
    y = layers.ReLU()(layers.BatchNormalization()(same(128)(y)))
    # Here x, its activated copy and the bottleneck: 64 + 64 + 128 channels.
    bottleneck = keras.Model(inputs, layers.Add()([same(1)(y), same(1)(x)]))
    assert peak_activation_bytes(bottleneck) == 4 * 100 * 256
    y = layers.Conv2D(32, 3, padding="same")(y)
    both = layers.Concatenate()([x, y])  # 64 + 32 + 96, less than before
    assert peak_activation_bytes(keras.Model(inputs, both)) == 4 * 100 * 256
