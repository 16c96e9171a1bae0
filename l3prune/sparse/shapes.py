"""Which shape a step makes of which, and how large anything may be: the engine's and the file's."""

from __future__ import annotations

import math

from l3prune.errors import ParameterError
from l3prune.sparse.program import Affine, Dense, Flatten, GlobalPooling, Step

#: Largest number of weights in a file, and of values between two steps: 512 MiB of float32.
MOST = 2**27

#: Largest window and stride along one axis.
MAX_WINDOW = 2**15


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
