"""Which shape a step makes of which, and how large anything may be: the engine's and the file's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from l3prune.audio import SAMPLE_RATES, FrontEnd
from l3prune.checks import is_integer
from l3prune.errors import ParameterError
from l3prune.sparse.program import Affine, Dense, Flatten, GlobalPooling, Step

#: Largest number of weights in a file, and of values between two steps: 512 MiB of float32.
MOST = 2**27

#: Most rows, and most columns, of a map.
MAX_SIDE = 2**16

#: Largest window and stride along one axis.
MAX_WINDOW = 2**15

#: Longest DFT of a front end, in seconds.
_MAX_DFT_SECONDS = 8


def whole_numbers(what: str, numbers: Any, count: int, most: int) -> tuple[int, ...]:
    """`count` numbers from 1 to `most`, as Python's integers.

    Raises
    ------
    ParameterError
        They are not.

    Examples
    --------
    >>> whole_numbers("the window", (3, 0), 2, 65535)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: the window is (3, 0); allowed are 2 whole numbers 1 to 65535
    """
    given = tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)
    if len(given) != count or not all(is_integer(each) and 0 < each <= most for each in given):
        raise ParameterError(f"{what} is {given}; allowed are {count} whole numbers 1 to {most}")
    return tuple(int(each) for each in given)


def check_input(shape: Any, front_end: FrontEnd | None) -> tuple[int, int, int]:
    """What the first step takes, and what makes it: (rows, columns, channels), checked.

    Raises
    ------
    ParameterError
        No three numbers, or too large ones; a front end that makes another shape, or that would
        take gigabytes for it.

    Examples
    --------
    >>> check_input((70000, 1, 1), None)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: the input has 70000 rows and 1 columns; allowed are 65536 each
    """
    rows, columns, channels = whole_numbers("the input's shape", shape, 3, MOST)
    if front_end is not None:
        _check_front_end(front_end, (rows, columns, channels))
    check_values("the input", rows, columns, channels)
    # No step makes more rows or columns than it takes.
    if max(rows, columns) > MAX_SIDE:
        raise ParameterError(
            f"the input has {rows} rows and {columns} columns; allowed are {MAX_SIDE} each"
        )
    return rows, columns, channels


def _check_front_end(front_end: FrontEnd, shape: tuple[int, int, int]) -> None:
    low, high = SAMPLE_RATES
    mels = 1 if front_end.n_mels is None else front_end.n_mels
    sizes = (front_end.n_dft, front_end.hop_length, mels)
    whole_numbers("the front end's lengths and bands", sizes, 3, 2**32 - 1)
    if not is_integer(front_end.sample_rate) or not low <= front_end.sample_rate <= high:
        raise ParameterError(
            f"the front end's sample rate is {front_end.sample_rate}; allowed are whole numbers "
            f"{low} to {high} Hz"
        )
    longest = _MAX_DFT_SECONDS * front_end.sample_rate
    if front_end.n_dft > longest:
        raise ParameterError(
            f"the front end's DFT takes {front_end.n_dft} samples; allowed are {longest}, which "
            f"are {_MAX_DFT_SECONDS} seconds"
        )
    check_values("the mel matrix", front_end.n_dft // 2 + 1, mels)
    bands, frames = front_end.shape
    if frames > 0:
        check_values("the front end, all frames together,", frames, front_end.n_dft)
    made = bands, frames, 1
    if made != shape:
        raise ParameterError(f"the front end makes {made}, and the network takes {shape}")


def padded(size: int, window: int, stride: int, padding: str) -> tuple[int, int]:
    """(outputs, zeros in front) along one axis, as TensorFlow counts them.

    Examples
    --------
    >>> padded(5, 3, 2, "same"), padded(4, 3, 2, "same"), padded(5, 3, 2, "valid")
    ((3, 1), (2, 0), (2, 0))
    """
    if padding == "valid":
        return (size - window) // stride + 1, 0
    outputs = -(-size // stride)
    return outputs, max((outputs - 1) * stride + window - size, 0) // 2


def shape_after(
    kind: type[Step],
    shape: tuple[int, ...],
    channels: int = 0,
    window: tuple[int, int] = (1, 1),
    strides: tuple[int, int] = (1, 1),
    padding: str = "valid",
) -> tuple[int, ...]:
    """What a step makes of a map, (rows, columns, channels), or of a vector, (channels,).

    Parameters
    ----------
    kind : type
        Of the step.
    shape : tuple of int
    channels : int
        That a convolution or dense step makes; others keep theirs.
    window, strides : (int, int)
        Rows, columns of a convolution or pooling.
    padding : str
        Of these: "same" or "valid".

    Raises
    ------
    ParameterError
        The step is not one for such a shape, or there would be more than `MOST` values.

    Examples
    --------
    >>> from l3prune.sparse.program import Convolution
    >>> shape_after(Convolution, (5, 4, 8), 16, (3, 3), (2, 2), "same")
    (3, 2, 16)
    """
    if kind is Affine:
        return shape
    if kind is Dense:
        # A single place is as good as a vector.
        if math.prod(shape[:-1]) != 1:
            raise ParameterError(
                f"it takes a vector and gets {shape}; put Flatten or global pooling in front"
            )
        made = (*shape[:-1], channels)
    elif kind is Flatten:
        made = (math.prod(shape),)
    elif len(shape) != 3:
        raise ParameterError(f"it takes rows, columns and channels and gets {shape}")
    elif kind is GlobalPooling:
        made = shape[2:]
    else:
        if padding == "valid" and (window[0] > shape[0] or window[1] > shape[1]):
            raise ParameterError(f"its windows of {window} do not fit into maps of {shape[:2]}")
        # Engines may make a padded copy.
        check_values("its padded input", shape[0] + window[0], shape[1] + window[1], shape[2])
        rows, columns = (
            padded(shape[axis], window[axis], strides[axis], padding)[0] for axis in (0, 1)
        )
        made = (rows, columns, channels or shape[2])
    check_values("its output", *made)
    return made


def check_values(what: str, *sizes: int) -> None:
    """Refuse more than `MOST` values.

    Examples
    --------
    >>> check_values("the input", 65536, 65536)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: the input has 4294967296 values; allowed are 134217728
    """
    if math.prod(sizes) > MOST:
        raise ParameterError(f"{what} has {math.prod(sizes)} values; allowed are {MOST}")
