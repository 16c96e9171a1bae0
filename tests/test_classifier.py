"""The classifier package: features on disk, the commands, predictions on audio."""

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
from classifier.__main__ import main
from classifier.features import extract_features, read_features
from classifier.inputs import Features
from classifier.mlp import Recipe
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

    def get_embedding(self, audio, sr, *, model, hop_size, center, batch_size, engine):
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


def test_augmented_copies_are_extracted_and_named(network, corpus, tmp_path):
    copy = tmp_path / "audio" / "1-0_pitch.wav"
    soundfile.write(copy, np.full(RATE, 0.5, np.float32), RATE, subtype="FLOAT")
    clips = (*corpus.clips, Clip(copy, 1, 0, original="1-0"))
    with_copy = Dataset("toy", clips, corpus.labels)
    # Added to features that were extracted without them.
    extract_features(corpus, network, tmp_path / "f", quiet=True)
    assert read_features(tmp_path / "f").originals == {}
    assert extract_features(with_copy, network, tmp_path / "f", quiet=True) == 1
    features = read_features(tmp_path / "f")
    assert features.originals == {"1-0_pitch": "1-0"}
    assert [features.names[i] for i in np.flatnonzero(features.augmented)] == ["1-0_pitch"]
    assert "originals" not in features.extraction
    record = tmp_path / "f/features.json"
    text = record.read_text()
    record.write_text(text.replace('"1-0_pitch": "1-0"', '"1-0_pitch": "2-0"'))
    with pytest.raises(ParameterError, match="1-0_pitch is a copy of 2-0, which is no official"):
        read_features(tmp_path / "f")
    record.write_text(text.replace('{\n    "1-0_pitch": "1-0"\n  }', "[]"))
    with pytest.raises(L3PruneError, match="is not a features description"):
        read_features(tmp_path / "f")


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
    with pytest.raises(ParameterError, match="repeat one; give each class its own"):
        Features("toy", ("a", "a"), ("x", "y"), [1, 2], [0, 1], frames)


def test_fingerprint_sees_every_value():
    prints = {toy_features().fingerprint, toy_features(seed=1).fingerprint}
    prints.add(toy_features(folds=(1, 2, 3, 5)).fingerprint)
    assert len(prints) == 3
    assert toy_features().fingerprint == toy_features().fingerprint


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
    assert main(["cv", *quick, "--fold", "2", "3", "--seeds", "0", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 folds x 2 seeds")
    assert "class dog" in out
    record = json.loads((results / "fold3/seed1/result.json").read_text())
    assert record["extraction"]["model"] == "net.h5"
    assert (results / "confusion.png").is_file()


def test_commands_train_every_kind_with_search(network, tmp_path, capsys):
    corpus = esc50_tree(tmp_path / "corpus")
    features = str(tmp_path / "f")
    assert main(["features", "esc50", str(corpus), features, "--model", "m", "--quiet"]) == 0
    capsys.readouterr()
    out = str(tmp_path / "rf")
    forest = ["--model-type", "rf", "--trees", "3", "--features-mode", "stats", "--min-max"]
    assert main(["cv", features, out, *forest, "--non-overlap", "--quiet"]) == 0
    record = json.loads((tmp_path / "rf/fold1/seed0/result.json").read_text())
    assert record["config"]["model"] == "rf"
    assert {key: record["config"][key] for key in ("mode", "non_overlap", "min_max")} == {
        "mode": "stats", "non_overlap": True, "min_max": True
    }  # fmt: skip
    search = ["--parameter-search", "--parameter-search-no-valid-fold", "--quiet"]
    search += ["--parameter-search-valid-ratio", "0.4", "--parameter-search-train-without-valid"]
    out = str(tmp_path / "svm")
    svm = ["--model-type", "svm", "--kernel", "linear", "--tol", "1e-5"]
    assert main(["train", features, out, *svm, *search, "--fold", "2"]) == 2
    # Two clips a class are in the training folds, and one of them validates.
    assert "has 1 training clip" in capsys.readouterr().err
    assert not (tmp_path / "svm/fold2/seed0/result.json").exists()
    assert main(["train", features, out, *svm, "--parameter-search", "--fold", "2"]) == 2
    forest = ["--model-type", "rf", *search]
    assert main(["train", features, str(tmp_path / "s"), *forest, "--fold", "2"]) == 0
    assert "chosen: model rf, trees 100" in capsys.readouterr().out
    record = json.loads((tmp_path / "s/fold2/seed0/result.json").read_text())
    assert record["config"]["search"] == {
        "valid_fold": False, "valid_ratio": 0.4, "train_with_valid": False
    }  # fmt: skip


# ---------------------------------------------------------------------------- predictions


@pytest.fixture
def result(network, tmp_path, capsys):
    """A forest that tells loud recordings from silent ones."""
    corpus = esc50_tree(tmp_path / "corpus")
    features, out = str(tmp_path / "f"), str(tmp_path / "r")
    assert main(["features", "esc50", str(corpus), features, "--model", "m.h5", "--quiet"]) == 0
    forest = ["--model-type", "rf", "--trees", "9", "--quiet"]
    assert main(["train", features, out, *forest, "--fold", "1"]) == 0
    capsys.readouterr()
    return tmp_path / "r/fold1/seed0"


def sound(path, level, seconds=1.5):
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, np.full(int(seconds * RATE), level, np.float32), RATE, subtype="FLOAT")
    return str(path)


def test_predict_prints_and_writes_the_top_classes(result, tmp_path, capsys):
    low, high = sound(tmp_path / "x/low.wav", 0.25), sound(tmp_path / "x/sub.wav", 0.75, 0.3)
    line = ["predict", low, str(tmp_path / "x"), "--quiet", "--classifier"]
    assert main([*line, str(result)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The folder's two files come after the one that was named.
    assert [text.split(":")[0] for text in lines] == [low, low, high]
    assert lines[0].startswith(f"{low}: dog ")
    assert lines[0].split(", ")[1].startswith("rain ")
    assert lines[0] == lines[1]
    for name in ("classifier.npz", "result.json"):
        assert main([*line, str(result / name), "--top", "1"]) == 0
        assert [text.count(",") for text in capsys.readouterr().out.splitlines()] == [0, 0, 0]
    table, tree = tmp_path / "o/p.csv", tmp_path / "o/p.json"
    assert main([*line, str(result), "--output", str(table)]) == 0
    assert main([*line, str(result), "--output", str(tree)]) == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["rank"]) for row in rows[:3]] == [(low, "1"), (low, "2"), (low, "1")]
    assert sum(float(row["probability"]) for row in rows[:2]) == pytest.approx(1)
    classes = json.loads(tree.read_text())[0]["classes"]
    assert [each["class"] for each in classes] == [row["class"] for row in rows[:2]]
    assert [each["probability"] for each in classes] == [float(r["probability"]) for r in rows[:2]]


def test_predict_sees_what_the_features_command_wrote(result, tmp_path, capsys):
    """A clip of the corpus gets the probabilities that its stored frames get."""
    from classifier.model import load_classifier

    clip = tmp_path / "corpus/audio/2-1-A-1.wav"
    features = read_features(tmp_path / "f")
    frames = features.embeddings[features.names.index("2-1-A-1")]
    expected = load_classifier(result / "classifier.npz").predict(frames)
    out = tmp_path / "p.json"
    line = ["predict", str(clip), "--classifier", str(result), "--output", str(out), "--quiet"]
    assert main(line) == 0
    found = {x["class"]: x["probability"] for x in json.loads(out.read_text())[0]["classes"]}
    assert [found["dog"], found["rain"]] == pytest.approx(expected.tolist())


def test_predict_skips_unreadable_files_with_exit_code_1(result, tmp_path, capsys):
    good, bad = sound(tmp_path / "x/good.wav", 0.25), tmp_path / "x/bad.wav"
    bad.write_bytes(b"no audio")
    line = ["predict", str(bad), good, "--classifier", str(result), "--quiet"]
    assert main(line) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{good}: ")
    assert err.startswith("skipped: ")
    assert "bad.wav" in err
    assert err.count("\n") == 1
    assert main(["predict", str(bad), "--classifier", str(result)]) == 2
    assert "error: every file was skipped" in capsys.readouterr().err


def test_predict_refuses_another_network(result, network, tmp_path, capsys):
    audio = sound(tmp_path / "x/a.wav", 0.25)
    network.weight = np.float32(2)
    line = ["predict", audio, "--classifier", str(result), "--quiet"]
    assert main([*line, "--model", "other.h5"]) == 2
    assert "other.h5 is not the network that the classifier was trained on" in (
        capsys.readouterr().err
    )
    assert main(line) == 2
    assert "m.h5 is not the network" in capsys.readouterr().err


def relabel(result):
    record = json.loads((result / "result.json").read_text())
    record["result"]["labels"].append("third")
    (result / "result.json").write_text(json.dumps(record))


def without(result, *keys):
    record = json.loads((result / "result.json").read_text())
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    (result / "result.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (None, ["--classifier", "/nowhere"], "/nowhere does not exist; give a folder fold<k>"),
        (None, ["--top", "3"], "top=3, but there are only 2 classes: dog, rain"),
        (None, ["--top", "0"], "top=0 is not a positive integer"),
        (None, ["--batch-size", "0"], "batch_size=0 is not a positive integer"),
        (None, ["--output", "p.txt"], "p.txt ends neither in .csv nor in .json"),
        (lambda r: (r / "result.json").unlink(), [], "result.json is missing; give a folder"),
        (lambda r: (r / "result.json").write_text("{"), [], "is not JSON"),
        (lambda r: (r / "result.json").write_text("[]"), [], "does not say how its features were"),
        (lambda r: without(r, "extraction", "model"), [], "does not say how its features were"),
        (relabel, [], "has 3 labels and a classifier of 2 classes; train it again"),
        (lambda r: (r / "classifier.npz").unlink(), [], "classifier.npz is missing; train it"),
        (lambda r: (r / "classifier.npz").write_bytes(b"PK"), [], "npz is no classifier (File"),
    ],
)
def test_wrong_predict_is_one_line_and_exit_code_2(
    spoil, arguments, message, result, tmp_path, capsys
):
    audio = sound(tmp_path / "x/a.wav", 0.25)
    if spoil:
        spoil(result)
    assert main(["predict", audio, "--classifier", str(result), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_predict_without_audio(result, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for given, message in (("/nowhere.wav", "no such file or folder"), ("empty", "no audio files")):
        assert main(["predict", str(tmp_path / given), "--classifier", str(result)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.shared
def test_real_network_and_recordings_from_features_to_prediction(shared, tmp_path, capsys):
    """ESC-10's rain and dog, eight clips each: a forest on statistics learns them by heart."""
    import shutil

    corpus = tmp_path / "corpus"
    (corpus / "meta").mkdir(parents=True)
    (corpus / "audio").mkdir()
    with (shared / "data/esc10/meta/esc50.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in ("dog", "rain")]
    kept = [row for row in rows if row["fold"] in "123"]
    kept = [row for row in kept if sum(r["target"] == row["target"] and r["fold"] == row["fold"]
            for r in kept[: kept.index(row)]) < 2]  # fmt: skip
    with (corpus / "meta/esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    for row in kept:
        stem = Path(row["filename"]).stem
        (path,) = (shared / "data/esc10/audio").glob(f"{stem}.*")
        shutil.copy(path, corpus / "audio")
    model = str(shared / "models/edgel3_sea_ust_audio_emb_64.h5.gz")
    features, out = str(tmp_path / "f"), str(tmp_path / "r")
    extract = ["features", "esc50", str(corpus), features, "--model", model, "--hop-size", "0.5"]
    assert main([*extract, "--quiet"]) == 0
    svm = ["--model-type", "svm", "--C", "10", "--quiet"]
    assert main(["cv", features, out, *svm]) == 0
    record = json.loads((tmp_path / "r/cv.json").read_text())
    assert record["summary"][0]["mean"] > 0.6
    capsys.readouterr()
    result = str(tmp_path / "r/fold1/seed0")
    rain = next(row for row in kept if row["category"] == "rain" and row["fold"] == "2")
    clip = next((corpus / "audio").glob(f"{Path(rain['filename']).stem}.*"))
    assert main(["predict", str(clip), "--classifier", result, "--top", "1", "--quiet"]) == 0
    assert f"{clip.name}: rain" in capsys.readouterr().out
    moved = tmp_path / "moved.h5.gz"
    shutil.copy(model, moved)
    again = ["predict", str(clip), "--classifier", result, "--model", str(moved), "--quiet"]
    assert main(again) == 0
    other = Path(__file__).parent.parent / "models/l3_synthetic.h5"
    assert main([*again[:-3], "--model", str(other), "--quiet"]) == 2
    assert "is not the network that the classifier was trained on" in capsys.readouterr().err


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
        (["cv", FEATURES, OUT, "--weight-decay", "-1"], "weight_decay=-1.0 is not 0 or more"),
        (["cv", FEATURES, OUT, "--C", "1"], "--C is of --model-type svm, but --model-type is mlp"),
        (
            ["cv", FEATURES, OUT, "--model-type", "rf", "--epochs", "3"],
            "--epochs is of --model-type mlp, but --model-type is rf; leave it out",
        ),
        (["cv", FEATURES, OUT, "--model-type", "svm", "--C", "0"], "C=0.0 is not positive"),
        (["cv", FEATURES, OUT, "--model-type", "svm", "--tol", "nan"], "tol=nan is not positive"),
        (["cv", FEATURES, OUT, "--model-type", "rf", "--trees", "0"], "trees=0 is not a positive"),
        (["cv", FEATURES, OUT, "--non-overlap"], "the features do not say their hop size"),
        (
            ["cv", FEATURES, OUT, "--parameter-search-no-valid-fold"],
            "--parameter-search-… flags need --parameter-search",
        ),
        (
            ["cv", FEATURES, OUT, "--parameter-search", "--parameter-search-valid-ratio", "0.2"],
            "--parameter-search-valid-ratio needs --parameter-search-no-valid-fold",
        ),
        (
            [
                *("cv", FEATURES, OUT, "--parameter-search", "--parameter-search-no-valid-fold"),
                *("--parameter-search-valid-ratio", "1.5"),
            ],
            "valid_ratio=1.5 is not between 0 and 1",
        ),
        (
            ["features", "esc50", CORPUS, OUT, "--model", "m", "--augmented"],
            "esc50 has no augmented copies; us8k may have them",
        ),
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


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train", "a", "b"],
        ["cv", "a", "b", "--epochs", "x"],
        ["cv", "a", "b", "--model-type", "lda"],
        ["cv", "a", "b", "--kernel", "cosine"],
        ["cv", "a", "b", "--features-mode", "mean"],
        ["predict", "a.wav"],
    ],
)
def test_bad_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_damaged_features_stop_the_command(tmp_path, capsys):
    folder = write_features(tmp_path / "f", toy_features())
    (folder / "fold1/1-0-0.npz").write_bytes(b"half")
    assert main(["cv", str(folder), str(tmp_path / "r")]) == 2
    assert "1-0-0.npz is damaged" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", [[], ["features"], ["train"], ["cv"], ["predict"]])
def test_help_loads_no_heavy_package(command):
    code = (
        "import sys\n"
        "from classifier.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as exit:\n    assert exit.code == 0\n"
        "heavy = {'tensorflow', 'tf_keras', 'sklearn', 'pandas', 'librosa', 'scipy'}\n"
        "heavy |= {'matplotlib', 'tqdm'}\n"
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
