"""The job scripts on a real SLURM of two hosts, unedited, with tiny data."""

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.slurm.client import CLUSTER, ENDED, JOBS, ROOT

SCRIPTS = sorted(JOBS.glob("*.sbatch"))
SWEEPS = sorted((JOBS / "sweeps").glob("*.csv"))
WEIGHTS = ROOT / "models" / "l3_synthetic.h5"

EPOCHS = 4
SIZES = (
    *("--train-batch-size", "4", "--train-epoch-size", "10"),
    *("--validation-batch-size", "4", "--validation-epoch-size", "1"),
)
STUDY = ("--num-epochs", str(EPOCHS), *SIZES)
SHORT = ("--num-epochs", "1", *SIZES, "--train-epoch-size", "1")
FILTERS = "8 8 8 8 16 16 16 64"
CLASSIFIER = ("--epochs", "2", "--model-type", "mlp")
HOP = ("--hop-size", "0.5")


# Without SLURM.


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    files = [*SCRIPTS, JOBS / "common.sh", JOBS / "submit", CLUSTER, ROOT / ".ci" / "run"]
    ended = subprocess.run(
        ["shellcheck", "--external-sources", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_has_what_all_have(script):
    text = script.read_text()
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    comment = text.split("\n#SBATCH", 1)[0]
    assert f"sbatch jobs/{script.name}" in comment or re.search(
        rf"sbatch --\S+ jobs/{script.name}", comment
    ), "a sample line comes first"
    log = "%x-%A_%a.log" if "#SBATCH --array" in text else "%x-%j.log"
    for line in (
        f"#SBATCH --job-name={script.stem}",
        f"#SBATCH --output={log}",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR1@120",
        "set -euo pipefail",
    ):
        assert line in lines, line
    assert "--gres" not in text
    assert f"`{script.name}`" in (JOBS / "README.md").read_text()


@pytest.mark.parametrize(
    "table", sorted((JOBS / "sweeps").glob("*.csv")), ids=lambda path: path.stem
)
def test_rows_of_the_sweeps_are_options(table):
    from l3prune.options import parse

    for row in csv.DictReader(table.read_text().splitlines()):
        words = ["w.h5", "train", "valid", "out", "--run-name", row.pop("name")]
        for name, value in row.items():
            words += [f"--{name}", *([] if value == "yes" else value.split())]
        assert parse(words).retrain


@pytest.fixture
def study():
    """The variables of a study."""
    names = ("WEIGHTS", "TRAIN", "VALID", "DATA", "OUT", "RUN_NAME")
    return {name: name.lower() for name in names} | {"DATASET": "us8k"}


def submit(variables, *words):
    # Whatever is set where the tests run.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("KIND", "FOLDS")
    }
    return subprocess.run(
        [JOBS / "submit", *words],
        env=environment | {name: str(value) for name, value in variables.items()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dry_run_tells_what_would_be_submitted(study, tmp_path):
    study["OUT"] = tmp_path / "out"
    ended = submit(study | {"TRAIN_SBATCH": "--gres=gpu:1"}, "--dry-run", "--seed", "3")
    assert ended.returncode == 0, ended.stderr
    train, features, folds, table = [
        line for line in ended.stdout.splitlines() if line.startswith("'sbatch'")
    ]
    assert "'--gres=gpu:1'" in train
    assert "distil-layerwise.sbatch' '--seed' '3'" in train
    assert "'--dependency=afterok:ID-OF-distil-layerwise'" in features
    assert "'--array=1-10'" in folds
    assert "'--dependency=afterok:ID-OF-features'" in folds
    assert "'--dependency=afterok:ID-OF-classifier-cv'" in table
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["DATA", "OUT", "RUN_NAME", "WEIGHTS"])
def test_a_study_needs_its_variables(study, name):
    del study[name]
    ended = submit(study, "--dry-run")
    assert ended.returncode != 0
    assert f"{name}: " in ended.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("KIND", "distil", "KIND=distil is none of"), ("DATASET", "mine", "FOLDS is not set")],
)
def test_a_study_of_unknown_kind_or_corpus(study, name, value, message):
    ended = submit(study | {name: value}, "--dry-run")
    assert ended.returncode == 2
    assert message in ended.stderr


# On SLURM.


#: How jobs are told to stop, by their names.
STOPS = {
    "requeued": ("scontrol", "requeue"),
    "signalled": ("scancel", "--signal=USR1"),
    "batch": ("scancel", "--signal=USR1", "--batch"),
    "cancelled": ("scancel",),
}


def local(slurm, *line):
    return slurm.call(sys.executable, "-m", *line, PYTHONPATH=ROOT)


@pytest.fixture(scope="module")
def data(tmp_path_factory, slurm):
    """Corpora to retrain and to judge on, and videos."""
    folder = tmp_path_factory.mktemp("data")
    for name, *options in (
        ("corpus", "--folds", 3, "--clips", 2),
        ("music_train", "--folds", 1, "--seed", 2, "--clips", 1),
        ("music_valid", "--folds", 1, "--seed", 3, "--clips", 1),
    ):
        line = (*options, "--seconds", 1.5, "--quiet")
        local(slurm, "l3prune.datasets.synthetic", folder / name, *line)
    for name, seed in (("av_train", 1), ("av_valid", 2)):
        line = ("--videos", 4, "--seconds", 2, "--sample-rate", 8000, "--seed", seed, "--quiet")
        local(slurm, "l3prune.datasets.scenes", folder / name, *line)
    return folder


@pytest.fixture(scope="module")
def submitted(slurm, data):
    """Ids of jobs by name. All are submitted at first, so that SLURM's two hosts have work."""
    sound = {
        "WEIGHTS": WEIGHTS,
        "TRAIN": data / "music_train",
        "VALID": data / "music_valid",
    }
    jobs = {}
    for name in STOPS:
        variables = sound | {"OUT": data / name, "RUN_NAME": "run"}
        jobs[name] = slurm.submit("distil-layerwise", *STUDY, **variables)

    shown = slurm.call(
        *(JOBS / "submit", *STUDY),
        **sound,
        OUT=data / "study",
        RUN_NAME="run",
        FOLDS="1-3",
        DATASET="us8k",
        DATA=data / "corpus",
        CLASSIFIER_ARGS=" ".join(CLASSIFIER),
        FEATURES_ARGS=" ".join(HOP),
    )
    jobs |= {f"study {line.split()[0]}": line.split()[1] for line in shown.splitlines()}

    jobs["shards"] = slurm.submit(
        *("avc-shards", "--sample-rate", 8000),
        INPUTS=f"{data / 'av_train'} {data / 'av_valid'}",
        SAMPLES="8 6",
        OUT=data / "shards",
    )
    shards = {"TRAIN": data / "shards" / "av_train", "VALID": data / "shards" / "av_valid"}
    after = (f"--dependency=afterok:{jobs['shards']}",)
    filters = ("--audio-filters", *FILTERS.split(), "--vision-filters", *"44448888")
    jobs["avc"] = slurm.submit(
        *("train-avc", *SHORT, *filters),
        options=after,
        **(shards | {"OUT": data / "avc", "RUN_NAME": "run", "MODEL_TYPE": "sea64"}),
    )
    shards["WEIGHTS"] = data / "avc/embedding/av/sea64/run/model_best_valid_loss.h5"
    after = (f"--dependency=afterok:{jobs['avc']}",)
    for kind in ("layerwise", "filterwise"):
        jobs[f"finetune {kind}"] = slurm.submit(
            *(f"finetune-{kind}", *SHORT),
            options=after,
            **(shards | {"OUT": data / "ft", "RUN_NAME": "run", "NUM_FILTERS": "4 4 4 4 8 8 8 8"}),
        )
    jobs["distil filterwise"] = slurm.submit(
        *("distil-filterwise", *SHORT),
        **(sound | {"OUT": data / "kd", "RUN_NAME": "run", "NUM_FILTERS": FILTERS}),
    )
    table = data / "sweep.csv"
    table.write_text(
        "name,layerwise,sparsity,filterwise,global-filter-ratio,pattern\n"
        "first,yes,0 50 50 50 50 50 50 90,,,\n"
        "second,,,yes,50,\n"
        "third,yes,50,,\n"
        "fourth,,,,,one:two\n"
    )
    jobs["sweep"] = slurm.submit(
        "sweep", options=("--array=1-5",), **(sound | {"OUT": data / "sweep", "SWEEP": table})
    )
    yield jobs
    with contextlib.suppress(AssertionError):
        slurm.call("scancel", "--user=root")


def run_folder(out, kind="pruning_kd"):
    (folder,) = out.glob(f"embedding/{kind}/*/*/run")
    return folder


def losses(out):
    with open(run_folder(out) / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [(row["epoch"], row["loss"], row["val_loss"]) for row in rows]


@pytest.fixture(scope="module")
def by_hand(slurm, data, submitted):
    """The folder with what a study's commands make without SLURM, and the table they print."""
    out = data / "by_hand"
    sparsity = ["0", "70", "70", "75", "60", "80", "80", "85"]
    local(
        slurm,
        *("l3prune.pruning", WEIGHTS, data / "music_train", data / "music_valid", out),
        *("--retrain", "--layerwise", "--sparsity", *sparsity, "--learning-rate", "0.00001"),
        *("--random-state", "20180216", "--run-name", "run", *STUDY),
    )
    model = run_folder(out) / "model_best_valid_loss.h5"
    features = ("classifier", "features", "us8k", data / "corpus", out / "features")
    local(slurm, *features, "--model", model, *HOP)
    line = ("classifier", "cv", out / "features", out / "results", *CLASSIFIER)
    return out, local(slurm, *line)


@pytest.fixture(scope="module")
def interrupted(slurm, data, submitted):
    """Jobs are told to stop when they have trained one epoch and not all."""
    running = dict(STOPS)
    failed = ENDED - {"COMPLETED", "CANCELLED"}
    end = time.monotonic() + 600
    while running:
        for name in list(running):
            job = submitted[name]
            if list((data / name).glob("embedding/*/*/*/run/history.csv")):
                slurm.call(*running.pop(name), job)
            assert time.monotonic() < end, slurm.log(job)
            assert not set(slurm.states(job).values()) & failed, slurm.log(job)
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize("name", ["requeued", "signalled", "batch"])
def test_a_job_that_is_stopped_goes_on(slurm, data, submitted, name, by_hand):
    job = submitted[name]
    log = slurm.completed(job)[job]
    assert log.count("+ python -m l3prune.pruning") == 2, log
    assert f"--continue-model-dir {run_folder(data / name)}" in log
    assert "interrupted: " in log
    assert [epoch for epoch, *_ in losses(data / name)] == [str(n + 1) for n in range(EPOCHS)]
    assert losses(data / name) == losses(by_hand[0])


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.usefixtures("interrupted")
def test_a_job_that_is_cancelled_is_not_queued_again(slurm, data, submitted):
    job = submitted["cancelled"]
    assert set(slurm.wait(job).values()) == {"CANCELLED"}
    end = time.monotonic() + 60
    while "interrupted: " not in slurm.log(job):
        assert time.monotonic() < end, slurm.log(job)
        time.sleep(0.1)
    time.sleep(2)  # in which the script would do it
    assert "queued again" not in slurm.log(job)
    assert set(slurm.wait(job).values()) == {"CANCELLED"}
    assert 0 < len(losses(data / "cancelled")) < EPOCHS


@pytest.mark.slow
@pytest.mark.slurm
def test_a_study_makes_the_table_of_the_same_commands(slurm, data, submitted, by_hand):
    states = slurm.wait(submitted["study classifier-table"])
    logs = data / "study" / "logs" / "run"
    texts = {path.name: path.read_text() for path in sorted(logs.iterdir())}
    assert set(states.values()) == {"COMPLETED"}, texts
    for name in ("distil-layerwise", "features", "classifier-cv", "classifier-table"):
        assert set(slurm.states(submitted[f"study {name}"]).values()) == {"COMPLETED"}
    array = submitted["study classifier-cv"]
    for fold in (1, 2, 3):
        assert f"fold {fold}, seed 0: " in texts[f"classifier-cv-{array}_{fold}.log"]
    out, table = by_hand
    assert table in texts[f"classifier-table-{submitted['study classifier-table']}.log"]
    for name in ("cv.csv", "folds.csv", "classes.csv"):
        made = (data / "study" / "classifier" / "run" / name).read_text()
        assert made == (out / "results" / name).read_text(), name
    assert losses(data / "study") == losses(out)


@pytest.mark.slow
@pytest.mark.slurm
def test_audio_visual_jobs(slurm, data, submitted):
    first, second = slurm.completed(submitted["shards"]).values()
    assert " 8 pairs of 4 videos" in first
    assert " 6 pairs of 4 videos" in second
    slurm.completed(submitted["avc"])
    assert (data / "avc/embedding/av/sea64/run/audio.h5").is_file()
    for kind in ("layerwise", "filterwise"):
        slurm.completed(submitted[f"finetune {kind}"])
        folder = run_folder(data / "ft", f"pruning_finetune_{kind}")
        assert (folder / "report.json").is_file()


@pytest.mark.slow
@pytest.mark.slurm
def test_filterwise_distillation(slurm, data, submitted):
    slurm.completed(submitted["distil filterwise"])
    assert (run_folder(data / "kd", "reduced_kd") / "report.json").is_file()


def scan(slurm, data, out, tasks, **variables):
    """An array of scans whose last task is told to stop as soon as it runs; its id."""
    job = slurm.submit(
        *("sensitivity", "--amounts", 50, "--max-windows", 4),
        options=(f"--array={tasks}",),
        **({"WEIGHTS": WEIGHTS, "VALID": data / "music_valid", "OUT": out} | variables),
    )
    end = time.monotonic() + 600
    while "+ python" not in slurm.log(last := f"{job}_{tasks[-1]}"):
        assert time.monotonic() < end, slurm.call("squeue")
        time.sleep(0.1)
    slurm.call("scancel", "--signal=USR1", "--batch", last)
    return job


@pytest.mark.slow
@pytest.mark.slurm
def test_a_task_of_an_array_is_queued_again_alone(slurm, data, tmp_path):
    first, last = slurm.completed(scan(slurm, data, tmp_path, "1-2")).values()
    assert [first.count("+ python"), last.count("+ python")] == [1, 2]
    for name in ("layerwise-magnitude", "filterwise-l1"):
        assert (tmp_path / name / "sensitivity.png").is_file()


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_is_not_queued_again_for_ever(slurm, data, tmp_path):
    job = scan(slurm, data, tmp_path, "1", L3PRUNE_RESTARTS=0)
    slurm.failed(job, "stopped after 0 restarts; submit it again with more --time")


@pytest.mark.slow
@pytest.mark.slurm
def test_a_sweep_makes_good_rows_and_refuses_bad_ones(slurm, data, submitted):
    states = slurm.wait(submitted["sweep"])
    ended = {int(name.split("_")[1]): (state, slurm.log(name)) for name, state in states.items()}
    for row, kind, name in ((1, "pruning", "first"), (2, "reduced", "second")):
        state, log = ended[row]
        assert state == "COMPLETED", log
        assert (data / f"sweep/embedding/{kind}/music/sea64/{name}/report.json").is_file()
    for row, message in (
        (3, "row 3 has 5 values, the first line 6 names: third,yes,50,,"),
        (4, "one:two"),
        (5, "there are 4 rows in"),
    ):
        state, log = ended[row]
        assert state == "FAILED", log
        assert message in log
        assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.slurm
def test_parts_of_a_table_across_methods(slurm, data, tmp_path):
    """Both tasks of the array measure their part, and one of them writes the table."""
    config = {
        "network": str(WEIGHTS),
        "dataset": "us8k",
        "hop_size": 0.5,
        "rounds": 1,
        "filterwise": ["l1", "random"],
        "ratios": [50],
        "num_epochs": 1,
        "train_epoch_size": 1,
        "train_batch_size": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    variables = {"CONFIG": tmp_path / "config.json", "DATA": data / "corpus"}
    job = slurm.submit("compare", options=("--array=1-2",), OUT=tmp_path / "out", **variables)
    logs = slurm.completed(job)
    assert all(f"--task {task} --tasks 2" in logs[f"{job}_{task}"] for task in (1, 2)), logs
    measured = [path.stem for path in (tmp_path / "out/work/cells").glob("fold*.json")]
    # Three folds: the network as it is, and two criteria.
    assert len(measured) == 9
    with open(tmp_path / "out" / "methods.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (1 + 2 * 2)
    beyond = slurm.submit(
        "compare", options=("--array=3",), OUT=tmp_path / "out", TASKS=2, **variables
    )
    slurm.failed(beyond, "there are 2 parts")


def refused(slurm, data, *arguments, script="distil-layerwise", options=(), **variables):
    good = {
        "WEIGHTS": WEIGHTS,
        "TRAIN": data / "music_train",
        "VALID": data / "music_valid",
        "OUT": data / "refused",
        "RUN_NAME": "run",
    } | variables
    good = {name: value for name, value in good.items() if value is not None}
    return slurm.submit(script, *SHORT, *arguments, options=options, **good)


@pytest.mark.slow
@pytest.mark.slurm
def test_what_is_missing_is_told_in_the_log(slurm, data, tmp_path):
    jobs = [
        (refused(slurm, data, TRAIN=None), "TRAIN: folder of recordings"),
        (refused(slurm, data, WEIGHTS=data / "none.h5"), f"{data}/none.h5"),
        (refused(slurm, data, TRAIN=data / "none"), f"{data}/none"),
        (refused(slurm, data, "--sparsite", "3"), "unrecognized arguments: --sparsite"),
        (refused(slurm, data, L3PRUNE_VENV=tmp_path), "is no virtual environment"),
        (refused(slurm, data, L3PRUNE_MODULE="python/3.11"), "has no environment modules"),
        (
            refused(slurm, data, options=(f"--chdir={tmp_path}",), L3PRUNE_HOME=tmp_path),
            "set L3PRUNE_HOME",
        ),
        (refused(slurm, data, script="sweep", options=("--array=1",)), "SWEEP: a table"),
    ]
    for job, message in jobs:
        slurm.failed(job, message)
        for name in slurm.states(job):
            assert "Traceback" not in slurm.log(name)
    assert not (data / "refused").exists()


@pytest.mark.slow
@pytest.mark.slurm
def test_an_output_folder_that_is_a_file_or_full_keeps_earlier_results(slurm, data, tmp_path):
    file = tmp_path / "file"
    file.write_text("earlier")
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", full], check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted")
    try:
        earlier = full / "embedding" / "pruning_kd" / "music" / "sea64" / "earlier" / "report.json"
        earlier.parent.mkdir(parents=True)
        earlier.write_text("earlier")
        jobs = [refused(slurm, data, OUT=file), refused(slurm, data, OUT=full)]
        slurm.failed(jobs[0], f"{file}")
        slurm.failed(jobs[1], "No space left on device")
        assert "Traceback" not in slurm.log(jobs[0]) + slurm.log(jobs[1])
        assert earlier.read_text() == file.read_text() == "earlier"
    finally:
        subprocess.run(["umount", full], check=False)


@pytest.mark.slow
@pytest.mark.slurm
def test_a_study_that_cannot_go_on_ends(slurm, data, tmp_path):
    variables = {
        "WEIGHTS": tmp_path / "none.h5",
        "TRAIN": data / "music_train",
        "VALID": data / "music_valid",
        "DATASET": "us8k",
        "DATA": data / "corpus",
        "OUT": tmp_path / "out",
        "RUN_NAME": "run",
    }
    shown = slurm.call(JOBS / "submit", **variables)
    first, *later = [line.split()[1] for line in shown.splitlines()]
    assert set(slurm.wait(first).values()) == {"FAILED"}
    assert len(later) == 3
    for job in later:
        assert set(slurm.wait(job).values()) == {"CANCELLED"}

    ended = submit(slurm.environment | variables | {"CLASSIFIER_SBATCH": "--partition=none"})
    assert ended.returncode != 0
    taken_back = re.search("taken back: (.*)", ended.stderr).group(1).split()
    assert len(taken_back) == 2
    for job in taken_back:
        assert set(slurm.wait(job).values()) <= {"CANCELLED", "FAILED"}


@pytest.mark.slow
@pytest.mark.slurm
def test_only_one_cluster_runs_at_a_time(slurm, tmp_path):
    ended = subprocess.run(
        [CLUSTER, "start", tmp_path], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "stop it first" in ended.stderr
    assert slurm.call("sinfo", "--noheader", "--format=%D") == "2"
