"""What the steps of a program become: which are done together, and in which layouts.

A map in lanes has L rows in each vector: with J = ceil(rows / L), lane l of vector (j, column) is
row l * J + j. Neighbouring rows are then in neighbouring vectors, so that each tap of a 3 x 3
convolution is one vector for L outputs; the rows beside a lane's first and last are copies. Twice
as many rows in twice as large a J are in the same lane, so that 2 x 2 pooling stays in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from l3prune.errors import ParameterError
from l3prune.sparse.program import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    GlobalPooling,
    Pooling,
    Program,
    Step,
)
from l3prune.sparse.shapes import MAX_WINDOW, check_input, shape_after, whole_numbers

#: Maps are pooled in their lanes if that makes J at most so many times what the rows need.
_WASTE = 1.2

#: Sizes of kernels, along either axis, that the fast kernel has.
FAST_KERNELS = (1, 3)

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Operation:
    """Steps that are done in one pass over a map.

    Attributes
    ----------
    step : Convolution, Affine, Pooling, GlobalPooling, Dense or None
        None copies from one layout to another.
    shape, output : (int, int, int)
        Rows, columns, channels of what is read and written.
    affine : Affine or None
        Done in the same pass, behind a tiled convolution.
    pooling : Pooling or None
        Done in the same pass behind that.
    tiled : bool
        A convolution of at most 3 x 3 taps, stride 1, "same": the fast kernel's.
    lane_rows : int
        Of a tiled convolution: J.
    flat : bool
        What is written must be channels last.

    Examples
    --------
    >>> Operation(None, (4, 4, 1), (4, 4, 1)).name
    'layout'
    """

    step: Step | None
    shape: Shape
    output: Shape
    affine: Affine | None = None
    pooling: Pooling | None = None
    tiled: bool = False
    lane_rows: int = 0
    flat: bool = False

    @property
    def name(self) -> str:
        """The steps' names."""
        steps = (self.step, self.affine, self.pooling)
        return "+".join(step.name for step in steps if step is not None) or "layout"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of weights that are not zero, for one input."""
        if isinstance(self.step, Convolution | Dense):
            return self._places * int(np.count_nonzero(self.step.kernel))
        return 0

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of all weights, for one input."""
        if isinstance(self.step, Convolution | Dense):
            return self._places * self.step.kernel.size
        return 0

    @property
    def _places(self) -> int:
        """Rows x columns of the step's own output."""
        rows, columns, _ = self.output if self.pooling is None else self.shape
        return rows * columns


def mac_density(program: Program, lanes: int | None = None) -> float:
    """Share of the multiply-accumulates whose weight is not zero; 1 where there are none at all.

    With `lanes`, those of the fast kernel count as many times as it has places in its lanes for one
    in the map: where half of them are empty, a weight costs twice as much.

    Examples
    --------
    >>> from l3prune.sparse.program import Dense
    >>> half = Dense("half", np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    >>> mac_density(Program("small", (1, 1, 2), (Flatten("flat"), half)))
    0.5
    """
    left = dense = 0.0
    for operation in plan(program, lanes or 4):  # macs are the same in any lanes
        cost = 1.0
        if operation.tiled and lanes is not None:
            cost = operation.lane_rows * lanes / operation.shape[0]
        left += cost * operation.macs
        dense += cost * operation.dense_macs
    return left / dense if dense else 1.0


def plan(program: Program, lanes: int) -> list[Operation]:
    """The operations of a program, in order.

    Raises
    ------
    ParameterError
        The program's shapes do not fit together; the message names the step.

    Examples
    --------
    >>> program = Program("none", (4, 4, 1), ())
    >>> [operation.name for operation in plan(program, 16)]
    ['layout']
    """
    operations: list[Operation] = []
    try:
        start = check_input(program.shape, program.front_end)
    except ParameterError as error:
        raise ParameterError(f"network {program.name}: {error}") from None
    shape: tuple[int, ...] = start
    for step in program.steps:
        output = output_shape(step, shape)
        if isinstance(step, Flatten):
            if operations:
                operations[-1] = replace(operations[-1], flat=True)
        else:
            tiled = (
                isinstance(step, Convolution)
                and step.strides == (1, 1)
                and step.padding == "same"
                and set(step.kernel.shape[:2]) <= set(FAST_KERNELS)
            )
            operations.append(Operation(step, _as_map(shape), _as_map(output), tiled=tiled))
        shape = output
    operations = _lanes(_fused(operations), lanes)
    end = Operation(None, start, start)
    if operations:
        operations[-1] = replace(operations[-1], flat=True)
        end = Operation(None, operations[-1].output, operations[-1].output)
    laid: list[Operation] = []
    for operation in operations or [end]:
        if operation.tiled and not laid:
            laid.append(Operation(None, operation.shape, operation.shape))
        laid.append(operation)
        if operation.tiled and operation.flat:
            laid.append(Operation(None, operation.output, operation.output, flat=True))
    laid[-1] = replace(laid[-1], flat=True)
    return laid


def gives_vector(program: Program) -> bool:
    """Whether outputs are vectors, not maps.

    Examples
    --------
    >>> gives_vector(Program("flat", (4, 4, 1), (Flatten("flatten"),)))
    True
    """
    return any(isinstance(step, Flatten | GlobalPooling) for step in program.steps)


def output_shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What a step makes of a map or a vector.

    Raises
    ------
    ParameterError
        The step is not one for such a shape, or is wrong in itself.

    Examples
    --------
    >>> output_shape(Pooling("pool", "max", (2, 2), (2, 2)), (5, 4, 8))
    (2, 2, 8)
    """
    channels = 0
    windows: tuple[Any, ...] = ()
    if isinstance(step, Convolution):
        _check_array(step, "kernel", (*_sizes(step, step.kernel.shape[:2]), shape[-1], None))
        windows = _windows(step, step.kernel.shape[:2])
    elif isinstance(step, Affine):
        _check_array(step, "scale", shape[-1:])
        _check_array(step, "offset", shape[-1:])
    elif isinstance(step, Pooling):
        windows = _windows(step, step.size)
    elif isinstance(step, Dense):
        _check_array(step, "kernel", (shape[-1], None))
    elif not isinstance(step, GlobalPooling | Flatten):
        raise ParameterError(f"{step!r} is no step that the sparse engine knows")
    if isinstance(step, Convolution | Dense):
        channels = step.kernel.shape[-1]
        if not step.kernel.size:
            raise ParameterError(
                f"layer {step.name}: its kernel has shape {step.kernel.shape}, without any weight"
            )
        _check_array(step, "bias", (channels,))
    if isinstance(step, Pooling | GlobalPooling) and step.kind not in ("max", "average"):
        raise ParameterError(f"layer {step.name}: pooling {step.kind!r} is not max or average")
    try:
        return shape_after(type(step), shape, channels, *windows)
    except ParameterError as error:
        raise ParameterError(f"layer {step.name}: {error}") from None


def _windows(
    step: Convolution | Pooling, size: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int], str]:
    if step.padding not in ("same", "valid"):
        raise ParameterError(f"layer {step.name}: padding {step.padding!r} is not same or valid")
    return _sizes(step, size), _sizes(step, step.strides), step.padding


def _as_map(shape: tuple[int, ...]) -> Shape:
    """Vectors of N values are maps (1, 1, N) for the engine."""
    rows, columns, channels = (1, 1, *shape)[-3:]
    return rows, columns, channels


def _sizes(step: Step, sizes: Sequence[int]) -> tuple[int, int]:
    rows, columns = whole_numbers(f"layer {step.name}: a window or stride", sizes, 2, MAX_WINDOW)
    return rows, columns


def _check_array(step: Step, name: str, shape: tuple[int | None, ...]) -> None:
    array = getattr(step, name)
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != np.float32
        or array.ndim != len(shape)
        or any(
            given != wanted
            for given, wanted in zip(array.shape, shape, strict=True)
            if wanted is not None
        )
    ):
        given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else repr(array)
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ParameterError(f"layer {step.name}: {name} is {given}, not float32 ({wanted})")


def _fused(operations: list[Operation]) -> list[Operation]:
    """Tiled convolutions take in the affine step and the pooling behind them."""
    fused: list[Operation] = []
    for operation in operations:
        before = fused[-1] if fused else None
        step = operation.step
        if before is not None and before.tiled and not before.flat and before.pooling is None:
            if isinstance(step, Affine) and not step.relu and before.affine is None:
                fused[-1] = replace(before, affine=step, flat=operation.flat)
                continue
            if (
                isinstance(step, Pooling)
                and (step.kind, step.size, step.strides) == ("max", (2, 2), (2, 2))
                and (step.padding == "valid" or not any(size % 2 for size in before.output[:2]))
            ):
                fused[-1] = replace(
                    before, pooling=step, output=operation.output, flat=operation.flat
                )
                continue
        fused.append(operation)
    return fused


def _lanes(operations: list[Operation], lanes: int) -> list[Operation]:
    """J of each tiled convolution, from the last to the first; pooling that does not suit it is
    taken out again."""
    laid: list[Operation] = []
    for operation in reversed(operations):
        if not operation.tiled:
            laid.insert(0, operation)
            continue
        own = -(-operation.shape[0] // lanes)
        following = laid[0].lane_rows if laid and laid[0].tiled else 0
        if operation.flat:
            following = 0
        if operation.pooling is None:
            laid.insert(0, replace(operation, lane_rows=following or own))
            continue
        wanted = 2 * following if following else own + own % 2
        if own <= wanted <= _WASTE * own:
            laid.insert(0, replace(operation, lane_rows=wanted))
            continue
        between = (*operation.shape[:2], operation.output[2])
        pooling = Operation(operation.pooling, between, operation.output, flat=operation.flat)
        laid.insert(0, pooling)
        laid.insert(0, replace(operation, pooling=None, output=between, lane_rows=own, flat=False))
    return laid
