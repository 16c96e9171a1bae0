"""python -m l3prune.avc_data: what pairs of videos are made of, and that runs go on."""

import colorsys
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import filelock
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune.avc_data import main
from l3prune.datasets import making, pairs
from l3prune.datasets.avc import open_pairs
from l3prune.datasets.making import Settings, make_shards
from l3prune.datasets.pairs import (
    BRIGHTNESS,
    GAIN,
    MAX_DRAWS,
    SATURATION,
    Augmentation,
    Sampler,
    change_gain,
    change_picture,
    make_pairs,
)
from l3prune.datasets.shards import METADATA
from l3prune.datasets.videos import Video, VideoError, probe
from l3prune.errors import L3PruneError, ParameterError
from tests.commands import process, words
from tests.video_files import read_colour, read_tone, tone_of, write_clock, write_video

SMALL = Settings(samples=40, batch_size=16, sample_rate=8000, include_metadata=True, seed=5)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos, each of its own colour and tone, which tell the time."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_clock(folder / f"clock{number}.mp4", number)
    return folder


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory):
    """The shards of `SMALL`, made without an interruption; read-only."""
    folder = tmp_path_factory.mktemp("made") / "shards"
    assert make_shards(videos, folder, SMALL, quiet=True).new == 3
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def rows(folder):
    """All datasets of all shards of a folder, in the order of their numbers."""
    paths = sorted(folder.glob("*.h5"), key=lambda path: int(path.stem.split("_")[2]))
    result = {}
    for path in paths:
        with h5py.File(path) as file:
            for name in file:
                result.setdefault(name, []).append(file[name][:])
    return {name: np.concatenate(values) for name, values in result.items()}


# What pairs are made of.


def three(**changes):
    lengths = {"a": 10.0, "b": 4.0, "c": 0.5, **changes}
    return [Video(name, name, 0.5, 0.5 + end, 0.0, 0.0, 25.0) for name, end in lengths.items()]


@given(
    number=st.integers(0, 10**9),
    seed=st.integers(0, 2**40),
    distractors=st.integers(1, 2),
    augment=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_pair_is_within_its_videos(number, seed, distractors, augment):
    videos = three()
    sampler = Sampler(videos, seed=seed, sample_rate=8000, distractors=distractors, augment=augment)
    pair = sampler.pair(number)
    heard, seen = videos[pair.audio], videos[pair.pictures]
    assert heard.start <= pair.audio_time <= max(heard.end - 1, heard.start)
    assert seen.start <= pair.picture_time < seen.end
    if pair.match:
        assert 0 <= pair.picture_time - pair.audio_time < 1
    samples = (pair.audio_time - heard.start) * 8000
    assert samples == pytest.approx(round(samples), abs=1e-4)
    assert all(0 <= place < 1 for place in pair.crop)
    assert (pair.augmentation is not None) == augment
    assert pair == sampler.pair(number)


def test_half_of_the_pairs_match_and_all_videos_come_equally_often():
    sampler = Sampler(three(), seed=1, sample_rate=8000)
    drawn = [sampler.pair(number) for number in range(3000)]
    assert np.mean([pair.match for pair in drawn]) == pytest.approx(0.5, abs=0.03)
    for which in ("audio", "pictures"):
        counts = np.bincount([getattr(pair, which) for pair in drawn])
        # With its partner each comes in the same number of twos, give or take a partner.
        assert counts.min() > 400
        for match in (True, False):
            share = np.bincount([getattr(p, which) for p in drawn if p.match == match])
            np.testing.assert_allclose(share / share.sum(), counts / counts.sum(), atol=0.04)


def test_pictures_are_drawn_alike_for_both_labels():
    """Otherwise the time in the video alone would tell them apart."""
    sampler = Sampler(three(a=10, b=10, c=10), seed=1, sample_rate=8000)
    drawn = [sampler.pair(number) for number in range(6000)]
    for which in ("audio_time", "picture_time"):
        times = [[getattr(p, which) for p in drawn if p.match == match] for match in (0, 1)]
        quartiles = [np.quantile(each, [0.1, 0.25, 0.5, 0.75, 0.9]) for each in times]
        np.testing.assert_allclose(quartiles[0], quartiles[1], atol=0.5)


def test_a_pass_takes_every_two_once():
    sampler = Sampler(three(d=9.0), seed=3, sample_rate=8000, distractors=2)
    for start in (0, 8, 16):
        twos = [
            (pair.audio, pair.pictures)
            for pair in map(sampler.pair, range(start, start + 8))
            if not pair.match
        ]
        assert len(twos) < 8
    # Each is heard or seen with no more than its two partners, and those that chose it.
    partners = [sampler._partners(video) for video in range(4)]
    for video, others in enumerate(partners):
        assert len(set(others)) == 2
        assert video not in others
    allowed = {
        frozenset((video, other)) for video, others in enumerate(partners) for other in others
    }
    met = set()
    for pair in map(sampler.pair, range(800)):
        if not pair.match:
            met.add(frozenset((pair.audio, pair.pictures)))
    assert met == allowed


def test_another_seed_or_draw_is_another_pair():
    sampler = Sampler(three(), seed=1, sample_rate=8000)
    others = [
        sampler.pair(0, 1),
        sampler.pair(1),
        Sampler(three(), seed=2, sample_rate=8000).pair(0),
    ]
    assert sampler.pair(0) not in others


def test_augmentation_changes_nothing_else():
    plain, changed = (
        Sampler(three(), seed=1, sample_rate=8000, augment=augment) for augment in (False, True)
    )
    for number in range(50):
        first, second = plain.pair(number), changed.pair(number)
        assert first.augmentation is None
        assert (first.audio_time, first.picture_time, first.crop) == (
            second.audio_time,
            second.picture_time,
            second.crop,
        )


def test_range_of_the_augmentation():
    sampler = Sampler(three(), seed=1, sample_rate=8000, augment=True)
    drawn = [sampler.pair(number).augmentation for number in range(2000)]
    for name, (low, high) in {"saturation": SATURATION, "brightness": BRIGHTNESS}.items():
        values = [getattr(each, name) for each in drawn]
        assert low <= min(values) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < max(values) <= high
    for name in ("flip", "saturation_first"):
        assert np.mean([getattr(each, name) for each in drawn]) == pytest.approx(0.5, abs=0.05)


@given(peak=st.integers(0, 32767), chance=st.floats(0, 1, exclude_max=True))
def test_louder_sound_does_not_clip(peak, chance):
    sound = np.array([peak, -peak, peak // 2], np.int16)
    changed, gain = change_gain(sound, chance)
    assert GAIN[0] <= gain <= GAIN[1]
    assert changed.dtype == np.int16
    # Rounded, but not wrapped around.
    np.testing.assert_allclose(changed, sound * gain, atol=0.5 + 1e-6)


def test_loudest_sample_of_all():
    changed, gain = change_gain(np.array([-32768, 0], np.int16), 0.999)
    assert gain < 1
    assert changed[0] >= -32767


@given(
    colour=st.tuples(*[st.integers(0, 255)] * 3),
    factor=st.floats(*SATURATION),
    delta=st.floats(*BRIGHTNESS),
    first=st.booleans(),
)
@settings(max_examples=200)
def test_colours_change_as_in_hsv(colour, factor, delta, first):
    values = np.array(colour) / 255

    def saturate(values):
        hue, saturation, value = colorsys.rgb_to_hsv(*values)
        return np.array(colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value))

    def brighten(values):
        return np.clip(values + delta, 0, 1)

    for step in (saturate, brighten) if first else (brighten, saturate):
        values = step(values)
    picture = np.array([[colour]], np.uint8)
    changed = change_picture(picture, Augmentation(0.0, False, factor, delta, first))
    np.testing.assert_allclose(changed[0, 0], 255 * values, atol=0.51)


def test_mirrored_picture():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    changed = change_picture(picture, Augmentation(0.0, True, 1.0, 0.0, True))
    np.testing.assert_array_equal(changed, picture[:, ::-1])


def test_too_few_videos_for_the_distractors():
    with pytest.raises(ParameterError, match="distractors=3, but there are only 2 other videos"):
        Sampler(three(), seed=0, sample_rate=8000, distractors=3)
    with pytest.raises(L3PruneError, match="need two videos at least, and there are 1"):
        Sampler(three()[:1], seed=0, sample_rate=8000)


# Shards of real videos.


def test_sound_and_picture_of_a_match_overlap_in_time(made):
    """Measured in what was stored: colours tell the time of the picture, tones of the sound."""
    values = rows(made)
    assert len(values["label"]) == 40
    matches = 0
    for number in range(40):
        heard, begin = read_tone(values["audio"][number, 0], 8000)
        seen, shown = read_colour(values["video"][number])
        match = heard == seen
        matches += match
        np.testing.assert_array_equal(values["label"][number], [not match, match])
        if match:
            # A frame stays for 0.1 s; the rest is the error of reading colours and tones.
            assert -0.3 < shown - begin < 1.2, number
        assert begin == pytest.approx(values["audio_time"][number], abs=0.1)
        assert shown == pytest.approx(values["video_time"][number], abs=0.2)
        assert values["audio_file"][number] == f"clock{heard}.mp4".encode()
        assert values["video_file"][number] == f"clock{seen}.mp4".encode()
    assert 10 < matches < 30


def test_metadata_is_that_of_l3_net(made):
    values = rows(made)
    assert set(values) == {"video", "audio", "label", *METADATA}
    samples = values["audio_start_sample_idx"]
    np.testing.assert_allclose(samples / 8000, values["audio_time"], atol=1e-6)
    np.testing.assert_allclose(
        values["video_start_frame_idx"] / 10, values["video_time"], atol=1e-6
    )
    # 64 x 48 becomes 341 x 256.
    assert values["video_bounding_box_start_x"].min() >= 0
    assert 90 < values["video_bounding_box_start_x"].max() <= 341 - 224
    assert 20 < values["video_bounding_box_start_y"].max() <= 256 - 224
    assert set(values["audio_gain"]) == set(values["video_saturation_factor"]) == {1}
    assert not values["video_horizontal_flip"].any()
    assert not values["video_brightness_delta"].any()


def test_names_of_shards(made):
    assert sorted(path.name for path in made.glob("*.h5")) == ["5_0_0.h5", "5_0_1.h5", "5_0_2.h5"]
    with h5py.File(made / "5_0_2.h5") as file:
        assert len(file["label"]) == 40 - 2 * 16
    assert len(open_pairs(made, 8000)) == 40


def test_without_metadata_only_what_is_trained_on(videos, made, tmp_path):
    plain = Settings(samples=40, batch_size=16, sample_rate=8000, seed=5)
    make_shards(videos, tmp_path / "plain", plain, quiet=True)
    values = rows(tmp_path / "plain")
    assert set(values) == {"video", "audio", "label"}
    for name, value in rows(made).items():
        if name in values:
            np.testing.assert_array_equal(values[name], value)


def test_the_same_settings_give_the_same_bytes(videos, made, tmp_path):
    moved = shutil.copytree(videos, tmp_path / "moved")
    for workers in (1, 3):
        folder = tmp_path / f"{workers}"
        make_shards(moved, folder, SMALL, workers=workers, quiet=True)
        first, second = contents(made), contents(folder)
        # This one tells where the videos are.
        del first["videos.csv"], second["videos.csv"]
        assert first == second


@pytest.mark.parametrize(
    "change",
    [{"seed": 6}, {"augment": True}, {"distractors": 2}, {"sample_rate": 16000}],
    ids=["seed", "augment", "distractors", "rate"],
)
def test_other_settings_give_other_pairs(videos, made, tmp_path, change):
    from dataclasses import replace

    folder = tmp_path / "shards"
    make_shards(videos, folder, replace(SMALL, samples=16, **change), quiet=True)
    first, second = rows(made), rows(folder)
    name = "audio" if "sample_rate" in change else "video"
    assert not np.array_equal(first[name][:16], second[name])
    if "augment" in change:
        assert len(set(second["audio_gain"])) == 16
        assert set(second["video_horizontal_flip"]) == {0, 1}
        np.testing.assert_array_equal(first["label"][:16], second["label"])
        loud = np.abs(second["audio"].astype(int)).max(axis=(1, 2))
        before = np.abs(first["audio"][:16].astype(int)).max(axis=(1, 2))
        np.testing.assert_allclose(loud, before * second["audio_gain"], atol=1)


def test_a_finished_run_makes_nothing_again(videos, made, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in made.glob("*.h5")}
    monkeypatch.setattr(making, "probe", lambda *_: 1 / 0)
    assert make_shards(videos, made, SMALL, quiet=True).new == 0
    assert {path: path.stat().st_mtime_ns for path in made.glob("*.h5")} == before


def test_other_settings_or_videos_are_refused(videos, made, tmp_path):
    from dataclasses import replace

    with pytest.raises(ParameterError, match=r"other settings .*seed=5 there, 6 here"):
        make_shards(videos, made, replace(SMALL, seed=6), quiet=True)
    more = shutil.copytree(videos, tmp_path / "more")
    write_clock(more / "z.mp4", 0, seconds=1)
    with pytest.raises(ParameterError, match=r"other settings .*videos=3 there, 4 here"):
        make_shards(more, made, SMALL, quiet=True)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    with pytest.raises(L3PruneError, match=r"is not empty and holds no shards\.json"):
        make_shards(videos, full, SMALL, quiet=True)


def test_only_one_run_at_a_time(videos, made):
    with (
        filelock.FileLock(made / ".lock"),
        pytest.raises(L3PruneError, match="another run is at work in"),
    ):
        make_shards(videos, made, SMALL, quiet=True)


def bad_videos(folder):
    """Videos that cannot be used, with the reasons."""
    write_video(folder / "deaf.mp4", paint=lambda time: 0)
    write_video(folder / "blind.mp4", sound=tone_of(0, 2))
    (folder / "text.mkv").write_text("no video")
    whole = write_clock(folder / "cut.mp4", 0, seconds=1)
    whole.write_bytes(whole.read_bytes()[:-300])
    return {
        "blind.mp4": "no video track",
        "cut.mp4": "cannot be opened (Invalid data found when processing input)",
        "deaf.mp4": "no audio track",
        "text.mkv": "cannot be opened (Invalid data found when processing input)",
    }


def read_skipped(folder):
    with (folder / "skipped.csv").open(newline="") as file:
        return {os.path.basename(row["file"]): row["reason"] for row in csv.DictReader(file)}


def test_bad_videos_are_skipped_and_listed(videos, tmp_path):
    folder = shutil.copytree(videos, tmp_path / "videos")
    reasons = bad_videos(folder)
    out = tmp_path / "shards"
    done = make_shards(folder, out, SMALL, quiet=True)
    assert (done.videos, done.skipped, done.damaged) == (3, 4, 0)
    assert read_skipped(out) == reasons
    # They are no part of any pair: those are the pairs of the good ones.
    assert set(rows(out)["audio_file"]) <= {f"clock{n}.mp4".encode() for n in range(3)}
    first = contents(out)
    (out / "5_0_1.h5").unlink()
    (out / "skipped.csv").unlink()
    assert make_shards(folder, out, SMALL, quiet=True).new == 1
    assert contents(out) == first


def test_fewer_than_two_good_videos(tmp_path):
    folder = tmp_path / "videos"
    write_clock(folder / "good.mp4", 0, seconds=1)
    bad_videos(folder)
    out = tmp_path / "new" / "shards"
    with pytest.raises(
        L3PruneError,
        match=r"need two videos, and of 5 1 can be used \(blind\.mp4: no video track; cut\.mp4: ",
    ):
        make_shards(folder, out, SMALL, quiet=True)
    # So that the folder can be used once there are more.
    assert not (tmp_path / "new").exists()
    write_clock(folder / "another.mp4", 1, seconds=1)
    assert make_shards(folder, out, SMALL, quiet=True).videos == 2


def test_videos_damaged_in_the_middle_are_used_where_they_are_whole(videos, tmp_path):
    folder = shutil.copytree(videos, tmp_path / "videos")
    path = folder / "clock1.mp4"
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 8
    middle = start + (data.index(b"moov") - start) // 2
    data[middle : middle + 4000] = np.random.default_rng(0).bytes(4000)
    path.write_bytes(data)
    out = tmp_path / "shards"
    done = make_shards(folder, out, SMALL, quiet=True)
    assert (done.skipped, done.damaged) == (0, 1)
    reason = read_skipped(out)["clock1.mp4"]
    assert "draws failed, first: " in reason
    assert "what can be decoded is used" in reason
    values = rows(out)
    assert b"clock1.mp4" in values["video_file"]
    for number in range(40):
        heard, begin = read_tone(values["audio"][number, 0], 8000)
        seen, shown = read_colour(values["video"][number])
        np.testing.assert_array_equal(values["label"][number], [heard != seen, heard == seen])
        if heard == seen:
            assert -0.5 < shown - begin < 1.5
    first = contents(out)
    for workers in (1, 2):
        shutil.rmtree(out)
        make_shards(folder, out, SMALL, workers=workers, quiet=True)
        assert contents(out) == first


def test_videos_that_are_gone_end_the_run(videos, tmp_path):
    folder = shutil.copytree(videos, tmp_path / "videos")
    found = [probe(path, path) for path in sorted(folder.iterdir())]
    shutil.rmtree(folder)
    sampler = Sampler(found, seed=0, sample_rate=8000)
    with pytest.raises(
        L3PruneError, match=rf"{MAX_DRAWS} draws in a row cannot be decoded, .*: no such file"
    ):
        make_pairs(sampler, range(4), lambda number, values: None)


def test_a_draw_that_fails_is_drawn_anew(videos, monkeypatch):
    """Sound and picture of a pair are of the same draw, whichever of them failed."""
    found = [probe(path, path) for path in sorted(videos.iterdir())]
    sampler = Sampler(found, seed=0, sample_rate=8000)
    second = pairs.Track.second

    def fails_at_first(track, start, rate):
        if start < 2:
            raise VideoError("no sound today")
        return second(track, start, rate)

    monkeypatch.setattr(pairs.Track, "second", fails_at_first)
    values = {}
    failures = make_pairs(
        sampler, range(20), lambda number, new: values.setdefault(number, {}).update(new)
    )
    assert failures
    assert {each.reason for each in failures} == {"no sound today"}
    assert {each.path for each in failures} <= {video.audio for video in found}
    for value in values.values():
        assert value["audio_time"] >= 2
        match = value["audio_file"] == value["video_file"]
        assert value["label"] == [not match, match]
        if match:
            assert -0.1 <= value["video_time"] - value["audio_time"] < 1


def test_what_cannot_be_decoded_does_not_come_again(videos):
    """Draws after the first take any two of videos, not those of the pair's place."""
    found = [probe(path, path) for path in sorted(videos.iterdir())]
    sampler = Sampler(found, seed=0, sample_rate=8000)
    drawn = {frozenset((p.audio, p.pictures)) for p in (sampler.pair(0, n) for n in range(1, 40))}
    assert len(drawn) > 2


def test_a_csv_of_sound_and_picture_files(tmp_path):
    folder = tmp_path / "data"
    for number in range(2):
        sound = folder / "audio" / f"v{number}.mkv"
        write_video(sound, sound=tone_of(number, 3))
        write_clock(folder / "video" / f"v{number}.mp4", number, seconds=3)
    assert main(words("subsets", folder, tmp_path, "-vr", 0, "-tr", 0)) == 0
    out = tmp_path / "shards"
    make_shards(tmp_path / "train.csv", out, SMALL, quiet=True)
    values = rows(out)
    assert set(values["audio_file"]) == {b"v0.mkv", b"v1.mkv"}
    assert set(values["video_file"]) == {b"v0.mp4", b"v1.mp4"}
    for number in range(40):
        heard, begin = read_tone(values["audio"][number, 0], 8000)
        seen, shown = read_colour(values["video"][number])
        if values["label"][number, 1]:
            assert heard == seen
            assert -0.3 < shown - begin < 1.2
        else:
            assert heard != seen


def test_short_videos_are_padded(tmp_path):
    for number in range(2):
        write_clock(tmp_path / "videos" / f"{number}.mp4", number, seconds=0.6)
    make_shards(tmp_path / "videos", tmp_path / "shards", SMALL, quiet=True)
    values = rows(tmp_path / "shards")
    assert not values["audio_start_sample_idx"].any()
    assert np.abs(values["audio"][:, 0, :4000]).max(axis=1).min() > 5000
    assert not values["audio"][:, 0, 6000:].any()
    assert values["video_time"].max() < 0.6


@pytest.mark.shared
def test_recorded_video(shared, tmp_path, capsys):
    """A real one, of a camera, through all commands."""
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(shared / "data" / "video" / "bento.mp4", folder / "bento.mp4")
    write_clock(folder / "clock.mp4", 0)
    video = probe(folder / "bento.mp4", folder / "bento.mp4")
    # Eleven frames, ten a second, and sound that ends a little before the last one.
    assert (video.frame_rate, video.end) == (10, pytest.approx(0.998, abs=1e-3))
    assert main(words("subsets", folder, tmp_path / "csv", "-vr", 0, "-tr", 0)) == 0
    line = words("shards", tmp_path / "csv" / "train.csv", tmp_path / "shards")
    line += words("--samples", 48, "-bs", 16, "-a", "-im", "-n", 2, "--quiet")
    assert main(line) == 0
    assert main(words("inspect", tmp_path / "shards")) == 0
    assert "3 shards" in capsys.readouterr().out
    values = rows(tmp_path / "shards")
    bento = values["video_file"] == b"bento.mp4"
    assert 0 < bento.sum() < 48
    # A picture of a camera has many colours, and the sound is not silent.
    assert np.std(values["video"][bento].reshape(bento.sum(), -1), axis=1).min() > 20
    heard = values["audio_file"] == b"bento.mp4"
    assert np.abs(values["audio"][heard]).max(axis=(1, 2)).min() > 100
    matches = values["label"][:, 1] == 1
    ahead = (values["video_time"] - values["audio_time"])[matches]
    assert ahead.min() > -0.2
    assert ahead.max() < 1
    assert len(open_pairs(tmp_path / "shards", 48000)) == 48


# Runs that are interrupted.

ROOT = Path(__file__).parent.parent
LINE = ("--samples", "96", "-bs", "8", "--sample-rate", "8000", "-r", "5", "--quiet")


def start(*line):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "l3prune.avc_data", "shards", *words(*line)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_bytes(videos, tmp_path):
    whole = tmp_path / "whole"
    assert start(videos, whole, *LINE, "-n", 1).wait() == 0
    out = tmp_path / "killed"
    rng = np.random.default_rng(0)
    kills = 0
    while True:
        run = start(videos, out, *LINE, "-n", 1 + kills % 2)
        # After so many more shards, and a moment.
        wanted = len(list(out.glob("[!.]*.h5"))) + rng.integers(3)
        workers = []
        while len(list(out.glob("[!.]*.h5"))) < wanted and run.poll() is None:
            workers = children(run.pid) or workers
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if run.poll() is not None:
            assert run.returncode == 0, run.stderr.read()
            break
        run.kill()
        run.wait()
        kills += 1
        # Nothing half-made under a shard's name, and nobody who still works.
        for path in out.glob("[!.]*.h5"):
            assert path.read_bytes() == (whole / path.name).read_bytes()
        deadline = time.monotonic() + 10
        while any(map(alive, workers)):
            assert time.monotonic() < deadline, "workers outlive the run"
            time.sleep(0.05)
    assert kills >= 4
    assert contents(out) == contents(whole)
    assert not list(out.glob(".*.h5"))


def test_full_disk_ends_in_one_line_and_no_broken_file(videos, tmp_path):
    """The system refuses to write more than so many bytes of a file."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))

    out = tmp_path / "shards"
    ended = subprocess.run(
        [sys.executable, "-m", "l3prune.avc_data", "shards", *words(videos, out, *LINE, "-n", 1)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: cannot write ")
    assert ended.stderr.count("\n") == 1
    assert not list(out.glob("*.h5")) + list(out.glob(".*.h5"))
    # With room again, the run goes on.
    assert start(videos, out, *LINE, "-n", 1).wait() == 0
    assert len(list(out.glob("*.h5"))) == 12


# The command.


def run(capsys, *line):
    capsys.readouterr()
    code = main(words(*line))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_shards_from_the_command_line(videos, made, tmp_path, capsys):
    folder = shutil.copytree(videos, tmp_path / "videos")
    (folder / "text.avi").write_text("no video")
    out = tmp_path / "shards"
    line = ("shards", folder, out, "--samples", 40, "-bs", 16, "--sample-rate", 8000)
    line += ("-r", 5, "-im", "-nd", 1, "-n", 1, "--quiet", "-ns", 20, "-mr", 20, "-pc")
    code, printed, told = run(capsys, *line)
    assert code == 0
    assert printed == f"{out}: 40 pairs of 3 videos in 3 shards, 3 made now\n"
    assert told == f"1 video skipped, see {out}/skipped.csv\n"
    for name, value in rows(made).items():
        np.testing.assert_array_equal(rows(out)[name], value)
    assert run(capsys, *line)[1].endswith("3 shards, 0 made now\n")
    record = json.loads((out / "shards.json").read_text())
    assert (record["samples"], record["seed"], record["videos"]) == (40, 5, 4)


def test_progress_is_shown_to_people_only(videos, tmp_path):
    ended = process("l3prune.avc_data", "shards", videos, tmp_path / "a", *LINE[:-1], "-n", 2)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--samples", 0), "samples=0 is not a whole number from 1 on"),
        (("--samples", 4, "-bs", 0), "batch_size=0 is not"),
        (("--samples", 4, "-nd", 3), "distractors=3, but there are only 2 other videos"),
        (("--samples", 4, "--sample-rate", 5), "sample_rate=5 is not a whole number in 100"),
        (("--samples", 4, "-n", 0), "workers=0 is not"),
        (("--samples", 4, "-r", -1), "seed=-1 is not"),
    ],
)
def test_bad_settings(videos, tmp_path, capsys, line, message):
    code, printed, told = run(capsys, "shards", videos, tmp_path / "out", *line, "--quiet")
    assert (code, printed) == (2, "")
    assert told.startswith("error: ")
    assert message in told
    assert not (tmp_path / "out").exists()


def test_bad_sources(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "a.csv").write_text("x\n")
    for source, message in [
        (tmp_path / "none", "no such folder or csv"),
        (empty, "holds no videos (.mp4, .mkv, .webm, .mov, .avi)"),
        (tmp_path / "a.csv", "has no column ytid, audio_filepath, video_filepath"),
    ]:
        code, _, told = run(capsys, "shards", source, tmp_path / "out", "--samples", 4)
        assert (code, message in told, told.count("\n")) == (2, True, 1), told
    assert not (tmp_path / "out").exists()


def test_csv_with_files_that_are_gone(videos, tmp_path, capsys):
    lines = ["ytid,audio_filepath,video_filepath,labels"]
    lines += [f"{n},{videos}/clock{n}.mp4,{videos}/clock{n}.mp4," for n in range(5)]
    # One is listed twice, which makes it no other video.
    (tmp_path / "a.csv").write_text("\n".join([*lines, lines[1]]))
    code, _, told = run(
        capsys, "shards", tmp_path / "a.csv", tmp_path / "out", "--samples", 4, "-n", 1, "--quiet"
    )
    assert code == 0
    assert told.startswith("2 videos skipped")
    assert json.loads((tmp_path / "out" / "shards.json").read_text())["videos"] == 5
    assert read_skipped(tmp_path / "out") == dict.fromkeys(
        ["clock3.mp4", "clock4.mp4"], "no such file"
    )


def test_inspect_prints_a_table(made, capsys):
    code, printed, told = run(capsys, "inspect", made)
    labels = rows(made)["label"][:, 1]
    assert (code, told) == (0, "")
    table = [line.split() for line in printed.splitlines()]
    assert table[0] == ["shard", "pairs", "rate", "matches", "metadata"]
    share = f"{100 * labels[:16].mean():.1f}"
    assert table[1] == ["5_0_0.h5", "16", "8000", share, "%", "yes"]
    assert table[4] == ["all", "40", "8000", f"{100 * labels.mean():.1f}", "%"]
    code, printed, _ = run(capsys, "inspect", made / "5_0_2.h5")
    assert (code, printed.splitlines()[1].split()[:2]) == (0, ["5_0_2.h5", "8"])


def test_inspect_names_what_is_damaged(made, tmp_path, capsys):
    folder = shutil.copytree(made, tmp_path / "shards")
    (folder / "5_0_1.h5").write_text("no shard")
    code, printed, told = run(capsys, "inspect", folder)
    assert code == 2
    assert printed.splitlines()[2].split() == ["5_0_1.h5", "damaged"]
    assert printed.splitlines()[-1].split()[1] == "24"
    assert told.startswith(f"damaged: {folder}/5_0_1.h5 is not an HDF5 shard")
    assert told.count("\n") == 1


def test_inspect_without_shards(tmp_path, capsys):
    assert run(capsys, "inspect", tmp_path)[0] == 2
    code, _, told = run(capsys, "inspect", tmp_path / "none")
    assert (code, told) == (2, f"error: no such folder: {tmp_path}/none\n")


def test_subsets_from_the_command_line(tmp_path, capsys):
    for number in range(10):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{number}.mp4").touch()
    (tmp_path / "s.csv").write_text(
        "".join(f"{number}, 0, 10, /m/{number}\n" for number in range(3, 15))
    )
    line = ("subsets", tmp_path / "data", tmp_path / "out", "music", "-mp", tmp_path / "s.csv")
    code, printed, told = run(capsys, *line, "-vr", 0.2, "-tr", 0.1, "-r", 3)
    assert code == 0
    assert [text.rpartition("/")[2] for text in printed.splitlines()] == [
        "music_train.csv: 6 videos",
        "music_valid.csv: 1 video",
        "music_test.csv: 0 videos",
    ]
    assert told.splitlines() == [
        "videos of the csv without a file: 5 (10, 11, 12, 13, 14)",
        "videos that are not in the csv, not used: 3 (0, 1, 2)",
        "test: empty, 7 videos are too few for 0.1 of them",
    ]
    code, _, told = run(capsys, *line, "-vr", 2)
    assert (code, told.count("\n")) == (2, 1)
