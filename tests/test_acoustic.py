"""Koutini's front end of the networks for acoustic scenes, against librosa's functions."""

import librosa
import numpy as np
import pytest

from l3prune.errors import ParameterError
from l3prune.networks.acoustic import Clip, WeightedDecibels, a_weighting

FREQUENCIES = librosa.fft_frequencies(sr=22050, n_fft=2048)


@pytest.fixture(scope="module")
def stereo():
    """Two channels of different loudness, with more than 80 dB from their loud end to the other."""
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 22050)) * np.linspace(0, 1, 22050) ** 6
    return (noise * [[1], [0.01]]).astype(np.float32)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_weights_of_frequencies():
    np.testing.assert_allclose(a_weighting(), librosa.A_weighting(FREQUENCIES), atol=1e-9)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("bands", "hop"), [(256, 512), (64, 1024)])
def test_the_front_end_is_weighted_decibels_in_mel_bands(stereo, bands, hop):
    mel = librosa.filters.mel(sr=22050, n_fft=2048, n_mels=bands)
    wanted, cut = [], []
    for channel in stereo.astype(np.float64):
        spectrum = librosa.stft(channel, n_fft=2048, hop_length=hop, pad_mode="reflect")
        power = np.abs(spectrum) ** 2
        wanted.append(mel @ librosa.perceptual_weighting(power, FREQUENCIES))
        cut.append(10 * np.log10(power.max() / power.min()) > 80)
    assert all(cut)
    found = WeightedDecibels(bands, hop)(stereo[np.newaxis]).numpy()[0]
    np.testing.assert_allclose(found, np.stack(wanted, axis=-1), rtol=0, atol=1e-5)


def test_bands_are_normalised_alike_within_and_behind(stereo):
    rng = np.random.default_rng(1)
    given = {"mean": rng.normal(size=64).tolist(), "std": rng.uniform(0.5, 2, 64).tolist()}
    layer = WeightedDecibels(64, 1024, **given)
    raw = layer.unnormalised()(stereo[np.newaxis]).numpy()
    found = layer(stereo[np.newaxis]).numpy()
    np.testing.assert_allclose(layer.normalise(raw), found, rtol=0, atol=1e-5)
    by_hand = (raw[0, 7, :, 1] - given["mean"][7]) / given["std"][7]
    np.testing.assert_allclose(found[0, 7, :, 1], by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 3}, "channels=3"),
        ({"bands": 257}, "bands=257"),
        ({"input": "mp3"}, "input='mp3'; allowed: 'waveform', 'log_mel'"),
        ({"normalisation": {"mean": [0.0] * 256}}, "normalisation has mean; give mean and std"),
        ({"bands": 2, "normalisation": {"mean": [0, 0], "std": [1, 0]}}, "those of std positive"),
    ],
)
def test_clips_that_are_none(arguments, message):
    with pytest.raises(ParameterError, match=message):
        Clip(**arguments).maps()
