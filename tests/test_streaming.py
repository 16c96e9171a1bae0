"""The ring buffer, sources of sound, and listening to them."""

import contextlib
import sys
import threading
import time
import types

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from l3prune.audio import to_mono
from l3prune.errors import L3PruneError, ParameterError
from l3prune.streaming import BLOCK, FileSource, Listener, MicrophoneSource, RingBuffer
from tests.conftest import chirp

RATE, SIZE = 16000, 32000


@given(st.integers(2, 40), st.lists(st.integers(0, 39), max_size=30))
def test_the_ring_holds_the_last_samples_in_order(size, lengths):
    ring = RingBuffer(size)
    heard = np.zeros(size, np.float32)
    for length in lengths:
        block = np.arange(len(heard), len(heard) + length % size, dtype=np.float32)
        ring.write(block)
        heard = np.concatenate([heard, block])
        np.testing.assert_array_equal(ring.read(), heard[-size:])


def test_the_ring_by_hand():
    ring = RingBuffer(4)
    assert ring.read().tolist() == [0, 0, 0, 0]
    ring.write(np.array([1, 2, 3]))
    assert ring.read().tolist() == [0, 1, 2, 3]
    read = ring.read()
    ring.write(np.array([4, 5, 6]))
    assert ring.read().tolist() == [3, 4, 5, 6]
    assert read.tolist() == [0, 1, 2, 3], "what was read is a copy"


@pytest.mark.parametrize("block", [np.zeros(4), np.zeros(5), np.zeros((2, 2)), np.float32(1)])
def test_the_ring_takes_shorter_blocks_only(block):
    ring = RingBuffer(4)
    with pytest.raises(ParameterError, match="for a ring of 4 samples"):
        ring.write(block)
    assert ring.read().tolist() == [0, 0, 0, 0]


def test_the_ring_is_whole_while_it_is_written():
    """One thread writes rising numbers; what another reads has no gap."""
    ring, ended, torn = RingBuffer(512), threading.Event(), []

    def read():
        while not ended.is_set():
            steps = np.diff(ring.read())
            torn.extend(steps[(steps != 1) & (steps != 0)])

    thread = threading.Thread(target=read)
    thread.start()
    for start in range(1, 60000, 300):
        ring.write(np.arange(start, start + 300, dtype=np.float32))
    ended.set()
    thread.join()
    assert torn == []


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "sweep.wav"
    soundfile.write(path, chirp(1.5, RATE), RATE, subtype="FLOAT")
    return path


def heard_by(source, rate=RATE):
    blocks = list(source.blocks(rate, threading.Event()))
    assert max(map(len, blocks)) <= BLOCK
    return np.concatenate(blocks)


def test_a_file_comes_whole(recording):
    np.testing.assert_array_equal(heard_by(FileSource(recording, fast=True)), chirp(1.5, RATE))
    resampled = heard_by(FileSource(recording, fast=True), 24000)
    np.testing.assert_allclose(resampled, to_mono(chirp(1.5, RATE), RATE, 24000), atol=1e-6)


def test_a_file_is_played_at_its_own_speed(recording):
    start = time.monotonic()
    heard_by(FileSource(recording))
    assert 1.5 <= time.monotonic() - start < 10


def test_a_loop_goes_on_until_it_is_ended(recording):
    ended = threading.Event()
    heard = []
    for block in FileSource(recording, fast=True, loop=True).blocks(RATE, ended):
        heard.append(block)
        if len(heard) == 60:
            ended.set()
    whole = np.concatenate(heard)
    np.testing.assert_array_equal(whole[:24000], chirp(1.5, RATE))
    np.testing.assert_array_equal(whole[24000:48000], chirp(1.5, RATE))


@pytest.mark.parametrize("text", [None, "text", ""])
def test_what_is_no_recording(tmp_path, text):
    path = tmp_path / "a.wav"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ParameterError, match=r"a\.wav"):
        FileSource(path).check()


def test_a_recording_without_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), RATE)
    with pytest.raises(ParameterError, match="has no samples"):
        FileSource(tmp_path / "a.wav").check()


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("frames", [0, 1])
def test_a_recording_of_which_nothing_is_left(tmp_path, frames, loop):
    """It is empty, or one sample at twelve times the rate that is listened at."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(frames), 12 * RATE)
    listener = Listener(FileSource(path, fast=True, loop=loop), RATE, SIZE, Windows())
    listener.start()
    with listener._changed:
        assert listener._changed.wait_for(lambda: listener._heard.state == "failed", 5)
    heard = listener.stop()
    assert heard.windows == 0
    assert "has no samples" in heard.error


def test_a_stop_waits_for_a_thread_that_is_just_starting(recording, monkeypatch):
    """One that comes between a start's word that it listens and its thread."""
    listener = Listener(FileSource(recording, loop=True), RATE, SIZE, Windows())
    heard = []
    stopping = threading.Thread(target=lambda: heard.append(listener.stop()))
    start = threading.Thread.start

    def slow(thread):
        if thread is not stopping and thread._target == listener._listen:
            start(stopping)
            time.sleep(0.2)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", slow)
    listener.start()
    stopping.join(10)
    (last,) = heard
    assert last.state == listener.wait(-1)[1].state == "stopped"
    assert not listener._threads[0].is_alive()


class Windows(list):
    """A computation that keeps what it is given."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds = seconds

    def __call__(self, window):
        self.append(window)
        time.sleep(self.seconds)
        return np.array([window.mean(), len(self)])


def test_a_fast_file_is_listened_to_in_steps(recording):
    windows = Windows()
    listener = Listener(FileSource(recording, fast=True), RATE, SIZE, windows)
    listener.start()
    heard = listener.wait_for_end()
    assert (heard.state, heard.windows, heard.seconds) == ("ended", 3, 1.5)
    sound = np.concatenate([np.zeros(SIZE, np.float32), chirp(1.5, RATE)])
    # Half a second is 8000 samples, which eight blocks of 1024 reach.
    for window, end in zip(windows, (8192, 16384, 24000), strict=True):
        np.testing.assert_array_equal(window, sound[end : end + SIZE])
    assert heard.scores.tolist() == [pytest.approx(windows[-1].mean()), 3]
    assert heard.computing <= heard.elapsed


def test_a_slow_computation_always_takes_the_latest(recording):
    windows = Windows(0.2)
    listener = Listener(FileSource(recording), RATE, SIZE, windows)
    listener.start()
    heard = listener.wait_for_end()
    assert (heard.state, heard.seconds) == ("ended", 1.5)
    # It falls behind, and leaves sound out instead of queueing it; the last of it is tagged.
    assert 2 <= heard.windows == len(windows) <= 9
    np.testing.assert_array_equal(windows[-1][-24000:], chirp(1.5, RATE))
    assert 0.2 * len(windows) <= heard.computing


def test_stop_and_start_again(recording):
    windows = Windows()
    listener = Listener(FileSource(recording, loop=True), RATE, SIZE, windows)
    assert listener.wait(-1)[1].state == "stopped"
    listener.start()
    version, _ = listener.wait(-1)
    listener.start()  # listens already
    while listener.wait(version)[1].windows < 3:
        pass
    heard = listener.stop()
    assert heard.state == "stopped"
    assert heard.windows >= 3
    count = len(windows)
    time.sleep(0.2)
    assert len(windows) == count, "nothing is computed after a stop"
    listener.start()
    while len(windows) == count:
        time.sleep(0.01)
    listener.stop()
    assert not windows[count][: SIZE - 8000].any(), "a new start begins with silence"
    assert [thread.name for thread in threading.enumerate() if "_listen" in thread.name] == []


def test_a_recording_that_is_gone(recording):
    listener = Listener(FileSource(recording), RATE, SIZE, Windows())
    recording.unlink()
    listener.start()
    heard = listener.wait_for_end()
    assert heard.state == "failed"
    assert "no such audio file" in heard.error
    assert listener.stop().state == "failed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_ends_listening_too(recording):
    def compute(window):
        raise ZeroDivisionError

    listener = Listener(FileSource(recording), RATE, SIZE, compute)
    listener.start()
    heard = listener.wait_for_end()
    assert heard.state == "failed"
    assert "a defect in l3prune" in heard.error
    listener.stop()


class FakeSounddevice(types.ModuleType):
    """A microphone of 8 kHz that hears a sweep of one second."""

    class PortAudioError(Exception):
        pass

    def __init__(self, inputs=1):
        super().__init__("sounddevice")
        self.inputs = inputs

    def query_devices(self, device=None, kind=None):
        every = [
            {"name": "Speakers", "max_input_channels": 0, "default_samplerate": 48000.0},
            {"name": "USB mic", "max_input_channels": self.inputs, "default_samplerate": 8000.0},
        ]
        if kind is None:
            return every
        if not self.inputs or device not in (None, 1, "USB"):
            raise ValueError(f"No input device matching {device!r}")
        return every[1]

    @contextlib.contextmanager
    def InputStream(self, *, samplerate, blocksize, callback, channels, **_):
        assert (samplerate, channels) == (8000, 1)
        if self.inputs > 1:
            raise self.PortAudioError("Device unavailable")
        sound = chirp(1, 8000)[:, np.newaxis]

        def play():
            buffer = np.empty((blocksize, 1), np.float32)
            for start in range(0, len(sound) - blocksize, blocksize):
                buffer[:] = sound[start : start + blocksize]
                callback(buffer, blocksize, None, None)  # which does not keep the buffer

        thread = threading.Thread(target=play)
        thread.start()
        yield
        thread.join()


def test_a_microphone_is_heard_at_the_networks_rate(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSounddevice())
    ended = threading.Event()
    timer = threading.Timer(1.0, ended.set)
    timer.start()
    heard = np.concatenate(list(MicrophoneSource().blocks(RATE, ended)))
    expected = to_mono(chirp(1, 8000)[: 7 * BLOCK], 8000, RATE)
    np.testing.assert_allclose(heard, expected, atol=1e-6)


def test_a_microphone_that_is_stopped_before_it_is_heard(monkeypatch):
    silent = FakeSounddevice()
    monkeypatch.setattr(silent, "InputStream", lambda **_: contextlib.nullcontext())
    monkeypatch.setitem(sys.modules, "sounddevice", silent)
    listener = Listener(MicrophoneSource(), RATE, SIZE, Windows())
    listener.start()
    heard = listener.stop()
    assert (heard.state, heard.windows, heard.error) == ("stopped", 0, "")


@pytest.mark.parametrize(
    ("module", "device", "message"),
    [
        (None, None, r"pip install 'l3prune\[live\]'"),
        (FakeSounddevice(), 7, r"no microphone 7 .*there are 1: USB mic"),
        (FakeSounddevice(0), None, "no microphone .*this machine has none"),
    ],
)
def test_no_microphone(monkeypatch, module, device, message):
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    with pytest.raises(L3PruneError, match=message):
        MicrophoneSource(device).check()


def test_a_microphone_that_is_taken(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSounddevice(2))
    with pytest.raises(L3PruneError, match="cannot be listened to: Device unavailable"):
        list(MicrophoneSource().blocks(RATE, threading.Event()))


def test_a_missing_portaudio(monkeypatch):
    def load(name):
        raise OSError("PortAudio library not found")

    monkeypatch.setattr("l3prune.streaming.importlib.import_module", load)
    with pytest.raises(L3PruneError, match="apt-get install libportaudio2"):
        MicrophoneSource().check()
