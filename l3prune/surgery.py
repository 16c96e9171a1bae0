"""Writing a network: new networks with masks or with fewer filters. The input is never changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import tf_keras as keras

from l3prune.channels import PRODUCERS, check_functional, follow, named_layers
from l3prune.errors import ParameterError
from l3prune.graph import convolutions
from l3prune.layers import FrontEndLayer, MaskedConv2D
from l3prune.networks import attach_config, narrowed_config
from l3prune.plan import PruningPlan

#: A layer's weights by short name, of its source, as its copy has them.
_Weights = dict[str, np.ndarray]


def apply_masks(network: keras.Model, plan: PruningPlan) -> keras.Model:
    """A copy of a network in which pruned weights are zero and stay so in training.

    Convolutions that the plan names become `MaskedConv2D`; masks that the network has already are
    kept and combined, so that nothing that was pruned comes back.

    Parameters
    ----------
    network : keras.Model
        Functional.
    plan : PruningPlan

    Returns
    -------
    masked : keras.Model

    Raises
    ------
    ParameterError
        The plan names a layer that is no convolution of the network, or a mask does not fit.

    Examples
    --------
    >>> from l3prune.graph import conv_weights, count_kernel_weights
    >>> from l3prune.networks import create_network
    >>> from l3prune.plan import plan_layerwise
    >>> network = create_network("sea64", weight_decay=0)
    >>> pruned = apply_masks(network, plan_layerwise(conv_weights(network), 0.75))
    >>> total, nonzero = count_kernel_weights(pruned)
    >>> round(nonzero / total, 3)
    0.25
    """
    _check_names(plan, convolutions(network), "convolutions")

    def masked(name: str, layer: keras.layers.Layer) -> keras.layers.Layer:
        if name in plan and not isinstance(layer, MaskedConv2D):
            return MaskedConv2D(**_conv_config(layer))
        return layer.__class__.from_config(layer.get_config())

    copy = _rebuild(network, masked)
    for name, layer in convolutions(copy).items():
        if name in plan:
            before = layer.mask.numpy()
            layer.set_mask(plan[name])
            layer.set_mask(layer.mask.numpy() & before)
    return _with_config(copy, network)


def strip_masks(network: keras.Model) -> keras.Model:
    """A copy of a network with plain `Conv2D` layers, the pruned weights stored as zeros.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> plain = strip_masks(create_network("sea64"))
    >>> type(plain.get_layer("conv_1")).__name__
    'Conv2D'
    """

    def plain(name: str, layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, MaskedConv2D):
            return keras.layers.Conv2D(**_conv_config(layer))
        return layer.__class__.from_config(layer.get_config())

    return _with_config(_rebuild(network, plain), network)


def remade(
    network: keras.Model, make: Callable[[keras.layers.Layer], keras.layers.Layer]
) -> keras.Model:
    """A copy of a network of other layers with the same weights.

    Parameters
    ----------
    network : keras.Model
        Functional.
    make : callable, layer -> layer
        Gives a new layer, not built, of the old one's name and weights.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> def halved(layer):
    ...     return type(layer).from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})
    >>> remade(create_network("sea64"), halved).get_layer("conv_1").compute_dtype
    'bfloat16'
    """
    return _with_config(_rebuild(network, lambda name, layer: make(layer)), network)


def remove_filters(network: keras.Model, plan: PruningPlan) -> keras.Model:
    """A smaller copy of a network, without the filters that the plan drops.

    With a filter go its bias, its BatchNorm, whatever else has weights for its channel, and the
    part of every later layer that reads it. The copy computes what the network would if all later
    layers ignored the removed channels. Masks of the network are kept, with fewer elements.

    Parameters
    ----------
    network : keras.Model
        Functional, of layers whose channels can be followed; see `channels.follow`.
    plan : PruningPlan
        Masks of shape (filters,), of convolutions and dense layers. Layers that only lose filters
        together (`graph.filter_groups`) must all be named, with masks that agree.

    Returns
    -------
    smaller : keras.Model
        Its output has fewer values where the plan drops filters that are in the output.

    Raises
    ------
    ParameterError
        The plan names another layer, has masks of another shape, or masks that disagree about
        channels that are added to each other; a channel is needed; or a layer cannot be followed.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> plan = PruningPlan({"conv_7": np.arange(64) < 32})
    >>> smaller = remove_filters(create_network("sea64"), plan)
    >>> smaller.get_layer("audio_embedding_layer").kernel.shape
    TensorShape([3, 3, 32, 64])
    """
    channels = follow(network)
    producers = {
        name: each for name, each in channels.layers.items() if isinstance(each.layer, PRODUCERS)
    }
    _check_names(plan, producers, "convolutions and dense layers")
    stays: dict[int, tuple[bool, str]] = {}
    for name, each in producers.items():
        mask = plan.get(name, np.ones(len(each.outputs), bool))
        if mask.shape != each.outputs.shape:
            raise ParameterError(
                f"layer {name}: mask of shape {mask.shape} given; whole filters are removed by "
                f"masks of shape {each.outputs.shape} (apply_masks takes masks of weights)"
            )
        for place, (number, keep) in enumerate(zip(each.outputs, mask, strict=True)):
            before, other = stays.setdefault(int(number), (bool(keep), name))
            if before != keep:
                raise ParameterError(
                    f"layers {other} and {name} can only lose filters together, and their masks "
                    f"disagree about filter {place} of {name}; give both masks that agree"
                )
            if not keep and int(number) in channels.pinned:
                raise ParameterError(
                    f"layer {name}: filter {place} cannot be removed: "
                    f"{channels.pinned[int(number)]}"
                )

    def kept(numbers: np.ndarray) -> np.ndarray:
        return np.array([stays.get(int(number), (True, ""))[0] for number in numbers], bool)

    keeps = {
        name: (kept(each.inputs), kept(each.outputs)) for name, each in channels.layers.items()
    }

    def smaller(name: str, layer: keras.layers.Layer) -> keras.layers.Layer:
        changes = _smaller_config(layer, *keeps[name]) if name in keeps else {}
        return layer.__class__.from_config({**layer.get_config(), **changes})

    def sliced(name: str, layer: keras.layers.Layer, weights: _Weights) -> _Weights:
        return _slice(layer, weights, *keeps[name]) if name in keeps else weights

    widths = {
        name: [int(kept(numbers).sum()) for numbers in inputs]
        for name, inputs in channels.nested.items()
    }
    copy = _rebuild(network, smaller, sliced, widths)
    config = getattr(network, "l3prune_config", None)
    if config is not None:
        attach_config(copy, narrowed_config(config, copy))
    return copy


def renewed(network: keras.Model, names: Collection[str]) -> keras.Model:
    """A copy of a network in which some layers have fresh weights, by their own initialisers.

    Raises
    ------
    ParameterError
        There is no such layer, or it has no weights.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[1] * 8)
    >>> copy = renewed(network, ["conv_2"])
    >>> for name in ("conv_1", "conv_2"):
    ...     before, after = (each.get_layer(name).kernel.numpy() for each in (network, copy))
    ...     print(bool((before == after).all()))
    True
    False
    """
    weighted = {name: layer for name, layer in named_layers(network) if layer.weights}
    _check_names(names, weighted, "layers with weights", "fresh weights are wished for in")

    def kept(name: str, layer: keras.layers.Layer, weights: _Weights) -> _Weights:
        return {} if name in names else weights

    copy = _rebuild(network, lambda _, layer: layer.__class__.from_config(layer.get_config()), kept)
    return _with_config(copy, network)


def behind_front_end(network: keras.Model) -> keras.Model:
    """The part of a network that takes spectrograms; the network itself if all of it does.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> behind_front_end(create_network("sea64")).input_shape
    (None, 64, 50, 1)
    """
    for layer in network.layers:
        if isinstance(layer, FrontEndLayer):
            inputs = [layer.output if each is layer.input else each for each in network.inputs]
            # Of the same name, which converters write into files.
            given = inputs if len(inputs) > 1 else inputs[0]
            return keras.Model(given, network.outputs, name=network.name)
    return network


def _check_names(
    names: Iterable[str], known: Mapping[str, Any], what: str, who: str = "the plan names"
) -> None:
    for name in names:
        if name not in known:
            raise ParameterError(
                f"{who} layer {name!r}; {what} of this network: "
                f"{', '.join(sorted(known)) or 'none'}"
            )


def _smaller_config(
    layer: keras.layers.Layer, keep_in: np.ndarray, keep_out: np.ndarray
) -> dict[str, Any]:
    """What of a layer's constructor arguments counts channels."""
    if isinstance(layer, keras.layers.Dense):
        return {"units": int(keep_out.sum())}
    if isinstance(layer, keras.layers.Reshape) and layer.target_shape[-1] != -1:
        return {"target_shape": (*layer.target_shape[:-1], int(keep_out.sum()))}
    if isinstance(layer, PRODUCERS):
        counts = {"filters": int(keep_out.sum())}
        if getattr(layer, "groups", 1) == len(keep_in) > 1:
            counts["groups"] = int(keep_in.sum())
        return counts
    return {}


def _slice(
    layer: keras.layers.Layer, weights: _Weights, keep_in: np.ndarray, keep_out: np.ndarray
) -> _Weights:
    """A layer's weights without those of the channels that go."""
    sliced = {}
    for name, array in weights.items():
        if name in ("kernel", "mask", "depthwise_kernel", "pointwise_kernel"):
            inputs = keep_in
            groups = getattr(layer, "groups", 1)
            if name == "pointwise_kernel":
                inputs = np.repeat(keep_in, layer.depth_multiplier)
            elif groups == len(keep_in) > 1:
                inputs = np.ones(1, bool)  # each filter reads one channel
            elif groups > 1:
                inputs = keep_in.reshape(groups, -1)[0]
            if isinstance(layer, keras.layers.Conv2DTranspose):
                array = array[..., keep_out, :][..., inputs]
            elif name == "depthwise_kernel":
                array = array[..., inputs, :]
            else:
                array = array[..., inputs, :][..., keep_out]
        else:
            # One weight a channel, in the last axis: bias, BatchNorm, PReLU.
            array = array[..., keep_out] if array.shape[-1] == len(keep_out) else array
        sliced[name] = array
    return sliced


def _conv_config(layer: keras.layers.Conv2D) -> dict:
    """Constructor arguments that Conv2D and MaskedConv2D share, deserialised."""
    config = layer.get_config()
    if config.pop("kernel_constraint", None) is not None:
        raise ParameterError(
            f"layer {layer.name} has a kernel constraint; MaskedConv2D's mask takes its place, "
            "so remove the constraint before pruning"
        )
    return config


def _rebuild(
    network: keras.Model,
    make: Callable[[str, keras.layers.Layer], keras.layers.Layer],
    change: Callable[[str, keras.layers.Layer, _Weights], _Weights] = lambda _, __, weights: (
        weights
    ),
    widths: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> keras.Model:
    """A network of the layers that `make` gives; `change` gives them the weights of the old.

    `widths` are the channels of the inputs of nested networks.
    """
    check_functional(network)

    def clone(model: keras.Model, name: str) -> keras.Model:
        def replace(layer: keras.layers.Layer) -> keras.layers.Layer:
            path = f"{name}/{layer.name}" if name else layer.name
            return clone(layer, path) if isinstance(layer, keras.Model) else make(path, layer)

        inputs = None
        if name in widths:
            inputs = [
                keras.Input((*tensor.shape[1:-1], width), dtype=tensor.dtype, name=tensor.name)
                for tensor, width in zip(model.inputs, widths[name], strict=True)
            ]
        return keras.models.clone_model(model, inputs, clone_function=replace)

    copy = clone(network, "")
    sources = dict(named_layers(network))
    for name, target in named_layers(copy):
        source = sources[name]
        values = {short_name(weight): weight.numpy() for weight in source.weights}
        if isinstance(source, MaskedConv2D):
            values["kernel"] = np.where(values["mask"], values["kernel"], 0)
        values = change(name, source, values)
        for weight in target.weights:
            if short_name(weight) in values:
                weight.assign(values[short_name(weight)])
    return copy


def _with_config(copy: keras.Model, network: keras.Model) -> keras.Model:
    config = getattr(network, "l3prune_config", None)
    return copy if config is None else attach_config(copy, config)


def short_name(weight) -> str:
    """A weight's name without its layer: kernel, bias, gamma, mask …

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> [short_name(weight) for weight in create_network("sea64").get_layer("conv_1").weights]
    ['kernel', 'bias']
    """
    return weight.name.split("/")[-1].split(":")[0]
