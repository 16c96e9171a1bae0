"""Prune-and-regrow, step by step against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune import graph, surgery
from l3prune.errors import ParameterError
from l3prune.plan import PruningPlan
from l3prune.rigl import RigL, regrow
from tests.masked_training import assert_exact, small, sparse_mask, stream, train


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
        ({"end_step": 0}, "end_step=0 is not a whole number from 1 on"),
        ({"frequency": 1.5}, "frequency=1.5 is not a whole number from 1 on"),
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
