"""A SLURM of two hosts on this machine, and what tests ask it."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock
import pytest

ROOT = Path(__file__).parent.parent.parent
JOBS = ROOT / "jobs"
CLUSTER = ROOT / "tests" / "slurm" / "cluster"

#: SLURM's states of a job that will not change any more.
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


class Slurm:
    """A running SLURM: submits, waits and reads logs."""

    def __init__(self, folder):
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "SLURM_CONF": str(folder / "slurm.conf"),
            # Equal results take equal threads.
            "OMP_NUM_THREADS": "1",
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        if (Path(sys.prefix) / "bin" / "activate").is_file():
            self.environment["L3PRUNE_VENV"] = sys.prefix
        else:
            self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def call(self, *line, **variables):
        ended = subprocess.run(
            [str(word) for word in line],
            env=self.environment | {name: str(value) for name, value in variables.items()},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, (line, ended.stdout, ended.stderr)
        return ended.stdout.strip()

    def submit(self, script, *arguments, options=(), **variables):
        output = f"--output={self.logs}/{'%A_%a' if self.is_array(script) else '%j'}.log"
        script = JOBS / f"{script}.sbatch"
        return self.call("sbatch", "--parsable", output, *options, script, *arguments, **variables)

    @staticmethod
    def is_array(script):
        return "#SBATCH --array" in (JOBS / f"{script}.sbatch").read_text()

    def states(self, job):
        """States by the name of the job or, of an array, of its tasks."""
        states = {}
        for line in self.call("scontrol", "--oneliner", "show", "job", job).splitlines():
            fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
            task = fields.get("ArrayTaskId")
            states[f"{fields['ArrayJobId']}_{task}" if task else job] = fields["JobState"]
        return states

    def log(self, name):
        path = self.logs / f"{name}.log"
        return path.read_text() if path.is_file() else ""

    def wait(self, job, seconds=900):
        """The states of a job that has ended."""
        end = time.monotonic() + seconds
        while set(states := self.states(job).values()) - ENDED:
            assert time.monotonic() < end, (states, self.log(job), self.call("squeue"))
            time.sleep(0.3)
        return self.states(job)

    def completed(self, job):
        """The logs of a job that has ended well, by the names of its tasks."""
        for name, state in self.wait(job).items():
            assert state == "COMPLETED", self.log(name)
        return {name: self.log(name) for name in sorted(self.states(job))}

    def failed(self, job, message):
        for name, state in self.wait(job).items():
            assert state == "FAILED", self.log(name)
            assert message in self.log(name)


@contextlib.contextmanager
def running():
    """A SLURM from its start to its end."""
    if not shutil.which("sbatch"):
        pytest.skip("SLURM is not installed (slurm-wlm)")
    if not shutil.which("munged"):
        pytest.skip("munge is not installed")
    if os.geteuid() != 0:
        pytest.skip("a SLURM can be started by root only")
    # One at a time on a machine, whose other tests run in another process.
    with filelock.FileLock("/run/l3prune-slurm.lock"):
        # Not pytest's own folder: names of sockets must be short.
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        started = subprocess.run(
            [CLUSTER, "start", folder], capture_output=True, text=True, check=False
        )
        try:
            assert started.returncode == 0, started.stderr
            yield Slurm(folder)
        finally:
            subprocess.run([CLUSTER, "stop", folder], check=False, capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)
