import subprocess
import sys

import h5py
import numpy as np
import pytest
import soundfile

from l3prune.audio import load_audio, to_mono
from l3prune.errors import L3PruneError, ParameterError
from l3prune.windows import Resampled, batch_indices, cached_targets, open_windows


def everything(source):
    return source.read(np.arange(len(source)))


def write_shard(path, windows, rate=8000, seed=0, **extra):
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["audio"] = rng.integers(-32768, 32767, (windows, 1, rate), np.int16)
        for name, value in extra.items():
            file[name] = value
    return path


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, windows in enumerate([3, 5, 2]):
        write_shard(folder / f"{number}.h5", windows, seed=number, label=np.zeros((windows, 2)))
    return folder


# Folders of audio.


def test_windows_of_audio_files_by_hand(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    ramp = (np.arange(20000) / 40000).astype(np.float32)
    soundfile.write(folder / "b.wav", ramp, 8000, subtype="FLOAT")
    soundfile.write(folder / "a.wav", ramp[:100], 8000, subtype="FLOAT")
    source = open_windows(folder, 8000, tmp_path / "cache", hop_size=0.5, quiet=True)
    windows = everything(source)
    assert windows.shape == (1 + 4, 1, 8000)
    assert windows.dtype == np.float32
    np.testing.assert_array_equal(windows[0, 0, :100], ramp[:100])
    assert not windows[0, 0, 100:].any()
    for number in range(3):
        start = 4000 * number
        np.testing.assert_array_equal(windows[1 + number, 0], ramp[start : start + 8000])
    np.testing.assert_array_equal(windows[4, 0], ramp[12000:20000])


def test_windows_are_those_of_frame_audio(sounds, tmp_path):
    from l3prune.audio import frame_audio

    source = open_windows(sounds, 8000, tmp_path / "cache", hop_size=0.25, quiet=True)
    frames = [
        frame_audio(load_audio(path)[0][:, 0], 8000, hop_size=0.25, center=False)
        for path in sorted(sounds.rglob("*.*"))
    ]
    np.testing.assert_array_equal(everything(source)[:, 0], np.concatenate(frames))


def test_audio_is_decoded_once(sounds, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = open_windows(sounds, 8000, cache, quiet=True)
    monkeypatch.setattr("l3prune.windows.load_audio", lambda path: 1 / 0)
    second = open_windows(sounds, 8000, cache, quiet=True)
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(everything(second), everything(first))
    with pytest.raises(ZeroDivisionError):
        open_windows(sounds, 8000, cache, hop_size=0.1, quiet=True)


def test_changed_files_are_decoded_anew(sounds, tmp_path):
    first = open_windows(sounds, 8000, tmp_path / "cache", quiet=True)
    soundfile.write(sounds / "chirp.wav", np.zeros(9000, np.float32), 8000)
    second = open_windows(sounds, 8000, tmp_path / "cache", quiet=True)
    assert second.fingerprint != first.fingerprint


def test_a_bad_file_leaves_nothing_behind(sounds, tmp_path):
    (sounds / "zz.wav").write_text("text")
    with pytest.raises(L3PruneError, match=r"zz\.wav cannot be decoded"):
        open_windows(sounds, 8000, tmp_path / "out" / "cache", quiet=True)
    assert not (tmp_path / "out").exists()


def test_nan_in_a_file_is_named(sounds, tmp_path):
    soundfile.write(sounds / "nan.wav", np.full(100, np.nan), 8000, subtype="FLOAT")
    with pytest.raises(L3PruneError, match=r"nan\.wav: audio has NaN"):
        open_windows(sounds, 8000, tmp_path / "cache", quiet=True)


def test_paired_windows_are_the_same_seconds_at_every_rate(tmp_path):
    """One click a window; and lengths at which rounding would give one window more at one rate."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for number, (rate, length) in enumerate([(44100, 44101), (22050, 33001), (16000, 40000)]):
        clicks = np.zeros(length, np.float32)
        # A quarter of a second into each window.
        clicks[rate // 4 :: int(0.3 * rate)] = 0.5
        soundfile.write(folder / f"{number}.wav", clicks, rate, subtype="FLOAT")
    low, high = (
        open_windows(folder, rate, tmp_path / "cache", hop_size=0.3, paired=True, quiet=True)
        for rate in (8000, 48000)
    )
    assert len(low) == len(high) == 2 + 3 + 6
    assert low.fingerprint != high.fingerprint
    places = [
        np.abs(everything(source)[:, 0, : source.sample_rate // 2]).argmax(axis=1)
        / source.sample_rate
        for source in (low, high)
    ]
    np.testing.assert_allclose(places[0], places[1], atol=1.5 / 8000)
    np.testing.assert_allclose(places[1], 0.25, atol=1e-3)
    alone = open_windows(folder, 8000, tmp_path / "cache", hop_size=0.3, quiet=True)
    assert len(alone) != len(low)
    assert alone.fingerprint != low.fingerprint


def test_resampled_windows(shards, tmp_path):
    source = open_windows(shards, 8000, tmp_path)
    lower = Resampled(source, 4000)
    assert (len(lower), lower.sample_rate) == (10, 4000)
    assert lower.fingerprint not in (source.fingerprint, Resampled(source, 2000).fingerprint)
    indices = np.array([7, 3])
    expected = [to_mono(window, 8000, 4000) for window in source.read(indices)[:, 0]]
    np.testing.assert_array_equal(lower.read(indices)[:, 0], expected)
    orders = [each.order(np.random.default_rng(1)).tolist() for each in (lower, source)]
    assert orders[0] == orders[1]
    # 8000 -> 7999 does not come out even.
    assert Resampled(source, 7999).read(indices).shape == (2, 1, 7999)
    with pytest.raises(ParameterError, match="windows at 8000 Hz given where 48000 Hz are wanted"):
        Resampled(source, 48000)


# Shards.


def test_shards_by_hand(shards, tmp_path):
    source = open_windows(shards, 8000, tmp_path / "cache")
    assert len(source) == 10
    with h5py.File(shards / "1.h5") as file:
        expected = file["audio"][[0, 4]] / np.float32(32768)
    np.testing.assert_array_equal(source.read(np.array([7, 3]))[::-1], expected)
    assert abs(everything(source)).max() <= 1
    assert not (tmp_path / "cache").exists()


def test_shard_order_reads_one_shard_after_the_other(shards, tmp_path):
    source = open_windows(shards, 8000, tmp_path)
    order = source.order(np.random.default_rng(0))
    assert sorted(order) == list(range(10))
    shard_of = np.searchsorted([3, 8, 10], order, side="right")
    assert (np.diff(shard_of) != 0).sum() == 2
    assert order.tolist() != sorted(order)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_text("x"), "is not an HDF5 shard, or is damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:3000]), "is not an HDF5 shard, or is damaged"),
        (lambda p: write_no_audio(p), "has no dataset 'audio'"),
        (lambda p: write_float(p), "'audio' is float32 of shape"),
        (lambda p: write_shard(p, 3, rate=48000), r"'audio' is int16 of shape \(3, 1, 48000\)"),
        (lambda p: write_link(p), "has no dataset 'audio'"),
        (lambda p: write_shard(p, 0), "holds no windows"),
    ],
    ids=["text", "truncated", "no audio", "dtype", "rate", "link", "empty"],
)
def test_bad_shards(shards, tmp_path, damage, message):
    if message == "holds no windows":
        for path in shards.iterdir():
            damage(path)
    else:
        damage(shards / "1.h5")
    with pytest.raises(L3PruneError, match=message):
        open_windows(shards, 8000, tmp_path / "cache")


def write_no_audio(path):
    with h5py.File(path, "w") as file:
        file["sound"] = np.zeros((2, 1, 8000), np.int16)


def write_float(path):
    with h5py.File(path, "w") as file:
        file["audio"] = np.zeros((2, 1, 8000), np.float32)


def write_link(path):
    with h5py.File(path, "w") as file:
        file["audio"] = h5py.ExternalLink("/etc/other.h5", "audio")


def test_folders_without_data(tmp_path, shards):
    with pytest.raises(L3PruneError, match="no such folder"):
        open_windows(tmp_path / "none", 8000, tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(L3PruneError, match=r"holds no audio files .* and no .h5 shards"):
        open_windows(empty, 8000, tmp_path)
    soundfile.write(shards / "a.wav", np.zeros(10), 8000)
    with pytest.raises(L3PruneError, match=r"holds both audio files .* and HDF5 shards"):
        open_windows(shards, 8000, tmp_path)


# Targets.


def mean_and_peak(windows):
    return np.stack([windows.mean(axis=(1, 2)), windows.max(axis=(1, 2))], axis=1)


def test_targets_are_computed_once_in_order(shards, tmp_path):
    source = open_windows(shards, 8000, tmp_path)
    first = cached_targets(source, mean_and_peak, "k", 2, tmp_path, batch_size=3, quiet=True)
    np.testing.assert_array_equal(first, mean_and_peak(everything(source)))
    again = cached_targets(source, lambda _: 1 / 0, "k", 2, tmp_path, quiet=True)
    np.testing.assert_array_equal(again, first)
    with pytest.raises(ZeroDivisionError):
        cached_targets(source, lambda _: 1 / 0, "another teacher", 2, tmp_path, quiet=True)


@pytest.mark.parametrize("cut", [0, 5])
def test_interrupted_targets_go_on(shards, tmp_path, cut):
    source = open_windows(shards, 8000, tmp_path)
    seen = []

    def interrupted(windows):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(windows))
        return mean_and_peak(windows)

    with pytest.raises(KeyboardInterrupt):
        cached_targets(source, interrupted, "k", 2, tmp_path, batch_size=3, quiet=True)
    (partial,) = tmp_path.glob("*.part")
    # A kill may also leave half a row.
    partial.write_bytes(partial.read_bytes() + b"\1" * cut)
    counted = []

    def rest(windows):
        counted.append(len(windows))
        return mean_and_peak(windows)

    result = cached_targets(source, rest, "k", 2, tmp_path, batch_size=3, quiet=True)
    np.testing.assert_array_equal(result, mean_and_peak(everything(source)))
    assert sum(counted) == 4


def test_processes_that_share_a_cache_wait_for_each_other(shards, tmp_path):
    """Eight jobs of an array start at once; each gets the whole and right table."""
    script = """
import sys, time, numpy as np
from l3prune.windows import cached_targets, open_windows
def slow(windows):
    time.sleep(0.02)
    return np.stack([windows.mean(axis=(1, 2)), windows.max(axis=(1, 2))], axis=1)
source = open_windows(sys.argv[1], 8000, sys.argv[2], quiet=True)
table = cached_targets(source, slow, "k", 2, sys.argv[2], batch_size=1, quiet=True)
print(np.array_equal(table, slow(source.read(np.arange(len(source))))))
"""
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(shards), str(tmp_path / "cache")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    assert [job.communicate()[0].strip() for job in jobs] == ["True"] * 8
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_cut_table_is_completed(shards, tmp_path):
    source = open_windows(shards, 8000, tmp_path)
    whole = np.array(cached_targets(source, mean_and_peak, "k", 2, tmp_path, quiet=True))
    (path,) = tmp_path.glob("*.f32")
    path.write_bytes(path.read_bytes()[:-3])
    again = cached_targets(source, mean_and_peak, "k", 2, tmp_path, quiet=True)
    np.testing.assert_array_equal(again, whole)


def test_teacher_of_the_wrong_size(shards, tmp_path):
    source = open_windows(shards, 8000, tmp_path)
    with pytest.raises(ParameterError, match=r"the teacher gave \(10, 2\), not \(10, 3\)"):
        cached_targets(source, mean_and_peak, "k", 3, tmp_path, quiet=True)


# Batches.


def take(iterator, count):
    return [next(iterator).tolist() for _ in range(count)]


def test_each_pass_sees_every_window_once_in_a_new_order(shards, tmp_path):
    source = open_windows(shards, 8000, tmp_path)
    stream = np.concatenate(take(batch_indices(source, 4, seed=3), 5)).tolist()
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 23])
@pytest.mark.parametrize("first", [0, 1, 2, 7])
def test_stream_can_be_entered_anywhere(shards, tmp_path, batch_size, first):
    source = open_windows(shards, 8000, tmp_path)
    whole = take(batch_indices(source, batch_size, seed=3), first + 4)
    assert take(batch_indices(source, batch_size, 3, first), 4) == whole[first:]
    assert take(batch_indices(source, batch_size, seed=4), 4) != whole[:4]
