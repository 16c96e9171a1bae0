"""From a program to the arrays that the kernels read: layouts, tiles, tables of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from l3prune.errors import ParameterError
from l3prune.sparse import kernels
from l3prune.sparse.plan import Operation, plan
from l3prune.sparse.program import Affine, Convolution, Dense, GlobalPooling, Pooling, Program
from l3prune.sparse.shapes import padded
from l3prune.sparse.vectors import TILES

#: Bytes of a cache line, and the floats in it: what is put in the working memory begins with one.
_LINE = 64
_FLOATS = _LINE // 4

#: Bytes of input that one block of channels may have under a tile; they are to stay in the first
#: cache, of 32 KiB and more, for all filters of a group.
_BLOCK_BYTES = 32 * 1024

#: A block has so many weights of each filter on average, or more channels: the sums of a tile are
#: written and read between blocks.
_BLOCK_WEIGHTS = 8

#: Filters a group: their sums are to stay in the second cache.
_GROUP = 256


@dataclass(frozen=True)
class Layout:
    """Where the values of a map are in the working memory, counted in floats.

    Attributes
    ----------
    shape : (int, int, int)
        Rows, columns, channels.
    start : int
        Place of row 0, column 0 of channel 0.
    channel, column : int
        Floats from one channel or column to the next.
    row : int
        Floats from one row to the next; in lanes, to the next one of the same lane.
    size : int
        Floats from the beginning of the layout to its end.
    lane_rows : int
        J of a layout in lanes, see `plan`; else 0.
    pitch : int
        Of a layout in lanes, vectors from row to row.

    Examples
    --------
    >>> layout = Layout((2, 3, 1), 0, 1, 1, 3, 6)
    >>> layout.start + layout.row + 2 * layout.column
    5
    """

    shape: tuple[int, int, int]
    start: int
    channel: int
    column: int
    row: int
    size: int
    lane_rows: int = 0
    pitch: int = 0


@dataclass
class Schedule:
    """What `kernels.run` carries out.

    Attributes
    ----------
    operations : list of Operation
        One a step.
    steps, ints, floats : np.ndarray
        See `kernels.run`.
    work, sums : int
        Floats of the working memory, and of each thread's sums.
    input, output : slice
        Of the working memory: the map that is given and the one that results, channels last.
    lanes : int

    Examples
    --------
    >>> make_schedule(Program("none", (2, 3, 1), ()), 16).operations[0].name
    'layout'
    """

    operations: list[Operation]
    steps: np.ndarray
    ints: np.ndarray
    floats: np.ndarray
    work: int
    sums: int
    input: slice
    output: slice
    lanes: int


def make_schedule(program: Program, lanes: int, *, every: bool = False) -> Schedule:
    """Lay out a program.

    Parameters
    ----------
    program : Program
    lanes : int
        Floats a vector.
    every : bool
        Zero weights are multiplied as well: what TensorFlow does, and to be seen where a value is
        NaN or infinite.

    Raises
    ------
    ParameterError
        See `plan.plan`.

    Examples
    --------
    >>> schedule = make_schedule(Program("none", (2, 3, 1), ()), 16)
    >>> schedule.output.stop - schedule.output.start
    6
    """
    operations = plan(program, lanes)
    tables = _Tables()
    layouts = [_flat(operations[0].shape)]
    for number, operation in enumerate(operations):
        following = operations[number + 1] if number + 1 < len(operations) else None
        layouts.append(_layout_behind(operation, following, lanes))
    # Even layouts in one half of the working memory, odd ones in the other.
    halves = [_aligned(max(each.size for each in layouts[half::2])) for half in (0, 1)]
    if 4 * sum(halves) >= 2**31:
        raise ParameterError(f"network {program.name} needs maps of more than 2 GiB")
    # Of so many lanes, from none to all, that hold a row.
    masks = tables.add("floats", np.tri(lanes + 1, lanes, -1))
    rows, sums = [], 1
    for number, operation in enumerate(operations):
        before, after = (
            _moved(layouts[each], halves[0] * (each % 2)) for each in (number, number + 1)
        )
        if number and operations[number - 1].output != operation.shape:
            before = _as_vector(before, operation.shape)
        row = _maps(before, after, operation) | {"to_masks": masks}
        row |= _work_of(tables, operation, before, lanes, every)
        sums = max(sums, row.pop("sums", before.lane_rows * lanes))
        rows.append(tuple(int(row.get(name, 0)) for name in kernels.FIELDS))
    last = halves[0] * (len(operations) % 2)
    count = int(np.prod(operations[-1].output))
    return Schedule(
        operations=operations,
        steps=np.array(rows, kernels.STEP),
        ints=tables.joined("ints"),
        floats=tables.joined("floats"),
        work=sum(halves),
        sums=sums,
        input=slice(0, int(np.prod(program.shape))),
        output=slice(last, last + count),
        lanes=lanes,
    )


class _Tables:
    """The two arrays of constants, as they grow; both begin their parts at cache lines."""

    _TYPES: ClassVar = {"ints": np.int32, "floats": np.float32}

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in self._TYPES}
        self._sizes = dict.fromkeys(self._TYPES, 0)

    def add(self, name: str, values: Any) -> int:
        """Where the values begin."""
        part = np.ravel(np.asarray(values, self._TYPES[name]))
        start = self._sizes[name]
        self._parts[name].append(part)
        self._sizes[name] += _aligned(len(part))
        return start

    def joined(self, name: str) -> np.ndarray:
        whole = aligned_zeros(max(self._sizes[name], _FLOATS), self._TYPES[name])
        start = 0
        for part in self._parts[name]:
            whole[start : start + len(part)] = part
            start += _aligned(len(part))
        return whole


def aligned_zeros(count: int, dtype: Any = np.float32) -> np.ndarray:
    """Zeros whose memory begins with a cache line.

    Examples
    --------
    >>> aligned_zeros(5).ctypes.data % 64
    0
    """
    size = np.dtype(dtype).itemsize
    memory = np.zeros(count * size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + count * size].view(dtype)


def _aligned(count: int) -> int:
    return -(-count // _FLOATS) * _FLOATS


def _flat(shape: tuple[int, int, int]) -> Layout:
    """Channels last."""
    rows, columns, channels = shape
    return Layout(shape, 0, 1, channels, columns * channels, rows * columns * channels)


def _plain(shape: tuple[int, int, int]) -> Layout:
    """Channel after channel."""
    rows, columns, channels = shape
    return Layout(shape, 0, rows * columns, 1, columns, rows * columns * channels)


def _in_lanes(shape: tuple[int, int, int], lane_rows: int, lanes: int, columns: int) -> Layout:
    """In lanes, with a rim of one vector, and so many columns read as the tiles cover.

    Rows are an odd multiple of 8 cache lines apart and channels an odd multiple of 32, so that the
    lines under a tile spread evenly over the sets of the first cache.
    """
    per_line = max(_FLOATS // lanes, 1)
    per_vector = max(lanes // _FLOATS, 1)
    pitch = _odd_multiple(max(columns, shape[1]) + 2, 8 * per_line // per_vector)
    vectors = _odd_multiple((lane_rows + 2) * pitch, 32 * per_line // per_vector)
    return Layout(
        shape,
        start=(pitch + 1) * lanes,
        channel=vectors * lanes,
        column=lanes,
        row=pitch * lanes,
        size=vectors * lanes * shape[2],
        lane_rows=lane_rows,
        pitch=pitch,
    )


def _odd_multiple(least: int, step: int) -> int:
    times = -(-least // step)
    return (times + 1 - times % 2) * step


def _layout_behind(operation: Operation, following: Operation | None, lanes: int) -> Layout:
    shape = operation.output
    if following is not None and following.tiled:
        columns = _tile(following, lanes)[1]
        covered = -(-_needed(following) // columns) * columns
        return _in_lanes(shape, following.lane_rows, lanes, covered)
    if operation.tiled:
        lane_rows = operation.lane_rows // (1 if operation.pooling is None else 2)
        return _in_lanes(shape, lane_rows, lanes, shape[1])
    return _flat(shape) if operation.flat else _plain(shape)


def _moved(layout: Layout, by: int) -> Layout:
    return Layout(**{**vars(layout), "start": layout.start + by})


def _as_vector(layout: Layout, shape: tuple[int, int, int]) -> Layout:
    """The same memory behind Flatten."""
    return Layout(shape, layout.start, 1, 1, layout.row, layout.size)


def _needed(operation: Operation) -> int:
    """Columns that a tiled convolution computes: pooling may leave out the last one."""
    return operation.output[1] * (1 if operation.pooling is None else 2)


def _tile(operation: Operation, lanes: int) -> tuple[int, int]:
    """The register tile with least to do: what it multiplies, and what it costs a weight."""
    needed = _needed(operation)

    def cost(shape: tuple[int, int]) -> float:
        rows, columns = shape
        tiles = -(-needed // columns) * (operation.lane_rows // rows)
        return tiles * (rows * columns + 2)

    return min(
        (
            shape
            for shape in TILES
            if (shape[1] < 12 or lanes == 16)
            and operation.lane_rows % shape[0] == 0
            and (operation.pooling is None or (shape[0] == 2 and shape[1] % 2 == 0))
        ),
        key=cost,
    )


def _maps(before: Layout, after: Layout, operation: Operation) -> dict[str, int]:
    row = {
        "from_": before.start,
        "from_channel": before.channel,
        "from_column": before.column,
        "from_row": before.row,
        "from_lane_rows": before.lane_rows,
        "from_pitch": before.pitch,
        "to": after.start,
        "to_channel": after.channel,
        "to_column": after.column,
        "to_row": after.row,
        "to_lane_rows": after.lane_rows,
        "to_pitch": after.pitch,
        "scale": -1,
    }
    row["rows"], row["columns"], row["channels"] = operation.shape
    row["to_height"], row["to_width"], row["to_channels"] = operation.output
    return row


def _work_of(
    tables: _Tables, operation: Operation, before: Layout, lanes: int, every: bool
) -> dict[str, int]:
    step = operation.step
    row = {"kind": kernels.AFFINE, "tasks": operation.output[2]}
    if step is None:
        return row
    if isinstance(step, Affine):
        return row | _affine(tables, step) | {"relu": step.relu}
    if isinstance(step, Dense):
        # The kernel by outputs, so that each is one sum over consecutive values.
        return row | {
            "kind": kernels.DENSE,
            "weights": tables.add("floats", step.kernel.T),
            "bias": tables.add("floats", step.bias),
            "relu": step.relu,
        }
    if isinstance(step, GlobalPooling | Pooling):
        row["kind"] = kernels.MAXIMUM if step.kind == "max" else kernels.AVERAGE
        if isinstance(step, GlobalPooling):
            return row | {
                "height": operation.shape[0],
                "width": operation.shape[1],
                "row_stride": 1,
                "column_stride": 1,
                "whole": 1,
            }
        return row | _windows(step.size, step, operation)
    assert isinstance(step, Convolution)
    keep = step.kernel != 0
    row["needs_finite"] = not keep.all()
    if every:
        keep = np.ones_like(keep)
        row["needs_finite"] = 0
    row["bias"] = tables.add("floats", step.bias)
    row["relu"] = step.relu
    if not operation.tiled:
        return row | _convolution(tables, step, keep, operation)
    if operation.affine is not None:
        row |= _affine(tables, operation.affine)
    return row | _tiled(tables, step, keep, operation, before, lanes)


def _affine(tables: _Tables, step: Affine) -> dict[str, int]:
    return {
        "scale": tables.add("floats", step.scale),
        "offset": tables.add("floats", step.offset),
    }


def _windows(
    size: tuple[int, ...], step: Convolution | Pooling, operation: Operation
) -> dict[str, int]:
    in_front = [
        padded(operation.shape[axis], size[axis], step.strides[axis], step.padding)[1]
        for axis in (0, 1)
    ]
    return {
        "height": size[0],
        "width": size[1],
        "row_stride": step.strides[0],
        "column_stride": step.strides[1],
        "above": in_front[0],
        "left": in_front[1],
    }


def _convolution(
    tables: _Tables, step: Convolution, keep: np.ndarray, operation: Operation
) -> dict[str, int]:
    """Weights filter by filter, each with its channel and tap as one number."""
    height, width, _, filters = step.kernel.shape
    by_filter = np.moveaxis(step.kernel, (3, 2), (0, 1)).reshape(filters, -1)
    kept = np.moveaxis(keep, (3, 2), (0, 1)).reshape(filters, -1)
    ends = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return {
        "kind": kernels.CONVOLUTION,
        "weights": tables.add("floats", by_filter[kept]),
        "blocks": tables.add("ints", np.nonzero(kept)[1]),
        "table": tables.add("ints", ends),
        **_windows((height, width), step, operation),
    }


def _tiled(
    tables: _Tables,
    step: Convolution,
    keep: np.ndarray,
    operation: Operation,
    before: Layout,
    lanes: int,
) -> dict[str, int]:
    """Weights by group of filters, block of channels, filter: those with most weights first."""
    height, width, channels, filters = step.kernel.shape
    tile_rows, tile_columns = _tile(operation, lanes)
    tiles = -(-_needed(operation) // tile_columns)
    group = min(filters, _GROUP)
    groups = -(-filters // group)
    block = _block(keep, tile_rows, tile_columns, lanes)
    blocks = -(-channels // block)
    # Bytes from the top left tap of channel 0; smaller kernels are in the middle of 3 x 3.
    taps = (
        (np.arange(height)[:, np.newaxis] + (3 - height) // 2) * before.pitch
        + np.arange(width)
        + (3 - width) // 2
    ) * lanes
    places = 4 * (np.arange(channels)[:, np.newaxis] * before.channel + taps.ravel())
    kernel = np.moveaxis(step.kernel, (3, 2), (0, 1)).reshape(filters, channels, -1)
    keep = np.moveaxis(keep, (3, 2), (0, 1)).reshape(kernel.shape)
    ends, entries, offsets, weights = [0], [], [], []
    begun = entered = 0
    for first_filter in range(0, filters, group):
        for number in range(blocks):
            inputs = slice(number * block, (number + 1) * block)
            part = keep[first_filter : first_filter + group, inputs]
            counts = part.sum(axis=(1, 2))
            # The first block begins all sums and the last one ends them.
            order = np.argsort(-counts, kind="stable")
            if 0 < number < blocks - 1:
                order = order[counts[order] > 0]
            counts = counts[order]
            starts = begun + np.cumsum(counts) - counts
            entries.append(np.stack([first_filter + order, starts, starts, counts], axis=1))
            chosen = part[order]
            weights.append(kernel[first_filter + order, inputs][chosen])
            offsets.append(np.broadcast_to(places[inputs], chosen.shape)[chosen])
            begun += int(counts.sum())
            entered += len(order)
            ends.append(4 * entered)
    table = np.concatenate(entries)
    table[:, 1] += tables.add("ints", np.concatenate(offsets))
    table[:, 2] += tables.add("floats", np.concatenate(weights))
    begin = tables.add("ints", table)
    ranges = begin + np.array(ends)
    return {
        "kind": kernels.TILED,
        "tasks": operation.lane_rows // tile_rows * tiles * groups,
        "table": tables.add("ints", np.stack([ranges[:-1], ranges[1:]], axis=1)),
        "blocks": blocks,
        "group": group,
        "groups": groups,
        "tile": TILES.index((tile_rows, tile_columns)),
        "tile_rows": tile_rows,
        "tile_columns": tile_columns,
        "tiles_in_column": operation.lane_rows // tile_rows,
        "pooled": operation.pooling is not None,
        "sums": tile_rows * tile_columns * lanes * (group if blocks > 1 else 1),
    }


def _block(keep: np.ndarray, rows: int, columns: int, lanes: int) -> int:
    """Input channels in a block."""
    channels, filters = keep.shape[2:]
    bytes_each = (rows + 2) * (columns + 2) * 4 * lanes
    in_cache = max(_BLOCK_BYTES / bytes_each, 1)
    weights_each = max(np.count_nonzero(keep) / (channels * filters), 1e-9)
    wanted = max(in_cache, _BLOCK_WEIGHTS / weights_each)
    blocks = max(round(channels / wanted), 1)
    return -(-channels // blocks)
