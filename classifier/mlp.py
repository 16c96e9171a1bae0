"""The classifier of the L3 papers: a standardised two-hidden-layer perceptron on single frames.

Source: Cramer, Wu, Salamon, Bello, "Look, listen and learn more", ICASSP 2019, section 4.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write

HIDDEN = (512, 128)
WEIGHT_DECAY = 1e-5

#: Columns of the history, one row per epoch. Losses include the weight decay, as Keras's do.
HISTORY = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    epochs : int
        At most so many.
    batch_size : int
        Frames per step.
    learning_rate : float
        Of Adam.
    patience : int
        Stop after so many epochs in a row without a lower validation loss.

    Raises
    ------
    ParameterError
        A value is not positive.

    Examples
    --------
    >>> Recipe(epochs=50)
    Recipe(epochs=50, batch_size=32, learning_rate=0.0001, patience=20)
    """

    epochs: int = 150
    batch_size: int = 32
    learning_rate: float = 1e-4
    patience: int = 20

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            try:
                integer = operator.index(value)
            except TypeError:
                integer = 0
            if integer < 1:
                raise ParameterError(f"{name}={value} is not a positive integer; pass 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise ParameterError(
                f"learning_rate={self.learning_rate} is not positive and finite; "
                "1e-4 is a good start"
            )


@dataclass(frozen=True, eq=False)
class MLP:
    """A trained classifier: arrays only, so that using one takes no TensorFlow.

    Attributes
    ----------
    mean, scale : np.ndarray, (D,) float32
        Subtracted from a frame, then divided by.
    kernels : tuple of np.ndarray, (in, out) float32
        Of the dense layers, first to last.
    biases : tuple of np.ndarray, (out,) float32

    Examples
    --------
    >>> one = np.ones(1, np.float32)
    >>> mlp = MLP(0 * one, one, (np.float32([[0, 1]]),), (np.zeros(2, np.float32),))
    >>> mlp.predict(np.zeros((1, 1), np.float32))
    array([[0.5, 0.5]], dtype=float32)
    """

    mean: np.ndarray
    scale: np.ndarray
    kernels: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """Class probabilities of each frame.

        Parameters
        ----------
        frames : np.ndarray, (n, D) float32
            As extracted, not standardised.

        Returns
        -------
        probabilities : np.ndarray, (n, classes) float32

        Raises
        ------
        ParameterError
            Another D than that of the training frames.
        """
        if frames.ndim != 2 or frames.shape[1] != len(self.mean):
            raise ParameterError(
                f"frames of shape {frames.shape} given; this classifier takes (n, {len(self.mean)})"
            )
        values = standardize(frames, self.mean, self.scale)
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            values = np.maximum(values @ kernel + bias, 0)
        logits = values @ self.kernels[-1] + self.biases[-1]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz without pickles: mean, scale, kernel_0 …, bias_0 …."""
        arrays: dict[str, Any] = {"mean": self.mean, "scale": self.scale}
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            arrays[f"kernel_{i}"] = kernel
            arrays[f"bias_{i}"] = bias
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            # A file, because np.savez appends .npz to a path without it.
            np.savez(file, **arrays)


def load_mlp(path: str | os.PathLike[str]) -> MLP:
    """Read what `MLP.save` wrote.

    Raises
    ------
    L3PruneError
        The file is missing, damaged, or holds something else.

    Examples
    --------
    >>> load_mlp("/nowhere/mlp.npz")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /nowhere/mlp.npz is missing; train it first
    """
    path = Path(path)
    if not path.is_file():
        raise L3PruneError(f"{path} is missing; train it first")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            depth = sum(name.startswith("kernel_") for name in arrays)
            mlp = MLP(
                arrays["mean"],
                arrays["scale"],
                tuple(arrays[f"kernel_{i}"] for i in range(depth)),
                tuple(arrays[f"bias_{i}"] for i in range(depth)),
            )
        sizes = [len(mlp.mean), *(len(bias) for bias in mlp.biases)]
        shapes = [kernel.shape for kernel in mlp.kernels]
        if not depth or shapes != list(itertools.pairwise(sizes)):
            raise ValueError(f"its kernels {shapes} do not fit its biases {sizes[1:]}")
    except (OSError, ValueError, TypeError, LookupError, EOFError, AttributeError) as error:
        problem: Exception = error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        problem = error
    else:
        return mlp
    raise L3PruneError(f"{path} is no classifier ({problem}); train it again") from problem


def build_network(dimension: int, classes: int, seed: int) -> Any:
    """The untrained perceptron: dense 512 and 128 with ReLU, dense softmax; Glorot, L2 1e-5.

    Parameters
    ----------
    dimension, classes : int
        Lengths of a frame and of the output.
    seed : int
        Of the initial kernels.

    Returns
    -------
    network : keras.Model, (n, dimension) -> (n, classes)

    Examples
    --------
    >>> build_network(64, 10, seed=0).count_params()
    100234
    """
    import tf_keras as keras

    sizes = (*HIDDEN, classes)
    activations = ("relu",) * len(HIDDEN) + ("softmax",)
    seeds = np.random.SeedSequence(seed).generate_state(len(sizes))
    layers = [keras.layers.Input((dimension,))]
    for size, activation, layer_seed in zip(sizes, activations, seeds, strict=True):
        layers.append(
            keras.layers.Dense(
                size,
                activation,
                kernel_initializer=keras.initializers.GlorotUniform(int(layer_seed)),
                kernel_regularizer=keras.regularizers.L2(WEIGHT_DECAY),
            )
        )
    return keras.Sequential(layers)


def fit(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    classes: int,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    title: str | None = None,
) -> tuple[MLP, list[dict[str, float]]]:
    """Train a classifier and keep the weights of the epoch with the lowest validation loss.

    The mean and the scale are those of the training frames. The same seed gives the same bits on
    one CPU; global random state is neither read nor changed.

    Parameters
    ----------
    train, valid : (frames, targets)
        frames (n, D) float32, targets (n,) integers in 0 … classes - 1.
    classes : int
        Length of the output.
    seed : int
        Of the initial weights and of the order of the frames, 0 or more.
    recipe : Recipe, optional
    title : str, optional
        Show a progress bar with this title.

    Returns
    -------
    mlp : MLP
    history : list of dict
        One row per epoch with the keys `HISTORY`; loss and accuracy are means over the frames.

    Raises
    ------
    ParameterError
        The seed is negative, or there are no frames.
    L3PruneError
        The loss is not finite.

    Examples
    --------
    >>> frames, targets = np.float32([[0], [1]]), np.array([0, 1])
    >>> mlp, history = fit((frames, targets), (frames, targets), 2, recipe=Recipe(epochs=3))
    >>> mlp.predict(frames).shape, [row["epoch"] for row in history]
    ((2, 2), [1, 2, 3])
    """
    recipe = recipe or Recipe()
    check_seed(seed)
    if not len(train[0]) or not len(valid[0]):
        raise ParameterError("no frames to train or to validate on; give both")

    import tensorflow as tf
    import tf_keras as keras
    from sklearn.preprocessing import StandardScaler
    from tqdm import tqdm

    scaler = StandardScaler().fit(train[0])
    mean, scale = scaler.mean_.astype(np.float32), scaler.scale_.astype(np.float32)
    frames, valid_frames = (tf.constant(standardize(x, mean, scale)) for x in (train[0], valid[0]))
    targets, valid_targets = (tf.constant(y, tf.int64) for y in (train[1], valid[1]))
    n_frames = len(train[0])
    batch_size = recipe.batch_size

    network = build_network(train[0].shape[1], classes, seed)
    weights = network.trainable_variables
    optimizer = keras.optimizers.Adam(recipe.learning_rate)
    optimizer.build(weights)

    def losses_and_hits(batch: tf.Tensor, batch_targets: tf.Tensor) -> tuple[Any, Any]:
        probabilities = network(batch)
        losses = keras.losses.sparse_categorical_crossentropy(batch_targets, probabilities)
        hits = keras.metrics.sparse_categorical_accuracy(batch_targets, probabilities)
        return losses, hits

    # An epoch is one call: `Model.fit` with its call per step takes more than twice as long.
    @tf.function
    def run_epoch(order: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss_sum, hit_sum = 0.0, 0.0
        for start in tf.range(0, n_frames, batch_size):
            batch = order[start : start + batch_size]
            with tf.GradientTape() as tape:
                losses, hits = losses_and_hits(tf.gather(frames, batch), tf.gather(targets, batch))
                loss = tf.reduce_mean(losses) + tf.add_n(network.losses)
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            loss_sum += loss * tf.cast(tf.size(batch), tf.float32)
            hit_sum += tf.reduce_sum(hits)
        return loss_sum / n_frames, hit_sum / n_frames

    @tf.function
    def validate() -> tuple[tf.Tensor, tf.Tensor]:
        losses, hits = losses_and_hits(valid_frames, valid_targets)
        return tf.reduce_mean(losses) + tf.add_n(network.losses), tf.reduce_mean(hits)

    rng = np.random.default_rng(seed)
    history: list[dict[str, float]] = []
    best_loss, best_epoch, best_weights = math.inf, 0, network.get_weights()
    # None: no bar where standard error is a file, as in a batch job.
    bar = tqdm(
        range(1, recipe.epochs + 1), title, unit="epoch", disable=True if title is None else None
    )
    with bar:
        for epoch in bar:
            loss, accuracy = run_epoch(tf.constant(rng.permutation(n_frames)))
            val_loss, val_accuracy = validate()
            row = (epoch, *(float(value) for value in (loss, accuracy, val_loss, val_accuracy)))
            history.append(dict(zip(HISTORY, row, strict=True)))
            if not np.isfinite(row).all():
                raise L3PruneError(
                    f"the loss is not finite in epoch {epoch}; "
                    f"lower learning_rate={recipe.learning_rate}"
                )
            if row[3] < best_loss:
                best_loss, best_epoch, best_weights = row[3], epoch, network.get_weights()
            bar.set_postfix(val_loss=f"{row[3]:.3f}", best=f"{best_loss:.3f}", refresh=False)
            if epoch - best_epoch >= recipe.patience:
                break
    return MLP(mean, scale, tuple(best_weights[::2]), tuple(best_weights[1::2])), history


def standardize(frames: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(frames - mean) / scale in float32.

    Examples
    --------
    >>> standardize(np.float32([[3]]), np.float32([1]), np.float32([4]))
    array([[0.5]], dtype=float32)
    """
    return (frames - mean) / scale


def check_seed(seed: int) -> None:
    """Refuse a seed that is not an integer from 0.

    Examples
    --------
    >>> check_seed(-1)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: seed=-1 is not an integer of 0 or more
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ParameterError(f"seed={seed} is not an integer of 0 or more")


def best_row(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The row whose weights `fit` kept: the first with the lowest validation loss.

    Examples
    --------
    >>> best_row([{"epoch": 1, "val_loss": 2.0}, {"epoch": 2, "val_loss": 1.0}])
    {'epoch': 2, 'val_loss': 1.0}
    """
    return min(history, key=operator.itemgetter("val_loss"))
