"""The DCASE 2021 network: counts, front end, surgery, the five rows of Singh's table."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import tf_keras as keras

import l3prune
from l3prune import graph, litert, surgery
from l3prune.errors import ParameterError
from l3prune.networks import create_network, inference, network_config
from l3prune.networks.dcase2021 import SceneLogMel
from l3prune.options import parse
from l3prune.plan import PruningPlan
from l3prune.pruner import Wish, prune
from l3prune.pruning import _cuts, _wish
from l3prune.quantization import to_float16
from l3prune.sizes import float16_sizes
from l3prune.weights import load_network, save_network

CONFIGS = Path(l3prune.__file__).parent.parent / "configs" / "dcase2021"


def trained(**arguments):
    """A network with weights as training leaves them: no two alike, and no zeros."""
    network = create_network("dcase2021", input="log_mel", **arguments)
    rng = np.random.default_rng(11)
    for weight in network.weights:
        if "moving_variance" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    return network


def test_parameters_of_the_baseline():
    network = create_network("dcase2021")
    assert network.count_params() == 46_246
    sizes = [
        sum(int(np.prod(weight.shape)) for weight in weights)
        for weights in (network.trainable_weights, network.non_trainable_weights)
    ]
    assert sizes == [46_118, 128]
    assert network.output_shape == (None, 10)
    assert network.get_layer("flatten").output_shape == (None, 64)
    # 7x7 convolutions on 40 x 500, 40 x 500 and 8 x 100, then 64 x 100 and 100 x 10.
    macs = 49 * (20_000 * (16 + 16 * 16) + 800 * 16 * 32)
    assert graph.count_macs(network)[0] == macs
    # Statistics are no weights, so that networks with them count alike.
    normal = {"mean": [0.0] * 40, "std": [1.0] * 40}
    assert create_network("dcase2021", normalisation=normal).count_params() == 46_246


def test_layers_are_those_of_the_baseline():
    network = create_network("dcase2021")
    kinds = ("Conv2D", "BatchNormalization", "ReLU", "MaxPooling2D", "Dropout", "Flatten", "Dense")
    names = [type(each).__name__ for each in network.layers]
    convolution = ["Conv2D", "BatchNormalization", "ReLU"]
    pooled = [*convolution, "MaxPooling2D", "Dropout"]
    dense = ["Flatten", "Dense", "Dropout", "Dense"]
    assert [name for name in names if name in kinds] == [*convolution, *pooled, *pooled, *dense]
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert (layer.kernel_size, layer.padding, layer.use_bias) == ((7, 7), "same", True)
            assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.99, 1e-3)
        if isinstance(layer, keras.layers.Dropout):
            assert layer.rate == 0.3
        if isinstance(layer, keras.layers.Dense):
            assert 0.045 < np.abs(layer.kernel.numpy()).max() <= 0.05
    pools = [each.pool_size for each in network.layers if hasattr(each, "pool_size")]
    assert pools == [(5, 5), (4, 100)]
    ends = [network.get_layer(f"dense_{n}").activation.__name__ for n in (1, 2)]
    assert ends == ["relu", "softmax"]


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "reflect"), ("zeros", "constant")])
def test_front_end_is_that_of_librosa(padding, mode):
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, 441_000)
    audio[:20_000] = 0  # silence, where only what is added to the samples is left
    audio[200_000:] *= 1e-4
    audio = audio.astype(np.float32)
    spectrum = librosa.stft(
        audio.astype(np.float64) + np.spacing(1),
        n_fft=2048,
        win_length=1764,
        hop_length=882,
        window="hamming",
        center=True,
        pad_mode=mode,
    )
    bands = librosa.filters.mel(
        sr=44100, n_fft=2048, n_mels=40, fmin=0, fmax=22050, htk=False, dtype=np.float64
    )
    expected = np.log(bands @ np.abs(spectrum) + np.spacing(1))
    assert expected.shape == (40, 501)
    found = SceneLogMel(padding)(audio[np.newaxis, np.newaxis]).numpy()
    assert found.shape == (1, 40, 500, 1)
    loud = expected[:, :500] > -25
    np.testing.assert_allclose(found[0, :, :, 0][loud], expected[:, :500][loud], atol=5e-6)
    # Sums of 1e-16 differ by the order in which they are made.
    np.testing.assert_allclose(found[0, :, :, 0], expected[:, :500], atol=0.1)


def test_paddings_differ_at_the_ends_alone():
    audio = np.random.default_rng(1).normal(0, 0.1, (1, 1, 441_000)).astype(np.float32)
    one, other = (SceneLogMel(padding)(audio).numpy() for padding in ("reflect", "zeros"))
    differs = (one != other).any(axis=(0, 1, 3))
    # The window of frame n begins at sample 882 (n - 1).
    assert differs.nonzero()[0].tolist() == [0]


def test_normalisation_is_by_band():
    rng = np.random.default_rng(2)
    audio = rng.normal(0, 0.1, (2, 1, 441_000)).astype(np.float32)
    mean, std = rng.normal(size=40), rng.uniform(0.5, 2, 40)
    layer = SceneLogMel("zeros", mean.tolist(), std.tolist())
    raw = layer.unnormalised()(audio).numpy()
    expected = (raw - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(layer(audio).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(layer.normalise(raw), expected, atol=1e-6)
    assert layer.unnormalised().padding == "zeros"
    copy = SceneLogMel.from_config(layer.get_config())
    np.testing.assert_array_equal(copy(audio).numpy(), layer(audio).numpy())


def test_a_saved_network_keeps_its_normalisation(tmp_path):
    rng = np.random.default_rng(3)
    normal = {"mean": rng.normal(size=40).tolist(), "std": rng.uniform(1, 2, 40).tolist()}
    network = create_network("dcase2021", filters=[1, 1, 1], normalisation=normal)
    save_network(network, tmp_path / "net.h5")
    loaded = load_network(tmp_path / "net.h5")
    audio = rng.normal(0, 0.1, (1, 1, 441_000)).astype(np.float32)
    np.testing.assert_array_equal(inference(loaded)(audio), inference(network)(audio))
    assert loaded.get_layer("log_mel").std == normal["std"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": [16, 16]}, "give 3, one for each convolution"),
        ({"filters": [16, 0, 16]}, "filters=0 is not a whole number in 1"),
        ({"dense_units": 0}, "dense_units=0 is not"),
        ({"classes": 1}, "classes=1 is not a whole number from 2 on"),
        ({"padding": "constant"}, "padding='constant'; allowed: reflect, zeros"),
        ({"input": "mel"}, "input='mel'; allowed: 'waveform', 'log_mel'"),
        ({"normalisation": {"mean": [0.0] * 40}}, "normalisation has mean; give mean and std"),
        ({"normalisation": {"mean": [0.0] * 40, "std": [0.0] * 40}}, "those of std positive"),
        ({"normalisation": {"mean": [0.0] * 39, "std": [1.0] * 40}}, "40 finite numbers each"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ParameterError, match=message):
        create_network("dcase2021", **arguments)


# Surgery: filters behind Flatten, and units of dense layers.


def plan_of(network, seed):
    """Half of all filters and units but the classes, at random."""
    rng = np.random.default_rng(seed)
    return PruningPlan(
        {
            name: rng.permutation(each.kernel.shape[-1]) % 2 == 0
            for name, each in graph.filter_weights(network).items()
            if name != "dense_2"
        }
    )


def masked(network, plan):
    """The network with kernel, bias, scale and shift of what goes set to zero."""
    copy = surgery.remove_filters(network, PruningPlan({}))
    for name, mask in plan.items():
        layers = [name]
        if name.startswith("conv"):
            layers.append(name.replace("conv", "batch_normalization"))
        for layer in map(copy.get_layer, layers):
            for weight in layer.weights:
                if "moving" not in weight.name:
                    weight.assign(weight.numpy() * mask)
    return copy


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pruned_is_masked(seed):
    network = trained()
    plan = plan_of(network, seed)
    smaller = surgery.remove_filters(network, plan)
    assert network_config(smaller).arguments["filters"] == [8, 8, 16]
    assert network_config(smaller).arguments["dense_units"] == 50
    x = np.random.default_rng(seed).normal(size=(3, 40, 500, 1)).astype(np.float32)
    found, expected = (inference(each)(x) for each in (smaller, masked(network, plan)))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert expected.std(axis=0).max() > 1e-3


def test_filter_c_is_at_rows_c_and_32_more():
    network = trained()
    keep = np.arange(32) % 3 > 0
    smaller = surgery.remove_filters(network, PruningPlan({"conv_3": keep}))
    before, after = (each.get_layer("dense_1").kernel.numpy() for each in (network, smaller))
    c = keep.nonzero()[0]
    np.testing.assert_array_equal(after, before[[*c, *(32 + c)]])
    # Rows 2 c and 2 c + 1, as if channels came first, give another network.
    wrong = surgery.remove_filters(network, PruningPlan({"conv_3": keep}))
    wrong.get_layer("dense_1").kernel.assign(before[np.sort([*(2 * c), *(2 * c + 1)])])
    x = np.random.default_rng(4).normal(size=(3, 40, 500, 1)).astype(np.float32)
    right = inference(masked(network, PruningPlan({"conv_3": keep})))(x)
    np.testing.assert_allclose(inference(smaller)(x), right, atol=2e-6)
    assert np.abs(inference(wrong)(x) - right).max() > 0.05


def test_l1_drops_the_lowest_sums_of_each_named_layer():
    network = trained()
    _, plan = prune(network, Wish(filterwise=True, layers={"dense_1": 0.68, "conv_2": 0.5}))
    for name, stay in (("conv_2", 8), ("dense_1", 32)):
        kernel = network.get_layer(name).kernel.numpy()
        sums = np.abs(kernel).reshape(-1, kernel.shape[-1]).sum(axis=0)
        assert sorted(np.argsort(-sums)[:stay]) == plan[name].nonzero()[0].tolist()
    assert list(plan) == ["dense_1", "conv_2"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"conv_4": 0.5}, "no layer 'conv_4' to take filters .* known: conv_1, .* dense_2"),
        ({"dense_2": 0.5}, "layer dense_2 cannot lose filters: they are the network's output"),
        ({"conv_2": 0.97}, r"layer conv_2: 97 % of 16 filters leaves none; give at most 93.75 %"),
        (
            {"dense_1": 0.996},
            r"layer dense_1: 99.6 % of 100 filters leaves none; give at most 99 %",
        ),
        ({"conv_2": 1.0}, "layer conv_2: ratio=1 is not in"),
        ({"conv_2": 50}, "layer conv_2: ratio=50 is not in .*percent"),
    ],
)
def test_ratios_that_cannot_be(layers, message):
    with pytest.raises(ParameterError, match=message):
        prune(create_network("dcase2021"), Wish(filterwise=True, layers=layers))


def test_fresh_layers_are_those_named():
    network = trained()
    keras.utils.set_random_seed(0)
    wish = Wish(filterwise=True, layers={"dense_1": 0.68}, fresh=("dense_1", "dense_2"))
    smaller, plan = prune(network, wish)
    for name in ("conv_1", "conv_3", "batch_normalization_2"):
        for one, other in zip(
            *(n.get_layer(name).get_weights() for n in (network, smaller)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    sliced = network.get_layer("dense_1").kernel.numpy()[:, plan["dense_1"]]
    fresh = smaller.get_layer("dense_1").kernel.numpy()
    assert fresh.shape == sliced.shape == (64, 32)
    assert np.abs(fresh).max() <= 0.05 < np.abs(sliced).max()
    assert not smaller.get_layer("dense_2").bias.numpy().any()
    with pytest.raises(ParameterError, match="fresh weights are wished for in layer 'dense_3'"):
        prune(network, Wish(filterwise=True, layers={"dense_1": 0.5}, fresh=("dense_3",)))


def test_layers_that_lose_nothing_are_not_renewed():
    network = trained()
    for layers in ({"conv_3": 0.5}, {"conv_3": 0.5, "dense_1": 0}):
        wish = Wish(filterwise=True, layers=layers, fresh=("dense_1", "dense_2"))
        smaller, _ = prune(network, wish)
        for one, other in zip(
            *(each.get_layer("dense_2").get_weights() for each in (network, smaller)), strict=True
        ):
            np.testing.assert_array_equal(one, other)


# Singh's table 1: filters and units, all parameters, those without BatchNorm, KB by each rule.

ROWS = {
    "baseline": ([16, 16, 32], 100, 46_246, 45_990, "89.82", "90.32", "90.82"),
    "entry1": ([16, 8, 16], 32, 14_914, 14_754, "28.82", "29.13", "29.44"),
    "entry2": ([16, 8, 32], 100, 27_390, 27_166, "53.06", "53.5", "53.93"),
    "entry3": ([16, 16, 24], 100, 38_334, 38_110, "74.43", "74.87", "75.31"),
    "entry4": ([16, 12, 32], 100, 36_818, 36_578, "71.44", "71.91", "72.38"),
}


def test_every_row_has_a_config():
    assert sorted(path.stem for path in CONFIGS.glob("*.json")) == sorted(ROWS)


@pytest.mark.parametrize("row", sorted(ROWS))
def test_rows_of_the_table(row):
    network = trained()
    if row != "baseline":
        args = parse(["net.h5", "TAU", "out", "--config", str(CONFIGS / f"{row}.json")])
        cuts = _cuts(args, _wish(args, network))
        assert len(cuts) == (3 if row == "entry1" else 1)
        for cut in cuts:
            network, _ = prune(network, cut)
    filters, units, parameters, folded, kb, kb_all, kb_keras = ROWS[row]
    arguments = network_config(network).arguments
    assert (arguments.get("filters", [16, 16, 32]), arguments.get("dense_units", 100)) == (
        filters,
        units,
    )
    assert network.count_params() == parameters
    sizes = float16_sizes(network)
    assert (sizes["all"].parameters, sizes["all"].kb) == (parameters, kb_all)
    assert (sizes["keras"].parameters, sizes["keras"].kb) == (parameters, kb_keras)
    assert (sizes["folded"].parameters, sizes["folded"].kb) == (folded, kb)
    assert sizes["folded"].bytes == 2 * folded
    assert all(size.within() for size in sizes.values())
    # A bias of zeros would not be in the file.
    for name in ("dense_1", "dense_2"):
        bias = network.get_layer(name).bias
        bias.assign(np.random.default_rng(5).uniform(0.1, 0.2, bias.shape))
    content = litert.convert(network, "float16")
    assert litert.float16_values(content) == (10, folded)


def test_bytes_of_the_baseline_and_biases_of_zeros():
    sizes = float16_sizes(create_network("dcase2021"))
    assert sizes["keras"].bytes == 93_004
    assert sizes["all"].bytes == 92_492
    assert sizes["folded"].bytes == 91_980
    network = trained()
    for name in ("dense_1", "dense_2"):
        bias = network.get_layer(name).bias
        bias.assign(np.zeros(bias.shape))
    assert litert.float16_values(litert.convert(network, "float16")) == (8, 45_880)


def test_what_the_report_says_of_its_first_row():
    """90.1 KB are what is trained; 68 % fewer parameters, by its two rules and by one."""
    network = create_network("dcase2021")
    trained = sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
    assert round(2 * trained / 1024, 2) == 90.07
    whole, pruned = map(
        float16_sizes,
        (network, create_network("dcase2021", filters=[16, 8, 16], dense_units=32)),
    )
    saved = [100 * (1 - pruned[rule].parameters / whole["all"].parameters) for rule in whole]
    assert [round(each, 1) for each in saved] == [67.8, 67.8, 68.1]


def test_zeros_are_free():
    network = create_network("dcase2021", filters=[400, 16, 32])
    assert not float16_sizes(network)["folded"].within()
    kernel = network.get_layer("conv_2").kernel
    kernel.assign(np.zeros(kernel.shape))
    size = float16_sizes(network)["folded"]
    assert size.parameters - size.nonzero >= 49 * 400 * 16
    assert size.bytes > 128_000 > size.nonzero_bytes
    assert size.within()


def test_sixteen_bits_hardly_move_probabilities():
    network = trained()
    x = np.random.default_rng(6).normal(size=(4, 40, 500, 1)).astype(np.float32)
    exact = inference(network)(x)
    halved = inference(to_float16(network))(x)
    lite = litert.run(litert.convert(network, "float16"), x)
    for found in (halved, lite):
        assert 0 < np.abs(found - exact).max() < 5e-3
