"""TensorFlow without its notices."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator

from l3prune.errors import L3PruneError


def require_tensorflow() -> None:
    """Refuse to go on where TensorFlow is not installed.

    Raises
    ------
    L3PruneError
        The message says what to install.

    Examples
    --------
    >>> require_tensorflow()
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise L3PruneError(
            "TensorFlow is not installed, and without it only packed files (.l3p) can be used, for "
            "embeddings; install it: pip install 'l3prune[full]'"
        )


def load_tensorflow() -> None:
    """Import TensorFlow and look for devices, with its notices about both kept off stderr.

    Whatever the log level, TensorFlow writes some lines when it is imported, and on a machine
    without a GPU an error when it first looks for one. It writes them to file descriptor 2, below
    Python, so the descriptor points to a file meanwhile; when the import fails, what was written
    is shown after all. Commands call this before they import a module that needs TensorFlow.
    To see everything, set TF_CPP_MIN_LOG_LEVEL to 0.

    Raises
    ------
    L3PruneError
        See `require_tensorflow`.

    Examples
    --------
    >>> load_tensorflow()
    >>> "tensorflow" in sys.modules
    True
    """
    require_tensorflow()
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only, from here on
    if level in ("0", "1") or "tensorflow" in sys.modules:
        return
    try:
        os.fstat(2)
    except OSError:  # a process without stderr
        return
    with hushed():
        import tensorflow as tf
        import tf_keras

        del tf_keras
        tf.config.list_physical_devices()


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep what is written to file descriptor 2, below Python, off it; show it after an error.

    Examples
    --------
    >>> with hushed():
    ...     _ = os.write(2, b"a notice")
    """
    try:
        stderr = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    with tempfile.TemporaryFile() as notices:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(notices.fileno(), 2)
        try:
            yield
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
