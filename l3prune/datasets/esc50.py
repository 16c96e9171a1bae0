"""ESC-50: 2000 clips of 5 s, 50 classes, 5 folds (Piczak 2015), and its ten-class subset ESC-10.

The clips carry the licences of their Freesound originals: ESC-50 is CC BY-NC 3.0, ESC-10 CC BY 3.0.
"""

from __future__ import annotations

from pathlib import Path

from l3prune.datasets import Dataset
from l3prune.datasets.metadata import CsvLayout, load_csv_corpus

LAYOUT = CsvLayout(
    csv="meta/esc50.csv",
    audio="audio",
    filename="filename",
    fold="fold",
    target="target",
    label="category",
    n_folds=5,
)


def load(data_dir: Path) -> Dataset:
    """Index ESC-50, or whichever of its classes the csv lists.

    Parameters
    ----------
    data_dir : pathlib.Path
        Folder with `meta/esc50.csv` and `audio`. For ESC-10, keep the csv's rows whose column
        esc10 is True. The audio may have been converted to another format under the same stems.

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
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of esc50
    """
    return load_csv_corpus("esc50", data_dir, LAYOUT)
