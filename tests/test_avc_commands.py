"""Commands on audio-visual correspondence: training, fine-tuning, tests, sensitivity."""

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from l3prune import avc, graph, train_avc
from l3prune.__main__ import main as embed
from l3prune.correspondence import correspondence
from l3prune.datasets.avc import open_pairs
from l3prune.embedding import get_embedding
from l3prune.files import locked
from l3prune.images import get_image_embedding
from l3prune.networks import network_config
from l3prune.options import parse
from l3prune.pruning import main as prune
from l3prune.sensitivity import main as scan
from l3prune.weights import load_network, save_network

RATE = 8000
BEST = "model_best_valid_loss.h5"
SIZES = (
    *("--learning-rate", "1e-3", "--train-batch-size", "8", "--validation-batch-size", "8"),
    *("--num-epochs", "2", "--train-epoch-size", "2", "--quiet"),
)


def write_pairs(path, count, seed):
    """Pairs that belong together if image and sound are both loud."""
    rng = np.random.default_rng(seed)
    loud = rng.integers(0, 2, (count, 2))
    video = rng.integers(0, 60, (count, 224, 224, 3)) + 150 * loud[:, 0, None, None, None]
    noise = rng.normal(0, 1, (count, 1, RATE)) * (100 + 5000 * loud[:, 1, None, None])
    match = (loud[:, 0] == loud[:, 1]).astype(int)
    with h5py.File(path, "w") as file:
        file["video"] = video.astype(np.uint8)
        file["audio"] = noise.astype(np.int16)
        file["label"] = np.stack([1 - match, match], axis=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("avc")
    for name, seed in (("av_train", 1), ("av_valid", 2)):
        (folder / name).mkdir()
        write_pairs(folder / name / f"{seed}_0_0.h5", 16, seed)
    return folder


@pytest.fixture(scope="module")
def trained(data):
    """The run of a small network."""
    words = [str(data / "av_train"), str(data / "av_valid"), str(data / "out"), *SIZES]
    words += ["--model-type", "sea64", "--run-name", "first"]
    words += ["--audio-filters", *"44448888", "--vision-filters", *"22224444"]
    assert train_avc.main(words) == 0
    return data / "out" / "embedding" / "av" / "sea64" / "first"


def retrain(data, weights, run_name, *more):
    words = [weights, data / "av_train", data / "av_valid", data / "out", *SIZES]
    return prune([str(word) for word in [*words, "--run-name", run_name, *more]])


def test_training_leaves_a_network_its_audio_half_and_a_report(data, trained):
    network = load_network(trained / BEST)
    pairs = open_pairs(data / "av_valid", RATE)
    report = json.loads((trained / "report.json").read_text())["trained"]
    assert report["avc_accuracy"] == correspondence(network, pairs)["avc_accuracy"]
    audio = load_network(trained / train_avc.AUDIO)
    assert network_config(audio).name == "sea64"
    sound = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    by_half, by_whole = (
        get_embedding(sound, RATE, trained / name, engine="dense")[0]
        for name in (train_avc.AUDIO, BEST)
    )
    np.testing.assert_array_equal(by_half, by_whole)
    with (trained / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert (trained / "history.png").is_file()


def test_correspondence_by_hand(data, trained):
    network = load_network(trained / BEST)
    pairs = open_pairs(data / "av_valid", RATE)
    images, sounds, labels = pairs.read(np.arange(16))
    given = network([images, sounds], training=False).numpy().astype(float)
    found = correspondence(network, pairs, batch_size=5)
    right = given.argmax(axis=1) == labels.argmax(axis=1)
    assert found["avc_accuracy"] == pytest.approx(right.mean())
    assert found["avc_loss"] == pytest.approx(
        -np.log((given * labels).sum(axis=1)).mean(), rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "kind"),
    [
        (("--global-sparsity", "90"), "layerwise"),
        pytest.param(
            ("--global-sparsity", "90", "--mask-schedule", "constant"),
            "layerwise",
            marks=pytest.mark.slow,
        ),
        (("--filterwise", "--num_filters", *"22224444"), "filterwise"),
    ],
    ids=["masks", "schedule", "filters"],
)
def test_fine_tuning_trains_the_audio_half_alone(data, trained, more, kind):
    name = f"{kind}{len(more)}"
    assert retrain(data, trained / BEST, name, "--retrain", "--finetune", *more) == 0
    run = data / "out" / "embedding" / f"pruning_finetune_{kind}" / "av" / "sea64" / name
    before, pruned, after = (
        load_network(path) for path in (trained / BEST, run / "model_pruned.h5", run / BEST)
    )
    for layer in before.layers:
        if layer.name.startswith("vision_"):
            for one, other in zip(
                layer.get_weights(), after.get_layer(layer.name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(one, other, err_msg=layer.name)
    for layer in ("conv_2", "fusion_dense_1", "batch_normalization_3"):
        one, other = (net.get_layer(layer).get_weights()[0] for net in (pruned, after))
        assert (one != other).any(), layer
    report = json.loads((run / "report.json").read_text())
    states = ["unpruned", "pruned", "retrained"]
    assert list(report) == [
        each for each in states if "--mask-schedule" not in more or each != "pruned"
    ]
    pairs = open_pairs(data / "av_valid", RATE)
    assert report["retrained"]["avc_accuracy"] == correspondence(after, pairs)["avc_accuracy"]
    audio = avc.audio_half(after)
    if kind == "layerwise":
        total, nonzero = graph.count_kernel_weights(audio)
        assert nonzero / total == pytest.approx(0.1, abs=1e-3)
        assert set(graph.masks(after)) == set(graph.convolutions(audio))
    else:
        found = [layer.filters for layer in graph.convolutions(audio).values()]
        assert found == [2, 2, 2, 2, 4, 4, 4, 4]


@pytest.mark.slow
def test_distillation_of_the_audio_half(data, trained):
    words = ("--global-sparsity", "80", "--retrain")
    assert retrain(data, trained / BEST, "kd", *words) == 0
    run = data / "out" / "embedding" / "pruning_kd" / "av" / "sea64" / "kd"
    assert network_config(load_network(run / BEST)).name == "sea64"


def test_the_accuracy_before_and_after_pruning(data, trained, capsys):
    assert retrain(data, trained / BEST, "test", "--test-model", "--global-sparsity", "90") == 0
    run = data / "out" / "embedding" / "pruning" / "av" / "sea64" / "test"
    report = json.loads((run / "report.json").read_text())
    assert list(report) == ["unpruned", "pruned"]
    assert report["unpruned"]["avc_loss"] != report["pruned"]["avc_loss"]


@pytest.mark.slow
def test_sensitivity_of_the_correspondence(data, trained, tmp_path, capsys):
    words = [trained / BEST, data / "av_valid", tmp_path / "scan", "--metric", "avc"]
    words += ["--amounts", "50", "90", "--batch-size", "8", "--quiet"]
    assert scan([str(word) for word in words]) == 0
    with (tmp_path / "scan" / "sensitivity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 2 * 8
    whole = load_network(trained / BEST)
    pairs = open_pairs(data / "av_valid", RATE)
    assert float(rows[0]["accuracy"]) == correspondence(whole, pairs)["avc_accuracy"]
    # The same audio half with another fusion is another network.
    fusion = whole.layers[-1]
    fusion.set_weights([weight + 1 for weight in fusion.get_weights()])
    save_network(whole, tmp_path / "other.h5")
    words[0] = tmp_path / "other.h5"
    assert scan([str(word) for word in words]) == 2
    assert "is of another whole network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--finetune", "--layerwise"), "--finetune is a way to retrain: give --retrain too"),
        (("--test-model", "--retrain", "--layerwise"), "--test-model with --retrain needs --finet"),
        (
            ("--finetune", "--retrain", "--student", "sea64"),
            "--student does not go with --finetune",
        ),
        (
            ("--test-model", "--from-conv-layer", "7"),
            "--from-conv-layer does not go with --test-mo",
        ),
    ],
)
def test_what_does_not_go_with_both_halves(more, message):
    with pytest.raises(ValueError, match=message):
        parse(["w.h5", "train", "valid", "out", *more])


def test_wrong_input_is_one_line_and_leaves_no_run(data, trained, tmp_path, capsys):
    sound = trained / train_avc.AUDIO
    assert retrain(data, sound, "x", "--retrain", "--finetune", "--layerwise") == 2
    assert "holds the network sea64, not avc" in capsys.readouterr().err
    out = tmp_path / "out"
    words = [data / "av_train", data / "av_valid", out, "--model-type", "mel256", *SIZES]
    assert train_avc.main([str(word) for word in words]) == 2
    assert "8000" in capsys.readouterr().err
    words = [tmp_path / "nowhere", data / "av_valid", out, "--model-type", "sea64"]
    assert train_avc.main([str(word) for word in words]) == 2
    assert "nowhere" in capsys.readouterr().err
    words = [data / "av_train", data / "av_valid", out, "--model-type", "sea63"]
    assert train_avc.main([str(word) for word in words]) == 2
    assert "'sea63'; allowed" in capsys.readouterr().err
    words = [data / "av_train", data / "av_valid", out, "--model-type", "sea64", "-nmels", "32"]
    assert train_avc.main([str(word) for word in words]) == 2
    assert "--n-mels 32: model type sea64 has 64" in capsys.readouterr().err
    words = [data / "av_train", data / "av_valid", out, "--model-type", "sea64", "-tbs", "17"]
    assert train_avc.main([str(word) for word in words]) == 2
    assert "more than the 16 training pairs" in capsys.readouterr().err
    words = [data / "av_train", data / "av_valid", out, "--model-type", "sea64", "-tes", "0"]
    assert train_avc.main([str(word) for word in words]) == 2
    assert "train_epoch_size=0 is not a whole number" in capsys.readouterr().err
    words = [data / "av_train", data / "av_valid", out, "--weights", trained / BEST, "-mt", "../x"]
    assert train_avc.main([str(word) for word in words]) == 2
    assert "first/model_best_valid_loss.h5 is sea64" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_training_goes_on_from_a_file_with_its_own_type(data, trained, tmp_path):
    words = [data / "av_train", data / "av_valid", tmp_path, "--weights", trained / BEST, *SIZES]
    assert train_avc.main([*map(str, words), "--num-epochs", "1", "--run-name", "on"]) == 0
    config = json.loads((tmp_path / "embedding/av/sea64/on/config.json").read_text())
    assert config["arguments"]["model_type"] == "sea64"


@pytest.mark.slow
def test_other_data_are_not_gone_on_with(data, trained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    words = [data / "av_train", data / "av_valid", data / "out", *SIZES, "--model-type", "sea64"]
    words += ["--audio-filters", *"44448888", "--vision-filters", *"22224444", "--num-epochs", "3"]
    words += ["--continue-model-dir", run_dir]
    for more, message in (
        (("--random-state", "5"), "was trained with seed=20171021, not 5; continue it with its"),
        (("--train-batch-size", "4", "-tes", "2"), "was trained with batch_size=8, not 4"),
    ):
        assert train_avc.main([str(word) for word in [*words, *more]]) == 2
        assert message in capsys.readouterr().err
    (data / "fewer").mkdir()
    write_pairs(data / "fewer" / "1_0_0.h5", 12, 2)
    words[1] = data / "fewer"
    assert train_avc.main([str(word) for word in words]) == 2
    assert "was trained with validation_size=16, not 12" in capsys.readouterr().err
    with locked(run_dir):
        assert train_avc.main([str(word) for word in words]) == 2
    assert "another run is at work in" in capsys.readouterr().err


def test_an_audio_visual_checkpoint_embeds_images(trained, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (300, 280, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    words = ["image", tmp_path / "a.png", "--model", trained / BEST, "-o", tmp_path, "--quiet"]
    assert embed([str(word) for word in words]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        found = arrays["embedding"]
    expected, _ = get_image_embedding(picture, model=trained / BEST)
    np.testing.assert_array_equal(found, expected)
