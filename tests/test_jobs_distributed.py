"""Jobs on two hosts of a real SLURM: they train as one process does, and survive what happens."""

import csv
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.client import ENDED, ROOT

WEIGHTS = ROOT / "models" / "l3_synthetic.h5"

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

TWO = ("--nodes=2", "--ntasks-per-node=1")
ONE_HOST = ("--nodes=1", "--ntasks=2", "--cpus-per-task=2")
EPOCHS = 3
SIZES = (
    *("--num-epochs", EPOCHS, "--train-batch-size", 4, "--train-epoch-size", 8),
    *("--validation-batch-size", 4, "--validation-epoch-size", 2),
)
SPARSITY = "0 70 70 75 60 80 80 85"
RECIPE = ("--learning-rate", "0.00001", "--random-state", "20180216")
SMALL = ("--audio-filters", *"88888888", "--vision-filters", *"44448888")


def local(slurm, *line):
    return slurm.call(sys.executable, "-m", *line, PYTHONPATH=ROOT)


@pytest.fixture(scope="module")
def data(tmp_path_factory, slurm):
    """Sounds and audio-visual shards."""
    folder = tmp_path_factory.mktemp("data")
    for name, seed in (("music_train", 2), ("music_valid", 3)):
        line = ("--folds", 1, "--seed", seed, "--clips", 1, "--seconds", 1.5, "--quiet")
        local(slurm, "l3prune.datasets.synthetic", folder / name, *line)
    for name, seed, samples in (("av_train", 1, 8), ("av_valid", 2, 6)):
        videos, shards = folder / "videos" / name, folder / name
        line = ("--videos", 4, "--seconds", 2, "--sample-rate", 8000, "--seed", seed, "--quiet")
        local(slurm, "l3prune.datasets.scenes", videos, *line)
        line = ("--samples", samples, "--sample-rate", 8000, "--quiet")
        local(slurm, "l3prune.avc_data", "shards", videos, shards, *line)
    return folder


@pytest.fixture(scope="module")
def submitted(slurm, data):
    """Ids of jobs by name. All are submitted at first, so that SLURM's two hosts have work."""
    sound = {"WEIGHTS": WEIGHTS, "TRAIN": data / "music_train", "VALID": data / "music_valid"}
    pairs = {"TRAIN": data / "av_train", "VALID": data / "av_valid", "MODEL_TYPE": "sea64"}
    jobs = {}
    for name in ("requeued", "killed"):
        jobs[name] = slurm.submit(
            *("distil-layerwise", *SIZES),
            options=TWO,
            **(sound | {"OUT": data / name, "RUN_NAME": "run"}),
        )
    jobs["avc"] = slurm.submit(
        *("train-avc", *SIZES, *SMALL),
        options=TWO,
        **(pairs | {"OUT": data / "avc"}),
        RUN_NAME="run",
    )
    pairs["WEIGHTS"] = data / "avc/embedding/av/sea64/run/model_best_valid_loss.h5"
    jobs["finetune"] = slurm.submit(
        *("finetune-layerwise", *SIZES),
        options=(*ONE_HOST, f"--dependency=afterok:{jobs['avc']}"),
        **(pairs | {"OUT": data / "ft", "RUN_NAME": "run"}),
    )
    jobs["odd"] = slurm.submit(
        *("distil-layerwise", *SIZES, "--train-batch-size", 5),
        options=TWO,
        **(sound | {"OUT": data / "odd", "RUN_NAME": "run"}),
    )
    jobs["features"] = slurm.submit(
        "features",
        options=TWO,
        MODEL=WEIGHTS,
        DATASET="us8k",
        DATA=data / "music_train",
        FEATURES=data / "features",
    )
    return jobs


@pytest.fixture(scope="module")
def interrupted(slurm, data, submitted):
    """One job is queued again and of another a worker is killed, both within the second epoch."""
    for name in ("requeued", "killed"):
        job = submitted[name]
        end = time.monotonic() + 600
        while not list((data / name).glob("embedding/*/*/*/run/history.csv")):
            assert not set(slurm.states(job).values()) & ENDED, slurm.log(job)
            assert time.monotonic() < end, slurm.log(job)
            time.sleep(0.1)
        if name == "requeued":
            slurm.call("scontrol", "requeue", job)
        else:
            os.kill(task(job, 1), signal.SIGKILL)


@pytest.fixture(scope="module")
def distilled(slurm, data, interrupted):
    """The folder of the distillation by one process."""
    line = ("l3prune.pruning", WEIGHTS, data / "music_train", data / "music_valid", data / "one")
    retrain = ("--retrain", "--layerwise", "--sparsity", *SPARSITY.split(), "--run-name", "run")
    local(slurm, *line, *retrain, *RECIPE, *SIZES)
    return run_folder(data / "one")


def run_folder(out):
    (config,) = Path(out).glob("embedding/**/run/config.json")
    return config.parent


def assert_same_curve(folder, whole, close=1e-4):
    """The training loss. Of BatchNorm the moving means follow biases that rounding alone moves, so
    what they serve, validation, is less equal."""
    curves = []
    for each in (folder, whole):
        with (each / "history.csv").open(newline="") as file:
            curves.append(list(csv.DictReader(file)))
    assert [row["epoch"] for row in curves[0]] == [str(number + 1) for number in range(EPOCHS)]
    for name, within in (("loss", close), ("val_loss", 1e-2)):
        found, wanted = ([float(row[name]) for row in curve] for curve in curves)
        assert found == pytest.approx(wanted, rel=within), name


def task(job, number):
    """The process of a job's task."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
            words = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={number}".encode()}
        if wanted <= set(variables) and b"l3prune" in words and b"python" in words.split(b"\0")[0]:
            return int(path.parent.name)
    return None


def test_a_requeued_job_of_two_hosts_has_the_curve_of_one(slurm, data, submitted, distilled):
    job, out = submitted["requeued"], data / "requeued"
    log = slurm.completed(job)[job]
    assert "global batch 4: 2 workers, 2 devices, 2 each" in log
    assert log.count("+ python -m l3prune.pruning") == 2, log
    assert log.count("interrupted: stopped by SIGTERM after ") == 2, log  # both workers
    assert log.count("\nretrained") == 1, log  # the chief's table
    assert_same_curve(run_folder(out), distilled)


def test_a_job_that_lost_a_worker_fails_and_goes_on_when_requeued(
    slurm, data, submitted, distilled
):
    job, out = submitted["killed"], data / "killed"
    slurm.failed(job, "error: worker 0 of 2 stops, since another one has ended")
    slurm.call("scontrol", "requeue", job)
    slurm.completed(job)
    assert_same_curve(run_folder(out), distilled)


def test_training_on_two_hosts_has_the_curve_of_one_process(slurm, data, submitted):
    one = data / "avc_one"
    line = ("l3prune.train_avc", data / "av_train", data / "av_valid", one, "--model-type", "sea64")
    local(slurm, *line, "--run-name", "run", *RECIPE, *SIZES, *SMALL)
    slurm.completed(submitted["avc"])
    # Fresh networks on these small data are ill-conditioned: on one device, another order of the
    # pairs within a batch changes its loss by 5e-4.
    assert_same_curve(run_folder(data / "avc"), run_folder(one), close=5e-3)
    assert (run_folder(data / "avc") / "audio.h5").is_file()


def test_fine_tuning_by_two_tasks_of_a_host_has_the_curve_of_one_process(slurm, data, submitted):
    slurm.completed(submitted["avc"])
    weights = run_folder(data / "avc") / "model_best_valid_loss.h5"
    line = ("l3prune.pruning", weights, data / "av_train", data / "av_valid", data / "ft_one")
    sparsity = ["0", "60", "60", "70", "50", "70", "70", "80"]
    retrain = ("--retrain", "--finetune", "--layerwise", "--sparsity", *sparsity)
    local(slurm, *line, *retrain, "--run-name", "run", *RECIPE, *SIZES)
    slurm.completed(submitted["finetune"])
    assert_same_curve(run_folder(data / "ft"), run_folder(data / "ft_one"))


def test_batches_that_cannot_be_shared_are_refused(slurm, data, submitted):
    slurm.failed(submitted["odd"], "training batches of 5 have no equal parts for 2 devices")
    assert "Traceback" not in slurm.log(submitted["odd"])
    assert not (data / "odd").exists()


def test_what_does_not_share_runs_once(slurm, submitted):
    (log,) = slurm.completed(submitted["features"]).values()
    assert log.count("10 clips embedded into ") == 1, log
