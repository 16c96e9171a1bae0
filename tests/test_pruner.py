"""Wishes carried out on networks of several kinds."""

import numpy as np
import pytest
import tf_keras as keras

from l3prune import budget, complexity, graph
from l3prune.errors import ParameterError
from l3prune.networks import create_network
from l3prune.pruner import Wish, make_plan, prune
from tests.test_surgery import Net, chain, concat_and_add, densenet, mobilenet, resnet, shake


def network_of(build):
    return shake(keras.Model(*build(Net())))


def filters(network):
    return {name: layer.filters for name, layer in graph.convolutions(network).items()}


@pytest.mark.parametrize("build", [chain, resnet, densenet, mobilenet])
@pytest.mark.parametrize("wish", [{"amount": 0.5}, {"overall": 0.4}, {"budget": "macs<=60%"}])
def test_filterwise_on_any_network(build, wish):
    network = network_of(build)
    if build is mobilenet and "budget" in wish:
        # Its depthwise layers have two channels for each that they read.
        with pytest.raises(ParameterError, match="conv_13 has 20 input channels, but conv_9 give"):
            prune(network, Wish(filterwise=True, budget="macs<=1k"))
        return
    macs = graph.count_macs(network)[0]
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
        assert graph.count_macs(smaller)[0] <= 0.6 * macs
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


def longer(net, build):
    """One convolution more at the end."""
    start, end = build(net)
    return start, net.conv((end, np.ones(end.shape[-1], bool)), 2)[0]


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
        ({}, "give exactly one of amount, overall, counts, pattern, budget; given: none"),
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
