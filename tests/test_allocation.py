import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune.allocation import LayerCost, by_sensitivity, checked, erk, share_out, uniform
from l3prune.errors import ParameterError


def layer(name, filters=8, channels=4, kernel=(1, 1), positions=1, previous=()):
    weights = kernel[0] * kernel[1] * channels * filters
    return LayerCost(name, weights, filters, positions, channels, kernel, previous)


@st.composite
def networks(draw):
    """Chains of up to six convolutions."""
    costs, channels, previous = [], draw(st.integers(1, 3)), ()
    for number in range(draw(st.integers(1, 6))):
        filters, side = draw(st.integers(2, 64)), draw(st.sampled_from([1, 3]))
        costs.append(
            layer(
                f"conv_{number}",
                filters,
                channels,
                (side, side),
                draw(st.sampled_from([1, 10, 1000])),
                previous,
            )
        )
        channels, previous = filters, (f"conv_{number}",)
    return costs


def sparsity_of(costs, amounts, per="weights"):
    sizes = [getattr(each, per) for each in costs]
    return np.dot([amounts[each.name] for each in costs], sizes) / sum(sizes)


# Costs.


def test_a_layer_s_cost():
    cost = LayerCost("conv_2", 36864, 64, 256 * 199, 64, (3, 3), ("conv_1",))
    assert (cost.area, cost.per_filter, cost.macs) == (9, 576, 1_877_999_616)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": 35}, r"layer a: 35 weights are not kernel \(3, 3\) x 1 channels x 4 filters"),
        ({"kernel_size": (3, 3, 1)}, "layer a: 36 weights are not kernel"),
        ({"filters": 0}, "layer a: filters=0 is not a whole number from 1 on"),
        ({"positions": 2.5}, "layer a: positions=2.5 is not a whole number"),
        ({"previous": "b"}, r"previous='b' is not a tuple of layer names; give \('b',\)"),
        ({"together": 3}, "layer a: 4 filters are not a multiple of the 3 that go together"),
        ({"role": "dense"}, "role='dense' is unknown; known: convolution, reader, follower"),
        ({"channels": (4,)}, r"layer a: channels=\(4,\) for previous=\(\); give one number"),
    ],
)
def test_costs_that_do_not_fit(change, message):
    right = {"weights": 36, "filters": 4, "positions": 1, "in_channels": 1, "kernel_size": (3, 3)}
    LayerCost("a", **right)
    with pytest.raises(ParameterError, match=message):
        LayerCost("a", **{**right, **change})


def test_layers_that_do_not_fit_together():
    with pytest.raises(ParameterError, match="there are no convolutions to prune"):
        checked([])
    with pytest.raises(ParameterError, match="two layers have the same name"):
        checked([layer("a"), layer("a")])
    with pytest.raises(ParameterError, match=r"layer b reads layer z, .* a, b"):
        checked([layer("a"), layer("b", previous=("z",))])
    with pytest.raises(ParameterError, match="layer b has 4 input channels, but a give 8"):
        checked([layer("a", filters=8), layer("b", channels=4, previous=("a",))])
    # Some channels may be of layers that are not pruned, but not fewer than there are.
    some = dataclasses.replace(layer("b", channels=4, previous=("a",)), channels=(3,))
    assert len(checked([layer("a"), some])) == 2
    with pytest.raises(ParameterError, match="layer b has 4 input channels, but a give 5"):
        checked([layer("a"), dataclasses.replace(some, channels=(5,))])
    with pytest.raises(ParameterError, match="there are no convolutions to prune"):
        checked([dataclasses.replace(layer("a"), role="reader")])
    with pytest.raises(ParameterError, match="layer b reads layer a, which is not among"):
        checked([dataclasses.replace(layer("a"), role="reader"), layer("c"), some])
    concatenation = layer("c", channels=11, previous=("a", "b"))
    assert len(checked([layer("a", filters=8), layer("b", filters=3), concatenation])) == 3


def test_rules_leave_alone_what_is_not_pruned():
    costs = [layer("a"), layer("b", channels=8, previous=("a",))]
    dense = LayerCost("d", 30, 3, 1, 10, (1, 1), ("b",), (8,), role="reader")
    curves = {name: [(0, 0), (0.9, 1)] for name in "ab"}
    for kind in ("sparsity", "filters", "macs"):
        for rule in (share_out("erk", kind), share_out("sensitivity", kind, curves), uniform):
            assert rule([*costs, dense], 0.5) == rule(costs, 0.5)


# Uniform.


def test_uniform():
    assert uniform([layer("a"), layer("b")], 0.9) == {"a": 0.9, "b": 0.9}
    # Two weights: one stays.
    assert uniform([layer("a", 2, 1), layer("b")], 0.9) == {"a": 0.5, "b": 0.9}
    with pytest.raises(ParameterError, match=r"sparsity=90 is not in .* pass 0.9"):
        uniform([layer("a")], 90)


# ERK.


def test_erk_by_hand():
    # Shares (in + out + kh + kw): a 2 + 4 + 2 = 8 of 8 weights, b 8 + 8 + 2 = 18 of 64.
    # At sparsity 0.5, 36 stay: scale 36 / 26 would give a 11.1 of its 8, so it stays whole and b
    # keeps 28 of 64. At 0.75, 18 stay: scale 18 / 26.
    costs = [layer("a", 4, 2), layer("b", 8, 8)]
    assert erk(costs, 0.5) == pytest.approx({"a": 0, "b": 1 - 28 / 64})
    assert erk(costs, 0.75) == pytest.approx({"a": 1 - 18 / 26, "b": 1 - 18 * 18 / 26 / 64})


def test_erk_sees_the_kernel():
    # Shares 4 + 8 + 6 of 288 and 4 + 8 + 2 of 32; at 0.9, 32 stay.
    costs = [layer("a", 8, 4, (3, 3)), layer("b", 8, 4)]
    assert erk(costs, 0.9) == pytest.approx({"a": 1 - 18 / 288, "b": 1 - 14 / 32})


def test_erk_caps_layers_that_others_made_too_dense():
    # First only a exceeds its weights; what it cannot take makes b exceed its own.
    costs = [layer("a", 1, 1), layer("b", 4, 4), layer("c", 40, 40)]
    amounts = erk(costs, 0.5)
    assert amounts["a"] == amounts["b"] == 0
    assert sparsity_of(costs, amounts) == pytest.approx(0.5)


def test_erk_that_leaves_a_layer_nothing():
    # Shares 4 of 1 weight and 402 of 40000: 4 stay, b's part of them is 3.961 and a's 0.039.
    with pytest.raises(ParameterError, match=r"layer a would keep 0.039 of its 1 weights at spars"):
        erk([layer("a", 1, 1), layer("b", 200, 200)], 0.9999)


@settings(deadline=None, max_examples=150)
@given(costs=networks(), levels=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)))
def test_erk_meets_the_sparsity_and_rises_with_it(costs, levels):
    low, high = sorted(levels)
    try:
        less, more = erk(costs, low), erk(costs, high)
    except ParameterError as error:
        assert "would keep" in str(error)  # noqa: PT017  # what it gives else is the test
        return
    for level, amounts in ((low, less), (high, more)):
        assert all(0 <= amount < 1 for amount in amounts.values())
        assert sparsity_of(costs, amounts) == pytest.approx(level, abs=1e-9)
        # Densities in proportion to the shares, except of whole layers.
        scales = {
            (1 - amounts[each.name])
            * each.weights
            / (each.in_channels + each.filters + sum(each.kernel_size)): amounts[each.name]
            for each in costs
        }
        sparse = [scale for scale, amount in scales.items() if amount > 0]
        assert max(sparse, default=1) == pytest.approx(min(sparse, default=1))
    assert all(less[name] <= more[name] + 1e-9 for name in less)


# By sensitivity.


def test_the_flattest_line_goes_first():
    costs = [layer("a", 10, 1), layer("b", 10, 1)]
    curves = {"a": [(0, 0), (0.5, 1), (0.9, 9)], "b": [(0, 0), (0.9, 9)]}
    # Slopes: a 2 then 20, b 10, for ten weights each.
    assert by_sensitivity(costs, curves, 0) == {"a": 0, "b": 0}
    assert by_sensitivity(costs, curves, 0.125) == {"a": 0.25, "b": 0}
    assert by_sensitivity(costs, curves, 0.5) == {"a": 0.5, "b": 0.5}
    assert by_sensitivity(costs, curves, 0.7) == pytest.approx({"a": 0.5, "b": 0.9})
    assert by_sensitivity(costs, curves, 0.9) == pytest.approx({"a": 0.9, "b": 0.9})


def test_loss_counts_for_what_it_saves():
    costs = [layer("a", 10, 1, positions=100), layer("b", 100, 1)]
    curves = {name: [(0, 0), (0.5, 1)] for name in "ab"}
    # The same loss: b saves more weights, a more MACs (500 of 1100).
    assert by_sensitivity(costs, curves, 0.1) == {"a": 0, "b": pytest.approx(0.11)}
    macs = by_sensitivity(costs, curves, 0.25, per="macs")
    assert macs == {"a": pytest.approx(275 / 1000), "b": 0}


def test_noise_of_a_curve():
    costs = [layer("a", 10, 1), layer("b", 10, 1)]
    # Below the unpruned loss is taken as no loss, a bump between two points is bridged.
    curves = {"b": [(0, 5), (0.5, 9)], "a": [(0.5, 4.5), (0, 5), (0.6, 9), (0.8, 6)]}
    assert by_sensitivity(costs, curves, 0.25) == {"a": 0.5, "b": 0}
    # a from 0.5 on: 9 at 0.6 is 9 at 0.8 too, so 13.3 a unit; b 8.
    assert by_sensitivity(costs, curves, 0.5) == {"a": 0.5, "b": 0.5}
    assert by_sensitivity(costs, curves, 0.6) == pytest.approx({"a": 0.7, "b": 0.5})


CURVES = st.lists(st.floats(0, 10), min_size=2, max_size=4).map(
    lambda slopes: [
        (0.0, 0.0),
        *zip(
            (np.arange(1, len(slopes) + 1) / 5).tolist(),
            np.cumsum(sorted(slopes)).tolist(),
            strict=True,
        ),
    ]
)


@settings(deadline=None, max_examples=60)
@given(curves=st.lists(CURVES, min_size=3, max_size=3), target=st.floats(0, 0.4), data=st.data())
def test_nothing_on_a_grid_loses_less(curves, target, data):
    """Convex curves, all amounts that are multiples of 1/20 and remove at least as much."""
    costs = [layer(n, data.draw(st.sampled_from([1, 2, 5])), 10) for n in "abc"]
    named = dict(zip("abc", curves, strict=True))

    def loss(amounts):
        return sum(np.interp(a, *np.transpose(named[n])) for n, a in amounts.items())

    found = by_sensitivity(costs, named, target)
    assert sparsity_of(costs, found) == pytest.approx(target, abs=1e-9)
    grids = [np.arange(0, named[n][-1][0] + 0.01, 0.05) for n in "abc"]
    for each in itertools.product(*grids):
        amounts = dict(zip("abc", each, strict=True))
        if sparsity_of(costs, amounts) >= target:
            assert loss(found) <= loss(amounts) + 1e-9


@settings(deadline=None, max_examples=100)
@given(
    costs=networks(),
    levels=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
    seed=st.integers(0, 2**32 - 1),
    per=st.sampled_from(["weights", "macs"]),
)
def test_amounts_meet_the_target_and_rise_with_it(costs, levels, seed, per):
    rng = np.random.default_rng(seed)
    curves = {
        each.name: [(0, 1.0), *((a, rng.normal()) for a in (0.2, 0.5, 0.7, 0.9))] for each in costs
    }
    less, more = (by_sensitivity(costs, curves, level, per) for level in sorted(levels))
    for level, amounts in zip(sorted(levels), (less, more), strict=True):
        assert sparsity_of(costs, amounts, per) == pytest.approx(level, abs=1e-9)
        assert all(0 <= amount <= 0.9 for amount in amounts.values())
    assert all(less[name] <= more[name] for name in less)


@pytest.mark.parametrize(
    ("curves", "target", "message"),
    [
        ({}, 0.5, "curves and layers do not agree about a; give one curve for each of a"),
        ({"a": [(0, 0), (0.9, 1)], "z": []}, 0.5, "do not agree about z"),
        ({"a": [(0.5, 1)]}, 0.5, "curve of layer a has no point at amount 0; add the unpruned"),
        ({"a": [(0, 0), (50, 1)]}, 0.5, r"curve of layer a: amount=50 is not in .* pass 0.5"),
        ({"a": [(0, 0), (0.5, 1), (0.5, 2)]}, 0.5, "has an amount twice"),
        ({"a": [(0, 0), (0.5, np.nan)]}, 0.5, "has NaN or infinite losses"),
        ({"a": [(0, 0), (0.5, 1)]}, 0.6, "target=0.6 is more than the curves reach, 0.5 of all w"),
        ({"a": [(0, 0)]}, 0.6, "target=0.6 is more than the curves reach, 0 of all weights"),
        ({"a": [(0, 0)]}, 60, r"target=60 is not in .* pass 0.6"),
    ],
)
def test_bad_curves(curves, target, message):
    with pytest.raises(ParameterError, match=message):
        by_sensitivity([layer("a")], curves, target)


def test_unknown_price():
    with pytest.raises(ParameterError, match="per='flops' is unknown; known: weights, macs"):
        by_sensitivity([layer("a")], {"a": [(0, 0)]}, 0, per="flops")
