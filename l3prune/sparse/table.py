"""The packed file's table of steps: a line for each step, and whether a network of them can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from l3prune.errors import ParameterError
from l3prune.sparse.coding import DENSE, MAX_LOW
from l3prune.sparse.program import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    GlobalPooling,
    Pooling,
    Step,
)
from l3prune.sparse.shapes import MAX_WINDOW, MOST, shape_after, whole_numbers

#: Layers without weights cost next to nothing, so a file's size bounds what it unpacks to, too.
FREE_WEIGHTS, WEIGHTS_PER_BYTE = 2**24, 64

RELU, SAME, AVERAGE = 1, 2, 4


class Kind(NamedTuple):
    """A kind of step: its number, the flags it may have, and which numbers its line has.

    Examples
    --------
    >>> KINDS[1].step.__name__, KINDS[1].kernel, KINDS[3].kernel
    ('Convolution', True, False)
    """

    number: int
    step: type
    flags: int = 0
    window: bool = False
    channels: bool = False
    kernel: bool = False


KINDS = {
    kind.number: kind
    for kind in (
        Kind(1, Convolution, RELU | SAME, window=True, channels=True, kernel=True),
        Kind(2, Affine, RELU, channels=True),
        Kind(3, Pooling, SAME | AVERAGE, window=True),
        Kind(4, GlobalPooling, AVERAGE),
        Kind(5, Flatten),
        Kind(6, Dense, RELU, window=True, channels=True, kernel=True),
    )
}
_BY_STEP = {kind.step: kind for kind in KINDS.values()}


class Line(NamedTuple):
    """A step without its weights and name; `docs/packed.md` says what each number is.

    Examples
    --------
    >>> Line(1, rows=3, columns=3, inputs=16, outputs=32).weights
    4608
    """

    number: int
    flags: int = 0
    low: int = 0
    reserved: int = 0
    rows: int = 0
    columns: int = 0
    row_stride: int = 0
    column_stride: int = 0
    inputs: int = 0
    outputs: int = 0
    nonzeros: int = 0
    gap_bytes: int = 0

    @property
    def kind(self) -> Kind:
        return KINDS[self.number]

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.inputs * self.outputs

    @property
    def stored(self) -> int:
        return self.weights if self.low == DENSE else self.nonzeros

    def sections(self, dtype: np.dtype[Any]) -> list[int]:
        """Bytes of the step's arrays, each without the zeros up to a multiple of four."""
        if not self.kind.kernel:
            return [4 * self.outputs] * 2 if self.kind.channels else []
        low = 0 if self.low == DENSE else self.low
        return [
            4 * self.outputs,
            4 * self.outputs if dtype.kind == "i" else 0,
            dtype.itemsize * self.stored,
            -(-self.stored * low // 8),
            self.gap_bytes,
        ]


def line_of(step: Step) -> Line:
    """A step's line, without what the coding of its kernel adds.

    Raises
    ------
    ParameterError
        An unknown step, or one whose arrays do not fit each other.

    Examples
    --------
    >>> line_of(Pooling("pool_1", "average", (2, 2), (2, 2)))[:8]
    (3, 4, 0, 0, 2, 2, 2, 2)
    """
    if type(step) not in _BY_STEP:
        known = ", ".join(kind.__name__ for kind in _BY_STEP)
        raise ParameterError(f"{type(step).__name__} is no step of a program; known: {known}")
    kind = _BY_STEP[type(step)]
    flags = RELU if getattr(step, "relu", False) else 0
    if kind.flags & SAME:
        flags |= SAME * _choice(step, "padding", ("valid", "same"))
    if kind.flags & AVERAGE:
        flags |= AVERAGE * _choice(step, "kind", ("max", "average"))
    line = Line(kind.number, flags)
    window: Sequence[int] = (1, 1)
    strides: Sequence[int] = (1, 1)
    if isinstance(step, Pooling):
        window, strides = step.size, step.strides
    elif isinstance(step, Convolution | Dense):
        axes = 4 if isinstance(step, Convolution) else 2
        shape = np.shape(step.kernel)
        if len(shape) != axes or np.shape(step.bias) != shape[-1:]:
            raise ParameterError(
                f"its kernel has shape {shape} and its bias {np.shape(step.bias)}; allowed are "
                f"kernels of {axes} axes, the last one as long as the bias"
            )
        line = line._replace(inputs=shape[-2], outputs=shape[-1])
        if isinstance(step, Convolution):
            window, strides = shape[:2], step.strides
    elif isinstance(step, Affine):
        shape = np.shape(step.scale)
        if len(shape) != 1 or np.shape(step.offset) != shape:
            raise ParameterError(
                f"its scale has shape {shape} and its offset {np.shape(step.offset)}; both must be "
                "(channels,)"
            )
        return line._replace(inputs=shape[0], outputs=shape[0])
    else:
        return line
    rows, columns = whole_numbers("its window", window, 2, MAX_WINDOW)
    row_stride, column_stride = whole_numbers("its strides", strides, 2, MAX_WINDOW)
    return line._replace(
        rows=rows, columns=columns, row_stride=row_stride, column_stride=column_stride
    )


def _choice(step: Any, attribute: str, allowed: tuple[str, str]) -> int:
    value = getattr(step, attribute)
    if value not in allowed:
        raise ParameterError(f"its {attribute} is {value!r}; allowed: {', '.join(allowed)}")
    return allowed.index(value)


def check(shape: tuple[int, ...], named_lines: Sequence[tuple[str, Line]], size: int) -> None:
    """Refuse a network that cannot run, or that is larger than a file of `size` bytes may hold.

    Parameters
    ----------
    shape : tuple of int
        Of the input, see `shapes.check_input`.
    named_lines : sequence of (str, Line)
    size : int

    Raises
    ------
    ParameterError

    Examples
    --------
    >>> check((8, 8, 1), [("conv_1", Line(1, 2, 0, 0, 3, 3, 1, 1, 4, 2))], 500)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: conv_1: it takes 4 channels and gets 1
    """
    allowed = min(MOST, FREE_WEIGHTS + WEIGHTS_PER_BYTE * size)
    weights = 0
    for name, line in named_lines:
        try:
            _check_line(line)
            padding = "same" if line.flags & SAME else "valid"
            made = shape_after(line.kind.step, shape, line.outputs, line[4:6], line[6:8], padding)
            if line.kind.channels and line.inputs != shape[-1]:
                raise ParameterError(f"it takes {line.inputs} channels and gets {shape[-1]}")
            shape = made
        except ParameterError as error:
            raise ParameterError(f"{name}: {error}") from None
        weights += line.weights
        if weights > allowed:
            raise ParameterError(
                f"{name}: {weights} weights up to here; a file of {size} bytes may have {allowed}"
            )


def _check_line(line: Line) -> None:
    """Each number alone: used ones are there, others are zero, and the coding is possible."""
    if line.number not in KINDS:
        raise ParameterError(f"kind of step {line.number} is unknown; known: 1 to {len(KINDS)}")
    kind = line.kind
    window, channels, coding = line[4:8], line[8:10], (line.low, *line[10:])
    if (
        line.flags & ~kind.flags
        or line.reserved
        or (not all(window) if kind.window else any(window))
        or max(window) > (1 if kind.step is Dense else MAX_WINDOW)
        or (not all(channels) if kind.channels else any(channels))
        or (kind.step is Affine and line.inputs != line.outputs)
        or (any(coding) and not kind.kernel)
    ):
        raise ParameterError(f"{tuple(line)} is no line of a {kind.step.__name__}")
    if line.low == DENSE:
        least = most = 0
    elif line.low <= MAX_LOW:
        # A bit for each non-zero, and another for each 2^low zeros at most.
        zeros = max(line.weights - line.nonzeros, 0) >> line.low
        least = -(-line.nonzeros // 8)
        most = -(-(line.nonzeros + zeros) // 8) if line.nonzeros else 0
    else:
        raise ParameterError(f"{line.low} low bits are unknown; known: 0 to {MAX_LOW} and {DENSE}")
    if line.nonzeros > line.weights or not least <= line.gap_bytes <= most:
        raise ParameterError(
            f"{line.nonzeros} non-zeros of {line.weights} weights with {line.gap_bytes} bytes of "
            "gaps cannot be"
        )
