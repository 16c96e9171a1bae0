"""Maps between embeddings of different sizes: the numbers, their files, and training with them."""

import json
import shutil
import signal

import h5py
import numpy as np
import pytest
import soundfile
from sklearn.decomposition import PCA

from l3prune import checkpoints, graph, surgery
from l3prune.checkpoints import BEST, LATEST, Keeper
from l3prune.distillation import distill, open_pair, unexplained_variance
from l3prune.errors import Interrupted, L3PruneError, ParameterError
from l3prune.networks import create_network, inference, network_config
from l3prune.plan import plan_layerwise
from l3prune.recipes import Recipe
from l3prune.reduction import (
    LINEAR_MAP,
    REDUCTION,
    Reduction,
    fit_pca,
    restore_earlier_map,
    unexplained,
    with_linear_map,
)
from l3prune.weights import load_network
from l3prune.windows import open_windows
from tests.conftest import make_sounds, make_tiny

# Principal components.


@pytest.fixture
def targets():
    """Embeddings of clearly different spread in six directions, which are not the axes."""
    rng = np.random.default_rng(3)
    mixed, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    return (rng.normal(size=(50, 6)) * [9, 6, 4, 2, 1, 0.5] @ mixed + 7).astype(np.float32)


def by_hand(targets, size):
    mean = targets.astype(np.float64).mean(axis=0)
    _, _, rows = np.linalg.svd(targets - mean, full_matrices=False)
    components = rows[:size].T
    signs = [np.sign(column[np.abs(column).argmax()]) for column in components.T]
    return mean, components * signs


@pytest.mark.parametrize("size", [1, 3, 6])
def test_pca_is_the_singular_value_decomposition(targets, size):
    found = fit_pca(targets, size)
    mean, components = by_hand(targets, size)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.matrix, components, atol=1e-10)
    assert found.sizes == (6, size)
    projected = found.apply(targets)
    assert projected.dtype == np.float32
    np.testing.assert_allclose(projected, (targets - mean) @ components, atol=1e-5)
    # Uncorrelated, the largest variance first.
    covariance = np.atleast_2d(np.cov(projected.T))
    assert (np.diff(np.diag(covariance)) < 0).all()
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-4)
    # The student's side is its embedding as it is.
    np.testing.assert_array_equal(found.expand(projected), projected)
    reference = PCA(size, svd_solver="full").fit(targets.astype(np.float64))
    np.testing.assert_allclose(found.matrix, reference.components_.T, atol=1e-10)


def test_signs_follow_the_rule_and_not_the_order_of_the_windows(targets):
    found = fit_pca(targets, 6).matrix
    assert (found[np.abs(found).argmax(axis=0), range(6)] > 0).all()
    shuffled = fit_pca(targets[np.random.default_rng(0).permutation(50)], 6).matrix
    np.testing.assert_allclose(shuffled, found, atol=1e-10)
    # Mirrored data have the same axes, and so the same components.
    np.testing.assert_allclose(fit_pca(-targets, 6).matrix, found, atol=1e-10)
    np.testing.assert_array_equal(fit_pca(targets, 6).matrix, found)


def test_pca_part_by_part(targets, monkeypatch):
    whole = fit_pca(targets, 3)
    monkeypatch.setattr("l3prune.reduction._ROWS", 7)
    np.testing.assert_allclose(fit_pca(targets, 3).matrix, whole.matrix, atol=1e-12)


def test_pca_of_a_sample(targets):
    found = fit_pca(targets, 2, max_windows=20, seed=4)
    chosen = np.sort(np.random.default_rng(4).choice(50, 20, replace=False))
    np.testing.assert_allclose(found.matrix, by_hand(targets[chosen], 2)[1], atol=1e-10)
    np.testing.assert_array_equal(fit_pca(targets, 2, max_windows=20, seed=4).mean, found.mean)
    assert not np.allclose(fit_pca(targets, 2, max_windows=20, seed=5).mean, found.mean)
    np.testing.assert_array_equal(
        fit_pca(targets, 2, max_windows=50, seed=5).mean, fit_pca(targets, 2).mean
    )


def test_standardised_as_seas_code_does(targets):
    targets = np.column_stack([targets * [1, 10, 1, 1, 0.1, 1], np.full(50, 3.0)])
    found = fit_pca(targets, 2, standardize=True)
    varying = targets[:, :6]
    scaled = (varying - varying.mean(axis=0)) / varying.std(axis=0, ddof=1)
    np.testing.assert_allclose(
        found.apply(targets), scaled @ by_hand(scaled, 2)[1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("rows", "size", "options", "message"),
    [
        (3, 4, {}, "3 windows given for 4 components; PCA needs at least as many"),
        (1, 1, {}, "1 windows given for 1 components"),
        (50, 4, {"max_windows": 3}, "3 windows given for 4 components"),
        (50, 7, {}, "size=7 is not a whole number in 1 … 6"),
        (50, 0, {}, "size=0 is not a whole number"),
        (50, True, {}, "size=True is not a whole number"),
    ],
)
def test_pca_that_cannot_be(targets, rows, size, options, message):
    with pytest.raises(ParameterError, match=message):
        fit_pca(targets[:rows], size, **options)
    with pytest.raises(ParameterError, match=r"targets of shape \(6,\) given"):
        fit_pca(targets[0], 1)


# The value and its file.


def test_a_linear_map_works_on_the_students_side():
    found = Reduction("linear", np.array([1.0, 2, 3]), np.array([[1.0, 0, 1], [0, 1, 1]]))
    assert found.sizes == (3, 2)
    np.testing.assert_array_equal(found.expand(np.array([[10.0, 20]])), [[11, 22, 33]])
    targets = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(found.apply(targets), targets)


def test_reductions_are_frozen(targets):
    found = fit_pca(targets, 2)
    with pytest.raises(ValueError, match="read-only"):
        found.matrix[0, 0] = 1
    with pytest.raises(AttributeError):
        found.kind = "linear"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ica", np.zeros(2), np.zeros((2, 1))), "reduction 'ica'; allowed: 'pca', 'linear'"),
        (("pca", np.zeros(2), np.zeros((1, 2))), "do not fit"),
        (("linear", np.zeros(2), np.zeros((2, 1))), "do not fit"),
        (("pca", np.zeros((2, 2)), np.zeros((2, 1))), "do not fit"),
        (("pca", np.full(2, np.nan), np.zeros((2, 1))), "mean is not of finite numbers"),
        (("pca", np.zeros(2), np.array([["a"], ["b"]])), "matrix is not of finite numbers"),
    ],
)
def test_reductions_that_are_none(arguments, message):
    with pytest.raises(ParameterError, match=message):
        Reduction(*arguments)


def test_saved_and_loaded(targets, tmp_path):
    path = tmp_path / "deep" / "reduction.npz"
    found = fit_pca(targets, 2)
    found.save(path)
    again = Reduction.load(path)
    assert again.kind == "pca"
    np.testing.assert_array_equal(again.mean, found.mean)
    np.testing.assert_array_equal(again.matrix, found.matrix)
    assert [each.name for each in path.parent.iterdir()] == ["reduction.npz"]
    first = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == first


def test_damaged_files(targets, tmp_path):
    path = tmp_path / "reduction.npz"
    with pytest.raises(L3PruneError, match="no such file"):
        Reduction.load(path)
    path.write_text("text")
    with pytest.raises(L3PruneError, match=r"reduction\.npz is damaged"):
        Reduction.load(path)
    fit_pca(targets, 2).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(L3PruneError, match="is damaged"):
        Reduction.load(path)
    np.savez(path, kind=np.array("pca"), mean=np.zeros(2))
    with pytest.raises(L3PruneError, match="is damaged: 'matrix is not a file"):
        Reduction.load(path)
    np.savez(path, kind=np.array("pca"), mean=np.zeros(2), matrix=np.zeros((5, 1)))
    with pytest.raises(L3PruneError, match="is damaged: reduction pca: mean of shape"):
        Reduction.load(path)
    # Nothing in it is run.
    np.savez(path, kind=np.array("pca"), mean=np.zeros(2), matrix=np.array([{}], dtype=object))
    with pytest.raises(L3PruneError, match="is damaged: Object arrays cannot be loaded"):
        Reduction.load(path)


def test_unexplained_by_hand():
    wanted = np.array([[1.0, 0], [3.0, 0]])
    assert unexplained(wanted, wanted) == 0
    assert unexplained(np.full((2, 2), [2.0, 0]), wanted) == 1
    assert unexplained(wanted + np.array([0, 2]), wanted) == 4
    with pytest.raises(ParameterError, match=r"shapes \(1, 2\) and \(2, 2\) do not compare"):
        unexplained(wanted[:1], wanted)
    with pytest.raises(ParameterError, match="is the same in all windows"):
        unexplained(wanted, np.ones((2, 2)))


# Distillation.


def make_student(**arguments):
    """A student of make_tiny's kind with two values, with weights that do not change from run to
    run and a BatchNorm of the spectrogram that fits it."""
    student = create_network("sea64", **{"filters": [4] * 7 + [2], **arguments})
    rng = np.random.default_rng(11)
    for weight in student.weights:
        if "kernel" in weight.name:
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape))
    student.get_layer("batch_normalization_1").moving_mean.assign([-30.0])
    student.get_layer("batch_normalization_1").moving_variance.assign([200.0])
    return student


def run(folder, sounds, reduction, student=None, teacher=None, **changes):
    recipe = {
        "epochs": 7,
        "learning_rate": 1e-2,
        "checkpoint_interval": 2,
        "batch_norm": "freeze",
        **changes,
    }
    resume = recipe.pop("resume", False)
    student = make_student(embedding_point="raw") if student is None else student
    history = distill(
        student,
        make_tiny() if teacher is None else teacher,
        sounds,
        sounds,
        folder,
        reduction=reduction,
        recipe=Recipe(**recipe),
        batch_size=4,
        cache_dir=folder.parent / "cache",
        quiet=True,
        resume=resume,
    )
    return student, history


def bits(network):
    return [weight.numpy().tobytes() for layer in network.layers for weight in layer.weights]


def masked_student():
    student = make_student()  # activated, as SEA's
    return surgery.apply_masks(student, plan_layerwise(graph.conv_weights(student), 0.3))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Sounds, and a run for each reduction: its folder, student and history."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    sounds = make_sounds(folder / "sounds")
    students = {"pca": make_student(embedding_point="raw"), "linear": masked_student()}
    runs = {
        kind: (folder / kind, *run(folder / kind, sounds, kind, student))
        for kind, student in students.items()
    }
    return sounds, runs


@pytest.fixture
def heard(uninterrupted):
    """All windows, and the teacher's embeddings of them."""
    sounds, runs = uninterrupted
    source = open_windows(sounds, 8000, runs["pca"][0].parent / "cache", quiet=True)
    return source, inference(make_tiny())(source.read(np.arange(len(source))))


@pytest.mark.slow
def test_a_student_learns_the_projected_embedding(uninterrupted, heard, tmp_path):
    folder, student, history = uninterrupted[1]["pca"]
    source, targets = heard
    found = Reduction.load(folder / REDUCTION)
    # Fitted on the training windows, all of them.
    np.testing.assert_array_equal(found.matrix, fit_pca(targets, 2).matrix)
    embedding = inference(student)(source.read(np.arange(len(source))))
    error = embedding - (targets - found.mean) @ found.matrix
    best = min(row["val_mse"] for row in history)
    assert np.square(error).mean() == pytest.approx(best, rel=1e-3)
    fraction = unexplained_variance(student, make_tiny(), source, tmp_path, found, quiet=True)
    wanted = found.apply(targets)
    assert fraction == pytest.approx(best / wanted.var(axis=0).mean(), rel=1e-3)
    assert fraction < 0.8
    assert bits(load_network(folder / BEST)) == bits(student)


@pytest.fixture
def no_training(monkeypatch):
    """All of a run but its training."""
    monkeypatch.setattr("l3prune.distillation.fit", lambda *args, **options: [])


def test_validation_windows_take_no_part_in_the_components(sounds, tmp_path, no_training):
    other = tmp_path / "other"
    other.mkdir()
    noise = np.random.default_rng(1).uniform(-0.9, 0.9, 24000)
    soundfile.write(other / "a.wav", noise, 8000)
    student, teacher = make_student(), make_tiny()
    distill(student, teacher, other, sounds, tmp_path / "run", reduction="pca", quiet=True)
    source = open_windows(other, 8000, tmp_path / "run" / "cache", quiet=True)
    targets = inference(teacher)(source.read(np.arange(len(source))))
    found = Reduction.load(tmp_path / "run" / REDUCTION)
    np.testing.assert_allclose(found.mean, targets.mean(axis=0), rtol=1e-5)


def test_a_linear_map_beats_the_mean_and_is_no_part_of_the_student(uninterrupted, heard, tmp_path):
    folder, student, history = uninterrupted[1]["linear"]
    source, targets = heard
    found = Reduction.load(folder / REDUCTION)
    assert found.kind == "linear"
    assert found.sizes == (4, 2)
    assert student.output_shape == (None, 2)
    # By hand: the best checkpoint's student and the best epoch's map belong together.
    best = min(row["val_mse"] for row in history)
    for network in (student, load_network(folder / BEST)):
        embedding = inference(network)(source.read(np.arange(len(source))))
        mapped = embedding @ found.matrix + found.mean
        assert np.square(mapped - targets).mean() == pytest.approx(best, rel=1e-3)
    fraction = unexplained_variance(student, make_tiny(), source, tmp_path, found, quiet=True)
    assert fraction == pytest.approx(best / targets.var(axis=0).mean(), rel=1e-3)
    assert fraction < 0.8
    plan = graph.masks(masked_student())
    for name in (BEST, LATEST, "model_checkpoint.02.h5"):
        saved = load_network(folder / name)
        assert network_config(saved) == network_config(student)
        assert graph.masks(saved) == plan
        sidecar = json.loads((folder / name).with_suffix(".json").read_text())
        assert sidecar["parameters"] == student.count_params() - sum(m.size for m in plan.values())


def test_a_new_map_gives_the_mean_and_the_same_weights_each_time(targets):
    """Whatever is gained later is gained over that."""
    student = make_student()
    student.get_layer("batch_normalization_9").set_weights(
        [np.zeros(2), np.full(2, -1.0), np.zeros(2), np.ones(2)]
    )
    one, two, other = (with_linear_map(student, targets, seed) for seed in (3, 3, 4))
    mean = inference(one)(np.ones((1, 1, 8000)))
    np.testing.assert_allclose(mean[0], targets.mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(one.map.kernel, two.map.kernel)
    assert (one.map.kernel.numpy() != other.map.kernel.numpy()).all()
    # Trained, and not seen by those who read the network.
    assert len(one.trainable_variables) == len(student.trainable_variables) + 2
    assert [w.name for w in one.weights] == [
        w.name for layer in student.layers for w in layer.weights
    ]
    assert one.count_params() == student.count_params()


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["pca", "linear"])
@pytest.mark.parametrize("moment", ["step", "epoch", "checkpoint"])
def test_resumed_runs_are_exact(uninterrupted, tmp_path, reduction, moment, monkeypatch):
    sounds, runs = uninterrupted
    whole, student, history = runs[reduction]

    # Ends in the third epoch: after its first step, before it is recorded at all, or when all but
    # the checkpoint is.
    end, save, step = Keeper.on_epoch_end, checkpoints.save_network, Keeper.on_train_batch_end

    def cut(self, epoch, logs=None):
        if epoch == 2 and moment == "epoch":
            raise KeyboardInterrupt
        end(self, epoch, logs)

    def cut_save(network, path, *, origin=None, **options):
        if path.name == LATEST and origin["epoch"] == 3 and moment == "checkpoint":
            raise KeyboardInterrupt
        save(network, path, origin=origin, **options)

    def asked(self, batch, logs=None):
        if len(self.progress.history) == 2 and moment == "step":
            signal.raise_signal(signal.SIGTERM)
        step(self, batch, logs)

    folder = tmp_path / "run"
    fresh = {"pca": lambda: make_student(embedding_point="raw"), "linear": masked_student}
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_epoch_end", cut)
        patch.setattr(Keeper, "on_train_batch_end", asked)
        patch.setattr(checkpoints, "save_network", cut_save)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            run(folder, sounds, reduction, fresh[reduction]())
    resumed, rows = run(folder, sounds, reduction, fresh[reduction](), resume=True)
    assert rows == history
    assert bits(resumed) == bits(student)
    for name in (LATEST, BEST, REDUCTION):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def with_maps_beside(folder):
    """Make a run one of an earlier version: maps in a file of their own, no random state."""
    maps = {}
    for name in (BEST, LATEST):
        with h5py.File(folder / name, "r+") as file:
            epoch = json.loads((folder / name).with_suffix(".json").read_text())["epoch"]
            maps[epoch] = [file.pop(f"attachment/beside-000{number}")[()] for number in (0, 1)]
            file["attachment"].pop("random", None)
    np.savez(
        folder / LINEAR_MAP,
        epochs=np.array(list(maps)),
        means=np.stack([bias for _, bias in maps.values()]),
        matrices=np.stack([kernel for kernel, _ in maps.values()]),
    )


@pytest.mark.slow
def test_runs_of_earlier_versions_are_continued(uninterrupted, tmp_path):
    sounds, runs = uninterrupted
    whole, student, history = runs["linear"]
    run(tmp_path / "run", sounds, "linear", masked_student(), epochs=3)
    with_maps_beside(tmp_path / "run")
    (tmp_path / "run" / REDUCTION).unlink()
    with pytest.raises(ParameterError, match="has reduction='linear', not 'pca'"):
        run(tmp_path / "run", sounds, "pca", resume=True)
    resumed, rows = run(tmp_path / "run", sounds, "linear", masked_student(), resume=True)
    assert rows == history
    assert bits(resumed) == bits(student)
    for name in (LATEST, BEST, REDUCTION):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_best_map_of_an_earlier_version(uninterrupted, tmp_path):
    sounds, runs = uninterrupted
    whole, _, history = runs["linear"]
    shutil.copytree(whole, tmp_path / "run")
    with_maps_beside(tmp_path / "run")
    (tmp_path / "run" / REDUCTION).unlink()
    _, rows = run(tmp_path / "run", sounds, "linear", masked_student(), resume=True)
    assert rows == history
    assert (tmp_path / "run" / REDUCTION).read_bytes() == (whole / REDUCTION).read_bytes()


def test_a_run_that_has_ended_gives_its_best_student_and_map_again(uninterrupted, tmp_path):
    sounds, runs = uninterrupted
    for kind, (whole, student, history) in runs.items():
        shutil.copytree(whole, tmp_path / kind)
        if kind == "linear":
            (tmp_path / kind / REDUCTION).unlink()
        again, rows = run(
            tmp_path / kind,
            sounds,
            kind,
            masked_student() if kind == "linear" else None,
            resume=True,
        )
        assert (rows, bits(again)) == (history, bits(student))
        assert (tmp_path / kind / REDUCTION).read_bytes() == (whole / REDUCTION).read_bytes()


def test_the_map_is_of_the_best_epoch_even_when_training_went_on(sounds, tmp_path):
    """Validation hears something else, and gets worse."""
    student, teacher = make_student(), make_tiny()
    other = tmp_path / "other"
    other.mkdir()
    soundfile.write(other / "a.wav", np.random.default_rng(1).uniform(-0.9, 0.9, 24000), 8000)
    recipe = Recipe(epochs=6, learning_rate=0.1, batch_norm="freeze")
    history = distill(
        *(student, teacher, other, sounds, tmp_path / "run"),
        reduction="linear",
        recipe=recipe,
        quiet=True,
    )
    losses = [row["val_loss"] for row in history]
    assert int(np.argmin(losses)) < 4, "the test needs a run that gets worse"
    found = Reduction.load(tmp_path / "run" / REDUCTION)
    source = open_windows(sounds, 8000, tmp_path / "run" / "cache", quiet=True)
    everything = source.read(np.arange(len(source)))
    error = found.expand(inference(student)(everything)) - inference(teacher)(everything)
    assert np.square(error).mean() == pytest.approx(
        history[int(np.argmin(losses))]["val_mse"], rel=1e-3
    )


def test_divergence_with_a_map_is_told(sounds, tmp_path):
    with pytest.raises(L3PruneError, match="diverged in epoch 1"):
        run(tmp_path / "run", sounds, "linear", learning_rate=1e30)


def test_a_reduction_fitted_elsewhere(sounds, tmp_path, targets, no_training):
    given = fit_pca(targets[:, :4], 2, standardize=True)
    run(tmp_path / "run", sounds, given)
    stored = Reduction.load(tmp_path / "run" / REDUCTION)
    np.testing.assert_array_equal(stored.matrix, given.matrix)


# Networks that hear differently.


@pytest.fixture
def recordings(tmp_path):
    """Generated sounds at three rates, with energy where 8 kHz hears it and above."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number, rate in enumerate([48000, 44100, 22050]):
        time = np.arange(int(1.5 * rate) + number) / rate
        tone = np.sin(2 * np.pi * (300 + 900 * number) * time * (1 + time))
        sound = 0.3 * tone * (time % 0.3 < 0.2) + 0.1 * rng.uniform(-1, 1, len(time))
        soundfile.write(folder / f"{number}.wav", sound, rate)
    return folder


def test_a_pair_as_seas_trains(recordings, tmp_path):
    """A teacher of 48 kHz and 128 bands, a student of 8 kHz and 64."""
    teacher = create_network("mel128", filters=[2] * 7 + [4])
    student = make_student()
    before = bits(teacher)
    _, history = run(tmp_path / "run", recordings, "pca", student, teacher, epochs=4)
    assert history[-1]["mse"] < history[0]["mse"]
    assert bits(teacher) == before
    pair = open_pair(recordings, (8000, 48000), tmp_path / "cache", quiet=True)
    found = Reduction.load(tmp_path / "run" / REDUCTION)
    fraction = unexplained_variance(student, teacher, pair, tmp_path / "cache", found, quiet=True)
    targets = found.apply(inference(teacher)(pair[1].read(np.arange(len(pair[1])))))
    best = min(row["val_mse"] for row in history)
    assert fraction == pytest.approx(best / targets.var(axis=0).mean(), rel=1e-3)


# Refusals.


def test_refused_combinations(sounds, tmp_path, targets):
    def refuse(message, student, teacher, reduction, resume=False):
        folder = tmp_path / "run"
        with pytest.raises(ParameterError, match=message):
            distill(student, teacher, sounds, sounds, folder, reduction=reduction, resume=resume)
        assert not folder.exists()

    tiny, small, large = make_tiny(), make_student(), create_network("sea64", filters=[5] * 8)
    refuse("must be equal, or give reduction='pca' or 'linear'", small, tiny, None)
    refuse("different front ends; .* or give reduction=", create_network("mel256"), tiny, None)
    refuse("reduction='umap'; allowed: 'pca', 'linear', a Reduction, None", small, tiny, "umap")
    log_mel = create_network("sea64", input="log_mel", filters=[2] * 8)
    for kind in ("pca", "linear"):
        refuse("has 5 values, the teacher's 4; a reduction is for students", large, tiny, kind)
        refuse("the student takes log-mel input", log_mel, tiny, kind)
    vision = create_network("vision", filters=[1] * 8)
    refuse("'vision' is no audio network", small, vision, "pca")
    refuse("the reduction is from 6 to 2 values, .* have 4 and 2", small, tiny, fit_pca(targets, 2))
    given = Reduction("linear", np.zeros(4), np.zeros((2, 4)))
    refuse("is trained along with its student: reduction='linear'", small, tiny, given)


def test_more_components_than_windows(tmp_path):
    folder = tmp_path / "short"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(8000), 8000)
    with pytest.raises(ParameterError, match="1 windows given for 2 components"):
        run(tmp_path / "run", folder, "pca")


def test_runs_are_continued_with_their_own_reduction(uninterrupted, tmp_path):
    sounds, runs = uninterrupted
    for kind, other in (("pca", "linear"), ("linear", "pca")):
        with pytest.raises(ParameterError, match=f"has reduction='{kind}', not '{other}'"):
            run(runs[kind][0], sounds, other, resume=True)
    with pytest.raises(ParameterError, match="has reduction=None, not 'pca'"):
        run(tmp_path / "none", sounds, "pca", resume=True)


def test_damaged_maps(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[1]["linear"][0], tmp_path / "run")
    path = tmp_path / "run" / LINEAR_MAP
    trained = with_linear_map(make_student(), np.zeros((1, 4), np.float32), 0)
    before = trained.map.kernel.numpy()
    # The checkpoint has its map, and no other is looked for.
    restore_earlier_map(trained, tmp_path / "run")
    np.testing.assert_array_equal(trained.map.kernel, before)
    with_maps_beside(tmp_path / "run")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    restore_earlier_map(trained, tmp_path / "run")
    place = arrays["epochs"].tolist().index(7)
    np.testing.assert_array_equal(trained.map.kernel, arrays["matrices"][place])
    np.testing.assert_array_equal(trained.map.bias, arrays["means"][place])
    for epochs, matrices, message in [
        ([5], (1, 2, 4), "does not have the map after epoch 7; it is not of this run"),
        ([6, 7], (1, 2, 4), "does not have the map after epoch 7"),
        (7, (1, 2, 4), "does not have the map after epoch 7"),
        ([7], (1, 2, 5), "does not have the map after epoch 7"),
        ([7], (1, 3, 4), r"has a map of shape \(3, 4\)"),
    ]:
        np.savez(path, epochs=np.array(epochs), means=np.zeros((1, 4)), matrices=np.zeros(matrices))
        with pytest.raises(L3PruneError, match=message):
            restore_earlier_map(trained, tmp_path / "run")
    path.write_text("text")
    with pytest.raises(L3PruneError, match=r"linear_map\.npz is damaged"):
        restore_earlier_map(trained, tmp_path / "run")
    path.unlink()
    with pytest.raises(L3PruneError, match=r"no such file: .*linear_map\.npz"):
        restore_earlier_map(trained, tmp_path / "run")
