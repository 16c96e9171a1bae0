"""AudioSet's files, and clips packed into one."""

import numpy as np
import pytest
import soundfile

from l3prune.datasets import Clip, Dataset, load_dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.packed_clips import ComputedMaps, PackedClips, pack_clips
from tests.test_datasets import make_audioset, write_sound


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
    maps = ComputedMaps(source, front_end_layer(network))
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
        ComputedMaps(PackedClips(packed), ClipLogMel())


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


def test_a_clip_that_cannot_be_decoded_leaves_no_file(tmp_path):
    write_sound(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"no sound")
    clips = (Clip(tmp_path / "a.wav", 1, 0), Clip(tmp_path / "b.wav", 1, 0))
    with pytest.raises(L3PruneError, match=r"b\.wav cannot be decoded"):
        pack_clips(Dataset("toy", clips, ("dog",)), tmp_path / "a.h5", quiet=True)
    assert not (tmp_path / "a.h5").exists()


def test_classifiers_of_one_class_refuse(tmp_path, capsys):
    from classifier.__main__ import main

    make_audioset(tmp_path)
    words = ["features", "audioset", str(tmp_path), str(tmp_path), "--model", "a.h5"]
    with pytest.warns(UserWarning, match="2 of 5 clips"):
        assert main(words) == 2
    assert "has several classes a clip" in capsys.readouterr().err
