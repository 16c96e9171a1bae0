"""Weight files: load networks, write our own checkpoint. h5py only.

Our checkpoint is one .h5 file in Keras's `save_weights` layout, masks included, whose root
attribute `l3prune` holds the network's name and builder arguments as JSON: all that
`load_network` needs. Beside it stand, for people and other tools, a .json sidecar (what the file
is, its sha256, where it comes from) and, for a masked network, the masks as a .plan.npz.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tf_keras as keras

from l3prune import __version__, detection, graph, layouts, surgery
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, write_json
from l3prune.layers import MaskedConv2D
from l3prune.networks import (
    avc,
    create_network,
    list_networks,
    network_config,
    set_labels,
)
from l3prune.plan import PruningPlan


def save_network(
    network: keras.Model,
    path: str | os.PathLike[str],
    *,
    origin: Mapping[str, Any] | None = None,
    attachment: Mapping[str, np.ndarray] | None = None,
    write: bool = True,
) -> None:
    """Write a checkpoint: `path` (.h5), its .json sidecar and, with masks, its .plan.npz.

    The .h5 file alone is the network; each file is written atomically, the .h5 last.

    Parameters
    ----------
    network : keras.Model
        Made by `create_network`, `load_network` or surgery on one of these.
    path : str or path-like
        Ends in .h5.
    origin : mapping or None
        JSON values for the sidecar: command, seed, licence, …
    attachment : mapping of str to np.ndarray, or None
        Further arrays kept in the same file, such as the optimizer's state.
    write : bool
        False: only read the network, which the workers of a distributed run have to do together.

    Raises
    ------
    ParameterError
        The path does not end in .h5.
    L3PruneError
        The folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "net.h5"
    >>> save_network(create_network("sea64"), path)
    >>> load_network(path).name
    'sea64'
    """
    path = Path(path)
    if path.suffix != ".h5":
        raise ParameterError(f"{path}: a checkpoint's name ends in .h5")
    config = network_config(network)
    plan = graph.masks(network)
    description = {
        "network": config.name,
        "arguments": config.arguments,
        "masked_layers": list(plan),
        **({"labels": list(config.labels)} if config.labels else {}),
    }
    # In memory first: HDF5 brings the process down when a disk fills up while it closes a file.
    memory = io.BytesIO()
    with _create(memory) as file:
        file.attrs["l3prune"] = json.dumps(description)
        _write_layers(file, network)
        if attachment:
            group = _create_group(file, "attachment")
            for name, array in attachment.items():
                group.create_dataset(name, data=array)
    if not write:
        return
    content = memory.getvalue()
    plan_path = path.with_suffix(".plan.npz")
    if plan:
        plan.save(plan_path)
    else:
        plan_path.unlink(missing_ok=True)  # of a masked network that was saved here before
    total, nonzero = graph.count_kernel_weights(network)
    write_json(
        path.with_suffix(".json"),
        {
            **description,
            "file": path.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "parameters": network.count_params() - sum(mask.size for mask in plan.values()),
            "kernel_weights": total,
            "nonzero_kernel_weights": nonzero,
            "l3prune_version": __version__,
            **(origin or {}),
        },
    )
    # Last: a run that dies before goes on from the earlier file, and writes all three again.
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _create(memory: io.BytesIO) -> h5py.File:
    """A new HDF5 file that is a function of its content: without times, and in the
    newer layout, which takes half the space for many small datasets."""
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, memory)
    return h5py.File(h5py.h5f.create(b"checkpoint", h5py.h5f.ACC_TRUNC, fcpl=creation, fapl=access))


def _create_group(parent: h5py.Group, name: str) -> h5py.Group:
    creation = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    creation.set_obj_track_times(False)
    return h5py.Group(h5py.h5g.create(parent.id, name.encode(), gcpl=creation))


def _write_layers(file: h5py.File, network: keras.Model) -> None:
    weighted = [layer for layer in network.layers if layer.weights]
    file.attrs["layer_names"] = [layer.name.encode() for layer in weighted]
    file.attrs["backend"] = b"tensorflow"
    file.attrs["keras_version"] = keras.__version__.encode()
    for layer in weighted:
        group = _create_group(file, layer.name)
        names = [f"{layer.name}/{surgery.short_name(weight)}:0" for weight in layer.weights]
        group.attrs["weight_names"] = [name.encode() for name in names]
        _create_group(group, layer.name)
        for name, weight in zip(names, layer.weights, strict=True):
            array = weight.numpy()
            # Zeros and masks pack well, and every HDF5 reader unpacks gzip by itself; but a packed
            # dataset takes 4 kB more for its index.
            packed = {"compression": "gzip", "compression_opts": 9, "chunks": array.shape}
            group.create_dataset(name, data=array, **(packed if array.nbytes > 8192 else {}))


def load_network(path: str | os.PathLike[str], name: str | None = None, **arguments: Any):
    """Load a network from a weight file, which may be gzipped.

    Our own checkpoints say what they are. In others (Keras `save_weights` or whole-model files of
    the L3 family, see `detection`) the network is detected, and weights are matched by kind and
    order; layer names are free, and stored code or configuration is never used.

    Parameters
    ----------
    path : str or path-like
        .h5 or .h5.gz.
    name : str or None
        What the file must hold; None detects it. Of an audio-visual file the image half is
        "vision", the audio half its own name, such as "mel256", or "audio" whichever it is, and
        the whole "avc"; None takes the whole of our own checkpoint, and the audio half of others.
    **arguments
        Passed to `create_network`, in place of those stored or detected.

    Returns
    -------
    network : keras.Model

    Raises
    ------
    L3PruneError
        The file is missing, is no weight file, or holds another network; the message names the
        first layer that differs and both shapes.

    Examples
    --------
    >>> load_network("/nowhere/net.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such weight file: /nowhere/net.h5
    """
    if name not in (None, detection.ANY_AUDIO, *list_networks()):
        raise ParameterError(f"network {name!r} is unknown; known: {', '.join(list_networks())}")
    with layouts.open_file(path) as file:
        description = layouts.description(file, path)
        content = layouts.read_layers(file, path)
    if description is not None:
        name, said, layers = detection.stored(content, description, name, path)
    else:
        name, said, layers = detection.detect(content, name, path, arguments.get("audio"))
    network = create_network(name, **{**said, **arguments})
    if description is not None and description.get("labels") and name == description["network"]:
        try:
            set_labels(network, description["labels"])
        except ParameterError as error:
            raise L3PruneError(f"{path}: {error}") from error
    sources = _matched(network, layers, path)
    masks = {
        target: source.arrays["mask"].astype(bool)
        for target, source in sources.items()
        if "mask" in source.arrays
    }
    if masks:
        network = surgery.apply_masks(network, PruningPlan(masks))
    _assign(network, sources, path)
    return network


def stored_network(path: str | os.PathLike[str]) -> str | None:
    """The network that our own checkpoint says it holds; None for a file of others.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "net.h5"
    >>> save_network(create_network("sea64"), path)
    >>> stored_network(path)
    'sea64'
    """
    with layouts.open_file(path) as file:
        description = layouts.description(file, path)
    return None if description is None else description["network"]


def read_attachment(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Arrays that `save_network` kept beside the weights, by name (empty if there are none).

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "net.h5"
    >>> save_network(create_network("sea64"), path, attachment={"steps": np.array([3])})
    >>> read_attachment(path)["steps"]
    array([3])
    """
    with layouts.open_file(path) as file:
        group = layouts.member(file, "attachment", path)
        if not isinstance(group, h5py.Group):
            return {}
        return {name: layouts.read_array(group, name, path) for name in group}


def fingerprint(network: keras.Model) -> str:
    """A checksum of what a network computes: its configuration and its weights.

    Examples
    --------
    >>> len(fingerprint(create_network("sea64")))
    16
    """
    config = network_config(network)
    digest = hashlib.sha256(json.dumps([config.name, config.arguments]).encode())
    for weight in network.weights:
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()[:16]


def _matched(
    network: keras.Model, layers: list[layouts.LayerWeights], path
) -> dict[str, layouts.LayerWeights]:
    """The layers of a file by the names of the network's layers, in whose order they are."""
    targets = [layer.name for layer in network.layers if layer.weights]
    if network_config(network).name in avc.NETWORKS:
        targets.sort(key=lambda target: avc.PARTS.index(avc.part_of(target)))
    # The L3 embedding is taken before the last BatchNorm, which full audio networks hold.
    if len(layers) == len(targets) + 1 and layers[-1].kind == "batch normalisation":
        layers = layers[:-1]
    if len(layers) != len(targets):
        raise L3PruneError(
            f"{path} has {len(layers)} weighted layers, the network {network.name} "
            f"{len(targets)}: these are weights for another network"
        )
    return dict(zip(targets, layers, strict=True))


def _assign(network: keras.Model, sources: Mapping[str, layouts.LayerWeights], path) -> None:
    for name, source in sources.items():
        target = network.get_layer(name)
        weights = {surgery.short_name(weight): weight for weight in target.weights}
        if not source.arrays.keys() >= weights.keys():
            raise L3PruneError(
                f"{path}: layer {source.name} has weights {', '.join(source.arrays)} where "
                f"{name} of {network.name} has {', '.join(weights)}: "
                "these are weights for another network"
            )
        for short, weight in weights.items():
            array = source.arrays[short]
            if array.shape != tuple(weight.shape):
                raise L3PruneError(
                    f"{path}: {short} of layer {source.name} has shape {array.shape} where "
                    f"{name} of {network.name} has {tuple(weight.shape)}: "
                    "these are weights for another network"
                )
            weight.assign(array.astype(weight.dtype.as_numpy_dtype))
        if isinstance(target, MaskedConv2D):
            target.set_mask(target.mask.numpy())
