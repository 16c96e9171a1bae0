"""Which network a weight file holds: our own checkpoints say it, of others the layers tell.

The others are those of the L3 family: audio networks of OpenL3, EdgeL3 and SEA, OpenL3's image
networks, and L3-Net's audio-visual networks with both halves nested, trained on one or several
GPUs. Layer names are arbitrary there, the order of layers is not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from l3prune.audio import KAPRE_0_3, FrontEnd
from l3prune.errors import L3PruneError
from l3prune.layouts import Content, LayerWeights
from l3prune.networks import NetworkConfig, avc, claimed_widths, l3, list_networks, vision

#: Asks for the audio network that a file holds, alone or as a half, whichever it is.
ANY_AUDIO = "audio"

#: Filters of every audio and image network.
_FILTERS = {**{name: spec.filters for name, spec in l3.SPECS.items()}, "vision": vision.FILTERS}

#: Input channels of the halves of an audio-visual network.
_HALVES = {1: "audio", 3: "vision"}

#: Names of published files, for weights that do not tell their network.
_FILE_NAMES = {
    r"openl3_audio_(linear|mel128|mel256)_": "{}",
    r"edgel3_(?:ft|kd)_audio_sparsity_": "mel256",
    r"edgel3_sea_ust_audio_emb_(64|128|256|512)\b": "sea{}",
}


def stored(
    content: Content, said: dict[str, Any], name: str | None, path
) -> tuple[str, dict[str, Any], list[LayerWeights]]:
    """Which network to build of our own checkpoint; it must hold one of the size that it claims.

    Parameters
    ----------
    content : Content
    said : dict
        What the checkpoint says of itself, see `layouts.description`.
    name : str or None
        What is wanted; None takes what is there. Of an audio-visual network, each half can be.
    path : str or path-like

    Returns
    -------
    name, arguments, layers
        As of `detect`.

    Raises
    ------
    L3PruneError
        The file holds another network, or none of the size that it claims.

    Examples
    --------
    >>> stored(Content([], None, False), {"network": "sea64", "arguments": {}}, None, "a.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: a.h5 claims (32, 32, 64, 64, 128, 128, 64, 64) filters and holds ()
    """
    config = NetworkConfig(said["network"], said["arguments"])
    if config.name in avc.NETWORKS:
        return _stored_audio_visual(content.layers, config, name, path)
    widths = claimed_widths(config)
    if widths is not None:
        held = _widths(content.layers)
        if name not in (None, config.name, ANY_AUDIO):
            raise L3PruneError(f"{path} holds the network {config.name}, not {name}")
        if widths != held:
            raise L3PruneError(f"{path} claims layers of {widths} filters and holds {held}")
        return config.name, config.arguments, content.layers
    if config.name not in _FILTERS:
        if config.name in list_networks():
            raise L3PruneError(
                f"{path} holds network {config.name!r}, which does not say how wide it is: "
                "register it by @network with claimed"
            )
        known = ", ".join(list_networks())
        raise L3PruneError(
            f"{path} holds network {config.name!r}; known: {known}; is the package installed that "
            "adds it?"
        )
    if name not in (None, config.name) and not (name == ANY_AUDIO and config.name in l3.SPECS):
        raise L3PruneError(f"{path} holds the network {config.name}, not {name}")
    _parts(content.layers, path)  # each layer takes as many channels as come in
    filters = config.arguments.get("filters")
    claimed, held = _FILTERS[config.name] if filters is None else filters, _widths(content.layers)
    # A student may have some of the layers of the network whose filters it has without saying so,
    # but never more than these; which ones show when the weights are assigned.
    rest = iter(claimed)
    some = filters is None and held and all(count in rest for count in held)
    if list(claimed) != list(held) and not some:
        raise L3PruneError(f"{path} claims {claimed} filters and holds {held}")
    return config.name, config.arguments, content.layers


def _stored_audio_visual(
    layers: list[LayerWeights], config: NetworkConfig, name: str | None, path
) -> tuple[str, dict[str, Any], list[LayerWeights]]:
    # By name: the layers of both halves alternate in our files.
    parts: dict[str, list[LayerWeights]] = {part: [] for part in avc.PARTS}
    for layer in layers:
        parts[avc.part_of(layer.name)].append(layer)
    for part, claimed in avc.widths(config).items():
        held = _widths(parts[part])
        if claimed != held:
            raise L3PruneError(f"{path} claims {claimed} filters of its {part} part, holds {held}")
        if [*_parts(parts[part], path)] != [part]:
            raise L3PruneError(f"{path}: its {part} part has layers of another part")
    if name in (None, config.name):
        return config.name, config.arguments, _in_order(parts)
    holds = config.name
    if config.name == avc.AVC:
        part = "vision" if name == "vision" else "audio"
        half = avc.half(config, part)
        if name in (half.name, ANY_AUDIO):
            return half.name, half.arguments, parts[part]
        holds = f"{config.name} of {half.name}"
    raise L3PruneError(f"{path} holds the network {holds}, not {name}")


def _in_order(parts: dict[str, list[LayerWeights]]) -> list[LayerWeights]:
    """The layers of an audio-visual network, part by part."""
    return [layer for part in avc.PARTS for layer in parts[part]]


def detect(
    content: Content, name: str | None, path, audio: str | None = None
) -> tuple[str, dict[str, Any], list[LayerWeights]]:
    """Which network a file of others holds.

    Filters tell it, the shape of kapre's constants, and where the file has none and several
    networks fit, the published files' names.

    Parameters
    ----------
    content : Content
    name : str or None
        What is wanted; None takes what is there, and the audio half of an audio-visual network.
    path : str or path-like
    audio : str or None
        The audio network in an audio-visual one that is wanted; None: the file tells.

    Returns
    -------
    name : str
    arguments : dict
        For `create_network`.
    layers : list of LayerWeights
        Those of this network.

    Raises
    ------
    L3PruneError
        The layers do not follow from each other, or no network or several networks fit.

    Examples
    --------
    >>> detect(Content([], None, False), None, "a.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: a.h5 holds no convolutions of an audio or image network
    """
    parts = _parts(content.layers, path)
    halves = [part for part in parts if part != "fusion"]
    if not halves:
        raise L3PruneError(f"{path} holds no convolutions of an audio or image network")
    if name in avc.NETWORKS:
        return name, _detect_audio_visual(content, parts, name, audio, path), _in_order(parts)
    half = "vision" if name == "vision" or (name is None and "audio" not in parts) else "audio"
    if half not in parts:
        raise L3PruneError(f"{path} holds no {half} network, only {' and '.join(halves)}")
    layers, constants = parts[half], content.front_end_shape
    arguments: dict[str, Any] = {}
    if name is None or name == ANY_AUDIO or half == "vision":
        name = "vision" if half == "vision" else _detect_audio(layers, constants, path)
        filters = _widths(layers)
        if filters != _FILTERS[name]:
            arguments["filters"] = list(filters)
    if half == "audio":
        _check_front_end(name, layers, constants, path)
    if not _has_input_norm(layers):
        arguments["input_batch_norm"] = False
    if half == "audio" and constants is None and _is_openl3_0_4(content, name, layers, path):
        arguments["front_end"] = KAPRE_0_3
    return name, arguments, layers


def _detect_audio_visual(
    content: Content, parts: dict[str, list[LayerWeights]], name: str, audio: str | None, path
) -> dict[str, Any]:
    """The arguments of an audio-visual network."""
    missing = [part for part in avc.PARTS if part not in parts]
    if missing:
        raise L3PruneError(f"{path} holds no {' and no '.join(missing)} part, which {name} has")
    arguments: dict[str, Any] = {}
    constants = content.front_end_shape
    if name == avc.AVC:
        arguments["audio"] = audio or _detect_audio(parts["audio"], constants, path)
    widths = avc.widths(NetworkConfig(name, arguments))
    for part in ("audio", "vision"):
        held = _widths(parts[part])
        if held != widths[part]:
            arguments[f"{part}_filters"] = list(held)
    units = _widths(parts["fusion"])
    if len(units) != 2 or units[1] != 2:
        raise L3PruneError(f"{path} has dense layers of {units} units; {name} has two, one of 2")
    if units != widths["fusion"]:
        arguments["fusion_units"] = units[0]
    if name == avc.AVC:
        row = arguments["audio"]
        _check_front_end(row, parts["audio"], constants, path)
        norms = tuple(_has_input_norm(parts[part]) for part in ("vision", "audio"))
        if norms != avc.batch_norms(row):
            arguments["input_batch_norm"] = list(norms)
    return arguments


def _has_input_norm(layers: list[LayerWeights]) -> bool:
    return layers[0].kind == "batch normalisation"


def _check_front_end(name: str, layers: list[LayerWeights], constants, path) -> None:
    """Refuse weights that were trained behind another front end than that of an audio network."""
    if constants not in (None, _constants_shape(l3.SPECS[name].front_end)):
        raise L3PruneError(
            f"{path} holds the constants of another front end than {name}'s: these are weights for "
            "another network"
        )
    if name == "linear" and not _has_input_norm(layers):
        raise L3PruneError(
            f"{path} has no BatchNorm in front, as L3-Net's first network (cnn_L3_orig), whose "
            "front end l3prune does not have"
        )


def _is_openl3_0_4(content: Content, name: str, layers: list[LayerWeights], path) -> bool:
    """OpenL3 0.4 took kapre's constants out of its files when it changed the front end.

    EdgeL3's tools wrote files without constants too, for the front end of the training.
    """
    return (
        not content.whole
        and layers[-1].kind == "convolution"
        and l3.SPECS[name].embedding_point == "raw"
        and not Path(path).name.startswith("edgel3_")
    )


def _parts(layers: list[LayerWeights], path) -> dict[str, list[LayerWeights]]:
    """The networks of one input channel and of three, layer by layer, and the dense layers."""
    parts: dict[str, list[LayerWeights]] = {}
    current: list[LayerWeights] = []
    width: int | None = None
    for layer in layers:
        if layer.kind == "dense":  # of the audio-visual network, behind both halves
            parts.setdefault("fusion", []).append(layer)
            width = None
            continue
        if layer.kind == "slope":
            raise L3PruneError(
                f"{path}: layer {layer.name} has the slope of a PReLU; no L3 network has one"
            )
        channels, out = layer.channels
        if channels != width:
            half = _HALVES.get(channels)
            if half is None or half in parts:
                raise L3PruneError(
                    f"{path}: layer {layer.name} takes {channels} channels where "
                    f"{'a network starts' if width is None else f'{width} come in'}; these are "
                    "not the weights of an L3 network in their order"
                )
            current = parts.setdefault(half, [])
        current.append(layer)
        width = out
    return parts


def _detect_audio(layers: list[LayerWeights], front_end_shape, path) -> str:
    filters = _widths(layers)
    fits = [
        name
        for name, spec in l3.SPECS.items()
        if front_end_shape in (None, _constants_shape(spec.front_end))
    ]
    exact = [name for name in fits if l3.SPECS[name].filters == filters]
    if front_end_shape is not None and len(filters) == 8 and not exact:
        exact = fits[:1]  # of other widths, as pruned filterwise
    if len(exact) > 1:
        for pattern, template in _FILE_NAMES.items():
            match = re.match(pattern, Path(path).name)
            if match and template.format(*match.groups()) in exact:
                return template.format(*match.groups())
        raise L3PruneError(
            f"{path} fits {', '.join(exact)}, which differ in the front end only; say which it is"
        )
    if not exact:
        raise L3PruneError(
            f"{path} holds no known network: its convolutions have {list(filters)} filters; "
            f"known networks: {', '.join(_FILTERS)}"
        )
    return exact[0]


def _constants_shape(front_end: FrontEnd) -> tuple[int, ...]:
    """kapre stores the mel matrix last; its linear front end, a DFT kernel."""
    bins = front_end.n_dft // 2 + 1
    if front_end.n_mels is None:
        return (front_end.n_dft, 1, 1, bins)
    return (bins, front_end.n_mels)


def _widths(layers: list[LayerWeights]) -> tuple[int, ...]:
    """Filters of convolutions and units of dense layers."""
    return tuple(layer.channels[1] for layer in layers if "kernel" in layer.arrays)
