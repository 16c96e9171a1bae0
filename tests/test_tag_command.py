"""python -m l3prune.tag, as a user types it."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile

from l3prune.networks import create_network, set_labels
from l3prune.tag import main as tag_command
from l3prune.tagging import load_tagger, tag, tag_frames
from l3prune.views import lines
from l3prune.weights import save_network
from tests.cnn14_networks import shaken, small
from tests.commands import process, tree, words
from tests.conftest import chirp

NAMES = ("Rain", "Dog", "Male speech, man speaking", "Clock", "Sea")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "small.h5"
    save_network(set_labels(shaken(small()), NAMES), path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "detector.h5"
    save_network(set_labels(shaken(small("cnn14_decision_level_max")), NAMES), path)
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    (path / "deep").mkdir(parents=True)
    soundfile.write(path / "sweep.wav", chirp(1.5, 16000), 16000)
    soundfile.write(path / "deep" / "low.flac", chirp(1, 32000, 50, 400), 32000)
    (path / "notes.txt").write_text("not audio")
    return path


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_as_tables_json_and_csv(net, folder, tmp_path, capsys):
    out = tmp_path / "out"
    line = words(folder, "--model", net, "--top-k", 3, "--json", out, "--csv", out)
    assert tag_command(line) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    first, second, _ = captured.out.split("\n\n")
    assert first.splitlines()[0] == f"{folder / 'deep' / 'low.flac'} (1.0 s)"
    assert second.splitlines()[0] == f"{folder / 'sweep.wav'} (1.5 s)"
    audio, rate = soundfile.read(folder / "sweep.wav", dtype="float32")
    scores, _ = tag(audio, rate, net)
    order = np.argsort(-scores)[:3]
    for place, (row, number) in enumerate(zip(second.splitlines()[1:], order, strict=True)):
        shown = re.fullmatch(r" +(\d)  (.{25})  (\d\.\d{3})  [▏▎▍▌▋▊▉█]+", row)
        assert shown.groups() == (str(place + 1), f"{NAMES[number]:25}", f"{scores[number]:.3f}")
    record = json.loads((out / "sweep.json").read_text())
    assert (record["network"], record["duration"]) == ("cnn14", 1.5)
    assert [row["label"] for row in record["sounds"]] == [NAMES[number] for number in order]
    np.testing.assert_allclose([row["score"] for row in record["sounds"]], scores[order], atol=1e-6)
    rows = read(out / "sweep.csv")
    assert [(row["label"], float(row["score"])) for row in rows] == [
        (row["label"], row["score"]) for row in record["sounds"]
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        *("low.csv", "low.json", "sweep.csv", "sweep.json")
    ]


def test_allowed_and_denied_classes(net, folder, tmp_path, capsys):
    listed = tmp_path / "home.txt"
    listed.write_text("Clock\nSea\n")
    file = folder / "sweep.wav"
    line = words(file, "--model", net, "--allow", listed, "dog", "--deny", "Sea")
    assert tag_command(line) == 0
    shown = capsys.readouterr().out
    assert {row.split()[1] for row in shown.splitlines()[1:] if row} == {"Dog", "Clock"}


def test_labels_and_activation(net, folder, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    rows = [f'{number},/m/{number},"sound {number}, new"' for number in range(5)]
    labels.write_text("\n".join(["index,mid,display_name", *rows]))
    file = folder / "sweep.wav"
    line = words(file, "--model", net, "--csv", tmp_path, "-q", "--activation", "softmax")
    assert tag_command([*line, "--labels", str(labels)]) == 0
    assert capsys.readouterr() == ("", "")
    found = read(tmp_path / "sweep.csv")
    assert sum(float(row["score"]) for row in found) == pytest.approx(1, abs=1e-5)
    assert {row["label"] for row in found} == {f"sound {number}, new" for number in range(5)}


@pytest.mark.parametrize("name", ["detector", "net"])
def test_over_time(name, folder, tmp_path, capsys, request):
    model, file = request.getfixturevalue(name), folder / "sweep.wav"
    options = words("--window", 1, "--hop-size", 0.25) if name == "net" else []
    line = words(file, "--model", model, "--framewise", "--top-k", 2)
    assert tag_command([*line, *options, *words("--json", tmp_path, "--csv", tmp_path)]) == 0
    audio, rate = soundfile.read(file, dtype="float32")
    hops = {"window": 1.0, "hop_size": 0.25} if name == "net" else {}
    framewise, seconds = tag_frames(audio, rate, load_tagger(model), **hops)
    order = np.argsort(-framewise.max(axis=0))[:2]
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["labels"] == [NAMES[number] for number in order]
    np.testing.assert_allclose(record["scores"], framewise[:, order], atol=1e-6)
    np.testing.assert_allclose(record["seconds"], seconds, atol=1e-6)
    rows = read(tmp_path / "sweep.csv")
    assert list(rows[0]) == ["seconds", *record["labels"]]
    values = [[float(row[label]) for label in record["labels"]] for row in rows]
    np.testing.assert_array_equal(values, record["scores"])
    first = capsys.readouterr().out.splitlines()[1]
    peak = framewise[:, order[0]]
    assert first.split()[1:3] == [f"{seconds[peak.argmax()]:.2f}", "s"]
    assert f"{peak.max():.3f}" in first


def test_short_and_damaged_files_are_named_and_skipped(net, folder, capsys):
    soundfile.write(folder / "short.wav", chirp(0.2, 16000), 16000)
    (folder / "text.wav").write_text("text")
    assert tag_command(words(folder, "--model", net)) == 1
    captured = capsys.readouterr()
    skipped = captured.err.splitlines()
    assert len(skipped) == 2
    assert skipped[0].startswith(f"skipped: {folder / 'short.wav'}: the audio has 6400 samples")
    assert "cnn14 needs 9920 (0.31 s)" in skipped[0]
    assert skipped[1].startswith(f"skipped: {folder / 'text.wav'} cannot be decoded")
    assert captured.out.count(" s)\n") == 2
    line = words(folder / "short.wav", folder / "text.wav", "--model", net)
    assert tag_command([*line, "--json", str(folder / "new")]) == 2
    assert not (folder / "new").exists()
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: every file was skipped")
    assert tag_command(words(folder / "short.wav", "--model", net)) == 2
    assert capsys.readouterr().err.startswith("error: the audio has 6400 samples")


def test_warnings_name_the_file(folder, tmp_path, capsys):
    save_network(create_network("dcase2021", filters=[2, 2, 2], dense_units=3), tmp_path / "n.h5")
    file = folder / "sweep.wav"
    assert tag_command(words(file, "--model", tmp_path / "n.h5", "--top-k", 1)) == 0
    expected = f"warning: {file}: the audio is 1.5 s long; it was zero-padded to 10 s\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--top-k", "0"], "--top-k=0 is not a whole number from 1 on"),
        (["--allow", "Dogg"], "no label 'Dogg' among 5; close: 'Dog'"),
        (["--deny", *NAMES], "no class is left"),
        (["--labels", "NET"], "is no csv in UTF-8"),
        (["--labels", "AUDIOSET"], "has 527 classes, network cnn14 5"),
        (["--activation", "tanh"], "activation='tanh'; allowed: sigmoid, softmax"),
        (["--window", "1"], "--window is for --framewise"),
        (["--hop-size", "1"], "--hop-size is for --framewise"),
        (["--framewise", "--window", "0.1"], "cnn14 needs 0.31 s"),
        (["--framewise", "--hop-size", "-1"], "hop_size=-1.0 is not a positive number"),
        (["--quiet"], "--quiet tells nothing; give --json or --csv"),
        (["--model", "/nowhere/net.h5"], "no such weight file"),
        (["--model", "SEA"], "sea64 gives no scores of sound classes"),
        (["--json", "NET"], "cannot make the folder"),
    ],
)
def test_wrong_arguments(net, folder, tmp_path, capsys, line, message):
    from l3prune.labels import AUDIOSET

    save_network(create_network("sea64", filters=[2] * 8), tmp_path / "sea.h5")
    names = {"NET": net, "SEA": tmp_path / "sea.h5", "AUDIOSET": AUDIOSET}
    before = tree(tmp_path)
    given = words(folder, "--model", net, *(names.get(word, word) for word in line))
    assert tag_command(given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert tree(tmp_path) == before


def test_missing_inputs(net, tmp_path, capsys):
    assert tag_command(words("/nowhere/a.wav", "--model", net)) == 2
    assert capsys.readouterr().err == "error: no such file or folder: /nowhere/a.wav\n"
    assert tag_command(words(tmp_path, "--model", net)) == 2
    assert capsys.readouterr().err.startswith("error: no audio files")


def test_two_files_of_one_name(net, folder, tmp_path, capsys):
    soundfile.write(folder / "deep" / "sweep.wav", chirp(1, 16000), 16000)
    assert tag_command(words(folder, "--model", net, "--json", tmp_path / "out")) == 2
    assert "would both be written to sweep" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # The same file twice is one.
    file = folder / "sweep.wav"
    assert tag_command(words(file, folder / "deep" / ".." / "sweep.wav", "--model", net)) == 0
    assert capsys.readouterr().out.count("sweep.wav") == 1


def test_a_narrow_terminal_and_plain_text():
    top = [("Male speech, man speaking", 0.5), ("Rain", 1.0), ("Dog", 0.001)]
    for width in (20, 40, 80, 200):
        for blocks in (True, False):
            shown = lines(top, width, blocks=blocks)
            assert max(map(len, shown)) <= max(width, 20)
    assert lines(top, 30) == [
        "  1  Male speech, …  0.500  █",
        "  2  Rain            1.000  ██",
        "  3  Dog             0.001",
    ]


def test_tagging_as_a_process(net, folder):
    ended = process("l3prune.tag", folder / "sweep.wav", "--model", net, "--top-k", 1)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0] == f"{folder / 'sweep.wav'} (1.5 s)"
