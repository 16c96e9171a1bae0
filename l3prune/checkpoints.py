"""What a run of `training.fit` writes, and what it goes on from.

All that a run's future depends on is in one file, `model_latest.h5`, which is replaced in one go:
weights and masks, what is trained beside the network, the optimizer's variables, the history, the
rule by which masks change, the state of Python's and NumPy's random numbers; and in the middle of
an epoch how many of its steps are done, with what the metrics have summed up over them. Batches are
a function of their number, mask schedules of the optimizer's count of steps, early stopping and the
learning rate of the history: these need no state of their own.
"""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from l3prune import graph
from l3prune.devices import Devices
from l3prune.disguise import variables_beside
from l3prune.errors import Interrupted, L3PruneError
from l3prune.files import write_table
from l3prune.gradual import MaskUpdate
from l3prune.interruption import SIGNALS, Signals
from l3prune.weights import load_network, read_attachment, save_network

LATEST = "model_latest.h5"
BEST = "model_best_valid_loss.h5"
HISTORY = "history.csv"


@dataclass
class Progress:
    """How far a run has come.

    Attributes
    ----------
    history : list of dict
        One row for each epoch that has ended.
    step : int
        Steps of the next epoch that are done: all of them, when only its validation is left.
    sums : list of np.ndarray
        What the metrics hold after these steps.
    data : dict
        What else a run's future depends on: sizes of batches and data, seed, precision.

    Examples
    --------
    >>> Progress().step
    0
    """

    history: list[dict[str, float]] = field(default_factory=list)
    step: int = 0
    sums: list[np.ndarray] = field(default_factory=list)
    data: dict[str, int | str] = field(default_factory=dict)


#: Of a run with several workers: seconds from one agreement to the next, about.
_AGREE_EVERY = 2.0


class Keeper(keras.callbacks.Callback):
    """Writes the checkpoints and the history of a run, and ends it where a signal asks for that.

    After each epoch, and within one when it is time or a signal came. The last of the callbacks,
    so that a checkpoint has the next epoch's learning rate.

    Parameters
    ----------
    output_dir : pathlib.Path
    progress : Progress
        Where the run begins; kept up to date.
    steps_per_epoch : int
    interval : int
        Epochs between numbered checkpoints; 0 for none.
    minutes : float
        Between checkpoints within an epoch; 0 for none but those that signals ask for.
    final : int
        So many epochs at the start cannot be the best.
    pruner : MaskUpdate or None
    signals : Signals
    devices : Devices
        Of several workers the chief writes, and all read together: what a device has of a metric,
        or of BatchNorm's statistics, is a part of the whole. A signal to one of them ends them all.
    best_by : str
        What of the history tells the best epoch.
    sign : int
        1 if the lowest is best, -1 if the highest is.

    Examples
    --------
    >>> keeper = Keeper(Path("run"), Progress(), 10, 0, 10, 0, None, Signals(), Devices())
    >>> keeper.progress.history
    []
    """

    def __init__(
        self,
        output_dir: Path,
        progress: Progress,
        steps_per_epoch: int,
        interval: int,
        minutes: float,
        final: int,
        pruner: MaskUpdate | None,
        signals: Signals,
        devices: Devices,
        best_by: str = "val_loss",
        sign: int = 1,
    ):
        super().__init__()
        self.output_dir = output_dir
        self.progress = progress
        self.steps_per_epoch = steps_per_epoch
        self.interval = interval
        self.minutes = minutes
        self.final = final
        self.pruner = pruner
        self.signals = signals
        self.devices = devices
        self.best_by = best_by
        self.sign = sign
        self.learning_rate = 0.0
        #: When the latest checkpoint was written, and whether no step was made since.
        self._written = 0.0
        self._current = True
        #: What the metrics hold of an epoch whose steps are done.
        self._trained: list[np.ndarray] = []
        #: With several workers: steps since they agreed, when that was, steps until they do again,
        #: and the signal that they know of.
        self._steps, self._agreed, self._next = 0, 0.0, 1
        self._signal: signal.Signals | None = None

    def on_train_begin(self, logs=None):
        self._written = self._agreed = time.monotonic()
        self._is_time()
        self._stop_if_asked()

    def on_epoch_begin(self, epoch, logs=None):
        self.learning_rate = float(keras.backend.get_value(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch, logs=None):
        self.progress.step = batch + 1
        self._current = False
        self._look()

    def on_test_begin(self, logs=None):
        self._trained = _sums(self.model)  # validation uses the same metrics

    def on_test_batch_end(self, batch, logs=None):
        self._look(self._trained)

    def on_epoch_end(self, epoch, logs=None):
        row: dict[str, float] = {"epoch": epoch + 1, "learning_rate": self.learning_rate}
        row.update({name: float(value) for name, value in (logs or {}).items() if name != "lr"})
        if not all(math.isfinite(value) for value in row.values()):
            raise _diverged(epoch + 1)
        history = self.progress.history
        figures = [self.sign * each[self.best_by] for each in history[self.final :]]
        history.append(row)
        self.progress.step = 0
        if epoch >= self.final and self.sign * row[self.best_by] < min(figures, default=math.inf):
            self._save(BEST, row, _numbered("beside", _values(variables_beside(self.model))))
        if self.interval and (epoch + 1) % self.interval == 0:
            self._save(f"model_checkpoint.{epoch + 1:02d}.h5", row, {})
        if self.devices.chief:
            write_table(self.output_dir / HISTORY, history)
        # Last: what was written before it is written again, alike, if the run dies here.
        self._save_latest(row)
        self._next = 0  # there may be no later step
        self._is_time()
        self._stop_if_asked()

    def _look(self, sums: list[np.ndarray] | None = None) -> None:
        """Between steps: write a checkpoint when it is time or a signal came."""
        if self._is_time() and not self._current:
            epoch = len(self.progress.history) + 1
            sums = _sums(self.model) if sums is None else sums
            values = [*sums, *_values(self.model.trainable_variables)]
            if not all(np.isfinite(each).all() for each in values):
                raise _diverged(epoch)
            self.progress.sums = sums
            row = {"epoch": epoch, "step": self.progress.step, "steps": self.steps_per_epoch}
            self._save_latest(row)
        self._stop_if_asked()

    def _is_time(self) -> bool:
        """Whether to write a checkpoint now, for a signal too; what several workers agree on."""
        late = bool(self.minutes) and time.monotonic() - self._written >= 60 * self.minutes
        if self.devices.workers == 1:
            return late or self.signals.first is not None
        self._steps += 1
        if self._steps < self._next:
            return False
        elapsed = time.monotonic() - self._agreed
        # What one step took says little of what the next ones take.
        most = 4 * self._steps
        ahead = min(max(_AGREE_EVERY * self._steps / max(elapsed, 1e-3), 1), most)
        came = [self.signals.first is each for each in SIGNALS]
        # Clocks differ, so the chief's counts.
        mine = [late, int(ahead)] if self.devices.chief else [0, 0]
        late, self._next, *signalled = self.devices.total(np.array([*mine, *came])).astype(int)
        self._steps, self._agreed = 0, time.monotonic()
        if self._signal is None and any(signalled):
            self._signal = SIGNALS[np.flatnonzero(signalled)[0]]
        return bool(late) or self._signal is not None

    def _stop_if_asked(self) -> None:
        if self.devices.workers == 1:
            self._signal = self.signals.first  # it may have come in the middle of a checkpoint
        if self._signal is None:
            return
        # Whoever ends first may take the others with it, and the chief has written last.
        self.devices.wait()
        step, epoch = self.progress.step, len(self.progress.history)
        if step:
            where = f"after step {step} of {self.steps_per_epoch} of epoch {epoch + 1}"
        else:
            where = f"after epoch {epoch}" if epoch else "before the first step"
        raise Interrupted(
            f"stopped by {self._signal.name} {where}; the same command with "
            f"--continue-model-dir {self.output_dir} goes on from there"
        )

    def _save(self, name: str, origin: dict[str, Any], attachment: dict[str, np.ndarray]) -> None:
        path = self.output_dir / name
        save_network(
            self.model, path, origin=origin, attachment=attachment, write=self.devices.chief
        )

    def _save_latest(self, origin: dict[str, Any]) -> None:
        progress = self.progress
        state = {
            **_numbered("optimizer", _values(_optimizer_variables(self.model.optimizer))),
            **_numbered("beside", _values(variables_beside(self.model))),
            "history": _encoded(json.dumps(progress.history)),
            "data": _encoded(json.dumps(progress.data)),
            "random": _encoded(_random_state()),
        }
        if self.pruner is not None:
            state["pruner"] = _encoded(_described(self.pruner))
        if progress.step:
            state["steps"] = np.array([progress.step, self.steps_per_epoch])
            state |= _numbered("metric", progress.sums)
        self._save(LATEST, origin, state)
        self._written, self._current = time.monotonic(), True


def restore(
    network: keras.Model,
    output_dir: Path,
    steps_per_epoch: int,
    pruner: MaskUpdate | None = None,
    final: int = 0,
    data: Mapping[str, int | str] | None = None,
) -> Progress:
    """Put the latest checkpoint of a run into a network and its optimizer.

    Parameters
    ----------
    network : keras.Model
        Compiled, as the run began with it, metrics and optimizer built.
    output_dir : pathlib.Path
    steps_per_epoch : int
    pruner : MaskUpdate or None
    final : int
        As `Keeper`'s.
    data : dict or None
        As `Progress`'s.

    Returns
    -------
    progress : Progress
        Where the run goes on.

    Raises
    ------
    L3PruneError
        There is no run to continue, or it is another one.

    Examples
    --------
    >>> restore(keras.Sequential(), Path("/nowhere"), 10)
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /nowhere has no model_latest.h5, so there is no run to continue ...
    """

    def check(name: str) -> None:
        if not (output_dir / name).is_file():
            raise L3PruneError(
                f"{output_dir} has no {name}, so there is no run to continue there; "
                "give the folder of a run that wrote a checkpoint"
            )

    check(LATEST)
    state = read_attachment(output_dir / LATEST)
    history = _history(state, output_dir / LATEST)
    latest = load_network(output_dir / LATEST)
    stored = state["pruner"].tobytes().decode() if "pruner" in state else _described(None)
    if stored != _described(pruner):
        raise L3PruneError(
            f"the run in {output_dir} changed its masks by {stored}, not by {_described(pruner)}; "
            "continue it with its own schedule (null: with none)"
        )
    if history:
        check(HISTORY)
    # Before the network is as sparse as it is to be, no epoch is the best.
    if len(history) > final:
        check(BEST)
    masks, latest_masks = graph.masks(network), graph.masks(latest)
    same = masks == latest_masks if pruner is None else pruner.continues(masks, latest_masks)
    shapes = [
        [tuple(weight.shape) for layer in net.layers for weight in layer.weights]
        for net in (network, latest)
    ]
    if shapes[0] != shapes[1] or not same:
        raise L3PruneError(
            f"the run in {output_dir} trained another network than the one given, or one with "
            "other masks: continue it with the same weights, sparsities and model type"
        )
    slots, beside, sums = (_group(state, each) for each in ("optimizer", "beside", "metric"))
    variables = _optimizer_variables(network.optimizer)
    if not _match(slots, variables) or (beside and not _match(beside, variables_beside(network))):
        raise L3PruneError(
            f"the run in {output_dir} trained other layers; continue it with its own batch_norm "
            "and precision, and with those layers frozen that were"
        )
    names = {metric.name for metric in network.metrics}
    step, steps = (int(each) for each in state.get("steps", (0, steps_per_epoch)))
    if (history and not names <= history[-1].keys()) or (step and not _match(sums, _sums(network))):
        raise L3PruneError(
            f"the run in {output_dir} was not trained with {', '.join(sorted(names))}; continue it "
            "with its own objective"
        )
    if steps != steps_per_epoch:
        raise L3PruneError(
            f"the run in {output_dir} is within an epoch of {steps} steps, not {steps_per_epoch}; "
            "continue it with the same data, batch size and epoch size"
        )
    data = dict(data or {})
    # Checkpoints of earlier versions have none.
    before = json.loads(state["data"].tobytes()) if "data" in state else dict(data)
    before.setdefault("precision", "float32")
    before.setdefault("optimizer", "adam")
    # What is left out at its default may be on either side.
    for name in {**data, **before}:
        if before.get(name) != data.get(name):
            raise L3PruneError(
                f"the run in {output_dir} was trained with {name}={before.get(name)}, not "
                f"{data.get(name)}; continue it with its own data, batch size, seed and precision"
            )
    take_weights(network, latest)
    for variable, value in zip(variables, slots, strict=True):
        variable.assign(value)
    if beside:
        for variable, value in zip(variables_beside(network), beside, strict=True):
            variable.assign(value)
    if "random" in state:  # checkpoints of earlier versions have none
        _set_random_state(state["random"].tobytes().decode())
    return Progress(history, step, sums, data)


def remove_remains(output_dir: Path) -> None:
    """Remove the unfinished files of a process that was killed while it wrote them.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / ".model_latest-0a1b2c3d.h5").touch()
    >>> remove_remains(folder)
    >>> list(folder.iterdir())
    []
    """
    for name in ("model_*", "history", "report", "config", "reduction"):
        for path in output_dir.glob(f".{name}-????????.*"):
            path.unlink(missing_ok=True)


def enter_epoch(network: keras.Model, sums: list[np.ndarray]) -> None:
    """Give a network's metrics what they held in the middle of an epoch.

    Examples
    --------
    >>> enter_epoch(keras.Sequential(), [])
    """
    for variable, value in zip(_metric_weights(network), sums, strict=True):
        variable.assign(value)


def epochs_done(output_dir: Path) -> int:
    """How many epochs a run has behind it, by its latest checkpoint.

    Raises
    ------
    L3PruneError
        There is none, or it is of a network alone.

    Examples
    --------
    >>> epochs_done(Path("/nowhere"))
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: no such weight file: /nowhere/model_latest.h5
    """
    path = output_dir / LATEST
    return len(_history(read_attachment(path), path))


def trained_beside(path: Path) -> list[np.ndarray]:
    """What was trained with a checkpoint's network and is no part of it, such as a linear map.

    Examples
    --------
    >>> import tempfile
    >>> from l3prune.networks import create_network
    >>> path = Path(tempfile.mkdtemp()) / "net.h5"
    >>> save_network(create_network("sea64"), path)
    >>> trained_beside(path)
    []
    """
    return _group(read_attachment(path), "beside")


def take_weights(network: keras.Model, source: keras.Model) -> None:
    """Copy weights by layer: Keras's own order depends on what is trainable at the moment.

    Only one of the networks may have a front end.

    Examples
    --------
    >>> take_weights(keras.Sequential(), keras.Sequential())
    """
    targets, sources = ([each for each in net.layers if each.weights] for net in (network, source))
    for target, layer in zip(targets, sources, strict=True):
        target.set_weights(layer.get_weights())


def _optimizer_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    variables = list(optimizer.variables)
    if isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        # Keras gives the scale as a tensor only.
        variables += [optimizer._loss_scale.current_loss_scale, optimizer.dynamic_counter]
    return variables


def _metric_weights(network: keras.Model) -> list[Any]:
    return [weight for metric in network.metrics for weight in metric.weights]


def _sums(network: keras.Model) -> list[np.ndarray]:
    return _values(_metric_weights(network))


def _values(variables) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def _match(values: list[np.ndarray], variables) -> bool:
    return [value.shape for value in values] == [tuple(each.shape) for each in variables]


def _numbered(kind: str, values: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{kind}-{number:04d}": value for number, value in enumerate(values)}


def _group(state: dict[str, np.ndarray], kind: str) -> list[np.ndarray]:
    return [array for name, array in sorted(state.items()) if name.startswith(f"{kind}-")]


def _history(state: dict[str, np.ndarray], path: Path) -> list[dict[str, float]]:
    if "history" not in state:
        raise L3PruneError(f"{path} holds weights only, not the state of a run")
    return json.loads(state["history"].tobytes())


def _encoded(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _described(pruner: MaskUpdate | None) -> str:
    return json.dumps(None if pruner is None else pruner.description(), sort_keys=True)


# A criterion or a callback of a user's own may draw from the generators that all share.


def _random_state() -> str:
    state = [random.getstate(), np.random.get_state()]  # noqa: NPY002
    return json.dumps(state, default=np.ndarray.tolist)


def _set_random_state(text: str) -> None:
    (version, words, gauss), (kind, keys, *rest) = json.loads(text)
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))  # noqa: NPY002


def _diverged(epoch: int) -> L3PruneError:
    return L3PruneError(
        f"training diverged in epoch {epoch} (the loss is not finite); take a smaller learning rate"
    )
