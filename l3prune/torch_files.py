"""Checkpoints that PyTorch wrote, read without PyTorch and without running what they hold.

A checkpoint is a pickle with the tensors' shapes, and beside it their values; see `pickles`. Names
of objects other than tensors, numbers and texts are refused. Both forms are read: the zip archive
that PyTorch writes since 1.6, and the one before.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import L3PruneError
from l3prune.files import is_file
from l3prune.pickles import Machine, Refused, described, reading

#: Begins the older form, followed by the number of its protocol.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

#: The pickle itself, without values: the largest networks' have less than 1 MB.
_MAX_PICKLE = 64 * 2**20

#: All values together.
_MAX_BYTES = 8 * 2**30
_MAX_AXES = 16

_TYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}

_TENSOR, _PARAMETER, _DICT = "tensor", "parameter", "dict"

#: What a pickle may name, and what it means here.
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _DICT,
    ("torch._utils", "_rebuild_tensor"): _TENSOR,
    ("torch._utils", "_rebuild_tensor_v2"): _TENSOR,
    ("torch._utils", "_rebuild_parameter"): _PARAMETER,
    **{("torch", name): np.dtype(kind) for name, kind in _TYPES.items()},
}


@dataclass(frozen=True)
class _Skipped:
    """A NumPy object, such as the state of PANNs' sampler beside the weights: not read."""

    name: str


#: Parts of pickled NumPy arrays and numbers.
_NUMPY = {
    *((module, name) for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
      for name in ("_reconstruct", "scalar", "ndarray", "dtype")),
    ("_codecs", "encode"),
}  # fmt: skip


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a network by name: of a checkpoint, or of an .npz file of the same names.

    Parameters
    ----------
    path : str or path-like
        A file of `torch.save`, which holds a state dictionary or has one under "model" or
        "state_dict"; or an .npz file.

    Returns
    -------
    state : dict of str to np.ndarray
        In the file's order, without "module." in front of all names, as DataParallel puts it.

    Raises
    ------
    L3PruneError
        The file is missing, is no such file, is damaged, holds an object of another kind (which the
        message names), or a value that is not finite.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "net.npz"
    >>> np.savez(path, **{"module.fc1.bias": np.ones(3, np.float32)})
    >>> read_state(path)
    {'fc1.bias': array([1., 1., 1.], dtype=float32)}
    """
    path = Path(path)
    if not is_file(path):
        raise L3PruneError(f"no such checkpoint: {path}")
    with reading(path, "PyTorch checkpoint"):
        state = _read(path)
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise L3PruneError(f"{path}: {name} has NaN or infinite values")
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    return state


def _read(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        start = file.read(4)
        if start[:2] == b"PK":
            with zipfile.ZipFile(path) as archive:
                if any(Path(name).name == "data.pkl" for name in archive.namelist()):
                    return _read_archive(archive)
            return _read_npz(path)
        if start[:2] != b"\x80\x02":
            raise Refused("is no PyTorch checkpoint and no .npz file")
        with contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            return _read_legacy(content)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        _check_size(sum(info.file_size for info in archive.infolist()))
    with np.load(path, allow_pickle=False) as arrays:
        state = {}
        for name in arrays.files:
            state[name] = np.asarray(arrays[name])
            if state[name].dtype.kind not in "fiub":
                raise Refused(f"{name} is of type {state[name].dtype}; weights are numbers")
        return state


def _read_archive(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = {info.filename: info for info in archive.infolist()}
    root = min((name for name in members if Path(name).name == "data.pkl"), key=len)
    root = root.removesuffix("data.pkl")

    def content(name: str, most: int) -> bytes:
        info = members.get(root + name)
        if info is None:
            raise Refused(f"{name} is missing in it; the file is not complete")
        if info.file_size > most or info.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"{name} in it has {info.file_size} bytes where {most} are expected")
        return archive.read(info)

    if root + "byteorder" in members and content("byteorder", 16).strip() != b"little":
        raise Refused("its values are big-endian; save it on a little-endian machine")
    tensors = _tensors(_load(io.BytesIO(content("data.pkl", _MAX_PICKLE)))[0])
    stored: dict[str, np.ndarray] = {}
    for tensor in tensors.values():
        storage = tensor.storage
        if storage.key not in stored:
            size = storage.size * storage.dtype.itemsize
            data = content(f"data/{storage.key}", size)
            if len(data) != size:
                raise Refused(f"data/{storage.key} in it has {len(data)} bytes, not {size}")
            stored[storage.key] = np.frombuffer(data, storage.dtype)
    return _arrays(tensors, stored)


def _read_legacy(content: mmap.mmap) -> dict[str, np.ndarray]:
    if _load(content)[0] != _MAGIC or _load(content)[0] != _PROTOCOL:
        raise Refused("is a pickle, but no PyTorch checkpoint")
    system, _ = _load(content)
    if not system["little_endian"]:
        raise Refused("its values are big-endian; save it on a little-endian machine")
    loaded, storages = _load(content)
    tensors = _tensors(loaded)
    wanted = {tensor.storage.key for tensor in tensors.values()}
    stored: dict[str, np.ndarray] = {}
    for key in _load(content)[0]:
        if key not in storages:
            raise Refused(f"has the values of a storage {key!r} that no tensor names")
        storage = storages[key]
        start = content.read(8)
        count = struct.unpack("<q", start)[0] if len(start) == 8 else storage.size
        if count != storage.size:
            raise Refused(f"storage {key} has {count} values, not {storage.size}")
        size = storage.size * storage.dtype.itemsize
        if content.tell() + size > len(content):
            raise Refused(f"it ends within storage {key}; the download is not complete")
        if key in wanted:
            stored[key] = np.frombuffer(content.read(size), storage.dtype)
        else:  # of an optimizer, say
            content.seek(size, os.SEEK_CUR)
    return _arrays(tensors, stored)


def _tensors(loaded: Any) -> dict[str, _Tensor]:
    """The state dictionary in what was saved."""
    for name in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise Refused(
            f"holds {_named(loaded)}, not a dictionary of tensors; save network.state_dict()"
        )
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise Refused(f"entry {name!r} is {_named(value)}, not a tensor")
    total = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in loaded.values())
    storages = {tensor.storage.key: tensor.storage for tensor in loaded.values()}
    total += sum(each.size * each.dtype.itemsize for each in storages.values())
    _check_size(total)
    return dict(loaded)


def _check_size(total: int) -> None:
    if total > _MAX_BYTES:
        raise Refused(f"claims {total >> 20} MB of values; at most {_MAX_BYTES >> 20} are read")


def _named(value: Any) -> str:
    return value.name if isinstance(value, _Skipped) else described(value)


def _arrays(
    tensors: Mapping[str, _Tensor], stored: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors' own values, row after row."""
    state = {}
    for name, tensor in tensors.items():
        flat = stored.get(tensor.storage.key)
        if flat is None:
            raise Refused(f"the values of {name} are missing; the download is not complete")
        width = flat.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            flat[tensor.offset :], tensor.shape, [width * stride for stride in tensor.strides]
        )
        state[name] = np.array(view, order="C")
    return state


def _load(stream: Any) -> tuple[Any, dict[str, _Storage]]:
    """The value of the pickle at a stream's place, and its storages; moves on behind it."""
    machine = _Checkpoint()
    return machine.load(stream), machine.storages


class _Checkpoint(Machine):
    """A checkpoint's pickle; tensors and storages are plain records."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[str, _Storage] = {}

    def meaning(self, module: str, name: str) -> Any:
        return _meaning(module, name)

    def set_items(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], _Skipped):
            super().set_items(values)

    def reduce(self, arguments: Any) -> None:
        called = self.stack.pop()
        if isinstance(called, _Skipped):
            self.stack.append(called)
        elif called is _DICT:
            self.stack.append(dict(arguments[0] if arguments else ()))
        elif called is _TENSOR:
            self.stack.append(_tensor(*arguments[:4]))
        elif called is _PARAMETER and isinstance(arguments[0], _Tensor):
            self.stack.append(arguments[0])
        else:
            raise TypeError(f"{_named(called)} is called")

    def build(self) -> None:
        """Attributes of an object: of a state dictionary the versions of its modules; no values."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | _Skipped):
            raise TypeError(f"attributes are set of {_named(self.stack[-1])}")

    def persistent(self, given: Any) -> None:
        """A storage; the older form may give a part of another one."""
        kind, dtype, key, _, size, *view = given
        if not isinstance(kind, str):
            raise TypeError("a storage of no kind")
        if kind != "storage":
            raise Refused(
                f"holds a {kind!r}, which is code; save network.state_dict() in place of network"
            )
        if not isinstance(dtype, np.dtype) or not isinstance(key, str | int):
            raise TypeError("a storage without type or key")
        if not isinstance(size, int):
            raise TypeError("a storage without size")
        if size < 0 or (view and view[0] is not None):
            raise Refused(f"storage {key!r} is a part of another one, or has {size} values")
        storage = _Storage(str(key), dtype, size)
        if self.storages.setdefault(storage.key, storage) != storage:
            # A larger claim would read what is behind the values.
            raise Refused(f"storage {key} is of two types or sizes")
        self.stack.append(storage)


def _meaning(module: str, name: str) -> Any:
    if (module, name) in _NAMES:
        return _NAMES[module, name]
    if (module, name) in _NUMPY:
        return _Skipped(f"{module}.{name}")
    if module == "torch" and name.endswith("Storage"):
        raise Refused(f"has values of type {name}; allowed: {', '.join(_TYPES)}")
    raise Refused(
        f"its pickle names {module}.{name}, which is no part of a state dictionary and could be "
        "any code; nothing was run; save network.state_dict() in place of network"
    )


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without storage")
    sizes, steps = tuple(shape), tuple(strides)
    numbers = (offset, *sizes, *steps)
    if len(sizes) != len(steps) or len(sizes) > _MAX_AXES:
        raise Refused(f"a tensor has {len(sizes)} axes and {len(steps)} strides")
    if any(not isinstance(n, int) or isinstance(n, bool) for n in numbers):
        raise TypeError("a tensor whose place is no number")
    if any(n < 0 for n in numbers):
        raise Refused(f"a tensor has offset {offset}, shape {sizes} and strides {steps}")
    last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    count = math.prod(sizes)
    if count and (last >= storage.size or count > storage.size):
        raise Refused(
            f"a tensor of shape {sizes} and strides {steps} from {offset} on is outside its "
            f"storage of {storage.size} values"
        )
    return _Tensor(storage, offset if count else 0, sizes, steps)
