"""Labelled sound corpora with official folds: one module each, found by being in this folder.

A corpus module has `load(data_dir) -> Dataset` and its name is the corpus's name. Where augmented
copies of clips may lie beside them, it is `load(data_dir, augmented=False)`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from l3prune.errors import ParameterError


@dataclass(frozen=True)
class Clip:
    """One labelled recording.

    Attributes
    ----------
    path : pathlib.Path
        The audio file.
    fold : int
        Official fold, from 1.
    target : int
        Class index, 0 … number of classes - 1: a position in `Dataset.labels`.
    original : str or None
        Stem of the official clip that this one is an augmented copy of; None for an official clip.
        Copies may only be trained on.
    group : str or None
        What clips share that have to be on one side of a split, such as the place where they were
        recorded; None where the corpus has no such thing but its folds.
    device : str or None
        What the clip was recorded with, where the corpus tells.
    further : tuple of int
        More classes of the clip, in a corpus of several labels a clip.

    Examples
    --------
    >>> Clip(Path("fold1/7061-6-0-0.wav"), fold=1, target=6).path.stem
    '7061-6-0-0'
    """

    path: Path
    fold: int
    target: int
    original: str | None = None
    group: str | None = None
    device: str | None = None
    further: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A corpus: its clips, in a fixed order, and its class names.

    Attributes
    ----------
    name : str
        Name in this registry.
    clips : tuple of Clip
        Ordered by fold, then file name, so that every machine sees the same order.
    labels : tuple of str
        Class names; `Clip.target` indexes them.
    multi_label : bool
        A clip can have several classes; see `Clip.further`.
    maps : callable, () -> list of np.ndarray, or None
        Of a corpus that is there as spectrograms, in place of audio: reads those of all clips, in
        their order, (frames, bands) uint8.

    Examples
    --------
    >>> clips = (Clip(Path("a.wav"), fold=1, target=0), Clip(Path("b.wav"), fold=3, target=1))
    >>> Dataset("toy", clips, ("dog", "rain")).folds
    (1, 3)
    """

    name: str
    clips: tuple[Clip, ...]
    labels: tuple[str, ...]
    multi_label: bool = False
    maps: Callable[[], list[np.ndarray]] | None = None

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that have clips, ascending."""
        return tuple(sorted({clip.fold for clip in self.clips}))


def list_datasets() -> list[str]:
    """Names of the corpora that `load_dataset` reads.

    Examples
    --------
    >>> "us8k" in list_datasets()
    True
    """
    return [name for name in _modules() if hasattr(_import(name), "load")]


def load_dataset(
    name: str, data_dir: str | os.PathLike[str], *, augmented: bool = False
) -> Dataset:
    """Index a corpus on disk.

    Parameters
    ----------
    name : str
        One of `list_datasets()`.
    data_dir : str or path-like
        Its root folder, laid out as its authors publish it.
    augmented : bool
        Add augmented copies of clips, see `Clip.original`.

    Returns
    -------
    dataset : Dataset

    Raises
    ------
    ParameterError
        Unknown name, or augmented copies of a corpus that has none.
    L3PruneError
        The folder is not laid out as this corpus is, or a listed file is missing.

    Examples
    --------
    >>> load_dataset("us9k", ".")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: dataset 'us9k' is unknown; known: ...
    """
    known = list_datasets()
    if name not in known:
        raise ParameterError(f"dataset {name!r} is unknown; known: {', '.join(known)}")
    load = _import(name).load
    if not augmented:
        return load(Path(data_dir))
    if "augmented" not in inspect.signature(load).parameters:
        raise ParameterError(f"{name} has no augmented copies; us8k may have them")
    return load(Path(data_dir), augmented=True)


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _import(name: str):
    return importlib.import_module(f"{__name__}.{name}")
