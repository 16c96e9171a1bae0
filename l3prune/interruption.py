"""Signals that ask a run to end: noted, so that the step in progress ends before the run does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

#: What batch systems send before they end a job, and what a job can ask to be sent earlier; Windows
#: has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Signals:
    """The signals that came.

    Attributes
    ----------
    first : signal.Signals or None
        The first of them.

    Examples
    --------
    >>> Signals().first is None
    True
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None

    def note(self, number: int, frame: object = None) -> None:
        """Remember a signal: a handler for `signal.signal`."""
        self.first = self.first or signal.Signals(number)


@contextlib.contextmanager
def noted() -> Iterator[Signals]:
    """Note SIGTERM and SIGUSR1 in a block, in place of ending the process.

    Afterwards they are handled as before; one that came and that the block took no notice of is
    then raised once more. Python lets the main thread alone handle signals: in others nothing is
    noted.

    Yields
    ------
    signals : Signals

    Examples
    --------
    >>> with contextlib.suppress(StopIteration), noted() as signals:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     raise StopIteration
    >>> signals.first.name
    'SIGTERM'
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.note) for number in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            # None: a handler that is not Python's, and that Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if signals.first is not None:
        signal.raise_signal(signals.first)
