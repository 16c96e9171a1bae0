"""float16, int8 and clustered networks: what is zero stays zero, in every form of a network."""

import dataclasses
import warnings

import numpy as np
import pytest
import tf_keras as keras

from l3prune import graph, litert, plan, surgery
from l3prune.checkpoints import BEST, LATEST
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import read_json
from l3prune.layers import MaskedConv2D
from l3prune.networks import create_network, inference
from l3prune.quantization import (
    Quantized,
    count_zeros,
    integers,
    measure_ranges,
    quantize,
    split,
    to_float16,
    to_litert,
)
from l3prune.quantize import main
from l3prune.quantized_training import (
    cluster,
    clustering,
    distill_clustered,
    distill_quantized,
    quantizing,
)
from l3prune.recipes import Recipe
from l3prune.sparse import SparseModel, load_program
from l3prune.sparse.convert import program_of
from l3prune.weights import load_network, read_attachment, save_network
from tests.conftest import make_sounds, make_tiny

RECIPE = Recipe(epochs=2, learning_rate=1e-2, checkpoint_interval=0, batch_norm="keep")


def pruned(sparsity=0.7):
    """The tiny network, the first layer dense, as EdgeL3 has it; some signs of BatchNorm turned."""
    network = make_tiny()
    weights = graph.conv_weights(network)
    del weights["conv_1"]
    masked = surgery.apply_masks(network, plan.plan_global(weights, sparsity))
    for layer in masked.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and layer.gamma.shape[0] > 1:
            layer.gamma.assign(layer.gamma * np.float32([1, -1, 1, -1]))
    return masked


def windows(count=8, seed=0):
    rng = np.random.default_rng(seed)
    loudness = np.logspace(-2, 0, count)[:, None, None]
    return (rng.uniform(-1, 1, (count, 1, 8000)) * loudness).astype(np.float32)


def packed_kernels(network, folder):
    """Kernels as the packed int8 file has them."""
    path = folder / "packed.l3p"
    SparseModel.from_network(network).save(path, "int8")
    steps = load_program(path).steps
    return {step.name: step.kernel for step in steps if hasattr(step, "kernel")}


def file_kernels(quantized):
    """Kernels as the LiteRT file has them, in units of their steps."""
    names = graph.convolutions(quantized.network)
    found = litert.kernels(to_litert(quantized))
    return {
        name: np.moveaxis(kernel.values(), 0, -1) for name, kernel in zip(names, found, strict=True)
    }


def places(kernels):
    return {name: kernel == 0 for name, kernel in kernels.items()}


def own_kernels(network):
    return {name: each.kernel for name, each in graph.conv_weights(network).items()}


def assert_zeros_everywhere(masks, raw, quantized, folder):
    """The same zeros in checkpoint, network, LiteRT and packed file; beside the mask's, only
    weights below half a step."""
    exact = own_kernels(raw)
    assert graph.masks(raw) == graph.masks(quantized.network) == masks
    for name, mask in masks.items():
        assert not exact[name][~mask].view(np.uint32).any(), name
    network = own_kernels(quantized.network)
    others = {
        "LiteRT": file_kernels(quantized),
        "packed": packed_kernels(quantized.network, folder),
    }
    for form, kernels in others.items():
        for name, kernel in kernels.items():
            assert np.array_equal(kernel == 0, network[name] == 0), (form, name)
    for name, zeros in count_zeros(quantized.network).items():
        kept = masks.get(name, np.ones(network[name].shape, bool))
        assert zeros.pruned == (~kept).sum()
        assert zeros.total == (network[name] == 0).sum()
        assert not network[name][~kept].view(np.uint32).any(), name
        below = np.abs(exact[name]) <= np.abs(exact[name]).max(axis=(0, 1, 2)) / 254 * (1 + 1e-6)
        expected = np.argwhere(kept & below)
        assert np.array_equal(zeros.rounded, expected), name


# Values.


def test_integers_by_hand():
    kernel = np.float32([[12.7, -1, 0], [-0.04, 0.5, 0], [0.06, 1 / 254 - 1e-5, 0]])
    whole, steps = integers(kernel)
    assert whole.tolist() == [[127, -127, 0], [0, 64, 0], [1, 0, 0]]
    np.testing.assert_allclose(steps, [0.1, 1 / 127, 1], rtol=1e-6)


def test_float16_rounds_weights_and_leaves_batch_norm():
    network = pruned()
    network.get_layer("conv_1").kernel.assign(np.full((3, 3, 1, 4), 1e-9))
    half = to_float16(network)
    before, after = (
        {weight.name: weight.numpy() for weight in each.weights} for each in (network, half)
    )
    assert any("moving_variance" in name for name in before)
    for name, exact in before.items():
        if "batch_normalization" in name or exact.dtype == bool:
            assert np.array_equal(after[name], exact), name
        else:
            assert np.array_equal(after[name], exact.astype(np.float16).astype(np.float32)), name
    assert graph.masks(half) == graph.masks(network)
    zeros = count_zeros(half)
    assert len(zeros["conv_1"].rounded) == 36  # below float16's least number
    assert sum(len(each.rounded) for each in zeros.values()) == 36
    network.get_layer("conv_2").bias.assign([7e4, 0, 0, 0])
    with pytest.raises(ParameterError, match="conv_2 has a weight of 70000, beyond"):
        to_float16(network)


def test_ranges_are_those_of_the_activations():
    network = pruned()
    one, other = windows(4, 1), windows(4, 2)
    ranges = measure_ranges(network, [one, other])
    maps = keras.Model(
        network.inputs,
        [network.get_layer(name).output for name in ("batch_normalization_1", "relu_3", "relu_8")],
    ).predict(np.concatenate([one, other]), verbose=0)
    for row, each in zip(ranges[[0, 3, 8]], maps, strict=True):
        np.testing.assert_allclose(row, [min(each.min(), 0), max(each.max(), 0)], rtol=1e-4)
    with pytest.raises(ParameterError, match="no batches given"):
        measure_ranges(network, [])


@pytest.mark.slow
def test_raw_embeddings_have_the_range_of_their_convolution():
    network = create_network("mel256", filters=[2] * 8)
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 1, 48000)).astype(np.float32)
    quantized = quantize(network, [noise])
    assert quantized.ranges[-1, 0] < 0 < quantized.ranges[-1, 1]
    _, core = quantizing(network)
    names = [weight.name for layer in core.layers for weight in layer.weights]
    assert sum(name.endswith(("output_min:0", "activation_min:0", "layer_min:0")) for name in names)
    assert litert.kernels(to_litert(quantized))[7].stored.shape == (2, 3, 3, 2)


def test_networks_of_other_forms_are_refused():
    inputs = keras.Input((8, 8, 2))
    maps = keras.layers.Conv2D(2, 3)(inputs)
    maps = keras.layers.BatchNormalization(name="late")(keras.layers.ReLU()(maps))
    network = keras.Model(inputs, maps)
    with pytest.raises(ParameterError, match="layer late behind re_lu"):
        split(network)
    with pytest.raises(ParameterError, match="no convolution"):
        split(keras.Model(inputs, keras.layers.ReLU()(inputs)))


# Files.


def test_zeros_are_the_same_in_every_form_without_training(tmp_path):
    network = pruned()
    kernel = network.get_layer("conv_5").kernel.numpy()
    kernel[..., 1] = 0  # a filter without weights, its mask True
    kernel[0, 0, 0, 0] = 1e-5  # far below half a step
    mask = network.get_layer("conv_5").mask.numpy()
    mask[..., 1] = mask[0, 0, 0, 0] = True
    network.get_layer("conv_5").kernel.assign(kernel)
    network.get_layer("conv_5").set_mask(mask)
    quantized = quantize(network, [windows()])
    assert_zeros_everywhere(graph.masks(network), network, quantized, tmp_path)
    zeros = count_zeros(quantized.network)["conv_5"]
    assert [0, 0, 0, 0] in zeros.rounded.tolist()
    assert (zeros.rounded[:, 3] == 1).sum() == 36


def test_the_packed_file_has_the_network_to_the_step(tmp_path):
    quantized = quantize(pruned(), [windows()])
    folded = {
        step.name: step.kernel
        for step in program_of(quantized.network).steps
        if hasattr(step, "kernel")
    }
    packed, litert = packed_kernels(quantized.network, tmp_path), file_kernels(quantized)
    for name, kernel in folded.items():
        np.testing.assert_allclose(packed[name], kernel, rtol=3e-7, atol=0)
        np.testing.assert_allclose(litert[name], kernel, rtol=3e-7, atol=0)


def test_the_litert_file_computes_the_network():
    network = pruned(0.3)
    given = windows(16)
    quantized = quantize(network, [given])
    maps = keras.Model(network.inputs, network.get_layer("log_mel").output)(given).numpy()
    found = litert.run(to_litert(quantized), maps)
    wanted = inference(network)(given)
    # Activations have 255 levels, and eight layers' rounding adds up.
    assert np.abs(found - wanted).max() < 0.06 * np.abs(wanted).max()
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.999


def test_one_convolution_by_hand():
    inputs = keras.Input((1, 1, 1))
    layer = keras.layers.Conv2D(1, 1, name="conv")
    network = keras.Model(inputs, keras.layers.Flatten()(layer(inputs)))
    layer.set_weights([np.float32([[[[2.0]]]]), np.float32([0.5])])
    quantized = Quantized(network, np.float32([[0, 255], [0, 510]]))
    content = to_litert(quantized)
    # Steps are 1 and 2: 100 -> 2 * 100 + 0.5 -> 200; 101.4 -> 101 -> 202.5 -> 202.
    given = np.float32([100, 101.4, 300]).reshape(3, 1, 1, 1)
    assert litert.run(content, given)[:, 0].tolist() == [200, 202, 510]


def test_a_quantized_network_is_saved_and_found_again(tmp_path):
    quantized = quantize(pruned(), [windows()])
    quantized.save(tmp_path / "q.h5")
    again = Quantized.load(tmp_path / "q.h5")
    assert np.array_equal(again.ranges, quantized.ranges)
    assert to_litert(again) == to_litert(quantized)
    save_network(quantized.network, tmp_path / "plain.h5")
    with pytest.raises(L3PruneError, match="without ranges; quantize it first"):
        Quantized.load(tmp_path / "plain.h5")
    with pytest.raises(ParameterError, match=r"shape \(2, 2\) given"):
        Quantized(quantized.network, np.zeros((2, 2)))
    with pytest.raises(ParameterError, match="without zero"):
        Quantized(quantized.network, np.ones((9, 2)))


def test_a_file_with_a_weight_under_the_mask_is_found_out():
    network = pruned()
    kernels = own_kernels(network)
    place = tuple(np.argwhere(~graph.masks(network)["conv_3"])[0])
    kernels["conv_3"] = kernels["conv_3"].copy()
    kernels["conv_3"][place] = 1e-30
    with pytest.raises(L3PruneError, match="conv_3: 1 pruned weights are not zero"):
        count_zeros(network, kernels)


# What tfmot's own schemes do with zeros, and ours.


def tfmot():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import tensorflow_model_optimization as module
    return module


def chain(first, second):
    """Two convolutions with these kernels; nothing in it is drawn by chance."""
    inputs = keras.Input((6, 6, 1))
    maps = keras.layers.Conv2D(first.shape[-1], 3, padding="same", name="one")(inputs)
    maps = keras.layers.Conv2D(second.shape[-1], 3, padding="same", name="two")(
        keras.layers.ReLU()(keras.layers.BatchNormalization()(maps))
    )
    network = keras.Model(inputs, keras.layers.Flatten()(maps))
    for name, kernel in (("one", first), ("two", second)):
        network.get_layer(name).kernel.assign(kernel)
    return network


def kernels_of_chain(sparse_first=True):
    rng = np.random.default_rng(3)
    values = np.float32([-0.5, -0.2, 0.3, 0.6])
    first, second = rng.choice(values, (3, 3, 1, 3)), rng.choice(values, (3, 3, 3, 2))
    second[rng.random(second.shape) < 0.8] = 0
    if sparse_first:
        first[rng.random(first.shape) < 0.5] = 0
    return first, second


def applied(network, scheme):
    module = tfmot().quantization.keras
    with module.quantize_scope():
        return module.quantize_apply(module.quantize_annotate_model(network), scheme)


def step(network, count=20):
    rng = np.random.default_rng(4)
    inputs = rng.normal(size=(8, *network.input_shape[1:])).astype(np.float32)
    targets = rng.normal(size=(8, *network.output_shape[1:])).astype(np.float32)
    network.compile(keras.optimizers.Adam(1e-2), "mse")
    network.fit(inputs, targets, epochs=count, verbose=0)


def kernel_of(network, name):
    (found,) = [weight for weight in network.weights if weight.name == f"{name}/kernel:0"]
    return found


def test_tfmot_has_the_mask_of_the_weights_it_was_wrapped_with():
    first, second = kernels_of_chain()
    scheme = tfmot().experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    wrapped = applied(chain(first, second), scheme)
    step(wrapped)
    assert not kernel_of(wrapped, "two").numpy()[second == 0].any()  # no drift so far
    # A resumed run would build the network anew, and then give it its weights.
    again = applied(chain(np.ones_like(first), np.ones_like(second)), scheme)
    again.set_weights(wrapped.get_weights())
    step(again)
    assert np.count_nonzero(kernel_of(again, "two").numpy()[second == 0]) > 20


@pytest.mark.parametrize("sparse_first", [False, True])
def test_tfmot_lets_go_of_zeros_when_one_layer_has_none(sparse_first):
    first, second = kernels_of_chain(sparse_first)
    scheme = tfmot().experimental.combine.Default8BitClusterPreserveQuantizeScheme(
        preserve_sparsity=True
    )
    wrapped = applied(chain(first, second), scheme)
    step(wrapped)
    drifted = np.count_nonzero(kernel_of(wrapped, "two").numpy()[second == 0])
    assert drifted == 0 if sparse_first else drifted > 20


def core_kernel(core, name):
    for layer in core.layers:
        if getattr(layer, "layer", layer).name == name:
            return next(each for each in layer.weights if each.name.endswith("kernel:0"))
    raise AssertionError(name)


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_the_variable_itself_is_zero_after_each_step_whatever_was_in_it(clustered):
    network = pruned()
    for layer in graph.convolutions(network).values():
        layer.kernel.assign(np.sign(layer.kernel) * 0.5 * (np.abs(layer.kernel) > 0))
    trained, core = quantizing(network, clustered=clustered)
    masks = graph.masks(trained)
    assert masks == graph.masks(network)
    kernel = core_kernel(core, "conv_5")
    assert kernel is trained.get_layer("conv_5").kernel
    kernel.assign_add(np.full(kernel.shape, 0.1))  # as another checkpoint might
    inputs, targets = windows(4), np.ones((4, 4), np.float32)
    trained.compile(keras.optimizers.Adam(1e-2), "mse")
    for _ in range(3):
        trained.train_on_batch(inputs, targets)
        for name, mask in masks.items():
            assert not core_kernel(core, name).numpy()[~mask].view(np.uint32).any(), name
        assert kernel.numpy()[masks["conv_5"]].any()


@pytest.mark.slow
def test_a_kept_weight_that_is_zero_comes_back():
    network = pruned()
    layer = network.get_layer("conv_2")
    place = tuple(np.argwhere(layer.mask.numpy())[0])
    kernel = layer.kernel.numpy()
    kernel[place] = 0
    layer.kernel.assign(kernel)
    trained, _ = quantizing(network)
    trained.compile(keras.optimizers.Adam(1e-2), "mse")
    for _ in range(3):
        trained.train_on_batch(windows(4), np.ones((4, 4), np.float32))
    assert trained.get_layer("conv_2").kernel.numpy()[place] != 0


@pytest.mark.slow
def test_the_centroid_of_zeros_is_exact_once_kernels_are_read():
    network = pruned()
    trained, core = clustering(network, 4)
    trained.compile(keras.optimizers.Adam(1e-2), "mse")
    for _ in range(3):
        trained.train_on_batch(windows(4), np.ones((4, 4), np.float32))
    wrapper = core.get_layer("cluster_conv_5")
    centroids = wrapper.cluster_centroids["kernel"]
    assert np.abs(centroids.numpy()).min() > 0  # the optimizer moved it, too
    wrapper.update_clustered_weights_associations()
    assert np.abs(centroids.numpy()).min() == 0
    mask = graph.masks(network)["conv_5"]
    assert not np.asarray(wrapper.layer.kernel)[~mask].any()


# Distillation.


def test_clusters_without_training():
    network = pruned()
    before = own_kernels(network)
    shared = cluster(network, 4)
    for name, kernel in own_kernels(shared).items():
        values = np.unique(kernel)
        assert len(values) <= 4
        kept = before[name] != 0
        assert not kernel[~kept].any()
        # Each other weight has the value that is nearest to it; zero is one of them.
        distance = np.abs(before[name][kept][:, None] - values)
        np.testing.assert_array_equal(values[distance.argmin(axis=1)], kernel[kept])
    assert all(np.array_equal(before[name], kept) for name, kept in own_kernels(network).items())


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return make_sounds(tmp_path_factory.mktemp("quantised") / "sounds")


@pytest.fixture(scope="module")
def aware(tmp_path_factory, sounds):
    """A run of quantisation-aware distillation: student, folder, result."""
    folder = tmp_path_factory.mktemp("aware")
    student = pruned()
    before = [weight.numpy() for weight in student.weights]
    quantized = distill_quantized(
        student, make_tiny(), sounds, sounds, folder, recipe=RECIPE, batch_size=4, quiet=True
    )
    for weight, value in zip(student.weights, before, strict=True):
        assert np.array_equal(weight.numpy(), value)
    return student, folder, quantized


def test_zeros_are_the_same_in_every_form_after_aware_distillation(aware, tmp_path):
    student, folder, quantized = aware
    best = load_network(folder / BEST)
    assert not np.array_equal(best.get_layer("conv_2").kernel, student.get_layer("conv_2").kernel)
    assert_zeros_everywhere(graph.masks(student), best, quantized, tmp_path)
    assert (quantized.ranges[1:, 0] == 0).all()  # behind ReLU; tfmot would begin with -6
    for layer in student.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # batch_norm="keep"
            for before, after in zip(
                layer.get_weights(), best.get_layer(layer.name).get_weights(), strict=True
            ):
                assert np.array_equal(before, after), layer.name
    assert all(
        isinstance(quantized.network.get_layer(name), MaskedConv2D) for name in graph.masks(student)
    )


def test_what_was_trained_is_what_is_deployed(aware):
    student, folder, quantized = aware
    trained, _ = quantizing(student)
    best = load_network(folder / BEST)
    for target, layer in zip(trained.layers, best.layers, strict=True):
        target.set_weights(layer.get_weights())
    attached = read_attachment(folder / BEST)
    for number, variable in enumerate(trained.beside):
        variable.assign(attached[f"beside-{number:04d}"])
    given = windows(16)
    maps = keras.Model(student.inputs, student.get_layer("log_mel").output)(given).numpy()
    found = litert.run(to_litert(quantized), maps)
    step_of_embedding = (quantized.ranges[-1, 1] - quantized.ranges[-1, 0]) / 255
    # tfmot rounds kernels by the ranges of the step before, and halves another way.
    assert np.abs(found - inference(trained)(given)).max() <= 6 * step_of_embedding


@pytest.mark.slow
def test_a_resumed_aware_run_ends_with_the_same_bits(aware, sounds, tmp_path):
    student, folder, quantized = aware
    for epochs in (1, 2):
        resumed = distill_quantized(
            student,
            make_tiny(),
            sounds,
            sounds,
            tmp_path,
            recipe=dataclasses.replace(RECIPE, epochs=epochs),
            batch_size=4,
            resume=epochs > 1,
            quiet=True,
        )
    assert (tmp_path / LATEST).read_bytes() == (folder / LATEST).read_bytes()
    assert np.array_equal(resumed.ranges, quantized.ranges)
    for name, kernel in own_kernels(quantized.network).items():
        assert np.array_equal(own_kernels(resumed.network)[name], kernel), name


@pytest.mark.slow
def test_clusters_and_zeros_stay_through_both_distillations(sounds, tmp_path):
    student = pruned()
    masks = graph.masks(student)
    options = {"recipe": RECIPE, "batch_size": 4, "quiet": True}
    network = distill_clustered(
        student, make_tiny(), sounds, sounds, tmp_path / "clustered", clusters=5, **options
    )
    for name, kernel in own_kernels(network).items():
        assert len(np.unique(kernel)) <= 5, name
        assert not np.signbit(kernel[kernel == 0]).any()
    count_zeros(network)
    quantized = distill_quantized(
        network, make_tiny(), sounds, sounds, tmp_path / "both", clustered=True, **options
    )
    best = load_network(tmp_path / "both" / BEST)
    assert_zeros_everywhere(masks, best, quantized, tmp_path)
    # tfmot trains the values of each filter apart where filters have as many.
    for form in (best, quantized.network):
        for name, kernel in own_kernels(form).items():
            assert max(len(np.unique(kernel[..., each])) for each in range(4)) <= 5, name
    with pytest.raises(ParameterError, match="another scheme"):
        distill_quantized(
            student, make_tiny(), sounds, sounds, tmp_path / "both", resume=True, **options
        )


def test_what_cannot_be_trained_is_said():
    bare = create_network("sea64", filters=[2] * 8)
    inputs, maps = bare.inputs, bare.get_layer("conv_1").output
    bare = keras.Model(inputs, keras.layers.Flatten()(keras.layers.ReLU()(maps)))
    with pytest.raises(ParameterError, match="conv_1 has a ReLU and no BatchNorm behind it"):
        quantizing(bare)
    network, many = pruned(), create_network("sea64", filters=[2] * 7 + [112])
    kernel = many.get_layer("audio_embedding_layer").kernel
    kernel.assign((np.arange(kernel.shape.num_elements()) % 2000).reshape(kernel.shape))
    for layer in list(graph.convolutions(many).values())[:-1]:
        layer.kernel.assign(np.sign(layer.kernel))
    with pytest.raises(ParameterError, match="audio_embedding_layer has 2000 different"):
        quantizing(many, clustered=True)
    with pytest.raises(ParameterError, match="clusters=2"):
        clustering(network, 2)
    with pytest.raises(ParameterError, match="take reduction='pca'"):
        distill_quantized(network, network, "a", "b", "c", reduction="linear")


# The command.


def words_of(folder, sounds, weights, *more):
    return [
        *(str(weights), str(sounds), str(sounds), str(folder), "--run-name", "first"),
        *("--num-epochs", "1", "--train-batch-size", "4", "--quiet", *more),
    ]


@pytest.mark.slow
def test_the_command_writes_all_forms_and_a_report(sounds, tmp_path, capsys):
    student = pruned()
    save_network(student, tmp_path / "pruned.h5")
    save_network(make_tiny(), tmp_path / "teacher.h5")
    teacher = ("--teacher", str(tmp_path / "teacher.h5"))
    words = words_of(tmp_path / "out", sounds, tmp_path / "pruned.h5", *teacher)
    for scheme in ("qat", "clustered"):
        assert main([*words, "--scheme", scheme, "--clusters", "5"]) in (0, None)
    clustered = tmp_path / "out" / "quantized" / "sounds" / "clustered" / "first"
    words = words_of(tmp_path / "out", sounds, clustered / "quantized.h5", *teacher)
    assert main([*words, "--scheme", "clustered-qat"]) in (0, None)
    for scheme in ("qat", "clustered-qat"):
        folder = clustered.parent.parent / scheme / "first"
        quantized = Quantized.load(folder / "quantized.h5")
        assert (folder / "quantized.tflite").read_bytes() == to_litert(quantized)
        assert graph.masks(quantized.network) == graph.masks(student)
        row = read_json(folder / "report.json")[scheme]
        assert row["packed_bytes"] == (folder / "quantized.l3p").stat().st_size
        # Those that the clustered network had already are not of this rounding.
        given = student if scheme == "qat" else load_network(clustered / "quantized.h5")
        begun = own_kernels(given)
        now = own_kernels(quantized.network)
        fresh = sum(np.sum((now[name] == 0) & (begun[name] != 0)) for name in now)
        assert row["rounded_to_zero"] == fresh
    # An ended run is found again.
    before = (folder / "quantized.tflite").read_bytes()
    again = [*words, "--scheme", "clustered-qat", "--continue-model-dir", str(folder)]
    assert main(again) in (0, None)
    assert (folder / "quantized.tflite").read_bytes() == before
    capsys.readouterr()
    assert main([*words, "--scheme", "qat", "--continue-model-dir", str(folder)]) == 2
    assert "was begun with scheme='clustered-qat', not 'qat'" in capsys.readouterr().err


def test_too_few_clusters_are_refused_before_a_run_begins(sounds, tmp_path, capsys):
    words = words_of(tmp_path / "out", sounds, tmp_path / "no.h5", "--scheme", "clustered")
    assert main([*words, "--clusters", "2"]) == 2
    assert "clusters=2 is not a whole number from 3 on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_zeros_that_a_network_without_masks_has_are_not_counted_as_rounded(sounds, tmp_path):
    """As published networks are, which were pruned and have no masks."""
    student = surgery.strip_masks(pruned())
    save_network(student, tmp_path / "pruned.h5")
    assert main(words_of(tmp_path / "out", sounds, tmp_path / "pruned.h5")) in (0, None)
    folder = tmp_path / "out" / "quantized" / "sounds" / "qat" / "first"
    row = read_json(folder / "report.json")["qat"]
    before, after = own_kernels(student), own_kernels(load_network(folder / "quantized.h5"))
    for name, kernel in before.items():
        assert not after[name][kernel == 0].any(), name
    became = sum(np.count_nonzero((after[name] == 0) & (before[name] != 0)) for name in before)
    assert row["rounded_to_zero"] == became < 20


# The published network.


@pytest.mark.shared
def test_the_published_network_keeps_its_embedding_in_int8(sea64, reference, tmp_path):
    masked = surgery.apply_masks(sea64, plan.plan_global(graph.conv_weights(sea64), 0.95))
    names = sorted(reference)
    heard = next(reference[name] for name in names if reference[name].shape[-1] == 8000)
    heard = heard.reshape(-1, 1, 8000).astype(np.float32)
    for network in (sea64, masked):
        quantized = quantize(network, [heard])
        found, wanted = inference(quantized.network)(heard), inference(network)(heard)
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    assert_zeros_everywhere(graph.masks(masked), masked, quantized, tmp_path)
    assert sum(len(each.rounded) for each in count_zeros(quantized.network).values()) == 0
