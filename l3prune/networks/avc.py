"""Networks of audio-visual correspondence: are these an image and a sound of one video?

The image half and the audio half of L3-Net (Arandjelović and Zisserman, ICCV 2017) and two dense
layers behind both. All layers are in one flat network, so that masks, surgery and plans for the
audio half need no other names than the audio network's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tf_keras as keras

from l3prune.audio import KAPRE_0_1, FrontEnd
from l3prune.checks import check_whole
from l3prune.errors import ParameterError
from l3prune.networks import NetworkConfig, l3, network, network_config, vision

#: The networks of this module.
AVC, TINY = NETWORKS = ("avc", "tiny_l3")

#: Their parts, in the order in which the fusion takes the halves.
PARTS = ("vision", "audio", "fusion")

#: As L3-Net's authors train it.
DEFAULT_AUDIO = "mel256"

_UNITS = {AVC: 128, TINY: 64}
_TINY_FILTERS = (10, 10, 10)
_TINY_FRONT_END = FrontEnd(48000, 512, 240, None)

#: Begins the names of layers; all others are of the audio half.
_VISION, _FUSION = "vision_", "fusion_"


def part_of(layer_name: str) -> str:
    """Which of `PARTS` a layer of an audio-visual network is in.

    Examples
    --------
    >>> [part_of(name) for name in ("conv_1", "vision_conv_1", "fusion_dense_1")]
    ['audio', 'vision', 'fusion']
    """
    if layer_name.startswith(_VISION):
        return "vision"
    return "fusion" if layer_name.startswith(_FUSION) else "audio"


def from_vision(name: str) -> str:
    """What a layer of the image network is called in an audio-visual one.

    Examples
    --------
    >>> from_vision("conv_1"), from_vision("vision_embedding_layer")
    ('vision_conv_1', 'vision_embedding_layer')
    """
    return name if name in vision.CONV_NAMES[-1:] else _VISION + name


def to_vision(name: str) -> str:
    """What a layer of the image half is called in the image network; "" for one of other parts.

    Examples
    --------
    >>> to_vision("vision_conv_1"), to_vision("vision_embedding_layer"), to_vision("conv_1")
    ('conv_1', 'vision_embedding_layer', '')
    """
    if part_of(name) != "vision":
        return ""
    return name if name in vision.CONV_NAMES[-1:] else name.removeprefix(_VISION)


def _widths(built: keras.Model) -> dict[str, Any]:
    """The arguments that say how wide a network is."""
    filters: dict[str, list[int]] = {part: [] for part in PARTS}
    for layer in built.layers:
        if isinstance(layer, keras.layers.Conv2D):
            filters[part_of(layer.name)].append(layer.filters)
    return {
        "audio_filters": filters["audio"],
        "vision_filters": filters["vision"],
        "fusion_units": built.get_layer("fusion_dense_1").units,
    }


@network(AVC, widths=_widths)
def build(
    *,
    audio: str = DEFAULT_AUDIO,
    audio_filters: Sequence[int] | None = None,
    vision_filters: Sequence[int] | None = None,
    input: str = "waveform",
    front_end: str = KAPRE_0_1,
    input_batch_norm: bool | Sequence[bool] | None = None,
    fusion_units: int = _UNITS[AVC],
    weight_decay: float = 1e-5,
) -> keras.Model:
    """Build an L3 network with both halves.

    Layers of the audio half are called as in the audio network, those of the image half "vision_"
    and then as in the image network, those behind both `fusion_dense_1` and `fusion_dense_2`.

    Parameters
    ----------
    audio : str
        A row of `l3.SPECS`.
    audio_filters, vision_filters : sequence of 8 int, or None
        Filters of conv 1 … conv 8 of each half; None takes the published ones.
    input, front_end
        Of the audio half, see `l3.build`.
    input_batch_norm : bool, (image, audio) of bool, or None
        BatchNorm of the image and of the front end's output. None is as L3-Net's authors have it:
        neither of them with mel128, otherwise both.
    fusion_units : int
        Of the first dense layer.
    weight_decay : float
        L2 factor on the kernels, not negative.

    Returns
    -------
    network : keras.Model, [(batch, 224, 224, 3), (batch, 1, sample_rate)] -> (batch, 2) float32
        Images and waveforms in [-1, 1] to probabilities that they are of different videos, and of
        the same.

    Raises
    ------
    ParameterError
        A value outside its range; the message tells the range.

    Examples
    --------
    >>> [tuple(each.shape) for each in build().inputs]
    [(None, 224, 224, 3), (None, 1, 48000)]
    """
    given = {"audio": audio, "audio_filters": audio_filters, "vision_filters": vision_filters}
    wide = widths(NetworkConfig(AVC, given))
    check_whole("fusion_units", fusion_units, 1, l3.MAX_FILTERS)
    for part in ("audio", "vision"):
        l3.check_arguments(wide[part], weight_decay, name=f"{part}_filters")
    image_norm, audio_norm = batch_norms(audio, input_batch_norm)

    image = vision.image_input()
    seen = vision.image_layers(
        image,
        wide["vision"],
        activated=True,
        input_batch_norm=image_norm,
        weight_decay=weight_decay,
        rename=from_vision,
    )
    constants = dataclasses.replace(_row(audio).front_end, form=front_end)
    sound, maps = l3.audio_input(constants, input)
    heard = l3.audio_layers(
        maps,
        dict(enumerate(wide["audio"], start=1)),
        activated=True,
        input_batch_norm=audio_norm,
        weight_decay=weight_decay,
    )
    embeddings = [
        l3.pooled_embedding(seen, tuple(seen.shape[1:3]), from_vision),
        l3.pooled_embedding(heard, tuple(heard.shape[1:3])),
    ]
    output = _fusion(embeddings, fusion_units, weight_decay)
    return keras.Model([image, sound], output, name=AVC)


@network(TINY, widths=_widths)
def build_tiny(
    *,
    audio_filters: Sequence[int] | None = None,
    vision_filters: Sequence[int] | None = None,
    input: str = "waveform",
    fusion_units: int = _UNITS[TINY],
    weight_decay: float = 1e-5,
) -> keras.Model:
    """Build the network with which L3-Net's authors try out their training.

    Each half has three convolutions of 5 x 5 without padding, each with BatchNorm, ReLU and
    max-pooling by 3; the sound comes in as a linear spectrogram.

    Parameters
    ----------
    audio_filters, vision_filters : sequence of 3 int, or None
        None takes 10 of each.
    input, fusion_units, weight_decay
        See `build`.

    Returns
    -------
    network : keras.Model
        Inputs and output as of `build`.

    Examples
    --------
    >>> build_tiny().get_layer("fusion_dense_1").kernel.shape
    TensorShape([710, 64])
    """
    given = {"audio_filters": audio_filters, "vision_filters": vision_filters}
    wide = widths(NetworkConfig(TINY, given))
    check_whole("fusion_units", fusion_units, 1, l3.MAX_FILTERS)
    for part in ("audio", "vision"):
        l3.check_arguments(wide[part], weight_decay, layers=3, name=f"{part}_filters")
    image = vision.image_input()
    sound, spectrogram = l3.audio_input(_TINY_FRONT_END, input)
    embeddings = [
        _tiny_half(image, wide["vision"], weight_decay, from_vision),
        _tiny_half(spectrogram, wide["audio"], weight_decay),
    ]
    output = _fusion(embeddings, fusion_units, weight_decay)
    return keras.Model([image, sound], output, name=TINY)


def _tiny_half(
    maps, filters: Sequence[int], weight_decay: float, rename: Callable[[str], str] = str
):
    for number, count in enumerate(filters, start=1):
        maps = keras.layers.Conv2D(
            count,
            5,
            kernel_initializer="he_normal",
            kernel_regularizer=l3.regularizer(weight_decay),
            name=rename(f"conv_{number}"),
        )(maps)
        norm = keras.layers.BatchNormalization(name=rename(f"batch_normalization_{number + 1}"))
        maps = keras.layers.ReLU(name=rename(f"relu_{number}"))(norm(maps))
        maps = keras.layers.MaxPooling2D(3, name=rename(f"max_pooling_{number}"))(maps)
    return keras.layers.Flatten(dtype="float32", name=rename("embedding"))(maps)


def _fusion(embeddings: list, units: int, weight_decay: float):
    """Both embeddings, the image's first, as probabilities of mismatch and match."""
    joined = keras.layers.Concatenate(name=f"{_FUSION}concatenation")(embeddings)
    regular = {
        "kernel_initializer": "he_normal",
        "kernel_regularizer": l3.regularizer(weight_decay),
    }
    joined = keras.layers.Dense(units, "relu", name=f"{_FUSION}dense_1", **regular)(joined)
    # float32 under mixed precision too, as every network's output.
    return keras.layers.Dense(2, "softmax", name=f"{_FUSION}dense_2", dtype="float32", **regular)(
        joined
    )


def widths(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Filters of the convolutions and units of the dense layers, for each of `PARTS`.

    Nothing is built for it.

    Raises
    ------
    ParameterError
        An unknown audio network.

    Examples
    --------
    >>> widths(NetworkConfig("tiny_l3", {"audio_filters": [4, 4, 4]}))
    {'fusion': (64, 2), 'vision': (10, 10, 10), 'audio': (4, 4, 4)}
    """
    arguments, tiny = config.arguments, config.name == TINY
    published = {
        "vision": _TINY_FILTERS if tiny else vision.FILTERS,
        "audio": _TINY_FILTERS if tiny else _row(arguments.get("audio", DEFAULT_AUDIO)).filters,
    }
    found: dict[str, tuple[int, ...]] = {
        "fusion": (arguments.get("fusion_units", _UNITS[config.name]), 2)
    }
    for part, filters in published.items():
        given = arguments.get(f"{part}_filters")
        found[part] = filters if given is None else tuple(given)
    return found


def _row(audio: str) -> l3.L3Spec:
    if not isinstance(audio, str) or audio not in l3.SPECS:
        raise ParameterError(f"audio={audio!r}; allowed: {', '.join(l3.SPECS)}")
    return l3.SPECS[audio]


def batch_norms(audio: str, given: bool | Sequence[bool] | None = None) -> tuple[bool, bool]:
    """Whether the image, and the front end's output, have a BatchNorm; see `build`.

    Examples
    --------
    >>> batch_norms("mel128"), batch_norms("mel256"), batch_norms("mel256", [False, True])
    ((False, False), (True, True), (False, True))
    """
    each = audio != "mel128" if given is None else given
    pair = [each, each] if isinstance(each, bool) else each
    if (
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or not all(isinstance(one, bool) for one in pair)
    ):
        raise ParameterError(
            f"input_batch_norm={given!r}; allowed: true, false, or one of these for the image and "
            "one for the sound"
        )
    return pair[0], pair[1]


def half(config: NetworkConfig, part: str) -> NetworkConfig:
    """The audio or the image network that is a half of an audio-visual one.

    Parameters
    ----------
    config : NetworkConfig
        Of an audio-visual network.
    part : {"audio", "vision"}

    Returns
    -------
    config : NetworkConfig

    Raises
    ------
    ParameterError
        The network has no such half.

    Examples
    --------
    >>> half(NetworkConfig("avc", {"audio": "mel128", "audio_filters": [4] * 8}), "audio")
    NetworkConfig(name='mel128', arguments={'filters': [4, 4, 4, 4, 4, 4, 4, 4],
                                            'input_batch_norm': False})
    """
    if config.name != AVC:
        raise ParameterError(
            f"network {config.name!r} has no half that is a network of its own; {AVC!r} has"
        )
    given = config.arguments
    audio = given.get("audio", DEFAULT_AUDIO)
    taken = ("input", "front_end", "weight_decay") if part == "audio" else ("weight_decay",)
    arguments = {name: given[name] for name in taken if name in given}
    if given.get(f"{part}_filters") is not None:
        arguments["filters"] = list(given[f"{part}_filters"])
    norms = dict(zip(PARTS, batch_norms(audio, given.get("input_batch_norm")), strict=False))
    if not norms[part]:
        arguments["input_batch_norm"] = False
    return NetworkConfig(audio if part == "audio" else "vision", arguments)


def front_end(net: keras.Model) -> FrontEnd:
    """The front end of an audio-visual network's audio half.

    Raises
    ------
    ParameterError
        The network is not audio-visual.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> front_end(create_network("tiny_l3")).sample_rate
    48000
    """
    config = check_audio_visual(net)
    if config.name == TINY:
        return _TINY_FRONT_END
    constants = _row(config.arguments.get("audio", DEFAULT_AUDIO)).front_end
    return dataclasses.replace(constants, form=config.arguments.get("front_end", KAPRE_0_1))


def check_audio_visual(net: keras.Model) -> NetworkConfig:
    """Refuse what is no audio-visual network; gives its configuration.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> check_audio_visual(create_network("sea64"))
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: network 'sea64' is not audio-visual; avc, tiny_l3 are
    """
    config = network_config(net)
    if config.name not in NETWORKS:
        raise ParameterError(
            f"network {config.name!r} is not audio-visual; {', '.join(NETWORKS)} are"
        )
    return config
