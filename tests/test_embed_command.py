"""python -m l3prune, as a user types it."""

import shutil
import sys

import numpy as np
import pytest
import soundfile

from l3prune.__main__ import main as embed
from l3prune.embedding import get_embedding
from tests.commands import process, tree, words
from tests.conftest import chirp


@pytest.fixture
def mixed(tmp_path):
    """Recordings of several formats, rates and channel counts."""
    folder = tmp_path / "mixed"
    (folder / "deep" / "er").mkdir(parents=True)
    soundfile.write(folder / "mono.wav", chirp(1.5, 8000), 8000)
    soundfile.write(folder / "stereo.flac", np.stack([chirp(1.5, 44100)] * 2, axis=1), 44100)
    soundfile.write(folder / "deep" / "vorbis.ogg", chirp(1.5, 22050), 22050)
    soundfile.write(folder / "deep" / "er" / "layer3.MP3", chirp(1.5, 48000), 48000, format="MP3")
    (folder / "notes.txt").write_text("not audio, and not asked for")
    return folder


def test_folders_and_files(net, mixed, tmp_path, capsys):
    single = tmp_path / "single.wav"
    soundfile.write(single, chirp(1.5, 8000, 50, 400), 8000)
    out = tmp_path / "new" / "out"
    code = embed(words(mixed, single, "--model", net, "--output-dir", out, "--quiet"))
    assert code == 0
    assert capsys.readouterr() == ("", "")
    names = ["layer3.npz", "mono.npz", "single.npz", "stereo.npz", "vorbis.npz"]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        with np.load(out / name, allow_pickle=False) as arrays:
            assert sorted(arrays.files) == ["embedding", "timestamps"]
            assert arrays["embedding"].shape == (len(arrays["timestamps"]), 4)
            assert len(arrays["timestamps"]) in (11, 12)
            assert np.isfinite(arrays["embedding"]).all()


def test_options_reach_the_embedding(net, mixed, tmp_path, capsys):
    line = words(mixed / "mono.wav", "--model", net, "-o", tmp_path / "out", "-x", "emb")
    assert embed([*line, "--hop-size", "0.25", "--no-centering", "--batch-size", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("engine: dense (")
    assert captured.err == ""  # no progress bar in a job's log
    audio, rate = soundfile.read(mixed / "mono.wav", dtype="float32")
    expected = get_embedding(audio, rate, model=net, hop_size=0.25, center=False, batch_size=2)
    with np.load(tmp_path / "out" / "mono_emb.npz") as arrays:
        np.testing.assert_array_equal(arrays["embedding"], expected[0])
        np.testing.assert_array_equal(arrays["timestamps"], [0, 0.25, 0.5])


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_has_a_progress_bar_unless_quiet(net, mixed, capsys, monkeypatch, quiet):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert embed(words(mixed / "mono.wav", "--model", net, *["--quiet"] * quiet)) == 0
    assert ("1/1" in capsys.readouterr().err) != quiet


def test_output_is_beside_the_audio_by_default(net, mixed):
    assert embed(words(mixed, "--model", net, "-q")) == 0
    assert (mixed / "deep" / "er" / "layer3.npz").is_file()
    # And is not taken for audio the next time.
    assert embed(words(mixed, "--model", net, "-q")) == 0
    assert len(list(mixed.rglob("*.npz"))) == 4


def test_unreadable_files_are_named_and_skipped(net, mixed, tmp_path, capsys):
    (mixed / "text.wav").write_text("text")
    flac = (mixed / "stereo.flac").read_bytes()
    (mixed / "cut.flac").write_bytes(flac[: len(flac) // 2])
    soundfile.write(mixed / "nan.wav", np.full(9000, np.nan), 8000, subtype="FLOAT")
    out = tmp_path / "out"
    assert embed(words(mixed, "--model", net, "-o", out, "-q")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for name, line in zip(("cut.flac", "nan.wav", "text.wav"), lines, strict=True):
        assert line.startswith("skipped: ")
        assert str(mixed / name) in line
    names = {"mono.npz", "stereo.npz", "vorbis.npz", "layer3.npz"}
    assert {path.name for path in out.iterdir()} == names


def test_all_files_unreadable(net, tmp_path, capsys):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_text("text")
    before = tree(tmp_path)
    line = words(tmp_path / "a.wav", tmp_path / "b.wav", "--model", net, "-q")
    assert embed([*line, "-o", str(tmp_path / "out" / "deep")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "error: every file was skipped; nothing was written"
    assert tree(tmp_path) == before


def test_a_file_that_cannot_be_written_is_skipped(net, sounds, capsys):
    (sounds / "chirp.npz").mkdir()
    assert embed(words(sounds, "--model", net, "-q")) == 1
    assert "chirp.npz: Is a directory" in capsys.readouterr().err
    assert len([path for path in sounds.rglob("*.npz") if path.is_file()]) == 3
    assert not [path for path in sounds.rglob(".*") if path.is_file()]


def test_warnings_name_the_file_unless_quiet(net, tmp_path, capsys):
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "mute.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "short.wav", chirp(1, 8000)[:400], 8000)
    assert embed(words(tmp_path, "--model", net)) == 0
    lines = [
        line.strip("\r ") for line in capsys.readouterr().err.splitlines() if "warning: " in line
    ]
    assert lines == [
        f"warning: {tmp_path / 'mute.wav'}: all samples are zero",
        f"warning: {tmp_path / 'short.wav'}: the audio is 0.05 s long; "
        "it was zero-padded to one second",
        f"warning: {tmp_path / 'silent.wav'}: all samples are zero",
    ]
    assert embed(words(tmp_path, "--model", net, "-q")) == 0
    assert capsys.readouterr().err == ""


def test_two_inputs_with_one_output_are_refused(net, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    soundfile.write(folder / "a.wav", chirp(1, 8000), 8000)
    soundfile.write(folder / "deep" / "a.flac", chirp(1, 8000), 8000)
    before = tree(tmp_path)
    out = tmp_path / "out"
    assert embed(words(folder, "--model", net, "-o", out)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "a.wav and " in error
    assert f"would both be written to {out / 'a.npz'}" in error
    assert tree(tmp_path) == before
    # Beside the audio they are two files; but not when they lie in one folder.
    assert embed(words(folder, "--model", net, "-q")) == 0
    shutil.copy(folder / "deep" / "a.flac", folder / "a.flac")
    assert embed(words(folder, "--model", net)) == 2


def test_the_same_file_twice_is_one(net, sounds, tmp_path, monkeypatch):
    from l3prune import embedding

    done = []
    original = embedding.process_file

    def counting(path, *args, **kwargs):
        done.append(path)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(embedding, "process_file", counting)
    monkeypatch.chdir(sounds)
    link = tmp_path / "link"
    link.symlink_to(sounds)
    same = ("chirp.wav", "./chirp.wav", sounds / "chirp.wav", "deep/../chirp.wav", link)
    assert embed(words(*same, sounds, "--model", net, "-o", tmp_path / "out")) == 0
    assert len(done) == 4
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hop-size", "0"), "hop_size=0.0 is not a positive number"),
        (("--hop-size", "nan"), "hop_size=nan is not a positive number"),
        (("--hop-size", "-1"), "hop_size=-1.0 is not a positive number"),
        (("--hop-size", "inf"), "hop_size=inf is not a positive number"),
        (("--hop-size", "1e-9"), "hop_size=1e-09 is less than one sample"),
        (("--batch-size", "0"), "batch_size=0 is not a positive whole number"),
        (("--batch-size", "-3"), "batch_size=-3 is not a positive whole number"),
        (("--suffix", "../x"), "suffix='../x' has a '/'"),
        (("--model", "/nowhere/net.h5"), "no such weight file: /nowhere/net.h5"),
        (("--model", "TEXT"), "is not an HDF5 weight file"),
        (("--model", "SOUNDS"), "no such weight file"),
        (("--output-dir", "TEXT/out"), "cannot make the folder"),
        (("--output-dir", "TEXT"), "cannot make the folder"),
    ],
)
def test_embed_bad_arguments(net, sounds, tmp_path, capsys, options, message):
    text = tmp_path / "text.h5"
    text.write_text("text")
    options = [word.replace("TEXT", str(text)).replace("SOUNDS", str(sounds)) for word in options]
    before = tree(tmp_path)
    line = words(sounds, "--model", net, "--output-dir", tmp_path / "out")
    assert embed([*line, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert tree(tmp_path) == before


def test_embed_missing_input(net, sounds, tmp_path, capsys):
    line = words(sounds, "/nowhere/a.wav", "--model", net, "-o", tmp_path / "out")
    assert embed(line) == 2
    assert capsys.readouterr().err == "error: no such file or folder: /nowhere/a.wav\n"
    assert not (tmp_path / "out").exists()


def test_embed_empty_folder(net, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert embed(words(tmp_path / "empty", "--model", net, "-o", tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith("error: no audio files")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", [[], ["a.wav", "--hop-size", "long"], ["a.wav", "-e", "x"]])
def test_embed_usage(line, capsys):
    with pytest.raises(SystemExit) as end:
        embed(line)
    assert end.value.code == 2
    assert "usage: python -m l3prune " in capsys.readouterr().err


@pytest.mark.slow
def test_embedding_as_a_process(net, sounds, tmp_path):
    (sounds / "text.wav").write_text("text")
    ended = process("l3prune", sounds, "--model", net, "-o", tmp_path / "out", "--quiet")
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"skipped: {sounds / 'text.wav'} cannot be decoded")
    assert len(list((tmp_path / "out").iterdir())) == 4
