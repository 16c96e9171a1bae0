"""Pairs of a picture and a second of sound, of one video or of two, as L3-Net is trained on.

What a pair is made of depends on the seed and on its number only, so pairs can be made in any order
and by any number of processes.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.datasets.sounds import keyed_generator
from l3prune.datasets.videos import Track, Video, VideoError, scaled_picture
from l3prune.errors import L3PruneError, ParameterError

#: Pictures are cut to so many pixels each way.
IMAGE_SIZE = 224

#: Of augmentation, as in the article on L3-Net and its authors' program.
GAIN = (0.9, 1.1)
SATURATION = (0.5, 1.5)
BRIGHTNESS = (-32 / 255, 32 / 255)

#: A pair that cannot be decoded is drawn anew, at most so often.
MAX_DRAWS = 50

#: What a generator is for; part of its key.
_ORDER, _PARTNERS, _PAIR = range(3)


@dataclass(frozen=True)
class Augmentation:
    """How a pair is changed.

    Attributes
    ----------
    gain : float
        Where between the least gain and the largest that does not clip, in [0, 1).
    flip : bool
        Left and right are exchanged.
    saturation, brightness : float
        Factor of the saturation, and what is added to pixels in [0, 1].
    saturation_first : bool

    Examples
    --------
    >>> Augmentation(0.5, False, 1.0, 0.0, True).flip
    False
    """

    gain: float
    flip: bool
    saturation: float
    brightness: float
    saturation_first: bool


@dataclass(frozen=True)
class Pair:
    """What a pair is made of.

    Attributes
    ----------
    audio, pictures : int
        Numbers of the videos that are heard and seen.
    audio_time : float
        When the second of sound begins, on the file's clock.
    picture_time : float
        The moment seen; within the second heard where both are of one video.
    crop : tuple of float
        Where the cut picture lies (x, y) of all places that it can have, in [0, 1).
    augmentation : Augmentation or None

    Examples
    --------
    >>> Pair(3, 3, 1.0, 1.5, (0.0, 0.0), None).match
    True
    """

    audio: int
    pictures: int
    audio_time: float
    picture_time: float
    crop: tuple[float, float]
    augmentation: Augmentation | None

    @property
    def match(self) -> bool:
        """Whether sound and picture are of one video."""
        return self.audio == self.pictures


@dataclass(frozen=True)
class Failure:
    """A draw that could not be decoded.

    Attributes
    ----------
    path : str
        The file.
    reason : str

    Examples
    --------
    >>> Failure("a.mp4", "no picture can be decoded at 3.0 s").path
    'a.mp4'
    """

    path: str
    reason: str


class Sampler:
    """Draws pairs; any number of them, in any order.

    Each video is put together with `distractors` others, once for all. A pass over all these twos
    gives a pair of each, in an order of its own: a fair coin chooses which of the two is heard,
    another which is seen. So half of all pairs match, and all videos come equally often.

    Parameters
    ----------
    videos : sequence of Video
    seed : int
    sample_rate : int
        Seconds begin at a sample of this rate.
    distractors : int
        Other videos that each is put together with.
    augment : bool

    Raises
    ------
    L3PruneError
        Fewer than two videos.
    ParameterError
        More distractors than other videos.

    Examples
    --------
    >>> videos = [Video(name, name, 0.0, 10.0, 0.0, 0.0, 25.0) for name in ("a.mp4", "b.mp4")]
    >>> pair = Sampler(videos, seed=0, sample_rate=8000).pair(0)
    >>> pair.match == (pair.audio == pair.pictures)
    True
    """

    def __init__(
        self,
        videos: Sequence[Video],
        *,
        seed: int,
        sample_rate: int,
        distractors: int = 1,
        augment: bool = False,
    ):
        if len(videos) < 2:
            raise L3PruneError(
                f"pairs that do not match need two videos at least, and there are {len(videos)}"
            )
        if distractors >= len(videos):
            raise ParameterError(
                f"distractors={distractors}, but there are only {len(videos) - 1} other videos; "
                "give no more than that"
            )
        self.videos = videos
        self.sample_rate = sample_rate
        self._seed = seed
        self._distractors = distractors
        self._augment = augment

    def pair(self, number: int, draw: int = 0) -> Pair:
        """Pair `number`; another `draw` is another pair in its place."""
        generator = keyed_generator(self._seed, _PAIR, number, draw)
        twos = len(self.videos) * self._distractors
        passes, place = divmod(number, twos)
        # What cannot be decoded must not come again.
        two = generator.integers(twos) if draw else _order(self._seed, twos, passes)[place]
        first, distractor = divmod(int(two), self._distractors)
        both = first, self._partners(first)[distractor]
        # The same number of draws whatever comes of them: options change only what they are about.
        coins = generator.integers(2, size=4)
        chances = generator.random(8)
        audio, pictures = both[coins[0]], both[coins[1]]
        audio_time = self._start(audio, chances[0])
        seen = audio_time if pictures == audio else self._start(pictures, chances[1])
        length = min(self.videos[pictures].end - seen, 1.0)
        augmentation = Augmentation(
            gain=float(chances[5]),
            flip=bool(coins[2]),
            saturation=_between(SATURATION, chances[6]),
            brightness=_between(BRIGHTNESS, chances[7]),
            saturation_first=bool(coins[3]),
        )
        return Pair(
            audio,
            pictures,
            audio_time,
            seen + float(chances[2]) * length,
            (float(chances[3]), float(chances[4])),
            augmentation if self._augment else None,
        )

    def _partners(self, video: int) -> list[int]:
        generator = keyed_generator(self._seed, _PARTNERS, video)
        others = generator.choice(len(self.videos) - 1, self._distractors, replace=False)
        return [int(other) + (other >= video) for other in others]

    def _start(self, number: int, chance: float) -> float:
        """Where a second of a video begins: anywhere, or at the start of one that is shorter."""
        video = self.videos[number]
        places = math.floor((video.end - video.start - 1) * self.sample_rate) + 1
        return video.start + int(chance * max(places, 1)) / self.sample_rate


@functools.lru_cache(maxsize=2)
def _order(seed: int, twos: int, passes: int) -> np.ndarray:
    return keyed_generator(seed, _ORDER, passes).permutation(twos)


def _between(limits: tuple[float, float], chance: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(chance)


def make_pairs(
    sampler: Sampler, numbers: Iterable[int], write: Callable[[int, dict[str, Any]], None]
) -> list[Failure]:
    """Decode pairs, file by file and in the order of time, which is the quickest.

    Parameters
    ----------
    sampler : Sampler
    numbers : iterable of int
        Which pairs.
    write : callable (int, dict)
        Takes a pair's number and values of it by name, the sound's and the picture's apart. What
        is written later stands.

    Returns
    -------
    failures : list of Failure
        Draws that could not be decoded; others took their place.

    Raises
    ------
    L3PruneError
        A pair failed `MAX_DRAWS` times.

    Examples
    --------
    >>> videos = [Video(name, name, 0.0, 10.0, 0.0, 0.0, 25.0) for name in ("a.mp4", "b.mp4")]
    >>> sampler = Sampler(videos, seed=0, sample_rate=8000)
    >>> make_pairs(sampler, [0], lambda number, values: None)
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: 50 draws in a row cannot be decoded, the last of ...
    """
    failures: list[Failure] = []
    pairs = {number: sampler.pair(number) for number in numbers}
    for draw in range(1, MAX_DRAWS + 1):
        failed: dict[int, str] = {}
        for kind in ("audio", "video"):
            for path, wanted in _by_file(sampler.videos, pairs, kind).items():
                reasons = _decode(sampler, path, kind, wanted, write)
                failures += [Failure(path, reason) for reason in reasons.values()]
                failed |= reasons
        if not failed:
            return failures
        pairs = {number: sampler.pair(number, draw) for number in failed}
    last = failures[-1]
    raise L3PruneError(
        f"{MAX_DRAWS} draws in a row cannot be decoded, the last of {last.path}: {last.reason}"
    )


def _by_file(
    videos: Sequence[Video], pairs: dict[int, Pair], kind: str
) -> dict[str, dict[int, Pair]]:
    """Pairs by the file that they need, and in the order of time."""
    files: dict[str, dict[int, Pair]] = {}
    if kind == "audio":
        for number, pair in sorted(pairs.items(), key=lambda item: item[1].audio_time):
            files.setdefault(videos[pair.audio].audio, {})[number] = pair
    else:
        for number, pair in sorted(pairs.items(), key=lambda item: item[1].picture_time):
            files.setdefault(videos[pair.pictures].pictures, {})[number] = pair
    return files


def _decode(
    sampler: Sampler,
    path: str,
    kind: str,
    pairs: dict[int, Pair],
    write: Callable[[int, dict[str, Any]], None],
) -> dict[int, str]:
    """Write what pairs need of one file; the reasons of those that fail."""
    reasons: dict[int, str] = {}
    try:
        track = Track(path, kind)
    except VideoError as error:
        return dict.fromkeys(pairs, str(error))
    with track:
        for number, pair in pairs.items():
            try:
                values = (
                    _hear(sampler, track, pair) if kind == "audio" else _see(sampler, track, pair)
                )
            except VideoError as error:
                reasons[number] = str(error)
            else:
                write(number, values)
    return reasons


def _hear(sampler: Sampler, track: Track, pair: Pair) -> dict[str, Any]:
    video = sampler.videos[pair.audio]
    sound = track.second(pair.audio_time, sampler.sample_rate)
    gain = 1.0
    if pair.augmentation is not None:
        sound, gain = change_gain(sound, pair.augmentation.gain)
    return {
        "audio": sound[np.newaxis],
        "label": [not pair.match, pair.match],
        "audio_file": os.fsencode(Path(video.audio).name),
        "audio_start_sample_idx": round(
            (pair.audio_time - video.audio_start) * sampler.sample_rate
        ),
        "audio_gain": gain,
        "audio_time": pair.audio_time,
    }


def _see(sampler: Sampler, track: Track, pair: Pair) -> dict[str, Any]:
    video = sampler.videos[pair.pictures]
    shown, frame = track.picture(pair.picture_time)
    picture = scaled_picture(frame)
    x, y = (
        int(chance * (side - IMAGE_SIZE + 1))
        for chance, side in zip(pair.crop, (picture.shape[1], picture.shape[0]), strict=True)
    )
    picture = picture[y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]
    change = pair.augmentation or Augmentation(0.0, False, 1.0, 0.0, True)
    if pair.augmentation is not None:
        picture = change_picture(picture, change)
    return {
        "video": picture,
        "video_file": os.fsencode(Path(video.pictures).name),
        "video_start_frame_idx": round((shown - video.picture_start) * video.frame_rate),
        "video_bounding_box_start_x": x,
        "video_bounding_box_start_y": y,
        "video_horizontal_flip": change.flip,
        "video_saturation_factor": change.saturation,
        "video_brightness_delta": change.brightness,
        "video_time": shown,
    }


def change_gain(sound: np.ndarray, chance: float) -> tuple[np.ndarray, float]:
    """Sound made louder or softer, but never so loud that it clips.

    Parameters
    ----------
    sound : np.ndarray, (samples,) int16
    chance : float
        Where the gain lies between the least and the largest one allowed, in [0, 1).

    Returns
    -------
    sound : np.ndarray, (samples,) int16
    gain : float

    Examples
    --------
    >>> change_gain(np.array([100, -100], np.int16), 0.75)
    (array([ 105, -105], dtype=int16), 1.05)
    """
    peak = int(np.abs(sound.astype(np.int32)).max())
    largest = min(GAIN[1], 32767 / peak) if peak else GAIN[1]
    gain = round(_between((GAIN[0], largest), chance), 12)
    return np.round(sound * gain).astype(np.int16), gain


def change_picture(picture: np.ndarray, change: Augmentation) -> np.ndarray:
    """A picture with other colours and maybe mirrored, (height, width, 3) uint8.

    Examples
    --------
    >>> red = np.array([[[200, 100, 100]]], np.uint8)
    >>> change_picture(red, Augmentation(0.0, False, 0.5, 0.1, True))
    array([[[226, 176, 176]]], dtype=uint8)
    """
    values = picture.astype(np.float32)
    if change.flip:
        values = values[:, ::-1]
    for saturate in (change.saturation_first, not change.saturation_first):
        if saturate:
            values = _saturate(values, change.saturation)
        else:
            values = np.clip(values + np.float32(255 * change.brightness), 0, 255)
    return np.round(values).astype(np.uint8)


def _saturate(values: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the saturation of HSV, which is at most 1; hue and value stay.

    Hue and value do not change when all channels move away from the largest one alike, and the
    saturation is 1 where the least one has come to 0.
    """
    # Channel by channel: NumPy is slow at many short rows.
    channels = [values[..., channel : channel + 1] for channel in range(3)]
    largest = functools.reduce(np.maximum, channels)
    spread = largest - functools.reduce(np.minimum, channels)
    limit = np.divide(largest, spread, out=np.full_like(spread, np.inf), where=spread > 0)
    return largest - (largest - values) * np.minimum(np.float32(factor), limit)
