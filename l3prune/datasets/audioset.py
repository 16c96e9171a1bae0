"""AudioSet: ten-second clips of YouTube videos, several of 527 classes each (Gemmeke et al., 2017).

Google publishes the segments (CC BY 4.0), not the audio, and videos vanish: clips whose file is not
there are left out with a warning.
"""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

from l3prune.audio import AUDIO_EXTENSIONS
from l3prune.datasets import Clip, Dataset
from l3prune.errors import L3PruneError
from l3prune.labels import AUDIOSET, Labels, read_labels

#: Fold 1 is trained on, fold 2 is tested on.
SEGMENTS = {
    "balanced_train_segments.csv": 1,
    "unbalanced_train_segments.csv": 1,
    "eval_segments.csv": 2,
}

COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")

#: Folders, below the root, of a segment file's clips.
_FOLDERS = ("audios/{stem}", "{stem}", "audio/{stem}", "audio", "audios")

#: Names of a clip. PANNs' tools put a Y in front of ids, some of which begin with a hyphen.
_NAMES = ("Y{id}", "{id}", "{id}_{start:.0f}", "{id}_{start:.3f}", "Y{id}_{start:.0f}")


def load(data_dir: Path) -> Dataset:
    """Index AudioSet, or what there is of it.

    Parameters
    ----------
    data_dir : pathlib.Path
        Folder with any of `SEGMENTS` as published, and the clips in `audios/<segment file>`,
        `<segment file>` or `audio`, called by their ids, with "Y" in front as PANNs' tools have
        them or without, and with or without the start. A `class_labels_indices.csv` there tells the
        classes; else they are AudioSet's 527.

    Returns
    -------
    dataset : Dataset
        Of several labels a clip.

    Raises
    ------
    L3PruneError
        No segment file is there, one is damaged or names an unknown class, or no clip is there.

    Examples
    --------
    >>> load(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of audioset
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise L3PruneError(f"no such folder: {data_dir}; give the root folder of audioset")
    present = [name for name in SEGMENTS if (data_dir / name).is_file()]
    if not present:
        raise L3PruneError(f"{data_dir} has no segment file; give any of {', '.join(SEGMENTS)}")
    own = data_dir / AUDIOSET.name
    labels = read_labels(own if own.is_file() else None)
    if not labels.ids:
        raise L3PruneError(f"{own} has no ids of classes")
    clips, listed, first = [], 0, None
    for name in present:
        path = data_dir / name
        files = _files(data_dir, path.stem)
        for identity, start, targets in _segments(path, labels):
            listed += 1
            names = [each.format(id=identity, start=start) for each in _NAMES]
            found = next((files[each] for each in names if each in files), None)
            if found is None:
                first = first or f"{names[0]} of {path}"
            else:
                clips.append(Clip(found, SEGMENTS[name], targets[0], further=targets[1:]))
    if not clips:
        raise L3PruneError(
            f"none of the {listed} clips listed in {data_dir} is there; give their audio in "
            f"{data_dir / _FOLDERS[0].format(stem=Path(present[0]).stem)}, called Y<id>.wav"
        )
    if len(clips) < listed:
        warnings.warn(
            f"{listed - len(clips)} of {listed} clips are not there and are left out; the first is "
            f"{first}",
            stacklevel=2,
        )
    clips.sort(key=lambda clip: (clip.fold, str(clip.path)))
    return Dataset("audioset", tuple(clips), labels.names, multi_label=True)


def _files(data_dir: Path, stem: str) -> dict[str, Path]:
    """Audio by its name without ending; the first folder that has one wins."""
    found: dict[str, Path] = {}
    for folder in (data_dir / each.format(stem=stem) for each in _FOLDERS):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in AUDIO_EXTENSIONS:
                found.setdefault(path.name[: -len(path.suffix)], path)
    return found


def _segments(path: Path, labels: Labels) -> list[tuple[str, float, tuple[int, ...]]]:
    """Id, start and classes of each clip that a segment file lists."""
    numbers = {identity: number for number, identity in enumerate(labels.ids)}
    found: dict[tuple[str, float], tuple[str, float, tuple[int, ...]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, rows = [], []
            for row in csv.reader(file, skipinitialspace=True):
                if row and row[0].lstrip().startswith("#"):
                    header = [each.lstrip("# ").strip() for each in row]
                elif row:
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise L3PruneError(f"{path} cannot be read as csv ({error}); save it as UTF-8") from error
    # The published files begin with two lines of numbers of clips; the names come last.
    absent = [column for column in COLUMNS if column not in header]
    if absent:
        raise L3PruneError(
            f"{path} has no column {', '.join(absent)}; a line beginning with # must name "
            f"{', '.join(COLUMNS)}"
        )
    for number, row in enumerate(rows, start=1):
        where = f"{path} clip {number}"
        values = dict(zip(header, row, strict=False))
        if len(row) != len(header):
            raise L3PruneError(f"{where}: {len(row)} fields where {len(header)} are named")
        try:
            start = float(values["start_seconds"])
        except ValueError:
            raise L3PruneError(
                f"{where}: start_seconds {values['start_seconds']!r} is not a number"
            ) from None
        words = [word.strip() for word in values["positive_labels"].split(",") if word.strip()]
        unknown = [word for word in words if word not in numbers]
        if unknown or not words:
            raise L3PruneError(
                f"{where}: class {unknown[0]!r} is unknown; classes have ids such as "
                f"{labels.ids[0]!r}"
                if unknown
                else f"{where} has no positive_labels"
            )
        key = (values["YTID"], start)
        if key in found:
            raise L3PruneError(f"{where}: {key[0]} from {start:g} s on is listed twice")
        targets = tuple(sorted({numbers[word] for word in words}))
        found[key] = (*key, targets)
    return list(found.values())
