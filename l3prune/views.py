"""What the commands that tag sound share: their options, and sounds as lines of a terminal."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from l3prune.checks import check_whole
from l3prune.quiet import load_tensorflow

if TYPE_CHECKING:
    from l3prune.labels import Tracker
    from l3prune.tagging import Tagger

#: Columns of a name at most, of a bar, and of both with rank and score.
_NAME, _BAR = 36, 30

#: Eighths of a character cell.
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def add_options(parser: argparse.ArgumentParser, top_k: int) -> None:
    """Options of the network and of the classes to show.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_options(parser, top_k=10)
    >>> parser.parse_args(["--model", "net.h5", "--deny", "Music"]).deny
    ['Music']
    """
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="weight file of a network such as cnn14")
    add("--top-k", type=int, default=top_k, metavar="N", help="sounds to show (%(default)s)")
    add(
        "--labels",
        metavar="CSV",
        help="names of the classes: index,mid,display_name (default: those in the weight file, or "
        "for 527 classes AudioSet's)",
    )
    add(
        "--allow",
        nargs="+",
        metavar="LABEL",
        help="only these classes: names, ids, or files with one a line or a column display_name",
    )
    add("--deny", nargs="+", default=[], metavar="LABEL", help="none of these, given alike")
    add(
        "--activation",
        metavar="NAME",
        help="sigmoid: each class for itself; softmax: they compete for a sum of 1 (default: what "
        "the network was trained with, the sigmoid for cnn14)",
    )


def load(args: argparse.Namespace) -> tuple[Tagger, Tracker]:
    """The network and the classes that the options choose.

    Raises
    ------
    ParameterError, L3PruneError
        See `tagging.load_tagger` and `labels.Tracker`.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_options(parser, top_k=10)
    >>> load(parser.parse_args(["--model", "/nowhere/net.h5"]))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such weight file: /nowhere/net.h5; published weights have ...
    """
    from l3prune import models
    from l3prune.labels import Tracker, read_labels

    check_whole("--top-k", args.top_k, 1)
    # What is wrong shows before TensorFlow has started.
    models.locate(args.model)
    labels = None if args.labels is None else read_labels(args.labels)
    if labels is not None:
        Tracker(labels, args.allow, args.deny)
    load_tensorflow()
    from l3prune.tagging import load_tagger

    tagger = load_tagger(args.model, activation=args.activation, labels=labels)
    return tagger, Tracker(tagger.labels, args.allow, args.deny)


def lines(top: Sequence[tuple[str, float]], width: int, *, blocks: bool = True) -> list[str]:
    """Rank, name, score and bar of each sound, not wider than a terminal.

    Parameters
    ----------
    top : sequence of (name, score)
        Falling; see `labels.Tracker.top`.
    width : int
        Columns of the terminal.
    blocks : bool
        It can show block characters.

    Examples
    --------
    >>> for line in lines([("Rain", 0.5), ("Dog", 0.03)], 30, blocks=False): print(line)
      1  Rain  0.500  ######
      2  Dog   0.030
    """
    names = max((len(name) for name, _ in top), default=0)
    names = max(min(names, _NAME, width - 16), 1)
    most = max(min(width - names - 14, _BAR), 0)
    shown = []
    for rank, (name, score) in enumerate(top, 1):
        name = name if len(name) <= names else name[: names - 1] + "…"
        line = f"{rank:3}  {name:{names}}  {score:.3f}  {_bar(score, most, blocks)}"
        shown.append(line.rstrip())
    return shown


def _bar(score: float, most: int, blocks: bool) -> str:
    if not blocks:
        return "#" * math.floor(score * most + 0.5)
    eighths = math.floor(min(max(score, 0), 1) * most * 8 + 0.5)
    return _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def can_show_blocks(encoding: str | None) -> bool:
    """Whether text of an encoding can hold block characters.

    Examples
    --------
    >>> can_show_blocks("utf-8"), can_show_blocks("latin-1")
    (True, False)
    """
    try:
        _EIGHTHS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
