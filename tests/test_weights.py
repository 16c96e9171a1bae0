import contextlib
import gzip
import hashlib
import json
import random
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tf_keras as keras

from l3prune import graph, surgery
from l3prune.errors import L3PruneError, ParameterError
from l3prune.networks import create_network, inference
from l3prune.plan import PruningPlan, plan_layerwise
from l3prune.weights import fingerprint, load_network, read_attachment, save_network

WINDOW = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8000)).astype(np.float32)


@pytest.fixture
def pruned(tiny):
    return surgery.apply_masks(tiny, plan_layerwise(graph.conv_weights(tiny), 0.7))


def equal_bits(first, second):
    return all(
        a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in zip(first.weights, second.weights, strict=True)
    )


# Our own checkpoint.


def test_checkpoint_round_trips_to_the_bit(pruned, tmp_path):
    path = tmp_path / "net.h5"
    save_network(pruned, path, origin={"seed": 3}, attachment={"steps": np.arange(3)})
    loaded = load_network(path)
    assert equal_bits(loaded, pruned)
    assert graph.masks(loaded) == graph.masks(pruned)
    assert graph.masks(loaded) == PruningPlan.load(tmp_path / "net.plan.npz")
    np.testing.assert_array_equal(inference(loaded)(WINDOW), inference(pruned)(WINDOW))
    assert read_attachment(path)["steps"].tolist() == [0, 1, 2]
    sidecar = json.loads((tmp_path / "net.json").read_text())
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar["seed"] == 3
    assert sidecar["network"] == "sea64"
    assert sidecar["parameters"] == graph_parameters(pruned)
    assert sidecar["nonzero_kernel_weights"] == graph.count_kernel_weights(pruned)[1]


def graph_parameters(network):
    return surgery.strip_masks(network).count_params()


def test_same_network_gives_the_same_file(pruned, tmp_path):
    for name in ("a.h5", "b.h5"):
        save_network(pruned, tmp_path / name, attachment={"x": np.ones(3)})
        time.sleep(1.1)  # HDF5 would note times, in seconds
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_pruned_checkpoints_are_smaller(tmp_path):
    network = create_network("sea64")
    pruned = surgery.apply_masks(network, plan_layerwise(graph.conv_weights(network), 0.95))
    save_network(network, tmp_path / "dense.h5")
    save_network(pruned, tmp_path / "pruned.h5")
    dense, sparse = ((tmp_path / f"{n}.h5").stat().st_size for n in ("dense", "pruned"))
    assert sparse < dense / 3


def test_plain_keras_reads_our_checkpoint(tiny, tmp_path):
    save_network(tiny, tmp_path / "net.h5")
    other = create_network("sea64", filters=[4] * 8)
    other.load_weights(tmp_path / "net.h5")
    assert equal_bits(other, tiny)


def test_input_can_be_changed_when_loading(tiny, tmp_path):
    save_network(tiny, tmp_path / "net.h5")
    log_mel = load_network(tmp_path / "net.h5", input="log_mel")
    assert log_mel.input_shape == (None, 64, 50, 1)
    assert log_mel.get_layer("conv_3").kernel.numpy().tolist() == (
        tiny.get_layer("conv_3").kernel.numpy().tolist()
    )


def test_a_failed_write_leaves_the_old_file(tiny, tmp_path, monkeypatch):
    path = tmp_path / "net.h5"
    save_network(tiny, path)
    before = path.read_bytes()

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(L3PruneError, match=r"cannot write .*net\.h5: No space left on device"):
        save_network(tiny, path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.h5", "net.json"]


def test_an_unmasked_network_leaves_no_old_plan(pruned, tiny, tmp_path):
    save_network(pruned, tmp_path / "net.h5")
    assert (tmp_path / "net.plan.npz").is_file()
    save_network(tiny, tmp_path / "net.h5")
    assert not (tmp_path / "net.plan.npz").exists()


def test_fingerprint_sees_every_weight(tiny):
    before = fingerprint(tiny)
    assert fingerprint(tiny) == before
    bias = tiny.get_layer("conv_5").bias
    bias.assign(np.nextafter(bias.numpy(), np.float32(9)))
    assert fingerprint(tiny) != before


# Published layouts.


def keras_file(path, network, *, whole, front_end=True, seed=0, drop_last=False):
    """A file as Keras 2 wrote them for the published packages: arbitrary layer names, kapre's
    constants in front, one group a layer; under model_weights/ in whole-model files."""
    names = random.Random(seed).sample(range(100), 60)
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        if whole:
            file.attrs["model_config"] = json.dumps({"class_name": "Lambda", "code": "evil"})
        listed = ["input_1"]
        root.create_group("input_1").attrs["weight_names"] = []
        if front_end:
            add(
                root,
                listed,
                "melspectrogram_1",
                [
                    ("real_kernels", np.zeros((1024, 1, 1, 513), "f")),
                    ("imag_kernels", np.zeros((1024, 1, 1, 513), "f")),
                    ("Variable", np.zeros((513, 64), "f")),
                ],
            )
        weighted = [layer for layer in network.layers if layer.weights]
        for number, layer in enumerate(weighted[: len(weighted) - drop_last]):
            kind = "conv2d" if isinstance(layer, keras.layers.Conv2D) else "batch_normalization"
            add(
                root,
                listed,
                f"{kind}_{names[number]}",
                [(surgery.short_name(weight), weight.numpy()) for weight in layer.weights],
            )
        root.attrs["layer_names"] = [name.encode() for name in listed]
        root.attrs["backend"] = b"tensorflow"


def add(root, listed, layer, weights):
    group = root.create_group(layer)
    listed.append(layer)
    group.attrs["weight_names"] = [f"{layer}/{name}:0".encode() for name, _ in weights]
    for name, array in weights:
        group[f"{layer}/{name}:0"] = array


@pytest.fixture
def student():
    network = create_network("sea64")
    rng = np.random.default_rng(2)
    for weight in network.weights:
        weight.assign(rng.uniform(0.1, 0.5, weight.shape))
    return network


@pytest.mark.parametrize("whole", [True, False], ids=["whole model", "save_weights"])
@pytest.mark.parametrize("front_end", [True, False], ids=["kapre constants", "without"])
def test_keras_layouts(student, tmp_path, whole, front_end):
    path = tmp_path / "published.h5"
    keras_file(path, student, whole=whole, front_end=front_end)
    assert equal_bits(load_network(path), student)
    packed = tmp_path / "published.h5.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert equal_bits(load_network(packed), student)


def test_last_batch_norm_is_left_where_the_embedding_is_raw(tmp_path):
    """Full L3 audio networks end in a BatchNorm that the raw embedding does not pass."""
    whole = create_network("mel256", embedding_point="activated")
    path = tmp_path / "l3.h5"
    keras_file(path, whole, whole=False, front_end=False)
    raw = load_network(path, "mel256")
    assert len(raw.weights) == len(whole.weights) - 4
    assert equal_bits_by_name(raw, whole)
    # And OpenL3's files do not have it at all.
    keras_file(path, whole, whole=False, front_end=False, drop_last=True)
    assert equal_bits_by_name(load_network(path, "mel256"), whole)


def equal_bits_by_name(part, whole):
    return all(
        np.array_equal(weight.numpy(), source.numpy())
        for layer in part.layers
        for weight, source in zip(layer.weights, whole.get_layer(layer.name).weights, strict=True)
    )


def test_front_end_constants_tell_networks_of_one_shape_apart(tmp_path):
    network = create_network("sea512", filters=(64, 64, 128, 128, 256, 256, 512, 512))
    path = tmp_path / "net.h5"
    keras_file(path, network, whole=False)
    assert load_network(path).name == "sea512"
    keras_file(path, network, whole=False, front_end=False)
    with pytest.raises(L3PruneError, match=r"fits mel256, mel128, linear, sea512, which differ"):
        load_network(path)
    assert load_network(path, "sea512").name == "sea512"


@pytest.mark.shared
def test_the_published_file(shared, sea64):
    assert sea64.name == "sea64"
    assert surgery.strip_masks(sea64).count_params() == 399_460
    kernel = sea64.get_layer("batch_normalization_1")
    assert kernel.gamma.numpy()[0] == pytest.approx(0.914, abs=1e-3)
    assert kernel.moving_mean.numpy()[0] == pytest.approx(-26.15, abs=0.01)


# Files that are not to be believed.


def test_shape_mismatch_names_layer_and_both_shapes(student, tmp_path):
    path = tmp_path / "net.h5"
    keras_file(path, student, whole=True)
    with pytest.raises(
        L3PruneError,
        match=r"kernel of layer conv2d_\d+ has shape \(3, 3, 1, 32\) where conv_1 of sea512 has "
        r"\(3, 3, 1, 64\): these are weights for another network",
    ):
        load_network(path, "sea512")


def test_other_networks(tmp_path, tiny):
    path = tmp_path / "dense.h5"
    dense = keras.Sequential([keras.layers.Dense(3, input_shape=(2,))])
    dense.save_weights(path)
    with pytest.raises(L3PruneError, match="holds no convolutions of an audio or image net"):
        load_network(path)
    save_network(tiny, tmp_path / "net.h5")
    with pytest.raises(L3PruneError, match="holds the network sea64, not mel256"):
        load_network(tmp_path / "net.h5", "mel256")
    with pytest.raises(ParameterError, match="network 'cnn' is unknown; known: mel256"):
        load_network(tmp_path / "net.h5", "cnn")
    with pytest.raises(ParameterError, match=r"a checkpoint's name ends in \.h5"):
        save_network(tiny, tmp_path / "net.keras")


def write_text(path, student):
    path.write_text("no weights")


def write_truncated(path, student):
    keras_file(path, student, whole=True)
    path.write_bytes(path.read_bytes()[:-5000])


def write_no_layers(path, student):
    with h5py.File(path, "w") as file:
        file["audio"] = np.zeros(3)


def write_missing_layer(path, student):
    keras_file(path, student, whole=False)
    with h5py.File(path, "a") as file:
        del file[file.attrs["layer_names"][3]]


def write_external_link(path, student):
    keras_file(path, student, whole=False)
    with h5py.File(path, "a") as file:
        name = file.attrs["layer_names"][3]
        del file[name]
        file[name] = h5py.ExternalLink("/etc/other.h5", "/x")


def write_external_storage(path, student):
    keras_file(path, student, whole=False)
    secret = path.parent / "secret.bin"
    secret.write_bytes(b"\0" * 5000)
    with h5py.File(path, "a") as file:
        name = file.attrs["layer_names"][3]
        group = file[name]
        weight = group.attrs["weight_names"][1]
        shape = group[weight].shape
        del group[weight]
        group.create_dataset(weight, shape, "f4", external=[(str(secret), 0, 5000)])


def write_huge(path, student):
    keras_file(path, student, whole=False)
    with h5py.File(path, "a") as file:
        name = file.attrs["layer_names"][3]
        weight = file[name].attrs["weight_names"][0]
        del file[name][weight]
        file[name].create_dataset(weight, (2**20, 2**20), "f4", chunks=(1024, 1024))


def write_nan(path, student):
    student.get_layer("conv_4").bias.assign(np.full(64, np.nan))
    keras_file(path, student, whole=False)


def write_negative_variance(path, student):
    student.get_layer("batch_normalization_4").moving_variance.assign(np.full(64, -1.0))
    keras_file(path, student, whole=False)


def write_huge_chunk(path, student):
    keras_file(path, student, whole=False)
    with h5py.File(path, "a") as file:
        name = file.attrs["layer_names"][3]
        weight = file[name].attrs["weight_names"][1]
        shape = file[name][weight].shape
        del file[name][weight]
        file[name].create_dataset(
            weight, shape, "f4", maxshape=(None,), chunks=(2**24,), compression="gzip"
        )


def write_many_layers(path, student):
    keras_file(path, student, whole=False)
    with h5py.File(path, "a") as file:
        names = list(file.attrs["layer_names"])
        file.attrs["layer_names"] = names + names[3:4]


def write_other_filters(path, student):
    save_network(student, path)
    with h5py.File(path, "a") as file:
        file.attrs["l3prune"] = json.dumps(
            {"network": "sea64", "arguments": {"filters": [4000] * 8}}
        )


def write_empty_mask(path, student):
    masked = surgery.apply_masks(student, plan_layerwise(graph.conv_weights(student), 0.5))
    save_network(masked, path)
    with h5py.File(path, "a") as file:
        file["conv_2/conv_2/mask:0"][...] = False


def write_odd_filters(path, student):
    save_network(student, path)
    with h5py.File(path, "a") as file:
        file.attrs["l3prune"] = '{"network": "sea64", "arguments": {"filters": 5}}'


def write_bad_description(path, student):
    save_network(student, path)
    with h5py.File(path, "a") as file:
        file.attrs["l3prune"] = '{"network": 3}'


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, "is not an HDF5 weight file, or is damaged"),
        (write_truncated, "is not an HDF5 weight file, or is damaged"),
        (write_no_layers, "no Keras weight file: it has no layer_names"),
        (write_missing_layer, "is listed but missing"),
        (write_external_link, "is a link; weight files hold their own data"),
        (write_external_storage, "is stored outside the file"),
        (write_huge, r"is float32 of shape \(1048576, 1048576\)"),
        (write_nan, "has NaN or infinite values"),
        (write_negative_variance, "has a negative variance"),
        (write_huge_chunk, "is float32 of shape"),
        (write_many_layers, "too many or one of them twice"),
        (write_other_filters, "claims .* filters and holds"),
        (write_empty_mask, "layer conv_2 would lose all its weights"),
        (write_odd_filters, "the description of the network is damaged: the network's filters"),
        (write_bad_description, "the description of the network is damaged"),
    ],
)
def test_bad_files(write, message, student, tmp_path):
    path = tmp_path / "net.h5"
    write(path, student)
    with pytest.raises(L3PruneError, match=message):
        load_network(path)


def test_damaged_gzip(tmp_path, student):
    path = tmp_path / "net.h5"
    keras_file(path, student, whole=True)
    packed = gzip.compress(path.read_bytes())
    for number, content in enumerate([b"text", packed[: len(packed) // 2]]):
        bad = tmp_path / f"{number}.h5.gz"
        bad.write_bytes(content)
        with pytest.raises(L3PruneError, match="is not an HDF5 weight file, or is damaged"):
            load_network(bad)


def test_zip_bomb_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("l3prune.layouts._MAX_BYTES", 10_000)
    bomb = tmp_path / "bomb.h5.gz"
    bomb.write_bytes(gzip.compress(b"\0" * 1_000_000))
    with pytest.raises(L3PruneError, match="unpacks to more than"):
        load_network(bomb)


def test_all_weights_together_are_limited(student, tmp_path, monkeypatch):
    path = tmp_path / "net.h5"
    keras_file(path, student, whole=True, front_end=False)
    monkeypatch.setattr("l3prune.layouts._MAX_BYTES", 1_000_000)  # of 1.6 MB, each below 0.6 MB
    with pytest.raises(L3PruneError, match="unpacks to more than"):
        load_network(path)


def test_flipped_bytes_give_an_error_or_a_network_never_a_crash(student, tmp_path):
    path = tmp_path / "net.h5"
    keras_file(path, student, whole=True, front_end=False)
    content = bytearray(path.read_bytes())
    rng = random.Random(0)
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(5):
            damaged[rng.randrange(20_000)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        # Any other exception fails the test.
        with contextlib.suppress(L3PruneError):
            load_network(path, "sea64")


def test_carried_models_are_what_their_sidecars_say():
    folder = Path(__file__).parent.parent / "models"
    checkpoints = sorted(folder.glob("*.h5"))
    assert checkpoints
    for path in checkpoints:
        sidecar = json.loads(path.with_suffix(".json").read_text())
        assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stat().st_size <= 2_000_000
        assert {"command", "seed", "licence"} <= sidecar.keys()
        assert load_network(path).count_params() == sidecar["parameters"]
