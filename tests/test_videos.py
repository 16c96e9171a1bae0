"""Videos by PyAV: any second of sound, the picture at any time, and what bad files lack."""

import av
import numpy as np
import pytest

from l3prune.datasets.videos import (
    MAX_ASPECT,
    SHORTER_SIDE,
    Track,
    VideoError,
    probe,
    scaled_picture,
    scaled_size,
)
from tests.video_files import (
    RATE,
    RISE,
    TONES,
    colour_of,
    read_colour,
    read_tone,
    tone_of,
    turn,
    write_clock,
    write_video,
)

CONTAINERS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "aac"),
    "webm": ("libvpx", "libopus"),
    "mov": ("libx264", "pcm_s16le"),
    "avi": ("mpeg4", "libmp3lame"),
}


@pytest.fixture(scope="module")
def clocks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clocks")
    return {
        ending: write_clock(folder / f"clock.{ending}", 1, codecs=codecs)
        for ending, codecs in CONTAINERS.items()
    }


@pytest.fixture
def clock(clocks):
    return clocks["mp4"]


def picture_at(path, time):
    with Track(path, "video") as track:
        shown, frame = track.picture(time)
        return shown, scaled_picture(frame)


def second_at(path, time, rate=8000):
    with Track(path, "audio") as track:
        return track.second(time, rate)


@pytest.mark.parametrize("ending", CONTAINERS)
def test_extent_of_a_video(clocks, ending):
    video = probe(clocks[ending], clocks[ending])
    # Matroska begins with the samples that an AAC coder puts in front.
    assert video.start == pytest.approx(0, abs=0.07)
    assert video.end == pytest.approx(5, abs=0.1)
    assert video.frame_rate == pytest.approx(10)
    assert video.audio == video.pictures == str(clocks[ending])


@pytest.mark.parametrize("ending", CONTAINERS)
def test_any_second_of_sound(clocks, ending):
    with Track(clocks[ending], "audio") as track:
        # Not in order, so that each is sought.
        for time in (2.3, 0.0, 3.9, 1.1234, 0.15):
            second = track.second(time, 8000)
            assert second.shape == (8000,)
            assert second.dtype == np.int16
            video, heard = read_tone(second, 8000)
            assert video == 1
            assert heard == pytest.approx(time, abs=0.07), time


def test_seconds_are_placed_to_the_sample(tmp_path):
    """Without a codec that changes samples: a click comes where it was."""
    sound = np.zeros(3 * RATE)
    places = [1000, 17000, 40000]
    sound[places] = 0.9
    path = write_video(
        tmp_path / "click.mov",
        paint=lambda time: 128,
        sound=sound,
        codecs=CONTAINERS["mov"],
    )
    for start in (0, 1234, 16999, 17000, 17001, 30000):
        second = second_at(path, start / RATE, RATE)
        expected = np.zeros(RATE, np.int16)
        part = np.round(sound[start : start + RATE] * 32767)
        expected[: len(part)] = part
        np.testing.assert_allclose(second, expected, atol=1)


def test_resampling_looks_beyond_the_second(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)
    path = write_video(
        tmp_path / "a.mov", paint=lambda time: 0, sound=tone, codecs=CONTAINERS["mov"]
    )
    second = second_at(path, 1.0, 8000) / 32768
    np.testing.assert_allclose(second, tone[RATE : 2 * RATE : 2], atol=2e-3)


def test_channels_are_averaged(tmp_path):
    import av

    path = tmp_path / "stereo.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="stereo")
        values = np.tile(np.array([1000, -200], np.int16), 16000)[np.newaxis]
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout="stereo")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert set(second_at(path, 0.5)) == {400}


def test_sound_beyond_the_end_is_zero(clock):
    second = second_at(clock, 4.5)
    assert np.abs(second[:3500]).max() > 9000
    assert not second[5000:].any()


@pytest.mark.parametrize("ending", CONTAINERS)
def test_picture_at_any_time(clocks, ending):
    with Track(clocks[ending], "video") as track:
        for time in (2.3, 0.0, 4.85, 1.1234, 1.2, 1.21, 4.0):
            shown, frame = track.picture(time)
            assert 0 <= time - shown < 0.1 + 1e-6, time
            video, seen = read_colour(scaled_picture(frame))
            assert video == 1
            assert seen == pytest.approx(shown, abs=0.2)


def test_rising_times_give_what_seeking_gives(clock):
    times = np.arange(0, 4.9, 0.37)
    with Track(clock, "video") as track:
        onward = [scaled_picture(track.picture(time)[1]) for time in times]
    for time, picture in zip(times, onward, strict=True):
        np.testing.assert_array_equal(picture, picture_at(clock, time)[1])


def test_reading_on_does_not_decode_again(clock, monkeypatch):
    """Pictures near each other take one search; those far away, another."""
    sought = []
    with Track(clock, "video") as track:
        seek = track._seek
        monkeypatch.setattr(track, "_seek", lambda time: sought.append(time) or seek(time))
        for time in (0.5, 0.9, 1.4, 1.4, 4.0, 3.0):
            track.picture(time)
    assert sought == [0.5, 4.0, 3.0]


def test_variable_frame_rate_goes_by_time(tmp_path):
    """Frames come when they come: one of them stays for more than two seconds."""
    times = [0, 0.1, 0.15, 2.6, 2.65, 4.0]
    path = write_video(
        tmp_path / "vfr.mp4",
        times=times,
        paint=lambda time: colour_of(2, time),
        sound=tone_of(2, 5),
    )
    for time, expected in [(0.05, 0), (0.12, 0.1), (1.0, 0.15), (2.59, 0.15), (2.7, 2.65)]:
        shown, picture = picture_at(path, time)
        assert shown == pytest.approx(expected, abs=2e-3), time
        assert read_colour(picture)[1] == pytest.approx(expected, abs=0.2)
    assert probe(path, path).end >= 4.0


@pytest.mark.parametrize(("degrees", "side"), [(90, "top"), (180, "right"), (270, "bottom")])
def test_turned_pictures_stand_upright(tmp_path, degrees, side):
    half = np.zeros((64, 96, 3), np.uint8)
    half[:, :48, 0] = 255  # red on the left
    half[:, 48:, 2] = 255
    path = write_video(
        tmp_path / "a.mp4", size=(96, 64), paint=lambda time: half, sound=tone_of(0, 3)
    )
    _, picture = picture_at(turn(path, degrees), 1.0)
    height, width = picture.shape[:2]
    assert (height > width) == (degrees != 180)
    part = {
        "top": picture[: height // 2 - 9],
        "right": picture[:, width // 2 + 9 :],
        "bottom": picture[height // 2 + 9 :],
    }[side]
    assert part[..., 0].min() > 200
    assert part[..., 2].max() < 50


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (341, 256)),
        ((480, 640), (256, 341)),
        ((16, 8), (512, 256)),
        ((2, 2), (256, 256)),
    ],
)
def test_shorter_side_is_scaled(tmp_path, size, expected):
    assert scaled_size(*size) == expected
    assert min(expected) == SHORTER_SIDE
    path = write_video(
        tmp_path / "a.mp4",
        size=size,
        seconds=0.5,
        paint=lambda time: (10, 200, 30),
        sound=tone_of(0, 1),
    )
    _, picture = picture_at(path, 0.2)
    assert picture.shape == (expected[1], expected[0], 3)
    np.testing.assert_allclose(
        picture.reshape(-1, 3), [[10, 200, 30]] * picture[..., 0].size, atol=9
    )


def test_very_long_frames_are_refused(tmp_path):
    assert scaled_size(2 * MAX_ASPECT, 2) == (SHORTER_SIDE * MAX_ASPECT, SHORTER_SIDE)
    path = write_video(tmp_path / "a.mp4", size=(66, 2), paint=lambda time: 0, sound=tone_of(0, 3))
    with pytest.raises(VideoError, match="frames of 66 x 2 pixels; one side may be at most 32"):
        probe(path, path)


def test_a_single_picture_is_shown_as_long_as_there_is_sound(tmp_path):
    path = write_video(
        tmp_path / "one.mp4", times=[0], paint=lambda time: (200, 0, 0), sound=tone_of(0, 4)
    )
    video = probe(path, path)
    assert video.end == pytest.approx(4, abs=0.1)
    assert read_colour(picture_at(path, 3.5)[1])[0] == 0


def test_pictures_that_end_early_bound_the_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", seconds=2, paint=lambda time: 0, sound=tone_of(0, 6))
    assert probe(path, path).end == pytest.approx(2, abs=0.05)
    path = write_video(tmp_path / "b.mp4", seconds=6, paint=lambda time: 0, sound=tone_of(0, 2))
    assert probe(path, path).end == pytest.approx(2, abs=0.1)


def test_sound_and_pictures_of_two_files(tmp_path):
    sound = write_video(tmp_path / "a.mkv", sound=tone_of(2, 4))
    pictures = write_video(tmp_path / "v.mp4", seconds=3, paint=lambda time: 0)
    video = probe(sound, pictures)
    assert (video.audio, video.pictures) == (str(sound), str(pictures))
    assert video.end == pytest.approx(3, abs=0.05)


def test_a_silent_track_is_a_track(tmp_path):
    path = write_video(tmp_path / "a.mp4", paint=lambda time: 0, sound=np.zeros(3 * RATE))
    assert probe(path, path).end == pytest.approx(3, abs=0.1)
    assert not second_at(path, 1.0).any()


def write_text(path):
    path.write_text("no video")
    return path


BAD = {
    "no audio": (lambda p: write_video(p, paint=lambda time: 0), "no audio track"),
    "no video": (lambda p: write_video(p, sound=tone_of(0, 2)), "no video track"),
    "text": (write_text, r"cannot be opened \(Invalid data found"),
    "empty": (lambda p: p.touch() or p, "cannot be opened"),
    "missing": (lambda p: p, "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_have_a_reason(tmp_path, case):
    write, reason = BAD[case]
    path = write(tmp_path / "bad.mp4")
    with pytest.raises(VideoError, match=reason):
        probe(path, path)


def test_cut_header_cannot_be_opened(tmp_path, clock):
    path = tmp_path / "cut.mp4"
    path.write_bytes(clock.read_bytes()[:-500])
    with pytest.raises(VideoError, match="cannot be opened"):
        probe(path, path)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_end_of_a_cut_file_is_where_it_was_cut(tmp_path, ending):
    whole = write_clock(
        tmp_path / f"whole.{ending}",
        0,
        codecs=CONTAINERS[ending],
        # The header first, as in downloads.
        options={"movflags": "faststart"} if ending == "mp4" else None,
    )
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(data[: int(0.6 * len(data))])
    video = probe(cut, cut)
    assert 1 < video.end < 4
    shown, _ = picture_at(cut, video.end - 0.01)
    assert video.end - shown < 0.15
    second = second_at(cut, video.end - 1)
    assert np.abs(second[:-300]).max() > 5000
    # Up to the very end, and without what half a packet would be.
    assert np.abs(second[-300:]).max() > 5000


def test_damage_in_the_middle_is_named_where_it_is(tmp_path, clock):
    data = bytearray(clock.read_bytes())
    start = data.index(b"mdat") + 8
    middle = start + (data.index(b"moov") - start) // 3
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    probe(path, path)
    reasons = []
    for kind, read in (("audio", second_at), ("video", picture_at)):
        for time in np.arange(0, 4, 0.25):
            try:
                read(path, time)
            except VideoError as error:
                reasons.append((kind, str(error)))
    assert reasons
    for _, reason in reasons:
        assert " s" in reason
        assert "\n" not in reason


def test_pictures_that_a_decoder_patched_up_are_refused(tmp_path):
    import av

    noise = np.random.default_rng(0).integers(0, 256, (30, 96, 128, 3), np.uint8)
    path = write_video(
        tmp_path / "a.mp4",
        size=(128, 96),
        paint=lambda time: noise[round(10 * time)],
        sound=tone_of(0, 3),
    )
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[4]
    data = bytearray(path.read_bytes())
    middle = packet.pos + packet.size // 2
    data[middle : middle + 40] = np.random.default_rng(1).bytes(40)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"the picture at 0\.5 s is damaged"):
        picture_at(path, 0.45)
    assert picture_at(path, 0.35)[0] == pytest.approx(0.3)


def test_metadata_in_another_encoding_does_not_matter(tmp_path):
    path = write_video(tmp_path / "a.mkv", paint=lambda time: 0, sound=tone_of(0, 2))
    data = path.read_bytes()
    place = data.rindex(b"Lavf")
    path.write_bytes(data[:place] + b"\xe9\xe8\xe7\xe6" + data[place + 4 :])
    assert probe(path, path).end > 1


def test_a_playlist_is_not_followed(tmp_path, clock):
    path = tmp_path / "list.mp4"
    path.write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/{clock.name}\n"
    )
    with pytest.raises(VideoError, match=r"cannot be opened|a playlist"):
        probe(path, path)
    (tmp_path / clock.name).write_bytes(clock.read_bytes())
    path.write_text(f"ffconcat version 1.0\nfile {clock.name}\n")
    with pytest.raises(VideoError, match="a playlist, which names other files"):
        probe(path, path)


def test_no_protocol_but_that_of_files_is_asked_for(clock, monkeypatch):
    # Where FFmpeg itself refuses the network, nothing else would tell.
    given = []
    opened = av.open

    def record(*args, **options):
        given.append(options["options"])
        return opened(*args, **options)

    monkeypatch.setattr(av, "open", record)
    probe(clock, clock)
    assert given
    assert all(options == {"protocol_whitelist": "file"} for options in given)


def test_a_cover_is_no_track_of_pictures(tmp_path):
    path = write_video(
        tmp_path / "a.mp4",
        seconds=1,
        fps=1,
        paint=lambda time: 0,
        sound=tone_of(0, 2),
        codecs=("mjpeg", "aac"),
        cover=True,
    )
    with pytest.raises(VideoError, match="no video track"):
        Track(path, "video")
    with Track(path, "audio") as track:
        assert track.extent().end > 1


def test_names_like_protocols_are_names(tmp_path, clock, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "12:30.mp4").write_bytes(clock.read_bytes())
    assert probe("12:30.mp4", "12:30.mp4").end > 4


def test_errors_of_decoding_are_not_printed(tmp_path, clock, capfd):
    test_damage_in_the_middle_is_named_where_it_is(tmp_path, clock)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_no_pyav(tmp_path, clock, monkeypatch):
    import sys

    from l3prune.errors import L3PruneError

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(L3PruneError, match=r"PyAV.* is not installed; .*pip install"):
        probe(clock, clock)


def test_the_clock_of_the_tests(clock):
    """The tones tell the time well enough to tell a second from the next."""
    for video in range(3):
        sound = tone_of(video, 5)
        for start in (0, 1.5, 4):
            part = sound[int(start * RATE) :][:RATE]
            assert read_tone(part, RATE) == (video, pytest.approx(start, abs=0.05))
    assert TONES[0] + 5 * RISE < TONES[1]
