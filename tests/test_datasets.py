"""Corpora: every registered one yields its official folds; csv files that are wrong say so."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from l3prune.audio import load_audio
from l3prune.datasets import Dataset, dcase2017, dcase2018, list_datasets, load_dataset
from l3prune.errors import L3PruneError, ParameterError


def write_sound(path: Path, samples: int = 800) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(samples, np.float32), 8000)


def make_us8k(root: Path) -> Path:
    """Three clips in folds 10, 1 and 2 of classes 3, 9 and 3; one converted to flac."""
    write_sound(root / "audio/fold10/7061-6-0-0.wav")
    write_sound(root / "audio/fold1/101415-3-0-2.flac")
    write_sound(root / "audio/fold2/102106-3-0-0.WAV")
    (root / "metadata").mkdir()
    (root / "metadata/UrbanSound8K.csv").write_text(
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
        "7061-6-0-0.wav,7061,0.0,4.0,1,10,6,gun_shot\n"
        "101415-3-0-2.wav,101415,1.0,5.0,1,1,3,dog_bark\n"
        "102106-3-0-0.wav,102106,0.0,0.5,2,2,3,dog_bark\n"
    )
    return root


def make_esc50(root: Path) -> Path:
    """Three clips in folds 5, 1 and 1 of classes 0, 41 and 10; the csv says wav, two are ogg."""
    write_sound(root / "audio/5-100032-A-0.wav")
    write_sound(root / "audio/1-116765-A-41.ogg")
    write_sound(root / "audio/1-17367-A-10.ogg")
    (root / "meta").mkdir()
    (root / "meta/esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "5-100032-A-0.wav,5,0,dog,True,100032,A\n"
        "1-116765-A-41.wav,1,41,chainsaw,True,116765,A\n"
        "1-17367-A-10.wav,1,10,rain,True,17367,A\n"
    )
    return root


def make_dcase2013(root: Path) -> Path:
    """Three clips of classes 9, 0 and 9; one converted to flac."""
    write_sound(root / "fold1/tubestation01.wav")
    write_sound(root / "fold1/bus10.flac")
    write_sound(root / "fold2/tubestation07.WAV")
    return root


def make_audioset(root: Path) -> Path:
    """Three clips of five listed, of one class and of several, one with its start in its name."""
    write_sound(root / "audios/balanced_train_segments/Y--PJHxphWEs.wav")
    write_sound(root / "audios/balanced_train_segments/--ZhevVpy1s_50.flac")
    write_sound(root / "audios/eval_segments/Y--4gqARaEJE.wav")
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/012f08,"Motor vehicle (road)"\n'
        '2,/t/dd00088,"Gush"\n'
    )
    (root / "balanced_train_segments.csv").write_text(
        "# Segments csv created Sun Mar  5 10:54:31 2017\n"
        "# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--PJHxphWEs, 30.000, 40.000, "/t/dd00088,/m/09x0r"\n'
        '--ZhevVpy1s, 50.000, 60.000, "/m/012f08"\n'
        '--aE2O5G5WE, 0.000, 10.000, "/m/09x0r"\n'
    )
    (root / "eval_segments.csv").write_text(
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--4gqARaEJE, 0.000, 10.000, "/t/dd00088"\n'
        '--BfvyPmVMo, 20.000, 30.000, "/m/09x0r"\n'
    )
    return root


def make_dcase2021(root: Path) -> Path:
    """Three clips of two scenes, three places and devices; one is tested on. A fourth is unused."""
    rows = [
        ("audio/bus-lyon-1018-40000-a.wav", "bus", "lyon-1018", "a"),
        ("audio/airport-paris-203-6126-b.wav", "airport", "paris-203", "b"),
        ("audio/airport-milan-10-291-s4.wav", "airport", "milan-10", "s4"),
        ("audio/tram-vienna-285-8639-c.wav", "tram", "vienna-285", "c"),
    ]
    for file, *_ in rows[:3]:
        write_sound(root / file)
    (root / "evaluation_setup").mkdir()

    def write(name, columns, chosen):
        lines = ["\t".join(row) for row in (columns, *chosen)]
        (root / name).write_text("\n".join(lines) + "\n")

    write("meta.csv", ("filename", "scene_label", "identifier", "source_label"), rows)
    both = ("filename", "scene_label")
    write("evaluation_setup/fold1_train.csv", both, [row[:2] for row in rows[:2]])
    write("evaluation_setup/fold1_evaluate.csv", both, [rows[2][:2]])
    write("evaluation_setup/fold1_test.csv", ("filename",), [rows[2][:1]])
    return root


def write_lists(root, lists):
    """Lists without a header, a tab between columns, and the clips that they name."""
    for name, rows in lists.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join("\t".join(row) + "\n" for row in rows))
        folder = path.parent.parent if path.parent.name == "evaluation_setup" else path.parent
        for file, *_ in rows:
            write_sound(folder / file)
    return root


def make_dcase2018(root: Path) -> Path:
    """Three clips of two scenes, one of which is tested on."""
    write_lists(
        root,
        {
            "evaluation_setup/fold1_train.txt": [
                ("audio/bus-lyon-1018-40000-a.wav", "bus"),
                ("audio/airport-paris-203-6126-a.wav", "airport"),
            ],
            "evaluation_setup/fold1_evaluate.txt": [("audio/bus-milan-10-291-a.wav", "bus")],
        },
    )
    (root / "meta.csv").write_text(
        "filename\tscene_label\tidentifier\tsource_label\n"
        "audio/bus-lyon-1018-40000-a.wav\tbus\tlyon-1018\ta\n"
        "audio/airport-paris-203-6126-a.wav\tairport\tparis-203\ta\n"
        "audio/bus-milan-10-291-a.wav\tbus\tmilan-10\ta\n"
    )
    return root


def make_dcase2017(root: Path) -> Path:
    """Two clips of the development set, one of the evaluation set."""
    return write_lists(
        root,
        {
            "TUT-acoustic-scenes-2017-development/meta.txt": [
                ("audio/b020_90_100.wav", "beach", "b020"),
                ("audio/a001_10_20.wav", "cafe/restaurant", "a001"),
            ],
            "TUT-acoustic-scenes-2017-evaluation/meta.txt": [("audio/1.wav", "beach")],
        },
    )


def make_fsdkaggle2019(root: Path) -> Path:
    """Three clips, one of several classes."""
    for name in ("c3", "a1", "b2"):
        write_sound(root / f"train_curated/{name}.wav")
    (root / "sample_submission.csv").write_text("fname,Bark,Meow,Rain\ntest.wav,0,0,0\n")
    (root / "train_curated.csv").write_text(
        'fname,labels\nc3.wav,Rain\na1.wav,"Meow,Rain"\nb2.wav,Bark\n'
    )
    return root


# A miniature tree of three clips, and (fold, stem, label) of each, in the order of the dataset.
MINIATURES = {
    "us8k": (
        make_us8k,
        [
            (1, "101415-3-0-2", "dog_bark"),
            (2, "102106-3-0-0", "dog_bark"),
            (10, "7061-6-0-0", "gun_shot"),
        ],
    ),
    "esc50": (
        make_esc50,
        [
            (1, "1-116765-A-41", "chainsaw"),
            (1, "1-17367-A-10", "rain"),
            (5, "5-100032-A-0", "dog"),
        ],
    ),
    "audioset": (
        make_audioset,
        [
            (1, "--ZhevVpy1s_50", "Motor vehicle (road)"),
            (1, "Y--PJHxphWEs", "Speech"),
            (2, "Y--4gqARaEJE", "Gush"),
        ],
    ),
    "dcase2021": (
        make_dcase2021,
        [
            (1, "airport-paris-203-6126-b", "airport"),
            (1, "bus-lyon-1018-40000-a", "bus"),
            (2, "airport-milan-10-291-s4", "airport"),
        ],
    ),
    "dcase2017": (
        make_dcase2017,
        [
            (1, "a001_10_20", "cafe/restaurant"),
            (1, "b020_90_100", "beach"),
            (2, "1", "beach"),
        ],
    ),
    "dcase2018": (
        make_dcase2018,
        [
            (1, "airport-paris-203-6126-a", "airport"),
            (1, "bus-lyon-1018-40000-a", "bus"),
            (2, "bus-milan-10-291-a", "bus"),
        ],
    ),
    "fsdkaggle2019": (
        make_fsdkaggle2019,
        [(1, "a1", "Meow"), (1, "b2", "Bark"), (1, "c3", "Rain")],
    ),
    "dcase2013": (
        make_dcase2013,
        [
            (1, "bus10", "bus"),
            (1, "tubestation01", "tubestation"),
            (2, "tubestation07", "tubestation"),
        ],
    ),
}


def test_every_corpus_has_a_miniature():
    assert sorted(MINIATURES) == list_datasets()


@pytest.mark.filterwarnings("ignore:2 of 5 clips are not there")
@pytest.mark.parametrize("name", sorted(MINIATURES))
def test_miniature_yields_its_official_folds(name, tmp_path):
    make, expected = MINIATURES[name]
    dataset = load_dataset(name, make(tmp_path))
    assert isinstance(dataset, Dataset)
    assert dataset.name == name
    found = [(clip.fold, clip.path.stem, dataset.labels[clip.target]) for clip in dataset.clips]
    assert found == expected
    assert dataset.folds == tuple(sorted({fold for fold, _, _ in expected}))
    # Contiguous: a network's output has one place per label.
    assert {clip.target for clip in dataset.clips} == set(range(len(dataset.labels)))
    for clip in dataset.clips:
        load_audio(clip.path)


@pytest.mark.parametrize("name", sorted(MINIATURES))
def test_missing_folder_is_named(name, tmp_path):
    with pytest.raises(L3PruneError, match=f"no such folder: {tmp_path / 'none'}"):
        load_dataset(name, tmp_path / "none")


# dcase2013 has no list of its clips.
@pytest.mark.parametrize("name", ["dcase2021", "esc50", "us8k"])
def test_missing_clip_is_named(name, tmp_path):
    make, expected = MINIATURES[name]
    make(tmp_path)
    _, stem, _ = expected[1]
    next(path for path in tmp_path.rglob("*") if path.stem == stem).unlink()
    with pytest.raises(L3PruneError, match=rf"1 of 3 files .* are missing, the first is .*{stem}"):
        load_dataset(name, tmp_path)


def test_targets_follow_the_csvs_numbers_not_its_order(tmp_path):
    assert load_dataset("esc50", make_esc50(tmp_path)).labels == ("dog", "rain", "chainsaw")


def test_the_listed_ending_wins_over_another_copy(tmp_path):
    make_esc50(tmp_path)
    write_sound(tmp_path / "audio/5-100032-A-0.flac")
    clip = load_dataset("esc50", tmp_path).clips[-1]
    assert clip.path.name == "5-100032-A-0.wav"


def test_byte_order_mark_and_padding_are_ignored(tmp_path):
    path = make_esc50(tmp_path) / "meta/esc50.csv"
    text = path.read_text().replace(",1,41,", ", 1 , 41 ,")
    path.write_text("\ufeff" + text + "\n\n", encoding="utf-8")
    assert len(load_dataset("esc50", tmp_path).clips) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fold,", "gold,", "esc50.csv has no column fold; its first line must name filename, fold"),
        (",5,0,dog", ",five,0,dog", "line 2: fold 'five' is not an integer"),
        (",5,0,dog", ",1.5,0,dog", "line 2: fold '1.5' is not an integer"),
        (",5,0,dog", ",6,0,dog", "line 2: fold 6 is not in 1 … 5, the folds of esc50"),
        (",5,0,dog", ",0,0,dog", "line 2: fold 0 is not in 1 … 5"),
        (",5,0,dog", ",5,x,dog", "line 2: target 'x' is not an integer"),
        (",5,0,dog,True,100032,A", ",5,0", "line 2 has no category"),
        ("rain", "", "line 4 has no category"),
        (",1,41,", ",1,10,", "line 4: target 10 is 'rain' here and 'chainsaw' above"),
        ("rain", "dog", "gives one name in column category to several target"),
        ("1-17367-A-10.wav", "5-100032-A-0.ogg", "line 4: 5-100032-A-0.ogg is listed twice"),
        ("1-17367-A-10", "../audio/1-17367-A-10", "1 of 3 files"),
    ],
)
def test_wrong_csv_is_refused_in_one_line(old, new, message, tmp_path):
    path = make_esc50(tmp_path) / "meta/esc50.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(L3PruneError, match=message) as caught:
        load_dataset("esc50", tmp_path)
    assert "\n" not in str(caught.value)


def test_csv_without_rows_or_missing_or_binary(tmp_path):
    path = make_esc50(tmp_path) / "meta/esc50.csv"
    header = path.read_text().splitlines()[0]
    path.write_text(header + "\n")
    with pytest.raises(L3PruneError, match="lists no clips"):
        load_dataset("esc50", tmp_path)
    path.write_text("")
    with pytest.raises(L3PruneError, match="has no column"):
        load_dataset("esc50", tmp_path)
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(L3PruneError, match="cannot be read as csv"):
        load_dataset("esc50", tmp_path)
    path.unlink()
    with pytest.raises(L3PruneError, match=r"esc50\.csv is missing; give the folder that holds"):
        load_dataset("esc50", tmp_path)


def test_us8k_looks_in_the_fold_of_the_csv(tmp_path):
    make_us8k(tmp_path)
    (tmp_path / "audio/fold3").mkdir()
    (tmp_path / "audio/fold2/102106-3-0-0.WAV").rename(tmp_path / "audio/fold3/102106-3-0-0.WAV")
    with pytest.raises(L3PruneError, match=r"the first is .*fold2/102106-3-0-0\.wav"):
        load_dataset("us8k", tmp_path)


def with_copies(root):
    """US8K's miniature, with copies of two clips in three places."""
    make_us8k(root)
    write_sound(root / "audio/fold10/7061-6-0-0_pitch1.wav")
    write_sound(root / "augmented/deep/7061-6-0-0-stretch.FLAC")
    write_sound(root / "102106-3-0-0.noise.ogg")
    return root


def test_augmented_copies_get_their_originals_fold_and_class(tmp_path):
    with_copies(tmp_path)
    # Neither copies nor clips: a name that goes on with a digit, another converted original.
    write_sound(tmp_path / "audio/fold10/7061-6-0-01.wav")
    write_sound(tmp_path / "converted/7061-6-0-0.flac")
    write_sound(tmp_path / "audio/fold2/readme_5.wav")
    dataset = load_dataset("us8k", tmp_path, augmented=True)
    found = [
        (clip.path.name, clip.fold, dataset.labels[clip.target], clip.original)
        for clip in dataset.clips
    ]
    assert found == [
        ("101415-3-0-2.flac", 1, "dog_bark", None),
        ("102106-3-0-0.WAV", 2, "dog_bark", None),
        ("102106-3-0-0.noise.ogg", 2, "dog_bark", "102106-3-0-0"),
        ("7061-6-0-0-stretch.FLAC", 10, "gun_shot", "7061-6-0-0"),
        ("7061-6-0-0.wav", 10, "gun_shot", None),
        ("7061-6-0-0_pitch1.wav", 10, "gun_shot", "7061-6-0-0"),
    ]
    plain = load_dataset("us8k", tmp_path)
    assert plain.clips == tuple(clip for clip in dataset.clips if clip.original is None)


def test_copies_of_unlisted_clips_and_of_one_name_are_refused(tmp_path):
    with_copies(tmp_path)
    write_sound(tmp_path / "more/7061-6-0-0_pitch1.flac")
    with pytest.raises(L3PruneError, match=r"7061-6-0-0_pitch1\.wav and .*flac have one name"):
        load_dataset("us8k", tmp_path, augmented=True)
    (tmp_path / "more/7061-6-0-0_pitch1.flac").unlink()
    write_sound(tmp_path / "more/999-1-0-0_pitch1.wav")
    message = r"1 augmented files are copies of clips that .*csv does not list, .*999-1-0-0_pitch1"
    with pytest.raises(L3PruneError, match=message):
        load_dataset("us8k", tmp_path, augmented=True)
    assert len(load_dataset("us8k", tmp_path).clips) == 3


@pytest.mark.parametrize("name", ["esc50", "dcase2013"])
def test_corpora_without_copies_say_so(name, tmp_path):
    with pytest.raises(ParameterError, match=f"{name} has no augmented copies; us8k may"):
        load_dataset(name, MINIATURES[name][0](tmp_path), augmented=True)


def test_dcase2013_has_the_challenges_ten_classes(tmp_path):
    labels = [
        "bus", "busystreet", "office", "openairmarket", "park", "quietstreet", "restaurant",
        "supermarket", "tube", "tubestation",
    ]  # fmt: skip
    for fold in (1, 2):
        for label in labels:
            write_sound(tmp_path / f"fold{fold}/{label}{fold:02d}.wav")
    (tmp_path / "fold1/readme.txt").write_text("not audio")
    dataset = load_dataset("dcase2013", tmp_path)
    assert list(dataset.labels) == labels
    assert [clip.target for clip in dataset.clips] == [*range(10), *range(10)]
    assert [clip.fold for clip in dataset.clips] == [1] * 10 + [2] * 10


@pytest.mark.parametrize(
    "name", ["bus.wav", "bus1.wav", "train01.wav", "busx1.wav", "01.wav", "Bus01.wav", "bus٣٤.wav"]
)
def test_dcase2013_refuses_other_names(name, tmp_path):
    write_sound(make_dcase2013(tmp_path) / "fold2" / name)
    with pytest.raises(L3PruneError, match="is not called by a class and two digits") as caught:
        load_dataset("dcase2013", tmp_path)
    assert name in str(caught.value)


def test_dcase2013_needs_both_folds_and_each_clip_once(tmp_path):
    make_dcase2013(tmp_path)
    write_sound(tmp_path / "fold1/bus10.wav")
    with pytest.raises(L3PruneError, match=r"bus10\.flac and .*bus10\.wav have one name"):
        load_dataset("dcase2013", tmp_path)
    (tmp_path / "fold1/bus10.wav").unlink()
    (tmp_path / "fold2/tubestation07.WAV").unlink()
    with pytest.raises(L3PruneError, match="fold2 has no audio files; put one half"):
        load_dataset("dcase2013", tmp_path)
    (tmp_path / "fold2").rmdir()
    with pytest.raises(L3PruneError, match="fold2 is missing; put one half"):
        load_dataset("dcase2013", tmp_path)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ParameterError, match=r"'us9k' is unknown; known: .*esc50"):
        load_dataset("us9k", ".")


@pytest.mark.shared
@pytest.mark.skipif("L3PRUNE_SHARED" not in os.environ, reason="L3PRUNE_SHARED is not set")
def test_real_esc10():
    dataset = load_dataset("esc50", Path(os.environ["L3PRUNE_SHARED"]) / "data" / "esc10")
    assert len(dataset.clips) == 320
    assert dataset.folds == (1, 2, 3, 4)
    assert dataset.labels[:3] == ("dog", "rooster", "rain")
    assert len(dataset.labels) == 10
    for fold in dataset.folds:
        targets = [clip.target for clip in dataset.clips if clip.fold == fold]
        np.testing.assert_array_equal(np.bincount(targets), [8] * 10)
    # ESC-50's own name of a clip is fold-source-take-target.
    assert all(int(clip.path.name.split("-")[0]) == clip.fold for clip in dataset.clips)


def test_scenes_have_places_and_devices(tmp_path):
    clips = load_dataset("dcase2021", make_dcase2021(tmp_path)).clips
    assert [(clip.group, clip.device) for clip in clips] == [
        ("paris-203", "b"),
        ("lyon-1018", "a"),
        ("milan-10", "s4"),
    ]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("meta.csv", "identifier", "id", r"meta.csv has no column identifier; .* tabs between"),
        ("meta.csv", "\t", ",", "meta.csv has no column filename, scene_label, .* tabs between"),
        ("meta.csv", "\tbus\t", "\tbuss\t", "meta.csv line 2: scene 'buss' is unknown; known: air"),
        ("meta.csv", "\tb\n", "\tx\n", r"line 3: device 'x' is unknown; known: a, b, c, s1"),
        (
            "meta.csv",
            "bus-lyon-1018-40000-a",
            "airport-paris-203-6126-b",
            "line 3: .* listed twice",
        ),
        ("meta.csv", "audio/bus", "audio/Bus", r"fold1_train.csv line 2: .* not in meta.csv"),
        ("evaluation_setup/fold1_train.csv", "\tbus", "\ttram", "is of tram here and of bus in"),
        (
            "evaluation_setup/fold1_train.csv",
            "bus-lyon-1018-40000-a.wav\tbus",
            "airport-milan-10-291-s4.wav\tairport",
            "fold1_evaluate.csv line 2: .* listed twice",
        ),
        ("evaluation_setup/fold1_train.csv", "scene_label", "label", "no column scene_label"),
        ("evaluation_setup/fold1_test.csv", "milan", "rome", "list different clips, such as audio"),
    ],
)
def test_scene_lists_that_are_wrong(tmp_path, file, old, new, message):
    path = make_dcase2021(tmp_path) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(L3PruneError, match=message):
        load_dataset("dcase2021", tmp_path)


def test_clips_of_2017_and_2018_have_their_recordings(tmp_path):
    for name, make, expected in (
        ("dcase2017", make_dcase2017, ["a001", "b020", None]),
        ("dcase2018", make_dcase2018, ["paris-203", "lyon-1018", None]),
    ):
        clips = load_dataset(name, make(tmp_path / name)).clips
        assert [clip.group for clip in clips] == expected


def test_clips_of_2017_and_2018_are_counted(tmp_path, monkeypatch):
    # Lists as long as the official ones; whether each clip is there, is not asked.
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    setup = tmp_path / "evaluation_setup"
    setup.mkdir()
    meta = ["filename\tscene_label\tidentifier"]
    for name, count in (("train", 6122), ("evaluate", 2518)):
        scenes = dcase2018.SCENES
        rows = [(f"audio/{name}{n}.wav", scenes[n % len(scenes)]) for n in range(count)]
        (setup / f"fold1_{name}.txt").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
        meta += [f"{a}\t{b}\tplace{n // 9}" for n, (a, b) in enumerate(rows)]
    (tmp_path / "meta.csv").write_text("\n".join(meta) + "\n")
    dataset = load_dataset("dcase2018", tmp_path)
    assert np.bincount([clip.fold for clip in dataset.clips]).tolist() == [0, 6122, 2518]
    assert len(dataset.labels) == 10
    for part, count in (("development", 4680), ("evaluation", 1620)):
        folder = tmp_path / f"TUT-acoustic-scenes-2017-{part}"
        folder.mkdir()
        scenes = dcase2017.SCENES
        (folder / "meta.txt").write_text(
            "".join(f"audio/{n}.wav\t{scenes[n % 15]}\tr{n}\n" for n in range(count))
        )
    dataset = load_dataset("dcase2017", tmp_path)
    assert np.bincount([clip.fold for clip in dataset.clips]).tolist() == [0, 4680, 1620]
    targets = [clip.target for clip in dataset.clips if clip.fold == 1]
    assert np.bincount(targets).tolist() == [312] * 15


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("fold1_train.txt", "\tbus", "\tbuss", "line 1: scene 'buss' is unknown; known: airport"),
        ("fold1_train.txt", "\tbus", "", "line 1 has no scene; complete or remove the row"),
        ("fold1_train.txt", "audio/bus", "audio/Bus", "line 1: audio/Bus.* not in .* meta file"),
        (
            "fold1_evaluate.txt",
            "bus-milan-10-291-a.wav",
            "bus-lyon-1018-40000-a.wav",
            "fold1_evaluate.txt line 1: .* listed twice",
        ),
        ("fold1_evaluate.txt", "milan", "rome", "1 of 3 listed files are missing"),
    ],
)
def test_lists_of_clips_that_are_wrong(tmp_path, file, old, new, message):
    path = make_dcase2018(tmp_path) / "evaluation_setup" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(L3PruneError, match=message):
        load_dataset("dcase2018", tmp_path)


@pytest.mark.parametrize("name", ["meta.csv", "evaluation_setup/fold1_evaluate.csv"])
def test_a_missing_scene_list_is_named(tmp_path, name):
    (make_dcase2021(tmp_path) / name).unlink()
    with pytest.raises(L3PruneError, match=f"{name} is missing; give the folder that holds meta"):
        load_dataset("dcase2021", tmp_path)
