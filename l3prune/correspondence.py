"""Training and evaluation on audio-visual correspondence: do an image and a second of sound belong
together?"""

from __future__ import annotations

import functools
import os
from typing import Protocol

import numpy as np
import tf_keras as keras
from tqdm import tqdm

from l3prune.batches import Numbered
from l3prune.checkpoints import take_weights
from l3prune.checks import check_sizes
from l3prune.devices import Devices
from l3prune.errors import ParameterError
from l3prune.gradual import MaskUpdate
from l3prune.networks import inference
from l3prune.recipes import CORRESPONDENCE, Recipe
from l3prune.training import fit
from l3prune.windows import batch_indices, evenly


class PairSource(Protocol):
    """Numbered pairs of an image and a second of sound; see `datasets.avc.open_pairs`.

    Attributes
    ----------
    sample_rate : int
        Hz.
    fingerprint : str
        Changes when the pairs change.
    """

    sample_rate: int
    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images (n, 224, 224, 3) and sounds (n, 1, sample_rate) in [-1, 1], and labels (n, 2),
        one-hot [mismatch, match]; all float32."""
        ...

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A permutation of the pairs, fast to read in that order."""
        ...


def train_correspondence(
    network: keras.Model,
    train: PairSource,
    validation: PairSource,
    output_dir: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    batch_size: int = 64,
    validation_batch_size: int = 64,
    train_epoch_size: int | None = None,
    validation_epoch_size: int | None = None,
    pruner: MaskUpdate | None = None,
    devices: Devices | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Train an audio-visual network in place on categorical cross-entropy.

    Layers that are not trainable, as `avc.freeze_vision` makes those of the image half, keep every
    weight and the statistics of their BatchNorm. Masked layers keep their zeros.

    Parameters
    ----------
    network : keras.Model
        "avc" or "tiny_l3", with waveform input.
    train, validation : PairSource
    output_dir : str or path-like
        Checkpoints and history; see `training.fit`.
    recipe : Recipe or None
        None takes EdgeL3's.
    batch_size, validation_batch_size : int
        Pairs a step, on all devices together.
    train_epoch_size, validation_epoch_size : int or None
        Batches an epoch; None takes as many as hold all pairs; see `distillation.distill`. A
        shorter validation takes pairs evenly over the data, the same in every epoch.
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
        See `training.fit`; with `accuracy` and `val_accuracy`. `network` has the weights of the
        best validation loss.

    Raises
    ------
    ParameterError
        A size that is not positive, a training batch larger than the data, or pairs of another
        sample rate than the network's.
    L3PruneError
        Data or folders are not what they should be.

    Examples
    --------
    >>> import tempfile
    >>> from l3prune.networks import create_network
    >>> class Noise:
    ...     sample_rate, fingerprint = 8000, "noise"
    ...     def __len__(self): return 2
    ...     def order(self, generator): return generator.permutation(2)
    ...     def read(self, indices):
    ...         count = len(indices)
    ...         images = np.zeros((count, 224, 224, 3), np.float32)
    ...         return images, np.ones((count, 1, 8000), np.float32), np.eye(2)[indices]
    >>> small = {"audio_filters": [1] * 8, "vision_filters": [1] * 8}
    >>> network = create_network("avc", audio="sea64", **small)
    >>> recipe = Recipe(epochs=1, learning_rate=1e-3)
    >>> sizes = {"batch_size": 2, "validation_batch_size": 2}
    >>> folder = tempfile.mkdtemp()
    >>> history = train_correspondence(
    ...     network, Noise(), Noise(), folder, recipe=recipe, **sizes, quiet=True
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
    for source in (train, validation):
        check_rate(network, source)
    check_batch(train, batch_size)
    recipe = recipe or Recipe()

    devices = devices or Devices()
    devices.check_batch(batch_size)
    trained = devices.copy(network)
    chosen = evenly(len(validation), validation_batch_size, validation_epoch_size)
    history = fit(
        trained,
        Numbered(
            functools.partial(batch_indices, train, batch_size, recipe.seed),
            functools.partial(_batch, train),
        ),
        Numbered(lambda first: iter(chosen[first:]), functools.partial(_batch, validation)),
        train_epoch_size or -(-len(train) // batch_size),
        output_dir,
        recipe,
        objective=CORRESPONDENCE,
        pruner=pruner,
        data={
            "batch_size": batch_size,
            "training_size": len(train),
            "validation_size": len(validation),
        },
        devices=devices,
        resume=resume,
        quiet=quiet,
    )
    take_weights(network, trained)
    return history


def _batch(
    pairs: PairSource, numbers: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    images, sounds, labels = pairs.read(numbers)
    return (images, sounds), labels


def correspondence(
    network: keras.Model,
    pairs: PairSource,
    *,
    batch_size: int = 64,
    epoch_size: int | None = None,
    quiet: bool = False,
) -> dict[str, float]:
    """How well an audio-visual network tells what belongs together.

    Parameters
    ----------
    network : keras.Model
        "avc" or "tiny_l3", with waveform input.
    pairs : PairSource
    batch_size : int
        Pairs a step.
    epoch_size : int or None
        Batches, of pairs evenly spread over the data; None takes all pairs.
    quiet : bool
        No progress bar.

    Returns
    -------
    figures : dict
        avc_accuracy in [0, 1], and avc_loss, the mean cross-entropy without weight decay.

    Raises
    ------
    ParameterError
        A size that is not positive, or pairs of another sample rate than the network's.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> class One:
    ...     sample_rate, fingerprint = 8000, "one"
    ...     def __len__(self): return 1
    ...     def read(self, indices):
    ...         labels = np.float32([[0, 1]])
    ...         return np.zeros((1, 224, 224, 3)), np.zeros((1, 1, 8000)), labels
    >>> small = {"audio_filters": [1] * 8, "vision_filters": [1] * 8}
    >>> figures = correspondence(create_network("avc", audio="sea64", **small), One(), quiet=True)
    >>> figures["avc_accuracy"] in (0, 1)
    True
    """
    check_sizes(batch_size=batch_size, epoch_size=epoch_size)
    check_rate(network, pairs)
    infer = inference(network)
    right = loss = count = 0.0
    batches = evenly(len(pairs), batch_size, epoch_size)
    for indices in tqdm(batches, "correspondence", unit="batch", disable=quiet or None):
        images, sounds, labels = pairs.read(indices)
        given = infer(images, sounds).astype(np.float64)
        right += (given.argmax(axis=1) == labels.argmax(axis=1)).sum()
        # As Keras: a probability of zero would cost infinitely much.
        of_label = np.clip((given * labels).sum(axis=1), 1e-7, 1)
        loss -= np.log(of_label).sum()
        count += len(labels)
    return {"avc_accuracy": float(right / count), "avc_loss": float(loss / count)}


def check_rate(network: keras.Model, pairs: PairSource) -> None:
    """Refuse a network without image and waveform input, and pairs of another sample rate.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> check_rate(create_network("sea64"), None)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: network sea64 is not one of images and waveforms; ...
    """
    shapes = [tuple(tensor.shape[1:]) for tensor in network.inputs]
    if len(shapes) != 2 or len(shapes[0]) != 3 or len(shapes[1]) != 2:
        raise ParameterError(
            f"network {network.name} is not one of images and waveforms; give an audio-visual one, "
            "such as create_network('avc')"
        )
    if shapes[1][1] != pairs.sample_rate:
        raise ParameterError(
            f"the pairs are at {pairs.sample_rate} Hz, the network takes {shapes[1][1]} Hz; make "
            f"shards with --sample-rate {shapes[1][1]}"
        )


def check_batch(train: PairSource, batch_size: int) -> None:
    """Refuse training batches that would have a pair twice.

    Examples
    --------
    >>> check_batch([0] * 3, 4)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: training batches of 4 are more than the 3 training pairs; ...
    """
    if batch_size > len(train):
        raise ParameterError(
            f"training batches of {batch_size} are more than the {len(train)} training pairs; give "
            "at most so many, or more pairs"
        )
