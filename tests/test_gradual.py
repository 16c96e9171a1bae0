"""Schedules by hand, and masks that change while a small network is trained."""

import functools
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune import gradual, graph, surgery
from l3prune.batches import one_at_a_time
from l3prune.criteria import CRITERIA
from l3prune.errors import L3PruneError, ParameterError
from l3prune.gradual import GradualPruning, layer_by_layer, prunable, sparsity_schedule
from l3prune.layers import MaskedConv2D
from l3prune.networks import create_network
from l3prune.patterns import plan_blocks
from l3prune.plan import PruningPlan, above_percentile, plan_global, plan_layerwise
from l3prune.rigl import RigL
from tests.masked_training import assert_exact, small, sparse_mask, stream, train


def test_polynomial_by_hand():
    schedule = sparsity_schedule(
        "polynomial", 0.9, begin_step=10, end_step=50, frequency=10, initial_sparsity=0.1
    )
    # 0.9 - 0.8 * (1 - p)^3 with p = 0, 1/4, 2/4, 3/4, 1.
    for step, wanted in [(10, 0.1), (20, 0.5625), (30, 0.8), (40, 0.8875), (50, 0.9), (99, 0.9)]:
        assert float(schedule(step)[1]) == pytest.approx(wanted, rel=1e-6)
    due = [step for step in range(100) if schedule(step)[0]]
    assert due == [10, 20, 30, 40, 50]
    linear = sparsity_schedule("polynomial", 0.8, end_step=8, power=1)
    assert float(linear(2)[1]) == pytest.approx(0.2)


def test_sparsity_is_what_was_asked_for():
    """tfmot computes in float32, where 0.7 is 0.69999999; half a weight must not go otherwise."""
    for value in (0.6, 0.7, 0.9545, 0.333):
        for schedule in (
            sparsity_schedule("constant", value),
            sparsity_schedule("polynomial", value, end_step=10),
        ):
            assert gradual._sparsity(schedule, 10) == value


def test_readers_of_one_stream_wait_for_each_other():
    inside, overlaps = [], []

    def batches(first):
        for number in range(first, first + 20):
            overlaps.append(bool(inside))
            inside.append(number)
            time.sleep(1e-3)
            inside.pop()
            yield number, number

    stream = one_at_a_time(batches)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda first: list(stream(first)), [0, 5, 10, 15]))
    assert read[1] == [(number, number) for number in range(5, 25)]
    assert len(overlaps) == 80
    assert not any(overlaps)


def test_constant_by_hand():
    schedule = sparsity_schedule("constant", 0.6, begin_step=3, frequency=2)
    assert [step for step in range(10) if schedule(step)[0]] == [3, 5, 7, 9]
    assert float(schedule(3)[1]) == pytest.approx(0.6)
    ends = sparsity_schedule("constant", 0.6, begin_step=3, end_step=6, frequency=2)
    assert [step for step in range(10) if ends(step)[0]] == [3, 5]


def test_layer_by_layer_by_hand():
    sparsities = {"a": 0.5, "b": 0, "c": 0.7, "d": 0.2}
    once = layer_by_layer(sparsities, epochs=3, steps_per_epoch=10)
    due = {name: [s for s in range(99) if each(s)[0]] for name, each in once.items()}
    assert due == {"a": [0], "c": [30], "d": [60]}
    assert [float(each(0)[1]) for each in once.values()] == pytest.approx([0.5, 0.7, 0.2])
    ramp = layer_by_layer(sparsities, epochs=3, steps_per_epoch=10, ramp=True, frequency=15)
    due = {name: [s for s in range(99) if each(s)[0]] for name, each in ramp.items()}
    assert due == {"a": [0, 15, 30], "c": [30, 45, 60], "d": [60, 75, 90]}
    assert float(ramp["c"](45)[1]) == pytest.approx(0.7 - 0.7 / 8)
    assert GradualPruning(once).end_step == 60
    assert GradualPruning(ramp).end_step == 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cubic"}, "kind='cubic'; allowed: 'constant', 'polynomial'"),
        ({"sparsity": 80}, r"sparsity=80 is not in \[0, 1\) \(percent\? pass 0.8\)"),
        ({"initial_sparsity": 1.0}, r"initial_sparsity=1 is not in \[0, 1\)"),
        ({"initial_sparsity": 0.9}, "initial_sparsity=0.9 is above sparsity=0.8"),
        ({"begin_step": -1}, "begin_step=-1 is not a whole number from 0 on"),
        ({"frequency": 0}, "frequency=0 is not a whole number from 1 on"),
        ({"end_step": None}, "a polynomial schedule needs an end_step"),
        ({"end_step": 0}, "end_step=0 is not a whole number from 1 on"),
        ({"power": 0}, "power=0 is not a positive number"),
    ],
)
def test_bad_schedules(arguments, message):
    given = {"kind": "polynomial", "sparsity": 0.8, "end_step": 10, **arguments}
    with pytest.raises(ParameterError, match=message):
        sparsity_schedule(given.pop("kind"), given.pop("sparsity"), **given)


def test_bad_sequences_of_layers():
    with pytest.raises(ParameterError, match="no layer has a sparsity above 0"):
        layer_by_layer({"a": 0}, 1, 1)
    with pytest.raises(ParameterError, match="epochs=0 is not a whole number from 1 on"):
        layer_by_layer({"a": 0.5}, 0, 1)


# Masks of a small network, step by step.


def assert_never_regrown(rows):
    for earlier, later in itertools.pairwise(rows):
        for name in later:
            assert not (later[name][1] & ~earlier[name][1]).any()


def test_each_pruning_step_takes_the_smallest_of_that_moment():
    network = small()
    schedule = sparsity_schedule("polynomial", 0.8, begin_step=2, end_step=11, frequency=3)
    before, after = train(network, GradualPruning({"one": schedule, "two": schedule}), 14)
    assert len(after) == 15
    assert_exact(after)
    assert_never_regrown(after)
    for step, (was, now) in enumerate(zip(before, after, strict=True)):
        for name in now:
            (kernel, mask), (_, new) = was[name], now[name]
            if step in (2, 5, 8, 11):
                sparsity = 0.8 - 0.8 * (1 - (step - 2) / 9) ** 3
                wanted = above_percentile(np.abs(kernel), sparsity) & mask
                np.testing.assert_array_equal(new, wanted)
            else:
                np.testing.assert_array_equal(new, mask)
            # What is kept is as training left it.
            np.testing.assert_array_equal(now[name][0][new], kernel[new])
    # The masks at the end are not those that the first kernels would have given.
    first = above_percentile(np.abs(before[0]["two"][0]), 0.8)
    assert (after[-1]["two"][1] != first).any()
    assert all((mask.mean() < 0.21) for _, mask in after[-1].values())


def test_layers_of_their_own_sparsity_and_layers_left_alone():
    network = small()
    schedules = {"two": sparsity_schedule("polynomial", 0.6, end_step=4, frequency=2)}
    _, after = train(network, GradualPruning(schedules), 6)
    assert after[-1]["one"][1].all()
    # As many as a plan of that sparsity keeps, although tfmot computes in float32.
    size = after[-1]["two"][1].size
    assert after[-1]["two"][1].sum() == size - 1 - round((size - 1) * 0.6)


def test_one_schedule_over_all_layers():
    network = small()
    schedule = sparsity_schedule("constant", 0.7, begin_step=1, frequency=2)
    pruner = GradualPruning(schedule, plan_global)
    assert (pruner.final_step, pruner.end_step) == (1, 1)
    before, after = train(network, pruner, 5)
    assert after[0]["one"][1].all()
    both = np.concatenate([np.abs(kernel).ravel() for kernel, _ in before[1].values()])
    wanted = above_percentile(both, 0.7)
    masks = np.concatenate([mask.ravel() for _, mask in after[1].values()])
    np.testing.assert_array_equal(masks, wanted)
    # The same sparsity again takes nothing more.
    for row in after[2:]:
        np.testing.assert_array_equal(
            np.concatenate([mask.ravel() for _, mask in row.values()]), masks
        )
    assert_exact(after)


def test_any_rule_that_ranks_zeros_lowest():
    schedule = sparsity_schedule("polynomial", 0.5, end_step=4, frequency=2)
    rule = functools.partial(plan_blocks, block=(2, 3))
    _, after = train(small(), GradualPruning(schedule, rule), 5)
    assert_never_regrown(after)
    blocks = after[-1]["two"][1].reshape(3, 3, 3, 2, 2, 3).sum(axis=(3, 5))
    assert set(np.unique(blocks)) == {0, 6}
    assert (blocks == 0).mean() == pytest.approx(0.5, abs=0.05)
    filters = functools.partial(plan_layerwise, criterion="l1")
    _, after = train(small(), GradualPruning(schedule, filters), 5)
    assert sorted(after[-1]["two"][1].mean(axis=(0, 1, 2))) == [0, 0, 0, 1, 1, 1]


def test_the_end_step_prunes_even_where_the_frequency_misses_it():
    schedule = sparsity_schedule("polynomial", 0.8, end_step=5, frequency=3)
    assert not schedule(5)[0]  # tfmot would stay at 0.7488
    _, after = train(small(), GradualPruning({"two": schedule}), 7)
    counts = [row["two"][1].mean() for row in after]
    assert counts[3] == counts[4] == pytest.approx(1 - 0.7488, abs=0.005)
    assert counts[5] == counts[7] == pytest.approx(0.2, abs=0.005)


def test_masks_that_are_there_already_stay():
    network = small()
    plan = PruningPlan({"one": np.array([True, False] * 3)})
    network = surgery.apply_masks(network, plan)
    schedule = sparsity_schedule("polynomial", 0.2, end_step=2, frequency=1)
    _, after = train(network, GradualPruning(schedule), 3)
    assert_never_regrown(after)  # nor at the first step, when the schedule has a sparsity of 0
    assert not after[-1]["one"][1][..., 1::2].any()
    assert after[-1]["one"][1][..., ::2].all()  # half is gone, and only a fifth was to go


@pytest.mark.parametrize("kind", ["gradual", "rigl"])
def test_a_training_step_is_traced_once(kind, monkeypatch):
    if kind == "gradual":
        network = small()
        pruner = GradualPruning(sparsity_schedule("polynomial", 0.5, end_step=6, frequency=2))
    else:
        network = surgery.apply_masks(small(), PruningPlan({"two": sparse_mask((3, 3, 6, 6))}))
        pruner = RigL(8, frequency=2, layers=["two"], batches=stream)
    traces = []
    original = MaskedConv2D.convolution_op

    def counted(self, inputs, kernel):
        traces.append(int(pruner.model.optimizer.iterations) if tf.executing_eagerly() else None)
        return original(self, inputs, kernel)

    network.compile("adam", loss="mse")
    counts = []
    after = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_: counts.append(len(traces)))
    with monkeypatch.context() as patch:
        patch.setattr(MaskedConv2D, "convolution_op", counted)
        network.fit(stream(), steps_per_epoch=8, callbacks=[pruner, after], verbose=0)
    # RigL's own gradient is traced once too, at its first step.
    assert counts[0] > 0
    assert counts[-1] == counts[2]


@settings(max_examples=15, deadline=None)
@given(
    final=st.floats(0.0, 0.95),
    begin=st.integers(0, 3),
    length=st.integers(1, 6),
    frequency=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_schedule_is_monotone_and_ends_as_asked(final, begin, length, frequency, seed):
    """Without a network: kernels that change at random between steps, as training would."""
    layer = MaskedConv2D(5, 2, name="conv")
    inputs = keras.Input((4, 4, 3))
    network = keras.Model(inputs, layer(inputs))
    network.compile("sgd", loss="mse")
    schedule = sparsity_schedule(
        "polynomial", final, begin_step=begin, end_step=begin + length, frequency=frequency
    )
    pruner = GradualPruning(schedule)
    pruner.set_model(network)
    rng = np.random.default_rng(seed)
    last = np.ones(layer.kernel.shape, bool)
    for step in range(begin + length + 3):
        kernel = np.where(layer.mask.numpy(), rng.normal(size=layer.kernel.shape), 0)
        layer.kernel.assign(kernel)
        network.optimizer.iterations.assign(step)
        pruner.on_train_batch_begin(0)
        mask = layer.mask.numpy()
        assert not (mask & ~last).any()
        assert not layer.kernel.numpy()[~mask].view(np.uint32).any()
        last = mask
    # float32 has seven digits of what was asked for.
    kept = last.size - 1 - round((last.size - 1) * final) if float(np.float32(final)) else last.size
    assert abs(int(last.sum()) - kept) <= (0 if final == round(final, 6) else 1)


# Networks and schedules that do not fit.


def test_layers_without_masks():
    network = create_network("sea64", input="log_mel", filters=[1] * 8)
    pruner = GradualPruning(sparsity_schedule("constant", 0.5))
    with pytest.raises(ParameterError, match=r"all MaskedConv2D layers.* are: none; give masks"):
        pruner.set_model(network)
    some = prunable(network, ["conv_2", "conv_3"])
    assert list(graph.masks(some)) == ["conv_2", "conv_3"]
    with pytest.raises(ParameterError, match=r"change in conv_4, and .* are: conv_2, conv_3"):
        GradualPruning({"conv_4": sparsity_schedule("constant", 0.5)}).set_model(some)
    with pytest.raises(ParameterError, match=r"there is no convolution conv_9; known: conv_1"):
        prunable(network, ["conv_9"])
    with pytest.raises(ParameterError, match=r"0\.5 is no schedule of tensorflow_model"):
        GradualPruning(0.5)
    with pytest.raises(ParameterError, match="no schedules given"):
        GradualPruning({})


def test_weights_that_are_not_finite():
    network = small()
    network.get_layer("two").kernel.assign(np.full((3, 3, 6, 6), np.nan))
    network.compile("sgd", loss="mse")
    pruner = GradualPruning(sparsity_schedule("constant", 0.5))
    with pytest.raises(L3PruneError, match=r"diverged before step 0 \(layer two"):
        network.fit(stream(), steps_per_epoch=1, callbacks=[pruner], verbose=0)


def test_descriptions_are_json_and_tell_rules_apart():
    schedule = sparsity_schedule("constant", 0.5)
    rules = [
        GradualPruning(schedule),
        GradualPruning({"a": schedule}),
        GradualPruning(sparsity_schedule("constant", 0.6)),
        GradualPruning(schedule, plan_global),
        GradualPruning(schedule, criterion="l1"),
        GradualPruning(schedule, functools.partial(plan_blocks, block=(2, 2))),
        GradualPruning(schedule, functools.partial(plan_blocks, block=(4, 4))),
        RigL(10),
        RigL(10, alpha=0.2),
        RigL(10, layers=["a"]),
    ]
    texts = [json.dumps(rule.description()) for rule in rules]
    assert len(set(texts)) == len(rules)
    assert not any("0x" in text for text in texts)  # no addresses, which differ by process


# Every criterion: what is pruned ranks lowest.


def normalized():
    """Two masked convolutions, each with its BatchNorm."""
    inputs = keras.Input((4, 4, 4))
    maps = keras.layers.Conv2D(8, 2, name="one")(inputs)
    maps = keras.layers.BatchNormalization(name="norm_one")(maps)
    maps = keras.layers.Conv2D(8, 2, name="two")(maps)
    network = prunable(keras.Model(inputs, keras.layers.BatchNormalization(name="norm_two")(maps)))
    network.compile("sgd", loss="mse")
    return network


def trained(network, rng):
    """Other weights everywhere, but for zeros under masks: as training would leave them."""
    for layer in network.layers:
        if isinstance(layer, MaskedConv2D):
            kernel = rng.normal(size=layer.kernel.shape)
            layer.kernel.assign(np.where(layer.mask.numpy(), kernel, 0))
        elif layer.weights:
            layer.gamma.assign(rng.normal(size=layer.gamma.shape))


SINGLE_WEIGHTS = ("magnitude", "random")


def kept(plan, criterion):
    """Weights of each layer that stay; filters for a criterion of filters."""
    if criterion in SINGLE_WEIGHTS:
        return [int(mask.sum()) for mask in plan.values()]
    return [int(mask.reshape(-1, 8).any(axis=0).sum()) for mask in plan.values()]


RULES = {
    "each layer": plan_layerwise,
    "all together": plan_global,
    "blocks": functools.partial(plan_blocks, block=(2, 2)),
}


ONE_BY_ONE = ("layer by layer", "ramp")


@pytest.mark.parametrize(
    ("criterion", "rule", "kind"),
    [
        (criterion, rule, kind)
        for criterion in sorted(CRITERIA)
        for rule in sorted(RULES)
        for kind in ("constant", "polynomial", *ONE_BY_ONE)
        if (rule != "blocks" or criterion in SINGLE_WEIGHTS)
        # One threshold has one schedule.
        and (rule != "all together" or kind not in ONE_BY_ONE)
    ],
)
def test_every_criterion_ends_where_one_shot_does(criterion, rule, kind):
    # One threshold leaves a layer its last filter, which is one more: here none comes to that.
    sparsity = 0.3 if rule == "all together" else 0.5
    network, rng = normalized(), np.random.default_rng(3)
    trained(network, rng)
    once = RULES[rule](graph.conv_weights(network), sparsity, criterion=criterion)
    if kind in ONE_BY_ONE:
        each = dict.fromkeys(once, sparsity)
        schedules = layer_by_layer(each, 1, 6, ramp=kind == "ramp", frequency=2)
    else:
        schedules = sparsity_schedule(kind, sparsity, end_step=12, frequency=2)
    pruner = GradualPruning(schedules, RULES[rule], criterion)
    pruner.set_model(network)
    last = graph.masks(network)
    for step in range(16):
        network.optimizer.iterations.assign(step)
        pruner.on_train_batch_begin(0)
        now = graph.masks(network)
        assert not any((now[name] & ~last[name]).any() for name in now)
        last = now
        trained(network, rng)
    found, wanted = kept(last, criterion), kept(once, criterion)
    if rule == "all together":
        assert sum(found) == sum(wanted)
    else:
        assert found == wanted
    assert sum(wanted) > 0


def test_a_filter_that_scores_zero_ranks_above_those_that_are_gone():
    """A filter at the geometric median scores zero, and must not go with the pruned ones."""
    network = normalized()
    kernel = np.zeros((2, 2, 4, 8), np.float32)
    kernel[0, 0, 0] = [-9, -3, -1, 0, 1, 3, 9, 7]
    network.get_layer("one").kernel.assign(kernel)
    mask = np.ones((2, 2, 4, 8), bool)
    mask[..., [0, 6, 7]] = False
    network.get_layer("one").set_mask(mask)
    schedule = {"one": sparsity_schedule("constant", 0.3)}  # three of eight are to go
    pruner = GradualPruning(schedule, criterion="geometric_median")
    pruner.set_model(network)
    pruner.on_train_batch_begin(0)
    assert kept(graph.masks(network), "geometric_median") == [5, 8]


def test_filters_are_ranked_by_the_scale_of_the_moment():
    network = normalized()
    pruner = GradualPruning(sparsity_schedule("constant", 0.5, begin_step=1), criterion="bn_gamma")
    pruner.set_model(network)
    network.optimizer.iterations.assign(1)
    gamma = np.float32([1, -8, 2, 7, 3, -6, 4, 5])
    for name in ("one", "two"):
        network.get_layer(f"norm_{name}").gamma.assign(gamma)
    pruner.on_train_batch_begin(0)
    for mask in graph.masks(network).values():
        # Of eight ranks the percentile rule takes number 4, from 0, and what is below.
        assert np.flatnonzero(mask.any(axis=(0, 1, 2))).tolist() == [1, 3, 5]
