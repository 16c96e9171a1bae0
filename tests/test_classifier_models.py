"""The classifier's models: perceptron, support vector machine, forest; their inputs and file."""

import zipfile

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import classifier.model
import classifier.progress
from classifier.checks import check_seed
from classifier.inputs import (
    STATISTICS,
    Features,
    Inputs,
    Preparation,
    clip_statistics,
    fit_preparation,
)
from classifier.mlp import MLP, Recipe, best_row, build_network, fit_mlp
from classifier.model import Classifier, Rows, fit_model, load_classifier, predict_clips
from classifier.shallow import SVM, Forest, ForestRecipe, SVMRecipe, fit_forest, fit_svm
from l3prune.errors import L3PruneError, ParameterError
from tests.test_classifier import QUICK, toy_features


def toy_rows(folds=(1, 2, 3), seed=0):
    """Standardised frames of two classes, their targets and clips."""
    features = toy_features(folds=folds, seed=seed)
    clips = list(features.embeddings)
    preparation = fit_preparation(Inputs(), 1, clips)
    counts = preparation.counts(clips)
    return Rows(
        preparation.matrix(clips),
        np.repeat(features.targets, counts),
        np.repeat(np.arange(len(clips)), counts),
    )


def blobs(classes=3, clips=6, seed=0):
    """Overlapping classes in four dimensions, three rows a clip."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(classes), 3 * clips)
    centres = rng.normal(size=(classes, 4))
    rows = (centres[targets] + rng.normal(size=(len(targets), 4))).astype(np.float32)
    return Rows(rows, targets, np.repeat(np.arange(classes * clips), 3))


def plain(inputs=1, stats=False, step=1):
    """A preparation that changes nothing."""
    size = inputs * (len(STATISTICS) if stats else 1)
    zero, one = np.zeros(inputs, np.float32), np.ones(inputs, np.float32)
    return Preparation(
        stats, step, zero, one, np.zeros(size, np.float32), np.ones(size, np.float32)
    )


def softmax_of(logit_kernel):
    """A classifier of one linear layer on 1-d frames."""
    return Classifier(plain(), MLP((np.float32([logit_kernel]),), (np.zeros(2, np.float32),)))


# --------------------------------------------------------------------------------- inputs


def test_statistics_by_hand():
    """Two dimensions; the values of 1, 2, 3, 10: mean 4, variance 12.5, third moment 45."""
    frames = np.float32([[1, -1], [2, -2], [3, -3], [10, -10]])
    fourth = (81 + 16 + 1 + 1296) / 4
    skew, kurtosis = 45 / 12.5**1.5, fourth / 12.5**2 - 3
    expected = [
        *(1, -10), *(10, -1), *(2.5, -2.5), *(4, -4), *(12.5, 12.5), *(skew, -skew),
        *(kurtosis, kurtosis),
    ]  # fmt: skip
    np.testing.assert_allclose(clip_statistics(frames), expected, rtol=1e-6)


def test_statistics_are_scipys():
    frames = np.random.default_rng(0).gamma(2, size=(31, 5)).astype(np.float32)
    values = frames.astype(float)
    expected = [
        values.min(0), values.max(0), np.median(values, 0), values.mean(0), values.var(0),
        scipy.stats.skew(values), scipy.stats.kurtosis(values),
    ]  # fmt: skip
    np.testing.assert_allclose(clip_statistics(frames), np.concatenate(expected), rtol=1e-5)


def test_statistics_of_one_frame_and_of_a_constant_dimension():
    one = clip_statistics(np.float32([[0.1, 5]])).reshape(7, 2)
    np.testing.assert_array_equal(one[:4], np.float32([[0.1, 5]] * 4))
    np.testing.assert_array_equal(one[4:], 0)
    # Seven equal float32 values whose mean in float64 is off by a rounding.
    constant = np.full((7, 1), 0.1, np.float32)
    np.testing.assert_array_equal(clip_statistics(constant)[4:], 0)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 3)),
           elements=st.floats(-1e6, 1e6, width=32))
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_statistics_are_finite_and_ordered(frames):
    low, high, median, mean, variance, _, kurtosis = clip_statistics(frames).reshape(7, -1)
    assert np.isfinite(clip_statistics(frames)).all()
    assert np.all((low <= median) & (median <= high))
    assert np.all(mean <= high + 1e-6 * np.abs(high))
    assert np.all(variance >= 0)
    # Of n values it lies between -2 and n - 3 + 1 / (n - 1).
    assert np.all(kurtosis >= -2.001)


@pytest.mark.parametrize(
    ("hop_size", "step"), [(0.1, 10), (0.5, 2), (1.0, 1), (0.3, 4), (0.4, 3), (1 / 3, 3), (0.7, 2)]
)
def test_frames_that_do_not_overlap(hop_size, step):
    toy = toy_features()
    features = Features(
        *(toy.dataset, toy.labels, toy.names, toy.folds, toy.targets, toy.embeddings),
        {"hop_size": hop_size},
    )
    assert Inputs(non_overlap=True).step(features) == step
    assert step * hop_size > 1 - 1e-9
    assert (step - 1) * hop_size < 1
    assert Inputs().step(features) == 1
    with pytest.raises(ParameterError, match="do not say their hop size"):
        Inputs(non_overlap=True).step(toy)
    frames = np.arange(25, dtype=np.float32)[:, np.newaxis]
    np.testing.assert_array_equal(plain(step=step).rows(frames)[:, 0], np.arange(0, 25, step))
    assert plain(step=step).counts([frames]) == [len(plain(step=step).rows(frames))]


def test_scalers_are_scikit_learns_of_all_training_rows(monkeypatch):
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    monkeypatch.setattr("classifier.inputs.CHUNK", 7)
    rng = np.random.default_rng(0)
    clips = [rng.gamma(2, size=(n, 3)).astype(np.float32) for n in (5, 1, 9, 4)]
    together = np.concatenate(clips)
    standard = fit_preparation(Inputs(), 1, clips)
    np.testing.assert_allclose(
        standard.matrix(clips), StandardScaler().fit_transform(together), atol=1e-5
    )
    np.testing.assert_array_equal(standard.low, 0)
    np.testing.assert_array_equal(standard.span, 1)
    both = fit_preparation(Inputs(min_max=True), 1, clips)
    scaled = MinMaxScaler().fit_transform(together)
    np.testing.assert_allclose((together - both.low) / both.span, scaled, atol=1e-6)
    np.testing.assert_allclose(both.mean, scaled.mean(0), rtol=1e-5)
    np.testing.assert_allclose(both.scale, scaled.std(0), rtol=1e-5)
    # As documented, the two maps together are the second one alone.
    np.testing.assert_allclose(both.matrix(clips), standard.matrix(clips), atol=1e-4)
    stats = fit_preparation(Inputs("stats", min_max=True), 2, clips)
    rows = np.array([clip_statistics((clip[::2] - stats.low) / stats.span) for clip in clips])
    thinned = np.concatenate([clip[::2] for clip in clips])
    np.testing.assert_array_equal(stats.low, thinned.min(0))
    np.testing.assert_allclose(
        stats.matrix(clips), StandardScaler().fit_transform(rows), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("min_max", [False, True])
def test_constant_dimension_is_harmless(min_max):
    rng = np.random.default_rng(0)
    clips = [np.hstack([rng.normal(size=(4, 1)), np.full((4, 1), 7)]).astype("f4") for _ in "ab"]
    for mode in ("framewise", "stats"):
        preparation = fit_preparation(Inputs(mode, min_max=min_max), 1, clips)
        assert np.isfinite(preparation.matrix(clips)).all()
        np.testing.assert_array_equal(preparation.matrix(clips)[:, 1], 0)


def test_other_frames_and_modes_are_refused():
    with pytest.raises(ParameterError, match=r"frames of shape \(50, 5\) given; .* \(n, 6\)"):
        plain(6).rows(np.zeros((50, 5), np.float32))
    with pytest.raises(ParameterError, match="mode='frames' is unknown; known: framewise, stats"):
        Inputs("frames")


@pytest.mark.parametrize("seed", [-1, 0.5, True, 2**32, "1"])
def test_bad_seed(seed):
    with pytest.raises(ParameterError, match="is not an integer of 0 or more"):
        check_seed(seed)


# ----------------------------------------------------------------------------- perceptron


def test_network_is_the_papers():
    from tf_keras.initializers import GlorotUniform

    network = build_network(64, 10, seed=0)
    assert [layer.units for layer in network.layers] == [512, 128, 10]
    assert [layer.activation.__name__ for layer in network.layers] == ["relu", "relu", "softmax"]
    for layer in network.layers:
        assert float(layer.kernel_regularizer.l2) == pytest.approx(1e-5)
        assert layer.bias_regularizer is None
        assert isinstance(layer.kernel_initializer, GlorotUniform)
    # No two layers start from the same random numbers.
    first, second = (layer.get_weights()[0].ravel() for layer in network.layers[:2])
    assert abs(np.corrcoef(first[:1000], second[:1000])[0, 1]) < 0.2


def test_predict_is_what_the_keras_network_computes():
    network = build_network(6, 3, seed=4)
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=w.shape).astype(np.float32) / 5 for w in network.get_weights()]
    network.set_weights(weights)
    mlp = MLP(tuple(weights[::2]), tuple(weights[1::2]))
    rows = rng.normal(size=(50, 6)).astype(np.float32)
    np.testing.assert_allclose(mlp.predict(rows), network(rows).numpy(), rtol=1e-4, atol=1e-6)
    assert mlp.shape == (6, 3)


def test_predict_survives_large_logits():
    probabilities = softmax_of([0, 1000]).model.predict(np.float32([[1], [-1]]))
    np.testing.assert_array_equal(probabilities, [[0, 1], [1, 0]])


def test_training_is_the_same_bit_for_bit():
    rows, valid = toy_rows((1, 2)), toy_rows((3,))
    first, second = (rows.values, rows.targets), (valid.values, valid.targets)
    mlp, history = fit_mlp(first, second, 2, seed=5, recipe=QUICK)
    np.random.seed(1)  # noqa: NPY002 (shows that global random state is not read)
    again, history_again = fit_mlp(first, second, 2, seed=5, recipe=QUICK)
    other, _ = fit_mlp(first, second, 2, seed=6, recipe=QUICK)
    assert history == history_again
    for name, array in mlp.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    assert not np.array_equal(other.kernels[0], mlp.kernels[0])


def test_first_epoch_is_what_keras_fit_computes():
    """One full batch: no order of rows, so plain Keras must give the same weights."""
    import tf_keras as keras

    train, valid = toy_rows((1, 2)), toy_rows((3,))
    recipe = Recipe(epochs=2, batch_size=1000, learning_rate=1e-3, weight_decay=1e-3)
    mlp, history = fit_mlp(
        (train.values, train.targets), (valid.values, valid.targets), 2, seed=5, recipe=recipe
    )
    network = build_network(4, 2, seed=5, weight_decay=1e-3)
    network.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    reference = network.fit(
        train.values,
        train.targets,
        1000,
        epochs=2,
        validation_data=(valid.values, valid.targets),
        verbose=0,
    ).history
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose([row[name] for row in history], reference[name], rtol=1e-5)
    for ours, theirs in zip(mlp.kernels, network.get_weights()[::2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_chunks_change_nothing_but_rounding(monkeypatch):
    """Also where neither the chunk nor the batch divides the number of rows."""
    train, valid = toy_rows((1, 2)), toy_rows((3,))
    parts = ((train.values[:-1], train.targets[:-1]), (valid.values, valid.targets))
    recipe = Recipe(epochs=3, batch_size=5)
    whole, history = fit_mlp(*parts, 2, recipe=recipe)
    monkeypatch.setattr("classifier.mlp.CHUNK", 13)
    chunked, history_chunked = fit_mlp(*parts, 2, recipe=recipe)
    for a, b in zip(whole.kernels, chunked.kernels, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for one, two in zip(history, history_chunked, strict=True):
        np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-5)


def test_weights_of_the_best_epoch_are_kept():
    """The validation targets contradict the training ones, so each epoch makes it worse."""
    rows = toy_rows()
    recipe = Recipe(epochs=30, learning_rate=1e-2, patience=4)
    mlp, history = fit_mlp(
        (rows.values, rows.targets), (rows.values, 1 - rows.targets), 2, recipe=recipe
    )
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert best_row(history)["epoch"] == 1
    probabilities = mlp.predict(rows.values)
    losses = -np.log(probabilities[np.arange(len(rows.values)), 1 - rows.targets])
    decay = 1e-5 * sum(np.sum(kernel**2) for kernel in mlp.kernels)
    assert losses.mean() + decay == pytest.approx(history[0]["val_loss"], rel=1e-4)
    assert history[-1]["val_loss"] > 1.5 * history[0]["val_loss"]


def test_without_validation_rows_the_last_epoch_is_kept():
    rows = toy_rows()
    train = (rows.values, rows.targets)
    recipe = Recipe(epochs=3, patience=1)
    mlp, history = fit_mlp(train, None, 2, recipe=recipe)
    assert [list(row) for row in history] == [["epoch", "loss", "accuracy"]] * 3
    # The targets of validation contradict, so that one would keep the first epoch with them.
    three = Recipe(epochs=3, patience=3)
    same, with_valid = fit_mlp(train, (rows.values, rows.targets), 2, recipe=three)
    assert best_row(with_valid)["epoch"] == 3
    for a, b in zip(mlp.kernels, same.kernels, strict=True):
        np.testing.assert_array_equal(a, b)
    assert best_row(history)["epoch"] == 3


def test_weight_decay_shrinks_the_kernels():
    rows = toy_rows()
    norms = []
    for weight_decay in (0, 1e-1):
        recipe = Recipe(epochs=10, learning_rate=1e-3, weight_decay=weight_decay)
        mlp, _ = fit_mlp((rows.values, rows.targets), None, 2, recipe=recipe)
        norms.append(sum(np.sum(kernel**2) for kernel in mlp.kernels))
    assert norms[1] < 0.9 * norms[0]


def test_best_epoch_in_the_middle():
    rows = [{"epoch": i, "val_loss": loss} for i, loss in enumerate([3, 1, 2, 1], start=1)]
    assert best_row(rows)["epoch"] == 2


def test_exploding_loss_is_an_error():
    rows = toy_rows((1,))
    recipe = Recipe(epochs=5, learning_rate=1e30)
    with pytest.raises(L3PruneError, match=r"not finite in epoch \d; lower learning_rate=1e\+30"):
        fit_mlp((rows.values, rows.targets), (rows.values, rows.targets), 2, recipe=recipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0 is not a positive integer"),
        ({"epochs": -1}, "epochs=-1"),
        ({"batch_size": 2.5}, "batch_size=2.5 is not a positive integer"),
        ({"patience": 0}, "patience=0"),
        ({"learning_rate": 0}, "learning_rate=0 is not positive"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"weight_decay": -1e-5}, "weight_decay=-1e-05 is not 0 or more"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
    ],
)
def test_bad_recipe(arguments, message):
    with pytest.raises(ParameterError, match=message):
        Recipe(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SVMRecipe(C=0), "C=0 is not positive and finite"),
        (lambda: SVMRecipe(C=float("nan")), "C=nan"),
        (lambda: SVMRecipe(tol=-1), "tol=-1"),
        (lambda: SVMRecipe(kernel="cosine"), "'cosine' is unknown; known: rbf, sigmoid, linear"),
        (lambda: ForestRecipe(trees=0), "trees=0 is not a positive integer"),
        (lambda: ForestRecipe(trees=1.5), "trees=1.5"),
    ],
)
def test_bad_recipe_of_the_others(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


# -------------------------------------------------------------------------- SVM and forest


def reference_svm(rows, recipe, svm):
    """The machine that scikit-learn trains, with the same held-out parts."""
    from sklearn.svm import SVC

    return SVC(C=recipe.C, kernel=recipe.kernel, tol=recipe.tol, gamma=svm.gamma).fit(
        rows.values, rows.targets
    )


@pytest.mark.parametrize("kernel", ["rbf", "sigmoid", "linear", "poly"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_svm_is_scikit_learns(kernel, classes, monkeypatch):
    monkeypatch.setattr("classifier.shallow.KERNEL_VALUES", 100)
    rows, recipe = blobs(classes), SVMRecipe(C=2, kernel=kernel)
    svm = fit_svm(rows.values, rows.targets, rows.groups, classes, recipe=recipe)
    new = np.random.default_rng(9).normal(size=(200, 4)).astype(np.float32)
    reference = reference_svm(rows, recipe, svm)
    expected = reference.decision_function(new)
    scores = svm._scores(new)
    np.testing.assert_allclose(scores[:, 0] if classes == 2 else scores, expected, atol=1e-6)
    probabilities = svm.predict(new)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert svm.gamma == pytest.approx(1 / (4 * rows.values.var()), rel=1e-5)


def test_svm_probabilities_are_the_calibrators(monkeypatch):
    """Against scikit-learn's own calibrated machine, caught while it is fitted."""
    from sklearn.calibration import CalibratedClassifierCV

    caught = []
    fit = CalibratedClassifierCV.fit
    monkeypatch.setattr(
        CalibratedClassifierCV, "fit", lambda self, *a: caught.append(self) or fit(self, *a)
    )
    for classes in (2, 4):
        rows = blobs(classes)
        svm = fit_svm(rows.values, rows.targets, rows.groups, classes)
        expected = caught[-1].predict_proba(rows.values)
        np.testing.assert_allclose(svm.predict(rows.values), expected, atol=1e-6)
        for train, held_out in caught[-1].cv:
            # A clip is on one side only, and every class is on the training side.
            assert not set(rows.groups[train]) & set(rows.groups[held_out])
            assert set(rows.targets[train]) == set(range(classes))
        assert sorted(np.concatenate([part for _, part in caught[-1].cv])) == list(
            range(len(rows.values))
        )


def test_svm_calibrates_with_as_many_parts_as_the_smallest_class_has_clips():
    rows = blobs(3, clips=6)
    kept = (rows.targets != 1) | (rows.groups < 8)  # two clips of class 1
    svm = fit_svm(rows.values[kept], rows.targets[kept], rows.groups[kept], 3)
    assert svm.shape == (4, 3)
    kept = (rows.targets != 1) | (rows.groups < 7)
    with pytest.raises(L3PruneError, match=r"class 1 has 1 training clip; .* need 2"):
        fit_svm(rows.values[kept], rows.targets[kept], rows.groups[kept], 3)
    kept = rows.targets == 1
    with pytest.raises(L3PruneError, match="needs training clips of two classes"):
        fit_svm(rows.values[kept], rows.targets[kept], rows.groups[kept], 3)


@pytest.mark.parametrize("classes", [2, 4])
def test_forest_is_scikit_learns(classes):
    from sklearn.ensemble import RandomForestClassifier

    rows = blobs(classes)
    forest = fit_forest(rows.values, rows.targets, classes, recipe=ForestRecipe(20), seed=3)
    reference = RandomForestClassifier(20, random_state=3).fit(rows.values, rows.targets)
    new = np.random.default_rng(9).normal(size=(300, 4)).astype(np.float32)
    for values in (new, rows.values):
        np.testing.assert_allclose(
            forest.predict(values), reference.predict_proba(values), atol=1e-6
        )


def test_row_on_the_threshold_goes_left():
    """Between 0 and 1 it is 0.5, which float32 has exactly."""
    rows, targets = np.float32([[0], [1]]), np.array([0, 1])
    forest = fit_forest(rows, targets, 2, recipe=ForestRecipe(20))
    assert 0.5 in forest.thresholds
    edge = np.float32([[0.5]])
    np.testing.assert_array_equal(forest.predict(edge), forest.predict(rows[:1]))
    assert forest.predict(edge)[0, 0] > 0.5


def test_classes_without_training_rows_have_probability_0():
    rows = blobs(3)
    kept = rows.targets != 1
    some = Rows(rows.values[kept], rows.targets[kept], rows.groups[kept])
    for recipe in (SVMRecipe(), ForestRecipe(5)):
        trained = fit_model(recipe, some, rows, 5)
        probabilities = trained.model.predict(rows.values)
        assert probabilities.shape == (54, 5)
        np.testing.assert_array_equal(probabilities[:, [1, 3, 4]], 0)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        assert trained.train_accuracy > trained.valid_accuracy > 0.3


def test_forest_of_one_class_is_sure():
    forest = fit_forest(np.zeros((4, 2), np.float32), np.ones(4, int), 2, recipe=ForestRecipe(3))
    np.testing.assert_array_equal(forest.predict(np.ones((2, 2), np.float32)), [[0, 1]] * 2)


# ---------------------------------------------------------------------------- model's file


def test_clip_is_the_mean_of_its_frames_not_their_vote():
    mlp = softmax_of([0, 1])
    # Probabilities of class 1: 0.27, 0.27, 1.00. Two of three frames vote 0; the mean is 0.51.
    clip = np.float32([[-1], [-1], [9]])
    np.testing.assert_allclose(mlp.model.predict(clip)[:, 1], [0.2689, 0.2689, 0.9999], atol=1e-4)
    np.testing.assert_allclose(mlp.predict(clip)[1], 0.5125, atol=1e-4)
    # Their mean in the last clip is 0.5 + 0.01 / 3.
    last = np.log(np.float32([[0.49 / 0.51], [0.49 / 0.51], [0.53 / 0.47]]))
    np.testing.assert_array_equal(predict_clips(mlp, [clip, clip[:2], last]), [1, 0, 1])


RECIPES = {"mlp": QUICK, "svm": SVMRecipe(), "rf": ForestRecipe(7)}


def trained(kind, seed=0):
    rows = blobs(3)
    return Classifier(plain(4, step=2), fit_model(RECIPES[kind], rows, rows, 3, seed=seed).model)


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_file_is_exact_without_pickles_and_the_same_for_the_same_seed(kind, tmp_path):
    one, path = trained(kind), tmp_path / "one.npz"
    one.save(path)
    loaded = load_classifier(path)
    frames = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(frames), one.predict(frames))
    assert (loaded.preparation.step, loaded.preparation.stats) == (2, False)
    assert type(loaded.model) is type(one.model)
    with np.load(path, allow_pickle=False) as found:
        assert str(found["kind"]) == kind
        assert all(array.dtype.kind in "fibU" for array in found.values())
    trained(kind).save(tmp_path / "two.npz")
    assert (tmp_path / "two.npz").read_bytes() == path.read_bytes()
    trained(kind, seed=1).save(tmp_path / "three.npz")
    assert (tmp_path / "three.npz").read_bytes() != path.read_bytes()


def test_classifier_needs_neither_tensorflow_nor_scikit_learn_to_predict(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    for kind in RECIPES:
        trained(kind).save(tmp_path / f"{kind}.npz")
    code = (
        "import sys, numpy as np\n"
        "from classifier.model import load_classifier\n"
        f"for kind in {sorted(RECIPES)}:\n"
        f"    classifier = load_classifier({str(tmp_path)!r} + '/' + kind + '.npz')\n"
        "    assert classifier.predict(np.zeros((3, 4), np.float32)).shape == (3,)\n"
        "assert not {'tensorflow', 'sklearn', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def spoil(kind, path, changes):
    trained(kind).save(path)
    with np.load(path, allow_pickle=False) as found:
        values = {**found, **changes}
    np.savez(path, **{key: value for key, value in values.items() if value is not None})


FLOAT = np.float32


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mlp", {"kind": np.array("lda")}, "it is of kind 'lda', known are mlp, svm, rf"),
        ("mlp", {"kind": None}, "kind"),
        ("mlp", {"kind": np.array("svm")}, "kernel"),
        ("mlp", {"model.bias_2": None}, "bias_2"),
        ("mlp", {"model.kernel_0": np.zeros((3, 1), FLOAT)}, "do not fit its biases"),
        (
            "mlp",
            {"model.kernel_0": np.zeros((5, 512), FLOAT)},
            "rows of 5 values, its frames have",
        ),
        ("mlp", {"model.kernel_0": np.full((4, 512), "x")}, "are not of dense layers"),
        ("mlp", {"model.bias_2": np.full(3, np.nan, FLOAT)}, "bias_2 is not finite"),
        ("mlp", {"mean": np.zeros(4)}, "its mean is not 4 float32 values"),
        ("mlp", {"mean": np.zeros((4, 1), FLOAT)}, "its mean is not 4 float32 values"),
        ("mlp", {"step": np.array(0)}, "its frames have 4"),
        ("mlp", {"stats": np.array(True)}, "its frames have 4"),
        ("mlp", {"mean": np.array([{}], object)}, "allow_pickle=False"),
        ("svm", {"model.kernel": np.array("eval")}, "its kernel or its classes are unknown"),
        ("svm", {"model.counts": np.array([1, 1, 1])}, "should be"),
        ("svm", {"model.classes": np.array([0, 1, 9])}, r"its classes are not in 0 … 2"),
        ("svm", {"model.classes": np.array([0, 1, 1])}, "its classes are unknown"),
        ("svm", {"model.slopes": np.array(["a", "b", "c"])}, "its slopes are not real numbers"),
        ("rf", {"model.left": np.zeros(3, np.int32)}, "its sizes are not in 1 … 3"),
        ("rf", {"model.right": np.zeros(3, np.int32)}, "its right are not one for each of its"),
        ("rf", {"model.sizes": np.array([2**62, 2**62, 7])}, "its sizes are not in"),
        ("rf", {"model.leaves": np.zeros((2, 3), FLOAT)}, "its leaves do not fit its nodes"),
        ("rf", {"model.sizes": np.array([], np.int64)}, "are not one for each of its 0 nodes"),
    ],
)
def test_damaged_or_hostile_file_is_one_line(kind, changes, message, tmp_path):
    path = tmp_path / "classifier.npz"
    spoil(kind, path, changes)
    with pytest.raises(L3PruneError, match=rf"classifier\.npz is no classifier \(.*{message}"):
        load_classifier(path)


def test_tree_that_goes_in_circles_or_leaves_its_tree_is_refused(tmp_path):
    path = tmp_path / "classifier.npz"
    forest = trained("rf").model
    for name, node, child in (("left", 0, 0), ("right", 0, int(forest.sizes[0])), ("left", 0, -1)):
        children = getattr(forest, name).copy()
        children[node] = child
        spoil("rf", path, {f"model.{name}": children})
        with pytest.raises(L3PruneError, match="is no classifier"):
            load_classifier(path)
    inputs = forest.inputs.copy()
    inputs[0] = 4
    spoil("rf", path, {"model.inputs": inputs})
    with pytest.raises(L3PruneError, match="its inputs are not in 0 … 3"):
        load_classifier(path)


def test_missing_cut_or_too_large_file(tmp_path, monkeypatch):
    path = tmp_path / "classifier.npz"
    with pytest.raises(L3PruneError, match="is missing; train it first"):
        load_classifier(path)
    path.write_bytes(b"no zip")
    with pytest.raises(L3PruneError, match="is no classifier"):
        load_classifier(path)
    trained("rf").save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(L3PruneError, match="is no classifier"):
        load_classifier(path)
    trained("rf").save(path)
    for module in (classifier.model, classifier.progress):
        monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(L3PruneError, match=r"it unpacks to 0\.0 GiB"):
        load_classifier(path)
    before = path.read_bytes()
    with pytest.raises(L3PruneError, match="can be stored; train fewer trees"):
        trained("rf").save(path)
    assert path.read_bytes() == before


def test_claimed_shape_takes_no_memory(tmp_path):
    """A header that promises 8 TB of values that are not there."""
    path = tmp_path / "classifier.npz"
    trained("mlp").save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    parts["mean.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(L3PruneError, match="is no classifier"):
        load_classifier(path)


def test_models_keep_to_the_common_interface():
    for kind, cls in (("mlp", MLP), ("svm", SVM), ("rf", Forest)):
        model = trained(kind).model
        assert type(model) is cls
        assert model.shape == (4, 3)
        again = cls.from_arrays(model.arrays())
        rows = blobs(3, seed=5).values
        np.testing.assert_array_equal(again.predict(rows), model.predict(rows))
        assert model.predict(rows).dtype == np.float32
