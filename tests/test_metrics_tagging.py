"""Figures of clips with several classes: by hand, and as scikit-learn has them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from l3prune.errors import ParameterError
from l3prune.metrics import (
    average_precision,
    d_prime,
    lwlrap,
    lwlrap_by_class,
    roc_auc,
    tagging_report,
)
from l3prune.ranking import Lwlrap


def column(values):
    return np.array(values, float)[:, None]


@pytest.mark.parametrize(
    ("scores", "targets", "precision", "area"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 1, 1),
        ([4, 3, 2, 1], [0, 0, 1, 1], (1 / 3 + 2 / 4) / 2, 0),
        ([4, 3, 2, 1], [1, 0, 1, 0], (1 + 2 / 3) / 2, 3 / 4),
        # All alike: the share of the class, and a half.
        ([1, 1, 1, 1], [1, 0, 0, 0], 1 / 4, 1 / 2),
        # A tie of one with and one without behind one without.
        ([3, 2, 2], [0, 1, 0], 1 / 3, 1 / 4),
    ],
)
def test_by_hand(scores, targets, precision, area):
    assert average_precision(column(scores), column(targets)) == pytest.approx([precision])
    assert roc_auc(column(scores), column(targets)) == pytest.approx([area])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20).filter(
        lambda rows: len({true for _, true in rows}) == 2
    )
)
def test_as_scikit_learn(rows):
    scores, targets = (column([row[place] for row in rows]) for place in (0, 1))
    expected = reference.average_precision_score(targets[:, 0], scores[:, 0])
    assert average_precision(scores, targets)[0] == pytest.approx(expected)
    expected = reference.roc_auc_score(targets[:, 0], scores[:, 0])
    assert roc_auc(scores, targets)[0] == pytest.approx(expected)


def test_d_prime():
    assert round(d_prime(0.973), 3) == 2.725
    assert d_prime(0.5) == pytest.approx(0, abs=1e-12)
    assert (d_prime(1), d_prime(0)) == (math.inf, -math.inf)
    # Of normal distributions that are so far apart.
    rng = np.random.default_rng(0)
    scores = column([*rng.normal(1.5, 1, 20000), *rng.normal(0, 1, 20000)])
    targets = column([1] * 20000 + [0] * 20000)
    assert d_prime(roc_auc(scores, targets)[0]) == pytest.approx(1.5, abs=0.03)


def test_classes_without_figures_are_left_out():
    scores = np.array([[0.9, 0.5, 0.5, 0.2], [0.1, 0.5, 0.5, 0.4], [0.2, 0.5, 0.5, 0.1]])
    targets = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(np.isnan(average_precision(scores, targets)), [0, 1, 0, 0])
    np.testing.assert_array_equal(np.isnan(roc_auc(scores, targets)), [0, 1, 1, 0])
    report = tagging_report(scores, targets, ["a", "b", "c", "d"])
    assert report["classes_scored"] == 2
    assert report["classes_left_out"] == ["b", "c"]
    assert report["map"] == pytest.approx((1 + 1 / 2) / 2)
    assert report["mauc"] == pytest.approx((1 + 1 / 2) / 2)
    # Of the mean area, not the mean of each.
    assert report["d_prime"] == d_prime(0.75)
    assert list(report["by_class"]) == ["a", "d"]
    with pytest.raises(ParameterError, match="no class has clips with it and clips without it"):
        tagging_report(scores, np.ones((3, 4)), ["a", "b", "c", "d"])


def test_ranking_by_hand():
    scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.3, 0.2, 0.9, 0.1]])
    targets = np.array([[1, 0, 0, 1], [0, 1, 0, 0]])
    # Ranks 1 and 3 of the first clip, 3 of the second: 1, 2/3, 1/3.
    assert lwlrap(scores, targets) == pytest.approx(2 / 3, abs=1e-15)
    precisions, weights = lwlrap_by_class(scores, targets)
    np.testing.assert_allclose(precisions, [1, 1 / 3, math.nan, 2 / 3])
    np.testing.assert_allclose(weights, [1 / 3, 1 / 3, 0, 1 / 3])
    # Scores that are alike all have the lowest rank of them: 1 of 2, and 2 of 3.
    assert lwlrap(np.array([[2.0, 2.0, 1.0]]), np.array([[1, 0, 0]])) == 0.5
    assert lwlrap(np.array([[1.0, 1.0, 1.0]]), np.array([[1, 0, 1]])) == pytest.approx(2 / 3)
    assert math.isnan(lwlrap(scores, np.zeros((2, 4))))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_ranking_is_scikit_learns(seed, ties):
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 30)), int(rng.integers(2, 90))
    scores = rng.integers(0, 5, shape).astype(float) if ties else rng.normal(size=shape)
    targets = (rng.random(shape) < rng.choice([0.02, 0.3, 0.9])).astype(int)
    counts = targets.sum(axis=1)
    found = lwlrap(scores, targets)
    if not counts.any():
        assert math.isnan(found)
        return
    chosen = counts > 0
    wanted = reference.label_ranking_average_precision_score(
        targets[chosen], scores[chosen], sample_weight=counts[chosen]
    )
    assert found == pytest.approx(wanted, abs=1e-12)
    precisions, weights = lwlrap_by_class(scores, targets)
    assert np.nansum(precisions * weights) == pytest.approx(wanted, abs=1e-12)
    assert weights.sum() == pytest.approx(1)


def test_ranking_while_a_network_trains():
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 6, (20, 9)).astype(np.float32)
    targets = (rng.random((20, 9)) < 0.3).astype(np.float32)
    targets[3] = 0
    metric = Lwlrap()
    for start in range(0, 20, 7):
        metric.update_state(targets[start : start + 7], scores[start : start + 7])
    assert float(metric.result()) == pytest.approx(lwlrap(scores, targets), rel=1e-5)
    metric.reset_state()
    assert float(metric.result()) == 0


def test_the_report_ranks_too():
    scores = np.array([[0.9, 0.2], [0.8, 0.9], [0.1, 0.3]])
    report = tagging_report(scores, np.array([[1, 0], [1, 1], [0, 0]]), ["dog", "rain"])
    assert report["lwlrap"] == 1.0
    assert report["by_class"]["dog"]["lwlrap"] == 1.0
