"""Processes that are killed: what they leave is whole, and runs end as if they never were."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.commands import run_folder, words

ROOT = Path(__file__).parent.parent


def start(folder, module, *line):
    """A process, its stderr in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stderr").open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words(*line)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        )


def end_within(process, seconds):
    """Kill a process after so many seconds; whether it had ended by itself before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    finally:
        process.stdout.close()
    assert process.returncode == 0
    return True


def assert_readable(folder):
    """Every file that has its name is whole; names that begin with a dot are of none yet."""
    for path in folder.rglob("[!.]*"):
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                file.visititems(
                    lambda _, item: item[()] if isinstance(item, h5py.Dataset) else None
                )
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert dict(arrays)
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert rows
            assert all(None not in row and None not in row.values() for row in rows)


def records(folder):
    """What has to be the same, to the bit."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.suffix in (".h5", ".npz", ".csv") or path.name.startswith("model_")
    }


def assert_same(folder, whole):
    mine, others = records(folder), records(whole)
    assert mine.keys() == others.keys()
    for name in others:
        assert mine[name] == others[name], name
    assert {path.name for path in folder.glob(".*")} <= {".lock"}


# A script that calls `fit`.


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    """The folder of a run that was left alone, and the seconds that it trained for."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, "tests.killed_run", folder / "run")
    assert process.stdout.readline() == "ready\n"
    begin = time.monotonic()
    assert end_within(process, 300)
    return folder / "run", time.monotonic() - begin


def kill_often(folder, never_killed, kills, seed):
    """Kill a run at random moments; when it ends between two of them, begin another."""
    whole, seconds = never_killed
    rng = np.random.default_rng(seed)
    number = killed = 0
    ended = True
    while killed < kills or not ended:
        run = folder / str(number)
        process = start(folder, "tests.killed_run", run)
        assert process.stdout.readline() == "ready\n", (folder / "stderr").read_text()
        ended = end_within(process, rng.uniform(0, 0.7) * seconds if killed < kills else 300)
        assert_readable(run)
        if ended:
            assert_same(run, whole)
            number += 1
        else:
            killed += 1


@pytest.mark.slow
def test_a_run_that_is_killed_twice(never_killed, tmp_path):
    kill_often(tmp_path, never_killed, kills=2, seed=1)


@pytest.mark.slow
def test_runs_that_are_killed_twenty_times(never_killed, tmp_path):
    kill_often(tmp_path, never_killed, kills=20, seed=2)


# The command.

LINE = (
    *("--layerwise", "--sparsity", "60", "--retrain", "--learning-rate", "1e-2", "--seed", "3"),
    *("--train-batch-size", "5", "--train-epoch-size", "12", "--num-epochs", "6"),
    *("--plateau-patience", "1", "--checkpoint-interval", "2", "--run-name", "run", "--quiet"),
)


@pytest.fixture(scope="module")
def command_left_alone(place):
    """The folder of the command's run that was left alone, and the seconds that it took."""
    folder = place.folder / "alone"
    begin = time.monotonic()
    process = start(folder, "l3prune.pruning", *place.line(folder, *LINE))
    assert end_within(process, 300)
    return run_folder(folder), time.monotonic() - begin


def go_on(place, folder):
    """The command as one would start it again, whatever a kill has left."""
    run = run_folder(folder)
    if not (run / "config.json").is_file():
        shutil.rmtree(run, ignore_errors=True)  # nothing was begun
        return start(folder, "l3prune.pruning", *place.line(folder, *LINE))
    line = place.line(folder, *LINE, "--continue-model-dir", run)
    return start(folder, "l3prune.pruning", *line)


@pytest.mark.slow
def test_the_command_is_killed_at_any_time(place, command_left_alone, tmp_path):
    whole, seconds = command_left_alone
    rng = np.random.default_rng(3)
    for _ in range(5):
        if end_within(go_on(place, tmp_path), rng.uniform(0.2, 1.1) * seconds):
            break
        assert_readable(tmp_path)
    else:
        assert end_within(go_on(place, tmp_path), 300), (tmp_path / "stderr").read_text()
    assert_same(run_folder(tmp_path), whole)
    assert (run_folder(tmp_path) / "report.json").read_text() == (whole / "report.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_the_command_ends_when_a_signal_asks_for_it(place, command_left_alone, tmp_path, name):
    process = go_on(place, tmp_path)
    latest = run_folder(tmp_path) / "model_latest.json"
    while not latest.is_file():
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    assert process.wait(60) == 75
    assert process.stdout.read() == ""
    process.stdout.close()
    *_, line = (tmp_path / "stderr").read_text().splitlines()
    assert line.startswith(f"interrupted: stopped by {name} after ")
    assert line.endswith(f"--continue-model-dir {run_folder(tmp_path)} goes on from there")
    assert_readable(tmp_path)
    assert end_within(go_on(place, tmp_path), 300), (tmp_path / "stderr").read_text()
    assert_same(run_folder(tmp_path), command_left_alone[0])
