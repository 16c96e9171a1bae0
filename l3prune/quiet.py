"""Start TensorFlow without its start-up notices."""

from __future__ import annotations

import os
import sys
import tempfile


def load_tensorflow() -> None:
    """Import TensorFlow and look for devices, with its notices about both kept off stderr.

    Whatever the log level, TensorFlow writes some lines when it is imported, and on a machine
    without a GPU an error when it first looks for one. It writes them to file descriptor 2, below
    Python, so the descriptor points to a file meanwhile; when the import fails, what was written
    is shown after all. Commands call this before they import a module that needs TensorFlow.
    To see everything, set TF_CPP_MIN_LOG_LEVEL to 0.

    Examples
    --------
    >>> load_tensorflow()
    >>> "tensorflow" in sys.modules
    True
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only, from here on
    if level in ("0", "1") or "tensorflow" in sys.modules:
        return
    try:
        stderr = os.dup(2)
    except OSError:  # a process without stderr
        return
    with tempfile.TemporaryFile() as notices:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(notices.fileno(), 2)
        try:
            import tensorflow as tf
            import tf_keras

            del tf_keras
            tf.config.list_physical_devices()
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
