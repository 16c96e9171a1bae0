import librosa
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune.audio import (
    FORMS,
    FrontEnd,
    count_windows,
    find_audio,
    frame_audio,
    load_audio,
    log_spectrogram,
    mono_blocks,
    to_mono,
    window_blocks,
)
from l3prune.errors import L3PruneError, ParameterError
from tests.conftest import chirp

SEA = FrontEnd(8000, 1024, 160, 64)
MEL256 = FrontEnd(48000, 2048, 242, 256)
LINEAR = FrontEnd(48000, 512, 242, None)


@pytest.mark.shared
def test_log_mel_equals_the_reference(reference):
    result = log_spectrogram(reference["waveform"], SEA)
    error = np.abs(result - reference["log_mel"])
    # Where a bin is 110 dB (of level) below its window's peak, the reference's float32 convolution
    # rounds: its own value is noise there. All other bins agree to 1e-3; 36 of 96,000 do not.
    loud = reference["log_mel"] > -55
    assert loud.mean() > 0.94
    assert error[loud].max() < 1.1e-3
    assert (error > 1e-3).sum() <= 36
    assert error.max() < 0.02


@pytest.mark.shared
def test_reference_itself_is_uncertain_where_we_differ(reference):
    """The reference's own method, a float32 product with the DFT matrix, summed in another order,
    misses the reference in at least as many bins as we do, and by more."""
    kernel = np.exp(-2j * np.pi * np.outer(np.arange(1024), np.arange(513)) / 1024)
    kernel = (kernel * SEA.analysis_window()[:, None]).astype(np.complex64)
    padded = np.pad(reference["waveform"], ((0, 0), SEA.edge_padding))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 1024, axis=1)[:, ::160]
    real, imag = frames @ kernel.real, frames @ kernel.imag
    power = (real**2 + imag**2) @ SEA.mel_matrix().astype(np.float32)
    level = 10 * np.log10(np.maximum(np.sqrt(power), 1e-10)).transpose(0, 2, 1)[..., None]
    other = np.maximum(level - level.max(axis=(1, 2, 3), keepdims=True), -80)
    ours = np.abs(log_spectrogram(reference["waveform"], SEA) - reference["log_mel"])
    theirs = np.abs(other - reference["log_mel"])
    assert (theirs > 1e-3).sum() >= (ours > 1e-3).sum()
    assert theirs.max() > ours.max()


def test_a_sine_by_hand():
    """One bin of the linear front end: 1500 Hz is bin 16 of 512 at 48 kHz, so the Hann window
    leaves half the amplitude in each neighbour (-3.01 dB in 10 log10) and nothing beyond."""
    sine = np.sin(2 * np.pi * 1500 * np.arange(48000) / 48000)
    result = log_spectrogram(sine[np.newaxis], LINEAR)[0, :, :, 0]
    assert result.shape == (257, 197)
    np.testing.assert_allclose(result[16], 0, atol=1e-4)
    np.testing.assert_allclose(result[[15, 17]], 10 * np.log10(0.5), atol=1e-3)
    assert result[18].max() < -60


def test_same_padding_puts_42_samples_more_on_the_left_than_centring():
    """Frame t of mel256 is centred at sample 242 t + 42."""
    assert MEL256.edge_padding == (982, 982)
    assert SEA.edge_padding == (432, 432)
    click = np.zeros((1, 48000))
    click[0, 242 * 100 + 42] = 1
    frames = log_spectrogram(click, MEL256)[0, 100, :, 0]
    assert frames.argmax() == 100
    np.testing.assert_allclose(frames[99], frames[101], atol=1e-4)


def test_mel_matrix_has_the_published_peaks_and_empty_bands():
    matrix = MEL256.mel_matrix()
    assert matrix.shape == (1025, 256)
    assert matrix.max() == pytest.approx(0.085093, abs=1e-6)
    assert np.flatnonzero(~matrix.any(axis=0)).tolist() == [0, 7]
    mel128 = FrontEnd(48000, 2048, 242, 128).mel_matrix()
    assert mel128.max() == pytest.approx(0.040738, abs=1e-6)
    assert SEA.mel_matrix().max() == pytest.approx(0.0415444, abs=1e-7)


def test_silence_is_zero_and_empty_bands_are_minus_eighty():
    assert not log_spectrogram(np.zeros((1, 48000)), MEL256).any()
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 48000))
    spectrogram = log_spectrogram(noise, MEL256)[0, :, :, 0]
    assert (spectrogram[[0, 7]] == -80).all()
    assert (spectrogram[[1, 6, 8]] > -80).all()


def sounds_of_many_levels(rate):
    """One-second windows: tones, noise, a quiet sound, one that stops, silence."""
    rng = np.random.default_rng(6)
    return np.stack(
        [
            chirp(1, rate).astype(np.float64),
            rng.normal(0, 0.1, rate),
            1e-5 * rng.normal(0, 0.1, rate),
            rng.normal(0, 0.1, rate) * (np.arange(rate) < rate // 3),
            np.zeros(rate),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("n_mels", [128, 256])
def test_librosa_form_is_librosas_own(n_mels):
    """OpenL3 0.4 with frontend="librosa": mel of the magnitude, dB as if of a power."""
    windows = sounds_of_many_levels(48000)
    ours = log_spectrogram(windows, FrontEnd(48000, 2048, 242, n_mels, "librosa"))
    for window, result in zip(windows, ours, strict=True):
        mel = librosa.feature.melspectrogram(
            y=window, sr=48000, n_fft=2048, hop_length=242, n_mels=n_mels, power=1.0
        )
        expected = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=80.0)
        np.testing.assert_allclose(result[:, :, 0], expected - expected.max(), atol=1e-4)


@pytest.mark.parametrize("n_mels", [128, 256])
def test_kapre_0_3_form_is_librosas_without_centring(n_mels):
    """OpenL3 0.4 with frontend="kapre": frame t starts at sample 242 t, zeros behind the end."""
    windows = sounds_of_many_levels(48000)
    front_end = FrontEnd(48000, 2048, 242, n_mels, "kapre-0.3")
    assert front_end.edge_padding == (0, 198 * 242 + 2048 - 48000)
    for window, result in zip(windows, log_spectrogram(windows, front_end), strict=True):
        mel = librosa.feature.melspectrogram(
            y=np.pad(window, front_end.edge_padding),
            sr=48000,
            n_fft=2048,
            hop_length=242,
            n_mels=n_mels,
            power=1.0,
            center=False,
        )
        assert mel.shape == (n_mels, 199)
        expected = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=80.0)
        np.testing.assert_allclose(result[:, :, 0], expected - expected.max(), atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_linear_form_is_librosas_magnitude(form):
    windows = sounds_of_many_levels(48000)
    ours = log_spectrogram(windows, FrontEnd(48000, 512, 242, None, form))
    for window, result in zip(windows, ours, strict=True):
        magnitude = np.abs(librosa.stft(window, n_fft=512, hop_length=242, center=False))
        expected = librosa.power_to_db(magnitude, ref=1.0, amin=1e-10, top_db=80.0)
        np.testing.assert_allclose(result[:, :, 0], expected - expected.max(), atol=1e-4)


def test_forms_differ_by_decibels_and_not_by_shape():
    window = np.random.default_rng(0).normal(0, 0.1, (1, 48000))
    kapre_1, kapre_3, librosa_form = (
        log_spectrogram(window, FrontEnd(48000, 2048, 242, 256, form)) for form in FORMS
    )
    assert kapre_1.shape == kapre_3.shape == librosa_form.shape == (1, 256, 199, 1)
    for one, other in ((kapre_1, kapre_3), (kapre_1, librosa_form), (kapre_3, librosa_form)):
        assert np.abs(one - other).mean() > 0.5


def test_unknown_form():
    with pytest.raises(ParameterError, match=r"'kapre' is unknown; known: kapre-0\.1, kapre-0\.3"):
        FrontEnd(48000, 2048, 242, 256, "kapre")


def test_level_is_relative_to_each_window_not_to_the_batch():
    windows = np.random.default_rng(1).normal(0, 0.1, (2, 8000))
    windows[1] *= 1e-3
    both = log_spectrogram(windows, SEA)
    np.testing.assert_array_equal(both[1], log_spectrogram(windows[1:], SEA)[0])
    assert (both.max(axis=(1, 2, 3)) == 0).all()


def test_wrong_window_length_is_refused():
    with pytest.raises(ParameterError, match=r"\(2, 4000\) given; this front end takes \(n, 8000"):
        log_spectrogram(np.zeros((2, 4000)), SEA)


@pytest.mark.parametrize(
    ("length", "frame", "hop", "center", "windows"),
    [
        (10, 50, 0.5, False, 1),
        (10, 50, 0.5, True, 1),
        (50, 50, 0.5, False, 1),
        (50, 50, 0.5, True, 2),
        (76, 50, 0.5, False, 3),
        (76, 50, 0.5, True, 4),
        (90, 50, 0.5, False, 3),
        (100, 50, 0.5, False, 3),
    ],
)
def test_openl3_window_counts(length, frame, hop, center, windows):
    assert len(frame_audio(np.ones(length), frame, hop_size=hop, center=center)) == windows


def test_centring_puts_half_a_window_of_zeros_in_front():
    first = frame_audio(np.ones(100), 50, hop_size=0.5, center=True)[0]
    assert first.tolist() == [0.0] * 25 + [1.0] * 25
    first = frame_audio(np.ones(100), 49, hop_size=0.5, center=True)[0]
    assert first.tolist() == [0.0] * 24 + [1.0] * 25


@settings(deadline=None)
@given(
    length=st.integers(1, 400),
    rate=st.integers(2, 100),
    hop=st.integers(1, 100),
    center=st.booleans(),
)
def test_windows_cover_every_sample_and_no_window_is_only_padding(length, rate, hop, center):
    hop = min(hop, rate)  # longer hops skip samples
    audio = np.arange(1, length + 1, dtype=float)
    windows = frame_audio(audio, rate, hop_size=(hop + 0.5) / rate, center=center)
    assert windows.shape[1] == rate
    assert set(audio) <= set(windows.ravel())
    assert windows[-1].any()


def test_a_long_hop_makes_no_window_of_padding_alone():
    assert len(frame_audio(np.ones(120), 50, hop_size=2.0, center=False)) == 2
    assert len(frame_audio(np.ones(90), 50, hop_size=2.0, center=False)) == 1
    assert len(frame_audio(np.ones(90), 50, hop_size=1e7, center=False)) == 1


@settings(deadline=None, max_examples=300)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    rate=st.integers(2, 40),
    hop=st.integers(1, 100),
    center=st.booleans(),
)
def test_blocks_give_the_windows_of_the_whole(lengths, rate, hop, center):
    audio = np.arange(1, sum(lengths) + 1, dtype=np.float32)
    blocks = np.split(audio, np.cumsum(lengths)[:-1])
    options = {"hop_size": (hop + 0.5) / rate, "center": center}
    expected = frame_audio(audio, rate, **options)
    windows = [w.copy() for w in window_blocks(blocks, rate, **options)]
    assert all(len(w) for w in windows)
    np.testing.assert_array_equal(np.concatenate(windows), expected)
    assert count_windows(len(audio), rate, **options) == len(expected)


@pytest.mark.parametrize("rate", [8000, 11025, 22050.5, 48000])
@pytest.mark.parametrize("block", [777, 50_000])
def test_blocks_are_resampled_as_the_whole(rate, block):
    stereo = np.random.default_rng(0).normal(0, 0.1, (60_000, 2))
    whole = to_mono(stereo, rate, 8000)
    blocks = [stereo[start : start + block] for start in range(0, len(stereo), block)]
    np.testing.assert_array_equal(np.concatenate(list(mono_blocks(blocks, rate, 8000))), whole)
    if rate != 8000:
        by_soxr = soxr.resample(stereo.mean(axis=1, dtype=np.float32), rate, 8000, quality="HQ")
        np.testing.assert_array_equal(whole, by_soxr)


@pytest.mark.parametrize("hop", [0, -1, float("nan"), float("inf"), "0.1", None, True])
def test_bad_hop_sizes(hop):
    with pytest.raises(ParameterError, match=r"hop_size=.* is not a positive number of seconds"):
        frame_audio(np.ones(10), 10, hop_size=hop)


def test_hop_below_one_sample():
    with pytest.raises(ParameterError, match=r"less than one sample at 10 Hz; give at least 0.1"):
        frame_audio(np.ones(10), 10, hop_size=0.05)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_resampling_keeps_a_sine(rate):
    sine = np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    result = to_mono(sine, rate, 8000)
    assert len(result) == 16000
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 8000)
    np.testing.assert_allclose(result[800:-800], expected[800:-800], atol=2e-3)


def test_channels_are_averaged():
    stereo = np.stack([np.full(8, 0.5), np.full(8, -0.25)], axis=1)
    np.testing.assert_array_equal(to_mono(stereo, 8000, 8000), np.full(8, 0.125, np.float32))


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros(0), 8000, "audio is empty"),
        (np.ones((2, 2, 2)), 8000, "3 dimensions"),
        (np.ones(4, np.int16), 8000, "divide int16 samples by 32768"),
        (np.array([0.0, np.nan]), 8000, "NaN or infinite"),
        (np.ones(4), 0, "sample rate 0 is not in 100"),
        (np.ones(4), 1e-3, "sample rate 0.001 is not in 100"),
        (np.ones(4), "8000", "sample rate '8000' is not in 100"),
        (np.ones(4), float("nan"), "sample rate nan is not in 100"),
    ],
)
def test_bad_audio(audio, rate, message):
    with pytest.raises(ParameterError, match=message):
        to_mono(audio, rate, 8000)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_formats(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, np.stack([chirp(1, 16000)] * 2, axis=1), 16000)
    audio, rate = load_audio(path)
    assert rate == 16000
    assert audio.dtype == np.float32
    assert audio.shape[1] == 2
    assert abs(len(audio) - 16000) < 3000  # mp3 pads


def test_unreadable_files(tmp_path):
    text = tmp_path / "a.wav"
    text.write_text("not sound")
    with pytest.raises(L3PruneError, match=r"a\.wav cannot be decoded as audio"):
        load_audio(text)
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"\0" * 100)
    with pytest.raises(L3PruneError, match=r"a\.raw cannot be decoded as audio"):
        load_audio(raw)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    with pytest.raises(L3PruneError, match="has no samples"):
        load_audio(tmp_path / "empty.wav")


def test_folders_are_searched_deep_and_sorted(sounds):
    (sounds / "notes.txt").write_text("x")
    (sounds / ".hidden.wav").write_text("x")
    names = [path.relative_to(sounds).as_posix() for path in find_audio(sounds)]
    assert names == ["bursts.ogg", "chirp.wav", "deep/low.wav", "noise.flac"]
