"""The classifier of the L3 papers: a perceptron with two hidden layers.

Source: Cramer, Wu, Salamon, Bello, "Look, listen and learn more", ICASSP 2019, section 4.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifier.checks import check_count, check_positive, check_seed
from classifier.progress import Checkpoint, Progress
from l3prune.errors import L3PruneError, ParameterError
from l3prune.interruption import Signals, noted

HIDDEN = (512, 128)

#: Rows, about, that TensorFlow gets at once.
CHUNK = 8192

#: Columns of the history, one row per epoch; without validation rows only the first three. Losses
#: include the weight decay, as Keras's do.
HISTORY = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    epochs : int
        At most so many.
    batch_size : int
        Rows per step.
    learning_rate : float
        Of Adam.
    patience : int
        Stop after so many epochs in a row without a lower validation loss.
    weight_decay : float
        Factor of the kernels' squared norm in the loss; 0 for none.

    Raises
    ------
    ParameterError
        A value is not positive, or the weight decay is negative.

    Examples
    --------
    >>> Recipe(epochs=50)
    Recipe(epochs=50, batch_size=32, learning_rate=0.0001, patience=20, weight_decay=1e-05)
    """

    epochs: int = 150
    batch_size: int = 32
    learning_rate: float = 1e-4
    patience: int = 20
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            check_count(name, getattr(self, name))
        check_positive("learning_rate", self.learning_rate, start="1e-4")
        if not 0 <= self.weight_decay < math.inf:
            raise ParameterError(
                f"weight_decay={self.weight_decay} is not 0 or more and finite; "
                "1e-5 is a good start"
            )


@dataclass(frozen=True, eq=False)
class MLP:
    """A trained perceptron: arrays only, so that using one takes no TensorFlow.

    Attributes
    ----------
    kernels : tuple of np.ndarray, (in, out) float32
        Of the dense layers, first to last.
    biases : tuple of np.ndarray, (out,) float32

    Examples
    --------
    >>> mlp = MLP((np.float32([[0, 1]]),), (np.zeros(2, np.float32),))
    >>> mlp.predict(np.zeros((1, 1), np.float32))
    array([[0.5, 0.5]], dtype=float32)
    """

    kernels: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Length of a row, number of classes."""
        return len(self.kernels[0]), len(self.biases[-1])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Class probabilities of each row.

        Parameters
        ----------
        rows : np.ndarray, (n, in) float32
            Standardised.

        Returns
        -------
        probabilities : np.ndarray, (n, classes) float32
        """
        values = rows
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            values = np.maximum(values @ kernel + bias, 0)
        logits = values @ self.kernels[-1] + self.biases[-1]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """The kernels and biases as kernel_0 …, bias_0 …."""
        return {
            f"{name}_{i}": array
            for i, pair in enumerate(zip(self.kernels, self.biases, strict=True))
            for name, array in zip(("kernel", "bias"), pair, strict=True)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> MLP:
        """What `arrays` gave; ValueError or KeyError if they are not of one perceptron."""
        depth = sum(name.startswith("kernel_") for name in arrays)
        kernels, biases = (
            tuple(arrays[f"{name}_{i}"] for i in range(depth)) for name in ("kernel", "bias")
        )
        shapes = [kernel.shape for kernel in kernels]
        if (
            not depth
            or len(shapes[0]) != 2
            or any(bias.ndim != 1 for bias in biases)
            or any(array.dtype != np.float32 for array in (*kernels, *biases))
        ):
            raise ValueError("its kernels and biases are not of dense layers")
        sizes = [shapes[0][0], *(len(bias) for bias in biases)]
        if shapes != list(itertools.pairwise(sizes)):
            raise ValueError(f"its kernels {shapes} do not fit its biases {sizes[1:]}")
        return cls(kernels, biases)


def build_network(dimension: int, classes: int, seed: int, weight_decay: float = 1e-5) -> Any:
    """The untrained perceptron: dense 512 and 128 with ReLU, dense softmax; Glorot, L2.

    Parameters
    ----------
    dimension, classes : int
        Lengths of a row and of the output.
    seed : int
        Of the initial kernels.
    weight_decay : float
        Of the kernels; biases have none.

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
                kernel_regularizer=keras.regularizers.L2(weight_decay),
            )
        )
    return keras.Sequential(layers)


def fit_mlp(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray] | None,
    classes: int,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    title: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[MLP, list[dict[str, float]]]:
    """Train a perceptron and keep the weights of the epoch with the lowest validation loss.

    The same seed gives the same bits on one CPU; global random state is neither read nor changed.

    Parameters
    ----------
    train, valid : (rows, targets)
        rows (n, D) float32, standardised; targets (n,) integers in 0 … classes - 1.
        Without `valid`, the weights of the last epoch are kept.
    classes : int
        Length of the output.
    seed : int
        Of the initial weights and of the order of the rows, 0 or more.
    recipe : Recipe, optional
    title : str, optional
        Show a progress bar with this title.
    checkpoint : Checkpoint, optional
        Where the training is kept while it runs, and gone on from. Who gives it removes it when the
        training's result is safe. Without it a signal ends the process as it does any other.

    Returns
    -------
    mlp : MLP
    history : list of dict
        One row per epoch with the keys `HISTORY`; loss and accuracy are means over the rows.

    Raises
    ------
    ParameterError
        The seed is negative, or there are no rows.
    L3PruneError
        The loss is not finite, or the checkpoint is of another training.
    Interrupted
        SIGTERM or SIGUSR1 came, and the checkpoint is written.

    Examples
    --------
    >>> rows, targets = np.float32([[0], [1]]), np.array([0, 1])
    >>> mlp, history = fit_mlp((rows, targets), (rows, targets), 2, recipe=Recipe(epochs=3))
    >>> mlp.predict(rows).shape, [row["epoch"] for row in history]
    ((2, 2), [1, 2, 3])
    """
    recipe = recipe or Recipe()
    check_seed(seed)
    if not len(train[0]) or (valid is not None and not len(valid[0])):
        raise ParameterError("no rows to train or to validate on; give both")

    import tensorflow as tf
    import tf_keras as keras
    from tqdm import tqdm

    n_rows = len(train[0])
    batch_size = recipe.batch_size

    network = build_network(train[0].shape[1], classes, seed, recipe.weight_decay)
    weights = network.trainable_variables
    optimizer = keras.optimizers.Adam(recipe.learning_rate)
    optimizer.build(weights)

    def losses_and_hits(batch: tf.Tensor, batch_targets: tf.Tensor) -> tuple[Any, Any]:
        probabilities = network(batch)
        losses = keras.losses.sparse_categorical_crossentropy(batch_targets, probabilities)
        hits = keras.metrics.sparse_categorical_accuracy(batch_targets, probabilities)
        return losses, hits

    # Neither tf.add_n nor a chain of additions, which TensorFlow makes into one: it begins with
    # whichever input's buffer happens to be free, and a sum of three has other last bits then.
    def total(*terms: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.stack(terms))

    # Chunks of any length, without tracing the functions again.
    signature = (
        tf.TensorSpec((None, train[0].shape[1]), tf.float32),
        tf.TensorSpec((None,), tf.int64),
    )

    # Many steps are one call: `Model.fit` with its call per step takes more than twice as long.
    # Not a whole epoch, because TensorFlow would copy all rows.
    @tf.function(input_signature=signature)
    def run_steps(rows: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss_sum, hit_sum = 0.0, 0.0
        for start in tf.range(0, tf.size(targets), batch_size):
            batch, batch_targets = (x[start : start + batch_size] for x in (rows, targets))
            with tf.GradientTape() as tape:
                losses, hits = losses_and_hits(batch, batch_targets)
                loss = total(tf.reduce_mean(losses), *network.losses)
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            loss_sum += loss * tf.cast(tf.size(batch_targets), tf.float32)
            hit_sum += tf.reduce_sum(hits)
        return loss_sum, hit_sum

    @tf.function(input_signature=signature)
    def score(rows: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        losses, hits = losses_and_hits(rows, targets)
        size = tf.cast(tf.size(targets), tf.float32)
        return tf.reduce_sum(losses) + total(*network.losses) * size, tf.reduce_sum(hits)

    chunk = batch_size * max(1, CHUNK // batch_size)

    def sums(function: Any, part: tuple[np.ndarray, np.ndarray], chosen: Any) -> np.ndarray:
        return np.array([float(x) for x in function(part[0][chosen], part[1][chosen])])

    def validate(part: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        size = len(part[0])
        starts = range(0, size, chunk)
        return np.sum([sums(score, part, slice(i, i + chunk)) for i in starts], axis=0) / size

    def diverged(epoch: int) -> L3PruneError:
        if checkpoint:
            checkpoint.remove()  # it would stand in the way of another learning rate
        return L3PruneError(
            f"the loss is not finite in epoch {epoch}; lower learning_rate={recipe.learning_rate}"
        )

    variables = [*weights, *optimizer.variables]
    progress = checkpoint.load() if checkpoint else None
    if progress is None:
        progress = Progress(best=network.get_weights())
    elif checkpoint is not None:
        _check_shapes(progress, variables, network.get_weights(), checkpoint)
        for variable, value in zip(variables, progress.variables, strict=True):
            variable.assign(value)
    history = progress.history
    rng = np.random.default_rng(seed)
    for _ in history:
        rng.permutation(n_rows)  # as the epochs before did
    # None: no bar where standard error is a file, as in a batch job.
    bar = tqdm(
        range(len(history) + 1, recipe.epochs + 1),
        title,
        total=recipe.epochs,
        initial=len(history),
        unit="epoch",
        disable=True if title is None else None,
    )
    with bar, noted() if checkpoint else contextlib.nullcontext(Signals()) as signals:
        for epoch in bar:
            if _patience_is_out(history, recipe):
                break
            order = rng.permutation(n_rows)
            while progress.rows < n_rows:
                progress.sums += sums(
                    run_steps, train, order[progress.rows : progress.rows + chunk]
                )
                progress.rows += chunk
                if not np.isfinite(progress.sums).all():
                    raise diverged(epoch)
                if checkpoint:
                    checkpoint.look(progress, variables, signals)
            values = (progress.sums / n_rows).tolist()
            if valid is not None:
                values += validate(valid).tolist()
            progress.rows, progress.sums = 0, np.zeros(2)
            row = {"epoch": epoch, **dict(zip(HISTORY[1:], values, strict=False))}
            history.append(row)
            if not np.isfinite(list(row.values())).all():
                raise diverged(epoch)
            best = best_row(history)
            if best is row:
                progress.best = network.get_weights()
            losses = {name: row[name] for name in ("loss", "val_loss") if name in row}
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
            if checkpoint:
                checkpoint.look(progress, variables, signals)
    kept = progress.best
    return MLP(tuple(kept[::2]), tuple(kept[1::2])), history


def _check_shapes(
    progress: Progress, variables: Sequence[Any], weights: Sequence[Any], checkpoint: Checkpoint
) -> None:
    for found, own in ((progress.variables, variables), (progress.best, weights)):
        if [array.shape for array in found] != [tuple(array.shape) for array in own]:
            raise checkpoint.damaged("its arrays are of another network")


def _patience_is_out(history: Sequence[dict[str, float]], recipe: Recipe) -> bool:
    if not history:
        return False
    return history[-1]["epoch"] - best_row(history)["epoch"] >= recipe.patience


def best_row(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The row whose weights `fit_mlp` kept: the first with the lowest validation loss, or the last.

    Examples
    --------
    >>> best_row([{"epoch": 1, "val_loss": 2.0}, {"epoch": 2, "val_loss": 1.0}])
    {'epoch': 2, 'val_loss': 1.0}
    """
    if "val_loss" not in history[-1]:
        return history[-1]
    return min(history, key=operator.itemgetter("val_loss"))
