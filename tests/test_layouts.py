"""Every published layout of weight files, written by plain tf_keras as its package wrote it.

The networks here are built from Keras layers alone, so that what l3prune loads is compared with
the network that wrote the file.
"""

import gzip
import itertools
import random

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from l3prune.audio import FORMS
from l3prune.errors import L3PruneError
from l3prune.networks import inference, l3, network_config
from l3prune.weights import load_network

WIDE = (64, 64, 128, 128, 256, 256, 512, 512)
SEA64 = (32, 32, 64, 64, 128, 128, 64, 64)
NARROW = (4, 6, 8, 6, 4, 8, 6, 8)

#: (n_dft, bands) of each network's front end; bands None: linear.
CONSTANTS = {"mel256": (2048, 256), "mel128": (2048, 128), "linear": (512, None), "sea": (1024, 64)}
MAPS = {"mel256": (256, 199), "mel128": (128, 199), "linear": (257, 197), "sea": (64, 50)}


class Spectrogram(layers.Layer):
    """A front end that, like kapre's, keeps its constants as weights; it computes nothing."""

    def __init__(self, n_dft, bands, **kwargs):
        super().__init__(**kwargs)
        self.n_dft, self.bands = n_dft, bands

    def build(self, input_shape):
        bins = self.n_dft // 2 + 1
        for name in ("real_kernels", "imag_kernels"):
            self.add_weight(name=name, shape=(self.n_dft, 1, 1, bins), trainable=False)
        if self.bands:
            self.add_weight(name="Variable", shape=(bins, self.bands), trainable=False)

    def call(self, inputs):
        return inputs


def audio_network(kind, filters=WIDE, *, front_end=True, input_bn=True, last_bn=False, prefix=""):
    """log-mel -> embedding maps, as L3-Net's authors build it; names are Keras's, with a prefix."""
    inputs = maps = keras.Input((*MAPS[kind], 1))
    if front_end:
        name = f"{prefix}melspectrogram_1" if CONSTANTS[kind][1] else f"{prefix}spectrogram_1"
        maps = Spectrogram(*CONSTANTS[kind], name=name)(maps)
    if input_bn:
        maps = layers.BatchNormalization()(maps)
    for number, count in enumerate(filters, start=1):
        name = "audio_embedding_layer" if number == 8 else None
        maps = layers.Conv2D(count, 3, padding="same", name=name)(maps)
        if number < 8 or last_bn:
            maps = layers.Activation("relu")(layers.BatchNormalization()(maps))
        if number in (2, 4, 6):
            maps = layers.MaxPooling2D(2)(maps)
    return shake(keras.Model(inputs, maps, name="audio_model"))


def vision_network(filters=WIDE, *, input_bn=True, last_bn=False):
    inputs = maps = keras.Input((224, 224, 3))
    if input_bn:
        maps = layers.BatchNormalization()(maps)
    for number, count in enumerate(filters, start=1):
        name = "vision_embedding_layer" if number == 8 else None
        maps = layers.Conv2D(count, 3, padding="same", name=name)(maps)
        after = [layers.BatchNormalization(), layers.Activation("relu")]
        if number < 8 or last_bn:
            for layer in after[::-1] if number == 2 else after:
                maps = layer(maps)
        if number in (2, 4, 6):
            maps = layers.MaxPooling2D(2, padding="same")(maps)
    return shake(keras.Model(inputs, maps, name="vision_model"))


def av_network(vision, audio, units=128):
    """The audio-visual network: both halves nested, pooled, joined by two dense layers."""
    halves = []
    for network, pool in ((vision, (28, 28)), (audio, audio.output_shape[1:3])):
        end = layers.MaxPooling2D(pool, padding="same")(network.output)
        halves.append(keras.Model(network.input, layers.Flatten()(end), name=network.name))
    inputs = [keras.Input(half.input_shape[1:]) for half in halves]
    joined = layers.concatenate([half(x) for half, x in zip(halves, inputs, strict=True)])
    hidden = layers.Dense(units, activation="relu")(joined)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(hidden), name="cnn_L3_orig")


def tiny_network(inputs, name):
    """One half of the network with which the authors try out their training."""
    maps = inputs
    if name == "audio_model":
        maps = Spectrogram(512, None, name="spectrogram_1")(maps)
    for _ in range(3):
        maps = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(10, 5)(maps)))
        maps = layers.MaxPooling2D(3, strides=3)(maps)
    return shake(keras.Model(inputs, layers.Flatten(name="embedding")(maps), name=name))


def shake(network):
    """Weights and statistics that are all different, with outputs of a sane size."""
    rng = np.random.default_rng(1)
    for weight in network.weights:
        shape = tuple(weight.shape)
        if "kernel:" in weight.name:
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape))
        elif "moving_mean" in weight.name or "beta" in weight.name or "bias" in weight.name:
            weight.assign(rng.normal(0, 0.1, shape))
        elif "moving_variance" in weight.name or "gamma" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, shape))
    return network


def pooled(network, maps, pool, after=None):
    """The embedding of the plain network: its maps max-pooled and flattened."""
    out = network(maps, training=False)
    if after is not None:
        out = after(out)
    return layers.Flatten()(layers.MaxPooling2D(pool, padding="same")(out)).numpy()


def log_mels(kind, count=1):
    return np.random.default_rng(4).uniform(-80, 0, (count, *MAPS[kind], 1)).astype(np.float32)


def check_audio(path, plain, kind, name, pool=None, wanted=None, **arguments):
    """What l3prune loads from `path` is `name`, and computes what `plain` does."""
    loaded = load_network(path, wanted, input="log_mel", **arguments)
    assert loaded.name == name
    maps = log_mels(kind)
    rows, columns = MAPS[kind][0] // 8, MAPS[kind][1] // 8
    expected = pooled(plain, maps, pool or (rows, columns))
    assert expected.std() > 0.1
    np.testing.assert_allclose(inference(loaded)(maps), expected, rtol=1e-6, atol=1e-6)
    return loaded


def check_whole(path, plain, kind="mel256", name="avc", **arguments):
    """What l3prune loads from `path` computes what the whole audio-visual network does."""
    loaded = load_network(path, name, input="log_mel", **arguments)
    assert loaded.name == name
    image = np.random.default_rng(0).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    sound = log_mels(kind, 2)
    expected = keras.Model(plain.inputs, plain.layers[-2].output)([image, sound]).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    hidden = keras.Model(loaded.inputs, loaded.get_layer("fusion_dense_1").output)
    found = inference(hidden)(image, sound)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    # The probabilities themselves are 0 and 1 here.
    last = zip(loaded.layers[-1].get_weights(), plain.layers[-1].get_weights(), strict=True)
    for one, other in last:
        np.testing.assert_array_equal(one, other)
    return network_config(loaded).arguments


@pytest.fixture(params=["h5", "gz"])
def finish(request):
    """Leaves a file as it is, or gzips it as the packages' download folders do."""

    def pack(path):
        if request.param == "h5":
            return path
        packed = path.with_suffix(".h5.gz")
        packed.write_bytes(gzip.compress(path.read_bytes(), 1))
        return packed

    return pack


# OpenL3 and EdgeL3: one group a layer.


@pytest.mark.parametrize("kind", ["mel256", "mel128", "linear"])
def test_openl3_up_to_0_3_has_17_weighted_layers(kind, tmp_path, finish):
    plain = audio_network(kind)
    assert sum(bool(layer.weights) for layer in plain.layers) == 17
    path = tmp_path / "anything.h5"
    plain.save_weights(path)
    loaded = check_audio(finish(path), plain, kind, kind)
    assert network_config(loaded).arguments.get("front_end", FORMS[0]) == "kapre-0.1"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mel256", "mel128", "linear"])
def test_openl3_0_4_has_16_and_its_name_says_which(kind, tmp_path, finish):
    plain = audio_network(kind, front_end=False)
    assert sum(bool(layer.weights) for layer in plain.layers) == 16
    path = tmp_path / f"openl3_audio_{kind}_music-v0_4_0.h5"
    plain.save_weights(path)
    loaded = check_audio(finish(path), plain, kind, kind)
    assert network_config(loaded).arguments["front_end"] == "kapre-0.3"
    explicit = load_network(finish(path), front_end="librosa")
    assert network_config(explicit).arguments["front_end"] == "librosa"


def test_openl3_0_4_under_another_name_must_be_told(tmp_path):
    plain = audio_network("mel128", front_end=False)
    path = tmp_path / "mine.h5"
    plain.save_weights(path)
    with pytest.raises(L3PruneError, match="fits mel256, mel128, linear, sea512, which differ in"):
        load_network(path)
    loaded = check_audio(path, plain, "mel128", "mel128", wanted="mel128")
    assert network_config(loaded).arguments["front_end"] == "kapre-0.3"


@pytest.mark.parametrize(("size", "pool"), [(6144, (8, 8)), (512, (32, 24))])
def test_embedding_sizes_of_openl3(size, pool, tmp_path):
    plain = audio_network("mel256")
    path = tmp_path / "net.h5"
    plain.save_weights(path)
    check_audio(path, plain, "mel256", "mel256", pool, embedding_size=size)


@pytest.mark.slow
@pytest.mark.parametrize("input_bn", [True, False])
@pytest.mark.parametrize(("size", "pool"), [(8192, (7, 7)), (512, (28, 28))])
def test_image_networks(input_bn, size, pool, tmp_path, finish):
    plain = vision_network(input_bn=input_bn)
    path = tmp_path / "net.h5"
    plain.save_weights(path)
    loaded = load_network(finish(path), embedding_size=size)
    assert loaded.name == "vision"
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    expected = pooled(plain, image, pool)
    np.testing.assert_allclose(inference(loaded)(image), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["save", "save_weights"])
def test_edgel3_sparse_and_sea(whole, tmp_path, finish):
    for kind, filters, name, last_bn in (
        ("mel256", WIDE, "mel256", False),
        ("sea", SEA64, "sea64", True),
    ):
        plain = audio_network(kind, filters, last_bn=last_bn)
        path = tmp_path / f"{name}.h5"
        (plain.save if whole else plain.save_weights)(path)
        loaded = check_audio(finish(path), plain, kind, name)
        assert sum(bool(layer.weights) for layer in loaded.layers) == 16 + last_bn


def test_sparse_kernels_keep_their_zeros(tmp_path):
    plain = audio_network("sea", SEA64, last_bn=True)
    kernel = plain.get_layer("audio_embedding_layer").kernel
    mask = np.random.default_rng(0).random(kernel.shape) > 0.9
    kernel.assign(kernel * mask)
    plain.save_weights(tmp_path / "net.h5")
    loaded = load_network(tmp_path / "net.h5").get_layer("audio_embedding_layer").kernel.numpy()
    np.testing.assert_array_equal(loaded, kernel.numpy())
    np.testing.assert_array_equal(loaded != 0, mask)


def test_a_network_pruned_filterwise_has_its_own_widths(tmp_path):
    plain = audio_network("mel128", NARROW)
    path = tmp_path / "net.h5"
    plain.save_weights(path)
    loaded = check_audio(path, plain, "mel128", "mel128")
    assert network_config(loaded).arguments["filters"] == list(NARROW)


@pytest.mark.parametrize("seed", range(3))
def test_layer_names_mean_nothing(seed, tmp_path):
    plain = audio_network("sea", SEA64, last_bn=True)
    path = tmp_path / "net.h5"
    plain.save_weights(path)
    rename(path, seed)
    check_audio(path, plain, "sea", "sea64")


def rename(path, seed):
    """Give every layer of a save_weights file another name, most of them misleading."""
    names = [f"{word}_{i}" for word in ("conv2d", "batch_normalization", "z") for i in range(30)]
    random.Random(seed).shuffle(names)
    with h5py.File(path, "a") as file:
        listed = list(file.attrs["layer_names"])
        stored = [
            [(weight.split("/")[-1], file[name][weight][()]) for weight in weights]
            for name in listed
            for weights in [file[name].attrs["weight_names"]]
        ]
        for name in listed:
            del file[name]
        for name, weights in zip(names, stored, strict=False):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{short}".encode() for short, _ in weights]
            for short, array in weights:
                group[f"{name}/{short}"] = array
        file.attrs["layer_names"] = [name.encode() for name in names[: len(listed)]]


# L3-Net's audio-visual files.


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [None, "vision_model", "audio_model"])
@pytest.mark.parametrize("whole", [True, False], ids=["save", "save_weights"])
def test_audio_visual_file(frozen, whole, tmp_path):
    """Both halves nested: trainable weights first, so a frozen half is stored in another order."""
    vision = vision_network(NARROW, last_bn=True)
    audio = audio_network("mel256", NARROW, last_bn=True)
    both = av_network(vision, audio)
    if frozen:
        both.get_layer(frozen).trainable = False
    path = tmp_path / "model_best_valid_accuracy.h5"
    (both.save if whole else both.save_weights)(path)
    # The embedding is conv 8's output, before the BatchNorm and ReLU that the file has, too.
    raw = keras.Model(audio.input, audio.get_layer("audio_embedding_layer").output)
    check_audio(path, raw, "mel256", "mel256")
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    seen = load_network(path, "vision", embedding_size=8, embedding_point="activated")
    np.testing.assert_allclose(inference(seen)(image), pooled(vision, image, (28, 28)), atol=1e-6)
    assert check_whole(path, both) == {
        "audio": "mel256",
        "audio_filters": list(NARROW),
        "vision_filters": list(NARROW),
        "input": "log_mel",
    }


@pytest.mark.slow
def test_mel128_and_images_without_input_batch_norm(tmp_path):
    """L3-Net's own mel128 network and the image network beside it."""
    vision = vision_network(input_bn=False, last_bn=True)
    audio = audio_network("mel128", NARROW, input_bn=False, last_bn=True)
    path = tmp_path / "net.h5"
    both = av_network(vision, audio)
    both.save_weights(path)
    raw = keras.Model(audio.input, audio.get_layer("audio_embedding_layer").output)
    loaded = check_audio(path, raw, "mel128", "mel128")
    assert network_config(loaded).arguments["input_batch_norm"] is False
    assert network_config(load_network(path, "vision")).arguments["input_batch_norm"] is False
    # As the authors have it, which needs no argument.
    assert check_whole(path, both, "mel128") == {
        "audio": "mel128",
        "audio_filters": list(NARROW),
        "input": "log_mel",
    }


@pytest.mark.slow
@pytest.mark.parametrize("norms", [[True, False], [False, True], [True, True]])
def test_other_input_batch_norms(norms, tmp_path):
    vision = vision_network(NARROW, input_bn=norms[0], last_bn=True)
    audio = audio_network("mel128", NARROW, input_bn=norms[1], last_bn=True)
    both = av_network(vision, audio)
    path = tmp_path / "net.h5"
    both.save_weights(path)
    assert check_whole(path, both, "mel128")["input_batch_norm"] == norms


def test_the_tiny_audio_visual_network(tmp_path):
    halves = [
        tiny_network(keras.Input((224, 224, 3)), "vision_model"),
        tiny_network(keras.Input((257, 198, 1)), "audio_model"),
    ]
    inputs = [keras.Input(half.input_shape[1:]) for half in halves]
    joined = layers.concatenate([half(x) for half, x in zip(halves, inputs, strict=True)])
    hidden = layers.Dense(64, activation="relu")(joined)
    both = keras.Model(inputs, layers.Dense(2, activation="softmax")(hidden))
    path = tmp_path / "net.h5"
    both.save_weights(path)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    sound = np.random.default_rng(0).uniform(-80, 0, (2, 257, 198, 1)).astype(np.float32)
    loaded = load_network(path, "tiny_l3", input="log_mel")
    assert network_config(loaded).arguments == {"input": "log_mel"}
    inside = keras.Model(both.inputs, hidden)([image, sound]).numpy()
    dense = keras.Model(loaded.inputs, loaded.get_layer("fusion_dense_1").output)
    np.testing.assert_allclose(inference(dense)(image, sound), inside, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        inference(loaded)(image, sound), both([image, sound]).numpy(), atol=1e-4
    )
    with pytest.raises(L3PruneError, match=r"its convolutions have \[10, 10, 10\] filters"):
        load_network(path, "avc")


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [None, "vision_model"])
def test_multi_gpu_file_has_all_weights_in_one_group(frozen, tmp_path):
    """The wrapper for several GPUs holds the whole audio-visual network as one layer."""
    vision = vision_network(last_bn=True)
    audio = audio_network("mel256", NARROW, last_bn=True)
    both = av_network(vision, audio)
    if frozen:
        both.get_layer(frozen).trainable = False
    inputs = [keras.Input(shape[1:]) for shape in both.input_shape]
    replicas = [both([layers.Lambda(lambda x: x)(x) for x in inputs]) for _ in range(4)]
    wrapper = keras.Model(inputs, layers.Concatenate(axis=0)(replicas))
    path = tmp_path / "multiGPU.h5"
    wrapper.save_weights(path)
    with h5py.File(path) as file:
        groups = [name for name in file.attrs["layer_names"] if len(file[name])]
        assert groups == ["cnn_L3_orig"]
    check_whole(path, both)
    raw = keras.Model(audio.input, audio.get_layer("audio_embedding_layer").output)
    check_audio(path, raw, "mel256", "mel256")
    raw = keras.Model(vision.input, vision.get_layer("vision_embedding_layer").output)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    np.testing.assert_allclose(
        inference(load_network(path, "vision"))(image),
        pooled(raw, image, (7, 7)),
        rtol=1e-6,
        atol=1e-6,
    )


def test_names_with_the_half_in_front(tmp_path):
    """As Keras 2.0.9 addresses them, `audio_model/conv2d_1/kernel:0`, the same in both halves."""
    plain = audio_network("sea", SEA64, last_bn=True)
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"vision_model", b"audio_model"]
        for half, network in (
            ("vision_model", vision_network(NARROW, last_bn=True)),
            ("audio_model", plain),
        ):
            group = file.create_group(half)
            names = []
            counts = dict.fromkeys(("conv2d", "batch_normalization", "spectrogram"), 0)
            ordered = []
            for layer in network.layers:
                if not layer.weights:
                    continue
                kind = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization"}.get(
                    type(layer).__name__, "spectrogram"
                )
                counts[kind] += 1
                ordered += [(f"{half}/{kind}_{counts[kind]}", weight) for weight in layer.weights]
            trainable = {id(weight) for weight in network.trainable_weights}
            for name, weight in sorted(ordered, key=lambda pair: id(pair[1]) not in trainable):
                names.append(f"{name}/{weight.name.split('/')[-1]}")
                group[names[-1]] = weight.numpy()
            group.attrs["weight_names"] = [name.encode() for name in names]
    check_audio(path, plain, "sea", "sea64")


def test_a_name_that_the_files_own_front_end_contradicts(tmp_path):
    path = tmp_path / "net.h5"
    audio_network("mel256").save_weights(path)
    for wrong in ("linear", "mel128", "sea512"):
        with pytest.raises(L3PruneError, match=f"constants of another front end than {wrong}'s"):
            load_network(path, wrong)
    assert load_network(path, "mel256").name == "mel256"


def test_the_first_l3_network_is_refused(tmp_path):
    """cnn_L3_orig: linear without a BatchNorm in front, log(x) / 5 instead of decibels."""
    path = tmp_path / "net.h5"
    audio_network("linear", NARROW, input_bn=False, last_bn=True).save_weights(path)
    with pytest.raises(L3PruneError, match="no BatchNorm in front, as L3-Net's first network"):
        load_network(path)


@pytest.mark.parametrize("whole", [True, False])
def test_edgel3s_files_without_constants_have_the_front_end_of_its_training(whole, tmp_path):
    plain = audio_network("mel256", front_end=False)
    name = "mine.h5" if whole else "edgel3_ft_audio_sparsity_95.45.h5"
    (plain.save if whole else plain.save_weights)(tmp_path / name)
    loaded = load_network(tmp_path / name, "mel256" if whole else None)
    assert l3.front_end(loaded).form == "kapre-0.1"


def test_the_order_of_a_layers_weights_is_free(tmp_path):
    plain = audio_network("sea", SEA64, last_bn=True)
    path = tmp_path / "net.h5"
    plain.save_weights(path)
    with h5py.File(path, "a") as file:
        for name in file.attrs["layer_names"]:
            names = list(file[name].attrs["weight_names"])
            file[name].attrs["weight_names"] = sorted(names, reverse=name.startswith("conv"))
    check_audio(path, plain, "sea", "sea64")


def test_batch_norms_that_are_no_vectors(tmp_path):
    path = tmp_path / "net.h5"
    audio_network("sea", SEA64, last_bn=True).save_weights(path)
    with h5py.File(path, "a") as file:
        name = next(n for n in file.attrs["layer_names"] if n.startswith("batch"))
        weight = file[name].attrs["weight_names"][0]
        del file[name][weight]
        file[name][weight] = np.float32(1)
    with pytest.raises(L3PruneError, match="has weights that are no vectors"):
        load_network(path)


def test_halves_that_are_not_there(tmp_path):
    path = tmp_path / "net.h5"
    audio_network("sea", SEA64, last_bn=True).save_weights(path)
    with pytest.raises(L3PruneError, match=r"net\.h5 holds no vision network, only audio"):
        load_network(path, "vision")
    vision_network(NARROW).save_weights(path)
    with pytest.raises(L3PruneError, match="holds no audio network, only vision"):
        load_network(path, "mel256")


def test_layers_that_do_not_follow_from_each_other(tmp_path):
    path = tmp_path / "net.h5"
    audio_network("sea", SEA64, last_bn=True).save_weights(path)
    with h5py.File(path, "a") as file:
        names = list(file.attrs["layer_names"])
        # As a tool that walks a file alphabetically lists them.
        file.attrs["layer_names"] = sorted(names)
    with pytest.raises(
        L3PruneError,
        match=r"layer audio_embedding_layer takes 64 channels where a network starts; these are "
        "not the weights of an L3 network in their order",
    ):
        load_network(path)


def test_seven_convolutions(tmp_path):
    inputs = maps = keras.Input((64, 50, 1))
    for count in NARROW[:7]:
        maps = layers.Conv2D(count, 3)(maps)
    keras.Model(inputs, maps).save_weights(tmp_path / "net.h5")
    with pytest.raises(L3PruneError, match=r"its convolutions have \[4, 6, 8, 6, 4, 8, 6\] filter"):
        load_network(tmp_path / "net.h5")


def test_a_file_of_another_kind_of_layer(tmp_path):
    inputs = keras.Input((16, 4))
    keras.Model(inputs, layers.Conv1D(4, 3)(inputs)).save_weights(tmp_path / "net.h5")
    with pytest.raises(L3PruneError, match="an L3 network has 2-D convolutions and batch norm"):
        load_network(tmp_path / "net.h5")


@pytest.mark.slow
@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[:3])
def test_order_of_the_halves_is_free(order, tmp_path):
    """Vision first, audio first, the dense layers in front."""
    audio, vision = audio_network("sea", SEA64, last_bn=True), vision_network(NARROW, last_bn=True)
    both = av_network(vision, audio)
    path = tmp_path / "net.h5"
    both.save_weights(path)
    with h5py.File(path, "a") as file:
        names = list(file.attrs["layer_names"])
        parts = [
            ["vision_model"],
            ["audio_model"],
            [name for name in names if not name.endswith("_model")],
        ]
        file.attrs["layer_names"] = [name for index in order for name in parts[index]]
    check_audio(path, audio, "sea", "sea64")
    check_whole(path, both, "sea")


# Audio-visual files that hold something else.


@pytest.fixture
def audio_visual(tmp_path):
    """A file with an audio-visual network, and this."""
    both = av_network(
        vision_network(NARROW, last_bn=True), audio_network("mel256", NARROW, last_bn=True)
    )
    both.save_weights(tmp_path / "net.h5")
    return tmp_path / "net.h5", both


def test_whole_networks_that_are_not_there(tmp_path):
    path = tmp_path / "net.h5"
    audio = audio_network("mel256", NARROW, last_bn=True)
    audio.save_weights(path)
    with pytest.raises(L3PruneError, match="holds no vision and no fusion part, which avc has"):
        load_network(path, "avc")
    vision = vision_network(NARROW, last_bn=True)
    inputs = [keras.Input(half.input_shape[1:]) for half in (vision, audio)]
    keras.Model(inputs, [vision(inputs[0]), audio(inputs[1])]).save_weights(path)
    with pytest.raises(L3PruneError, match="holds no fusion part, which avc has"):
        load_network(path, "avc")
    assert load_network(path).name == "mel256"
    assert load_network(path, "audio").name == "mel256"


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([2], r"dense layers of \(2,\) units; avc has two, one of 2"),
        ([128, 3], r"dense layers of \(128, 3\) units"),
        ([2, 128], r"dense layers of \(2, 128\) units"),
        ([8, 8, 2], r"dense layers of \(8, 8, 2\) units"),
        ([5000, 2], "fusion_units=5000 is not a whole number in 1 … 4096"),
    ],
)
def test_other_dense_layers(units, message, tmp_path):
    halves = [vision_network(NARROW, last_bn=True), audio_network("mel256", NARROW, last_bn=True)]
    inputs = [keras.Input(half.input_shape[1:]) for half in halves]
    maps = [layers.GlobalMaxPooling2D()(half(x)) for half, x in zip(halves, inputs, strict=True)]
    maps = layers.concatenate(maps)
    for count in units:
        maps = layers.Dense(count)(maps)
    keras.Model(inputs, maps).save_weights(tmp_path / "net.h5")
    with pytest.raises(L3PruneError, match=message):
        load_network(tmp_path / "net.h5", "avc")
    assert load_network(tmp_path / "net.h5").name == "mel256"


def test_fusions_of_other_widths(tmp_path):
    halves = [vision_network(NARROW, last_bn=True), audio_network("mel256", NARROW, last_bn=True)]
    both = av_network(*halves, units=9)
    both.save_weights(tmp_path / "net.h5")
    assert check_whole(tmp_path / "net.h5", both)["fusion_units"] == 9


@pytest.mark.parametrize(
    ("half", "weight", "shape", "message"),
    [
        ("dense", "kernel", (9, 128), r"has shape \(9, 128\) where fusion_dense_1 of avc has"),
        ("audio_model", "audio_embedding_layer/bias", (9,), r"shape \(9,\) where audio_embedding_"),
        ("vision_model", "vision_embedding_layer/kernel", (3, 3, 9, 8), "takes 9 channels where 6"),
        ("vision_model", "vision_embedding_layer/kernel", (1, 3, 6, 8), r"shape \(1, 3, 6, 8\)"),
        ("vision_model", "vision_embedding_layer/kernel", (0, 3, 6, 8), r"shape \(0, 3, 6, 8\)"),
    ],
)
def test_arrays_of_other_shapes(half, weight, shape, message, audio_visual):
    path, _ = audio_visual
    with h5py.File(path, "a") as file:
        group = next(file[name] for name in file.attrs["layer_names"] if name.startswith(half))
        name = next(name for name in group.attrs["weight_names"] if weight in name)
        del group[name]
        group[name] = np.ones(shape, np.float32)
    with pytest.raises(L3PruneError, match=message):
        load_network(path, "avc")


def test_the_audio_network_of_a_whole_is_told_where_the_file_does_not(tmp_path, audio_visual):
    path, _ = audio_visual
    with pytest.raises(L3PruneError, match="constants of another front end than mel128's"):
        load_network(path, "avc", audio="mel128")
    with pytest.raises(L3PruneError, match="audio='mel512'; allowed: mel256"):
        load_network(path, "avc", audio="mel512")
    audio = audio_network("mel128", NARROW, front_end=False, last_bn=True)
    both = av_network(vision_network(NARROW, last_bn=True), audio)
    both.save_weights(path)
    with pytest.raises(L3PruneError, match="holds no known network: its convolutions have"):
        load_network(path, "avc")
    assert check_whole(path, both, "mel128", audio="mel128")["input_batch_norm"] == [True, True]


def test_the_first_audio_visual_network_is_refused(tmp_path):
    audio = audio_network("linear", NARROW, input_bn=False, last_bn=True)
    vision = vision_network(NARROW, input_bn=False, last_bn=True)
    av_network(vision, audio).save_weights(tmp_path / "net.h5")
    with pytest.raises(L3PruneError, match="no BatchNorm in front, as L3-Net's first network"):
        load_network(tmp_path / "net.h5", "avc")


def teardown_module():
    tf.keras.backend.clear_session()
