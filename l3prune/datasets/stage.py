"""What is seen and heard in made-up videos: objects that are drawn where and when they sound."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from l3prune.checks import check_whole
from l3prune.datasets import sounds
from l3prune.datasets.looks import paint
from l3prune.datasets.sounds import CLASSES, check_audio, draw_place, keyed_generator
from l3prune.errors import ParameterError

VERSION = 1
"""One more whenever the same seed gives other pixels, or other samples of the same sounds."""

SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""What AAC has."""

SIZES = (64, 1024)
"""Least and greatest height and width in pixels."""

MAX_FRAME_RATE = 60

TWO_OBJECTS = 0.3
"""Share of the videos with two sounding objects."""

DISTRACTED = 0.3
"""Share of the videos in which something moves that makes no sound."""

FADE = 0.2
"""Seconds in which the loudness that an object shows falls by 8.7 dB after its sound ended."""

FAINTEST = 0.2
"""Strength below which an object is not drawn."""

Room = Callable[[np.ndarray], np.ndarray]

# First numbers of the generators' keys.
_ORDER, _VIDEO = range(2)


@dataclass(frozen=True)
class Format:
    """Lengths, rates and size of videos.

    Attributes
    ----------
    seconds : float
        Length.
    sample_rate : int
        Samples per second, one of `SAMPLE_RATES`.
    frame_rate : int
        Pictures per second, 1 to 60.
    size : int
        Height and width in pixels, an even number in 64 … 1024.

    Raises
    ------
    ParameterError
        One of them out of range.

    Examples
    --------
    >>> form = Format(seconds=2.0)
    >>> form.frames, form.samples
    (24, 32000)
    """

    seconds: float = 4.0
    sample_rate: int = 16000
    frame_rate: int = 12
    size: int = 256

    def __post_init__(self) -> None:
        check_audio(self.seconds, self.sample_rate)
        if self.sample_rate not in SAMPLE_RATES:
            raise ParameterError(
                f"sample_rate={self.sample_rate!r} is no rate of AAC sound;"
                f" choose one of {', '.join(map(str, SAMPLE_RATES))}"
            )
        check_whole("frame_rate", self.frame_rate, 1, MAX_FRAME_RATE)
        check_whole("size", self.size, *SIZES)
        if self.size % 2:
            raise ParameterError(
                f"size={self.size!r} is odd, and H.264 halves the colours' resolution;"
                f" choose {self.size + 1}"
            )
        # json and PyAV know no NumPy scalar, and 4 and 4.0 seconds are the same.
        object.__setattr__(self, "seconds", float(self.seconds))
        for name in ("sample_rate", "frame_rate", "size"):
            object.__setattr__(self, name, int(getattr(self, name)))

    @property
    def frames(self) -> int:
        """Number of pictures."""
        return max(round(self.seconds * self.frame_rate), 1)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return round(self.seconds * self.sample_rate)


@dataclass(frozen=True)
class Thing:
    """What moves in a video.

    Attributes
    ----------
    label : str
        A key of `looks.LOOKS`.
    sound : np.ndarray [shape=(samples,)]
        What of the video's sound it makes, before the video's level is set.
    strength : np.ndarray [shape=(frames,)]
        0 … 1, by its loudness: of its size, its opacity and its speed of turning.
    centre : np.ndarray [shape=(frames, 2)]
        Row and column, in pixels.
    turn : np.ndarray [shape=(frames,)]
        Rotation in radians.
    radius : float
        Pixels, at its loudest.
    colours : np.ndarray [shape=(2, 3), dtype=float32]
        RGB, 0 … 255, of its pattern's light and dark parts.

    Examples
    --------
    >>> film = compose(0, 0, Format(seconds=0.5, size=64))
    >>> film.things[0].label, film.things[0].strength.shape
    ('...', (6,))
    """

    label: str
    sound: np.ndarray
    strength: np.ndarray
    centre: np.ndarray
    turn: np.ndarray
    radius: float
    colours: np.ndarray

    def draw(self, pixels: np.ndarray, frame: int) -> None:
        """Draw it into picture number `frame`, in place, where it is strong enough to be seen."""
        strength = float(self.strength[frame])
        if strength >= FAINTEST:
            row, column = self.centre[frame].tolist()
            paint(
                pixels,
                self.label,
                (row, column),
                self.radius * (0.4 + 0.6 * strength),
                turn=float(self.turn[frame]),
                colours=self.colours,
                opacity=min(2 * strength, 1),
            )


@dataclass(frozen=True)
class Film:
    """A video before it is encoded.

    Attributes
    ----------
    form : Format
        Its lengths and rates.
    backdrop : np.ndarray [shape=(size, size, 3), dtype=uint8]
        RGB.
    things : tuple of Thing
        The front ones first.
    samples : np.ndarray [shape=(samples,), dtype=float32]
        Mono, in [-1, 1].

    Examples
    --------
    >>> film = compose(0, 0, Format(seconds=0.5, size=64))
    >>> [pixels.shape for pixels in film.frames()][:2]
    [(64, 64, 3), (64, 64, 3)]
    """

    form: Format
    backdrop: np.ndarray
    things: tuple[Thing, ...]
    samples: np.ndarray

    def frames(self) -> Iterator[np.ndarray]:
        """Its pictures, uint8 (size, size, 3)."""
        for frame in range(self.form.frames):
            pixels = self.backdrop.copy()
            for thing in reversed(self.things):
                thing.draw(pixels, frame)
            yield pixels


def cast(seed: int, number: int) -> tuple[tuple[str, ...], bool]:
    """Labels of the objects that sound in a video, and whether something silent moves as well.

    Each class comes first in one of ten videos in a row.

    Examples
    --------
    >>> sorted(cast(0, number)[0][0] for number in range(10)) == sorted(CLASSES)
    True
    """
    block, place = divmod(number, len(CLASSES))
    first = keyed_generator(seed, _ORDER, block).permutation(len(CLASSES))[place]
    rng = keyed_generator(seed, _VIDEO, number, 0)
    distracted, two = rng.random() < DISTRACTED, rng.random() < TWO_OBJECTS
    second = (first + rng.integers(1, len(CLASSES))) % len(CLASSES)
    names = list(CLASSES)
    return (names[first], names[second])[: 1 + two], bool(distracted)


def compose(seed: int, number: int, form: Format) -> Film:
    """Make a video's pictures and sound.

    The first object may sound from the beginning to the end, a second one for a part of the time.

    Examples
    --------
    >>> compose(0, 0, Format(seconds=0.5, size=64)).samples.shape
    (8000,)
    """
    labels, distracted = cast(seed, number)
    stage = keyed_generator(seed, _VIDEO, number, 1)
    room, noise = draw_place(sounds.Scene(stage, stage, form.samples, form.sample_rate))
    things: list[Thing] = []
    for part, label in enumerate([*labels, *["pebble"] * distracted]):
        rng = keyed_generator(seed, _VIDEO, number, 2 + part)
        things.append(_thing(label, rng, form, room, things))
    snr = stage.uniform(12, 30)
    mixture = sum((thing.sound for thing in things), start=noise * 10 ** (-snr / 20))
    samples = stage.uniform(0.3, 0.9) * mixture / np.abs(mixture).max()
    return Film(form, _backdrop(stage, form.size), tuple(things), samples.astype(np.float32))


def _thing(
    label: str, rng: np.random.Generator, form: Format, room: Room, others: Sequence[Thing]
) -> Thing:
    """Draw what one thing does, which depends on the other ones by its place only."""
    silent = label not in CLASSES
    if silent:
        sound, strength = np.zeros(form.samples), np.full(form.frames, rng.uniform(0.6, 1))
        radius, reach = rng.uniform(0.09, 0.14), rng.uniform(0.1, 0.25, 2)
    else:
        sound, strength = _sound(label, rng, form, room, whole=not others)
        radius, reach = rng.uniform(0.16, 0.26), rng.uniform(0.02, 0.08, 2)
    time = np.arange(form.frames)[:, None] / form.frame_rate
    swing = np.sin(2 * np.pi * (rng.uniform(0.1, 0.6, 2) * time + rng.random(2)))
    # As far from the others as one of twelve places is, and never beyond an edge.
    margin = radius + reach
    places = form.size * rng.uniform(margin, 1 - margin, (12, 2))
    taken = [thing.centre.mean(axis=0) for thing in others]
    distances = [
        min((np.hypot(*(place - other)) for other in taken), default=0) for place in places
    ]
    spin = rng.choice([-1, 1]) * rng.uniform(0.3, 1.5)
    return Thing(
        label=label,
        sound=sound,
        strength=strength,
        centre=places[np.argmax(distances)] + form.size * reach * swing,
        turn=2 * np.pi * rng.random() + spin * np.cumsum(strength) / form.frame_rate,
        radius=float(form.size * radius),
        colours=_colours(rng),
    )


def _sound(
    label: str, rng: np.random.Generator, form: Format, room: Room, *, whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    """An object's sound, its loudest picture with an RMS of 1 or less, and what that shows."""
    share, start, fainter = rng.uniform(0.5, 0.8), rng.random(), rng.uniform(0, 6)
    if whole:
        share, start, fainter = 1.0, 0.0, 0.0
    length = round(share * form.samples)
    first = round(start * (form.samples - length))
    sound = np.zeros(form.samples)
    source = sounds.Scene(rng, rng, length, form.sample_rate)
    # Faded in and out within 20 ms, or it would click.
    edge = np.clip(np.minimum(source.time, source.time[::-1]) / 0.02, 0, 1)
    sound[first : first + length] = CLASSES[label](source) * edge
    sound = room(sound)

    starts = np.arange(form.frames) * form.samples // form.frames
    power = np.add.reduceat(sound**2, starts) / np.diff(starts, append=form.samples)
    loudest = max(float(np.sqrt(power.max())), 1e-9)
    shown = np.sqrt(power) / loudest
    for frame in range(1, form.frames):
        fading = shown[frame - 1] * np.exp(-1 / (FADE * form.frame_rate))
        shown[frame] = max(shown[frame], fading)
    # The root, since loudness is heard by its ratios: 20 dB fainter is still a third.
    return sound / loudest * 10 ** (-fainter / 20), np.sqrt(shown)


def _colours(rng: np.random.Generator) -> np.ndarray:
    """A light colour and a dark one of any hues, float32 (2, 3)."""
    light = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.75), rng.uniform(0.85, 1))
    dark = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.05, 0.2))
    return 255 * np.array([light, dark], np.float32)


def _backdrop(rng: np.random.Generator, size: int) -> np.ndarray:
    """Soft spots of colour, darker than the light parts of the objects, with some grain, uint8."""
    spots = int(rng.integers(2, 7))
    palette = np.clip(rng.uniform(0.15, 0.4, 3) + rng.normal(0, 0.1, (spots, spots, 3)), 0.02, 0.55)
    nearness = 1 - np.abs(np.linspace(0, spots - 1, size)[:, None] - np.arange(spots))
    weights = np.maximum(nearness, 0)
    picture = np.einsum("ri,ijk,cj->rck", weights, palette, weights, optimize=True)
    picture += rng.uniform(0, 0.03) * rng.standard_normal((size, size, 1))
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8)
