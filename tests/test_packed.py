import ctypes
import dataclasses
import re
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l3prune.audio import FORMS, FrontEnd
from l3prune.errors import L3PruneError, ParameterError
from l3prune.sparse.packed import VALUES, describe, load_program, save_program
from l3prune.sparse.program import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    GlobalPooling,
    Pooling,
    Program,
)
from tests.test_networks import KERNELS, TABLE_II

DOCS = Path(__file__).parent.parent / "docs" / "packed.md"
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("packed") / "net.l3p"


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


def reference_kernel(content, values, data, line):
    """An independent reader of one kernel: docs/packed.md, bit by bit."""
    low, taps, filters, nonzeros, gap_bytes = line
    size = VALUES[values].itemsize

    def section(count):
        nonlocal data
        start, data = data, data + (count + 3) // 4 * 4
        return content[start : start + count]

    section(4 * filters)
    scales = [1.0] * filters
    if values == "int8":
        scales = list(struct.unpack(f"<{filters}f", section(4 * filters)))
    count = taps * filters if low == 255 else nonzeros
    letter = {"float32": "f", "float16": "e", "int8": "b"}[values]
    numbers = struct.unpack(f"<{count}{letter}", section(size * count))
    low_bits = section((count * (0 if low == 255 else low) + 7) // 8)
    gaps = section(gap_bytes)
    kernel = np.zeros((taps, filters), np.float32)
    bit = place = 0
    for i, number in enumerate(numbers):
        if low != 255:
            gap = 0
            while not gaps[bit // 8] >> bit % 8 & 1:
                gap, bit = gap + 1, bit + 1
            bit += 1
            rest = sum((low_bits[j // 8] >> j % 8 & 1) << b for b, j in _bits(i, low))
            place += (gap << low) + rest
        kernel[place % taps, place // taps] = np.float32(number) * np.float32(scales[place // taps])
        place += 1
    return kernel


def _bits(i, low):
    return [(b, i * low + b) for b in range(low)]


# The bytes.


def test_bytes_by_hand(path):
    # Two filters of five taps; a weight every other place: gaps 1, 1, 2 (into filter 2), 3.
    kernel = np.zeros((5, 2), np.float32)
    kernel[1, 0], kernel[3, 0], kernel[1, 1] = 1.0, -2.0, 0.5
    program = Program(
        "ab",
        (1, 1, 5),
        (Flatten("f"), Dense("d", kernel, array(7, 8), relu=True)),
        origin={"k": "vw"},
    )
    expected = (
        b"L3PRUNE\0"
        + bytes([1, 0, 0, 0])
        + struct.pack("<I", 152)
        + struct.pack("<3I", 1, 1, 5)
        + bytes(16)
        + bytes([1, 0, 2, 0])
        + b"\x02\0ab"
        + b"\x01\0k\0"
        + b"\x02\0vw"
        + bytes([5, 0, 0, 0])
        + bytes(24)
        + b"\x01\0f\0"
        # Gaps 1, 1, 2: unary 01 01 001 in ascending bits is 0b1001010, in one byte; with a low bit
        # each they would take two.
        + bytes([6, 1, 0, 0])
        + struct.pack("<4H4I", 1, 1, 1, 1, 5, 2, 3, 1)
        + b"\x01\0d\0"
        + struct.pack("<2f", 7, 8)
        + struct.pack("<3f", 1.0, -2.0, 0.5)
        + bytes([0b1001010, 0, 0, 0])
    )
    expected = expected + struct.pack("<I", zlib.crc32(expected))
    assert packed(program, path) == expected
    assert same(program, load_program(path))


def test_bytes_of_int8_by_hand(path):
    kernel = np.zeros((8, 2), np.float32)
    kernel[:, 0] = [127, 0, -1, 2.5, 3.4, 0, 0, 0.4]
    content = packed(one_dense(kernel), path, "int8")
    # Filter 1 has the scale 1 and halves go to even; filter 2 is empty. 0.4 becomes zero, so 4 of
    # 16 weights are left, in gaps of 0, 1, 0, 0: 1 01 1 1.
    arrays = struct.pack("<2f", 0, 0) + struct.pack("<2f", 1, 0)
    arrays += struct.pack("<4b", 127, -1, 2, 3) + bytes([0b11101, 0, 0, 0])
    assert content[:-4].endswith(arrays)
    restored = load_program(path).steps[1].kernel
    assert restored[:, 0].tolist() == [127, 0, -1, 2, 3, 0, 0, 0]
    assert not restored[:, 1].any()


def test_low_bits_by_hand(path):
    kernel = np.zeros((600, 1), np.float32)
    kernel[[99, 300, 500]] = [[1], [2], [3]]
    content = packed(one_dense(kernel), path)
    # Gaps 99, 200, 199; with 7 low bits: 99, 72, 71 and one bit each for the 0, 1 and 1 above.
    bits = 99 | 72 << 7 | 71 << 14
    assert content[:-4].endswith(bits.to_bytes(3, "little") + bytes(1) + bytes([0b10101, 0, 0, 0]))
    assert describe(path).layers[0].coding == "gaps/7"


@pytest.mark.parametrize("values", VALUES)
def test_a_reader_made_from_the_page_alone(values, path):
    rng = np.random.default_rng(3)
    for density in (0.005, 0.1, 0.6, 1):
        kernel = rng.normal(size=(90, 6)) * (rng.random((90, 6)) < density)
        content = packed(one_dense(kernel), path, values)
        # Two lines without origin: 48 + "one" 8 + (28 + "flatten" 12) + line.
        line = struct.unpack_from("<4B4H4I", content, 96)
        low, (taps, filters, nonzeros, gap_bytes) = line[2], line[8:]
        data = 96 + 28 + 12
        found = reference_kernel(content, values, data, (low, taps, filters, nonzeros, gap_bytes))
        np.testing.assert_array_equal(load_program(path).steps[1].kernel, found)
        np.testing.assert_allclose(found, kernel, rtol=1e-3, atol=np.abs(kernel).max() / 250)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_reader_in_the_page(path, tmp_path):
    (code,) = re.findall(r"```c\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    (tmp_path / "reader.c").write_text(code, encoding="utf-8")
    library = tmp_path / "reader.so"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, str(tmp_path / "reader.c"), "-o", str(library)], check=True)
    unpack = ctypes.CDLL(str(library)).unpack_kernel
    program = all_kinds()
    for values in ("float32", "int8"):
        content = packed(program, path, values)
        loaded = load_program(path)
        data, number = _first_data(content), {"float32": 0, "int8": 2}[values]
        for (offset, line), step in zip(_lines(content), loaded.steps, strict=True):
            if line[0] in (1, 6):
                kernel = np.zeros(step.kernel.size, np.float32)
                where = unpack(
                    ctypes.c_char_p(content[offset : offset + 28]),
                    ctypes.c_int(number),
                    ctypes.c_char_p(content[data:]),
                    kernel.ctypes.data_as(ctypes.c_void_p),
                )
                np.testing.assert_array_equal(kernel.reshape(step.kernel.shape), step.kernel)
                data += where
            elif line[0] == 2:
                data += 8 * line[9]
        assert data == len(content) - 4


def _lines(content):
    """(offset, numbers) of the lines of the table; the last item of `_walk` is the data."""
    return _walk(content)[:-1]


def _first_data(content):
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


# There and back.


@st.composite
def programs(draw, largest=1e4):
    """Programs of up to five steps of any kinds that fit each other."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = st.integers(1, 7)
    shape = start = (draw(size), draw(size), draw(size))
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))

    def kernel(*axes):
        density = draw(st.sampled_from([0, 0.01, 0.1, 0.5, 0.9, 1]))
        weights = rng.normal(size=axes) * 10.0 ** rng.uniform(-9, 3, axes)
        weights = np.clip(weights, -largest, largest) * (rng.random(axes) < density)
        weights[..., rng.random(axes[-1]) < 0.2] *= -0.0
        return weights.astype(np.float32)

    def floats(count):
        return rng.normal(size=count).astype(np.float32)

    steps = []
    for number in range(draw(st.integers(0, 5))):
        spatial = len(shape) == 3
        names = ["conv", "pool", "global", "flatten", "affine"] if spatial else ["dense", "affine"]
        name = draw(st.sampled_from(names))
        called, relu = f"{name}_{number}", draw(st.booleans())
        window, strides = draw(pair), draw(pair)
        padding = draw(st.sampled_from(["same", "valid"]))
        kind = draw(st.sampled_from(["max", "average"]))
        if name in ("conv", "pool"):
            if padding == "valid":
                window = (min(window[0], shape[0]), min(window[1], shape[1]))
                made = [(n - k) // s + 1 for n, k, s in zip(shape, window, strides, strict=False)]
            else:
                made = [-(-n // s) for n, s in zip(shape, strides, strict=False)]
        outputs = draw(size)
        if name == "conv":
            weights = kernel(*window, shape[2], outputs)
            steps.append(Convolution(called, weights, floats(outputs), strides, padding, relu))
            shape = (*made, outputs)
        elif name == "pool":
            steps.append(Pooling(called, kind, window, strides, padding))
            shape = (*made, shape[2])
        elif name == "global":
            steps.append(GlobalPooling(called, kind))
            shape = shape[2:]
        elif name == "flatten":
            steps.append(Flatten(called))
            shape = (shape[0] * shape[1] * shape[2],)
        elif name == "dense":
            steps.append(Dense(called, kernel(shape[0], outputs), floats(outputs), relu))
            shape = (outputs,)
        else:
            steps.append(Affine(called, floats(shape[-1]), floats(shape[-1]), relu))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    return Program(
        draw(text), start, tuple(steps), origin=draw(st.dictionaries(text, text, max_size=3))
    )


@SETTINGS
@given(program=programs(largest=3e38))
def test_float32_round_trips_to_the_bit(program, path):
    losses = save_program(program, path)
    loaded = load_program(path)
    assert same(program, loaded)
    assert all((loss.zeroed, loss.largest, loss.relative) == (0, 0, 0) for loss in losses.values())
    before = path.read_bytes()
    assert packed(loaded, path) == before


@SETTINGS
@given(program=programs(), values=st.sampled_from(["float16", "int8"]))
def test_rounded_values_are_as_near_as_promised(program, values, path):
    losses = save_program(program, path, values)
    loaded = load_program(path)
    assert same(program, loaded, exact=False)
    for before, after in zip(program.steps, loaded.steps, strict=True):
        if not hasattr(before, "kernel"):
            continue
        exact = before.kernel.astype(np.float64)
        error = np.abs(after.kernel - exact)
        if values == "float16":
            np.testing.assert_array_equal(after.kernel, before.kernel.astype(np.float16))
            allowed = np.maximum(np.abs(exact) * 2.0**-11, 2.0**-25)
        else:
            peaks = np.abs(exact).reshape(-1, exact.shape[-1]).max(axis=0)
            # Half a scale, and what float32 cannot tell apart.
            allowed = peaks / 254 * (1 + 1e-4)
        assert (error <= allowed).all()
        loss = losses[before.name]
        assert loss.zeroed == np.sum((before.kernel != 0) & (after.kernel == 0))
        assert loss.largest == error.max()
        if exact.any():
            expected = np.sqrt((error**2).mean() / (exact**2).mean())
            assert loss.relative == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("values", VALUES)
def test_every_kind_of_step(values, path):
    program = all_kinds()
    save_program(program, path, values)
    assert same(program, load_program(path), exact=values == "float32")


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("weight", [0.0, -0.0, 1.0, -3.5])
def test_a_single_weight(weight, values, path):
    save_program(one_dense([[weight]]), path, values)
    kernel = load_program(path).steps[1].kernel
    # int8 may restore the largest weight to the last bit but one.
    assert kernel[0, 0] == pytest.approx(weight, rel=2.0**-23 if values == "int8" else 0, abs=0)
    assert not np.signbit(kernel) or weight < 0


def test_no_steps(path):
    program = Program("", (3, 4, 5), ())
    save_program(program, path)
    assert same(program, load_program(path))
    assert describe(path).layers == ()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mels", [64, None])
def test_front_ends(form, mels, path):
    front_end = FrontEnd(8000, 512, 160, mels, form)
    program = Program("", (*front_end.shape, 1), (), front_end)
    save_program(program, path)
    assert load_program(path).front_end == describe(path).front_end == front_end


@pytest.mark.parametrize("density", [0.9, 0.3, 0.1, 0.02])
@pytest.mark.parametrize("block", [1, 3, 50])
def test_long_kernels_are_decoded_in_blocks(block, density, path, monkeypatch):
    # Low bits of a block begin inside a byte; with 1 byte some blocks have no non-zero at all.
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(300, 5)) * (rng.random((300, 5)) < density)
    kernel[:, 2] = 0
    program = one_dense(kernel)
    save_program(program, path)
    low = {0.9: "gaps/0", 0.3: "gaps/1", 0.1: "gaps/3", 0.02: "gaps/5"}[density]
    assert describe(path).layers[0].coding == low
    monkeypatch.setattr("l3prune.sparse.coding._BLOCK", block)
    assert same(program, load_program(path))


def test_the_same_program_gives_the_same_bytes(path):
    assert packed(all_kinds(), path, "int8") == packed(all_kinds(), path, "int8")


# What is rounded, and what is refused.


def test_negative_zeros_of_masked_weights_cost_nothing(path):
    mask = np.zeros((50, 50), np.float32)
    mask[3, 4] = 1
    kernel = np.full((50, 50), -1, np.float32) * mask
    assert np.signbit(kernel).all()
    save_program(one_dense(kernel), path)
    assert describe(path).layers[0].nonzeros == 1
    assert np.signbit(load_program(path).steps[1].kernel).sum() == 1


def test_float16_at_its_limits(path):
    # 65519 is nearer to 65504 than to 65536; 5e-8 to 6e-8 than to 0; 2e-8 to 0.
    losses = save_program(one_dense([[65519, 5e-8, 2e-8, -2e-8]]), path, "float16")
    kernel = load_program(path).steps[1].kernel[0]
    np.testing.assert_array_equal(kernel, np.array([65504, 2.0**-24, 0, 0], np.float32))
    assert not np.signbit(kernel).any()
    assert losses["dense_1"].zeroed == 2
    assert losses["dense_1"].largest == 15
    with pytest.raises(ParameterError, match=r"dense_1: a weight of 65520 is beyond what values="):
        save_program(one_dense([[1, -65520]]), path, "float16")


def test_int8_counts_what_it_zeroes(path):
    losses = save_program(one_dense([[127], [0.4], [-0.5], [0.6], [0], [-1.5]]), path, "int8")
    assert load_program(path).steps[1].kernel.ravel().tolist() == [127, 0, 0, 1, 0, -2]
    assert losses["dense_1"].zeroed == 2
    assert losses["dense_1"].largest == 0.5
    assert describe(path).layers[0].nonzeros == 3


@pytest.mark.parametrize("peak", [1e-45, 2e-43, 2.5e-43, 1e-38, 3e38])
def test_int8_of_extreme_filters(peak, path):
    kernel = np.array([[peak, 1], [-peak, 0.5], [peak / 3, 0.25]], np.float32)
    save_program(one_dense(kernel), path, "int8")
    restored = load_program(path).steps[1].kernel
    # Numbers below 1e-38 are multiples of 1.4e-45, scales too: up to one of them is lost in 127.
    step = max(float(peak) / 127, 1.5e-45) + 1.5e-45
    assert np.abs(restored[:, 0] - kernel[:, 0].astype(float)).max() <= step / 2 * 1.001
    assert np.abs(restored[:, 1] - kernel[:, 1]).max() <= 1 / 254


def test_int8_beyond_float32(path):
    largest = np.finfo(np.float32).max
    program = one_dense([[largest, 1]])
    try:
        save_program(program, path, "int8")
    except ParameterError as error:
        assert "save with values" in str(error)  # noqa: PT017  # either is right
    else:
        assert np.isfinite(load_program(path).steps[1].kernel).all()


def conv(**changes):
    values = {"name": "c", "kernel": np.ones((3, 3, 1, 2), np.float32), "bias": array(0, 0)}
    return Convolution(**(values | changes))


WRONG = [
    ((conv(kernel=np.ones((3, 3, 2, 2), np.float32)),), "c: it takes 2 channels and gets 1"),
    ((conv(kernel=np.full((1, 1, 1, 2), np.nan, np.float32)),), "c: its weights have NaN"),
    ((conv(bias=array(0, np.inf)),), "c: its weights have NaN or infinity"),
    ((conv(bias=array(0)),), r"c: its kernel has shape \(3, 3, 1, 2\) and its bias \(1,\)"),
    ((conv(kernel=np.ones((3, 3, 1, 2))),), "c: its weights have type float64"),
    ((conv(kernel=np.ones((3, 1, 2), np.float32)),), "c: its kernel has shape"),
    ((conv(kernel=np.ones((3, 3, 1, 0), np.float32), bias=array()),), "without any weight"),
    ((conv(strides=(0, 1)),), r"c: its strides is \(0, 1\); allowed are 2 whole numbers"),
    ((conv(strides=(1, 1.5)),), "c: its strides is"),
    ((conv(padding="full"),), "c: its padding is 'full'; allowed: valid, same"),
    ((conv(kernel=np.ones((9, 3, 1, 2), np.float32), padding="valid"),), "c: its window"),
    ((conv(), conv()), "same name"),
    ((conv(name="x" * 5000),), "has 5000 bytes; allowed are 4095"),
    ((conv(name="\ud800"),), "is not a text that UTF-8 can hold"),
    ((Pooling("p", "sum", (2, 2), (2, 2)),), "p: its kind is 'sum'; allowed: max, average"),
    ((Pooling("p", "max", (70000, 2), (2, 2), "same"),), "p: its window"),
    ((Pooling("p", "max", (65535, 65535), (1, 1), "same"),), "p: its padded input has 42"),
    ((Affine("a", array(1, 2), array(1)),), "a: its scale has shape"),
    ((Affine("a", array(1, 2), array(1, 2)),), "a: it takes 2 channels and gets 1"),
    ((Dense("d", np.ones((64, 1), np.float32), array(0)),), "d: it takes a vector"),
    ((Flatten("f"), GlobalPooling("g", "max")), "g: it takes rows, columns and channels"),
    (("relu",), "relu: str is no step of a program; known: Convolution"),
]


@pytest.mark.parametrize(("steps", "message"), WRONG, ids=[message for _, message in WRONG])
def test_programs_that_cannot_run_are_not_saved(steps, message, path):
    path.write_bytes(b"old")
    with pytest.raises(ParameterError, match=message):
        save_program(Program("net", (8, 8, 1), steps), path)
    assert path.read_bytes() == b"old"


def test_other_arguments_that_are_wrong(path):
    empty = Program("net", (64, 50, 1), ())
    wide = Convolution("w", np.ones((1, 1, 1, 4), np.float32), array(0, 0, 0, 0))
    for changes, message in [
        ({"shape": (0, 51, 1)}, "shape is"),
        ({"shape": (8, 8)}, "shape is"),
        ({"shape": (2**20, 2**20, 1)}, "the input has 1099511627776 values"),
        ({"front_end": FrontEnd(8000, 1024, 200, 64)}, r"makes \(64, 40, 1\), and the network"),
        ({"front_end": FrontEnd(8000, 1024, 0, 64)}, "lengths and bands"),
        ({"front_end": FrontEnd(8000, 1024, 160, 0)}, "lengths and bands"),
        ({"front_end": FrontEnd(1, 1024, 160, 64)}, "sample rate is 1; allowed"),
        ({"front_end": FrontEnd(8000, 2**24, 160, 64)}, r"the mel matrix has \d+ values"),
        ({"shape": (8192, 8192, 1), "steps": (wide,)}, r"w: its output has 268435456 values"),
        ({"origin": {"a": 3}}, "is not a text"),
    ]:
        with pytest.raises(ParameterError, match=message):
            save_program(dataclasses.replace(empty, **changes), path)
    with pytest.raises(ParameterError, match="values='int4' is unknown; allowed: float32, float16"):
        save_program(empty, path, "int4")
    with pytest.raises(L3PruneError, match="cannot"):
        save_program(empty, "/proc/none/net.l3p")


def test_a_layer_too_empty_for_its_bytes_is_refused(path, monkeypatch):
    program = one_dense(np.zeros((20000, 1)))
    save_program(program, path)
    monkeypatch.setattr("l3prune.sparse.table.FREE_WEIGHTS", 1000)
    message = r"dense_1: 20000 weights up to here; a file of 144 bytes may have 10216"
    for call in (lambda: save_program(program, path), lambda: load_program(path)):
        with pytest.raises(L3PruneError, match=message):
            call()


# Damage.


def test_what_is_no_packed_file(path, tmp_path):
    with pytest.raises(L3PruneError, match="no such file: "):
        load_program(tmp_path / "none.l3p")
    with pytest.raises(L3PruneError, match="no such file: "):
        load_program(tmp_path)
    for content in (b"", b"L3PRUN", b"\x89HDF\r\n\x1a\n" + bytes(100)):
        path.write_bytes(content)
        for reader in (load_program, describe):
            with pytest.raises(L3PruneError, match=r"net\.l3p is not a packed file; "):
                reader(path)


def test_newer_files_say_so(path):
    content = bytearray(packed(all_kinds(), path))
    content[8] = 2
    path.write_bytes(sealed(content))
    with pytest.raises(L3PruneError, match=r"net\.l3p has version 2 .* made by a newer l3prune"):
        load_program(path)


def test_truncated_at_any_byte(path):
    content = packed(all_kinds(), path, "int8")
    assert len(content) < 2500
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(L3PruneError, match=r"net\.l3p is (damaged|not a packed file)"):
            load_program(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(L3PruneError, match=r"damaged: it has \d+ bytes and should have"):
        load_program(path)


def test_any_bit_flipped(path):
    content = packed(one_dense([[0, 1, 0, 2], [3, 0, 0, 0]]), path, "int8")
    for bit in range(8 * len(content)):
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        for reader in (load_program, describe):
            with pytest.raises(L3PruneError, match=r"net\.l3p"):
                reader(path)


@pytest.fixture(scope="module")
def originals(path):
    return [packed(all_kinds(), path, values) for values in VALUES]


@settings(SETTINGS, max_examples=400)
@given(data=st.data())
def test_forged_files_load_or_are_refused(data, originals, path):
    content = bytearray(data.draw(st.sampled_from(originals)))
    head = _first_data(content)
    place = st.integers(8, head - 1) | st.integers(8, len(content) - 5)
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["flip", "byte", "word", "cut", "insert"]))
        at = min(data.draw(place), len(content) - 5)
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "byte":
            content[at] = data.draw(st.sampled_from([0, 1, 127, 128, 254, 255]))
        elif kind == "word":
            at = at // 4 * 4
            word = data.draw(st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 0x7FC00000]))
            content[at : at + 4] = struct.pack("<I", word)
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 8))]
        else:
            content[at:at] = bytes(data.draw(st.integers(1, 8)))
        if len(content) < 60:
            return
    content[8:10] = b"\1\0"
    path.write_bytes(sealed(content))
    tracemalloc.start()
    try:
        program = load_program(path)
    except L3PruneError as error:
        assert "net.l3p" in str(error)  # noqa: PT017  # either is right
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 150e6
    # What loads can be saved, so it is a program in every respect.
    again = path.with_name("again.l3p")
    save_program(program, again)
    assert same(program, load_program(again))


def forged(content, **changes):
    """The file of `one_dense`, whose dense layer's line is at 96, with other numbers in it."""
    content = bytearray(content)
    places = {
        "version": (8, "<H"),
        "values": (10, "<B"),
        "form": (11, "<B"),
        "rows": (16, "<I"),
        "columns": (20, "<I"),
        "channels": (24, "<I"),
        "mels": (40, "<I"),
        "steps": (46, "<H"),
        "name": (48, "<H"),
        "first_kind": (56, "<B"),
        "kind": (96, "<B"),
        "flags": (97, "<B"),
        "low": (98, "<B"),
        "reserved": (99, "<B"),
        "window": (100, "<H"),
        "inputs": (108, "<I"),
        "outputs": (112, "<I"),
        "nonzeros": (116, "<I"),
        "gap_bytes": (120, "<I"),
        "bias": (136, "<f"),
        "scale": (152, "<f"),
        "value": (168, "<b"),
        "padding": (171, "<B"),
        "gaps": (172, "<B"),
    }
    for name, value in changes.items():
        offset, form = places[name]
        struct.pack_into(form, content, offset, value)
    return sealed(content)


FORGED = [
    ({"values": 3}, "value type 3"),
    ({"form": 4}, "front end 4 is unknown"),
    ({"form": 1}, "the front end's lengths"),
    ({"mels": 1}, "numbers of a front end, but no"),
    ({"rows": 0}, "its shape is"),
    ({"rows": 2**32 - 1}, "its shape is"),
    ({"rows": 2**26, "columns": 2**26}, r"the input has \d+ values; allowed are 134217728"),
    ({"channels": 3}, "dense_1: it takes 2 channels and gets 3"),
    ({"steps": 1}, "bytes are left behind its weights"),
    ({"steps": 3}, "before byte 168 should be zero"),
    ({"name": 65535}, "a text has 65535 bytes"),
    ({"first_kind": 9}, "flatten: kind of step 9 is unknown"),
    ({"kind": 3}, "is no line of a Pooling"),
    ({"kind": 1}, "dense_1: it takes rows, columns and channels"),
    ({"flags": 2}, "is no line of a Dense"),
    ({"reserved": 1}, "is no line of a Dense"),
    ({"window": 2}, "or has a window"),
    ({"window": 0}, "is no line of a Dense"),
    ({"low": 16}, "dense_1: 16 low bits are unknown"),
    ({"low": 15}, "cannot be|should follow"),
    ({"low": 255}, "cannot be"),
    ({"inputs": 2**31, "channels": 2**27}, "dense_1: it takes"),
    ({"outputs": 2**32 - 1}, "weights up to here"),
    ({"outputs": 2**20}, "bytes should follow byte"),
    ({"outputs": 0}, "is no line of a Dense"),
    ({"nonzeros": 9}, "9 non-zeros of 8 weights"),
    ({"nonzeros": 9, "gap_bytes": 2}, "9 non-zeros of 8 weights with 2 bytes of gaps cannot"),
    ({"nonzeros": 2**32 - 1}, "4294967295 non-zeros of 8 weights"),
    ({"nonzeros": 2}, "before byte 172 should be zero"),
    ({"gap_bytes": 2**32 - 1}, "cannot be"),
    ({"gap_bytes": 0}, "cannot be"),
    ({"bias": np.nan}, "dense_1: a bias, scale or offset is NaN or infinite"),
    ({"bias": np.inf}, "a bias, scale or offset is NaN"),
    ({"scale": np.nan}, "a bias, scale or offset is NaN"),
    ({"scale": -1.0}, "a scale is negative"),
    ({"scale": 0.0}, "are not 3 finite numbers other than zero"),
    ({"scale": 3.4e38}, "are not 3 finite numbers"),
    ({"value": 0}, "are not 3 finite numbers other than zero"),
    ({"value": -128}, "a value is -128"),
    ({"padding": 1}, "should be zero, and are not"),
    ({"gaps": 0}, "are not 3 finite numbers"),
    ({"gaps": 0b11}, "are not 3 finite numbers"),
    ({"gaps": 0b11111}, "more gaps than its 3 non-zeros"),
]


@pytest.mark.parametrize(("name", "other"), [(b"norm_3", b"norm_2"), (b"second", b"first!")])
def test_names_that_are_there_twice(name, other, path):
    origin = {"first!": "a", "second": "b"}
    content = packed(dataclasses.replace(all_kinds(), origin=origin), path)
    assert content.count(name) == 1
    path.write_bytes(sealed(content.replace(name, other)))
    with pytest.raises(L3PruneError, match="a name is there twice"):
        load_program(path)


@pytest.fixture(scope="module")
def forgeable(path):
    """Three weights of two inputs and four outputs, int8, by gaps; see `forged`."""
    content = packed(one_dense([[127, 0, 0, 127], [0, 127, 0, 0]]), path, "int8")
    line = struct.unpack_from("<4B4H4I", content, 96)
    assert line[2:4] == (0, 0)
    assert line[8:] == (2, 4, 3, 1)
    assert len(content) == 180
    return content


def test_the_file_to_forge_is_right(forgeable, path):
    path.write_bytes(forged(forgeable))
    assert load_program(path).steps[1].kernel.tolist() == [[127, 0, 0, 127], [0, 127, 0, 0]]


@pytest.mark.parametrize(("changes", "message"), FORGED, ids=[str(each) for each, _ in FORGED])
def test_forged_numbers(changes, message, forgeable, path):
    path.write_bytes(forged(forgeable, **changes))
    tracemalloc.start()
    with pytest.raises(L3PruneError, match=r"net\.l3p is not a valid packed file: ") as caught:
        load_program(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert re.search(message, str(caught.value).partition("file: ")[2]), caught.value
    assert peak < 10e6


def test_gaps_that_lead_beyond_the_kernel(path):
    kernel = np.zeros((600, 1), np.float32)
    kernel[[99, 300, 500]] = [[1], [2], [3]]
    content = bytearray(packed(one_dense(kernel), path))
    # 7 low bits; now gaps of 4 * 128 + 99 = 611, 72, 71.
    assert content[-8] == 0b10101
    content[-8] = 0b1110000
    path.write_bytes(sealed(content))
    with pytest.raises(L3PruneError, match="dense_1: a weight's place is beyond the 600 of the"):
        load_program(path)


def test_declared_size_is_compared_before_reading(forgeable, path):
    content = bytearray(forgeable)
    content[12:16] = struct.pack("<I", 2**32 - 1)
    path.write_bytes(sealed(content, size=False))
    tracemalloc.start()
    with pytest.raises(L3PruneError, match="it has 180 bytes and should have 4294967295"):
        load_program(path)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_a_sparse_file_of_gigabytes_is_not_read(forgeable, path):
    huge = path.with_name("huge.l3p")
    with huge.open("wb") as file:
        file.write(forgeable[:12] + struct.pack("<I", 2**31) + forgeable[16:])
        file.truncate(2**31)
    with pytest.raises(L3PruneError, match=r"huge\.l3p has 2147483648 bytes; packed files have"):
        load_program(huge)
    huge.unlink()


@pytest.mark.parametrize("layers", [1, 40])
def test_empty_layers_do_not_unpack_to_gigabytes(layers, path):
    # 2048 x 2048 empty weights a layer, declared in 8 kB of biases: 16 MiB each.
    width = 2048
    line = struct.pack("<4B4H4I", 1, 2, 0, 0, 1, 1, 1, 1, width, width, 0, 0)
    table = b"".join(line + b"\x02\0%02d" % number for number in range(layers))
    head = b"L3PRUNE\0" + bytes([1, 0, 0, 0]) + bytes(4) + struct.pack("<3I", 1, 1, width)
    content = head + bytes(16) + struct.pack("<2H", 0, layers) + bytes(4) + table
    path.write_bytes(sealed(content + bytes(4 * width * layers) + bytes(4)))
    tracemalloc.start()
    if layers == 1:
        assert not load_program(path).steps[0].kernel.any()
    else:
        with pytest.raises(L3PruneError, match="weights up to here; a file of"):
            load_program(path)
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


# Sizes.


@pytest.fixture(scope="module")
def edgel3():
    """mel256 with random weights, pruned with EdgeL3's list."""
    percents, _, left = TABLE_II[7]
    rng = np.random.default_rng(0)
    steps = []
    for (name, shape), percent in zip(KERNELS.items(), percents, strict=True):
        kernel = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
        zeros = round(percent / 100 * kernel.size)
        order = np.argpartition(np.abs(kernel).ravel(), zeros) if zeros else []
        kernel.ravel()[order[:zeros]] = 0
        bias = rng.normal(size=shape[-1]).astype(np.float32)
        steps.append(Convolution(name, kernel, bias, relu=True))
    assert abs(sum(np.count_nonzero(step.kernel) for step in steps) - left) < 10
    return Program("mel256", (256, 199, 1), tuple(steps), FrontEnd(48000, 2048, 242, 256))


@pytest.mark.parametrize(
    ("values", "most"), [("float32", 1.0e6), ("float16", 0.575e6), ("int8", 0.37e6)]
)
def test_size_of_edgel3(values, most, edgel3, path):
    losses = save_program(edgel3, path, values)
    file = describe(path)
    assert path.stat().st_size == file.size <= most
    weights = [step.kernel.size for step in edgel3.steps]
    # The gaps take no more than 1 % over the entropy of where the non-zeros are.
    entropy = sum(
        -size * (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 8
        for layer, size in zip(file.layers, weights, strict=True)
        if 0 < (p := layer.nonzeros / size) < 1
    )
    assert sum(layer.index_size for layer in file.layers) <= 1.01 * entropy + 8 * len(weights)
    loaded = load_program(path)
    for before, after in zip(edgel3.steps, loaded.steps, strict=True):
        error = np.linalg.norm(after.kernel - before.kernel) / np.linalg.norm(before.kernel)
        assert error <= {"float32": 0, "float16": 3e-4, "int8": 6e-3}[values]
        assert losses[before.name].relative == pytest.approx(error, rel=1e-3)


def test_describe(path):
    program = all_kinds()
    save_program(program, path, "int8")
    file = describe(path)
    assert (file.version, file.values, file.size) == (1, "int8", path.stat().st_size)
    assert (file.name, file.shape) == (program.name, program.shape)
    assert (file.front_end, file.origin) == (program.front_end, program.origin)
    with_weights = [step for step in program.steps if hasattr(step, "kernel")]
    kernels = [layer for layer in file.layers if layer.kind != "Affine"]
    loaded = {step.name: step for step in load_program(path).steps}
    for step, layer in zip(with_weights, kernels, strict=True):
        assert (layer.name, layer.kind) == (step.name, type(step).__name__)
        assert layer.shape == step.kernel.shape
        assert layer.nonzeros == np.count_nonzero(loaded[step.name].kernel)
    assert [layer.name for layer in file.layers if layer.kind == "Affine"] == [
        "norm",
        "norm_2",
        "norm_3",
    ]
    codings = {layer.name: layer.coding for layer in file.layers}
    assert codings["conv_1"] == codings["norm"] == "dense"
    assert codings["conv_2"] in ("gaps/1", "gaps/2")
    data = sum(layer.size for layer in file.layers)
    assert data == file.size - 4 - _first_data(path.read_bytes())
    # Bias, scales, values, low bits, gaps, each a multiple of four.
    layer = kernels[1]
    assert layer.size == 8 * 4 + 8 * 4 + -(-layer.nonzeros // 4) * 4 + layer.index_size


def test_dense_where_it_is_shorter(path):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(40, 40)).astype(np.float32)
    for values, zeros, coding in [
        ("float32", 40, "dense"),  # 160 bytes of zeros, or 200 of bits
        ("float32", 60, "gaps/0"),
        ("float16", 90, "dense"),
        ("float16", 120, "gaps/0"),
        ("int8", 190, "dense"),
        ("int8", 230, "gaps/0"),
    ]:
        sparse = kernel.copy()
        smallest = np.argsort(np.abs(sparse).ravel())
        sparse.ravel()[smallest[:zeros]] = 0
        # Far from what int8 would round to zero.
        sparse = np.sign(sparse) * (1 + np.abs(sparse)) * (sparse != 0)
        save_program(one_dense(sparse), path, values)
        assert describe(path).layers[0].coding == coding, (values, zeros)
