"""Running a program: batches, threads, working memory."""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from l3prune.audio import as_array, log_spectrogram
from l3prune.errors import ParameterError
from l3prune.sparse import kernels
from l3prune.sparse.coding import Loss
from l3prune.sparse.convert import program_of
from l3prune.sparse.packed import load_program, save_program
from l3prune.sparse.program import Program
from l3prune.sparse.schedule import Schedule, aligned_zeros, make_schedule

#: Floats a vector that there are kernels for.
LANES = (4, 8, 16)

#: Inputs of a profile's rounds.
_PROFILE_SEED = 0


@functools.cache
def best_lanes() -> int:
    """Floats a vector of this CPU: 16 with AVX-512, 8 with AVX2 and fused multiply-adds, else 4.

    Examples
    --------
    >>> best_lanes() in LANES
    True
    """
    from numba.core.registry import cpu_target

    # What numba compiles for, which NUMBA_CPU_NAME can change, not what the CPU has.
    features = cpu_target.target_context.codegen()._get_host_cpu_features()
    has = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    if "avx512f" in has:
        return 16
    return 8 if {"avx2", "fma"} <= has else 4


@dataclass(frozen=True)
class StepProfile:
    """What one pass over the maps costs.

    Attributes
    ----------
    name : str
        The layers that are computed in it.
    milliseconds : float
        For one input.
    share : float
        Of the time of all.
    macs : int
        Multiply-accumulates of weights that are not zero, for one input.
    gflops : float
        Two for each of them, 10^9 a second.

    Examples
    --------
    >>> StepProfile("conv_1", 2.0, 0.5, 10**9, 1000.0).macs
    1000000000
    """

    name: str
    milliseconds: float
    share: float
    macs: int
    gflops: float


class SparseModel:
    """A network that is computed by its non-zero weights.

    Parameters
    ----------
    program : Program
    threads : int or None
        Threads that compute one call; None takes a thread for each CPU that this process may use.
        May be changed at any time.
    lanes : {4, 8, 16} or None
        Floats a vector: 16 for AVX-512, 8 for AVX2, 4 for anything. None takes `best_lanes()`.

    Attributes
    ----------
    program : Program
    threads : int
    lanes : int

    Raises
    ------
    ParameterError
        The steps do not fit together; or another number of threads or lanes.

    Examples
    --------
    >>> from l3prune.sparse.program import Affine
    >>> twice = Affine("twice", np.full(1, 2, np.float32), np.ones(1, np.float32))
    >>> model = SparseModel(Program("small", (1, 2, 1), (twice,)), threads=1)
    >>> model(np.array([[[[3.0], [4.0]]]]))
    array([[[[7.], [9.]]]], dtype=float32)
    """

    def __init__(
        self, program: Program, *, threads: int | None = None, lanes: int | None = None
    ) -> None:
        self.program = program
        self.threads = _cpus() if threads is None else threads
        self.lanes = best_lanes() if lanes is None else lanes
        if self.lanes not in LANES:
            raise ParameterError(f"lanes={lanes!r}; there are {', '.join(map(str, LANES))}")
        self._schedule = make_schedule(program, self.lanes)
        self._free: list[_Memory] = []
        self._lock = threading.Lock()

    @classmethod
    def from_program(cls, program: Program, **options: Any) -> SparseModel:
        """A model of a program; the options are the constructor's."""
        return cls(program, **options)

    @classmethod
    def from_network(cls, network: Any, **options: Any) -> SparseModel:
        """A model of a Keras network; see `convert.program_of`."""
        return cls(program_of(network), **options)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> SparseModel:
        """A model of a packed file; see `packed.load_program`."""
        return cls(load_program(path), **options)

    def save(self, path: str | os.PathLike[str], values: str = "float32") -> dict[str, Loss]:
        """Write a packed file, atomically; see `packed.save_program`."""
        return save_program(self.program, path, values)

    @property
    def name(self) -> str:
        """The program's."""
        return self.program.name

    @property
    def threads(self) -> int:
        """Threads that compute one call."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise ParameterError(f"threads={threads!r} is not a whole number in 1 … 1024")
        self._threads = threads

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input: (samples,) of a waveform, else (rows, columns, channels)."""
        front_end = self.program.front_end
        return self.program.shape if front_end is None else (front_end.sample_rate,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one output: (values,), or (rows, columns, channels) if the last step gives maps."""
        return self._output_shape

    @functools.cached_property
    def _output_shape(self) -> tuple[int, ...]:
        from l3prune.sparse.plan import gives_vector

        shape = self._schedule.operations[-1].output
        return (math.prod(shape),) if gives_vector(self.program) else shape

    @functools.cached_property
    def _every(self) -> Schedule:
        """With zero weights multiplied as well, for inputs with NaN or infinity."""
        return make_schedule(self.program, self.lanes, every=True)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Compute one batch.

        May be called by several threads at once. Python's lock is released while it computes.

        Parameters
        ----------
        batch : np.ndarray, (n, rows, columns, channels) float
            With a front end (n, samples) or (n, 1, samples) in [-1, 1]: one-second waveforms.

        Returns
        -------
        outputs : np.ndarray, (n, values) float32
            Or (n, rows, columns, channels), see `output_shape`.

        Raises
        ------
        ParameterError
            The batch is of another shape, or not of real numbers.
        """
        batch = self._checked(batch)
        outputs = np.empty((len(batch), int(np.prod(self.output_shape))), np.float32)
        threads = self.threads
        # Whole inputs side by side; those that are left over by all threads together.
        apart = len(batch) - len(batch) % threads if threads > 1 else 0
        if apart:
            _together(threads, functools.partial(self._take, iter(range(apart)), batch, outputs))
        for number in range(apart, len(batch)):
            self._compute(self._maps(batch[number]), outputs[number], threads)
        return outputs.reshape(len(batch), *self.output_shape)

    def predict(self, batches: np.ndarray | Iterable[np.ndarray]) -> np.ndarray:
        """Compute several batches, or one array of any length.

        Parameters
        ----------
        batches : iterable of np.ndarray
            Each as `__call__` takes it.

        Returns
        -------
        outputs : np.ndarray, (all inputs, …) float32
        """
        parts = [np.zeros((0, *self.output_shape), np.float32)]
        if isinstance(batches, np.ndarray):
            batches = [batches]
        parts.extend(self(batch) for batch in batches)
        return np.concatenate(parts)

    def profile(self, *, rounds: int = 10) -> list[StepProfile]:
        """Where the time goes, measured on noise by all threads: the least of some rounds.

        The front end is left out.

        Raises
        ------
        ParameterError
            Rounds that are no positive whole number.
        """
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise ParameterError(f"rounds={rounds!r} is not a whole number from 1 on")
        schedule = self._schedule
        rng = np.random.default_rng(_PROFILE_SEED)
        noise = rng.uniform(-1, 1, schedule.input.stop).astype(np.float32)
        seconds = np.full(len(schedule.steps), np.inf)
        with self._memory() as memory:
            for _ in range(rounds + 1):
                memory.work[schedule.input] = noise
                for number in range(len(schedule.steps)):
                    memory.counters[:] = 0
                    start = time.perf_counter()
                    _run(schedule, memory, self.threads, slice(number, number + 1))
                    elapsed = time.perf_counter() - start
                    seconds[number] = min(seconds[number], elapsed)
        return [
            StepProfile(
                operation.name,
                1000 * each,
                each / seconds.sum(),
                operation.macs,
                2e-9 * operation.macs / each,
            )
            for operation, each in zip(schedule.operations, seconds.tolist(), strict=True)
        ]

    def _checked(self, batch: np.ndarray) -> np.ndarray:
        """A batch of the input's shape."""
        batch = as_array(batch)
        wanted = self.input_shape
        if self.program.front_end is not None and batch.ndim == 3 and batch.shape[1] == 1:
            batch = batch[:, 0]
        if batch.dtype.kind not in "fiu" or batch.ndim == 0 or batch.shape[1:] != wanted:
            raise ParameterError(
                f"batch of {batch.dtype} {batch.shape} given; model {self.program.name} takes "
                f"numbers of shape (n, {', '.join(map(str, wanted))})"
            )
        return batch

    def _maps(self, one: np.ndarray) -> np.ndarray:
        """What the first step takes of one input, as (values,) float32, channels last."""
        if self.program.front_end is not None:
            one = log_spectrogram(one[np.newaxis], self.program.front_end)
        with np.errstate(over="ignore"):  # beyond float32 is infinity
            return np.ascontiguousarray(one, np.float32).reshape(-1)

    def _take(self, numbers: Iterator[int], batch: np.ndarray, outputs: np.ndarray) -> None:
        # One thread's share: `next` is atomic.
        for number in numbers:
            self._compute(self._maps(batch[number]), outputs[number], 1)

    def _compute(self, maps: np.ndarray, output: np.ndarray, threads: int) -> None:
        schedule = self._schedule
        with self._memory() as memory:
            state = kernels.MET_NOT_FINITE
            if np.isfinite(maps).all():
                memory.work[schedule.input] = maps
                state = _run(schedule, memory, threads)
            if state == kernels.MET_NOT_FINITE:
                schedule = self._every
                memory.work[schedule.input] = maps
                _run(schedule, memory, threads)
            output[:] = memory.work[schedule.output]

    @contextmanager
    def _memory(self) -> Iterator[_Memory]:
        """Working memory that no other call has."""
        with self._lock:
            memory = self._free.pop() if self._free else None
        memory = memory or _Memory(self._schedule)
        yield memory
        with self._lock:
            self._free.append(memory)


class _Memory:
    """What one call writes: kept for the next, as new pages cost as much as a layer."""

    def __init__(self, schedule: Schedule) -> None:
        self.work = aligned_zeros(schedule.work)
        self.counters = aligned_zeros(len(schedule.steps) * kernels.COUNTERS, np.int64)
        self._sums: list[np.ndarray] = []

    def sums(self, thread: int, size: int) -> np.ndarray:
        """A thread's own sums."""
        while len(self._sums) <= thread:
            self._sums.append(aligned_zeros(size))
        if len(self._sums[thread]) < size:
            self._sums[thread] = aligned_zeros(size)
        return self._sums[thread]


def _run(schedule: Schedule, memory: _Memory, threads: int, part: slice = slice(None)) -> int:
    memory.counters[:] = 0
    states = []

    def work(number: int) -> None:
        states.append(
            kernels.run(
                schedule.steps[part],
                schedule.ints,
                schedule.floats,
                memory.work,
                sums[number],
                memory.counters,
                (0,) * schedule.lanes,
            )
        )

    sums = [memory.sums(number, schedule.sums) for number in range(threads)]
    numbers = iter(range(threads))
    _together(threads, lambda: work(next(numbers)))
    return max(states)


def _together(threads: int, work: Any) -> None:
    """Call `work` in this thread and, as far as they are free, in so many more at once."""
    if threads == 1:
        work()
        return
    helpers = _helpers()
    futures = [helpers.submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        # Those that have not begun have nothing left to do.
        for future in futures:
            if not future.cancel():
                future.result()


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(_cpus() - 1, 1), thread_name_prefix="l3prune-sparse")


if hasattr(os, "register_at_fork"):  # the threads are not copied
    os.register_at_fork(after_in_child=_helpers.cache_clear)


def _cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
