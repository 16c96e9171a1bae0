"""Class names: AudioSet's csv, files like it, classes allowed and denied, labels in weights."""

import csv
import json

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l3prune.errors import L3PruneError, ParameterError
from l3prune.labels import AUDIOSET, Labels, Tracker, class_numbers, read_labels
from l3prune.networks import create_network, network_config, set_labels
from l3prune.surgery import strip_masks
from l3prune.weights import load_network, save_network

HEADER = "index,mid,display_name\n"


def test_the_audioset_list_is_googles():
    assert AUDIOSET.stat().st_size == 14_675
    labels = read_labels()
    assert len(labels.names) == len(set(labels.names)) == len(set(labels.ids)) == 527
    assert (labels.ids[0], labels.names[0]) == ("/m/09x0r", "Speech")
    assert (labels.ids[526], labels.names[526]) == ("/m/07hvw1", "Field recording")
    assert (labels.ids[131], labels.names[131]) == ("/m/01h3n", "Bee, wasp, etc.")
    # Every name stands in quotes there, as writing it anew shows.
    with open(AUDIOSET, newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert AUDIOSET.read_text() == HEADER + "".join(f'{i},{m},"{n}"\n' for i, m, n in rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column index; its first line has to be index,mid,display_name"),
        ("index,display_name\n0,Dog\n", "has no column mid"),
        ("index,mid\n0,/m/1\n", "has no column display_name"),
        (HEADER, "has no classes"),
        (HEADER + "0,/m/1,Dog\n0,/m/2,Cat\n", "line 3: index 0 occurs twice"),
        (HEADER + "0,/m/1,Dog\n1,/m/2,Dog\n", "label 'Dog' occurs twice"),
        (HEADER + "0,/m/1,Dog\n1,/m/1,Cat\n", "class id '/m/1' occurs twice"),
        (HEADER + "0,/m/1,Dog\n2,/m/2,Cat\n", "has 2 classes, but none of index 1"),
        (HEADER + "1,/m/1,Dog\n", "has 1 classes, but none of index 0"),
        (HEADER + "-1,/m/1,Dog\n", "line 2: index '-1' is not a whole number from 0 on"),
        (HEADER + "x,/m/1,Dog\n", "line 2: index 'x' is not a whole number from 0 on"),
        (HEADER + "0,/m/1, \n", "label 0 is ' '; give a text"),
        (HEADER + "0,/m/1,Male speech, man speaking\n", "line 2 has more fields"),
        (HEADER + "0,/m/1\n", "line 2 has fewer fields"),
        (HEADER + '0,/m/1,"Dog\n', "is no csv in UTF-8"),
        (b"\xff\xfe\x00", "is no csv in UTF-8"),
    ],
)
def test_damaged_lists_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ParameterError) as error:
        read_labels(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_list_in_another_order_and_with_more_columns(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('\ufeffmid,index,display_name,note\n/m/2,1,"Cat, cats",b\n/m/1,0,Dog,a\n')
    assert read_labels(path) == Labels(("Dog", "Cat, cats"), ("/m/1", "/m/2"))
    with pytest.raises(ParameterError, match="no such file of labels"):
        read_labels("/nowhere/a.csv")


def test_classes_by_name_id_and_file(tmp_path):
    labels = read_labels()
    assert class_numbers(["dog", "/m/01yrx", "Dog"], labels) == [74, 81]
    text = tmp_path / "home.txt"
    text.write_text("Speech\n\nDoorbell\n")
    table = tmp_path / "home.csv"
    # A part of the list, numbered as its author liked.
    table.write_text(HEADER + '7,/m/01b9nn,Reverberation\n9,/m/07q6cd_,"Squeak"\n')
    assert class_numbers([str(text), str(table), "Echo"], labels) == [0, 355, 361, 511, 512]
    text.write_text("Speach\n")
    with pytest.raises(ParameterError, match=r"home.txt: no label 'Speach' .*'Speech'"):
        class_numbers([str(text)], labels)
    table.write_text("index,name\n1,Dog\n")
    with pytest.raises(ParameterError, match="has no column display_name"):
        class_numbers([str(table)], labels)


def test_an_unknown_label_brings_close_ones():
    with pytest.raises(ParameterError, match=r"no label 'Dogg' among 527; close: 'Dog'"):
        read_labels().find("Dogg")
    with pytest.raises(ParameterError, match=r"close: .*'Male speech, man speaking'"):
        read_labels().find("male speech")
    with pytest.raises(ParameterError, match="such as 'Rain', 'Dog'"):
        Labels(("Rain", "Dog")).find("xyz")


def test_the_tracker_by_hand():
    labels = Labels(("Rain", "Dog", "Sea", "Cat", "Wind"))
    scores = np.array([0.2, 0.9, 0.5, 0.5, 0.1])
    assert Tracker(labels).top(scores, 3) == [("Dog", 0.9), ("Sea", 0.5), ("Cat", 0.5)]
    # k are k, not k + 1, and at most those that it tracks.
    home = Tracker(labels, allow=["Wind", "Cat", "Dog"], deny=["Dog"])
    assert home.classes.tolist() == [3, 4]
    assert home.top(scores, 1) == [("Cat", 0.5)]
    assert home.top(scores, 2) == home.top(scores, 50) == [("Cat", 0.5), ("Wind", 0.1)]
    with pytest.raises(ParameterError, match="no class is left"):
        Tracker(labels, allow=["Dog"], deny=["Dog"])
    with pytest.raises(ParameterError, match="no class is left"):
        Tracker(labels, allow=[])
    with pytest.raises(ParameterError, match="top_k=0 is not a whole number from 1 on"):
        home.top(scores, 0)
    with pytest.raises(ParameterError, match=r"scores of shape \(4,\); there are 5 labels"):
        home.top(scores[:4], 1)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.integers(1, 15),
    st.randoms(use_true_random=False),
)
def test_the_tracker_gives_the_highest_in_order(scores, k, random):
    names = [f"sound {number}" for number in range(len(scores))]
    denied = random.sample(names, random.randrange(len(names)))
    top = Tracker(Labels(tuple(names)), deny=denied).top(np.array(scores), k)
    left = {name: score for name, score in zip(names, scores, strict=True) if name not in denied}
    assert len(top) == min(k, len(left))
    assert [score for _, score in top] == sorted(left.values(), reverse=True)[:k]
    assert all(left[name] == score for name, score in top)


def test_a_weight_file_keeps_the_labels(tmp_path):
    names = ("Rain", "Sea waves", "Dog", "Mañana")
    network = set_labels(create_network("sea64", filters=[4] * 8), names)
    save_network(strip_masks(network), tmp_path / "net.h5")
    assert network_config(load_network(tmp_path / "net.h5")).labels == names
    assert json.loads((tmp_path / "net.json").read_text())["labels"] == list(names)
    # A network without them has nothing new in its file.
    save_network(create_network("sea64", filters=[4] * 8), tmp_path / "plain.h5")
    assert "labels" not in json.loads((tmp_path / "plain.json").read_text())
    assert network_config(load_network(tmp_path / "plain.h5")).labels == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["Rain"], "1 labels for network sea64, whose outputs have 4 values"),
        (["Rain", "Rain", "Dog", "Cat"], "label 'Rain' occurs twice"),
        ([1, 2, 3, 4], "label 0 is 1; give a text"),
        ("Rain", "the labels are not a list"),
    ],
)
def test_damaged_labels_in_a_weight_file(tmp_path, labels, message):
    path = tmp_path / "net.h5"
    save_network(create_network("sea64", filters=[4] * 8), path)
    with h5py.File(path, "r+") as file:
        description = json.loads(file.attrs["l3prune"])
        file.attrs["l3prune"] = json.dumps(description | {"labels": labels})
    with pytest.raises(L3PruneError) as error:
        load_network(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
