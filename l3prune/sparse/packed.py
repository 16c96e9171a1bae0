"""The packed file: a sparse network in one small file, checked before it is believed.

`docs/packed.md` has it byte by byte. NumPy only.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from l3prune.audio import FORMS, FrontEnd
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, is_file
from l3prune.sparse.coding import DENSE, VALUES, Coded, Loss, decode, encode
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
from l3prune.sparse.shapes import check_input
from l3prune.sparse.table import AVERAGE, RELU, SAME, Line, check, line_of

VERSION = 1
MAX_BYTES = 2**30

#: Of a name, or a text of the origin.
MAX_TEXT_BYTES = 4095

_MAGIC = b"L3PRUNE\0"
_HEADER = struct.Struct("<8sHBBI3I4I2H")
_LINE = struct.Struct("<4B4H4I")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class PackedLayer:
    """A layer with weights of its own, as a packed file has it.

    Attributes
    ----------
    name : str
    kind : str
        "Convolution", "Dense" or "Affine".
    shape : tuple of int
        Of the kernel; (channels,) of an `Affine`.
    nonzeros : int
        Weights of the kernel that are not zero; 0 of an `Affine`, which has no kernel.
    coding : str
        "dense", or "gaps/K": the gaps between non-zeros with K low bits. "gaps/0" is a bitmap.
    size, index_size : int
        Bytes of its arrays, and those of them that tell where the non-zeros are.

    Examples
    --------
    >>> PackedLayer("conv_1", "Convolution", (3, 3, 1, 64), 576, "dense", 2560, 0).index_size
    0
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nonzeros: int
    coding: str
    size: int
    index_size: int


@dataclass(frozen=True)
class PackedFile:
    """What a packed file says of itself; see `describe`.

    Attributes
    ----------
    version : int
        Of the format.
    size : int
        Bytes.
    values : str
        "float32", "float16" or "int8".
    name : str
    shape : tuple of int
    front_end : FrontEnd or None
    origin : dict of str to str
        As in `Program`.
    layers : tuple of PackedLayer

    Examples
    --------
    >>> PackedFile(1, 64, "int8", "empty", (8, 8, 1), None, {}, ()).layers
    ()
    """

    version: int
    size: int
    values: str
    name: str
    shape: tuple[int, int, int]
    front_end: FrontEnd | None
    origin: dict[str, str]
    layers: tuple[PackedLayer, ...]


def save_program(
    program: Program, path: str | os.PathLike[str], values: str = "float32"
) -> dict[str, Loss]:
    """Write a packed file, atomically. The same program gives the same bytes.

    Parameters
    ----------
    program : Program
        Names of its steps differ.
    path : str or path-like
    values : str
        "float32" keeps kernels to the bit, but for the sign of zeros. "float16" rounds them to 11
        significant bits, below 6.1e-5 to multiples of 6e-8. "int8" rounds them to multiples of
        their filter's scale, which is the filter's largest weight / 127. Biases and the numbers of
        `Affine` steps are float32 always.

    Returns
    -------
    losses : dict of str to Loss
        For each convolution and dense layer.

    Raises
    ------
    ParameterError
        Unknown `values`; a program that cannot run (shapes that do not fit, NaN) or is larger than
        a file may be; a weight beyond float16's 65504 (int8: beyond float32 once it is rounded).
    L3PruneError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> kernel = np.array([[0, 127], [-127, 12.25]], np.float32)
    >>> dense = Dense("dense_1", kernel, np.zeros(2, np.float32))
    >>> program = Program("small", (1, 1, 2), (Flatten("flatten"), dense))
    >>> path = os.path.join(tempfile.mkdtemp(), "small.l3p")
    >>> save_program(program, path, "int8")["dense_1"].largest
    0.25
    >>> load_program(path).steps[1].kernel
    array([[   0.,  127.],
           [-127.,   12.]], dtype=float32)
    """
    if values not in VALUES:
        raise ParameterError(f"values={values!r} is unknown; allowed: {', '.join(VALUES)}")
    shape = check_input(program.shape, program.front_end)
    lines, data = [], []
    losses: dict[str, Loss] = {}
    for step in program.steps:
        try:
            line, arrays, loss = _pack(step, values)
        except ParameterError as error:
            raise ParameterError(f"{getattr(step, 'name', step)}: {error}") from None
        lines.append((step.name, line))
        data += [_padded(array.tobytes()) for array in arrays]
        if loss is not None:
            losses[step.name] = loss
    if len({name for name, _ in lines}) < len(lines):
        raise ParameterError(f"steps of {program.name} have the same name; rename the layers")
    texts = [program.name, *(text for item in program.origin.items() for text in item)]
    head = [_text(text) for text in texts]
    head += [_LINE.pack(*line) + _text(name) for name, line in lines]
    body = b"".join(head + data)
    size = _HEADER.size + len(body) + _CHECKSUM.size
    check(shape, lines, size)
    for what, count, most in (
        ("bytes", size, MAX_BYTES),
        ("steps", len(lines), 0xFFFF),
        ("lines of origin", len(program.origin), 0xFFFF),
    ):
        if count > most:
            raise ParameterError(f"{program.name} has {count} {what}; allowed are {most}")
    end = program.front_end
    content = (
        _HEADER.pack(
            _MAGIC,
            VERSION,
            list(VALUES).index(values),
            FORMS.index(end.form) + 1 if end else 0,
            size,
            *shape,
            *((end.sample_rate, end.n_dft, end.hop_length, end.n_mels or 0) if end else [0] * 4),
            len(program.origin),
            len(lines),
        )
        + body
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(content + _CHECKSUM.pack(zlib.crc32(content)))
    return losses


def load_program(path: str | os.PathLike[str]) -> Program:
    """Read a packed file: its program, weights as float32.

    Beside the program and the file's bytes, reading needs about 30 MB. What a file may unpack to is
    bounded; `docs/packed.md` says how.

    Raises
    ------
    L3PruneError
        The file is missing, no packed file, of a newer format, damaged, or says what cannot be.

    Examples
    --------
    >>> load_program("missing.l3p")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such file: missing.l3p
    """
    content = _read(path)
    try:
        return _unpack(_parse(content))
    except ParameterError as error:
        raise L3PruneError(f"{path} is not a valid packed file: {error}") from error


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as packed files do.

    Examples
    --------
    >>> is_packed("missing.l3p")
    False
    """
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def describe(path: str | os.PathLike[str]) -> PackedFile:
    """Read what a packed file holds, without unpacking the weights.

    The checksum, the table and the sizes are verified as by `load_program`, the weights are not.

    Raises
    ------
    L3PruneError
        As `load_program`.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "small.l3p")
    >>> kernel = np.eye(64, dtype=np.float32)[None, None]
    >>> step = Convolution("conv_1", kernel, np.zeros(64, np.float32))
    >>> _ = save_program(Program("small", (8, 8, 64), (step,)), path)
    >>> layer = describe(path).layers[0]
    >>> layer.nonzeros, layer.coding, layer.size, layer.index_size
    (64, 'gaps/5', 576, 64)
    """
    content = _read(path)
    try:
        parsed = _parse(content)
    except ParameterError as error:
        raise L3PruneError(f"{path} is not a valid packed file: {error}") from error
    layers = []
    for name, line in parsed.lines:
        if not line.kind.channels:
            continue
        shape: tuple[int, ...] = (line.inputs, line.outputs)
        if line.kind.step is Convolution:
            shape = (line.rows, line.columns, *shape)
        elif line.kind.step is Affine:
            shape = (line.outputs,)
        dense = line.low == DENSE or not line.kind.kernel
        coding = "dense" if dense else f"gaps/{line.low}"
        sizes = [-(-size // 4) * 4 for size in line.sections(VALUES[parsed.values])]
        index = 0 if dense else sum(sizes[-2:])
        kind = line.kind.step.__name__
        layers.append(PackedLayer(name, kind, shape, line.nonzeros, coding, sum(sizes), index))
    return PackedFile(
        VERSION,
        len(content),
        parsed.values,
        parsed.name,
        parsed.shape,
        parsed.front_end,
        parsed.origin,
        tuple(layers),
    )


# Writing.


def _pack(step: Step, values: str) -> tuple[Line, list[np.ndarray], Loss | None]:
    """A step's line, its arrays in the file's order, and what storing its kernel changed."""
    line = line_of(step)
    if isinstance(step, Affine):
        return line, [_floats(step.scale), _floats(step.offset)], None
    if not isinstance(step, Convolution | Dense):
        return line, [], None
    bias, kernel = _floats(step.bias), _floats(step.kernel)
    if not kernel.size:
        raise ParameterError(f"its kernel has shape {kernel.shape}, without any weight")
    coded, loss = encode(kernel.reshape(-1, line.outputs).T, values)
    line = line._replace(low=coded.low, nonzeros=coded.nonzeros, gap_bytes=len(coded.gaps))
    scales = [] if coded.scales is None else [coded.scales]
    return line, [bias, *scales, coded.stored, coded.low_bits, coded.gaps], loss


def _floats(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.float32:
        raise ParameterError(f"its weights have type {array.dtype}; allowed is float32")
    if not np.isfinite(array).all():
        raise ParameterError("its weights have NaN or infinity among them")
    return array.astype("<f4")


def _text(text: str) -> bytes:
    try:
        data = text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise ParameterError(f"{text!r} is not a text that UTF-8 can hold") from None
    if len(data) > MAX_TEXT_BYTES:
        raise ParameterError(f"{text[:40]!r}… has {len(data)} bytes; allowed are {MAX_TEXT_BYTES}")
    return _padded(struct.pack("<H", len(data)) + data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# Reading.


class _Parsed(NamedTuple):
    """A file whose checksum, texts, table and sizes are right; its weights are not looked at."""

    data: _Cursor
    values: str
    name: str
    shape: tuple[int, int, int]
    front_end: FrontEnd | None
    origin: dict[str, str]
    lines: list[tuple[str, Line]]


class _Cursor:
    """Walks over a file's bytes from `offset` up to its checksum."""

    def __init__(self, content: bytes, offset: int):
        self.content = memoryview(content)
        self.offset, self.end = offset, len(content) - _CHECKSUM.size

    def take(self, count: int) -> memoryview:
        if count > self.end - self.offset:
            raise ParameterError(f"{count} bytes should follow byte {self.offset}, and do not")
        self.offset += count
        return self.content[self.offset - count : self.offset]

    def take_padded(self, count: int) -> memoryview:
        """Bytes, without the zeros behind them that lead to a multiple of four."""
        taken = self.take(count)
        if any(self.take(-self.offset % 4)):
            raise ParameterError(f"bytes before byte {self.offset} should be zero, and are not")
        return taken

    def text(self) -> str:
        length = int.from_bytes(self.take(2), "little")
        if length > MAX_TEXT_BYTES:
            raise ParameterError(f"a text has {length} bytes; allowed are {MAX_TEXT_BYTES}")
        try:
            return str(self.take_padded(length), "utf-8")
        except UnicodeDecodeError:
            raise ParameterError("a text is not UTF-8") from None


def _read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a packed file that is whole and has the right checksum."""
    if not is_file(path):
        raise L3PruneError(f"no such file: {path}")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_head(path, file.read(_HEADER.size), size)
            file.seek(0)
            content = file.read(size)
    except OSError as error:
        raise L3PruneError(f"cannot read {path}: {error.strerror}") from error
    checksum = zlib.crc32(memoryview(content)[: -_CHECKSUM.size])
    if len(content) != size or content[-_CHECKSUM.size :] != _CHECKSUM.pack(checksum):
        raise L3PruneError(f"{path} is damaged: its checksum is wrong; copy or make it again")
    return content


def _check_head(path: str | os.PathLike[str], head: bytes, size: int) -> None:
    if not head.startswith(_MAGIC):
        raise L3PruneError(
            f"{path} is not a packed file; l3prune.sparse.packed.save_program writes one"
        )
    version = int.from_bytes(head[8:10], "little")
    if len(head) >= 10 and version != VERSION:
        raise L3PruneError(
            f"{path} has version {version} of the packed format and was made by a newer l3prune, "
            f"or is damaged; this l3prune reads version {VERSION}"
        )
    smallest = _HEADER.size + _CHECKSUM.size
    declared = _HEADER.unpack(head)[4] if len(head) == _HEADER.size else smallest
    if size != declared or size < smallest:
        raise L3PruneError(
            f"{path} is damaged: it has {size} bytes and should have {max(declared, smallest)}; "
            "copy or make it again"
        )
    if size > MAX_BYTES:
        raise L3PruneError(f"{path} has {size} bytes; packed files have {MAX_BYTES} at most")


def _parse(content: bytes) -> _Parsed:
    _, _, number, form, size, *numbers, origins, steps = _HEADER.unpack_from(content)
    if number >= len(VALUES) or form > len(FORMS):
        raise ParameterError(f"value type {number} or front end {form} is unknown")
    values = list(VALUES)[number]
    front_end = None
    if form:
        rate, n_dft, hop, mels = numbers[3:]
        front_end = FrontEnd(rate, n_dft, hop, mels or None, FORMS[form - 1])
    elif any(numbers[3:]):
        raise ParameterError("it has numbers of a front end, but no front end")
    shape = check_input(numbers[:3], front_end)
    cursor = _Cursor(content, _HEADER.size)
    name = cursor.text()
    pairs = [(cursor.text(), cursor.text()) for _ in range(origins)]
    lines = []
    for _ in range(steps):
        line = Line(*_LINE.unpack(cursor.take(_LINE.size)))
        lines.append((cursor.text(), line))
    origin, names = dict(pairs), {each for each, _ in lines}
    if len(origin) < len(pairs) or len(names) < len(lines):
        raise ParameterError("a name is there twice")
    check(shape, lines, size)
    data = cursor.offset
    for _, line in lines:
        for length in line.sections(VALUES[values]):
            cursor.take_padded(length)
    if cursor.offset != cursor.end:
        raise ParameterError(f"{cursor.end - cursor.offset} bytes are left behind its weights")
    cursor.offset = data
    return _Parsed(cursor, values, name, shape, front_end, origin, lines)


def _unpack(parsed: _Parsed) -> Program:
    steps = []
    for name, line in parsed.lines:
        try:
            steps.append(_step(name, line, parsed.data, VALUES[parsed.values]))
        except ParameterError as error:
            raise ParameterError(f"{name}: {error}") from None
    return Program(parsed.name, parsed.shape, tuple(steps), parsed.front_end, parsed.origin)


def _step(name: str, line: Line, data: _Cursor, dtype: np.dtype[Any]) -> Step:
    arrays = [data.take_padded(length) for length in line.sections(dtype)]
    relu = bool(line.flags & RELU)
    padding = "same" if line.flags & SAME else "valid"
    pool = "average" if line.flags & AVERAGE else "max"
    kind = line.kind.step
    if kind is Flatten:
        return Flatten(name)
    if kind is GlobalPooling:
        return GlobalPooling(name, pool)
    if kind is Pooling:
        return Pooling(name, pool, line[4:6], line[6:8], padding)
    if kind is Affine:
        return Affine(name, _read_floats(arrays[0]), _read_floats(arrays[1]), relu)
    coded = Coded(
        line.low,
        line.nonzeros,
        _read_floats(arrays[1]) if dtype.kind == "i" else None,
        np.frombuffer(arrays[2], dtype),
        np.frombuffer(arrays[3], np.uint8),
        np.frombuffer(arrays[4], np.uint8),
    )
    bias = _read_floats(arrays[0])
    kernel = decode(coded, line.weights // line.outputs, line.outputs)
    if kind is Dense:
        return Dense(name, kernel, bias, relu)
    kernel = kernel.reshape(*line[4:6], line.inputs, line.outputs)
    return Convolution(name, kernel, bias, line[6:8], padding, relu)


def _read_floats(data: memoryview) -> np.ndarray:
    array = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(array).all():
        raise ParameterError("a bias, scale or offset is NaN or infinite")
    return array
