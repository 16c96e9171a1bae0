"""Lists of clips and scenes as DCASE publishes them: text files without a header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from l3prune.datasets import Clip, Dataset
from l3prune.datasets.metadata import read_rows
from l3prune.errors import L3PruneError

#: Folds as `Clip.fold` has them.
TRAIN_FOLD, TEST_FOLD = 1, 2


def load_lists(
    name: str,
    data_dir: Path,
    lists: Mapping[str, int],
    scenes: Sequence[str],
    groups: Mapping[str, str],
) -> Dataset:
    """Index a corpus by lists of clips, a file and its scene in each row, with a tab between them.

    Parameters
    ----------
    name : str
        Of the dataset.
    data_dir : pathlib.Path
    lists : mapping of str to int
        List below the root -> the fold of its clips. Files are beside the folder `evaluation_setup`
        that a list is in, or beside the list.
    scenes : sequence of str
        All that there may be; labels are those that there are, in this order.
    groups : mapping of str to str
        File as the list of fold 1 has it -> where it was recorded.

    Raises
    ------
    L3PruneError
        A list is missing or unreadable, names a clip twice, a scene that is none of the corpus, or
        a clip that is missing.

    Examples
    --------
    >>> load_lists("dcase2018", Path("/nowhere"), {"fold1_train.txt": 1}, ["bus"], {})
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of dcase2018
    """
    check_files(name, data_dir, lists)
    found: dict[Path, tuple[int, str, str]] = {}
    for list_name, fold in lists.items():
        path = data_dir / list_name
        root = path.parent.parent if path.parent.name == "evaluation_setup" else path.parent
        for line, row in read_rows(path, ("file", "scene"), "\t", header=False):
            where, file, scene = f"{path} line {line}", row["file"], row["scene"]
            if scene not in scenes:
                raise L3PruneError(
                    f"{where}: scene {scene!r} is unknown; known: {', '.join(scenes)}"
                )
            if root / file in found:
                raise L3PruneError(f"{where}: {file} is listed twice; keep one of its rows")
            group = groups.get(file, "") if fold == TRAIN_FOLD else ""
            if fold == TRAIN_FOLD and groups and not group:
                raise L3PruneError(f"{where}: {file} is not in the corpus's meta file")
            found[root / file] = fold, scene, group
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise L3PruneError(
            f"{len(missing)} of {len(found)} listed files are missing, the first is {missing[0]}; "
            "complete the download or remove their rows"
        )
    if not found:
        raise L3PruneError(f"the lists in {data_dir} have no clips; give those of the corpus")
    labels = tuple(scene for scene in scenes if scene in {each[1] for each in found.values()})
    clips = tuple(
        Clip(path, fold, labels.index(scene), group=group or None)
        for path, (fold, scene, group) in sorted(
            found.items(), key=lambda item: (item[1][0], item[0].name)
        )
    )
    return Dataset(name, clips, labels)


def check_files(name: str, data_dir: Path, files: Sequence[str] | Mapping[str, object]) -> None:
    """Refuse a folder without these files.

    Examples
    --------
    >>> import tempfile
    >>> check_files("dcase2018", Path(tempfile.mkdtemp()), ["meta.csv"])
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: ...meta.csv is missing; give the root folder of dcase2018
    """
    if not data_dir.is_dir():
        raise L3PruneError(f"no such folder: {data_dir}; give the root folder of {name}")
    for file in files:
        if not (data_dir / file).is_file():
            raise L3PruneError(f"{data_dir / file} is missing; give the root folder of {name}")
