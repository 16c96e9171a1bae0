"""Sparse optimizers through the commands: train, remove the zero filters, the path of lambdas."""

import csv
import json
import signal

import numpy as np
import pytest

from l3prune import train
from l3prune.checkpoints import BEST, LATEST, Keeper
from l3prune.pruning import PRUNED
from l3prune.pruning import main as prune
from l3prune.runs import told, write_config
from l3prune.weights import fingerprint, load_network, read_attachment, save_network
from l3prune.zero_filters import group_sparsity
from tests.commands import words
from tests.label_corpora import make_corpus

NARROW = {
    "filters": [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4],
    "seconds": 1,
    "bands": 32,
    "hop": 512,
    "channels": 1,
}

HSPG = (
    *("--optimizer", "hspg", "--epsilon", "0.9", "--prox-steps", "2", "--learning-rate", "0.1"),
    *("--train-batch-size", "2", "--schedule", "constant", "--checkpoint-interval", "0"),
    *("--num-epochs", "4", "--best-from", "3"),
)


class Place:
    def __init__(self, folder):
        self.folder = folder
        self.data = make_corpus(folder / "data")

    def trained(self, out, *more):
        return words(
            *("vgg16", "esc50", self.data, out, "--test-fold", 1, "--quiet"),
            *("--cache-dir", self.folder / "cache", "--network-arguments", json.dumps(NARROW)),
            *(*HSPG, *more),
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = Place(tmp_path_factory.mktemp("hspg"))
    assert (
        train.main(found.trained(found.folder / "out", "--lambda", "1", "--run-name", "run")) == 0
    )
    found.run = found.folder / "out/labels/esc50/vgg16/run"
    return found


def test_training_makes_groups_zero(place):
    report = json.loads((place.run / "report.json").read_text())["trained"]
    assert report["group_sparsity"] == group_sparsity(load_network(place.run / BEST)) > 0.2
    config = json.loads((place.run / "config.json").read_text())["arguments"]
    assert (config["optimizer"], config["regularization"]) == ("hspg", 1.0)


def test_zero_filters_go_by_one_command(place, tmp_path, capsys):
    line = words(
        *(place.run / BEST, place.data, tmp_path, "--labels", "esc50", "--test-fold", 1),
        *("--cache-dir", place.folder / "cache", "--run-name", "small", "--zero-filters"),
    )
    assert prune(line) == 0
    (folder,) = tmp_path.glob("embedding/reduced/*/vgg16/small")
    report = json.loads((folder / "report.json").read_text())
    before, after = report["unpruned"], report["pruned"]
    assert after["test_accuracy"] == before["test_accuracy"]
    assert after["bytes"] < before["bytes"]
    assert after["macs"] < before["macs"]
    told = json.loads((folder / "config.json").read_text())["zero_filters"]
    small = load_network(folder / PRUNED)
    assert 0 <= told["largest_difference"] < 1e-5
    assert told["group_sparsity"] == group_sparsity(load_network(place.run / BEST))
    assert "of the groups were zero; without them outputs differ by" in capsys.readouterr().out
    assert small.count_params() < load_network(place.run / BEST).count_params()


def test_a_network_without_zero_filters_is_refused(place, tmp_path, capsys):
    network = load_network(place.run / BEST)
    for weight in network.weights:
        weight.assign(np.ones(weight.shape))
    save_network(network, tmp_path / "ones.h5")
    line = words(
        *(tmp_path / "ones.h5", place.data, tmp_path / "out", "--labels", "esc50"),
        *("--test-fold", 1, "--cache-dir", place.folder / "cache", "--zero-filters"),
    )
    assert prune(line) == 2
    assert "no filter of network vgg16 is zero together with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_resumed_run_ends_alike(place, tmp_path, monkeypatch):
    line = [*place.trained(tmp_path, "--lambda", "1"), "--run-name", "run"]
    steps, ended = iter(range(100)), Keeper.on_train_batch_end

    def stopped(self, batch, logs=None):
        if next(steps) == 2:  # after the first of two steps of the second epoch
            signal.raise_signal(signal.SIGTERM)
        ended(self, batch, logs)

    monkeypatch.setattr(Keeper, "on_train_batch_end", stopped)
    folder = tmp_path / "labels/esc50/vgg16/run"
    assert train.main(line) == 75
    monkeypatch.undo()
    assert (folder / LATEST).is_file()
    assert train.main([*line[:-2], "--continue-model-dir", str(folder)]) == 0
    whole, again = (load_network(each / BEST) for each in (place.run, folder))
    assert fingerprint(whole) == fingerprint(again)
    for name, array in read_attachment(place.run / LATEST).items():
        if name.startswith("optimizer"):
            np.testing.assert_array_equal(array, read_attachment(folder / LATEST)[name])


@pytest.mark.slow
def test_another_optimizer_does_not_go_on(place, tmp_path, capsys):
    line = [*place.trained(tmp_path, "--lambda", "1"), "--num-epochs", "1", "--best-from", "0"]
    assert train.main([*line, "--run-name", "run"]) == 0
    folder = tmp_path / "labels/esc50/vgg16/run"
    more = ["--num-epochs", "2", "--epsilon", "0.5", "--continue-model-dir", str(folder)]
    assert train.main([*line, *more]) == 2
    assert "was trained with optimizer=hspg regularization=1.0 epsilon=0.9" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_path_of_lambdas(place, tmp_path, capsys):
    line = [*place.trained(tmp_path, "--lambda", "0", "1"), "--num-epochs", "2", "--best-from", "1"]
    assert train.main(line) == 0
    folder = tmp_path / "labels/esc50/vgg16/path"
    with (folder / "path.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lambda"]) for row in rows] == [0, 1]
    sparsities = [float(row["group_sparsity"]) for row in rows]
    assert sparsities[0] == 0 < sparsities[1]
    assert int(rows[1]["parameters"]) < int(rows[0]["parameters"])
    assert (folder / "path.png").stat().st_size > 1000
    # Again: nothing is trained, and a finished run of other settings is none of this path.
    stamp = (folder / "lambda-1" / BEST).stat().st_mtime_ns
    assert train.main(line) == 0
    assert (folder / "lambda-1" / BEST).stat().st_mtime_ns == stamp
    assert train.main([*line, "--epsilon", "0.5"]) == 2
    assert "was begun with epsilon=0.9, not 0.5" in capsys.readouterr().err


def test_a_path_of_an_option_that_is_no_longer_given_is_refused(place, tmp_path, capsys):
    line = [*place.trained(tmp_path, "--lambda", "0", "1"), "--direction", "adam"]
    folder = tmp_path / "labels/esc50/vgg16/path/lambda-0"
    one = train._parse([*line, "--lambda", "0", "--run-name", "lambda-0"])
    write_config(folder, line, told(one), {})
    (folder / "report.json").write_text("{}")
    assert train.main(line[:-2]) == 2
    assert "was begun with direction='adam', not None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--lambda", "-1"), "lambda=-1.0 is not a number from 0 on"),
        (("--lambda", "1", "--epsilon", "1"), "epsilon=1.0 is not in [0, 1)"),
        (("--lambda", "1", "1"), "--lambda has a value twice"),
        (("--lambda", "1", "--optimizer", "rmsprop"), "optimizer 'rmsprop' is unknown"),
        (("--lambda", "1", "--prox-epochs", "2"), "prox_epochs or prox_steps, not both"),
        (("--lambda", "1", "--batch-norm", "keep"), "batch_norm='keep' leaves them as they are"),
        (("--lambda", "1", "2", "--continue-model-dir", "x"), "without --continue-model-dir"),
    ],
)
def test_wrong_settings_are_refused(place, tmp_path, capsys, more, message):
    assert train.main(place.trained(tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--filter-ratio", "50"), "leave out --filter-ratio"),
        (("--retrain",), "--retrain does not go with --zero-filters"),
        (("--criterion", "l1"), "--criterion does not go with --zero-filters"),
    ],
)
def test_zero_filters_go_alone(more, message, capsys):
    assert prune(["w.h5", "d", "o", "--labels", "esc50", "--zero-filters", *more]) == 2
    assert message in capsys.readouterr().err
