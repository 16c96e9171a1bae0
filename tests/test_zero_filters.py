"""Groups that are zero: found, never taken for others, and removed without a change."""

import numpy as np
import pytest
import tf_keras as keras

from l3prune import graph, surgery
from l3prune.errors import L3PruneError, ParameterError
from l3prune.networks import create_network, inference
from l3prune.networks.cp_resnet import kernel_sizes, receptive_field
from l3prune.optimizers import HSPG
from l3prune.recipes import Descent, Recipe
from l3prune.zero_filters import (
    check_same_output,
    group_sparsity,
    kept_reasons,
    make_optimizer,
    plan_zero_filters,
    removable_groups,
    variable_groups,
    zero_places,
)

_CLIP = {"input": "log_mel", "seconds": 1, "bands": 64, "hop": 512, "channels": 1, "classes": 3}

NARROW = {
    "vgg16": {**_CLIP, "filters": [3] * 13},
    "resnet50": {**_CLIP, "filters": [3] * 53},
    "densenet121": {**_CLIP, "filters": [2] * 120},
    "cp_resnet": {**_CLIP, "width": 3, "rho": 2},
}


def joined():
    """A sum, a concatenation with BatchNorm behind it, a depthwise convolution, a dense layer."""
    layers = keras.layers
    inputs = keras.Input((6, 6, 2))
    one = layers.Conv2D(4, 3, padding="same", name="one")(inputs)
    one = layers.ReLU()(layers.BatchNormalization(name="norm_one")(one))
    two = layers.Conv2D(4, 1, name="two")(one)
    both = layers.Add()([one, two])
    three = layers.Conv2D(3, 3, padding="same", use_bias=False, name="three")(inputs)
    maps = layers.Concatenate()([both, three])
    maps = layers.BatchNormalization(name="norm")(maps)
    maps = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(maps)
    values = layers.Flatten()(maps)
    values = layers.Dense(5, "relu", name="hidden")(values)
    return keras.Model(inputs, layers.Dense(2, name="output")(values))


def shaken(network, seed=0):
    """Random weights in all layers, so that nothing is zero or one by chance."""
    rng = np.random.default_rng(seed)
    for weight in network.weights:
        values = rng.normal(0, 0.4, weight.shape)
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.name else values)
    return network


def zeroed(network, chosen):
    """The network with some of its groups zero, by their numbers."""
    for weight, numbers in zip(network.trainable_weights, variable_groups(network), strict=True):
        if numbers is not None:
            weight.assign(np.where(np.isin(numbers, chosen), 0, weight.numpy()))
    return network


def test_groups_by_hand():
    network = joined()
    groups = {group.name: group for group in removable_groups(network)}
    assert {name: group.size for name, group in groups.items()} == {
        "one": 4,
        "three": 3,
        "hidden": 5,
    }
    # The sum ties two convolutions; each has its part of the BatchNorm behind the concatenation.
    assert [*groups["one"].filters] == ["one", "two"]
    assert groups["one"].followers["norm"].tolist() == [0, 1, 2, 3, -1, -1, -1]
    assert groups["three"].followers["norm"].tolist() == [-1, -1, -1, -1, 0, 1, 2]
    assert kept_reasons(network) == {"output": "they are the network's output"}
    found = {
        weight.name.split(":")[0]: None if numbers is None else numbers.ravel().tolist()
        for weight, numbers in zip(network.trainable_weights, variable_groups(network), strict=True)
    }
    first, second = [0, 1, 2, 3], [4, 5, 6]
    for name in ("one/kernel", "one/bias", "two/kernel", "two/bias", "norm_one/gamma"):
        assert found[name] == first
    assert found["three/kernel"] == second
    for name in ("norm/gamma", "norm/beta", "depthwise/bias"):
        assert found[name] == first + second
    assert found["hidden/kernel"] == found["hidden/bias"] == [7, 8, 9, 10, 11]
    assert found["output/kernel"] is None


def test_zero_groups_go_and_the_output_stays():
    network = zeroed(shaken(joined()), [1, 3, 5, 7, 11])
    plan = plan_zero_filters(network)
    assert {name: (~mask).nonzero()[0].tolist() for name, mask in plan.items()} == {
        "one": [1, 3],
        "two": [1, 3],
        "three": [1],
        "hidden": [0, 4],
    }
    assert group_sparsity(network) == 5 / 12
    smaller = surgery.remove_filters(network, plan)
    assert smaller.get_layer("norm").gamma.shape == (4,)
    assert check_same_output(network, smaller) < 1e-5


@pytest.mark.parametrize("member", ["one/bias", "two/kernel", "norm_one/beta", "norm/beta"])
def test_what_is_not_zero_as_a_whole_stays(member):
    network = zeroed(shaken(joined()), [1, 5])
    (weight,) = (each for each in network.weights if each.name == f"{member}:0")
    values = weight.numpy()
    values[..., 1] = 0.3
    weight.assign(values)
    plan = plan_zero_filters(network)
    assert [*plan] == ["three"]
    if not member.endswith("beta"):
        return  # a BatchNorm of zeros behind it hides it, but nobody has to know that
    # Removing it all the same would change the output.
    mask = np.arange(4) != 1
    with pytest.raises(L3PruneError, match="gives other outputs, by up to"):
        check_same_output(
            network, surgery.remove_filters(network, type(plan)({"one": mask, "two": mask}))
        )


def test_a_layer_of_zeros_keeps_one_filter():
    network = zeroed(shaken(joined()), [4, 5, 6])
    plan = plan_zero_filters(network)
    assert plan["three"].tolist() == [True, False, False]
    assert group_sparsity(network) == 3 / 12
    check_same_output(network, surgery.remove_filters(network, plan))


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (keras.layers.Activation("sigmoid"), "a layer behind them makes something else of zeros"),
        (keras.layers.BatchNormalization(scale=False), "makes something else of zeros"),
        (keras.layers.Softmax(), "the network compares them"),
    ],
    ids=["sigmoid", "BatchNorm without scale", "softmax"],
)
def test_groups_that_cannot_be_removed_are_named(behind, reason):
    inputs = keras.Input((4, 4, 1))
    maps = behind(keras.layers.Conv2D(3, 1, name="conv")(inputs))
    network = keras.Model(inputs, keras.layers.Conv2D(2, 1, name="last")(maps))
    assert reason in kept_reasons(network)["conv"]
    with pytest.raises(ParameterError, match=r"no filter of network .* can be removed.*conv: "):
        variable_groups(network)
    for weight in network.get_layer("conv").weights:
        weight.assign(weight * 0)
    with pytest.raises(ParameterError, match="is zero together with its bias and BatchNorm"):
        plan_zero_filters(network)


def test_frozen_batch_norm_is_refused():
    network = joined()
    network.get_layer("norm_one").trainable = False
    with pytest.raises(ParameterError, match="gamma of layer norm_one is not trained"):
        variable_groups(network)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "vgg16")) for name in sorted(NARROW)],
)
def test_zero_filters_of_the_networks_go(name):
    network = create_network(name, **NARROW[name])
    for weight in network.weights:  # BatchNorm of its own
        if weight.shape.rank == 1:
            rng = np.random.default_rng(len(weight.name))
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    count = sum(group.size for group in removable_groups(network))
    zeroed(network, np.arange(0, count, 3))
    assert group_sparsity(network) == pytest.approx(1 / 3, abs=0.01)
    smaller = surgery.remove_filters(network, plan_zero_filters(network))
    check_same_output(network, smaller)
    assert smaller.count_params() < 0.8 * network.count_params()
    again = create_network(name, **smaller.l3prune_config.arguments)
    assert [w.shape for w in again.weights] == [w.shape for w in smaller.weights]


@pytest.mark.parametrize(
    ("name", "filters", "groups"),
    # Groups by hand: of ResNet50 each stage's last convolutions are one.
    [
        ("vgg16", 4224, 4224),
        ("resnet50", 26560, 64 + 640 + 1536 + 4096 + 5120),
        ("densenet121", 10240, 10240),
    ],
)
def test_groups_of_the_published_networks(name, filters, groups):
    from l3prune.networks import densenet, resnet, vgg

    usual = {
        "vgg16": vgg.FILTERS,
        "resnet50": resnet.usual_filters(),
        "densenet121": densenet.usual_filters(),
    }[name]
    assert sum(usual) == filters
    # Narrow, so that nothing large is built: a group has its place in each of its layers.
    network = create_network(name, **NARROW[name])
    width = NARROW[name]["filters"][0]
    found = {group.name: group for group in removable_groups(network)}
    assert sum(len(group.filters) for group in found.values()) == len(usual)
    convolutions = list(graph.convolutions(network))
    assert convolutions == [f"conv_{number}" for number in range(1, len(usual) + 1)]
    sizes = [usual[convolutions.index(group.name)] for group in found.values()]
    assert sum(sizes) == groups
    assert all(group.size == width for group in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "trained"),
    [
        ({"rho": 3}, 3_304_468),
        ({"rho": 5}, 3_566_612),
        ({"rho": 7}, 3_959_828),
        ({"rho": 5, "classes": 15}, 3_566_612 + 2570),
        ({"width": 48, "blocks": (4, 3, 1), "rho": 4}, 247_316),
    ],
)
def test_parameters_of_cp_resnet(arguments, trained):
    network = create_network("cp_resnet", input="log_mel", **arguments)
    assert network.input_shape == (None, 256, 431, 2)
    assert sum(int(np.prod(weight.shape)) for weight in network.trainable_weights) == trained


def test_receptive_fields_of_cp_resnet():
    fields = [23, 31, 39, 55, 71, 87, 103, 135, 167, 199]
    assert [receptive_field(rho) for rho in range(10)] == fields
    # rho 5: of the first stage's blocks the first convolutions are 3, 3, 3, 3, the others 1 3 3 1.
    assert kernel_sizes(5)[:8] == [3, 1, 3, 3, 3, 3, 3, 1]
    assert set(kernel_sizes(5)[8:]) == {1}
    with pytest.raises(ParameterError, match="rho=23 is not a whole number in 0 … 22"):
        kernel_sizes(23)


def test_the_receptive_field_is_seen():
    # What a value of the last maps takes from: all weights positive, one place of them looked at.
    network = create_network("cp_resnet", **{**_CLIP, "seconds": 3, "width": 1, "bands": 128})
    maps = network.get_layer("relu_sum_12").output
    part = keras.Model(network.inputs, maps)
    for weight in part.weights:
        weight.assign(np.zeros(weight.shape) if "beta" in weight.name else np.ones(weight.shape))
    import tensorflow as tf

    x = tf.Variable(
        np.random.default_rng(0).uniform(0, 1, (1, *part.input_shape[1:])), dtype=tf.float32
    )
    with tf.GradientTape() as tape:
        y = part(x, training=False)
        middle = y[0, y.shape[1] // 2, y.shape[2] // 2, 0]
    seen = tape.gradient(middle, x).numpy()[0, :, :, 0].any(axis=1).nonzero()[0]
    assert 1 + seen[-1] - seen[0] <= receptive_field(5) == 87


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg16", {"bands": 16}, "vgg16: its layers leave nothing of an input this small"),
        ("cp_resnet", {"bands": 4}, "cp_resnet: its layers leave nothing of an input this small"),
        ("vgg16", {"normalisation": {"mean": [1], "std": ["a"]}}, "could not convert string"),
        ("resnet50", {"filters": [3] * 52 + [2]}, "resnet50: Inputs have incompatible shapes"),
    ],
)
def test_networks_that_cannot_be_built_are_told(name, arguments, message):
    with pytest.raises(ParameterError, match=message):
        create_network(name, **{**NARROW[name], **arguments})


def test_make_optimizer():
    network = joined()
    recipe = Recipe(descent=Descent("hspg", 1e-2, epsilon=0.5, prox_epochs=3))
    optimizer = make_optimizer(recipe, network, 7)
    assert isinstance(optimizer, HSPG)
    config = optimizer.get_config()
    assert (config["epsilon"], config["prox_epochs"], config["steps_per_epoch"]) == (0.5, 3, 7)
    steps = make_optimizer(Recipe(descent=Descent("obproxsg", 1e-2, prox_steps=9)), network, 7)
    config = steps.get_config()
    assert (config["prox_epochs"], config["orthant_epochs"], config["steps_per_epoch"]) == (
        *(9, None),
        1,
    )
    assert make_optimizer(Recipe(descent=Descent("sgd")), network, 7).name == "SGD"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lbfgs",), "optimizer 'lbfgs' is unknown; adam, sgd, proxsg, obproxsg, hspg"),
        (("hspg",), "optimizer hspg needs a lambda"),
        (("adam", 1e-3), "optimizer adam has no lambda; it is of proxsg, obproxsg, hspg"),
        (("hspg", -1.0), "lambda=-1.0 is not a number from 0 on"),
        (("hspg", 1e-3, 1.0), r"epsilon=1.0 is not in \[0, 1\)"),
        (("proxsg", 1e-3, 0.5), "optimizer proxsg has no epsilon; it is of hspg"),
        (("hspg", 1e-3, 0.5, "newton"), "allowed: sgd, adam"),
        (("hspg", 1e-3, 0.5, None, 3, 4), "prox_epochs or prox_steps, not both"),
        (("hspg", 1e-3, 0.5, None, -3), "prox_epochs=-3 is not a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ParameterError, match=message):
        Descent(*arguments)


def test_the_slides_schedule():
    recipe = Recipe(
        epochs=350,
        learning_rate=1e-4,
        schedule="linear",
        decay_from=50,
        decay_to=250,
        final_learning_rate=5e-6,
    )
    rates = [recipe.rate(epoch) for epoch in (0, 49, 50, 150, 250, 349)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-4, 5.25e-5, 5e-6, 5e-6], rel=1e-12)
    with pytest.raises(ParameterError, match="decay_to=50 is not a whole number ≥ 51"):
        Recipe(schedule="linear", decay_from=50, decay_to=50)


def test_zero_places_sees_what_is_not_a_number():
    network = zeroed(shaken(joined()), [1])
    bias = network.get_layer("one").bias
    bias.assign([0.1, np.nan, 0.1, 0.1])
    assert not zero_places(network)["one"].any()


def test_descent_makes_groups_zero_that_can_go():
    keras.utils.set_random_seed(1)
    network = joined()
    rng = np.random.default_rng(2)
    recipe = Recipe(learning_rate=0.1, descent=Descent("hspg", 2.0, epsilon=0.8, prox_steps=3))
    network.compile(make_optimizer(recipe, network, 1), "mse")
    for _ in range(12):
        inputs = rng.normal(0, 1, (8, 6, 6, 2)).astype("f")
        network.train_on_batch(inputs, inputs.mean((1, 2)))
    assert group_sparsity(network) > 0.2
    smaller = surgery.remove_filters(network, plan_zero_filters(network))
    inputs = rng.normal(0, 1, (3, 6, 6, 2)).astype("f")
    np.testing.assert_allclose(inference(smaller)(inputs), inference(network)(inputs), atol=1e-5)
