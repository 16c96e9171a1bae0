"""PyTorch's files, written by PyTorch, by hand and by somebody who means harm."""

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from l3prune.errors import L3PruneError
from l3prune.layouts import open_file
from l3prune.reduction import read_arrays
from l3prune.torch_files import read_state

FORMS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@pytest.fixture
def torch():
    return pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install l3prune[test]"
    )


def write(torch, content, path, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@FORMS
def test_types_shapes_and_strides(torch, tmp_path, legacy):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    tensors = OrderedDict(
        whole=whole,
        turned=whole.permute(2, 0, 1),
        part=whole[1:, ::2, 1:3],
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
        half=torch.tensor([0.5], dtype=torch.float16),
        double=torch.tensor([1 / 3], dtype=torch.float64),
        byte=torch.tensor([255], dtype=torch.uint8),
        truth=torch.tensor([True, False]),
    )
    state = read_state(write(torch, tensors, tmp_path / "a.pth", legacy))
    assert list(state) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach().numpy()
        np.testing.assert_array_equal(state[name], expected)
        assert state[name].dtype == expected.dtype
        assert state[name].flags.c_contiguous


@FORMS
def test_what_training_saves_beside_the_network(torch, tmp_path, legacy):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    content = {
        "iteration": 600000,
        "model": network.state_dict(),
        "sampler": {"indexes": np.arange(5), "pointer": 3, "queue": [1, 2]},
        "optimizer": optimizer.state_dict(),
    }
    state = read_state(write(torch, content, tmp_path / "a.pth", legacy))
    assert list(state) == list(network.state_dict())
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(state[name], tensor.numpy())


@FORMS
def test_names_of_data_parallel(torch, tmp_path, legacy):
    tensors = {"module.a": torch.ones(1), "module.b": torch.zeros(1)}
    assert list(read_state(write(torch, tensors, tmp_path / "a.pth", legacy))) == ["a", "b"]
    tensors = {"module.a": torch.ones(1), "b": torch.zeros(1)}
    assert list(read_state(write(torch, tensors, tmp_path / "a.pth", legacy))) == ["module.a", "b"]


@FORMS
def test_a_whole_network_is_refused(torch, tmp_path, legacy):
    path = write(torch, torch.nn.Linear(2, 1), tmp_path / "a.pth", legacy)
    with pytest.raises(L3PruneError, match=r"torch\.nn\.modules\.linear\.Linear.*nothing was run"):
        read_state(path)


@FORMS
def test_other_content_is_refused(torch, tmp_path, legacy):
    for content, message in (
        ({"model": {"a": 3}}, "entry 'a' is a int, not a tensor"),
        ({"a": np.ones(2)}, r"entry 'a' is numpy.*_reconstruct, not a tensor"),
        ([torch.ones(1)], "holds a list, not a dictionary of tensors"),
        ({}, "holds a dict, not a dictionary of tensors"),
        ({"a": torch.ones(1, dtype=torch.bfloat16)}, "values of type BFloat16Storage; allowed"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a has NaN or infinite values"),
    ):
        with pytest.raises(L3PruneError, match=message):
            read_state(write(torch, content, tmp_path / "a.pth", legacy))


@FORMS
def test_every_shortened_file_is_refused(torch, tmp_path, legacy):
    path = write(torch, {"a": torch.arange(3.0), "b": torch.ones(2)}, tmp_path / "a.pth", legacy)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(L3PruneError):
            read_state(path)


@FORMS
def test_damaged_bytes_never_end_in_another_error(torch, tmp_path, legacy):
    path = write(torch, {"a": torch.arange(3.0), "b": torch.ones(2)}, tmp_path / "a.pth", legacy)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        place = rng.integers(min(len(content), 900))
        damaged = bytearray(content)
        damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert all(array.size <= 3 for array in read_state(path).values())
        except L3PruneError:
            refused += 1
    assert refused > 100


# By hand, without PyTorch.


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def archive(path, pickled, data=b"", compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("net/data.pkl", pickled)
        file.writestr("net/data/0", data)
        for name, content in members.items():
            file.writestr(f"net/{name}", content)
    return path


def tensor_pickle(
    storage=b"ctorch\nFloatStorage\n", key="0", size=6, offset=0, shape=(6,), step=(1,)
):
    """A pickle of {"a": one tensor}, instruction by instruction."""

    def number(n):
        return b"J" + int(n).to_bytes(4, "little", signed=True)

    def text(t):
        return b"X" + len(t).to_bytes(4, "little") + t.encode()

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    return (
        b"\x80\x02}(" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n("
        b"(" + text("storage") + storage + text(key) + text("cpu") + number(size) + b"tQ"
        + number(offset) + numbers(shape) + numbers(step) + b"\x89ccollections\nOrderedDict\n)Rt"
        b"Ru."
    )  # fmt: skip


VALUES = np.arange(6, dtype="<f4")


def test_by_hand(tmp_path):
    pickled = tensor_pickle(offset=1, shape=(2, 2), step=(3, 1))
    state = read_state(archive(tmp_path / "a.pth", pickled, VALUES.tobytes(), byteorder=b"little"))
    assert state["a"].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offset": 1}, "is outside its storage of 6 values"),
        ({"shape": (2, 2), "step": (5, 1)}, "is outside its storage of 6 values"),
        ({"shape": (2**30,), "step": (0,)}, "is outside its storage of 6 values"),
        ({"offset": -1}, r"offset -1, shape \(6,\)"),
        ({"step": (-1,)}, r"strides \(-1,\)"),
        ({"shape": (6, 1)}, "2 axes and 1 strides"),
        ({"size": 7, "shape": (7,)}, "data/0 in it has 24 bytes, not 28"),
        ({"size": 5, "shape": (5,)}, "data/0 in it has 24 bytes where 20 are expected"),
        ({"size": 2**31 - 1}, "claims .* MB of values|data/0 in it has 24 bytes, not"),
        ({"key": "1"}, "data/1 is missing in it"),
        ({"storage": b"cos\nsystem\n"}, r"names os\.system, .* nothing was run"),
        ({"storage": b"ctorch\nQInt8Storage\n"}, "type QInt8Storage; allowed: FloatStorage"),
    ],
)
def test_tensors_that_reach_beyond_their_values(tmp_path, arguments, message):
    path = archive(tmp_path / "a.pth", tensor_pickle(**arguments), VALUES.tobytes())
    with pytest.raises(L3PruneError, match=message):
        read_state(path)


def test_one_storage_claimed_twice(tmp_path):
    """The second tensor would read behind the first one's values."""
    one = tensor_pickle()[:-2]
    other = tensor_pickle(size=6000, shape=(6000,))[4:-2].replace(b"\x01\0\0\0a", b"\x01\0\0\0b")
    path = archive(tmp_path / "a.pth", one + other + b"u.", VALUES.tobytes())
    with pytest.raises(L3PruneError, match="storage 0 is of two types or sizes"):
        read_state(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_calls_are_never_made(tmp_path, protocol):
    marker = tmp_path / "was_run"
    harm = {"model": {"a": Call(os.mkdir, str(marker))}}
    path = archive(tmp_path / "a.pth", pickle.dumps(harm, protocol))
    with pytest.raises(L3PruneError, match=r"posix\.mkdir|instruction (STACK_GLOBAL|DICT)"):
        read_state(path)
    legacy = tmp_path / "b.pth"
    legacy.write_bytes(b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001)))
    with legacy.open("ab") as file:
        pickle.dump({"little_endian": True}, file, 2)
        pickle.dump(harm, file, protocol)
    with pytest.raises(L3PruneError, match=r"posix\.mkdir|instruction (STACK_GLOBAL|DICT)"):
        read_state(legacy)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02.", "is no PyTorch checkpoint, or is damaged"),
        (b"\x80\x02}", "is no PyTorch checkpoint, or is damaged|has no end"),
        (b"\x80\x02](K\x01}u.", "no PyTorch checkpoint"),
        (b"\x80\x02]}b.", "attributes are set of a list"),
        (b"\x80\x02h\x05.", "no PyTorch checkpoint"),
        (b"\x80\x02K\x01K\x02R.", "a int is called"),
        (b"\x80\x02}]K\x01s.", "a key that cannot be one"),
        (b"\x80\x02\x80\xff.", "no PyTorch checkpoint|holds"),
        (b"\x80\x02X\x06\0\0\0moduleK\x01K\x02\x87Q.", "no PyTorch checkpoint"),
    ],
)
def test_pickles_that_make_no_sense(tmp_path, pickled, message):
    with pytest.raises(L3PruneError, match=message):
        read_state(archive(tmp_path / "a.pth", pickled))


def nested(depth):
    """Instructions for a tuple of itself twice, and so on: shown or hashed, 2^depth parts."""
    doubled = b"".join(b"0h%ch%c\x86q%c" % (n, n, n + 1) for n in range(depth))
    return b")q\x00" + doubled


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02}" + nested(60) + b"K\x01s.", "a key that cannot be one"),
        (b"\x80\x02" + nested(60) + b"K\x02R.", "a tuple is called"),
        (
            b"\x80\x02" + nested(60) + b"0(X\x07\0\0\0storagectorch\nFloatStorage\n"
            b"X\x01\0\0\0aX\x01\0\0\0bh\x3ctQ.",
            "a storage without size",
        ),
    ],
    ids=["key", "called", "size"],
)
def test_values_that_would_take_for_ever_to_be_shown(tmp_path, pickled, message):
    with pytest.raises(L3PruneError, match=message):
        read_state(archive(tmp_path / "a.pth", pickled))


def test_other_archives(tmp_path):
    path = archive(tmp_path / "a.pth", tensor_pickle(), VALUES.tobytes(), byteorder=b"big")
    with pytest.raises(L3PruneError, match="its values are big-endian"):
        read_state(path)
    bomb = np.zeros(6, "<f4").tobytes()
    path = archive(tmp_path / "a.pth", tensor_pickle(), bomb, zipfile.ZIP_DEFLATED)
    with pytest.raises(L3PruneError, match=r"bytes where .* are expected"):
        read_state(path)


def test_other_files(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(L3PruneError, match="no such checkpoint"):
        read_state(path)
    for content, message in (
        (b"", "is no PyTorch checkpoint and no .npz file"),
        (b"<html>not found</html>", "is no PyTorch checkpoint and no .npz file"),
        (pickle.dumps({"a": 1}, 2), "is a pickle, but no PyTorch checkpoint"),
        (b"PK\x03\x04 and no more", "is damaged: File is not a zip file"),
    ):
        path.write_bytes(content)
        with pytest.raises(L3PruneError, match=message):
            read_state(path)


def test_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **{"module.fc1.bias": np.ones(3), "module.n": np.array(3)})
    state = read_state(path)
    assert list(state) == ["fc1.bias", "n"]
    np.savez(path, a=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(L3PruneError, match=r"no PyTorch checkpoint, or is damaged: .*allow_pickle"):
        read_state(path)
    np.savez(path, a=np.array(["a text"]))
    with pytest.raises(L3PruneError, match="a is of type <U6; weights are numbers"):
        read_state(path)
    np.savez(path, a=np.array([np.inf]))
    with pytest.raises(L3PruneError, match="a has NaN or infinite values"):
        read_state(path)


def weights_of(path):
    with open_file(path) as file:
        return list(file)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (weights_of, "net.h5"),
        (weights_of, "net.h5.gz"),
        (read_state, "net.pth"),
        (read_arrays, "net.npz"),
    ],
)
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, read, name):
    (tmp_path / name).write_bytes(b"whatever")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    for opens in ("h5py.File", "gzip.open", "pathlib.Path.open", "numpy.load"):
        monkeypatch.setattr(opens, denied)
    with pytest.raises(L3PruneError, match="cannot be read: permission denied; ask its owner"):
        read(tmp_path / name)
