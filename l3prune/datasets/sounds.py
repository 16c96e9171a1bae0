"""Made-up sound events of ten classes, named after US8K's.

A class is told best by how its sound moves (rates, onsets, sweeps) and only in part by its average
spectrum: the ranges of pitch and colour overlap, and rooms, backgrounds and bystanders' sounds are
the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from l3prune.checks import check_whole
from l3prune.errors import ParameterError

VERSION = 1
"""One more whenever the same seed gives other samples."""

MIN_SECONDS = 0.1
MAX_SECONDS = 600.0
MIN_SAMPLE_RATE = 8000


@dataclass(frozen=True)
class Scene:
    """What a class function draws from.

    Attributes
    ----------
    voice : numpy.random.Generator
        Draws what the slices of one recording share (pitch, timbre, rate). A class function must
        take the same number of draws from it whatever `take` gives.
    take : numpy.random.Generator
        Draws what differs between slices (onsets, noise).
    samples : int
        Length of the slice.
    sample_rate : int
        Samples per second.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Scene(rng, rng, samples=4, sample_rate=8000).frequencies.tolist()
    [0.0, 2000.0, 4000.0]
    """

    voice: np.random.Generator
    take: np.random.Generator
    samples: int
    sample_rate: int

    @property
    def time(self) -> np.ndarray:
        """Seconds from the start of the slice, float64 (samples,)."""
        return np.arange(self.samples) / self.sample_rate

    @property
    def frequencies(self) -> np.ndarray:
        """Frequencies in Hz of a response for `_filter`, float64 (samples // 2 + 1,)."""
        return np.fft.rfftfreq(self.samples, 1 / self.sample_rate)

    @property
    def octaves(self) -> np.ndarray:
        """Their logarithms to base 2, from 5 (32 Hz), float64 (samples // 2 + 1,)."""
        return np.log2(np.maximum(self.frequencies, 32))


Source = Callable[[Scene], np.ndarray]

CLASSES: dict[str, Source] = {}
"""Label -> function. The order of definition is US8K's order of class ids, 0 … 9."""


def sound_class(source: Source) -> Source:
    """Register a class function, `Scene` -> samples of any scale, under its name.

    Examples
    --------
    >>> list(CLASSES).index("siren")
    8
    """
    CLASSES[source.__name__] = source
    return source


@sound_class
def air_conditioner(scene: Scene) -> np.ndarray:
    """Steady noise over the steady tone of a fan, with a slow flutter."""
    pitch, partials = _pitch(scene.voice, 100, 200), _partials(scene.voice, 1.0)
    flutter = 1 + scene.voice.uniform(0, 0.4) * _wave(scene, scene.voice.uniform(0.2, 1.5))
    fan = _tone(np.full(scene.samples, pitch), partials, scene.sample_rate)
    return _blend(scene, fan, _noise(scene, 500)) * flutter


@sound_class
def car_horn(scene: Scene) -> np.ndarray:
    """Honks: two steady tones, switched on and off."""
    pitch, partials = _pitch(scene.voice, 320, 440), _partials(scene.voice, 0.3)
    interval = scene.voice.choice([1.19, 1.25, 1.335])
    length = scene.voice.uniform(0.1, 0.7)
    rate = scene.voice.uniform(0.45, 0.75) / length

    def honk(time: np.ndarray) -> np.ndarray:
        steady = np.full(len(time), pitch)
        chord = _tone(steady, partials, scene.sample_rate)
        chord += _tone(interval * steady, partials, scene.sample_rate)
        return chord * _envelope(time, 0.01, length, 0.02)

    return _play(scene, _onsets(scene, rate, 0.2), length + 0.1, honk)


@sound_class
def children_playing(scene: Scene) -> np.ndarray:
    """Many overlapping calls of different gliding pitches."""
    pitch, partials = _pitch(scene.voice, 400, 750), _partials(scene.voice, 0.8)
    rate = scene.voice.uniform(4, 8)

    def call(time: np.ndarray) -> np.ndarray:
        length = scene.take.uniform(0.12, 0.4)
        start, end = pitch * 2 ** scene.take.uniform(-0.7, 0.7, 2)
        glide = start * (end / start) ** np.clip(time / length, 0, 1)
        voice = _tone(glide, partials, scene.sample_rate)
        return scene.take.uniform(0.3, 1) * voice * _envelope(time, 0.05, length - 0.05, 0.05)

    return _play(scene, _onsets(scene, rate, 0.6), 0.6, call)


@sound_class
def dog_bark(scene: Scene) -> np.ndarray:
    """Short rough barks, the pitch rising and falling in each."""
    pitch, partials = _pitch(scene.voice, 350, 550), _partials(scene.voice, 0.7)
    length = scene.voice.uniform(0.08, 0.18)
    depth = scene.voice.uniform(0.1, 0.7)
    noise = _noise(scene, 1000)

    def bark(time: np.ndarray) -> np.ndarray:
        arc = pitch * (1 + depth * np.sin(np.pi * np.clip(time / length, 0, 1)))
        voice = _tone(arc, partials, scene.sample_rate)
        voice += 0.9 * noise[: len(time)]
        return voice * _envelope(time, 0.02, length - 0.02, 0.03)

    return _play(scene, _onsets(scene, scene.voice.uniform(1.6, 4), 0.4), 0.4, bark)


@sound_class
def drilling(scene: Scene) -> np.ndarray:
    """A whining motor that runs up, sags under load and stops, over grinding noise."""
    pitch, partials = _pitch(scene.voice, 400, 800), _partials(scene.voice, 0.3)
    rate, depth = scene.voice.uniform(0.8, 1.6), scene.voice.uniform(0.05, 0.35)
    speed = np.zeros(scene.samples)
    for onset in _onsets(scene, rate, 0.3):
        time = scene.time - onset
        sag = 1 - depth * (1 - np.exp(-np.maximum(time, 0) * rate * 2))
        speed = np.where(time >= 0, np.minimum(1, 0.5 + time / 0.12) * sag, speed)
    whine = _tone(pitch * speed, partials, scene.sample_rate)
    return _blend(scene, whine, _noise(scene, 1600)) * speed


@sound_class
def engine_idling(scene: Scene) -> np.ndarray:
    """Fast firing pulses whose strength lopes smoothly."""
    pitch, partials = _pitch(scene.voice, 60, 120), _partials(scene.voice, 1.0)
    lope = 1 + scene.voice.uniform(0.3, 0.9) * _wave(scene, scene.voice.uniform(1.5, 5))
    firing = 1 + 0.8 * _wave(scene, scene.voice.uniform(18, 30))
    hum = _tone(np.full(scene.samples, pitch), partials, scene.sample_rate)
    return _blend(scene, hum, _noise(scene, 200)) * firing * lope


@sound_class
def gun_shot(scene: Scene) -> np.ndarray:
    """Sudden cracks of noise with a long tail, at irregular times."""
    tail = scene.voice.uniform(0.06, 0.2)
    noise = _noise(scene, 400)

    def shot(time: np.ndarray) -> np.ndarray:
        return scene.take.uniform(0.5, 1) * noise[: len(time)] * _envelope(time, 0.001, 0.01, tail)

    return _play(scene, _onsets(scene, scene.voice.uniform(1.2, 2.2), 0.5), 6 * tail, shot)


@sound_class
def jackhammer(scene: Scene) -> np.ndarray:
    """Regular blows, several a second, each a crack of noise with a short ring."""
    pitch, partials = _pitch(scene.voice, 150, 300), _partials(scene.voice, 0.5)
    rate = scene.voice.uniform(4, 10)
    ring = _blend(
        scene,
        _tone(np.full(scene.samples, pitch), partials, scene.sample_rate),
        _noise(scene, 2000),
    )

    def blow(time: np.ndarray) -> np.ndarray:
        return ring[: len(time)] * _envelope(time, 0.002, 0.01, 0.15 / rate)

    return _play(scene, _onsets(scene, rate, 0.1), 1 / rate, blow)


@sound_class
def siren(scene: Scene) -> np.ndarray:
    """One tone sweeping up and down without a break: wail, yelp or two-tone."""
    pitch, partials = _pitch(scene.voice, 700, 1100), _partials(scene.voice, 1.8)
    wave = _wave(scene, scene.voice.uniform(0.3, 3.5))
    wave = np.tanh(wave * scene.voice.uniform(0.5, 4))
    sweep = pitch * 2 ** (scene.voice.uniform(0.1, 0.5) * wave)
    return _tone(sweep, partials, scene.sample_rate)


@sound_class
def street_music(scene: Scene) -> np.ndarray:
    """Plucked notes of a scale in a steady tempo."""
    pitch, partials = _pitch(scene.voice, 200, 380), _partials(scene.voice, 1.2)
    rate = scene.voice.uniform(2.5, 6)
    scale = np.array([-10, -8, -5, -3, 0, 2, 4, 7, 9])

    def note(time: np.ndarray) -> np.ndarray:
        step = pitch * 2 ** (scene.take.choice(scale) / 12)
        string = _tone(np.full(len(time), step), partials, scene.sample_rate)
        return scene.take.uniform(0.5, 1) * string * _envelope(time, 0.005, 0.02, 0.6 / rate)

    return _play(scene, _onsets(scene, rate, 0.1), 1.5 / rate, note)


def synthesize(
    label: str,
    rng: np.random.Generator,
    seconds: float = 2.0,
    sample_rate: int = 16000,
    *,
    voice: np.random.Generator | None = None,
) -> np.ndarray:
    """Make one clip of a class: its source in a room, over a background, through a microphone.

    Parameters
    ----------
    label : str
        A key of `CLASSES`.
    rng : numpy.random.Generator
        Draws what differs between the slices of one recording.
    seconds : float
        Length of the clip.
    sample_rate : int
        Samples per second, 8000 or more.
    voice : numpy.random.Generator, optional
        Draws what the slices of one recording share; a generator with the same seed gives another
        slice of the same recording. Default: `rng`. Its first draw is the salience.

    Returns
    -------
    samples : np.ndarray [shape=(samples,), dtype=float32]
        Mono, in [-1, 1].

    Raises
    ------
    ParameterError
        Unknown label, or a length or rate out of range.

    Examples
    --------
    >>> samples = synthesize("siren", np.random.default_rng(0), seconds=0.5)
    >>> samples.shape, str(samples.dtype)
    ((8000,), 'float32')
    """
    if label not in CLASSES:
        raise ParameterError(f"label {label!r} is unknown; known: {', '.join(CLASSES)}")
    check_audio(seconds, sample_rate)
    voice = rng if voice is None else voice
    scene = Scene(voice, rng, round(seconds * sample_rate), sample_rate)

    salience = draw_salience(voice)
    snr = voice.uniform(10, 25) if salience == 1 else voice.uniform(-6, 6)
    room, background = draw_place(scene)
    source = _level(room(CLASSES[label](scene)))
    # Somebody else's sound, fainter than the labelled one.
    bystander = list(CLASSES)[voice.integers(len(CLASSES))]
    other = _level(room(CLASSES[bystander](scene)))
    source += other * voice.choice([0, 10 ** (voice.uniform(-10, 0) / 20)])
    mixture = source * 10 ** (snr / 20) + background
    clip = _filter(mixture, _curve(scene, spread=1))
    peak = voice.uniform(0.2, 0.9)
    return (peak * clip / np.abs(clip).max()).astype(np.float32)


def check_audio(seconds: float, sample_rate: int) -> None:
    """Refuse a length or a rate that clips cannot have.

    Examples
    --------
    >>> check_audio(0, 16000)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: seconds=0 is not in [0.1, 600.0]: the length of a clip
    """
    check_whole("sample_rate", sample_rate, MIN_SAMPLE_RATE)
    # Also false for nan.
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise ParameterError(
            f"seconds={seconds!r} is not in [{MIN_SECONDS}, {MAX_SECONDS}]: the length of a clip"
        )


def draw_salience(voice: np.random.Generator) -> int:
    """1 (foreground) or 2 (background), about as often as in US8K: 5702 to 3030.

    Examples
    --------
    >>> draw_salience(np.random.default_rng(0))
    1
    """
    return 1 if voice.random() < 0.65 else 2


def draw_place(scene: Scene) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """Where sounds are made: what its room does to them, and the noise there.

    Returns
    -------
    room : callable, np.ndarray [shape=(samples,)] -> np.ndarray [shape=(samples,)]
        Adds echoes and distance.
    background : np.ndarray [shape=(samples,)]
        With an RMS of 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> room, background = draw_place(Scene(rng, rng, samples=800, sample_rate=8000))
    >>> room(np.eye(1, 800)[0]).shape, background.shape
    ((800,), (800,))
    """
    response = _room(scene)
    return lambda samples: _filter(samples, response), _background(scene)


def keyed_generator(seed: int, *key: int) -> np.random.Generator:
    """The generator of one part of what a seed makes; no other part's draws move it.

    Examples
    --------
    >>> keyed_generator(0, 1, 2).random() == keyed_generator(0, 1, 3).random()
    False
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _pitch(voice: np.random.Generator, low: float, high: float) -> float:
    """A fundamental in Hz, evenly likely at all pitches of the range."""
    return float(low * (high / low) ** voice.random())


def _partials(voice: np.random.Generator, roll_off: float) -> np.ndarray:
    """Amplitudes of twelve partials, falling about as number ** -roll_off, (12,)."""
    slope = np.arange(1, 13) ** -(roll_off + voice.uniform(-0.3, 0.3))
    return slope * 10 ** (voice.normal(0, 2, 12) / 20)


def _tone(frequency: np.ndarray, partials: np.ndarray, sample_rate: int) -> np.ndarray:
    """A harmonic tone with fundamental `frequency` in Hz at each sample, (samples,)."""
    turn = np.exp(2j * np.pi * np.cumsum(frequency) / sample_rate)
    power, tone = turn.copy(), np.zeros(len(frequency))
    for number, amplitude in enumerate(partials, start=1):
        if number * frequency.max(initial=0) >= sample_rate / 2:
            break
        tone += amplitude * power.imag
        power *= turn
    return tone / np.sqrt(np.sum(partials**2))


def _wave(scene: Scene, rate: float) -> np.ndarray:
    """A sine of `rate` Hz and any phase, (samples,)."""
    return np.sin(2 * np.pi * (rate * scene.time + scene.take.random()))


def _noise(scene: Scene, centre: float) -> np.ndarray:
    """Noise of a random colour, strongest around `centre` Hz, with an RMS of 1, (samples,)."""
    centre *= 2 ** scene.voice.uniform(-0.3, 0.3)
    distance = scene.octaves - np.log2(centre)
    colour = _curve(scene, spread=1) * 10 ** (-scene.voice.uniform(1, 4) * distance**2 / 20)
    return _level(_filter(scene.take.standard_normal(scene.samples), colour))


def _blend(scene: Scene, tone: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Tone and noise in a random proportion, (samples,)."""
    share = scene.voice.uniform(0.2, 0.8)
    return share * _level(tone) + (1 - share) * noise


def _onsets(scene: Scene, rate: float, irregularity: float) -> np.ndarray:
    """Ascending times in seconds at about `rate` a second, the first before the slice.

    The logarithms of the gaps have the standard deviation `irregularity`. At least one time lies
    in the first half of the slice, or a slice of a seldom sound could hold none.
    """
    length = scene.samples / scene.sample_rate
    count = int(4 * rate * length) + 8
    gaps = np.exp(irregularity * scene.take.standard_normal(count)) / rate
    times = np.cumsum(gaps) - gaps[0] * (1 + scene.take.random())
    if not np.any((times >= 0) & (times < length / 2)):
        times = np.sort(np.append(times, scene.take.uniform(0, length / 2)))
    return times[times < length]


def _envelope(time: np.ndarray, attack: float, hold: float, decay: float) -> np.ndarray:
    """Rise to 1, stay, and decay exponentially with the time constant `decay`; seconds."""
    rise = np.clip(time / attack, 0, 1)
    return rise * np.exp(-np.maximum(time - attack - hold, 0) / decay)


def _play(
    scene: Scene, onsets: np.ndarray, length: float, event: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Sum of events, (samples,): `event` turns the seconds since its onset into samples."""
    out = np.zeros(scene.samples)
    for onset in onsets:
        start = round(onset * scene.sample_rate)
        where = np.arange(
            max(start, 0), min(start + round(length * scene.sample_rate), scene.samples)
        )
        if len(where):
            out[where] += event((where - start) / scene.sample_rate)
    return out


def _curve(scene: Scene, spread: float) -> np.ndarray:
    """A smooth random frequency response with `spread` dB deviation, (samples // 2 + 1,)."""
    gain = np.interp(scene.octaves, np.arange(5, 14), scene.voice.normal(0, spread, 9))
    return 10 ** (gain / 20)


def _room(scene: Scene) -> np.ndarray:
    """Response of a room and a distance, complex (samples // 2 + 1,)."""
    decay = scene.voice.uniform(0.02, 0.08)
    echoes = scene.voice.standard_normal(scene.sample_rate // 2)
    echoes *= np.exp(-np.arange(len(echoes)) / (decay * scene.sample_rate))
    echoes *= scene.voice.uniform(0, 0.5) / np.sqrt(np.sum(echoes**2))
    echoes[0] += 1
    response = np.fft.rfft(echoes[: scene.samples], scene.samples)
    cutoff = 1500 * 2 ** scene.voice.uniform(0, 2.5)
    return response / (1 + 1j * scene.frequencies / cutoff)


def _filter(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Samples through a (circular) frequency response, (samples,)."""
    return np.fft.irfft(np.fft.rfft(samples) * response, len(samples))


def _background(scene: Scene) -> np.ndarray:
    """Noise, babble, hum and traffic in random proportions with an RMS of 1, (samples,)."""
    noise, babble, traffic = (_noise(scene, centre) for centre in (600, 900, 200))
    babble *= np.clip(
        _wave(scene, scene.voice.uniform(1, 7)) + _wave(scene, scene.voice.uniform(2, 9)), 0, None
    )
    traffic *= 1 + 0.9 * _wave(scene, scene.voice.uniform(0.1, 0.5))
    hum = _tone(
        np.full(scene.samples, 50.0 * scene.voice.integers(1, 9)),
        _partials(scene.voice, 1),
        scene.sample_rate,
    )
    shares = scene.voice.dirichlet([0.5] * 4)
    parts = np.stack([noise, babble, hum, traffic])
    return _level(shares @ parts)


def _level(samples: np.ndarray) -> np.ndarray:
    """Samples with an RMS of 1, unless they are all zero."""
    return samples / max(float(np.sqrt(np.mean(samples**2))), 1e-9)
