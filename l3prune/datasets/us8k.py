"""UrbanSound8K: 8732 clips of at most 4 s, 10 classes, 10 folds (Salamon, Jacoby, Bello 2014).

The clips carry the licences of their Freesound originals; the corpus is CC BY-NC 3.0.
"""

from __future__ import annotations

from pathlib import Path

from l3prune.datasets import Dataset
from l3prune.datasets.metadata import CsvLayout, load_csv_corpus

LAYOUT = CsvLayout(
    csv="metadata/UrbanSound8K.csv",
    audio="audio/fold{fold}",
    filename="slice_file_name",
    fold="fold",
    target="classID",
    label="class",
    n_folds=10,
)


def load(data_dir: Path) -> Dataset:
    """Index UrbanSound8K.

    Parameters
    ----------
    data_dir : pathlib.Path
        Folder with `metadata/UrbanSound8K.csv` and `audio/fold1` … `audio/fold10`. The audio may
        have been converted to another format under the same stems.

    Returns
    -------
    dataset : Dataset

    Raises
    ------
    L3PruneError
        The csv is missing, unreadable, empty or inconsistent, or files that it lists are missing.

    Examples
    --------
    >>> load(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of us8k
    """
    return load_csv_corpus("us8k", data_dir, LAYOUT)
