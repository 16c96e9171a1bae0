"""PANNs' front end against golden values of the original and against librosa."""

import numpy as np
import pytest
import tensorflow as tf

from l3prune.errors import ParameterError
from l3prune.layers import ClipLogMel
from l3prune.log_mel import LogMel, log_mel


def as_layer(clips):
    return ClipLogMel()(clips[:, None].astype(np.float32)).numpy()


@pytest.fixture(params=[log_mel, as_layer], ids=["numpy", "layer"])
def spectrogram(request):
    return request.param


def test_mel_matrix():
    matrix = LogMel().mel_matrix()
    assert matrix.shape == (513, 64)
    assert matrix.sum() == pytest.approx(2.0481262, abs=1e-7)
    assert matrix.max() == pytest.approx(0.0181495, abs=1e-7)
    assert np.unravel_index(matrix.argmax(), matrix.shape) == (12, 5)
    expected = [0, 0, 0.00428909, 0.01501181, 0.01131285]
    np.testing.assert_allclose(matrix[:5, 0], expected, atol=1e-8)
    ends = {0: (2, 5), 1: (4, 6), 31: (68, 75), 62: (380, 423), 63: (401, 447)}
    for band, (first, last) in ends.items():
        bins = np.flatnonzero(matrix[:, band])
        assert (bins[0], bins[-1]) == (first, last)
    assert matrix.any(axis=0).all()


def test_edges_of_bands():
    """Each triangle is zero at its neighbours' middles: of each band the sides meet there."""
    edges = np.array([50, 103.98492, 157.96984, 211.95475])
    high = np.array([12524.79846, 13241.87216, 14000])
    hertz = 31.25 * np.arange(513)
    matrix = LogMel().mel_matrix()
    for band, (low, middle, end) in ((0, edges[:3]), (1, edges[1:]), (63, high)):
        sides = np.minimum((hertz - low) / (middle - low), (end - hertz) / (end - middle))
        expected = np.maximum(0, sides) * 2 / (end - low)
        np.testing.assert_allclose(matrix[:, band], expected, atol=1e-8)


def test_mel_matrix_is_librosas():
    import librosa

    other = librosa.filters.mel(sr=32000, n_fft=1024, n_mels=64, fmin=50, fmax=14000)
    np.testing.assert_allclose(LogMel().mel_matrix(), other.T, atol=2e-9)


def test_impulse(spectrogram):
    clip = np.zeros((1, 32000), np.float32)
    clip[0, 16000] = 1
    levels = spectrogram(clip)[0, 50, [0, 1, 10, 32, 63], 0]
    expected = [-15.057916, -14.744951, -15.057916, -14.957906, -14.949346]
    np.testing.assert_allclose(levels, expected, atol=5e-6)


def test_noise(spectrogram):
    noise = (np.random.default_rng(0).standard_normal(32000) * 0.1).astype(np.float32)
    levels = spectrogram(noise[None])
    assert levels.shape == (1, 101, 64, 1)
    assert levels.dtype == np.float32
    found = [levels.mean(), levels.min(), levels.max()]
    np.testing.assert_allclose(found, [-9.884219, -30.821693, -1.153800], atol=5e-6)


def test_sine_and_silence(spectrogram):
    seconds = np.arange(32000) / 32000
    frame = spectrogram(0.5 * np.sin(2 * np.pi * 1000 * seconds)[None])[0, 50, :, 0]
    assert frame.argmax() == 17
    assert frame.max() == pytest.approx(23.665207, abs=5e-6)
    # In float32 the leakage of the peak would be above the floor.
    np.testing.assert_allclose(frame[:4], -100, atol=1e-4)
    np.testing.assert_allclose(spectrogram(np.zeros((1, 1024))), -100, atol=1e-4)


def test_against_librosa(spectrogram):
    import librosa

    noise = np.random.default_rng(1).uniform(-1, 1, 7777).astype(np.float32)
    bins = librosa.stft(noise, n_fft=1024, hop_length=320, pad_mode="reflect")
    mel = librosa.filters.mel(sr=32000, n_fft=1024, n_mels=64, fmin=50, fmax=14000)
    expected = librosa.power_to_db(mel @ np.abs(bins) ** 2, top_db=None)
    np.testing.assert_allclose(spectrogram(noise[None])[0, :, :, 0].T, expected, atol=2e-5)


@pytest.mark.parametrize("samples", [513, 640, 9920, 9921, 10239, 10240, 32000])
def test_lengths(spectrogram, samples):
    assert spectrogram(np.ones((2, samples))).shape == (2, 1 + samples // 320, 64, 1)
    assert LogMel().frames(samples) == 1 + samples // 320


def test_frames_of_two_and_ten_seconds():
    assert (LogMel().frames(64_000), LogMel().frames(320_000)) == (201, 1001)


def test_layer_passes_no_gradient_and_is_rebuilt_from_its_config():
    layer = ClipLogMel(16000, 512, 160, 40, 20.0, 8000.0)
    clip = tf.random.stateless_uniform((1, 1, 4000), (0, 0))
    with tf.GradientTape() as tape:
        tape.watch(clip)
        maps = layer(clip)
    assert tape.gradient(maps, clip) is None
    again = ClipLogMel.from_config(layer.get_config())
    np.testing.assert_array_equal(again(clip), maps)
    assert tuple(layer.compute_output_shape((None, 1, 4000))) == (None, 26, 40, 1)
    assert tuple(layer.compute_output_shape((None, 1, None))) == (None, None, 40, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"high": 17000}, "bands from 50 to 17000 Hz; allowed are rising edges in 0 … 16000"),
        ({"low": 14000}, "bands from 14000 to 14000 Hz"),
        ({"n_mels": 0}, "n_mels=0 is not a whole number from 1 on"),
    ],
)
def test_bad_constants(arguments, message):
    with pytest.raises(ParameterError, match=message):
        LogMel(**arguments)


@pytest.mark.parametrize("shape", [(1, 512), (32000,)])
def test_clips_that_cannot_be_reflected(shape):
    with pytest.raises(ParameterError, match=r"takes \(n, samples\), more than 512 samples each"):
        log_mel(np.zeros(shape))
