"""Network slimming by the commands and configs: trained with the penalty, cut, trained again."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import l3prune
from l3prune import graph
from l3prune.datasets import load_dataset
from l3prune.pruning import main as prune
from l3prune.slimming import scales
from l3prune.train import main as train
from l3prune.weights import load_network
from tests.test_fsdkaggle2019 import make, pictures

CONFIGS = Path(l3prune.__file__).parent.parent / "configs" / "fat2019"
SHORT = ["--num-epochs", "1", "--checkpoint-interval", "0", "--quiet"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A corpus of 40 pictures."""
    root = make(tmp_path_factory.mktemp("fat"), count=40, audio=False)
    (root / "mels_train_curated.pkl").write_bytes(pickle.dumps(pictures(40), protocol=3))
    return root


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    arguments = json.dumps({"filters": [3] * 8, "units": 4})
    config = ["--config", str(CONFIGS / "basic.json"), "--network-arguments", arguments]
    # In one epoch of a few steps the scales hardly move but for a strong penalty.
    words = [*config, "--gamma-l1", "0.5", str(root), str(out), "--run-name", "whole", *SHORT]
    assert train(words) == 0
    return out / "labels" / "fsdkaggle2019" / "fat2019" / "whole"


def pruned_by(name, whole, root, out, *options):
    weights = whole / "model_best_valid_loss.h5"
    config = ["--config", str(CONFIGS / f"{name}.json")]
    assert prune([*config, str(weights), str(root), str(out), "--run-name", name, *options]) == 0
    (run_dir,) = [path.parent for path in Path(out).rglob("report.json")]
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scratch", "fine_tune"])
def test_slimmed(whole, root, tmp_path, name):
    run_dir = pruned_by(name, whole, root, tmp_path, *SHORT)
    report = json.loads((run_dir / "report.json").read_text())
    for state in ("unpruned", "pruned", "retrained"):
        assert 0 < report[state]["test_lwlrap"] <= 1
    assert report["retrained"]["parameters"] < report["unpruned"]["parameters"]
    before = load_network(whole / "model_best_valid_loss.h5")
    begun, after = (
        load_network(run_dir / file) for file in ("model_pruned.h5", "model_best_valid_loss.h5")
    )
    every = np.sort(np.concatenate(list(scales(before).values())))
    for layer, each in graph.conv_weights(before).items():
        kept = np.abs(each.gamma) > every[12]
        assert graph.conv_weights(after)[layer].kernel.shape[-1] == max(1, kept.sum())
        assert graph.conv_weights(begun)[layer].kernel.shape[-1] == max(1, kept.sum())
    fresh = {float(value) for each in scales(begun).values() for value in each} == {1.0}
    assert fresh == (name == "scratch")
    head = begun.get_layer("logits").kernel.numpy(), before.get_layer("logits").kernel.numpy()
    assert np.array_equal(*head) == (name == "fine_tune")


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.json")))
def test_configs_are_read(name, capsys):
    config = str(CONFIGS / f"{name}.json")
    pruning = "criterion" in json.loads(Path(config).read_text())
    command, words = (prune, ["w.h5"]) if pruning else (train, [])
    assert command(["--config", config, *words, "/nowhere", "/nowhere/out"]) == 2
    said = capsys.readouterr().err
    assert "/nowhere" in said or "w.h5" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--augment", "mixup"], "hears clips in segments, which cannot be augmented"),
        (["--gamma-l1", "-1"], "gamma_l1=-1.0 is not a number ≥ 0"),
        (["--best-by", "accuracy"], "best_by='accuracy'; this training has loss, lwlrap"),
        (["--network-arguments", '{"pooling": "max"}'], "pooling='max'; allowed"),
    ],
)
def test_what_does_not_fit_is_refused(root, tmp_path, capsys, options, message):
    words = ["--config", str(CONFIGS / "basic.json"), str(root), str(tmp_path / "out"), *options]
    assert train([*words, *SHORT]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_miniature_is_split(root):
    assert np.bincount(
        [clip.fold for clip in load_dataset("fsdkaggle2019", root).clips]
    ).tolist() == [
        0,
        32,
        4,
        4,
    ]
