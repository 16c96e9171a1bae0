"""The network of network slimming on FAT2019: counts, front end, pooling, head, pruning."""

import functools
import json
from pathlib import Path

import librosa
import numpy as np
import pytest
import tf_keras as keras

import l3prune
from l3prune import graph, surgery
from l3prune.complexity import layer_complexities
from l3prune.errors import L3PruneError, ParameterError
from l3prune.networks import create_network, inference, network_config
from l3prune.networks.fat2019 import SAMPLES, ByteLogMel, narrow
from l3prune.plan import PruningPlan
from l3prune.weights import load_network, save_network
from tests.cnn14_networks import weightless

CONFIGS = Path(l3prune.__file__).parent.parent / "configs" / "fat2019"
HALF = (32, 32, 64, 64, 128, 128, 256, 256)
PUBLISHED = (44, 29, 44, 47, 162, 96, 231, 306)


def small(**arguments):
    """A network of weights as training leaves them, on maps."""
    sizes = {"filters": [3, 4] * 4, "units": 5, "classes": 6, "input": "log_mel"}
    network = create_network("fat2019", **{**sizes, **arguments})
    rng = np.random.default_rng(3)
    for weight in network.weights:
        if "moving_variance" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif "alpha" not in weight.name:
            weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    return network


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(4)
    return np.floor(rng.uniform(0, 256, (2, 128, 128, 1))).astype(np.float32)


@functools.cache
def rows_of(filters=None, pooling="basic"):
    with weightless():
        return layer_complexities(create_network("fat2019", filters=filters, pooling=pooling))


@pytest.mark.parametrize(
    ("arguments", "trainable", "parameters", "macs", "thop_2019"),
    [
        ({}, 4_763_537, 4_767_633, 3_350_276_096, 3_371_487_536),
        ({"pooling": "poolrevised"}, 4_763_537, 4_767_633, 3_350_276_096, 3_373_945_136),
        ({"filters": HALF}, 1_216_689, 1_218_865, 844_670_976, 855_281_968),
        (
            {"filters": HALF, "pooling": "poolrevised"},
            *(1_216_689, 1_218_865, 844_670_976, 856_510_768),
        ),
        ({"filters": PUBLISHED}, 1_138_811, 1_140_985, 758_392_576, 768_927_664),
    ],
    ids=["basic", "poolrevised", "half", "half poolrevised", "published"],
)
def test_counts(arguments, trainable, parameters, macs, thop_2019):
    rows = rows_of(**arguments)
    assert sum(row.trainable for row in rows) == trainable
    assert sum(row.parameters for row in rows) == parameters
    assert sum(row.macs for row in rows) == macs
    assert sum(row.thop_2019 for row in rows) == thop_2019


def test_counts_by_kind_and_of_today():
    rows = rows_of()

    def of(kind, figure="thop_2019"):
        return sum(getattr(row, figure) for row in rows if row.kind == kind)

    assert of("Conv2D") == 3_350_200_320
    assert of("BatchNormalization") == 15_728_640 + 512
    assert of("ReLU") == 3_932_160
    assert of("AveragePooling2D") == 1_474_560
    assert of("Dense") == 151_344
    assert of("PReLU") == of("FunctionalMean") == of("GlobalMaxPooling2D") == 0
    assert of("PReLU", "trainable") == 1
    assert sum(row.thop for row in rows) == 3_366_496_768


def test_of_959_filters_a_network_can_have_the_published_figures():
    config = json.loads((CONFIGS / "published_widths.json").read_text())
    arguments = config["network_arguments"]
    assert sum(arguments["filters"]) == 959
    rows = rows_of(tuple(arguments["filters"]))
    assert round(sum(row.trainable for row in rows) / 1e6, 3) == 1.139
    assert round(sum(row.thop_2019 for row in rows) / 1e9, 2) == 0.77


def published_bytes(audio):
    """The published spectrograms, (frames, bands), of a whole clip, by librosa and in float32."""
    mel = librosa.feature.melspectrogram(
        y=audio,
        sr=44100,
        n_mels=128,
        n_fft=2560,
        hop_length=694,
        fmin=20,
        fmax=22050,
        pad_mode="reflect",
    )
    level = librosa.power_to_db(mel).astype(np.float32)
    level = level - level.mean()
    level = level / (level.std() + 1e-6)
    lowest, highest = level.min(), level.max()
    return (255 * (level - lowest) / (highest - lowest)).astype(np.uint8).T


@pytest.mark.parametrize("samples", [SAMPLES, 200_001])
def test_the_front_end_is_the_published_one(samples):
    rng = np.random.default_rng(5)
    loud = np.sin(np.arange(samples) * 0.05) * np.linspace(0, 0.5, samples)
    audio = (loud + 0.001 * rng.normal(size=samples)).astype(np.float32)
    wanted = published_bytes(audio)
    found = ByteLogMel()(audio[None, None])[0, :, :, 0].numpy()
    assert found.shape == wanted.shape == (1 + samples // 694, 128)
    assert found.min() == 0
    assert found.max() in (254, 255)
    assert np.array_equal(found, np.floor(found))
    # Rounding before the truncation differs in few places, by one.
    difference = np.abs(found - wanted)
    assert difference.max() <= 1
    assert difference.mean() < 0.001


def test_each_clip_of_a_batch_has_its_own_range_and_silence_is_zeros():
    rng = np.random.default_rng(6)
    clips = rng.normal(size=(3, 1, SAMPLES)).astype(np.float32) * np.float32(
        [[[1]], [[0.01]], [[0]]]
    )
    maps = ByteLogMel()(clips).numpy()
    # 255 times a span, divided by it, can be just below 255 in float32.
    assert maps.max(axis=(1, 2, 3)).tolist() in ([a, b, 0] for a in (254, 255) for b in (254, 255))
    alone = ByteLogMel()(clips[1:2]).numpy()
    assert np.abs(maps[1] - alone[0]).max() <= 1


def by_hand(network, maps, pooling):
    """What a network says of one segment, (frames, bands, 1), in float64."""
    values = np.repeat(maps.astype(np.float64), 3, axis=-1)

    def weight(layer, name):
        found = {surgery.short_name(w): w.numpy() for w in network.get_layer(layer).weights}
        return found[name].astype(np.float64)

    def normed(values, layer):
        scale = weight(layer, "gamma") / np.sqrt(weight(layer, "moving_variance") + 1e-5)
        return (values - weight(layer, "moving_mean")) * scale + weight(layer, "beta")

    for number in range(1, 9):
        kernel = weight(f"conv_{number}", "kernel")
        padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
        rows, columns = values.shape[:2]
        values = sum(
            padded[i : i + rows, j : j + columns] @ kernel[i, j] for i in range(3) for j in range(3)
        )
        values = np.maximum(normed(values, f"batch_normalization_{number}"), 0)
        if number % 2 == 0:
            time = (values[::2] + values[1::2]) / 2
            first, second = time[:, ::2], time[:, 1::2]
            values = (first + second) / 2 if pooling == "basic" else np.maximum(first, second)
    values = values.mean(axis=1).max(axis=0)  # bands, then time
    values = values @ weight("fc_1", "kernel") + weight("fc_1", "bias")
    values = np.where(values > 0, values, 0.25 * values)
    values = normed(values, "batch_normalization_fc")
    return values @ weight("logits", "kernel") + weight("logits", "bias")


@pytest.mark.parametrize("pooling", ["basic", "poolrevised"])
def test_logits_by_hand(pooling, picture):
    network = small(pooling=pooling)
    wanted = by_hand(network, picture[0], pooling)
    np.testing.assert_allclose(inference(network)(picture[:1])[0], wanted, rtol=1e-3, atol=1e-3)


def test_a_waveform_gives_what_its_picture_gives():
    network = small(input="waveform")
    audio = np.random.default_rng(7).normal(0, 0.1, (1, 1, SAMPLES)).astype(np.float32)
    behind = surgery.behind_front_end(network)
    np.testing.assert_allclose(
        inference(network)(audio), inference(behind)(ByteLogMel()(audio).numpy()), rtol=1e-5
    )


def test_convolutions_begin_as_kaiming_has_them():
    keras.utils.set_random_seed(8)
    network = create_network("fat2019", filters=[16, 64, *[1] * 6])
    kernel = network.get_layer("conv_2").kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.05)
    # Not truncated at two deviations.
    assert np.abs(kernel).max() > 3 * kernel.std()


@pytest.mark.parametrize("pooling", ["basic", "poolrevised"])
def test_filters_of_zero_scale_and_shift_can_go_without_a_change(pooling, picture):
    network = small(pooling=pooling)
    rng = np.random.default_rng(9)
    plan = {}
    for number in range(1, 9):
        mask = rng.permutation(network.get_layer(f"conv_{number}").filters) > 0
        norm = network.get_layer(f"batch_normalization_{number}")
        for weight in (norm.gamma, norm.beta):
            weight.assign(np.where(mask, weight.numpy(), 0))
        plan[f"conv_{number}"] = mask
    smaller = surgery.remove_filters(network, PruningPlan(plan))
    assert network_config(smaller).arguments["filters"] == [2, 3] * 4
    before, after = inference(network)(picture), inference(smaller)(picture)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    # Statistics, slope and head are those of the network before.
    for name in ("prelu", "batch_normalization_fc", "logits"):
        for old, new in zip(
            network.get_layer(name).weights, smaller.get_layer(name).weights, strict=True
        ):
            np.testing.assert_array_equal(old.numpy(), new.numpy())
    kept = network.get_layer("batch_normalization_8").moving_mean.numpy()[plan["conv_8"]]
    found = smaller.get_layer("batch_normalization_8").moving_mean.numpy()
    np.testing.assert_array_equal(found, kept)


def test_units_of_the_head_can_go_too(picture):
    network = small()
    keep = np.array([True, False, True, True, False])
    smaller = surgery.remove_filters(network, PruningPlan({"fc_1": keep}))
    assert network_config(smaller).arguments["units"] == 3
    network.get_layer("logits").kernel.assign(
        np.where(keep[:, None], network.get_layer("logits").kernel.numpy(), 0)
    )
    np.testing.assert_allclose(
        inference(smaller)(picture), inference(network)(picture), rtol=1e-4, atol=1e-5
    )


def test_saved_pruned_and_refused(tmp_path):
    network = small()
    path = tmp_path / "net.h5"
    save_network(network, path)
    again = load_network(path)
    assert graph.conv_weights(again).keys() == graph.conv_weights(network).keys()
    assert float(again.get_layer("prelu").alpha.numpy()[0]) == 0.25
    import h5py

    with h5py.File(path, "r+") as file:
        said = json.loads(file.attrs["l3prune"])
        said["arguments"]["filters"][0] = 7
        file.attrs["l3prune"] = json.dumps(said)
    with pytest.raises(L3PruneError, match=r"claims layers of \(7, 4, .* and holds \(3, 4"):
        load_network(path)


def test_a_file_of_others_with_a_slope_is_no_l3_network(tmp_path):
    import h5py

    path = tmp_path / "net.h5"
    save_network(small(), path)
    with h5py.File(path, "r+") as file:
        del file.attrs["l3prune"]
    with pytest.raises(L3PruneError, match="layer prelu has the slope of a PReLU; no L3"):
        load_network(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "max"}, "pooling='max'; allowed: 'basic', 'poolrevised'"),
        ({"input": "mp3"}, "input='mp3'; allowed"),
        ({"filters": [1] * 7}, "give 8 whole numbers"),
        ({"units": 0}, "units=0"),
        ({"classes": 0}, "classes=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ParameterError, match=message):
        create_network("fat2019", **arguments)


def test_narrow():
    assert narrow(4) == [16, 16, 32, 32, 64, 64, 128, 128]
    with pytest.raises(ParameterError, match="divisor=65"):
        narrow(65)
