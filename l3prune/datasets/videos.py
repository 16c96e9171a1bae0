"""Sound and pictures of video files by time, decoded by PyAV; no ffmpeg program is needed.

Times are seconds on a file's own clock, which begins where the file begins. Only what is asked for
is decoded, from the key frame before it, so memory does not grow with a video's length.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.audio import to_mono
from l3prune.errors import L3PruneError
from l3prune.files import is_file

#: Endings that a folder is searched for.
VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi")

#: Frames are scaled until their shorter side has so many pixels.
SHORTER_SIDE = 256

#: Longer frames than this many times their width are none of a camera, and fill the memory.
MAX_ASPECT = 32

#: Seconds of sound on either side of a second: what the resampler looks at beyond it.
_MARGIN = 0.1

#: Seconds decoded before those, because a decoder needs some packets to get into its stride.
_PREROLL = 0.1

#: The tail of a file that is looked at for the end of its tracks.
_TAIL_SECONDS = 2.0

#: Frames that lie so many seconds ahead are reached by decoding on, not by seeking.
_NEAR_SECONDS = 2.0


class VideoError(L3PruneError):
    """A video, or a moment of it, that cannot be used; the message is the reason.

    Examples
    --------
    >>> isinstance(VideoError("no audio track"), L3PruneError)
    True
    """


@dataclass(frozen=True)
class Video:
    """Where a video has both sound and pictures.

    Attributes
    ----------
    audio, pictures : str
        Paths of the files with the sound and with the pictures; mostly the same.
    start, end : float
        Seconds between which there are both. A single picture is shown as long as the sound lasts.
    audio_start, picture_start : float
        Seconds at which the first sample and the first frame come.
    frame_rate : float
        Mean frames a second; 0 where the file does not tell.

    Examples
    --------
    >>> Video("a.mp4", "a.mp4", 0.0, 9.5, 0.0, 0.0, 25.0).end
    9.5
    """

    audio: str
    pictures: str
    start: float
    end: float
    audio_start: float
    picture_start: float
    frame_rate: float


#: What FFmpeg calls files that name other ones.
PLAYLISTS = ("concat", "dash", "hls", "imf", "sdp")


def load_av() -> Any:
    """PyAV, imported only where a video is read or written.

    Raises
    ------
    L3PruneError
        It is not installed.

    Examples
    --------
    >>> load_av().__name__
    'av'
    """
    try:
        import av
    except ImportError as error:
        raise L3PruneError(
            "PyAV, which decodes and encodes videos, is not installed; install it: "
            "pip install 'l3prune[full]'"
        ) from error
    return av


def probe(audio: str | os.PathLike[str], pictures: str | os.PathLike[str]) -> Video:
    """Look at a video: its tracks, their first frames, and where they really end.

    A header may promise more than the file holds, so the end is that of the last whole packet.

    Parameters
    ----------
    audio, pictures : str or path-like
        Files with the sound and with the pictures; the same one for a video.

    Returns
    -------
    video : Video

    Raises
    ------
    VideoError
        There is no such file or track, nothing can be decoded, or sound and pictures do not
        overlap in time.

    Examples
    --------
    >>> probe("/nowhere/a.mp4", "/nowhere/a.mp4")
    Traceback (most recent call last):
        ...
    l3prune.datasets.videos.VideoError: no such file
    """
    with Track(audio, "audio") as track:
        sound = track.extent()
    with Track(pictures, "video") as track:
        sight = track.extent()
        scaled_size(*track.size)
    start = max(sound.start, sight.start)
    end = min(sound.end, sight.end)
    if sight.single:
        start, end = sound.start, sound.end
    if not end > start:
        raise VideoError(
            f"sound ({sound.start:.1f} to {sound.end:.1f} s) and pictures ({sight.start:.1f} to "
            f"{sight.end:.1f} s) do not overlap in time"
        )
    return Video(
        os.fspath(audio), os.fspath(pictures), start, end, sound.start, sight.start, sight.rate
    )


def scaled_size(width: int, height: int) -> tuple[int, int]:
    """A frame's size (width, height) once its shorter side is scaled to `SHORTER_SIDE`.

    Raises
    ------
    VideoError
        The longer side is more than `MAX_ASPECT` times the shorter one.

    Examples
    --------
    >>> scaled_size(1920, 1080)
    (455, 256)
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise VideoError(
            f"frames of {width} x {height} pixels; one side may be at most {MAX_ASPECT} times "
            "the other"
        )
    scale = SHORTER_SIDE / min(width, height)
    return round(width * scale), round(height * scale)


def scaled_picture(frame: Any) -> np.ndarray:
    """A decoded frame, scaled to `SHORTER_SIDE`, the right way up: (height, width, 3) uint8 RGB.

    Raises
    ------
    VideoError
        It has no size to be scaled to, or its pixels are of a kind that cannot be converted.

    Examples
    --------
    >>> import av
    >>> scaled_picture(av.VideoFrame.from_ndarray(np.zeros((120, 160, 3), np.uint8))).shape
    (256, 341, 3)
    """
    width, height = scaled_size(frame.width, frame.height)
    with _reasons("a picture cannot be converted"):
        # Named, so that no other version's default makes other pictures.
        scaled = frame.reformat(width, height, "rgb24", interpolation="BILINEAR")
        picture = scaled.to_ndarray()
    # The angle says how far to turn it counterclockwise; telephones write multiples of 90.
    return np.rot90(picture, round(frame.rotation / 90) % 4)


@dataclass(frozen=True)
class Extent:
    """What a track holds.

    Attributes
    ----------
    start, end : float
        Seconds.
    single : bool
        It is one frame.
    rate : float
        Mean frames a second of a track of pictures; 0 where the file does not tell.

    Examples
    --------
    >>> Extent(0.0, 0.04, True, 25.0).single
    True
    """

    start: float
    end: float
    single: bool
    rate: float


class Track:
    """The sound or the pictures of a file, open for reading.

    Parameters
    ----------
    path : str or path-like
    kind : str
        "audio" or "video".

    Raises
    ------
    VideoError
        The file cannot be opened, or has no such track.

    Examples
    --------
    >>> Track("/nowhere/a.mp4", "audio")
    Traceback (most recent call last):
        ...
    l3prune.datasets.videos.VideoError: no such file
    """

    def __init__(self, path: str | os.PathLike[str], kind: str):
        # Absolute: what stands before a colon in a name would be taken for a protocol.
        self._path = Path(path).absolute()
        self._kind = kind
        self._container: Any = None
        self._stream: Any = None
        self._clear()
        if not is_file(self._path):
            raise VideoError("no such file")
        self._open()

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._clear()
        if self._container is not None:
            self._container.close()
            self._container = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a track of pictures."""
        return self._stream.codec_context.width, self._stream.codec_context.height

    def extent(self) -> Extent:
        """What the track holds; its first frame is decoded, its end is looked for.

        Raises
        ------
        VideoError
            Nothing can be decoded.
        """
        what = "sound" if self._kind == "audio" else "picture"
        with _reasons(f"no {what} can be decoded"):
            first = next(self._frames(None), None)
        if first is None:
            raise VideoError(f"no {what} can be decoded")
        start = self._time(first)
        rate = float(getattr(self._stream, "average_rate", None) or 0)
        last, duration = self._last_packet()
        return Extent(
            start,
            max(last + (duration or (1 / rate if rate else 0)), start),
            single=self._kind == "video" and last <= start,
            rate=rate,
        )

    def second(self, start: float, sample_rate: int) -> np.ndarray:
        """A second of the sound, mean over channels, (sample_rate,) int16.

        Zeros stand where the track has begun not yet or has ended.

        Raises
        ------
        VideoError
            Nothing can be decoded there.
        """
        with _reasons(f"no sound can be decoded at {start:.1f} s"):
            sound, rate = self._sound(start)
            mono = to_mono(sound, rate, sample_rate)
        first = round(_MARGIN * sample_rate)
        second = np.zeros(sample_rate, np.float32)
        part = mono[first : first + sample_rate]
        second[: len(part)] = part
        return np.clip(np.round(second * 32768), -32768, 32767).astype(np.int16)

    def picture(self, time: float) -> tuple[float, Any]:
        """The frame that is shown at a time, and when it came on; quickest in rising order.

        The last frame stays, and the first one is there before its time.

        Raises
        ------
        VideoError
            Nothing can be decoded there.
        """
        with _reasons(f"no picture can be decoded at {time:.1f} s"):
            try:
                frame = self._shown(time)
            except BaseException:
                self._clear()
                raise
        return self._time(frame), frame

    def _open(self) -> None:
        av = load_av()
        if self._container is not None:
            self._container.close()
        with _reasons("cannot be opened"):
            self._container = av.open(
                str(self._path),
                # A playlist in a video's clothes must not make us ask the network for its parts.
                options={"protocol_whitelist": "file"},
                metadata_errors="replace",
            )
            if self._container.format.name in PLAYLISTS:
                raise VideoError("a playlist, which names other files")
            streams = [
                stream
                for stream in getattr(self._container.streams, self._kind)
                # The cover of a recording is kept as a track of pictures.
                if not stream.disposition & av.stream.Disposition.attached_pic
            ]
            if not streams:
                raise VideoError(f"no {self._kind} track")
            self._stream = streams[0]
            if self._stream.codec_context is None:
                raise VideoError(f"the codec of the {self._kind} track is unknown")
            # Workers share the cores; and a decoder's threads hold some frames each.
            self._stream.codec_context.thread_count = 1
        self._zero = (self._container.start_time or 0) / av.time_base

    def _clear(self) -> None:
        """Forget the frames decoded last; the next picture is sought anew."""
        self._decoded: Iterator[Any] = iter(())
        self._now: Any = None
        self._next: Any = None

    def _time(self, frame_or_packet: Any) -> float:
        stamp = frame_or_packet.pts
        if stamp is None:  # AVI has no others
            stamp = frame_or_packet.dts
        if stamp is None:
            raise VideoError(f"frames of the {self._kind} track have no times")
        return float(stamp * self._stream.time_base) - self._zero

    def _seek(self, time: float | None) -> bool:
        """Go to the key frame before `time`, or to the beginning; whether that was possible."""
        av = load_av()
        if time is None:
            self._open()
            return True
        stamp = int((time + self._zero) / self._stream.time_base)
        try:
            self._container.seek(max(stamp, self._stream.start_time or 0), stream=self._stream)
        except av.error.FFmpegError:  # a file without an index, or a damaged one
            return False
        return True

    def _frames(self, time: float | None) -> Iterator[Any]:
        """Decoded frames, from one at or before `time`, or else from the first on."""
        if time is not None and self._seek(time):
            frames = self._decoding()
            first = next(frames, None)
            # Some formats land behind what was asked for.
            if first is not None and self._time(first) <= time:
                yield first
                yield from frames
                return
        self._seek(None)
        yield from self._decoding()

    def _decoding(self) -> Iterator[Any]:
        """Frames from where the file stands."""
        for packet in self._container.demux(self._stream):
            # The last one of a file that was cut is half a packet.
            if not packet.is_corrupt:
                yield from packet.decode()

    def _last_packet(self) -> tuple[float, float]:
        """Time of the last whole packet, and how long it lasts (0 where the file does not tell)."""
        av = load_av()
        length = self._container.duration
        tails = [] if length is None else [length / av.time_base - _TAIL_SECONDS]
        for time in (*tails, None):
            last: tuple[float, float] | None = None
            # What is cut off ends in an error or a broken packet, what is whole does not.
            with contextlib.suppress(av.error.FFmpegError):
                if not self._seek(time):
                    continue
                for packet in self._container.demux(self._stream):
                    if packet.is_corrupt:
                        break
                    if packet.pts is None and packet.dts is None:  # the one that flushes
                        continue
                    duration = float((packet.duration or 0) * self._stream.time_base)
                    last = max(last or (0.0, 0.0), (self._time(packet), duration))
            if last is not None:
                return last
        raise VideoError(f"the {self._kind} track is empty")

    def _sound(self, start: float) -> tuple[np.ndarray, int]:
        """The second from `start` on with a margin on both sides, and its own sample rate."""
        sound, rate, heard = np.zeros(0, np.float32), 0, False
        origin = start - _MARGIN
        for frame in self._frames(origin - _PREROLL):
            time = self._time(frame)
            if time >= start + 1 + _MARGIN:
                break
            if not rate:
                rate = frame.sample_rate
                sound = np.zeros(round((1 + 2 * _MARGIN) * rate), np.float32)
            if frame.sample_rate != rate:
                raise VideoError(f"the sample rate changes at {time:.1f} s")
            place = round((time - origin) * rate)
            skipped = max(-place, 0)
            part = _mono(frame)[skipped:][: max(len(sound) - place - skipped, 0)]
            if not len(part):
                continue
            sound[place + skipped : place + skipped + len(part)] = part
            heard = heard or (time < start + 1 and time + frame.samples / rate > start)
        if not heard:
            raise VideoError(f"no sound can be decoded at {start:.1f} s")
        return sound, rate

    def _shown(self, time: float) -> Any:
        near = self._now is not None and 0 <= time - self._time(self._now) <= _NEAR_SECONDS
        if not near:
            self._decoded = self._frames(time)
            now = next(self._decoded, None)
            if now is None:
                raise VideoError(f"no picture can be decoded at {time:.1f} s")
            self._now, self._next = now, next(self._decoded, None)
        while self._next is not None and self._time(self._next) <= time:
            self._now, self._next = self._next, next(self._decoded, None)
        if self._now.is_corrupt:
            raise VideoError(f"the picture at {time:.1f} s is damaged")
        return self._now


def _mono(frame: Any) -> np.ndarray:
    """Mean over the channels of decoded sound, (samples,) float32 in [-1, 1]."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(frame.samples, -1).T
    if values.dtype.kind == "u":
        values = values.astype(np.float32) / 128 - 1
    elif values.dtype.kind == "i":
        values = values.astype(np.float32) / 2 ** (8 * values.dtype.itemsize - 1)
    return values.mean(axis=0, dtype=np.float32)


@contextlib.contextmanager
def _reasons(what: str) -> Iterator[None]:
    """Decoders' errors as the reason why a video is not used."""
    av = load_av()
    try:
        yield
    except VideoError:
        raise
    except (av.error.FFmpegError, L3PruneError, OSError, ValueError, RuntimeError) as error:
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise VideoError(f"{what} ({detail})") from error
