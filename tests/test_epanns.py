"""The committed configs of E-PANNs, from a checkpoint and clips to a retrained network."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from l3prune import pruning, train
from l3prune.networks import cnn14, network_config
from l3prune.options import parse
from l3prune.weights import load_network, save_network
from tests.cnn14_networks import PLANS, shaken, small

CONFIGS = Path(__file__).parent.parent / "configs" / "epanns"

PRUNED = {"25": "25 %", "50": "50 %", "75": "75 %", "75_mixed": "75 % mixed"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sixteen clips, as AudioSet has them, of three classes: quiet, low and high."""
    root = tmp_path_factory.mktemp("audioset")
    rng = np.random.default_rng(0)
    time = np.arange(10_000) / 32_000
    sounds = {
        "/m/a": lambda: rng.normal(0, 0.001, len(time)),
        "/m/b": lambda: 0.5 * np.sin(2 * np.pi * rng.uniform(200, 400) * time),
        "/m/c": lambda: 0.5 * np.sin(2 * np.pi * rng.uniform(4000, 8000) * time),
    }
    (root / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n0,/m/a,quiet\n1,/m/b,low\n2,/m/c,high\n"
    )
    for segments, count in (("balanced_train_segments", 12), ("eval_segments", 6)):
        lines = ["# YTID, start_seconds, end_seconds, positive_labels"]
        folder = root / "audios" / segments
        folder.mkdir(parents=True)
        for number in range(count):
            one, other = f"/m/{'abc'[number % 3]}", "/m/b"
            both = number % 6 == 5
            sound = sounds[one]() + (sounds[other]() if both else 0)
            soundfile.write(folder / f"Y{segments[:2]}{number}.wav", sound, 32_000)
            named = f"{one},{other}" if both else one
            lines.append(f'{segments[:2]}{number}, 0.000, 10.000, "{named}"')
        (root / f"{segments}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.h5"
    network = shaken(small(filters=[2] * 6 + [4] * 6, classes=3, samples=9920))
    save_network(network, path)
    return path


@pytest.mark.parametrize("name", sorted(PRUNED))
def test_configs_prune_the_published_layers(name):
    args = parse(["net.h5", "audioset", "out", "--config", str(CONFIGS / f"{name}.json")])
    assert args.criterion == "operator_norm"
    kept = [
        int(count * (1 - args.layer_ratio.get(layer, 0) / 100))
        for layer, count in zip(cnn14.CONV_NAMES, cnn14.FILTERS, strict=True)
    ]
    assert kept == PLANS[PRUNED[name]]


QUICK = ["--num-epochs", "2", "--train-epoch-size", "2", "--train-batch-size", "8", "--quiet"]
QUICK += ["--validation-ratio", "0.34", "--run-name", "run"]


@pytest.mark.slow
def test_pruned_and_trained_on(corpus, weights, tmp_path):
    config = ["--config", str(CONFIGS / "75_mixed.json")]
    words = [str(weights), str(corpus), str(tmp_path), *config, *QUICK]
    assert pruning.main(words) == 0
    (run,) = tmp_path.rglob("report.json")
    report = json.loads(run.read_text())
    assert list(report) == ["unpruned", "pruned", "retrained"]
    for row in report.values():
        assert 0 <= row["test_map"] <= 1
        assert 0 <= row["test_mauc"] <= 1
        assert "test_d_prime" in row
        assert "test_accuracy" not in row
    network = load_network(run.parent / "model_best_valid_loss.h5")
    assert network_config(network).arguments["filters"] == [2] * 6 + [1, 1, 1, 1, 2, 2]
    assert network_config(network).arguments["units"] == 6
    details = json.loads((run.parent / "labels.json").read_text())
    assert "average_precision" in details["retrained"]["test"]["by_class"]["low"]
    pruned = load_network(run.parent / "model_pruned.h5")
    whole = load_network(weights)
    kept = _kept(whole, pruned, "conv_block4_conv1")
    assert kept.sum() == 1


def _kept(whole, pruned, name):
    before, after = (net.get_layer(name).kernel.numpy() for net in (whole, pruned))
    return np.array([(before[..., [n]] == after).all() for n in range(before.shape[-1])])


def test_trained_from_the_start(corpus, tmp_path):
    sizes = {"filters": [2] * 12, "units": 4, "samples": 9920}
    words = ["cnn14", "audioset", str(corpus), str(tmp_path), "--config"]
    words += [str(CONFIGS / "cnn14.json"), *QUICK, "--network-arguments", json.dumps(sizes)]
    assert train.main(words) == 0
    (run,) = tmp_path.rglob("report.json")
    assert "test_map" in run.read_text()
    assert network_config(load_network(run.parent / "model_best_valid_loss.h5")).labels == (
        "quiet",
        "low",
        "high",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer-ratio", "conv_block9_conv1=50"], "conv_block9_conv1"),
        (["--layer-ratio", "conv_block4_conv1=100"], "from 0 to below 100"),
        (["--augment", "noise"], "augmentation 'noise' is unknown; spec_augment, mixup"),
        (["--sampler", "fair"], "sampler 'fair' is unknown; uniform, balanced"),
    ],
)
def test_wishes_that_cannot_be_carried_out(corpus, weights, tmp_path, capsys, words, message):
    config = ["--config", str(CONFIGS / "50.json")]
    assert pruning.main([str(weights), str(corpus), str(tmp_path), *config, *QUICK, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--best-by", "accuracy"], "best_by='accuracy'; this training has loss"),
        (
            ["--network-arguments", json.dumps({"activation": "softmax", "filters": [2] * 12})],
            "ends in a softmax",
        ),
    ],
)
def test_what_several_classes_do_not_have_shows_before_clips_are_decoded(
    corpus, weights, tmp_path, capsys, words, message
):
    begun = ["cnn14", "audioset", str(corpus), str(tmp_path / "trained"), *QUICK]
    assert train.main([*begun, "--config", str(CONFIGS / "cnn14.json"), *words]) == 2
    assert message in capsys.readouterr().err
    if "--best-by" in words:
        begun = [str(weights), str(corpus), str(tmp_path / "pruned"), *QUICK]
        assert pruning.main([*begun, "--config", str(CONFIGS / "50.json"), *words]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.f32"))
    assert not list(tmp_path.rglob("config.json"))
