"""Several processes and devices train as one does, end together, and are continued."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from l3prune.checkpoints import HISTORY, LATEST
from tests.distributed_run import BATCH, EPOCHS, STEPS

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(folder, *words, workers=1, module="tests.distributed_run"):
    """Processes; several are told of each other."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    hosts = [f"localhost:{port}" for port in free_ports(workers)]
    started = []
    for worker in range(workers):
        variables = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
        if workers > 1:
            task = {"type": "worker", "index": worker}
            variables["TF_CONFIG"] = json.dumps({"cluster": {"worker": hosts}, "task": task})
        with (folder.parent / f"{folder.name}.stderr{worker}").open("a") as errors:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, str(folder), *map(str, words)],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    cwd=ROOT,
                    env=os.environ | variables,
                )
            )
    return started


def ended(processes):
    """Their exit codes."""
    for process in processes:
        process.communicate(timeout=240)
    return [process.returncode for process in processes]


def wait_for(process, line):
    for each in process.stdout:
        if each.strip() == line:
            return
    raise AssertionError(f"no line {line!r}: it ended with {process.wait()}")


def stderr(folder, worker):
    return (folder.parent / f"{folder.name}.stderr{worker}").read_text()


def history(folder):
    with (folder / HISTORY).open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_same_curve(folder, whole):
    for row, other in zip(history(folder), history(whole), strict=True):
        assert row == pytest.approx(other, rel=1e-4)


WAYS = {
    "devices": ("--distribute", "mirrored", "--devices", "2"),
    "workers": ("--distribute", "multiworker"),
    "workers of two devices": ("--distribute", "multiworker", "--devices", "2"),
}
# Statistics of BatchNorm as trained: its moving means follow biases that noise alone moves.
FROZEN = ("--batch-norm", "freeze")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Finished runs of one device."""
    made = {}

    def get(*words):
        if words not in made:
            made[words] = tmp_path_factory.mktemp("alone") / "run"
            assert ended(start(made[words], *words)) == [0]
        return made[words]

    return get


@pytest.mark.parametrize(
    ("way", "pruner"),
    [("devices", "gradual"), ("workers", "gradual"), ("workers of two devices", "rigl")],
)
def test_the_curve_is_that_of_one_device(way, pruner, alone, tmp_path):
    words = ("--pruner", pruner, *FROZEN)
    count = 2 if "workers" in way else 1
    assert ended(start(tmp_path / "run", *words, *WAYS[way], workers=count)) == [0] * count
    assert_same_curve(tmp_path / "run", alone(*words))
    masks = []
    for folder in [tmp_path / "run"] * count + [alone(*words)]:
        name = f"worker{len(masks) % count}.npz"
        with np.load(folder / (name if folder != alone(*words) else "worker0.npz")) as arrays:
            masks.append({name: arrays[name] for name in arrays if name != "rows"})
    for each in masks[1:]:
        np.testing.assert_equal(each, masks[0])


def test_no_window_is_read_by_two_workers(alone, tmp_path):
    assert ended(start(tmp_path / "run", *WAYS["workers"], workers=2)) == [0, 0]
    total = STEPS * EPOCHS * BATCH
    rows = []
    for worker in range(2):
        with np.load(tmp_path / "run" / f"worker{worker}.npz") as arrays:
            mine = [row for row in arrays["rows"] if row < total]  # reading runs ahead
        assert len(mine) == total // 2
        rows += mine
    assert sorted(rows) == list(range(total))
    # With trained BatchNorm the training loss is as equal.
    curves = [[row["loss"] for row in history(each)] for each in (tmp_path / "run", alone())]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_signal_to_one_ends_all_and_the_run_goes_on(alone, tmp_path):
    words = ("--pruner", "gradual", *FROZEN)
    folder = tmp_path / "run"
    workers = start(folder, *words, *WAYS["workers"], workers=2)
    wait_for(workers[1], "step 1")
    workers[1].send_signal(signal.SIGUSR1)
    assert ended(workers) == [75, 75]
    for worker in range(2):
        stopped = r"interrupted: stopped by SIGUSR1 after step [2-6] of 6 of epoch 1"
        assert re.search(stopped, stderr(folder, worker))
    assert (folder / LATEST).is_file()
    # With another number of devices.
    assert ended(start(folder, *words)) == [0]
    assert_same_curve(folder, alone(*words))


def test_a_chief_that_dies_ends_the_others_and_the_run_goes_on(alone, tmp_path):
    words = ("--pruner", "gradual", *FROZEN)
    folder = tmp_path / "run"
    workers = start(folder, *words, *WAYS["workers"], workers=2)
    for worker in workers:
        wait_for(worker, "step 5")  # of the first epoch
    wait_for(workers[0], "step 2")
    workers[0].kill()
    assert ended(workers) == [-signal.SIGKILL, 2]
    assert "error: worker 1 of 2 stops, since another one has ended" in stderr(folder, 1)
    assert len(history(folder)) == 1
    assert ended(start(folder, *words, *WAYS["workers"], workers=2)) == [0, 0]
    assert_same_curve(folder, alone(*words))


def test_workers_with_different_networks_stop(tmp_path):
    folder = tmp_path / "run"
    assert ended(start(folder, *WAYS["workers"], "--other-filters", workers=2)) == [2, 2]
    for worker in range(2):
        assert "the network is not the same for all 2 workers" in stderr(folder, worker)
    assert not folder.exists()
