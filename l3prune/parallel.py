"""Tasks in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from l3prune.errors import L3PruneError

Task = TypeVar("Task")
Result = TypeVar("Result")

#: What a worker process was started for.
_function: Callable[[Any], Any]


def run_all(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, *, at_once: int = 1
) -> Iterator[Result]:
    """Results of a function, in the order of the tasks, as soon as they are there.

    Parameters
    ----------
    function : callable
        Found by its module and name, with `functools.partial` for what all tasks share: that is
        handed to each process once.
    tasks : sequence
    workers : int
        Processes; with 1, or a single task, all is done in this one.
    at_once : int
        Tasks that a process is given at a time; more than one where they are short.

    Yields
    ------
    result : object

    Raises
    ------
    L3PruneError
        A process ended before its time, for example because memory is short; and what the function
        raises.

    Examples
    --------
    >>> list(run_all(abs, [-2, 1], workers=1))
    [2, 1]
    """
    workers = min(workers, len(tasks))
    if workers < 2:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(
        workers,
        # A fork of a process that runs TensorFlow may hang.
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(function,),
    ) as pool:
        try:
            yield from pool.map(_work, tasks, chunksize=at_once)
        except BrokenProcessPool as error:
            raise L3PruneError(
                "a worker process ended before its time; run the same again to continue, with "
                "fewer workers if memory is short"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    # Ctrl-C ends it at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker would wait for work for ever after its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Any) -> Any:
    return _function(task)
