import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune.criteria import CRITERIA, ConvWeights
from l3prune.errors import ParameterError
from l3prune.filterwise import coupled, filters_kept, plan_filterwise, plan_sequential
from l3prune.plan import score

SCORES = {"a": np.array([3.0, 1.0, 2.0, 2.0]), "b": np.array([10.0, 90.0])}

#: Scores of up to five layers, with ties.
LAYERS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=5).map(
    lambda layers: {f"conv_{i}": np.array(values, float) for i, values in enumerate(layers)}
)


def stays(plan):
    return {layer: mask.nonzero()[0].tolist() for layer, mask in plan.items()}


# Counts.


def test_counts_by_hand():
    plan = plan_filterwise(SCORES, counts=[2, 1])
    # 2.0 is there twice, and the earlier one stays.
    assert stays(plan) == {"a": [0, 2], "b": [1]}
    assert stays(plan_filterwise(SCORES, counts=[4, 2])) == {"a": [0, 1, 2, 3], "b": [0, 1]}
    assert stays(plan_filterwise(SCORES, counts=np.array([3, 1])))["a"] == [0, 2, 3]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([2], r"1 counts given for 2 convolutions; give 2 \(in the order a, b\)"),
        ([2, 3], "layer b: 3 filters cannot stay of 2; give 1 to 2"),
        ([0, 1], "layer a: 0 filters cannot stay of 4; give 1 to 4"),
        ([2.0, 1], r"layer a: 2.0 filters cannot stay"),
        ([True, 1], r"layer a: True filters cannot stay"),
    ],
)
def test_bad_counts(counts, message):
    with pytest.raises(ParameterError, match=message):
        plan_filterwise(SCORES, counts=counts)


MEL256 = (64, 64, 128, 128, 256, 256, 512, 512)


@pytest.fixture(scope="module")
def mel256():
    rng = np.random.default_rng(0)
    weights = {}
    for number, (channels, filters) in enumerate(zip((1, *MEL256), MEL256, strict=False), 1):
        kernel = rng.standard_normal((3, 3, channels, filters), np.float32)
        weights[f"conv_{number}"] = ConvWeights(kernel)
    return weights


@pytest.mark.parametrize(
    ("counts", "parameters"),
    [
        # EdgeL3's Table IV. Parameters of its convolutions with biases, counted from the shapes.
        ((64, 48, 64, 64, 128, 128, 256, 256), 1_199_664),
        ((64, 48, 64, 64, 128, 128, 128, 128), 609_584),
        ((64, 48, 64, 64, 64, 64, 128, 128), 388_272),
    ],
)
def test_edgel3_s_widths(mel256, counts, parameters):
    at_once = plan_filterwise(score(mel256, "l1"), counts=counts)
    for plan in (at_once, plan_sequential(mel256, counts)):
        left, before = 0, np.ones(1, bool)
        for layer, mask in plan.items():
            kernel = mel256[layer].kernel[:, :, before][..., mask]
            left += kernel.size + mask.sum()
            before = mask
        assert left == parameters
    # The first layer's channels are all there, so both rules agree on it and on the second.
    strength = np.abs(mel256["conv_2"].kernel).sum(axis=(0, 1, 2))
    for plan in (at_once, plan_sequential(mel256, counts)):
        assert plan["conv_1"].all()
        assert strength[plan["conv_2"]].min() > strength[~plan["conv_2"]].max()


# Ratios.


@pytest.mark.parametrize(
    ("size", "ratio", "kept"),
    [
        (64, 0, 64),
        (64, 0.25, 48),
        (10, 0.9, 1),
        (10, 0.7, 3),
        (5, 0.5, 3),  # half a filter stays
        (15, 0.1, 14),
        (4, 0.99, 1),
        (1, 0.99, 1),
    ],
)
def test_filters_that_stay_at_a_ratio(size, ratio, kept):
    assert filters_kept(size, ratio) == kept
    plan = plan_filterwise({"conv": np.arange(size)}, ratio=ratio)
    assert stays(plan) == {"conv": list(range(size - kept, size))}


def test_half_a_filter_stays_whatever_binary_makes_of_the_ratio():
    for size in range(1, 200):
        for gone in range(size):
            assert filters_kept(size, (gone + 0.5) / size) == size - gone
            assert filters_kept(size, gone / size) == size - gone


def test_one_ratio_a_layer():
    assert stays(plan_filterwise(SCORES, ratio=[0.75, 0])) == {"a": [0], "b": [0, 1]}


@pytest.mark.parametrize("name", ["ratio", "global_ratio"])
def test_bad_ratio(name):
    with pytest.raises(ParameterError, match=rf"{name}=50 is not in .* pass 0.5"):
        plan_filterwise(SCORES, **{name: 50})
    with pytest.raises(ParameterError, match=rf"{name}='half' is not a number"):
        plan_filterwise(SCORES, **{name: "half"})


def test_exactly_one_wish():
    with pytest.raises(ParameterError, match=r"exactly one of counts.*; given: none"):
        plan_filterwise(SCORES)
    with pytest.raises(ParameterError, match="given: counts, global_ratio"):
        plan_filterwise(SCORES, counts=[1, 1], global_ratio=0.5)


# One threshold for all layers.


def test_one_threshold_by_hand():
    # Over their means: a 1.5, 0.5, 1, 1 and b 0.2, 1.8.
    assert stays(plan_filterwise(SCORES, global_ratio=1 / 6)) == {"a": [0, 1, 2, 3], "b": [1]}
    assert stays(plan_filterwise(SCORES, global_ratio=2 / 6)) == {"a": [0, 2, 3], "b": [1]}
    assert stays(plan_filterwise(SCORES, global_ratio=3 / 6)) == {"a": [0, 2], "b": [1]}
    # Each layer's best stays.
    assert stays(plan_filterwise(SCORES, global_ratio=0.99)) == {"a": [0], "b": [1]}


@settings(deadline=None, max_examples=100)
@given(scores=LAYERS, ratio=st.floats(0, 0.99), data=st.data())
def test_one_threshold(scores, ratio, data):
    plan = plan_filterwise(scores, global_ratio=ratio)
    sizes = [len(values) for values in scores.values()]
    goes = sum((~mask).sum() for mask in plan.values())
    assert abs(goes - min(ratio * sum(sizes), sum(sizes) - len(sizes))) <= 0.5 + 1e-6
    relative = {k: v / v.mean() if v.any() else v for k, v in scores.items()}
    gone = np.concatenate([relative[k][~plan[k]] for k in plan])
    for layer, mask in plan.items():
        best = relative[layer].argmax()
        assert mask[best]
        # Above the threshold, whichever layer set it; only a layer's best may be below.
        others = mask & (np.arange(mask.size) != best)
        if gone.size and others.any():
            assert relative[layer][others].min() >= gone.max() - 1e-12
    # A layer's scale does not matter.
    scaled = {
        k: v * data.draw(st.sampled_from([2.0**-20, 1, 2.0**9]), label=k) for k, v in scores.items()
    }
    assert plan_filterwise(scaled, global_ratio=ratio) == plan


@pytest.mark.parametrize("how", [{"counts": [1]}, {"ratio": 0.5}, {"global_ratio": 0.5}])
def test_negative_scores_keep_their_order(how):
    """Scores from data, such as a change of the loss, can be negative on average."""
    assert stays(plan_filterwise({"conv": np.array([-5.0, 1.0])}, **how)) == {"conv": [1]}


@pytest.mark.parametrize("how", [{"counts": [2]}, {"ratio": 0.5}, {"global_ratio": 0.5}])
def test_ties_are_broken_by_index(how):
    for value in (0.0, 0.1, -3.0):
        assert stays(plan_filterwise({"conv": np.full(4, value)}, **how)) == {"conv": [0, 1]}


def test_ties_among_many_filters():
    # NumPy's sorts are all stable for a few elements.
    scores = np.random.default_rng(0).integers(0, 3, 500).astype(float)
    best = sorted(range(500), key=lambda index: (-scores[index], index))
    for count in (30, 250, 400):
        assert stays(plan_filterwise({"conv": scores}, counts=[count])) == {
            "conv": sorted(best[:count])
        }


def test_ties_between_layers_are_broken_by_index():
    scores = {"a": np.ones(3), "b": np.full(3, 7.0)}
    assert stays(plan_filterwise(scores, global_ratio=1 / 3)) == {"a": [0, 1, 2], "b": [0]}
    assert stays(plan_filterwise(scores, global_ratio=1 / 2)) == {"a": [0, 1], "b": [0]}


# Groups.


def test_layers_of_a_group_lose_the_same_filters():
    scores = {
        "a": np.array([1.0, 2.0, 3.0]),
        "b": np.array([4.0, 1.0]),
        "c": np.array([900.0, 300.0, 0.0]),
    }
    # Over their means: a 0.5, 1, 1.5 and c 2.25, 0.75, 0; together 2.75, 1.75, 1.5.
    groups = [("a", "c")]
    assert stays(plan_filterwise(scores, counts=[1, 2, 1], groups=groups)) == {
        "a": [0],
        "b": [0, 1],
        "c": [0],
    }
    plan = plan_filterwise(scores, ratio=1 / 3, groups=groups)
    assert stays(plan) == {"a": [0, 1], "b": [0], "c": [0, 1]}
    # The threshold: halves of these, 1.375, 0.875, 0.75, against b's 1.6, 0.4. A filter of the
    # group is two of the eight.
    assert stays(plan_filterwise(scores, global_ratio=1 / 8, groups=groups)) == {
        "a": [0, 1, 2],
        "b": [0],
        "c": [0, 1, 2],
    }
    assert stays(plan_filterwise(scores, global_ratio=2 / 8, groups=groups))["a"] == [0, 1, 2]
    assert stays(plan_filterwise(scores, global_ratio=3 / 8, groups=groups))["a"] == [0, 1]
    # Without the group, they do not.
    assert stays(plan_filterwise(scores, counts=[1, 2, 1])) == {"a": [2], "b": [0, 1], "c": [0]}


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    how=st.sampled_from(["ratio", "global_ratio"]),
    amount=st.floats(0, 0.95),
    round_to=st.integers(1, 5),
)
def test_groups_are_never_torn(size, seed, how, amount, round_to):
    rng = np.random.default_rng(seed)
    scores = {name: rng.random(size) for name in "abcd"} | {"e": rng.random(7)}
    plan = plan_filterwise(scores, groups=[("d", "a"), ("b",)], round_to=round_to, **{how: amount})
    assert list(plan) == list(scores)
    np.testing.assert_array_equal(plan["a"], plan["d"])
    assert all(mask.any() for mask in plan.values())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("a", "b")], "layers a and b cannot lose filters together: they have 4 and 2"),
        ([("a", "z")], r"group a \+ z: there is no layer z; known: a, b"),
        ([("a", "a")], "layer a is named twice"),
        ([("a",), ("a",)], "layer a is named twice"),
    ],
)
def test_bad_groups(groups, message):
    with pytest.raises(ParameterError, match=message):
        plan_filterwise(SCORES, ratio=0.5, groups=groups)
    with pytest.raises(ParameterError, match=message):
        coupled({"a": 4, "b": 2}, groups)


def test_a_group_is_asked_for_one_count():
    scores = {"a": np.ones(4), "b": np.ones(4)}
    with pytest.raises(ParameterError, match="layers a and b lose filters together, but 3 and 2"):
        plan_filterwise(scores, counts=[3, 2], groups=[("a", "b")])
    with pytest.raises(ParameterError, match="layers a and b lose filters together, but 4 and 2"):
        plan_filterwise(scores, ratio=[0, 0.5], groups=[("a", "b")])


# Filters that go together, around grouped convolutions.

PLACES = np.array([0, 1, 2, 0, 1, 2])


def test_filters_of_a_place_go_together():
    scores = {"a": np.array([9.0, 1.0, 4.0, 1.0, 1.0, 4.0]), "b": np.array([1.0, 2.0, 8.0])}
    together = {"places": {"a": PLACES}}
    # Means of 5, 1 and 4.
    assert stays(plan_filterwise(scores, ratio=0.3, **together)) == {"a": [0, 2, 3, 5], "b": [1, 2]}
    assert stays(plan_filterwise(scores, counts=[2, 3], **together))["a"] == [0, 3]
    # Layers coupled place by place, the one with two filters at each.
    plan = plan_filterwise(scores, counts=[2, 1], groups=[("a", "b")], **together)
    # 5, 1, 4 over 10/3 and 1, 2, 8 over 11/3: the third is best.
    assert stays(plan) == {"a": [2, 5], "b": [2]}
    # Of 9 filters a third: the two at the place of mean 1, and b's first.
    plan = plan_filterwise(scores, global_ratio=1 / 3, **together)
    assert stays(plan) == {"a": [0, 2, 3, 5], "b": [1, 2]}
    # Of 4 of them: b's first, the two of a, b's second.
    plan = plan_filterwise(scores, global_ratio=0.4, **together)
    assert stays(plan) == {"a": [0, 2, 3, 5], "b": [2]}
    plan = plan_filterwise(scores, ratio=0.6, round_to=4, **together)
    assert [mask.sum() for mask in plan.values()] == [4, 1]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_counts_that_tear_a_place(count):
    message = f"layer a: {count} filters cannot stay: 2 at a time go together, one of each group"
    with pytest.raises(ParameterError, match=message):
        plan_filterwise({"a": np.arange(6.0)}, counts=[count], places={"a": PLACES})


@pytest.mark.parametrize("places", [[0, 1, 2], [0, 0, 1, 1, 1, 2], [0, 0, 0, 2, 2, 2]])
def test_bad_places(places):
    with pytest.raises(ParameterError, match="layer a: its 6 filters are at places"):
        plan_filterwise({"a": np.arange(6.0)}, ratio=0.5, places={"a": np.array(places)})


# Rounding.


@pytest.mark.parametrize(
    ("size", "count", "rounded"),
    [
        (64, 33, 40),  # up
        (64, 40, 40),
        (64, 1, 8),
        (12, 9, 8),  # 16 are not there
        (12, 12, 8),
        (8, 1, 8),
        (7, 3, 3),  # fewer than 8: as asked for
    ],
)
def test_round_to(size, count, rounded):
    plan = plan_filterwise({"conv": np.arange(size)}, counts=[count], round_to=8)
    assert stays(plan) == {"conv": list(range(size - rounded, size))}


@settings(deadline=None, max_examples=60)
@given(scores=LAYERS, ratio=st.floats(0, 0.95), round_to=st.integers(1, 6))
def test_rounded_layers_are_multiples(scores, ratio, round_to):
    for how in ("ratio", "global_ratio"):
        asked = plan_filterwise(scores, **{how: ratio})
        for layer, mask in plan_filterwise(scores, round_to=round_to, **{how: ratio}).items():
            if mask.size >= round_to:
                assert mask.sum() % round_to == 0
                assert mask.sum() > asked[layer].sum() - round_to
            else:
                assert mask.sum() == asked[layer].sum()


@pytest.mark.parametrize("round_to", [0, -8, 1.5, True, "8"])
def test_bad_round_to(round_to):
    with pytest.raises(ParameterError, match=r"round_to=.* is not a whole number from 1 on"):
        plan_filterwise(SCORES, ratio=0.5, round_to=round_to)


# Scores.


def test_scores_that_cannot_rank_filters():
    kernels = {"conv": ConvWeights(np.ones((3, 3, 1, 4)))}
    with pytest.raises(ParameterError, match=r"layer conv: .* cannot rank whole filters.* l1"):
        plan_filterwise(score(kernels, "magnitude"), ratio=0.5)
    with pytest.raises(ParameterError, match=r"layer conv: .* cannot rank whole filters"):
        plan_sequential(kernels, [2], "magnitude")
    with pytest.raises(ParameterError, match="layer a has NaN or infinite scores"):
        plan_filterwise({"a": np.array([1.0, np.nan])}, ratio=0.5)
    with pytest.raises(ParameterError, match="there are no convolutions to prune"):
        plan_filterwise({}, ratio=0.5)


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"magnitude"}))
def test_criteria_of_filters_plan_filterwise(name):
    rng = np.random.default_rng(0)
    weights = {
        f"conv_{n}": ConvWeights(rng.normal(size=(3, 3, 4, 8)), gamma=rng.normal(size=8))
        for n in (1, 2)
    }
    plan = plan_filterwise(score(weights, name, filters=True), global_ratio=0.5)
    assert sum(mask.sum() for mask in plan.values()) == 8


# A chain, layer by layer.


def chain(*kernels):
    return {
        f"conv_{n}": ConvWeights(np.array(kernel, float)[None, None])
        for n, kernel in enumerate(kernels, 1)
    }


def test_channels_that_are_gone_do_not_count():
    weights = chain(
        [[1.0, 5.0, 2.0]],
        # Strongest is the first filter, by what it reads of the filter that goes.
        [[9.0, 0.0], [1.0, 2.0], [0.0, 1.0]],
        [[3.0, 4.0], [5.0, 1.0]],
    )
    plan = plan_sequential(weights, [2, 1, 1])
    assert stays(plan) == {"conv_1": [1, 2], "conv_2": [1], "conv_3": [0]}
    at_once = plan_filterwise(score(weights, "l1"), counts=[2, 1, 1])
    assert stays(at_once) == {"conv_1": [1, 2], "conv_2": [0], "conv_3": [0]}


def test_a_chain_takes_any_criterion_of_filters():
    weights = {
        "a": ConvWeights(np.ones((1, 1, 1, 2)), gamma=np.array([0.1, -0.9])),
        "b": ConvWeights(np.ones((1, 1, 2, 2)), gamma=np.array([0.5, 0.4])),
    }
    assert stays(plan_sequential(weights, [1, 1], "bn_gamma")) == {"a": [1], "b": [0]}


def test_no_chain():
    weights = {"a": ConvWeights(np.ones((1, 1, 1, 2))), "b": ConvWeights(np.ones((1, 1, 3, 2)))}
    with pytest.raises(ParameterError, match="layer b reads 3 channels and a has 2 filters"):
        plan_sequential(weights, [1, 1])
    with pytest.raises(ParameterError, match="layer b: 3 filters cannot stay of 2"):
        plan_sequential(weights, [1, 3])
    with pytest.raises(ParameterError, match="there are no convolutions to prune"):
        plan_sequential({}, [])
