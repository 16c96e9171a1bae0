"""A made-up corpus of sound events, labelled and laid out as US8K is.

    python -m l3prune.datasets.synthetic OUTPUT_DIR --clips 4 --folds 10 --seconds 2 --seed 0

For tests, examples and trial runs on machines without the recorded corpora; `l3prune.datasets.us8k`
reads it, and its `audio` folder serves as an unlabelled one. The sounds are those of
`l3prune.datasets.sounds`. A score on it says nothing about a score on US8K.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.checks import check_whole
from l3prune.datasets.sounds import (
    CLASSES,
    VERSION,
    check_audio,
    draw_salience,
    keyed_generator,
    synthesize,
)
from l3prune.errors import command
from l3prune.files import atomic_write, claim_folder

COLUMNS = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
"""The columns of the metadata file, in US8K's order."""

SLICES_PER_SOURCE = 2
"""Clips cut from one made-up recording; they share its parameters, its fsID and its fold."""

MAX_FOLDS = 10


def make_corpus(
    output_dir: str | os.PathLike[str],
    *,
    clips_per_class_per_fold: int = 4,
    folds: int = 10,
    seconds: float = 2.0,
    sample_rate: int = 16000,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write a corpus in US8K's layout, or finish one that was interrupted.

    Parameters
    ----------
    output_dir : str or path-like
        Becomes the corpus's root: new, empty, or begun earlier with the same settings. Gets
        `audio/fold<n>/<fsID>-<classID>-<occurrence>-<slice>.wav` (mono, 16 bit),
        `metadata/UrbanSound8K.csv` and `corpus.json` (the settings).
    clips_per_class_per_fold : int
        Clips of each of the ten classes in each fold.
    folds : int
        1 to 10.
    seconds : float
        Length of every clip.
    sample_rate : int
        Samples per second, 8000 or more.
    seed : int
        0 or more. The same settings give the same bytes (with the same NumPy). A clip does not
        depend on the number of folds or of other clips.
    progress : bool
        Show a progress bar on the error stream.

    Returns
    -------
    output_dir : pathlib.Path
        The corpus's root.

    Raises
    ------
    ParameterError
        A setting out of range, or a folder begun with other settings.
    L3PruneError
        The folder holds something else, or cannot be written to.

    Examples
    --------
    >>> import tempfile
    >>> root = make_corpus(
    ...     tempfile.mkdtemp(), clips_per_class_per_fold=1, folds=1, seconds=0.1, seed=3
    ... )
    >>> sorted(path.name for path in (root / "audio" / "fold1").iterdir())[:2]
    ['1000-0-0-0.wav', '1001-1-0-0.wav']
    """
    check_whole("clips_per_class_per_fold", clips_per_class_per_fold, 1)
    check_whole("folds", folds, 1, MAX_FOLDS)
    check_whole("seed", seed, 0)
    check_audio(seconds, sample_rate)
    # Plain numbers: 2 and 2.0 seconds are the same corpus, and json knows no NumPy scalar.
    settings = {
        "generator": "l3prune.datasets.synthetic",
        "version": VERSION,
        "clips_per_class_per_fold": int(clips_per_class_per_fold),
        "folds": int(folds),
        "seconds": float(seconds),
        "sample_rate": int(sample_rate),
        "seed": int(seed),
    }
    output_dir = Path(output_dir)
    claim_folder(output_dir, "corpus.json", settings)

    # Here, so that --help answers at once.
    import soundfile
    from tqdm import tqdm

    rows = list(_rows(settings))
    for row in tqdm(rows, desc="clips", unit="clip", disable=not progress):
        path = output_dir / "audio" / f"fold{row['fold']}" / row["slice_file_name"]
        # Written atomically, so a file that is there is whole.
        if not path.exists():
            clip = _make_clip(seed, row["fold"], row["class"], row["index"], seconds, sample_rate)
            with atomic_write(path) as temporary:
                soundfile.write(temporary, clip, sample_rate, subtype="PCM_16", format="WAV")
    with (
        # Last, so that a folder with this file is a whole corpus.
        atomic_write(output_dir / "metadata" / "UrbanSound8K.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return output_dir


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write a corpus from the command line.

    Examples
    --------
    >>> main(["corpus", "--folds", "11"])
    2
    """
    parser = argparse.ArgumentParser(
        prog="python -m l3prune.datasets.synthetic",
        description="Write a made-up, labelled corpus of sound events in the layout of US8K. "
        "The same settings give the same files; an interrupted run continues.",
    )
    parser.add_argument(
        "output_dir",
        type=Path,
        metavar="OUTPUT_DIR",
        help="folder of the corpus: new, empty, or begun with the same settings",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=4,
        metavar="N",
        help="clips of each class in each fold (default: %(default)s)",
    )
    parser.add_argument(
        "--folds", type=int, default=10, metavar="N", help="folds, 1 to 10 (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="length of a clip in seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--sample-rate",
        type=int,
        default=16000,
        metavar="HZ",
        help="samples per second (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="another seed, other clips (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(argv)
    make_corpus(
        arguments.output_dir,
        clips_per_class_per_fold=arguments.clips,
        folds=arguments.folds,
        seconds=arguments.seconds,
        sample_rate=arguments.sample_rate,
        seed=arguments.seed,
        progress=not arguments.quiet,
    )
    if not arguments.quiet:
        print(arguments.output_dir)


def _make_clip(
    seed: int, fold: int, label: str, index: int, seconds: float, sample_rate: int
) -> np.ndarray:
    """Clip `index` of a class in a fold; what it is depends on these numbers only."""
    target = list(CLASSES).index(label)
    source, part = divmod(index, SLICES_PER_SOURCE)
    voice = keyed_generator(seed, fold, target, source, 0)
    take = keyed_generator(seed, fold, target, source, 1 + part)
    return synthesize(label, take, seconds, sample_rate, voice=voice)


def _rows(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of the metadata file, with the clip's `index` in its class and fold besides."""
    seconds = settings["seconds"]
    for fold in range(1, settings["folds"] + 1):
        for target, label in enumerate(CLASSES):
            for index in range(settings["clips_per_class_per_fold"]):
                source, part = divmod(index, SLICES_PER_SOURCE)
                # No two (fold, class, source) have the same: there are ten folds and classes.
                recording = 1000 * (source + 1) + 10 * (fold - 1) + target
                voice = keyed_generator(settings["seed"], fold, target, source, 0)
                yield {
                    "slice_file_name": f"{recording}-{target}-0-{part}.wav",
                    "fsID": recording,
                    "start": round(part * seconds, 6),
                    "end": round((part + 1) * seconds, 6),
                    "salience": draw_salience(voice),
                    "fold": fold,
                    "classID": target,
                    "class": label,
                    "index": index,
                }


if __name__ == "__main__":
    sys.exit(main())
