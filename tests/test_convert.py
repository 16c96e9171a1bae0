"""Cnn14, E-PANNs and DecisionLevelMax from PyTorch's files, against PyTorch itself."""

import json

import numpy as np
import pytest
import tf_keras as keras

from l3prune.convert import NETWORKS, main
from l3prune.errors import L3PruneError, ParameterError
from l3prune.networks import cnn14, inference, network_config
from l3prune.panns import counts, network_of
from l3prune.weights import load_network
from tests.torch_checkpoints import FILTERS, make_state, torch_forward, torch_save

needs_torch = pytest.mark.usefixtures("torch")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture(scope="module")
def state():
    return make_state()


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).normal(0, 0.1, (2, 48_000)).astype(np.float32)


def test_the_entries_are_those_of_panns(state):
    names = list(state)
    assert len(names) == 84
    assert names[:4] == [
        "spectrogram_extractor.stft.conv_real.weight",
        "spectrogram_extractor.stft.conv_imag.weight",
        "logmel_extractor.melW",
        "bn0.weight",
    ]
    for block in range(6):
        place = 8 + 12 * block
        assert names[place : place + 2] == [f"conv_block{block + 1}.conv{n}.weight" for n in (1, 2)]
    assert names[80:] == ["fc1.weight", "fc1.bias", "fc_audioset.weight", "fc_audioset.bias"]


@needs_torch
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_cnn14_computes_what_pytorch_does(state, clips, tmp_path, legacy, capsys):
    """A checkpoint of PANNs' training, of a network pruned to other widths in each layer."""
    path = torch_save(state, tmp_path / "Cnn14_mAP=0.1.pth", legacy, iteration=1, sampler={"p": 3})
    assert main([str(path), str(tmp_path / "net.h5")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("cnn14, filters 2 3 4 5 6 7 8 9 10 11 12 13, ")
    network = load_network(tmp_path / "net.h5", samples=None)
    assert network_config(network).arguments["filters"] == list(FILTERS)
    clipwise, embedding = torch_forward(state, clips)
    both = cnn14.with_embedding(network)(clips[:, None], training=False)
    np.testing.assert_allclose(both[0], clipwise, atol=2e-6)
    np.testing.assert_allclose(both[1], embedding, atol=2e-5)
    assert clipwise.std() > 0.01
    assert (embedding > 0).any()
    record = json.loads((tmp_path / "net.json").read_text())
    assert record["converted_from"] == path.name
    assert len(record["converted_sha256"]) == 64


@needs_torch
def test_e_panns_are_a_bare_state_dictionary(state, clips, tmp_path):
    path = torch_save(state, tmp_path / "checkpoint_closeto_.44.pt", legacy=True)
    assert main([str(path), str(tmp_path / "net.h5")]) == 0
    network = load_network(tmp_path / "net.h5", samples=48_000)
    np.testing.assert_allclose(
        inference(network)(clips[:, None]), torch_forward(state, clips)[0], atol=2e-6
    )


@needs_torch
def test_decision_level_max(state, clips, tmp_path):
    path = torch_save(state, tmp_path / "Cnn14_DecisionLevelMax_mAP=0.1.pth", epoch=1)
    assert main([str(path), str(tmp_path / "net.h5")]) == 0
    network = load_network(tmp_path / "net.h5", samples=48_000)
    assert network_config(network).name == "cnn14_decision_level_max"
    clipwise, framewise = torch_forward(state, clips, detection=True)
    np.testing.assert_allclose(inference(network)(clips[:, None]), clipwise, atol=2e-6)
    segments = keras.Model(network.input, network.get_layer("segmentwise").output)
    found = cnn14.framewise(inference(segments)(clips[:, None]), 151)
    assert found.shape == framewise.shape
    np.testing.assert_allclose(found, framewise, atol=2e-6)


def test_npz(state, tmp_path, capsys):
    path = tmp_path / "net.npz"
    np.savez(path, **state)
    assert main([str(path), str(tmp_path / "net.h5")]) == 2
    assert "does not tell which network it is; say it by --network" in capsys.readouterr().err
    words = [str(path), str(tmp_path / "net.h5"), "--network", "cnn14"]
    assert main(words) == 0
    network = load_network(tmp_path / "net.h5")
    kernel = network.get_layer("conv_block2_conv1").kernel.numpy()
    np.testing.assert_array_equal(kernel[0, 1, 2, 3], state["conv_block2.conv1.weight"][3, 2, 0, 1])
    fc1 = network.get_layer("fc1").get_weights()
    np.testing.assert_array_equal(fc1[0], state["fc1.weight"].T)
    norm = [state[f"conv_block3.bn2.{each}"] for each in ("weight", "bias", "running_mean")]
    for found, expected in zip(network.get_layer("conv_block3_bn2").get_weights(), norm):  # noqa: B905
        np.testing.assert_array_equal(found, expected)
    assert main(words) == 2
    assert "net.h5 exists; replace it by --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_counts_of_the_checkpoint(state):
    """What the converter builds has as many numbers as the checkpoint, but for the counters."""
    entries = [array for name, array in state.items() if "num_batches" not in name]
    assert counts(network_of(state)).state_dict == sum(array.size for array in entries)


def test_labels_of_audioset():
    network = network_of(make_state(classes=527, front_end=False))
    assert network_config(network).labels[:2] == ("Speech", "Male speech, man speaking")
    assert network_config(network_of(make_state(front_end=False))).labels == ()


def test_constants_and_counters_may_be_absent(state):
    few = {
        name: array
        for name, array in state.items()
        if "extractor" not in name and "num_batches" not in name
    }
    assert len(few) == 84 - 3 - 13
    network = network_of(few)
    for weight, other in zip(network.weights, network_of(state).weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def without(name):
    return lambda state: state.pop(name)


def shaped(name, shape):
    return lambda state: state.update({name: np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc1.bias"), "tensor fc1.bias is missing; a Cnn14 has 68 besides"),
        (without("bn0.running_var"), r"tensor bn0.running_var is missing;"),
        (lambda state: state.clear(), r"conv_block1.conv1.weight is missing, and 67 more"),
        (shaped("fc_transfer.weight", (5, 3)), "tensor fc_transfer.weight is of no Cnn14"),
        (lambda state: state.update(x=1, y=2), "tensor x, and 1 more is of no Cnn14"),
        (
            shaped("conv_block4.conv1.weight", (8, 8, 3, 3)),
            r"conv_block4.conv1.weight has shape \(8, 8, 3, 3\); .* ask for any x 7 x 3 x 3",
        ),
        (shaped("conv_block4.conv1.weight", (8, 7, 5, 5)), "ask for any x 7 x 3 x 3"),
        (shaped("conv_block6.conv2.weight", (0, 12, 3, 3)), "ask for any x 12 x 3 x 3"),
        (shaped("conv_block6.bn2.weight", (12,)), r"bn2.weight has shape \(12,\); .* ask for 13"),
        (shaped("bn0.bias", (1,)), r"bn0.bias has shape \(1,\); the others ask for 64"),
        (shaped("fc1.weight", (7, 12)), r"fc1.weight has shape \(7, 12\); .* any x 13"),
        (shaped("fc1.weight", (7,)), r"fc1.weight has shape \(7,\); .* any x 13"),
        (shaped("fc_audioset.bias", (7,)), r"fc_audioset.bias has shape \(7,\); .* ask for 5"),
        (shaped("logmel_extractor.melW", (257, 64)), "melW is not that of PANNs' front end"),
        (shaped("spectrogram_extractor.stft.conv_imag.weight", (513, 1, 1024)), "conv_imag"),
    ],
)
def test_other_tensors_are_refused_by_name(change, message):
    state = make_state()
    change(state)
    with pytest.raises(L3PruneError, match=message):
        network_of(state)


def test_another_front_end_is_refused(state):
    import librosa

    mel = librosa.filters.mel(sr=32000, n_fft=1024, n_mels=64, fmin=50, fmax=14000, htk=True)
    with pytest.raises(L3PruneError, match="melW is not that of PANNs' front end at 32000 Hz"):
        network_of({**state, "logmel_extractor.melW": mel.T})


def test_bad_command_lines(state, tmp_path, capsys):
    path = tmp_path / "Cnn14_mAP=0.1.npz"
    np.savez(path, **{**state, "fc1.bias": np.ones(3)})
    for words, message in (
        ([str(path), str(tmp_path / "net.pth")], "a weight file's name ends in .h5"),
        ([str(path), str(tmp_path / "net.h5"), "--network", "cnn6"], "--network 'cnn6'; allowed"),
        ([str(path), str(tmp_path / "net.h5")], f"{path}: tensor fc1.bias has shape (3,); "),
        (["/nowhere/Cnn14_mAP.pth", str(tmp_path / "net.h5")], "no such checkpoint: /nowhere"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not (tmp_path / "net.h5").exists()
    with pytest.raises(ParameterError, match="network 'sea64' is none of PANNs'"):
        network_of(state, "sea64")


def test_every_network_of_panns_can_be_converted():
    assert sorted(NETWORKS) == sorted(cnn14.NETWORKS)
