"""What is in made-up videos: looks that differ, objects drawn where and when they sound."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from l3prune.datasets.looks import LOOKS, paint
from l3prune.datasets.sounds import CLASSES
from l3prune.datasets.stage import Format, cast, compose

FORM = Format(seconds=4.0, sample_rate=8000, size=64)
CAST = 40


@pytest.fixture(scope="module")
def composed():
    return [compose(2, number, FORM) for number in range(CAST)]


@pytest.fixture(scope="module")
def observed(composed):
    """For each video and each object that sounds: label, what is seen and what is heard of it."""
    return [
        [
            (thing.label, seen(video, thing), heard(thing))
            for thing in video.things
            if thing.sound.any()
        ]
        for video in composed
    ]


def traces(video, thing):
    """What is seen of one thing, (frames, size, size): differences from the empty backdrop."""
    alone = replace(video, things=(thing,))
    pictures = np.stack(list(alone.frames())).astype(float)
    return np.abs(pictures - video.backdrop).sum(axis=-1)


def seen(video, thing):
    """Sum of its traces in each picture, 1 where it is seen best, (frames,)."""
    energy = traces(video, thing).sum(axis=(1, 2))
    return energy / energy.max()


def heard(thing):
    """RMS of a thing's sound while each picture is shown, 1 at its loudest, (frames,)."""
    parts = np.array_split(thing.sound, FORM.frames)
    rms = np.sqrt([np.mean(part**2) for part in parts])
    return rms / rms.max()


def portrait(label, turn):
    """An object on grey, as differences from the grey, with a length of 1."""
    pixels = np.full((85, 85, 3), 128, np.uint8)
    colours = np.array([[255] * 3, [0] * 3], np.float32)
    paint(pixels, label, (42, 42), 40, turn=turn, colours=colours)
    difference = pixels[..., 0].astype(float).ravel() - 128
    return difference / np.linalg.norm(difference)


def test_every_class_has_a_look_and_one_look_has_no_sound():
    assert list(LOOKS) == [*CLASSES, "pebble"]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(LOOKS, 2)))
def test_looks_differ_without_their_colours_and_however_turned(one, other):
    turned = [portrait(other, turn) for turn in np.arange(0, 2 * np.pi, np.pi / 12)]
    assert max(turned @ portrait(one, 0)) < 0.75


@pytest.mark.parametrize("label", list(LOOKS))
def test_outlines_stay_within_their_radius(label):
    x, y = np.meshgrid(*[np.linspace(-1.5, 1.5, 301, dtype=np.float32)] * 2)
    inside, light = LOOKS[label](x, y)
    assert inside.shape == light.shape == x.shape
    assert inside.dtype == light.dtype == np.float32
    assert inside.max() > 0.08
    assert (inside[np.hypot(x, y) > 1.01] <= 0).all()


def test_paint_cuts_off_what_lies_outside_the_picture():
    whole, colours = np.zeros((80, 80, 3), np.uint8), np.full((2, 3), 200, np.float32)
    part = np.zeros((40, 40, 3), np.uint8)
    paint(whole, "siren", (35.0, 40.0), 20, turn=1.0, colours=colours)
    paint(part, "siren", (15.0, 0.0), 20, turn=1.0, colours=colours)
    np.testing.assert_array_equal(part, whole[20:60, 40:])
    paint(part, "siren", (-90.0, 90.0), 20, turn=1.0, colours=colours)
    np.testing.assert_array_equal(part, whole[20:60, 40:])


def test_paint_blends_by_opacity():
    pixels = np.full((9, 9, 3), 100, np.uint8)
    colours = np.full((2, 3), 200, np.float32)
    paint(pixels, "pebble", (4, 4), 4, turn=0, colours=colours, opacity=0.25)
    assert pixels[4, 4].tolist() == [125] * 3
    assert pixels[0, 0].tolist() == [100] * 3


def test_classes_come_first_equally_often():
    firsts = [cast(5, number)[0][0] for number in range(30)]
    for block in range(3):
        assert sorted(firsts[10 * block : 10 * block + 10]) == sorted(CLASSES)
    assert firsts[:10] != firsts[10:20]


def test_casts_have_one_or_two_classes_and_sometimes_a_distractor():
    casts = [cast(0, number) for number in range(400)]
    assert all(len(set(labels)) == len(labels) <= 2 for labels, _ in casts)
    assert 0.22 < np.mean([len(labels) == 2 for labels, _ in casts]) < 0.38
    assert 0.22 < np.mean([distracted for _, distracted in casts]) < 0.38
    assert {labels[-1] for labels, _ in casts if len(labels) == 2} == set(CLASSES)


def test_things_are_those_of_the_cast(composed):
    for number, video in enumerate(composed):
        labels, distracted = cast(2, number)
        assert [thing.label for thing in video.things] == [*labels, *["pebble"] * distracted]


def test_pictures_and_samples_depend_on_their_numbers_only(composed):
    again = compose(2, 7, FORM)
    np.testing.assert_array_equal(again.samples, composed[7].samples)
    for one, other in zip(again.frames(), composed[7].frames(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_two_videos_are_alike(composed):
    videos = [*composed, *(compose(3, number, FORM) for number in range(4))]
    assert len({video.samples.tobytes() for video in videos}) == len(videos)
    assert len({video.backdrop.tobytes() for video in videos}) == len(videos)
    assert len({thing.colours.tobytes() for video in videos for thing in video.things}) == sum(
        len(video.things) for video in videos
    )


def test_videos_have_the_shapes_and_levels_of_their_format(composed):
    for video in composed:
        pictures = list(video.frames())
        assert len(pictures) == FORM.frames == 48
        assert {(picture.shape, picture.dtype) for picture in pictures} == {
            ((64, 64, 3), np.dtype(np.uint8))
        }
        assert video.samples.shape == (FORM.samples,) == (32000,)
        assert video.samples.dtype == np.float32
        assert 0.29 < np.abs(video.samples).max() < 0.91


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_shortest_videos_of_any_rate(rate):
    form = Format(seconds=0.1, sample_rate=rate, frame_rate=1, size=64)
    for number in range(12):
        video = compose(0, number, form)
        assert np.isfinite(video.samples).all()
        assert len(list(video.frames())) == 1


def test_objects_are_drawn_where_they_are(composed):
    rows, columns = np.mgrid[: FORM.size, : FORM.size]
    for video in composed:
        for thing in video.things:
            assert (thing.centre > thing.radius - 1).all()
            assert (thing.centre < FORM.size - thing.radius + 1).all()
            for trace, (row, column) in zip(traces(video, thing), thing.centre, strict=True):
                away = np.hypot(rows - row, columns - column)
                assert trace[away > thing.radius + 1.5].sum() == 0
                if trace.sum() > 0:
                    centre = np.array([(rows * trace).sum(), (columns * trace).sum()])
                    offset = np.hypot(*(centre / trace.sum() - (row, column)))
                    assert offset < 0.35 * thing.radius


def test_objects_move(composed):
    for video in composed:
        for thing in video.things:
            assert np.hypot(*np.ptp(thing.centre, axis=0)) > 0.02 * FORM.size
            assert np.ptp(thing.turn) > 0.05
            still = replace(thing, turn=np.zeros(FORM.frames))
            assert (traces(video, thing) != traces(video, still)).any() or thing.label == "siren"


def test_objects_of_one_video_keep_apart(composed):
    pairs = [video.things for video in composed if len(video.things) > 1]
    assert len(pairs) > 10
    apart = [np.hypot(*(one.centre - two.centre).mean(axis=0)) for one, two, *_ in pairs]
    assert np.median(apart) > 0.3 * FORM.size


def test_objects_are_drawn_while_they_sound(observed):
    """What is seen rises and falls with what is heard, over all objects and pictures."""
    things = list(itertools.chain(*observed))
    for label, energy, rms in things:
        assert (energy[rms > 0.05] > 0).all(), label
        # A second after its last sound, nothing is left of it.
        since = [rms[max(frame - FORM.frame_rate, 0) : frame + 1].max() for frame in range(48)]
        assert (energy[np.array(since) < 1e-3] == 0).all(), label
    energies, loudnesses = (np.concatenate([thing[part] for thing in things]) for part in (1, 2))
    assert np.corrcoef(energies, np.sqrt(loudnesses))[0, 1] > 0.85


def test_each_object_of_intermittent_sound_follows_it(observed):
    """Steady ones have nothing to follow."""
    found = {}
    for label, energy, rms in itertools.chain(*observed):
        if np.sqrt(rms).std() > 0.2:
            found.setdefault(label, []).append(np.corrcoef(energy, np.sqrt(rms))[0, 1])
    assert {"car_horn", "dog_bark", "gun_shot", "jackhammer"} <= set(found)
    assert min(map(min, found.values())) > 0.7


def test_second_object_comes_or_goes(observed):
    seconds = [things[1] for things in observed if len(things) == 2]
    assert len(seconds) > 5
    for label, energy, rms in seconds:
        assert 0.1 < np.mean(rms < 0.01) < 0.75, label
        assert (energy == 0).any(), label
    for end in (0, -1):
        assert {bool(energy[end]) for _, energy, _ in seconds} == {True, False}


def test_distractors_are_seen_and_not_heard(composed):
    pebbles = [
        (video, thing) for video in composed for thing in video.things if thing.label == "pebble"
    ]
    assert len(pebbles) > 5
    for video, thing in pebbles:
        assert not thing.sound.any()
        assert (seen(video, thing) > 0).all()


def test_what_is_heard_is_the_sound_of_the_things(composed):
    for video in composed:
        together = sum(thing.sound for thing in video.things)
        assert np.corrcoef(together, video.samples)[0, 1] > 0.8


def test_most_seconds_show_an_object_that_sounds_in_them(observed):
    """A random picture of a random second, as correspondence is learnt from."""
    rng = np.random.default_rng(0)
    shown = []
    for things in observed:
        for first in rng.integers(0, FORM.frames - FORM.frame_rate, 20):
            second = slice(first, first + FORM.frame_rate)
            picture = rng.integers(second.start, second.stop)
            shown.append(
                any(rms[second].max() > 0.2 and energy[picture] > 0.1 for _, energy, rms in things)
            )
    assert np.mean(shown) > 0.95
