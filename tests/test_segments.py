"""Clips heard in segments: cut, averaged, trained, and read as pictures that were published."""

import numpy as np
import pytest
import soundfile
import tf_keras as keras

from l3prune.augmentation import BatchChange
from l3prune.classification import (
    network_for,
    open_maps,
    part_for,
    predict,
    train_on_labels,
    trained_part,
)
from l3prune.datasets import Clip, Dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.layers import ClipMean
from l3prune.metrics import lwlrap
from l3prune.networks import create_network, inference
from l3prune.recipes import Recipe
from l3prune.segments import SegmentedMaps, segment, trimmed
from l3prune.slimming import slimmed_norms
from tests.test_fat2019 import published_bytes

LABELS = ("a", "b", "c")


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (128, 1), (129, 2), (256, 2), (300, 3)])
def test_segments(frames, count):
    maps = np.random.default_rng(0).integers(1, 256, (frames, 4)).astype(np.uint8)
    segments = segment(maps, 128)
    assert segments.shape == (count, 128, 4, 1)
    flat = segments.reshape(-1, 4)
    np.testing.assert_array_equal(flat[:frames], maps)
    assert not flat[frames:].any()


def test_silence_is_trimmed_and_short_clips_are_in_the_middle():
    loud = np.ones(10_000, np.float32)
    silent = np.zeros(20_000, np.float32)
    found = trimmed(np.concatenate([silent, loud, silent]), 30_001)
    assert len(found) == 30_001
    heard = np.flatnonzero(found)
    # librosa finds silence in steps of 512 samples, in frames of 2048.
    assert len(heard) == 10_000
    assert abs((heard[0] + heard[-1]) / 2 - 15_000) <= 2048
    assert len(trimmed(np.ones(40_000, np.float32), 30_000)) == 40_000
    np.testing.assert_array_equal(trimmed(np.ones(4), 7), [0, 1, 1, 1, 1, 0, 0])


def toy(sizes=(100, 129, 300, 128), seed=1):
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 256, (sum(sizes), 128)).astype(np.uint8)
    targets = np.float32([[1, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]])[: len(sizes)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return SegmentedMaps(maps, targets, LABELS, "toy", multi_label=True, starts=starts, frames=128)


def tiny(**arguments):
    keras.utils.set_random_seed(2)
    sizes = {"filters": [2] * 8, "units": 3, "classes": 3}
    return create_network("fat2019", **{**sizes, **arguments})


def test_a_part_of_a_batch_without_clips():
    (segments, places), targets = toy().read(np.arange(0))
    assert (segments.shape, places.shape, targets.shape) == ((0, 128, 128, 1), (0,), (0, 3))
    assert ClipMean()([np.zeros((0, 3), np.float32), places]).shape == (0, 3)


def test_a_clip_says_the_mean_of_its_segments():
    network, clips = tiny(), toy()
    order = np.array([2, 0, 1])
    (segments, places), targets = clips.read(order)
    assert places.tolist() == [0, 0, 0, 1, 2, 2]
    np.testing.assert_array_equal(targets, clips.targets[order])
    logits = inference(trained_part(network))(segments)
    wanted = np.stack([logits[places == place].mean(axis=0) for place in range(3)])
    found = inference(part_for(network, clips))(segments, places)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    # The sigmoid comes behind the mean.
    probabilities, _ = predict(network, clips.subset(order), batch_size=2, quiet=True)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-wanted)), rtol=1e-5)


def test_the_loss_is_of_the_clips_mean(tmp_path):
    network, clips = tiny(), toy()
    (segments, places), targets = clips.read(np.arange(4))
    logits = np.asarray(trained_part(tiny())(segments, training=True), np.float64)
    means = np.stack([logits[places == place].mean(axis=0) for place in range(4)])
    given = 1 / (1 + np.exp(-means))
    wanted = -(targets * np.log(given) + (1 - targets) * np.log(1 - given)).mean()
    recipe = Recipe(epochs=1, learning_rate=1e-12, best_by="lwlrap", checkpoint_interval=0)
    (row,) = train_on_labels(
        *(network, clips, clips, tmp_path), recipe=recipe, batch_size=4, quiet=True
    )
    # All clips are one batch, whatever their order.
    assert row["loss"] == pytest.approx(wanted, rel=1e-4)
    assert row["lwlrap"] == pytest.approx(lwlrap(means, targets), rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_ends_alike_and_every_weight_is_trained(tmp_path):
    clips = toy()

    def run(folder, epochs, resume=False, gamma_l1=1e-3):
        network = tiny()
        recipe = Recipe(
            epochs=epochs,
            learning_rate=1e-2,
            best_by="lwlrap",
            schedule="constant",
            best_from=epochs - 1,
            early_stopping_patience=9,
            checkpoint_interval=0,
        )
        history = train_on_labels(
            *(network, clips, clips, tmp_path / folder),
            recipe=recipe,
            batch_size=2,
            gamma_l1=gamma_l1,
            resume=resume,
            quiet=True,
        )
        return network, history

    network, history = run("whole", 2)
    before = tiny()
    for one, other in zip(before.weights, network.weights, strict=True):
        assert (one.numpy() != other.numpy()).any(), one.name
    _, first = run("parts", 1)
    assert first == history[:1]
    with pytest.raises(L3PruneError, match="gamma_l1"):
        run("parts", 2, resume=True, gamma_l1=1e-4)


def test_the_rate_of_a_cosine_changes_within_an_epoch(tmp_path, monkeypatch):
    rates = []
    set_value = keras.backend.set_value

    def noted(variable, value):
        rates.append(float(value))
        set_value(variable, value)

    monkeypatch.setattr(keras.backend, "set_value", noted)
    recipe = Recipe(
        epochs=2,
        learning_rate=0.5,
        final_learning_rate=0.1,
        schedule="cosine",
        cosine_interval=3,
        best_by="lwlrap",
        checkpoint_interval=0,
    )
    train_on_labels(*(tiny(), toy(), toy(), tmp_path), recipe=recipe, batch_size=1, quiet=True)
    # Four batches an epoch: rates from the first and from the fourth on, four in all.
    each = [0.1 + 0.4 * (0.5 + 0.5 * np.cos(np.pi * step / 4)) for step in range(4)]
    wanted = [each[0]] * 4 + [each[1]] + [each[2]] * 4 + [each[3]]
    np.testing.assert_allclose(rates, wanted)


def test_changes_of_batches_are_refused(tmp_path):
    with pytest.raises(ParameterError, match="hears clips in segments, which cannot be augmented"):
        train_on_labels(
            *(tiny(), toy(), toy(), tmp_path), batch_size=2, augment=BatchChange(), quiet=True
        )


def test_means_of_clips_in_half_precision_are_float32():
    means = ClipMean(dtype="mixed_float16")([np.float16([[1], [2]]), np.float32([0, 0])])
    assert means.dtype == "float32"


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(10)
    clips = []
    for number, seconds in enumerate((0.5, 2.5)):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, 0.1 * rng.normal(size=int(44100 * seconds)), 44100, subtype="FLOAT")
        clips.append(Clip(path, 1, number, further=(2,)))
    return Dataset("toy", tuple(clips), LABELS, multi_label=True)


def test_maps_are_of_whole_clips_and_computed_once(corpus, tmp_path, monkeypatch):
    network = tiny()
    maps = open_maps(network, corpus, tmp_path / "cache", quiet=True)
    assert np.diff(maps.starts).tolist() == [128, 1 + int(44100 * 2.5) // 694]
    assert maps.maps.dtype == np.uint8
    audio, _ = soundfile.read(corpus.clips[1].path, dtype="float32")
    wanted = published_bytes(audio).astype(int)
    found = maps.maps[maps.starts[1] :].astype(int)
    assert np.abs(found - wanted).max() <= 1
    (segments, places), targets = maps.read(np.array([1, 0]))
    assert places.tolist() == [0, 0, 1]
    assert targets.tolist() == [[0, 1, 1], [1, 0, 1]]
    np.testing.assert_array_equal(segments[0, :, :, 0], found[:128])
    monkeypatch.setattr("l3prune.segments.load_audio", None)
    again = open_maps(network, corpus, tmp_path / "cache", quiet=True)
    assert again.fingerprint == maps.fingerprint


def test_a_broken_recording_leaves_nothing_behind(corpus, tmp_path):
    corpus.clips[1].path.write_bytes(b"RIFF")
    with pytest.raises(L3PruneError, match=r"1\.wav cannot be decoded"):
        open_maps(tiny(), corpus, tmp_path / "cache", quiet=True)
    assert not (tmp_path / "cache").exists()


def test_pictures_are_not_for_other_networks(corpus, tmp_path):
    pictures = Dataset(*(corpus.name, corpus.clips, corpus.labels), maps=list)
    network = network_for("dcase2021", LABELS, filters=[1, 1, 1], dense_units=1)
    with pytest.raises(ParameterError, match="toy is here as spectrograms of another network"):
        open_maps(network, pictures, tmp_path, quiet=True)


def test_the_penalty_is_on_the_networks_own_norms():
    assert slimmed_norms(tiny()) == [f"batch_normalization_{number}" for number in range(1, 9)]
