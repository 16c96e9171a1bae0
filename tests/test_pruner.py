"""Wishes carried out on networks of several kinds."""

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras import layers

from l3prune import budget, complexity, graph, surgery
from l3prune.errors import ParameterError
from l3prune.networks import create_network
from l3prune.pruner import Wish, make_plan, outcome, prune
from tests.test_surgery import (
    NETWORKS,
    Net,
    chain,
    concat_and_add,
    densenet,
    mobilenet,
    random_network,
    resnet,
    shake,
    shared,
    squeeze_excite,
)


def network_of(build):
    return shake(keras.Model(*build(Net())))


def computed(network):
    """MACs as `complexity` counts them, and bytes of all kernels and biases."""
    sizes = [
        weight.shape.num_elements()
        for layer in {id(layer): layer for _, layer in graph.named_layers(network)}.values()
        for weight in layer.weights
        if "kernel" in weight.name or "bias" in weight.name
    ]
    macs = sum(row.macs for row in complexity.layer_complexities(network))
    return {"macs": macs, "bytes": 4 * sum(sizes)}


def filters(network):
    return {name: layer.filters for name, layer in graph.convolutions(network).items()}


@pytest.mark.parametrize("build", [chain, resnet, densenet, mobilenet])
@pytest.mark.parametrize("wish", [{"amount": 0.5}, {"overall": 0.4}, {"budget": "macs<=60%"}])
def test_filterwise_on_any_network(build, wish):
    network = network_of(build)
    macs = computed(network)["macs"]
    if "budget" in wish:
        wish = {"budget": f"macs<={int(0.6 * macs)}"}
    smaller, plan = prune(network, Wish(filterwise=True, **wish))
    assert smaller.output_shape == network.output_shape
    assert filters(smaller) == {
        name: int(plan[name].sum()) if name in plan else count
        for name, count in filters(network).items()
    }
    assert smaller.count_params() < network.count_params()
    if "budget" in wish:
        assert computed(smaller)["macs"] <= 0.6 * macs
    if "amount" in wish:
        assert all(abs(mask.mean() - 0.5) < 0.2 for mask in plan.values())
    x = np.random.default_rng(0).normal(0, 1, (1, *network.input_shape[1:])).astype(np.float32)
    assert np.isfinite(smaller(x).numpy()).all()


def test_layers_that_share_some_filters_are_left_alone():
    with pytest.raises(ParameterError, match="no layer can lose filters here"):
        prune(network_of(concat_and_add), Wish(filterwise=True, amount=0.5))
    plan = make_plan(
        network_of(lambda net: longer(net, concat_and_add)), Wish(filterwise=True, amount=0.5)
    )
    assert list(plan) == ["conv_5"]


def test_what_stays_whole_counts_too():
    """A layer that reads what cannot be pruned shares a budget like the others."""
    network = network_of(lambda net: longer(net, lambda net: longer(net, concat_and_add, 24), 2))
    limit = int(0.8 * computed(network)["macs"])
    for allocation in ("uniform", "erk"):
        wish = Wish(filterwise=True, budget=f"macs<={limit}", allocation=allocation)
        smaller, plan = prune(network, wish)
        assert 0.95 * limit <= computed(smaller)["macs"] <= limit
        assert list(plan) == ["conv_5", "conv_6"]


def longer(net, build, filters=2):
    """One convolution more at the end."""
    start, end = build(net)
    return start, net.conv((end, np.ones(end.shape[-1], bool)), filters)[0]


def test_added_layers_get_the_same_mask():
    plan = make_plan(network_of(resnet), Wish(filterwise=True, amount=0.5))
    for group in graph.filter_groups(network_of(resnet)):
        masks = [plan[name].tolist() for name in group.filters if name in plan]
        assert all(mask == masks[0] for mask in masks)


def test_edgel3_width_rows():
    """Table IV's networks, counted with their biases."""
    network = create_network("mel256")
    for counts, parameters in (
        ([64, 48, 64, 64, 128, 128, 256, 256], 1_199_664),
        ([64, 48, 64, 64, 128, 128, 128, 128], 609_584),
        ([64, 48, 64, 64, 64, 64, 128, 128], 388_272),
    ):
        smaller, _ = prune(network, Wish(filterwise=True, counts=counts))
        weights = graph.conv_weights(smaller).values()
        assert sum(w.kernel.size + w.bias.size for w in weights) == parameters
        assert smaller.output_shape == (None, counts[-1])


@pytest.mark.parametrize("text", ["sparsity=80", "bytes<=400k", "macs<=30M"])
@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_budgets_are_met_by_masks(text, allocation):
    network = create_network("sea64")
    masked, _ = prune(network, Wish(budget=text, allocation=allocation))
    total, nonzero = graph.count_kernel_weights(masked)
    wish = budget.parse_budget(text)
    if wish.kind == "sparsity":
        assert 1 - nonzero / total == pytest.approx(0.8, abs=1e-3)
    elif wish.kind == "macs":
        assert 0.99 * wish.value <= graph.count_macs(masked)[1] <= wish.value
    else:
        biases = sum(layer.filters for layer in graph.convolutions(masked).values())
        assert 0.99 * wish.value <= 4 * (nonzero + biases) <= wish.value


# Budgets count what the pruned network computes, whatever its layers.


def dense_head(net):
    x = start = net.input(16, 16, 1)
    x = net.apply(layers.MaxPooling2D(2), net.norm(net.conv(net.conv(x, 24), 32)))
    x = net.apply(layers.MaxPooling2D(2), net.conv(net.conv(x, 40), 48))
    return start[0], net.dense(net.dense(net.flatten(x), 64), 10)[0]


def depthwise_and_dense(net):
    x = start = net.input(16, 16, 1)
    x = net.depthwise(net.conv(x, 48), 2)
    x = net.norm(net.conv(net.depthwise(net.conv(x, 40, 1)), 56, 1))
    return start[0], net.dense(net.dense(net.flatten(x), 16), 4)[0]


def separable(net):
    x = start = net.input(12, 12, 2)
    x = net.conv(net.separable(net.conv(x, 40), 12), 36)
    return start[0], net.separable(x, 8)[0]


def transposed(net):
    x = start = net.input(12, 12, 2)
    x = net.conv(net.transposed(net.conv(x, 40), 20), 44)
    return start[0], net.transposed(x, 6)[0]


def grouped(net):
    x = start = net.input(12, 12, 2)
    x = net.conv(net.as_groups(net.conv(net.conv(x, 64), 96, groups=4), 2), 72, use_bias=False)
    return start[0], net.dense(net.flatten(x), 7)[0]


def one_dimensional(net):
    x = start = net.input(16, 9, 2)
    x = net.conv(net.conv(net.conv(x, 40), 50), 36, strides=(1, 9))
    x = net.apply(layers.Reshape((16, 36)), x)
    x = net.produce(layers.Conv1D(12, 3, name="line"), x, 12)
    return start[0], net.dense(net.flatten(x), 7)[0]


KINDS = (dense_head, depthwise_and_dense, separable, transposed, grouped, one_dimensional)


@pytest.mark.parametrize("kind", ["macs", "bytes"])
@pytest.mark.parametrize("part", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("build", KINDS)
def test_limits_hold_for_the_whole_network(build, part, kind):
    network = network_of(build)
    limit = int(part * computed(network)[kind])
    for allocation in ("uniform", "erk"):
        wish = Wish(filterwise=True, budget=f"{kind}<={limit}", allocation=allocation)
        smaller, _ = prune(network, wish)
        assert 0.99 * limit <= computed(smaller)[kind] <= limit
        found = outcome(network, smaller, wish)
        assert (found.value, found.met, found.near) == (computed(smaller)[kind], True, True)


@pytest.mark.parametrize("build", [build for build in (*NETWORKS, *KINDS) if build is not shared])
@pytest.mark.parametrize("ratio", [0.25, 0.6])
def test_costs_are_those_of_the_pruned_network(build, ratio):
    agree(network_of(build), ratio)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(program=st.integers(0, 2**32 - 1), ratio=st.floats(0, 0.9))
def test_costs_are_those_of_any_pruned_network(program, ratio):
    agree(network_of(random_network(program)), ratio)


def agree(network, ratio):
    costs = complexity.layer_costs(network)
    try:
        smaller, _ = prune(network, Wish(filterwise=True, amount=ratio))
    except ParameterError as error:
        assert "no layer can lose filters here" in str(error)  # noqa: PT017  # rightly so
        smaller = network
    for kind, value in computed(smaller).items():
        assert budget.measure(kind, costs, filters(smaller), "filterwise") == value
    before = sum(cost.weights for cost in costs if cost.pruned)
    after = graph.count_kernel_weights(smaller)[0]
    sparsity = budget.measure("sparsity", costs, filters(smaller), "filterwise")
    assert sparsity == pytest.approx(1 - after / before)


def test_layerwise_limits_count_what_is_not_pruned():
    network = network_of(dense_head)
    limit = int(0.95 * computed(network)["bytes"])
    masked, _ = prune(network, Wish(budget=f"bytes<={limit}"))
    total, nonzero = graph.count_kernel_weights(masked)
    assert 0.99 * limit <= computed(masked)["bytes"] - 4 * (total - nonzero) <= limit
    with pytest.raises(ParameterError, match=r"bytes<=1k cannot be met layerwise: this rule gets"):
        prune(network, Wish(budget="bytes<=1k"))


# Grouped convolutions.


def conv_groups_conv(net):
    x = start = net.input(8, 8, 3)
    x = net.conv(net.conv(net.conv(x, 16), 24, groups=4), 10)
    return start[0], net.conv(x, 6)[0]


@pytest.mark.parametrize(
    ("wish", "counts"),
    [
        # Of 16 and 24 filters four at a time go.
        ({"amount": 0.5}, [8, 12, 5, 6]),
        ({"amount": 0.25, "round_to": 8}, [16, 24, 8, 6]),
        ({"counts": [12, 8, 3, 4]}, [12, 8, 3, 4]),
        ({"amount": [0.75, 0, 0, 0.5]}, [4, 24, 10, 3]),
        ({"overall": 0.5}, None),
        ({"budget": "filters=40%"}, None),
        ({"budget": "macs<=100k"}, None),
    ],
)
def test_grouped_convolutions_lose_as_many_filters_of_each_group(wish, counts):
    network = network_of(conv_groups_conv)
    smaller, plan = prune(network, Wish(filterwise=True, **wish))
    found = list(filters(smaller).values())
    assert counts is None or found == counts
    for name in ("conv_1", "conv_2"):
        assert len({mask.sum() for mask in np.split(plan[name], 4)}) == 1
    assert found[0] < 16 or found[1] < 24 or "round_to" in wish
    assert smaller.get_layer("conv_2").groups == 4
    if "budget" in wish:
        assert outcome(network, smaller, Wish(filterwise=True, **wish)).met


def test_groups_lose_what_scores_least():
    network = network_of(conv_groups_conv)
    layer = network.get_layer("conv_1")
    kernel = np.ones(layer.kernel.shape)
    # Filters 1, 5, 9 and 13 are the second of each group; one of them is strong.
    kernel[..., [1, 5, 13]] = 0.1
    kernel[..., 9] = 2
    layer.kernel.assign(kernel)
    plan = make_plan(network, Wish(filterwise=True, amount=[0.25, 0, 0, 0]))
    assert np.flatnonzero(~plan["conv_1"]).tolist() == [1, 5, 9, 13]


def test_counts_that_groups_do_not_allow():
    message = "layer conv_1: 10 filters cannot stay: 4 at a time go together, one of each group"
    with pytest.raises(ParameterError, match=message):
        make_plan(network_of(conv_groups_conv), Wish(filterwise=True, counts=[10, 8, 3, 6]))


def test_a_layer_that_is_multiplied_by_a_dense_one_stays_whole():
    """Channels of a squeeze-and-excitation go with the dense layer's outputs, which stay."""
    network = network_of(lambda net: longer(net, squeeze_excite))
    plan = make_plan(network, Wish(filterwise=True, amount=0.5))
    assert list(plan) == ["conv_4"]
    with pytest.raises(ParameterError, match="with a layer that is no 2-D convolution"):
        make_plan(network_of(squeeze_excite), Wish(filterwise=True, amount=0.5))


# Networks that are pruned already.

EDGEL3 = [part / 100 for part in (0, 85, 85, 85, 75, 95, 98, 98)]


@pytest.fixture(scope="module")
def sparse():
    """SEA-64 with EdgeL3's sparsities, 90.42 % in all, and the same without masks."""
    masked, _ = prune(shake(create_network("sea64")), Wish(amount=EDGEL3))
    return {"masks": masked, "zeros": surgery.strip_masks(masked)}


@pytest.mark.parametrize("form", ["masks", "zeros"])
@pytest.mark.parametrize("allocation", ["uniform", "erk"])
@pytest.mark.parametrize("text", ["sparsity=95.45", "macs<=12M", "bytes<=100k"])
def test_zeros_that_are_there_are_of_those_that_go(sparse, form, allocation, text):
    wish = Wish(budget=text, allocation=allocation)
    pruned, plan = prune(sparse[form], wish)
    limit = budget.parse_budget(text)
    total, nonzero = graph.count_kernel_weights(pruned)
    if limit.kind == "sparsity":
        assert abs(1 - nonzero / total - limit.value) <= 1 / total
    elif limit.kind == "macs":
        assert 0.99 * 12e6 <= graph.count_macs(pruned)[1] <= 12e6
    else:
        biases = sum(filters(pruned).values())
        assert 0.99 * 100_000 <= 4 * (nonzero + biases) <= 100_000
    assert outcome(sparse[form], pruned, wish).near
    before, after = graph.conv_weights(sparse[form]), graph.conv_weights(pruned)
    for name in before:
        # What is zero is masked, so that training brings nothing back.
        assert not plan[name][before[name].kernel == 0].any()
        assert np.count_nonzero(after[name].kernel) <= np.count_nonzero(before[name].kernel)


@pytest.mark.parametrize("form", ["masks", "zeros"])
@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("macs<=20M", "macs are 17,039,936, 14.8 % below the limit of 20,000,000"),
        ("bytes<=300k", "bytes are 154,228, 48.6 % below the limit"),
        ("sparsity=90", "sparsity is 90.42 % instead of 90 %"),
    ],
)
def test_nothing_goes_where_the_budget_is_met(sparse, form, text, note):
    wish = Wish(budget=text)
    pruned, plan = prune(sparse[form], wish)
    for name, before in graph.conv_weights(sparse[form]).items():
        np.testing.assert_array_equal(graph.conv_weights(pruned)[name].kernel, before.kernel)
        np.testing.assert_array_equal(plan[name], before.kernel != 0)
    found = outcome(sparse[form], pruned, wish)
    assert found.met == (text != "sparsity=90")
    assert found.note.startswith(note)


def test_outcomes():
    network = create_network("sea64", filters=[4] * 8)
    wish = Wish(filterwise=True, budget="filters=0.3")
    smaller, _ = prune(network, wish)
    found = outcome(network, smaller, wish)
    assert found.value == 1 - sum(filters(smaller).values()) / 32
    assert found.met
    assert found.note == ""
    assert outcome(network, network, Wish(amount=0)) is None
    missed = outcome(network, network, wish)
    assert (missed.met, missed.note) == (False, "filters removed are 0 % instead of 30 %")


@pytest.mark.parametrize("text", ["filters=50%", "bytes<=400k", "macs<=30M", "sparsity=75"])
def test_budgets_are_met_by_surgery(text):
    network = create_network("sea64")
    smaller, _ = prune(network, Wish(filterwise=True, budget=text))
    wish = budget.parse_budget(text)
    costs = complexity.layer_costs(smaller)
    weights = sum(cost.weights for cost in costs)
    if wish.kind == "macs":
        assert 0.97 * wish.value <= sum(cost.macs for cost in costs) <= wish.value
    elif wish.kind == "bytes":
        size = 4 * (weights + sum(cost.filters for cost in costs))
        assert 0.97 * wish.value <= size <= wish.value
    elif wish.kind == "filters":
        before = sum(filters(network).values())
        assert sum(cost.filters for cost in costs) / before == pytest.approx(0.5, abs=0.01)
    else:
        before = sum(cost.weights for cost in complexity.layer_costs(network))
        assert 0.75 <= 1 - weights / before < 0.77
    assert smaller.output_shape == network.output_shape


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            {},
            "give exactly one of amount, overall, counts, layers, zero, pattern, "
            "budget; given: none",
        ),
        ({"amount": 0.5, "pattern": "2:4"}, "given: amount, pattern"),
        ({"counts": [1]}, "counts of filters are for filterwise"),
        ({"pattern": "2:4", "filterwise": True}, "are of single weights, so not filterwise"),
        ({"amount": 0.5, "round_to": 8}, "round_to is for ratios of filters"),
        ({"overall": 0.5, "block": "4x4"}, "blocks go to a sparsity of each layer"),
        ({"pattern": "two:four"}, "pattern 'two:four' is not N:M"),
        ({"amount": 0.5, "block": "4"}, "block '4' is not IxO"),
        ({"budget": "macs<=1M", "allocation": "best"}, "allocation='best' is unknown; known: unif"),
        ({"budget": "macs"}, "budget 'macs' is not understood"),
    ],
)
def test_wishes_that_do_not_go_together(wish, message):
    with pytest.raises(ParameterError, match=message):
        Wish(**wish)
