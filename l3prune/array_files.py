"""Lists of NumPy arrays that Python has pickled, read without unpickling; see `pickles`."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import L3PruneError
from l3prune.files import is_file
from l3prune.pickles import Machine, Refused, described, reading

_MAX_AXES = 16

_RECONSTRUCT, _NDARRAY, _DTYPE = "_reconstruct", "ndarray", "dtype"
_ENCODE, _BYTES = "encode", "bytes"

#: What a pickle may name: the parts of an array.
_NAMES = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
    ("_codecs", "encode"): _ENCODE,
    # Protocol 2 has no other word for no bytes.
    ("__builtin__", "bytes"): _BYTES,
}


@dataclass
class _Called:
    """A name of `_NAMES`."""

    name: str


@dataclass
class _Type:
    dtype: np.dtype


@dataclass
class _Array:
    values: np.ndarray | None = None


def read_arrays(path: str | os.PathLike[str]) -> list[np.ndarray]:
    """The arrays of a pickled list.

    Parameters
    ----------
    path : str or path-like
        A pickle of protocol 4 or an earlier one, of a list or tuple of arrays of numbers.

    Returns
    -------
    arrays : list of np.ndarray
        Read-only.

    Raises
    ------
    L3PruneError
        The file is missing, is no such pickle, is damaged, or holds an object of another kind,
        which the message names.

    Examples
    --------
    >>> read_arrays("/nowhere/a.pkl")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such pickle: /nowhere/a.pkl
    """
    path = Path(path)
    if not is_file(path):
        raise L3PruneError(f"no such pickle: {path}")
    with reading(path, "pickled list of arrays"), path.open("rb") as file:
        with contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            loaded = _Arrays().load(content)
        if not isinstance(loaded, list | tuple):
            raise Refused(f"holds {described(loaded)}, not a list of arrays")
        arrays = []
        for number, each in enumerate(loaded):
            if not isinstance(each, _Array) or each.values is None:
                raise Refused(f"entry {number} is {described(each)}, not an array of numbers")
            arrays.append(each.values)
        return arrays


class _Arrays(Machine):
    """The pickle of arrays, which are records to be filled."""

    def meaning(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise Refused(
                f"its pickle names {module}.{name}, which is no part of an array of numbers and "
                "could be any code; nothing was run; save a list of arrays"
            )
        return _Called(_NAMES[module, name])

    def reduce(self, arguments: Any) -> None:
        called = self.stack.pop()
        if not isinstance(called, _Called):
            raise TypeError(f"{described(called)} is called")
        if called.name == _RECONSTRUCT and arguments[0] == _Called(_NDARRAY):
            self.stack.append(_Array())
        elif called.name == _DTYPE:
            self.stack.append(_Type(_dtype(arguments[0])))
        elif called.name == _ENCODE and arguments[1:] == ("latin1",):
            self.stack.append(arguments[0].encode("latin1"))
        elif called.name == _BYTES and arguments == ():
            self.stack.append(b"")
        else:
            raise TypeError(f"numpy's {called.name} is called")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Type):
            _, order, *parts = state
            if any(part is not None for part in parts[:3]):
                raise Refused("has an array of records; arrays of numbers are read")
            if order not in ("|", "<", ">", "="):
                raise TypeError("a type of unknown byte order")
            target.dtype = target.dtype.newbyteorder(order)
        elif isinstance(target, _Array) and target.values is None:
            target.values = _values(*state)
        else:
            raise TypeError(f"attributes are set of {described(target)}")


def _dtype(code: Any) -> np.dtype:
    if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", code):
        raise Refused(f"has an array of type {code!r}; arrays of numbers are read")
    return np.dtype(code)


def _values(version: Any, shape: Any, kind: Any, by_column: Any, data: Any) -> np.ndarray:
    if not isinstance(kind, _Type) or not isinstance(data, bytes):
        raise Refused("has an array without a type of numbers, or without their bytes")
    if not isinstance(shape, tuple) or len(shape) > _MAX_AXES:
        raise TypeError("an array without shape")
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 0 for size in shape):
        raise TypeError("an array whose shape is no numbers")
    if len(data) != math.prod(shape) * kind.dtype.itemsize:
        raise Refused(f"an array of shape {shape} has {len(data)} bytes; the file is not complete")
    flat = np.frombuffer(data, kind.dtype)
    return flat.reshape(shape, order="F" if by_column else "C")
