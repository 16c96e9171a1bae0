"""Numbers that a caller gives, refused before anything is trained or written."""

from __future__ import annotations

import math
import operator
from typing import Any

from l3prune.errors import ParameterError


def check_seed(seed: Any) -> None:
    """Refuse a seed that is not an integer from 0 to 2^32 - 1, the range of scikit-learn's.

    Examples
    --------
    >>> check_seed(-1)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: seed=-1 is not an integer of 0 or more, below 4294967296
    """
    if _integer(seed) is None or not 0 <= seed < 2**32:
        raise ParameterError(f"seed={seed} is not an integer of 0 or more, below {2**32}")


def check_count(name: str, value: Any) -> None:
    """Refuse a count that is not an integer from 1.

    Examples
    --------
    >>> check_count("epochs", 0)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: epochs=0 is not a positive integer; pass 1 or more
    """
    if (_integer(value) or 0) < 1:
        raise ParameterError(f"{name}={value} is not a positive integer; pass 1 or more")


def check_positive(name: str, value: Any, start: str) -> None:
    """Refuse a real number that is not positive and finite; `start` is one to begin with.

    Examples
    --------
    >>> check_positive("C", -1, start="1")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: C=-1 is not positive and finite; 1 is a good start
    """
    if not 0 < value < math.inf:
        raise ParameterError(f"{name}={value} is not positive and finite; {start} is a good start")


def _integer(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
