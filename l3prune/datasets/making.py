"""Shards of pairs, made of videos by several processes; an interrupted run goes on.

The same settings and videos give the same files, whatever the number of processes.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l3prune.audio import SAMPLE_RATES
from l3prune.checks import check_whole
from l3prune.datasets.pairs import Failure, Sampler, make_pairs
from l3prune.datasets.shards import METADATA, new_shard, read_failures, write_failures
from l3prune.datasets.subsets import read_subset
from l3prune.datasets.videos import VIDEO_EXTENSIONS, Video, VideoError, load_av, probe
from l3prune.errors import L3PruneError
from l3prune.files import (
    check_names,
    claim_folder,
    find_files,
    is_file,
    locked,
    new_folder,
    write_table,
)
from l3prune.parallel import run_all

#: In a folder of shards: the settings, the videos they are made of, and those that are not used.
RECORD = "shards.json"
VIDEOS = "videos.csv"
SKIPPED = "skipped.csv"

#: Counted up when the same settings give other pairs.
VERSION = 1

#: Columns of `videos.csv` besides the files and why they are not used.
_NUMBERS = ("start", "end", "audio_start", "picture_start", "frame_rate")


@dataclass(frozen=True)
class Settings:
    """What shards are made with, besides the videos.

    Attributes
    ----------
    samples : int
        Pairs of all shards together.
    batch_size : int
        Pairs of one shard.
    sample_rate : int
        Hz.
    augment, include_metadata : bool
    distractors : int
        See `Sampler`.
    seed : int

    Raises
    ------
    ParameterError
        A number outside its range.

    Examples
    --------
    >>> Settings(samples=100, batch_size=64).shards
    2
    """

    samples: int
    batch_size: int = 64
    sample_rate: int = 48000
    augment: bool = False
    include_metadata: bool = False
    distractors: int = 1
    seed: int = 20171021

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "distractors"):
            check_whole(name, getattr(self, name), 1)
        check_whole("sample_rate", self.sample_rate, *SAMPLE_RATES)
        check_whole("seed", self.seed, 0)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.samples // self.batch_size)

    def pairs_of(self, shard: int) -> range:
        """Numbers of a shard's pairs; the last one may have fewer than the others."""
        return range(shard * self.batch_size, min((shard + 1) * self.batch_size, self.samples))

    def name_of(self, shard: int) -> str:
        """A shard's file name: seed, worker, number.

        The worker is always 0, since what is in a shard does not depend on who made it.
        """
        return f"{self.seed}_0_{shard}.h5"


@dataclass(frozen=True)
class Made:
    """What `make_shards` did.

    Attributes
    ----------
    shards, new : int
        In the folder, and of these made just now.
    videos : int
        That pairs were made of.
    skipped, damaged : int
        Videos that could not be used, or not everywhere.

    Examples
    --------
    >>> Made(shards=10, new=4, videos=50, skipped=1, damaged=0).new
    4
    """

    shards: int
    new: int
    videos: int
    skipped: int
    damaged: int


def make_shards(
    source: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    settings: Settings,
    *,
    workers: int = 1,
    quiet: bool = False,
) -> Made:
    """Make shards of videos, or finish a run that was interrupted.

    Parameters
    ----------
    source : str or path-like
        A folder of videos (mp4, mkv, webm, mov, avi, at any depth), or a csv of `subsets`.
    output_dir : str or path-like
        New, empty, or begun earlier with the same settings and videos. Gets the shards,
        `shards.json` (the settings), `videos.csv` (the videos used), and `skipped.csv` where some
        are not.
    settings : Settings
        The same settings and videos give the same bytes, with any number of workers (on one kind
        of processor, with the same versions of PyAV and h5py).
    workers : int
        Processes. With more than one, a script that calls this must keep what it runs below
        `if __name__ == "__main__":`. Each keeps one packed shard in memory.
    quiet : bool
        No progress bar.

    Returns
    -------
    made : Made

    Raises
    ------
    ParameterError
        The folder was begun with other settings, or there are more distractors than videos.
    L3PruneError
        No such source, fewer than two usable videos, another run is at work in the folder, or it
        cannot be written to.

    Examples
    --------
    >>> make_shards("/nowhere", "/tmp/shards", Settings(samples=64))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder or csv: /nowhere
    """
    check_whole("workers", workers, 1)
    load_av()
    files = find_videos(source)
    output_dir = Path(output_dir).absolute()
    with new_folder(output_dir):
        begun = (output_dir / RECORD).exists()
        claim_folder(output_dir, RECORD, _record(settings, files))
        try:
            with locked(output_dir):
                return _make_all(files, output_dir, settings, workers, quiet)
        except BaseException:
            if not begun and not (output_dir / VIDEOS).exists():
                # So that the folder can be taken again when videos or settings were wrong.
                for name in (RECORD, ".lock"):
                    (output_dir / name).unlink(missing_ok=True)
            raise


def find_videos(source: str | os.PathLike[str]) -> list[tuple[Path, Path]]:
    """Files with sound and files with pictures, of a folder of videos or a csv.

    Parameters
    ----------
    source : str or path-like
        See `make_shards`.

    Returns
    -------
    files : list of (pathlib.Path, pathlib.Path)
        Absolute paths, of one file twice for a video.

    Raises
    ------
    L3PruneError
        There is no such source, or it names no videos.

    Examples
    --------
    >>> find_videos("/nowhere")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder or csv: /nowhere
    """
    source = Path(source)
    if is_file(source):
        # Listed twice, a video would be its own mismatch.
        return list(dict.fromkeys((row.audio, row.video) for row in read_subset(source)))
    if not source.is_dir():
        raise L3PruneError(f"no such folder or csv: {source}")
    paths = [path.absolute() for path in find_files(source, VIDEO_EXTENSIONS)]
    if not paths:
        raise L3PruneError(f"{source} holds no videos ({', '.join(VIDEO_EXTENSIONS)})")
    check_names(paths)
    return [(path, path) for path in paths]


def _record(settings: Settings, files: Sequence[tuple[Path, Path]]) -> dict[str, Any]:
    """What shards.json holds. Videos that are moved as they are stay the same."""
    known = [
        (path.name, path.stat().st_size if is_file(path) else -1) for both in files for path in both
    ]
    return {
        "generator": "l3prune.datasets.avc",
        "version": VERSION,
        **asdict(settings),
        "videos": len(files),
        "videos_digest": hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16],
    }


def _make_all(
    files: Sequence[tuple[Path, Path]],
    output_dir: Path,
    settings: Settings,
    workers: int,
    quiet: bool,
) -> Made:
    from tqdm import tqdm

    # A kill leaves what it was writing. Nobody else is at work here now.
    for remains in output_dir.glob(".*.h5"):
        remains.unlink(missing_ok=True)
    record = output_dir / VIDEOS
    if record.exists():
        found = _read_videos(record, files)
    else:
        looks = run_all(_look, files, workers, at_once=16)
        found = list(tqdm(looks, "videos", len(files), unit="video", disable=quiet or None))
    videos = [video for video in found if isinstance(video, Video)]
    skipped = [failure for failure in found if isinstance(failure, Failure)]
    if len(videos) < 2:
        reasons = "; ".join(f"{Path(each.path).name}: {each.reason}" for each in skipped[:10])
        raise L3PruneError(
            f"pairs need two videos, and of {len(files)} {len(videos)} can be used"
            + (f" ({reasons})" if reasons else "")
        )
    sampler = Sampler(
        videos,
        seed=settings.seed,
        sample_rate=settings.sample_rate,
        distractors=settings.distractors,
        augment=settings.augment,
    )
    _write_skipped(output_dir, skipped)
    _write_videos(record, files, found)

    every = [(shard, output_dir / settings.name_of(shard)) for shard in range(settings.shards)]
    # Written atomically, so a file that is there is whole.
    missing = [(path, settings.pairs_of(shard)) for shard, path in every if not path.exists()]
    left = sum(len(numbers) for _, numbers in missing)
    make = functools.partial(_make_shard, sampler, settings.include_metadata)
    with tqdm(
        total=settings.samples,
        initial=settings.samples - left,
        desc="pairs",
        unit="pair",
        disable=quiet or None,
    ) as bar:
        for count in run_all(make, missing, workers):
            bar.update(count)
    damaged = _damaged([path for _, path in every], videos)
    _write_skipped(output_dir, [*skipped, *damaged])
    return Made(settings.shards, len(missing), len(videos), len(skipped), len(damaged))


def _look(files: tuple[Path, Path]) -> Video | Failure:
    """Probe a video; why it cannot be used is an answer, too."""
    try:
        return probe(*files)
    except VideoError as error:
        return Failure(str(files[1]), str(error))


def _make_shard(sampler: Sampler, include_metadata: bool, task: tuple[Path, range]) -> int:
    """Make a shard; the number of its pairs."""
    path, numbers = task
    named = {
        file: n for n, video in enumerate(sampler.videos) for file in (video.audio, video.pictures)
    }
    # Of one length in all shards.
    bytes_of_name = f"S{max(len(os.fsencode(Path(file).name)) for file in named)}"
    metadata = {name: bytes_of_name if kind is bytes else kind for name, kind in METADATA.items()}
    with new_shard(
        path, len(numbers), sampler.sample_rate, metadata if include_metadata else {}
    ) as file:

        def write(number: int, values: dict[str, Any]) -> None:
            for name, value in values.items():
                if name in file:
                    file[name][number - numbers.start] = value

        failures = make_pairs(sampler, numbers, write)
        write_failures(file, [(named[each.path], each.reason) for each in failures])
    return len(numbers)


def _damaged(paths: Sequence[Path], videos: Sequence[Video]) -> list[Failure]:
    """Videos of which something could not be decoded, with the first reason."""
    reasons: dict[int, list[str]] = {}
    for path in paths:
        for video, reason in read_failures(path):
            reasons.setdefault(video, []).append(reason)
    return [
        Failure(
            videos[video].pictures,
            f"{len(each)} draws failed, first: {each[0]}; what can be decoded is used",
        )
        for video, each in sorted(reasons.items())
    ]


def _write_skipped(output_dir: Path, failures: Sequence[Failure]) -> None:
    if failures:
        rows = [{"file": each.path, "reason": each.reason} for each in failures]
        write_table(output_dir / SKIPPED, rows)


def _write_videos(
    path: Path, files: Sequence[tuple[Path, Path]], found: Sequence[Video | Failure]
) -> None:
    """Keep what was found, so that a run that goes on need not look at the videos again."""
    rows = []
    for (audio, video), each in zip(files, found, strict=True):
        numbers = asdict(each) if isinstance(each, Video) else {}
        rows.append(
            {
                "audio_filepath": audio,
                "video_filepath": video,
                "skipped": "" if isinstance(each, Video) else each.reason,
                **{name: repr(numbers[name]) if numbers else "" for name in _NUMBERS},
            }
        )
    write_table(path, rows)


def _read_videos(path: Path, files: Sequence[tuple[Path, Path]]) -> list[Video | Failure]:
    """What `_write_videos` kept; the files may have been moved since."""
    found: list[Video | Failure] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for (audio, video), row in zip(files, csv.DictReader(file), strict=True):
                if row["skipped"]:
                    found.append(Failure(str(video), row["skipped"]))
                else:
                    numbers = {name: float(row[name]) for name in _NUMBERS}
                    found.append(Video(str(audio), str(video), **numbers))
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise L3PruneError(f"{path} is damaged ({error}); choose another folder") from error
    return found
