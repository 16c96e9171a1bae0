"""TUT Acoustic Scenes 2017, development and evaluation set: the corpora of DCASE 2017 task 1.

Clips of 10 s in stereo, 15 scenes. The development set has 4,680 clips, which train; the evaluation
set has 1,620, which test. Licence: TUT's own, for research and other non-commercial use.
"""

from __future__ import annotations

from pathlib import Path

from l3prune.datasets import Dataset
from l3prune.datasets.lists import TEST_FOLD, TRAIN_FOLD, check_files, load_lists
from l3prune.datasets.metadata import read_rows

DEVELOPMENT, EVALUATION = (
    f"TUT-acoustic-scenes-2017-{part}/meta.txt" for part in ("development", "evaluation")
)

SCENES = (
    *("beach", "bus", "cafe/restaurant", "car", "city_center", "forest_path", "grocery_store"),
    *("home", "library", "metro_station", "office", "park", "residential_area", "train", "tram"),
)


def load(data_dir: Path) -> Dataset:
    """Index both sets.

    Parameters
    ----------
    data_dir : pathlib.Path
        Folder with `TUT-acoustic-scenes-2017-development` and `TUT-acoustic-scenes-2017-evaluation`
        as they are unpacked: each has `meta.txt` (file, scene and, of the development set, the
        recording that the clip is of; tabs between them, no header) and the clips in `audio`.

    Returns
    -------
    dataset : Dataset
        Fold 1, the development set, trains, and fold 2, the evaluation set, tests. The folds within
        the development set are not used. A training clip's group is its recording.

    Raises
    ------
    L3PruneError
        See `lists.load_lists`.

    Examples
    --------
    >>> load(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of dcase2017
    """
    data_dir = Path(data_dir)
    check_files("dcase2017", data_dir, [DEVELOPMENT, EVALUATION])
    columns = ("file", "scene", "recording")
    rows = read_rows(data_dir / DEVELOPMENT, columns, "\t", header=False)
    recordings = {row["file"]: row["recording"] for _, row in rows}
    lists = {DEVELOPMENT: TRAIN_FOLD, EVALUATION: TEST_FOLD}
    return load_lists("dcase2017", data_dir, lists, SCENES, recordings)
