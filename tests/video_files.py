"""Small real videos for tests, written by PyAV: what they show and sound like tells the time."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np

RATE = 16000

#: In Hz: where a video's sound begins, one for each colour, and how fast it rises.
TONES = (400, 1600, 2800)
RISE = 100


def write_video(
    path,
    *,
    seconds=3.0,
    fps=10,
    size=(64, 48),
    paint=None,
    sound=None,
    times=None,
    codecs=("libx264", "aac"),
    options=None,
    cover=False,
):
    """A video; `paint` (time -> colour or picture) and `sound` (samples) None leave a track out. A
    `cover` is a single picture that goes with a recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    with av.open(str(path), "w", options=options or {}) as container:
        pictures = tone = None
        if paint is not None:
            pictures = container.add_stream(codecs[0], rate=fps)
            pictures.width, pictures.height = width, height
            pictures.pix_fmt = "yuvj420p" if codecs[0] == "mjpeg" else "yuv420p"
            if cover:
                pictures.disposition = av.stream.Disposition.attached_pic
            # Two seconds from key frame to key frame: a second mostly begins between them.
            pictures.gop_size = 2 * fps
            pictures.codec_context.time_base = Fraction(1, 1000 if times is not None else fps)
        if sound is not None:
            rate = 48000 if codecs[1] == "libopus" else RATE
            tone = container.add_stream(codecs[1], rate=rate, layout="mono")
        if pictures is not None:
            when = np.arange(round(seconds * fps)) / fps if times is None else times
            for time in when:
                picture = np.empty((height, width, 3), np.uint8)
                picture[:] = paint(float(time))
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.time_base = pictures.codec_context.time_base
                frame.pts = round(time / frame.time_base)
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode(None))
        if tone is not None:
            if rate != RATE:
                sound = np.repeat(sound, rate // RATE)
            kind, values = "fltp", np.asarray(sound, np.float32)
            if codecs[1].startswith("pcm"):
                kind, values = "s16", (values * 32767).astype(np.int16)
            wave = av.AudioFrame.from_ndarray(values[np.newaxis], format=kind, layout="mono")
            wave.sample_rate = rate
            container.mux(tone.encode(wave))
            container.mux(tone.encode(None))
    return path


def colour_of(video, time):
    """Video 0 is red, 1 green, 2 blue; the colour grows with the time, by 30 a second."""
    colour = np.zeros(3)
    colour[video] = 30 + 30 * time
    return colour


def tone_of(video, seconds):
    """A tone that rises with the time, its range the video's own."""
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.4 * np.sin(2 * np.pi * (TONES[video] * time + RISE * time**2 / 2))


def write_clock(path, video, seconds=5.0, **options):
    """A video that tells in colours and in tones which one it is and what time it is."""
    return write_video(
        path,
        seconds=seconds,
        paint=lambda time: colour_of(video, time),
        sound=tone_of(video, seconds),
        **options,
    )


def read_colour(picture):
    """Which video a picture (…, 3) uint8 is of, and the time in it."""
    mean = picture.reshape(-1, 3).mean(axis=0)
    video = int(mean.argmax())
    return video, (mean[video] - 30) / 30


def read_tone(sound, sample_rate):
    """Which video a second of sound is of, and the time at which the second begins."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    frequencies = np.fft.rfftfreq(len(sound), 1 / sample_rate)
    centre = (power * frequencies).sum() / power.sum()
    video = int(np.searchsorted(TONES, centre, side="right")) - 1
    return video, (centre - TONES[video]) / RISE - 0.5


def turn(path, degrees):
    """Write into an MP4 file that it is to be shown turned clockwise, as telephones do."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    values = (cosine, sine, 0, -sine, cosine, 0, 0, 0)
    data[matrix : matrix + 32] = struct.pack(">8i", *(value << 16 for value in values))
    path.write_bytes(data)
    return path
