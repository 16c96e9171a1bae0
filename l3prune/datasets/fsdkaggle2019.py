"""FSDKaggle2019, the curated set of Freesound Audio Tagging 2019: 4970 clips, several of 80 classes
each (Fonseca et al., DCASE 2019). The clips carry the licences of their Freesound originals.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import numpy as np

from l3prune.array_files import read_arrays
from l3prune.datasets import Clip, Dataset
from l3prune.datasets.metadata import read_rows
from l3prune.errors import L3PruneError
from l3prune.labels import Labels

#: The classes are the columns of the first behind its first, or the second's own second column.
CLASSES = ("sample_submission.csv", "vocabulary.csv")

TRAIN, AUDIO = "train_curated.csv", "train_curated"

#: Spectrograms of the clips in the order of the csv, as they were published for the challenge.
MELS = "mels_train_curated.pkl"
BANDS = 128

#: Folds as `Clip.fold` has them: `splits.split_dataset` takes them so when the last is tested.
TRAIN_FOLD, VALIDATION_FOLD, TEST_FOLD = 1, 2, 3

#: Seed of the split, and the shares of clips that validate and test.
SEED, SHARE = 1994, 0.1


def load(data_dir: Path) -> Dataset:
    """Index the curated training set, split as the authors of network slimming on it did.

    Parameters
    ----------
    data_dir : pathlib.Path
        Folder with `train_curated.csv` (columns fname and labels, commas between labels), one of
        `CLASSES`, and the clips in `train_curated`; or in their place `mels_train_curated.pkl`.

    Returns
    -------
    dataset : Dataset
        Of several labels a clip. Fold 1 trains, 2 validates, 3 tests: 3976, 497 and 497 of the 4970
        clips.

    Raises
    ------
    L3PruneError
        A csv is missing, unreadable or inconsistent, has an unknown class, or lists a clip that is
        missing.

    Examples
    --------
    >>> load(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of fsdkaggle2019
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise L3PruneError(f"no such folder: {data_dir}; give the root folder of fsdkaggle2019")
    table = data_dir / TRAIN
    if not table.is_file():
        raise L3PruneError(f"{table} is missing; give the folder that holds {TRAIN} and {AUDIO}")
    labels = read_classes(data_dir)
    rows = _rows(table, labels)
    mels = None
    if not (data_dir / AUDIO).is_dir() and (data_dir / MELS).is_file():
        mels = data_dir / MELS
    else:
        missing = [name for name, _ in rows if not (data_dir / AUDIO / name).is_file()]
        if missing:
            raise L3PruneError(
                f"{len(missing)} of {len(rows)} files listed in {table} are missing, the first is "
                f"{data_dir / AUDIO / missing[0]}; complete the download or remove their rows"
            )
    folds = split(len(rows))
    order = sorted(range(len(rows)), key=lambda number: (folds[number], rows[number][0]))
    clips = tuple(
        Clip(data_dir / AUDIO / name, int(folds[number]), targets[0], further=targets[1:])
        for number in order
        for name, targets in [rows[number]]
    )
    return Dataset(
        "fsdkaggle2019",
        clips,
        labels,
        multi_label=True,
        maps=None if mels is None else functools.partial(_mels, mels, order),
    )


def split(count: int) -> np.ndarray:
    """The fold of each of so many clips, in the csv's order.

    Of one permutation the first tenth validates, the next tests.

    Examples
    --------
    >>> np.bincount(split(4970)).tolist()
    [0, 3976, 497, 497]
    """
    # The permutation of NumPy's older generator, which its authors drew.
    shuffled = np.random.RandomState(SEED).permutation(count)
    folds = np.full(count, TRAIN_FOLD)
    folds[shuffled[: int(SHARE * count)]] = VALIDATION_FOLD
    folds[shuffled[int(SHARE * count) : int(2 * SHARE * count)]] = TEST_FOLD
    return folds


def read_classes(data_dir: Path) -> tuple[str, ...]:
    """The classes in their order, of whichever of `CLASSES` is there.

    Raises
    ------
    L3PruneError
        None is there, or it has no classes, or one twice.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "sample_submission.csv").write_text("fname,Bark,Purr\\na.wav,0,0\\n")
    >>> read_classes(folder)
    ('Bark', 'Purr')
    """
    path = next((data_dir / name for name in CLASSES if (data_dir / name).is_file()), None)
    if path is None:
        raise L3PruneError(f"{data_dir} has no {' and no '.join(CLASSES)}, which tell the classes")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise L3PruneError(f"{path} cannot be read as csv ({error}); save it as UTF-8") from error
    if path.name == CLASSES[0]:
        names = rows[0][1:] if rows else []
    else:
        names = [row[1] for row in rows if len(row) > 1]
    if not names:
        raise L3PruneError(f"{path} has no classes; give the one that the corpus comes with")
    try:
        return Labels(tuple(names)).names
    except L3PruneError as error:
        raise L3PruneError(f"{path}: {error}") from error


def _rows(path: Path, labels: tuple[str, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """File and classes of each clip, in the csv's order."""
    numbers = {label: number for number, label in enumerate(labels)}
    found: dict[str, tuple[int, ...]] = {}
    for line, row in read_rows(path, ("fname", "labels")):
        where, name = f"{path} line {line}", row["fname"]
        if name in found:
            raise L3PruneError(f"{where}: {name} is listed twice; keep one of its rows")
        if Path(name).name != name:
            raise L3PruneError(f"{where}: {name} is no file name; clips lie in {AUDIO}")
        words = [word.strip() for word in row["labels"].split(",") if word.strip()]
        unknown = [word for word in words if word not in numbers]
        if unknown or not words:
            raise L3PruneError(
                f"{where}: class {unknown[0]!r} is unknown; the {len(labels)} classes are such as "
                f"{labels[0]!r}"
                if unknown
                else f"{where} has no labels"
            )
        found[name] = tuple(sorted({numbers[word] for word in words}))
    if not found:
        raise L3PruneError(f"{path} lists no clips; give the csv of the corpus")
    return list(found.items())


def _mels(path: Path, order: list[int]) -> list[np.ndarray]:
    """The published spectrograms, (frames, bands) uint8, in the order of a dataset's clips."""
    arrays = read_arrays(path)
    if len(arrays) != len(order):
        raise L3PruneError(
            f"{path} has {len(arrays)} arrays and {TRAIN} lists {len(order)} clips; take both from "
            "one release"
        )
    result = []
    for number in order:
        each = arrays[number]
        if each.dtype != np.uint8 or each.ndim != 3 or each.shape[::2] != (BANDS, 3):
            raise L3PruneError(
                f"{path}: array {number} is {each.dtype} of shape {each.shape}; give uint8 of "
                f"shape ({BANDS}, frames, 3)"
            )
        if not each.shape[1] or (each != each[..., :1]).any():
            raise L3PruneError(f"{path}: array {number} is empty, or its three channels differ")
        result.append(np.ascontiguousarray(each[..., 0].T))
    return result
