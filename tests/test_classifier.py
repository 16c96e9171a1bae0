"""The classifier package: features on disk, the perceptron, folds, and the commands."""

import csv
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import classifier.features
import classifier.train
from classifier.__main__ import main
from classifier.features import Features, extract_features, read_features
from classifier.mlp import MLP, Recipe, best_row, build_network, fit, load_mlp, standardize
from classifier.train import (
    CrossValidation,
    FoldResult,
    cross_validate,
    predict_clips,
    split_folds,
    train_fold,
)
from l3prune.datasets import Clip, Dataset
from l3prune.errors import L3PruneError, ParameterError

RATE = 100
QUICK = Recipe(epochs=3, patience=3)


# ------------------------------------------------------------------------------ stand-ins


class StandIn:
    """An embedding network whose frames are the mean, the peak and the length of their second."""

    def __init__(self, weight=1.0):
        self.name, self.layers, self.output_shape = "stand_in", [], (None, 3)
        self.weight = np.float32(weight)
        self.calls = []

    def get_weights(self):
        return [self.weight]

    def load_model(self, model):
        return model if isinstance(model, StandIn) else self

    def get_embedding(self, audio, sr, *, model, hop_size, center, batch_size):
        assert not center
        assert audio.ndim == 2
        mono, hop = audio.mean(axis=1), int(hop_size * sr)
        self.calls.append(mono)
        if not np.isfinite(mono).all():
            raise ParameterError("audio has NaN or infinite samples")
        mono = np.pad(mono, (0, -(len(mono) - sr) % hop))
        windows = np.lib.stride_tricks.sliding_window_view(mono, sr)[::hop]
        frames = [[window.mean(), window.max(), np.count_nonzero(window)] for window in windows]
        return model.weight * np.float32(frames), np.arange(len(frames)) * hop_size


@pytest.fixture
def network(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(classifier.features, "_embedding", lambda: stand_in)
    return stand_in


@pytest.fixture
def corpus(tmp_path):
    """Two clips in each of three folds, one of each class; 0.5, 1 and 1.25 s long."""
    clips = []
    for fold, seconds in ((1, 0.5), (2, 1.0), (3, 1.25)):
        for target in (0, 1):
            path = tmp_path / "audio" / f"{fold}-{target}.wav"
            path.parent.mkdir(exist_ok=True)
            level = np.full(int(seconds * RATE), 0.25 + 0.5 * target, np.float32)
            soundfile.write(path, level, RATE, subtype="FLOAT")
            clips.append(Clip(path, fold, target))
    return Dataset("toy", tuple(clips), ("low", "high"))


def esc50_tree(root):
    """The same as a folder that the commands can read."""
    (root / "meta").mkdir(parents=True)
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in (1, 2, 3):
        for target, label in ((0, "dog"), (1, "rain")):
            name = f"{fold}-1-A-{target}.wav"
            (root / "audio").mkdir(exist_ok=True)
            level = np.full(2 * RATE, 0.25 + 0.5 * target, np.float32)
            soundfile.write(root / "audio" / name, level, RATE, subtype="FLOAT")
            rows.append(f"{name},{fold},{target},{label},True,1,A")
    (root / "meta/esc50.csv").write_text("\n".join(rows))
    return root


def toy_features(folds=(1, 2, 3, 4), clips_per_class=3, seed=0, shift=0.0):
    """Two classes whose frames differ in their mean; three frames a clip, 4-d."""
    rng = np.random.default_rng(seed)
    names, numbers, targets, embeddings = [], [], [], []
    for fold in folds:
        for target in (0, 1):
            for i in range(clips_per_class):
                frames = rng.normal(size=(3, 4)) + 2 * target
                names.append(f"{fold}-{i}-{target}")
                numbers.append(fold)
                targets.append(target)
                embeddings.append((frames + shift).astype(np.float32))
    return Features("toy", ("low", "high"), tuple(names), numbers, targets, tuple(embeddings))


def write_features(folder, features):
    """What extract_features would have written."""
    clips = {}
    for name, fold, target, frames in zip(
        features.names, features.folds, features.targets, features.embeddings, strict=True
    ):
        clips.setdefault(str(fold), []).append(name)
        (folder / f"fold{fold}").mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / f"fold{fold}" / f"{name}.npz", X=frames, y=target)
    description = {"dataset": features.dataset, "labels": features.labels, "clips": clips}
    (folder / "features.json").write_text(json.dumps(description))
    return folder


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def softmax_of(logit_kernel):
    """A classifier of one linear layer on 1-d frames."""
    kernel = np.float32([logit_kernel])
    return MLP(
        np.zeros(1, np.float32), np.ones(1, np.float32), (kernel,), (np.zeros(2, np.float32),)
    )


# ------------------------------------------------------------------------------- features


def test_features_of_known_signals(network, corpus, tmp_path):
    assert extract_features(corpus, network, tmp_path / "f", hop_size=0.1, quiet=True) == 6
    features = read_features(tmp_path / "f")
    assert features.dataset == "toy"
    assert features.labels == ("low", "high")
    assert features.names == ("1-0", "1-1", "2-0", "2-1", "3-0", "3-1")
    np.testing.assert_array_equal(features.folds, [1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(features.targets, [0, 1, 0, 1, 0, 1])
    # 0.5 s and 1 s give one frame. 1.25 s give 1 + ceil(0.25 / 0.1) = 4, the last with 95 samples.
    assert [len(frames) for frames in features.embeddings] == [1, 1, 1, 1, 4, 4]
    np.testing.assert_allclose(features.embeddings[0], [[0.125, 0.25, 50]])
    np.testing.assert_array_equal(features.embeddings[4][:, 2], [100, 100, 100, 95])
    assert all(frames.dtype == np.float32 for frames in features.embeddings)
    assert features.extraction["hop_size"] == 0.1
    assert "clips" not in features.extraction


@pytest.mark.parametrize(("samples", "before", "after"), [(50, 25, 25), (49, 25, 26), (99, 0, 1)])
def test_short_clip_is_padded_on_both_sides(samples, before, after, network, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.ones((samples, 2), np.float32), RATE, subtype="FLOAT")
    dataset = Dataset("toy", (Clip(path, 1, 0),), ("a",))
    extract_features(dataset, network, tmp_path / "f", quiet=True)
    expected = [0.0] * before + [1.0] * samples + [0.0] * after
    np.testing.assert_array_equal(network.calls[0], expected)


def test_files_are_as_documented_and_without_pickles(network, corpus, tmp_path):
    extract_features(corpus, network, tmp_path / "f", quiet=True)
    path = tmp_path / "f" / "fold3" / "3-1.npz"
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["X", "y"]
        assert arrays["y"].shape == ()
        assert arrays["y"] == 1
    with zipfile.ZipFile(path) as archive:
        assert all(item.compress_type == zipfile.ZIP_DEFLATED for item in archive.infolist())
    assert files_below(tmp_path / "f") == [
        "features.json",
        "fold1", "fold1/1-0.npz", "fold1/1-1.npz",
        "fold2", "fold2/2-0.npz", "fold2/2-1.npz",
        "fold3", "fold3/3-0.npz", "fold3/3-1.npz",
    ]  # fmt: skip


def test_interrupted_extraction_continues(network, corpus, tmp_path):
    folder = tmp_path / "f"
    assert extract_features(corpus, network, folder, folds=[1], quiet=True) == 2
    assert read_features(folder).fold_numbers == (1,)
    assert extract_features(corpus, network, folder, folds=[3], quiet=True) == 2
    (folder / "fold3/3-0.npz").write_bytes(b"half")
    np.savez(folder / "fold1/1-0.npz", X=np.zeros((1, 3), np.float32), y=1)  # a wrong target
    kept = (folder / "fold3/3-1.npz").stat().st_mtime_ns
    assert extract_features(corpus, network, folder, quiet=True) == 4
    assert (folder / "fold3/3-1.npz").stat().st_mtime_ns == kept
    assert read_features(folder).fold_numbers == (1, 2, 3)
    assert extract_features(corpus, network, folder, quiet=True) == 0


@pytest.mark.parametrize("change", ["hop_size", "model_sha256", "dataset", "labels"])
def test_other_features_in_the_folder_are_refused(change, network, corpus, tmp_path):
    extract_features(corpus, network, tmp_path / "f", quiet=True)
    before = (tmp_path / "f/features.json").read_bytes()
    model, hop_size = network, 0.1
    if change == "hop_size":
        hop_size = 0.2
    elif change == "model_sha256":
        model = StandIn(weight=2)
    elif change == "dataset":
        corpus = Dataset("other", corpus.clips, corpus.labels)
    else:
        corpus = Dataset("toy", corpus.clips, ("low", "loud"))
    with pytest.raises(L3PruneError, match=f"{change}.*choose another output folder"):
        extract_features(corpus, model, tmp_path / "f", hop_size=hop_size, quiet=True)
    assert (tmp_path / "f/features.json").read_bytes() == before


def test_unreadable_clips_are_listed_after_the_others_are_written(network, corpus, tmp_path):
    (tmp_path / "audio/1-0.wav").write_bytes(b"no audio")
    soundfile.write(
        tmp_path / "audio/3-1.wav", np.full(200, np.nan, np.float32), RATE, subtype="FLOAT"
    )
    with pytest.raises(L3PruneError, match=r"^2 of 6 clips .*1-0\.wav.*3-1\.wav: audio has NaN"):
        extract_features(corpus, network, tmp_path / "f", quiet=True)
    written = [path for path in files_below(tmp_path / "f") if path.endswith("npz")]
    assert written == ["fold1/1-1.npz", "fold2/2-0.npz", "fold2/2-1.npz", "fold3/3-0.npz"]
    with pytest.raises(L3PruneError, match=r"fold1 lacks 1 of 2 clips, the first is 1-0"):
        read_features(tmp_path / "f")
    # The remedy that the message names: remove them from the corpus.
    repaired = Dataset("toy", corpus.clips[1:-1], corpus.labels)
    assert extract_features(repaired, network, tmp_path / "f", quiet=True) == 0
    assert len(read_features(tmp_path / "f").names) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hop_size": float("nan")}, "hop_size=nan is not in"),
        ({"hop_size": 0}, "hop_size=0 is not in"),
        ({"hop_size": 1.5}, "hop_size=1.5 is not in"),
        ({"batch_size": 0}, "batch_size=0 is not a positive integer"),
        ({"batch_size": 2.5}, "batch_size=2.5 is not a positive integer"),
        ({"folds": [2, 7]}, "fold 7 does not exist in toy; folds: 1, 2, 3"),
    ],
)
def test_bad_extraction_arguments_write_nothing(arguments, message, network, corpus, tmp_path):
    with pytest.raises(ParameterError, match=message):
        extract_features(corpus, network, tmp_path / "f", quiet=True, **arguments)
    assert not (tmp_path / "f").exists()


def test_two_clips_of_one_name_are_refused(network, corpus, tmp_path):
    twin = Clip(tmp_path / "elsewhere" / "1-0.ogg", 1, 0)
    twins = Dataset("toy", (*corpus.clips, twin), corpus.labels)
    with pytest.raises(L3PruneError, match=r"two clips of toy would both be fold1/1-0\.npz"):
        extract_features(twins, network, tmp_path / "f", quiet=True)
    assert not (tmp_path / "f").exists()


def damage(path, **arrays):
    np.savez(path, **arrays)


FRAMES = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_bytes(b"PK\x03\x04 half"), "is damaged"),
        (lambda p: p.write_bytes(b""), "is damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), "is damaged"),
        (lambda p: damage(p, X=FRAMES), "is damaged"),
        (lambda p: damage(p, X=FRAMES, y=[0, 1]), "is damaged .*not one integer"),
        (lambda p: damage(p, X=FRAMES, y=0.5), "is damaged .*not one integer"),
        (lambda p: damage(p, X=np.array([{}], object), y=0), "is damaged .*allow_pickle=False"),
        (lambda p: damage(p, X=FRAMES[0], y=0), r"shape \(4,\), float32; expected \(frames, D\)"),
        (lambda p: damage(p, X=FRAMES[:0], y=0), r"shape \(0, 4\), float32"),
        (lambda p: damage(p, X=FRAMES.astype(int), y=0), r"shape \(3, 4\), int64"),
        (lambda p: damage(p, X=FRAMES[:, :3], y=0), "has 3-d embeddings, other clips have 4-d"),
        (lambda p: damage(p, X=FRAMES / np.float32(np.inf) * np.inf, y=0), "are not finite"),
        (lambda p: damage(p, X=FRAMES, y=2), "has y=2, but .* has 2 labels"),
        (lambda p: damage(p, X=FRAMES, y=-1), "has y=-1"),
        (lambda p: p.unlink(), "lacks 1 of 6 clips, the first is 2-1-0"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_damaged_feature_file_is_named(spoil, message, tmp_path):
    write_features(tmp_path, toy_features())
    spoil(tmp_path / "fold2" / "2-1-0.npz")
    with pytest.raises(L3PruneError, match=message) as caught:
        read_features(tmp_path)
    assert "fold2" in str(caught.value)


def test_folder_that_is_not_of_features(tmp_path):
    with pytest.raises(L3PruneError, match=r"features\.json is missing; make it with"):
        read_features(tmp_path)
    record = tmp_path / "features.json"
    for text in ("[]", "{}", '{"labels": ["a"], "clips": {"one": []}, "dataset": "toy"}'):
        record.write_text(text)
        with pytest.raises(L3PruneError, match="is not a features description"):
            read_features(tmp_path)
    record.write_text("{")
    with pytest.raises(L3PruneError, match="is not JSON"):
        read_features(tmp_path)
    record.write_text('{"labels": ["a"], "clips": {"1": ["x"]}, "dataset": "toy"}')
    with pytest.raises(L3PruneError, match="has no clips"):
        read_features(tmp_path)


def test_features_value_checks_itself():
    frames = (FRAMES, FRAMES)
    make = lambda *a: Features("toy", ("a",), *a)  # noqa: E731 (one line, used here only)
    with pytest.raises(ParameterError, match="no clips"):
        make((), [], [], ())
    with pytest.raises(ParameterError, match="2 names, but 1 folds"):
        make(("x", "y"), [1], [0, 0], frames)
    with pytest.raises(ParameterError, match="y has 3-d embeddings"):
        make(("x", "y"), [1, 2], [0, 0], (FRAMES, FRAMES[:, :3]))
    with pytest.raises(ParameterError, match="y has target 1, but labels are 0 … 0"):
        make(("x", "y"), [1, 2], [0, 1], frames)


def test_fingerprint_sees_every_value():
    prints = {toy_features().fingerprint, toy_features(seed=1).fingerprint}
    prints.add(toy_features(folds=(1, 2, 3, 5)).fingerprint)
    assert len(prints) == 3
    assert toy_features().fingerprint == toy_features().fingerprint


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
    mean, scale = rng.normal(size=(2, 6)).astype(np.float32)
    mlp = MLP(mean, scale, tuple(weights[::2]), tuple(weights[1::2]))
    frames = rng.normal(size=(50, 6)).astype(np.float32)
    expected = network(standardize(frames, mean, scale)).numpy()
    np.testing.assert_allclose(mlp.predict(frames), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ParameterError, match=r"frames of shape \(50, 5\) given; .* \(n, 6\)"):
        mlp.predict(frames[:, :5])


def test_predict_survives_large_logits():
    probabilities = softmax_of([0, 1000]).predict(np.float32([[1], [-1]]))
    np.testing.assert_array_equal(probabilities, [[0, 1], [1, 0]])


def test_training_is_the_same_bit_for_bit_and_save_is_exact(tmp_path):
    features = toy_features()
    train, valid = features.frames_in([1, 2]), features.frames_in([3])
    first, history = fit(train, valid, 2, seed=5, recipe=QUICK)
    np.random.seed(1)  # noqa: NPY002 (shows that global random state is not read)
    again, history_again = fit(train, valid, 2, seed=5, recipe=QUICK)
    other, _ = fit(train, valid, 2, seed=6, recipe=QUICK)
    assert history == history_again
    first.save(tmp_path / "mlp.npz")
    loaded = load_mlp(tmp_path / "mlp.npz")
    for same in (again, loaded):
        np.testing.assert_array_equal(same.mean, first.mean)
        np.testing.assert_array_equal(same.scale, first.scale)
        for name in ("kernels", "biases"):
            for a, b in zip(getattr(same, name), getattr(first, name), strict=True):
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(same.predict(valid[0]), first.predict(valid[0]))
    assert not np.array_equal(other.kernels[0], first.kernels[0])


def test_first_epoch_is_what_keras_fit_computes():
    """One full batch: no order of frames, so plain Keras must give the same weights."""
    import tf_keras as keras

    features = toy_features()
    train, valid = features.frames_in([1, 2]), features.frames_in([3])
    recipe = Recipe(epochs=2, batch_size=1000, learning_rate=1e-3)
    mlp, history = fit(train, valid, 2, seed=5, recipe=recipe)
    network = build_network(4, 2, seed=5)
    network.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    x, x_valid = (standardize(part[0], mlp.mean, mlp.scale) for part in (train, valid))
    reference = network.fit(
        x, train[1], 1000, epochs=2, validation_data=(x_valid, valid[1]), verbose=0
    ).history
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose([row[name] for row in history], reference[name], rtol=1e-5)
    for ours, theirs in zip(mlp.kernels, network.get_weights()[::2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_weights_of_the_best_epoch_are_kept():
    """The validation targets contradict the training ones, so each epoch makes it worse."""
    frames, targets = toy_features().frames_in([1, 2, 3])
    recipe = Recipe(epochs=30, learning_rate=1e-2, patience=4)
    mlp, history = fit((frames, targets), (frames, 1 - targets), 2, recipe=recipe)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert best_row(history)["epoch"] == 1
    probabilities = mlp.predict(frames)
    losses = -np.log(probabilities[np.arange(len(frames)), 1 - targets])
    decay = 1e-5 * sum(np.sum(kernel**2) for kernel in mlp.kernels)
    assert losses.mean() + decay == pytest.approx(history[0]["val_loss"], rel=1e-4)
    assert history[-1]["val_loss"] > 1.5 * history[0]["val_loss"]


def test_best_epoch_in_the_middle():
    rows = [{"epoch": i, "val_loss": loss} for i, loss in enumerate([3, 1, 2, 1], start=1)]
    assert best_row(rows)["epoch"] == 2


def test_constant_dimension_is_harmless():
    frames, targets = toy_features().frames_in([1, 2])
    frames = np.hstack([frames, np.full((len(frames), 1), 7, np.float32)])
    mlp, _ = fit((frames, targets), (frames, targets), 2, recipe=QUICK)
    assert mlp.scale[-1] == 1
    assert np.isfinite(mlp.predict(frames)).all()


def test_exploding_loss_is_an_error():
    frames, targets = toy_features().frames_in([1])
    recipe = Recipe(epochs=5, learning_rate=1e30)
    with pytest.raises(L3PruneError, match=r"not finite in epoch \d; lower learning_rate=1e\+30"):
        fit((frames, targets), (frames, targets), 2, recipe=recipe)


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
    ],
)
def test_bad_recipe(arguments, message):
    with pytest.raises(ParameterError, match=message):
        Recipe(**arguments)


def test_bad_classifier_file(tmp_path):
    path = tmp_path / "mlp.npz"
    with pytest.raises(L3PruneError, match="is missing; train it first"):
        load_mlp(path)
    path.write_bytes(b"no zip")
    with pytest.raises(L3PruneError, match="is no classifier"):
        load_mlp(path)
    np.savez(path, mean=np.zeros(2), scale=np.ones(2), kernel_0=np.zeros((3, 1)), bias_0=[0])
    with pytest.raises(L3PruneError, match=r"kernels \[\(3, 1\)\] do not fit its biases \[1\]"):
        load_mlp(path)
    np.savez(path, X=FRAMES, y=0)
    with pytest.raises(L3PruneError, match="is no classifier"):
        load_mlp(path)


# ---------------------------------------------------------------------------------- folds


def test_clip_is_the_mean_of_its_frames_not_their_vote():
    mlp = softmax_of([0, 1])
    # Probabilities of class 1: 0.27, 0.27, 1.00. Two of three frames vote 0; the mean is 0.51.
    clip = np.float32([[-1], [-1], [9]])
    np.testing.assert_allclose(mlp.predict(clip)[:, 1], [0.2689, 0.2689, 0.9999], atol=1e-4)
    # Their mean in the last clip is 0.5 + 0.01 / 3.
    last = np.log(np.float32([[0.49 / 0.51], [0.49 / 0.51], [0.53 / 0.47]]))
    np.testing.assert_array_equal(predict_clips(mlp, [clip, clip[:2], last]), [1, 0, 1])


@pytest.mark.parametrize(
    ("test_fold", "valid_fold", "train_folds"),
    [(1, 7, (2, 4)), (2, 1, (4, 7)), (4, 2, (1, 7)), (7, 4, (1, 2))],
)
def test_valid_fold_is_the_one_before(test_fold, valid_fold, train_folds):
    assert split_folds((1, 2, 4, 7), test_fold) == (valid_fold, train_folds)


def test_too_few_folds_or_an_unknown_one():
    with pytest.raises(ParameterError, match=r"only fold 1, 2 has features; .* need 3 folds"):
        split_folds((1, 2), 1)
    with pytest.raises(ParameterError, match=r"fold 3 does not exist; folds: 1, 2, 4"):
        split_folds((1, 2, 4), 3)


def with_fold(features, fold, change):
    """The same features, those of one fold changed."""
    embeddings = tuple(
        change(frames) if number == fold else frames
        for number, frames in zip(features.folds, features.embeddings, strict=True)
    )
    return Features(
        features.dataset,
        features.labels,
        features.names,
        features.folds,
        features.targets,
        embeddings,
    )


def test_test_fold_has_no_say_in_scaler_weights_or_epoch(tmp_path):
    features = toy_features()
    absurd = with_fold(features, 3, lambda frames: 1e6 * frames - 1e5)
    one = train_fold(features, 3, tmp_path / "a", recipe=QUICK, quiet=True)
    two = train_fold(absurd, 3, tmp_path / "b", recipe=QUICK, quiet=True)
    mlp, other = (load_mlp(tmp_path / name / "fold3/seed0/mlp.npz") for name in "ab")
    for a, b in zip((mlp.mean, *mlp.kernels), (other.mean, *other.kernels), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one.best_epoch, one.valid_loss) == (two.best_epoch, two.valid_loss)
    train_frames, _ = features.frames_in([1, 4])
    np.testing.assert_allclose(mlp.mean, train_frames.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(mlp.scale, train_frames.std(axis=0), rtol=1e-5)


def test_valid_fold_decides_the_epoch_but_not_the_scaler(tmp_path):
    features = toy_features()
    absurd = with_fold(features, 2, lambda frames: 1e3 * frames)
    one = train_fold(features, 3, tmp_path / "a", recipe=QUICK, quiet=True)
    two = train_fold(absurd, 3, tmp_path / "b", recipe=QUICK, quiet=True)
    assert one.valid_loss != two.valid_loss
    mlp, other = (load_mlp(tmp_path / name / "fold3/seed0/mlp.npz") for name in "ab")
    np.testing.assert_array_equal(mlp.mean, other.mean)


def test_fold_result_and_files(tmp_path):
    recipe = Recipe(epochs=30, learning_rate=1e-3)
    result = train_fold(toy_features(), 1, tmp_path, seed=7, recipe=recipe, quiet=True)
    assert (result.test_fold, result.valid_fold, result.train_folds) == (1, 4, (2, 3))
    assert np.sum(result.confusion) == 6
    assert result.accuracy == 1.0
    folder = tmp_path / "fold1" / "seed7"
    assert files_below(folder) == ["history.csv", "mlp.npz", "result.json"]
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


def test_confusion_has_true_classes_in_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(
        classifier.train, "predict_clips", lambda *a: np.array([0, 0, 1, 1, 1, 1], np.int64)
    )
    result = train_fold(toy_features(), 1, tmp_path, recipe=QUICK, quiet=True)
    assert result.confusion == ((2, 1), (0, 3))


def test_metrics_by_hand():
    confusion = ((3, 1, 0), (1, 1, 0), (0, 0, 0))
    result = FoldResult(1, 3, (2,), 0, ("a", "b", "c"), confusion, 1, 1, 0.1, 0.2, 0.3, 0.4)
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.class_accuracy == (0.75, 0.5, None)
    assert result.average_class_accuracy == 0.625
    assert FoldResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_finished_fold_is_not_trained_again(tmp_path, monkeypatch):
    features = toy_features()
    first = train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True)
    monkeypatch.setattr(classifier.train, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True) == first
    for other, what in (
        ({"features": toy_features(seed=1)}, "features_sha256"),
        ({"recipe": Recipe(epochs=4, patience=3)}, r"\{'epochs': 3\}, this run has \{'epochs': 4"),
    ):
        arguments = {"features": features, "recipe": QUICK} | other
        with pytest.raises(L3PruneError, match=f"{what}.*choose another output folder"):
            train_fold(fold=2, output_dir=tmp_path, quiet=True, **arguments)
    (tmp_path / "fold2/seed0/result.json").write_text('{"config": {}}')
    with pytest.raises(L3PruneError, match=r"result\.json is no result .*delete it"):
        train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True)


def test_killed_run_leaves_no_finished_fold(tmp_path, monkeypatch):
    features = toy_features()

    def killed(self, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MLP, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert train_fold(features, 2, tmp_path, recipe=QUICK, quiet=True).test_fold == 2


def result_of(fold, seed, confusion, labels=("a", "b")):
    return FoldResult(fold, 9, (8,), seed, labels, confusion, 1, 1, 0.1, 0.2, 0.3, 0.5)


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
    record = json.loads((tmp_path / "cv.json").read_text())
    assert record["confusion"] == [[10, 2], [0, 8]]
    assert record["summary"] == results.summary()
    with (tmp_path / "cv.csv").open(newline="") as file:
        table = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(table["clip accuracy"]["mean"]) == rows["clip accuracy"]["mean"]
    assert list(table["class a"]) == ["metric", "mean", "std", "n"]
    assert "91.7" in results.table()


def test_cross_validation_refuses_nothing_and_mixtures():
    with pytest.raises(ParameterError, match="no results"):
        CrossValidation(())
    with pytest.raises(ParameterError, match="different labels"):
        CrossValidation((result_of(1, 0, ((1,),), ("a",)), result_of(2, 0, ((1,),), ("b",))))


def test_cross_validate_and_continue(tmp_path, monkeypatch):
    features = toy_features(folds=(1, 3, 4))
    alone = train_fold(features, 3, tmp_path, seed=1, recipe=QUICK, quiet=True)
    results = cross_validate(features, tmp_path, seeds=(0, 1), recipe=QUICK, quiet=True)
    pairs = [(result.test_fold, result.seed) for result in results.results]
    assert pairs == [(1, 0), (1, 1), (3, 0), (3, 1), (4, 0), (4, 1)]
    assert results.results[3] == alone
    assert results.accuracy == pytest.approx(np.mean([r.accuracy for r in results.results]))
    assert (tmp_path / "cv.json").is_file()
    monkeypatch.setattr(classifier.train, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert cross_validate(features, tmp_path, seeds=[0, 1], recipe=QUICK) == results
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
                recipe=QUICK,
                quiet=True,
            )
            for fold in (1, 2, 3)
        )
    )
    assert [result.test_fold for result in results.results] == [1, 2, 3]
    assert "3 folds x 1 seeds" in results.table()


# ------------------------------------------------------------------------------- commands


def test_commands_from_recordings_to_table(network, tmp_path, capsys):
    corpus = esc50_tree(tmp_path / "corpus")
    features, results = tmp_path / "f", tmp_path / "r"
    extract = ["features", "esc50", str(corpus), str(features), "--model", "net.h5", "--quiet"]
    assert main([*extract, "--fold", "1"]) == 0
    assert main(extract) == 0
    assert "4 clips embedded" in capsys.readouterr().out
    quick = [str(features), str(results), "--epochs", "2", "--quiet"]
    assert main(["train", *quick, "--fold", "3", "--seed", "1"]) == 0
    assert "fold 3, seed 1: clip accuracy" in capsys.readouterr().out
    assert main(["cv", *quick, "--seeds", "0", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 folds x 2 seeds")
    assert "class dog" in out
    record = json.loads((results / "fold3/seed1/result.json").read_text())
    assert record["extraction"]["model"] == "net.h5"


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_real_embedding_of_short_and_long_clips(rate, tmp_path):
    from l3prune.embedding import get_embedding
    from l3prune.networks import create_network

    network = create_network("sea64")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * rate).astype(np.float32)
    clips = []
    for seconds in (0.4, 1.0, 1.7):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, noise[: int(seconds * rate)], rate, subtype="FLOAT")
        clips.append(Clip(path, 1, 0))
    dataset = Dataset("toy", tuple(clips), ("noise",))
    extract_features(dataset, network, tmp_path / "f", hop_size=0.5, quiet=True)
    embeddings = read_features(tmp_path / "f").embeddings
    # 1.7 s: frames at 0, 0.5 and, padded, 1.0 s.
    assert [frames.shape for frames in embeddings] == [(1, 64), (1, 64), (3, 64)]
    direct, _ = get_embedding(noise[:rate], rate, model=network, center=False)
    np.testing.assert_array_equal(embeddings[1], direct)


@pytest.mark.parametrize("content", [None, b"no network"])
def test_model_that_cannot_be_loaded_writes_nothing(content, tmp_path, capsys):
    corpus, model = esc50_tree(tmp_path / "corpus"), tmp_path / "net.h5"
    if content:
        model.write_bytes(content)
    arguments = ["features", "esc50", corpus, tmp_path / "f", "--model", model]
    assert main([str(argument) for argument in arguments]) == 2
    assert "net.h5" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


CORPUS, FEATURES, OUT = "CORPUS", "FEATURES", "OUT"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["features", "esc51", CORPUS, OUT, "--model", "m"], "dataset 'esc51' is unknown; known:"),
        (["features", "esc50", "/nowhere", OUT, "--model", "m"], "no such folder: /nowhere"),
        (
            ["features", "esc50", CORPUS, OUT, "--model", "m", "--fold", "5"],
            "fold 5 does not exist in esc50; folds: 1, 2, 3",
        ),
        (
            ["features", "esc50", CORPUS, OUT, "--model", "m", "--hop-size", "nan"],
            "hop_size=nan",
        ),
        (["train", FEATURES, OUT, "--fold", "9"], "fold 9 does not exist; folds: 1, 2, 3, 4"),
        (["train", FEATURES, OUT, "--fold", "1", "--epochs", "-1"], "epochs=-1 is not"),
        (["train", FEATURES, OUT, "--fold", "1", "--seed", "-1"], "seed=-1 is not"),
        (["train", FEATURES, OUT, "--fold", "1", "--learning-rate", "nan"], "learning_rate=nan"),
        (["train", "/nowhere", OUT, "--fold", "1"], "/nowhere/features.json is missing"),
        (["cv", FEATURES, OUT, "--batch-size", "0"], "batch_size=0 is not"),
        (["cv", FEATURES, OUT, "--patience", "0"], "patience=0 is not"),
        (["cv", FEATURES, OUT, "--seeds", "0", "0"], "seeds=(0, 0) is empty or repeats one"),
    ],
)
def test_bad_commands_exit_with_2_and_write_nothing(arguments, message, network, tmp_path, capsys):
    folders = {
        CORPUS: esc50_tree(tmp_path / "corpus"),
        FEATURES: write_features(tmp_path / "features", toy_features()),
        OUT: tmp_path / "out",
    }
    assert main([str(folders.get(argument, argument)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["train", "a", "b"], ["cv", "a", "b", "--epochs", "x"]])
def test_bad_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_damaged_features_stop_the_command(tmp_path, capsys):
    folder = write_features(tmp_path / "f", toy_features())
    (folder / "fold1/1-0-0.npz").write_bytes(b"half")
    assert main(["cv", str(folder), str(tmp_path / "r")]) == 2
    assert "1-0-0.npz is damaged" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", [[], ["features"], ["train"], ["cv"]])
def test_help_loads_no_heavy_package(command):
    code = (
        "import sys\n"
        "from classifier.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as exit:\n    assert exit.code == 0\n"
        "heavy = {'tensorflow', 'tf_keras', 'sklearn', 'pandas', 'librosa', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: python -m classifier" in done.stdout


def test_importing_leaves_the_environment_alone():
    code = (
        "import os, classifier.features, classifier.train, classifier.__main__\n"
        "assert 'TF_CPP_MIN_LOG_LEVEL' not in os.environ\n"
    )
    environment = {"PATH": "", "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_nothing_imports_pickle_or_the_classifier():
    root = Path(__file__).parent.parent
    for path in (root / "classifier").glob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text
        assert "joblib" not in text
        assert "allow_pickle=True" not in text
    for path in (root / "l3prune").rglob("*.py"):
        assert "from classifier" not in path.read_text()
