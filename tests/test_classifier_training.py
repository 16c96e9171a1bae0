"""Splits, training, search and results: who trains, who chooses, who is only tested."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

import classifier.search
import classifier.train
from classifier.inputs import Features, Inputs
from classifier.mlp import Recipe
from classifier.model import Classifier, fit_model, load_classifier
from classifier.results import CrossValidation, FoldResult, class_table, save_confusion
from classifier.search import Search, candidates
from classifier.shallow import ForestRecipe, SVMRecipe
from classifier.splits import split_clips
from classifier.train import cross_validate, train_fold
from l3prune.datasets.splits import split_folds
from l3prune.errors import L3PruneError, ParameterError
from tests.test_classifier import QUICK, files_below, toy_features

FOREST = ForestRecipe(3)


def changed(features, **values):
    """The same features, some attributes changed."""
    return replace(features, **values)


def with_fold(features, fold, change):
    """The same features, the embeddings of one fold changed."""
    embeddings = tuple(
        change(frames) if number == fold else frames
        for number, frames in zip(features.folds, features.embeddings, strict=True)
    )
    return changed(features, embeddings=embeddings)


def with_copies(features, folds=(1, 2, 3, 4)):
    """Two augmented copies of every clip of some folds, far from their originals."""
    parts = {"names": [], "folds": [], "targets": [], "embeddings": []}
    originals = {}
    for clip, name in enumerate(features.names):
        if features.folds[clip] not in folds:
            continue
        for change in ("pitch", "stretch"):
            copy = f"{name}_{change}"
            originals[copy] = name
            parts["names"].append(copy)
            parts["folds"].append(features.folds[clip])
            parts["targets"].append(features.targets[clip])
            parts["embeddings"].append(features.embeddings[clip] + 50)
    return changed(
        features,
        **{
            key: (*getattr(features, key), *values) if key in ("names", "embeddings")
            else [*getattr(features, key), *values]
            for key, values in parts.items()
        },
        originals=originals,
    )  # fmt: skip


# ---------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("test_fold", "valid_fold", "train_folds"),
    [(1, 7, (2, 4)), (2, 1, (4, 7)), (4, 2, (1, 7)), (7, 4, (1, 2))],
)
def test_valid_fold_is_the_one_before(test_fold, valid_fold, train_folds):
    assert split_folds((1, 2, 4, 7), test_fold) == (valid_fold, train_folds)
    features = toy_features(folds=(1, 2, 4, 7))
    split = split_clips(features, test_fold)
    assert (split.valid_fold, split.train_folds) == (valid_fold, train_folds)
    for name, folds in (("test", {test_fold}), ("valid", {valid_fold}), ("train", train_folds)):
        clips = getattr(split, name)
        np.testing.assert_array_equal(
            clips, np.flatnonzero(np.isin(features.folds, list(folds))), err_msg=name
        )


def test_too_few_folds_or_an_unknown_one():
    with pytest.raises(ParameterError, match=r"only fold 1, 2 has features; .* need 3 folds"):
        split_folds((1, 2), 1)
    with pytest.raises(ParameterError, match=r"fold 3 does not exist; folds: 1, 2, 4"):
        split_folds((1, 2, 4), 3)
    with pytest.raises(ParameterError, match="only fold 2 has features; training and testing"):
        split_clips(toy_features(folds=(2,)), 2)
    with pytest.raises(ParameterError, match=r"fold 3 does not exist; folds: 1, 2, 4"):
        split_clips(toy_features(folds=(1, 2, 4)), 3)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, float("nan")])
def test_bad_ratio(ratio):
    with pytest.raises(ParameterError, match="is not between 0 and 1"):
        split_clips(toy_features(), 1, valid_ratio=ratio)
    with pytest.raises(ParameterError, match="is not between 0 and 1"):
        Search(valid_ratio=ratio)


def sized(counts, folds=(1, 2)):
    """One-frame clips, counts[c] of class c in each fold."""
    triples = [
        (f"{fold}-{target}-{i}", fold, target)
        for fold in folds
        for target, count in enumerate(counts)
        for i in range(count)
    ]
    names, numbers, targets = zip(*triples, strict=True)
    frames = tuple(np.full((1, 2), i, np.float32) for i in range(len(names)))
    labels = tuple(f"c{i}" for i in range(len(counts)))
    return Features("toy", labels, names, numbers, targets, frames)


def test_two_folds_validate_on_15_percent_of_each_class():
    """Of 20, 10, 7, 3, 2, 1 clips: 3, 1.5 rounded up, 1.05, at least 1, at least 1, none."""
    features = sized((20, 10, 7, 3, 2, 1))
    split = split_clips(features, 1)
    assert split.valid_fold is None
    assert split.train_folds == (2,)
    np.testing.assert_array_equal(
        np.bincount(features.targets[split.valid], minlength=6), [3, 2, 1, 1, 1, 0]
    )
    assert set(features.folds[split.test]) == {1}
    together = np.sort(np.concatenate([split.train, split.valid]))
    np.testing.assert_array_equal(together, np.flatnonzero(features.folds == 2))
    np.testing.assert_array_equal(split.refit, together)
    again, other = split_clips(features, 1), split_clips(features, 1, seed=1)
    np.testing.assert_array_equal(split.valid, again.valid)
    assert not np.array_equal(split.valid, other.valid)


def test_a_large_ratio_leaves_a_clip_of_each_class_to_train():
    features = sized((5, 2), folds=(1, 2, 3))
    split = split_clips(features, 3, valid_ratio=0.99)
    np.testing.assert_array_equal(np.bincount(features.targets[split.train]), [1, 1])
    assert split.train_folds == (1, 2)


def test_no_clip_left_to_validate_on():
    with pytest.raises(ParameterError, match="no clip is left to valid;"):
        split_clips(sized((1, 1, 1)), 1)


@pytest.mark.parametrize("valid_ratio", [None, 0.3])
def test_copies_train_only_and_never_beside_an_original_that_validates(valid_ratio):
    features = with_copies(toy_features(clips_per_class=6))
    split = split_clips(features, 2, valid_ratio=valid_ratio)
    augmented = features.augmented
    assert augmented[split.train].any()
    for part in (split.valid, split.test):
        assert len(part)
        assert not augmented[part].any()
    for part in (split.train, split.refit):
        assert 2 not in features.folds[part]
    train = {features.group(clip) for clip in split.train}
    assert not train & {features.group(clip) for clip in (*split.valid, *split.test)}
    # Every copy whose original trains is there.
    expected = 3 * sum(~augmented[split.train])
    assert len(split.train) == expected


def test_copies_must_have_their_original():
    features = toy_features()
    copies = with_copies(features)
    with pytest.raises(ParameterError, match=r"is a copy of 9-9-9, which is no official clip"):
        changed(copies, originals={**copies.originals, "1-0-0_pitch": "9-9-9"})
    # Of another fold or class.
    for original in ("2-0-0", "1-0-1", "1-0-0_stretch"):
        with pytest.raises(ParameterError, match="is no official clip of the same fold and class"):
            changed(copies, originals={**copies.originals, "1-0-0_pitch": original})
    assert features.fingerprint != changed(copies, originals={}).fingerprint
    assert copies.fingerprint != changed(copies, originals={}).fingerprint


# ------------------------------------------------------------------------------- one fold


CONFIGURATIONS = {
    "mlp": {"recipe": QUICK},
    "svm": {"recipe": SVMRecipe()},
    "rf": {"recipe": FOREST},
    "stats": {"recipe": FOREST, "inputs": Inputs("stats", min_max=True)},
    "mlp search": {"recipe": QUICK, "parameter_search": Search()},
    "svm search": {"recipe": SVMRecipe(), "parameter_search": Search(valid_fold=False)},
    "kept": {"recipe": SVMRecipe(), "parameter_search": Search(train_with_valid=False)},
}


@pytest.fixture
def small_grids(monkeypatch):
    monkeypatch.setattr(
        classifier.search,
        "GRIDS",
        {
            "mlp": {"learning_rate": (1e-5, 1e-2), "weight_decay": (1e-5,)},
            "svm": {"C": (1e-6, 1, 100)},
            "rf": {"trees": (1, 5)},
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_the_test_fold_has_no_say(name, tmp_path, small_grids):
    """Its embeddings and labels scrambled, the model's bytes stay the same; so do all choices."""
    options = CONFIGURATIONS[name]
    features = with_copies(toy_features(clips_per_class=5), folds=(3, 4))
    absurd = with_fold(features, 3, lambda frames: 1e6 * frames[::-1] - 1e5)
    copies = features.augmented & (features.folds == 3)
    targets = features.targets.copy()
    targets[features.folds == 3] = 0
    targets[copies] = 0
    absurd = changed(absurd, targets=targets)
    one = train_fold(features, 3, tmp_path / "a", quiet=True, **options)
    two = train_fold(absurd, 3, tmp_path / "b", quiet=True, **options)
    model, other = ((tmp_path / x / "fold3/seed0/classifier.npz").read_bytes() for x in "ab")
    assert model == other
    assert replace(one, confusion=()) == replace(two, confusion=())
    assert one.confusion != two.confusion
    if "mlp" not in name:
        # And any other fold has a say, or this test would prove nothing.
        moved = with_fold(features, 4, lambda frames: frames + np.float32(0.25))
        train_fold(moved, 3, tmp_path / "c", quiet=True, **options)
        assert (tmp_path / "c/fold3/seed0/classifier.npz").read_bytes() != model


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_the_same_seed_gives_the_same_bytes(name, tmp_path, small_grids):
    options = CONFIGURATIONS[name]
    features = toy_features(clips_per_class=4)
    for folder in ("a", "b"):
        train_fold(features, 2, tmp_path / folder, seed=3, quiet=True, **options)
    one, same = (tmp_path / folder / "fold2/seed3" for folder in ("a", "b"))
    written = [path for path in files_below(one) if (one / path).is_file()]
    assert written == [path for path in files_below(same) if (same / path).is_file()]
    for path in written:
        assert (one / path).read_bytes() == (same / path).read_bytes(), path
    if "mlp" not in name:  # whose other seeds test_classifier_models.py has
        train_fold(features, 2, tmp_path, seed=4, quiet=True, **options)
        other = tmp_path / "fold2/seed4/classifier.npz"
        assert (one / "classifier.npz").read_bytes() != other.read_bytes()


def test_valid_fold_decides_the_epoch_but_not_the_scaler(tmp_path):
    features = toy_features()
    absurd = with_fold(features, 2, lambda frames: 1e3 * frames)
    one = train_fold(features, 3, tmp_path / "a", recipe=QUICK, quiet=True)
    two = train_fold(absurd, 3, tmp_path / "b", recipe=QUICK, quiet=True)
    assert one.valid_loss != two.valid_loss
    first, second = (load_classifier(tmp_path / x / "fold3/seed0/classifier.npz") for x in "ab")
    np.testing.assert_array_equal(first.preparation.mean, second.preparation.mean)
    train = np.concatenate(
        [x for x, f in zip(features.embeddings, features.folds, strict=True) if f in (1, 4)]
    )
    np.testing.assert_allclose(first.preparation.mean, train.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(first.preparation.scale, train.std(axis=0), rtol=1e-5)


def test_copies_train(tmp_path):
    """They are 50 away from their originals, which moves the scaler's mean."""
    features = toy_features(clips_per_class=5)
    means = []
    for name, given in (("a", features), ("b", with_copies(features)), ("c", None)):
        given = given or with_copies(features, folds=(2, 3))  # validation and test folds
        train_fold(given, 3, tmp_path / name, recipe=FOREST, quiet=True)
        found = load_classifier(tmp_path / name / "fold3/seed0/classifier.npz")
        means.append(found.preparation.mean)
    np.testing.assert_allclose(means[1] - means[0], 50 * 2 / 3, rtol=1e-3)
    np.testing.assert_array_equal(means[2], means[0])


def test_fold_result_and_files(tmp_path):
    recipe = Recipe(epochs=30, learning_rate=1e-3)
    result = train_fold(toy_features(), 1, tmp_path, seed=7, recipe=recipe, quiet=True)
    assert (result.test_fold, result.valid_fold, result.train_folds) == (1, 4, (2, 3))
    assert np.sum(result.confusion) == 6
    assert result.accuracy == 1.0
    assert result.parameters["model"] == "mlp"
    assert result.parameters["weight_decay"] == 1e-5
    folder = tmp_path / "fold1" / "seed7"
    assert files_below(folder) == [
        "classes.csv", "classifier.npz", "confusion.csv", "confusion.png", "history.csv",
        "result.json",
    ]  # fmt: skip
    record = json.loads((folder / "result.json").read_text())
    assert FoldResult.from_json(record["result"]) == result
    assert record["result"]["class_accuracy"] == {"low": 1.0, "high": 1.0}
    assert record["config"]["epochs"] == 30
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    best = rows[result.best_epoch - 1]
    assert float(best["val_loss"]) == result.valid_loss == min(float(r["val_loss"]) for r in rows)
    assert float(best["accuracy"]) == result.train_accuracy


def test_stats_have_one_row_a_clip_and_non_overlap_fewer(tmp_path):
    features = changed(toy_features(), extraction={"hop_size": 0.5})
    for mode, size in (("framewise", 4), ("stats", 28)):
        options = {"inputs": Inputs(mode, non_overlap=True), "recipe": FOREST, "quiet": True}
        train_fold(features, 1, tmp_path / mode, **options)
        found = load_classifier(tmp_path / mode / "fold1/seed0/classifier.npz")
        assert found.model.shape == (size, 2)
        assert found.preparation.step == 2
        assert len(found.preparation.rows(features.embeddings[0])) == (2 if size == 4 else 1)


def test_two_folds_are_enough(tmp_path):
    features = toy_features(folds=(1, 2), clips_per_class=7)
    results = cross_validate(features, tmp_path, recipe=FOREST, quiet=True)
    assert [result.valid_fold for result in results.results] == [None, None]
    assert [result.train_folds for result in results.results] == [(2,), (1,)]
    assert results.accuracy > 0.7


def test_confusion_has_true_classes_in_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(
        classifier.train, "predict_clips", lambda *a: np.array([0, 0, 1, 1, 1, 1], np.int64)
    )
    result = train_fold(toy_features(), 1, tmp_path, recipe=FOREST, quiet=True)
    assert result.confusion == ((2, 1), (0, 3))
    lines = (tmp_path / "fold1/seed0/confusion.csv").read_text().splitlines()
    assert lines == ["true class,predicted low,predicted high", "low,2,1", "high,0,3"]


def test_finished_fold_is_not_trained_again(tmp_path, monkeypatch):
    features = toy_features()
    first = train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True)
    monkeypatch.setattr(classifier.train, "fit_model", lambda *a, **k: pytest.fail("trained again"))
    assert train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True) == first
    for other, what in (
        ({"features": toy_features(seed=1)}, "features_sha256"),
        ({"recipe": Recipe(epochs=4, patience=3)}, r"\{'epochs': 3\}, this run has \{'epochs': 4"),
        ({"recipe": replace(QUICK, weight_decay=0)}, "'weight_decay': 1e-05"),
        ({"recipe": SVMRecipe()}, "'model': 'mlp'.* this run has .*'model': 'svm'"),
        ({"inputs": Inputs("stats")}, "'mode': 'framewise'"),
        ({"inputs": Inputs(min_max=True)}, "'min_max': False"),
        ({"parameter_search": Search()}, "'search': None"),
    ):
        arguments = {"features": features, "recipe": QUICK} | other
        with pytest.raises(L3PruneError, match=f"{what}.*choose another output folder"):
            train_fold(fold=2, output_dir=tmp_path, quiet=True, **arguments)
    (tmp_path / "fold2/seed0/result.json").write_text('{"config": []}')
    with pytest.raises(L3PruneError, match="choose another output folder"):
        train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True)
    (tmp_path / "fold2/seed0/result.json").write_text("[]")
    with pytest.raises(L3PruneError, match=r"result\.json is no result .*delete it"):
        train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True)


def test_killed_run_leaves_no_finished_fold(tmp_path, monkeypatch):
    features = toy_features()

    def killed(self, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True).test_fold == 2


# --------------------------------------------------------------------------------- search


def test_grids_are_the_originals():
    assert [recipe.C for recipe in candidates(SVMRecipe())] == [0.1, 1, 10, 100, 1000]
    assert [recipe.trees for recipe in candidates(FOREST)] == [100, 500, 1000]
    found = list(candidates(Recipe(epochs=7, batch_size=5)))
    assert [(each.learning_rate, each.weight_decay) for each in found] == [
        (1e-5, 1e-5), (1e-5, 1e-4), (1e-5, 1e-3), (1e-4, 1e-5), (1e-4, 1e-4), (1e-4, 1e-3),
        (1e-3, 1e-5), (1e-3, 1e-4), (1e-3, 1e-3),
    ]  # fmt: skip
    assert {(each.epochs, each.batch_size) for each in found} == {(7, 5)}


def read_search(folder):
    with (folder / "search/search.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_search_chooses_by_validation_accuracy_and_trains_again_with_all(tmp_path, small_grids):
    toy = toy_features()
    # Classes that overlap, so that training becomes too much of it after a few epochs.
    overlapping = zip(toy.embeddings, toy.targets, strict=True)
    features = changed(toy, embeddings=tuple(x - np.float32(1.5 * y) for x, y in overlapping))
    result = train_fold(
        features,
        3,
        tmp_path,
        recipe=Recipe(epochs=30, patience=5),
        parameter_search=Search(),
        quiet=True,
    )
    assert result.best_epoch < 30
    rows = read_search(tmp_path / "fold3/seed0")
    accuracies = [float(row["valid_accuracy"]) for row in rows]
    assert len(set(accuracies)) == 2
    (chosen,) = (row for row in rows if row["chosen"] == "True")
    assert float(chosen["valid_accuracy"]) == max(accuracies) == result.valid_accuracy
    assert result.parameters["learning_rate"] == float(chosen["learning_rate"]) == 1e-2
    # Trained again: on the validation fold too, for the best number of epochs, and no more.
    found = load_classifier(tmp_path / "fold3/seed0/classifier.npz")
    everything = np.concatenate(
        [x for x, f in zip(features.embeddings, features.folds, strict=True) if f != 3]
    )
    np.testing.assert_allclose(found.preparation.mean, everything.mean(axis=0), rtol=1e-5)
    assert result.epochs == result.best_epoch == int(chosen["best_epoch"])
    lines = (tmp_path / "fold3/seed0/history.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,accuracy"
    assert len(lines) == 1 + result.epochs
    assert float(lines[-1].split(",")[2]) == result.train_accuracy


def test_search_may_keep_the_chosen_model_as_it_is(tmp_path, small_grids):
    features = toy_features()
    search = Search(train_with_valid=False)
    result = train_fold(
        features, 3, tmp_path / "a", recipe=Recipe(epochs=6), parameter_search=search, quiet=True
    )
    values = {key: value for key, value in result.parameters.items() if key != "model"}
    alone = train_fold(features, 3, tmp_path / "b", recipe=Recipe(**values), quiet=True)
    kept, direct = ((tmp_path / x / "fold3/seed0/classifier.npz").read_bytes() for x in "ab")
    assert kept == direct
    assert result.valid_accuracy == alone.valid_accuracy
    assert result.best_epoch == alone.best_epoch
    # Models of candidates are kept no longer than they may be needed.
    assert files_below(tmp_path / "a/fold3/seed0/search") == ["0.json", "1.json", "search.csv"]


def test_search_without_valid_fold_validates_on_other_clips(tmp_path, small_grids, monkeypatch):
    seen = []
    fit = fit_model
    monkeypatch.setattr(
        classifier.search,
        "fit_model",
        lambda recipe, train, valid, *a, **k: (
            seen.append((len(train.values), len(valid.values)))
            or fit(recipe, train, valid, *a, **k)
        ),
    )
    features = toy_features(clips_per_class=5)
    search = Search(valid_fold=False, valid_ratio=0.2)
    result = train_fold(features, 1, tmp_path, recipe=FOREST, parameter_search=search, quiet=True)
    assert result.valid_fold is None
    assert result.train_folds == (2, 3, 4)
    # 15 clips a class, 3 of them validate, 3 frames each.
    assert seen == [(72, 18)] * 2


def test_of_equal_candidates_the_first_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setitem(classifier.search.GRIDS, "svm", {"C": (5.0, 6.0, 7.0)})
    features = with_fold(toy_features(), 1, lambda frames: 0 * frames)
    result = train_fold(
        features, 2, tmp_path, recipe=SVMRecipe(), parameter_search=Search(), quiet=True
    )
    rows = read_search(tmp_path / "fold2/seed0")
    assert len({row["valid_accuracy"] for row in rows}) == 1
    assert result.parameters["C"] == 5.0


@pytest.mark.parametrize("train_with_valid", [True, False])
def test_interrupted_search_continues(train_with_valid, tmp_path, monkeypatch, small_grids):
    features = toy_features()
    options = {
        "recipe": SVMRecipe(),
        "parameter_search": Search(train_with_valid=train_with_valid),
        "quiet": True,
    }
    expected = train_fold(features, 2, tmp_path / "whole", **options)
    runs = []

    def stops_at_third(recipe, *a, **k):
        runs.append(recipe.C)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return fit_model(recipe, *a, **k)

    monkeypatch.setattr(classifier.search, "fit_model", stops_at_third)
    with pytest.raises(KeyboardInterrupt):
        train_fold(features, 2, tmp_path / "r", **options)
    folder = tmp_path / "r/fold2/seed0"
    records = [path for path in files_below(folder / "search") if path.endswith("json")]
    assert records == ["0.json", "1.json"]
    assert not (folder / "result.json").exists()
    # Another configuration does not take them for its own.
    with pytest.raises(L3PruneError, match=r"'kernel': 'rbf'.*choose another output folder"):
        train_fold(features, 2, tmp_path / "r", **options | {"recipe": SVMRecipe(kernel="linear")})
    assert train_fold(features, 2, tmp_path / "r", **options) == expected
    assert runs == [1e-6, 1, 100, 100]
    whole = tmp_path / "whole/fold2/seed0/classifier.npz"
    assert (folder / "classifier.npz").read_bytes() == whole.read_bytes()
    (folder / "result.json").unlink()
    (folder / "search/0.json").write_text('{"config": {}}')
    with pytest.raises(L3PruneError, match="choose another output folder"):
        train_fold(features, 2, tmp_path / "r", **options)


# -------------------------------------------------------------------------------- results


def result_of(fold, seed, confusion, labels=("a", "b")):
    return FoldResult(fold, 9, (8,), seed, labels, confusion, {"model": "mlp"}, 0.2, 0.5)


def test_metrics_by_hand():
    confusion = ((3, 1, 0), (1, 1, 0), (0, 0, 0))
    result = FoldResult(1, 3, (2,), 0, ("a", "b", "c"), confusion, {"C": 1}, 0.2, 0.4, 0.1, 0.3)
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.class_accuracy == (0.75, 0.5, None)
    assert result.average_class_accuracy == 0.625
    assert FoldResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_class_metrics_by_hand():
    confusion = ((3, 1, 0, 0), (2, 1, 1, 0), (0, 0, 0, 0), (1, 0, 0, 0))
    rows = class_table(("a", "b", "c", "d"), confusion)
    found = [tuple(row[key] for key in ("clips", "accuracy", "precision", "f1")) for row in rows]
    assert found == [
        (4, 0.75, 0.5, 0.6),
        (4, 0.25, 0.5, pytest.approx(1 / 3)),
        (0, None, 0.0, 0.0),
        (1, 0.0, None, 0.0),
    ]
    none = class_table(("a", "b"), ((1, 0), (0, 0)))[1]
    assert (none["accuracy"], none["precision"], none["f1"]) == (None, None, None)


def test_cross_validation_sums_up_by_hand(tmp_path):
    results = CrossValidation(
        (
            result_of(1, 0, ((4, 0), (0, 4))),
            result_of(2, 0, ((2, 2), (0, 4))),
            result_of(3, 0, ((4, 0), (0, 0))),
        )
    )
    rows = {row["metric"]: row for row in results.summary()}
    assert rows["clip accuracy"]["mean"] == pytest.approx((1 + 0.75 + 1) / 3)
    # Deviations 1/12, -2/12, 1/12: sum of squares 6/144, over n - 1 = 2.
    assert rows["clip accuracy"]["std"] == pytest.approx((6 / 144 / 2) ** 0.5)
    assert rows["class a"]["mean"] == pytest.approx((1 + 0.5 + 1) / 3)
    # Fold 3 has no clip of b.
    assert (rows["class b"]["mean"], rows["class b"]["n"]) == (1.0, 2)
    results.save(tmp_path)
    assert files_below(tmp_path) == [
        "classes.csv", "confusion.csv", "confusion.png", "cv.csv", "cv.json", "folds.csv"
    ]  # fmt: skip
    record = json.loads((tmp_path / "cv.json").read_text())
    assert record["confusion"] == [[10, 2], [0, 8]]
    assert record["summary"] == results.summary()
    tables = {}
    for name in ("cv", "folds", "classes", "confusion"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    table = {row["metric"]: row for row in tables["cv"]}
    assert float(table["clip accuracy"]["mean"]) == rows["clip accuracy"]["mean"]
    assert list(table["class a"]) == ["metric", "mean", "std", "n"]
    assert [float(row["accuracy"]) for row in tables["folds"]] == [1, 0.75, 1]
    assert [row["model"] for row in tables["folds"]] == ["mlp"] * 3
    assert float(tables["classes"][1]["precision"]) == 0.8
    assert tables["confusion"][0] == {"true class": "a", "predicted a": "10", "predicted b": "2"}
    assert "91.7" in results.table()


def test_cross_validation_refuses_nothing_and_mixtures():
    with pytest.raises(ParameterError, match="no results"):
        CrossValidation(())
    with pytest.raises(ParameterError, match="different labels"):
        CrossValidation((result_of(1, 0, ((1,),), ("a",)), result_of(2, 0, ((1,),), ("b",))))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 2, 10, 50])
def test_confusion_figure_has_room_for_its_text(classes, tmp_path, monkeypatch):
    """No number is wider than its cell; names do not run into each other or out of the figure."""
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k)
    )
    labels = tuple(f"a_rather_long_name_{i}" for i in range(classes))
    save_confusion(tmp_path, labels, np.diag([100] * classes))
    (figure,) = drawn
    (axes,) = figure.axes
    figure.draw_without_rendering()
    cell = axes.transData.transform([[0, 0], [1, 1]])
    width = abs(cell[1, 0] - cell[0, 0])
    assert len(axes.texts) == classes
    assert max(text.get_window_extent().width for text in axes.texts[:3]) < 0.95 * width
    ticks = axes.get_yticklabels()
    assert all(tick.get_window_extent().height < width + 2 for tick in ticks)
    assert all(tick.get_window_extent().x0 >= 0 for tick in ticks)
    assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_cross_validate_and_continue(tmp_path, monkeypatch):
    features = toy_features(folds=(1, 3, 4))
    alone = train_fold(features, 3, tmp_path, seed=1, recipe=FOREST, quiet=True)
    results = cross_validate(features, tmp_path, seeds=(0, 1), recipe=FOREST, quiet=True)
    pairs = [(result.test_fold, result.seed) for result in results.results]
    assert pairs == [(1, 0), (1, 1), (3, 0), (3, 1), (4, 0), (4, 1)]
    assert results.results[3] == alone
    assert results.accuracy == pytest.approx(np.mean([r.accuracy for r in results.results]))
    assert (tmp_path / "cv.json").is_file()
    monkeypatch.setattr(classifier.train, "fit_model", lambda *a, **k: pytest.fail("trained again"))
    assert cross_validate(features, tmp_path, seeds=[0, 1], recipe=FOREST) == results
    # Refused before the folds that come before it are trained.
    with pytest.raises(L3PruneError, match="choose another output folder"):
        cross_validate(features, tmp_path, seeds=[2, 1], folds=[4, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": ()}, r"seeds=\(\) is empty"),
        ({"seeds": (1, 1)}, r"seeds=\(1, 1\) is empty or repeats one"),
        ({"seeds": (-1,)}, "seed=-1 is not an integer of 0 or more"),
        ({"seeds": (0.5,)}, "seed=0.5"),
        ({"folds": ()}, r"folds=\(\) is empty"),
        ({"folds": (1, 5)}, "fold 5 does not exist; folds: 1, 2, 3, 4"),
        ({"inputs": Inputs(non_overlap=True)}, "do not say their hop size"),
    ],
)
def test_bad_cross_validation_writes_nothing(arguments, message, tmp_path):
    with pytest.raises(ParameterError, match=message):
        cross_validate(toy_features(), tmp_path / "r", recipe=QUICK, quiet=True, **arguments)
    assert not (tmp_path / "r").exists()


def test_results_of_features_that_differ_by_fold_sum_up(tmp_path):
    """As when a network was distilled for each test fold."""
    results = CrossValidation(
        tuple(
            train_fold(
                toy_features(folds=(1, 2, 3), seed=fold, shift=fold),
                fold,
                tmp_path,
                recipe=FOREST,
                quiet=True,
            )
            for fold in (1, 2, 3)
        )
    )
    assert [result.test_fold for result in results.results] == [1, 2, 3]
    assert "3 folds x 1 seeds" in results.table()
