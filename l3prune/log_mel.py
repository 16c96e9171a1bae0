"""Log-mel spectrograms of clips of any length, as PANNs computes them. NumPy only.

The power spectrum of centred, reflected Hann windows; Slaney's mel bands; 10 log10. Nothing is
relative to the clip's loudest bin, so levels are those of the recording.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from l3prune.checks import check_whole
from l3prune.errors import ParameterError

#: Smallest power before the logarithm: -100 dB.
POWER_FLOOR = 1e-10

#: Slaney's scale: linear up to 1 kHz, which is mel 15, then 27 mels for each factor of 6.4.
_LINEAR_HERTZ, _LINEAR_MELS, _LOG_MELS, _LOG_FACTOR = 1000.0, 15.0, 27.0, 6.4


@dataclass(frozen=True)
class LogMel:
    """Constants of a log-mel front end; the defaults are PANNs'.

    Attributes
    ----------
    sample_rate : int
        Hz.
    n_dft : int
        Length of the Hann window and of the DFT, in samples.
    hop_length : int
        Samples between frames.
    n_mels : int
    low, high : float
        Edges of the lowest and the highest band in Hz.

    Raises
    ------
    ParameterError
        A value outside its range.

    Examples
    --------
    >>> LogMel().frames(320000)
    1001
    """

    sample_rate: int = 32000
    n_dft: int = 1024
    hop_length: int = 320
    n_mels: int = 64
    low: float = 50.0
    high: float = 14000.0

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_dft", "hop_length", "n_mels"):
            check_whole(name, getattr(self, name), 1)
        if not 0 <= self.low < self.high <= self.sample_rate / 2:
            raise ParameterError(
                f"bands from {self.low:g} to {self.high:g} Hz; allowed are rising edges in 0 … "
                f"{self.sample_rate / 2:g}, half the sample rate"
            )

    @property
    def padding(self) -> int:
        """Samples that are reflected at each end; a clip must be longer."""
        return self.n_dft // 2

    def frames(self, samples: int) -> int:
        """Frames of a clip of so many samples."""
        return 1 + samples // self.hop_length

    def analysis_window(self) -> np.ndarray:
        """Periodic Hann window, (n_dft,) float64."""
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_dft) / self.n_dft)

    def mel_matrix(self) -> np.ndarray:
        """Mel filterbank, (n_dft // 2 + 1, n_mels) float64: triangles of area 1 in Hz."""
        return _mel_matrix(self)


@functools.cache
def _mel_matrix(constants: LogMel) -> np.ndarray:
    mels = np.linspace(
        _mel_of(constants.low), _mel_of(constants.high), constants.n_mels + 2, dtype=np.float64
    )
    edges = np.where(
        mels < _LINEAR_MELS,
        mels * _LINEAR_HERTZ / _LINEAR_MELS,
        _LINEAR_HERTZ * _LOG_FACTOR ** ((mels - _LINEAR_MELS) / _LOG_MELS),
    )
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    bins = np.arange(constants.n_dft // 2 + 1)[:, None]
    hertz = bins * constants.sample_rate / constants.n_dft
    rising, falling = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
    matrix = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    matrix.flags.writeable = False
    return matrix


def _mel_of(hertz: float) -> float:
    if hertz < _LINEAR_HERTZ:
        return hertz * _LINEAR_MELS / _LINEAR_HERTZ
    return _LINEAR_MELS + _LOG_MELS * np.log(hertz / _LINEAR_HERTZ) / np.log(_LOG_FACTOR)


def log_mel(clips: np.ndarray, constants: LogMel | None = None) -> np.ndarray:
    """Log-mel spectrograms of clips, in dB, not less than -100.

    Parameters
    ----------
    clips : np.ndarray, (n, samples) float
        Waveforms in [-1, 1].
    constants : LogMel or None
        None takes PANNs'.

    Returns
    -------
    spectrograms : np.ndarray, (n, frames, bands, 1) float32

    Raises
    ------
    ParameterError
        The clips are too short to be reflected at their ends.

    Examples
    --------
    >>> float(log_mel(np.zeros((1, 32000))).max())
    -100.0
    """
    constants = constants or LogMel()
    clips = np.asarray(clips)
    if clips.ndim != 2 or clips.shape[1] <= constants.padding:
        raise ParameterError(
            f"clips of shape {clips.shape} given; this front end takes (n, samples), more than "
            f"{constants.padding} samples each"
        )
    window, bands = constants.analysis_window(), constants.mel_matrix()
    frames = constants.frames(clips.shape[1])
    spectrograms = np.empty((len(clips), frames, constants.n_mels, 1), np.float32)
    for clip, result in zip(clips, spectrograms, strict=True):
        padded = np.pad(clip.astype(np.float64), constants.padding, mode="reflect")
        every = np.lib.stride_tricks.sliding_window_view(padded, constants.n_dft)
        bins = np.fft.rfft(every[:: constants.hop_length] * window)
        power = (bins.real**2 + bins.imag**2) @ bands
        result[..., 0] = 10 * np.log10(np.maximum(power, POWER_FLOOR))
    return spectrograms
