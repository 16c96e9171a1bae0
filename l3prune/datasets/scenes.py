"""Made-up videos in which what is seen makes the sound that is heard.

    python -m l3prune.datasets.scenes OUTPUT_DIR --videos 1000 --seconds 4 --seed 0

For training and testing audio-visual correspondence on machines without recorded videos. One or two
objects of different classes sound in each video: their sounds are those of
`l3prune.datasets.sounds`, their looks those of `l3prune.datasets.looks`. An object is seen while it
sounds: it grows, brightens and turns with its loudness, and fades within a second of silence. In
some videos something moves that makes no sound. A score on these videos says nothing about a score
on recorded ones.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from l3prune.checks import check_whole
from l3prune.datasets import sounds
from l3prune.datasets.stage import VERSION, Film, Format, cast, compose
from l3prune.datasets.videos import load_av
from l3prune.errors import command
from l3prune.files import atomic_write, claim_folder, write_table
from l3prune.parallel import run_all


def make_scenes(
    output_dir: str | os.PathLike[str],
    *,
    videos: int = 1000,
    seconds: float = 4.0,
    sample_rate: int = 16000,
    frame_rate: int = 12,
    size: int = 256,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Path:
    """Write videos (H.264 and AAC in MP4), or finish a run that was interrupted.

    Parameters
    ----------
    output_dir : str or path-like
        New, empty, or begun earlier with the same settings. Gets `scene_<number>_<labels>.mp4`,
        labels joined by a hyphen, `scenes.csv` (file_name; labels, separated by spaces; distractor,
        1 where something silent moves) and `scenes.json` (the settings).
    videos : int
        Each class has the same share of them, to one video.
    seconds, sample_rate, frame_rate, size
        See `Format`.
    seed : int
        0 or more. A video depends on its number and on the settings, not on the number of videos.
        The same settings give the same pixels and samples (with the same NumPy), and encoded by
        the same PyAV on the same kind of processor the same bytes.
    workers : int
        Processes that make videos. With more than one, a script that calls this must keep what it
        runs below `if __name__ == "__main__":`.
    progress : bool
        Show a progress bar on the error stream.

    Returns
    -------
    output_dir : pathlib.Path

    Raises
    ------
    ParameterError
        A setting out of range, or a folder begun with other settings.
    L3PruneError
        The folder holds something else or cannot be written to, or PyAV is not installed.

    Examples
    --------
    >>> import tempfile
    >>> folder = make_scenes(tempfile.mkdtemp(), videos=1, seconds=0.5, size=64)
    >>> sorted(path.name for path in folder.iterdir())
    ['scene_00000_....mp4', 'scenes.csv', 'scenes.json']
    """
    check_whole("videos", videos, 1)
    check_whole("seed", seed, 0)
    check_whole("workers", workers, 1)
    form = Format(seconds, sample_rate, frame_rate, size)
    settings: dict[str, Any] = {
        "generator": "l3prune.datasets.scenes",
        "version": VERSION,
        "version_of_sounds": sounds.VERSION,
        "videos": int(videos),
        **asdict(form),
        "seed": int(seed),
    }
    load_av()
    output_dir = Path(output_dir)
    claim_folder(output_dir, "scenes.json", settings)

    # Here, so that --help answers at once.
    from tqdm import tqdm

    rows = [_row(seed, number) for number in range(videos)]
    # Written atomically, so a file that is there is whole.
    missing = [
        (output_dir / row["file_name"], number)
        for number, row in enumerate(rows)
        if not (output_dir / row["file_name"]).exists()
    ]
    bar = tqdm(total=videos, initial=videos - len(missing), unit="video", disable=not progress)
    with bar:
        for _ in run_all(partial(_make, seed=seed, form=form), missing, workers):
            bar.update()
    # Last, so that a folder with this file is whole.
    write_table(output_dir / "scenes.csv", rows)
    return output_dir


def encode(film: Film) -> bytes:
    """The MP4 file of a film.

    Examples
    --------
    >>> encode(compose(0, 0, Format(seconds=0.5, size=64)))[4:8]
    b'ftyp'
    """
    av = load_av()
    form, buffer = film.form, io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # With its macroblock tree, x264 gives small pictures other bytes from time to time.
        options = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}
        pictures = container.add_stream("libx264", rate=form.frame_rate, options=options)
        pictures.width = pictures.height = form.size
        pictures.pix_fmt = "yuv420p"
        pictures.gop_size = form.frame_rate  # a reader finds any second by decoding one second
        pictures.codec_context.thread_count = 1  # the bytes would depend on the number
        sound = container.add_stream("aac", rate=form.sample_rate, layout="mono")
        sound.bit_rate = min(4 * form.sample_rate, 128000)
        for pixels in film.frames():
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        wave = av.AudioFrame.from_ndarray(film.samples[None], format="fltp", layout="mono")
        wave.sample_rate = form.sample_rate
        wave.pts = 0  # so that readers skip what AAC puts before the first sample
        container.mux(sound.encode(wave))
        container.mux(sound.encode(None))
    return buffer.getvalue()


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write videos from the command line.

    Examples
    --------
    >>> main(["scenes", "--size", "63"])
    2
    """
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.datasets.scenes",
        description="Write made-up videos of sounding objects (MP4: H.264 and AAC). The same "
        "settings give the same videos; an interrupted run continues.",
    )
    parser.add_argument(
        "output_dir",
        type=Path,
        metavar="OUTPUT_DIR",
        help="folder of the videos: new, empty, or begun with the same settings",
    )
    for name, kind, default, metavar, text in (
        ("videos", int, 1000, "N", "number of videos"),
        ("seconds", float, 4.0, "S", "length of a video in seconds"),
        ("sample-rate", int, 16000, "HZ", "samples per second"),
        ("frame-rate", int, 12, "FPS", "pictures per second"),
        ("size", int, 256, "PIXELS", "height and width, an even number"),
        ("seed", int, 0, "N", "another seed, other videos"),
        ("workers", int, 1, "N", "processes that make videos"),
    ):
        parser.add_argument(
            f"--{name}",
            type=kind,
            default=default,
            metavar=metavar,
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    settings = vars(parser.parse_args(argv))
    quiet = settings.pop("quiet")
    output_dir = make_scenes(**settings, progress=not quiet)
    if not quiet:
        print(output_dir)


def _row(seed: int, number: int) -> dict[str, Any]:
    """A video's row of the table."""
    labels, distracted = cast(seed, number)
    return {
        "file_name": f"scene_{number:05d}_{'-'.join(labels)}.mp4",
        "labels": " ".join(labels),
        "distractor": int(distracted),
    }


def _make(video: tuple[Path, int], seed: int, form: Format) -> None:
    """Write one video, by its path and number."""
    path, number = video
    data = encode(compose(seed, number, form))
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
