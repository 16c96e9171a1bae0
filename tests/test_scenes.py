"""Files of made-up videos: what was composed, the same for the same settings, never half."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from l3prune.datasets import list_datasets, scenes, sounds
from l3prune.datasets.scenes import encode, main, make_scenes
from l3prune.datasets.stage import VERSION, Format, cast, compose
from l3prune.errors import L3PruneError, ParameterError

SMALL = {"seconds": 1.0, "sample_rate": 8000, "size": 64}
VIDEOS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes"), **SMALL, videos=VIDEOS, seed=1)


def read_bytes(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def decode(source):
    """Pictures (frames, height, width, 3), samples, sample rate of a video file."""
    with av.open(source) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if isinstance(source, io.BytesIO):
        source.seek(0)
    with av.open(source) as container:
        frames = list(container.decode(audio=0))
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    return np.stack(pictures), samples, frames[0].sample_rate


def test_files_table_and_names_agree(folder):
    with (folder / "scenes.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["file_name", "labels", "distractor"]
    assert set(read_bytes(folder)) == {
        *(row["file_name"] for row in rows),
        "scenes.csv",
        "scenes.json",
    }
    for number, row in enumerate(rows):
        labels, distracted = cast(1, number)
        assert row == {
            "file_name": f"scene_{number:05d}_{'-'.join(labels)}.mp4",
            "labels": " ".join(labels),
            "distractor": str(int(distracted)),
        }
    assert any("-" in row["file_name"] for row in rows)


def test_files_decode_to_what_was_composed(folder):
    form = Format(**SMALL)
    for number, path in enumerate(sorted(folder.glob("*.mp4"))):
        video = compose(1, number, form)
        pictures, samples, rate = decode(str(path))
        assert pictures.shape == (12, 64, 64, 3)
        assert np.abs(pictures - np.stack(list(video.frames())).astype(float)).mean() < 8
        assert rate == 8000
        assert 8000 <= len(samples) < 8000 + 2048
        assert np.corrcoef(samples[:8000], video.samples)[0, 1] > 0.9


def test_files_say_what_they_are(folder):
    with av.open(str(next(folder.glob("*.mp4")))) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.average_rate) == ("h264", 12)
        assert (sound.codec_context.name, sound.codec_context.channels) == ("aac", 1)
        assert container.duration == pytest.approx(1e6, abs=1.5e5)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_sound_keeps_its_rate_and_place(rate):
    video = compose(0, 3, Format(seconds=0.5, sample_rate=rate, frame_rate=10, size=64))
    pictures, samples, found = decode(io.BytesIO(encode(video)))
    assert (len(pictures), found) == (5, rate)
    assert np.corrcoef(samples[: len(video.samples)], video.samples)[0, 1] > 0.85


def test_same_settings_give_the_same_bytes(folder, tmp_path):
    again = make_scenes(tmp_path / "again", **SMALL, videos=np.int64(VIDEOS), seed=1, workers=2)
    assert read_bytes(again) == read_bytes(folder)


def test_another_seed_gives_other_videos(folder, tmp_path):
    other = make_scenes(tmp_path, **SMALL, videos=2, seed=2)
    videos = [data for name, data in read_bytes(other).items() if name.endswith(".mp4")]
    assert not set(videos) & set(read_bytes(folder).values())


def test_video_does_not_depend_on_their_number(folder, tmp_path):
    few = read_bytes(make_scenes(tmp_path, **SMALL, videos=2, seed=1))
    videos = {name: data for name, data in few.items() if name.endswith(".mp4")}
    assert len(videos) == 2
    assert videos.items() <= read_bytes(folder).items()


def test_interrupted_run_continues_where_it_stopped(folder, tmp_path, monkeypatch):
    made = []

    def failing_encode(video):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(1)
        return encode(video)

    monkeypatch.setattr(scenes, "encode", failing_encode)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path, **SMALL, videos=VIDEOS, seed=1)
    assert len(read_bytes(tmp_path)) == 4 + 1  # the settings
    assert not (tmp_path / "scenes.csv").exists()

    monkeypatch.setattr(scenes, "encode", lambda video: (made.append(1), encode(video))[1])
    make_scenes(tmp_path, **SMALL, videos=VIDEOS, seed=1)
    assert len(made) == VIDEOS
    assert read_bytes(tmp_path) == read_bytes(folder)


def test_whole_folder_is_left_as_it_is_and_a_lost_video_made_again(tmp_path):
    make_scenes(tmp_path, **SMALL, videos=2, seed=1)
    lost, kept = sorted(tmp_path.glob("*.mp4"))
    data, time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    make_scenes(str(tmp_path), **SMALL, videos=2, seed=1)
    assert (lost.read_bytes(), kept.stat().st_mtime_ns) == (data, time)


def test_settings_are_recorded(folder):
    assert json.loads((folder / "scenes.json").read_text()) == {
        "generator": "l3prune.datasets.scenes",
        "version": VERSION,
        "version_of_sounds": sounds.VERSION,
        "videos": VIDEOS,
        **SMALL,
        "frame_rate": 12,
        "seed": 1,
    }


def test_other_settings_in_the_same_folder_are_refused(folder):
    with pytest.raises(ParameterError, match=r"other settings \(size=64 there, 66 here\); repeat"):
        make_scenes(folder, **{**SMALL, "size": 66}, videos=VIDEOS, seed=1)


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(L3PruneError, match=r"not empty .* no scenes\.json \(it holds thesis\.txt"):
        make_scenes(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(L3PruneError, match="cannot make the folder"):
        make_scenes(tmp_path / "file", **SMALL)


def test_full_disk_leaves_no_half_video(folder, tmp_path, monkeypatch, capsys):
    write, written = Path.write_bytes, []

    def short_write(path, data):
        if len(written) == 2:
            write(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write(path, data)

    line = ["--videos", str(VIDEOS), "--seconds", "1", "--sample-rate", "8000", "--size", "64"]
    line = [str(tmp_path), *line, "--seed", "1", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", short_write)
        assert main(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"error: cannot write \S+/scene_00002_\S+\.mp4: No space left on device\n", err
    )
    assert len(list(tmp_path.iterdir())) == 2 + 1  # no temporary file either
    assert main(line) == 0
    assert read_bytes(tmp_path) == read_bytes(folder)


def test_missing_pyav_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(L3PruneError, match=r"PyAV.* is not installed; install it"):
        make_scenes(tmp_path / "scenes", **SMALL)
    assert not (tmp_path / "scenes").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"videos": 0}, "videos=0 is not a whole number from 1 on"),
        ({"videos": 2.0}, "videos=2.0 is not a whole number"),
        ({"seed": -1}, "seed=-1 is not a whole number from 0 on"),
        ({"workers": 0}, "workers=0 is not a whole number from 1 on"),
        ({"seconds": 0}, r"seconds=0 is not in \[0.1, 600.0\]"),
        ({"seconds": float("nan")}, r"seconds=nan is not in"),
        ({"sample_rate": 4000}, "sample_rate=4000 is not a whole number from 8000 on"),
        ({"sample_rate": 16000.0}, "sample_rate=16000.0 is not a whole number"),
        ({"sample_rate": 20000}, "sample_rate=20000 is no rate of AAC .* 16000, 22050,"),
        ({"frame_rate": 0}, "frame_rate=0 is not a whole number in 1 … 60"),
        ({"frame_rate": 61}, "frame_rate=61 is not a whole number in 1 … 60"),
        ({"size": 62}, "size=62 is not a whole number in 64 … 1024"),
        ({"size": 1026}, "size=1026 is not a whole number in 64 … 1024"),
        ({"size": 65}, "size=65 is odd, .* choose 66"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(tmp_path, setting, message):
    with pytest.raises(ParameterError, match=message):
        make_scenes(tmp_path / "scenes", **setting)
    assert not (tmp_path / "scenes").exists()


def test_modules_are_no_corpora_of_the_registry():
    assert not {"scenes", "stage", "looks"} & set(list_datasets())


def test_command_shows_a_bar_and_the_folder(tmp_path, capsys):
    line = ["--videos", "2", "--seconds", "0.5", "--size", "64", "--frame-rate", "4"]
    assert main([str(tmp_path), *line]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}\n"
    assert "2/2" in err


def test_command_reports_a_bad_setting_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "scenes"), "--seconds", "-1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: seconds=-1\.0 is not in \[0\.1, 600\.0\][^\n]*\n", err)


@pytest.mark.parametrize("arguments", [[], ["scenes", "--videos", "many"], ["scenes", "--what"]])
def test_command_rejects_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m l3prune.datasets.scenes" in capsys.readouterr().err


def test_help_needs_no_video_library_nor_tensorflow():
    code = (
        "import sys, runpy; sys.argv = ['scenes', '--help']\n"
        "try: runpy.run_module('l3prune.datasets.scenes', run_name='__main__')\n"
        "except SystemExit as stopped: assert stopped.code == 0\n"
        "heavy = {'tensorflow', 'tf_keras', 'librosa', 'scipy', 'av', 'pandas', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "OUTPUT_DIR" in done.stdout
