import functools
import itertools
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras import layers

from l3prune import gradual, graph, surgery, training
from l3prune.distillation import distill
from l3prune.errors import L3PruneError, ParameterError
from l3prune.gradual import GradualPruning, layer_by_layer, prunable, sparsity_schedule
from l3prune.layers import MaskedConv2D
from l3prune.networks import create_network, inference
from l3prune.patterns import plan_blocks
from l3prune.plan import PruningPlan, above_percentile, plan_global, plan_layerwise
from l3prune.rigl import RigL, regrow
from l3prune.training import BEST, LATEST, Recipe, fit
from l3prune.weights import load_network

CONVS = [*(f"conv_{number}" for number in range(1, 8)), "audio_embedding_layer"]


# Schedules.


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

    stream = gradual.one_at_a_time(batches)
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
        ({"begin_step": -1}, "begin_step=-1 is not a whole number ≥ 0"),
        ({"frequency": 0}, "frequency=0 is not a whole number ≥ 1"),
        ({"end_step": None}, "a polynomial schedule needs an end_step"),
        ({"end_step": 0}, "end_step=0 is not a whole number ≥ 1"),
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
    with pytest.raises(ParameterError, match="epochs=0 is not a whole number ≥ 1"):
        layer_by_layer({"a": 0.5}, 0, 1)


# Masks of a small network, step by step.


def small(filters=6):
    """Two masked convolutions, BatchNorm between them; weights that do not differ by run."""
    inputs = keras.Input((6, 6, 2))
    maps = layers.Conv2D(filters, 3, name="one", kernel_regularizer=keras.regularizers.l2(1e-2))(
        inputs
    )
    maps = layers.ReLU()(layers.BatchNormalization(name="norm")(maps))
    maps = layers.Conv2D(filters, 3, name="two")(maps)
    network = keras.Model(inputs, layers.GlobalAveragePooling2D()(maps))
    rng = np.random.default_rng(1)
    for layer in ("one", "two"):
        kernel = network.get_layer(layer).kernel
        kernel.assign(rng.normal(0, 0.3, kernel.shape))
    return prunable(network)


def stream(first=0, size=4, filters=6):
    """Endless batches; the n-th is always the same."""
    while True:
        rng = np.random.default_rng(first)
        yield (
            rng.normal(size=(size, 6, 6, 2)).astype(np.float32),
            rng.normal(size=(size, filters)).astype(np.float32),
        )
        first += 1


class Record(keras.callbacks.Callback):
    """Kernels and masks before every step, and at the end."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def look(self):
        convs = graph.convolutions(self.model)
        self.rows.append({name: (c.kernel.numpy(), c.mask.numpy()) for name, c in convs.items()})

    def on_train_batch_begin(self, batch, logs=None):
        self.look()

    def on_train_end(self, logs=None):
        self.look()


def train(network, pruner, steps, batches=stream):
    """Train step by step; what was there before and after the pruner's work at each step."""
    before, after = Record(), Record()
    network.compile(keras.optimizers.Adam(0.02), loss="mse")
    network.fit(batches(), steps_per_epoch=steps, callbacks=[before, pruner, after], verbose=0)
    return before.rows, after.rows


def assert_exact(rows):
    """Kernels are zero, to the bit, wherever the mask is False."""
    for row in rows:
        for kernel, mask in row.values():
            assert not kernel[~mask].view(np.uint32).any()


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


# RigL.


def sparse_mask(shape, keep=0.3, seed=0):
    return np.random.default_rng(seed).random(shape) < keep


def sparse(layer_names=("one", "two")):
    network = small()
    convs = graph.convolutions(network)
    plan = {name: sparse_mask(convs[name].kernel.shape) for name in layer_names}
    return surgery.apply_masks(network, PruningPlan(plan))


def test_regrow_by_hand():
    mask = np.array([[True, True, False], [True, False, False], [True, False, False]])
    kernel = np.array([[0.5, -0.1, 0.0], [0.2, 0.0, 0.0], [-0.9, 0.0, 0.0]])
    gradient = np.array([[9.0, 0.1, -3.0], [0.2, 1.0, 3.0], [9.0, 2.0, 0.0]])
    # 0.1 and 0.2 go; of what is then free -3 comes first, then 3.
    after = regrow(mask, kernel, gradient, 2)
    assert after.tolist() == [[True, False, True], [False, False, True], [True, False, False]]
    # What was dropped can come back.
    gradient[0, 1] = 5.0
    after = regrow(mask, kernel, gradient, 2)
    assert after.tolist() == [[True, True, True], [False, False, False], [True, False, False]]
    assert regrow(mask, kernel, gradient, 0).tolist() == mask.tolist()
    # Alike: the later is dropped, the earlier grown.
    flat = regrow(np.array([True, True, False, False]), np.ones(4), np.zeros(4), 1)
    assert flat.tolist() == [True, True, False, False]
    flat = regrow(np.array([True, True, False, False]), np.ones(4), np.array([0, 0, 1, 1]), 1)
    assert flat.tolist() == [True, False, True, False]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_regrow_keeps_the_count(seed, data):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 40)) < rng.random()
    kernel, gradient = np.where(mask, rng.normal(size=mask.size), 0), rng.normal(size=mask.size)
    count = data.draw(st.integers(0, int(mask.sum())))
    after = regrow(mask, kernel, gradient, count)
    assert after.sum() == mask.sum()
    grown, dropped = after & ~mask, mask & ~after
    assert grown.sum() == dropped.sum() <= count
    if grown.any():
        assert np.abs(gradient[grown]).min() >= np.abs(gradient[~after]).max()
        assert np.abs(kernel[dropped]).max() <= np.abs(kernel[after & mask]).max(initial=np.inf)


def test_fraction_by_hand():
    rigl = RigL(end_step=400, alpha=0.4)
    # 0.2 * (1 + cos): at 0, 1/4, 1/2, 3/4 and 1 of the way.
    assert [rigl.fraction(step) for step in (0, 100, 200, 300, 400)] == pytest.approx(
        [0.4, 0.341421, 0.2, 0.058579, 0.0], abs=1e-6
    )


def dense_gradients(network, inputs, targets, names):
    """Of an unmasked copy in training mode, by Keras's own layers."""
    plain = surgery.strip_masks(network)
    kernels = [plain.get_layer(name).kernel for name in names]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((plain(inputs, training=True) - targets) ** 2)
    return dict(zip(names, (g.numpy() for g in tape.gradient(loss, kernels)), strict=True))


def test_rigl_step_by_step():
    network = sparse()
    counts = {name: int(c.mask.numpy().sum()) for name, c in graph.convolutions(network).items()}
    steps, rows = 9, []

    class Look(keras.callbacks.Callback):
        """What RigL has to go by and what it made of it."""

        def __init__(self, when):
            super().__init__()
            self.when = when

        def on_train_batch_begin(self, batch, logs=None):
            step = int(self.model.optimizer.iterations)
            convs = graph.convolutions(self.model)
            row = {"norm": [w.numpy() for w in self.model.get_layer("norm").weights]}
            row["metrics"] = [float(m.result()) for m in self.model.metrics]
            row["masks"] = {name: c.mask.numpy() for name, c in convs.items()}
            row["kernels"] = {name: c.kernel.numpy() for name, c in convs.items()}
            optimizer = self.model.optimizer
            row["slots"] = {
                name: [
                    slots[optimizer._index_dict[optimizer._var_key(c.kernel)]].numpy()
                    for slots in (optimizer._momentums, optimizer._velocities)
                ]
                for name, c in convs.items()
            }
            if self.when == "before":
                x, y = next(stream(step))
                row["gradients"] = dense_gradients(self.model, x, y, ["one", "two"])
            rows.append(row)

    rigl = RigL(end_step=8, frequency=2, alpha=0.5, batches=stream)
    network.compile(keras.optimizers.Adam(0.02), loss="mse", metrics=["mae"])
    network.optimizer.build(network.trainable_variables)
    callbacks = [Look("before"), rigl, Look("after")]
    network.fit(stream(), steps_per_epoch=steps, callbacks=callbacks, verbose=0)
    moved = 0
    for step, (was, now) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        for name in ("one", "two"):
            mask, after = was["masks"][name], now["masks"][name]
            assert after.sum() == counts[name]
            count = int(0.25 * (1 + np.cos(np.pi * step / 8)) * counts[name])
            due = step in (2, 4, 6)
            wanted = mask
            if due:
                wanted = regrow(mask, was["kernels"][name], was["gradients"][name], count)
            np.testing.assert_array_equal(after, wanted)
            grown, stayed = after & ~mask, after & mask
            moved += int(grown.sum())
            assert not now["kernels"][name][~stayed].view(np.uint32).any()
            np.testing.assert_array_equal(
                now["kernels"][name][stayed], was["kernels"][name][stayed]
            )
            for slot, slot_before in zip(now["slots"][name], was["slots"][name], strict=True):
                assert not slot[grown].any()
                np.testing.assert_array_equal(slot[~grown], slot_before[~grown])
        # The gradient leaves nothing else behind.
        assert now["metrics"] == was["metrics"]
        for one, other in zip(was["norm"], now["norm"], strict=True):
            np.testing.assert_array_equal(one, other)
    assert moved > 20
    # What was dropped had moments; that it was zeroed when it grew is not for want of any.
    assert any(slot.any() for row in rows for slot in row["slots"]["one"])


def test_grown_weights_are_trained():
    network = sparse(["two"])
    rigl = RigL(end_step=4, frequency=2, alpha=0.5, layers=["two"], batches=stream)
    before, after = train(network, rigl, 3)
    grown = after[2]["two"][1] & ~before[2]["two"][1]
    assert grown.any()
    assert not after[2]["two"][0][grown].any()
    assert after[3]["two"][0][grown].all()
    assert_exact(after)
    assert after[-1]["one"][1].all()


def test_rigl_is_deterministic_and_takes_batches_of_any_size():
    def sizes(first=0):
        number = first
        while True:
            yield next(stream(number, size=1 + number % 3))
            number += 1

    ends = [
        train(sparse(), RigL(20, frequency=1, batches=sizes), 6, sizes)[1][-1] for _ in range(2)
    ]
    for name in ends[0]:
        for one, other in zip(ends[0][name], ends[1][name], strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"end_step": 0}, "end_step=0 is not a whole number ≥ 1"),
        ({"frequency": 1.5}, "frequency=1.5 is not a whole number ≥ 1"),
        ({"alpha": 0}, r"alpha=0 is not a number in \(0, 1\]"),
        ({"alpha": 30}, r"alpha=30 is not a number in \(0, 1\]"),
    ],
)
def test_bad_rigl(arguments, message):
    with pytest.raises(ParameterError, match=message):
        RigL(**{"end_step": 10, **arguments})


def test_rigl_needs_batches_and_one_loss():
    network = sparse()
    network.compile("sgd", loss="mse")
    with pytest.raises(ParameterError, match="RigL has no batches for its gradient"):
        network.fit(stream(), steps_per_epoch=2, callbacks=[RigL(9, frequency=1)], verbose=0)
    network.compile("sgd", loss=["mse"])
    rigl = RigL(9, frequency=1, batches=stream)
    with pytest.raises(ParameterError, match=r"RigL needs one loss function .* loss=.*'mse'"):
        network.fit(stream(), steps_per_epoch=2, callbacks=[rigl], verbose=0)


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


# Runs with checkpoints.

STEPS, EPOCHS, CUT = 3, 6, 3


def student():
    network = create_network("sea64", input="log_mel", filters=[4] * 8)
    rng = np.random.default_rng(4)
    for layer in graph.convolutions(network).values():
        layer.kernel.assign(rng.normal(0, 0.3, layer.kernel.shape))
    return prunable(network)


def noise(first=0):
    while True:
        rng = np.random.default_rng(first)
        x = rng.uniform(-80, 0, (2, 64, 50, 1)).astype(np.float32)
        yield x, rng.normal(size=(2, 4)).astype(np.float32)
        first += 1


def validation():
    yield next(noise(1000))


def polynomial():
    # Pruning steps 2, 5, 8, 11, 14: the last of each epoch.
    schedule = sparsity_schedule("polynomial", 0.7, begin_step=2, end_step=14, frequency=3)
    return student(), GradualPruning(schedule), {}


def sequence():
    # At the begin of the first, third and fifth epoch: steps 0, 6, 12.
    sparsities = dict(zip(CONVS, [0, 0.5, 0, 0, 0.6, 0, 0.7, 0], strict=True))
    pruner = GradualPruning(layer_by_layer(sparsities, 2, STEPS))
    return student(), pruner, {"batch_norm": "freeze"}


def regrown():
    # At steps 3, 6, 9, 12, 15: where epochs meet, and where the run is cut.
    network = student()
    convs = graph.convolutions(network)
    plan = {name: sparse_mask(convs[name].kernel.shape, 0.5) for name in CONVS[1:]}
    return surgery.apply_masks(network, PruningPlan(plan)), RigL(17, frequency=3, alpha=1.0), {}


def run(made, folder, resume=False, **changes):
    network, pruner, recipe = made
    recipe = {"epochs": EPOCHS, "learning_rate": 1e-2, "checkpoint_interval": 1, **recipe}
    recipe |= changes
    return fit(
        network,
        *(noise, validation, STEPS, folder, Recipe(**recipe)),
        pruner=pruner,
        resume=resume,
        quiet=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Finished runs: the network, its history, its folder, and the folder as a process leaves it
    that is killed in the fourth epoch."""
    done = {}

    def get(make):
        if make not in done:
            folder = tmp_path_factory.mktemp(make.__name__)
            made = make()
            original = training._Keeper.on_epoch_begin

            def copied(self, epoch, logs=None):
                if epoch == CUT:
                    shutil.copytree(folder / "run", folder / "killed")
                original(self, epoch, logs)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training._Keeper, "on_epoch_begin", copied)
                history = run(made, folder / "run")
            done[make] = made[0], history, folder
        return done[make]

    return get


def saved_masks(folder):
    return [
        PruningPlan.load(folder / "run" / f"model_checkpoint.{epoch:02d}.plan.npz")
        for epoch in range(1, EPOCHS + 1)
    ]


def assert_zeros(network):
    for name, layer in graph.convolutions(network).items():
        assert not layer.kernel.numpy()[~layer.mask.numpy()].view(np.uint32).any(), name


def assert_same_runs(made, other, folder, other_folder):
    for name in (LATEST, BEST, f"model_checkpoint.{EPOCHS:02d}.h5"):
        one, two = ((each / name).read_bytes() for each in (folder, other_folder))
        assert one == two, name
    for one, two in zip(made.weights, other.weights, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("make", [sequence, regrown])
def test_resume_in_the_middle_of_a_schedule(make, whole, tmp_path):
    network, history, folder = whole(make)
    masks = saved_masks(folder)
    assert masks[1] != masks[2]  # masks change before the cut and after it
    assert masks[2] != masks[-1]
    for earlier, later in itertools.pairwise(masks):
        for name in earlier:
            if make is regrown:
                assert later[name].sum() == earlier[name].sum()
            else:
                assert not (later[name] & ~earlier[name]).any()
    for name in (LATEST, BEST, "model_checkpoint.02.h5"):
        assert_zeros(load_network(folder / "run" / name))

    shutil.copytree(folder / "killed", tmp_path / "run")
    made = make()
    assert run(made, tmp_path / "run", resume=True) == history
    assert_same_runs(network, made[0], folder / "run", tmp_path / "run")


@pytest.mark.slow
def test_resume_of_a_run_that_was_interrupted_within_an_epoch(whole, tmp_path):
    """Ctrl-C right after a pruning that no checkpoint holds."""
    network, history, folder = whole(polynomial)
    stopped, pruner, _ = polynomial()

    class Interrupted(GradualPruning):
        def on_train_batch_begin(self, batch, logs=None):
            super().on_train_batch_begin(batch, logs)
            if int(self.model.optimizer.iterations) == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run((stopped, Interrupted(pruner.schedules), {}), tmp_path / "run")
    masks = saved_masks(folder)
    assert graph.masks(stopped) == masks[1]
    latest = load_network(tmp_path / "run" / LATEST)
    assert graph.masks(latest) == masks[0]
    assert_zeros(latest)
    assert not (tmp_path / "run" / BEST).exists()
    made = polynomial()
    assert run(made, tmp_path / "run", resume=True) == history
    assert_same_runs(network, made[0], folder / "run", tmp_path / "run")
    assert_zeros(made[0])


def test_masks_of_each_epoch(whole):
    _, history, folder = whole(polynomial)
    # Of the last prunings before the epochs' ends: steps 2, 5, 8, 11, 14, 14.
    sparsities = [0.7 - 0.7 * (1 - past / 12) ** 3 for past in (0, 3, 6, 9, 12, 12)]
    for plan, sparsity, row in zip(saved_masks(folder), sparsities, history, strict=True):
        for mask in plan.values():
            kept = mask.size - 1 - round((mask.size - 1) * sparsity) if sparsity else mask.size
            assert mask.sum() == kept
        total = sum(mask.size for mask in plan.values())
        pruned = total - sum(mask.sum() for mask in plan.values())
        assert row["sparsity"] == pruned / total
    _, history, folder = whole(sequence)
    pruned = [
        [name for name, mask in plan.items() if not mask.all()] for plan in saved_masks(folder)
    ]
    first, second, third = ["conv_2"], ["conv_2", "conv_5"], ["conv_2", "conv_5", "conv_7"]
    assert pruned == [first, first, second, second, third, third]
    assert "sparsity" in (folder / "run" / training.HISTORY).read_text()


def test_frozen_statistics_are_those_of_the_pruned_network(whole):
    _, _, folder = whole(sequence)
    # The third epoch began with a pruning, and trained on with what was measured then.
    network, later = (
        load_network(folder / "run" / f"model_checkpoint.{epoch:02d}.h5") for epoch in (2, 3)
    )
    network = surgery.apply_masks(network, graph.masks(later))
    training.measure_batch_norm(network, noise(2 * STEPS), STEPS)
    for number in (1, 6, 8):
        name = f"batch_normalization_{number}"
        measured, stored = (each.get_layer(name).weights[2:] for each in (network, later))
        for one, other in zip(measured, stored, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4)


def test_the_best_epoch_is_one_of_the_final_sparsity(tmp_path):
    """Validation wants what the network gives unpruned, so the first epochs have the least loss;
    they are no candidates, stop nothing, and lower no learning rate."""
    network, pruner, _ = polynomial()
    x = next(noise(1000))[0]
    target = inference(network)(x)
    history = fit(
        network,
        *(noise, lambda: iter([(x, target)]), STEPS, tmp_path),
        Recipe(
            epochs=9,
            learning_rate=1e-7,
            batch_norm="freeze",
            min_delta=1e9,
            early_stopping_patience=2,
            plateau_patience=1,
        ),
        pruner=pruner,
        quiet=True,
    )
    losses = [row["val_loss"] for row in history]
    assert min(losses) < min(losses[4:])
    best = json.loads((tmp_path / BEST).with_suffix(".json").read_text())
    assert best["val_loss"] == min(losses[4:])
    assert best["epoch"] >= 5
    assert graph.masks(network) == graph.masks(load_network(tmp_path / LATEST))
    # The fifth epoch is the first to be looked at: patience counts from there.
    assert len(history) == 7
    rates = [row["learning_rate"] for row in history]
    assert rates == pytest.approx([1e-7] * 6 + [1e-8])


def test_schedules_that_do_not_fit_the_run(tmp_path):
    with pytest.raises(ParameterError, match=r"after 14 steps and the run has 12 \(4 epochs of 3"):
        run(polynomial(), tmp_path / "run", epochs=4)
    assert not (tmp_path / "run").exists()
    network = create_network("sea64", input="log_mel", filters=[4] * 8)
    with pytest.raises(ParameterError, match="layers are: none"):
        run((network, polynomial()[1], {}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # tfmot's own end: none is needed where the sparsity does not change.
    assert GradualPruning(sparsity_schedule("constant", 0.5, end_step=100)).epochs(10, 2) == (0, 0)
    assert RigL(40).epochs(10, 5) == (4, 0)
    last = GradualPruning(sparsity_schedule("polynomial", 0.5, end_step=20))
    assert last.epochs(7, 3) == (2, 2)
    with pytest.raises(ParameterError, match=r"after 20 steps and the run has 20"):
        last.epochs(10, 2)  # there would be no training after the last pruning


def test_resume_by_another_rule(whole, tmp_path):
    folder = whole(polynomial)[2] / "killed"
    network, pruner, _ = polynomial()
    other = GradualPruning(sparsity_schedule("polynomial", 0.6, end_step=13))
    for rule in (other, None):
        with pytest.raises(
            L3PruneError, match=r"changed its masks by .*gradual.* its own schedule"
        ):
            run((network, rule, {}), folder, resume=True)
    # The same rule, but the run had weights that this network has lost already.
    fewer = surgery.apply_masks(
        network, PruningPlan({"conv_3": sparse_mask((3, 3, 4, 4), keep=0.2)})
    )
    with pytest.raises(L3PruneError, match="or one with other masks"):
        run((fewer, pruner, {}), folder, resume=True)
    network, pruner, _ = regrown()
    more = surgery.apply_masks(
        network, PruningPlan({"conv_3": np.array([False, True, True, True])})
    )
    with pytest.raises(L3PruneError, match="or one with other masks"):
        run((more, pruner, {}), whole(regrown)[2] / "killed", resume=True)


def test_descriptions_are_json_and_tell_rules_apart():
    schedule = sparsity_schedule("constant", 0.5)
    rules = [
        GradualPruning(schedule),
        GradualPruning({"a": schedule}),
        GradualPruning(sparsity_schedule("constant", 0.6)),
        GradualPruning(schedule, plan_global),
        GradualPruning(schedule, functools.partial(plan_blocks, block=(2, 2))),
        GradualPruning(schedule, functools.partial(plan_blocks, block=(4, 4))),
        RigL(10),
        RigL(10, alpha=0.2),
        RigL(10, layers=["a"]),
    ]
    texts = [json.dumps(rule.description()) for rule in rules]
    assert len(set(texts)) == len(rules)
    assert not any("0x" in text for text in texts)  # no addresses, which differ by process


@pytest.mark.parametrize("reduction", [None, "linear"])
def test_distillation_hands_its_pruner_on(tiny, sounds, tmp_path, reduction):
    pruner = GradualPruning(sparsity_schedule("constant", 0.5, begin_step=1))
    network = prunable(tiny)
    history = distill(
        network,
        tiny,
        *(sounds, sounds, tmp_path / "run"),
        reduction=reduction,
        recipe=Recipe(epochs=2, learning_rate=1e-3),
        batch_size=4,
        train_epoch_size=2,
        validation_epoch_size=1,
        pruner=pruner,
        quiet=True,
    )
    assert history[-1]["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert all(0.4 < mask.mean() < 0.51 for mask in graph.masks(network).values())
    assert_zeros(network)
