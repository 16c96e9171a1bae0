"""Whole numbers that a caller gives, refused before anything is computed or written."""

from __future__ import annotations

from typing import Any

import numpy as np

from l3prune.errors import ParameterError


def is_integer(value: object) -> bool:
    """Whether `value` is a whole number of Python's or NumPy's; True and False are none.

    Examples
    --------
    >>> is_integer(np.int64(3)), is_integer(3.0), is_integer(True)
    (True, False, False)
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse what is no whole number from `least` on, or in `least` … `most`.

    Examples
    --------
    >>> check_whole("frequency", 0, 1)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: frequency=0 is not a whole number from 1 on
    """
    if not is_integer(value) or value < least or (most is not None and value > most):
        allowed = f"from {least} on" if most is None else f"in {least} … {most}"
        raise ParameterError(f"{name}={value!r} is not a whole number {allowed}")


def check_sizes(**sizes: int | None) -> None:
    """Refuse sizes that are neither None nor whole numbers from 1 on.

    Examples
    --------
    >>> check_sizes(batch_size=8, train_epoch_size=None)
    >>> check_sizes(batch_size=0)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: batch_size=0 is not a whole number from 1 on
    """
    for name, size in sizes.items():
        if size is not None:
            check_whole(name, size, 1)
