"""Training with records: checkpoints, history, exact resume, seeds; see `recipes` for the rest."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune import __version__, dropout, graph
from l3prune.batch_norm import measure_and_freeze, set_trainable, trained_norms
from l3prune.batches import Batches, Inputs, Numbered, datasets, one_at_a_time
from l3prune.checkpoints import (
    BEST,
    Keeper,
    Progress,
    enter_epoch,
    remove_remains,
    restore,
    take_weights,
)
from l3prune.devices import Devices
from l3prune.errors import ParameterError
from l3prune.files import locked, make_folder
from l3prune.gradual import MaskUpdate
from l3prune.interruption import noted
from l3prune.ranking import Lwlrap
from l3prune.recipes import EMBEDDING, Objective, Recipe
from l3prune.weights import load_network
from l3prune.zero_filters import make_optimizer

#: Enough for the means and variances that BatchNorm needs; more would only cost time.
_CALIBRATION_BATCHES = 64


def fit(
    network: keras.Model,
    batches: Batches,
    validation: Callable[[], Iterator[tuple[Inputs, np.ndarray]]],
    steps_per_epoch: int,
    output_dir: str | os.PathLike[str],
    recipe: Recipe,
    *,
    objective: Objective = EMBEDDING,
    pruner: MaskUpdate | None = None,
    data: Mapping[str, int | str] | None = None,
    devices: Devices | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Train a network in place, to the weights of its best epoch by the recipe's `best_by`.

    After each epoch, every `checkpoint_minutes` within one, and when SIGTERM or SIGUSR1 asks the
    run to end, `model_latest.h5` is written in one go, with all that the run's future depends on: a
    resumed run continues from there bit for bit on CPU. `model_best_valid_loss.h5` is the best
    epoch so far, whatever figure chooses it; `history.csv` the history for people; `tensorboard/`
    the same for TensorBoard.

    Layers that are not trainable are left as they are: BatchNorm among them computes as inference
    does, and masks in them do not change.

    Parameters
    ----------
    network : keras.Model
        As `create_network`, `load_network` or surgery gave it, and then `Devices.copy`.
    batches : callable, first batch -> endless iterator of (inputs, targets)
        The stream from its `first batch`-th batch on. Inputs are one array, or for a network of
        several inputs a tuple of arrays in their order.
    validation : callable, () -> iterator of (inputs, targets)
        The same batches each time.
    steps_per_epoch : int
        Batches.
    output_dir : str or path-like
    recipe : Recipe
    objective : Objective
        `EMBEDDING` or `CORRESPONDENCE`.
    pruner : MaskUpdate or None
        Changes the network's masks while it is trained; see `gradual`. The best epoch is then the
        best of those that end with the final sparsity; early stopping and the plateau rule begin to
        look at the loss in the epoch in which the masks come to rest; and "freeze" measures the
        statistics again whenever masks have changed.
    data : dict or None
        What the batches follow from, besides the recipe's seed: a run is continued with the same
        only.
    devices : Devices or None
        None is one device in float32. With several, `batches` and `validation` are
        `batches.Numbered`, and all workers call this alike, with one `output_dir` that all see. A
        run can be continued with another number of devices.
    resume : bool
        Go on from `output_dir`'s latest checkpoint, in the middle of an epoch and of the pruner's
        schedule too.
    quiet : bool
        No progress bars.

    Returns
    -------
    history : list of dict
        One row an epoch: epoch (from 1), learning_rate, loss, the objective's metrics, and val_ of
        the loss and the metrics; with a pruner also the sparsity.

    Raises
    ------
    ParameterError
        The pruner's schedule ends after the run, or the network has no masks where it has layers.
    Interrupted
        A signal came, and the checkpoint is written.
    L3PruneError
        `resume` and the folder has no checkpoint, or it is of another network or other data;
        another run is at work in the folder; the loss is not finite; another worker has ended.

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
    devices = devices or Devices()
    if devices.strategy is not None:
        if not isinstance(batches, Numbered) or not isinstance(validation, Numbered):
            raise ParameterError(
                "several devices share batches of numbered windows: give batches.Numbered"
            )
        if network.distribute_strategy is not devices.strategy:
            raise ParameterError("the network is not on these devices; give devices.copy(network)")
    settled = final = 0
    if pruner is not None:
        if devices.precision == "mixed_float16":
            raise ParameterError(
                "mixed_float16 leaves out steps whose gradients overflow, and masks change by the "
                "count of steps; take mixed_bfloat16"
            )
        pruner.set_model(network)
        settled, final = pruner.epochs(steps_per_epoch, recipe.epochs)
        pruner.training_batches = batches = one_at_a_time(batches)
    best_by, sign = objective.figure(recipe.best_by)
    final = max(final, recipe.best_from)
    output_dir = make_folder(output_dir)
    keras.utils.set_random_seed(recipe.seed)
    norms = trained_norms(network)
    try:
        with contextlib.ExitStack() as held:
            held.enter_context(devices.watched())
            if devices.chief:
                held.enter_context(locked(output_dir))
                remove_remains(output_dir)
            signals = held.enter_context(noted())
            measure = None
            if recipe.batch_norm == "keep":
                set_trainable(norms, False)
            elif recipe.batch_norm == "freeze":
                count = min(steps_per_epoch, _CALIBRATION_BATCHES)
                measure = functools.partial(measure_and_freeze, network, norms, batches, count)
                if not resume:
                    measure(0)
                set_trainable(norms, False)
            if pruner is not None:
                pruner.changed = functools.partial(_masks_changed, network, devices, measure)
            _compile(network, recipe, steps_per_epoch, objective, devices)
            steps = network.optimizer.iterations
            held.enter_context(dropout.by_step(network, recipe.seed, steps))
            data = {"seed": recipe.seed, "precision": devices.precision, **(data or {})}
            # Checkpoints from before there was a choice do not tell it.
            data |= {} if best_by == "val_loss" else {"best_by": recipe.best_by}
            data |= {"best_from": recipe.best_from} if recipe.best_from else {}
            data["optimizer"] = str(recipe.descent)
            devices.check_alike("the run", repr((recipe, steps_per_epoch, data, resume)).encode())
            progress = Progress(data=data)
            if resume:
                progress = restore(network, output_dir, steps_per_epoch, pruner, final, data)
                place = f"{len(progress.history)} {progress.step}"
                devices.check_alike(f"the checkpoint in {output_dir}", place.encode())
            rules = _rules(recipe, steps_per_epoch, settled, best_by, sign)
            replay = _Replay(rules, list(progress.history), recipe.learning_rate)
            if len(progress.history) < recipe.epochs and not replay.ends_stopped(network):
                callbacks = [
                    *([] if pruner is None else [pruner]),
                    *rules,
                    replay,
                    *([_tensorboard(output_dir)] if devices.chief else []),
                    Keeper(
                        output_dir,
                        progress,
                        steps_per_epoch,
                        recipe.checkpoint_interval,
                        recipe.checkpoint_minutes,
                        final,
                        pruner,
                        signals,
                        devices,
                        best_by,
                        sign,
                    ),
                ]
                # A bar on a terminal, a line an epoch in a job's log.
                verbose = 0 if quiet or not devices.chief else 1 if sys.stdout.isatty() else 2
                streams, size = (batches, validation), (steps_per_epoch, recipe.epochs)
                _train(network, streams, progress, size, callbacks, devices, verbose)
    finally:
        set_trainable(norms, True)
    with devices.watched():
        _take_best(network, output_dir, devices)
    return progress.history


def _tensorboard(output_dir: Path) -> keras.callbacks.Callback:
    return keras.callbacks.TensorBoard(output_dir / "tensorboard", write_graph=False)


def _take_best(network: keras.Model, output_dir: Path, devices: Devices) -> None:
    if devices.workers == 1:
        take_weights(network, load_network(output_dir / BEST))
        return
    # Over a network file system the others could still see an older file.
    layers = [layer for layer in network.layers if layer.weights]
    values = [layer.get_weights() for layer in layers]
    if devices.chief:
        best = load_network(output_dir / BEST)
        values = [layer.get_weights() for layer in best.layers if layer.weights]
    for layer, each in zip(layers, values, strict=True):
        layer.set_weights(devices.from_chief(each))


def _masks_changed(
    network: keras.Model, devices: Devices, measure: Callable[[int], None] | None, step: int
) -> None:
    """What is due after masks have changed, before the next step."""
    if devices.workers > 1:
        masks = graph.masks(network).values()
        devices.check_alike("the masks", b"".join(np.packbits(mask).tobytes() for mask in masks))
    if measure is not None:
        measure(step)


def _compile(
    network: keras.Model,
    recipe: Recipe,
    steps_per_epoch: int,
    objective: Objective,
    devices: Devices,
) -> None:
    """Compile a network, and build now what Keras builds within the first step."""
    with devices.scope():
        optimizer = make_optimizer(recipe, network, steps_per_epoch)
        if devices.precision == "mixed_float16":
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
        network.compile(
            optimizer,
            loss=keras.losses.get(objective.loss),
            metrics=[Lwlrap() if name == "lwlrap" else name for name in objective.metrics],
            jit_compile=devices.xla or None,
        )
        # Later, it would have that step traced twice.
        optimizer.build(network.trainable_variables)
        # Later, a resumed run could not give the metrics what they held.
        output = tf.zeros((1, *network.output_shape[1:]))
        network.compiled_loss.build(output)
        network.compiled_metrics.build(output, output)


def _train(
    network: keras.Model,
    streams: tuple[Batches, Callable[[], Iterator[Any]]],
    progress: Progress,
    size: tuple[int, int],
    callbacks: list[keras.callbacks.Callback],
    devices: Devices,
    verbose: int,
) -> None:
    """Keras's `fit`, which begins where the progress says: within an epoch, or at its validation.

    Parameters
    ----------
    size : tuple of 2 int
        Steps of an epoch, epochs.
    """
    batches, validation = streams
    steps, epochs = size
    validation_steps = None
    if isinstance(batches, Numbered) and isinstance(validation, Numbered):
        # Of shared data, Keras cannot see the end.
        validation_steps = len(list(validation.numbers(0)))
        batches, validation = (each.shared(devices.parts) for each in (batches, validation))
    first = len(progress.history)
    every = keras.callbacks.CallbackList(
        callbacks,
        add_progbar=verbose != 0,
        model=network,
        verbose=verbose,
        epochs=epochs,
        steps=steps,
    )
    entered = functools.partial(batches, first * steps + progress.step)
    with datasets(network, entered, validation) as (data, validation_data), devices.scope():
        data, validation_data = map(devices.take, (data, validation_data))
        network.stop_training = False
        train_step = network.make_train_function()
        iterator = iter(data)
        try:
            every.on_train_begin()
            for epoch in range(first, epochs):
                network.reset_metrics()
                every.on_epoch_begin(epoch)
                if progress.step:
                    enter_epoch(network, progress.sums)
                for step in range(progress.step, steps):
                    every.on_train_batch_begin(step)
                    logs = train_step(iterator)
                    every.on_train_batch_end(step, logs)
                row = network.get_metrics_result()
                found = network.evaluate(
                    validation_data,
                    steps=validation_steps,
                    callbacks=every,
                    return_dict=True,
                    verbose=0,
                )
                row |= {f"val_{name}": value for name, value in found.items()}
                every.on_epoch_end(epoch, {name: float(value) for name, value in row.items()})
                if network.stop_training:
                    break
        finally:
            every.on_train_end()  # closes TensorBoard's files


def _rules(
    recipe: Recipe, steps_per_epoch: int, settled: int, best_by: str, sign: int
) -> list[keras.callbacks.Callback]:
    """What ends a run early, and what changes its learning rate; from an epoch on."""
    stopper = keras.callbacks.EarlyStopping(
        best_by,
        mode="min" if sign > 0 else "max",
        min_delta=recipe.min_delta,
        patience=recipe.early_stopping_patience,
        start_from_epoch=max(settled, recipe.best_from),
    )
    if recipe.schedule == "constant":
        return [stopper]
    if recipe.schedule == "cosine":
        return [stopper, _Cosine(recipe, steps_per_epoch)]
    if recipe.schedule == "linear":
        return [stopper, keras.callbacks.LearningRateScheduler(recipe.rate)]
    schedule = _LatePlateau(
        settled, "val_loss", factor=recipe.plateau_factor, patience=recipe.plateau_patience
    )
    return [stopper, schedule]


class _Cosine(keras.callbacks.Callback):
    """Half a cosine over a run, a function of epoch and step alone: a resumed run has it too."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int):
        super().__init__()
        self.recipe = recipe
        self.interval = recipe.cosine_interval or steps_per_epoch
        self.changes = -(-steps_per_epoch // self.interval)  # in an epoch
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._set(0)

    def on_train_batch_begin(self, batch, logs=None):
        # A resumed run enters an epoch anywhere.
        if self.changes > 1:
            self._set(batch // self.interval)

    def _set(self, change: int) -> None:
        rate = self.recipe.rate(self.epoch + change / self.changes)
        keras.backend.set_value(self.model.optimizer.learning_rate, rate)


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
