"""Audio-visual networks: their parts, their checkpoints, their halves."""

import json
import shutil

import h5py
import numpy as np
import pytest
import soundfile
import tf_keras as keras

from l3prune import complexity, graph, surgery
from l3prune.__main__ import main
from l3prune.avc import audio_half, freeze_vision, join, vision_half
from l3prune.embedding import get_embedding
from l3prune.engines import load_model
from l3prune.errors import L3PruneError, ParameterError
from l3prune.images import get_image_embedding
from l3prune.networks import (
    NetworkConfig,
    avc,
    create_network,
    inference,
    l3,
    network_config,
    vision,
)
from l3prune.plan import PruningPlan, plan_layerwise
from l3prune.weights import fingerprint, load_network, save_network

NARROW = [4, 3, 4, 6, 5, 4, 3, 6]

#: Weights of kapre's front end, which the authors count: two DFT kernels and the mel matrix.
KAPRE = {"mel256": 2 * 2048 * 1025 + 1025 * 256, "mel128": 2 * 2048 * 1025 + 1025 * 128}


def make_small(name="avc", **arguments):
    """A narrow network, with weights and statistics that are not trivial."""
    if name == "avc":
        arguments = {"audio_filters": NARROW, "vision_filters": NARROW[::-1], **arguments}
        arguments.setdefault("fusion_units", 7)
    network = create_network(name, **arguments)
    rng = np.random.default_rng(3)
    for weight in network.weights:
        if "moving_variance" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif "kernel" in weight.name:
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape))
        else:
            weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    # The first BatchNorm of the sound gets decibels.
    first = next(layer for layer in network.layers if layer.name.startswith("batch_normalization"))
    first.moving_variance.assign(first.moving_variance * 900)
    # Neither 0 nor 1.
    last = network.get_layer("fusion_dense_2")
    last.kernel.assign(last.kernel / 4)
    return network


@pytest.fixture(scope="module")
def small():
    """A network that the tests leave as it is."""
    return make_small()


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    """Its checkpoint."""
    path = tmp_path_factory.mktemp("saved") / "net.h5"
    save_network(small, path)
    return path


@pytest.fixture(scope="module")
def pairs():
    """Three images and three sounds at 48 kHz, all different."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 224, 224, 3)).astype(np.float32)
    noise = rng.uniform(-1, 1, 48000)
    tone = np.sin(np.arange(48000) ** 1.5 / 1000)
    sounds = np.stack([noise, np.cumsum(noise) / 300, tone * (np.arange(48000) % 12000 < 3000)])
    return images, sounds[:, np.newaxis].astype(np.float32)


def count(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def output_of(network, layer):
    """What one layer of a network computes, as a function of the network's inputs."""
    return inference(keras.Model(network.inputs, network.get_layer(layer).output))


def equal_bits(first, second):
    names = [weight.name for weight in first.weights]
    assert names == [weight.name for weight in second.weights]
    return all(
        one.numpy().tobytes() == other.numpy().tobytes()
        for one, other in zip(first.weights, second.weights, strict=True)
    )


# What is built.


@pytest.mark.parametrize(
    ("audio", "trainable", "everything", "image_half"),
    [
        ("mel256", 9_508_746, 13_977_234, 4_693_068),
        ("mel128", 9_508_738, 13_846_018, 4_693_056),
    ],
)
def test_parameter_counts_of_the_authors(audio, trainable, everything, image_half):
    network = create_network("avc", audio=audio)
    assert count(network.trainable_weights) == trainable
    assert network.count_params() + KAPRE[audio] == everything
    parts = dict.fromkeys(avc.PARTS, 0)
    for layer in network.layers:
        parts[avc.part_of(layer.name)] += layer.count_params()
    assert parts["vision"] == image_half
    assert parts["fusion"] == 131_200 + 258
    kernels = graph.conv_weights(network)
    images = [kernels[avc.from_vision(name)] for name in vision.CONV_NAMES]
    assert sum(each.kernel.size + each.bias.size for each in images) == 4_685_376


def test_tiny_by_hand():
    network = create_network("tiny_l3")
    sizes = {layer.name: layer.count_params() for layer in network.layers if layer.weights}
    assert [sizes[f"conv_{i}"] for i in (1, 2, 3)] == [260, 2510, 2510]
    assert [sizes[f"vision_conv_{i}"] for i in (1, 2, 3)] == [760, 2510, 2510]
    # 257 x 198 -> 84 x 64 -> 26 x 20 -> 7 x 5, and 224 -> 73 -> 23 -> 6
    assert network.get_layer("embedding").output_shape == (None, 10 * 7 * 5)
    assert network.get_layer("vision_embedding").output_shape == (None, 10 * 6 * 6)
    assert sizes["fusion_dense_1"] == (350 + 360) * 64 + 64
    assert sizes["fusion_dense_2"] == 64 * 2 + 2
    assert network.count_params() == 56_934
    front_end = avc.front_end(network)
    assert (front_end.n_dft, front_end.hop_length, front_end.n_mels) == (512, 240, None)


@pytest.mark.parametrize("name", avc.NETWORKS)
def test_inputs_and_output(name, pairs):
    network = make_small(name)
    assert [each.name for each in network.inputs] == ["image", "waveform"]
    assert network.output_shape == (None, 2)
    found = inference(network)(*pairs)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert np.ptp(found[:, 0]) > 0.001


def test_the_order_behind_conv_2_of_the_images():
    network = make_small()
    inputs = {
        name: network.get_layer(name).input.name.split("/")[0]
        for name in ("vision_batch_normalization_3", "vision_relu_2", "relu_2", "vision_relu_3")
    }
    assert inputs == {
        "vision_relu_2": "vision_conv_2",
        "vision_batch_normalization_3": "vision_relu_2",
        "vision_relu_3": "vision_batch_normalization_4",
        "relu_2": "batch_normalization_3",
    }


@pytest.mark.slow
@pytest.mark.parametrize("audio", ["mel256", "mel128", "linear"])
def test_two_halves_and_two_dense_layers(audio, pairs):
    """The whole, computed from the halves alone, with the image's embedding first."""
    network = make_small(audio=audio)
    heard = audio_half(network, embedding_point="activated")
    seen = vision_half(network, embedding_point="activated", embedding_size=NARROW[0])
    joined = np.concatenate([inference(seen)(pairs[0]), inference(heard)(pairs[1])], axis=1)
    for name in ("fusion_dense_1", "fusion_dense_2"):
        kernel, bias = network.get_layer(name).get_weights()
        logits = joined @ kernel + bias
        joined = np.maximum(logits, 0)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(inference(network)(*pairs), expected, atol=1e-5)
    assert l3.front_end(heard) == avc.front_end(network) == l3.SPECS[audio].front_end


@pytest.mark.parametrize(
    ("audio", "given", "image", "sound"),
    [
        ("mel256", None, True, True),
        ("linear", None, True, True),
        ("mel128", None, False, False),
        ("mel128", True, True, True),
        ("mel256", [False, True], False, True),
    ],
)
def test_input_batch_norms(audio, given, image, sound):
    names = [layer.name for layer in make_small(audio=audio, input_batch_norm=given).layers]
    assert ("vision_batch_normalization_1" in names) == image
    assert ("batch_normalization_1" in names) == sound


@pytest.mark.slow
def test_other_inputs_and_front_ends(pairs):
    waveform = make_small(front_end="librosa")
    network = make_small(front_end="librosa", input="log_mel")
    assert [tuple(each.shape[1:]) for each in network.inputs] == [(224, 224, 3), (256, 199, 1)]
    assert avc.front_end(network).form == "librosa"
    maps = output_of(waveform, "log_mel")(*pairs)
    found = inference(network)(pairs[0], maps)
    np.testing.assert_allclose(found, inference(waveform)(*pairs), atol=1e-6)
    behind = inference(surgery.behind_front_end(waveform))(pairs[0], maps)
    np.testing.assert_allclose(behind, found, atol=1e-6)


@pytest.mark.slow
def test_weight_decay_is_on_every_kernel():
    for name in avc.NETWORKS:
        kernels = [w for w in create_network(name).trainable_weights if "kernel" in w.name]
        assert len(create_network(name).losses) == len(kernels)
        assert create_network(name, weight_decay=0).losses == []


def test_probabilities_are_float32_in_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        for name in avc.NETWORKS:
            network = create_network(name)
            assert network.get_layer("fusion_dense_1").compute_dtype == "float16"
            assert network.output.dtype == "float32"
    finally:
        keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("avc", {"audio": "mel512"}, "audio='mel512'; allowed: mel256, mel128, linear, sea512"),
        ("avc", {"audio": ["mel256"]}, r"audio=\['mel256'\]; allowed"),
        ("avc", {"audio_filters": [4] * 7}, r"audio_filters=\(4, .*: give 8 whole numbers"),
        ("avc", {"vision_filters": [0] * 8}, r"vision_filters=\(0, .*: give 8 whole numbers"),
        ("avc", {"vision_filters": []}, r"vision_filters=\(\): give 8 whole numbers"),
        ("avc", {"fusion_units": 0}, "fusion_units=0 is not a whole number in 1 … 4096"),
        ("avc", {"fusion_units": 2.5}, "fusion_units=2.5 is not a whole number"),
        ("avc", {"weight_decay": -1}, "weight_decay=-1 is not a number"),
        ("avc", {"input": "mp3"}, "input='mp3'; allowed: 'waveform', 'log_mel'"),
        ("avc", {"front_end": "mine"}, "front end 'mine' is unknown"),
        ("avc", {"input_batch_norm": "yes"}, "input_batch_norm='yes'; allowed: true, false, or"),
        ("avc", {"input_batch_norm": [True]}, r"input_batch_norm=\[True\]; allowed"),
        ("avc", {"input_batch_norm": 1}, "input_batch_norm=1; allowed"),
        ("avc", {"embedding_size": 512}, "unexpected keyword argument 'embedding_size'"),
        ("tiny_l3", {"audio_filters": [4] * 8}, r"audio_filters=\(4, .*: give 3 whole numbers"),
        ("tiny_l3", {"weight_decay": -1}, "weight_decay=-1 is not a number"),
        ("tiny_l3", {"fusion_units": True}, "fusion_units=True is not a whole number"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ParameterError, match=message):
        create_network(name, **arguments)


# Masks, surgery, counts.


def audio_plan(network, sparsity=0.6):
    """A plan for the audio half alone."""
    weights = graph.conv_weights(network)
    return plan_layerwise({name: weights[name] for name in l3.CONV_NAMES}, sparsity)


@pytest.mark.slow
def test_a_plan_of_the_audio_network_fits(small, pairs):
    half = audio_half(small)
    plan = plan_layerwise(graph.conv_weights(half), 0.6)
    pruned = surgery.apply_masks(small, plan)
    assert graph.masks(pruned) == plan == audio_plan(small)
    for name, mask in plan.items():
        kernel = pruned.get_layer(name).kernel.numpy()
        np.testing.assert_array_equal(kernel != 0, np.broadcast_to(mask, kernel.shape))
    for name in vision.CONV_NAMES:
        layer = pruned.get_layer(avc.from_vision(name))
        assert (layer.kernel.numpy() != 0).all()
    sound = pairs[1]
    found = inference(audio_half(pruned))(sound)
    np.testing.assert_array_equal(found, inference(surgery.apply_masks(half, plan))(sound))
    assert not np.array_equal(inference(pruned)(*pairs), inference(small)(*pairs))


def test_without_filters_of_the_audio_half_the_fusion_loses_inputs(small, pairs):
    keep = np.array([True, False, True, True, False, True])
    plan = PruningPlan({"conv_4": keep[::-1], "audio_embedding_layer": keep})
    smaller = surgery.remove_filters(small, plan)
    seen = NARROW[0]
    assert smaller.get_layer("fusion_dense_1").kernel.shape == (seen + 4, 7)
    config = network_config(smaller)
    assert config.arguments["audio_filters"] == [4, 3, 4, 4, 5, 4, 3, 4]
    assert config.arguments["vision_filters"] == NARROW[::-1]
    assert config.arguments["fusion_units"] == 7
    ignoring = surgery.strip_masks(small)
    fusion = ignoring.get_layer("fusion_dense_1")
    heard = np.concatenate([np.ones(seen, bool), keep])[:, np.newaxis]
    fusion.kernel.assign(fusion.kernel * heard)
    following = ignoring.get_layer("conv_5")
    following.kernel.assign(following.kernel * keep[::-1][:, np.newaxis])
    np.testing.assert_allclose(inference(smaller)(*pairs), inference(ignoring)(*pairs), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", avc.NETWORKS)
def test_every_filter_group_can_lose_half(name, pairs, tmp_path):
    network = make_small(name)
    masks = {}
    for group in graph.filter_groups(network):
        keep = (np.arange(group.size) % 2 == 0) | ~group.removable
        masks |= {layer: keep[places] for layer, places in group.filters.items()}
    assert masks["fusion_dense_2"].all()
    smaller = surgery.remove_filters(network, PruningPlan(masks))
    arguments = network_config(smaller).arguments
    for part in ("audio", "vision"):
        before = avc.widths(network_config(network))[part]
        assert arguments[f"{part}_filters"] == [-(-width // 2) for width in before]
    path = tmp_path / "net.h5"
    save_network(smaller, path)
    loaded = load_network(path)
    assert network_config(loaded) == network_config(smaller)
    assert equal_bits(loaded, smaller)
    np.testing.assert_array_equal(inference(loaded)(*pairs), inference(smaller)(*pairs))
    with pytest.raises(ParameterError, match="filter 0 cannot be removed: fusion_dense_2 compares"):
        surgery.remove_filters(network, PruningPlan({"fusion_dense_2": np.array([False, True])}))


def test_counts_are_those_of_the_parts():
    network = create_network("avc")
    halves = create_network("mel256"), create_network("vision")
    macs = sum(graph.count_macs(half)[0] for half in halves)
    assert graph.count_macs(network)[0] == macs
    total = complexity.complexity_table(network).loc["total"]
    assert total["macs"] == macs + 1024 * 128 + 128 * 2
    assert total["trainable"] == 9_508_746
    costs = {cost.name: cost for cost in complexity.layer_costs(network)}
    assert costs["fusion_dense_1"].previous == ("vision_embedding_layer", "audio_embedding_layer")
    assert costs["fusion_dense_1"].channels == (512, 512)


# Checkpoints.


@pytest.mark.parametrize("name", avc.NETWORKS)
def test_checkpoints_with_masks(name, pairs, tmp_path):
    network = make_small(name)
    plan = plan_layerwise(graph.conv_weights(network), 0.5)
    pruned = surgery.apply_masks(network, plan)
    path = tmp_path / "net.h5"
    save_network(pruned, path, attachment={"steps": np.arange(2)})
    loaded = load_network(path)
    assert network_config(loaded) == network_config(pruned)
    assert equal_bits(loaded, pruned)
    assert graph.masks(loaded) == plan == PruningPlan.load(tmp_path / "net.plan.npz")
    assert fingerprint(loaded) == fingerprint(pruned)
    assert [each.name for each in loaded.inputs] == ["image", "waveform"]
    np.testing.assert_array_equal(inference(loaded)(*pairs), inference(pruned)(*pairs))
    assert equal_bits(load_network(path, name), pruned)
    sidecar = json.loads((tmp_path / "net.json").read_text())
    assert sidecar["network"] == name
    assert sidecar["parameters"] == network.count_params()


@pytest.mark.parametrize("audio", ["mel256", "mel128", "sea64"])
def test_halves_of_a_checkpoint(audio, tmp_path):
    network = make_small(audio=audio, weight_decay=0.0)
    pruned = surgery.apply_masks(network, plan_layerwise(graph.conv_weights(network), 0.5))
    path = tmp_path / "net.h5"
    save_network(pruned, path)
    half = audio_half(pruned)
    for name in (audio, "audio"):
        loaded = load_network(path, name)
        assert network_config(loaded) == network_config(half)
        assert equal_bits(loaded, half)
        assert graph.masks(loaded) == graph.masks(half)
        assert len(graph.masks(loaded)) == 8
    assert network_config(half).name == audio
    image = load_network(path, "vision", embedding_size=NARROW[0])
    assert equal_bits(image, vision_half(pruned, embedding_size=NARROW[0]))
    assert list(graph.masks(image)) == list(vision.CONV_NAMES)
    if audio == "mel256":
        long = load_network(path, "audio", embedding_size=12 * NARROW[-1])
        assert long.output_shape == (None, 12 * NARROW[-1])
    other = "linear"
    with pytest.raises(L3PruneError, match=f"holds the network avc of {audio}, not {other}"):
        load_network(path, other)


def test_names_that_a_checkpoint_does_not_hold(saved, tmp_path):
    path = tmp_path / "net.h5"
    with pytest.raises(L3PruneError, match="holds the network avc of mel256, not tiny_l3"):
        load_network(saved, "tiny_l3")
    save_network(make_small("tiny_l3"), path)
    for name in ("avc", "mel256", "vision", "audio"):
        with pytest.raises(L3PruneError, match=f"holds the network tiny_l3, not {name}"):
            load_network(path, name)
    save_network(create_network("vision", filters=[2] * 8), path)
    for name in ("audio", "avc"):
        with pytest.raises(L3PruneError, match=f"holds the network vision, not {name}"):
            load_network(path, name)
    save_network(create_network("sea64", filters=[2] * 8), path)
    assert load_network(path, "audio").name == "sea64"


# Files that are not to be believed.


def claim(**arguments):
    def write(file):
        said = json.loads(file.attrs["l3prune"])
        said["arguments"].update(arguments)
        file.attrs["l3prune"] = json.dumps(said)

    return write


def forget(*layers):
    def write(file):
        names = [name for name in file.attrs["layer_names"] if name not in layers]
        file.attrs["layer_names"] = names

    return write


def reshape(weight, *shape):
    def write(file):
        layer = weight.split("/")[0]
        del file[layer][weight]
        file[layer][weight] = np.ones(shape, np.float32)

    return write


def call(old, new):
    """Rename a layer."""

    def write(file):
        names = file.attrs["layer_names"]
        file.attrs["layer_names"] = [new if name == old else name for name in names]
        weights = list(file[old].attrs["weight_names"])
        group = file.create_group(new)
        group.attrs["weight_names"] = [weight.replace(old, new) for weight in weights]
        for weight in weights:
            group[weight.replace(old, new)] = file[old][weight][()]

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (claim(audio_filters=[4000] * 8), r"claims \(4000, .* filters of its audio part, holds"),
        (claim(vision_filters=[4000] * 8), r"claims \(4000, .* filters of its vision part, holds"),
        (claim(audio_filters=None), r"claims \(64, 64, .* filters of its audio part, holds \(4, 3"),
        (claim(fusion_units=4000), r"claims \(4000, 2\) filters of its fusion part, holds \(7, 2"),
        (claim(fusion_units=[7]), r"claims \(\[7\], 2\) filters of its fusion part"),
        (claim(audio_filters=5), "is damaged: the network's audio_filters are not a list"),
        (claim(vision_filters={"a": 1}), "is damaged: the network's vision_filters are not a"),
        (claim(audio="mel512"), "audio='mel512'; allowed: mel256"),
        (claim(audio={"a": 1}), "audio={'a': 1}; allowed: mel256"),
        (claim(audio="mel128"), "has 36 weighted layers, the network avc 34: these are weights"),
        (claim(input_batch_norm="yes"), "input_batch_norm='yes'; allowed"),
        (claim(colour=1), "unexpected keyword argument 'colour'"),
        (forget("fusion_dense_2"), r"claims \(7, 2\) filters of its fusion part, holds \(7,\)"),
        (forget("conv_3"), "filters of its audio part, holds"),
        (forget("batch_normalization_4"), "has 35 weighted layers, the network avc 36"),
        (forget("vision_batch_normalization_1"), "has 35 weighted layers, the network avc 36"),
        (reshape("conv_2/kernel:0", 3, 3, 5, 3), "layer conv_2 takes 5 channels where 4 come in"),
        (reshape("conv_2/kernel:0", 5, 3, 4, 3), r"kernel of layer conv_2 has shape \(5, 3, 4, 3"),
        (reshape("conv_2/kernel:0", 0, 3, 4, 3), r"kernel of layer conv_2 is of shape \(0, 3"),
        (reshape("conv_2/bias:0", 4), r"bias of layer conv_2 has shape \(4,\) where conv_2 of avc"),
        (reshape("fusion_dense_1/kernel:0", 9, 7), r"has shape \(9, 7\) where fusion_dense_1 of"),
        (reshape("fusion_dense_1/kernel:0", 0, 7), r"kernel of layer fusion_dense_1 is of shape"),
        (
            call("fusion_dense_2", "dense"),
            r"\(7, 2\) filters of its fusion part, holds \(7,\)",
        ),
        (call("vision_batch_normalization_1", "norm"), "its audio part has layers of another part"),
        (call("audio_embedding_layer", "vision_x"), "filters of its vision part, holds"),
        (call("batch_normalization_2", "vision_x"), "layer vision_x takes 4 channels where"),
    ],
)
def test_bad_files(write, message, saved, tmp_path):
    path = tmp_path / "net.h5"
    shutil.copy(saved, path)
    with h5py.File(path, "a") as file:
        write(file)
    with pytest.raises(L3PruneError, match=message):
        load_network(path)


# Halves.


@pytest.mark.slow
def test_the_audio_half_gives_what_is_inside(small, pairs):
    keep = np.array([True, False, True, True, False, True])
    fewer = PruningPlan({"conv_4": keep, "audio_embedding_layer": keep})
    masked = surgery.apply_masks(small, audio_plan(small))
    for network in (small, masked, surgery.remove_filters(masked, fewer)):
        maps = output_of(network, "audio_embedding_layer")(*pairs)
        half = audio_half(network)
        assert maps.shape[1:3] == (32, 24)
        found = inference(half)(pairs[1])
        assert np.ptp(found, axis=0).max() > 0.05
        np.testing.assert_allclose(found, maps.max(axis=(1, 2)), rtol=1e-6, atol=1e-6)
        assert graph.masks(half) == graph.masks(network)
        assert l3.embedding_point(half) == "raw"
        long = inference(audio_half(network, embedding_size=12 * maps.shape[-1]))(pairs[1])
        blocks = maps.reshape(3, 4, 8, 3, 8, -1).max(axis=(2, 4)).reshape(3, -1)
        np.testing.assert_allclose(long, blocks, rtol=1e-6, atol=1e-6)
        images = output_of(network, "vision_embedding_layer")(*pairs)
        seen = inference(vision_half(network, embedding_size=NARROW[0]))(pairs[0])
        np.testing.assert_allclose(seen, images.max(axis=(1, 2)), rtol=1e-6, atol=1e-6)


def test_halves_are_copies(small):
    before = [weight.numpy() for weight in small.weights]
    for half in (audio_half(small), vision_half(small)):
        for weight in half.weights:
            weight.assign(weight + 1)
    for weight, old in zip(small.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["raw", "activated"])
@pytest.mark.parametrize("audio", ["mel256", "mel128"])
def test_joined_halves_are_the_whole(audio, point, pairs):
    network = make_small(audio=audio, front_end="kapre-0.3", weight_decay=0.0)
    network = surgery.apply_masks(network, plan_layerwise(graph.conv_weights(network), 0.3))
    halves = audio_half(network, embedding_point=point), vision_half(network, embedding_point=point)
    again = join(*halves, network)
    assert equal_bits(again, network)
    assert graph.masks(again) == graph.masks(network)
    assert avc.front_end(again) == avc.front_end(network)
    assert again.losses == []
    np.testing.assert_array_equal(inference(again)(*pairs), inference(network)(*pairs))
    assert avc.widths(network_config(again)) == avc.widths(network_config(network))


def test_a_joined_network_is_fresh_where_nothing_is_given(small):
    halves = audio_half(small, embedding_point="activated"), vision_half(small)
    fresh = join(*halves)
    assert fresh.get_layer("fusion_dense_1").units == 128
    assert (fresh.get_layer("vision_batch_normalization_9").gamma.numpy() == 1).all()
    for name in ("batch_normalization_9", "conv_5", "vision_conv_5"):
        for one, other in zip(
            fresh.get_layer(name).get_weights(), small.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    # A narrower half: the fusion reads other embeddings, its second layer is taken.
    keep = np.array([True, False, True, True, False, True])
    narrow = surgery.remove_filters(halves[0], PruningPlan({"audio_embedding_layer": keep}))
    joined = join(narrow, halves[1], small)
    assert joined.get_layer("fusion_dense_1").kernel.shape == (NARROW[0] + 4, 7)
    np.testing.assert_array_equal(
        joined.get_layer("fusion_dense_2").kernel.numpy(),
        small.get_layer("fusion_dense_2").kernel.numpy(),
    )
    assert (joined.get_layer("fusion_dense_1").bias.numpy() == 0).all()


@pytest.mark.slow
def test_halves_with_and_without_input_norms_join(pairs, tmp_path):
    sound = create_network("mel128", filters=NARROW)  # OpenL3's has a BatchNorm in front
    image = create_network("vision", filters=NARROW, input_batch_norm=False)
    network = join(sound, image)
    assert network_config(network).arguments["input_batch_norm"] == [False, True]
    save_network(network, tmp_path / "net.h5")
    loaded = load_network(tmp_path / "net.h5")
    np.testing.assert_array_equal(inference(loaded)(*pairs), inference(network)(*pairs))
    assert "batch_normalization_1" in [layer.name for layer in audio_half(loaded).layers]
    assert "batch_normalization_1" not in [layer.name for layer in vision_half(loaded).layers]


def test_what_has_no_halves(small, tiny):
    image = create_network("vision", filters=NARROW)
    with pytest.raises(ParameterError, match="network 'sea64' is not audio-visual; avc, tiny_l3"):
        audio_half(tiny)
    with pytest.raises(ParameterError, match="network 'tiny_l3' has no half that is a network of"):
        vision_half(create_network("tiny_l3"))
    with pytest.raises(ParameterError, match="filters: the network has no weights of this shape"):
        audio_half(small, filters=[2] * 8)
    with pytest.raises(ParameterError, match="network 'vision' is no audio network"):
        join(image, tiny)
    with pytest.raises(ParameterError, match="network 'sea64' is no network of images"):
        join(tiny, tiny)
    short = create_network("sea64", include_layers=[1, 2, 3])
    with pytest.raises(ParameterError, match="has the convolutions conv_1, conv_2, conv_3; an aud"):
        join(short, image)
    with pytest.raises(ParameterError, match="like=tiny_l3 has other halves"):
        join(tiny, image, create_network("tiny_l3"))
    with pytest.raises(ParameterError, match="network 'sea64' is not audio-visual"):
        freeze_vision(tiny)
    with pytest.raises(ParameterError, match="'avc' is no audio network of the L3 family"):
        l3.front_end(small)


def test_half_of_a_configuration():
    arguments = {
        "audio": "mel128",
        "input": "log_mel",
        "front_end": "librosa",
        "vision_filters": [2] * 8,
        "weight_decay": 0.0,
        "fusion_units": 3,
        "input_batch_norm": [False, True],
    }
    config = NetworkConfig("avc", arguments)
    heard = {"input": "log_mel", "front_end": "librosa", "weight_decay": 0.0}
    assert avc.half(config, "audio") == NetworkConfig("mel128", heard)
    seen = {"weight_decay": 0.0, "filters": [2] * 8, "input_batch_norm": False}
    assert avc.half(config, "vision") == NetworkConfig("vision", seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", avc.NETWORKS)
def test_a_frozen_image_half_stays_as_it_is(name, pairs):
    network = make_small(name)
    freeze_vision(network)
    # Copies are frozen too.
    plan = plan_layerwise(graph.conv_weights(network), 0.3)
    network = surgery.apply_masks(network, PruningPlan({"conv_2": plan["conv_2"]}))
    assert {avc.part_of(weight.name) for weight in network.trainable_weights} == {"audio", "fusion"}
    before = {weight.name: weight.numpy() for weight in network.weights}
    network.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy")
    network.train_on_batch(list(pairs), np.eye(2, dtype=np.float32)[[0, 1, 1]])
    for weight in network.weights:
        same = np.array_equal(weight.numpy(), before[weight.name])
        assert same == (avc.part_of(weight.name) == "vision" or "mask" in weight.name), weight.name


# Embeddings.


@pytest.mark.slow
def test_embeddings_are_of_the_half_that_is_meant(small, saved, pairs):
    sound = pairs[1][0, 0]
    found, _ = get_embedding(sound, 48000, saved, center=False)
    expected, _ = get_embedding(sound, 48000, audio_half(small), center=False)
    np.testing.assert_array_equal(found, expected)
    long = load_model(saved, embedding_size=12 * NARROW[-1])
    assert long.output_shape == (None, 12 * NARROW[-1])
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    found, _ = get_image_embedding(picture, model=saved)
    expected, _ = get_image_embedding(picture, model=vision_half(small))
    np.testing.assert_array_equal(found, expected)


def test_embeddings_that_an_audio_visual_network_does_not_have(small, tmp_path):
    with pytest.raises(ParameterError, match="network 'avc' is no audio network of the L3 family"):
        get_embedding(np.ones(48000), 48000, small)
    with pytest.raises(ParameterError, match="network 'avc' is no network of images"):
        get_image_embedding(np.ones((224, 224, 3)), model=small)
    path = tmp_path / "tiny.h5"
    save_network(make_small("tiny_l3"), path)
    with pytest.raises(L3PruneError, match=r"tiny\.h5 holds the network tiny_l3, not audio"):
        get_embedding(np.ones(48000), 48000, path)


def test_the_embedding_command_takes_the_audio_half(saved, tmp_path, capsys):
    path, sound = tmp_path / "net.h5", tmp_path / "a.wav"
    soundfile.write(sound, np.random.default_rng(0).uniform(-0.5, 0.5, 48000), 48000)
    assert main([str(sound), "--model", str(saved)]) == 0
    with np.load(tmp_path / "a.npz") as file:
        assert file["embedding"].shape[1] == NARROW[-1]
    save_network(make_small("tiny_l3"), path)
    assert main([str(sound), "--model", str(path)]) == 2
    error = capsys.readouterr().err
    assert "holds the network tiny_l3, not audio" in error
    assert "Traceback" not in error
