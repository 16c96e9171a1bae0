"""ProxSG, OBProxSG and HSPG against values by hand, their theorems, and networks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from l3prune.errors import ParameterError
from l3prune.optimizers import HSPG, OBProxSG, ProxSG

ROOT = Path(__file__).parent.parent


@pytest.fixture
def double():
    """Learning rates of float64, for comparisons that are exact."""
    keras.backend.set_floatx("float64")
    yield
    keras.backend.set_floatx("float32")


def rows(x):
    """One group a row."""
    return [np.arange(len(x))[:, np.newaxis]]


def step(optimizer, x, gradient):
    x = tf.Variable(np.array(x, float))
    optimizer.apply_gradients([(tf.constant(np.array(gradient, float)), x)])
    return x.numpy()


def descend(optimizer, x, gradient, steps, rate=lambda step: None):
    """Many steps as one graph; `gradient` is of x and the step's number."""
    optimizer.build([x])

    @tf.function
    def run():
        for number in tf.range(steps):
            optimizer.apply_gradients([(gradient(x, number), x)])

    run()
    return x.numpy()


def minimiser(a, lam):
    norm = np.linalg.norm(a, axis=-1, keepdims=True)
    return np.maximum(0, 1 - lam / norm) * a


# Values by hand ------------------------------------------------------------------------------


def test_one_prox_step_of_a_whole_rate_is_the_minimiser(double):
    a = np.random.default_rng(0).normal(0, 1, (40, 8))
    x = step(ProxSG(1.0, rows(a), 2.0), np.zeros_like(a), -a)
    np.testing.assert_allclose(x, minimiser(a, 2.0), rtol=0, atol=5e-16)
    assert 0 < (x == 0).all(1).sum() < 40


def test_many_steps_come_to_the_minimiser(double):
    # Of groups nearer to zero than a lambda / 2, half-space steps swing about the minimum.
    a = np.random.default_rng(1).normal(0, 1, (40, 8))
    a[::2] *= 0.1
    expected = minimiser(a, 0.5)
    for optimizer in (
        ProxSG(0.1, rows(a), 0.5),
        HSPG(0.1, rows(a), 0.5, epsilon=0.0, prox_epochs=60),
    ):
        x = tf.Variable(np.zeros_like(a))
        found = descend(optimizer, x, lambda x, _: x - a, 600)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
        np.testing.assert_array_equal((found == 0).all(1), (expected == 0).all(1))


def test_steps_by_hand(double):
    one = [np.zeros((1,), int)]
    x, nothing = [3.0, 4.0], [0.0, 0.0]
    expected = [2.94, 3.92]
    assert step(ProxSG(0.1, one, 1.0), x, nothing) == pytest.approx(expected, abs=1e-14)
    kept = step(HSPG(0.1, one, 1.0, epsilon=0.97), x, nothing)
    assert kept == pytest.approx(expected, abs=1e-14)
    # 0.98 of the square norm is left.
    assert step(HSPG(0.1, one, 1.0, epsilon=0.99), x, nothing).tolist() == [0, 0]


def test_orthant_steps_by_hand(double):
    x, gradient = [1.0, -0.05, 0.0], [2.0, -1.0, -5.0]
    orthant = OBProxSG(0.1, 0.1, prox_epochs=0, orthant_epochs=None)
    assert step(orthant, x, gradient) == pytest.approx([0.79, 0, 0], abs=1e-15)
    prox = OBProxSG(0.1, 0.1, prox_epochs=1)
    assert step(prox, x, gradient) == pytest.approx([0.79, 0.04, 0.49], abs=1e-15)
    assert step(ProxSG(0.1, None, 0.1), x, gradient) == pytest.approx([0.79, 0.04, 0.49])


def test_an_orthant_step_is_a_half_space_step_of_groups_of_one(double):
    rng = np.random.default_rng(3)
    x, gradient = rng.normal(0, 0.1, (2, 1000))
    x[::7] = 0
    orthant = OBProxSG(0.1, 0.3, prox_epochs=0, orthant_epochs=None)
    half = HSPG(0.1, [np.arange(1000)], 0.3, epsilon=0.0)
    found = step(orthant, x, gradient)
    same = step(half, x, gradient)
    np.testing.assert_allclose(found, same, rtol=0, atol=2e-16)
    np.testing.assert_array_equal(found == 0, same == 0)
    # And as the formula of single weights has it.
    sign = np.sign(x)
    trial = x - 0.1 * (gradient + 0.3 * sign)
    np.testing.assert_allclose(found, np.where(trial * sign > 0, trial, 0), rtol=0, atol=1e-16)
    assert 100 < (found == 0).sum() < 900


# Theorems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 0.9])
def test_what_prox_makes_zero_a_half_space_step_does_too(double, epsilon):
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1, (20000, 5)) * rng.uniform(0, 1, (20000, 1)) ** 4
    gradient = rng.normal(0, 1, x.shape)
    prox = step(ProxSG(0.1, rows(x), 1.0), x, gradient)
    half = step(HSPG(0.1, rows(x), 1.0, epsilon=epsilon), x, gradient)
    zero, also = ((each == 0).all(1) for each in (prox, half))
    assert zero.sum() > 100
    assert not (zero & ~also).any()
    assert also.sum() > 2 * zero.sum()


def test_prox_comes_first_and_zeros_stay_afterwards(double):
    rng = np.random.default_rng(5)
    start = rng.normal(0, 0.1, (30, 4))
    noise = rng.normal(0, 1, (12, *start.shape))
    x, other = (tf.Variable(start) for _ in range(2))
    hspg, prox = (
        HSPG(0.1, rows(start), 1.0, epsilon=0.3, prox_epochs=4),
        ProxSG(0.1, rows(start), 1.0),
    )
    zeros = set()
    for number, gradient in enumerate(noise):
        hspg.apply_gradients([(tf.constant(gradient), x)])
        prox.apply_gradients([(tf.constant(gradient), other)])
        if number < 4:
            np.testing.assert_array_equal(x.numpy(), other.numpy())
            continue
        now = {*np.flatnonzero((x.numpy() == 0).all(1))}
        assert zeros <= now
        zeros = now
    assert len(zeros) > 0
    # Prox has brought groups back in the meantime.
    assert len(zeros) > (other.numpy() == 0).all(1).sum()


def test_stages_in_epochs(double):
    # Without a gradient the stages differ in what they do to a zero.
    def zero_moves(optimizer, steps):
        found = []
        for number in range(steps):
            x = tf.Variable(np.zeros(1))
            optimizer.build([x])
            keras.backend.set_value(optimizer.iterations, number)
            keep, _ = optimizer._rule(_One(), tf.constant(0.1, tf.float64))
            found.append(bool(keep.numpy()[0]))
        return found

    class _One:
        def trial(self):
            return tf.constant([1.0], tf.float64)

        def before(self):
            return tf.constant([0.0], tf.float64), tf.constant([0.0], tf.float64)

    turns = OBProxSG(0.1, 1e-3, prox_epochs=2, orthant_epochs=1, steps_per_epoch=3)
    assert zero_moves(turns, 20) == 2 * (6 * [True] + 3 * [False]) + 2 * [True]
    plus = OBProxSG(0.1, 1e-3, prox_epochs=1, orthant_epochs=None, steps_per_epoch=3)
    assert zero_moves(plus, 8) == 3 * [True] + 5 * [False]
    hspg = HSPG(0.1, [np.zeros(1, int)], 1e-3, prox_epochs=2, steps_per_epoch=2)
    assert zero_moves(hspg, 8) == 4 * [True] + 4 * [False]


def compare(prox_steps, epsilon, regularization, gradient, start, rate, steps, half=True):
    """Group norms after a run of one vectorised problem; groups are rows."""
    groups = [np.arange(start.shape[0] * start.shape[1]).reshape(*start.shape[:2], 1)]
    schedule = rate
    optimizer = (
        HSPG(schedule, groups, regularization, epsilon=epsilon, prox_epochs=prox_steps)
        if half
        else ProxSG(schedule, groups, regularization)
    )
    return descend(optimizer, tf.Variable(start), gradient, steps)


class _Falling(keras.optimizers.schedules.LearningRateSchedule):
    """1e-2 for 2000 steps, then linear to 1e-5 at 4000."""

    def __call__(self, step):
        share = tf.cast(tf.maximum(step - 2000, 0), tf.float32) / 2000
        return 1e-2 + share * (1e-5 - 1e-2)


def test_twelve_seeds_half_spaces_find_the_true_support_and_prox_finds_none():
    # All seeds in one problem: 12 x 40 groups of 8, of which 30 of 40 are small.
    a = np.stack([np.random.default_rng(seed).normal(0, 1, (40, 8)) for seed in range(12)])
    a[:, 10:] *= 0.05
    support = np.linalg.norm(a, axis=-1) > 0.5
    assert (support.sum(1) == 10).all()
    target = tf.constant(a, tf.float32)

    def gradient(x, number):
        noise = tf.random.stateless_normal(tf.shape(x), tf.stack([7, number]))
        return x - target + noise

    start = np.zeros_like(a, np.float32)
    ways = {
        "prox": (500, 0.0, False),
        "half 0.5": (500, 0.5, True),
        "half 0": (500, 0.0, True),
        "half 0.95": (500, 0.95, True),
    }
    sparsity, found = {}, {}
    for name, (prox_steps, epsilon, half) in ways.items():
        x = compare(prox_steps, epsilon, 0.5, gradient, start, _Falling(), 4000, half)
        found[name] = np.linalg.norm(x, axis=-1) > 0
        sparsity[name] = 1 - found[name].mean(1)
    assert sparsity["prox"].tolist() == [0.0] * 12
    assert sparsity["half 0.5"].tolist() == [0.75] * 12
    np.testing.assert_array_equal(found["half 0.5"], support)
    assert (sparsity["half 0"] > 0.2).all()
    assert (sparsity["half 0"] < 0.65).all()
    assert (sparsity["half 0.95"] >= 0.75).all()


def test_least_squares_of_small_batches():
    rng = np.random.default_rng(0)
    groups, size, count = 20, 5, 400
    truth = np.zeros((groups, size))
    truth[:5] = rng.normal(0, 1, (5, size))
    features = rng.normal(0, 1, (count, groups * size)).astype(np.float32)
    targets = (features @ truth.ravel() + rng.normal(0, 0.1, count)).astype(np.float32)
    x_all, y_all = tf.constant(features), tf.constant(targets)

    def gradient(x, number):
        rows = tf.random.stateless_uniform([8], tf.stack([3, number]), 0, count, tf.int32)
        chosen, wanted = tf.gather(x_all, rows), tf.gather(y_all, rows)
        error = tf.linalg.matvec(chosen, tf.reshape(x, [-1])) - wanted
        return tf.reshape(tf.linalg.matvec(chosen, error, transpose_a=True), tf.shape(x)) / 8

    def objective(x):
        error = features @ x.ravel() - targets
        return (error**2).mean() / 2 + 0.05 * np.linalg.norm(x, axis=-1).sum()

    start = np.zeros((1, groups, size), np.float32)
    sparsity, value = {}, {}
    for name, epsilon in (("prox", 0.0), ("0", 0.0), ("0.5", 0.5), ("0.9", 0.9)):
        x = compare(500, epsilon, 0.05, gradient, start, 0.005, 3000, name != "prox")[0]
        norms = np.linalg.norm(x, axis=-1)
        sparsity[name], value[name] = (norms == 0).mean(), objective(x)
        assert (norms[:5] > 0).all(), "an active group is lost"
    assert sparsity["prox"] == 0
    assert sparsity["0.5"] == sparsity["0.9"] == 0.75
    assert 0.4 < sparsity["0"] <= 0.75
    assert value["0.5"] < value["prox"]


# Directions, groups over variables, errors ------------------------------------------------------


def test_adams_direction_without_regularization_is_adam():
    rng = np.random.default_rng(6)
    start, gradients = rng.normal(0, 1, (3, 4)), rng.normal(0, 1, (5, 3, 4))
    ours, its = (tf.Variable(start, dtype=tf.float32) for _ in range(2))
    for optimizer, x in (
        (ProxSG(0.01, [None], 0.0, "adam"), ours),
        (keras.optimizers.Adam(0.01), its),
    ):
        for each in gradients:
            optimizer.apply_gradients([(tf.constant(each, tf.float32), x)])
    np.testing.assert_allclose(ours.numpy(), its.numpy(), rtol=1e-5)


def test_groups_reach_over_variables(double):
    kernel, bias = np.full((2, 1, 2), 0.1), np.array([0.1, 3.0])
    groups = [np.array([[[0, 1]]]), np.array([0, 1])]
    variables = [tf.Variable(kernel), tf.Variable(bias), tf.Variable(np.array([1.0, 2.0]))]
    optimizer = ProxSG(1.0, [*groups, None], 0.2)
    gradients = [tf.zeros_like(variables[0]), tf.zeros_like(variables[1]), tf.ones(2, tf.float64)]
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    # sqrt(3 * 0.01) = 0.173 is below 0.2; the other group's norm is sqrt(9.02).
    left = 1 - 0.2 / np.sqrt(9.02)
    np.testing.assert_allclose(variables[0].numpy(), [[[0, 0.1 * left]], [[0, 0.1 * left]]])
    np.testing.assert_allclose(variables[1].numpy(), [0, 3 * left])
    assert variables[2].numpy().tolist() == [0, 1]  # plain descent


def test_zeros_are_positive():
    x = step(HSPG(0.1, [np.zeros(1, int)], 9.0, epsilon=0.9), [-1.0, 1.0], [5.0, -5.0])
    assert not np.signbit(x).any()


def test_what_is_not_a_number_shows():
    for optimizer in (
        ProxSG(0.1, [np.zeros(1, int)], 9.0),
        HSPG(0.1, [np.zeros(1, int)], 9.0),
        ProxSG(0.1, None, 9.0),
        OBProxSG(0.1, 9.0, prox_epochs=0, orthant_epochs=None),
    ):
        assert np.isnan(step(optimizer, [1.0, 1.0], [np.nan, 0.0])).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProxSG(0.1, None, -1e-3), "lambda=-0.001 is not a number"),
        (lambda: ProxSG(0.1, None, float("nan")), "lambda=nan is not a number"),
        (lambda: HSPG(0.1, None, epsilon=1.0), r"epsilon=1.0 is not in \[0, 1\)"),
        (lambda: HSPG(0.1, None, epsilon=-0.1), "epsilon=-0.1"),
        (lambda: HSPG(0.1, None, prox_epochs=-1), "prox_epochs=-1"),
        (lambda: HSPG(0.1), "HSPG needs groups; take OBProxSG"),
        (lambda: HSPG(0.1, None, steps_per_epoch=0), "steps_per_epoch=0"),
        (lambda: OBProxSG(prox_epochs=0, orthant_epochs=0), "orthant_epochs=0"),
        (lambda: HSPG(0.1, None, weight_decay=1e-4), "weight_decay=0.0001: HSPG has none"),
        (lambda: ProxSG(0.1, None, use_ema=True), "use_ema=True: ProxSG has none"),
        (lambda: ProxSG(0.1, None, direction="lbfgs"), "allowed: sgd, adam"),
        (lambda: ProxSG(0.1, [None, None]).build([tf.Variable(1.0)]), "groups for 2 variables"),
        (
            lambda: ProxSG(0.1, [np.zeros(3, int)]).build([tf.Variable([1.0, 2.0])]),
            r"groups of shape \(3,\) for Variable",
        ),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


def test_a_grouped_variable_without_a_gradient_is_refused():
    x, y = tf.Variable([1.0]), tf.Variable([1.0])
    optimizer = ProxSG(0.1, [np.array([0]), np.array([0])])
    with pytest.raises(ParameterError, match="1 variables with groups have no gradient"):
        optimizer.apply_gradients([(tf.ones(1), x), (None, y)])


@pytest.mark.parametrize(
    "optimizer",
    [
        ProxSG(0.1, [np.array([[0, 1]]), None], 0.2, "adam"),
        HSPG(0.1, [np.array([0])], 0.2, epsilon=0.5, prox_epochs=3, steps_per_epoch=7),
        OBProxSG(0.1, 0.2, prox_epochs=3, orthant_epochs=None),
    ],
    ids=["ProxSG", "HSPG", "OBProxSG"],
)
def test_keras_rebuilds_them(optimizer):
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    assert keras.optimizers.serialize(again) == config


# Other ways to compute --------------------------------------------------------------------------


def after_steps(direction, apply):
    """Two variables of shared groups after five steps, each applied by `apply`."""
    rng = np.random.default_rng(9)
    start = rng.normal(0, 0.3, (6, 4)).astype("f")
    variables = [tf.Variable(start), tf.Variable(start[:, 0])]
    groups = [np.arange(6)[:, np.newaxis], np.arange(6)]
    optimizer = HSPG(0.1, groups, 0.8, direction, epsilon=0.85, prox_epochs=2)
    optimizer.build(variables)
    step = apply(lambda g: optimizer.apply_gradients([(g, variables[0]), (g[:, 0], variables[1])]))
    for gradient in rng.normal(0, 1, (5, 6, 4)).astype("f"):
        step(tf.constant(gradient))
    return [each.numpy() for each in variables], optimizer


@pytest.mark.parametrize("direction", ["sgd", "adam"])
def test_xla_gives_the_same(direction):
    plain, _ = after_steps(direction, lambda step: step)
    for jit in (False, True):
        compiled, _ = after_steps(direction, tf.function(jit_compile=jit))
        for one, other in zip(plain, compiled, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
            np.testing.assert_array_equal(one == 0, other == 0)
    assert 0 < (plain[0] == 0).all(1).sum() < 6


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["sgd", "adam"])
def test_two_devices_do_what_one_does(direction):
    # The devices of a process are set before its first computation.
    words = [sys.executable, "-m", "tests.mirrored_optimizer", direction]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["zero"] == found["zero_alone"]
    assert 0 < sum(found["zero"]) < 6
    assert found["iterations"] == 5
    for device in found["devices"]:
        np.testing.assert_allclose(device, found["alone"], rtol=1e-5, atol=1e-7)
