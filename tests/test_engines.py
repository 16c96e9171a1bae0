"""Which engine computes an embedding, packed files as models, and what works without TensorFlow."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

import l3prune
from classifier.features import extract_features, network_sha256, read_features
from l3prune import edgel3, engines, openl3
from l3prune.__main__ import main
from l3prune.datasets import Clip, Dataset
from l3prune.embedding import get_embedding, process_file
from l3prune.engines import AUTO_DENSITY, choose_engine, load_model
from l3prune.errors import L3PruneError, ParameterError
from l3prune.images import get_image_embedding
from l3prune.networks import NetworkConfig, attach_config, create_network
from l3prune.plan import plan_layerwise
from l3prune.sparse import SparseModel, is_packed, program_of
from l3prune.sparse.plan import mac_density
from l3prune.surgery import apply_masks
from l3prune.weights import save_network
from tests.conftest import chirp

ROOT = Path(__file__).parent.parent
FILTERS = [4, 4, 8, 8, 8, 8, 8, 16]


def pruned(share, **arguments):
    """A small sea64 with random BatchNorm whose convolutions behind the first lose a share."""
    network = create_network("sea64", filters=FILTERS, **arguments)
    rng = np.random.default_rng(3)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    weights = l3prune.graph.conv_weights(network)
    return apply_masks(network, plan_layerwise(weights, [0] + [share] * 7))


@pytest.fixture(scope="module")
def sparse_net():
    return pruned(0.95)


@pytest.fixture(scope="module")
def packed(sparse_net, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "small.l3p"
    SparseModel.from_network(sparse_net).save(path)
    return path


def close(one, other):
    assert abs(one - other).max() <= 1e-5 * abs(other).max()


def test_auto_takes_the_sparse_engine_for_sparse_networks_only(sparse_net):
    engine = choose_engine(sparse_net)
    assert engine.name == "sparse"
    # The first convolution is whole, so a bit more than 5 % is left.
    weights = l3prune.graph.conv_weights(sparse_net)
    assert len(weights) == 8
    assert engine.reason.endswith("% of the multiply-accumulates are left")
    assert 0.05 < float(engine.reason.split("%")[0]) / 100 < AUTO_DENSITY
    engine = choose_engine(pruned(0.5))
    assert engine.name == "dense"
    assert "the sparse engine is for 25% at most" in engine.reason


def test_density_counts_multiply_accumulates_not_weights():
    # conv_1 and conv_2 have 3 % of the weights and most of the places they are applied at.
    network = create_network("sea64", filters=FILTERS)
    weights = l3prune.graph.conv_weights(network)
    masked = apply_masks(network, plan_layerwise(weights, [0, 0] + [0.99] * 6))
    total, left = l3prune.graph.count_kernel_weights(masked)
    assert left / total < 0.15
    assert choose_engine(masked).name == "dense"


@pytest.mark.parametrize("arguments", [{}, {"input": "log_mel"}])
def test_engines_agree(arguments):
    network = pruned(0.9, **arguments)
    audio = chirp(2.5, 11025)
    sparse, times = get_embedding(audio, 11025, network, engine="sparse")
    dense, same = get_embedding(audio, 11025, network, engine="dense")
    auto, _ = get_embedding(audio, 11025, network)
    assert len(dense) == 21
    close(sparse, dense)
    np.testing.assert_array_equal(auto, sparse)
    np.testing.assert_array_equal(times, same)


def test_changed_weights_change_the_sparse_embedding():
    network = pruned(0.95)
    audio = chirp(1, 8000)
    before, _ = get_embedding(audio, 8000, network, engine="sparse")
    layer = network.get_layer("batch_normalization_9")
    layer.beta.assign(layer.beta + 100)
    after, _ = get_embedding(audio, 8000, network, engine="sparse")
    assert abs(after - before).min() > 1
    close(after, get_embedding(audio, 8000, network, engine="dense")[0])


def test_every_change_of_a_weight_is_seen():
    """By the sparse engine: values that change places, a single one, and all ways to write them."""
    network = pruned(0.95)
    kernel = network.get_layer("conv_3").weights[0]
    mask = network.get_layer("conv_3").weights[-1]
    bias = network.get_layer("conv_5").weights[1]
    before = choose_engine(network).compute

    def permute():
        kernel.assign(kernel.numpy()[:, :, ::-1])

    def swap_two():
        values = kernel.numpy()
        used = np.flatnonzero(values)[:2]
        values.ravel()[used] = values.ravel()[used[::-1]]
        kernel.assign(values)

    for change in (
        permute,
        swap_two,
        lambda: bias.assign_add(np.eye(1, *bias.shape, dtype=np.float32)[0]),
        lambda: bias[1:2].assign([3.0]),
        lambda: mask.assign(~mask.numpy()),
        lambda: network.get_layer("conv_4").set_weights(network.get_layer("conv_5").get_weights()),
    ):
        change()
        after = choose_engine(network, "sparse").compute
        assert after is not before
        assert choose_engine(network, "sparse").compute is after
        before = after


def test_the_same_weights_written_again_change_nothing(sparse_net):
    before = choose_engine(sparse_net).compute
    for weight in sparse_net.weights:
        weight.assign(weight.numpy())
    assert choose_engine(sparse_net).compute is before


def test_a_dense_choice_is_kept(monkeypatch):
    network = pruned(0.5)
    assert choose_engine(network).name == "dense"
    reads = []
    read = engines._value
    monkeypatch.setattr(engines, "_value", lambda weight: reads.append(weight.name) or read(weight))
    monkeypatch.setattr(engines, "program_of", None)
    assert choose_engine(network).name == "dense"
    assert 0 < len(reads) < len(network.weights) / 4
    monkeypatch.undo()
    # Zeros in all large kernels are seen.
    for number in range(2, 8):
        kernel = network.get_layer(f"conv_{number}").weights[0]
        kernel.assign(np.where(np.arange(kernel.shape[-1]) < 1, kernel, 0))
    assert choose_engine(network).name == "sparse"


def test_lanes_that_stay_empty_count():
    network = create_network("sea64")
    weights = l3prune.graph.conv_weights(network)
    # The last layers have 8 rows, half as many as AVX-512 has lanes.
    late = program_of(
        apply_masks(network, plan_layerwise(weights, [0.9, *[0.98] * 3, 0.9, 0.5, 0, 0]))
    )
    assert mac_density(late, 4) == pytest.approx(mac_density(late))
    assert mac_density(late, 16) > 1.15 * mac_density(late)
    alike = program_of(apply_masks(network, plan_layerwise(weights, 0.8)))
    assert mac_density(alike, 16) == pytest.approx(0.2, rel=1e-3)


def test_auto_counts_empty_lanes(monkeypatch):
    monkeypatch.setattr(engines, "mac_density", lambda program, lanes=None: 0.3 if lanes else 0.2)
    engine = choose_engine(pruned(0.9))
    assert engine.name == "dense"
    assert engine.reason == (
        "20.0% of the multiply-accumulates are left, which are 30.0% of the sparse engine's work; "
        "the sparse engine is for 25% at most"
    )


def test_the_sparse_engine_is_built_once(sparse_net):
    assert choose_engine(sparse_net).compute is choose_engine(sparse_net).compute


def test_a_network_that_the_sparse_engine_does_not_know():
    inputs = keras.Input((1, 8000))
    outputs = keras.layers.Dense(4)(keras.layers.LayerNormalization(name="odd")(inputs))
    network = keras.Model(inputs, keras.layers.Flatten()(outputs))
    attach_config(network, NetworkConfig("sea64"))
    engine = choose_engine(network)
    assert engine.name == "dense"
    assert "layer odd (number 2) is of kind LayerNormalization" in engine.reason
    with pytest.raises(ParameterError, match="layer odd"):
        choose_engine(network, "sparse")


def test_a_network_whose_output_is_maps(sparse_net, tmp_path):
    flatten = sparse_net.layers[-1]
    assert isinstance(flatten, keras.layers.Flatten)
    network = keras.Model(sparse_net.input, flatten.input)
    attach_config(network, NetworkConfig("sea64"))
    engine = choose_engine(network)
    assert engine.name == "dense"
    assert "ends with maps" in engine.reason
    with pytest.raises(ParameterError, match="ends with maps"):
        choose_engine(network, "sparse")
    # What TensorFlow computes is written as it is.
    expected, times = get_embedding(chirp(1.2, 8000), 8000, network)
    assert expected.ndim == 4
    with np.load(process_file(sound(tmp_path), model=network)) as found:
        assert found["embedding"].shape == expected.shape
        np.testing.assert_array_equal(found["timestamps"], times)


def test_unknown_engine(sparse_net):
    with pytest.raises(ParameterError, match="engine='fast' is unknown; allowed: auto, sparse"):
        get_embedding(chirp(1, 8000), 8000, sparse_net, engine="fast")


# Packed files as models.


def test_a_packed_file_is_a_model(sparse_net, packed, tmp_path):
    assert is_packed(packed)
    audio = chirp(2, 8000)
    expected, _ = get_embedding(audio, 8000, sparse_net, engine="sparse")
    for model in (packed, str(packed), SparseModel.load(packed)):
        np.testing.assert_array_equal(get_embedding(audio, 8000, model)[0], expected)
    assert load_model(packed) is load_model(str(packed))


def test_a_packed_file_goes_through_the_drop_ins(sparse_net, packed):
    audio = chirp(1.5, 8000)
    model = load_model(packed)
    expected, _ = get_embedding(audio, 8000, sparse_net)
    np.testing.assert_array_equal(edgel3.get_embedding(audio, 8000, model=model)[0], expected)
    found, _ = openl3.get_audio_embedding(audio, 8000, model=model)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ParameterError, match="frontend='librosa' and a model that takes waveforms"):
        openl3.get_audio_embedding(audio, 8000, model=model, frontend="librosa")


def test_what_a_packed_file_cannot_do(packed, tmp_path):
    with pytest.raises(ParameterError, match="which only the sparse engine computes"):
        get_embedding(chirp(1, 8000), 8000, packed, engine="dense")
    with pytest.raises(ParameterError, match=r"small\.l3p is a packed network and is what it is"):
        load_model(packed, embedding_size=512)
    with pytest.raises(ParameterError, match="leave out embedding_size"):
        load_model(load_model(packed), embedding_size=512)
    with pytest.raises(ParameterError, match="'sea64' is no network of images"):
        get_image_embedding(np.ones((224, 224, 3)), model=packed)
    damaged = tmp_path / "damaged.l3p"
    damaged.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(L3PruneError, match=r"damaged\.l3p is damaged: it has"):
        get_embedding(chirp(1, 8000), 8000, damaged)
    maps = tmp_path / "maps.l3p"
    program = SparseModel.load(packed).program
    *steps, last, _ = program.steps
    SparseModel(dataclasses.replace(program, steps=(*steps, last))).save(maps)
    with pytest.raises(ParameterError, match=f"ends with maps, those of {last.name}, and an embe"):
        process_file(sound(tmp_path), tmp_path / "none", model=maps)
    assert not (tmp_path / "none").exists()
    spectrograms = tmp_path / "spectrograms.l3p"
    SparseModel.from_network(pruned(0.95, input="log_mel")).save(spectrograms)
    with pytest.raises(ParameterError, match=r"takes arrays of shape \(n, 64, 50, 1\), not sound"):
        get_embedding(chirp(1, 8000), 8000, spectrograms)


def test_features_of_a_packed_file(sparse_net, packed, tmp_path):
    path = tmp_path / "a.wav"
    import soundfile

    soundfile.write(path, chirp(1.2, 8000), 8000)
    dataset = Dataset("toy", (Clip(path, 1, 0),), ("noise",))
    folders = {}
    for name, model, engine in (
        ("dense", sparse_net, None),
        ("sparse", sparse_net, "sparse"),
        ("packed", packed, None),
        ("loaded", load_model(packed), None),
    ):
        folders[name] = tmp_path / name
        extract_features(dataset, model, folders[name], hop_size=0.5, engine=engine, quiet=True)
    found = {name: read_features(folder).embeddings[0] for name, folder in folders.items()}
    np.testing.assert_array_equal(found["packed"], found["sparse"])
    np.testing.assert_array_equal(found["packed"], found["loaded"])
    close(found["dense"], found["sparse"])
    assert not np.array_equal(found["dense"], found["sparse"])
    one, other = (network_sha256(SparseModel.from_network(pruned(share))) for share in (0.95, 0.9))
    recorded = json.loads((folders["packed"] / "features.json").read_text())["model_sha256"]
    assert recorded == network_sha256(load_model(packed))
    assert recorded != one != other


# The command.


def sound(folder):
    import soundfile

    folder.mkdir(exist_ok=True)
    soundfile.write(folder / "a.wav", chirp(1.2, 8000), 8000)
    return folder / "a.wav"


def test_the_command_says_which_engine_it_took(sparse_net, tmp_path, capsys):
    path = tmp_path / "net.h5"
    save_network(sparse_net, path)
    line = [str(sound(tmp_path)), "--model", str(path), "-o", str(tmp_path / "out")]
    assert main(line) == 0
    assert capsys.readouterr().out.startswith("engine: sparse (")
    assert main([*line, "--overwrite", "--engine", "dense"]) == 0
    assert capsys.readouterr().out == "engine: dense (as asked for)\n"
    assert main([*line, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*line, "--engine", "gpu"]) == 2
    assert "engine='gpu' is unknown" in capsys.readouterr().err


def run(code, cwd):
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_packed_file_needs_no_tensorflow(packed, tmp_path):
    # Nor anything else that librosa does not bring along.
    audio = sound(tmp_path)
    output = run(
        f"""
import sys
for name in ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "pandas", "h5py",
             "matplotlib", "PIL", "tensorboard"):
    sys.modules[name] = None  # importing it fails
from l3prune.__main__ import main
assert main([{str(audio)!r}, "--model", {str(packed)!r}]) == 0
import l3prune
from l3prune.sparse import SparseModel
assert main([{str(audio)!r}, "--model", {str(ROOT / "models/l3_synthetic.h5")!r}, "-x", "b"]) == 2
try:
    l3prune.get_embedding([0.0], 8000, {str(ROOT / "models/l3_synthetic.h5")!r})
except l3prune.L3PruneError as error:
    print(error)
""",
        tmp_path,
    )
    first, message = output.splitlines()
    assert first == "engine: sparse (a packed network)"
    assert message.startswith("TensorFlow is not installed")
    with np.load(audio.with_suffix(".npz")) as found:
        expected = process_file(audio, tmp_path, "again", packed)
        np.testing.assert_array_equal(found["embedding"], np.load(expected)["embedding"])


# Benchmarks.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("frontend --rounds 0", "--rounds=0 is not a whole number from 1 on"),
        ("frontend --batch-size 0", "--batch-size=0 is not a whole number from 1 on"),
        ("training --rounds 0", "--rounds=0 is not a whole number from 1 on"),
        ("engine_choice --rounds 0", "--rounds=0 is not a whole number from 1 on"),
        ("engine_choice --densities 500", "--densities are percents above 0 and up to 100"),
        ("engine_choice --seconds nan", "--seconds are numbers above 0 and up to 3600"),
        ("extract --seconds 0", "--seconds=0 is not a whole number from 1 on"),
        ("extract --plain-seconds -1", "--plain-seconds=-1 is not a whole number from 1 on"),
        ("embedding net.h5 --calls 5", "--calls=5 is not a whole number from 10 on"),
        (
            "embedding missing.h5",
            "a process of embedding.py ended with code 2: no such weight file: missing.h5; ",
        ),
    ],
)
def test_benchmarks_refuse_in_one_line(line, message):
    name, *words = line.split()
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {message}")
    assert len(ended.stderr.splitlines()) == 1
