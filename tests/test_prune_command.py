"""python -m l3prune.pruning, as a user types it: runs, and runs that go on."""

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

import l3prune.checkpoints
import l3prune.pruning
from l3prune import graph
from l3prune.embedding import get_embedding
from l3prune.networks import create_network
from l3prune.plan import PruningPlan, plan_global, plan_layerwise
from l3prune.pruning import main as prune
from l3prune.weights import load_network, save_network
from tests.commands import (
    RETRAIN,
    SPARSITY,
    assert_equal_weights,
    assert_zeros,
    layers,
    process,
    refuse,
    run_folder,
    tree,
    words,
    write_shard,
)
from tests.conftest import make_tiny


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
    files = {path.name for path in run_dir.iterdir() if path.name != ".lock"}
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


@pytest.mark.slow
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


def interrupt_in_the_first_epoch(monkeypatch, moment):
    """Ctrl-C when an epoch's batches are done, or between its history and its checkpoint."""
    if moment == "epoch":

        def end(self, epoch, logs=None):
            raise KeyboardInterrupt

        monkeypatch.setattr(l3prune.checkpoints.Keeper, "on_epoch_end", end)
    else:

        def save(network, path, **options):
            if path.name == "model_latest.h5":
                raise KeyboardInterrupt
            save_network(network, path, **options)

        monkeypatch.setattr(l3prune.checkpoints, "save_network", save)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [pytest.param("epoch"), "checkpoint"])
def test_a_run_stopped_in_its_first_epoch_begins_again(
    finished, place, tmp_path, capsys, monkeypatch, moment
):
    line = place.line(tmp_path / "out", *RETRAIN, "-e", "4", "--quiet")
    with monkeypatch.context() as patch:
        interrupt_in_the_first_epoch(patch, moment)
        assert prune(line) == 130
    run_dir = run_folder(tmp_path / "out")
    assert (run_dir / "model_pruned.h5").is_file()
    assert (run_dir / "history.csv").is_file() == (moment == "checkpoint")
    refuse(capsys, line, "give another --run-name, or --continue-model-dir", tmp_path)
    again = [*line, "--continue-model-dir", str(run_dir)]
    for options, message in (
        (("--sparsity", "50"), "was begun with sparsity=[0.0, 50.0, 50.0, 60.0, "),
        (("--criterion", "random"), "was begun with criterion=None, not 'random'"),
        (("--reduction", "pca"), "was begun with reduction=None, not 'pca'"),
    ):
        refuse(capsys, [*again, *options], message, tmp_path)
    assert prune(again) == 0
    whole = finished[0]
    for name in ("latest", "best_valid_loss", "pruned", "checkpoint.02", "checkpoint.04"):
        assert (run_dir / f"model_{name}.h5").read_bytes() == (
            whole / f"model_{name}.h5"
        ).read_bytes()
    for name in ("history.csv", "report.json"):
        assert (run_dir / name).read_text() == (whole / name).read_text()


@pytest.mark.slow
def test_a_run_that_has_not_begun_is_not_continued(place, tmp_path, capsys, monkeypatch):
    line = place.line(tmp_path / "out", *RETRAIN, "-e", "4", "--quiet")
    with monkeypatch.context() as patch:
        interrupt_in_the_first_epoch(patch, "epoch")
        assert prune(line) == 130
    run_dir = run_folder(tmp_path / "out")
    again = [*line, "--continue-model-dir", str(run_dir)]
    other = make_tiny()
    other.get_layer("conv_1").bias.assign([1] * 4)
    save_network(other, tmp_path / "other.h5")
    refuse(capsys, [str(tmp_path / "other.h5"), *again[1:]], "was pruned otherwise", tmp_path)
    config = (run_dir / "config.json").read_text()
    for text in ("[]", '{"arguments": 3}'):
        (run_dir / "config.json").write_text(text)
        refuse(capsys, again, "config.json is damaged: it has no arguments", tmp_path)
    (run_dir / "config.json").unlink()
    refuse(capsys, again, "has no config.json, so there is no run to continue", tmp_path)
    (run_dir / "config.json").write_text(config)
    (run_dir / "model_pruned.h5").unlink()
    refuse(capsys, again, "has no model_pruned.h5, so there is no run to continue", tmp_path)


def test_a_run_without_retraining_is_not_continued(place, tmp_path, capsys):
    line = place.line(tmp_path, "--layerwise", "--sparsity", "50", "--run-name", "run", "--quiet")
    assert prune(line) == 0
    run_dir = run_folder(tmp_path, "pruning")
    more = ("--retrain", "-tbs", "4", "-cmd", str(run_dir))
    refuse(capsys, [*line, *more], "was begun with retrain=None, not True", tmp_path)


def test_a_run_folder_that_a_kill_left_empty_is_taken(place, tmp_path):
    run_dir = run_folder(tmp_path, "pruning")
    run_dir.mkdir(parents=True)
    line = place.line(tmp_path, "--layerwise", "--sparsity", "50", "--run-name", "run", "--quiet")
    assert prune(line) == 0
    assert (run_dir / "report.json").is_file()


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert prune([*line, "--retrain", "-tbs", "4", "-cmd", str(run_dir), "--quiet"]) == 2
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_config_keeps_zeros(place, tmp_path):
    zeros = ("--checkpoint-interval", "0", "--min-delta", "0", "--seed", "0", "--quiet")
    line = place.line(tmp_path, "--layerwise", *zeros, "--early-stopping-patience", "0")
    more = ("--retrain", "-tbs", "4", "-e", "1")
    assert prune([*line, *more, "--run-name", "run", "--sparsity", "0"]) == 0
    args = l3prune.pruning.parse(["--config", str(run_folder(tmp_path) / "config.json")])
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
