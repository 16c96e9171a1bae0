"""Subsets of a folder of videos to train, validate and test on: by id, by AudioSet's labels.

A subset is a csv with the columns ytid, audio_filepath, video_filepath and labels, joined by `;`.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from l3prune.audio import AUDIO_EXTENSIONS
from l3prune.checks import check_whole
from l3prune.datasets.metadata import read_rows
from l3prune.datasets.sounds import keyed_generator
from l3prune.datasets.videos import VIDEO_EXTENSIONS
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, check_names, find_files, read_json

COLUMNS = ("ytid", "audio_filepath", "video_filepath", "labels")

#: A part of a video on YouTube: its id, and the seconds between which it was cut.
SEGMENT = re.compile(r"((?:.*/)?[\w-]{11})_\d+(?:\.\d+)?_\d+(?:\.\d+)?", re.DOTALL)

#: Endings of files with sound alone, or with pictures that are not looked at.
_SOUND_EXTENSIONS = (*AUDIO_EXTENSIONS, ".m4a", ".aac", *VIDEO_EXTENSIONS)

#: So many of what is reported are named.
_NAMED = 5


@dataclass(frozen=True)
class Entry:
    """A video of a subset.

    Attributes
    ----------
    ytid : str
        Its id; parts of one video have the same.
    audio, video : pathlib.Path
        Files with the sound and with the pictures; mostly the same.
    labels : tuple of str

    Examples
    --------
    >>> Entry("a", Path("a.mp4"), Path("a.mp4")).labels
    ()
    """

    ytid: str
    audio: Path
    video: Path
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subsets:
    """Videos to train, validate and test on, and what was left out.

    Attributes
    ----------
    train, valid, test : list of Entry
    notices : list of str
        What was asked for and is not there, what is there and was not used.

    Examples
    --------
    >>> Subsets([], [], [], []).notices
    []
    """

    train: list[Entry]
    valid: list[Entry]
    test: list[Entry]
    notices: list[str]

    def write(self, output_dir: str | os.PathLike[str], prefix: str = "") -> dict[Path, int]:
        """Write `train.csv`, `valid.csv` and `test.csv`, with a prefix `<prefix>_train.csv`, …

        Returns
        -------
        paths : dict
            File -> how many videos it lists.

        Raises
        ------
        L3PruneError
            They cannot be written.
        """
        written = {}
        for name in ("train", "valid", "test"):
            entries: list[Entry] = getattr(self, name)
            path = Path(output_dir) / (f"{prefix}_{name}.csv" if prefix else f"{name}.csv")
            with (
                atomic_write(path) as temporary,
                temporary.open("w", encoding="utf-8", newline="") as file,
            ):
                writer = csv.writer(file, lineterminator="\n")
                # An empty subset has a file, too: one of an older run would be wrong.
                writer.writerow(COLUMNS)
                for entry in entries:
                    labels = ";".join(entry.labels)
                    writer.writerow([entry.ytid, entry.audio, entry.video, labels])
            written[path] = len(entries)
        return written


def make_subsets(
    data_dir: str | os.PathLike[str],
    *,
    metadata: Sequence[str | os.PathLike[str]] = (),
    ontology: str | os.PathLike[str] | None = None,
    filters: str | os.PathLike[str] | None = None,
    valid_ratio: float = 0.1,
    test_ratio: float = 0.1,
    seed: int = 20171021,
) -> Subsets:
    """Find videos, choose some by their labels, and share them out by id.

    Parameters
    ----------
    data_dir : str or path-like
        Sound in folders called `audio` and pictures in folders called `video`, at any depth,
        matched by name; or else video files at any depth. `<id>_<start>_<end>` is a part of the
        video `<id>`, if an id has 11 characters.
    metadata : sequence of str or path-like
        csv files of AudioSet's segments, or patterns of their names. Only videos listed there are
        used.
    ontology : str or path-like, optional
        AudioSet's `ontology.json`, which gives labels their names and their children.
    filters : str or path-like, optional
        csv with the columns filter_type (ytid, label), accept_reject (accept, reject),
        include_children (true, false) and string (an id; a label's name or id). A video is used
        when an accepting row, if there is any, and no rejecting row is about it.
    valid_ratio, test_ratio : float
        Of the videos.
    seed : int
        Another seed, other subsets; which do not depend on the order of files.

    Returns
    -------
    subsets : Subsets

    Raises
    ------
    ParameterError
        A ratio or a filter that cannot be.
    L3PruneError
        A file is missing or is not what it should be, or no videos are left.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in "abcdefghij":
    ...     (folder / f"{name}.mp4").touch()
    >>> subsets = make_subsets(folder)
    >>> len(subsets.train), len(subsets.valid), len(subsets.test)
    (8, 1, 1)
    """
    check_whole("seed", seed, 0)
    if not (valid_ratio >= 0 and test_ratio >= 0 and valid_ratio + test_ratio < 1):
        raise ParameterError(
            f"valid_ratio={valid_ratio} and test_ratio={test_ratio}: give two parts from 0 on that "
            "are less than 1 together"
        )
    tree = None if ontology is None else Ontology(ontology)
    rules = [] if filters is None else _read_filters(Path(filters), tree, bool(metadata))
    notices: list[str] = []
    files = _find(Path(data_dir), notices)
    mids = {}
    if metadata:
        mids = _read_metadata(metadata)
        files = _listed(files, mids, notices)
        if not files:
            raise L3PruneError(
                f"no video in {data_dir} is listed in {', '.join(map(str, metadata))}"
            )
    chosen = [
        Entry(ytid, audio, video, _names(mids.get(ytid, ()), tree))
        for ytid, audio, video in files
        if _accepted(ytid, mids.get(ytid, ()), rules)
    ]
    if not chosen:
        raise L3PruneError(f"{filters} leaves none of the {len(files)} videos in {data_dir}")
    if tree is not None:
        strange = {mid for entry in files for mid in mids.get(entry[0], ())} - set(tree.names)
        _report(notices, strange, "labels unknown to the ontology, which keep their ids")
    ids = sorted({entry.ytid for entry in chosen})
    order = keyed_generator(seed).permutation(len(ids))
    shuffled = [ids[place] for place in order]
    # A sum such as 0.29 * 100 is a hair less than it should be.
    valid, test = (int(len(ids) * ratio + 1e-9) for ratio in (valid_ratio, test_ratio))
    parts = {
        "train": set(shuffled[valid + test :]),
        "valid": set(shuffled[:valid]),
        "test": set(shuffled[valid : valid + test]),
    }
    for name, ratio in (("valid", valid_ratio), ("test", test_ratio)):
        if ratio and not parts[name]:
            notices.append(f"{name}: empty, {len(ids)} videos are too few for {ratio:g} of them")
    shared = {name: [e for e in chosen if e.ytid in part] for name, part in parts.items()}
    return Subsets(**shared, notices=notices)


def read_subset(path: str | os.PathLike[str]) -> list[Entry]:
    """The videos of a subset's csv; paths that are not absolute begin at the csv's folder.

    Labels are not read.

    Raises
    ------
    L3PruneError
        It cannot be read, has no such columns, or lists no videos.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "train.csv"
    >>> _ = path.write_text("ytid,audio_filepath,video_filepath,labels\\na,a.flac,a.mp4,\\n")
    >>> read_subset(path)[0].video == path.parent / "a.mp4"
    True
    """
    path = Path(path)
    folder = path.absolute().parent
    entries = [
        Entry(row["ytid"], folder / row["audio_filepath"], folder / row["video_filepath"])
        for _, row in read_rows(path, ("ytid", "audio_filepath", "video_filepath"))
    ]
    if not entries:
        raise L3PruneError(f"{path} lists no videos")
    return entries


class Ontology:
    """AudioSet's labels: their names and what they are kinds of.

    Parameters
    ----------
    path : str or path-like
        `ontology.json`.

    Raises
    ------
    L3PruneError
        The file cannot be read or is no ontology.

    Attributes
    ----------
    names : dict
        Id -> name.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "ontology.json"
    >>> _ = path.write_text(
    ...     '[{"id": "/m/1", "name": "Music", "child_ids": ["/m/2"]},'
    ...     ' {"id": "/m/2", "name": "Song", "child_ids": []}]'
    ... )
    >>> sorted(Ontology(path).with_children("/m/1"))
    ['/m/1', '/m/2']
    """

    def __init__(self, path: str | os.PathLike[str]):
        nodes = read_json(path)
        try:
            self.names: dict[str, str] = {node["id"]: str(node["name"]) for node in nodes}
            self._children = {node["id"]: list(node["child_ids"]) for node in nodes}
        except (TypeError, KeyError) as error:
            raise L3PruneError(
                f"{path} is no ontology of AudioSet: a list of labels with id, name and child_ids"
            ) from error

    def find(self, text: str) -> str | None:
        """The id of a label, by its id or its name in any case; None if there is none."""
        if text in self.names:
            return text
        return next((mid for mid, name in self.names.items() if name.lower() == text.lower()), None)

    def with_children(self, mid: str) -> set[str]:
        """A label, its children, and theirs."""
        found: set[str] = set()
        waiting = [mid]
        while waiting:
            label = waiting.pop()
            if label not in found:
                found.add(label)
                waiting += self._children.get(label, [])
        return found


@dataclass(frozen=True)
class _Rule:
    """A row of the filter csv: an id, or labels."""

    accept: bool
    ytid: str | None
    mids: frozenset[str]

    def matches(self, ytid: str, mids: Collection[str]) -> bool:
        return ytid == self.ytid or not self.mids.isdisjoint(mids)


def _read_filters(path: Path, ontology: Ontology | None, with_labels: bool) -> list[_Rule]:
    allowed = {
        "filter_type": ("ytid", "label"),
        "accept_reject": ("accept", "reject"),
        "include_children": ("true", "false"),
    }
    rules = []
    for line, row in read_rows(path, (*allowed, "string")):
        where = f"{path} line {line}"
        for column, values in allowed.items():
            if row[column].lower() not in values:
                raise ParameterError(
                    f"{where}: {column} {row[column]!r} is unknown; known: {', '.join(values)}"
                )
        accept, text = row["accept_reject"].lower() == "accept", row["string"]
        if row["filter_type"].lower() == "ytid":
            rules.append(_Rule(accept, text, frozenset()))
            continue
        if not with_labels:
            raise ParameterError(f"{where}: labels are not known without a csv of AudioSet's")
        children = row["include_children"].lower() == "true"
        if ontology is None:
            if children or not text.startswith("/"):
                raise ParameterError(
                    f"{where}: names and children of labels are not known without an ontology"
                )
            rules.append(_Rule(accept, None, frozenset([text])))
            continue
        mid = ontology.find(text)
        if mid is None:
            raise ParameterError(f"{where}: label {text!r} is not in the ontology; correct it")
        mids = ontology.with_children(mid) if children else {mid}
        rules.append(_Rule(accept, None, frozenset(mids)))
    return rules


def _accepted(ytid: str, mids: Collection[str], rules: Iterable[_Rule]) -> bool:
    verdicts = [(rule.accept, rule.matches(ytid, mids)) for rule in rules]
    if (False, True) in verdicts:
        return False
    return (True, True) in verdicts or (True, False) not in verdicts


def _names(mids: Iterable[str], ontology: Ontology | None) -> tuple[str, ...]:
    """Labels as the csv has them: names in lower case, or ids without an ontology."""
    names = {} if ontology is None else ontology.names
    return tuple(names[mid].lower() if mid in names else mid for mid in mids)


def _read_metadata(patterns: Sequence[str | os.PathLike[str]]) -> dict[str, tuple[str, ...]]:
    """Labels by id, of AudioSet's csv files."""
    mids: dict[str, tuple[str, ...]] = {}
    for pattern in map(str, patterns):
        paths = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise L3PruneError(f"no such file: {pattern}; give AudioSet's csv of segments")
        for path in paths:
            try:
                with open(path, encoding="utf-8-sig", newline="") as file:
                    reader = csv.reader(file, skipinitialspace=True)
                    for row in reader:
                        if not row or row[0].startswith("#") or row[0].lower() == "ytid":
                            continue
                        if len(row) < 4:
                            raise L3PruneError(
                                f"{path} line {reader.line_num} has no four columns: YTID, "
                                "start_seconds, end_seconds, positive_labels"
                            )
                        labels = [label.strip() for label in row[3].split(",") if label.strip()]
                        mids[row[0].strip()] = tuple(
                            dict.fromkeys((*mids.get(row[0].strip(), ()), *labels))
                        )
            except (OSError, UnicodeDecodeError, csv.Error) as error:
                raise L3PruneError(f"{path} cannot be read as csv ({error})") from error
    if not mids:
        raise L3PruneError(f"{', '.join(map(str, patterns))}: no videos are listed there")
    return mids


def _find(data_dir: Path, notices: list[str]) -> list[tuple[str, Path, Path]]:
    """Id, file with the sound and file with the pictures of all videos in a folder."""
    data_dir = data_dir.absolute()
    audio = _by_stem(data_dir, "audio", _SOUND_EXTENSIONS)
    video = _by_stem(data_dir, "video", VIDEO_EXTENSIONS)
    if audio and video:
        alone = set(audio) ^ set(video)
        _report(notices, alone, "files with sound or pictures only, not used")
        found = [(stem, audio[stem], video[stem]) for stem in sorted(set(audio) & set(video))]
    else:
        found = [
            (path.relative_to(data_dir).with_suffix("").as_posix(), path, path)
            for path in find_files(data_dir, VIDEO_EXTENSIONS)
        ]
    if not found:
        raise L3PruneError(
            f"{data_dir} holds no videos: neither sound in folders 'audio' and pictures in folders "
            f"'video', nor video files ({', '.join(VIDEO_EXTENSIONS)})"
        )
    check_names(path for _, audio, video in found for path in (audio, video))
    return [(_id_of(name), audio, video) for name, audio, video in found]


def _id_of(name: str) -> str:
    part = SEGMENT.fullmatch(name)
    return part[1] if part else name


def _by_stem(data_dir: Path, folder: str, endings: Sequence[str]) -> dict[str, Path]:
    """Files in folders of a name, the first of each stem."""
    found: dict[str, Path] = {}
    for path in find_files(data_dir, endings):
        if path.parent.name == folder:
            found.setdefault(path.stem, path)
    return found


def _listed(
    files: Sequence[tuple[str, Path, Path]],
    mids: Mapping[str, object],
    notices: list[str],
) -> list[tuple[str, Path, Path]]:
    """The files of videos that the csv lists."""
    # Below a folder of videos an id may stand behind the names of folders.
    named = [
        (ytid if ytid in mids else ytid.rpartition("/")[2], audio, video)
        for ytid, audio, video in files
    ]
    there = {ytid for ytid, _, _ in named}
    _report(notices, set(mids) - there, "videos of the csv without a file")
    _report(notices, there - set(mids), "videos that are not in the csv, not used")
    return [each for each in named if each[0] in mids]


def _report(notices: list[str], names: Collection[str], text: str) -> None:
    if names:
        first = ", ".join(sorted(names)[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        notices.append(f"{text}: {len(names)} ({first})")
