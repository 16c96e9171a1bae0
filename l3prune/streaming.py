"""Sound while it comes in: the last seconds in a ring, from a file or a microphone."""

from __future__ import annotations

import importlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from l3prune.audio import mono_blocks, open_audio
from l3prune.checks import check_whole
from l3prune.errors import L3PruneError, ParameterError

#: Samples of a block, as the demonstration of E-PANNs takes them from the microphone.
BLOCK = 1024

#: Seconds between windows of a file that is not played at its own speed.
STEP = 0.5


class RingBuffer:
    """The last samples that came in; zeros before the first.

    Parameters
    ----------
    size : int
        Samples that it holds.

    Examples
    --------
    >>> ring = RingBuffer(4)
    >>> ring.write(np.array([1.0, 2.0, 3.0]))
    >>> ring.write(np.array([4.0, 5.0]))
    >>> ring.read().tolist()
    [2.0, 3.0, 4.0, 5.0]
    """

    def __init__(self, size: int) -> None:
        check_whole("size", size, 2)
        self._samples = np.zeros(size, np.float32)
        self._next = 0  # where the next sample goes: the oldest one is there
        self._lock = threading.Lock()

    def write(self, block: np.ndarray) -> None:
        """Put a block, shorter than the ring, in the place of the oldest samples.

        Raises
        ------
        ParameterError
            The block is not one-dimensional, or as long as the ring or longer.
        """
        block, size = np.asarray(block), len(self._samples)
        if block.ndim != 1 or len(block) >= size:
            raise ParameterError(
                f"a block of shape {block.shape} for a ring of {size} samples; give (n,), n < "
                f"{size}"
            )
        with self._lock:
            first = min(len(block), size - self._next)
            self._samples[self._next : self._next + first] = block[:first]
            self._samples[: len(block) - first] = block[first:]
            self._next = (self._next + len(block)) % size

    def read(self) -> np.ndarray:
        """A copy of all its samples, the oldest first."""
        with self._lock:
            return np.concatenate([self._samples[self._next :], self._samples[: self._next]])


@dataclass(frozen=True)
class FileSource:
    """A recording in the place of a microphone.

    Attributes
    ----------
    path : str or path-like
    fast : bool
        As fast as it is listened to, instead of at its own speed.
    loop : bool
        Again from its start, for ever.

    Examples
    --------
    >>> import soundfile, tempfile
    >>> path = tempfile.mkdtemp() + "/a.wav"
    >>> soundfile.write(path, np.zeros(3000), 16000)
    >>> [len(block) for block in FileSource(path, fast=True).blocks(16000, threading.Event())]
    [1024, 1024, 952]
    """

    path: str | os.PathLike[str]
    fast: bool = False
    loop: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return os.path.basename(self.path)

    def check(self) -> None:
        """Refuse what is no recording.

        Raises
        ------
        ParameterError
            See `audio.open_audio`; or it has no samples.
        """
        with open_audio(self.path) as file:
            if not file.frames:
                raise ParameterError(f"{self.path} has no samples; give another recording")

    def blocks(self, rate: int, ended: threading.Event) -> Iterator[np.ndarray]:
        """Its sound at a sample rate, (n,) float32, n at most `BLOCK`, until it or `ended` ends."""
        start, count = time.monotonic(), 0
        for _ in itertools.count() if self.loop else [0]:
            before = count
            with open_audio(self.path) as file:
                read = file.blocks(BLOCK, dtype="float32", always_2d=True)
                for block in _cut(mono_blocks(read, file.samplerate, rate)):
                    count += len(block)
                    # A block is there when its last sample has sounded.
                    wait = 0.0 if self.fast else start + count / rate - time.monotonic()
                    if ended.wait(max(wait, 0)):
                        return
                    yield block
            if count == before:  # it would be opened for ever
                raise ParameterError(
                    f"{self.path} has no samples at {rate} Hz; give a longer recording"
                )


@dataclass(frozen=True)
class MicrophoneSource:
    """A microphone of this machine, by the package sounddevice.

    Attributes
    ----------
    device : int, str or None
        Its number or a part of its name; None: the system's choice.

    Examples
    --------
    >>> MicrophoneSource().name
    'microphone'
    """

    device: int | str | None = None
    fast = False

    @property
    def name(self) -> str:
        """For people."""
        return "microphone" if self.device is None else f"microphone {self.device}"

    def check(self) -> None:
        """Refuse to go on without the package, or without such a device.

        Raises
        ------
        L3PruneError
            The message says what to install, or which devices there are.
        """
        sounddevice = _sounddevice()
        try:
            sounddevice.query_devices(self.device, "input")
        except (sounddevice.PortAudioError, ValueError) as error:
            inputs = [
                f"{number}: {each['name']}"
                for number, each in enumerate(sounddevice.query_devices())
                if each["max_input_channels"] > 0
            ]
            raise L3PruneError(
                f"no {self.name} ({error}); "
                + (f"there are {', '.join(inputs)}" if inputs else "this machine has none")
                + "; a recording can be listened to by its path"
            ) from error

    def blocks(self, rate: int, ended: threading.Event) -> Iterator[np.ndarray]:
        """Its sound at a sample rate, (n,) float32, n at most `BLOCK`, until `ended`."""
        self.check()
        sounddevice = _sounddevice()
        own = sounddevice.query_devices(self.device, "input")["default_samplerate"]
        heard: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

        def raw() -> Iterator[np.ndarray]:
            while not ended.is_set():
                try:
                    yield heard.get(timeout=0.1)
                except queue.Empty:
                    continue

        try:
            with sounddevice.InputStream(
                samplerate=own,
                device=self.device,
                channels=1,
                dtype="float32",
                blocksize=BLOCK,
                callback=lambda block, *_: heard.put(block.copy()),
            ):
                yield from _cut(mono_blocks(raw(), own, rate))
        except sounddevice.PortAudioError as error:
            raise L3PruneError(f"the {self.name} cannot be listened to: {error}") from error


def _sounddevice() -> Any:
    try:
        return importlib.import_module("sounddevice")
    except ImportError as error:
        raise L3PruneError(
            "a microphone needs the package sounddevice: pip install 'l3prune[live]'"
        ) from error
    except OSError as error:  # it is there, and what it calls is not
        raise L3PruneError(
            f"a microphone needs the library PortAudio ({error}), for instance by apt-get install "
            "libportaudio2"
        ) from error


def _cut(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for block in blocks:
        for start in range(0, len(block), BLOCK):
            yield block[start : start + BLOCK]


@dataclass(frozen=True)
class Heard:
    """What a listener knows at a moment.

    Attributes
    ----------
    state : str
        "stopped", "listening", "ended" (the source has no more) or "failed".
    scores : np.ndarray or None
        Of the last window.
    windows : int
        How many were computed.
    seconds : float
        Sound that came in.
    elapsed : float
        Seconds since the start.
    computing : float
        Seconds that all windows took to compute.
    error : str
        Why it failed.

    Examples
    --------
    >>> Heard("stopped").windows
    0
    """

    state: str
    scores: np.ndarray | None = None
    windows: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    computing: float = 0.0
    error: str = ""


class Listener:
    """Computes scores of the last seconds of a source, again and again, until it is stopped.

    Of a source at its own speed every computation takes what has sounded last, so that windows
    come as fast as the machine computes them; of a fast one, a window is taken every `STEP`
    seconds of sound, to a block.

    Parameters
    ----------
    source : FileSource or MicrophoneSource
    rate : int
        Hz.
    size : int
        Samples of a window.
    compute : callable, (samples,) float32 -> (classes,) float

    Examples
    --------
    >>> listener = Listener(FileSource("/nowhere/a.wav"), 8000, 16000, lambda window: window[:3])
    >>> listener.start()
    >>> listener.wait_for_end().error
    'no such audio file: /nowhere/a.wav'
    """

    def __init__(
        self,
        source: FileSource | MicrophoneSource,
        rate: int,
        size: int,
        compute: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.source, self.rate, self.size = source, rate, size
        self._compute = compute
        self._changed = threading.Condition()
        self._version = 0
        self._heard = Heard("stopped")
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Listen from now on, of a file from its start; nothing happens if it listens already."""
        with self._changed:
            if self._heard.state == "listening":
                return
            self._ended = threading.Event()
            self._tell(Heard("listening"))
            # Within the lock, so that whoever stops it finds the thread.
            self._threads = [threading.Thread(target=self._listen, args=[self._ended], daemon=True)]
            self._threads[0].start()

    def stop(self) -> Heard:
        """End listening; gives what was heard."""
        with self._changed:
            ended, threads = self._ended, self._threads
        ended.set()
        for thread in threads:
            thread.join()
        return self.wait(-1)[1]

    def wait(self, version: int, timeout: float | None = None) -> tuple[int, Heard]:
        """What is heard, and its version, as soon as that is another than a given one."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout)
            return self._version, self._heard

    def wait_for_end(self) -> Heard:
        """What was heard when the source has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._heard.state != "listening")
            return self._heard

    def _tell(self, heard: Heard) -> None:
        with self._changed:
            self._version += 1
            self._heard = heard
            self._changed.notify_all()

    def _listen(self, ended: threading.Event) -> None:
        run = _Run(self, ended)
        try:
            state = run.go_on()
        except L3PruneError as error:
            self._tell(run.heard("failed", " ".join(str(error).split())))
        except BaseException:
            self._tell(run.heard("failed", "a defect in l3prune; the terminal has its traceback"))
            raise
        else:
            self._tell(run.heard(state))


class _Run:
    """One time of listening, from a start to its end: one thread feeds the ring, one computes."""

    def __init__(self, listener: Listener, ended: threading.Event) -> None:
        self.listener, self.ended = listener, ended
        self.ring = RingBuffer(listener.size)
        self.began = time.monotonic()
        # Samples that a window is due after.
        self.due = int(STEP * listener.rate) if listener.source.fast else 1
        self.came = threading.Condition()
        self.samples = 0  # that came in
        self.used = 0  # of them, those up to the last window's end
        self.over = False
        self.failure: BaseException | None = None
        self.scores: np.ndarray | None = None
        self.windows = 0
        self.computing = 0.0

    def heard(self, state: str, error: str = "") -> Heard:
        seconds, elapsed = self.samples / self.listener.rate, time.monotonic() - self.began
        return Heard(state, self.scores, self.windows, seconds, elapsed, self.computing, error)

    def go_on(self) -> str:
        """Compute windows until the source is over or `ended` is set; says which."""
        feeder = threading.Thread(target=self.feed, daemon=True)
        feeder.start()
        try:
            while (window := self.next_window()) is not None:
                start = time.perf_counter()
                self.scores = self.listener._compute(window)
                self.computing += time.perf_counter() - start
                self.windows += 1
                self.listener._tell(self.heard("listening"))
            state = "stopped" if self.ended.is_set() else "ended"
        finally:
            self.ended.set()
            with self.came:
                self.came.notify_all()
            feeder.join()
        if self.failure is not None:
            raise self.failure
        return state

    def next_window(self) -> np.ndarray | None:
        with self.came:
            self.came.wait_for(lambda: self.samples - self.used >= self.due or self.over)
            if self.ended.is_set() or self.samples == self.used:
                return None
            self.used = self.samples
            self.came.notify_all()
            return self.ring.read()

    def feed(self) -> None:
        source, ended = self.listener.source, self.ended
        try:
            for block in source.blocks(self.listener.rate, ended):
                with self.came:
                    self.ring.write(block)
                    self.samples += len(block)
                    self.came.notify_all()
                    if source.fast:
                        self.came.wait_for(
                            lambda: self.samples - self.used < self.due or ended.is_set()
                        )
                if ended.is_set():
                    return
        except BaseException as error:
            if not ended.is_set():  # a microphone that is stopped before it was heard is no failure
                self.failure = error
        finally:
            with self.came:
                self.over = True
                self.came.notify_all()
