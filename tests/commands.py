"""What tests of the commands share: a place to run in, and looks at what a run leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

from l3prune.plan import PruningPlan
from l3prune.pruning import main as prune
from tests.conftest import make_sounds

SPARSITY = ("0", "50", "50", "60", "40", "50", "70", "80")

RETRAIN = (
    *("--layerwise", "--retrain", "--learning-rate", "1e-2"),
    *("--train-batch-size", "5", "--train-epoch-size", "2", "--plateau-patience", "1"),
    *("--checkpoint-interval", "2", "--seed", "3", "--run-name", "run"),
    *("--sparsity", *SPARSITY),
)


def tree(folder):
    """Every path below a folder, with the size and time of each file."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        for path in Path(folder).rglob("*")
    }


def words(*given):
    return [str(word) for word in given]


class Place:
    """A network, train and validation sounds, and a cache that tests share."""

    def __init__(self, folder, net):
        self.net = net
        self.train = make_sounds(folder / "music_train")
        self.valid = make_sounds(folder / "music_valid")
        self.cache = folder / "cache"
        self.folder = folder

    def line(self, out, *more, cache=True):
        shared = ["--cache-dir", self.cache] if cache else []
        return words(self.net, self.train, self.valid, out, *shared, *more)


def run_folder(out, kind="pruning_kd", subset="music", network="sea64", name="run"):
    return Path(out) / "embedding" / kind / subset / network / name


def layers(path):
    """Arrays of a checkpoint by layer and weight name, read without l3prune."""
    arrays = {}
    with h5py.File(path) as file:
        for layer in file.attrs["layer_names"]:
            for weight in file[layer].attrs["weight_names"]:
                name = weight.decode() if isinstance(weight, bytes) else weight
                arrays[name.split(":")[0]] = file[layer][name][()]
    return arrays


def assert_zeros(run_dir, plan):
    """Each checkpoint of a run has the plan's masks, and the bits of +0.0 under them."""
    checkpoints = sorted(run_dir.glob("*.h5"))
    assert checkpoints
    for path in checkpoints:
        arrays = layers(path)
        for layer, mask in plan.items():
            np.testing.assert_array_equal(arrays[f"{layer}/mask"], mask)
            assert not arrays[f"{layer}/kernel"].view(np.uint32)[~mask].any(), (path, layer)
        assert PruningPlan.load(path.with_suffix(".plan.npz")) == plan
    return checkpoints


def assert_equal_weights(path, other):
    first, second = layers(path), layers(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def refuse(capsys, line, message, folder):
    before = tree(folder)
    capsys.readouterr()
    assert prune(line) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert tree(folder) == before


def pruned_by(place, out, *options):
    """The folder of a run without retraining, and its report."""
    assert prune(place.line(out, *options, "--run-name", "run", "--quiet")) == 0
    (run_dir,) = Path(out).glob("embedding/*/*/*/run")
    return run_dir, json.loads((run_dir / "report.json").read_text())


def write_shard(path, windows=6, rate=8000, seed=0, name="audio", dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file[name] = rng.integers(-9000, 9000, (windows, 1, rate)).astype(dtype)
        file["label"] = np.zeros((windows, 2), int)
    return path.parent


def process(module, *line):
    root = Path(__file__).parent.parent
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-m", module, *words(*line)],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PYTHONPATH": str(root)},
        cwd=root,
    )
