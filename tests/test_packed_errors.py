"""Programs that are not saved, and files that are not read."""

import contextlib
import dataclasses
import re
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune.audio import FrontEnd
from l3prune.errors import L3PruneError, ParameterError
from l3prune.sparse import SparseModel
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
    sealed,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("packed") / "net.l3p"


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
    ((conv(kernel=np.ones((9, 3, 1, 2), np.float32), padding="valid"),), "c: its windows of"),
    ((conv(), conv()), "same name"),
    ((conv(name="x" * 5000),), "has 5000 bytes; allowed are 4095"),
    ((conv(name="\ud800"),), "is not a text that UTF-8 can hold"),
    ((Pooling("p", "sum", (2, 2), (2, 2)),), "p: its kind is 'sum'; allowed: max, average"),
    ((Pooling("p", "max", (32769, 2), (2, 2), "same"),), "p: its window"),
    ((Pooling("p", "max", (32768, 32768), (1, 1), "same"),), "p: its padded input has 10"),
    ((Affine("a", array(1, 2), array(1)),), "a: its scale has shape"),
    ((Affine("a", array(1, 2), array(1, 2)),), "a: it takes 2 channels and gets 1"),
    ((Dense("d", np.ones((64, 1), np.float32), array(0)),), "d: it takes a vector"),
    ((Flatten("f"), GlobalPooling("g", "max")), "g: it takes rows, columns and channels"),
    (("relu",), "relu: str is no step of a program; known: Convolution"),
]


def test_what_the_engine_takes_for_a_vector_can_be_saved(path):
    pooled = Pooling("pool", "max", (8, 8), (1, 1))
    square = Dense("d", np.eye(1, dtype=np.float32), array(0))
    for steps, shape in [
        ((pooled, square), (1, 1, 1)),
        ((GlobalPooling("all", "max"), Flatten("flat"), square), (1,)),
    ]:
        program = Program("net", (8, 8, 1), steps)
        save_program(program, path)
        assert same(program, load_program(path))
        assert SparseModel(program).output_shape == shape


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
        (
            {"front_end": FrontEnd(8000, 2**16, 160, 64)},
            "DFT takes 65536 samples; allowed",
        ),
        ({"front_end": FrontEnd(10**7, 2**24, 160, 64)}, r"the mel matrix has \d+ values"),
        ({"front_end": FrontEnd(8000, 32768, 1, 64)}, r"all frames together, has \d+ values"),
        ({"shape": (2**17, 1, 1)}, "has 131072 rows and 1 columns; allowed are 65536 each"),
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
    head = first_data(content)
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
    else:
        with contextlib.suppress(ParameterError):  # working memory of gigabytes is refused here
            SparseModel(program)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 250e6
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
    ({"rows": 0}, "the input's shape is"),
    ({"rows": 2**32 - 1}, "the input's shape is"),
    ({"rows": 2**16 + 1}, "the input has 65537 rows and 1 columns; allowed are 65536 each"),
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
    ({"window": 2}, "is no line of a Dense"),
    ({"window": 0}, "is no line of a Dense"),
    ({"low": 16}, "dense_1: 16 low bits are unknown"),
    ({"low": 15}, "cannot be|should follow"),
    ({"low": 255}, "cannot be"),
    ({"inputs": 2**31, "channels": 2**27}, "dense_1: it takes"),
    ({"outputs": 2**32 - 1}, "dense_1: its output has 4294967295 values"),
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


@pytest.mark.parametrize("lines", [0, 1, 2000])
def test_small_files_make_small_models(lines, path):
    """Nothing is made for each of many rows, columns, or steps."""
    line = struct.pack("<4B4H4I", 3, 0, 0, 0, 2, 1, 1, 1, 0, 0, 0, 0)
    table = b"".join(line + b"\x04\0%04d\0\0" % number for number in range(lines))
    for rows, columns in [(2**16, 2**10), (2**27, 1), (2**16, 1)]:
        head = b"L3PRUNE\0" + bytes([1, 0, 0, 0]) + bytes(4) + struct.pack("<3I", rows, columns, 1)
        head += bytes(16) + struct.pack("<2H", 0, lines) + bytes(4)
        path.write_bytes(sealed(head + table + bytes(4)))
        tracemalloc.start()
        try:
            if rows > 2**16:
                with pytest.raises(L3PruneError, match="allowed are 65536 each"):
                    SparseModel.load(path)
            else:
                SparseModel.load(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1e6 + 100 * path.stat().st_size


def test_a_file_is_in_memory_once(path):
    rng = np.random.default_rng(0)
    save_program(one_dense(rng.normal(size=(1024, 2048))), path)
    size = path.stat().st_size
    tracemalloc.start()
    try:
        describe(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size < peak < 1.2 * size


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
