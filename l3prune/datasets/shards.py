"""HDF5 shards of pairs in the layout of L3-Net's AVC batches: written, read by row, looked at.

A shard holds `video` uint8 (n, 224, 224, 3), `audio` int16 (n, 1, sample rate) and `label` int64
(n, 2), [mismatch, match], and where each comes from if that was asked for.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import L3PruneError
from l3prune.files import atomic_write, find_files, fingerprint

IMAGE_SHAPE = (224, 224, 3)

#: What `--include-metadata` adds, with the types they are written in; a name stands for its bytes.
METADATA: dict[str, Any] = {
    "audio_file": bytes,
    "video_file": bytes,
    "audio_start_sample_idx": np.int64,
    "video_start_frame_idx": np.int64,
    "audio_gain": np.float64,
    "video_bounding_box_start_x": np.int64,
    "video_bounding_box_start_y": np.int64,
    "video_horizontal_flip": np.bool_,
    "video_saturation_factor": np.float64,
    "video_brightness_delta": np.float64,
    "audio_time": np.float64,
    "video_time": np.float64,
}

#: A block has so much of a shard; two are kept.
BLOCK_BYTES = 2**26

#: A file may have so many rows more than bytes of them.
MAX_UNWRITTEN = 4096

#: Dataset of a shard with draws that could not be decoded: (number of the video, reason), as JSON.
_FAILURES = "failures"


@dataclass(frozen=True)
class Field:
    """A dataset that a reader needs of each shard.

    Attributes
    ----------
    name : str
    kind : str
        NumPy's name of the type, or "integer" for whole numbers of any type.
    shape : tuple of int
        Of one row.

    Examples
    --------
    >>> Field("audio", "int16", (1, 8000)).row_bytes
    16000
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, unpacked."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """The type that is written."""
        return np.dtype("int64" if self.kind == "integer" else self.kind)

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return f"'{self.name}' {self.kind} of shape (n, {shape})"


def audio_field(sample_rate: int) -> Field:
    """The seconds of sound.

    Examples
    --------
    >>> str(audio_field(8000))
    "'audio' int16 of shape (n, 1, 8000)"
    """
    return Field("audio", "int16", (1, sample_rate))


def pair_fields(sample_rate: int) -> tuple[Field, ...]:
    """All that a network learns correspondence from.

    Examples
    --------
    >>> [field.name for field in pair_fields(8000)]
    ['video', 'audio', 'label']
    """
    return (
        Field("video", "uint8", IMAGE_SHAPE),
        audio_field(sample_rate),
        Field("label", "integer", (2,)),
    )


def find_shards(folder: str | os.PathLike[str]) -> list[Path]:
    """HDF5 files below a folder, at any depth, in sorted order; hidden ones are passed over.

    Raises
    ------
    L3PruneError
        No such folder.

    Examples
    --------
    >>> find_shards("/nowhere")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such folder: /nowhere
    """
    return find_files(folder, [".h5"])


@contextlib.contextmanager
def new_shard(
    path: str | os.PathLike[str], rows: int, sample_rate: int, metadata: Mapping[str, Any]
) -> Iterator[Any]:
    """Write a shard: gives an h5py.File with all datasets, to be filled row by row.

    Parameters
    ----------
    path : str or path-like
        The file appears, whole, when the block ends without an exception.
    rows : int
    sample_rate : int
    metadata : dict
        Names and types of datasets besides, one value a row.

    Raises
    ------
    L3PruneError
        It cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "1_0_0.h5"
    >>> with new_shard(path, 2, 8000, {}) as file:
    ...     file["label"][:] = [[0, 1], [1, 0]]
    >>> inspect_shard(path).matches
    1
    """
    import h5py

    with atomic_write(path) as temporary:
        # In memory: HDF5 does not recover from a disk that is full.
        with h5py.File(
            temporary.name, "w", driver="core", backing_store=False, block_size=2**22
        ) as file:
            for field in pair_fields(sample_rate):
                # A row a chunk, so that rows can be filled and read apart.
                file.create_dataset(
                    field.name,
                    (rows, *field.shape),
                    field.dtype,
                    compression="gzip",
                    chunks=(rows, 2) if field.name == "label" else (1, *field.shape),
                )
            for name, kind in metadata.items():
                file.create_dataset(name, (rows,), kind, compression="gzip")
            yield file
            file.flush()
            image = file.id.get_file_image()
        temporary.write_bytes(image)


def write_failures(file: Any, failures: Sequence[tuple[int, str]]) -> None:
    """Add draws that could not be decoded to a new shard: (number of the video, reason).

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "1_0_0.h5"
    >>> with new_shard(path, 1, 8000, {}) as file:
    ...     write_failures(file, [(3, "the picture at 1.0 s is damaged")])
    >>> read_failures(path)
    [(3, 'the picture at 1.0 s is damaged')]
    """
    if failures:
        # An attribute may have no more than 64 kB.
        file[_FAILURES] = np.frombuffer(json.dumps(failures).encode(), np.uint8)


def read_failures(path: Path) -> list[tuple[int, str]]:
    """What `write_failures` wrote.

    Raises
    ------
    L3PruneError
        The shard is damaged.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "1_0_0.h5"
    >>> with new_shard(path, 1, 8000, {}):
    ...     pass
    >>> read_failures(path)
    []
    """
    with _damage(path, "is not an HDF5 shard, or is damaged"), _opened(path) as file:
        if _FAILURES not in file:
            return []
        failures = _dataset(file, _FAILURES)
        if failures is None or failures.ndim != 1:
            raise L3PruneError(f"{path} is damaged: '{_FAILURES}' is no text")
        return [(int(video), str(reason)) for video, reason in json.loads(failures[:].tobytes())]


class ShardRows:
    """The rows of many shards, numbered through, read in blocks of bounded size.

    Parameters
    ----------
    paths : sequence of pathlib.Path
    fields : sequence of Field
        What is read; other datasets are not looked at.

    Raises
    ------
    L3PruneError
        A file is no HDF5 file, is damaged, or has no such datasets; or there are no rows.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "1_0_0.h5"
    >>> with new_shard(path, 3, 8000, {}) as file:
    ...     file["audio"][2] = 7
    >>> ShardRows([path], [audio_field(8000)]).read(np.array([2]))["audio"].max()
    np.int16(7)
    """

    def __init__(self, paths: Sequence[Path], fields: Sequence[Field]):
        self.fields = tuple(fields)
        self._paths = list(paths)
        length = max(1, BLOCK_BYTES // sum(field.row_bytes for field in fields))
        counts = [_count(path, self.fields) for path in paths]
        #: Shard, first row and row after the last one of each block.
        self._blocks = [
            (shard, start, min(start + length, count))
            for shard, count in enumerate(counts)
            for start in range(0, count, length)
        ]
        self._ends = np.cumsum([stop - start for _, start, stop in self._blocks], dtype=np.int64)
        self._open: dict[int, dict[str, _Unpacked]] = {}
        if not self._blocks:
            raise L3PruneError(f"{paths[0].parent} holds no windows: every shard is empty")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fingerprint(self, **settings: float) -> str:
        """Changes when the files or the settings change."""
        return fingerprint(self._paths, **settings)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of each field, (len(indices), *shape), as they are kept."""
        blocks = np.searchsorted(self._ends, indices, side="right")
        result = {
            field.name: np.empty((len(indices), *field.shape), field.dtype) for field in self.fields
        }
        for block in dict.fromkeys(blocks.tolist()):
            here = blocks == block
            rows = indices[here] - self._first(block)
            for name, values in self._load(block, rows).items():
                result[name][here] = values[rows]
        return result

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """All rows: shards in random order, the blocks of each, and the rows of each block.

        One block is read after the other. Shards hold pairs drawn at random, so this mixes as well
        as if all rows were shuffled.
        """
        of_shard: dict[int, list[int]] = {shard: [] for shard in range(len(self._paths))}
        for block, (shard, _, _) in enumerate(self._blocks):
            of_shard[shard].append(block)
        return np.concatenate(
            [
                generator.permutation(np.arange(self._first(block), self._ends[block]))
                for shard in generator.permutation(len(self._paths)).tolist()
                for block in generator.permutation(of_shard[shard]).tolist()
            ]
        )

    def _first(self, block: int) -> int:
        return int(self._ends[block - 1]) if block else 0

    def _load(self, block: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """A block of which these rows, and the HDF5 chunks around them, are unpacked.

        Workers that share batches need some rows of each block only, and shards of ours have a
        chunk for each row.
        """
        shard, start, stop = self._blocks[block]
        path = self._paths[shard]
        if block not in self._open:
            # A batch may touch the end of one block and the start of the next.
            while len(self._open) > 1:
                del self._open[next(iter(self._open))]
            self._open[block] = {
                field.name: _Unpacked(start, np.empty((stop - start, *field.shape), field.dtype))
                for field in self.fields
            }
        fields = self._open[block]
        if not all(each.has[rows].all() for each in fields.values()):
            with _damage(path, "is damaged"), _opened(path) as file:
                for name, each in fields.items():
                    each.fill(file[name], rows)
            labels = fields["label"].values[rows] if "label" in fields else np.eye(2)
            if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
                del self._open[block]
                raise L3PruneError(f"{path}: labels are not [mismatch, match], one of them 1")
        return {name: each.values for name, each in fields.items()}


class _Unpacked:
    """Rows of one field of a block, from a row of the shard on, and which of them are there."""

    def __init__(self, first: int, values: np.ndarray):
        self.first = first
        self.values = values
        self.has = np.zeros(len(values), bool)

    def fill(self, dataset: Any, rows: np.ndarray) -> None:
        """Unpack the rows that are missing of these, a chunk at a time."""
        length = dataset.chunks[0] if dataset.chunks else dataset.shape[0]
        missing = self.first + rows[~self.has[rows]]
        for chunk in np.unique(missing // length):
            begin = max(chunk * length, self.first)
            end = min((chunk + 1) * length, self.first + len(self.values))
            here = slice(begin - self.first, end - self.first)
            self.values[here] = dataset[begin:end]
            self.has[here] = True


@dataclass(frozen=True)
class ShardReport:
    """What a shard holds, all of it read.

    Attributes
    ----------
    path : pathlib.Path
    pairs, matches : int
        Matches are pairs of one video.
    sample_rate : int
    metadata : bool
        It tells where its pairs come from.
    damage : str
        Why it cannot be used; empty where it can.

    Examples
    --------
    >>> ShardReport(Path("1_0_0.h5"), 64, 30, 48000, False).damage
    ''
    """

    path: Path
    pairs: int = 0
    matches: int = 0
    sample_rate: int = 0
    metadata: bool = False
    damage: str = ""


def inspect_shard(path: str | os.PathLike[str]) -> ShardReport:
    """Read a whole shard, in blocks, and tell what it holds or why it cannot be used.

    Examples
    --------
    >>> inspect_shard("/nowhere/1_0_0.h5").damage
    "/nowhere/1_0_0.h5 is not an HDF5 shard, or is damaged: ..."
    """
    path = Path(path)
    try:
        with _damage(path, "is not an HDF5 shard, or is damaged"), _opened(path) as file:
            audio = _dataset(file, "audio")
            sample_rate = audio.shape[2] if audio is not None and audio.ndim == 3 else 0
            metadata = set(METADATA) <= set(file)
        rows = ShardRows([path], pair_fields(sample_rate))
        matches = 0
        for _, start, stop in rows._blocks:
            matches += int(rows.read(np.arange(start, stop))["label"][:, 1].sum())
    except L3PruneError as error:
        return ShardReport(path, damage=str(error))
    return ShardReport(path, len(rows), matches, sample_rate, metadata)


@contextlib.contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    """HDF5's errors as one of ours."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError, MemoryError) as error:
        raise L3PruneError(f"{path} {what}: {error}") from error


def _opened(path: Path) -> Any:
    import h5py

    return h5py.File(path, "r")


def _dataset(file: Any, name: str) -> Any:
    """A dataset that is in the file itself: nothing is read out of other files. None without."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return None
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        return None
    return None if found.shape is None else found


def _count(path: Path, fields: Sequence[Field]) -> int:
    """Rows of a shard that has these fields."""
    counts = []
    stored = 0
    with _damage(path, "is not an HDF5 shard, or is damaged"), _opened(path) as file:
        for field in fields:
            dataset = _dataset(file, field.name)
            if dataset is None:
                raise L3PruneError(
                    f"{path} has no dataset '{field.name}'; give AVC shards with {field}"
                )
            stored += dataset.id.get_storage_size()
            shape, dtype = dataset.shape, dataset.dtype
            fits = dtype.kind in "iu" if field.kind == "integer" else dtype == field.dtype
            if not fits or shape[1:] != field.shape:
                raise L3PruneError(
                    f"{path}: '{field.name}' is {dtype} of shape {shape}; wanted is {field}"
                )
            counts.append(shape[0])
    if len(set(counts)) > 1:
        lengths = ", ".join(f"{n} of {f.name}" for n, f in zip(counts, fields, strict=True))
        raise L3PruneError(f"{path} is damaged: it has {lengths}")
    # Rows that were never written take no room in a file, but in our memory.
    if counts[0] > MAX_UNWRITTEN + stored:
        raise L3PruneError(f"{path} is damaged: {counts[0]} rows are said to be in {stored} bytes")
    return counts[0]
