"""Trainings of a perceptron that a signal or a kill ends, and that go on."""

import itertools
import signal
from dataclasses import replace

import numpy as np
import pytest

import classifier.mlp
import classifier.progress
import classifier.search
from classifier.__main__ import main
from classifier.mlp import Recipe, fit_mlp
from classifier.progress import Checkpoint
from l3prune.errors import Interrupted, L3PruneError
from tests.test_classifier import files_below, toy_features, write_features

ROWS, CLASSES = 50, 3

#: The validation loss is lowest in epoch 3, so that the patience ends in epoch 6.
RECIPE = Recipe(epochs=9, batch_size=8, learning_rate=3e-2, patience=3)


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Of 16 rows, so that an epoch has four."""
    monkeypatch.setattr(classifier.mlp, "CHUNK", 16)


def rows(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ROWS, 6)).astype(np.float32), rng.integers(0, CLASSES, ROWS)


def fit(checkpoint=None, valid=True, recipe=RECIPE):
    held_out = rows(1) if valid else None
    return fit_mlp(rows(0), held_out, CLASSES, seed=5, recipe=recipe, checkpoint=checkpoint)


def at(monkeypatch, count, act):
    """Do something the count-th time that a training looks whether a checkpoint is due."""
    original = Checkpoint.look
    calls = itertools.count(1)

    def look(self, *args):
        if next(calls) == count:
            act()
        original(self, *args)

    monkeypatch.setattr(Checkpoint, "look", look)


def term():
    signal.raise_signal(signal.SIGTERM)


def kill():
    raise KeyboardInterrupt


def assert_same(made, whole):
    assert made[1] == whole[1]
    for name, array in whole[0].arrays().items():
        assert made[0].arrays()[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("valid", [pytest.param(True, marks=pytest.mark.slow), False])
def test_trainings_that_signals_end_go_on_exactly(valid, tmp_path, monkeypatch):
    """Ended within an epoch, with all its rows done, and between two; a look a chunk and one an
    epoch, five in all."""
    whole = fit(valid=valid)
    assert len(whole[1]) == (6 if valid else 9)
    path = tmp_path / "fold1" / "training.npz"
    for count, epoch in ((2, 1), (7, 2), (6, 4), (1, 4)):
        with monkeypatch.context() as patch:
            at(patch, count, term)
            message = f"^stopped by SIGTERM in epoch {epoch} of .*fold1"
            with pytest.raises(Interrupted, match=message):
                fit(Checkpoint(path, {}), valid)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert_same(fit(Checkpoint(path, {}), valid), whole)


def test_a_signal_after_the_last_epoch(tmp_path, monkeypatch):
    whole = fit()
    path = tmp_path / "training.npz"
    at(monkeypatch, 5 * len(whole[1]), term)
    with pytest.raises(Interrupted):
        fit(Checkpoint(path, {}))
    assert_same(fit(Checkpoint(path, {})), whole)


def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    whole = fit()
    path = tmp_path / "training.npz"
    monkeypatch.setattr(classifier.progress, "MINUTES", 0)
    with monkeypatch.context() as patch:
        at(patch, 13, kill)
        with pytest.raises(KeyboardInterrupt):
            fit(Checkpoint(path, {}))
    remains = tmp_path / ".training-abcd1234.npz"
    remains.touch()
    progress = Checkpoint(path, {}).load()
    assert (len(progress.history), progress.rows) == (2, 32)
    assert not remains.exists()
    assert_same(fit(Checkpoint(path, {})), whole)


def test_nothing_is_written_before_it_is_time(tmp_path):
    assert_same(fit(Checkpoint(tmp_path / "training.npz", {})), fit())
    assert not list(tmp_path.iterdir())


def test_other_trainings_and_damaged_files(tmp_path, monkeypatch):
    path = tmp_path / "training.npz"
    at(monkeypatch, 2, term)
    with pytest.raises(Interrupted):
        fit(Checkpoint(path, {"seed": 1}))
    message = r"has a result with \{'seed': 1\}, this run has \{'seed': 2\}; choose another"
    with pytest.raises(L3PruneError, match=message):
        fit(Checkpoint(path, {"seed": 2}))
    monkeypatch.setattr(classifier.mlp, "HIDDEN", (4, 2))
    message = "training.npz is no checkpoint .its arrays are of another network.; delete it to"
    with pytest.raises(L3PruneError, match=message):
        fit(Checkpoint(path, {"seed": 1}))
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-5000] + b"x" * 5000):
        path.write_bytes(content)
        with pytest.raises(L3PruneError, match="is no checkpoint"):
            fit(Checkpoint(path, {"seed": 1}))
    with path.open("wb") as file:
        np.savez(file, config=np.array([{}], object))
    with pytest.raises(L3PruneError, match="is no checkpoint"):
        fit(Checkpoint(path, {"seed": 1}))


@pytest.mark.parametrize("searched", [False, True])
def test_the_command_goes_on(searched, tmp_path, monkeypatch, capsys):
    """Exit code 75, and the same command again; files as if nothing had been."""
    if searched:
        grid = {"learning_rate": (1e-2, 1e-3)}
        monkeypatch.setitem(classifier.search.GRIDS, "mlp", grid)
    features = tmp_path / "features"
    write_features(features, toy_features())
    words = ["train", features, tmp_path / "out", "--fold", "1", "--epochs", "4", "--quiet"]
    words = [*map(str, words), *["--parameter-search"] * searched]
    for count in (2, 4):
        with monkeypatch.context() as patch:
            at(patch, count, term)
            assert main(words) == 75
        assert "interrupted: stopped by SIGTERM in epoch" in capsys.readouterr().err
        assert not (tmp_path / "out" / "fold1" / "seed0" / "result.json").exists()
    assert main(words) == 0
    words[2] = str(tmp_path / "whole")
    assert main(words) == 0
    names = files_below(tmp_path / "whole")
    assert files_below(tmp_path / "out") == names
    for name in names:
        made, whole = tmp_path / "out" / name, tmp_path / "whole" / name
        assert made.is_dir() or made.read_bytes() == whole.read_bytes(), name
    assert not list((tmp_path / "out").rglob("*training*"))


def test_a_training_that_diverged_leaves_no_checkpoint(tmp_path, monkeypatch):
    """A lower learning rate can be tried in the same folder."""
    monkeypatch.setattr(classifier.progress, "MINUTES", 0)
    path = tmp_path / "training.npz"
    with pytest.raises(L3PruneError, match=r"the loss is not finite in epoch \d+; lower learning"):
        fit(Checkpoint(path, {"rate": 1}), recipe=replace(RECIPE, learning_rate=1e30))
    assert not list(tmp_path.iterdir())
    fit(Checkpoint(path, {"rate": 2}))
