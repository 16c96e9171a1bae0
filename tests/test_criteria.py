import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l3prune.criteria import (
    CRITERIA,
    ConvWeights,
    _nearest_prototypes,
    distinct_filters,
    get_criterion,
    operator_norm,
)
from l3prune.errors import ParameterError
from l3prune.medians import geometric_median_of

FILTERS = 16


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return ConvWeights(
        rng.normal(size=(3, 3, 8, FILTERS)).astype(np.float32),
        rng.normal(size=FILTERS).astype(np.float32),
        rng.normal(size=FILTERS).astype(np.float32),
    )


def rows(points):
    """A 1 x 1 convolution that has these points as its filters."""
    points = np.asarray(points, float)
    return ConvWeights(points.T.reshape(1, 1, *points.T.shape))


# Contracts over the registry.

NOT_EQUIVARIANT = {
    "random": "its scores are drawn, not computed from the weights",
    "operator_norm": "the first filter is the measure of the others, as its authors have it",
    "operator_norm_uncentred": "the same",
    "cosine_similarity": "of two filters that are each other's nearest the first stays",
}
NOT_OF_VALUES = {"random": "its seed is a checksum of the weights' bytes"}


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion_is_finite_deterministic_and_leaves_its_input_alone(name, weights):
    before = [part.copy() for part in vars(weights).values()]
    scores = get_criterion(name)(weights)
    assert scores.shape in (weights.kernel.shape, (FILTERS,))
    assert np.issubdtype(scores.dtype, np.floating)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, get_criterion(name)(weights))
    for part, old in zip(vars(weights).values(), before, strict=True):
        np.testing.assert_array_equal(part, old)


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion_takes_read_only_weights(name, weights):
    for part in vars(weights).values():
        part.flags.writeable = False
    assert np.isfinite(get_criterion(name)(weights)).all()


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - set(NOT_EQUIVARIANT)))
def test_criterion_follows_a_reordering_of_filters(name, weights):
    order = np.random.default_rng(1).permutation(FILTERS)
    reordered = ConvWeights(
        weights.kernel[..., order], weights.bias[..., order], weights.gamma[..., order]
    )
    score = get_criterion(name)
    np.testing.assert_allclose(score(reordered), score(weights)[..., order], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - set(NOT_OF_VALUES)))
def test_criterion_is_the_same_in_float64(name, weights):
    double = ConvWeights(*(part.astype(np.float64) for part in vars(weights).values()))
    score = get_criterion(name)
    np.testing.assert_allclose(score(double), score(weights), rtol=1e-5)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("filters", [1, 2, 16])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_filters_that_are_all_alike(name, dtype, filters, value):
    alike = ConvWeights(
        np.full((3, 3, 4, filters), value, dtype),
        np.full(filters, value, dtype),
        np.full(filters, value, dtype),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = get_criterion(name)(alike)
    assert np.isfinite(scores).all()
    # Exactly, so that the index breaks their tie.
    if name not in NOT_EQUIVARIANT:
        assert (scores == scores.flat[0]).all()


# Passive filter pruning: values of E-PANNs' authors' code.


@pytest.fixture
def passive():
    kernel = np.random.default_rng(7).standard_normal((3, 3, 5, 8)).round(3)
    assert kernel[0, 0, 0, :3].tolist() == [0.001, 0.299, -0.274]
    assert kernel[2, 2, 4, -1] == -0.084
    return ConvWeights(kernel)


def kept(scores, count):
    return sorted(np.argsort(scores, kind="stable")[-count:].tolist())


def test_operator_norm(passive):
    scores = get_criterion("operator_norm")(passive)
    expected = [1, 0.095780, 0.000246, 0.148427, 0.243487, 0.498894, 0.023585, 0.011300]
    np.testing.assert_allclose(scores, expected, atol=5e-7)
    assert scores.argsort().tolist() == [2, 7, 6, 1, 3, 4, 5, 0]
    assert kept(scores, 4) == [0, 3, 4, 5]


def test_operator_norm_uncentred(passive):
    scores = get_criterion("operator_norm_uncentred")(passive)
    expected = [0.749708, 0.063411, 1, 0.047173, 0.009937, 0.182230, 0.138852, 0.350593]
    np.testing.assert_allclose(scores, expected, atol=5e-7)
    assert scores.argsort().tolist() == [4, 3, 1, 6, 5, 7, 0, 2]
    assert kept(scores, 4) == [0, 2, 5, 7]


@pytest.mark.parametrize("anchor", ["first", "energy"])
@pytest.mark.parametrize("centre", [True, False])
def test_operator_norm_by_whole_singular_value_decompositions(passive, anchor, centre):
    """As the paper says it, with the trace of a product of matrices."""
    points = passive.kernel.reshape(9, 5, 8).transpose(1, 2, 0)  # (channels, filters, places)
    if centre:
        points = points - points.mean(axis=1, keepdims=True)
    directions = []
    for matrix in points:
        u, _, vh = np.linalg.svd(matrix)
        row = np.outer(u[:, 0], vh[0])[0]
        directions.append(row / np.linalg.norm(row))
    if anchor == "first":
        sums = [np.trace(points[:, i] @ np.stack(directions).T) for i in range(8)]
        expected = np.square(sums)
    else:
        expected = np.square(np.einsum("cik,ck->ci", points, directions)).sum(axis=0)
    found = operator_norm(passive, anchor=anchor, centre=centre)
    np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-9)


def test_the_first_filter_is_the_measure_of_the_others():
    first, follows = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        kernel = rng.normal(size=(3, 3, 64, 128))
        scores = operator_norm(ConvWeights(kernel))
        first += scores[0] == 1
        order = rng.permutation(128)
        follows += np.allclose(operator_norm(ConvWeights(kernel[..., order])), scores[order])
    assert (first, follows) == (20, 0)


def test_a_channel_whose_first_filter_has_no_projection_counts_nothing():
    kernel = np.zeros((1, 2, 2, 4))
    kernel[0, :, 0] = [[0, 0, 4, -4], [3, -3, 0, 0]]
    kernel[0, :, 1] = [[3, -1, -1, -1], [0, 0, 0, 0]]
    scores = operator_norm(ConvWeights(kernel))
    np.testing.assert_allclose(scores, [1, 1 / 9, 1 / 9, 1 / 9])


def test_operator_norm_by_another_anchor():
    with pytest.raises(ParameterError, match="anchor='last'; allowed: 'first', 'energy'"):
        operator_norm(ConvWeights(np.ones((1, 1, 1, 2))), anchor="last")


def test_l1_of_the_same_weights(passive):
    scores = get_criterion("l1")(passive)
    expected = [0.785089, 0.737964, 0.968896, 0.892491, 0.853846, 0.873893, 0.796737, 1]
    np.testing.assert_allclose(scores / scores.max(), expected, atol=5e-7)


def test_geometric_mean_of_the_same_weights(passive):
    scores = get_criterion("geometric_mean")(passive)
    expected = [0.026664, 0.108363, 0.025772, 0.120263, 0.042011, 0.133883, 1, 0.834284]
    np.testing.assert_allclose(scores / scores.max(), expected, atol=5e-7)


def test_cosine_similarity(passive):
    assert np.flatnonzero(distinct_filters(passive)).tolist() == [0, 1, 2, 3, 4]
    scores = get_criterion("cosine_similarity")(passive)
    nearest, _ = _nearest_prototypes(passive)
    assert nearest.tolist() == [7, 5, 3, 6, 1, 1, 3, 0]
    distances = [0.63314, 0.51241, 0.42264, 0.33307, 0.68845, 0.51241, 0.33307, 0.63314]
    lift = [3] * 5 + [0] * 3
    np.testing.assert_allclose(scores, np.add(distances, lift), atol=1e-9)
    assert kept(scores, 5) == [0, 1, 2, 3, 4]


def test_cosine_similarity_does_not_hear_scale(passive):
    louder = ConvWeights(passive.kernel * np.linspace(0.1, 9, 8))
    score = get_criterion("cosine_similarity")
    np.testing.assert_array_equal(score(louder), score(passive))


def test_of_each_pair_of_copies_one_stays():
    rng = np.random.default_rng(0)
    kernel = np.repeat(rng.normal(size=(3, 3, 7, 5)), 2, axis=-1)
    mask = distinct_filters(ConvWeights(kernel)).reshape(5, 2)
    assert mask.tolist() == [[True, False]] * 5


# By hand, and what defines the medians.


def test_geometric_median_of_five_points():
    points = np.array([(-5, -1), (4, 4), (-2, 4), (4, 0), (-4, -1)], float)
    np.testing.assert_allclose(geometric_median_of(points), [-1.2947, 1.3126], atol=5e-5)


def test_criteria_by_hand():
    weights = ConvWeights(
        np.array([[[[3.0, -1.0], [-4.0, 2.0]]]]), gamma=np.array([-0.5, 0.25], np.float32)
    )
    assert get_criterion("magnitude")(weights).tolist() == [[[[3.0, 1.0], [4.0, 2.0]]]]
    assert get_criterion("l1")(weights).tolist() == [7.0, 3.0]
    np.testing.assert_allclose(get_criterion("l2")(weights), [5.0, 5**0.5])
    assert get_criterion("bn_gamma")(weights).tolist() == [0.5, 0.25]


def test_geometric_mean_by_hand():
    score = get_criterion("geometric_mean")
    np.testing.assert_allclose(score(rows([[1, 1], [2, -2], [4, 4]])), [1, 0, 4], atol=1e-12)
    # sqrt(1 * 4) = 2, sqrt(2 * 8) = 4; of the layer (1 * 4 * 2 * 8)^(1/4) = sqrt(8).
    np.testing.assert_allclose(
        score(rows([[1, 4], [-2, 8]])), [(8**0.5 - 2) ** 2, (4 - 8**0.5) ** 2]
    )
    # A zero anywhere makes the layer's mean zero.
    np.testing.assert_allclose(score(rows([[3, 0], [2, 2], [4, 4]])), [0, 4, 16], atol=1e-12)


def test_geometric_mean_is_that_of_scipy(weights):
    from scipy.stats import gmean

    magnitudes = np.abs(weights.kernel.astype(float)).reshape(-1, FILTERS)
    expected = (gmean(magnitudes, axis=None) - gmean(magnitudes, axis=0)) ** 2
    np.testing.assert_allclose(get_criterion("geometric_mean")(weights), expected, rtol=1e-9)


def test_the_medians_of_gaussian_filters_agree_on_most():
    # Random filters of 16 x 784: the lower halves by both criteria share 97.5 % and more.
    shares = []
    for seed in range(20):
        kernel = np.random.default_rng(seed).normal(size=(7, 7, 16, 16))
        exact, summed = (
            set(np.argsort(get_criterion(name)(ConvWeights(kernel)))[:8])
            for name in ("geometric_median", "geometric_median_sum")
        )
        shares.append(len(exact & summed) / 8)
    assert np.mean(shares) >= 0.975


def test_random_differs_between_layers_of_one_shape():
    score = get_criterion("random")
    first = score(ConvWeights(np.ones((1, 1, 1, 4))))
    second = score(ConvWeights(np.full((1, 1, 1, 4), 2.0)))
    assert (first != second).all()


def test_bn_gamma_without_batch_norm():
    with pytest.raises(ParameterError, match=r"needs a BatchNorm .* there is none; take .* l1"):
        get_criterion("bn_gamma")(ConvWeights(np.ones((1, 1, 1, 2))))


@pytest.mark.parametrize(
    ("points", "distances", "sums"),
    [
        # Corners of a square and its centre: the centre is the median.
        (
            [(0, 0), (2, 0), (0, 2), (2, 2), (1, 1)],
            [2**0.5] * 4 + [0],
            [4 + 18**0.5] * 4 + [4 * 2**0.5],
        ),
        # The two criteria take different filters first.
        (
            [(-5, -1), (4, 4), (-2, 4), (4, 0), (-4, -1)],
            [4.3678, 5.9376, 2.7785, 5.4549, 3.5591],
            [26.1820, 29.7296, 24.4272, 28.3287, 23.8814],
        ),
        # A triangle with an angle of 120° or more: the corner at it, (0, 0).
        (
            [(0, 0), (5, 1), (-5, 1)],
            [0, 26**0.5, 26**0.5],
            [2 * 26**0.5, 10 + 26**0.5, 10 + 26**0.5],
        ),
        # Exactly 120°, where Weiszfeld's iteration alone creeps.
        ([(0, 0), (2, 0), (-1, 3**0.5)], [0, 2, 2], [4, 2 + 12**0.5, 2 + 12**0.5]),
        # Equilateral triangle: its centre.
        ([(0, 0), (1, 0), (0.5, 0.75**0.5)], [3**-0.5] * 3, [2.0] * 3),
        # Corners of a convex quadrilateral: where its diagonals meet, here (1, 0).
        (
            [(0, 0), (4, 0), (1, 2), (1, -7)],
            [1, 3, 2, 7],
            [
                4 + 5**0.5 + 50**0.5,
                4 + 13**0.5 + 58**0.5,
                9 + 5**0.5 + 13**0.5,
                9 + 50**0.5 + 58**0.5,
            ],
        ),
        # Three of five at one place hold the median there.
        ([(1, 1)] * 3 + [(9, 1), (1, 7)], [0, 0, 0, 8, 6], [14, 14, 14, 34, 28]),
        # On a line: the middle one, and of an even number the middle of the middle two.
        ([(0, 0), (1, 2), (4, 8)], [5**0.5, 0, 45**0.5], [5 * 5**0.5, 4 * 5**0.5, 7 * 5**0.5]),
        ([(0,), (1,), (3,), (9,)], [2, 1, 1, 7], [13, 11, 11, 23]),
        ([(-1, 0), (3, 0)], [2, 2], [4, 4]),
    ],
)
def test_geometric_medians_by_hand(points, distances, sums):
    weights = rows(points)
    scores = get_criterion("geometric_median")(weights)
    np.testing.assert_allclose(scores, distances, atol=5e-5)
    np.testing.assert_allclose(get_criterion("geometric_median_sum")(weights), sums, atol=5e-5)


def test_geometric_median_is_exact_where_it_is_a_filter():
    scores = get_criterion("geometric_median")(rows([(0, 0), (5, 1), (-5, 1), (0.3, -4)]))
    assert scores[0] == 0


def test_geometric_median_just_beside_a_filter():
    """The pulls at (-1, 0) add up to 1.00003 where up to 1 would hold the median there."""
    points = np.array([(0, 0), (-3, 3), (-2, 1), (-2, -2), (0, 0), (0, -1), (-1, 0)])
    scores = get_criterion("geometric_median")(rows(points))
    assert 2e-5 < scores[-1] < 4e-5
    at_filter = np.linalg.norm(points - points[-1], axis=1).sum()
    assert scores.sum() == pytest.approx(at_filter - 4.743e-10, abs=1e-12)


@pytest.mark.parametrize("distance", [1e-3, 1e-4, 1e-6, 1e-8])
def test_geometric_median_beside_a_filter_by_hand(distance):
    # Where the diagonals meet, (0, 0); with the last corner on the edge it would be the median.
    points = [(-1, 0), (3, 0), (0, 2), (0, -distance)]
    scores = get_criterion("geometric_median")(rows(points))
    np.testing.assert_allclose(scores, [1, 3, 2, distance], rtol=0, atol=4e-10)


def test_pulls_cancel_where_whole_newton_steps_lead_past_the_median():
    points = np.array(
        [
            (1.9999997, 1.9999999),
            (2e-7, 2.0000002),
            (0.9999988, 2.0000003),
            (-2.9999999, -2.0000004),
        ]
    )
    offsets = points - geometric_median_of(points)
    pull = (offsets / np.linalg.norm(offsets, axis=1)[:, None]).sum(axis=0)
    assert np.linalg.norm(pull) < 1e-4


def test_geometric_median_is_that_of_the_whole_filter(weights):
    """The order of a kernel's axes does not matter, only that the last one is the filters."""
    flat = ConvWeights(weights.kernel.reshape(1, 1, -1, FILTERS))
    for name in ("geometric_median", "geometric_median_sum"):
        score = get_criterion(name)
        np.testing.assert_allclose(score(flat), score(weights), rtol=1e-12)


@settings(deadline=None, max_examples=150)
@given(
    points=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 9), st.integers(1, 4)),
        elements=st.integers(-3, 3).map(float),
    ),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e20]),
    shift=st.sampled_from([0.0, 5.0]),
)
def test_no_point_has_a_smaller_sum_of_distances(points, scale, shift):
    # The scores' sum is what the median makes smallest.
    points = (points + shift) * scale
    total = get_criterion("geometric_median")(rows(points)).sum()
    rng = np.random.default_rng(0)
    near = points.mean(axis=0) + rng.normal(size=(200, points.shape[1])) * scale
    for other in [*points, points.mean(axis=0), *near]:
        assert total <= np.linalg.norm(points - other, axis=1).sum() * (1 + 1e-12)


@settings(deadline=None, max_examples=80)
@given(
    points=hnp.arrays(
        np.float64,
        st.tuples(st.integers(3, 12), st.integers(2, 5)),
        # A grid: points 1e-7 apart would turn the promised 1e-10 of the spread into a pull of 1e-3.
        elements=st.integers(-16, 16).map(lambda n: n / 16),
    )
)
def test_the_pulls_at_the_median_cancel(points):
    """The gradient is zero at a median that is no filter, and at most their number at filters."""
    median = geometric_median_of(points)
    offsets = points - median
    distances = np.linalg.norm(offsets, axis=1)
    here = distances <= 1e-9 * (1 + np.abs(points).max())
    pull = (offsets[~here] / distances[~here, None]).sum(axis=0)
    assert np.linalg.norm(pull) <= here.sum() + 1e-5
