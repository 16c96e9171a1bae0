"""Training with records: checkpoints, history, config, exact resume, seeds."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune import __version__, graph
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import make_folder, write_table
from l3prune.gradual import Batches, MaskUpdate, one_at_a_time
from l3prune.weights import load_network, read_attachment, save_network

LATEST = "model_latest.h5"
BEST = "model_best_valid_loss.h5"
HISTORY = "history.csv"

#: Enough for the means and variances that BatchNorm needs; more would only cost time.
_CALIBRATION_BATCHES = 64


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are EdgeL3's.

    Attributes
    ----------
    epochs : int
        At most.
    learning_rate : float
        Adam's, at the start.
    early_stopping_patience : int
        Epochs without a validation loss lower by `min_delta` before the run ends.
    min_delta : float
        In units of the loss.
    schedule : {"plateau", "cosine"}
        Of the learning rate: multiplied by `plateau_factor` after `plateau_patience` epochs
        without a better validation loss; or half a cosine from the start to the last of `epochs`,
        which gets more out of a fixed small number of epochs.
    plateau_patience, plateau_factor : int, float
    checkpoint_interval : int
        Epochs between numbered checkpoints; 0 for none.
    batch_norm : {"train", "freeze"}
        "train" normalises by each batch and trains scale and shift, as EdgeL3. "freeze" first
        measures the statistics of the pruned network on training data, then trains the weights
        with BatchNorm as inference has it: what is trained is what is deployed, which wants far
        fewer steps.
    seed : int

    Raises
    ------
    ParameterError
        A value outside its range.

    Examples
    --------
    >>> Recipe().learning_rate
    1e-05
    """

    epochs: int = 300
    learning_rate: float = 1e-5
    early_stopping_patience: int = 10
    min_delta: float = 1e-4
    schedule: str = "plateau"
    plateau_patience: int = 5
    plateau_factor: float = 0.1
    checkpoint_interval: int = 10
    batch_norm: str = "train"
    seed: int = 20180216

    def __post_init__(self):
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("early_stopping_patience", self.early_stopping_patience, 0),
            ("plateau_patience", self.plateau_patience, 0),
            ("checkpoint_interval", self.checkpoint_interval, 0),
            ("seed", self.seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ParameterError(f"{name}={value!r} is not a whole number ≥ {least}")
        if self.seed >= 2**32:
            raise ParameterError(f"seed={self.seed} is not below 2^32, as NumPy's seeds are")
        if self.schedule not in ("plateau", "cosine"):
            raise ParameterError(f"schedule={self.schedule!r}; allowed: 'plateau', 'cosine'")
        for name in ("learning_rate", "min_delta", "plateau_factor"):
            if isinstance(getattr(self, name), bool) or not isinstance(
                getattr(self, name), int | float | np.number
            ):
                raise ParameterError(f"{name}={getattr(self, name)!r} is not a number")
        if not 0 < self.learning_rate < math.inf:
            raise ParameterError(f"learning_rate={self.learning_rate} is not a positive number")
        if not 0 <= self.min_delta < math.inf:
            raise ParameterError(f"min_delta={self.min_delta} is not a number ≥ 0")
        if not 0 < self.plateau_factor < 1:
            raise ParameterError(f"plateau_factor={self.plateau_factor} is not in (0, 1)")
        if self.batch_norm not in ("train", "freeze"):
            raise ParameterError(f"batch_norm={self.batch_norm!r}; allowed: 'train', 'freeze'")


def fit(
    network: keras.Model,
    batches: Batches,
    validation: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]],
    steps_per_epoch: int,
    output_dir: str | os.PathLike[str],
    recipe: Recipe,
    *,
    pruner: MaskUpdate | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Train a network in place, to the weights of its best validation loss.

    The loss is the mean squared error, plus the network's weight decay; the mean squared and the
    mean absolute error alone are the metrics `mse` and `mae`.

    After each epoch `model_latest.h5` holds weights, masks, optimizer state and history in one
    atomically written file; a resumed run continues from there bit for bit on CPU.
    `model_best_valid_loss.h5` is the best so far; `history.csv` the history for people;
    `tensorboard/` the same for TensorBoard.

    Parameters
    ----------
    network : keras.Model
        As `create_network`, `load_network` or surgery gave it.
    batches : callable, first batch -> endless iterator of (inputs, targets)
        The stream from its `first batch`-th batch on.
    validation : callable, () -> iterator of (inputs, targets)
        The same batches each time.
    steps_per_epoch : int
        Batches.
    output_dir : str or path-like
    recipe : Recipe
    pruner : MaskUpdate or None
        Changes the network's masks while it is trained; see `gradual`. The best epoch is then the
        best of those that end with the final sparsity; early stopping and the plateau rule begin to
        look at the loss in the epoch in which the masks come to rest; and "freeze" measures the
        statistics again whenever masks have changed.
    resume : bool
        Go on from `output_dir`'s latest checkpoint, in the middle of the pruner's schedule too.
    quiet : bool
        No progress bars.

    Returns
    -------
    history : list of dict
        One row an epoch: epoch (from 1), learning_rate, loss, mae, mse, and val_ of the three;
        with a pruner also the sparsity.

    Raises
    ------
    ParameterError
        The pruner's schedule ends after the run, or the network has no masks where it has layers.
    L3PruneError
        `resume` and the folder has no history or no checkpoint, or they are of another network;
        the loss is not finite.

    Examples
    --------
    >>> import tempfile
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", input="log_mel", filters=[1] * 8)
    >>> x, y = np.zeros((2, 64, 50, 1), np.float32), np.ones((2, 1), np.float32)
    >>> folder = tempfile.mkdtemp()
    >>> recipe = Recipe(epochs=1, learning_rate=0.1)
    >>> one = lambda first=0: iter([(x, y)])
    >>> len(fit(network, one, one, 1, folder, recipe, quiet=True))
    1
    """
    settled = final = 0
    if pruner is not None:
        pruner.set_model(network)
        settled, final = pruner.epochs(steps_per_epoch, recipe.epochs)
        pruner.training_batches = batches = one_at_a_time(batches)
        pruner.changed = None
    output_dir = make_folder(output_dir)
    keras.utils.set_random_seed(recipe.seed)
    if recipe.batch_norm == "freeze":
        count = min(steps_per_epoch, _CALIBRATION_BATCHES)
        measure = functools.partial(_measure_and_freeze, network, batches, count)
        if not resume:
            measure(0)
        _set_batch_norm_trainable(network, False)
        if pruner is not None:
            pruner.changed = measure
    optimizer = keras.optimizers.Adam(recipe.learning_rate)
    network.compile(optimizer, loss="mse", metrics=["mae", "mse"])
    # Built within the first step, it would have that step traced twice.
    optimizer.build(network.trainable_variables)
    history = _restore(network, optimizer, output_dir, pruner, final) if resume else []
    stopper = keras.callbacks.EarlyStopping(
        "val_loss",
        min_delta=recipe.min_delta,
        patience=recipe.early_stopping_patience,
        start_from_epoch=settled,
    )
    if recipe.schedule == "cosine":
        schedule = keras.callbacks.LearningRateScheduler(
            lambda epoch: (
                recipe.learning_rate * (0.5 + 0.5 * math.cos(math.pi * epoch / recipe.epochs))
            )
        )
    else:
        schedule = _LatePlateau(
            settled, "val_loss", factor=recipe.plateau_factor, patience=recipe.plateau_patience
        )
    replay = _Replay([stopper, schedule], list(history), recipe.learning_rate)
    first = len(history)
    if first < recipe.epochs and not replay.ends_stopped(network):
        with _datasets(network, lambda: batches(first * steps_per_epoch), validation) as (
            data,
            validation_data,
        ):
            network.fit(
                data,
                initial_epoch=first,
                epochs=recipe.epochs,
                steps_per_epoch=steps_per_epoch,
                validation_data=validation_data,
                callbacks=[
                    *([] if pruner is None else [pruner]),
                    stopper,
                    schedule,
                    replay,
                    # After the schedule, so that the checkpoint has the next epoch's learning rate.
                    _Keeper(output_dir, history, recipe.checkpoint_interval, final, pruner),
                    keras.callbacks.TensorBoard(output_dir / "tensorboard", write_graph=False),
                ],
                # A bar on a terminal, a line an epoch in a job's log.
                verbose=0 if quiet else 1 if sys.stdout.isatty() else 2,
            )
    _set_batch_norm_trainable(network, True)
    _take_weights(network, load_network(output_dir / BEST))
    return history


def measure_batch_norm(
    network: keras.Model, batches: Iterator[tuple[np.ndarray, np.ndarray]], count: int
) -> None:
    """Set the BatchNorm statistics of a network to the means over some batches, in place.

    Parameters
    ----------
    network : keras.Model
    batches : iterator of (inputs, targets)
        Inputs as the network takes them; targets are not looked at.
    count : int
        How many batches to take, at least 1.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", input="log_mel", filters=[1] * 8)
    >>> x = np.full((2, 64, 50, 1), -3, np.float32)
    >>> measure_batch_norm(network, iter([(x, None)]), 1)
    >>> network.get_layer("batch_normalization_1").moving_mean.numpy()
    array([-3.], dtype=float32)
    """
    layers = _batch_norms(network)
    momenta = [layer.momentum for layer in layers]
    for number in range(count):
        inputs, _ = next(batches)
        for layer in layers:
            layer.momentum = number / (number + 1)  # so that every batch counts alike
        network(inputs, training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _measure_and_freeze(network: keras.Model, batches: Batches, count: int, first: int) -> None:
    _set_batch_norm_trainable(network, True)  # or the batches would not count
    measure_batch_norm(network, batches(first), count)
    _set_batch_norm_trainable(network, False)


def _batch_norms(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]


def _set_batch_norm_trainable(network: keras.Model, trainable: bool) -> None:
    # Keras: a BatchNorm that is not trainable runs in inference mode during training.
    for layer in _batch_norms(network):
        layer.trainable = trainable


def _take_weights(network: keras.Model, source: keras.Model) -> None:
    """Copy weights by layer: Keras's own order depends on what is trainable at the moment."""
    for target, layer in zip(network.layers, source.layers, strict=True):
        target.set_weights(layer.get_weights())


@contextlib.contextmanager
def _datasets(
    network: keras.Model, *streams: Callable[[], Iterator[Any]]
) -> Iterator[list[tf.data.Dataset]]:
    """Streams of batches as prefetched datasets; their own errors come out as they are.

    TensorFlow would turn a damaged file's message into a traceback of its own.
    """
    failures: list[L3PruneError] = []

    def guarded(stream: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        try:
            yield from stream()
        except L3PruneError as error:
            failures.append(error)
            raise

    signature = tuple(
        tf.TensorSpec((None, *shape[1:]), tf.float32)
        for shape in (network.input_shape, network.output_shape)
    )
    try:
        yield [
            tf.data.Dataset.from_generator(
                functools.partial(guarded, stream), output_signature=signature
            ).prefetch(2)
            for stream in streams
        ]
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise


class _Replay(keras.callbacks.Callback):
    """Brings callbacks to where they stood after the epochs that a resumed run has behind it."""

    def __init__(self, callbacks, rows: list[dict[str, float]], learning_rate: float):
        super().__init__()
        self.callbacks = callbacks
        self.rows = rows
        self.learning_rate = learning_rate

    def on_train_begin(self, logs=None):
        if not self.rows:
            return
        keras.backend.set_value(self.model.optimizer.learning_rate, self.learning_rate)
        for epoch, row in enumerate(self.rows):
            for callback in self.callbacks:
                callback.on_epoch_end(epoch, dict(row))

    def ends_stopped(self, network: keras.Model) -> bool:
        """Whether the run had been ended by one of the callbacks."""
        network.stop_training = False
        for callback in [*self.callbacks, self]:
            callback.set_model(network)
            callback.on_train_begin()
        return network.stop_training


class _LatePlateau(keras.callbacks.ReduceLROnPlateau):
    """Looks at the loss from an epoch on: a loss that pruning has raised is no plateau."""

    def __init__(self, start_from_epoch: int, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.start_from_epoch = start_from_epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch >= self.start_from_epoch:
            super().on_epoch_end(epoch, logs)


class _Keeper(keras.callbacks.Callback):
    """Writes the checkpoints and the history after each epoch; the first `final` are no best."""

    def __init__(
        self,
        output_dir: Path,
        history: list[dict[str, float]],
        interval: int,
        final: int,
        pruner: MaskUpdate | None,
    ):
        super().__init__()
        self.output_dir = output_dir
        self.history = history
        self.interval = interval
        self.final = final
        self.pruner = pruner
        self.learning_rate = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.learning_rate = float(keras.backend.get_value(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        row: dict[str, float] = {"epoch": epoch + 1, "learning_rate": self.learning_rate}
        row.update({name: float(value) for name, value in (logs or {}).items() if name != "lr"})
        if not all(math.isfinite(value) for value in row.values()):
            raise L3PruneError(
                f"training diverged in epoch {epoch + 1} (the loss is not finite); "
                "take a smaller learning rate"
            )
        best = min((each["val_loss"] for each in self.history[self.final :]), default=math.inf)
        self.history.append(row)
        if epoch >= self.final and row["val_loss"] < best:
            save_network(self.model, self.output_dir / BEST, origin=row)
        state = {
            f"optimizer-{number:04d}": variable.numpy()
            for number, variable in enumerate(self.model.optimizer.variables)
        }
        state["history"] = np.frombuffer(json.dumps(self.history).encode(), np.uint8)
        if self.pruner is not None:
            state["pruner"] = np.frombuffer(_described(self.pruner).encode(), np.uint8)
        if self.interval and (epoch + 1) % self.interval == 0:
            save_network(
                self.model, self.output_dir / f"model_checkpoint.{epoch + 1:02d}.h5", origin=row
            )
        write_table(self.output_dir / HISTORY, self.history)
        # Last: what was written before it is written again, alike, if the run dies here.
        save_network(self.model, self.output_dir / LATEST, origin=row, attachment=state)


def _described(pruner: MaskUpdate | None) -> str:
    return json.dumps(None if pruner is None else pruner.description(), sort_keys=True)


def _restore(
    network: keras.Model, optimizer, output_dir: Path, pruner: MaskUpdate | None, final: int
) -> list[dict[str, float]]:
    """Put the latest checkpoint into network and optimizer; the history that it ends."""

    def check(name: str) -> None:
        if not (output_dir / name).is_file():
            raise L3PruneError(
                f"{output_dir} has no {name}, so there is no run to continue there; "
                "give the folder of a run that finished at least one epoch"
            )

    check(HISTORY)
    check(LATEST)
    latest = load_network(output_dir / LATEST)
    state = read_attachment(output_dir / LATEST)
    if "history" not in state:
        raise L3PruneError(f"{output_dir / LATEST} holds weights only, not the state of a run")
    history = json.loads(state["history"].tobytes())
    stored = state["pruner"].tobytes().decode() if "pruner" in state else _described(None)
    if stored != _described(pruner):
        raise L3PruneError(
            f"the run in {output_dir} changed its masks by {stored}, not by {_described(pruner)}; "
            "continue it with its own schedule (null: with none)"
        )
    # Before the network is as sparse as it is to be, no epoch is the best.
    if len(history) > final:
        check(BEST)
    masks, latest_masks = graph.masks(network), graph.masks(latest)
    shapes = [
        [tuple(weight.shape) for layer in net.layers for weight in layer.weights]
        for net in (network, latest)
    ]
    same = masks == latest_masks if pruner is None else pruner.continues(masks, latest_masks)
    if shapes[0] != shapes[1] or not same:
        raise L3PruneError(
            f"the run in {output_dir} trained another network than the one given, or one with "
            "other masks: continue it with the same weights, sparsities and model type"
        )
    slots = [array for name, array in sorted(state.items()) if name.startswith("optimizer-")]
    if [slot.shape for slot in slots] != [tuple(v.shape) for v in optimizer.variables]:
        raise L3PruneError(
            f"the run in {output_dir} trained other layers; continue it with its own batch_norm"
        )
    _take_weights(network, latest)
    for variable, slot in zip(optimizer.variables, slots, strict=True):
        variable.assign(slot)
    return history


def environment() -> dict[str, str]:
    """Versions that a result depends on, for a run's config.json.

    Examples
    --------
    >>> environment()["l3prune"] == __version__
    True
    """
    packages = ("tensorflow", "tf_keras", "numpy", "h5py", "librosa", "soxr", "soundfile")
    return {
        "l3prune": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: metadata.version(package) for package in packages},
    }
