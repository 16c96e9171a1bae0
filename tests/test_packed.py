"""The packed file: its bytes, what comes back, what is rounded, sizes."""

import ctypes
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l3prune.audio import FORMS, FrontEnd
from l3prune.errors import ParameterError
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
from tests.packed_files import (
    SETTINGS,
    all_kinds,
    array,
    first_data,
    one_dense,
    packed,
    same,
    table_lines,
)
from tests.test_networks import KERNELS, TABLE_II

DOCS = Path(__file__).parent.parent / "docs" / "packed.md"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("packed") / "net.l3p"


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
    subprocess.run(
        ["cc", *flags, str(tmp_path / "reader.c"), "-o", str(library), "-lm"], check=True
    )
    unpack = ctypes.CDLL(str(library)).unpack_kernel
    program = all_kinds()
    # With float16's subnormal numbers, and both signs.
    program.steps[1].kernel[0, 0, 0] = [3e-5, -3e-5, 6e-8, -65504]
    for number, values in enumerate(VALUES):
        content = packed(program, path, values)
        loaded = load_program(path)
        data = first_data(content)
        for (offset, line), step in zip(table_lines(content), loaded.steps, strict=True):
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


# What is rounded.


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
    assert data == file.size - 4 - first_data(path.read_bytes())
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
