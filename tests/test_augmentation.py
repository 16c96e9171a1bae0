"""How PANNs draws and changes batches."""

import numpy as np
import pytest

from l3prune.augmentation import Balanced, BatchChange, balanced_order, mixup, spec_augment
from l3prune.errors import ParameterError
from l3prune.labelled import LabelledMaps


def stripes(blank):
    """Widths of the runs of True."""
    ends = np.flatnonzero(np.diff(np.concatenate([[0], blank.astype(int), [0]])))
    return ends[1::2] - ends[::2]


@pytest.mark.parametrize("time_axis", [1, 2])
def test_stripes_of_time_and_bands(time_axis):
    rng = np.random.default_rng(0)
    shape = (40, 1001, 64, 1) if time_axis == 1 else (40, 64, 1001, 1)
    maps = rng.normal(-30, 10, shape).astype(np.float32)
    before = maps.copy()
    changed = spec_augment(maps, np.random.default_rng(1), time_axis=time_axis)
    np.testing.assert_array_equal(maps, before)
    means = np.broadcast_to(maps.mean(axis=(0, time_axis), keepdims=True), shape)
    blank = changed != maps
    np.testing.assert_array_equal(changed[blank], means[blank])
    if time_axis == 2:
        blank = blank.swapaxes(1, 2)
    frames, bands = blank.all(axis=2)[..., 0], blank.all(axis=1)[..., 0]
    # Nothing is blank but whole frames and bands.
    np.testing.assert_array_equal(blank[..., 0], frames[:, :, None] | bands[:, None])
    widths = [stripes(clip) for clip in frames]
    assert max(map(len, widths)) == 2
    assert 50 < max(map(max, filter(len, widths))) <= 126
    assert max(stripes(clip).max(initial=0) for clip in bands) <= 14
    # Widths are uniform in 0 … 63 and 0 … 7: what is blank on average.
    assert 45 < frames.sum(axis=1).mean() < 75
    assert 4 < bands.sum(axis=1).mean() < 9


def test_stripes_of_waveforms():
    with pytest.raises(ParameterError, match=r"stripes are of spectrograms, .*\.computed_maps"):
        BatchChange()(np.zeros((2, 1, 9920)), np.eye(2), np.random.default_rng(0))


class Highest:
    """Draws the largest number below each bound, and keeps the bounds."""

    def __init__(self):
        self.bounds = []

    def integers(self, bound):
        self.bounds.append(bound)
        return bound - 1


def test_bounds_of_stripes_are_exclusive():
    """Widths below 64 frames and 8 bands; the widest one ends before the last place."""
    generator = Highest()
    maps = np.random.default_rng(0).normal(size=(1, 101, 64, 1))
    blank = spec_augment(maps, generator)[0, ..., 0] != maps[0, ..., 0]
    assert generator.bounds == [64, 101 - 63] * 2 + [8, 64 - 7] * 2
    assert blank.all(axis=1).nonzero()[0].tolist() == [*range(37, 100)]
    assert blank.all(axis=0).nonzero()[0].tolist() == [*range(56, 63)]


def test_what_the_next_norm_makes_of_stripes_is_zero():
    maps = np.random.default_rng(0).normal(-30, 10, (8, 100, 64, 1))
    changed = spec_augment(maps, np.random.default_rng(1))
    normed = (changed - maps.mean(axis=(0, 1))) / maps.std(axis=(0, 1))
    np.testing.assert_allclose(normed[changed != maps], 0, atol=1e-12)


def test_short_clips_have_stripes_too():
    maps = np.random.default_rng(0).normal(size=(50, 3, 2, 1))
    changed = spec_augment(maps, np.random.default_rng(1))
    assert changed.shape == maps.shape
    assert (changed == maps).any()


def test_mixup_mixes_neighbours_and_their_targets():
    inputs = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    targets = np.eye(6, dtype=np.float32)
    mixed, labels = mixup(inputs, targets, np.random.default_rng(0))
    assert mixed.shape == (3, 2, 3)
    assert mixed.dtype == labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
    for number, (one, row) in enumerate(zip(mixed, labels, strict=True)):
        assert np.flatnonzero(row).tolist() == [2 * number, 2 * number + 1]
        np.testing.assert_allclose(one, row @ np.arange(6), rtol=1e-6)
    odd, labels = mixup(inputs[:3], targets[:3], np.random.default_rng(0))
    assert odd[1, 0, 0] == 2
    assert labels[1].tolist() == [0, 0, 1, 0, 0, 0]


def test_mixup_is_uniform():
    inputs = np.tile(np.array([[0.0], [1.0]]), (20_000, 1))
    share, _ = mixup(inputs, inputs, np.random.default_rng(0))
    deciles = np.histogram(share, bins=10, range=(0, 1))[0] / 2000
    np.testing.assert_allclose(deciles, 1, atol=0.1)


def test_mixup_of_maps_is_mixup_behind_the_norm():
    """What l3prune mixes in front of bn0 PANNs mixes behind it."""
    rng = np.random.default_rng(0)
    maps, scale, shift = rng.normal(size=(4, 5, 3)), rng.normal(size=3), rng.normal(size=3)
    before, _ = mixup(maps, maps, np.random.default_rng(1))
    behind, _ = mixup(maps * scale + shift, maps, np.random.default_rng(1))
    np.testing.assert_allclose(before * scale + shift, behind, rtol=1e-12)


def test_changes_in_their_order():
    maps = np.random.default_rng(0).normal(size=(4, 100, 64, 1))
    targets = np.eye(4)
    both = BatchChange()(maps, targets, np.random.default_rng(1))
    generator = np.random.default_rng(1)
    expected = mixup(spec_augment(maps, generator), targets, generator)
    for found, wanted in zip(both, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ParameterError, match="'noise' is unknown; spec_augment, mixup"):
        BatchChange(("noise",))


#: Clips of class 0, of 0 and 1, of 1, and of 3; none of 2.
TARGETS = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]] + [[1, 0, 0, 0]] * 6)


def test_every_class_once_before_any_comes_again():
    order = balanced_order(TARGETS, 300, np.random.default_rng(0))
    for round_ in order.reshape(100, 3):
        having = TARGETS[round_]
        # One drawn for each of the three classes that have clips.
        assert {3} <= set(round_.tolist())
        assert having[:, 0].any()
        assert having[:, 1].any()
    assert (order == 3).sum() == 100
    # Class 0's eight clips in turn: each twice in 16 rounds or so; those of class 1 more often.
    counts = np.bincount(order, minlength=10)
    assert counts[4:].max() - counts[4:].min() <= 1
    assert counts[2] == 50
    assert counts[1] in (50 + 12, 50 + 13)


def test_balanced_order_is_a_function_of_its_generator():
    one, same, other = (balanced_order(TARGETS, 50, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert len(balanced_order(TARGETS, 1, np.random.default_rng(0))) == 1
    with pytest.raises(ParameterError, match="no clip has a class"):
        balanced_order(np.zeros((3, 2)), 4, np.random.default_rng(0))


def test_a_balanced_source():
    maps = LabelledMaps(np.arange(10.0).reshape(10, 1, 1, 1), TARGETS, tuple("abcd"), "x")
    source = Balanced(maps, TARGETS)
    assert len(source) == 10
    assert source.fingerprint != maps.fingerprint
    np.testing.assert_array_equal(source.read(np.array([3]))[0], [[[[3.0]]]])
    assert len(source.order(np.random.default_rng(0))) == 10
