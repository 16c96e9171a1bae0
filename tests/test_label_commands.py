"""python -m l3prune.train, and python -m l3prune.pruning with --labels, on a small corpus."""

import csv
import json

import numpy as np
import pytest
import soundfile

from l3prune import export, label_training, tag, train
from l3prune.checkpoints import BEST, LATEST
from l3prune.errors import Interrupted
from l3prune.networks import network_config
from l3prune.pruning import main as prune
from l3prune.weights import load_network
from tests.commands import layers, words
from tests.label_corpora import SMALL, make_corpus

SHORT = ("--num-epochs", "2", "--learning-rate", "1e-2", "--train-batch-size", "4", "--quiet")


class Place:
    """A corpus, a network trained on it, and a cache that tests share."""

    def __init__(self, folder):
        self.data = make_corpus(folder / "data")
        self.cache = folder / "cache"
        self.out = folder / "out"
        line = [*self.trained(self.out), *SHORT, "--run-name", "run"]
        assert train.main(line) == 0
        self.run = self.out / "labels/esc50/dcase2021/run"
        self.net = self.run / BEST

    def trained(self, out):
        return words(
            *("dcase2021", "esc50", self.data, out, "--test-fold", 1, "--cache-dir", self.cache),
            *("--network-arguments", json.dumps(SMALL)),
        )

    def pruned(self, out, *more):
        return words(
            *(self.net, self.data, out, "--labels", "esc50", "--test-fold", 1),
            *("--cache-dir", self.cache, "--run-name", "run", "--filterwise", *more),
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("labels"))


def pruned_run(out, kind="pruning_labels"):
    return out / "embedding" / kind / "data" / "dcase2021" / "run"


def test_training_leaves_a_network_and_what_is_told_of_it(place):
    network = load_network(place.net)
    config = network_config(network)
    assert config.labels == ("low", "high")
    assert config.arguments.keys() == {"filters", "dense_units", "classes", "normalisation"}
    report = json.loads((place.run / "report.json").read_text())["trained"]
    details = json.loads((place.run / "labels.json").read_text())["trained"]
    for part in ("validation", "test"):
        assert report[f"{part}_accuracy"] == details[part]["accuracy"]
        assert details[part]["clips"] == 4
        assert details[part]["by_class"].keys() == {"low", "high"}
    assert "| low | 2 |" in (place.run / "report.md").read_text()
    assert (place.run / "history.png").stat().st_size > 1000
    with (place.run / "split.csv").open(newline="") as file:
        parts = {(row["fold"], row["part"]) for row in csv.DictReader(file)}
    assert parts == {("1", "test"), ("2", "train"), ("3", "validation")}


def test_a_trained_network_tags(place, tmp_path):
    """By the names of its classes, as it scored the clip when it was trained."""
    from l3prune.labelled import ClipAudio
    from l3prune.networks import inference

    clip = place.data / "audio/1-0-0.wav"
    with soundfile.SoundFile(clip) as file:
        sound, rate = file.read(dtype="float32"), file.samplerate
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, np.resize(sound, 441_000), rate)
    assert tag.main(words(whole, "--model", place.net, "--json", tmp_path, "--quiet")) == 0
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    scores = {row["label"]: row["score"] for row in record["sounds"]}
    audio = ClipAudio([clip], 44100, 441_000).read(np.array([0]))
    expected = inference(load_network(place.net))(audio)[0]
    assert [scores["low"], scores["high"]] == pytest.approx(expected.tolist(), abs=1e-4)


def test_networks_that_score_classes_are_told_from_embeddings(place, tmp_path, capsys):
    bare = [
        *words(place.net, place.data, place.data, tmp_path),
        "--filterwise",
        "--filter-ratio",
        "50",
    ]
    assert prune(bare) == 2
    assert "scores classes, so it is pruned and judged on a labelled corpus: give --labels" in (
        capsys.readouterr().err
    )
    assert export.main(words(place.net, tmp_path / "e", "--format", "litert-float32")) == 2
    assert "scores classes; exports are of embedding networks of the L3 family only" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "e").exists()


def test_flags_win_over_the_config(place, tmp_path):
    config = tmp_path / "config.json"
    given = {
        "network": "dcase2021",
        "dataset": "esc50",
        "num_epochs": 9,
        "network_arguments": SMALL,
    }
    config.write_text(json.dumps(given))
    line = ["--config", config, place.data, tmp_path / "out", "--cache-dir", place.cache]
    assert train.main(words(*line, *SHORT, "--num-epochs", 1, "--run-name", "run")) == 0
    run = tmp_path / "out/labels/esc50/dcase2021/run"
    assert len((run / "history.csv").read_text().splitlines()) == 2
    # By default the last fold tests.
    assert json.loads((run / "config.json").read_text())["arguments"]["num_epochs"] == 1
    assert "3-0-0.wav,3,low,,,test" in (run / "split.csv").read_text()


def test_a_run_of_training_goes_on(place, tmp_path):
    line = [*place.trained(tmp_path), *SHORT]
    assert train.main([*line, "--run-name", "part", "--num-epochs", "1"]) == 0
    part = tmp_path / "labels/esc50/dcase2021/part"
    assert train.main([*line, *words("--continue-model-dir", part)]) == 0
    for name, array in layers(place.run / LATEST).items():
        np.testing.assert_array_equal(array, layers(part / LATEST)[name])
    assert train.main([*line, *words("--continue-model-dir", part), "--seed", "5"]) == 2


@pytest.mark.slow
def test_pruning_in_one_go(place, tmp_path):
    line = place.pruned(tmp_path, "--layer-ratio", "conv_3=50", "dense_1=25", "--float16")
    assert prune([*line, "--retrain", *SHORT]) == 0
    run = pruned_run(tmp_path)
    arguments = network_config(load_network(run / BEST)).arguments
    assert (arguments["filters"], arguments["dense_units"]) == ([4, 4, 3], 6)
    report = json.loads((run / "report.json").read_text())
    assert list(report) == ["unpruned", "pruned", "retrained", "float16"]
    # By hand: 7x7 convolutions 1-4-4-3, dense 6-6-2, four values a filter of BatchNorm.
    weights = 49 * (4 + 16 + 12) + 11 + 6 * 6 + 6 + 6 * 2 + 2
    assert report["retrained"]["parameters"] == weights + 4 * 11
    sizes = json.loads((run / "sizes.json").read_text())
    assert sizes["networks"]["retrained"]["folded"]["parameters"] == weights
    assert sizes["networks"]["litert"]["parameters"] <= weights
    assert sizes["networks"]["retrained"]["folded"]["within_limit"]
    halved = layers(run / label_training.FLOAT16)
    kernel = halved["conv_3/kernel"]
    np.testing.assert_array_equal(kernel, kernel.astype(np.float16))
    assert (run / label_training.LITERT).stat().st_size > 1000
    assert json.loads((run / "labels.json").read_text()).keys() == report.keys()


ITERATIVE = ("--layer-ratio", "conv_2=50", "dense_1=50", "--iterative", "--retrain")


@pytest.mark.slow
def test_pruning_layer_after_layer_goes_on_where_it_was_stopped(place, tmp_path, monkeypatch):
    fresh = ("--fresh", "dense_1", "dense_2")
    line = place.pruned(tmp_path / "whole", *ITERATIVE, *fresh, *SHORT)
    assert prune(line) == 0
    run = pruned_run(tmp_path / "whole")
    first, last = (network_config(load_network(f / BEST)) for f in (run / "step-1", run))
    assert (first.arguments["filters"], first.arguments["dense_units"]) == ([4, 2, 6], 8)
    assert (last.arguments["filters"], last.arguments["dense_units"]) == ([4, 2, 6], 4)
    report = json.loads((run / "report.json").read_text())
    assert list(report) == ["unpruned", "pruned", "retrained 1", "retrained"]
    # Steps go on from each other's best weights; dense layers begin anew.
    begun = load_network(run / "model_pruned.h5")
    assert network_config(begun).arguments["filters"] == [4, 2, 6]

    # Stopped in its second step, as by a signal.
    train_on_labels = label_training.train_on_labels
    calls = []

    def stopped(network, train, validation, folder, **arguments):
        calls.append(folder)
        if len(calls) == 2:
            raise Interrupted(f"stopped; go on with --continue-model-dir {folder}")
        return train_on_labels(network, train, validation, folder, **arguments)

    monkeypatch.setattr(label_training, "train_on_labels", stopped)
    line = place.pruned(tmp_path / "parts", *ITERATIVE, *fresh, *SHORT)
    assert prune(line) == 75
    monkeypatch.undo()
    parts = pruned_run(tmp_path / "parts")
    assert (parts / "step-1" / LATEST).is_file()
    assert not (parts / LATEST).exists()
    assert prune([*line, *words("--continue-model-dir", parts)]) == 0
    for name, array in layers(run / BEST).items():
        np.testing.assert_array_equal(array, layers(parts / BEST)[name])


@pytest.mark.slow
def test_masks_are_retrained_on_labels_too(place, tmp_path):
    line = [word for word in place.pruned(tmp_path) if word != "--filterwise"]
    line += ["--layerwise", "--sparsity", "0", "50", "75", "--retrain", *SHORT]
    assert prune(line) == 0
    kernel = layers(pruned_run(tmp_path) / BEST)["conv_3/kernel"]
    assert 0.7 < (kernel == 0).mean() < 0.8


def test_pruning_alone_reports_on_labels(place, tmp_path, capsys):
    assert prune(place.pruned(tmp_path, "--filter-ratio", "50", "--quiet")) == 0
    report = json.loads((pruned_run(tmp_path, "reduced") / "report.json").read_text())
    assert list(report) == ["unpruned", "pruned"]
    assert "test_accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_training_and_pruning_from_packed_clips(place, tmp_path, capsys):
    """Nothing else is kept of the clips, the corpus's folder is not needed twice, and the figures
    are those of maps on disk, but for the rounding of samples to 16 bits."""
    packed = words("--packed", tmp_path / "esc.h5", "--cache-dir", tmp_path / "cache")
    line = [*place.trained(tmp_path / "out"), *SHORT, *packed, "--run-name", "run"]
    assert train.main(line) == 0
    assert not any((tmp_path / "cache").iterdir())
    run = tmp_path / "out/labels/esc50/dcase2021/run"
    for name in ("split.csv", "report.json"):
        ours, theirs = (folder / name for folder in (run, place.run))
        if name == "split.csv":
            assert ours.read_text() == theirs.read_text()
            continue
        ours, theirs = (json.loads(path.read_text())["trained"] for path in (ours, theirs))
        assert ours["test_log_loss"] == pytest.approx(theirs["test_log_loss"], abs=0.05)
    line = [*place.pruned(tmp_path, "--filter-ratio", "50", "--quiet"), *packed]
    line[1] = str(tmp_path / "none")
    assert prune(line) == 0
    report = json.loads((tmp_path / "embedding/reduced/none/dcase2021/run/report.json").read_text())
    assert list(report) == ["unpruned", "pruned"]
    capsys.readouterr()
    for more, message in (
        (["--fill", "zeros"], "were packed with fill repeat, and this run takes fill zeros"),
        (["--labels", "us8k"], "has the clips of esc50, not of us8k"),
        (["--packed", str(place.net)], "has no waveform; give a file of packed clips"),
    ):
        assert prune([*line, *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layer-ratio", "conv_2=100"], "layer ratio 100 is not in percent, from 0 to below 100"),
        (
            ["--layer-ratio", "conv_2=90"],
            "conv_2: 90 % of 4 filters leaves none; give at most 75 %",
        ),
        (["--layer-ratio", "conv_9=50"], "there is no layer 'conv_9' to take filters or units of"),
        (["--layer-ratio", "conv_2=5", "conv_2=6"], "--layer-ratio names a layer twice"),
        (
            ["--layer-ratio", "conv_2=50", "--fresh", "dense_1"],
            "--fresh dense_1: these get fresh weights when one of them loses",
        ),
        (
            ["--layer-ratio", "dense_1=50", "--fresh", "dense_1", "dense_9"],
            "fresh weights are wished for in",
        ),
        (["--filter-ratio", "50", "--fresh", "dense_1"], "--fresh is for --layer-ratio"),
        (
            ["--layer-ratio", "conv_2=50", "--iterative"],
            "--iterative is for --labels with --retrain",
        ),
        (
            ["--layer-ratio", "conv_2=50", "--iterative", "--retrain", "--fresh", "dense_1"],
            "--fresh dense_1: these get fresh weights when one of them loses",
        ),
        (
            ["--filter-ratio", "50", "--criterion", "taylor"],
            "--criterion taylor scores what filters",
        ),
        (["--filter-ratio", "50", "--reduction", "pca"], "--reduction does not go with --labels"),
        (["--filter-ratio", "50", "--test-fold", "9"], "fold 9 does not exist; folds: 1, 2, 3"),
        (
            ["--filter-ratio", "50", "--test-fold", "2"],
            "was trained or chosen on 4 of the 4 clips to test on, 2-0-0.wav the first",
        ),
        (["--filter-ratio", "50", "--fill", "noise"], "fill='noise'; allowed: repeat, zeros"),
        (["--filter-ratio", "50", "--labels", "esc51"], "dataset 'esc51' is unknown; known: "),
        (
            ["--filter-ratio", "50", "--labels", "us8k"],
            "UrbanSound8K.csv is missing; give the folder that holds",
        ),
        (
            ["--filter-ratio", "50", "--retrain", "--best-by", "f1", *SHORT],
            "best_by='f1'; this training has loss, accuracy",
        ),
    ],
)
def test_wrong_options_of_pruning(place, tmp_path, capsys, more, message):
    assert prune(place.pruned(tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "embedding").exists()


def test_options_of_labels_need_labels(place, capsys):
    line = words(place.net, place.data, place.data, "out", "--filterwise", "--filter-ratio", 50)
    assert prune([*line, "--test-fold", "1"]) == 2
    assert "--test-fold is for --labels: give that too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test-fold", "4"], "fold 4 does not exist; folds: 1, 2, 3"),
        (["--validation-ratio", "0.9"], "ratio=0.9 is not above 0 and at most 0.5"),
        (
            ["--network-arguments", '{"classes": 3}'],
            "dcase2021 gives 3 values, esc50 has 2 classes",
        ),
        (["--network-arguments", '{"depth": 3}'], "unexpected keyword argument 'depth'"),
        (["--best-from", "2"], "best_from=2 leaves none of 2 epochs to be the best"),
        (["--weights", "/nowhere.h5"], "no such weight file: /nowhere.h5"),
        (["--train-batch-size", "64"], "training batches of 64 are more than the 4 training clips"),
    ],
)
def test_wrong_options_of_training(place, tmp_path, capsys, more, message):
    assert train.main([*place.trained(tmp_path), *SHORT, *more]) == 2
    assert message in capsys.readouterr().err


def test_weights_that_know_the_test_clips_are_not_trained_on(place, tmp_path, capsys):
    line = [*place.trained(tmp_path), *SHORT, *words("--weights", place.net, "--test-fold", 3)]
    line = [word for word in line if word not in ("--network-arguments", json.dumps(SMALL))]
    assert train.main(line) == 2
    assert "4 of the 4 clips to test on, 3-0-0.wav" in capsys.readouterr().err


def test_a_csv_without_a_column_is_named(place, tmp_path, capsys):
    data = make_corpus(tmp_path / "data")
    path = data / "meta/esc50.csv"
    path.write_text(path.read_text().replace("category", "label"))
    assert train.main(words("dcase2021", "esc50", data, tmp_path / "out")) == 2
    assert "esc50.csv has no column category" in capsys.readouterr().err


def test_an_embedding_network_learns_no_labels(place, tmp_path, capsys):
    assert train.main(words("sea64", "esc50", place.data, tmp_path / "out")) == 2
    assert "network sea64 gives embeddings, not classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"epochs": 3}', "option 'epochs' is unknown; see --help"),
        ('{"num_epochs": "3"}', "num_epochs='3' is not a whole number"),
        ('{"network_arguments": [1]}', "network_arguments=[1] is not a JSON object"),
        ("[1]", "is not a JSON object of options"),
    ],
)
def test_wrong_configs(place, tmp_path, capsys, content, message):
    config = tmp_path / "config.json"
    config.write_text(content)
    assert train.main([*place.trained(tmp_path), *words("--config", config)]) == 2
    assert message in capsys.readouterr().err
