"""DCASE 2013 scene classification: 200 clips of 30 s, 10 classes (Stowell et al. 2015), in 2 folds.

The folds are the challenge's public and private data set; the recordings are CC BY 2.0 UK.
"""

from __future__ import annotations

from pathlib import Path

from l3prune.audio import AUDIO_EXTENSIONS
from l3prune.datasets import Clip, Dataset
from l3prune.errors import L3PruneError

#: A clip is called by its class and two digits.
LABELS = (
    "bus",
    "busystreet",
    "office",
    "openairmarket",
    "park",
    "quietstreet",
    "restaurant",
    "supermarket",
    "tube",
    "tubestation",
)

FOLDS = (1, 2)


def load(data_dir: Path) -> Dataset:
    """Index the recordings of DCASE 2013's scene classification task.

    Targets are 0 … 9 in the order of `LABELS`; where classes have no clip they are left out, and
    the targets stay contiguous.

    Parameters
    ----------
    data_dir : pathlib.Path
        Folder with the folders `fold1` and `fold2`, and the audio files of one half of the corpus
        in each, `bus01.wav` … `tubestation10.wav`.

    Returns
    -------
    dataset : Dataset

    Raises
    ------
    L3PruneError
        A folder is missing or has no clips, a file is not called by a class and two digits, or
        two files of a fold have one name but for their endings.

    Examples
    --------
    >>> load(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of dcase2013
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise L3PruneError(f"no such folder: {data_dir}; give the root folder of dcase2013")
    found: list[tuple[int, Path, str]] = []
    for fold in FOLDS:
        folder = data_dir / f"fold{fold}"
        if not folder.is_dir():
            raise L3PruneError(f"{folder} is missing; put one half of the corpus there")
        paths = [
            path
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in AUDIO_EXTENSIONS and path.is_file()
        ]
        if not paths:
            raise L3PruneError(f"{folder} has no audio files; put one half of the corpus there")
        stems: dict[str, Path] = {}
        for path in paths:
            label, digits = path.stem[:-2], path.stem[-2:]
            if label not in LABELS or not (digits.isascii() and digits.isdigit()):
                raise L3PruneError(
                    f"{path} is not called by a class and two digits, such as bus01.wav; classes: "
                    f"{', '.join(LABELS)}"
                )
            other = stems.setdefault(path.stem, path)
            if other != path:
                raise L3PruneError(f"{other} and {path} have one name; keep one of them")
            found.append((fold, path, label))
    present = {label for _, _, label in found}
    labels = tuple(label for label in LABELS if label in present)
    clips = tuple(Clip(path, fold, labels.index(label)) for fold, path, label in found)
    return Dataset("dcase2013", clips, labels)
