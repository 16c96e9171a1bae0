"""Words that numba lacks: vectors of floats, fused multiply-adds over them, atomic counters.

Every function here is compiled into its caller. A number of lanes is given as a tuple of so many
zeros, because numba makes one machine function for each type of its arguments: 16 lanes are an
AVX-512 register, 8 an AVX one, 4 an SSE or NEON one. Memory is given by address, in bytes.

The intrinsics are globals of a module, since numba caches no function that refers to a closure's.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic, models, register_model

_BYTE, _INT32, _INT64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()

#: Rows and columns of the register tiles that `multiply_add` has, in vectors.
TILES = ((2, 6), (2, 7), (1, 6), (2, 12))


class Vector(types.Type):
    """The numba type of a vector of float32 values; it lives in a register.

    Examples
    --------
    >>> Vector(16)
    Vector(16)
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(_FLOAT, vector.lanes))


def _at(builder, address, kind):
    return builder.inttoptr(address, ir.PointerType(kind))


def _splat(builder, value, lanes):
    vector = ir.Constant(ir.VectorType(_FLOAT, lanes), ir.Undefined)
    first = builder.insert_element(vector, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(
        first, vector, ir.Constant(ir.VectorType(_INT32, lanes), [0] * lanes)
    )


def _fma(builder, kind):
    """LLVM's fmuladd: fused where the CPU can, a product and a sum elsewhere."""
    name = f"llvm.fmuladd.v{kind.count}f32"
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)


def _load(context, address, lanes):
    """The vector at an address, a multiple of the vector's own size."""
    count = lanes.count

    def code(context, builder, signature, arguments):
        kind = ir.VectorType(_FLOAT, count)
        return builder.load(_at(builder, arguments[0], kind), align=4 * count)

    return Vector(count)(types.int64, lanes), code


def _store(context, address, vector):
    """Write a vector to an address."""
    count = vector.lanes

    def code(context, builder, signature, arguments):
        pointer = _at(builder, arguments[0], ir.VectorType(_FLOAT, count))
        builder.store(arguments[1], pointer, align=4 * count)
        return context.get_dummy_value()

    return types.void(types.int64, vector), code


def _splat_value(context, value, lanes):
    """A vector of one value."""

    def code(context, builder, signature, arguments):
        return _splat(builder, arguments[0], lanes.count)

    return Vector(lanes.count)(types.float32, lanes), code


def _scale_and_add(context, vector, scale, offset):
    """vector * scale + offset."""

    def code(context, builder, signature, arguments):
        return builder.call(_fma(builder, arguments[0].type), arguments)

    return vector(vector, vector, vector), code


def _rectify(context, vector):
    """ReLU as TensorFlow's: zero where the value is below it, NaN stays."""

    def code(context, builder, signature, arguments):
        zero = ir.Constant(arguments[0].type, [0.0] * vector.lanes)
        below = builder.fcmp_ordered("<", arguments[0], zero)
        return builder.select(below, zero, arguments[0])

    return vector(vector), code


def _larger(context, value, most):
    """`value` where it is above `most`, else `most`: a NaN in `value` is passed over."""

    def code(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return value(value, value), code


def _keep_where(context, vector, mask):
    """The values at which `mask` is not zero, and zeros."""

    def code(context, builder, signature, arguments):
        zero = ir.Constant(arguments[0].type, [0.0] * vector.lanes)
        return builder.select(builder.fcmp_ordered("!=", arguments[1], zero), arguments[0], zero)

    return vector(vector, vector), code


def _any_not_finite(context, vector):
    """Whether a value is NaN or infinite."""

    def code(context, builder, signature, arguments):
        lanes = vector.lanes
        difference = builder.fsub(arguments[0], arguments[0])
        bad = builder.fcmp_unordered("uno", difference, difference)
        word = builder.bitcast(bad, ir.IntType(lanes))
        return builder.icmp_unsigned("!=", word, ir.Constant(ir.IntType(lanes), 0))

    return types.boolean(vector), code


def _shift(step) -> Any:
    @intrinsic
    def shift(context, vector):
        """The values one lane on; zero comes in."""
        lanes = vector.lanes
        # Of the vector and of zeros behind it.
        order = [lane - step if 0 <= lane - step < lanes else lanes for lane in range(lanes)]

        def code(context, builder, signature, arguments):
            kind = arguments[0].type
            return builder.shuffle_vector(
                arguments[0],
                ir.Constant(kind, [0.0] * lanes),
                ir.Constant(ir.VectorType(_INT32, lanes), order),
            )

        return vector(vector), code

    return shift


def _multiply_add(rows, columns) -> Any:
    """A register tile's sums over the non-zero weights of one filter.

    sums[r, c] = start + sum over i < count of weights[i] * vector at
    (maps + offsets[i] + r * pitch + c vectors), where start is `bias` if `first` is not zero, else
    the sums as they are. The sums are consecutive vectors at `sums`.
    """

    @intrinsic
    def tile(context, maps, pitch, offsets, weights, count, sums, first, bias, lanes):
        size = lanes.count
        places = [(row, column) for row in range(rows) for column in range(columns)]

        def code(context, builder, signature, arguments):
            maps, pitch, offsets, weights, count, sums, first, bias, _ = arguments
            kind = ir.VectorType(_FLOAT, size)
            zero = ir.Constant(_INT64, 0)

            def at(pointer, distance, kind):
                moved = builder.gep(pointer, [distance], source_etype=_BYTE)
                return builder.bitcast(moved, ir.PointerType(kind))

            maps, offsets, weights, sums = (
                _at(builder, each, _BYTE) for each in (maps, offsets, weights, sums)
            )
            stored = [
                at(sums, ir.Constant(_INT64, 4 * size * number), kind)
                for number in range(len(places))
            ]
            begin, again, ready, loop, end = (
                builder.append_basic_block(name)
                for name in ("begin", "again", "ready", "loop", "end")
            )
            builder.cbranch(builder.icmp_signed("!=", first, zero), begin, again)
            builder.position_at_end(begin)
            biases = _splat(builder, bias, size)
            builder.branch(ready)
            builder.position_at_end(again)
            loaded = [builder.load(pointer, align=4 * size) for pointer in stored]
            builder.branch(ready)

            builder.position_at_end(ready)
            starts = []
            for number in range(len(places)):
                starts.append(builder.phi(kind))
                starts[-1].add_incoming(biases, begin)
                starts[-1].add_incoming(loaded[number], again)
            builder.cbranch(builder.icmp_signed(">", count, zero), loop, end)

            builder.position_at_end(loop)
            index = builder.phi(_INT64)
            index.add_incoming(zero, ready)
            before = []
            for start in starts:
                before.append(builder.phi(kind))
                before[-1].add_incoming(start, ready)
            word = builder.shl(index, ir.Constant(_INT64, 2))
            offset = builder.sext(builder.load(at(offsets, word, _INT32), align=4), _INT64)
            weight = _splat(builder, builder.load(at(weights, word, _FLOAT), align=4), size)
            after = []
            for (row, column), total in zip(places, before, strict=True):
                line = builder.add(offset, builder.mul(pitch, ir.Constant(_INT64, row)))
                line = builder.add(line, ir.Constant(_INT64, 4 * size * column))
                value = builder.load(at(maps, line, kind), align=4 * size)
                after.append(builder.call(_fma(builder, kind), [value, weight, total]))
            following = builder.add(index, ir.Constant(_INT64, 1))
            index.add_incoming(following, loop)
            for total, new in zip(before, after, strict=True):
                total.add_incoming(new, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, end)

            builder.position_at_end(end)
            results = []
            for start, new in zip(starts, after, strict=True):
                results.append(builder.phi(kind))
                results[-1].add_incoming(start, ready)
                results[-1].add_incoming(new, loop)
            for result, pointer in zip(results, stored, strict=True):
                builder.store(result, pointer, align=4 * size)
            return context.get_dummy_value()

        numbers = [types.int64] * 7
        return types.void(*numbers, types.float32, lanes), code

    return tile


def _add_atomically(context, address, amount):
    """Add to the int64 at an address; gives what was there before."""

    def code(context, builder, signature, arguments):
        pointer = _at(builder, arguments[0], _INT64)
        return builder.atomic_rmw("add", pointer, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), code


def _read_atomically(context, address):
    """The int64 at an address, with all that was written before it."""

    def code(context, builder, signature, arguments):
        return builder.load_atomic(_at(builder, arguments[0], _INT64), "acquire", 8)

    return types.int64(types.int64), code


_X86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
_POSIX = sys.platform != "win32"


def _relax(context):
    """Tell the core that this thread waits."""

    def code(context, builder, signature, arguments):
        if _X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            found = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            builder.call(found, [])
        return context.get_dummy_value()

    return types.void(), code


def _give_way(context):
    """Let the system run another thread on this core."""

    def code(context, builder, signature, arguments):
        if _POSIX:
            kind = ir.FunctionType(_INT32, [])
            name = "sched_yield"
            found = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            builder.call(found, [])
        return context.get_dummy_value()

    return types.void(), code


def _intrinsics(functions: Iterable[Callable[..., Any]]) -> list[Any]:
    return [intrinsic(function) for function in functions]


(
    load,
    store,
    splat,
    scale_and_add,
    rectify,
    larger,
    keep_where,
    any_not_finite,
    add_atomically,
    read_atomically,
    relax,
    give_way,
) = _intrinsics(
    (
        _load,
        _store,
        _splat_value,
        _scale_and_add,
        _rectify,
        _larger,
        _keep_where,
        _any_not_finite,
        _add_atomically,
        _read_atomically,
        _relax,
        _give_way,
    ),
)

#: Value of lane l goes to lane l + 1, or to l - 1.
shift_up, shift_down = _shift(1), _shift(-1)

# A name for each of `TILES`: numba takes no list of functions.
tile_0, tile_1, tile_2, tile_3 = (_multiply_add(*shape) for shape in TILES)
