"""Distillation with int8 rounding or shared weights in the loop: tfmot's schemes, kept zeros exact.

Schemes, of tensorflow_model_optimization:

quantisation-aware (PQAT)
    `Default8BitPrunePreserveQuantizeScheme`: kernels and activations are rounded as int8 rounds
    them, gradients pass the rounding unchanged.
clustering
    `cluster_weights(preserve_sparsity=True)`: each layer's kernel has a few values, zero among
    them; the values and which weight takes which are trained. Such kernels gzip well.
both (PCQAT)
    `Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True)` on a clustered network.

What is trained shares its variables with a masked network, which is what checkpoints show (see
`disguise.Disguised`): runs resume, have a history, and keep their masks, like any other.

Where tfmot's schemes let go of zeros, and what is done about it:

- They take a kernel's non-zeros for its mask, once, when the network is wrapped. A wrapped network
  that is given other weights later, as a resumed run is, has the mask of the weights that it was
  wrapped with, and a weight that was kept and happens to be zero never comes back. Here the mask is
  the network's own.
- The mask acts where the kernel is read; the variable itself may drift (momentum, moving averages
  of weights). Here the mask is the variable's constraint, applied after each step.
- One quantiser is shared by all layers: a single layer without zeros turns the keeping of zeros
  off for all of them. Here each layer has its own.
- Between a step and the next forward pass, the centroid of the zeros is not zero, and behind a
  pass it may be -0.0. Here kernels are read after such a pass, and have no -0.0.
- A convolution with a ReLU and no BatchNorm between is not rounded at all. Here it is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune import surgery
from l3prune.checkpoints import BEST, LATEST, trained_beside
from l3prune.checks import check_whole
from l3prune.disguise import Disguised
from l3prune.distillation import Windows, check_pair, distill, open_pair
from l3prune.errors import ParameterError
from l3prune.layers import KeepZeros, MaskedConv2D
from l3prune.networks import attach_config, l3, network_config
from l3prune.plan import PruningPlan
from l3prune.quantization import Quantized, measure_ranges, on_grid, split
from l3prune.recipes import Recipe
from l3prune.windows import WindowSource, batch_indices

#: Batches from which the ranges start.
_CALIBRATION_BATCHES = 16

#: More values than these in a layer's kernel are not clusters for tfmot.
_MOST_CLUSTERS = 1024

_Wrap = Callable[[keras.layers.Conv2D, Any], Any]


def distill_quantized(
    student: keras.Model,
    teacher: keras.Model,
    train: Windows | str | os.PathLike[str],
    validation: Windows | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    clustered: bool = False,
    recipe: Recipe | None = None,
    batch_size: int = 64,
    hop_size: float = 0.5,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Quantized:
    """Quantisation-aware distillation: train a network as the int8 network that it will be.

    Parameters
    ----------
    student : keras.Model
        A pruned L3 network with masks, or any other; left as it is. What masks remove stays zero.
    teacher, train, validation, output_dir, batch_size, hop_size, cache_dir
        See `distillation.distill`. The best epoch's checkpoint in `output_dir` has the weights
        before rounding.
    recipe : Recipe or None
        None takes EdgeL3's with batch_norm="keep", which is for a student that was distilled.
    clustered : bool
        The student comes from `distill_clustered`, and its kernels keep their few values.
    **options
        For `distillation.distill`: `resume`, `quiet`, `train_epoch_size`, …; no linear map.

    Returns
    -------
    quantized : Quantized
        Of the best epoch.

    Raises
    ------
    ParameterError
        As `distill`; or layers that cannot be quantised; or `clustered` and a kernel with more
        than 1024 values.

    Examples
    --------
    >>> import tempfile, soundfile
    >>> from l3prune.networks import create_network
    >>> folder = Path(tempfile.mkdtemp())
    >>> noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    >>> (folder / "sounds").mkdir()
    >>> soundfile.write(folder / "sounds" / "noise.wav", noise, 8000)
    >>> teacher, student = (create_network("sea64", filters=[2] * 8) for _ in range(2))
    >>> sides = [folder / "sounds"] * 2
    >>> quantized = distill_quantized(
    ...     student, teacher, *sides, folder / "out", recipe=Recipe(epochs=1), quiet=True
    ... )
    >>> quantized.ranges.shape
    (9, 2)
    """
    recipe = recipe or Recipe(batch_norm="keep")
    _check(student, teacher, options)
    trained, core = quantizing(student, clustered=clustered)
    _check_continued(trained, Path(output_dir), options)
    cache_dir = Path(output_dir) / "cache" if cache_dir is None else cache_dir
    if isinstance(train, str | os.PathLike):
        rates = l3.front_end(student).sample_rate, l3.front_end(teacher).sample_rate
        quiet = options.get("quiet", False)
        train = open_pair(train, rates, cache_dir, hop_size=hop_size, quiet=quiet)
    source = train[0] if isinstance(train, tuple) else train
    _set_ranges(core, measure_ranges(student, _first(source, batch_size, recipe.seed)))
    distill(
        trained,
        teacher,
        train,
        validation,
        output_dir,
        recipe=recipe,
        batch_size=batch_size,
        hop_size=hop_size,
        cache_dir=cache_dir,
        **options,
    )
    _take_best(trained, Path(output_dir))
    ranges = np.array(
        [[least.numpy(), largest.numpy()] for least, largest in _range_variables(core)]
    )
    return on_grid(_plain_copy(trained, student), _with_zero(ranges))


def distill_clustered(
    student: keras.Model,
    teacher: keras.Model,
    train: Windows | str | os.PathLike[str],
    validation: Windows | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    clusters: int = 16,
    recipe: Recipe | None = None,
    **options: Any,
) -> keras.Model:
    """Distil a network whose kernels have few values each, zero among them.

    Parameters
    ----------
    student, teacher, train, validation, output_dir, recipe
        See `distill_quantized`.
    clusters : int
        Values of a layer's kernel, with zero, at least 3. A layer with fewer weights that are not
        zero has fewer.
    **options
        For `distillation.distill`; no linear map.

    Returns
    -------
    network : keras.Model
        Of the best epoch, with the student's masks.

    Raises
    ------
    ParameterError
        As `distill_quantized`; or `clusters` below 3.

    Examples
    --------
    >>> import tempfile, soundfile
    >>> from l3prune.networks import create_network
    >>> folder = Path(tempfile.mkdtemp())
    >>> noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    >>> (folder / "sounds").mkdir()
    >>> soundfile.write(folder / "sounds" / "noise.wav", noise, 8000)
    >>> teacher, student = (create_network("sea64", filters=[2] * 8) for _ in range(2))
    >>> sides, recipe = [folder / "sounds"] * 2, Recipe(epochs=1)
    >>> network = distill_clustered(
    ...     student, teacher, *sides, folder / "out", clusters=4, recipe=recipe, quiet=True
    ... )
    >>> len(np.unique(network.get_layer("conv_2").kernel)) <= 4
    True
    """
    _check(student, teacher, options)
    trained, core = clustering(student, clusters)
    _check_continued(trained, Path(output_dir), options)
    recipe = recipe or Recipe(batch_norm="keep")
    distill(trained, teacher, train, validation, output_dir, recipe=recipe, **options)
    _take_best(trained, Path(output_dir))
    return _clustered(trained, core, student)


def cluster(network: keras.Model, clusters: int = 16) -> keras.Model:
    """A copy of a network whose kernels have few values each, zero among them, without training.

    Each weight becomes the nearest of values that k-means++ draws among the kernel's weights.

    Parameters
    ----------
    network : keras.Model
    clusters : int
        See `distill_clustered`, as for what is raised.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = cluster(create_network("sea64", filters=[2] * 8), 4)
    >>> len(np.unique(network.get_layer("conv_2").kernel)) <= 4
    True
    """
    return _clustered(*clustering(network, clusters), network)


def quantizing(student: keras.Model, *, clustered: bool = False) -> tuple[Disguised, keras.Model]:
    """A network that computes as the student would in int8, for `distillation.distill`.

    Parameters
    ----------
    student : keras.Model
        Left as it is.
    clustered : bool
        Keep the few values of its kernels.

    Returns
    -------
    trained : Disguised
        Shows the layers of a copy of the student, whose variables it trains.
    core : keras.Model
        The part that tfmot wrapped: all from the first convolution on.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> trained, core = quantizing(create_network("sea64"))
    >>> trained.output_shape, core.get_layer("quant_conv_1").name, trained.layers[-1].name
    ((None, 64), 'quant_conv_1', 'embedding')
    """
    if clustered:
        for layer in split(student)[1]:
            if isinstance(layer, keras.layers.Conv2D):
                count = len(np.unique(layer.kernel.numpy()))
                if not 1 < count <= _MOST_CLUSTERS:
                    raise ParameterError(
                        f"layer {layer.name} has {count} different weights, and clusters are 2 … "
                        f"{_MOST_CLUSTERS}; distill_clustered makes them"
                    )
    tfmot, combine, _ = _tfmot()
    scheme = _scheme(tfmot, combine, clustered)
    # The kernel of a clustered layer follows its centroids, and decay would move it off them.
    plain = _core(student, lambda layer, maps: layer(maps), decay=not clustered)
    with tfmot.quantize_scope():
        core = tfmot.quantize_apply(tfmot.quantize_annotate_model(plain), scheme)
    for layer in core.layers:
        names = [surgery.short_name(weight) for weight in layer.weights]
        if "kernel" in names and "kernel_min" not in names:
            raise ParameterError(
                f"{layer.layer.name} has a ReLU and no BatchNorm behind it; tfmot's scheme leaves "
                "such a kernel as it is, so quantise the network without training"
            )
    return _disguised(student, core, still=("kernel",) if clustered else ()), core


def clustering(student: keras.Model, clusters: int) -> tuple[Disguised, keras.Model]:
    """A network that computes with clustered kernels, as `quantizing` gives one of int8.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> trained, core = clustering(create_network("sea64", filters=[2] * 8), 4)
    >>> core.get_layer("cluster_conv_1").number_of_clusters
    4
    """
    check_whole("clusters", clusters, 3)
    _, _, tfmot = _tfmot()

    def wrap(layer: keras.layers.Conv2D, maps: Any) -> Any:
        kernel = layer.kernel.numpy()
        # tfmot draws the values among the weights, which must be as many.
        count = min(clusters, len(np.unique(kernel[kernel != 0])) + 1)
        if count < 3:
            return layer(maps)
        wrapper = tfmot.cluster_weights(
            layer,
            number_of_clusters=count,
            cluster_centroids_init=tfmot.CentroidInitialization.KMEANS_PLUS_PLUS,
            preserve_sparsity=True,
        )
        return wrapper(maps)

    core = _core(student, wrap)
    return _disguised(student, core), core


def _tfmot() -> tuple[Any, Any, Any]:
    """The modules of quantisation, of both at once, and of clustering."""
    with warnings.catch_warnings():
        # It looks at TensorFlow's version in a way that Python 3.11 gives up.
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorflow_model_optimization.clustering import keras as clustering
        from tensorflow_model_optimization.experimental import combine
        from tensorflow_model_optimization.quantization import keras as quantization
    return quantization, combine, clustering


def _scheme(tfmot: Any, combine: Any, clustered: bool) -> Any:
    """tfmot's scheme, with a quantiser for each layer and the masks of constraints."""

    class Keeping(tfmot.quantizers.Quantizer):
        """tfmot's quantiser of a kernel, with another mask."""

        def __init__(self, inner: Any, mask: np.ndarray):
            self.inner = inner
            self.mask = mask

        def build(self, tensor_shape, name, layer):
            variables = self.inner.build(tensor_shape, name, layer)
            if "sparsity_mask" in variables:
                variables["sparsity_mask"] = tf.constant(self.mask, tf.float32)
            return variables

        def __call__(self, inputs, training, weights, **kwargs):
            if training and clustered:
                inputs = _Masked(inputs, self.mask)
            return self.inner(inputs, training, weights, **kwargs)

        def get_config(self):
            return self.inner.get_config()

    def registry() -> Any:
        if clustered:
            scheme = combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True)
        else:
            scheme = combine.Default8BitPrunePreserveQuantizeScheme()
        return scheme.get_quantize_registry()

    class Registry(tfmot.QuantizeRegistry):
        def supports(self, layer):
            return registry().supports(layer)

        def get_quantize_config(self, layer):
            config = registry().get_quantize_config(layer)
            mask = getattr(getattr(layer, "kernel_constraint", None), "mask", None)
            if mask is not None:
                config.weight_quantizer = Keeping(config.weight_quantizer, mask)
            return config

    class Scheme(combine.Default8BitPrunePreserveQuantizeScheme):
        def get_quantize_registry(self):
            return Registry()

    return Scheme()


class _Masked:
    """A clustered kernel, as far as tfmot's quantiser needs it in training: it is assigned to."""

    def __init__(self, kernel: tf.Variable, mask: np.ndarray):
        self.kernel = kernel
        self.mask = mask

    def assign(self, value: tf.Tensor) -> None:
        # A centroid times zero may be -0.0.
        self.kernel.assign(tf.where(self.mask, value, tf.zeros_like(value)))


def _core(student: keras.Model, wrap: _Wrap, *, decay: bool = True) -> keras.Model:
    """A copy of a student from its first convolution on, with masks as constraints."""
    head, tail = split(student)
    inputs = maps = keras.Input(head[-1].output.shape[1:], name="maps")
    for layer in tail:
        config = layer.get_config()
        if not isinstance(layer, keras.layers.Conv2D):
            copy = layer.__class__.from_config(config)
            maps = copy(maps)
            copy.set_weights(layer.get_weights())
            continue
        if not decay:
            config["kernel_regularizer"] = None
        kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
        copy = keras.layers.Conv2D.from_config(config)
        if isinstance(layer, MaskedConv2D):
            copy.kernel_constraint = KeepZeros(layer.mask.numpy())
            kernel = np.where(layer.mask.numpy(), kernel, 0)
        copy.build(maps.shape)
        copy.set_weights([kernel, bias])
        maps = wrap(copy, maps)
    return keras.Model(inputs, maps, name="core")


def _disguised(student: keras.Model, core: keras.Model, still: tuple[str, ...] = ()) -> Disguised:
    """The core behind a copy of the student's head, shown as a copy of the student.

    The copy has the core's variables. Weights named in `still` are not for the optimizer.
    """
    copy = surgery.apply_masks(student, PruningPlan({}))
    head, tail = split(copy)
    inner = {}
    for layer in core.layers:
        layer = getattr(layer, "layer", layer)
        inner[layer.name] = layer
    wrappers = {getattr(layer, "layer", layer).name: layer for layer in core.layers}
    shown = list(head)
    kept = set()
    for layer in tail:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Itself: `fit` sets its momentum and whether it is trained.
            layer = inner[layer.name]
        elif isinstance(layer, keras.layers.Conv2D):
            found = {surgery.short_name(each): each for each in wrappers[layer.name].weights}
            layer.kernel, layer.bias = found["kernel"], found["bias"]
            kept |= {id(found[name]) for name in still}
        shown.append(layer)
    trained = Disguised(copy.inputs, core(head[-1].output), name=student.name)
    trained.show(shown, kept)
    return attach_config(trained, network_config(student))


def _check(student: keras.Model, teacher: keras.Model, options: dict[str, Any]) -> None:
    reduction = options.get("reduction")
    if reduction == "linear":
        raise ParameterError(
            "reduction='linear' trains a map beside the student, which quantised students do not "
            "have; distil without rounding first, or take reduction='pca'"
        )
    check_pair(student, teacher, reduction)


def _check_continued(trained: Disguised, output_dir: Path, options: dict[str, Any]) -> None:
    """Refuse to go on with a run of another scheme."""
    latest = output_dir / LATEST
    if options.get("resume") and latest.is_file():
        shapes = [tuple(each.shape) for each in trained.beside]
        if [each.shape for each in trained_beside(latest)] != shapes:
            raise ParameterError(
                f"the run in {output_dir} is of another scheme, or of other clusters; continue it "
                "with its own"
            )


def _first(source: WindowSource, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """The first training batches, for ranges to start from."""
    count = min(_CALIBRATION_BATCHES, -(-len(source) // batch_size))
    indices = batch_indices(source, batch_size, seed)
    for _ in range(count):
        yield source.read(next(indices))


def _range_variables(core: keras.Model) -> list[tuple[tf.Variable, tf.Variable]]:
    """The variables of activations' ranges, least and largest, in the order of computation."""
    found = []
    for layer in core.layers:
        names = {surgery.short_name(weight): weight for weight in layer.weights}
        for name in names:
            if name.endswith("_min") and name != "kernel_min":
                found.append((names[name], names[name.removesuffix("_min") + "_max"]))
    return found


def _set_ranges(core: keras.Model, ranges: np.ndarray) -> None:
    # tfmot would start all from ±6, and come away from there by a thousandth in each step.
    for variables, values in zip(_range_variables(core), ranges, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _with_zero(ranges: np.ndarray) -> np.ndarray:
    return np.stack([np.minimum(ranges[:, 0], 0), np.maximum(ranges[:, 1], 0)], axis=1)


def _take_best(trained: Disguised, output_dir: Path) -> None:
    """What belongs to the best epoch, of which `fit` has taken the shown layers."""
    values = trained_beside(output_dir / BEST)
    for variable, value in zip(trained.beside, values, strict=True):
        variable.assign(value)


def _clustered(trained: Disguised, core: keras.Model, student: keras.Model) -> keras.Model:
    """A copy of the student, masks included, with its kernels' shared values."""
    network = _plain_copy(trained, student)
    for wrapper in core.layers:
        if hasattr(wrapper, "update_clustered_weights_associations"):
            wrapper.update_clustered_weights_associations()
            target = network.get_layer(wrapper.layer.name)
            # A centroid times zero may be -0.0.
            kernel = np.asarray(wrapper.layer.kernel) + np.float32(0)
            target.kernel.assign(kernel)
            if isinstance(target, MaskedConv2D):
                target.set_mask(target.mask.numpy())
    return network


def _plain_copy(trained: Disguised, student: keras.Model) -> keras.Model:
    """A copy of the student, masks included, with what was trained."""
    copy = surgery.apply_masks(student, PruningPlan({}))
    for target, layer in zip(copy.layers, trained.layers, strict=True):
        target.set_weights(layer.get_weights())
        if isinstance(target, MaskedConv2D):
            target.set_mask(target.mask.numpy())
    return copy
