"""Layouts of published L3 weight files, read with h5py: which network is it, which weights.

Keras 2 wrote them all, by `save_weights` or `save`, from networks of kapre and Keras layers:
audio networks of OpenL3, EdgeL3 and SEA, OpenL3's image networks, and L3-Net's audio-visual
networks with both halves nested, trained on one or several GPUs. Layer names are arbitrary there,
the order of layers is not. Nothing in a file is believed before it is checked, and no code or
configuration stored in one is used.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from l3prune.audio import KAPRE_0_3, FrontEnd
from l3prune.errors import L3PruneError
from l3prune.files import is_file
from l3prune.networks import l3, vision

#: A file with more, unpacked, is no L3-type network; reading stops there (a zip bomb would not).
_MAX_BYTES = 2 * 2**30
_MAX_LAYERS = 1000
_MAX_SMALL_CHUNK = 2**20

_KINDS = {
    ("bias", "kernel"): "convolution",
    ("bias", "kernel", "mask"): "convolution",
    ("beta", "gamma", "moving_mean", "moving_variance"): "batch normalisation",
}

#: Filters of every network that a file may hold.
_FILTERS = {**{name: spec.filters for name, spec in l3.SPECS.items()}, "vision": vision.FILTERS}

#: Input channels of the halves of an audio-visual network.
_HALVES = {1: "audio", 3: "vision"}

#: Names of published files, for weights that do not tell their network.
_FILE_NAMES = {
    r"openl3_audio_(linear|mel128|mel256)_": "{}",
    r"edgel3_(?:ft|kd)_audio_sparsity_": "mel256",
    r"edgel3_sea_ust_audio_emb_(64|128|256|512)\b": "sea{}",
}


@dataclass(frozen=True)
class LayerWeights:
    """One weighted layer of a file: its name, its kind, its arrays by short name.

    Attributes
    ----------
    name : str
    kind : {"convolution", "batch normalisation", "dense"}
    arrays : dict of str to np.ndarray

    Examples
    --------
    >>> layer = LayerWeights("conv2d_8", "convolution", {"kernel": np.zeros((3, 3, 1, 8))})
    >>> layer.channels
    (1, 8)
    """

    name: str
    kind: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels that go in and come out."""
        if self.kind == "batch normalisation":
            return (len(self.arrays["gamma"]),) * 2
        return self.arrays["kernel"].shape[-2:]


@contextlib.contextmanager
def open_file(path) -> Iterator[h5py.File]:
    """Open an .h5 or .h5.gz file to read; what h5py raises on damage becomes an `L3PruneError`.

    Examples
    --------
    >>> with open_file("/nowhere/net.h5") as file:
    ...     pass
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such weight file: /nowhere/net.h5
    """
    path = Path(path)
    if not is_file(path):
        raise L3PruneError(f"no such weight file: {path}")
    try:
        source: Any = path
        if path.suffix == ".gz":
            with gzip.open(path) as packed:
                content = packed.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                raise L3PruneError(f"{path} unpacks to more than {_MAX_BYTES >> 30} GiB")
            source = io.BytesIO(content)
        with h5py.File(source, "r") as file:
            yield file
    except L3PruneError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise L3PruneError(f"{path} is not an HDF5 weight file, or is damaged: {error}") from error
    except (KeyError, RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:
        # h5py's answers to damaged metadata.
        raise L3PruneError(f"{path} is damaged: {error!r}") from error


@dataclass(frozen=True)
class Content:
    """What a Keras weight file holds.

    Attributes
    ----------
    layers : list of LayerWeights
        In the network's order, without kapre's.
    front_end_shape : tuple of int, or None
        Of kapre's mel matrix, or of its DFT kernel where it has none; None without a front end.
    whole : bool
        Written by `save`, not by `save_weights`.

    Examples
    --------
    >>> Content([], None, False).whole
    False
    """

    layers: list[LayerWeights]
    front_end_shape: tuple[int, ...] | None
    whole: bool


def read_layers(file: h5py.File, path) -> Content:
    """Weighted layers in order.

    The layers of nested networks are listed like the others: a group then has the weights of many
    layers, trainable ones first, and a layer stands where its first weight does.

    Examples
    --------
    >>> with h5py.File(io.BytesIO(), "w") as file:
    ...     file.attrs["layer_names"] = ["input_1"]
    ...     _ = file.create_group("input_1")
    ...     read_layers(file, "a.h5").layers
    []
    """
    whole = member(file, "model_weights", path)
    root = file if whole is None else whole
    if "layer_names" not in root.attrs:
        raise L3PruneError(
            f"{path} is an HDF5 file but no Keras weight file: it has no layer_names"
        )
    names = _texts(root.attrs["layer_names"])
    if len(names) > _MAX_LAYERS or len(set(names)) < len(names):
        raise L3PruneError(f"{path} lists {len(names)} layers, too many or one of them twice")
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    size = 0
    for group_name in names:
        group = member(root, group_name, path)
        if not isinstance(group, h5py.Group):
            raise L3PruneError(f"{path}: layer {group_name} is listed but missing")
        for weight_name in _texts(group.attrs.get("weight_names", [])):
            layer_name, _, short = weight_name.rpartition("/")
            arrays = found.setdefault((group_name, layer_name or group_name), {})
            short = short.split(":")[0]
            if short in arrays:
                raise L3PruneError(f"{path}: layer {layer_name} has two weights called {short}")
            if len(found) > _MAX_LAYERS:
                raise L3PruneError(f"{path} lists more than {_MAX_LAYERS} layers")
            arrays[short] = read_array(group, weight_name, path)
            size += arrays[short].nbytes
            if size > _MAX_BYTES:
                raise L3PruneError(f"{path} unpacks to more than {_MAX_BYTES >> 30} GiB")
    layers = []
    front_end_shape = None
    for (_, layer_name), arrays in found.items():
        if "spectrogram" in layer_name or "real_kernels" in arrays:
            # Constants of kapre's front end; ours computes them. One of two axes is the mel matrix.
            front_end_shape = min((array.shape for array in arrays.values()), key=len)
            continue
        kind = _KINDS.get(tuple(sorted(arrays)))
        if kind == "convolution" and arrays["kernel"].ndim == 2:
            kind = "dense"
        if kind is None or (kind == "convolution" and arrays["kernel"].ndim != 4):
            raise L3PruneError(
                f"{path}: layer {layer_name} has weights {', '.join(sorted(arrays))}; an L3 "
                "network has 2-D convolutions and batch normalisations only"
            )
        if kind == "batch normalisation" and {array.ndim for array in arrays.values()} != {1}:
            raise L3PruneError(f"{path}: layer {layer_name} has weights that are no vectors")
        if kind == "batch normalisation" and (arrays["moving_variance"] < 0).any():
            raise L3PruneError(f"{path}: layer {layer_name} has a negative variance")
        layers.append(LayerWeights(layer_name, kind, arrays))
    return Content(layers, front_end_shape, whole is not None)


def description(file: h5py.File, path) -> dict[str, Any] | None:
    """What our own checkpoint says of itself; None for other files.

    Examples
    --------
    >>> with h5py.File(io.BytesIO(), "w") as file:
    ...     file.attrs["l3prune"] = '{"network": "sea64", "arguments": {}}'
    ...     description(file, "a.h5")
    {'network': 'sea64', 'arguments': {}}
    """
    if "l3prune" not in file.attrs:
        return None
    try:
        found = json.loads(file.attrs["l3prune"])
        if not isinstance(found["network"], str):
            raise TypeError("the network's name is not a text")
        if not isinstance(found["arguments"], dict):
            raise TypeError("the network's arguments are not a mapping")
        if not isinstance(found["arguments"].get("filters", []), list):
            raise TypeError("the network's filters are not a list")
    except (ValueError, TypeError, KeyError) as error:
        raise L3PruneError(f"{path}: the description of the network is damaged: {error}") from error
    return found


def check_filters(layers: list[LayerWeights], stored, name: str, path) -> None:
    """Before a network of the size that a file claims is built: the file must hold one.

    Examples
    --------
    >>> check_filters([], None, "sea64", "a.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: a.h5 claims (32, 32, 64, 64, 128, 128, 64, 64) filters and holds ()
    """
    if name not in _FILTERS:
        raise L3PruneError(f"{path} holds network {name!r}; known: {', '.join(_FILTERS)}")
    claimed, held = _FILTERS[name] if stored is None else stored, _filters(layers)
    # A student may have some of the layers of the network whose filters it has without saying so,
    # but never more than these; which ones show when the weights are assigned.
    rest = iter(claimed)
    some = stored is None and held and all(count in rest for count in held)
    if list(claimed) != list(held) and not some:
        raise L3PruneError(f"{path} claims {claimed} filters and holds {held}")


def detect(
    content: Content, name: str | None, path
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
    halves = _halves(content.layers, path)
    if not halves:
        raise L3PruneError(f"{path} holds no convolutions of an audio or image network")
    half = "vision" if name == "vision" or (name is None and "audio" not in halves) else "audio"
    if half not in halves:
        raise L3PruneError(f"{path} holds no {half} network, only {' and '.join(halves)}")
    layers, constants = halves[half], content.front_end_shape
    arguments: dict[str, Any] = {}
    if name is None or half == "vision":
        name = "vision" if half == "vision" else _detect_audio(layers, constants, path)
        filters = _filters(layers)
        if filters != _FILTERS[name]:
            arguments["filters"] = list(filters)
    if half == "audio" and constants not in (None, _constants_shape(l3.SPECS[name].front_end)):
        raise L3PruneError(
            f"{path} holds the constants of another front end than {name}'s: these are weights for "
            "another network"
        )
    if layers[0].kind == "convolution":
        if name == "linear":
            raise L3PruneError(
                f"{path} has no BatchNorm in front, as L3-Net's first network (cnn_L3_orig), whose "
                "front end l3prune does not have"
            )
        arguments["input_batch_norm"] = False
    if half == "audio" and constants is None and _is_openl3_0_4(content, name, layers, path):
        arguments["front_end"] = KAPRE_0_3
    return name, arguments, layers


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


def _halves(layers: list[LayerWeights], path) -> dict[str, list[LayerWeights]]:
    """The networks of one input channel and of three, layer by layer."""
    halves: dict[str, list[LayerWeights]] = {}
    current: list[LayerWeights] = []
    width: int | None = None
    for layer in layers:
        if layer.kind == "dense":  # of the audio-visual network, behind both halves
            width = None
            continue
        channels, out = layer.channels
        if channels != width:
            half = _HALVES.get(channels)
            if half is None or half in halves:
                raise L3PruneError(
                    f"{path}: layer {layer.name} takes {channels} channels where "
                    f"{'a network starts' if width is None else f'{width} come in'}; these are "
                    "not the weights of an L3 network in their order"
                )
            current = halves.setdefault(half, [])
        current.append(layer)
        width = out
    return halves


def _detect_audio(layers: list[LayerWeights], front_end_shape, path) -> str:
    filters = _filters(layers)
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


def _filters(layers: list[LayerWeights]) -> tuple[int, ...]:
    return tuple(layer.channels[1] for layer in layers if layer.kind == "convolution")


def _texts(names) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def member(group: h5py.Group, name: str, path):
    """A member that is stored in the file itself, or None.

    Links to other files would let a weight file read what its user can read.

    Examples
    --------
    >>> with h5py.File(io.BytesIO(), "w") as file:
    ...     print(member(file, "a/b", "a.h5"))
    None
    """
    for part in [part for part in name.split("/") if part]:
        if not isinstance(group, h5py.Group):
            return None
        link = group.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise L3PruneError(f"{path}: {name} is a link; weight files hold their own data")
        group = group[part]
    return group


def read_array(group: h5py.Group, name: str, path) -> np.ndarray:
    """One array of a file, of a sane size and with finite values.

    Examples
    --------
    >>> with h5py.File(io.BytesIO(), "w") as file:
    ...     file["a"] = [1.0, 2.0]
    ...     read_array(file, "a", "a.h5")
    array([1., 2.])
    """
    dataset = member(group, name, path)
    if not isinstance(dataset, h5py.Dataset):
        raise L3PruneError(f"{path}: weight {name} is listed but missing")
    if dataset.external or dataset.is_virtual:
        raise L3PruneError(f"{path}: weight {name} is stored outside the file")
    # Reading one value unpacks its whole chunk.
    chunk = int(np.prod(dataset.chunks or (), dtype=object)) * dataset.dtype.itemsize
    if (
        dataset.dtype.kind not in "fiub"
        or dataset.nbytes > _MAX_BYTES
        or chunk > max(dataset.nbytes, _MAX_SMALL_CHUNK)
    ):
        raise L3PruneError(f"{path}: weight {name} is {dataset.dtype} of shape {dataset.shape}")
    array = dataset[()]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise L3PruneError(f"{path}: weight {name} has NaN or infinite values")
    return array
