"""On which devices and in which precision training computes, and what its workers agree on.

A worker is a process. Each trains the same network on its part of every batch; gradients and
BatchNorm's statistics are summed over all, so the run is that of one process with the whole batch,
but for rounding. One of the workers, the chief, writes files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune import surgery
from l3prune.arguments import DISTRIBUTE, PRECISIONS
from l3prune.errors import L3PruneError, ParameterError
from l3prune.layers import SharedBatchNormalization
from l3prune.quiet import hushed
from l3prune.runs import new_run_dir

#: Where the workers of a step listen: of so many ranges of ports from here on it takes one, with a
#: port for each of its tasks on a host, so that steps and jobs can share hosts.
_FIRST_PORT, _RANGES, _TASKS = 20000, 400, 24

#: What a worker sees of the end of another.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


@dataclass(frozen=True)
class Devices:
    """What a run trains on; as it is, one device in float32.

    Attributes
    ----------
    strategy : tf.distribute.Strategy or None
    worker, workers : int
        Which process this is, and how many there are.
    precision : {"float32", "mixed_float16", "mixed_bfloat16"}
        In which layers compute, of Keras. Weights and embeddings are float32 in any case.
    xla : bool
        Compile training steps by XLA.

    Examples
    --------
    >>> Devices().replicas, Devices().chief
    (1, True)
    """

    strategy: tf.distribute.Strategy | None = None
    worker: int = 0
    workers: int = 1
    precision: str = "float32"
    xla: bool = False

    @property
    def chief(self) -> bool:
        """Whether this worker writes files."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        """On how many devices the network is trained at once."""
        return 1 if self.strategy is None else int(self.strategy.num_replicas_in_sync)

    def check_batch(self, batch_size: int) -> None:
        """Refuse training batches that have no equal parts.

        Raises
        ------
        ParameterError
            The message says which sizes have.
        """
        if batch_size % self.replicas:
            near = max(1, round(batch_size / self.replicas)) * self.replicas
            raise ParameterError(
                f"training batches of {batch_size} have no equal parts for {self.replicas} devices;"
                f" give a multiple of {self.replicas}, such as {near}"
            )

    def parts(self, count: int) -> list[slice]:
        """Which of a batch's rows this worker's devices take, one slice for each device."""
        local = self.replicas // self.workers
        bounds = [count * number // self.replicas for number in range(self.replicas + 1)]
        mine = range(self.worker * local, (self.worker + 1) * local)
        return [slice(bounds[number], bounds[number + 1]) for number in mine]

    def copy(self, network: keras.Model) -> keras.Model:
        """The network as it is trained here: itself, or a copy on these devices.

        In a copy for several devices BatchNorm takes its statistics of the whole batch. What gives
        the network's output computes in float32 whatever the precision.
        """
        if self.strategy is None and self.precision == "float32":
            return network
        last = set(network.output_names)

        def make(layer: keras.layers.Layer) -> keras.layers.Layer:
            kind, config = type(layer), layer.get_config()
            if self.precision != "float32" and layer.name not in last:
                config["dtype"] = self.precision
            if kind is keras.layers.BatchNormalization and self.replicas > 1:
                kind = SharedBatchNormalization
            return kind.from_config(config)

        # A variable is made by all workers together.
        shapes = repr([(weight.name, weight.shape) for weight in network.weights])
        self.check_alike("the network", shapes.encode())
        with self.watched(), self.scope():
            copy = surgery.remade(network, make)
            for layer in copy.layers if self.workers > 1 else ():
                layer.set_weights(self.from_chief(layer.get_weights()))
        return copy

    @contextlib.contextmanager
    def new_run_dir(self, parent: Path, run_name: str | None = None) -> Iterator[Path]:
        """The chief's new folder for a run, see `runs.new_run_dir`; all have to call this."""
        with contextlib.ExitStack() as made:
            run_dir = parent
            if self.chief:
                run_dir = made.enter_context(new_run_dir(parent, run_name))
            yield Path(self.told_by_chief(str(run_dir)))

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables are made, and used outside of training steps."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def take(self, dataset: tf.data.Dataset) -> Any:
        """A dataset of this worker's parts, as Keras takes it."""
        if self.strategy is None:
            return dataset
        return self.strategy.distribute_datasets_from_function(lambda context: dataset)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sums over the workers; all have to call this with arrays of one shape.

        Parameters
        ----------
        values : np.ndarray
            Summed up in float32.

        Raises
        ------
        L3PruneError
            A worker has ended.
        """
        if self.workers == 1 or self.strategy is None:
            return np.asarray(values, np.float32)
        given = tf.constant(values, tf.float32)
        local = self.replicas // self.workers

        def once(context: tf.distribute.ValueContext) -> tf.Tensor:
            first = context.replica_id_in_sync_group % local == 0
            return given if first else tf.zeros_like(given)

        with self.watched():
            each = self.strategy.experimental_distribute_values_from_function(once)
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None).numpy()

    def from_chief(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The chief's arrays; all workers have to call this with arrays of its shapes and types."""
        if self.workers == 1 or not arrays:
            return list(arrays)
        flat = np.concatenate([np.ravel(array).astype(np.float32) for array in arrays])
        flat = self.total(flat if self.chief else np.zeros_like(flat))
        ends = np.cumsum([array.size for array in arrays])[:-1]
        return [
            part.reshape(array.shape).astype(array.dtype)
            for part, array in zip(np.split(flat, ends), arrays, strict=True)
        ]

    def told_by_chief(self, text: str) -> str:
        """The chief's text; all workers have to call this."""
        content = np.frombuffer(text.encode(), np.uint8)
        (size,) = self.from_chief([np.array([content.size])])[0]
        padded = np.zeros(size, np.uint8)
        padded[: content.size] = content[:size]
        return self.from_chief([padded])[0].tobytes().decode()

    def check_alike(self, what: str, content: bytes) -> None:
        """Refuse to go on if the workers do not have the same; all have to call this.

        Parameters
        ----------
        what : str
            For the message.
        content : bytes
            What should be the same everywhere.

        Raises
        ------
        L3PruneError
        """
        digits = np.array([int(digit, 16) for digit in hashlib.sha256(content).hexdigest()[:32]])
        # Whole numbers, exact in float32 for thousands of workers.
        sums, squares = self.total(np.stack([digits, digits**2])).astype(np.float64)
        if not np.array_equal(sums**2, squares * self.workers):  # else there is no variance
            raise L3PruneError(
                f"{what} is not the same for all {self.workers} workers; give them the same files "
                "and the same versions of l3prune and TensorFlow"
            )

    def wait(self) -> None:
        """Wait for the other workers, all of which have to call this."""
        self.total(np.zeros(1))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Tell the end of another worker in one line."""
        try:
            yield
        except (*_LOST, tf.errors.InternalError) as error:
            # An operation that only some of the workers began comes to the others as internal.
            if self.workers == 1 or not (isinstance(error, _LOST) or "ollective" in str(error)):
                raise
            raise L3PruneError(
                f"worker {self.worker} of {self.workers} stops, since another one has ended: see "
                "its own messages. The run can be continued from its latest checkpoint"
            ) from error

    def told(self, batch_size: int) -> str:
        """How batches of this size are shared, for people."""
        return (
            f"global batch {batch_size}: {self.workers} workers, {self.replicas} devices, "
            f"{batch_size // self.replicas} each"
        )


def begin(
    distribute: str = "none",
    precision: str = "float32",
    xla: bool = False,
    *,
    quiet: bool = False,
) -> Devices:
    """Take the devices of this process, and with "multiworker" join the other ones.

    To be called before anything else is computed.

    Parameters
    ----------
    distribute : {"none", "mirrored", "multiworker"}
        One device; all GPUs of this host (`tf.distribute.MirroredStrategy`); all GPUs of all
        workers (`MultiWorkerMirroredStrategy`). Without GPUs, a process is one device. Who the
        workers are says the variable TF_CONFIG, or else SLURM: each task of a step is one.
    precision, xla
        See `Devices`.
    quiet : bool
        No line that says for whom this worker waits.

    Raises
    ------
    ParameterError
        A value that is not allowed, TF_CONFIG is no description of workers, or there is neither
        TF_CONFIG nor SLURM.
    L3PruneError
        The workers cannot be reached.

    Examples
    --------
    >>> begin(precision="mixed_bfloat16").precision
    'mixed_bfloat16'
    """
    for name, value, allowed in (
        ("distribute", distribute, DISTRIBUTE),
        ("precision", precision, PRECISIONS),
    ):
        if value not in allowed:
            raise ParameterError(f"{name}={value!r}; allowed: {', '.join(map(repr, allowed))}")
    if distribute == "none":
        return Devices(None, 0, 1, precision, xla)
    if distribute == "mirrored":
        with hushed():
            strategy = tf.distribute.MirroredStrategy()
        return _checked(Devices(strategy, 0, 1, precision, xla))
    worker, hosts = _workers(os.environ)
    if not quiet:
        print(f"worker {worker} of {len(hosts)} waits for all: {', '.join(hosts)}", file=sys.stderr)
    handler = signal.getsignal(signal.SIGTERM)
    with hushed():
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy(
                tf.distribute.cluster_resolver.SimpleClusterResolver(
                    tf.train.ClusterSpec({"worker": hosts}), "", "worker", worker
                )
            )
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            raise L3PruneError(f"the workers cannot be reached: {error}") from error
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # TensorFlow's own would not end the process
    devices = Devices(strategy, worker, len(hosts), precision, xla)
    step = [os.environ.get(name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    devices.check_alike("the job", repr([step, hosts]).encode())
    return _checked(devices)


def _checked(devices: Devices) -> Devices:
    if devices.xla and devices.replicas > 1 and not tf.config.list_physical_devices("GPU"):
        raise ParameterError(
            "XLA cannot share a step between processors without GPUs; leave out --xla"
        )
    return devices


def _workers(variables: Mapping[str, str]) -> tuple[int, list[str]]:
    """Which worker this is, and the addresses of all.

    Not by TensorFlow's `SlurmClusterResolver`: it sorts hosts as text, so that from node10 on tasks
    take each other's places, and it refuses several tasks on a host without as many GPUs.
    """
    if variables.get("TF_CONFIG"):
        config = _tf_config(variables["TF_CONFIG"])
        return int(config["task"]["index"]), list(config["cluster"]["worker"])
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID")
    if not {*names, "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE"} <= variables.keys():
        raise ParameterError(
            "--distribute multiworker needs to know its workers: start it by srun in a SLURM job, "
            "or set TF_CONFIG"
        )
    job, step, worker = (int(variables[name]) for name in names)
    try:
        shown = subprocess.run(
            ["scontrol", "show", "hostnames", variables["SLURM_STEP_NODELIST"]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise L3PruneError(
            f"scontrol does not tell the hosts {variables['SLURM_STEP_NODELIST']}; set TF_CONFIG"
        ) from error
    first = _FIRST_PORT + (job + 7 * step) % _RANGES * _TASKS
    counts = _tasks_per_host(variables["SLURM_STEP_TASKS_PER_NODE"])
    # In the order that srun numbers tasks in, unless --distribution says otherwise.
    return worker, [
        f"{host}:{first + task}"
        for host, count in zip(shown.split(), counts, strict=True)
        for task in range(count)
    ]


def _tasks_per_host(text: str) -> list[int]:
    """SLURM's "2(x3),1" is 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _tf_config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        if (
            set(config["cluster"]) != {"worker"}
            or not all(isinstance(each, str) and ":" in each for each in workers)
            or task["type"] != "worker"
            or not 0 <= int(task["index"]) < len(workers)
        ):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ParameterError(
            f"TF_CONFIG={text[:200]!r} does not describe workers; it should look like "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from None
    return config
