import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l3prune.criteria import CRITERIA, ConvWeights
from l3prune.errors import L3PruneError, ParameterError
from l3prune.plan import (
    PruningPlan,
    above_percentile,
    each_layer,
    plan_global,
    plan_layerwise,
    score,
)


def conv(values, shape=None):
    values = np.asarray(values, np.float32)
    return ConvWeights(values.reshape(shape or (1, 1, 1, values.size)))


@pytest.fixture
def kernels():
    rng = np.random.default_rng(0)
    return {
        "first": ConvWeights(rng.normal(size=(3, 3, 1, 8)).astype(np.float32)),
        "second": ConvWeights(rng.normal(size=(3, 3, 8, 16)).astype(np.float32)),
    }


# Layerwise: EdgeL3's percentile rule.


@pytest.mark.parametrize(
    ("sparsity", "kept"),
    [
        # Five weights: the 'nearest' percentile is score number round(4 s), and it goes too.
        (0.0, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (0.1, [0.2, 0.3, 0.4, 0.5]),
        (0.24, [0.3, 0.4, 0.5]),
        (0.5, [0.4, 0.5]),
        (0.74, [0.5]),
    ],
)
def test_percentile_rule_by_hand(sparsity, kept):
    weights = conv([0.3, -0.1, 0.5, -0.4, 0.2])
    mask = plan_layerwise({"conv": weights}, sparsity)["conv"]
    assert sorted(np.abs(weights.kernel[mask]).round(3).tolist()) == pytest.approx(kept)


def test_sparsity_zero_keeps_even_zeros():
    assert plan_layerwise({"conv": conv([0, 0, 1])}, 0)["conv"].all()


def test_ties_at_the_threshold_all_go():
    assert plan_layerwise({"conv": conv([1, 1, 1, 2])}, 0.25)["conv"].sum() == 1


@settings(deadline=None, max_examples=60)
@given(
    kernel=hnp.arrays(np.float32, (3, 3, 2, 4), elements=st.floats(-1, 1, width=32), unique=True),
    sparsity=st.floats(0.01, 0.97),
)
def test_layerwise_keeps_the_largest_and_meets_the_sparsity(kernel, sparsity):
    mask = plan_layerwise({"conv": ConvWeights(kernel)}, sparsity)["conv"]
    kept, gone = np.abs(kernel[mask]), np.abs(kernel[~mask])
    assert kept.min() > gone.max()
    # Weights of equal magnitude go together; else the rule is off by one weight at most.
    if len(np.unique(np.abs(kernel))) == kernel.size:
        assert abs(gone.size - sparsity * kernel.size) <= 1.5


def test_one_sparsity_a_layer_or_one_for_all(kernels):
    plan = plan_layerwise(kernels, [0.0, 0.75])
    assert plan["first"].all()
    assert plan["second"].mean() == pytest.approx(0.25, abs=1e-3)
    uniform = plan_layerwise(kernels, 0.75)
    assert uniform["second"].tolist() == plan["second"].tolist()
    assert uniform["first"].mean() == pytest.approx(0.25, abs=0.02)


def test_filter_criteria_mask_whole_filters(kernels):
    plan = plan_layerwise(kernels, 0.5, "l1")
    assert plan["second"].shape == (16,)
    strength = np.abs(kernels["second"].kernel).sum(axis=(0, 1, 2))
    assert strength[plan["second"]].min() > strength[~plan["second"]].max()


# Global: one threshold.


def test_global_threshold_is_one_for_all_layers(kernels):
    plan = plan_global(kernels, 0.9)
    kept = np.concatenate([np.abs(kernels[k].kernel)[plan[k]] for k in plan])
    gone = np.concatenate([np.abs(kernels[k].kernel)[~plan[k]] for k in plan])
    assert kept.min() > gone.max()
    assert gone.size / (gone.size + kept.size) == pytest.approx(0.9, abs=1e-3)


def test_global_leaves_each_layer_its_best_weight(kernels):
    faint = ConvWeights(kernels["first"].kernel * np.float32(1e-6))
    plan = plan_global({**kernels, "first": faint}, 0.9)
    assert plan["first"].sum() == 1
    assert np.abs(faint.kernel)[plan["first"]] == np.abs(faint.kernel).max()


# Errors.


@pytest.mark.parametrize("plan", [plan_layerwise, plan_global])
@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (1.0, r"sparsity=1 is not in \[0, 1\)"),
        (95.45, r"sparsity=95.45 is not in \[0, 1\) \(percent\? pass 0.9545\)"),
        (-0.1, r"sparsity=-0.1 is not in"),
        (float("nan"), r"sparsity=nan is not in"),
        ("high", r"sparsity='high' is not a number"),
        (True, r"sparsity=True is not a number"),
    ],
)
def test_bad_sparsity(plan, sparsity, message, kernels):
    with pytest.raises(ParameterError, match=message):
        plan(kernels, sparsity)


def test_wrong_number_of_sparsities(kernels):
    with pytest.raises(ParameterError, match=r"3 sparsities given for 2 conv.*first, second"):
        plan_layerwise(kernels, [0.1, 0.2, 0.3])


def test_nothing_to_prune():
    for plan in (plan_layerwise, plan_global):
        with pytest.raises(ParameterError, match="there are no convolutions to prune"):
            plan({}, 0.5)


def test_unknown_criterion(kernels):
    with pytest.raises(ParameterError, match=r"criterion 'best' is unknown; known: bn_gamma, "):
        plan_layerwise(kernels, 0.5, "best")


def test_a_layer_is_never_emptied():
    with pytest.raises(ParameterError, match="layer conv would lose all its weights"):
        plan_layerwise({"conv": conv([1, 1, 1])}, 0.5)


def test_weights_that_are_not_finite():
    with pytest.raises(ParameterError, match="layer conv has NaN or infinite weights"):
        plan_global({"conv": conv([1, np.nan])}, 0.5)


@pytest.mark.parametrize(
    "mask", [np.ones(3), np.ones((2, 2), bool)], ids=["not boolean", "two axes"]
)
def test_bad_mask(mask):
    with pytest.raises(ParameterError, match="mask of layer conv has type"):
        PruningPlan({"conv": mask})


# Scores.


def test_scores_are_the_criterion_s_for_each_layer(kernels):
    scores = score(kernels, "l1")
    assert list(scores) == ["first", "second"]
    np.testing.assert_array_equal(
        scores["second"], np.abs(kernels["second"].kernel).sum(axis=(0, 1, 2))
    )


def test_a_criterion_that_cannot_score_a_layer_names_it(kernels):
    with pytest.raises(ParameterError, match="layer first: criterion bn_gamma needs a BatchNorm"):
        score(kernels, "bn_gamma")
    wrong = {"conv": ConvWeights(np.ones((1, 1, 1, 4)), gamma=np.ones(3))}
    with pytest.raises(ParameterError, match=r"layer conv: .*scores of shape \(3,\) for a kernel"):
        score(wrong, "bn_gamma")


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"bn_gamma"}))
def test_every_criterion_plans(name, kernels):
    plan = plan_layerwise(kernels, 0.5, name)
    assert plan["second"].mean() == pytest.approx(0.5, abs=0.07)


def test_the_percentile_rule_goes_by_rank_in_float32_too():
    scores = np.arange(11, dtype=np.float32)
    assert above_percentile(scores, 0.3).sum() == 7
    assert above_percentile(scores, 0).all()


def test_fractions_of_layers():
    assert each_layer(0.5, ["a", "b"]) == [0.5, 0.5]
    assert each_layer(np.array([0.5, 0.25]), ["a", "b"]) == [0.5, 0.25]
    with pytest.raises(ParameterError, match=r"1 ratios given for 2 convolutions; give 2 .*a, b"):
        each_layer([0.5], ["a", "b"], "ratio", "ratios")
    with pytest.raises(ParameterError, match=r"ratio=50 is not in \[0, 1\) \(percent\? pass 0.5"):
        each_layer([0, 50], ["a", "b"], "ratio", "ratios")
    with pytest.raises(ParameterError, match="ratio=None is not a number"):
        each_layer(None, ["a"], "ratio", "ratios")


# The plan itself.


def test_plan_is_frozen_and_copies(kernels):
    mask = np.array([True, False])
    plan = PruningPlan({"conv": mask})
    mask[:] = True
    assert plan["conv"].tolist() == [True, False]
    with pytest.raises(ValueError, match="read-only"):
        plan["conv"][0] = False
    with pytest.raises(TypeError, match="does not support item assignment"):
        plan.masks["conv"] = mask


def test_plans_compose():
    weights = np.array([[[[True, True, False]], [[True, False, True]]]]).reshape(1, 1, 2, 3)
    filters = np.array([True, True, False])
    both = PruningPlan({"a": weights, "b": filters}) & PruningPlan({"a": filters, "c": filters})
    assert list(both) == ["a", "b", "c"]
    assert both["a"].reshape(2, 3).tolist() == [[True, True, False], [True, False, False]]
    with pytest.raises(ParameterError, match="layer a: masks of shapes"):
        PruningPlan({"a": filters}) & PruningPlan({"a": np.array([True, False])})


@settings(deadline=None, max_examples=40)
@given(
    shape=st.one_of(st.tuples(st.integers(1, 40)), hnp.array_shapes(min_dims=4, max_dims=4)),
    seed=st.integers(0, 2**32 - 1),
)
def test_plan_round_trips(tmp_path_factory, shape, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.3
    mask.flat[0] = True
    plan = PruningPlan(
        {"conv/1 (a)": mask, "b": ~mask | (np.arange(mask.size) == 0).reshape(shape)}
    )
    path = tmp_path_factory.mktemp("plan") / "plan.npz"
    plan.save(path)
    assert PruningPlan.load(path) == plan


def test_plans_that_are_no_plans(tmp_path):
    with pytest.raises(L3PruneError, match="no such plan"):
        PruningPlan.load(tmp_path / "none.npz")
    text = tmp_path / "text.npz"
    text.write_text("x")
    with pytest.raises(L3PruneError, match="is not a pruning plan"):
        PruningPlan.load(text)
    np.savez(tmp_path / "other.npz", X=np.ones(3))
    with pytest.raises(L3PruneError, match="it has no masks"):
        PruningPlan.load(tmp_path / "other.npz")
    huge = {"a.bits": np.zeros(1, np.uint8), "a.shape": np.array([2**40, 1, 1, 8])}
    np.savez(tmp_path / "huge.npz", **huge)
    with pytest.raises(L3PruneError, match="does not fit its shape"):
        PruningPlan.load(tmp_path / "huge.npz")
    np.savez(tmp_path / "pickle.npz", **{"a.bits": np.array([{}]), "a.shape": np.array([1])})
    with pytest.raises(L3PruneError, match="is not a pruning plan"):
        PruningPlan.load(tmp_path / "pickle.npz")


def test_flipped_bytes_of_a_plan(tmp_path, kernels):
    path = tmp_path / "plan.npz"
    plan_layerwise(kernels, 0.5).save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        # Any other exception fails the test.
        with contextlib.suppress(L3PruneError):
            PruningPlan.load(path)


def test_a_plan_that_unpacks_without_end(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **{"a.bits": np.zeros(2**28 + 9, np.uint8), "a.shape": np.array([8])})
    with pytest.raises(L3PruneError, match="it unpacks to more than any network's masks"):
        PruningPlan.load(path)


def test_plan_prints_what_it_keeps():
    plan = PruningPlan({"a": np.array([True, False]), "b": np.ones((1, 1, 3, 2), bool)})
    assert [line.split() for line in str(plan).splitlines()] == [
        ["layer", "kept", "of", "sparsity"],
        ["a", "1", "2", "50.00", "%"],
        ["b", "6", "6", "0.00", "%"],
        ["all", "layers", "7", "8", "12.50", "%"],
    ]
