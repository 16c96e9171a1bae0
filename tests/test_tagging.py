"""Tagging: scores of clips and frames, against the networks themselves."""

import numpy as np
import pytest
import soundfile

from l3prune import tagging
from l3prune.audio import to_mono
from l3prune.embedding import L3PruneWarning
from l3prune.errors import L3PruneError, ParameterError
from l3prune.graph import conv_weights
from l3prune.labels import Labels
from l3prune.networks import cnn14, create_network, set_labels
from l3prune.plan import plan_layerwise
from l3prune.surgery import apply_masks
from l3prune.tagging import load_tagger, tag, tag_frames
from l3prune.weights import save_network
from tests.cnn14_networks import shaken, small
from tests.conftest import chirp


@pytest.fixture(scope="module")
def network():
    return shaken(small())


@pytest.fixture(scope="module")
def detector():
    return shaken(small("cnn14_decision_level_max"))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(1).uniform(-0.5, 0.5, 96000).astype(np.float32)


def close(given, expected):
    np.testing.assert_allclose(given, expected, rtol=0, atol=2e-6)


def test_scores_are_the_networks_own(network, noise):
    clipwise, embedding = tag(noise, 32000, network)
    both = cnn14.with_embedding(network)
    expected = both.predict(noise[np.newaxis, np.newaxis], verbose=0)
    close(clipwise, expected[0][0])
    close(embedding, expected[1][0])
    assert clipwise.shape == (5,)
    assert embedding.shape == (6,)
    assert np.ptp(clipwise) > 0.01  # not a constant


def test_channels_are_averaged_and_rates_changed(network):
    stereo = np.stack([chirp(2, 44100), chirp(2, 44100, 200, 900)], axis=1)
    heard = to_mono(stereo, 44100, 32000)
    close(tag(stereo, 44100, network)[0], network.predict(heard[None, None], verbose=0)[0])


@pytest.mark.slow
def test_any_form_of_a_network_is_tagged_alike(network, noise, tmp_path):
    """Of fixed length, masked, or for spectrograms: the same weights give the same scores."""
    expected = tag(noise, 32000, network)[0]
    path = tmp_path / "net.h5"
    save_network(network, path)
    close(tag(noise, 32000, path)[0], expected)
    for arguments in ({"samples": 320000}, {"input": "log_mel"}, {"activation": "linear"}):
        other = small(**arguments)
        other.set_weights(network.get_weights())
        close(tag(noise, 32000, other)[0], expected)
    masked = apply_masks(network, plan_layerwise(conv_weights(network), [0.5] * 12))
    pruned = tag(noise, 32000, masked)[0]
    close(pruned, masked.predict(noise[None, None], verbose=0)[0])
    assert np.abs(pruned - expected).max() > 1e-3


def test_softmax_by_hand(network, noise):
    sigmoid = tag(noise, 32000, network)[0].astype(float)
    odds = sigmoid / (1 - sigmoid)
    close(tag(noise, 32000, network, activation="softmax")[0], odds / odds.sum())
    competing = small(activation="softmax")
    competing.set_weights(network.get_weights())
    close(tag(noise, 32000, competing)[0], odds / odds.sum())
    close(tag(noise, 32000, competing, activation="sigmoid")[0], sigmoid)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_several_are_each_alone(network, noise, batch_size, tmp_path):
    clips = [noise[:40000], noise[20000:60000], noise[:50000], noise[1000:51000], noise[:40000]]
    tagger = load_tagger(network)
    clipwise, embedding = tag(clips, 32000, tagger, batch_size=batch_size)
    assert clipwise.shape == (5, 5)
    assert embedding.shape == (5, 6)
    for clip, scores, values in zip(clips, clipwise, embedding, strict=True):
        alone = tag(clip, 32000, tagger)
        close(scores, alone[0])
        close(values, alone[1])
    paths = [tmp_path / f"{number}.wav" for number in range(5)]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip, 32000, subtype="FLOAT")
    close(tag(paths, None, tagger)[0], clipwise)
    close(tag(str(paths[2]), None, tagger)[0], clipwise[2])


def test_a_long_recording_is_the_mean_of_equal_parts(network, noise, monkeypatch):
    monkeypatch.setattr(tagging, "SECONDS_AT_ONCE", 1)
    tagger = load_tagger(network)
    clipwise, embedding = tag(noise[:70000], 32000, tagger)
    parts = [tag(part, 32000, tagger) for part in np.array_split(noise[:70000], 3)]
    close(clipwise, np.mean([part[0] for part in parts], axis=0))
    close(embedding, np.mean([part[1] for part in parts], axis=0))


def test_a_network_of_fixed_length_gets_whole_parts():
    scenes = create_network("dcase2021", filters=[2, 2, 2], dense_units=3)
    tagger = load_tagger(scenes)
    assert (tagger.samples, tagger.least, tagger.sample_rate) == (441000, 1, 44100)
    long = chirp(15, 44100)
    padded = np.pad(long, (0, 441000 * 2 - len(long))).reshape(2, 1, 441000)
    expected = scenes.predict(padded, verbose=0).mean(axis=0)
    clipwise, embedding = tag(long, 44100, tagger)
    close(clipwise, expected)
    assert embedding.shape == (3,)
    with pytest.warns(L3PruneWarning, match="the audio is 5 s long; it was zero-padded to 10 s"):
        tag(long[: 5 * 44100], 44100, tagger)
    framewise, seconds = tag_frames(long, 44100, tagger, hop_size=5)
    close(framewise[0], scenes.predict(long[None, None, :441000], verbose=0)[0])
    assert seconds.tolist() == [5.0, 10.0]


def test_frames_of_the_detector(detector, noise):
    framewise, seconds = tag_frames(noise, 32000, detector)
    whole = small("cnn14_decision_level_max", output="segmentwise")
    whole.set_weights(detector.get_weights())
    segmentwise = whole.predict(noise[None, None], verbose=0)
    close(framewise, cnn14.framewise(segmentwise, 301)[0])
    assert framewise.shape == (301, 5)
    assert seconds[[0, 1, 300]].tolist() == [0, 0.01, 3]
    clipwise, embedding = tag(noise, 32000, detector)
    close(clipwise, detector.predict(noise[None, None], verbose=0)[0])
    close(clipwise, framewise.max(axis=0))
    assert embedding is None


@pytest.mark.parametrize("samples", [320_000, 327_680, 352_345])
def test_pieces_of_a_long_recording_join_without_a_seam(detector, monkeypatch, samples):
    sound = np.random.default_rng(2).uniform(-0.5, 0.5, samples).astype(np.float32)
    sound *= np.linspace(0.01, 1, samples, dtype=np.float32)
    tagger = load_tagger(detector)
    whole, seconds = tag_frames(sound, 32000, tagger)
    monkeypatch.setattr(tagging, "SECONDS_AT_ONCE", 2)
    pieces, same = tag_frames(sound, 32000, tagger)
    close(pieces, whole)
    np.testing.assert_array_equal(seconds, same)
    # Without their neighbours the pieces would differ.
    monkeypatch.setattr(tagging, "_CONTEXT", 0)
    assert np.abs(tag_frames(sound, 32000, tagger)[0] - whole).max() > 1e-4


def test_windows_are_tagged_like_clips(network, noise):
    tagger = load_tagger(network)
    framewise, seconds = tag_frames(noise, 32000, tagger, window=1.0, hop_size=0.7)
    assert seconds.tolist() == pytest.approx([0.5, 1.2, 1.9, 2.6])
    padded = np.pad(noise, (0, 32000))
    for place, scores in enumerate(framewise):
        start = 22400 * place
        close(scores, tag(padded[start : start + 32000], 32000, tagger)[0])
    # Two seconds, every half.
    framewise, seconds = tag_frames(noise, 32000, tagger)
    assert seconds.tolist() == [1, 1.5, 2]
    close(framewise[2], tag(noise[32000:], 32000, tagger)[0])


def test_labels_of_networks(network, tmp_path):
    assert load_tagger(network).labels.names == tuple(f"class {number}" for number in range(5))
    names = ("Rain", "Dog", "Sea waves", "Clock", "Rooster")
    named = set_labels(small(), names)
    save_network(named, tmp_path / "net.h5")
    assert load_tagger(tmp_path / "net.h5").labels.names == names
    given = Labels(("a", "b", "c", "d", "e"))
    assert load_tagger(named, labels=given).labels == given
    assert load_tagger(small(classes=527)).labels.ids[0] == "/m/09x0r"
    with pytest.raises(ParameterError, match="labels has 2 classes, network cnn14 5"):
        load_tagger(named, labels=Labels(("a", "b")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda net, x: tag(x[:9919], 32000, net),
            "has 9919 samples (0.31 s at 32000 Hz); cnn14 needs 9920",
        ),
        (
            lambda net, x: tag(x[:4000], 16000, net),
            "8000 samples (0.25 s at 32000 Hz); cnn14 needs 9920",
        ),
        (lambda net, x: tag_frames(x[:4000], 16000, net), "8000 samples (0.25 s at 32000 Hz)"),
        (lambda net, x: tag(x, None, net), "sample rate None"),
        (lambda net, x: tag("a.wav", 16000, net), "sr=16000, give None"),
        (lambda net, x: tag(["/nowhere/a.wav"], None, net), "no such audio file"),
        (lambda net, x: tag(x * np.nan, 32000, net), "NaN"),
        (lambda net, x: tag([], 32000, net), "empty"),
        (lambda net, x: tag(x, 32000, net, batch_size=0), "batch_size=0"),
        (lambda net, x: tag(x, 32000, net, activation="tanh"), "allowed: sigmoid, softmax"),
        (lambda net, x: tag(x, 32000, "sea64"), "no such weight file"),
        (lambda net, x: tag(x, 32000, create_network("sea64")), "sea64 gives no scores of sound"),
        (lambda net, x: tag(x, 32000, small(output="embedding")), "cnn14 gives no scores of sound"),
        (
            lambda net, x: load_tagger(create_network("dcase2021"), activation="sigmoid"),
            "dcase2021 ends in softmax",
        ),
        (lambda net, x: load_tagger(load_tagger(net), activation="softmax"), "leave out activ"),
        (lambda net, x: tag_frames([x, x], 32000, net), "of one recording"),
        (lambda net, x: tag_frames(x, 32000, net, window=0.2), "cnn14 needs 0.31 s"),
        (lambda net, x: tag_frames(x, 32000, net, window=0), "window=0 is not a positive"),
        (lambda net, x: tag_frames(x, 32000, net, hop_size=-1), "hop_size=-1 is not a positive"),
        (lambda net, x: tag_frames(x, 32000, net, hop_size=1e-9), "hop_size=1e-09 is not a posit"),
    ],
)
def test_wrong_arguments(network, noise, call, message):
    with pytest.raises(L3PruneError) as error:
        call(network, noise)
    assert message in str(error.value)


def test_windows_are_not_for_the_detector(detector, noise):
    with pytest.raises(ParameterError, match="scores every 10 ms"):
        tag_frames(noise, 32000, detector, hop_size=0.5)


def test_a_packed_file_is_refused(tmp_path, noise):
    from l3prune.sparse import SparseModel
    from l3prune.sparse.convert import program_of
    from tests.conftest import make_tiny

    model = SparseModel(program_of(make_tiny()))
    with pytest.raises(ParameterError, match="is a packed network"):
        tag(noise, 32000, model)


@pytest.mark.shared
def test_real_sounds_of_esc10_one_by_one_and_at_once(network, shared):
    paths = sorted((shared / "data" / "esc10" / "audio").glob("*.ogg"))[:3]
    tagger = load_tagger(network)
    clipwise, _ = tag(paths, None, tagger)
    for path, scores in zip(paths, clipwise, strict=True):
        audio, rate = soundfile.read(path, dtype="float32")
        close(scores, tag(audio, rate, tagger)[0])
    assert np.ptp(clipwise, axis=0).max() > 1e-4


def test_a_network_of_stereo_sound_is_refused():
    arguments = {"filters": [1] * 13, "seconds": 1, "bands": 64, "classes": 2}
    tagger = load_tagger(create_network("vgg16", channels=1, **arguments))
    assert tagger.samples == 22050
    with pytest.raises(ParameterError, match=r"takes sound of 2 channels, .* channels=1"):
        load_tagger(create_network("vgg16", **arguments))
