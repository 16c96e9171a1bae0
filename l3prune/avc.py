"""Audio-visual networks of two halves: put together, and taken apart again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tf_keras as keras

from l3prune import graph, surgery
from l3prune.errors import ParameterError
from l3prune.networks import avc, create_network, l3, network_config
from l3prune.plan import PruningPlan


def join(audio: keras.Model, vision: keras.Model, like: keras.Model | None = None) -> keras.Model:
    """An audio-visual network with the weights and masks of an audio and an image network.

    Parameters
    ----------
    audio : keras.Model
        Of the L3 family, with all eight convolutions, of any width.
    vision : keras.Model
        The image network.
    like : keras.Model or None
        An "avc" network that gives the layers which neither half has, if they are as wide: the
        fusion, and the BatchNorm behind conv 8 of a half with a raw embedding. With None, and
        where they are not as wide, these layers have fresh weights.

    Returns
    -------
    network : keras.Model
        "avc"; the halves are copied into it.

    Raises
    ------
    ParameterError
        Another kind of network.

    Examples
    --------
    >>> whole = create_network("avc", audio="sea64")
    >>> again = join(audio_half(whole), vision_half(whole), whole)
    >>> again.count_params() == whole.count_params()
    True
    """
    l3.front_end(audio)  # refuses networks of other kinds
    heard, seen = network_config(audio), network_config(vision)
    if seen.name != "vision":
        raise ParameterError(f"network {seen.name!r} is no network of images: 'vision' is")
    convolutions = graph.convolutions(audio)
    if tuple(convolutions) != l3.CONV_NAMES:
        raise ParameterError(
            f"the audio network has the convolutions {', '.join(convolutions)}; an audio-visual "
            "network takes one with all eight"
        )
    taken = ("input", "front_end", "weight_decay")
    arguments: dict[str, Any] = {
        "audio": heard.name,
        "audio_filters": [layer.filters for layer in convolutions.values()],
        "vision_filters": [layer.filters for layer in graph.convolutions(vision).values()],
        **{name: heard.arguments[name] for name in taken if name in heard.arguments},
    }
    norms = _has_input_norm(vision), _has_input_norm(audio)
    if norms != avc.batch_norms(heard.name):
        arguments["input_batch_norm"] = list(norms)
    if like is not None:
        if avc.check_audio_visual(like).name != avc.AVC:
            raise ParameterError(f"like={like.name} has other halves; give a network {avc.AVC!r}")
        arguments["fusion_units"] = like.get_layer("fusion_dense_1").units
    masks = {
        **graph.masks(audio),
        **{avc.from_vision(name): mask for name, mask in graph.masks(vision).items()},
    }
    network = _with_masks(create_network(avc.AVC, **arguments), masks)
    if like is not None:
        l3.take_weights(network, like)
    l3.take_weights(network, audio)
    l3.take_weights(network, vision, avc.from_vision)
    return network


def _with_masks(network: keras.Model, masks: Mapping[str, np.ndarray]) -> keras.Model:
    return surgery.apply_masks(network, PruningPlan(masks)) if masks else network


def _has_input_norm(half: keras.Model) -> bool:
    return any(layer.name == "batch_normalization_1" for layer in half.layers)


def audio_half(network: keras.Model, **arguments: Any) -> keras.Model:
    """The audio network of an audio-visual one: a copy, with its weights and masks.

    Parameters
    ----------
    network : keras.Model
        An "avc" network.
    **arguments
        For `create_network`: `embedding_point`, `embedding_size`, `input`. Without any, the
        embedding is that of the audio network: of mel256, conv 8's output pooled to 512 values.

    Returns
    -------
    half : keras.Model, (batch, 1, sample_rate) -> (batch, embedding_size)

    Raises
    ------
    ParameterError
        The network has no such half, or an argument is outside its range.

    Examples
    --------
    >>> audio_half(create_network("avc")).output_shape
    (None, 512)
    """
    return _half(network, "audio", arguments)


def vision_half(network: keras.Model, **arguments: Any) -> keras.Model:
    """The image network of an audio-visual one: a copy, with its weights and masks.

    Parameters
    ----------
    network : keras.Model
        An "avc" network.
    **arguments
        For `create_network`: `embedding_point`, `embedding_size`.

    Returns
    -------
    half : keras.Model, (batch, 224, 224, 3) -> (batch, embedding_size)

    Raises
    ------
    ParameterError
        As `audio_half`.

    Examples
    --------
    >>> vision_half(create_network("avc"), embedding_size=512).output_shape
    (None, 512)
    """
    return _half(network, "vision", arguments)


def _half(network: keras.Model, part: str, arguments: dict[str, Any]) -> keras.Model:
    config = avc.half(avc.check_audio_visual(network), part)
    rename: Callable[[str], str] = avc.to_vision if part == "vision" else str
    half = create_network(config.name, **{**config.arguments, **arguments})
    masks = {
        rename(name): mask
        for name, mask in graph.masks(network).items()
        if avc.part_of(name) == part
    }
    half = _with_masks(half, masks)
    fresh = l3.take_weights(half, network, rename)
    if fresh:
        raise ParameterError(
            f"{', '.join(arguments)}: the network has no weights of this shape for layer {fresh[0]}"
        )
    return half


def freeze_vision(network: keras.Model) -> None:
    """Leave the image half of an audio-visual network as it is in training, in place.

    Its BatchNorm then uses its moving statistics and keeps them. Copies by surgery are frozen like
    the network; checkpoints do not tell.

    Examples
    --------
    >>> network = create_network("tiny_l3")
    >>> freeze_vision(network)
    >>> [weight.name for weight in network.trainable_weights][:2]
    ['conv_1/kernel:0', 'conv_1/bias:0']
    """
    avc.check_audio_visual(network)
    for layer in network.layers:
        if avc.part_of(layer.name) == "vision":
            layer.trainable = False
