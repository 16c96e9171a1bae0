"""AudioSet's files, and clips packed into one."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from l3prune import packed_clips
from l3prune.datasets import Clip, Dataset, load_dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.packed_clips import PackedClips, computed_maps, pack_clips
from tests.test_datasets import make_audioset


def test_several_classes_and_missing_clips(tmp_path):
    make_audioset(tmp_path)
    with pytest.warns(UserWarning, match=r"2 of 5 clips are not there .* Y--aE2O5G5WE of .*bal"):
        dataset = load_dataset("audioset", tmp_path)
    assert dataset.multi_label
    assert [(clip.target, clip.further) for clip in dataset.clips] == [(1, ()), (0, (2,)), (2, ())]


@pytest.mark.filterwarnings("ignore:1 of 3 clips")
def test_audioset_s_own_classes(tmp_path):
    make_audioset(tmp_path)
    (tmp_path / "class_labels_indices.csv").unlink()
    (tmp_path / "eval_segments.csv").unlink()
    dataset = load_dataset("audioset", tmp_path)
    assert len(dataset.labels) == 527
    assert dataset.labels[dataset.clips[1].target] == "Speech"
    assert dataset.folds == (1,)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("positive_labels\n", "labels\n", "has no column positive_labels; a line beginning with #"),
        ("# YTID", "YTID", "has no column YTID, start_seconds"),
        ('"/m/012f08"', '"/m/none"', "clip 2: class '/m/none' is unknown; .* such as '/m/09x0r'"),
        ('"/m/012f08"', '""', "clip 2 has no positive_labels"),
        (', "/m/012f08"', "", "clip 2: 3 fields where 4 are named"),
        ("50.000, 60", "half, 60", "clip 2: start_seconds 'half' is not a number"),
        ("--ZhevVpy1s, 50", "--PJHxphWEs, 30", "clip 2: --PJHxphWEs from 30 s on is listed twice"),
    ],
)
def test_damaged_segment_files(tmp_path, old, new, message):
    path = make_audioset(tmp_path) / "balanced_train_segments.csv"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    with pytest.raises(L3PruneError, match=message):
        load_dataset("audioset", tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(L3PruneError, match="has no segment file; give any of balanced_train"):
        load_dataset("audioset", tmp_path)
    make_audioset(tmp_path)
    for path in tmp_path.rglob("*.*a*"):
        if path.suffix in (".wav", ".flac"):
            path.unlink()
    with pytest.raises(L3PruneError, match=r"none of the 5 clips .* called Y<id>\.wav"):
        load_dataset("audioset", tmp_path)


@pytest.fixture
def packed(tmp_path):
    """Three clips of two samples more, as many and two fewer than are packed."""
    for name, values in (("a", [0.5, -0.5] * 5), ("b", [1, -1] * 4), ("c", [0.25, 0] * 3)):
        values = np.array(values, np.float32)
        soundfile.write(tmp_path / f"{name}.wav", values, 8000, subtype="FLOAT")
    clips = (
        Clip(tmp_path / "a.wav", 1, 0, further=(1,)),
        Clip(tmp_path / "b.wav", 1, 1),
        Clip(tmp_path / "c.wav", 2, 0),
    )
    dataset = Dataset("toy", clips, ("dog", "rain"), multi_label=True)
    path = tmp_path / "toy.h5"
    pack_clips(dataset, path, sample_rate=8000, samples=8, quiet=True)
    return path


def test_packed_clips_are_16_bits_of_one_length(packed):
    source = PackedClips(packed)
    assert (len(source), source.samples, source.sample_rate) == (3, 8, 8000)
    assert source.labels == ("dog", "rain")
    assert source.multi_label
    clips, targets = source.read(np.array([2, 0, 0, 1]))
    assert clips.shape == (4, 1, 8)
    assert clips.dtype == np.float32
    full = 32767
    np.testing.assert_array_equal(
        (clips[:, 0] * full).round(),
        [
            [8191, 0] * 3 + [0, 0],
            [16383, -16383] * 4,
            [16383, -16383] * 4,
            [32767, -32767] * 4,
        ],
    )
    assert targets.tolist() == [[1, 0], [1, 1], [1, 1], [0, 1]]
    test = PackedClips(packed, fold=2)
    assert len(test) == 1
    np.testing.assert_array_equal(test.read(np.array([0]))[0], clips[:1])
    assert test.fingerprint != source.fingerprint


@pytest.mark.slow
def test_training_on_packed_clips(tmp_path):
    """Spectrograms are computed in each step, and changed as PANNs does; nothing is cached."""
    from l3prune.augmentation import Balanced, BatchChange
    from l3prune.classification import front_end_layer, train_on_labels
    from l3prune.log_mel import log_mel
    from l3prune.recipes import Recipe
    from tests.cnn14_networks import small

    rng = np.random.default_rng(0)
    clips = []
    for number in range(4):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, rng.uniform(-1, 1, 10_000) * (number % 2), 32_000)
        clips.append(Clip(path, 1, number % 2))
    dataset = Dataset("toy", tuple(clips), ("quiet", "loud"), multi_label=True)
    pack_clips(dataset, tmp_path / "toy.h5", samples=9920, quiet=True)
    source = PackedClips(tmp_path / "toy.h5")
    network = small(samples=9920, classes=2)
    maps = computed_maps(source, front_end_layer(network))
    found, targets = maps.read(np.array([1, 2]))
    np.testing.assert_allclose(found, log_mel(source.read(np.array([1, 2]))[0][:, 0]), atol=1e-3)
    assert targets.tolist() == [[0, 1], [1, 0]]

    def trained(train, validation, **options):
        recipe = Recipe(epochs=1)
        options |= {"recipe": recipe, "batch_size": 2, "quiet": True}
        folder = tmp_path / f"run of {validation.fingerprint}"
        return train_on_labels(network, train, validation, folder, **options)

    history = trained(Balanced(maps, source.targets), maps, augment=BatchChange())
    assert np.isfinite(history[0]["val_loss"])
    assert np.isfinite(trained(source, source)[0]["val_loss"])
    with pytest.raises(ParameterError, match="are not both waveforms, or both maps"):
        trained(maps, source)


def test_packed_clips_of_another_rate(packed):
    from l3prune.layers import ClipLogMel

    with pytest.raises(ParameterError, match="clips are of 8000 Hz, the front end takes 32000"):
        computed_maps(PackedClips(packed), ClipLogMel())


def test_files_that_hold_no_packed_clips(packed, tmp_path):
    import h5py

    with pytest.raises(L3PruneError, match="has no clip of fold 3; folds: 1, 2"):
        PackedClips(packed, fold=3)
    with h5py.File(packed, "r+") as file:
        del file["target"]
    with pytest.raises(L3PruneError, match="has no target; give a file of packed clips"):
        PackedClips(packed)
    packed.write_bytes(b"no HDF5")
    with pytest.raises(L3PruneError, match="is damaged"):
        PackedClips(packed)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("waveform", np.zeros((3, 8), np.float32), "has no waveforms of 16 bits"),
        ("waveform", None, "has no waveforms of 16 bits"),
        ("waveform", np.zeros(3, np.int16), r"waveforms of shape \(3,\)"),
        ("fold", [1, 1, 1, 2], r"folds of shape \(4,\) .* do not belong together"),
        ("target", np.zeros((3, 4), bool), r"targets of shape \(3, 4\) .* for 2 classes"),
        ("label", 3, "damaged"),
    ],
)
def test_packed_clips_that_do_not_belong_together(packed, name, values, message):
    import h5py

    with h5py.File(packed, "r+") as file:
        del file[name]
        if values is None:
            file.create_group(name)
        else:
            file[name] = values
    with pytest.raises(L3PruneError, match=message):
        PackedClips(packed)


def decoded(monkeypatch):
    """Names of the clips that are decoded from now on."""
    names = []
    read = packed_clips.ClipAudio.read

    def noted(self, indices):
        names.extend(self.paths[index].name for index in indices)
        return read(self, indices)

    monkeypatch.setattr(packed_clips.ClipAudio, "read", noted)
    return names


def test_packing_goes_on_when_broken_clips_are_mended_or_removed(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    rng = np.random.default_rng(0)
    for name in ("a.wav", "c.wav", "e.wav"):
        soundfile.write(tmp_path / name, rng.uniform(-1, 1, 8), 8000)
    for name in ("b.wav", "d.wav"):
        (tmp_path / name).write_bytes(b"no sound")
    clips = {name: Clip(tmp_path / f"{name}.wav", 1, 0, group=name) for name in "abcde"}

    def pack(names):
        dataset = Dataset("toy", tuple(clips[name] for name in names), ("dog",))
        pack_clips(dataset, path, sample_rate=8000, samples=8, quiet=True)

    names = decoded(monkeypatch)
    with pytest.raises(L3PruneError, match=r"2 of 5 clips cannot be decoded, .*b\.wav cannot be"):
        pack("abcde")
    assert not path.exists()
    names.clear()
    # The file of b is gone from the corpus, and c with it; d is as broken as before.
    with pytest.raises(L3PruneError, match=r"1 of 3 clips cannot be decoded, .*d\.wav cannot be"):
        pack("ade")
    assert names == ["d.wav"]
    names.clear()
    pack("ae")
    assert names == []
    source = PackedClips(path)
    assert [(clip.path.name, clip.group) for clip in source.dataset.clips] == [
        ("a.wav", "a"),
        ("e.wav", "e"),
    ]
    wanted = [soundfile.read(tmp_path / name)[0] for name in ("a.wav", "e.wav")]
    np.testing.assert_allclose(source.read(np.array([0, 1]))[0][:, 0], wanted, atol=1e-4)
    assert not list(tmp_path.glob("*.part"))
    # A whole file stays as it is.
    names.clear()
    pack("abcde")
    assert names == []


@pytest.mark.parametrize("change", ["mended", "samples", "class", "damage", "new"])
def test_packing_anew_when_the_unfinished_file_is_another_s(tmp_path, monkeypatch, change):
    path = tmp_path / "a.h5"
    soundfile.write(tmp_path / "a.wav", np.ones(8) / 2, 8000)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    clips = [Clip(tmp_path / "a.wav", 1, 0), Clip(tmp_path / "b.wav", 1, 0)]
    labels, samples = ("dog", "rain"), 8
    with pytest.raises(L3PruneError, match="1 of 2 clips"):
        pack_clips(Dataset("toy", tuple(clips), labels), path, samples=8, quiet=True)
    names = decoded(monkeypatch)
    soundfile.write(tmp_path / "b.wav", np.ones(8) / 4, 32000)
    if change == "samples":
        samples = 6
    elif change == "class":
        clips[0] = Clip(tmp_path / "a.wav", 1, 1)
    elif change == "damage":
        (tmp_path / "a.h5.part").write_bytes(b"no HDF5")
    elif change == "new":
        soundfile.write(tmp_path / "0.wav", np.ones(8) / 4, 32000)
        clips.insert(0, Clip(tmp_path / "0.wav", 1, 0))
    pack_clips(Dataset("toy", tuple(clips), labels), path, samples=samples, quiet=True)
    assert names == (["b.wav"] if change == "mended" else [clip.path.name for clip in clips])
    assert PackedClips(path).dataset.clips[0].target == (1 if change == "class" else 0)
    assert PackedClips(path).read(np.array([len(clips) - 1]))[0][0, 0, 0].round(2) == 0.25


def test_a_killed_run_of_packing_goes_on(tmp_path, monkeypatch):
    """Whatever is in the row that it was at."""
    monkeypatch.setattr(packed_clips, "_BLOCK", 1)
    clips = []
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.full(8, number / 4), 8000)
        clips.append(Clip(tmp_path / f"{number}.wav", 1, 0, device="a"))
    dataset = Dataset("toy", tuple(clips), ("dog",))
    read = packed_clips.ClipAudio.read

    def killed(self, indices):
        if indices[0] == 2:
            raise KeyboardInterrupt
        return read(self, indices)

    monkeypatch.setattr(packed_clips.ClipAudio, "read", killed)
    with pytest.raises(KeyboardInterrupt):
        pack_clips(dataset, tmp_path / "a.h5", sample_rate=8000, samples=8, quiet=True)
    monkeypatch.setattr(packed_clips.ClipAudio, "read", read)
    names = decoded(monkeypatch)
    pack_clips(dataset, tmp_path / "a.h5", sample_rate=8000, samples=8, quiet=True)
    assert names == ["2.wav"]
    source = PackedClips(tmp_path / "a.h5")
    assert source.read(np.arange(3))[0][:, 0, 7].round(3).tolist() == [0, 0.25, 0.5]
    assert source.dataset == Dataset(
        "toy", tuple(Clip(Path(f"{n}.wav"), 1, 0, device="a") for n in range(3)), ("dog",)
    )


def test_what_files_of_packed_clips_are_called(tmp_path):
    with pytest.raises(ParameterError, match=r"a: the name of a file of packed clips ends in \.h5"):
        pack_clips(Dataset("toy", (), ("dog",)), tmp_path / "a")


def test_classifiers_of_one_class_refuse(tmp_path, capsys):
    from classifier.__main__ import main

    make_audioset(tmp_path)
    words = ["features", "audioset", str(tmp_path), str(tmp_path), "--model", "a.h5"]
    with pytest.warns(UserWarning, match="2 of 5 clips"):
        assert main(words) == 2
    assert "has several classes a clip" in capsys.readouterr().err
