"""TUT Urban Acoustic Scenes 2018, development set: the corpus of DCASE 2018 task 1A.

Clips of 10 s in stereo, 10 scenes. Its one fold trains on 6,122 clips and tests on 2,518. Licence:
TUT's own, for research and other non-commercial use.
"""

from __future__ import annotations

from pathlib import Path

from l3prune.datasets import Dataset
from l3prune.datasets.lists import TEST_FOLD, TRAIN_FOLD, check_files, load_lists
from l3prune.datasets.metadata import read_rows

META = "meta.csv"
TRAIN, EVALUATE = "evaluation_setup/fold1_train.txt", "evaluation_setup/fold1_evaluate.txt"

SCENES = (
    *("airport", "bus", "metro", "metro_station", "park"),
    *("public_square", "shopping_mall", "street_pedestrian", "street_traffic", "tram"),
)


def load(data_dir: Path) -> Dataset:
    """Index the development set.

    Parameters
    ----------
    data_dir : pathlib.Path
        Folder with `meta.csv` (columns filename, scene_label, identifier, source_label, with tabs
        between them), `evaluation_setup/fold1_train.txt` and `fold1_evaluate.txt` (file and scene,
        no header), and the clips where these say, in `audio`.

    Returns
    -------
    dataset : Dataset
        Fold 1 trains, fold 2 tests. A training clip's group is where it was recorded.

    Raises
    ------
    L3PruneError
        See `lists.load_lists`.

    Examples
    --------
    >>> load(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of dcase2018
    """
    data_dir = Path(data_dir)
    check_files("dcase2018", data_dir, [META])
    rows = read_rows(data_dir / META, ("filename", "scene_label", "identifier"), "\t")
    places = {row["filename"]: row["identifier"] for _, row in rows}
    lists = {TRAIN: TRAIN_FOLD, EVALUATE: TEST_FOLD}
    return load_lists("dcase2018", data_dir, lists, SCENES, places)
