"""Training on several devices and by several processes: what is shared, agreed on and refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st

from l3prune import devices, graph
from l3prune.batches import Numbered, one_at_a_time
from l3prune.devices import Devices
from l3prune.errors import L3PruneError, ParameterError
from l3prune.gradual import GradualPruning, sparsity_schedule
from l3prune.layers import LogMelSpectrogram, SharedBatchNormalization
from l3prune.networks import create_network
from l3prune.recipes import Recipe
from l3prune.training import fit
from tests.distributed_run import numbers, read
from tests.test_gradual_runs import noise, student, validation


def one_of(worker, workers, local=1):
    return Devices(SimpleNamespace(num_replicas_in_sync=workers * local), worker, workers)


def test_parts_by_hand():
    assert one_of(0, 2).parts(8) == [slice(0, 4)]
    assert one_of(1, 2, local=2).parts(8) == [slice(4, 6), slice(6, 8)]
    # Of five windows two and three; of one, none and one.
    assert [one_of(worker, 2).parts(5) for worker in (0, 1)] == [[slice(0, 2)], [slice(2, 5)]]
    assert [one_of(worker, 2).parts(1) for worker in (0, 1)] == [[slice(0, 0)], [slice(0, 1)]]
    assert Devices().parts(7) == [slice(0, 7)]


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 40))
def test_all_parts_together_are_the_batch_once(workers, local, count):
    parts = [
        part for worker in range(workers) for part in one_of(worker, workers, local).parts(count)
    ]
    assert np.concatenate([np.arange(count)[part] for part in parts]).tolist() == list(range(count))
    sizes = {len(range(count)[part]) for part in parts}
    assert max(sizes) - min(sizes) <= 1


def test_a_worker_reads_its_parts_only():
    taken = []
    stream = Numbered(numbers, lambda rows: taken.append(rows.tolist()) or read(rows))
    shared = stream.shared(one_of(1, 2).parts)
    for batch in (shared(2), one_at_a_time(shared)(2)):
        inputs, _ = next(batch)
        assert inputs.shape[0] == 2
    assert taken == [[10, 11]] * 2


@pytest.mark.parametrize(("size", "near"), [(7, 8), (1, 4), (10, 8), (11, 12)])
def test_batches_need_equal_parts(size, near):
    message = f"training batches of {size} have no equal parts for 4 devices; .*such as {near}"
    with pytest.raises(ParameterError, match=message):
        one_of(0, 2, local=2).check_batch(size)
    one_of(0, 2, local=2).check_batch(near)


@pytest.mark.parametrize(
    "given_", [{"distribute": "all"}, {"precision": "float16"}, {"precision": "mixed"}]
)
def test_values_that_are_not_allowed(given_):
    with pytest.raises(ParameterError, match=r"allowed: '(none|float32)', "):
        devices.begin(**given_)


WORKERS = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}


@pytest.mark.parametrize(
    "config",
    [
        "two hosts",
        "[]",
        json.dumps(WORKERS | {"task": {"type": "worker", "index": 2}}),
        json.dumps(WORKERS | {"task": {"type": "chief", "index": 0}}),
        json.dumps(WORKERS | {"cluster": {"worker": ["a", "b"]}}),
        json.dumps(WORKERS | {"cluster": {"worker": ["a:1", "b:1"], "ps": ["c:1"]}}),
        json.dumps({"cluster": WORKERS["cluster"]}),
    ],
)
def test_tf_config_is_looked_at(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ParameterError, match="does not describe workers; it should look like"):
        devices.begin("multiworker")


def test_workers_that_nobody_names(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ParameterError, match="start it by srun in a SLURM job, or set TF_CONFIG"):
        devices.begin("multiworker")


STEP = {
    "SLURM_JOB_ID": "405",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "2",
    "SLURM_STEP_NODELIST": "node[9-11]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}


def test_workers_of_a_slurm_step(tmp_path, monkeypatch):
    """In the order of hosts that SLURM has, not as text; a port for each task of a host."""
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[9-11]" ] && seq -f node%g 9 11\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    ports = [20000 + 12 * 24 + task for task in (0, 1)]  # (405 + 7) % 400 is 12
    both = [f"{host}:{port}" for host in ("node9", "node10") for port in ports]
    assert devices._workers(STEP) == (2, [*both, f"node11:{ports[0]}"])
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(L3PruneError, match=r"scontrol does not tell the hosts node\[9-11\]"):
        devices._workers(STEP)


def test_xla_is_not_for_several_processors():
    with pytest.raises(ParameterError, match="XLA cannot share a step"):
        devices._checked(Devices(SimpleNamespace(num_replicas_in_sync=2), 0, 1, xla=True))
    assert devices.begin(xla=True).xla


@pytest.mark.parametrize("count", [2, 3])
def test_what_differs_between_workers_is_refused(count, monkeypatch):
    """The sums as they would come out, worked out without the workers."""

    def seen(texts):
        given = []
        monkeypatch.setattr(Devices, "total", lambda self, values: given.append(values) or values)
        for text in texts:
            one_of(0, 1).check_alike("x", text)
        monkeypatch.setattr(Devices, "total", lambda self, values: sum(given))
        one_of(0, len(texts)).check_alike("the network", texts[0])

    seen([b"same"] * count)
    with pytest.raises(L3PruneError, match=f"the network is not the same for all {count} workers"):
        seen([b"same"] * (count - 1) + [b"other"])


def test_an_error_of_another_worker_is_told_in_one_line():
    lost = tf.errors.UnavailableError(None, None, "Socket closed")
    with (
        pytest.raises(L3PruneError, match="worker 1 of 2 stops, since another one has ended"),
        one_of(1, 2).watched(),
    ):
        raise lost
    with pytest.raises(tf.errors.UnavailableError), Devices().watched():
        raise lost


# BatchNorm.


def norms(**settings):
    rng = np.random.default_rng(0)
    pair = [
        kind(**settings) for kind in (keras.layers.BatchNormalization, SharedBatchNormalization)
    ]
    for layer in pair:
        layer.build((None, None, None, 3))
    values = [rng.uniform(0.5, 2, 3).astype(np.float32) for _ in pair[0].weights]
    for layer in pair:
        layer.set_weights(values)
    return pair


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"scale": False}, {"momentum": 0.5, "epsilon": 0.1}], ids=str
)
def test_shared_batch_norm_is_keras_s_on_one_device(training, settings):
    x = np.random.default_rng(1).normal(4, 3, (4, 5, 6, 3)).astype(np.float32)
    found = []
    for layer in norms(**settings):
        with tf.GradientTape() as tape:
            y = layer(x, training=training)
            loss = tf.reduce_sum(y * x)
        found.append([y, *tape.gradient(loss, layer.trainable_weights), *layer.get_weights()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-4)


def test_a_frozen_shared_batch_norm_keeps_its_statistics():
    _, layer = norms()
    before = layer.get_weights()
    layer.trainable = False
    layer(np.ones((2, 2, 2, 3), np.float32), training=True)
    np.testing.assert_equal(layer.get_weights(), before)


# Precision.


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_layers_compute_in_the_precision_and_weights_stay(precision):
    network = create_network("sea64", filters=[2] * 8)
    copy = Devices(precision=precision).copy(network)
    kinds = {layer.name: layer.compute_dtype for layer in copy.layers if layer.weights}
    assert set(kinds.values()) == {precision.removeprefix("mixed_")}
    assert copy.outputs[0].dtype == tf.float32
    front_end = next(layer for layer in copy.layers if isinstance(layer, LogMelSpectrogram))
    assert front_end.compute_dtype == "float32"
    for one, other in zip(network.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
        assert other.dtype == one.dtype
    assert copy.l3prune_config == network.l3prune_config
    assert Devices().copy(network) is network


def train(folder, precision="float32", xla=False, **arguments):
    here = Devices(precision=precision, xla=xla)
    network = here.copy(student())
    recipe = Recipe(epochs=arguments.pop("epochs", 2), learning_rate=1e-3)
    streams = noise, validation
    history = fit(network, *streams, 2, folder, recipe, devices=here, quiet=True, **arguments)
    return network, history


@pytest.mark.slow
def test_half_precision_resumes_with_its_loss_scale(tmp_path):
    whole, history = train(tmp_path / "whole", "mixed_float16")
    train(tmp_path / "cut", "mixed_float16", epochs=1)
    resumed, again = train(tmp_path / "cut", "mixed_float16", resume=True)
    assert again == history
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite([row["loss"] for row in history]).all()
    masks = graph.masks(resumed)
    assert masks


@pytest.mark.slow
def test_xla_computes_the_same(tmp_path):
    plain, compiled = (train(tmp_path / str(xla), xla=xla)[1] for xla in (False, True))
    for one, other in zip(plain, compiled, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
def test_a_run_keeps_its_precision(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(L3PruneError, match="trained with precision=float32, not mixed_bfloat16"):
        train(tmp_path, "mixed_bfloat16", resume=True)


def test_masks_that_change_count_steps(tmp_path):
    pruner = GradualPruning(sparsity_schedule("constant", 0.5))
    with pytest.raises(ParameterError, match=r"mixed_float16 leaves out .* mixed_bfloat16"):
        train(tmp_path, "mixed_float16", pruner=pruner)


def test_devices_share_numbered_batches_of_their_own_network(tmp_path):
    here = one_of(0, 1)
    arguments = 2, tmp_path, Recipe(epochs=1)
    with pytest.raises(ParameterError, match=r"give batches\.Numbered"):
        fit(student(), noise, validation, *arguments, devices=here)
    streams = [Numbered(numbers, read)] * 2
    with pytest.raises(ParameterError, match=r"give devices\.copy\(network\)"):
        fit(student(), *streams, *arguments, devices=here)
