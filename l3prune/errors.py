"""The errors that l3prune raises on purpose, and how a command line shows them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence


class L3PruneError(Exception):
    """Base of every error that l3prune raises on purpose.

    The message is one line: what was given, what is allowed, what to do.

    Examples
    --------
    >>> raise L3PruneError("song.wav is not an audio file")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: song.wav is not an audio file
    """


class ParameterError(L3PruneError, ValueError):
    """An argument outside its allowed range or set.

    Also a `ValueError`, so that callers who know nothing of l3prune can catch it.

    Examples
    --------
    >>> isinstance(ParameterError("hop_size=0 is not positive"), ValueError)
    True
    """


#: EX_TEMPFAIL of sysexits.h: nothing is wrong, try again.
INTERRUPTED = 75


class Interrupted(L3PruneError):
    """A signal ended a run that can be continued; the message says how.

    Examples
    --------
    >>> raise Interrupted("stopped by SIGTERM")
    Traceback (most recent call last):
        ...
    l3prune.errors.Interrupted: stopped by SIGTERM
    """


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Make a command-line function report `L3PruneError` as one line and exit code 2.

    Parameters
    ----------
    main : callable (argv or None) -> int or None
        The command. None counts as exit code 0.

    Returns
    -------
    wrapped : callable (argv or None) -> int
        0 or what `main` returned; 2 after an `L3PruneError`, which is the code argparse uses for
        bad usage too, or when the system refuses a file (a name that is too long, a folder that may
        not be searched); 75 after `Interrupted`; 130 after Ctrl-C; 141 when nobody reads the output
        any more. Any other exception is a defect and keeps its traceback.

    Examples
    --------
    >>> @command
    ... def main(argv=None):
    ...     raise L3PruneError("no such folder: /nowhere")
    >>> main([])
    2
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except Interrupted as error:
            print(f"interrupted: {error}", file=sys.stderr)
            return INTERRUPTED
        except L3PruneError as error:
            # One line whatever a library put into the message it gave us.
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            return 2
        except BrokenPipeError:
            # Whoever read the output, such as head, has ended. Python would complain once more
            # when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141  # what a shell makes of SIGPIPE
        except OSError as error:
            if error.filename is None:
                raise
            print(f"error: {str(error.filename)[:200]}: {error.strerror}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped
