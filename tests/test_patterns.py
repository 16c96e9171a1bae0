import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune.criteria import ConvWeights
from l3prune.errors import ParameterError
from l3prune.patterns import plan_blocks, plan_pattern
from l3prune.plan import plan_layerwise


def conv(values, shape=None):
    values = np.asarray(values, float)
    return {"conv": ConvWeights(values.reshape(shape or values.shape))}


# n of m.


def test_two_of_four_by_hand():
    weights = conv([0.1, -0.4, 0.2, 0.3, 5, -6, 7, 8], (1, 1, 8, 1))
    mask = plan_pattern(weights, 2, 4)["conv"]
    assert mask.ravel().tolist() == [False, True, False, True, False, False, True, True]
    mask = plan_pattern(weights, 1, 4)["conv"]
    assert mask.ravel().nonzero()[0].tolist() == [1, 7]


def test_groups_run_along_the_channels_at_each_position_and_filter():
    kernel = np.zeros((1, 2, 2, 2))
    kernel[0, 0] = [[1, 4], [2, 3]]
    kernel[0, 1] = [[6, 5], [7, 8]]
    mask = plan_pattern(conv(kernel), 1, 2)["conv"]
    assert mask[0, 0].tolist() == [[False, True], [True, False]]
    assert mask[0, 1].tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
    ("channels", "n", "m", "kept"),
    [
        (5, 2, 4, [2, 1]),  # one channel is left over, and stays
        (6, 2, 4, [2, 2]),
        (7, 2, 4, [2, 2]),
        (7, 3, 4, [3, 3]),
        (8, 4, 4, [4, 4]),
        (4, 1, 4, [1]),
    ],
)
def test_channels_that_are_left_over(channels, n, m, kept):
    mask = plan_pattern(conv(np.arange(1.0, channels + 1), (1, 1, channels, 1)), n, m)["conv"]
    parts = np.split(mask.ravel(), range(m, channels, m))
    assert [int(part.sum()) for part in parts] == kept


def test_a_layer_of_few_channels_stays_whole():
    assert plan_pattern(conv(np.zeros((3, 3, 1, 8))), 2, 4)["conv"].all()
    assert plan_pattern(conv(np.zeros((3, 3, 3, 8))), 2, 4)["conv"].all()


def test_equal_weights_keep_the_earlier_channels():
    mask = plan_pattern(conv(np.zeros((1, 1, 8, 1))), 2, 4)["conv"]
    assert mask.ravel().nonzero()[0].tolist() == [0, 1, 4, 5]
    # NumPy's sorts are all stable for a few elements.
    weights = np.random.default_rng(0).integers(0, 3, 500)
    mask = plan_pattern(conv(weights, (1, 1, 500, 1)), 250, 500)["conv"]
    best = sorted(range(500), key=lambda index: (-weights[index], index))
    assert mask.ravel().nonzero()[0].tolist() == sorted(best[:250])


@settings(deadline=None, max_examples=100)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 13), st.integers(1, 5)),
    m=st.integers(1, 6),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_group_keeps_exactly_its_n_best(shape, m, data, seed):
    n = data.draw(st.integers(1, m), label="n")
    kernel = np.random.default_rng(seed).normal(size=shape).round(1)
    mask = plan_pattern(conv(kernel), n, m)["conv"]
    assert mask.shape == shape
    if shape[2] < m:
        assert mask.all()
        return
    for start in range(0, shape[2], m):
        group, strength = mask[:, :, start : start + m], np.abs(kernel[:, :, start : start + m])
        assert (group.sum(axis=2) == min(n, group.shape[2])).all()
        weakest_kept = np.where(group, strength, np.inf).min(axis=2)
        strongest_gone = np.where(group, -np.inf, strength).max(axis=2)
        assert (weakest_kept >= strongest_gone).all()


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (2, 0), (2.0, 4), (True, 4), (2, "4")])
def test_bad_pattern(n, m):
    with pytest.raises(ParameterError, match="a pattern keeps n of every m weights"):
        plan_pattern(conv(np.ones((1, 1, 8, 1))), n, m)


@pytest.mark.parametrize(
    "plan", [lambda w, c: plan_pattern(w, 2, 4, c), lambda w, c: plan_blocks(w, 0.5, (2, 2), c)]
)
def test_patterns_take_criteria_of_weights(plan):
    weights = conv(np.random.default_rng(0).normal(size=(3, 3, 8, 8)))
    with pytest.raises(ParameterError, match=r"criterion l1 scores whole filters.* magnitude"):
        plan(weights, "l1")
    assert 0.4 < plan(weights, "random")["conv"].mean() < 0.6
    with pytest.raises(ParameterError, match="there are no convolutions to prune"):
        plan({}, "magnitude")


# Blocks.


def test_blocks_by_hand():
    # Means: 2.5 and (the filters' edge) 3.
    weights = conv([[[[1.0, 2.0, 5.0], [3.0, 4.0, 1.0]]]])
    assert plan_blocks(weights, 0.5, (2, 2))["conv"][0, 0].tolist() == [
        [False, False, True],
        [False, False, True],
    ]
    # Means: rows of channels, 8 / 3 and 8 / 3: ties go together, and then nothing is left.
    with pytest.raises(ParameterError, match="layer conv would lose all its weights"):
        plan_blocks(weights, 0.5, (1, 3))
    assert plan_blocks(weights, 0, (1, 3))["conv"].all()


def test_positions_of_the_kernel_have_their_own_blocks():
    kernel = np.ones((1, 2, 4, 4))
    kernel[0, 1] = 2
    mask = plan_blocks(conv(kernel), 0.5, (4, 4))["conv"]
    assert not mask[0, 0].any()
    assert mask[0, 1].all()


def test_one_sparsity_a_layer_of_blocks():
    rng = np.random.default_rng(0)
    weights = {n: ConvWeights(rng.normal(size=(3, 3, 8, 8))) for n in "ab"}
    plan = plan_blocks(weights, [0, 0.5], (2, 4))
    assert plan["a"].all()
    assert plan["b"].mean() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ParameterError, match="3 sparsities given for 2 conv"):
        plan_blocks(weights, [0, 0, 0], (2, 2))
    with pytest.raises(ParameterError, match=r"sparsity=50 is not in .* pass 0.5"):
        plan_blocks(weights, 50, (2, 2))


@pytest.mark.parametrize("sparsity", [0, 0.3, 0.9])
def test_blocks_of_one_weight_are_plan_layerwise(sparsity):
    weights = conv(np.random.default_rng(0).normal(size=(3, 3, 4, 6)))
    assert plan_blocks(weights, sparsity, (1, 1)) == plan_layerwise(weights, sparsity)


@settings(deadline=None, max_examples=100)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sparsity=st.floats(0, 0.95),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_are_whole_and_the_best(shape, block, sparsity, seed):
    kernel = np.random.default_rng(seed).normal(size=shape)
    blocks = [
        (row, column, slice(top, top + block[0]), slice(left, left + block[1]))
        for row in range(shape[0])
        for column in range(shape[1])
        for top in range(0, shape[2], block[0])
        for left in range(0, shape[3], block[1])
    ]
    goes = round((len(blocks) - 1) * sparsity) + 1 if sparsity else 0
    if goes == len(blocks):
        with pytest.raises(ParameterError, match="would lose all its weights"):
            plan_blocks(conv(kernel), sparsity, block)
        return
    mask = plan_blocks(conv(kernel), sparsity, block)["conv"]
    kept, gone = [], []
    for where in blocks:
        assert mask[where].all() or not mask[where].any()
        (kept if mask[where].all() else gone).append(np.abs(kernel[where]).mean())
    assert len(gone) == goes
    assert not gone or min(kept) > max(gone)


@pytest.mark.parametrize("block", [(0, 2), (2,), (2, 2, 2), 4, (2.0, 2), "22", (True, 2)])
def test_bad_block(block):
    with pytest.raises(ParameterError, match="is not two whole numbers from 1 on"):
        plan_blocks(conv(np.ones((1, 1, 8, 8))), 0.5, block)
