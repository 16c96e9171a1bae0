"""Subsets: which videos there are, which are chosen, and who gets them."""

import csv
import itertools
import json
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l3prune.datasets.subsets import Entry, Ontology, Subsets, make_subsets, read_subset
from l3prune.errors import L3PruneError, ParameterError

ONTOLOGY = [
    {"id": "/m/music", "name": "Music", "child_ids": ["/m/song", "/m/guitar"]},
    {"id": "/m/song", "name": "Song", "child_ids": []},
    {"id": "/m/guitar", "name": "Guitar", "child_ids": ["/m/bass"]},
    {"id": "/m/bass", "name": "Bass guitar", "child_ids": []},
    {"id": "/m/speech", "name": "Speech, talking", "child_ids": []},
]

SEGMENTS = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=5, num_segs=5, num_unique_labels=5, num_positive_labels=8
# YTID, start_seconds, end_seconds, positive_labels
--aaaaaaaaa, 30.000, 40.000, "/m/song,/m/speech"
bb_bbbbbbbb, 0.000, 10.000, "/m/bass"
ccccccccccc, 0.000, 10.000, "/m/speech"
ddddddddddd, 10.000, 20.000, "/m/music,/t/other"
eeeeeeeeeee, 10.000, 20.000, "/m/music"
"""


@pytest.fixture
def audioset(tmp_path):
    """Four of the five listed videos, one that is not listed, one without sound."""
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    (tmp_path / "segments.csv").write_text(SEGMENTS)
    data = tmp_path / "data"
    for name in (
        "--aaaaaaaaa_30000_40000",
        "bb_bbbbbbbb_0.000_10.000",
        "ccccccccccc",
        "ddddddddddd_10_20",
        "unlisted___",
    ):
        for kind, ending in (("audio", "flac"), ("video", "mp4")):
            (data / kind).mkdir(parents=True, exist_ok=True)
            (data / kind / f"{name}.{ending}").touch()
    (data / "video" / "silent_____.mp4").touch()
    return tmp_path


def choose(folder, filters=None, **options):
    if filters is not None:
        path = folder / "filter.csv"
        path.write_text("filter_type,accept_reject,include_children,string\n" + filters)
        options["filters"] = path
    options = {
        "metadata": [folder / "segments.csv"],
        "ontology": folder / "ontology.json",
        "valid_ratio": 0,
        "test_ratio": 0,
        **options,
    }
    return make_subsets(folder / "data", **options)


def ids(subsets):
    return sorted(entry.ytid[0] for entry in subsets.train)


def test_all_listed_videos(audioset):
    subsets = choose(audioset)
    by_id = {entry.ytid: entry for entry in subsets.train}
    assert sorted(by_id) == ["--aaaaaaaaa", "bb_bbbbbbbb", "ccccccccccc", "ddddddddddd"]
    first = by_id["--aaaaaaaaa"]
    assert first.labels == ("song", "speech, talking")
    assert first.audio == audioset / "data" / "audio" / "--aaaaaaaaa_30000_40000.flac"
    assert first.video == audioset / "data" / "video" / "--aaaaaaaaa_30000_40000.mp4"
    assert by_id["ddddddddddd"].labels == ("music", "/t/other")
    assert subsets.notices == [
        "files with sound or pictures only, not used: 1 (silent_____)",
        "videos of the csv without a file: 1 (eeeeeeeeeee)",
        "videos that are not in the csv, not used: 1 (unlisted___)",
        "labels unknown to the ontology, which keep their ids: 1 (/t/other)",
    ]


FILTERS = {
    "children": ("label,accept,true,Music\n", "-bd"),
    "no children": ("label,accept,false,music\n", "d"),
    "grandchildren": ("label,accept,true,Guitar\n", "b"),
    "by id": ("label,accept,true,/m/music\n", "-bd"),
    "two": ("label,accept,false,Song\nlabel,accept,false,Bass guitar\n", "-b"),
    "reject alone": ('label,reject,false,"Speech, talking"\n', "bd"),
    "reject wins": ('label,accept,true,Music\nlabel,reject,false,"Speech, talking"\n', "bd"),
    "reject wins first": ('label,reject,false,"Speech, talking"\nlabel,accept,true,Music\n', "bd"),
    "video": ("ytid,accept,false,ccccccccccc\n", "c"),
    "video too": ("ytid,accept,false,ccccccccccc\nlabel,accept,false,Song\n", "-c"),
    "not a video": ("YTID,Reject,FALSE,ccccccccccc\n", "-bd"),
}


@pytest.mark.parametrize("case", FILTERS)
def test_filters(audioset, case):
    text, expected = FILTERS[case]
    assert "".join(ids(choose(audioset, text))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,accept,true,Musik\n", r"filter\.csv line 2: label 'Musik' is not in the ontology"),
        ("tag,accept,true,Music\n", "filter_type 'tag' is unknown; known: ytid, label"),
        ("label,keep,true,Music\n", "accept_reject 'keep' is unknown; known: accept, reject"),
        ("label,accept,yes,Music\n", "include_children 'yes' is unknown; known: true, false"),
        ("label,accept,true,\n", "line 2 has no string"),
        ("ytid,accept,false,nobody\n", "leaves none of the 4 videos"),
    ],
)
def test_bad_filters(audioset, text, message):
    with pytest.raises(L3PruneError, match=message):
        choose(audioset, text)


def test_filters_without_an_ontology(audioset):
    assert ids(choose(audioset, "label,accept,false,/m/music\n", ontology=None)) == ["d"]
    for text in ("label,accept,true,/m/music\n", "label,accept,false,Music\n"):
        with pytest.raises(ParameterError, match="line 2: names and children of labels are not"):
            choose(audioset, text, ontology=None)
    with pytest.raises(ParameterError, match="labels are not known without a csv"):
        choose(audioset, "label,accept,false,Music\n", metadata=[])


def test_a_loop_in_the_ontology_ends(tmp_path):
    path = tmp_path / "ontology.json"
    nodes = [{"id": i, "name": i, "child_ids": [j]} for i, j in ("ab", "bc", "ca")]
    path.write_text(json.dumps(nodes))
    assert Ontology(path).with_children("b") == {"a", "b", "c"}


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"id": "a"}]', "x"])
def test_bad_ontologies(tmp_path, text):
    path = tmp_path / "ontology.json"
    path.write_text(text)
    if text == "{}":
        assert Ontology(path).names == {}
        return
    with pytest.raises(L3PruneError, match=r"is no ontology of AudioSet|is not JSON"):
        Ontology(path)


def test_csv_of_unknown_ids_only(audioset):
    (audioset / "segments.csv").write_text("zzzzzzzzzzz, 0, 10, /m/song\n")
    with pytest.raises(L3PruneError, match=r"no video in .*data is listed in .*segments\.csv"):
        choose(audioset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "line 1 has no four columns"),
        ("# only comments\n", "no videos are listed there"),
        ("YTID,start_seconds,end_seconds,positive_labels\n", "no videos are listed there"),
    ],
)
def test_bad_segments(audioset, text, message):
    (audioset / "segments.csv").write_text(text)
    with pytest.raises(L3PruneError, match=message):
        choose(audioset)


def test_segments_by_pattern(audioset):
    (audioset / "more.csv").write_text("unlisted___,0,10,/m/song\n")
    subsets = choose(audioset, metadata=[str(audioset / "*e*.csv")])
    assert len(subsets.train) == 5
    with pytest.raises(L3PruneError, match=r"no such file: .*none"):
        choose(audioset, metadata=[audioset / "none*.csv"])


def test_audio_and_video_deeper_down(tmp_path):
    for part, name in (("one", "a"), ("two", "b")):
        for kind, ending in (("audio", "wav"), ("video", "mp4")):
            path = tmp_path / part / kind / f"{name}.{ending}"
            path.parent.mkdir(parents=True)
            path.touch()
    subsets = make_subsets(tmp_path, valid_ratio=0, test_ratio=0)
    assert [(e.ytid, e.audio.name, e.video.name) for e in subsets.train] == [
        ("a", "a.wav", "a.mp4"),
        ("b", "b.wav", "b.mp4"),
    ]


def test_a_folder_of_videos(tmp_path):
    for name in ("a.mp4", "deep/a.mkv", "b.txt", ".hidden.mp4", "video/c.webm"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    subsets = make_subsets(tmp_path, valid_ratio=0, test_ratio=0)
    assert [entry.ytid for entry in subsets.train] == ["a", "deep/a", "video/c"]
    assert all(entry.audio == entry.video for entry in subsets.train)


def test_a_folder_of_videos_with_segments(audioset):
    data = audioset / "videos" / "deep"
    data.mkdir(parents=True)
    (data / "--aaaaaaaaa_30000_40000.mp4").touch()
    subsets = make_subsets(data.parent, metadata=[audioset / "segments.csv"])
    assert [entry.ytid for entry in subsets.train] == ["--aaaaaaaaa"]


def test_folders_without_videos(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(L3PruneError, match="holds no videos: neither sound"):
        make_subsets(tmp_path)
    with pytest.raises(L3PruneError, match="no such folder"):
        make_subsets(tmp_path / "none")


# Sharing out.


def test_names_that_are_not_utf_8(tmp_path):
    (tmp_path / os.fsdecode(b"\xff\xfe.mp4")).touch()
    with pytest.raises(L3PruneError, match=r"rename b'.*xff.xfe\.mp4'; its name is not UTF-8"):
        make_subsets(tmp_path)


@pytest.fixture
def videos(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}.mp4").touch()
    return tmp_path


def parts(subsets):
    return [[e.ytid for e in part] for part in (subsets.train, subsets.valid, subsets.test)]


def test_subsets_are_a_matter_of_the_seed(videos, tmp_path_factory):
    first = parts(make_subsets(videos, seed=1))
    assert [len(part) for part in first] == [32, 4, 4]
    assert sorted(itertools.chain(*first)) == [f"{n:02d}" for n in range(40)]
    assert parts(make_subsets(videos, seed=1)) == first
    assert parts(make_subsets(videos, seed=2)) != first
    other = tmp_path_factory.mktemp("other")
    for path in sorted(videos.iterdir(), reverse=True):
        (other / path.name).touch()
    assert parts(make_subsets(other, seed=1)) == first


def test_parts_of_a_video_stay_together(tmp_path):
    for number in range(20):
        for start in (0, 10, 20):
            (tmp_path / f"video{number:06d}_{start}_{start + 10}.mp4").touch()
    shared = parts(make_subsets(tmp_path, valid_ratio=0.25, test_ratio=0.25))
    assert [len(part) for part in shared] == [30, 15, 15]
    assert not set(shared[0]) & set(shared[1]) | set(shared[1]) & set(shared[2])


@given(count=st.integers(1, 60), valid=st.integers(0, 49), test=st.integers(0, 50))
@example(count=100, valid=29, test=0)  # 0.29 * 100 is less than 29
@settings(max_examples=30, deadline=None)
def test_shares_are_whole_and_apart(tmp_path_factory, count, valid, test):
    folder = tmp_path_factory.mktemp("shares")
    for number in range(count):
        (folder / f"{number}.mp4").touch()
    subsets = make_subsets(folder, valid_ratio=valid / 100, test_ratio=test / 100)
    lengths = [len(part) for part in parts(subsets)]
    assert lengths[1:] == [count * valid // 100, count * test // 100]
    assert len(set(itertools.chain(*parts(subsets)))) == sum(lengths) == count


@pytest.mark.parametrize(
    "ratios", [(-0.1, 0), (0, 1), (0.5, 0.5), (float("nan"), 0), (0, float("nan"))]
)
def test_bad_ratios(videos, ratios):
    with pytest.raises(ParameterError, match="are less than 1 together"):
        make_subsets(videos, valid_ratio=ratios[0], test_ratio=ratios[1])


def test_too_few_for_a_subset(videos):
    for path in list(videos.iterdir())[5:]:
        path.unlink()
    assert make_subsets(videos).notices == [
        "valid: empty, 5 videos are too few for 0.1 of them",
        "test: empty, 5 videos are too few for 0.1 of them",
    ]


# Files.


def test_written_subsets_are_read_again(audioset, tmp_path):
    out = tmp_path / "out"
    subsets = choose(audioset)
    written = subsets.write(out, "music")
    assert {path.name: count for path, count in written.items()} == {
        "music_train.csv": 4,
        "music_valid.csv": 0,
        "music_test.csv": 0,
    }
    with (out / "music_train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["ytid", "audio_filepath", "video_filepath", "labels"]
    assert rows[0]["labels"] == "song;speech, talking"
    again = read_subset(out / "music_train.csv")
    assert [(e.ytid, e.audio, e.video) for e in again] == [
        (e.ytid, e.audio, e.video) for e in subsets.train
    ]
    with pytest.raises(L3PruneError, match=r"music_valid\.csv lists no videos"):
        read_subset(out / "music_valid.csv")


def test_an_old_subset_does_not_stay(videos, tmp_path):
    make_subsets(videos).write(tmp_path / "out")
    make_subsets(videos, valid_ratio=0).write(tmp_path / "out")
    with pytest.raises(L3PruneError, match=r"valid\.csv lists no videos"):
        read_subset(tmp_path / "out" / "valid.csv")
    assert Subsets([], [Entry("a", videos, videos)], [], []).write(tmp_path / "out")


def test_bad_subset_files(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("ytid,audio\na,b\n")
    with pytest.raises(L3PruneError, match="has no column audio_filepath, video_filepath"):
        read_subset(path)
    path.write_text("ytid,audio_filepath,video_filepath,labels\na,,b,\n")
    with pytest.raises(L3PruneError, match="line 2 has no audio_filepath"):
        read_subset(path)
