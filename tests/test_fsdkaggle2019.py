"""FSDKaggle2019: csv and clips, the split of the slimming authors, pictures out of a pickle."""

import pickle
import pickletools

import numpy as np
import pytest
import soundfile

from l3prune.array_files import read_arrays
from l3prune.datasets import load_dataset
from l3prune.datasets.fsdkaggle2019 import split
from l3prune.datasets.splits import split_dataset
from l3prune.errors import L3PruneError

CLASSES = ("Bark", "Purr", "Male_speech_and_man_speaking")


def make(root, count=10, audio=True):
    """A small corpus; clip n is called by its number counted from behind, which sorts otherwise."""
    (root / "sample_submission.csv").write_text(f"fname,{','.join(CLASSES)}\nt.wav,0,0,0\n")
    lines = ["fname,labels"]
    for number in range(count):
        labels = CLASSES[number % 3]
        if number % 2:
            labels = f'"{labels},{CLASSES[(number + 1) % 3]}"'
        lines.append(f"{count - number:02}.wav,{labels}")
    (root / "train_curated.csv").write_text("\n".join(lines) + "\n")
    if audio:
        (root / "train_curated").mkdir()
        for number in range(count):
            soundfile.write(root / "train_curated" / f"{count - number:02}.wav", [0.1] * 9, 44100)
    return root


def pictures(count=10, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(128, 140, count)
    return [
        np.repeat(rng.integers(0, 256, (128, size, 1)).astype(np.uint8), 3, axis=2)
        for size in frames
    ]


def test_clips_classes_and_folds(tmp_path):
    dataset = load_dataset("fsdkaggle2019", make(tmp_path))
    assert dataset.labels == CLASSES
    assert dataset.multi_label
    assert dataset.folds == (1, 2, 3)
    by_name = {clip.path.name: clip for clip in dataset.clips}
    assert len(by_name) == 10
    assert (by_name["10.wav"].target, by_name["10.wav"].further) == (0, ())
    assert (by_name["09.wav"].target, by_name["09.wav"].further) == (1, (2,))
    assert (by_name["05.wav"].target, by_name["05.wav"].further) == (0, (2,))  # in their order
    order = np.random.RandomState(1994).permutation(10)
    assert by_name[f"{10 - order[0]:02}.wav"].fold == 2
    assert by_name[f"{10 - order[1]:02}.wav"].fold == 3
    chosen = split_dataset(dataset)
    assert [len(part) for part in (chosen.train, chosen.validation, chosen.test)] == [8, 1, 1]
    keys = [(clip.fold, clip.path.name) for clip in dataset.clips]
    assert keys == sorted(keys)


def test_the_published_split():
    folds = split(4970)
    assert np.bincount(folds).tolist() == [0, 3976, 497, 497]
    np.testing.assert_array_equal(folds, split(4970))


def test_the_vocabulary_tells_the_classes_too(tmp_path):
    make(tmp_path)
    (tmp_path / "sample_submission.csv").unlink()
    with pytest.raises(L3PruneError, match="which tell the classes"):
        load_dataset("fsdkaggle2019", tmp_path)
    rows = [f"{number},{name},/m/0{number}" for number, name in enumerate(CLASSES)]
    (tmp_path / "vocabulary.csv").write_text("\n".join(rows) + "\n")
    assert load_dataset("fsdkaggle2019", tmp_path).labels == CLASSES


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fname,labels", "fname,label", "has no column labels; its first line"),
        ("10.wav,Bark", "10.wav,Barking", "line 2: class 'Barking' is unknown; the 3 classes are"),
        ("10.wav,Bark", '10.wav,","', "line 2 has no labels"),
        ("10.wav,Bark", "10.wav,", "line 2 has no labels; complete"),
        ("10.wav,Bark", "08.wav,Bark", "line 4: 08.wav is listed twice"),
        ("10.wav,Bark", "../10.wav,Bark", r"line 2: \.\./10.wav is no file name"),
        ("10.wav,Bark", "11.wav,Bark", "1 of 10 files listed in .* first is .*11.wav; complete"),
    ],
)
def test_damaged_tables(tmp_path, old, new, message):
    table = make(tmp_path) / "train_curated.csv"
    content = table.read_text()
    assert old in content
    table.write_text(content.replace(old, new))
    with pytest.raises(L3PruneError, match=message):
        load_dataset("fsdkaggle2019", tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(L3PruneError, match=r"train_curated\.csv is missing"):
        load_dataset("fsdkaggle2019", tmp_path)
    make(tmp_path, count=0, audio=False)
    with pytest.raises(L3PruneError, match="lists no clips"):
        load_dataset("fsdkaggle2019", tmp_path)
    (tmp_path / "sample_submission.csv").write_text("fname,Bark,Bark\n")
    with pytest.raises(L3PruneError, match="'Bark' occurs twice"):
        load_dataset("fsdkaggle2019", tmp_path)


def test_pictures_in_place_of_audio(tmp_path):
    given = pictures()
    make(tmp_path, audio=False)
    (tmp_path / "mels_train_curated.pkl").write_bytes(pickle.dumps(given, protocol=3))
    dataset = load_dataset("fsdkaggle2019", tmp_path)
    found = dataset.maps()
    for clip, maps in zip(dataset.clips, found, strict=True):
        row = 10 - int(clip.path.stem)  # of the csv, whose order the pickle has
        np.testing.assert_array_equal(maps, given[row][..., 0].T)
    # A folder of audio wins, and must be whole.
    (tmp_path / "train_curated").mkdir()
    with pytest.raises(L3PruneError, match="10 of 10 files listed"):
        load_dataset("fsdkaggle2019", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays[:-1], "has 9 arrays and train_curated.csv lists 10 clips"),
        (lambda arrays: [arrays[0].astype(np.int16), *arrays[1:]], "array 0 is int16 of shape"),
        (lambda arrays: [arrays[0][:64], *arrays[1:]], r"array 0 is uint8 of shape \(64, "),
        (lambda arrays: [arrays[0][..., 0], *arrays[1:]], "array 0 is uint8 of shape"),
        (lambda arrays: [arrays[0][:, :0], *arrays[1:]], "array 0 is empty"),
        (lambda arrays: [arrays[0] * np.uint8([1, 2, 3]), *arrays[1:]], "its three channels diff"),
    ],
)
def test_pictures_that_do_not_fit(tmp_path, change, message):
    make(tmp_path, audio=False)
    path = tmp_path / "mels_train_curated.pkl"
    path.write_bytes(pickle.dumps(change(pictures())))
    with pytest.raises(L3PruneError, match=message):
        load_dataset("fsdkaggle2019", tmp_path).maps()


# Pickles of arrays.


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_arrays_of_every_protocol(tmp_path, protocol):
    given = [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
        np.arange(3, dtype=">i4"),
        np.zeros((0, 4), np.float32),
        np.array(3.0),
    ]
    given.append(given[0])  # the same object twice
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(given, protocol=protocol))
    found = read_arrays(path)
    for one, other in zip(given, found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


class Foreign:
    """An object whose pickle names what it would call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_foreign_objects_are_named_and_nothing_is_run(tmp_path, protocol):
    path, never = tmp_path / "a.pkl", tmp_path / "never"
    content = pickle.dumps([np.zeros(2), Foreign(str(never))], protocol=protocol)
    assert "open" in pickletools.optimize(content).decode("latin1")
    path.write_bytes(content)
    with pytest.raises(
        L3PruneError, match=r"its pickle names \w*io\.open, which is no part of an ar"
    ):
        read_arrays(path)
    assert not never.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "holds a dict, not a list of arrays"),
        ([np.zeros(2), [1]], "entry 1 is a list, not an array of numbers"),
        ([np.array(["a"])], "an array of type 'U1'; arrays of numbers are read"),
        ([np.array([None])], "an array of type 'O8'; arrays of numbers are read"),
        ([np.array([1j])], "an array of type 'c16'"),
        ([np.zeros(1, [("a", "u1")])], "an array of type 'V1'"),
        ([np.ma.zeros(2)], r"names numpy\.ma"),
        ([{1, 2}], "is no pickled list of arrays|names builtins.set|instruction"),
    ],
)
def test_other_values(tmp_path, value, message):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value, protocol=3))
    with pytest.raises(L3PruneError, match=message):
        read_arrays(path)


def test_damaged_pickles(tmp_path):
    path = tmp_path / "a.pkl"
    with pytest.raises(L3PruneError, match="no such pickle"):
        read_arrays(path)
    whole = pickle.dumps(pictures(2), protocol=3)
    rng = np.random.default_rng(1)
    for length in [0, 1, 50, 150, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(L3PruneError, match=r"a\.pkl"):
            read_arrays(path)
    for _ in range(200):
        broken = bytearray(whole[:400] + whole[-50:])
        broken[int(rng.integers(400))] = int(rng.integers(256))
        path.write_bytes(bytes(broken))
        with pytest.raises(L3PruneError, match=r"a\.pkl"):
            read_arrays(path)
