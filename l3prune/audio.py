"""From an audio file to the log-mel windows that an L3 network sees. NumPy only."""

from __future__ import annotations

import contextlib
import functools
import numbers
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import find_files, is_file

if TYPE_CHECKING:
    import scipy.sparse
    import soundfile

#: Endings that a folder is searched for; what libsndfile can decode.
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".au", ".opus")

#: Allowed in Hz. Resampling from outside it would take more memory than there is.
SAMPLE_RATES = (100, 10_000_000)

#: Long recordings are read so many seconds at a time.
BLOCK_SECONDS = 10

#: Smallest amplitude before the logarithm, and the range in dB below the loudest bin that is kept.
AMPLITUDE_FLOOR = 1e-10
DYNAMIC_RANGE_DB = 80.0


#: The front ends that published weights need; `docs/front_ends.md` has their equations.
#: kapre-0.1: L3-Net, EdgeL3, SEA, OpenL3 up to 0.3. kapre-0.3: OpenL3 0.4. librosa: its option.
KAPRE_0_1, KAPRE_0_3, LIBROSA = FORMS = ("kapre-0.1", "kapre-0.3", "librosa")


@dataclass(frozen=True)
class FrontEnd:
    """Constants of a log-spectrogram front end.

    Attributes
    ----------
    sample_rate : int
        Hz. A window is one second, so this is its length in samples too.
    n_dft : int
        Length of the Hann window and of the DFT, in samples.
    hop_length : int
        Samples between frames.
    n_mels : int or None
        Mel bands; None keeps the n_dft // 2 + 1 linear bins, which are the same in all forms.
    form : str
        One of `FORMS`. They differ where frames start and in the mel bands: kapre-0.1 pads both
        ends and has HTK bands of the power spectrum; kapre-0.3 pads the end and librosa centres
        the frames, both with Slaney's bands of the magnitude spectrum.

    Raises
    ------
    ParameterError
        Unknown form.

    Examples
    --------
    >>> FrontEnd(48000, 2048, 242, 256).shape
    (256, 199)
    >>> FrontEnd(48000, 512, 242, None).shape
    (257, 197)
    """

    sample_rate: int
    n_dft: int
    hop_length: int
    n_mels: int | None
    form: str = KAPRE_0_1

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ParameterError(f"front end {self.form!r} is unknown; known: {', '.join(FORMS)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(bands, frames) of one window."""
        bands = self.n_dft // 2 + 1 if self.n_mels is None else self.n_mels
        samples = self.sample_rate + sum(self.edge_padding)
        return bands, 1 + (samples - self.n_dft) // self.hop_length

    @property
    def edge_padding(self) -> tuple[int, int]:
        """Zeros put before and after a window, in samples."""
        if self.n_mels is None:
            return 0, 0
        if self.form == LIBROSA:
            return self.n_dft // 2, self.n_dft // 2
        frames = -(-self.sample_rate // self.hop_length)
        total = max((frames - 1) * self.hop_length + self.n_dft - self.sample_rate, 0)
        before = total // 2 if self.form == KAPRE_0_1 else 0
        return before, total - before

    @property
    def mel_of_power(self) -> bool:
        """Mel bands sum power, and the root is taken after; otherwise they sum magnitudes."""
        return self.form == KAPRE_0_1

    def analysis_window(self) -> np.ndarray:
        """Periodic Hann window, (n_dft,) float64."""
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_dft) / self.n_dft)

    def mel_matrix(self) -> np.ndarray:
        """Mel filterbank, (n_dft // 2 + 1, n_mels) float64: area-normalised triangles.

        With kapre-0.1's HTK scale, bands narrower than a DFT bin are empty (bands 0 and 7 of
        mel256); the published weights were trained with them.
        """
        if self.n_mels is None:
            raise ParameterError("a linear front end has no mel matrix; set n_mels")
        return _mel_matrix(self.sample_rate, self.n_dft, self.n_mels, self.form == KAPRE_0_1)

    def amplitudes(self, bins: np.ndarray) -> np.ndarray:
        """Amplitudes of the bands, (bands, frames), from DFT bins (frames, n_dft // 2 + 1)."""
        if self.n_mels is None:
            return np.abs(bins).T
        bands = _mel_bands(self.sample_rate, self.n_dft, self.n_mels, self.form == KAPRE_0_1)
        if not self.mel_of_power:
            return bands @ np.abs(bins).T
        return np.sqrt(bands @ (bins.real**2 + bins.imag**2).T)


_WARNING_FILTERS = threading.Lock()


@functools.cache
def _mel_matrix(sample_rate: int, n_dft: int, n_mels: int, htk: bool) -> np.ndarray:
    import warnings

    import librosa

    # The list of filters is the process's: threads that leave at different times would undo it.
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Empty filters detected")
        matrix = librosa.filters.mel(
            sr=sample_rate, n_fft=n_dft, n_mels=n_mels, htk=htk, norm="slaney", dtype=np.float64
        ).T
    matrix.flags.writeable = False
    return matrix


@functools.cache
def _mel_bands(sample_rate: int, n_dft: int, n_mels: int, htk: bool) -> scipy.sparse.csr_array:
    """The matrix transposed, of its 1 to 3 % of non-zeros: five times as fast to multiply by."""
    import scipy.sparse

    return scipy.sparse.csr_array(_mel_matrix(sample_rate, n_dft, n_mels, htk).T)


def log_spectrogram(windows: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Log-mel (or log-linear) spectrogram of one-second windows.

    y = sqrt(mel(|X|^2)) or mel(|X|), see `FrontEnd`; then 10 log10(max(y, 1e-10)), minus the
    window's maximum, at least -80. The logarithm is of an amplitude, so a step of 10 is 20 dB of
    level; published weights depend on it. The DFT is an FFT in float64. kapre 0.1's float32
    convolution with a DFT matrix rounds where a band is more than 110 dB of level below the
    window's peak, and its output is noise there; elsewhere both agree to 0.0011.

    Parameters
    ----------
    windows : np.ndarray, (n, sample_rate) float
        Waveforms in [-1, 1].
    front_end : FrontEnd

    Returns
    -------
    spectrogram : np.ndarray, (n, bands, frames, 1) float32
        In [-80, 0]. Digital silence gives 0 everywhere.

    Raises
    ------
    ParameterError
        The windows are not `front_end.sample_rate` samples long.

    Examples
    --------
    >>> front_end = FrontEnd(8000, 1024, 160, 64)
    >>> log_spectrogram(np.zeros((2, 8000)), front_end).shape
    (2, 64, 50, 1)
    """
    windows = np.asarray(windows)
    if windows.ndim != 2 or windows.shape[1] != front_end.sample_rate:
        raise ParameterError(
            f"windows of shape {windows.shape} given; this front end takes "
            f"(n, {front_end.sample_rate}): one second at {front_end.sample_rate} Hz"
        )
    bands, frames = front_end.shape
    hann = front_end.analysis_window()
    spectrogram = np.empty((len(windows), bands, frames, 1), np.float32)
    for window, result in zip(windows, spectrogram, strict=True):
        padded = np.pad(window.astype(np.float64), front_end.edge_padding)
        every = np.lib.stride_tricks.sliding_window_view(padded, front_end.n_dft)
        bins = np.fft.rfft(every[:: front_end.hop_length] * hann)
        amplitude = np.maximum(front_end.amplitudes(bins), AMPLITUDE_FLOOR)
        level = 10 * np.log10(amplitude)
        result[:, :, 0] = np.maximum(level - level.max(), -DYNAMIC_RANGE_DB)
    return spectrogram


@contextlib.contextmanager
def open_audio(path: str | os.PathLike[str]) -> Iterator[soundfile.SoundFile]:
    """Open an audio file (wav, flac, ogg, mp3 and what else libsndfile reads).

    Yields
    ------
    file : soundfile.SoundFile
        Errors of decoding it in the block become an `L3PruneError` too.

    Raises
    ------
    ParameterError
        The file is missing, is no audio file, or is damaged.

    Examples
    --------
    >>> with open_audio("/nowhere/a.wav") as file:
    ...     pass
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such audio file: /nowhere/a.wav
    """
    import soundfile

    path = Path(path)
    if not is_file(path):
        raise ParameterError(f"no such audio file: {path}")
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except L3PruneError:
        raise
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        # soundfile answers headerless endings (.raw) with TypeError.
        raise ParameterError(
            f"{path} cannot be decoded as audio ({error}); give wav, flac, ogg or mp3"
        ) from error


def load_audio(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """Decode a whole audio file.

    Returns
    -------
    audio : np.ndarray, (samples, channels) float32
        In [-1, 1] for integer formats.
    sample_rate : int
        Hz.

    Raises
    ------
    ParameterError
        See `open_audio`; or the file has no samples.

    Examples
    --------
    >>> load_audio("/nowhere/a.wav")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such audio file: /nowhere/a.wav
    """
    with open_audio(path) as file:
        audio = file.read(dtype="float32", always_2d=True)
        if not len(audio):
            raise ParameterError(f"{path} has no samples; give a recording that is not empty")
        return audio, file.samplerate


def read_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """The samples of an open audio file, ten seconds at a time, (samples, channels) float32.

    Examples
    --------
    >>> import io, soundfile
    >>> file = io.BytesIO()
    >>> soundfile.write(file, np.zeros((25, 2)), 1, format="WAV")
    >>> _ = file.seek(0)
    >>> [block.shape for block in read_blocks(soundfile.SoundFile(file))]
    [(10, 2), (10, 2), (5, 2)]
    """
    return file.blocks(BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)


def find_audio(folder: str | os.PathLike[str]) -> list[Path]:
    """Audio files below a folder, at any depth, by ending, in sorted order.

    Raises
    ------
    L3PruneError
        The folder does not exist.

    Examples
    --------
    >>> find_audio("/nowhere")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere
    """
    return find_files(folder, AUDIO_EXTENSIONS)


def to_mono(audio: np.ndarray, sample_rate: float, target_rate: int) -> np.ndarray:
    """Mean over channels, then soxr's high-quality resampling.

    Parameters
    ----------
    audio : np.ndarray, (samples,) or (samples, channels) float
    sample_rate, target_rate : float, int
        Hz.

    Returns
    -------
    mono : np.ndarray, (about samples * target_rate / sample_rate,) float32

    Raises
    ------
    ParameterError
        No samples, more than two dimensions, NaN or infinity, or a rate outside `SAMPLE_RATES`.

    Examples
    --------
    >>> to_mono(np.ones((16000, 2)), 16000, 8000).shape
    (8000,)
    """
    mono = np.concatenate(list(mono_blocks([audio], sample_rate, target_rate)))
    return mono if len(mono) else np.zeros(1, np.float32)


def mono_blocks(
    blocks: Iterable[np.ndarray], sample_rate: float, target_rate: int
) -> Iterator[np.ndarray]:
    """`to_mono` of a recording that comes in blocks; together they are what it gives.

    Examples
    --------
    >>> blocks = [np.ones((4000, 2)), np.ones((6000, 2))]
    >>> sum(len(block) for block in mono_blocks(blocks, 16000, 8000))
    5000
    """
    if (
        isinstance(sample_rate, bool)
        or not isinstance(sample_rate, numbers.Real)
        or not SAMPLE_RATES[0] <= sample_rate <= SAMPLE_RATES[1]
    ):
        raise ParameterError(
            f"sample rate {sample_rate!r} is not in {SAMPLE_RATES[0]} … {SAMPLE_RATES[1]} Hz"
        )
    resampler = None
    if sample_rate != target_rate:
        import soxr

        resampler = soxr.ResampleStream(float(sample_rate), target_rate, 1, quality="HQ")
    mono = None
    for block in blocks:
        mono = _mean_of_channels(block)
        yield mono if resampler is None else resampler.resample_chunk(mono)
    if mono is None:
        raise ParameterError("audio has no samples; give a recording that is not empty")
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def as_array(values) -> np.ndarray:
    """`np.asarray` with an error for people.

    Examples
    --------
    >>> as_array([[0.1, 0.2], [0.3]])
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no array can be made of this list (...); give np.ndarray
    """
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ParameterError(
            f"no array can be made of this {type(values).__name__} ({error}); give np.ndarray"
        ) from error


def _mean_of_channels(audio: np.ndarray) -> np.ndarray:
    audio = as_array(audio)
    if audio.ndim not in (1, 2):
        raise ParameterError(f"audio has {audio.ndim} dimensions; give (samples[, channels])")
    if audio.size == 0:
        raise ParameterError("audio is empty; give at least one sample")
    if not np.issubdtype(audio.dtype, np.floating):
        raise ParameterError(
            f"audio is {audio.dtype}; give floats in [-1, 1] (divide int16 samples by 32768)"
        )
    mono = audio.reshape(len(audio), -1).mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise ParameterError("audio has NaN or infinite samples; repair or leave out the recording")
    return mono


def frame_audio(
    audio: np.ndarray, sample_rate: int, *, hop_size: float = 0.1, center: bool = True
) -> np.ndarray:
    """Cut one-second windows by OpenL3's rules.

    `center` puts half a second of zeros in front, so that the first window is centred on the first
    sample. The end is zero-padded so that the last window covers the last sample.

    Parameters
    ----------
    audio : np.ndarray, (samples,) float
    sample_rate : int
        Hz.
    hop_size : float
        Seconds between windows, at least one sample.
    center : bool

    Returns
    -------
    windows : np.ndarray, (n, sample_rate)
        A read-only view where no copy was needed.

    Raises
    ------
    ParameterError
        `hop_size` is not a positive number of at least one sample.

    Examples
    --------
    >>> frame_audio(np.ones(90), 50, hop_size=0.5, center=False).shape
    (3, 50)
    """
    hop = _hop_length(hop_size, sample_rate)
    before = sample_rate // 2 if center else 0
    windows = _count_windows(len(audio) + before, sample_rate, hop)
    after = max((windows - 1) * hop + sample_rate - len(audio) - before, 0)
    if before or after:
        audio = np.pad(audio, (before, after))
    return np.lib.stride_tricks.sliding_window_view(audio, sample_rate)[::hop][:windows]


def count_windows(samples: int, sample_rate: int, *, hop_size: float, center: bool) -> int:
    """How many windows `frame_audio` cuts from so many samples.

    Examples
    --------
    >>> count_windows(90, 50, hop_size=0.5, center=False)
    3
    """
    before = sample_rate // 2 if center else 0
    return _count_windows(samples + before, sample_rate, _hop_length(hop_size, sample_rate))


def window_blocks(
    blocks: Iterable[np.ndarray], sample_rate: int, *, hop_size: float = 0.1, center: bool = True
) -> Iterator[np.ndarray]:
    """`frame_audio` of a recording that comes in blocks; together they are what it gives.

    Parameters
    ----------
    blocks : iterable of np.ndarray, (samples,) float32
    sample_rate, hop_size, center
        See `frame_audio`.

    Yields
    ------
    windows : np.ndarray, (n, sample_rate) float32, n > 0
        Valid until the next one.

    Examples
    --------
    >>> blocks = [np.ones(40, np.float32), np.ones(50, np.float32)]
    >>> [w.shape for w in window_blocks(blocks, 50, hop_size=0.5, center=False)]
    [(2, 50), (1, 50)]
    """
    hop = _hop_length(hop_size, sample_rate)
    pending = np.zeros(sample_rate // 2 if center else 0, np.float32)
    length, done, skip = len(pending), 0, 0
    for block in blocks:
        length += len(block)
        # A hop longer than a window leaves a gap.
        skipped, skip = min(skip, len(block)), max(skip - len(block), 0)
        pending = np.concatenate([pending, block[skipped:]])
        if len(pending) >= sample_rate:
            windows = np.lib.stride_tricks.sliding_window_view(pending, sample_rate)[::hop]
            yield windows
            done += len(windows)
            skip += max(len(windows) * hop - len(pending), 0)
            pending = pending[len(windows) * hop :]
    left = _count_windows(max(length, 1), sample_rate, hop) - done
    if left > 0:
        after = (left - 1) * hop + sample_rate - len(pending)
        yield frame_audio(np.pad(pending, (0, after)), sample_rate, hop_size=hop_size, center=False)


def _hop_length(hop_size: float, sample_rate: int) -> int:
    if (
        isinstance(hop_size, bool)
        or not isinstance(hop_size, numbers.Real)
        or not 0 < hop_size < np.inf
    ):
        raise ParameterError(f"hop_size={hop_size!r} is not a positive number of seconds")
    hop = int(hop_size * sample_rate)
    if hop < 1:
        raise ParameterError(
            f"hop_size={hop_size} is less than one sample at {sample_rate} Hz; "
            f"give at least {1 / sample_rate:g}"
        )
    return hop


def _count_windows(length: int, window: int, hop: int) -> int:
    # A hop beyond the window could put the last one behind the last sample.
    return min(1 + -(-max(length - window, 0) // hop), -(-length // hop))
