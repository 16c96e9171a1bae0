"""TAU Urban Acoustic Scenes 2020 Mobile, development set: the corpus of DCASE 2021 task 1A.

Clips of 10 s in 10 scenes, recorded at many places with three real and six simulated devices. Its
one fold trains on 13,962 clips and tests on 2,970; the rest its authors leave out. Licence: TAU's
own, for research and other non-commercial use.
"""

from __future__ import annotations

from pathlib import Path

from l3prune.datasets import Clip, Dataset
from l3prune.datasets.metadata import read_rows
from l3prune.errors import L3PruneError

META = "meta.csv"
TRAIN, TEST, EVALUATE = (
    f"evaluation_setup/fold1_{name}.csv" for name in ("train", "test", "evaluate")
)

SCENES = (
    *("airport", "bus", "metro", "metro_station", "park"),
    *("public_square", "shopping_mall", "street_pedestrian", "street_traffic", "tram"),
)

DEVICES = ("a", "b", "c", "s1", "s2", "s3", "s4", "s5", "s6")

#: Folds as `Clip.fold` has them.
TRAIN_FOLD, TEST_FOLD = 1, 2


def load(data_dir: Path) -> Dataset:
    """Index the development set.

    Parameters
    ----------
    data_dir : pathlib.Path
        Folder with `meta.csv` (columns filename, scene_label, identifier, source_label, with tabs
        between them), `evaluation_setup/fold1_train.csv`, `fold1_test.csv` and
        `fold1_evaluate.csv`, and the clips where these say, in `audio`.

    Returns
    -------
    dataset : Dataset
        Fold 1 trains, fold 2 tests. A clip's group is where it was recorded, its device one of
        `DEVICES`.

    Raises
    ------
    L3PruneError
        A csv is missing, unreadable or inconsistent, has a scene or device that is none of the
        corpus, or lists a clip that is missing.

    Examples
    --------
    >>> load(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere; give the root folder of dcase2021
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise L3PruneError(f"no such folder: {data_dir}; give the root folder of dcase2021")
    for name in (META, TRAIN, TEST, EVALUATE):
        if not (data_dir / name).is_file():
            raise L3PruneError(
                f"{data_dir / name} is missing; give the folder that holds {META}, "
                "evaluation_setup and audio"
            )
    about = _about(data_dir / META)
    scenes: dict[str, str] = {}
    folds: dict[str, int] = {}
    for name, fold in ((TRAIN, TRAIN_FOLD), (EVALUATE, TEST_FOLD)):
        for line, row in read_rows(data_dir / name, ("filename", "scene_label"), "\t"):
            where, file = f"{data_dir / name} line {line}", row["filename"]
            if file in folds:
                raise L3PruneError(f"{where}: {file} is listed twice, here or in {TRAIN}")
            if file not in about:
                raise L3PruneError(f"{where}: {file} is not in {META}; complete that")
            scene, _, _ = about[file]
            if row["scene_label"] != scene:
                raise L3PruneError(
                    f"{where}: {file} is of {row['scene_label']} here and of {scene} in {META}"
                )
            folds[file], scenes[file] = fold, scene
    tested = {file for file, fold in folds.items() if fold == TEST_FOLD}
    listed = {row["filename"] for _, row in read_rows(data_dir / TEST, ("filename",), "\t")}
    if listed != tested:
        differs = sorted(listed ^ tested)[0]
        raise L3PruneError(
            f"{data_dir / TEST} and {EVALUATE} list different clips, such as {differs}; take both "
            "from one release"
        )
    missing = [file for file in folds if not (data_dir / file).is_file()]
    if missing:
        raise L3PruneError(
            f"{len(missing)} of {len(folds)} files listed in {data_dir / TRAIN.rpartition('/')[0]} "
            f"are missing, the first is {data_dir / missing[0]}; complete the download or remove "
            "their rows"
        )
    labels = tuple(scene for scene in SCENES if scene in scenes.values())
    if not folds:
        raise L3PruneError(f"{data_dir / TRAIN} lists no clips; give the csv of the corpus")
    clips = tuple(
        Clip(
            data_dir / file,
            fold,
            labels.index(scenes[file]),
            group=about[file][1],
            device=about[file][2],
        )
        for file, fold in sorted(folds.items(), key=lambda item: (item[1], item[0]))
    )
    return Dataset("dcase2021", clips, labels)


def _about(path: Path) -> dict[str, tuple[str, str, str]]:
    """File -> scene, place and device of each clip in meta.csv."""
    columns = ("filename", "scene_label", "identifier", "source_label")
    about = {}
    for line, row in read_rows(path, columns, "\t"):
        file, scene, place, device = (row[column] for column in columns)
        where = f"{path} line {line}"
        for kind, value, known in (("scene", scene, SCENES), ("device", device, DEVICES)):
            if value not in known:
                raise L3PruneError(
                    f"{where}: {kind} {value!r} is unknown; known: {', '.join(known)}"
                )
        if file in about:
            raise L3PruneError(f"{where}: {file} is listed twice; keep one of its rows")
        about[file] = (scene, place, device)
    return about
