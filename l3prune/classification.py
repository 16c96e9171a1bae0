"""Training and evaluation of networks on labels, of one class a clip or of several."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from l3prune import metrics, surgery
from l3prune.batches import Numbered
from l3prune.checkpoints import take_weights
from l3prune.checks import check_sizes
from l3prune.datasets import Dataset
from l3prune.devices import Devices
from l3prune.errors import ParameterError
from l3prune.gradual import MaskUpdate
from l3prune.labelled import ClipAudio, LabelledMaps, LabelledSource, label_maps
from l3prune.layers import ClipMean, FrontEndLayer
from l3prune.networks import (
    attach_config,
    create_network,
    inference,
    network_config,
    set_labels,
    takes,
)
from l3prune.recipes import Objective, Recipe
from l3prune.segments import segmented_maps
from l3prune.slimming import check_penalised, check_strength, with_penalty
from l3prune.training import fit
from l3prune.windows import batch_indices, evenly

#: Changes a training batch: (inputs, targets, generator) -> (inputs, targets). The generator is a
#: function of the seed and of which inputs the batch has, in their order. One change is told from
#: another by its `__name__`, or its `repr`, as of a dataclass.
Augmentation = Callable[
    [np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]
]


def front_end_layer(network: keras.Model) -> FrontEndLayer:
    """The layer of a network that turns its waveform into maps.

    Raises
    ------
    ParameterError
        There is none.

    Examples
    --------
    >>> front_end_layer(create_network("dcase2021")).sample_rate
    44100
    """
    for layer in network.layers:
        if isinstance(layer, FrontEndLayer):
            return layer
    raise ParameterError(f"network {network.name} has no front end; build it with input='waveform'")


def trained_part(network: keras.Model) -> keras.Model:
    """What is behind the front end, of the same layers; its checkpoints hold the whole network.

    Examples
    --------
    >>> trained_part(create_network("dcase2021")).input_shape
    (None, 40, 500, 1)
    """
    return attach_config(surgery.behind_front_end(network), network_config(network))


def open_maps(
    network: keras.Model,
    dataset: Dataset,
    cache_dir: str | os.PathLike[str],
    *,
    fill: str = "repeat",
    quiet: bool = False,
) -> LabelledMaps:
    """The clips of a corpus as a network's front end gives them, computed once.

    Parameters
    ----------
    network : keras.Model
        With waveform input.
    dataset : Dataset
    cache_dir : str or path-like
        Maps before normalisation are kept here and found again by the files' names, sizes and
        times, and by the front end's settings and version, whatever is tested and validated.
    fill : {"repeat", "zeros"}
        How clips shorter than the network's input are filled; see `labelled.fitted`.
    quiet : bool
        No progress bar.

    Returns
    -------
    maps : LabelledMaps
        Of all clips, for this network's normalisation; of a network that hears clips in segments
        `segments.SegmentedMaps`, for which nothing is filled.

    Raises
    ------
    L3PruneError
        A clip cannot be decoded.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import soundfile
    >>> from l3prune.datasets import Clip
    >>> path = Path(tempfile.mkdtemp()) / "a.wav"
    >>> soundfile.write(path, np.zeros(44100), 44100)
    >>> dataset = Dataset("toy", (Clip(path, 1, 0),), ("dog",))
    >>> open_maps(create_network("dcase2021"), dataset, path.parent, quiet=True).maps.shape
    (1, 40, 500, 1)
    """
    layer = front_end_layer(network)
    raw = layer.unnormalised()
    told = json.dumps([type(raw).__name__, raw.version, raw.get_config()], sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()[:12]
    channels, samples = network.input_shape[1:]
    samples = samples if layer.segment_frames is None else None
    forward = tf.function(
        lambda waveforms: raw(waveforms),
        input_signature=[tf.TensorSpec((None, channels, samples), tf.float32)],
    )

    def compute(waveforms: np.ndarray) -> np.ndarray:
        return forward(waveforms).numpy()

    if samples is None:
        return segmented_maps(dataset, compute, layer, key, cache_dir, quiet=quiet)
    if dataset.maps is not None:
        raise ParameterError(
            f"{dataset.name} is here as spectrograms of another network than {network.name}; give "
            "its audio"
        )
    paths = [clip.path for clip in dataset.clips]
    audio = ClipAudio(paths, layer.sample_rate, samples, fill, channels)
    shape = tuple(int(size) for size in layer.output_shape[1:])
    maps = label_maps(dataset, audio, compute, shape, key, cache_dir, quiet=quiet)
    return maps.normalised(layer.normalise)


def network_for(
    name: str, labels: tuple[str, ...], train: LabelledMaps | None = None, **arguments: Any
) -> keras.Model:
    """A fresh network for some classes, normalised by training clips if it is one that is.

    Parameters
    ----------
    name : str
        One of `list_networks()`, whose builder takes `classes`.
    labels : tuple of str
    train : LabelledMaps or None
        Training clips, for the builder's `normalisation`; see `LabelledMaps.statistics`.
    **arguments
        Of the builder; they win.

    Raises
    ------
    ParameterError
        The network is no classifier; or as its builder.

    Examples
    --------
    >>> network_for("dcase2021", ("dog", "rain")).output_shape
    (None, 2)
    """
    given = dict(arguments)
    if "classes" not in given:
        if not takes(name, "classes"):
            create_network(name, **given)  # says what is wrong with the name, if that is
            raise ParameterError(
                f"network {name} gives embeddings, not classes; its builder takes no classes, so "
                "it cannot be trained on labels"
            )
        given["classes"] = len(labels)
    if train is not None and takes(name, "normalisation"):
        given.setdefault("normalisation", train.statistics())
    network = create_network(name, **given)
    if network.output_shape == (None, len(labels)):
        set_labels(network, labels)
    return network


def objective_of(network: keras.Model, multi_label: bool) -> Objective:
    """What training on labels makes small: cross-entropy, as the network's output wants it.

    Behind a softmax, categorical; behind a sigmoid, binary, class by class; of an output that is
    neither, as of logits, binary if inputs can be of several classes.

    Raises
    ------
    ParameterError
        A softmax, of one class an input, for inputs of several.

    Examples
    --------
    >>> objective_of(create_network("dcase2021"), False).metrics
    ('accuracy',)
    """
    kind = _activation(network)
    if kind == "softmax" and multi_label:
        raise ParameterError(
            f"network {network.name} ends in a softmax, so it gives one class an input, and these "
            "inputs have several; take a network that ends in a sigmoid"
        )
    binary = kind == "sigmoid" or multi_label
    loss = "BinaryCrossentropy" if binary else "CategoricalCrossentropy"
    figures = ("lwlrap",) if multi_label else ("accuracy",)
    return Objective({"class_name": loss, "config": {"from_logits": kind == "linear"}}, figures)


def _activation(network: keras.Model) -> str:
    """softmax, sigmoid or linear: what makes a network's output."""
    layer = network.get_layer(network.output_names[0])
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    name = keras.activations.serialize(getattr(layer, "activation", keras.activations.linear))
    return name if name in ("softmax", "sigmoid") else "linear"


def train_on_labels(
    network: keras.Model,
    train: LabelledSource,
    validation: LabelledSource,
    output_dir: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    batch_size: int = 16,
    validation_batch_size: int = 64,
    train_epoch_size: int | None = None,
    validation_epoch_size: int | None = None,
    augment: Augmentation | None = None,
    gamma_l1: float = 0.0,
    pruner: MaskUpdate | None = None,
    devices: Devices | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Train a network in place on labels, to the weights of the epoch that validates best.

    Parameters
    ----------
    network : keras.Model
        Gives a value for each class. What is behind its front end is trained, if the sources give
        maps; see `open_maps`.
    train, validation : LabelledSource
        Neither has a clip of the test split.
    output_dir : str or path-like
        Checkpoints, of the whole network, and history; see `training.fit`.
    recipe : Recipe or None
        None takes EdgeL3's.
    batch_size, validation_batch_size : int
        Inputs a step, on all devices together.
    train_epoch_size, validation_epoch_size : int or None
        Batches an epoch; None takes as many as hold all inputs. A shorter validation takes inputs
        evenly over the data, the same in every epoch.
    augment : callable or None
        Changes each training batch: mixup, say. See `Augmentation`. Not of clips in segments.
    gamma_l1 : float
        Strength of network slimming's penalty on the scales of BatchNorm; see `slimming`. The
        losses in the history have it added.
    pruner : MaskUpdate or None
        Changes masks while the network is trained; see `training.fit`.
    devices : Devices or None
        None is one device in float32; see `training.fit`.
    resume : bool
        Go on with the run in `output_dir`.
    quiet : bool
        No progress bars.

    Returns
    -------
    history : list of dict
        See `training.fit`; with accuracy and val_accuracy, or if inputs can be of several classes
        with lwlrap and val_lwlrap, see `metrics.lwlrap`.

    Raises
    ------
    ParameterError
        A size that is not positive, a training batch larger than the data, or a network of other
        inputs or another number of classes.
    L3PruneError
        As `training.fit`.

    Examples
    --------
    >>> import tempfile
    >>> maps = np.zeros((2, 40, 500, 1), np.float32)
    >>> data = LabelledMaps(maps, np.eye(2, dtype=np.float32), ("dog", "rain"), "two")
    >>> network = create_network("dcase2021", filters=[1, 1, 1], dense_units=1, classes=2)
    >>> folder, recipe = tempfile.mkdtemp(), Recipe(epochs=1)
    >>> history = train_on_labels(
    ...     network, data, data, folder, recipe=recipe, batch_size=2, quiet=True
    ... )
    >>> "val_accuracy" in history[0]
    True
    """
    check_sizes(
        batch_size=batch_size,
        validation_batch_size=validation_batch_size,
        train_epoch_size=train_epoch_size,
        validation_epoch_size=validation_epoch_size,
    )
    part = part_for(network, train)
    if part_for(network, validation).input_shape != part.input_shape:
        raise ParameterError("training and validation are not both waveforms, or both maps")
    if augment is not None and len(part.inputs) > 1:
        raise ParameterError(
            f"network {network.name} hears clips in segments, which cannot be augmented; drop that"
        )
    check_strength(gamma_l1)
    if gamma_l1:
        part = with_penalty(part, gamma_l1, check_penalised(network))
    if batch_size > len(train):
        raise ParameterError(
            f"training batches of {batch_size} are more than the {len(train)} training clips; give "
            "at most so many, or more clips"
        )
    recipe = recipe or Recipe()
    devices = devices or Devices()
    devices.check_batch(batch_size)
    trained = devices.copy(part)
    chosen = evenly(len(validation), validation_batch_size, validation_epoch_size)
    data: dict[str, int | str] = {
        "batch_size": batch_size,
        "training_data": train.fingerprint,
        "validation_data": validation.fingerprint,
    }
    if augment is not None:
        data["augment"] = getattr(augment, "__name__", None) or repr(augment)
    if gamma_l1:
        data["gamma_l1"] = str(float(gamma_l1))
    history = fit(
        trained,
        Numbered(
            functools.partial(batch_indices, train, batch_size, recipe.seed),
            functools.partial(_augmented, train, augment, recipe.seed),
        ),
        Numbered(lambda first: iter(chosen[first:]), validation.read),
        train_epoch_size or -(-len(train) // batch_size),
        output_dir,
        recipe,
        objective=objective_of(network, train.multi_label),
        pruner=pruner,
        data=data,
        devices=devices,
        resume=resume,
        quiet=quiet,
    )
    if trained is not part or gamma_l1:
        take_weights(network, trained)
    return history


def part_for(network: keras.Model, source: LabelledSource) -> keras.Model:
    """What takes the inputs of a source: the network, what is behind its front end, clips' means.

    Raises
    ------
    ParameterError
        Neither does; or the network has another number of classes.

    Examples
    --------
    >>> maps = np.zeros((1, 40, 500, 1), np.float32)
    >>> data = LabelledMaps(maps, np.ones((1, 1), np.float32), ("dog",), "one")
    >>> part_for(create_network("dcase2021"), data)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: network dcase2021 gives 10 values an input, the labels have 1 ...
    """
    shape = network.output_shape
    if shape != (None, len(source.labels)):
        raise ParameterError(
            f"network {network.name} gives {shape[1]} values an input, the labels have "
            f"{len(source.labels)} classes; take a network that was built or trained for these"
        )
    read = source.read(np.array([0]))[0]
    inputs = (read[0] if isinstance(read, tuple) else read).shape[1:]
    for part in (network, trained_part(network)):
        if part.input_shape[1:] == inputs:
            return _of_clips(part) if isinstance(read, tuple) else part
    raise ParameterError(
        f"network {network.name} takes inputs of shape {network.input_shape[1:]}, the data are "
        f"{inputs}; open them for this network"
    )


def _of_clips(part: keras.Model) -> keras.Model:
    """A network of segments and the places of their clips, which gives the means of clips."""
    places = keras.Input((), name="clip")
    means = ClipMean(name="clip_mean")([part.output, places])
    whole = keras.Model([*part.inputs, places], means, name=part.name)
    return attach_config(whole, network_config(part))


def _augmented(
    train: LabelledSource, augment: Augmentation | None, seed: int, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = train.read(indices)
    if augment is None:
        return inputs, targets
    return augment(inputs, targets, np.random.default_rng([seed, *indices.tolist()]))


def predict(
    network: keras.Model,
    source: LabelledSource,
    *,
    batch_size: int | None = None,
    quiet: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """What a network says of all inputs, and their targets.

    Parameters
    ----------
    network : keras.Model
    source : LabelledSource
    batch_size : int or None
        Inputs at once. None takes 64; of clips in segments 8, which are many more segments.
    quiet : bool
        No progress bar.

    Returns
    -------
    probabilities, targets : np.ndarray, (n, classes) float32
        Of logits, their softmax; or sigmoid, if inputs can be of several classes.

    Examples
    --------
    >>> maps = np.zeros((2, 40, 500, 1), np.float32)
    >>> data = LabelledMaps(maps, np.eye(2, dtype=np.float32), ("dog", "rain"), "two")
    >>> predict(create_network("dcase2021", classes=2), data, quiet=True)[0]
    array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    part = part_for(network, source)
    if batch_size is None:
        batch_size = 64 if len(part.inputs) == 1 else 8
    check_sizes(batch_size=batch_size)
    infer = inference(part)
    logits = _activation(network) == "linear"
    found, wanted = [], []
    batches = evenly(len(source), batch_size, None)
    for indices in tqdm(batches, "predicting", unit="batch", disable=quiet or None):
        inputs, targets = source.read(indices)
        values = infer(*inputs) if isinstance(inputs, tuple) else infer(inputs)
        if logits:
            function = tf.nn.sigmoid if source.multi_label else tf.nn.softmax
            values = function(values).numpy()
        found.append(values)
        wanted.append(targets)
    return np.concatenate(found), np.concatenate(wanted)


def evaluate(
    network: keras.Model,
    source: LabelledSource,
    *,
    groups: Mapping[str, list[str]] | None = None,
    batch_size: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """How well a network tells the classes; see `metrics.class_report`.

    Of inputs that may have several classes see `metrics.tagging_report`.

    Parameters
    ----------
    network : keras.Model
    source : LabelledSource
    groups : mapping of str to list of str, or None
        Kind of group, such as "device" -> the group of each input.
    batch_size : int or None
        See `predict`.
    quiet : bool
        No progress bar.

    Examples
    --------
    >>> maps = np.zeros((2, 40, 500, 1), np.float32)
    >>> data = LabelledMaps(maps, np.eye(2, dtype=np.float32), ("dog", "rain"), "two")
    >>> evaluate(create_network("dcase2021", classes=2), data, quiet=True)["accuracy"]
    0.5
    """
    probabilities, targets = predict(network, source, batch_size=batch_size, quiet=quiet)
    if source.multi_label:
        return metrics.tagging_report(probabilities, targets, source.labels)
    return metrics.class_report(probabilities, targets, source.labels, groups)
