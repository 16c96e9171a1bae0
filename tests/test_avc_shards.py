"""Shards: written whole or not at all, read in bounded memory, damage found and named."""

import errno
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l3prune.datasets import shards
from l3prune.datasets.avc import open_pairs
from l3prune.datasets.shards import (
    METADATA,
    ShardRows,
    audio_field,
    inspect_shard,
    new_shard,
    pair_fields,
    read_failures,
)
from l3prune.errors import L3PruneError
from l3prune.windows import batch_indices, open_windows

RATE = 800


def write(path, rows, seed=0, rate=RATE):
    rng = np.random.default_rng(seed)
    with new_shard(path, rows, rate, {}) as file:
        file["video"][:] = np.full((rows, 224, 224, 3), rng.integers(0, 256, (rows, 1, 1, 3)))
        file["audio"][:] = rng.integers(-32768, 32767, (rows, 1, rate), np.int16)
        file["label"][:] = np.eye(2, dtype=int)[rng.integers(0, 2, rows)]
    return path


@pytest.fixture
def folder(tmp_path):
    for number, rows in enumerate([3, 5, 2]):
        write(tmp_path / "shards" / f"7_0_{number}.h5", rows, seed=number)
    return tmp_path / "shards"


def whole(folder, name):
    values = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            values.append(file[name][:])
    return np.concatenate(values)


def test_layout_of_a_shard(folder):
    with h5py.File(folder / "7_0_1.h5") as file:
        assert set(file) == {"video", "audio", "label"}
        layout = {name: (file[name].shape, file[name].dtype.name) for name in file}
        assert {file[name].compression for name in file} == {"gzip"}
    assert layout == {
        "video": ((5, 224, 224, 3), "uint8"),
        "audio": ((5, 1, RATE), "int16"),
        "label": ((5, 2), "int64"),
    }


def test_pairs_by_number(folder):
    source = open_pairs(folder, RATE)
    assert (len(source), source.sample_rate) == (10, RATE)
    indices = np.array([9, 0, 4, 4, 3])
    images, audio, labels = source.read(indices)
    assert (images.dtype, audio.dtype, labels.dtype) == (np.float32,) * 3
    video = whole(folder, "video")[indices].astype(np.float64)
    np.testing.assert_allclose(images, 2 * video / 255 - 1, atol=1e-6)
    np.testing.assert_array_equal(audio, whole(folder, "audio")[indices] / np.float32(32768))
    np.testing.assert_array_equal(labels, whole(folder, "label")[indices])


def test_values_at_the_edges(tmp_path):
    with new_shard(tmp_path / "1_0_0.h5", 2, RATE, {}) as file:
        file["video"][1] = 255
        file["audio"][0], file["audio"][1] = -32768, 32767
        file["label"][:] = [1, 0]
    images, audio, _ = open_pairs(tmp_path, RATE).read(np.arange(2))
    assert set(images[0].ravel()) == {-1}
    assert set(images[1].ravel()) == {1}
    assert set(audio[0].ravel()) == {-1}
    assert audio.max() < 1


def test_batches_are_exact_and_can_be_entered_anywhere(folder):
    source = open_pairs(folder, RATE)
    stream = batch_indices(source, 4, seed=1)
    batches = [next(stream) for _ in range(8)]
    assert {len(batch) for batch in batches} == {4}
    assert sorted(np.concatenate(batches[:5])[:10]) == list(range(10))
    np.testing.assert_array_equal(next(batch_indices(source, 4, 1, 7)), batches[7])


@pytest.mark.parametrize("rows_in_block", [1, 2, 3, 100])
def test_order_goes_block_by_block(folder, monkeypatch, rows_in_block):
    bytes_of_row = sum(field.row_bytes for field in pair_fields(RATE))
    monkeypatch.setattr(shards, "BLOCK_BYTES", rows_in_block * bytes_of_row + 1)
    source = ShardRows(sorted(folder.iterdir()), pair_fields(RATE))
    order = source.order(np.random.default_rng(3))
    assert sorted(order) == list(range(10))
    assert order.tolist() != sorted(order)
    block = np.concatenate(
        [100 * shard + np.arange(rows) // rows_in_block for shard, rows in enumerate([3, 5, 2])]
    )[order]
    # Once left, a block, and a shard, do not come again.
    for of_what in (block, block // 100):
        assert (np.diff(of_what) != 0).sum() == len(set(of_what)) - 1
    np.testing.assert_array_equal(source.read(order)["audio"], whole(folder, "audio")[order])


def test_small_shards_keep_the_order_of_old_runs(folder):
    """A run that was begun before shards had blocks goes on with the same batches."""
    order = ShardRows(sorted(folder.iterdir()), [audio_field(RATE)]).order(
        np.random.default_rng([3, 1])
    )
    generator = np.random.default_rng([3, 1])
    ends = np.array([3, 8, 10])
    expected = np.concatenate(
        [
            generator.permutation(np.arange(ends[shard - 1] if shard else 0, ends[shard]))
            for shard in generator.permutation(3)
        ]
    )
    np.testing.assert_array_equal(order, expected)


@given(indices=st.lists(st.integers(0, 9), max_size=30))
@settings(max_examples=25, deadline=None)
def test_any_rows_in_any_order(tmp_path_factory, indices):
    folder = tmp_path_factory.getbasetemp() / "any"
    if not folder.exists():
        for number, rows in enumerate([3, 5, 2]):
            write(folder / f"7_0_{number}.h5", rows, seed=number)
    rows = ShardRows(sorted(folder.iterdir()), [audio_field(RATE)])
    read = rows.read(np.array(indices, int))
    np.testing.assert_array_equal(read["audio"], whole(folder, "audio")[np.array(indices, int)])


def test_an_epoch_takes_bounded_memory(tmp_path, monkeypatch):
    for number in range(4):
        write(tmp_path / f"7_0_{number}.h5", 100, seed=number)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 2**21)  # 13 pairs
    source = open_pairs(tmp_path, RATE)
    stream = batch_indices(source, 8, seed=0)
    tracemalloc.start()
    for _ in range(50):
        source.read(next(stream))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Three blocks at most, and a batch in uint8 and in float32: all shards would take 60 MB.
    assert peak < 18 * 2**20


def test_shards_with_chunks_of_others_are_read(tmp_path):
    """L3-Net's own have the chunks that h5py chooses."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (6, 224, 224, 3), np.uint8)
    with h5py.File(tmp_path / "1_0_0.h5", "w") as file:
        file.create_dataset("video", data=video, compression="gzip")
        file.create_dataset("audio", data=np.zeros((6, 1, RATE), np.int16), compression="gzip")
        file.create_dataset(
            "label", data=np.tile([0, 1], (6, 1)).astype(np.int32), compression="gzip"
        )
        file.create_dataset("audio_file", data=np.array([b"a.wav"] * 6))
    images, _, labels = open_pairs(tmp_path, RATE).read(np.array([5, 1]))
    np.testing.assert_allclose(images, 2 * (video[[5, 1]] / 255) - 1, atol=1e-6)
    assert labels.shape == (2, 2)


def test_windows_read_the_sound_of_shards(folder, tmp_path):
    source = open_windows(folder, RATE, tmp_path / "cache")
    np.testing.assert_array_equal(
        source.read(np.array([8, 2])), whole(folder, "audio")[[8, 2]] / np.float32(32768)
    )
    pairs = open_pairs(folder, RATE)
    orders = [each.order(np.random.default_rng(5)).tolist() for each in (source, pairs)]
    assert orders[0] == orders[1]


def test_fingerprint_follows_the_files(folder):
    first = open_pairs(folder, RATE).fingerprint
    assert open_pairs(folder, RATE).fingerprint == first
    write(folder / "7_0_3.h5", 2)
    assert open_pairs(folder, RATE).fingerprint != first


# Damage.


def remove(name):
    def damage(path):
        with h5py.File(path, "a") as file:
            del file[name]

    return damage


def replace(name, value):
    def damage(path):
        remove(name)(path)
        with h5py.File(path, "a") as file:
            file[name] = value

    return damage


def outside(path):
    """The values of `audio` in another file."""
    remove("audio")(path)
    with h5py.File(path, "a") as file:
        raw = [(str(path.with_suffix(".raw")), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("audio", (5, 1, RATE), np.int16, external=raw)


def unwritten(path):
    """Rows that take no room in the file."""
    with h5py.File(path, "w") as file:
        for field in pair_fields(RATE):
            chunks = (1, *field.shape)
            file.create_dataset(field.name, (10**11, *field.shape), field.dtype, chunks=chunks)


DAMAGES = {
    "text": (lambda p: p.write_text("x"), "7_0_1.h5 is not an HDF5 shard, or is damaged"),
    "cut": (
        lambda p: p.write_bytes(p.read_bytes()[:3000]),
        "7_0_1.h5 is not an HDF5 shard, or is damaged",
    ),
    "no video": (
        remove("video"),
        r"7_0_1.h5 has no dataset 'video'; give AVC shards with 'video' uint8 of shape "
        r"\(n, 224, 224, 3\)",
    ),
    "no label": (remove("label"), "7_0_1.h5 has no dataset 'label'"),
    "float label": (replace("label", np.zeros((5, 2))), "'label' is float64 of shape"),
    "float audio": (replace("audio", np.zeros((5, 1, RATE), np.float32)), "'audio' is float32"),
    "rate": (
        replace("audio", np.zeros((5, 1, 8000), np.int16)),
        r"'audio' is int16 of shape \(5, 1, 8000\); wanted is 'audio' int16 of shape \(n, 1, 800\)",
    ),
    "group": (replace("audio", h5py.SoftLink("/video")), "has no dataset 'audio'"),
    "other file": (replace("audio", h5py.ExternalLink("/etc/a.h5", "a")), "has no dataset 'audio'"),
    "outside": (outside, "has no dataset 'audio'"),
    "null": (replace("audio", h5py.Empty("i2")), "has no dataset 'audio'"),
    "null label": (replace("label", h5py.Empty("i8")), "has no dataset 'label'"),
    "folder": (replace("audio", np.dtype("i2")), "has no dataset 'audio'"),
    "unwritten": (unwritten, "is damaged: 100000000000 rows are said to be in 0 bytes"),
    "lengths": (
        replace("label", np.zeros((4, 2), int)),
        "is damaged: it has 5 of video, 5 of audio, 4 of label",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named_at_the_start(folder, case):
    damage, message = DAMAGES[case]
    damage(folder / "7_0_1.h5")
    with pytest.raises(L3PruneError, match=message):
        open_pairs(folder, RATE)


def spoil(path, name="video"):
    """Overwrite packed data in the middle of a shard, so that it opens and cannot be read."""
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(2)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + 20] = b"\0" * 20
    path.write_bytes(data)


def test_damage_in_the_middle_is_named_when_it_is_read(folder):
    spoil(folder / "7_0_1.h5")
    source = open_pairs(folder, RATE)
    source.read(np.array([0, 9]))
    with pytest.raises(L3PruneError, match=r"7_0_1\.h5 is damaged: "):
        source.read(np.array([0, 5]))


def test_folders_without_shards(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(L3PruneError, match=r"holds no \.h5 shards; make some of videos: python -m"):
        open_pairs(empty, RATE)
    with pytest.raises(L3PruneError, match="no such folder"):
        open_pairs(tmp_path / "none", RATE)
    # What a kill left behind is not read.
    (folder / ".7_0_9-x.h5").write_text("half")
    assert len(open_pairs(folder, RATE)) == 10


def test_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        pytest.raises(L3PruneError, match=r"cannot write .*1_0_0\.h5: No space left on device"),
        new_shard(tmp_path / "1_0_0.h5", 2, RATE, {}),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_shard(tmp_path / "1_0_0.h5", 2, RATE, {}):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


# Looking at shards.


def test_inspect_counts(folder):
    report = inspect_shard(folder / "7_0_1.h5")
    with h5py.File(folder / "7_0_1.h5") as file:
        matches = int(file["label"][:, 1].sum())
    assert (report.pairs, report.matches, report.sample_rate) == (5, matches, RATE)
    assert (report.metadata, report.damage) == (False, "")


def test_inspect_sees_metadata(tmp_path):
    metadata = {name: "S5" if kind is bytes else kind for name, kind in METADATA.items()}
    with new_shard(tmp_path / "a.h5", 1, RATE, metadata) as file:
        file["label"][0] = [1, 0]
    assert inspect_shard(tmp_path / "a.h5").metadata


@pytest.mark.parametrize("case", DAMAGES)
def test_inspect_finds_what_opening_finds(folder, case):
    damage, _ = DAMAGES[case]
    damage(folder / "7_0_1.h5")
    report = inspect_shard(folder / "7_0_1.h5")
    if case == "rate":
        assert (report.sample_rate, report.damage) == (8000, "")
    else:
        assert report.damage.startswith(str(folder / "7_0_1.h5"))


@pytest.mark.parametrize("value", [h5py.Empty("u1"), h5py.SoftLink("/label"), [[1]], b"[[1"])
def test_damaged_failures(folder, value):
    with h5py.File(folder / "7_0_1.h5", "a") as file:
        file["failures"] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    with pytest.raises(L3PruneError, match=r"7_0_1\.h5 is"):
        read_failures(folder / "7_0_1.h5")


def test_labels_are_looked_at_when_they_are_read(folder):
    replace("label", np.full((5, 2), 7))(folder / "7_0_1.h5")
    source = open_pairs(folder, RATE)
    source.read(np.array([0, 9]))
    with pytest.raises(L3PruneError, match=r"7_0_1\.h5: labels are not \[mismatch, match\]"):
        source.read(np.array([0, 5]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil, "is damaged: "),
        (lambda p: spoil(p, "audio"), "is damaged: "),
        (replace("label", np.ones((5, 2), int)), "labels are not"),
        (replace("label", np.tile([2, -1], (5, 1))), "labels are not"),
        (remove("audio"), "has no dataset 'audio'"),
        (lambda p: p.write_text("x"), "is not an HDF5 shard"),
    ],
    ids=["video", "audio", "both", "values", "no audio", "text"],
)
def test_inspect_finds_damage(folder, damage, message):
    damage(folder / "7_0_1.h5")
    report = inspect_shard(folder / "7_0_1.h5")
    assert message in report.damage
    assert report.pairs == 0


def test_rows_that_nobody_asks_for_are_not_unpacked(tmp_path, monkeypatch):
    """Workers that share batches each read a part of every block."""
    path = tmp_path / "1_0_0.h5"
    with new_shard(path, 6, 8000, {}) as file:
        file["audio"][:] = np.arange(6)[:, None, None]
    with h5py.File(tmp_path / "2_0_0.h5", "w") as file:  # of others, with chunks of four rows
        audio = np.repeat(np.arange(6, dtype=np.int16), 8000).reshape(6, 1, 8000)
        file.create_dataset("audio", data=audio, chunks=(4, 1, 8000))
    taken = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset,
        "__getitem__",
        lambda self, rows, *a: taken.append((rows.start, rows.stop)) or original(self, rows, *a),
    )
    for name, wanted in (("1_0_0.h5", [(1, 2), (3, 4), (4, 5)]), ("2_0_0.h5", [(0, 4), (4, 6)])):
        rows = ShardRows([tmp_path / name], [audio_field(8000)])
        taken.clear()
        for indices in ([3, 1], [4, 1]):
            read = rows.read(np.array(indices))["audio"]
            assert read[:, 0, 0].tolist() == indices
        assert taken == wanted
