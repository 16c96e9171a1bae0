"""python -m l3prune and python -m l3prune.pruning, as a user types them."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

import l3prune.pruning
import l3prune.schedules
from l3prune import graph
from l3prune.__main__ import main as embed
from l3prune.activations import DATA_CRITERIA
from l3prune.embedding import get_embedding
from l3prune.gradual import GradualPruning
from l3prune.networks import create_network, inference
from l3prune.plan import PruningPlan, plan_global, plan_layerwise
from l3prune.pruning import main as prune
from l3prune.scan import Spread
from l3prune.sensitivity import main as sensitivity
from l3prune.weights import load_network, save_network
from l3prune.windows import open_windows
from tests.conftest import chirp, make_sounds, make_tiny

SPARSITY = ("0", "50", "50", "60", "40", "50", "70", "80")


def tree(folder):
    """Every path below a folder, with the size and time of each file."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        for path in Path(folder).rglob("*")
    }


def words(*given):
    return [str(word) for word in given]


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "tiny.h5"
    save_network(make_tiny(), path)
    return path


# python -m l3prune


@pytest.fixture
def mixed(tmp_path):
    """Recordings of several formats, rates and channel counts."""
    folder = tmp_path / "mixed"
    (folder / "deep" / "er").mkdir(parents=True)
    soundfile.write(folder / "mono.wav", chirp(1.5, 8000), 8000)
    soundfile.write(folder / "stereo.flac", np.stack([chirp(1.5, 44100)] * 2, axis=1), 44100)
    soundfile.write(folder / "deep" / "vorbis.ogg", chirp(1.5, 22050), 22050)
    soundfile.write(folder / "deep" / "er" / "layer3.MP3", chirp(1.5, 48000), 48000, format="MP3")
    (folder / "notes.txt").write_text("not audio, and not asked for")
    return folder


def test_folders_and_files(net, mixed, tmp_path, capsys):
    single = tmp_path / "single.wav"
    soundfile.write(single, chirp(1.5, 8000, 50, 400), 8000)
    out = tmp_path / "new" / "out"
    code = embed(words(mixed, single, "--model", net, "--output-dir", out, "--quiet"))
    assert code == 0
    assert capsys.readouterr() == ("", "")
    names = ["layer3.npz", "mono.npz", "single.npz", "stereo.npz", "vorbis.npz"]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        with np.load(out / name, allow_pickle=False) as arrays:
            assert sorted(arrays.files) == ["embedding", "timestamps"]
            assert arrays["embedding"].shape == (len(arrays["timestamps"]), 4)
            assert len(arrays["timestamps"]) in (11, 12)
            assert np.isfinite(arrays["embedding"]).all()


def test_options_reach_the_embedding(net, mixed, tmp_path, capsys):
    line = words(mixed / "mono.wav", "--model", net, "-o", tmp_path / "out", "-x", "emb")
    assert embed([*line, "--hop-size", "0.25", "--no-centering", "--batch-size", "2"]) == 0
    assert capsys.readouterr() == ("", "")  # no progress bar in a job's log
    audio, rate = soundfile.read(mixed / "mono.wav", dtype="float32")
    expected = get_embedding(audio, rate, model=net, hop_size=0.25, center=False, batch_size=2)
    with np.load(tmp_path / "out" / "mono_emb.npz") as arrays:
        np.testing.assert_array_equal(arrays["embedding"], expected[0])
        np.testing.assert_array_equal(arrays["timestamps"], [0, 0.25, 0.5])


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_has_a_progress_bar_unless_quiet(net, mixed, capsys, monkeypatch, quiet):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert embed(words(mixed / "mono.wav", "--model", net, *["--quiet"] * quiet)) == 0
    assert ("1/1" in capsys.readouterr().err) != quiet


def test_output_is_beside_the_audio_by_default(net, mixed):
    assert embed(words(mixed, "--model", net, "-q")) == 0
    assert (mixed / "deep" / "er" / "layer3.npz").is_file()
    # And is not taken for audio the next time.
    assert embed(words(mixed, "--model", net, "-q")) == 0
    assert len(list(mixed.rglob("*.npz"))) == 4


def test_unreadable_files_are_named_and_skipped(net, mixed, tmp_path, capsys):
    (mixed / "text.wav").write_text("text")
    flac = (mixed / "stereo.flac").read_bytes()
    (mixed / "cut.flac").write_bytes(flac[: len(flac) // 2])
    soundfile.write(mixed / "nan.wav", np.full(9000, np.nan), 8000, subtype="FLOAT")
    out = tmp_path / "out"
    assert embed(words(mixed, "--model", net, "-o", out, "-q")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for name, line in zip(("cut.flac", "nan.wav", "text.wav"), lines, strict=True):
        assert line.startswith("skipped: ")
        assert str(mixed / name) in line
    names = {"mono.npz", "stereo.npz", "vorbis.npz", "layer3.npz"}
    assert {path.name for path in out.iterdir()} == names


def test_all_files_unreadable(net, tmp_path, capsys):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_text("text")
    before = tree(tmp_path)
    line = words(tmp_path / "a.wav", tmp_path / "b.wav", "--model", net, "-q")
    assert embed([*line, "-o", str(tmp_path / "out" / "deep")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "error: every file was skipped; nothing was written"
    assert tree(tmp_path) == before


def test_a_file_that_cannot_be_written_is_skipped(net, sounds, capsys):
    (sounds / "chirp.npz").mkdir()
    assert embed(words(sounds, "--model", net, "-q")) == 1
    assert "chirp.npz: Is a directory" in capsys.readouterr().err
    assert len([path for path in sounds.rglob("*.npz") if path.is_file()]) == 3
    assert not [path for path in sounds.rglob(".*") if path.is_file()]


def test_warnings_name_the_file_unless_quiet(net, tmp_path, capsys):
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "mute.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "short.wav", chirp(1, 8000)[:400], 8000)
    assert embed(words(tmp_path, "--model", net)) == 0
    lines = [
        line.strip("\r ") for line in capsys.readouterr().err.splitlines() if "warning: " in line
    ]
    assert lines == [
        f"warning: {tmp_path / 'mute.wav'}: all samples are zero",
        f"warning: {tmp_path / 'short.wav'}: the audio is 0.05 s long; "
        "it was zero-padded to one second",
        f"warning: {tmp_path / 'silent.wav'}: all samples are zero",
    ]
    assert embed(words(tmp_path, "--model", net, "-q")) == 0
    assert capsys.readouterr().err == ""


def test_two_inputs_with_one_output_are_refused(net, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    soundfile.write(folder / "a.wav", chirp(1, 8000), 8000)
    soundfile.write(folder / "deep" / "a.flac", chirp(1, 8000), 8000)
    before = tree(tmp_path)
    out = tmp_path / "out"
    assert embed(words(folder, "--model", net, "-o", out)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "a.wav and " in error
    assert f"would both be written to {out / 'a.npz'}" in error
    assert tree(tmp_path) == before
    # Beside the audio they are two files; but not when they lie in one folder.
    assert embed(words(folder, "--model", net, "-q")) == 0
    shutil.copy(folder / "deep" / "a.flac", folder / "a.flac")
    assert embed(words(folder, "--model", net)) == 2


def test_the_same_file_twice_is_one(net, sounds, tmp_path, monkeypatch):
    from l3prune import embedding

    done = []
    original = embedding.process_file

    def counting(path, *args, **kwargs):
        done.append(path)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(embedding, "process_file", counting)
    monkeypatch.chdir(sounds)
    link = tmp_path / "link"
    link.symlink_to(sounds)
    same = ("chirp.wav", "./chirp.wav", sounds / "chirp.wav", "deep/../chirp.wav", link)
    assert embed(words(*same, sounds, "--model", net, "-o", tmp_path / "out")) == 0
    assert len(done) == 4
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hop-size", "0"), "hop_size=0.0 is not a positive number"),
        (("--hop-size", "nan"), "hop_size=nan is not a positive number"),
        (("--hop-size", "-1"), "hop_size=-1.0 is not a positive number"),
        (("--hop-size", "inf"), "hop_size=inf is not a positive number"),
        (("--hop-size", "1e-9"), "hop_size=1e-09 is less than one sample"),
        (("--batch-size", "0"), "batch_size=0 is not a positive whole number"),
        (("--batch-size", "-3"), "batch_size=-3 is not a positive whole number"),
        (("--suffix", "../x"), "suffix='../x' has a '/'"),
        (("--model", "/nowhere/net.h5"), "no such weight file: /nowhere/net.h5"),
        (("--model", "TEXT"), "is not an HDF5 weight file"),
        (("--model", "SOUNDS"), "no such weight file"),
        (("--output-dir", "TEXT/out"), "cannot make the folder"),
        (("--output-dir", "TEXT"), "cannot make the folder"),
    ],
)
def test_embed_bad_arguments(net, sounds, tmp_path, capsys, options, message):
    text = tmp_path / "text.h5"
    text.write_text("text")
    options = [word.replace("TEXT", str(text)).replace("SOUNDS", str(sounds)) for word in options]
    before = tree(tmp_path)
    line = words(sounds, "--model", net, "--output-dir", tmp_path / "out")
    assert embed([*line, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert tree(tmp_path) == before


def test_embed_missing_input(net, sounds, tmp_path, capsys):
    line = words(sounds, "/nowhere/a.wav", "--model", net, "-o", tmp_path / "out")
    assert embed(line) == 2
    assert capsys.readouterr().err == "error: no such file or folder: /nowhere/a.wav\n"
    assert not (tmp_path / "out").exists()


def test_embed_empty_folder(net, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert embed(words(tmp_path / "empty", "--model", net, "-o", tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith("error: no audio files")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", [[], ["a.wav", "--hop-size", "long"], ["a.wav", "-e", "x"]])
def test_embed_usage(line, capsys):
    with pytest.raises(SystemExit) as end:
        embed(line)
    assert end.value.code == 2
    assert "usage: python -m l3prune " in capsys.readouterr().err


# python -m l3prune.pruning


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


RETRAIN = (
    *("--layerwise", "--retrain", "--learning-rate", "1e-2"),
    *("--train-batch-size", "5", "--train-epoch-size", "2", "--plateau-patience", "1"),
    *("--checkpoint-interval", "2", "--seed", "3", "--run-name", "run"),
    *("--sparsity", *SPARSITY),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, net):
    return Place(tmp_path_factory.mktemp("place"), net)


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


@pytest.fixture(scope="module")
def finished(place):
    """A whole run of four epochs, and what it printed."""
    import contextlib
    import io

    teacher = place.net.read_bytes()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = prune(place.line(place.folder / "finished", *RETRAIN, "-e", "4", "--quiet"))
    assert code == 0
    assert place.net.read_bytes() == teacher
    return run_folder(place.folder / "finished"), printed.getvalue()


def test_a_run_leaves_its_files_and_prints_the_table(finished):
    run_dir, printed = finished
    files = {path.name for path in run_dir.iterdir()}
    for model in ("pruned", "latest", "best_valid_loss", "checkpoint.02", "checkpoint.04"):
        assert {f"model_{model}{end}" for end in (".h5", ".json", ".plan.npz")} <= files
        files -= {f"model_{model}{end}" for end in (".h5", ".json", ".plan.npz")}
    assert files == {"config.json", "history.csv", "history.png", "report.json", "tensorboard"}
    assert (run_dir / "history.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader((run_dir / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    report = json.loads((run_dir / "report.json").read_text())
    assert list(report) == ["unpruned", "pruned", "retrained"]
    for state, row in report.items():
        assert state in printed
        assert row["validation_mse"] >= 0
    assert report["unpruned"]["validation_mse"] == 0
    assert report["pruned"]["validation_mse"] > 0
    assert report["pruned"]["nonzero"] == report["retrained"]["nonzero"]
    assert printed.splitlines()[-1] == str(run_dir)
    # A row a layer and their sum, a row a state, each table with a head, and the folder.
    assert len(printed.splitlines()) == (1 + 8 + 1) + (1 + 3) + 1


def test_the_report_is_of_the_best_epoch_and_the_validation_data(finished, place):
    run_dir, _ = finished
    report = json.loads((run_dir / "report.json").read_text())
    losses = [float(row["val_loss"]) for row in csv.DictReader((run_dir / "history.csv").open())]
    errors = [float(row["val_mse"]) for row in csv.DictReader((run_dir / "history.csv").open())]
    best = errors[losses.index(min(losses))]
    assert report["retrained"]["validation_mse"] == pytest.approx(best, rel=1e-4)
    # By hand, through the public functions.
    teacher, pruned = load_network(place.net), load_network(run_dir / "model_pruned.h5")
    squares = []
    for path in sorted(place.valid.rglob("*.*")):
        audio, rate = soundfile.read(path, dtype="float32")
        options = {"hop_size": 0.5, "center": False}
        pair = [get_embedding(audio, rate, model=net, **options)[0] for net in (teacher, pruned)]
        squares.append(np.square(pair[0] - pair[1]))
    expected = np.concatenate(squares).mean()
    assert report["pruned"]["validation_mse"] == pytest.approx(expected, rel=1e-4)


def test_every_checkpoint_keeps_the_zeros_of_the_plan(finished, place):
    run_dir, _ = finished
    fractions = [float(percent) / 100 for percent in SPARSITY]
    plan = plan_layerwise(graph.conv_weights(load_network(place.net)), fractions)
    assert len(assert_zeros(run_dir, plan)) == 5
    assert plan["conv_1"].all()
    # And it did train.
    pruned, best = layers(run_dir / "model_pruned.h5"), layers(run_dir / "model_latest.h5")
    moved = [name for name in pruned if not np.array_equal(pruned[name], best[name])]
    assert {f"conv_{n}/kernel" for n in range(1, 8)} | {"audio_embedding_layer/kernel"} <= set(
        moved
    )


def test_config_has_the_resolved_arguments_versions_and_seed(finished):
    config = json.loads((finished[0] / "config.json").read_text())
    arguments = config["arguments"]
    assert arguments["sparsity"] == [float(percent) for percent in SPARSITY]
    assert arguments["random_state"] == 3
    assert arguments["num_epochs"] == 4
    assert arguments["validation_batch_size"] == 64
    assert arguments["min_delta"] == 1e-4
    assert config["versions"].keys() >= {"l3prune", "tensorflow", "numpy"}
    assert config["command"][:3] == ["python", "-m", "l3prune.pruning"]


@pytest.fixture(scope="module")
def interrupted(place):
    """A run of two epochs, to be continued in copies."""
    assert prune(place.line(place.folder / "two", *RETRAIN, "-e", "2", "--quiet")) == 0
    return run_folder(place.folder / "two")


@pytest.fixture
def continued(interrupted, tmp_path):
    """A copy of the interrupted run."""
    return Path(shutil.copytree(interrupted, tmp_path / "continued"))


def test_a_resumed_run_equals_an_uninterrupted_one(finished, continued, place, tmp_path, capsys):
    line = place.line(tmp_path / "out", *RETRAIN, "-e", "4", "--quiet")
    assert prune([*line, "--continue-model-dir", str(continued)]) == 0
    whole = finished[0]
    for name in ("latest", "best_valid_loss", "pruned", "checkpoint.02", "checkpoint.04"):
        assert_equal_weights(continued / f"model_{name}.h5", whole / f"model_{name}.h5")
    with (
        h5py.File(continued / "model_latest.h5") as mine,
        h5py.File(whole / "model_latest.h5") as theirs,
    ):
        assert mine["attachment"].keys() == theirs["attachment"].keys()
        for name in theirs["attachment"]:
            np.testing.assert_array_equal(mine["attachment"][name], theirs["attachment"][name])
    assert (continued / "history.csv").read_text() == (whole / "history.csv").read_text()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (continued, whole)]
    assert reports[0] == reports[1]
    assert capsys.readouterr().out.splitlines()[-1] == str(continued)
    config = json.loads((continued / "config.json").read_text())
    assert config["arguments"]["num_epochs"] == 4
    assert [earlier["arguments"]["num_epochs"] for earlier in config["earlier"]] == [2]
    assert not run_folder(tmp_path / "out").exists()

    # Continued once more, it has nothing to do but report.
    before = tree(continued)
    assert prune([*line, "--continue-model-dir", str(continued)]) == 0
    after = tree(continued)
    assert after.keys() == before.keys()
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed <= {"report.json", "history.png"}
    assert json.loads((continued / "report.json").read_text()) == reports[1]


def test_without_retraining(place, tmp_path, capsys):
    out = tmp_path / "out"
    line = place.line(out, "--layerwise", "--sparsity", *SPARSITY, "--quiet")
    assert prune(line) == 0
    (run_dir,) = (out / "embedding" / "pruning" / "music" / "sea64").iterdir()
    assert {path.name for path in run_dir.iterdir()} == {
        "config.json",
        "report.json",
        *(f"model_pruned{end}" for end in (".h5", ".json", ".plan.npz")),
    }
    printed = capsys.readouterr().out
    assert "retrained" not in printed
    assert "pruned" in printed
    # Once more in the same second, and with the run's own configuration.
    assert prune(["--config", str(run_dir / "config.json")]) == 0
    assert len(list(run_dir.parent.iterdir())) == 2


@pytest.mark.parametrize("sparsity", ["90", "62.5"])
def test_global_sparsity(place, tmp_path, sparsity):
    line = place.line(tmp_path, "--global-sparsity", sparsity, "--run-name", "run", "--quiet")
    assert prune(line) == 0
    plan = plan_global(graph.conv_weights(load_network(place.net)), float(sparsity) / 100)
    run_dir = run_folder(tmp_path, "pruning")
    assert_zeros(run_dir, plan)
    report = json.loads((run_dir / "report.json").read_text())
    assert report["pruned"]["sparsity"] == pytest.approx(float(sparsity) / 100, abs=0.01)


def test_default_and_single_sparsity(place, tmp_path):
    base = place.line(tmp_path, "--layerwise", "--quiet")
    assert prune([*base, "--run-name", "default"]) == 0
    assert prune([*base, "--run-name", "one", "--sparsity", "50"]) == 0
    weights = graph.conv_weights(load_network(place.net))
    listed = plan_layerwise(weights, [0, 0.6, 0.6, 0.7, 0.5, 0.7, 0.7, 0.8])
    assert_zeros(run_folder(tmp_path, "pruning", name="default"), listed)
    assert_zeros(run_folder(tmp_path, "pruning", name="one"), plan_layerwise(weights, 0.5))


def write_shard(path, windows=6, rate=8000, seed=0, name="audio", dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file[name] = rng.integers(-9000, 9000, (windows, 1, rate)).astype(dtype)
        file["label"] = np.zeros((windows, 2), int)
    return path.parent


def test_a_run_on_shards(net, tmp_path):
    train = write_shard(tmp_path / "avc_train" / "1_0_0.h5")
    write_shard(tmp_path / "avc_train" / "1_0_1.h5", seed=1)
    valid = write_shard(tmp_path / "avc_valid" / "2_0_0.h5", seed=2)
    line = words(net, train, valid, tmp_path / "out", *RETRAIN, "-e", "2", "--quiet")
    assert prune(line) == 0
    run_dir = run_folder(tmp_path / "out", subset="avc")
    plan = PruningPlan.load(run_dir / "model_pruned.plan.npz")
    assert len(assert_zeros(run_dir, plan)) == 4
    assert (run_dir / "report.json").is_file()


def test_a_pruned_network_is_pruned_further(finished, place, tmp_path, capsys):
    # What was pruned stays pruned, also in layers that the new list leaves whole.
    start = finished[0] / "model_pruned.h5"
    more = ("0", "0", "70", "70", "70", "70", "80", "90")
    line = words(start, place.train, place.valid, tmp_path, "--layerwise", "--sparsity", *more)
    assert prune([*line, "--run-name", "run", "--quiet"]) == 0
    run_dir = run_folder(tmp_path, "pruning")
    plan = PruningPlan.load(run_dir / "model_pruned.plan.npz")
    before = PruningPlan.load(start.with_suffix(".plan.npz"))
    for layer, mask in plan.items():
        assert not (mask & ~before[layer]).any()
    np.testing.assert_array_equal(plan["conv_2"], before["conv_2"])
    assert plan["audio_embedding_layer"].sum() < before["audio_embedding_layer"].sum()
    assert_zeros(run_dir, plan)
    # And such a run is recognised as its own when it is continued.
    for name in ("history.csv", "model_latest.h5", "model_best_valid_loss.h5"):
        (run_dir / name).write_text("not read by then")
    capsys.readouterr()
    assert prune([*line, "--retrain", "-cmd", str(run_dir), "--quiet"]) == 2
    assert "model_latest.h5 is not an HDF5 weight file" in capsys.readouterr().err


def test_a_network_of_log_mels_is_pruned_on_sound(net, place, tmp_path):
    path = tmp_path / "log_mel.h5"
    save_network(load_network(net, input="log_mel"), path)
    line = words(path, place.train, place.valid, tmp_path, "--layerwise", "--run-name", "run")
    assert prune([*line, "--quiet"]) == 0
    pruned = load_network(run_folder(tmp_path, "pruning") / "model_pruned.h5")
    assert pruned.input_shape == (None, 1, 8000)


# EdgeL3's own job line.

JOB = (
    *("--num-epochs", "300", "--train-epoch-size", "4096", "--train-batch-size", "64"),
    *("--model-type", "cnn_L3_melspec2", "--validation-epoch-size", "1024"),
    *("--validation-batch-size", "64", "--checkpoint-interval", "10", "--retrain"),
    *("--layerwise", "--gpus", "4", "--learning-rate", "0.00001", "--random-state", "20180216"),
    *("--gsheet-id", "x", "--google-dev-app-name", "y", "--verbose"),
    *("--sparsity", "0", "70", "70", "75", "60", "80", "80", "85"),
)


def test_the_job_line_is_parsed_as_it_stands():
    args = l3prune.pruning.parse(["w.h5", "music_train", "music_valid", "out", *JOB])
    assert (args.num_epochs, args.train_epoch_size, args.validation_epoch_size) == (300, 4096, 1024)
    assert (args.train_batch_size, args.validation_batch_size) == (64, 64)
    assert (args.learning_rate, args.random_state) == (1e-5, 20180216)
    assert args.sparsity == [0, 70, 70, 75, 60, 80, 80, 85]
    assert args.layerwise
    assert args.retrain
    assert (args.weight_path, args.output_dir) == ("w.h5", "out")
    # Flags before, between and after the folders, as the original took them.
    for line in (
        ["--layerwise", "w.h5", "music_train", "music_valid", "out", "--retrain"],
        ["w.h5", "--layerwise", "music_train", "-v", "music_valid", "--retrain", "out"],
        ["-layerwise", "-ret", "w.h5", "music_train", "music_valid", "-r", "5", "out"],
    ):
        args = l3prune.pruning.parse(line)
        assert (args.weight_path, args.train_data_dir) == ("w.h5", "music_train")
        assert (args.validation_data_dir, args.output_dir) == ("music_valid", "out")
        assert args.layerwise
        assert args.retrain


def test_the_job_line_runs(place, tmp_path, capsys):
    path = tmp_path / "mel256.h5"
    save_network(create_network("mel256", filters=[2] * 8), path)
    job = list(JOB)
    for flag, value in {
        "--num-epochs": "1",
        "--train-epoch-size": "2",
        "--train-batch-size": "4",
        "--validation-epoch-size": "1",
        "--validation-batch-size": "4",
    }.items():
        job[job.index(flag) + 1] = value
    assert prune(words(path, place.train, place.valid, tmp_path / "out", *job)) == 0
    captured = capsys.readouterr()
    warnings = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    for flag in ("--gsheet-id", "--google-dev-app-name", "--gpus"):
        assert flag in warnings[0]
    kind = tmp_path / "out" / "embedding" / "pruning_kd" / "music" / "cnn_L3_melspec2"
    (run_dir,) = kind.iterdir()
    plan = PruningPlan.load(run_dir / "model_pruned.plan.npz")
    assert_zeros(run_dir, plan)
    assert "retrained" in captured.out


def test_google_flags_without_values_warn_too(place, tmp_path, capsys):
    line = place.line(tmp_path, "--layerwise", "--quiet", "--gsheet-id", "--google-dev-app-name")
    assert prune([*line, "--verbose"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: --gsheet-id, --google-dev-app-name without effect; results are CSV and JSON files"
    ]


# --config.


def test_a_runs_own_config_repeats_it(finished, place, tmp_path):
    config = finished[0] / "config.json"
    args = l3prune.pruning.parse(["--config", str(config)])
    stored = json.loads(config.read_text())["arguments"]
    for name, value in stored.items():
        assert getattr(args, name) == value
    changed = ["--config", str(config), "--learning-rate", "0.5", "--seed", "9", "-e", "1"]
    args = l3prune.pruning.parse([*changed, "--sparsity", "10"])
    assert (args.learning_rate, args.random_state, args.num_epochs) == (0.5, 9, 1)
    assert args.sparsity == [10]
    assert args.train_batch_size == 5
    assert args.weight_path == str(place.net)


def test_config_keeps_zeros(place, tmp_path):
    zeros = ("--checkpoint-interval", "0", "--min-delta", "0", "--seed", "0", "--quiet")
    line = place.line(tmp_path, "--layerwise", *zeros, "--early-stopping-patience", "0")
    assert prune([*line, "--run-name", "run", "--sparsity", "0"]) == 0
    args = l3prune.pruning.parse(["--config", str(run_folder(tmp_path, "pruning") / "config.json")])
    assert args.checkpoint_interval == args.min_delta == args.random_state == 0
    assert args.early_stopping_patience == 0
    assert args.sparsity == [0]


def test_config_names_and_types(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(
        json.dumps(
            {
                "weight_path": "w",
                "train-data-dir": "t",
                "validation_data_dir": "v",
                "output_dir": "o",
                "learning_rate": 1,
                "min-delta": 0.5,
                "seed": 4,
                "retrain": True,
                "layerwise": True,
                "quiet": False,
                "sparsity": 50,
                "cache_dir": None,
                "gpus": 4,
            }
        )
    )
    args = l3prune.pruning.parse(["--config", str(path)])
    assert (args.weight_path, args.train_data_dir, args.output_dir) == ("w", "t", "o")
    assert (args.learning_rate, args.min_delta, args.random_state) == (1.0, 0.5, 4)
    assert (args.retrain, args.layerwise, args.sparsity) == (True, True, [50.0])
    assert (args.cache_dir, args.gpus) == (None, "4")
    args = l3prune.pruning.parse(words("--config", path, "W", "T", "V", "O"))
    assert (args.weight_path, args.output_dir) == ("W", "O")
    assert args.quiet is False
    # How much to prune is one choice: the flags' replaces the file's.
    args = l3prune.pruning.parse(words("--config", path, "--global-sparsity", "90"))
    assert (args.global_sparsity, args.sparsity, args.layerwise) == (90, None, False)
    args = l3prune.pruning.parse(words("--config", path, "--sparsity", "90"))
    assert (args.sparsity, args.layerwise) == ([90], True)


def test_a_run_with_config_writes_one_that_works(place, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"layerwise": True, "sparsity": [50] * 8, "quiet": True}))
    assert prune([*place.line(tmp_path / "a"), "--config", str(path), "--run-name", "run"]) == 0
    own = run_folder(tmp_path / "a", "pruning") / "config.json"
    assert prune(words("--config", own, "--run-name", "again", "--quiet")) == 0
    assert (own.parent.parent / "again" / "report.json").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object of options"),
        ('"x"', "is not a JSON object of options"),
        ('{"sparsities": [1]}', "option 'sparsities' is unknown"),
        ('{"help": true}', "option 'help' is unknown"),
        ('{"config": "c.json"}', "option 'config' is unknown"),
        ('{"num_epochs": "many"}', "num_epochs='many' is not a whole number"),
        ('{"num_epochs": 2.5}', "num_epochs=2.5 is not a whole number"),
        ('{"num_epochs": true}', "num_epochs=True is not a whole number"),
        ('{"num_epochs": [1]}', "num_epochs=[1] is not a whole number"),
        ('{"learning_rate": "1e-3"}', "learning_rate='1e-3' is not a number"),
        ('{"learning_rate": -1}', "learning_rate=-1.0 is not a positive number"),
        ('{"sparsity": ["a"]}', "sparsity=['a'] is not a number"),
        ('{"sparsity": []}', "sparsity=[] has no values"),
        ('{"sparsity": [NaN]}', "sparsity nan is not in percent"),
        ('{"sparsity": [120]}', "sparsity 120 is not in percent"),
        ('{"retrain": "yes"}', "retrain='yes' is not true or false"),
        ('{"criterion": ["l1"]}', "criterion=['l1'] is not a text"),
        ('{"finetune": true}', "--finetune is not available yet"),
        ('{"weight_path": 3.5}', "weight_path=3.5 is not a text"),
    ],
)
def test_bad_config(place, tmp_path, capsys, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    refuse(capsys, place.line(tmp_path / "out", "--config", path, "--layerwise"), message, tmp_path)


# Bad input: one line on stderr, exit code 2, nothing written.


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


def test_filterwise_from_the_command_line(place, tmp_path):
    """EdgeL3's --num_filters; the embedding gets as short as the last layer."""
    counts = [3, 2, 4, 1, 3, 2, 2, 3]
    options = ("--filterwise", "--num_filters", *map(str, counts))
    run_dir, report = pruned_by(place, tmp_path / "out", *options)
    assert run_dir.parts[-4:] == ("reduced", "music", "sea64", "run")
    network = load_network(run_dir / "model_pruned.h5")
    assert [layer.filters for layer in graph.convolutions(network).values()] == counts
    assert network.output_shape == (None, 3)
    assert report["pruned"]["validation_mse"] is None
    assert report["pruned"]["macs"] < report["unpruned"]["macs"]
    # Nothing of the teacher changed, and what is left is a part of it.
    teacher = load_network(place.net)
    kernel = teacher.get_layer("conv_1").kernel.numpy()
    kept = np.sort(np.abs(kernel).sum(axis=(0, 1, 2)))[1:].sum()
    assert np.abs(network.get_layer("conv_1").kernel.numpy()).sum() == pytest.approx(kept)


def test_filterwise_with_retraining(place, tmp_path, capsys):
    """Half the filters of all layers but the last: the embedding stays comparable."""
    line = place.line(
        tmp_path / "out",
        *("--filterwise", "--filter-ratio", "50", "--retrain", "-e", "3", "-lr", "1e-3"),
        *("-tbs", "4", "--batch-norm", "freeze", "--run-name", "run", "--quiet"),
    )
    assert prune(line) == 0
    run_dir = run_folder(tmp_path / "out", "reduced_kd")
    report = json.loads((run_dir / "report.json").read_text())
    assert 0 < report["retrained"]["validation_mse"] < report["pruned"]["validation_mse"]
    network = load_network(run_dir / "model_best_valid_loss.h5")
    assert [layer.filters for layer in graph.convolutions(network).values()] == [2] * 7 + [4]
    capsys.readouterr()
    assert prune([*line[:-3], "--quiet", "--continue-model-dir", str(run_dir)]) == 0


@pytest.mark.parametrize(
    ("options", "filters"),
    [
        (("--filter-ratio", "25"), [3] * 7 + [4]),
        (("--filter-ratio", "0", "25", "50", "75", "0", "25", "50", "75"), [4, 3, 2, 1] * 2),
        (("--filter-ratio", "25", "--round-to", "2"), [4] * 8),
        (("--filter-ratio", "70", "--criterion", "geometric_median"), [1] * 7 + [4]),
        (("--budget", "filters=25%"), None),
        (("--global-filter-ratio", "50", "--criterion", "bn_gamma"), None),
    ],
)
def test_ways_to_remove_filters(place, tmp_path, options, filters):
    run_dir, _ = pruned_by(place, tmp_path / "out", "--filterwise", *options)
    network = load_network(run_dir / "model_pruned.h5")
    found = [layer.filters for layer in graph.convolutions(network).values()]
    if filters is None:
        assert found[-1] == 4
        assert sum(found) in (24, 18)  # of 32, or 14 of 28 and the last 4
    else:
        assert found == filters


@pytest.mark.parametrize(
    ("options", "sparsity"),
    [
        (("--pattern", "1:4"), None),
        (("--layerwise", "--sparsity", "50", "--blocks", "2x2"), None),
        (("--budget", "sparsity=60"), 0.6),
        (("--budget", "sparsity=60", "--allocation", "erk"), 0.6),
    ],
)
def test_ways_to_zero_weights(place, tmp_path, options, sparsity):
    run_dir, report = pruned_by(place, tmp_path / "out", *options)
    assert run_dir.parts[-4] == "pruning"
    masks = graph.masks(load_network(run_dir / "model_pruned.h5"))
    if sparsity is not None:
        assert report["pruned"]["sparsity"] == pytest.approx(sparsity, abs=1e-3)
    elif "--pattern" in options:
        assert (masks["conv_3"].sum(axis=2) == 1).all()
    else:
        blocks = masks["conv_3"].reshape(3, 3, 2, 2, 2, 2).sum(axis=(3, 5))
        assert set(np.unique(blocks)) == {0, 4}


def test_a_flag_sets_the_configs_choice_aside(place, tmp_path):
    config = tmp_path / "c.json"
    config.write_text('{"layerwise": true, "sparsity": [50], "num_epochs": 2}')
    options = ("--config", str(config), "--filterwise", "--filter-ratio", "50")
    run_dir, _ = pruned_by(place, tmp_path / "a", *options)
    assert run_dir.parts[-4] == "reduced"
    config.write_text('{"filterwise": true, "filter_ratio": [50]}')
    run_dir, _ = pruned_by(place, tmp_path / "b", "--config", str(config), "--pattern", "2:4")
    assert run_dir.parts[-4] == "pruning"
    run_dir, _ = pruned_by(place, tmp_path / "c", "--config", str(config))
    assert run_dir.parts[-4] == "reduced"


# Students: fewer layers, other networks, smaller embeddings.

STUDENT = (
    *("--retrain", "-e", "8", "-lr", "1e-2", "-tbs", "4", "--batch-norm", "freeze"),
    *("--run-name", "run", "--quiet"),
)


def test_depth_students_from_the_command_line(place, tmp_path):
    """Table III: EdgeL3's --include_layers, and the embedding of an earlier layer."""
    run_dir, report = pruned_by(place, tmp_path / "a", "--include_layers", *"10111111")
    assert run_dir.parts[-4:] == ("reduced", "music", "sea64", "run")
    network = load_network(run_dir / "model_pruned.h5")
    assert "conv_2" not in graph.convolutions(network)
    assert len(graph.convolutions(network)) == 7
    assert report["student"]["nonzero"] < report["unpruned"]["nonzero"]
    run_dir, report = pruned_by(place, tmp_path / "b", "--from-conv-layer", "7")
    network = load_network(run_dir / "model_pruned.h5")
    teacher = load_network(place.net)
    assert list(graph.convolutions(network))[-1] == "conv_7"
    for name, layer in graph.convolutions(network).items():
        np.testing.assert_array_equal(layer.kernel, teacher.get_layer(name).kernel)


def test_a_depth_student_is_pruned_and_retrained(place, tmp_path):
    line = place.line(
        tmp_path, "--include_layers", *"11011111", "--layerwise", "--sparsity", "50", *STUDENT
    )
    assert prune(line) == 0
    run_dir = run_folder(tmp_path, "reduced_kd")
    report = json.loads((run_dir / "report.json").read_text())
    assert set(report) == {"unpruned", "pruned", "retrained"}
    assert report["retrained"]["validation_mse"] < report["pruned"]["validation_mse"]
    network = load_network(run_dir / "model_best_valid_loss.h5")
    assert len(graph.masks(network)) == 7
    assert report["retrained"]["sparsity"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("kind", ["pca", "linear"])
def test_a_smaller_embedding_is_distilled(place, tmp_path, capsys, kind):
    counts = ("--filterwise", "--num_filters", *["3"] * 8)
    line = place.line(tmp_path, *counts, "--reduction", kind, *STUDENT)
    assert prune(line) == 0
    printed = capsys.readouterr().out
    run_dir = run_folder(tmp_path, "reduced_kd")
    report = json.loads((run_dir / "report.json").read_text())
    assert report["unpruned"]["validation_unexplained"] is None
    assert 0 < report["retrained"]["validation_unexplained"] < 1.5
    if kind == "pca":
        before = report["pruned"]["validation_unexplained"]
        assert report["retrained"]["validation_unexplained"] < before
    else:
        assert report["pruned"]["validation_unexplained"] is None
    assert "validation_unexplained" in printed
    assert load_network(run_dir / "model_best_valid_loss.h5").output_shape == (None, 3)
    # It goes on, with the map that it began with.
    before = (run_dir / "reduction.npz").read_bytes()
    assert prune([*line, "--continue-model-dir", str(run_dir)]) == 0
    assert (run_dir / "reduction.npz").read_bytes() == before
    capsys.readouterr()
    others = place.line(tmp_path, *counts, "--reduction", "linear", *STUDENT)
    if kind == "pca":
        assert prune([*others, "--continue-model-dir", str(run_dir)]) == 2
        assert "reduction" in capsys.readouterr().err


def test_sea_from_the_command_line(place, tmp_path):
    """A fresh student at 8 kHz learns a wider teacher's components at 48 kHz."""
    teacher = create_network("mel128", filters=[1] * 7 + [70])
    save_network(teacher, tmp_path / "teacher.h5")
    line = words(tmp_path / "teacher.h5", place.train, place.valid, tmp_path / "out")
    options = ("--student", "sea64", "--filterwise", "--num_filters", *["2"] * 7, "64")
    assert prune([*line, *options, "--reduction", "pca", "--hop-size", "0.05", *STUDENT]) == 0
    run_dir = run_folder(tmp_path / "out", "reduced_kd", network="mel128")
    network = load_network(run_dir / "model_best_valid_loss.h5")
    assert network.input_shape == (None, 1, 8000)
    assert network.output_shape == (None, 64)
    first = load_network(run_dir / "model_pruned.h5")
    report = json.loads((run_dir / "report.json").read_text())
    assert report["student" if "student" in report else "pruned"]["validation_unexplained"] > 0
    again = [*line, *options, "--run-name", "again", "--quiet", "--hop-size", "0.05"]
    assert prune(again) == 0
    run_dir = run_folder(tmp_path / "out", "reduced", network="mel128", name="again")
    # The seed makes the fresh weights.
    for one, other in zip(
        first.get_weights(), load_network(run_dir / "model_pruned.h5").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    # Other front ends do not compare without a reduction.
    assert json.loads((run_dir / "report.json").read_text())["pruned"]["validation_mse"] is None


# Masks that change in retraining.

GRADUAL = (
    *("--retrain", "-lr", "1e-3", "-tbs", "4", "-tes", "3", "-e", "4", "--seed", "3"),
    *("--run-name", "run", "--quiet", "--checkpoint-interval", "1", "--frequency", "2"),
)


@pytest.mark.parametrize(
    ("options", "sparsities"),
    [
        (
            ("--layerwise", "--sparsity", *SPARSITY, "--mask-schedule", "polynomial"),
            # Of steps 0, 2, 4, 6; an epoch has three.
            [0.7, 0.98, 1, 1],
        ),
        (
            ("--global-sparsity", "60", "--mask-schedule", "constant", "--begin-step", "4"),
            [0, 1, 1, 1],
        ),
        (
            (
                *("--layerwise", "--sparsity", *["0"] * 5, "50", "50", "50"),
                *("--mask-schedule", "layer-by-layer", "--epochs-per-layer", "1"),
            ),
            [1 / 3, 2 / 3, 1, 1],
        ),
        (("--budget", "sparsity=60", "--mask-schedule", "rigl"), [1, 1, 1, 1]),
    ],
)
def test_masks_that_change(place, tmp_path, options, sparsities):
    assert prune(place.line(tmp_path, *options, *GRADUAL)) == 0
    run_dir = run_folder(tmp_path)
    rows = list(csv.DictReader((run_dir / "history.csv").open()))
    report = json.loads((run_dir / "report.json").read_text())
    final = report["retrained"]["sparsity"]
    found = [float(row["sparsity"]) / final for row in rows]
    assert found == pytest.approx(sparsities, abs=0.035)
    assert ("pruned" in report) == ("rigl" in options)
    # The plan of one shot has as many zeros.
    shot, once = pruned_by(place, tmp_path / "shot", *options[: options.index("--mask-schedule")])
    assert once["pruned"]["nonzero"] == report["retrained"]["nonzero"]
    network = load_network(run_dir / "model_best_valid_loss.h5")
    weights = graph.conv_weights(network)
    masks = graph.masks(network)
    assert all(not weights[name].kernel[~mask].any() for name, mask in masks.items())
    if "rigl" in options:
        begun = graph.masks(load_network(shot / "model_pruned.h5"))
        assert any((masks[name] != begun[name]).any() for name in masks)


def test_a_gradual_run_goes_on_in_the_middle(place, tmp_path, monkeypatch):
    options = ("--layerwise", "--sparsity", *SPARSITY, "--mask-schedule", "polynomial")
    whole = place.line(tmp_path / "whole", *options, "--end-step", "7", *GRADUAL)
    assert prune(whole) == 0
    line = place.line(tmp_path / "cut", *options, "--end-step", "7", *GRADUAL)

    class Cut(GradualPruning):
        def _update(self, step):
            if step == 7:
                raise KeyboardInterrupt
            return super()._update(step)

    with monkeypatch.context() as patch:
        patch.setattr(l3prune.schedules, "GradualPruning", Cut)
        assert prune(line) == 130
    cut = run_folder(tmp_path / "cut")
    assert not (cut / "model_best_valid_loss.h5").exists()
    assert prune([*line, "--continue-model-dir", str(cut)]) == 0
    for name in ("latest", "best_valid_loss", "checkpoint.03"):
        assert_equal_weights(
            cut / f"model_{name}.h5", run_folder(tmp_path / "whole") / f"model_{name}.h5"
        )


def test_a_schedule_that_ends_after_the_run_leaves_no_folder(place, tmp_path, capsys):
    options = ("--layerwise", "--sparsity", "50", "--mask-schedule", "polynomial")
    assert prune(place.line(tmp_path / "out", *options, *GRADUAL, "--end-step", "12")) == 2
    assert "final sparsity after 12 steps and the run has 12" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Filters scored on data; budgets shared out by a scan.


@pytest.mark.parametrize("criterion", ["mean_activation", "apoz", "taylor"])
def test_filters_are_scored_on_training_windows(place, tmp_path, criterion):
    options = ("--filterwise", "--filter-ratio", "50", "--criterion", criterion)
    run_dir, _ = pruned_by(place, tmp_path / "a", *options, "--criterion-windows", "8")
    network = load_network(run_dir / "model_pruned.h5")
    assert [layer.filters for layer in graph.convolutions(network).values()] == [2] * 7 + [4]
    # The same filters as by the function on the same windows.
    teacher = load_network(place.net)
    source = open_windows(place.train, 8000, place.cache, quiet=True)
    windows = Spread(source, 8).read(np.arange(8))
    mean = inference(teacher)(windows).mean(axis=0, keepdims=True)
    batches = iter([(windows, np.repeat(mean, 8, axis=0))])
    scores = DATA_CRITERIA[criterion](teacher, batches)["conv_1"]
    assert scores.any()
    kept = np.sort(np.argsort(-scores, kind="stable")[:2])
    np.testing.assert_array_equal(
        network.get_layer("conv_1").kernel, teacher.get_layer("conv_1").kernel.numpy()[..., kept]
    )


def test_random_filters(place, tmp_path):
    options = ("--filterwise", "--filter-ratio", "50", "--criterion", "random")
    run_dir, _ = pruned_by(place, tmp_path, *options)
    network = load_network(run_dir / "model_pruned.h5")
    assert [layer.filters for layer in graph.convolutions(network).values()] == [2] * 7 + [4]


def test_a_budget_is_shared_out_by_a_scan(place, tmp_path, capsys):
    scan = tmp_path / "scan"
    line = words(place.net, place.valid, scan, "--amounts", 50, 80, 90, "--quiet")
    budget = ("--budget", "sparsity=60")
    assert sensitivity([*line, *budget, "--allocation", "sensitivity"]) == 0
    lists = json.loads((scan / "lists.json").read_text())["lists"]
    options = (*budget, "--allocation", "sensitivity", "--sensitivity", str(scan))
    run_dir, report = pruned_by(place, tmp_path / "a", *options)
    assert report["pruned"]["sparsity"] == pytest.approx(0.6, abs=1e-3)
    other, _ = pruned_by(place, tmp_path / "b", *lists[0]["options"].split())
    assert_equal_weights(run_dir / "model_pruned.h5", other / "model_pruned.h5")
    capsys.readouterr()
    refuse(
        capsys,
        place.line(tmp_path / "c", *options, "--criterion", "random"),
        "is of another criterion: 'magnitude' there, 'random' here",
        tmp_path,
    )
    refuse(
        capsys,
        place.line(tmp_path / "c", *options, "--filterwise"),
        "is of another mode: 'layerwise' there, 'filterwise' here",
        tmp_path,
    )


GRADUAL_ONE = ("--layerwise", "--sparsity", "50", "--retrain", "-e", "2", "--mask-schedule")
BY_SCAN = ("--allocation", "sensitivity", "--sensitivity")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to do: give --layerwise, --filterwise, --pattern, --budget, --global-sparsi"),
        (("--sparsity", "50"), "--sparsity is for --layerwise"),
        (("--retrain",), "nothing to do"),
        (("--layerwise", "--sparsity", "0", "50"), "2 sparsities given for 8 convolutions"),
        (("--layerwise", "--sparsity", *["5"] * 9), "9 sparsities given for 8 convolutions"),
        (("--layerwise", "--sparsity", *SPARSITY[1:], "120"), "sparsity 120 is not in percent"),
        (("--layerwise", "--sparsity", "100"), "sparsity 100 is not in percent"),
        (("--layerwise", "--sparsity", *SPARSITY[1:], "nan"), "sparsity nan is not in percent"),
        (("--layerwise", "--sparsity", "-5"), "sparsity -5 is not in percent"),
        (("--layerwise", "--sparsity", "inf"), "sparsity inf is not in percent"),
        (("--layerwise", "--sparsity", "99.99"), "would lose all its weights"),
        (("--global-sparsity", "120"), "sparsity 120 is not in percent"),
        (("--global-sparsity", "nan"), "sparsity nan is not in percent"),
        (("--global-sparsity", "50", "--layerwise"), "drop --layerwise"),
        (("--global-sparsity", "50", "--sparsity", "5"), "not both"),
        (("--layerwise", "--criterion", "best"), "criterion 'best' is unknown"),
        (("--layerwise", "--model-type", "cnn_L3_melspec2"), "holds the network sea64, not mel256"),
        (("--layerwise", "--model-type", "cnn_L3_orig"), "network 'cnn_L3_orig' is unknown"),
        (("--layerwise", "--finetune"), "--finetune is not available yet"),
        (("--layerwise", "-finetune"), "--finetune is not available yet"),
        (("--filterwise", "--retrain"), "--filterwise needs --num_filters, --filter-ratio, --gl"),
        (("--filterwise", "--sparsity", "50"), "--filterwise needs --num_filters"),
        (("--filterwise", "--layerwise", "-filters", "2"), "removes filters: choose"),
        (("--filterwise", "-filters", "2", "2"), "2 counts given for 8 convolutions"),
        (("--filterwise", "-filters", *["2"] * 7, "5"), "5 filters cannot stay of 4"),
        (("--filterwise", "-filters", *["2"] * 7, "0"), "0 filters cannot stay of 4"),
        (("--filterwise", "--filter-ratio", "100"), "filter ratio 100 is not in percent"),
        (("--filterwise", "--filter-ratio", "50", "50"), "2 ratios given for 8"),
        (("--filterwise", "--global-filter-ratio", "-1"), "filter ratio -1 is not in percent"),
        (("--filterwise", "--filter-ratio", "5", "--num_filters", "2"), "not both"),
        (("--filterwise", "--filter-ratio", "50", "--criterion", "magnitude"), "cannot rank whol"),
        (("--filterwise", "--filter-ratio", "50", "--round-to", "0"), "round_to=0 is not"),
        (("--filterwise", "-filters", *["2"] * 8, "--round-to", "2"), "round_to is for ratios"),
        (("--layerwise", "--num_filters", *["8"] * 8), "--num_filters is for --filterwise"),
        (("--filter-ratio", "50"), "--filter-ratio is for --filterwise"),
        (("--pattern", "2-4"), "pattern '2-4' is not N:M, such as 2:4"),
        (("--pattern", "4:2"), "pattern"),
        (("--layerwise", "--blocks", "4", "--sparsity", "50"), "block '4' is not IxO, such as 4x4"),
        (("--pattern", "2:4", "--blocks", "2x2"), "--blocks goes with --layerwise --sparsity"),
        (("--budget", "watts<=3"), "budget of 'watts' is unknown"),
        (("--budget", "bytes<=10"), "cannot be met"),
        (("--budget", "sparsity=50", "--allocation", "fair"), "allocation='fair' is unknown"),
        (("--budget", "sparsity=50", "--pattern", "2:4"), "not both"),
        (("--include_layers", "1", "1"), "give 8 zeros and ones, not all of them zero"),
        (("--from-conv-layer", "4"), "from_convlayer=4; allowed: the layers of 5, 6, 7, 8"),
        (("--student", "/nowhere.h5"), "/nowhere.h5"),
        (("--student", "mel256", "--retrain"), "different front ends"),
        (("--include_layers", *"11111111", "--reduction", "pca"), "give --retrain too"),
        (("--layerwise", "--retrain", "--reduction", "ica"), "--reduction 'ica'; allowed: pca"),
        (("--filterwise", "-filters", *["2"] * 8, "--retrain"), "give reduction='pca' or 'linear'"),
        (("--layerwise", "--sparsity", "5", "--criterion", "taylor"), "taylor scores filters"),
        (("--filterwise", "--filter-ratio", "5", "--criterion-windows", "-1"), "windows -1 is not"),
        (("--layerwise", "--mask-schedule", "linear", "--retrain"), "--mask-schedule 'linear'; al"),
        (("--layerwise", "--mask-schedule", "rigl"), "give --retrain too"),
        (("--layerwise", "--ramp"), "--ramp is for --mask-schedule"),
        (("--layerwise", "--frequency", "0", "--retrain"), "--frequency is for --mask-schedule"),
        (("--pattern", "2:4", "--mask-schedule", "rigl", "--retrain"), "not for --pattern"),
        (("--student", "sea64", "--mask-schedule", "rigl", "--retrain"), "needs a sparsity to co"),
        ((*GRADUAL_ONE, "rigl", "--begin-step", "3"), "begin_step is not for the mask schedule"),
        ((*GRADUAL_ONE, "constant", "--frequency", "0"), "frequency=0 is not a whole number"),
        ((*GRADUAL_ONE, "polynomial", "--initial-sparsity", "60"), "initial_sparsity=0.6 is above"),
        ((*GRADUAL_ONE, "rigl", "--rigl-alpha", "2"), "alpha=2.0 is not a number in (0, 1]"),
        ((*GRADUAL_ONE, "rigl", "--blocks", "2x2"), "RigL moves single weights"),
        (("--budget", "sparsity=5", "--allocation", "sensitivity"), "--sensitivity DIR"),
        (("--budget", "sparsity=5", "--sensitivity", "EMPTY"), "is for --budget with --allocation"),
        (("--budget", "sparsity=5", *BY_SCAN, "EMPTY"), "has no sensitivity.json"),
        (("--layerwise", "--test-model"), "--test-model is not available yet"),
        (("--layerwise", "--retrain", "--num-epochs", "0"), "epochs=0 is not a whole number"),
        (("--layerwise", "--learning-rate", "0"), "learning_rate=0.0 is not a positive"),
        (("--layerwise", "--learning-rate", "nan"), "learning_rate=nan is not a positive"),
        (("--layerwise", "--min-delta", "nan"), "min_delta=nan"),
        (("--layerwise", "--schedule", "step"), "schedule='step'; allowed"),
        (("--layerwise", "--batch-norm", "x"), "batch_norm='x'; allowed"),
        (("--layerwise", "--seed", "-1"), "seed=-1"),
        (("--layerwise", "--seed", str(2**40)), "seed"),
        (("--layerwise", "--retrain", "-tbs", "0"), "--train-batch-size 0 is not a whole"),
        (("--layerwise", "--retrain", "-vbs", "-1"), "--validation-batch-size -1 is not"),
        (("--layerwise", "--retrain", "-tes", "0"), "--train-epoch-size 0 is not a whole"),
        (("--layerwise", "--retrain", "-ves", "0"), "--validation-epoch-size 0 is not"),
        (("--layerwise", "--hop-size", "0"), "hop_size=0.0 is not a positive"),
        (("--layerwise", "--hop-size", "nan"), "hop_size=nan is not a positive"),
        (("--layerwise", "--run-name", "a/b"), "--run-name 'a/b' is not the name of one folder"),
        (("--layerwise", "--run-name", ".."), "--run-name '..' is not the name of one folder"),
        (("--layerwise", "--run-name", "x" * 300), "cannot make the folder"),
        (("--layerwise", "--cache-dir", "TEXT/cache"), "cannot make the folder"),
        (("--layerwise", "--config", "/nowhere/c.json"), "cannot read /nowhere/c.json"),
        (("--layerwise", "--continue-model-dir", "EMPTY"), "give --retrain too"),
        (("--layerwise", "--retrain", "-cmd", "EMPTY"), "has no history.csv"),
        (("--layerwise", "--retrain", "-cmd", "/nowhere/run"), "has no history.csv"),
    ],
)
def test_prune_bad_arguments(place, tmp_path, capsys, options, message):
    (tmp_path / "text").write_text("text")
    (tmp_path / "empty").mkdir()
    options = [
        word.replace("TEXT", str(tmp_path / "text")).replace("EMPTY", str(tmp_path / "empty"))
        for word in options
    ]
    line = place.line(tmp_path / "out" / "deep", *options, cache=False)
    refuse(capsys, line, message, tmp_path)


def text_audio(folder):
    folder.mkdir()
    (folder / "a.wav").write_text("text")


def one_text_among_audio(folder):
    make_sounds(folder)
    (folder / "zz.wav").write_text("text")


def empty_audio(folder):
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(0), 8000)


def truncated_shard(folder):
    path = write_shard(folder / "a.h5") / "a.h5"
    path.write_bytes(path.read_bytes()[:4000])


DATA = {
    "missing": (lambda folder: None, "no such folder"),
    "a file": (lambda folder: folder.write_text("x"), "no such folder"),
    "empty": (lambda folder: folder.mkdir(), "holds no audio files"),
    "text as wav": (text_audio, "a.wav cannot be decoded as audio"),
    "one text as wav": (one_text_among_audio, "zz.wav cannot be decoded as audio"),
    "no samples": (empty_audio, "a.wav has no samples"),
    "no audio": (lambda folder: write_shard(folder / "a.h5", name="x"), "has no dataset 'audio'"),
    "truncated": (truncated_shard, "is not an HDF5 shard, or is damaged"),
    "dtype": (lambda folder: write_shard(folder / "a.h5", dtype=np.float32), "'audio' is float32"),
    "rate": (lambda folder: write_shard(folder / "a.h5", rate=48000), "'audio' is int16 of shape"),
    "no windows": (lambda folder: write_shard(folder / "a.h5", windows=0), "holds no windows"),
    "mixed": (
        lambda folder: shutil.copy(
            write_shard(make_sounds(folder) / "a.h5") / "a.h5", folder / "b.h5"
        ),
        "holds both audio files",
    ),
}


@pytest.mark.parametrize(
    ("side", "kind"),
    [
        *(("train", kind) for kind in DATA),
        # By then the training data are known to be good, but not decoded yet.
        *(("validation", kind) for kind in ("empty", "one text as wav", "truncated")),
    ],
)
def test_bad_data(place, tmp_path, capsys, kind, side):
    make, message = DATA[kind]
    bad = tmp_path / "bad"
    make(bad)
    sides = [bad, place.valid] if side == "train" else [place.train, bad]
    line = words(place.net, *sides, tmp_path / "out", *RETRAIN, "-e", "2")
    refuse(capsys, line, message, tmp_path)


def another_network(path):
    save_network(create_network("sea64", filters=[4] * 7 + [5]), path)
    with h5py.File(path, "r+") as file:
        description = json.loads(file.attrs["l3prune"])
        description["arguments"]["filters"] = [4] * 8
        file.attrs["l3prune"] = json.dumps(description)


def unknown_widths(path):
    save_network(create_network("sea64", filters=[4] * 8), path)
    with h5py.File(path, "r+") as file:
        del file.attrs["l3prune"]


def nan_weights(path):
    network = make_tiny()
    network.get_layer("conv_3").bias.assign([np.nan] * 4)
    save_network(network, path)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: None, (), "no such weight file"),
        (lambda path: path.mkdir(), (), "no such weight file"),
        (lambda path: path.write_text("text"), (), "is not an HDF5 weight file, or is damaged"),
        (lambda path: path.write_bytes(b""), (), "is not an HDF5 weight file, or is damaged"),
        (lambda path: write_shard(path), (), "no Keras weight file: it has no layer_names"),
        (another_network, (), "claims [4, 4, 4, 4, 4, 4, 4, 4] filters and holds"),
        (unknown_widths, (), "holds no known network"),
        (unknown_widths, ("-mt", "sea64"), "these are weights for another network"),
        (nan_weights, (), "has NaN or infinite values"),
    ],
    ids=["missing", "folder", "text", "empty", "shard", "another", "unknown", "widths", "nan"],
)
def test_bad_weights(place, tmp_path, capsys, make, options, message):
    path = tmp_path / "net.h5"
    make(path)
    line = words(path, place.train, place.valid, tmp_path / "out", *RETRAIN, "-e", "2", *options)
    refuse(capsys, line, message, tmp_path)


def test_unwritable_output(place, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        for cache in (True, False):
            line = place.line(out, *RETRAIN, "-e", "2", cache=cache)
            refuse(capsys, line, "cannot make the folder", tmp_path)


def test_a_run_name_that_is_taken(interrupted, place, capsys):
    line = place.line(place.folder / "two", *RETRAIN, "-e", "2")
    refuse(capsys, line, "run exists; give another --run-name", place.folder / "two")


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda run: (run / "history.csv").unlink(), (), "has no history.csv"),
        (lambda run: (run / "model_latest.h5").unlink(), (), "has no model_latest.h5"),
        (lambda run: (run / "model_best_valid_loss.h5").unlink(), (), "has no model_best_valid"),
        (lambda run: (run / "model_pruned.h5").unlink(), (), "has no model_pruned.h5"),
        (lambda run: None, ("--sparsity", "50"), "was pruned otherwise"),
        (lambda run: None, ("--sparsity", *SPARSITY[:7], "81"), "was pruned otherwise"),
    ],
    ids=["history", "latest", "best", "pruned", "other list", "one other value"],
)
def test_a_run_that_cannot_be_continued(
    continued, place, tmp_path, capsys, damage, options, message
):
    damage(continued)
    line = place.line(tmp_path / "out", *RETRAIN, "-e", "4", cache=False)
    refuse(capsys, [*line, "-cmd", str(continued), *options], message, tmp_path)


def test_a_run_is_not_continued_with_other_weights(continued, place, tmp_path, capsys):
    # They give the same masks, which look at the kernels only.
    other = make_tiny()
    other.get_layer("conv_1").bias.assign([1] * 4)
    save_network(other, tmp_path / "other.h5")
    line = place.line(tmp_path / "out", *RETRAIN, "-e", "4", "-cmd", continued)
    line[0] = str(tmp_path / "other.h5")
    refuse(capsys, line, "was pruned otherwise", tmp_path)


def test_divergence_is_one_line_and_spares_earlier_checkpoints(continued, place, tmp_path, capsys):
    line = place.line(tmp_path / "out", *RETRAIN, "-e", "4", "--quiet", "-lr", "1e30")
    models = {path: path.read_bytes() for path in continued.glob("model_*")}
    history = (continued / "history.csv").read_text()
    capsys.readouterr()
    assert prune([*line, "--continue-model-dir", str(continued)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "learning rate" in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in continued.glob("model_*")} == models
    assert (continued / "history.csv").read_text() == history


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["w.h5"],
        ["w.h5", "t", "v"],
        ["w.h5", "t", "v", "o", "x"],
        ["w.h5", "t", "v", "o", "--sparsity", "abc"],
        ["w.h5", "t", "v", "o", "--sparsity"],
        ["w.h5", "t", "v", "o", "--num-epochs", "1.5"],
        ["w.h5", "t", "v", "o", "--layer"],
    ],
)
def test_prune_usage(line, capsys):
    with pytest.raises(SystemExit) as end:
        prune(line)
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert error[0].startswith("usage: python -m l3prune.pruning ")
    assert error[1].startswith("python -m l3prune.pruning: error: ")


# As processes: exit codes, and nothing on stderr but our own lines.


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


def test_embedding_as_a_process(net, sounds, tmp_path):
    (sounds / "text.wav").write_text("text")
    ended = process("l3prune", sounds, "--model", net, "-o", tmp_path / "out", "--quiet")
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"skipped: {sounds / 'text.wav'} cannot be decoded")
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_pruning_as_a_process(finished, place, tmp_path):
    line = place.line(tmp_path, *RETRAIN, "-e", "4", "--quiet", cache=False)
    ended = process("l3prune.pruning", *line)
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[:4] == finished[1].splitlines()[:4]
    # The same seed gives the same bytes, also in another process and without a cache.
    for name in (
        "history.csv",
        "model_best_valid_loss.h5",
        "model_checkpoint.02.h5",
        "model_latest.h5",
    ):
        assert (run_folder(tmp_path) / name).read_bytes() == (finished[0] / name).read_bytes()


def test_bad_input_as_a_process(place, tmp_path):
    line = (*RETRAIN, "-e", "2", "--sparsity", "120")
    ended = process("l3prune.pruning", *place.line(tmp_path / "out", *line))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == "error: sparsity 120 is not in percent, from 0 to below 100\n"
    assert not (tmp_path / "out").exists()


def test_a_reader_that_ends_early_is_no_traceback():
    """python -m l3prune.models list | head -1"""
    code = "import sys; from l3prune.errors import command\n"
    code += "@command\ndef main(argv=None):\n"
    code += "    for _ in range(100000):\n        print('a line of a long table')\n"
    code += "sys.exit(main())"
    line = (
        f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1; echo ${{PIPESTATUS[0]}}"
    )
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["a line of a long table", "141"]
    assert ended.stderr == ""
