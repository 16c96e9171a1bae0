import csv
import json

import h5py
import numpy as np
import pytest
import tf_keras as keras

from l3prune import graph, surgery
from l3prune.batch_norm import measure_batch_norm
from l3prune.checkpoints import BEST, HISTORY, LATEST
from l3prune.distillation import distill, open_pair
from l3prune.errors import L3PruneError, ParameterError
from l3prune.evaluation import Report, embedding_mse, measure
from l3prune.networks import create_network, inference
from l3prune.plan import plan_layerwise
from l3prune.recipes import Recipe
from l3prune.training import fit
from l3prune.weights import load_network, read_attachment
from l3prune.windows import Resampled, open_windows


@pytest.fixture
def pruned(tiny):
    return surgery.apply_masks(tiny, plan_layerwise(graph.conv_weights(tiny), 0.6))


def run(pruned, tiny, sounds, folder, **changes):
    """Distil a copy of the pruned network; the copy and its history."""
    recipe = {"epochs": 3, "learning_rate": 1e-2, "checkpoint_interval": 2, **changes}
    student = surgery.apply_masks(pruned, graph.masks(pruned))
    options = {key: recipe.pop(key) for key in ("resume", "train_epoch_size") if key in recipe}
    history = distill(
        student,
        tiny,
        sounds,
        sounds,
        folder,
        recipe=Recipe(**recipe),
        batch_size=4,
        quiet=True,
        **options,
    )
    return student, history


def bits(network):
    return [w.numpy().tobytes() for layer in network.layers for w in layer.weights]


def assert_no_regrown_weights(network, plan):
    for name, weights in graph.conv_weights(network).items():
        assert not weights.kernel[~plan[name]].view(np.uint32).any(), name
    assert graph.masks(network) == plan


@pytest.mark.parametrize("batch_norm", ["train", "freeze"])
def test_distillation_learns_and_keeps_every_zero(pruned, tiny, sounds, tmp_path, batch_norm):
    source = open_windows(sounds, 8000, tmp_path / "cache", quiet=True)
    before = embedding_mse(pruned, tiny, source, tmp_path / "cache", quiet=True)
    student, history = run(pruned, tiny, sounds, tmp_path / "run", epochs=12, batch_norm=batch_norm)
    after = embedding_mse(student, tiny, source, tmp_path / "cache", quiet=True)
    # Keras's moving statistics follow only slowly when BatchNorm is trained along.
    if batch_norm == "freeze":
        assert after < before / 2
    assert history[-1]["mse"] < 0.75 * history[0]["mse"]
    assert after == pytest.approx(min(row["val_mse"] for row in history), rel=1e-3)
    plan = graph.masks(pruned)
    assert_no_regrown_weights(student, plan)
    for name in (LATEST, BEST, "model_checkpoint.02.h5", "model_checkpoint.12.h5"):
        assert_no_regrown_weights(load_network(tmp_path / "run" / name), plan)
    assert bits(student) == bits(load_network(tmp_path / "run" / BEST))
    # Surviving weights moved, all of them.
    for name, weights in graph.conv_weights(student).items():
        moved = weights.kernel != graph.conv_weights(pruned)[name].kernel
        np.testing.assert_array_equal(moved, plan[name])


@pytest.mark.slow
def test_loss_is_the_squared_distance_of_the_embeddings(pruned, tiny, sounds, tmp_path):
    """First batch by hand, in training mode, with the weight decay that Keras adds."""
    source = open_windows(sounds, 8000, tmp_path / "cache", quiet=True)
    from l3prune.windows import batch_indices

    indices = next(batch_indices(source, 4, Recipe().seed))
    windows = source.read(indices)
    student = surgery.apply_masks(pruned, graph.masks(pruned))
    output = student(windows, training=True).numpy()
    mse = np.square(output - inference(tiny)(windows)).mean()
    decay = 1e-5 * sum(np.square(w.kernel).sum() for w in graph.conv_weights(pruned).values())
    _, history = run(pruned, tiny, sounds, tmp_path / "run", epochs=1, train_epoch_size=1)
    assert history[0]["mse"] == pytest.approx(mse, rel=1e-4)
    assert history[0]["loss"] == pytest.approx(mse + decay, rel=1e-4)
    assert history[0]["mae"] == pytest.approx(
        np.abs(output - inference(tiny)(windows)).mean(), rel=1e-4
    )


def test_teacher_is_untouched(pruned, tiny, sounds, tmp_path):
    before = bits(tiny)
    run(pruned, tiny, sounds, tmp_path / "run")
    assert bits(tiny) == before
    assert all(layer.trainable for layer in tiny.layers if layer.weights)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
@pytest.mark.parametrize("batch_norm", ["train", "freeze"])
def test_same_seed_same_bits_and_resume_too(
    pruned, tiny, sounds, tmp_path, batch_norm, schedule, monkeypatch
):
    options = {"batch_norm": batch_norm, "schedule": schedule, "plateau_patience": 1, "epochs": 5}
    first, history = run(pruned, tiny, sounds, tmp_path / "a", **options)
    second, _ = run(pruned, tiny, sounds, tmp_path / "b", **options)
    assert bits(first) == bits(second)
    other, _ = run(pruned, tiny, sounds, tmp_path / "c", **options, seed=1)
    assert bits(other) != bits(first)

    # A run that is cut in its fourth epoch, and goes on from its third.
    from l3prune.checkpoints import Keeper

    epochs = []
    original = Keeper.on_epoch_end

    def cut(self, epoch, logs=None):
        if len(epochs) == 3:
            raise KeyboardInterrupt
        epochs.append(epoch)
        original(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_epoch_end", cut)
        with pytest.raises(KeyboardInterrupt):
            run(pruned, tiny, sounds, tmp_path / "d", **options)
    resumed, rows = run(pruned, tiny, sounds, tmp_path / "d", **options, resume=True)
    assert rows == history
    assert bits(resumed) == bits(first)
    latest = [(tmp_path / folder / LATEST).read_bytes() for folder in ("a", "d")]
    assert latest[0] == latest[1]


@pytest.mark.slow
def test_learning_rate_falls_on_a_plateau_and_training_stops_early(pruned, tiny, sounds, tmp_path):
    # An improvement below min_delta is none: the rate falls after 2 epochs, the run ends after 4.
    options = {
        "epochs": 40,
        "learning_rate": 1e-12,
        "min_delta": 10.0,
        "early_stopping_patience": 4,
        "plateau_patience": 2,
        "batch_norm": "freeze",
    }
    _, history = run(pruned, tiny, sounds, tmp_path / "run", **options)
    assert len(history) == 5
    rates = [row["learning_rate"] for row in history]
    assert rates[:3] == pytest.approx([1e-12] * 3)
    assert rates[3] == pytest.approx(1e-13)
    # Continuing a run that has stopped gives its best weights and no further epoch.
    _, again = run(pruned, tiny, sounds, tmp_path / "run", **options, resume=True)
    assert again == history


def test_the_best_epoch_is_kept_even_when_training_went_on(pruned, tmp_path):
    """Training pulls away from what validation wants, so the first epoch stays the best."""
    x = np.random.default_rng(0).uniform(-1, 1, (4, 1, 8000)).astype(np.float32)
    wanted = inference(pruned)(x)

    def train(first=0):
        while True:
            yield x, wanted + 100

    def validate():
        yield x, wanted

    recipe = Recipe(epochs=3, learning_rate=1e-2, batch_norm="freeze")
    history = fit(pruned, train, validate, 1, tmp_path / "run", recipe, quiet=True)
    losses = [row["val_loss"] for row in history]
    assert losses == sorted(losses)
    assert bits(pruned) == bits(load_network(tmp_path / "run" / BEST))
    assert bits(pruned) != bits(load_network(tmp_path / "run" / LATEST))
    error = np.square(inference(pruned)(x) - wanted).mean()
    assert error == pytest.approx(history[0]["val_mse"], rel=1e-3)


@pytest.mark.slow
def test_cosine_by_hand(pruned, tiny, sounds, tmp_path):
    _, history = run(
        pruned, tiny, sounds, tmp_path / "run", epochs=4, schedule="cosine", learning_rate=1e-3
    )
    rates = [row["learning_rate"] for row in history]
    assert rates == pytest.approx([1e-3, 8.5355e-4, 5e-4, 1.4645e-4], rel=1e-4)


def test_files_of_a_run(pruned, tiny, sounds, tmp_path):
    folder = tmp_path / "run"
    _, history = run(pruned, tiny, sounds, folder)
    names = {path.name for path in folder.iterdir()}
    assert {LATEST, BEST, HISTORY, "model_checkpoint.02.h5", "tensorboard", "cache"} <= names
    assert "model_checkpoint.01.h5" not in names
    with (folder / HISTORY).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == [row["val_loss"] for row in history]
    assert list(rows[0])[:2] == ["epoch", "learning_rate"]
    assert list((folder / "tensorboard").rglob("events*"))
    state = read_attachment(folder / LATEST)
    assert json.loads(state["history"].tobytes()) == history
    assert [path.name for path in folder.rglob(".*")] == [".lock"]


def test_validation_may_be_a_part_spread_over_the_data():
    from l3prune.windows import evenly

    assert [batch.tolist() for batch in evenly(10, 2, 2)] == [[0, 2], [5, 7]]
    assert [batch.tolist() for batch in evenly(3, 2, None)] == [[0, 1], [2]]
    assert [batch.tolist() for batch in evenly(3, 2, 9)] == [[0, 1], [2]]


def test_measured_batch_norm_is_the_data_s_own(tiny):
    """Frozen statistics that were measured on one batch normalise like training on that batch."""
    x = np.random.default_rng(0).uniform(-1, 1, (8, 1, 8000)).astype(np.float32)
    as_trained = tiny(x, training=True).numpy()
    measure_batch_norm(tiny, iter([(x, None)]), 1)
    # Moving variances are of the sample (n / (n - 1)), and n is 384 in the last layers.
    np.testing.assert_allclose(inference(tiny)(x), as_trained, rtol=1e-2)
    momenta = {
        layer.momentum
        for layer in tiny.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    assert momenta == {0.99}


@pytest.mark.slow
def test_frozen_batch_norm_does_not_move(pruned, tiny, sounds, tmp_path):
    student, _ = run(pruned, tiny, sounds, tmp_path / "run", batch_norm="freeze", epochs=1)
    moved, _ = run(pruned, tiny, sounds, tmp_path / "run2", batch_norm="freeze", epochs=3)
    for number in range(1, 10):
        name = f"batch_normalization_{number}"
        for first, second in zip(
            student.get_layer(name).weights, moved.get_layer(name).weights, strict=True
        ):
            np.testing.assert_array_equal(first.numpy(), second.numpy())
        assert moved.get_layer(name).trainable


# Windows for two networks.


def test_pairs_of_sources(sounds, tmp_path):
    same = open_pair(sounds, (8000, 8000), tmp_path / "cache", quiet=True)
    assert same[0] is same[1]
    # As it was before there were pairs, so that caches are found again.
    alone = open_windows(sounds, 8000, tmp_path / "cache", quiet=True)
    assert same[0].fingerprint == alone.fingerprint
    for rates in ((8000, 16000), (16000, 8000)):
        pair = open_pair(sounds, rates, tmp_path / "cache", quiet=True)
        assert tuple(source.sample_rate for source in pair) == rates
        assert len(pair[0]) == len(pair[1])
        assert not any(isinstance(source, Resampled) for source in pair)


def test_shards_for_two_networks(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    with h5py.File(folder / "1.h5", "w") as file:
        file["audio"] = np.full((3, 1, 16000), 8192, np.int16)
    for rates in ((8000, 16000), (16000, 8000)):
        pair = open_pair(folder, rates, tmp_path / "cache")
        assert tuple(source.sample_rate for source in pair) == rates
        assert [isinstance(source, Resampled) for source in pair] == [
            rate == 8000 for rate in rates
        ]
    with pytest.raises(L3PruneError, match=r"wanted is \'audio\' int16 of shape \(n, 1, 48000\)"):
        open_pair(folder, (16000, 48000), tmp_path / "cache")


def test_windows_that_are_no_pair(tiny, sounds, tmp_path):
    def refuse(message, *sides):
        with pytest.raises(ParameterError, match=message):
            distill(tiny, tiny, *sides, tmp_path / "run", quiet=True)

    low, high = open_pair(sounds, (8000, 16000), tmp_path / "cache", quiet=True)
    other = open_windows(sounds, 8000, tmp_path / "cache", hop_size=0.1, quiet=True)
    refuse(r"windows at 16000 Hz given; the networks take 8000 Hz", high, low)
    refuse("windows at 8000 Hz and 16000 Hz given; the networks take 8000 Hz", (low, high), low)
    refuse(r"12 windows for the student and 44 for the teacher given", low, (low, other))
    refuse("give the same windows at both sample rates, as open_pair does", low, (low, other))


# Errors.


def test_networks_that_do_not_compare(tiny, sounds, tmp_path):
    def student(name="sea64", **arguments):
        return create_network(name, **{"filters": [4] * 8, **arguments})

    for network, message in [
        (student(input="log_mel"), "the student takes log-mel input"),
        (student("mel256"), "have different front ends"),
        (student(filters=[4] * 7 + [5]), "embedding has 5 values, the teacher's 4"),
        (student(embedding_point="raw"), "before and after the activation"),
    ]:
        with pytest.raises(ParameterError, match=message):
            distill(network, tiny, sounds, sounds, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs=0 is not a whole number ≥ 1"),
        ("learning_rate", "x", "learning_rate='x' is not a number"),
        ("epochs", 2.5, "epochs=2.5 is not a whole number"),
        ("learning_rate", float("nan"), "learning_rate=nan is not a positive number"),
        ("min_delta", -1, "min_delta=-1 is not a number ≥ 0"),
        ("checkpoint_minutes", -1, "checkpoint_minutes=-1 is not a number ≥ 0"),
        ("checkpoint_minutes", float("inf"), "checkpoint_minutes=inf is not a number ≥ 0"),
        ("plateau_factor", 1.0, r"plateau_factor=1.0 is not in \(0, 1\)"),
        ("schedule", "step", "schedule='step'; allowed: 'plateau', 'cosine'"),
        ("batch_norm", "drop", "batch_norm='drop'; allowed: 'train', 'freeze', 'keep'"),
        ("seed", -1, "seed=-1 is not a whole number"),
    ],
)
def test_bad_recipes(field, value, message):
    with pytest.raises(ParameterError, match=message):
        Recipe(**{field: value})


@pytest.mark.parametrize("name", ["batch_size", "train_epoch_size", "validation_epoch_size"])
def test_bad_sizes(tiny, pruned, sounds, tmp_path, name):
    with pytest.raises(ParameterError, match=f"{name}=0 is not a whole number from 1 on"):
        distill(pruned, tiny, sounds, sounds, tmp_path / "run", **{name: 0})
    assert not (tmp_path / "run").exists()


def test_divergence_is_told_and_keeps_the_last_good_checkpoint(pruned, tiny, sounds, tmp_path):
    with pytest.raises(L3PruneError, match=r"diverged in epoch 1 .* smaller learning rate"):
        run(pruned, tiny, sounds, tmp_path / "run", learning_rate=1e30)
    assert not list((tmp_path / "run").glob("*.h5"))


def test_resume_without_a_run(pruned, tiny, sounds, tmp_path):
    with pytest.raises(L3PruneError, match=r"run has no model_latest\.h5, so there is no run"):
        run(pruned, tiny, sounds, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_resume_with_another_network(pruned, tiny, sounds, tmp_path):
    run(pruned, tiny, sounds, tmp_path / "run", epochs=1)
    other = create_network("sea64", filters=[3] * 7 + [4])
    with pytest.raises(L3PruneError, match="trained another network than the one given"):
        distill(other, tiny, sounds, sounds, tmp_path / "run", resume=True, quiet=True)
    denser = surgery.apply_masks(tiny, plan_layerwise(graph.conv_weights(tiny), 0.3))
    with pytest.raises(L3PruneError, match="or one with other masks"):
        run(denser, tiny, sounds, tmp_path / "run", epochs=2, resume=True)
    with pytest.raises(L3PruneError, match="continue it with its own batch_norm"):
        run(pruned, tiny, sounds, tmp_path / "run", epochs=2, batch_norm="freeze", resume=True)


@pytest.mark.parametrize("side", ["training", "validation"])
def test_a_shard_that_breaks_in_the_middle_is_named(pruned, tmp_path, side):
    """The error of the reader, not TensorFlow's account of it."""
    batch = np.zeros((2, 1, 8000), np.float32), np.zeros((2, 4), np.float32)

    def good(first=0):
        yield batch
        yield batch

    def bad(first=0):
        yield batch
        raise L3PruneError("shard 7 is damaged")

    streams = (bad, good) if side == "training" else (good, bad)
    with pytest.raises(L3PruneError, match=r"^shard 7 is damaged$"):
        fit(pruned, *streams, 2, tmp_path / "run", Recipe(epochs=1), quiet=True)


# Reports.


def test_report_by_hand(pruned):
    figures = measure(pruned)
    total, nonzero = graph.count_kernel_weights(pruned)
    assert figures["sparsity"] == 1 - nonzero / total
    assert figures["nonzero_macs"] < figures["macs"]
    report = Report().with_row("pruned", **figures).with_row("pruned", accuracy=0.5)
    report = report.with_row("unpruned", sparsity=0.0)
    text = str(report)
    assert "50.00 %" in text
    assert "–" in text  # the unpruned row has no accuracy
    assert list(report.rows) == ["pruned", "unpruned"]


def test_integers_stay_integers_beside_missing_cells():
    text = str(Report({"a": {"macs": 122_425_344}, "b": {"mse": 0.5}}))
    assert "122.4M" in text
    assert "e+08" not in text


def test_report_writes_what_it_holds(tmp_path):
    Report().with_row("a", mse=1 / 3, macs=np.int64(5)).to_json(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": {"mse": 1 / 3, "macs": 5}}
