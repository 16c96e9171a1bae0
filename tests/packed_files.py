"""Packed files for tests: programs, their files' bytes, and where in them what begins."""

import dataclasses
import struct
import zlib

import numpy as np
from hypothesis import HealthCheck, settings

from l3prune.audio import FrontEnd
from l3prune.sparse.packed import save_program
from l3prune.sparse.program import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    GlobalPooling,
    Pooling,
    Program,
)

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def array(*values):
    return np.array(values, np.float32)


def one_dense(kernel, name="dense_1"):
    """A program of one dense layer with this kernel (inputs, outputs)."""
    kernel = np.asarray(kernel, np.float32)
    shape = (1, 1, kernel.shape[0])
    bias = np.zeros(kernel.shape[1], np.float32)
    return Program("one", shape, (Flatten("flatten"), Dense(name, kernel, bias)))


def all_kinds(seed=0):
    """A program with every kind of step, flags of both kinds, an empty layer and filter."""
    rng = np.random.default_rng(seed)

    def kernel(*shape, density=0.2):
        return (rng.normal(size=shape) * (rng.random(shape) < density)).astype(np.float32)

    def bias(count):
        return rng.normal(size=count).astype(np.float32)

    sparse = kernel(3, 3, 4, 8)
    sparse[..., 3] = 0
    steps = (
        Affine("norm", bias(1), bias(1)),
        Convolution("conv_1", kernel(3, 2, 1, 4, density=1), bias(4), (2, 1), "valid", True),
        Pooling("pool_1", "average", (2, 3), (2, 1), "same"),
        Convolution("conv_2", sparse, bias(8), relu=True),
        Affine("norm_2", bias(8), bias(8), relu=True),
        Pooling("pool_2", "max", (2, 2), (1, 2)),
        Convolution("conv_3", np.zeros((1, 1, 8, 5), np.float32), bias(5)),
        GlobalPooling("pool_3", "average"),
        Dense("dense_1", kernel(5, 7), bias(7), relu=True),
        Affine("norm_3", bias(7), bias(7)),
        Dense("dense_2", kernel(7, 2), bias(2)),
    )
    front_end = FrontEnd(8000, 1024, 160, 64)
    return Program("net é", (64, 50, 1), steps, front_end, {"file": "ü.h5", "": ""})


def same(first, second, exact=True):
    """Whether two programs are equal; with `exact`, to the bit but for kernels' negative zeros."""
    if (first.name, first.shape, first.front_end, first.origin) != (
        second.name,
        second.shape,
        second.front_end,
        second.origin,
    ) or len(first.steps) != len(second.steps):
        return False
    for one, other in zip(first.steps, second.steps, strict=True):
        if type(one) is not type(other):
            return False
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if not isinstance(a, np.ndarray):
                if a != b or type(a) is not type(b):
                    return False
            elif a.shape != b.shape or b.dtype != np.float32 or not b.flags.c_contiguous:
                return False
            elif field.name == "kernel":
                if exact and np.where(a == 0, np.float32(0), a).tobytes() != b.tobytes():
                    return False
            elif a.tobytes() != b.tobytes():
                return False
    return True


def sealed(content, size=True):
    """A file's bytes with its size and checksum made right again."""
    content = bytearray(content)
    if size:
        content[12:16] = struct.pack("<I", len(content))
    content[-4:] = struct.pack("<I", zlib.crc32(bytes(content[:-4])))
    return bytes(content)


def packed(program, path, values="float32"):
    save_program(program, path, values)
    return path.read_bytes()


def table_lines(content):
    """(offset, numbers) of the lines of the table; the last item of `_walk` is the data."""
    return _walk(content)[:-1]


def first_data(content):
    return _walk(content)[-1]


def _walk(content):
    def behind_text(offset):
        return offset + (2 + int.from_bytes(content[offset : offset + 2], "little") + 3) // 4 * 4

    origins, count = struct.unpack_from("<2H", content, 44)
    offset, found = 48, []
    for _ in range(1 + 2 * origins):
        offset = behind_text(offset)
    for _ in range(count):
        found.append((offset, struct.unpack_from("<4B4H4I", content, offset)))
        offset = behind_text(offset + 28)
    return [*found, offset]
