"""Names of sound classes: AudioSet's list, files like it, and the highest scores by name.

`class_labels_indices.csv` beside this module is AudioSet's list of 527 classes, by Google, under
CC BY 4.0 (https://research.google.com/audioset/download.html), put together from public copies.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from l3prune.checks import check_whole
from l3prune.errors import ParameterError
from l3prune.files import is_file

AUDIOSET = Path(__file__).with_name("class_labels_indices.csv")

COLUMNS = ("index", "mid", "display_name")


@dataclass(frozen=True)
class Labels:
    """The classes of a tagging network, in the order of its outputs.

    Attributes
    ----------
    names : tuple of str
        For people, all different.
    ids : tuple of str
        What a corpus calls them, such as AudioSet's "/m/09x0r"; empty where there are none.

    Raises
    ------
    ParameterError
        A name or an id occurs twice, or is no text, or is empty.

    Examples
    --------
    >>> Labels(("Rain", "Dog")).find("Dog")
    1
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, words in (("label", self.names), ("class id", self.ids)):
            for number, word in enumerate(words):
                if not isinstance(word, str) or not word.strip():
                    raise ParameterError(f"{kind} {number} is {word!r}; give a text")
            twice = [word for word in dict.fromkeys(words) if words.count(word) > 1]
            if twice:
                raise ParameterError(f"{kind} {twice[0]!r} occurs twice; classes have one each")

    def find(self, word: str) -> int:
        """The number of the class with this name or id; names without regard to case."""
        for words in (self.names, self.ids):
            if word in words:
                return words.index(word)
        folded = [name.casefold() for name in self.names]
        if folded.count(word.casefold()) == 1:
            return folded.index(word.casefold())
        close = difflib.get_close_matches(word.casefold(), folded, n=3)
        # Names such as "Male speech, man speaking" are far from a part of them.
        close += [name for name in folded if word.casefold() in name and name not in close]
        hint = ", ".join(repr(self.names[folded.index(name)]) for name in close[:3])
        raise ParameterError(
            f"no label {word!r} among {len(self.names)}; "
            + (f"close: {hint}" if hint else f"such as {', '.join(map(repr, self.names[:3]))}")
        )


def read_labels(path: str | os.PathLike[str] | None = None) -> Labels:
    """Classes of a csv like AudioSet's: index, mid and display_name, names with commas quoted.

    Parameters
    ----------
    path : str or path-like, or None
        None: AudioSet's 527 classes.

    Returns
    -------
    labels : Labels
        In the order of `index`, which counts from 0.

    Raises
    ------
    ParameterError
        No such file, a column is missing, a row has too few or too many fields, or an index, id or
        name occurs twice or is missing.

    Examples
    --------
    >>> labels = read_labels()
    >>> len(labels.names), labels.names[1], labels.ids[526]
    (527, 'Male speech, man speaking', '/m/07hvw1')
    """
    path = AUDIOSET if path is None else Path(path)
    rows: dict[int, dict[str, str]] = {}
    for line, row in _rows(path, COLUMNS):
        index = int(row["index"]) if row["index"].isdecimal() else -1
        if index < 0:
            raise ParameterError(
                f"{path} line {line}: index {row['index']!r} is not a whole number from 0 on"
            )
        if index in rows:
            raise ParameterError(f"{path} line {line}: index {index} occurs twice")
        rows[index] = row
    if not rows:
        raise ParameterError(f"{path} has no classes; give one a line below the header")
    missing = next((index for index in range(len(rows)) if index not in rows), None)
    if missing is not None:
        raise ParameterError(
            f"{path} has {len(rows)} classes, but none of index {missing}; count them from 0"
        )
    ordered = [rows[index] for index in range(len(rows))]
    try:
        return Labels(
            tuple(row["display_name"] for row in ordered), tuple(row["mid"] for row in ordered)
        )
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from error


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a csv by column, with their line numbers."""
    if not is_file(path):
        raise ParameterError(f"no such file of labels: {path}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [each for each in columns if each not in (reader.fieldnames or ())]
            if missing:
                raise ParameterError(
                    f"{path} has no column {missing[0]}; its first line has to be "
                    f"{','.join(columns)}"
                )
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ParameterError(f"{path} is no csv in UTF-8: {error}") from error
    for line, row in rows:
        if None in row or None in row.values():
            raise ParameterError(
                f"{path} line {line} has {'more' if None in row else 'fewer'} fields than its "
                "first line; a name with commas stands in double quotes"
            )
    return rows


def class_numbers(words: Sequence[str], labels: Labels) -> list[int]:
    """The classes that names, ids and files of them stand for, sorted.

    Parameters
    ----------
    words : sequence of str
        Names or ids of `labels`; or files with one a line, or a csv with the column display_name.
    labels : Labels

    Raises
    ------
    ParameterError
        A word is neither; the message has the closest labels.

    Examples
    --------
    >>> class_numbers(["Dog", "/m/09x0r", "cat"], read_labels())
    [0, 74, 81]
    """
    numbers = set()
    for word in words:
        try:
            numbers.add(labels.find(word))
        except ParameterError:
            if not is_file(word):
                raise
            path = Path(word)
            try:
                numbers.update(labels.find(each) for each in _listed(path))
            except ParameterError as error:
                raise ParameterError(f"{path}: {error}") from error
    return sorted(numbers)


def _listed(path: Path) -> list[str]:
    if path.suffix.lower() == ".csv":
        return [row["display_name"] for _, row in _rows(path, ("display_name",))]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ParameterError(f"no text in UTF-8: {error}") from error
    return [line.strip() for line in lines if line.strip()]


class Tracker:
    """The highest scores by name, of all classes or of those that are allowed.

    Parameters
    ----------
    labels : Labels
    allow : sequence of str, or None
        See `class_numbers`. None: all classes.
    deny : sequence of str
        Classes left out, also of `allow`.

    Raises
    ------
    ParameterError
        An unknown label, or no class is left.

    Examples
    --------
    >>> tracker = Tracker(Labels(("Rain", "Dog", "Sea")), deny=["Dog"])
    >>> tracker.top(np.array([0.1, 0.9, 0.3]), 2)
    [('Sea', 0.3), ('Rain', 0.1)]
    """

    def __init__(
        self, labels: Labels, allow: Sequence[str] | None = None, deny: Sequence[str] = ()
    ) -> None:
        self.labels = labels
        kept = range(len(labels.names)) if allow is None else class_numbers(allow, labels)
        denied = set(class_numbers(deny, labels))
        #: Numbers of the classes that it looks at.
        self.classes = np.array([each for each in kept if each not in denied], int)
        if not len(self.classes):
            raise ParameterError("no class is left; allow more, or deny fewer")

    def top(self, scores: np.ndarray, k: int) -> list[tuple[str, float]]:
        """The k highest of its classes, or all if they are fewer, as (name, score).

        Falling; equal scores in the order of the classes.

        Parameters
        ----------
        scores : np.ndarray, (classes,) float
            Of all classes.
        k : int
        """
        check_whole("top_k", k, 1)
        if np.shape(scores) != (len(self.labels.names),):
            raise ParameterError(
                f"scores of shape {np.shape(scores)}; there are {len(self.labels.names)} labels"
            )
        tracked = np.asarray(scores)[self.classes]
        order = np.argsort(-tracked, kind="stable")[:k]
        return [(self.labels.names[self.classes[each]], float(tracked[each])) for each in order]
