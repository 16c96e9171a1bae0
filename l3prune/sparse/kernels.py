"""The machine code of the sparse engine: one function that carries out a whole schedule.

A schedule is three arrays, see `schedule.Schedule`: a row of whole numbers for each step, tables of
int32, and float32 constants. Several threads may call `run` for the same input: they share the
tasks of each step by a counter and wait for each other behind it, so a thread that comes late, or
never, delays nobody.

All reads and writes are inside the arrays if the rows are as `schedule` makes them.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from l3prune.sparse.vectors import (
    add_atomically,
    any_not_finite,
    give_way,
    keep_where,
    larger,
    load,
    read_atomically,
    rectify,
    relax,
    scale_and_add,
    shift_down,
    shift_up,
    splat,
    store,
    tile_0,
    tile_1,
    tile_2,
    tile_3,
)

#: Kinds of steps.
TILED, CONVOLUTION, AFFINE, MAXIMUM, AVERAGE, DENSE = range(6)

#: What a step's record has. Places and strides are counted in floats of the working memory.
FIELDS = (
    # What it is, how many tasks it has, whether zero weights may be skipped for finite input only.
    *("kind", "tasks", "needs_finite", "relu"),
    # Maps that are read: place of the first element, strides of channels, columns and rows, sizes.
    *("from_", "from_channel", "from_column", "from_row", "rows", "columns", "channels"),
    # Maps that are written.
    *("to", "to_channel", "to_column", "to_row", "to_height", "to_width", "to_channels"),
    # Lane layouts: rows a lane (0: no lanes), vectors from row to row, and in `floats` a mask for
    # each number of lanes that hold a row.
    *("from_lane_rows", "from_pitch", "to_lane_rows", "to_pitch", "to_masks"),
    # Windows: sizes, strides, zeros in front.
    *("height", "width", "row_stride", "column_stride", "above", "left"),
    # Constants in `floats`; scale is -1 where there is none.
    *("weights", "bias", "scale", "offset"),
    # Tiled convolutions: table of ranges, blocks of input channels, filters a group, groups,
    # register tile, its rows and columns, how many tiles in a column, and whether 2 x 2 are pooled.
    *("table", "blocks", "group", "groups", "tile", "tile_rows", "tile_columns", "tiles_in_column"),
    "pooled",
    # Pooling: the window is the whole map.
    "whole",
)
STEP = np.dtype([(name, np.int64) for name in FIELDS])

#: int64 counters a step: tasks begun, tasks done, whether a value was not finite. Each has a cache
#: line of its own.
COUNTERS = 24
_DONE, _NOT_FINITE = 8, 16

#: What `run` gives back.
COMPLETE, MET_NOT_FINITE = 0, 1

_LOWEST = np.float32(np.finfo(np.float32).min)
_INFINITY = np.float32(np.inf)
_PATIENCE = 64

_compiled = njit(cache=True, nogil=True, error_model="numpy")
_inlined = njit(cache=True, nogil=True, error_model="numpy", forceinline=True)


@_inlined
def _multiply_add(shape, maps, pitch, offsets, weights, count, sums, first, bias, lanes):
    if shape == 0:
        tile_0(maps, pitch, offsets, weights, count, sums, first, bias, lanes)
    elif shape == 1:
        tile_1(maps, pitch, offsets, weights, count, sums, first, bias, lanes)
    elif shape == 2:
        tile_2(maps, pitch, offsets, weights, count, sums, first, bias, lanes)
    else:
        tile_3(maps, pitch, offsets, weights, count, sums, first, bias, lanes)


@_inlined
def _read_from(step, row):
    """Where a row is in the map that is read, from its first element on."""
    if step.from_lane_rows == 0:
        return row * step.from_row
    return row % step.from_lane_rows * step.from_row + row // step.from_lane_rows


@_inlined
def _write_to(step, row):
    """Where a row is in the map that is written."""
    if step.to_lane_rows == 0:
        return row * step.to_row
    return row % step.to_lane_rows * step.to_row + row // step.to_lane_rows


@_inlined
def _put(value, at, lane_row, lane_rows, line, lanes):
    """Write a vector of a map, and its copies in the rows beside the lanes' first and last."""
    store(at, value)
    if lane_row == lane_rows - 1:
        store(at - lane_rows * line, shift_up(value))
    if lane_row == 0:
        store(at + lane_rows * line, shift_down(value))


@_compiled
def _finish(step, floats, memory, filter_, sums, lane_row, column, lanes):
    """The sums of a tile to the next step's maps: ReLU, affine, pooling, the rim of zeros.

    Gives whether a value is not finite.
    """
    size = 4 * len(lanes)
    tile_rows, tile_columns = step.tile_rows, step.tile_columns
    to_lane_rows, line = step.to_lane_rows, step.to_pitch * size
    to = memory + 4 * (step.to + filter_ * step.to_channel)
    masks = floats.ctypes.data + 4 * step.to_masks
    relu, pooled = step.relu != 0, step.pooled != 0
    affine = step.scale >= 0
    scale = splat(np.float32(1), lanes)
    offset = splat(np.float32(0), lanes)
    if affine:
        scale = splat(floats[step.scale + filter_], lanes)
        offset = splat(floats[step.offset + filter_], lanes)
    each = 2 if pooled else 1
    first_row, first_column = lane_row // each, column // each
    end_row = min(first_row + tile_rows // each, to_lane_rows)
    end_column = min(first_column + tile_columns // each, step.to_width)
    bad = False
    zero = splat(np.float32(0), lanes)
    for row in range(first_row, end_row):
        # Lane l has row l * to_lane_rows + row.
        filled = (step.to_height - row + to_lane_rows - 1) // to_lane_rows
        present = load(masks + max(filled, 0) * size, lanes)
        at_row = to + row * line
        for column_ in range(first_column, end_column):
            at = sums + size * (each * ((row - first_row) * tile_columns + column_ - first_column))
            value = load(at, lanes)
            if relu:
                value = rectify(value)
            if affine:
                value = scale_and_add(value, scale, offset)
            if pooled:
                value = larger(value, splat(_LOWEST, lanes))
                for other in range(1, 4):
                    next_ = load(at + size * ((other >> 1) * tile_columns + (other & 1)), lanes)
                    if relu:
                        next_ = rectify(next_)
                    if affine:
                        next_ = scale_and_add(next_, scale, offset)
                    value = larger(next_, value)
            value = keep_where(value, present)
            bad |= any_not_finite(value)
            _put(value, at_row + column_ * size, row, to_lane_rows, line, lanes)
        if first_column == 0:
            _put(zero, at_row - size, row, to_lane_rows, line, lanes)
        if end_column == step.to_width:
            _put(zero, at_row + end_column * size, row, to_lane_rows, line, lanes)
    return bad


@_compiled
def _tiled(step, task, ints, floats, memory, sums, lanes):
    """A 3 x 3 convolution of stride 1 at one place, for one group of filters."""
    size = 4 * len(lanes)
    groups, tiles = step.groups, step.tiles_in_column
    group, place = task % groups, task // groups
    # Down first: what neighbours share is then still in the second cache.
    lane_row = place % tiles * step.tile_rows
    column = place // tiles * step.tile_columns
    pitch = step.from_pitch * size
    # Of the top left of the nine taps: the rim is in the layout.
    maps = memory + 4 * step.from_ + (lane_row - 1) * pitch + (column - 1) * size
    offsets, weights = ints.ctypes.data, floats.ctypes.data
    blocks = step.blocks
    apart = size * step.tile_rows * step.tile_columns if blocks > 1 else 0
    first_filter = group * step.group
    bad = False
    for block in range(blocks):
        entry = step.table + 2 * (group * blocks + block)
        last = block == blocks - 1
        for at in range(ints[entry], ints[entry + 1], 4):
            filter_, offset, weight, count = (
                np.int64(ints[at]),
                np.int64(ints[at + 1]),
                np.int64(ints[at + 2]),
                np.int64(ints[at + 3]),
            )
            own = sums + (filter_ - first_filter) * apart
            _multiply_add(
                step.tile,
                maps,
                pitch,
                offsets + 4 * offset,
                weights + 4 * weight,
                count,
                own,
                1 if block == 0 else 0,
                floats[step.bias + filter_],
                lanes,
            )
            if last:
                bad |= _finish(step, floats, memory, filter_, own, lane_row, column, lanes)
    return bad


@_compiled
def _rim(step, work, channel, lanes):
    """What a channel in a lane layout has besides its values: zeros and copies around them.

    Gives whether a value is not finite.
    """
    height, width = step.to_height, step.to_width
    to = step.to + channel * step.to_channel
    bad = False
    for row in range(height):
        at = to + _write_to(step, row)
        for column in range(width):
            value = work[at + column * step.to_column]
            bad |= value - value != 0
    lane_rows, count = step.to_lane_rows, len(lanes)
    if lane_rows == 0:
        return bad
    line = step.to_pitch * count
    for row in range(height, lane_rows * count):
        at = to + row % lane_rows * line + row // lane_rows
        for column in range(width):
            work[at + column * count] = 0
    for lane_row in range(lane_rows):
        at = to + lane_row * line
        for lane in range(count):
            work[at - count + lane] = 0
            work[at + width * count + lane] = 0
    for column in range(-1, width + 1):
        above, below = to - line + column * count, to + lane_rows * line + column * count
        top, bottom = to + column * count, to + (lane_rows - 1) * line + column * count
        work[above] = 0
        work[below + count - 1] = 0
        for lane in range(1, count):
            work[above + lane] = work[bottom + lane - 1]
            work[below + lane - 1] = work[top + lane]
    return bad


@_compiled
def _convolution(step, filter_, ints, floats, work):
    """Any convolution, one filter: its non-zero weights one after the other."""
    height, width = step.to_height, step.to_width
    to = step.to + filter_ * step.to_channel
    to_column, from_column = step.to_column, step.from_column
    stride, shift = step.column_stride, step.left
    lane_rows = step.from_lane_rows if step.from_lane_rows > 0 else step.rows
    to_lane_rows = step.to_lane_rows if step.to_lane_rows > 0 else height
    bias = floats[step.bias + filter_]
    for row in range(height):
        at = to + _write_to(step, row)
        for column in range(width):
            work[at + column * to_column] = bias
    entry = step.table + filter_
    for index in range(ints[entry], ints[entry + 1]):
        channel, tap = divmod(ints[step.blocks + index], step.height * step.width)
        tap_row, tap_column = divmod(tap, step.width)
        weight = floats[step.weights + index]
        # Columns and rows whose tap is inside the map.
        first = max((shift - tap_column + stride - 1) // stride, 0)
        end = min((step.columns - 1 + shift - tap_column) // stride + 1, width)
        tap_row -= step.above
        first_row = max((step.row_stride - 1 - tap_row) // step.row_stride, 0)
        end_row = min((step.rows - 1 - tap_row) // step.row_stride + 1, height)
        source = first_row * step.row_stride + tap_row
        origin = (
            step.from_
            + channel * step.from_channel
            + _read_from(step, source)
            + (tap_column - shift) * from_column
        )
        at = to + _write_to(step, first_row)
        # From row to row without a division, which costs as much as some columns.
        lane_row = source % lane_rows if source >= lane_rows else source
        to_lane_row = first_row % to_lane_rows if first_row >= to_lane_rows else first_row
        for _ in range(first_row, end_row):
            if to_column == 1 and from_column * stride == 1:
                for column in range(first, end):
                    work[at + column] += weight * work[origin + column]
            else:
                for column in range(first, end):
                    work[at + column * to_column] += (
                        weight * work[origin + column * stride * from_column]
                    )
            lane_row += step.row_stride
            origin += step.row_stride * step.from_row
            while lane_row >= lane_rows:
                lane_row -= lane_rows
                origin += 1 - lane_rows * step.from_row
            to_lane_row += 1
            at += step.to_row
            if to_lane_row == to_lane_rows:
                to_lane_row = 0
                at += 1 - to_lane_rows * step.to_row
    if step.relu:
        for row in range(height):
            at = to + _write_to(step, row)
            for column in range(width):
                value = work[at + column * to_column]
                work[at + column * to_column] = np.float32(0) if value < 0 else value


@_compiled
def _affine(step, channel, floats, work):
    """One channel, from any layout to any other; scaled where there is a scale."""
    scale, offset = np.float32(1), np.float32(0)
    if step.scale >= 0:
        scale = floats[step.scale + channel]
        offset = floats[step.offset + channel]
    for row in range(step.rows):
        origin = step.from_ + channel * step.from_channel + _read_from(step, row)
        at = step.to + channel * step.to_channel + _write_to(step, row)
        for column in range(step.columns):
            value = work[origin + column * step.from_column]
            if step.scale >= 0:
                value = value * scale + offset
            if step.relu and value < 0:
                value = np.float32(0)
            work[at + column * step.to_column] = value


@_compiled
def _pooling(step, channel, work):
    """One channel. Of a maximum, NaN is passed over but where the window is the whole map."""
    whole = step.whole != 0
    maximum = step.kind == MAXIMUM
    origin = step.from_ + channel * step.from_channel
    for row in range(step.to_height):
        top = row * step.row_stride - step.above
        for column in range(step.to_width):
            left = column * step.column_stride - step.left
            first, end = max(left, 0), min(left + step.width, step.columns)
            most, total, count = -_INFINITY if whole else _LOWEST, 0.0, 0
            nan = False
            for source in range(max(top, 0), min(top + step.height, step.rows)):
                at = origin + _read_from(step, source)
                for each in range(first, end):
                    value = work[at + each * step.from_column]
                    if maximum:
                        most = value if value > most else most
                        nan |= value != value
                    else:
                        total += value
                count += end - first
            if not maximum:
                most = np.float32(total / count)
            elif nan and whole:
                most = np.float32(np.nan)
            at = step.to + channel * step.to_channel + _write_to(step, row)
            work[at + column * step.to_column] = most


@_compiled
def _largest_in_lanes(step, channel, work, memory, sums, lanes):
    """`_pooling` of the maximum of a map in lanes: first over columns, of all lanes together."""
    size = 4 * len(lanes)
    origin = memory + 4 * (step.from_ + channel * step.from_channel)
    most_of_rows = sums.ctypes.data
    for column in range(step.to_width):
        left = column * step.column_stride - step.left
        first, end = max(left, 0), min(left + step.width, step.columns)
        for lane_row in range(step.from_lane_rows):
            most = splat(_LOWEST, lanes)
            at = origin + lane_row * step.from_pitch * size
            for each in range(first, end):
                most = larger(load(at + each * size, lanes), most)
            store(most_of_rows + lane_row * size, most)
        for row in range(step.to_height):
            top = row * step.row_stride - step.above
            most_here = _LOWEST
            for source in range(max(top, 0), min(top + step.height, step.rows)):
                lane, lane_row = divmod(source, step.from_lane_rows)
                most_here = max(most_here, sums[lane_row * len(lanes) + lane])
            at_row = step.to + channel * step.to_channel + _write_to(step, row)
            work[at_row + column * step.to_column] = most_here


@_compiled
def _dense(step, output, floats, work):
    """One output of a dense layer, in any layout; the products are summed in float64."""
    total = np.float64(floats[step.bias + output])
    at = step.weights + output * step.channels
    for index in range(step.channels):
        value = work[step.from_ + index * step.from_channel]
        total += np.float64(value) * np.float64(floats[at + index])
    made = np.float32(total)
    if step.relu and made < 0:
        made = np.float32(0)
    work[step.to + output * step.to_channel] = made


@_compiled
def _carry_out(step, task, ints, floats, work, sums, lanes):
    memory = work.ctypes.data
    kind = step.kind
    if kind == TILED:
        return _tiled(step, task, ints, floats, memory, sums.ctypes.data, lanes)
    if kind == CONVOLUTION:
        _convolution(step, task, ints, floats, work)
    elif kind == AFFINE:
        _affine(step, task, floats, work)
    elif kind == DENSE:
        _dense(step, task, floats, work)
    elif kind == MAXIMUM and step.from_lane_rows > 0 and step.whole == 0:
        _largest_in_lanes(step, task, work, memory, sums, lanes)
    else:
        _pooling(step, task, work)
    return _rim(step, work, task, lanes)


@_compiled
def run(steps, ints, floats, work, sums, counters, lanes):
    """Carry out the tasks of a schedule that no other thread takes.

    Parameters
    ----------
    steps : np.ndarray, (steps,) of STEP
    ints : np.ndarray of int32
    floats : np.ndarray of float32
    work : np.ndarray of float32
        The input is in it, and the output when all tasks are done.
    sums : np.ndarray of float32
        Of this thread alone.
    counters : np.ndarray, (steps * COUNTERS,) int64
        Zeros when the first thread comes.
    lanes : tuple of zeros

    Returns
    -------
    state : int
        COMPLETE; or MET_NOT_FINITE: a step skips zero weights and its input has NaN or infinity.

    Examples
    --------
    >>> floats = np.zeros(0, np.float32)
    >>> nothing = np.zeros(0, STEP), np.zeros(0, np.int32), floats, floats, floats
    >>> run(*nothing, np.zeros(0, np.int64), (0,) * 4) == COMPLETE
    True
    """
    for number in range(len(steps)):
        step = steps[number]
        state = counters.ctypes.data + 8 * COUNTERS * number
        tasks = step.tasks
        while True:
            task = add_atomically(state, 1)
            if task >= tasks:
                break
            if _carry_out(step, task, ints, floats, work, sums, lanes):
                add_atomically(state + 8 * _NOT_FINITE, 1)
            add_atomically(state + 8 * _DONE, 1)
        waited = 0
        while read_atomically(state + 8 * _DONE) < tasks:
            relax()
            waited += 1
            if waited % _PATIENCE == 0:
                give_way()
        if (
            read_atomically(state + 8 * _NOT_FINITE) != 0
            and number + 1 < len(steps)
            and steps[number + 1].kind <= CONVOLUTION
            and steps[number + 1].needs_finite != 0
        ):
            return MET_NOT_FINITE
    return COMPLETE
