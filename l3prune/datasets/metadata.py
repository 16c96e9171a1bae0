"""Read a corpus that one csv file describes: one row per clip, with its fold and its class."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from l3prune.audio import AUDIO_EXTENSIONS
from l3prune.datasets import Clip, Dataset
from l3prune.errors import L3PruneError

#: What stands between columns, where that is not a comma.
_BETWEEN = {"\t": ", with tabs between them"}


@dataclass(frozen=True)
class CsvLayout:
    """Where a corpus keeps its csv and its audio, and what its columns are called.

    Attributes
    ----------
    csv : str
        Path of the csv below the corpus's root.
    audio : str
        Folder of a clip below the root; `{fold}` stands for its fold.
    filename, fold, target, label : str
        Column names. A file name's ending is not believed: the same clip is published as wav and
        as ogg.
    n_folds : int
        Official folds are 1 … n_folds.

    Examples
    --------
    >>> layout = CsvLayout("meta.csv", "fold{fold}", "file", "fold", "id", "class", n_folds=2)
    >>> layout.audio.format(fold=2)
    'fold2'
    """

    csv: str
    audio: str
    filename: str
    fold: str
    target: str
    label: str
    n_folds: int


def load_csv_corpus(name: str, data_dir: Path, layout: CsvLayout) -> Dataset:
    """Index a corpus by its csv.

    A csv with a subset of the classes is fine: targets become contiguous, in the csv's own order.

    Parameters
    ----------
    name : str
        Name of the dataset.
    data_dir : pathlib.Path
        Root of the corpus.
    layout : CsvLayout

    Returns
    -------
    dataset : Dataset

    Raises
    ------
    L3PruneError
        The csv is missing, unreadable, empty or inconsistent, or files that it lists are missing.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> _ = (root / "meta.csv").write_text("file,fold,id,class\\na.wav,1,7,dog\\n")
    >>> _ = (root / "a.ogg").write_bytes(b"")
    >>> layout = CsvLayout("meta.csv", ".", "file", "fold", "id", "class", n_folds=2)
    >>> dataset = load_csv_corpus("toy", root, layout)
    >>> dataset.labels, dataset.clips[0].path.name, dataset.clips[0].target
    (('dog',), 'a.ogg', 0)
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise L3PruneError(f"no such folder: {data_dir}; give the root folder of {name}")
    path = data_dir / layout.csv
    if not path.is_file():
        raise L3PruneError(
            f"{path} is missing; give the folder that holds {layout.csv} "
            f"and {layout.audio.format(fold='1')}"
        )
    columns = (layout.filename, layout.fold, layout.target, layout.label)
    folders: dict[Path, dict[str, list[Path]]] = {}
    labels: dict[int, str] = {}
    found: list[tuple[int, str, Path, int]] = []
    missing: list[Path] = []
    seen: set[str] = set()
    for line, row in read_rows(path, columns):
        where = f"{path} line {line}"
        filename, label = row[layout.filename], row[layout.label]
        fold = _integer(row[layout.fold], layout.fold, where)
        target = _integer(row[layout.target], layout.target, where)
        if not 1 <= fold <= layout.n_folds:
            raise L3PruneError(
                f"{where}: fold {fold} is not in 1 … {layout.n_folds}, the folds of {name}"
            )
        if labels.setdefault(target, label) != label:
            raise L3PruneError(
                f"{where}: {layout.target} {target} is {label!r} here and {labels[target]!r} "
                "above; give each class one number"
            )
        # A clip listed twice could be in the training and in the test fold.
        if _stem(filename) in seen:
            raise L3PruneError(f"{where}: {filename} is listed twice; keep one of its rows")
        seen.add(_stem(filename))
        folder = data_dir / layout.audio.format(fold=fold)
        if folder not in folders:
            folders[folder] = _audio_by_stem(folder)
        audio = _look_up(folders[folder], filename)
        if audio is None:
            missing.append(folder / filename)
        else:
            found.append((fold, filename, audio, target))
    if missing:
        raise L3PruneError(
            f"{len(missing)} of {len(seen)} files listed in {path} are missing, the first is "
            f"{missing[0]}; complete the download or remove their rows"
        )
    if not found:
        raise L3PruneError(f"{path} lists no clips; give the csv that {name} is published with")
    if len(set(labels.values())) < len(labels):
        raise L3PruneError(
            f"{path} gives one name in column {layout.label} to several {layout.target}; "
            "give each class one number"
        )
    order = sorted(labels)
    clips = tuple(
        Clip(audio, fold, order.index(target)) for fold, _, audio, target in sorted(found)
    )
    return Dataset(name, clips, tuple(labels[target] for target in order))


def read_rows(
    path: Path, columns: tuple[str, ...], delimiter: str = ",", *, header: bool = True
) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of every row of a csv; each of `columns` is present and not empty.

    Without a header the first columns are these.

    Raises
    ------
    L3PruneError
        The file cannot be read, a column is missing, or a value of these is.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "meta.csv"
    >>> _ = path.write_text("file,fold\\na.wav,1\\n")
    >>> read_rows(path, ("file", "fold"))
    [(2, {'file': 'a.wav', 'fold': '1'})]
    """
    rows = []
    try:
        # utf-8-sig: spreadsheets put a byte-order mark in front of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, None if header else columns, delimiter=delimiter)
            absent = [column for column in columns if column not in (reader.fieldnames or ())]
            if absent:
                raise L3PruneError(
                    f"{path} has no column {', '.join(absent)}; its first line must name "
                    f"{', '.join(columns)}{_BETWEEN.get(delimiter, '')}"
                )
            for row in reader:
                values = {column: (row[column] or "").strip() for column in columns}
                for column, value in values.items():
                    if not value:
                        raise L3PruneError(
                            f"{path} line {reader.line_num} has no {column}; "
                            "complete or remove the row"
                        )
                rows.append((reader.line_num, values))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise L3PruneError(f"{path} cannot be read as csv ({error}); save it as UTF-8") from error
    return rows


def _integer(text: str, column: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise L3PruneError(f"{where}: {column} {text!r} is not an integer; correct it") from None


def _stem(filename: str) -> str:
    """The name without an audio ending; other dots belong to the name."""
    path = Path(filename)
    return filename[: -len(path.suffix)] if path.suffix.lower() in AUDIO_EXTENSIONS else filename


def _audio_by_stem(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        return {}
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in AUDIO_EXTENSIONS and path.is_file():
            by_stem.setdefault(path.stem, []).append(path)
    return by_stem


def _look_up(by_stem: dict[str, list[Path]], filename: str) -> Path | None:
    """The file of that very name, or else the first with its stem."""
    candidates = by_stem.get(_stem(filename), [])
    named = [path for path in candidates if path.name == filename]
    return next(iter(named + candidates), None)
