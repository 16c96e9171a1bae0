"""UrbanSound8K: 8732 clips of at most 4 s, 10 classes, 10 folds (Salamon, Jacoby, Bello 2014).

The clips carry the licences of their Freesound originals; the corpus is CC BY-NC 3.0.
"""

from __future__ import annotations

import re
from pathlib import Path

from l3prune.audio import find_audio
from l3prune.datasets import Clip, Dataset
from l3prune.datasets.metadata import CsvLayout, load_csv_corpus
from l3prune.errors import L3PruneError

LAYOUT = CsvLayout(
    csv="metadata/UrbanSound8K.csv",
    audio="audio/fold{fold}",
    filename="slice_file_name",
    fold="fold",
    target="classID",
    label="class",
    n_folds=10,
)

#: The name of a copy: that of a clip (recording-class-occurrence-slice), then anything but a digit.
COPY = re.compile(r"(\d+-\d+-\d+-\d+)\D.*", re.DOTALL)


def load(data_dir: Path, augmented: bool = False) -> Dataset:
    """Index UrbanSound8K.

    Parameters
    ----------
    data_dir : pathlib.Path
        Folder with `metadata/UrbanSound8K.csv` and `audio/fold1` … `audio/fold10`. The audio may
        have been converted to another format under the same stems.
    augmented : bool
        Add the changed copies of clips that lie anywhere below `data_dir` and are called by their
        original's stem, a character that is no digit, and anything more:
        `100032-3-0-0_pitch1.wav`. They get its fold and class.

    Returns
    -------
    dataset : Dataset

    Raises
    ------
    L3PruneError
        The csv is missing, unreadable, empty or inconsistent, or files that it lists are missing;
        copies of clips that the csv does not list, or two copies of one name.

    Examples
    --------
    >>> load(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of us8k
    """
    dataset = load_csv_corpus("us8k", data_dir, LAYOUT)
    if not augmented:
        return dataset
    official = {clip.path.stem: clip for clip in dataset.clips}
    copies: dict[str, Clip] = {}
    strays: list[Path] = []
    for path in find_audio(data_dir):
        match = COPY.fullmatch(path.stem)
        if match is None or path.stem in official:
            continue
        original = official.get(match[1])
        if original is None:
            strays.append(path)
            continue
        copy = Clip(path, original.fold, original.target, original=match[1])
        other = copies.setdefault(path.stem, copy)
        if other is not copy:
            raise L3PruneError(f"{other.path} and {path} have one name; keep one of them")
    if strays:
        raise L3PruneError(
            f"{len(strays)} augmented files are copies of clips that {LAYOUT.csv} does not list, "
            f"the first is {strays[0]}; which fold they belong to is unknown: complete the csv or "
            "move them elsewhere"
        )
    clips = sorted([*dataset.clips, *copies.values()], key=lambda clip: (clip.fold, clip.path.name))
    return Dataset(dataset.name, tuple(clips), dataset.labels)
