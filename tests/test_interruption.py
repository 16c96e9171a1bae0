"""Runs that a signal ends, and runs that go on within an epoch."""

import contextlib
import itertools
import json
import random
import signal
import threading

import h5py
import numpy as np
import pytest
import tensorflow as tf

from l3prune import checkpoints, interruption
from l3prune.checkpoints import BEST, LATEST, Keeper
from l3prune.errors import Interrupted, L3PruneError, command
from l3prune.options import parse
from l3prune.pruning import main as prune
from l3prune.recipes import Recipe
from l3prune.retraining import recipe_of
from l3prune.weights import load_network, read_attachment
from tests.commands import RETRAIN, run_folder
from tests.test_gradual_runs import STEPS, polynomial, regrown, run, sequence, student

# Signals.


def test_signals_are_noted_and_handlers_given_back():
    def mine(number, frame):
        raise AssertionError("called in spite of all")

    before = signal.signal(signal.SIGUSR1, mine)
    try:
        with contextlib.suppress(Interrupted), interruption.noted() as signals:
            assert signals.first is None
            for number in (signal.SIGUSR1, signal.SIGTERM):
                signal.raise_signal(number)
            assert signals.first is signal.SIGUSR1
            raise Interrupted("noticed")
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_nobody_took_notice_of_is_raised_again():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with interruption.noted():
            signal.raise_signal(signal.SIGUSR1)
            assert not seen
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_other_threads_note_nothing():
    found = []

    def work():
        with interruption.noted() as signals:
            found.append((signals.first, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, signal.SIG_DFL)]


def test_exit_code_of_an_interruption(capsys):
    @command
    def main(argv=None):
        raise Interrupted("stopped by SIGTERM; go on")

    assert main([]) == 75
    assert capsys.readouterr().err == "interrupted: stopped by SIGTERM; go on\n"


# Runs.


def plateau():
    # Nothing is an improvement: the rate falls after each epoch, and the run ends after four.
    rules = {"min_delta": 1e9, "early_stopping_patience": 3, "plateau_patience": 1}
    return student(), None, rules


def cosine():
    return student(), None, {"schedule": "cosine", "batch_norm": "freeze"}


def at(monkeypatch, method, count, act):
    """Do something the count-th time that a method of `Keeper` is called."""
    original = getattr(Keeper, method)
    calls = itertools.count(1)

    def called(self, *args, **kwargs):
        if next(calls) == count:
            act()
        original(self, *args, **kwargs)

    monkeypatch.setattr(Keeper, method, called)


def term():
    signal.raise_signal(signal.SIGTERM)


def kill():
    raise KeyboardInterrupt


def files(folder):
    """What a run leaves, without what depends on the time of day."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "tensorboard"}


def assert_same(made, folder, whole):
    network, other_folder = whole
    mine, others = files(folder), files(other_folder)
    assert mine.keys() == others.keys()
    for name in others:
        assert mine[name] == others[name], name
    for one, two in zip(made.weights, network.weights, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("make", [plateau, cosine, polynomial, sequence, regrown])
def test_runs_that_signals_end_go_on_exactly(make, tmp_path, monkeypatch):
    whole = make()
    history = run(whole, tmp_path / "whole")
    resume = False
    for method, count, where in (
        ("on_train_batch_end", 2, "after step 2 of 3 of epoch 1"),
        ("on_test_batch_end", 2, "after step 3 of 3 of epoch 2"),
        ("on_epoch_end", 2, "after epoch 3"),
        ("on_train_batch_end", 3, "after step 3 of 3 of epoch 4"),
    ):
        made = make()
        with monkeypatch.context() as patch:
            at(patch, method, count, term)
            with pytest.raises(Interrupted, match=f"^stopped by SIGTERM {where}; the same command"):
                run(made, tmp_path / "run", resume=resume)
        resume = True
        assert all(layer.trainable for layer in made[0].layers if layer.weights)
    made = make()
    assert run(made, tmp_path / "run", resume=True) == history
    assert len(history) == (4 if make is plateau else 6)
    assert_same(made[0], tmp_path / "run", (whole[0], tmp_path / "whole"))
    # Each epoch is in the records for TensorBoard.
    steps = {
        event.step
        for path in (tmp_path / "run" / "tensorboard" / "train").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        if event.summary.value
    }
    assert steps == set(range(len(history)))


def test_every_flag_of_the_recipe_reaches_it():
    words = ["w.h5", "train", "valid", "out", "--layerwise", "--retrain", "--checkpoint-minutes"]
    words += ["2.5", "--num-epochs", "7", "--learning-rate", "0.5"]
    words += ["--early-stopping-patience", "3", "--min-delta", "0.25", "--plateau-patience", "4"]
    words += ["--plateau-factor", "0.75", "--checkpoint-interval", "6", "--batch-norm", "freeze"]
    assert recipe_of(parse([*words, "--random-state", "9"])) == Recipe(
        epochs=7,
        learning_rate=0.5,
        early_stopping_patience=3,
        min_delta=0.25,
        plateau_patience=4,
        plateau_factor=0.75,
        checkpoint_interval=6,
        checkpoint_minutes=2.5,
        batch_norm="freeze",
        seed=9,
    )


@pytest.mark.slow
def test_checkpoints_within_epochs_as_often_as_asked(tmp_path, monkeypatch):
    """Each step is in a checkpoint, and a run that is killed goes on right behind it."""
    whole = plateau()
    history = run(whole, tmp_path / "whole", checkpoint_minutes=0)
    written = []
    save = checkpoints.save_network

    def recorded(network, path, *, origin=None, **options):
        save(network, path, origin=origin, **options)
        if path.name == LATEST:
            written.append((origin["epoch"], origin.get("step")))

    monkeypatch.setattr(checkpoints, "save_network", recorded)
    # Ctrl-C stands for a kill: neither lets `fit` do anything more.
    with monkeypatch.context() as patch:
        at(patch, "on_train_batch_end", 6, kill)
        with pytest.raises(KeyboardInterrupt):
            run(plateau(), tmp_path / "run", checkpoint_minutes=1e-9)
    assert written == [(1, 1), (1, 2), (1, 3), (1, None), (2, 1), (2, 2)]
    state = read_attachment(tmp_path / "run" / LATEST)
    assert state["steps"].tolist() == [2, 3]
    # Half a file, as a kill leaves it.
    (tmp_path / "run" / ".model_latest-0a1b2c3d.h5").write_text("half")
    made = plateau()
    assert run(made, tmp_path / "run", resume=True, checkpoint_minutes=0) == history
    assert written[6:] == [(2, None), (3, None), (4, None)]
    assert_same(made[0], tmp_path / "run", (whole[0], tmp_path / "whole"))


def test_a_signal_in_the_middle_of_a_checkpoint(tmp_path, monkeypatch):
    save = checkpoints.save_network
    written = []

    def asked(network, path, **options):
        written.append(path.name)
        if path.name == LATEST:
            term()
        save(network, path, **options)

    monkeypatch.setattr(checkpoints, "save_network", asked)
    with pytest.raises(Interrupted, match=r"after step 1 of 3 of epoch 1"):
        run(plateau(), tmp_path, checkpoint_minutes=1e-9)
    assert written == [LATEST]
    assert read_attachment(tmp_path / LATEST)["steps"].tolist() == [1, 3]


def test_a_signal_before_the_first_step(tmp_path, monkeypatch):
    at(monkeypatch, "on_train_begin", 1, term)
    with pytest.raises(Interrupted, match="stopped by SIGTERM before the first step; the same com"):
        run(cosine(), tmp_path)
    assert not list(tmp_path.glob("*.h5"))


def test_runs_are_continued_with_epochs_of_the_same_length(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at(patch, "on_train_batch_end", 2, term)
        with pytest.raises(Interrupted):
            run(plateau(), tmp_path)
    monkeypatch.setattr("tests.test_gradual_runs.STEPS", STEPS + 1)
    with pytest.raises(L3PruneError, match="is within an epoch of 3 steps, not 4; continue"):
        run(plateau(), tmp_path, resume=True)


@pytest.mark.slow
def test_checkpoints_of_earlier_versions(tmp_path):
    """They are of whole epochs, without the state of the generators that all share."""
    whole = plateau()
    history = run(whole, tmp_path / "whole")
    run(plateau(), tmp_path / "run", epochs=2)
    with h5py.File(tmp_path / "run" / LATEST, "r+") as file:
        del file["attachment/random"]
    made = plateau()
    assert run(made, tmp_path / "run", resume=True) == history
    assert_same(made[0], tmp_path / "run", (whole[0], tmp_path / "whole"))


def test_divergence_within_an_epoch_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(L3PruneError, match=r"diverged in epoch 1 .* smaller learning rate"):
        run(plateau(), tmp_path, learning_rate=1e30, checkpoint_minutes=1e-9)
    for path in tmp_path.glob("*.h5"):
        for weight in load_network(path).weights:
            assert np.isfinite(weight.numpy()).all()


@pytest.mark.slow
def test_shared_generators_go_on(tmp_path, monkeypatch):
    """Whoever draws from them in the middle of a run finds them as they were."""
    drawn = []
    original = Keeper.on_train_batch_end

    def drawing(self, *args, **kwargs):
        drawn.append((random.random(), np.random.random()))  # noqa: NPY002  # the shared one
        original(self, *args, **kwargs)

    monkeypatch.setattr(Keeper, "on_train_batch_end", drawing)
    run(plateau(), tmp_path / "whole", epochs=2)
    whole = list(drawn)
    assert len(set(whole)) == 2 * STEPS
    drawn.clear()
    with monkeypatch.context() as patch:
        at(patch, "on_train_batch_end", 2, term)
        with pytest.raises(Interrupted):
            run(plateau(), tmp_path / "run", epochs=2)
    run(plateau(), tmp_path / "run", epochs=2, resume=True)
    assert drawn == whole


@pytest.mark.slow
def test_the_command_says_how_to_go_on(place, tmp_path, capsys, monkeypatch):
    line = place.line(tmp_path / "out", *RETRAIN, "-e", "2", "--quiet")
    assert prune(line) == 0
    (run_folder(tmp_path / "out")).rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        at(patch, "on_test_batch_end", 1, term)
        capsys.readouterr()
        assert prune(line) == 75
    folder = run_folder(tmp_path / "out")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "interrupted: stopped by SIGTERM after step 2 of 2 of epoch 1; the same command with "
        f"--continue-model-dir {folder} goes on from there\n"
    )
    # No epoch has ended yet.
    assert not (folder / BEST).exists()
    assert json.loads((folder / LATEST).with_suffix(".json").read_text())["step"] == 2
    assert prune([*line, "--continue-model-dir", str(folder)]) == 0
    for path in (tmp_path / "whole").iterdir():
        if path.suffix in (".h5", ".csv") or path.name == "report.json":
            assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
