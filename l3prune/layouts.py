"""Weight files that Keras 2 wrote, read with h5py: their layers in order, and their arrays.

`save_weights` and `save` wrote them; networks within networks have all their weights in one group.
Nothing in a file is believed before it is checked, and no code or configuration stored in one is
used. Which network a file holds is told by `detection`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from l3prune.errors import L3PruneError
from l3prune.files import is_file, not_allowed

#: A file with more, unpacked, is no L3-type network; reading stops there (a zip bomb would not).
_MAX_BYTES = 2 * 2**30
_MAX_LAYERS = 1000
_MAX_SMALL_CHUNK = 2**20

_KINDS = {
    ("bias", "kernel"): "convolution",
    ("bias", "kernel", "mask"): "convolution",
    ("kernel",): "convolution",
    ("kernel", "mask"): "convolution",
    ("beta", "gamma", "moving_mean", "moving_variance"): "batch normalisation",
    ("alpha",): "slope",
}


@dataclass(frozen=True)
class LayerWeights:
    """One weighted layer of a file: its name, its kind, its arrays by short name.

    Attributes
    ----------
    name : str
    kind : {"convolution", "batch normalisation", "dense", "slope"}
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
    except PermissionError as error:
        raise not_allowed(path) from error
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
        if "kernel" in arrays and not arrays["kernel"].size:
            # It would claim filters, and memory for them, without holding a weight.
            raise L3PruneError(
                f"{path}: kernel of layer {layer_name} is of shape {arrays['kernel'].shape}"
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
        for key in ("filters", "audio_filters", "vision_filters"):
            if not isinstance(found["arguments"].get(key), list | None):
                raise TypeError(f"the network's {key} are not a list")
        if not isinstance(found.get("labels"), list | None):
            raise TypeError("the labels are not a list")
    except (ValueError, TypeError, KeyError) as error:
        raise L3PruneError(f"{path}: the description of the network is damaged: {error}") from error
    return found


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
