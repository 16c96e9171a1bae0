"""The made-up corpus: US8K's layout to the letter, the same bytes for the same settings."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from l3prune.datasets import list_datasets, synthetic
from l3prune.datasets.sounds import CLASSES, VERSION, Scene, synthesize
from l3prune.datasets.synthetic import COLUMNS, main, make_corpus
from l3prune.errors import L3PruneError, ParameterError

US8K = [
    "air_conditioner",
    "car_horn",
    "children_playing",
    "dog_bark",
    "drilling",
    "engine_idling",
    "gun_shot",
    "jackhammer",
    "siren",
    "street_music",
]
SMALL = {"clips_per_class_per_fold": 3, "folds": 2, "seconds": 0.25, "sample_rate": 8000}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("synthetic"), **SMALL, seed=1)


def read_rows(root):
    with (root / "metadata" / "UrbanSound8K.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_bytes(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_classes_are_those_of_us8k_in_the_order_of_their_ids():
    assert list(CLASSES) == US8K


def test_modules_are_no_corpora_of_the_registry():
    assert not {"synthetic", "sounds"} & set(list_datasets())


def test_rows_and_files_agree(corpus):
    rows = read_rows(corpus)
    assert tuple(rows[0]) == COLUMNS
    listed = {f"audio/fold{row['fold']}/{row['slice_file_name']}" for row in rows}
    assert len(listed) == len(rows) == 3 * 10 * 2
    assert set(read_bytes(corpus)) == listed | {"corpus.json", "metadata/UrbanSound8K.csv"}


def test_every_class_has_its_clips_in_every_fold(corpus):
    counts = {}
    for row in read_rows(corpus):
        key = int(row["fold"]), int(row["classID"]), row["class"]
        counts[key] = counts.get(key, 0) + 1
    assert counts == {(f, c, label): 3 for f in (1, 2) for c, label in enumerate(US8K)}


def test_file_names_repeat_their_row(corpus):
    for row in read_rows(corpus):
        name = re.fullmatch(r"(\d+)-(\d)-0-([01])\.wav", row["slice_file_name"])
        assert name is not None, row
        assert name[1] == row["fsID"]
        assert name[2] == row["classID"]
        assert float(row["start"]) == 0.25 * int(name[3])
        assert float(row["end"]) == float(row["start"]) + 0.25


def test_recording_is_in_one_fold_has_one_class_and_one_salience(corpus):
    seen = {}
    for row in read_rows(corpus):
        seen.setdefault(row["fsID"], []).append((row["fold"], row["classID"], row["salience"]))
    assert all(len(set(facts)) == 1 for facts in seen.values())
    assert {len(facts) for facts in seen.values()} == {1, 2}  # three clips: two recordings
    assert {facts[0][2] for facts in seen.values()} == {"1", "2"}


def test_audio_is_mono_16_bit_of_the_length_asked_for(corpus):
    for path in (corpus / "audio").rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.channels, info.samplerate, info.frames) == (1, 8000, 2000), path
        assert info.subtype == "PCM_16"


def test_file_holds_what_synthesize_makes(corpus):
    written, _ = soundfile.read(corpus / "audio" / "fold2" / "1018-8-0-1.wav", dtype="float32")
    voice, take = (
        np.random.default_rng(np.random.SeedSequence(1, spawn_key=(2, 8, 0, part)))
        for part in (0, 2)
    )
    expected = synthesize("siren", take, 0.25, 8000, voice=voice)
    np.testing.assert_allclose(written, expected, atol=1 / 32768)


@pytest.mark.parametrize("label", US8K)
@pytest.mark.parametrize("seed", range(4))
def test_samples_are_neither_silent_nor_clipped(label, seed):
    samples = synthesize(label, np.random.default_rng(seed), 1.0, 8000)
    assert samples.shape == (8000,)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert 0.19 < np.abs(samples).max() < 0.91
    assert np.sqrt(np.mean(samples**2)) > 0.003
    assert np.sum(np.abs(samples) >= np.abs(samples).max()) <= 2
    assert abs(samples.mean()) < 0.05


@pytest.mark.parametrize("label", US8K)
def test_source_itself_sounds_in_every_slice(label):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sound = CLASSES[label](Scene(rng, rng, 4000, 8000))
        assert sound.shape == (4000,)
        assert np.isfinite(sound).all()
        assert np.sqrt(np.mean(sound**2)) > 0.01, seed


@pytest.mark.parametrize("label", US8K)
def test_slices_of_a_recording_differ_but_take_the_same_draws_from_its_voice(label):
    clips, positions = [], []
    for part in range(3):
        voice = np.random.default_rng(5)
        clips.append(synthesize(label, np.random.default_rng(part), 0.5, 8000, voice=voice))
        positions.append(voice.bit_generator.state["state"])
    assert positions[0] == positions[1] == positions[2]
    assert not np.allclose(clips[0], clips[1])


def test_synthesize_depends_on_its_generator_only():
    first, again, other = (synthesize("drilling", np.random.default_rng(s), 0.2) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("sample_rate", [8000, 22050, 48000])
def test_synthesize_at_other_rates(sample_rate):
    for label in US8K:
        samples = synthesize(label, np.random.default_rng(0), 0.1, sample_rate)
        assert samples.shape == (round(0.1 * sample_rate),)


def test_same_settings_give_the_same_bytes(corpus, tmp_path):
    assert read_bytes(make_corpus(tmp_path / "again", **SMALL, seed=1)) == read_bytes(corpus)


def test_another_seed_gives_other_clips(corpus, tmp_path):
    one, two = read_bytes(corpus), read_bytes(make_corpus(tmp_path / "other", **SMALL, seed=2))
    assert one.keys() == two.keys()
    assert not any(one[name] == two[name] for name in one if name.endswith(".wav"))


def test_clip_does_not_depend_on_the_size_of_the_corpus(corpus, tmp_path):
    large = read_bytes(corpus)
    few = make_corpus(tmp_path, **{**SMALL, "clips_per_class_per_fold": 1, "folds": 1}, seed=1)
    clips = {name: data for name, data in read_bytes(few).items() if name.endswith(".wav")}
    assert len(clips) == 10
    assert clips.items() <= large.items()


def test_no_two_clips_are_the_same(corpus):
    clips = [data for name, data in read_bytes(corpus).items() if name.endswith(".wav")]
    assert len(set(clips)) == len(clips)


def test_interrupted_run_continues_where_it_stopped(corpus, tmp_path, monkeypatch):
    written = []
    write = soundfile.write

    def failing_write(path, *args, **kwargs):
        if len(written) == 25:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *args, **kwargs)

    monkeypatch.setattr(soundfile, "write", failing_write)
    with pytest.raises(KeyboardInterrupt):
        make_corpus(tmp_path, **SMALL, seed=1)
    assert not (tmp_path / "metadata" / "UrbanSound8K.csv").exists()
    assert len(list((tmp_path / "audio").rglob("*"))) == 25 + 1  # the clips and fold1

    monkeypatch.setattr(soundfile, "write", lambda *a, **k: (written.append(1), write(*a, **k)))
    make_corpus(tmp_path, **SMALL, seed=1)
    assert len(written) == 60
    assert read_bytes(tmp_path) == read_bytes(corpus)


def test_whole_corpus_is_left_as_it_is(corpus):
    before = {p: p.stat().st_mtime_ns for p in (corpus / "audio").rglob("*.wav")}
    make_corpus(str(corpus), **SMALL, seed=np.int64(1))
    assert {p: p.stat().st_mtime_ns for p in (corpus / "audio").rglob("*.wav")} == before


def test_lost_file_is_made_again(tmp_path):
    settings = {**SMALL, "folds": 1, "clips_per_class_per_fold": 1}
    before = read_bytes(make_corpus(tmp_path, **settings))
    (tmp_path / "audio" / "fold1" / "1003-3-0-0.wav").unlink()
    assert read_bytes(make_corpus(tmp_path, **settings)) == before


def test_settings_are_recorded(corpus):
    assert json.loads((corpus / "corpus.json").read_text()) == {
        "generator": "l3prune.datasets.synthetic",
        "version": VERSION,
        **SMALL,
        "seed": 1,
    }


def test_other_settings_in_the_same_folder_are_refused(corpus):
    with pytest.raises(ParameterError, match=r"other settings \(seed=1 there, 7 here\); repeat"):
        make_corpus(corpus, **SMALL, seed=7)


def test_another_version_of_the_sounds_is_refused(corpus, monkeypatch):
    monkeypatch.setattr(synthetic, "VERSION", 0)
    with pytest.raises(ParameterError, match=r"version=\d+ there, 0 here"):
        make_corpus(corpus, **SMALL, seed=1)


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(L3PruneError, match=r"is not empty .* \(it holds thesis\.txt\); choose"):
        make_corpus(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(L3PruneError, match="cannot make the folder"):
        make_corpus(tmp_path / "file", **SMALL)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"folds": 0}, "folds=0 is not a whole number in 1 … 10"),
        ({"folds": 11}, "folds=11 is not a whole number in 1 … 10"),
        ({"folds": True}, "folds=True is not a whole number"),
        ({"clips_per_class_per_fold": 0}, "clips_per_class_per_fold=0 .* from 1 on"),
        ({"clips_per_class_per_fold": 1.5}, "clips_per_class_per_fold=1.5 is not a whole number"),
        ({"seed": -1}, "seed=-1 is not a whole number from 0 on"),
        ({"seconds": 0}, r"seconds=0 is not in \[0.1, 600.0\]"),
        ({"seconds": float("nan")}, r"seconds=nan is not in"),
        ({"seconds": float("inf")}, r"seconds=inf is not in"),
        ({"sample_rate": 4000}, "sample_rate=4000 is not a whole number from 8000 on"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(tmp_path, setting, message):
    with pytest.raises(ParameterError, match=message):
        make_corpus(tmp_path / "corpus", **setting)
    assert not (tmp_path / "corpus").exists()


def test_unknown_label_names_the_known_ones():
    with pytest.raises(ParameterError, match=r"'cat_purr' is unknown; known: air_conditioner, car"):
        synthesize("cat_purr", np.random.default_rng(0))


def test_command_writes_what_the_function_writes(corpus, tmp_path, capsys):
    options = {"clips": 3, "folds": 2, "seconds": 0.25, "sample-rate": 8000, "seed": 1}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main([str(tmp_path), *flags, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert read_bytes(tmp_path) == read_bytes(corpus)


def test_command_shows_a_bar_and_the_folder(tmp_path, capsys):
    assert main([str(tmp_path), "--clips", "1", "--folds", "1", "--seconds", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}\n"
    assert "10/10" in err


def test_command_reports_a_bad_setting_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "corpus"), "--seconds", "-1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: seconds=-1\.0 is not in \[0\.1, 600\.0\][^\n]*\n", err)


@pytest.mark.parametrize("arguments", [[], ["corpus", "--clips", "many"], ["corpus", "--what"]])
def test_command_rejects_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m l3prune.datasets.synthetic" in capsys.readouterr().err


def test_help_needs_no_audio_library_nor_tensorflow():
    code = (
        "import sys, runpy; sys.argv = ['synthetic', '--help']\n"
        "try: runpy.run_module('l3prune.datasets.synthetic', run_name='__main__')\n"
        "except SystemExit as stopped: assert stopped.code == 0\n"
        "heavy = {'tensorflow', 'tf_keras', 'librosa', 'scipy', 'soundfile', 'pandas', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "OUTPUT_DIR" in done.stdout
